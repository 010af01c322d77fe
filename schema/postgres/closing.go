package postgres

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/schema"
)

// CloseFile turns an upload into a file.
func (s *Store) CloseFile(ctx context.Context, c schema.Close) error {
	if err := s.checkKey(c.Key); err != nil {
		return err
	}
	if err := schema.CheckHash(c.Checksum.Type, s.sealed()); err != nil {
		return err
	}
	switch {
	case c.FID > protocol.MaxFID:
		return protocol.ErrNoTempfile
	case c.DevID > protocol.MaxDevID:
		return fmt.Errorf("close fid %d: device %d is beyond the columns' width", c.FID, c.DevID)
	case c.Length < 0:
		return fmt.Errorf("close fid %d: length %d", c.FID, c.Length)
	}
	return s.do(ctx, fmt.Sprintf("close fid %d", c.FID), func(ctx context.Context) error {
		closes := s.closes
		if c.Conditional() {
			closes = s.guarded
		}
		outcome, err := closes.do(ctx, c)
		if err != nil {
			return keyError(err)
		}
		return outcome
	})
}

const (
	// batchLockTimeout is how long a batch waits for a row that somebody else
	// holds, before its calls are repeated one by one.
	batchLockTimeout = 100 * time.Millisecond
	// aloneLockTimeout is how long a call waits that is alone.
	aloneLockTimeout = 5 * time.Second
	// maxCloses is how often a close is tried whose key is deleted or renamed
	// under it again and again.
	maxCloses = 20
)

// closeBatch closes several uploads, whose keys and fids differ, in one
// transaction of one round trip:
//
//  1. The tempfile rows go, and the keys that are new are inserted, in key
//     order. Locations, checksums and the queues have their rows.
//  2. The rows of keys that existed are locked, in key order.
//  3. With a younger snapshot, which has their final contents, they are pointed
//     to the new fids, and the fids that they held are queued for deletion.
//
// If one of those rows was deleted or renamed between 1 and 2, step 3 fails,
// and the batch is rolled back and repeated call by call. Which calls steps 2
// and 3 are about, step 1 leaves in the setting mogile.pending.
//
// A domain or a class that is being deleted is held off by a shared advisory
// lock, which is much lighter than a lock on its row.
func (s *Store) closeBatch(ctx context.Context, calls []schema.Close, outcomes []error) error {
	return s.closeAll(ctx, calls, outcomes, batchLockTimeout)
}

func (s *Store) closeAlone(ctx context.Context, c schema.Close) (error, error) {
	var outcome [1]error
	for range maxCloses {
		err := repeat(ctx, func() error { return s.closeAll(ctx, []schema.Close{c}, outcome[:], aloneLockTimeout) })
		switch {
		case err == nil:
			return outcome[0], nil
		case state(err) == stateUnique && constraint(err) != "":
			// A file row of this fid under another key.
			return protocol.Err("fid_exists"), nil
		case state(err) != stateDivision:
			return nil, err
		}
		var same bool
		const sameFID = `SELECT EXISTS (SELECT FROM file WHERE fid = $1)`
		if err := s.pool.QueryRow(ctx, sameFID, int64(c.FID)).Scan(&same); err != nil {
			return nil, err
		}
		if same {
			return protocol.Err("fid_exists"), nil
		}
	}
	return nil, errors.New("the key was deleted or renamed too often meanwhile")
}

// closeArrays are the columns of closes.
type closeArrays struct {
	fids, lengths                        []int64
	dmids, classes, devids, hashes, used []int16
	keys                                 []string
	sums                                 [][]byte
	triedFIDs, triedDevs                 []int64 // pairs
}

// plain reports whether there is neither a checksum nor another device.
func (a *closeArrays) plain() bool {
	return len(a.triedFIDs) == 0 && !slices.ContainsFunc(a.hashes, func(h int16) bool { return h != 0 })
}

func arraysOf(calls []schema.Close) closeArrays {
	var a closeArrays
	for _, c := range calls {
		a.fids, a.lengths = append(a.fids, int64(c.FID)), append(a.lengths, c.Length)
		a.dmids, a.classes = append(a.dmids, int16(c.DMID)), append(a.classes, int16(c.ClassID))
		a.devids, a.hashes = append(a.devids, int16(c.DevID)), append(a.hashes, int16(c.Checksum.Type))
		a.keys, a.sums = append(a.keys, c.Key), append(a.sums, c.Checksum.Sum)
		for _, dev := range c.Tried {
			if dev != c.DevID && dev <= protocol.MaxDevID {
				a.triedFIDs, a.triedDevs = append(a.triedFIDs, int64(c.FID)), append(a.triedDevs, int64(dev))
			}
		}
	}
	a.used = slices.Compact(slices.Sorted(slices.Values(a.dmids)))
	return a
}

func (s *Store) closeAll(ctx context.Context, calls []schema.Close, outcomes []error, wait time.Duration) error {
	at := make(map[int64]int, len(calls))
	for i, c := range calls {
		at[int64(c.FID)] = i
	}
	sorted := slices.SortedFunc(slices.Values(calls), func(x, y schema.Close) int {
		return cmp.Or(cmp.Compare(x.DMID, y.DMID), cmp.Compare(x.Key, y.Key))
	})
	a := arraysOf(sorted)
	return s.pipeline(ctx, implicit, func(b *pgx.Batch) {
		b.Queue(beginCloses, wait.String(), domainSpace, a.used)
		sql, args := closeNewPlain, []any{s.offset(), a.fids, a.dmids, a.keys, a.lengths, a.classes, a.devids}
		if !a.plain() {
			sql, args = closeNew, append(args, a.hashes, a.sums, a.triedFIDs, a.triedDevs)
		}
		b.Queue(sql, args...).QueryRow(func(row pgx.Row) error {
			var d closeDecision
			err := d.scan(row)
			for fid, i := range at {
				outcomes[i] = d.outcome(fid)
			}
			return err
		})
		b.Queue(closeLock, a.fids, a.dmids, a.keys)
		b.Queue(closeOver, s.offset(), a.fids, a.dmids, a.keys, a.lengths, a.classes)
	})
}

// closeDecision is what closeNew answers.
type closeDecision struct {
	homeless  []int64 // fids whose domain is gone
	classless []int64 // fids whose class is gone
	gone      []int64 // fids whose tempfile row went: they are files now
	pending   string  // those of them whose key has a row, as an array's text
}

func (d *closeDecision) scan(row pgx.Row) error {
	return row.Scan(&d.homeless, &d.classless, &d.gone, &d.pending)
}

func (d *closeDecision) outcome(fid int64) error {
	switch {
	case slices.Contains(d.gone, fid):
		return nil
	case slices.Contains(d.homeless, fid):
		return protocol.Err("unreg_domain")
	case slices.Contains(d.classless, fid):
		return protocol.Err("unreg_class")
	}
	return protocol.ErrNoTempfile
}

// closeGuarded closes one upload that depends on what its key names. The row of
// the key, where there is one, is locked before it is looked at; where there is
// none, and somebody else makes one, the insertion meets it.
func (s *Store) closeGuarded(ctx context.Context, calls []schema.Close, outcomes []error) error {
	c := calls[0]
	a := arraysOf(calls)
	err := s.tx(ctx, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, setLockTimeout, aloneLockTimeout.String()); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, shareDomains, domainSpace, a.used); err != nil {
			return err
		}
		var now int64 // stays 0 where there is none
		if err := ignoreNoRows(tx.QueryRow(ctx, lockKeyRow, int16(c.DMID), c.Key).Scan(&now)); err != nil {
			return err
		}
		if refusal := c.Refusal(protocol.FID(now)); refusal != nil {
			open, err := exists(ctx, tx, `SELECT EXISTS (SELECT FROM tempfile WHERE fid = $1)`, int64(c.FID))
			switch {
			case err != nil:
				return err
			case !open:
				return protocol.ErrNoTempfile
			}
			return refusal
		}
		var d closeDecision
		err := d.scan(tx.QueryRow(ctx, closeNew, s.offset(), a.fids, a.dmids, a.keys, a.lengths, a.classes, a.devids, a.hashes, a.sums, a.triedFIDs, a.triedDevs))
		if err != nil {
			return err
		}
		if err := d.outcome(int64(c.FID)); err != nil || d.pending == "{}" {
			return err
		}
		if now == 0 { // somebody was faster; who, does not matter
			return errKeyTaken
		}
		_, err = tx.Exec(ctx, closeOver, s.offset(), a.fids, a.dmids, a.keys, a.lengths, a.classes)
		return err
	})
	switch refusal, refused := errors.AsType[*protocol.Error](err); {
	case refused:
		outcomes[0] = refusal
		return nil
	case state(err) == stateUnique && constraint(err) != "", state(err) == stateDivision:
		outcomes[0] = protocol.Err("fid_exists") // a file row of this fid
		return nil
	}
	return err
}

// errKeyTaken is a close that is to be decided again, as its key has got a row
// since it was looked at.
var errKeyTaken = errors.New("the key was taken in the meantime")

const lockKeyRow = `SELECT fid FROM file WHERE dmid = $1 AND dkey COLLATE "C" = $2::text COLLATE "C" FOR UPDATE`

const (
	setLockTimeout = `SELECT set_config('lock_timeout', $1, true)`

	// beginCloses is durable, setLockTimeout and shareDomains in one.
	beginCloses = `SELECT set_config('lock_timeout', $1, true),
		CASE WHEN current_setting('synchronous_commit') = 'off' THEN set_config('synchronous_commit', 'on', true) END,
		(SELECT count(pg_advisory_xact_lock_shared($2, d)) FROM unnest($3::int2[]) d)`

	shareDomains = `SELECT pg_advisory_xact_lock_shared($1, d) FROM unnest($2::int2[]) d`

	// closeNew is all of step 1; closeNewPlain is for uploads without checksums of
	// which no other device was tried, as most are. It has no use for $1, the clock's
	// offset, which every statement of its kind has first.
	closeNew = closeOf + `, $8::int2[], $9::bytea[]) c (fid, dmid, dkey, length, classid, devid, hashtype, sum)),` + closeInserts + `
		stray AS (INSERT INTO copy_to_delete (fid, devid, what, nexttry) SELECT DISTINCT t.fid, t.devid, 'fid', ` + now + `
			FROM unnest($10::int8[], $11::int8[]) t (fid, devid) JOIN gone ON gone.fid = t.fid` + copyDueAgain + `),
		summed AS (INSERT INTO checksum (fid, hashtype, checksum) SELECT fid, hashtype, sum FROM gone WHERE hashtype <> 0
			ON CONFLICT (fid) DO UPDATE SET hashtype = EXCLUDED.hashtype, checksum = EXCLUDED.checksum),` + closeAnswer

	closeNewPlain = closeOf + `) c (fid, dmid, dkey, length, classid, devid) WHERE $1::int8 IS NOT NULL),` + closeInserts + closeAnswer

	closeOf = `WITH c AS MATERIALIZED (SELECT c.*, EXISTS (SELECT FROM domain d WHERE d.dmid = c.dmid) AS known,
				c.classid = 0 OR EXISTS (SELECT FROM class k WHERE k.dmid = c.dmid AND k.classid = c.classid) AS classed
			FROM unnest($2::int8[], $3::int2[], $4::text[], $5::int8[], $6::int2[], $7::int2[]`

	closeInserts = `
		gone AS (DELETE FROM tempfile t USING c WHERE t.fid = c.fid AND c.known AND c.classed RETURNING c.*),
		fresh AS (INSERT INTO file (fid, dmid, dkey, length, classid, devcount)
			SELECT fid, dmid, dkey, length, classid, 1 FROM gone ORDER BY dmid, dkey
			ON CONFLICT (dmid, dkey) DO NOTHING RETURNING fid),
		located AS (INSERT INTO file_on (fid, devid) SELECT fid, devid FROM gone ON CONFLICT DO NOTHING),
		kept AS (DELETE FROM copy_to_delete d USING gone WHERE d.fid = gone.fid AND d.devid = gone.devid AND d.what = 'fid'),`

	closeAnswer = `
		queued AS (INSERT INTO file_to_replicate (fid, nexttry) SELECT fid, 0 FROM gone
			ON CONFLICT (fid) DO UPDATE SET nexttry = 0)
		SELECT ARRAY(SELECT fid FROM c WHERE NOT known), ARRAY(SELECT fid FROM c WHERE NOT classed), ARRAY(SELECT fid FROM gone), set_config('mogile.pending',
			(SELECT '{' || coalesce(string_agg(fid::text, ','), '') || '}' FROM gone WHERE fid NOT IN (SELECT fid FROM fresh)), true)`

	closePending = `= ANY (current_setting('mogile.pending', true)::int8[])`

	closeLock = `SELECT f.fid FROM unnest($1::int8[], $2::int2[], $3::text[]) c (fid, dmid, dkey)
		JOIN file f ON f.dmid = c.dmid AND f.dkey COLLATE "C" = c.dkey COLLATE "C"
		WHERE c.fid ` + closePending + ` ORDER BY f.dmid, f.dkey FOR UPDATE OF f`

	closeOver = `WITH c AS MATERIALIZED (SELECT * FROM unnest($2::int8[], $3::int2[], $4::text[], $5::int8[], $6::int2[])
			c (fid, dmid, dkey, length, classid) WHERE c.fid ` + closePending + `),
		old AS MATERIALIZED (SELECT c.*, f.fid AS old FROM c JOIN file f ON f.dmid = c.dmid AND f.dkey COLLATE "C" = c.dkey COLLATE "C" WHERE f.fid <> c.fid),
		repointed AS (UPDATE file f SET fid = old.fid, length = old.length, classid = old.classid, devcount = 1
			FROM old WHERE f.fid = old.old AND f.dmid = old.dmid AND f.dkey = old.dkey RETURNING old.old),
		queued AS (INSERT INTO file_to_delete2 (fid, nexttry) SELECT old, ` + pathsForgotten + ` FROM repointed ORDER BY old
			ON CONFLICT (fid) DO UPDATE SET nexttry = EXCLUDED.nexttry)
		SELECT 1 / (CASE WHEN (SELECT count(*) FROM repointed) = (SELECT count(*) FROM c) THEN 1 ELSE 0 END)`
)
