package e2e

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/mogile/mogile/protocol"
)

// TestClientsOfShards plays all clients of MogileFS where the default class, and
// that of three copies, are of shards: none of them notices.
func TestClientsOfShards(t *testing.T) {
	t.Parallel()
	engines(t, func(t *testing.T, engine string) {
		if engine == "postgres" {
			scenario(t)
		}
		c := StartCluster(t, Spec{DSN: mogileDSN(t, engine), Sealed: true, Key: true})
		for _, class := range []string{"default", "triple"} {
			c.Do("update_class", "domain="+domain, "class="+class, "mindevcount=2", "replpolicy=ErasureCode(2,1,min=0)")
		}
		playClients(t, c, 3)
		for _, key := range []string{"perl/large", "ruby/header", "ruby/trailer"} {
			c.inShards(key, 3)
		}
	})
}

// TestFileCommandsOnShards replays the session of all file commands, line by line,
// where the default class is of two shards and not of two copies.
func TestFileCommandsOnShards(t *testing.T) {
	t.Parallel()
	engines(t, func(t *testing.T, engine string) {
		if engine == "postgres" {
			scenario(t)
		}
		const file = "testdata/golden/files.txt"
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		steps, spec, err := parseGolden(string(text))
		if err != nil {
			t.Fatal(err)
		}
		spec.Engine, spec.Sealed, spec.Key = engine, true, true
		g := newGolden(t, file, spec)
		g.pass = []string{"ec_", "shardpath_"} // old clients pass over what they do not know
		at := func(verb string) int {
			i := slices.IndexFunc(steps, func(s goldenStep) bool { return s.verb == "C:" && strings.HasPrefix(s.arg, verb) })
			if i < 0 {
				t.Fatalf("%s has no %s", file, verb)
			}
			return i
		}
		devices := at("create_device hostname=s2&devid=2") + 2 // with the answer
		g.run(steps[:devices])
		g.Do("update_class", "domain=toast", "class=default", "mindevcount=2", "replpolicy=ErasureCode(1,1,min=0)")
		classes := at("updateclass ")
		g.run(steps[devices:classes])

		n, err := strconv.ParseUint(g.values["fid"], 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		within(t, time.Minute, "two shards and no copy", func() error {
			if copies, shards := g.lying(protocol.FID(n)); len(copies) > 0 || len(shards) != 2 {
				return fmt.Errorf("copies on %v, shards on %v", copies, shards)
			}
			return nil
		})
		for _, host := range g.Hosts {
			got, err := fetch(g.url(protocol.FID(n), host.Devices[0]))
			if err != nil || string(got) != "hello+world" {
				t.Errorf("%s serves %q, %v", host.Name, got, err)
			}
		}
		g.run(steps[classes:])
	})
}
