package mogile

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/rs/zerolog"
	"github.com/urfave/cli/v2"
	"golang.org/x/sync/errgroup"

	"github.com/mogile/mogile/storaged"
	"github.com/mogile/mogile/storaged/transfer"
	"github.com/mogile/mogile/storaged/volume"
	"github.com/mogile/mogile/tools/mogile/getopt"
	"github.com/mogile/mogile/tools/mogile/mogautomount"
	"github.com/mogile/mogile/tools/mogile/mogstored"
	"github.com/mogile/mogile/tools/mogile/process"
)

// replaceWithin bounds the time that a new process gets to take over.
const replaceWithin = time.Minute

// storageHost is what the process of a storage host is to do, beside what the
// flags say that MogileFS does not have.
type storageHost struct {
	name      string // in syslog
	services  []mogstored.Service
	daemonize bool
	pidfile   string
	// abrupt has SIGTERM, SIGINT and "shutdown" cut everything off, as
	// mogstored does.
	abrupt   bool
	warnings []string
}

// storagedCommand is `mogile storaged`. Where host is given, it says what flags
// would.
func storagedCommand(host *storageHost) *cli.Command {
	flags := []cli.Flag{
		stringFlag("config", "", "`FILE` in the form of mogstored.conf; flags and variables beat what it says"),
		stringFlag("docroot", "/var/mogdata", "`DIR` that holds the devices' folders, dev1, dev2, …"),
		stringFlag("http-listen", "0.0.0.0:7500", "`ADDR` for reading and writing files"),
		stringFlag("http-get-listen", "", "`ADDR` for reading only; empty: none"),
		stringFlag("mgmt-listen", "0.0.0.0:7501", "`ADDR` of the side channel"),
		&cli.StringSliceFlag{Name: "trackers", EnvVars: env("trackers"), Usage: "`ADDR,…` of the trackers"},
		stringFlag("durability", "fsync", "fsync: answer when the bytes are on disk; none: as MogileFS, when the system has them"),
		intFlag("transfers-per-device", transfer.DefaultPerDevice, "files fetched at once from other storage daemons to a device"),
		stringFlag("replication-bandwidth", "", "`BYTES` a second that all of them together may bring, such as 20M; empty: any"),
		boolFlag("require-mount", "refuse a device folder that is not a mount point of its own"),
		intFlag("max-conns", 10000, "connections at once"),
		durationFlag("usage-interval", 10*time.Second, "how often the usage files are written"),
		durationFlag("drain-timeout", 30*time.Second, "how long requests in progress may go on after SIGTERM"),
		&cli.BoolFlag{Name: "iostat", Value: true, EnvVars: env("iostat"), Usage: "tell the disks' utilisation on the side channel"},
		boolFlag("daemonize", "go into the background, and log to syslog"),
		stringFlag("pidfile", "", "`FILE` that holds the process id while the daemon runs"),
		stringFlag("syslog", "", "`SOCKET` of the syslog daemon, for --daemonize; empty: where the system has it"),
	}
	return &cli.Command{
		Name:        "storaged",
		Usage:       "serve the files of this host's devices",
		Flags:       slices.Concat(flags, clusterFlags(), statusFlags(), logFlags("info")),
		Action:      func(c *cli.Context) error { return runStoraged(c, host) },
		Subcommands: []*cli.Command{recoverShardsCommand()},
	}
}

// runMogstored is the binary under the name mogstored or cmogstored: `mogile
// storaged` with that daemon's command line and configuration file.
func runMogstored(ctx context.Context, d mogstored.Daemon, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	config, err := mogstored.Parse(d, args[1:], mogstored.Surroundings{Getenv: os.Getenv, ReadFile: os.ReadFile})
	switch {
	case errors.As(err, new(*getopt.Error)):
		fmt.Fprintf(stderr, "%s: %v: see %[1]s --help\n", d, err)
		return ExitUsage
	case err != nil:
		fmt.Fprintf(stderr, "%s: %v\n", d, err)
		return ExitFailed
	case config.Help:
		fmt.Fprint(stdout, mogstored.Help(d))
		return ExitDone
	case config.Version:
		fmt.Fprintf(stdout, "mogile version %s\n", Version())
		return ExitDone
	}
	host := &storageHost{
		name: d.String(), services: config.Services, daemonize: config.Daemonize, pidfile: config.Pidfile,
		abrupt: d == mogstored.Mogstored, warnings: config.Warnings,
	}
	app := &cli.App{Name: d.String(), Commands: []*cli.Command{storagedCommand(host)}}
	return runApp(ctx, app, append([]string{d.String(), "storaged"}, config.Flags...), stdin, stdout, stderr)
}

// automountCommand is `mogile automount`, which reads its command line itself.
func automountCommand() *cli.Command {
	return &cli.Command{
		Name:            "automount",
		Usage:           "mount the file systems labelled MogileDev<N> on /var/mogdata/dev<N>",
		SkipFlagParsing: true,
		HideHelp:        true,
		Action: func(c *cli.Context) error {
			if code := mogautomount.Run(c.Context, mogautomount.OS{}, c.Args().Slice(), c.App.Writer, c.App.ErrWriter); code != mogautomount.Done {
				return cli.Exit("", code)
			}
			return nil
		},
	}
}

// hostFromFlags is what flags, variables and the file that they name say.
func hostFromFlags(c *cli.Context) (*storageHost, error) {
	h := &storageHost{name: "mogile-storaged"}
	if path := c.String("config"); path != "" {
		data, err := os.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("configuration file: %w", err)
		}
		settings, warnings, err := mogstored.ParseFile(path, data)
		if err != nil {
			return nil, err
		}
		flags, more := mogstored.StoragedFlags(settings)
		h.warnings = append(warnings, more...)
		for _, f := range flags {
			if c.IsSet(f.Key) {
				continue
			}
			if err := c.Set(f.Key, f.Value); err != nil {
				return nil, fmt.Errorf("%s: --%s: %w", f.From, f.Key, err)
			}
		}
	}
	h.services = []mogstored.Service{{
		Docroot: c.String("docroot"), HTTPListen: c.String("http-listen"), MgmtListen: c.String("mgmt-listen"),
		GetListen: c.String("http-get-listen"), MaxConns: c.Int("max-conns"), NoIostat: !c.Bool("iostat"),
	}}
	h.daemonize, h.pidfile = c.Bool("daemonize"), c.String("pidfile")
	return h, nil
}

func runStoraged(c *cli.Context, host *storageHost) error {
	if err := noArguments(c); err != nil {
		return err
	}
	if host == nil {
		var err error
		if host, err = hostFromFlags(c); err != nil {
			return err
		}
	}
	for i := range host.services { // the working directory changes
		dir, err := filepath.Abs(host.services[i].Docroot)
		if err != nil {
			return err
		}
		host.services[i].Docroot = dir
	}
	self, err := process.Self()
	if err != nil {
		return err
	}
	parent := process.Inherited()
	ignoreBrokenPipes()
	if !host.daemonize {
		log, err := logger(c)
		if err != nil {
			return err
		}
		return host.serve(c.Context, c, self, parent, log, parent.Ready)
	}
	return process.Background(c.Context, self, parent, c.App.ErrWriter, func(ctx context.Context, ready func() error) (err error) {
		syslog := process.OpenSyslog(process.SyslogOptions{Ident: host.name, Path: c.String("syslog")})
		detached := false
		defer func() {
			if err != nil && detached { // whoever started it reads no more
				syslog.Send(process.Err, err.Error())
			}
			err = errors.Join(err, syslog.Close())
		}()
		log, err := loggerTo(syslogWriter{syslog}, c)
		if err != nil {
			return err
		}
		return host.serve(ctx, c, self, parent, log, func() error {
			err := ready()
			detached = err == nil
			return err
		})
	})
}

// syslogWriter sends events to syslog.
type syslogWriter struct{ *process.Syslog }

// Write implements io.Writer.
func (s syslogWriter) Write(p []byte) (int, error) { return s.WriteLevel(zerolog.InfoLevel, p) }

// WriteLevel implements zerolog.LevelWriter.
func (s syslogWriter) WriteLevel(level zerolog.Level, p []byte) (int, error) {
	severity := process.Info
	switch {
	case level >= zerolog.ErrorLevel && level < zerolog.NoLevel:
		severity = process.Err
	case level == zerolog.WarnLevel:
		severity = process.Warning
	case level < zerolog.InfoLevel:
		severity = process.Debug
	}
	text := string(p)
	if n := len(text); n > 0 && text[n-1] == '\n' {
		text = text[:n-1]
	}
	s.Send(severity, text)
	return len(p), nil
}

// serve runs the services until ctx ends, one of them is told to stop, or
// another process has taken over. ready is called when all answer.
func (h *storageHost) serve(ctx context.Context, c *cli.Context, self process.Program, parent *process.Parent, log zerolog.Logger, ready func() error) (err error) {
	durability, err := parseDurability(c.String("durability"))
	if err != nil {
		return err
	}
	keys, clusterID, err := clusterOf(c)
	if err != nil {
		return err
	}
	bandwidth, err := bytesPerSecond(c.String("replication-bandwidth"))
	if err != nil {
		return usage("--replication-bandwidth: %v", err)
	}
	if n := c.Int("transfers-per-device"); n < 1 {
		return usage("--transfers-per-device %d: use a number from 1", n)
	}
	if len(h.services) > 1 && c.String("status-listen") != "" {
		return usage("--status-listen %s: it shows one docroot; leave it out, or start a daemon for each", c.String("status-listen"))
	}
	pidfile, err := process.WritePidfile(h.pidfile)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, pidfile.Remove()) }()
	inherited, err := inheritListeners(parent)
	if err != nil {
		return err
	}
	defer inherited.Close()
	var status *net.TCPListener
	if addr := c.String("status-listen"); addr != "" {
		if status, err = inherited.listen(addr); err != nil {
			return fmt.Errorf("status port: %w", err)
		}
		defer status.Close() // whoever serves it closes it before
	}
	h.spareDescriptors(openFiles(), log)
	var daemons storageDaemons
	for _, s := range h.services {
		o := storaged.Options{
			Docroot:      s.Docroot,
			HTTPListen:   s.HTTPListen,
			GetListen:    s.GetListen,
			MgmtListen:   s.MgmtListen,
			Listen:       inherited.listen,
			Trackers:     c.StringSlice("trackers"),
			Durability:   durability,
			RequireMount: c.Bool("require-mount"),
			ClusterID:    clusterID,
			ClusterKeys:  keys.Keys,

			TransfersPerDevice:   c.Int("transfers-per-device"),
			ReplicationBandwidth: bandwidth,

			MaxConns:       s.MaxConns,
			UsageInterval:  c.Duration("usage-interval"),
			DrainTimeout:   c.Duration("drain-timeout"),
			ShutdownAtOnce: h.abrupt,
			NoUtilisation:  s.NoIostat,
			Log:            log,
		}
		d, err := storaged.New(o)
		if err != nil {
			return errors.Join(err, daemons.Close())
		}
		daemons = append(daemons, d)
	}
	inherited.Close() // what this process does not listen on any more
	daemons[0].Registry().MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	for i, d := range daemons {
		log.Info().Str("docroot", h.services[i].Docroot).Stringer("http", d.HTTPAddr()).Stringer("mgmt", d.MgmtAddr()).
			Str("durability", durability.String()).Str("version", Version()).Msg("storage daemon starts")
	}
	noteWithoutKey(log, keys)
	for _, w := range h.warnings {
		log.Warn().Str("setting", w).Msg("configuration")
	}
	r := running{host: h, daemons: daemons, status: status, pidfile: pidfile, self: self, stderr: c.App.ErrWriter, log: log, drain: c.Duration("drain-timeout")}
	err = r.run(ctx, c.Bool("pprof"), func() error {
		return errors.Join(ready(), notifySystemd("READY=1"))
	})
	log.Info().Msg("storage daemon stopped")
	return err
}

// Descriptors that a process needs besides those of its connections, and the
// fewest connections that make sense.
const (
	reservedFiles = 64
	leastConns    = 16
)

// spareDescriptors lowers the bounds of connections so far that a file can be
// open beside each: what cannot be opened would be refused, after the connection
// was accepted.
func (h *storageHost) spareDescriptors(limit uint64, log zerolog.Logger) {
	planes := 0
	for _, s := range h.services {
		for _, addr := range []string{s.HTTPListen, s.GetListen} {
			if addr != "" {
				planes++
			}
		}
	}
	limit = min(limit, 1<<30)
	each := max(int(limit-min(limit, reservedFiles))/(2*max(planes, 1)), leastConns)
	for i := range h.services {
		if s := &h.services[i]; s.MaxConns > each {
			log.Warn().Uint64("limit", limit).Int("max_conns", s.MaxConns).Int("taken", each).
				Msg("so few files may be open that fewer connections are taken: raise the limit (LimitNOFILE, ulimit -n) above twice --max-conns")
			s.MaxConns = each
		}
	}
}

// storageDaemons are those of one process, of which the first is shown on the
// status port.
type storageDaemons []*storaged.Daemon

var _ statusSource = storageDaemons(nil)

// Ready implements statusSource.
func (s storageDaemons) Ready(ctx context.Context) error { return s[0].Ready(ctx) }

// Registry implements statusSource.
func (s storageDaemons) Registry() *prometheus.Registry { return s[0].Registry() }

// Close gives up what does not run.
func (s storageDaemons) Close() error {
	var errs []error
	for _, d := range s {
		errs = append(errs, d.Close())
	}
	return errors.Join(errs...)
}

// stop has them all end within limit.
func (s storageDaemons) stop(limit time.Duration) {
	for _, d := range s {
		d.Stop(limit)
	}
}

// Run runs them until ctx or one of them ends.
func (s storageDaemons) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	g, ctx := errgroup.WithContext(ctx)
	for _, d := range s {
		g.Go(func() error {
			defer cancel()
			return d.Run(ctx)
		})
	}
	return g.Wait()
}

// running is a process that serves, and may be replaced by another.
type running struct {
	host    *storageHost
	daemons storageDaemons
	status  *net.TCPListener // nil for none
	pidfile *process.Pidfile
	self    process.Program
	stderr  io.Writer
	log     zerolog.Logger
	drain   time.Duration
}

// run serves until ctx ends, which is SIGTERM or SIGINT, or a signal or the side
// channel says so.
func (r *running) run(ctx context.Context, profiles bool, ready func() error) error {
	signals := make(chan os.Signal, 8)
	notifyStorage(signals)
	defer signal.Stop(signals)
	limit := r.drain
	if r.host.abrupt {
		limit = 0
	}
	defer context.AfterFunc(ctx, func() { r.daemons.stop(limit) })()

	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	statusCtx, hideStatus := context.WithCancel(ctx)
	defer hideStatus()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		defer cancel()
		return r.daemons.Run(ctx)
	})
	if r.status != nil {
		g.Go(func() error { return serveStatus(statusCtx, r.status, r.daemons, profiles) })
	}
	g.Go(func() error {
		for _, d := range r.daemons {
			select {
			case <-d.Serving():
			case <-ctx.Done():
				return nil
			}
		}
		if err := ready(); err != nil {
			return err
		}
		for {
			select {
			case <-ctx.Done():
				return nil
			case s := <-signals:
				if !isReplace(s) {
					r.log.Info().Stringer("signal", s).Msg("storage daemon finishes what it has begun, and ends")
					r.daemons.stop(storaged.PatientDrain)
					continue
				}
				pid, err := r.replace(ctx)
				if err != nil {
					r.log.Error().Err(err).Msg("storage daemon could not be replaced, and goes on")
					continue
				}
				hideStatus()
				r.daemons.stop(storaged.PatientDrain)
				r.log.Info().Int("pid", pid).Msg("another process has taken over; this one finishes what it has begun, and ends")
				for { // until then no further one is started
					select {
					case <-signals:
					case <-ctx.Done():
						return nil
					}
				}
			}
		}
	})
	return g.Wait()
}

// replace starts the program anew, as it is on disk now, with this one's
// listeners, and waits until it serves. If it does not, nothing has changed.
func (r *running) replace(ctx context.Context) (pid int, err error) {
	var files []*os.File
	defer func() {
		for _, f := range files {
			_ = f.Close() // a copy of what goes on to be open
		}
	}()
	for _, d := range r.daemons {
		more, err := d.ListenerFiles()
		files = append(files, more...)
		if err != nil {
			return 0, err
		}
	}
	if r.status != nil {
		f, err := storaged.ListenerFile(r.status)
		if err != nil {
			return 0, fmt.Errorf("descriptor of the status port: %w", err)
		}
		files = append(files, f)
	}
	if err := r.pidfile.MoveAside(); err != nil {
		return 0, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, replaceWithin, fmt.Errorf("the new process did not serve within %v", replaceWithin))
	defer cancel()
	if pid, err = r.self.Start(ctx, r.stderr, files...); err != nil {
		return 0, errors.Join(err, r.pidfile.MoveBack())
	}
	if err := notifySystemd(fmt.Sprintf("MAINPID=%d", pid)); err != nil {
		r.log.Warn().Err(err).Msg("the service manager could not be told of the new process")
	}
	return pid, nil
}

// inheritance are the listeners of the process that this one replaces.
type inheritance struct{ listeners []*net.TCPListener }

func inheritListeners(parent *process.Parent) (*inheritance, error) {
	i := new(inheritance)
	if parent == nil {
		return i, nil
	}
	for _, f := range parent.Files {
		l, err := net.FileListener(f)
		_ = f.Close() // l has a descriptor of its own
		if err != nil {
			i.Close()
			return nil, fmt.Errorf("take over %s: %w", f.Name(), err)
		}
		if tcp, ok := l.(*net.TCPListener); ok {
			i.listeners = append(i.listeners, tcp)
		}
	}
	return i, nil
}

// listen takes the listener on addr over, or binds one where there is none.
func (i *inheritance) listen(addr string) (*net.TCPListener, error) {
	want, err := net.ResolveTCPAddr("tcp", addr)
	if err != nil {
		return nil, err
	}
	for n, l := range i.listeners {
		if sameAddr(want, l.Addr().(*net.TCPAddr)) {
			i.listeners = append(i.listeners[:n], i.listeners[n+1:]...)
			return l, nil
		}
	}
	return net.ListenTCP("tcp", want)
}

// sameAddr reports whether listening on want gives have. Without a host, and on
// 0.0.0.0 and ::, package net listens on all addresses, of IPv6 and of IPv4 where
// the system has both: the listener's address is [::] then.
func sameAddr(want, have *net.TCPAddr) bool {
	switch {
	case want.Port != have.Port:
		return false
	case len(want.IP) == 0, want.IP.IsUnspecified():
		return have.IP.IsUnspecified()
	}
	return want.IP.Equal(have.IP) && want.Zone == have.Zone
}

// Close gives up what was not taken over.
func (i *inheritance) Close() {
	for _, l := range i.listeners {
		_ = l.Close() // the other process has it too
	}
	i.listeners = nil
}

// notifySystemd tells the service manager how things are, where it wants to know
// (Type=notify): see sd_notify(3).
func notifySystemd(state string) error {
	socket := os.Getenv("NOTIFY_SOCKET")
	if socket == "" {
		return nil
	}
	conn, err := net.DialTimeout("unixgram", socket, time.Second)
	if err != nil {
		return fmt.Errorf("notify systemd: %w", err)
	}
	defer conn.Close() // nothing is buffered in it
	if err := conn.SetDeadline(time.Now().Add(time.Second)); err != nil {
		return fmt.Errorf("notify systemd: %w", err)
	}
	if _, err := io.WriteString(conn, state); err != nil {
		return fmt.Errorf("notify systemd: %w", err)
	}
	return nil
}

func parseDurability(s string) (volume.Durability, error) {
	d, err := volume.ParseDurability(s)
	if err != nil {
		return 0, usage("--durability %q: use fsync or none", s)
	}
	return d, nil
}
