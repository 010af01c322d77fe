package volume

import (
	"context"
	"fmt"
	"os"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"
)

// task is an operation on a disk that may never return. It runs in a goroutine
// of its volume, holding a slot; its caller may go away before it is done. Or its
// caller runs it, and somebody else is told when it does not return: see [Late].
type task struct {
	v    *Volume
	held bool          // a slot; only the task's own goroutine looks
	done chan struct{} // closed when it is; nil where its caller runs it
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

// Late is called, from a goroutine of its own, when the disk has given no sign of
// life for too long, with an error that matches [ErrSick]. Whoever called the
// operation is still in it, and gets [ErrLate] should it ever return: what he
// would have done with its outcome is left to Late.
//
// That spares each operation the hand-over to another goroutine and back, which
// costs more than reading a small file does.
type Late func(err error)

// runHere carries out op as run does, but in the caller's goroutine, with the slot
// that begin took. what and name are for the error that late gets.
func runHere[T any](v *Volume, what, name string, late Late, op func(*task) (T, error), undo func(T), after func()) (result T, err error) {
	w := v.watch(what, name, late)
	returned := false
	defer func() {
		w.task.release()
		inTime := w.end()
		if !inTime {
			if r := recover(); r != nil { // whoever could tell of it has no place to do so any more
				v.log.Error().Err(fmt.Errorf("panic: %v\n%s", r, debug.Stack())).Str("file", name).Msg("a bug ended an operation")
			}
			if returned && err == nil && undo != nil {
				v.slots.await()
				undo(result)
				v.slots.release()
			}
			var zero T
			result, err = zero, ErrLate
		}
		if after != nil {
			after()
		}
		v.users.leave()
	}()
	result, err = op(&w.task)
	returned = true
	return result, err
}

// watch waits for a task that its caller runs.
type watch struct {
	task    task
	timer   *time.Timer // runs look
	started time.Time
	looked  atomic.Bool // timer ran: it may still do
	what    string
	name    string
	late    Late
}

func (v *Volume) watch(what, name string, late Late) *watch {
	w, ok := v.watches.Get().(*watch)
	if !ok {
		w = &watch{task: task{v: v}}
		w.timer = time.AfterFunc(time.Hour, w.look)
	}
	w.task.held = true
	w.task.fate.Store(running)
	w.started, w.what, w.name, w.late = time.Now(), what, name, late
	w.timer.Reset(v.o.StuckAfter)
	return w
}

// end ends the watch, and reports whether the task was in time.
func (w *watch) end() bool {
	inTime := w.task.fate.CompareAndSwap(running, finished)
	if w.timer.Stop() && !w.looked.Load() {
		w.late = nil
		w.task.v.watches.Put(w)
	}
	return inTime
}

// look abandons the task if it has taken too long, or looks again later.
func (w *watch) look() {
	w.looked.Store(true)
	again, reason := w.task.overdue(w.started)
	if reason == nil {
		w.timer.Reset(again)
	} else if w.task.fate.CompareAndSwap(running, abandoned) {
		w.late(wrap(w.what, w.task.v.id, w.name, reason))
	}
}

// overdue is an error where the disk has given no sign of life for too long since
// the task began, and otherwise says after what time to ask again.
func (t *task) overdue(began time.Time) (again time.Duration, err error) {
	limit, took := t.v.o.StuckAfter, time.Since(began)
	if quiet := t.v.slots.quiet(began); quiet < limit && took < patience*limit {
		return min(limit-quiet, patience*limit-took), nil
	}
	return 0, fmt.Errorf("no answer for %v: %w", took.Round(time.Millisecond), ErrSick)
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
			var again time.Duration
			if again, reason = t.overdue(start); reason == nil {
				timer.Reset(again)
				continue
			}
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
