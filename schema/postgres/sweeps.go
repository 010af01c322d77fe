package postgres

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/schema"
)

// nowMS is the database's clock in milliseconds since 1970.
const nowMS = `(floor(extract(epoch FROM statement_timestamp()) * 1000)::int8 + $1::int8 * 1000)`

// leaseUntil is when a lease of $2 milliseconds ends that is taken now, and
// up to a tenth later; {0} is the last one's end, from which it differs.
const leaseUntil = `(SELECT CASE WHEN at = abs({0}) THEN at + 1 ELSE at END FROM
	(SELECT ` + nowMS + ` + $2::int8 + floor(random() * ($2::int8 / 10 + 1))::int8 AS at OFFSET 0) lease)`

var (
	// claimLapsed leases the first range whose lease has ended or was given
	// back.
	claimLapsed = in(`WITH due AS MATERIALIZED (SELECT sweep, first_fid FROM mogile_range WHERE sweep = $3 AND until_ms <= `+nowMS+`
			ORDER BY first_fid LIMIT 1 FOR UPDATE SKIP LOCKED)
		UPDATE mogile_range r SET until_ms = {0} FROM due WHERE r.sweep = due.sweep AND r.first_fid = due.first_fid
		RETURNING r.first_fid, r.last_fid, r.files, r.until_ms`, in(leaseUntil, "r.until_ms"))

	insertRange = in(`INSERT INTO mogile_range AS r (sweep, first_fid, last_fid, files, until_ms) VALUES ($3, $4, $5, $6, {0})
		ON CONFLICT (sweep, first_fid) DO UPDATE SET last_fid = EXCLUDED.last_fid, files = EXCLUDED.files, until_ms = {1}
		RETURNING until_ms`, in(leaseUntil, "0"), in(leaseUntil, "r.until_ms"))

	renewRange = in(`UPDATE mogile_range r SET until_ms = {0} WHERE sweep = $3 AND first_fid = $4 AND last_fid = $5 AND until_ms = $6 RETURNING until_ms`,
		in(leaseUntil, "r.until_ms"))
)

const (
	nextFiles = `SELECT count(*), coalesce(max(fid), 0)::int8 FROM
		(SELECT fid FROM file WHERE fid > $1::int8 AND fid <= $2::int8 ORDER BY fid LIMIT $3) f`

	finishRange = `WITH done AS (DELETE FROM mogile_range WHERE sweep = $1 AND first_fid = $2 AND last_fid = $3 AND until_ms = $4 RETURNING first_fid),
		counted AS (INSERT INTO server_settings AS s (field, value) SELECT c.field, c.n::text
			FROM done, unnest($5::text[], $6::int8[]) c (field, n) ORDER BY c.field ` + addToSettings + `)
		SELECT count(*) FROM done`

	// addToSettings adds the numbers inserted to those that are there; what is
	// no number counts as 0.
	addToSettings = `ON CONFLICT (field) DO UPDATE SET value =
		CASE WHEN s.value ~ '^-?[0-9]{1,18}$' THEN (s.value::int8 + EXCLUDED.value::int8)::text ELSE EXCLUDED.value END`

	releaseRange = `UPDATE mogile_range SET until_ms = -until_ms WHERE sweep = $1 AND first_fid = $2 AND last_fid = $3 AND until_ms = $4`

	filesIn = `SELECT ` + fileColumns + ` FROM file f WHERE f.fid >= $1::int8 AND f.fid <= $2::int8 ORDER BY f.fid LIMIT $3`
)

// sweepSettings are the settings of a sweep that say whether there is something
// to claim.
func sweepSettings(w schema.Sweep) []string {
	fields := []string{w.Host(), w.Position(), w.End()}
	slices.Sort(fields)
	return fields
}

// fidSetting reads a fid in a setting; what is none is 0.
func fidSetting(value string) int64 {
	n, err := strconv.ParseInt(value, 10, 64)
	if err != nil {
		return 0
	}
	return min(max(n, 0), protocol.MaxFID)
}

// ClaimRange leases the next run of files of a sweep.
func (s *Store) ClaimRange(ctx context.Context, w schema.Sweep, limit int, lease time.Duration) (schema.Range, bool, error) {
	if limit <= 0 {
		return schema.Range{}, false, nil
	}
	var r schema.Range
	var ok bool
	err := s.do(ctx, fmt.Sprintf("claim a range of %s", w), func(ctx context.Context) error {
		r, ok = schema.Range{Sweep: w}, false
		settings := make(map[string]string)
		rows, err := s.pool.Query(ctx, readSettings+` WHERE field = ANY ($1::text[]) AND value IS NOT NULL`, sweepSettings(w))
		if err == nil {
			err = scanSettings(rows, settings)
		}
		if err != nil || settings[w.Host()] == "" {
			return err
		}
		switch err := s.pool.QueryRow(ctx, claimLapsed, s.offset(), lease.Milliseconds(), string(w)).Scan(&r.First, &r.Last, &r.Files, &r.Until); {
		case err == nil:
			ok = true
			return nil
		case !errors.Is(err, pgx.ErrNoRows):
			return err
		}
		if fidSetting(settings[w.Position()]) >= fidSetting(settings[w.End()]) {
			return nil
		}
		return s.tx(ctx, func(tx pgx.Tx) error {
			r, ok, err = s.claimNext(ctx, tx, w, limit, lease)
			return err
		})
	})
	if err != nil || !ok {
		return schema.Range{}, false, err
	}
	return r, true, nil
}

// claimNext leases files above the position. Claims of all trackers pass here
// one by one: the sweep's settings are locked.
func (s *Store) claimNext(ctx context.Context, tx pgx.Tx, w schema.Sweep, limit int, lease time.Duration) (schema.Range, bool, error) {
	r := schema.Range{Sweep: w}
	fields := sweepSettings(w)
	settings, err := lockSettings(ctx, tx, fields)
	if err != nil {
		return r, false, err
	}
	position, end := fidSetting(settings[w.Position()]), fidSetting(settings[w.End()])
	if settings[w.Host()] == "" || position >= end {
		_, err := tx.Exec(ctx, dropUnset, fields)
		return r, false, err
	}
	var last int64
	if err := tx.QueryRow(ctx, nextFiles, position, end, limit).Scan(&r.Files, &last); err != nil {
		return r, false, err
	}
	if r.Files < limit {
		last = end
	}
	r.First, r.Last = protocol.FID(position+1), protocol.FID(last)
	if r.Files > 0 {
		err := tx.QueryRow(ctx, insertRange, s.offset(), lease.Milliseconds(), string(w), position+1, last, r.Files).Scan(&r.Until)
		if err != nil {
			return r, false, err
		}
	}
	_, err = tx.Exec(ctx, setSetting, w.Position(), strconv.FormatInt(last, 10))
	return r, r.Files > 0, err
}

// rangeArgs names a range that is held.
func rangeArgs(r schema.Range) []any {
	return []any{string(r.Sweep), int64(r.First), int64(r.Last), r.Until}
}

// rangeName is a range in errors.
func rangeName(r schema.Range) string { return fmt.Sprintf("%s range %d-%d", r.Sweep, r.First, r.Last) }

// RenewRange extends a lease.
func (s *Store) RenewRange(ctx context.Context, r schema.Range, lease time.Duration) (schema.Range, bool, error) {
	var until int64
	err := s.do(ctx, "renew "+rangeName(r), func(ctx context.Context) error {
		args := append([]any{s.offset(), lease.Milliseconds()}, rangeArgs(r)...)
		return ignoreNoRows(s.pool.QueryRow(ctx, renewRange, args...).Scan(&until))
	})
	if err != nil || until == 0 {
		return r, false, err
	}
	r.Until = until
	return r, true, nil
}

// FinishRange forgets a range and counts what was found.
func (s *Store) FinishRange(ctx context.Context, r schema.Range, t schema.Tally) (bool, error) {
	counters := t.Counters(r.Sweep)
	fields := slices.Sorted(maps.Keys(counters))
	sums := make([]int64, len(fields))
	for i, field := range fields {
		sums[i] = counters[field]
	}
	var n int
	err := s.do(ctx, "finish "+rangeName(r), func(ctx context.Context) error {
		return s.pool.QueryRow(ctx, finishRange, append(rangeArgs(r), fields, sums)...).Scan(&n)
	})
	return n > 0, err
}

// ReleaseRange gives a range back.
func (s *Store) ReleaseRange(ctx context.Context, r schema.Range) error {
	return s.do(ctx, "give back "+rangeName(r), func(ctx context.Context) error {
		_, err := s.pool.Exec(ctx, releaseRange, rangeArgs(r)...)
		return err
	})
}

// Ranges counts the ranges of a sweep.
func (s *Store) Ranges(ctx context.Context, w schema.Sweep) (ranges, files int64, err error) {
	err = s.do(ctx, fmt.Sprintf("count ranges of %s", w), func(ctx context.Context) error {
		return s.pool.QueryRow(ctx, `SELECT count(*), coalesce(sum(files), 0)::int8 FROM mogile_range WHERE sweep = $1`, string(w)).Scan(&ranges, &files)
	})
	return ranges, files, err
}

// locatedFiles runs a query for fileColumns.
func (s *Store) locatedFiles(ctx context.Context, what, sql string, args ...any) ([]schema.LocatedFile, error) {
	var files []schema.LocatedFile
	err := s.do(ctx, what, func(ctx context.Context) error {
		files = nil
		rows, err := s.pool.Query(ctx, sql, args...)
		if err != nil {
			return err
		}
		var f fileRow
		_, err = pgx.ForEachRow(rows, f.fields(), func() error {
			files = append(files, schema.LocatedFile{File: f.file(), Devices: f.devices()})
			return nil
		})
		return err
	})
	return files, err
}

// FilesIn lists the files of a range.
func (s *Store) FilesIn(ctx context.Context, first, last protocol.FID, limit int) ([]schema.LocatedFile, error) {
	if limit <= 0 || first > protocol.MaxFID {
		return nil, nil
	}
	return s.locatedFiles(ctx, "read the files of a range", filesIn, int64(first), int64(min(last, protocol.MaxFID)), limit)
}

// Checksums are those stored for fids.
func (s *Store) Checksums(ctx context.Context, fids []protocol.FID) (map[protocol.FID]protocol.Checksum, error) {
	sums := make(map[protocol.FID]protocol.Checksum)
	if len(fids) == 0 {
		return sums, nil
	}
	err := s.do(ctx, "read checksums", func(ctx context.Context) error {
		clear(sums)
		rows, err := s.pool.Query(ctx, `SELECT fid, hashtype, checksum FROM checksum WHERE fid = ANY ($1::int8[])`, fidArray(fids))
		if err != nil {
			return err
		}
		var fid int64
		var sum protocol.Checksum
		_, err = pgx.ForEachRow(rows, []any{&fid, &sum.Type, &sum.Sum}, func() error {
			sums[protocol.FID(fid)] = sum
			sum.Sum = nil
			return nil
		})
		return err
	})
	return sums, err
}

const (
	// lockMiscounted makes those wait that change the locations of files whose
	// devcount seems wrong. The statement after it sees what they did.
	lockMiscounted = `SELECT f.fid FROM file f WHERE f.fid = ANY ($1::int8[])
		AND f.devcount <> (SELECT count(*) FROM file_on o WHERE o.fid = f.fid) ORDER BY f.fid FOR UPDATE`

	recount = `UPDATE file f SET devcount = c.n FROM
		(SELECT fid, (SELECT count(*) FROM file_on o WHERE o.fid = l.fid) AS n FROM unnest($1::int8[]) l (fid)) c
		WHERE f.fid = c.fid AND f.devcount <> c.n RETURNING f.fid`
)

// Recount corrects devcount of fids.
func (s *Store) Recount(ctx context.Context, fids []protocol.FID) ([]protocol.FID, error) {
	var changed []int64
	if len(fids) == 0 {
		return nil, nil
	}
	err := s.do(ctx, "count locations anew", func(ctx context.Context) error {
		changed = nil
		return s.tx(ctx, func(tx pgx.Tx) error {
			wrong, err := collectFIDs(ctx, tx, lockMiscounted, fidArray(fids))
			if err != nil || len(wrong) == 0 {
				return err
			}
			changed, err = collectFIDs(ctx, tx, recount, wrong)
			return err
		})
	})
	slices.Sort(changed)
	found := make([]protocol.FID, len(changed))
	for i, fid := range changed {
		found[i] = protocol.FID(fid)
	}
	return found, err
}

// collectFIDs runs a query for fids.
func collectFIDs(ctx context.Context, tx pgx.Tx, sql string, args ...any) ([]int64, error) {
	rows, err := tx.Query(ctx, sql, args...)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[int64])
}

// HighestFID is the highest fid of a file, and the highest that was issued.
func (s *Store) HighestFID(ctx context.Context) (inFile, issued protocol.FID, err error) {
	var file, last int64
	err = s.do(ctx, "read the highest fid", func(ctx context.Context) error {
		return s.pool.QueryRow(ctx, `SELECT (SELECT coalesce(max(fid), 0)::int8 FROM file), (`+lastFID+`)::int8`).Scan(&file, &last)
	})
	return protocol.FID(file), protocol.FID(max(file, last)), err
}

const queueFsck = `INSERT INTO file_to_queue AS q (fid, type, nexttry, arg) SELECT fid, 1, least(` + now + ` + $2::int8, 2147483647), nullif($4, '')
	FROM unnest($3::int8[]) fid ORDER BY fid ON CONFLICT (fid, type) DO UPDATE SET arg = EXCLUDED.arg WHERE EXCLUDED.arg IS DISTINCT FROM q.arg AND $4 <> ''`

// QueueFsck enters fids for fsck.
func (s *Store) QueueFsck(ctx context.Context, fids []protocol.FID, delay time.Duration, arg string) error {
	if len(fids) == 0 {
		return nil
	}
	sorted := fidArray(fids)
	slices.Sort(sorted)
	sorted = slices.Compact(sorted)
	return s.do(ctx, "queue fsck", func(ctx context.Context) error {
		_, err := s.pool.Exec(ctx, queueFsck, s.offset(), seconds(delay), sorted, arg)
		return err
	})
}

const (
	lastLogID = `SELECT coalesce(max(logid), 0)::int8 FROM fsck_log`

	logFsck = `INSERT INTO fsck_log (utime, fid, evcode, devid) SELECT ` + now + `, nullif(e.fid, 0), e.code, e.devid
		FROM unnest($2::int8[], $3::text[], $4::int8[]) e (fid, code, devid)`

	fsckEvents = `SELECT logid, utime, coalesce(fid, 0), coalesce(evcode, '')::text, devid FROM fsck_log WHERE logid > $1::int8 ORDER BY logid LIMIT $2`

	clearLog = `DELETE FROM fsck_log WHERE logid >= $1::int8 AND logid < $2::int8`

	// logWriters are the transactions that write to the log now. Whoever has
	// taken a number from its sequence is among them until its row can be seen.
	logWriters = `SELECT coalesce(array_agg(virtualtransaction), '{}') FROM pg_locks
		WHERE locktype = 'relation' AND relation = 'fsck_log'::regclass AND mode = 'RowExclusiveLock' AND granted
		AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`

	foldLog = `INSERT INTO server_settings AS s (field, value)
		SELECT 'fsck_sum_evcount_' || evcode, count(*)::text FROM fsck_log
		WHERE logid > $1::int8 AND logid <= $2::int8 AND evcode IS NOT NULL GROUP BY evcode ORDER BY evcode ` + addToSettings
)

// LogFsck appends events.
func (s *Store) LogFsck(ctx context.Context, events []schema.FsckEvent) error {
	if err := schema.CheckFsckEvents(events); err != nil || len(events) == 0 {
		return err
	}
	fids, codes, devs := make([]int64, len(events)), make([]string, len(events)), make([]*int64, len(events))
	for i, e := range events {
		fids[i], codes[i] = int64(min(e.FID, protocol.MaxFID)), e.Code
		if e.DevID != nil {
			dev := int64(*e.DevID)
			devs[i] = &dev
		}
	}
	return s.do(ctx, "log fsck", func(ctx context.Context) error {
		_, err := s.pool.Exec(ctx, logFsck, s.offset(), fids, codes, devs)
		return err
	})
}

// FsckEvents lists rows of the log.
func (s *Store) FsckEvents(ctx context.Context, after int64, limit int) ([]schema.FsckEvent, error) {
	var events []schema.FsckEvent
	err := s.do(ctx, "read the log of fsck", func(ctx context.Context) error {
		events = nil
		rows, err := s.pool.Query(ctx, fsckEvents, after, max(limit, 0))
		if err != nil {
			return err
		}
		var e schema.FsckEvent
		var fid int64
		var dev *int64
		_, err = pgx.ForEachRow(rows, []any{&e.LogID, &e.Time, &fid, &e.Code, &dev}, func() error {
			event := e
			event.FID = protocol.FID(fid)
			if dev != nil {
				id := protocol.DevID(*dev)
				event.DevID = &id
			}
			events = append(events, event)
			return nil
		})
		return err
	})
	return events, err
}

// LastFsckEvent is the highest number in the log.
func (s *Store) LastFsckEvent(ctx context.Context) (int64, error) {
	var last int64
	err := s.do(ctx, "read the end of fsck's log", func(ctx context.Context) error {
		return s.pool.QueryRow(ctx, lastLogID).Scan(&last)
	})
	return last, err
}

// clearAtOnce is how many rows of the log one statement deletes: it must end
// within callTimeout.
const clearAtOnce = 100_000

// ClearFsckLog deletes the rows that there are.
func (s *Store) ClearFsckLog(ctx context.Context) error {
	const what = "clear fsck's log"
	var first, last int64
	err := s.do(ctx, what, func(ctx context.Context) error {
		return s.pool.QueryRow(ctx, `SELECT coalesce(min(logid), 0)::int8, coalesce(max(logid), -1)::int8 FROM fsck_log`).Scan(&first, &last)
	})
	for ; err == nil && first <= last; first += clearAtOnce {
		err = s.do(ctx, what, func(ctx context.Context) error {
			_, err := s.pool.Exec(ctx, clearLog, first, min(first+clearAtOnce, last+1))
			return err
		})
	}
	return err
}

const (
	logPoll = 5 * time.Millisecond // how often those are looked at that write to the log
	logWait = time.Second          // how long they are waited for
)

// FoldFsckLog counts new rows of the log.
//
// Rows become visible in the order of their commits, not of their numbers, and
// MogileFS's trackers write them too. So it takes the highest number that it
// sees, and then waits until everybody has ended who writes to the table at that
// moment: whoever has a lower number is one of them, as the table's lock is
// taken before the number. Where somebody does not end, nothing is counted this
// time.
func (s *Store) FoldFsckLog(ctx context.Context) error {
	const processed = "fsck_logid_processed"
	return s.do(ctx, "count fsck's log", func(ctx context.Context) error {
		var last int64
		var done *string
		const look = `SELECT (` + lastLogID + `), (SELECT max(value) FROM server_settings WHERE field = $1)`
		if err := s.pool.QueryRow(ctx, look, processed).Scan(&last, &done); err != nil || last <= int64(number(done)) {
			return err
		}
		if ended, err := s.awaitLogWriters(ctx); err != nil || !ended {
			return err
		}
		return s.tx(ctx, func(tx pgx.Tx) error {
			settings, err := lockSettings(ctx, tx, []string{processed})
			if err != nil {
				return err
			}
			from, _ := strconv.ParseInt(settings[processed], 10, 64) // what is no number is 0
			if from >= last {
				_, err := tx.Exec(ctx, dropUnset, []string{processed})
				return err
			}
			if _, err := tx.Exec(ctx, foldLog, from, last); err != nil {
				return err
			}
			_, err = tx.Exec(ctx, setSetting, processed, strconv.FormatInt(last, 10))
			return err
		})
	})
}

// awaitLogWriters waits until the transactions have ended that write to
// fsck_log now, and reports whether they have.
func (s *Store) awaitLogWriters(ctx context.Context) (bool, error) {
	var before, still []string
	if err := s.pool.QueryRow(ctx, logWriters).Scan(&before); err != nil {
		return false, err
	}
	for deadline := time.Now().Add(logWait); len(before) > 0; before = still {
		if time.Now().After(deadline) {
			return false, nil
		}
		if err := pause(ctx, logPoll); err != nil {
			return false, err
		}
		if err := s.pool.QueryRow(ctx, logWriters).Scan(&still); err != nil {
			return false, err
		}
		still = slices.DeleteFunc(still, func(w string) bool { return !slices.Contains(before, w) })
	}
	return true, nil
}

const (
	// shareDeadDevice keeps the device's status as it is.
	shareDeadDevice = `SELECT coalesce(status, '') FROM device WHERE devid = $1::int8 FOR SHARE`

	fidsOn = `SELECT fid FROM file_on WHERE devid = $1::int8 ORDER BY fid LIMIT $2`

	lockFiles = `SELECT fid FROM file WHERE fid = ANY ($1::int8[]) ORDER BY fid FOR UPDATE`

	reap = `WITH gone AS (DELETE FROM file_on WHERE devid = $2::int8 AND fid = ANY ($3::int8[]) RETURNING fid),
		queued AS (INSERT INTO file_to_replicate AS q (fid, nexttry) SELECT g.fid,
			CASE WHEN e.k IS NULL THEN ` + now + ` + 1 ELSE least(greatest((SELECT count(*) FROM file_on o WHERE o.fid = g.fid AND o.devid <> $2) - e.k, 0), 9) END
			FROM gone g JOIN file f ON f.fid = g.fid LEFT JOIN ec e ON e.fid = g.fid ORDER BY g.fid
			ON CONFLICT (fid) DO UPDATE SET nexttry = CASE WHEN excluded.nexttry < 10 THEN least(q.nexttry - 1, excluded.nexttry) ELSE q.nexttry - 1 END WHERE q.nexttry NOT IN (0, 2147483647)),
		counted AS (UPDATE file f SET devcount = (SELECT count(*) FROM file_on o WHERE o.fid = f.fid AND o.devid <> $2)
			FROM gone WHERE f.fid = gone.fid AND ` + countDevices + `)
		SELECT count(*) FROM gone`
)

// Reap takes files off a dead device.
func (s *Store) Reap(ctx context.Context, dev protocol.DevID, limit int) (int, error) {
	var n int
	err := s.do(ctx, fmt.Sprintf("reap dev%d", dev), func(ctx context.Context) error {
		n = 0
		return s.tx(ctx, func(tx pgx.Tx) error {
			var status string
			if err := tx.QueryRow(ctx, shareDeadDevice, int64(dev)).Scan(&status); err != nil && !errors.Is(err, pgx.ErrNoRows) {
				return err
			}
			if status != schema.DeviceDead {
				return schema.ErrStale
			}
			fids, err := collectFIDs(ctx, tx, fidsOn, int64(dev), max(limit, 0))
			if err != nil || len(fids) == 0 {
				return err
			}
			// From here on nobody else changes their locations, and the
			// statement after this one sees what was done before.
			if _, err := tx.Exec(ctx, lockFiles, fids); err != nil {
				return err
			}
			return tx.QueryRow(ctx, reap, s.offset(), int64(dev), fids).Scan(&n)
		})
	})
	return n, err
}

// CountOn counts the files of devices.
func (s *Store) CountOn(ctx context.Context, devs []protocol.DevID) (map[protocol.DevID]int64, error) {
	return s.countByDevice(ctx, "count the files of devices", `SELECT count(*) FROM file_on WHERE devid = d`, devs)
}

// BytesOn sums up what the files on devices occupy there.
func (s *Store) BytesOn(ctx context.Context, devs []protocol.DevID) (map[protocol.DevID]int64, error) {
	return s.countByDevice(ctx, "add up the files of devices",
		`SELECT coalesce(sum(CASE WHEN e.k IS NULL THEN f.length ELSE (f.length + e.k - 1) / e.k END), 0)::int8
			FROM file_on o JOIN file f USING (fid) LEFT JOIN ec e USING (fid) WHERE o.devid = d`, devs)
}

// UploadsOn counts the uploads that were offered devices.
func (s *Store) UploadsOn(ctx context.Context, devs []protocol.DevID) (map[protocol.DevID]int64, error) {
	return s.countByDevice(ctx, "count the uploads to devices",
		`SELECT count(*) FROM tempfile WHERE position(',' || d || ',' IN ',' || devids || ',') > 0`, devs)
}

// countByDevice is what a query counts of each of devs, which it names d.
func (s *Store) countByDevice(ctx context.Context, what, query string, devs []protocol.DevID) (map[protocol.DevID]int64, error) {
	counts := make(map[protocol.DevID]int64, len(devs))
	err := s.do(ctx, what, func(ctx context.Context) error {
		clear(counts)
		rows, err := s.pool.Query(ctx, `SELECT d, (`+query+`) FROM unnest($1::int8[]) d`, devArray(devs))
		if err != nil {
			return err
		}
		var dev, n int64
		_, err = pgx.ForEachRow(rows, []any{&dev, &n}, func() error {
			counts[protocol.DevID(dev)] = n
			return nil
		})
		return err
	})
	return counts, err
}

const (
	filesOn = `SELECT ` + fileColumns + ` FROM file_on d JOIN file f ON f.fid = d.fid
		WHERE d.devid = $1::int8 AND d.fid > $2::int8 ORDER BY d.fid LIMIT $3`

	filesOnNewest = `SELECT ` + fileColumns + ` FROM file_on d JOIN file f ON f.fid = d.fid
		WHERE d.devid = $1::int8 AND d.fid <= $2::int8 ORDER BY d.fid DESC LIMIT $3`
)

// FilesOn lists files of a device.
func (s *Store) FilesOn(ctx context.Context, dev protocol.DevID, after protocol.FID, newest bool, limit int) ([]schema.LocatedFile, error) {
	sql, from := filesOn, int64(min(after, protocol.MaxFID))
	if newest { // after 0 wraps around
		sql, from = filesOnNewest, int64(min(after-1, protocol.MaxFID))
	}
	if limit <= 0 {
		return nil, nil
	}
	return s.locatedFiles(ctx, fmt.Sprintf("list the files of dev%d", dev), sql, int64(dev), from, limit)
}

const queueMoves = `INSERT INTO file_to_queue (fid, type, devid, nexttry, arg) SELECT m.fid, 2, m.devid, ` + now + `, nullif(m.arg, '')
	FROM unnest($2::int8[], $3::int8[], $4::text[]) m (fid, devid, arg) ON CONFLICT (fid, type) DO NOTHING`

// QueueMoves enters moves and changes settings.
func (s *Store) QueueMoves(ctx context.Context, moves []schema.Move, change schema.SettingsChange) error {
	sorted := slices.SortedStableFunc(slices.Values(moves), func(a, b schema.Move) int { return cmp.Compare(a.FID, b.FID) })
	var fids, devs []int64
	var args []string
	for _, m := range sorted {
		if m.FID <= protocol.MaxFID {
			fids, devs, args = append(fids, int64(m.FID)), append(devs, int64(m.From)), append(args, m.Targets())
		}
	}
	return s.changeSettings(ctx, "queue moves", change, func(ctx context.Context, tx pgx.Tx) error {
		if len(fids) == 0 {
			return nil
		}
		_, err := tx.Exec(ctx, queueMoves, s.offset(), fids, devs, args)
		return err
	})
}
