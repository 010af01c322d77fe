package open

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/mogile/mogile/schema"
	"github.com/mogile/mogile/schema/postgres/pgtest"
)

func TestBothEngines(t *testing.T) {
	t.Parallel()
	for name, dsn := range map[string]func(t *testing.T) string{
		"sqlite":   func(t *testing.T) string { return "DBI:SQLite:" + filepath.Join(t.TempDir(), "mogile.db") },
		"postgres": func(t *testing.T) string { return pgtest.DSN(t) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := Options{DSN: dsn(t)}
			if _, err := Open(t.Context(), o); err == nil || !strings.Contains(err.Error(), "mogile migrate") {
				t.Errorf("without a schema: %v; want an error that names mogile migrate", err)
			}
			m, err := Migrate(t.Context(), o, schema.MigrateOptions{})
			if err != nil || m.Version != schema.VersionSealed {
				t.Fatal(m, err)
			}
			s, err := Open(t.Context(), o)
			if err != nil {
				t.Fatal(err)
			}
			if err := s.Ping(t.Context()); err != nil {
				t.Error(err)
			}
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestRefusals(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		o    Options
		want string
	}{
		{Options{}, "no database"},
		{Options{DSN: "DBI:mysql:mogilefs"}, "PostgreSQL"},
		{Options{DSN: "postgres://127.0.0.1:1/m", SessionDSN: "sqlite:x"}, "session DSN"},
		{Options{DSN: "postgres://127.0.0.1:1/m?sslmode=disable", User: "mogile", Password: "hush"}, "unavailable"},
	} {
		s, err := Open(t.Context(), c.o)
		if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "hush") {
			t.Errorf("Open(%q): %v; want an error with %q and no secret", c.o.DSN, err, c.want)
		}
		if s != nil {
			t.Errorf("Open(%q) returns a store besides its error", c.o.DSN)
		}
		if _, err := Migrate(t.Context(), c.o, schema.MigrateOptions{}); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("Migrate(%q): %v; want an error with %q", c.o.DSN, err, c.want)
		}
	}
}

// TestVersions: a new database is sealed unless it is said otherwise, the
// version can be kept as it is, and a database of an unknown one is opened only
// by those who insist.
func TestVersions(t *testing.T) {
	t.Parallel()
	for name, dsn := range map[string]func(t *testing.T) string{
		"sqlite":   func(t *testing.T) string { return "sqlite:" + filepath.Join(t.TempDir(), "mogile.db") },
		"postgres": func(t *testing.T) string { return pgtest.DSN(t) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			migrate := func(o Options, mo schema.MigrateOptions, want int) {
				t.Helper()
				if m, err := Migrate(t.Context(), o, mo); err != nil || m.Version != want {
					t.Fatalf("%+v: version %d, %v; want %d", mo, m.Version, err, want)
				}
			}
			o := Options{DSN: dsn(t)}
			migrate(o, schema.MigrateOptions{UnsealNew: true, DryRun: true}, schema.VersionOpen)
			migrate(o, schema.MigrateOptions{UnsealNew: true}, schema.VersionOpen)
			migrate(o, schema.MigrateOptions{Seal: true}, schema.VersionSealed)
			migrate(o, schema.MigrateOptions{UnsealNew: true}, schema.VersionSealed)

			kept := Options{DSN: dsn(t)}
			migrate(kept, schema.MigrateOptions{KeepVersion: true}, 0)
			if s, err := Open(t.Context(), kept); err == nil {
				_ = s.Close()
				t.Fatal("a database without a version is opened")
			}
			kept.AnyVersion = true
			s, err := Open(t.Context(), kept)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := s.CreateDomain(t.Context(), "d"); err != nil {
				t.Error(err)
			}
			if err := s.Close(); err != nil {
				t.Error(err)
			}
			migrate(kept, schema.MigrateOptions{UnsealNew: true}, schema.VersionOpen)
		})
	}
}
