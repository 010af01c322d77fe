package storetest

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/schema"
)

var moveCases = []testCase{
	{"Reap", checkReap},
	{"Reap/queue", checkReapQueue},
	{"Reap/only dead devices", checkReapAlive},
	{"Reap/stale copies", checkReapStale},
	{"Reap/race", checkReapRace},
	{"CountOn", checkCountOn},
	{"BytesOn", checkBytesOn},
	{"UploadsOn", checkUploadsOn},
	{"FilesOn", checkFilesOn},
	{"QueueMoves", checkQueueMoves},
	{"ChangeSettings", checkChangeSettings},
	{"ChangeSettings/race", checkSettingsRace},
	{"ChangeSettings/one creates", checkSettingsCreate},
	{"DropBadLocation", checkDropBad},
	{"DropBadLocation/two removers", checkTwoRemovers},
}

func isStale(err error) bool { return errors.Is(err, schema.ErrStale) }

// device makes a device in a state.
func (e *env) device(id protocol.DevID, state string) {
	e.Helper()
	host, err := e.CreateHost(e.ctx, schema.Host{Status: schema.HostAlive, Name: fmt.Sprint("host", id), IP: fmt.Sprint("10.0.0.", id), Port: 7500})
	e.must(err)
	e.must(e.CreateDevice(e.ctx, schema.Device{ID: id, HostID: host, Status: state}))
}

func (e *env) reap(dev protocol.DevID, limit, want int) {
	e.Helper()
	n, err := e.Reap(e.ctx, dev, limit)
	e.must(err)
	if n != want {
		e.Fatalf("reaped %d files of dev%d; want %d", n, dev, want)
	}
}

// replicated empties the queue of replication.
func (e *env) replicated() {
	e.Helper()
	_, err := e.Finish(e.ctx, e.claim(schema.QueueReplicate))
	e.must(err)
}

func checkReap(e *env) {
	e.device(5, schema.DeviceDead)
	a, b, c := e.putOn("a", 1, 5), e.putOn("b", 5), e.putOn("c", 5, 2, 3)
	other, gone := e.putOn("other", 1, 2), e.putOn("gone", 1, 5)
	_, err := e.DeleteKey(e.ctx, e.dmid, "gone")
	e.must(err)
	e.replicated()
	e.reap(5, 0, 0)
	e.reap(5, 2, 2) // the lowest first
	e.located(a, devs(1), nil)
	e.located(b, nil, nil)
	e.located(c, devs(2, 3, 5), nil)
	e.devcount(a, 1)
	e.devcount(b, 0)
	e.devcount(c, 3)
	on := "1"
	e.must(e.SetSetting(e.ctx, "skip_devcount", &on))
	e.reap(5, 100, 2)
	e.located(c, devs(2, 3), nil)
	e.devcount(c, 3)
	e.located(gone, devs(1), nil)
	e.located(other, devs(1, 2), nil)
	e.reap(5, 100, 0)
	// Queued is what is a file, for a second later.
	for _, fid := range []protocol.FID{a, b, c} {
		e.queued(schema.QueueReplicate, fid, true)
	}
	e.queued(schema.QueueReplicate, gone, false)
	e.queued(schema.QueueReplicate, other, false)
	e.advance(2 * time.Second)
	if jobs := e.claim(schema.QueueReplicate); len(jobs) != 3 {
		e.Errorf("due are %+v; want 3", jobs)
	}
}

func checkReapQueue(e *env) {
	e.device(5, schema.DeviceDead)
	free := e.putOn("free", 5)
	e.replicated()
	urgent, leased, waiting, parked := e.putOn("urgent", 5), e.putOn("leased", 5), e.putOn("waiting", 5), e.putOn("parked", 5)
	var lease schema.Job
	for _, j := range e.claim(schema.QueueReplicate) {
		var delay time.Duration
		switch j.FID {
		case urgent:
			e.must(e.QueueReplication(e.ctx, []protocol.FID{urgent}, 0, 0))
			continue
		case leased:
			lease = j
			continue
		case waiting:
			delay = time.Hour
		case parked:
			delay = schema.EndOfTime * time.Second
		}
		if ok, err := e.Reschedule(e.ctx, j, delay, 3); err != nil || !ok {
			e.Fatalf("reschedule %+v: %t, %v", j, ok, err)
		}
	}
	before := time.Now().Unix()
	e.reap(5, 100, 5)
	if r := e.row(schema.QueueReplicate, free); r.NextTry < before || r.NextTry > time.Now().Unix()+2 {
		e.Errorf("a new row is %+v; want it due after a second", r)
	}
	if r := e.row(schema.QueueReplicate, urgent); r.NextTry != 0 {
		e.Errorf("the urgent row is %+v", r)
	}
	if r := e.row(schema.QueueReplicate, waiting); math.Abs(float64(r.NextTry-before-3600)) > 60 || r.FailCount != 3 {
		e.Errorf("the row that waits an hour is %+v", r)
	}
	if r := e.row(schema.QueueReplicate, parked); r.NextTry != schema.EndOfTime || r.FailCount != 3 {
		e.Errorf("the parked row is %+v", r)
	}
	// Whoever held a row may have judged the file with the device.
	if n, err := e.Finish(e.ctx, []schema.Job{lease}); err != nil || n != 0 {
		e.Errorf("finished %d, %v with a lease from before", n, err)
	}
	e.queued(schema.QueueReplicate, leased, true)
}

func checkReapAlive(e *env) {
	for i, state := range []string{schema.DeviceAlive, schema.DeviceDrain, schema.DeviceReadonly, schema.DeviceDown} {
		dev := protocol.DevID(i + 1)
		e.device(dev, state)
		fid := e.putOn(state, dev, 9)
		_, err := e.Reap(e.ctx, dev, 10)
		e.want(err, schema.ErrStale)
		e.located(fid, devs(dev, 9), nil)
		e.must(e.SetDeviceState(e.ctx, dev, schema.DeviceDead))
		e.reap(dev, 10, 1)
		e.located(fid, devs(9), nil)
	}
	_, err := e.Reap(e.ctx, 9, 10) // unknown
	e.want(err, schema.ErrStale)
}

// checkReapStale: work that has seen a copy on the dead device is decided
// again.
func checkReapStale(e *env) {
	e.device(5, schema.DeviceDead)
	fid := e.putOn("k", 1, 5)
	e.reap(5, 10, 1)
	e.want(e.AddLocation(e.ctx, fid, 2, devs(1, 5)), schema.ErrStale)
	e.want(e.DropLocation(e.ctx, fid, 1, devs(1, 5)), schema.ErrStale)
	e.want(e.DropBadLocation(e.ctx, fid, 1, devs(1, 5)), schema.ErrStale)
	e.located(fid, devs(1), devs(2))
	e.must(e.AddLocation(e.ctx, fid, 2, devs(1)))
}

// checkReapRace has several trackers reap a device while others copy its
// files.
func checkReapRace(e *env) {
	e.device(5, schema.DeviceDead)
	n := scale(e, 60)
	fids := e.files(1, 1, n)
	for _, fid := range fids {
		e.db.Exec(e, fmt.Sprintf("INSERT INTO file_on (fid, devid) VALUES (%d, 5)", fid))
	}
	stores := []schema.Store{e.Store, e.db.Open(e)}
	var reaped atomic.Int64
	parallel(8, func(i int) {
		s := stores[i%2]
		if i < 4 {
			for {
				k, err := s.Reap(e.ctx, 5, 7)
				if err != nil {
					e.Errorf("reap: %v", err)
				}
				if reaped.Add(int64(k)); k == 0 {
					return
				}
			}
		}
		for _, fid := range fids {
			if err := s.AddLocation(e.ctx, fid, protocol.DevID(i), devs(1, 5)); err != nil && !isStale(err) {
				e.Errorf("add: %v", err)
			}
		}
	})
	if reaped.Load() != int64(n) {
		e.Errorf("reaped %d files; want %d", reaped.Load(), n)
	}
	for _, fid := range fids {
		d := e.debug(fid)
		if len(d.Devices) == 0 || d.Devices[0] != 1 || d.File.DevCount != len(d.Devices) {
			e.Errorf("fid %d has devcount %d and is on %v", fid, d.File.DevCount, d.Devices)
		}
		for _, dev := range d.Devices {
			if dev == 5 {
				e.Errorf("fid %d is still on the dead device", fid)
			}
		}
		e.queued(schema.QueueReplicate, fid, true)
	}
}

func checkCountOn(e *env) {
	e.putOn("a", 1, 2)
	e.putOn("b", 2)
	e.putOn("gone", 2)
	_, err := e.DeleteKey(e.ctx, e.dmid, "gone")
	e.must(err)
	counts, err := e.CountOn(e.ctx, devs(1, 2, 9))
	e.must(err)
	e.same("counts", counts, map[protocol.DevID]int64{1: 1, 2: 3, 9: 0})
	counts, err = e.CountOn(e.ctx, nil)
	e.must(err)
	e.same("of no devices", counts, map[protocol.DevID]int64{})
}

func checkBytesOn(e *env) {
	a, b := e.putOn("a", 1, 2), e.putOn("b", 2)
	files, err := e.FilesByFID(e.ctx, []protocol.FID{a, b})
	e.must(err)
	length := map[protocol.FID]int64{}
	for _, f := range files {
		length[f.FID] = f.Length
	}
	e.putOn("gone", 2)
	_, err = e.DeleteKey(e.ctx, e.dmid, "gone")
	e.must(err)
	sums, err := e.BytesOn(e.ctx, devs(1, 2, 9))
	e.must(err)
	e.same("sums", sums, map[protocol.DevID]int64{1: length[a], 2: length[a] + length[b], 9: 0})
	e.must(e.RecordEncoding(e.ctx, coded(b, 1, 9, 4), devs(2)))
	sums, err = e.BytesOn(e.ctx, devs(1, 2, 9))
	e.must(err)
	half := (length[b] + 1) / 2
	e.same("sums with shards", sums, map[protocol.DevID]int64{1: length[a] + half, 2: length[a], 9: half})
}

func checkUploadsOn(e *env) {
	for i, on := range [][]protocol.DevID{devs(1, 2), devs(2), devs(12, 21)} {
		_, err := e.CreateTempfile(e.ctx, schema.Tempfile{DMID: e.dmid, Key: fmt.Sprint(i), DevIDs: on})
		e.must(err)
	}
	e.putOn("closed", 1, 2)
	counts, err := e.UploadsOn(e.ctx, devs(1, 2, 21, 9))
	e.must(err)
	e.same("counts", counts, map[protocol.DevID]int64{1: 1, 2: 2, 21: 1, 9: 0})
}

func checkFilesOn(e *env) {
	var fids []protocol.FID
	for i := range 6 {
		fids = append(fids, e.putOn(fmt.Sprint(i), 7, 3))
	}
	e.putOn("elsewhere", 3)
	_, err := e.DeleteKey(e.ctx, e.dmid, "2")
	e.must(err)
	e.must(e.DeletedLocations(e.ctx, fids[4], devs(7)))
	for _, x := range []struct {
		after  protocol.FID
		newest bool
		limit  int
		want   []int
	}{
		{0, false, 10, []int{0, 1, 3, 5}},
		{0, true, 10, []int{5, 3, 1, 0}},
		{0, false, 2, []int{0, 1}},
		{0, true, 2, []int{5, 3}},
		{fids[1], false, 10, []int{3, 5}},
		{fids[3], true, 10, []int{1, 0}},
		{fids[0], true, 10, nil},
		{fids[5], false, 10, nil},
		{1<<64 - 1, false, 10, nil},
		{1<<64 - 1, true, 1, []int{5}},
		{1, true, 10, nil},
		{0, false, 0, nil},
	} {
		got, err := e.FilesOn(e.ctx, 7, x.after, x.newest, x.limit)
		e.must(err)
		var want []schema.LocatedFile
		for _, i := range x.want {
			want = append(want, schema.LocatedFile{
				File: schema.File{FID: fids[i], DMID: e.dmid, Key: fmt.Sprint(i), Length: 11, DevCount: 2}, Devices: devs(3, 7)})
		}
		e.same(fmt.Sprintf("files on dev7 after %d, newest %t, limit %d", x.after, x.newest, x.limit), got, want)
	}
}

func checkQueueMoves(e *env) {
	moving := func(state string) schema.SettingsChange {
		return schema.SettingsChange{Expect: map[string]*string{"rebal_state": p(state), "rebal_signal": nil}, Set: map[string]*string{"rebal_state": p(state + "+")}}
	}
	e.set("rebal_state", "s")
	e.must(e.QueueMoves(e.ctx, []schema.Move{{FID: 9, From: 2}, {FID: 8, From: 1, To: devs(4, 3)}}, moving("s")))
	e.setting("rebal_state", "s+")
	jobs := e.claim(schema.QueueRebalance)
	bare := make([]schema.Job, len(jobs))
	for i, j := range jobs {
		e.leaseOf(j, 2*time.Minute)
		j.NextTry = 0
		bare[i] = j
	}
	e.same("jobs", bare, []schema.Job{{Queue: schema.QueueRebalance, FID: 8, DevID: 1, Arg: "4,3"}, {Queue: schema.QueueRebalance, FID: 9, DevID: 2}})

	// Settings that are not as expected: nothing happens.
	e.want(e.QueueMoves(e.ctx, []schema.Move{{FID: 10, From: 2}}, moving("s")), schema.ErrStale)
	e.set("rebal_signal", "stop")
	e.want(e.QueueMoves(e.ctx, []schema.Move{{FID: 10, From: 2}}, moving("s+")), schema.ErrStale)
	e.setting("rebal_state", "s+")
	e.queued(schema.QueueRebalance, 10, false)
	e.unset("rebal_signal")

	// Those that are queued keep their row; the change is made without moves,
	// too.
	e.must(e.QueueMoves(e.ctx, []schema.Move{{FID: 8, From: 3}, {FID: 8, From: 4}, {FID: 10, From: 2}}, moving("s+")))
	e.must(e.QueueMoves(e.ctx, nil, moving("s++")))
	e.setting("rebal_state", "s+++")
	e.same("due", jobFIDs(e.claim(schema.QueueRebalance)), []protocol.FID{10})
	if n, err := e.Finish(e.ctx, jobs); err != nil || n != 2 {
		e.Errorf("finished %d, %v; want both of before", n, err)
	}
	e.must(e.QueueMoves(e.ctx, []schema.Move{{FID: 8, From: 3}}, schema.SettingsChange{}))
	if j := e.claimOne(schema.QueueRebalance); j.FID != 8 || j.DevID != 3 || j.Arg != "" {
		e.Errorf("job is %+v", j)
	}
}

func checkChangeSettings(e *env) {
	change := func(expect, set map[string]*string) error {
		return e.ChangeSettings(e.ctx, schema.SettingsChange{Expect: expect, Set: set})
	}
	type m = map[string]*string
	all := func() map[string]string {
		e.Helper()
		got, err := e.Settings(e.ctx)
		e.must(err)
		delete(got, "schema_version")
		return got
	}
	e.must(change(nil, nil))
	e.must(change(m{"a": nil}, m{"a": p("1"), "b": p("2"), "c": nil}))
	e.same("settings", all(), map[string]string{"a": "1", "b": "2"})
	for _, expect := range []m{{"a": nil}, {"a": p("2")}, {"a": p("1"), "b": nil}, {"x": p("")}, {"x": p("1")}, {"a": p("1"), "x": p("")}} {
		e.want(change(expect, m{"a": p("9"), "b": nil, "new": p("9")}), schema.ErrStale)
		e.same("settings", all(), map[string]string{"a": "1", "b": "2"})
	}
	e.must(change(m{"a": p("1"), "b": p("2"), "x": nil}, m{"a": nil, "b": p("")}))
	e.same("settings", all(), map[string]string{"b": ""})
	e.must(change(m{"b": p("")}, nil))
	e.same("settings", all(), map[string]string{"b": ""})
	e.must(change(m{"b": p("")}, m{"b": nil}))
	if _, there, err := e.Setting(e.ctx, "b"); err != nil || there {
		e.Errorf("b is there: %t, %v", there, err)
	}
}

// checkSettingsRace counts in a setting and its double, by changes that expect
// both, while others write the first by itself.
func checkSettingsRace(e *env) {
	rounds := scale(e, 20)
	stores := []schema.Store{e.Store, e.db.Open(e)}
	e.set("n", "0")
	e.set("m", "0")
	var done, incremented atomic.Int64
	parallel(6, func(i int) {
		s := stores[i%2]
		for range rounds {
			if i == 5 {
				if err := s.IncrementSetting(e.ctx, "n"); err != nil {
					e.Error(err)
				}
				incremented.Add(1)
				continue
			}
			settings, err := s.Settings(e.ctx)
			if err != nil {
				e.Error(err)
				return
			}
			n, nErr := strconv.Atoi(settings["n"])
			m, mErr := strconv.Atoi(settings["m"])
			if nErr != nil || mErr != nil {
				e.Errorf("settings are %v", settings)
				return
			}
			err = s.ChangeSettings(e.ctx, schema.SettingsChange{
				Expect: map[string]*string{"n": p(settings["n"]), "m": p(settings["m"])},
				Set:    map[string]*string{"n": p(strconv.Itoa(n + 1)), "m": p(strconv.Itoa(m + 1))},
			})
			switch {
			case err == nil:
				done.Add(1)
			case !isStale(err):
				e.Error(err)
			}
		}
	})
	if done.Load() == 0 {
		e.Error("no change was made")
	}
	e.setting("m", strconv.FormatInt(done.Load(), 10))
	e.setting("n", strconv.FormatInt(done.Load()+incremented.Load(), 10))
}

// checkSettingsCreate: of several that expect a setting not to be there, one
// makes it.
func checkSettingsCreate(e *env) {
	stores := []schema.Store{e.Store, e.db.Open(e)}
	for round := range scale(e, 10) {
		field := fmt.Sprint("host", round)
		var won atomic.Int64
		var winner atomic.Value
		parallel(6, func(i int) {
			me := fmt.Sprint("tracker", i)
			err := stores[i%2].ChangeSettings(e.ctx, schema.SettingsChange{
				Expect: map[string]*string{field: nil}, Set: map[string]*string{field: &me, "started": &me}})
			switch {
			case err == nil:
				won.Add(1)
				winner.Store(me)
			case !isStale(err):
				e.Error(err)
			}
		})
		if won.Load() != 1 {
			e.Fatalf("%d trackers made the setting", won.Load())
		}
		e.setting(field, winner.Load().(string))
		e.setting("started", winner.Load().(string))
	}
}

func checkDropBad(e *env) {
	fid := e.putOn("k", 1, 2, 3)
	e.want(e.DropBadLocation(e.ctx, fid, 2, devs(1, 2)), schema.ErrStale)
	e.want(e.DropBadLocation(e.ctx, fid, 7, devs(1, 2, 3)), schema.ErrStale)
	e.located(fid, devs(1, 2, 3), nil)
	e.set(schema.SettingPathCacheTTL, "600") // a bad copy goes at once all the same
	e.must(e.DropBadLocation(e.ctx, fid, 2, devs(3, 2, 1)))
	e.located(fid, devs(1, 3), devs(2))
	e.devcount(fid, 2)
	j := e.claimOne(schema.QueueCopyDelete)
	if j.FID != fid || j.DevID != 2 || j.What != schema.Bad {
		e.Errorf("job is %+v; want the bad copy on 2", j)
	}
	ok, err := e.Reschedule(e.ctx, j, time.Hour, 1)
	if err != nil || !ok {
		e.Fatalf("reschedule: %t, %v", ok, err)
	}
	// A good copy made there meanwhile stays.
	e.must(e.AddLocation(e.ctx, fid, 2, devs(1, 3)))
	e.located(fid, devs(1, 2, 3), nil)
	e.must(e.DropBadLocation(e.ctx, fid, 2, devs(1, 2, 3)))
	e.must(e.DropBadLocation(e.ctx, fid, 1, devs(1, 3)))
	e.located(fid, devs(3), devs(1, 2))
	for _, seen := range [][]protocol.DevID{devs(3), nil, devs(3, 3)} {
		e.want(e.DropBadLocation(e.ctx, fid, 3, seen), schema.ErrLastCopy)
	}
	e.located(fid, devs(3), devs(1, 2))
	e.devcount(fid, 1)
}

// checkTwoRemovers: of several that saw the same copies and remove different
// ones, one does.
func checkTwoRemovers(e *env) {
	stores := []schema.Store{e.Store, e.db.Open(e)}
	for round := range scale(e, 8) {
		fid := e.putOn(fmt.Sprint(round), 1, 2, 3, 4)
		var removed atomic.Int64
		parallel(4, func(i int) {
			drop := stores[i%2].DropBadLocation
			if i < 2 {
				drop = stores[i%2].DropLocation
			}
			switch err := drop(e.ctx, fid, protocol.DevID(i+1), devs(1, 2, 3, 4)); {
			case err == nil:
				removed.Add(1)
			case !isStale(err):
				e.Error(err)
			}
		})
		if removed.Load() != 1 {
			e.Fatalf("%d removers removed a copy; want one", removed.Load())
		}
		d := e.debug(fid)
		if len(d.Devices) != 3 || d.File.DevCount != 3 {
			e.Fatalf("the file is on %v, devcount %d", d.Devices, d.File.DevCount)
		}
	}
}
