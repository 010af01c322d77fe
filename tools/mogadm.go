package tools

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/mogile/mogile/protocol"
)

// RunAdm executes the command line of MogileFS's mogadm, args[0] being the
// program's name, and returns the exit code: 0 done, 1 failed, 2 not understood.
// Forms and output are those that operators' scripts know.
func RunAdm(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	root := admCommand()
	if len(args) > 1 && args[1] == CompletionRequest {
		return Complete(ctx, root, args[2:], stdout)
	}
	app := &cli.App{
		Name:                  root.Name,
		Usage:                 root.Usage,
		Flags:                 root.Flags,
		Commands:              root.Subcommands,
		Action:                root.Action,
		OnUsageError:          root.OnUsageError,
		CustomAppHelpTemplate: root.CustomHelpTemplate,
		HideHelpCommand:       true,
		HideVersion:           true,
		Reader:                stdin,
		Writer:                stdout,
		ErrWriter:             stderr,
		ExitErrHandler:        func(*cli.Context, error) {}, // below
	}
	line, err := admLine(root, args[1:])
	if err == nil {
		err = line.configure(root, stderr)
	}
	if err == nil {
		err = app.RunContext(ctx, append([]string{root.Name}, line.args()...))
	}
	if err == nil {
		return 0
	}
	fmt.Fprintln(stderr, "mogadm: "+ownName.ReplaceAllString(err.Error(), "mogadm $1"))
	return exitCode(err)
}

// ownName finds the commands in hints that mogadm has itself.
var ownName = regexp.MustCompile(`mogtool ((?:host|device|domain|class|settings) [a-z]+|check)\b`)

func admCommand() *cli.Command {
	cmd := &cli.Command{
		Name:  "mogadm",
		Usage: "look after a cluster, in the forms of MogileFS's mogadm",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "trackers", Usage: "`ADDRESSES`: HOST:PORT,…", Value: "127.0.0.1:" + protocol.DefaultPort, EnvVars: []string{"MOGILE_TRACKERS"}},
			&cli.StringFlag{Name: "config", Aliases: []string{"conf"}, Usage: "`FILE` to read instead of ~/.mogilefs.conf, /etc/mogilefs/mogilefs.conf"},
			&cli.DurationFlag{Name: "timeout", Usage: "`TIME` a tracker has for one request", Value: 20 * time.Second, EnvVars: []string{"MOGILE_TIMEOUT"}},
			&cli.StringFlag{Name: "lib", Usage: "`DIR`; accepted, without a meaning"},
			&cli.BoolFlag{Name: "verbose", Usage: "say which trackers are asked", DisableDefaultText: true},
		},
		Subcommands:  admCommands(),
		OnUsageError: onUsageError,
	}
	admGroup(cmd, "mogadm")
	return cmd
}

// admGroup gives a command that has others below it, and those below it, the
// help that mogadm gives where none was named.
func admGroup(cmd *cli.Command, path string) {
	if len(cmd.Subcommands) == 0 {
		return
	}
	head := "Help for '" + path + "':\n\n"
	cmd.CustomHelpTemplate = head + `{{range .VisibleCommands}}   ` + path + ` {{printf "%-12s" .Name}} {{.Usage}}
{{end}}` + helpFlags
	cmd.HideHelpCommand = true
	cmd.OnUsageError = onUsageError
	cmd.Action = func(c *cli.Context) error {
		if name := c.Args().First(); name != "" {
			return unknownCommand(c)
		}
		fmt.Fprint(c.App.ErrWriter, head)
		for _, sub := range cmd.Subcommands {
			fmt.Fprintf(c.App.ErrWriter, "   %s %-12s %s\n", path, sub.Name, sub.Usage)
		}
		fmt.Fprintln(c.App.ErrWriter)
		return usageError(c, "say what to do")
	}
	for _, sub := range cmd.Subcommands {
		admGroup(sub, path+" "+sub.Name)
	}
}

// commandLine is a command line of mogadm, taken apart.
type commandLine struct {
	path     []string  // the command
	group    bool      // others are below it: which one is missing
	global   []flagArg // those of mogadm itself
	flags    []flagArg
	operands []string
}

type flagArg struct{ name, value string }

// admLine takes a command line apart as Perl's Getopt::Long does: options stand
// anywhere, behind one dash or two, with "=" or a blank before the value, in any
// case, and may be shortened as long as they stay unique.
func admLine(root *cli.Command, args []string) (*commandLine, error) {
	var line commandLine
	at := root
	for len(args) > 0 {
		arg := args[0]
		args = args[1:]
		if arg == "--" {
			line.operands = append(line.operands, args...)
			break
		}
		if len(arg) < 2 || arg[0] != '-' {
			sub := slices.IndexFunc(at.Subcommands, func(c *cli.Command) bool { return c.Name == arg })
			if sub >= 0 && len(line.operands) == 0 {
				at = at.Subcommands[sub]
				line.path = append(line.path, arg)
			} else {
				line.operands = append(line.operands, arg)
			}
			continue
		}
		name, value, given := strings.Cut(strings.TrimPrefix(arg[1:], "-"), "=")
		flag, err := admFlag(root, at, name)
		if err != nil {
			return nil, &failure{err: err, hint: "see '" + strings.Join(append([]string{"mogadm"}, line.path...), " ") + " --help'", code: exitUsage}
		}
		if _, isBool := flag.(*cli.BoolFlag); isBool && !given {
			value = "true"
		} else if !given {
			if len(args) == 0 {
				return nil, &failure{err: fmt.Errorf("option %s needs a value", arg), code: exitUsage}
			}
			value, args = args[0], args[1:]
		}
		if slices.Contains(root.Flags, flag) {
			line.global = append(line.global, flagArg{flag.Names()[0], value})
		} else {
			line.flags = append(line.flags, flagArg{flag.Names()[0], value})
		}
	}
	line.group = len(at.Subcommands) > 0
	return &line, nil
}

// admFlag is the option of mogadm or of the command at that name stands for.
// Before the command has been named it may be any command's.
func admFlag(root, at *cli.Command, name string) (cli.Flag, error) {
	known := append([]cli.Flag{&cli.BoolFlag{Name: "help", Aliases: []string{"h", "?"}}}, root.Flags...)
	var gather func(c *cli.Command)
	gather = func(c *cli.Command) {
		known = append(known, c.Flags...)
		for _, sub := range c.Subcommands {
			gather(sub)
		}
	}
	if at != root {
		known = append(known, at.Flags...)
	}
	for _, sub := range at.Subcommands {
		gather(sub)
	}
	name = strings.ToLower(name)
	var found []cli.Flag
	var names []string
	for _, f := range known {
		for _, n := range f.Names() {
			if n == name {
				return f, nil
			}
			if strings.HasPrefix(n, name) && !slices.Contains(names, n) {
				found, names = append(found, f), append(names, n)
			}
		}
	}
	found = slices.CompactFunc(found, func(a, b cli.Flag) bool { return a.Names()[0] == b.Names()[0] })
	switch {
	case name == "" || len(found) == 0:
		return nil, fmt.Errorf("there is no option --%s", name)
	case len(found) > 1:
		return nil, fmt.Errorf("option --%s may be any of --%s", name, strings.Join(names, ", --"))
	}
	return found[0], nil
}

// args is the line as mogtool's commands take it.
func (l *commandLine) args() []string {
	var args []string
	for _, f := range l.global {
		args = append(args, "--"+f.name+"="+f.value)
	}
	args = append(args, l.path...)
	if l.help() {
		return append(args, "--help")
	}
	if !l.group { // which says what is missing, and has no flags
		for _, f := range l.flags {
			args = append(args, "--"+f.name+"="+f.value)
		}
	}
	if len(l.operands) == 0 {
		return args
	}
	return append(append(args, "--"), l.operands...)
}

func (l *commandLine) help() bool {
	return slices.ContainsFunc(l.flags, func(f flagArg) bool { return f.name == "help" })
}

// option is the last value of one of mogadm's own options.
func (l *commandLine) option(name string) (string, bool) {
	for _, f := range slices.Backward(l.global) {
		if f.name == name {
			return f.value, true
		}
	}
	return "", false
}

// configure finds the trackers where the command line does not name them: in
// the environment, then in the first configuration file that does.
func (l *commandLine) configure(root *cli.Command, stderr io.Writer) error {
	if l.help() {
		return nil
	}
	trackers, from := root.Flags[0].(*cli.StringFlag).Value, "by default"
	if given, ok := l.option("trackers"); ok {
		trackers, from = given, "from the command line"
	} else if given := os.Getenv("MOGILE_TRACKERS"); given != "" {
		trackers, from = given, "from MOGILE_TRACKERS"
	} else {
		file, must := l.option("config")
		files := []string{file}
		if !must {
			files = []string{"/etc/mogilefs/mogilefs.conf"}
			if home, err := os.UserHomeDir(); err == nil {
				files = slices.Insert(files, 0, filepath.Join(home, ".mogilefs.conf"))
			}
		}
		given, file, err := trackersIn(files)
		if errors.Is(err, fs.ErrNotExist) && !must {
			err = nil
		}
		if err != nil {
			return &failure{err: fmt.Errorf("configuration: %w", err), hint: "it has lines such as \"trackers = 10.0.0.1:7001, 10.0.0.2:7001\"; --trackers needs no file", code: exitFailed}
		}
		if given != "" {
			trackers, from = given, "from "+file
		}
	}
	l.global = append(l.global, flagArg{"trackers", trackers}) // an empty variable would hide them
	if value, ok := l.option("verbose"); ok && value == "true" {
		fmt.Fprintf(stderr, "mogadm: trackers %s, %s\n", trackers, from)
	}
	return nil
}

// trackersIn is what the first of the files that names trackers says, and which
// it is; "" where none does. It is an error if none can be opened, or if one
// that can is not understood.
func trackersIn(files []string) (trackers, file string, err error) {
	var missing error
	opened := false
	for _, file := range files {
		f, err := os.Open(file)
		if errors.Is(err, fs.ErrNotExist) {
			missing = cmp.Or(missing, err)
			continue
		}
		if err != nil {
			return "", "", err
		}
		opened = true
		config, err := parseConfig(f)
		_ = f.Close() // only read
		if err != nil {
			return "", "", fmt.Errorf("%s: %w", file, err)
		}
		if config["trackers"] != "" {
			return config["trackers"], file, nil
		}
	}
	if opened {
		return "", "", nil
	}
	return "", "", missing
}

// maxConfigLine bounds a line of a configuration file.
const maxConfigLine = 64 << 10

// parseConfig reads "name = value" lines, names in any case. Empty lines, and
// what follows a "#" that begins a line, say nothing; a name given twice has its
// last value.
func parseConfig(r io.Reader) (map[string]string, error) {
	config := make(map[string]string)
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, maxConfigLine)
	for n := 1; lines.Scan(); n++ {
		text := strings.TrimSpace(lines.Text())
		if text == "" || text[0] == '#' {
			continue
		}
		name, value, ok := strings.Cut(text, "=")
		if name = strings.ToLower(strings.TrimSpace(name)); !ok || name == "" {
			return nil, fmt.Errorf("line %d: %.60q is not \"name = value\"", n, text)
		}
		config[name] = strings.TrimSpace(value)
	}
	return config, lines.Err()
}
