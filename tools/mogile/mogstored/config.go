package mogstored

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/mogile/mogile/tools/mogile/getopt"
)

// Daemon is the daemon under whose name the program runs.
type Daemon int

const (
	Mogstored  Daemon = iota // of MogileFS-Server 2.73, in Perl
	Cmogstored               // 1.2, in C
)

// String is the daemon's name.
func (d Daemon) String() string {
	if d == Cmogstored {
		return "cmogstored"
	}
	return "mogstored"
}

// Service is one docroot and the ports on which it is served. An empty address
// is not served.
type Service struct {
	Docroot                           string
	HTTPListen, MgmtListen, GetListen string
	MaxConns                          int
	NoIostat                          bool // "watch" is not answered
}

// The ports of MogileFS, and its folder.
const (
	DefaultHTTP     = "0.0.0.0:7500"
	DefaultMgmt     = "0.0.0.0:7501"
	DefaultDocroot  = "/var/mogdata"
	DefaultMaxConns = 10000
)

// Config is what a command line asks for.
type Config struct {
	Services  []Service // one, unless there are several files
	Daemonize bool
	Pidfile   string // empty for none
	// Flags are those of mogile storaged that have no counterpart in MogileFS,
	// "--durability=none", each once.
	Flags []string
	// Help and Version say that nothing is to be run.
	Help, Version bool
	// Warnings are for what has another effect than in MogileFS, or none.
	Warnings []string
}

// Surroundings are where a command line is read.
type Surroundings struct {
	Getenv   func(name string) string
	ReadFile func(name string) ([]byte, error)
}

// commandLine is a command line, taken apart.
type commandLine struct {
	environment   []Setting // from variables
	settings      []Setting // by the order in which they stand
	configs       []string
	skip, multi   bool
	help, version bool
	workers       string
}

// get is the last setting of a key.
func get(settings []Setting, key string) (Setting, bool) {
	for _, s := range slices.Backward(settings) {
		if s.Key == key {
			return s, true
		}
	}
	return Setting{}, false
}

// commandLineOptions are what a command line may have.
func commandLineOptions(d Daemon) []getopt.Option {
	all := []getopt.Option{
		{Name: "config", Takes: getopt.Value},
		{Name: "help"},
		{Name: "version"},
	}
	if d == Mogstored {
		all = append(all, getopt.Option{Name: "skipconfig", Short: 's'})
	} else {
		all = append(all, getopt.Option{Name: "multi"}, getopt.Option{Name: "worker-processes", Takes: getopt.Value})
	}
	for key, o := range options() {
		g := getopt.Option{Name: key, Takes: getopt.Value}
		switch {
		case o.fileOnly:
			continue
		case o.kind == boolean:
			g.Takes = getopt.Nothing
		}
		if key == "daemonize" {
			g.Short = 'd'
		}
		all = append(all, g)
	}
	return all
}

// parseArgs takes a command line apart, without the program's name.
func parseArgs(d Daemon, args []string) (commandLine, error) {
	given, operands, err := getopt.Parse(commandLineOptions(d), args)
	if err != nil {
		return commandLine{}, err
	}
	var c commandLine
	var errs []error
	if len(operands) > 0 {
		errs = append(errs, fmt.Errorf("unexpected argument %q: options begin with --", operands[0]))
	}
	known := options()
	for _, g := range given {
		o, isKey := known[g.Name]
		if !isKey && g.Name != "config" && g.Name != "worker-processes" {
			o.kind = boolean
		}
		if o.kind == boolean && !g.HasValue {
			g.Value = "1"
		}
		value, err := o.check(g.Value)
		if err != nil {
			errs = append(errs, fmt.Errorf("--%s %w", g.Name, err))
			continue
		}
		switch g.Name {
		case "config":
			c.configs = append(c.configs, value)
		case "skipconfig":
			c.skip = value == "true"
		case "multi":
			c.multi = value == "true"
		case "help":
			c.help = value == "true"
		case "version":
			c.version = value == "true"
		case "worker-processes":
			c.workers = value
		default:
			c.settings = append(c.settings, Setting{Key: g.Name, Value: value, From: "--" + g.Name})
		}
	}
	if err := errors.Join(errs...); err != nil {
		return commandLine{}, &getopt.Error{Text: err.Error()}
	}
	return c, nil
}

// Parse reads a command line, without the program's name, and the files that it
// names. The errors say what to do; those of the command line are [*getopt.Error].
func Parse(d Daemon, args []string, s Surroundings) (Config, error) {
	line, err := parseArgs(d, args)
	if err != nil {
		return Config{}, err
	}
	if line.help || line.version {
		return Config{Help: line.help, Version: line.version && !line.help}, nil
	}
	var c Config
	if n, err := seconds(s.Getenv("MOG_DISK_USAGE_INTERVAL")); err != nil {
		c.warn("MOG_DISK_USAGE_INTERVAL %v: it is left out", err)
	} else if n != "" {
		line.environment = append(line.environment, Setting{Key: "usage-interval", Value: n, From: "MOG_DISK_USAGE_INTERVAL"})
	}
	if s.Getenv("MOG_DEV_USAGE_VIA_DU") != "" {
		c.warn("MOG_DEV_USAGE_VIA_DU has no effect: usage is that of the file system; give each device one of its own")
	}
	if s.Getenv("MOG_IOSTAT_CMD") != "" {
		c.warn("MOG_IOSTAT_CMD has no effect: the kernel's counters are read without a program")
	}
	if d == Cmogstored {
		err = c.cmogstored(line, s)
	} else {
		err = c.mogstored(line, s)
	}
	return c, err
}

func (c *Config) warn(format string, args ...any) {
	c.Warnings = append(c.Warnings, fmt.Sprintf(format, args...))
}

// seconds checks a number of seconds, which may be empty.
func seconds(value string) (string, error) {
	if value == "" {
		return "", nil
	}
	return option{kind: duration}.check(value)
}

// mogstored takes one file, which overrides the command line.
func (c *Config) mogstored(line commandLine, s Surroundings) error {
	settings := line.environment
	if env := s.Getenv("MOGSTORED_SERVER_TYPE"); env != "" {
		value, err := options()["server"].check(env)
		if err != nil {
			return fmt.Errorf("MOGSTORED_SERVER_TYPE %w", err)
		}
		settings = append(settings, Setting{Key: "server", Value: value, From: "MOGSTORED_SERVER_TYPE"})
	}
	settings = append(settings, line.settings...)
	if len(line.configs) > 1 {
		return errors.New("--config stands there twice: mogstored reads one file")
	}
	if !line.skip {
		name, named := DefaultFile, len(line.configs) == 1
		if named {
			name = line.configs[0]
		}
		data, err := s.ReadFile(name)
		switch {
		case errors.Is(err, fs.ErrNotExist) && !named:
		case err != nil:
			return fmt.Errorf("configuration file: %w: see that it is there and can be read, or use --skipconfig", err)
		default:
			fromFile, warnings, err := ParseFile(name, data)
			if err != nil {
				return err
			}
			c.Warnings = append(c.Warnings, warnings...)
			for _, f := range fromFile {
				if l, both := get(line.settings, f.Key); both && l.Value != f.Value {
					c.warn("%s: %s = %s overrides %s=%s, as in MogileFS", f.From, f.Key, f.Value, l.From, l.Value)
				}
			}
			settings = append(settings, fromFile...)
		}
	}
	svc := service(settings)
	if svc.HTTPListen == "" {
		svc.HTTPListen = DefaultHTTP
	}
	if svc.MgmtListen == "" {
		svc.MgmtListen = DefaultMgmt
	}
	if server, ok := get(settings, "server"); ok {
		switch server.Value {
		case "none":
			svc.HTTPListen, svc.GetListen = "", ""
		case "perlbal":
		default:
			c.warn("%s: server = %[2]s: Mogile serves HTTP by itself, without %[2]s; to go on with it, say server = none and start it by its own means", server.From, server.Value)
		}
	}
	c.noServerbin(settings)
	c.Services = []Service{svc}
	c.process(settings)
	return nil
}

// cmogstored takes any number of files, which the command line overrides.
func (c *Config) cmogstored(line commandLine, s Surroundings) error {
	if line.workers != "" {
		c.warn("--worker-processes has no effect: one process uses all processors")
	}
	if len(line.configs) > 1 && !line.multi {
		return errors.New("--config stands there more than once: say --multi where several docroots are meant")
	}
	if line.multi {
		for _, key := range []string{"docroot", "httplisten", "mgmtlisten"} {
			if _, ok := get(line.settings, key); ok {
				return fmt.Errorf("--%s beside --multi: say it in each of the files", key)
			}
		}
		if len(line.configs) == 0 {
			return errors.New("--multi without --config: name the files")
		}
	}
	all := line.environment // then that of all files, then of the command line
	if len(line.configs) == 0 {
		svc, err := c.cService(line.settings)
		if err != nil {
			return err
		}
		c.Services = []Service{svc}
	}
	for _, name := range line.configs {
		data, err := s.ReadFile(name)
		if err != nil {
			return fmt.Errorf("configuration file: %w", err)
		}
		settings, warnings, err := parseLenient(name, data)
		if err != nil {
			return err
		}
		c.Warnings = append(c.Warnings, warnings...)
		for _, key := range []string{"docroot", "pidfile"} {
			before := line.settings
			if key == "pidfile" { // there is one for all
				before = append(slices.Clone(all), line.settings...)
			}
			f, inFile := get(settings, key)
			if l, both := get(before, key); inFile && both && filepath.Clean(l.Value) != filepath.Clean(f.Value) {
				return fmt.Errorf("%s: %s = %s contradicts %s=%s: remove one of them", f.From, key, f.Value, l.From, l.Value)
			}
		}
		svc, err := c.cService(slices.Concat(settings, line.settings))
		if err != nil {
			return err
		}
		c.Services = append(c.Services, svc)
		all = append(all, settings...)
	}
	all = append(all, line.settings...)
	c.noServerbin(all)
	c.process(all)
	if c.Daemonize {
		for _, p := range append(line.configs, c.Pidfile) {
			if p != "" && !filepath.IsAbs(p) {
				return fmt.Errorf("%s: with --daemonize all paths must be absolute", p)
			}
		}
		for _, svc := range c.Services {
			if !filepath.IsAbs(svc.Docroot) {
				return fmt.Errorf("docroot %s: with --daemonize all paths must be absolute", svc.Docroot)
			}
		}
	}
	return nil
}

// cService is one service of cmogstored.
func (c *Config) cService(settings []Setting) (Service, error) {
	svc := service(settings)
	if svc.HTTPListen == "" && svc.MgmtListen == "" && svc.GetListen == "" {
		svc.HTTPListen, svc.MgmtListen = DefaultHTTP, DefaultMgmt
	}
	if server, ok := get(settings, "server"); ok {
		switch server.Value {
		case "perlbal":
			c.warn("%s: server = perlbal has no effect: HTTP is served by Mogile itself", server.From)
		case "none":
			svc.HTTPListen, svc.GetListen = "", ""
			if svc.MgmtListen == "" {
				return svc, fmt.Errorf("%s: server = none leaves nothing to serve: say mgmtlisten", server.From)
			}
		default:
			return svc, fmt.Errorf("%s: server = %s is not supported: use none, and start it by its own means, or remove the line", server.From, server.Value)
		}
	}
	return svc, nil
}

// service is what settings say of one service; listeners that are not there are
// empty.
func service(settings []Setting) Service {
	value := func(key, other string) string {
		if s, ok := get(settings, key); ok {
			return s.Value
		}
		return other
	}
	maxConns, err := strconv.Atoi(value("maxconns", ""))
	if err != nil { // it is not there: others were checked
		maxConns = DefaultMaxConns
	}
	return Service{
		Docroot:    value("docroot", DefaultDocroot),
		HTTPListen: value("httplisten", ""),
		MgmtListen: value("mgmtlisten", ""),
		GetListen:  value("httpgetlisten", ""),
		MaxConns:   maxConns,
		NoIostat:   value("iostat", "true") == "false",
	}
}

func (c *Config) noServerbin(settings []Setting) {
	if bin, ok := get(settings, "serverbin"); ok {
		c.warn("%s: serverbin has no effect: HTTP is served by Mogile itself", bin.From)
	}
}

// process takes what is for the whole process.
func (c *Config) process(settings []Setting) {
	if s, ok := get(settings, "daemonize"); ok {
		c.Daemonize = s.Value == "true"
	}
	if s, ok := get(settings, "pidfile"); ok {
		c.Pidfile = s.Value
	}
	var flags []string
	for key, o := range options() {
		if s, ok := get(settings, key); ok && o.own {
			flags = append(flags, "--"+key+"="+s.Value)
		}
	}
	slices.Sort(flags)
	c.Flags = flags
}

// StoragedFlags are the flags of mogile storaged that say what the settings of a
// file say, each with where it stands. Warnings are for what has no effect.
func StoragedFlags(settings []Setting) (flags []Setting, warnings []string) {
	own := options()
	names := map[string]string{
		"docroot": "docroot", "httplisten": "http-listen", "mgmtlisten": "mgmt-listen", "httpgetlisten": "http-get-listen",
		"maxconns": "max-conns", "daemonize": "daemonize", "pidfile": "pidfile", "iostat": "iostat",
	}
	served := true
	for _, s := range settings {
		switch name, ok := names[s.Key]; {
		case ok:
			flags = append(flags, Setting{Key: name, Value: s.Value, From: s.From})
		case own[s.Key].own:
			flags = append(flags, s)
		case s.Key == "server" && s.Value == "none":
			served = false
		case s.Key == "server" && s.Value == "perlbal":
		default:
			warnings = append(warnings, fmt.Sprintf("%s: %s has no effect: HTTP is served by Mogile itself; with server = none another server may", s.From, s.Key))
		}
	}
	if !served {
		flags = slices.DeleteFunc(flags, func(f Setting) bool { return f.Key == "http-listen" || f.Key == "http-get-listen" })
		flags = append(flags, Setting{Key: "http-listen"}, Setting{Key: "http-get-listen"})
	}
	return flags, warnings
}

// Help is what --help prints.
func Help(d Daemon) string {
	config := "--config=FILE, -s, --skipconfig   " + DefaultFile + " if it is there;\n" +
		"                                    the file overrides the command line"
	if d == Cmogstored {
		config = "--config=FILE                     none by default; the command line overrides it"
	}
	return d.String() + `: Mogile's storage daemon under the name of MogileFS's

  -d, --daemonize                   go into the background, log to syslog
  --docroot=DIR                     the folder with dev1, dev2, …; default ` + DefaultDocroot + `
  --httplisten=ADDR                 reading and writing files; default ` + DefaultHTTP + `
  --mgmtlisten=ADDR                 the side channel; default ` + DefaultMgmt + `
  --maxconns=N                      connections at once; default 10000
  --pidfile=FILE
  --server=none                     the side channel and usage files only
  ` + config + `

Flags of mogile storaged beside these: --durability, --require-mount, --usage-interval,
--drain-timeout, --status-listen, --pprof, --log-level, --log-format, --cluster-key-file,
--cluster-id, --transfers-per-device, --replication-bandwidth. See mogile storaged --help.
`
}
