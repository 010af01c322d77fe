package mogile

import (
	"errors"
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/urfave/cli/v2"

	"github.com/mogile/mogile/schema"
	"github.com/mogile/mogile/schema/open"
	"github.com/mogile/mogile/storaged"
	"github.com/mogile/mogile/storaged/volume"
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

func storagedCommand() *cli.Command {
	flags := []cli.Flag{
		stringFlag("docroot", "/var/mogdata", "`DIR` that holds the devices' folders, dev1, dev2, …"),
		stringFlag("http-listen", "0.0.0.0:7500", "`ADDR` for reading and writing files"),
		stringFlag("http-get-listen", "", "`ADDR` for reading only; empty: none"),
		stringFlag("mgmt-listen", "0.0.0.0:7501", "`ADDR` of the side channel"),
		&cli.StringSliceFlag{Name: "trackers", EnvVars: env("trackers"), Usage: "`ADDR,…` of the trackers"},
		stringFlag("durability", "fsync", "fsync: answer when the bytes are on disk; none: as MogileFS, when the system has them"),
		boolFlag("require-mount", "refuse a device folder that is not a mount point of its own"),
		intFlag("max-conns", 10000, "connections at once"),
		durationFlag("usage-interval", 10*time.Second, "how often the usage files are written"),
	}
	return &cli.Command{
		Name:   "storaged",
		Usage:  "serve the files of this host's devices",
		Flags:  append(append(flags, statusFlags()...), logFlags("info")...),
		Action: runStoraged,
	}
}

func runStoraged(c *cli.Context) error {
	if err := noArguments(c); err != nil {
		return err
	}
	log, err := logger(c)
	if err != nil {
		return err
	}
	durability, err := parseDurability(c.String("durability"))
	if err != nil {
		return err
	}
	statusListener, err := listenStatus(c.String("status-listen"))
	if err != nil {
		return err
	}
	d, err := storaged.New(storaged.Options{
		Docroot:       c.String("docroot"),
		HTTPListen:    c.String("http-listen"),
		GetListen:     c.String("http-get-listen"),
		MgmtListen:    c.String("mgmt-listen"),
		Trackers:      c.StringSlice("trackers"),
		Durability:    durability,
		RequireMount:  c.Bool("require-mount"),
		MaxConns:      c.Int("max-conns"),
		UsageInterval: c.Duration("usage-interval"),
		Log:           log,
	})
	if err != nil {
		return err
	}
	d.Registry().MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	log.Info().Str("docroot", c.String("docroot")).Stringer("http", d.HTTPAddr()).Stringer("mgmt", d.MgmtAddr()).
		Str("durability", c.String("durability")).Str("version", Version()).Msg("storage daemon starts")
	err = runWithStatus(c.Context, d, statusListener, c.Bool("pprof"))
	log.Info().Msg("storage daemon stopped")
	return err
}

func parseDurability(s string) (volume.Durability, error) {
	switch s {
	case "fsync":
		return volume.DurabilityFsync, nil
	case "none":
		return volume.DurabilityNone, nil
	}
	return 0, usage("--durability %q: use fsync or none", s)
}

func migrateCommand() *cli.Command {
	flags := append(databaseFlags(),
		boolFlag("dry-run", "say what would be done, and change nothing"),
		boolFlag("seal", "set schema version 18: Perl trackers refuse to start from then on, and what they would misread is permitted"),
		&cli.BoolFlag{Name: "unseal", Aliases: []string{"unsealed"}, EnvVars: env("unseal"), Usage: "set (or keep) schema version 17, so that Perl trackers can run on the database"},
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
	o := schema.MigrateOptions{DryRun: c.Bool("dry-run"), Seal: c.Bool("seal"), Unseal: c.Bool("unseal")}
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
