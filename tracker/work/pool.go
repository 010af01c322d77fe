package work

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"
)

// Numbers gives workers their numbers, which the console shows as pids: 1, 2,
// 3 ... unique among the pools that share it.
type Numbers struct{ last atomic.Int64 }

// Next is a number that was not given before.
func (n *Numbers) Next() int { return int(n.last.Add(1)) }

// Pool is a resizable set of workers of one job.
//
// A worker is a call of the function given to [NewPool]. Its context is
// cancelled when the worker should retire: because fewer are wanted, because
// of [Pool.Restart], or because the pool ends. It should then take no new work;
// what it has begun it should do under the context that [InProgress] gives,
// which lasts until the pool ends. A worker that returns (or panics) while it
// is wanted is reported in the log and replaced after a second.
type Pool struct {
	// Numbers may be set before Run to number the workers of several pools.
	Numbers *Numbers
	// Notify may be set before Run; it gets MogileFS's messages about workers
	// that start and die, from several goroutines, and must not block.
	Notify func(msg string)

	job string
	run func(ctx context.Context, id int) error
	log zerolog.Logger

	changed chan struct{} // capacity 1: something for Run to look at

	mu      sync.Mutex // guards what follows
	desired int
	workers map[int]*worker
	failed  bool          // a worker ended by itself since Run last looked
	woken   chan struct{} // closed by the next Wake
}

type worker struct {
	retire  context.CancelFunc
	retired bool
}

// respawnDelay is the pause before a worker that failed is replaced.
const respawnDelay = time.Second

// NewPool is a pool of desired workers of job; negative counts as 0. They
// start with [Pool.Run]. run is given the worker's number.
func NewPool(job string, desired int, run func(ctx context.Context, id int) error, log zerolog.Logger) *Pool {
	return &Pool{
		Numbers: new(Numbers),
		job:     job,
		run:     run,
		log:     log.With().Str("job", job).Logger(),
		changed: make(chan struct{}, 1),
		desired: max(0, desired),
		workers: make(map[int]*worker),
		woken:   make(chan struct{}),
	}
}

type inProgressKey struct{}

// InProgress is, for the context of a worker of a pool, the one under which
// work that has begun should be finished: it is not cancelled when the worker
// retires, only when the pool ends. Of other contexts it is the context itself.
func InProgress(ctx context.Context) context.Context {
	if hard, ok := ctx.Value(inProgressKey{}).(context.Context); ok {
		return hard
	}
	return ctx
}

// Job is the job's name.
func (p *Pool) Job() string { return p.job }

// Run keeps the desired number of workers until ctx is cancelled, waits for all
// of them and returns nil.
func (p *Pool) Run(ctx context.Context) error {
	var running sync.WaitGroup
	defer running.Wait()
	var hold <-chan time.Time // set while replacements must wait
	for {
		if hold == nil {
			p.spawn(ctx, &running)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-hold:
			hold = nil
		case <-p.changed:
			if p.takeFailed() && hold == nil {
				hold = time.After(respawnDelay)
			}
		}
	}
}

// spawn brings the number of workers to what is desired, as far as that can be
// done without waiting for those that are retiring.
func (p *Pool) spawn(ctx context.Context, running *sync.WaitGroup) {
	p.mu.Lock()
	has, wants := len(p.workers), p.desired
	p.mu.Unlock()
	if has < wants { // only this goroutine makes workers
		p.log.Debug().Int("has", has).Int("wants", wants).Int("making", wants-has).Msg("starting workers")
		p.notify("Job %s has only %d, wants %d, making %d.", p.job, has, wants, wants-has)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for ; has < wants; has++ {
		id := p.Numbers.Next()
		soft, retire := context.WithCancel(context.WithValue(ctx, inProgressKey{}, ctx))
		w := &worker{retire: retire}
		p.workers[id] = w
		running.Go(func() {
			defer retire()
			err := p.protect(soft, id)
			p.ended(id, soft.Err() != nil, err)
		})
	}
	staying := 0
	for _, id := range p.ids() {
		switch w := p.workers[id]; {
		case w.retired:
		case staying < p.desired:
			staying++
		default:
			w.retired = true
			w.retire()
		}
	}
}

// protect runs a worker and turns a panic into an error: one poisonous piece of
// work must not end the tracker.
func (p *Pool) protect(ctx context.Context, id int) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = fmt.Errorf("panic: %v\n%s", v, debug.Stack())
		}
	}()
	return p.run(ctx, id)
}

func (p *Pool) ended(id int, expected bool, err error) {
	expected = expected && (err == nil || errors.Is(err, context.Canceled))
	if expected {
		p.notify("Child %d (%s) died: 0 (expected)", id, p.job)
	} else {
		p.log.Error().Err(err).Int("worker", id).Msg("worker ended by itself, starting another")
		p.notify("Child %d (%s) died: 1 (UNEXPECTED)", id, p.job)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.workers, id)
	p.failed = p.failed || !expected
	p.poke()
}

func (p *Pool) takeFailed() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	f := p.failed
	p.failed = false
	return f
}

func (p *Pool) notify(format string, args ...any) {
	if p.Notify != nil {
		p.Notify(fmt.Sprintf(format, args...))
	}
}

// poke makes Run look again.
func (p *Pool) poke() {
	select {
	case p.changed <- struct{}{}:
	default:
	}
}

// Want sets the desired number of workers; negative counts as 0. Workers too
// many finish what they do and go; missing ones are started by [Pool.Run].
func (p *Pool) Want(n int) {
	p.mu.Lock()
	p.desired = max(0, n)
	p.mu.Unlock()
	p.poke()
}

// Desired is the number of workers that is wanted.
func (p *Pool) Desired() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.desired
}

// IDs are the numbers of the living workers, ascending.
func (p *Pool) IDs() []int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.ids()
}

func (p *Pool) ids() []int {
	ids := make([]int, 0, len(p.workers))
	for id := range p.workers {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}

// Restart lets every worker finish what it does and replaces it. It returns how
// many workers there are.
func (p *Pool) Restart() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, w := range p.workers {
		w.retired = true
		w.retire()
	}
	return len(p.workers)
}

// Wake tells workers that wait for something to do to look now.
func (p *Pool) Wake() {
	p.mu.Lock()
	defer p.mu.Unlock()
	close(p.woken)
	p.woken = make(chan struct{})
}

// Woken is a channel that is closed by the next [Pool.Wake].
func (p *Pool) Woken() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.woken
}
