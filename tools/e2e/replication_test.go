package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mogile/mogile/protocol"
)

// TestDirectCopies stores files in a cluster with a key: each is where its class
// wants it when its upload is answered, and its bytes have crossed the network
// once for each copy, none of them through a tracker.
func TestDirectCopies(t *testing.T) {
	scenario(t)
	t.Parallel()
	c := StartCluster(t, Spec{Key: true})
	const files, size = 60, 200_000
	bodies := make(map[string][]byte)
	for i := range files {
		key := fmt.Sprintf("direct/%d", i)
		bodies[key] = randomBytes(size)
		if _, err := c.Client.Create(t.Context(), domain, key, protocol.CreateOptions{WaitReplicated: time.Minute}, bytes.NewReader(bodies[key])); err != nil {
			t.Fatal(err)
		}
		if _, devs := c.info(key); len(devs) != 2 {
			t.Fatalf("%s is on %v when its upload is answered", key, devs)
		}
	}
	if n := c.Metric("mogile_replicate_copied_bytes_total", `how="direct"`); n != files*size {
		t.Errorf("%v bytes were copied directly, want %d", n, files*size)
	}
	if n := c.Metric("mogile_replicate_copied_bytes_total", `how="streamed"`); n > 0 {
		t.Errorf("%v bytes went through the tracker", n)
	}
	// Each file was sent once, to be copied, and received once from its client.
	if sent := c.HostMetric("mogile_storaged_sent_bytes_total"); sent < files*size || sent > files*size*1.02 {
		t.Errorf("storage daemons have sent %.0f bytes for %d that were copied", sent, files*size)
	}
	for key, body := range bodies {
		c.CheckFile(key, c.WaitPolicy(key, 2), body)
	}
}

// TestRottenSources has copies rot, of right size and wrong content, in a
// cluster with a key and in one without: a file in a class of more copies gets
// them from the one that is sound.
func TestRottenSources(t *testing.T) {
	scenario(t)
	t.Parallel()
	for _, key := range []bool{true, false} {
		t.Run(fmt.Sprintf("key %v", key), func(t *testing.T) {
			t.Parallel()
			c := StartCluster(t, Spec{Key: key})
			c.Do("create_class", "domain="+domain, "class=more", "mindevcount=3")
			for i := range 12 {
				name := fmt.Sprintf("rotten/%d", i)
				body := randomBytes(50_000)
				if _, err := c.Client.Create(t.Context(), domain, name, protocol.CreateOptions{WaitReplicated: time.Minute}, bytes.NewReader(body)); err != nil {
					t.Fatal(err)
				}
				fid, devs := c.info(name)
				bad := bytes.Clone(body)
				bad[len(bad)/2] ^= 1
				if err := os.WriteFile(c.onDisk(devs[i%2], fid), bad, 0o666); err != nil {
					t.Fatal(err)
				}
				c.Do("updateclass", "domain="+domain, "key="+name, "class=more")
				c.WaitPolicy(name, 3)
				sound := 0
				_, devs = c.info(name)
				for _, dev := range devs {
					got, err := os.ReadFile(c.onDisk(dev, fid))
					if err != nil {
						t.Fatal(err)
					}
					if bytes.Equal(got, body) {
						sound++
					}
				}
				if sound != 2 {
					t.Errorf("%s: %d of 3 copies are sound, one was spoilt", name, sound)
				}
			}
		})
	}
}

// TestWaitInVain stores where there is only one host that is well: the file is
// stored, and the answer says so.
func TestWaitInVain(t *testing.T) {
	scenario(t)
	t.Parallel()
	c := StartCluster(t, Spec{Hosts: 2, Devices: 1, Key: true})
	c.Hosts[1].Kill()
	within(t, 30*time.Second, "its device is missed", func() error {
		if n := c.Metric("mogile_monitor_devices", `state="writeable"`); n != 1 {
			return fmt.Errorf("%v devices take files", n)
		}
		return nil
	})
	body := randomBytes(1000)
	f, err := c.Client.Create(t.Context(), domain, "waits", protocol.CreateOptions{WaitReplicated: 2 * time.Second}, bytes.NewReader(body))
	if !errors.Is(err, protocol.ErrReplicationTimeout) || f.FID == 0 || !strings.Contains(err.Error(), "stored") {
		t.Fatalf("%+v, %v", f, err)
	}
	paths, err := c.Paths("waits")
	if err != nil || len(paths) != 1 {
		t.Fatalf("%v, %v", paths, err)
	}
	c.CheckFile("waits", paths, body)
}

// TestSoleRottenCopy has a file whose only copy rots get a class of two: what is
// rotten is copied nowhere, directly or through the tracker; the file and what
// there is of it stay, the copy is tried again later, and scrub names the file.
func TestSoleRottenCopy(t *testing.T) {
	scenario(t)
	t.Parallel()
	for _, key := range []bool{true, false} {
		t.Run(fmt.Sprintf("key %v", key), func(t *testing.T) {
			t.Parallel()
			c := StartCluster(t, Spec{Key: key})
			body := randomBytes(50_000)
			if err := c.Put("sole", "single", body); err != nil {
				t.Fatal(err)
			}
			c.calm()
			fid, devs := c.info("sole")
			body[len(body)/2] ^= 1
			path := c.onDisk(devs[0], fid)
			if err := os.WriteFile(path, body, 0o666); err != nil {
				t.Fatal(err)
			}
			before := time.Now()
			c.Do("updateclass", "domain="+domain, "key=sole", "class=default")
			within(t, 30*time.Second, "the copy fails, and is put off", func() error {
				row := c.Do("file_debug", "fid="+fid.String())
				if row.Number("replqueue_failcount") < 1 || row.Number("replqueue_nexttry") < before.Unix()+10 {
					return fmt.Errorf("%s", row)
				}
				return nil
			})
			if n := c.Metric("mogile_replicate_copies_total", `result="src_error"`); n == 0 {
				t.Error("no copy failed because of its source")
			}
			if n := c.HostMetric("mogile_storaged_transfers_total", `result="src_error"`); key && n == 0 {
				t.Error("no storage daemon refused what it was to fetch")
			}
			if n := c.Metric("mogile_replicate_copies_total", `result="ok"`); n != 0 {
				t.Errorf("%v copies were made", n)
			}
			stays := func() {
				t.Helper()
				if got, now := c.info("sole"); got != fid || !slices.Equal(now, devs) {
					t.Errorf("fid %d is on %v; it was fid %d on %v", got, now, fid, devs)
				}
				if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, body) {
					t.Errorf("the copy is not what it was: %v", err)
				}
				within(t, time.Minute, "nothing of it lies elsewhere", func() error {
					files, err := c.FilesOnDisk()
					if err == nil && (len(files) != 1 || files[0] != path) {
						err = fmt.Errorf("%q", files)
					}
					return err
				})
			}
			stays()

			if p := mogtoolJSON[progressJSON](t, c, "fsck", "scrub", "--wait"); p.Events["BSUM"] == 0 || p.Events["GONE"] != 0 {
				t.Errorf("scrub: %+v", p)
			}
			if code, _, words, err := tool(c, "fsck", "scrub", "status", "--check"); err != nil || code != 1 || !strings.Contains(words, "not repaired: 1 × BSUM") {
				t.Errorf("exit code %d, %v: %s", code, err, words)
			}
			if log := mogtool(t, c, "fsck", "log"); !strings.Contains(log, " BSUM ") || !strings.Contains(log, "somebody must look") {
				t.Errorf("the log:\n%s", log)
			}
			stays()
		})
	}
}

// TestSurplusBesideRottenCopies has one of two copies of files rot, and then a
// class of one: whichever would have been dropped, the sound one stays, and the
// other goes into the trash.
func TestSurplusBesideRottenCopies(t *testing.T) {
	scenario(t)
	t.Parallel()
	c := StartCluster(t, Spec{Key: true})
	c.Do("create_class", "domain="+domain, "class=summed", "mindevcount=2", "hashtype=MD5")
	const files = 12
	bodies := make([][]byte, files)
	for i := range files {
		name := fmt.Sprintf("surplus/%d", i)
		bodies[i] = randomBytes(50_000)
		class := []string{"default", "summed"}[i%2]
		if _, err := c.Client.Create(t.Context(), domain, name, protocol.CreateOptions{Class: class, WaitReplicated: time.Minute}, bytes.NewReader(bodies[i])); err != nil {
			t.Fatal(err)
		}
		fid, devs := c.info(name)
		bad := bytes.Clone(bodies[i])
		bad[len(bad)/2] ^= 1
		if err := os.WriteFile(c.onDisk(devs[i/2%2], fid), bad, 0o666); err != nil {
			t.Fatal(err)
		}
	}
	c.calm()
	for i := range files {
		c.Do("updateclass", "domain="+domain, fmt.Sprintf("key=surplus/%d", i), "class=single")
	}
	for i := range files {
		name := fmt.Sprintf("surplus/%d", i)
		c.CheckFile(name, c.WaitPolicy(name, 1), bodies[i])
	}
	if n := c.Metric("mogile_fsck_events_total", `code="BSUM"`); n == 0 {
		t.Error("by chance, or because nobody looks, no rotten copy was one that was to stay")
	}
}
