package postgres

import (
	"cmp"
	"context"
	"sync"
	"time"
)

// coalescing says how a coalescer works.
type coalescing[T, R any] struct {
	batches int // that run at once
	size    int // calls in a batch, at most
	// eager has each batch begin as soon as there is a place for it. Otherwise
	// one runs beside another only where many calls wait, or the other takes
	// long.
	eager bool
	// pace bounds the time from the beginning of a batch to that of the next while
	// several call, which is paceShare of what batches take; 0 is none.
	pace time.Duration
	// run executes a batch in one transaction and fills in the outcome of each
	// call. An error means that nothing was done.
	run func(ctx context.Context, calls []T, outcomes []R) error
	// alone executes one call of a batch that failed; nil: run does.
	alone func(ctx context.Context, call T) (R, error)
	// retry reports whether the calls of a batch that failed so are repeated
	// one by one.
	retry func(error) bool
	// keys names what a call claims for itself: calls that share a key never
	// run at once, in one batch or several. nil: nothing.
	keys func(T) [2]any
	// timeout bounds each batch, whatever its callers' deadlines; 0 is
	// callTimeout.
	timeout time.Duration
}

// singles is how many calls of failed batches run at once, each alone. They
// may wait for locks that others hold, and must not take up the batches.
const singles = 8

const (
	// manyCalls is how many calls are worth a batch beside one that runs. Fewer
	// wait for it, and then share the next: a batch costs the server, and us,
	// much more than a call in it.
	manyCalls = 16
	// longBatch is how long a batch runs before those that wait are worth one
	// beside it, however few they are.
	longBatch = 20 * time.Millisecond
	// fewCalls is how many calls a batch has at least after which the next waits
	// for the pace: where so many come at the same time, more do in a moment.
	fewCalls = 4
	// enoughCalls do not wait for the pace.
	enoughCalls = 32
	// paceShare is how many times as long as a batch takes calls are collected for
	// the next. A batch costs as much as many of its calls do: what waits for it
	// would otherwise wait for more batches of others.
	paceShare = 3
)

// coalescer collects calls that arrive while others run, and runs them
// together. A call that finds none running starts at once.
type coalescer[T, R any] struct {
	coalescing[T, R]
	life context.Context // of the batches; ended after close
	wg   sync.WaitGroup  // batches and singles

	mu      sync.Mutex // guards what follows
	waiting []*call[T, R]
	busy    map[any]struct{} // keys of calls that run
	running int
	latest  time.Time     // when the batch began that was begun last
	lastly  int           // how many calls it had
	usually time.Duration // how long batches take, smoothed
	due     time.Time     // a dispatch is due then; zero: none
	closed  bool

	single chan struct{} // a place for each single
}

type call[T, R any] struct {
	arg     T
	outcome R
	err     error
	left    bool          // its caller waits no more; guarded by coalescer.mu
	done    chan struct{} // closed when outcome and err are set
}

func newCoalescer[T, R any](life context.Context, c coalescing[T, R]) *coalescer[T, R] {
	return &coalescer[T, R]{
		coalescing: c, life: life, busy: make(map[any]struct{}), single: make(chan struct{}, singles),
	}
}

// do runs a call and returns its outcome. Where ctx ends first a call that has
// not begun is never run; of one that has, nothing is known.
func (c *coalescer[T, R]) do(ctx context.Context, arg T) (R, error) {
	k := &call[T, R]{arg: arg, done: make(chan struct{})}
	if err := ctx.Err(); err != nil {
		return k.outcome, err
	}
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return k.outcome, errClosed
	}
	c.waiting = append(c.waiting, k)
	c.dispatch()
	c.mu.Unlock()
	select {
	case <-k.done:
		return k.outcome, k.err
	case <-ctx.Done():
		c.withdraw(k)
		var none R
		return none, ctx.Err()
	}
}

// withdraw takes a call back unless it runs; it is not repeated.
func (c *coalescer[T, R]) withdraw(k *call[T, R]) {
	c.mu.Lock()
	defer c.mu.Unlock()
	k.left = true
	for i, w := range c.waiting {
		if w == k {
			c.waiting = append(c.waiting[:i], c.waiting[i+1:]...)
			return
		}
	}
}

// dispatch starts batches while there are places and calls that may run; c.mu
// is held.
func (c *coalescer[T, R]) dispatch() {
	for c.running < c.batches && len(c.waiting) > 0 {
		if !c.eager && c.running > 0 && len(c.waiting) < manyCalls && time.Since(c.latest) < longBatch {
			return
		}
		if c.wait() {
			return
		}
		batch := c.take()
		if len(batch) == 0 {
			return
		}
		c.running++
		c.latest, c.lastly = time.Now(), len(batch)
		c.wg.Go(func() { c.runBatch(batch) })
	}
}

// wait reports whether calls are to wait for more, which it sees to; c.mu is held.
func (c *coalescer[T, R]) wait() bool {
	if c.pace == 0 || c.closed || c.lastly < fewCalls || len(c.waiting) >= enoughCalls {
		return false
	}
	due := c.latest.Add(min(c.pace, paceShare*c.usually))
	left := time.Until(due)
	if left <= 0 {
		return false
	}
	if c.due.IsZero() || due.Before(c.due) {
		c.due = due
		c.wg.Go(func() { c.awaitPace(due, left) })
	}
	return true
}

// awaitPace dispatches when left is over, which is at due.
func (c *coalescer[T, R]) awaitPace(due time.Time, left time.Duration) {
	t := time.NewTimer(left)
	defer t.Stop()
	select {
	case <-t.C:
	case <-c.life.Done():
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.due.Equal(due) {
		c.due = time.Time{}
	}
	c.dispatch()
}

// take removes from those that wait the calls of the next batch; c.mu is held.
func (c *coalescer[T, R]) take() []*call[T, R] {
	if c.keys == nil {
		n := min(c.size, len(c.waiting))
		batch := append([]*call[T, R](nil), c.waiting[:n]...)
		c.waiting = append(c.waiting[:0], c.waiting[n:]...)
		return batch
	}
	var batch []*call[T, R]
	rest := c.waiting[:0]
	for _, k := range c.waiting {
		if len(batch) < c.size && c.claim(k) {
			batch = append(batch, k)
		} else {
			rest = append(rest, k)
		}
	}
	clear(c.waiting[len(rest):])
	c.waiting = rest
	return batch
}

// claim marks a call's keys as busy, unless one of them is; c.mu is held.
func (c *coalescer[T, R]) claim(k *call[T, R]) bool {
	keys := c.keys(k.arg)
	for _, key := range keys {
		if _, ok := c.busy[key]; ok {
			return false
		}
	}
	for _, key := range keys {
		c.busy[key] = struct{}{}
	}
	return true
}

func (c *coalescer[T, R]) runBatch(batch []*call[T, R]) {
	args, outcomes := make([]T, len(batch)), make([]R, len(batch))
	for i, k := range batch {
		args[i] = k.arg
	}
	began := time.Now()
	err := c.timed(func(ctx context.Context) error { return c.run(ctx, args, outcomes) })
	took := time.Since(began)
	again := err != nil && c.retry(err) && (len(batch) > 1 || c.alone != nil)
	c.mu.Lock()
	c.running--
	c.usually += (took - c.usually) / 8
	for i, k := range batch {
		if again {
			c.wg.Go(func() { c.runAlone(k) })
		} else {
			c.finish(k, outcomes[i], err)
		}
	}
	c.dispatch()
	c.mu.Unlock()
}

func (c *coalescer[T, R]) runAlone(k *call[T, R]) {
	c.single <- struct{}{}
	outcomes := make([]R, 1)
	err := c.timed(func(ctx context.Context) error {
		if c.hasLeft(k) {
			return context.Canceled
		}
		if c.alone == nil {
			return repeat(ctx, func() error { return c.run(ctx, []T{k.arg}, outcomes) })
		}
		var err error
		outcomes[0], err = c.alone(ctx, k.arg)
		return err
	})
	<-c.single
	c.mu.Lock()
	c.finish(k, outcomes[0], err)
	c.dispatch()
	c.mu.Unlock()
}

func (c *coalescer[T, R]) hasLeft(k *call[T, R]) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return k.left
}

// timed runs f, which no caller's context ends, within the time of a batch.
func (c *coalescer[T, R]) timed(f func(ctx context.Context) error) error {
	ctx, cancel := context.WithTimeoutCause(c.life, cmp.Or(c.timeout, callTimeout), errCallTimeout)
	defer cancel()
	return f(ctx)
}

// finish hands a call its outcome and frees its keys; c.mu is held.
func (c *coalescer[T, R]) finish(k *call[T, R], outcome R, err error) {
	if c.keys != nil {
		for _, key := range c.keys(k.arg) {
			delete(c.busy, key)
		}
	}
	k.outcome, k.err = outcome, err
	close(k.done)
}

// close refuses further calls and waits for those that were accepted.
func (c *coalescer[T, R]) close() {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.wg.Wait()
}
