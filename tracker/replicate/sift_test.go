package replicate_test

import (
	"testing"
	"testing/synctest"

	"github.com/mogile/mogile/protocol"
)

// TestSift: files that have what they need are done with by a few calls, many at
// a time and without locks; the others find their way to workers.
func TestSift(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 3, 1)
		const files = 500
		for fid := protocol.FID(1); fid <= files; fid++ {
			if fid%50 == 0 {
				r.put(fid, 0, 1) // lacks a copy
			} else {
				r.put(fid, 0, 1, 2)
			}
		}
		r.run()
		if got := r.count("mogile_replicate_outcomes_total", "lost_race"); got != files-files/50 {
			t.Errorf("%.0f files had what they need", got)
		}
		if got := r.count("mogile_replicate_copies_total", "ok"); got != files/50 {
			t.Errorf("%.0f copies were made", got)
		}
		for fid := protocol.FID(1); fid <= files; fid++ {
			if row := r.row(fid); row != nil {
				t.Errorf("fid %d is still queued: %+v", fid, row)
			}
		}
		for call, most := range map[string]int{"Claim": 20, "TryLock": files / 50, "Inspect": 20 + 2*files/50, "Finish": 20 + files/50} {
			if n := r.store.Calls(call); n > most {
				t.Errorf("%d calls of %s, more than %d", n, call, most)
			}
		}
	})
}
