package tools

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/urfave/cli/v2"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/protocol/protocoltest"
)

// leaves are the commands of mogtool that do something, as they are written.
func leaves(c *cli.Command, path string) []string {
	var all []string
	for _, sub := range c.Subcommands {
		name := strings.TrimSpace(path + " " + sub.Name)
		if len(sub.Subcommands) == 0 {
			all = append(all, name)
		}
		all = append(all, leaves(sub, name)...)
	}
	return all
}

// With --json every command prints objects, one a line, and so do its errors.
func TestJSONEverywhere(t *testing.T) {
	cluster := protocoltest.NewCluster(t, 1, 2)
	cluster.Before(func(r protocol.Request) *protocoltest.Reply {
		switch r.Command {
		case "file_debug":
			return &protocoltest.Reply{Fields: protocol.ParseArgs("fid_fid=1&checksum=NONE")}
		case "fsck_progress":
			return &protocoltest.Reply{Fields: protocol.ParseArgs("position=5&end_fid=5&num_MISS=1")}
		case "drain_status":
			return &protocoltest.Reply{Fields: protocol.ParseArgs("devices=1&dev1_devid=1&dev1_host=store1&dev1_status=drain&dev1_draining=1")}
		case "rebalance_progress":
			return &protocoltest.Reply{Fields: protocol.ParseArgs("running=0&policy=from_hosts%3D1&queued_moves=0")}
		case "rebalance_plan":
			return &protocoltest.Reply{Fields: protocol.ParseArgs("devices=1&dev1_devid=1&dev1_host=store1&dev1_bytes=5&dev1_capacity=10&spread=0.0")}
		case "rebalance_test":
			return &protocoltest.Reply{Fields: protocol.ParseArgs("sdevs=1&ddevs=2")}
		case "fsck_getlog":
			return &protocoltest.Reply{Fields: protocol.ParseArgs("row_count=1&row_1_logid=1&row_1_utime=1&row_1_evcode=MISS&row_1_fid=1&row_1_devid=1")}
		case "fsck_start", "fsck_stop", "fsck_reset", "fsck_clearlog", "scrub_start", "drain_device",
			"rebalance_set_policy", "rebalance_start", "rebalance_stop", "rebalance_reset":
			return &protocoltest.Reply{}
		}
		return nil
	})
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("x"), 0o666); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(dir, "tree"), 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "tree", "a"), []byte("a"), 0o666); err != nil {
		t.Fatal(err)
	}
	tree := filepath.Join(dir, "tree")
	tested := make(map[string]bool)
	for _, c := range []struct {
		command string
		args    []string
		bytes   bool // prints a file
		fails   bool
		silent  bool
	}{
		{command: "check"},
		{command: "put", args: []string{file, "k"}},
		{command: "put", args: []string{"nofile"}, fails: true},
		{command: "get", args: []string{"k", filepath.Join(dir, "out")}, silent: true},
		{command: "get", args: []string{"nope"}, fails: true},
		{command: "cat", args: []string{"k"}, bytes: true},
		{command: "cat", args: []string{"nope"}, fails: true},
		{command: "ls"},
		{command: "ls", args: []string{"-l"}},
		{command: "mv", args: []string{"k", "k2"}, silent: true},
		{command: "mv", args: []string{"k", "k2"}, fails: true},
		{command: "info", args: []string{"k2"}},
		{command: "paths", args: []string{"k2"}},
		{command: "updateclass", args: []string{"single", "k2"}, silent: true},
		{command: "debug", args: []string{"k2"}},
		{command: "sync", args: []string{tree, "mogile:tree"}, silent: true},
		{command: "du"},
		{command: "touch-class", args: []string{"single", "k2"}, silent: true},
		{command: "rm", args: []string{"k2"}, silent: true},
		{command: "rm", args: []string{"k2"}, fails: true},
		{command: "host list"},
		{command: "host add", args: []string{"h", "--ip", "10.0.0.1", "--port", "7500"}},
		{command: "host add", args: []string{"h"}, fails: true},
		{command: "host mark", args: []string{"h", "alive"}},
		{command: "host modify", args: []string{"h", "--port", "7501"}},
		{command: "host delete", args: []string{"h"}},
		{command: "device list"},
		{command: "device add", args: []string{"store1", "7"}},
		{command: "device mark", args: []string{"store1", "7", "drain"}},
		{command: "device modify", args: []string{"store1", "7", "--weight", "5"}},
		{command: "device delete", fails: true},
		{command: "domain add", args: []string{"d"}},
		{command: "domain list"},
		{command: "class add", args: []string{"d", "c", "--mindevcount", "2"}},
		{command: "class modify", args: []string{"d", "c", "--mindevcount", "1"}},
		{command: "class list"},
		{command: "class delete", args: []string{"d", "c"}},
		{command: "domain delete", args: []string{"d"}},
		{command: "settings set", args: []string{"memcache_ttl", "5"}},
		{command: "settings get", args: []string{"memcache_ttl"}},
		{command: "settings list"},
		{command: "settings unset", args: []string{"memcache_ttl"}},
		{command: "fsck start", args: []string{"--wait"}},
		{command: "fsck stop"},
		{command: "fsck reset"},
		{command: "fsck status"},
		{command: "fsck log"},
		{command: "fsck clearlog"},
		{command: "fsck policy"},
		{command: "fsck scrub"},
		{command: "fsck strays", fails: true},
		{command: "drain", args: []string{"1"}},
		{command: "rebalance auto"},
		{command: "rebalance policy", args: []string{"from_hosts=1"}},
		{command: "rebalance test"},
		{command: "rebalance start"},
		{command: "rebalance status"},
		{command: "rebalance stop"},
		{command: "rebalance reset"},
		{command: "stats"},
		{command: "console", args: []string{"!version"}},
		{command: "bench create", args: []string{"-n", "2", "-c", "1", "--keys", "2", "--size", "1K"}},
		{command: "bench open-close", args: []string{"-n", "2", "-c", "1", "--keys", "2", "--size", "1K"}},
		{command: "bench paths", args: []string{"-n", "2", "-c", "1", "--keys", "2", "--size", "1K", "--verify"}},
		{command: "bench get", args: []string{"-n", "2", "-c", "1", "--keys", "2", "--size", "1K"}},
		{command: "bench GET", args: []string{"-n", "2", "-c", "1", "--keys", "2", "--size", "1K"}},
		{command: "bench mixed", args: []string{"-n", "2", "-c", "1", "--keys", "2", "--size", "1K"}},
		{command: "bench list", args: []string{"-n", "2", "-c", "1", "--keys", "2", "--size", "1K"}},
		{command: "bench delete", args: []string{"-n", "2", "-c", "1", "--keys", "2", "--size", "1K"}},
		{command: "bench replicate", args: []string{"-n", "2", "-c", "1", "--keys", "2", "--size", "1K", "--copies", "1"}},
		{command: "bench load", args: []string{"--dsn", "sqlite:/nowhere/namespace.db"}, fails: true},
		{command: "bench erasure", args: []string{"-c", "1", "--keys", "2", "--class", "nope"}, fails: true},
		{command: "completion", args: []string{"bash"}},
	} {
		tested[c.command] = true
		args := append(append([]string{"--json"}, strings.Fields(c.command)...), c.args...)
		if c.command == "debug" || strings.HasPrefix(c.command, "bench") {
			args = append(args, "--timeout", "10s")
		}
		code, stdout, stderr := run(t.Context(), cluster, args...)
		if (code != 0) != c.fails {
			t.Errorf("%q: exit code %d, %s", args, code, stderr)
			continue
		}
		if !c.bytes && !c.fails && !c.silent && stdout == "" {
			t.Errorf("%q prints nothing", args)
		}
		for _, out := range []string{stdout, stderr} {
			if out == stdout && c.bytes {
				continue
			}
			for line := range strings.Lines(out) {
				var v map[string]any
				if err := json.Unmarshal([]byte(line), &v); err != nil {
					t.Errorf("%q prints %q: %v", args, line, err)
				} else if _, isError := v["error"].(string); c.fails && out == stderr && !isError {
					t.Errorf("%q fails with %q", args, line)
				}
			}
		}
	}
	for _, name := range leaves(Command(), "") {
		if !tested[name] {
			t.Errorf("nobody knows what %q prints with --json", name)
		}
	}
}
