package e2e

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/mogile/mogile/protocol"
)

// chaosMin is the least that is encoded in classes of TestChaos.
const chaosMin = 8 << 10

// chaosSizes are around what is encoded, around a stripe of three blocks and of
// four, and odd.
var chaosSizes = []int{0, 1, chaosMin - 1, chaosMin, chaosMin + 1, 100_003, 3 * 128 << 10, 4*128<<10 + 1, 1<<20 - 1, 2_500_007}

// chaosClasses are the classes between which files change, and of how many shards
// of a large file, and copies of a small one, they are. Each survives three losses:
// of a host with two devices, and of a shard besides.
var chaosClasses = []struct {
	name, policy     string
	shards, inCopies int
}{
	{"ec33", fmt.Sprintf("ErasureCode(3,3,min=%d)", chaosMin), 6, 4},
	{"ec43", fmt.Sprintf("ErasureCode(4,3,min=%d)", chaosMin), 7, 4},
	{"triple", "", 0, 3},
}

// chaos is a cluster on which everything happens at once.
type chaos struct {
	*Cluster
	files []*chaosFile
	// faults counts when something begins to go wrong, and when it is over: what a
	// client met between two equal counts is not excused by it.
	faults atomic.Int64
	// faulty is held while something goes wrong, and to damage what is on a device,
	// that it be for one reason alone that a file lacks more than it may.
	faulty       sync.Mutex
	reads, again atomic.Int64
}

type chaosFile struct {
	key   string
	body  []byte
	class int // of chaosClasses
}

// want is how many shards, or copies, the file is to have in its class.
func (f *chaosFile) want() (shards, inCopies int) {
	class := chaosClasses[f.class]
	if class.shards > 0 && len(f.body) >= chaosMin {
		return class.shards, 0
	}
	return 0, class.inCopies
}

// read reads a file that was at its policy before anything went wrong. One of its
// paths must answer with its content, and none with any other. An attempt may fail
// while something begins to go wrong or ceases to, or the file is somewhere else
// when it is over: then there is another.
func (c *chaos) read(f *chaosFile) error {
	c.reads.Add(1)
	deadline := time.Now().Add(2 * time.Minute)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for ; ; <-tick.C {
		before := c.faults.Load()
		paths, err := c.Paths(f.key)
		if err != nil {
			if time.Now().After(deadline) {
				return fmt.Errorf("%s: %w", f.key, err)
			}
			continue // its trackers, or their sessions, are gone
		}
		var failed error
		for _, path := range paths {
			body, err := fetch(path)
			if err == nil {
				if !bytes.Equal(body, f.body) {
					return fmt.Errorf("%s: %s answers with %d other bytes, want %d", f.key, path, len(body), len(f.body))
				}
				return nil
			}
			failed = errors.Join(failed, err)
		}
		now, err := c.Paths(f.key)
		slices.Sort(now)
		slices.Sort(paths)
		if err == nil && slices.Equal(now, paths) && c.faults.Load() == before || time.Now().After(deadline) {
			return fmt.Errorf("%s: none of %d paths answers: %w", f.key, len(paths), failed)
		}
		c.again.Add(1)
	}
}

// attempt retries what may fail while trackers are killed.
func (c *chaos) attempt(ctx context.Context, what string, do func() error) error {
	deadline := time.Now().Add(2 * time.Minute)
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		err := do()
		if err == nil {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s: %w", what, err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// convert gives files other classes.
func (c *chaos) convert(ctx context.Context, rng *rand.Rand) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for ctx.Err() == nil {
		f := c.files[rng.IntN(len(c.files))]
		class := "class=" + chaosClasses[rng.IntN(len(chaosClasses))].name
		if err := c.attempt(ctx, "updateclass", func() error {
			_, err := c.Try("updateclass", "domain="+domain, "key="+f.key, class)
			return err
		}); err != nil && ctx.Err() == nil {
			return err
		}
		<-tick.C
	}
	return nil
}

// churn stores, reads, overwrites, moves to other classes and deletes one key until
// ctx ends, and returns what is stored then. A read of it may fail: it was on
// one device, which may be away; but not answer with anything else.
func (c *chaos) churn(ctx context.Context, rng *rand.Rand, key string) (*chaosFile, error) {
	f := &chaosFile{key: key}
	for {
		size := chaosSizes[rng.IntN(len(chaosSizes))]
		f.body, f.class = randomBytes(size), rng.IntN(len(chaosClasses))
		// Not ended by ctx: what is stored in the end must be known.
		if err := c.attempt(context.WithoutCancel(ctx), "put "+key, func() error { return c.Put(key, chaosClasses[f.class].name, f.body) }); err != nil {
			return nil, err
		}
		if ctx.Err() != nil {
			return f, nil
		}
		if got, err := c.Cluster.read(key); err == nil && !bytes.Equal(got, f.body) {
			return nil, fmt.Errorf("%s: %d other bytes, want %d", key, len(got), len(f.body))
		}
		if rng.IntN(3) == 0 {
			if err := c.attempt(context.WithoutCancel(ctx), "delete "+key, func() error {
				_, err := c.Try("delete", "domain="+domain, "key="+key)
				if errors.Is(err, protocol.ErrUnknownKey) {
					return nil
				}
				return err
			}); err != nil {
				return nil, err
			}
		}
	}
}

// damage takes a shard of a file away, or spoils it, where it is whole. It reports
// whether it did.
func (c *chaos) damage(f *chaosFile, rng *rand.Rand) bool {
	c.faulty.Lock()
	defer c.faulty.Unlock()
	fields, err := c.Try("file_info", "domain="+domain, "key="+f.key)
	if err != nil {
		return false
	}
	fid := protocol.FID(fields.Number("fid"))
	_, devs := c.lying(fid)
	if len(devs) == 0 {
		return false
	}
	path := c.shardOnDisk(devs[rng.IntN(len(devs))], fid)
	if rng.IntN(2) == 0 {
		return os.Remove(path) == nil
	}
	// As a disk does that rots: the shard that is there keeps its name and time.
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return false
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return false
	}
	b, at := make([]byte, 1), rng.Int64N(info.Size())
	if _, err := file.ReadAt(b, at); err != nil {
		return false
	}
	b[0] ^= 1
	_, err = file.WriteAt(b, at)
	return err == nil
}

// victim is something that goes wrong, and how it is made good.
type victim struct {
	name      string
	begin, ok func()
	blind     bool // nobody knows where files are meanwhile
}

// victims are all that may go wrong in turn. Each is over before the next begins.
func (c *chaos) victims() []victim {
	var all []victim
	for _, h := range c.Hosts {
		all = append(all, victim{"killed " + h.Name, h.Kill, func() {
			h.Start()
			within(c.t, time.Minute, h.Name+" serves", func() error {
				_, err := fetch(fmt.Sprintf("http://%s:%d/", h.IP, c.Port))
				return err
			})
		}, false})
	}
	for i, p := range c.Trackers {
		all = append(all, victim{"killed " + p.name, p.Kill, func() {
			p.Start()
			within(c.t, time.Minute, p.name+" answers", func() error {
				_, err := fetch("http://" + c.Status[i] + "/metrics")
				return err
			})
		}, len(c.Trackers) == 1})
	}
	return all
}

// sick are victims that are not dead: daemons that sleep, and sessions of trackers
// with all their locks.
func (c *chaos) sick() []victim {
	all := []victim{{"cut sessions", func() {
		if err := c.cutSessions(context.Background()); err != nil {
			c.t.Errorf("cut sessions: %v", err)
		}
	}, func() {}, false}}
	for _, p := range []*Process{c.Hosts[0].Process, c.Hosts[len(c.Hosts)-1].Process, c.Trackers[0]} {
		all = append(all, victim{"stopped " + p.name, func() { p.Signal(syscall.SIGSTOP) }, func() { p.Signal(syscall.SIGCONT) }, false})
	}
	return all
}

// coding is how many orders to make shards, and how many copies, are under way.
func (c *chaos) coding() float64 {
	c.t.Helper()
	sum := 0.0
	for _, h := range c.Hosts {
		body, err := fetch("http://" + h.Status + "/metrics")
		if err != nil {
			continue // it is asked before it serves
		}
		for line := range strings.Lines(string(body)) {
			for _, name := range []string{"mogile_storaged_coding_in_progress ", "mogile_storaged_transfers_in_progress "} {
				var n float64
				if rest, ok := strings.CutPrefix(line, name); ok {
					if _, err := fmt.Sscan(rest, &n); err != nil {
						c.t.Fatalf("metrics: %q", line)
					}
					sum += n
				}
			}
		}
	}
	return sum
}

// count is what a query for a number answers.
func (c *Cluster) count(query string) (n int) {
	c.t.Helper()
	driver, dsn := "pgx", c.DSN
	if path, ok := strings.CutPrefix(c.DSN, "sqlite:"); ok {
		driver, dsn = "sqlite", "file:"+path+"?_pragma=busy_timeout(10000)"
	}
	db, err := sql.Open(driver, dsn)
	if err != nil {
		c.t.Fatal(err)
	}
	defer db.Close()
	if err := db.QueryRow(query).Scan(&n); err != nil {
		c.t.Fatalf("%s: %v", query, err)
	}
	return n
}

// hurry makes all that waits in a queue due: what trackers held that were killed,
// and what was put off, comes minutes later otherwise. What a tracker works at is
// done once more.
func (c *Cluster) hurry() {
	c.t.Helper()
	for _, queue := range []string{"file_to_replicate", "file_to_delete2", "file_to_delete_later", "copy_to_delete"} {
		column := "nexttry"
		if queue == "file_to_delete_later" {
			column = "delafter"
		}
		c.exec("UPDATE " + queue + " SET " + column + " = 0")
	}
	c.exec("UPDATE file_to_queue SET nexttry = 0 WHERE type = 1")
}

// quiet waits until all queues are empty.
func (c *Cluster) quiet(d time.Duration) {
	c.t.Helper()
	queues := []string{"file_to_replicate", "file_to_delete", "file_to_delete2", "file_to_delete_later", "copy_to_delete", "file_to_queue WHERE type = 1"}
	c.hurry()
	last := time.Now()
	within(c.t, d, "all queues are empty", func() error {
		if time.Since(last) > 2*time.Second {
			c.hurry()
			last = time.Now()
		}
		for _, queue := range queues {
			if n := c.count("SELECT count(*) FROM " + queue); n > 0 {
				return fmt.Errorf("%d rows in %s", n, queue)
			}
		}
		return nil
	})
}

// TestChaos has files become shards, other shards and copies, and read, overwritten
// and deleted all the while, as daemons are killed and shards get lost or rot. As
// long as no more is missing than a file survives, every read of it succeeds
// through one of its paths. In the end every file is at its policy, reads the same
// on every path, fsck and strays find nothing, and nothing waits to be deleted.
func TestChaos(t *testing.T) {
	for _, engine := range []string{"sqlite", "postgres"} {
		t.Run(engine, func(t *testing.T) {
			t.Parallel()
			if engine == "sqlite" {
				runChaos(t, Spec{Engine: engine, Hosts: 4, Devices: 2, Key: true}, 2, 1, []int{0, chaosMin - 1, chaosMin, 3 * 128 << 10, 700_001})
				return
			}
			scenario(t)
			runChaos(t, Spec{Engine: engine, Hosts: 5, Devices: 2, Trackers: 2, Key: true}, scale(16), 4, slices.Repeat(chaosSizes, 3))
		})
	}
}

// runChaos runs it on files of these sizes, and keys that are overwritten.
func runChaos(t *testing.T, s Spec, rounds, churners int, sizes []int) {
	t.Helper()
	rng := newRand(t)
	s.TrackerArgs = []string{"--replication-bandwidth", "8M"}
	c := &chaos{Cluster: StartCluster(t, s)}
	for _, class := range chaosClasses {
		if class.policy != "" {
			c.Do("create_class", "domain="+domain, "class="+class.name, "mindevcount=2", "replpolicy="+class.policy)
		}
	}
	for i, size := range sizes {
		c.files = append(c.files, &chaosFile{key: fmt.Sprintf("steady/%d", i), body: randomBytes(size), class: i % len(chaosClasses)})
	}
	eachParallel(len(c.files), 8, func(i int) {
		f := c.files[i]
		if err := c.Put(f.key, chaosClasses[f.class].name, f.body); err != nil {
			t.Errorf("put: %v", err)
		}
	})
	c.quiet(2 * time.Minute)
	for _, f := range c.files {
		c.atPolicy(f)
	}

	ctx, cancel := context.WithCancel(t.Context())
	var clients sync.WaitGroup
	defer clients.Wait()
	defer cancel()
	client := func(do func(rng *rand.Rand) error) {
		rng := rand.New(rand.NewPCG(rng.Uint64(), 0))
		clients.Go(func() {
			if err := do(rng); err != nil {
				t.Error(err)
			}
		})
	}
	for range 2 {
		client(func(rng *rand.Rand) error {
			for ctx.Err() == nil {
				if err := c.read(c.files[rng.IntN(len(c.files))]); err != nil {
					return fmt.Errorf("a read meanwhile: %w", err)
				}
			}
			return nil
		})
		client(func(rng *rand.Rand) error { return c.convert(ctx, rng) })
	}
	churned := make([]*chaosFile, churners)
	for i := range churners {
		client(func(rng *rand.Rand) (err error) {
			churned[i], err = c.churn(ctx, rng, fmt.Sprintf("churn/%d", i))
			return err
		})
	}
	// Each file is damaged once: a shard that nobody has missed yet is one of three.
	damaged := rng.Perm(len(c.files))
	victims := c.victims()
	if len(c.Trackers) > 1 {
		victims = append(victims, c.sick()...)
	}
	told := map[string]int{}
	for range rounds {
		v := victims[rng.IntN(len(victims))]
		// Most of the time, in the middle of work.
		busy := time.Now().Add(time.Duration(rng.IntN(2000)) * time.Millisecond)
		within(t, time.Minute, "shards are made", func() error {
			if time.Now().Before(busy) && c.coding() == 0 {
				return errors.New("none")
			}
			return nil
		})
		for n := 0; n < 2 && len(damaged) > 0; n++ {
			if c.damage(c.files[damaged[0]], rng) {
				told["damaged"]++
			}
			damaged = damaged[1:]
		}
		c.faulty.Lock()
		c.faults.Add(1)
		v.begin()
		c.faults.Add(1)
		reads := c.reads.Load() + int64(1+rng.IntN(60))
		within(t, 2*time.Minute, "reads meanwhile", func() error {
			if n := c.reads.Load(); n < reads && !v.blind && !t.Failed() {
				return fmt.Errorf("%d more", reads-n)
			}
			return nil
		})
		c.faults.Add(1)
		v.ok()
		c.faults.Add(1)
		c.faulty.Unlock()
		c.exec("UPDATE file_to_replicate SET nexttry = 0")
		told[v.name]++
		if t.Failed() {
			break
		}
	}
	cancel()
	clients.Wait()
	t.Logf("%v; %d reads, %d attempts of them failed", told, c.reads.Load(), c.again.Load())
	if t.Failed() {
		return
	}
	c.WaitWriteable()
	all := append(slices.Clone(c.files), churned...)
	for _, f := range all {
		f.class = rng.IntN(len(chaosClasses))
		c.Do("updateclass", "domain="+domain, "key="+f.key, "class="+chaosClasses[f.class].name)
	}
	c.quiet(3 * time.Minute)
	mogtool(t, c.Cluster, "fsck", "scrub", "--all", "--wait") // finds what was damaged and nobody has read
	c.quiet(2 * time.Minute)
	for _, f := range all {
		c.atPolicy(f)
	}
	_, last := c.fsckLog(0)
	mogtool(t, c.Cluster, "fsck", "start", "--all", "--wait")
	mogtool(t, c.Cluster, "fsck", "scrub", "--all", "--wait")
	if found, _ := c.fsckLog(last); len(found) > 0 {
		t.Errorf("fsck and scrub find, after all was repaired: %v", found)
	}
	c.quiet(time.Minute)
	if list, words, code := c.strays("--age", "0s"); len(list) > 0 || code != 0 {
		t.Errorf("exit code %d, strays: %q: %s", code, list, words)
	}
	for _, h := range c.Hosts {
		left, err := filepath.Glob(filepath.Join(h.Docroot, "dev*", ".mogile", "tmp", "*", "*"))
		if err != nil || len(left) > 0 {
			t.Errorf("left behind: %q, %v", left, err)
		}
	}
}

// atPolicy waits until a file has what its class wants, and reads it on every path
// and device.
func (c *chaos) atPolicy(f *chaosFile) {
	c.t.Helper()
	shards, inCopies := f.want()
	within(c.t, time.Minute, fmt.Sprintf("%s (%d bytes) is as %s wants it", f.key, len(f.body), chaosClasses[f.class].name), func() error {
		fid, devs := c.info(f.key)
		asCopies, asShards := c.lying(fid)
		if !slices.Equal(devs, slices.Concat(asCopies, asShards)) || len(asShards) != shards || len(asCopies) != inCopies {
			return fmt.Errorf("fid %d is recorded on %v, with copies on %v and shards on %v", fid, devs, asCopies, asShards)
		}
		return nil
	})
	paths, err := c.Paths(f.key)
	if err != nil || len(paths) != shards+inCopies {
		c.t.Errorf("%s: paths %q, %v", f.key, paths, err)
	}
	c.CheckFile(f.key, paths, f.body)
	if len(f.body) > 0 {
		_, devs := c.info(f.key)
		c.readFrom(f.key, devs[:1], f.body)
	}
}
