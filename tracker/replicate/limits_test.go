package replicate_test

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/schema"
	"github.com/mogile/mogile/tracker/cluster"
	"github.com/mogile/mogile/tracker/replicate"
	"github.com/mogile/mogile/tracker/storage"
	"github.com/mogile/mogile/tracker/work"
)

// TestHungDeviceHoldsUpNoOther has two devices that hang among others, and
// hundreds of files whose only copy is on one of them: all that needs neither is
// done, by few workers, and those that wait are not looked at all the time.
func TestHungDeviceHoldsUpNoOther(t *testing.T) {
	t.Run("files", func(t *testing.T) { hungDevice(t, -1, 4) })
	t.Run("small files", func(t *testing.T) { hungDevice(t, 0, 32) })
}

// hungDevice has two of six devices hang for files that are small up to small
// bytes, of which a device is to have limit at once.
func hungDevice(t *testing.T, small int64, limit int) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 6, 1)
		r.options.Jobs, r.options.PerDevice, r.options.SmallFile = 16, 4, small
		var mu sync.Mutex
		uses := make(map[protocol.DevID]int)
		most := make(map[protocol.DevID]int)
		use := func(dev protocol.DevID, n int) {
			uses[dev] += n
			most[dev] = max(most[dev], uses[dev])
		}
		r.disks.OnCopy = func(ctx context.Context, from, to protocol.DevID, _ protocol.FID) error {
			mu.Lock()
			use(from, 1)
			use(to, 1)
			mu.Unlock()
			defer func() {
				mu.Lock()
				defer mu.Unlock()
				use(from, -1)
				use(to, -1)
			}()
			if from <= 2 || to <= 2 {
				work.Pause(ctx, 45*time.Second)
				side := storage.DestError
				if from <= 2 {
					side = storage.SourceError
				}
				return &storage.CopyError{Side: side, Err: errors.New("nothing came")}
			}
			work.Pause(ctx, 10*time.Millisecond)
			return nil
		}
		for fid := protocol.FID(1); fid <= 300; fid++ {
			r.put(fid, 0, 1)
		}
		for fid := protocol.FID(301); fid <= 600; fid++ {
			r.put(fid, 0, protocol.DevID(3+fid%4))
		}
		stop := r.start()
		work.Pause(t.Context(), 4*time.Minute)
		stop()
		done := 0
		for fid := protocol.FID(301); fid <= 600; fid++ {
			if len(r.store.Locations(fid)) == 2 {
				done++
			}
		}
		// Some are on their way to a device that hangs, in one run in five more than
		// twenty: by chance they met nothing else in four minutes.
		if done < 255 {
			t.Errorf("%d of 300 files that need no hung device were copied", done)
		}
		for dev, n := range most {
			if n > limit {
				t.Errorf("%d copies at once with dev%d", n, dev)
			}
		}
		if n := r.store.Calls("Claim"); n > 3000 {
			t.Errorf("%d claims in 4 minutes", n)
		}
		if n := r.store.Calls("Inspect"); n > 8000 {
			t.Errorf("files were looked at %d times", n)
		}
	})
}

// TestDirectCopies go from device to device where the destination can, and
// through the tracker where it says that it cannot.
func TestDirectCopies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 3, 1)
		for _, dev := range []protocol.DevID{2, 3} {
			r.cluster.Change(dev, func(_ *cluster.Device, h *cluster.Host) {
				h.Capabilities = cluster.Capabilities{Version: 1, Words: []string{storage.CapabilityCopy}}
			})
		}
		var direct []protocol.DevID
		r.disks.OnDirect = func(_ context.Context, _, to protocol.DevID, _ protocol.FID) error {
			direct = append(direct, to)
			if to == 3 {
				return storage.ErrNotDirect
			}
			return nil
		}
		r.put(1, 3, 1) // to 2 and 3
		r.put(2, 0, 2)
		r.cluster.Change(3, func(d *cluster.Device, _ *cluster.Host) {})
		r.options.Jobs = 1
		r.run()
		if devs := r.store.Locations(1); len(devs) != 3 || len(r.store.Locations(2)) != 2 {
			t.Errorf("locations %v, %v", devs, r.store.Locations(2))
		}
		if slices.Contains(direct, 1) || !slices.Contains(direct, 2) || !slices.Contains(direct, 3) {
			t.Errorf("direct copies were tried to %v", direct)
		}
		if n := r.count("mogile_replicate_copied_bytes_total", "direct"); n != float64(len(content)) {
			t.Errorf("%v bytes copied directly", n)
		}
		if n := r.count("mogile_replicate_copied_bytes_total", "streamed"); n != 2*float64(len(content)) {
			t.Errorf("%v bytes streamed", n)
		}
	})
}

// await begins to wait for a fid; the result comes in the channel.
func await(ctx context.Context, w *replicate.Worker, fid protocol.FID) <-chan error {
	done := make(chan error, 1)
	go func() { done <- w.Await(ctx, fid) }()
	return done
}

// run runs a worker until the returned function is called.
func runWorker(t *testing.T, o replicate.Options) (w *replicate.Worker, stop func()) {
	w = replicate.New(o)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }()
	return w, sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func TestAwait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 3, 1)
		r.options.Jobs = 1
		// A backlog in front of the file that is waited for.
		r.disks.OnCopy = func(ctx context.Context, _, _ protocol.DevID, _ protocol.FID) error {
			work.Pause(ctx, 100*time.Millisecond)
			return nil
		}
		for fid := protocol.FID(1); fid <= 500; fid++ {
			r.put(fid, 0, 1)
		}
		w, stop := runWorker(t, r.options)
		defer stop()
		work.Pause(t.Context(), time.Second)
		r.put(501, 0, 2)
		began := time.Now()
		if err := w.Await(t.Context(), 501); err != nil {
			t.Error(err)
		}
		if took := time.Since(began); took > 500*time.Millisecond {
			t.Errorf("waited for %v while 500 others are queued", took)
		}
		if devs := r.store.Locations(501); len(devs) != 2 {
			t.Errorf("locations %v", devs)
		}
		// Copies too many are not waited for, nor done ones.
		r.put(502, 1, 1, 2, 3)
		r.put(503, 0, 1, 2)
		for _, fid := range []protocol.FID{502, 503} {
			if err := w.Await(t.Context(), fid); err != nil {
				t.Errorf("fid %d: %v", fid, err)
			}
		}
	})
}

func TestAwaitInVain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 2, 1)
		r.cluster.Change(2, func(d *cluster.Device, _ *cluster.Host) { d.Observed = cluster.DeviceUnreachable })
		r.put(1, 0, 1)
		w, stop := runWorker(t, r.options)
		defer stop()
		errLate := errors.New("late")
		ctx, cancel := context.WithTimeoutCause(t.Context(), 10*time.Second, errLate)
		defer cancel()
		began := time.Now()
		if err := w.Await(ctx, 1); !errors.Is(err, errLate) || time.Since(began) != 10*time.Second {
			t.Errorf("%v after %v", err, time.Since(began))
		}
		// It comes true while somebody waits.
		done := await(t.Context(), w, 1)
		work.Pause(t.Context(), 5*time.Second)
		r.cluster.Change(2, func(d *cluster.Device, _ *cluster.Host) { d.Observed = cluster.DeviceWriteable })
		began = time.Now()
		if err := <-done; err != nil || time.Since(began) > 3*time.Second {
			t.Errorf("%v after %v", err, time.Since(began))
		}
		// The file goes while somebody waits.
		r.cluster.Change(2, func(d *cluster.Device, _ *cluster.Host) { d.Observed = cluster.DeviceReadable })
		r.put(2, 3, 1)
		done = await(t.Context(), w, 2)
		work.Pause(t.Context(), time.Second)
		r.store.Delete(2)
		if err := <-done; !errors.Is(err, schema.ErrGone) {
			t.Error(err)
		}
	})
}

// TestAwaitAnotherTracker waits on a tracker without workers for what another
// does.
func TestAwaitAnotherTracker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 3, 1)
		idle := r.options
		idle.Jobs, idle.Fids, idle.Rand = 0, work.NewFIDLocks(r.store), nil
		r.put(1, 0, 1)
		w, stop := runWorker(t, idle)
		defer stop()
		done := await(t.Context(), w, 1)
		work.Pause(t.Context(), 10*time.Second)
		select {
		case err := <-done:
			t.Fatalf("done by nobody: %v", err)
		default:
		}
		defer r.start()()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if devs := r.store.Locations(1); len(devs) != 2 {
			t.Errorf("locations %v", devs)
		}
	})
}

func TestAwaitIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 1, 1)
		w := replicate.New(r.options) // does not run
		ctx, cancel := context.WithCancel(t.Context())
		var g sync.WaitGroup
		for fid := range protocol.FID(replicate.MaxWaiters) {
			r.put(fid+1, 0, 1)
			g.Go(func() {
				if err := w.Await(ctx, fid+1); !errors.Is(err, context.Canceled) {
					t.Errorf("fid %d: %v", fid+1, err)
				}
			})
		}
		synctest.Wait()
		if err := w.Await(ctx, 1); !errors.Is(err, replicate.ErrTooManyWaiters) {
			t.Errorf("one more: %v", err)
		}
		cancel()
		g.Wait()
		if err := w.Await(ctx, 1); !errors.Is(err, context.Canceled) {
			t.Errorf("after the others have gone: %v", err)
		}
	})
}

// TestLateTransfer has a transfer outlive its order: the tracker has broken it
// off, and the destination finishes it nevertheless. The file is copied
// elsewhere or again, and bytes that nobody recorded are entered to go.
func TestLateTransfer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 3, 1)
		var late sync.WaitGroup
		var begun atomic.Bool
		r.disks.OnCopy = func(ctx context.Context, _, to protocol.DevID, fid protocol.FID) error {
			if !begun.CompareAndSwap(false, true) {
				return nil
			}
			late.Go(func() {
				work.Pause(t.Context(), 30*time.Second)
				r.disks.Put(to, fid, content)
			})
			r.store.LoseSession() // the tracker is cut off from its locks
			<-ctx.Done()
			return ctx.Err()
		}
		r.put(1, 0, 1)
		stop := r.start()
		late.Wait()
		work.Pause(t.Context(), time.Minute)
		stop()
		devs := r.store.Locations(1)
		if len(devs) != 2 {
			t.Errorf("locations %v", devs)
		}
		for _, dev := range r.disks.On(1) {
			if !slices.Contains(devs, dev) && !slices.Contains(r.pending(1), dev) {
				t.Errorf("bytes on dev%d are neither recorded nor to be deleted", dev)
			}
		}
	})
}

// TestClassChanges gives a file to classes of more and of fewer copies.
func TestClassChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 3, 1)
		r.put(1, 0, 1)
		r.run()
		for _, c := range []struct {
			class schema.ClassID
			want  int
		}{{3, 3}, {1, 1}, {0, 2}} {
			r.store.Put(schema.File{FID: 1, DMID: 1, ClassID: c.class, Length: int64(len(content))}, r.store.Locations(1)...)
			for _, dev := range r.pending(1) { // which the delete worker would have done
				jobs, err := r.store.Claim(t.Context(), schema.QueueCopyDelete, 10, time.Minute)
				if err != nil {
					t.Fatal(err)
				}
				if _, err := r.store.Finish(t.Context(), jobs); err != nil {
					t.Fatalf("dev%d: %v", dev, err)
				}
			}
			r.run()
			if devs := r.store.Locations(1); len(devs) != c.want {
				t.Errorf("class %d: locations %v, want %d", c.class, devs, c.want)
			}
		}
	})
}
