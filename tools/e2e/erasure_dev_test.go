package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestReadmeShards runs the README's session with a file in shards that loses two
// devices.
func TestReadmeShards(t *testing.T) {
	t.Parallel()
	blocks := regexp.MustCompile("(?ms)^```console\n(.*?)^```$").FindAllStringSubmatch(pages(t)["README.md"], 1)
	if len(blocks) == 0 {
		t.Fatal("the README has no session")
	}
	dir := t.TempDir()
	var here *strings.Replacer
	out := ""
	for line := range strings.Lines(blocks[0][1]) {
		line = strings.TrimSuffix(line, "\n")
		command, ok := strings.CutPrefix(line, "$ ")
		switch {
		case !ok:
			if !strings.Contains(out, line+"\n") {
				t.Errorf("answers %q, want %q", out, line)
			}
		case strings.HasPrefix(command, "go run . dev "):
			if here != nil {
				t.Fatal("starts twice")
			}
			_, addr, _ := dev(t, strings.Fields(strings.ReplaceAll(command, "/tmp/", dir+"/"))[4:]...)
			here = strings.NewReplacer("/tmp/", dir+"/", "go run . mogtool", binary+" mogtool --trackers "+addr)
		default:
			out = shell(t, here.Replace(command))
		}
	}
	if out != "unharmed\n" {
		t.Errorf("ends with %q", out)
	}
}

// shardPicture is what `mogtool --json info` says of a file in shards.
type shardPicture struct {
	Shards struct {
		Readable int `json:"readable"`
		Devices  int `json:"survives_devices"`
		Hosts    int `json:"survives_hosts"`
		List     []struct {
			Device int    `json:"devid"`
			Host   string `json:"host"`
		} `json:"list"`
	} `json:"shards"`
}

// TestDevHeals gives up two of eight devices, with what is on them: the shards of
// a file are made anew on the others, and meanwhile it can be read. No host has
// more than two of them before, or after.
func TestDevHeals(t *testing.T) {
	scenario(t)
	t.Parallel()
	dir := t.TempDir()
	port := freePorts(t, 2, "127.0.0.1", "127.0.0.2", "127.0.0.3", "127.0.0.4")
	addr := fmt.Sprintf("127.0.0.1:%d", freePorts(t, 2, "127.0.0.1"))
	p := start(t, "dev", "dev", "--listen", addr, "--storage-port", fmt.Sprint(port), "--hosts", "4", "--dir", filepath.Join(dir, "cluster"))
	waitReady(t, p, 1)
	mogtool := binary + " mogtool --trackers " + addr + " --domain test"
	body := bytes.Repeat([]byte("the quick brown fox\n"), 100_000)
	film := filepath.Join(dir, "film")
	if err := os.WriteFile(film, body, 0o666); err != nil {
		t.Fatal(err)
	}
	picture := func() shardPicture {
		var f shardPicture
		out := shell(t, mogtool+" --json info film")
		if err := json.Unmarshal([]byte(out), &f); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return f
	}
	wellSpread := func(f shardPicture) error {
		hosts := make(map[string]int)
		for _, s := range f.Shards.List {
			hosts[s.Host]++
		}
		for h, n := range hosts {
			if n > 2 {
				return fmt.Errorf("%d shards on %q", n, h)
			}
		}
		if f.Shards.Readable != 6 || f.Shards.Devices != 2 || f.Shards.Hosts < 1 {
			return fmt.Errorf("%+v", f)
		}
		return nil
	}
	whole := func() {
		t.Helper()
		shell(t, mogtool+" get film - | cmp - "+film)
	}
	shell(t, mogtool+" put --class ec --wait 30s "+film+" film")
	f := picture()
	if err := wellSpread(f); err != nil {
		t.Fatal(err)
	}
	whole()
	var lost []int
	for _, s := range f.Shards.List[:2] {
		lost = append(lost, s.Device)
		if err := os.RemoveAll(filepath.Join(dir, "cluster", s.Host, fmt.Sprintf("dev%d", s.Device), "0")); err != nil {
			t.Fatal(err)
		}
		whole()
		shell(t, fmt.Sprintf("%s device mark %s %d dead", mogtool, s.Host, s.Device))
	}
	whole()
	within(t, 90*time.Second, "shards on other devices", func() error {
		f := picture()
		for _, s := range f.Shards.List {
			if slices.Contains(lost, s.Device) {
				return fmt.Errorf("a shard is on dev%d still", s.Device)
			}
		}
		return wellSpread(f)
	})
	whole()
}
