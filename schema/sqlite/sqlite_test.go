package sqlite

import (
	"context"
	"database/sql"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/mogile/mogile/schema"
	"github.com/mogile/mogile/schema/storetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestStore(t *testing.T) { storetest.Run(t, fresh) }

func BenchmarkStore(b *testing.B) { storetest.Bench(b, fresh) }

// database is one file. All handles on it are one store, because only one
// process can use it.
type database struct {
	o Options

	mu    sync.Mutex // guards what follows
	store *Store
	users int
}

// handle is a use of the shared store.
type handle struct {
	*Store
	db   *database
	once *sync.Once
}

func fresh(t testing.TB, o storetest.Options) storetest.Database {
	db := &database{o: Options{Path: filepath.Join(t.TempDir(), "mogile.db"), ClockOffset: o.ClockOffset}}
	if _, err := Migrate(t.Context(), db.o, schema.MigrateOptions{}); err != nil {
		t.Fatal(err)
	}
	return db
}

func (db *database) Open(t testing.TB) schema.Store {
	t.Helper()
	db.mu.Lock()
	defer db.mu.Unlock()
	if db.users == 0 {
		s, err := Open(t.Context(), db.o)
		if err != nil {
			t.Fatal(err)
		}
		db.store = s
	}
	db.users++
	h := handle{db.store, db, new(sync.Once)}
	t.Cleanup(func() {
		if err := h.Close(); err != nil {
			t.Error(err)
		}
	})
	return h
}

// Close closes the store when its last user is gone.
func (h handle) Close() (err error) {
	h.once.Do(func() {
		h.db.mu.Lock()
		defer h.db.mu.Unlock()
		if h.db.users--; h.db.users == 0 {
			err = h.Store.Close()
		}
	})
	return err
}

// OneProcess says that no other tracker can be there.
func (db *database) OneProcess() {}

func (db *database) Exec(t testing.TB, query string) {
	t.Helper()
	execSQL(t, db.o, query)
}

// execSQL runs a statement beside the store.
func execSQL(t testing.TB, o Options, query string) {
	t.Helper()
	if err := o.fill(); err != nil {
		t.Fatal(err)
	}
	db, err := sql.Open("sqlite", o.uri("rwc", "synchronous(OFF)"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if _, err := db.ExecContext(ctx, query); err != nil {
		t.Fatalf("%s: %v", query, err)
	}
}
