package postgres

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/mogile/mogile/schema"
	"github.com/mogile/mogile/schema/postgres/pgtest"
)

// hot are the statements of requests and workers, with arguments that find
// something in the database of fillNamespace.
func hot() []struct{ name, sql, args string } {
	statements := []struct{ name, sql, args string }{
		{"find keys", findFiles, "'{1,1}', '{key 0000005,key 0000006}'"},
		{"list a page", listKeysTo, "1, 'key 0000100', 1000, 'kez'"},
		{"list a page without a prefix", listKeys, "1, 'key 0000100', 1000"},
		{"insert uploads", insertTempfiles, "0, '{9000001,9000002}', '{1,1}', '{a,b}', '{0,0}', '{1,2}'"},
		{"read uploads", readTempfiles, "'{8000001,8000002}', '{0,1}'"},
		{"close uploads", closeNew, `0, '{8000001,8000002}', '{1,1}', '{new 1,new 2}', '{1,1}', '{0,0}', '{1,2}', '{0,0}', '{"",""}', '{}', '{}'`},
		{"close plain uploads", closeNewPlain, "0, '{8000003,8000004}', '{1,1}', '{new 3,new 4}', '{1,1}', '{0,0}', '{1,2}'"},
		{"lock closed keys", closeLock, "'{8000001}', '{1}', '{key 0000005}'"},
		{"close over keys", closeOver, "0, '{8000001}', '{1}', '{key 0000005}', '{1}', '{0}'"},
		{"delete keys", deleteKeys, "0, '{1,1}', '{key 0000007,key 0000008}'"},
		{"delete a key", deleteKey, "0, 1, 'key 0000009'"},
		{"rename a key", renameKey, "1, 'key 0000011', 'other'"},
		{"files by fids", filesByFIDs, "'{5,6}', '{0,1}'"},
		{"inspect files", inspectFiles, "'{5,6}', '{0,1}'"},
		{"add locations", addLocations, `0, '{5,6}', '{30,30}', '{"{6,7}","{7,8}"}'`},
		{"announce copies", announceCopies, "0, '{5,6}', '{1,2}', '{fid,fid}', '{60,60}'"},
		{"finish deletions", finishDeletions, "'{5,6}', '{1,1}', '{0,1}'"},
		{"expire uploads", expireTempfiles, "0, 3600, 500"},
		{"next files of a sweep", nextFiles, "5000, 9000, 500"},
		{"files to reap", fidsOn, "7, 500"},
		{"draw fids", drawFIDs, "64"},
		{"queue replication", queueReplication, "0, 0, '{5,6}', 0, 0"},
	}
	for _, q := range queues {
		arrays := "'{11,12}', '{1,1}', '{fid,fid}', '{1,1}', '{0,1}'"
		statements = append(statements,
			struct{ name, sql, args string }{"claim from " + q.queue.String(), q.sql(claim), "0, 120, 12, 100"},
			struct{ name, sql, args string }{"finish in " + q.queue.String(), q.sql(finish), arrays},
			struct{ name, sql, args string }{"reschedule in " + q.queue.String(), q.sql(reschedule), "0, " + arrays + ", '{1,1}', '{0,0}'"})
	}
	return statements
}

// fillNamespace makes a namespace of n files on two of ten devices each, all of
// which are due in every queue.
func fillNamespace(t *testing.T, dsn string, n int) {
	t.Helper()
	exec(t, dsn, fmt.Sprintf(`BEGIN;
		INSERT INTO domain (dmid, namespace) VALUES (1, 'd');
		INSERT INTO file SELECT i, 1, 'key ' || lpad(i::text, 7, '0'), 1, 0, 2 FROM generate_series(1, %[1]d) i;
		INSERT INTO file_on SELECT i, 1 + (i + c) %% 10 FROM generate_series(1, %[1]d) i, generate_series(0, 1) c;
		INSERT INTO file_to_queue (fid, type, nexttry, devid) SELECT i, 1 + i %% 2, 1, 1 FROM generate_series(1, %[1]d) i;
		INSERT INTO copy_to_delete (fid, devid, what, nexttry) SELECT i, 11, 'fid', 1 FROM generate_series(1, %[1]d) i;
		INSERT INTO file_to_replicate (fid, nexttry) SELECT i, 0 FROM generate_series(1, %[1]d) i;
		INSERT INTO file_to_delete2 (fid, nexttry) SELECT 10000000 + i, 1 FROM generate_series(1, %[1]d) i;
		INSERT INTO tempfile (fid, createtime, dmid, dkey, classid, devids) SELECT 8000000 + i, 1, 1, 'u', 0, '1' FROM generate_series(1, %[1]d) i;
		INSERT INTO checksum (fid, hashtype, checksum) SELECT i, 1, '' FROM generate_series(1, %[1]d) i;
		SELECT setval('tempfile_fid_seq', 30000000);
		COMMIT`, n))
	exec(t, dsn, "VACUUM ANALYZE")
}

var bufferUse = regexp.MustCompile(`shared hit=(\d+)(?: read=(\d+))?|shared read=(\d+)`)

// pagesOf is how many pages a statement looks at, which it does not change for good.
func pagesOf(t *testing.T, conn *pgx.Conn, sql, args string) int {
	t.Helper()
	exec := func(sql string) {
		if err := conn.PgConn().Exec(t.Context(), sql).Close(); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
	}
	exec("PREPARE hot AS " + sql)
	defer exec("DEALLOCATE hot")
	exec("BEGIN; SELECT set_config('mogile.pending', '{8000001}', true)")
	defer exec("ROLLBACK")
	rows, err := conn.Query(t.Context(), "EXPLAIN (ANALYZE, BUFFERS, TIMING OFF, SUMMARY OFF) EXECUTE hot("+args+")", pgx.QueryExecModeSimpleProtocol)
	if err != nil {
		t.Fatal(err)
	}
	lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	pages := 0
	for _, line := range lines { // the first is that of the whole statement
		if m := bufferUse.FindStringSubmatch(line); m != nil {
			for _, digits := range m[1:] {
				n, _ := strconv.Atoi(digits) // empty where there is none
				pages += n
			}
			break
		}
	}
	t.Logf("%d pages: %.60s", pages, strings.Join(strings.Fields(sql), " "))
	return pages
}

// TestCostsDoNotGrow: what a statement of requests or workers looks at in a
// database of ten times as many files, with ten times as long queues, is what an
// index that is higher by a page or two makes of it.
func TestCostsDoNotGrow(t *testing.T) {
	t.Parallel()
	const few, many = 10_000, 100_000
	cost := make(map[string][2]int)
	for i, n := range []int{few, many} {
		dsn := pgtest.DSN(t)
		if _, err := Migrate(t.Context(), Options{DSN: dsn}, schema.MigrateOptions{Unseal: true}); err != nil {
			t.Fatal(err)
		}
		fillNamespace(t, dsn, n)
		conn := connect(t, dsn)
		if err := afterConnect(t.Context(), conn); err != nil {
			t.Fatal(err)
		}
		for _, s := range hot() {
			c := cost[s.name]
			pagesOf(t, conn, s.sql, s.args) // the first marks what is dead
			c[i] = pagesOf(t, conn, s.sql, s.args)
			cost[s.name] = c
		}
	}
	for _, s := range hot() {
		c := cost[s.name]
		if c[1] > c[0]*3/2+30 {
			t.Errorf("%s: %d pages with %d files, %d with %d", s.name, c[0], few, c[1], many)
		}
	}
}
