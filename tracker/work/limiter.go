package work

import (
	"context"
	"math"
	"sync"
	"time"

	"github.com/mogile/mogile/protocol"
)

// Limiter bounds how much is done with one device at once, so that a slow disk
// is neither swamped nor takes every worker. It remembers each device that it
// was asked for.
type Limiter struct {
	each int

	mu      sync.Mutex // guards devices and what they hold
	devices map[protocol.DevID]*limited
}

// limited is one device.
type limited struct {
	slots   chan struct{}
	pace    time.Duration // how long a use lasts, a moving geometric mean: one that hung, at its other end maybe, counts little
	changed time.Time     // when a use last began or ended
	line    time.Time     // when the last one in line is to come
	soon    int           // callers of AcquireSoon that wait
}

const (
	// firstPace is what a use is taken to last before one has ended.
	firstPace = 500 * time.Millisecond
	// paceWeight is the part, one in so many, that the last use has in the average.
	paceWeight = 8
	// brisk is how long a caller of AcquireSoon waits at most, for a device whose
	// uses take less.
	brisk = 200 * time.Millisecond
	// crowding is how many times as many are told to come as can be served, so that
	// a device that is faster than it was does not wait for work.
	crowding = 2
	// shortestLine and longestLine bound what those in line are told to wait.
	shortestLine = time.Second
	longestLine  = 10 * time.Minute
)

// NewLimiter allows each device n uses at once, at least 1.
func NewLimiter(n int) *Limiter {
	return &Limiter{each: max(1, n), devices: make(map[protocol.DevID]*limited)}
}

// device is what is known of dev. The caller holds l.mu.
func (l *Limiter) device(dev protocol.DevID) *limited {
	d := l.devices[dev]
	if d == nil {
		d = &limited{slots: make(chan struct{}, l.each), pace: firstPace, changed: time.Now()}
		l.devices[dev] = d
	}
	return d
}

// use begins a use of d whose slot is taken.
func (l *Limiter) use(d *limited) (release func()) {
	began := time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	d.changed = began
	return func() {
		<-d.slots
		l.mu.Lock()
		defer l.mu.Unlock()
		d.changed = time.Now()
		took := max(d.changed.Sub(began), time.Millisecond)
		d.pace = time.Duration(float64(d.pace) * math.Pow(float64(took)/float64(d.pace), 1./paceWeight))
	}
}

// Acquire waits for a use of dev. The use ends with a call of release; where
// ctx ends first there is no use, and Acquire returns its error.
func (l *Limiter) Acquire(ctx context.Context, dev protocol.DevID) (release func(), err error) {
	l.mu.Lock()
	d := l.device(dev)
	l.mu.Unlock()
	select {
	case d.slots <- struct{}{}:
		return l.use(d), nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// TryAcquire is Acquire without waiting: it reports whether dev had a use free.
// Who gets none, not even with [Limiter.AcquireSoon], and cannot do something
// else meanwhile should stand in [Limiter.Line].
func (l *Limiter) TryAcquire(dev protocol.DevID) (release func(), ok bool) {
	l.mu.Lock()
	d := l.device(dev)
	l.mu.Unlock()
	select {
	case d.slots <- struct{}{}:
		return l.use(d), true
	default:
		return nil, false
	}
}

// AcquireSoon is Acquire that waits for a moment, if it is likely that dev then
// has a use free: its uses are short, one has begun or ended a moment ago, and
// no more callers wait for it than it can serve at once, or soon enough at its
// pace. It reports whether it had a use.
func (l *Limiter) AcquireSoon(ctx context.Context, dev protocol.DevID) (release func(), ok bool) {
	l.mu.Lock()
	d := l.device(dev)
	ok = d.pace < brisk && time.Since(d.changed) < brisk && d.soon < l.each*max(1, int(brisk/2/d.pace))
	if ok {
		d.soon++
	}
	l.mu.Unlock()
	if !ok {
		return nil, false
	}
	ctx, cancel := context.WithTimeout(ctx, brisk)
	defer cancel()
	release, err := l.Acquire(ctx, dev)
	l.mu.Lock()
	defer l.mu.Unlock()
	d.soon--
	return release, err == nil
}

// Line is when to try dev again, from 1 s to 10 min from now: the further away,
// the more were told so before, the longer uses of it last, and the longer none
// has begun or ended. A thousand files that wait for one slow device thus come
// back one after the other, and cost nearly nothing until then.
func (l *Limiter) Line(dev protocol.DevID) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	d, now := l.device(dev), time.Now()
	// Where nothing has moved for a while it may go on like that.
	soonest := now.Add(max(shortestLine, now.Sub(d.changed)/2))
	if d.line.Before(soonest) {
		d.line = soonest
	}
	wait := d.line.Sub(now)
	if wait < longestLine {
		d.line = d.line.Add(d.pace / time.Duration(l.each*crowding))
	}
	return min(wait, longestLine)
}
