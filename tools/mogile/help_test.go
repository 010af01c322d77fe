package mogile

import (
	"bytes"
	"strings"
	"testing"
	"unicode/utf8"
)

// TestHelpFits: what a program says of itself fits a terminal of 100 columns.
func TestHelpFits(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"mogile", "mogilefsd", "mogstored", "cmogstored", "mogdbsetup", "mogautomount", "mogtool", "mogadm"} {
		var out, errs bytes.Buffer
		if code := Run(t.Context(), []string{name, "--help"}, strings.NewReader(""), &out, &errs); code != ExitDone || errs.Len() > 0 {
			t.Errorf("%s --help: exit code %d, %q", name, code, &errs)
		}
		for line := range strings.Lines(out.String()) {
			line = strings.TrimSuffix(line, "\n")
			if n := utf8.RuneCountInString(line); n > 100 {
				t.Errorf("%s --help has a line of %d columns: %s", name, n, line)
			}
			if line != "" && strings.HasSuffix(line, "  ") && strings.TrimSpace(line) != "" {
				t.Errorf("%s --help has a line that says nothing: %q", name, line)
			}
		}
	}
}
