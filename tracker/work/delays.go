package work

import (
	"context"
	"math/rand/v2"
	"time"
)

// The times below are MogileFS 2.73's.

// replicationBackoff is in seconds, by the number of failures so far.
var replicationBackoff = [...]float64{15, 60, 300, 1800, 3600, 7200, 14400, 28800, 86400}

// Backoff is when a replication that failed is tried again, failcount failures
// before this one not counted: 15 s at first and a day from the ninth on, times
// a random factor from 0.8 to 1.2, in whole seconds.
func Backoff(failcount int, rng *rand.Rand) time.Duration {
	s := replicationBackoff[min(max(0, failcount), len(replicationBackoff)-1)]
	return time.Duration(s*(0.8+0.4*rng.Float64())) * time.Second
}

// maxFailCount bounds what is stored of failures: the column is a SMALLINT, and
// delays that grow with it must come to an end.
const maxFailCount = 100

// Failed is failcount after one more failure.
func Failed(failcount int) int { return min(max(0, failcount)+1, maxFailCount) }

// LockedDelay is when work on a fid that somebody else works on is tried again.
const LockedDelay = time.Second

// NotWriteableDelay is when the deletion of a copy from a device that was not
// observed writeable is tried again.
func NotWriteableDelay(failcount int) time.Duration {
	return 60 * time.Second * time.Duration(10+max(0, failcount))
}

// ForbiddenDelay is when the deletion of a copy from a device whose state, or
// whose host's, forbids it is tried again.
func ForbiddenDelay(failcount int) time.Duration {
	return 3600 * time.Second * time.Duration(1+max(0, failcount))
}

// UndeletedDelay is when the deletion of a copy that the storage daemon did not
// carry out is tried again.
func UndeletedDelay(failcount int) time.Duration {
	return 1800 * time.Second * time.Duration(1+max(0, failcount))
}

// longestCopyDelay bounds [CopyDelay].
const longestCopyDelay = 600 * time.Second

// CopyDelay is when the deletion of a single copy is tried again: 5 s at first,
// doubling up to 10 minutes, times a random factor from 0.8 to 1.2. MogileFS has
// no such queue. The times are shorter than those for whole files because the
// device takes no new copy of the fid until the old one is gone.
func CopyDelay(failcount int, rng *rand.Rand) time.Duration {
	d := min(5*time.Second<<min(max(0, failcount), 10), longestCopyDelay)
	return time.Duration(float64(d) * (0.8 + 0.4*rng.Float64()))
}

// Pause waits for d or the end of ctx.
func Pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}
