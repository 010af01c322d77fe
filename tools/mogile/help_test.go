package mogile

import (
	"bytes"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/mogile/mogile/tools"
)

// TestHelpFits: what programs and commands say of themselves fits a terminal of
// 100 columns. It is not parallel: the library prints help by variables of its
// own.
func TestHelpFits(t *testing.T) {
	run := func(args ...string) string {
		var out, errs bytes.Buffer
		if code := Run(t.Context(), args, strings.NewReader(""), &out, &errs); code != ExitDone || errs.Len() > 0 {
			t.Errorf("%q: exit code %d, %q", args, code, &errs)
		}
		return out.String()
	}
	below := func(args ...string) (commands [][]string) {
		request := slices.Insert(append(slices.Clone(args), ""), 1, tools.CompletionRequest, "fish")
		for line := range strings.Lines(run(request...)) {
			if name, _, isCommand := strings.Cut(line, "\t"); isCommand && name != "help" && !strings.HasPrefix(name, "-") {
				commands = append(commands, append(slices.Clone(args), name))
			}
		}
		return commands
	}
	commands := [][]string{{"mogile"}, {"mogilefsd"}, {"mogstored"}, {"cmogstored"}, {"mogdbsetup"}, {"mogautomount"}, {"mogtool"}, {"mogadm"}}
	commands = append(append(append(commands, below("mogile")...), below("mogile", "storaged")...), below("mogtool")...)
	for _, group := range []string{"host", "device", "domain", "class", "settings", "bench", "fsck", "rebalance"} {
		commands = append(commands, below("mogtool", group)...)
	}
	if len(commands) < 60 {
		t.Errorf("only %d commands: %q", len(commands), commands)
	}
	for _, name := range commands {
		out := run(append(slices.Clone(name), "--help")...)
		for line := range strings.Lines(out) {
			line = strings.TrimSuffix(line, "\n")
			if n := utf8.RuneCountInString(line); n > 100 {
				t.Errorf("%q --help has a line of %d columns: %s", name, n, line)
			}
			if line != "" && strings.HasSuffix(line, "  ") && strings.TrimSpace(line) != "" {
				t.Errorf("%q --help has a line that says nothing: %q", name, line)
			}
		}
	}
}
