package replicate

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/schema"
	"github.com/mogile/mogile/tracker/placement"
	"github.com/mogile/mogile/tracker/work"
)

// MaxWaiters is how many calls of [Worker.Await] there can be at once.
const MaxWaiters = 1000

// ErrTooManyWaiters is returned by [Worker.Await] while there are MaxWaiters.
var ErrTooManyWaiters = errors.New("too many requests wait for replication")

// waiters are those who wait for fids to be where their policy wants them.
type waiters struct {
	urgent chan protocol.FID // of capacity MaxWaiters: to be worked on before what is queued
	ready  chan struct{}     // of capacity 1: there may be something in urgent

	mu   sync.Mutex // guards what follows
	told map[protocol.FID][]chan outcome
	n    int
}

func newWaiters() *waiters {
	return &waiters{
		urgent: make(chan protocol.FID, MaxWaiters), ready: make(chan struct{}, 1), told: make(map[protocol.FID][]chan outcome),
	}
}

// join adds somebody who waits for fid. told has room for one outcome: the first
// since it was last read.
func (ws *waiters) join(fid protocol.FID) (told chan outcome, leave func(), err error) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	if ws.n >= MaxWaiters {
		return nil, nil, ErrTooManyWaiters
	}
	ws.n++
	told = make(chan outcome, 1)
	ws.told[fid] = append(ws.told[fid], told)
	return told, func() {
		ws.mu.Lock()
		defer ws.mu.Unlock()
		ws.n--
		left := slices.DeleteFunc(ws.told[fid], func(c chan outcome) bool { return c == told })
		if len(left) == 0 {
			delete(ws.told, fid)
			return
		}
		ws.told[fid] = left
	}, nil
}

// ask has a worker look at fid as soon as one is free. It reports false where so
// many have asked that it could not be noted.
func (ws *waiters) ask(fid protocol.FID) bool {
	select {
	case ws.urgent <- fid:
	default:
		return false
	}
	ws.wake()
	return true
}

func (ws *waiters) wake() {
	select {
	case ws.ready <- struct{}{}:
	default:
	}
}

// next is the fid that a worker is to look at now, if somebody still waits for
// one.
func (ws *waiters) next() (protocol.FID, bool) {
	for {
		select {
		case fid := <-ws.urgent:
			if len(ws.urgent) > 0 {
				ws.wake() // another worker
			}
			ws.mu.Lock()
			wanted := len(ws.told[fid]) > 0
			ws.mu.Unlock()
			if wanted {
				return fid, true
			}
		default:
			return 0, false
		}
	}
}

// tell tells who waits for fid how work on it ended.
func (ws *waiters) tell(fid protocol.FID, o outcome) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	for _, c := range ws.told[fid] {
		select {
		case c <- o:
		default:
		}
	}
}

// Pauses between looks at a fid that is waited for.
const (
	firstLook = 50 * time.Millisecond
	lastLook  = 2 * time.Second
)

// Await waits until fid is where its class's policy wants it, copies too many
// not counted. It has this tracker's workers look at the fid at once, before all
// that is queued; its row in the queue stays for whoever claims it. Await returns
// ErrTooManyWaiters at once, an error matching [schema.ErrGone] where the file is
// deleted meanwhile, and the cause of ctx where that ends first; the file is
// replicated nevertheless.
func (w *Worker) Await(ctx context.Context, fid protocol.FID) error {
	told, leave, err := w.waiters.join(fid)
	if err != nil {
		return err
	}
	defer leave()
	asked := false
	for pause := firstLook; ; pause = min(2*pause, lastLook) {
		if !asked {
			asked = w.waiters.ask(fid)
		}
		timer := time.NewTimer(pause)
		select {
		case o := <-told:
			switch o {
			case replicated, reduced, lostRace, tooHappy:
				timer.Stop()
				return nil
			case noFID:
				timer.Stop()
				return schema.ErrGone
			}
			// Somebody else is at it, or it cannot be done now.
			asked = false
			select {
			case <-timer.C:
			case <-ctx.Done():
			}
		case <-timer.C:
		case <-ctx.Done():
		}
		timer.Stop()
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		// Another tracker may have done it, or this one may have no workers.
		if ok, err := w.met(ctx, fid); err == nil && ok {
			return nil
		} else if errors.Is(err, errGone) {
			return schema.ErrGone
		}
	}
}

// met reports whether the policy of fid is satisfied, as far as the database
// knows.
func (w *Worker) met(ctx context.Context, fid protocol.FID) (bool, error) {
	r := &round{w: w, rng: w.newRand(), job: schema.Job{FID: fid}}
	if err := r.read(ctx); err != nil {
		return false, err
	}
	if err := r.look(); err != nil {
		return false, err
	}
	switch r.ask().Verdict {
	case placement.Good, placement.TooGood:
		return true, nil
	}
	return false, nil
}

// handleUrgent works on a fid that is waited for. Its row stays in the queue,
// where it keeps what becomes of a failure.
func (w *Worker) handleUrgent(ctx context.Context, id int, rng *rand.Rand, fid protocol.FID) {
	e := end{outcome: failed}
	defer func() { w.waiters.tell(fid, e.outcome) }() // also where the work panics
	e, err := w.replicate(ctx, id, rng, schema.Job{Queue: schema.QueueReplicate, FID: fid})
	w.metrics.outcomes.WithLabelValues(string(e.outcome)).Inc()
	if e.outcome != failed {
		return
	}
	if errors.Is(err, schema.ErrUnavailable) {
		w.o.Outage.Failed(err)
		work.Pause(ctx, outagePause)
		return
	}
	log := w.pool.Log(id)
	log.Error().Err(err).Uint64("fid", uint64(fid)).Msg("replication failed")
}
