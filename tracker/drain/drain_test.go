package drain_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"
	"go.uber.org/goleak"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/schema"
	"github.com/mogile/mogile/tracker/cluster"
	"github.com/mogile/mogile/tracker/drain"
	"github.com/mogile/mogile/tracker/placement"
	"github.com/mogile/mogile/tracker/work/worktest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var _ drain.Store = (schema.Store)(nil)

// database is a store in memory, with leases and devices.
type database struct {
	*worktest.Store
	cluster *worktest.Cluster

	mu    sync.Mutex // guards what follows
	owner string
	until time.Time
}

func (d *database) HoldLease(_ context.Context, _, owner string, ttl time.Duration) (bool, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.owner != "" && d.owner != owner && time.Now().Before(d.until) {
		return false, nil
	}
	d.owner, d.until = owner, time.Now().Add(ttl)
	return true, nil
}

func (d *database) ReleaseLease(_ context.Context, _, owner string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.owner == owner {
		d.owner = ""
	}
	return nil
}

func (d *database) holder() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.owner
}

func (d *database) Topology(ctx context.Context) (schema.TopologyRows, error) {
	settings, err := d.Settings(ctx)
	rows := schema.TopologyRows{Settings: settings}
	for _, dev := range d.cluster.Snapshot().DeviceList {
		rows.Devices = append(rows.Devices, dev.Device)
	}
	return rows, err
}

// rig is a namespace and a cluster of 3 hosts with 2 devices each: 1 and 2, 3 and
// 4, 5 and 6.
type rig struct {
	t       *testing.T
	store   *database
	cluster *worktest.Cluster
	disks   *worktest.Disks
	log     *bytes.Buffer
}

func newRig(t *testing.T) *rig {
	c := worktest.NewCluster(3, 2)
	return &rig{t: t, store: &database{Store: worktest.NewStore(), cluster: c}, cluster: c, disks: worktest.NewDisks(), log: new(bytes.Buffer)}
}

func (r *rig) put(from, to int, class schema.ClassID, devs ...protocol.DevID) {
	for fid := from; fid <= to; fid++ {
		r.store.Put(schema.File{FID: protocol.FID(fid), DMID: 1, ClassID: class, Key: fmt.Sprint(fid), Length: 5}, devs...)
		for _, dev := range devs {
			r.disks.Put(dev, protocol.FID(fid), "hello")
		}
	}
}

func (r *rig) status(dev protocol.DevID, status string) {
	r.cluster.Change(dev, func(d *cluster.Device, _ *cluster.Host) { d.Status = status })
}

// begin has a device emptied.
func (r *rig) begin(devs ...protocol.DevID) {
	for _, dev := range devs {
		r.status(dev, schema.DeviceDrain)
		if err := drain.Add(r.t.Context(), r.store, dev); err != nil {
			r.t.Fatal(err)
		}
	}
	r.refresh()
}

// refresh brings the list to the snapshot.
func (r *rig) refresh() { r.cluster.Set(drain.SettingDevices, r.list()) }

func (r *rig) list() string {
	list, _, err := r.store.Setting(r.t.Context(), drain.SettingDevices)
	if err != nil {
		r.t.Fatal(err)
	}
	return list
}

func (r *rig) drainer(name string) *drain.Drainer {
	return drain.New(drain.Options{
		Store: r.store, Cluster: r.cluster, Storage: r.disks, Queues: r.store.QueueLengths, Name: name, MinFreeMB: 100, Log: zerolog.New(r.log),
	})
}

func (r *rig) start(name string) (stop func()) {
	d := r.drainer(name)
	ctx, cancel := context.WithCancel(r.t.Context())
	done := make(chan error, 1)
	go func() { done <- d.Run(ctx) }()
	return sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			r.t.Errorf("Run: %v", err)
		}
	})
}

// moved does what is queued, as the replicate workers would, and returns how many
// moves that were.
func (r *rig) moved(to protocol.DevID) int {
	jobs, err := r.store.Claim(r.t.Context(), schema.QueueRebalance, 1_000_000, time.Hour)
	if err != nil {
		r.t.Fatal(err)
	}
	for _, j := range jobs {
		devs := slices.DeleteFunc(r.store.Locations(j.FID), func(d protocol.DevID) bool { return d == j.DevID })
		if to != 0 {
			r.store.SetLocations(j.FID, append(devs, to)...)
		}
	}
	if _, err := r.store.Finish(r.t.Context(), jobs); err != nil {
		r.t.Fatal(err)
	}
	return len(jobs)
}

// after lets time pass, until nothing moves.
func after(d time.Duration) {
	time.Sleep(d) // in a bubble: fake time
	synctest.Wait()
}

func TestDeviceIsEmptied(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		r.put(1, 1200, 0, 1, 3)
		r.put(1201, 1300, 0, 3, 5)
		defer r.start("a")()
		after(time.Minute)
		if n := r.store.Calls("FilesOn") + r.store.Calls("QueueMoves"); n != 0 {
			t.Fatalf("%d calls, and nothing is to be emptied", n)
		}
		r.begin(1)
		after(2 * time.Second)
		if n := r.moved(2); n != 1200 {
			t.Errorf("%d moves were queued, want 1200", n)
		}
		// An upload that was under way.
		r.put(1301, 1301, 0, 1, 3)
		after(12 * time.Second)
		if n := r.moved(2); n != 1 {
			t.Errorf("%d moves were queued after an upload", n)
		}
		// It is looked at every 10 s as long as it is listed.
		after(time.Minute)
		r.put(1302, 1302, 0, 1, 3)
		after(12 * time.Second)
		if n := r.moved(2); n != 1 {
			t.Errorf("%d moves were queued after a late upload", n)
		}
		r.status(1, schema.DeviceAlive)
		after(2 * time.Second)
		if list := r.list(); list != "" {
			t.Errorf("a device that is alive again is listed: %q", list)
		}
		r.refresh()
		after(time.Second)
		calls := r.store.Calls("FilesOn")
		after(time.Minute)
		if r.store.Calls("FilesOn") != calls {
			t.Error("a device is still looked at")
		}
	})
}

func TestQueueIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		r.put(1, 3000, 0, 1, 3)
		r.put(3001, 6000, 0, 4, 5)
		r.cluster.Set(drain.SettingSize, "1000")
		r.begin(1, 4)
		defer r.start("a")()
		total := 0
		for range 12 {
			after(2 * time.Second)
			queued := r.store.Rows(schema.QueueRebalance)
			if queued > 1500 {
				t.Fatalf("%d moves are queued, want 1000 and a page at most", queued)
			}
			n := r.moved(2)
			total += n
		}
		if total != 6000 {
			t.Errorf("%d moves, want 6000", total)
		}
	})
}

// TestBlockedFiles wants files that cannot be moved not to be queued, the device
// to be looked at more and more rarely, and at once when the cluster has changed.
func TestBlockedFiles(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		for _, dev := range []protocol.DevID{2, 4, 6} {
			r.status(dev, schema.DeviceDown)
		}
		r.put(1, 3, 3, 1, 3, 5)
		r.begin(1)
		defer r.start("a")()
		after(time.Second)
		looks, last := r.store.Calls("FilesOn"), time.Now()
		for i, want := range []time.Duration{10, 20, 40, 80, 160, 320, 600, 600} {
			for r.store.Calls("FilesOn") == looks {
				after(time.Second)
			}
			looks++
			if gap := time.Since(last); gap < want*time.Second-time.Second || gap > want*time.Second+2*time.Second {
				t.Errorf("look %d came after %v, want %d s", i, gap, want)
			}
			last = time.Now()
		}
		if n := r.store.Calls("QueueMoves"); n != 0 {
			t.Errorf("moves were queued %d times that the policy cannot have", n)
		}
		if !strings.Contains(r.log.String(), "files cannot be moved off a device") {
			t.Errorf("the log does not tell: %s", r.log)
		}
		r.status(2, schema.DeviceAlive)
		after(2 * time.Second)
		if n := r.moved(0); n != 3 {
			t.Errorf("%d moves were queued when a device came back, want 3", n)
		}
		after(time.Hour)
		r.moved(0)
		r.cluster.Set(drain.SettingRequests, "2")
		after(2 * time.Second)
		if n := r.moved(2); n != 3 {
			t.Errorf("%d moves were queued when it was asked for again, want 3", n)
		}
	})
}

// TestFailingMoves wants moves that come to nothing to be queued again, more and
// more rarely.
func TestFailingMoves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		r.put(1, 1, 0, 1, 3)
		r.begin(1)
		defer r.start("a")()
		tried := 0
		for range 300 {
			after(time.Second)
			tried += r.moved(0)
		}
		if tried < 4 || tried > 8 {
			t.Errorf("a move that fails was queued %d times in 5 minutes", tried)
		}
	})
}

func TestOneTrackerAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		r.put(1, 700, 0, 1, 3)
		r.begin(1)
		stopA := r.start("a")
		defer stopA()
		after(time.Second)
		defer r.start("b")()
		after(time.Minute)
		if r.store.holder() != "a" {
			t.Fatalf("%q holds the lease", r.store.holder())
		}
		r.moved(2)
		stopA()
		r.put(701, 702, 0, 1, 3)
		after(20 * time.Second)
		if r.store.holder() != "b" || r.moved(2) != 2 {
			t.Errorf("b does not go on; %q holds the lease", r.store.holder())
		}
	})
}

// TestStatusDown wants a device that is down to stay listed, and one that is dead to
// be struck off.
func TestStatusDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		r.put(1, 10, 0, 1, 3)
		r.begin(1)
		r.status(1, schema.DeviceDown)
		defer r.start("a")()
		after(time.Minute)
		if r.list() != "1" || r.store.Rows(schema.QueueRebalance) != 0 {
			t.Errorf("a device that is down: listed %q, %d moves", r.list(), r.store.Rows(schema.QueueRebalance))
		}
		r.status(1, schema.DeviceDrain)
		after(2 * time.Second)
		if n := r.moved(2); n != 10 {
			t.Errorf("%d moves, want 10", n)
		}
		r.status(1, schema.DeviceDead)
		after(2 * time.Second)
		if r.list() != "" {
			t.Error("a dead device is listed")
		}
	})
}

func TestList(t *testing.T) {
	ctx := t.Context()
	store := worktest.NewStore()
	get := func() string {
		v, there, err := store.Setting(ctx, drain.SettingDevices)
		if err != nil || there != (v != "") {
			t.Fatalf("%q %t %v", v, there, err)
		}
		return v
	}
	for _, step := range []struct {
		do   func() error
		want string
	}{
		{func() error { return drain.Add(ctx, store, 7) }, "7"},
		{func() error { return drain.Add(ctx, store, 7) }, "7"},
		{func() error { return drain.Add(ctx, store, 12) }, "7,12"},
		{func() error { return drain.Add(ctx, store, 9) }, "7,9,12"},
		{func() error { return drain.Remove(ctx, store, 7, 8) }, "9,12"},
		{func() error { return drain.Remove(ctx, store, 9, 12) }, ""},
		{func() error { return drain.Remove(ctx, store, 9) }, ""},
	} {
		if err := step.do(); err != nil {
			t.Fatal(err)
		}
		if got := get(); got != step.want {
			t.Errorf("the list is %q, want %q", got, step.want)
		}
	}
	var all sync.WaitGroup
	for dev := protocol.DevID(1); dev <= 8; dev++ {
		all.Go(func() {
			if err := drain.Add(ctx, store, dev); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if got := get(); got != "1,2,3,4,5,6,7,8" {
		t.Errorf("after all at once: %q", got)
	}
	for text, want := range map[string][]protocol.DevID{
		"": nil, "7": {7}, "9, 7,7": {7, 9}, "x,0,-1,7,99999,": {7},
	} {
		if got := drain.Listed(map[string]string{drain.SettingDevices: text}); !slices.Equal(got, want) {
			t.Errorf("%q lists %v, want %v", text, got, want)
		}
	}
}

func TestWhy(t *testing.T) {
	change := func(dev protocol.DevID, f func(*cluster.Device, *cluster.Host)) func(*worktest.Cluster) {
		return func(c *worktest.Cluster) { c.Change(dev, f) }
	}
	away := func(d *cluster.Device, _ *cluster.Host) { d.Observed = cluster.DeviceUnreachable }
	gone := func(c *worktest.Cluster) {
		for _, dev := range []protocol.DevID{2, 4, 6} {
			c.Change(dev, func(d *cluster.Device, _ *cluster.Host) { d.Status = schema.DeviceDead })
		}
	}
	for name, c := range map[string]struct {
		on     []protocol.DevID
		min    int
		policy string
		broken []protocol.DevID
		setup  func(*worktest.Cluster)
		want   drain.Reason
		text   string
	}{
		"can go":                      {on: []protocol.DevID{1, 3}, min: 2, want: drain.Waiting},
		"one copy":                    {on: []protocol.DevID{1}, min: 1, want: drain.Waiting},
		"nothing to read":             {on: []protocol.DevID{1}, min: 1, setup: change(1, away), want: drain.NoCopy},
		"nothing right":               {on: []protocol.DevID{1}, min: 1, broken: []protocol.DevID{1}, want: drain.NoCopy},
		"three hosts, one device":     {on: []protocol.DevID{1, 3, 5}, min: 3, setup: gone, want: drain.NoDevice, text: "MultipleHosts(), mindevcount 3, finds no other device"},
		"a policy's own number":       {on: []protocol.DevID{1, 3, 5}, min: 1, policy: "MultipleDevices(3)", setup: gone, want: drain.NoDevice, text: "MultipleDevices(3)"},
		"the other one is away":       {on: []protocol.DevID{1, 3}, min: 2, setup: change(3, away), want: drain.NotIntact, text: "dev3"},
		"the other one is wrong":      {on: []protocol.DevID{1, 3}, min: 2, broken: []protocol.DevID{3}, want: drain.NotIntact, text: "dev3"},
		"the device cannot be read":   {on: []protocol.DevID{1, 3}, min: 2, setup: change(1, away), want: drain.Waiting},
		"the host only lets read":     {on: []protocol.DevID{1, 3}, min: 2, setup: change(1, func(_ *cluster.Device, h *cluster.Host) { h.Status = schema.HostReadonly }), want: drain.NotDeletable, text: "host1 is readonly"},
		"the host is dead":            {on: []protocol.DevID{1, 3}, min: 2, setup: change(1, func(_ *cluster.Device, h *cluster.Host) { h.Status = schema.HostDead }), want: drain.NotDeletable},
		"copies to spare":             {on: []protocol.DevID{1, 3, 5}, min: 2, setup: gone, want: drain.Waiting},
		"short of copies beforehand":  {on: []protocol.DevID{1}, min: 2, want: drain.Waiting},
		"short, and no device for it": {on: []protocol.DevID{1, 3}, min: 3, setup: gone, want: drain.NoDevice},
	} {
		t.Run(name, func(t *testing.T) {
			wc := worktest.NewCluster(3, 2)
			wc.Change(1, func(d *cluster.Device, _ *cluster.Host) { d.Status = schema.DeviceDrain })
			if c.setup != nil {
				c.setup(wc)
			}
			snap := wc.Snapshot()
			policy, err := placement.ParsePolicy(c.policy)
			if err != nil {
				t.Fatal(err)
			}
			q := placement.Question{Devices: snap.DeviceList, MinDevCount: c.min, MinFreeMB: 100, Rand: rand.New(rand.NewPCG(1, 1))}
			for _, dev := range c.on {
				q.On = append(q.On, placement.Placement{Device: snap.Device(dev), Readable: snap.Device(dev).Readable()})
			}
			got, text := drain.Why(policy, q, snap.Device(1), c.broken)
			if got != c.want || !strings.Contains(text, c.text) {
				t.Errorf("%s: %q, want %s: %q", got, text, c.want, c.text)
			}
		})
	}
}

func TestExamine(t *testing.T) {
	r := newRig(t)
	r.put(1, 7, 3, 1, 3, 5)
	r.put(8, 600, 0, 1, 3)
	r.status(1, schema.DeviceDrain)
	for _, dev := range []protocol.DevID{2, 4, 6} {
		r.status(dev, schema.DeviceDown)
	}
	d := r.drainer("a")
	look := func(sizes bool) drain.Findings {
		t.Helper()
		snap := r.cluster.Snapshot()
		found, err := d.Examine(t.Context(), snap, snap.Device(1), sizes)
		if err != nil {
			t.Fatal(err)
		}
		return found
	}
	found := look(false)
	if found.Looked != 600 || found.Blocked() != 7 || found.Reasons[drain.NoDevice] != 7 || len(found.Examples) != 5 || found.Examples[0].Key != "1" {
		t.Errorf("%+v", found)
	}
	r.status(2, schema.DeviceAlive)
	if found = look(true); found.Blocked() != 0 {
		t.Errorf("with a device more: %+v", found)
	}
	r.disks.Put(3, 2, "four")
	if found = look(true); found.Looked != 600 || found.Blocked() != 1 || found.Examples[0].FID != 2 || found.Examples[0].Reason != drain.NotIntact {
		t.Errorf("with a broken copy: %+v", found)
	}
	r.disks.Put(1, 2, "four")
	r.disks.Put(5, 2, "four")
	if found = look(true); found.Blocked() != 1 || found.Examples[0].FID != 2 || found.Examples[0].Reason != drain.NoCopy {
		t.Errorf("with no copy that is right: %+v", found)
	}
	r.put(601, 601, 99, 1, 3)
	if found = look(false); found.Reasons[drain.Unknown] != 1 {
		t.Errorf("with a class that is gone: %+v", found)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	snap := r.cluster.Snapshot()
	if _, err := d.Examine(ctx, snap, snap.Device(1), true); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// TestShardsLeave wants the shards of a device to be moved where others may have
// them, and says why they stay where none may.
func TestShardsLeave(t *testing.T) {
	const files = 7
	put := func(r *rig) {
		r.cluster.MakeShards()
		for fid := protocol.FID(1); fid <= files; fid++ {
			r.store.PutEncoded(schema.File{FID: fid, DMID: 1, ClassID: 6, Key: fid.String(), Length: 5},
				schema.Encoding{FID: fid, ID: 1, K: 3, M: 2, Block: 4096, Epoch: 1, Devices: []protocol.DevID{1, 2, 3, 4, 5}})
		}
		r.status(1, schema.DeviceDrain)
	}
	for name, c := range map[string]struct {
		setup func(*rig)
		want  drain.Reason
	}{
		"to a device more": {setup: func(*rig) {}, want: drain.Waiting},
		"with a host away": {setup: func(r *rig) {
			r.cluster.Change(3, func(_ *cluster.Device, h *cluster.Host) { h.Observed = cluster.HostUnreachable })
		}, want: drain.Waiting},
		"nowhere": {setup: func(r *rig) { r.status(6, schema.DeviceDown) }, want: drain.NoDevice},
		"unmakable": {setup: func(r *rig) {
			r.status(2, schema.DeviceDown)
			r.status(3, schema.DeviceDown)
			r.status(4, schema.DeviceDown)
		}, want: drain.NoCopy},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t)
				put(r)
				c.setup(r)
				r.begin(1)
				d := r.drainer("a")
				found, err := d.Examine(t.Context(), r.cluster.Snapshot(), r.cluster.Snapshot().Device(1), true)
				if err != nil || found.Looked != files || found.Reasons[c.want] != files {
					t.Errorf("%+v, %v; want %s", found, err, c.want)
				}
				stop := r.start("a")
				time.Sleep(10 * time.Second) // in a bubble: fake time
				synctest.Wait()
				stop()
				want := 0
				if c.want == drain.Waiting {
					want = files
				}
				if got := r.store.Rows(schema.QueueRebalance); got != want {
					t.Errorf("%d moves are queued, want %d", got, want)
				}
			})
		})
	}
}
