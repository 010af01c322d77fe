package mogilefsd

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/mogile/mogile/schema"
	"github.com/mogile/mogile/tools/mogile/getopt"
)

// Config is a configuration, said in the flags of `mogile tracker`.
type Config struct {
	Flags []Flag
	// User is the directive of that name: root may only be meant, not become
	// another.
	User string
	// Warnings say what was ignored, where it stood, and what replaces it.
	Warnings []string
	// Help and Version are asked for instead.
	Help, Version bool
}

// Flag is a flag of `mogile tracker`, without dashes, and its value. No flag is
// there twice.
type Flag struct{ Name, Value string }

// Arguments are c's flags as arguments of `mogile tracker`.
func (c Config) Arguments() []string {
	args := make([]string, 0, len(c.Flags))
	for _, f := range c.Flags {
		args = append(args, "--"+f.Name+"="+f.Value)
	}
	return args
}

// Environment is what of the process a configuration depends on.
type Environment struct {
	Getenv func(name string) string
	Open   func(path string) (io.ReadCloser, error)
}

// Read is the configuration that mogilefsd has of the command line args (without
// the program's name): what it says, then what its configuration file says, then
// MogileFS's defaults. Errors of the command line are [*getopt.Error].
func Read(args []string, env Environment) (Config, error) {
	all := directives()
	options := []getopt.Option{
		{Name: optionConfig, Short: 'c', Takes: getopt.Value},
		{Name: optionSkipConfig, Short: 's'},
		{Name: optionHelp}, {Name: optionVersion},
	}
	for _, d := range all {
		if d.name() != "" {
			options = append(options, getopt.Option{Name: d.name(), Short: d.short, Takes: d.takes, Negatable: d.negatable})
		}
	}
	given, operands, err := getopt.Parse(options, args)
	if err != nil {
		return Config{}, err
	}
	path, skip := "", false
	var line []Setting
	for _, g := range given {
		switch g.Name {
		case optionConfig:
			path = g.Value
		case optionSkipConfig:
			skip = true
		case optionHelp:
			return Config{Help: true}, nil
		case optionVersion:
			return Config{Version: true}, nil
		default:
			line = append(line, fromOption(all, g))
		}
	}
	var file []Setting
	if !skip {
		if file, err = readFile(path, env); err != nil {
			return Config{}, err
		}
	}
	d := newDecision(all, line, file, env)
	d.defaults = true
	c, err := d.config()
	if len(operands) > 0 {
		c.Warnings = append(c.Warnings, fmt.Sprintf("%q on the command line is ignored: it is neither an option nor an option's value", operands))
	}
	return c, err
}

// ReadFile is what a configuration file alone says, without defaults, for
// `mogile tracker --config`.
func ReadFile(path string, env Environment) (Config, error) {
	file, err := readFile(path, env)
	if err != nil {
		return Config{}, err
	}
	return newDecision(directives(), nil, file, env).config()
}

// readFile reads the file at path, or the default one if it can be read.
func readFile(path string, env Environment) ([]Setting, error) {
	name := path
	if name == "" {
		name = DefaultFile
	}
	f, err := env.Open(name)
	if err != nil {
		if path == "" && (errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission)) {
			return nil, nil
		}
		return nil, err
	}
	defer f.Close()
	return ParseFile(name, f)
}

// fromOption is a setting from the command line.
func fromOption(all []directive, g getopt.Given) Setting {
	d := all[slices.IndexFunc(all, func(d directive) bool { return d.name() == g.Name })]
	s := Setting{Key: d.key, Value: g.Value, From: g.As}
	switch {
	case g.Negated:
		s.Value = "0"
	case g.HasValue:
	case d.kind == yes, d.kind == level:
		s.Value = "1"
	}
	return s
}

// decision is what the command line, the file and the defaults say about each
// directive.
type decision struct {
	all      []directive
	line     map[string][]Setting // by key, from the command line
	file     map[string]Setting   // by key, from the file
	env      Environment
	defaults bool // whether directives that are not given have their default
	warnings []string
	wrong    []error
}

func newDecision(all []directive, line, file []Setting, env Environment) *decision {
	d := &decision{all: all, line: make(map[string][]Setting), file: make(map[string]Setting), env: env}
	for _, s := range line {
		of := all[slices.IndexFunc(all, func(d directive) bool { return d.key == s.Key })]
		if of.kind == number && s.Value == "" { // as MogileFS had mogstored_stream_port
			d.warn(s, "is ignored: it has no value; write %s=NUMBER", s.From)
			continue
		}
		d.line[s.Key] = append(d.line[s.Key], s)
	}
	for _, s := range file {
		if !slices.ContainsFunc(all, func(d directive) bool { return d.key == s.Key }) {
			d.warn(s, "is no setting of mogilefsd, and is ignored")
			continue
		}
		d.file[s.Key] = s // the last one wins
	}
	return d
}

func (d *decision) warn(s Setting, format string, args ...any) {
	d.warnings = append(d.warnings, fmt.Sprintf("%s: %s %s", s.From, s.Key, fmt.Sprintf(format, args...)))
}

func (d *decision) refuse(s Setting, format string, args ...any) {
	setting := fmt.Sprintf("%s: %s = %q", s.From, s.Key, s.Value)
	if s.Key == keyDSN {
		setting = s.From + ": " + s.Key // there may be a password in it
	}
	err := fmt.Errorf("%s: %w", setting, fmt.Errorf(format, args...))
	if strings.HasPrefix(s.From, "-") {
		err = &getopt.Error{Text: err.Error()}
	}
	d.wrong = append(d.wrong, err)
}

// given is the setting that counts for a directive, and whether there is one.
func (d *decision) given(of directive) (Setting, bool) {
	if line := d.line[of.key]; len(line) > 0 {
		s := line[len(line)-1]
		switch of.kind {
		case list: // each adds to those before
			values := make([]string, len(line))
			for i := range line {
				values[i] = line[i].Value
			}
			s.Value = strings.Join(values, ",")
		case level:
			sum := 0
			for _, one := range line {
				n, err := strconv.Atoi(one.Value)
				if err != nil {
					return one, true // which is refused
				}
				sum += n
			}
			s.Value = strconv.Itoa(sum)
		}
		return s, true
	}
	if of.key == keyQueryJobs {
		if s, ok := d.file[keyListenerJobs]; ok {
			return s, true
		}
	}
	s, ok := d.file[of.key]
	if !ok && of.key == keyDebug && d.defaults {
		// What else the variable may hold is meant for other programs.
		if v := d.env.Getenv("DEBUG"); v != "" {
			if _, err := strconv.Atoi(v); err == nil {
				return Setting{keyDebug, v, "environment variable DEBUG"}, true
			}
		}
	}
	return s, ok
}

// config says everything in flags.
func (d *decision) config() (Config, error) {
	var c Config
	for _, of := range d.all {
		s, given := d.given(of)
		if of.key == keyListen && !given && d.isGiven(keyConfPort) {
			s, given = Setting{of.key, of.byDefault, "MogileFS's default"}, true
		}
		switch {
		case !given && !d.defaults, !given && of.byDefault == "":
			continue
		case !given:
			s = Setting{of.key, of.byDefault, "MogileFS's default"}
		}
		value, ok := d.value(of, s)
		if of.advice != "" {
			d.warn(s, "is ignored: %s", of.advice)
		}
		switch {
		case !ok:
		case of.key == keyPlugins:
			d.plugins(s)
		case of.key == keyUser:
			c.User = value
		case of.flag != "" && value != "":
			c.Flags = append(c.Flags, Flag{of.flag, value})
		}
	}
	if v := d.env.Getenv("T_TEMPFILE_TOO_OLD"); v != "" {
		s := Setting{"T_TEMPFILE_TOO_OLD", v, "environment"}
		if n, err := strconv.ParseUint(v, 10, 31); err != nil || n == 0 {
			d.refuse(s, "use a number of seconds above 0")
		} else {
			c.Flags = append(c.Flags, Flag{"tempfile-age", v + "s"})
		}
	}
	c.Warnings = d.warnings
	return c, errors.Join(d.wrong...)
}

// value is s as the flag of its directive takes it. Where it makes no sense that
// is noted, and ok is false.
func (d *decision) value(of directive, s Setting) (value string, ok bool) {
	switch of.kind {
	case number, positive, workers:
		n, err := strconv.ParseUint(s.Value, 10, 31)
		if err != nil {
			d.refuse(s, "use a whole number, 0 or above")
			return "", false
		}
		if n == 0 && (of.kind == positive || s.Key == keyQueryJobs || s.Key == keyListenerJobs) {
			d.refuse(s, "use a number above 0")
			return "", false
		}
		if of.kind == workers && n > maxWorkers {
			d.warn(s, "is %d instead of %d: more workers of one job are not started", maxWorkers, n)
			n = maxWorkers
		}
		if of.key == keyConfPort && (n == 0 || n > 65535) {
			d.refuse(s, "use a port, from 1 to 65535")
			return "", false
		}
		return strconv.FormatUint(n, 10), true
	case seconds:
		n, err := strconv.ParseFloat(s.Value, 64)
		if err != nil || !(n > 0 && n <= 1<<20) {
			d.refuse(s, "use a number of seconds above 0")
			return "", false
		}
		return time.Duration(n * float64(time.Second)).String(), true
	case yes:
		return d.truth(of, s), true
	case level:
		n, err := strconv.Atoi(s.Value)
		if err != nil {
			d.refuse(s, "use a number")
			return "", false
		}
		if n > 0 {
			return "debug", true
		}
		return "info", true
	case list:
		if of.key == keyListen {
			return d.listen(s)
		}
		return s.Value, true
	}
	if of.key == keyDSN {
		if _, err := schema.ParseDSN(s.Value, "", ""); err != nil {
			d.refuse(s, "%w", err)
			return "", false
		}
	}
	return s.Value, true
}

// zoneLocal is the plugin that prefers near devices.
const zoneLocal = "ZoneLocal"

// plugins says which are part of the tracker.
func (d *decision) plugins(s Setting) {
	for name := range strings.SplitSeq(s.Value, ",") {
		switch name = strings.TrimSpace(name); {
		case name == "":
		case name != zoneLocal:
			d.warn(s, "has %s, which is ignored: there is only %s", name, zoneLocal)
		case !d.isGiven(keyLocalNetwork):
			d.refuse(s, "set %s, without which %s does not start", keyLocalNetwork, zoneLocal)
		}
	}
}

// truth is a Perl program's.
func (d *decision) truth(of directive, s Setting) string {
	is := s.Value != "" && s.Value != "0"
	if no := strings.ToLower(s.Value); no == "no" || no == "off" || no == "false" {
		d.warn(s, "is taken as yes, as MogileFS takes every value but 0: write %s = 0 for no", s.Key)
	}
	if of.key == keyJobMaster {
		is = !is // the flag is the other way round
	}
	return strconv.FormatBool(is)
}

// isGiven tells whether the directive is set.
func (d *decision) isGiven(key string) bool {
	_, inFile := d.file[key]
	return inFile || len(d.line[key]) > 0
}

// listen is a list of addresses, each with its port.
func (d *decision) listen(s Setting) (string, bool) {
	port := "7001"
	for _, of := range d.all {
		if of.key == keyConfPort {
			if p, ok := d.given(of); ok {
				port = p.Value
			}
		}
	}
	var addrs []string
	for addr := range strings.SplitSeq(s.Value, ",") {
		addr = strings.TrimSpace(addr)
		if addr == "" {
			continue
		}
		bare := strings.TrimSuffix(strings.TrimPrefix(addr, "["), "]")
		if _, err := netip.ParseAddr(bare); err == nil || !strings.Contains(addr, ":") {
			addr = net.JoinHostPort(bare, port)
		}
		if _, _, err := net.SplitHostPort(addr); err != nil {
			d.refuse(s, "use addresses, or addresses and ports, as in 10.0.0.1 or 10.0.0.1:7001, separated by commas")
			return "", false
		}
		addrs = append(addrs, addr)
	}
	if len(addrs) == 0 {
		d.refuse(s, "use at least one address")
		return "", false
	}
	return strings.Join(addrs, ","), true
}
