package postgres

import (
	"context"
	"crypto/md5"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/mogile/mogile/schema"
)

// First keys of advisory locks in the two-key form. MogileFS 2.73 has the
// tracker's host name hashed there, so that its locks exclude nobody on other
// hosts; ours is the same everywhere. Each number is lockKey of the text beside
// it.
const (
	lockSpace   = 980205007  // "mogile": named locks, whose second key is lockKey of the name
	domainSpace = 596067013  // "mogile:domain": second key is the dmid; shared by closes, exclusive to delete_domain and delete_class
	schemaSpace = 1259903890 // "mogile:schema": the locks below
)

// Second keys in schemaSpace.
const (
	migrateLock  = 1 // held by a running migration
	sequenceLock = 2 // held while the sequence of fids is raised
	topologyLock = 3 // held while a domain, class, host or device is made, changed or deleted
)

// lockInternal takes an exclusive lock until the transaction ends.
const lockInternal = `SELECT pg_advisory_xact_lock($1::int4, $2::int4)`

// lockKey is the first four bytes of a name's MD5, big-endian, without the sign
// bit, as in MogileFS 2.73.
func lockKey(name string) int32 {
	sum := md5.Sum([]byte(name))
	return int32(binary.BigEndian.Uint32(sum[:]) & 0x7fffffff)
}

const (
	// watchInterval is how often the session is looked after while it holds
	// locks.
	watchInterval = time.Second
	// sessionTimeout bounds each statement of the session.
	sessionTimeout = 5 * time.Second
)

// session is the connection that named locks live on.
type session struct {
	s  *Store
	wg sync.WaitGroup // watch

	turn   chan struct{} // of capacity 1, full during statements: guards what follows
	conn   *pgx.Conn     // nil before the first lock and after a loss
	lost   chan struct{}
	held   map[int32]string // names by key: names that share a key exclude each other
	closed bool
}

func newSession(s *Store) *session { return &session{s: s, turn: make(chan struct{}, 1)} }

// begin waits for the session until ctx ends: a server that hangs takes
// sessionTimeout of everybody's time.
func (l *session) begin(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	select {
	case l.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (l *session) end() { <-l.turn }

// TryLock takes locks without waiting.
func (s *Store) TryLock(ctx context.Context, names []string) ([]string, <-chan struct{}, error) {
	held, lost, err := s.session.tryLock(ctx, names)
	if err != nil {
		return nil, nil, fmt.Errorf("take locks: %w", err)
	}
	return held, lost, nil
}

// Unlock gives locks back.
func (s *Store) Unlock(ctx context.Context, names []string) error {
	if err := s.session.unlock(ctx, names); err != nil {
		return fmt.Errorf("give back locks: %w", err)
	}
	return nil
}

const (
	tryLocks = `SELECT k, pg_try_advisory_lock($1::int4, k) FROM unnest($2::int4[]) k`
	unlocks  = `SELECT pg_advisory_unlock($1::int4, k) FROM unnest($2::int4[]) k`
)

// Statements of the session do not end with the caller's context: a cancelled
// one would cost the connection, and with it everybody's locks.

func (l *session) tryLock(caller context.Context, names []string) (held []string, lost <-chan struct{}, err error) {
	if err := l.begin(caller); err != nil {
		return nil, nil, err
	}
	defer l.end()
	if l.closed {
		return nil, nil, errClosed
	}
	wanted := make(map[int32]string, len(names))
	var keys []int32
	for _, name := range names {
		k := lockKey(name)
		_, ours := l.held[k]
		_, twice := wanted[k]
		if !ours && !twice {
			wanted[k] = name
			keys = append(keys, k)
		}
	}
	ctx, cancel := context.WithTimeout(l.s.life, sessionTimeout)
	defer cancel()
	// A session that nobody relied on may have gone unnoticed while it idled,
	// with a restart of the server: a new one is as good.
	retry := l.conn != nil && len(l.held) == 0
	for {
		if err := l.connect(ctx); err != nil {
			return nil, nil, err
		}
		if len(keys) == 0 {
			return nil, l.lost, nil
		}
		if held, err = l.take(ctx, keys, wanted); err == nil {
			break
		}
		l.lose()
		if !retry {
			return nil, nil, unavailableErr(err)
		}
		retry = false
	}
	for _, name := range held {
		l.held[lockKey(name)] = name
	}
	return held, l.lost, nil
}

// take takes those of the keys that are free, and returns their names.
func (l *session) take(ctx context.Context, keys []int32, names map[int32]string) (held []string, err error) {
	rows, err := l.conn.Query(ctx, tryLocks, lockSpace, keys)
	if err != nil {
		return nil, err
	}
	var k int32
	var taken bool
	_, err = pgx.ForEachRow(rows, []any{&k, &taken}, func() error {
		if taken {
			held = append(held, names[k])
		}
		return nil
	})
	return held, err
}

func (l *session) unlock(caller context.Context, names []string) error {
	if err := l.begin(caller); err != nil {
		return err
	}
	defer l.end()
	var keys []int32
	for _, name := range names {
		if k := lockKey(name); l.held[k] == name {
			delete(l.held, k)
			keys = append(keys, k)
		}
	}
	if len(keys) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(l.s.life, sessionTimeout)
	defer cancel()
	if _, err := l.conn.Exec(ctx, unlocks, lockSpace, keys); err != nil {
		l.lose() // which gives them back too
		return unavailableErr(err)
	}
	return nil
}

// connect opens the session unless it is open; the turn is the caller's.
func (l *session) connect(ctx context.Context) error {
	if l.conn != nil {
		return nil
	}
	config, err := sessionConfig(l.s.o)
	if err != nil {
		return err
	}
	conn, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		return unavailableErr(err)
	}
	l.conn, l.lost, l.held = conn, make(chan struct{}), make(map[int32]string)
	l.wg.Go(func() { l.watch(conn) })
	return nil
}

// watch finds out soon when the session is lost.
func (l *session) watch(conn *pgx.Conn) {
	tick := time.NewTicker(watchInterval)
	defer tick.Stop()
	for {
		select {
		case <-l.s.life.Done():
			return
		case <-tick.C:
		}
		if !l.alive(conn) {
			return
		}
	}
}

// alive reports whether conn is still the session's and answers.
func (l *session) alive(conn *pgx.Conn) bool {
	_ = l.begin(context.Background()) // which never ends
	defer l.end()
	if l.conn != conn {
		return false
	}
	if len(l.held) == 0 {
		return true // nobody relies on it; the next lock finds out
	}
	ctx, cancel := context.WithTimeout(l.s.life, sessionTimeout)
	defer cancel()
	if err := conn.Ping(ctx); err != nil {
		if l.s.life.Err() == nil {
			l.s.o.Log.Warn().Err(err).Int("locks", len(l.held)).Msg("lost the database session that holds locks")
		}
		l.lose()
		return false
	}
	return true
}

// lose gives the session up, and every lock on it; the turn is the caller's.
func (l *session) lose() {
	if l.conn == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = l.conn.Close(ctx) // it is given up, however it ends
	close(l.lost)
	l.conn, l.held = nil, nil
}

// close ends the session; the store's life has ended before.
func (l *session) close() {
	_ = l.begin(context.Background()) // which never ends
	l.closed = true
	l.lose()
	l.end()
	l.wg.Wait()
}

// unavailableErr is the error of a session that was lost.
func unavailableErr(err error) error {
	if unavailable(err) || errors.Is(err, context.Canceled) {
		return fmt.Errorf("%w: %w", schema.ErrUnavailable, err)
	}
	return err
}

// HoldLease takes or renews a lease.
func (s *Store) HoldLease(ctx context.Context, name, owner string, ttl time.Duration) (bool, error) {
	var held bool
	err := s.do(ctx, "hold lease "+name, func(ctx context.Context) error {
		tag, err := s.pool.Exec(ctx, holdLease, s.offset(), name, owner, ttl.Milliseconds())
		held = tag.RowsAffected() > 0
		return err
	})
	return held, err
}

// holdLease has its times in milliseconds.
const holdLease = `INSERT INTO mogile_lease AS l (name, owner, until_ms)
	VALUES ($2, $3, floor(extract(epoch FROM statement_timestamp()) * 1000)::int8 + $1::int8 * 1000 + $4::int8)
	ON CONFLICT (name) DO UPDATE SET owner = EXCLUDED.owner, until_ms = EXCLUDED.until_ms
	WHERE l.owner = EXCLUDED.owner OR l.until_ms <= EXCLUDED.until_ms - $4`

// ReleaseLease gives a lease up.
func (s *Store) ReleaseLease(ctx context.Context, name, owner string) error {
	return s.do(ctx, "release lease "+name, func(ctx context.Context) error {
		_, err := s.pool.Exec(ctx, `DELETE FROM mogile_lease WHERE name = $1 AND owner = $2`, name, owner)
		return err
	})
}

// RegisterTracker writes or renews a tracker's row.
func (s *Store) RegisterTracker(ctx context.Context, t schema.Tracker) error {
	return s.do(ctx, "register tracker "+t.Name, func(ctx context.Context) error {
		_, err := s.pool.Exec(ctx, registerTracker, s.offset(), t.Name, t.Address, t.Version)
		return err
	})
}

const registerTracker = `INSERT INTO mogile_tracker (name, address, version, lastseen) VALUES ($2, $3, $4, ` + now + `)
	ON CONFLICT (name) DO UPDATE SET address = EXCLUDED.address, version = EXCLUDED.version, lastseen = EXCLUDED.lastseen`

// Trackers lists the trackers that registered.
func (s *Store) Trackers(ctx context.Context) ([]schema.Tracker, error) {
	var trackers []schema.Tracker
	err := s.do(ctx, "list trackers", func(ctx context.Context) error {
		trackers = nil
		rows, err := s.pool.Query(ctx, `SELECT name, address, version, lastseen FROM mogile_tracker ORDER BY name COLLATE "C"`)
		if err != nil {
			return err
		}
		var t schema.Tracker
		var seen int64
		_, err = pgx.ForEachRow(rows, []any{&t.Name, &t.Address, &t.Version, &seen}, func() error {
			t.LastSeen = time.Unix(seen, 0)
			trackers = append(trackers, t)
			return nil
		})
		return err
	})
	return trackers, err
}
