package mogile

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/rs/zerolog"
	"github.com/urfave/cli/v2"
	"golang.org/x/sync/errgroup"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/schema"
	"github.com/mogile/mogile/schema/open"
	"github.com/mogile/mogile/storaged"
	"github.com/mogile/mogile/storaged/volume"
	"github.com/mogile/mogile/tracker"
)

const (
	devDomain  = "test"
	devTracker = "127.0.0.1:7001"
	// devReadyWithin bounds the start: what takes longer is not going to come.
	devReadyWithin = 30 * time.Second
	maxDevHosts    = 200
	maxDevDevices  = 100
	devKeyFile     = "cluster.key" // below --dir
)

// devClasses are the classes of the domain of [devCommand].
var devClasses = [...]struct {
	name        string
	mindevcount int
	policy      string
	devices     int // that the cluster must have
}{{schema.DefaultClass, 2, "", 0}, {"single", 1, "", 0}, {"triple", 3, "", 0}, {"ec", 3, "ErasureCode(4,2,min=64K)", 6}}

func devCommand() *cli.Command {
	return &cli.Command{
		Name:  "dev",
		Usage: "run a whole cluster in one process, on loopback, to try things",
		Description: "A tracker and storage hosts on 127.0.0.1, 127.0.0.2, …, a domain `test` with the classes default\n" +
			"(2 copies), single (1), triple (3) and, where there are six devices, ec (from 64 KiB 4+2 shards).\n" +
			"Prints a line beginning `ready` when files can be stored.",
		Flags: devFlags(append([]cli.Flag{
			stringFlag("dir", "", "`DIR` that keeps the namespace and the devices; empty: a temporary one that goes at the end"),
			stringFlag("dsn", "", "put the namespace on this database instead of DIR/namespace.db"),
			stringFlag("listen", devTracker, "`ADDR` of the tracker, on loopback"),
			intFlag("hosts", 3, "storage hosts"),
			intFlag("devices", 2, "devices of each host"),
			intFlag("storage-port", 7500, "HTTP port of the storage hosts; the side channel is on the next one"),
			stringFlag("status-listen", "", "`ADDR` of the status port, on loopback; empty: the port after the tracker's; none: no status port"),
			boolFlag("pprof", "serve profiles under /debug/pprof/ on the status port"),
			stringFlag("durability", "fsync", "fsync or none: see mogile storaged"),
		}, logFlags("warn")...)),
		Action: runDev,
	}
}

// devFlags gives the flags environment variables of their own, MOGILE_DEV_…: a
// MOGILE_DSN that is meant for a tracker must not have the test domain put into
// a real database.
func devFlags(flags []cli.Flag) []cli.Flag {
	for _, f := range flags {
		switch f := f.(type) {
		case *cli.StringFlag:
			f.EnvVars = env("dev-" + f.Name)
		case *cli.IntFlag:
			f.EnvVars = env("dev-" + f.Name)
		case *cli.BoolFlag:
			f.EnvVars = env("dev-" + f.Name)
		}
	}
	return flags
}

// devOptions is the command line, checked.
type devOptions struct {
	dir         string
	temporary   bool // dir goes at the end
	dsn         string
	listen      string
	status      string // empty: none
	hosts       []netip.Addr
	devices     int
	storagePort int
	durability  volume.Durability
	watchers    *tracker.Watchers
	log         zerolog.Logger
}

func runDev(c *cli.Context) (err error) {
	if err := noArguments(c); err != nil {
		return err
	}
	o, err := parseDev(c)
	if err != nil {
		return err
	}
	if o.dir == "" {
		if o.dir, err = os.MkdirTemp("", "mogile-dev-"); err != nil {
			return err
		}
		o.temporary = true
		defer func() { err = errors.Join(err, os.RemoveAll(o.dir)) }()
	}
	if o.dsn == "" {
		o.dsn = "sqlite:" + filepath.Join(o.dir, "namespace.db")
	}
	return o.run(c.Context, c.App.Writer, c.Bool("pprof"))
}

func parseDev(c *cli.Context) (devOptions, error) {
	o := devOptions{
		dir: c.String("dir"), dsn: c.String("dsn"), listen: c.String("listen"),
		devices: c.Int("devices"), storagePort: c.Int("storage-port"),
	}
	var err error
	o.watchers = tracker.NewWatchers()
	if o.log, err = logger(c, o.watchers); err != nil {
		return o, err
	}
	if o.durability, err = parseDurability(c.String("durability")); err != nil {
		return o, err
	}
	hosts := c.Int("hosts")
	switch {
	case hosts < 1 || hosts > maxDevHosts:
		return o, usage("--hosts %d: use 1 to %d", hosts, maxDevHosts)
	case o.devices < 1 || o.devices > maxDevDevices:
		return o, usage("--devices %d: use 1 to %d", o.devices, maxDevDevices)
	case o.storagePort < 1 || o.storagePort > 65534:
		return o, usage("--storage-port %d: use 1 to 65534", o.storagePort)
	}
	tracker, err := loopback("--listen", o.listen)
	if err != nil {
		return o, err
	}
	switch s := c.String("status-listen"); s {
	case "none":
	case "":
		// Port 0 lets the system choose, and so does the port after it.
		port := 0
		if tracker.Port() != 0 {
			port = int(tracker.Port()) + 1
		}
		o.status = net.JoinHostPort(tracker.Addr().String(), strconv.Itoa(port))
	default:
		if _, err := loopback("--status-listen", s); err != nil {
			return o, err
		}
		o.status = s
	}
	if o.hosts = loopbackHosts(hosts); len(o.hosts) < hosts {
		o.log.Warn().Int("hosts", len(o.hosts)).Msg("127.0.0.2 and the addresses after it are not there on this system: fewer hosts")
	}
	if o.dir != "" {
		if o.dir, err = filepath.Abs(o.dir); err != nil {
			return o, err
		}
	}
	return o, nil
}

// loopback parses addr and refuses what other machines could reach.
func loopback(flag, addr string) (netip.AddrPort, error) {
	a, err := netip.ParseAddrPort(addr)
	if err != nil {
		return a, usage("%s %q: use an address of this machine alone, such as %s", flag, addr, devTracker)
	}
	if !a.Addr().IsLoopback() {
		return a, usage("%s %s: dev listens on loopback only; for other machines run mogile tracker and mogile storaged", flag, addr)
	}
	return a, nil
}

// loopbackHosts are 127.0.0.1 and the n-1 addresses after it, or the first
// alone where the system has only that one.
func loopbackHosts(n int) []netip.Addr {
	hosts := []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1})}
	for len(hosts) < n {
		next := hosts[len(hosts)-1].Next()
		l, err := net.Listen("tcp", net.JoinHostPort(next.String(), "0"))
		if err != nil {
			return hosts[:1]
		}
		_ = l.Close() // it was only asked whether it can be bound
		hosts = append(hosts, next)
	}
	return hosts
}

func (o devOptions) run(ctx context.Context, stdout io.Writer, profiles bool) (err error) {
	started := time.Now()
	if err := os.MkdirAll(o.dir, 0o777); err != nil {
		return err
	}
	keys, err := makeClusterKeys(filepath.Join(o.dir, devKeyFile))
	if err != nil {
		return err
	}
	statusListener, err := listenStatus(o.status)
	if err != nil {
		return inUse(err, "--status-listen")
	}
	dbo := open.Options{DSN: o.dsn, Log: o.log}
	if _, err := open.Migrate(ctx, dbo, schema.MigrateOptions{}); err != nil {
		return err
	}
	store, err := open.Open(ctx, dbo)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	devices, err := o.setUp(ctx, store)
	if err != nil {
		return fmt.Errorf("set up domain, hosts and devices: %w", err)
	}
	if err := o.makeFolders(devices); err != nil {
		return err
	}

	ctx, stop := context.WithCancel(ctx)
	defer stop()
	g, ctx := errgroup.WithContext(ctx)
	for i, addr := range o.hosts {
		d, err := storaged.New(storaged.Options{
			Docroot:     o.docroot(i),
			HTTPListen:  net.JoinHostPort(addr.String(), strconv.Itoa(o.storagePort)),
			MgmtListen:  net.JoinHostPort(addr.String(), strconv.Itoa(o.storagePort+1)),
			Trackers:    []string{o.listen},
			Durability:  o.durability,
			ClusterID:   keys.ClusterID(),
			ClusterKeys: keys.Keys,
			Log:         o.log.With().Str("host", devHostName(i)).Logger(),
		})
		if err != nil {
			return errors.Join(inUse(err, "--storage-port"), stopGroup(g))
		}
		g.Go(func() error { return d.Run(ctx) })
	}
	t, err := tracker.New(tracker.Options{
		Store:           store,
		Listen:          []string{o.listen},
		Name:            "dev",
		Version:         Version(),
		StorageMgmtPort: o.storagePort + 1,
		ClusterKey:      keys.Signing(),
		ClusterID:       keys.ClusterID(),
		Watchers:        o.watchers,
		Log:             o.log,
	})
	if err != nil {
		return errors.Join(inUse(err, "--listen"), stopGroup(g))
	}
	o.listen = t.Addrs()[0].String()
	if statusListener != nil {
		o.status = statusListener.Addr().String()
	}
	g.Go(func() error {
		defer stop() // !shutdown ends the tracker, and with it all
		return runWithStatus(ctx, t, statusListener, profiles)
	})
	g.Go(func() error {
		if err := o.waitUntilReady(ctx, slices.Concat(devices...)); err != nil {
			if ctx.Err() != nil {
				return nil // told to stop before it was ready
			}
			return err
		}
		o.announce(stdout, time.Since(started))
		return nil
	})
	return g.Wait()
}

// errStopping stops the members of a group whose start failed half way.
var errStopping = errors.New("start failed")

func stopGroup(g *errgroup.Group) error {
	g.Go(func() error { return errStopping })
	if err := g.Wait(); !errors.Is(err, errStopping) {
		return err
	}
	return nil
}

// inUse adds the remedy to the commonest fault of a start.
func inUse(err error, flag string) error {
	if errors.Is(err, os.ErrPermission) {
		return fmt.Errorf("%w: choose another port with %s", err, flag)
	}
	if strings.Contains(err.Error(), "address already in use") {
		return fmt.Errorf("%w: is another `mogile dev` running? Choose another port with %s", err, flag)
	}
	return err
}

func devHostName(i int) string { return "host" + strconv.Itoa(i+1) }

func (o devOptions) docroot(host int) string { return filepath.Join(o.dir, devHostName(host)) }

// makeFolders makes the folder of each device, which stands for its mount
// point: a storage daemon never makes one.
func (o devOptions) makeFolders(devices [][]protocol.DevID) error {
	for i := range devices {
		for _, id := range devices[i] {
			if err := os.MkdirAll(filepath.Join(o.docroot(i), "dev"+id.String()), 0o777); err != nil {
				return err
			}
		}
	}
	return nil
}

// setUp creates what is missing of the domain, its classes, hosts and devices,
// and returns the devices of each host. What is there stays as it was left,
// except for the hosts' addresses.
func (o devOptions) setUp(ctx context.Context, store schema.Store) ([][]protocol.DevID, error) {
	have, err := store.Topology(ctx)
	if err != nil {
		return nil, err
	}
	if !slices.ContainsFunc(have.Domains, func(d schema.Domain) bool { return d.Name == devDomain }) {
		if _, err := store.CreateDomain(ctx, devDomain); err != nil {
			return nil, err
		}
		for _, c := range devClasses {
			if len(o.hosts)*o.devices < c.devices {
				continue
			}
			_, err := store.CreateClass(ctx, devDomain, schema.Class{Name: c.name, MinDevCount: c.mindevcount, ReplPolicy: c.policy})
			if refused, ok := errors.AsType[*protocol.Error](err); ok && refused.Code == "invalid_replpolicy" {
				o.log.Warn().Str("class", c.name).Msg(refused.Text) // --dsn names a database that is not sealed
			} else if err != nil {
				return nil, err
			}
		}
	}
	var highest protocol.DevID
	for _, d := range have.Devices {
		highest = max(highest, d.ID)
	}
	devices := make([][]protocol.DevID, len(o.hosts))
	for i := range o.hosts {
		host, err := o.setUpHost(ctx, store, have.Hosts, i)
		if err != nil {
			return nil, err
		}
		for _, d := range have.Devices {
			if d.HostID == host && len(devices[i]) < o.devices {
				devices[i] = append(devices[i], d.ID)
			}
		}
		for len(devices[i]) < o.devices {
			highest++
			if err := store.CreateDevice(ctx, schema.Device{ID: highest, HostID: host, Status: schema.DeviceAlive}); err != nil {
				return nil, err
			}
			devices[i] = append(devices[i], highest)
		}
	}
	return devices, nil
}

func (o devOptions) setUpHost(ctx context.Context, store schema.Topology, have []schema.Host, i int) (schema.HostID, error) {
	name, ip := devHostName(i), o.hosts[i].String()
	if slices.ContainsFunc(have, func(h schema.Host) bool { return h.Name == name }) {
		return store.UpdateHost(ctx, name, schema.HostChange{IP: &ip, Port: &o.storagePort})
	}
	return store.CreateHost(ctx, schema.Host{Name: name, IP: ip, Port: o.storagePort, Status: schema.HostAlive})
}

// waitUntilReady asks the tracker, as any client would, until the devices of
// this process take files.
func (o devOptions) waitUntilReady(ctx context.Context, devices []protocol.DevID) error {
	ctx, cancel := context.WithTimeout(ctx, devReadyWithin)
	defer cancel()
	client, err := protocol.NewClient(protocol.ClientOptions{Trackers: []string{o.listen}})
	if err != nil {
		return err
	}
	defer client.Close()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		fields, err := client.Do(ctx, "get_devices", nil)
		if err == nil && allTakeFiles(fields, devices) {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			if err == nil {
				err = errors.New("the devices are not writeable")
			}
			return fmt.Errorf("not ready within %v: %w; start again with --log-level info, and see that %s is writeable and has more than 100 MiB free", devReadyWithin, err, o.dir)
		}
	}
}

// allTakeFiles reads a reply to get_devices: whether those of devices that are
// alive, at least one, can be written and have a known size.
func allTakeFiles(fields protocol.Args, devices []protocol.DevID) bool {
	ready := 0
	for n := range fields.Number("devices") {
		dev := func(field string) string { return fields.Get(fmt.Sprintf("dev%d_%s", n+1, field)) }
		id := protocol.DevID(protocol.Number(dev("devid")))
		if !slices.Contains(devices, id) || dev("status") != schema.DeviceAlive {
			continue
		}
		if dev("observed_state") != "writeable" || dev("mb_total") == "" {
			return false
		}
		ready++
	}
	return ready > 0
}

// announce prints the line that scripts wait for, and what to try next.
func (o devOptions) announce(w io.Writer, took time.Duration) {
	keeps := o.dir
	if o.temporary {
		keeps += " (goes when this stops; --dir keeps it)"
	}
	fmt.Fprintf(w, "ready in %d ms: tracker %s, %d hosts of %d devices, domain %s, files in %s\n", took.Milliseconds(), o.listen, len(o.hosts), o.devices, devDomain, keeps)
	mogtool := commandName() + " mogtool"
	if o.listen != devTracker {
		mogtool += " --trackers " + o.listen
	}
	mogtool += " --domain " + devDomain
	fmt.Fprintf(w, "\nTry, in another terminal:\n"+
		"  echo 'hello, world' | %[1]s put - greeting\n"+
		"  %[1]s info greeting\n"+
		"  curl -s $(%[1]s paths greeting | head -n 1)\n", mogtool)
	if o.status != "" {
		fmt.Fprintf(w, "\nStatus: http://%s/metrics, /readyz\n", o.status)
	}
	fmt.Fprintln(w)
}

// commandName is how this program is run from the shell: as it was, or through
// `go run` where it is a binary that go made for one run.
func commandName() string {
	exe, err := os.Executable()
	if err != nil {
		return "mogile"
	}
	if strings.Contains(exe, string(filepath.Separator)+"go-build") {
		return "go run ."
	}
	return os.Args[0]
}
