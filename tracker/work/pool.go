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
//
// With a watchdog, a worker that has not called [Alive] for too long has both
// contexts cancelled and is replaced. No goroutine can be ended from outside:
// one that does not return within a grace either is given up, which means that
// it is replaced all the same, and counted by [Pool.Abandoned] until it returns.
// A pool gives up at most [MaxAbandoned]; what hangs after that keeps its place.
type Pool struct {
	// Numbers may be set before Run to number the workers of several pools.
	Numbers *Numbers
	// Notify may be set before Run; it gets MogileFS's messages about workers
	// that start and die, from several goroutines, and must not block.
	Notify func(msg string)
	// Watchdog may be set before Run: how long a worker may go without a sign
	// of life. 0: for ever, which is for those that only wait.
	Watchdog time.Duration

	job string
	run func(ctx context.Context, id int) error
	log zerolog.Logger

	changed chan struct{} // capacity 1: something for Run to look at

	mu        sync.Mutex // guards what follows
	desired   int
	workers   map[int]*worker
	had       bool          // there has been a worker
	failed    bool          // a worker ended by itself since Run last looked
	woken     chan struct{} // closed by the next Wake
	abandoned int

	toldFull time.Time // owned by Run: when the log last told of too many abandoned
}

type worker struct {
	retire  context.CancelFunc // its taking of new work
	retired bool
	kill    context.CancelCauseFunc // all that it does
	killed  time.Time               // zero: not
	gone    bool                    // given up
	vital   vital
}

const (
	// respawnDelay is the pause before a worker that failed is replaced.
	respawnDelay = time.Second
	// watchInterval is how often the watchdog looks (MogileFS 2.73: at most once
	// a second).
	watchInterval = time.Second
	// killGrace is how long a worker may take to return when everything that it
	// does is cancelled.
	killGrace = 15 * time.Second
	// MaxAbandoned is how many of its workers a pool gives up at a time.
	MaxAbandoned = 16
)

// Fields of the log by which watchers are told which worker speaks.
const (
	JobField    = "job"
	WorkerField = "worker"
)

// ErrWatchdog is the cause of the cancellation of a worker that gave no sign of
// life.
var ErrWatchdog = errors.New("worker gave no sign of life")

// vital is when a worker must have given its next sign of life.
type vital struct {
	id       int        // the worker's number
	mu       sync.Mutex // guards due
	watchdog time.Duration
	due      time.Time
}

func (v *vital) alive(more time.Duration) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if due := time.Now().Add(v.watchdog + more); due.After(v.due) {
		v.due = due
	}
}

func (v *vital) overdue(now time.Time) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.watchdog > 0 && now.After(v.due)
}

type vitalKey struct{}

// Alive is the sign of life of the worker to whose context ctx belongs. It may
// be called from all that works for the worker, and does nothing elsewhere.
func Alive(ctx context.Context) { Busy(ctx, 0) }

// Busy is a sign of life before something that gives none for d: the worker has
// that much more time until the next.
func Busy(ctx context.Context, d time.Duration) {
	if v, ok := ctx.Value(vitalKey{}).(*vital); ok {
		v.alive(d)
	}
}

// NewPool is a pool of desired workers of job; negative counts as 0. They
// start with [Pool.Run]. run is given the worker's number.
func NewPool(job string, desired int, run func(ctx context.Context, id int) error, log zerolog.Logger) *Pool {
	return &Pool{
		Numbers: new(Numbers),
		job:     job,
		run:     run,
		log:     log.With().Str(JobField, job).Logger(),
		changed: make(chan struct{}, 1),
		desired: max(0, desired),
		workers: make(map[int]*worker),
		woken:   make(chan struct{}),
	}
}

// WorkerID is the number of the worker to whose context ctx belongs, 0
// elsewhere.
func WorkerID(ctx context.Context) int {
	if v, ok := ctx.Value(vitalKey{}).(*vital); ok {
		return v.id
	}
	return 0
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

// Log is the pool's log for what its worker id has to say.
func (p *Pool) Log(id int) zerolog.Logger { return p.log.With().Int(WorkerField, id).Logger() }

// Run keeps the desired number of workers until ctx is cancelled, waits for
// them and returns nil. With a watchdog it waits no longer than a cancelled
// worker's grace, and returns an error if some are left behind.
func (p *Pool) Run(ctx context.Context) error {
	var hold <-chan time.Time // set while replacements must wait
	var watch <-chan time.Time
	if p.Watchdog > 0 {
		tick := time.NewTicker(watchInterval)
		defer tick.Stop()
		watch = tick.C
	}
	for {
		if hold == nil {
			p.spawn(ctx)
		}
		select {
		case <-ctx.Done():
			return p.wait()
		case <-hold:
			hold = nil
		case <-watch:
			p.watch(time.Now())
		case <-p.changed:
			if p.takeFailed() && hold == nil {
				hold = time.After(respawnDelay)
			}
		}
	}
}

// wait waits for the workers that were not given up.
func (p *Pool) wait() error {
	var late <-chan time.Time
	if p.Watchdog > 0 {
		late = time.After(killGrace)
	}
	for {
		p.mu.Lock()
		left, abandoned := len(p.workers), p.abandoned
		p.mu.Unlock()
		if left == 0 {
			if abandoned > 0 {
				return fmt.Errorf("stop %s workers: %d that hang were left behind", p.job, abandoned)
			}
			return nil
		}
		select {
		case <-p.changed:
		case <-late:
			return fmt.Errorf("stop %s workers: %d that hang were left behind", p.job, left+abandoned)
		}
	}
}

// spawn brings the number of workers to what is desired, as far as that can be
// done without waiting for those that are retiring.
func (p *Pool) spawn(ctx context.Context) {
	p.mu.Lock()
	has, wants := len(p.workers), p.desired
	p.mu.Unlock()
	if has < wants { // only this goroutine makes workers
		p.log.Debug().Int("has", has).Int("wants", wants).Int("making", wants-has).Msg("starting workers")
		p.notify("Job %s has only %d, wants %d, making %d.", p.job, has, wants, wants-has)
	}
	p.mu.Lock()
	for ; has < wants; has++ {
		p.start(ctx)
	}
	staying := 0
	var retiring []int
	for _, id := range p.ids() {
		switch w := p.workers[id]; {
		case w.retired:
		case staying < p.desired:
			staying++
		default:
			w.retired = true
			w.retire()
			retiring = append(retiring, id)
		}
	}
	p.mu.Unlock()
	for _, id := range retiring {
		p.log.Debug().Int(WorkerField, id).Msg("worker retires")
		p.notify("Reducing %s headcount by 1.", p.job)
	}
}

// start makes one worker. The caller holds p.mu.
func (p *Pool) start(ctx context.Context) {
	id := p.Numbers.Next()
	w := &worker{vital: vital{id: id, watchdog: p.Watchdog}}
	w.vital.alive(0)
	hard, kill := context.WithCancelCause(context.WithValue(ctx, vitalKey{}, &w.vital))
	soft, retire := context.WithCancel(context.WithValue(hard, inProgressKey{}, hard))
	w.kill, w.retire = kill, retire
	p.workers[id], p.had = w, true
	go func() {
		err := p.protect(soft, id)
		expected := soft.Err() != nil
		retire()
		kill(nil)
		p.ended(id, w, expected, err)
	}()
}

// watch cancels the workers that give no sign of life, and gives up those that
// do not end when they are cancelled.
func (p *Pool) watch(now time.Time) {
	p.mu.Lock()
	var kill, giveUp []int
	full := false
	for _, id := range p.ids() {
		switch w := p.workers[id]; {
		case w.killed.IsZero() && w.vital.overdue(now):
			w.killed = now
			// Before it can be heard to have ended.
			p.notify("Watchdog killing worker %d (%s)", id, p.job)
			w.kill(ErrWatchdog)
			kill = append(kill, id)
		case w.killed.IsZero() || w.gone || now.Sub(w.killed) < killGrace:
		case p.abandoned >= MaxAbandoned:
			full = true
		default:
			w.gone = true
			p.abandoned++
			delete(p.workers, id)
			p.failed = true
			p.poke()
			giveUp = append(giveUp, id)
		}
	}
	p.mu.Unlock()
	for _, id := range kill {
		p.log.Error().Int(WorkerField, id).Dur("silent", p.Watchdog).Msg("worker does not get on, it is cancelled")
	}
	for _, id := range giveUp {
		p.log.Error().Int(WorkerField, id).Msg("worker hangs, another takes its place")
		p.notify("Child %d (%s) died: 9 (UNEXPECTED)", id, p.job)
	}
	if full && now.Sub(p.toldFull) >= time.Minute {
		p.toldFull = now
		p.log.Error().Int("abandoned", MaxAbandoned).Msg("workers hang and are replaced no more, restart this tracker")
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

func (p *Pool) ended(id int, w *worker, expected bool, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	defer p.poke()
	if w.gone {
		p.abandoned--
		p.log.Info().Int(WorkerField, id).Msg("a worker that was given up has returned after all")
		return
	}
	status := 0
	switch {
	case !w.killed.IsZero():
		expected, status = false, 9 // as if by SIGKILL
	case expected && (err == nil || errors.Is(err, context.Canceled)):
	default:
		expected, status = false, 1
		p.log.Error().Err(err).Int(WorkerField, id).Msg("worker ended by itself, starting another")
	}
	if expected {
		p.log.Debug().Int(WorkerField, id).Msg("worker ended")
		p.notify("Child %d (%s) died: %d (expected)", id, p.job, status)
	} else {
		p.notify("Child %d (%s) died: %d (UNEXPECTED)", id, p.job, status)
	}
	delete(p.workers, id)
	p.failed = p.failed || !expected
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

// Had reports whether there has ever been a worker.
func (p *Pool) Had() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.had
}

// Abandoned is how many workers were given up and have not returned.
func (p *Pool) Abandoned() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.abandoned
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
