package sqlite

import (
	"context"
	"database/sql"
	"slices"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/schema"
)

// addLocation records a copy, which must not be deleted any more.
func (t *tx) addLocation(fid protocol.FID, dev protocol.DevID) error {
	if _, err := t.exec("INSERT INTO file_on (fid, devid) VALUES (?, ?) ON CONFLICT DO NOTHING", int64(fid), dev); err != nil {
		return err
	}
	_, err := t.exec("DELETE FROM copy_to_delete WHERE fid = ? AND devid = ? AND what IN ('fid', 'bad')", int64(fid), dev)
	return err
}

// locations are the devices recorded for fid, ascending.
func (t *tx) locations(fid protocol.FID) (devs []protocol.DevID, err error) {
	err = t.rows("SELECT devid FROM file_on WHERE fid = ? ORDER BY devid", []any{int64(fid)}, func(rows *sql.Rows) error {
		var dev protocol.DevID
		err := rows.Scan(&dev)
		devs = append(devs, dev)
		return err
	})
	return devs, err
}

// countDevices counts devcount anew, unless the setting skip_devcount is on.
func (t *tx) countDevices(fid protocol.FID) error {
	_, err := t.exec(`UPDATE file SET devcount = (SELECT count(*) FROM file_on WHERE fid = ?1)
		WHERE fid = ?1 AND NOT EXISTS
			(SELECT 1 FROM server_settings WHERE field = 'skip_devcount' AND coalesce(value, '') NOT IN ('', '0'))`, int64(fid))
	return err
}

// sameDevices reports whether the locations, ascending, are those seen.
func sameDevices(locations, seen []protocol.DevID) bool {
	seen = slices.Clone(seen)
	slices.Sort(seen)
	return slices.Equal(locations, seen)
}

// AddLocation records a copy that has been made; see [schema.Locations].
func (s *Store) AddLocation(ctx context.Context, fid protocol.FID, dev protocol.DevID, seen []protocol.DevID) (err error) {
	defer wrap(&err, "record fid %d on dev%d", fid, dev)
	// What was refused is committed too: the entry for the bytes that must go.
	refused, err := write(ctx, s, func(t *tx) (refused error, err error) {
		devs, err := t.locations(fid)
		if err != nil {
			return nil, err
		}
		exists, err := t.hasFile(fid)
		switch {
		case err != nil:
			return nil, err
		case !exists:
			refused = schema.ErrGone
		case !sameDevices(devs, seen):
			refused = schema.ErrStale
		}
		if refused != nil {
			if slices.Contains(devs, dev) {
				return refused, nil
			}
			return refused, t.enqueue(copyRow(fid, dev, schema.Raw), s.now(), sql.NullInt64{})
		}
		if err := t.addLocation(fid, dev); err != nil {
			return nil, err
		}
		return nil, t.countDevices(fid)
	})
	if err != nil {
		return err
	}
	return refused
}

// DropLocation takes a copy out of file_on; see [schema.Locations].
func (s *Store) DropLocation(ctx context.Context, fid protocol.FID, dev protocol.DevID, seen []protocol.DevID) (err error) {
	defer wrap(&err, "drop fid %d from dev%d", fid, dev)
	return s.drop(ctx, fid, dev, seen, func(t *tx) error {
		return s.deleteLater(t, copyRow(fid, dev, schema.Raw))
	})
}

// DropBadLocation takes a bad copy out of file_on; see [schema.Locations].
func (s *Store) DropBadLocation(ctx context.Context, fid protocol.FID, dev protocol.DevID, seen []protocol.DevID) (err error) {
	defer wrap(&err, "drop bad fid %d from dev%d", fid, dev)
	if err := schema.CheckBad(fid, dev, seen); err != nil {
		return err
	}
	return s.drop(ctx, fid, dev, seen, func(t *tx) error {
		return t.enqueue(copyRow(fid, dev, schema.Bad), s.now(), sql.NullInt64{})
	})
}

// drop takes a copy out of file_on and has enqueue enter it in copy_to_delete.
func (s *Store) drop(ctx context.Context, fid protocol.FID, dev protocol.DevID, seen []protocol.DevID, enqueue func(*tx) error) error {
	return change(ctx, s, func(t *tx) error {
		devs, err := t.locations(fid)
		if err != nil {
			return err
		}
		if !sameDevices(devs, seen) || !slices.Contains(devs, dev) {
			return schema.ErrStale
		}
		if err := t.deleteLocation(fid, dev); err != nil {
			return err
		}
		if err := enqueue(t); err != nil {
			return err
		}
		return t.countDevices(fid)
	})
}

func (t *tx) deleteLocation(fid protocol.FID, dev protocol.DevID) error {
	_, err := t.exec("DELETE FROM file_on WHERE fid = ? AND devid = ?", int64(fid), dev)
	return err
}

// DeletedLocations forgets locations; see [schema.Locations]. The devcount of a
// file that is still there is counted anew.
func (s *Store) DeletedLocations(ctx context.Context, fid protocol.FID, devs []protocol.DevID) (err error) {
	if len(devs) == 0 {
		return nil
	}
	defer wrap(&err, "forget %d locations of fid %d", len(devs), fid)
	return change(ctx, s, func(t *tx) error {
		for _, dev := range devs {
			if err := t.deleteLocation(fid, dev); err != nil {
				return err
			}
		}
		return t.countDevices(fid)
	})
}

// LocationsOf lists the devices of each fid; see [schema.Locations].
func (s *Store) LocationsOf(ctx context.Context, fids []protocol.FID) (_ map[protocol.FID][]protocol.DevID, err error) {
	defer wrap(&err, "read locations of %d fids", len(fids))
	return s.devicesOf(ctx, "SELECT fid, devid FROM file_on WHERE fid IN (SELECT value FROM json_each(?)) ORDER BY fid, devid", fids)
}

// PendingDeletions lists the devices that must let go of each fid; see
// [schema.Locations].
func (s *Store) PendingDeletions(ctx context.Context, fids []protocol.FID) (_ map[protocol.FID][]protocol.DevID, err error) {
	defer wrap(&err, "read pending deletions of %d fids", len(fids))
	return s.devicesOf(ctx, "SELECT DISTINCT fid, devid FROM copy_to_delete WHERE fid IN (SELECT value FROM json_each(?)) ORDER BY fid, devid", fids)
}

// Inspect reads all that decides what files need; see [schema.Locations].
func (s *Store) Inspect(ctx context.Context, fids []protocol.FID) ([]schema.Inspected, error) {
	files, err := s.FilesByFID(ctx, fids)
	if err != nil {
		return nil, err
	}
	encodings, err := s.EncodingsOf(ctx, fids)
	if err != nil {
		return nil, err
	}
	sums, err := s.Checksums(ctx, fids)
	if err != nil {
		return nil, err
	}
	pending, err := s.PendingDeletions(ctx, fids)
	if err != nil {
		return nil, err
	}
	found := make([]schema.Inspected, len(files))
	for i, f := range files {
		found[i] = schema.Inspected{LocatedFile: f, Checksum: sums[f.FID], Pending: pending[f.FID]}
		if e, ok := encodings[f.FID]; ok {
			found[i].Encoding = &e
		}
	}
	return found, nil
}

func (s *Store) devicesOf(ctx context.Context, query string, fids []protocol.FID) (map[protocol.FID][]protocol.DevID, error) {
	devs := make(map[protocol.FID][]protocol.DevID, len(fids))
	if len(fids) == 0 {
		return devs, nil
	}
	err := s.read(ctx, query, []any{jsonList(fids)}, func(rows *sql.Rows) error {
		var fid protocol.FID
		var dev protocol.DevID
		err := rows.Scan(&fid, &dev)
		devs[fid] = append(devs[fid], dev)
		return err
	})
	return devs, err
}
