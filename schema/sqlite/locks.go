package sqlite

import (
	"context"
	"database/sql"
	"sync"
	"time"

	"github.com/mogile/mogile/schema"
)

// locks are the named locks. There is one process, so that they live in it.
type locks struct {
	mu   sync.Mutex
	held map[string]struct{} // guarded by mu
	lost chan struct{}       // closed with the store
}

// lose gives all locks up. It may be called once.
func (l *locks) lose() {
	l.mu.Lock()
	defer l.mu.Unlock()
	clear(l.held)
	close(l.lost)
}

// TryLock takes those of the locks that are free; see [schema.Locks]. They are
// lost when the store is closed.
func (s *Store) TryLock(ctx context.Context, names []string) (held []string, lost <-chan struct{}, err error) {
	if err := ctx.Err(); err != nil {
		return nil, nil, err
	}
	if err := s.enter(); err != nil {
		return nil, nil, err
	}
	defer s.leave()
	s.locks.mu.Lock()
	defer s.locks.mu.Unlock()
	for _, name := range names {
		if _, taken := s.locks.held[name]; !taken {
			s.locks.held[name] = struct{}{}
			held = append(held, name)
		}
	}
	return held, s.locks.lost, nil
}

// Unlock gives locks back; see [schema.Locks].
func (s *Store) Unlock(_ context.Context, names []string) error {
	s.locks.mu.Lock()
	defer s.locks.mu.Unlock()
	for _, name := range names {
		delete(s.locks.held, name)
	}
	return nil
}

// HoldLease takes or renews a lease; see [schema.Locks].
func (s *Store) HoldLease(ctx context.Context, name, owner string, ttl time.Duration) (_ bool, err error) {
	defer wrap(&err, "hold lease %s", name)
	return write(ctx, s, func(t *tx) (bool, error) {
		now := s.now()
		n, err := t.exec(`INSERT INTO mogile_lease (name, owner, expires) VALUES (?1, ?2, ?3)
			ON CONFLICT (name) DO UPDATE SET owner = excluded.owner, expires = excluded.expires
			WHERE owner = excluded.owner OR expires <= ?4`, name, owner, later(now, ttl), now)
		return n == 1, err
	})
}

// ReleaseLease gives a lease up; see [schema.Locks].
func (s *Store) ReleaseLease(ctx context.Context, name, owner string) (err error) {
	defer wrap(&err, "release lease %s", name)
	return change(ctx, s, func(t *tx) error {
		_, err := t.exec("DELETE FROM mogile_lease WHERE name = ? AND owner = ?", name, owner)
		return err
	})
}

// RegisterTracker writes a tracker's row; see [schema.Members].
func (s *Store) RegisterTracker(ctx context.Context, tr schema.Tracker) (err error) {
	defer wrap(&err, "register tracker %s", tr.Name)
	return change(ctx, s, func(t *tx) error {
		_, err := t.exec(`INSERT INTO mogile_tracker (name, address, version, lastseen) VALUES (?, ?, ?, ?)
			ON CONFLICT (name) DO UPDATE SET address = excluded.address, version = excluded.version, lastseen = excluded.lastseen`,
			tr.Name, tr.Address, tr.Version, s.now())
		return err
	})
}

// Trackers lists the trackers; see [schema.Members].
func (s *Store) Trackers(ctx context.Context) (trackers []schema.Tracker, err error) {
	defer wrap(&err, "list trackers")
	err = s.read(ctx, "SELECT name, address, version, lastseen FROM mogile_tracker ORDER BY name", nil, func(rows *sql.Rows) error {
		var t schema.Tracker
		var seen int64
		err := rows.Scan(&t.Name, &t.Address, &t.Version, &seen)
		t.LastSeen = time.Unix(seen, 0)
		trackers = append(trackers, t)
		return err
	})
	return trackers, err
}
