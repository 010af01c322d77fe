package mogdbsetup

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/rs/zerolog"

	"github.com/mogile/mogile/schema"
	"github.com/mogile/mogile/schema/open"
)

// patience is how long the database may take to make a database or a user.
const patience = time.Minute

// Setup does what o says. It asks on stdout and reads answers from stdin, unless
// o.Yes.
func Setup(ctx context.Context, o Options, stdin io.Reader, stdout, stderr io.Writer) error {
	for _, w := range o.Warnings {
		fmt.Fprintln(stderr, "warning:", w)
	}
	d, err := schema.ParseDSN(o.DSN(), "", "")
	if err != nil {
		return err
	}
	if !o.Yes {
		fmt.Fprintf(stdout, "\nThis will attempt to setup or upgrade your MogileFS database.\nIt won't destroy existing data.\n\n   %s\n\nContinue? [N/y]: ", d)
		answer, err := bufio.NewReader(io.LimitReader(stdin, 1<<10)).ReadString('\n')
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		if a := strings.ToLower(strings.TrimSpace(answer)); a != "y" && a != "yes" {
			return errors.New("stopped on request; --yes asks nothing")
		}
	}
	say := func(format string, args ...any) {
		if o.Verbose {
			fmt.Fprintf(stdout, format+"\n", args...)
		}
	}
	if o.Type == typePostgres {
		if err := makeDatabase(ctx, o, say); err != nil {
			return err
		}
	}
	m, err := open.Migrate(ctx, open.Options{DSN: o.DSN(), Log: zerolog.Nop()}, schema.MigrateOptions{UnsealNew: true, KeepVersion: o.NoSchemaBump})
	if err != nil {
		return err
	}
	for _, s := range m.Steps {
		say("done: %s", s)
	}
	for _, w := range m.Warnings {
		fmt.Fprintln(stderr, "warning:", w)
	}
	if len(m.Steps) == 0 {
		fmt.Fprintf(stdout, "Schema already up-to-date at version %d.\n", m.Version)
		return nil
	}
	fmt.Fprintf(stdout, "Done. The schema's version is %d.\n", m.Version)
	return nil
}

// makeDatabase makes database and user on PostgreSQL, unless the user can
// connect to it already.
func makeDatabase(ctx context.Context, o Options, say func(string, ...any)) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	conn, asUser := pgx.Connect(ctx, o.postgresURL(o.User, o.Password, o.Name))
	if asUser == nil {
		return conn.Close(ctx)
	}
	say("cannot connect as %s: making database and user as %s", o.User, o.RootUser)
	root, err := pgx.Connect(ctx, o.postgresURL(o.RootUser, o.RootPassword, "postgres"))
	if err != nil {
		return fmt.Errorf("connect to %s as %s: %w\nand to make that database and user, as %s: %w", o.Name, o.User, asUser, o.RootUser, err)
	}
	defer func() { _ = root.Close(context.WithoutCancel(ctx)) }() // what it did is done
	name, user := pgx.Identifier{o.Name}.Sanitize(), pgx.Identifier{o.User}.Sanitize()
	for _, s := range []struct{ what, sql, tolerated string }{
		{"create database " + o.Name, "CREATE DATABASE " + name + " ENCODING 'UTF8' TEMPLATE template0", "42P04"},
		{"create user " + o.User, "CREATE ROLE " + user + " LOGIN PASSWORD " + literal(o.Password), "42710"},
		{"make " + o.User + " the owner", "ALTER DATABASE " + name + " OWNER TO " + user, ""},
	} {
		_, err := root.Exec(ctx, s.sql, pgx.QueryExecModeSimpleProtocol)
		e, ok := errors.AsType[*pgconn.PgError](err)
		switch {
		case err == nil:
			say("done: %s", s.what)
		case ok && s.tolerated != "" && e.Code == s.tolerated:
			say("%s: it is there", s.what)
		default:
			return fmt.Errorf("%s as %s: %w", s.what, o.RootUser, err)
		}
	}
	conn, err = pgx.Connect(ctx, o.postgresURL(o.User, o.Password, o.Name))
	if err != nil {
		return fmt.Errorf("the database is made, but %s cannot connect to it (is the password the one it had before, and does pg_hba.conf let it in?): %w", o.User, err)
	}
	return conn.Close(ctx)
}

// literal is s as a string in SQL, whatever standard_conforming_strings is.
func literal(s string) string {
	return " E'" + strings.NewReplacer(`\`, `\\`, `'`, `''`).Replace(s) + "'"
}
