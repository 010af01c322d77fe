package tracker

import (
	"context"
	"errors"
	"sync"
	"time"
)

// errQueryTimeout is the cause of a request's cancellation by its watchdog.
var errQueryTimeout = errors.New("request took too long")

// watchdog bounds the requests of one connection, one at a time. A request
// whose time is over is cancelled, which ends every call that honours its
// context; one that has not returned after a further grace is given up.
//
// It is a timer that can be moved, because a digest of a large file may take
// longer than the time that a request usually has.
type watchdog struct {
	grace time.Duration

	mu     sync.Mutex // guards all below
	timer  *time.Timer
	due    time.Time               // when the timer is to fire; earlier firings are of an older request
	cancel context.CancelCauseFunc // of the running request, nil where none runs
	late   bool                    // cancelled, and in its grace
	giveUp func()                  // called, once, for a request that did not return
}

// start watches a request: after timeout it calls cancel, and after the grace
// giveUp.
func (w *watchdog) start(timeout time.Duration, cancel context.CancelCauseFunc, giveUp func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.cancel, w.giveUp, w.late = cancel, giveUp, false
	w.set(timeout)
}

func (w *watchdog) set(d time.Duration) {
	w.due = time.Now().Add(d)
	if w.timer == nil {
		w.timer = time.AfterFunc(d, w.fire)
		return
	}
	w.timer.Reset(d)
}

// extend gives the running request d from now on, unless its time is over.
func (w *watchdog) extend(d time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.cancel != nil && !w.late && time.Now().Add(d).After(w.due) {
		w.set(d)
	}
}

// stop ends the watch when the request has returned. It reports false where the
// request had been given up.
func (w *watchdog) stop() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.timer.Stop()
	running := w.cancel != nil
	w.cancel, w.giveUp = nil, nil
	return running
}

func (w *watchdog) fire() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.cancel == nil || time.Now().Before(w.due) {
		return
	}
	if !w.late {
		w.late = true
		w.cancel(errQueryTimeout)
		w.set(w.grace)
		return
	}
	w.cancel = nil
	w.giveUp()
}
