package tracker

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/mogile/mogile/protocol"
)

// clearCache forgets all paths, reads the database and looks at every device
// anew, and echoes its arguments.
func (t *Tracker) clearCache(ctx context.Context, q *query) error {
	t.paths.clear()
	if err := t.lookAgain(ctx); err != nil {
		return err
	}
	q.reply = append(q.reply, q.Args...)
	// MogileFS's client takes digits at a reply's beginning for its length.
	slices.SortStableFunc(q.reply, func(a, b protocol.Arg) int { return cmp.Compare(leadingDigit(a), leadingDigit(b)) })
	return nil
}

// leadingDigit is 1 for a field whose name begins with a digit, else 0.
func leadingDigit(a protocol.Arg) int {
	if a.Name != "" && a.Name[0] >= '0' && a.Name[0] <= '9' {
		return 1
	}
	return 0
}

// doMonitorRound waits for the next round of the monitor.
func (t *Tracker) doMonitorRound(ctx context.Context, _ *query) error {
	return t.monitor.NextRound(ctx)
}

// replicateNow makes every fid that waits for its replication due.
func (t *Tracker) replicateNow(ctx context.Context, q *query) error {
	n, err := t.store.ReplicateNow(ctx)
	if err != nil {
		return fmt.Errorf("make replications due: %w", err)
	}
	t.replicate.Pool().Wake()
	q.reply.AddInt("count", n)
	return nil
}

// defaultSleep is how long sleep sleeps where it is not told.
const defaultSleep = 10 * time.Second

// sleep occupies a query worker, but never so long that its watchdog would
// mind.
func (t *Tracker) sleep(ctx context.Context, q *query) error {
	d := defaultSleep
	if q.True("duration") {
		longest := t.opts.QueryTimeout - t.opts.QueryTimeout/6
		d = time.Duration(min(max(q.Number("duration"), 0), int64(longest/time.Second))) * time.Second
	}
	if !wait(ctx, d) {
		return fmt.Errorf("sleep: %w", context.Cause(ctx))
	}
	return nil
}

// test answers OK, or failure where it is told to crash.
func (t *Tracker) test(_ context.Context, q *query) error {
	if q.True("crash") {
		return protocol.ErrFailure
	}
	return nil
}
