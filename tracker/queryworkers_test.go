package tracker

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/mogile/mogile/tracker/work"
)

func newPlace(line string) *ticket { return &ticket{line: line, granted: make(chan int, 1)} }

func TestQueryWorkersServeInOrderOfArrival(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		q := newQueryWorkers(2, new(work.Numbers).Next)
		var mu sync.Mutex // guards order
		var order []string
		ask := func(name string) {
			go func() {
				if _, err := q.acquire(newPlace(name)); err != nil {
					t.Error(err)
				}
				mu.Lock()
				defer mu.Unlock()
				order = append(order, name)
			}()
			synctest.Wait()
		}
		for i := range 4 {
			ask(fmt.Sprint(i))
		}
		if l := q.load(); l.pending != 4 || l.processing != 0 {
			t.Errorf("before the workers exist: %+v", l)
		}
		q.open()
		synctest.Wait()
		slices.Sort(order) // the first two were let in together
		want := load{pending: 2, processing: 2, desired: 2, queries: 4, waited: 4}
		if diff := cmp.Diff(want, q.load(), cmp.AllowUnexported(load{})); diff != "" {
			t.Errorf("load (-want +got):\n%s", diff)
		}
		for _, id := range []int{1, 2, 1, 2} {
			q.release(id)
			synctest.Wait()
		}
		if diff := cmp.Diff([]string{"0", "1", "2", "3"}, order); diff != "" {
			t.Errorf("order (-want +got):\n%s", diff)
		}
		if l := q.load(); l.bored != 2 || l.processing != 0 || l.pending != 0 {
			t.Errorf("afterwards: %+v", l)
		}
	})
}

// TestPiledUpRequestsGoLast has many requests wait that were sent without
// waiting for answers, and then some of clients that do.
func TestPiledUpRequestsGoLast(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		q := newQueryWorkers(1, new(work.Numbers).Next)
		var order []string
		ask := func(name string, piled bool) {
			place := newPlace(name)
			place.piled = piled
			go func() {
				if _, err := q.acquire(place); err != nil {
					t.Error(err)
				}
				order = append(order, name)
			}()
			synctest.Wait()
		}
		for i := range 3 {
			ask(fmt.Sprintf("piled%d", i), true)
		}
		var want, queue []string
		for i := range 9 {
			ask(fmt.Sprint(i), false)
			want = append(want, fmt.Sprint(i))
		}
		for _, w := range q.queued() {
			queue = append(queue, w.line)
		}
		if diff := cmp.Diff(append([]string{"piled0", "piled1", "piled2"}, want...), queue); diff != "" {
			t.Errorf("the queue is shown in order of arrival (-want +got):\n%s", diff)
		}
		q.open()
		for range 11 {
			synctest.Wait()
			q.release(1)
		}
		synctest.Wait()
		want = slices.Insert(want, backlogShare-1, "piled0")
		if diff := cmp.Diff(append(want, "piled1", "piled2"), order); diff != "" {
			t.Errorf("order (-want +got):\n%s", diff)
		}
	})
}

func TestMostRecentlyUsedQueryWorkerIsTakenFirst(t *testing.T) {
	t.Parallel()
	q := newQueryWorkers(3, new(work.Numbers).Next)
	q.open()
	var last int
	for i := range 5 {
		id, err := q.acquire(newPlace("x"))
		if err != nil {
			t.Fatal(err)
		}
		if i > 0 && id != last {
			t.Errorf("worker %d was taken after %d", id, last)
		}
		last = id
		q.release(id)
	}
}

func TestStoppingSendsAwayWhatWaits(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		q := newQueryWorkers(1, new(work.Numbers).Next)
		q.open()
		id, err := q.acquire(newPlace("holds"))
		if err != nil {
			t.Fatal(err)
		}
		ended := make(chan error)
		go func() {
			_, err := q.acquire(newPlace("waits"))
			ended <- err
		}()
		synctest.Wait()
		if got := q.queued(); len(got) != 1 || got[0].line != "waits" {
			t.Errorf("queued are %v", got)
		}
		q.stop()
		if err := <-ended; !errors.Is(err, errStopping) {
			t.Errorf("error is %v, want %v", err, errStopping)
		}
		q.release(id)
		if _, err := q.acquire(newPlace("late")); !errors.Is(err, errStopping) {
			t.Errorf("error is %v, want %v", err, errStopping)
		}
		if l := q.load(); l.pending != 0 || l.processing != 0 {
			t.Errorf("afterwards: %+v", l)
		}
	})
}

func TestQueryWorkersAreResizedAndReplaced(t *testing.T) {
	t.Parallel()
	q := newQueryWorkers(3, new(work.Numbers).Next)
	q.open()
	take := func() int {
		id, err := q.acquire(newPlace("x"))
		if err != nil {
			t.Fatal(err)
		}
		return id
	}
	busy := take() // 3
	q.Want(1)
	if diff := cmp.Diff([]int{3}, q.IDs()); diff != "" {
		t.Errorf("idle workers go at once (-want +got):\n%s", diff)
	}
	q.Want(0)
	if diff := cmp.Diff([]int{3}, q.IDs()); diff != "" {
		t.Errorf("a busy worker finishes (-want +got):\n%s", diff)
	}
	q.release(busy)
	if ids := q.IDs(); len(ids) != 0 {
		t.Errorf("workers are %v, want none", ids)
	}
	q.Want(2)
	if diff := cmp.Diff([]int{4, 5}, q.IDs()); diff != "" {
		t.Errorf("new workers (-want +got):\n%s", diff)
	}
	busy = take() // 5
	if n := q.Restart(); n != 2 {
		t.Errorf("%d workers were told to restart, want 2", n)
	}
	if diff := cmp.Diff([]int{5, 6}, q.IDs()); diff != "" {
		t.Errorf("an idle worker is replaced at once (-want +got):\n%s", diff)
	}
	q.release(busy)
	if diff := cmp.Diff([]int{6, 7}, q.IDs()); diff != "" {
		t.Errorf("a busy one when it is done (-want +got):\n%s", diff)
	}
	hung := take() // 7
	q.abandon(hung)
	if diff := cmp.Diff([]int{6, 8}, q.IDs()); diff != "" {
		t.Errorf("one that hangs is given up (-want +got):\n%s", diff)
	}
}

func TestWatchdogCancelsThenGivesUp(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name     string
		runs     time.Duration // how long the request takes, whatever happens
		extend   time.Duration // asked for at once
		cause    error
		gaveUpAt time.Duration
	}{
		{name: "in time", runs: 29 * time.Second},
		{name: "cancelled, and returns", runs: 34 * time.Second, cause: errQueryTimeout},
		{name: "given up", runs: 40 * time.Second, cause: errQueryTimeout, gaveUpAt: 35 * time.Second},
		{name: "extended", runs: 100 * time.Second, extend: 101 * time.Second},
		{name: "extended and given up", runs: 200 * time.Second, extend: 101 * time.Second, cause: errQueryTimeout, gaveUpAt: 106 * time.Second},
		{name: "never shortened", runs: 29 * time.Second, extend: time.Second},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				w := &watchdog{grace: 5 * time.Second}
				for round := range 2 { // the second shows that nothing of the first is left
					began := time.Now()
					ctx, cancel := context.WithCancelCause(t.Context())
					var gaveUpAt time.Duration
					w.start(30*time.Second, cancel, func() { gaveUpAt = time.Since(began) })
					if c.extend > 0 {
						w.extend(c.extend)
					}
					time.Sleep(c.runs)
					synctest.Wait()
					if got := context.Cause(ctx); !errors.Is(got, c.cause) {
						t.Errorf("round %d: cause is %v, want %v", round, got, c.cause)
					}
					if inTime := w.stop(); inTime != (c.gaveUpAt == 0) {
						t.Errorf("round %d: stop says %v", round, inTime)
					}
					if gaveUpAt != c.gaveUpAt {
						t.Errorf("round %d: given up after %v, want %v", round, gaveUpAt, c.gaveUpAt)
					}
					cancel(nil)
				}
			})
		})
	}
}

func TestRecentKeepsTheLastFifty(t *testing.T) {
	t.Parallel()
	var r recent
	if got := r.list(); len(got) != 0 {
		t.Errorf("at first there are %v", got)
	}
	for i := range 53 {
		r.add(recentQuery{line: fmt.Sprint(i)})
	}
	r.add(recentQuery{line: strings.Repeat("x", 5000)})
	got := r.list()
	if len(got) != recentQueries {
		t.Fatalf("%d are kept, want %d", len(got), recentQueries)
	}
	if got[0].line != "4" || got[48].line != "52" || got[49].line != strings.Repeat("x", recentLine) {
		t.Errorf("first is %q, last but one %q, last of %d bytes", got[0].line, got[48].line, len(got[49].line))
	}
}
