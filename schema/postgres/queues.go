package postgres

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/schema"
)

// queueTable says where a queue is kept.
type queueTable struct {
	queue schema.Queue
	table string
	kind  int    // file_to_queue.type; 0 in other tables
	dev   string // the column of the device, empty where there is none
}

var queues = []queueTable{
	{queue: schema.QueueReplicate, table: "file_to_replicate", dev: "fromdevid"},
	{queue: schema.QueueDelete, table: "file_to_delete2"},
	{queue: schema.QueueCopyDelete, table: "copy_to_delete", dev: "devid"},
	{queue: schema.QueueFsck, table: "file_to_queue", kind: 1, dev: "devid"},
	{queue: schema.QueueRebalance, table: "file_to_queue", kind: 2, dev: "devid"},
}

// tableOf is where q is kept.
func tableOf(q schema.Queue) (queueTable, error) {
	for _, t := range queues {
		if t.queue == q {
			return t, nil
		}
	}
	return queueTable{}, fmt.Errorf("there is no queue %d", q)
}

// What follows are expressions of SQL.

func (t queueTable) device() string {
	if t.dev == "" {
		return "NULL::int8"
	}
	return t.dev
}

// flags is the column in which the last lease leaves its mark, 0 before the
// first, so that the next one gets a later token.
func (t queueTable) flags() string {
	if t.queue == schema.QueueDelete { // whose rows are not queued again
		return "0"
	}
	return "flags"
}

func (t queueTable) setFlags(token string) string {
	if t.queue == schema.QueueDelete {
		return ""
	}
	return ", flags = " + token + " % 32767 + 1"
}

func (t queueTable) argument() string {
	if t.kind == 0 {
		return "NULL::text"
	}
	return "arg"
}

func (t queueTable) what() string {
	if t.queue != schema.QueueCopyDelete {
		return "''"
	}
	return "what"
}

// where picks the queue's rows from its table.
func (t queueTable) where() string {
	if t.kind == 0 {
		return "TRUE"
	}
	return fmt.Sprintf("type = %d", t.kind)
}

// same is true of the row q that j names. It is to be found by its fid, and not
// among all rows of the queue, which a plan made while the table was empty would
// prefer: therefore + 0, here and where tokens are compared.
func (t queueTable) same() string {
	switch {
	case t.queue == schema.QueueCopyDelete:
		return "q.fid = j.fid AND q.devid = j.devid AND q.what = j.what"
	case t.kind != 0:
		return fmt.Sprintf("q.fid = j.fid AND q.type + 0 = %d", t.kind)
	}
	return "q.fid = j.fid"
}

// sql fills in a template: {t} is the table, and so on.
func (t queueTable) sql(template string) string {
	return in(template, t.table, t.where(), t.same(), t.device(), t.flags(), t.what(), t.argument(), t.setFlags("j.token"))
}

const (
	// claim leases for $2 seconds and up to $3 more, or for as long as it takes
	// to get a token later than all that the row had: in flags it finds how far
	// ahead the last one lies. What seems more than ten minutes is a lease of
	// hours ago, as flags goes round in nine.
	claim = `WITH due AS (SELECT fid, {3} AS devid, {5} AS what, {4} AS flags, nexttry FROM {0}
			WHERE {1} AND nexttry <= ` + now + ` ORDER BY nexttry LIMIT $4 FOR UPDATE SKIP LOCKED),
		leased AS MATERIALIZED (SELECT due.*, ` + now + ` + $2::int8 + floor(random() * ($3::int8 + 1))::int8 AS until FROM due),
		ahead AS (SELECT l.*, (l.flags - 1 - l.until % 32767 + 32767) % 32767 AS last FROM leased l),
		j AS MATERIALIZED (SELECT a.fid, a.devid, a.what, a.nexttry AS was,
			least(a.until + CASE WHEN a.flags > 0 AND a.last < 600 THEN a.last + 1 ELSE 0 END, 2147483646) AS token FROM ahead a)
		UPDATE {0} q SET nexttry = j.token{7} FROM j WHERE {2}
		RETURNING j.was, q.fid, j.devid, j.what, {6}, q.failcount, q.nexttry`

	renew = `WITH j AS MATERIALIZED (SELECT j.*, least(greatest(` + now + ` + $2::int8 + floor(random() * ($3::int8 + 1))::int8, j.nexttry + 1), 2147483646) AS token
			FROM unnest($4::int8[], $5::int8[], $6::text[], $7::int8[], $8::int8[]) j (fid, devid, what, nexttry, at))
		UPDATE {0} q SET nexttry = j.token{7} FROM j WHERE {2} AND q.nexttry + 0 = j.nexttry RETURNING j.at, q.nexttry`

	finish = `DELETE FROM {0} q USING unnest($1::int8[], $2::int8[], $3::text[], $4::int8[], $5::int8[]) j (fid, devid, what, nexttry, at)
		WHERE {2} AND q.nexttry + 0 = j.nexttry RETURNING j.at`

	reschedule = `UPDATE {0} q SET nexttry = CASE WHEN j.delay >= 2147483647 THEN 2147483647 ELSE least(` + now + ` + j.delay, 2147483647) END,
			failcount = j.failcount FROM unnest($2::int8[], $3::int8[], $4::text[], $5::int8[], $6::int8[], $7::int8[], $8::int8[])
			j (fid, devid, what, nexttry, at, delay, failcount)
		WHERE {2} AND q.nexttry + 0 = j.nexttry RETURNING j.at`
)

// jobArrays are the columns of jobs of one queue; at is each one's place among
// the jobs of the call.
type jobArrays struct {
	fids, devids, tokens, at []int64
	whats                    []string
}

// byQueue sorts jobs into arrays for each queue, ascending by fid, so that
// rows are locked in one order.
func byQueue(jobs []schema.Job) map[schema.Queue]*jobArrays {
	order := make([]int, len(jobs))
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(a, b int) int {
		return cmp.Or(cmp.Compare(jobs[a].FID, jobs[b].FID), cmp.Compare(jobs[a].DevID, jobs[b].DevID))
	})
	arrays := make(map[schema.Queue]*jobArrays)
	for _, i := range order {
		j := jobs[i]
		a := arrays[j.Queue]
		if a == nil {
			a = new(jobArrays)
			arrays[j.Queue] = a
		}
		a.fids, a.devids = append(a.fids, int64(j.FID)), append(a.devids, int64(j.DevID))
		a.tokens, a.whats, a.at = append(a.tokens, j.NextTry), append(a.whats, string(j.What)), append(a.at, int64(i))
	}
	return arrays
}

// eachQueue calls f for each queue that has jobs, in a fixed order.
func eachQueue(jobs []schema.Job, f func(t queueTable, a *jobArrays)) error {
	for _, j := range jobs {
		if _, err := tableOf(j.Queue); err != nil {
			return err
		}
	}
	arrays := byQueue(jobs)
	for _, t := range queues {
		if a := arrays[t.queue]; a != nil {
			f(t, a)
		}
	}
	return nil
}

// Claim leases due rows.
func (s *Store) Claim(ctx context.Context, q schema.Queue, limit int, lease time.Duration) ([]schema.Job, error) {
	t, err := tableOf(q)
	if err != nil || limit <= 0 {
		return nil, err
	}
	type claimed struct {
		schema.Job
		was int64
	}
	var all []claimed
	err = s.do(ctx, "claim jobs of queue "+q.String(), func(ctx context.Context) error {
		all = nil
		rows, err := s.pool.Query(ctx, t.sql(claim), s.offset(), seconds(lease), seconds(lease)/10, limit)
		if err != nil {
			return err
		}
		var was, fid, nexttry int64
		var dev *int64
		var what string
		var arg *string
		var failcount int
		_, err = pgx.ForEachRow(rows, []any{&was, &fid, &dev, &what, &arg, &failcount, &nexttry}, func() error {
			j := schema.Job{Queue: q, FID: protocol.FID(fid), What: schema.What(what), FailCount: failcount, NextTry: nexttry}
			switch {
			case dev == nil:
			case q == schema.QueueReplicate:
				j.From = protocol.DevID(*dev)
			case q != schema.QueueFsck:
				j.DevID = protocol.DevID(*dev)
			}
			if arg != nil {
				j.Arg = *arg
			}
			all = append(all, claimed{j, was})
			return nil
		})
		return err
	})
	slices.SortFunc(all, func(a, b claimed) int {
		return cmp.Or(cmp.Compare(a.was, b.was), cmp.Compare(a.FID, b.FID), cmp.Compare(a.DevID, b.DevID))
	})
	jobs := make([]schema.Job, len(all))
	for i, c := range all {
		jobs[i] = c.Job
	}
	return jobs, err
}

// Renew extends leases.
func (s *Store) Renew(ctx context.Context, jobs []schema.Job, lease time.Duration) ([]schema.Job, error) {
	if len(jobs) == 0 {
		return nil, nil
	}
	tokens := make([]int64, len(jobs)) // 0: lost
	err := s.do(ctx, "renew leases", func(ctx context.Context) error {
		clear(tokens)
		var invalid error
		err := s.pipeline(ctx, implicit, func(b *pgx.Batch) {
			invalid = eachQueue(jobs, func(t queueTable, a *jobArrays) {
				b.Queue(t.sql(renew), s.offset(), seconds(lease), seconds(lease)/10, a.fids, a.devids, a.whats, a.tokens, a.at).Query(func(rows pgx.Rows) error {
					var at, token int64
					_, err := pgx.ForEachRow(rows, []any{&at, &token}, func() error {
						tokens[at] = token
						return nil
					})
					return err
				})
			})
		})
		return cmp.Or(invalid, err)
	})
	var held []schema.Job
	for i, j := range jobs {
		if tokens[i] != 0 {
			j.NextTry = tokens[i]
			held = append(held, j)
		}
	}
	return held, err
}

// Finish removes the rows of jobs that still hold their token.
func (s *Store) Finish(ctx context.Context, jobs []schema.Job) (int, error) {
	if len(jobs) == 0 {
		return 0, nil
	}
	for _, j := range jobs {
		if _, err := tableOf(j.Queue); err != nil {
			return 0, err
		}
	}
	var n int
	err := s.do(ctx, "finish jobs", func(ctx context.Context) (err error) {
		n, err = s.finishes.do(ctx, jobs)
		return err
	})
	return n, err
}

// finishBatch finishes the jobs of several callers, and counts for each.
func (s *Store) finishBatch(ctx context.Context, calls [][]schema.Job, counts []int) error {
	var jobs []schema.Job
	var owner []int
	for i, c := range calls {
		jobs = append(jobs, c...)
		for range c {
			owner = append(owner, i)
		}
	}
	clear(counts)
	// What a crash of the server brings back is looked at once more, which takes
	// little: of a file that has its copies it is seen that it has them.
	lax := !slices.ContainsFunc(jobs, func(j schema.Job) bool { return j.Queue != schema.QueueReplicate })
	return s.pipeline(ctx, implicit, func(b *pgx.Batch) {
		if lax {
			b.Queue(notDurable)
		}
		_ = eachQueue(jobs, func(t queueTable, a *jobArrays) { // Finish looked for unknown queues
			b.Queue(t.sql(finish), a.fids, a.devids, a.whats, a.tokens, a.at).Query(func(rows pgx.Rows) error {
				return eachPlace(rows, func(at int64) { counts[owner[at]]++ })
			})
		})
	})
}

// eachPlace calls f with each number of rows that have no other column.
func eachPlace(rows pgx.Rows, f func(at int64)) error {
	var at int64
	_, err := pgx.ForEachRow(rows, []any{&at}, func() error {
		f(at)
		return nil
	})
	return err
}

// givenBack is a job that comes due again.
type givenBack struct {
	job       schema.Job
	delay     int64 // seconds
	failcount int
}

// Reschedule gives a job back.
func (s *Store) Reschedule(ctx context.Context, j schema.Job, delay time.Duration, failcount int) (bool, error) {
	if _, err := tableOf(j.Queue); err != nil {
		return false, err
	}
	g := givenBack{j, seconds(delay), min(max(failcount, 0), math.MaxInt16)}
	var held bool
	err := s.do(ctx, fmt.Sprintf("reschedule fid %d in queue %s", j.FID, j.Queue), func(ctx context.Context) (err error) {
		held, err = s.reschedules.do(ctx, g)
		return err
	})
	return held, err
}

// rescheduleBatch gives the jobs of several callers back.
func (s *Store) rescheduleBatch(ctx context.Context, calls []givenBack, held []bool) error {
	jobs := make([]schema.Job, len(calls))
	for i, c := range calls {
		jobs[i] = c.job
	}
	clear(held)
	return s.pipeline(ctx, implicit, func(b *pgx.Batch) {
		_ = eachQueue(jobs, func(t queueTable, a *jobArrays) { // Reschedule looked for unknown queues
			delays, failcounts := make([]int64, len(a.at)), make([]int64, len(a.at))
			for i, at := range a.at {
				delays[i], failcounts[i] = calls[at].delay, int64(calls[at].failcount)
			}
			b.Queue(t.sql(reschedule), s.offset(), a.fids, a.devids, a.whats, a.tokens, a.at, delays, failcounts).Query(func(rows pgx.Rows) error {
				return eachPlace(rows, func(at int64) { held[at] = true })
			})
		})
	})
}

// QueueReplication queues fids to be brought to their policy.
func (s *Store) QueueReplication(ctx context.Context, fids []protocol.FID, from protocol.DevID, delay time.Duration) error {
	return s.queueReplication(ctx, fids, from, delay, 0)
}

// QueueShards queues files that lack shards.
func (s *Store) QueueShards(ctx context.Context, fids []protocol.FID, spare int64) error {
	return s.queueReplication(ctx, fids, 0, 0, schema.Urgency(spare))
}

func (s *Store) queueReplication(ctx context.Context, fids []protocol.FID, from protocol.DevID, delay time.Duration, urgency int64) error {
	if len(fids) == 0 {
		return nil
	}
	sorted := fidArray(fids)
	slices.Sort(sorted)
	sorted = slices.Compact(sorted)
	return s.do(ctx, "queue replication", func(ctx context.Context) error {
		_, err := s.pool.Exec(ctx, queueReplication, s.offset(), seconds(delay), sorted, int64(from), urgency)
		return err
	})
}

// queueReplication moves a row that is there to the earlier time, and always
// to another one than it had, so that a lease on it ends. Only rows that are
// parked or urgent may keep their time: those are not leased.
const queueReplication = `INSERT INTO file_to_replicate AS q (fid, nexttry, fromdevid)
	SELECT fid, CASE WHEN $2::int8 = 0 THEN $5::int8 ELSE least(` + now + ` + $2, 2147483647) END, nullif($4::int8, 0)
	FROM unnest($3::int8[]) fid
	ON CONFLICT (fid) DO UPDATE SET fromdevid = coalesce(EXCLUDED.fromdevid, q.fromdevid),
		nexttry = CASE WHEN EXCLUDED.nexttry < q.nexttry THEN EXCLUDED.nexttry
			WHEN q.nexttry < 10 OR q.nexttry = 2147483647 THEN q.nexttry ELSE q.nexttry - 1 END`

// entry is a row that copy_to_delete gets.
type entry struct {
	fid   protocol.FID
	dev   protocol.DevID
	what  schema.What
	delay int64 // seconds
}

// QueueCopyDeletion enters a copy in copy_to_delete.
func (s *Store) QueueCopyDeletion(ctx context.Context, fid protocol.FID, dev protocol.DevID, what schema.What) error {
	return s.do(ctx, fmt.Sprintf("queue deletion of fid %d on dev%d", fid, dev), func(ctx context.Context) error {
		_, err := s.strays.do(ctx, entry{fid, dev, what, 0})
		return err
	})
}

// AnnounceCopy enters a copy whose bytes are about to be sent.
func (s *Store) AnnounceCopy(ctx context.Context, fid protocol.FID, dev protocol.DevID, what schema.What, delay time.Duration) error {
	return s.do(ctx, fmt.Sprintf("announce fid %d on dev%d", fid, dev), func(ctx context.Context) error {
		_, err := s.announces.do(ctx, entry{fid, dev, what, seconds(delay)})
		return err
	})
}

const (
	// copyDueAgain makes an entry of copy_to_delete due that is there. nexttry
	// below now keeps no lease alive: tokens lie ahead.
	copyDueAgain = ` ON CONFLICT (fid, devid, what) DO UPDATE SET nexttry = EXCLUDED.nexttry`

	enterCopies = `INSERT INTO copy_to_delete AS q (fid, devid, what, nexttry)
		SELECT fid, devid, what, least(` + now + ` + delay, 2147483646)
		FROM unnest($2::int8[], $3::int8[], $4::text[], $5::int8[]) c (fid, devid, what, delay)`

	queueCopyDeletions = enterCopies + copyDueAgain

	// announceCopies has a time that is not that of a lease which ends with it.
	announceCopies = enterCopies + ` ON CONFLICT (fid, devid, what)
		DO UPDATE SET nexttry = EXCLUDED.nexttry + CASE WHEN q.nexttry = EXCLUDED.nexttry THEN 1 ELSE 0 END`
)

// newEntries runs a statement for the entries of several callers, no two of
// which are the same row.
func (s *Store) newEntries(sql string) *coalescer[entry, struct{}] {
	return newCoalescer(s.life, coalescing[entry, struct{}]{
		batches: 2, size: 64, retry: s.retryAlone,
		keys: func(e entry) [2]any {
			row := entry{fid: e.fid, dev: e.dev, what: e.what}
			return [2]any{row, row}
		},
		run: func(ctx context.Context, calls []entry, _ []struct{}) error {
			sorted := slices.SortedFunc(slices.Values(calls), func(x, y entry) int {
				return cmp.Or(cmp.Compare(x.fid, y.fid), cmp.Compare(x.dev, y.dev), cmp.Compare(x.what, y.what))
			})
			var fids, devids, delays []int64
			var whats []string
			for _, e := range sorted {
				fids, devids = append(fids, int64(e.fid)), append(devids, int64(e.dev))
				whats, delays = append(whats, string(e.what)), append(delays, e.delay)
			}
			return s.pipeline(ctx, implicit, func(b *pgx.Batch) {
				b.Queue(durable)
				b.Queue(sql, s.offset(), fids, devids, whats, delays)
			})
		},
	})
}

// ReplicateNow makes every row of file_to_replicate due.
func (s *Store) ReplicateNow(ctx context.Context) (int64, error) {
	var n int64
	err := s.do(ctx, "make replications due", func(ctx context.Context) error {
		tag, err := s.pool.Exec(ctx, `UPDATE file_to_replicate SET nexttry = `+now+` WHERE nexttry > `+now, s.offset())
		n = tag.RowsAffected()
		return err
	})
	return n, err
}

// AdoptOldDeletions moves rows of the older queues of deletions.
func (s *Store) AdoptOldDeletions(ctx context.Context, limit int) (int, error) {
	var n int
	err := s.do(ctx, "adopt old deletions", func(ctx context.Context) error {
		return s.pool.QueryRow(ctx, adoptOldDeletions, s.offset(), max(limit, 0)).Scan(&n)
	})
	return n, err
}

const adoptOldDeletions = `WITH first AS (SELECT fid FROM file_to_delete ORDER BY fid LIMIT $2 FOR UPDATE SKIP LOCKED),
	urgent AS (DELETE FROM file_to_delete d USING first WHERE d.fid = first.fid RETURNING d.fid),
	second AS (SELECT fid FROM file_to_delete_later WHERE delafter < ` + now + `
		ORDER BY delafter LIMIT greatest($2 - (SELECT count(*) FROM urgent), 0) FOR UPDATE SKIP LOCKED),
	later AS (DELETE FROM file_to_delete_later d USING second WHERE d.fid = second.fid RETURNING d.fid),
	queued AS (INSERT INTO file_to_delete2 (fid, nexttry) SELECT fid, ` + now + ` FROM (SELECT fid FROM urgent UNION SELECT fid FROM later) u
		ON CONFLICT (fid) DO NOTHING)
	SELECT (SELECT count(*) FROM urgent) + (SELECT count(*) FROM later)`

// FinishDeletion forgets a fid whose every copy is gone.
func (s *Store) FinishDeletion(ctx context.Context, j schema.Job) (bool, error) {
	var done bool
	err := s.do(ctx, fmt.Sprintf("finish deletion of fid %d", j.FID), func(ctx context.Context) (err error) {
		done, err = s.deletions.do(ctx, j)
		return err
	})
	return done, err
}

// finishDeletionBatch forgets the fids of several callers.
func (s *Store) finishDeletionBatch(ctx context.Context, calls []schema.Job, done []bool) error {
	jobs := slices.Clone(calls)
	for i := range jobs {
		jobs[i].Queue = schema.QueueDelete
	}
	a := byQueue(jobs)[schema.QueueDelete]
	clear(done)
	rows, err := s.pool.Query(ctx, finishDeletions, a.fids, a.tokens, a.at)
	if err != nil {
		return err
	}
	return eachPlace(rows, func(at int64) { done[at] = true })
}

const finishDeletions = `WITH done AS (DELETE FROM file_to_delete2 q USING unnest($1::int8[], $2::int8[], $3::int8[]) j (fid, nexttry, at)
		WHERE q.fid = j.fid AND q.nexttry + 0 = j.nexttry AND NOT EXISTS (SELECT FROM file_on o WHERE o.fid = j.fid) RETURNING q.fid, j.at),
	sums AS (DELETE FROM checksum c USING done WHERE c.fid = done.fid),
	uploads AS (DELETE FROM tempfile t USING done WHERE t.fid = done.fid),
	encodings AS (DELETE FROM ec e USING done WHERE e.fid = done.fid)
	SELECT at FROM done`

// QueueLengths counts the rows of each queue.
func (s *Store) QueueLengths(ctx context.Context) (map[schema.Queue]int64, error) {
	lengths := make(map[schema.Queue]int64, len(queues))
	err := s.do(ctx, "count queues", func(ctx context.Context) error {
		return s.pipeline(ctx, beginSnapshot, func(b *pgx.Batch) {
			for _, t := range queues {
				b.Queue(t.sql(`SELECT count(*) FROM {0} WHERE {1}`)).QueryRow(func(row pgx.Row) error {
					var n int64
					err := row.Scan(&n)
					lengths[t.queue] = n
					return err
				})
			}
		})
	})
	return lengths, err
}
