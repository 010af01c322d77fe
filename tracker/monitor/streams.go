package monitor

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/schema"
	"github.com/mogile/mogile/tracker/cluster"
	"github.com/mogile/mogile/tracker/storage"
)

const (
	// streamRetry is how long a side channel that cannot be connected to is
	// left alone, unless a usage file is had from its host before (MogileFS
	// 2.73).
	streamRetry = 60 * time.Second
	// streamPause is the least time from one connection to the next.
	streamPause = time.Second
	// noUtilization stands for a device whose utilisation is not known.
	noUtilization = "-"
)

// streams are the connections that tell how busy disks are, one for each host
// that is looked at. It is owned by the loop of rounds.
type streams struct {
	m       *Monitor
	running map[schema.HostID]*stream
	all     sync.WaitGroup
}

type stream struct {
	m    *Monitor
	host schema.HostID
	name string
	ip   string
	end  context.CancelFunc
	wake chan struct{} // capacity 1: the host is there
}

func newStreams(m *Monitor) *streams {
	return &streams{m: m, running: map[schema.HostID]*stream{}}
}

// follow has the hosts of a round watched, and no others.
func (s *streams) follow(ctx context.Context, round []*visit) {
	hosts := make(map[schema.HostID]*cluster.Host, len(s.running))
	for _, v := range round {
		hosts[v.dev.HostID] = v.dev.Host
	}
	for id, r := range s.running {
		if h := hosts[id]; h == nil || h.IP != r.ip {
			r.end()
			delete(s.running, id)
		}
	}
	for id, h := range hosts {
		if s.running[id] != nil {
			continue
		}
		within, end := context.WithCancel(ctx)
		r := &stream{m: s.m, host: id, name: h.Name, ip: h.IP, end: end, wake: make(chan struct{}, 1)}
		s.running[id] = r
		s.all.Go(func() { r.run(within) })
	}
}

// wake has a stream that was given up tried again. It may be called by the
// workers of a round.
func (s *streams) wake(host schema.HostID) {
	if r := s.running[host]; r != nil {
		select {
		case r.wake <- struct{}{}:
		default: // it has been woken already
		}
	}
}

// stop ends all streams and waits for them.
func (s *streams) stop() {
	for _, r := range s.running {
		r.end()
	}
	s.all.Wait()
}

// run reads the stream of a host until ctx ends. It connects anew at once where
// a connection that gave something was closed.
func (r *stream) run(ctx context.Context) {
	told := false
	for ctx.Err() == nil {
		began := time.Now()
		gave := false
		err := r.m.o.Storage.Watch(ctx, r.ip, 0, func(g map[protocol.DevID]string) {
			gave = true
			r.observe(func(d protocol.DevID) string { return g[d] })
		})
		if ctx.Err() != nil {
			return
		}
		if gave {
			told = false
			pause(ctx, streamPause-time.Since(began), nil)
			continue
		}
		if !told {
			// Daemons of other makes have none, which is no fault.
			e := r.m.o.Log.Debug()
			if errors.Is(err, storage.ErrNoConnect) {
				e = r.m.o.Log.Info()
			}
			e.Str("host", r.name).Err(err).Msg("no stream of utilisation")
			told = true
		}
		r.observe(func(protocol.DevID) string { return noUtilization })
		pause(ctx, streamRetry, r.wake)
	}
}

// observe publishes the utilisation of the host's devices; empty texts stand
// for what was not told.
func (r *stream) observe(of func(protocol.DevID) string) {
	var seen []cluster.Observation
	for _, d := range r.m.o.Cluster.Snapshot().DeviceList {
		if d.HostID != r.host {
			continue
		}
		util := of(d.ID)
		if util != "" && util != d.Utilization && (util != noUtilization || d.Utilization != "") {
			seen = append(seen, cluster.Observation{Device: d.ID, Utilization: util})
		}
	}
	if len(seen) > 0 {
		r.m.o.Cluster.Observe(seen...)
	}
}

// pause waits for d, for wake, or for the end of ctx.
func pause(ctx context.Context, d time.Duration, wake <-chan struct{}) {
	timer := time.NewTimer(max(0, d))
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-wake:
	case <-ctx.Done():
	}
}
