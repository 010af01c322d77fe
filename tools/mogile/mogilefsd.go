package mogile

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os/signal"
	"syscall"

	"github.com/urfave/cli/v2"

	"github.com/mogile/mogile/tools/mogile/getopt"
	"github.com/mogile/mogile/tools/mogile/mogilefsd"
	"github.com/mogile/mogile/tools/mogile/process"
)

// runMogilefsd is the binary under the name mogilefsd: `mogile tracker` with
// MogileFS's command line, configuration file and defaults.
func runMogilefsd(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	const name = "mogilefsd"
	config, err := mogilefsd.Read(args[1:], environment())
	switch {
	case errors.As(err, new(*getopt.Error)):
		fmt.Fprintf(stderr, "%s: %v: see %[1]s --help\n", name, err)
		return ExitUsage
	case err != nil:
		fmt.Fprintf(stderr, "%s: %v\n", name, err)
		return ExitFailed
	case config.Help:
		fmt.Fprint(stdout, mogilefsd.Help())
		return ExitDone
	case config.Version:
		fmt.Fprintf(stdout, "mogile version %s\n", Version())
		return ExitDone
	}
	if err := process.RefuseRoot(config.User); err != nil {
		fmt.Fprintf(stderr, "%s: %v\n", name, err)
		return ExitFailed
	}
	signal.Ignore(syscall.SIGPIPE) // as MogileFS does: who reads the log may go
	line := append([]string{name, "tracker", "--log-format=" + formatMogileFS}, config.Arguments()...)
	app := &cli.App{Name: name, Commands: []*cli.Command{trackerCommand(config.Warnings...)}}
	return runApp(ctx, app, line, stdin, stdout, stderr)
}
