// Package monitor watches the storage daemons, and feeds what it sees to the
// cluster's snapshot.
//
// It has two loops. One reads the database every few seconds, and as soon as
// another tracker announces a change. The other looks at every device in
// parallel: it fetches the usage file through the port that is read from, now
// and then writes a small file and reads it back, and finds out whether a wrong
// Content-MD5 is refused. What a round found of a host is published when the
// last of that host's devices has been looked at; that a host hangs keeps
// nothing from the others. Beside the rounds a connection to the side channel
// of every host that is looked at reads how busy its disks are; and storage
// daemons that keep shards are told where all devices are, and asked which shards
// they found missing or bad.
//
// A host is called unreachable when nothing of it answers. One device of which
// nothing is heard, while others of the host answer, is one sick disk.
package monitor

import (
	"context"
	"crypto/rand"
	"fmt"
	mathrand "math/rand/v2"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/schema"
	"github.com/mogile/mogile/tracker/cluster"
	"github.com/mogile/mogile/tracker/storage"
	"github.com/mogile/mogile/tracker/work"
)

// Store is what the monitor asks of the database, beside what the cluster
// reads.
type Store interface {
	SetDeviceUsage(ctx context.Context, usage []schema.Usage) error
	HoldLease(ctx context.Context, name, owner string, ttl time.Duration) (bool, error)
	Changes(ctx context.Context) <-chan struct{}
	QueueFsck(ctx context.Context, fids []protocol.FID, delay time.Duration, arg string) error
}

// Storage is what the monitor asks of storage daemons; see [storage.Client].
type Storage interface {
	Get(ctx context.Context, url string, limit int64) ([]byte, http.Header, error)
	Put(ctx context.Context, url string, body []byte, h http.Header) error
	MakeDirs(ctx context.Context, url string) error
	Watch(ctx context.Context, host string, port int, group func(map[protocol.DevID]string)) error
	TellPeers(ctx context.Context, hostport string, o protocol.PeersOrder) (version int64, err error)
	Suspects(ctx context.Context, hostport string, limit int) ([]protocol.FIDOn, error)
}

var (
	_ Store   = schema.Store(nil)
	_ Storage = (*storage.Client)(nil)
)

// Options are the settings of a [Monitor]. Cluster, Store and Storage are
// needed; zero values of the others mean MogileFS 2.73's.
type Options struct {
	Cluster *cluster.Cluster
	Store   Store
	Storage Storage

	// Name is this tracker's among those on the database; empty: one that no
	// other has.
	Name string

	PoolSize          int           // requests at once; 20
	ConnTimeout       time.Duration // of each request; 2 s
	RefreshInterval   time.Duration // from one reading of the database to the next; 4 s
	RoundInterval     time.Duration // from the start of one round to that of the next; 2.5 s
	TestWriteInterval time.Duration // from one test write on a device to the next; 15 s
	UsageInterval     time.Duration // how seldom a device's usage is written to the database; 15 s

	Now        func() time.Time      // time.Now
	Rand       *mathrand.Rand        // nil: seeded by chance
	Registerer prometheus.Registerer // nil: no metrics
	Notify     func(msg string)      // gets MogileFS's messages, for !watch; may be nil; must not block
	Log        zerolog.Logger
}

// Monitor is the watcher. Make it with [New].
type Monitor struct {
	o       Options
	metrics metrics

	running chan struct{}              // holds a value while Run runs
	ready   chan struct{}              // closed after the first complete round
	devices map[protocol.DevID]*memory // owned by the loop of rounds
	streams *streams                   // owned by the loop of rounds
	errands errands
	outage  atomic.Bool // the database did not answer when it was last asked

	randMu sync.Mutex // guards Options.Rand

	mu      sync.Mutex // guards waiting
	waiting []*waiter
	wake    chan struct{} // capacity 1: a round is asked for
}

// waiter waits for a round that has not begun.
type waiter struct {
	fresh bool // the database is to be read first
	done  chan error
}

// memory is what the monitor keeps of a device from round to round.
type memory struct {
	tested   time.Time // when it was last written to; zero: not since it may be
	measured time.Time // when its usage was last written to the database, by this tracker
	badUsage bool      // its usage file made no sense
}

// databaseTimeout bounds each call to the database.
const databaseTimeout = 10 * time.Second

// New makes a monitor. It looks at nothing until [Monitor.Run].
func New(o Options) *Monitor {
	if o.PoolSize <= 0 {
		o.PoolSize = 20
	}
	defaults := []struct {
		d  *time.Duration
		to time.Duration
	}{
		{&o.ConnTimeout, 2 * time.Second},
		{&o.RefreshInterval, 4 * time.Second},
		{&o.RoundInterval, 2500 * time.Millisecond},
		{&o.TestWriteInterval, 15 * time.Second},
		{&o.UsageInterval, 15 * time.Second},
	}
	for _, v := range defaults {
		if *v.d <= 0 {
			*v.d = v.to
		}
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Rand == nil {
		o.Rand = mathrand.New(mathrand.NewPCG(mathrand.Uint64(), mathrand.Uint64()))
	}
	if o.Name == "" {
		o.Name = "monitor-" + rand.Text()
	}
	if o.Notify == nil {
		o.Notify = func(string) {}
	}
	m := &Monitor{
		o:       o,
		metrics: newMetrics(o.Registerer, o.Cluster),
		running: make(chan struct{}, 1),
		ready:   make(chan struct{}),
		devices: map[protocol.DevID]*memory{},
		wake:    make(chan struct{}, 1),
	}
	m.errands = errands{m: m, hosts: map[schema.HostID]*errand{}}
	return m
}

// Ready is closed when the first complete round is over.
func (m *Monitor) Ready() <-chan struct{} { return m.ready }

// Run watches until ctx ends, and returns nil. Called again while it runs it
// waits for its turn; after it has returned it may be called again, and goes
// on with what is known.
func (m *Monitor) Run(ctx context.Context) error {
	select {
	case m.running <- struct{}{}:
		defer func() { <-m.running }()
	case <-ctx.Done():
		return nil
	}
	var both sync.WaitGroup
	both.Go(func() { m.rounds(ctx) })
	both.Go(func() { m.database(ctx) })
	both.Wait()
	return nil
}

// Refresh reads the database and looks at every device, and returns when that
// is done: both begin after the call. Calls that wait share a round. It returns
// the error of reading the database, or ctx's.
func (m *Monitor) Refresh(ctx context.Context) error { return m.wait(ctx, true) }

// NextRound waits for the next round that begins after the call, without asking
// for it. It returns an error only where ctx ends before, or nothing is known
// of the cluster yet.
func (m *Monitor) NextRound(ctx context.Context) error { return m.wait(ctx, false) }

func (m *Monitor) wait(ctx context.Context, fresh bool) error {
	w := &waiter{fresh: fresh, done: make(chan error, 1)}
	m.mu.Lock()
	m.waiting = append(m.waiting, w)
	m.mu.Unlock()
	if fresh {
		m.poke()
	}
	select {
	case err := <-w.done:
		return err
	case <-ctx.Done():
		m.mu.Lock()
		defer m.mu.Unlock()
		m.waiting = slices.DeleteFunc(m.waiting, func(v *waiter) bool { return v == w })
		return fmt.Errorf("wait for the monitor: %w", context.Cause(ctx))
	}
}

// poke asks for a round.
func (m *Monitor) poke() {
	select {
	case m.wake <- struct{}{}:
	default: // one is asked for already
	}
}

// rounds looks at all devices again and again.
func (m *Monitor) rounds(ctx context.Context) {
	m.streams = newStreams(m)
	defer m.streams.stop()
	ctx, cancel := context.WithCancel(ctx)
	defer m.errands.all.Wait()
	defer cancel()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-timer.C:
		case <-m.wake:
		case <-ctx.Done():
			return
		}
		work.Alive(ctx)
		began := time.Now()
		m.mu.Lock()
		waiting := m.waiting
		m.waiting = nil
		m.mu.Unlock()

		var err error
		known := m.o.Cluster.Snapshot() != nil
		if !known || slices.ContainsFunc(waiting, func(w *waiter) bool { return w.fresh }) {
			err = m.reload(ctx)
			known = m.o.Cluster.Snapshot() != nil
		}
		if known {
			m.round(ctx)
		}
		if ctx.Err() != nil {
			// The round is not complete: they wait for the next Run.
			m.mu.Lock()
			m.waiting = append(waiting, m.waiting...)
			m.mu.Unlock()
			return
		}
		took := time.Since(began)
		if known {
			m.metrics.round(took)
			select {
			case <-m.ready:
			default:
				close(m.ready)
			}
		}
		for _, w := range waiting {
			if w.fresh || !known {
				w.done <- err
			} else {
				w.done <- nil
			}
		}
		timer.Reset(max(0, m.o.RoundInterval-took))
	}
}

// database reads the database again and again.
func (m *Monitor) database(ctx context.Context) {
	changes := m.o.Store.Changes(ctx)
	timer := time.NewTimer(m.o.RefreshInterval) // the first round begins with reading it
	defer timer.Stop()
	for {
		select {
		case _, open := <-changes:
			if !open {
				changes = nil
				continue
			}
			if m.reload(ctx) == nil {
				m.poke() // hosts and devices may have come
			}
		case <-timer.C:
			_ = m.reload(ctx) // it has been logged
		case <-ctx.Done():
			return
		}
		timer.Reset(m.o.RefreshInterval)
	}
}

// reload reads the database. It logs when that begins to fail, and when it
// works again.
func (m *Monitor) reload(ctx context.Context) error {
	work.Alive(ctx)
	within, cancel := context.WithTimeout(ctx, databaseTimeout)
	defer cancel()
	err := m.o.Cluster.Refresh(within)
	m.heard(ctx, err)
	return err
}

// heard notes what came of a call to the database.
func (m *Monitor) heard(ctx context.Context, err error) {
	switch {
	case ctx.Err() != nil:
	case err != nil:
		m.metrics.databaseFailure()
		m.o.Notify("Cannot connect to master database!")
		if !m.outage.Swap(true) {
			m.o.Log.Error().Err(err).Msg("database does not answer: working with what is known")
		}
	case m.outage.Swap(false):
		m.o.Log.Info().Msg("database answers again")
	}
}

// roll is a random number below n.
func (m *Monitor) roll(n int) int {
	m.randMu.Lock()
	defer m.randMu.Unlock()
	return m.o.Rand.IntN(n)
}
