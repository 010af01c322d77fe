package postgres

import (
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/mogile/mogile/schema"
	"github.com/mogile/mogile/schema/postgres/pgtest"
)

// TestEachFile: rows say the same in every format that they may come in, nulls and
// narrow columns included.
func TestEachFile(t *testing.T) {
	t.Parallel()
	conn := connect(t, pgtest.DSN(t))
	const sql = `SELECT * FROM (VALUES
		(1::int8, 7::int8, 1::int2, 'a key ä'::varchar, 5::int8, 2::int2, 2::int2, '{3,1000}'::int8[]),
		(2, 4294967296, -1, NULL, NULL, 0, 0, '{}'),
		(3, 9, 32767, '', 0, 1, 1, '{42}')) v (at, fid, dmid, dkey, length, classid, devcount, devs) ORDER BY at`
	read := func(sql string, mode pgx.QueryExecMode) []schema.LocatedFile {
		rows, err := conn.Query(t.Context(), sql, mode)
		if err != nil {
			t.Fatal(err)
		}
		var files []schema.LocatedFile
		err = eachFile(rows, func(at int, f schema.LocatedFile) {
			if files = append(files, f); at != len(files) {
				t.Errorf("row %d comes as %d", len(files), at)
			}
		})
		if err != nil || len(files) != 3 {
			t.Fatalf("%d files, %v", len(files), err)
		}
		return files
	}
	want := read(sql, pgx.QueryExecModeSimpleProtocol)
	if f := want[0]; f.FID != 7 || f.Key != "a key ä" || f.Length != 5 || len(f.Devices) != 2 || f.Devices[1] != 1000 {
		t.Errorf("%+v", f)
	}
	const narrow = `SELECT at, fid, dmid, dkey, length::int4, classid, devcount, devs::int2[] FROM (` + sql + `) w ORDER BY at`
	for name, got := range map[string][]schema.LocatedFile{"binary": read(sql, pgx.QueryExecModeCacheStatement), "narrow": read(narrow, pgx.QueryExecModeCacheStatement)} {
		for i := range want {
			if got[i].File != want[i].File || len(got[i].Devices) != len(want[i].Devices) {
				t.Errorf("%s: %+v, want %+v", name, got[i], want[i])
				continue
			}
			for j, dev := range want[i].Devices {
				if got[i].Devices[j] != dev {
					t.Errorf("%s: devices %v, want %v", name, got[i].Devices, want[i].Devices)
				}
			}
		}
	}
}

func FuzzRawFile(f *testing.F) {
	f.Add([]byte{0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 20, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 3}, []byte{0, 1})
	f.Add([]byte{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 20}, []byte{})
	f.Fuzz(func(t *testing.T, array, n []byte) {
		_, file, err := rawFile([][]byte{n, n, n, array, n, n, n, array})
		if err == nil && len(file.Devices) > len(array) {
			t.Errorf("%d devices in %d bytes", len(file.Devices), len(array))
		}
	})
}
