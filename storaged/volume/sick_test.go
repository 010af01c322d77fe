//go:build unix

package volume_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"runtime"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mogile/mogile/storaged/volume"
	"github.com/mogile/mogile/storaged/volume/simdisk"
)

// TestHungDisk hangs one of two disks: its volume answers ErrSick, first after
// StuckAfter, then at once; the other does not notice; what hung is undone when
// the disk comes back.
func TestHungDisk(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx := context.Background()
		disk := simulate(t, simdisk.Options{}, false)
		if err := disk.MkdirAll("/docroot/dev2"); err != nil {
			t.Fatal(err)
		}
		d, v := openSim(t, disk, volume.Options{Slots: 2})
		other := get(t, d, 2)
		mustPut(t, v, "kept", []byte("old"))
		f, err := v.Open(ctx, "kept")
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()

		heal := disk.Inject(simdisk.Fault{Path: "/docroot/dev1", Hang: true})
		took := func(what string, want error, min, max time.Duration, op func() error) {
			t.Helper()
			start := time.Now()
			err := op()
			if d := time.Since(start); !errors.Is(err, want) || d < min || d > max {
				t.Errorf("%s: %v after %v, want %v after %v to %v", what, err, d, want, min, max)
			}
		}
		const stuck = volume.DefaultStuckAfter
		short, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		took("read with a deadline", context.DeadlineExceeded, time.Second, time.Second, func() error {
			_, err := v.Open(short, "kept")
			return err
		})
		if v.Sick() {
			t.Error("sick with one slot free")
		}
		if _, err := v.Usage(); err != nil {
			t.Error(err)
		}
		took("put", volume.ErrSick, stuck, stuck, func() error { return put(v, "new", []byte("x")) })
		if !v.Sick() {
			t.Error("not sick with all slots stuck")
		}
		for what, op := range map[string]func() error{
			"put":     func() error { return put(v, "other", []byte("x")) },
			"open":    func() error { _, err := v.Open(ctx, "kept"); return err },
			"stat":    func() error { _, err := v.Stat(ctx, "kept"); return err },
			"read":    func() error { _, err := f.ReadAt(make([]byte, 3), 0); return err },
			"remove":  func() error { return v.Remove(ctx, "kept") },
			"update":  func() error { _, err := v.Update(ctx, "kept"); return err },
			"refresh": func() error { return v.RefreshUsage(ctx) },
			"usage":   func() error { _, err := v.Usage(); return err },
		} {
			took(what, volume.ErrSick, 0, 0, op)
		}
		took("the other disk", nil, 0, 0, func() error { return put(other, "new", []byte("x")) })
		if n := disk.Hanging(); n != 2 {
			t.Errorf("%d operations hang, want as many as there are slots", n)
		}

		heal()
		synctest.Wait()
		if v.Sick() {
			t.Error("still sick")
		}
		if _, err := read(v, "new"); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("the upload that nobody waited for: %v", err)
		}
		if got, err := read(v, "kept"); string(got) != "old" || err != nil {
			t.Errorf("kept is %q, %v", got, err)
		}
		mustPut(t, v, "new", []byte("y"))
		f.Close()
		if err := d.Close(); err != nil {
			t.Error(err)
		}
		if n := disk.Open(); n != 0 {
			t.Errorf("%d files are still open", n)
		}
	})
}

// TestHungCommit hangs each step of a commit in turn: it is never acknowledged,
// its name stays locked meanwhile, and nothing is left of it afterwards, not
// even if what it replaces was removed in between.
func TestHungCommit(t *testing.T) {
	t.Parallel()
	for _, kind := range kinds {
		for _, old := range []string{"", "old"} {
			for skip := range 12 {
				t.Run(fmt.Sprintf("%s/%q/%d", kind.name, old, skip), func(t *testing.T) {
					t.Parallel()
					synctest.Test(t, func(t *testing.T) {
						hungCommit(t, simulate(t, kind.disk, kind.own), old, skip)
					})
				})
			}
		}
	}
}

func hungCommit(t *testing.T, disk *simdisk.Disk, old string, skip int) {
	d, v := openSim(t, disk, volume.Options{Slots: 4})
	if old != "" {
		mustPut(t, v, name42, []byte(old))
	}
	heal := disk.Inject(simdisk.Fault{Hang: true, Skip: skip})
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	u, err := v.Create(ctx, name42)
	if err != nil {
		t.Fatal(err)
	}
	if _, err = u.Write([]byte("new")); err == nil {
		err = u.Commit(ctx)
	}
	switch hanging := disk.Hanging(); {
	case hanging == 0 && err == nil: // it was over before
	case !errors.Is(err, context.DeadlineExceeded):
		t.Errorf("%d operations hang, and the commit says %v", hanging, err)
	default:
		if err := v.Remove(context.Background(), name42); !errors.Is(err, volume.ErrSick) {
			t.Errorf("Remove beside a hanging commit: %v", err)
		}
	}
	heal()
	synctest.Wait()
	got, e := read(v, name42)
	switch {
	case err == nil && string(got) != "new", err != nil && old == "" && !errors.Is(e, fs.ErrNotExist),
		err != nil && old != "" && string(got) != "old" && string(got) != "new":
		t.Errorf("commit: %v; read %q, %v", err, got, e)
	}
	mustPut(t, v, name42, []byte("newer"))
	if err := v.Remove(context.Background(), name42); err != nil {
		t.Error(err)
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
	if left := disk.Files("/docroot/dev1"); len(left) != 1 || disk.Open() != 0 {
		t.Errorf("left behind: %q, and %d open files", left, disk.Open())
	}
}

// TestBusyDisk waits for a flush that takes longer than StuckAfter while the
// disk does other work.
func TestBusyDisk(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		disk := simulate(t, simdisk.Options{}, false)
		d, v := openSim(t, disk, volume.Options{})
		mustPut(t, v, "kept", nil)
		heal := disk.Inject(simdisk.Fault{Ops: []simdisk.Op{simdisk.OpSync}, Hang: true})
		done := make(chan error, 1)
		go func() { done <- put(v, "new", []byte("x")) }()
		for range 20 {
			<-time.After(time.Second) // of the bubble
			if _, err := v.Stat(context.Background(), "kept"); err != nil {
				t.Fatal(err)
			}
		}
		heal()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
}

// TestHungFlush hangs flushes while everything else on the disk goes on. Uploads
// that wait for one hold no slot, but a file and a goroutine each: they must not
// become more and more. It counts goroutines, and so runs alone.
func TestHungFlush(t *testing.T) {
	for _, c := range []struct {
		name      string
		exclusive bool
		op        simdisk.Op
	}{
		{"of the filesystem", true, simdisk.OpSyncFS},
		{"of a directory", false, simdisk.OpSyncDir},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				disk := simulate(t, simdisk.Options{}, c.exclusive)
				d, v := openSim(t, disk, volume.Options{Slots: 4})
				mustPut(t, v, "kept", []byte("old"))
				heal := disk.Inject(simdisk.Fault{Ops: []simdisk.Op{c.op}, Hang: true})
				before := runtime.NumGoroutine()
				var puts sync.WaitGroup
				for i := range 600 { // five a second
					puts.Go(func() {
						if err := put(v, strconv.Itoa(i), []byte("x")); !errors.Is(err, volume.ErrSick) {
							t.Errorf("put %d: %v, want ErrSick", i, err)
						}
					})
					<-time.After(200 * time.Millisecond) // of the bubble
				}
				puts.Wait()
				const most = 200 // what comes before the disk counts as sick
				if n := runtime.NumGoroutine() - before; n > most {
					t.Errorf("%d goroutines wait", n)
				}
				start := time.Now()
				if err := put(v, "late", []byte("x")); !errors.Is(err, volume.ErrSick) || time.Since(start) > 0 {
					t.Errorf("put to a disk that is known to hang: %v after %v", err, time.Since(start))
				}
				if got, err := read(v, "kept"); string(got) != "old" || err != nil {
					t.Errorf("reading goes on: %q, %v", got, err)
				}
				heal()
				synctest.Wait()
				mustPut(t, v, "new", []byte("y"))
				if err := d.Close(); err != nil {
					t.Error(err)
				}
				if n := disk.Open(); n != 0 {
					t.Errorf("%d files are still open", n)
				}
			})
		})
	}
}

// TestHungAtStart opens a docroot of which one disk hangs.
func TestHungAtStart(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		disk := simulate(t, simdisk.Options{}, false)
		if err := disk.MkdirAll("/docroot/dev2"); err != nil {
			t.Fatal(err)
		}
		heal := disk.Inject(simdisk.Fault{Path: "/docroot/dev1", Hang: true})
		d, err := volume.OpenDocroot("/docroot", volume.Options{FS: disk})
		if err != nil {
			t.Fatal(err)
		}
		mustPut(t, get(t, d, 2), "a", nil)
		start := time.Now()
		if _, err := d.Volume(1); !errors.Is(err, volume.ErrSick) || time.Since(start) > 0 {
			t.Errorf("Volume: %v after %v", err, time.Since(start))
		}
		if n := len(d.Volumes()); n != 1 {
			t.Errorf("%d volumes", n)
		}
		heal()
		synctest.Wait()
		mustPut(t, get(t, d, 1), "a", nil)
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
}

// TestHungClose closes a docroot with a disk that hangs.
func TestHungClose(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		disk := simulate(t, simdisk.Options{}, false)
		d, v := openSim(t, disk, volume.Options{})
		heal := disk.Inject(simdisk.Fault{Hang: true})
		if err := put(v, "a", nil); !errors.Is(err, volume.ErrSick) {
			t.Error(err)
		}
		if err := d.Close(); !errors.Is(err, volume.ErrSick) {
			t.Errorf("Close: %v", err)
		}
		if err := put(v, "b", nil); !errors.Is(err, volume.ErrNoDevice) {
			t.Errorf("put after Close: %v", err)
		}
		if _, err := d.Volume(1); !errors.Is(err, volume.ErrNoDevice) {
			t.Errorf("Volume after Close: %v", err)
		}
		heal()
	})
}

// TestFailures has each operation of an upload in turn answered by an error: it
// is reported by its name, and nothing is left behind.
func TestFailures(t *testing.T) {
	t.Parallel()
	for _, kind := range kinds {
		for _, c := range []struct{ fault, want error }{
			{syscall.ENOSPC, volume.ErrNoSpace},
			{syscall.EDQUOT, volume.ErrNoSpace},
			{syscall.EIO, syscall.EIO},
		} {
			t.Run(fmt.Sprintf("%s/%v", kind.name, c.fault), func(t *testing.T) {
				t.Parallel()
				for _, old := range []string{"", "old"} {
					for skip := range 40 {
						disk := simulate(t, kind.disk, kind.own)
						d, v := openSim(t, disk, volume.Options{})
						if old != "" {
							mustPut(t, v, name42, []byte(old))
						}
						heal := disk.Inject(simdisk.Fault{Skip: skip, Times: 1, Err: c.fault})
						err := put(v, name42, bytes.Repeat([]byte("new"), 50_000))
						heal()
						if err != nil && !errors.Is(err, c.want) {
							t.Errorf("operation %d fails: %v", skip, err)
						}
						d.Close()
						left := disk.Files("/docroot/dev1")
						got, _ := disk.ReadFile("/docroot/dev1/" + name42)
						// Only an error from closing a file may leave it uncounted.
						switch {
						case err == nil && len(got) != 150_000:
							t.Errorf("operation %d: stored %d bytes", skip, len(got))
						case err != nil && old == "" && len(left) != 1,
							err != nil && old != "" && (len(left) != 2 || string(got) != "old" && len(got) != 150_000):
							t.Errorf("operation %d: %v left %q, %d bytes", skip, err, left, len(got))
						}
						if err == nil && skip > 30 {
							break
						}
					}
				}
			})
		}
	}
}

// TestFull fills a disk: 507 and nothing left, and room again afterwards.
func TestFull(t *testing.T) {
	t.Parallel()
	disk := simulate(t, simdisk.Options{Capacity: 1 << 20}, false)
	d, v := openSim(t, disk, volume.Options{})
	defer d.Close()
	for i := range 5 {
		if err := put(v, name42, make([]byte, 2<<20)); !errors.Is(err, volume.ErrNoSpace) {
			t.Fatalf("put %d: %v", i, err)
		}
	}
	mustPut(t, v, name42, make([]byte, 500<<10))
	if err := v.RefreshUsage(context.Background()); err != nil {
		t.Error(err)
	}
	if u, err := v.Usage(); err != nil || u.Used < 500 || u.Total != 1024 || u.Used+u.Available != u.Total {
		t.Errorf("usage %+v, %v", u, err)
	}
}

// TestFailedFlush stops writing, but not reading, when a flush failed that many
// files depended on.
func TestFailedFlush(t *testing.T) {
	t.Parallel()
	for _, own := range []bool{false, true} {
		disk := simulate(t, simdisk.Options{}, own)
		d, v := openSim(t, disk, volume.Options{})
		mustPut(t, v, "before", []byte("x"))
		u, err := v.Create(context.Background(), "meanwhile")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := u.Write(make([]byte, 200_000)); err != nil {
			t.Fatal(err)
		}
		heal := disk.Inject(simdisk.Fault{Ops: []simdisk.Op{simdisk.OpSyncDir, simdisk.OpSyncFS}, Times: 1})
		for _, err := range []error{put(v, "failing", nil), u.Commit(context.Background()), put(v, "after", nil), v.Remove(context.Background(), "before"), v.Failed()} {
			if !errors.Is(err, volume.ErrFlush) {
				t.Errorf("error is %v", err)
			}
		}
		heal()
		if got, err := read(v, "before"); string(got) != "x" || err != nil {
			t.Errorf("read %q, %v", got, err)
		}
		if err := d.Close(); err != nil {
			t.Error(err)
		}
		if left := disk.Files("/docroot/dev1"); len(left) != 2 || disk.Open() != 0 {
			t.Errorf("left: %q, and %d open files", left, disk.Open())
		}
		d, v = openSim(t, disk, volume.Options{})
		mustPut(t, v, "after", nil)
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	}
}

// TestDirectoryRemoved removes a file, while somebody else removes the directory
// that is empty now: that is no failed flush.
func TestDirectoryRemoved(t *testing.T) {
	t.Parallel()
	for seed := range uint64(20) {
		synctest.Test(t, func(t *testing.T) {
			disk := simulate(t, simdisk.Options{}, false)
			d, v := openSim(t, disk, volume.Options{})
			mustPut(t, v, "a/b/file", []byte("x"))
			root, err := disk.OpenRoot("/docroot/dev1")
			if err != nil {
				t.Fatal(err)
			}
			heal := disk.Inject(simdisk.Fault{Ops: []simdisk.Op{simdisk.OpSyncDir}, Hang: true})
			done := make(chan error, 1)
			go func() { done <- v.Remove(context.Background(), "a/b/file") }()
			synctest.Wait()
			if err := root.Rmdir("a/b"); err != nil {
				t.Fatal(err)
			}
			heal()
			if err := errors.Join(<-done, v.Failed()); err != nil {
				t.Error(err)
			}
			mustPut(t, v, "a/b/file", []byte("y")) // makes the directory anew
			if err := v.Remove(context.Background(), "a/b/file"); err != nil {
				t.Error(err)
			}
			if err := d.Close(); err != nil {
				t.Error(err)
			}
			disk = disk.Crash(rand.New(rand.NewPCG(seed, 0)))
			if left := disk.Files("/docroot/dev1/a"); len(left) != 0 {
				t.Errorf("seed %d: after a crash there is %q", seed, left)
			}
		})
	}
}
