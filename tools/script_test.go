package tools

import (
	"context"
	"errors"
	"io"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/protocol/protocoltest"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"mogtool": func() { program(Run) },
		"mogadm":  func() { program(RunAdm) },
	})
}

func program(run func(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	code := run(ctx, os.Args, os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

type clusterKey struct{}

// TestScripts runs the transcripts in testdata, each against a cluster of its
// own: two trackers, three hosts with a device each, domain test.
func TestScripts(t *testing.T) {
	t.Parallel()
	cluster := func(ts *testscript.TestScript) *protocoltest.Cluster {
		return ts.Value(clusterKey{}).(*protocoltest.Cluster)
	}
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Setup: func(env *testscript.Env) error {
			c := protocoltest.NewCluster(t, 2, 3)
			env.Values[clusterKey{}] = c
			env.Values[answersKey{}] = make(map[string]*protocoltest.Reply)
			env.Setenv("GORACE", "atexit_sleep_ms=0") // a second for every command otherwise
			env.Setenv("MOGILE_TRACKERS", strings.Join(c.Addrs(), ","))
			env.Setenv("TRACKER", c.Addrs()[0])
			env.Setenv("TRACKER2", c.Addrs()[1])
			for i, s := range c.Storage[1:] {
				env.Setenv("PORT"+strconv.Itoa(i+2), strconv.Itoa(s.Port()))
			}
			env.Setenv("MOGILE_DOMAIN", "test")
			env.Setenv("PORT", strconv.Itoa(c.Storage[0].Port()))
			return nil
		},
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			// stop-tracker N and stop-host N
			"stop-tracker": func(ts *testscript.TestScript, _ bool, args []string) {
				cluster(ts).Trackers[number(ts, args[0])-1].Close()
			},
			"stop-host": func(ts *testscript.TestScript, _ bool, args []string) {
				cluster(ts).Storage[number(ts, args[0])-1].Stop()
			},
			// usage COMMAND… expects exit code 2
			"usage": func(ts *testscript.TestScript, _ bool, args []string) {
				err := ts.Exec(args[0], args[1:]...)
				if e, ok := errors.AsType[*exec.ExitError](err); !ok || e.ExitCode() != exitUsage {
					ts.Fatalf("%v, want exit code %d", err, exitUsage)
				}
			},
			// answer COMMAND FIELDS has trackers answer a command with fields as
			// they are on the wire, and refuse with an argument "ERR code".
			"answer": func(ts *testscript.TestScript, _ bool, args []string) {
				answers := ts.Value(answersKey{}).(map[string]*protocoltest.Reply)
				answers[args[0]] = reply(ts, args[1])
				all := maps.Clone(answers)
				cluster(ts).Before(func(r protocol.Request) *protocoltest.Reply { return all[r.Command] })
			},
			// asked COMMAND ARGS: a tracker got such a request
			"asked": func(ts *testscript.TestScript, _ bool, args []string) {
				for _, tr := range cluster(ts).Trackers {
					for _, r := range tr.Requests() {
						if r.Command == args[0] && r.Args.String() == args[1] {
							return
						}
					}
				}
				ts.Fatalf("no tracker was asked %s %s", args[0], args[1])
			},
			// header HOST VALUE: the host's daemon names itself so in each answer
			"header": func(ts *testscript.TestScript, _ bool, args []string) {
				cluster(ts).Storage[number(ts, args[0])-1].Intercept(func(w http.ResponseWriter, _ *http.Request) bool {
					w.Header().Set("Mogile", args[1])
					return false
				})
			},
			// observed DEVID STATE
			"observed": func(ts *testscript.TestScript, _ bool, args []string) {
				cluster(ts).SetObserved(protocol.DevID(number(ts, args[0])), args[1])
			},
			// long-name DIR makes a directory with a file whose key is too long
			"long-name": func(ts *testscript.TestScript, _ bool, args []string) {
				dir := ts.MkAbs(args[0])
				for range 5 {
					dir = filepath.Join(dir, strings.Repeat("long", 55))
				}
				ts.Check(os.MkdirAll(dir, 0o777))
				ts.Check(os.WriteFile(filepath.Join(dir, "file"), nil, 0o666))
				ts.Check(os.WriteFile(filepath.Join(ts.MkAbs(args[0]), "file"), nil, 0o666))
			},
			// copy KEY DEVID
			"copy": func(ts *testscript.TestScript, _ bool, args []string) {
				cluster(ts).Copy("test", args[0], protocol.DevID(number(ts, args[1])))
			},
			// damage FID DEVID CONTENT
			"damage": func(ts *testscript.TestScript, _ bool, args []string) {
				fid, dev := protocol.FID(number(ts, args[0])), protocol.DevID(number(ts, args[1]))
				cluster(ts).Storage[dev-1].Set("/"+fid.Path(dev), []byte(args[2]))
			},
		},
	})
}

type answersKey struct{}

func reply(ts *testscript.TestScript, text string) *protocoltest.Reply {
	if code, ok := strings.CutPrefix(text, "ERR "); ok {
		return &protocoltest.Reply{Err: protocol.Err(code)}
	}
	fields := protocol.ParseArgs(text)
	return &protocoltest.Reply{Fields: fields}
}

func number(ts *testscript.TestScript, s string) int {
	n, err := strconv.Atoi(s)
	ts.Check(err)
	return n
}
