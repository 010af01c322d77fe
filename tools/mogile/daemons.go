package mogile

import (
	"errors"
	"fmt"

	"github.com/urfave/cli/v2"

	"github.com/mogile/mogile/schema"
	"github.com/mogile/mogile/schema/open"
)

func databaseFlags() []cli.Flag {
	return []cli.Flag{
		stringFlag("dsn", "", "the namespace's database: postgres://…, key=value, sqlite:PATH, or MogileFS's DBI:Pg:…, DBI:SQLite:…"),
		stringFlag("db-user", "", "database user, where the DSN names none"),
		stringFlag("db-pass", "", "database password, where the DSN names none; better in MOGILE_DB_PASS"),
		stringFlag("session-dsn", "", "a direct connection to the database for locks, where --dsn goes through a pooler such as PgBouncer"),
		intFlag("db-conns", 0, "most connections to the database at once; 0: as many as the store thinks right"),
	}
}

func databaseOptions(c *cli.Context) (open.Options, error) {
	if c.String("dsn") == "" {
		return open.Options{}, usage("--dsn (or MOGILE_DSN) is needed: for example postgres://mogile@localhost/mogile, or sqlite:/var/lib/mogile/namespace.db")
	}
	return open.Options{
		DSN:        c.String("dsn"),
		User:       c.String("db-user"),
		Password:   c.String("db-pass"),
		SessionDSN: c.String("session-dsn"),
		MaxConns:   c.Int("db-conns"),
	}, nil
}

// orNone translates a flag, in which 0 is none, into an option, in which 0 is
// the default and less is none.
func orNone(n int) int {
	if n == 0 {
		return -1
	}
	return n
}

// dsnForLog is the DSN without its secrets.
func dsnForLog(o open.Options) string {
	d, err := schema.ParseDSN(o.DSN, o.User, o.Password)
	if err != nil {
		return "invalid"
	}
	return d.String()
}

func migrateCommand() *cli.Command {
	flags := append(databaseFlags(),
		boolFlag("dry-run", "say what would be done, and change nothing"),
		boolFlag("seal", "set schema version 18: Perl trackers refuse to start from then on, and what they would misread is permitted"),
		&cli.BoolFlag{Name: "unseal", Aliases: []string{"unsealed"}, EnvVars: env("unseal"), Usage: "set (or keep) schema version 17, so that Perl trackers can run on the database"},
		boolFlag("widen", "make fid columns of 32 bits, as old databases have them, 64 bits wide: nobody can use their tables meanwhile"),
		boolFlag("yes", "do not ask before sealing"),
	)
	return &cli.Command{
		Name:  "migrate",
		Usage: "create, upgrade, seal or unseal the namespace's schema",
		Description: "New databases are sealed (schema version 18) unless --unsealed is given. A database that\n" +
			"MogileFS made stays at version 17, so that its Perl trackers can go on running, until --seal.",
		Flags:  append(flags, logFlags("info")...),
		Action: runMigrate,
	}
}

func runMigrate(c *cli.Context) error {
	if err := noArguments(c); err != nil {
		return err
	}
	if c.Bool("seal") && c.Bool("unseal") {
		return usage("--seal and --unseal exclude each other")
	}
	dbo, err := databaseOptions(c)
	if err != nil {
		return err
	}
	if dbo.Log, err = logger(c); err != nil {
		return err
	}
	o := schema.MigrateOptions{DryRun: c.Bool("dry-run"), Seal: c.Bool("seal"), Unseal: c.Bool("unseal"), Widen: c.Bool("widen")}
	if o.Seal && !o.DryRun && !c.Bool("yes") {
		if err := confirmSeal(c); err != nil {
			return err
		}
	}
	m, err := open.Migrate(c.Context, dbo, o)
	if err != nil {
		return err
	}
	did := "done"
	if o.DryRun {
		did = "would do"
	}
	for _, s := range m.Steps {
		fmt.Fprintf(c.App.Writer, "%s: %s\n", did, s)
	}
	for _, w := range m.Warnings {
		fmt.Fprintf(c.App.ErrWriter, "warning: %s\n", w)
	}
	if len(m.Steps) == 0 {
		fmt.Fprintln(c.App.Writer, "nothing to do")
	}
	fmt.Fprintf(c.App.Writer, "schema version %d (%s)\n", m.Version, sealed(m.Version))
	return nil
}

func sealed(version int) string {
	if version >= schema.VersionSealed {
		return "sealed: Perl trackers refuse to start on it"
	}
	return "open: Perl trackers may run on it too"
}

// confirmSeal asks before Perl trackers are locked out.
func confirmSeal(c *cli.Context) error {
	fmt.Fprint(c.App.ErrWriter, "Sealing locks MogileFS's Perl trackers out of this database: stop them first (and keep them\n"+
		"stopped), together with scripts that write to it. `mogile migrate --unseal` works as long as\n"+
		"nothing that needs the seal is in use.\nSeal it? [y/N] ")
	var answer string
	if _, err := fmt.Fscanln(c.App.Reader, &answer); err != nil || (answer != "y" && answer != "yes") {
		return errors.New("not sealed: nothing was changed (--yes seals without asking)")
	}
	return nil
}
