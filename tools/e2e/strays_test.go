package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/mogile/mogile/protocol"
)

// strays runs mogtool fsck strays, and returns its list, its words on standard
// error and its exit code.
func (c *Cluster) strays(args ...string) (list []string, words string, code int) {
	c.t.Helper()
	code, out, words, err := tool(c, append([]string{"--json", "fsck", "strays"}, args...)...)
	if err != nil {
		c.t.Fatal(err)
	}
	for line := range strings.Lines(out) {
		var s struct {
			Kind, Path, Result string
			Size               int64
		}
		if err := json.Unmarshal([]byte(line), &s); err != nil {
			c.t.Fatalf("%q: %v", line, err)
		}
		if s.Path != "" {
			list = append(list, strings.TrimSpace(fmt.Sprintf("%s %s %d %s", s.Path, s.Kind, s.Size, s.Result)))
		}
	}
	slices.Sort(list)
	return list, words, code
}

// plant writes a file on a device, of an age.
func (c *Cluster) plant(dev protocol.DevID, fid protocol.FID, body string, age time.Duration) string {
	c.t.Helper()
	path := c.onDisk(dev, fid)
	if err := os.MkdirAll(filepath.Dir(path), 0o777); err != nil {
		c.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(body), 0o666); err != nil {
		c.t.Fatal(err)
	}
	at := time.Now().Add(-age)
	if err := os.Chtimes(path, at, at); err != nil {
		c.t.Fatal(err)
	}
	return fid.Path(dev)
}

// trash lists what is in the trash of all devices.
func (c *Cluster) trash() (names []string) {
	c.t.Helper()
	for _, h := range c.Hosts {
		found, err := filepath.Glob(filepath.Join(h.Docroot, "dev*/.mogile/trash/*/*"))
		if err != nil {
			c.t.Fatal(err)
		}
		for _, f := range found {
			names = append(names, filepath.Base(f))
		}
	}
	slices.Sort(names)
	return names
}

// TestStrays: what lies on devices without a row is listed exactly, moves to the
// trash when it may, and nothing that belongs to a file goes with it.
func TestStrays(t *testing.T) {
	scenario(t)
	t.Parallel()
	for _, engine := range []string{"sqlite", "postgres"} {
		t.Run(engine, func(t *testing.T) {
			t.Parallel()
			c := StartCluster(t, Spec{Engine: engine, Hosts: 3, Devices: 1, Key: true})
			const files = 40
			bodies := make(map[string][]byte)
			for i := range files {
				key := fmt.Sprintf("k%02d", i)
				bodies[key] = randomBytes(100 + i)
				if err := c.Put(key, "", bodies[key]); err != nil {
					t.Fatal(err)
				}
			}
			for key := range bodies {
				c.WaitPolicy(key, 2)
			}
			deleted, _ := c.info("k39")
			if err := c.Client.Delete(t.Context(), domain, "k39"); err != nil {
				t.Fatal(err)
			}
			delete(bodies, "k39")
			within(t, 30*time.Second, "nothing is left of the deleted file", func() error {
				for dev := protocol.DevID(1); dev <= 3; dev++ {
					if _, err := os.Stat(c.onDisk(dev, deleted)); err == nil {
						return fmt.Errorf("it is on dev%d", dev)
					}
				}
				return nil
			})
			if list, words, code := c.strays("--age", "0s"); len(list) != 0 || code != 0 {
				t.Fatalf("on a sound cluster: %v, exit code %d: %s", list, code, words)
			}

			// One of each kind.
			const day = 25 * time.Hour
			gone := c.plant(1, deleted, "old", day)
			young := c.plant(2, deleted, "new", time.Hour)
			fid, on := c.info("k00")
			other := protocol.DevID(1 + 2 + 3 - on[0] - on[1])
			copied := c.plant(other, fid, "a copy", day)
			lost, where := c.info("k01")
			for _, dev := range where {
				if err := os.Remove(c.onDisk(dev, lost)); err != nil {
					t.Fatal(err)
				}
			}
			spare := protocol.DevID(1 + 2 + 3 - where[0] - where[1])
			rescue := c.plant(spare, lost, string(bodies["k01"]), day)
			above := c.plant(3, 1<<40, "above", day)
			if err := os.WriteFile(filepath.Join(c.Hosts[0].Docroot, "dev1", "notes.txt"), nil, 0o600); err != nil {
				t.Fatal(err)
			}
			want := []string{gone + " gone 3", copied + " copy 6", fmt.Sprintf("%s rescue %d", rescue, len(bodies["k01"])), above + " above 5"}
			slices.Sort(want)
			list, words, code := c.strays()
			if diff := cmp.Diff(want, list); diff != "" || code != 0 {
				t.Errorf("exit code %d: %s\n%s", code, words, diff)
			}
			if list, _, _ := c.strays("--age", "30m", "--device", "2"); !slices.Contains(list, young+" gone 3") {
				t.Errorf("younger ones: %v", list)
			}

			// So much of a device is not believed; what is said is.
			if _, words, code := c.strays("--delete", "--yes"); code != 1 || !strings.Contains(words, "--up-to") || len(c.trash()) != 0 {
				t.Errorf("exit code %d: %s; trash %v", code, words, c.trash())
			}
			if _, words, code := c.strays("--delete", "--up-to", "50"); code != 1 || !strings.Contains(words, "nobody can be asked") || len(c.trash()) != 0 {
				t.Errorf("exit code %d: %s; trash %v", code, words, c.trash())
			}
			want = []string{gone + " gone 3 trashed", copied + " copy 6 trashed"}
			list, words, code = c.strays("--delete", "--yes", "--up-to", "50")
			for _, stays := range []string{fmt.Sprintf("%s rescue %d kept", rescue, len(bodies["k01"])), above + " above 5 kept"} {
				if i := slices.Index(list, stays); i >= 0 { // where there was something to delete on its device
					list = slices.Delete(list, i, i+1)
				}
			}
			slices.Sort(want)
			if diff := cmp.Diff(want, list); diff != "" || code != 0 {
				t.Errorf("exit code %d: %s\n%s", code, words, diff)
			}
			trashed := []string{filepath.Base(copied), filepath.Base(gone)}
			slices.Sort(trashed)
			if diff := cmp.Diff(trashed, c.trash()); diff != "" {
				t.Error(diff)
			}
			for dev, fid := range map[protocol.DevID]protocol.FID{2: deleted, 3: 1 << 40, spare: lost} {
				if _, err := os.Stat(c.onDisk(dev, fid)); err != nil {
					t.Errorf("what should stay: %v", err)
				}
			}
			// Nothing of the files went; and what was lost can be had back.
			delete(bodies, "k01")
			for key, body := range bodies {
				c.CheckFile(key, c.WaitPolicy(key, 2), body)
			}
		})
	}
}

// TestStraysElsewhere: devices that cannot be listed are named.
func TestStraysElsewhere(t *testing.T) {
	scenario(t)
	t.Parallel()
	c := StartCluster(t, Spec{Hosts: 2, Devices: 1, HostArgs: []string{"--cluster-key-file", keyFile(t)}})
	list, words, code := c.strays()
	if len(list) != 0 || code != 1 || !strings.Contains(words, "dev1") || !strings.Contains(words, "dev2") || !strings.Contains(words, "cluster key") {
		t.Errorf("with a key that the tracker does not have: %v, exit code %d: %s", list, code, words)
	}
}

// keyFile is a file with a cluster key.
func keyFile(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(path, fmt.Appendf(nil, "%x\n", randomBytes(32)), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
