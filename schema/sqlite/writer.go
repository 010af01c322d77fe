package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"slices"

	"github.com/mogile/mogile/schema"
)

// maxBatch bounds the calls that share a commit, and so how long the first of
// them waits for the others.
const maxBatch = 256

// call is one caller's write.
type call struct {
	run  func(*tx) error // may run again, where what was shared came to nothing
	gone func() error    // why its caller has left, nil while it waits
	done chan error      // holds one
}

// writer is the connection that writes, and the goroutine that owns it.
type writer struct {
	db    *sql.DB
	conn  *sql.Conn
	stmts map[string]*sql.Stmt
	calls chan *call
	ended chan struct{}

	// tokens are the leases given out and not yet run out, by row: a row that is
	// queued again and claimed again within a second must not get a token that
	// an earlier holder still has.
	tokens      map[rowKey][]int64
	pruneTokens int // prune when there are more
}

// openWriter opens the writing connection of a database that exists.
func openWriter(ctx context.Context, o Options) (*writer, error) {
	db, err := sql.Open("sqlite", o.uri("rw", "journal_mode(WAL)", "synchronous(FULL)", "journal_size_limit(67108864)"))
	if err != nil {
		return nil, err
	}
	conn, err := db.Conn(ctx)
	if err != nil {
		return nil, errors.Join(classify(ctx, err), db.Close())
	}
	w := &writer{
		db: db, conn: conn, stmts: make(map[string]*sql.Stmt),
		calls: make(chan *call), ended: make(chan struct{}),
		tokens: make(map[rowKey][]int64),
	}
	go w.loop()
	return w, nil
}

// close waits for the goroutine and closes the connection. No call may be
// submitted any more.
func (w *writer) close() error {
	close(w.calls)
	<-w.ended
	var errs []error
	for _, stmt := range w.stmts {
		errs = append(errs, stmt.Close())
	}
	return errors.Join(append(errs, w.conn.Close(), w.db.Close())...)
}

// loop takes what waits, and no more, into one commit.
func (w *writer) loop() {
	defer close(w.ended)
	batch := make([]*call, 0, maxBatch)
	for first := range w.calls {
		batch = append(batch[:0], first)
	drain:
		for len(batch) < maxBatch {
			select {
			case c, ok := <-w.calls:
				if !ok {
					break drain
				}
				batch = append(batch, c)
			default:
				break drain
			}
		}
		w.commit(batch)
		clear(batch)
	}
}

// commit applies a batch in one transaction, and tells each caller its own
// outcome.
func (w *writer) commit(batch []*call) {
	outcomes := make([]error, len(batch))
	err := w.transact(batch, outcomes)
	if err != nil && len(batch) > 1 {
		// Nothing of the batch was kept. One call may have been the reason, and
		// the others must not suffer for it.
		for _, c := range batch {
			w.commit([]*call{c})
		}
		return
	}
	for i, c := range batch {
		if err != nil {
			outcomes[i] = err
		}
		c.done <- outcomes[i]
	}
}

// transact runs the calls in a transaction. Where it returns an error nothing
// was applied, or (a commit that failed) nothing is known.
func (w *writer) transact(batch []*call, outcomes []error) (err error) {
	t := &tx{w}
	if _, err := t.exec("BEGIN IMMEDIATE"); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			// Some errors have rolled back already: then this one does not
			// matter.
			_, _ = t.exec("ROLLBACK")
		}
	}()
	for i, c := range batch {
		if outcomes[i] = c.gone(); outcomes[i] != nil {
			continue
		}
		if len(batch) == 1 {
			if err := c.run(t); err != nil {
				return err
			}
			continue
		}
		if _, err := t.exec("SAVEPOINT call"); err != nil {
			return err
		}
		if outcomes[i] = c.run(t); outcomes[i] != nil {
			if _, err := t.exec("ROLLBACK TO call"); err != nil {
				return err
			}
		}
		if _, err := t.exec("RELEASE call"); err != nil {
			return err
		}
	}
	_, err = t.exec("COMMIT")
	return err
}

// write has the writer run f in a transaction, and waits until it is committed.
// An error of f takes back all that f did, and nothing else. The context is
// that of waiting: once f has begun it is not interrupted.
func write[T any](ctx context.Context, s *Store, f func(*tx) (T, error)) (T, error) {
	var zero, out T
	if err := ctx.Err(); err != nil {
		return zero, err
	}
	if err := s.enter(); err != nil {
		return zero, err
	}
	defer s.leave()
	c := &call{
		run:  func(t *tx) (err error) { out, err = f(t); return err },
		gone: ctx.Err,
		done: make(chan error, 1),
	}
	select {
	case s.writer.calls <- c:
	case <-ctx.Done():
		return zero, ctx.Err()
	}
	select {
	case err := <-c.done:
		if err != nil {
			return zero, err
		}
		return out, nil
	case <-ctx.Done():
		return zero, ctx.Err() // nothing is known of the outcome
	}
}

// change is write for what has no result.
func change(ctx context.Context, s *Store, f func(*tx) error) error {
	_, err := write(ctx, s, func(t *tx) (struct{}, error) { return struct{}{}, f(t) })
	return err
}

// tx is the writer's transaction, as a call sees it. Its statements are short,
// and not interrupted.
type tx struct{ w *writer }

func (t *tx) stmt(query string) (*sql.Stmt, error) {
	if stmt, ok := t.w.stmts[query]; ok {
		return stmt, nil
	}
	stmt, err := t.w.conn.PrepareContext(context.Background(), query)
	if err != nil {
		return nil, classify(context.Background(), err)
	}
	t.w.stmts[query] = stmt
	return stmt, nil
}

// exec runs a statement and returns how many rows it changed.
func (t *tx) exec(query string, args ...any) (int64, error) {
	stmt, err := t.stmt(query)
	if err != nil {
		return 0, err
	}
	res, err := stmt.ExecContext(context.Background(), args...)
	if err != nil {
		return 0, classify(context.Background(), err)
	}
	return res.RowsAffected()
}

// row reads the first row of query, and reports whether there is one.
func (t *tx) row(query string, args []any, dest ...any) (bool, error) {
	stmt, err := t.stmt(query)
	if err != nil {
		return false, err
	}
	err = stmt.QueryRowContext(context.Background(), args...).Scan(dest...)
	if errors.Is(err, sql.ErrNoRows) {
		return false, nil
	}
	return err == nil, classify(context.Background(), err)
}

// rows calls each for every row of query. Each must not use the transaction.
func (t *tx) rows(query string, args []any, each func(*sql.Rows) error) error {
	return readRows(context.Background(), func(_ context.Context, query string) (*sql.Stmt, error) { return t.stmt(query) }, query, args, each)
}

// rowKey names a row of a queue.
type rowKey struct {
	queue schema.Queue
	fid   int64
	devid int64
	what  schema.What
}

// token is a lease's token for the row: at, or soon after it where an earlier
// lease has that.
func (t *tx) token(k rowKey, at, now int64) int64 {
	w := t.w
	if len(w.tokens) > w.pruneTokens {
		for k, live := range w.tokens {
			if w.tokens[k] = running(live, now); len(w.tokens[k]) == 0 {
				delete(w.tokens, k)
			}
		}
		w.pruneTokens = 2*len(w.tokens) + 1024
	}
	at = t.unlike(k, at, +1)
	w.tokens[k] = append(running(w.tokens[k], now), at)
	return at
}

// unlike moves at, a row's new nexttry, away from the tokens of its leases.
func (t *tx) unlike(k rowKey, at, step int64) int64 {
	for slices.Contains(t.w.tokens[k], at) {
		at += step
	}
	return at
}

// running are the tokens of leases that have not run out: no new lease gets an
// older one anyway.
func running(tokens []int64, now int64) []int64 {
	return slices.DeleteFunc(tokens, func(at int64) bool { return at < now })
}
