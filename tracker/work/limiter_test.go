package work_test

import (
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mogile/mogile/tracker/work"
)

func TestLimiterWithoutWaiting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := work.NewLimiter(2)
		var releases []func()
		for range 2 {
			r, ok := l.TryAcquire(1)
			if !ok {
				t.Fatal("a device that nobody uses is taken")
			}
			releases = append(releases, r)
		}
		if _, ok := l.TryAcquire(1); ok {
			t.Error("a third use")
		}
		if r, ok := l.TryAcquire(2); !ok {
			t.Error("another device is held up")
		} else {
			r()
		}
		releases[0]()
		if r, ok := l.TryAcquire(1); !ok {
			t.Error("a use that ended is still taken")
		} else {
			r()
		}
		releases[1]()
	})
}

// TestLimiterSoon has callers wait a moment for a device that is quick, as many
// as it serves at once, and none for one that is slow or hangs.
func TestLimiterSoon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := work.NewLimiter(2)
		soon := func() (bool, time.Duration) {
			began := time.Now()
			release, ok := l.AcquireSoon(t.Context(), 1)
			if ok {
				release()
			}
			return ok, time.Since(began)
		}
		use := func(d time.Duration) (done <-chan struct{}) {
			release, ok := l.TryAcquire(1)
			if !ok {
				t.Fatal("taken")
			}
			c := make(chan struct{})
			go func() {
				defer close(c)
				work.Pause(t.Context(), d)
				release()
			}()
			return c
		}
		for range 50 {
			<-use(20 * time.Millisecond)
		}
		use(30 * time.Millisecond)
		use(30 * time.Millisecond)
		var wg sync.WaitGroup
		// Two at a time, 20 ms each: so many in half of 200 ms.
		for range 8 {
			wg.Go(func() {
				if ok, took := soon(); !ok || took > 30*time.Millisecond {
					t.Errorf("a quick device: %t after %v", ok, took)
				}
			})
		}
		synctest.Wait()
		if ok, took := soon(); ok || took > 0 {
			t.Errorf("one more that waits: %t after %v", ok, took)
		}
		wg.Wait()
		synctest.Wait() // both may have had the first use that ended

		hung := use(time.Minute)
		use(time.Minute)
		if ok, took := soon(); ok || took != 200*time.Millisecond {
			t.Errorf("a device that hangs since a moment ago: %t after %v", ok, took)
		}
		if ok, took := soon(); ok || took > 0 {
			t.Errorf("a device that hangs: %t after %v", ok, took)
		}
		<-hung
	})
}

// TestLimiterLine has many wait for one device: they come one after the other,
// faster the faster it is, and none sooner than in a second nor later than in
// ten minutes.
func TestLimiterLine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := work.NewLimiter(4)
		if d := l.Line(1); d != time.Second {
			t.Errorf("the first in line comes in %v", d)
		}
		use := func(d time.Duration) {
			for range 100 {
				r, ok := l.TryAcquire(1)
				if !ok {
					t.Fatal("taken")
				}
				work.Pause(t.Context(), d)
				r()
			}
		}
		span := func(n int) time.Duration {
			var last time.Duration
			for range n {
				d := l.Line(1)
				if d < last || d < time.Second || d > 10*time.Minute {
					t.Fatalf("%v after %v", d, last)
				}
				last = d
			}
			return last
		}
		use(10 * time.Millisecond)
		if quick := span(800); quick < 1500*time.Millisecond || quick > 3*time.Second { // 400/s at best, twice that are told to come
			t.Errorf("800 in line at a quick device: %v", quick)
		}
		use(8 * time.Second)
		if slow := span(100); slow < time.Minute || slow > 2*time.Minute { // one in 2 s, twice that
			t.Errorf("100 in line at a slow device: %v", slow)
		}
		if d := span(100_000); d != 10*time.Minute {
			t.Errorf("the longest wait is %v", d)
		}
		if d := l.Line(2); d != time.Second {
			t.Errorf("at another device %v", d)
		}
	})
}
