package tools

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"
	"github.com/schollz/progressbar/v3"
	"github.com/urfave/cli/v2"
	"golang.org/x/term"

	"github.com/mogile/mogile/protocol"
)

// output writes results, for people or for programs.
type output struct {
	w, errw  io.Writer
	json     bool
	terminal bool // w is one
	color    bool
	progress bool // errw is a terminal
}

func newOutput(c *cli.Context) *output {
	o := &output{w: c.App.Writer, errw: c.App.ErrWriter, json: c.Bool("json")}
	o.terminal = isTerminal(o.w)
	o.color = o.terminal && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
	o.progress = isTerminal(o.errw)
	return o
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// object writes v as one line of JSON.
func (o *output) object(v any) error {
	e := json.NewEncoder(o.w)
	e.SetEscapeHTML(false)
	return e.Encode(v)
}

// line writes a line. On a terminal control characters are shown, not obeyed:
// keys may hold anything.
func (o *output) line(s string) error {
	_, err := fmt.Fprintln(o.w, o.shown(s))
	return err
}

func (o *output) shown(s string) string {
	if !o.terminal || utf8.ValidString(s) && strings.IndexFunc(s, unicode.IsControl) < 0 {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); {
		r, n := utf8.DecodeRuneInString(s[i:])
		if unicode.IsControl(r) || r == utf8.RuneError && n == 1 {
			fmt.Fprintf(&b, `\x%02x`, s[i:i+n])
		} else {
			b.WriteString(s[i : i+n])
		}
		i += n
	}
	return b.String()
}

// table writes rows under a header; columns of numbers are marked with a ">" at
// the header's beginning. Off a terminal there is nothing but blanks between
// columns.
func (o *output) table(header []string, rows [][]string) error {
	if len(rows) == 0 {
		return nil
	}
	t := table.NewWriter()
	style := table.StyleLight
	if !o.terminal {
		style = table.StyleDefault
		style.Options = table.OptionsNoBordersAndSeparators
		style.Box.PaddingLeft, style.Box.PaddingRight = "", "  "
	}
	if o.color {
		style.Color.Header = text.Colors{text.Bold}
	}
	style.Format.Header = text.FormatDefault
	t.SetStyle(style)
	var configs []table.ColumnConfig
	var head table.Row
	for i, h := range header {
		if name, ok := strings.CutPrefix(h, ">"); ok {
			configs = append(configs, table.ColumnConfig{Number: i + 1, Align: text.AlignRight, AlignHeader: text.AlignRight})
			h = name
		}
		head = append(head, h)
	}
	t.SetColumnConfigs(configs)
	t.AppendHeader(head)
	for _, r := range rows {
		var row table.Row
		for _, cell := range r {
			row = append(row, o.shown(cell))
		}
		t.AppendRow(row)
	}
	var b strings.Builder
	for line := range strings.Lines(t.Render() + "\n") {
		b.WriteString(strings.TrimRight(line, " \n") + "\n")
	}
	_, err := io.WriteString(o.w, b.String())
	return err
}

// list writes values as JSON, or as rows of a table.
func list[T any](o *output, values []T, header []string, row func(T) []string) error {
	if o.json {
		for _, v := range values {
			if err := o.object(v); err != nil {
				return err
			}
		}
		return nil
	}
	rows := make([][]string, len(values))
	for i, v := range values {
		rows[i] = row(v)
	}
	return o.table(header, rows)
}

// done is what administrative commands say: the fields of the reply in JSON,
// nothing to people.
func (o *output) done(reply protocol.Args) error {
	if !o.json {
		return nil
	}
	return o.args(reply)
}

// note tells people something beside the result, on standard error.
func (o *output) note(format string, args ...any) error {
	_, err := fmt.Fprintf(o.errw, "note: "+format+"\n", args...)
	return err
}

// args writes fields: an object, or "name value" lines.
func (o *output) args(fields protocol.Args) error {
	if o.json {
		m := make(map[string]string, len(fields))
		for _, f := range fields {
			m[f.Name] = f.Value
		}
		return o.object(m)
	}
	rows := make([][]string, len(fields))
	for i, f := range fields {
		rows[i] = []string{f.Name + ":", f.Value}
	}
	return o.pairs(rows)
}

// pairs writes "name: value" lines with the values in one column.
func (o *output) pairs(rows [][]string) error {
	width := 0
	for _, r := range rows {
		width = max(width, len(r[0]))
	}
	for _, r := range rows {
		if err := o.line(strings.TrimRight(fmt.Sprintf("%-*s  %s", width, r[0], r[1]), " ")); err != nil {
			return err
		}
	}
	return nil
}

// quiet is how long something may take before its progress is shown.
const quiet = 2 * time.Second

// progress is shown on standard error, if that is a terminal.
type progress struct {
	n   int64
	bar *progressbar.ProgressBar // nil where nothing is shown
}

func (o *output) newProgress(what string, total int64, bytes bool) *progress {
	if !o.progress {
		return &progress{}
	}
	return &progress{bar: progressbar.NewOptions64(total,
		progressbar.OptionSetWriter(&late{o.errw, time.Now()}),
		progressbar.OptionSetDescription(what),
		progressbar.OptionShowBytes(bytes),
		progressbar.OptionShowCount(),
		progressbar.OptionThrottle(100*time.Millisecond),
		progressbar.OptionClearOnFinish(),
	)}
}

// late shows nothing at first.
type late struct {
	w     io.Writer
	since time.Time
}

func (l *late) Write(p []byte) (int, error) {
	if time.Since(l.since) < quiet {
		return len(p), nil
	}
	return l.w.Write(p)
}

func (p *progress) set(n int64) {
	p.n = n
	if p.bar != nil {
		_ = p.bar.Set64(n) // only a display
	}
}

func (p *progress) end() {
	if p.bar != nil {
		_ = p.bar.Clear() // only a display
	}
}

// counted is a reader whose progress is shown.
type counted struct {
	io.Reader
	p *progress
}

func (c *counted) Read(b []byte) (int, error) {
	n, err := c.Reader.Read(b)
	c.p.set(c.p.n + int64(n))
	return n, err
}

// countedSeeker is [counted] for what can seek.
type countedSeeker struct {
	counted
	s io.Seeker
}

func (c *countedSeeker) Seek(offset int64, whence int) (int64, error) {
	pos, err := c.s.Seek(offset, whence)
	if err == nil {
		c.p.n = pos
	}
	return pos, err
}

func size(n int64) string {
	if n < 0 {
		return ""
	}
	f := float64(n)
	for _, unit := range []string{"B", "KiB", "MiB", "GiB", "TiB"} {
		if f < 1024 {
			if unit == "B" {
				return fmt.Sprintf("%d B", n)
			}
			return fmt.Sprintf("%.1f %s", f, unit)
		}
		f /= 1024
	}
	return fmt.Sprintf("%.1f PiB", f)
}
