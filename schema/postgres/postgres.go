// Package postgres is the namespace in PostgreSQL 12 or later: a
// [schema.Store] that any number of trackers share.
//
// The hot calls (recording uploads, closing them, finding keys, and all that
// workers do about one fid) are array statements: calls that arrive while others run are collected
// and share a statement and a commit, and a call that is alone waits for
// nobody. A statement that fails is repeated call by call.
//
// # Connection pools
//
// The main connections work through PgBouncer's transaction pooling, with
// default_query_exec_mode=exec in the DSN (or with PgBouncer 1.21's
// max_prepared_statements, as it is). Locks and news of changes need
// connections of their own to the server, which [Options.SessionDSN] names
// then. Settings of a session (statement_timeout, lock_timeout) are set by SQL,
// and are only as good as the pooler keeps them; what correctness needs is set
// inside each transaction.
package postgres

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/rs/zerolog"

	"github.com/mogile/mogile/schema"
)

// Options are how to reach the database.
type Options struct {
	// DSN is a connection string for pgx, as in schema.DSN.Postgres.
	DSN string
	// SessionDSN names a direct connection to the same database, for locks and
	// LISTEN, where DSN goes through a pooler. Empty means DSN.
	SessionDSN string
	// MaxConns bounds the connections for queries; two more are used for locks
	// and news. Zero means 16.
	MaxConns int
	// ClockOffset is added to the database's clock. Tests set it; nil is none.
	ClockOffset func() time.Duration
	// AnyVersion opens a database whose schema_version is another than those that
	// are known, at the operator's risk.
	AnyVersion bool
	Log        zerolog.Logger
}

const (
	defaultMaxConns = 16
	connectTimeout  = 5 * time.Second
	// callTimeout bounds every call that has no earlier deadline.
	callTimeout = 30 * time.Second
	// findTimeout bounds looking up keys: connections on which nothing comes any
	// more must not keep those up that come after.
	findTimeout = 10 * time.Second
	// writePace bounds the pace of batches that clients' changes wait for: what a
	// person or a page does not notice.
	writePace = 8 * time.Millisecond
)

// Store is the namespace in a PostgreSQL database.
type Store struct {
	o       Options
	pool    *pgxpool.Pool
	ascii   bool         // the database is SQL_ASCII: strings are bytes
	fid32   bool         // file.fid is a 32-bit column
	version atomic.Int64 // schema_version
	origin  *origins
	id      string // of this store among those that announce changes

	fids      *fidBlocks
	tempfiles *coalescer[schema.Tempfile, bool]
	uploads   *reader[schema.Tempfile]
	closes    *coalescer[schema.Close, error]
	guarded   *coalescer[schema.Close, error] // closes that depend on what the key names, one by one
	finds     *coalescer[keyName, foundFile]
	removals  *coalescer[keyName, removal]
	session   *session

	// What workers do.
	files       *reader[schema.LocatedFile]
	inspected   *reader[schema.Inspected]
	sums        *reader[storedSum]
	located     *reader[deviceOf]
	encodings   *reader[schema.Encoding]
	pending     *reader[deviceOf]
	changes     *coalescer[change, error]
	announces   *coalescer[entry, struct{}]
	strays      *coalescer[entry, struct{}]
	finishes    *coalescer[[]schema.Job, int]
	reschedules *coalescer[givenBack, bool]
	deletions   *coalescer[schema.Job, bool]

	stop  context.CancelFunc // ends what runs by itself
	life  context.Context    // ended by stop; carries no values or deadline
	wg    sync.WaitGroup     // what runs by itself
	close sync.Once
}

var _ schema.Store = (*Store)(nil)

// Open opens the namespace that o names, which [Migrate] has made. It raises
// the sequence of fids above every fid that the database knows.
func Open(ctx context.Context, o Options) (*Store, error) {
	config, err := poolConfig(o)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	pool, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		return nil, fmt.Errorf("open database: %w", err)
	}
	s := &Store{o: o, pool: pool, id: randomName()}
	s.life, s.stop = context.WithCancel(context.Background())
	if err := s.start(ctx); err != nil {
		s.stop()
		pool.Close()
		return nil, fmt.Errorf("open database: %w", s.classify(ctx, err))
	}
	return s, nil
}

func (s *Store) start(ctx context.Context) error {
	if err := s.check(ctx); err != nil {
		return err
	}
	var err error
	if s.origin, err = newOrigins(ctx, s.pool); err != nil {
		return err
	}
	if err := s.secureSequence(ctx, 0); err != nil {
		return err
	}
	s.fids = newFIDBlocks(s.life, s.allocate)
	s.tempfiles = newCoalescer(s.life, coalescing[schema.Tempfile, bool]{
		batches: 2, size: 64, pace: writePace, run: s.insertTempfiles, retry: s.retryAlone,
	})
	claims := func(c schema.Close) [2]any { return [2]any{keyName{c.DMID, c.Key}, c.FID} }
	s.closes = newCoalescer(s.life, coalescing[schema.Close, error]{
		batches: 2, size: 64, pace: writePace, run: s.closeBatch, alone: s.closeAlone, retry: s.retryAlone,
		keys: claims,
	})
	s.guarded = newCoalescer(s.life, coalescing[schema.Close, error]{
		batches: singles, size: 1, eager: true, run: s.closeGuarded, retry: s.retryAlone, keys: claims,
	})
	s.finds = newCoalescer(s.life, coalescing[keyName, foundFile]{
		batches: 4, size: 64, run: s.findBatch, retry: s.retryAlone, timeout: findTimeout,
	})
	s.removals = newCoalescer(s.life, coalescing[keyName, removal]{
		batches: 2, size: 64, pace: writePace, run: s.removeBatch, alone: s.removeAlone, retry: s.retryAlone,
		keys: func(k keyName) [2]any { return [2]any{k, k} },
	})
	s.uploads = newReader(s, readTempfiles, scanTempfiles)
	s.session = newSession(s)
	s.startWork()
	return nil
}

// startWork readies what workers do: about one fid at a time, many of them at
// once.
func (s *Store) startWork() {
	s.files = newReader(s, filesByFIDs, eachFile)
	s.inspected = newReader(s, inspectFiles, scanInspected)
	s.sums = newReader(s, storedSums, scanSums)
	s.located = newReader(s, locationsOf, scanDevices)
	s.encodings = newReader(s, encodingsOf, scanEncodings)
	s.pending = newReader(s, pendingDeletions, scanDevices)
	s.changes = newCoalescer(s.life, coalescing[change, error]{
		batches: 2, size: 64, run: s.changeBatch, alone: s.changeAlone, retry: s.retryAlone, timeout: changeTimeout,
		keys: func(c change) [2]any { return [2]any{c.fid, c.fid} },
	})
	s.announces = s.newEntries(announceCopies)
	s.strays = s.newEntries(queueCopyDeletions)
	s.finishes = newCoalescer(s.life, coalescing[[]schema.Job, int]{
		batches: 2, size: 64, run: s.finishBatch, retry: s.retryAlone,
	})
	s.reschedules = newCoalescer(s.life, coalescing[givenBack, bool]{
		batches: 2, size: 64, run: s.rescheduleBatch, retry: s.retryAlone,
	})
	s.deletions = newCoalescer(s.life, coalescing[schema.Job, bool]{
		batches: 2, size: 64, run: s.finishDeletionBatch, retry: s.retryAlone,
	})
}

// Close waits for running calls, gives up what is held, and closes the
// connections.
func (s *Store) Close() error {
	s.close.Do(func() {
		for _, c := range []interface{ close() }{
			s.tempfiles, s.uploads, s.closes, s.guarded, s.finds, s.removals, s.files, s.inspected, s.sums, s.located, s.encodings, s.pending,
			s.changes, s.announces, s.strays, s.finishes, s.reschedules, s.deletions,
		} {
			c.close()
		}
		s.stop()
		s.fids.close()
		s.session.close()
		s.wg.Wait()
		s.pool.Close()
	})
	return nil
}

// Ping reports whether the database answers.
func (s *Store) Ping(ctx context.Context) error {
	return s.do(ctx, "ping", func(ctx context.Context) error {
		_, err := s.pool.Exec(ctx, `SELECT 1`)
		return err
	})
}

// poolConfig is the configuration of the main connections.
func poolConfig(o Options) (*pgxpool.Config, error) {
	config, err := pgxpool.ParseConfig(o.DSN)
	if err != nil {
		return nil, fmt.Errorf("open database: %w", err)
	}
	config.MaxConns = int32(o.MaxConns)
	if o.MaxConns <= 0 {
		config.MaxConns = defaultMaxConns
	}
	config.MaxConnIdleTime = 5 * time.Minute
	prepareConn(config.ConnConfig)
	config.AfterConnect = afterConnect
	return config, nil
}

// sessionConfig is the configuration of connections that hold locks or listen.
func sessionConfig(o Options) (*pgx.ConnConfig, error) {
	dsn := o.SessionDSN
	if dsn == "" {
		dsn = o.DSN
	}
	config, err := pgxpool.ParseConfig(dsn) // which knows the pool's options in a DSN
	if err != nil {
		return nil, fmt.Errorf("session DSN: %w", err)
	}
	prepareConn(config.ConnConfig)
	return config.ConnConfig, nil
}

func prepareConn(c *pgx.ConnConfig) {
	if c.ConnectTimeout == 0 || c.ConnectTimeout > time.Minute {
		c.ConnectTimeout = connectTimeout
	}
	if c.RuntimeParams["application_name"] == "" {
		c.RuntimeParams["application_name"] = "mogile"
	}
}

// afterConnect sets up a session, within connectTimeout: nobody else ends the
// making of a connection, and each takes a place in the pool. The time-outs end statements whose client
// has gone; callers have shorter ones of their own.
//
// The statements are few, and look up rows by the thousand ways of an index.
// Plans are therefore made once, not for every batch, which would take longer
// than its execution, and in a way that stays right when a table that was empty
// has grown by millions of rows before the server has looked at it again.
func afterConnect(ctx context.Context, conn *pgx.Conn) error {
	registerArrays(conn)
	sql := `SET statement_timeout = '60s'; SET lock_timeout = '5s'; SET idle_in_transaction_session_timeout = '60s';
		SET plan_cache_mode = force_generic_plan; SET jit = off;
		SET enable_seqscan = off; SET enable_hashjoin = off; SET enable_mergejoin = off;
		SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'`
	if conn.PgConn().ParameterStatus("server_encoding") == "SQL_ASCII" {
		sql += `; SET client_encoding = SQL_ASCII` // else the server refuses bytes that are not UTF-8
	}
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	return conn.PgConn().Exec(ctx, sql).Close()
}

// check compares the database with what this code needs.
func (s *Store) check(ctx context.Context) error {
	conn, err := s.pool.Acquire(ctx)
	if err != nil {
		return err
	}
	defer conn.Release()
	switch encoding := conn.Conn().PgConn().ParameterStatus("server_encoding"); encoding {
	case "UTF8":
	case "SQL_ASCII":
		s.ascii = true
	default:
		return fmt.Errorf("the database's encoding is %s; Mogile needs UTF8 or SQL_ASCII: dump it and restore it into a database of that encoding", encoding)
	}
	var have struct {
		number           int
		settings, meta   bool
		version, ours    *string
		fidType, seqType *string
	}
	const tables = `SELECT current_setting('server_version_num')::int,
		to_regclass('server_settings') IS NOT NULL, to_regclass('mogile_meta') IS NOT NULL,
		(SELECT format_type(atttypid, NULL) FROM pg_attribute WHERE attrelid = to_regclass('file') AND attname = 'fid')`
	if err := conn.QueryRow(ctx, tables).Scan(&have.number, &have.settings, &have.meta, &have.fidType); err != nil {
		return err
	}
	if have.number < 120000 {
		return fmt.Errorf("the server is PostgreSQL %d; Mogile needs 12 or later", have.number/10000)
	}
	if !have.settings || have.fidType == nil {
		return errors.New("the database has no MogileFS schema: make it with `mogile migrate --dsn DSN`")
	}
	s.fid32 = *have.fidType == "integer"
	if !have.meta {
		return errors.New("the database was made by MogileFS and lacks Mogile's additions: add them with `mogile migrate --dsn DSN` (MogileFS's trackers can go on running)")
	}
	const versions = `SELECT (SELECT value FROM server_settings WHERE field = 'schema_version'),
		(SELECT value FROM mogile_meta WHERE name = 'version')`
	if err := conn.QueryRow(ctx, versions).Scan(&have.version, &have.ours); err != nil {
		return err
	}
	version, ours := number(have.version), number(have.ours)
	switch {
	case version > schema.VersionSealed && !s.o.AnyVersion:
		return fmt.Errorf("schema_version is %d, and this program knows versions up to %d: use a newer Mogile", version, schema.VersionSealed)
	case version < schema.VersionOpen && !s.o.AnyVersion || ours < ownVersion:
		return fmt.Errorf("the schema is of an older version (%d, Mogile's own %d; needed are %d and %d): upgrade it with `mogile migrate --dsn DSN`",
			version, ours, schema.VersionOpen, ownVersion)
	case ours > ownVersion+1:
		return fmt.Errorf("the schema is of a newer version (Mogile's own %d; this program knows %d): use a newer Mogile", ours, ownVersion)
	}
	s.version.Store(int64(version))
	return nil
}

// sealed reports whether Perl trackers are shut out.
func (s *Store) sealed() bool { return s.version.Load() >= schema.VersionSealed }

// offset is what is added to the database's clock, in seconds. It is parameter
// $1 of every statement that uses the clock.
func (s *Store) offset() int64 {
	if s.o.ClockOffset == nil {
		return 0
	}
	return int64(s.o.ClockOffset() / time.Second)
}

// now is the database's clock in whole seconds since 1970, in SQL; $1 is
// Store.offset.
const now = `(floor(extract(epoch FROM statement_timestamp()))::int8 + $1::int8)`

// pathsForgotten is when no tracker answers paths from its memory any more that
// it read before now: schema.DeletionDelay after it. 3600 and 10 are
// schema.MaxPathCacheTTL and schema.PathCacheMargin.
const pathsForgotten = `(` + now + ` + coalesce((SELECT least(substring(value FROM '^[0-9]{1,9}$')::int8, 3600) + 10
	FROM server_settings WHERE field = '` + schema.SettingPathCacheTTL + `' AND value ~ '^[0-9]{1,9}$' AND value !~ '^0+$'), 0))`

// in replaces {0}, {1}, … in a statement.
func in(sql string, parts ...string) string {
	pairs := make([]string, 0, 2*len(parts))
	for i, p := range parts {
		pairs = append(pairs, fmt.Sprintf("{%d}", i), p)
	}
	return strings.NewReplacer(pairs...).Replace(sql)
}
