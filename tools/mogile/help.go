package mogile

import (
	"bytes"
	"io"
	"slices"
	"strings"
	"unicode/utf8"
)

// helpWidth is how many columns help takes at most.
const helpWidth = 100

// asksForHelp reports whether a command line only has help printed.
func asksForHelp(args []string) bool {
	return slices.Contains(args, "--help") || slices.Contains(args, "-h") || len(args) > 1 && (args[1] == "help" || args[1] == "h")
}

// foldHelp writes a help text to w, with lines of at most helpWidth columns.
func foldHelp(w io.Writer, help *bytes.Buffer) error {
	var b strings.Builder
	for line := range strings.Lines(help.String()) {
		b.WriteString(foldLine(strings.TrimSuffix(line, "\n")))
		b.WriteByte('\n')
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// foldLine breaks a line between words. What follows is indented as the second
// column is, where there is one.
func foldLine(line string) string {
	if utf8.RuneCountInString(line) <= helpWidth {
		return line
	}
	text := strings.TrimLeft(line, " ")
	indent := len(line) - len(text)
	if i := strings.LastIndex(line[indent:min(len(line), helpWidth*2/3)], "  "); i >= 0 {
		indent += i + 2
		text = line[indent:]
	}
	head, column := line[:indent], utf8.RuneCountInString(line[:indent])
	var b strings.Builder
	b.WriteString(head)
	at := column
	for i, word := range strings.Fields(text) {
		n := utf8.RuneCountInString(word)
		switch {
		case i == 0:
		case at+1+n > helpWidth:
			b.WriteString("\n" + strings.Repeat(" ", column))
			at = column
		default:
			b.WriteByte(' ')
			at++
		}
		b.WriteString(word)
		at += n
	}
	return b.String()
}
