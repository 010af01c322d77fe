package e2e

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"pgregory.net/rapid"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/schema"
	"github.com/mogile/mogile/schema/open"
	"github.com/mogile/mogile/storaged"
	"github.com/mogile/mogile/storaged/erasure"
	"github.com/mogile/mogile/storaged/volume/simdisk"
	"github.com/mogile/mogile/tracker"
)

// TestModel compares the product with a small reference of it, over random
// sequences of commands, worker runs, faults, crashes and restarts. The
// namespace is on the embedded store, the devices are on simulated disks that
// lose what was not flushed.
//
// Copies and shards rot and vanish, devices are wiped, die and return, files become
// shards and copies again, classes change their policy.
//
// It runs some 1,000 steps, a third of them under the race detector, times
// MOGILE_TEST_SCALE.
func TestModel(t *testing.T) {
	t.Parallel()
	const steps = 100
	for name, value := range map[string]string{"rapid.checks": strconv.Itoa(scale(modelChecks()) / modelLanes), "rapid.steps": strconv.Itoa(steps), "rapid.shrinktime": "60s", "rapid.nofailfile": "true"} {
		if err := flag.Set(name, value); err != nil {
			t.Fatal(err)
		}
	}
	// Worlds mostly wait for their workers, so several live side by side.
	for lane := range modelLanes {
		t.Run(fmt.Sprintf("lane%d", lane+1), func(t *testing.T) {
			t.Parallel()
			modelLane(t, lane)
		})
	}
}

const modelLanes = 3

// modelChecks is how many worlds there are: fewer under the race detector,
// which makes everything several times slower.
func modelChecks() int {
	if raceEnabled {
		return 3
	}
	return 9
}

func modelLane(t *testing.T, lane int) {
	var ips []string
	for i := range modelHosts {
		ips = append(ips, fmt.Sprintf("127.0.%d.%d", lane+1, i+1))
	}
	storagePort := freePorts(t, 2, ips...)
	trackerPort := freePorts(t, 1, "127.0.0.1")
	var counts modelCounts
	rapid.Check(t, func(rt *rapid.T) {
		w := newWorld(t, rt, ips, storagePort, trackerPort)
		rt.Repeat(map[string]func(*rapid.T){
			"put":             w.put,
			"overwrite":       w.overwrite,
			"delete":          w.delete,
			"rename":          w.rename,
			"updateclass":     w.updateClass,
			"read":            w.read,
			"list":            w.list,
			"put in a crash":  w.putInCrash,
			"put on a fault":  w.putOnFault,
			"power cut":       w.powerCut,
			"convert":         w.convert,
			"daemon restart":  w.daemonRestart,
			"tracker restart": w.trackerRestart,
			"settle":          w.settle,
			"corrupt":         w.seldom(w.corrupt),
			"lose":            w.seldom(w.lose),
			"lose too many":   w.seldom(w.loseTooMany),
			"devices wiped":   w.seldom(w.devicesWiped),
			"device dies":     w.seldom(w.deviceDies),
			"device drained":  w.seldom(w.deviceDrained),
			"device returns":  w.seldom(w.deviceReturns),
			"change policy":   w.seldom(w.changePolicy),
		})
		w.settle(rt)
		counts.add(w.counts)
	})
	t.Logf("%d steps: %d files stored, %d deleted, %d power cuts, %d settled states compared, with %d files in shards; %d copies and shards corrupted, %d lost, %d times too many, %d devices wiped, %d dead, %d drained, %d changes of policy",
		counts.steps, counts.stored, counts.deleted, counts.cuts, counts.settled, counts.sharded,
		counts.corrupted, counts.lost, counts.tooMany, counts.wiped, counts.dead, counts.drained, counts.policies)
}

// seldom has a step that takes long done one time in twenty or so, or in five with a
// scale above 1; a file is read, or stored, at other times.
func (w *world) seldom(step func(*rapid.T)) func(*rapid.T) {
	return func(rt *rapid.T) {
		times := 20
		if scale(1) > 1 {
			times = 5
		}
		switch {
		case rapid.SampledFrom(append(make([]bool, times-1), true)).Draw(rt, "now"):
			step(rt)
		case len(w.files) == 0:
			w.put(rt)
		default:
			w.read(rt)
		}
	}
}

type modelCounts struct {
	steps, stored, deleted, cuts, settled, sharded           int
	corrupted, lost, tooMany, wiped, dead, drained, policies int
}

func (c *modelCounts) add(d modelCounts) {
	c.steps += d.steps
	c.stored += d.stored
	c.deleted += d.deleted
	c.cuts += d.cuts
	c.settled += d.settled
	c.sharded += d.sharded
	c.corrupted += d.corrupted
	c.lost += d.lost
	c.tooMany += d.tooMany
	c.wiped += d.wiped
	c.dead += d.dead
	c.drained += d.drained
	c.policies += d.policies
}

// modelClass is a class of the model: how many copies it wants now, and whether
// each on another host.
type modelClass struct {
	class  schema.Class
	copies int
	spread bool
	shards modelShards // zero: it has none
}

// modelHosts is how many storage hosts a world has, each with two devices. One
// device at a time is dead or drained, so that every policy can still be met.
const modelHosts = 3

func modelClasses() map[string]*modelClass {
	return map[string]*modelClass{
		"default":  {class: schema.Class{MinDevCount: 2}, copies: 2, spread: true},
		"single":   {class: schema.Class{MinDevCount: 1}, copies: 1, spread: true},
		"triple":   {class: schema.Class{MinDevCount: 3}, copies: 3, spread: true},
		"summed":   {class: schema.Class{MinDevCount: 2, HashType: protocol.HashMD5}, copies: 2, spread: true},
		"devices":  {class: schema.Class{MinDevCount: 2, ReplPolicy: "MultipleDevices(3)"}, copies: 3},
		"changing": {class: schema.Class{MinDevCount: 2}, copies: 2, spread: true},
		"ec21":     modelShards{2, 1, 0}.class(protocol.HashMD5),
		"ec32":     modelShards{3, 2, 4097}.class(protocol.HashNone),
	}
}

// state is what a key may hold: absent where body is nil.
type state struct {
	class string
	body  []byte
}

// world is the product and the model of it.
type world struct {
	rt     *rapid.T
	dsn    string
	hosts  []*simHost
	addr   string
	port   int // storage port
	cancel context.CancelFunc
	done   chan error
	store  schema.Store
	client *protocol.Client
	counts modelCounts
	// ahead is how far the database's clock has been moved, so that what the
	// workers put off for hours comes due.
	ahead atomic.Int64

	// files holds the states that each key may be in: one where the outcome of
	// everything is known; several after a call whose outcome nobody heard.
	files map[string][]state
	next  int // makes bodies unique

	classes map[string]*modelClass
	names   []string       // of the classes, to choose from
	out     protocol.DevID // the device that is dead or in drain, 0 none
	dead    bool           // it is dead: what it holds does not count
	key     []byte         // of the cluster
	codec   *erasure.Codec
	// encodings are shards of files by the encodings that they have had.
	encodings map[protocol.FID]map[uint64][]byte

	log *logBuffer // of all daemons
}

// logBuffer keeps the end of a log.
type logBuffer struct {
	mu sync.Mutex // guards b
	b  []byte
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.b) > 1<<20 {
		l.b = append(l.b[:0], l.b[len(l.b)-1<<19:]...)
	}
	l.b = append(l.b, p...)
	return len(p), nil
}

func (l *logBuffer) tail(lines int) []byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	return tail(l.b, lines)
}

// simHost is a storage daemon on a simulated disk.
type simHost struct {
	ip     string
	disk   *simdisk.Disk
	cancel context.CancelFunc
	done   chan error
}

func newWorld(t *testing.T, rt *rapid.T, ips []string, storagePort, trackerPort int) *world {
	w := &world{
		rt:    rt,
		dsn:   "sqlite:" + filepath.Join(t.TempDir(), "namespace.db"),
		addr:  net.JoinHostPort("127.0.0.1", strconv.Itoa(trackerPort)),
		port:  storagePort,
		files: map[string][]state{},
		log:   &logBuffer{},

		classes: modelClasses(),
		key:     []byte("thirty-two bytes that nobody else"),
		codec:   erasure.New(erasure.Options{}),

		encodings: map[protocol.FID]map[uint64][]byte{},
	}
	w.names = append(slices.Sorted(maps.Keys(w.classes)), "ec21", "ec32") // these twice as often
	rt.Cleanup(w.close)
	ctx := context.Background()
	if _, err := open.Migrate(ctx, open.Options{DSN: w.dsn}, schema.MigrateOptions{}); err != nil {
		rt.Fatal(err)
	}
	for i, ip := range ips {
		disk := simdisk.New(simdisk.Options{NoUnnamed: i == 1, NoAttrs: i == 2, Ordered: i%2 == 0})
		for j := range 2 {
			if err := disk.MkdirAll(fmt.Sprintf("/mogdata/dev%d", 2*i+j+1)); err != nil {
				rt.Fatal(err)
			}
		}
		h := &simHost{ip: ip, disk: disk}
		w.hosts = append(w.hosts, h)
		w.startHost(h)
	}
	store, err := open.Open(ctx, open.Options{DSN: w.dsn})
	if err != nil {
		rt.Fatal(err)
	}
	w.store = store
	w.must(store.CreateDomain(ctx, domain))
	for name, c := range w.classes {
		c.class.Name = name
		w.must(store.CreateClass(ctx, domain, c.class))
	}
	for i, h := range w.hosts {
		id, err := store.CreateHost(ctx, schema.Host{Name: fmt.Sprintf("host%d", i+1), IP: h.ip, Port: w.port, Status: schema.HostAlive})
		w.must(id, err)
		for j := range 2 {
			w.must(0, store.CreateDevice(ctx, schema.Device{ID: protocol.DevID(2*i + j + 1), HostID: id, Status: schema.DeviceAlive}))
		}
	}
	w.must(0, store.Close())
	w.startTracker()
	return w
}

// must fails the check on an error; the other value is not looked at.
func (w *world) must(_ any, err error) {
	w.rt.Helper()
	if err != nil {
		w.rt.Fatal(err)
	}
}

func (w *world) startHost(h *simHost) {
	o := storaged.Options{
		Docroot:      "/mogdata",
		HTTPListen:   net.JoinHostPort(h.ip, strconv.Itoa(w.port)),
		MgmtListen:   net.JoinHostPort(h.ip, strconv.Itoa(w.port+1)),
		DrainTimeout: time.Millisecond,
		FS:           h.disk,
		ClusterKeys:  [][]byte{w.key},
		Log:          zerolog.New(w.log).With().Str("host", h.ip).Logger(),
	}
	var d *storaged.Daemon
	// Between two lives of a daemon another process may borrow its port.
	w.within(20*time.Second, "storage daemon listens", func() error {
		var err error
		if d, err = storaged.New(o); err != nil && !errors.Is(err, syscall.EADDRINUSE) {
			w.rt.Fatal(err)
		}
		return err
	})
	ctx, cancel := context.WithCancel(context.Background())
	h.cancel, h.done = cancel, make(chan error, 1)
	go func() { h.done <- d.Run(ctx) }()
}

// restart starts a host's daemon on what its disk has become.
func (w *world) restart(h *simHost, disk *simdisk.Disk) {
	h.stop()
	h.disk = disk
	w.startHost(h)
	w.waitWriteable()
}

func (h *simHost) stop() {
	h.cancel()
	<-h.done // it may complain of its disk
	h.cancel = nil
}

func (w *world) startTracker() {
	store, err := open.Open(context.Background(), open.Options{
		DSN:         w.dsn,
		ClockOffset: func() time.Duration { return time.Duration(w.ahead.Load()) },
	})
	if err != nil {
		w.rt.Fatal(err)
	}
	tr, err := tracker.New(tracker.Options{
		Store: store, Listen: []string{w.addr}, Name: "model",
		StorageMgmtPort: w.port + 1,
		ClusterKey:      w.key,
		NodeTimeout:     2 * time.Second,
		TempfileAge:     time.Hour,
		ReapDelay:       time.Second,
		MonitorInterval: 50 * time.Millisecond, RefreshInterval: 200 * time.Millisecond, TestWriteInterval: 100 * time.Millisecond,
		Log: zerolog.New(w.log).With().Timestamp().Logger().Level(zerolog.DebugLevel),
	})
	if err != nil {
		w.rt.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	w.store, w.cancel, w.done = store, cancel, make(chan error, 1)
	go func() { w.done <- tr.Run(ctx) }()
	if w.client, err = protocol.NewClient(protocol.ClientOptions{Trackers: []string{w.addr}}); err != nil {
		w.rt.Fatal(err)
	}
	w.waitWriteable()
}

func (w *world) stopTracker() {
	w.cancel()
	if err := <-w.done; err != nil {
		w.rt.Errorf("tracker: %v", err)
	}
	w.cancel = nil
	w.must(0, w.client.Close())
	w.must(0, w.store.Close())
}

// close stops what runs, also after a step that failed half way.
func (w *world) close() {
	if w.cancel != nil {
		w.cancel()
		<-w.done
		w.client.Close()
		w.store.Close()
	}
	for _, h := range w.hosts {
		if h.cancel != nil {
			h.stop()
		}
	}
}

// within polls, as the workers run by themselves.
func (w *world) within(d time.Duration, what string, check func() error) {
	w.rt.Helper()
	deadline := time.Now().Add(d)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			w.rt.Fatalf("not within %v: %s: %v\n%s\n%s", d, what, err, w.log.tail(150), w.dump())
		}
		<-tick.C
	}
}

// dump shows what the namespace and the disks hold.
func (w *world) dump() string {
	var b strings.Builder
	if w.store == nil { // not opened yet
		return ""
	}
	files, err := w.store.ListFIDs(context.Background(), 0, 1000)
	fmt.Fprintln(&b, "files:", err)
	for _, f := range files {
		d, err := w.store.DebugFile(context.Background(), f.FID)
		fmt.Fprintf(&b, "%q: %+v on %v %+v %v\n", f.Key, f, d.Devices, d.Queues, err)
	}
	for _, h := range w.hosts {
		fmt.Fprintln(&b, h.ip, slices.DeleteFunc(h.disk.Files("/mogdata"), func(path string) bool { return strings.Contains(path, "/test-write/") }))
	}
	return b.String()
}

func callTimeout() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), 30*time.Second)
}

func (w *world) do(command string, fields ...string) (protocol.Args, error) {
	ctx, cancel := callTimeout()
	defer cancel()
	args := protocol.Args{{Name: "domain", Value: domain}}
	for _, f := range fields {
		name, value, _ := strings.Cut(f, "=")
		args.Add(name, value)
	}
	got, err := w.client.Do(ctx, command, args)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		stacks := make([]byte, 1<<20)
		w.rt.Logf("%s: %v; at that time:\n%s", command, err, stacks[:runtime.Stack(stacks, true)])
	}
	return got, err
}

func (w *world) waitWriteable() {
	w.within(30*time.Second, "devices are writeable", func() error {
		if _, err := w.do("clear_cache"); err != nil {
			return err
		}
		fields, err := w.do("get_devices")
		if err != nil {
			return err
		}
		for n := range 2 * len(w.hosts) {
			if w.dead && n+1 == int(w.out) {
				continue
			}
			if s := fields.Get(fmt.Sprintf("dev%d_observed_state", n+1)); s != "writeable" || fields.Get(fmt.Sprintf("dev%d_mb_total", n+1)) == "" {
				return fmt.Errorf("dev%d is %q", n+1, s)
			}
		}
		return nil
	})
}

// A step's choices.

func (w *world) anyKey(rt *rapid.T) string {
	keys := slices.Sorted(maps.Keys(w.files))
	if len(keys) == 0 {
		rt.Skip("no files yet")
	}
	return rapid.SampledFrom(keys).Draw(rt, "key")
}

func newKey(rt *rapid.T) string {
	return rapid.SampledFrom([]string{"a", "a/b", "a b", "ä", "%41", "a&b=c", "0", "B"}).Draw(rt, "name") +
		strconv.Itoa(rapid.IntRange(0, 5).Draw(rt, "number"))
}

func (w *world) newState(rt *rapid.T) state {
	w.next++
	size := rapid.SampledFrom([]int{0, 1, 100, 4095, 4096, 4097, 65536, 65537, 300_000}).Draw(rt, "size")
	body := []byte{}
	if size > 0 {
		// No two bodies are alike, and no two pages of one.
		body = fmt.Appendf(body, "%d:", w.next)
		for n := 0; len(body) < size; n++ {
			body = fmt.Appendf(body, "%d ", n)
		}
	}
	return state{class: rapid.SampledFrom(w.names).Draw(rt, "class"), body: body}
}

func (w *world) rng(rt *rapid.T) *rand.Rand {
	return rand.New(rand.NewPCG(rapid.Uint64().Draw(rt, "chance"), 1))
}

// store stores s under key and notes what may be true afterwards.
func (w *world) storeFile(rt *rapid.T, key string, s state, undisturbed bool) {
	ctx, cancel := callTimeout()
	defer cancel()
	_, err := w.client.Create(ctx, domain, key, protocol.CreateOptions{Class: s.class, Size: int64(len(s.body))}, bytes.NewReader(s.body))
	switch {
	case err == nil:
		w.files[key] = []state{s}
		w.counts.stored++
	case undisturbed:
		rt.Fatalf("put %q: %v", key, err)
	default:
		if len(w.files[key]) == 0 {
			w.files[key] = []state{{}}
		}
		w.files[key] = append(w.files[key], s)
	}
}

// The steps.

func (w *world) put(rt *rapid.T) {
	w.counts.steps++
	w.storeFile(rt, newKey(rt), w.newState(rt), true)
}

func (w *world) overwrite(rt *rapid.T) {
	w.counts.steps++
	w.storeFile(rt, w.anyKey(rt), w.newState(rt), true)
}

func (w *world) delete(rt *rapid.T) {
	w.counts.steps++
	key := w.anyKey(rt)
	w.know(rt, key)
	_, err := w.do("delete", "key="+key)
	if want := w.files[key] == nil; want != errors.Is(err, protocol.ErrUnknownKey) || !want && err != nil {
		rt.Fatalf("delete %q: %v; the model holds %d states", key, err, len(w.files[key]))
	}
	delete(w.files, key)
	w.counts.deleted++
}

func (w *world) rename(rt *rapid.T) {
	w.counts.steps++
	from, to := w.anyKey(rt), newKey(rt)
	w.know(rt, from)
	w.know(rt, to)
	var want error
	switch {
	case w.files[from] == nil:
		want = protocol.ErrUnknownKey
	case from != to && w.files[to] != nil:
		want = protocol.ErrKeyExists
	}
	if _, err := w.do("rename", "from_key="+from, "to_key="+to); !errors.Is(err, want) {
		rt.Fatalf("rename %q to %q: %v, want %v", from, to, err, want)
	}
	if want == nil && from != to {
		w.files[to] = w.files[from]
		delete(w.files, from)
	}
}

func (w *world) updateClass(rt *rapid.T) {
	w.counts.steps++
	key := w.anyKey(rt)
	w.know(rt, key)
	if w.files[key] == nil {
		return
	}
	class := rapid.SampledFrom(w.names).Draw(rt, "class")
	if _, err := w.do("updateclass", "key="+key, "class="+class); err != nil {
		rt.Fatalf("updateclass %q to %s: %v", key, class, err)
	}
	w.files[key][0].class = class
}

// know finds out which of its possible states a key is in.
func (w *world) know(rt *rapid.T, key string) {
	if states := w.files[key]; len(states) > 0 {
		w.compare(rt, key)
	}
}

// compare reads a key and holds it against the states that it may be in, of
// which it leaves one.
func (w *world) compare(rt *rapid.T, key string) {
	states := w.files[key]
	ctx, cancel := callTimeout()
	defer cancel()
	var got []byte
	var class string
	w.within(20*time.Second, fmt.Sprintf("read of %q", key), func() error {
		info, err := w.client.FileInfo(ctx, domain, key)
		if errors.Is(err, protocol.ErrUnknownKey) {
			got = nil
			return nil
		}
		if err != nil {
			return err
		}
		class = info.Class
		r, err := w.client.Open(ctx, domain, key)
		if err != nil {
			return err
		}
		defer r.Close()
		got, err = io.ReadAll(r)
		if got == nil {
			got = []byte{}
		}
		return err
	})
	for _, s := range states {
		if (s.body == nil) == (got == nil) && bytes.Equal(s.body, got) && (got == nil || s.class == class) {
			if got == nil {
				delete(w.files, key)
			} else {
				w.files[key] = []state{s}
				w.readPaths(key)
			}
			return
		}
	}
	rt.Fatalf("%q holds %d bytes (%.20q) of class %s: none of the %d states that it may be in (%.20q, class %s)",
		key, len(got), got, class, len(states), states[0].body, states[0].class)
}

func (w *world) read(rt *rapid.T) {
	w.counts.steps++
	w.compare(rt, w.anyKey(rt))
}

func (w *world) list(rt *rapid.T) {
	w.counts.steps++
	for _, key := range slices.Collect(maps.Keys(w.files)) {
		w.know(rt, key)
	}
	ctx, cancel := callTimeout()
	defer cancel()
	var got []string
	for key, err := range w.client.Keys(ctx, domain, "a") {
		if err != nil {
			rt.Fatal(err)
		}
		got = append(got, key)
	}
	want := slices.DeleteFunc(slices.Sorted(maps.Keys(w.files)), func(k string) bool { return !strings.HasPrefix(k, "a") })
	if !slices.Equal(got, want) {
		rt.Fatalf("list_keys: %q, want %q", got, want)
	}
}

// putInCrash cuts a host's power while a file is being stored.
func (w *world) putInCrash(rt *rapid.T) {
	w.counts.steps++
	key, s := newKey(rt), w.newState(rt)
	h, rng := rapid.SampledFrom(w.hosts).Draw(rt, "host"), w.rng(rt)
	crashed := make(chan *simdisk.Disk)
	go func(d *simdisk.Disk) { crashed <- d.Crash(rng) }(h.disk)
	w.storeFile(rt, key, s, false)
	w.counts.cuts++
	w.restart(h, <-crashed)
}

// putOnFault has the nth operation of a disk fail while a file is being stored.
func (w *world) putOnFault(rt *rapid.T) {
	w.counts.steps++
	key, s := newKey(rt), w.newState(rt)
	h := rapid.SampledFrom(w.hosts).Draw(rt, "host")
	rng := w.rng(rt)
	op := rapid.SampledFrom([]simdisk.Op{simdisk.OpSync, simdisk.OpSettle, simdisk.OpSyncDir, simdisk.OpWrite, simdisk.OpSetAttr, simdisk.OpClose}).Draw(rt, "op")
	heal := h.disk.Inject(simdisk.Fault{
		Ops:   []simdisk.Op{op},
		Skip:  rapid.IntRange(0, 3).Draw(rt, "skip"),
		Times: rapid.IntRange(1, 5).Draw(rt, "times"),
		Err:   rapid.SampledFrom([]error{syscall.EIO, syscall.ENOSPC}).Draw(rt, "error"),
	})
	w.storeFile(rt, key, s, false)
	heal()
	if op == simdisk.OpSyncDir {
		// What the system shows of a directory that it could not write need not
		// be on disk: the device takes no more writes until it is mounted anew.
		w.counts.cuts++
		w.restart(h, h.disk.Crash(rng))
		return
	}
	w.restart(h, h.disk.Restart())
}

// powerCut loses what a host had not flushed.
func (w *world) powerCut(rt *rapid.T) {
	w.counts.steps++
	w.counts.cuts++
	h, rng := rapid.SampledFrom(w.hosts).Draw(rt, "host"), w.rng(rt)
	w.restart(h, h.disk.Crash(rng))
}

// daemonRestart kills a storage daemon on a machine that stays up.
func (w *world) daemonRestart(rt *rapid.T) {
	w.counts.steps++
	h := rapid.SampledFrom(w.hosts).Draw(rt, "host")
	w.restart(h, h.disk.Restart())
}

func (w *world) trackerRestart(*rapid.T) {
	w.counts.steps++
	w.stopTracker()
	w.startTracker()
}

// settle lets the workers finish, and compares all that is on the disks with
// the model.
func (w *world) settle(rt *rapid.T) {
	w.counts.steps++
	for _, key := range slices.Collect(maps.Keys(w.files)) {
		w.know(rt, key)
	}
	w.settled()
}

// settled waits until every file has the copies that its class wants, and the
// disks hold nothing else. It moves the database's clock, so that nothing waits
// for its time.
func (w *world) settled() {
	w.rt.Helper()
	if _, err := w.do("replicate_now"); err != nil {
		w.rt.Fatal(err)
	}
	w.within(time.Minute, "disks hold what the model holds", func() error {
		w.ahead.Add(int64(time.Minute))
		have, err := w.onDisks()
		if err != nil {
			return err
		}
		wanted := 0
		usage := map[string]protocol.ClassUsage{}
		for key, states := range w.files {
			at, err := w.where(key)
			if err != nil {
				return err
			}
			s := states[0]
			stored, err := w.inPlace(at, s, have)
			if err != nil {
				return fmt.Errorf("%q: %w", key, err)
			}
			wanted += len(at.devs)
			u := usage[s.class]
			usage[s.class] = protocol.ClassUsage{Domain: domain, Class: s.class, Files: u.Files + 1, Bytes: u.Bytes + int64(len(s.body)), Stored: u.Stored + stored}
		}
		if len(have) > 0 {
			return fmt.Errorf("%d files beside the %d that are named: %v", len(have), wanted, slices.Sorted(maps.Keys(have)))
		}
		return w.used(usage)
	})
	w.counts.settled++
	for _, states := range w.files {
		if w.classes[states[0].class].encodes(states[0].body) {
			w.counts.sharded++
		}
	}
	w.readAll()
}

// inPlace holds the files that are on disks for one of the model against what its
// class wants, and takes them out of have. It returns their size.
func (w *world) inPlace(at location, s state, have map[string][]byte) (int64, error) {
	class := w.classes[s.class]
	want, spread := class.copies, class.spread
	if class.encodes(s.body) {
		want, spread = class.shards.k+class.shards.m, false
	}
	hosts := map[*simHost]int{}
	for _, dev := range at.devs {
		if dev == w.out {
			return 0, fmt.Errorf("it is on dev%d", dev)
		}
		hosts[w.hostOf(dev)]++
	}
	if len(at.devs) != want || at.devcount != want || spread && len(hosts) != want {
		return 0, fmt.Errorf("class %s has it on %v (devcount %d), want %d", s.class, at.devs, at.devcount, want)
	}
	var stored int64
	if class.encodes(s.body) {
		if err := w.shardsInPlace(at, s, hosts, have); err != nil {
			return 0, err
		}
	} else if at.encoding != nil {
		return 0, fmt.Errorf("class %s has it in shards", s.class)
	}
	for _, dev := range at.devs {
		path := at.path(dev)
		body, ok := have[path]
		if at.encoding == nil && (!ok || !bytes.Equal(body, s.body)) {
			return 0, fmt.Errorf("%s is there: %v, with %d bytes of %d", path, ok, len(body), len(s.body))
		}
		stored += int64(len(body))
		delete(have, path)
	}
	return stored, nil
}

// onDisks are the files of all devices that are not dead, by their path, which
// begins with the name of the device.
func (w *world) onDisks() (map[string][]byte, error) {
	have := map[string][]byte{}
	for _, h := range w.hosts {
		for _, path := range h.disk.Files("/mogdata") {
			if strings.Contains(path, "/test-write/") || strings.Contains(path, "/.mogile/") || strings.HasSuffix(path, "/usage") {
				continue
			}
			path = strings.TrimPrefix(path, "/mogdata/")
			if w.dead && strings.HasPrefix(path, "dev"+w.out.String()+"/") {
				continue
			}
			body, err := h.disk.ReadFile("/mogdata/" + path)
			if err != nil {
				return nil, err
			}
			have[path] = body
		}
	}
	return have, nil
}

// location is where a file is, as the database has it.
type location struct {
	fid      protocol.FID
	devs     []protocol.DevID
	devcount int
	encoding *schema.Encoding // nil: they have copies
}

func (l location) path(dev protocol.DevID) string {
	if l.encoding != nil {
		return l.fid.ShardPath(dev)
	}
	return l.fid.Path(dev)
}

func (w *world) where(key string) (location, error) {
	fields, err := w.do("file_info", "key="+key, "devices=1")
	if err != nil {
		return location{}, err
	}
	l := location{fid: protocol.FID(fields.Number("fid")), devcount: int(fields.Number("devcount"))}
	for dev := range strings.SplitSeq(fields.Get("devids"), ",") {
		n, err := strconv.Atoi(dev)
		if err != nil {
			return location{}, fmt.Errorf("%q is on %q", key, fields.Get("devids"))
		}
		l.devs = append(l.devs, protocol.DevID(n))
	}
	ctx, cancel := callTimeout()
	defer cancel()
	encodings, err := w.store.EncodingsOf(ctx, []protocol.FID{l.fid})
	if e, ok := encodings[l.fid]; ok {
		l.encoding = &e
	}
	return l, err
}

func (w *world) hostOf(dev protocol.DevID) *simHost { return w.hosts[(dev-1)/2] }

// damage does something to copies or shards of a file, to no more than it can do
// without. It returns how many it met, 0 where no file can do without one.
func (w *world) damage(rt *rapid.T, do func(disk *simdisk.Disk, at location, dev protocol.DevID) error) int {
	var able []string
	for _, key := range slices.Sorted(maps.Keys(w.files)) {
		if w.spare(key) > 0 {
			able = append(able, key)
		}
	}
	if len(able) == 0 {
		return 0
	}
	key := rapid.SampledFrom(able).Draw(rt, "damaged")
	at, err := w.where(key)
	w.must(0, err)
	devs := rapid.Permutation(at.devs).Draw(rt, "devices")
	devs = devs[:rapid.IntRange(1, w.spare(key)).Draw(rt, "copies")]
	for _, dev := range devs {
		w.must(0, do(w.hostOf(dev).disk, at, dev))
	}
	if at.encoding != nil || rapid.Bool().Draw(rt, "read") {
		w.readShards(key, at, devs)
	}
	return len(devs)
}

// corrupt changes the content of copies and shards as a bad disk does, and has a
// scrub find and repair them.
func (w *world) corrupt(rt *rapid.T) {
	w.settle(rt)
	w.counts.corrupted += w.damage(rt, func(disk *simdisk.Disk, at location, dev protocol.DevID) error {
		path := "/mogdata/" + at.path(dev)
		body, err := disk.ReadFile(path)
		if err != nil {
			return err
		}
		way := rapid.IntRange(0, 5).Draw(rt, "way")
		switch {
		case len(body) == 0:
			body = []byte("x")
		case at.encoding != nil && way > 3:
			body, err = w.anotherShard(rt, at, dev)
		case way == 0:
			body[rapid.IntRange(0, len(body)-1).Draw(rt, "byte")] ^= 1 << rapid.IntRange(0, 7).Draw(rt, "bit")
		case way == 1:
			body = bytes.Repeat([]byte{'#'}, len(body)) // no body is like this
		case way == 2:
			body = body[:len(body)/2]
		case way == 3:
			body = append(body, body[0])
		default:
			body = nil
		}
		if err != nil {
			return err
		}
		return disk.Rot(path, body)
	})
	w.sweep("scrub")
	w.settled()
}

// lose takes copies and shards away behind the product's back, and has fsck find
// and replace them.
func (w *world) lose(rt *rapid.T) {
	w.settle(rt)
	w.counts.lost += w.damage(rt, func(disk *simdisk.Disk, at location, dev protocol.DevID) error {
		return disk.Lose("/mogdata/" + at.path(dev))
	})
	w.checkAll()
}

// checkAll has fsck look at everything, and waits until all is as it should be.
func (w *world) checkAll() {
	w.rt.Helper()
	if _, err := w.do("fsck_reset"); err != nil {
		w.rt.Fatal(err)
	}
	w.sweep("fsck")
	w.settled()
}

// sweep has all files checked, and waits until that is done.
func (w *world) sweep(kind string) {
	w.rt.Helper()
	if _, err := w.do(kind + "_start"); err != nil {
		w.rt.Fatalf("%s_start: %v", kind, err)
	}
	w.within(time.Minute, kind+" is over", func() error {
		fields, err := w.do("fsck_progress", "sweep="+kind)
		if err == nil && (fields.Get("running") != "0" || fields.Number("claimed_ranges")+fields.Number("queued_files") > 0) {
			err = fmt.Errorf("%v", fields)
		}
		w.ahead.Add(int64(time.Minute)) // what could not be checked waits to be checked again
		return err
	})
}

// trashStrays moves what the database does not know on a device into the
// device's trash.
func (w *world) trashStrays(dev protocol.DevID) {
	w.rt.Helper()
	for after := ""; ; {
		fields, err := w.do("strays", "devid="+dev.String(), "age=0", "delete=1", "after="+after)
		if err != nil {
			w.rt.Fatalf("strays on dev%d: %v", dev, err)
		}
		if after = fields.Get("next"); after == "" {
			return
		}
	}
}

func (w *world) mark(dev protocol.DevID, state string) {
	w.rt.Helper()
	if _, err := w.do("set_state", fmt.Sprintf("host=host%d", (dev-1)/2+1), "device="+dev.String(), "state="+state); err != nil {
		w.rt.Fatalf("mark dev%d %s: %v", dev, state, err)
	}
}

func anyDevice(rt *rapid.T) protocol.DevID {
	return protocol.DevID(rapid.IntRange(1, 2*modelHosts).Draw(rt, "device"))
}

// deviceDies marks a device dead, whose files are copied elsewhere.
func (w *world) deviceDies(rt *rapid.T) {
	if w.out != 0 {
		return
	}
	w.settle(rt)
	dev := anyDevice(rt)
	w.deleteLost(dev)
	w.out, w.dead = dev, true
	w.mark(dev, schema.DeviceDead)
	w.counts.dead++
	w.settled()
}

// deviceDrained empties a device.
func (w *world) deviceDrained(rt *rapid.T) {
	if w.out != 0 {
		return
	}
	w.settle(rt)
	w.out = anyDevice(rt)
	if _, err := w.do("drain_device", "devid="+w.out.String()); err != nil {
		rt.Fatalf("drain dev%d: %v", w.out, err)
	}
	w.counts.drained++
	w.settled()
}

// deviceReturns puts the device that is out back to use: what is left on a dead
// one is thrown away, or moved into the trash as what nobody knows.
func (w *world) deviceReturns(rt *rapid.T) {
	if w.out == 0 {
		return
	}
	w.settle(rt)
	dev, dead := w.out, w.dead
	w.out, w.dead = 0, false
	if dead {
		if rapid.Bool().Draw(rt, "new disk") {
			disk := w.hostOf(dev).disk
			for _, path := range disk.Files(fmt.Sprintf("/mogdata/dev%d", dev)) {
				if isContent(path) {
					w.must(0, disk.Lose(path))
				}
			}
		}
		w.mark(dev, schema.DeviceDown)
		w.mark(dev, schema.DeviceAlive)
	} else if _, err := w.do("drain_cancel", "devid="+dev.String()); err != nil {
		rt.Fatalf("end the drain of dev%d: %v", dev, err)
	}
	w.waitWriteable()
	w.readAll()
	w.trashStrays(dev)
	w.settled()
}

// changePolicy changes how many copies, or which shards, a class wants.
func (w *world) changePolicy(rt *rapid.T) {
	w.settle(rt)
	c := w.classes["changing"]
	policy := "MultipleHosts()"
	c.shards = rapid.SampledFrom([]modelShards{{}, {}, {1, 2, 100}, {2, 1, 4096}, {3, 2, 0}}).Draw(rt, "shards")
	if c.shards.k > 0 {
		c.copies, policy = c.shards.m+1, c.shards.policy()
	} else {
		c.copies = rapid.IntRange(1, modelHosts).Draw(rt, "copies")
	}
	if _, err := w.do("update_class", "class=changing", fmt.Sprintf("mindevcount=%d", c.copies), "replpolicy="+policy); err != nil {
		rt.Fatal(err)
	}
	if _, err := w.do("fsck_reset", "policy_only=1"); err != nil {
		rt.Fatal(err)
	}
	w.sweep("fsck")
	w.counts.policies++
	w.settled()
}
