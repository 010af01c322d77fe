package work_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rs/zerolog"
	"go.uber.org/goleak"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/schema"
	"github.com/mogile/mogile/tracker/work"
	"github.com/mogile/mogile/tracker/work/worktest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// start runs f until the returned function is called, which also waits for it.
func start(t *testing.T, f func(ctx context.Context) error) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- f(ctx) }()
	return sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
}

func TestPoolResizes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex // guards messages
		var messages []string
		p := work.NewPool("replicate", 2, func(ctx context.Context, _ int) error {
			<-ctx.Done()
			return nil
		}, zerolog.Nop())
		p.Notify = func(m string) {
			mu.Lock()
			defer mu.Unlock()
			messages = append(messages, m)
		}
		if ids := p.IDs(); len(ids) != 0 || p.Desired() != 2 {
			t.Fatalf("before Run: ids %v, desired %d", ids, p.Desired())
		}
		stop := start(t, p.Run)
		synctest.Wait()
		if got := p.IDs(); !slices.Equal(got, []int{1, 2}) {
			t.Fatalf("ids %v", got)
		}
		p.Want(4)
		synctest.Wait()
		if got := p.IDs(); !slices.Equal(got, []int{1, 2, 3, 4}) {
			t.Fatalf("ids %v after Want(4)", got)
		}
		p.Want(1)
		synctest.Wait()
		if got := p.IDs(); !slices.Equal(got, []int{1}) || p.Desired() != 1 {
			t.Fatalf("ids %v after Want(1)", got)
		}
		if n := p.Restart(); n != 1 {
			t.Errorf("Restart told %d", n)
		}
		synctest.Wait()
		if got := p.IDs(); !slices.Equal(got, []int{5}) {
			t.Fatalf("ids %v after Restart", got)
		}
		p.Want(-3)
		synctest.Wait()
		if got := p.IDs(); len(got) != 0 || p.Desired() != 0 || p.Restart() != 0 {
			t.Fatalf("ids %v after Want(-3)", got)
		}
		stop()
		for _, want := range []string{
			"Job replicate has only 0, wants 2, making 2.",
			"Job replicate has only 2, wants 4, making 2.",
			"Child 1 (replicate) died: 0 (expected)",
		} {
			if !slices.Contains(messages, want) {
				t.Errorf("no message %q in %q", want, messages)
			}
		}
	})
}

func TestPoolFinishesWhatIsBegun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		finished := make(chan error, 1)
		p := work.NewPool("replicate", 1, func(ctx context.Context, _ int) error {
			<-ctx.Done() // retired while a piece of work takes a minute more
			hard := work.InProgress(ctx)
			work.Pause(hard, time.Minute)
			finished <- hard.Err()
			return nil
		}, zerolog.Nop())
		stop := start(t, p.Run)
		synctest.Wait()
		p.Want(0)
		synctest.Wait()
		if got := p.IDs(); len(got) != 1 {
			t.Errorf("a worker that is finishing is not listed: %v", got)
		}
		if err := <-finished; err != nil {
			t.Errorf("work was cancelled by Want(0): %v", err)
		}
		p.Want(1)
		synctest.Wait()
		stop()
		if err := <-finished; !errors.Is(err, context.Canceled) {
			t.Errorf("work was not cancelled by the pool's end: %v", err)
		}
	})
}

func TestPoolReplacesWorkersThatFail(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var starts atomic.Int32
		var log bytes.Buffer
		p := work.NewPool("delete", 1, func(ctx context.Context, _ int) error {
			switch starts.Add(1) {
			case 1:
				return errors.New("broken")
			case 2:
				panic("poison")
			}
			<-ctx.Done()
			return ctx.Err()
		}, zerolog.New(&log))
		stop := start(t, p.Run)
		began := time.Now()
		for starts.Load() < 3 {
			work.Pause(t.Context(), 100*time.Millisecond)
		}
		if took := time.Since(began); took < 2*time.Second || took > 3*time.Second {
			t.Errorf("replaced twice within %v, want a second's pause each", took)
		}
		stop()
		if got := log.String(); strings.Count(got, `"level":"error"`) != 2 || !strings.Contains(got, "poison") || !strings.Contains(got, "broken") {
			t.Errorf("log: %s", got)
		}
	})
}

func TestNumbersAreUniqueAmongPools(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		numbers := new(work.Numbers)
		idle := func(ctx context.Context, _ int) error { <-ctx.Done(); return nil }
		a, b := work.NewPool("a", 3, idle, zerolog.Nop()), work.NewPool("b", 3, idle, zerolog.Nop())
		a.Numbers, b.Numbers = numbers, numbers
		defer start(t, a.Run)()
		defer start(t, b.Run)()
		synctest.Wait()
		all := slices.Concat(a.IDs(), b.IDs())
		slices.Sort(all)
		if !slices.Equal(all, []int{1, 2, 3, 4, 5, 6}) {
			t.Errorf("ids %v", all)
		}
	})
}

func TestPoolWake(t *testing.T) {
	t.Parallel()
	p := work.NewPool("a", 0, nil, zerolog.Nop())
	before := p.Woken()
	p.Wake()
	select {
	case <-before:
	default:
		t.Error("Wake did not close the channel")
	}
	select {
	case <-p.Woken():
		t.Error("an old Wake is seen twice")
	default:
	}
}

func TestFIDLocksExclude(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	store := worktest.NewStore()
	one, other := work.NewFIDLocks(store), work.NewFIDLocks(store) // two trackers
	a, err := one.TryLock(ctx, 1, 2, 2)
	if err != nil || !a.Has(1) || !a.Has(2) || a.Has(3) {
		t.Fatalf("%+v, %v", a, err)
	}
	for name, l := range map[string]*work.FIDLocks{"this tracker": one, "another tracker": other} {
		b, err := l.TryLock(ctx, 2, 3)
		if err != nil || b.Has(2) || !b.Has(3) {
			t.Errorf("%s: %+v, %v", name, b, err)
			continue
		}
		if err := b.Release(ctx); err != nil {
			t.Error(err)
		}
	}
	cancelled, cancel := context.WithCancel(ctx)
	cancel()
	if err := a.Release(cancelled); err != nil {
		t.Errorf("release during a shutdown: %v", err)
	}
	if n := store.Locked(); n != 0 {
		t.Errorf("%d locks left", n)
	}
	b, err := other.TryLock(ctx, 1, 2)
	if err != nil || !b.Has(1) || !b.Has(2) {
		t.Fatalf("after release: %+v, %v", b, err)
	}
	if err := b.Release(ctx); err != nil {
		t.Error(err)
	}
}

func TestFIDLocksWithoutDatabase(t *testing.T) {
	t.Parallel()
	store := worktest.NewStore()
	var away atomic.Bool
	store.Before = func(string) error {
		if away.Load() {
			return schema.ErrUnavailable
		}
		return nil
	}
	locks := work.NewFIDLocks(store)
	away.Store(true)
	if _, err := locks.TryLock(t.Context(), 1); !errors.Is(err, schema.ErrUnavailable) {
		t.Fatalf("error %v", err)
	}
	away.Store(false)
	h, err := locks.TryLock(t.Context(), 1)
	if err != nil || !h.Has(1) {
		t.Fatalf("a failed attempt keeps the fid: %+v, %v", h, err)
	}
	// What could not be given back is given back later.
	away.Store(true)
	if err := h.Release(t.Context()); !errors.Is(err, schema.ErrUnavailable) {
		t.Fatalf("error %v", err)
	}
	away.Store(false)
	if h, err = locks.TryLock(t.Context(), 1); err != nil || !h.Has(1) {
		t.Fatalf("a failed release keeps the fid: %+v, %v", h, err)
	}
	if err := h.Release(t.Context()); err != nil || store.Locked() != 0 {
		t.Errorf("%d locks left, %v", store.Locked(), err)
	}
}

func TestLostSessionCancelsWork(t *testing.T) {
	t.Parallel()
	store := worktest.NewStore()
	locks := work.NewFIDLocks(store)
	h, err := locks.TryLock(t.Context(), 7)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := h.Context(t.Context())
	defer cancel()
	if ctx.Err() != nil {
		t.Fatal("cancelled before anything was lost")
	}
	store.LoseSession()
	<-ctx.Done()
	if cause := context.Cause(ctx); !errors.Is(cause, work.ErrLockLost) {
		t.Errorf("cause %v", cause)
	}
	// The name may be another tracker's by now: it must not be given up for it.
	before := store.Calls("Unlock")
	if err := h.Release(t.Context()); err != nil {
		t.Error(err)
	}
	if store.Calls("Unlock") != before {
		t.Error("a lost lock was given back")
	}
	again, err := locks.TryLock(t.Context(), 7)
	if err != nil || !again.Has(7) {
		t.Errorf("after the loss: %+v, %v", again, err)
	}
	if err := again.Release(t.Context()); err != nil {
		t.Error(err)
	}
}

func feed(store *worktest.Store, change func(*work.FeedOptions)) *work.Feed {
	o := work.FeedOptions{Store: store, Queue: schema.QueueReplicate, Rand: rand.New(rand.NewPCG(1, 2)), Log: zerolog.Nop()}
	if change != nil {
		change(&o)
	}
	return work.NewFeed(o)
}

func replication(fid protocol.FID) worktest.Key {
	return worktest.Key{Queue: schema.QueueReplicate, FID: fid}
}

func queue(store *worktest.Store, n int) {
	for fid := range n {
		store.SetRow(replication(protocol.FID(fid+1)), worktest.Row{})
	}
}

func TestFeedHandsOutEachRowOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := worktest.NewStore()
		queue(store, 300)
		a, b := feed(store, nil), feed(store, nil) // two trackers
		seen := make(map[protocol.FID]int)
		for {
			leases := append(a.Take(t.Context(), 7), b.Take(t.Context(), 3)...)
			if len(leases) == 0 {
				break
			}
			for _, l := range leases {
				seen[l.Job().FID]++
				if n, err := store.Finish(t.Context(), []schema.Job{l.End()}); n != 1 || err != nil {
					t.Fatalf("finish: %d, %v", n, err)
				}
			}
		}
		if len(seen) != 300 || store.Rows(schema.QueueReplicate) != 0 {
			t.Errorf("%d fids, %d rows left", len(seen), store.Rows(schema.QueueReplicate))
		}
		for fid, n := range seen {
			if n != 1 {
				t.Errorf("fid %d handed out %d times", fid, n)
			}
		}
		if n := store.Calls("Claim"); n > 20 {
			t.Errorf("%d claims for 300 rows", n)
		}
		_, sentA := a.Stats()
		_, sentB := b.Stats()
		if sentA+sentB != 300 {
			t.Errorf("sent %d and %d", sentA, sentB)
		}
	})
}

func TestFeedIdles(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := worktest.NewStore()
		p := work.NewPool("replicate", 0, nil, zerolog.Nop())
		f := feed(store, func(o *work.FeedOptions) { o.Pool = p })
		began := time.Now()
		for time.Since(began) < time.Minute {
			if len(f.Take(t.Context(), 1)) > 0 {
				t.Fatal("work out of nothing")
			}
			if len(f.Take(t.Context(), 1)) > 0 { // asking again costs nothing
				t.Fatal("work out of nothing")
			}
			work.Wait(t.Context(), f)
		}
		if n := store.Calls("Claim"); n < 50 || n > 75 {
			t.Errorf("%d claims in an idle minute, want about 60", n)
		}
		// Woken, it looks at once.
		f.Take(t.Context(), 1)
		go func() {
			work.Pause(t.Context(), 10*time.Millisecond)
			queue(store, 1)
			p.Wake()
		}()
		began = time.Now()
		work.Wait(t.Context(), f)
		leases := f.Take(t.Context(), 1)
		if took := time.Since(began); len(leases) != 1 || took > 100*time.Millisecond {
			t.Errorf("%d rows after %v", len(leases), took)
		}
		// The end of the context ends a wait.
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		f.Take(t.Context(), 1)
		began = time.Now()
		work.Wait(ctx, f, f)
		if took := time.Since(began); took != 0 {
			t.Errorf("waited for %v", took)
		}
	})
}

func TestFeedSurvivesTheDatabase(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := worktest.NewStore()
		var away atomic.Bool
		store.Before = func(string) error {
			if away.Load() {
				return fmt.Errorf("dial: %w", schema.ErrUnavailable)
			}
			return nil
		}
		var log bytes.Buffer
		outage := work.NewOutage(zerolog.New(&log))
		f := feed(store, func(o *work.FeedOptions) { o.Outage = outage })
		other := feed(store, func(o *work.FeedOptions) { o.Outage, o.Queue = outage, schema.QueueDelete })
		away.Store(true)
		tries := 0
		for began := time.Now(); time.Since(began) < 5*time.Minute; tries++ {
			f.Take(t.Context(), 1)
			other.Take(t.Context(), 1)
			work.Wait(t.Context(), f, other)
		}
		if tries < 30 || tries > 120 {
			t.Errorf("%d tries in 5 minutes", tries)
		}
		away.Store(false)
		queue(store, 1)
		for len(f.Take(t.Context(), 1)) == 0 {
			work.Wait(t.Context(), f)
		}
		other.Take(t.Context(), 1)
		if lines := strings.Count(log.String(), "\n"); lines != 2 || !strings.Contains(log.String(), "away") || !strings.Contains(log.String(), "back") {
			t.Errorf("log: %s", log.String())
		}
	})
}

func TestFeedRenews(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := worktest.NewStore()
		queue(store, 3)
		f, other := feed(store, nil), feed(store, nil)
		stop := start(t, f.Run)
		leases := f.Take(t.Context(), 2)
		if len(leases) != 2 {
			t.Fatalf("%d leases", len(leases))
		}
		first := leases[0].Job()
		for began := time.Now(); time.Since(began) < 20*time.Minute; {
			for _, l := range other.Take(t.Context(), 100) {
				if fid := l.Job().FID; fid != 3 { // which nobody took, so that its lease ends
					t.Fatalf("fid %d is worked on and was claimed again", fid)
				}
				l.End()
			}
			work.Wait(t.Context(), other)
		}
		// Queued again: the lease is lost, the row stays when the work is done.
		store.SetRow(replication(2), worktest.Row{})
		work.Pause(t.Context(), 2*time.Minute)
		job := leases[0].End()
		if job.NextTry <= first.NextTry {
			t.Errorf("token %d was not renewed", job.NextTry)
		}
		n, err := store.Finish(t.Context(), []schema.Job{job, leases[1].End()})
		if n != 1 || err != nil {
			t.Errorf("finished %d, %v", n, err)
		}
		if store.Row(replication(1)) != nil || store.Row(replication(2)) == nil {
			t.Error("the wrong row went")
		}
		stop()
	})
}

func TestFeedDoesNotFinishWithAnOldToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := worktest.NewStore()
		slow := make(chan struct{})
		store.Before = func(method string) error {
			if method == "Renew" {
				<-slow
			}
			return nil
		}
		queue(store, 1)
		f := feed(store, nil)
		stop := start(t, f.Run)
		l := f.Take(t.Context(), 1)[0]
		work.Pause(t.Context(), 61*time.Second) // in the middle of a renewal
		ended := make(chan schema.Job)
		go func() { ended <- l.End() }()
		synctest.Wait()
		select {
		case <-ended:
			t.Fatal("ended with a token that is about to change")
		default:
		}
		close(slow)
		if n, err := store.Finish(t.Context(), []schema.Job{<-ended}); n != 1 || err != nil {
			t.Errorf("finished %d, %v", n, err)
		}
		stop()
	})
}

func TestFeedGivesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := worktest.NewStore()
		queue(store, 10)
		f := feed(store, nil)
		stop := start(t, f.Run)
		l := f.Take(t.Context(), 1)[0]
		cancelled, cancel := context.WithCancel(t.Context())
		cancel()
		if err := l.GiveBack(cancelled, 0); err != nil {
			t.Fatal(err)
		}
		stop()
		for fid := range protocol.FID(10) {
			if r := store.Row(replication(fid + 1)); r == nil || r.NextTry > time.Now().Unix() || r.FailCount != 0 {
				t.Errorf("fid %d: %+v", fid+1, r)
			}
		}
	})
}

func TestFeedForgetsWhatNobodyTakes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := worktest.NewStore()
		queue(store, 10)
		f := feed(store, nil)
		stop := start(t, f.Run)
		if len(f.Take(t.Context(), 1)) != 1 {
			t.Fatal("nothing taken")
		}
		if queued, sent := f.Stats(); queued != 9 || sent != 1 {
			t.Errorf("queued %d, sent %d", queued, sent)
		}
		work.Pause(t.Context(), 121*time.Second) // no workers, such as after !want 0
		other := feed(store, nil)
		if n := len(other.Take(t.Context(), 10)); n != 9 {
			t.Errorf("another tracker found %d, want the 9 that were not taken", n)
		}
		if n := len(f.Take(t.Context(), 10)); n != 0 {
			t.Errorf("%d rows handed out whose lease is over", n)
		}
		stop()
	})
}

func TestBackoff(t *testing.T) {
	t.Parallel()
	rng := rand.New(rand.NewPCG(1, 1))
	for failcount, seconds := range map[int]int{-1: 15, 0: 15, 1: 60, 2: 300, 3: 1800, 4: 3600, 5: 7200, 6: 14400, 7: 28800, 8: 86400, 9: 86400, 100: 86400} {
		low, high := 24*time.Hour, time.Duration(0)
		for range 1000 {
			d := work.Backoff(failcount, rng)
			if d%time.Second != 0 {
				t.Fatalf("%v is not whole seconds", d)
			}
			low, high = min(low, d), max(high, d)
		}
		base := time.Duration(seconds) * time.Second
		if low < base*8/10 || low > base*82/100 || high > base*12/10 || high < base*11/10 {
			t.Errorf("failcount %d: %v to %v, want 0.8 to 1.2 times %v", failcount, low, high, base)
		}
	}
}

func TestDelays(t *testing.T) {
	t.Parallel()
	rng := rand.New(rand.NewPCG(1, 1))
	type delays struct{ NotWriteable, Forbidden, Undeleted int }
	for failcount, want := range map[int]delays{
		0: {600, 3600, 1800}, 1: {660, 7200, 3600}, 5: {900, 21600, 10800}, -1: {600, 3600, 1800},
	} {
		got := delays{
			int(work.NotWriteableDelay(failcount) / time.Second),
			int(work.ForbiddenDelay(failcount) / time.Second),
			int(work.UndeletedDelay(failcount) / time.Second),
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("failcount %d: %s", failcount, diff)
		}
	}
	for failcount, base := range map[int]time.Duration{0: 5 * time.Second, 1: 10 * time.Second, 4: 80 * time.Second, 7: 600 * time.Second, 1 << 40: 600 * time.Second} {
		if d := work.CopyDelay(failcount, rng); d < base*8/10 || d > base*12/10 {
			t.Errorf("copy, failcount %d: %v", failcount, d)
		}
	}
	if work.Failed(0) != 1 || work.Failed(-5) != 1 || work.Failed(1<<40) != 100 {
		t.Error("failures are not counted up to 100")
	}
}

func TestLimiter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := work.NewLimiter(2)
		var releases []func()
		for range 2 {
			r, err := l.Acquire(t.Context(), 1)
			if err != nil {
				t.Fatal(err)
			}
			releases = append(releases, r)
		}
		other, err := l.Acquire(t.Context(), 2) // another device is not held up
		if err != nil {
			t.Fatal(err)
		}
		other()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := l.Acquire(ctx, 1); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a third use: %v", err)
		}
		releases[0]()
		third, err := l.Acquire(t.Context(), 1)
		if err != nil {
			t.Fatal(err)
		}
		third()
		releases[1]()
	})
}

// hungLeaser is a database that hangs once it has given out rows.
type hungLeaser struct{ *worktest.Store }

func (hungLeaser) Reschedule(ctx context.Context, _ schema.Job, _ time.Duration, _ int) (bool, error) {
	<-ctx.Done()
	return false, ctx.Err()
}

// TestFeedEndsWhileTheDatabaseHangs stops a tracker that cannot give back the
// many rows it has claimed: they come due by themselves, and nobody waits.
func TestFeedEndsWhileTheDatabaseHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := worktest.NewStore()
		for fid := protocol.FID(1); fid <= 500; fid++ {
			store.SetRow(worktest.Key{Queue: schema.QueueReplicate, FID: fid}, worktest.Row{})
		}
		feed := work.NewFeed(work.FeedOptions{Store: hungLeaser{store}, Queue: schema.QueueReplicate, Batch: 500, Log: zerolog.Nop()})
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- feed.Run(ctx) }()
		waiting := 0
		for i := 0; i < 500 && waiting < 50; i++ { // claims grow as rows are used up
			for _, l := range feed.Take(ctx, 1) {
				l.End()
			}
			waiting, _ = feed.Stats()
		}
		if waiting < 50 {
			t.Errorf("only %d rows are claimed and wait", waiting)
		}
		cancel()
		began := time.Now()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		if took := time.Since(began); took > 6*time.Second {
			t.Errorf("it took %s", took)
		}
	})
}
