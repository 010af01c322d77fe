package postgres

import (
	"context"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/mogile/mogile/protocol"
)

// reader reads rows by their fids. Calls for a few fids, as those have that
// work on one, share a statement with others that come at the same time.
type reader[R any] struct {
	*coalescer[[]protocol.FID, []R]
}

// fewFids is how many a call may ask for that shares a statement.
const fewFids = 16

// newReader reads by a statement whose parameters are fids and, for each, the
// place of its caller in the batch; scan hands on what it answers.
func newReader[R any](s *Store, sql string, scan func(rows pgx.Rows, found func(at int, r R)) error) *reader[R] {
	return &reader[R]{newCoalescer(s.life, coalescing[[]protocol.FID, []R]{
		batches: 2, size: 64, retry: s.retryAlone,
		run: func(ctx context.Context, calls [][]protocol.FID, found [][]R) error {
			var fids, at []int64
			for i, c := range calls {
				for _, fid := range fidArray(c) {
					fids, at = append(fids, fid), append(at, int64(i))
				}
			}
			clear(found)
			rows, err := s.pool.Query(ctx, sql, fids, at)
			if err != nil {
				return err
			}
			return scan(rows, func(at int, r R) { found[at] = append(found[at], r) })
		},
	})}
}

// read reads the rows of fids, of which those named twice are read once.
func (r *reader[R]) read(ctx context.Context, fids []protocol.FID) ([]R, error) {
	if len(fids) == 0 {
		return nil, nil
	}
	fids = slices.Compact(slices.Sorted(slices.Values(fids)))
	if len(fids) <= fewFids {
		return r.do(ctx, fids)
	}
	found := make([][]R, 1)
	err := r.run(ctx, [][]protocol.FID{fids}, found)
	return found[0], err
}
