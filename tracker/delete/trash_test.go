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

// TestBadCopiesArePutAside has bad copies go to the trash of their device, or
// stay where the daemon has none; those of files that are gone are deleted.
func TestBadCopiesArePutAside(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 3, 1)
		r.cluster.Change(3, func(_ *cluster.Device, h *cluster.Host) {
			h.Capabilities = cluster.Capabilities{Version: 1, Words: []string{protocol.VerbTrash}}
		})
		bad := worktest.Row{What: schema.Bad}
		for fid, on := range map[protocol.FID][]protocol.DevID{1: {1}, 2: {1}, 4: {1}, 5: {1, 3}} {
			r.store.Put(schema.File{FID: fid, DMID: 1, Length: 1}, on...)
		}
		r.disks.Put(3, 1, "bad")
		r.disks.Put(2, 2, "bad, without a trash")
		r.disks.Put(3, 3, "bad, of a file that is gone")
		r.disks.Put(3, 5, "good again")
		r.store.SetRow(single(1, 3), bad)
		r.store.SetRow(single(2, 2), bad)
		r.store.SetRow(single(3, 3), bad)
		r.store.SetRow(single(4, 3), bad) // nothing is there
		r.store.SetRow(single(5, 3), bad)
		r.after(3 * time.Second)
		if got := r.disks.Trashed(); !slices.Equal(got, []string{"bad"}) {
			t.Errorf("in the trash: %q", got)
		}
		for fid, want := range map[protocol.FID][]protocol.DevID{1: nil, 2: {2}, 3: nil, 5: {3}} {
			if on := r.disks.On(fid); !slices.Equal(on, want) {
				t.Errorf("fid %d lies on %v, want %v", fid, on, want)
			}
		}
		for result, want := range map[string]float64{"trashed": 1, "kept": 1, "deleted": 1, "missing": 1, "wanted": 1} {
			if got := r.count("mogile_delete_copies_total", result); got != want {
				t.Errorf("%v %s, want %v", got, result, want)
			}
		}
	})
}
