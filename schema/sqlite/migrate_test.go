package sqlite

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/schema"
)

func migrate(t *testing.T, o Options, m schema.MigrateOptions) schema.Migration {
	t.Helper()
	done, err := Migrate(t.Context(), o, m)
	if err != nil {
		t.Fatal(err)
	}
	return done
}

func open(t *testing.T, o Options) *Store {
	t.Helper()
	s, err := Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func TestMigrate(t *testing.T) {
	t.Parallel()
	o := Options{Path: filepath.Join(t.TempDir(), "new.db")}
	would := migrate(t, o, schema.MigrateOptions{DryRun: true})
	if _, err := os.Stat(o.Path); err == nil {
		t.Fatal("a dry run made the database")
	}
	done := migrate(t, o, schema.MigrateOptions{})
	if diff := cmp.Diff(would, done); diff != "" {
		t.Errorf("dry run and migration differ (-dry run +migration):\n%s", diff)
	}
	if done.Version != schema.VersionSealed || len(done.Steps) == 0 {
		t.Errorf("a new database: %+v; want it sealed", done)
	}
	again := migrate(t, o, schema.MigrateOptions{})
	if len(again.Steps) != 0 || again.Version != schema.VersionSealed {
		t.Errorf("migrated again: %+v; want nothing done", again)
	}

	version := func(want string) {
		t.Helper()
		s := open(t, o)
		if v, _, err := s.Setting(t.Context(), "schema_version"); err != nil || v != want {
			t.Errorf("schema_version is %q, %v; want %s", v, err, want)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
	version("18")
	if done := migrate(t, o, schema.MigrateOptions{Unseal: true, DryRun: true}); done.Version != 17 || len(done.Steps) != 1 {
		t.Errorf("dry run of unsealing: %+v", done)
	}
	version("18")
	migrate(t, o, schema.MigrateOptions{Unseal: true})
	version("17")
	migrate(t, o, schema.MigrateOptions{})
	version("17")
	migrate(t, o, schema.MigrateOptions{Seal: true})
	version("18")

	if _, err := Migrate(t.Context(), o, schema.MigrateOptions{Seal: true, Unseal: true}); err == nil {
		t.Error("sealed and unsealed at once")
	}
	s := open(t, o)
	if _, err := s.CreateHost(t.Context(), schema.Host{Status: schema.HostAlive, Name: "six", IP: "fe80::1", Port: 7500}); err != nil {
		t.Fatal(err)
	}
	if _, err := Migrate(t.Context(), o, schema.MigrateOptions{}); err == nil || !strings.Contains(err.Error(), "in use by process") {
		t.Errorf("migrating an open database: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := Migrate(t.Context(), o, schema.MigrateOptions{Unseal: true}); err == nil || !strings.Contains(err.Error(), "IPv6") {
		t.Errorf("unsealing with an IPv6 address: %v; want a refusal", err)
	}
	version("18")
}

func TestMigrateUnsealed(t *testing.T) {
	t.Parallel()
	o := Options{Path: filepath.Join(t.TempDir(), "new.db")}
	if done := migrate(t, o, schema.MigrateOptions{Unseal: true}); done.Version != schema.VersionOpen {
		t.Errorf("version is %d; want %d", done.Version, schema.VersionOpen)
	}
	s := open(t, o)
	for n, want := range map[int]error{255: nil, 256: protocol.ErrInvalidKey} {
		_, err := s.CreateTempfile(t.Context(), schema.Tempfile{DMID: 1, Key: strings.Repeat("ü", n)})
		if !errors.Is(err, want) {
			t.Errorf("key of %d characters: %v; want %v", n, err, want)
		}
	}
}

// TestUnsealLongKey keeps a database sealed that has a key which MogileFS could
// not hold.
func TestUnsealLongKey(t *testing.T) {
	t.Parallel()
	s := newStore(t, Options{})
	key := strings.Repeat("k", 256)
	fid, err := s.CreateTempfile(t.Context(), schema.Tempfile{DMID: 1, Key: key})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.CloseFile(t.Context(), schema.Close{FID: fid, DMID: 1, Key: key, DevID: 1}); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := Migrate(t.Context(), s.o, schema.MigrateOptions{Unseal: true}); err == nil || !strings.Contains(err.Error(), "keys over 255") {
		t.Errorf("unsealing: %v; want a refusal", err)
	}
}

// TestUnsealBLAKE3 keeps a database sealed while a class or a checksum has what
// MogileFS does not know.
func TestUnsealBLAKE3(t *testing.T) {
	t.Parallel()
	o := Options{Path: filepath.Join(t.TempDir(), "new.db")}
	migrate(t, o, schema.MigrateOptions{})
	for _, c := range []struct{ make, unmake string }{
		{"INSERT INTO class (dmid, classid, classname, mindevcount, hashtype) VALUES (1, 1, 'c', 2, 7)", "DELETE FROM class"},
		{"INSERT INTO checksum (fid, hashtype, checksum) VALUES (1, 7, x'00')", "DELETE FROM checksum"},
	} {
		execSQL(t, o, c.make)
		if _, err := Migrate(t.Context(), o, schema.MigrateOptions{Unseal: true}); err == nil || !strings.Contains(err.Error(), "that MogileFS lacks") {
			t.Errorf("unsealing after %s: %v; want a refusal", c.make, err)
		}
		execSQL(t, o, c.unmake)
	}
	migrate(t, o, schema.MigrateOptions{Unseal: true})
}

// mogileFS is a database as another program might have made it: MogileFS's
// tables with other types, no AUTOINCREMENT, and other names of indexes.
const mogileFS = `
CREATE TABLE domain (dmid INT UNSIGNED NOT NULL PRIMARY KEY, namespace VARCHAR(255), UNIQUE (namespace));
CREATE TABLE class (dmid SMALLINT UNSIGNED NOT NULL, classid TINYINT UNSIGNED NOT NULL, classname VARCHAR(50), mindevcount TINYINT UNSIGNED NOT NULL,
	hashtype TINYINT, replpolicy VARCHAR(255), PRIMARY KEY (dmid, classid), UNIQUE (dmid, classname));
CREATE TABLE file (fid INT UNSIGNED NOT NULL PRIMARY KEY, dmid SMALLINT UNSIGNED NOT NULL, dkey VARCHAR(255), length BIGINT UNSIGNED,
	classid TINYINT UNSIGNED NOT NULL, devcount TINYINT UNSIGNED NOT NULL, UNIQUE (dmid, dkey));
CREATE INDEX file_devcount ON file (dmid, classid, devcount);
CREATE TABLE tempfile (fid INTEGER NOT NULL PRIMARY KEY, createtime INT UNSIGNED NOT NULL, classid TINYINT UNSIGNED NOT NULL,
	dmid SMALLINT UNSIGNED NOT NULL, dkey VARCHAR(255), devids VARCHAR(60));
CREATE TABLE file_on (fid INT UNSIGNED NOT NULL, devid MEDIUMINT UNSIGNED NOT NULL, PRIMARY KEY (fid, devid));
CREATE INDEX devid ON file_on (devid);
CREATE TABLE checksum (fid INT UNSIGNED NOT NULL PRIMARY KEY, hashtype TINYINT NOT NULL, checksum VARBINARY(64) NOT NULL);
CREATE TABLE host (hostid MEDIUMINT UNSIGNED NOT NULL PRIMARY KEY, status TEXT, http_port MEDIUMINT UNSIGNED DEFAULT 7500, http_get_port MEDIUMINT UNSIGNED,
	hostname VARCHAR(40) UNIQUE, hostip VARCHAR(15) UNIQUE, altip VARCHAR(15) UNIQUE, altmask VARCHAR(18));
CREATE TABLE device (devid MEDIUMINT UNSIGNED NOT NULL PRIMARY KEY, hostid MEDIUMINT UNSIGNED NOT NULL, status TEXT, weight MEDIUMINT DEFAULT 100,
	mb_total INT UNSIGNED, mb_used INT UNSIGNED, mb_asof INT UNSIGNED);
CREATE TABLE file_to_replicate (fid INT UNSIGNED NOT NULL PRIMARY KEY, nexttry INT UNSIGNED NOT NULL, fromdevid INT UNSIGNED,
	failcount TINYINT UNSIGNED NOT NULL DEFAULT 0, flags SMALLINT UNSIGNED NOT NULL DEFAULT 0);
CREATE TABLE file_to_delete2 (fid INT UNSIGNED NOT NULL PRIMARY KEY, nexttry INT UNSIGNED NOT NULL, failcount TINYINT UNSIGNED NOT NULL DEFAULT '0');
CREATE TABLE server_settings (field VARCHAR(50) PRIMARY KEY, value TEXT);
INSERT INTO server_settings VALUES ('schema_version', 17), ('x', NULL);
INSERT INTO domain VALUES (1, 'd');
INSERT INTO class VALUES (1, 1, 'c', 3, 1, NULL);
INSERT INTO host VALUES (1, 'alive', 7500, NULL, 'h', '10.0.0.1', NULL, NULL);
INSERT INTO device VALUES (1, 1, 'alive', 100, NULL, NULL, NULL);
INSERT INTO file VALUES (5, 1, 'k', 11, 1, 1);
INSERT INTO file_on VALUES (5, 1), (900, 1);
INSERT INTO checksum VALUES (5, 1, x'000102030405060708090a0b0c0d0e0f');
INSERT INTO tempfile VALUES (7, 1, 0, 1, 'open', '1,2');
INSERT INTO file_to_replicate VALUES (5, 0, NULL, 0, 0);
INSERT INTO file_to_delete2 VALUES (900, 0, 0);
`

// TestUnsealShards keeps a database sealed while a file is kept in shards, or
// shards wait for their deletion.
func TestUnsealShards(t *testing.T) {
	t.Parallel()
	o := Options{Path: filepath.Join(t.TempDir(), "mogile.db")}
	migrate(t, o, schema.MigrateOptions{})
	for _, c := range []struct{ make, undo string }{
		{"INSERT INTO ec VALUES (1, 2, 1, 4096, -5, 1, '1,2,3')", "DELETE FROM ec"},
		{"INSERT INTO copy_to_delete (fid, devid, what, nexttry) VALUES (1, 1, 'ec', 0)", "DELETE FROM copy_to_delete"},
	} {
		execSQL(t, o, c.make)
		if _, err := Migrate(t.Context(), o, schema.MigrateOptions{Unseal: true}); err == nil || !strings.Contains(err.Error(), "shards") {
			t.Errorf("unsealing after %s: %v; want a refusal", c.make, err)
		}
		execSQL(t, o, c.undo)
	}
	migrate(t, o, schema.MigrateOptions{Unseal: true})
}

// TestMigrateMogileFS adopts a database that MogileFS made, with all that is in
// it.
func TestMigrateMogileFS(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	o := Options{Path: filepath.Join(t.TempDir(), "mogilefs.db")}
	execSQL(t, o, mogileFS)
	if _, err := Open(ctx, o); err == nil || !strings.Contains(err.Error(), "mogile migrate") {
		t.Errorf("open before the migration: %v; want advice to migrate", err)
	}
	if done := migrate(t, o, schema.MigrateOptions{DryRun: true}); done.Version != schema.VersionOpen || len(done.Steps) != 7 {
		t.Errorf("dry run: %+v", done)
	}
	if done := migrate(t, o, schema.MigrateOptions{}); done.Version != schema.VersionOpen || len(done.Steps) != 7 {
		t.Errorf("migration: %+v", done)
	}
	s := open(t, o)
	f, devs, err := s.FileByKey(ctx, 1, "k")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(schema.File{FID: 5, DMID: 1, Key: "k", Length: 11, ClassID: 1, DevCount: 1}, f); diff != "" {
		t.Errorf("file (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]protocol.DevID{1}, devs); diff != "" {
		t.Errorf("devices (-want +got):\n%s", diff)
	}
	if sum, err := s.Checksum(ctx, 5); err != nil || sum.String() != "MD5:000102030405060708090a0b0c0d0e0f" {
		t.Errorf("checksum is %s, %v", sum, err)
	}
	top, err := s.Topology(ctx)
	if err != nil {
		t.Fatal(err)
	}
	top.Now = top.Now.UTC()
	want := schema.TopologyRows{
		Domains:  []schema.Domain{{ID: 1, Name: "d"}},
		Classes:  []schema.Class{{DMID: 1, ID: 1, Name: "c", MinDevCount: 3, HashType: protocol.HashMD5}},
		Hosts:    []schema.Host{{ID: 1, Status: "alive", Name: "h", IP: "10.0.0.1", Port: 7500}},
		Devices:  []schema.Device{{ID: 1, HostID: 1, Status: "alive", Weight: 100}},
		Settings: map[string]string{"schema_version": "17", "x": ""},
		Now:      top.Now,
	}
	if diff := cmp.Diff(want, top); diff != "" {
		t.Errorf("topology (-want +got):\n%s", diff)
	}
	if err := s.CloseFile(ctx, schema.Close{FID: 7, DMID: 1, Key: "k", Length: 3, DevID: 2}); err != nil {
		t.Fatal(err)
	}
	if fid, err := s.CreateTempfile(ctx, schema.Tempfile{DMID: 1, Key: "k"}); err != nil || fid != 901 {
		t.Errorf("next fid is %d, %v; want 901, above all that is known", fid, err)
	}
	for q, want := range map[schema.Queue]int{schema.QueueReplicate: 2, schema.QueueDelete: 2} {
		jobs, err := s.Claim(ctx, q, 10, 1e9)
		if err != nil || len(jobs) != want {
			t.Errorf("claimed %+v, %v from %s; want %d", jobs, err, q, want)
		}
	}
}

func TestOpenRefuses(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	dir := t.TempDir()
	newer := Options{Path: filepath.Join(dir, "newer.db")}
	migrate(t, newer, schema.MigrateOptions{})
	execSQL(t, newer, "UPDATE mogile_meta SET value = '99' WHERE name = 'version'")
	older := Options{Path: filepath.Join(dir, "older.db")}
	execSQL(t, older, "CREATE TABLE server_settings (field TEXT PRIMARY KEY, value TEXT); INSERT INTO server_settings VALUES ('schema_version', '12')")
	empty := Options{Path: filepath.Join(dir, "empty.db")}
	execSQL(t, empty, "CREATE TABLE other (x)")
	garbage := Options{Path: filepath.Join(dir, "garbage.db")}
	if err := os.WriteFile(garbage.Path, []byte(strings.Repeat("not a database ", 100)), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		o    Options
		want string
	}{
		{Options{Path: filepath.Join(dir, "missing.db")}, "mogile migrate"},
		{Options{Path: filepath.Join(dir, "no", "such", "dir.db")}, "mogile migrate"},
		{Options{}, "not the path"},
		{Options{Path: ":memory:"}, "not the path"},
		{newer, "newer mogile"},
		{older, "schema version is 12"},
		{empty, "mogile migrate"},
		{garbage, "not a database"},
	} {
		s, err := Open(ctx, c.o)
		if err == nil {
			t.Errorf("%s was opened: %v", c.o.Path, s.Close())
			continue
		}
		if !strings.Contains(err.Error(), c.want) {
			t.Errorf("open %s: %v; want it to say %q", c.o.Path, err, c.want)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "missing.db")); err == nil {
		t.Error("Open made a database")
	}
	if _, err := Migrate(ctx, older, schema.MigrateOptions{}); err == nil || !strings.Contains(err.Error(), "mogdbsetup") {
		t.Errorf("migrate version 12: %v", err)
	}
}

func TestOpenTwice(t *testing.T) {
	t.Parallel()
	// A name that means something to URLs, and another name of the same file.
	dir := t.TempDir()
	o := Options{Path: filepath.Join(dir, "odd name?a=b#c%20&_pragma=x.db")}
	migrate(t, o, schema.MigrateOptions{})
	s := open(t, o)
	if _, err := os.Stat(o.Path); err != nil {
		t.Errorf("the database has another name: %v", err)
	}
	link := filepath.Join(dir, "link.db")
	if err := os.Symlink(o.Path, link); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{o.Path, link} {
		_, err := Open(t.Context(), Options{Path: path})
		if err == nil || !strings.Contains(err.Error(), "in use by process") || !strings.Contains(err.Error(), ".lock") {
			t.Errorf("second open of %s: %v; want a refusal", path, err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	open(t, Options{Path: link})
}
