package schema

import (
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
)

// Engines that a DSN can name.
const (
	EnginePostgres = "postgres"
	EngineSQLite   = "sqlite"
)

// DSN names a database.
type DSN struct {
	Engine   string // EnginePostgres or EngineSQLite
	Postgres string // EnginePostgres: a connection string for pgx, secrets included
	Path     string // EngineSQLite: the database file
}

// ParseDSN reads the name of a database in one of these forms. Scheme, "DBI"
// and driver may be in any letter case.
//
//	postgres://user:password@host:port/dbname?sslmode=disable   (or postgresql://)
//	host=db1 port=5432 dbname=mogilefs user=mogile password=secret
//	DBI:Pg:dbname=mogilefs;host=db1;port=5432                    (as MogileFS has it)
//	sqlite:PATH
//	DBI:SQLite:PATH, DBI:SQLite:dbname=PATH
//
// User and password are used where the DSN names none; SQLite needs none.
// Connection options of pgx are allowed in the PostgreSQL forms, such as
// default_query_exec_mode.
func ParseDSN(dsn, user, password string) (DSN, error) {
	switch scheme, rest, _ := strings.Cut(dsn, ":"); {
	case strings.TrimSpace(dsn) == "":
		return DSN{}, errors.New("no database is named: give a DSN such as postgres://mogile@db1/mogilefs or sqlite:/var/lib/mogile/mogile.db")
	case strings.ContainsRune(dsn+user+password, 0):
		return DSN{}, errors.New("the DSN has a NUL character in it")
	case strings.EqualFold(scheme, "postgres"), strings.EqualFold(scheme, "postgresql"):
		return parseURL("postgres:"+rest, user, password)
	case strings.EqualFold(scheme, "sqlite"):
		return sqliteDSN(strings.TrimPrefix(rest, "//"))
	case strings.EqualFold(scheme, "DBI"):
		return parseDBI(rest, user, password)
	case strings.EqualFold(scheme, "mysql"):
		return DSN{}, errMySQL
	}
	pairs, err := parsePairs(dsn)
	if err != nil {
		return DSN{}, fmt.Errorf("DSN: %w", err)
	}
	return pairsDSN(pairs, user, password), nil
}

// errMySQL refuses MySQL, and says what to do instead.
var errMySQL = errors.New("MySQL is not supported: copy the MogileFS database to PostgreSQL " +
	"(pgloader does, keeping table and column names), then name that as postgres://USER@HOST/DBNAME")

// parseDBI reads what follows "DBI:".
func parseDBI(s, user, password string) (DSN, error) {
	driver, attributes, ok := strings.Cut(s, ":")
	switch {
	case strings.EqualFold(driver, "mysql"):
		return DSN{}, errMySQL
	case !ok:
		return DSN{}, errors.New("DSN: DBI:DRIVER: wants a second colon, as in DBI:Pg:dbname=mogilefs;host=db1")
	case strings.EqualFold(driver, "Pg"):
		pairs, err := dbiPairs(attributes)
		if err != nil {
			return DSN{}, fmt.Errorf("DSN: %w", err)
		}
		return pairsDSN(pairs, user, password), nil
	case strings.EqualFold(driver, "SQLite"):
		for _, name := range []string{"dbname=", "database=", "db="} {
			if path, ok := strings.CutPrefix(attributes, name); ok {
				return sqliteDSN(path)
			}
		}
		return sqliteDSN(attributes)
	}
	return DSN{}, fmt.Errorf("DSN: the database driver %q is not supported; Pg and SQLite are", driver)
}

func sqliteDSN(path string) (DSN, error) {
	if path == "" {
		return DSN{}, errors.New("DSN: sqlite: wants the path of a file after the colon")
	}
	return DSN{Engine: EngineSQLite, Path: path}, nil
}

// parseURL reads a postgres: URL.
func parseURL(s, user, password string) (DSN, error) {
	u, err := url.Parse(s)
	if err != nil {
		// The error repeats the URL, with its password.
		return DSN{}, errors.New("DSN: not a URL: characters such as @, /, # and % in a password must be escaped, as in %40")
	}
	if u.Opaque != "" {
		return DSN{}, errors.New("DSN: postgres: wants two slashes, as in postgres://mogile@db1/mogilefs")
	}
	query := u.Query()
	if u.User == nil {
		u.User = url.User("")
	}
	name := u.User.Username()
	secret, hasSecret := u.User.Password()
	if name == "" && !query.Has("user") {
		name = user
	}
	if !hasSecret && !query.Has("password") && password != "" {
		secret, hasSecret = password, true
	}
	switch {
	case hasSecret:
		u.User = url.UserPassword(name, secret)
	case name != "":
		u.User = url.User(name)
	default:
		u.User = nil
	}
	return DSN{Engine: EnginePostgres, Postgres: u.String()}, nil
}

// pair is one key=value of a connection string.
type pair struct{ key, value string }

// parsePairs reads libpq's form: key = value, separated by blanks; values may
// be in single quotes, in which \ escapes.
func parsePairs(s string) ([]pair, error) {
	const blanks = " \t\n\r\f\v"
	var pairs []pair
	for s = strings.TrimLeft(s, blanks); s != ""; s = strings.TrimLeft(s, blanks) {
		key, rest, ok := strings.Cut(s, "=")
		key = strings.TrimRight(key, blanks)
		if !ok || !isPairKey(key) {
			return nil, errors.New("neither a URL (postgres://, sqlite:), nor DBI:…, nor key=value pairs")
		}
		value, rest, err := pairValue(strings.TrimLeft(rest, blanks), blanks)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", key, err)
		}
		pairs, s = append(pairs, pair{key, value}), rest
	}
	return pairs, nil
}

// pairValue reads a value and returns what follows it.
func pairValue(s, blanks string) (value, rest string, err error) {
	quoted := strings.HasPrefix(s, "'")
	if quoted {
		s = s[1:]
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == '\\':
			if i++; i == len(s) {
				return "", "", errors.New("ends in a backslash")
			}
			b.WriteByte(s[i])
		case quoted && c == '\'':
			return b.String(), s[i+1:], nil
		case !quoted && strings.IndexByte(blanks, c) >= 0:
			return b.String(), s[i:], nil
		default:
			b.WriteByte(c)
		}
	}
	if quoted {
		return "", "", errors.New("the closing quote is missing")
	}
	return b.String(), "", nil
}

// dbiPairs reads DBD::Pg's form: key=value, separated by semicolons.
func dbiPairs(s string) ([]pair, error) {
	var pairs []pair
	for part := range strings.SplitSeq(s, ";") {
		if part = strings.TrimSpace(part); part == "" {
			continue
		}
		key, value, ok := strings.Cut(part, "=")
		key = strings.ToLower(strings.TrimSpace(key))
		if !ok || !isPairKey(key) {
			return nil, errors.New("DBI:Pg: wants key=value pairs separated by semicolons, as in dbname=mogilefs;host=db1")
		}
		if key == "db" || key == "database" {
			key = "dbname"
		}
		pairs = append(pairs, pair{key, strings.TrimSpace(value)})
	}
	return pairs, nil
}

func isPairKey(s string) bool {
	for i := range len(s) {
		if c := s[i]; c != '_' && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') {
			return false
		}
	}
	return s != ""
}

func pairsDSN(pairs []pair, user, password string) DSN {
	for _, p := range []pair{{"user", user}, {"password", password}} {
		if p.value != "" && !slices.ContainsFunc(pairs, func(q pair) bool { return q.key == p.key }) {
			pairs = append(pairs, p)
		}
	}
	return DSN{Engine: EnginePostgres, Postgres: formatPairs(pairs)}
}

// formatPairs is the inverse of parsePairs.
func formatPairs(pairs []pair) string {
	escape := strings.NewReplacer(`\`, `\\`, `'`, `\'`)
	words := make([]string, len(pairs))
	for i, p := range pairs {
		words[i] = p.key + "='" + escape.Replace(p.value) + "'"
	}
	return strings.Join(words, " ")
}

// elided stands for a secret.
const elided = "xxxxx"

// isSecret reports whether the value of a connection option must not be shown.
func isSecret(key string) bool { return strings.HasSuffix(strings.ToLower(key), "password") }

// String is the DSN for people, without its secrets.
func (d DSN) String() string {
	if d.Engine == EngineSQLite {
		return "sqlite:" + d.Path
	}
	if strings.HasPrefix(d.Postgres, "postgres:") {
		u, err := url.Parse(d.Postgres)
		if err != nil {
			return "postgres://" + elided
		}
		query := u.Query()
		for key, values := range query {
			if isSecret(key) {
				for i := range values {
					values[i] = elided
				}
			}
		}
		u.RawQuery = query.Encode()
		return u.Redacted()
	}
	pairs, err := parsePairs(d.Postgres)
	if err != nil {
		return elided
	}
	for i, p := range pairs {
		if isSecret(p.key) {
			pairs[i].value = elided
		}
	}
	return formatPairs(pairs)
}
