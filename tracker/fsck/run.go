package fsck

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime/debug"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/schema"
	"github.com/mogile/mogile/tracker/cluster"
	"github.com/mogile/mogile/tracker/work"
)

// FileChecker is what checks files: [Checker].
type FileChecker interface {
	Check(ctx context.Context, files []schema.LocatedFile, m Mode) (schema.Tally, []protocol.FID, error)
}

var _ FileChecker = (*Checker)(nil)

// Ledger is where the states of sweeps are read and changed.
type Ledger interface {
	Topology(ctx context.Context) (schema.TopologyRows, error)
	HighestFID(ctx context.Context) (inFile, issued protocol.FID, err error)
	LastFsckEvent(ctx context.Context) (int64, error)
	ChangeSettings(ctx context.Context, change schema.SettingsChange) error
}

// RunStore is all that a [Worker] asks of a [schema.Store].
type RunStore interface {
	work.Leaser
	Ledger
	Finish(ctx context.Context, jobs []schema.Job) (int, error)
	FilesByFID(ctx context.Context, fids []protocol.FID) ([]schema.LocatedFile, error)
	Settings(ctx context.Context) (map[string]string, error)
	Trackers(ctx context.Context) ([]schema.Tracker, error)
	HoldLease(ctx context.Context, name, owner string, ttl time.Duration) (bool, error)
	ClaimRange(ctx context.Context, s schema.Sweep, limit int, lease time.Duration) (schema.Range, bool, error)
	RenewRange(ctx context.Context, r schema.Range, lease time.Duration) (schema.Range, bool, error)
	FinishRange(ctx context.Context, r schema.Range, t schema.Tally) (bool, error)
	ReleaseRange(ctx context.Context, r schema.Range) error
	Ranges(ctx context.Context, s schema.Sweep) (ranges, files int64, err error)
	FilesIn(ctx context.Context, first, last protocol.FID, limit int) ([]schema.LocatedFile, error)
	QueueFsck(ctx context.Context, fids []protocol.FID, delay time.Duration, arg string) error
	FoldFsckLog(ctx context.Context) error
}

// Options are a [Worker]'s settings. Store, Cluster, Checker and Name must be
// set.
type Options struct {
	Store   RunStore
	Cluster interface{ Snapshot() *cluster.Snapshot }
	Checker FileChecker
	Name    string // of this tracker

	Jobs  int           // ranges checked at once, at first; below 1 there are none
	Lease time.Duration // of a range, and of a row; default 120 s
	Idle  time.Duration // pause while there is nothing to claim; default 1 s
	// Bandwidth is what the checker reads by: its limit is kept to the cluster's
	// setting. May be nil.
	Bandwidth *rate.Limiter
	// Queues counts the rows of the queues, not more often than is good for the
	// database. May be nil.
	Queues func(ctx context.Context) (map[schema.Queue]int64, error)
	// Changed is called after a sweep was started or ended. May be nil.
	Changed func(ctx context.Context)

	Rand    *rand.Rand            // the worker's own; default seeded by chance
	Outage  *work.Outage          // shared by the tracker's workers; default its own, on Log
	Numbers *work.Numbers         // shared by the tracker's pools; default its own
	Notify  func(msg string)      // gets MogileFS's messages, for !watch; may be nil; must not block
	Metrics prometheus.Registerer // where the counters are registered; may be nil
	Log     zerolog.Logger
}

const (
	// RecheckDelay is when a file that could not be checked is looked at again
	// (MogileFS 2.73).
	RecheckDelay = 1000 * time.Second
	// runWatchdog is how long a worker may give no sign of life (MogileFS 2.73).
	runWatchdog = 120 * time.Second

	maxRange     = 1000            // most files of a range
	firstRange   = 64              // files of the first; later ones adapt
	shortRange   = 2 * time.Second // ranges that take less grow
	longRange    = 15 * time.Second
	pageFiles    = 500 // files read and checked at once
	recheckFiles = 50  // rows of the queue taken at once (MogileFS 2.73)
	storeTimeout = 10 * time.Second
	failurePause = time.Second
	chorePause   = 5 * time.Second
	stopPause    = 2 * time.Second // how soon a scrub that was stopped is noticed
	memberPause  = 10 * time.Second
	// memberSilence is after what time a tracker that did not register again is
	// not counted.
	memberSilence = 30 * time.Second
	// turnTime is how long a tracker has for a claim that is its turn.
	turnTime = 10 * time.Second
)

// Worker is the tracker's part of all checking: it claims ranges of the sweeps
// that run, and rows of the queue for files that could not be checked before,
// and has them checked. See the package's description of sweeps.
type Worker struct {
	o     Options
	pool  *work.Pool
	feed  *work.Feed
	lanes []*lane
	ran   runMetrics
	sent  atomic.Uint64 // files taken to be checked
	turns atomic.Uint64 // tells apart the turns that this tracker takes

	chore  chan struct{} // of capacity 1: held by the worker that does the chores
	chores time.Time     // when they are done next; guarded by chore

	mu        sync.Mutex // guards what follows
	rand      *rand.Rand
	members   []schema.Tracker
	membersAt time.Time
}

// lane is what a tracker keeps of a sweep.
type lane struct {
	sweep schema.Sweep
	claim chan struct{} // of capacity 1: held by the worker that claims

	mu   sync.Mutex // guards what follows
	next time.Time  // no claim before this
	size int        // files of the next range
	full bool       // too many files wait to be checked again
}

func (l *lane) pause(d time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.next = time.Now().Add(d)
}

func (l *lane) due() time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.next
}

func (l *lane) limit() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.size
}

// took adapts the size of ranges to what the last one took.
func (l *lane) took(r schema.Range, d time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case d < shortRange && r.Files >= l.size:
		l.size = min(2*l.size, maxRange)
	case d > longRange:
		l.size = max(1, min(l.size, r.Files)/2)
	}
}

// setFull reports whether that is news.
func (l *lane) setFull(full bool) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	was := l.full
	l.full = full
	return was != full
}

type runMetrics struct {
	ranges *prometheus.CounterVec
}

// How ranges end, for statistics.
const (
	rangeFinished = "finished"
	rangeLost     = "lost"
	rangeReleased = "released"
	rangeFailed   = "failed"
)

func (w *Worker) measure(r prometheus.Registerer) {
	w.ran.ranges = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "mogile_fsck_ranges_total",
		Help: "Ranges of files claimed, by what became of them: finished, released (given back), lost (the lease ended before; another tracker checks them again), failed (see the log).",
	}, []string{"sweep", "result"})
	if r == nil {
		return
	}
	r.MustRegister(w.ran.ranges)
	for _, s := range []schema.Sweep{schema.SweepFsck, schema.SweepScrub} {
		state := func() State {
			if snap := w.o.Cluster.Snapshot(); snap != nil {
				return StateOf(s, snap.Settings)
			}
			return State{}
		}
		labels := prometheus.Labels{"sweep": string(s)}
		r.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "mogile_fsck_running", ConstLabels: labels,
			Help: "1 while the sweep runs, on whatever trackers.",
		}, func() float64 {
			if state().Running() {
				return 1
			}
			return 0
		}), prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "mogile_fsck_done_ratio", ConstLabels: labels,
			Help: "How much of the sweep is claimed, from 0 to 1. One that runs and does not move waits for devices, its limits, or its pace.",
		}, func() float64 { return state().Done() }))
	}
}

// Done is how much of the sweep is claimed, from 0 to 1, by numbers of files.
func (st State) Done() float64 {
	if st.End == 0 {
		return 0
	}
	return min(1, float64(st.Position)/float64(st.End))
}

// New makes a worker. It does nothing before [Worker.Run].
func New(o Options) *Worker {
	if o.Lease <= 0 {
		o.Lease = work.LeaseTime
	}
	if o.Idle <= 0 {
		o.Idle = time.Second
	}
	if o.Outage == nil {
		o.Outage = work.NewOutage(o.Log)
	}
	if o.Rand == nil {
		o.Rand = rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64()))
	}
	w := &Worker{o: o, rand: o.Rand, chore: make(chan struct{}, 1)}
	for _, s := range []schema.Sweep{schema.SweepFsck, schema.SweepScrub} {
		w.lanes = append(w.lanes, &lane{sweep: s, claim: make(chan struct{}, 1), size: firstRange})
	}
	w.measure(o.Metrics)
	w.pool = work.NewPool("fsck", o.Jobs, w.work, o.Log)
	w.pool.Notify, w.pool.Watchdog = o.Notify, runWatchdog
	if o.Numbers != nil {
		w.pool.Numbers = o.Numbers
	}
	w.feed = work.NewFeed(work.FeedOptions{
		Store:  o.Store,
		Queue:  schema.QueueFsck,
		Batch:  4 * recheckFiles,
		Lease:  o.Lease,
		Idle:   o.Idle,
		Pool:   w.pool,
		Outage: o.Outage,
		Rand:   rand.New(rand.NewPCG(o.Rand.Uint64(), o.Rand.Uint64())),
		Log:    o.Log,
	})
	return w
}

// Pool is the set of workers, for the console.
func (w *Worker) Pool() *work.Pool { return w.pool }

// Sent is how many files were handed to workers so far.
func (w *Worker) Sent() uint64 { return w.sent.Load() }

// Run works until ctx is cancelled; what was not finished then is given back to
// other trackers. It returns nil.
func (w *Worker) Run(ctx context.Context) error {
	keep, stop := context.WithCancel(context.WithoutCancel(ctx))
	var g errgroup.Group
	g.Go(func() error { return w.feed.Run(keep) })
	g.Go(func() error {
		defer stop() // leases are kept until the last worker is done
		return w.pool.Run(ctx)
	})
	return g.Wait()
}

// jitter is d times a factor from 0.8 to 1.2.
func (w *Worker) jitter(d time.Duration) time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	return time.Duration(float64(d) * (0.8 + 0.4*w.rand.Float64()))
}

// work is one worker.
func (w *Worker) work(ctx context.Context, id int) error {
	hard := work.InProgress(ctx) // what is begun is finished
	for n := 0; ctx.Err() == nil; n++ {
		work.Alive(ctx)
		busy, err := w.step(ctx, hard, n)
		switch {
		case err == nil && busy:
		case err == nil:
			w.wait(ctx)
		case hard.Err() != nil:
		default:
			if errors.Is(err, schema.ErrUnavailable) {
				w.o.Outage.Failed(err)
			} else {
				log := w.pool.Log(id)
				log.Error().Err(err).Msg("files not checked, they come back when their leases are over")
			}
			work.Pause(ctx, w.jitter(failurePause))
		}
	}
	return nil
}

// step does what there is to do next: some rows of the queue and a range. The
// sweeps take turns in being asked first.
func (w *Worker) step(ctx, hard context.Context, n int) (busy bool, err error) {
	if err := w.doChores(hard); err != nil {
		return false, err
	}
	if leases := w.feed.Take(ctx, recheckFiles); len(leases) > 0 {
		busy = true
		if err := w.recheck(hard, leases); err != nil {
			return busy, err
		}
	}
	for i := range w.lanes {
		l := w.lanes[(n+i)%len(w.lanes)]
		r, mode, ok, err := w.claim(ctx, l)
		if err != nil {
			return busy, err
		}
		if ok {
			return true, w.walk(hard, l, r, mode)
		}
	}
	return busy, nil
}

// wait waits until there may be something to claim.
func (w *Worker) wait(ctx context.Context) {
	until := time.Now().Add(w.o.Idle)
	for _, l := range w.lanes {
		if due := l.due(); w.mayRun(l) && due.Before(until) {
			until = due
		}
	}
	ctx, cancel := context.WithDeadline(ctx, until)
	defer cancel()
	work.Wait(ctx, w.feed)
}

// mayRun reports whether the sweep runs by what was last read of the settings.
func (w *Worker) mayRun(l *lane) bool {
	snap := w.o.Cluster.Snapshot()
	return snap != nil && snap.Settings[l.sweep.Host()] != ""
}

func call(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, storeTimeout)
}

// claim takes a range of l's sweep and says how to check it.
func (w *Worker) claim(ctx context.Context, l *lane) (r schema.Range, mode Mode, ok bool, err error) {
	if !w.mayRun(l) {
		return r, mode, false, nil
	}
	select {
	case l.claim <- struct{}{}:
		defer func() { <-l.claim }()
	case <-ctx.Done():
		return r, mode, false, nil
	}
	if time.Now().Before(l.due()) {
		return r, mode, false, nil
	}
	ctx, cancel := call(ctx)
	defer cancel()
	settings, err := w.o.Store.Settings(ctx)
	if err != nil {
		return r, mode, false, fmt.Errorf("read the state of %s: %w", l.sweep, err)
	}
	st := StateOf(l.sweep, settings)
	limit, err := w.allowed(ctx, l, st, settings)
	if err != nil || limit == 0 {
		l.pause(w.jitter(w.o.Idle))
		return r, mode, false, err
	}
	turn, err := w.takeTurn(ctx, l, st, settings, limit)
	if err != nil || turn == nil {
		return r, mode, false, err
	}
	r, ok, err = w.o.Store.ClaimRange(ctx, l.sweep, turn.limit, w.o.Lease)
	if err != nil {
		return r, mode, false, err
	}
	if !ok {
		l.pause(w.jitter(w.o.Idle))
		return r, mode, false, errors.Join(turn.use(ctx, r), w.finish(ctx, st))
	}
	// What was stored before the sweep was started holds for all of its ranges.
	if settings, err = w.o.Store.Settings(ctx); err == nil {
		err = turn.use(ctx, r)
	}
	if err != nil {
		return r, mode, false, errors.Join(fmt.Errorf("begin the %s range %d-%d: %w", l.sweep, r.First, r.Last, err), w.release(ctx, r))
	}
	return r, modeOf(l.sweep, settings), true, nil
}

// modeOf is how a sweep's files are checked.
func modeOf(s schema.Sweep, settings map[string]string) Mode {
	if s == schema.SweepScrub {
		return Mode{Checksum: settings[SettingChecksum], Content: true}
	}
	return Mode{Checksum: settings[SettingChecksum], PolicyOnly: StateOf(s, settings).PolicyOnly}
}

// allowed is how many files may be claimed now; 0: wait.
func (w *Worker) allowed(ctx context.Context, l *lane, st State, settings map[string]string) (int, error) {
	if !st.Running() {
		return 0, nil
	}
	if st.Paced && ScrubPeriod(settings) == 0 {
		return 0, nil
	}
	if l.sweep == schema.SweepFsck {
		// The tracker that is named claims, if it is MogileFS's: ours do what it
		// queues.
		ours, err := w.isOurs(ctx, st.Host)
		if err != nil || !ours {
			return 0, err
		}
	}
	size, set := queueSize(settings)
	var queued int64
	if w.o.Queues != nil {
		lengths, err := w.o.Queues(ctx)
		if err != nil {
			return 0, fmt.Errorf("count the files that wait to be checked again: %w", err)
		}
		queued = lengths[schema.QueueFsck]
	}
	full := queued >= size
	if l.setFull(full) && full {
		w.o.Log.Warn().Str("sweep", string(l.sweep)).Int64("files", queued).
			Msg("too many files wait to be checked again: no more are claimed until some were")
	}
	if full {
		return 0, nil
	}
	limit := int64(l.limit())
	if set && l.sweep == schema.SweepFsck {
		_, claimed, err := w.o.Store.Ranges(ctx, l.sweep)
		if err != nil {
			return 0, err
		}
		limit = max(0, min(limit, size-queued-claimed))
	}
	return int(limit), nil
}

// isOurs reports whether the tracker of that name is a Mogile.
func (w *Worker) isOurs(ctx context.Context, name string) (bool, error) {
	if name == w.o.Name {
		return true, nil
	}
	members, err := w.trackers(ctx)
	return slices.ContainsFunc(members, func(t schema.Tracker) bool { return t.Name == name }), err
}

// trackers are those that ever registered.
func (w *Worker) trackers(ctx context.Context) ([]schema.Tracker, error) {
	w.mu.Lock()
	members, at := w.members, w.membersAt
	w.mu.Unlock()
	if members != nil && time.Since(at) < memberPause {
		return members, nil
	}
	members, err := w.o.Store.Trackers(ctx)
	if err != nil {
		return nil, fmt.Errorf("list the trackers: %w", err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.members, w.membersAt = members, time.Now()
	return members, nil
}

// living is how many of members there are now, at least one.
func living(members []schema.Tracker) int {
	var last time.Time
	for _, t := range members {
		if t.LastSeen.After(last) {
			last = t.LastSeen
		}
	}
	n := 0
	for _, t := range members {
		if last.Sub(t.LastSeen) < memberSilence {
			n++
		}
	}
	return max(1, n)
}

// turn is the right to claim once.
type turn struct {
	limit int
	// use says what was claimed, nothing by a range without files.
	use func(ctx context.Context, r schema.Range) error
}

// takeTurn is nil where it is not this tracker's turn: sweeps with a rate or a
// pace are claimed by one tracker after another, with a pause between that is
// theirs together.
func (w *Worker) takeTurn(ctx context.Context, l *lane, st State, settings map[string]string, limit int) (*turn, error) {
	perSecond := rateOf(settings)
	var cost func(r schema.Range) time.Duration
	poll := w.o.Idle
	switch {
	case l.sweep == schema.SweepFsck && perSecond > 0:
		limit = int(max(1, min(float64(limit), perSecond/4)))
		cost = func(r schema.Range) time.Duration {
			return time.Duration(float64(r.Files) / perSecond * float64(time.Second))
		}
		poll = min(poll, time.Duration(float64(limit)/perSecond/4*float64(time.Second)))
	case st.Paced:
		now := w.o.Cluster.Snapshot().AsOf
		period := ScrubPeriod(settings)
		limit = min(limit, st.paceFiles(period, now))
		cost = func(r schema.Range) time.Duration { return st.pace(int64(r.Last-r.First)+1, period, now) }
	default:
		return &turn{limit: limit, use: func(context.Context, schema.Range) error { return nil }}, nil
	}
	name := "mogile:" + string(l.sweep) + ":turn"
	owner := w.o.Name + "/" + strconv.FormatUint(w.turns.Add(1), 10)
	mine, err := w.o.Store.HoldLease(ctx, name, owner, turnTime)
	if err != nil {
		return nil, err
	}
	if !mine {
		l.pause(max(w.jitter(poll), time.Millisecond))
		return nil, nil
	}
	return &turn{limit: limit, use: func(ctx context.Context, r schema.Range) error {
		if r.Files == 0 {
			_, err := w.o.Store.HoldLease(ctx, name, owner, w.o.Idle)
			return err
		}
		_, err := w.o.Store.HoldLease(ctx, name, owner, cost(r))
		return err
	}}, nil
}

var (
	errRangeLost    = errors.New("the lease of the range was lost")
	errScrubStopped = errors.New("scrub was stopped")
)

// held is a range that is being checked.
type held struct {
	w      *Worker
	cancel context.CancelCauseFunc

	mu    sync.Mutex // guards what follows
	r     schema.Range
	until time.Time // when the lease ends, by our clock
}

// keep renews the lease until ctx ends, and cancels the work when it is lost, or
// when a scrub has been stopped.
func (h *held) keep(ctx context.Context) {
	lease := h.w.o.Lease
	scrub := h.r.Sweep == schema.SweepScrub
	every := lease / 3
	if scrub {
		every = min(every, stopPause)
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if time.Until(h.until) <= lease*2/3 {
			h.renew(ctx)
		}
		if !scrub {
			continue
		}
		within, cancel := call(ctx)
		settings, err := h.w.o.Store.Settings(within)
		cancel()
		if err == nil && settings[h.r.Sweep.Host()] == "" {
			h.cancel(errScrubStopped)
		}
	}
}

func (h *held) renew(ctx context.Context) {
	began := time.Now()
	within, cancel := call(context.WithoutCancel(ctx)) // or the lease's token would be unknown
	r, ok, err := h.w.o.Store.RenewRange(within, h.r, h.w.o.Lease)
	cancel()
	switch {
	case errors.Is(err, schema.ErrUnavailable):
		h.w.o.Outage.Failed(err)
	case err != nil:
		h.w.o.Log.Warn().Err(err).Str("sweep", string(h.r.Sweep)).Msg("lease of a range not renewed")
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case err == nil && ok:
		h.r, h.until = r, began.Add(h.w.o.Lease)
	case err == nil || time.Until(h.until) <= 0:
		h.cancel(errRangeLost)
	}
}

// now is the range with the token that counts.
func (h *held) now() schema.Range {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.r
}

// walk checks the files of a range and finishes it.
func (w *Worker) walk(ctx context.Context, l *lane, r schema.Range, m Mode) error {
	began := time.Now()
	checking, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	h := &held{w: w, cancel: cancel, r: r, until: began.Add(w.o.Lease)}
	keeping, stop := context.WithCancel(ctx)
	var keeper sync.WaitGroup
	keeper.Go(func() { h.keep(keeping) })
	tally, err := w.checkRange(checking, r, m)
	stop()
	keeper.Wait()
	r = h.now()
	cause := context.Cause(checking)
	switch {
	case err == nil && cause == nil:
		return w.finishRange(ctx, l, r, tally, began)
	case errors.Is(cause, errRangeLost):
		w.ended(r, rangeLost)
		w.o.Log.Warn().Str("sweep", string(r.Sweep)).Uint64("fid", uint64(r.First)).Msg("a range was lost, its files are checked again")
		return nil
	case cause != nil:
		w.ended(r, rangeReleased)
		return w.release(ctx, r)
	case errors.Is(err, schema.ErrUnavailable):
		w.ended(r, rangeReleased)
		work.Pause(ctx, w.jitter(failurePause))
		return errors.Join(err, w.release(ctx, r))
	}
	w.ended(r, rangeFailed)
	return fmt.Errorf("check the %s range %d-%d: %w", r.Sweep, r.First, r.Last, err)
}

func (w *Worker) ended(r schema.Range, result string) {
	w.ran.ranges.WithLabelValues(string(r.Sweep), result).Inc()
}

// release gives a range back, even where ctx has ended.
func (w *Worker) release(ctx context.Context, r schema.Range) error {
	ctx, cancel := call(context.WithoutCancel(ctx))
	defer cancel()
	return w.o.Store.ReleaseRange(ctx, r)
}

// finishRange notes that a range has been checked, also when that takes some
// tries.
func (w *Worker) finishRange(ctx context.Context, l *lane, r schema.Range, t schema.Tally, began time.Time) error {
	for {
		work.Alive(ctx)
		within, cancel := call(ctx)
		ok, err := w.o.Store.FinishRange(within, r, t)
		cancel()
		switch {
		case err == nil && ok:
			w.ended(r, rangeFinished)
			l.took(r, time.Since(began))
			return nil
		case err == nil:
			w.ended(r, rangeLost)
			return nil
		case !errors.Is(err, schema.ErrUnavailable) || ctx.Err() != nil || time.Since(began) > w.o.Lease:
			w.ended(r, rangeFailed)
			return err
		}
		w.o.Outage.Failed(err)
		work.Pause(ctx, w.jitter(failurePause))
	}
}

// waitCode counts, among a scrub's events, files that could not be checked when
// their turn came.
const waitCode = "WAIT"

// checkRange checks the files of a range. Those that cannot be checked now are
// queued for later.
func (w *Worker) checkRange(ctx context.Context, r schema.Range, m Mode) (schema.Tally, error) {
	sum := schema.Tally{Events: make(map[string]int64)}
	for from := r.First; from <= r.Last; {
		work.Alive(ctx)
		within, cancel := call(ctx)
		files, err := w.o.Store.FilesIn(within, from, r.Last, pageFiles)
		cancel()
		if err != nil {
			return sum, err
		}
		if len(files) == 0 {
			return sum, nil
		}
		w.sent.Add(uint64(len(files)))
		tally, stalled, err := w.check(ctx, files, m)
		if err != nil {
			return sum, err
		}
		if len(stalled) > 0 {
			arg := "" // as fsck is set then
			if m.Content {
				arg = schema.FsckContent
			}
			within, cancel := call(ctx)
			err := w.o.Store.QueueFsck(within, stalled, RecheckDelay, arg)
			cancel()
			if err != nil {
				return sum, fmt.Errorf("queue %d fids that cannot be checked now: %w", len(stalled), err)
			}
			sum.Events[waitCode] += int64(len(stalled))
		}
		sum.Files += tally.Files
		sum.Bytes += tally.Bytes
		for code, n := range tally.Events {
			sum.Events[code] += n
		}
		if len(files) < pageFiles {
			return sum, nil
		}
		from = files[len(files)-1].FID + 1
	}
	return sum, nil
}

// poisonous is how many files in a row may fail alone before that is taken for
// something that all of them would meet.
const poisonous = 3

// check has files checked. One that fails for a reason of its own does not hold
// up the others: it is left for later, as if it had stalled.
func (w *Worker) check(ctx context.Context, files []schema.LocatedFile, m Mode) (schema.Tally, []protocol.FID, error) {
	tally, stalled, err := w.protect(ctx, files, m)
	if err == nil || ctx.Err() != nil || errors.Is(err, schema.ErrUnavailable) {
		return tally, stalled, err
	}
	if len(files) == 1 {
		return tally, stalled, err
	}
	sum := schema.Tally{Events: make(map[string]int64)}
	stalled = nil
	failures := 0
	for _, f := range files {
		work.Alive(ctx)
		tally, later, err := w.protect(ctx, []schema.LocatedFile{f}, m)
		if err != nil {
			failures++
			if failures >= poisonous || ctx.Err() != nil || errors.Is(err, schema.ErrUnavailable) {
				return sum, stalled, err
			}
			w.o.Log.Error().Err(err).Uint64("fid", uint64(f.FID)).Msg("file not checked, it is tried again later")
			stalled = append(stalled, f.FID)
			continue
		}
		failures = 0
		stalled = append(stalled, later...)
		sum.Files += tally.Files
		sum.Bytes += tally.Bytes
		for code, n := range tally.Events {
			sum.Events[code] += n
		}
	}
	return sum, stalled, nil
}

// protect turns a panic of the checker into an error.
func (w *Worker) protect(ctx context.Context, files []schema.LocatedFile, m Mode) (_ schema.Tally, _ []protocol.FID, err error) {
	defer func() {
		if v := recover(); v != nil {
			err = fmt.Errorf("panic: %v\n%s", v, debug.Stack())
		}
	}()
	return w.o.Checker.Check(ctx, files, m)
}

// recheck checks the files of rows of the queue, whoever queued them.
func (w *Worker) recheck(ctx context.Context, leases []*work.Lease) error {
	w.sent.Add(uint64(len(leases)))
	read, rest := make([]*work.Lease, 0, len(leases)), make([]*work.Lease, 0, len(leases))
	for _, l := range leases {
		if l.Job().Arg == schema.FsckContent {
			read = append(read, l)
		} else {
			rest = append(rest, l)
		}
	}
	err := errors.Join(w.recheckRows(ctx, rest, false), w.recheckRows(ctx, read, true))
	var g errgroup.Group
	for _, l := range leases {
		if ctx.Err() != nil {
			g.Go(func() error { return l.GiveBack(ctx, 0) }) // those that are done with have another token, or no row
		} else {
			l.End()
		}
	}
	return errors.Join(err, g.Wait())
}

// recheckRows checks the files of some rows; content has that read in any case.
func (w *Worker) recheckRows(ctx context.Context, leases []*work.Lease, content bool) error {
	if len(leases) == 0 {
		return nil
	}
	within, cancel := call(ctx)
	defer cancel()
	settings, err := w.o.Store.Settings(within)
	if err != nil {
		return fmt.Errorf("read how to check files: %w", err)
	}
	m := modeOf(schema.SweepFsck, settings)
	if content {
		m = modeOf(schema.SweepScrub, settings)
	}
	fids := make([]protocol.FID, len(leases))
	for i, l := range leases {
		fids[i] = l.Job().FID
	}
	files, err := w.o.Store.FilesByFID(within, fids)
	if err != nil {
		return fmt.Errorf("read %d files that are queued: %w", len(fids), err)
	}
	var stalled []protocol.FID
	if len(files) > 0 {
		slices.SortFunc(files, func(a, b schema.LocatedFile) int { return int(a.FID) - int(b.FID) })
		_, stalled, err = w.check(ctx, files, m)
		if err != nil && len(files) == 1 && ctx.Err() == nil && !errors.Is(err, schema.ErrUnavailable) {
			w.o.Log.Error().Err(err).Uint64("fid", uint64(files[0].FID)).Msg("file not checked, it is tried again later")
			stalled, err = []protocol.FID{files[0].FID}, nil
		}
		if err != nil {
			return fmt.Errorf("check %d files that were queued: %w", len(files), err)
		}
	}
	late, cancelLate := call(ctx)
	defer cancelLate()
	var finished []schema.Job
	for _, l := range leases {
		job := l.End()
		if !slices.Contains(stalled, job.FID) {
			finished = append(finished, job)
			continue
		}
		if _, err := w.o.Store.Reschedule(late, job, RecheckDelay, job.FailCount); err != nil {
			return err
		}
	}
	_, err = w.o.Store.Finish(late, finished)
	return err
}

// finish ends a sweep whose last range has been finished; only one tracker does.
func (w *Worker) finish(ctx context.Context, st State) error {
	if !st.Claimed() {
		return nil
	}
	ranges, _, err := w.o.Store.Ranges(ctx, st.Sweep)
	if err != nil || ranges > 0 {
		return err
	}
	if st.Sweep == schema.SweepFsck {
		if err := w.o.Store.FoldFsckLog(ctx); err != nil {
			return err
		}
	}
	end := State{}
	facts, err := Change(ctx, w.o.Store, func(f Facts) (schema.SettingsChange, error) {
		end = f.state(st.Sweep)
		if end.Host != st.Host || end.StartTime != st.StartTime || !end.Claimed() {
			return schema.SettingsChange{}, errNotNow
		}
		return f.Finish(st.Sweep), nil
	})
	if errors.Is(err, errNotNow) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("end %s: %w", st.Sweep, err)
	}
	events := zerolog.Dict()
	for _, code := range end.Codes() {
		events.Int64(code, end.Events[code])
	}
	w.o.Log.Info().Str("sweep", string(st.Sweep)).Int64("files", end.Files).Int64("bytes", end.Bytes).Dict("events", events).
		Dur("took", facts.Now.Sub(time.Unix(end.StartTime, 0))).Msg("sweep is done")
	w.changed(ctx)
	return nil
}

func (w *Worker) changed(ctx context.Context) {
	if w.o.Changed != nil {
		w.o.Changed(ctx)
	}
}

// doChores keeps the bandwidth to what is set, and begins rounds of scrub that
// are due.
func (w *Worker) doChores(ctx context.Context) error {
	select {
	case w.chore <- struct{}{}:
		defer func() { <-w.chore }()
	default:
		return nil // another worker does them
	}
	snap := w.o.Cluster.Snapshot()
	if snap == nil || time.Now().Before(w.chores) {
		return nil
	}
	w.chores = time.Now().Add(w.jitter(chorePause))
	ctx, cancel := call(ctx)
	defer cancel()
	if err := w.setBandwidth(ctx, snap.Settings); err != nil {
		return err
	}
	return w.beginRound(ctx, snap)
}

// burst is how much content may be read at once beyond the bandwidth, in bytes.
const burst = 1 << 20

func (w *Worker) setBandwidth(ctx context.Context, settings map[string]string) error {
	if w.o.Bandwidth == nil {
		return nil
	}
	var members []schema.Tracker
	if settings[SettingBandwidth] != "" {
		var err error
		if members, err = w.trackers(ctx); err != nil {
			return err
		}
	}
	if limit := rate.Limit(bandwidth(settings, living(members))); limit != w.o.Bandwidth.Limit() {
		w.o.Bandwidth.SetLimit(limit)
	}
	return nil
}

// NewBandwidth is a limiter for [Options] and the checker.
func NewBandwidth() *rate.Limiter { return rate.NewLimiter(rate.Inf, burst) }

func (w *Worker) beginRound(ctx context.Context, snap *cluster.Snapshot) error {
	due := func(settings map[string]string, now time.Time) bool {
		return StateOf(schema.SweepScrub, settings).dueRound(ScrubPeriod(settings), now)
	}
	if !due(snap.Settings, snap.AsOf) {
		return nil
	}
	_, err := Change(ctx, w.o.Store, func(f Facts) (schema.SettingsChange, error) {
		if f.Highest == 0 || !due(f.Settings, f.Now) {
			return schema.SettingsChange{}, errNotNow
		}
		return f.StartScrub(ScrubStart{Name: w.o.Name, Paced: true})
	})
	if errors.Is(err, errNotNow) || errors.Is(err, errScrubRunning) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("begin a round of scrub: %w", err)
	}
	w.o.Log.Info().Dur("days", ScrubPeriod(snap.Settings)).Msg("a round of scrub begins")
	w.changed(ctx)
	return nil
}

// errNotNow is why nothing is changed.
var errNotNow = errors.New("not now")

// changeTries is how often a change is decided anew because what it was decided
// on has changed.
const changeTries = 20

// Change reads the facts, has decide say what is to be changed, and makes the
// change if the facts are still what they were; else it begins again. It returns
// the facts on which it was made, or the error of decide as it is.
func Change(ctx context.Context, store Ledger, decide func(Facts) (schema.SettingsChange, error)) (Facts, error) {
	for try := 1; ; try++ {
		rows, err := store.Topology(ctx)
		if err != nil {
			return Facts{}, err
		}
		f := Facts{Settings: rows.Settings, Now: rows.Now}
		if f.Highest, _, err = store.HighestFID(ctx); err != nil {
			return f, err
		}
		if f.LastLog, err = store.LastFsckEvent(ctx); err != nil {
			return f, err
		}
		change, err := decide(f)
		if err != nil {
			return f, err
		}
		err = store.ChangeSettings(ctx, change)
		if !errors.Is(err, schema.ErrStale) || try == changeTries {
			return f, err
		}
	}
}
