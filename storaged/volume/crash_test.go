//go:build unix

package volume_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/storaged/volume"
	"github.com/mogile/mogile/storaged/volume/simdisk"
)

// kinds are the disks that everything about crashes is tried on.
var kinds = []struct {
	name string
	disk simdisk.Options
	own  bool // the device has its filesystem to itself, so that flushes are shared
}{
	{"fsync", simdisk.Options{}, false},
	{"syncfs", simdisk.Options{}, true},
	{"journal", simdisk.Options{Ordered: true}, false},
	{"journal, syncfs", simdisk.Options{Ordered: true}, true},
	{"journal, no nameless files", simdisk.Options{Ordered: true, NoUnnamed: true}, false},
	{"no nameless files", simdisk.Options{NoUnnamed: true}, false},
	{"no attributes", simdisk.Options{NoAttrs: true}, true},
}

// simulate makes a disk with /docroot/dev1.
func simulate(t testing.TB, o simdisk.Options, own bool) *simdisk.Disk {
	t.Helper()
	disk := simdisk.New(o)
	err := disk.MkdirAll("/docroot/dev1")
	if own {
		err = disk.MountAt("/docroot/dev1", "/dev/sim1")
	}
	if err != nil {
		t.Fatal(err)
	}
	return disk
}

func openSim(t testing.TB, disk *simdisk.Disk, o volume.Options) (*volume.Docroot, *volume.Volume) {
	t.Helper()
	o.FS = disk
	d, err := volume.OpenDocroot("/docroot", o)
	if err != nil {
		t.Fatal(err)
	}
	return d, get(t, d, 1)
}

// model is what may be found on a device, by name.
type model map[string]state

// state is what a name may stand for: one of some contents (nil: no file), of
// which there are several after an operation that was not answered, or failed.
// A name that is torn, by writing in place without an answer, may also stand for
// any other content.
type state struct {
	may  [][]byte
	torn bool
}

func (m model) state(name string) state {
	if s, ok := m[name]; ok {
		return s
	}
	return state{may: [][]byte{nil}}
}

// sure notes what a name stands for.
func (m model) sure(name string, data []byte) { m[name] = state{may: [][]byte{data}} }

// unsure notes what else it may stand for.
func (m model) unsure(name string, data []byte) {
	s := m.state(name)
	s.may = append(slices.Clip(s.may), data)
	m[name] = s
}

func same(a, b []byte) bool { return (a == nil) == (b == nil) && bytes.Equal(a, b) }

// check compares a device with the model, and takes over what it finds.
func (m model) check(t *testing.T, v *volume.Volume, disk *simdisk.Disk, when string) {
	t.Helper()
	for _, p := range disk.Files("/docroot/dev1") {
		name := strings.TrimPrefix(p, "/docroot/dev1/")
		if _, ok := m[name]; !ok && name != ".mogile/device" {
			t.Errorf("%s: there is a file %s", when, name)
		}
	}
	for name, s := range m {
		got, err := read(v, name)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			got = nil
		case err != nil:
			t.Errorf("%s: %s: %v", when, name, err)
			continue
		}
		if !slices.ContainsFunc(s.may, func(b []byte) bool { return same(b, got) }) && !(s.torn && got != nil) {
			var sizes []int
			for _, b := range s.may {
				sizes = append(sizes, len(b))
			}
			t.Errorf("%s: %s has %d bytes (exists: %v), expected one of %d", when, name, len(got), got != nil, sizes)
		}
		if got != nil {
			f, err := v.Open(context.Background(), name)
			if err != nil {
				t.Errorf("%s: %v", when, err)
				continue
			}
			if _, err := f.Verify(context.Background()); err != nil && !errors.Is(err, volume.ErrNoSum) {
				t.Errorf("%s: %v", when, err)
			}
			f.Close()
		}
		m.sure(name, got)
	}
}

// TestCrashes runs random operations on a disk whose power is cut at random
// moments, between operations and within, and whose operations fail. Whatever
// was acknowledged is there afterwards, whole, and nothing else is.
// MOGILE_TEST_SCALE multiplies the rounds.
func TestCrashes(t *testing.T) {
	t.Parallel()
	rounds := 20
	if s := os.Getenv("MOGILE_TEST_SCALE"); s != "" {
		scale, err := strconv.Atoi(s)
		if err != nil || scale < 1 {
			t.Fatalf("MOGILE_TEST_SCALE is %q, want a number above 0", s)
		}
		rounds *= scale
	}
	for _, kind := range kinds {
		t.Run(kind.name, func(t *testing.T) {
			t.Parallel()
			for seed := range uint64(rounds) {
				synctest.Test(t, func(t *testing.T) { crashes(t, simulate(t, kind.disk, kind.own), seed) })
				if t.Failed() {
					t.Fatalf("seed %d", seed)
				}
			}
		})
	}
}

func crashes(t *testing.T, disk *simdisk.Disk, seed uint64) {
	rng := rand.New(rand.NewPCG(seed, 42))
	m := make(model)
	d, v := openSim(t, disk, volume.Options{})
	for round := range 6 {
		for range rng.IntN(12) {
			m.step(t, v, rng, nameOf(rng))
		}
		failing := rng.IntN(3) == 0
		if failing {
			ops := [][]simdisk.Op{nil, {simdisk.OpWrite}, {simdisk.OpSync, simdisk.OpSettle}, {simdisk.OpSyncDir}, {simdisk.OpSyncFS}, {simdisk.OpLink, simdisk.OpRename}}
			heal := disk.Inject(simdisk.Fault{
				Ops: ops[rng.IntN(len(ops))], Skip: rng.IntN(8), Times: 1 + rng.IntN(2),
				Err: []error{syscall.EIO, syscall.ENOSPC}[rng.IntN(2)],
			})
			for range 3 {
				m.step(t, v, rng, nameOf(rng))
			}
			heal()
		}
		// Several clients at once, cut off in the middle.
		disk.Inject(simdisk.Fault{Hang: true, Skip: rng.IntN(60)})
		clients := make([]model, 1+rng.IntN(4))
		var wg sync.WaitGroup
		for i := range clients {
			clients[i] = make(model)
			mine := rand.New(rand.NewPCG(rng.Uint64(), 1))
			wg.Go(func() {
				for range 3 {
					clients[i].step(t, v, mine, fmt.Sprintf("%d/%03d/%s", round, i, nameOf(mine)))
				}
			})
		}
		synctest.Wait()
		var next *simdisk.Disk
		// After a failed flush, what a process sees need not be on disk, and the
		// next process cannot know.
		if !failing && rng.IntN(4) == 0 {
			next = disk.Restart()
		} else {
			next = disk.Crash(rng)
		}
		wg.Wait()
		for _, c := range clients {
			maps.Copy(m, c)
		}
		if err := d.Close(); err != nil && !errors.Is(err, simdisk.ErrGone) {
			t.Error(err)
		}
		disk = next
		d, v = openSim(t, disk, volume.Options{})
		m.check(t, v, disk, fmt.Sprintf("seed %d, round %d", seed, round))
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
	if n := disk.Open(); n != 0 {
		t.Errorf("seed %d: %d files are still open", seed, n)
	}
}

func nameOf(rng *rand.Rand) string {
	_, name, _ := strings.Cut(protocol.FID([]uint64{1, 2, 1001, 1002, 5_000_001}[rng.IntN(5)]).Path(1), "/")
	return name
}

// step does one random operation, and notes what may come of it.
func (m model) step(t *testing.T, v *volume.Volume, rng *rand.Rand, name string) {
	ctx := context.Background()
	switch rng.IntN(8) {
	case 0:
		err := v.Remove(ctx, name)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			m.unsure(name, nil)
			return
		}
		if s := m.state(name); err != nil && !slices.ContainsFunc(s.may, func(b []byte) bool { return b == nil }) {
			t.Errorf("%v, though it was stored", err)
		}
		m.sure(name, nil)
	case 1:
		m.update(v, rng, name)
	default:
		sizes := []int{0, 1, 100, 4096, 10_000, 70_000, 200_000}
		data := content(rng.Uint64(), sizes[rng.IntN(len(sizes))])
		u, err := v.Create(ctx, name)
		if err != nil {
			return // the disk was not touched
		}
		_, err = u.Write(data)
		if err == nil && rng.IntN(8) == 0 {
			u.Abort()
			return
		}
		if err == nil {
			err = u.Commit(ctx)
		}
		if err == nil {
			m.sure(name, data)
		} else {
			m.unsure(name, data)
		}
	}
}

// update writes in place.
func (m model) update(v *volume.Volume, rng *rand.Rand, name string) {
	off := rng.IntN(20_000)
	piece := content(rng.Uint64(), 1+rng.IntN(20_000))
	u, err := v.Update(context.Background(), name)
	if err != nil {
		return
	}
	defer u.Abort()
	_, err = u.WriteAt(piece, int64(off))
	if err == nil {
		err = u.Commit(context.Background())
	}
	s := m.state(name)
	if err != nil || s.torn || len(s.may) > 1 {
		s.torn = true
		m[name] = s
		return
	}
	old := s.may[0]
	data := make([]byte, max(len(old), off+len(piece)))
	copy(data, old)
	copy(data[off:], piece)
	m.sure(name, data)
}

// TestUpdateCrash cuts the power while a file is written in place: its old sum
// never stands beside new bytes.
func TestUpdateCrash(t *testing.T) {
	t.Parallel()
	for seed := range uint64(40) {
		synctest.Test(t, func(t *testing.T) {
			disk := simulate(t, simdisk.Options{}, false)
			d, v := openSim(t, disk, volume.Options{})
			mustPut(t, v, name42, content(1, 20_000))
			disk.Inject(simdisk.Fault{Ops: []simdisk.Op{simdisk.OpSync, simdisk.OpSettle}, Skip: int(seed % 2), Hang: true})
			go func() {
				u, err := v.Update(context.Background(), name42)
				if err != nil {
					t.Error(err)
					return
				}
				if _, err = u.WriteAt(content(2, 20_000), 0); err == nil {
					err = u.Commit(context.Background())
				}
				if err == nil {
					t.Error("acknowledged though the flush hangs")
				}
			}()
			synctest.Wait()
			disk = disk.Crash(rand.New(rand.NewPCG(seed, 7)))
			synctest.Wait()
			if err := d.Close(); err != nil && !errors.Is(err, simdisk.ErrGone) {
				t.Error(err)
			}
			d, v = openSim(t, disk, volume.Options{})
			f, err := v.Open(context.Background(), name42)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := f.Verify(context.Background()); err != nil && !errors.Is(err, volume.ErrNoSum) {
				t.Errorf("seed %d: %v", seed, err)
			}
			f.Close()
			if err := d.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}
