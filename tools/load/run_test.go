package load

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

// TestRun: what is counted, and from when latency counts.
func TestRun(t *testing.T) {
	broken := errors.New("broken")
	sleeping := func(d time.Duration) Op {
		return func(int64) (Work, error) {
			time.Sleep(d)
			return Work{Bytes: 10, Items: 2}, nil
		}
	}
	for _, c := range []struct {
		name     string
		o        Options
		clients  []Op
		ops      int64
		errs     int64
		took     time.Duration
		p50, max time.Duration
	}{
		{name: "a number", o: Options{Count: 10}, clients: []Op{sleeping(time.Second), sleeping(time.Second)},
			ops: 10, took: 5 * time.Second, p50: time.Second, max: time.Second},
		{name: "a time", o: Options{Duration: 10 * time.Second}, clients: []Op{sleeping(time.Second)},
			ops: 10, took: 10 * time.Second, p50: time.Second, max: time.Second},
		{name: "warm-up is not measured", o: Options{Duration: 10 * time.Second, Warmup: 5 * time.Second}, clients: []Op{sleeping(time.Second)},
			ops: 10, took: 10 * time.Second, p50: time.Second, max: time.Second},
		{name: "a rate", o: Options{Duration: 10 * time.Second, Rate: 2}, clients: []Op{sleeping(100 * time.Millisecond)},
			ops: 20, took: 9600 * time.Millisecond, p50: 100 * time.Millisecond, max: 100 * time.Millisecond},
		{name: "what waits behind a slow one is seen to wait", o: Options{Count: 10, Rate: 10}, clients: []Op{func(n int64) (Work, error) {
			if n == 1 {
				time.Sleep(time.Second)
			}
			return Work{}, nil
		}}, ops: 10, took: time.Second, p50: 500 * time.Millisecond, max: time.Second},
		{name: "not kept up with", o: Options{Duration: 10 * time.Second, Rate: 10}, clients: []Op{sleeping(time.Second)},
			ops: 15, took: 15 * time.Second, p50: 7300 * time.Millisecond, max: 13600 * time.Millisecond},
		{name: "failures", o: Options{Count: 4}, clients: []Op{func(n int64) (Work, error) {
			if n > 1 {
				return Work{}, broken
			}
			return Work{}, nil
		}}, ops: 1, errs: 3},
	} {
		synctest.Test(t, func(t *testing.T) {
			got, err := Run(t.Context(), c.o, c.clients)
			if err != nil {
				t.Fatalf("%s: %v", c.name, err)
			}
			if got.Ops != c.ops || got.Errors != c.errs || got.Took != c.took {
				t.Errorf("%s: %d done, %d failed in %v; want %d, %d, %v", c.name, got.Ops, got.Errors, got.Took, c.ops, c.errs, c.took)
			}
			near := func(got, want time.Duration) bool { return got >= want && got <= want+want/50 }
			if p50 := got.Latency.Quantile(0.5); !near(p50, c.p50) || !near(got.Latency.Max(), c.max) {
				t.Errorf("%s: median %v, longest %v; want %v, %v", c.name, p50, got.Latency.Max(), c.p50, c.max)
			}
			if c.errs > 0 && !errors.Is(got.First, broken) {
				t.Errorf("%s: the first failure is %v", c.name, got.First)
			}
		})
	}
}

// TestRunInterrupted: a run ends with its context, also between operations that
// are not due.
func TestRunInterrupted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		_, err := Run(ctx, Options{Count: 2, Rate: 0.001}, []Op{func(int64) (Work, error) { return Work{}, nil }})
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("ended with %v", err)
		}
	})
}
