package storetest

import (
	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/schema"
)

var locationCases = []testCase{
	{"AddLocation", checkAddLocation},
	{"AddLocation/stale", checkAddStale},
	{"AddLocation/gone", checkAddGone},
	{"AddLocation/skip_devcount", checkSkipDevCount},
	{"DropLocation", checkDropLocation},
	{"DeletedLocations", checkDeletedLocations},
	{"PendingDeletions", checkPendingDeletions},
	{"Inspect", checkInspect},
}

func devs(ids ...protocol.DevID) []protocol.DevID { return ids }

// located fails the case unless fid's locations and the devices of its entries
// in copy_to_delete are as wanted.
func (e *env) located(fid protocol.FID, on, pending []protocol.DevID) {
	e.Helper()
	fids := []protocol.FID{fid, fid + 1_000_000}
	locs, err := e.LocationsOf(e.ctx, fids)
	e.must(err)
	e.same("locations", locs[fid], on)
	pend, err := e.PendingDeletions(e.ctx, fids)
	e.must(err)
	e.same("pending deletions", pend[fid], pending)
	if len(locs[fids[1]])+len(pend[fids[1]]) != 0 {
		e.Errorf("an unknown fid has locations %v, %v", locs[fids[1]], pend[fids[1]])
	}
}

func (e *env) devcount(fid protocol.FID, want int) {
	e.Helper()
	if f := e.debug(fid).File; f == nil || f.DevCount != want {
		e.Fatalf("file is %+v; want devcount %d", f, want)
	}
}

func checkAddLocation(e *env) {
	fid := e.put("k")
	e.must(e.QueueCopyDeletion(e.ctx, fid, 2, schema.Raw))
	e.must(e.QueueCopyDeletion(e.ctx, fid, 3, schema.Raw))
	e.must(e.AddLocation(e.ctx, fid, 2, devs(1)))
	e.located(fid, devs(1, 2), devs(3))
	e.devcount(fid, 2)
	e.must(e.AddLocation(e.ctx, fid, 9, devs(2, 1))) // in any order
	e.located(fid, devs(1, 2, 9), devs(3))
	e.devcount(fid, 3)
	e.must(e.AddLocation(e.ctx, fid, 9, devs(1, 2, 9))) // known already
	e.located(fid, devs(1, 2, 9), devs(3))
	e.devcount(fid, 3)

	// A file that lost its last copy takes one again.
	e.must(e.DeletedLocations(e.ctx, fid, devs(1, 2, 9)))
	e.must(e.AddLocation(e.ctx, fid, 4, nil))
	e.located(fid, devs(4), devs(3))
	e.devcount(fid, 1)
}

func checkAddStale(e *env) {
	fid := e.putOn("k", 1, 2)
	for _, seen := range [][]protocol.DevID{nil, devs(1), devs(1, 3), devs(1, 2, 3), devs(2, 2)} {
		e.want(e.AddLocation(e.ctx, fid, 5, seen), schema.ErrStale)
	}
	// The bytes that landed on 5 must go: once, and now.
	e.located(fid, devs(1, 2), devs(5))
	e.devcount(fid, 2)
	j := e.claimOne(schema.QueueCopyDelete)
	if j.FID != fid || j.DevID != 5 || j.What != schema.Raw || j.FailCount != 0 {
		e.Errorf("job is %+v; want the raw copy of fid %d on 5", j, fid)
	}
	// Those on a device that has the file meanwhile must stay.
	e.want(e.AddLocation(e.ctx, fid, 2, devs(1)), schema.ErrStale)
	e.located(fid, devs(1, 2), devs(5))
	e.must(e.AddLocation(e.ctx, fid, 5, devs(1, 2)))
	e.located(fid, devs(1, 2, 5), nil)
}

func checkAddGone(e *env) {
	fid := e.put("k")
	_, err := e.DeleteKey(e.ctx, e.dmid, "k")
	e.must(err)
	e.want(e.AddLocation(e.ctx, fid, 2, devs(1)), schema.ErrGone)
	e.want(e.AddLocation(e.ctx, fid, 1, devs(1)), schema.ErrGone)
	e.located(fid, devs(1), devs(2))
	e.want(e.AddLocation(e.ctx, fid+1, 2, nil), schema.ErrGone)
	e.located(fid+1, nil, devs(2))
}

func checkSkipDevCount(e *env) {
	fid := e.put("k")
	on, off := "1", "0"
	e.must(e.SetSetting(e.ctx, "skip_devcount", &on))
	e.must(e.AddLocation(e.ctx, fid, 2, devs(1)))
	e.devcount(fid, 1)
	e.must(e.DropLocation(e.ctx, fid, 2, devs(1, 2)))
	e.devcount(fid, 1)
	e.must(e.SetSetting(e.ctx, "skip_devcount", &off))
	e.must(e.AddLocation(e.ctx, fid, 3, devs(1)))
	e.devcount(fid, 2)
}

func checkDropLocation(e *env) {
	fid := e.putOn("k", 1, 2, 3)
	e.must(e.DropLocation(e.ctx, fid, 2, devs(3, 2, 1)))
	e.located(fid, devs(1, 3), devs(2))
	e.devcount(fid, 2)
	for _, seen := range [][]protocol.DevID{nil, devs(1), devs(1, 2), devs(1, 2, 3)} {
		e.want(e.DropLocation(e.ctx, fid, 1, seen), schema.ErrStale)
	}
	e.want(e.DropLocation(e.ctx, fid, 7, devs(1, 3)), schema.ErrStale) // nothing there to drop
	e.located(fid, devs(1, 3), devs(2))
	e.devcount(fid, 2)

	// Dropping makes an entry due again that somebody works on, or that waits.
	j := e.claimOne(schema.QueueCopyDelete)
	ok, err := e.Reschedule(e.ctx, j, schema.EndOfTime*1e9, 4)
	e.must(err)
	if !ok {
		e.Fatal("the job was not held")
	}
	e.must(e.AddLocation(e.ctx, fid, 2, devs(1, 3)))
	e.located(fid, devs(1, 2, 3), nil)
	e.must(e.DropLocation(e.ctx, fid, 2, devs(1, 2, 3)))
	if j := e.claimOne(schema.QueueCopyDelete); j.FID != fid || j.DevID != 2 {
		e.Errorf("job is %+v", j)
	}
}

func checkDeletedLocations(e *env) {
	fid := e.putOn("k", 1, 2, 3)
	e.must(e.DeletedLocations(e.ctx, fid, devs(3, 1, 9)))
	e.located(fid, devs(2), nil)
	e.must(e.DeletedLocations(e.ctx, fid, nil))
	e.must(e.DeletedLocations(e.ctx, fid+1, devs(1)))
	e.located(fid, devs(2), nil)
	e.queued(schema.QueueDelete, fid, false)
}

func checkPendingDeletions(e *env) {
	a, b := e.put("a"), e.put("b")
	for _, d := range devs(9, 4, 9) {
		e.must(e.QueueCopyDeletion(e.ctx, a, d, schema.Raw))
	}
	e.must(e.QueueCopyDeletion(e.ctx, b, 4, schema.Raw))
	got, err := e.PendingDeletions(e.ctx, []protocol.FID{a, b, b + 1})
	e.must(err)
	e.same("pending deletions", got, map[protocol.FID][]protocol.DevID{a: devs(4, 9), b: devs(4)})
	got, err = e.PendingDeletions(e.ctx, nil)
	e.must(err)
	e.same("of no fids", got, map[protocol.FID][]protocol.DevID{})
	if n, err := e.Finish(e.ctx, e.claim(schema.QueueCopyDelete)); err != nil || n != 3 {
		e.Fatalf("finished %d, %v; want 3", n, err)
	}
	e.located(a, devs(1), nil)
}

func checkInspect(e *env) {
	plain, summed, encoded := e.put("plain"), e.put("summed"), e.putOn("encoded", devs(1, 2, 3)...)
	sum := protocol.Checksum{Type: protocol.HashMD5, Sum: make([]byte, 16)}
	e.must(e.SetChecksum(e.ctx, summed, sum))
	for _, d := range devs(9, 4, 9) {
		e.must(e.QueueCopyDeletion(e.ctx, summed, d, schema.Raw))
	}
	enc := schema.Encoding{FID: encoded, ID: 7, K: 2, M: 1, Block: 4096, Epoch: 1, Devices: devs(4, 5, 6)}
	e.announce(enc, enc.Devices...)
	e.must(e.RecordEncoding(e.ctx, enc, devs(1, 2, 3)))
	got, err := e.Inspect(e.ctx, []protocol.FID{plain, summed, encoded, encoded + 1, plain})
	e.must(err)
	found := make(map[protocol.FID]schema.Inspected)
	for _, f := range got {
		found[f.FID] = f
	}
	if len(got) != 3 || len(found) != 3 {
		e.Fatalf("%d files, %d different, want 3", len(got), len(found))
	}
	files, err := e.FilesByFID(e.ctx, []protocol.FID{plain, summed, encoded})
	e.must(err)
	for _, f := range files {
		e.same("file", found[f.FID].LocatedFile, f)
	}
	if f := found[plain]; f.Encoding != nil || !f.Checksum.IsZero() || len(f.Pending) > 0 {
		e.Errorf("a plain file: %+v", f)
	}
	if f := found[summed]; f.Encoding != nil || !f.Checksum.Equal(sum) {
		e.Errorf("a file with a checksum: %+v", f)
	}
	e.same("pending deletions", found[summed].Pending, devs(4, 9))
	if f := found[encoded]; f.Encoding == nil || f.Encoding.ID != 7 || f.Encoding.K != 2 || len(f.Encoding.Devices) != 3 {
		e.Errorf("a file in shards: %+v", f)
	}
	none, err := e.Inspect(e.ctx, nil)
	e.must(err)
	if len(none) != 0 {
		e.Errorf("of no fids: %+v", none)
	}
}
