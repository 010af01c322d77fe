package work_test

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rs/zerolog"

	"github.com/mogile/mogile/tracker/work"
)

// watched is a pool with a watchdog of 90 s, and what it tells.
type watched struct {
	*work.Pool
	log bytes.Buffer // read after synctest.Wait

	mu    sync.Mutex // guards notes
	notes []string
}

func newWatched(desired int, run func(ctx context.Context, id int) error) *watched {
	w := &watched{}
	w.Pool = work.NewPool("replicate", desired, run, zerolog.New(zerolog.SyncWriter(&w.log)))
	w.Watchdog = 90 * time.Second
	w.Notify = func(m string) {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.notes = append(w.notes, m)
	}
	return w
}

func (w *watched) told() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	notes := w.notes
	w.notes = nil
	return notes
}

func TestWatchdogLeavesThoseThatGetOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newWatched(1, func(ctx context.Context, _ int) error {
			for range 10 { // its work goes on in pieces
				work.Pause(ctx, 80*time.Second)
				work.Alive(work.InProgress(ctx))
			}
			work.Busy(ctx, time.Hour) // and then in one that is known to be long
			work.Pause(ctx, time.Hour+80*time.Second)
			work.Alive(ctx)
			<-ctx.Done()
			return nil
		})
		stop := start(t, p.Run)
		time.Sleep(800*time.Second + time.Hour + 80*time.Second)
		synctest.Wait()
		if got := p.IDs(); len(got) != 1 || got[0] != 1 {
			t.Errorf("workers are %v, want the first", got)
		}
		if diff := cmp.Diff([]string{"Job replicate has only 0, wants 1, making 1."}, p.told()); diff != "" {
			t.Errorf("told (-want +got):\n%s", diff)
		}
		stop()
	})
}

func TestWatchdogReplacesAWorkerThatDoesNotGetOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var cause error
		p := newWatched(1, func(ctx context.Context, id int) error {
			if id == 1 {
				hard := work.InProgress(ctx)
				<-hard.Done()
				cause = context.Cause(hard)
				return cause
			}
			for ctx.Err() == nil {
				work.Alive(ctx)
				work.Pause(ctx, time.Second)
			}
			return nil
		})
		stop := start(t, p.Run)
		time.Sleep(90 * time.Second)
		synctest.Wait()
		if got := p.IDs(); len(got) != 1 || got[0] != 1 {
			t.Errorf("after 90 s workers are %v, want the first", got)
		}
		time.Sleep(5 * time.Second)
		synctest.Wait()
		if got := p.IDs(); len(got) != 1 || got[0] != 2 {
			t.Errorf("then workers are %v, want another", got)
		}
		if !errors.Is(cause, work.ErrWatchdog) {
			t.Errorf("its work was cancelled because of %v", cause)
		}
		want := []string{
			"Job replicate has only 0, wants 1, making 1.",
			"Watchdog killing worker 1 (replicate)",
			"Child 1 (replicate) died: 9 (UNEXPECTED)",
			"Job replicate has only 0, wants 1, making 1.",
		}
		if diff := cmp.Diff(want, p.told()); diff != "" {
			t.Errorf("told (-want +got):\n%s", diff)
		}
		if n := p.Abandoned(); n != 0 {
			t.Errorf("%d are given up", n)
		}
		stop()
	})
}

// TestWorkersThatNeverReturnAreReplacedUpToABound has workers that nothing
// ends.
func TestWorkersThatNeverReturnAreReplacedUpToABound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		free := make(chan struct{})
		p := newWatched(2, func(context.Context, int) error { <-free; return nil })
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- p.Run(ctx) }()
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		if got := p.IDs(); p.Abandoned() != 2 || len(got) != 2 || got[0] != 3 {
			t.Errorf("after the first time workers are %v, %d given up", got, p.Abandoned())
		}
		if notes := strings.Join(p.told(), "\n"); !strings.Contains(notes, "Child 2 (replicate) died: 9 (UNEXPECTED)") {
			t.Errorf("told:\n%s", notes)
		}
		time.Sleep(24 * time.Hour)
		synctest.Wait()
		if got := p.IDs(); p.Abandoned() != work.MaxAbandoned || len(got) != 2 || got[1] != work.MaxAbandoned+2 {
			t.Errorf("a day later workers are %v, %d given up", got, p.Abandoned())
		}
		if !strings.Contains(p.log.String(), "replaced no more") {
			t.Error("the log does not say that there is an end to it")
		}
		cancel()
		if err := <-done; err == nil || !strings.Contains(err.Error(), "stop replicate workers: 18 that hang were left behind") {
			t.Errorf("Run returns %v", err)
		}
		close(free)
		synctest.Wait()
		if p.Abandoned() != 0 || len(p.IDs()) != 0 {
			t.Errorf("when all have returned there are %v, %d given up", p.IDs(), p.Abandoned())
		}
	})
}
