// Package deleter removes the bytes of files that are gone, of copies that are
// too many, and of uploads that nobody closed.
//
// It works three queues: file_to_delete2 (fids whose every copy must go),
// copy_to_delete (single copies), and, emptied into the first, the tables of
// MogileFS before 2.40. Work on a fid holds its lock, and what must go is looked
// up again under it: a fid that has a file row, or a copy that is recorded in
// file_on, is never touched. The bytes go first and the row after them, so that
// a crash costs a second DELETE, which finds nothing.
//
// # Bad copies
//
// Bytes that are not what they should be are evidence, and may be all that is
// left of a file: they are moved to the trash of their device, and stay where
// they are if its daemon has none. Only those of files that are gone are
// deleted.
//
// # Shards
//
// A device may have a copy of a file and a shard of it, of which one is recorded:
// whichever is to go is dropped by an order that names it. A file that is gone has
// both of them deleted by one DELETE.
//
// # Uploads that arrive late
//
// An upload may still be running when it is given up for abandoned, or when its
// device has answered that there is nothing to delete; its bytes would then lie
// on the device for ever. Where no device had anything of a fid, entries in
// copy_to_delete make the worker ask the devices again, at once and after 1, 6
// and 24 times the age at which uploads are given up.
package deleter

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
	"golang.org/x/sync/errgroup"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/schema"
	"github.com/mogile/mogile/tracker/cluster"
	"github.com/mogile/mogile/tracker/work"
)

// Store is all that the worker asks of a [schema.Store].
type Store interface {
	work.Leaser
	Finish(ctx context.Context, jobs []schema.Job) (int, error)
	FinishDeletion(ctx context.Context, job schema.Job) (bool, error)
	FilesByFID(ctx context.Context, fids []protocol.FID) ([]schema.LocatedFile, error)
	LocationsOf(ctx context.Context, fids []protocol.FID) (map[protocol.FID][]protocol.DevID, error)
	EncodingsOf(ctx context.Context, fids []protocol.FID) (map[protocol.FID]schema.Encoding, error)
	DeletedLocations(ctx context.Context, fid protocol.FID, devs []protocol.DevID) error
	QueueCopyDeletion(ctx context.Context, fid protocol.FID, dev protocol.DevID, what schema.What) error
	AdoptOldDeletions(ctx context.Context, limit int) (int, error)
	ExpireTempfiles(ctx context.Context, age time.Duration, limit int) (schema.Expired, error)
}

// Storage is all that the worker asks of storage daemons; see
// [github.com/mogile/mogile/tracker/storage.Client].
type Storage interface {
	Delete(ctx context.Context, url string) error
	Drop(ctx context.Context, hostport string, o protocol.DropOrder) (protocol.DropReport, error)
	Trash(ctx context.Context, hostport string, o protocol.TrashOrder) (map[protocol.FID]protocol.TrashResult, error)
}

// Cluster is where the worker finds what is known of devices.
type Cluster interface {
	Snapshot() *cluster.Snapshot
}

// Options are a worker's settings. Store, Cluster, Storage and Fids must be
// set.
type Options struct {
	Store   Store
	Cluster Cluster
	Storage Storage
	Fids    *work.FIDLocks // shared by all workers of the tracker

	Jobs        int           // workers at first, each of which does a batch at a time; below 1 there are none
	PerDevice   int           // requests to one device at once; default 8
	TempfileAge time.Duration // after which an upload that nobody closed is given up; default an hour
	Lease       time.Duration // default 120 s
	Idle        time.Duration // pause while nothing is due; default 1 s

	Rand    *rand.Rand            // the worker's own; default seeded by chance
	Outage  *work.Outage          // shared by the tracker's workers; default its own, on Log
	Numbers *work.Numbers         // shared by the tracker's pools; default its own
	Notify  func(msg string)      // gets MogileFS's messages, for !watch; may be nil; must not block
	Metrics prometheus.Registerer // where the counters are registered; may be nil
	Log     zerolog.Logger
}

// batchSize is how many rows one worker does at once.
const batchSize = 64

// Worker is the tracker's part of all deletion.
type Worker struct {
	o       Options
	pool    *work.Pool
	files   *work.Feed // file_to_delete2
	copies  *work.Feed // copy_to_delete
	devices *work.Limiter
	metrics metrics
	chores  chores

	mu   sync.Mutex // guards rand
	rand *rand.Rand
}

type metrics struct {
	copies  *prometheus.CounterVec
	fids    prometheus.Counter
	uploads prometheus.Counter
	adopted prometheus.Counter
}

func newMetrics(r prometheus.Registerer) metrics {
	m := metrics{
		copies: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "mogile_delete_copies_total",
			Help: "Copies to delete, by result: deleted, missing (nothing was there), forgotten (the device is dead or unknown), wanted (it is recorded again), trashed (bad content, put aside on its device), kept (bad content, and the storage daemon has no trash; or a shard of another encoding than was to go), failed, deferred (the device is away or lets nothing be deleted).",
		}, []string{"result"}),
		fids: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "mogile_delete_fids_total",
			Help: "Fids whose every copy is gone.",
		}),
		uploads: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "mogile_delete_expired_uploads_total",
			Help: "Uploads that nobody closed, given up. Clients that die, or do not close what they open, make it grow.",
		}),
		adopted: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "mogile_delete_adopted_total",
			Help: "Fids moved over from the queues of MogileFS before 2.40.",
		}),
	}
	if r != nil {
		r.MustRegister(m.copies, m.fids, m.uploads, m.adopted)
	}
	return m
}

// New makes a worker. It does nothing before [Worker.Run].
func New(o Options) *Worker {
	if o.PerDevice <= 0 {
		o.PerDevice = 8
	}
	if o.TempfileAge <= 0 {
		o.TempfileAge = time.Hour // MogileFS 2.73
	}
	if o.Outage == nil {
		o.Outage = work.NewOutage(o.Log)
	}
	if o.Rand == nil {
		o.Rand = rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64()))
	}
	w := &Worker{o: o, rand: o.Rand, metrics: newMetrics(o.Metrics), devices: work.NewLimiter(o.PerDevice)}
	w.pool = work.NewPool("delete", o.Jobs, w.work, o.Log)
	w.pool.Notify, w.pool.Watchdog = o.Notify, watchdog
	if o.Numbers != nil {
		w.pool.Numbers = o.Numbers
	}
	feed := func(q schema.Queue) *work.Feed {
		return work.NewFeed(work.FeedOptions{
			Store:  o.Store,
			Queue:  q,
			Batch:  4 * batchSize,
			Lease:  o.Lease,
			Idle:   o.Idle,
			Pool:   w.pool,
			Outage: o.Outage,
			Rand:   w.newRand(),
			Log:    o.Log,
		})
	}
	w.files, w.copies = feed(schema.QueueDelete), feed(schema.QueueCopyDelete)
	return w
}

// newRand is a source of chance for one goroutine.
func (w *Worker) newRand() *rand.Rand {
	w.mu.Lock()
	defer w.mu.Unlock()
	return rand.New(rand.NewPCG(w.rand.Uint64(), w.rand.Uint64()))
}

func (w *Worker) copyDelay(failcount int) time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	return work.CopyDelay(failcount, w.rand)
}

// Pool is the set of workers, for the console.
func (w *Worker) Pool() *work.Pool { return w.pool }

// Stats are how many fids are claimed and wait for a worker, and how many were
// handed to one so far.
func (w *Worker) Stats() (queued int, sent uint64) { return w.files.Stats() }

// Run works until ctx is cancelled; what was not finished then is given back to
// other trackers. It returns nil.
func (w *Worker) Run(ctx context.Context) error {
	keep, stop := context.WithCancel(context.WithoutCancel(ctx))
	var g errgroup.Group
	g.Go(func() error { return w.files.Run(keep) })
	g.Go(func() error { return w.copies.Run(keep) })
	g.Go(func() error {
		defer stop() // leases are kept until the last worker is done
		return w.pool.Run(ctx)
	})
	return g.Wait()
}

// watchdog is how long a worker may give no sign of life (MogileFS 2.73).
const watchdog = 120 * time.Second

// errorPause is how long a worker does nothing after an error of the database.
const errorPause = time.Second

// work is one worker.
func (w *Worker) work(ctx context.Context, id int) error {
	hard := work.InProgress(ctx) // what is begun is finished
	rng := w.newRand()
	for ctx.Err() == nil {
		work.Alive(ctx)
		w.doChores(hard, rng)
		files := w.files.Take(ctx, batchSize)
		copies := w.copies.Take(ctx, batchSize)
		if len(files) == 0 && len(copies) == 0 {
			work.Wait(ctx, w.files, w.copies)
			continue
		}
		var g errgroup.Group
		g.Go(func() error { return w.deleteFiles(hard, files) })
		g.Go(func() error { return w.deleteCopies(hard, copies) })
		err := g.Wait()
		if err == nil || hard.Err() != nil {
			continue
		}
		if errors.Is(err, schema.ErrUnavailable) {
			w.o.Outage.Failed(err)
		} else {
			log := w.pool.Log(id)
			log.Error().Err(err).Msg("deletion failed, the rows come back when their leases are over")
		}
		work.Pause(ctx, errorPause)
	}
	return nil
}

// chores are what one worker of the tracker does from time to time.
type chores struct {
	mu    sync.Mutex // held by the worker that does them
	next  time.Time
	adopt time.Time     // when the old queues are looked at again
	quiet time.Duration // since they were found empty
}

const (
	choreInterval = 5 * time.Second
	maxAdoptPause = 30 * time.Minute
	choreLimit    = 500 // rows of one statement
)

// doChores gives abandoned uploads up and empties the old queues, unless
// another worker does so or it was done a moment ago.
func (w *Worker) doChores(ctx context.Context, rng *rand.Rand) {
	c := &w.chores
	if !c.mu.TryLock() {
		return
	}
	defer c.mu.Unlock()
	if time.Now().Before(c.next) {
		return
	}
	c.next = time.Now().Add(time.Duration(float64(choreInterval) * (0.8 + 0.4*rng.Float64())))
	err := w.expireUploads(ctx)
	if err == nil {
		err = w.adoptOld(ctx)
	}
	if errors.Is(err, schema.ErrUnavailable) {
		w.o.Outage.Failed(err)
	} else if err != nil && ctx.Err() == nil {
		w.o.Log.Error().Err(err).Msg("abandoned uploads not given up")
	}
}

func (w *Worker) expireUploads(ctx context.Context) error {
	for ctx.Err() == nil {
		work.Alive(ctx)
		n, err := w.o.Store.ExpireTempfiles(ctx, w.o.TempfileAge, choreLimit)
		if err != nil {
			return err
		}
		w.metrics.uploads.Add(float64(n.Discard))
		if n.Discard > 0 {
			w.o.Log.Info().Int("uploads", n.Discard).Dur("age", w.o.TempfileAge).Msg("uploads that nobody closed are given up")
		}
		if n.Closed+n.Discard < choreLimit {
			return nil
		}
	}
	return ctx.Err()
}

// adoptOld empties the old queues, less and less often while they are empty:
// nothing but a MogileFS of long ago fills them.
func (w *Worker) adoptOld(ctx context.Context) error {
	c := &w.chores
	if time.Now().Before(c.adopt) {
		return nil
	}
	for ctx.Err() == nil {
		work.Alive(ctx)
		n, err := w.o.Store.AdoptOldDeletions(ctx, choreLimit)
		if err != nil {
			return err
		}
		w.metrics.adopted.Add(float64(n))
		if n > 0 {
			c.quiet = 0
			w.o.Log.Info().Int("fids", n).Msg("deletions of an older MogileFS taken over")
		}
		if n < choreLimit {
			break
		}
	}
	c.quiet = min(max(2*c.quiet, choreInterval), maxAdoptPause)
	c.adopt = time.Now().Add(c.quiet)
	return ctx.Err()
}
