// Package coding makes shards of files, and of other shards, as trackers order
// it, and says what shards there are. What a shard looks like is the business of
// package erasure.
//
// Shards go to devices of this storage daemon directly, and to those of others by
// PUT, each with an order of its own. Each lands complete and durable or not at
// all; what has landed of an order that failed is for the tracker to remove, which
// has noted beforehand where shards may be.
//
// Work lives as long as its context, that of the order. Everything that comes to
// a path is entered with package transfer, so that a DELETE of the path ends it,
// and two do not write to it at a time.
//
// Memory is bounded for all orders together: what one needs depends on k+m and on
// the size of blocks, not on that of the file, and orders wait for it.
package coding

import (
	"context"
	"errors"
	"net"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
	"golang.org/x/sync/semaphore"
	"golang.org/x/time/rate"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/storaged/erasure"
	"github.com/mogile/mogile/storaged/peers"
	"github.com/mogile/mogile/storaged/transfer"
	"github.com/mogile/mogile/storaged/volume"
)

// Options are the settings of [Coding]. Docroot, Codec, Transfers and Peers are
// needed.
type Options struct {
	Docroot   *volume.Docroot
	Codec     *erasure.Codec
	Transfers *transfer.Transfers
	Peers     *peers.Client // that shards are read with
	// Key signs what is sent to other storage daemons; empty: nothing is signed.
	Key []byte
	// Memory is how many bytes all orders together may need for blocks; 0 means
	// DefaultMemory. An order that needs more by itself runs alone.
	Memory int64
	// Jobs is how many orders to make shards run at a time; 0 means DefaultJobs.
	Jobs int
	// Bandwidth is how many bytes a second all orders together may read; 0 means any
	// number.
	Bandwidth int64
	// PeerTimeout is how long another storage daemon may be silent; 0 means 45 s.
	PeerTimeout time.Duration
	// ConnTimeout is how long connecting to one may take; 0 means 5 s.
	ConnTimeout time.Duration

	Now        func() time.Time      // nil: time.Now
	Registerer prometheus.Registerer // nil: no metrics are shown
	Log        zerolog.Logger
}

const (
	// DefaultMemory is enough for one file in the widest encoding with the largest
	// blocks, or dozens of usual ones.
	DefaultMemory = 48 << 20
	// DefaultJobs is enough to keep some disks and processors busy with small files,
	// of which most of the time is spent on waiting.
	DefaultJobs = 64
)

// Coding is all work of a daemon with shards. Its methods may be called
// concurrently.
type Coding struct {
	o       Options
	uploads *uploads
	memory  *semaphore.Weighted
	jobs    *semaphore.Weighted
	limit   *rate.Limiter // nil: none
	meter   meter

	mu        sync.Mutex                       // guards verifying
	verifying map[protocol.DevID]chan struct{} // each holds one element while shards of the device are verified
}

// New makes a Coding. It must be closed when the last order has ended.
func New(o Options) *Coding {
	if o.Memory <= 0 {
		o.Memory = DefaultMemory
	}
	if o.Jobs <= 0 {
		o.Jobs = DefaultJobs
	}
	if o.PeerTimeout <= 0 {
		o.PeerTimeout = 45 * time.Second
	}
	if o.ConnTimeout <= 0 {
		o.ConnTimeout = 5 * time.Second
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	return &Coding{
		o: o, memory: semaphore.NewWeighted(o.Memory), jobs: semaphore.NewWeighted(int64(o.Jobs)),
		limit: newLimit(o.Bandwidth), meter: newMeter(o.Registerer), verifying: map[protocol.DevID]chan struct{}{},
		uploads: &uploads{
			key: o.Key, timeout: o.PeerTimeout, now: o.Now, idle: map[string][]*idleConn{},
			dialer: net.Dialer{Timeout: o.ConnTimeout, KeepAlive: 30 * time.Second},
		},
	}
}

// Close gives the connections up that are kept for further shards.
func (c *Coding) Close() { c.uploads.close() }

// limitedPiece is how many bytes are read at a time where bandwidth is limited.
const limitedPiece = 64 << 10

// newLimit is a limit of n bytes a second, nil where that is 0.
func newLimit(n int64) *rate.Limiter {
	if n <= 0 {
		return nil
	}
	return rate.NewLimiter(rate.Limit(n), limitedPiece)
}

// pace waits until n more bytes may be read. The error is the cause of ctx's end;
// that it will end before is found out then, and is nobody else's fault.
func pace(ctx context.Context, limits []*rate.Limiter, n int) error {
	for _, l := range limits {
		for left := n; left > 0; left -= limitedPiece {
			turn := l.ReserveN(time.Now(), min(left, limitedPiece))
			delay := turn.Delay()
			if delay == 0 {
				continue
			}
			t := time.NewTimer(delay)
			select {
			case <-t.C:
			case <-ctx.Done():
				t.Stop()
				turn.Cancel()
				return context.Cause(ctx)
			}
		}
	}
	return nil
}

// limits are those of an order with a rate of its own.
func (c *Coding) limits(own int64) []*rate.Limiter {
	var all []*rate.Limiter
	for _, l := range []*rate.Limiter{c.limit, newLimit(own)} {
		if l != nil {
			all = append(all, l)
		}
	}
	return all
}

// jobTime is how long an order waits for others.
const jobTime = time.Minute

var errBusy = errors.New("other orders keep this daemon busy")

// job waits for a place and memory for an order.
func (c *Coding) job(ctx context.Context, need int64) (end func(), err error) {
	c.meter.waiting.Inc()
	defer c.meter.waiting.Dec()
	wait, cancel := context.WithTimeoutCause(ctx, jobTime, errBusy)
	defer cancel()
	need = min(need, c.o.Memory)
	if c.jobs.Acquire(wait, 1) != nil {
		return nil, context.Cause(wait)
	}
	if c.memory.Acquire(wait, need) != nil {
		c.jobs.Release(1)
		return nil, context.Cause(wait)
	}
	c.meter.running.Inc()
	return func() {
		c.meter.running.Dec()
		c.memory.Release(need)
		c.jobs.Release(1)
	}, nil
}

// Error is why shards were not made. It is told to the tracker.
type Error struct {
	Refusal *protocol.Error // of a code that protocol.VerbCopy has, protocol.ErrTooFewShards or protocol.ErrBadOrder
	protocol.ShardFailure
	Err error // the reason
}

// Error is the code and the reason.
func (e *Error) Error() string { return e.Refusal.Code + ": " + e.Err.Error() }

// Unwrap gives the refusal and the reason.
func (e *Error) Unwrap() []error { return []error{e.Refusal, e.Err} }

// blame is the error of an order for an error of a part of it, in which dev had a
// part: whatever went wrong in one that was told to end is for that.
func blame(ctx context.Context, code *protocol.Error, dev protocol.DevID, err error) *Error {
	if ctx.Err() != nil {
		code, dev, err = protocol.ErrCopyCancelled, 0, context.Cause(ctx)
	}
	return &Error{
		Refusal:      &protocol.Error{Code: code.Code, Text: err.Error()},
		ShardFailure: protocol.ShardFailure{Dev: dev, Full: errors.Is(err, volume.ErrNoSpace)},
		Err:          err,
	}
}

// meter counts the work with shards.
type meter struct {
	total            *prometheus.CounterVec // verb, result
	bytes            *prometheus.CounterVec // verb
	running, waiting prometheus.Gauge
}

func newMeter(r prometheus.Registerer) meter {
	const space, part = "mogile", "storaged"
	m := meter{
		total: prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: space, Subsystem: part, Name: "coding_total",
			Help: "Orders to make shards, by verb (encode, rebuild) and by what came of them: ok, or the code of the failure. dest_error: look at the disks that the log names."},
			[]string{"verb", "result"}),
		bytes: prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: space, Subsystem: part, Name: "coding_bytes_total",
			Help: "Bytes of shards that were written for orders, by verb (encode, rebuild)."},
			[]string{"verb"}),
		running: prometheus.NewGauge(prometheus.GaugeOpts{Namespace: space, Subsystem: part, Name: "coding_in_progress",
			Help: "Orders to make shards that are being carried out."}),
		waiting: prometheus.NewGauge(prometheus.GaugeOpts{Namespace: space, Subsystem: part, Name: "coding_waiting",
			Help: "Orders to make shards that wait for others to end."}),
	}
	if r != nil {
		r.MustRegister(m.total, m.bytes, m.running, m.waiting)
	}
	return m
}
