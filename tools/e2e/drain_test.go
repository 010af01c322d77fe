package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mogile/mogile/protocol"
)

// fidsOn lists the files of clients on a device's disk.
func (c *Cluster) fidsOn(dev protocol.DevID) []string {
	c.t.Helper()
	files, err := c.FilesOnDisk()
	if err != nil {
		c.t.Fatal(err)
	}
	return slices.DeleteFunc(files, func(f string) bool {
		return !strings.Contains(f, fmt.Sprintf("/dev%d/", dev)) || !strings.HasSuffix(f, ".fid") || strings.Contains(f, "/.mogile/")
	})
}

// traffic is clients who store and read without end, and somebody who looks
// whether files have all their copies.
type traffic struct {
	c *Cluster

	mu     sync.Mutex // guards what follows
	bodies map[string][]byte
	stored int
	read   int
}

func (l *traffic) get(key string) error {
	ctx, cancel := context.WithTimeout(l.c.t.Context(), 30*time.Second)
	defer cancel()
	r, err := l.c.Client.Open(ctx, domain, key)
	if err != nil {
		return fmt.Errorf("get %s: %w", key, err)
	}
	body, err := io.ReadAll(r)
	if err = errors.Join(err, r.Close()); err != nil {
		return fmt.Errorf("get %s: %w", key, err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.read++
	if !bytes.Equal(body, l.bodies[key]) {
		return fmt.Errorf("get %s: %d other bytes", key, len(body))
	}
	return nil
}

// during runs f while clients are at work; none of them may meet an error.
func (l *traffic) during(f func()) {
	l.c.t.Helper()
	stop := make(chan struct{})
	var all sync.WaitGroup
	run := func(n int, step func(rng *rand.Rand, i int) error) {
		all.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(n), 1))
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				if err := step(rng, i); err != nil {
					l.c.t.Errorf("client %d: %v", n, err)
					return
				}
			}
		})
	}
	for n := range 3 {
		run(n, func(rng *rand.Rand, i int) error { return l.step(rng, fmt.Sprintf("new/%p/%d/%d", stop, n, i)) })
	}
	run(9, func(rng *rand.Rand, _ int) error {
		key := fmt.Sprintf("f%d", rng.IntN(drainFiles))
		fields, err := l.c.Try("file_info", "domain="+domain, "key="+key, "devices=1")
		if err != nil {
			return err
		}
		if n := len(strings.Split(fields.Get("devids"), ",")); n < drainCopies(key) {
			return fmt.Errorf("%s is on %s alone", key, fields.Get("devids"))
		}
		return nil
	})
	f()
	close(stop)
	all.Wait()
}

// step stores a file, and reads some.
func (l *traffic) step(rng *rand.Rand, key string) error {
	body := randomBytes(rng.IntN(20_000))
	if err := l.c.Put(key, "", body); err != nil {
		return fmt.Errorf("put %s: %w", key, err)
	}
	l.mu.Lock()
	l.bodies[key] = body
	l.stored++
	keys := make([]string, 0, len(l.bodies))
	for k := range l.bodies {
		keys = append(keys, k)
	}
	l.mu.Unlock()
	for range 3 {
		if err := l.get(keys[rng.IntN(len(keys))]); err != nil {
			return err
		}
	}
	return nil
}

// drainFiles is how many files there are before clients begin, named f0, f1 …
const drainFiles = 90

func drainClass(i int) string { return []string{"default", "triple", "single"}[i%3] }

func drainCopies(key string) int {
	var i int
	if _, err := fmt.Sscanf(key, "f%d", &i); err != nil {
		return 2
	}
	return []int{2, 3, 1}[i%3]
}

// TestDrain empties devices, one while clients are at work, another while a
// tracker is killed. No client meets an error, no file is ever short of copies,
// and all of them are right in the end.
func TestDrain(t *testing.T) {
	scenario(t)
	t.Parallel()
	for _, engine := range []string{"sqlite", "postgres"} {
		t.Run(engine, func(t *testing.T) {
			t.Parallel()
			spec := Spec{Engine: engine, Key: true}
			if engine == "postgres" {
				spec.Trackers = 2
			}
			c := StartCluster(t, spec)
			l := &traffic{c: c, bodies: make(map[string][]byte)}
			for i := range drainFiles {
				l.bodies[fmt.Sprintf("f%d", i)] = randomBytes(1000 + 300*i)
			}
			eachParallel(drainFiles, 8, func(i int) {
				key := fmt.Sprintf("f%d", i)
				if err := c.Put(key, drainClass(i), l.bodies[key]); err != nil {
					t.Error(err)
				}
			})
			for i := range drainFiles {
				key := fmt.Sprintf("f%d", i)
				c.WaitPolicy(key, drainCopies(key))
			}
			c.calm()

			var code int
			var out, words string
			l.during(func() { code, out, words, _ = tool(c, "drain", "1") })
			if code != 0 || !strings.Contains(out, "dev1 is empty: mark it dead, then pull it\n  mogtool device mark host1 1 dead\n") {
				t.Fatalf("exit code %d: %s%s", code, out, words)
			}
			t.Logf("clients stored %d files and read %d", l.stored, l.read)
			if l.stored < 3 || l.read < 10 {
				t.Error("the clients did nothing")
			}
			within(t, time.Minute, "nothing is on its disk", func() error {
				if left := c.fidsOn(1); len(left) > 0 {
					return fmt.Errorf("%d files, such as %s", len(left), left[0])
				}
				return nil
			})

			// The other devices of the hosts 2 and 3, and trackers that die.
			mogtool(t, c, "drain", "3", "5", "--no-wait")
			for _, p := range c.Trackers {
				p.Kill()
				p.Start()
			}
			c.waitAnswers()
			if code, out, words, _ = tool(c, "drain", "3", "dev5"); code != 0 || !strings.Contains(out, "dev3 is empty") || !strings.Contains(out, "dev5 is empty") {
				t.Fatalf("exit code %d: %s%s", code, out, words)
			}
			for key, body := range l.bodies {
				paths := c.WaitPolicy(key, drainCopies(key))
				c.CheckFile(key, paths, body)
				for _, p := range paths {
					if strings.Contains(p, "/dev1/") || strings.Contains(p, "/dev3/") || strings.Contains(p, "/dev5/") {
						t.Errorf("%s is on a device that was emptied: %s", key, p)
					}
				}
			}
			if got := c.Do("server_setting", "key=drain_devices").Get("value"); got != "1,3,5" {
				t.Errorf("listed are %q", got)
			}
			mogtool(t, c, "device", "mark", "host1", "1", "dead")
			mogtool(t, c, "drain", "--cancel", "3", "5")
			if got := c.Do("server_setting", "key=drain_devices").Get("value"); got != "" {
				t.Errorf("listed are %q", got)
			}
			c.waitTakeFiles(3, 5)
		})
	}
}

// waitAnswers waits until every tracker answers.
func (c *Cluster) waitAnswers() {
	c.t.Helper()
	for _, addr := range c.Status {
		within(c.t, 40*time.Second, "a tracker is ready", func() error {
			_, err := fetch("http://" + addr + "/readyz")
			return err
		})
	}
}

// waitTakeFiles waits until devices are alive and take files.
func (c *Cluster) waitTakeFiles(devs ...protocol.DevID) {
	c.t.Helper()
	within(c.t, 40*time.Second, fmt.Sprintf("devices %v take files", devs), func() error {
		fields := c.Do("get_devices")
		for n := range fields.Number("devices") {
			row := fmt.Sprintf("dev%d_", n+1)
			if slices.Contains(devs, protocol.DevID(fields.Number(row+"devid"))) &&
				(fields.Get(row+"status") != "alive" || fields.Get(row+"observed_state") != "writeable") {
				return fmt.Errorf("%s", fields)
			}
		}
		return nil
	})
}

type drainJSON struct {
	Devices []struct {
		Device         int
		Status, State  string
		Draining       bool
		Files, Blocked int64
		Examples       []struct{ Key, Reason, Text string }
	}
}

// TestDrainBlocked: a device that cannot be emptied is said to be so, and which
// files and why; it goes on by itself when there is a place, and can be cancelled.
func TestDrainBlocked(t *testing.T) {
	scenario(t)
	t.Parallel()
	c := StartCluster(t, Spec{Hosts: 3, Devices: 1, Key: true})
	body := randomBytes(3000)
	for _, key := range []string{"t1", "t2"} {
		if err := c.Put(key, "triple", body); err != nil {
			t.Fatal(err)
		}
		c.WaitPolicy(key, 3)
	}
	if err := c.Put("s", "single", body); err != nil {
		t.Fatal(err)
	}
	c.calm()
	code, out, words, err := tool(c, "drain", "2")
	if err != nil || code != 1 || !strings.Contains(words, "files cannot be moved now (dev2: 2)") ||
		!strings.Contains(out, "t1") || !strings.Contains(out, "MultipleHosts(), mindevcount 3, finds no other device") {
		t.Fatalf("exit code %d, %v: %s%s", code, err, out, words)
	}
	st := mogtoolJSON[drainJSON](t, c, "drain", "--status")
	if len(st.Devices) != 1 || st.Devices[0].State != "blocked" || st.Devices[0].Files != 2 || st.Devices[0].Blocked != 2 ||
		len(st.Devices[0].Examples) != 2 || st.Devices[0].Examples[0].Reason != "policy_finds_no_device" {
		t.Errorf("%+v", st)
	}
	for _, key := range []string{"t1", "t2"} {
		c.CheckFile(key, c.WaitPolicy(key, 3), body)
	}
	mogtool(t, c, "drain", "2", "--cancel")
	c.waitTakeFiles(2)
	if out := mogtool(t, c, "drain", "--status"); !strings.Contains(out, "no device is in drain") {
		t.Error(out)
	}
	// What cannot be done at all is refused with the remedy.
	c.Do("set_state", "host=host2", "device=2", "state=down")
	if code, _, words, _ := tool(c, "drain", "2"); code != 1 || !strings.Contains(words, "mogtool device mark host2 2 alive") {
		t.Errorf("exit code %d: %s", code, words)
	}
	c.Do("set_state", "host=host2", "device=2", "state=alive")

	// Fewer copies make room, which is noticed at once.
	mogtool(t, c, "drain", "2", "--no-wait")
	mogtool(t, c, "class", "modify", domain, "triple", "--mindevcount", "2")
	if code, out, words, _ := tool(c, "drain", "2"); code != 0 || !strings.Contains(out, "dev2 is empty") {
		t.Errorf("exit code %d: %s%s", code, out, words)
	}
	for _, key := range []string{"t1", "t2"} {
		c.CheckFile(key, c.WaitPolicy(key, 2), body)
	}
}

// TestDeadHostReapsNothing: a host that is marked dead before its devices is not
// read from, and nothing of it is copied anew until the devices are dead, too.
func TestDeadHostReapsNothing(t *testing.T) {
	scenario(t)
	t.Parallel()
	c := StartCluster(t, Spec{Hosts: 3, Devices: 1, Key: true})
	bodies := make(map[string][]byte)
	for i := range 12 {
		key := fmt.Sprintf("k%d", i)
		bodies[key] = randomBytes(500)
		if err := c.Put(key, "", bodies[key]); err != nil {
			t.Fatal(err)
		}
		c.WaitPolicy(key, 2)
	}
	c.calm()
	mogtool(t, c, "host", "mark", "host1", "dead")
	began := time.Now()
	within(t, 40*time.Second, "it is longer dead than the reaper waits", func() error {
		if n := c.Metric("mogile_reap_files_total"); n != 0 {
			t.Fatalf("%v files were taken off a device that is alive", n)
		}
		if since := time.Since(began); since < 20*time.Second {
			return fmt.Errorf("%v", since)
		}
		return nil
	})
	if code, out, words, _ := tool(c, "drain", "1"); code != 1 || !strings.Contains(out+words, "host host1 is dead") {
		t.Errorf("a device of a dead host: exit code %d: %s%s", code, out, words)
	}
	mogtool(t, c, "device", "mark", "host1", "1", "dead")
	for key, body := range bodies {
		paths := c.WaitPolicy(key, 2)
		within(t, time.Minute, key+" is elsewhere", func() error {
			var err error
			if paths, err = c.Paths(key); err != nil || len(paths) != 2 || strings.Contains(strings.Join(paths, " "), "/dev1/") {
				return fmt.Errorf("%v, %v", paths, err)
			}
			return nil
		})
		c.CheckFile(key, paths, body)
	}
}

// TestDeadDeviceReturns: a device that was dead comes back with what it had. What
// was deleted meanwhile stays so, and what lies on it is listed.
func TestDeadDeviceReturns(t *testing.T) {
	scenario(t)
	t.Parallel()
	c := StartCluster(t, Spec{Hosts: 3, Devices: 1, Key: true})
	bodies := make(map[string][]byte)
	for i := range 20 {
		key := fmt.Sprintf("k%02d", i)
		bodies[key] = randomBytes(700)
		if err := c.Put(key, "", bodies[key]); err != nil {
			t.Fatal(err)
		}
	}
	for key := range bodies {
		c.WaitPolicy(key, 2)
	}
	c.calm()
	had := make(map[string]protocol.FID) // on dev1
	for key := range bodies {
		if fid, on := c.info(key); slices.Contains(on, 1) {
			had[key] = fid
		}
	}
	mogtool(t, c, "device", "mark", "host1", "1", "dead")
	within(t, 90*time.Second, "the dead device is reaped", func() error {
		if out := mogtool(t, c, "drain", "--status"); !strings.Contains(out, "no device is in drain") {
			return errors.New(out)
		}
		return nil
	})
	var want []string
	deleted := 0
	for key, fid := range had {
		kind := "copy"
		if deleted < len(had)/2 {
			deleted++
			kind = "gone"
			if err := c.Client.Delete(t.Context(), domain, key); err != nil {
				t.Fatal(err)
			}
			delete(bodies, key)
			within(t, time.Minute, key+" is deleted", func() error {
				for dev := protocol.DevID(2); dev <= 3; dev++ {
					if _, err := os.Stat(c.onDisk(dev, fid)); err == nil {
						return fmt.Errorf("it is on dev%d", dev)
					}
				}
				return nil
			})
		}
		want = append(want, fmt.Sprintf("%s %s 700", fid.Path(1), kind))
	}
	for key := range bodies {
		c.WaitPolicy(key, 2)
	}
	c.calm()
	if code, _, words, _ := tool(c, "device", "mark", "host1", "1", "alive"); code != 1 || !strings.Contains(words, "mark it down first") {
		t.Errorf("from dead to alive: exit code %d: %s", code, words)
	}
	mogtool(t, c, "device", "mark", "host1", "1", "down")
	mogtool(t, c, "device", "mark", "host1", "1", "alive")
	c.waitTakeFiles(1)
	mogtool(t, c, "fsck", "start", "--all", "--wait")
	for key := range had {
		_, err := c.Try("get_paths", "domain="+domain, "key="+key, "noverify=1")
		if _, alive := bodies[key]; alive == (err != nil) {
			t.Errorf("get_paths of %s: %v", key, err)
		}
	}
	slices.Sort(want)
	list, words, code := c.strays("--age", "0s", "--device", "1")
	if !slices.Equal(list, want) || code != 0 {
		t.Errorf("strays: %v\nwant    %v\nexit code %d: %s", list, want, code, words)
	}
	for key, body := range bodies {
		c.CheckFile(key, c.WaitPolicy(key, 2), body)
	}
}
