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
	width    int  // of the terminal; 0 is any
	color    bool
	progress bool // errw is a terminal
}

func newOutput(c *cli.Context) *output {
	o := &output{w: c.App.Writer, errw: c.App.ErrWriter, json: c.Bool("json")}
	o.terminal = isTerminal(o.w)
	if o.terminal {
		o.width = terminalWidth(o.w.(*os.File))
	}
	o.color = o.terminal && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
	o.progress = isTerminal(o.errw)
	return o
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// terminalWidth is how many columns f shows, 0 where it does not say.
func terminalWidth(f *os.File) int {
	width, _, err := term.GetSize(int(f.Fd()))
	if err != nil {
		return 0
	}
	return width
}

// object writes v as one line of JSON.
func (o *output) object(v any) error { return encode(o.w, v) }

func encode(w io.Writer, v any) error {
	e := json.NewEncoder(w)
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

// column is a column of a table. In a header its name has the marks ">" for
// numbers, which stand at the right, and "?" for what may be left out where the
// terminal is narrow.
type column struct {
	name          string
	right, option bool
	width         int // of its widest cell
}

func columns(header []string, rows [][]string) []column {
	cols := make([]column, len(header))
	for i, h := range header {
		c := &cols[i]
		c.name = strings.TrimLeft(h, ">?")
		marks := h[:len(h)-len(c.name)]
		c.right, c.option = strings.Contains(marks, ">"), strings.Contains(marks, "?")
		c.width = text.StringWidth(c.name)
		for _, r := range rows {
			c.width = max(c.width, text.StringWidth(r[i]))
		}
	}
	return cols
}

// narrowest is how far a column of words is narrowed, its cells wrapped.
const narrowest = 8

// fit makes a table as wide as a terminal: it leaves out columns that may be
// left out, the last first; then it narrows the widest columns of words; then it
// leaves out the last columns. It returns which columns stay and how wide each
// is. frame is the width of what stands around a table of n columns.
func fit(cols []column, width int, frame func(n int) int) (keep []bool, widths []int) {
	keep, widths = make([]bool, len(cols)), make([]int, len(cols))
	kept := len(cols)
	for i, c := range cols {
		keep[i], widths[i] = true, c.width
	}
	tooWide := func() bool {
		sum := frame(kept)
		for i, w := range widths {
			if keep[i] {
				sum += w
			}
		}
		return sum > width
	}
	drop := func(may func(i int) bool) {
		for i := len(cols) - 1; i > 0 && tooWide(); i-- {
			if keep[i] && may(i) {
				keep[i] = false
				kept--
			}
		}
	}
	drop(func(i int) bool { return cols[i].option })
	for tooWide() {
		widest := -1
		for i, c := range cols {
			if keep[i] && !c.right && widths[i] > narrowest && (widest < 0 || widths[i] > widths[widest]) {
				widest = i
			}
		}
		if widest < 0 {
			break
		}
		widths[widest]--
	}
	drop(func(int) bool { return true })
	return keep, widths
}

// table writes rows under a header. Off a terminal there is nothing but blanks
// between columns; on one it is as wide as that at most, and a row that has to
// be narrower goes on in a second line of its cells.
func (o *output) table(header []string, rows [][]string) error {
	if len(rows) == 0 {
		return nil
	}
	shown := make([][]string, len(rows))
	for i, r := range rows {
		for _, cell := range r {
			shown[i] = append(shown[i], o.shown(cell))
		}
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
	cols := columns(header, shown)
	configs := make([]table.ColumnConfig, len(cols))
	var head table.Row
	for i, c := range cols {
		configs[i].Number = i + 1
		if c.right {
			configs[i].Align, configs[i].AlignHeader = text.AlignRight, text.AlignRight
		}
		head = append(head, c.name)
	}
	if o.width > 0 {
		keep, widths := fit(cols, o.width, func(n int) int { return 3*n + 1 })
		for i := range cols {
			configs[i].Hidden, configs[i].WidthMax, configs[i].WidthMaxEnforcer = !keep[i], widths[i], text.WrapSoft
		}
	}
	t.SetColumnConfigs(configs)
	t.AppendHeader(head)
	for _, r := range shown {
		var row table.Row
		for _, cell := range r {
			row = append(row, cell)
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

// note tells something beside the result, on standard error.
func (o *output) note(format string, args ...any) error {
	text := fmt.Sprintf(format, args...)
	if o.json {
		return encode(o.errw, struct {
			Note string `json:"note"`
		}{text})
	}
	_, err := fmt.Fprintln(o.errw, "note: "+text)
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
