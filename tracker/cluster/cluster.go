package cluster

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/rs/zerolog"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/schema"
)

// Options are the settings of a [Cluster].
type Options struct {
	DefaultMinDevCount int // copies in a class "default" without a row; 0 means 2
	Log                zerolog.Logger
}

// Cluster publishes snapshots.
type Cluster struct {
	store schema.Topology
	opts  Options

	current atomic.Pointer[Snapshot]
	publish sync.Mutex // held from reading current to replacing it

	reading chan struct{} // holds one value while the database is being read
	asked   atomic.Uint64 // calls of Refresh so far
	covered uint64        // calls that were made before the last successful read began; guarded by reading
}

// New makes a cluster that knows nothing until its first [Cluster.Refresh].
func New(store schema.Topology, o Options) *Cluster {
	if o.DefaultMinDevCount <= 0 {
		o.DefaultMinDevCount = 2
	}
	return &Cluster{store: store, opts: o, reading: make(chan struct{}, 1)}
}

// Snapshot is the cluster as last published; nil before the first Refresh.
func (c *Cluster) Snapshot() *Snapshot { return c.current.Load() }

// Refresh reads the database and publishes what it says, keeping what was
// observed. It returns after a read that began after the call: calls that wait
// for one running read share the next. On an error the last snapshot stays.
func (c *Cluster) Refresh(ctx context.Context) error {
	mine := c.asked.Add(1)
	select {
	case c.reading <- struct{}{}:
		defer func() { <-c.reading }()
	case <-ctx.Done():
		return fmt.Errorf("refresh the cluster: %w", ctx.Err())
	}
	if c.covered >= mine {
		return nil
	}
	begun := c.asked.Load()
	rows, err := c.store.Topology(ctx)
	if err != nil {
		return fmt.Errorf("refresh the cluster: %w", err)
	}
	s := NewSnapshot(rows, c.opts.DefaultMinDevCount)
	c.publish.Lock()
	old := c.current.Load()
	s.keepObserved(old)
	c.current.Store(s)
	c.publish.Unlock()
	c.covered = begun
	c.complain(old, s)
	return nil
}

// complain logs what the database holds that makes no sense, once when it
// comes up.
func (c *Cluster) complain(old, s *Snapshot) {
	for _, w := range s.zoneWarnings {
		if old == nil || !slices.Contains(old.zoneWarnings, w) {
			c.opts.Log.Warn().Str("reason", w).Msg("the settings of zones make no sense")
		}
	}
	for _, h := range s.HostList {
		var was schema.Host
		if old != nil && old.Hosts[h.ID] != nil {
			was = old.Hosts[h.ID].Host
		}
		if was.Status != h.Status && !knownHostStatus(h.Status) {
			c.opts.Log.Warn().Str("host", h.Name).Str("status", h.Status).Msg("unknown status of a host is taken for down")
		}
		if was.AltMask != h.AltMask && h.AltMask != "" && !h.altMask.IsValid() {
			c.opts.Log.Warn().Str("host", h.Name).Str("altmask", h.AltMask).Msg("altmask is no netmask: altip is not used")
		}
	}
	for _, d := range s.DeviceList {
		var was Device
		if old != nil && old.Devices[d.ID] != nil {
			was = *old.Devices[d.ID]
		}
		if was.Device.Status != d.Status && d.Status != schema.DeviceDown && d.status() == schema.DeviceDown {
			c.opts.Log.Warn().Uint32("devid", uint32(d.ID)).Str("status", d.Status).Msg("unknown status of a device is taken for down")
		}
		if d.Host == nil && (was.ID == 0 || was.Host != nil) {
			c.opts.Log.Warn().Uint32("devid", uint32(d.ID)).Int("hostid", int(d.HostID)).Msg("device belongs to a host that is not there")
		}
	}
}

func knownHostStatus(s string) bool {
	return s == schema.HostAlive || s == schema.HostReadonly || s == schema.HostDown || s == schema.HostDead
}

// Observation is what the monitor saw of one host or of one device. Fields that
// are zero stay as they were.
type Observation struct {
	Host   schema.HostID  // the host, or
	Device protocol.DevID // the device that was looked at

	HostState    HostState
	Capabilities *Capabilities // of the host

	DeviceState  DeviceState
	Utilization  string // of the device, as the storage daemon sent it
	RejectBadMD5 *bool
}

// Observe publishes a snapshot with changes laid over the present one.
// Observations of what is not in it are ignored. Nothing is published where
// nothing changes.
func (c *Cluster) Observe(changes ...Observation) {
	c.publish.Lock()
	defer c.publish.Unlock()
	old := c.current.Load()
	if old == nil {
		return
	}
	if s := old.with(changes); s != old {
		c.current.Store(s)
	}
}

// with is s with changes, sharing all that they do not touch; s itself where
// they change nothing.
func (s *Snapshot) with(changes []Observation) *Snapshot {
	hosts := map[schema.HostID]*Host{}
	devices := map[protocol.DevID]*Device{}
	for _, o := range changes {
		if h := latest(hosts, s.Hosts, o.Host); h != nil {
			n := *h
			if o.HostState != "" {
				n.Observed = o.HostState
			}
			if o.Capabilities != nil {
				n.Capabilities = *o.Capabilities
			}
			if n.Observed != h.Observed || !n.Capabilities.Equal(h.Capabilities) {
				hosts[h.ID] = &n
			}
		}
		if d := latest(devices, s.Devices, o.Device); d != nil {
			n := *d
			if o.DeviceState != "" {
				n.Observed = o.DeviceState
			}
			if o.Utilization != "" {
				n.Utilization = o.Utilization
			}
			if o.RejectBadMD5 != nil && (d.RejectBadMD5 == nil || *d.RejectBadMD5 != *o.RejectBadMD5) {
				n.RejectBadMD5 = o.RejectBadMD5
			}
			if n != *d {
				devices[d.ID] = &n
			}
		}
	}
	if len(hosts) == 0 && len(devices) == 0 {
		return s
	}
	n := *s
	if len(hosts) > 0 {
		n.Hosts, n.HostList = maps.Clone(s.Hosts), slices.Clone(s.HostList)
		maps.Copy(n.Hosts, hosts)
		for i, h := range n.HostList {
			n.HostList[i] = n.Hosts[h.ID]
		}
	}
	n.Devices, n.DeviceList = maps.Clone(s.Devices), slices.Clone(s.DeviceList)
	for i, d := range n.DeviceList {
		changed := devices[d.ID]
		if host := hosts[d.HostID]; host != nil {
			if changed == nil {
				changed = new(Device)
				*changed = *d
			}
			changed.Host = host
		}
		if changed != nil {
			n.Devices[d.ID], n.DeviceList[i] = changed, changed
		}
	}
	return &n
}

// latest is the changed value of id if there is one, else the present one; nil
// where there is neither.
func latest[K comparable, V any](changed, present map[K]*V, id K) *V {
	if v := changed[id]; v != nil {
		return v
	}
	return present[id]
}
