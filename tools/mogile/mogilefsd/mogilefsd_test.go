package mogilefsd

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/mogile/mogile/tools/mogile/getopt"
)

func TestParseFile(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, text string
		want       []Setting
	}{
		{"the sample file", "daemonize = 1\npidfile = /var/run/mogilefsd/mogilefsd.pid\nlisten = 127.0.0.1:7001\n",
			[]Setting{{"daemonize", "1", "f:1"}, {"pidfile", "/var/run/mogilefsd/mogilefsd.pid", "f:2"}, {"listen", "127.0.0.1:7001", "f:3"}}},
		{"without the equals sign", "query_jobs 10\nlisten\t0.0.0.0", []Setting{{"query_jobs", "10", "f:1"}, {"listen", "0.0.0.0", "f:2"}}},
		{"blanks after the key, none after the sign", "query_jobs   =10", []Setting{{"query_jobs", "10", "f:1"}}},
		{"blanks before and after", "  \tuser = root \t ", []Setting{{"user", "root", "f:1"}}},
		{"comments and blank lines", "# one\n\n  # two\n \t\nuser = root\n#", []Setting{{"user", "root", "f:5"}}},
		{"no comment at the end of a line", "db_pass = a # b", []Setting{{"db_pass", "a # b", "f:1"}}},
		{"signs and blanks within", "db_dsn = DBI:Pg:dbname=m;host=h\na == b\nc = = d", []Setting{{"db_dsn", "DBI:Pg:dbname=m;host=h", "f:1"}, {"a", "= b", "f:2"}, {"c", "= d", "f:3"}}},
		{"an empty value", "db_pass =\nuser = ", []Setting{{"db_pass", "", "f:1"}, {"user", "", "f:2"}}},
		{"keys", "a.b_C9 = x\n", []Setting{{"a.b_C9", "x", "f:1"}}},
		{"later duplicates stay in order", "a 1\na 2", []Setting{{"a", "1", "f:1"}, {"a", "2", "f:2"}}},
		{"made on Windows", "user = root\r\n\r\n# c\r\n", []Setting{{"user", "root", "f:1"}}},
		{"nothing", "", nil},
	} {
		got, err := ParseFile("f", strings.NewReader(c.text))
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%s: -want +got\n%s", c.name, diff)
		}
	}
}

func TestParseFileRefuses(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"user = root\nlisten=0.0.0.0":     `conf:2: Malformed config file (line 2): a blank must follow the key, as in "listen = value"`,
		"listen:7001":                     "conf:1: Malformed config file (line 1): a blank must follow the key",
		"daemonize":                       "conf:1: Malformed config file (line 1): daemonize has no value",
		"\n\n[mogile]":                    "conf:3: Malformed config file (line 3): a line begins with a key",
		"= 3":                             "conf:1: Malformed config file (line 1): a line begins with a key",
		strings.Repeat("# x\n", maxFile):  "conf: larger than",
		"db-pass = x":                     "conf:1: Malformed config file (line 1): a blank must follow the key",
		"ключ = x":                        "conf:1: Malformed config file (line 1): a line begins with a key",
		"query_jobs\u00a0= 3":             "conf:1: Malformed config file (line 1): a blank must follow the key",
		"query_jobs\x00 = 3 # not a byte": "conf:1: Malformed config file (line 1): a blank must follow the key",
	} {
		_, err := ParseFile("conf", strings.NewReader(text))
		if err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%.40q: %v, want %s", text, err, want)
		}
	}
}

// FuzzParseFile: what was read, written again, reads the same.
func FuzzParseFile(f *testing.F) {
	for _, text := range []string{
		"daemonize = 1\ndb_dsn = DBI:Pg:dbname=mogilefs;host=db\ndb_user = mogile\nlisten = 127.0.0.1:7001, 10.0.0.1\nconf_port = 7001\n",
		"# c\n\nquery_jobs 10\nplugins\t=\tZoneLocal , FilePaths\r\n",
		"db_pass =\na == b\n", "listen=0.0.0.0", "x", "= 1",
	} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		settings, err := ParseFile("f", strings.NewReader(text))
		if err != nil {
			return
		}
		var again strings.Builder
		for i, s := range settings {
			fmt.Fprintf(&again, "%s = %s\n", s.Key, s.Value)
			settings[i].From = fmt.Sprintf("f:%d", i+1)
		}
		got, err := ParseFile("f", strings.NewReader(again.String()))
		if err != nil || !slices.Equal(got, settings) {
			t.Errorf("%q: %v %q, then %q", text, err, settings, got)
		}
		// Whatever stands in a file, deciding on it does not fall over.
		_, _ = Read(nil, process(text, nil))
		_, _ = ReadFile("f", process(text, nil))
	})
}

// process is a process whose every file holds text ("" is none).
func process(text string, variables map[string]string) Environment {
	return Environment{
		Getenv: func(name string) string { return variables[name] },
		Open: func(path string) (io.ReadCloser, error) {
			if text == "" {
				return nil, &fs.PathError{Op: "open", Path: path, Err: fs.ErrNotExist}
			}
			return io.NopCloser(strings.NewReader(text)), nil
		},
	}
}

func flags(c Config) map[string]string {
	m := make(map[string]string)
	for _, f := range c.Flags {
		m[f.Name] = f.Value
	}
	return m
}

const dsn = "DBI:Pg:dbname=mogilefs;host=db"

// defaults are MogileFS 2.73's, with a database.
func defaults() map[string]string {
	return map[string]string{
		"daemonize": "false", "log-level": "info", "dsn": dsn, "db-user": "mogile", "listen": "0.0.0.0:7001",
		"query-jobs": "20", "delete-jobs": "1", "replicate-jobs": "1", "fsck-jobs": "1", "reaper-jobs": "1", "no-job-master": "false",
		"min-free-space": "100", "default-mindevcount": "2", "node-timeout": "2s", "conn-timeout": "2s", "conn-pool-size": "20",
		"storage-mgmt-port": "7501", "repl-use-get-port": "false", "no-schema-check": "false",
	}
}

func TestRead(t *testing.T) {
	t.Parallel()
	const db = "db_dsn = " + dsn + "\n"
	for _, c := range []struct {
		name, args, file string
		variables        map[string]string
		want             map[string]string // beyond the defaults
		user             string
		warnings         []string // parts of each
	}{
		{name: "defaults", file: db},
		{name: "everything in the file", file: db + "daemonize = 1\ndebug = 2\ndb_user = u\ndb_pass = p w\nlisten = 10.0.0.1, 10.0.0.2:7009\nconf_port = 7003\n" +
			"query_jobs = 30\ndelete_jobs = 2\nreplicate_jobs = 5\nfsck_jobs = 3\nreaper_jobs = 4\njob_master = 0\nmin_free_space = 2000\n" +
			"default_mindevcount = 3\nnode_timeout = 2.5\nconn_timeout = 4\nconn_pool_size = 7\nmogstored_stream_port = 7601\npidfile = /run/m.pid\n" +
			"repl_use_get_port = 1\nno_schema_check = 1\nuser = root\n",
			want: map[string]string{
				"daemonize": "true", "log-level": "debug", "db-user": "u", "db-pass": "p w", "listen": "10.0.0.1:7003,10.0.0.2:7009",
				"query-jobs": "30", "delete-jobs": "2", "replicate-jobs": "5", "fsck-jobs": "3", "reaper-jobs": "4", "no-job-master": "true",
				"min-free-space": "2000", "default-mindevcount": "3", "node-timeout": "2.5s", "conn-timeout": "4s", "conn-pool-size": "7",
				"storage-mgmt-port": "7601", "pidfile": "/run/m.pid", "repl-use-get-port": "true", "no-schema-check": "true",
			}, user: "root"},
		{name: "everything on the command line", file: "-", args: "-s -D -d -d --dsn " + dsn + " --dbuser=u --dbpass p -l 10.0.0.1 --listen=10.0.0.2:7009 -p 7003 -w 30 --no-job_master " +
			"--min_free_space=2000 --default_mindevcount 3 --node_timeout 3 --conn_timeout 4 --conn_pool_size 7 --mogstored_stream_port=7601 --pidfile /run/m.pid " +
			"--repl_use_get_port --no_schema_check --user=root",
			want: map[string]string{
				"daemonize": "true", "log-level": "debug", "db-user": "u", "db-pass": "p", "listen": "10.0.0.1:7003,10.0.0.2:7009",
				"query-jobs": "30", "no-job-master": "true", "min-free-space": "2000", "default-mindevcount": "3", "node-timeout": "3s", "conn-timeout": "4s",
				"conn-pool-size": "7", "storage-mgmt-port": "7601", "pidfile": "/run/m.pid", "repl-use-get-port": "true", "no-schema-check": "true",
			}, user: "root"},
		{name: "the command line beats the file", file: db + "query_jobs = 30\nlisten = 10.0.0.1\ndaemonize = 1\njob_master = 0\nnode_timeout = 5\nlistener_jobs = 9\ndebug = 1\n",
			args: "--workers=8 --listen 10.0.0.2 --daemonize=0 --job_master --debug=0",
			want: map[string]string{"query-jobs": "8", "listen": "10.0.0.2:7001", "node-timeout": "5s"}},
		{name: "the port of the command line is that of the file's addresses", file: db + "listen = 10.0.0.1\n", args: "-p7005", want: map[string]string{"listen": "10.0.0.1:7005"}},
		{name: "later lines win", file: db + "query_jobs = 30\nquery_jobs = 31\n", want: map[string]string{"query-jobs": "31"}},
		{name: "the older name wins", file: db + "listener_jobs = 6\nquery_jobs = 30\n", want: map[string]string{"query-jobs": "6"}},
		{name: "none", file: db + "delete_jobs = 0\nreplicate_jobs = 0\nmin_free_space = 0\nmogstored_stream_port = 0\n",
			want: map[string]string{"delete-jobs": "0", "replicate-jobs": "0", "min-free-space": "0", "storage-mgmt-port": "0"}},
		{name: "addresses", file: db + "listen = ::1, [::1], [::1]:7009, localhost,, :7008\n",
			want: map[string]string{"listen": "[::1]:7001,[::1]:7001,[::1]:7009,localhost:7001,:7008"}},
		{name: "a password that begins with a dash", file: db, args: "--dbpass=-x", want: map[string]string{"db-pass": "-x"}},
		{name: "no password", file: db + "db_pass = p\n", args: "--dbpass --debug", want: map[string]string{"log-level": "debug"}},
		{name: "DEBUG", file: db, variables: map[string]string{"DEBUG": "1"}, want: map[string]string{"log-level": "debug"}},
		{name: "DEBUG of others", file: db, variables: map[string]string{"DEBUG": "yes"}},
		{name: "the file beats DEBUG", file: db + "debug = 0\n", variables: map[string]string{"DEBUG": "1"}},
		{name: "T_TEMPFILE_TOO_OLD", file: db, variables: map[string]string{"T_TEMPFILE_TOO_OLD": "5"}, want: map[string]string{"tempfile-age": "5s"}},
		{name: "what init scripts say", file: db, args: "-c /etc/mogilefs/mogilefsd.conf --daemon", want: map[string]string{"daemonize": "true"}},
		{name: "obsolete", args: "--no_http --workerport=9000 --max_disk_age 3 --plugins A --plugins=B", file: db + "monitor_jobs = 4\nmax_handles = 100\n\nrebalance_ignore_missing = 1\nmemcache_servers = 127.0.0.1:11211\n",
			warnings: []string{"f:2: monitor_jobs is ignored: there is always exactly one", "max_disk_age", "f:3: max_handles", "plugins has A, which is ignored", "plugins has B, which is ignored", "f:5: rebalance_ignore_missing", "no_http is ignored: trackers speak no HTTP", "--workerport: workerport", "memcache_servers is ignored: the memory of paths"}},
		{name: "near devices", file: db + "plugins = ZoneLocal, FilePaths\nlocal_network = 10.0.0.0/8\n", want: map[string]string{"local-network": "10.0.0.0/8"},
			warnings: []string{"plugins has FilePaths, which is ignored: there is only ZoneLocal"}},
		{name: "unknown keys", file: db + "mog_root = /mnt\n", warnings: []string{"f:2: mog_root is no setting of mogilefsd"}},
		{name: "words for no", file: db + "daemonize = no\n", want: map[string]string{"daemonize": "true"}, warnings: []string{"daemonize is taken as yes"}},
		{name: "operands", file: db, args: "start", warnings: []string{`["start"] on the command line is ignored`}},
		{name: "the stream port as MogileFS had it", file: db + "mogstored_stream_port = 7601\n", args: "--mogstored_stream_port", warnings: []string{"write --mogstored_stream_port=NUMBER"},
			want: map[string]string{"storage-mgmt-port": "7601"}},
		{name: "too many workers", file: db + "replicate_jobs = 501\n", want: map[string]string{"replicate-jobs": "500"}, warnings: []string{"replicate_jobs is 500 instead of 501"}},
	} {
		env := process(strings.TrimPrefix(c.file, "-"), c.variables)
		open := env.Open
		env.Open = func(path string) (io.ReadCloser, error) {
			if path != DefaultFile {
				t.Errorf("%s: %s is read", c.name, path)
			}
			return open(path)
		}
		got, err := Read(strings.Fields(c.args), env)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		want := defaults()
		maps.Copy(want, c.want)
		have := flags(got)
		if diff := cmp.Diff(want, have); diff != "" {
			t.Errorf("%s: -want +got\n%s", c.name, diff)
		}
		if len(have) != len(got.Flags) {
			t.Errorf("%s: a flag is there twice: %q", c.name, got.Flags)
		}
		if got.User != c.user {
			t.Errorf("%s: user %q, want %q", c.name, got.User, c.user)
		}
		if len(got.Warnings) != len(c.warnings) {
			t.Errorf("%s: warnings %q, want %q", c.name, got.Warnings, c.warnings)
		}
		for _, want := range c.warnings {
			want = strings.Replace(want, "f:", DefaultFile+":", 1)
			if !slices.ContainsFunc(got.Warnings, func(w string) bool { return strings.Contains(w, want) }) {
				t.Errorf("%s: no warning %q in %q", c.name, want, got.Warnings)
			}
		}
	}
}

func TestReadRefuses(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		args, file, want string
		usage            bool
	}{
		{"", "db_dsn = DBI:mysql:mogilefs:host=db;password=hidden\n", DefaultFile + ":1: db_dsn: MySQL is not supported: copy the MogileFS database to PostgreSQL", false},
		{"", "daemonize = 0\n", "MogileFS's default: db_dsn: MySQL is not supported", false},
		{"--dsn=DBI:Oracle:x", "", `--dsn: db_dsn: DSN: the database driver "Oracle" is not supported`, true},
		{"", "query_jobs = five\n", DefaultFile + `:1: query_jobs = "five": use a whole number, 0 or above`, false},
		{"", "query_jobs = 0\n", DefaultFile + `:1: query_jobs = "0": use a number above 0`, false},
		{"-w -3", "", `-w: query_jobs = "-3": use a whole number, 0 or above`, true},
		{"", "node_timeout = soon\n", `node_timeout = "soon": use a number of seconds above 0`, false},
		{"", "node_timeout = NaN\n", `node_timeout = "NaN"`, false},
		{"", "conn_timeout = 1e300\n", `conn_timeout = "1e300"`, false},
		{"", "conf_port = 70000\n", `conf_port = "70000": use a port`, false},
		{"", "listen = ,\n", `listen = ",": use at least one address`, false},
		{"", "listen = a:b:c\n", `listen = "a:b:c": use addresses`, false},
		{"", "debug = loud\n", `debug = "loud": use a number`, false},
		{"", "listen=0.0.0.0\n", DefaultFile + ":1: Malformed config file (line 1)", false},
		{"--frob", "", "unknown option: --frob", true},
		{"-c", "", "option -c requires a value", true},
		{"-c /nowhere", "", "open /nowhere: file does not exist", false},
		{"--db x", "", "option --db is ambiguous (dbpass, dbuser)", true},
	} {
		file := c.file
		if file != "" && !strings.Contains(file, "db_dsn") && !strings.Contains(c.want, "MySQL") {
			file += "db_dsn = " + dsn + "\n"
		}
		_, err := Read(strings.Fields(c.args), process(file, nil))
		if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "hidden") {
			t.Errorf("%q %q: %v, want %s", c.args, file, err, c.want)
		}
		if got := errors.As(err, new(*getopt.Error)); got != c.usage {
			t.Errorf("%q %q: an error of the command line: %t, want %t", c.args, file, got, c.usage)
		}
	}
}

// TestReadFile: for mogile tracker --config only what the file says counts.
func TestReadFile(t *testing.T) {
	t.Parallel()
	got, err := ReadFile("f", process("conf_port = 7005\nreplicate_jobs = 5\nmax_disk_age = 3\nuser = root\ndaemonize = 1\n", map[string]string{"DEBUG": "1"}))
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"listen": "0.0.0.0:7005", "replicate-jobs": "5", "daemonize": "true"}
	if diff := cmp.Diff(want, flags(got)); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
	if len(got.Warnings) != 1 {
		t.Errorf("warnings %q", got.Warnings)
	}
	if _, err := ReadFile("f", process("", nil)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a file that is not there: %v", err)
	}
}

func TestArguments(t *testing.T) {
	t.Parallel()
	c := Config{Flags: []Flag{{"dsn", "host=a b"}, {"listen", "a:1,b:2"}}}
	if got, want := c.Arguments(), []string{"--dsn=host=a b", "--listen=a:1,b:2"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

// TestHelp: every option and every directive is in the help.
func TestHelp(t *testing.T) {
	t.Parallel()
	help := Help()
	for _, d := range directives() {
		if d.name() != "" && !strings.Contains(help, "--"+d.name()) {
			t.Errorf("no option %s", d.name())
		}
		if !strings.Contains(help, d.key) {
			t.Errorf("no directive %s", d.key)
		}
	}
}

// TestUnreadableDefaultFile: it is used only if it can be read.
func TestUnreadableDefaultFile(t *testing.T) {
	t.Parallel()
	env := process("", nil)
	env.Open = func(path string) (io.ReadCloser, error) {
		return nil, &fs.PathError{Op: "open", Path: path, Err: fs.ErrPermission}
	}
	args := []string{"--dsn=" + dsn}
	got, err := Read(args, env)
	if diff := cmp.Diff(defaults(), flags(got)); err != nil || diff != "" {
		t.Errorf("%v -want +got\n%s", err, diff)
	}
	if _, err := Read(append(args, "-c", DefaultFile), env); !errors.Is(err, fs.ErrPermission) {
		t.Errorf("a file that is asked for and cannot be read: %v", err)
	}
}
