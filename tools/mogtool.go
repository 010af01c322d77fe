// Package tools is mogtool, the command line of a cluster for people and
// scripts. It speaks to trackers and storage daemons as any client does.
//
// Data goes to standard output, words and progress to standard error. With
// --json every result is one JSON object a line. The exit code is 0 when the
// command was done, 1 when it failed and 2 when it was not understood.
package tools

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/mogile/mogile/protocol"
)

// Exit codes.
const (
	exitFailed = 1
	exitUsage  = 2
)

// Run executes mogtool with args, of which the first is the program's name, and
// returns the exit code.
func Run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	root := Command()
	if len(args) > 1 && args[1] == CompletionRequest {
		return Complete(ctx, root, args[2:], stdout)
	}
	app := &cli.App{
		Name:                  "mogtool",
		Usage:                 root.Usage,
		Flags:                 root.Flags,
		Commands:              root.Subcommands,
		Action:                root.Action,
		OnUsageError:          root.OnUsageError,
		CustomAppHelpTemplate: appHelp(root.Description),
		EnableBashCompletion:  true,
		HideVersion:           true,
		Reader:                stdin,
		Writer:                stdout,
		ErrWriter:             stderr,
		ExitErrHandler:        func(*cli.Context, error) {}, // below
	}
	err := app.RunContext(ctx, args)
	if err == nil {
		return 0
	}
	if wantsJSON(args) {
		_ = encode(stderr, errorObject(err)) // there is nowhere else to say it
	} else {
		fmt.Fprintln(stderr, "mogtool: "+err.Error())
	}
	return exitCode(err)
}

// wantsJSON is whether --json is among the arguments, or its variable set,
// however little of the rest was understood.
func wantsJSON(args []string) bool {
	want, _ := strconv.ParseBool(os.Getenv("MOGILE_JSON")) // anything else is refused elsewhere
	for _, arg := range args {
		name, value, given := strings.Cut(arg, "=")
		switch {
		case arg == "--":
			return want
		case name != "--json" && name != "-json":
		case !given:
			want = true
		default:
			want, _ = strconv.ParseBool(value)
		}
	}
	return want
}

// errorJSON is an error with --json, one line on standard error.
type errorJSON struct {
	Error string `json:"error"`
	Code  string `json:"code,omitempty"` // the tracker's
	Hint  string `json:"hint,omitempty"`
}

func errorObject(err error) errorJSON {
	e := errorJSON{Error: err.Error()}
	if f, ok := errors.AsType[*failure](err); ok {
		e.Error, e.Hint = f.err.Error(), f.hint
	}
	if refusal, ok := errors.AsType[*protocol.Error](err); ok {
		e.Code = refusal.Code
	}
	return e
}

func exitCode(err error) int {
	if e, ok := errors.AsType[cli.ExitCoder](err); ok {
		return e.ExitCode()
	}
	return exitUsage // what the command-line package itself refuses
}

// Command is mogtool as a command of another program. Its errors have the exit
// code to end with (cli.ExitCoder).
func Command() *cli.Command {
	return &cli.Command{
		Name:        "mogtool",
		Usage:       "store and fetch files, look after a cluster",
		Description: examples,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "trackers", Usage: "`ADDRESSES`: HOST:PORT,…", Value: "127.0.0.1:" + protocol.DefaultPort, EnvVars: []string{"MOGILE_TRACKERS"}},
			&cli.StringFlag{Name: "domain", Aliases: []string{"d"}, Usage: "`DOMAIN` of the keys", EnvVars: []string{"MOGILE_DOMAIN"}},
			&cli.StringFlag{Name: "zone", Usage: "\"alt\" uses the hosts' alternative addresses", EnvVars: []string{"MOGILE_ZONE"}},
			&cli.DurationFlag{Name: "timeout", Usage: "`TIME` a tracker has for one request", Value: 20 * time.Second, EnvVars: []string{"MOGILE_TIMEOUT"}},
			&cli.BoolFlag{Name: "json", Usage: "write one JSON object a line", EnvVars: []string{"MOGILE_JSON"}, DisableDefaultText: true},
		},
		Subcommands: slices.Concat(fileCommands(), adminCommands(), []*cli.Command{
			checkCommand(), fsckCommand(), drainCommand(), rebalanceCommand(), statsCommand(), consoleCommand(), benchCommand(), completionCommand(),
		}),
		Action:             unknownCommand,
		OnUsageError:       onUsageError,
		CustomHelpTemplate: groupHelp(examples),
	}
}

const examples = `mogtool --domain photos put cat.jpg cat    store a file
mogtool --domain photos get cat cat2.jpg   fetch it
mogtool --domain photos ls -l c            list keys beginning with c
mogtool check                              is everything well?
mogtool host add store1 --ip 10.0.0.1 --port 7500 --status alive
mogtool device mark store1 7 drain

export MOGILE_TRACKERS=10.0.0.1:7001,10.0.0.2:7001 MOGILE_DOMAIN=photos
                                           say these once`

// failure is an error with the exit code to end with, and perhaps a hint at
// what to do next.
type failure struct {
	err  error
	hint string
	code int
}

func (f *failure) Error() string {
	if f.hint == "" {
		return f.err.Error()
	}
	return f.err.Error() + "\n" + f.hint
}

func (f *failure) Unwrap() error { return f.err }

// ExitCode is for package cli.
func (f *failure) ExitCode() int { return f.code }

var _ cli.ExitCoder = (*failure)(nil)

// usageError is a command line that was not understood.
func usageError(c *cli.Context, format string, args ...any) error {
	return &failure{
		err:  fmt.Errorf(format, args...),
		hint: "see '" + c.Command.HelpName + " --help'",
		code: exitUsage,
	}
}

func onUsageError(c *cli.Context, err error, _ bool) error {
	return &failure{err: err, hint: "see '" + c.App.Name + " --help'", code: exitUsage}
}

// unknownCommand is what a group of commands does where none of them was named.
func unknownCommand(c *cli.Context) error {
	name := c.Args().First()
	var names []string
	for _, sub := range c.Command.Subcommands {
		names = append(names, sub.Name)
	}
	if name == "" {
		return usageError(c, "say what to do: one of %s", strings.Join(names, ", "))
	}
	return usageError(c, "there is no command %q; there are %s", name, strings.Join(names, ", "))
}

// fail gives a command's error its exit code and its hint.
func fail(err error) error {
	if err == nil {
		return nil
	}
	if _, ok := errors.AsType[*failure](err); ok {
		return err
	}
	if errors.Is(err, context.Canceled) {
		return &failure{err: errors.New("interrupted"), code: exitFailed}
	}
	return &failure{err: err, hint: hint(err), code: exitFailed}
}

// hints say what to do about refusals.
var hints = []struct {
	err  error
	hint string
}{
	{protocol.ErrUnknownOutcome, "look with 'mogtool info KEY' and, if the fid is another, store it again"},
	{protocol.ErrNoPath, "'mogtool check' shows which devices cannot be read"},
	{protocol.Err("unreg_domain"), "'mogtool domain list' shows the domains, 'mogtool domain add NAME' makes one"},
	{protocol.ErrDomainNotFound, "'mogtool domain list' shows the domains, 'mogtool domain add NAME' makes one"},
	{protocol.Err("unreg_class"), "'mogtool class list' shows the classes, 'mogtool class add DOMAIN CLASS' makes one"},
	{protocol.ErrClassNotFound, "'mogtool class list' shows the classes, 'mogtool class add DOMAIN CLASS' makes one"},
	{protocol.ErrUnknownKey, "'mogtool ls PREFIX' lists keys"},
	{protocol.ErrInvalidKey, "keys are valid UTF-8 without NUL, of at most 1,024 bytes (255 characters before the database is sealed); 'mogtool ls PREFIX' lists those that are there"},
	{protocol.ErrKeyExists, "delete that key first ('mogtool rm KEY'), or choose another"},
	{protocol.Err("no_devices"), "'mogtool check' shows why no device takes new files"},
	{protocol.ErrHostNotFound, "'mogtool host list' shows the hosts"},
	{protocol.ErrUnknownHost, "'mogtool host list' shows the hosts"},
	{protocol.ErrHostExists, "'mogtool host modify' changes it"},
	{protocol.ErrHostNotEmpty, "a host can go only when it never had a device; mark it dead instead"},
	{protocol.ErrDomainHasFiles, "'mogtool --domain NAME ls' lists them; delete or keep"},
	{protocol.Err("domain_has_classes"), "delete its classes first ('mogtool class delete DOMAIN CLASS')"},
	{protocol.ErrClassHasFiles, "move its files first ('mogtool updateclass KEY CLASS')"},
	{protocol.ErrClassExists, "'mogtool class modify' changes it"},
	{protocol.Err("device_dead"), "'mogtool drain --status' shows how far its files are copied"},
	{protocol.ErrNoDevice, "'mogtool device list --all' shows the devices"},
	{protocol.Err("host_mismatch"), "'mogtool device list --all' shows which host has it"},
	{protocol.ErrExistingDevID, "device numbers are unique in the cluster; 'mogtool device list --all' shows those in use"},
	{protocol.Err("unknown_state"), "a host is alive, readonly, down or dead"},
	{protocol.Err("bad_params"), "'mogtool COMMAND --help' says what it takes: a device's status is alive, readonly, drain, down or dead, a weight 0 or more"},
	{protocol.Err("state_too_high"), "mark it down first, then alive"},
	{protocol.Err("fsck_running"), "'mogtool fsck status' shows how far it is, 'mogtool fsck stop' stops it"},
	{protocol.Err("rebal_running"), "'mogtool rebalance status' shows how far it is, 'mogtool rebalance stop' stops it"},
	{protocol.Err("no_rebal_policy"), "'mogtool rebalance policy POLICY' sets one, 'mogtool rebalance auto' needs none"},
	{protocol.Err("scrub_running"), "'mogtool fsck scrub status' shows how far it is, 'mogtool fsck scrub stop' stops it"},
	{protocol.Err("no_scrub_days"), "'mogtool settings set scrub_days 30' has all content read in 30 days"},
	{protocol.Err("no_orders"), "Mogile's storage daemons list what they have, by order of trackers with the same cluster key: see --cluster-key-file"},
	{protocol.Err("bad_signature"), "trackers and storage daemons need the same cluster key: see --cluster-key-file"},
	{protocol.ErrUnknownCommand, "this tracker is older than the command"},
	{protocol.ErrFailure, "the tracker's log has the reason"},
}

func hint(err error) string {
	for _, h := range hints {
		if errors.Is(err, h.err) {
			return h.hint
		}
	}
	if _, ok := errors.AsType[*protocol.TrackerError](err); ok {
		return "is the tracker running there? --trackers or MOGILE_TRACKERS says which to ask"
	}
	return ""
}

// session is what a command works with.
type session struct {
	*cli.Context
	client *protocol.Client
	out    *output
	domain string
}

// ctx is the command's context.
func (s *session) ctx() context.Context { return s.Context.Context }

// need is what a command needs of its command line.
type need struct {
	min, max int  // operands; max < 0 is any number
	domain   bool // of the keys
}

// command makes a leaf of the tree: do gets the operands.
func command(name, usage, operands, description string, n need, flags []cli.Flag, do func(s *session, args []string) error) *cli.Command {
	cmd := &cli.Command{
		Name:               name,
		Usage:              usage,
		ArgsUsage:          operands,
		Description:        description,
		Flags:              flags,
		CustomHelpTemplate: leafHelp(description),
		// Flags are read by parse, so that they may follow operands, and so that
		// those of mogtool itself may follow the command.
		SkipFlagParsing: true,
		HideHelpCommand: true, // "mogtool rm help" deletes the key help
		HideHelp:        true,
	}
	cmd.Action = func(c *cli.Context) error {
		args, err := parse(c)
		if errors.Is(err, errHelp) {
			cli.HelpPrinter(c.App.Writer, cmd.CustomHelpTemplate, cmd)
			return nil
		}
		if err != nil {
			return usageError(c, "%w", err)
		}
		if len(args) < n.min {
			return usageError(c, "%s: it needs %s", name, operands)
		}
		if n.max >= 0 && len(args) > n.max {
			return usageError(c, "%s: there is no use for %q", name, args[n.max])
		}
		s := &session{Context: c, out: newOutput(c), domain: c.String("domain")}
		if n.domain && s.domain == "" {
			return &failure{err: fmt.Errorf("%s: no domain is named", name), hint: "give --domain DOMAIN or set MOGILE_DOMAIN", code: exitUsage}
		}
		if c.Duration("timeout") <= 0 {
			return usageError(c, "--timeout must be above 0")
		}
		if s.client, err = newClient(c, 0); err != nil {
			return usageError(c, "%w", err)
		}
		defer s.client.Close()
		return fail(do(s, args))
	}
	return cmd
}

// newClient makes a client of the trackers named. conns bounds its connections
// to each, 0 being the default.
func newClient(c *cli.Context, conns int) (*protocol.Client, error) {
	return protocol.NewClient(protocol.ClientOptions{
		Trackers: splitTrackers(c.String("trackers")),
		Timeout:  c.Duration("timeout"),
		MaxConns: conns,
		Zone:     c.String("zone"),
	})
}

func splitTrackers(list string) []string {
	var addrs []string
	for a := range strings.SplitSeq(list, ",") {
		if a = strings.TrimSpace(a); a != "" {
			addrs = append(addrs, a)
		}
	}
	return addrs
}

var errHelp = errors.New("help is wanted")

// parse sets the flags among the arguments and returns the operands. A flag may
// stand anywhere before "--", also one of the commands above.
func parse(c *cli.Context) ([]string, error) {
	var operands []string
	rest := c.Args().Slice()
	for len(rest) > 0 {
		arg := rest[0]
		rest = rest[1:]
		if arg == "--" {
			return append(operands, rest...), nil
		}
		if len(arg) < 2 || arg[0] != '-' {
			operands = append(operands, arg)
			continue
		}
		name, value, given := strings.Cut(strings.TrimPrefix(arg[1:], "-"), "=")
		if name == "help" || name == "h" {
			return nil, errHelp
		}
		at, flag := findFlag(c, name)
		if flag == nil {
			return nil, fmt.Errorf("there is no flag %s", arg)
		}
		if _, isBool := flag.(*cli.BoolFlag); !given && isBool {
			value = "true"
		} else if !given {
			if len(rest) == 0 {
				return nil, fmt.Errorf("flag %s needs a value", arg)
			}
			value, rest = rest[0], rest[1:]
		}
		if err := at.Set(flag.Names()[0], value); err != nil {
			if e, ok := errors.AsType[*strconv.NumError](err); ok {
				err = e.Err
			}
			return nil, fmt.Errorf("flag %s: %q is no value for it: %w", arg, value, err)
		}
	}
	return operands, nil
}

// findFlag is a flag of this command or of one above, and where it is set.
func findFlag(c *cli.Context, name string) (*cli.Context, cli.Flag) {
	for _, at := range c.Lineage() {
		if at.Command == nil {
			continue
		}
		for _, f := range at.Command.Flags {
			if slices.Contains(f.Names(), name) {
				return at, f
			}
		}
	}
	return nil, nil
}

// group makes a command that only has others below it.
func group(name, usage, description string, subs ...*cli.Command) *cli.Command {
	return &cli.Command{
		Name:               name,
		Usage:              usage,
		Description:        description,
		Subcommands:        subs,
		Action:             unknownCommand,
		OnUsageError:       onUsageError,
		CustomHelpTemplate: groupHelp(description),
		HideHelpCommand:    true,
	}
}

// Help begins with examples, as that is what people look for.
func leafHelp(examples string) string {
	return helpHead(examples) + `
USAGE:
   {{.HelpName}}{{if .VisibleFlags}} [flags]{{end}} {{.ArgsUsage}}
` + helpFlags
}

func groupHelp(examples string) string {
	return helpHead(examples) + `
USAGE:
   {{.HelpName}} [flags] COMMAND …

COMMANDS:{{range .VisibleCommands}}
   {{printf "%-14s" .Name}} {{.Usage}}{{end}}
` + helpFlags
}

func appHelp(examples string) string { return groupHelp(examples) }

func helpHead(examples string) string {
	return "{{.HelpName}} - {{.Usage}}\n\nEXAMPLES:\n   " + strings.ReplaceAll(examples, "\n", "\n   ") + "\n"
}

const helpFlags = `{{if .VisibleFlags}}
FLAGS:{{range .VisibleFlags}}
   {{.}}{{end}}
{{end}}`
