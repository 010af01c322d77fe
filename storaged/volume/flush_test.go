package volume

import (
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// flushes is a disk that takes a time for each flush, and remembers when each
// began.
type flushes struct {
	mu    sync.Mutex
	start time.Time
	takes time.Duration
	began []time.Duration
	err   error
}

func (f *flushes) run() error {
	f.mu.Lock()
	f.began = append(f.began, time.Since(f.start))
	f.mu.Unlock()
	time.Sleep(f.takes)
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.err
}

func (f *flushes) seen() []time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.began)
}

// TestFlushersAnswerByALaterRun: who calls during a flush shares the next one,
// also its failure.
func TestFlushersAnswerByALaterRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		disk := &flushes{start: time.Now(), takes: time.Second}
		f := newFlusher(new(pace), disk.run)
		var wg sync.WaitGroup
		wg.Go(func() {
			if err := f.flush(); err != nil {
				t.Error(err)
			}
		})
		synctest.Wait()
		bad := errors.New("bad")
		for range 2 {
			wg.Go(func() {
				if err := f.flush(); err != bad {
					t.Error(err)
				}
				if took := time.Since(disk.start); took != 2*time.Second {
					t.Errorf("answered after %v", took)
				}
			})
		}
		time.Sleep(1500 * time.Millisecond)
		disk.mu.Lock()
		disk.err = bad
		disk.mu.Unlock()
		wg.Wait()
		if got := disk.seen(); !slices.Equal(got, []time.Duration{0, time.Second}) {
			t.Errorf("flushes began at %v", got)
		}
	})
}

// TestPaceOfFlushes: after a flush that several shared the next waits for more,
// for some times as long as flushes take; after others it begins at once.
func TestPaceOfFlushes(t *testing.T) {
	const ms = time.Millisecond
	for _, c := range []struct {
		name    string
		users   int           // who shared the last flush; below 0: there is no pace
		usually time.Duration // that flushes take
		after   time.Duration // between the beginning of that and the call
		want    time.Duration // between both beginnings
	}{
		{"alone", companyUsers - 1, 5 * ms, ms, ms},
		{"in company", companyUsers, 2 * ms, ms, paceShare * 2 * ms},
		{"on a quick disk", companyUsers, ms / 10, 0, paceShare * ms / 10},
		{"on a slow disk", companyUsers, 50 * ms, ms, longestPace},
		{"without a pace", -1, 0, ms, ms},
		{"after the pace", companyUsers, 2 * ms, 9 * ms, 9 * ms},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := &pace{began: time.Now(), users: c.users, usually: c.usually}
				if c.users < 0 {
					p = nil
				}
				disk := &flushes{start: time.Now()}
				time.Sleep(c.after)
				if err := newFlusher(p, disk.run).flush(); err != nil {
					t.Fatal(err)
				}
				if got := disk.seen(); len(got) != 1 || got[0] != c.want {
					t.Errorf("flushed at %v, want %v", got, c.want)
				}
			})
		})
	}
}

// TestPaceFollowsTheDisk: how long flushes take is known after some of them, and
// forgotten when the disk is quicker.
func TestPaceFollowsTheDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, disk := new(pace), &flushes{start: time.Now()}
		for _, takes := range []time.Duration{2 * time.Millisecond, 100 * time.Microsecond} {
			disk.takes = takes
			for range 100 {
				if err := p.run(1, disk.run); err != nil {
					t.Fatal(err)
				}
			}
			if off := p.usually - takes; off.Abs() > takes/10 {
				t.Errorf("flushes take %v, known as %v", takes, p.usually)
			}
		}
	})
}
