package monitor

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/schema"
	"github.com/mogile/mogile/tracker/cluster"
	"github.com/mogile/mogile/tracker/storage"
	"github.com/mogile/mogile/tracker/work"
)

// fastFailure is how soon a host refuses at the latest that is there (MogileFS
// 2.73): what fails later has hung.
const fastFailure = 500 * time.Millisecond

// outcome is how the fetching of a usage file ended.
type outcome int

const (
	skipped  outcome = iota // its host was found to hang before it had its turn
	fetched                 // there is a usage file
	answered                // the host answered over HTTP, but with an error
	refused                 // the host did not, and said so at once
	silent                  // nothing was heard
)

// visit is one device in one round.
type visit struct {
	dev    *cluster.Device
	memory *memory
	host   *hostVisit

	outcome      outcome
	err          error               // of fetching the usage file, reading it, or of the test write
	state        cluster.DeviceState // empty: as before
	rejectBadMD5 *bool
	usage        schema.Usage // without DevID: not known
}

// hostVisit is one host in one round.
type hostVisit struct {
	host   *cluster.Host
	visits []*visit

	mu     sync.Mutex // guards the rest
	left   int        // visits that are not over
	silent int
	spoke  bool // something was heard of it
	asked  bool // what its daemon can do, where another port is read from

	capabilities *cluster.Capabilities // nil: not known
	suspects     int                   // shards that the storage daemon wants to have checked
}

// heard notes what the storage daemon says of itself in the headers of an answer on
// the port where it takes orders.
func (h *hostVisit) heard(header http.Header) {
	capabilities := cluster.ParseCapabilities(header.Get("Mogile"))
	suspects, _ := strconv.Atoi(header.Get(protocol.SuspectsHeader)) // 0 where there is none
	h.mu.Lock()
	defer h.mu.Unlock()
	h.capabilities, h.suspects = &capabilities, max(h.suspects, suspects)
}

// ask reports, once, that the host's other port is to be asked what its daemon can do.
func (h *hostVisit) ask() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	first := !h.asked
	h.asked = true
	return first
}

// hangs reports whether the host was heard nothing of by more than one of its
// devices, and may be left for this round.
func (h *hostVisit) hangs() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return !h.spoke && h.silent > 1
}

// over notes that a visit has ended, and reports whether it was the host's
// last.
func (h *hostVisit) over(v *visit) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch v.outcome {
	case fetched, answered:
		h.spoke = true
	case silent:
		h.silent++
	}
	h.left--
	return h.left == 0
}

// plan is who to visit: every device that the monitor may look at, the hosts'
// first devices before their second ones, so that one host that hangs does not
// take all the connections.
func plan(s *cluster.Snapshot, memories map[protocol.DevID]*memory) []*visit {
	hosts := make(map[schema.HostID]*hostVisit, len(s.Hosts))
	most := 0
	for _, d := range s.DeviceList {
		if !d.Monitored() {
			continue
		}
		h := hosts[d.HostID]
		if h == nil {
			h = &hostVisit{host: d.Host}
			hosts[d.HostID] = h
		}
		k := memories[d.ID]
		if k == nil {
			k = &memory{}
			memories[d.ID] = k
		}
		h.visits = append(h.visits, &visit{dev: d, memory: k, host: h})
		h.left++
		most = max(most, h.left)
	}
	var all []*visit
	for i := range most {
		for _, host := range s.HostList {
			if h := hosts[host.ID]; h != nil && i < len(h.visits) {
				all = append(all, h.visits[i])
			}
		}
	}
	return all
}

// round looks at every device once.
func (m *Monitor) round(ctx context.Context) {
	s := m.o.Cluster.Snapshot()
	maps.DeleteFunc(m.devices, func(id protocol.DevID, _ *memory) bool { return s.Devices[id] == nil })
	all := plan(s, m.devices)
	m.streams.follow(ctx, all)
	m.errands.forget(s)
	peers, asOf := peersOf(s), m.o.Now()
	var next atomic.Int64
	var workers sync.WaitGroup
	for range min(m.o.PoolSize, len(all)) {
		workers.Go(func() {
			for i := next.Add(1) - 1; i < int64(len(all)); i = next.Add(1) - 1 {
				v := all[i]
				work.Alive(ctx)
				if !v.host.hangs() {
					m.look(ctx, v)
					m.learn(ctx, v)
				}
				if v.host.over(v) && ctx.Err() == nil {
					m.conclude(v.host)
					m.errands.attend(ctx, v.host, peers, asOf)
				}
			}
		})
	}
	workers.Wait()
	if ctx.Err() == nil {
		m.writeUsage(ctx, s.AsOf, all)
	}
}

// look visits a device.
func (m *Monitor) look(ctx context.Context, v *visit) {
	began := m.o.Now()
	file, header, err := m.get(ctx, deviceURL(v.dev, v.dev.Host.ReadPort(), "/usage"), usageLimit)
	if err != nil {
		v.err = err
		v.outcome = classify(err, m.o.Now().Sub(began), min(fastFailure, m.o.ConnTimeout/2))
		return
	}
	v.outcome = fetched
	if v.dev.Host.Port == v.dev.Host.ReadPort() {
		v.host.heard(header)
	}
	total, used, err := parseUsage(file)
	if err != nil {
		v.err = err
		if !v.memory.badUsage {
			m.o.Notify(fmt.Sprintf("dev%d reports used = %s, total = %s, content-length: %s, error?", v.dev.ID,
				usageValue(file, "used"), usageValue(file, "total"), header.Get("Content-Length")))
			m.o.Log.Warn().Uint32("devid", uint32(v.dev.ID)).Str("host", v.dev.Host.Name).Int("bytes", len(file)).
				Msg("usage file without used or total")
		}
		v.memory.badUsage = true
		return
	}
	v.memory.badUsage = false
	v.usage = schema.Usage{DevID: v.dev.ID, TotalMB: total, UsedMB: used}
	switch now := m.o.Now(); {
	case !v.dev.LetsDelete():
		v.memory.tested = time.Time{}
		v.state = cluster.DeviceReadable
	case testDue(v.dev, now, v.memory.tested, m.o.TestWriteInterval):
		v.memory.tested = now
		v.state, v.err = m.testWrite(ctx, v.dev)
		if v.state == cluster.DeviceWriteable {
			v.rejectBadMD5 = m.testMD5(ctx, v.dev)
		}
	}
}

// learn asks a host of which another port is read what its storage daemon can do, once
// in a round: what serves there may be a web server, and takes no orders in any case.
// Where it does not answer, what was known remains so.
func (m *Monitor) learn(ctx context.Context, v *visit) {
	port := v.dev.Host.Port
	if v.outcome != fetched || port == v.dev.Host.ReadPort() || !v.host.ask() {
		return
	}
	if _, header, err := m.get(ctx, deviceURL(v.dev, port, "/usage"), usageLimit); err == nil {
		v.host.heard(header)
	}
}

// classify says how a request failed that took so long.
func classify(err error, took, fast time.Duration) outcome {
	var status *storage.StatusError
	switch {
	case errors.As(err, &status), errors.Is(err, storage.ErrTooLong):
		return answered
	case took <= fast:
		return refused
	}
	return silent
}

// testDue reports whether a device is to be written to again: because it is
// time, or because it is not known to be up.
func testDue(d *cluster.Device, now, tested time.Time, interval time.Duration) bool {
	known := d.Observed == cluster.DeviceWriteable || d.Observed == cluster.DeviceReadable
	return !known || now.Sub(tested) >= interval
}

// judge is what the visits to the devices of a host mean. A host is reachable
// if a usage file of it could be had, and unreachable if nothing at all was
// heard of it while something took too long; else it stays what it was. A
// device of which no usage file could be had is unreachable, unless it is its
// host that is.
func judge(h *hostVisit) []cluster.Observation {
	host := cluster.Observation{Host: h.host.ID, Capabilities: h.capabilities}
	counts := map[outcome]int{}
	for _, v := range h.visits {
		counts[v.outcome]++
	}
	switch {
	case counts[fetched] > 0:
		host.HostState = cluster.HostReachable
	case counts[silent] > 0 && counts[answered] == 0:
		host.HostState = cluster.HostUnreachable
	}
	seen := []cluster.Observation{host}
	for _, v := range h.visits {
		o := cluster.Observation{Device: v.dev.ID, DeviceState: v.state, RejectBadMD5: v.rejectBadMD5}
		switch v.outcome {
		case answered, refused:
			o.DeviceState = cluster.DeviceUnreachable
		case silent:
			if host.HostState != cluster.HostUnreachable {
				o.DeviceState = cluster.DeviceUnreachable
			}
		}
		seen = append(seen, o)
	}
	return seen
}

// conclude publishes what was found of a host.
func (m *Monitor) conclude(h *hostVisit) {
	seen := judge(h)
	m.tell(h, seen)
	m.o.Cluster.Observe(seen...)
	if seen[0].HostState == cluster.HostReachable {
		m.streams.wake(h.host.ID)
	}
}

// tell logs what changed, seen being what judge says of h.
func (m *Monitor) tell(h *hostVisit, seen []cluster.Observation) {
	was, is := h.host.Observed, seen[0].HostState
	switch {
	case is == cluster.HostUnreachable && was != is:
		m.o.Log.Warn().Str("host", h.host.Name).Err(h.visits[0].err).Msg("host does not answer")
	case is == cluster.HostReachable && was == cluster.HostUnreachable:
		m.o.Log.Info().Str("host", h.host.Name).Msg("host answers again")
	}
	for i, o := range seen[1:] {
		v := h.visits[i]
		was, is := v.dev.Observed, o.DeviceState
		if is == "" || is == was {
			continue
		}
		e := m.o.Log.Info()
		switch {
		case is == cluster.DeviceUnreachable:
			if v.outcome == answered || v.outcome == refused {
				port := v.dev.Host.ReadPort()
				m.o.Notify(fmt.Sprintf("Port %d not listening on %s (%s)?  Error was: %v", port, v.dev.Host.IP,
					deviceURL(v.dev, port, "/usage"), v.err))
			}
			e = m.o.Log.Warn()
		case is == cluster.DeviceReadable && v.err != nil:
			e = m.o.Log.Warn()
		case was == "":
			e = m.o.Log.Debug()
		}
		e.Uint32("devid", uint32(v.dev.ID)).Str("host", h.host.Name).Str("was", string(was)).Str("is", string(is)).
			Err(v.err).Msg("device changed")
	}
}

// get is Storage.Get within ConnTimeout.
func (m *Monitor) get(ctx context.Context, url string, limit int64) ([]byte, http.Header, error) {
	within, cancel := context.WithTimeout(ctx, m.o.ConnTimeout)
	defer cancel()
	return m.o.Storage.Get(within, url, limit)
}

// deviceURL is a path below a device, as the tracker itself reaches it.
func deviceURL(d *cluster.Device, port int, path string) string {
	return "http://" + net.JoinHostPort(d.Host.IP, strconv.Itoa(port)) + "/dev" + d.ID.String() + path
}
