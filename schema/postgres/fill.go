package postgres

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/schema"
)

// Fill describes files that are only rows: nothing of them is on any device.
type Fill struct {
	Domain, Class string // Class "" is the default one
	Files         int64
	Copies        int    // devices of each file, of those that are alive
	Length        int64  // bytes of each
	Prefix        string // of the keys, which go on with a number of at least ten digits, from 1 on
	// Progress is told how many files there are so far; nil: nobody is.
	Progress func(files int64)
}

// fillStep is how many files a transaction of Fill makes.
const fillStep = 100_000

// Fill makes rows of files by COPY, to see how a database of that size behaves.
// Keys that exist already are an error, which leaves what was made before. It ends
// by having the server look at the tables.
func (s *Store) Fill(ctx context.Context, f Fill) error {
	var dmid, classid int16
	var devices []int64
	const find = `SELECT d.dmid, coalesce((SELECT c.classid FROM class c WHERE c.dmid = d.dmid AND c.classname = $2), CASE WHEN $2 = '' THEN 0 ELSE -1 END),
		ARRAY(SELECT devid::int8 FROM device WHERE status = 'alive' ORDER BY devid) FROM domain d WHERE d.namespace = $1`
	err := ignoreNoRows(s.pool.QueryRow(ctx, find, f.Domain, f.Class).Scan(&dmid, &classid, &devices))
	switch {
	case err != nil:
		return fmt.Errorf("fill: %w", err)
	case dmid == 0:
		return fmt.Errorf("fill: %w", protocol.Err("unreg_domain"))
	case classid < 0:
		return fmt.Errorf("fill: %w", protocol.Err("unreg_class"))
	case len(devices) < f.Copies:
		return fmt.Errorf("fill: %d copies need as many devices that are alive, and there are %d", f.Copies, len(devices))
	}
	first, err := s.reserve(ctx, f.Files)
	if err != nil {
		return fmt.Errorf("fill: %w", err)
	}
	for done := int64(0); done < f.Files; {
		step := min(fillStep, f.Files-done)
		err := s.tx(ctx, func(tx pgx.Tx) error {
			at := int64(0)
			files := pgx.CopyFromFunc(func() ([]any, error) {
				if at == step {
					return nil, nil
				}
				at++
				n := done + at
				return []any{first + n - 1, dmid, fmt.Sprintf("%s%010d", f.Prefix, n), f.Length, classid, int16(f.Copies)}, nil
			})
			if _, err := tx.CopyFrom(ctx, pgx.Identifier{"file"}, []string{"fid", "dmid", "dkey", "length", "classid", "devcount"}, files); err != nil {
				return err
			}
			row := int64(0)
			on := pgx.CopyFromFunc(func() ([]any, error) {
				if row == step*int64(f.Copies) {
					return nil, nil
				}
				n, copyOf := done+row/int64(f.Copies), row%int64(f.Copies)
				row++
				return []any{first + n, devices[(n+copyOf)%int64(len(devices))]}, nil
			})
			_, err := tx.CopyFrom(ctx, pgx.Identifier{"file_on"}, []string{"fid", "devid"}, on)
			return err
		})
		if err != nil {
			return fmt.Errorf("fill, after %d files: %w", done, keyError(err))
		}
		if done += step; f.Progress != nil {
			f.Progress(done)
		}
	}
	if _, err := s.pool.Exec(ctx, `VACUUM ANALYZE file, file_on`); err != nil {
		return fmt.Errorf("fill: %w", err)
	}
	return nil
}

// reserve takes n fids that follow each other, which nobody else is given.
func (s *Store) reserve(ctx context.Context, n int64) (first int64, err error) {
	err = s.tx(ctx, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, lockInternal, schemaSpace, sequenceLock); err != nil {
			return err
		}
		// As in raiseSequence: nobody draws from now on.
		if _, err := tx.Exec(ctx, `ALTER SEQUENCE tempfile_fid_seq NO CYCLE`); err != nil {
			return err
		}
		var last, highest int64
		if err := tx.QueryRow(ctx, lastFID).Scan(&last); err != nil {
			return err
		}
		if err := tx.QueryRow(ctx, highestFID).Scan(&highest); err != nil {
			return err
		}
		first = max(last, highest) + 1
		if first+n > int64(protocol.MaxFID)-2*originSkip {
			return fmt.Errorf("%d fids from %d on leave no room for others", n, first)
		}
		return raiseSequence(ctx, tx, first+n-1)
	})
	return first, err
}

// Unfill removes rows of files that Fill made: those whose keys begin with a
// prefix, and how many there were.
func (s *Store) Unfill(ctx context.Context, domain, prefix string, progress func(files int64)) (files int64, err error) {
	var dmid int16
	if err := ignoreNoRows(s.pool.QueryRow(ctx, `SELECT dmid FROM domain WHERE namespace = $1`, domain).Scan(&dmid)); err != nil {
		return 0, fmt.Errorf("remove rows: %w", err)
	}
	if dmid == 0 {
		return 0, fmt.Errorf("remove rows: %w", protocol.Err("unreg_domain"))
	}
	for {
		keys, err := s.ListKeys(ctx, schema.DMID(dmid), prefix, "", fillStep/10)
		if err != nil {
			return files, fmt.Errorf("remove rows: %w", err)
		}
		if len(keys) == 0 {
			return files, nil
		}
		tag, err := s.pool.Exec(ctx, unfill, dmid, keys)
		if err != nil {
			return files, fmt.Errorf("remove rows: %w", err)
		}
		if files += tag.RowsAffected(); progress != nil {
			progress(files)
		}
	}
}

const unfill = `WITH gone AS (DELETE FROM file f USING unnest($2::text[]) k WHERE f.dmid = $1 AND f.dkey COLLATE "C" = k COLLATE "C" RETURNING f.fid),
	left_devices AS (DELETE FROM file_on o USING gone WHERE o.fid = gone.fid)
	SELECT fid FROM gone`
