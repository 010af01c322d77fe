package getopt

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var options = []Option{
	{Name: "config", Short: 'c', Takes: Value},
	{Name: "confport", Short: 'p', Takes: Value},
	{Name: "daemonize", Short: 'D'},
	{Name: "debug", Short: 'd'},
	{Name: "dbpass", Takes: Maybe},
	{Name: "dbuser", Takes: Value},
	{Name: "job_master", Negatable: true},
	{Name: "no_http"},
	{Name: "node_timeout", Takes: Value},
	{Name: "listen", Short: 'l', Takes: Value},
}

func TestParse(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		args     string
		want     []Given
		operands []string
	}{
		{"--config=/etc/a", []Given{{"config", "--config", "/etc/a", true, false}}, nil},
		{"--config /etc/a", []Given{{"config", "--config", "/etc/a", true, false}}, nil},
		{"--config=", []Given{{"config", "--config", "", true, false}}, nil},
		{"--config a=b=c", []Given{{"config", "--config", "a=b=c", true, false}}, nil},
		{"-c /etc/a --daemon", []Given{{"config", "-c", "/etc/a", true, false}, {"daemonize", "--daemon", "", false, false}}, nil},
		{"-c/etc/a", []Given{{"config", "-c", "/etc/a", true, false}}, nil},
		{"-c=/etc/a", []Given{{"config", "-c", "/etc/a", true, false}}, nil},
		{"-config /etc/a", []Given{{"config", "-config", "/etc/a", true, false}}, nil},
		{"-config=/etc/a", []Given{{"config", "-config", "/etc/a", true, false}}, nil},
		{"-Ddd", []Given{{"daemonize", "-D", "", false, false}, {"debug", "-d", "", false, false}, {"debug", "-d", "", false, false}}, nil},
		{"-Dp7002", []Given{{"daemonize", "-D", "", false, false}, {"confport", "-p", "7002", true, false}}, nil},
		{"-Dp 7002", []Given{{"daemonize", "-D", "", false, false}, {"confport", "-p", "7002", true, false}}, nil},
		{"--DAEMONIZE", []Given{{"daemonize", "--DAEMONIZE", "", false, false}}, nil},
		{"--dae", []Given{{"daemonize", "--dae", "", false, false}}, nil},
		{"--no_h --node 3", []Given{{"no_http", "--no_h", "", false, false}, {"node_timeout", "--node", "3", true, false}}, nil},
		{"--job_master --nojob_master --no-job_master --no-j", []Given{
			{"job_master", "--job_master", "", false, false}, {"job_master", "--nojob_master", "", false, true},
			{"job_master", "--no-job_master", "", false, true}, {"job_master", "--no-j", "", false, true}}, nil},
		{"--dbpass --daemonize", []Given{{"dbpass", "--dbpass", "", false, false}, {"daemonize", "--daemonize", "", false, false}}, nil},
		{"--dbpass x --dbpass=-y --dbpass", []Given{{"dbpass", "--dbpass", "x", true, false}, {"dbpass", "--dbpass", "-y", true, false}, {"dbpass", "--dbpass", "", false, false}}, nil},
		{"--listen a -l b x -- -D", []Given{{"listen", "--listen", "a", true, false}, {"listen", "-l", "b", true, false}}, []string{"x", "-D"}},
		{"--node_timeout -1", []Given{{"node_timeout", "--node_timeout", "-1", true, false}}, nil},
		{"--daemonize=0", []Given{{"daemonize", "--daemonize", "0", true, false}}, nil},
		{"- x", nil, []string{"-", "x"}},
		{"", nil, nil},
	} {
		got, operands, err := Parse(options, strings.Fields(c.args))
		if err != nil {
			t.Errorf("%q: %v", c.args, err)
			continue
		}
		if diff := cmp.Diff(c.want, got) + cmp.Diff(c.operands, operands); diff != "" {
			t.Errorf("%q: -want +got\n%s", c.args, diff)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	t.Parallel()
	for args, want := range map[string]string{
		"--conf x":          "option --conf is ambiguous (config, confport)",
		"--d":               "option --d is ambiguous (daemonize, dbpass, dbuser, debug)",
		"--no":              "option --no is ambiguous (no_http, node_timeout, nojob_master)",
		"--frobnicate":      "unknown option: --frobnicate",
		"--=x":              "unknown option: --",
		"-x":                "unknown option: -x",
		"-Dx":               "unknown option: -x",
		"--config":          "option --config requires a value",
		"-c":                "option -c requires a value",
		"--nojob_master=1":  "option --nojob_master takes no value",
		"--dbpassword mind": "unknown option: --dbpassword",
	} {
		_, _, err := Parse(options, strings.Fields(args))
		if err == nil || err.Error() != want {
			t.Errorf("%q: %v, want %q", args, err, want)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("-c\x00/etc/mogilefs/mogilefsd.conf\x00--daemon")
	f.Add("-Ddp7002\x00--dbpass\x00--no-job_master\x00--\x00-x")
	f.Fuzz(func(t *testing.T, line string) {
		given, _, err := Parse(options, strings.Split(line, "\x00"))
		if err != nil {
			return
		}
		for _, g := range given {
			if g.Name == "" || !strings.HasPrefix(g.As, "-") || g.Value != "" && !g.HasValue {
				t.Errorf("%q: %+v", line, g)
			}
		}
	})
}
