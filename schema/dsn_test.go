package schema

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseDSN(t *testing.T) {
	t.Parallel()
	pg := func(s string) DSN { return DSN{Engine: EnginePostgres, Postgres: s} }
	lite := func(s string) DSN { return DSN{Engine: EngineSQLite, Path: s} }
	for _, c := range []struct {
		dsn, user, password string
		want                DSN
		shown               string
	}{
		{dsn: "postgres://mogile:s3cret@db1:5433/mogilefs?sslmode=disable",
			want:  pg("postgres://mogile:s3cret@db1:5433/mogilefs?sslmode=disable"),
			shown: "postgres://mogile:xxxxx@db1:5433/mogilefs?sslmode=disable"},
		{dsn: "PostgreSQL://db1/mogilefs", user: "mogile", password: "p@ss/word",
			want:  pg("postgres://mogile:p%40ss%2Fword@db1/mogilefs"),
			shown: "postgres://mogile:xxxxx@db1/mogilefs"},
		{dsn: "postgres://own@db1/m", user: "other", want: pg("postgres://own@db1/m"), shown: "postgres://own@db1/m"},
		{dsn: "postgres://db1/m?password=hush&user=u", user: "other", password: "none",
			want: pg("postgres://db1/m?password=hush&user=u"), shown: "postgres://db1/m?password=xxxxx&user=u"},
		{dsn: "postgres://a:1,b:2/m", want: pg("postgres://a:1,b:2/m"), shown: "postgres://a:1,b:2/m"},
		{dsn: "postgres:///m?host=/run/postgresql", want: pg("postgres:///m?host=/run/postgresql"),
			shown: "postgres:///m?host=%2Frun%2Fpostgresql"},
		{dsn: `host=db1 dbname = 'mogile fs' password='it\'s' `, user: "mogile",
			want:  pg(`host='db1' dbname='mogile fs' password='it\'s' user='mogile'`),
			shown: `host='db1' dbname='mogile fs' password='xxxxx' user='mogile'`},
		{dsn: "DBI:Pg:dbname=mogilefs;host=db1;port=5432", user: "mogile", password: "x y",
			want:  pg(`dbname='mogilefs' host='db1' port='5432' user='mogile' password='x y'`),
			shown: `dbname='mogilefs' host='db1' port='5432' user='mogile' password='xxxxx'`},
		{dsn: "dbi:PG:DB=m; host=/tmp ;", want: pg(`dbname='m' host='/tmp'`), shown: `dbname='m' host='/tmp'`},
		{dsn: "DBI:Pg:", user: "mogile", want: pg(`user='mogile'`), shown: `user='mogile'`},
		{dsn: "sqlite:/var/lib/mogile.db", user: "mogile", want: lite("/var/lib/mogile.db"), shown: "sqlite:/var/lib/mogile.db"},
		{dsn: "sqlite:///var/lib/mogile.db", want: lite("/var/lib/mogile.db"), shown: "sqlite:/var/lib/mogile.db"},
		{dsn: "SQLite:rel.db", want: lite("rel.db"), shown: "sqlite:rel.db"},
		{dsn: "DBI:SQLite:/a b.db", want: lite("/a b.db"), shown: "sqlite:/a b.db"},
		{dsn: "dbi:sqlite:dbname=x.db", want: lite("x.db"), shown: "sqlite:x.db"},
	} {
		got, err := ParseDSN(c.dsn, c.user, c.password)
		if err != nil {
			t.Errorf("ParseDSN(%q): %v", c.dsn, err)
			continue
		}
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("ParseDSN(%q): -want +got\n%s", c.dsn, diff)
		}
		if got.String() != c.shown {
			t.Errorf("ParseDSN(%q) is shown as %q, want %q", c.dsn, got, c.shown)
		}
	}
}

func TestParseDSNRefuses(t *testing.T) {
	t.Parallel()
	for dsn, want := range map[string]string{
		"":                               "no database is named",
		"  ":                             "no database is named",
		"DBI:mysql:mogilefs":             "PostgreSQL",
		"dbi:MySQL:database=m;host=h":    "pgloader",
		"mysql://h/m":                    "MySQL is not supported",
		"DBI:Oracle:x":                   `"Oracle"`,
		"DBI:Pg":                         "second colon",
		"DBI:Pg:mogilefs":                "key=value",
		"sqlite:":                        "path",
		"postgres:db1":                   "two slashes",
		"postgres://u:hush%zz@h/m":       "escaped",
		"host=db1 password='hush":        "quote",
		"host=db1 password=hush\\":       "backslash",
		"/var/lib/mogile.db":             "sqlite:",
		"host=db1\x00":                   "NUL",
		"oracle://h/m":                   "neither",
		"host=db1 a-b=c password='hush'": "neither",
	} {
		_, err := ParseDSN(dsn, "", "")
		if err == nil {
			t.Errorf("ParseDSN(%q) is accepted", dsn)
			continue
		}
		if !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "hush") {
			t.Errorf("ParseDSN(%q): %q, want one with %q and no secret", dsn, err, want)
		}
	}
}

func FuzzParseDSN(f *testing.F) {
	for _, dsn := range []string{
		"postgres://mogile:x@db1:5432/mogilefs?sslmode=disable", "host=db1 dbname='a b' port = 1",
		"DBI:Pg:dbname=mogilefs;host=db1", "dbi:sqlite:x", "sqlite:///x", "DBI:mysql:m", `user='\\\'' password=\ `,
		"postgres://h/m?password=a&sslpassword=b",
	} {
		f.Add(dsn, "mogile", "k3pt-s3cret")
	}
	f.Fuzz(func(t *testing.T, dsn, user, password string) {
		d, err := ParseDSN(dsn, user, password)
		if err != nil {
			return
		}
		const secret = "k3pt-s3cret"
		if password == secret && !strings.Contains(dsn, secret) && !strings.Contains(user, secret) && strings.Contains(d.String(), secret) {
			t.Errorf("%q shows the password: %s", dsn, d)
		}
		if d.Engine != EnginePostgres {
			return
		}
		again, err := ParseDSN(d.Postgres, user, password)
		if err != nil {
			t.Fatalf("%q became %q, which is refused: %v", dsn, d.Postgres, err)
		}
		if again != d {
			t.Errorf("%q became %q, and that %q", dsn, d.Postgres, again.Postgres)
		}
	})
}
