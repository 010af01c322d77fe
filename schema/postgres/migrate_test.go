package postgres

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/schema"
	"github.com/mogile/mogile/schema/postgres/pgtest"
)

// perlSchema is a database of schema version 10 as MogileFS made it, with fids
// of 32 bits, and what a cluster has in it.
const perlSchema = `
CREATE TABLE domain (dmid SMALLINT NOT NULL PRIMARY KEY, namespace VARCHAR(255), UNIQUE (namespace));
CREATE TABLE class (dmid SMALLINT NOT NULL, classid SMALLINT NOT NULL, PRIMARY KEY (dmid, classid), classname VARCHAR(50),
	UNIQUE (dmid, classname), mindevcount SMALLINT NOT NULL, replpolicy VARCHAR(255));
CREATE TABLE file (fid INT NOT NULL, PRIMARY KEY (fid), dmid SMALLINT NOT NULL, dkey VARCHAR(255), UNIQUE (dmid, dkey),
	length BIGINT CHECK (length >= 0), classid SMALLINT NOT NULL, devcount SMALLINT NOT NULL);
CREATE INDEX file_devcount ON file (dmid, classid, devcount);
CREATE TABLE tempfile (fid SERIAL NOT NULL PRIMARY KEY, createtime INT NOT NULL, classid SMALLINT NOT NULL, dmid SMALLINT NOT NULL,
	dkey VARCHAR(255), devids VARCHAR(60));
CREATE TABLE file_to_delete (fid INT NOT NULL, PRIMARY KEY (fid));
CREATE TABLE unreachable_fids (fid INT NOT NULL, lastupdate INT NOT NULL, PRIMARY KEY (fid));
CREATE INDEX unreachable_fids_lastupdate ON unreachable_fids (lastupdate);
CREATE TABLE file_on (fid INT NOT NULL, devid SMALLINT NOT NULL, PRIMARY KEY (fid, devid));
CREATE INDEX file_on_devid ON file_on (devid);
CREATE TABLE file_on_corrupt (fid INT NOT NULL, devid SMALLINT NOT NULL, PRIMARY KEY (fid, devid));
CREATE TABLE host (hostid SMALLINT NOT NULL PRIMARY KEY CHECK (hostid >= 0), status VARCHAR(5) CHECK (status IN ('alive','dead','down')),
	http_port INT DEFAULT 7500, http_get_port INT, hostname VARCHAR(40), hostip VARCHAR(15), altip VARCHAR(15), altmask VARCHAR(18),
	UNIQUE (hostname), UNIQUE (hostip), UNIQUE (altip));
CREATE TABLE device (devid SMALLINT NOT NULL, hostid SMALLINT NOT NULL, status VARCHAR(8) CHECK (status IN ('alive','dead','down')),
	weight INT DEFAULT 100, mb_total INT CHECK (mb_total >= 0), mb_used INT CHECK (mb_used >= 0), mb_asof INT CHECK (mb_asof >= 0), PRIMARY KEY (devid));
CREATE INDEX device_status ON device (status);
CREATE TABLE server_settings (field VARCHAR(50) PRIMARY KEY, value VARCHAR(255));
CREATE TABLE file_to_replicate (fid INT NOT NULL PRIMARY KEY, nexttry INT NOT NULL, fromdevid INT, failcount SMALLINT NOT NULL DEFAULT 0, flags SMALLINT NOT NULL DEFAULT 0);
CREATE INDEX file_to_replicate_nexttry ON file_to_replicate (nexttry);
CREATE TABLE file_to_delete_later (fid INT NOT NULL PRIMARY KEY, delafter INT NOT NULL);
CREATE INDEX file_to_delete_later_delafter ON file_to_delete_later (delafter);
CREATE TABLE fsck_log (logid SERIAL NOT NULL PRIMARY KEY, utime INT NOT NULL, fid INT, evcode CHAR(4), devid SMALLINT);
CREATE INDEX fsck_log_utime ON fsck_log (utime);
INSERT INTO server_settings VALUES ('schema_version', '10');
INSERT INTO domain VALUES (1, 'toast');
INSERT INTO class VALUES (1, 1, 'big', 3);
INSERT INTO host VALUES (1, 'alive', 7500, NULL, 'store1', '10.0.0.1');
INSERT INTO device (devid, hostid, status, weight) VALUES (1, 1, 'alive', 100), (2, 1, 'down', 50);
INSERT INTO file VALUES (5000, 1, 'pic1', 11, 0, 2), (5001, 1, 'Pic2', 12, 1, 1);
INSERT INTO file_on VALUES (5000, 1), (5000, 2), (5001, 1);
INSERT INTO tempfile (fid, createtime, classid, dmid, dkey, devids) VALUES (5003, 1, 0, 1, 'left', '1,2');
`

func TestAdoptedDatabase(t *testing.T) {
	t.Parallel()
	dsn := pgtest.DSN(t)
	exec(t, dsn, perlSchema)
	if _, err := Open(t.Context(), Options{DSN: dsn}); err == nil || !strings.Contains(err.Error(), "mogile migrate") {
		t.Errorf("before the migration: %v; want an error that names mogile migrate", err)
	}

	was := structure(t, dsn)
	planned, err := Migrate(t.Context(), Options{DSN: dsn}, schema.MigrateOptions{DryRun: true})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(was, structure(t, dsn)); diff != "" {
		t.Errorf("a dry run changes the database:\n%s", diff)
	}
	m := migrate(t, dsn, schema.MigrateOptions{})
	if diff := cmp.Diff(planned.Steps, m.Steps); diff != "" || planned.Version != m.Version {
		t.Errorf("the dry run planned otherwise than was done (-planned +done):\n%s", diff)
	}
	if m.Version != schema.VersionOpen {
		t.Errorf("version %d", m.Version)
	}
	if len(m.Warnings) != 1 || !strings.Contains(m.Warnings[0], "32-bit") {
		t.Errorf("warnings: %q; want one about 32-bit fids", m.Warnings)
	}
	for _, want := range []string{"hashtype", "drain", "checksum", "readonly of a host", "BIGINT", "concurrently", "copy_to_delete", "schema_version to 17"} {
		if !strings.Contains(strings.Join(m.Steps, "\n"), want) {
			t.Errorf("no step mentions %q:\n%s", want, strings.Join(m.Steps, "\n"))
		}
	}
	if again := migrate(t, dsn, schema.MigrateOptions{}); len(again.Steps) != 0 {
		t.Errorf("migrated again: %q; want no steps", again.Steps)
	}

	s := open(t, Options{DSN: dsn})
	ctx := t.Context()
	f, devs, err := s.FileByKey(ctx, 1, "pic1")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(schema.File{FID: 5000, DMID: 1, Key: "pic1", Length: 11, DevCount: 2}, f); diff != "" || len(devs) != 2 {
		t.Errorf("file: %s, devices %v", diff, devs)
	}
	keys, err := s.ListKeys(ctx, 1, "", "", 10)
	if err != nil || !cmp.Equal(keys, []string{"Pic2", "pic1"}) {
		t.Errorf("keys %q, %v", keys, err)
	}
	fid, err := s.CreateTempfile(ctx, schema.Tempfile{DMID: 1, Key: "pic1", DevIDs: []protocol.DevID{1}})
	if err != nil {
		t.Fatal(err)
	}
	if fid <= 5003 {
		t.Errorf("new fid %d; 5003 was known", fid)
	}
	if err := s.CloseFile(ctx, schema.Close{FID: fid, DMID: 1, Key: "pic1", Length: 3, DevID: 1,
		Checksum: protocol.Checksum{Type: protocol.HashMD5, Sum: make([]byte, 16)}}); err != nil {
		t.Fatal(err)
	}
	if err := s.SetDeviceState(ctx, 2, schema.DeviceDrain); err != nil {
		t.Error(err)
	}
	readonly := schema.HostReadonly
	if _, err := s.UpdateHost(ctx, "store1", schema.HostChange{Status: &readonly}); err != nil {
		t.Error(err)
	}
	tooHigh := schema.Tempfile{FID: 1 << 31, DMID: 1, Key: "x"}
	if _, err := s.CreateTempfile(ctx, tooHigh); err == nil || !strings.Contains(err.Error(), "32-bit") {
		t.Errorf("a fid of 33 bits: %v; want an error that names the 32-bit column", err)
	}
	jobs, err := s.Claim(ctx, schema.QueueDelete, 10, 1e9)
	if err != nil || len(jobs) != 1 || jobs[0].FID != 5000 {
		t.Errorf("jobs %v, %v", jobs, err)
	}
}

// TestWiden makes the fids of an old database 64 bits wide, while a tracker
// works with it.
func TestWiden(t *testing.T) {
	t.Parallel()
	dsn := pgtest.DSN(t)
	exec(t, dsn, perlSchema)
	migrate(t, dsn, schema.MigrateOptions{})
	running := open(t, Options{DSN: dsn})
	put := func(s *Store, fid protocol.FID, key string) error {
		fid, err := s.CreateTempfile(t.Context(), schema.Tempfile{FID: fid, DMID: 1, Key: key, DevIDs: []protocol.DevID{1, 2}})
		if err != nil {
			return err
		}
		return s.CloseFile(t.Context(), schema.Close{FID: fid, DMID: 1, Key: key, Length: 3, DevID: 1})
	}
	if err := put(running, 0, "before"); err != nil {
		t.Fatal(err)
	}

	planned, err := Migrate(t.Context(), Options{DSN: dsn}, schema.MigrateOptions{Widen: true, DryRun: true})
	if err != nil || len(planned.Steps) != 11 || len(planned.Warnings) != 1 || !strings.Contains(planned.Warnings[0], "roughly") {
		t.Errorf("planned %+v, %v; want a step for each of 11 tables, and how long it takes", planned, err)
	}
	m := migrate(t, dsn, schema.MigrateOptions{Widen: true})
	if diff := cmp.Diff(planned.Steps, m.Steps); diff != "" || len(m.Warnings) != 0 {
		t.Errorf("widened: %+v (-planned +done):\n%s", m, diff)
	}
	if again := migrate(t, dsn, schema.MigrateOptions{Widen: true}); len(again.Steps) != 0 || len(again.Warnings) != 0 {
		t.Errorf("widened again: %+v", again)
	}
	const narrow = `SELECT coalesce(string_agg(attrelid::regclass::text, ', '), '') FROM pg_attribute JOIN pg_class c ON c.oid = attrelid
		WHERE c.relkind = 'r' AND c.relnamespace = 'public'::regnamespace AND attname = 'fid' AND atttypid <> 'bigint'::regtype`
	if left := query[string](t, dsn, narrow); left != "" {
		t.Errorf("fid is not wide in %s", left)
	}

	if err := put(running, 0, "after"); err != nil {
		t.Errorf("a tracker that ran meanwhile: %v", err)
	}
	exec(t, dsn, `SELECT setval('tempfile_fid_seq', 4294967296)`)
	s := open(t, Options{DSN: dsn})
	if err := put(s, 0, "wide"); err != nil {
		t.Fatal(err)
	}
	f, _, err := s.FileByKey(t.Context(), 1, "wide")
	if err != nil || f.FID <= 1<<32 {
		t.Errorf("file is %+v, %v", f, err)
	}
	if err := s.AddLocation(t.Context(), f.FID, 2, []protocol.DevID{1}); err != nil {
		t.Error(err)
	}
	if _, err := s.DeleteKey(t.Context(), 1, "wide"); err != nil {
		t.Error(err)
	}
	if _, err := s.DebugFile(t.Context(), f.FID); err != nil {
		t.Error(err)
	}
}

// structure is every table, column, index and constraint, and the settings.
func structure(t *testing.T, dsn string) string {
	t.Helper()
	return query[string](t, dsn, `SELECT coalesce(string_agg(line, E'\n' ORDER BY line), '') FROM (
		SELECT format('%s.%s %s', attrelid::regclass, attname, format_type(atttypid, atttypmod)) AS line FROM pg_attribute
			WHERE attrelid IN (SELECT oid FROM pg_class WHERE relnamespace = 'public'::regnamespace) AND attnum > 0
		UNION ALL SELECT indexdef FROM pg_indexes WHERE schemaname = 'public'
		UNION ALL SELECT conrelid::regclass || ' ' || pg_get_constraintdef(oid) FROM pg_constraint WHERE connamespace = 'public'::regnamespace) x`)
}

func TestFreshDatabase(t *testing.T) {
	t.Parallel()
	dsn := pgtest.DSN(t)
	planned, err := Migrate(t.Context(), Options{DSN: dsn}, schema.MigrateOptions{DryRun: true})
	if err != nil {
		t.Fatal(err)
	}
	if s := structure(t, dsn); s != "" {
		t.Errorf("a dry run made\n%s", s)
	}
	if _, err := Open(t.Context(), Options{DSN: dsn}); err == nil || !strings.Contains(err.Error(), "mogile migrate") {
		t.Errorf("an empty database: %v; want an error that names mogile migrate", err)
	}
	m := migrate(t, dsn, schema.MigrateOptions{})
	// The index is made with its table, so that the step which adds it is not
	// taken.
	noIndex := cmpopts.IgnoreSliceElements(func(s string) bool { return strings.Contains(s, "concurrently") })
	if diff := cmp.Diff(planned, m, noIndex); diff != "" {
		t.Errorf("planned otherwise than done:\n%s", diff)
	}
	if m.Version != schema.VersionSealed || len(m.Warnings) != 0 {
		t.Errorf("a new database: %+v; want it sealed, and no warnings", m)
	}
	exec(t, dsn, `UPDATE server_settings SET value = '19' WHERE field = 'schema_version'`)
	if _, err := Open(t.Context(), Options{DSN: dsn}); err == nil || !strings.Contains(err.Error(), "newer") {
		t.Errorf("version 19: %v", err)
	}
	if _, err := Migrate(t.Context(), Options{DSN: dsn}, schema.MigrateOptions{}); err == nil || !strings.Contains(err.Error(), "newer") {
		t.Errorf("migration of version 19: %v", err)
	}
}

func TestSealAndUnseal(t *testing.T) {
	t.Parallel()
	dsn := pgtest.DSN(t)
	migrate(t, dsn, schema.MigrateOptions{Unseal: true})
	s := open(t, Options{DSN: dsn})
	ctx := t.Context()
	dmid, err := s.CreateDomain(ctx, "d")
	if err != nil {
		t.Fatal(err)
	}
	long := strings.Repeat("k", 300)
	put := func() error {
		fid, err := s.CreateTempfile(ctx, schema.Tempfile{DMID: dmid, Key: long, DevIDs: []protocol.DevID{1}})
		if err != nil {
			return err
		}
		return s.CloseFile(ctx, schema.Close{FID: fid, DMID: dmid, Key: long, DevID: 1})
	}
	host := func() error {
		_, err := s.CreateHost(ctx, schema.Host{Status: schema.HostAlive, Name: "six", IP: "2001:db8::1", Port: 7500})
		return err
	}
	class := func() error {
		_, err := s.CreateClass(ctx, "d", schema.Class{Name: "ec", MinDevCount: 3, ReplPolicy: "ErasureCode(4,2)"})
		return err
	}
	hashed := func() error {
		_, err := s.CreateClass(ctx, "d", schema.Class{Name: "b3", MinDevCount: 2, HashType: protocol.HashBLAKE3})
		return err
	}
	features := map[string]func() error{"a long key": put, "an IPv6 address": host, "an erasure code": class, "BLAKE3": hashed}
	for name, f := range features {
		if _, refused := errors.AsType[*protocol.Error](f()); !refused {
			t.Errorf("%s is not refused while Perl trackers may run", name)
		}
	}

	m := migrate(t, dsn, schema.MigrateOptions{Seal: true})
	if m.Version != schema.VersionSealed || len(m.Steps) != 3 {
		t.Errorf("sealed: %+v", m)
	}
	if _, err := s.Topology(ctx); err != nil { // as every tracker does every few seconds
		t.Fatal(err)
	}
	for name, f := range features {
		if err := f(); err != nil {
			t.Errorf("%s on a sealed database: %v", name, err)
		}
	}

	exec(t, dsn, `INSERT INTO checksum SELECT fid, 7, '\x00' FROM file; INSERT INTO copy_to_delete (fid, devid, what, nexttry) VALUES (1, 1, 'bad', 0)`)
	_, err = Migrate(ctx, Options{DSN: dsn}, schema.MigrateOptions{Unseal: true})
	for _, want := range []string{"keys over 255", "IPv6", "ErasureCode", "classes with a hash type", "checksums other"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("unseal: %v; want an error that mentions %q", err, want)
		}
	}
	if m := migrate(t, dsn, schema.MigrateOptions{}); m.Version != schema.VersionSealed || len(m.Steps) != 0 {
		t.Errorf("migrated without a word about seals: %+v", m)
	}
	exec(t, dsn, `DELETE FROM file; DELETE FROM host; DELETE FROM class`)
	if _, err := Migrate(ctx, Options{DSN: dsn}, schema.MigrateOptions{Unseal: true}); err == nil || !strings.Contains(err.Error(), "has checksums other than MD5 and SHA-1") {
		t.Errorf("unseal with a checksum: %v", err)
	}
	for _, c := range []struct{ make, want, undo string }{
		{`INSERT INTO ec VALUES (1, 2, 1, 4096, -5, 1, '1,2,3')`, "files that are kept in shards", `DELETE FROM ec`},
		{`INSERT INTO copy_to_delete (fid, devid, what, nexttry) VALUES (1, 1, 'ec', 0)`, "wait for their deletion", `DELETE FROM copy_to_delete WHERE what = 'ec'`},
	} {
		exec(t, dsn, `DELETE FROM checksum; `+c.make)
		if _, err := Migrate(ctx, Options{DSN: dsn}, schema.MigrateOptions{Unseal: true}); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("unseal after %s: %v", c.make, err)
		}
		exec(t, dsn, c.undo)
	}
	// Bad copies that wait are no reason.
	if m := migrate(t, dsn, schema.MigrateOptions{Unseal: true}); m.Version != schema.VersionOpen {
		t.Errorf("unsealed: %+v", m)
	}
	if _, err := Migrate(ctx, Options{DSN: dsn}, schema.MigrateOptions{Seal: true, Unseal: true}); err == nil {
		t.Error("sealed and unsealed at once")
	}
}

// TestUnfinishedIndex repeats a migration that was interrupted.
func TestUnfinishedIndex(t *testing.T) {
	t.Parallel()
	dsn := pgtest.DSN(t)
	migrate(t, dsn, schema.MigrateOptions{})
	exec(t, dsn, `UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'file_dmid_dkey_c'::regclass`)
	m := migrate(t, dsn, schema.MigrateOptions{})
	if len(m.Steps) != 2 {
		t.Errorf("steps %q; want the index dropped and made anew", m.Steps)
	}
	if !query[bool](t, dsn, `SELECT indisvalid FROM pg_index WHERE indexrelid = 'file_dmid_dkey_c'::regclass`) {
		t.Error("the index is not valid")
	}
}

func TestMigrationsSideBySide(t *testing.T) {
	t.Parallel()
	dsn := pgtest.DSN(t)
	steps := make(chan int, 3)
	for range cap(steps) {
		go func() {
			m, err := Migrate(t.Context(), Options{DSN: dsn}, schema.MigrateOptions{})
			if err != nil {
				t.Error(err)
			}
			steps <- len(m.Steps)
		}()
	}
	did := 0
	for range cap(steps) {
		if <-steps > 0 {
			did++
		}
	}
	if did != 1 {
		t.Errorf("%d of them had something to do; want 1", did)
	}
}

func TestMigrationFiles(t *testing.T) {
	t.Parallel()
	all, err := readMigrations("BIGINT")
	if err != nil {
		t.Fatal(err)
	}
	for i, m := range all {
		if !strings.HasPrefix(m.name, fmt.Sprintf("%04d_", i+1)) || len(m.steps) == 0 {
			t.Errorf("migration %d is %s with %d steps", i+1, m.name, len(m.steps))
		}
		if m.concurrently != strings.Contains(m.steps[0].sql, "CONCURRENTLY") {
			t.Errorf("%s: in a transaction: %t", m.name, !m.concurrently)
		}
	}
	if _, err := parseMigration("x", "-- step: a\nSELECT 1;"); err == nil {
		t.Error("a step without a condition is accepted")
	}
}
