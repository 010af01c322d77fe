//go:build unix

package volume_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/storaged/volume"
	"github.com/mogile/mogile/storaged/volume/simdisk"
)

// nameOfFID is where a fid's file is on dev1, below its folder.
func nameOfFID(fid protocol.FID) string { return fid.Path(1)[len("dev1/"):] }

// shardName is where a fid's shard is.
func shardName(fid protocol.FID) string { return fid.ShardPath(1)[len("dev1/"):] }

// walkAll walks over a whole volume, page by page.
func walkAll(t *testing.T, v *volume.Volume, limit int, budget time.Duration) (all volume.Page, pages int) {
	t.Helper()
	for pages = 1; ; pages++ {
		p, err := v.Walk(t.Context(), all.Next, limit, budget)
		if err != nil {
			t.Fatal(err)
		}
		if len(p.Files) > limit {
			t.Fatalf("%d files in a page, limit %d", len(p.Files), limit)
		}
		if p.More && p.Next == all.Next {
			t.Fatalf("no progress from %v", p.Next)
		}
		if again, err := volume.ParsePosition(p.Next.String()); err != nil || again != p.Next {
			t.Fatalf("position %v is read as %v, %v", p.Next, again, err)
		}
		all.Files = append(all.Files, p.Files...)
		all.Foreign += p.Foreign
		all.Unreadable += p.Unreadable
		all.Next = p.Next
		if !p.More {
			return all, pages
		}
	}
}

// TestWalk: every file of the layout is seen once, in order, with whatever
// limit; nothing else is, but counted.
func TestWalk(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	d := openDir(t, dir, volume.Options{}, 1)
	v := get(t, d, 1)
	if p, pages := walkAll(t, v, 10, time.Hour); len(p.Files) != 0 || p.Foreign != 0 || pages != 1 {
		t.Errorf("an empty device: %+v in %d pages", p, pages)
	}
	rng := rand.New(rand.NewPCG(1, 2))
	fids := []protocol.FID{1, 2, 999, 1000, 999_999, 1_000_000, 2147483632, 9999999999, 12345678901, 12345678902, 1234567890, 52048709162819278, protocol.MaxFID}
	for range 60 {
		fids = append(fids, protocol.FID(rng.Uint64N(3000)+8), protocol.FID(rng.Uint64N(5_000_000)+8))
	}
	slices.Sort(fids)
	fids = slices.Compact(fids)
	for _, fid := range fids {
		mustPut(t, v, nameOfFID(fid), make([]byte, fid%100))
	}
	shards := map[protocol.FID]bool{} // true where there is a copy, too
	for _, fid := range fids {
		if fid%3 == 0 {
			mustPut(t, v, shardName(fid), make([]byte, fid%100))
			shards[fid] = true
		}
	}
	for _, fid := range []protocol.FID{3, 7000, protocol.MaxFID - 1} {
		mustPut(t, v, shardName(fid), nil)
		shards[fid] = slices.Contains(fids, fid)
	}
	if _, err := v.Trash(t.Context(), 999, false, nil); err != nil {
		t.Fatal(err)
	}
	shards[999] = false
	fids = slices.DeleteFunc(fids, func(f protocol.FID) bool { return f == 999 })
	foreign := []string{
		"w", "y/z", "0/x", "0/0000", "0/000/x", "0/000/00", "0/000/000/x", "0/000/000/0000000001", "0/000/000/0000000001.fid.tmp",
		"0/000/000/1.fid", "0/000/000/0000000000.fid", "0/000/000/0000001001.fid", "0/000/000/0000001001.ec", "0/000/000/1.ec", "0/000/000/0000000001.ec.fid", "0/000/000/00000000007.fid",
		"1/234/567/01234567890.fid", "10/000/000/0000000001.fid", "0/000/000/99999999999999999999.fid",
	}
	for _, name := range foreign {
		p := filepath.Join(dir, "dev1", name)
		if err := os.MkdirAll(filepath.Dir(p), 0o777); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, nil, 0o666); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"lost+found", "test-write", "0/000/000/0000000007.fid", "9/999"} {
		if err := os.MkdirAll(filepath.Join(dir, "dev1", name), 0o777); err != nil {
			t.Fatal(err)
		}
	}
	wantForeign := len(foreign) + 1 // and the folder that is called as a file
	all := slices.Clone(fids)
	for fid := range shards {
		if !slices.Contains(all, fid) {
			all = append(all, fid)
		}
	}
	slices.SortFunc(all, func(a, b protocol.FID) int {
		x, y := nameOfFID(a)[:len("0/000/000")], nameOfFID(b)[:len("0/000/000")]
		if x != y {
			return cmpString(x, y)
		}
		return int(int64(a) - int64(b))
	})
	var order []string
	for _, fid := range all {
		beside, isShard := shards[fid]
		if !isShard || beside {
			order = append(order, nameOfFID(fid))
		}
		if isShard {
			order = append(order, shardName(fid))
		}
	}
	for _, limit := range []int{1, 3, 100, 5000} {
		for _, budget := range []time.Duration{0, time.Hour} {
			got, _ := walkAll(t, v, limit, budget)
			var seen []string
			for _, f := range got.Files {
				name := nameOfFID(f.FID)
				if f.Shard {
					name = shardName(f.FID)
				}
				seen = append(seen, name)
				if info, err := v.Stat(t.Context(), name); err != nil || info.Size != f.Size || !info.ModTime.Equal(f.ModTime) {
					t.Fatalf("fid %d: %+v, %v, listed as %+v", f.FID, info, err, f)
				}
			}
			if diff := cmp.Diff(order, seen); diff != "" {
				t.Errorf("limit %d, budget %v: %s", limit, budget, diff)
			}
			if got.Foreign != wantForeign || got.Unreadable != 0 {
				t.Errorf("limit %d, budget %v: %d foreign, want %d; %d unreadable", limit, budget, got.Foreign, wantForeign, got.Unreadable)
			}
		}
	}
}

func cmpString(a, b string) int {
	if a < b {
		return -1
	}
	return 1
}

// A folder with more than memory should hold is walked through with little.
func TestWalkManyNames(t *testing.T) {
	t.Parallel()
	disk := simulate(t, simdisk.Options{}, false)
	d, v := openSim(t, disk, volume.Options{Durability: volume.DurabilityNone})
	defer d.Close()
	const n = 2400
	for i := range n { // of eleven and more digits, all in one folder
		mustPut(t, v, nameOfFID(protocol.FID(12345670000+i)), nil)
		if i%2 == 0 {
			mustPut(t, v, fmt.Sprintf("1/234/567/foreign%d", i), nil)
		}
	}
	got, pages := walkAll(t, v, 300, time.Hour)
	if len(got.Files) != n || got.Foreign != n/2 || pages < n/300 {
		t.Errorf("%d files and %d foreign in %d pages, want %d and %d", len(got.Files), got.Foreign, pages, n, n/2)
	}
	for i, f := range got.Files {
		if f.FID != protocol.FID(12345670000+i) {
			t.Fatalf("file %d is fid %d", i, f.FID)
		}
	}
}

// What the disk cannot give is counted; a disk that does not answer ends the
// walk.
func TestWalkFaults(t *testing.T) {
	t.Parallel()
	synctest.Test(t, walkFaults)
}

func walkFaults(t *testing.T) {
	disk := simulate(t, simdisk.Options{}, false)
	d, v := openSim(t, disk, volume.Options{Slots: 1})
	defer d.Close()
	for _, fid := range []protocol.FID{1, 2, 1001, 2001} {
		mustPut(t, v, nameOfFID(fid), nil)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := v.Walk(ctx, volume.Position{}, 100, time.Hour); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	for _, tt := range []struct {
		fault             simdisk.Fault
		files, unreadable int
		err               error
	}{
		{simdisk.Fault{Ops: []simdisk.Op{simdisk.OpStat}, Path: "/docroot/dev1/" + nameOfFID(2)}, 3, 1, nil},
		{simdisk.Fault{Ops: []simdisk.Op{simdisk.OpStat}, Path: "/docroot/dev1/" + nameOfFID(2), Err: fs.ErrPermission}, 3, 1, nil},
		{simdisk.Fault{Ops: []simdisk.Op{simdisk.OpStat}, Path: "/docroot/dev1/" + nameOfFID(2), Err: fs.ErrNotExist}, 3, 0, nil},
		{simdisk.Fault{Ops: []simdisk.Op{simdisk.OpList}, Path: "/docroot/dev1/0/000/001"}, 3, 1, nil},
		{simdisk.Fault{Ops: []simdisk.Op{simdisk.OpList}, Path: "/docroot/dev1/0/000"}, 0, 1, nil},
		{simdisk.Fault{Ops: []simdisk.Op{simdisk.OpList}, Path: "/docroot/dev1", Times: 1}, 0, 0, syscall.EIO},
		{simdisk.Fault{Ops: []simdisk.Op{simdisk.OpList}, Path: "/docroot/dev1/0/000/001", Hang: true}, 2, 0, volume.ErrSick},
	} {
		clear := disk.Inject(tt.fault)
		p, err := v.Walk(t.Context(), volume.Position{}, 100, time.Hour)
		clear()
		if len(p.Files) != tt.files || p.Unreadable != tt.unreadable || !errors.Is(err, tt.err) {
			t.Errorf("%+v: %d files, %d unreadable, %v", tt.fault, len(p.Files), p.Unreadable, err)
		}
	}
}

func FuzzParsePosition(f *testing.F) {
	for _, s := range []string{"0000000.0", "1234567.12345678901", "10000000.0", "9999999.9223372036854775807", "00000000.1", ".", "-1.0", "1234567.12345678901.fid", "0000000.0.fid.fid"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		p, err := volume.ParsePosition(text)
		if err == nil && p.String() != text {
			t.Errorf("%q is read as %v", text, p)
		}
	})
}
