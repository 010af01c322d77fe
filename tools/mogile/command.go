package mogile

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	stdlog "log"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"time"

	"github.com/rs/zerolog"
	"github.com/urfave/cli/v2"

	"github.com/mogile/mogile/tools"
	"github.com/mogile/mogile/tools/mogile/mogautomount"
	"github.com/mogile/mogile/tools/mogile/mogstored"
	"github.com/mogile/mogile/tools/mogile/process"
)

// Exit codes, the same for mogile and mogtool.
const (
	ExitDone   = 0
	ExitFailed = 1
	ExitUsage  = 2
)

// Run executes one command line, args[0] being the program's name: under a name
// that begins with "mogtool", "mogadm", "mogilefsd", "mogdbsetup", "mogstored",
// "cmogstored" or "mogautomount" it is that program, otherwise mogile. It returns
// the exit code. Cancelling ctx stops what runs, politely.
func Run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	if len(args) > 0 && strings.HasPrefix(filepath.Base(args[0]), "mogtool") {
		return tools.Run(tools.WithNamespace(ctx, namespace{}), args, stdin, stdout, stderr)
	}
	if len(args) > 1 && args[1] == "mogtool" {
		return tools.Run(tools.WithNamespace(ctx, namespace{}), args[1:], stdin, stdout, stderr)
	}
	if len(args) > 0 && strings.HasPrefix(filepath.Base(args[0]), "mogadm") {
		return tools.RunAdm(ctx, args, stdin, stdout, stderr)
	}
	if len(args) > 0 && strings.HasPrefix(filepath.Base(args[0]), "mogilefsd") {
		return runMogilefsd(ctx, args, stdin, stdout, stderr)
	}
	if len(args) > 0 && strings.HasPrefix(filepath.Base(args[0]), "mogdbsetup") {
		return runMogdbsetup(ctx, args, stdin, stdout, stderr)
	}
	if len(args) > 0 && strings.HasPrefix(filepath.Base(args[0]), "mogautomount") {
		return mogautomount.Run(ctx, mogautomount.OS{}, args[1:], stdout, stderr)
	}
	for _, d := range []mogstored.Daemon{mogstored.Mogstored, mogstored.Cmogstored} {
		if len(args) > 0 && strings.HasPrefix(filepath.Base(args[0]), d.String()) {
			return runMogstored(ctx, d, args, stdin, stdout, stderr)
		}
	}
	commands := []*cli.Command{devCommand(), trackerCommand(), storagedCommand(nil), automountCommand(), migrateCommand(), keyCommand(), tools.Command()}
	if len(args) > 1 && args[1] == tools.CompletionRequest {
		return tools.Complete(ctx, &cli.Command{Name: "mogile", Subcommands: commands}, args[2:], stdout)
	}
	return runApp(ctx, &cli.App{
		Name:                 "mogile",
		Usage:                "store files on many disks, and keep the copies that each class asks for",
		Version:              Version(),
		EnableBashCompletion: true,
		Commands:             commands,
		Action: func(c *cli.Context) error {
			if c.Args().Present() {
				return usage("no command %q: see mogile help", c.Args().First())
			}
			return cli.ShowAppHelp(c)
		},
		CustomAppHelpTemplate: "EXAMPLES:\n" +
			"   mogile dev                                          a whole cluster in one process, to try things\n" +
			"   mogile migrate --dsn postgres://mogile@db/mogile    create or upgrade the schema\n" +
			"   mogile tracker --dsn postgres://mogile@db/mogile    a tracker\n" +
			"   mogile storaged --docroot /var/mogdata              a storage daemon\n" +
			"   mogile mogtool --domain test put photo.jpg photo1   everything an operator or a script does\n\n" +
			cli.AppHelpTemplate,
	}, args, stdin, stdout, stderr)
}

// runApp runs app, tells its error, and returns the exit code.
func runApp(ctx context.Context, app *cli.App, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	app.Reader, app.Writer, app.ErrWriter = stdin, stdout, stderr
	app.ExitErrHandler = func(*cli.Context, error) {}
	app.OnUsageError = usageError
	for _, c := range app.Commands {
		c.OnUsageError = usageError
	}
	var help bytes.Buffer
	if asksForHelp(args) {
		app.Writer = &help
	}
	err := app.RunContext(ctx, args)
	if help.Len() > 0 {
		err = errors.Join(err, foldHelp(stdout, &help))
	}
	if err == nil {
		return ExitDone
	}
	if e, ok := errors.AsType[cli.ExitCoder](err); ok {
		return e.ExitCode() // it has said why
	}
	if e, ok := errors.AsType[*process.ExitError](err); ok && e.Code > 0 {
		return e.Code // it has said why
	}
	fmt.Fprintf(stderr, "%s: %v\n", app.Name, err)
	if errors.As(err, new(usageErr)) {
		return ExitUsage
	}
	return ExitFailed
}

// usageErr is a command line that cannot be carried out as written.
type usageErr struct{ error }

func (e usageErr) Unwrap() error { return e.error }

func usage(format string, args ...any) error { return usageErr{fmt.Errorf(format, args...)} }

func usageError(_ *cli.Context, err error, _ bool) error { return usageErr{err} }

// noArguments refuses operands, of which the daemons have none: a forgotten
// "--" must not silently start a daemon with its defaults.
func noArguments(c *cli.Context) error {
	if c.Args().Present() {
		return usage("unexpected argument %q: see mogile help %s", c.Args().First(), c.Command.Name)
	}
	return nil
}

// Version is the release, as the module's version or the commit it was built
// from says.
func Version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	if v := info.Main.Version; v != "" && v != "(devel)" {
		return v
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" && len(s.Value) >= 12 {
			return "devel-" + s.Value[:12]
		}
	}
	return "devel"
}

// env is the environment variable that stands in for a flag.
func env(flag string) []string {
	return []string{"MOGILE_" + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))}
}

func stringFlag(name, value, usage string) *cli.StringFlag {
	return &cli.StringFlag{Name: name, Value: value, Usage: usage, EnvVars: env(name)}
}

func intFlag(name string, value int, usage string) *cli.IntFlag {
	return &cli.IntFlag{Name: name, Value: value, Usage: usage, EnvVars: env(name)}
}

func boolFlag(name, usage string) *cli.BoolFlag {
	return &cli.BoolFlag{Name: name, Usage: usage, EnvVars: env(name)}
}

func durationFlag(name string, value time.Duration, usage string) *cli.DurationFlag {
	return &cli.DurationFlag{Name: name, Value: value, Usage: usage, EnvVars: env(name)}
}

func logFlags(level string) []cli.Flag {
	return []cli.Flag{
		stringFlag("log-level", level, "least level that is logged: debug, info, warn, error"),
		stringFlag("log-format", "", "text or json; text on a terminal, else json"),
	}
}

func statusFlags() []cli.Flag {
	return []cli.Flag{
		stringFlag("status-listen", "", "`ADDR` of the HTTP status port: /healthz, /readyz, /metrics; empty: none"),
		boolFlag("pprof", "serve profiles under /debug/pprof/ on the status port"),
	}
}

// formatMogileFS is a log as mogilefsd has it on standard output.
const formatMogileFS = "mogilefs"

// logger builds the logger that c's flags ask for. Logs go to standard error,
// and to the others as JSON.
func logger(c *cli.Context, others ...io.Writer) (zerolog.Logger, error) {
	return loggerTo(c.App.ErrWriter, c, others...)
}

// loggerTo is logger with out in place of standard error.
func loggerTo(out io.Writer, c *cli.Context, others ...io.Writer) (zerolog.Logger, error) {
	level, err := zerolog.ParseLevel(c.String("log-level"))
	if err != nil || c.String("log-level") == "" {
		return zerolog.Logger{}, usage("--log-level %q: use debug, info, warn or error", c.String("log-level"))
	}
	switch format := c.String("log-format"); {
	case out == io.Discard:
	case format == "text", format == "" && isTerminal(out):
		out = zerolog.ConsoleWriter{Out: out, TimeFormat: time.TimeOnly, NoColor: os.Getenv("NO_COLOR") != "" || !isTerminal(out)}
	case format == "json", format == "":
	default:
		return zerolog.Logger{}, usage("--log-format %q: use text or json", format)
	}
	if len(others) > 0 {
		out = zerolog.MultiLevelWriter(append([]io.Writer{out}, others...)...)
	}
	log := zerolog.New(out).Level(level).With().Timestamp().Logger()
	stdlog.SetFlags(0)
	stdlog.SetOutput(libraryLog{log})
	return log, nil
}

// libraryLog takes what Go's own library says by itself, such as that a storage
// daemon answered more than it was asked, into the log.
type libraryLog struct{ log zerolog.Logger }

func (l libraryLog) Write(p []byte) (int, error) {
	l.log.Warn().Str("text", strings.TrimSpace(string(p))).Msg("the library reports")
	return len(p), nil
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}
