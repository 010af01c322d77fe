package mogstored

import (
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// around is where there are these files and variables only.
func around(files, vars map[string]string) Surroundings {
	return Surroundings{
		Getenv: func(name string) string { return vars[name] },
		ReadFile: func(name string) ([]byte, error) {
			text, ok := files[name]
			if !ok {
				return nil, fmt.Errorf("open %s: %w", name, fs.ErrNotExist)
			}
			return []byte(text), nil
		},
	}
}

// defaults is what no argument at all asks for.
func defaults() Service {
	return Service{Docroot: "/var/mogdata", HTTPListen: "0.0.0.0:7500", MgmtListen: "0.0.0.0:7501", MaxConns: 10000}
}

func with(change func(*Service)) []Service {
	s := defaults()
	change(&s)
	return []Service{s}
}

// shipped is the file that comes with MogileFS.
const shipped = `# Configuration for the mogstored daemon
maxconns = 10000

httplisten = 0.0.0.0:7500
mgmtlisten = 0.0.0.0:7501
docroot = /var/mogdata
`

func TestParse(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name   string
		daemon Daemon
		args   string
		files  map[string]string
		vars   map[string]string
		want   Config
		warns  []string // what is in each warning
	}{
		{name: "nothing", want: Config{Services: []Service{defaults()}}},
		{name: "the shipped file", files: map[string]string{DefaultFile: shipped}, want: Config{Services: []Service{defaults()}}},
		{
			name: "the file overrides the command line", args: "--docroot=/a --maxconns 5 -d",
			files: map[string]string{DefaultFile: "docroot=/b # not /a\n#maxconns = 7\n\n  pidfile\t=  /run/p.pid  \n"},
			want: Config{Services: with(func(s *Service) { s.Docroot, s.MaxConns = "/b", 5 }), Daemonize: true, Pidfile: "/run/p.pid",
				Warnings: nil},
			warns: []string{DefaultFile + ":1: docroot = /b overrides --docroot=/a"},
		},
		{
			name: "skipconfig", args: "-s -d --config=/none", files: map[string]string{DefaultFile: "docroot = /b"},
			want: Config{Services: []Service{defaults()}, Daemonize: true},
		},
		{
			name: "listeners", args: "--httplisten=7600 --mgmtlisten=:7601", files: map[string]string{},
			want: Config{Services: with(func(s *Service) { s.HTTPListen, s.MgmtListen = "0.0.0.0:7600", "0.0.0.0:7601" })},
		},
		{
			name: "one dash, and names cut short", args: "-httplisten 10.0.0.1:7600 --doc /c --daemon", files: map[string]string{},
			want: Config{Services: with(func(s *Service) { s.HTTPListen, s.Docroot = "10.0.0.1:7600", "/c" }), Daemonize: true},
		},
		{
			name: "the file can switch off", args: "-d", files: map[string]string{DefaultFile: "daemonize = 0\niostat = 0\nserverbin = /usr/sbin/x\nskipconfig = 1\n"},
			want:  Config{Services: with(func(s *Service) { s.NoIostat = true })},
			warns: []string{"daemonize = false overrides", "skipconfig is for the command line", "serverbin has no effect"},
		},
		{
			name: "side channel and usage only", args: "--server=none",
			want: Config{Services: with(func(s *Service) { s.HTTPListen = "" })},
		},
		{
			name: "servers of others", args: "--config /c", files: map[string]string{"/c": "server = nginx"},
			want: Config{Services: []Service{defaults()}}, warns: []string{"/c:1: server = nginx: Mogile serves HTTP by itself, without nginx"},
		},
		{
			name: "variables", vars: map[string]string{"MOGSTORED_SERVER_TYPE": "none", "MOG_DISK_USAGE_INTERVAL": "3",
				"MOG_DEV_USAGE_VIA_DU": "1", "MOG_IOSTAT_CMD": "x"},
			want:  Config{Services: with(func(s *Service) { s.HTTPListen = "" }), Flags: []string{"--usage-interval=3s"}},
			warns: []string{"MOG_DEV_USAGE_VIA_DU has no effect", "MOG_IOSTAT_CMD has no effect"},
		},
		{
			name: "the command line beats variables", args: "--server=perlbal --usage-interval=5s",
			vars: map[string]string{"MOGSTORED_SERVER_TYPE": "none", "MOG_DISK_USAGE_INTERVAL": "3"},
			want: Config{Services: []Service{defaults()}, Flags: []string{"--usage-interval=5s"}},
		},
		{
			name: "a variable that makes no sense", vars: map[string]string{"MOG_DISK_USAGE_INTERVAL": "often"},
			want: Config{Services: []Service{defaults()}}, warns: []string{"MOG_DISK_USAGE_INTERVAL \"often\""},
		},
		{
			name: "flags of our own", args: "--require-mount --durability fsync", files: map[string]string{DefaultFile: "durability = none\nstatus-listen = 7502\n"},
			want:  Config{Services: []Service{defaults()}, Flags: []string{"--durability=none", "--require-mount=true", "--status-listen=0.0.0.0:7502"}},
			warns: []string{"durability = none overrides"},
		},
		{name: "help", args: "--help --version", want: Config{Help: true}},
		{name: "version", args: "--version", want: Config{Version: true}},

		{name: "cmogstored: nothing", daemon: Cmogstored, files: map[string]string{DefaultFile: "docroot = /b"}, want: Config{Services: []Service{defaults()}}},
		{
			name: "cmogstored: the command line overrides the file", daemon: Cmogstored, args: "--config=/c --httplisten 7600 --maxconns=7",
			files: map[string]string{"/c": "httplisten = 1.2.3.4:5\nmaxconns = 8\nmgmtlisten = 7601\nwhat = this\nhello\ndocroot = /d\n"},
			want:  Config{Services: []Service{{Docroot: "/d", HTTPListen: "0.0.0.0:7600", MgmtListen: "0.0.0.0:7601", MaxConns: 7}}},
			warns: []string{"/c:4: \"what\" is not understood", "/c:5: \"hello\" is not understood"},
		},
		{
			name: "cmogstored: one listener", daemon: Cmogstored, args: "--mgmtlisten 7601",
			want: Config{Services: []Service{{Docroot: "/var/mogdata", MgmtListen: "0.0.0.0:7601", MaxConns: 10000}}},
		},
		{
			name: "cmogstored: the get port alone", daemon: Cmogstored, args: "--config /c", files: map[string]string{"/c": "httpgetlisten = 7700"},
			want: Config{Services: []Service{{Docroot: "/var/mogdata", GetListen: "0.0.0.0:7700", MaxConns: 10000}}},
		},
		{
			name: "cmogstored: servers", daemon: Cmogstored, args: "--server=perlbal --serverbin=/x",
			want: Config{Services: []Service{defaults()}}, warns: []string{"perlbal has no effect", "serverbin has no effect"},
		},
		{
			name: "cmogstored: no server", daemon: Cmogstored, args: "--server=none",
			want: Config{Services: with(func(s *Service) { s.HTTPListen = "" })},
		},
		{
			name: "cmogstored: several", daemon: Cmogstored, args: "--multi --config=/a --config=/b --worker-processes=2 -d",
			files: map[string]string{"/a": "docroot = /da\nhttplisten = 1\nmgmtlisten = 2\npidfile = /p", "/b": "docroot = /db\nhttplisten = 3\npidfile = /p\nmaxconns = 9"},
			want: Config{Services: []Service{
				{Docroot: "/da", HTTPListen: "0.0.0.0:1", MgmtListen: "0.0.0.0:2", MaxConns: 10000},
				{Docroot: "/db", HTTPListen: "0.0.0.0:3", MaxConns: 9},
			}, Daemonize: true, Pidfile: "/p"},
			warns: []string{"--worker-processes has no effect"},
		},
		{
			name: "cmogstored: the same twice", daemon: Cmogstored, args: "--config=/c --docroot=/d/ --pidfile=/p", files: map[string]string{"/c": "docroot = /d\npidfile = /p"},
			want: Config{Services: with(func(s *Service) { s.Docroot = "/d/" }), Pidfile: "/p"},
		},
	} {
		got, err := Parse(c.daemon, strings.Fields(c.args), around(c.files, c.vars))
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		warnings := got.Warnings
		got.Warnings = nil
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%s: want (-), got (+):\n%s", c.name, diff)
		}
		if len(warnings) != len(c.warns) {
			t.Errorf("%s: warnings %q, want %d", c.name, warnings, len(c.warns))
			continue
		}
		all := strings.Join(warnings, "\n")
		for _, want := range c.warns {
			if !strings.Contains(all, want) {
				t.Errorf("%s: nothing of %q in the warnings %q", c.name, want, warnings)
			}
		}
	}
}

// What cannot be carried out is told with its place, and what to do.
func TestParseErrors(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		daemon Daemon
		args   string
		file   string // of /c
		wants  []string
	}{
		{Mogstored, "--config=/c", "docroot /x\nhttplisten = 99999\nhtttplisten = 7500\nmaxconns = many\ndaemonize = maybe\nserver = thttpd\npidfile =\n",
			[]string{`/c:1: "docroot /x": a line is "key = value"`, "/c:2: httplisten \"99999\": use port", `/c:3: unknown key "htttplisten"`, "use one of cluster-id, cluster-key-file, daemonize, docroot",
				"/c:4: maxconns \"many\"", "/c:5: daemonize \"maybe\": use 1 or 0", "/c:6: server \"thttpd\"", "/c:7: pidfile has no value"}},
		{Mogstored, "--config=/none", "", []string{"/none", "--skipconfig"}},
		{Mogstored, "--config=/c --config=/c", "", []string{"twice"}},
		{Mogstored, "--bogus", "", []string{"unknown option: --bogus"}},
		{Mogstored, "--docroot", "", []string{"--docroot requires a value"}},
		{Mogstored, "--iostat=0", "", []string{"unknown option: --iostat"}},
		{Mogstored, "start", "", []string{`"start"`}},
		{Mogstored, "--m=x", "", []string{"ambiguous (maxconns, mgmtlisten)"}},
		{Mogstored, "--multi", "", []string{"unknown option: --multi"}},
		{Mogstored, "--maxconns=0 --usage-interval=-1s --httplisten=localhost:1", "", []string{"maxconns", "usage-interval", "localhost:1"}},
		{Cmogstored, "--config=/c", "maxconns = x\n", []string{"/c:1: maxconns"}},
		{Cmogstored, "--config=/c --docroot=/a", "docroot = /b\n", []string{"/c:1: docroot = /b contradicts --docroot=/a"}},
		{Cmogstored, "--config=/c --pidfile=/a", "pidfile = /b\n", []string{"/c:1: pidfile = /b contradicts --pidfile=/a"}},
		{Cmogstored, "--config=/c --config=/c", "", []string{"--multi"}},
		{Cmogstored, "--multi", "", []string{"--config"}},
		{Cmogstored, "--multi --config=/c --httplisten=1", "", []string{"--httplisten beside --multi"}},
		{Cmogstored, "-d --docroot=rel", "", []string{"docroot rel", "absolute"}},
		{Cmogstored, "-d --pidfile=rel", "", []string{"rel: ", "absolute"}},
		{Cmogstored, "--server=nginx", "", []string{"server = nginx is not supported"}},
		{Cmogstored, "--server=none --httplisten=1", "", []string{"mgmtlisten"}},
		{Cmogstored, "-s", "", []string{"unknown option: -s"}},
		{Cmogstored, "--config=/none", "", []string{"/none"}},
	} {
		_, err := Parse(c.daemon, strings.Fields(c.args), around(map[string]string{"/c": c.file}, nil))
		if err == nil {
			t.Errorf("%v %s: no error", c.daemon, c.args)
			continue
		}
		for _, want := range c.wants {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%v %s: nothing of %q in: %v", c.daemon, c.args, want, err)
			}
		}
	}
}

func TestStoragedFlags(t *testing.T) {
	t.Parallel()
	settings, warnings, err := ParseFile("f", []byte(shipped+"server = none\nhttpgetlisten = 7502\nserverbin = /x\niostat = 0\npidfile = /p\ndurability = none\n"))
	if err != nil || len(warnings) > 0 {
		t.Fatal(err, warnings)
	}
	flags, warnings := StoragedFlags(settings)
	var got []string
	for _, f := range flags {
		got = append(got, f.Key+"="+f.Value)
	}
	slices.Sort(got)
	want := []string{"docroot=/var/mogdata", "durability=none", "http-get-listen=", "http-listen=", "iostat=false", "max-conns=10000",
		"mgmt-listen=0.0.0.0:7501", "pidfile=/p"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("want (-), got (+):\n%s", diff)
	}
	if len(warnings) != 1 || !strings.Contains(warnings[0], "f:9: serverbin") {
		t.Errorf("warnings %q", warnings)
	}
}

func FuzzParseFile(f *testing.F) {
	for _, s := range []string{shipped, "a=b", "docroot = /x = y # z", "=", "#", "httplisten=:1\r\nmaxconns=5\r\n", "daemonize = on\ndaemonize = off", "usage-interval = 10", "\x00\xff = \n"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		settings, _, err := ParseFile("f", []byte(text))
		if err != nil {
			return
		}
		var b strings.Builder
		for _, s := range settings {
			if _, ok := options()[s.Key]; !ok {
				t.Errorf("key %q", s.Key)
			}
			fmt.Fprintf(&b, "%s = %s\n", s.Key, s.Value)
		}
		again, _, err := ParseFile("f", []byte(b.String()))
		if err != nil || len(again) != len(settings) {
			t.Fatalf("%q, formatted as %q: %v", text, b.String(), err)
		}
		for i := range again {
			if again[i].Key != settings[i].Key || again[i].Value != settings[i].Value {
				t.Errorf("%+v becomes %+v", settings[i], again[i])
			}
		}
	})
}

func FuzzParse(f *testing.F) {
	f.Add(true, "-d --config=/c", "docroot = /x")
	f.Add(false, "--multi --config /c --config /c", "httplisten = 7500\n")
	f.Add(true, "-s --server=none --http 7600", "")
	f.Fuzz(func(t *testing.T, perl bool, args, file string) {
		d := Cmogstored
		if perl {
			d = Mogstored
		}
		c, err := Parse(d, strings.Split(args, " "), around(map[string]string{"/c": file, DefaultFile: file}, nil))
		if err != nil || c.Help || c.Version {
			return
		}
		if len(c.Services) == 0 {
			t.Error("no service")
		}
		for _, s := range c.Services {
			if s.Docroot == "" || s.MaxConns < 1 || s.HTTPListen+s.MgmtListen+s.GetListen == "" {
				t.Errorf("service %+v", s)
			}
		}
	})
}
