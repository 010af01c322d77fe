package load

import (
	"context"
	"sync"
	"sync/atomic"
	"time"
)

// Work is what an operation did.
type Work struct {
	Bytes int64 // of content
	Items int64 // where one operation deals with many, such as keys of a page
}

// Op does the n-th operation, counted from 1 over all clients.
type Op func(n int64) (Work, error)

// Options say how long and how fast to go on.
type Options struct {
	// Count is how many operations; 0: until Duration is over.
	Count    int64
	Duration time.Duration
	// Warmup is a time before that, in which operations are not measured.
	Warmup time.Duration
	// Rate is how many operations a second are due, whether or not those before
	// are done; 0: each client sends as soon as it is answered.
	//
	// With a rate, latency counts from when an operation was due, so that what
	// waits behind a slow one is seen to wait.
	Rate float64
	// Pids are the processes whose processor time is measured.
	Pids []int
}

// Outcome is what was measured.
type Outcome struct {
	Ops, Errors int64
	Work        Work
	Took        time.Duration
	Latency     Histogram
	CPU         []time.Duration // of each of Pids
	First       error           // of those counted in Errors
}

// tally is what one client has seen.
type tally struct {
	ops, errors int64
	work        Work
	latency     Histogram
	first       error
}

// schedule hands out operations.
type schedule struct {
	o        Options
	begun    time.Time
	measured time.Time // when the warm-up ends
	end      time.Time // zero where Count ends it
	next     atomic.Int64
}

// due is the number of the next operation and when it is to begin, now being
// the time; more is false where there is none.
func (s *schedule) due(now time.Time) (n int64, at time.Time, more bool) {
	n, at = s.next.Add(1), now
	if s.o.Rate > 0 {
		at = s.begun.Add(time.Duration(float64(n-1) / s.o.Rate * float64(time.Second)))
	}
	if s.o.Count > 0 {
		return n, at, n <= s.o.Count
	}
	return n, at, at.Before(s.end) && now.Before(s.end.Add(overrun))
}

// overrun is how long after the end operations are still begun that were due
// before, where the cluster does not keep up with the rate.
const overrun = 5 * time.Second

// Run has every client do operations until they are over, or ctx is. Operations
// that fail are counted; they do not end the run.
func Run(ctx context.Context, o Options, clients []Op) (Outcome, error) {
	s := &schedule{o: o, begun: time.Now()}
	if o.Count > 0 {
		s.o.Warmup = 0
	}
	s.measured = s.begun.Add(s.o.Warmup)
	s.end = s.measured.Add(o.Duration)
	tallies := make([]tally, len(clients))
	var wg sync.WaitGroup
	for i, op := range clients {
		wg.Go(func() { tallies[i].run(ctx, s, op) })
	}
	before, err := cpuAt(ctx, s.measured, o.Pids)
	wg.Wait()
	out := Outcome{Took: time.Since(s.measured)}
	if err == nil {
		err = ctx.Err()
	}
	after, errAfter := CPU(o.Pids)
	if err == nil {
		err = errAfter
	}
	if err != nil {
		return out, err
	}
	for i := range after {
		out.CPU = append(out.CPU, after[i]-before[i])
	}
	for i := range tallies {
		t := &tallies[i]
		out.Ops += t.ops
		out.Errors += t.errors
		out.Work.Bytes += t.work.Bytes
		out.Work.Items += t.work.Items
		out.Latency.Merge(&t.latency)
		if out.First == nil {
			out.First = t.first
		}
	}
	return out, nil
}

// cpuAt is the processor time used by a moment to come.
func cpuAt(ctx context.Context, at time.Time, pids []int) ([]time.Duration, error) {
	if !Sleep(ctx, time.Until(at)) {
		return nil, ctx.Err()
	}
	return CPU(pids)
}

func (t *tally) run(ctx context.Context, s *schedule, op Op) {
	for ctx.Err() == nil {
		now := time.Now()
		n, at, more := s.due(now)
		if !more || !Sleep(ctx, at.Sub(now)) {
			return
		}
		work, err := op(n)
		if at.Before(s.measured) {
			continue
		}
		if err != nil {
			t.errors++
			if t.first == nil {
				t.first = err
			}
			continue
		}
		t.latency.Add(time.Since(at))
		t.ops++
		t.work.Bytes += work.Bytes
		t.work.Items += work.Items
	}
}

// Sleep waits; it is false where ctx ended first.
func Sleep(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return true
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
