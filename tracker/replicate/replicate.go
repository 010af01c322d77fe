// Package replicate brings files to their class's policy: it makes the copies
// that are missing and drops those that are too many.
//
// A worker leases a fid from file_to_replicate, takes the fid's lock, reads the
// file and its locations, and asks the policy what to do until it has nothing
// more to say. What decides is in package placement; here are the steps around
// it, in an order that a crash at any point survives:
//
//   - Before bytes go to a device, an entry in copy_to_delete says so, due in a
//     minute. Recording the copy removes the entry. A copy that failed, or whose
//     tracker died, is thus deleted rather than forgotten; and one that is about
//     to be recorded is not, even if its fid's lock was lost a moment ago.
//   - A copy is recorded only if the file is still there and its locations are
//     those that the decision was made on.
//   - A surplus copy is dropped only while as many others as the class wants can
//     be read and are right, by their length and, as far as somebody can tell, by
//     their content; its row goes first, its bytes later. Files of which a copy is
//     found to be bad are queued for fsck.
//
// A move, which is a row of file_to_queue for rebalance, is one copy that is to
// leave its device. The file is brought to its policy as if that copy were not
// there, and then it is dropped if the policy is met by others that are intact;
// their content is read where none of them was copied just now.
// No file is ever worse off for a move, nor gets a copy that would not let the
// old one go. A move is tried once: who still wants it queues it again.
//
// Shards are made, rebuilt and moved by the same rules. They are announced like
// copies, made by a storage daemon that a tracker orders to, and recorded in one
// statement for all of an encoding, which is also what lets the copies go. Where a
// file is to be copies again, these are read from its shards like from any copy,
// and the statement comes when all of them are there.
//
// Copies go from device to device where they can, each device being used by a
// few at once. A file whose devices are all taken goes back to the queue and
// comes again when its turn has come, so that a device that is slow, or hangs,
// holds up only what needs it.
package replicate

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
	"golang.org/x/sync/errgroup"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/schema"
	"github.com/mogile/mogile/tracker/cluster"
	"github.com/mogile/mogile/tracker/storage"
	"github.com/mogile/mogile/tracker/work"
)

// Store is all that the worker asks of a [schema.Store].
type Store interface {
	work.Leaser
	schema.Encodings
	Finish(ctx context.Context, jobs []schema.Job) (int, error)
	Inspect(ctx context.Context, fids []protocol.FID) ([]schema.Inspected, error)
	SetChecksum(ctx context.Context, fid protocol.FID, sum protocol.Checksum) error
	AddLocation(ctx context.Context, fid protocol.FID, dev protocol.DevID, seen []protocol.DevID) error
	DropLocation(ctx context.Context, fid protocol.FID, dev protocol.DevID, seen []protocol.DevID) error
	QueueCopyDeletion(ctx context.Context, fid protocol.FID, dev protocol.DevID, what schema.What) error
	AnnounceCopy(ctx context.Context, fid protocol.FID, dev protocol.DevID, what schema.What, delay time.Duration) error
	QueueFsck(ctx context.Context, fids []protocol.FID, delay time.Duration, arg string) error
}

// Storage is all that the worker asks of storage daemons; see
// [storage.Client].
type Storage interface {
	Copy(ctx context.Context, c storage.Copy) (protocol.Checksum, error)
	CopyDirect(ctx context.Context, c storage.Copy) (protocol.Checksum, error)
	Size(ctx context.Context, url string) (int64, error)
	Encode(ctx context.Context, hostport string, o protocol.EncodeOrder, alive func()) (protocol.EncodeReport, error)
	Rebuild(ctx context.Context, hostport string, o protocol.RebuildOrder, alive func()) ([]protocol.ShardResult, protocol.RebuildReport, error)
	Place(ctx context.Context, hostport string, o protocol.PlaceOrder) ([]protocol.ShardResult, error)
	Drop(ctx context.Context, hostport string, o protocol.DropOrder) (protocol.DropReport, error)
	Verify(ctx context.Context, url string, size int64, t protocol.HashType, reason string) (storage.Verified, error)
}

// Cluster is where the worker finds what is known of devices and classes.
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

	Jobs       int           // fids worked on at once, at first; below 1 there are none
	PerDevice  int           // copies that a device is source or destination of at once; default 4
	SmallFile  int64         // up to how many bytes a file is small; default 256 KiB, below 0 none is
	MinFreeMB  int64         // space that a device must have to take a copy, in MiB
	UseGetPort bool          // read sources through the hosts' get ports
	Local      netip.Addr    // an address in the tracker's network; the zero value is in none
	Batch      int           // most rows of one claim; default 100
	Lease      time.Duration // default 120 s
	Idle       time.Duration // pause while nothing is due; default 1 s

	Rand    *rand.Rand            // the worker's own; default seeded by chance
	Outage  *work.Outage          // shared by the tracker's workers; default its own, on Log
	Numbers *work.Numbers         // shared by the tracker's pools; default its own
	Notify  func(msg string)      // gets MogileFS's messages, for !watch; may be nil; must not block
	Metrics prometheus.Registerer // where the counters are registered; may be nil
	Log     zerolog.Logger
}

// Worker is the tracker's part of all replication.
type Worker struct {
	o       Options
	pool    *work.Pool
	feed    *work.Feed    // file_to_replicate
	moves   *work.Feed    // file_to_queue, of rebalance
	devices *work.Limiter // files that are not small
	minor   *work.Limiter // small files
	shards  *work.Limiter
	small   smalls
	waiters *waiters
	metrics metrics

	siftRand *rand.Rand // sift's own: the feed runs it once at a time

	mu   sync.Mutex // guards rand
	rand *rand.Rand
}

type metrics struct {
	copies   *prometheus.CounterVec
	bytes    *prometheus.CounterVec
	seconds  prometheus.Histogram
	drops    prometheus.Counter
	outcomes *prometheus.CounterVec
	moves    *prometheus.CounterVec

	encodings *prometheus.CounterVec
	encoded   prometheus.Counter
	shards    *prometheus.CounterVec
}

func newMetrics(r prometheus.Registerer) metrics {
	m := metrics{
		copies: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "mogile_replicate_copies_total",
			Help: "Copies attempted, by result: ok, src_error, dest_error, or unrecorded where the file went or changed meanwhile. Errors mean a sick device or a corrupt copy: see the log.",
		}, []string{"result"}),
		bytes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "mogile_replicate_copied_bytes_total",
			Help: "Bytes of the copies that were made and recorded, by how: direct from device to device, which crosses the network once, or streamed through this tracker, twice. streamed where direct is expected: see docs/replication.md.",
		}, []string{"how"}),
		seconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "mogile_replicate_copy_seconds",
			Help:    "Time that each successful copy took.",
			Buckets: prometheus.ExponentialBuckets(0.004, 4, 10),
		}),
		drops: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "mogile_replicate_drops_total",
			Help: "Surplus copies taken out of the namespace.",
		}),
		outcomes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "mogile_replicate_outcomes_total",
			Help: "Fids worked on, by outcome. source_down, no_source and policy_no_suggestions mean files that are short of copies.",
		}, []string{"outcome"}),
		moves: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "mogile_replicate_moves_total",
			Help: "Moves of rebalance and drains worked on, by outcome: moved, lost_race and nofid (nothing was to do), busy and locked (tried again), would_worsen, kept and others (the copy stays).",
		}, []string{"outcome"}),
		encodings: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "mogile_replicate_encodings_total",
			Help: "Files that were to be made into shards, by result: ok, src_error, dest_error, or unrecorded where the file went or changed meanwhile. Errors mean a sick device or a corrupt copy: see the log.",
		}, []string{"result"}),
		encoded: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "mogile_replicate_encoded_bytes_total",
			Help: "Bytes of the files that were made into shards.",
		}),
		shards: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "mogile_replicate_shards_total",
			Help: "Shards that were to be rebuilt or moved, by result, as for encodings. It grows after a device is lost.",
		}, []string{"result"}),
	}
	if r != nil {
		r.MustRegister(m.copies, m.bytes, m.seconds, m.drops, m.outcomes, m.moves, m.encodings, m.encoded, m.shards)
	}
	return m
}

// New makes a worker. It does nothing before [Worker.Run].
func New(o Options) *Worker {
	if o.Outage == nil {
		o.Outage = work.NewOutage(o.Log)
	}
	if o.Rand == nil {
		o.Rand = rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64()))
	}
	if o.PerDevice <= 0 {
		o.PerDevice = 4
	}
	if o.SmallFile == 0 {
		o.SmallFile = smallFile
	}
	w := &Worker{
		o: o, rand: o.Rand, metrics: newMetrics(o.Metrics),
		devices: work.NewLimiter(o.PerDevice), minor: work.NewLimiter(smallPerCopy * o.PerDevice), shards: work.NewLimiter(shardsPerCopy * o.PerDevice), waiters: newWaiters(),
	}
	w.siftRand = w.newRand()
	w.pool = work.NewPool("replicate", o.Jobs, w.work, o.Log)
	w.pool.Notify, w.pool.Watchdog = o.Notify, watchdog
	if o.Numbers != nil {
		w.pool.Numbers = o.Numbers
	}
	feed := func(q schema.Queue, sift func(context.Context, []schema.Job) []schema.Job) *work.Feed {
		return work.NewFeed(work.FeedOptions{
			Store:  o.Store,
			Queue:  q,
			Sift:   sift,
			Batch:  o.Batch,
			Lease:  o.Lease,
			Idle:   o.Idle,
			Pool:   w.pool,
			Outage: o.Outage,
			Rand:   w.newRand(),
			Log:    o.Log,
		})
	}
	w.feed, w.moves = feed(schema.QueueReplicate, w.sift), feed(schema.QueueRebalance, nil)
	return w
}

// newRand is a source of chance for one goroutine.
func (w *Worker) newRand() *rand.Rand {
	w.mu.Lock()
	defer w.mu.Unlock()
	return rand.New(rand.NewPCG(w.rand.Uint64(), w.rand.Uint64()))
}

// Pool is the set of workers, for the console.
func (w *Worker) Pool() *work.Pool { return w.pool }

// Stats are how many fids are claimed and wait for a worker, and how many were
// handed to one so far.
func (w *Worker) Stats() (queued int, sent uint64) { return w.feed.Stats() }

// MoveStats are Stats of moves.
func (w *Worker) MoveStats() (queued int, sent uint64) { return w.moves.Stats() }

// Run works until ctx is cancelled. Copies that are being made then are broken
// off and their fids given back to other trackers. It returns nil.
func (w *Worker) Run(ctx context.Context) error {
	keep, stop := context.WithCancel(context.WithoutCancel(ctx))
	var g errgroup.Group
	g.Go(func() error { return w.feed.Run(keep) })
	g.Go(func() error { return w.moves.Run(keep) })
	g.Go(func() error {
		defer stop() // leases are kept until the last worker is done
		return w.pool.Run(ctx)
	})
	return g.Wait()
}

// watchdog is how long a worker may give no sign of life (MogileFS 2.73). What
// it waits for in good order, a database or a storage daemon, takes less, or
// shows that it gets on.
const watchdog = 90 * time.Second

// work is one worker. It works on one file at a time, or several small ones. What a client waits for goes before what is queued, and
// what clients and failures have queued before moves.
func (w *Worker) work(ctx context.Context, id int) (err error) {
	hard := work.InProgress(ctx)
	rng := w.newRand()
	small := w.newTogether()
	defer func() { err = errors.Join(err, small.wait()) }()
	for ctx.Err() == nil {
		work.Alive(ctx)
		if fid, ok := w.waiters.next(); ok {
			w.handleUrgent(hard, id, rng, fid)
		} else if leases := w.feed.Take(ctx, 1); len(leases) > 0 {
			lease := leases[0]
			if !w.small.take(lease.Job().FID) {
				w.handle(hard, id, rng, lease)
			} else if err := small.do(func(rng *rand.Rand) { w.handle(hard, id, rng, lease) }); err != nil {
				return err
			}
		} else if leases := w.moves.Take(ctx, 1); len(leases) > 0 {
			w.handleMove(hard, id, rng, leases[0])
		} else {
			work.WaitOr(ctx, w.waiters.ready, w.feed, w.moves)
		}
	}
	return nil
}

// outcome is how work on a fid ended, named as in MogileFS where it has the
// same.
type outcome string

const (
	replicated   outcome = "replicated"
	reduced      outcome = "reduced"   // surplus copies were dropped
	lostRace     outcome = "lost_race" // there was nothing to do
	noFID        outcome = "nofid"
	locked       outcome = "locked"
	busy         outcome = "busy" // its devices are used to their limits by other copies
	noSource     outcome = "no_source"
	sourceDown   outcome = "source_down"
	noSuggestion outcome = "policy_no_suggestions"
	tooHappy     outcome = "too_happy" // surplus that cannot go now
	failed       outcome = "error"
	interrupted  outcome = "interrupted" // the tracker stops, or lost the lock
)

// settleTimeout bounds noting that a fid was too much for its worker.
const settleTimeout = 5 * time.Second

// outagePause is how long a worker that met an absent database does nothing.
const outagePause = time.Second

// handle works on one leased fid and does with its row what the outcome asks
// for.
func (w *Worker) handle(ctx context.Context, id int, rng *rand.Rand, lease *work.Lease) {
	defer lease.End() // also where the work panics: the row comes back when the lease is over
	job := lease.Job()
	e, err := w.replicate(ctx, id, rng, job)
	w.metrics.outcomes.WithLabelValues(string(e.outcome)).Inc()
	w.waiters.tell(job.FID, e.outcome)
	switch {
	case e.outcome != failed:
	case errors.Is(err, schema.ErrUnavailable):
		w.o.Outage.Failed(err)
		w.giveBackAfterOutage(ctx, lease)
		return
	default:
		log := w.pool.Log(id)
		log.Error().Err(err).Uint64("fid", uint64(job.FID)).Msg("replication failed")
		w.notify(id, "Failed replicating fid %d: %v", job.FID, err)
	}
	if err := w.settle(ctx, rng, lease, e); errors.Is(err, schema.ErrUnavailable) {
		w.o.Outage.Failed(err)
		w.giveBackAfterOutage(ctx, lease) // what was done already is found done
	} else if err != nil {
		w.o.Log.Warn().Err(err).Uint64("fid", uint64(job.FID)).Msg("replication queue not updated, the fid comes back when its lease is over")
	}
}

// giveBackAfterOutage makes a row due again when the database is back, rather
// than when its lease is over. Until then the worker has nothing else to do.
func (w *Worker) giveBackAfterOutage(ctx context.Context, lease *work.Lease) {
	for since := time.Duration(0); since < work.LeaseTime && ctx.Err() == nil; since += outagePause {
		work.Pause(ctx, outagePause)
		work.Alive(ctx)
		err := lease.GiveBack(ctx, work.LockedDelay)
		if !errors.Is(err, schema.ErrUnavailable) {
			if err != nil {
				w.o.Log.Warn().Err(err).Uint64("fid", uint64(lease.Job().FID)).Msg("a row is not given back before its lease is over")
			}
			return
		}
		w.o.Outage.Failed(err)
	}
}

// settle finishes or reschedules the row.
func (w *Worker) settle(ctx context.Context, rng *rand.Rand, lease *work.Lease, e end) error {
	if e.outcome == failed && ctx.Err() != nil { // the watchdog's doing: the fid is to wait, and not to be next again
		late, cancel := context.WithTimeout(context.WithoutCancel(ctx), settleTimeout)
		defer cancel()
		ctx = late
	}
	switch e.outcome {
	case interrupted:
		return lease.GiveBack(ctx, 0)
	case busy:
		return lease.GiveBack(ctx, e.wait)
	case locked:
		return lease.GiveBack(ctx, work.LockedDelay)
	case replicated, reduced, lostRace, noFID:
		_, err := w.o.Store.Finish(ctx, []schema.Job{lease.End()})
		return err
	}
	delay := work.Backoff(e.retries, rng)
	if e.outcome == noSource {
		delay = schema.EndOfTime * time.Second
	}
	_, err := w.o.Store.Reschedule(ctx, lease.End(), delay, work.Failed(e.retries))
	return err
}

// notify sends one of MogileFS's messages to watchers.
func (w *Worker) notify(id int, format string, args ...any) {
	if w.o.Notify != nil {
		w.o.Notify(fmt.Sprintf("[replicate(%d)] ", id) + fmt.Sprintf(format, args...))
	}
}
