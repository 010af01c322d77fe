package sqlite

import (
	"database/sql"
	"path/filepath"
	"strings"
	"testing"

	"github.com/mogile/mogile/schema"
)

// TestPlans asks SQLite how it would list the files of a device and of a range:
// without reading a table, and without sorting.
func TestPlans(t *testing.T) {
	t.Parallel()
	adopted := Options{Path: filepath.Join(t.TempDir(), "mogilefs.db")}
	execSQL(t, adopted, mogileFS)
	fresh := Options{Path: filepath.Join(t.TempDir(), "new.db")}
	for name, o := range map[string]Options{"adopted": adopted, "fresh": fresh} {
		migrate(t, o, schema.MigrateOptions{})
		s := open(t, o)
		for _, c := range []struct {
			query string
			args  []any
		}{
			{filesOn, []any{1, 5, 10}},
			{filesOnNewest, []any{1, 5, 10}},
			{"SELECT fid FROM file_on WHERE devid = ? ORDER BY fid LIMIT ?", []any{1, 10}},
			{selectLocated + " WHERE f.fid >= ? AND f.fid <= ? ORDER BY f.fid LIMIT ?", []any{1, 5, 10}},
		} {
			var plan []string
			if err := s.read(t.Context(), "EXPLAIN QUERY PLAN "+c.query, c.args, func(rows *sql.Rows) error {
				var id, parent, unused int
				var detail string
				err := rows.Scan(&id, &parent, &unused, &detail)
				plan = append(plan, detail)
				return err
			}); err != nil {
				t.Fatal(err)
			}
			if text := strings.Join(plan, "\n"); strings.Contains(text, "SCAN ") || strings.Contains(text, "B-TREE") {
				t.Errorf("%s: %s:\n%s", name, c.query, text)
			}
		}
	}
}
