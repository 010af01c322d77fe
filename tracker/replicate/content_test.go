package replicate_test

import (
	"context"
	"crypto/md5"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/schema"
	"github.com/mogile/mogile/tracker/cluster"
	"github.com/mogile/mogile/tracker/storage"
	"github.com/mogile/mogile/tracker/work/worktest"
)

// rotten is as long as content.
const rotten = "nine liver"

// ours has the devices belong to storage daemons that verify files.
func (r *rig) ours(devs ...protocol.DevID) {
	for _, dev := range devs {
		r.cluster.Change(dev, func(_ *cluster.Device, h *cluster.Host) {
			h.Capabilities = cluster.Capabilities{Version: 1, Words: []string{storage.CapabilitySum}}
		})
	}
}

// toldFsck reports whether fsck was asked to read the content of fid's copies.
func (r *rig) toldFsck(fid protocol.FID) bool {
	row := r.store.Row(worktest.Key{Queue: schema.QueueFsck, FID: fid})
	return row != nil && row.Arg == schema.FsckContent
}

// TestRottenCopiesDoNotCount has a surplus copy, on a device in drain so that it
// would be the one to go, beside one that is as long as it should be.
func TestRottenCopiesDoNotCount(t *testing.T) {
	sum := md5.Sum([]byte(content))
	withSum := func(r *rig) {
		if err := r.store.SetChecksum(r.t.Context(), 1, protocol.Checksum{Type: protocol.HashMD5, Sum: sum[:]}); err != nil {
			r.t.Fatal(err)
		}
	}
	for _, c := range []struct {
		name  string
		setup func(*rig)
		left  []protocol.DevID
		fsck  bool // is asked to look at the file
		reads int
	}{
		{"good", func(r *rig) { r.ours(1, 2) }, []protocol.DevID{2}, false, 1},
		{"good, with a checksum", func(r *rig) { r.ours(1, 2); withSum(r) }, []protocol.DevID{2}, false, 1},
		{"good, of another make, with a checksum", withSum, []protocol.DevID{2}, false, 1},
		{"not as it was noted", func(r *rig) { r.ours(1, 2); r.disks.Rot(2, 1, rotten) }, []protocol.DevID{1, 2}, true, 1},
		{"not as the checksum", func(r *rig) { r.ours(1, 2); withSum(r); r.disks.Put(2, 1, rotten) }, []protocol.DevID{1, 2}, true, 1},
		{"of another make, not as the checksum", func(r *rig) { withSum(r); r.disks.Put(2, 1, rotten) }, []protocol.DevID{1, 2}, true, 1},
		{"of another make, and nobody can tell", func(r *rig) { r.disks.Put(2, 1, rotten) }, []protocol.DevID{2}, false, 0},
		{"short", func(r *rig) { r.ours(1, 2); r.disks.Put(2, 1, "nine") }, []protocol.DevID{1, 2}, true, 0},
		{"missing", func(r *rig) { r.ours(1, 2); r.disks.Remove(2, 1) }, []protocol.DevID{1, 2}, true, 0},
		{"not to be read now", func(r *rig) {
			r.ours(1, 2)
			r.disks.OnVerify = func(context.Context, protocol.DevID, protocol.FID) error { return storage.ErrUnreachable }
		}, []protocol.DevID{1, 2}, false, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, 2, 1)
				r.cluster.Change(1, func(d *cluster.Device, _ *cluster.Host) { d.Status = schema.DeviceDrain })
				r.put(1, 1, 1, 2)
				c.setup(r)
				reads := 0
				before := r.disks.OnVerify
				r.disks.OnVerify = func(ctx context.Context, dev protocol.DevID, fid protocol.FID) error {
					if reads++; dev != 2 {
						t.Errorf("the copy on dev%d was read", dev)
					}
					if before != nil {
						return before(ctx, dev, fid)
					}
					return nil
				}
				r.run()
				if devs := r.store.Locations(1); !slices.Equal(devs, c.left) {
					t.Errorf("left are %v; want %v", devs, c.left)
				}
				if got := r.toldFsck(1); got != c.fsck {
					t.Errorf("fsck is asked: %t", got)
				}
				if reads != c.reads {
					t.Errorf("%d copies were read; want %d", reads, c.reads)
				}
				if len(c.left) > 1 && !strings.Contains(r.notes.String(), "too_happy: fid 1 is on too many devices") {
					t.Errorf("watchers were told %q", r.notes)
				}
				if c.fsck && !strings.Contains(r.notes.String(), "Copy of fid 1 on devid 2 is bad") {
					t.Errorf("watchers were told %q", r.notes)
				}
			})
		})
	}
}

// TestCopiesThatContradict has copies each of which is as it was noted, and that
// are not the same.
func TestCopiesThatContradict(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 3, 1)
		r.ours(1, 2, 3)
		r.put(1, 0, 1, 2, 3)
		r.disks.Put(2, 1, rotten)
		r.run()
		if devs := r.store.Locations(1); !slices.Contains(devs, 1) || !slices.Contains(devs, 3) || !r.toldFsck(1) && len(devs) == 3 {
			t.Errorf("left are %v, fsck is asked: %t", devs, r.toldFsck(1))
		}
	})
}

// TestSurplusBesideAHungDevice has a device hang while its copy is read: it is
// waited for until the monitor finds it gone, however long reading may take.
func TestSurplusBesideAHungDevice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 2, 1)
		r.ours(1, 2)
		r.put(1, 1, 1, 2)
		r.disks.OnVerify = func(ctx context.Context, _ protocol.DevID, _ protocol.FID) error {
			<-ctx.Done()
			return errors.New("broken off")
		}
		defer r.start()()
		time.Sleep(10 * time.Minute)
		if row := r.row(1); row == nil || row.FailCount != 0 {
			t.Errorf("row %+v while a copy is read", row)
		}
		for dev := range protocol.DevID(2) {
			r.cluster.Change(dev+1, func(d *cluster.Device, _ *cluster.Host) { d.Observed = cluster.DeviceUnreachable })
		}
		time.Sleep(3 * time.Second)
		if row := r.row(1); row == nil || row.FailCount != 1 {
			t.Errorf("row %+v after the device has gone", row)
		}
		if devs := r.store.Locations(1); len(devs) != 2 || r.toldFsck(1) {
			t.Errorf("left are %v, fsck is asked: %t", devs, r.toldFsck(1))
		}
	})
}

// TestSurplusAtTheLimit has the only use of a device taken: the file comes again.
func TestSurplusAtTheLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 2, 1)
		r.options.PerDevice, r.options.SmallFile = 1, -1
		r.ours(1, 2)
		r.cluster.Change(1, func(d *cluster.Device, _ *cluster.Host) { d.Status = schema.DeviceDrain })
		const files = 3
		for fid := range protocol.FID(files) {
			r.put(fid+1, 1, 1, 2)
		}
		running, most := 0, 0
		r.disks.OnVerify = func(context.Context, protocol.DevID, protocol.FID) error {
			running++
			most = max(most, running)
			time.Sleep(time.Second)
			running--
			return nil
		}
		r.run()
		if most != 1 {
			t.Errorf("%d copies were read at once", most)
		}
		for fid := range protocol.FID(files) {
			if devs := r.store.Locations(fid + 1); !slices.Equal(devs, []protocol.DevID{2}) {
				t.Errorf("fid %d is on %v", fid+1, devs)
			}
		}
		if n := r.count("mogile_replicate_outcomes_total", "busy"); n == 0 {
			t.Error("nobody found the device busy")
		}
	})
}

// TestMovesBesideRottenCopies: a move that makes a copy leaves as many good ones
// as there were; one that makes none drops a copy, and looks at those that stay.
func TestMovesBesideRottenCopies(t *testing.T) {
	for _, c := range []struct {
		name    string
		devs    []protocol.DevID
		want    []protocol.DevID
		outcome string
		fsck    bool
		reads   int
	}{
		{"with a copy", []protocol.DevID{1, 3}, []protocol.DevID{2, 3}, "moved", false, 0},
		{"without", []protocol.DevID{1, 3, 5}, []protocol.DevID{1, 3, 5}, "kept", true, 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, 3, 2)
				r.ours(1, 3, 5)
				r.settled(1, 0, c.devs...)
				r.disks.Rot(3, 1, rotten)
				r.disks.OnCopy = func(_ context.Context, from, _ protocol.DevID, _ protocol.FID) error {
					if from == 3 {
						return &storage.CopyError{Side: storage.SourceError, Err: errors.New("not as noted")}
					}
					return nil
				}
				reads := 0
				r.disks.OnVerify = func(context.Context, protocol.DevID, protocol.FID) error { reads++; return nil }
				r.move(1, 1, "2")
				if devs := r.store.Locations(1); !slices.Equal(devs, c.want) || r.count("mogile_replicate_moves_total", c.outcome) != 1 {
					t.Errorf("left are %v: %s", devs, r.notes)
				}
				if r.toldFsck(1) != c.fsck || reads != c.reads {
					t.Errorf("fsck is asked: %t, %d copies were read", r.toldFsck(1), reads)
				}
			})
		})
	}
}
