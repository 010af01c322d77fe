package postgres

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/mogile/mogile/protocol"
)

const (
	// blockLife is how long the fids of a block may be issued.
	blockLife = 5 * time.Second
	// minBlock and maxBlock bound the fids of a block.
	minBlock, maxBlock = 8, 2048
)

// fidBlocks issues fids from blocks that were committed durably before.
type fidBlocks struct {
	fetch func(ctx context.Context, n int) ([]protocol.FID, error)
	life  context.Context // of fetches
	wg    sync.WaitGroup  // fetches

	mu       sync.Mutex // guards what follows
	size     int        // of the next block
	current  fidBlock
	spare    fidBlock      // fetched ahead while current is used up fast
	fetching chan struct{} // closed when the running fetch ends; nil without one
	err      error         // of the last fetch
}

type fidBlock struct {
	fids []protocol.FID // not yet issued
	size int            // as fetched
	born time.Time      // when it was asked for
}

func (b *fidBlock) usable(now time.Time) bool {
	return len(b.fids) > 0 && now.Sub(b.born) < blockLife
}

func newFIDBlocks(life context.Context, fetch func(ctx context.Context, n int) ([]protocol.FID, error)) *fidBlocks {
	return &fidBlocks{fetch: fetch, life: life, size: minBlock}
}

// next is a fid that nobody was given before.
func (f *fidBlocks) next(ctx context.Context) (protocol.FID, error) {
	for {
		f.mu.Lock()
		now := time.Now()
		if !f.current.usable(now) {
			f.replace(now)
		}
		if f.current.usable(now) {
			b := &f.current
			fid := b.fids[0]
			b.fids = b.fids[1:]
			// At this pace the rest and another block go within their life.
			if 2*len(b.fids) <= b.size && now.Sub(b.born) < blockLife/4 && !f.spare.usable(now) {
				f.start(now)
			}
			f.mu.Unlock()
			return fid, nil
		}
		f.start(now)
		fetching := f.fetching
		f.mu.Unlock()
		select {
		case <-ctx.Done():
			return 0, ctx.Err()
		case <-fetching:
		}
		f.mu.Lock()
		err := f.err
		f.mu.Unlock()
		if err != nil {
			return 0, err
		}
	}
}

// replace puts the spare block in place of the current one, which is used up
// or too old, and learns from that one how large the next should be. f.mu is
// held.
func (f *fidBlocks) replace(now time.Time) {
	if old := f.current; old.size > 0 {
		used := old.size - len(old.fids)
		switch {
		case len(old.fids) > 0: // thrown away
			f.size = max(minBlock, min(f.size, 2*used))
		case now.Sub(old.born) < blockLife/4:
			f.size = min(maxBlock, max(f.size, 2*old.size))
		}
	}
	f.current, f.spare = f.spare, fidBlock{}
}

// start begins to fetch the spare block unless that is under way; f.mu is held.
func (f *fidBlocks) start(now time.Time) {
	if f.fetching != nil {
		return
	}
	f.fetching = make(chan struct{})
	n := f.size
	if f.current.usable(now) {
		n = min(maxBlock, max(n, 2*f.current.size)) // it is going fast
	}
	f.wg.Go(func() {
		ctx, cancel := context.WithTimeoutCause(f.life, callTimeout, errCallTimeout)
		defer cancel()
		fids, err := f.fetch(ctx, n)
		f.mu.Lock()
		defer f.mu.Unlock()
		if f.err = err; err == nil {
			f.spare = fidBlock{fids, len(fids), now}
		}
		close(f.fetching)
		f.fetching = nil
	})
}

// discard throws away what was fetched.
func (f *fidBlocks) discard() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.current, f.spare = fidBlock{}, fidBlock{}
}

func (f *fidBlocks) close() { f.wg.Wait() }

// recordBlock writes who was given fids last. It has a second purpose: a
// transaction that only advances a sequence need not reach the disk when it
// commits. The server logs a sequence 32 values ahead, so that an allocation
// may live on another transaction's record, which may be in memory only; and
// it is after a record of its own that a commit waits for the disk. After a
// crash the fids of such a transaction would be issued again.
const recordBlock = `INSERT INTO mogile_fid_block (slot, top) VALUES ($1, lastval())
	ON CONFLICT (slot) DO UPDATE SET top = EXCLUDED.top`

// fidSlots is the number of rows of mogile_fid_block. Trackers pick one at
// random, so that they do not wait for each other's commit.
const fidSlots = 64

// drawFIDs draws fids, and finds those that the database remembers among all from
// the first to the last: each table is asked once, not once for each fid.
const drawFIDs = `WITH b AS MATERIALIZED (SELECT nextval('tempfile_fid_seq') AS fid FROM generate_series(1, $1::int)),
	r AS MATERIALIZED (SELECT min(fid) AS first, max(fid) AS last FROM b),
	known AS MATERIALIZED (SELECT x.fid FROM r JOIN file x ON x.fid BETWEEN r.first AND r.last
		UNION ALL SELECT x.fid FROM r JOIN tempfile x ON x.fid BETWEEN r.first AND r.last
		UNION ALL SELECT x.fid FROM r JOIN file_on x ON x.fid BETWEEN r.first AND r.last
		UNION ALL SELECT x.fid FROM r JOIN file_to_delete x ON x.fid BETWEEN r.first AND r.last
		UNION ALL SELECT x.fid FROM r JOIN file_to_delete2 x ON x.fid BETWEEN r.first AND r.last
		UNION ALL SELECT x.fid FROM r JOIN file_to_delete_later x ON x.fid BETWEEN r.first AND r.last
		UNION ALL SELECT x.fid FROM r JOIN copy_to_delete x ON x.fid BETWEEN r.first AND r.last)
	SELECT b.fid, b.fid IN (SELECT fid FROM known) FROM b ORDER BY b.fid`

// allocate draws a block of n fids from the sequence, and returns when that is
// on disk. Fids that the database knows in spite of the sequence are left out.
func (s *Store) allocate(ctx context.Context, n int) ([]protocol.FID, error) {
	for range maxRepeats {
		fids, known, origin, err := s.draw(ctx, n)
		if err != nil {
			return nil, fmt.Errorf("allocate fids: %w", s.classify(ctx, err))
		}
		switch {
		case origin != s.origin.current():
			// Another server, or the same one after a fail-over: what we
			// were given by the old one may be given out again by this.
			s.fids.discard()
			s.o.Log.Warn().Str("origin", origin).Msg("the database server has changed; fids skip ahead")
		case known == 0:
			return fids, nil
		}
		if err := s.secureSequence(ctx, 0); err != nil {
			return nil, fmt.Errorf("allocate fids: %w", s.classify(ctx, err))
		}
	}
	return nil, errors.New("allocate fids: the sequence tempfile_fid_seq keeps giving out fids that are in use")
}

func (s *Store) draw(ctx context.Context, n int) (fids []protocol.FID, known int, origin string, err error) {
	err = repeat(ctx, func() error {
		fids, known = make([]protocol.FID, 0, n), 0
		return s.pipeline(ctx, implicit, func(b *pgx.Batch) {
			b.Queue(durable)
			b.Queue(drawFIDs, n).Query(func(rows pgx.Rows) error {
				var fid int64
				var used bool
				_, err := pgx.ForEachRow(rows, []any{&fid, &used}, func() error {
					if used {
						known++
					} else {
						fids = append(fids, protocol.FID(fid))
					}
					return nil
				})
				return err
			})
			b.Queue(recordBlock+` RETURNING `+s.origin.sql, rand.IntN(fidSlots)).QueryRow(func(row pgx.Row) error {
				return row.Scan(&origin)
			})
		})
	})
	return fids, known, origin, err
}

// origins knows which server, and which of its histories, fids come from.
type origins struct {
	sql string // an expression

	mu   sync.Mutex // guards seen
	seen string     // as of the last secureSequence
}

// newOrigins finds out how the server can be asked. Two databases that came
// apart, by a fail-over or a restore, differ in timeline or system identifier.
func newOrigins(ctx context.Context, pool *pgxpool.Pool) (*origins, error) {
	const (
		system   = `(SELECT system_identifier::text FROM pg_control_system())`
		timeline = `substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)`
	)
	// Some hosted servers forbid one or the other.
	for _, sql := range []string{system + ` || '/' || ` + timeline, timeline, system} {
		var origin string
		err := pool.QueryRow(ctx, `SELECT `+sql).Scan(&origin)
		if err == nil {
			return &origins{sql: sql}, nil
		}
		if unavailable(err) || state(err) == "" {
			return nil, err
		}
	}
	return &origins{sql: `''`}, nil
}

func (o *origins) current() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.seen
}

func (o *origins) set(origin string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.seen = origin
}

// originSkip is by how much the sequence is raised after a fail-over or a
// restore: more than could have been issued in what the server has lost.
const originSkip = 1_000_000

// highestFID is the highest fid that the database remembers.
const highestFID = `SELECT greatest(0, (SELECT max(fid) FROM file), (SELECT max(fid) FROM tempfile),
	(SELECT max(fid) FROM file_on), (SELECT max(fid) FROM file_to_delete), (SELECT max(fid) FROM file_to_delete2),
	(SELECT max(fid) FROM file_to_delete_later), (SELECT max(fid) FROM copy_to_delete), (SELECT max(top) FROM mogile_fid_block))::int8`

// lastFID is the last fid that the sequence gave out.
const lastFID = `SELECT CASE WHEN is_called THEN last_value ELSE last_value - 1 END FROM tempfile_fid_seq`

// secureSequence raises the sequence above above, above every fid that the
// database knows, and, where the server's origin has changed, by a further
// million. It never lowers it.
func (s *Store) secureSequence(ctx context.Context, above protocol.FID) error {
	if above > protocol.MaxFID-2*originSkip {
		return fmt.Errorf("fid %d leaves no room for others", above)
	}
	return repeat(ctx, func() error {
		return s.tx(ctx, func(tx pgx.Tx) error {
			if _, err := tx.Exec(ctx, lockInternal, schemaSpace, sequenceLock); err != nil {
				return err
			}
			var highest, last int64
			var origin string
			var stored *string
			if err := tx.QueryRow(ctx, highestFID).Scan(&highest); err != nil {
				return err
			}
			if err := tx.QueryRow(ctx, lastFID).Scan(&last); err != nil {
				return err
			}
			err := tx.QueryRow(ctx, `SELECT (SELECT value FROM mogile_meta WHERE name = 'origin'), `+s.origin.sql).Scan(&stored, &origin)
			if err != nil {
				return err
			}
			floor := max(highest, int64(above))
			if stored != nil && *stored != origin {
				floor = max(floor, last) + originSkip
			}
			if last < floor {
				if err := raiseSequence(ctx, tx, floor); err != nil {
					return err
				}
			}
			if stored == nil || *stored != origin {
				const set = `INSERT INTO mogile_meta (name, value) VALUES ('origin', $1) ON CONFLICT (name) DO UPDATE SET value = EXCLUDED.value`
				if _, err := tx.Exec(ctx, set, origin); err != nil {
					return err
				}
			}
			s.origin.set(origin)
			return nil
		})
	})
}

// raiseSequence makes the sequence go on above floor. The first ALTER changes
// nothing, but keeps others from drawing until the transaction ends, so that
// what is read afterwards stays true.
func raiseSequence(ctx context.Context, tx pgx.Tx, floor int64) error {
	if _, err := tx.Exec(ctx, `ALTER SEQUENCE tempfile_fid_seq NO CYCLE`); err != nil {
		return err
	}
	var last int64
	if err := tx.QueryRow(ctx, lastFID).Scan(&last); err != nil || last >= floor {
		return err
	}
	_, err := tx.Exec(ctx, fmt.Sprintf(`ALTER SEQUENCE tempfile_fid_seq RESTART WITH %d`, floor+1))
	return err
}
