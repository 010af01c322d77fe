package tools

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/protocol/protocoltest"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"mogtool": func() {
			ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
			code := Run(ctx, os.Args, os.Stdin, os.Stdout, os.Stderr)
			stop()
			os.Exit(code)
		},
	})
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
			env.Setenv("GORACE", "atexit_sleep_ms=0") // a second for every command otherwise
			env.Setenv("MOGILE_TRACKERS", strings.Join(c.Addrs(), ","))
			env.Setenv("TRACKER", c.Addrs()[0])
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
			// observed DEVID STATE
			"observed": func(ts *testscript.TestScript, _ bool, args []string) {
				cluster(ts).SetObserved(protocol.DevID(number(ts, args[0])), args[1])
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

func number(ts *testscript.TestScript, s string) int {
	n, err := strconv.Atoi(s)
	ts.Check(err)
	return n
}
