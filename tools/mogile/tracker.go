package mogile

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/schema/open"
	"github.com/mogile/mogile/tools/mogile/mogilefsd"
	"github.com/mogile/mogile/tools/mogile/process"
	"github.com/mogile/mogile/tracker"
)

// trackerCommand is `mogile tracker`, which says the warnings once it has a log.
func trackerCommand(warnings ...string) *cli.Command {
	flags := append(databaseFlags(),
		stringFlag("config", "", "`FILE` in the form of mogilefsd.conf; flags and variables beat what it says"),
		&cli.StringSliceFlag{Name: "listen", Aliases: []string{"l"}, Value: cli.NewStringSlice("0.0.0.0:7001"), EnvVars: env("listen"), Usage: "`ADDR` for clients; may be given several times"},
		stringFlag("name", "", "this tracker's name among those on the database; empty: the host's name and the port"),
		intFlag("storage-mgmt-port", 7501, "side-channel port of the storage daemons, the same on all hosts; 0: none"),
		intFlag("query-jobs", 200, "requests worked on at once"),
		intFlag("replicate-jobs", 16, "replicate workers: copies and moves made at once"),
		intFlag("copies-per-device", 4, "copies that a device is source or destination of at once"),
		stringFlag("replication-bandwidth", "", "`BYTES` a second of all copies of this tracker together, such as 20M; empty: any"),
		intFlag("delete-jobs", 1, "delete workers"),
		intFlag("fsck-jobs", 4, "ranges of files that fsck and scrub check at once"),
		intFlag("reaper-jobs", 1, "reaper workers, of which one works"),
		boolFlag("no-job-master", "start without the job master, and so without replicate, delete and fsck workers"),
		intFlag("min-free-space", 100, "MiB; devices with less get no new files"),
		intFlag("default-mindevcount", 2, "mindevcount of the class default where it has no row"),
		durationFlag("node-timeout", 2*time.Second, "how long a storage daemon may take to answer"),
		durationFlag("conn-timeout", 2*time.Second, "how long connecting to a storage daemon may take"),
		intFlag("conn-pool-size", 20, "connections to storage daemons"),
		stringFlag("local-network", "", "`ADDR` or netmask in the zone that this tracker is in: clients' zones get their new files, and copies are read from near devices; empty: anywhere"),
		boolFlag("repl-use-get-port", "replicate from the storage hosts' get port"),
		durationFlag("tempfile-age", time.Hour, "age at which an upload that was not closed is given up"),
		intFlag("max-conns", 10000, "client connections at once"),
		boolFlag("no-schema-check", "start on a database of another schema version too"),
		boolFlag("daemonize", "go into the background, and log to syslog"),
		stringFlag("pidfile", "", "`FILE` that holds the process id while the tracker runs"),
		stringFlag("syslog", "", "`SOCKET` of the syslog daemon, for --daemonize; empty: where the system has it"),
	)
	return &cli.Command{
		Name:   "tracker",
		Usage:  "answer clients, choose devices, and keep files at their policy",
		Flags:  slices.Concat(flags, clusterFlags(), statusFlags(), logFlags("info")),
		Action: func(c *cli.Context) error { return runTracker(c, warnings) },
	}
}

func runTracker(c *cli.Context, warnings []string) error {
	if err := noArguments(c); err != nil {
		return err
	}
	if path := c.String("config"); path != "" {
		config, err := mogilefsd.ReadFile(path, environment())
		if err != nil {
			return err
		}
		for _, f := range config.Flags {
			if c.IsSet(f.Name) {
				continue
			}
			if err := c.Set(f.Name, f.Value); err != nil {
				return fmt.Errorf("%s: --%s: %w", path, f.Name, err)
			}
		}
		warnings = append(warnings, config.Warnings...)
	}
	parent := process.Inherited()
	if !c.Bool("daemonize") {
		return serveTracker(c.Context, c, nil, warnings, parent.Ready)
	}
	self, err := process.Self()
	if err != nil {
		return err
	}
	return process.Background(c.Context, self, parent, c.App.ErrWriter, func(ctx context.Context, ready func() error) (err error) {
		syslog := process.OpenSyslog(process.SyslogOptions{Ident: "mogilefsd", Path: c.String("syslog")})
		detached := false
		defer func() {
			if err != nil && detached { // whoever started it reads no more
				syslog.Send(process.Err, err.Error())
			}
			err = errors.Join(err, syslog.Close())
		}()
		return serveTracker(ctx, c, syslog, warnings, func() error {
			err := ready()
			detached = err == nil
			return err
		})
	})
}

// serveTracker runs a tracker until ctx ends, or a console ends it. ready is
// called when clients can connect.
func serveTracker(ctx context.Context, c *cli.Context, syslog *process.Syslog, warnings []string, ready func() error) (err error) {
	var sinks []func(line string)
	switch {
	case syslog != nil:
		sinks = append(sinks, func(line string) { syslog.Send(process.Debug, line) })
	case c.String("log-format") == formatMogileFS:
		sinks = append(sinks, logLines(c.App.Writer, time.Now))
	}
	watchers := tracker.NewWatchers(sinks...)
	out := c.App.ErrWriter
	if len(sinks) > 0 {
		out = io.Discard
	}
	log, err := loggerTo(out, c, watchers)
	if err != nil {
		return err
	}
	dbo, err := databaseOptions(c)
	if err != nil {
		return err
	}
	keys, clusterID, err := clusterOf(c)
	if err != nil {
		return err
	}
	dbo.Log, dbo.AnyVersion = log, c.Bool("no-schema-check")
	bandwidth, err := bytesPerSecond(c.String("replication-bandwidth"))
	if err != nil {
		return fmt.Errorf("--replication-bandwidth: %w", err)
	}
	local, err := localNetwork(c.String("local-network"))
	if err != nil {
		return fmt.Errorf("--local-network: %w", err)
	}
	pidfile, err := process.WritePidfile(c.String("pidfile"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, pidfile.Remove()) }()
	statusListener, err := listenStatus(c.String("status-listen"))
	if err != nil {
		return err
	}
	store, err := open.Open(ctx, dbo)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	if err := tracker.CheckLocalNetwork(ctx, store, local); err != nil {
		return err
	}
	t, err := tracker.New(tracker.Options{
		Store:              store,
		Listen:             c.StringSlice("listen"),
		Name:               trackerName(c.String("name"), c.StringSlice("listen")),
		Version:            Version(),
		QueryJobs:          c.Int("query-jobs"),
		ReplicateJobs:      orNone(c.Int("replicate-jobs")),
		CopiesPerDevice:    c.Int("copies-per-device"),
		DeleteJobs:         orNone(c.Int("delete-jobs")),
		FsckJobs:           orNone(c.Int("fsck-jobs")),
		ReaperJobs:         orNone(c.Int("reaper-jobs")),
		NoJobMaster:        c.Bool("no-job-master"),
		LocalNetwork:       local,
		MinFreeMB:          int64(orNone(c.Int("min-free-space"))),
		DefaultMinDevCount: c.Int("default-mindevcount"),
		NodeTimeout:        c.Duration("node-timeout"),
		ConnTimeout:        c.Duration("conn-timeout"),
		ConnPoolSize:       c.Int("conn-pool-size"),
		StorageMgmtPort:    orNone(c.Int("storage-mgmt-port")),
		ReplUseGetPort:     c.Bool("repl-use-get-port"),
		TempfileAge:        c.Duration("tempfile-age"),

		ReplicationBandwidth: bandwidth,

		MaxConns:   c.Int("max-conns"),
		ClusterKey: keys.Signing(),
		ClusterID:  clusterID,
		Watchers:   watchers,
		Log:        log,
	})
	if err != nil {
		return err
	}
	log.Info().Str("dsn", dsnForLog(dbo)).Stringer("listen", t.Addrs()[0]).Str("version", Version()).Msg("tracker starts")
	noteWithoutKey(log, keys)
	for _, w := range warnings {
		log.Warn().Str("setting", w).Msg("configuration")
	}
	err = ready()
	if err != nil {
		ended, stop := context.WithCancel(ctx)
		stop()
		return errors.Join(err, t.Run(ended)) // which closes the listeners
	}
	err = runWithStatus(ctx, t, statusListener, c.Bool("pprof"))
	log.Info().Msg("tracker stopped")
	return err
}

// bytesPerSecond reads a number of bytes, with or without a unit: K, M, G or T,
// in steps of 1024. Empty is 0.
func bytesPerSecond(text string) (int64, error) {
	if text == "" {
		return 0, nil
	}
	digits, shift := text, 0
	if i := strings.IndexByte("KMGT", strings.ToUpper(text)[len(text)-1]); i >= 0 {
		digits, shift = text[:len(text)-1], 10*(i+1)
	}
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || n < 0 || n > math.MaxInt64>>shift {
		return 0, fmt.Errorf("%q is not a number of bytes such as 500K, 20M or 1G", text)
	}
	return n << shift, nil
}

// localNetwork is the address in text, which may have a netmask. Empty is none.
func localNetwork(text string) (netip.Addr, error) {
	if text == "" {
		return netip.Addr{}, nil
	}
	network, ok := protocol.ParseNetmask(text)
	if !ok {
		return netip.Addr{}, fmt.Errorf("%q is no address or netmask such as 10.1.0.0/16", text)
	}
	if p, err := netip.ParsePrefix(text); err == nil {
		return p.Addr(), nil // not the first of its network, which may be in another zone
	}
	return network.Addr(), nil
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

// environment is this process's, for configurations of mogilefsd.
func environment() mogilefsd.Environment {
	return mogilefsd.Environment{
		Getenv: os.Getenv,
		Open:   func(path string) (io.ReadCloser, error) { return os.Open(path) },
	}
}

// logLines writes lines as mogilefsd has them on standard output: after the
// local time.
func logLines(w io.Writer, now func() time.Time) func(line string) {
	return func(line string) {
		// Whoever reads them may have gone, and that must not end the daemon.
		_, _ = fmt.Fprintf(w, "[%s] %s\n", now().Format(time.ANSIC), line)
	}
}
