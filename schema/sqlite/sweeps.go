package sqlite

import (
	"context"
	"database/sql"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"time"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/schema"
)

// leaseUntil is when a lease ends, in milliseconds, that is taken now; last is
// the one before it on the same range.
func (s *Store) leaseUntil(lease time.Duration, last int64) int64 {
	until := s.o.now().UnixMilli() + lease.Milliseconds() + rand.Int64N(lease.Milliseconds()/10+1)
	if until == max(last, -last) {
		until++
	}
	return until
}

// setting is a setting's value, empty where there is none.
func (t *tx) setting(field string) (value string, err error) {
	_, err = t.row("SELECT coalesce(value, '') FROM server_settings WHERE field = ?", []any{field}, &value)
	return value, err
}

// fidSetting is a fid in a setting; what is none is 0.
func (t *tx) fidSetting(field string) (int64, error) {
	value, err := t.setting(field)
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseInt(value, 10, 64)
	if err != nil {
		return 0, nil
	}
	return min(max(n, 0), protocol.MaxFID), nil
}

// ClaimRange leases the next run of files; see [schema.Sweeps].
func (s *Store) ClaimRange(ctx context.Context, w schema.Sweep, limit int, lease time.Duration) (_ schema.Range, ok bool, err error) {
	defer wrap(&err, "claim a range of %s", w)
	if limit <= 0 {
		return schema.Range{}, false, nil
	}
	// Workers poll: a sweep that does not run is no reason to write.
	if host, _, err := s.Setting(ctx, w.Host()); err != nil || host == "" {
		return schema.Range{}, false, err
	}
	r := schema.Range{Sweep: w}
	ok, err = write(ctx, s, func(t *tx) (bool, error) {
		if host, err := t.setting(w.Host()); err != nil || host == "" {
			return false, err
		}
		var last int64
		lapsed, err := t.row("SELECT first_fid, last_fid, files, until_ms FROM mogile_range WHERE sweep = ? AND until_ms <= ? ORDER BY first_fid LIMIT 1",
			[]any{string(w), s.o.now().UnixMilli()}, &r.First, &r.Last, &r.Files, &last)
		if err != nil {
			return false, err
		}
		if lapsed {
			r.Until = s.leaseUntil(lease, last)
			_, err := t.exec("UPDATE mogile_range SET until_ms = ? WHERE sweep = ? AND first_fid = ?", r.Until, string(w), int64(r.First))
			return true, err
		}
		return s.claimNext(t, &r, limit, lease)
	})
	if err != nil || !ok {
		return schema.Range{}, false, err
	}
	return r, true, nil
}

// claimNext leases files above the position.
func (s *Store) claimNext(t *tx, r *schema.Range, limit int, lease time.Duration) (bool, error) {
	position, err := t.fidSetting(r.Sweep.Position())
	if err != nil {
		return false, err
	}
	end, err := t.fidSetting(r.Sweep.End())
	if err != nil || position >= end {
		return false, err
	}
	var last int64
	if _, err := t.row("SELECT count(*), coalesce(max(fid), 0) FROM (SELECT fid FROM file WHERE fid > ? AND fid <= ? ORDER BY fid LIMIT ?)",
		[]any{position, end, limit}, &r.Files, &last); err != nil {
		return false, err
	}
	if r.Files < limit {
		last = end
	}
	r.First, r.Last = protocol.FID(position+1), protocol.FID(last)
	if r.Files > 0 {
		var before int64 // stays 0 where no range begins there
		if _, err := t.row("SELECT until_ms FROM mogile_range WHERE sweep = ? AND first_fid = ?", []any{string(r.Sweep), position + 1}, &before); err != nil {
			return false, err
		}
		r.Until = s.leaseUntil(lease, before)
		if _, err := t.exec(`INSERT INTO mogile_range (sweep, first_fid, last_fid, files, until_ms) VALUES (?, ?, ?, ?, ?)
			ON CONFLICT (sweep, first_fid) DO UPDATE SET last_fid = excluded.last_fid, files = excluded.files, until_ms = excluded.until_ms`,
			string(r.Sweep), position+1, last, r.Files, r.Until); err != nil {
			return false, err
		}
	}
	return r.Files > 0, t.setSetting(r.Sweep.Position(), strconv.FormatInt(last, 10))
}

// held is the condition for a range that is still held, with its values.
const held = " WHERE sweep = ?1 AND first_fid = ?2 AND last_fid = ?3 AND until_ms = ?4"

func heldArgs(r schema.Range, more ...any) []any {
	return append([]any{string(r.Sweep), int64(r.First), int64(r.Last), r.Until}, more...)
}

// RenewRange extends a lease; see [schema.Sweeps].
func (s *Store) RenewRange(ctx context.Context, r schema.Range, lease time.Duration) (_ schema.Range, ok bool, err error) {
	defer wrap(&err, "renew the %s range %d-%d", r.Sweep, r.First, r.Last)
	renewed := r
	ok, err = write(ctx, s, func(t *tx) (bool, error) {
		renewed.Until = s.leaseUntil(lease, r.Until)
		n, err := t.exec("UPDATE mogile_range SET until_ms = ?5"+held, heldArgs(r, renewed.Until)...)
		return n == 1, err
	})
	if err != nil || !ok {
		return r, false, err
	}
	return renewed, true, nil
}

// FinishRange forgets a range and counts; see [schema.Sweeps].
func (s *Store) FinishRange(ctx context.Context, r schema.Range, tally schema.Tally) (_ bool, err error) {
	defer wrap(&err, "finish the %s range %d-%d", r.Sweep, r.First, r.Last)
	return write(ctx, s, func(t *tx) (bool, error) {
		if n, err := t.exec("DELETE FROM mogile_range"+held, heldArgs(r)...); err != nil || n == 0 {
			return false, err
		}
		return true, t.count(tally.Counters(r.Sweep))
	})
}

// count adds to settings.
func (t *tx) count(counters map[string]int64) error {
	for _, field := range slices.Sorted(maps.Keys(counters)) {
		value, err := t.setting(field)
		if err != nil {
			return err
		}
		if err := t.setSetting(field, schema.AddToSetting(value, counters[field])); err != nil {
			return err
		}
	}
	return nil
}

// ReleaseRange gives a range back; see [schema.Sweeps].
func (s *Store) ReleaseRange(ctx context.Context, r schema.Range) (err error) {
	defer wrap(&err, "give back the %s range %d-%d", r.Sweep, r.First, r.Last)
	return change(ctx, s, func(t *tx) error {
		_, err := t.exec("UPDATE mogile_range SET until_ms = -until_ms"+held, heldArgs(r)...)
		return err
	})
}

// Ranges counts the ranges of a sweep; see [schema.Sweeps].
func (s *Store) Ranges(ctx context.Context, w schema.Sweep) (ranges, files int64, err error) {
	defer wrap(&err, "count the ranges of %s", w)
	err = s.readRow(ctx, "SELECT count(*), coalesce(sum(files), 0) FROM mogile_range WHERE sweep = ?", []any{string(w)}, &ranges, &files)
	return ranges, files, err
}

// FilesIn lists the files of a range; see [schema.Sweeps].
func (s *Store) FilesIn(ctx context.Context, first, last protocol.FID, limit int) (_ []schema.LocatedFile, err error) {
	defer wrap(&err, "read the files %d-%d", first, last)
	if limit <= 0 || first > protocol.MaxFID {
		return nil, nil
	}
	return s.locatedFiles(ctx, selectLocated+" WHERE f.fid >= ? AND f.fid <= ? ORDER BY f.fid LIMIT ?",
		int64(first), int64(min(last, protocol.MaxFID)), limit)
}

// Checksums are those stored for fids; see [schema.Sweeps].
func (s *Store) Checksums(ctx context.Context, fids []protocol.FID) (_ map[protocol.FID]protocol.Checksum, err error) {
	defer wrap(&err, "read the checksums of %d fids", len(fids))
	sums := make(map[protocol.FID]protocol.Checksum)
	if len(fids) == 0 {
		return sums, nil
	}
	const query = "SELECT fid, hashtype, checksum FROM checksum WHERE fid IN (SELECT value FROM json_each(?))"
	err = s.read(ctx, query, []any{jsonList(fids)}, func(rows *sql.Rows) error {
		var fid protocol.FID
		var sum protocol.Checksum
		err := rows.Scan(&fid, &sum.Type, &sum.Sum)
		sums[fid] = sum
		return err
	})
	return sums, err
}

// Recount corrects devcount; see [schema.Sweeps].
func (s *Store) Recount(ctx context.Context, fids []protocol.FID) (_ []protocol.FID, err error) {
	defer wrap(&err, "count the locations of %d fids", len(fids))
	const wrong = `SELECT f.fid FROM file f WHERE f.fid IN (SELECT value FROM json_each(?))
		AND f.devcount <> (SELECT count(*) FROM file_on o WHERE o.fid = f.fid) ORDER BY f.fid`
	if len(fids) == 0 {
		return nil, nil
	}
	found := false
	if err := s.read(ctx, wrong, []any{jsonList(fids)}, func(*sql.Rows) error { found = true; return nil }); err != nil || !found {
		return nil, err
	}
	return write(ctx, s, func(t *tx) ([]protocol.FID, error) {
		changed, err := t.fids(wrong, jsonList(fids))
		if err != nil {
			return nil, err
		}
		for _, fid := range changed {
			if _, err := t.exec("UPDATE file SET devcount = (SELECT count(*) FROM file_on WHERE fid = ?1) WHERE fid = ?1", int64(fid)); err != nil {
				return nil, err
			}
		}
		return changed, nil
	})
}

// HighestFID is the highest fid; see [schema.Sweeps].
func (s *Store) HighestFID(ctx context.Context) (inFile, issued protocol.FID, err error) {
	defer wrap(&err, "read the highest fid")
	const query = "SELECT coalesce(max(fid), 0), max(coalesce(max(fid), 0), coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'tempfile'), 0)) FROM file"
	err = s.readRow(ctx, query, nil, &inFile, &issued)
	return inFile, issued, err
}

// QueueFsck enters fids for fsck; see [schema.Sweeps].
func (s *Store) QueueFsck(ctx context.Context, fids []protocol.FID, delay time.Duration, arg string) (err error) {
	defer wrap(&err, "queue %d fids for fsck", len(fids))
	if len(fids) == 0 {
		return nil
	}
	return change(ctx, s, func(t *tx) error {
		for _, fid := range fids {
			k := rowKey{queue: schema.QueueFsck, fid: int64(fid)}
			if _, err := t.exec("INSERT INTO file_to_queue (fid, type, nexttry, arg) VALUES (?, 1, ?, ?) ON CONFLICT DO UPDATE SET arg = excluded.arg WHERE excluded.arg IS NOT NULL",
				int64(fid), t.unlike(k, later(s.now(), delay), +1), textColumn(arg)); err != nil {
				return err
			}
		}
		return nil
	})
}

// LogFsck appends events; see [schema.FsckLog].
func (s *Store) LogFsck(ctx context.Context, events []schema.FsckEvent) (err error) {
	defer wrap(&err, "log fsck")
	if err := schema.CheckFsckEvents(events); err != nil || len(events) == 0 {
		return err
	}
	return change(ctx, s, func(t *tx) error {
		for _, e := range events {
			var dev sql.Null[protocol.DevID]
			if e.DevID != nil {
				dev = sql.Null[protocol.DevID]{V: *e.DevID, Valid: true}
			}
			fid := sql.NullInt64{Int64: int64(e.FID), Valid: e.FID != 0}
			if _, err := t.exec("INSERT INTO fsck_log (utime, fid, evcode, devid) VALUES (?, ?, ?, ?)", s.now(), fid, e.Code, dev); err != nil {
				return err
			}
		}
		return nil
	})
}

// FsckEvents lists rows of the log; see [schema.FsckLog].
func (s *Store) FsckEvents(ctx context.Context, after int64, limit int) (events []schema.FsckEvent, err error) {
	defer wrap(&err, "read the log of fsck")
	const query = "SELECT logid, utime, coalesce(fid, 0), coalesce(evcode, ''), devid FROM fsck_log WHERE logid > ? ORDER BY logid LIMIT ?"
	err = s.read(ctx, query, []any{after, max(limit, 0)}, func(rows *sql.Rows) error {
		var e schema.FsckEvent
		var dev sql.Null[protocol.DevID]
		err := rows.Scan(&e.LogID, &e.Time, &e.FID, &e.Code, &dev)
		if dev.Valid {
			e.DevID = &dev.V
		}
		events = append(events, e)
		return err
	})
	return events, err
}

const lastLogID = "SELECT coalesce(max(logid), 0) FROM fsck_log"

// LastFsckEvent is the highest number in the log; see [schema.FsckLog].
func (s *Store) LastFsckEvent(ctx context.Context) (last int64, err error) {
	defer wrap(&err, "read the end of the log of fsck")
	err = s.readRow(ctx, lastLogID, nil, &last)
	return last, err
}

// ClearFsckLog deletes all rows; see [schema.FsckLog].
func (s *Store) ClearFsckLog(ctx context.Context) (err error) {
	defer wrap(&err, "clear the log of fsck")
	return change(ctx, s, func(t *tx) error {
		_, err := t.exec("DELETE FROM fsck_log")
		return err
	})
}

// FoldFsckLog counts new rows of the log; see [schema.FsckLog]. There is one
// writer, so that rows become visible in the order of their numbers.
func (s *Store) FoldFsckLog(ctx context.Context) (err error) {
	defer wrap(&err, "count the log of fsck")
	const processed = "fsck_logid_processed"
	return change(ctx, s, func(t *tx) error {
		value, err := t.setting(processed)
		if err != nil {
			return err
		}
		from, _ := strconv.ParseInt(value, 10, 64) // what is no number is 0
		var last int64
		if _, err := t.row(lastLogID, nil, &last); err != nil || last <= from {
			return err
		}
		counters := make(map[string]int64)
		if err := t.rows("SELECT evcode, count(*) FROM fsck_log WHERE logid > ? AND evcode IS NOT NULL GROUP BY evcode", []any{from}, func(rows *sql.Rows) error {
			var code string
			var n int64
			err := rows.Scan(&code, &n)
			counters[schema.SweepFsck.Events(code)] = n
			return err
		}); err != nil {
			return err
		}
		if err := t.count(counters); err != nil {
			return err
		}
		return t.setSetting(processed, strconv.FormatInt(last, 10))
	})
}

// Reap takes files off a dead device; see [schema.Reaper].
func (s *Store) Reap(ctx context.Context, dev protocol.DevID, limit int) (_ int, err error) {
	defer wrap(&err, "reap dev%d", dev)
	return write(ctx, s, func(t *tx) (int, error) {
		var status string
		if _, err := t.row("SELECT coalesce(status, '') FROM device WHERE devid = ?", []any{dev}, &status); err != nil {
			return 0, err
		}
		if status != schema.DeviceDead {
			return 0, schema.ErrStale
		}
		fids, err := t.fids("SELECT fid FROM file_on WHERE devid = ? ORDER BY fid LIMIT ?", dev, max(limit, 0))
		if err != nil {
			return 0, err
		}
		for _, fid := range fids {
			if err := t.deleteLocation(fid, dev); err != nil {
				return 0, err
			}
			if err := t.countDevices(fid); err != nil {
				return 0, err
			}
			if there, err := t.hasFile(fid); err != nil {
				return 0, err
			} else if !there {
				continue
			}
			at := s.now() + 1
			var spare int64
			const shards = "SELECT (SELECT count(*) FROM file_on WHERE fid = e.fid) - e.k FROM ec e WHERE e.fid = ?"
			if coded, err := t.row(shards, []any{int64(fid)}, &spare); err != nil {
				return 0, err
			} else if coded {
				at = schema.Urgency(spare)
			}
			if err := t.queueReaped(fid, at); err != nil {
				return 0, err
			}
		}
		return len(fids), nil
	})
}

// queueReaped queues fid for replication. A row that is there stays, but for
// its lease, which ends with its nexttry: only rows that are parked or urgent
// are not leased.
func (t *tx) queueReaped(fid protocol.FID, at int64) error {
	k := replicateRow(fid)
	var old int64
	if queued, err := t.row("SELECT nexttry FROM file_to_replicate WHERE fid = ?", []any{int64(fid)}, &old); err != nil {
		return err
	} else if !queued {
		return t.enqueue(k, at, sql.NullInt64{})
	}
	if old == 0 || old >= schema.EndOfTime {
		return nil
	}
	sooner := old - 1
	if at < schema.Urgencies {
		sooner = min(sooner, at)
	}
	_, err := t.exec("UPDATE file_to_replicate SET nexttry = ? WHERE fid = ?", t.unlike(k, sooner, -1), int64(fid))
	return err
}

// CountOn counts the files of devices; see [schema.Reaper].
func (s *Store) CountOn(ctx context.Context, devs []protocol.DevID) (_ map[protocol.DevID]int64, err error) {
	defer wrap(&err, "count the files of %d devices", len(devs))
	counts := make(map[protocol.DevID]int64, len(devs))
	const query = "SELECT value, (SELECT count(*) FROM file_on WHERE devid = value) FROM json_each(?)"
	err = s.read(ctx, query, []any{jsonList(devs)}, func(rows *sql.Rows) error {
		var dev protocol.DevID
		var n int64
		err := rows.Scan(&dev, &n)
		counts[dev] = n
		return err
	})
	return counts, err
}

// BytesOn sums up what the files on devices occupy there; see [schema.Moves].
func (s *Store) BytesOn(ctx context.Context, devs []protocol.DevID) (_ map[protocol.DevID]int64, err error) {
	defer wrap(&err, "add up the files of %d devices", len(devs))
	sums := make(map[protocol.DevID]int64, len(devs))
	const query = `SELECT value, (SELECT coalesce(sum(CASE WHEN e.k IS NULL THEN f.length ELSE (f.length + e.k - 1) / e.k END), 0)
		FROM file_on o JOIN file f ON f.fid = o.fid LEFT JOIN ec e ON e.fid = o.fid WHERE o.devid = value) FROM json_each(?)`
	err = s.read(ctx, query, []any{jsonList(devs)}, func(rows *sql.Rows) error {
		var dev protocol.DevID
		var n int64
		err := rows.Scan(&dev, &n)
		sums[dev] = n
		return err
	})
	return sums, err
}

// UploadsOn counts the uploads that were offered devices; see [schema.Uploads].
func (s *Store) UploadsOn(ctx context.Context, devs []protocol.DevID) (_ map[protocol.DevID]int64, err error) {
	defer wrap(&err, "count the uploads to %d devices", len(devs))
	counts := make(map[protocol.DevID]int64, len(devs))
	const query = "SELECT value, (SELECT count(*) FROM tempfile WHERE instr(',' || devids || ',', ',' || value || ',') > 0) FROM json_each(?)"
	err = s.read(ctx, query, []any{jsonList(devs)}, func(rows *sql.Rows) error {
		var dev protocol.DevID
		var n int64
		err := rows.Scan(&dev, &n)
		counts[dev] = n
		return err
	})
	return counts, err
}

// FilesOn lists files of a device; see [schema.Moves].
func (s *Store) FilesOn(ctx context.Context, dev protocol.DevID, after protocol.FID, newest bool, limit int) (_ []schema.LocatedFile, err error) {
	defer wrap(&err, "list the files of dev%d", dev)
	if limit <= 0 {
		return nil, nil
	}
	order, from := filesOn, min(after, protocol.MaxFID)
	if newest { // after 0 wraps around
		order, from = filesOnNewest, min(after-1, protocol.MaxFID)
	}
	return s.locatedFiles(ctx, order, dev, int64(from), limit)
}

const (
	filesOn       = selectLocated + " JOIN file_on d ON d.fid = f.fid WHERE d.devid = ? AND d.fid > ? ORDER BY d.fid LIMIT ?"
	filesOnNewest = selectLocated + " JOIN file_on d ON d.fid = f.fid WHERE d.devid = ? AND d.fid <= ? ORDER BY d.fid DESC LIMIT ?"
)

// QueueMoves enters moves and changes settings; see [schema.Moves].
func (s *Store) QueueMoves(ctx context.Context, moves []schema.Move, c schema.SettingsChange) (err error) {
	defer wrap(&err, "queue %d moves", len(moves))
	return s.changeSettings(ctx, c, func(t *tx) error {
		for _, m := range moves {
			k := rowKey{queue: schema.QueueRebalance, fid: int64(m.FID)}
			if _, err := t.exec("INSERT INTO file_to_queue (fid, type, devid, nexttry, arg) VALUES (?, 2, ?, ?, ?) ON CONFLICT DO NOTHING",
				int64(m.FID), m.From, t.unlike(k, s.now(), -1), textColumn(m.Targets())); err != nil {
				return err
			}
		}
		return nil
	})
}

// ChangeSettings changes settings if they are as expected; see
// [schema.SettingsChanger].
func (s *Store) ChangeSettings(ctx context.Context, c schema.SettingsChange) (err error) {
	defer wrap(&err, "change settings")
	return s.changeSettings(ctx, c, func(*tx) error { return nil })
}

// changeSettings does so, and with it what else is to be done in the
// transaction.
func (s *Store) changeSettings(ctx context.Context, c schema.SettingsChange, with func(*tx) error) error {
	return change(ctx, s, func(t *tx) error {
		settings := make(map[string]string)
		for field := range c.Expect {
			var value string
			there, err := t.row("SELECT value FROM server_settings WHERE field = ? AND value IS NOT NULL", []any{field}, &value)
			if err != nil {
				return err
			}
			if there {
				settings[field] = value
			}
		}
		if !c.Holds(settings) {
			return schema.ErrStale
		}
		if c.Forget != "" {
			if _, err := t.exec("DELETE FROM mogile_range WHERE sweep = ?", string(c.Forget)); err != nil {
				return err
			}
		}
		if err := with(t); err != nil {
			return err
		}
		for field, value := range c.Set {
			if err := t.changeSetting(field, value); err != nil {
				return err
			}
		}
		return nil
	})
}
