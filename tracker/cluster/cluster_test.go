package cluster

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/rs/zerolog"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/schema"
)

type topology schema.Topology

// database is a topology whose rows the test sets.
type database struct {
	topology
	mu    sync.Mutex
	rows  schema.TopologyRows
	err   error
	reads int
	hold  chan struct{} // where not nil a read waits for it, once its rows are taken
}

func (d *database) set(f func(*database)) { d.mu.Lock(); defer d.mu.Unlock(); f(d) }

func (d *database) Topology(ctx context.Context) (schema.TopologyRows, error) {
	d.mu.Lock()
	d.reads++
	rows, err, hold := d.rows, d.err, d.hold
	d.mu.Unlock()
	if hold != nil {
		select {
		case <-hold:
		case <-ctx.Done():
			return schema.TopologyRows{}, ctx.Err()
		}
	}
	return rows, err
}

func twoHosts() schema.TopologyRows {
	return schema.TopologyRows{
		Domains: []schema.Domain{{ID: 1, Name: "d"}},
		Hosts:   []schema.Host{{ID: 1, Name: "h1", Status: "alive"}, {ID: 2, Name: "h2", Status: "alive"}},
		Devices: []schema.Device{
			{ID: 1, HostID: 1, Status: "alive"}, {ID: 2, HostID: 1, Status: "alive"}, {ID: 3, HostID: 2, Status: "alive"},
		},
	}
}

func TestRefreshKeepsObservations(t *testing.T) {
	db := &database{rows: twoHosts()}
	c := New(db, Options{})
	if c.Snapshot() != nil {
		t.Fatal("there is a snapshot before the first refresh")
	}
	c.Observe(Observation{Host: 1, HostState: HostReachable}) // ignored, there is nothing to lay it over
	refresh(t, c)
	if got := c.Snapshot().Domains["d"].Classes[0].MinDevCount; got != 2 {
		t.Errorf("mindevcount of the default class is %d, want 2", got)
	}
	yes := true
	c.Observe(
		Observation{Host: 1, HostState: HostReachable, Capabilities: &Capabilities{Version: 1, Words: []string{"copy"}}},
		Observation{Device: 1, DeviceState: DeviceWriteable, Utilization: "12.5", RejectBadMD5: &yes},
	)
	db.set(func(d *database) {
		d.rows = twoHosts()
		d.rows.Devices[0].Status = "drain"
		d.rows.Devices[0].HostID = 1
	})
	refresh(t, c)
	d := c.Snapshot().Device(1)
	if !d.Draining() || d.Observed != DeviceWriteable || d.Utilization != "12.5" || d.RejectBadMD5 == nil || !*d.RejectBadMD5 {
		t.Errorf("dev1 after the refresh: %+v", d)
	}
	if h := d.Host; h != c.Snapshot().Hosts[1] || h.Observed != HostReachable || !h.Capabilities.Has("copy") {
		t.Errorf("host after the refresh: %+v", h)
	}
}

func TestOutageKeepsSnapshot(t *testing.T) {
	db := &database{rows: twoHosts()}
	c := New(db, Options{})
	refresh(t, c)
	before := c.Snapshot()
	db.set(func(d *database) { d.err = schema.ErrUnavailable })
	if err := c.Refresh(t.Context()); !errors.Is(err, schema.ErrUnavailable) {
		t.Errorf("refresh during an outage: %v", err)
	}
	if c.Snapshot() != before {
		t.Error("an outage replaced the snapshot")
	}
	c.Observe(Observation{Device: 3, DeviceState: DeviceReadable})
	if c.Snapshot().Device(3).Observed != DeviceReadable {
		t.Error("observations are not published during an outage")
	}
	db.set(func(d *database) { d.err = nil })
	refresh(t, c)
	if c.Snapshot().Device(3).Observed != DeviceReadable {
		t.Error("what was observed during the outage is lost after it")
	}
}

func TestObserve(t *testing.T) {
	db := &database{rows: twoHosts()}
	c := New(db, Options{})
	refresh(t, c)
	before := c.Snapshot()
	c.Observe(
		Observation{Device: 2, DeviceState: DeviceWriteable},
		Observation{Host: 1, HostState: HostReachable},
		Observation{Device: 2, Utilization: "3"},
		Observation{Device: 77, DeviceState: DeviceWriteable},
		Observation{Host: 77, HostState: HostReachable},
	)
	s := c.Snapshot()
	if before.Device(2).Observed != "" || before.Hosts[1].Observed != "" {
		t.Error("a published snapshot was changed")
	}
	if d := s.Device(2); d.Observed != DeviceWriteable || d.Utilization != "3" || !d.Readable() {
		t.Errorf("dev2 is %+v", d)
	}
	for i, d := range s.DeviceList {
		if d != s.Devices[d.ID] || d.Host != s.Hosts[d.HostID] {
			t.Errorf("dev%d: list, map and host do not agree", d.ID)
		}
		if (d == before.DeviceList[i]) != (d.ID == 3) {
			t.Errorf("dev%d: shared with the snapshot before: %v", d.ID, d == before.DeviceList[i])
		}
	}
	if s.HostList[0] != s.Hosts[1] || s.HostList[1] != before.HostList[1] || len(s.Devices) != 3 {
		t.Error("hosts do not agree")
	}
	c.Observe(Observation{Device: 2, DeviceState: DeviceWriteable, Utilization: "3"}, Observation{Host: 1})
	if c.Snapshot() != s {
		t.Error("observing nothing new published a snapshot")
	}
}

// TestRefreshSeesWhatWasBefore: a refresh must not be answered by a read that
// began before it was asked for; those that wait share one.
func TestRefreshSeesWhatWasBefore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hold := make(chan struct{})
		db := &database{rows: twoHosts(), hold: hold}
		c := New(db, Options{})
		var wg sync.WaitGroup
		wg.Go(func() { refresh(t, c) })
		synctest.Wait() // it has read, and not published
		db.set(func(d *database) { d.rows.Hosts[0].Status = "down" })
		for range 5 {
			wg.Go(func() {
				refresh(t, c)
				if got := c.Snapshot().Hosts[1].Status; got != "down" {
					t.Errorf("a refresh returned without the change made before it: status %s", got)
				}
			})
		}
		wg.Go(func() {
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			if err := c.Refresh(ctx); !errors.Is(err, context.Canceled) {
				t.Errorf("cancelled refresh: %v", err)
			}
		})
		synctest.Wait()
		close(hold)
		wg.Wait()
		if db.reads != 2 {
			t.Errorf("%d reads, want 2", db.reads)
		}
	})
}

func TestComplainsOnce(t *testing.T) {
	var log bytes.Buffer
	db := &database{rows: twoHosts()}
	db.rows.Devices[1].Status = "resting"
	db.rows.Hosts[1].Status = "asleep"
	db.rows.Hosts[0].AltIP, db.rows.Hosts[0].AltMask = "10.0.0.1", "10/99"
	db.rows.Devices = append(db.rows.Devices, schema.Device{ID: 4, HostID: 9, Status: "down"})
	c := New(db, Options{Log: zerolog.New(&log)})
	refresh(t, c)
	refresh(t, c)
	if got := strings.Count(log.String(), "\n"); got != 4 {
		t.Errorf("%d lines, want 4:\n%s", got, log.String())
	}
	if d := c.Snapshot().Device(2); d.Monitored() || d.LetsDelete() || d.Dead() {
		t.Error("an unknown status is not taken for down")
	}
	db.set(func(d *database) {
		rows := twoHosts()
		rows.Devices[1].Status = "broken"
		d.rows = rows
	})
	log.Reset()
	refresh(t, c)
	if got := strings.Count(log.String(), "\n"); got != 1 || !strings.Contains(log.String(), "broken") {
		t.Errorf("after a change:\n%s", log.String())
	}
}

func TestConcurrentObservers(t *testing.T) {
	db := &database{rows: twoHosts()}
	c := New(db, Options{})
	refresh(t, c)
	var wg sync.WaitGroup
	for i := range 3 {
		wg.Go(func() {
			for range 200 {
				c.Observe(Observation{Device: c.Snapshot().DeviceList[i].ID, Utilization: "7", DeviceState: DeviceReadable})
				c.Observe(Observation{Device: c.Snapshot().DeviceList[i].ID, Utilization: "8"})
			}
		})
	}
	wg.Go(func() {
		for range 50 {
			refresh(t, c)
		}
	})
	wg.Wait()
	for _, d := range c.Snapshot().DeviceList {
		if d.Utilization != "8" || d.Observed != DeviceReadable {
			t.Errorf("dev%d lost an observation: %+v", d.ID, d)
		}
	}
}

func refresh(t *testing.T, c *Cluster) {
	t.Helper()
	if err := c.Refresh(t.Context()); err != nil {
		t.Error(err)
	}
}

func BenchmarkObserve(b *testing.B) {
	rows := schema.TopologyRows{}
	for h := range 100 {
		rows.Hosts = append(rows.Hosts, schema.Host{ID: schema.HostID(h + 1)})
	}
	for d := range 1000 {
		rows.Devices = append(rows.Devices, schema.Device{ID: protocol.DevID(d + 1), HostID: schema.HostID(d/10 + 1)})
	}
	c := New(&database{rows: rows}, Options{})
	if err := c.Refresh(b.Context()); err != nil {
		b.Fatal(err)
	}
	group := make([]Observation, 10) // what one host's stream sends each second
	util := [2]string{"1", "2"}
	i := 0
	for b.Loop() {
		for d := range group {
			group[d] = Observation{Device: protocol.DevID(d + 1), Utilization: util[i%2]}
		}
		c.Observe(group...)
		i++
	}
}

// TestZonesFollowTheSettings changes them, and hears of what makes no sense once.
func TestZonesFollowTheSettings(t *testing.T) {
	t.Parallel()
	var log bytes.Buffer
	const ip = "10.0.0.1"
	db := &database{rows: twoHosts()}
	db.rows.Hosts[0].IP = ip
	c := New(db, Options{Log: zerolog.New(&log)})
	refresh := func(settings map[string]string) *Snapshot {
		t.Helper()
		db.rows.Settings = settings
		if err := c.Refresh(t.Context()); err != nil {
			t.Fatal(err)
		}
		return c.Snapshot()
	}
	warned := func() string { defer log.Reset(); return log.String() }
	if s := refresh(nil); s.HostList[0].Zone != "" || warned() != "" {
		t.Errorf("zone %q before there are any", s.HostList[0].Zone)
	}
	broken := map[string]string{"network_zones": "a,b", "zone_a": ip + " rubbish"}
	if s := refresh(broken); s.HostList[0].Zone != "a" {
		t.Errorf("zone %q", s.HostList[0].Zone)
	}
	if got := warned(); strings.Count(got, "\n") != 2 || !strings.Contains(got, "rubbish") || !strings.Contains(got, "zone_b") {
		t.Errorf("the log says %s", got)
	}
	refresh(broken)
	c.Observe(Observation{Host: 1, HostState: HostReachable})
	if got := warned(); got != "" {
		t.Errorf("once more: %s", got)
	}
	if s := c.Snapshot(); s.HostList[0].Zone != "a" {
		t.Error("what is observed takes the zone away")
	}
	refresh(map[string]string{"network_zones": "a", "zone_a": ip})
	if got := warned(); got != "" {
		t.Errorf("put right: %s", got)
	}
	refresh(broken)
	if got := warned(); strings.Count(got, "\n") != 2 {
		t.Errorf("broken again: %s", got)
	}
}
