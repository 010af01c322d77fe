package postgres

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/schema"
)

// foundFile is what is found under a key; found is false where there is
// nothing.
type foundFile struct {
	schema.LocatedFile
	found bool
}

// FileByKey finds a closed file and the devices that hold it.
func (s *Store) FileByKey(ctx context.Context, dmid schema.DMID, key string) (schema.File, []protocol.DevID, error) {
	if schema.CheckKey(key, s.ascii, true) != nil {
		return schema.File{}, nil, protocol.ErrUnknownKey
	}
	var f foundFile
	err := s.do(ctx, "find key", func(ctx context.Context) (err error) {
		if f, err = s.finds.do(ctx, keyName{dmid, key}); err == nil && !f.found {
			err = protocol.ErrUnknownKey
		}
		return err
	})
	return f.File, f.Devices, err
}

func (s *Store) findBatch(ctx context.Context, calls []keyName, found []foundFile) error {
	dmids, keys := make([]int16, len(calls)), make([]string, len(calls))
	for i, c := range calls {
		dmids[i], keys[i] = int16(c.dmid), c.key
	}
	rows, err := s.pool.Query(ctx, findFiles, dmids, keys)
	if err != nil {
		return err
	}
	return eachFile(rows, func(at int, f schema.LocatedFile) { found[at-1] = foundFile{f, true} })
}

// Keys are compared in byte order where they are looked up: a plan made while
// the table was empty would take the index that has that order, and read all of
// the domain through it.
const (
	fileColumns = `f.fid, f.dmid, f.dkey, f.length, f.classid, f.devcount,
		ARRAY(SELECT o.devid FROM file_on o WHERE o.fid = f.fid ORDER BY o.devid)`
	findFiles = `SELECT q.at, ` + fileColumns + ` FROM unnest($1::int2[], $2::text[]) WITH ORDINALITY q (dmid, dkey, at)
		JOIN file f ON f.dmid = q.dmid AND f.dkey COLLATE "C" = q.dkey COLLATE "C"`
	filesByFID = `SELECT ` + fileColumns + ` FROM file f WHERE f.fid = ANY ($1::int8[])`
)

// fileRow receives fileColumns.
type fileRow struct {
	fid      int64
	dmid     int16
	key      *string
	length   *int64
	classid  int16
	devcount int16
	devids   []int64
}

func (r *fileRow) fields() []any {
	return []any{&r.fid, &r.dmid, &r.key, &r.length, &r.classid, &r.devcount, &r.devids}
}

func (r *fileRow) file() schema.File {
	f := schema.File{FID: protocol.FID(r.fid), DMID: schema.DMID(r.dmid), ClassID: schema.ClassID(r.classid), DevCount: int(r.devcount)}
	if r.key != nil {
		f.Key = *r.key
	}
	if r.length != nil {
		f.Length = *r.length
	}
	return f
}

func (r *fileRow) devices() []protocol.DevID { return devIDs(r.devids) }

func devIDs(ids []int64) []protocol.DevID {
	devs := make([]protocol.DevID, len(ids))
	for i, id := range ids {
		devs[i] = protocol.DevID(id)
	}
	return devs
}

// fidArray is fids as a parameter; those that no column holds are left out.
func fidArray(fids []protocol.FID) []int64 {
	a := make([]int64, 0, len(fids))
	for _, fid := range fids {
		if fid <= protocol.MaxFID {
			a = append(a, int64(fid))
		}
	}
	return a
}

// FilesByFID finds files by number.
func (s *Store) FilesByFID(ctx context.Context, fids []protocol.FID) ([]schema.LocatedFile, error) {
	var files []schema.LocatedFile
	err := s.do(ctx, "read files", func(ctx context.Context) (err error) {
		files, err = s.files.read(ctx, fids)
		return err
	})
	return files, err
}

// filesByFIDs are files and the callers that asked for them.
const filesByFIDs = `SELECT q.at, ` + fileColumns + ` FROM unnest($1::int8[], $2::int8[]) q (fid, at) JOIN file f ON f.fid = q.fid`

// Checksum is the stored checksum of a fid.
func (s *Store) Checksum(ctx context.Context, fid protocol.FID) (protocol.Checksum, error) {
	var sums []storedSum
	err := s.do(ctx, fmt.Sprintf("read checksum of fid %d", fid), func(ctx context.Context) (err error) {
		sums, err = s.sums.read(ctx, []protocol.FID{fid})
		return err
	})
	if err != nil || len(sums) == 0 {
		return protocol.Checksum{}, err
	}
	return sums[0].Checksum, nil
}

// storedSum is a row of table checksum.
type storedSum struct {
	fid protocol.FID
	protocol.Checksum
}

// storedSums are checksums and the callers that asked for them.
const storedSums = `SELECT q.at, c.fid, c.hashtype, c.checksum FROM unnest($1::int8[], $2::int8[]) q (fid, at) JOIN checksum c ON c.fid = q.fid`

func scanSums(rows pgx.Rows, found func(at int, sum storedSum)) error {
	var at int
	var fid int64
	var sum protocol.Checksum
	_, err := pgx.ForEachRow(rows, []any{&at, &fid, &sum.Type, &sum.Sum}, func() error {
		found(at, storedSum{protocol.FID(fid), sum})
		sum.Sum = nil
		return nil
	})
	return err
}

const readChecksum = `SELECT hashtype, checksum FROM checksum WHERE fid = $1`

// SetChecksum stores the checksum of a fid that has a file row.
func (s *Store) SetChecksum(ctx context.Context, fid protocol.FID, sum protocol.Checksum) error {
	if err := schema.CheckHash(sum.Type, s.sealed()); err != nil {
		return err
	}
	if fid > protocol.MaxFID {
		return fmt.Errorf("store checksum of fid %d: %w", fid, schema.ErrGone)
	}
	return s.do(ctx, fmt.Sprintf("store checksum of fid %d", fid), func(ctx context.Context) error {
		tag, err := s.pool.Exec(ctx, setChecksum, int64(fid), int16(sum.Type), sum.Sum)
		if err == nil && tag.RowsAffected() == 0 {
			err = schema.ErrGone
		}
		return err
	})
}

const setChecksum = `WITH f AS (SELECT fid FROM file WHERE fid = $1 FOR KEY SHARE)
	INSERT INTO checksum (fid, hashtype, checksum) SELECT fid, $2::int2, $3::bytea FROM f
	ON CONFLICT (fid) DO UPDATE SET hashtype = EXCLUDED.hashtype, checksum = EXCLUDED.checksum`

// DeleteKey removes a key and queues its fid for deletion.
func (s *Store) DeleteKey(ctx context.Context, dmid schema.DMID, key string) (protocol.FID, error) {
	if schema.CheckKey(key, s.ascii, true) != nil {
		return 0, protocol.ErrUnknownKey
	}
	k := keyName{dmid, key}
	var r removal
	err := s.do(ctx, "delete key", func(ctx context.Context) (err error) {
		if r, err = s.removals.do(ctx, k); err == nil && r.again {
			r, err = s.removeAlone(ctx, k)
		}
		return err
	})
	if err == nil && r.fid == 0 {
		err = protocol.ErrUnknownKey
	}
	return r.fid, err
}

// removal is what became of a key that is to be deleted.
type removal struct {
	fid   protocol.FID // that it named; 0 where there was none
	again bool         // it was changed meanwhile, and nothing was done
}

func (s *Store) removeBatch(ctx context.Context, calls []keyName, done []removal) error {
	dmids, keys := make([]int16, len(calls)), make([]string, len(calls))
	for i, c := range calls {
		dmids[i], keys[i] = int16(c.dmid), c.key
	}
	clear(done)
	return s.pipeline(ctx, implicit, func(b *pgx.Batch) {
		b.Queue(durable)
		b.Queue(setLockTimeout, batchLockTimeout.String())
		b.Queue(deleteKeys, s.offset(), dmids, keys).Query(func(rows pgx.Rows) error {
			var at int
			var fid *int64
			_, err := pgx.ForEachRow(rows, []any{&at, &fid}, func() error {
				if fid != nil {
					done[at-1].fid = protocol.FID(*fid)
				} else {
					done[at-1].again = true
				}
				return nil
			})
			return err
		})
	})
}

func (s *Store) removeAlone(ctx context.Context, k keyName) (removal, error) {
	var fid int64 // stays 0 where there is none
	err := ignoreNoRows(s.pool.QueryRow(ctx, deleteKey, s.offset(), int16(k.dmid), k.key).Scan(&fid))
	return removal{fid: protocol.FID(fid)}, err
}

// deleteKeys deletes keys, which differ, and locks them in the order of closes. A
// row that was changed after the statement began, and locked as it is now, is not
// found by the deletion: its fid is null.
const deleteKeys = `WITH held AS MATERIALIZED (SELECT q.at, f.fid, f.dmid, f.dkey
			FROM unnest($2::int2[], $3::text[]) WITH ORDINALITY q (dmid, dkey, at)
			JOIN file f ON f.dmid = q.dmid AND f.dkey COLLATE "C" = q.dkey COLLATE "C" ORDER BY f.dmid, f.dkey FOR UPDATE OF f),
	gone AS (DELETE FROM file f USING held WHERE f.fid = held.fid AND f.dmid = held.dmid AND f.dkey = held.dkey RETURNING f.fid, held.at),
	queued AS (INSERT INTO file_to_delete2 (fid, nexttry) SELECT fid, ` + pathsForgotten + ` FROM gone ORDER BY fid
		ON CONFLICT (fid) DO UPDATE SET nexttry = EXCLUDED.nexttry)
	SELECT held.at, gone.fid FROM held LEFT JOIN gone ON gone.at = held.at`

const deleteKey = `WITH gone AS (DELETE FROM file WHERE dmid = $2 AND dkey COLLATE "C" = $3::text COLLATE "C" RETURNING fid),
	queued AS (INSERT INTO file_to_delete2 (fid, nexttry) SELECT fid, ` + pathsForgotten + ` FROM gone
		ON CONFLICT (fid) DO UPDATE SET nexttry = EXCLUDED.nexttry)
	SELECT fid FROM gone`

// DeleteKeyIf removes a key that names fid and queues fid for deletion.
func (s *Store) DeleteKeyIf(ctx context.Context, dmid schema.DMID, key string, fid protocol.FID) error {
	if schema.CheckKey(key, s.ascii, true) != nil {
		return protocol.ErrUnknownKey
	}
	return s.do(ctx, fmt.Sprintf("delete key of fid %d", fid), func(ctx context.Context) error {
		return changedIf(s.pool.QueryRow(ctx, deleteKeyIf, s.offset(), int16(dmid), key, int64(fid)), fid)
	})
}

const deleteKeyIf = `WITH gone AS (DELETE FROM file WHERE dmid = $2 AND dkey COLLATE "C" = $3::text COLLATE "C" AND fid = $4 RETURNING fid),
	queued AS (INSERT INTO file_to_delete2 (fid, nexttry) SELECT fid, ` + pathsForgotten + ` FROM gone
		ON CONFLICT (fid) DO UPDATE SET nexttry = EXCLUDED.nexttry)
	SELECT EXISTS (SELECT FROM gone), (SELECT fid FROM file WHERE dmid = $2 AND dkey COLLATE "C" = $3::text COLLATE "C")`

// changedIf reads whether a statement changed the row of a key that names want,
// and what the key named when the statement began.
func changedIf(row pgx.Row, want protocol.FID) error {
	var changed bool
	var named *int64
	if err := row.Scan(&changed, &named); err != nil || changed {
		return err
	}
	if named == nil {
		return protocol.ErrUnknownKey
	}
	return schema.FIDMismatch(want, protocol.FID(*named))
}

// RenameKey gives a file another key.
func (s *Store) RenameKey(ctx context.Context, dmid schema.DMID, from, to string) error {
	return s.rename(ctx, from, to, func(ctx context.Context) error {
		if from == to {
			var there bool
			if err := s.pool.QueryRow(ctx, keyExists, int16(dmid), from).Scan(&there); err != nil || there {
				return err
			}
			return protocol.ErrUnknownKey
		}
		return s.pipeline(ctx, implicit, func(b *pgx.Batch) {
			queueRenameLocks(b, dmid, from, to)
			b.Queue(renameKey, int16(dmid), from, to).Exec(func(tag pgconn.CommandTag) error {
				if tag.RowsAffected() == 0 {
					return protocol.ErrUnknownKey
				}
				return nil
			})
		})
	})
}

// queueRenameLocks begins a rename by locking both keys' rows, in key order as
// closes do: of renames in opposite directions one would else wait for the other
// until the server breaks them off.
func queueRenameLocks(b *pgx.Batch, dmid schema.DMID, from, to string) {
	b.Queue(durable)
	b.Queue(lockKeys, int16(dmid), from, to)
}

// RenameKeyIf gives fid another key, if its key is from.
func (s *Store) RenameKeyIf(ctx context.Context, dmid schema.DMID, from, to string, fid protocol.FID) error {
	return s.rename(ctx, from, to, func(ctx context.Context) error {
		return s.pipeline(ctx, implicit, func(b *pgx.Batch) {
			queueRenameLocks(b, dmid, from, to)
			b.Queue(renameKeyIf, int16(dmid), from, to, int64(fid)).QueryRow(func(row pgx.Row) error { return changedIf(row, fid) })
		})
	})
}

// rename has call rename a key.
func (s *Store) rename(ctx context.Context, from, to string, call func(ctx context.Context) error) error {
	if schema.CheckKey(from, s.ascii, true) != nil {
		return protocol.ErrUnknownKey
	}
	if err := s.checkKey(to); err != nil {
		return err
	}
	return s.do(ctx, "rename key", func(ctx context.Context) error {
		err := call(ctx)
		if state(err) == stateUnique {
			return protocol.ErrKeyExists
		}
		return keyError(err)
	})
}

const (
	lockKeys    = `SELECT FROM file WHERE dmid = $1 AND dkey IN ($2, $3) ORDER BY dkey FOR UPDATE`
	keyExists   = `SELECT EXISTS (SELECT FROM file WHERE dmid = $1 AND dkey = $2)`
	renameKey   = `UPDATE file SET dkey = $3 WHERE dmid = $1 AND dkey = $2`
	renameKeyIf = `WITH renamed AS (UPDATE file SET dkey = $3 WHERE dmid = $1 AND dkey = $2 AND fid = $4 RETURNING fid)
		SELECT EXISTS (SELECT FROM renamed), (SELECT fid FROM file WHERE dmid = $1 AND dkey = $2)`
)

// SetFileClass moves a fid to another class and queues it for replication.
func (s *Store) SetFileClass(ctx context.Context, fid protocol.FID, class schema.ClassID) error {
	return s.setFileClass(ctx, fid, class, nil)
}

// SetFileClassIf does so if the key names fid.
func (s *Store) SetFileClassIf(ctx context.Context, dmid schema.DMID, key string, fid protocol.FID, class schema.ClassID) error {
	if schema.CheckKey(key, s.ascii, true) != nil {
		return protocol.ErrUnknownKey
	}
	return s.setFileClass(ctx, fid, class, &keyName{dmid, key})
}

// setFileClass moves fid to another class; nil is any key. As in closeBatch the
// class cannot go meanwhile.
func (s *Store) setFileClass(ctx context.Context, fid protocol.FID, class schema.ClassID, only *keyName) error {
	var dmid *int16
	var key *string
	if only != nil {
		id := int16(only.dmid)
		dmid, key = &id, &only.key
	}
	if fid > protocol.MaxFID {
		fid = 0 // no file has either
	}
	return s.do(ctx, fmt.Sprintf("set class of fid %d", fid), func(ctx context.Context) error {
		var changed, classed bool
		var named, now *int64
		err := s.pipeline(ctx, implicit, func(b *pgx.Batch) {
			b.Queue(durable)
			b.Queue(shareFilesDomain, domainSpace, int64(fid))
			b.Queue(setFileClass, int64(fid), int16(class), dmid, key).QueryRow(func(row pgx.Row) error {
				return row.Scan(&changed, &named, &classed, &now)
			})
		})
		switch {
		case err != nil || changed:
			return err
		case only != nil && now == nil:
			return protocol.ErrUnknownKey
		case only != nil && *now != int64(fid):
			return schema.FIDMismatch(fid, protocol.FID(*now))
		case named == nil:
			return schema.ErrGone
		case !classed:
			return protocol.ErrClassNotFound
		case only != nil:
			return schema.FIDMismatch(fid, fid)
		}
		return schema.ErrGone
	})
}

const (
	shareFilesDomain = `SELECT pg_advisory_xact_lock_shared($1, dmid) FROM file WHERE fid = $2`

	setFileClass = `WITH f AS (SELECT f.fid, $2::int2 = 0 OR EXISTS (SELECT FROM class k WHERE k.dmid = f.dmid AND k.classid = $2) AS classed
			FROM file f WHERE f.fid = $1),
		changed AS (UPDATE file SET classid = $2 FROM f WHERE file.fid = f.fid AND f.classed
			AND ($4::text IS NULL OR file.dmid = $3::int2 AND file.dkey = $4) RETURNING file.fid),
		queued AS (INSERT INTO file_to_replicate (fid, nexttry) SELECT fid, 0 FROM changed ON CONFLICT (fid) DO UPDATE SET nexttry = 0)
		SELECT EXISTS (SELECT FROM changed), (SELECT fid FROM f), coalesce((SELECT classed FROM f), FALSE),
			(SELECT fid FROM file WHERE dmid = $3 AND dkey = $4)`
)

// ListKeys lists keys in byte order.
func (s *Store) ListKeys(ctx context.Context, dmid schema.DMID, prefix, after string, limit int) ([]string, error) {
	from, to, ok := keyRange(prefix, after, s.ascii)
	if !ok || limit <= 0 {
		return nil, nil
	}
	sql, args := listKeys, []any{int16(dmid), from, limit}
	if to != nil {
		sql, args = listKeysTo, append(args, *to)
	}
	var keys []string
	err := s.do(ctx, "list keys", func(ctx context.Context) error {
		rows, err := s.pool.Query(ctx, sql, args...)
		if err != nil {
			return err
		}
		keys, err = rawTexts(rows, limit)
		return err
	})
	return keys, err
}

const (
	listKeys = `SELECT dkey FROM file WHERE dmid = $1 AND dkey COLLATE "C" >= $2::text COLLATE "C"
		ORDER BY dkey COLLATE "C" LIMIT $3`
	listKeysTo = `SELECT dkey FROM file WHERE dmid = $1 AND dkey COLLATE "C" >= $2::text COLLATE "C"
		AND dkey COLLATE "C" < $4::text COLLATE "C" ORDER BY dkey COLLATE "C" LIMIT $3`
)

// ListFIDs lists files in the order of their fids.
func (s *Store) ListFIDs(ctx context.Context, after protocol.FID, limit int) ([]schema.File, error) {
	if after >= protocol.MaxFID || limit <= 0 {
		return nil, nil
	}
	var files []schema.File
	err := s.do(ctx, "list fids", func(ctx context.Context) error {
		files = nil
		rows, err := s.pool.Query(ctx, listFIDs, int64(after), limit)
		if err != nil {
			return err
		}
		var f fileRow
		_, err = pgx.ForEachRow(rows, f.fields()[:6], func() error {
			files = append(files, f.file())
			return nil
		})
		return err
	})
	return files, err
}

const listFIDs = `SELECT fid, dmid, dkey, length, classid, devcount FROM file WHERE fid > $1 ORDER BY fid LIMIT $2`

// DebugFile collects all that the database knows of a fid, as of one moment.
func (s *Store) DebugFile(ctx context.Context, fid protocol.FID) (schema.FileDebug, error) {
	var d schema.FileDebug
	if fid > protocol.MaxFID {
		return d, nil
	}
	err := s.do(ctx, fmt.Sprintf("read all of fid %d", fid), func(ctx context.Context) error {
		d = schema.FileDebug{}
		return s.pipeline(ctx, beginSnapshot, func(b *pgx.Batch) {
			var f fileRow
			b.Queue(filesByFID, []int64{int64(fid)}).Query(func(rows pgx.Rows) error {
				_, err := pgx.ForEachRow(rows, f.fields(), func() error {
					file := f.file()
					d.File = &file
					return nil
				})
				return err
			})
			b.Queue(readTempfile, int64(fid)).QueryRow(func(row pgx.Row) error {
				t := schema.Tempfile{FID: fid}
				err := scanTempfile(row, &t)
				if err == nil {
					d.Tempfile = &t
				}
				return ignoreNoRows(err)
			})
			b.Queue(`SELECT ARRAY(SELECT devid FROM file_on WHERE fid = $1 ORDER BY devid)`, int64(fid)).QueryRow(func(row pgx.Row) error {
				var ids []int64
				err := row.Scan(&ids)
				d.Devices = devIDs(ids)
				return err
			})
			b.Queue(readChecksum, int64(fid)).QueryRow(func(row pgx.Row) error {
				return ignoreNoRows(row.Scan(&d.Checksum.Type, &d.Checksum.Sum))
			})
			for _, q := range queues {
				b.Queue(in(`SELECT {1}, {5}, nexttry, failcount, {2}, {3} FROM {0} WHERE fid = $1 AND {4} ORDER BY 1, 2`,
					q.table, q.device(), q.flags(), q.argument(), q.where(), q.what()), int64(fid)).Query(func(rows pgx.Rows) error {
					var dev *int64
					r := schema.QueueRow{Queue: q.queue, FID: fid}
					_, err := pgx.ForEachRow(rows, []any{&dev, &r.What, &r.NextTry, &r.FailCount, &r.Flags, &r.Arg}, func() error {
						row := r
						if dev != nil {
							id := protocol.DevID(*dev)
							row.DevID = &id
						}
						d.Queues = append(d.Queues, row)
						return nil
					})
					return err
				})
			}
		})
	})
	return d, err
}

// beginSnapshot starts a transaction whose statements all see one moment.
const beginSnapshot = `BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY`

func ignoreNoRows(err error) error {
	if errors.Is(err, pgx.ErrNoRows) {
		return nil
	}
	return err
}
