package tracker

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/rs/zerolog"
)

// watchBacklog is how many log lines wait for a client that follows the log and
// reads slowly; further ones are counted and left out.
const watchBacklog = 256

// Watchers are the consoles that follow the log after "!watch". It is an
// io.Writer for zerolog's JSON lines; give it to the logger beside the log's
// own destination:
//
//	watchers := tracker.NewWatchers()
//	log := zerolog.New(zerolog.MultiLevelWriter(os.Stderr, watchers))
//	tracker.New(tracker.Options{Log: log, Watchers: watchers, ...})
//
// Writing never waits for a console.
type Watchers struct {
	count atomic.Int32

	mu  sync.Mutex // guards set, and sending to its members' channels
	set map[*watcher]struct{}
}

// NewWatchers is a set of no watchers.
func NewWatchers() *Watchers { return &Watchers{set: make(map[*watcher]struct{})} }

// watcher is one console that follows the log.
type watcher struct {
	set   *Watchers
	conn  *conn
	lines chan string
	lost  atomic.Int64 // lines left out since the last one sent
	ended chan struct{}
}

// Write tells every watcher one line of the log. It always succeeds.
func (w *Watchers) Write(p []byte) (int, error) {
	if w.count.Load() > 0 {
		w.tell(watchText(p))
	}
	return len(p), nil
}

// Run implements [zerolog.Hook], for a logger that does not write to w: the
// watchers see the messages without their fields.
func (w *Watchers) Run(_ *zerolog.Event, level zerolog.Level, message string) {
	if w.count.Load() > 0 {
		w.tell(withLevel(level.String(), message))
	}
}

func (w *Watchers) tell(text string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for to := range w.set {
		select {
		case to.lines <- text:
		default:
			to.lost.Add(1)
		}
	}
}

// watch makes c follow the log.
func (w *Watchers) watch(c *conn) *watcher {
	to := &watcher{set: w, conn: c, lines: make(chan string, watchBacklog), ended: make(chan struct{})}
	go to.run()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.set[to] = struct{}{}
	w.count.Add(1)
	return to
}

// unwatch ends what watch began, after the lines that wait have been sent.
func (w *Watchers) unwatch(to *watcher) {
	w.mu.Lock()
	delete(w.set, to)
	w.count.Add(-1)
	close(to.lines)
	w.mu.Unlock()
	<-to.ended
}

// run sends lines until there are no more. When the connection breaks it goes
// on taking them, so that their channel can be closed at leisure.
func (to *watcher) run() {
	defer close(to.ended)
	broken := false
	for text := range to.lines {
		if broken {
			continue
		}
		line := make([]byte, 0, len(text)+len(":: \r\n"))
		if lost := to.lost.Swap(0); lost > 0 {
			line = fmt.Appendf(line, ":: %d lines were left out: this console reads too slowly\r\n", lost)
		}
		line = append(line, ":: "...)
		line = append(line, text...)
		line = append(line, "\r\n"...)
		if err := to.conn.send(line); err != nil {
			broken = true
			to.conn.close()
		}
	}
}

// unwatch ends c's following of the log, if it does. It is called by c's own
// goroutine.
func (c *conn) unwatch() bool {
	if c.watching == nil {
		return false
	}
	c.watching.set.unwatch(c.watching)
	c.watching = nil
	return true
}

// watchText is a JSON line of the log as watchers see it: "[job(number)]" where
// a worker speaks, "[debug]" at that level, the message, then the other fields
// by name. What is no JSON stays as it is, on one line.
func watchText(line []byte) string {
	var fields map[string]any
	d := json.NewDecoder(bytes.NewReader(line))
	d.UseNumber()
	if err := d.Decode(&fields); err != nil {
		return printable(strings.TrimSpace(string(line)))
	}
	take := func(name string) string {
		v, ok := fields[name]
		if !ok {
			return ""
		}
		delete(fields, name)
		return fmt.Sprint(v)
	}
	level, message := take(zerolog.LevelFieldName), take(zerolog.MessageFieldName)
	delete(fields, zerolog.TimestampFieldName)
	var b strings.Builder
	if job := take("job"); job != "" {
		fmt.Fprintf(&b, "[%s(%s)] ", job, take("worker"))
	}
	b.WriteString(message)
	for _, name := range slices.Sorted(maps.Keys(fields)) {
		fmt.Fprintf(&b, " %s=%v", name, fields[name])
	}
	return withLevel(level, b.String())
}

// withLevel is text marked where it is for debugging.
func withLevel(level, text string) string {
	if level == zerolog.LevelDebugValue || level == zerolog.LevelTraceValue {
		text = "[debug] " + text
	}
	return printable(text)
}

// printable is s with control characters, which could end a line or steer a
// terminal, replaced.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return '?'
		}
		return r
	}, s)
}

// len is how many consoles follow the log.
func (w *Watchers) len() int { return int(w.count.Load()) }
