package e2e

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestMogadm administers a running cluster as operators' scripts do, with the
// trackers in a configuration file.
func TestMogadm(t *testing.T) {
	t.Parallel()
	_, addr, _ := dev(t)
	home := t.TempDir()
	if err := os.WriteFile(filepath.Join(home, ".mogilefs.conf"), []byte("# the cluster\ntrackers = "+addr+"\n"), 0o666); err != nil {
		t.Fatal(err)
	}
	mogadm := func(line string) (string, error) {
		cmd := exec.CommandContext(t.Context(), "bash", "-c", "exec -a mogadm "+binary+" "+line)
		cmd.Env = append(os.Environ(), "HOME="+home, "MOGILE_TRACKERS=")
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	for _, c := range []struct {
		line  string
		want  string // a pattern of what is printed; "" is nothing at all
		fails bool
	}{
		{"check", `^Checking trackers\.\.\.\n  127\.0\.0\.1:\d+ \.\.\. OK\n\nChecking hosts\.\.\.\n  \[ 1\] \S+ \.\.\. OK\n(?s:.*)\n  \[ \d\] dev1 +\d+\.\d{3} +\d+\.\d{3} +\d+\.\d{3} +\d+\.\d\d% writeable +\S+\n(?s:.*)\n +total: +\d+\.\d{3} `, false},
		{"domain add photos", "", false},
		{"class add photos thumbs --mindevcount=3 '--replpolicy=MultipleHosts(3)' --hashtype=MD5", "", false},
		{"domain list", `\n photos +default +2 +MultipleHosts\(\) +NONE\n photos +thumbs +3 +MultipleHosts\(3\) +MD5\n`, false},
		{"class add photos bad '--replpolicy=Nonsense('", `^mogadm: add class "bad" to domain "photos": invalid_replpolicy`, true},
		{"class delete photos thumbs", "", false},
		{"domain delete photos", "", false},
		{"host add store9 --ip=127.0.0.9 --port=7500 --status=alive", "", false},
		{"host list", `\nstore9 \[4\]: alive\n  IP:       127\.0\.0\.9:7500\n`, false},
		{"host mark store9 down", "", false},
		{"host mark nope down", `^mogadm: mark host "nope" down: host_not_found: Host not found\n'mogadm host list' shows the hosts\n`, true},
		{"device next", `^7\n$`, false},
		{"device add store9 7 --status=down", "", false},
		{"device mark store9 7 dead", "", false},
		{"device mark store9 7 alive", `state_too_high`, true},
		{"device list --all --name=store9", `^store9 \[4\]: down\n.*\n   dev7: +dead +0\.000 `, false},
		{"host delete store9", `host_not_empty`, true},
		{"settings set skip_mkcol on", "", false},
		{"settings list", `\n +skip_mkcol = 1\n`, false},
		{"settings set schema_version 3", `not_writable`, true},
		{"slave add db2 --dsn=DBI:Pg:dbname=m --username=u --password=p", `^note: `, false},
		{"slave list", `^db2\n  DSN:      DBI:Pg:dbname=m\n  Username: u\n  Password: set\n`, false},
		{"slave delete db2", "", false},
		{"slave list", "", false},
		{"stats", `\n  Max file id: \d+\n(?s:.*)  bored_queryworkers +\d+\n`, false},
		{"stats --files --domains --replication", `\n  total +0 +0 +0\n`, false},
		{"--trackers=127.0.0.1:1 host list", `connection refused`, true},
	} {
		out, err := mogadm(c.line)
		if (err != nil) != c.fails {
			t.Errorf("mogadm %s: %v\n%s", c.line, err, out)
		}
		if c.want == "" && out != "" || !regexp.MustCompile(c.want).MatchString(out) {
			t.Errorf("mogadm %s prints, want %q:\n%s", c.line, c.want, out)
		}
	}

	// What mogtool says of settings is what trackers do.
	refused := regexp.MustCompile(`^(schema_version|network_reload_interval|drain_.*)$`)
	out, err := exec.CommandContext(t.Context(), binary, "mogtool", "--json", "--trackers", addr, "settings", "list", "--all").Output()
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(out)) {
		var x struct{ Key, About string }
		if err := json.Unmarshal([]byte(line), &x); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		if x.About == "" {
			t.Errorf("nothing is known of the setting %s", x.Key)
		}
		said, err := exec.CommandContext(t.Context(), binary, "mogtool", "--trackers", addr, "settings", "unset", x.Key).CombinedOutput()
		if (err != nil) != refused.MatchString(x.Key) {
			t.Errorf("unset %s: %v\n%s", x.Key, err, said)
		}
	}

	// Under its own name the binary completes for all of them.
	for _, c := range []struct{ program, words, want string }{
		{"mogadm", "host mark sto", "store9"},
		{"mogile", "mogtool host mark sto", "store9"},
		{"mogile", "sto", "storaged"},
		{"mogtool", "device mark store9 ''", "7\tdead"},
	} {
		cmd := exec.CommandContext(t.Context(), "bash", "-c", "exec -a "+c.program+" "+binary+" __complete fish "+c.words)
		cmd.Env = append(os.Environ(), "HOME="+home, "MOGILE_TRACKERS="+addr)
		out, err := cmd.Output()
		if err != nil || !strings.Contains(string(out), "\n"+c.want) {
			t.Errorf("%s completes %s with %q, %v; want %q", c.program, c.words, out, err, c.want)
		}
	}
}
