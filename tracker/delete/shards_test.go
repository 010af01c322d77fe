package deleter_test

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/schema"
	"github.com/mogile/mogile/tracker/cluster"
	"github.com/mogile/mogile/tracker/work/worktest"
)

// TestCopyOrShardGoes has devices with a copy of a file, a shard of it, or both:
// what is recorded stays, whatever else was to go.
func TestCopyOrShardGoes(t *testing.T) {
	const copied, coded = 1, 2 // files
	for _, c := range []struct {
		name        string
		fid         protocol.FID
		dev         protocol.DevID // 1 to 3 are recorded, 4 is not
		what        schema.What
		foreign     bool // the storage daemon does not say that it knows shards
		copy, shard bool // what is left
		result      string
	}{
		{"a copy beside its shard", coded, 1, schema.Raw, false, false, true, "deleted"},
		{"a shard that is recorded", coded, 1, schema.Shard, false, true, true, "wanted"},
		{"a bad shard that was rebuilt there", coded, 1, schema.Bad, false, true, true, "wanted"},
		{"a shard beside its copy", copied, 1, schema.Shard, false, true, false, "deleted"},
		{"a shard of that encoding", copied, 1, schema.ShardOf(7), false, true, false, "deleted"},
		{"one of another, which the database does not know", copied, 1, schema.ShardOf(8), false, true, true, "kept"},
		{"a shard that is recorded, of another encoding", coded, 1, schema.ShardOf(8), false, true, true, "wanted"},
		{"a copy that is recorded", copied, 1, schema.Raw, false, true, true, "wanted"},
		{"a copy that is not", coded, 4, schema.Raw, false, false, true, "deleted"},
		{"a shard that is not", coded, 4, schema.Shard, false, true, false, "deleted"},
		{"a bad shard", coded, 4, schema.Bad, false, true, false, "trashed"},
		{"both would go", coded, 1, schema.Raw, true, true, true, "deferred"},
		{"both may go", coded, 4, schema.Raw, true, false, false, "deleted"},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, 4, 1)
				r.cluster.MakeShards()
				e := schema.Encoding{FID: coded, ID: 7, K: 2, M: 1, Block: 1, Epoch: 1, Devices: []protocol.DevID{1, 2, 3}}
				r.store.PutEncoded(schema.File{FID: coded, DMID: 1, Length: 1}, e)
				r.store.Put(schema.File{FID: copied, DMID: 1, Length: 1}, 1, 2, 3)
				r.disks.Put(c.dev, c.fid, "copy")
				r.disks.PutShard(c.dev, c.fid, 7)
				r.store.SetRow(single(c.fid, c.dev), worktest.Row{What: c.what})
				if c.foreign {
					r.cluster.Change(c.dev, func(_ *cluster.Device, h *cluster.Host) { h.Capabilities = cluster.Capabilities{} })
				}
				r.after(time.Second)
				if left := slices.Contains(r.disks.On(c.fid), c.dev); left != c.copy {
					t.Errorf("copy left: %v", left)
				}
				if left := slices.Contains(r.disks.ShardsOn(c.fid), c.dev); left != c.shard {
					t.Errorf("shard left: %v", left)
				}
				if n := r.count("mogile_delete_copies_total", c.result); n < 1 {
					t.Errorf("not counted as %s", c.result)
				}
				if row := r.store.Row(single(c.fid, c.dev)); (row != nil) != (c.result == "deferred") {
					t.Errorf("row %+v", row)
				}
			})
		})
	}
}

// TestEncodedFileIsDeleted has a file with shards, and a copy that was left, go.
func TestEncodedFileIsDeleted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 4, 1)
		r.cluster.MakeShards()
		e := schema.Encoding{FID: 1, ID: 7, K: 2, M: 1, Block: 1, Epoch: 1, Devices: []protocol.DevID{1, 2, 3}}
		r.store.PutEncoded(schema.File{FID: 1, DMID: 1, Length: 1}, e)
		for dev := protocol.DevID(1); dev <= 3; dev++ {
			r.disks.PutShard(dev, 1, 7)
		}
		r.disks.Put(2, 1, "x")
		r.store.Delete(1)
		r.after(3 * time.Second)
		if len(r.disks.On(1)) != 0 || len(r.disks.ShardsOn(1)) != 0 || r.store.Row(file(1)) != nil {
			t.Errorf("left: copies on %v, shards on %v, row %+v", r.disks.On(1), r.disks.ShardsOn(1), r.store.Row(file(1)))
		}
		if _, ok := r.store.Encoding(1); ok {
			t.Error("its encoding is left")
		}
	})
}
