package postgres

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/mogile/mogile/schema"
)

// recorder is a database that takes batches of numbers, each as long as release
// lets it.
type recorder struct {
	mu      sync.Mutex
	batches [][]int
	release chan struct{} // a value for each batch to end; nil: at once
	bad     int           // a batch with it fails; 0 none
}

var errBad = errors.New("bad")

func (r *recorder) run(ctx context.Context, calls, outcomes []int) error {
	r.mu.Lock()
	r.batches = append(r.batches, slices.Clone(calls))
	r.mu.Unlock()
	if r.release != nil {
		<-r.release
	}
	for i, c := range calls {
		if c == r.bad && r.bad != 0 {
			return errBad
		}
		outcomes[i] = 10 * c
	}
	return nil
}

func (r *recorder) seen() [][]int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.batches)
}

func always(error) bool { return true }

func TestCoalescerCollectsWhileBatchesRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &recorder{release: make(chan struct{})}
		c := newCoalescer(t.Context(), coalescing[int, int]{batches: 2, size: 3, eager: true, run: r.run, retry: always})
		var wg sync.WaitGroup
		for i := 1; i <= 7; i++ {
			wg.Go(func() {
				if got, err := c.do(t.Context(), i); err != nil || got != 10*i {
					t.Errorf("call %d: %d, %v", i, got, err)
				}
			})
			synctest.Wait()
		}
		if got := r.seen(); len(got) != 2 || len(got[0]) != 1 || len(got[1]) != 1 {
			t.Errorf("batches before any ended: %v; want the first two calls, each at once", got)
		}
		r.release <- struct{}{}
		synctest.Wait()
		if got := r.seen(); len(got) != 3 || !slices.Equal(got[2], []int{3, 4, 5}) {
			t.Errorf("batches after one ended: %v; want 3, 4, 5 together", got)
		}
		close(r.release)
		wg.Wait()
		c.close()
		if _, err := c.do(t.Context(), 1); !errors.Is(err, schema.ErrUnavailable) {
			t.Errorf("after close: %v", err)
		}
	})
}

// TestCoalescerWaitsForCompany: while a batch runs, another begins beside it when
// many calls wait, or the first takes long.
func TestCoalescerWaitsForCompany(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &recorder{release: make(chan struct{})}
		c := newCoalescer(t.Context(), coalescing[int, int]{batches: 3, size: 64, run: r.run, retry: always})
		var wg sync.WaitGroup
		begin := func(n int) {
			wg.Go(func() {
				if _, err := c.do(t.Context(), n); err != nil {
					t.Error(err)
				}
			})
			synctest.Wait()
		}
		begin(1)
		for n := range manyCalls - 1 {
			begin(10 + n)
		}
		if got := r.seen(); len(got) != 1 {
			t.Errorf("batches with fewer than many waiting: %v", got)
		}
		begin(100)
		if got := r.seen(); len(got) != 2 || len(got[1]) != manyCalls {
			t.Errorf("batches with many waiting: %v", got)
		}
		begin(200)
		if got := r.seen(); len(got) != 2 {
			t.Errorf("a call began by itself: %v", got)
		}
		time.Sleep(longBatch)
		begin(201)
		if got := r.seen(); len(got) != 3 || !slices.Equal(got[2], []int{200, 201}) {
			t.Errorf("batches beside one that takes long: %v", got)
		}
		close(r.release)
		wg.Wait()
		c.close()
	})
}

// TestCoalescerPaces: after a batch of several calls the next waits for more, for
// some times as long as batches take; after one of few, and where enough wait, it
// begins at once.
func TestCoalescerPaces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const bound = 10 * time.Millisecond
		r := &recorder{release: make(chan struct{})}
		c := newCoalescer(t.Context(), coalescing[int, int]{batches: 1, size: 64, pace: bound, run: r.run, retry: always})
		var wg sync.WaitGroup
		begin := func(calls int) {
			for n := range calls {
				wg.Go(func() {
					if _, err := c.do(t.Context(), n); err != nil {
						t.Error(err)
					}
				})
			}
			synctest.Wait()
		}
		end := func(took time.Duration) {
			time.Sleep(took)
			r.release <- struct{}{}
			synctest.Wait()
		}
		want := func(when string, calls ...int) {
			t.Helper()
			synctest.Wait()
			var got []int
			for _, b := range r.seen() {
				got = append(got, len(b))
			}
			if !slices.Equal(got, calls) {
				t.Errorf("%s: batches of %v calls, want %v", when, got, calls)
			}
		}
		begin(1)
		begin(fewCalls)
		end(time.Second)
		want("after a batch of one", 1, fewCalls)
		end(0)
		begin(1)
		want("after a batch of several", 1, fewCalls)
		time.Sleep(bound - time.Millisecond)
		begin(fewCalls)
		want("before its pace is over", 1, fewCalls)
		time.Sleep(time.Millisecond)
		want("when its pace is over", 1, fewCalls, 1+fewCalls)
		end(0)
		begin(enoughCalls)
		want("where enough wait", 1, fewCalls, 1+fewCalls, enoughCalls)
		end(0)
		c.mu.Lock()
		c.usually = time.Millisecond
		c.mu.Unlock()
		begin(1)
		time.Sleep(paceShare*time.Millisecond - time.Microsecond)
		want("where batches are short", 1, fewCalls, 1+fewCalls, enoughCalls)
		time.Sleep(time.Microsecond)
		want("where batches are short, some times as long", 1, fewCalls, 1+fewCalls, enoughCalls, 1)
		close(r.release)
		wg.Wait()
		c.close()
	})
}

func TestCoalescerSeparatesCallsThatShareAKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &recorder{release: make(chan struct{})}
		c := newCoalescer(t.Context(), coalescing[int, int]{batches: 4, size: 8, eager: true, run: r.run, retry: always,
			keys: func(n int) [2]any { return [2]any{n % 10, -n} }})
		var wg sync.WaitGroup
		for _, n := range []int{1, 11, 21, 2, 12} {
			wg.Go(func() {
				if _, err := c.do(t.Context(), n); err != nil {
					t.Error(err)
				}
			})
			synctest.Wait()
		}
		if got := r.seen(); len(got) != 2 || got[0][0] != 1 || got[1][0] != 2 {
			t.Errorf("running: %v; want 1 and 2 alone", got)
		}
		r.release <- struct{}{}
		r.release <- struct{}{}
		synctest.Wait()
		for _, batch := range r.seen() {
			if slices.Contains(batch, 11) && slices.Contains(batch, 21) {
				t.Errorf("11 and 21 share a batch: %v", r.seen())
			}
		}
		close(r.release)
		wg.Wait()
		c.close()
	})
}

func TestCoalescerRepeatsFailedBatchesOneByOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &recorder{release: make(chan struct{}), bad: 3}
		c := newCoalescer(t.Context(), coalescing[int, int]{batches: 1, size: 8, run: r.run, retry: always})
		var wg sync.WaitGroup
		for i := 1; i <= 4; i++ {
			wg.Go(func() {
				_, err := c.do(t.Context(), i)
				if (i == 3) != (err != nil) || err != nil && !errors.Is(err, errBad) {
					t.Errorf("call %d: %v", i, err)
				}
			})
			synctest.Wait()
		}
		close(r.release)
		wg.Wait()
		c.close()
		if got := r.seen(); len(got) != 5 { // 1; 2, 3, 4 together; 2; 3; 4
			t.Errorf("batches: %v", got)
		}
	})
}

func TestCoalescerDoesNotRepeatWhereTheDatabaseIsAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &recorder{release: make(chan struct{}), bad: 3}
		c := newCoalescer(t.Context(), coalescing[int, int]{batches: 1, size: 8, run: r.run, retry: func(error) bool { return false }})
		var wg sync.WaitGroup
		for i := 1; i <= 4; i++ {
			wg.Go(func() {
				if _, err := c.do(t.Context(), i); (i == 1) != (err == nil) {
					t.Errorf("call %d: %v", i, err)
				}
			})
			synctest.Wait()
		}
		close(r.release)
		wg.Wait()
		c.close()
		if got := r.seen(); len(got) != 2 {
			t.Errorf("batches: %v", got)
		}
	})
}

func TestCoalescerForgetsCallsWhoseContextEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &recorder{release: make(chan struct{})}
		c := newCoalescer(t.Context(), coalescing[int, int]{batches: 1, size: 8, run: r.run, retry: always})
		var wg sync.WaitGroup
		wg.Go(func() { _, _ = c.do(t.Context(), 1) })
		synctest.Wait()
		ctx, cancel := context.WithCancel(t.Context())
		wg.Go(func() {
			if _, err := c.do(ctx, 2); !errors.Is(err, context.Canceled) {
				t.Errorf("call 2: %v", err)
			}
		})
		synctest.Wait()
		cancel()
		synctest.Wait()
		close(r.release)
		wg.Wait()
		c.close()
		if got := r.seen(); len(got) != 1 {
			t.Errorf("batches: %v; want only the first call's", got)
		}
	})
}

func TestStoreLeavesNoGoroutines(t *testing.T) {
	d := fresh(t, noOffset)
	ignore := goleak.IgnoreCurrent()
	s := d.Open(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	changes := s.Changes(ctx)
	if _, _, err := s.TryLock(ctx, []string{"a"}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.CreateTempfile(ctx, schema.Tempfile{DMID: 1, Key: "k"}); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, open := <-changes; open {
		for range changes {
		}
	}
	goleak.VerifyNone(t, ignore)
}
