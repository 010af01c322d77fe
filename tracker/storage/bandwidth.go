package storage

import (
	"context"
	"sync"
	"time"
)

// bandwidth is what all copies together may use of the network. A nil one is
// without limit.
//
// What passes through this process, and whole small files, take their bytes as
// from a bucket that fills at the rate. A larger file that one storage daemon
// fetches from another is out of our hands once it is ordered: it reserves a
// part of the rate for as long as it lasts, half of what others have left of
// three quarters, and the bucket fills that much slower.
type bandwidth struct {
	rate int64 // bytes a second

	mu       sync.Mutex // guards what follows
	reserved int64
	bucket   float64 // bytes; below zero where more was taken than there was
	filled   time.Time
	released chan struct{} // closed when a reservation ends, and replaced
}

const (
	// bandwidthBurst is the most that the bucket holds, as a part of a second's
	// bytes.
	bandwidthBurst = 0.1
	// bandwidthWait is the longest wait without a sign of life.
	bandwidthWait = time.Second
	// leastShare is the least part of the rate, one in so many, that is reserved.
	leastShare = 32
	// smallShare is the largest file that is taken as a whole, as one in so many
	// parts of a second's bytes.
	smallShare = 4
)

func newBandwidth(rate int64) *bandwidth {
	if rate <= 0 {
		return nil
	}
	return &bandwidth{rate: rate, filled: time.Now(), released: make(chan struct{})}
}

// take waits until n bytes may pass, and calls alive at least each second
// meanwhile. Its error is the end of ctx.
func (b *bandwidth) take(ctx context.Context, n int64, alive func()) error {
	if b == nil || n <= 0 {
		return nil
	}
	for {
		wait := b.fill(n)
		if wait <= 0 {
			return nil
		}
		if err := pause(ctx, min(wait, bandwidthWait), nil, alive); err != nil {
			return err
		}
	}
}

// fill takes n bytes if the bucket is not empty, else it says how long that will
// be so.
func (b *bandwidth) fill(n int64) time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.settle()
	if b.bucket >= 0 {
		b.bucket -= float64(n)
		return 0
	}
	return max(time.Duration(-b.bucket/float64(b.rate-b.reserved)*float64(time.Second)), time.Millisecond)
}

// order waits until a file of length bytes may be fetched by its destination,
// and returns at what rate, 0 for any. done must be called when it was. It calls
// alive as take does.
func (b *bandwidth) order(ctx context.Context, length int64, alive func()) (rate int64, done func(), err error) {
	if b == nil {
		return 0, func() {}, nil
	}
	if length <= b.rate/smallShare {
		return 0, func() {}, b.take(ctx, length, alive)
	}
	for {
		rate, released := b.reserve()
		if rate > 0 {
			return rate, sync.OnceFunc(func() { b.release(rate) }), nil
		}
		if err := pause(ctx, bandwidthWait, released, alive); err != nil {
			return 0, nil, err
		}
	}
}

// reserve takes a part of the rate, or returns what to wait for.
func (b *bandwidth) reserve() (rate int64, released <-chan struct{}) {
	b.mu.Lock()
	defer b.mu.Unlock()
	share := (b.rate*3/4 - b.reserved) / 2
	if share < max(1, b.rate/leastShare) {
		return 0, b.released
	}
	b.settle()
	b.reserved += share
	return share, nil
}

func (b *bandwidth) release(rate int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.settle()
	b.reserved -= rate
	close(b.released)
	b.released = make(chan struct{})
}

// settle fills the bucket at the rate that it had until now.
func (b *bandwidth) settle() {
	now := time.Now()
	b.bucket = min(b.bucket+float64(b.rate-b.reserved)*now.Sub(b.filled).Seconds(), bandwidthBurst*float64(b.rate))
	b.filled = now
}

// pause waits for d, or until wake is closed, and calls alive, which may be nil.
func pause(ctx context.Context, d time.Duration, wake <-chan struct{}, alive func()) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-wake:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if alive != nil {
		alive()
	}
	return nil
}
