package storetest

import (
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/schema"
)

// Options are what a case asks of the stores it is given.
type Options struct {
	// ClockOffset is added to the database's clock, by every store that is
	// opened on the database. Never nil.
	ClockOffset func() time.Duration
}

// Database is one database of the engine under test.
type Database interface {
	// Open opens a store on the database, as one tracker would. A store that
	// the case leaves open is closed when the test ends. An engine that only
	// one process can use may answer with one store several times, which then
	// stays open until all of them are closed.
	Open(t testing.TB) schema.Store
	// Exec runs a statement that both engines understand, beside the store: to
	// make rows that no method writes.
	Exec(t testing.TB, sql string)
}

// KeyLocker is a [Database] that can hold the lock of a key's row, as a
// stranger's transaction would, until release is called.
type KeyLocker interface {
	LockKey(t testing.TB, dmid schema.DMID, key string) (release func())
}

// OneProcess is a [Database] that only one process can use, so that no tracker
// hears of another.
type OneProcess interface{ OneProcess() }

// Fresh makes a new database, migrated and empty, that goes when the test ends.
type Fresh func(t testing.TB, o Options) Database

// Run runs the suite on the engine that fresh makes databases of.
func Run(t *testing.T, fresh Fresh) {
	for _, group := range [][]testCase{
		fileCases, locationCases, queueCases, uploadCases, topologyCases, memberCases, raceCases, conditionCases,
		sweepCases, moveCases, numberCases, encodingCases,
	} {
		for _, c := range group {
			t.Run(c.name, func(t *testing.T) {
				t.Parallel()
				c.check(newEnv(t, fresh))
			})
		}
	}
}

type testCase struct {
	name  string
	check func(*env)
}

// scale multiplies n by MOGILE_TEST_SCALE.
func scale(t testing.TB, n int) int {
	s := os.Getenv("MOGILE_TEST_SCALE")
	if s == "" {
		return n
	}
	f, err := strconv.ParseFloat(s, 64)
	if err != nil || f <= 0 {
		t.Fatalf("MOGILE_TEST_SCALE is %q; want a number above 0", s)
	}
	return max(1, int(f*float64(n)))
}

// seed is the seed of a case that draws lots.
func seed(t testing.TB) uint64 {
	v := uint64(time.Now().UnixNano())
	if s := os.Getenv("MOGILE_TEST_SEED"); s != "" {
		var err error
		if v, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatalf("MOGILE_TEST_SEED is %q; want a number", s)
		}
	}
	t.Logf("MOGILE_TEST_SEED=%d", v)
	return v
}

// env is what a case works with: a fresh database with the domain "d", and a
// store on it.
type env struct {
	testing.TB
	schema.Store
	db     Database
	ctx    context.Context
	offset *atomic.Int64 // of the clock, in nanoseconds
	dmid   schema.DMID
}

func newEnv(t testing.TB, fresh Fresh) *env {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	t.Cleanup(cancel)
	e := &env{TB: t, ctx: ctx, offset: new(atomic.Int64)}
	e.db = fresh(t, Options{ClockOffset: func() time.Duration { return time.Duration(e.offset.Load()) }})
	e.Store = e.db.Open(t)
	e.dmid = e.domain("d")
	return e
}

// advance moves the database's clock ahead.
func (e *env) advance(d time.Duration) { e.offset.Add(int64(d)) }

// must fails the case where err is not nil.
func (e *env) must(err error) {
	e.Helper()
	if err != nil {
		e.Fatal(err)
	}
}

// want fails the case unless err matches target; a nil target is no error.
func (e *env) want(err, target error) {
	e.Helper()
	if target == nil {
		e.must(err)
		return
	}
	if !errors.Is(err, target) {
		e.Fatalf("error is %v; want one matching %v", err, target)
	}
}

// same fails the case where got and want differ. Empty and nil are the same.
func (e *env) same(what string, got, want any) {
	e.Helper()
	if diff := cmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" {
		e.Fatalf("%s (-want +got):\n%s", what, diff)
	}
}

// domain creates a domain.
func (e *env) domain(name string) schema.DMID {
	e.Helper()
	id, err := e.CreateDomain(e.ctx, name)
	e.must(err)
	return id
}

// open opens an upload of key to device 1.
func (e *env) open(key string) protocol.FID {
	e.Helper()
	fid, err := e.CreateTempfile(e.ctx, e.upload(key))
	e.must(err)
	return fid
}

func (e *env) upload(key string) schema.Tempfile {
	return schema.Tempfile{DMID: e.dmid, Key: key, DevIDs: []protocol.DevID{1, 2}}
}

func (e *env) closing(fid protocol.FID, key string) schema.Close {
	return schema.Close{FID: fid, DMID: e.dmid, Key: key, Length: 11, DevID: 1}
}

// put stores a file on device 1.
func (e *env) put(key string) protocol.FID {
	e.Helper()
	fid := e.open(key)
	e.must(e.CloseFile(e.ctx, e.closing(fid, key)))
	return fid
}

// putOn stores a file on several devices.
func (e *env) putOn(key string, devs ...protocol.DevID) protocol.FID {
	e.Helper()
	fid := e.open(key)
	c := e.closing(fid, key)
	c.DevID = devs[0]
	e.must(e.CloseFile(e.ctx, c))
	for i := 1; i < len(devs); i++ {
		e.must(e.AddLocation(e.ctx, fid, devs[i], devs[:i]))
	}
	return fid
}

// debug is all that the database knows of fid.
func (e *env) debug(fid protocol.FID) schema.FileDebug {
	e.Helper()
	d, err := e.DebugFile(e.ctx, fid)
	e.must(err)
	slices.Sort(d.Devices)
	return d
}

// row is fid's row in q, nil where there is none.
func (e *env) row(q schema.Queue, fid protocol.FID) *schema.QueueRow {
	e.Helper()
	d := e.debug(fid)
	i := slices.IndexFunc(d.Queues, func(r schema.QueueRow) bool { return r.Queue == q })
	if i < 0 {
		return nil
	}
	return &d.Queues[i]
}

// queued fails the case unless fid is (or is not) in q.
func (e *env) queued(q schema.Queue, fid protocol.FID, want bool) {
	e.Helper()
	if got := e.row(q, fid) != nil; got != want {
		e.Fatalf("fid %d is in queue %s: %t; want %t", fid, q, got, want)
	}
}

// claim leases all that is due in q.
func (e *env) claim(q schema.Queue) []schema.Job {
	e.Helper()
	jobs, err := e.Claim(e.ctx, q, 1000, 2*time.Minute)
	e.must(err)
	return jobs
}

// claimOne leases the one row that must be due in q.
func (e *env) claimOne(q schema.Queue) schema.Job {
	e.Helper()
	jobs := e.claim(q)
	if len(jobs) != 1 {
		e.Fatalf("claimed %d jobs of queue %s; want 1: %+v", len(jobs), q, jobs)
	}
	return jobs[0]
}

func jobFIDs(jobs []schema.Job) []protocol.FID {
	fids := make([]protocol.FID, len(jobs))
	for i, j := range jobs {
		fids[i] = j.FID
	}
	return fids
}

// purge makes the database forget a fid that is queued for deletion.
func (e *env) purge(fid protocol.FID) {
	e.Helper()
	locs, err := e.LocationsOf(e.ctx, []protocol.FID{fid})
	e.must(err)
	e.must(e.DeletedLocations(e.ctx, fid, locs[fid]))
	for _, j := range e.claim(schema.QueueDelete) {
		if j.FID != fid {
			continue
		}
		ok, err := e.FinishDeletion(e.ctx, j)
		e.must(err)
		if !ok {
			e.Fatalf("deletion of fid %d was not finished", fid)
		}
		return
	}
	e.Fatalf("fid %d is not in the delete queue, or not due", fid)
}

// parallel calls f for 0 to n-1, each in a goroutine of its own, and waits.
func parallel(n int, f func(i int)) {
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { f(i) })
	}
	wg.Wait()
}

func random(seed uint64, i int) *rand.Rand { return rand.New(rand.NewPCG(seed, uint64(i))) }

// refusal is the code of a refusal, empty where err is none.
func refusal(err error) string {
	if e, ok := errors.AsType[*protocol.Error](err); ok {
		return e.Code
	}
	return ""
}
