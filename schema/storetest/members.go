package storetest

import (
	"slices"
	"strings"
	"time"

	"github.com/mogile/mogile/schema"
)

var memberCases = []testCase{
	{"Settings", checkSettings},
	{"Locks", checkLocks},
	{"Leases", checkLeases},
	{"Trackers", checkTrackers},
	{"Context", checkContext},
	{"Close", checkClose},
}

func checkSettings(e *env) {
	before, err := e.Settings(e.ctx)
	e.must(err)
	_, ok, err := e.Setting(e.ctx, "x")
	e.must(err)
	if ok {
		e.Error("a setting that nobody made is there")
	}
	long := strings.Repeat("ü ", 50_000)
	for _, v := range []string{"", "1", "it's", long} {
		e.must(e.SetSetting(e.ctx, "x", &v))
		got, ok, err := e.Setting(e.ctx, "x")
		e.must(err)
		if !ok || got != v {
			e.Errorf("setting is %.20q, %t; want %.20q", got, ok, v)
		}
	}
	all, err := e.Settings(e.ctx)
	e.must(err)
	if all["x"] != long || len(all) != len(before)+1 {
		e.Errorf("there are %d settings; want %d and x", len(all), len(before))
	}
	e.same("settings of the topology", e.topology().Settings, all)
	e.must(e.SetSetting(e.ctx, "x", nil))
	e.must(e.SetSetting(e.ctx, "x", nil))
	all, err = e.Settings(e.ctx)
	e.must(err)
	e.same("settings", all, before)

	for _, step := range []struct{ from, to string }{{"", "1"}, {"41", "42"}, {"-1", "0"}, {"many", "1"}, {"4x", "1"}} {
		if step.from != "" {
			e.must(e.SetSetting(e.ctx, "n", &step.from))
		}
		e.must(e.IncrementSetting(e.ctx, "n"))
		if got, _, err := e.Setting(e.ctx, "n"); err != nil || got != step.to {
			e.Errorf("%q was incremented to %q, %v; want %q", step.from, got, err, step.to)
		}
	}
	stores := []schema.Store{e.Store, e.db.Open(e)}
	e.must(e.SetSetting(e.ctx, "n", p("0")))
	parallel(16, func(i int) {
		if err := stores[i%2].IncrementSetting(e.ctx, "n"); err != nil {
			e.Error(err)
		}
	})
	if got, _, err := e.Setting(e.ctx, "n"); err != nil || got != "16" {
		e.Errorf("16 increments make %q, %v", got, err)
	}
}

func checkLocks(e *env) {
	a, b, c := schema.FIDLock(1), schema.FIDLock(2), schema.FIDLock(3)
	try := func(s schema.Store, want []string, names ...string) <-chan struct{} {
		e.Helper()
		held, lost, err := s.TryLock(e.ctx, names)
		e.must(err)
		slices.Sort(held)
		e.same("locks taken", held, want)
		return lost
	}
	other := e.db.Open(e)
	lost := try(e.Store, []string{a, b}, a, b)
	try(e.Store, nil, a)                 // held by this store already
	try(other, []string{c}, a, c, b)     // held by another
	try(e.Store, nil, c)                 // and the other way round
	e.must(e.Unlock(e.ctx, []string{a})) //
	try(other, []string{a}, a, b)        // given back
	e.must(e.Unlock(e.ctx, []string{b})) //
	e.must(other.Unlock(e.ctx, []string{a, c}))
	e.must(e.Unlock(e.ctx, []string{a, "never held"}))
	e.must(e.Unlock(e.ctx, nil))
	try(e.Store, nil)
	try(e.Store, []string{a, b, c}, a, b, c)
	select {
	case <-lost:
		e.Error("the locks are said to be lost")
	default:
	}

	// One of many takes it.
	e.must(e.Unlock(e.ctx, []string{a, b, c}))
	took := make(chan string, 32)
	parallel(cap(took), func(i int) {
		held, _, err := []schema.Store{e.Store, other}[i%2].TryLock(e.ctx, []string{a})
		if err != nil {
			e.Error(err)
		}
		for _, name := range held {
			took <- name
		}
	})
	if len(took) != 1 {
		e.Errorf("%d took one lock", len(took))
	}
}

func checkLeases(e *env) {
	hold := func(name, owner string, want bool) {
		e.Helper()
		got, err := e.HoldLease(e.ctx, name, owner, time.Minute)
		e.must(err)
		if got != want {
			e.Errorf("%s holds %s: %t; want %t", owner, name, got, want)
		}
	}
	hold("fsck", "t1", true)
	hold("fsck", "t2", false)
	hold("rebalance", "t2", true)
	e.advance(40 * time.Second)
	hold("fsck", "t1", true) // renewed
	e.advance(40 * time.Second)
	hold("fsck", "t2", false)
	e.advance(25 * time.Second)
	hold("fsck", "t2", true) // t1 is gone
	hold("fsck", "t1", false)
	e.must(e.ReleaseLease(e.ctx, "fsck", "t1")) // not its own
	hold("fsck", "t1", false)
	e.must(e.ReleaseLease(e.ctx, "fsck", "t2"))
	hold("fsck", "t1", true)
	e.must(e.ReleaseLease(e.ctx, "none", "t1"))

	won := make(chan struct{}, 16)
	stores := []schema.Store{e.Store, e.db.Open(e)}
	parallel(cap(won), func(i int) {
		ok, err := stores[i%2].HoldLease(e.ctx, "race", string(rune('a'+i)), time.Minute)
		if err != nil {
			e.Error(err)
		}
		if ok {
			won <- struct{}{}
		}
	})
	if len(won) != 1 {
		e.Errorf("%d hold one lease", len(won))
	}
}

func checkTrackers(e *env) {
	list := func(want ...schema.Tracker) {
		e.Helper()
		got, err := e.Trackers(e.ctx)
		e.must(err)
		now := e.topology().Now
		for i := range got {
			if d := now.Sub(got[i].LastSeen); d < -time.Second || d > time.Minute {
				e.Errorf("tracker %s was seen %s ago", got[i].Name, d)
			}
			got[i].LastSeen = time.Time{}
		}
		e.same("trackers", got, want)
	}
	list()
	b := schema.Tracker{Name: "b", Address: "10.0.0.1:7001", Version: "1"}
	a := schema.Tracker{Name: "a", Address: "10.0.0.2:7001", Version: "1"}
	e.must(e.RegisterTracker(e.ctx, b))
	e.must(e.RegisterTracker(e.ctx, a))
	list(a, b)
	e.advance(time.Hour)
	b.Version, b.Address = "2", "10.0.0.3:7001"
	e.must(e.RegisterTracker(e.ctx, b))
	e.must(e.RegisterTracker(e.ctx, a))
	list(a, b)
}

// checkContext gives calls a context that is over.
func checkContext(e *env) {
	fid := e.open("k")
	ctx, cancel := contextWithCancel(e)
	cancel()
	for name, call := range map[string]func() error{
		"Ping":           func() error { return e.Ping(ctx) },
		"CreateTempfile": func() error { _, err := e.CreateTempfile(ctx, e.upload("x")); return err },
		"CloseFile":      func() error { return e.CloseFile(ctx, e.closing(fid, "k")) },
		"FileByKey":      func() error { _, _, err := e.FileByKey(ctx, e.dmid, "k"); return err },
		"ListKeys":       func() error { _, err := e.ListKeys(ctx, e.dmid, "", "", 1); return err },
		"SetSetting":     func() error { return e.SetSetting(ctx, "x", p("1")) },
		"CreateDomain":   func() error { _, err := e.CreateDomain(ctx, "x"); return err },
	} {
		if err := call(); !isCanceled(err) {
			e.Errorf("%s: %v; want context.Canceled", name, err)
		}
	}
	e.must(e.CloseFile(e.ctx, e.closing(fid, "k")))
}

func checkClose(e *env) {
	fid := e.put("k")
	_, lost, err := e.TryLock(e.ctx, []string{schema.FIDLock(fid)})
	e.must(err)
	e.must(e.Close())
	select {
	case <-lost:
	case <-e.ctx.Done():
		e.Error("the locks are not said to be lost")
	}
	e.want(e.Ping(e.ctx), schema.ErrUnavailable)
	e.want(e.CloseFile(e.ctx, e.closing(fid, "k")), schema.ErrUnavailable)
	_, _, err = e.FileByKey(e.ctx, e.dmid, "k")
	e.want(err, schema.ErrUnavailable)
	e.must(e.Close()) // again
	e.Store = e.db.Open(e)
	f, _, err := e.FileByKey(e.ctx, e.dmid, "k")
	e.must(err)
	if f.FID != fid {
		e.Errorf("key names fid %d; want %d", f.FID, fid)
	}
	held, _, err := e.TryLock(e.ctx, []string{schema.FIDLock(fid)})
	e.must(err)
	e.same("locks taken", held, []string{schema.FIDLock(fid)})
}
