package mogdbsetup

import (
	"bytes"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/mogile/mogile/schema/postgres/pgtest"
)

func TestMain(m *testing.M) { os.Exit(pgtest.Main(m)) }

func TestParse(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		args string
		want Options
		dsn  string
	}{
		{"--type=Postgres", Options{Type: "postgres", Host: "localhost", Name: "mogilefs", User: "mogile", RootUser: "postgres"},
			"postgres://mogile@localhost/mogilefs"},
		{"--type=Postgres --dbhost=db --dbport=5433 --dbname=m --dbuser=u --dbpass=p/w@ --dbrootuser=admin --dbrootpass=r --yes --verbose --noschemabump",
			Options{Type: "postgres", Host: "db", Port: 5433, Name: "m", User: "u", Password: "p/w@", RootUser: "admin", RootPassword: "r", Yes: true, Verbose: true, NoSchemaBump: true},
			"postgres://u:p%2Fw%40@db:5433/m"},
		{"--type postgres --dbpassword p --dbrootpassword r --dbhost ::1", Options{Type: "postgres", Host: "::1", Name: "mogilefs", User: "mogile", Password: "p", RootUser: "postgres", RootPassword: "r"},
			"postgres://mogile:p@[::1]/mogilefs"},
		{"--type=Postgres --dbhost=/var/run/postgresql --dbport=5433", Options{Type: "postgres", Host: "/var/run/postgresql", Port: 5433, Name: "mogilefs", User: "mogile", RootUser: "postgres"},
			"postgres://mogile@/mogilefs?host=%2Fvar%2Frun%2Fpostgresql&port=5433"},
		{"--type=SQLite --dbname=/var/lib/m.db", Options{Type: "sqlite", Host: "localhost", Name: "/var/lib/m.db", User: "mogile"}, "sqlite:/var/lib/m.db"},
		{"--type=SQLite --plugins=FilePaths", Options{Type: "sqlite", Host: "localhost", Name: "mogilefs", User: "mogile", Warnings: []string{"--plugins is ignored: there are no plugins"}}, "sqlite:mogilefs"},
	} {
		got, err := Parse(strings.Fields(c.args))
		if err != nil {
			t.Errorf("%s: %v", c.args, err)
			continue
		}
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%s: -want +got\n%s", c.args, diff)
		}
		if got.DSN() != c.dsn {
			t.Errorf("%s: %s, want %s", c.args, got.DSN(), c.dsn)
		}
	}
	if got, err := Parse([]string{"--help"}); err != nil || !got.Help {
		t.Errorf("--help: %+v, %v", got, err)
	}
}

func TestParseRefuses(t *testing.T) {
	t.Parallel()
	for args, want := range map[string]string{
		"":                               "the database type is MySQL (which is the default), and that is not supported: say --type=Postgres",
		"--type=MySQL":                   "say --type=Postgres or --type=SQLite",
		"--type=Oracle":                  "use Postgres or SQLite",
		"--type=Postgres --dbport=x":     `--dbport "x": use a port`,
		"--type=Postgres --dbport=70000": "use a port",
		"--type=Postgres --dbname=":      "--dbname is empty",
		"--type=Postgres extra":          `unexpected argument "extra"`,
		"--dbroot=x":                     "ambiguous (dbrootpassword, dbrootuser)",
		"--frob":                         "unknown option: --frob",
	} {
		if _, err := Parse(strings.Fields(args)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", args, err, want)
		}
	}
}

// setup runs the whole and returns what it printed.
func setup(t *testing.T, o Options, stdin string) (string, error) {
	t.Helper()
	var out bytes.Buffer
	err := Setup(t.Context(), o, strings.NewReader(stdin), &out, &out)
	return out.String(), err
}

func TestSQLite(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "m.db")
	o := Options{Type: typeSQLite, Name: path, Verbose: true}
	for _, no := range []string{"", "\n", "n\n", "yesterday\n"} {
		if out, err := setup(t, o, no); err == nil || !strings.Contains(out, "Continue? [N/y]") {
			t.Errorf("%q: %v, %s", no, err, out)
		}
		if _, err := os.Stat(path); err == nil {
			t.Fatalf("%q: the database is made", no)
		}
	}
	out, err := setup(t, o, "Y\n")
	if err != nil || !strings.Contains(out, "done: set schema_version 17") || !strings.Contains(out, "Done. The schema's version is 17.") {
		t.Errorf("%v\n%s", err, out)
	}
	o.Yes = true
	if out, err = setup(t, o, ""); err != nil || out != "Schema already up-to-date at version 17.\n" {
		t.Errorf("again: %v\n%s", err, out)
	}
}

// TestPostgres makes database and user on a server that has neither, and finds
// them the second time.
func TestPostgres(t *testing.T) {
	t.Parallel()
	server, err := url.Parse(pgtest.DSN(t))
	if err != nil {
		t.Fatal(err)
	}
	password, _ := server.User.Password()
	o, err := Parse([]string{"--type=Postgres", "--dbhost=" + server.Hostname(), "--dbport=" + server.Port(), "--dbname=mogile \"fs\"", "--dbuser=mo'gile", `--dbpass=it's \a "secret`,
		"--dbrootuser=" + server.User.Username(), "--dbrootpassword=" + password, "--yes", "--verbose"})
	if err != nil {
		t.Fatal(err)
	}
	out, err := setup(t, o, "")
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, want := range []string{"done: create database", "done: create user", "done: make mo'gile the owner", "done: set schema_version to 17", "The schema's version is 17."} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	conn, err := pgx.Connect(t.Context(), o.DSN())
	if err != nil {
		t.Fatal(err)
	}
	var owner, encoding, version string
	err = conn.QueryRow(t.Context(), `SELECT pg_get_userbyid(datdba), pg_encoding_to_char(encoding), (SELECT value FROM server_settings WHERE field = 'schema_version')
		FROM pg_database WHERE datname = current_database()`).Scan(&owner, &encoding, &version)
	if err != nil || owner != "mo'gile" || encoding != "UTF8" || version != "17" {
		t.Errorf("owner %s, encoding %s, version %s, %v", owner, encoding, version, err)
	}
	if err := conn.Close(t.Context()); err != nil {
		t.Error(err)
	}
	o.Verbose = false
	if out, err = setup(t, o, ""); err != nil || out != "Schema already up-to-date at version 17.\n" {
		t.Errorf("again: %v\n%s", err, out)
	}

	// The user is there, a second database is not.
	o.Name, o.Verbose, o.NoSchemaBump = "second", true, true
	if out, err = setup(t, o, ""); err != nil || !strings.Contains(out, "create user mo'gile: it is there") || !strings.Contains(out, "The schema's version is 0.") {
		t.Errorf("a second database: %v\n%s", err, out)
	}

	o.Name, o.RootUser = "third", "nobody by this name"
	if out, err = setup(t, o, ""); err == nil || !strings.Contains(err.Error(), "as mo'gile") || !strings.Contains(err.Error(), "as nobody by this name") || strings.Contains(err.Error(), "secret") {
		t.Errorf("nobody can make it: %v\n%s", err, out)
	}
}
