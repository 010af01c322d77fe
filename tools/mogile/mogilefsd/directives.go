package mogilefsd

import (
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/mogile/mogile/tools/mogile/getopt"
)

// kind is what a directive's value means.
type kind int

const (
	text     kind = iota
	list          // separated by commas
	number        // 0 or more
	positive      // 1 or more
	workers       // as number, at most maxWorkers
	seconds       // may have a fraction
	yes           // anything but "" and "0" is yes, as in Perl
	level         // of debugging, counted where the option is repeated
)

// maxWorkers is the most workers of one job.
const maxWorkers = 500

// directive is one setting of mogilefsd.
type directive struct {
	key       string // in the file; on the command line too unless option says otherwise
	option    string // on the command line; "-" where there is none
	short     byte
	takes     getopt.Takes
	negatable bool
	kind      kind
	byDefault string
	// flag of `mogile tracker` that says the same. Where it is empty, Config has
	// it, or advice says what there is instead.
	flag   string
	advice string
}

// name is the option's on the command line, empty where there is none.
func (d directive) name() string {
	switch d.option {
	case "-":
		return ""
	case "":
		return d.key
	}
	return d.option
}

// Keys and options that are looked at by name.
const (
	keyListen       = "listen"
	keyConfPort     = "conf_port"
	keyDSN          = "db_dsn"
	keyQueryJobs    = "query_jobs"
	keyListenerJobs = "listener_jobs" // query_jobs's older name
	keyUser         = "user"
	keyDebug        = "debug"
	keyJobMaster    = "job_master"
	keyPlugins      = "plugins"
	keyLocalNetwork = "local_network"

	optionConfig     = "config"
	optionSkipConfig = "skipconfig"
	optionHelp       = "help"
	optionVersion    = "version"
)

// directives are all settings, with MogileFS 2.73's names and defaults.
func directives() []directive {
	return []directive{
		{key: "daemonize", short: 'D', kind: yes, byDefault: "0", flag: "daemonize"},
		{key: keyDebug, short: 'd', kind: level, byDefault: "0", flag: "log-level"},
		{key: keyDSN, option: "dsn", takes: getopt.Value, byDefault: "DBI:mysql:mogilefs", flag: "dsn"},
		{key: "db_user", option: "dbuser", takes: getopt.Value, byDefault: "mogile", flag: "db-user"},
		{key: "db_pass", option: "dbpass", takes: getopt.Maybe, flag: "db-pass"},
		{key: keyListen, short: 'l', takes: getopt.Value, kind: list, byDefault: "0.0.0.0", flag: "listen"},
		{key: keyConfPort, option: "confport", short: 'p', takes: getopt.Value, kind: number, byDefault: "7001"},
		{key: keyQueryJobs, option: "workers", short: 'w', takes: getopt.Value, kind: workers, byDefault: "20", flag: "query-jobs"},
		{key: keyListenerJobs, option: "-", kind: workers},
		{key: "delete_jobs", option: "-", kind: workers, byDefault: "1", flag: "delete-jobs"},
		{key: "replicate_jobs", option: "-", kind: workers, byDefault: "1", flag: "replicate-jobs"},
		{key: "fsck_jobs", option: "-", kind: workers, byDefault: "1", flag: "fsck-jobs"},
		{key: "reaper_jobs", option: "-", kind: workers, byDefault: "1", flag: "reaper-jobs"},
		{key: "monitor_jobs", option: "-", kind: workers, advice: "there is always exactly one monitor"},
		{key: keyJobMaster, negatable: true, kind: yes, byDefault: "1", flag: "no-job-master"},
		{key: "min_free_space", takes: getopt.Value, kind: number, byDefault: "100", flag: "min-free-space"},
		{key: "max_disk_age", takes: getopt.Value, advice: "MogileFS did not use it either; a device whose usage is not heard of is taken out of service by the monitor"},
		{key: "max_handles", takes: getopt.Value, advice: "database connections are pooled and renewed by themselves; --db-conns of mogile tracker bounds them"},
		{key: "default_mindevcount", takes: getopt.Value, kind: positive, byDefault: "2", flag: "default-mindevcount"},
		{key: "node_timeout", takes: getopt.Value, kind: seconds, byDefault: "2", flag: "node-timeout"},
		{key: "conn_timeout", takes: getopt.Value, kind: seconds, byDefault: "2", flag: "conn-timeout"},
		{key: "conn_pool_size", takes: getopt.Value, kind: positive, byDefault: "20", flag: "conn-pool-size"},
		{key: "mogstored_stream_port", takes: getopt.Maybe, kind: number, byDefault: "7501", flag: "storage-mgmt-port"},
		{key: "pidfile", takes: getopt.Value, flag: "pidfile"},
		{key: keyPlugins, takes: getopt.Value, kind: list},
		{key: "repl_use_get_port", takes: getopt.Maybe, kind: yes, byDefault: "0", flag: "repl-use-get-port"},
		{key: "rebalance_ignore_missing", option: "-", kind: yes, advice: "a copy that is missing never hinders a move"},
		{key: keyLocalNetwork, takes: getopt.Value, flag: "local-network"},
		{key: "no_schema_check", kind: yes, byDefault: "0", flag: "no-schema-check"},
		{key: keyUser, takes: getopt.Value},

		{key: "no_http", advice: "trackers speak no HTTP; --status-listen of mogile tracker serves metrics and health"},
		{key: "workerport", takes: getopt.Value, advice: "workers are part of the tracker and need no port"},
		{key: "memcache_servers", option: "-", advice: "the memory of paths is each tracker's own: mogtool settings set path_cache_ttl SECONDS"},
		{key: "memcache_ttl", option: "-", advice: "the memory of paths is each tracker's own: mogtool settings set path_cache_ttl SECONDS"},
		{key: "memcache", option: "-", advice: "the memory of paths is each tracker's own: mogtool settings set path_cache_ttl SECONDS"},
	}
}

// Help lists the options.
func Help() string {
	var b strings.Builder
	b.WriteString("mogilefsd, MogileFS's name for a tracker: mogile tracker with mogilefsd's options, configuration\n" +
		"file (" + DefaultFile + " unless -c names one) and defaults.\n\n" +
		"EXAMPLES:\n" +
		"   mogilefsd -c /etc/mogilefs/mogilefsd.conf --daemonize\n" +
		"   mogilefsd --dsn='DBI:Pg:dbname=mogilefs;host=db' --dbuser=mogile --listen=10.0.0.1\n\n" +
		"OPTIONS (which beat the file):\n")
	line := func(name string, short byte, value, means string) {
		if short != 0 {
			name += ", -" + string(short)
		}
		fmt.Fprintf(&b, "   %-34s %s\n", "--"+name+value, wrap(means, 62, 38))
	}
	line(optionConfig, 'c', " FILE", "read FILE")
	line(optionSkipConfig, 's', "", "read no file")
	var only []string
	for _, d := range directives() {
		value, means := "", "in the file "+d.key
		switch {
		case d.name() == "":
			only = append(only, d.key)
			continue
		case d.takes == getopt.Value:
			value = " VALUE"
		case d.takes == getopt.Maybe:
			value = "=VALUE"
		}
		if d.negatable {
			means += "; --no-" + d.name() + " turns it off"
		}
		if d.byDefault != "" && d.byDefault != "0" {
			means += "; default " + d.byDefault
		}
		if d.advice != "" {
			means += "; ignored: " + d.advice
		}
		line(d.name(), d.short, value, means)
	}
	line(optionVersion, 0, "", "print the version")
	b.WriteString("\n" + wrap("Only in the file: "+strings.Join(only, ", ")+".", 100, 0) + "\n" +
		"What mogilefsd has no option for, such as the status port, is taken from the environment:\nsee mogile tracker --help.\n")
	return b.String()
}

// wrap breaks text between words into lines of columns at most, those after the
// first indented.
func wrap(text string, columns, indent int) string {
	var b strings.Builder
	at := 0
	for i, word := range strings.Fields(text) {
		switch n := utf8.RuneCountInString(word); {
		case i == 0:
			at = n
		case at+1+n > columns:
			b.WriteString("\n" + strings.Repeat(" ", indent))
			at = n
		default:
			b.WriteByte(' ')
			at += 1 + n
		}
		b.WriteString(word)
	}
	return b.String()
}
