package postgres

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/schema"
)

const encodingColumns = `fid, k, m, block, encoding, epoch, devids`

// encodingRow receives encodingColumns.
type encodingRow struct {
	schema.Encoding
	fid, id int64
	devids  string
}

func (r *encodingRow) fields() []any {
	return []any{&r.fid, &r.K, &r.M, &r.Block, &r.id, &r.Epoch, &r.devids}
}

func (r *encodingRow) encoding() (schema.Encoding, error) {
	e := r.Encoding
	e.FID, e.ID = protocol.FID(r.fid), uint64(r.id)
	var err error
	if e.Devices, err = schema.ParseShardDevices(r.devids); err != nil {
		return e, fmt.Errorf("encoding of fid %d: %w", r.fid, err)
	}
	return e, nil
}

func scanEncodings(rows pgx.Rows, found func(at int, e schema.Encoding)) error {
	var at int
	var r encodingRow
	_, err := pgx.ForEachRow(rows, append([]any{&at}, r.fields()...), func() error {
		e, err := r.encoding()
		if err == nil {
			found(at, e)
		}
		return err
	})
	return err
}

const (
	// encodingsOf are encodings and the callers that asked for them.
	encodingsOf = `SELECT q.at, e.fid, e.k, e.m, e.block, e.encoding, e.epoch, e.devids
		FROM unnest($1::int8[], $2::int8[]) q (fid, at) JOIN ec e ON e.fid = q.fid`

	readEncoding = `SELECT ` + encodingColumns + ` FROM ec WHERE fid = $1`

	// whereIs is where a fid is; its file row is locked before.
	lockFile = `SELECT fid FROM file WHERE fid = $1 FOR UPDATE`
	whereIs  = `SELECT coalesce(array_agg(devid::int8 ORDER BY devid), '{}') FROM file_on WHERE fid = $1`

	insertEncoding = `INSERT INTO ec (` + encodingColumns + `) VALUES ($1, $2, $3, $4, $5, $6, $7)
		ON CONFLICT (fid) DO UPDATE SET k = EXCLUDED.k, m = EXCLUDED.m, block = EXCLUDED.block, encoding = EXCLUDED.encoding,
			epoch = EXCLUDED.epoch, devids = EXCLUDED.devids`
	updateEncoding = `UPDATE ec SET epoch = $2, devids = $3 WHERE fid = $1`
	deleteEncoding = `DELETE FROM ec WHERE fid = $1`

	// All three have a fid on these devices alone.
	leaveDevices = `DELETE FROM file_on WHERE fid = $1 AND devid <> ALL ($2::int8[])`
	joinDevices  = `INSERT INTO file_on (fid, devid) SELECT $1::int8, devid FROM unnest($2::int8[]) devid ON CONFLICT DO NOTHING`
	countJoined  = `UPDATE file SET devcount = cardinality($2::int8[]) WHERE fid = $1 AND ` + countDevices

	// keepOnDevices removes entries of copy_to_delete.
	keepOnDevices = `DELETE FROM copy_to_delete WHERE fid = $1 AND devid = ANY ($2::int8[]) AND what = ANY ($3::text[])`
	dropNow       = `INSERT INTO copy_to_delete (fid, devid, what, nexttry) SELECT $2::int8, devid, $4::text, ` + now + ` FROM unnest($3::int8[]) devid` + copyDueAgain
	dropLater     = `INSERT INTO copy_to_delete (fid, devid, what, nexttry) SELECT $2::int8, devid, $4::text, ` + pathsForgotten + ` FROM unnest($3::int8[]) devid` + copyDueAgain
)

// EncodingsOf reads how files are kept in shards.
func (s *Store) EncodingsOf(ctx context.Context, fids []protocol.FID) (map[protocol.FID]schema.Encoding, error) {
	found := make(map[protocol.FID]schema.Encoding)
	err := s.do(ctx, "read encodings", func(ctx context.Context) error {
		encodings, err := s.encodings.read(ctx, fids)
		for _, e := range encodings {
			found[e.FID] = e
		}
		return err
	})
	return found, err
}

// coding is a transaction about how one file is kept.
type coding struct {
	pgx.Tx
	ctx context.Context // of the call, whose transaction this is
	s   *Store
	fid int64
}

// recode runs f in a transaction that has locked the fid's row, if the file is
// there and exactly where it was seen; else f gets what refuses it. A refusal
// that f returns is committed.
func (s *Store) recode(ctx context.Context, what string, fid protocol.FID, seen []protocol.DevID, f func(c coding, refusal error) error) error {
	return s.do(ctx, fmt.Sprintf("%s of fid %d", what, fid), func(ctx context.Context) error {
		var refused error
		err := s.tx(ctx, func(tx pgx.Tx) error {
			c := coding{tx, ctx, s, int64(fid)}
			if err := c.exec(setLockTimeout, aloneLockTimeout.String()); err != nil {
				return err
			}
			refusal, err := c.changed(seen)
			if err != nil {
				return err
			}
			err = f(c, refusal)
			if errors.Is(err, schema.ErrStale) || errors.Is(err, schema.ErrGone) {
				refused, err = err, nil
			}
			return err
		})
		if err != nil {
			return err
		}
		return refused
	})
}

func (c coding) exec(sql string, args ...any) error {
	_, err := c.Exec(c.ctx, sql, args...)
	return err
}

// changed locks the file's row, and says whether it is gone or elsewhere.
func (c coding) changed(seen []protocol.DevID) (refusal, err error) {
	var fid int64
	err = c.QueryRow(c.ctx, lockFile, c.fid).Scan(&fid)
	if errors.Is(err, pgx.ErrNoRows) {
		return schema.ErrGone, nil
	}
	if err != nil {
		return nil, err
	}
	var devs []int64
	if err := c.QueryRow(c.ctx, whereIs, c.fid).Scan(&devs); err != nil {
		return nil, err
	}
	if devText(devIDs(devs)) != devText(seen) {
		return schema.ErrStale, nil
	}
	return nil, nil
}

// encoding is the fid's encoding, if it is that one; else the error is
// [schema.ErrStale].
func (c coding) encoding(id uint64) (schema.Encoding, error) {
	var r encodingRow
	err := c.QueryRow(c.ctx, readEncoding, c.fid).Scan(r.fields()...)
	if errors.Is(err, pgx.ErrNoRows) || err == nil && uint64(r.id) != id {
		return schema.Encoding{}, schema.ErrStale
	}
	if err != nil {
		return schema.Encoding{}, err
	}
	return r.encoding()
}

// finish runs the statements that b has, and has the fid on devs alone.
func (c coding) finish(b *pgx.Batch, devs []protocol.DevID) error {
	b.Queue(leaveDevices, c.fid, devArray(devs))
	b.Queue(joinDevices, c.fid, devArray(devs))
	b.Queue(countJoined, c.fid, devArray(devs))
	return c.SendBatch(c.ctx, b).Close()
}

// RecordEncoding has shards take the place of copies.
func (s *Store) RecordEncoding(ctx context.Context, e schema.Encoding, seen []protocol.DevID) error {
	if err := e.Check(); err != nil {
		return err
	}
	return s.recode(ctx, "record the encoding", e.FID, seen, func(c coding, refusal error) error {
		if refusal != nil { // the shards must go
			if err := c.exec(dropNow, s.offset(), c.fid, devArray(e.Devices), string(schema.ShardOf(e.ID))); err != nil {
				return err
			}
			return refusal
		}
		b := new(pgx.Batch)
		b.Queue(keepOnDevices, c.fid, devArray(e.Devices), []string{string(schema.ShardOf(e.ID)), string(schema.Bad)})
		b.Queue(dropLater, s.offset(), c.fid, devArray(seen), string(schema.Raw))
		b.Queue(insertEncoding, c.fid, e.K, e.M, e.Block, int64(e.ID), e.Epoch, e.DeviceText())
		return c.finish(b, e.Devices)
	})
}

// PlaceShards records that shards are on other devices.
func (s *Store) PlaceShards(ctx context.Context, fid protocol.FID, encoding uint64, epoch int, placed map[int]protocol.DevID, seen []protocol.DevID) (schema.Encoding, error) {
	var e schema.Encoding
	err := s.recode(ctx, "place shards", fid, seen, func(c coding, refusal error) error {
		if refusal != nil {
			return refusal
		}
		was, err := c.encoding(encoding)
		if err != nil {
			return err
		}
		if e, err = was.Place(placed, epoch); err != nil {
			return err
		}
		devs, left := e.Locations(was, placed, seen)
		come := make([]protocol.DevID, 0, len(placed))
		for _, dev := range placed {
			come = append(come, dev)
		}
		b := new(pgx.Batch)
		b.Queue(keepOnDevices, c.fid, devArray(come), []string{string(schema.ShardOf(e.ID)), string(schema.Bad)})
		b.Queue(dropLater, s.offset(), c.fid, devArray(left), string(schema.ShardOf(e.ID)))
		b.Queue(updateEncoding, c.fid, e.Epoch, e.DeviceText())
		return c.finish(b, devs)
	})
	if err != nil {
		return schema.Encoding{}, err
	}
	return e, nil
}

// RecordDecoding has copies take the place of shards.
func (s *Store) RecordDecoding(ctx context.Context, fid protocol.FID, encoding uint64, devs, seen []protocol.DevID) error {
	if err := schema.CheckCopies(fid, devs); err != nil {
		return err
	}
	return s.recode(ctx, "record the decoding", fid, seen, func(c coding, refusal error) error {
		if refusal != nil {
			return refusal
		}
		e, err := c.encoding(encoding)
		if err != nil {
			return err
		}
		b := new(pgx.Batch)
		b.Queue(keepOnDevices, c.fid, devArray(devs), []string{string(schema.Raw), string(schema.Bad)})
		b.Queue(dropLater, s.offset(), c.fid, devArray(e.Devices), string(schema.ShardOf(e.ID)))
		b.Queue(deleteEncoding, c.fid)
		return c.finish(b, devs)
	})
}

// classUsage has for each shard its header, and its blocks with the sums behind
// them: see docs/erasure-coding.md.
const classUsage = `SELECT f.dmid, f.classid, count(*), sum(f.length)::int8, sum(CASE WHEN e.fid IS NULL THEN f.length * f.devcount ELSE f.devcount * (4096
			+ f.length / (e.k::int8 * e.block) * (e.block + 4)
			+ CASE WHEN f.length % (e.k::int8 * e.block) > 0 THEN (f.length % (e.k::int8 * e.block) + e.k - 1) / e.k + 4 ELSE 0 END) END)::int8
	FROM file f LEFT JOIN ec e ON e.fid = f.fid GROUP BY f.dmid, f.classid ORDER BY f.dmid, f.classid`

// usageTimeout bounds how long the rows of all files are read.
const usageTimeout = 2 * time.Minute

// ClassUsage adds up the files of each class.
func (s *Store) ClassUsage(ctx context.Context) ([]schema.ClassUsage, error) {
	if s.life.Err() != nil {
		return nil, fmt.Errorf("add up the files of classes: %w", errClosed)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, usageTimeout, errCallTimeout)
	defer cancel()
	var usage []schema.ClassUsage
	err := pgx.BeginTxFunc(ctx, s.pool, pgx.TxOptions{AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, readAll, strconv.FormatInt(usageTimeout.Milliseconds(), 10)); err != nil {
			return err
		}
		rows, err := tx.Query(ctx, classUsage)
		if err != nil {
			return err
		}
		usage, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (u schema.ClassUsage, err error) {
			err = row.Scan(&u.DMID, &u.ClassID, &u.Files, &u.Bytes, &u.Stored)
			return u, err
		})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("add up the files of classes: %w", s.classify(ctx, err))
	}
	return usage, nil
}

// readAll permits, until the transaction ends, what [afterConnect] forbids:
// plans for all rows of a table.
const readAll = `SELECT set_config('statement_timeout', $1, true), set_config('enable_seqscan', 'on', true), set_config('enable_hashjoin', 'on', true)`
