package deleter_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
	"go.uber.org/goleak"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/schema"
	"github.com/mogile/mogile/tracker/cluster"
	deleter "github.com/mogile/mogile/tracker/delete"
	"github.com/mogile/mogile/tracker/storage"
	"github.com/mogile/mogile/tracker/work"
	"github.com/mogile/mogile/tracker/work/worktest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// rig is a tracker's deletion on devices and a namespace in memory.
type rig struct {
	t       *testing.T
	store   *worktest.Store
	disks   *worktest.Disks
	cluster *worktest.Cluster
	log     *syncBuffer
	metrics *prometheus.Registry
	options deleter.Options
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func newRig(t *testing.T, hosts, devices int) *rig {
	r := &rig{
		t: t, store: worktest.NewStore(), disks: worktest.NewDisks(), cluster: worktest.NewCluster(hosts, devices),
		log: new(syncBuffer), metrics: prometheus.NewRegistry(),
	}
	r.options = deleter.Options{
		Store: r.store, Cluster: r.cluster, Storage: r.disks, Fids: work.NewFIDLocks(r.store), Jobs: 1,
		Rand: rand.New(rand.NewPCG(1, 1)), Metrics: r.metrics, Log: zerolog.New(r.log).Level(zerolog.InfoLevel),
	}
	return r
}

// start runs the worker until the test ends or the returned function is called.
func (r *rig) start() (stop func()) {
	r.t.Helper()
	w := deleter.New(r.options)
	ctx, cancel := context.WithCancel(r.t.Context())
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }()
	return sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			r.t.Errorf("Run: %v", err)
		}
	})
}

// after runs the worker for some time.
func (r *rig) after(d time.Duration) {
	r.t.Helper()
	stop := r.start()
	work.Pause(r.t.Context(), d)
	stop()
}

func file(fid protocol.FID) worktest.Key {
	return worktest.Key{Queue: schema.QueueDelete, FID: fid}
}

func single(fid protocol.FID, dev protocol.DevID) worktest.Key {
	return worktest.Key{Queue: schema.QueueCopyDelete, FID: fid, DevID: dev}
}

// put stores a file that a client then deletes.
func (r *rig) put(fid protocol.FID, devs ...protocol.DevID) {
	for _, d := range devs {
		r.disks.Put(d, fid, "x")
	}
	r.store.Put(schema.File{FID: fid, DMID: 1, Length: 1}, devs...)
	r.store.Delete(fid)
}

func (r *rig) count(name, label string) float64 {
	r.t.Helper()
	families, err := r.metrics.Gather()
	if err != nil {
		r.t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.GetMetric() {
			if labels := m.GetLabel(); len(labels) == 0 && label == "" || len(labels) == 1 && labels[0].GetValue() == label {
				return m.GetCounter().GetValue()
			}
		}
	}
	return 0
}

// TestDeletedFilesVanish deletes a thousand files with two trackers, each copy
// once.
func TestDeletedFilesVanish(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 3, 2)
		const files = 1000
		copies := 0
		for fid := protocol.FID(1); fid <= files; fid++ {
			devs := []protocol.DevID{1, 3, 5}[:fid%3+1]
			copies += len(devs)
			r.put(fid, devs...)
		}
		if err := r.store.SetChecksum(t.Context(), 1, protocol.Checksum{}); !errors.Is(err, schema.ErrGone) {
			t.Fatal(err)
		}
		other := *r
		other.options.Fids = work.NewFIDLocks(r.store)
		other.options.Metrics = nil
		other.options.Rand = rand.New(rand.NewPCG(2, 2))
		stop := other.start()
		r.after(5 * time.Second)
		stop()
		if n := r.store.Rows(schema.QueueDelete) + r.store.Rows(schema.QueueCopyDelete); n != 0 {
			t.Errorf("%d rows left", n)
		}
		for fid := protocol.FID(1); fid <= files; fid++ {
			if on, recorded := r.disks.On(fid), r.store.Locations(fid); len(on)+len(recorded) != 0 {
				t.Fatalf("fid %d lies on %v and is recorded on %v", fid, on, recorded)
			}
		}
		if _, deletes := r.disks.Counts(); deletes != copies {
			t.Errorf("%d deletions of %d copies", deletes, copies)
		}
		if r.store.Locked() != 0 || r.log.String() != "" {
			t.Errorf("%d locks left; log:\n%s", r.store.Locked(), r.log)
		}
	})
}

// TestDevices is the table of MogileFS 2.73's delete worker.
func TestDevices(t *testing.T) {
	const minute, hour = time.Minute, time.Hour
	state := func(device, host string) func(r *rig) {
		return func(r *rig) {
			r.cluster.Change(1, func(d *cluster.Device, h *cluster.Host) { d.Status, h.Status = device, host })
		}
	}
	observed := func(s cluster.DeviceState) func(r *rig) {
		return func(r *rig) { r.cluster.Change(1, func(d *cluster.Device, _ *cluster.Host) { d.Observed = s }) }
	}
	answer := func(err error) func(r *rig) {
		return func(r *rig) {
			r.disks.OnDelete = func(context.Context, protocol.DevID, protocol.FID) error { return err }
		}
	}
	for _, c := range []struct {
		name      string
		setup     func(r *rig)
		failcount int
		delay     time.Duration // 0: done
		left      bool          // the bytes are still there
		result    string
	}{
		{"deleted", func(*rig) {}, 0, 0, false, "deleted"},
		{"404 counts as deleted", answer(&storage.StatusError{Status: 404}), 0, 0, true, "missing"},
		{"no device row", func(r *rig) { r.cluster.Remove(1) }, 1, 0, true, "forgotten"},
		{"no device row yet", func(r *rig) { r.cluster.Remove(1) }, 0, 10 * minute, true, "deferred"},
		{"dead device", state(schema.DeviceDead, schema.HostAlive), 0, 0, true, "forgotten"},
		{"drain", state(schema.DeviceDrain, schema.HostAlive), 0, 0, false, "deleted"},
		{"not observed writeable", observed(cluster.DeviceReadable), 0, 10 * minute, true, "deferred"},
		{"unreachable, later", observed(cluster.DeviceUnreachable), 5, 15 * minute, true, "deferred"},
		{"readonly device", state(schema.DeviceReadonly, schema.HostAlive), 0, hour, true, "deferred"},
		{"readonly device, later", state(schema.DeviceReadonly, schema.HostAlive), 2, 3 * hour, true, "deferred"},
		{"down device", state(schema.DeviceDown, schema.HostAlive), 0, hour, true, "deferred"},
		{"readonly host", state(schema.DeviceAlive, schema.HostReadonly), 0, hour, true, "deferred"},
		{"dead host", state(schema.DeviceAlive, schema.HostDead), 0, hour, true, "deferred"},
		{"refused", answer(&storage.StatusError{Status: 403}), 0, 30 * minute, true, "failed"},
		{"server error, later", answer(&storage.StatusError{Status: 500}), 3, 2 * hour, true, "failed"},
		{"unreachable", answer(storage.ErrUnreachable), 0, 30 * minute, true, "failed"},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, 2, 1)
				r.put(1, 1, 2) // the copy on dev2 goes in any case
				r.store.SetRow(file(1), worktest.Row{FailCount: c.failcount})
				inner := r.disks
				c.setup(r)
				if f := inner.OnDelete; f != nil {
					inner.OnDelete = func(ctx context.Context, dev protocol.DevID, fid protocol.FID) error {
						if dev == 2 {
							return nil
						}
						return f(ctx, dev, fid)
					}
				}
				began := time.Now()
				r.after(500 * time.Millisecond)
				row := r.store.Row(file(1))
				if c.delay == 0 {
					if row != nil || len(r.store.Locations(1)) != 0 {
						t.Errorf("row %+v, locations %v, want none", row, r.store.Locations(1))
					}
				} else {
					if row == nil || row.FailCount != c.failcount+1 || !slices.Equal(r.store.Locations(1), []protocol.DevID{1}) {
						t.Fatalf("row %+v, locations %v", row, r.store.Locations(1))
					}
					if got := time.Unix(row.NextTry, 0).Sub(began.Truncate(time.Second)); got != c.delay {
						t.Errorf("next try after %v, want %v", got, c.delay)
					}
				}
				if left := slices.Contains(r.disks.On(1), 1); left != c.left {
					t.Errorf("bytes left: %v", r.disks.On(1))
				}
				if n := r.count("mogile_delete_copies_total", c.result); n < 1 {
					t.Errorf("not counted as %s", c.result)
				}
			})
		})
	}
}

func TestDeletionForgetsChecksumAndTempfile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 1, 1)
		r.store.Put(schema.File{FID: 1, DMID: 1, Length: 1}, 1)
		r.disks.Put(1, 1, "x")
		if err := r.store.SetChecksum(t.Context(), 1, protocol.Checksum{Type: protocol.HashMD5, Sum: make([]byte, 16)}); err != nil {
			t.Fatal(err)
		}
		r.store.Delete(1)
		r.after(time.Second)
		if sum, err := r.store.Checksum(t.Context(), 1); err != nil || !sum.IsZero() {
			t.Errorf("checksum %v is left (%v)", sum, err)
		}
	})
}

func TestLockedFIDWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 1, 1)
		r.put(1, 1)
		r.put(2, 1)
		r.store.SetRow(single(1, 1), worktest.Row{})
		held, err := work.NewFIDLocks(r.store).TryLock(t.Context(), 1) // a copy of another tracker
		if err != nil {
			t.Fatal(err)
		}
		defer r.start()()
		work.Pause(t.Context(), 20*time.Second)
		if row := r.store.Row(file(1)); row == nil || row.FailCount != 0 || len(r.disks.On(1)) != 1 {
			t.Fatalf("row %+v, on %v: deleted without the lock", row, r.disks.On(1))
		}
		if len(r.disks.On(2)) != 0 {
			t.Error("another fid was held up")
		}
		if err := held.Release(t.Context()); err != nil {
			t.Fatal(err)
		}
		work.Pause(t.Context(), 4*time.Second)
		if r.store.Row(file(1)) != nil || len(r.disks.On(1)) != 0 {
			t.Error("not deleted once the lock was free")
		}
	})
}

// TestFileWithAKeyStays has a row in the queue for a file that is there: its
// bytes are never touched.
func TestFileWithAKeyStays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 2, 1)
		r.disks.Put(1, 1, "x")
		r.store.Put(schema.File{FID: 1, DMID: 1, Length: 1}, 1)
		r.store.SetRow(file(1), worktest.Row{})
		r.after(2 * time.Second)
		if len(r.disks.On(1)) != 1 || len(r.store.Locations(1)) != 1 || r.store.Row(file(1)) != nil {
			t.Errorf("on %v, recorded on %v, row %+v", r.disks.On(1), r.store.Locations(1), r.store.Row(file(1)))
		}
		if !strings.Contains(r.log.String(), "it stays") {
			t.Errorf("log: %s", r.log)
		}
	})
}

func TestCopiesAreDeleted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 3, 1)
		for fid := protocol.FID(1); fid <= 200; fid++ {
			for dev := protocol.DevID(1); dev <= 3; dev++ {
				r.disks.Put(dev, fid, "x")
			}
			r.store.Put(schema.File{FID: fid, DMID: 1, Length: 1}, 1, 2)
			r.store.SetRow(single(fid, 3), worktest.Row{})
			r.store.SetRow(single(fid, 2), worktest.Row{}) // which is recorded again: it must stay
		}
		r.store.SetRow(single(300, 9), worktest.Row{FailCount: 1}) // an unknown device
		r.after(3 * time.Second)
		for fid := protocol.FID(1); fid <= 200; fid++ {
			if on := r.disks.On(fid); !slices.Equal(on, []protocol.DevID{1, 2}) {
				t.Fatalf("fid %d lies on %v", fid, on)
			}
		}
		if n := r.store.Rows(schema.QueueCopyDelete); n != 0 {
			t.Errorf("%d rows left", n)
		}
		for result, want := range map[string]float64{"deleted": 200, "wanted": 200, "forgotten": 1} {
			if got := r.count("mogile_delete_copies_total", result); got != want {
				t.Errorf("%v %s, want %v", got, result, want)
			}
		}
	})
}

// TestHangingDeviceHoldsUpNoOther has one device that answers nothing; the
// copies on the others go at once.
func TestHangingDeviceHoldsUpNoOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 3, 1)
		var hung atomic.Int32
		r.disks.OnDelete = func(ctx context.Context, dev protocol.DevID, _ protocol.FID) error {
			if dev != 2 {
				return nil
			}
			hung.Add(1)
			work.Pause(ctx, 2*time.Second) // the client's time-out
			return storage.ErrUnreachable
		}
		for fid := protocol.FID(1); fid <= 600; fid++ {
			dev := protocol.DevID(fid%3 + 1)
			r.disks.Put(dev, fid, "x")
			r.store.SetRow(single(fid, dev), worktest.Row{})
			r.store.Put(schema.File{FID: fid, DMID: 1, Length: 1})
		}
		stop := r.start()
		left := func() int {
			n := 0
			for fid := protocol.FID(1); fid <= 600; fid++ {
				if fid%3 != 1 && len(r.disks.On(fid)) > 0 {
					n++
				}
			}
			return n
		}
		work.Pause(t.Context(), 30*time.Second)
		if n := left(); n != 0 {
			t.Errorf("%d copies on well devices are left", n)
		}
		if n := hung.Load(); n > 200 {
			t.Errorf("%d requests to the device that hangs", n)
		}
		r.cluster.Change(2, func(d *cluster.Device, _ *cluster.Host) { d.Observed = cluster.DeviceUnreachable }) // the monitor sees it
		before := hung.Load()
		work.Pause(t.Context(), 10*time.Minute)
		if n := hung.Load() - before; n > 8 {
			t.Errorf("%d requests to a device that is known to be away", n)
		}
		stop()
		r.disks.OnDelete = nil
		r.cluster.Change(2, func(d *cluster.Device, _ *cluster.Host) { d.Observed = cluster.DeviceWriteable })
		r.options.Metrics = nil
		r.after(15 * time.Minute)
		if n := r.store.Rows(schema.QueueCopyDelete); n != 0 {
			t.Errorf("%d rows left after the device is back", n)
		}
	})
}

func TestAbandonedUploads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 3, 1)
		r.options.TempfileAge = time.Hour
		r.store.Open(1, 2*time.Hour, 1, 2, 3) // put to dev2, never closed
		r.disks.Put(2, 1, "x")
		r.store.Open(2, time.Minute, 1) // young
		r.disks.Put(1, 2, "x")
		r.store.Put(schema.File{FID: 3, DMID: 1, Length: 1}, 1) // closed, its tempfile row left behind
		r.store.Open(3, 2*time.Hour, 1)
		r.disks.Put(1, 3, "x")
		r.after(20 * time.Second)
		if on := r.disks.On(1); len(on) != 0 || len(r.store.Locations(1)) != 0 || r.store.Row(file(1)) != nil {
			t.Errorf("abandoned: on %v, recorded on %v, row %+v", on, r.store.Locations(1), r.store.Row(file(1)))
		}
		if len(r.disks.On(2)) != 1 || len(r.disks.On(3)) != 1 {
			t.Error("an upload that goes on, or a file, was deleted")
		}
		if n := r.count("mogile_delete_expired_uploads_total", ""); n != 1 {
			t.Errorf("%v uploads counted", n)
		}
		if n := r.store.Rows(schema.QueueCopyDelete); n != 0 {
			t.Errorf("%d rows of copy_to_delete", n)
		}
	})
}

// TestUploadThatArrivesAfterItsDeletion lets an upload run for longer than
// uploads may: its tempfile expires, nothing is found, and the bytes land
// afterwards.
func TestUploadThatArrivesAfterItsDeletion(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 2, 1)
		r.options.Idle = time.Minute // the test's days are long
		r.store.Open(1, 2*time.Hour, 1, 2)
		stop := r.start()
		work.Pause(t.Context(), 3*time.Minute)
		if r.store.Row(file(1)) != nil || len(r.store.Locations(1)) != 0 {
			t.Errorf("row %+v, locations %v, want the fid forgotten", r.store.Row(file(1)), r.store.Locations(1))
		}
		work.Pause(t.Context(), 3*time.Hour)
		r.disks.Put(2, 1, "late")
		work.Pause(t.Context(), 5*time.Hour)
		if on := r.disks.On(1); len(on) != 0 {
			t.Errorf("late bytes stay on %v", on)
		}
		work.Pause(t.Context(), 40*time.Hour)
		if n := r.store.Rows(schema.QueueCopyDelete); n != 0 {
			t.Errorf("%d rows are kept for ever", n)
		}
		stop()
		if _, deletes := r.disks.Counts(); deletes != 1 {
			t.Errorf("%d deletions", deletes)
		}
		if n := r.count("mogile_delete_copies_total", "missing"); n > 12 {
			t.Errorf("asked in vain %v times", n)
		}
	})
}

func TestOldQueues(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 1, 1)
		r.options.Idle = time.Minute // the test's day is long
		var fids []protocol.FID
		for fid := protocol.FID(1); fid <= 1200; fid++ {
			r.disks.Put(1, fid, "x")
			r.store.SetLocations(fid, 1)
			fids = append(fids, fid)
		}
		r.store.QueueOld(fids...)
		stop := r.start()
		work.Pause(t.Context(), 10*time.Minute)
		for _, fid := range fids {
			if len(r.disks.On(fid)) != 0 {
				t.Fatalf("fid %d is left", fid)
			}
		}
		before := r.store.Calls("AdoptOldDeletions")
		work.Pause(t.Context(), 24*time.Hour)
		if n := r.store.Calls("AdoptOldDeletions") - before; n > 70 {
			t.Errorf("looked %d times at an empty queue in a day", n)
		}
		stop()
	})
}

func TestShutdownGivesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 2, 1)
		started := make(chan struct{}, 1000)
		r.disks.OnDelete = func(ctx context.Context, _ protocol.DevID, _ protocol.FID) error {
			started <- struct{}{}
			<-ctx.Done()
			return ctx.Err()
		}
		for fid := protocol.FID(1); fid <= 100; fid++ {
			r.put(fid, 1, 2)
			r.store.SetRow(single(fid+1000, 1), worktest.Row{})
		}
		stop := r.start()
		<-started
		began := time.Now()
		stop()
		if took := time.Since(began); took > time.Second {
			t.Errorf("the end took %v", took)
		}
		for fid := protocol.FID(1); fid <= 100; fid++ {
			for _, k := range []worktest.Key{file(fid), single(fid+1000, 1)} {
				if row := r.store.Row(k); row == nil || row.NextTry > time.Now().Unix() || row.FailCount != 0 {
					t.Fatalf("%+v: row %+v, want it due for another tracker", k, row)
				}
			}
		}
		if r.store.Locked() != 0 || r.log.String() != "" {
			t.Errorf("%d locks left; log:\n%s", r.store.Locked(), r.log)
		}
	})
}

func TestLostLocksStopDeletion(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 1, 1)
		var tries atomic.Int32
		r.disks.OnDelete = func(ctx context.Context, _ protocol.DevID, _ protocol.FID) error {
			if tries.Add(1) == 1 {
				r.store.LoseSession()
				<-ctx.Done()
				return ctx.Err()
			}
			return nil
		}
		r.put(1, 1)
		r.after(10 * time.Second)
		if r.store.Row(file(1)) != nil || len(r.disks.On(1)) != 0 || tries.Load() != 2 {
			t.Errorf("row %+v, on %v after %d tries", r.store.Row(file(1)), r.disks.On(1), tries.Load())
		}
	})
}

func TestDatabaseGoesAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 2, 1)
		var away atomic.Bool
		r.store.Before = func(method string) error {
			if away.Load() {
				return fmt.Errorf("%s: %w", method, schema.ErrUnavailable)
			}
			return nil
		}
		r.disks.OnDelete = func(_ context.Context, _ protocol.DevID, fid protocol.FID) error {
			if fid == 30 {
				away.Store(true)
			}
			return nil
		}
		for fid := protocol.FID(1); fid <= 100; fid++ {
			r.put(fid, 1, 2)
		}
		stop := r.start()
		work.Pause(t.Context(), 10*time.Minute)
		r.disks.OnDelete = nil
		away.Store(false)
		work.Pause(t.Context(), 5*time.Minute)
		stop()
		if n := r.store.Rows(schema.QueueDelete); n != 0 {
			t.Errorf("%d rows left", n)
		}
		if strings.Count(r.log.String(), "unavailable") != 1 || strings.Count(r.log.String(), "database is back") != 1 {
			t.Errorf("the log is not quiet:\n%s", r.log)
		}
	})
}

// TestNoWorkersNoWork sets the job to 0: nothing is claimed.
func TestNoWorkersNoWork(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 1, 1)
		r.options.Jobs = 0
		r.put(1, 1)
		r.store.Open(2, 2*time.Hour, 1)
		r.after(time.Minute)
		if n := r.store.Calls("Claim") + r.store.Calls("ExpireTempfiles"); n != 0 || len(r.disks.On(1)) != 1 {
			t.Errorf("%d calls by nobody", n)
		}
	})
}
