package tools

import (
	"context"
	"fmt"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// tally counts what a run over many files does, tells of single files, shows
// progress, and sums up.
type tally struct {
	out     *output
	what    string // the run, as in "put" or "sync"
	verbose bool   // tells of what is done, not only of what is not

	done    atomic.Int64 // files transferred, deleted or changed
	bytes   atomic.Int64 // of those; of the files under way as well
	same    atomic.Int64 // files that needed nothing
	leftOut atomic.Int64
	failed  atomic.Int64
	deleted atomic.Int64

	allFiles, allBytes atomic.Int64 // to be looked at, as far as counted
	counted            atomic.Bool  // to the end

	begun time.Time
	mu    sync.Mutex // guards the streams and width
	width int        // of the progress line shown
}

func newTally(out *output, what string, verbose bool) *tally {
	return &tally{out: out, what: what, verbose: verbose, begun: time.Now()}
}

// fileJSON is one file's line for programs.
type fileJSON struct {
	Action string `json:"action"`
	Key    string `json:"key,omitempty"`
	File   string `json:"file,omitempty"`
	Length *int64 `json:"length,omitempty"`
	FID    uint64 `json:"fid,omitempty"`
	Class  string `json:"class,omitempty"`
	Error  string `json:"error,omitempty"`
}

// did tells of a file for which something was done, or would be.
func (t *tally) did(f fileJSON) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.clear()
	if t.out.json {
		return t.out.object(f)
	}
	if !t.verbose {
		return nil
	}
	name := f.Key
	if name == "" || f.Action == "get" {
		name = f.File
	}
	return t.out.line(f.Action + " " + name)
}

// failure tells of a file for which something could not be done.
func (t *tally) failure(f fileJSON, err error) {
	t.failed.Add(1)
	f.Action, f.Error = "error", err.Error()
	t.complain(f, "mogtool: "+t.what+" "+nameOf(f)+": "+f.Error)
}

// leave tells of something that has no place at the other side.
func (t *tally) leave(f fileJSON, why error) {
	t.leftOut.Add(1)
	f.Action, f.Error = "left out", why.Error()
	t.complain(f, "mogtool: left out: "+nameOf(f)+": "+f.Error)
}

func nameOf(f fileJSON) string {
	if f.File != "" {
		return fmt.Sprintf("%q", f.File)
	}
	return fmt.Sprintf("key %q", f.Key)
}

func (t *tally) complain(f fileJSON, text string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.clear()
	if t.out.json {
		_ = t.out.object(f) // a stream that fails ends the run elsewhere
	}
	fmt.Fprintln(t.out.errw, text)
}

// clear takes the progress line away; mu is held.
func (t *tally) clear() {
	if t.width > 0 {
		fmt.Fprint(t.out.errw, "\r"+strings.Repeat(" ", t.width)+"\r")
		t.width = 0
	}
}

// show shows progress, if somebody looks, until ctx ends. count finds out how
// much there is.
func (t *tally) show(ctx context.Context, count func(context.Context) error) {
	if !t.out.progress {
		return
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		if count(ctx) == nil { // the run itself reports what is wrong
			t.counted.Store(true)
		}
	})
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			t.mu.Lock()
			t.clear()
			t.mu.Unlock()
			return
		case <-tick.C:
			if took := time.Since(t.begun); took > quiet {
				line := t.line(took)
				t.mu.Lock()
				pad := max(0, t.width-len([]rune(line)))
				fmt.Fprint(t.out.errw, "\r"+line+strings.Repeat(" ", pad))
				t.width = len([]rune(line))
				t.mu.Unlock()
			}
		}
	}
}

// line is the progress so far.
func (t *tally) line(took time.Duration) string {
	files := t.seen()
	bytes := t.bytes.Load()
	line := fmt.Sprintf("%s: %d", t.what, files)
	all := int64(-1)
	if t.counted.Load() {
		all = t.allFiles.Load()
		line += fmt.Sprintf(" of %d", all)
	}
	line += fmt.Sprintf(" files, %s, %s/s", size(bytes), size(rate(bytes, took)))
	// What was there already is not among the bytes: they tell nothing of the
	// rest where some was.
	allBytes := t.allBytes.Load()
	if t.same.Load() > 0 {
		allBytes = 0
	}
	if left := eta(files, bytes, all, allBytes, took); left >= 0 {
		line += ", " + left.Round(time.Second).String() + " left"
	}
	if n := t.failed.Load(); n > 0 {
		line += fmt.Sprintf(", %d failed", n)
	}
	return line
}

func (t *tally) seen() int64 { return t.done.Load() + t.same.Load() + t.failed.Load() }

func rate(n int64, took time.Duration) int64 {
	if took <= 0 {
		return 0
	}
	return int64(float64(n) / took.Seconds())
}

// totals is the last line for programs.
type totals struct {
	Action  string  `json:"action"` // "summary"
	Files   int64   `json:"files"`
	Bytes   int64   `json:"bytes"`
	Same    int64   `json:"same"`
	Deleted int64   `json:"deleted"`
	LeftOut int64   `json:"left_out"`
	Failed  int64   `json:"failed"`
	Seconds float64 `json:"seconds"`
}

// end sums up: verb is what was done, or where dry is true would be, as in
// "stored".
func (t *tally) end(verb string, dry, say bool) error {
	took := time.Since(t.begun)
	v := totals{"summary", t.done.Load(), t.bytes.Load(), t.same.Load(), t.deleted.Load(), t.leftOut.Load(), t.failed.Load(), round(took.Seconds())}
	if t.out.json {
		return t.out.object(v)
	}
	if !say {
		return nil
	}
	deleted := "deleted"
	if dry {
		verb, deleted = "would be "+verb, "would be deleted"
	}
	text := fmt.Sprintf("%d files %s", v.Files, verb)
	if v.Bytes > 0 {
		text += fmt.Sprintf(", %s", size(v.Bytes))
	}
	if v.Files > 0 && !dry {
		text += fmt.Sprintf(" in %v (%d files/s", took.Round(100*time.Millisecond), rate(v.Files, took))
		if v.Bytes > 0 {
			text += fmt.Sprintf(", %s/s", size(rate(v.Bytes, took)))
		}
		text += ")"
	}
	for _, p := range []struct {
		n    int64
		what string
	}{{v.Same, "as they should be"}, {v.Deleted, deleted}, {v.LeftOut, "left out"}, {v.Failed, "failed"}} {
		if p.n > 0 {
			text += fmt.Sprintf("; %d %s", p.n, p.what)
		}
	}
	_, err := fmt.Fprintln(t.out.errw, text)
	return err
}

// metered counts what is read of a file, once however often it is read again.
type metered struct {
	io.ReadSeeker
	n   *atomic.Int64
	own int64
}

func (m *metered) Read(p []byte) (int, error) {
	n, err := m.ReadSeeker.Read(p)
	m.own += int64(n)
	m.n.Add(int64(n))
	return n, err
}

func (m *metered) Seek(offset int64, whence int) (int64, error) {
	pos, err := m.ReadSeeker.Seek(offset, whence)
	if err == nil && whence == io.SeekStart {
		m.n.Add(pos - m.own)
		m.own = pos
	}
	return pos, err
}

// undo takes back what was counted.
func (m *metered) undo() {
	m.n.Add(-m.own)
	m.own = 0
}
