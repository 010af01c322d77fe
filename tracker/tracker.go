// Package tracker is the daemon that answers clients, decides where bytes go,
// and runs the workers that keep files at their policy.
//
// It speaks MogileFS 2.73's text protocol: a line is a request, a line is its
// answer, and the answers on one connection come in the order of the requests.
// A request runs in its connection's goroutine while it holds one of a bounded
// number of query workers. On the same port lines that begin with "!" are the
// console's.
//
// All that a command decides by is an immutable snapshot of the cluster
// (package cluster) and what the store answers; all trackers on one database
// are equal, and nothing but caches is lost with one of them.
package tracker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
	"golang.org/x/sync/errgroup"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/schema"
	"github.com/mogile/mogile/tracker/cluster"
	deleter "github.com/mogile/mogile/tracker/delete"
	"github.com/mogile/mogile/tracker/drain"
	"github.com/mogile/mogile/tracker/fsck"
	"github.com/mogile/mogile/tracker/monitor"
	"github.com/mogile/mogile/tracker/reap"
	"github.com/mogile/mogile/tracker/rebalance"
	"github.com/mogile/mogile/tracker/replicate"
	"github.com/mogile/mogile/tracker/status"
	"github.com/mogile/mogile/tracker/storage"
	"github.com/mogile/mogile/tracker/work"
)

// Options are the settings of a [Tracker]. Zero values mean the defaults, which
// are MogileFS 2.73's where it has the setting.
type Options struct {
	// Store is the namespace. It stays open after Run.
	Store schema.Store
	// Listen are the addresses for clients, "host:port" or "host"; the default
	// is 0.0.0.0:7001. Port 0 takes a free one; see [Tracker.Addrs].
	Listen []string
	// Name tells this tracker from others on the database; the default is the
	// host's name.
	Name string
	// Version is Mogile's own, for the log, the metrics and other trackers.
	Version string

	QueryJobs     int // requests worked on at once; 0 means 200, at most 500
	ReplicateJobs int // 0 means 16, below 0 none
	DeleteJobs    int // 0 means 1, below 0 none
	FsckJobs      int // ranges of files checked at once; 0 means 1, below 0 none
	ReaperJobs    int // of which one works; 0 means 1, below 0 none
	// ReapDelay is how long a dead device is left alone, so that other trackers
	// learn of it; 0 means 16 s.
	ReapDelay time.Duration
	// NoJobMaster starts without the job master, and so without replicate, delete
	// and fsck workers, until a console wants it.
	NoJobMaster bool

	// LocalNetwork is an address in the network that the tracker is in: new files
	// are put into the client's zone, and files to be copied are read from the
	// tracker's, where they can be. The zero value is in none. See
	// [CheckLocalNetwork].
	LocalNetwork netip.Addr

	MinFreeMB          int64 // devices with less free, in MiB, get no new files; 0 means 100, below 0 no limit
	DefaultMinDevCount int   // copies in a class "default" without a row; 0 means 2

	NodeTimeout     time.Duration // for a storage daemon's answer; 0 means 2 s
	ConnTimeout     time.Duration // to connect to one; 0 means 2 s
	ConnPoolSize    int           // connections to each storage daemon; 0 means 20
	StorageMgmtPort int           // side channel of all storage hosts; 0 means 7501, below 0 there is none
	ReplUseGetPort  bool          // replicate from the hosts' get port

	CopiesPerDevice      int   // copies that a device is source or destination of at once; 0 means 4
	ReplicationBandwidth int64 // bytes a second of all copies together; 0 means any

	TempfileAge time.Duration // age at which an upload that nobody closed is given up; 0 means 1 h

	// ClusterKey signs what this tracker orders storage daemons to do. Without
	// it orders go to loopback addresses only, and what needs them elsewhere is
	// not done: copies go through the tracker.
	ClusterKey []byte
	// ClusterID is the cluster that the devices bear the name of; empty means that
	// it is not known.
	ClusterID string

	MonitorInterval   time.Duration // between looks at the devices; 0 means 2.5 s
	RefreshInterval   time.Duration // between reads of the cluster from the database; 0 means 4 s
	TestWriteInterval time.Duration // between test writes to a device; 0 means 15 s

	MaxConns          int           // client connections at once; 0 means 10000
	MaxLine           int           // bytes of a request line; 0 means protocol.MaxLine
	SlowReaderTimeout time.Duration // for a client to take some of its answer; 0 means 120 s
	QueryTimeout      time.Duration // for a request; 0 means 30 s
	DrainTimeout      time.Duration // for requests at work when Run is told to end; 0 means 5 s

	// Watchers are the consoles that follow the log. Give them to Log as a
	// writer too; without Watchers, consoles see the messages of the tracker
	// without their fields.
	Watchers *Watchers
	// Now is the clock; nil means time.Now.
	Now func() time.Time
	Log zerolog.Logger
}

// withDefaults fills in what is not set, and reports everything that makes no
// sense.
func (o Options) withDefaults() (Options, error) {
	var wrong []error
	if o.Store == nil {
		wrong = append(wrong, errors.New("a store is needed"))
	}
	positive := func(name string, v *time.Duration, byDefault time.Duration) {
		if *v == 0 {
			*v = byDefault
		}
		if *v < 0 {
			wrong = append(wrong, fmt.Errorf("%s must not be negative, it is %v", name, *v))
		}
	}
	positive("NodeTimeout", &o.NodeTimeout, 2*time.Second)
	positive("ConnTimeout", &o.ConnTimeout, 2*time.Second)
	positive("TempfileAge", &o.TempfileAge, time.Hour)
	positive("MonitorInterval", &o.MonitorInterval, 2500*time.Millisecond)
	positive("RefreshInterval", &o.RefreshInterval, 4*time.Second)
	positive("TestWriteInterval", &o.TestWriteInterval, 15*time.Second)
	positive("SlowReaderTimeout", &o.SlowReaderTimeout, 120*time.Second)
	positive("QueryTimeout", &o.QueryTimeout, 30*time.Second)
	positive("DrainTimeout", &o.DrainTimeout, 5*time.Second)
	count := func(name string, v *int, byDefault, most int) {
		if *v == 0 {
			*v = byDefault
		}
		if *v < 0 || most > 0 && *v > most {
			wrong = append(wrong, fmt.Errorf("%s must be from 1 to %d, it is %d", name, most, *v))
		}
	}
	count("QueryJobs", &o.QueryJobs, 200, maxWorkers)
	count("DefaultMinDevCount", &o.DefaultMinDevCount, 2, protocol.MaxDevID)
	count("ConnPoolSize", &o.ConnPoolSize, 20, 1<<16)
	count("MaxConns", &o.MaxConns, 10000, 1<<20)
	count("CopiesPerDevice", &o.CopiesPerDevice, 4, maxWorkers)
	if o.ReplicationBandwidth < 0 || o.ReplicationBandwidth > 0 && o.ReplicationBandwidth < minBandwidth {
		wrong = append(wrong, fmt.Errorf("ReplicationBandwidth must be at least %d bytes a second, or 0, it is %d", minBandwidth, o.ReplicationBandwidth))
	}
	count("MaxLine", &o.MaxLine, protocol.MaxLine, 1<<30)
	workers := func(name string, v *int, byDefault int) {
		if *v == 0 {
			*v = byDefault
		}
		*v = max(*v, 0)
		if *v > maxWorkers {
			wrong = append(wrong, fmt.Errorf("%s must be at most %d, it is %d", name, maxWorkers, *v))
		}
	}
	workers("ReplicateJobs", &o.ReplicateJobs, 16)
	workers("DeleteJobs", &o.DeleteJobs, 1)
	workers("FsckJobs", &o.FsckJobs, 1)
	workers("ReaperJobs", &o.ReaperJobs, 1)
	if o.MinFreeMB == 0 {
		o.MinFreeMB = 100
	}
	if o.StorageMgmtPort == 0 {
		o.StorageMgmtPort = 7501
	}
	if o.StorageMgmtPort > 65535 {
		wrong = append(wrong, fmt.Errorf("StorageMgmtPort must be at most 65535, it is %d", o.StorageMgmtPort))
	}
	if len(o.Listen) == 0 {
		o.Listen = []string{"0.0.0.0:" + protocol.DefaultPort}
	}
	if o.Name == "" {
		name, err := os.Hostname()
		if err != nil {
			wrong = append(wrong, fmt.Errorf("the host has no name, set Name: %w", err))
		}
		o.Name = name
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Watchers == nil {
		o.Watchers = NewWatchers()
		o.Log = o.Log.Hook(o.Watchers)
	}
	return o, errors.Join(wrong...)
}

// minBandwidth is the least that copies can be limited to: less would make the
// storage daemons take each other for dead.
const minBandwidth = 64 << 10

// Tracker is the daemon. Make it with [New].
type Tracker struct {
	opts     Options
	log      zerolog.Logger
	failures zerolog.Logger // log, for what every request would say while the database is away
	now      func() time.Time
	started  time.Time

	store   schema.Store
	cluster *cluster.Cluster
	storage *storage.Client
	monitor *monitor.Monitor

	replicate *replicate.Worker
	deleter   *deleter.Worker
	fsck      *fsck.Worker
	reaper    *reap.Reaper
	strays    *fsck.Strays
	drain     *drain.Drainer
	rebalance *rebalance.Balancer
	workers   []func(context.Context) error // what must be run, but for the monitor
	watching  *work.Pool                    // runs the monitor
	watcher   atomic.Int64                  // the number of the worker that does
	jobs      map[string]job                // by name
	lengths   queueLengths
	usages    classUsages

	paths      *pathCache
	openings   *openings
	pathCounts pathCounters

	queries  *queryWorkers
	recent   recent
	commands map[string]*command
	watchers *Watchers
	metrics  *status.Metrics
	server   *server

	listeners []net.Listener
	refresh   chan struct{} // of capacity 1: a monitor round is asked for
	quit      chan struct{} // closed by "!shutdown"
	quitOnce  sync.Once
}

// New binds the addresses and builds a tracker. Its error names everything that
// is wrong with the options. Clients that connect before [Tracker.Run] wait.
func New(o Options) (*Tracker, error) {
	o, err := o.withDefaults()
	if err != nil {
		return nil, fmt.Errorf("tracker: %w", err)
	}
	t := &Tracker{
		opts: o, log: o.Log, now: o.Now, started: o.Now(), store: o.Store, watchers: o.Watchers,
		failures: o.Log.Sample(&zerolog.BurstSampler{Burst: 20, Period: 10 * time.Second}),
		refresh:  make(chan struct{}, 1),
		quit:     make(chan struct{}),
	}
	numbers := new(work.Numbers)
	t.queries = newQueryWorkers(o.QueryJobs, numbers.Next)
	t.lengths = queueLengths{rows: o.Store.QueueLengths, now: o.Now, used: make(map[schema.Queue]bool)}
	t.usages = classUsages{count: o.Store.ClassUsage, now: o.Now}
	t.metrics = status.New(status.Sources{
		Name: o.Name, Version: o.Version, Queries: func() (int, int, int) {
			l := t.queries.load()
			return l.pending, l.processing, l.bored
		},
		Workers: t.workerCounts, Abandoned: t.abandonedCounts, Watchers: t.watchers.len, QueueLengths: t.lengths.count,
	})
	t.paths = newPathCache(t.now, maxPathEntries, maxPathBytes)
	t.openings = newOpenings()
	t.pathCounts = newPathCounters(t.metrics.Registry(), t.paths.len)
	t.build(numbers)
	t.commands = t.table()
	t.server = newServer(serverOptions{MaxLine: o.MaxLine, MaxConns: o.MaxConns, SlowReader: o.SlowReaderTimeout},
		t.answerLine, t.metrics, t.log)
	if t.listeners, err = listen(o.Listen); err != nil {
		t.storage.Close()
		return nil, fmt.Errorf("tracker: %w", err)
	}
	return t, nil
}

// listen binds every address, or none.
func listen(addresses []string) ([]net.Listener, error) {
	var bound []net.Listener
	var wrong []error
	for _, a := range addresses {
		if _, _, err := net.SplitHostPort(a); err != nil {
			a = net.JoinHostPort(strings.Trim(a, "[]"), protocol.DefaultPort)
		}
		l, err := net.Listen("tcp", a)
		if err != nil {
			wrong = append(wrong, err)
			continue
		}
		bound = append(bound, l)
	}
	if len(wrong) == 0 {
		return bound, nil
	}
	for _, l := range bound {
		wrong = append(wrong, l.Close())
	}
	return nil, errors.Join(wrong...)
}

// Addrs are the addresses at which clients are answered.
func (t *Tracker) Addrs() []net.Addr {
	addrs := make([]net.Addr, len(t.listeners))
	for i, l := range t.listeners {
		addrs[i] = l.Addr()
	}
	return addrs
}

// Registry is where the tracker's metrics are read.
func (t *Tracker) Registry() *prometheus.Registry { return t.metrics.Registry() }

// Ready reports whether requests are answered now: the monitor has finished its
// first round, the database answers, and the tracker is not being stopped.
func (t *Tracker) Ready(ctx context.Context) error {
	switch {
	case t.server.closing.Load():
		return errors.New("the tracker is stopping")
	case !t.isReady():
		return errors.New("the storage hosts are still being looked at for the first time")
	}
	if err := t.store.Ping(ctx); err != nil {
		return fmt.Errorf("the database does not answer: %w", err)
	}
	return nil
}

func (t *Tracker) isReady() bool {
	select {
	case <-t.monitor.Ready():
		return true
	default:
		return false
	}
}

// shutdown has Run end, soon.
func (t *Tracker) shutdown() { t.quitOnce.Do(func() { close(t.quit) }) }

// quitTimeout is the DrainTimeout of a tracker that was told "!shutdown".
const quitTimeout = time.Second

// Run answers clients and works until ctx ends or a console says "!shutdown".
// Then it stops accepting, lets the requests at work be answered within the
// DrainTimeout, and waits for everything that it started. It returns nil in
// both cases, and may be called once.
func (t *Tracker) Run(ctx context.Context) error {
	defer t.storage.Close()
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	g, ctx := errgroup.WithContext(ctx)
	// Requests at work, and the monitor that some of them wait for, outlive ctx.
	late, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()

	g.Go(func() error {
		defer end()
		return t.server.run(ctx, late, t.listeners)
	})
	g.Go(func() error { return t.watching.Run(late) })
	g.Go(func() error { return t.afterFirstRound(ctx) })
	g.Go(func() error { t.refreshes(late); return nil })
	g.Go(func() error { t.register(ctx); return nil })
	g.Go(func() error {
		drain := t.opts.DrainTimeout
		select {
		case <-t.quit:
			drain = min(drain, quitTimeout)
			stop()
		case <-ctx.Done():
		}
		if wait(late, drain) {
			t.log.Warn().Dur("took", drain).Msg("requests at work are cancelled: they took too long to end")
		}
		end()
		return nil
	})
	return g.Wait()
}

// afterFirstRound lets requests and workers begin when the monitor has finished
// its first round: before, no device can be used. When ctx ends it sends away
// the requests that have not begun, and waits for the workers.
func (t *Tracker) afterFirstRound(ctx context.Context) error {
	defer t.queries.stop()
	select {
	case <-t.monitor.Ready():
	case <-ctx.Done():
		return nil
	}
	t.queries.open()
	t.log.Info().Str("name", t.opts.Name).Dur("took", t.now().Sub(t.started)).Msg("ready for requests")
	g, ctx := errgroup.WithContext(ctx)
	for _, run := range t.workers {
		g.Go(func() error { return run(ctx) })
	}
	<-ctx.Done()
	t.queries.stop()
	return g.Wait()
}

// refreshes has the monitor look at everything whenever that was asked for.
func (t *Tracker) refreshes(ctx context.Context) {
	for {
		select {
		case <-t.refresh:
			if err := t.lookAgain(ctx); err != nil && ctx.Err() == nil {
				t.failures.Warn().Err(err).Msg("storage hosts could not be looked at")
			}
		case <-ctx.Done():
			return
		}
	}
}

// refreshSoon asks for a monitor round without waiting for it.
func (t *Tracker) refreshSoon() {
	select {
	case t.refresh <- struct{}{}:
	default: // one is asked for already
	}
}

// Registration of a tracker among the others on its database.
const (
	registerEvery   = 10 * time.Second
	registerTimeout = 5 * time.Second
)

// register tells the other trackers, through the database, that this one is
// there.
func (t *Tracker) register(ctx context.Context) {
	outage := work.NewOutage(t.log)
	addrs := make([]string, len(t.listeners))
	for i, a := range t.Addrs() {
		addrs[i] = a.String()
	}
	me := schema.Tracker{Name: t.opts.Name, Address: strings.Join(addrs, ","), Version: cmp.Or(t.opts.Version, "unknown")}
	for {
		within, cancel := context.WithTimeout(ctx, registerTimeout)
		err := t.store.RegisterTracker(within, me)
		cancel()
		if err == nil {
			outage.Answered()
		} else if ctx.Err() == nil {
			outage.Failed(err)
		}
		if !wait(ctx, registerEvery) {
			return
		}
	}
}

// workerCounts are the present workers of each job, for the metrics.
func (t *Tracker) workerCounts() map[string]int {
	counts := make(map[string]int, len(t.jobs))
	for name, j := range t.jobs {
		counts[name] = len(j.IDs())
	}
	return counts
}

// abandonedCounts are the workers of each job that were given up and have not
// returned, for the metrics.
func (t *Tracker) abandonedCounts() map[string]int {
	counts := make(map[string]int, len(t.jobs))
	for name, j := range t.jobs {
		counts[name] = j.Abandoned()
	}
	return counts
}
