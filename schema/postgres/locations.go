package postgres

import (
	"context"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/schema"
)

// devArray is devs as a parameter, ascending.
func devArray(devs []protocol.DevID) []int64 {
	a := make([]int64, len(devs))
	for i, d := range devs {
		a[i] = int64(d)
	}
	slices.Sort(a)
	return a
}

const (
	// lockFile makes those wait that change a file's locations. The statement
	// after it sees what they did.
	lockFile = `SELECT fid FROM file WHERE fid = $1 FOR UPDATE`

	// locations are the devices of fid $2.
	locations = `ARRAY(SELECT devid::int8 FROM file_on WHERE fid = $2 ORDER BY devid)`

	// countDevices is true where devcount is kept.
	countDevices = `coalesce((SELECT value FROM server_settings WHERE field = 'skip_devcount'), '0') IN ('', '0')`

	addLocation = `WITH was AS MATERIALIZED (SELECT EXISTS (SELECT FROM file WHERE fid = $2) AS there, ` + locations + ` AS devids),
		fits AS MATERIALIZED (SELECT devids, NOT $3::int8 = ANY (devids) AS new FROM was WHERE there AND devids = $4::int8[]),
		located AS (INSERT INTO file_on (fid, devid) SELECT $2, $3 FROM fits WHERE new ON CONFLICT DO NOTHING),
		kept AS (DELETE FROM copy_to_delete WHERE fid = $2 AND devid = $3 AND what IN ('fid', 'bad') AND EXISTS (SELECT FROM fits)),
		counted AS (UPDATE file SET devcount = cardinality(devids) + 1 FROM fits WHERE fid = $2 AND new AND ` + countDevices + `),
		stray AS (INSERT INTO copy_to_delete (fid, devid, what, nexttry) SELECT $2, $3, 'fid', ` + now + ` FROM was
			WHERE NOT EXISTS (SELECT FROM fits) AND NOT $3 = ANY (devids)` + copyDueAgain + `)
		SELECT was.there, EXISTS (SELECT FROM fits) FROM was`

	dropLocation = `WITH fits AS MATERIALIZED (SELECT devids FROM (SELECT ` + locations + ` AS devids OFFSET 0) was
			WHERE devids = $4::int8[] AND $3::int8 = ANY (devids)),
		gone AS (DELETE FROM file_on WHERE fid = $2 AND devid = $3 AND EXISTS (SELECT FROM fits)),
		counted AS (UPDATE file SET devcount = cardinality(devids) - 1 FROM fits WHERE fid = $2 AND ` + countDevices + `),
		queued AS (INSERT INTO copy_to_delete (fid, devid, what, nexttry) SELECT $2, $3, $5::text,
			CASE WHEN $5::text = 'bad' THEN ` + now + ` ELSE ` + pathsForgotten + ` END FROM fits` + copyDueAgain + `)
		SELECT count(*) FROM fits`

	deletedLocations = `WITH gone AS (DELETE FROM file_on WHERE fid = $1 AND devid = ANY ($2::int8[]) RETURNING devid)
		UPDATE file SET devcount = (SELECT count(*) FROM file_on WHERE fid = $1 AND NOT devid = ANY ($2))
		WHERE fid = $1 AND EXISTS (SELECT FROM gone) AND ` + countDevices
)

// AddLocation records a copy that has been made.
func (s *Store) AddLocation(ctx context.Context, fid protocol.FID, dev protocol.DevID, seen []protocol.DevID) error {
	return s.do(ctx, fmt.Sprintf("record fid %d on dev%d", fid, dev), func(ctx context.Context) error {
		var there, fits bool
		err := s.pipeline(ctx, begin, func(b *pgx.Batch) {
			b.Queue(durable)
			b.Queue(lockFile, int64(fid))
			b.Queue(addLocation, s.offset(), int64(fid), int64(dev), devArray(seen)).QueryRow(func(row pgx.Row) error {
				return row.Scan(&there, &fits)
			})
		})
		switch {
		case err != nil:
			return err
		case !there:
			return schema.ErrGone
		case !fits:
			return schema.ErrStale
		}
		return nil
	})
}

// DropLocation takes a copy out of file_on and queues its deletion.
func (s *Store) DropLocation(ctx context.Context, fid protocol.FID, dev protocol.DevID, seen []protocol.DevID) error {
	return s.drop(ctx, fid, dev, seen, schema.Raw)
}

// DropBadLocation does the same for a copy that is bad, if it is not the last.
func (s *Store) DropBadLocation(ctx context.Context, fid protocol.FID, dev protocol.DevID, seen []protocol.DevID) error {
	if err := schema.CheckBad(fid, dev, seen); err != nil {
		return err
	}
	return s.drop(ctx, fid, dev, seen, schema.Bad)
}

func (s *Store) drop(ctx context.Context, fid protocol.FID, dev protocol.DevID, seen []protocol.DevID, what schema.What) error {
	return s.do(ctx, fmt.Sprintf("drop fid %d on dev%d", fid, dev), func(ctx context.Context) error {
		var fits int
		err := s.pipeline(ctx, begin, func(b *pgx.Batch) {
			b.Queue(durable)
			b.Queue(lockFile, int64(fid))
			b.Queue(dropLocation, s.offset(), int64(fid), int64(dev), devArray(seen), string(what)).QueryRow(func(row pgx.Row) error {
				return row.Scan(&fits)
			})
		})
		if err == nil && fits == 0 {
			err = schema.ErrStale
		}
		return err
	})
}

// DeletedLocations forgets locations whose bytes are gone.
func (s *Store) DeletedLocations(ctx context.Context, fid protocol.FID, devs []protocol.DevID) error {
	if len(devs) == 0 {
		return nil
	}
	return s.do(ctx, fmt.Sprintf("forget locations of fid %d", fid), func(ctx context.Context) error {
		return s.pipeline(ctx, begin, func(b *pgx.Batch) {
			b.Queue(durable)
			b.Queue(lockFile, int64(fid))
			b.Queue(deletedLocations, int64(fid), devArray(devs))
		})
	})
}

// LocationsOf lists the devices recorded for each fid.
func (s *Store) LocationsOf(ctx context.Context, fids []protocol.FID) (map[protocol.FID][]protocol.DevID, error) {
	return s.devicesOf(ctx, "read locations", `SELECT fid, devid FROM file_on WHERE fid = ANY ($1::int8[]) ORDER BY fid, devid`, fids)
}

// PendingDeletions lists the devices of each fid that copy_to_delete names.
func (s *Store) PendingDeletions(ctx context.Context, fids []protocol.FID) (map[protocol.FID][]protocol.DevID, error) {
	return s.devicesOf(ctx, "read pending deletions",
		`SELECT DISTINCT fid, devid FROM copy_to_delete WHERE fid = ANY ($1::int8[]) ORDER BY fid, devid`, fids)
}

func (s *Store) devicesOf(ctx context.Context, what, sql string, fids []protocol.FID) (map[protocol.FID][]protocol.DevID, error) {
	found := make(map[protocol.FID][]protocol.DevID)
	if len(fids) == 0 {
		return found, nil
	}
	err := s.do(ctx, what, func(ctx context.Context) error {
		clear(found)
		rows, err := s.pool.Query(ctx, sql, fidArray(fids))
		if err != nil {
			return err
		}
		var fid, dev int64
		_, err = pgx.ForEachRow(rows, []any{&fid, &dev}, func() error {
			found[protocol.FID(fid)] = append(found[protocol.FID(fid)], protocol.DevID(dev))
			return nil
		})
		return err
	})
	return found, err
}
