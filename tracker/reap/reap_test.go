package reap_test

import (
	"bytes"
	"context"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"
	"go.uber.org/goleak"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/schema"
	"github.com/mogile/mogile/tracker/cluster"
	"github.com/mogile/mogile/tracker/reap"
	"github.com/mogile/mogile/tracker/work/worktest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var _ reap.Store = (schema.Store)(nil)

// database is a store in memory, with leases.
type database struct {
	*worktest.Store

	mu    sync.Mutex // guards what follows
	owner string
	until time.Time
	held  map[string]int // by owner
}

func (d *database) HoldLease(_ context.Context, _, owner string, ttl time.Duration) (bool, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.owner != "" && d.owner != owner && time.Now().Before(d.until) {
		return false, nil
	}
	d.owner, d.until = owner, time.Now().Add(ttl)
	d.held[owner]++
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

// rig is a namespace and a cluster of 2 hosts with 2 devices each.
type rig struct {
	t       *testing.T
	store   *database
	cluster *worktest.Cluster
	log     *bytes.Buffer
}

func newRig(t *testing.T, files int) *rig {
	r := &rig{
		t: t, store: &database{Store: worktest.NewStore(), held: map[string]int{}}, cluster: worktest.NewCluster(2, 2), log: new(bytes.Buffer),
	}
	for fid := range protocol.FID(files) {
		r.store.Put(schema.File{FID: fid + 1, DMID: 1, Key: fmt.Sprint(fid)}, 1, 3)
	}
	r.drop(schema.QueueReplicate)
	return r
}

// drop empties a queue, as its workers would.
func (r *rig) drop(q schema.Queue) int {
	jobs, err := r.store.Claim(r.t.Context(), q, 1_000_000, time.Hour)
	if err != nil {
		r.t.Fatal(err)
	}
	n, err := r.store.Finish(r.t.Context(), jobs)
	if err != nil {
		r.t.Fatal(err)
	}
	return n
}

// mark sets a device's status in the database and in the snapshot.
func (r *rig) mark(dev protocol.DevID, status string) {
	r.store.SetStatus(dev, status)
	r.cluster.Change(dev, func(d *cluster.Device, _ *cluster.Host) { d.Status = status })
}

// start runs a tracker's reaper until the returned function is called.
func (r *rig) start(name string) (stop func()) {
	reaper := reap.New(reap.Options{
		Store: r.store, Cluster: r.cluster, Queues: r.store.QueueLengths, Name: name, Jobs: 1, Log: zerolog.Nop(),
	})
	ctx, cancel := context.WithCancel(r.t.Context())
	done := make(chan error, 1)
	go func() { done <- reaper.Run(ctx) }()
	return sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			r.t.Errorf("Run: %v", err)
		}
	})
}

func (r *rig) left(dev protocol.DevID) int64 {
	n, err := r.store.CountOn(r.t.Context(), []protocol.DevID{dev})
	if err != nil {
		r.t.Fatal(err)
	}
	return n[dev]
}

// after lets time pass, until nothing moves.
func after(d time.Duration) {
	time.Sleep(d) // in a bubble: fake time
	synctest.Wait()
}

func TestDeadDeviceIsEmptied(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 2500)
		stop := r.start("a")
		defer stop()
		after(time.Minute + time.Second)
		if n := r.store.Calls("Reap"); n != 0 {
			t.Fatalf("%d batches, and no device is dead", n)
		}
		r.mark(1, schema.DeviceDead)
		after(16 * time.Second)
		if r.left(1) != 2500 {
			t.Error("the device was not left alone for 16 s")
		}
		after(6 * time.Second)
		if n := r.left(1); n != 0 {
			t.Errorf("%d files are left on the dead device", n)
		}
		if n := r.drop(schema.QueueReplicate); n != 0 { // due a second after
			t.Logf("%d rows are due", n)
		}
		if n := r.left(3); n != 2500 {
			t.Errorf("%d files are left on the other device", n)
		}
		// It is looked at again after a minute, two, four ...
		before := r.store.Calls("Reap")
		for i, d := range []time.Duration{1, 2, 4, 8, 16, 32, 64, 120, 120} {
			after(d * time.Minute)
			after(5 * time.Second)
			if got := r.store.Calls("Reap") - before; got != i+1 {
				t.Errorf("%d looks after rest %d", got, i+1)
			}
		}
		// Files that were recorded on it meanwhile are found.
		r.store.Put(schema.File{FID: 9999, DMID: 1, Key: "late"}, 1)
		after(2*time.Hour + 10*time.Second)
		if n := r.left(1); n != 0 {
			t.Errorf("%d late files are left", n)
		}
	})
}

// TestQueueIsNotFlooded has the reaper wait for the workers.
func TestQueueIsNotFlooded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 25_000)
		stop := r.start("a")
		defer stop()
		r.mark(1, schema.DeviceDead)
		after(30 * time.Second)
		if n := r.store.Rows(schema.QueueReplicate); n != 10_000 {
			t.Errorf("%d rows are queued", n)
		}
		for range 2 {
			r.drop(schema.QueueReplicate)
			after(10 * time.Second)
		}
		if n := r.left(1); n != 0 {
			t.Errorf("%d files are left", n)
		}
	})
}

func TestSettings(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 1000)
		r.cluster.Set(reap.SettingRate, "100")
		r.cluster.Set(reap.SettingSize, "250")
		r.mark(1, schema.DeviceDead)
		stop := r.start("a")
		defer stop()
		after(20 * time.Second)
		taken := 1000 - r.left(1)
		if taken != 100 {
			t.Errorf("the first batch has %d files", taken)
		}
		after(5 * time.Second)
		if taken := 1000 - r.left(1); taken != 200 {
			t.Errorf("%d files in two batches", taken)
		}
		after(time.Minute)
		if taken := 1000 - r.left(1); taken != 250 {
			t.Errorf("%d files taken while the queue may have 250 rows", taken)
		}
		r.drop(schema.QueueReplicate)
		after(time.Minute)
		if taken := 1000 - r.left(1); taken != 500 {
			t.Errorf("%d files taken after the queue was emptied", taken)
		}
	})
}

func TestDeviceThatIsDeadNoMore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 1000)
		r.cluster.Set(reap.SettingRate, "100")
		r.mark(1, schema.DeviceDead)
		stop := r.start("a")
		defer stop()
		after(20 * time.Second)
		r.mark(1, schema.DeviceDown)
		after(time.Minute)
		if n := r.left(1); n != 900 {
			t.Errorf("%d files are left, 900 were when it was marked down", n)
		}
		// The database knows before this tracker does.
		r.mark(2, schema.DeviceDead)
		r.store.SetStatus(2, schema.DeviceDown)
		r.store.Put(schema.File{FID: 9999, DMID: 1, Key: "k"}, 2)
		after(time.Minute)
		if n := r.left(2); n != 1 {
			t.Errorf("%d files are left on a device that is down", n)
		}
		// Dead again, it waits again.
		r.mark(1, schema.DeviceDead)
		after(15 * time.Second)
		if n := r.left(1); n != 900 {
			t.Errorf("%d files are left at once", n)
		}
		after(5 * time.Minute)
		if n := r.left(1); n != 0 {
			t.Errorf("%d files are left", n)
		}
	})
}

// TestAnotherTrackerGoesOn has two trackers, of which one works.
func TestAnotherTrackerGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 1000)
		r.cluster.Set(reap.SettingRate, "100")
		r.mark(1, schema.DeviceDead)
		stopA := r.start("a")
		defer stopA()
		stopB := r.start("b")
		defer stopB()
		after(30 * time.Second)
		if n := r.left(1); n != 700 {
			t.Errorf("%d files are left after three batches", n)
		}
		first := r.store.owner
		map[string]func(){"a": stopA, "b": stopB}[first]()
		after(time.Minute)
		if n := r.left(1); n != 0 {
			t.Errorf("%d files are left", n)
		}
		if len(r.store.held) != 2 {
			t.Errorf("batches by owner: %v", r.store.held)
		}
	})
}

// TestDatabaseGoesAndReturns has the reaper go on after an outage.
func TestDatabaseGoesAndReturns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 10)
		var away sync.Map
		r.store.Before = func(method string) error {
			if _, yes := away.Load("yes"); yes && method == "Reap" {
				return fmt.Errorf("%s: %w", method, schema.ErrUnavailable)
			}
			return nil
		}
		away.Store("yes", true)
		stop := r.start("a")
		defer stop()
		r.mark(1, schema.DeviceDead)
		after(time.Minute)
		away.Clear()
		after(10 * time.Second)
		if n := r.left(1); n != 0 {
			t.Errorf("%d files are left", n)
		}
	})
}
