package storetest

import (
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/schema"
)

var queueCases = []testCase{
	{"Claim", checkClaim},
	{"Claim/every queue", checkEveryQueue},
	{"Claim/disjoint", checkDisjoint},
	{"Claim/worker died", checkWorkerDied},
	{"Renew", checkRenew},
	{"Finish/stale token", checkStaleToken},
	{"Finish/queued again", checkQueuedAgain},
	{"Reschedule", checkReschedule},
	{"QueueReplication", checkQueueReplication},
	{"QueueShards", checkQueueShards},
	{"QueueCopyDeletion", checkQueueCopyDeletion},
	{"AnnounceCopy", checkAnnounceCopy},
	{"ReplicateNow", checkReplicateNow},
	{"FinishDeletion", checkFinishDeletion},
	{"AdoptOldDeletions", checkAdoptOldDeletions},
	{"QueueLengths", checkQueueLengths},
}

// leaseOf fails the case unless job's token lies lease ahead, with at most a
// tenth of jitter.
func (e *env) leaseOf(job schema.Job, lease time.Duration) {
	e.Helper()
	top, err := e.Topology(e.ctx)
	e.must(err)
	ahead := job.NextTry - top.Now.Unix()
	low, high := int64(lease/time.Second)-5, int64(lease*11/10/time.Second)+2 // the clock moves on
	if ahead < low || ahead > high {
		e.Errorf("lease of %+v ends in %d s; want %d to %d", job, ahead, low, high)
	}
}

func checkClaim(e *env) {
	e.same("jobs of an empty queue", e.claim(schema.QueueReplicate), []schema.Job(nil))
	for i, row := range []string{"300, NULL, 1", "100, 7, 2", "200, NULL, 0"} {
		e.db.Exec(e, fmt.Sprintf("INSERT INTO file_to_replicate (fid, nexttry, fromdevid, failcount) VALUES (%d, %s)", i+1, row))
	}
	e.db.Exec(e, "INSERT INTO file_to_replicate (fid, nexttry) VALUES (4, 2147483647)")
	jobs, err := e.Claim(e.ctx, schema.QueueReplicate, 2, 10*time.Minute)
	e.must(err)
	for i := range jobs {
		e.leaseOf(jobs[i], 10*time.Minute)
		jobs[i].NextTry = 0
	}
	e.same("the longest due", jobs, []schema.Job{
		{Queue: schema.QueueReplicate, FID: 2, From: 7, FailCount: 2},
		{Queue: schema.QueueReplicate, FID: 3},
	})
	e.same("the rest", jobFIDs(e.claim(schema.QueueReplicate)), []protocol.FID{1})
	e.same("nothing is due", e.claim(schema.QueueReplicate), []schema.Job(nil))
	e.db.Exec(e, "UPDATE file_to_replicate SET nexttry = 0")
	jobs, err = e.Claim(e.ctx, schema.QueueReplicate, 0, time.Minute)
	e.must(err)
	e.same("limit 0", jobs, []schema.Job(nil))
}

// fill gives each queue two rows.
func (e *env) fill() map[schema.Queue][]schema.Job {
	for _, sql := range []string{
		"INSERT INTO file_to_replicate (fid, nexttry, fromdevid) VALUES (11, 0, 3)",
		"INSERT INTO file_to_replicate (fid, nexttry) VALUES (12, 1)",
		"INSERT INTO file_to_delete2 (fid, nexttry, failcount) VALUES (11, 0, 1)",
		"INSERT INTO file_to_delete2 (fid, nexttry) VALUES (12, 1)",
		"INSERT INTO file_to_queue (fid, type, nexttry) VALUES (11, 1, 0)",
		"INSERT INTO file_to_queue (fid, type, nexttry, failcount) VALUES (12, 1, 1, 3)",
		"INSERT INTO file_to_queue (fid, type, devid, nexttry, arg) VALUES (11, 2, 5, 0, '6,7')",
		"INSERT INTO file_to_queue (fid, type, devid, nexttry) VALUES (12, 2, 6, 1)",
	} {
		e.db.Exec(e, sql)
	}
	e.must(e.QueueCopyDeletion(e.ctx, 11, 4, schema.Raw))
	e.must(e.QueueCopyDeletion(e.ctx, 11, 5, schema.Raw))
	return map[schema.Queue][]schema.Job{
		schema.QueueReplicate:  {{FID: 11, From: 3}, {FID: 12}},
		schema.QueueDelete:     {{FID: 11, FailCount: 1}, {FID: 12}},
		schema.QueueCopyDelete: {{FID: 11, DevID: 4, What: schema.Raw}, {FID: 11, DevID: 5, What: schema.Raw}},
		schema.QueueFsck:       {{FID: 11}, {FID: 12, FailCount: 3}},
		schema.QueueRebalance:  {{FID: 11, DevID: 5, Arg: "6,7"}, {FID: 12, DevID: 6}},
	}
}

// checkEveryQueue takes a row of each queue through its life.
func checkEveryQueue(e *env) {
	for q, want := range e.fill() {
		jobs := e.claim(q)
		slices.SortFunc(jobs, func(a, b schema.Job) int {
			return (int(a.FID)-int(b.FID))*1000 + int(a.DevID) - int(b.DevID)
		})
		bare := slices.Clone(jobs)
		for i := range bare {
			e.leaseOf(bare[i], 2*time.Minute)
			bare[i].NextTry = 0
			want[i].Queue = q
		}
		e.same("jobs of queue "+q.String(), bare, want)

		e.advance(time.Minute)
		jobs, err := e.Renew(e.ctx, jobs, 2*time.Minute)
		e.must(err)
		if len(jobs) != 2 {
			e.Fatalf("queue %s: renewed %+v; want both", q, jobs)
		}
		ok, err := e.Reschedule(e.ctx, jobs[0], 30*time.Second, 5)
		e.must(err)
		if !ok {
			e.Fatalf("queue %s: rescheduling %+v changed nothing", q, jobs[0])
		}
		n, err := e.Finish(e.ctx, jobs)
		e.must(err)
		if n != 1 {
			e.Fatalf("queue %s: finished %d; want the one that was not rescheduled", q, n)
		}
		e.same("not due yet", e.claim(q), []schema.Job(nil))
		e.advance(31 * time.Second)
		again := e.claimOne(q)
		if again.FID != jobs[0].FID || again.DevID != jobs[0].DevID || again.FailCount != 5 {
			e.Errorf("queue %s: claimed %+v; want %+v with failcount 5", q, again, jobs[0])
		}
		if n, err := e.Finish(e.ctx, []schema.Job{again}); err != nil || n != 1 {
			e.Errorf("queue %s: finished %d, %v; want 1", q, n, err)
		}
	}
	n, err := e.QueueLengths(e.ctx)
	e.must(err)
	for q, n := range n {
		if n != 0 {
			e.Errorf("queue %s has %d rows left", q, n)
		}
	}
}

// checkDisjoint has two trackers claim at once.
func checkDisjoint(e *env) {
	const rows = 300
	fids := make([]protocol.FID, rows)
	for i := range fids {
		fids[i] = protocol.FID(i + 1)
	}
	e.must(e.QueueReplication(e.ctx, fids, 0, 0))
	stores := []schema.Store{e.Store, e.db.Open(e)}
	var mu sync.Mutex
	var got []protocol.FID
	parallel(8, func(i int) {
		for {
			jobs, err := stores[i%2].Claim(e.ctx, schema.QueueReplicate, 7, time.Hour)
			if err != nil {
				e.Error(err)
				return
			}
			mu.Lock()
			done := len(got) == rows
			got = append(got, jobFIDs(jobs)...)
			mu.Unlock()
			// A claim may come back empty-handed while others hold the rows.
			if done || e.ctx.Err() != nil {
				return
			}
		}
	})
	slices.Sort(got)
	e.same("claimed fids", got, fids)
}

func checkWorkerDied(e *env) {
	fid := e.put("k")
	dead := e.claimOne(schema.QueueReplicate)
	e.same("under its lease", e.claim(schema.QueueReplicate), []schema.Job(nil))
	e.advance(time.Minute)
	e.same("under its lease", e.claim(schema.QueueReplicate), []schema.Job(nil))
	e.advance(80 * time.Second)
	heir := e.claimOne(schema.QueueReplicate)
	if heir.FID != fid {
		e.Fatalf("claimed %+v; want fid %d", heir, fid)
	}
	// The dead one was only slow.
	if n, err := e.Finish(e.ctx, []schema.Job{dead}); err != nil || n != 0 {
		e.Errorf("finished %d, %v with a lost lease; want 0", n, err)
	}
	if jobs, err := e.Renew(e.ctx, []schema.Job{dead}, time.Minute); err != nil || len(jobs) != 0 {
		e.Errorf("renewed %+v, %v; want none", jobs, err)
	}
	if n, err := e.Finish(e.ctx, []schema.Job{heir}); err != nil || n != 1 {
		e.Errorf("finished %d, %v; want 1", n, err)
	}
}

func checkRenew(e *env) {
	e.put("a")
	e.put("b")
	jobs := e.claim(schema.QueueReplicate)
	lost := jobs[0]
	for range 5 { // in all far longer than the lease
		e.advance(100 * time.Second)
		var err error
		jobs, err = e.Renew(e.ctx, jobs, 2*time.Minute)
		e.must(err)
		for _, j := range jobs {
			e.leaseOf(j, 2*time.Minute)
		}
		if len(jobs) != 2 {
			e.Fatalf("renewed %+v; want both", jobs)
		}
		e.same("under its lease", e.claim(schema.QueueReplicate), []schema.Job(nil))
	}
	if n, err := e.Finish(e.ctx, []schema.Job{lost}); err != nil || n != 0 {
		e.Errorf("finished %d, %v with a token from before; want 0", n, err)
	}
	// One is queued again: it alone is lost.
	e.must(e.QueueReplication(e.ctx, []protocol.FID{jobs[1].FID}, 0, 0))
	kept, err := e.Renew(e.ctx, jobs, 2*time.Minute)
	e.must(err)
	e.same("still held", jobFIDs(kept), jobFIDs(jobs[:1]))
	kept, err = e.Renew(e.ctx, nil, time.Minute)
	e.must(err)
	e.same("none of none", kept, []schema.Job(nil))
}

// checkStaleToken does everything that a job allows after it was finished,
// rescheduled or lost.
func checkStaleToken(e *env) {
	for q := range e.fill() {
		jobs := e.claim(q)
		stale := slices.Clone(jobs)
		for i := range stale {
			stale[i].NextTry--
		}
		before, err := e.QueueLengths(e.ctx)
		e.must(err)
		if n, err := e.Finish(e.ctx, stale); err != nil || n != 0 {
			e.Errorf("queue %s: finished %d, %v; want 0", q, n, err)
		}
		if left, err := e.Renew(e.ctx, stale, time.Hour); err != nil || len(left) != 0 {
			e.Errorf("queue %s: renewed %+v, %v; want none", q, left, err)
		}
		for _, j := range stale {
			if ok, err := e.Reschedule(e.ctx, j, 0, 9); err != nil || ok {
				e.Errorf("queue %s: rescheduled: %t, %v; want false", q, ok, err)
			}
		}
		if q == schema.QueueDelete {
			for _, j := range stale {
				if ok, err := e.FinishDeletion(e.ctx, j); err != nil || ok {
					e.Errorf("finished deletion: %t, %v; want false", ok, err)
				}
			}
		}
		after, err := e.QueueLengths(e.ctx)
		e.must(err)
		e.same("queue lengths", after, before)
		if n, err := e.Finish(e.ctx, jobs); err != nil || n != 2 {
			e.Errorf("queue %s: finished %d, %v; want 2", q, n, err)
		}
		if n, err := e.Finish(e.ctx, jobs); err != nil || n != 0 {
			e.Errorf("queue %s: finished %d, %v a second time; want 0", q, n, err)
		}
	}
}

// checkQueuedAgain asks for a fid that somebody works on: what was asked for
// must be done after that work, whoever finishes when. All of it happens within
// the same second or two, where two leases could easily get the same token.
func checkQueuedAgain(e *env) {
	queue := map[schema.Queue]func() error{
		schema.QueueReplicate:  func() error { return e.QueueReplication(e.ctx, []protocol.FID{42}, 0, 0) },
		schema.QueueCopyDelete: func() error { return e.QueueCopyDeletion(e.ctx, 42, 1, schema.Raw) },
	}
	for q, again := range queue {
		e.must(again())
		for range 40 {
			first := e.claimOne(q)
			e.must(again())
			if n, err := e.Finish(e.ctx, []schema.Job{first}); err != nil || n != 0 {
				e.Fatalf("queue %s: finished %d, %v a fid that was queued again; want 0", q, n, err)
			}
			second := e.claimOne(q)
			if n, err := e.Finish(e.ctx, []schema.Job{first}); err != nil || n != 0 {
				e.Fatalf("queue %s: an old lease with token %d finished %d, %v of a new one with token %d; want 0",
					q, first.NextTry, n, err, second.NextTry)
			}
			e.must(again())
			// Nor may a third lease be taken for one of the two before it.
			third := e.claimOne(q)
			if n, err := e.Finish(e.ctx, []schema.Job{first, second}); err != nil || n != 0 {
				e.Fatalf("queue %s: old leases with tokens %d and %d finished %d, %v of a new one with token %d; want 0",
					q, first.NextTry, second.NextTry, n, err, third.NextTry)
			}
			e.must(again())
		}
		if n, err := e.Finish(e.ctx, e.claim(q)); err != nil || n != 1 {
			e.Errorf("queue %s: finished %d, %v; want 1", q, n, err)
		}
	}
}

func checkReschedule(e *env) {
	e.put("k")
	j := e.claimOne(schema.QueueReplicate)
	ok, err := e.Reschedule(e.ctx, j, 15*time.Second, 1)
	e.must(err)
	if !ok {
		e.Fatal("the job was not held")
	}
	e.advance(13 * time.Second)
	e.same("not due yet", e.claim(schema.QueueReplicate), []schema.Job(nil))
	e.advance(3 * time.Second)
	j = e.claimOne(schema.QueueReplicate)
	if j.FailCount != 1 {
		e.Errorf("failcount is %d; want 1", j.FailCount)
	}
	ok, err = e.Reschedule(e.ctx, j, schema.EndOfTime*time.Second, 2)
	e.must(err)
	if !ok {
		e.Fatal("the job was not held")
	}
	e.advance(10 * 365 * 24 * time.Hour)
	e.same("parked", e.claim(schema.QueueReplicate), []schema.Job(nil))
	if r := e.row(schema.QueueReplicate, j.FID); r == nil || r.NextTry != schema.EndOfTime || r.FailCount != 2 {
		e.Errorf("parked row is %+v", r)
	}
	// A parked row becomes due when it is asked for.
	e.must(e.QueueReplication(e.ctx, []protocol.FID{j.FID}, 0, 0))
	e.claimOne(schema.QueueReplicate)
}

func checkQueueReplication(e *env) {
	const a, b, c = 101, 102, 103
	e.must(e.QueueReplication(e.ctx, nil, 0, 0))
	e.must(e.QueueReplication(e.ctx, []protocol.FID{a, b, a}, 5, 0))
	for _, fid := range []protocol.FID{a, b} {
		if r := e.row(schema.QueueReplicate, fid); r == nil || r.NextTry != 0 || r.DevID == nil || *r.DevID != 5 {
			e.Errorf("row of fid %d is %+v; want nexttry 0 from 5", fid, r)
		}
	}
	e.must(e.QueueReplication(e.ctx, []protocol.FID{c}, 0, time.Minute))
	e.must(e.QueueReplication(e.ctx, []protocol.FID{a}, 0, time.Minute)) // stays at once
	e.same("due now", jobFIDs(e.claim(schema.QueueReplicate)), []protocol.FID{a, b})
	e.must(e.QueueReplication(e.ctx, []protocol.FID{c}, 0, time.Hour)) // stays in a minute
	e.advance(62 * time.Second)
	j := e.claimOne(schema.QueueReplicate)
	if j.FID != c || j.From != 0 {
		e.Errorf("claimed %+v; want fid %d", j, c)
	}
	// Asked for later than its lease ends, and for the very moment it does:
	// due then, and the lease is lost all the same.
	for _, delay := range []time.Duration{time.Hour, 2 * time.Minute, 125 * time.Second} {
		e.must(e.QueueReplication(e.ctx, []protocol.FID{c}, 0, delay))
		if n, err := e.Finish(e.ctx, []schema.Job{j}); err != nil || n != 0 {
			e.Fatalf("finished %d, %v a fid that was queued again; want 0", n, err)
		}
		if r := e.row(schema.QueueReplicate, c); r.NextTry > j.NextTry {
			e.Errorf("nexttry is %d, after the lease's end %d", r.NextTry, j.NextTry)
		}
		e.advance(135 * time.Second)
		i := slices.IndexFunc(e.claim(schema.QueueReplicate), func(x schema.Job) bool { return x.FID == c })
		if i < 0 {
			e.Fatal("the fid is not due when its lease would have ended")
		}
		e.must(e.QueueReplication(e.ctx, []protocol.FID{c}, 0, 0))
		j = e.claimOne(schema.QueueReplicate)
	}
}

// checkQueueShards has files be due the sooner the fewer losses they survive, and
// before all others.
func checkQueueShards(e *env) {
	const a, b, c, d = 101, 102, 103, 104
	e.must(e.QueueShards(e.ctx, nil, 0))
	e.must(e.QueueReplication(e.ctx, []protocol.FID{c, d}, 0, time.Second))
	e.must(e.QueueShards(e.ctx, []protocol.FID{a, c}, 3))
	e.must(e.QueueShards(e.ctx, []protocol.FID{b}, 100))
	e.must(e.QueueShards(e.ctx, []protocol.FID{a}, 1))
	e.must(e.QueueShards(e.ctx, []protocol.FID{c}, 5)) // stays sooner
	for fid, want := range map[protocol.FID]int64{a: 1, b: 9, c: 3} {
		e.same("nexttry", e.row(schema.QueueReplicate, fid).NextTry, want)
	}
	e.advance(2 * time.Second)
	jobs := e.claim(schema.QueueReplicate)
	e.same("in order", jobFIDs(jobs), []protocol.FID{a, c, b, d})
	// A lease does not keep the file from being looked at again.
	e.must(e.QueueShards(e.ctx, []protocol.FID{a}, 0))
	if n, err := e.Finish(e.ctx, jobs); err != nil || n != 3 {
		e.Errorf("finished %d, %v of 4, one of which was queued again", n, err)
	}
	e.same("again", jobFIDs(e.claim(schema.QueueReplicate)), []protocol.FID{a})
}

func checkQueueCopyDeletion(e *env) {
	e.must(e.QueueCopyDeletion(e.ctx, 5, 1, schema.Raw))
	j := e.claimOne(schema.QueueCopyDelete)
	ok, err := e.Reschedule(e.ctx, j, time.Hour, 3)
	e.must(err)
	if !ok {
		e.Fatal("the job was not held")
	}
	e.must(e.QueueCopyDeletion(e.ctx, 5, 1, schema.Raw)) // due again
	e.must(e.QueueCopyDeletion(e.ctx, 5, 2, schema.Raw))
	jobs := e.claim(schema.QueueCopyDelete)
	if len(jobs) != 2 {
		e.Fatalf("claimed %+v; want two", jobs)
	}
	// The device is part of a row's identity.
	if n, err := e.Finish(e.ctx, jobs[:1]); err != nil || n != 1 {
		e.Errorf("finished %d, %v; want 1", n, err)
	}
	e.located(5, nil, devs(jobs[1].DevID))
}

// checkAnnounceCopy has a copy announced, which nobody may claim for deletion
// while it is made, and everybody when its maker is not heard of any more.
func checkAnnounceCopy(e *env) {
	fid := e.put("k")
	e.must(e.AnnounceCopy(e.ctx, fid, 2, schema.Raw, time.Minute))
	e.same("due at first", e.claim(schema.QueueCopyDelete), []schema.Job(nil))
	e.located(fid, devs(1), devs(2))
	e.advance(50 * time.Second)
	e.must(e.AnnounceCopy(e.ctx, fid, 2, schema.Raw, time.Minute)) // it takes long
	e.advance(50 * time.Second)
	e.same("due when announced again", e.claim(schema.QueueCopyDelete), []schema.Job(nil))
	e.must(e.AddLocation(e.ctx, fid, 2, devs(1)))
	e.located(fid, devs(1, 2), nil)

	e.must(e.AnnounceCopy(e.ctx, fid, 3, schema.Raw, time.Minute))
	e.advance(62 * time.Second)
	j := e.claimOne(schema.QueueCopyDelete)
	if j.FID != fid || j.DevID != 3 || j.What != schema.Raw || j.FailCount != 0 {
		e.Errorf("job is %+v; want the raw copy of fid %d on 3", j, fid)
	}
	// An announcement ends a lease, even one that would end at its time.
	e.must(e.AnnounceCopy(e.ctx, fid, 3, schema.Raw, time.Duration(j.NextTry-e.topology().Now.Unix())*time.Second))
	if n, err := e.Finish(e.ctx, []schema.Job{j}); err != nil || n != 0 {
		e.Errorf("finished %d, %v an entry that was announced again; want 0", n, err)
	}
	// What failed may go at once.
	e.must(e.AnnounceCopy(e.ctx, fid, 4, schema.Raw, time.Hour))
	e.must(e.QueueCopyDeletion(e.ctx, fid, 4, schema.Raw))
	if j := e.claimOne(schema.QueueCopyDelete); j.DevID != 4 {
		e.Errorf("job is %+v; want the copy on 4", j)
	}
}

func checkReplicateNow(e *env) {
	e.must(e.QueueReplication(e.ctx, []protocol.FID{1}, 0, 0))
	e.must(e.QueueReplication(e.ctx, []protocol.FID{2}, 0, time.Hour))
	e.db.Exec(e, "INSERT INTO file_to_replicate (fid, nexttry) VALUES (3, 2147483647)")
	n, err := e.ReplicateNow(e.ctx)
	e.must(err)
	if n != 2 {
		e.Errorf("made %d rows due; want 2", n)
	}
	fids := jobFIDs(e.claim(schema.QueueReplicate))
	slices.Sort(fids)
	e.same("due", fids, []protocol.FID{1, 2, 3})
}

func checkFinishDeletion(e *env) {
	fid := e.putOn("k", 1, 2)
	e.must(e.SetChecksum(e.ctx, fid, protocol.Checksum{Type: protocol.HashMD5, Sum: make([]byte, 16)}))
	e.must(e.QueueReplication(e.ctx, []protocol.FID{fid}, 0, 0))
	_, err := e.DeleteKey(e.ctx, e.dmid, "k")
	e.must(err)
	j := e.claimOne(schema.QueueDelete)
	finish := func(j schema.Job, want bool) {
		e.Helper()
		ok, err := e.FinishDeletion(e.ctx, j)
		e.must(err)
		if ok != want {
			e.Errorf("deletion was finished: %t; want %t", ok, want)
		}
	}
	e.must(e.DeletedLocations(e.ctx, fid, devs(1)))
	finish(j, false) // device 2 still has it
	stale := j
	stale.NextTry--
	e.must(e.DeletedLocations(e.ctx, fid, devs(2)))
	finish(stale, false)
	if e.debug(fid).Checksum.IsZero() {
		e.Error("the checksum went although nothing was finished")
	}
	finish(j, true)
	finish(j, false)
	d := e.debug(fid)
	if !d.Checksum.IsZero() || d.Tempfile != nil || len(d.Devices) != 0 {
		e.Errorf("left over: %+v", d)
	}
	e.queued(schema.QueueDelete, fid, false)
}

func checkAdoptOldDeletions(e *env) {
	n, err := e.AdoptOldDeletions(e.ctx, 10)
	e.must(err)
	if n != 0 {
		e.Errorf("moved %d of none", n)
	}
	for _, sql := range []string{
		"INSERT INTO file_to_delete (fid) VALUES (1)",
		"INSERT INTO file_to_delete (fid) VALUES (2)",
		"INSERT INTO file_to_delete (fid) VALUES (3)",
		"INSERT INTO file_to_delete_later (fid, delafter) VALUES (3, 100)",
		"INSERT INTO file_to_delete_later (fid, delafter) VALUES (4, 100)",
		"INSERT INTO file_to_delete_later (fid, delafter) VALUES (5, 2147483646)",
		"INSERT INTO file_to_delete2 (fid, nexttry, failcount) VALUES (2, 2147483647, 6)",
	} {
		e.db.Exec(e, sql)
	}
	total := 0
	for {
		n, err := e.AdoptOldDeletions(e.ctx, 2)
		e.must(err)
		if n > 2 {
			e.Fatalf("moved %d; the limit is 2", n)
		}
		if n == 0 {
			break
		}
		total += n
	}
	if total != 5 {
		e.Errorf("moved %d rows; want 5", total)
	}
	for fid, want := range map[protocol.FID]bool{1: true, 2: true, 3: true, 4: true, 5: false} {
		e.queued(schema.QueueDelete, fid, want)
	}
	due := jobFIDs(e.claim(schema.QueueDelete))
	for _, fid := range []protocol.FID{1, 3, 4} {
		if !slices.Contains(due, fid) {
			e.Errorf("fid %d is not due: %v", fid, due)
		}
	}
}

func checkQueueLengths(e *env) {
	want := map[schema.Queue]int64{
		schema.QueueReplicate: 0, schema.QueueDelete: 0, schema.QueueCopyDelete: 0, schema.QueueFsck: 0, schema.QueueRebalance: 0,
	}
	got, err := e.QueueLengths(e.ctx)
	e.must(err)
	e.same("lengths", got, want)
	for q := range e.fill() {
		want[q] = 2
	}
	e.claim(schema.QueueFsck)
	got, err = e.QueueLengths(e.ctx)
	e.must(err)
	e.same("lengths", got, want)
}
