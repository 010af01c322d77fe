package volume

import (
	"context"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// task is an operation on a disk that may never return. It runs in a goroutine
// of its volume, holding a slot; its caller may go away before it is done.
type task struct {
	v    *Volume
	held bool // a slot; only the task's own goroutine looks
	done chan struct{}
	fate atomic.Int32
}

// The fates of a task: either side may decide, once.
const (
	running int32 = iota
	finished
	abandoned
)

// patience is for how many times StuckAfter a caller waits for its own
// operation while others on the same disk are answered: a disk that is merely
// busy takes its time to flush.
const patience = 3

// do runs op on v's disk, as run does, once there is a slot for it.
func do[T any](ctx context.Context, v *Volume, op func(*task) (T, error), undo func(T)) (T, error) {
	if err := v.begin(ctx); err != nil {
		var zero T
		return zero, err
	}
	return run(ctx, v, op, undo, nil)
}

// begin takes a slot for run.
func (v *Volume) begin(ctx context.Context) error {
	if !v.users.enter() {
		return os.ErrClosed
	}
	if err := v.slots.acquire(ctx); err != nil {
		v.users.leave()
		return err
	}
	return nil
}

// run carries out op in a goroutine, with the slot that begin took, and waits
// for it: until ctx ends, or until the disk has given no sign of life for
// StuckAfter. If nobody waits any more when op succeeds, undo is called with its
// result. after, if not nil, is called when everything is over.
func run[T any](ctx context.Context, v *Volume, op func(*task) (T, error), undo func(T), after func()) (T, error) {
	t := &task{v: v, held: true, done: make(chan struct{})}
	var result T
	var err error
	v.hands.do(func() {
		defer v.users.leave()
		r, e := op(t)
		t.release() // before the caller knows: what it does next finds a slot
		result, err = r, e
		if t.fate.CompareAndSwap(running, finished) {
			close(t.done)
		} else if e == nil && undo != nil {
			v.slots.await()
			undo(r)
			v.slots.release()
		}
		if after != nil {
			after()
		}
	})
	if reason := t.wait(ctx); reason != nil {
		var zero T
		return zero, reason
	}
	return result, err
}

// background carries out op in a goroutine that nobody waits for but
// [Docroot.Close].
func (v *Volume) background(op func()) {
	if !v.users.enter() {
		op() // the volume is closed: what is left is closing files
		return
	}
	v.hands.do(func() {
		defer v.users.leave()
		v.slots.await()
		defer v.slots.release()
		op()
	})
}

// maxIdleHands is how many goroutines of a volume wait for the next operation.
const maxIdleHands = 16

// hands are goroutines that carry out operations. Those that have done one wait
// for the next: their stacks have grown to what operations need.
type hands struct {
	mu     sync.Mutex // guards what follows
	idle   []chan func()
	closed bool
	wg     sync.WaitGroup // those that wait
}

// do has f carried out by a goroutine that waits, or a new one.
func (h *hands) do(f func()) {
	h.mu.Lock()
	if n := len(h.idle); n > 0 {
		next := h.idle[n-1] // whose stack was used last
		h.idle = h.idle[:n-1]
		h.mu.Unlock()
		next <- f
		return
	}
	h.mu.Unlock()
	go h.work(f)
}

func (h *hands) work(f func()) {
	next := make(chan func(), 1)
	for f != nil {
		f()
		if !h.wait(next) {
			return
		}
		f = <-next // nil when the volume is closed
		h.wg.Done()
	}
}

// wait enters next among those that are idle, unless they are enough.
func (h *hands) wait(next chan func()) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed || len(h.idle) == maxIdleHands {
		return false
	}
	h.idle = append(h.idle, next)
	h.wg.Add(1)
	return true
}

// close ends those that wait. Nothing is carried out any more.
func (h *hands) close() {
	h.mu.Lock()
	h.closed = true
	for _, next := range h.idle {
		next <- nil
	}
	h.idle = nil
	h.mu.Unlock()
	h.wg.Wait()
}

// wait waits for the task, or abandons it and says why.
func (t *task) wait(ctx context.Context) error {
	select {
	case <-t.done:
		return nil
	default:
	}
	start, limit := time.Now(), t.v.o.StuckAfter
	timer, ok := t.v.timers.Get().(*time.Timer)
	if ok {
		timer.Reset(limit)
	} else {
		timer = time.NewTimer(limit)
	}
	defer func() {
		timer.Stop()
		t.v.timers.Put(timer)
	}()
	for {
		var reason error
		select {
		case <-t.done:
			return nil
		case <-ctx.Done():
			reason = ctx.Err()
		case <-timer.C:
			took := time.Since(start)
			if quiet := t.v.slots.quiet(start); quiet < limit && took < patience*limit {
				timer.Reset(min(limit-quiet, patience*limit-took))
				continue
			}
			reason = fmt.Errorf("no answer for %v: %w", took.Round(time.Millisecond), ErrSick)
		}
		if t.fate.CompareAndSwap(running, abandoned) {
			return reason
		}
		<-t.done
		return nil
	}
}

func (t *task) abandoned() bool { return t.fate.Load() == abandoned }

// release gives the slot back for the time of a wait that is not the disk's.
func (t *task) release() {
	if t.held {
		t.held = false
		t.v.slots.release()
	}
}

// resume takes a slot again.
func (t *task) resume() {
	if !t.held {
		t.v.slots.await()
		t.held = true
	}
}

// users counts the goroutines of a volume, so that it is closed after them.
type users struct {
	mu     sync.Mutex // guards all
	n      int
	closed bool
	idle   chan struct{} // closed when closed and n is 0
}

func (u *users) enter() bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.closed {
		return false
	}
	u.n++
	return true
}

func (u *users) leave() {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.n--; u.n == 0 && u.closed {
		close(u.idle)
	}
}

// close lets nobody in any more, and returns a channel that is closed once all
// have left. It is called once.
func (u *users) close() <-chan struct{} {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.closed = true
	if u.n == 0 {
		close(u.idle)
	}
	return u.idle
}
