package work

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sync/errgroup"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/schema"
)

// Leaser is all that [Feed] asks of a store; see [schema.Queues].
type Leaser interface {
	Claim(ctx context.Context, q schema.Queue, limit int, lease time.Duration) ([]schema.Job, error)
	Renew(ctx context.Context, jobs []schema.Job, lease time.Duration) ([]schema.Job, error)
	Reschedule(ctx context.Context, job schema.Job, delay time.Duration, failcount int) (bool, error)
}

// LeaseTime is how long a claimed row belongs to its worker unless that renews
// it: a crashed tracker's rows come back after it.
const LeaseTime = 120 * time.Second

// FeedOptions say what a feed claims.
type FeedOptions struct {
	Store Leaser
	Queue schema.Queue
	Batch int           // most rows that one claim takes; default 100
	Lease time.Duration // how long a row is leased, renewed by then; default 120 s
	Idle  time.Duration // pause after a claim that found nothing, times 0.8 to 1.2; default 1 s
	Pool  *Pool         // whose workers take from the feed: it wakes them, and they it; may be nil
	// Sift deals at once with those of the rows claimed that need no more than a
	// look, and returns the rest, for workers; nil deals with none. The leases of
	// rows it keeps are its own to end.
	Sift func(ctx context.Context, jobs []schema.Job) (rest []schema.Job)
	// Outage is told when the database is away, shared with others; default its
	// own, on Log.
	Outage *Outage
	Rand   *rand.Rand // for jitter; the feed's own, default seeded by chance
	Log    zerolog.Logger
}

const (
	callTimeout  = 10 * time.Second // of one call to the store
	maxClaimWait = 10 * time.Second // longest pause between claims while the database is away
	firstBatch   = 16               // rows of a feed's first claim; later ones adapt
	giveBackJobs = 16               // rows given back at once
	// siftPause is how long rows gather after those that were due have been
	// sifted, so that they are looked at together.
	siftPause = 50 * time.Millisecond
)

// Feed claims rows of one queue for a tracker's workers. It claims when a
// worker asks and nothing is left, more rows at a time the faster they are
// used up, so that a slow tracker does not sit on rows that others could take.
type Feed struct {
	o FeedOptions

	claiming chan struct{} // capacity 1: held while rows are claimed

	mu        sync.Mutex // guards what follows
	waiting   []*Lease   // claimed, not taken
	taken     map[*Lease]bool
	size      int             // of the next claim
	claimed   time.Time       // last successful claim
	sent      uint64          // rows taken so far
	nextClaim time.Time       // not before this, unless woken
	woken     <-chan struct{} // as of the last claim
	failures  int             // claims that failed in a row
	renewed   chan struct{}   // closed when the renewal that is going on ends; nil while none is
	renewing  map[*Lease]bool // those that it is about
}

// Lease is a row that this tracker works on.
type Lease struct {
	feed  *Feed
	job   schema.Job // guarded by feed.mu: NextTry changes with renewals
	until time.Time  // guarded by feed.mu: when it ends, by our clock
}

// NewFeed claims nothing yet.
func NewFeed(o FeedOptions) *Feed {
	if o.Batch <= 0 {
		o.Batch = 100
	}
	if o.Lease <= 0 {
		o.Lease = LeaseTime
	}
	if o.Idle <= 0 {
		o.Idle = time.Second
	}
	if o.Outage == nil {
		o.Outage = NewOutage(o.Log)
	}
	if o.Rand == nil {
		o.Rand = rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64()))
	}
	return &Feed{
		o:        o,
		claiming: make(chan struct{}, 1),
		taken:    make(map[*Lease]bool),
		size:     min(firstBatch, o.Batch),
	}
}

// Take gives up to limit rows to the caller, who must end each with [Lease.End]
// or [Lease.GiveBack]. It claims where none is left over from the last claim.
// None means that nothing is due, or that the database is away: [Wait].
func (f *Feed) Take(ctx context.Context, limit int) []*Lease {
	select {
	case f.claiming <- struct{}{}:
		defer func() { <-f.claiming }()
	case <-ctx.Done():
		return nil
	}
	if leases := f.takeWaiting(limit); len(leases) > 0 {
		return leases
	}
	for ctx.Err() == nil {
		size, ok := f.mayClaim(limit)
		if !ok {
			return nil
		}
		began := time.Now()
		callCtx, cancel := context.WithTimeout(ctx, callTimeout)
		jobs, err := f.o.Store.Claim(callCtx, f.o.Queue, size, f.o.Lease)
		cancel()
		if ctx.Err() != nil && err != nil {
			return nil
		}
		claimed := len(jobs)
		if f.o.Sift != nil && claimed > 0 {
			jobs = f.o.Sift(ctx, jobs)
		}
		f.settle(began, size, claimed, jobs, err)
		leases := f.takeWaiting(limit)
		if len(jobs) > len(leases) && f.o.Pool != nil {
			f.o.Pool.Wake() // there is something for other workers too
		}
		if len(leases) > 0 || claimed == 0 {
			return leases
		}
		Alive(ctx)
	}
	return nil
}

// takeWaiting hands out rows left over, forgetting those that have been left
// so long that their lease may end before they are renewed.
func (f *Feed) takeWaiting(limit int) []*Lease {
	f.mu.Lock()
	defer f.mu.Unlock()
	var leases []*Lease
	for len(f.waiting) > 0 && len(leases) < limit {
		l := f.waiting[0]
		f.waiting = f.waiting[1:]
		if time.Until(l.until) < f.o.Lease/2 {
			continue
		}
		f.taken[l] = true
		f.sent++
		leases = append(leases, l)
	}
	return leases
}

// mayClaim is how many rows to claim, and whether it is time to.
func (f *Feed) mayClaim(limit int) (int, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if time.Now().Before(f.nextClaim) && !closed(f.woken) {
		return 0, false
	}
	if f.o.Pool != nil {
		f.woken = f.o.Pool.Woken() // before the claim, so that no waking is missed
	}
	return min(max(f.size, limit), max(f.o.Batch, limit)), true
}

func closed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// settle takes note of what a claim for size rows brought: claimed rows, of which
// jobs are left.
func (f *Feed) settle(began time.Time, size, claimed int, jobs []schema.Job, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err != nil {
		if errors.Is(err, schema.ErrUnavailable) {
			f.o.Outage.Failed(err)
		} else {
			f.o.Log.Error().Err(err).Stringer("queue", f.o.Queue).Msg("no work could be claimed")
		}
		f.failures++
		wait := min(f.o.Idle<<min(f.failures, 10), maxClaimWait)
		f.nextClaim = time.Now().Add(f.jitter(wait))
		f.woken = nil // a waking brings no database back
		return
	}
	f.o.Outage.Answered()
	f.failures = 0
	switch {
	case claimed == 0:
		f.nextClaim = time.Now().Add(f.jitter(f.o.Idle))
		return
	case claimed < size && len(jobs) == 0:
		f.nextClaim = time.Now().Add(siftPause)
	}
	switch used := began.Sub(f.claimed); {
	case used < time.Second && claimed == size:
		f.size = min(2*size, f.o.Batch)
	case used > 10*time.Second:
		f.size = max(1, size/2)
	}
	f.claimed = began
	for _, job := range jobs {
		f.waiting = append(f.waiting, &Lease{
			feed: f, job: job, until: began.Add(f.o.Lease),
		})
	}
}

func (f *Feed) jitter(d time.Duration) time.Duration {
	return time.Duration(float64(d) * (0.8 + 0.4*f.o.Rand.Float64()))
}

// Wait waits until one of feeds may have work again: its pause is over or its
// workers were woken. It returns early when ctx ends.
func Wait(ctx context.Context, feeds ...*Feed) { WaitOr(ctx, nil, feeds...) }

// WaitOr is Wait that also returns when ready can be received from.
func WaitOr(ctx context.Context, ready <-chan struct{}, feeds ...*Feed) {
	var until time.Time
	var woken <-chan struct{}
	for i, f := range feeds {
		f.mu.Lock()
		if i == 0 || f.nextClaim.Before(until) {
			until = f.nextClaim
		}
		if closed(f.woken) {
			until = time.Time{}
		}
		if f.woken != nil {
			woken = f.woken // those that are not closed are all the same: the pool's present one
		}
		f.mu.Unlock()
	}
	timer := time.NewTimer(time.Until(until))
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-woken:
	case <-ready:
	case <-ctx.Done():
	}
}

// Stats are how many rows are claimed and not taken, and how many were taken so
// far.
func (f *Feed) Stats() (queued int, sent uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.waiting), f.sent
}

// Run renews the leases of rows that are being worked on until ctx is
// cancelled; then it gives back those that no worker took, and returns nil.
func (f *Feed) Run(ctx context.Context) error {
	tick := time.NewTicker(f.o.Lease / 6)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			f.renew(ctx)
		case <-ctx.Done():
			f.giveBackWaiting(ctx)
			return nil
		}
	}
}

// renew extends the leases that have used up a third of their time. Those that
// are no longer held, because the row was queued again or the database was away
// for too long, are renewed no more; the work goes on, since it is the fid's
// lock and not the lease that keeps others from doing it too.
func (f *Feed) renew(ctx context.Context) {
	f.mu.Lock()
	f.renewing = make(map[*Lease]bool)
	var jobs []schema.Job
	for l := range f.taken {
		if time.Until(l.until) < 2*f.o.Lease/3 {
			f.renewing[l] = true
			jobs = append(jobs, l.job)
		}
	}
	if len(jobs) == 0 {
		f.renewing = nil
		f.mu.Unlock()
		return
	}
	f.renewed = make(chan struct{})
	f.mu.Unlock()

	began := time.Now()
	callCtx, cancel := context.WithTimeout(ctx, callTimeout)
	renewed, err := f.o.Store.Renew(callCtx, jobs, f.o.Lease)
	cancel()
	held := make(map[row]schema.Job, len(renewed))
	for _, job := range renewed {
		held[rowOf(job)] = job
	}

	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case errors.Is(err, schema.ErrUnavailable):
		f.o.Outage.Failed(err)
	case err != nil && ctx.Err() == nil:
		f.o.Log.Error().Err(err).Stringer("queue", f.o.Queue).Int("leases", len(jobs)).Msg("leases not renewed")
	}
	for l := range f.renewing {
		job, still := held[rowOf(l.job)]
		switch {
		case still:
			l.job, l.until = job, began.Add(f.o.Lease)
		case err == nil || time.Until(l.until) <= f.o.Lease/6:
			delete(f.taken, l)
		}
	}
	f.renewing = nil
	close(f.renewed)
	f.renewed = nil
}

// row is what identifies a row of a queue.
type row struct {
	fid  protocol.FID
	dev  protocol.DevID
	what schema.What
}

func rowOf(j schema.Job) row { return row{j.FID, j.DevID, j.What} }

// giveBackWaiting makes rows that were claimed and not begun due at once, for
// other trackers, even where ctx has ended. Those that cannot be given back
// soon come due when their lease ends.
func (f *Feed) giveBackWaiting(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), unlockTimeout)
	defer cancel()
	f.mu.Lock()
	waiting := f.waiting
	f.waiting = nil
	f.mu.Unlock()
	var g errgroup.Group
	g.SetLimit(giveBackJobs)
	for _, l := range waiting {
		g.Go(func() error { return l.giveBack(ctx, 0) })
	}
	if err := g.Wait(); err != nil {
		f.o.Log.Warn().Err(err).Stringer("queue", f.o.Queue).Msg("claimed work was not given back, it waits for its leases to end")
	}
}

// Job is the row, with the token of its lease as of now.
func (l *Lease) Job() schema.Job {
	l.feed.mu.Lock()
	defer l.feed.mu.Unlock()
	return l.job
}

// End ends the renewing of the lease and returns the job with the token that
// counts, to finish or reschedule it with. It may be called again.
func (l *Lease) End() schema.Job {
	f := l.feed
	f.mu.Lock()
	defer f.mu.Unlock()
	for f.renewing[l] {
		renewed := f.renewed
		f.mu.Unlock()
		<-renewed
		f.mu.Lock()
	}
	delete(f.taken, l)
	return l.job
}

// GiveBack ends the lease and makes the row due again after delay, with the
// failures that it had. It does so even where ctx has ended.
func (l *Lease) GiveBack(ctx context.Context, delay time.Duration) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), unlockTimeout)
	defer cancel()
	return l.giveBack(ctx, delay)
}

func (l *Lease) giveBack(ctx context.Context, delay time.Duration) error {
	job := l.End()
	_, err := l.feed.o.Store.Reschedule(ctx, job, delay, job.FailCount)
	return err
}
