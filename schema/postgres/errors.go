package postgres

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/schema"
)

// SQLSTATEs that are acted on.
const (
	stateTooLong       = "22001" // string_data_right_truncation
	stateOutOfRange    = "22003" // numeric_value_out_of_range
	stateDivision      = "22012" // division_by_zero: our own check failed
	stateNotInEncoding = "22021" // character_not_in_repertoire
	stateUnique        = "23505"
	stateReadOnly      = "25006" // read_only_sql_transaction: a standby
	stateSerialization = "40001"
	stateDeadlock      = "40P01"
	stateTooMany       = "53300" // too_many_connections
	stateLockTimeout   = "55P03" // lock_not_available
)

// errClosed is what calls get after Close.
var errClosed = fmt.Errorf("%w: the store is closed", schema.ErrUnavailable)

// state is the SQLSTATE of err, empty where it has none.
func state(err error) string {
	if e, ok := errors.AsType[*pgconn.PgError](err); ok {
		return e.Code
	}
	return ""
}

// constraint is the name of the constraint that err is about.
func constraint(err error) string {
	if e, ok := errors.AsType[*pgconn.PgError](err); ok {
		return e.ConstraintName
	}
	return ""
}

// unavailable reports whether err says that the database could not be reached
// or went away.
func unavailable(err error) bool {
	if e, ok := errors.AsType[*pgconn.PgError](err); ok {
		return strings.HasPrefix(e.Code, "08") || strings.HasPrefix(e.Code, "57P") ||
			e.Code == stateReadOnly || e.Code == stateTooMany
	}
	if _, ok := errors.AsType[*pgconn.ConnectError](err); ok {
		return true
	}
	if _, ok := errors.AsType[net.Error](err); ok {
		return true
	}
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, net.ErrClosed) ||
		pgconn.SafeToRetry(err) || strings.Contains(err.Error(), "conn closed")
}

// transient reports whether the same statement may well succeed when it is
// repeated, and has done nothing yet.
func transient(err error) bool {
	switch state(err) {
	case stateDeadlock, stateSerialization, stateLockTimeout:
		return true
	case "0A000": // a migration altered a table under a prepared statement
		return strings.Contains(err.Error(), "cached plan")
	}
	return pgconn.SafeToRetry(err) || errors.Is(err, errKeyTaken)
}

// classify makes err match schema.ErrUnavailable where that is so. What the
// caller's own context brought about is left as it is.
func (s *Store) classify(ctx context.Context, err error) error {
	if err == nil || errors.Is(err, schema.ErrUnavailable) || ctx.Err() != nil && context.Cause(ctx) != errCallTimeout {
		return err
	}
	if unavailable(err) || context.Cause(ctx) == errCallTimeout {
		return fmt.Errorf("%w: %w", schema.ErrUnavailable, err)
	}
	return err
}

// errCallTimeout is the cause of a context that callTimeout ended.
var errCallTimeout = errors.New("the database did not answer in time")

// maxRepeats is how often a deadlock or the like is tried again (MogileFS 2.73
// does so up to 3 times).
const maxRepeats = 3

// do runs a call: within callTimeout, repeated after deadlocks, with the name
// of the call before its error. Refusals are returned as they are.
func (s *Store) do(ctx context.Context, what string, call func(ctx context.Context) error) error {
	if s.life.Err() != nil {
		return fmt.Errorf("%s: %w", what, errClosed)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, callTimeout, errCallTimeout)
	defer cancel()
	err := repeat(ctx, func() error { return call(ctx) })
	if err == nil {
		return nil
	}
	if e, ok := errors.AsType[*protocol.Error](err); ok {
		return e
	}
	return fmt.Errorf("%s: %w", what, s.classify(ctx, err))
}

// repeat calls f until it succeeds or fails for good.
func repeat(ctx context.Context, f func() error) error {
	for n := 0; ; n++ {
		err := f()
		if err == nil || n == maxRepeats || !transient(err) || pause(ctx, 5*time.Millisecond<<n) != nil {
			return err
		}
	}
}

// pause waits for about d, or until ctx ends.
func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d/2 + rand.N(d))
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

// retryAlone reports whether the calls of a batch that failed with err are to
// be repeated one by one: not where the database is away.
func (s *Store) retryAlone(err error) bool { return !unavailable(err) || pgconn.SafeToRetry(err) }

// pipeline sends statements as one transaction in one round trip, which begins
// with begin, or, where that is implicit, by itself: what stands between two Sync
// messages is one transaction, without the cost of two more statements. fill queues
// them; what it has them do with their results is done before pipeline returns,
// and holds only if that is nil.
func (s *Store) pipeline(ctx context.Context, begin string, fill func(b *pgx.Batch)) error {
	conn, err := s.pool.Acquire(ctx)
	if err != nil {
		return err
	}
	defer conn.Release()
	b := new(pgx.Batch)
	if begin != implicit {
		b.Queue(begin)
	}
	fill(b)
	if begin != implicit {
		b.Queue(`COMMIT`)
	}
	if err = conn.SendBatch(ctx, b).Close(); err == nil {
		return nil
	}
	if !conn.Conn().IsClosed() && conn.Conn().PgConn().TxStatus() != 'I' {
		// Else the pool would drop the connection.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), connectTimeout)
		defer cancel()
		if _, rerr := conn.Exec(ctx, `ROLLBACK`); rerr != nil {
			return errors.Join(err, rerr)
		}
	}
	return err
}

// implicit is the transaction that a pipeline has anyway.
const implicit = ""

// durable makes the transaction's commit wait for the disk, whatever the
// server's default.
const durable = `SELECT set_config('synchronous_commit', 'on', true) WHERE current_setting('synchronous_commit') = 'off'`

// notDurable makes the commit not wait for the disk: a crash of the server may undo
// the transaction, as a whole, for some tenths of a second.
const notDurable = `SELECT set_config('synchronous_commit', 'off', true)`

// tx runs f in a transaction of several round trips.
func (s *Store) tx(ctx context.Context, f func(tx pgx.Tx) error) error {
	return pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, durable); err != nil {
			return err
		}
		return f(tx)
	})
}

// number reads a number in a text column, 0 where there is none.
func number(s *string) int {
	if s == nil {
		return 0
	}
	n, err := strconv.Atoi(strings.TrimSpace(*s))
	if err != nil {
		return 0
	}
	return n
}

func randomName() string { return strconv.FormatUint(rand.Uint64(), 36) }
