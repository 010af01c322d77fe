package postgres

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/schema"
)

// maxDevIDs is the width of tempfile.devids.
const maxDevIDs = 60

// joinDevIDs is devs as stored in tempfile.devids.
func joinDevIDs(devs []protocol.DevID) string {
	words := make([]string, len(devs))
	for i, d := range devs {
		words[i] = d.String()
	}
	return strings.Join(words, ",")
}

// splitDevIDs is the inverse of joinDevIDs. What is no device is left out.
func splitDevIDs(s *string) []protocol.DevID {
	if s == nil {
		return nil
	}
	var devs []protocol.DevID
	for word := range strings.SplitSeq(*s, ",") {
		if n, err := strconv.ParseUint(strings.TrimSpace(word), 10, 32); err == nil && n > 0 {
			devs = append(devs, protocol.DevID(n))
		}
	}
	return devs
}

// CreateTempfile records an upload, as [schema.Files] says.
func (s *Store) CreateTempfile(ctx context.Context, t schema.Tempfile) (protocol.FID, error) {
	if t.Key != "" {
		if err := s.checkKey(t.Key); err != nil {
			return 0, err
		}
	}
	if n := len(joinDevIDs(t.DevIDs)); n > maxDevIDs {
		return 0, fmt.Errorf("record upload: the list of devices has %d characters; the column holds %d", n, maxDevIDs)
	}
	fid := t.FID
	err := s.do(ctx, "record upload", func(ctx context.Context) error {
		if t.FID != 0 {
			return keyError(s.insertExplicit(ctx, t))
		}
		// A fid of the sequence can only be in use if somebody inserted it
		// beside the sequence since its block was fetched.
		for range maxRepeats {
			var err error
			if t.FID, err = s.fids.next(ctx); err != nil {
				return err
			}
			if err := s.fits(t.FID); err != nil {
				return err
			}
			fid = t.FID
			inserted, err := s.tempfiles.do(ctx, t)
			if err != nil || inserted {
				return keyError(err)
			}
		}
		return errors.New("the sequence tempfile_fid_seq keeps giving out fids that are in use")
	})
	if err != nil {
		return 0, err
	}
	return fid, nil
}

// fits refuses fids that the columns cannot hold.
func (s *Store) fits(fid protocol.FID) error {
	if s.fid32 && fid > math.MaxInt32 {
		return fmt.Errorf("fid %d is beyond the 32-bit column file.fid: widen it by `mogile migrate --widen`", fid)
	}
	return nil
}

// insertTempfiles inserts rows with new fids, and reports of each whether its
// fid was free. The rows may be lost in a crash of the server; their uploaders
// retry then.
func (s *Store) insertTempfiles(ctx context.Context, calls []schema.Tempfile, inserted []bool) error {
	n := len(calls)
	fids, dmids, classes := make([]int64, n), make([]int16, n), make([]int16, n)
	keys, devids := make([]string, n), make([]string, n)
	at := make(map[int64]int, n)
	for i, t := range calls {
		fids[i], dmids[i], classes[i] = int64(t.FID), int16(t.DMID), int16(t.ClassID)
		keys[i], devids[i] = t.Key, joinDevIDs(t.DevIDs)
		at[fids[i]] = i
	}
	rows, err := s.pool.Query(ctx, insertTempfiles, s.offset(), fids, dmids, keys, classes, devids)
	if err != nil {
		return err
	}
	var fid int64
	_, err = pgx.ForEachRow(rows, []any{&fid}, func() error {
		inserted[at[fid]] = true
		return nil
	})
	return err
}

// insertTempfiles does not wait for the disk when it commits.
const insertTempfiles = `INSERT INTO tempfile (fid, createtime, dmid, dkey, classid, devids)
	SELECT t.fid, ` + now + `, t.dmid, t.dkey, t.classid, t.devids
	FROM unnest($2::int8[], $3::int2[], $4::text[], $5::int2[], $6::text[]) t (fid, dmid, dkey, classid, devids)
	WHERE (SELECT set_config('synchronous_commit', 'off', true)) = 'off'
	AND NOT EXISTS (SELECT FROM file f WHERE f.fid = t.fid)
	AND NOT EXISTS (SELECT FROM file_on o WHERE o.fid = t.fid)
	AND NOT EXISTS (SELECT FROM file_to_delete2 q WHERE q.fid = t.fid)
	ON CONFLICT (fid) DO NOTHING RETURNING fid`

// insertExplicit inserts a row whose fid the client chose.
func (s *Store) insertExplicit(ctx context.Context, t schema.Tempfile) error {
	if t.FID > protocol.MaxFID-2*originSkip {
		return protocol.ErrFIDInUse
	}
	if err := s.fits(t.FID); err != nil {
		return &protocol.Error{Code: protocol.ErrFIDInUse.Code, Text: err.Error()}
	}
	var last int64
	if err := s.pool.QueryRow(ctx, lastFID).Scan(&last); err != nil {
		return err
	}
	if err := schema.CheckExplicitFID(t.FID, protocol.FID(last)); err != nil {
		return err
	}
	if int64(t.FID) > last {
		if err := s.secureSequence(ctx, t.FID); err != nil {
			return err
		}
	}
	return s.tx(ctx, func(tx pgx.Tx) error {
		// The row comes first: it waits for an upload of this fid that is just
		// being closed, and what that made of it is looked for thereafter.
		tag, err := tx.Exec(ctx, insertTempfile, s.offset(), int64(t.FID), int16(t.DMID), t.Key, int16(t.ClassID), joinDevIDs(t.DevIDs))
		if err != nil {
			return err
		}
		var known bool
		if err := tx.QueryRow(ctx, fidKnownApart, int64(t.FID)).Scan(&known); err != nil {
			return err
		}
		if known || tag.RowsAffected() == 0 {
			return protocol.ErrFIDInUse
		}
		return nil
	})
}

const insertTempfile = `INSERT INTO tempfile (fid, createtime, dmid, dkey, classid, devids)
	VALUES ($2, ` + now + `, $3, $4, $5, $6) ON CONFLICT (fid) DO NOTHING`

// fidKnownApart is true of a fid that the database remembers, tempfile apart.
const fidKnownApart = `SELECT EXISTS (SELECT FROM file WHERE fid = $1) OR EXISTS (SELECT FROM file_on WHERE fid = $1)
	OR EXISTS (SELECT FROM file_to_delete2 WHERE fid = $1) OR EXISTS (SELECT FROM file_to_delete WHERE fid = $1)
	OR EXISTS (SELECT FROM file_to_delete_later WHERE fid = $1) OR EXISTS (SELECT FROM copy_to_delete WHERE fid = $1)`

// Tempfile reads an upload's row.
func (s *Store) Tempfile(ctx context.Context, fid protocol.FID) (schema.Tempfile, error) {
	t := schema.Tempfile{FID: fid}
	if fid > protocol.MaxFID {
		return t, protocol.ErrNoTempfile
	}
	var found []schema.Tempfile
	err := s.do(ctx, fmt.Sprintf("read upload %d", fid), func(ctx context.Context) (err error) {
		found, err = s.uploads.read(ctx, []protocol.FID{fid})
		return err
	})
	switch {
	case err != nil:
		return t, err
	case len(found) == 0:
		return t, protocol.ErrNoTempfile
	}
	return found[0], nil
}

// readTempfiles are uploads and the callers that asked for them.
const readTempfiles = `SELECT q.at, t.fid, t.createtime, t.dmid, coalesce(t.dkey, ''), t.classid, t.devids
	FROM unnest($1::int8[], $2::int8[]) q (fid, at) JOIN tempfile t ON t.fid = q.fid`

func scanTempfiles(rows pgx.Rows, found func(at int, t schema.Tempfile)) error {
	defer rows.Close()
	for rows.Next() {
		var at int
		var fid int64
		var t schema.Tempfile
		var devids *string
		if err := rows.Scan(&at, &fid, &t.CreateTime, &t.DMID, &t.Key, &t.ClassID, &devids); err != nil {
			return err
		}
		t.FID, t.DevIDs = protocol.FID(fid), splitDevIDs(devids)
		found(at, t)
	}
	return rows.Err()
}

const readTempfile = `SELECT createtime, dmid, coalesce(dkey, ''), classid, devids FROM tempfile WHERE fid = $1`

func scanTempfile(row pgx.Row, t *schema.Tempfile) error {
	var devids *string
	if err := row.Scan(&t.CreateTime, &t.DMID, &t.Key, &t.ClassID, &devids); err != nil {
		return err
	}
	t.DevIDs = splitDevIDs(devids)
	return nil
}

// DiscardUpload takes an upload back.
func (s *Store) DiscardUpload(ctx context.Context, fid protocol.FID, dev protocol.DevID) error {
	if fid > protocol.MaxFID {
		return protocol.ErrNoTempfile
	}
	return s.do(ctx, fmt.Sprintf("discard upload %d", fid), func(ctx context.Context) error {
		var n int
		if err := s.pool.QueryRow(ctx, discardUpload, s.offset(), int64(fid), int64(dev)).Scan(&n); err != nil {
			return err
		}
		if n == 0 {
			return protocol.ErrNoTempfile
		}
		return nil
	})
}

// offered are the devices that the tempfile rows of {0} name.
const offered = `SELECT DISTINCT fid, devid FROM (SELECT fid, CASE WHEN word ~ '^[0-9]{1,5}$' THEN word::int END AS devid
		FROM {0}, unnest(string_to_array(devids, ',')) word) w WHERE devid BETWEEN 1 AND 32767`

var discardUpload = `WITH gone AS (DELETE FROM tempfile WHERE fid = $2 RETURNING fid, devids),
	offered AS (` + in(offered, "gone") + `),
	located AS (INSERT INTO file_on (fid, devid) SELECT fid, $3::int8 FROM gone ON CONFLICT DO NOTHING),
	stray AS (INSERT INTO copy_to_delete (fid, devid, what, nexttry) SELECT fid, devid, 'fid', ` + now + `
		FROM offered WHERE devid <> $3` + copyDueAgain + `),
	queued AS (INSERT INTO file_to_delete2 (fid, nexttry) SELECT fid, ` + now + ` FROM gone
		ON CONFLICT (fid) DO UPDATE SET nexttry = EXCLUDED.nexttry)
	SELECT count(*) FROM gone`

// ExpireTempfiles handles abandoned uploads, as [schema.Uploads] says.
func (s *Store) ExpireTempfiles(ctx context.Context, age time.Duration, limit int) (schema.Expired, error) {
	var e schema.Expired
	err := s.do(ctx, "expire uploads", func(ctx context.Context) error {
		return s.pool.QueryRow(ctx, expireTempfiles, s.offset(), seconds(age), max(limit, 0)).Scan(&e.Closed, &e.Discard)
	})
	return e, err
}

var expireTempfiles = `WITH old AS (SELECT fid FROM tempfile WHERE createtime < ` + now + ` - $2::int8
		ORDER BY fid LIMIT $3 FOR UPDATE SKIP LOCKED),
	gone AS (DELETE FROM tempfile t USING old WHERE t.fid = old.fid RETURNING t.fid, t.devids),
	discarded AS (SELECT * FROM gone WHERE NOT EXISTS (SELECT FROM file f WHERE f.fid = gone.fid)),
	offered AS (` + in(offered, "discarded") + `),
	located AS (INSERT INTO file_on (fid, devid) SELECT fid, devid FROM offered ON CONFLICT DO NOTHING),
	queued AS (INSERT INTO file_to_delete2 (fid, nexttry) SELECT fid, ` + now + ` FROM discarded
		ON CONFLICT (fid) DO UPDATE SET nexttry = EXCLUDED.nexttry)
	SELECT (SELECT count(*) FROM gone) - (SELECT count(*) FROM discarded), (SELECT count(*) FROM discarded)`

// seconds is d in whole seconds, rounded up, within what an INT column holds.
func seconds(d time.Duration) int64 {
	return min(max(int64((d+time.Second-1)/time.Second), 0), schema.EndOfTime)
}
