package mogile

import (
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/urfave/cli/v2"

	"github.com/mogile/mogile/schema"
	"github.com/mogile/mogile/schema/open"
	"github.com/mogile/mogile/storaged"
	"github.com/mogile/mogile/storaged/volume"
	"github.com/mogile/mogile/tracker"
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

func trackerCommand() *cli.Command {
	flags := append(databaseFlags(),
		&cli.StringSliceFlag{Name: "listen", Aliases: []string{"l"}, Value: cli.NewStringSlice("0.0.0.0:7001"), EnvVars: env("listen"), Usage: "`ADDR` for clients; may be given several times"},
		stringFlag("name", "", "this tracker's name among those on the database; empty: the host's name and the port"),
		intFlag("storage-mgmt-port", 7501, "side-channel port of the storage daemons, the same on all hosts; 0: none"),
		intFlag("query-jobs", 20, "requests worked on at once"),
		intFlag("replicate-jobs", 4, "replicate workers"),
		intFlag("delete-jobs", 1, "delete workers"),
		intFlag("min-free-space", 100, "MiB; devices with less get no new files"),
		intFlag("default-mindevcount", 2, "mindevcount of the class default where it has no row"),
		durationFlag("node-timeout", 2*time.Second, "how long a storage daemon may take to answer"),
		durationFlag("conn-timeout", 2*time.Second, "how long connecting to a storage daemon may take"),
		intFlag("conn-pool-size", 20, "connections to storage daemons"),
		boolFlag("repl-use-get-port", "replicate from the storage hosts' get port"),
		durationFlag("tempfile-age", time.Hour, "age at which an upload that was not closed is given up"),
		intFlag("max-conns", 10000, "client connections at once"),
	)
	return &cli.Command{
		Name:   "tracker",
		Usage:  "answer clients, choose devices, and keep files at their policy",
		Flags:  append(append(flags, statusFlags()...), logFlags("info")...),
		Action: runTracker,
	}
}

func runTracker(c *cli.Context) error {
	if err := noArguments(c); err != nil {
		return err
	}
	watchers := tracker.NewWatchers()
	log, err := logger(c, watchers)
	if err != nil {
		return err
	}
	dbo, err := databaseOptions(c)
	if err != nil {
		return err
	}
	dbo.Log = log
	statusListener, err := listenStatus(c.String("status-listen"))
	if err != nil {
		return err
	}
	store, err := open.Open(c.Context, dbo)
	if err != nil {
		return err
	}
	t, err := tracker.New(tracker.Options{
		Store:              store,
		Listen:             c.StringSlice("listen"),
		Name:               trackerName(c.String("name"), c.StringSlice("listen")),
		Version:            Version(),
		QueryJobs:          c.Int("query-jobs"),
		ReplicateJobs:      orNone(c.Int("replicate-jobs")),
		DeleteJobs:         orNone(c.Int("delete-jobs")),
		MinFreeMB:          int64(orNone(c.Int("min-free-space"))),
		DefaultMinDevCount: c.Int("default-mindevcount"),
		NodeTimeout:        c.Duration("node-timeout"),
		ConnTimeout:        c.Duration("conn-timeout"),
		ConnPoolSize:       c.Int("conn-pool-size"),
		StorageMgmtPort:    orNone(c.Int("storage-mgmt-port")),
		ReplUseGetPort:     c.Bool("repl-use-get-port"),
		TempfileAge:        c.Duration("tempfile-age"),
		MaxConns:           c.Int("max-conns"),
		Watchers:           watchers,
		Log:                log,
	})
	if err != nil {
		return errors.Join(err, store.Close())
	}
	log.Info().Str("dsn", dsnForLog(dbo)).Stringer("listen", t.Addrs()[0]).Str("version", Version()).Msg("tracker starts")
	err = runWithStatus(c.Context, t, statusListener, c.Bool("pprof"))
	log.Info().Msg("tracker stopped")
	return errors.Join(err, store.Close())
}

// orNone translates a flag, in which 0 is none, into an option, in which 0 is
// the default and less is none.
func orNone(n int) int {
	if n == 0 {
		return -1
	}
	return n
}

// trackerName is name, or the host's name and the port of the first address.
func trackerName(name string, listen []string) string {
	if name != "" {
		return name
	}
	host, err := os.Hostname()
	if err != nil {
		host = "tracker"
	}
	if len(listen) > 0 {
		if _, port, err := net.SplitHostPort(listen[0]); err == nil {
			return host + ":" + port
		}
	}
	return host
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
