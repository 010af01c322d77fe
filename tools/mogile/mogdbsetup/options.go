package mogdbsetup

import (
	"fmt"
	"net"
	"net/url"
	"strconv"
	"strings"

	"github.com/mogile/mogile/tools/mogile/getopt"
)

// Options are the command line.
type Options struct {
	Type     string // postgres or sqlite
	Host     string
	Port     int // 0 is the server's usual one
	Name     string
	User     string
	Password string
	RootUser string
	// RootPassword belongs to RootUser, who makes database and user.
	RootPassword string
	Yes          bool // ask nothing
	Verbose      bool
	NoSchemaBump bool
	Help         bool
	Warnings     []string // what is ignored
}

const (
	typePostgres = "postgres"
	typeSQLite   = "sqlite"
)

// Parse reads a command line without the program's name. Errors are
// [*getopt.Error].
func Parse(args []string) (Options, error) {
	o := Options{Type: "mysql", Host: "localhost", Name: "mogilefs", User: "mogile"}
	given, operands, err := getopt.Parse([]getopt.Option{
		{Name: "type", Takes: getopt.Value},
		{Name: "dbhost", Takes: getopt.Value},
		{Name: "dbport", Takes: getopt.Value},
		{Name: "dbname", Takes: getopt.Value},
		{Name: "dbuser", Takes: getopt.Value},
		{Name: "dbpassword", Takes: getopt.Value},
		{Name: "dbrootuser", Takes: getopt.Value},
		{Name: "dbrootpassword", Takes: getopt.Value},
		{Name: "yes"},
		{Name: "verbose"},
		{Name: "noschemabump"},
		{Name: "plugins", Takes: getopt.Value},
		{Name: "help"},
	}, args)
	if err != nil {
		return o, err
	}
	for _, g := range given {
		switch g.Name {
		case "type":
			o.Type = strings.ToLower(g.Value)
		case "dbhost":
			o.Host = g.Value
		case "dbport":
			if o.Port, err = strconv.Atoi(g.Value); err != nil || o.Port < 1 || o.Port > 65535 {
				return o, &getopt.Error{Text: fmt.Sprintf("--dbport %q: use a port, from 1 to 65535", g.Value)}
			}
		case "dbname":
			o.Name = g.Value
		case "dbuser":
			o.User = g.Value
		case "dbpassword":
			o.Password = g.Value
		case "dbrootuser":
			o.RootUser = g.Value
		case "dbrootpassword":
			o.RootPassword = g.Value
		case "yes":
			o.Yes = true
		case "verbose":
			o.Verbose = true
		case "noschemabump":
			o.NoSchemaBump = true
		case "plugins":
			o.Warnings = append(o.Warnings, "--plugins is ignored: there are no plugins")
		case "help":
			return Options{Help: true}, nil
		}
	}
	if len(operands) > 0 {
		return o, &getopt.Error{Text: fmt.Sprintf("unexpected argument %q", operands[0])}
	}
	switch o.Type {
	case "postgres", "postgresql", "pg":
		o.Type = typePostgres
		if o.RootUser == "" {
			o.RootUser = "postgres"
		}
	case typeSQLite:
	case "mysql":
		return o, &getopt.Error{Text: "the database type is MySQL (which is the default), and that is not supported: say --type=Postgres or --type=SQLite. " +
			"A MogileFS database in MySQL can be copied to PostgreSQL, with pgloader for example, keeping table and column names"}
	default:
		return o, &getopt.Error{Text: fmt.Sprintf("--type %s: use Postgres or SQLite", o.Type)}
	}
	if o.Name == "" {
		return o, &getopt.Error{Text: "--dbname is empty"}
	}
	return o, nil
}

// DSN names the database as the ordinary user connects to it.
func (o Options) DSN() string {
	if o.Type == typeSQLite {
		return "sqlite:" + o.Name
	}
	return o.postgresURL(o.User, o.Password, o.Name)
}

func (o Options) postgresURL(user, password, dbname string) string {
	u := url.URL{Scheme: "postgres", User: url.User(user), Path: "/" + dbname}
	if password != "" {
		u.User = url.UserPassword(user, password)
	}
	query := url.Values{}
	if strings.HasPrefix(o.Host, "/") { // the folder of a socket
		query.Set("host", o.Host)
	} else {
		u.Host = o.Host
		if strings.Contains(o.Host, ":") {
			u.Host = "[" + o.Host + "]"
		}
	}
	if o.Port != 0 {
		if u.Host == "" {
			query.Set("port", strconv.Itoa(o.Port))
		} else {
			u.Host = net.JoinHostPort(o.Host, strconv.Itoa(o.Port))
		}
	}
	u.RawQuery = query.Encode()
	return u.String()
}

// Help lists the options.
func Help() string {
	return `mogdbsetup makes MogileFS's database, or brings its tables up to date.

EXAMPLES:
   mogdbsetup --type=Postgres --dbhost=db --dbname=mogilefs --dbuser=mogile \
      --dbpass=secret --dbrootpass=secret2 --yes
   mogdbsetup --type=SQLite --dbname=/var/lib/mogile/namespace.db --yes

OPTIONS:
   --type TYPE              Postgres or SQLite; MogileFS's default, MySQL, is not supported
   --dbhost HOST            of the database; default localhost
   --dbport PORT            of the database; default the server's usual one
   --dbname NAME            of the database; default mogilefs; for SQLite, its file
   --dbuser USER            who owns it; default mogile
   --dbpassword PASSWORD    of that user
   --dbrootuser USER        who makes database and user where they are missing; default postgres
   --dbrootpassword PASSWORD
   --yes                    ask nothing
   --verbose                say each step
   --noschemabump           make the changes, and keep the schema's version
   --plugins NAMES          ignored
   --help

A database made so has schema version 17, which MogileFS's trackers can use too;
mogile migrate --seal shuts them out and permits what they would not understand.
`
}
