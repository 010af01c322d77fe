//go:build unix

package volume_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"path"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/storaged/volume"
	"github.com/mogile/mogile/storaged/volume/simdisk"
)

// TestTrash: a file that is the one that was meant moves, keeps its content,
// and goes after a week.
func TestTrash(t *testing.T) {
	t.Parallel()
	for _, kind := range kinds {
		t.Run(kind.name, func(t *testing.T) {
			t.Parallel()
			now := time.Unix(1_700_000_000, 0)
			disk := simulate(t, kind.disk, kind.own)
			d, v := openSim(t, disk, volume.Options{Now: func() time.Time { return now }})
			defer d.Close()
			ctx := t.Context()
			name := nameOfFID(42)
			for i, want := range []string{".mogile/trash/1699999200/0000000042.fid", ".mogile/trash/1699999200/0000000042.2.fid", ".mogile/trash/1699999200/0000000042.3.fid"} {
				mustPut(t, v, name, fmt.Appendf(nil, "content %d", i))
				info, err := v.Stat(ctx, name)
				if err != nil {
					t.Fatal(err)
				}
				as := volume.RawFile{FID: 42, Size: info.Size, ModTime: info.ModTime}
				for _, other := range []volume.RawFile{
					{FID: 42, Size: as.Size + 1, ModTime: as.ModTime}, {FID: 42, Size: as.Size, ModTime: as.ModTime.Add(1)},
				} {
					if _, err := v.Trash(ctx, 42, false, &other); !errors.Is(err, volume.ErrChanged) {
						t.Errorf("another file: %v", err)
					}
				}
				p := &as
				if i == 1 {
					p = nil
				}
				if to, err := v.Trash(ctx, 42, false, p); err != nil || to != want {
					t.Errorf("trashed as %q, %v, want %q", to, err, want)
				}
				if got, err := disk.ReadFile("/docroot/dev1/" + want); err != nil || string(got) != fmt.Sprintf("content %d", i) {
					t.Errorf("%s has %q, %v", want, got, err)
				}
				if _, err := v.Stat(ctx, name); !errors.Is(err, fs.ErrNotExist) {
					t.Errorf("its old name: %v", err)
				}
				if _, err := v.Trash(ctx, 42, false, nil); !errors.Is(err, fs.ErrNotExist) {
					t.Errorf("a missing file: %v", err)
				}
			}
			if p, err := v.Walk(ctx, volume.Position{}, 10, time.Hour); err != nil || len(p.Files) != 0 || p.Foreign != 0 {
				t.Errorf("a walk finds %+v, %v", p, err)
			}
			for i, want := range []string{".mogile/trash/1699999200/0000000042.ec", ".mogile/trash/1699999200/0000000042.2.ec"} {
				mustPut(t, v, shardName(42), fmt.Appendf(nil, "shard %d", i))
				if to, err := v.Trash(ctx, 42, true, nil); err != nil || to != want {
					t.Errorf("trashed as %q, %v, want %q", to, err, want)
				}
			}
			now = now.Add(time.Hour)
			mustPut(t, v, name, []byte("later"))
			if _, err := v.Trash(ctx, 42, false, nil); err != nil {
				t.Error(err)
			}
			if err := disk.MkdirAll("/docroot/dev1/.mogile/trash/keep me"); err != nil {
				t.Error(err)
			}
			for _, step := range []struct {
				at   time.Duration
				want volume.Emptied
			}{
				{0, volume.Emptied{Kept: 6}},
				{volume.TrashKept, volume.Emptied{Kept: 6}},
				{volume.TrashKept + time.Hour - 800*time.Second, volume.Emptied{Files: 5, Kept: 1}},
				{0, volume.Emptied{Kept: 1}},
				{volume.TrashKept + 2*time.Hour, volume.Emptied{Files: 1}},
				{volume.TrashKept + 2*time.Hour, volume.Emptied{}},
			} {
				before := now
				now = time.Unix(1_700_000_000, 0).Add(step.at).Add(time.Second)
				if got, err := v.EmptyTrash(ctx, 0); err != nil || got != step.want {
					t.Errorf("emptied after %v: %+v, %v, want %+v", step.at, got, err, step.want)
				}
				now = before
			}
			for _, p := range disk.Files("/docroot/dev1/.mogile/trash") {
				t.Errorf("there is still %s", p)
			}
		})
	}
}

// Where the filesystem knows no second names the file is renamed.
func TestTrashWithoutLinks(t *testing.T) {
	t.Parallel()
	for _, refusal := range []error{errors.ErrUnsupported, syscall.EPERM} {
		disk := simulate(t, simdisk.Options{NoUnnamed: true}, false)
		d, v := openSim(t, disk, volume.Options{})
		defer d.Close()
		disk.Inject(simdisk.Fault{Ops: []simdisk.Op{simdisk.OpLink}, Err: refusal})
		for i := range 2 {
			mustPut(t, v, nameOfFID(42), fmt.Appendf(nil, "content %d", i))
			to, err := v.Trash(t.Context(), 42, false, nil)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := disk.ReadFile("/docroot/dev1/" + to); err != nil || string(got) != fmt.Sprintf("content %d", i) {
				t.Errorf("%s has %q, %v", to, got, err)
			}
			if _, err := v.Stat(t.Context(), nameOfFID(42)); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("its old name: %v", err)
			}
		}
	}
}

// TestTrashCrashes: whenever the power goes, a file has its name or one in the
// trash, with all of its content; and what was acknowledged lasts.
func TestTrashCrashes(t *testing.T) {
	t.Parallel()
	for _, kind := range kinds {
		t.Run(kind.name, func(t *testing.T) {
			t.Parallel()
			for seed := range uint64(25) {
				synctest.Test(t, func(t *testing.T) { trashCrashes(t, simulate(t, kind.disk, kind.own), seed) })
				if t.Failed() {
					t.Fatalf("seed %d", seed)
				}
			}
		})
	}
}

func trashCrashes(t *testing.T, disk *simdisk.Disk, seed uint64) {
	rng := rand.New(rand.NewPCG(seed, 7))
	d, v := openSim(t, disk, volume.Options{})
	want := map[protocol.FID][]byte{}
	for fid := protocol.FID(1); fid <= 8; fid++ {
		want[fid] = content(uint64(fid), 10+rng.IntN(9000))
		mustPut(t, v, nameOfFID(fid*700), want[fid])
	}
	if rng.IntN(3) == 0 {
		defer disk.Inject(simdisk.Fault{
			Ops:  []simdisk.Op{simdisk.OpSyncDir, simdisk.OpSyncFS, simdisk.OpUnlink, simdisk.OpMkdir}[rng.IntN(4):][:1],
			Skip: rng.IntN(4), Times: 1,
		})()
	}
	disk.Inject(simdisk.Fault{Hang: true, Skip: rng.IntN(80)})
	trashed := make([]bool, 9)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for fid := protocol.FID(1); fid <= 8; fid++ {
			_, err := v.Trash(context.Background(), fid*700, false, nil)
			trashed[fid] = err == nil
		}
	}()
	synctest.Wait()
	next := disk.Crash(rng)
	<-done
	if err := d.Close(); err != nil && !errors.Is(err, simdisk.ErrGone) {
		t.Log(err) // its disk is gone
	}
	d, v = openSim(t, next, volume.Options{})
	defer d.Close()
	for fid, data := range want {
		raw, err := read(v, nameOfFID(fid*700))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Error(err)
		}
		var kept []byte
		for _, p := range next.Files("/docroot/dev1/.mogile/trash") {
			if path.Base(p) == path.Base(nameOfFID(fid*700)) {
				kept, _ = next.ReadFile(p)
			}
		}
		switch {
		case raw == nil && kept == nil:
			t.Errorf("fid %d is lost", fid)
		case raw != nil && !same(raw, data), kept != nil && !same(kept, data):
			t.Errorf("fid %d has another content", fid)
		case trashed[fid] && (raw != nil || kept == nil):
			t.Errorf("fid %d was trashed: its old name has %d bytes, the trash %d", fid, len(raw), len(kept))
		}
	}
	for _, p := range next.Files("/docroot/dev1") {
		if strings.Contains(p, "/.mogile/tmp/") {
			t.Errorf("left behind: %s", p)
		}
	}
}
