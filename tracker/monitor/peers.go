package monitor

import (
	"context"
	"maps"
	"net"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/schema"
	"github.com/mogile/mogile/tracker/cluster"
)

const (
	// tellPeersEvery is how seldom a storage daemon is told where devices are that
	// was told the same before: one that lost what it kept learns it again.
	tellPeersEvery = 10 * time.Minute
	// tellPeersAgain is how soon one is told again that could not be.
	tellPeersAgain = 15 * time.Second
	// errandTime bounds what is done for a host beside a round.
	errandTime = 30 * time.Second
)

// errands are what is done for hosts that keep shards, beside the rounds: their
// storage daemons are told where all devices are, and asked which shards they
// found missing or bad. A host is attended to by one goroutine at a time, so that
// one that takes its time holds up no other, and no round.
type errands struct {
	m   *Monitor
	all sync.WaitGroup

	mu    sync.Mutex // guards what follows
	hosts map[schema.HostID]*errand
}

// errand is what is known of a host.
type errand struct {
	running bool
	told    map[protocol.DevID]string // nil: nothing, or it came back since
	at      time.Time                 // when it was told, or that failed
	failing bool
}

// peersOf is where each device is, of those that may have shards.
func peersOf(s *cluster.Snapshot) map[protocol.DevID]string {
	peers := make(map[protocol.DevID]string, len(s.DeviceList))
	for _, d := range s.DeviceList {
		if d.Host != nil && !d.Dead() {
			peers[d.ID] = "http://" + orderAddress(d.Host)
		}
	}
	return peers
}

// orderAddress is where a host's storage daemon takes orders, and is read by
// others.
func orderAddress(h *cluster.Host) string {
	return net.JoinHostPort(h.Address(cluster.Viewer{}), strconv.Itoa(h.Port))
}

// due reports whether a host is to be told of peers now.
func (e *errand) due(peers map[protocol.DevID]string, now time.Time) bool {
	switch since := now.Sub(e.at); {
	case e.failing:
		return since >= tellPeersAgain
	case e.told == nil || !maps.Equal(e.told, peers):
		return true
	default:
		return since >= tellPeersEvery
	}
}

// attend does what is to be done for a host after a visit. peers is as of the
// time asOf, by this tracker's clock.
func (s *errands) attend(ctx context.Context, h *hostVisit, peers map[protocol.DevID]string, asOf time.Time) {
	able, suspects := h.capabilities != nil && h.capabilities.Has(protocol.WordEC), h.suspects
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.hosts[h.host.ID]
	if e == nil {
		e = &errand{}
		s.hosts[h.host.ID] = e
	}
	if !able || h.host.Observed != cluster.HostReachable {
		e.told = nil // it came back, or goes away
	}
	tell := e.due(peers, s.m.o.Now())
	if !able || e.running || !tell && suspects == 0 {
		return
	}
	e.running = true
	s.all.Go(func() {
		within, cancel := context.WithTimeout(ctx, errandTime)
		defer cancel()
		if tell {
			s.tellPeers(within, h.host, e, protocol.PeersOrder{Version: asOf.UnixMilli(), Peers: peers})
		}
		if suspects > 0 {
			s.askForSuspects(within, h.host)
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		e.running = false
	})
}

// forget forgets hosts that are there no more.
func (s *errands) forget(snapshot *cluster.Snapshot) {
	s.mu.Lock()
	defer s.mu.Unlock()
	maps.DeleteFunc(s.hosts, func(id schema.HostID, _ *errand) bool { return snapshot.Hosts[id] == nil })
}

// tellPeers tells a host's storage daemon where devices are. That it cannot be
// told is logged when it begins and when it ends.
func (s *errands) tellPeers(ctx context.Context, h *cluster.Host, e *errand, o protocol.PeersOrder) {
	_, err := s.m.o.Storage.TellPeers(ctx, orderAddress(h), o)
	s.mu.Lock()
	defer s.mu.Unlock()
	if ctx.Err() != nil && err != nil && context.Cause(ctx) == context.Canceled {
		return // the tracker ends
	}
	was := e.failing
	e.failing, e.at = err != nil, s.m.o.Now()
	log := s.m.o.Log.With().Str("host", h.Name).Logger()
	switch {
	case err != nil && !was:
		log.Warn().Err(err).Msg("storage daemon cannot be told where other devices are: it may not find the shards of files")
	case err == nil && was:
		log.Info().Msg("storage daemon was told where other devices are again")
	}
	if err == nil {
		e.told = o.Peers
	}
}

// askForSuspects has files checked of which a host's storage daemon found shards
// missing or bad.
func (s *errands) askForSuspects(ctx context.Context, h *cluster.Host) {
	found, err := s.m.o.Storage.Suspects(ctx, orderAddress(h), protocol.MaxSuspects)
	fids := make([]protocol.FID, 0, len(found))
	for _, at := range found {
		fids = append(fids, at.FID)
	}
	slices.Sort(fids)
	fids = slices.Compact(fids)
	log := s.m.o.Log.With().Str("host", h.Name).Int("files", len(fids)).Logger()
	if err != nil && ctx.Err() == nil {
		log.Warn().Err(err).Msg("storage daemon does not tell which shards it found bad")
	}
	if len(fids) == 0 {
		return
	}
	if err := s.m.o.Store.QueueFsck(ctx, fids, 0, schema.FsckContent); err != nil {
		// Reads find them again.
		log.Warn().Err(err).Msg("files of which shards are missing or bad cannot be queued for fsck")
		return
	}
	log.Info().Msg("shards were found missing or bad when they were read: fsck will check their files")
}
