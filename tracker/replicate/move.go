package replicate

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/schema"
	"github.com/mogile/mogile/tracker/cluster"
	"github.com/mogile/mogile/tracker/placement"
	"github.com/mogile/mogile/tracker/work"
)

// Outcomes of moves, beside those that they share with replication.
const (
	moved       outcome = "moved"
	wouldWorsen outcome = "would_worsen" // the policy needs the copy where it is
	kept        outcome = "kept"         // too few of the other copies are intact, or the device lets nothing be deleted
)

const (
	// maxMoveTries is how often a move is tried whose fid is locked: as long as a
	// tracker lives, a worker of it that hangs keeps its lock.
	maxMoveTries = 10
	// maxMoveDelay bounds the time between.
	maxMoveDelay = 30 * time.Second
)

// handleMove works on one leased move, and does with its row what the outcome
// asks for.
func (w *Worker) handleMove(ctx context.Context, id int, rng *rand.Rand, lease *work.Lease) {
	defer lease.End()
	job := lease.Job()
	e, err := w.locked(ctx, id, rng, job, (*round).runMove)
	w.metrics.moves.WithLabelValues(string(e.outcome)).Inc()
	log := w.pool.Log(id)
	log = log.With().Uint64("fid", uint64(job.FID)).Uint32("devid", uint32(job.DevID)).Logger()
	switch {
	case errors.Is(err, schema.ErrUnavailable):
		w.o.Outage.Failed(err)
		w.giveBackAfterOutage(ctx, lease)
		return
	case e.outcome == failed:
		log.Error().Err(err).Msg("move failed")
		w.notify(id, "Rebalance for %d (from dev%d) failed: %v", job.FID, job.DevID, err)
	case e.outcome == wouldWorsen:
		log.Warn().Msg("copy not moved: no suitable destination devices available")
		w.notify(id, "Rebalance for %d (from dev%d) failed: no suitable destination devices available", job.FID, job.DevID)
	case e.outcome == sourceDown, e.outcome == noSuggestion, e.outcome == kept, e.outcome == noSource:
		w.notify(id, "Rebalance for %d (from dev%d) failed: %s", job.FID, job.DevID, e.outcome)
	}
	err = w.settleMove(ctx, lease, e)
	if errors.Is(err, schema.ErrUnavailable) {
		w.o.Outage.Failed(err)
		w.giveBackAfterOutage(ctx, lease)
	} else if err != nil {
		log.Warn().Err(err).Msg("rebalance queue not updated, the move comes back when its lease is over")
	}
}

// settleMove removes the row, or makes it due again where nothing was tried.
func (w *Worker) settleMove(ctx context.Context, lease *work.Lease, e end) error {
	switch e.outcome {
	case interrupted:
		return lease.GiveBack(ctx, 0)
	case busy:
		return lease.GiveBack(ctx, e.wait)
	case locked:
		if e.retries < maxMoveTries {
			delay := min(work.LockedDelay<<e.retries, maxMoveDelay)
			_, err := w.o.Store.Reschedule(ctx, lease.End(), delay, work.Failed(e.retries))
			return err
		}
		w.o.Log.Warn().Uint64("fid", uint64(lease.Job().FID)).Msg("copy not moved: others have worked on the file all the time")
	}
	if ctx.Err() != nil { // the watchdog's doing
		late, cancel := context.WithTimeout(context.WithoutCancel(ctx), settleTimeout)
		defer cancel()
		ctx = late
	}
	_, err := w.o.Store.Finish(ctx, []schema.Job{lease.End()})
	return err
}

// targets are the devices that a move's row permits; none means any.
func targets(arg string) ([]protocol.DevID, error) {
	var devs []protocol.DevID
	for f := range strings.SplitSeq(arg, ",") {
		if f = strings.TrimSpace(f); f == "" {
			continue
		}
		n, err := strconv.ParseUint(f, 10, 32)
		if err != nil || n == 0 {
			return nil, fmt.Errorf("%q is not a list of devices", arg)
		}
		devs = append(devs, protocol.DevID(n))
	}
	return devs, nil
}

// runMove does all that can be done now for the job's move.
func (r *round) runMove(ctx context.Context) (outcome, error) {
	to, err := targets(r.job.Arg)
	if err != nil {
		return "", fmt.Errorf("move fid %d from dev%d: %w", r.job.FID, r.job.DevID, err)
	}
	if err := r.read(ctx); err != nil {
		return "", err
	}
	for {
		if ctx.Err() != nil {
			return "", context.Cause(ctx)
		}
		work.Alive(ctx)
		if !slices.Contains(r.file.Devices, r.job.DevID) {
			return lostRace, nil // somebody else has dropped it
		}
		if err := r.look(); err != nil {
			return "", err
		}
		i := slices.IndexFunc(r.on, func(p placement.Placement) bool { return p.Device.ID == r.job.DevID })
		if r.encoded != nil {
			return r.moveShard(ctx, to)
		}
		if i < 0 || !r.on[i].Device.LetsDelete() {
			return kept, nil // a dead device is the reaper's affair
		}
		from := r.on[i].Device
		dst, leave, verdict := r.nextTarget(from, to)
		switch {
		case verdict == placement.Good:
			gone, err := r.leave(ctx, from)
			if err != nil {
				return "", err
			}
			if gone {
				return moved, nil
			}
			if slices.Equal(r.judgedOn, r.file.Devices) {
				return kept, nil
			}
		case verdict == placement.Copy && dst == nil:
			return busy, nil
		case verdict == placement.Copy:
			result, err := func() (outcome, error) {
				defer leave()
				return r.copyTo(ctx, dst)
			}()
			if err != nil || result != "" {
				return result, err
			}
		case placement.Satisfied(r.policy, r.question(), func(placement.Placement) bool { return true }):
			return wouldWorsen, nil
		default:
			return noSuggestion, nil // the policy is not met with the copy either
		}
	}
}

// nextTarget is where the next copy has to go before the one on from may be
// dropped: a device that is not used to its limit, until leave is called. The
// verdict is Good where none has to, Copy where there is such a device or, with
// a nil device, there will be, and Wait where the policy cannot be satisfied
// without the copy on from.
func (r *round) nextTarget(from *cluster.Device, to []protocol.DevID) (d *cluster.Device, leave func(), v placement.Verdict) {
	q := r.question()
	var crowded []protocol.DevID
	for {
		next, ok := placement.Away(r.policy, q, from.ID, to)
		switch {
		case !ok && len(crowded) > 0:
			r.wait = r.limiter().Line(crowded[0])
			return nil, nil, placement.Copy
		case !ok:
			return nil, nil, placement.Wait
		case next == nil:
			return nil, nil, placement.Good
		}
		if leave, ok := r.limiter().TryAcquire(next.ID); ok {
			return next, leave, placement.Copy
		}
		crowded = append(crowded, next.ID)
		q.Skip = append(slices.Clone(q.Skip), next.ID)
	}
}

// leave drops the copy on from if the policy is satisfied by others that can be
// read and are right. Where a copy was made in its place the others are what they
// were, and their lengths will do; where none was, the content of those that stay
// is read, as of any copy that is dropped. Where it is not dropped because the
// locations have changed they are read anew.
func (r *round) leave(ctx context.Context, from *cluster.Device) (gone bool, err error) {
	r.judgedOn = slices.Clone(r.file.Devices)
	looks := []judge{r.rightSize, r.rightContent}
	if r.copied > 0 {
		looks = looks[:1]
	}
	for _, right := range looks {
		q, err := r.judged(ctx, from, right)
		if err != nil {
			return false, err
		}
		if !placement.Satisfied(r.policy, q, func(c placement.Placement) bool { return c.Device.ID != from.ID && c.Readable }) {
			return false, nil
		}
	}
	err = r.w.o.Store.DropLocation(ctx, r.file.FID, from.ID, r.file.Devices)
	if errors.Is(err, schema.ErrStale) {
		r.judgedOn = nil
		return false, r.reread(ctx)
	}
	if err != nil {
		return false, fmt.Errorf("drop fid %d from dev%d: %w", r.file.FID, from.ID, err)
	}
	r.file.Devices = slices.DeleteFunc(slices.Clone(r.file.Devices), func(dev protocol.DevID) bool { return dev == from.ID })
	delete(r.announced, announcement{from.ID, schema.Raw})
	r.log.Debug().Uint32("devid", uint32(from.ID)).Msg("copy moved away")
	return true, nil
}
