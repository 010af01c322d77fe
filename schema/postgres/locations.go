package postgres

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"
	"time"

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

// devText is devs, ascending, as the text of an array.
func devText(devs []protocol.DevID) string {
	b := []byte{'{'}
	for i, d := range devArray(devs) {
		if i > 0 {
			b = append(b, ',')
		}
		b = strconv.AppendInt(b, d, 10)
	}
	return string(append(b, '}'))
}

// changeKind is what a change does with locations.
type changeKind int

const (
	adds    changeKind = iota // dev is located, if the locations are those seen
	drops                     // dev is located no more, if the locations are those seen
	forgets                   // devs are located no more
	kinds
)

// change is a change of one fid's locations.
type change struct {
	kind changeKind
	fid  protocol.FID
	dev  protocol.DevID
	devs []protocol.DevID // those seen, or those to forget
	what schema.What      // of a drop
}

const (
	// locations are the devices of fid c.fid, ascending.
	locations = `ARRAY(SELECT o.devid::int8 FROM file_on o WHERE o.fid = c.fid ORDER BY o.devid)`

	// countDevices is true where devcount is kept.
	countDevices = `coalesce((SELECT value FROM server_settings WHERE field = 'skip_devcount'), '0') IN ('', '0')`

	addLocations = `WITH c AS MATERIALIZED (SELECT c.*, f.fid IS NOT NULL AS there, ` + locations + ` AS devids
			FROM unnest($2::int8[], $3::int8[], $4::text[]) c (fid, devid, seen) LEFT JOIN file f ON f.fid = c.fid),
		d AS MATERIALIZED (SELECT *, there AND devids = seen::int8[] AS fits, devid = ANY (devids) AS known FROM c),
		located AS (INSERT INTO file_on (fid, devid) SELECT fid, devid FROM d WHERE fits AND NOT known ON CONFLICT DO NOTHING),
		kept AS (DELETE FROM copy_to_delete q USING d WHERE d.fits AND q.fid = d.fid AND q.devid = d.devid AND q.what IN ('fid', 'bad')),
		counted AS (UPDATE file f SET devcount = cardinality(d.devids) + 1 FROM d
			WHERE d.fits AND NOT d.known AND f.fid = d.fid AND ` + countDevices + `),
		stray AS (INSERT INTO copy_to_delete (fid, devid, what, nexttry) SELECT fid, devid, 'fid', ` + now + ` FROM d
			WHERE NOT fits AND NOT known` + copyDueAgain + `)
		SELECT fid, there, fits FROM d`

	dropLocations = `WITH c AS MATERIALIZED (SELECT c.*, ` + locations + ` AS devids
			FROM unnest($2::int8[], $3::int8[], $4::text[], $5::text[]) c (fid, devid, seen, what)),
		d AS MATERIALIZED (SELECT *, devids = seen::int8[] AND devid = ANY (devids) AS fits FROM c),
		gone AS (DELETE FROM file_on o USING d WHERE d.fits AND o.fid = d.fid AND o.devid = d.devid),
		counted AS (UPDATE file f SET devcount = cardinality(d.devids) - 1 FROM d WHERE d.fits AND f.fid = d.fid AND ` + countDevices + `),
		queued AS (INSERT INTO copy_to_delete (fid, devid, what, nexttry) SELECT fid, devid, what,
			CASE WHEN what = 'bad' THEN ` + now + ` ELSE ` + pathsForgotten + ` END FROM d WHERE fits` + copyDueAgain + `)
		SELECT fid, TRUE, fits FROM d`

	forgetLocations = `WITH c AS MATERIALIZED (SELECT * FROM unnest($1::int8[], $2::int8[]) c (fid, devid)),
		gone AS (DELETE FROM file_on o USING c WHERE o.fid = c.fid AND o.devid = c.devid RETURNING o.fid),
		less AS (SELECT fid, count(*) AS n FROM gone GROUP BY fid)
		UPDATE file f SET devcount = (SELECT count(*) FROM file_on o WHERE o.fid = f.fid) - less.n
		FROM less WHERE f.fid = less.fid AND ` + countDevices
)

// AddLocation records a copy that has been made.
func (s *Store) AddLocation(ctx context.Context, fid protocol.FID, dev protocol.DevID, seen []protocol.DevID) error {
	return s.do(ctx, fmt.Sprintf("record fid %d on dev%d", fid, dev), func(ctx context.Context) error {
		return s.change(ctx, change{kind: adds, fid: fid, dev: dev, devs: seen})
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
		return s.change(ctx, change{kind: drops, fid: fid, dev: dev, devs: seen, what: what})
	})
}

// DeletedLocations forgets locations whose bytes are gone.
func (s *Store) DeletedLocations(ctx context.Context, fid protocol.FID, devs []protocol.DevID) error {
	if len(devs) == 0 {
		return nil
	}
	return s.do(ctx, fmt.Sprintf("forget locations of fid %d", fid), func(ctx context.Context) error {
		return s.change(ctx, change{kind: forgets, fid: fid, devs: devs})
	})
}

// changeTimeout bounds how long a change waits, and how long it then takes: one
// whose caller has given it up is not made much later, when an announced copy
// may be deleted.
const changeTimeout = 10 * time.Second

// change makes a change, and returns what refused it.
func (s *Store) change(ctx context.Context, c change) error {
	ctx, cancel := context.WithTimeoutCause(ctx, changeTimeout, errCallTimeout)
	defer cancel()
	refusal, err := s.changes.do(ctx, c)
	return cmp.Or(err, refusal)
}

// changeBatch changes the locations of several fids, no two of which are the
// same, in one transaction. First their file rows are locked, in one order,
// which makes those wait that change the same ones; the statements after it see
// what they did. What each call changes is found by its own fid: calls of a
// batch do not see, and need not see, each other.
func (s *Store) changeBatch(ctx context.Context, calls []change, refusals []error) error {
	return s.changeAll(ctx, calls, refusals, batchLockTimeout)
}

func (s *Store) changeAlone(ctx context.Context, c change) (error, error) {
	var refusal [1]error
	err := repeat(ctx, func() error { return s.changeAll(ctx, []change{c}, refusal[:], aloneLockTimeout) })
	return refusal[0], err
}

func (s *Store) changeAll(ctx context.Context, calls []change, refusals []error, wait time.Duration) error {
	at := make(map[int64]int, len(calls))
	for i, c := range calls {
		at[int64(c.fid)] = i
	}
	sorted := slices.SortedFunc(slices.Values(calls), func(x, y change) int { return cmp.Compare(x.fid, y.fid) })
	var all []int64
	var of [kinds]changeArrays
	for _, c := range sorted {
		all = append(all, int64(c.fid))
		of[c.kind].add(c)
	}
	return s.pipeline(ctx, implicit, func(b *pgx.Batch) {
		b.Queue(durable)
		b.Queue(setLockTimeout, wait.String())
		b.Queue(lockFiles, all)
		outcomes := func(rows pgx.Rows) error {
			var fid int64
			var there, fits bool
			_, err := pgx.ForEachRow(rows, []any{&fid, &there, &fits}, func() error {
				refusals[at[fid]] = refusalOf(there, fits)
				return nil
			})
			return err
		}
		if a := of[adds]; len(a.fids) > 0 {
			b.Queue(addLocations, s.offset(), a.fids, a.devids, a.seen).Query(outcomes)
		}
		if a := of[drops]; len(a.fids) > 0 {
			b.Queue(dropLocations, s.offset(), a.fids, a.devids, a.seen, a.whats).Query(outcomes)
		}
		if a := of[forgets]; len(a.fids) > 0 {
			b.Queue(forgetLocations, a.fids, a.devids)
		}
	})
}

// refusalOf is what an attempt to change the locations of a fid ends with.
func refusalOf(there, fits bool) error {
	switch {
	case !there:
		return schema.ErrGone
	case !fits:
		return schema.ErrStale
	}
	return nil
}

// changeArrays are the columns of changes of one kind.
type changeArrays struct {
	fids, devids []int64
	seen, whats  []string
}

func (a *changeArrays) add(c change) {
	if c.kind == forgets {
		for _, dev := range slices.Compact(devArray(c.devs)) {
			a.fids, a.devids = append(a.fids, int64(c.fid)), append(a.devids, dev)
		}
		return
	}
	a.fids, a.devids = append(a.fids, int64(c.fid)), append(a.devids, int64(c.dev))
	a.seen, a.whats = append(a.seen, devText(c.devs)), append(a.whats, string(c.what))
}

// LocationsOf lists the devices recorded for each fid.
func (s *Store) LocationsOf(ctx context.Context, fids []protocol.FID) (map[protocol.FID][]protocol.DevID, error) {
	return s.devicesOf(ctx, "read locations", s.located, fids)
}

// PendingDeletions lists the devices of each fid that copy_to_delete names.
func (s *Store) PendingDeletions(ctx context.Context, fids []protocol.FID) (map[protocol.FID][]protocol.DevID, error) {
	return s.devicesOf(ctx, "read pending deletions", s.pending, fids)
}

// Of each fid and the caller that asked for it.
const (
	locationsOf = `SELECT q.at, o.fid, o.devid FROM unnest($1::int8[], $2::int8[]) q (fid, at)
		JOIN file_on o ON o.fid = q.fid ORDER BY q.at, o.fid, o.devid`
	pendingDeletions = `SELECT DISTINCT q.at, d.fid, d.devid FROM unnest($1::int8[], $2::int8[]) q (fid, at)
		JOIN copy_to_delete d ON d.fid = q.fid ORDER BY q.at, d.fid, d.devid`
)

func (s *Store) devicesOf(ctx context.Context, what string, reads *reader[deviceOf], fids []protocol.FID) (map[protocol.FID][]protocol.DevID, error) {
	found := make(map[protocol.FID][]protocol.DevID)
	err := s.do(ctx, what, func(ctx context.Context) error {
		rows, err := reads.read(ctx, fids)
		for _, r := range rows {
			found[r.fid] = append(found[r.fid], r.dev)
		}
		return err
	})
	return found, err
}

// Inspect reads all that decides what files need.
func (s *Store) Inspect(ctx context.Context, fids []protocol.FID) ([]schema.Inspected, error) {
	var files []schema.Inspected
	err := s.do(ctx, "inspect files", func(ctx context.Context) (err error) {
		files, err = s.inspected.read(ctx, fids)
		return err
	})
	return files, err
}

// inspectFiles are files, all that belongs to them, and the callers that asked.
const inspectFiles = `SELECT q.at, ` + fileColumns + `, e.k, e.m, e.block, e.encoding, e.epoch, e.devids, c.hashtype, c.checksum,
		ARRAY(SELECT DISTINCT d.devid::int8 FROM copy_to_delete d WHERE d.fid = f.fid ORDER BY 1)
	FROM unnest($1::int8[], $2::int8[]) q (fid, at) JOIN file f ON f.fid = q.fid
	LEFT JOIN ec e ON e.fid = f.fid LEFT JOIN checksum c ON c.fid = f.fid`

func scanInspected(rows pgx.Rows, found func(at int, f schema.Inspected)) error {
	defer rows.Close()
	for rows.Next() {
		var at int
		var f fileRow
		var k, m, block, epoch *int
		var encoding *int64
		var devids *string
		var hash *protocol.HashType
		var sum []byte
		var pending []int64
		if err := rows.Scan(append(append([]any{&at}, f.fields()...), &k, &m, &block, &encoding, &epoch, &devids, &hash, &sum, &pending)...); err != nil {
			return err
		}
		i := schema.Inspected{LocatedFile: schema.LocatedFile{File: f.file(), Devices: f.devices()}, Pending: devIDs(pending)}
		if hash != nil {
			i.Checksum = protocol.Checksum{Type: *hash, Sum: sum}
		}
		if k != nil {
			r := encodingRow{fid: f.fid, id: *encoding, devids: *devids}
			r.K, r.M, r.Block, r.Epoch = *k, *m, *block, *epoch
			e, err := r.encoding()
			if err != nil {
				return err
			}
			i.Encoding = &e
		}
		found(at, i)
	}
	return rows.Err()
}

type deviceOf struct {
	fid protocol.FID
	dev protocol.DevID
}

func scanDevices(rows pgx.Rows, found func(at int, d deviceOf)) error {
	var at int
	var fid, dev int64
	_, err := pgx.ForEachRow(rows, []any{&at, &fid, &dev}, func() error {
		found(at, deviceOf{protocol.FID(fid), protocol.DevID(dev)})
		return nil
	})
	return err
}
