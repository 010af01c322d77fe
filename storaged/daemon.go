// Package storaged is the storage daemon: it serves the files of its devices,
// the dev<N> folders of one docroot, over HTTP, and answers questions about them
// on a side channel. It needs neither database nor tracker.
//
// The wire is that of MogileFS 2.73's storage daemons, so that trackers and
// clients of MogileFS can use it. What is stored, and what survives a crash, is
// the business of package volume, through which all access to disks goes: one
// disk that hangs holds up nobody but those who want something of it.
//
//   - the data plane (plane) says what HTTP methods do. It is a handler, an
//     interface that knows nothing of the HTTP server under it (server), which
//     is our own: the storage daemons' HTTP is narrower than the world's, and
//     laxer in places;
//   - the side channel (sideChannel) gives sizes, digests and the utilisation
//     of disks;
//   - usage keeps /dev<N>/usage.
package storaged

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
	"golang.org/x/sync/errgroup"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/storaged/coding"
	"github.com/mogile/mogile/storaged/erasure"
	"github.com/mogile/mogile/storaged/peers"
	"github.com/mogile/mogile/storaged/transfer"
	"github.com/mogile/mogile/storaged/volume"
)

// Daemon is a storage daemon. See [New].
type Daemon struct {
	docroot   *volume.Docroot
	registry  *prometheus.Registry
	usage     *usage
	trash     *emptier
	disks     *utilisation
	http      *server // nil where not served, as get and side
	get       *server // GET and HEAD only
	side      *sideChannel
	drain     time.Duration
	inventory *inventory
	transfers *transfer.Transfers
	peers     *peers.Peers
	sisters   *peers.Client
	suspects  *suspects
	codec     *erasure.Codec
	encoded   *encoded
	coding    *coding.Coding
	log       zerolog.Logger

	serving chan struct{} // closed when Run serves
	ready   atomic.Bool
	end     ending
}

// PatientDrain bounds an end for which nobody waits: that of a daemon that another
// has taken over from, or that was asked to finish what it has begun. Clients
// that do nothing for a minute are cut off before.
const PatientDrain = time.Hour

// ending is the end of a daemon, and when it is over.
type ending struct {
	begun, over chan struct{} // closed

	mu    sync.Mutex // guards what follows
	timer *time.Timer
	at    time.Time
}

// within begins the end, or moves its time ahead.
func (e *ending) within(limit time.Duration) {
	e.mu.Lock()
	defer e.mu.Unlock()
	at := time.Now().Add(limit)
	switch {
	case e.timer == nil:
		close(e.begun)
		e.timer = time.AfterFunc(limit, func() { close(e.over) })
	case !at.Before(e.at) || !e.timer.Stop(): // or it has fired
		return
	default:
		e.timer.Reset(limit)
	}
	e.at = at
}

// release gives the timer up.
func (e *ending) release() {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.timer != nil {
		e.timer.Stop()
	}
}

// New opens the docroot and binds the listeners; clients can connect, and are
// answered once [Daemon.Run] runs. It reports everything that is wrong with the
// options. A daemon that will not run must be closed.
func New(o Options) (_ *Daemon, err error) {
	o, err = o.withDefaults()
	if err != nil {
		return nil, fmt.Errorf("storage daemon: %w", err)
	}
	d := &Daemon{
		registry: prometheus.NewRegistry(), drain: o.DrainTimeout, log: o.Log, serving: make(chan struct{}),
		end: ending{begun: make(chan struct{}), over: make(chan struct{})},
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.Close())
		}
	}()
	d.docroot, err = volume.OpenDocroot(o.Docroot, volume.Options{
		FS: o.FS, Durability: o.Durability, RequireMount: o.RequireMount, StuckAfter: o.StuckAfter,
		UsageMaxAge: max(volume.DefaultUsageMaxAge, 4*o.UsageInterval),
		ClusterID:   o.ClusterID, Now: o.Now, Log: o.Log,
	})
	if err != nil {
		return nil, fmt.Errorf("storage daemon: %w", err)
	}
	m := newMeter(d.registry, d.docroot)
	d.usage = newUsage(d.docroot, o)
	d.disks = newUtilisation(d.docroot, o)
	bufs := new(buffers)
	d.transfers = transfer.New(transfer.Options{
		Docroot: d.docroot, PerDevice: o.TransfersPerDevice, Bandwidth: o.ReplicationBandwidth, Registerer: d.registry, Log: o.Log,
	})
	d.peers = peers.Load(context.Background(), d.docroot, o.Now, o.Log)
	d.sisters = peers.NewClient()
	d.suspects = newSuspects(o.Now)
	d.codec = erasure.New(erasure.Options{})
	d.encoded = newEncoded(d)
	d.coding = coding.New(coding.Options{
		Docroot: d.docroot, Codec: d.codec, Transfers: d.transfers, Peers: d.sisters, Key: firstKey(o.ClusterKeys),
		Bandwidth: o.ReplicationBandwidth, Now: o.Now, Registerer: d.registry, Log: o.Log,
	})
	d.inventory = &inventory{docroot: d.docroot, meter: m, now: o.Now, log: o.Log}
	d.trash = &emptier{docroot: d.docroot, meter: m, log: o.Log, busy: map[protocol.DevID]bool{}}
	taken := newOrders(o.ClusterKeys, d.orderKinds(), o.Now, d.registry, o.Log)
	relieve := func() {
		for _, l := range d.listeners() {
			l.closeIdle(idleOutOfFiles)
		}
		d.coding.Close() // what it keeps for further shards
	}
	listen := func(addr string) (*listener, error) {
		l, err := o.Listen(addr)
		if err != nil {
			return nil, fmt.Errorf("storage daemon: %w", err)
		}
		return newListener(l, &o, m, relieve), nil
	}
	for _, s := range []struct {
		addr     string
		readOnly bool
		to       **server
	}{{o.HTTPListen, false, &d.http}, {o.GetListen, true, &d.get}} {
		if s.addr == "" {
			continue
		}
		l, err := listen(s.addr)
		if err != nil {
			return nil, err
		}
		*s.to = &server{
			handler:  &plane{docroot: d.docroot, buffers: bufs, orders: taken, transfers: d.transfers, encoded: d.encoded, readOnly: s.readOnly},
			listener: l, buffers: bufs, meter: m, log: o.Log,
		}
		if !s.readOnly {
			(*s.to).verbs = taken.words(isLoopback(l.Addr()))
		}
	}
	if o.MgmtListen != "" {
		l, err := listen(o.MgmtListen)
		if err != nil {
			return nil, err
		}
		d.side = &sideChannel{
			listener: l, docroot: d.docroot, encoded: d.encoded, disks: d.disks, meter: m, log: o.Log,
			shutdown: func(graceful bool) {
				switch {
				case graceful:
					d.Stop(PatientDrain)
				case o.ShutdownAtOnce:
					d.Stop(0)
				default:
					d.Stop(d.drain)
				}
			},
			ended: make(chan struct{}), turns: map[turn]chan struct{}{},
		}
	}
	return d, nil
}

// HTTPAddr is the address of the data plane, nil where it is not served.
func (d *Daemon) HTTPAddr() net.Addr { return d.http.addr() }

// GetAddr is the address of the data plane that only reads, nil where it is not
// served.
func (d *Daemon) GetAddr() net.Addr { return d.get.addr() }

// MgmtAddr is the address of the side channel, nil where it is not served.
func (d *Daemon) MgmtAddr() net.Addr {
	if d.side == nil {
		return nil
	}
	return d.side.listener.Addr()
}

// listeners are those that are served.
func (d *Daemon) listeners() []*listener {
	var all []*listener
	for _, s := range []*server{d.http, d.get} {
		if s != nil {
			all = append(all, s.listener)
		}
	}
	if d.side != nil {
		all = append(all, d.side.listener)
	}
	return all
}

// ListenerFiles are descriptors of the listening sockets, for a process that is
// to take them over: it and this one both accept until this one stops. The
// caller closes them.
func (d *Daemon) ListenerFiles() ([]*os.File, error) {
	var files []*os.File
	for _, l := range d.listeners() {
		f, err := ListenerFile(l.TCPListener)
		if err != nil {
			for _, f := range files {
				f.Close() // nothing was written to it
			}
			return nil, fmt.Errorf("descriptor of the listener on %s: %w", l.Addr(), err)
		}
		files = append(files, f)
	}
	return files, nil
}

// Serving is closed when Run answers clients.
func (d *Daemon) Serving() <-chan struct{} { return d.serving }

// Stop has Run stop listening at once, and return when what is in progress has
// finished, or was cut off after limit. Connections that wait for a request are
// closed; those that never asked for anything have two seconds to. Called again
// it can shorten the time, not lengthen it.
func (d *Daemon) Stop(limit time.Duration) { d.end.within(limit) }

// Registry holds the daemon's metrics.
func (d *Daemon) Registry() *prometheus.Registry { return d.registry }

// errNotServing is the answer of Ready before Run serves, and after it stops.
var errNotServing = errors.New("storage daemon is starting or stopping")

// Ready says why the daemon is of no use now, nil if it is: it serves, and
// unless it has no device at all, one of them is well.
func (d *Daemon) Ready(context.Context) error {
	if !d.ready.Load() {
		return errNotServing
	}
	var errs []error
	for _, v := range d.docroot.Volumes() {
		_, err := v.Usage()
		if err == nil {
			return nil
		}
		errs = append(errs, fmt.Errorf("dev%d: %w", v.ID(), err))
	}
	for _, err := range d.docroot.Refused() {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// Run serves until ctx is cancelled, the side channel asks for the end, or
// [Daemon.Stop] is called; the first is Stop with the drain timeout. It returns
// nil then. It may be called once.
func (d *Daemon) Run(ctx context.Context) error {
	defer func() {
		if err := d.Close(); err != nil { // what matters was flushed when it was answered
			d.log.Warn().Err(err).Msg("devices could not be closed")
		}
	}()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop, cut := context.WithCancel(context.WithoutCancel(ctx))
	defer cut()

	// The first look at the devices, so that the first tracker that asks finds
	// out how full they are. Disks that hang are not waited for.
	d.usage.first(ctx)

	d.ready.Store(true)
	close(d.serving)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		select {
		case <-d.end.begun:
			cancel()
		case <-ctx.Done():
			d.Stop(d.drain)
		}
		d.ready.Store(false)
		select {
		case <-d.end.over:
			cut()
		case <-stop.Done():
		}
		d.end.release()
		return nil
	})
	g.Go(func() error { return d.usage.run(ctx) })
	g.Go(func() error { return d.disks.run(ctx) })
	g.Go(func() error { return d.trash.run(ctx) })
	g.Go(func() error {
		defer cut() // nothing is left that could be cut off
		serve := func(f func(ctx, stop context.Context) error) func() error {
			return func() error {
				defer cancel() // one that fails stops the others
				return f(ctx, stop)
			}
		}
		var planes, side errgroup.Group
		for _, s := range []*server{d.http, d.get} {
			if s != nil {
				planes.Go(serve(s.serve))
			}
		}
		if d.side == nil {
			return planes.Wait()
		}
		side.Go(serve(d.side.serve))
		err := planes.Wait()
		close(d.side.ended)
		return errors.Join(err, side.Wait())
	})
	return g.Wait()
}

// Close gives up the listeners and the docroot. It is for daemons that do not
// run: Run closes by itself.
func (d *Daemon) Close() error {
	var errs []error
	for _, l := range d.listeners() {
		errs = append(errs, ignoreClosed(l.Close()))
	}
	if d.transfers != nil {
		d.transfers.Close()
	}
	if d.sisters != nil {
		d.sisters.Close()
	}
	if d.coding != nil {
		d.coding.Close()
	}
	if d.docroot != nil {
		errs = append(errs, d.docroot.Close())
	}
	return errors.Join(errs...)
}

// firstKey is the key to sign with, none where there is none.
func firstKey(keys [][]byte) []byte {
	if len(keys) == 0 {
		return nil
	}
	return keys[0]
}

func ignoreClosed(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}
