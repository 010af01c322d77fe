package mogile

import (
	"bytes"
	stdlog "log"
	"strings"
	"testing"

	"github.com/urfave/cli/v2"
)

// What Go's library prints by itself is a line of the log as any other.
func TestLibraryReportsAreLogged(t *testing.T) {
	var out bytes.Buffer
	app := &cli.App{
		Flags: logFlags("info"), ErrWriter: &out,
		Action: func(c *cli.Context) error {
			if _, err := logger(c); err != nil {
				return err
			}
			stdlog.Print("two\nlines")
			return nil
		},
	}
	before := stdlog.Writer()
	defer stdlog.SetOutput(before)
	if err := app.Run([]string{"mogile"}); err != nil {
		t.Fatal(err)
	}
	if got := out.String(); strings.Count(got, "\n") != 1 || !strings.Contains(got, `"level":"warn"`) || !strings.Contains(got, `"text":"two\nlines"`) {
		t.Errorf("the log has %q", got)
	}
}
