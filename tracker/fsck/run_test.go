package fsck

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/schema"
	"github.com/mogile/mogile/tracker/cluster"
	"github.com/mogile/mogile/tracker/work"
	"github.com/mogile/mogile/tracker/work/worktest"
)

var _ RunStore = (schema.Store)(nil)

// database is a store in memory with the parts that [worktest.Store] lacks.
type database struct {
	*worktest.Store

	mu      sync.Mutex // guards what follows
	members []schema.Tracker
	leases  map[string]turnHeld
}

type turnHeld struct {
	owner string
	until time.Time
}

func (d *database) Topology(ctx context.Context) (schema.TopologyRows, error) {
	settings, err := d.Settings(ctx)
	return schema.TopologyRows{Settings: settings, Now: time.Now()}, err
}

func (d *database) Trackers(context.Context) ([]schema.Tracker, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.members), nil
}

func (d *database) HoldLease(_ context.Context, name, owner string, ttl time.Duration) (bool, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if h, ok := d.leases[name]; ok && h.owner != owner && time.Now().Before(h.until) {
		return false, nil
	}
	d.leases[name] = turnHeld{owner, time.Now().Add(ttl)}
	return true, nil
}

// Snapshot is what a tracker knows, always up to date.
func (d *database) Snapshot() *cluster.Snapshot {
	settings, err := d.Settings(context.Background())
	if err != nil {
		settings = nil
	}
	return cluster.NewSnapshot(schema.TopologyRows{Settings: settings, Now: time.Now()}, 2)
}

// visits counts how often files were checked, by all trackers.
type visits struct {
	mu      sync.Mutex // guards what follows
	count   map[protocol.FID]int
	modes   map[Mode]int
	last    map[protocol.FID]Mode      // in which files were checked last
	at      map[protocol.FID]time.Time // the first time
	running int
	most    int
}

func (v *visits) of(fid protocol.FID) int {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.count[fid]
}

// checked is how often files were checked in each mode.
func (v *visits) checked() map[Mode]int {
	v.mu.Lock()
	defer v.mu.Unlock()
	return maps.Clone(v.modes)
}

func (v *visits) total() int {
	v.mu.Lock()
	defer v.mu.Unlock()
	n := 0
	for _, c := range v.count {
		n += c
	}
	return n
}

// inspector is a tracker's [FileChecker] that takes a millisecond for a file.
type inspector struct {
	*visits
	mine  int // files; guarded by visits.mu
	stall func(protocol.FID) bool
	fail  func(protocol.FID) error
	hang  func(ctx context.Context, fid protocol.FID)
}

func (i *inspector) Check(ctx context.Context, files []schema.LocatedFile, m Mode) (schema.Tally, []protocol.FID, error) {
	i.mu.Lock()
	i.running++
	i.most = max(i.most, i.running)
	i.modes[m]++
	i.mu.Unlock()
	defer func() {
		i.mu.Lock()
		i.running--
		i.mu.Unlock()
	}()
	tally := schema.Tally{Events: map[string]int64{}}
	var stalled []protocol.FID
	for _, f := range files {
		work.Pause(ctx, time.Millisecond)
		if i.hang != nil {
			i.hang(ctx, f.FID)
		}
		if err := ctx.Err(); err != nil {
			return tally, stalled, err
		}
		if i.fail != nil {
			if err := i.fail(f.FID); err != nil {
				return tally, stalled, err
			}
		}
		if i.stall != nil && i.stall(f.FID) {
			stalled = append(stalled, f.FID)
			continue
		}
		i.mu.Lock()
		i.count[f.FID]++
		i.last[f.FID] = m
		i.mine++
		if _, again := i.at[f.FID]; !again {
			i.at[f.FID] = time.Now()
		}
		i.mu.Unlock()
		tally.Files++
		tally.Bytes += f.Length
		tally.Events[CodeMissing]++
	}
	return tally, stalled, nil
}

// stage is a database, and trackers on it.
type stage struct {
	*testing.T
	*visits
	db    *database
	log   bytes.Buffer
	logMu sync.Mutex
	fids  []protocol.FID
	stops []func()
}

func (s *stage) Write(p []byte) (int, error) {
	s.logMu.Lock()
	defer s.logMu.Unlock()
	return s.log.Write(p)
}

func (s *stage) logged(message string) int {
	s.logMu.Lock()
	defer s.logMu.Unlock()
	return strings.Count(s.log.String(), strconv.Quote(message))
}

// newStage is a database with files, whose fids have gaps.
func newStage(t *testing.T, files int) *stage {
	s := &stage{
		T:      t,
		visits: &visits{count: make(map[protocol.FID]int), modes: make(map[Mode]int), last: make(map[protocol.FID]Mode), at: make(map[protocol.FID]time.Time)},
		db:     &database{Store: worktest.NewStore(), leases: make(map[string]turnHeld)},
	}
	for i := range files {
		fid := protocol.FID(3*i + 5)
		s.fids = append(s.fids, fid)
		s.db.Put(schema.File{FID: fid, Length: 10}, 1, 2)
	}
	return s
}

// tracker runs a tracker until stop is called, or the test is over: see end.
func (s *stage) tracker(name string, change ...func(*Options, *inspector)) (w *Worker, i *inspector, stop func()) {
	i = &inspector{visits: s.visits}
	o := Options{
		Store: s.db, Cluster: s.db, Checker: i, Name: name, Jobs: 3,
		Queues:  s.db.QueueLengths,
		Rand:    rand.New(rand.NewPCG(1, uint64(len(s.stops)))),
		Metrics: prometheus.NewRegistry(),
		Log:     zerolog.New(s),
	}
	for _, f := range change {
		f(&o, i)
	}
	s.db.mu.Lock()
	s.db.members = append(s.db.members, schema.Tracker{Name: name, LastSeen: time.Now()})
	s.db.mu.Unlock()
	w = New(o)
	ctx, cancel := context.WithCancel(s.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := w.Run(ctx); err != nil {
			s.Error(err)
		}
	}()
	stop = sync.OnceFunc(func() { cancel(); <-done })
	s.stops = append(s.stops, stop)
	return w, i, stop
}

func (s *stage) end() {
	for _, stop := range s.stops {
		stop()
	}
}

// change makes a change of the settings as commands do.
func (s *stage) change(decide func(Facts) (schema.SettingsChange, error)) {
	s.Helper()
	if _, err := Change(s.Context(), s.db, decide); err != nil {
		s.Fatal(err)
	}
}

func (s *stage) start(name string) {
	s.Helper()
	s.change(func(f Facts) (schema.SettingsChange, error) { return f.StartFsck(name) })
}

func (s *stage) set(key, value string) {
	s.Helper()
	if err := s.db.SetSetting(s.Context(), key, &value); err != nil {
		s.Fatal(err)
	}
}

func (s *stage) state(w schema.Sweep) State {
	s.Helper()
	settings, err := s.db.Settings(s.Context())
	if err != nil {
		s.Fatal(err)
	}
	return StateOf(w, settings)
}

// finished waits until a sweep has ended, and returns how long that took.
func (s *stage) finished(w schema.Sweep, within time.Duration) time.Duration {
	s.Helper()
	began := time.Now()
	for s.state(w).Running() {
		if time.Since(began) > within {
			s.Fatalf("%s still runs after %v: %+v; %d files visited\n%s", w, within, s.state(w), s.total(), s.log.String())
		}
		time.Sleep(10 * time.Millisecond)
	}
	return time.Since(began)
}

// each checks how often every file was visited.
func (s *stage) each(want int) {
	s.Helper()
	for _, fid := range s.fids {
		if got := s.of(fid); got != want {
			s.Fatalf("fid %d was checked %d times; want %d", fid, got, want)
		}
	}
}

func onStage(t *testing.T, files int, play func(*stage)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t, files)
		defer s.end()
		play(s)
	})
}

func TestTrackersShareTheWork(t *testing.T) {
	t.Parallel()
	onStage(t, 12_000, func(s *stage) {
		_, a, _ := s.tracker("a")
		_, b, _ := s.tracker("b")
		time.Sleep(5 * time.Second)
		if n := s.db.Calls("ClaimRange"); n > 0 {
			s.Errorf("%d claims while nothing runs", n)
		}
		s.start("a")
		took := s.finished(schema.SweepFsck, time.Minute)
		s.each(1)
		s.mu.Lock()
		mine := []int{a.mine, b.mine}
		most := s.most
		s.mu.Unlock()
		if slices.Min(mine) < 1500 {
			s.Errorf("the trackers checked %v files", mine)
		}
		if most != 6 || took > 8*time.Second {
			s.Errorf("at most %d ranges at once, all of it took %v", most, took)
		}
		st := s.state(schema.SweepFsck)
		if st.Files != 12_000 || st.Bytes != 120_000 || st.Position != st.End || st.StopTime != time.Now().Unix() {
			s.Errorf("it ended as %+v", st)
		}
		if n := s.logged("sweep is done"); n != 1 {
			s.Errorf("the end was told %d times:\n%s", n, s.log.String())
		}
	})
}

func TestStoppedAndResumed(t *testing.T) {
	t.Parallel()
	onStage(t, 5_000, func(s *stage) {
		s.tracker("a")
		s.set(settingRate, "500")
		s.start("a")
		time.Sleep(4 * time.Second)
		s.change(func(f Facts) (schema.SettingsChange, error) { return f.Stop(schema.SweepFsck), nil })
		time.Sleep(5 * time.Second)
		n := s.total()
		if n < 1000 || n > 3000 {
			s.Errorf("%d files in 4 s at 500 a second", n)
		}
		if ranges, _, _ := s.db.Ranges(s.Context(), schema.SweepFsck); ranges != 0 {
			s.Errorf("%d ranges are not finished", ranges)
		}
		time.Sleep(time.Minute)
		if again := s.total(); again != n {
			s.Errorf("%d files were checked after it was stopped", again-n)
		}
		s.start("a")
		s.finished(schema.SweepFsck, time.Minute)
		s.each(1)
		if st := s.state(schema.SweepFsck); st.Files != 5000 || st.StartFiles != int64(n) || st.First == 0 {
			s.Errorf("it ended as %+v", st)
		}
	})
}

// TestRate has two trackers keep to the rate of both.
func TestRate(t *testing.T) {
	t.Parallel()
	for _, rate := range []int{20, 600} {
		onStage(t, 10*rate, func(s *stage) {
			s.tracker("a")
			s.tracker("b")
			s.set(settingRate, strconv.Itoa(rate))
			s.start("a")
			if took := s.finished(schema.SweepFsck, 2*time.Minute); took < 9*time.Second || took > 20*time.Second {
				s.Errorf("%d files at %d a second took %v", 10*rate, rate, took)
			}
			s.each(1)
		})
	}
}

// TestDeadTracker has ranges that nobody finishes: they are checked when their
// leases are over.
func TestDeadTracker(t *testing.T) {
	t.Parallel()
	onStage(t, 3_000, func(s *stage) {
		s.start("dead")
		s.db.members = append(s.db.members, schema.Tracker{Name: "dead"})
		for range 3 {
			if _, ok, err := s.db.ClaimRange(s.Context(), schema.SweepFsck, 100, 20*time.Second); err != nil || !ok {
				s.Fatal(err)
			}
		}
		s.tracker("a")
		if took := s.finished(schema.SweepFsck, time.Minute); took < 19*time.Second {
			s.Errorf("it ended after %v, before the leases of the dead", took)
		}
		s.each(1)
	})
}

// TestLostLease has a tracker be away for longer than its leases last.
func TestLostLease(t *testing.T) {
	t.Parallel()
	onStage(t, 1_000, func(s *stage) {
		away := false
		var mu sync.Mutex
		s.db.Before = func(method string) error {
			mu.Lock()
			defer mu.Unlock()
			if away && (method == "RenewRange" || method == "FinishRange" || method == "ReleaseRange") {
				return schema.ErrUnavailable
			}
			return nil
		}
		const lease = 12 * time.Second
		hung := 0
		s.tracker("a", func(o *Options, i *inspector) {
			o.Lease, o.Jobs = lease, 1
			i.hang = func(ctx context.Context, fid protocol.FID) {
				mu.Lock()
				first := hung == 0
				hung++
				away = away || first
				mu.Unlock()
				if first {
					<-ctx.Done() // the lease is lost
					if !errors.Is(context.Cause(ctx), errRangeLost) {
						s.Errorf("the work ended for %v", context.Cause(ctx))
					}
					mu.Lock()
					away = false
					mu.Unlock()
				}
			}
		})
		s.start("a")
		if took := s.finished(schema.SweepFsck, time.Minute); took < lease {
			s.Errorf("it ended after %v", took)
		}
		s.each(1)
		if n := s.logged("a range was lost, its files are checked again"); n != 1 {
			s.Errorf("told %d times:\n%s", n, s.log.String())
		}
	})
}

// TestRenewed has a range take longer than its lease.
func TestRenewed(t *testing.T) {
	t.Parallel()
	onStage(t, 2_000, func(s *stage) {
		slow := func(o *Options, i *inspector) {
			o.Lease = 10 * time.Second
			i.hang = func(ctx context.Context, fid protocol.FID) {
				if fid == s.fids[0] {
					work.Pause(ctx, time.Minute)
				}
			}
		}
		s.tracker("a", slow)
		s.tracker("b", slow)
		s.start("a")
		if took := s.finished(schema.SweepFsck, 2*time.Minute); took < time.Minute {
			s.Errorf("it ended after %v", took)
		}
		s.each(1)
	})
}

// TestTrackerStops gives what a tracker has begun to another.
func TestTrackerStops(t *testing.T) {
	t.Parallel()
	onStage(t, 5_000, func(s *stage) {
		_, _, stop := s.tracker("a")
		s.start("a")
		time.Sleep(400 * time.Millisecond)
		stop()
		if st := s.state(schema.SweepFsck); !st.Running() || st.Position == 0 {
			s.Fatalf("it is %+v", st)
		}
		s.tracker("b")
		if took := s.finished(schema.SweepFsck, time.Minute); took > 20*time.Second {
			s.Errorf("another tracker took %v: it waited for leases", took)
		}
		for _, fid := range s.fids {
			if s.of(fid) == 0 {
				s.Fatalf("fid %d was not checked", fid)
			}
		}
	})
}

// TestStalled has files that cannot be checked for a while.
func TestStalled(t *testing.T) {
	t.Parallel()
	onStage(t, 300, func(s *stage) {
		began := time.Now()
		s.tracker("a", func(_ *Options, i *inspector) {
			i.stall = func(fid protocol.FID) bool { return fid%10 == 0 && time.Since(began) < 1500*time.Second }
		})
		s.set("fsck_opt_policy_only", "1")
		s.start("a")
		s.finished(schema.SweepFsck, time.Minute)
		if n := s.db.Rows(schema.QueueFsck); n != 30 {
			s.Fatalf("%d files wait to be checked again", n)
		}
		if row := s.db.Row(worktest.Key{Queue: schema.QueueFsck, FID: 20}); row == nil || row.NextTry < began.Unix()+990 {
			s.Errorf("the row is %+v", row)
		}
		s.db.Delete(s.fids[5]) // 20
		time.Sleep(1200 * time.Second)
		if n := s.db.Rows(schema.QueueFsck); n != 29 {
			s.Errorf("%d files wait, one of them deleted", n)
		}
		time.Sleep(1200 * time.Second)
		if n := s.db.Rows(schema.QueueFsck); n != 0 {
			s.Errorf("%d files still wait", n)
		}
		s.fids = slices.Delete(s.fids, 5, 6)
		s.each(1)
		if got := s.checked()[Mode{}]; got != 0 || s.checked()[Mode{PolicyOnly: true}] == 0 {
			s.Errorf("the modes were %v", s.checked())
		}
	})
}

// TestFullQueue holds the run while too many files wait to be checked again.
func TestFullQueue(t *testing.T) {
	t.Parallel()
	onStage(t, 1_000, func(s *stage) {
		began := time.Now()
		s.tracker("a", func(_ *Options, i *inspector) {
			i.stall = func(protocol.FID) bool { return time.Since(began) < 900*time.Second }
		})
		s.set(settingSize, "200")
		s.start("a")
		time.Sleep(500 * time.Second)
		if n := s.db.Rows(schema.QueueFsck); n < 200 || n > 200 {
			s.Errorf("%d files wait; the queue's size is 200", n)
		}
		if n := s.logged("too many files wait to be checked again: no more are claimed until some were"); n != 1 {
			s.Errorf("told %d times:\n%s", n, s.log.String())
		}
		s.finished(schema.SweepFsck, 700*time.Second)
		s.each(1)
	})
}

// TestPerlTracker leaves the walk to a tracker that is not ours, and does what
// that queues.
func TestPerlTracker(t *testing.T) {
	t.Parallel()
	onStage(t, 500, func(s *stage) {
		s.tracker("a")
		s.start("perl1")
		time.Sleep(30 * time.Second)
		if n := s.db.Calls("ClaimRange"); n != 0 {
			s.Errorf("%d claims of a run that another tracker injects", n)
		}
		if err := s.db.QueueFsck(s.Context(), s.fids, 0, ""); err != nil {
			s.Fatal(err)
		}
		time.Sleep(30 * time.Second)
		s.each(1)
		if n := s.db.Rows(schema.QueueFsck); n != 0 {
			s.Errorf("%d rows are left", n)
		}
		if st := s.state(schema.SweepFsck); st.Host != "perl1" || st.Position != 0 {
			s.Errorf("the run is %+v", st)
		}
	})
}

// TestContentIsAskedFor reads the content of files that were queued for that,
// also while fsck looks at policies only; of others it does not.
func TestContentIsAskedFor(t *testing.T) {
	t.Parallel()
	onStage(t, 40, func(s *stage) {
		s.change(func(f Facts) (schema.SettingsChange, error) { return f.ResetFsck(true, 0), nil })
		for i, arg := range []string{"", schema.FsckContent} {
			if err := s.db.QueueFsck(s.Context(), s.fids[10*i:10*i+10], 0, arg); err != nil {
				s.Fatal(err)
			}
		}
		s.tracker("a")
		time.Sleep(30 * time.Second)
		if n := s.db.Rows(schema.QueueFsck); n != 0 || s.total() != 20 {
			s.Errorf("%d rows are left, %d files were checked", n, s.total())
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		for i, fid := range s.fids[:20] {
			if m := s.last[fid]; m.Content != (i >= 10) || m.PolicyOnly != (i < 10) {
				s.Errorf("fid %d was checked as %+v", fid, m)
			}
		}
	})
}

// TestNewRunsForgetRanges begins anew while a range is held: its files are
// checked once, and counted once.
func TestNewRunsForgetRanges(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		sweep schema.Sweep
		again func(Facts) (schema.SettingsChange, error)
	}{
		{schema.SweepFsck, func(f Facts) (schema.SettingsChange, error) { return f.ResetFsck(false, 0), nil }},
		{schema.SweepScrub, func(f Facts) (schema.SettingsChange, error) { return f.StartScrub(ScrubStart{Name: "a", Again: true}) }},
	} {
		t.Run(string(c.sweep), func(t *testing.T) {
			t.Parallel()
			onStage(t, 500, func(s *stage) {
				start := func() {
					if c.sweep == schema.SweepFsck {
						s.start("a")
					}
				}
				start()
				if c.sweep == schema.SweepScrub {
					s.change(c.again)
				}
				r, ok, err := s.db.ClaimRange(s.Context(), c.sweep, 100, time.Minute)
				if err != nil || !ok {
					s.Fatalf("%t, %v", ok, err)
				}
				s.change(func(f Facts) (schema.SettingsChange, error) { return f.Stop(c.sweep), nil })
				s.change(c.again)
				start()
				if ok, err := s.db.FinishRange(s.Context(), r, schema.Tally{Files: 100}); ok || err != nil {
					s.Errorf("a range of the run before is finished: %t, %v", ok, err)
				}
				s.tracker("a")
				s.finished(c.sweep, 10*time.Minute)
				s.each(1)
				if n := s.state(c.sweep).Files; n != 500 {
					s.Errorf("%d files are counted", n)
				}
			})
		})
	}
}

// TestPoison has files on which the checker fails or panics hold up nothing.
func TestPoison(t *testing.T) {
	t.Parallel()
	onStage(t, 400, func(s *stage) {
		_, i, _ := s.tracker("a", func(o *Options, i *inspector) {
			i.fail = func(fid protocol.FID) error {
				switch fid {
				case s.fids[7]:
					return errors.New("no")
				case s.fids[130]:
					panic("poison")
				}
				return nil
			}
		})
		s.start("a")
		s.finished(schema.SweepFsck, time.Minute)
		if n := s.db.Rows(schema.QueueFsck); n != 2 {
			s.Errorf("%d files were left for later", n)
		}
		if s.logged("file not checked, it is tried again later") < 2 {
			s.Errorf("the log says\n%s", s.log.String())
		}
		for _, fid := range s.fids {
			if s.of(fid) == 0 && fid != s.fids[7] && fid != s.fids[130] {
				s.Fatalf("fid %d was not checked", fid)
			}
		}
		s.mu.Lock()
		i.fail = nil
		s.mu.Unlock()
		time.Sleep(1500 * time.Second)
		if n := s.db.Rows(schema.QueueFsck); n != 0 {
			s.Errorf("%d files still wait", n)
		}
	})
}

// TestFailsEverywhere has the checker fail for all files: nothing is given up.
func TestFailsEverywhere(t *testing.T) {
	t.Parallel()
	onStage(t, 400, func(s *stage) {
		began := time.Now()
		s.tracker("a", func(_ *Options, i *inspector) {
			i.fail = func(protocol.FID) error {
				if time.Since(began) < 10*time.Minute {
					return errors.New("no")
				}
				return nil
			}
		})
		s.start("a")
		s.finished(schema.SweepFsck, time.Hour)
		s.each(1)
		if n := s.db.Rows(schema.QueueFsck); n != 0 {
			s.Errorf("%d files were left for later", n)
		}
	})
}

// TestDatabaseGoesAway has every call fail now and then.
func TestDatabaseGoesAway(t *testing.T) {
	t.Parallel()
	onStage(t, 2_000, func(s *stage) {
		var mu sync.Mutex
		rng := rand.New(rand.NewPCG(7, 7))
		calm := false
		s.db.Before = func(string) error {
			mu.Lock()
			defer mu.Unlock()
			if !calm && rng.IntN(5) == 0 {
				return fmt.Errorf("chance: %w", schema.ErrUnavailable)
			}
			return nil
		}
		s.tracker("a")
		s.tracker("b")
		for range 50 {
			if _, err := Change(s.Context(), s.db, func(f Facts) (schema.SettingsChange, error) { return f.StartFsck("a") }); err == nil || errors.Is(err, errFsckRunning) {
				break
			}
		}
		time.Sleep(10 * time.Minute)
		mu.Lock()
		calm = true
		mu.Unlock()
		s.finished(schema.SweepFsck, 10*time.Minute)
		for _, fid := range s.fids {
			if s.of(fid) == 0 {
				s.Fatalf("fid %d was not checked", fid)
			}
		}
	})
}

// TestScrubRounds plays two rounds of a scrub that is to take a day.
func TestScrubRounds(t *testing.T) {
	t.Parallel()
	const day = 144 * time.Minute // of these tests: a tenth of a real one
	onStage(t, 400, func(s *stage) {
		lazy := func(o *Options, _ *inspector) { o.Idle, o.Jobs = 20*time.Second, 1 }
		s.tracker("a", lazy)
		s.tracker("b", lazy)
		time.Sleep(time.Minute)
		if n := s.total(); n != 0 {
			s.Fatalf("%d files are read, which nobody asked for", n)
		}
		began := time.Now()
		s.set(SettingScrubDays, "0.1")
		for hour := range 24 {
			time.Sleep(day / 24)
			want := 400 * (hour + 1) / 24
			if n := s.total(); n < want-25 || n > want+25 {
				s.Errorf("%d files were read after %d hours; %d would be punctual", n, hour+1, want)
			}
		}
		s.each(1)
		for m := range s.checked() {
			if !m.Content {
				s.Errorf("files were checked as %+v", m)
			}
		}
		time.Sleep(time.Until(began.Add(3 * day / 2)))
		if n := s.total(); n < 570 || n > 630 {
			s.Errorf("%d files were read in a day and a half; 600 would be punctual", n)
		}
		if n := s.logged("a round of scrub begins"); n != 2 {
			s.Errorf("%d rounds begun", n)
		}

		// An operator stops it: nothing goes on by itself.
		s.change(func(f Facts) (schema.SettingsChange, error) { return f.Stop(schema.SweepScrub), nil })
		time.Sleep(time.Minute)
		n := s.total()
		time.Sleep(3 * day)
		if again := s.total(); again != n {
			s.Errorf("%d files were read after it was stopped", again-n)
		}
		// And lets it go on as fast as it can; after which rounds are paced again.
		s.change(func(f Facts) (schema.SettingsChange, error) { return f.StartScrub(ScrubStart{Name: "b"}) })
		s.finished(schema.SweepScrub, time.Minute)
		s.each(2)
		time.Sleep(day)
		if n := s.total(); n < 1180 || n > 1220 {
			s.Errorf("%d files were read a day later", n)
		}
		// Taken away, the setting holds the round; set again it goes on.
		s.set(SettingScrubDays, "0")
		time.Sleep(time.Minute)
		n = s.total()
		time.Sleep(day)
		if again := s.total(); again != n {
			s.Errorf("%d files were read although scrub_days is 0", again-n)
		}
	})
}

// TestScrubStops breaks off what is being read.
func TestScrubStops(t *testing.T) {
	t.Parallel()
	onStage(t, 200, func(s *stage) {
		s.tracker("a", func(_ *Options, i *inspector) {
			i.hang = func(ctx context.Context, _ protocol.FID) { work.Pause(ctx, 20*time.Second) }
		})
		s.change(func(f Facts) (schema.SettingsChange, error) { return f.StartScrub(ScrubStart{Name: "a"}) })
		time.Sleep(30 * time.Second)
		s.change(func(f Facts) (schema.SettingsChange, error) { return f.Stop(schema.SweepScrub), nil })
		time.Sleep(5 * time.Second)
		s.mu.Lock()
		running := s.running
		s.mu.Unlock()
		if running != 0 {
			s.Errorf("%d ranges are still being read", running)
		}
		ranges, _, err := s.db.Ranges(s.Context(), schema.SweepScrub)
		if err != nil || ranges == 0 {
			s.Errorf("%d ranges are left for later (%v)", ranges, err)
		}
	})
}

// TestScrubBesideFsck has neither wait for the other.
func TestScrubBesideFsck(t *testing.T) {
	t.Parallel()
	onStage(t, 3_000, func(s *stage) {
		s.tracker("a", func(o *Options, _ *inspector) { o.Jobs = 1 })
		s.start("a")
		s.change(func(f Facts) (schema.SettingsChange, error) { return f.StartScrub(ScrubStart{Name: "a"}) })
		time.Sleep(3 * time.Second)
		modes := s.checked()
		quick, whole := modes[Mode{}], modes[Mode{Content: true}]
		if quick == 0 || whole == 0 || quick > whole+1 || whole > quick+1 {
			s.Errorf("%d ranges of fsck and %d of scrub", quick, whole)
		}
		s.finished(schema.SweepFsck, time.Minute)
		s.finished(schema.SweepScrub, time.Minute)
		s.each(2)
	})
}

// TestScrubOfStalled reads files that could not be read when their turn came.
func TestScrubOfStalled(t *testing.T) {
	t.Parallel()
	onStage(t, 60, func(s *stage) {
		began := time.Now()
		s.tracker("a", func(o *Options, i *inspector) {
			o.Idle, o.Jobs = 20*time.Second, 1
			i.stall = func(fid protocol.FID) bool { return fid == s.fids[3] && time.Since(began) < 3*time.Hour }
		})
		s.set(SettingScrubDays, "1")
		s.change(func(f Facts) (schema.SettingsChange, error) {
			return f.StartScrub(ScrubStart{Name: "a", Paced: true})
		})
		time.Sleep(12 * time.Hour)
		if n, waited := s.of(s.fids[3]), s.state(schema.SweepScrub).Events[waitCode]; n != 1 || waited != 1 {
			s.Errorf("it was read %d times, and had to wait %d times", n, waited)
		}
		if n := s.db.Rows(schema.QueueFsck); n != 0 {
			s.Errorf("%d files wait", n)
		}
		for m := range s.checked() {
			if !m.Content {
				s.Errorf("files were checked as %+v", m)
			}
		}
	})
}

// TestScrubOfStalledAfterItsEnd reads a file that could not be read before the
// scrub was over: the row remembers what was to be done.
func TestScrubOfStalledAfterItsEnd(t *testing.T) {
	t.Parallel()
	onStage(t, 60, func(s *stage) {
		began := time.Now()
		s.tracker("a", func(_ *Options, i *inspector) {
			i.stall = func(fid protocol.FID) bool { return fid == s.fids[3] && time.Since(began) < 1500*time.Second }
		})
		s.change(func(f Facts) (schema.SettingsChange, error) { return f.StartScrub(ScrubStart{Name: "a"}) })
		s.finished(schema.SweepScrub, time.Minute)
		time.Sleep(time.Hour)
		if n := s.db.Rows(schema.QueueFsck); n != 0 {
			s.Errorf("%d files wait", n)
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		if m, ok := s.last[s.fids[3]]; !ok || !m.Content {
			s.Errorf("the file was checked as %+v (%v)", m, ok)
		}
	})
}

// TestEmptyCluster starts no rounds where there is nothing to read.
func TestEmptyCluster(t *testing.T) {
	t.Parallel()
	onStage(t, 0, func(s *stage) {
		s.tracker("a")
		s.set(SettingScrubDays, "1")
		time.Sleep(time.Hour)
		if n := s.logged("a round of scrub begins"); n != 0 {
			s.Errorf("%d rounds of nothing", n)
		}
		s.start("a")
		s.finished(schema.SweepFsck, time.Minute)
	})
}

func TestBandwidthIsShared(t *testing.T) {
	t.Parallel()
	onStage(t, 0, func(s *stage) {
		limiter := NewBandwidth()
		s.tracker("a", func(o *Options, _ *inspector) { o.Bandwidth = limiter })
		s.tracker("b")
		time.Sleep(time.Minute)
		if limiter.Limit() < 1e300 {
			s.Errorf("the limit is %v", limiter.Limit())
		}
		s.set(SettingBandwidth, "1000000")
		time.Sleep(time.Minute)
		if limiter.Limit() != 500_000 {
			s.Errorf("the limit of one of two trackers is %v", limiter.Limit())
		}
		s.set(SettingBandwidth, "0")
		time.Sleep(time.Minute)
		if limiter.Limit() < 1e300 {
			s.Errorf("the limit is %v", limiter.Limit())
		}
	})
}
