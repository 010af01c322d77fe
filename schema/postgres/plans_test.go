package postgres

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/mogile/mogile/schema"
	"github.com/mogile/mogile/schema/postgres/pgtest"
)

// bigScan is a plan that reads all of a table which grows with the cluster.
var bigScan = regexp.MustCompile(`Seq Scan on (file|file_on|file_to_queue|file_to_replicate|file_to_delete2|copy_to_delete|checksum|fsck_log|tempfile|ec)\b`)

// planned are statements of upkeep, with arguments, and the index that their
// order or their limit needs.
var planned = []struct {
	name, sql, args, index string
}{
	{"find keys", findFiles, "'{1}', '{key 5}'", "AND ((dkey)::text = "},
	{"delete a key", deleteKey, "0, 1, 'key 5'", "AND ((dkey)::text = "},
	{"delete keys", deleteKeys, "0, '{1,1}', '{key 5,key 6}'", "AND ((dkey)::text = "},
	{"lock a key", lockKeyRow, "1, 'key 5'", "AND ((dkey)::text = "},
	{"lock closed keys", closeLock, "'{1}', '{1}', '{key 5}'", "AND ((dkey)::text = "},
	{"next files of a sweep", nextFiles, "50000, 90000, 500", "file_pkey"},
	{"files of a range", filesIn, "50000, 60000, 500", "file_pkey"},
	{"files to reap", fidsOn, "7, 500", "file_on_devid_fid"},
	{"files of a device", filesOn, "7, 50000, 500", "file_on_devid_fid"},
	{"newest files of a device", filesOnNewest, "7, 50000, 500", "file_on_devid_fid"},
	{"lock files", lockFiles, "'{1,2,3}'", "file_pkey"},
	{"reap", reap, "0, 7, '{1,2,3}'", "file_on_pkey"},
	{"lock miscounted files", lockMiscounted, "'{1,2,3}'", "file_pkey"},
	{"recount", recount, "'{1,2,3}'", "file_pkey"},
	{"claim a lapsed range", claimLapsed, "0, 1000, 'fsck'", ""},
	{"fsck events", fsckEvents, "5000, 100", "fsck_log_pkey"},
	{"fold the log", foldLog, "100, 200", "fsck_log_pkey"},
	{"last event", lastLogID, "", "fsck_log_pkey"},
	{"queue fsck", queueFsck, "0, 0, '{1,2}', 'content'", ""},
	{"queue moves", queueMoves, "0, '{1}', '{7}', '{x}'", ""},
	{"add locations", addLocations, "0, '{5,6}', '{3,3}', '{\"{1,2}\",\"{}\"}'", "file_on_pkey"},
	{"drop locations", dropLocations, "0, '{5,6}', '{3,3}', '{\"{1,2}\",\"{}\"}', '{bad,fid}'", "file_on_pkey"},
	{"forget locations", forgetLocations, "'{5,6}', '{3,3}'", "file_on_pkey"},
	{"files by fids", filesByFIDs, "'{5,6}', '{0,1}'", "file_pkey"},
	{"inspect files", inspectFiles, "'{5,6}', '{0,1}'", "file_pkey"},
	{"checksums", storedSums, "'{5,6}', '{0,1}'", "checksum_pkey"},
	{"uploads", readTempfiles, "'{5,6}', '{0,1}'", "tempfile_pkey"},
	{"locations", locationsOf, "'{5,6}', '{0,1}'", "file_on_pkey"},
	{"pending deletions", pendingDeletions, "'{5,6}', '{0,1}'", "copy_to_delete_pkey"},
	{"announce copies", announceCopies, "0, '{5,6}', '{1,2}', '{fid,fid}', '{60,60}'", ""},
	{"finish deletions", finishDeletions, "'{5,6}', '{1,1}', '{0,1}'", "file_on_pkey"},
	{"encodings", encodingsOf, "'{5,6}', '{0,1}'", "ec_pkey"},
	{"an encoding", readEncoding, "5", "ec_pkey"},
	{"record an encoding", insertEncoding, "5, 2, 1, 4096, 7, 1, '1,2,3'", ""},
	{"change an encoding", updateEncoding, "5, 2, '1,2,4'", "ec_pkey"},
	{"forget an encoding", deleteEncoding, "5", "ec_pkey"},
	{"lock a file", lockFile, "5", "file_pkey"},
	{"devices of a file", whereIs, "5", "file_on_pkey"},
	{"leave devices", leaveDevices, "5, '{1,2}'", "file_on_pkey"},
	{"join devices", joinDevices, "5, '{1,2}'", ""},
	{"count devices", countJoined, "5, '{1,2}'", "file_pkey"},
	{"keep on devices", keepOnDevices, "5, '{1,2}', '{ec}'", "copy_to_delete_pkey"},
	{"drop at once", dropNow, "0, 5, '{1,2}', 'ec'", ""},
	{"drop later", dropLater, "0, 5, '{1,2}', 'ec'", ""},
	{"reschedule", queues[2].sql(reschedule), "0, '{1,2}', '{1,1}', '{fid,fid}', '{1,1}', '{0,1}', '{1,1}', '{0,0}'", "copy_to_delete_pkey"},
	{"finish rebalance", queues[4].sql(finish), "'{1,2}', '{1,1}', '{\"\",\"\"}', '{1,1}', '{0,1}'", "file_to_queue_pkey"},
}

// plan is the plan of a prepared statement.
func plan(t *testing.T, conn *pgx.Conn, sql, args string) string {
	t.Helper()
	exec := func(sql string) {
		if err := conn.PgConn().Exec(t.Context(), sql).Close(); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
	}
	exec("PREPARE planned AS " + sql)
	defer exec("DEALLOCATE planned")
	if args != "" {
		args = "(" + args + ")"
	}
	rows, err := conn.Query(t.Context(), "EXPLAIN EXECUTE planned"+args, pgx.QueryExecModeSimpleProtocol)
	if err != nil {
		t.Fatal(err)
	}
	lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(lines, "\n")
}

// TestPlans asks the server how it would run the statements of upkeep in a large
// database where it may do as it likes, and, as sessions of the store are set
// up, in one that was empty when it made the plan.
func TestPlans(t *testing.T) {
	t.Parallel()
	dsn := pgtest.Clone(t, "unsealed", func(dsn string) error {
		_, err := Migrate(t.Context(), Options{DSN: dsn}, schema.MigrateOptions{Unseal: true})
		return err
	})
	check := func(when string, conn *pgx.Conn, statements ...struct{ name, sql, args, index string }) {
		t.Helper()
		for _, s := range slices.Concat(planned, statements) {
			text := plan(t, conn, s.sql, s.args)
			if bigScan.MatchString(text) || !strings.Contains(text, s.index) {
				t.Errorf("%s: %s does not use an index (%s):\n%s", when, s.name, s.index, text)
			}
		}
	}
	empty := connect(t, dsn)
	if err := afterConnect(t.Context(), empty); err != nil {
		t.Fatal(err)
	}
	// Of a claim the server thinks that it takes a tenth of all that is due.
	claims := struct{ name, sql, args, index string }{"claim", queues[4].sql(claim), "0, 120, 12, 100", "type_nexttry"}
	check("empty", empty, claims)

	const files = 100_000
	exec(t, dsn, fmt.Sprintf(`BEGIN;
		INSERT INTO file SELECT i, 1, 'key ' || i, 1, 0, 2 FROM generate_series(1, %[1]d) i;
		INSERT INTO file_on SELECT i, 1 + (i + c) %% 10 FROM generate_series(1, %[1]d) i, generate_series(0, 1) c;
		INSERT INTO fsck_log (utime, fid, evcode, devid) SELECT 1, i, 'MISS', 1 FROM generate_series(1, 20000) i;
		INSERT INTO file_to_queue (fid, type, nexttry, devid) SELECT i, 1 + i %% 2, i, 1 FROM generate_series(1, 20000) i;
		INSERT INTO copy_to_delete (fid, devid, what, nexttry) SELECT i, 1, 'fid', i FROM generate_series(1, 20000) i;
		INSERT INTO file_to_replicate (fid, nexttry) SELECT i, i FROM generate_series(1, 20000) i;
		INSERT INTO file_to_delete2 (fid, nexttry) SELECT i, i FROM generate_series(1, 20000) i;
		INSERT INTO tempfile (fid, createtime, dmid, classid) SELECT i, 1, 1, 0 FROM generate_series(200001, 220000) i;
		INSERT INTO checksum (fid, hashtype, checksum) SELECT i, 1, '' FROM generate_series(1, 20000) i;
		INSERT INTO ec (fid, k, m, block, encoding, epoch, devids) SELECT i, 2, 1, 4096, i, 1, '1,2,3' FROM generate_series(1, 20000) i;
		COMMIT; ANALYZE`, files))
	check("filled", empty, claims)
	full := connect(t, dsn)
	for _, setting := range []string{"enable_hashjoin = off", "enable_mergejoin = off", "plan_cache_mode = force_generic_plan"} {
		if err := full.PgConn().Exec(t.Context(), "SET "+setting).Close(); err != nil {
			t.Fatal(err)
		}
		if setting != "enable_hashjoin = off" { // after which it takes the other
			check("full", full)
		}
	}
}
