// Package reap takes files off devices that are dead: each is queued for
// replication, and its location is forgotten.
//
// A device is left alone for some seconds after it was found dead, so that
// other trackers and their memories learn of it. Any number of trackers may
// run reapers: a lease lets one of them work at a time, so that the settings
// that limit the rate hold for the cluster; when it is gone another goes on.
// There is nothing to resume: what is left to do is what the database has.
package reap

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/schema"
	"github.com/mogile/mogile/tracker/cluster"
	"github.com/mogile/mogile/tracker/work"
)

// Store is all that the reaper asks of a [schema.Store].
type Store interface {
	Reap(ctx context.Context, dev protocol.DevID, limit int) (int, error)
	HoldLease(ctx context.Context, name, owner string, ttl time.Duration) (bool, error)
	ReleaseLease(ctx context.Context, name, owner string) error
}

// Options are a reaper's settings. Store, Cluster, Queues and Name must be set.
type Options struct {
	Store   Store
	Cluster interface{ Snapshot() *cluster.Snapshot }
	// Queues counts the rows of the queues, not more often than is good for the
	// database.
	Queues func(ctx context.Context) (map[schema.Queue]int64, error)
	Name   string // of this tracker

	Jobs  int           // workers at first, of which one works; below 1 there are none
	Delay time.Duration // from when a device is seen dead; default 16 s (MogileFS 2.73)

	Outage  *work.Outage          // shared by the tracker's workers; default its own, on Log
	Numbers *work.Numbers         // shared by the tracker's pools; default its own
	Notify  func(msg string)      // gets MogileFS's messages, for !watch; may be nil; must not block
	Metrics prometheus.Registerer // where the counters are registered; may be nil
	Log     zerolog.Logger
}

// Settings in server_settings, of MogileFS 2.73.
const (
	// SettingRate is the most files of one batch. Where it is set, batches are
	// 5 s apart.
	SettingRate = "queue_rate_for_reaper"
	// SettingSize is how many rows the replication queue may have before the
	// reaper waits.
	SettingSize = "queue_size_for_reaper"
)

const (
	defaultDelay = 16 * time.Second
	defaultRate  = 1000 // files of a batch (MogileFS 2.73)
	// defaultSize is how many rows of the replication queue are enough for its
	// workers, where no setting says otherwise: batches follow each other as fast
	// as they are used up, and those that clients add do not wait behind
	// millions.
	defaultSize = 10_000

	lookPause   = 5 * time.Second // between looks for dead devices, and batches of a rate that is set
	fullPause   = time.Second     // while the queue is full
	firstRest   = 60 * time.Second
	longestRest = 7200 * time.Second

	lease        = "reaper"
	leaseTime    = 30 * time.Second
	watchdog     = 240 * time.Second // MogileFS 2.73
	storeTimeout = 60 * time.Second
)

// Reaper is the tracker's part of all reaping.
type Reaper struct {
	o       Options
	pool    *work.Pool
	files   prometheus.Counter
	working chan struct{} // of capacity 1: held by the worker that works

	mu    sync.Mutex // guards what follows
	known map[protocol.DevID]*device
}

// device is a dead device.
type device struct {
	next  time.Time     // when it is looked at again
	rest  time.Duration // how long it was left alone the last time, for it had no files
	files int           // taken off it so far
	began time.Time
}

// New makes a reaper. It does nothing before [Reaper.Run].
func New(o Options) *Reaper {
	if o.Delay <= 0 {
		o.Delay = defaultDelay
	}
	if o.Outage == nil {
		o.Outage = work.NewOutage(o.Log)
	}
	r := &Reaper{
		o:       o,
		working: make(chan struct{}, 1),
		known:   make(map[protocol.DevID]*device),
		files: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "mogile_reap_files_total",
			Help: "Locations on dead devices that were forgotten, and their files queued for replication.",
		}),
	}
	if o.Metrics != nil {
		o.Metrics.MustRegister(r.files)
	}
	r.pool = work.NewPool("reaper", o.Jobs, r.work, o.Log)
	r.pool.Notify, r.pool.Watchdog = o.Notify, watchdog
	if o.Numbers != nil {
		r.pool.Numbers = o.Numbers
	}
	return r
}

// Pool is the set of workers, for the console.
func (r *Reaper) Pool() *work.Pool { return r.pool }

// Run works until ctx is cancelled, and gives the lease up then.
func (r *Reaper) Run(ctx context.Context) error {
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		if err := r.o.Store.ReleaseLease(ctx, lease, r.o.Name); err != nil {
			r.o.Log.Debug().Err(err).Msg("the reaper's lease is not given up, it ends by itself")
		}
	}()
	return r.pool.Run(ctx)
}

// work is one worker.
func (r *Reaper) work(ctx context.Context, id int) error {
	for ctx.Err() == nil {
		work.Alive(ctx)
		pause := lookPause
		select {
		case r.working <- struct{}{}:
			var err error
			pause, err = r.pass(ctx, id)
			<-r.working
			switch {
			case err == nil, ctx.Err() != nil:
			case errors.Is(err, schema.ErrUnavailable):
				r.o.Outage.Failed(err)
			default:
				log := r.pool.Log(id)
				log.Error().Err(err).Msg("dead devices are not reaped, it is tried again")
			}
		default: // another worker of this tracker is at it
		}
		work.Pause(ctx, pause)
	}
	return nil
}

// pass takes a batch off each dead device whose time has come. It returns how
// long to pause.
func (r *Reaper) pass(ctx context.Context, id int) (time.Duration, error) {
	snap := r.o.Cluster.Snapshot()
	if snap == nil {
		return lookPause, nil
	}
	now := time.Now()
	due := r.due(snap, now)
	if len(due) == 0 {
		return r.untilDue(now), nil
	}
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	ours, err := r.o.Store.HoldLease(ctx, lease, r.o.Name, leaseTime)
	if err != nil {
		return lookPause, fmt.Errorf("hold the reaper's lease: %w", err)
	}
	if !ours {
		return lookPause, nil
	}
	limits := limitsOf(snap.Settings)
	rows, err := r.o.Queues(ctx)
	if err != nil {
		return lookPause, fmt.Errorf("count what is queued for replication: %w", err)
	}
	limit := limits.batch(rows[schema.QueueReplicate])
	if limit == 0 {
		return fullPause, nil
	}
	took := 0
	for _, dev := range due {
		if took >= limit {
			break
		}
		n, err := r.o.Store.Reap(ctx, dev, limit-took)
		if errors.Is(err, schema.ErrStale) { // it is not dead any more
			r.forget(dev)
			continue
		}
		if err != nil {
			return lookPause, fmt.Errorf("reap dev%d: %w", dev, err)
		}
		took += n
		r.files.Add(float64(n))
		r.took(dev, n, id)
	}
	if took == 0 || limits.paced {
		return lookPause, nil
	}
	return 0, nil
}

// due are the dead devices to look at now, ascending. Those that are dead no
// more are forgotten.
func (r *Reaper) due(snap *cluster.Snapshot, now time.Time) []protocol.DevID {
	r.mu.Lock()
	defer r.mu.Unlock()
	for dev := range r.known {
		if d := snap.Device(dev); d == nil || !d.Dead() {
			delete(r.known, dev)
		}
	}
	var due []protocol.DevID
	for _, d := range snap.DeviceList {
		if !d.Dead() {
			continue
		}
		k := r.known[d.ID]
		if k == nil {
			k = &device{next: now.Add(r.o.Delay)}
			r.known[d.ID] = k
		}
		if !now.Before(k.next) {
			due = append(due, d.ID)
		}
	}
	return due
}

// untilDue is how long to pause before devices are looked for again.
func (r *Reaper) untilDue(now time.Time) time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	pause := lookPause
	for _, k := range r.known {
		pause = min(pause, max(k.next.Sub(now), time.Millisecond))
	}
	return pause
}

func (r *Reaper) forget(dev protocol.DevID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.known, dev)
}

// took notes what a batch brought: a device without files is left alone for
// ever longer, up to two hours. Files may still be recorded on it by uploads
// and copies that were under way.
func (r *Reaper) took(dev protocol.DevID, n, id int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	k := r.known[dev]
	if k == nil {
		return
	}
	now := time.Now()
	log := r.pool.Log(id).With().Uint32("devid", uint32(dev)).Logger()
	if n > 0 {
		if k.files == 0 {
			k.began = now
			log.Info().Msg("files of a dead device are queued for replication")
		}
		k.files += n
		k.rest = 0
		return
	}
	if k.files > 0 {
		log.Info().Int("files", k.files).Dur("took", now.Sub(k.began)).Msg("no file is recorded on a dead device any more")
		k.files = 0
	}
	k.rest = min(max(2*k.rest, firstRest), longestRest)
	k.next = now.Add(k.rest)
}

// limits are what server_settings say of the reaper's pace.
type limits struct {
	rate  int64
	size  int64
	paced bool // the operator chose the rate
}

func limitsOf(settings map[string]string) limits {
	l := limits{rate: defaultRate, size: defaultSize}
	if n, ok := positive(settings[SettingRate]); ok {
		l.rate, l.paced = n, true
	}
	if n, ok := positive(settings[SettingSize]); ok {
		l.size = n
	}
	return l
}

// positive reads a number above 0; anything else is no setting.
func positive(s string) (int64, bool) {
	n, err := strconv.ParseInt(s, 10, 32)
	return n, err == nil && n > 0
}

// batch is how many files may be taken off devices now, with that many rows
// queued for replication.
func (l limits) batch(queued int64) int { return int(max(0, min(l.rate, l.size-queued))) }
