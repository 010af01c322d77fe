package sqlite

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"

	"github.com/mogile/mogile/schema"
)

// migrations are applied in the order of their numbers, each once, and are
// never edited once released. The row "version" of table mogile_meta
// says how far a database has come.
//
//go:embed migrations/*.sql
var migrations embed.FS

//go:embed adopt_tempfile.sql
var adoptTempfile string

// state is what a migration starts from.
type state struct {
	version       int  // schema_version; 0 where there is no schema
	applied       int  // number of the last migration; 0 none
	autoincrement bool // table tempfile has it, or is not there
	ordered       bool // an index has the fids of each device in order, or there are no tables
}

// step is one change of a migration.
type step struct {
	what string
	sql  []string
}

// Migrate creates or upgrades the schema of the database at o.Path, in one
// transaction. A database of another version than MogileFS 2.73's is refused.
func Migrate(ctx context.Context, o Options, m schema.MigrateOptions) (_ schema.Migration, err error) {
	if err := o.fill(); err != nil {
		return schema.Migration{}, err
	}
	defer wrap(&err, "migrate %s", o.Path)
	if m.Seal && m.Unseal {
		return schema.Migration{}, errors.New("seal and unseal exclude each other")
	}
	mode := "rwc"
	if m.DryRun {
		if _, err := os.Stat(o.Path); errors.Is(err, fs.ErrNotExist) {
			return plan(state{autoincrement: true, ordered: true}, m, nil)
		}
		mode = "ro"
	} else {
		lock, err := lockFile(o.Path)
		if err != nil {
			return schema.Migration{}, err
		}
		defer lock.Close()
	}
	db, err := sql.Open("sqlite", o.uri(mode, "synchronous(FULL)"))
	if err != nil {
		return schema.Migration{}, err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	db.SetMaxOpenConns(1)
	if !m.DryRun {
		if _, err := db.ExecContext(ctx, "PRAGMA journal_mode = WAL"); err != nil {
			return schema.Migration{}, classify(ctx, err)
		}
	}

	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return schema.Migration{}, classify(ctx, err)
	}
	defer func() { err = errors.Join(err, ignoreDone(tx.Rollback())) }()
	st, err := readState(ctx, tx)
	if err != nil {
		return schema.Migration{}, err
	}
	if m.Unseal && st.version == schema.VersionSealed {
		if err := mayUnseal(ctx, tx); err != nil {
			return schema.Migration{}, err
		}
	}
	done, err := plan(st, m, func(s step) error {
		if m.DryRun {
			return nil
		}
		for _, text := range s.sql {
			if _, err := tx.ExecContext(ctx, text); err != nil {
				return fmt.Errorf("%s: %w", s.what, classify(ctx, err))
			}
		}
		return nil
	})
	if err != nil || m.DryRun {
		return done, err
	}
	if err := tx.Commit(); err != nil {
		return schema.Migration{}, classify(ctx, err)
	}
	return done, nil
}

// plan names the steps from st to what m asks for, and applies each.
func plan(st state, m schema.MigrateOptions, apply func(step) error) (schema.Migration, error) {
	var steps []step
	version := st.version
	switch {
	case m.KeepVersion:
	case version == 0 && m.UnsealNew:
		version = schema.VersionOpen
	case version == 0:
		version = schema.VersionSealed
	case version == schema.VersionOpen, version == schema.VersionSealed:
	default:
		return schema.Migration{}, fmt.Errorf("schema version is %d; %d and %d are known: upgrade an older one with MogileFS 2.73's mogdbsetup first",
			version, schema.VersionOpen, schema.VersionSealed)
	}
	switch {
	case m.KeepVersion:
	case m.Seal:
		version = schema.VersionSealed
	case m.Unseal:
		version = schema.VersionOpen
	}
	files, err := fs.ReadDir(migrations, "migrations")
	if err != nil {
		return schema.Migration{}, err
	}
	if st.applied > len(files) {
		return schema.Migration{}, fmt.Errorf("the database has seen migration %d of a newer mogile; this one knows %d", st.applied, len(files))
	}
	if st.applied == 0 {
		steps = append(steps, step{"create table mogile_meta", []string{
			"CREATE TABLE mogile_meta (name VARCHAR(50) NOT NULL PRIMARY KEY, value TEXT)",
			"INSERT INTO mogile_meta (name, value) VALUES ('version', '0')",
		}})
	}
	for i, f := range files {
		if i < st.applied {
			continue
		}
		text, err := migrations.ReadFile("migrations/" + f.Name())
		if err != nil {
			return schema.Migration{}, err
		}
		steps = append(steps, step{"apply " + f.Name(), []string{
			string(text), fmt.Sprintf("UPDATE mogile_meta SET value = '%d' WHERE name = 'version'", i+1),
		}})
	}
	if !st.autoincrement {
		steps = append(steps, step{"rebuild table tempfile with AUTOINCREMENT", []string{adoptTempfile}})
	}
	if !st.ordered {
		steps = append(steps, step{"create index file_on_devid_fid", []string{"CREATE INDEX file_on_devid_fid ON file_on (devid, fid)"}})
	}
	if version != st.version {
		steps = append(steps, step{fmt.Sprintf("set schema_version %d", version), []string{
			fmt.Sprintf("INSERT INTO server_settings (field, value) VALUES ('schema_version', '%d') "+
				"ON CONFLICT (field) DO UPDATE SET value = excluded.value", version),
		}})
	}
	done := schema.Migration{Version: version}
	for _, s := range steps {
		if apply != nil {
			if err := apply(s); err != nil {
				return schema.Migration{}, err
			}
		}
		done.Steps = append(done.Steps, s.what)
	}
	return done, nil
}

// readState finds out what a database has.
func readState(ctx context.Context, tx *sql.Tx) (state, error) {
	st := state{autoincrement: true, ordered: true}
	tables := make(map[string]string)
	rows, err := tx.QueryContext(ctx, "SELECT lower(name), sql FROM sqlite_master WHERE type = 'table'")
	if err != nil {
		return st, classify(ctx, err)
	}
	defer rows.Close()
	for rows.Next() {
		var name string
		var text sql.NullString
		if err := rows.Scan(&name, &text); err != nil {
			return st, err
		}
		tables[name] = text.String
	}
	if err := rows.Err(); err != nil {
		return st, classify(ctx, err)
	}
	if text, ok := tables["tempfile"]; ok {
		st.autoincrement = strings.Contains(strings.ToUpper(text), "AUTOINCREMENT")
	}
	if text, ok := tables["file_on"]; ok && !strings.Contains(strings.ToUpper(text), "WITHOUT ROWID") {
		const index = "SELECT EXISTS (SELECT 1 FROM sqlite_master WHERE type = 'index' AND name = 'file_on_devid_fid')"
		if err := tx.QueryRowContext(ctx, index).Scan(&st.ordered); err != nil {
			return st, classify(ctx, err)
		}
	}
	if _, ok := tables["mogile_meta"]; ok {
		if err := tx.QueryRowContext(ctx, "SELECT value FROM mogile_meta WHERE name = 'version'").Scan(&st.applied); err != nil {
			return st, classify(ctx, err)
		}
	}
	if _, ok := tables["server_settings"]; ok {
		var v string
		err := tx.QueryRowContext(ctx, "SELECT value FROM server_settings WHERE field = 'schema_version'").Scan(&v)
		switch {
		case errors.Is(err, sql.ErrNoRows):
		case err != nil:
			return st, classify(ctx, err)
		default:
			if st.version, err = strconv.Atoi(v); err != nil {
				return st, fmt.Errorf("schema_version is %q, not a number", v)
			}
		}
	}
	return st, nil
}

// mayUnseal refuses while something is stored that MogileFS would misread.
func mayUnseal(ctx context.Context, tx *sql.Tx) error {
	for _, c := range []struct{ query, what string }{
		{"SELECT count(*) FROM host WHERE hostip LIKE '%:%' OR altip LIKE '%:%'", "hosts with an IPv6 address"},
		{"SELECT count(*) FROM class WHERE hashtype > 2", "classes with a hash that MogileFS lacks"},
		{"SELECT count(*) FROM (SELECT 1 FROM checksum WHERE hashtype > 2 LIMIT 1)", "checksums that MogileFS lacks"},
		{"SELECT count(*) FROM class WHERE replpolicy LIKE '%ErasureCode%'", "classes with erasure coding"},
		{"SELECT count(*) FROM (SELECT 1 FROM file WHERE length(dkey) > 255 LIMIT 1)", "keys over 255 characters"},
		{"SELECT count(*) FROM (SELECT 1 FROM copy_to_delete WHERE what NOT IN ('fid', 'bad') LIMIT 1)", "shards that wait for their deletion"},
	} {
		var n int
		if err := tx.QueryRowContext(ctx, c.query).Scan(&n); err != nil {
			return classify(ctx, err)
		}
		if n > 0 {
			return fmt.Errorf("cannot unseal: %s are in use", c.what)
		}
	}
	var n int
	if err := tx.QueryRowContext(ctx, "SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name = 'ec'").Scan(&n); err != nil || n == 0 {
		return classify(ctx, err)
	}
	if err := tx.QueryRowContext(ctx, "SELECT count(*) FROM (SELECT 1 FROM ec LIMIT 1)").Scan(&n); err != nil {
		return classify(ctx, err)
	}
	if n > 0 {
		return errors.New("cannot unseal: files are kept in shards")
	}
	return nil
}

// checkVersion refuses a database that Migrate has not seen, or not of late.
// While it is open, nobody can change its version.
func (s *Store) checkVersion(ctx context.Context) error {
	tx, err := s.readers.BeginTx(ctx, &sql.TxOptions{ReadOnly: true})
	if err != nil {
		return fmt.Errorf("open %s: %w", s.o.Path, classify(ctx, err))
	}
	defer tx.Rollback() // nothing was written
	st, err := readState(ctx, tx)
	if err != nil {
		return fmt.Errorf("open %s: %w", s.o.Path, err)
	}
	todo, err := plan(st, schema.MigrateOptions{KeepVersion: s.o.AnyVersion}, nil)
	if err != nil {
		return fmt.Errorf("open %s: %w", s.o.Path, err)
	}
	if len(todo.Steps) > 0 {
		return fmt.Errorf("%s lacks (parts of) the schema: run `mogile migrate --dsn sqlite:%s` first", s.o.Path, s.o.Path)
	}
	s.sealed = st.version == schema.VersionSealed
	return nil
}
