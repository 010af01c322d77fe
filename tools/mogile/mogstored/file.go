package mogstored

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"
)

// DefaultFile is read by mogstored where it is there and no other is named.
const DefaultFile = "/etc/mogilefs/mogstored.conf"

// Setting is one key and its value, checked and in the form that Mogile uses:
// booleans are "true" or "false", listeners "ip:port".
type Setting struct {
	Key, Value string
	From       string // "FILE:LINE" or "--key"
}

// kind is what a key's value must be.
type kind int

const (
	text kind = iota
	boolean
	number   // from 1
	address  // port, :port or ip:port
	server   // a kind of HTTP server
	duration // as 10s
)

// option is a key of the file, which is also an option of the command line.
type option struct {
	kind kind
	// own is set for what is not MogileFS's but a flag of mogile storaged.
	own bool
	// fileOnly is set for what is no option of MogileFS's command lines.
	fileOnly bool
}

// options are all keys. Config, skipconfig and the like are options only.
func options() map[string]option {
	return map[string]option{
		"daemonize":     {kind: boolean},
		"docroot":       {},
		"httplisten":    {kind: address},
		"mgmtlisten":    {kind: address},
		"httpgetlisten": {kind: address, fileOnly: true},
		"maxconns":      {kind: number},
		"server":        {kind: server},
		"serverbin":     {},
		"pidfile":       {},
		"iostat":        {kind: boolean, fileOnly: true},

		"durability":     {own: true},
		"require-mount":  {kind: boolean, own: true},
		"usage-interval": {kind: duration, own: true},
		"drain-timeout":  {kind: duration, own: true},
		"status-listen":  {kind: address, own: true},
		"pprof":          {kind: boolean, own: true},
		"log-level":      {own: true},
		"log-format":     {own: true},

		"cluster-key-file": {own: true},
		"cluster-id":       {own: true},

		"transfers-per-device":  {kind: number, own: true},
		"replication-bandwidth": {own: true},
	}
}

// keyList names the keys, for people.
func keyList() string { return strings.Join(slices.Sorted(maps.Keys(options())), ", ") }

// check brings a value in the form that Setting has. The error says what would
// do.
func (o option) check(value string) (string, error) {
	if value == "" {
		return "", errors.New("has no value")
	}
	switch o.kind {
	case boolean:
		switch strings.ToLower(value) {
		case "1", "true", "yes", "on":
			return "true", nil
		case "0", "false", "no", "off":
			return "false", nil
		}
		return "", fmt.Errorf("%q: use 1 or 0", value)
	case number:
		if n, err := strconv.ParseInt(value, 10, 32); err != nil || n < 1 {
			return "", fmt.Errorf("%q: use a number from 1", value)
		}
	case address:
		return checkAddress(value)
	case duration:
		d, err := time.ParseDuration(value)
		if seconds, e := strconv.ParseUint(value, 10, 31); e == nil {
			d, err = time.Duration(seconds)*time.Second, nil
		}
		if err != nil || d <= 0 {
			return "", fmt.Errorf("%q: use seconds, or a time such as 10s or 2m", value)
		}
		return d.String(), nil
	case server:
		switch value {
		case "perlbal", "lighttpd", "apache", "nginx", "none":
		default:
			return "", fmt.Errorf("%q: use perlbal, which is served by Mogile itself, or none", value)
		}
	}
	return value, nil
}

// checkAddress completes "port" and ":port" with 0.0.0.0.
func checkAddress(s string) (string, error) {
	addr := s
	if !strings.Contains(s, ":") {
		addr = ":" + s
	}
	host, port, err := net.SplitHostPort(addr)
	if err == nil {
		_, err = strconv.ParseUint(port, 10, 16)
	}
	if err != nil || host != "" && net.ParseIP(host) == nil {
		return "", fmt.Errorf("%q: use port, :port or ip:port, for example 0.0.0.0:7500", s)
	}
	if host == "" {
		host = "0.0.0.0"
	}
	return net.JoinHostPort(host, port), nil
}

// line is a line of a file that says something.
type line struct {
	key, value string
	ok         bool // there was a "="
	from       string
}

// scan reads the lines of a file: "key = value", blank ones, and comments from
// "#" on, wherever it stands.
func scan(name string, data []byte) []line {
	var lines []line
	n := 0
	for s := range strings.Lines(string(data)) {
		n++
		s, _, _ = strings.Cut(s, "#")
		if s = strings.TrimSpace(s); s == "" {
			continue
		}
		l := line{from: fmt.Sprintf("%s:%d", name, n)}
		l.key, l.value, l.ok = strings.Cut(s, "=")
		l.key, l.value = strings.TrimSpace(l.key), strings.TrimSpace(l.value)
		lines = append(lines, l)
	}
	return lines
}

// ParseFile reads a mogstored.conf as mogstored does: whatever it does not
// understand is an error that names the line and the remedy, all of them are
// reported. Of a key that stands there twice the last counts, and is the only
// one returned. Warnings are for what is understood and has no effect.
func ParseFile(name string, data []byte) (settings []Setting, warnings []string, err error) {
	known := options()
	last := make(map[string]int)
	var errs []error
	for _, l := range scan(name, data) {
		o, ok := known[l.key]
		switch {
		case !l.ok:
			errs = append(errs, fmt.Errorf("%s: %q: a line is \"key = value\"; comments begin with \"#\"", l.from, l.key))
			continue
		case l.key == "config" || l.key == "skipconfig":
			warnings = append(warnings, fmt.Sprintf("%s: %s is for the command line, and left out here: remove the line", l.from, l.key))
			continue
		case !ok:
			errs = append(errs, fmt.Errorf("%s: unknown key %q: remove the line, or use one of %s", l.from, l.key, keyList()))
			continue
		}
		value, err := o.check(l.value)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %s %w", l.from, l.key, err))
			continue
		}
		s := Setting{Key: l.key, Value: value, From: l.from}
		if i, again := last[l.key]; again {
			settings[i] = s
			continue
		}
		last[l.key] = len(settings)
		settings = append(settings, s)
	}
	return settings, warnings, errors.Join(errs...)
}

// parseLenient reads a file as cmogstored does: lines that it does not
// understand are left out. A known key with a value that makes no sense is an
// error all the same.
func parseLenient(name string, data []byte) (settings []Setting, warnings []string, err error) {
	known := options()
	var kept []string
	n := 0
	for s := range strings.Lines(string(data)) {
		n++
		if ls := scan(name, []byte(s)); len(ls) == 1 {
			if _, ok := known[ls[0].key]; !ls[0].ok || !ok {
				warnings = append(warnings, fmt.Sprintf("%s:%d: %q is not understood, and left out: remove the line, or use one of %s", name, n, ls[0].key, keyList()))
				s = "\n" // the others keep their numbers
			}
		}
		kept = append(kept, s)
	}
	settings, more, err := ParseFile(name, []byte(strings.Join(kept, "")))
	return settings, append(warnings, more...), err
}
