package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"github.com/mogile/mogile/schema"
)

// Options say which database to open, and how.
type Options struct {
	// Path is the database file.
	Path string
	// Readers bounds the connections that read; default 4, or one for each
	// processor where there are more.
	Readers int
	// BusyTimeout is how long a call waits for a stranger's lock, such as that
	// of the sqlite3 command line; default 5 s.
	BusyTimeout time.Duration
	// ClockOffset is added to the clock; for tests. It may be called at any
	// time by several goroutines.
	ClockOffset func() time.Duration
	// AnyVersion opens a database whose schema_version is another than those that
	// are known, at the operator's risk.
	AnyVersion bool
	Log        zerolog.Logger
}

// Store is the embedded [schema.Store].
type Store struct {
	o       Options
	lock    *fileLock
	readers *sql.DB
	reads   sync.Map // statement text to *sql.Stmt
	writer  *writer

	running sync.RWMutex // held for reading by every call, so that Close waits
	closed  bool         // guarded by running

	sealed bool // nothing that MogileFS would misread is refused
	locks  locks
}

var _ schema.Store = (*Store)(nil)

// Open opens a migrated database. It refuses one that another process has open,
// and one without schema or of another version.
func Open(ctx context.Context, o Options) (_ *Store, err error) {
	if err := o.fill(); err != nil {
		return nil, err
	}
	if _, err := os.Stat(o.Path); errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("there is no database at %s: make one with `mogile migrate --dsn sqlite:%s`", o.Path, o.Path)
	}
	s := &Store{o: o, locks: locks{held: make(map[string]struct{}), lost: make(chan struct{})}}
	if s.lock, err = lockFile(o.Path); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.shut())
		}
	}()
	if s.readers, err = sql.Open("sqlite", o.uri("rw", "query_only(1)")); err != nil {
		return nil, fmt.Errorf("open %s: %w", o.Path, err)
	}
	s.readers.SetMaxOpenConns(o.Readers)
	s.readers.SetMaxIdleConns(o.Readers)
	if err := s.checkVersion(ctx); err != nil {
		return nil, err
	}
	if s.writer, err = openWriter(ctx, o); err != nil {
		return nil, fmt.Errorf("open %s: %w", o.Path, err)
	}
	if err := s.raiseFIDs(ctx); err != nil {
		return nil, err
	}
	return s, nil
}

// fill checks the options and sets defaults.
func (o *Options) fill() error {
	if o.Path == "" || strings.ContainsRune(o.Path, 0) || o.Path == ":memory:" {
		return fmt.Errorf("%q is not the path of a database file", o.Path)
	}
	// Connections are opened later too, when a process that goes into the
	// background has left its folder.
	path, err := filepath.Abs(o.Path)
	if err != nil {
		return fmt.Errorf("%s: %w", o.Path, err)
	}
	o.Path = path
	// The lock file must be the same, whatever name the database goes by.
	if path, err := filepath.EvalSymlinks(o.Path); err == nil {
		o.Path = path
	}
	if o.Readers <= 0 {
		o.Readers = max(4, runtime.GOMAXPROCS(0))
	}
	if o.BusyTimeout <= 0 {
		o.BusyTimeout = 5 * time.Second
	}
	if o.ClockOffset == nil {
		o.ClockOffset = func() time.Duration { return 0 }
	}
	return nil
}

// uri names the database to the driver.
func (o *Options) uri(mode string, pragmas ...string) string {
	q := url.Values{"mode": {mode}}
	q.Add("_pragma", fmt.Sprintf("busy_timeout(%d)", o.BusyTimeout.Milliseconds()))
	for _, p := range pragmas {
		q.Add("_pragma", p)
	}
	return "file:" + (&url.URL{Path: filepath.ToSlash(o.Path)}).EscapedPath() + "?" + q.Encode()
}

func (o *Options) now() time.Time { return time.Now().Add(o.ClockOffset()) }

// now is the database's clock.
func (s *Store) now() int64 { return s.o.now().Unix() }

// enter begins a call; leave ends it.
func (s *Store) enter() error {
	s.running.RLock()
	if s.closed {
		s.running.RUnlock()
		return errClosed
	}
	return nil
}

func (s *Store) leave() { s.running.RUnlock() }

// Ping reports whether the database answers.
func (s *Store) Ping(ctx context.Context) error {
	var one int
	return s.readRow(ctx, "SELECT 1 FROM server_settings WHERE field = 'schema_version'", nil, &one)
}

// Close waits for running calls, gives up the locks, and closes the database.
// Calls that follow get an error matching schema.ErrUnavailable; closing twice
// is no error.
func (s *Store) Close() error {
	s.running.Lock()
	defer s.running.Unlock()
	if s.closed {
		return nil
	}
	s.closed = true
	s.locks.lose()
	return s.shut()
}

// shut closes what has been opened. The writer is the last to have a
// connection: closing it moves the log into the database.
func (s *Store) shut() error {
	var errs []error
	s.reads.Range(func(_, stmt any) bool {
		errs = append(errs, stmt.(*sql.Stmt).Close())
		return true
	})
	if s.readers != nil {
		errs = append(errs, s.readers.Close())
	}
	if s.writer != nil {
		errs = append(errs, s.writer.close())
	}
	errs = append(errs, s.lock.Close())
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("close %s: %w", s.o.Path, err)
	}
	return nil
}

// querier is a prepared statement's place: the pool, or a transaction on it.
type querier func(ctx context.Context, query string) (*sql.Stmt, error)

// prepared is the pool's statement for query.
func (s *Store) prepared(ctx context.Context, query string) (*sql.Stmt, error) {
	if stmt, ok := s.reads.Load(query); ok {
		return stmt.(*sql.Stmt), nil
	}
	stmt, err := s.readers.PrepareContext(ctx, query)
	if err != nil {
		return nil, err
	}
	if first, loaded := s.reads.LoadOrStore(query, stmt); loaded {
		return first.(*sql.Stmt), stmt.Close()
	}
	return stmt, nil
}

// readRow reads the first row of query; sql.ErrNoRows where there is none.
func (s *Store) readRow(ctx context.Context, query string, args []any, dest ...any) error {
	if err := s.enter(); err != nil {
		return err
	}
	defer s.leave()
	stmt, err := s.prepared(ctx, query)
	if err != nil {
		return classify(ctx, err)
	}
	return classify(ctx, stmt.QueryRowContext(ctx, args...).Scan(dest...))
}

// read calls each for every row of query.
func (s *Store) read(ctx context.Context, query string, args []any, each func(*sql.Rows) error) error {
	if err := s.enter(); err != nil {
		return err
	}
	defer s.leave()
	return readRows(ctx, s.prepared, query, args, each)
}

func readRows(ctx context.Context, q querier, query string, args []any, each func(*sql.Rows) error) error {
	stmt, err := q(ctx, query)
	if err != nil {
		return classify(ctx, err)
	}
	rows, err := stmt.QueryContext(ctx, args...)
	if err != nil {
		return classify(ctx, err)
	}
	defer rows.Close()
	for rows.Next() {
		if err := each(rows); err != nil {
			return err
		}
	}
	return classify(ctx, rows.Err())
}

// snapshot calls f with a querier whose statements all see the same moment.
func (s *Store) snapshot(ctx context.Context, f func(querier) error) error {
	if err := s.enter(); err != nil {
		return err
	}
	defer s.leave()
	tx, err := s.readers.BeginTx(ctx, &sql.TxOptions{ReadOnly: true})
	if err != nil {
		return classify(ctx, err)
	}
	err = f(func(ctx context.Context, query string) (*sql.Stmt, error) {
		stmt, err := s.prepared(ctx, query)
		if err != nil {
			return nil, err
		}
		return tx.StmtContext(ctx, stmt), nil
	})
	// Nothing was written: only the error of f counts.
	return errors.Join(err, ignoreDone(tx.Rollback()))
}

func ignoreDone(err error) error {
	if errors.Is(err, sql.ErrTxDone) {
		return nil
	}
	return err
}
