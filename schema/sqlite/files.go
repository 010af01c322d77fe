package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/schema"
)

// maxDevIDs is the width of the column devids, in bytes.
const maxDevIDs = 60

// checkKey refuses keys that the database cannot hold.
func (s *Store) checkKey(key string) error { return schema.CheckKey(key, false, s.sealed) }

// raiseFIDs moves the sequence of fids above all that the database knows, and
// never back. That it must is a sign of rows that something else has written.
func (s *Store) raiseFIDs(ctx context.Context) (err error) {
	defer wrap(&err, "raise the sequence of fids")
	high, err := write(ctx, s, func(t *tx) (high int64, err error) {
		if _, err := t.row(`SELECT max(
			(SELECT coalesce(max(fid), 0) FROM file),
			(SELECT coalesce(max(fid), 0) FROM tempfile),
			(SELECT coalesce(max(fid), 0) FROM file_on),
			(SELECT coalesce(max(fid), 0) FROM file_to_delete),
			(SELECT coalesce(max(fid), 0) FROM file_to_delete_later),
			(SELECT coalesce(max(fid), 0) FROM file_to_delete2),
			(SELECT coalesce(max(fid), 0) FROM copy_to_delete))`, nil, &high); err != nil {
			return 0, err
		}
		var last int64
		known, err := t.row("SELECT seq FROM sqlite_sequence WHERE name = 'tempfile'", nil, &last)
		switch {
		case err != nil || last >= high:
			return 0, err
		case known:
			_, err = t.exec("UPDATE sqlite_sequence SET seq = ? WHERE name = 'tempfile'", high)
		default:
			_, err = t.exec("INSERT INTO sqlite_sequence (name, seq) VALUES ('tempfile', ?)", high)
		}
		return high, err
	})
	if high > 0 {
		s.o.Log.Info().Str("path", s.o.Path).Int64("fid", high).Msg("fids continue above the highest that the database knows")
	}
	return err
}

// CreateTempfile records an upload; see [schema.Files].
func (s *Store) CreateTempfile(ctx context.Context, t schema.Tempfile) (_ protocol.FID, err error) {
	defer wrap(&err, "create tempfile of key %q", t.Key)
	if t.Key != "" { // it may be named at the close
		if err := s.checkKey(t.Key); err != nil {
			return 0, err
		}
	}
	devids := joinDevices(t.DevIDs)
	if len(devids) > maxDevIDs {
		return 0, fmt.Errorf("devices %q take %d bytes; the column has %d", devids, len(devids), maxDevIDs)
	}
	if t.FID > protocol.MaxFID {
		return 0, fmt.Errorf("fid %d is above the highest, %d", t.FID, uint64(protocol.MaxFID))
	}
	return write(ctx, s, func(w *tx) (protocol.FID, error) {
		var fid any // NULL: from the sequence
		if t.FID != 0 {
			fid = int64(t.FID)
			var last int64 // stays 0 where no fid was given out yet
			if _, err := w.row("SELECT seq FROM sqlite_sequence WHERE name = 'tempfile'", nil, &last); err != nil {
				return 0, err
			}
			if err := schema.CheckExplicitFID(t.FID, protocol.FID(last)); err != nil {
				return 0, err
			}
			if known, err := w.knows(fid); err != nil {
				return 0, err
			} else if known {
				return 0, protocol.ErrFIDInUse
			}
		}
		var got int64
		_, err := w.row("INSERT INTO tempfile (fid, createtime, classid, dmid, dkey, devids) VALUES (?, ?, ?, ?, ?, ?) RETURNING fid",
			[]any{fid, s.now(), t.ClassID, t.DMID, t.Key, devids}, &got)
		return protocol.FID(got), err
	})
}

// knows reports whether a fid stands where it would be taken for another file.
func (t *tx) knows(fid any) (bool, error) {
	var known bool
	_, err := t.row(`SELECT EXISTS (SELECT 1 FROM file WHERE fid = ?1)
		OR EXISTS (SELECT 1 FROM tempfile WHERE fid = ?1)
		OR EXISTS (SELECT 1 FROM file_on WHERE fid = ?1)
		OR EXISTS (SELECT 1 FROM file_to_delete WHERE fid = ?1)
		OR EXISTS (SELECT 1 FROM file_to_delete_later WHERE fid = ?1)
		OR EXISTS (SELECT 1 FROM file_to_delete2 WHERE fid = ?1)
		OR EXISTS (SELECT 1 FROM copy_to_delete WHERE fid = ?1)`, []any{fid}, &known)
	return known, err
}

func joinDevices(devs []protocol.DevID) string {
	var b []byte
	for i, d := range devs {
		if i > 0 {
			b = append(b, ',')
		}
		b = strconv.AppendUint(b, uint64(d), 10)
	}
	return string(b)
}

// splitDevices reads a comma list; what is not a device number is left out, as
// Perl would.
func splitDevices(s string) []protocol.DevID {
	var devs []protocol.DevID
	for f := range strings.SplitSeq(s, ",") {
		if d, err := strconv.ParseUint(strings.TrimSpace(f), 10, 32); err == nil && d > 0 {
			devs = append(devs, protocol.DevID(d))
		}
	}
	return devs
}

const selectTempfile = "SELECT fid, createtime, dmid, coalesce(dkey, ''), classid, coalesce(devids, '') FROM tempfile WHERE fid = ?"

func scanTempfile(scan func(...any) error) (schema.Tempfile, error) {
	var t schema.Tempfile
	var devids string
	err := scan(&t.FID, &t.CreateTime, &t.DMID, &t.Key, &t.ClassID, &devids)
	t.DevIDs = splitDevices(devids)
	return t, err
}

// Tempfile reads an upload's row; see [schema.Files].
func (s *Store) Tempfile(ctx context.Context, fid protocol.FID) (t schema.Tempfile, err error) {
	defer wrap(&err, "read tempfile %d", fid)
	t, err = scanTempfile(func(dest ...any) error {
		return s.readRow(ctx, selectTempfile, []any{int64(fid)}, dest...)
	})
	if errors.Is(err, sql.ErrNoRows) {
		return schema.Tempfile{}, protocol.ErrNoTempfile
	}
	return t, err
}

// takeTempfile removes an upload's row, which only one caller can, and returns
// the devices that were offered.
func (t *tx) takeTempfile(fid protocol.FID) ([]protocol.DevID, error) {
	var devids string
	ok, err := t.row("DELETE FROM tempfile WHERE fid = ? RETURNING coalesce(devids, '')", []any{int64(fid)}, &devids)
	if err == nil && !ok {
		return nil, protocol.ErrNoTempfile
	}
	return splitDevices(devids), err
}

// deleteElsewhere queues for deletion what an upload may have left on devs, but
// for the device that has it.
func (t *tx) deleteElsewhere(fid protocol.FID, has protocol.DevID, devs []protocol.DevID, now int64) error {
	for _, dev := range devs {
		if dev == has {
			continue
		}
		if err := t.enqueue(copyRow(fid, dev, schema.Raw), now, sql.NullInt64{}); err != nil {
			return err
		}
	}
	return nil
}

// CloseFile turns an upload into a file; see [schema.Files]. A fid that has a
// file row gets the refusal fid_exists.
func (s *Store) CloseFile(ctx context.Context, c schema.Close) (err error) {
	defer wrap(&err, "close fid %d as key %q", c.FID, c.Key)
	if err := s.checkKey(c.Key); err != nil {
		return err
	}
	if err := schema.CheckHash(c.Checksum.Type, s.sealed); err != nil {
		return err
	}
	return change(ctx, s, func(t *tx) error {
		if _, err := t.takeTempfile(c.FID); err != nil {
			return err
		}
		var one int
		if ok, err := t.row("SELECT 1 FROM domain WHERE dmid = ?", []any{c.DMID}, &one); err != nil {
			return err
		} else if !ok {
			return protocol.Err("unreg_domain")
		}
		if ok, err := t.hasClass(c.DMID, c.ClassID); err != nil {
			return err
		} else if !ok {
			return protocol.Err("unreg_class")
		}
		var old int64
		overwrites, err := t.row("DELETE FROM file WHERE dmid = ? AND dkey = ? RETURNING fid", []any{c.DMID, c.Key}, &old)
		if err != nil {
			return err
		}
		if overwrites && old == int64(c.FID) {
			return protocol.Err("fid_exists")
		}
		if err := c.Refusal(protocol.FID(old)); err != nil {
			return err
		}
		if overwrites {
			if err := s.deleteLater(t, deleteRow(protocol.FID(old))); err != nil {
				return err
			}
		}
		_, err = t.exec("INSERT INTO file (fid, dmid, dkey, length, classid, devcount) VALUES (?, ?, ?, ?, ?, 1)",
			int64(c.FID), c.DMID, c.Key, c.Length, c.ClassID)
		if isDuplicate(err) {
			return protocol.Err("fid_exists")
		}
		if err != nil {
			return err
		}
		if err := t.addLocation(c.FID, c.DevID); err != nil {
			return err
		}
		if err := t.deleteElsewhere(c.FID, c.DevID, c.Tried, s.now()); err != nil {
			return err
		}
		if !c.Checksum.IsZero() {
			if err := t.setChecksum(c.FID, c.Checksum); err != nil {
				return err
			}
		}
		return t.enqueue(replicateRow(c.FID), 0, sql.NullInt64{})
	})
}

// DiscardUpload takes an upload back; see [schema.Files].
func (s *Store) DiscardUpload(ctx context.Context, fid protocol.FID, dev protocol.DevID) (err error) {
	defer wrap(&err, "discard upload %d on dev%d", fid, dev)
	return change(ctx, s, func(t *tx) error {
		offered, err := t.takeTempfile(fid)
		if err != nil {
			return err
		}
		if err := t.addLocation(fid, dev); err != nil {
			return err
		}
		if err := t.deleteElsewhere(fid, dev, offered, s.now()); err != nil {
			return err
		}
		return t.queueDelete(fid, s.now())
	})
}

// hasClass reports whether files can be of the class: class 0 needs no row.
func (t *tx) hasClass(dmid schema.DMID, class schema.ClassID) (bool, error) {
	if class == 0 {
		return true, nil
	}
	return t.exists("SELECT 1 FROM class WHERE dmid = ? AND classid = ?", dmid, class)
}

// named is the fid that a key names, or protocol.ErrUnknownKey.
func (t *tx) named(dmid schema.DMID, key string) (protocol.FID, error) {
	var fid int64
	ok, err := t.row("SELECT fid FROM file WHERE dmid = ? AND dkey = ?", []any{dmid, key}, &fid)
	if err == nil && !ok {
		err = protocol.ErrUnknownKey
	}
	return protocol.FID(fid), err
}

// mustName refuses unless the key names want.
func (t *tx) mustName(dmid schema.DMID, key string, want protocol.FID) error {
	fid, err := t.named(dmid, key)
	if err == nil && fid != want {
		err = schema.FIDMismatch(want, fid)
	}
	return err
}

// DeleteKey removes a key; see [schema.Files].
func (s *Store) DeleteKey(ctx context.Context, dmid schema.DMID, key string) (_ protocol.FID, err error) {
	defer wrap(&err, "delete key %q of domain %d", key, dmid)
	if s.checkKey(key) != nil {
		return 0, protocol.ErrUnknownKey
	}
	return write(ctx, s, func(t *tx) (protocol.FID, error) { return s.deleteKey(t, dmid, key) })
}

// DeleteKeyIf removes a key that names fid; see [schema.Files].
func (s *Store) DeleteKeyIf(ctx context.Context, dmid schema.DMID, key string, fid protocol.FID) (err error) {
	defer wrap(&err, "delete key %q of domain %d, fid %d", key, dmid, fid)
	if s.checkKey(key) != nil {
		return protocol.ErrUnknownKey
	}
	return change(ctx, s, func(t *tx) error {
		if err := t.mustName(dmid, key, fid); err != nil {
			return err
		}
		_, err := s.deleteKey(t, dmid, key)
		return err
	})
}

func (s *Store) deleteKey(t *tx, dmid schema.DMID, key string) (protocol.FID, error) {
	var fid int64
	ok, err := t.row("DELETE FROM file WHERE dmid = ? AND dkey = ? RETURNING fid", []any{dmid, key}, &fid)
	if err != nil {
		return 0, err
	}
	if !ok {
		return 0, protocol.ErrUnknownKey
	}
	return protocol.FID(fid), s.deleteLater(t, deleteRow(protocol.FID(fid)))
}

// RenameKey gives a file another key; see [schema.Files].
func (s *Store) RenameKey(ctx context.Context, dmid schema.DMID, from, to string) (err error) {
	return s.renameKey(ctx, dmid, from, to, nil)
}

// RenameKeyIf gives a file another key; see [schema.Files].
func (s *Store) RenameKeyIf(ctx context.Context, dmid schema.DMID, from, to string, fid protocol.FID) (err error) {
	return s.renameKey(ctx, dmid, from, to, &fid)
}

func (s *Store) renameKey(ctx context.Context, dmid schema.DMID, from, to string, fid *protocol.FID) (err error) {
	defer wrap(&err, "rename key %q of domain %d to %q", from, dmid, to)
	if s.checkKey(from) != nil {
		return protocol.ErrUnknownKey
	}
	if err := s.checkKey(to); err != nil {
		return err
	}
	return change(ctx, s, func(t *tx) error {
		if fid != nil {
			if err := t.mustName(dmid, from, *fid); err != nil {
				return err
			}
		}
		n, err := t.exec("UPDATE file SET dkey = ?3 WHERE dmid = ?1 AND dkey = ?2", dmid, from, to)
		if isDuplicate(err) {
			return protocol.ErrKeyExists
		}
		if err == nil && n == 0 {
			return protocol.ErrUnknownKey
		}
		return err
	})
}

// SetFileClass moves a fid to another class; see [schema.Files].
func (s *Store) SetFileClass(ctx context.Context, fid protocol.FID, class schema.ClassID) (err error) {
	defer wrap(&err, "set class %d of fid %d", class, fid)
	return change(ctx, s, func(t *tx) error { return t.setFileClass(fid, class) })
}

// SetFileClassIf moves the file that a key names to another class; see
// [schema.Files].
func (s *Store) SetFileClassIf(ctx context.Context, dmid schema.DMID, key string, fid protocol.FID, class schema.ClassID) (err error) {
	defer wrap(&err, "set class %d of key %q of domain %d, fid %d", class, key, dmid, fid)
	if s.checkKey(key) != nil {
		return protocol.ErrUnknownKey
	}
	return change(ctx, s, func(t *tx) error {
		if err := t.mustName(dmid, key, fid); err != nil {
			return err
		}
		return t.setFileClass(fid, class)
	})
}

func (t *tx) setFileClass(fid protocol.FID, class schema.ClassID) error {
	var dmid schema.DMID
	ok, err := t.row("UPDATE file SET classid = ? WHERE fid = ? RETURNING dmid", []any{class, int64(fid)}, &dmid)
	switch {
	case err != nil:
		return err
	case !ok:
		return schema.ErrGone
	}
	if ok, err := t.hasClass(dmid, class); err != nil {
		return err
	} else if !ok {
		return protocol.ErrClassNotFound
	}
	return t.enqueue(replicateRow(fid), 0, sql.NullInt64{})
}

const (
	fileColumns  = "f.fid, f.dmid, coalesce(f.dkey, ''), coalesce(f.length, 0), f.classid, f.devcount"
	fileLocation = fileColumns + ", (SELECT group_concat(devid) FROM file_on o WHERE o.fid = f.fid)"
)

func fileDest(f *schema.File) []any {
	return []any{&f.FID, &f.DMID, &f.Key, &f.Length, &f.ClassID, &f.DevCount}
}

// sortedDevices reads what group_concat made.
func sortedDevices(list sql.NullString) []protocol.DevID {
	devs := splitDevices(list.String)
	slices.Sort(devs)
	return devs
}

// FileByKey finds a closed file; see [schema.FileFinder].
func (s *Store) FileByKey(ctx context.Context, dmid schema.DMID, key string) (_ schema.File, _ []protocol.DevID, err error) {
	defer wrap(&err, "find key %q of domain %d", key, dmid)
	if s.checkKey(key) != nil {
		return schema.File{}, nil, protocol.ErrUnknownKey
	}
	var f schema.File
	var devs sql.NullString
	err = s.readRow(ctx, "SELECT "+fileLocation+" FROM file f WHERE dmid = ? AND dkey = ?", []any{dmid, key}, append(fileDest(&f), &devs)...)
	if errors.Is(err, sql.ErrNoRows) {
		return schema.File{}, nil, protocol.ErrUnknownKey
	}
	if err != nil {
		return schema.File{}, nil, err
	}
	return f, sortedDevices(devs), nil
}

// FilesByFID finds files by number; see [schema.FileFinder].
func (s *Store) FilesByFID(ctx context.Context, fids []protocol.FID) (files []schema.LocatedFile, err error) {
	defer wrap(&err, "find %d fids", len(fids))
	return s.locatedFiles(ctx, selectLocated+" WHERE fid IN (SELECT value FROM json_each(?))", jsonList(fids))
}

const selectLocated = "SELECT " + fileLocation + " FROM file f"

// locatedFiles runs a query that begins with selectLocated.
func (s *Store) locatedFiles(ctx context.Context, query string, args ...any) (files []schema.LocatedFile, err error) {
	err = s.read(ctx, query, args, func(rows *sql.Rows) error {
		var f schema.LocatedFile
		var devs sql.NullString
		err := rows.Scan(append(fileDest(&f.File), &devs)...)
		f.Devices = sortedDevices(devs)
		files = append(files, f)
		return err
	})
	return files, err
}

// jsonList is a list of numbers as json_each takes it.
func jsonList[T protocol.FID | protocol.DevID](list []T) string {
	b := make([]byte, 1, 2+8*len(list))
	b[0] = '['
	for i, n := range list {
		if i > 0 {
			b = append(b, ',')
		}
		b = strconv.AppendInt(b, int64(n), 10)
	}
	return string(append(b, ']'))
}

// ListKeys lists keys in byte order; see [schema.Files].
func (s *Store) ListKeys(ctx context.Context, dmid schema.DMID, prefix, after string, limit int) (keys []string, err error) {
	defer wrap(&err, "list keys of domain %d", dmid)
	if limit <= 0 {
		return nil, nil
	}
	err = s.read(ctx, "SELECT dkey FROM file WHERE dmid = ? AND dkey >= ? AND dkey < ? AND dkey <> ? ORDER BY dkey LIMIT ?",
		[]any{dmid, max(prefix, after), prefixEnd(prefix), after, limit}, func(rows *sql.Rows) error {
			var key string
			err := rows.Scan(&key)
			keys = append(keys, key)
			return err
		})
	return keys, err
}

// prefixEnd is the least value greater than all keys that begin with prefix. To
// SQLite every blob is greater than every text, which serves where there is no
// such text.
func prefixEnd(prefix string) any {
	for i := len(prefix) - 1; i >= 0; i-- {
		if prefix[i] < 0xff {
			return prefix[:i] + string([]byte{prefix[i] + 1})
		}
	}
	return []byte{0}
}

// ListFIDs lists files by number; see [schema.Files].
func (s *Store) ListFIDs(ctx context.Context, after protocol.FID, limit int) (files []schema.File, err error) {
	defer wrap(&err, "list fids after %d", after)
	if limit <= 0 || after >= protocol.MaxFID {
		return nil, nil
	}
	err = s.read(ctx, "SELECT "+fileColumns+" FROM file f WHERE fid > ? ORDER BY fid LIMIT ?", []any{int64(after), limit}, func(rows *sql.Rows) error {
		var f schema.File
		err := rows.Scan(fileDest(&f)...)
		files = append(files, f)
		return err
	})
	return files, err
}

const selectChecksum = "SELECT hashtype, checksum FROM checksum WHERE fid = ?"

// Checksum is the stored checksum of a fid; see [schema.FileFinder].
func (s *Store) Checksum(ctx context.Context, fid protocol.FID) (sum protocol.Checksum, err error) {
	defer wrap(&err, "read checksum of fid %d", fid)
	err = s.readRow(ctx, selectChecksum, []any{int64(fid)}, &sum.Type, &sum.Sum)
	if errors.Is(err, sql.ErrNoRows) {
		return protocol.Checksum{}, nil
	}
	return sum, err
}

// SetChecksum stores or replaces a checksum; see [schema.Files].
func (s *Store) SetChecksum(ctx context.Context, fid protocol.FID, sum protocol.Checksum) (err error) {
	defer wrap(&err, "set checksum of fid %d", fid)
	if sum.IsZero() {
		return errors.New("there is no checksum to set")
	}
	if err := schema.CheckHash(sum.Type, s.sealed); err != nil {
		return err
	}
	return change(ctx, s, func(t *tx) error {
		if ok, err := t.hasFile(fid); err != nil {
			return err
		} else if !ok {
			return schema.ErrGone
		}
		return t.setChecksum(fid, sum)
	})
}

func (t *tx) setChecksum(fid protocol.FID, sum protocol.Checksum) error {
	_, err := t.exec("INSERT INTO checksum (fid, hashtype, checksum) VALUES (?, ?, ?) "+
		"ON CONFLICT (fid) DO UPDATE SET hashtype = excluded.hashtype, checksum = excluded.checksum", int64(fid), sum.Type, sum.Sum)
	return err
}

func (t *tx) hasFile(fid protocol.FID) (bool, error) {
	var one int
	return t.row("SELECT 1 FROM file WHERE fid = ?", []any{int64(fid)}, &one)
}

// DebugFile collects all that the database knows of a fid; see [schema.Files].
func (s *Store) DebugFile(ctx context.Context, fid protocol.FID) (d schema.FileDebug, err error) {
	defer wrap(&err, "debug fid %d", fid)
	err = s.snapshot(ctx, func(q querier) error {
		for _, part := range []struct {
			query string
			each  func(*sql.Rows) error
		}{
			{"SELECT " + fileColumns + " FROM file f WHERE fid = ?", func(rows *sql.Rows) error {
				d.File = new(schema.File)
				return rows.Scan(fileDest(d.File)...)
			}},
			{selectTempfile, func(rows *sql.Rows) error {
				t, err := scanTempfile(rows.Scan)
				d.Tempfile = &t
				return err
			}},
			{"SELECT devid FROM file_on WHERE fid = ? ORDER BY devid", func(rows *sql.Rows) error {
				var dev protocol.DevID
				err := rows.Scan(&dev)
				d.Devices = append(d.Devices, dev)
				return err
			}},
			{selectChecksum, func(rows *sql.Rows) error {
				return rows.Scan(&d.Checksum.Type, &d.Checksum.Sum)
			}},
		} {
			if err := readRows(ctx, q, part.query, []any{int64(fid)}, part.each); err != nil {
				return err
			}
		}
		for _, queue := range queues {
			table := tableOf(queue)
			query := "SELECT fid, " + table.debug + " FROM " + table.name + " WHERE fid = ?" + table.and
			if err := readRows(ctx, q, query, []any{int64(fid)}, func(rows *sql.Rows) error {
				r := schema.QueueRow{Queue: queue}
				var dev sql.Null[protocol.DevID]
				var arg sql.NullString
				if err := rows.Scan(&r.FID, &dev, &r.What, &r.NextTry, &r.FailCount, &r.Flags, &arg); err != nil {
					return err
				}
				if dev.Valid {
					r.DevID = &dev.V
				}
				if arg.Valid {
					r.Arg = &arg.String
				}
				d.Queues = append(d.Queues, r)
				return nil
			}); err != nil {
				return err
			}
		}
		return nil
	})
	return d, err
}
