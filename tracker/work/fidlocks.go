package work

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/schema"
)

// ErrLockLost is the cause of the cancellation of work whose fid lock is no
// longer held, because the database session that held it is gone.
var ErrLockLost = errors.New("fid lock lost with its database session")

// unlockTimeout bounds giving locks back, which happens during a shutdown too.
const unlockTimeout = 5 * time.Second

// Locker is all that [FIDLocks] asks of a store; see [schema.Locks].
type Locker interface {
	TryLock(ctx context.Context, names []string) (held []string, lost <-chan struct{}, err error)
	Unlock(ctx context.Context, names []string) error
}

// FIDLocks makes one worker at a time work on a fid: among this tracker's
// workers by a map, among trackers by the store's locks.
type FIDLocks struct {
	store Locker

	mu    sync.Mutex // guards what follows
	busy  map[protocol.FID]bool
	stuck []*Held // released while the database was away; still locked, for all we know
}

// NewFIDLocks locks fids in store. All workers of a tracker must share one.
func NewFIDLocks(store Locker) *FIDLocks {
	return &FIDLocks{store: store, busy: make(map[protocol.FID]bool)}
}

// Held are fids that the caller alone works on until it calls [Held.Release].
type Held struct {
	locks *FIDLocks
	fids  map[protocol.FID]bool
	lost  <-chan struct{}
}

// TryLock takes those of fids that are free, without waiting, in one statement;
// a fid may be named twice. The result must be released, also where it holds
// nothing.
func (l *FIDLocks) TryLock(ctx context.Context, fids ...protocol.FID) (*Held, error) {
	if err := l.unstick(ctx); err != nil {
		return nil, err
	}
	h := &Held{locks: l, fids: make(map[protocol.FID]bool, len(fids))}
	byName := make(map[string]protocol.FID, len(fids))
	names := make([]string, 0, len(fids))
	l.mu.Lock()
	for _, fid := range fids {
		if !l.busy[fid] {
			l.busy[fid] = true
			name := schema.FIDLock(fid)
			byName[name] = fid
			names = append(names, name)
		}
	}
	l.mu.Unlock()
	if len(names) == 0 {
		return h, nil
	}
	held, lost, err := l.store.TryLock(ctx, names)
	if err != nil {
		l.free(byName)
		return nil, fmt.Errorf("lock %d fids: %w", len(names), err)
	}
	for _, name := range held {
		h.fids[byName[name]] = true
		delete(byName, name)
	}
	h.lost = lost
	l.free(byName)
	return h, nil
}

func (l *FIDLocks) free(byName map[string]protocol.FID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, fid := range byName {
		delete(l.busy, fid)
	}
}

// Has reports whether fid is among those held.
func (h *Held) Has(fid protocol.FID) bool { return h.fids[fid] }

// Context is ctx, cancelled with the cause [ErrLockLost] when the locks are
// lost. The caller must call cancel.
func (h *Held) Context(ctx context.Context) (_ context.Context, cancel context.CancelFunc) {
	ctx, stop := context.WithCancelCause(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		select {
		case <-h.lost:
			stop(ErrLockLost)
		case <-ctx.Done():
		}
	}()
	return ctx, func() { stop(nil); <-done }
}

// Release gives the locks back. It does so even where ctx has ended. Where the
// database cannot be told, the fids remain locked until it can: the next TryLock
// tries again.
func (h *Held) Release(ctx context.Context) error {
	if len(h.fids) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), unlockTimeout)
	defer cancel()
	err := h.unlock(ctx)
	if err != nil {
		h.locks.mu.Lock()
		defer h.locks.mu.Unlock()
		h.locks.stuck = append(h.locks.stuck, h)
	}
	return err
}

func (h *Held) unlock(ctx context.Context) error {
	names := make([]string, 0, len(h.fids))
	for fid := range h.fids {
		names = append(names, schema.FIDLock(fid))
	}
	select {
	case <-h.lost: // they are gone; a new session may not be told to give up what it never had
	default:
		if err := h.locks.store.Unlock(ctx, names); err != nil {
			return fmt.Errorf("unlock %d fids: %w", len(names), err)
		}
	}
	h.locks.mu.Lock()
	defer h.locks.mu.Unlock()
	for fid := range h.fids {
		delete(h.locks.busy, fid)
	}
	h.fids = nil
	return nil
}

// unstick gives back what could not be given back before.
func (l *FIDLocks) unstick(ctx context.Context) error {
	l.mu.Lock()
	stuck := l.stuck
	l.stuck = nil
	l.mu.Unlock()
	for i, h := range stuck {
		if err := h.unlock(ctx); err != nil {
			l.mu.Lock()
			defer l.mu.Unlock()
			l.stuck = append(l.stuck, stuck[i:]...)
			return err
		}
	}
	return nil
}
