package tracker

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/mogile/mogile/schema"
	"github.com/mogile/mogile/tracker/work"
)

// Jobs are named as in MogileFS 2.73, for the scripts that read "!jobs".
const (
	jobQuery     = "queryworker"
	jobDelete    = "delete"
	jobReplicate = "replicate"
	jobMonitor   = "monitor"
	jobMaster    = "job_master"
	jobFsck      = "fsck"
	jobReaper    = "reaper"
)

// job is a kind of worker as the console steers it.
type job interface {
	IDs() []int // numbers of the workers, ascending
	Desired() int
	Want(n int)
	Restart() int // replaces the workers; returns how many there are
	Wake()
	Abandoned() int // workers given up that have not returned
	Had() bool      // it has, or had, a worker
}

var (
	_ job = (*work.Pool)(nil)
	_ job = (*queryWorkers)(nil)
	_ job = single{}
	_ job = (*gated)(nil)
)

// single is a job of at most one worker: to want more changes nothing.
type single struct{ *work.Pool }

func (s single) Want(n int) {
	if n <= 1 {
		s.Pool.Want(n)
	}
}

// gated is a job whose workers there are only while there is a job master.
type gated struct {
	*work.Pool

	mu      sync.Mutex // guards what follows, and orders calls of Pool.Want
	desired int
	open    bool
}

// newGated gates pool, which is shut until the job master opens it.
func newGated(pool *work.Pool) *gated {
	g := &gated{Pool: pool, desired: pool.Desired()}
	pool.Want(0)
	return g
}

func (g *gated) Desired() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.desired
}

func (g *gated) Want(n int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.desired = n
	g.apply()
}

func (g *gated) set(open bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.open = open
	g.apply()
}

func (g *gated) apply() {
	if g.open {
		g.Pool.Want(g.desired)
	} else {
		g.Pool.Want(0)
	}
}

// master is the worker whose presence the gated jobs need. Workers claim work
// by themselves; that it can be sent away, and they with it, is what operators
// know it for.
func master(jobs ...*gated) func(context.Context, int) error {
	return func(ctx context.Context, _ int) error {
		for _, j := range jobs {
			j.set(true)
		}
		<-ctx.Done()
		for _, j := range jobs {
			j.set(false)
		}
		return nil
	}
}

// jobNames are the names of all jobs, sorted.
func (t *Tracker) jobNames() []string { return slices.Sorted(maps.Keys(t.jobs)) }

// queueLengths counts the rows of the database's queues for whoever asks, and
// spares the database: a count that took long is used for longer.
type queueLengths struct {
	rows func(ctx context.Context) (map[schema.Queue]int64, error)
	now  func() time.Time

	mu    sync.Mutex // guards what follows, and is held while counting
	last  map[schema.Queue]int64
	until time.Time
	used  map[schema.Queue]bool // queues that have had rows
}

const (
	countTimeout = 2 * time.Second
	// countShare is the part of the time that is spent with counting, at most:
	// one in so many.
	countShare = 20
)

// count is the length of each queue that has ever had a row.
func (l *queueLengths) count(ctx context.Context) (map[schema.Queue]int64, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	begun := l.now()
	if begun.Before(l.until) {
		return l.last, nil
	}
	ctx, cancel := context.WithTimeout(ctx, countTimeout)
	defer cancel()
	lengths, err := l.rows(ctx)
	if err != nil {
		return nil, err
	}
	maps.DeleteFunc(lengths, func(q schema.Queue, n int64) bool {
		l.used[q] = l.used[q] || n > 0
		return !l.used[q]
	})
	done := l.now()
	l.last, l.until = lengths, done.Add(countShare*done.Sub(begun))
	return lengths, nil
}
