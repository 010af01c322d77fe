package tools

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jedib0t/go-pretty/v6/text"
)

var wideTable = struct {
	header []string
	rows   [][]string
}{
	[]string{"host", ">device", "status", ">?used", ">free", "answer", "?altmask"},
	[][]string{
		{"store1.storage.example.org", "dev1", "alive", "1000.0 MiB", "1000.0 MiB", "ok", "10.1.0.0/16"},
		{"store2", "dev12345", "alive", "1.0 GiB", "3.5 TiB", "dial tcp 10.0.0.1:7500: connect: connection refused", ""},
		{"貯蔵庫", "dev3", "dead", "", "", "", ""},
	},
}

// Where a terminal is narrow, du goes on to say whose the sums are.
func TestUsageFits(t *testing.T) {
	t.Parallel()
	var b bytes.Buffer
	o := &output{w: &b, terminal: true, width: 40}
	if err := o.usage([]usageSum{{Prefix: "m/", Files: 1500, Bytes: 6e6, Physical: 12e6}, {Files: 1500, Bytes: 6e6, Physical: 12e6}}); err != nil {
		t.Fatal(err)
	}
	if got := b.String(); !strings.Contains(got, "m/") || !strings.Contains(got, "total") || !strings.Contains(got, "5.7 MiB") {
		t.Errorf("on 40 columns:\n%s", got)
	}
}

// A table is never wider than the terminal, and nothing of the columns that stay
// is lost.
func TestTableFits(t *testing.T) {
	t.Parallel()
	for width := 12; width <= 160; width++ {
		var b bytes.Buffer
		o := &output{w: &b, terminal: true, width: width}
		if err := o.table(wideTable.header, wideTable.rows); err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(b.String()) {
			if n := text.StringWidth(strings.TrimRight(line, "\n")); n > width {
				t.Fatalf("a line of %d columns on a terminal of %d:\n%s", n, width, b.String())
			}
		}
		letters := func(s string) string {
			return strings.Join(strings.FieldsFunc(s, func(r rune) bool { return strings.ContainsRune(" │┌┐└┘├┤┬┴┼─\n", r) }), "")
		}
		if got := letters(b.String()); width >= 60 && (strings.Count(got, "r") < 6 || !strings.Contains(got, "dev12345")) {
			t.Errorf("at %d something is lost:\n%s", width, b.String())
		}
	}
}

func TestTableSnapshots(t *testing.T) {
	t.Parallel()
	render := func(width int, terminal bool) string {
		var b bytes.Buffer
		o := &output{w: &b, terminal: terminal, width: width}
		if err := o.table(wideTable.header, wideTable.rows[:2]); err != nil {
			t.Fatal(err)
		}
		return "\n" + b.String()
	}
	for _, c := range []struct {
		width    int
		terminal bool
		want     string
	}{
		{0, false, `
host                          device  status        used        free  answer                                               altmask
store1.storage.example.org      dev1  alive   1000.0 MiB  1000.0 MiB  ok                                                   10.1.0.0/16
store2                      dev12345  alive      1.0 GiB     3.5 TiB  dial tcp 10.0.0.1:7500: connect: connection refused
`},
		{80, true, `
┌──────────────────────┬──────────┬────────┬────────────┬──────────────────────┐
│ host                 │   device │ status │       free │ answer               │
├──────────────────────┼──────────┼────────┼────────────┼──────────────────────┤
│ store1.storage.examp │     dev1 │ alive  │ 1000.0 MiB │ ok                   │
│ le.org               │          │        │            │                      │
│ store2               │ dev12345 │ alive  │    3.5 TiB │ dial tcp             │
│                      │          │        │            │ 10.0.0.1:7500:       │
│                      │          │        │            │ connect: connection  │
│                      │          │        │            │ refused              │
└──────────────────────┴──────────┴────────┴────────────┴──────────────────────┘
`},
	} {
		if diff := cmp.Diff(c.want, render(c.width, c.terminal)); diff != "" {
			t.Errorf("width %d (-want +got):\n%s\n%s", c.width, diff, render(c.width, c.terminal))
		}
	}
}

// Columns go in their order of importance.
func TestFit(t *testing.T) {
	t.Parallel()
	cols := []column{
		{name: "a", width: 10},
		{name: "b", width: 6, right: true},
		{name: "c", width: 20},
		{name: "d", width: 5, right: true, option: true},
		{name: "e", width: 5, option: true},
	}
	for _, c := range []struct {
		width int
		want  string
	}{
		{100, "a10 b6 c20 d5 e5"},
		{46, "a10 b6 c20 d5 e5"},
		{45, "a10 b6 c20 d5"},
		{40, "a10 b6 c20"},
		{30, "a10 b6 c14"},
		{24, "a9 b6 c9"},
		{22, "a8 b6 c8"},
		{21, "a8 b6"},
		{8, "a8"},
		{3, "a8"},
	} {
		keep, widths := fit(cols, c.width, func(int) int { return 0 })
		var got []string
		for i := range cols {
			if keep[i] {
				got = append(got, fmt.Sprint(cols[i].name, widths[i]))
			}
		}
		if s := strings.Join(got, " "); s != c.want {
			t.Errorf("in %d: %s, want %s", c.width, s, c.want)
		}
	}
}
