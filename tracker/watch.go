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
	"unicode"

	"github.com/rs/zerolog"

	"github.com/mogile/mogile/tracker/work"
)

const (
	// watchBacklog is how many log lines wait for a client that follows the log
	// and reads slowly; further ones are counted and left out.
	watchBacklog = 256
	// watchLine is how many bytes of a line watchers see.
	watchLine = 4 << 10
)

// Watchers are those who follow what happens in MogileFS's own words: the
// consoles that said "!watch", and the sinks given to [NewWatchers].
//
// They are told two kinds of lines. What scripts know from MogileFS ("Job delete
// has only 0, wants 1, making 1.", "[replicate(7)] Failed copying fid ...") comes
// from the tracker directly, whatever the log's level is. All else comes from
// the log: Watchers is an io.Writer for zerolog's JSON lines, to be given to the
// logger beside the log's own destination:
//
//	watchers := tracker.NewWatchers()
//	log := zerolog.New(zerolog.MultiLevelWriter(os.Stderr, watchers))
//	tracker.New(tracker.Options{Log: log, Watchers: watchers, ...})
//
// A line has no terminator and no control characters. It begins with
// "[job(number)] " where a worker speaks, and with "[debug] " before that where
// it is for debugging; consoles see it after ":: ". Writing never waits for a
// console.
type Watchers struct {
	sinks []func(line string)
	count atomic.Int32 // of set

	mu  sync.Mutex // guards set, sending to its members' channels, and calls of sinks
	set map[*watcher]struct{}
}

// NewWatchers has no consoles yet. Each sink, such as a syslog connection, is
// given every line from the first on, one call at a time and in the order of
// events. Whoever logs waits for it, so it must be quick, and must not log.
func NewWatchers(sinks ...func(line string)) *Watchers {
	return &Watchers{sinks: sinks, set: make(map[*watcher]struct{})}
}

// watcher is one console that follows the log.
type watcher struct {
	set   *Watchers
	conn  *conn
	lines chan string
	lost  atomic.Int64 // lines left out since the last one sent
	begun chan struct{}
	ended chan struct{}
}

// Write tells every watcher one line of the log. It always succeeds.
func (w *Watchers) Write(p []byte) (int, error) {
	if w.listened() {
		if text := watchText(p); text != "" {
			w.tell(text)
		}
	}
	return len(p), nil
}

// Run implements [zerolog.Hook], for a logger that does not write to w: the
// watchers see the messages without their fields.
func (w *Watchers) Run(_ *zerolog.Event, level zerolog.Level, message string) {
	if w.listened() && !toldInMogileFSWords(message) {
		w.tell(withLevel(level.String(), message))
	}
}

func (w *Watchers) listened() bool { return len(w.sinks) > 0 || w.count.Load() > 0 }

// tell gives all a line. What could end the line or steer a terminal is taken
// out of it.
func (w *Watchers) tell(text string) {
	if !w.listened() {
		return
	}
	if len(text) > watchLine {
		text = text[:watchLine] + "..."
	}
	text = printable(text)
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, sink := range w.sinks {
		sink(text)
	}
	for to := range w.set {
		select {
		case to.lines <- text:
		default:
			to.lost.Add(1)
		}
	}
}

// worker is tell for the worker of a job.
func (w *Watchers) worker(job string, id int, text string) {
	if w.listened() {
		w.tell(fmt.Sprintf("[%s(%d)] %s", job, id, text))
	}
}

// watch makes c follow the log: lines wait until [conn.beginWatching], so that
// none is sent before the answer to the line that asked for them.
func (w *Watchers) watch(c *conn) *watcher {
	to := &watcher{
		set: w, conn: c, lines: make(chan string, watchBacklog),
		begun: make(chan struct{}), ended: make(chan struct{}),
	}
	go to.run()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.set[to] = struct{}{}
	w.count.Add(1)
	return to
}

// unwatch ends what watch began, after the lines that wait have been sent.
func (w *Watchers) unwatch(to *watcher) {
	to.begin()
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
	<-to.begun
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

// begin lets the lines go out. It is called by the connection's own goroutine.
func (to *watcher) begin() {
	select {
	case <-to.begun:
	default:
		close(to.begun)
	}
}

// beginWatching lets lines of the log go out to c from now on, if it follows
// it.
func (c *conn) beginWatching() {
	if c.watching != nil {
		c.watching.begin()
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
// by name. It is empty for an event that they are told of in MogileFS's words.
// What is no JSON stays as it is, on one line.
func watchText(line []byte) string {
	var fields map[string]any
	d := json.NewDecoder(bytes.NewReader(line))
	d.UseNumber()
	if err := d.Decode(&fields); err != nil {
		return strings.TrimSpace(string(line))
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
	if toldInMogileFSWords(message) {
		return ""
	}
	delete(fields, zerolog.TimestampFieldName)
	var b strings.Builder
	if _, ok := fields[work.WorkerField]; ok && fields[work.JobField] != nil {
		fmt.Fprintf(&b, "[%s(%s)] ", take(work.JobField), take(work.WorkerField))
	}
	b.WriteString(message)
	for _, name := range slices.Sorted(maps.Keys(fields)) {
		fmt.Fprintf(&b, " %s=%v", name, fields[name])
	}
	return withLevel(level, b.String())
}

// toldInMogileFSWords reports whether watchers are told of an event, named by
// its message in the log, in words that say all that the log does.
func toldInMogileFSWords(message string) bool {
	switch message {
	case "starting workers", "worker retires", "worker ended", "worker does not get on, it is cancelled",
		"worker was sent an unknown message", "query failed", "replication failed",
		"file is not as its policy wants it":
		return true
	}
	return false
}

// withLevel is text marked where it is for debugging.
func withLevel(level, text string) string {
	if level == zerolog.LevelDebugValue || level == zerolog.LevelTraceValue {
		text = "[debug] " + text
	}
	return text
}

// printable is s with control characters, which could end a line or steer a
// terminal, replaced.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || r == '\u2028' || r == '\u2029' {
			return '?'
		}
		return r
	}, s)
}

// len is how many consoles follow the log.
func (w *Watchers) len() int { return int(w.count.Load()) }
