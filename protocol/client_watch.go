package protocol

import (
	"context"
	"fmt"
	"sync"
	"time"
)

// watch cancels an HTTP request whose peer does nothing for too long. It is
// told what the peer is expected to do next, and how long that may take.
type watch struct {
	cancel context.CancelCauseFunc

	mu    sync.Mutex // guards what follows
	timer *time.Timer
	round int // of the expectation; a timer of an earlier one means nothing
	over  bool
}

func newWatch(cancel context.CancelCauseFunc, d time.Duration, fault string) *watch {
	w := &watch{cancel: cancel}
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
	w.round++
	round := w.round
	if w.timer != nil {
		w.timer.Stop()
	}
	w.timer = time.AfterFunc(d, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.round == round && !w.over {
			w.cancel(&stallError{fault, d})
		}
	})
}

// pause expects nothing.
func (w *watch) pause() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.round++
	w.timer.Stop()
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
