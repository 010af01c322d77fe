package work

import (
	"context"
	"sync"

	"github.com/mogile/mogile/protocol"
)

// Limiter bounds how much is done with one device at once, so that a slow disk
// is neither swamped nor takes every worker. It remembers each device that it
// was asked for.
type Limiter struct {
	each int

	mu    sync.Mutex // guards slots
	slots map[protocol.DevID]chan struct{}
}

// NewLimiter allows each device n uses at once, at least 1.
func NewLimiter(n int) *Limiter {
	return &Limiter{each: max(1, n), slots: make(map[protocol.DevID]chan struct{})}
}

// Acquire waits for a use of dev. The use ends with a call of release; where
// ctx ends first there is no use, and Acquire returns its error.
func (l *Limiter) Acquire(ctx context.Context, dev protocol.DevID) (release func(), err error) {
	l.mu.Lock()
	slots, ok := l.slots[dev]
	if !ok {
		slots = make(chan struct{}, l.each)
		l.slots[dev] = slots
	}
	l.mu.Unlock()
	select {
	case slots <- struct{}{}:
		return func() { <-slots }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}
