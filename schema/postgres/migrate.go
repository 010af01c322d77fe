package postgres

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/mogile/mogile/schema"
)

//go:embed migrations/*.sql
var migrations embed.FS

// ownVersion is the version of Mogile's own tables that this code needs and
// makes, as stored in mogile_meta.
const ownVersion = 3

// sealMigration is the file whose steps only sealed databases get.
const sealMigration = "0006_seal.sql"

// widenMigration is the file whose steps are done on demand only.
const widenMigration = "0007_widen.sql"

// migration is one file of migrations.
type migration struct {
	name         string
	concurrently bool // each step outside a transaction
	steps        []step
}

// step is one change, made where it is needed.
type step struct {
	text   string // what it does, for people
	needed string // an expression of SQL
	sql    string
}

// parseMigration reads a file: steps that begin with a line "-- step: text",
// followed by "-- needed: expression" and statements.
func parseMigration(name, text string) (migration, error) {
	m := migration{name: name}
	head, rest, _ := strings.Cut(text, "-- step: ")
	m.concurrently = strings.Contains(head, "-- concurrently:")
	for part := range strings.SplitSeq(rest, "-- step: ") {
		what, body, _ := strings.Cut(part, "\n")
		needed, sql, _ := strings.Cut(body, "\n")
		needed, ok := strings.CutPrefix(needed, "-- needed: ")
		if !ok || strings.TrimSpace(sql) == "" {
			return m, fmt.Errorf("migration %s: step %q has no condition or no statements", name, what)
		}
		m.steps = append(m.steps, step{what, needed, sql})
	}
	return m, nil
}

// readMigrations reads them all, in order. fidType replaces {{fid}}.
func readMigrations(fidType string) ([]migration, error) {
	names, err := fs.Glob(migrations, "migrations/*.sql") // sorted
	if err != nil {
		return nil, err
	}
	var all []migration
	for _, name := range names {
		text, err := migrations.ReadFile(name)
		if err != nil {
			return nil, err
		}
		m, err := parseMigration(strings.TrimPrefix(name, "migrations/"), strings.ReplaceAll(string(text), "{{fid}}", fidType))
		if err != nil {
			return nil, err
		}
		all = append(all, m)
	}
	return all, nil
}

// migrator is a running migration.
type migrator struct {
	conn *pgx.Conn
	o    schema.MigrateOptions
	done schema.Migration
}

const (
	// lockPoll is how often a migration looks whether another has finished. It
	// must not wait inside a statement: a concurrent index waits for all of
	// those.
	lockPoll = 200 * time.Millisecond
	// migrateLockTimeout is how long a change waits for a table that is in use;
	// all others wait behind it.
	migrateLockTimeout = "10s"
)

// Migrate creates or upgrades the schema, and seals or unseals it. It may be
// repeated and interrupted, and runs beside working trackers. o.MaxConns and
// o.ClockOffset are ignored; it connects to o.SessionDSN if that is set.
func Migrate(ctx context.Context, o Options, mo schema.MigrateOptions) (schema.Migration, error) {
	if mo.Seal && mo.Unseal {
		return schema.Migration{}, errors.New("migrate: seal and unseal exclude each other")
	}
	config, err := sessionConfig(o)
	if err != nil {
		return schema.Migration{}, fmt.Errorf("migrate: %w", err)
	}
	conn, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		return schema.Migration{}, fmt.Errorf("migrate: %w", unavailableErr(err))
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), connectTimeout)
		defer cancel()
		_ = conn.Close(ctx) // what matters is committed
	}()
	m := &migrator{conn: conn, o: mo}
	if err := m.run(ctx); err != nil {
		if state(err) == stateLockTimeout {
			err = fmt.Errorf("a table was in use for longer than %s; run it again when there is less to do: %w", migrateLockTimeout, err)
		}
		return m.done, fmt.Errorf("migrate: %w", unavailableErr(err))
	}
	return m.done, nil
}

func (m *migrator) run(ctx context.Context) error {
	if !m.o.DryRun {
		if err := m.lock(ctx); err != nil {
			return err
		}
	}
	number, fresh, fidType, err := m.inspect(ctx)
	if err != nil {
		return err
	}
	switch {
	case number > schema.VersionSealed:
		return fmt.Errorf("schema_version is %d, and this program knows versions up to %d: use a newer Mogile", number, schema.VersionSealed)
	case number == schema.VersionSealed && m.o.Unseal:
		if err := m.mayUnseal(ctx); err != nil {
			return err
		}
	}
	sealed := number == schema.VersionSealed && !m.o.Unseal || m.o.Seal || fresh && !m.o.Unseal && !m.o.UnsealNew
	files, err := readMigrations(fidType)
	if err != nil {
		return err
	}
	for _, file := range files {
		if file.name == sealMigration && !sealed || file.name == widenMigration && !m.o.Widen {
			continue
		}
		if err := m.apply(ctx, file); err != nil {
			return fmt.Errorf("%s: %w", file.name, err)
		}
	}
	m.done.Version = schema.VersionOpen
	if sealed {
		m.done.Version = schema.VersionSealed
	}
	if m.o.KeepVersion {
		m.done.Version = number
	}
	if err := m.setVersions(ctx, number); err != nil {
		return err
	}
	return m.warn(ctx)
}

// lock waits until no other migration runs on the database. The lock ends with
// the connection.
func (m *migrator) lock(ctx context.Context) error {
	tick := time.NewTicker(lockPoll)
	defer tick.Stop()
	for {
		var taken bool
		if err := m.conn.QueryRow(ctx, `SELECT pg_try_advisory_lock($1::int4, $2::int4)`, schemaSpace, migrateLock).Scan(&taken); err != nil || taken {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for another migration: %w", ctx.Err())
		case <-tick.C:
		}
	}
}

// inspect finds out what is there: the schema's version (0 where there is no
// row), whether there is nothing at all, and the type of fids.
func (m *migrator) inspect(ctx context.Context) (version int, fresh bool, fidType string, err error) {
	var settings bool
	var fid *string
	var server int
	const look = `SELECT current_setting('server_version_num')::int, to_regclass('server_settings') IS NOT NULL,
		(SELECT format_type(atttypid, NULL) FROM pg_attribute WHERE attrelid = to_regclass('file') AND attname = 'fid')`
	if err := m.conn.QueryRow(ctx, look).Scan(&server, &settings, &fid); err != nil {
		return 0, false, "", err
	}
	if server < 120000 {
		return 0, false, "", fmt.Errorf("the server is PostgreSQL %d; Mogile needs 12 or later", server/10000)
	}
	if settings {
		var value *string
		if err := m.conn.QueryRow(ctx, `SELECT max(value) FROM server_settings WHERE field = 'schema_version'`).Scan(&value); err != nil {
			return 0, false, "", err
		}
		version = number(value)
	}
	fidType = "BIGINT"
	if fid != nil && *fid == "integer" {
		fidType = "INT"
	}
	return version, version == 0 && fid == nil, fidType, nil
}

// mayUnseal returns an error that names what Perl trackers would misread.
func (m *migrator) mayUnseal(ctx context.Context) error {
	var found []string
	for _, use := range []struct{ what, sql string }{
		{"keys over 255 characters", `SELECT EXISTS (SELECT FROM file WHERE length(dkey) > 255) OR EXISTS (SELECT FROM tempfile WHERE length(dkey) > 255)`},
		{"hosts with IPv6 addresses", `SELECT EXISTS (SELECT FROM host WHERE concat(hostip, altip, altmask) LIKE '%:%')`},
		{"classes with a hash type other than MD5 and SHA-1", `SELECT EXISTS (SELECT FROM class WHERE hashtype > 2)`},
		{"checksums other than MD5 and SHA-1", `SELECT EXISTS (SELECT FROM checksum WHERE hashtype > 2)`},
		{"classes with the policy ErasureCode", `SELECT EXISTS (SELECT FROM class WHERE replpolicy LIKE '%ErasureCode%')`},
		{"copies other than whole files that wait for their deletion", `SELECT EXISTS (SELECT FROM copy_to_delete WHERE what NOT IN ('fid', 'bad'))`},
	} {
		var used bool
		if err := m.conn.QueryRow(ctx, use.sql).Scan(&used); err != nil {
			return err
		}
		if used {
			found = append(found, use.what)
		}
	}
	var shards bool
	if err := m.conn.QueryRow(ctx, `SELECT to_regclass('ec') IS NOT NULL`).Scan(&shards); err != nil {
		return err
	}
	if shards { // the table is there; is there a row?
		if err := m.conn.QueryRow(ctx, `SELECT EXISTS (SELECT FROM ec)`).Scan(&shards); err != nil {
			return err
		}
	}
	if shards {
		found = append(found, "files that are kept in shards")
	}
	if len(found) > 0 {
		return fmt.Errorf("the database cannot be unsealed while it has %s", strings.Join(found, "; "))
	}
	return nil
}

// apply makes the changes of one file that are needed, in one transaction
// unless the file says otherwise.
func (m *migrator) apply(ctx context.Context, file migration) error {
	if file.concurrently {
		for _, s := range file.steps {
			if err := m.step(ctx, s); err != nil {
				return err
			}
		}
		return nil
	}
	return pgx.BeginFunc(ctx, m.conn, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, setLockTimeout, migrateLockTimeout); err != nil {
			return err
		}
		for _, s := range file.steps {
			if err := m.step(ctx, s); err != nil {
				return err
			}
		}
		return nil
	})
}

func (m *migrator) step(ctx context.Context, s step) error {
	var needed bool
	if err := m.conn.QueryRow(ctx, `SELECT `+s.needed).Scan(&needed); err != nil {
		return fmt.Errorf("%s: %w", s.text, err)
	}
	if !needed {
		return nil
	}
	if !m.o.DryRun {
		// By the simple protocol, which takes several statements.
		if err := m.conn.PgConn().Exec(ctx, s.sql).Close(); err != nil {
			return fmt.Errorf("%s: %w", s.text, err)
		}
	}
	m.done.Steps = append(m.done.Steps, s.text)
	return nil
}

// setVersions records the versions that the database has now.
func (m *migrator) setVersions(ctx context.Context, was int) error {
	if was != m.done.Version {
		m.done.Steps = append(m.done.Steps, fmt.Sprintf("set schema_version to %d", m.done.Version))
		if !m.o.DryRun {
			const set = `INSERT INTO server_settings (field, value) VALUES ('schema_version', $1) ON CONFLICT (field) DO UPDATE SET value = EXCLUDED.value`
			if _, err := m.conn.Exec(ctx, set, fmt.Sprint(m.done.Version)); err != nil {
				return err
			}
		}
	}
	if m.o.DryRun {
		return nil
	}
	const own = `INSERT INTO mogile_meta (name, value) VALUES ('version', $1) ON CONFLICT (name) DO UPDATE SET value = EXCLUDED.value
		WHERE mogile_meta.value::int < EXCLUDED.value::int`
	_, err := m.conn.Exec(ctx, own, fmt.Sprint(ownVersion))
	return err
}

// warn adds what the operator should know of.
func (m *migrator) warn(ctx context.Context) error {
	var highest, rows, size *int64
	const narrow = `SELECT greatest(c.reltuples, 0)::int8, pg_total_relation_size(c.oid) FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
		WHERE c.oid = to_regclass('file') AND a.attname = 'fid' AND a.atttypid = 'integer'::regtype`
	err := m.conn.QueryRow(ctx, narrow).Scan(&rows, &size)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := m.conn.QueryRow(ctx, `SELECT coalesce(max(fid), 0)::int8 FROM file`).Scan(&highest); err != nil {
		return err
	}
	if m.o.Widen { // a dry run
		m.done.Warnings = append(m.done.Warnings, fmt.Sprintf("widening file.fid rewrites about %d rows and %d MB, roughly %s in which nobody can use the table",
			*rows, *size>>20, rewriting(*size)))
		return nil
	}
	m.done.Warnings = append(m.done.Warnings, fmt.Sprintf(
		"file.fid is a 32-bit column: fids end at 2147483647, and %d of them (%d%%) are used. Widening the fid columns to BIGINT, by `mogile migrate --widen`, rewrites the tables while nobody can use them: "+
			"file has about %d rows and %d MB, which takes roughly %s",
		*highest, *highest*100/2147483647, *rows, *size>>20, rewriting(*size)))
	return nil
}

// rewriting is about how long a table of so many bytes, with its indexes, is
// locked while it is rewritten: at some 30 MB/s.
func rewriting(size int64) time.Duration { return time.Duration(1+size/(30<<20)) * time.Second }
