package rebalance_test

import (
	"context"
	"fmt"
	"slices"
	"strconv"
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
	"github.com/mogile/mogile/tracker/rebalance"
	"github.com/mogile/mogile/tracker/work/worktest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var _ rebalance.Store = (schema.Store)(nil)

// database is a store in memory, with leases, whose devices the trackers see.
type database struct {
	*worktest.Store
	cluster *worktest.Cluster

	mu    sync.Mutex // guards what follows
	owner string
	until time.Time
	names []string
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

func (d *database) Trackers(context.Context) ([]schema.Tracker, error) {
	var rows []schema.Tracker
	for _, name := range d.names {
		rows = append(rows, schema.Tracker{Name: name})
	}
	return rows, nil
}

func (d *database) SetDeviceState(_ context.Context, dev protocol.DevID, status string) error {
	d.cluster.Change(dev, func(d *cluster.Device, _ *cluster.Host) { d.Status = status })
	return nil
}

func (d *database) Topology(ctx context.Context) (schema.TopologyRows, error) {
	settings, err := d.Settings(ctx)
	rows := schema.TopologyRows{Settings: settings, Now: time.Now()}
	for _, dev := range d.cluster.Snapshot().DeviceList {
		rows.Devices = append(rows.Devices, dev.Device)
	}
	return rows, err
}

// Snapshot is the cluster with the settings that the database has.
func (d *database) Snapshot() *cluster.Snapshot {
	snap := *d.cluster.Snapshot()
	snap.Settings, _ = d.Settings(context.Background())
	return &snap
}

// rig is a namespace and a cluster of 2 hosts with 2 devices each.
type rig struct {
	t *testing.T
	*database
}

func newRig(t *testing.T) *rig {
	return &rig{t, &database{Store: worktest.NewStore(), cluster: worktest.NewCluster(2, 2), names: []string{"a", "b"}}}
}

// put has n files of 1 MiB with a copy on each of devs.
func (r *rig) put(n int, class schema.ClassID, devs ...protocol.DevID) {
	before := 0
	for _, dev := range []protocol.DevID{1, 2, 3, 4} {
		m, err := r.CountOn(r.t.Context(), []protocol.DevID{dev})
		if err != nil {
			r.t.Fatal(err)
		}
		before += int(m[dev])
	}
	for i := range n {
		r.Put(schema.File{FID: protocol.FID(before + i + 1), DMID: 1, ClassID: class, Key: fmt.Sprint(before + i), Length: 1 << 20}, devs...)
	}
}

func (r *rig) command(decide func(rebalance.Facts) (schema.SettingsChange, error)) error {
	_, err := rebalance.Change(r.t.Context(), r.database, decide)
	return err
}

func (r *rig) must(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

// begin sets a policy and starts it.
func (r *rig) begin(policy string) {
	r.t.Helper()
	r.must(r.command(func(f rebalance.Facts) (schema.SettingsChange, error) { return f.SetPolicy(policy) }))
	r.goOn()
}

func (r *rig) goOn() {
	r.t.Helper()
	r.must(r.command(func(f rebalance.Facts) (schema.SettingsChange, error) {
		return f.Start("a", r.Snapshot(), func(spread float64) (rebalance.Quotas, error) {
			bytes, err := r.BytesOn(r.t.Context(), []protocol.DevID{1, 2, 3, 4})
			return rebalance.Level(rebalance.Fills(r.Snapshot().DeviceList, bytes, 100), spread), err
		})
	}))
}

// start runs a tracker's balancer until the returned function is called.
func (r *rig) start(name string) (stop func()) {
	b := rebalance.New(rebalance.Options{
		Store: r.database, Cluster: r.database, Queues: r.QueueLengths, Name: name, MinFreeMB: 100, Log: zerolog.Nop(),
	})
	ctx, cancel := context.WithCancel(r.t.Context())
	done := make(chan error, 1)
	go func() { done <- b.Run(ctx) }()
	return sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			r.t.Errorf("Run: %v", err)
		}
	})
}

func (r *rig) state() rebalance.State {
	settings, err := r.Settings(r.t.Context())
	r.must(err)
	s, err := rebalance.ParseState(settings[rebalance.SettingState])
	r.must(err)
	return s
}

func (r *rig) running() bool {
	settings, err := r.Settings(r.t.Context())
	r.must(err)
	return settings[rebalance.SettingHost] != ""
}

func (r *rig) status(dev protocol.DevID) string { return r.cluster.Snapshot().Device(dev).Status }

func (r *rig) moves() int { return r.Rows(schema.QueueRebalance) }

// after lets time pass, until nothing moves.
func after(d time.Duration) {
	time.Sleep(d) // in a bubble: fake time
	synctest.Wait()
}

func TestRun(t *testing.T) {
	for _, c := range []struct {
		policy string
		moves  int    // of 1,200 files of 1 MiB on device 1, and as many on 2
		status string // of device 1 afterwards
		was    string // of device 1 before
	}{
		{policy: "from_devices=1", moves: 1200, status: schema.DeviceAlive},
		{policy: "from_devices=1", was: schema.DeviceDrain, moves: 1200, status: schema.DeviceDrain},
		{policy: "from_devices=1 leave_in_drain_mode=1", moves: 1200, status: schema.DeviceDrain},
		{policy: "from_devices=1 limit_by=count limit=700 fid_age=new", moves: 700, status: schema.DeviceAlive},
		{policy: "from_hosts=1 limit_by=count limit=700", moves: 1400, status: schema.DeviceAlive},
		{policy: "from_hosts=1 limit_type=global limit_by=count limit=1300", moves: 1300, status: schema.DeviceAlive},
		{policy: "from_hosts=1 limit_type=global limit_by=size limit=1000m", moves: 1000, status: schema.DeviceAlive},
		{policy: "from_devices=1 limit_by=size limit=99m use_dest_devs=1", moves: 99, status: schema.DeviceAlive},
		{policy: "from_devices=1 limit_by=size limit=1048575", moves: 0, status: schema.DeviceAlive},
		{policy: "from_devices=1 limit_by=none limit=5", moves: 1200, status: schema.DeviceAlive},
	} {
		t.Run(c.policy+c.was, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t)
				r.put(1200, 1, 1)
				r.put(1200, 1, 2)
				if c.was != "" {
					r.must(r.SetDeviceState(t.Context(), 1, c.was))
				}
				r.begin(c.policy)
				defer r.start("a")()
				after(1500 * time.Millisecond)
				if r.status(1) != schema.DeviceDrain {
					t.Errorf("the source is %s during the work", r.status(1))
				}
				after(time.Minute)
				if s := r.state(); r.running() || s.Finished == 0 || s.Queued != int64(c.moves) || s.Bytes != int64(c.moves)<<20 || s.Current != 0 {
					t.Errorf("state: %s", s)
				}
				if r.moves() != c.moves || r.status(1) != c.status {
					t.Errorf("%d moves, dev1 is %s", r.moves(), r.status(1))
				}
				if strings.Contains(c.policy, "fid_age=new") && (r.Row(worktest.Key{Queue: schema.QueueRebalance, FID: 1200}) == nil || r.Row(worktest.Key{Queue: schema.QueueRebalance, FID: 500}) != nil) {
					t.Error("it did not begin with the newest files")
				}
			})
		})
	}
}

func TestQueueBounds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		r.put(1000, 1, 1)
		rate, size := "100", "250"
		r.must(r.SetSetting(t.Context(), rebalance.SettingRate, &rate))
		r.must(r.SetSetting(t.Context(), rebalance.SettingSize, &size))
		r.begin("from_devices=1")
		defer r.start("a")()
		after(time.Minute)
		if r.moves() != 300 {
			t.Errorf("%d moves are queued", r.moves())
		}
	})
}

func TestStopAndGoOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		r.put(2000, 1, 1)
		r.begin("from_devices=1")
		stop := r.start("a")
		after(2500 * time.Millisecond)
		r.must(r.command(rebalance.Facts.Stop))
		after(3 * time.Second)
		s := r.state()
		if r.running() || s.Stopped == 0 || s.Current != 1 || s.Queued == 0 || s.Queued == 2000 || r.status(1) != schema.DeviceAlive {
			t.Fatalf("after stop: dev1 is %s, %s", r.status(1), s)
		}
		if err := r.command(rebalance.Facts.Stop); err == nil || err.(*protocol.Error).Code != "rebal_not_started" {
			t.Errorf("second stop: %v", err)
		}
		stop()
		r.goOn()
		defer r.start("b")() // another tracker of ours
		after(time.Minute)
		if s := r.state(); s.Queued != 2000 || r.moves() != 2000 || r.running() || r.status(1) != schema.DeviceAlive {
			t.Errorf("after all: %d moves, dev1 is %s, %s", r.moves(), r.status(1), s)
		}
	})
}

// TestTwoTrackers has one of them vanish with its lease.
func TestTwoTrackers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		r.put(5000, 1, 1)
		r.begin("from_devices=1")
		r.mu.Lock()
		r.owner, r.until = "killed", time.Now().Add(20*time.Second)
		r.mu.Unlock()
		defer r.start("a")()
		defer r.start("b")()
		after(19 * time.Second)
		if r.moves() != 0 {
			t.Error("moves were queued without the lease")
		}
		after(2 * time.Minute)
		if s := r.state(); s.Queued != 5000 || r.moves() != 5000 || r.running() {
			t.Errorf("%d moves, %s", r.moves(), s)
		}
	})
}

func TestForeignRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		r.put(10, 1, 1)
		r.begin("from_devices=1")
		perl := "perl.example.org"
		r.must(r.SetSetting(t.Context(), rebalance.SettingHost, &perl))
		defer r.start("a")()
		after(time.Minute)
		if r.moves() != 0 || r.status(1) != schema.DeviceAlive {
			t.Errorf("%d moves of a run that is not ours, dev1 is %s", r.moves(), r.status(1))
		}
	})
}

func TestNoDestination(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		r.put(10, 1, 1)
		r.begin("from_devices=1 to_devices=3")
		r.must(r.SetDeviceState(t.Context(), 3, schema.DeviceDown))
		defer r.start("a")()
		after(time.Minute)
		if r.moves() != 0 || !r.running() {
			t.Errorf("%d moves, running %t", r.moves(), r.running())
		}
		r.must(r.SetDeviceState(t.Context(), 3, schema.DeviceAlive))
		after(time.Minute)
		if r.moves() != 10 || r.running() {
			t.Errorf("%d moves, running %t", r.moves(), r.running())
		}
		if row := r.Row(worktest.Key{Queue: schema.QueueRebalance, FID: 1}); row == nil || row.Arg != "3" {
			t.Errorf("row is %+v", row)
		}
	})
}

// TestSourceIsLost has the source die amid the work.
func TestSourceIsLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		r.put(5000, 1, 1)
		r.begin("from_devices=1")
		defer r.start("a")()
		after(3 * time.Second)
		r.must(r.SetDeviceState(t.Context(), 1, schema.DeviceDead))
		after(10 * time.Second)
		if r.running() || r.status(1) != schema.DeviceDead {
			t.Errorf("running %t, dev1 is %s", r.running(), r.status(1))
		}
	})
}

// TestHostOfTheSourceIsAway has a run wait for it, rather than be done with a
// device that is full of files.
func TestHostOfTheSourceIsAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		r.put(10, 1, 1)
		r.begin("from_devices=1")
		r.cluster.Change(1, func(_ *cluster.Device, h *cluster.Host) { h.Status = schema.HostReadonly })
		defer r.start("a")()
		after(time.Minute)
		if r.moves() != 0 || !r.running() {
			t.Errorf("%d moves, running %t", r.moves(), r.running())
		}
		r.cluster.Change(1, func(_ *cluster.Device, h *cluster.Host) { h.Status = schema.HostAlive })
		after(time.Minute)
		if r.moves() != 10 || r.running() {
			t.Errorf("%d moves, running %t", r.moves(), r.running())
		}
	})
}

// TestUnreadableState has a run stopped whose state makes no sense.
func TestUnreadableState(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		r.put(10, 1, 1)
		r.begin("from_devices=1")
		junk := "sdev_current=x"
		r.must(r.SetSetting(t.Context(), rebalance.SettingState, &junk))
		defer r.start("a")()
		after(time.Minute)
		if r.moves() != 0 || !r.running() {
			t.Errorf("%d moves, running %t", r.moves(), r.running())
		}
		r.must(r.command(rebalance.Facts.Stop))
		after(10 * time.Second)
		if state, _, err := r.Setting(t.Context(), rebalance.SettingState); err != nil || r.running() || state != junk {
			t.Errorf("running %t, state %q, %v", r.running(), state, err)
		}
	})
}

// TestDestinationsWithoutTheFile has no file sent where it is.
func TestDestinationsWithoutTheFile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		r.put(20, 1, 1, 3)
		r.begin("from_devices=1 to_devices=3,4 use_dest_devs=1")
		defer r.start("a")()
		after(time.Minute)
		for fid := range protocol.FID(20) {
			if row := r.Row(worktest.Key{Queue: schema.QueueRebalance, FID: fid + 1}); row == nil || row.Arg != "4" {
				t.Fatalf("row of fid %d is %+v", fid+1, row)
			}
		}
	})
}

// TestLevelRun has files of two copies on host 1 and 2's first devices: they go
// to the second of the same host, or else both copies would be on one.
func TestLevelRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		r.put(2000, 0, 1, 3)
		r.begin("level_spread=5")
		defer r.start("a")()
		moved := map[string]int{}
		for i := 0; i < 100 && (r.running() || r.moves() > 0); i++ { // as replicate workers do
			after(time.Second)
			jobs, err := r.Claim(t.Context(), schema.QueueRebalance, 1000, time.Hour)
			r.must(err)
			for _, j := range jobs {
				to, err := strconv.Atoi(j.Arg)
				r.must(err)
				on := slices.DeleteFunc(r.Locations(j.FID), func(d protocol.DevID) bool { return d == j.DevID })
				r.SetLocations(j.FID, append(on, protocol.DevID(to))...)
				moved[fmt.Sprintf("%d>%d", j.DevID, to)]++
			}
			_, err = r.Finish(t.Context(), jobs)
			r.must(err)
		}
		bytes, err := r.BytesOn(t.Context(), []protocol.DevID{1, 2, 3, 4})
		r.must(err)
		if s := rebalance.Spread(rebalance.Fills(r.Snapshot().DeviceList, bytes, 100)); s > 5 || r.running() {
			t.Errorf("the spread is %f, running %t: %v", s, r.running(), bytes)
		}
		if len(moved) != 2 || moved["1>2"] == 0 || moved["3>4"] == 0 {
			t.Errorf("moves are %v", moved)
		}
	})
}

func TestRefusals(t *testing.T) {
	r := newRig(t)
	code := func(err error) string {
		if e, ok := err.(*protocol.Error); ok {
			return e.Code
		}
		return fmt.Sprint(err)
	}
	start := func(f rebalance.Facts) (schema.SettingsChange, error) { return f.Start("a", r.Snapshot(), nil) }
	set := func(f rebalance.Facts) (schema.SettingsChange, error) { return f.SetPolicy("from_hosts=1") }
	expect := func(what string, err error, want string) {
		t.Helper()
		if code(err) != want {
			t.Errorf("%s: %v, want %s", what, err, want)
		}
	}
	expect("start without a policy", r.command(start), "no_rebal_policy")
	expect("set", r.command(set), "<nil>")
	host := "x"
	r.must(r.SetSetting(t.Context(), "fsck_host", &host))
	expect("start beside fsck", r.command(start), "fsck_running")
	r.must(r.SetSetting(t.Context(), "fsck_host", nil))
	expect("stop before start", r.command(rebalance.Facts.Stop), "rebal_not_started")
	expect("start", r.command(start), "<nil>")
	expect("start again", r.command(start), "rebal_running")
	expect("set while running", r.command(set), "no_set_rebal")
	expect("reset while running", r.command(rebalance.Facts.Reset), "rebal_running")
	expect("stop", r.command(rebalance.Facts.Stop), "<nil>")
}

// TestLevelShards moves shards, each to the device that has none of its file's,
// and counts the bytes of a shard.
func TestLevelShards(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		r.cluster.MakeShards()
		for fid := protocol.FID(1); fid <= 2000; fid++ {
			r.PutEncoded(schema.File{FID: fid, DMID: 1, ClassID: 6, Key: fid.String(), Length: 1 << 20},
				schema.Encoding{FID: fid, ID: 1, K: 2, M: 2, Block: 4096, Epoch: 1, Devices: []protocol.DevID{1, 2, 3}})
		}
		r.begin("level_spread=5")
		defer r.start("a")()
		after(time.Second)
		jobs, err := r.Claim(t.Context(), schema.QueueRebalance, 10_000, time.Hour)
		r.must(err)
		for _, j := range jobs {
			if j.Arg != "4" {
				t.Fatalf("fid %d moves from dev%d to %q, which has a shard", j.FID, j.DevID, j.Arg)
			}
		}
		if s := r.state(); len(jobs) == 0 || s.Queued != int64(len(jobs)) || s.Bytes != s.Queued<<19 {
			t.Errorf("%d moves, counted %d of %d bytes", len(jobs), s.Queued, s.Bytes)
		}
	})
}
