package volume

import (
	"context"
	"sync/atomic"
	"time"
)

// slots are the I/O slots of one volume: whoever holds one may have a system
// call under way on its disk.
type slots struct {
	sem        chan struct{}
	stuckAfter time.Duration
	base       time.Time
	finished   atomic.Int64 // when a slot was last given back, since base
	filled     atomic.Int64 // when the last free slot was last taken, since base
}

func newSlots(n int, stuckAfter time.Duration) *slots {
	return &slots{
		sem:        make(chan struct{}, n),
		stuckAfter: stuckAfter,
		base:       time.Now(),
	}
}

// acquire takes a slot. It waits while others make progress, until ctx ends;
// ErrSick when all slots are stuck.
func (s *slots) acquire(ctx context.Context) error {
	select {
	case s.sem <- struct{}{}:
		s.taken()
		return nil
	default:
	}
	for {
		left := s.left()
		if left <= 0 {
			return ErrSick
		}
		t := time.NewTimer(left)
		select {
		case s.sem <- struct{}{}:
			t.Stop()
			s.taken()
			return nil
		case <-ctx.Done():
			t.Stop()
			return ctx.Err()
		case <-t.C:
		}
	}
}

// await takes a slot however long it takes, for work that nobody waits for or
// that many do.
func (s *slots) await() {
	s.sem <- struct{}{}
	s.taken()
}

func (s *slots) taken() {
	if len(s.sem) == cap(s.sem) {
		s.filled.Store(int64(time.Since(s.base)))
	}
}

func (s *slots) release() {
	s.finished.Store(int64(time.Since(s.base)))
	<-s.sem
}

// left is how long full slots may stay as they are before the disk counts as
// sick.
func (s *slots) left() time.Duration {
	last := max(s.finished.Load(), s.filled.Load())
	return time.Duration(last) + s.stuckAfter - time.Since(s.base)
}

// stuck reports whether every slot is taken and none was given back for
// stuckAfter.
func (s *slots) stuck() bool { return len(s.sem) == cap(s.sem) && s.left() <= 0 }

// quiet is how long no slot was given back, counted from start at the earliest.
func (s *slots) quiet(start time.Time) time.Duration {
	return time.Since(s.base) - max(time.Duration(s.finished.Load()), start.Sub(s.base))
}
