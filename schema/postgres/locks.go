package postgres

import (
	"context"
	"crypto/md5"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
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

// session is the connection that named locks live on. Its statements run one
// after the other; calls that come meanwhile share the next one.
type session struct {
	s  *Store
	wg sync.WaitGroup // watch

	mu      sync.Mutex
	waiting []*lockCall // guarded by mu

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

// lockCall is a call that waits for the session.
type lockCall struct {
	names []string
	give  bool // gives names back, else takes them
	held  []string
	lost  <-chan struct{}
	err   error
	done  chan struct{} // closed when the three before are set
}

// TryLock takes locks without waiting.
func (s *Store) TryLock(ctx context.Context, names []string) ([]string, <-chan struct{}, error) {
	c := &lockCall{names: names}
	if err := s.session.do(ctx, c); err != nil {
		return nil, nil, fmt.Errorf("take locks: %w", err)
	}
	return c.held, c.lost, nil
}

// Unlock gives locks back.
func (s *Store) Unlock(ctx context.Context, names []string) error {
	if err := s.session.do(ctx, &lockCall{names: names, give: true}); err != nil {
		return fmt.Errorf("give back locks: %w", err)
	}
	return nil
}

const (
	unlocks  = `SELECT pg_advisory_unlock($1::int4, k) FROM unnest($2::int4[]) k`
	tryLocks = `SELECT k, pg_try_advisory_lock($1::int4, k) FROM unnest($2::int4[]) k`
)

// do runs a call, and with it all that wait for the session too. One whose
// context ends before it has begun does nothing; else its outcome is awaited.
func (l *session) do(ctx context.Context, c *lockCall) error {
	c.done = make(chan struct{})
	l.mu.Lock()
	l.waiting = append(l.waiting, c)
	l.mu.Unlock()
	if err := l.begin(ctx); err == nil {
		l.runWaiting()
		l.end()
	} else if l.withdraw(c) {
		return err
	}
	<-c.done
	return c.err
}

// withdraw takes a call back unless it runs.
func (l *session) withdraw(c *lockCall) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	i := slices.Index(l.waiting, c)
	if i < 0 {
		return false
	}
	l.waiting = slices.Delete(l.waiting, i, i+1)
	return true
}

// runWaiting runs the calls that wait; the turn is the caller's. What is given
// back can be taken by another at once.
func (l *session) runWaiting() {
	l.mu.Lock()
	calls := l.waiting
	l.waiting = nil
	l.mu.Unlock()
	if len(calls) > 0 {
		l.run(calls)
	}
	for _, c := range calls {
		close(c.done)
	}
}

// Statements of the session do not end with a caller's context: a cancelled
// one would cost the connection, and with it everybody's locks.

func (l *session) run(calls []*lockCall) {
	ctx, cancel := context.WithTimeout(l.s.life, sessionTimeout)
	defer cancel()
	wanted, names := make(map[int32]*lockCall), make(map[int32]string)
	var given, keys []int32
	var concerned []*lockCall // with the session
	for _, c := range calls {
		before := len(given)
		for _, name := range c.names {
			if k := lockKey(name); c.give && l.held[k] == name {
				delete(l.held, k)
				given = append(given, k)
			}
		}
		if !c.give || len(given) > before {
			concerned = append(concerned, c)
		}
	}
	for _, c := range concerned {
		for _, name := range c.names {
			k := lockKey(name)
			_, ours := l.held[k]
			_, twice := wanted[k]
			if !c.give && !ours && !twice {
				wanted[k], names[k] = c, name
				keys = append(keys, k)
			}
		}
	}
	if len(concerned) == 0 {
		return
	}
	taken, err := l.exchange(ctx, given, keys)
	for _, k := range taken {
		wanted[k].held = append(wanted[k].held, names[k])
		l.held[k] = names[k]
	}
	for _, c := range concerned {
		c.lost, c.err = l.lost, err
	}
}

// exchange gives keys back and takes those of others that are free, which it
// returns.
func (l *session) exchange(ctx context.Context, given, keys []int32) (taken []int32, err error) {
	if l.closed {
		return nil, errClosed
	}
	// A session that nobody relied on may have gone unnoticed while it idled,
	// with a restart of the server: a new one is as good.
	retry := l.conn != nil && len(l.held)+len(given) == 0
	for {
		if err := l.connect(ctx); err != nil {
			return nil, err
		}
		if len(given)+len(keys) == 0 {
			return nil, nil
		}
		if taken, err = l.send(ctx, given, keys); err == nil {
			return taken, nil
		}
		l.lose() // which gives them back too
		if !retry {
			return nil, unavailableErr(err)
		}
		retry = false
	}
}

// send is one round trip.
func (l *session) send(ctx context.Context, given, keys []int32) (taken []int32, err error) {
	b := new(pgx.Batch)
	if len(given) > 0 {
		b.Queue(unlocks, lockSpace, given)
	}
	if len(keys) > 0 {
		b.Queue(tryLocks, lockSpace, keys).Query(func(rows pgx.Rows) error {
			var k int32
			var ok bool
			_, err := pgx.ForEachRow(rows, []any{&k, &ok}, func() error {
				if ok {
					taken = append(taken, k)
				}
				return nil
			})
			return err
		})
	}
	err = l.conn.SendBatch(ctx, b).Close()
	return taken, err
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
