package replicate_test

import (
	"context"
	"crypto/md5"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/schema"
	"github.com/mogile/mogile/tracker/cluster"
	"github.com/mogile/mogile/tracker/storage"
	"github.com/mogile/mogile/tracker/work"
	"github.com/mogile/mogile/tracker/work/worktest"
)

// coded is a class of worktest's clusters: ErasureCode(3, 2).
const coded schema.ClassID = 6

func newCodedRig(t *testing.T, hosts, devices int) *rig {
	r := newRig(t, hosts, devices)
	r.cluster.MakeShards()
	return r
}

// isShard reports whether a row is that of a shard.
func isShard(row *worktest.Row) bool {
	if row == nil {
		return false
	}
	_, shard := row.What.Shard()
	return shard
}

// checkEncoded fails the test unless a file is in 3+2 shards, all there, on the
// devices that are recorded, and where it was before only copies wait to be
// deleted.
func (r *rig) checkEncoded(fid protocol.FID, copies ...protocol.DevID) schema.Encoding {
	r.t.Helper()
	e, ok := r.store.Encoding(fid)
	if !ok || e.K != 3 || e.M != 2 || len(e.Devices) != 5 {
		r.t.Fatalf("fid %d is encoded as %+v, %v", fid, e, ok)
	}
	if on := r.store.Locations(fid); !slices.Equal(on, slices.Sorted(slices.Values(e.Devices))) {
		r.t.Errorf("fid %d is recorded on %v, its shards on %v", fid, on, e.Devices)
	}
	for i, dev := range e.Devices {
		if id, index, ok := r.disks.ShardIndex(dev, fid); !ok || id != e.ID || index != i {
			r.t.Errorf("fid %d: dev%d has shard %d of %x, %v; want %d of %x", fid, dev, index, id, ok, i, e.ID)
		}
	}
	for _, dev := range copies {
		row := r.store.Row(worktest.Key{Queue: schema.QueueCopyDelete, FID: fid, DevID: dev})
		if row == nil || row.What != schema.Raw {
			r.t.Errorf("fid %d: the copy on dev%d is to be %+v", fid, dev, row)
		}
	}
	return e
}

func TestFilesAreEncoded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newCodedRig(t, 3, 2)
		for fid := protocol.FID(1); fid <= 100; fid++ {
			r.put(fid, coded, protocol.DevID(fid%6+1))
		}
		r.put(101, coded, 1, 4, 6)
		r.put(102, 7, 2) // which gets a checksum by the way
		r.run()
		for fid := protocol.FID(1); fid <= 100; fid++ {
			raw := protocol.DevID(fid%6 + 1)
			e := r.checkEncoded(fid, raw)
			if !slices.Contains(e.Devices, raw) {
				t.Errorf("fid %d: a path to dev%d that was handed out is not good any more: %v", fid, raw, e.Devices)
			}
		}
		r.checkEncoded(101, 1, 4, 6)
		r.checkEncoded(102, 2)
		if sum, err := r.store.Checksum(t.Context(), 102); err != nil || sum.Type != protocol.HashMD5 {
			t.Errorf("checksum %s, %v", sum, err)
		}
		if n := r.count("mogile_replicate_encodings_total", "ok"); n != 102 {
			t.Errorf("%v encodings counted", n)
		}
		if r.store.Locked() != 0 || r.log.String() != "" {
			t.Errorf("%d locks; log:\n%s", r.store.Locked(), r.log)
		}
	})
}

// TestTooFewDevicesForShards has a file that is not encoded: the cluster
// has too few devices. It is kept in copies.
func TestTooFewDevicesForShards(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newCodedRig(t, 4, 1)
		r.put(1, coded, 2)
		r.run()
		if on := r.store.Locations(1); len(on) != 3 {
			t.Errorf("on %v, want 3 copies", on)
		}
		if _, ok := r.store.Encoding(1); ok {
			t.Error("encoded on 4 devices")
		}
		if row := r.row(1); row == nil || row.FailCount != 1 {
			t.Errorf("row %+v, want it tried again", row)
		}
	})
}

// TestEncodingGoesElsewhere has devices that take no shards; others do, and nothing
// is left of what was tried.
func TestEncodingGoesElsewhere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newCodedRig(t, 4, 2)
		r.disks.OnShard = func(_ context.Context, dev protocol.DevID, _ protocol.FID) error {
			if dev == 3 || dev == 8 {
				return errors.New("disk full")
			}
			return nil
		}
		for fid := protocol.FID(1); fid <= 20; fid++ {
			r.put(fid, coded, 1)
		}
		r.run()
		for fid := protocol.FID(1); fid <= 20; fid++ {
			e := r.checkEncoded(fid, 1)
			if slices.Contains(e.Devices, 3) || slices.Contains(e.Devices, 8) {
				t.Errorf("fid %d on %v", fid, e.Devices)
			}
			if left := r.disks.ShardsOn(fid); !slices.Equal(left, slices.Sorted(slices.Values(e.Devices))) {
				t.Errorf("fid %d is on %v, and shards on %v", fid, e.Devices, left)
			}
			for _, dev := range r.pending(fid) {
				row := r.store.Row(worktest.Key{Queue: schema.QueueCopyDelete, FID: fid, DevID: dev})
				if dev != 1 && (!isShard(row) || row.NextTry > time.Now().Unix()) {
					t.Errorf("fid %d on dev%d: %+v", fid, dev, row)
				}
			}
		}
	})
}

// TestCorruptCopyIsNotEncoded has one of two copies differ from the checksum.
func TestCorruptCopyIsNotEncoded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newCodedRig(t, 3, 2)
		sum := md5.Sum([]byte(content))
		for fid := protocol.FID(1); fid <= 20; fid++ {
			r.put(fid, 7, 1, 2)
			r.disks.Put(1, fid, "nine rives")
			if err := r.store.SetChecksum(t.Context(), fid, protocol.Checksum{Type: protocol.HashMD5, Sum: sum[:]}); err != nil {
				t.Fatal(err)
			}
		}
		r.run()
		for fid := protocol.FID(1); fid <= 20; fid++ {
			r.checkEncoded(fid)
		}
		if r.count("mogile_replicate_encodings_total", "src_error") == 0 {
			t.Error("the corrupt copies were never tried")
		}
	})
}

// TestCopiesThatDifferAreNotEncoded has two copies of a file of which no checksum is
// recorded: shards of one take the place of both only if the other is the same.
func TestCopiesThatDifferAreNotEncoded(t *testing.T) {
	for _, class := range []schema.ClassID{coded, 7} { // without and with a hash
		for _, c := range []struct {
			name  string
			setup func(*rig)
			coded bool
		}{
			{"the same", func(*rig) {}, true},
			{"another", func(r *rig) { r.disks.Put(2, 1, rotten) }, false},
			{"not as it was noted", func(r *rig) { r.disks.Rot(2, 1, rotten) }, false},
			{"away", func(r *rig) {
				r.cluster.Change(2, func(d *cluster.Device, _ *cluster.Host) { d.Status = schema.DeviceDown })
			}, true},
		} {
			t.Run(fmt.Sprint(c.name, " ", class), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					r := newCodedRig(t, 4, 2)
					for dev := protocol.DevID(1); dev <= 8; dev++ {
						r.cluster.Change(dev, func(_ *cluster.Device, h *cluster.Host) {
							h.Capabilities = cluster.Capabilities{Version: 1, Words: []string{protocol.WordEC, storage.CapabilitySum}}
						})
					}
					r.put(1, class, 1, 2)
					c.setup(r)
					r.options.Rand = rand.New(rand.NewPCG(1, 2))
					r.run()
					if c.coded {
						r.checkEncoded(1, 1, 2)
						return
					}
					if _, ok := r.store.Encoding(1); ok || !slices.Equal(r.store.Locations(1), []protocol.DevID{1, 2}) || !r.toldFsck(1) {
						t.Errorf("encoded: %v, on %v, fsck is told: %v", ok, r.store.Locations(1), r.toldFsck(1))
					}
					if sum, err := r.store.Checksum(t.Context(), 1); err != nil || !sum.IsZero() {
						t.Errorf("checksum %v, %v", sum, err)
					}
					if left := r.disks.ShardsOn(1); len(left) != 0 {
						t.Errorf("shards are left on %v", left)
					}
				})
			})
		}
	}
}

// TestUnknownShardsStay has a database that was restored: it names the copy of which
// shards were made since. What is tried in vain leaves orders to delete nothing but
// its own.
func TestUnknownShardsStay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newCodedRig(t, 3, 2)
		r.put(1, coded, 1)
		r.disks.Delete(t.Context(), r.cluster.Snapshot().Device(1).WriteURL(1, cluster.Viewer{}))
		r.run()
		tried := false
		for _, dev := range r.pending(1) {
			row := r.store.Row(worktest.Key{Queue: schema.QueueCopyDelete, FID: 1, DevID: dev})
			if encoding, shard := row.What.Shard(); !shard || encoding == 0 {
				t.Errorf("dev%d: %+v is to be deleted", dev, row)
			}
			tried = true
		}
		if !tried {
			t.Error("no shards were to be made")
		}
	})
}

// TestFileChangesWhileItIsEncoded has it deleted, and its copies moved, amid it.
func TestFileChangesWhileItIsEncoded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newCodedRig(t, 3, 2)
		once := make(map[protocol.FID]bool)
		r.disks.OnShard = func(_ context.Context, _ protocol.DevID, fid protocol.FID) error {
			if once[fid] {
				return nil
			}
			once[fid] = true
			switch fid {
			case 1:
				r.store.Delete(1)
			case 2:
				r.store.SetLocations(2, 1, 4)
			}
			return nil
		}
		r.options.Jobs = 1
		r.put(1, coded, 1)
		r.put(2, coded, 1)
		r.disks.Put(4, 2, content)
		r.run()
		if _, ok := r.store.Encoding(1); ok || r.row(1) != nil {
			t.Error("a file that is gone was recorded")
		}
		for _, dev := range r.disks.ShardsOn(1) {
			if row := r.store.Row(worktest.Key{Queue: schema.QueueCopyDelete, FID: 1, DevID: dev}); !isShard(row) || row.NextTry > time.Now().Unix() {
				t.Errorf("the shard on dev%d stays: %+v", dev, row)
			}
		}
		r.checkEncoded(2, 1, 4)
	})
}

// lose takes shards of a file from devices that are dead, as the reaper does.
func (r *rig) lose(fid protocol.FID, devs ...protocol.DevID) {
	for _, dev := range devs {
		r.cluster.Change(dev, func(d *cluster.Device, _ *cluster.Host) { d.Status = schema.DeviceDead })
		r.disks.LoseShard(dev, fid)
	}
	if err := r.store.DeletedLocations(r.t.Context(), fid, devs); err != nil {
		r.t.Fatal(err)
	}
	r.store.SetRow(worktest.Key{Queue: schema.QueueReplicate, FID: fid}, worktest.Row{})
}

func TestShardsAreRebuilt(t *testing.T) {
	for lost := 1; lost <= 3; lost++ {
		t.Run(fmt.Sprint(lost), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newCodedRig(t, 5, 2)
				r.put(1, coded, 1)
				r.run()
				before := r.checkEncoded(1, 1)
				r.store.SetRow(worktest.Key{Queue: schema.QueueCopyDelete, FID: 1, DevID: 1}, worktest.Row{What: schema.Raw, NextTry: schema.EndOfTime})
				r.lose(1, before.Devices[:lost]...)
				r.run()
				if lost > 2 {
					if row := r.row(1); row == nil || row.FailCount != 1 || len(r.store.Locations(1)) != 2 {
						t.Errorf("row %+v, on %v: of a file that is lost nothing may go", row, r.store.Locations(1))
					}
					return
				}
				after := r.checkEncoded(1)
				if !slices.Equal(after.Devices[lost:], before.Devices[lost:]) || after.ID != before.ID || after.Epoch <= before.Epoch {
					t.Errorf("%+v became %+v: others than those lost have moved", before, after)
				}
				for _, dev := range after.Devices {
					if epoch := r.disks.Epoch(dev, 1); epoch != after.Epoch {
						t.Errorf("the shard on dev%d knows of epoch %d, not %d", dev, epoch, after.Epoch)
					}
				}
				if n := r.count("mogile_replicate_shards_total", "ok"); n != float64(lost) {
					t.Errorf("%v shards counted", n)
				}
			})
		})
	}
}

// TestOneOfTwoRebuilt has one of two shards not written at first.
func TestOneOfTwoRebuilt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newCodedRig(t, 5, 2)
		r.put(1, coded, 1)
		r.run()
		before := r.checkEncoded(1, 1)
		r.lose(1, before.Devices[1], before.Devices[3])
		refused := protocol.DevID(0)
		r.disks.OnShard = func(_ context.Context, dev protocol.DevID, _ protocol.FID) error {
			if refused == 0 || refused == dev {
				refused = dev
				return errors.New("disk full")
			}
			return nil
		}
		r.run()
		after := r.checkEncoded(1)
		if slices.Contains(after.Devices, refused) {
			t.Errorf("on %v, dev%d takes nothing", after.Devices, refused)
		}
		for _, dev := range after.Devices {
			if epoch := r.disks.Epoch(dev, 1); epoch != after.Epoch {
				t.Errorf("the shard on dev%d knows of epoch %d, not %d", dev, epoch, after.Epoch)
			}
		}
	})
}

// TestRebuildFindsMore has a shard missing of which nobody knew.
func TestRebuildFindsMore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newCodedRig(t, 5, 2)
		r.put(1, coded, 1)
		r.run()
		before := r.checkEncoded(1, 1)
		r.lose(1, before.Devices[0])
		r.disks.LoseShard(before.Devices[4], 1)
		r.run()
		if e, _ := r.store.Encoding(1); e.Devices[0] == before.Devices[0] {
			t.Errorf("shard 0 is on %v still", e.Devices)
		}
		if r.store.Row(worktest.Key{Queue: schema.QueueFsck, FID: 1}) == nil {
			t.Error("fsck does not look for the other one")
		}
	})
}

// reclass puts a file into another class, as updateclass does.
func (r *rig) reclass(fid protocol.FID, class schema.ClassID) {
	r.store.Put(schema.File{FID: fid, DMID: 1, ClassID: class, Key: fid.String(), Length: int64(len(content))}, r.store.Locations(fid)...)
}

func TestShardsBecomeCopies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newCodedRig(t, 4, 2)
		for fid := protocol.FID(1); fid <= 20; fid++ {
			r.put(fid, coded, 1)
		}
		r.run()
		for fid := protocol.FID(1); fid <= 20; fid++ {
			e := r.checkEncoded(fid, 1)
			r.store.SetRow(worktest.Key{Queue: schema.QueueCopyDelete, FID: fid, DevID: 1}, worktest.Row{What: schema.Raw, NextTry: schema.EndOfTime})
			r.disks.LoseShard(e.Devices[2], fid) // which nobody has noticed
			r.reclass(fid, 3)
		}
		r.run()
		for fid := protocol.FID(1); fid <= 20; fid++ {
			on := r.store.Locations(fid)
			if _, ok := r.store.Encoding(fid); ok || len(on) != 3 || r.row(fid) != nil {
				t.Fatalf("fid %d on %v, encoded: %v", fid, on, ok)
			}
			for _, dev := range on {
				if !slices.Contains(r.disks.On(fid), dev) {
					t.Errorf("fid %d is not on dev%d", fid, dev)
				}
			}
			for _, dev := range r.disks.ShardsOn(fid) {
				if row := r.store.Row(worktest.Key{Queue: schema.QueueCopyDelete, FID: fid, DevID: dev}); !isShard(row) {
					t.Errorf("fid %d: the shard on dev%d is to be %+v", fid, dev, row)
				}
			}
		}
	})
}

// TestCopiesFailWhileDecoding has a device that takes no copy.
func TestCopiesFailWhileDecoding(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newCodedRig(t, 4, 2)
		r.put(1, coded, 1)
		r.run()
		r.checkEncoded(1, 1)
		r.store.SetRow(worktest.Key{Queue: schema.QueueCopyDelete, FID: 1, DevID: 1}, worktest.Row{What: schema.Raw, NextTry: schema.EndOfTime})
		refused := 0
		r.disks.OnCopy = func(context.Context, protocol.DevID, protocol.DevID, protocol.FID) error {
			if refused++; refused == 2 {
				return errors.New("disk full")
			}
			return nil
		}
		r.reclass(1, 3)
		r.run()
		if _, ok := r.store.Encoding(1); ok || len(r.store.Locations(1)) != 3 {
			t.Errorf("on %v, encoded: %v", r.store.Locations(1), ok)
		}
	})
}

func (r *rig) runMoves() {
	r.t.Helper()
	defer r.start()()
	worktest.Eventually(r.t, "no move left", func() bool { return r.store.Rows(schema.QueueRebalance) == 0 })
}

func TestShardsMove(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newCodedRig(t, 5, 2)
		for fid := protocol.FID(1); fid <= 30; fid++ {
			r.put(fid, coded, 1)
		}
		r.run()
		before := make(map[protocol.FID]schema.Encoding)
		for fid := protocol.FID(1); fid <= 30; fid++ {
			e := r.checkEncoded(fid, 1)
			before[fid] = e
			r.store.SetRow(worktest.Key{Queue: schema.QueueCopyDelete, FID: fid, DevID: 1}, worktest.Row{What: schema.Raw, NextTry: schema.EndOfTime})
			r.store.SetRow(worktest.Key{Queue: schema.QueueRebalance, FID: fid}, worktest.Row{From: e.Devices[3]})
		}
		r.runMoves()
		for fid := protocol.FID(1); fid <= 30; fid++ {
			e := r.checkEncoded(fid)
			was := before[fid]
			if e.Devices[3] == was.Devices[3] || !slices.Equal(slices.Delete(slices.Clone(e.Devices), 3, 4), slices.Delete(slices.Clone(was.Devices), 3, 4)) {
				t.Errorf("fid %d: shards on %v, were on %v", fid, e.Devices, was.Devices)
			}
			if row := r.store.Row(worktest.Key{Queue: schema.QueueCopyDelete, FID: fid, DevID: was.Devices[3]}); !isShard(row) {
				t.Errorf("fid %d: the shard that has moved away is to be %+v", fid, row)
			}
		}
		if n := r.count("mogile_replicate_moves_total", "moved"); n != 30 {
			t.Errorf("%v moves counted", n)
		}
	})
}

// TestShardStaysWhereItMust has no other device for it.
func TestShardStaysWhereItMust(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newCodedRig(t, 5, 1)
		r.put(1, coded, 1)
		r.run()
		before := r.checkEncoded(1, 1)
		r.store.SetRow(worktest.Key{Queue: schema.QueueRebalance, FID: 1}, worktest.Row{From: before.Devices[1]})
		r.runMoves()
		if after := r.checkEncoded(1, 1); !slices.Equal(after.Devices, before.Devices) {
			t.Errorf("on %v, was on %v", after.Devices, before.Devices)
		}
		if n := r.count("mogile_replicate_moves_total", "would_worsen"); n != 1 {
			t.Errorf("%v moves counted as such", n)
		}
	})
}

// TestShutdownWhileEncoding breaks it off: what was announced goes.
func TestShutdownWhileEncoding(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newCodedRig(t, 3, 2)
		begun := make(chan struct{}, 100)
		r.disks.OnShard = func(ctx context.Context, _ protocol.DevID, _ protocol.FID) error {
			begun <- struct{}{}
			work.Pause(ctx, time.Hour)
			return ctx.Err()
		}
		r.put(1, coded, 1)
		stop := r.start()
		<-begun
		work.Pause(t.Context(), 10*time.Minute) // it shows that it gets on
		stop()
		if row := r.row(1); row == nil || row.FailCount != 0 || row.NextTry > time.Now().Unix() {
			t.Errorf("row %+v, want it due for another tracker", row)
		}
		if pending := r.pending(1); len(pending) != 5 {
			t.Errorf("%v are to be deleted, want all that were announced", pending)
		}
		if _, ok := r.store.Encoding(1); ok {
			t.Error("recorded")
		}
	})
}
