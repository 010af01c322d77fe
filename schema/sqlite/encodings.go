package sqlite

import (
	"context"
	"database/sql"
	"fmt"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/schema"
)

const encodingColumns = "fid, k, m, block, encoding, epoch, devids"

// scanEncoding reads encodingColumns.
func scanEncoding(scan func(...any) error) (schema.Encoding, error) {
	var e schema.Encoding
	var id int64
	var devids string
	if err := scan(&e.FID, &e.K, &e.M, &e.Block, &id, &e.Epoch, &devids); err != nil {
		return e, err
	}
	devs, err := schema.ParseShardDevices(devids)
	if err != nil {
		return e, fmt.Errorf("encoding of fid %d: %w", e.FID, err)
	}
	e.ID, e.Devices = uint64(id), devs
	return e, nil
}

// EncodingsOf reads how files are kept in shards; see [schema.Encodings].
func (s *Store) EncodingsOf(ctx context.Context, fids []protocol.FID) (_ map[protocol.FID]schema.Encoding, err error) {
	defer wrap(&err, "read encodings of %d fids", len(fids))
	found := make(map[protocol.FID]schema.Encoding)
	if len(fids) == 0 {
		return found, nil
	}
	const query = "SELECT " + encodingColumns + " FROM ec WHERE fid IN (SELECT value FROM json_each(?))"
	err = s.read(ctx, query, []any{jsonList(fids)}, func(rows *sql.Rows) error {
		e, err := scanEncoding(rows.Scan)
		found[e.FID] = e
		return err
	})
	return found, err
}

// encoding is a fid's encoding, if it is that one; else the error matches
// [schema.ErrStale].
func (t *tx) encoding(fid protocol.FID, id uint64) (e schema.Encoding, err error) {
	there := false
	err = t.rows("SELECT "+encodingColumns+" FROM ec WHERE fid = ?", []any{int64(fid)}, func(rows *sql.Rows) error {
		there = true
		e, err = scanEncoding(rows.Scan)
		return err
	})
	if err == nil && (!there || e.ID != id) {
		err = schema.ErrStale
	}
	return e, err
}

// unchanged is an error where a fid is gone, or is not exactly where it was seen.
func (t *tx) unchanged(fid protocol.FID, seen []protocol.DevID) error {
	exists, err := t.hasFile(fid)
	if err != nil {
		return err
	}
	if !exists {
		return schema.ErrGone
	}
	devs, err := t.locations(fid)
	if err == nil && !sameDevices(devs, seen) {
		err = schema.ErrStale
	}
	return err
}

// relocate has a fid on devs alone.
func (t *tx) relocate(fid protocol.FID, devs []protocol.DevID) error {
	if _, err := t.exec("DELETE FROM file_on WHERE fid = ?", int64(fid)); err != nil {
		return err
	}
	for _, dev := range devs {
		if _, err := t.exec("INSERT INTO file_on (fid, devid) VALUES (?, ?)", int64(fid), dev); err != nil {
			return err
		}
	}
	return t.countDevices(fid)
}

// keepShard removes a shard's entry from copy_to_delete, and that of bad bytes.
func (t *tx) keepShard(fid protocol.FID, dev protocol.DevID, encoding uint64) error {
	_, err := t.exec("DELETE FROM copy_to_delete WHERE fid = ? AND devid = ? AND what IN (?, 'bad')", int64(fid), dev, string(schema.ShardOf(encoding)))
	return err
}

// dropShards enters shards in copy_to_delete as due.
func (s *Store) dropShards(t *tx, e schema.Encoding) error {
	for _, dev := range e.Devices {
		if err := t.enqueue(copyRow(e.FID, dev, schema.ShardOf(e.ID)), s.now(), sql.NullInt64{}); err != nil {
			return err
		}
	}
	return nil
}

// dropShardsLater enters shards in copy_to_delete as due when nobody has paths to
// them any more.
func (s *Store) dropShardsLater(t *tx, e schema.Encoding, devs []protocol.DevID) error {
	for _, dev := range devs {
		if err := s.deleteLater(t, copyRow(e.FID, dev, schema.ShardOf(e.ID))); err != nil {
			return err
		}
	}
	return nil
}

// RecordEncoding has shards take the place of copies; see [schema.Encodings].
func (s *Store) RecordEncoding(ctx context.Context, e schema.Encoding, seen []protocol.DevID) (err error) {
	defer wrap(&err, "record the encoding of fid %d", e.FID)
	if err := e.Check(); err != nil {
		return err
	}
	// What was refused is committed too: the entries for the shards that must go.
	refused, err := write(ctx, s, func(t *tx) (refused error, err error) {
		if err := t.unchanged(e.FID, seen); err != nil {
			if !isRefusal(err) {
				return nil, err
			}
			return err, s.dropShards(t, e)
		}
		for _, dev := range e.Devices {
			if err := t.keepShard(e.FID, dev, e.ID); err != nil {
				return nil, err
			}
		}
		for _, dev := range seen {
			if err := s.deleteLater(t, copyRow(e.FID, dev, schema.Raw)); err != nil {
				return nil, err
			}
		}
		const insert = "INSERT OR REPLACE INTO ec (" + encodingColumns + ") VALUES (?, ?, ?, ?, ?, ?, ?)"
		if _, err := t.exec(insert, int64(e.FID), e.K, e.M, e.Block, int64(e.ID), e.Epoch, e.DeviceText()); err != nil {
			return nil, err
		}
		return nil, t.relocate(e.FID, e.Devices)
	})
	if err != nil {
		return err
	}
	return refused
}

// isRefusal reports whether err says that something has changed, and not that
// something has failed.
func isRefusal(err error) bool { return err == schema.ErrGone || err == schema.ErrStale }

// PlaceShards records that shards are on other devices; see [schema.Encodings].
func (s *Store) PlaceShards(ctx context.Context, fid protocol.FID, encoding uint64, epoch int, placed map[int]protocol.DevID, seen []protocol.DevID) (_ schema.Encoding, err error) {
	defer wrap(&err, "place shards of fid %d", fid)
	return write(ctx, s, func(t *tx) (schema.Encoding, error) {
		if err := t.unchanged(fid, seen); err != nil {
			return schema.Encoding{}, err
		}
		was, err := t.encoding(fid, encoding)
		if err != nil {
			return schema.Encoding{}, err
		}
		e, err := was.Place(placed, epoch)
		if err != nil {
			return schema.Encoding{}, err
		}
		devs, left := e.Locations(was, placed, seen)
		for _, dev := range placed {
			if err := t.keepShard(fid, dev, encoding); err != nil {
				return schema.Encoding{}, err
			}
		}
		if err := s.dropShardsLater(t, e, left); err != nil {
			return schema.Encoding{}, err
		}
		if _, err := t.exec("UPDATE ec SET epoch = ?, devids = ? WHERE fid = ?", e.Epoch, e.DeviceText(), int64(fid)); err != nil {
			return schema.Encoding{}, err
		}
		return e, t.relocate(fid, devs)
	})
}

// RecordDecoding has copies take the place of shards; see [schema.Encodings].
func (s *Store) RecordDecoding(ctx context.Context, fid protocol.FID, encoding uint64, devs, seen []protocol.DevID) (err error) {
	defer wrap(&err, "record the decoding of fid %d", fid)
	if err := schema.CheckCopies(fid, devs); err != nil {
		return err
	}
	return change(ctx, s, func(t *tx) error {
		if err := t.unchanged(fid, seen); err != nil {
			return err
		}
		e, err := t.encoding(fid, encoding)
		if err != nil {
			return err
		}
		for _, dev := range devs {
			if err := t.addLocation(fid, dev); err != nil { // for the copies' entries
				return err
			}
		}
		if err := s.dropShardsLater(t, e, e.Devices); err != nil {
			return err
		}
		if _, err := t.exec("DELETE FROM ec WHERE fid = ?", int64(fid)); err != nil {
			return err
		}
		return t.relocate(fid, devs)
	})
}

// classUsage has for each shard its header, and its blocks with the sums behind
// them: see docs/erasure-coding.md.
const classUsage = `SELECT f.dmid, f.classid, count(*), sum(f.length), sum(CASE WHEN e.fid IS NULL THEN f.length * f.devcount ELSE f.devcount * (4096
			+ f.length / (e.k * e.block) * (e.block + 4)
			+ CASE WHEN f.length % (e.k * e.block) > 0 THEN (f.length % (e.k * e.block) + e.k - 1) / e.k + 4 ELSE 0 END) END)
	FROM file f LEFT JOIN ec e ON e.fid = f.fid GROUP BY f.dmid, f.classid ORDER BY f.dmid, f.classid`

// ClassUsage adds up the files of each class; see [schema.Accounts].
func (s *Store) ClassUsage(ctx context.Context) (usage []schema.ClassUsage, err error) {
	defer wrap(&err, "add up the files of classes")
	err = s.read(ctx, classUsage, nil, func(rows *sql.Rows) error {
		var u schema.ClassUsage
		err := rows.Scan(&u.DMID, &u.ClassID, &u.Files, &u.Bytes, &u.Stored)
		usage = append(usage, u)
		return err
	})
	return usage, err
}
