package protocol

import (
	"context"
	"fmt"
	"sync"
	"time"
)

// watch cancels an HTTP request whose peer does nothing for too long. It is
// told what the peer is expected to do next, and how long that may take, at
// every piece; so its one timer is moved only when it fires.
type watch struct {
	cancel context.CancelCauseFunc

	mu    sync.Mutex // guards what follows
	fault *stallError
	due   time.Time // zero: nothing is expected
	timer *time.Timer
	fires time.Time // when timer does; zero: it is not set
	over  bool
}

func newWatch(cancel context.CancelCauseFunc, d time.Duration, fault string) *watch {
	w := &watch{cancel: cancel}
	w.mu.Lock()
	w.timer = time.AfterFunc(d, w.fire)
	w.fires = time.Now().Add(d)
	w.mu.Unlock()
	w.expect(d, fault)
	return w
}

// expect gives the peer d from now; then the request is cancelled for fault.
func (w *watch) expect(d time.Duration, fault string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.over {
		return
	}
	w.due = time.Now().Add(d)
	if w.fault == nil || w.fault.fault != fault || w.fault.after != d {
		w.fault = &stallError{fault, d}
	}
	if w.fires.IsZero() || w.due.Before(w.fires) {
		w.timer.Reset(d)
		w.fires = w.due
	}
}

// fire is the timer's: the peer is late, or was given more time.
func (w *watch) fire() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.fires = time.Time{}
	if w.over || w.due.IsZero() {
		return
	}
	if left := time.Until(w.due); left > 0 {
		w.timer.Reset(left)
		w.fires = w.due
		return
	}
	w.cancel(w.fault)
}

// pause expects nothing.
func (w *watch) pause() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.due = time.Time{}
}

// stop ends the watch.
func (w *watch) stop() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.over = true
	w.timer.Stop()
}

// stallError is a storage daemon that did nothing for too long. It is a
// time-out as package net's are.
type stallError struct {
	fault string
	after time.Duration
}

func (e *stallError) Error() string { return fmt.Sprintf("%s for %v", e.fault, e.after) }
func (e *stallError) Timeout() bool { return true }
