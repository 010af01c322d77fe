package storetest

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/schema"
)

var sweepCases = []testCase{
	{"Sweep/walk", checkSweepWalk},
	{"Sweep/lease", checkSweepLease},
	{"Sweep/give back", checkSweepRelease},
	{"Sweep/stop and reset", checkSweepReset},
	{"Sweep/position set back", checkSweepSetBack},
	{"Sweep/counters", checkSweepCounters},
	{"Sweep/many claimers", checkSweepRace},
	{"Sweep/reset while claimed", checkSweepResetRace},
	{"FilesIn", checkFilesIn},
	{"Checksums", checkChecksums},
	{"Recount", checkRecount},
	{"HighestFID", checkHighestFID},
	{"QueueFsck", checkQueueFsck},
	{"FsckLog", checkFsckLog},
	{"FsckLog/fold", checkFold},
	{"FsckLog/fold while logging", checkFoldRace},
}

const lease = 2 * time.Minute

func (e *env) set(field, value string) {
	e.Helper()
	e.must(e.SetSetting(e.ctx, field, &value))
}

func (e *env) unset(field string) {
	e.Helper()
	e.must(e.SetSetting(e.ctx, field, nil))
}

// setting fails the case unless a setting has a value, empty for none.
func (e *env) setting(field, want string) {
	e.Helper()
	got, _, err := e.Setting(e.ctx, field)
	e.must(err)
	if got != want {
		e.Fatalf("setting %s is %q; want %q", field, got, want)
	}
}

// files makes n file rows with fids first and on, in steps of step, each on
// device 1.
func (e *env) files(first, step, n int) []protocol.FID {
	e.Helper()
	rows, on, fids := make([]string, n), make([]string, n), make([]protocol.FID, n)
	for i := range n {
		fid := first + i*step
		rows[i] = fmt.Sprintf("(%d, %d, 'file %d', 11, 0, 1)", fid, e.dmid, fid)
		on[i] = fmt.Sprintf("(%d, 1)", fid)
		fids[i] = protocol.FID(fid)
	}
	e.db.Exec(e, "INSERT INTO file (fid, dmid, dkey, length, classid, devcount) VALUES "+strings.Join(rows, ", "))
	e.db.Exec(e, "INSERT INTO file_on (fid, devid) VALUES "+strings.Join(on, ", "))
	return fids
}

// sweep starts a walk up to a fid.
func (e *env) sweep(w schema.Sweep, end int) {
	e.Helper()
	e.set(w.End(), strconv.Itoa(end))
	e.set(w.Host(), "tracker1")
}

// claimRange claims a range that must be there.
func (e *env) claimRange(w schema.Sweep, limit int) schema.Range {
	e.Helper()
	r, ok, err := e.ClaimRange(e.ctx, w, limit, lease)
	e.must(err)
	if !ok {
		e.Fatalf("there is no range of %s", w)
	}
	if r.Sweep != w {
		e.Fatalf("range is %+v; want one of %s", r, w)
	}
	return r
}

// noRange fails the case where something can be claimed.
func (e *env) noRange(w schema.Sweep) {
	e.Helper()
	r, ok, err := e.ClaimRange(e.ctx, w, 100, lease)
	e.must(err)
	if ok {
		e.Fatalf("claimed %+v; want nothing", r)
	}
}

func (e *env) ranges(w schema.Sweep, wantRanges, wantFiles int64) {
	e.Helper()
	ranges, files, err := e.Ranges(e.ctx, w)
	e.must(err)
	if ranges != wantRanges || files != wantFiles {
		e.Fatalf("%s has %d ranges of %d files; want %d of %d", w, ranges, files, wantRanges, wantFiles)
	}
}

// finishRange finishes a range that must (or must not) be held.
func (e *env) finishRange(r schema.Range, t schema.Tally, want bool) {
	e.Helper()
	ok, err := e.FinishRange(e.ctx, r, t)
	e.must(err)
	if ok != want {
		e.Fatalf("finishing %+v: %t; want %t", r, ok, want)
	}
}

// span is a range without its token.
func span(r schema.Range) [3]int { return [3]int{int(r.First), int(r.Last), r.Files} }

func checkSweepWalk(e *env) {
	const w = schema.SweepFsck
	e.files(10, 10, 10) // 10, 20, … 100
	e.noRange(w)        // it does not run
	e.setting(w.Position(), "")
	e.set(w.Host(), "tracker1")
	e.noRange(w) // it has no end
	e.sweep(w, 95)
	r, ok, err := e.ClaimRange(e.ctx, w, 0, lease)
	if err != nil || ok {
		e.Fatalf("limit 0: %+v, %t, %v", r, ok, err)
	}
	a := e.claimRange(w, 4)
	e.same("first", span(a), [3]int{1, 40, 4})
	e.setting(w.Position(), "40")
	e.ranges(w, 1, 4)
	b := e.claimRange(w, 4)
	e.same("second", span(b), [3]int{41, 80, 4})
	// The last run reaches to the end, beyond its last file.
	c := e.claimRange(w, 4)
	e.same("third", span(c), [3]int{81, 95, 1})
	e.setting(w.Position(), "95")
	e.noRange(w)
	e.ranges(w, 3, 9)
	for _, r := range []schema.Range{b, a, c} {
		e.finishRange(r, schema.Tally{Files: int64(r.Files)}, true)
		e.finishRange(r, schema.Tally{Files: 100}, false)
	}
	e.setting(w.Checked(), "9")
	e.ranges(w, 0, 0)
	e.noRange(w)

	// Where no file is left, the position moves to the end all the same.
	e.set(w.End(), "5000")
	e.claimRange(w, 1)
	e.setting(w.Position(), "100")
	e.noRange(w)
	e.setting(w.Position(), "5000")
	e.ranges(w, 1, 1)
	e.noRange(schema.SweepScrub) // another walk
}

func checkSweepLease(e *env) {
	const w = schema.SweepScrub
	e.files(1, 1, 20)
	e.sweep(w, 20)
	a := e.claimRange(w, 5)
	if left := time.Until(time.UnixMilli(a.Until)); left < lease-10*time.Second || left > lease+lease/10+10*time.Second {
		e.Errorf("the lease ends in %s; want about %s", left, lease)
	}
	e.advance(lease / 2)
	renewed, ok, err := e.RenewRange(e.ctx, a, lease)
	e.must(err)
	if !ok || renewed.Until <= a.Until || span(renewed) != span(a) {
		e.Fatalf("renewed %+v as %+v, %t", a, renewed, ok)
	}
	// The old token has gone.
	_, ok, err = e.RenewRange(e.ctx, a, lease)
	if err != nil || ok {
		e.Fatalf("renewed a token that was replaced: %t, %v", ok, err)
	}
	e.finishRange(a, schema.Tally{Files: 5}, false)
	e.must(e.ReleaseRange(e.ctx, a))
	a = renewed
	e.advance(lease * 2 / 3) // the first lease would have ended
	b := e.claimRange(w, 5)
	e.same("while it is held", span(b), [3]int{6, 10, 5})
	// What lapsed comes before what is new.
	e.advance(lease / 2)
	again := e.claimRange(w, 5)
	e.same("after it has ended", span(again), span(a))
	if again.Until <= a.Until {
		e.Errorf("the new token %d is not after the old one %d", again.Until, a.Until)
	}
	for _, lost := range []schema.Range{a} {
		_, ok, err = e.RenewRange(e.ctx, lost, lease)
		if err != nil || ok {
			e.Fatalf("renewed a lost lease: %t, %v", ok, err)
		}
		e.finishRange(lost, schema.Tally{Files: 5, Events: map[string]int64{"MISS": 1}}, false)
		e.must(e.ReleaseRange(e.ctx, lost))
	}
	e.setting(w.Checked(), "")
	e.setting(w.Events("MISS"), "")
	e.ranges(w, 2, 10)
	e.finishRange(again, schema.Tally{Files: 5}, true)
	// A lease that has ended, but was taken by nobody, is held.
	e.advance(2 * lease)
	e.finishRange(b, schema.Tally{Files: 5}, true)
	e.setting(w.Checked(), "10")
	e.same("the rest", span(e.claimRange(w, 100)), [3]int{11, 20, 10})
}

func checkSweepRelease(e *env) {
	const w = schema.SweepFsck
	e.files(1, 1, 10)
	e.sweep(w, 10)
	a := e.claimRange(w, 5)
	tokens := map[int64]bool{a.Until: true}
	for range 20 {
		e.must(e.ReleaseRange(e.ctx, a))
		e.finishRange(a, schema.Tally{Files: 5}, false)
		_, ok, err := e.RenewRange(e.ctx, a, lease)
		if err != nil || ok {
			e.Fatalf("renewed a range that was given back: %t, %v", ok, err)
		}
		b := e.claimRange(w, 5)
		e.same("given back", span(b), span(a))
		if b.Until == a.Until {
			e.Fatalf("the token %d is given out again", b.Until)
		}
		tokens[b.Until] = true
		a = b
	}
	e.finishRange(a, schema.Tally{Files: 5}, true)
	e.must(e.ReleaseRange(e.ctx, a))
	e.ranges(w, 0, 0)
	e.setting(w.Checked(), "5")
}

func checkSweepReset(e *env) {
	const w = schema.SweepFsck
	e.files(1, 1, 10)
	e.sweep(w, 10)
	e.sweep(schema.SweepScrub, 10)
	a := e.claimRange(w, 3)
	other := e.claimRange(schema.SweepScrub, 4)
	// While it is stopped nothing is claimed, but what is held can be finished.
	e.unset(w.Host())
	e.noRange(w)
	b := e.claimRange(schema.SweepScrub, 4)
	e.finishRange(b, schema.Tally{}, true)
	e.must(e.ReleaseRange(e.ctx, a))
	e.noRange(w)
	e.set(w.Host(), "")
	e.noRange(w)
	e.set(w.Host(), "tracker2")
	a = e.claimRange(w, 3)
	e.same("after the pause", span(a), [3]int{1, 3, 3})

	// Those of a sweep that begins anew are forgotten, with the change that has it
	// do so, or not at all.
	forget := schema.SettingsChange{Expect: map[string]*string{w.Host(): nil}, Forget: w}
	if err := e.ChangeSettings(e.ctx, forget); !errors.Is(err, schema.ErrStale) {
		e.Errorf("a change that is not to be: %v", err)
	}
	e.ranges(w, 1, 3)
	forget.Expect = nil
	e.must(e.ChangeSettings(e.ctx, forget))
	e.ranges(w, 0, 0)
	e.ranges(schema.SweepScrub, 1, 4)
	e.finishRange(a, schema.Tally{Files: 3}, false)
	e.finishRange(other, schema.Tally{Files: 4}, true)
	e.set(w.Position(), "7")
	e.same("from the new position", span(e.claimRange(w, 100)), [3]int{8, 10, 3})
	for _, odd := range []string{"", "x", "-5", "1e3"} {
		e.must(e.ChangeSettings(e.ctx, schema.SettingsChange{Set: map[string]*string{w.Position(): &odd}, Forget: w}))
		e.same("from position "+odd, span(e.claimRange(w, 1)), [3]int{1, 1, 1})
	}
}

// checkSweepSetBack sets the position back without forgetting the ranges.
func checkSweepSetBack(e *env) {
	const w = schema.SweepFsck
	e.files(1, 1, 10)
	e.sweep(w, 10)
	a := e.claimRange(w, 4)
	e.set(w.Position(), "0")
	b := e.claimRange(w, 6)
	e.same("in its place", span(b), [3]int{1, 6, 6})
	e.ranges(w, 1, 6)
	e.finishRange(a, schema.Tally{Files: 4}, false)
	e.finishRange(b, schema.Tally{Files: 6}, true)
	e.setting(w.Checked(), "6")
}

func checkSweepCounters(e *env) {
	e.files(1, 1, 10)
	for _, w := range []schema.Sweep{schema.SweepFsck, schema.SweepScrub} {
		e.sweep(w, 10)
		e.finishRange(e.claimRange(w, 2), schema.Tally{Files: 2, Bytes: 5 << 40, Events: map[string]int64{"MISS": 1, "BLEN": 2}}, true)
		e.finishRange(e.claimRange(w, 2), schema.Tally{Files: 1, Bytes: 1, Events: map[string]int64{"MISS": 3}}, true)
		e.finishRange(e.claimRange(w, 2), schema.Tally{}, true)
		e.setting(w.Checked(), "3")
		e.setting(w.Bytes(), strconv.Itoa(5<<40+1))
		e.set(w.Checked(), "much") // not a number
		e.finishRange(e.claimRange(w, 2), schema.Tally{Files: 2}, true)
		e.setting(w.Checked(), "2")
	}
	e.setting("scrub_sum_evcount_MISS", "4")
	e.setting("scrub_sum_evcount_BLEN", "2")
	e.setting("fsck_sum_evcount_MISS", "") // the log has those
}

// checkSweepRace has workers of several trackers claim and finish ranges, some
// of which crash, while clients create and delete files. Every file that stays
// is in one range that is finished, and the counters have each once.
func checkSweepRace(e *env) {
	const w, workers = schema.SweepFsck, 8
	n := scale(e, 400)
	files := e.files(1, 3, n)
	e.sweep(w, int(files[n-1]))
	seed := seed(e)
	stores := []schema.Store{e.Store, e.db.Open(e)}
	var mu sync.Mutex
	var finished []schema.Range
	work := func(i int, crash float64) {
		s, rng := stores[i%2], random(seed, i)
		for {
			r, ok, err := s.ClaimRange(e.ctx, w, 1+rng.IntN(10), lease)
			if err != nil {
				e.Errorf("claim: %v", err)
				return
			}
			if !ok {
				return
			}
			if rng.Float64() < crash {
				continue
			}
			if rng.IntN(4) == 0 {
				if r, ok, err = s.RenewRange(e.ctx, r, lease); err != nil || !ok {
					e.Errorf("renew %+v: %t, %v", r, ok, err)
					return
				}
			}
			if ok, err = s.FinishRange(e.ctx, r, schema.Tally{Files: int64(r.Files)}); err != nil || !ok {
				e.Errorf("finish %+v: %t, %v", r, ok, err)
				return
			}
			mu.Lock()
			finished = append(finished, r)
			mu.Unlock()
		}
	}
	parallel(workers, func(i int) { work(i, 0.4) })
	ranges, _, err := e.Ranges(e.ctx, w)
	e.must(err)
	if ranges == 0 {
		e.Fatal("no worker crashed")
	}
	e.advance(2 * lease)
	parallel(workers, func(i int) { work(100+i, 0) })
	e.ranges(w, 0, 0)
	slices.SortFunc(finished, func(a, b schema.Range) int { return int(a.First) - int(b.First) })
	next, sum := protocol.FID(1), 0
	for _, r := range finished {
		if r.First != next {
			e.Fatalf("range %+v follows one that ends at %d", r, next-1)
		}
		next, sum = r.Last+1, sum+r.Files
	}
	if next != files[n-1]+1 || sum != n {
		e.Errorf("ranges of %d files reach to %d; want %d files to %d", sum, next-1, n, files[n-1])
	}
	e.setting(w.Checked(), strconv.Itoa(n))
}

// checkSweepResetRace sets the walk back, and has its ranges forgotten, while
// workers claim from it and finish: each file is counted once from then on.
func checkSweepResetRace(e *env) {
	const w = schema.SweepFsck
	n := scale(e, 100)
	e.files(1, 1, n)
	e.sweep(w, n)
	stores := []schema.Store{e.Store, e.db.Open(e)}
	for range 5 {
		const workers = 4
		zero := "0"
		parallel(workers+1, func(i int) {
			if i == workers {
				c := schema.SettingsChange{Set: map[string]*string{w.Position(): &zero, w.Checked(): &zero}, Forget: w}
				if err := stores[0].ChangeSettings(e.ctx, c); err != nil {
					e.Errorf("set back: %v", err)
				}
				return
			}
			for n := 0; ; n++ {
				r, ok, err := stores[i%2].ClaimRange(e.ctx, w, 7, lease)
				if ok && n%2 > 0 {
					_, err = stores[i%2].FinishRange(e.ctx, r, schema.Tally{Files: int64(r.Files)})
				}
				if err != nil {
					e.Errorf("claim or finish: %v", err)
				}
				if err != nil || !ok {
					return
				}
			}
		})
		e.advance(2 * lease) // what was not finished lapses
		for {
			r, ok, err := e.ClaimRange(e.ctx, w, 7, lease)
			e.must(err)
			if !ok {
				break
			}
			e.finishRange(r, schema.Tally{Files: int64(r.Files)}, true)
		}
		e.setting(w.Checked(), strconv.Itoa(n))
	}
}

func checkFilesIn(e *env) {
	a, b := e.putOn("a", 3, 1), e.put("b")
	c := e.put("c")
	e.must(e.DeletedLocations(e.ctx, c, devs(1)))
	d := e.put("d")
	_, err := e.DeleteKey(e.ctx, e.dmid, "b")
	e.must(err)
	file := func(fid protocol.FID, key string, on ...protocol.DevID) schema.LocatedFile {
		return schema.LocatedFile{File: schema.File{FID: fid, DMID: e.dmid, Key: key, Length: 11, DevCount: len(on)}, Devices: on}
	}
	all := []schema.LocatedFile{file(a, "a", 1, 3), file(c, "c"), file(d, "d", 1)}
	for _, x := range []struct {
		first, last protocol.FID
		limit       int
		want        []schema.LocatedFile
	}{
		{0, protocol.MaxFID, 10, all},
		{0, 1<<64 - 1, 10, all},
		{a, d, 2, all[:2]},
		{a + 1, c, 10, all[1:2]},
		{b, b, 10, nil},
		{d + 1, 1 << 40, 10, nil},
		{1<<64 - 1, 1<<64 - 1, 10, nil},
		{d, a, 10, nil},
		{0, d, 0, nil},
	} {
		got, err := e.FilesIn(e.ctx, x.first, x.last, x.limit)
		e.must(err)
		e.same(fmt.Sprintf("files in %d-%d, limit %d", x.first, x.last, x.limit), got, x.want)
	}
}

func checkChecksums(e *env) {
	a, b, c := e.put("a"), e.put("b"), e.put("c")
	md5 := protocol.Checksum{Type: protocol.HashMD5, Sum: []byte("0123456789abcdef")}
	sha := protocol.Checksum{Type: protocol.HashSHA1, Sum: []byte("0123456789abcdefghij")}
	e.must(e.SetChecksum(e.ctx, a, md5))
	e.must(e.SetChecksum(e.ctx, c, sha))
	got, err := e.Checksums(e.ctx, []protocol.FID{c, b, a, 1 << 50, 1<<64 - 1})
	e.must(err)
	e.same("checksums", got, map[protocol.FID]protocol.Checksum{a: md5, c: sha})
	got, err = e.Checksums(e.ctx, nil)
	e.must(err)
	e.same("of no fids", got, map[protocol.FID]protocol.Checksum{})
}

func checkRecount(e *env) {
	a, b, c, gone := e.putOn("a", 1, 2), e.put("b"), e.putOn("c", 1, 2, 3), e.put("gone")
	_, err := e.DeleteKey(e.ctx, e.dmid, "gone")
	e.must(err)
	fids := []protocol.FID{c, a, b, gone, 1 << 50}
	changed, err := e.Recount(e.ctx, fids)
	e.must(err)
	e.same("nothing is wrong", changed, []protocol.FID(nil))
	e.db.Exec(e, fmt.Sprintf("UPDATE file SET devcount = 7 WHERE fid IN (%d, %d)", a, c))
	e.db.Exec(e, fmt.Sprintf("DELETE FROM file_on WHERE fid = %d", c))
	changed, err = e.Recount(e.ctx, []protocol.FID{c, b, gone})
	e.must(err)
	e.same("corrected", changed, []protocol.FID{c})
	e.devcount(c, 0)
	e.devcount(a, 7)
	changed, err = e.Recount(e.ctx, fids)
	e.must(err)
	e.same("corrected", changed, []protocol.FID{a})
	e.devcount(a, 2)
	changed, err = e.Recount(e.ctx, nil)
	e.must(err)
	e.same("of no fids", changed, []protocol.FID(nil))

	// While copies are recorded and dropped, the count ends right.
	stores := []schema.Store{e.Store, e.db.Open(e)}
	parallel(4, func(i int) {
		for range scale(e, 30) {
			var err error
			switch i {
			case 0:
				err = stores[0].AddLocation(e.ctx, b, 2, devs(1))
			case 1:
				err = stores[1].DropLocation(e.ctx, b, 2, devs(1, 2))
			default:
				_, err = stores[i%2].Recount(e.ctx, []protocol.FID{a, b})
			}
			if err != nil && !isStale(err) {
				e.Error(err)
			}
		}
	})
	if d := e.debug(b); d.File.DevCount != len(d.Devices) {
		e.Errorf("devcount is %d; the file is on %v", d.File.DevCount, d.Devices)
	}
}

func checkHighestFID(e *env) {
	inFile, _, err := e.HighestFID(e.ctx)
	e.must(err)
	if inFile != 0 {
		e.Errorf("an empty table has %d", inFile)
	}
	a := e.put("a")
	b := e.open("b")
	inFile, issued, err := e.HighestFID(e.ctx)
	e.must(err)
	if inFile != a || issued < b {
		e.Errorf("highest fids are %d and %d; want %d and %d or more", inFile, issued, a, b)
	}
	e.db.Exec(e, fmt.Sprintf("INSERT INTO file (fid, dmid, dkey, length, classid, devcount) VALUES (1000000000, %d, 'strange', 1, 0, 0)", e.dmid))
	inFile, issued, err = e.HighestFID(e.ctx)
	e.must(err)
	if inFile != 1e9 || issued < 1e9 {
		e.Errorf("highest fids are %d and %d; want %d", inFile, issued, int(1e9))
	}
}

func checkQueueFsck(e *env) {
	e.must(e.QueueFsck(e.ctx, nil, 0, ""))
	e.must(e.QueueFsck(e.ctx, []protocol.FID{5, 3, 5, 4}, 0, ""))
	e.must(e.QueueFsck(e.ctx, []protocol.FID{6}, 1000*time.Second, ""))
	e.db.Exec(e, "INSERT INTO file_to_queue (fid, type, devid, nexttry) VALUES (3, 2, 1, 0)") // another queue
	jobs := e.claim(schema.QueueFsck)
	e.same("due", jobFIDs(jobs), []protocol.FID{3, 4, 5})
	// Those that are there stay as they are: leased, or due at their time.
	e.must(e.QueueFsck(e.ctx, []protocol.FID{3, 6}, 0, ""))
	e.same("due again", jobFIDs(e.claim(schema.QueueFsck)), []protocol.FID(nil))
	n, err := e.Finish(e.ctx, jobs)
	e.must(err)
	if n != 3 {
		e.Fatalf("finished %d; want 3", n)
	}
	e.must(e.QueueFsck(e.ctx, []protocol.FID{3}, 0, ""))
	e.same("queued anew", jobFIDs(e.claim(schema.QueueFsck)), []protocol.FID{3})
	e.queued(schema.QueueRebalance, 3, true)
	e.advance(1001 * time.Second)
	e.same("later", jobFIDs(e.claim(schema.QueueFsck)), []protocol.FID{3, 6})

	// What is to be read is told to rows that are there as well, and stays told.
	args := func(what string, want ...string) {
		e.Helper()
		var got []string
		jobs := e.claim(schema.QueueFsck)
		slices.SortFunc(jobs, func(a, b schema.Job) int { return cmp.Compare(a.FID, b.FID) })
		for _, j := range jobs {
			got = append(got, j.Arg)
		}
		e.same(what, got, want)
	}
	e.must(e.QueueFsck(e.ctx, []protocol.FID{7}, 0, ""))
	e.must(e.QueueFsck(e.ctx, []protocol.FID{9}, 0, ""))
	e.must(e.QueueFsck(e.ctx, []protocol.FID{7, 8}, 0, schema.FsckContent))
	e.must(e.QueueFsck(e.ctx, []protocol.FID{7, 8}, 0, ""))
	args("to be read", schema.FsckContent, schema.FsckContent, "")
	e.advance(2 * lease)
	args("to be read, later", "", "", schema.FsckContent, schema.FsckContent, "")
}

func (e *env) events(after int64, limit int) []schema.FsckEvent {
	e.Helper()
	events, err := e.FsckEvents(e.ctx, after, limit)
	e.must(err)
	return events
}

func (e *env) lastEvent() int64 {
	e.Helper()
	last, err := e.LastFsckEvent(e.ctx)
	e.must(err)
	return last
}

func checkFsckLog(e *env) {
	if last := e.lastEvent(); last != 0 {
		e.Errorf("an empty log ends at %d", last)
	}
	e.must(e.LogFsck(e.ctx, nil))
	e.must(e.LogFsck(e.ctx, []schema.FsckEvent{
		{LogID: 999, Time: 999, FID: 42, Code: "MISS", DevID: p(protocol.DevID(7))},
		{Code: "NOPA"},
	}))
	e.advance(time.Hour)
	e.must(e.LogFsck(e.ctx, []schema.FsckEvent{{FID: 43, Code: "REPL"}}))
	for _, code := range []string{"", "TOOLONG", "BAD", "É12", "AB C"} {
		if err := e.LogFsck(e.ctx, []schema.FsckEvent{{FID: 43, Code: "GONE"}, {Code: code}}); err == nil {
			e.Errorf("code %q was logged", code)
		}
	}
	events := e.events(0, 100)
	if len(events) != 3 {
		e.Fatalf("the log has %+v; want 3 rows", events)
	}
	for i, ago := range []time.Duration{time.Hour, time.Hour, 0} {
		if d := (time.Since(time.Unix(events[i].Time, 0)) + time.Hour - ago).Abs(); d > time.Minute {
			e.Errorf("event %d is off by %s", i, d)
		}
		events[i].Time = 0
		if i > 0 && events[i].LogID <= events[i-1].LogID {
			e.Errorf("the log is not ascending: %+v", events)
		}
	}
	first, last := events[0].LogID, events[2].LogID
	if e.lastEvent() != last {
		e.Errorf("the log ends at %d; want %d", e.lastEvent(), last)
	}
	for i := range events {
		events[i].LogID = 0
	}
	e.same("events", events, []schema.FsckEvent{{FID: 42, Code: "MISS", DevID: p(protocol.DevID(7))}, {Code: "NOPA"}, {FID: 43, Code: "REPL"}})
	if got := e.events(first, 1); len(got) != 1 || got[0].Code != "NOPA" {
		e.Errorf("one event after %d: %+v", first, got)
	}
	if got := append(e.events(last, 100), e.events(0, 0)...); len(got) != 0 {
		e.Errorf("events after the last: %+v", got)
	}
	e.must(e.ClearFsckLog(e.ctx))
	e.must(e.ClearFsckLog(e.ctx))
	if got := e.events(0, 100); len(got) != 0 {
		e.Errorf("after clearing: %+v", got)
	}
	e.must(e.LogFsck(e.ctx, []schema.FsckEvent{{FID: 44, Code: "REPL"}}))
	if got := e.lastEvent(); got <= last {
		e.Errorf("number %d is given out again after %d", got, last)
	}
}

func checkFold(e *env) {
	log := func(codes ...string) {
		e.Helper()
		for _, code := range codes {
			e.must(e.LogFsck(e.ctx, []schema.FsckEvent{{FID: 1, Code: code}}))
		}
	}
	const processed = "fsck_logid_processed"
	e.must(e.FoldFsckLog(e.ctx))
	e.setting(processed, "")
	log("OLD1")
	e.set(processed, strconv.FormatInt(e.lastEvent(), 10)) // as a reset does
	e.must(e.FoldFsckLog(e.ctx))
	e.setting("fsck_sum_evcount_OLD1", "")
	log("MISS", "BLEN", "MISS")
	e.set("fsck_sum_evcount_BLEN", "10")
	for range 2 {
		e.must(e.FoldFsckLog(e.ctx))
		e.setting("fsck_sum_evcount_MISS", "2")
		e.setting("fsck_sum_evcount_BLEN", "11")
		e.setting(processed, strconv.FormatInt(e.lastEvent(), 10))
	}
	log("MISS")
	e.db.Exec(e, "INSERT INTO fsck_log (utime, fid) VALUES (5, 5)") // nobody's
	e.must(e.FoldFsckLog(e.ctx))
	e.setting("fsck_sum_evcount_MISS", "3")
	e.setting(processed, strconv.FormatInt(e.lastEvent(), 10))
	// A position that is no number is the beginning.
	e.unset("fsck_sum_evcount_MISS")
	e.set(processed, "?")
	e.must(e.FoldFsckLog(e.ctx))
	e.setting("fsck_sum_evcount_MISS", "3")
	e.setting("fsck_sum_evcount_OLD1", "1")
}

// checkFoldRace logs from many workers while several count: every row is
// counted once.
func checkFoldRace(e *env) {
	const workers = 6
	rounds := scale(e, 30)
	stores := []schema.Store{e.Store, e.db.Open(e)}
	parallel(workers+2, func(i int) {
		for n := range rounds {
			var err error
			if i < workers {
				err = stores[i%2].LogFsck(e.ctx, []schema.FsckEvent{{FID: protocol.FID(n), Code: "MISS"}, {Code: "REPL"}})
			} else {
				err = stores[i%2].FoldFsckLog(e.ctx)
			}
			if err != nil {
				e.Error(err)
			}
		}
	})
	e.must(e.FoldFsckLog(e.ctx))
	want := strconv.Itoa(workers * rounds)
	e.setting("fsck_sum_evcount_MISS", want)
	e.setting("fsck_sum_evcount_REPL", want)
	e.setting("fsck_logid_processed", strconv.FormatInt(e.lastEvent(), 10))
}
