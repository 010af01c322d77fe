package sqlite

import (
	"context"
	"database/sql"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/schema"
)

// queues are all of them.
var queues = [...]schema.Queue{schema.QueueReplicate, schema.QueueDelete, schema.QueueCopyDelete, schema.QueueFsck, schema.QueueRebalance}

// queueTable says where a queue is.
type queueTable struct {
	name  string // the table
	cols  string // devid, what, fromdevid and arg of a Job
	debug string // devid, what, nexttry, failcount, flags and arg of a QueueRow
	and   string // further condition for the rows of the queue
	row   string // condition for one row, with ?1 the fid, ?2 the device, ?3 what
}

func tableOf(q schema.Queue) queueTable {
	switch q {
	case schema.QueueReplicate:
		return queueTable{"file_to_replicate", "0, '', coalesce(fromdevid, 0), ''", "fromdevid, '', nexttry, failcount, flags, NULL",
			"", "fid = ?1"}
	case schema.QueueDelete:
		return queueTable{"file_to_delete2", "0, '', 0, ''", "NULL, '', nexttry, failcount, 0, NULL",
			"", "fid = ?1"}
	case schema.QueueCopyDelete:
		return queueTable{"copy_to_delete", "devid, what, 0, ''", "devid, what, nexttry, failcount, 0, NULL",
			"", "fid = ?1 AND devid = ?2 AND what = ?3"}
	case schema.QueueFsck:
		return queueTable{"file_to_queue", "0, '', 0, coalesce(arg, '')", "devid, '', nexttry, failcount, flags, arg",
			" AND type = 1", "fid = ?1 AND type = 1"}
	case schema.QueueRebalance:
		return queueTable{"file_to_queue", "coalesce(devid, 0), '', 0, coalesce(arg, '')", "devid, '', nexttry, failcount, flags, arg",
			" AND type = 2", "fid = ?1 AND type = 2"}
	}
	panic(fmt.Sprintf("queue %d is unknown", q))
}

// Names of queue rows.
func replicateRow(fid protocol.FID) rowKey {
	return rowKey{queue: schema.QueueReplicate, fid: int64(fid)}
}
func deleteRow(fid protocol.FID) rowKey { return rowKey{queue: schema.QueueDelete, fid: int64(fid)} }
func copyRow(fid protocol.FID, dev protocol.DevID, what schema.What) rowKey {
	return rowKey{schema.QueueCopyDelete, int64(fid), int64(dev), what}
}

func jobRow(j schema.Job) rowKey {
	k := rowKey{queue: j.Queue, fid: int64(j.FID)}
	if j.Queue == schema.QueueCopyDelete {
		k.devid, k.what = int64(j.DevID), j.What
	}
	return k
}

// seconds are d in whole ones, not less.
func seconds(d time.Duration) int64 { return int64((d + time.Second - 1) / time.Second) }

// later is delay from now as nexttry.
func later(now int64, delay time.Duration) int64 {
	return min(now+seconds(delay), schema.EndOfTime)
}

// enqueue puts a row into its queue, due at at. A row that is there becomes due
// no later, and in any case loses its lease: its nexttry changes. From is the
// preferred source of replication.
func (t *tx) enqueue(k rowKey, at int64, from sql.NullInt64) error {
	table := tableOf(k.queue)
	var n int64
	var err error
	switch k.queue {
	case schema.QueueReplicate:
		n, err = t.exec("INSERT INTO file_to_replicate (fid, nexttry, fromdevid) VALUES (?, ?, ?) ON CONFLICT DO NOTHING", k.fid, at, from)
	case schema.QueueDelete:
		n, err = t.exec("INSERT INTO file_to_delete2 (fid, nexttry) VALUES (?, ?) ON CONFLICT DO NOTHING", k.fid, at)
	case schema.QueueCopyDelete:
		n, err = t.exec("INSERT INTO copy_to_delete (fid, devid, what, nexttry) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING", k.fid, k.devid, k.what, at)
	}
	if err != nil || n == 1 {
		return err
	}
	var old int64
	if _, err := t.row("SELECT nexttry FROM "+table.name+" WHERE "+table.row, rowArgs(k), &old); err != nil {
		return err
	}
	if k.queue == schema.QueueReplicate && old < schema.Urgencies && at >= old {
		return t.prefer(k, from) // it is urgent, and has no lease
	}
	at = t.unlike(k, max(0, min(at, old-1)), -1)
	if _, err := t.exec("UPDATE "+table.name+" SET nexttry = ?4 WHERE "+table.row, rowArgs(k, at)...); err != nil {
		return err
	}
	return t.prefer(k, from)
}

// prefer has the copy of a file that is queued for replication made from a device.
func (t *tx) prefer(k rowKey, from sql.NullInt64) error {
	if k.queue != schema.QueueReplicate || !from.Valid {
		return nil
	}
	_, err := t.exec("UPDATE file_to_replicate SET fromdevid = ? WHERE fid = ?", from, k.fid)
	return err
}

// rowArgs are the values of a row's condition, and more.
func rowArgs(k rowKey, more ...any) []any {
	return append([]any{k.fid, k.devid, string(k.what)}, more...)
}

func (t *tx) queueDelete(fid protocol.FID, now int64) error {
	return t.enqueue(deleteRow(fid), now, sql.NullInt64{})
}

// deleteLater queues the deletion of what a path in a tracker's memory may
// still name: due at once, or after schema.DeletionDelay where such paths are
// kept.
func (s *Store) deleteLater(t *tx, k rowKey) error {
	var ttl string
	if _, err := t.row("SELECT coalesce(value, '') FROM server_settings WHERE field = ?", []any{schema.SettingPathCacheTTL}, &ttl); err != nil {
		return err
	}
	return t.enqueue(k, later(s.now(), schema.DeletionDelay(ttl)), sql.NullInt64{})
}

// Claim leases rows that are due; see [schema.Queues].
func (s *Store) Claim(ctx context.Context, q schema.Queue, limit int, lease time.Duration) (_ []schema.Job, err error) {
	defer wrap(&err, "claim from queue %s", q)
	if limit <= 0 {
		return nil, nil
	}
	table := tableOf(q)
	due := " FROM " + table.name + " WHERE nexttry <= ?" + table.and
	// Workers poll: an empty queue is no reason to write.
	var any1 bool
	if err := s.readRow(ctx, "SELECT EXISTS (SELECT 1"+due+")", []any{s.now()}, &any1); err != nil || !any1 {
		return nil, err
	}
	return write(ctx, s, func(t *tx) ([]schema.Job, error) {
		now := s.now()
		var jobs []schema.Job
		if err := t.rows("SELECT fid, failcount, "+table.cols+due+" ORDER BY nexttry, fid LIMIT ?", []any{now, limit}, func(rows *sql.Rows) error {
			j := schema.Job{Queue: q}
			err := rows.Scan(&j.FID, &j.FailCount, &j.DevID, &j.What, &j.From, &j.Arg)
			jobs = append(jobs, j)
			return err
		}); err != nil {
			return nil, err
		}
		for i := range jobs {
			jitter := rand.Int64N(seconds(lease)/10 + 1)
			if err := t.lease(&jobs[i], later(now, lease)+jitter, now); err != nil {
				return nil, err
			}
		}
		return jobs, nil
	})
}

// lease gives a job a token of until.
func (t *tx) lease(j *schema.Job, until, now int64) error {
	k, table := jobRow(*j), tableOf(j.Queue)
	j.NextTry = t.token(k, until, now)
	_, err := t.exec("UPDATE "+table.name+" SET nexttry = ?4 WHERE "+table.row, rowArgs(k, j.NextTry)...)
	return err
}

// holds reports whether a job's row still has its token.
func (t *tx) holds(j schema.Job) (bool, error) {
	table := tableOf(j.Queue)
	var one int
	return t.row("SELECT 1 FROM "+table.name+" WHERE "+table.row+" AND nexttry = ?4", rowArgs(jobRow(j), j.NextTry), &one)
}

// Renew extends leases; see [schema.Queues].
func (s *Store) Renew(ctx context.Context, jobs []schema.Job, lease time.Duration) (_ []schema.Job, err error) {
	defer wrap(&err, "renew %d leases", len(jobs))
	if len(jobs) == 0 {
		return nil, nil
	}
	return write(ctx, s, func(t *tx) ([]schema.Job, error) {
		now := s.now()
		var held []schema.Job
		for _, j := range jobs {
			if ok, err := t.holds(j); err != nil {
				return nil, err
			} else if !ok {
				continue
			}
			if err := t.lease(&j, later(now, lease), now); err != nil {
				return nil, err
			}
			held = append(held, j)
		}
		return held, nil
	})
}

// Finish removes the rows of jobs; see [schema.Queues].
func (s *Store) Finish(ctx context.Context, jobs []schema.Job) (_ int, err error) {
	defer wrap(&err, "finish %d jobs", len(jobs))
	if len(jobs) == 0 {
		return 0, nil
	}
	return write(ctx, s, func(t *tx) (int, error) {
		var sum int64
		for _, j := range jobs {
			n, err := t.finish(j)
			if err != nil {
				return 0, err
			}
			sum += n
		}
		return int(sum), nil
	})
}

func (t *tx) finish(j schema.Job) (int64, error) {
	table := tableOf(j.Queue)
	return t.exec("DELETE FROM "+table.name+" WHERE "+table.row+" AND nexttry = ?4", rowArgs(jobRow(j), j.NextTry)...)
}

// Reschedule gives a job back; see [schema.Queues].
func (s *Store) Reschedule(ctx context.Context, job schema.Job, delay time.Duration, failcount int) (_ bool, err error) {
	defer wrap(&err, "reschedule fid %d of queue %s", job.FID, job.Queue)
	return write(ctx, s, func(t *tx) (bool, error) {
		k, table := jobRow(job), tableOf(job.Queue)
		at := later(s.now(), delay)
		if at < schema.EndOfTime {
			at = t.unlike(k, at, +1)
		}
		n, err := t.exec("UPDATE "+table.name+" SET nexttry = ?4, failcount = ?5 WHERE "+table.row+" AND nexttry = ?6",
			rowArgs(k, at, min(failcount, 32767), job.NextTry)...)
		return n == 1, err
	})
}

// QueueReplication queues fids; see [schema.Queues].
func (s *Store) QueueReplication(ctx context.Context, fids []protocol.FID, from protocol.DevID, delay time.Duration) error {
	return s.queueReplication(ctx, fids, from, func(now int64) int64 {
		if delay > 0 {
			return later(now, delay)
		}
		return 0
	})
}

// QueueShards queues files that lack shards; see [schema.Queues].
func (s *Store) QueueShards(ctx context.Context, fids []protocol.FID, spare int64) error {
	return s.queueReplication(ctx, fids, 0, func(int64) int64 { return schema.Urgency(spare) })
}

func (s *Store) queueReplication(ctx context.Context, fids []protocol.FID, from protocol.DevID, at func(now int64) int64) (err error) {
	if len(fids) == 0 {
		return nil
	}
	defer wrap(&err, "queue %d fids for replication", len(fids))
	return change(ctx, s, func(t *tx) error {
		for _, fid := range fids {
			if err := t.enqueue(replicateRow(fid), at(s.now()), sql.NullInt64{Int64: int64(from), Valid: from != 0}); err != nil {
				return err
			}
		}
		return nil
	})
}

// QueueCopyDeletion enters a copy in copy_to_delete; see [schema.Queues].
func (s *Store) QueueCopyDeletion(ctx context.Context, fid protocol.FID, dev protocol.DevID, what schema.What) (err error) {
	defer wrap(&err, "queue the copy of fid %d on dev%d for deletion", fid, dev)
	return change(ctx, s, func(t *tx) error {
		return t.enqueue(copyRow(fid, dev, what), s.now(), sql.NullInt64{})
	})
}

// AnnounceCopy enters a copy whose bytes are about to be sent; see
// [schema.Queues].
func (s *Store) AnnounceCopy(ctx context.Context, fid protocol.FID, dev protocol.DevID, what schema.What, delay time.Duration) (err error) {
	defer wrap(&err, "announce fid %d on dev%d", fid, dev)
	return change(ctx, s, func(t *tx) error {
		k := copyRow(fid, dev, what)
		at := t.unlike(k, min(later(s.now(), delay), schema.EndOfTime-1), +1)
		_, err := t.exec(`INSERT INTO copy_to_delete (fid, devid, what, nexttry) VALUES (?1, ?2, ?3, ?4)
			ON CONFLICT (fid, devid, what) DO UPDATE SET nexttry = ?4`, rowArgs(k, at)...)
		return err
	})
}

// ReplicateNow makes all replication due; see [schema.Queues].
func (s *Store) ReplicateNow(ctx context.Context) (_ int64, err error) {
	defer wrap(&err, "make all replication due")
	return write(ctx, s, func(t *tx) (int64, error) {
		return t.exec("UPDATE file_to_replicate SET nexttry = ?1 WHERE nexttry > ?1", s.now())
	})
}

// AdoptOldDeletions moves rows of MogileFS's older queues; see [schema.Queues].
func (s *Store) AdoptOldDeletions(ctx context.Context, limit int) (_ int, err error) {
	defer wrap(&err, "adopt old deletions")
	if limit <= 0 {
		return 0, nil
	}
	const later = "SELECT fid FROM file_to_delete_later WHERE delafter <= ?"
	// Workers poll: empty queues are no reason to write.
	var any1 bool
	if err := s.readRow(ctx, "SELECT EXISTS (SELECT 1 FROM file_to_delete) OR EXISTS ("+later+")", []any{s.now()}, &any1); err != nil || !any1 {
		return 0, err
	}
	return write(ctx, s, func(t *tx) (int, error) {
		now, moved := s.now(), 0
		for _, q := range []struct {
			due, del string
			args     []any
		}{
			{"SELECT fid FROM file_to_delete ORDER BY fid LIMIT ?", "DELETE FROM file_to_delete WHERE fid = ?", nil},
			{later + " ORDER BY delafter, fid LIMIT ?", "DELETE FROM file_to_delete_later WHERE fid = ?", []any{now}},
		} {
			fids, err := t.fids(q.due, append(q.args, limit-moved)...)
			if err != nil {
				return 0, err
			}
			for _, fid := range fids {
				if err := t.queueDelete(fid, now); err != nil {
					return 0, err
				}
				if _, err := t.exec(q.del, int64(fid)); err != nil {
					return 0, err
				}
			}
			moved += len(fids)
		}
		return moved, nil
	})
}

// fids reads a list of them.
func (t *tx) fids(query string, args ...any) (fids []protocol.FID, err error) {
	err = t.rows(query, args, func(rows *sql.Rows) error {
		var fid protocol.FID
		err := rows.Scan(&fid)
		fids = append(fids, fid)
		return err
	})
	return fids, err
}

// FinishDeletion forgets a fid; see [schema.Queues].
func (s *Store) FinishDeletion(ctx context.Context, job schema.Job) (_ bool, err error) {
	defer wrap(&err, "finish the deletion of fid %d", job.FID)
	return write(ctx, s, func(t *tx) (bool, error) {
		devs, err := t.locations(job.FID)
		if err != nil || len(devs) > 0 {
			return false, err
		}
		job.Queue = schema.QueueDelete
		if n, err := t.finish(job); err != nil || n == 0 {
			return false, err
		}
		for _, query := range []string{"DELETE FROM checksum WHERE fid = ?", "DELETE FROM tempfile WHERE fid = ?", "DELETE FROM ec WHERE fid = ?"} {
			if _, err := t.exec(query, int64(job.FID)); err != nil {
				return false, err
			}
		}
		return true, nil
	})
}

// QueueLengths counts rows; see [schema.Queues].
func (s *Store) QueueLengths(ctx context.Context) (_ map[schema.Queue]int64, err error) {
	defer wrap(&err, "count the queues")
	lengths := make(map[schema.Queue]int64, len(queues))
	err = s.snapshot(ctx, func(q querier) error {
		for _, queue := range queues {
			table := tableOf(queue)
			if err := readRows(ctx, q, "SELECT count(*) FROM "+table.name+" WHERE 1"+table.and, nil, func(rows *sql.Rows) error {
				var n int64
				err := rows.Scan(&n)
				lengths[queue] = n
				return err
			}); err != nil {
				return err
			}
		}
		return nil
	})
	return lengths, err
}

// ExpireTempfiles handles uploads that nobody closed; see [schema.Uploads].
func (s *Store) ExpireTempfiles(ctx context.Context, age time.Duration, limit int) (_ schema.Expired, err error) {
	defer wrap(&err, "expire tempfiles")
	const old = "SELECT fid, coalesce(devids, '') FROM tempfile WHERE createtime < ? ORDER BY fid LIMIT ?"
	if limit <= 0 {
		return schema.Expired{}, nil
	}
	before := func() int64 { return s.now() - seconds(age) }
	found := false
	if err := s.read(ctx, old, []any{before(), 1}, func(*sql.Rows) error { found = true; return nil }); err != nil || !found {
		return schema.Expired{}, err
	}
	return write(ctx, s, func(t *tx) (x schema.Expired, err error) {
		uploads := make(map[protocol.FID][]protocol.DevID)
		if err := t.rows(old, []any{before(), limit}, func(rows *sql.Rows) error {
			var fid protocol.FID
			var devids string
			err := rows.Scan(&fid, &devids)
			uploads[fid] = splitDevices(devids)
			return err
		}); err != nil {
			return x, err
		}
		for fid, devs := range uploads {
			closed, err := t.hasFile(fid)
			if err != nil {
				return x, err
			}
			if closed {
				x.Closed++
			} else {
				x.Discard++
				for _, dev := range slices.Compact(devs) {
					if err := t.addLocation(fid, dev); err != nil {
						return x, err
					}
				}
				if err := t.queueDelete(fid, s.now()); err != nil {
					return x, err
				}
			}
			if _, err := t.takeTempfile(fid); err != nil {
				return x, err
			}
		}
		return x, nil
	})
}
