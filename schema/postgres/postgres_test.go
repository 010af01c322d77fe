package postgres

import (
	"context"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/rs/zerolog"

	"github.com/mogile/mogile/schema"
	"github.com/mogile/mogile/schema/postgres/pgtest"
	"github.com/mogile/mogile/schema/storetest"
)

func TestMain(m *testing.M) { os.Exit(pgtest.Main(m)) }

// database is a PostgreSQL database for the suite.
type database struct {
	dsn    string
	offset func() time.Duration
}

func fresh(t testing.TB, o storetest.Options) storetest.Database {
	return database{pgtest.Clone(t, "unsealed", func(dsn string) error {
		_, err := Migrate(context.Background(), Options{DSN: dsn}, schema.MigrateOptions{Unseal: true})
		return err
	}), o.ClockOffset}
}

func (d database) Open(t testing.TB) schema.Store {
	t.Helper()
	return open(t, Options{DSN: d.dsn, MaxConns: 8, ClockOffset: d.offset})
}

func (d database) Exec(t testing.TB, sql string) {
	t.Helper()
	exec(t, d.dsn, sql)
}

// LockKey holds a key's row as a stranger's transaction would.
func (d database) LockKey(t testing.TB, dmid schema.DMID, key string) (release func()) {
	t.Helper()
	ctx := context.Background()
	conn := connect(t, d.dsn)
	tx, err := conn.Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(ctx, `SELECT FROM file WHERE dmid = $1 AND dkey = $2 FOR UPDATE`, int16(dmid), key); err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := tx.Rollback(ctx); err != nil {
			t.Error(err)
		}
	}
}

func open(t testing.TB, o Options) *Store {
	t.Helper()
	if o.Log.GetLevel() == zerolog.DebugLevel { // the zero logger's
		o.Log = zerolog.New(zerolog.NewTestWriter(t))
	}
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

func migrate(t testing.TB, dsn string, o schema.MigrateOptions) schema.Migration {
	t.Helper()
	m, err := Migrate(t.Context(), Options{DSN: dsn}, o)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func connect(t testing.TB, dsn string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.Background()) }) // the server may be gone
	return conn
}

// exec runs statements beside the store.
func exec(t testing.TB, dsn, sql string) {
	t.Helper()
	conn := connect(t, dsn)
	defer conn.Close(context.Background())
	if err := conn.PgConn().Exec(t.Context(), sql).Close(); err != nil {
		t.Fatalf("%s: %v", strings.TrimSpace(sql), err)
	}
}

// query reads one value beside the store.
func query[T any](t testing.TB, dsn, sql string, args ...any) T {
	t.Helper()
	conn := connect(t, dsn)
	defer conn.Close(context.Background())
	var v T
	if err := conn.QueryRow(t.Context(), sql, args...).Scan(&v); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return v
}

func TestStore(t *testing.T) { storetest.Run(t, fresh) }

// BenchmarkStore is on a server with fsync, as real ones are.
func BenchmarkStore(b *testing.B) {
	server := pgtest.Start(b, pgtest.ServerOptions{})
	storetest.Bench(b, func(t testing.TB, o storetest.Options) storetest.Database {
		d := database{server.Database(t, ""), o.ClockOffset}
		migrate(t, d.dsn, schema.MigrateOptions{Unseal: true})
		return d
	})
}
