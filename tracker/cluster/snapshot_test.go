package cluster

import (
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/schema"
)

func mib(n int64) *int64 { return &n }

// TestStates is the tables of MogileFS 2.73 for what a host's and a device's
// status permit, on a device that the monitor found in the best of health.
func TestStates(t *testing.T) {
	type can struct{ Monitored, Readable, TakesFiles, LetsDelete, Dead, Draining bool }
	all := can{Monitored: true, Readable: true, TakesFiles: true, LetsDelete: true}
	tests := []struct {
		host, device string
		want         can
	}{
		{schema.HostAlive, schema.DeviceAlive, all},
		{schema.HostAlive, schema.DeviceDrain, can{Monitored: true, Readable: true, LetsDelete: true, Draining: true}},
		{schema.HostAlive, schema.DeviceReadonly, can{Monitored: true, Readable: true}},
		{schema.HostAlive, schema.DeviceDown, can{}},
		{schema.HostAlive, schema.DeviceDead, can{Dead: true}},
		{schema.HostAlive, "broken", can{}},
		{schema.HostReadonly, schema.DeviceAlive, can{Monitored: true, Readable: true}},
		{schema.HostReadonly, schema.DeviceDrain, can{Monitored: true, Readable: true, Draining: true}},
		{schema.HostReadonly, schema.DeviceReadonly, can{Monitored: true, Readable: true}},
		{schema.HostDown, schema.DeviceAlive, can{}},
		{schema.HostDown, schema.DeviceDead, can{Dead: true}},
		// A dead host does not make its devices dead.
		{schema.HostDead, schema.DeviceAlive, can{}},
		{schema.HostDead, schema.DeviceReadonly, can{}},
		{"broken", schema.DeviceAlive, can{}},
	}
	for _, tt := range tests {
		t.Run(tt.host+" "+tt.device, func(t *testing.T) {
			d := &Device{
				Device:   schema.Device{Status: tt.device, TotalMB: mib(1000), UsedMB: mib(10)},
				Host:     &Host{Host: schema.Host{Status: tt.host}, Observed: HostReachable},
				Observed: DeviceWriteable,
			}
			got := can{d.Monitored(), d.Readable(), d.TakesFiles(100), d.LetsDelete(), d.Dead(), d.Draining()}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Error("-want +got\n" + diff)
			}
		})
	}
}

func TestObservedStates(t *testing.T) {
	tests := []struct {
		host                            HostState
		device                          DeviceState
		readable, writeable, takesFiles bool
	}{
		{"", "", false, false, false},
		{HostReachable, "", false, false, false},
		{HostReachable, DeviceWriteable, true, true, true},
		{HostReachable, DeviceReadable, true, false, false},
		{HostReachable, DeviceUnreachable, false, false, false},
		{HostUnreachable, DeviceWriteable, false, false, false},
		{HostUnreachable, DeviceReadable, false, false, false},
		{"", DeviceWriteable, false, false, false},
	}
	for _, tt := range tests {
		t.Run(string(tt.host)+" "+string(tt.device), func(t *testing.T) {
			d := &Device{
				Device:   schema.Device{Status: schema.DeviceAlive},
				Host:     &Host{Host: schema.Host{Status: schema.HostAlive}, Observed: tt.host},
				Observed: tt.device,
			}
			if d.Readable() != tt.readable || d.Writeable() != tt.writeable || d.TakesFiles(100) != tt.takesFiles {
				t.Errorf("readable %v, writeable %v, takes files %v; want %v, %v, %v", d.Readable(), d.Writeable(),
					d.TakesFiles(100), tt.readable, tt.writeable, tt.takesFiles)
			}
		})
	}
	orphan := &Device{Device: schema.Device{Status: schema.DeviceAlive}, Observed: DeviceWriteable}
	if orphan.Monitored() || orphan.Readable() || orphan.TakesFiles(0) || orphan.LetsDelete() || orphan.WriteURL(1, Viewer{}) != "" {
		t.Error("a device without a host permits something")
	}
}

func TestFreeSpace(t *testing.T) {
	tests := []struct {
		name        string
		total, used *int64
		takes       bool // with at least 100 MiB free
		fraction    float64
	}{
		{"unknown", nil, nil, true, 0},
		{"half known", mib(1000), nil, true, 0},
		{"enough", mib(1000), mib(900), true, 0.1},
		{"one too few", mib(1000), mib(901), false, 0.099},
		{"full", mib(1000), mib(1000), false, 0},
		{"fuller than full", mib(1000), mib(1100), false, 0},
		{"no size", mib(0), mib(0), false, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d := &Device{
				Device:   schema.Device{Status: schema.DeviceAlive, TotalMB: tt.total, UsedMB: tt.used},
				Host:     &Host{Host: schema.Host{Status: schema.HostAlive}, Observed: HostReachable},
				Observed: DeviceWriteable,
			}
			if got := d.TakesFiles(100); got != tt.takes {
				t.Errorf("takes files %v, want %v", got, tt.takes)
			}
			if got := d.FreeFraction(); got != tt.fraction {
				t.Errorf("free fraction %v, want %v", got, tt.fraction)
			}
		})
	}
}

func TestURLs(t *testing.T) {
	rows := schema.TopologyRows{
		Hosts: []schema.Host{
			{ID: 1, Name: "plain", IP: "10.0.0.1", Port: 7500},
			{ID: 2, Name: "zones", IP: "10.0.0.2", Port: 7500, GetPort: 7510, AltIP: "192.168.0.2", AltMask: "192.168.0.0/16"},
			{ID: 3, Name: "nomask", IP: "10.0.0.3", Port: 80, AltIP: "192.168.0.3"},
			{ID: 4, Name: "badmask", IP: "10.0.0.4", Port: 80, AltIP: "192.168.0.4", AltMask: "192.168.0.0/33"},
			{ID: 5, Name: "one", IP: "10.0.0.5", Port: 80, AltIP: "192.168.0.5", AltMask: "192.168.7.7"},
			{ID: 6, Name: "six", IP: "fd00::1", Port: 7500},
			{ID: 7, Name: "unmasked", IP: "10.0.0.7", Port: 80, AltIP: "192.168.0.7", AltMask: "192.168.3.4/16"},
		},
	}
	for _, h := range rows.Hosts {
		rows.Devices = append(rows.Devices, schema.Device{ID: protocol.DevID(h.ID), HostID: h.ID, Status: schema.DeviceAlive})
	}
	s := NewSnapshot(rows, 2)
	inside, outside := netip.MustParseAddr("192.168.7.7"), netip.MustParseAddr("192.169.0.1")
	tests := []struct {
		dev    protocol.DevID
		fid    protocol.FID
		viewer Viewer
		write  string
		read   string
	}{
		{1, 5, Viewer{}, "http://10.0.0.1:7500/dev1/0/000/000/0000000005.fid", "http://10.0.0.1:7500/dev1/0/000/000/0000000005.fid"},
		{1, 12345678901, Viewer{Alt: true}, "http://10.0.0.1:7500/dev1/1/234/567/12345678901.fid", "http://10.0.0.1:7500/dev1/1/234/567/12345678901.fid"},
		{2, 5, Viewer{}, "http://10.0.0.2:7500/dev2/0/000/000/0000000005.fid", "http://10.0.0.2:7510/dev2/0/000/000/0000000005.fid"},
		{2, 5, Viewer{Alt: true}, "http://192.168.0.2:7500/dev2/0/000/000/0000000005.fid", "http://192.168.0.2:7510/dev2/0/000/000/0000000005.fid"},
		{2, 5, Viewer{Addr: inside}, "http://192.168.0.2:7500/dev2/0/000/000/0000000005.fid", "http://192.168.0.2:7510/dev2/0/000/000/0000000005.fid"},
		{2, 5, Viewer{Addr: netip.AddrFrom16(inside.As16())}, "http://192.168.0.2:7500/dev2/0/000/000/0000000005.fid", "http://192.168.0.2:7510/dev2/0/000/000/0000000005.fid"},
		{2, 5, Viewer{Addr: outside}, "http://10.0.0.2:7500/dev2/0/000/000/0000000005.fid", "http://10.0.0.2:7510/dev2/0/000/000/0000000005.fid"},
		{3, 5, Viewer{Alt: true}, "http://10.0.0.3:80/dev3/0/000/000/0000000005.fid", "http://10.0.0.3:80/dev3/0/000/000/0000000005.fid"},
		{4, 5, Viewer{Alt: true}, "http://10.0.0.4:80/dev4/0/000/000/0000000005.fid", "http://10.0.0.4:80/dev4/0/000/000/0000000005.fid"},
		{5, 5, Viewer{Addr: inside}, "http://192.168.0.5:80/dev5/0/000/000/0000000005.fid", "http://192.168.0.5:80/dev5/0/000/000/0000000005.fid"},
		{5, 5, Viewer{Addr: outside}, "http://10.0.0.5:80/dev5/0/000/000/0000000005.fid", "http://10.0.0.5:80/dev5/0/000/000/0000000005.fid"},
		{6, 5, Viewer{}, "http://[fd00::1]:7500/dev6/0/000/000/0000000005.fid", "http://[fd00::1]:7500/dev6/0/000/000/0000000005.fid"},
		{7, 5, Viewer{Addr: inside}, "http://192.168.0.7:80/dev7/0/000/000/0000000005.fid", "http://192.168.0.7:80/dev7/0/000/000/0000000005.fid"},
	}
	for _, tt := range tests {
		d := s.Device(tt.dev)
		if got := d.WriteURL(tt.fid, tt.viewer); got != tt.write {
			t.Errorf("dev%d %+v: write %s, want %s", tt.dev, tt.viewer, got, tt.write)
		}
		if got := d.ReadURL(tt.fid, tt.viewer); got != tt.read {
			t.Errorf("dev%d %+v: read %s, want %s", tt.dev, tt.viewer, got, tt.read)
		}
	}
}

func TestNewSnapshot(t *testing.T) {
	now := time.Unix(1700000000, 0)
	s := NewSnapshot(schema.TopologyRows{
		Domains: []schema.Domain{{ID: 2, Name: "b"}, {ID: 1, Name: "a"}},
		Classes: []schema.Class{
			{DMID: 1, ID: 3, Name: "three", MinDevCount: 3},
			{DMID: 1, ID: 1, Name: "one", MinDevCount: 1, HashType: protocol.HashMD5},
			{DMID: 2, ID: 0, Name: "default", MinDevCount: 5},
			{DMID: 9, ID: 1, Name: "nowhere"},
		},
		Hosts:   []schema.Host{{ID: 2, Name: "h2"}, {ID: 1, Name: "h1"}},
		Devices: []schema.Device{{ID: 9, HostID: 2}, {ID: 3, HostID: 1}, {ID: 4, HostID: 7}},
		Now:     now,
	}, 4)
	var classes []Class
	for _, c := range s.Domains["a"].Classes {
		classes = append(classes, *c)
	}
	want := []Class{
		{Class: schema.Class{DMID: 1, Name: "default", MinDevCount: 4}},
		{Class: schema.Class{DMID: 1, ID: 1, Name: "one", MinDevCount: 1, HashType: protocol.HashMD5}, Stored: true},
		{Class: schema.Class{DMID: 1, ID: 3, Name: "three", MinDevCount: 3}, Stored: true},
	}
	if diff := cmp.Diff(want, classes); diff != "" {
		t.Error("classes of a: -want +got\n" + diff)
	}
	if c, ok := s.Domains["b"].Class(""); !ok || c.MinDevCount != 5 || !c.Stored || len(s.Domains["b"].Classes) != 1 {
		t.Errorf("the stored class default of b is %+v", c)
	}
	if c := s.Class(1, 0); c == nil || c.Name != "default" {
		t.Errorf("class 0 of domain 1 is %+v", c)
	}
	if s.Class(1, 2) != nil || s.Class(9, 1) != nil {
		t.Error("found classes that are not there")
	}
	if _, ok := s.Domains["a"].Class("two"); ok {
		t.Error("found a class by a name that is not there")
	}
	if len(s.HostList) != 2 || s.HostList[0].ID != 1 || s.HostList[1] != s.Hosts[2] {
		t.Errorf("hosts are not ascending: %v", s.HostList)
	}
	if len(s.DeviceList) != 3 || s.DeviceList[0].ID != 3 || s.DeviceList[1].ID != 4 || s.DeviceList[2] != s.Device(9) {
		t.Errorf("devices are not ascending: %v", s.DeviceList)
	}
	if s.Device(9).Host != s.Hosts[2] || s.Device(4).Host != nil {
		t.Error("devices are not joined with their hosts")
	}
	if !s.AsOf.Equal(now) || s.Settings == nil {
		t.Error("time or settings are missing")
	}
	if d, ok := s.Domain("b"); !ok || d != s.ByDMID[2] {
		t.Error("the two indexes of domains differ")
	}
}

func TestCapabilities(t *testing.T) {
	tests := []struct {
		header string
		want   Capabilities
	}{
		{"", Capabilities{}},
		{"1", Capabilities{Version: 1}},
		{"1 copy ec", Capabilities{Version: 1, Words: []string{"copy", "ec"}}},
		{"  2   copy ", Capabilities{Version: 2, Words: []string{"copy"}}},
		{"copy", Capabilities{}},
		{"0 copy", Capabilities{}},
		{"-1 copy", Capabilities{}},
		{"70000", Capabilities{}},
	}
	for _, tt := range tests {
		got := ParseCapabilities(tt.header)
		if !got.Equal(tt.want) {
			t.Errorf("%q: %+v, want %+v", tt.header, got, tt.want)
		}
		if got.Has("copy") != (len(tt.want.Words) > 0) {
			t.Errorf("%q: has copy: %v", tt.header, got.Has("copy"))
		}
	}
}

func FuzzParseCapabilities(f *testing.F) {
	for _, s := range []string{"", "1", "1 copy ec", "1\tcopy\r\n", "99999999999999999999 x", "1 \x00"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, header string) {
		c := ParseCapabilities(header)
		if back := ParseCapabilities(c.String()); !back.Equal(c) {
			t.Errorf("%q: %+v became %+v", header, c, back)
		}
	})
}

func TestZones(t *testing.T) {
	t.Parallel()
	rows := schema.TopologyRows{
		Hosts: []schema.Host{
			{ID: 1, Name: "near", Status: schema.HostAlive, IP: "10.1.0.1"},
			{ID: 2, Name: "far", Status: schema.HostAlive, IP: "10.2.0.1"},
			{ID: 3, Name: "six", Status: schema.HostAlive, IP: "2001:db8::1"},
			{ID: 4, Name: "nowhere", Status: schema.HostAlive, IP: "192.168.3.4"},
			{ID: 5, Name: "named", Status: schema.HostAlive, IP: "store.example.org"},
		},
		Devices: []schema.Device{{ID: 1, HostID: 1}, {ID: 2, HostID: 2}, {ID: 3, HostID: 3}, {ID: 4, HostID: 4}, {ID: 5, HostID: 5}, {ID: 6, HostID: 77}},
		Settings: map[string]string{
			"network_zones": "near, wide, six", "zone_near": "10.1.0.0/16", "zone_wide": "10.0.0.0/8", "zone_six": "2001:db8::/32",
		},
	}
	s := NewSnapshot(rows, 2)
	for dev, want := range map[protocol.DevID][2]string{
		1: {"near", "10.1.0.0/16"},
		2: {"wide", "10.0.0.0/8"},
		3: {"six", "2001:db8::/32"},
		4: {"", "192.168.0.0/16"},
		5: {"", "invalid Prefix"},
		6: {"", "invalid Prefix"},
	} {
		d := s.Device(dev)
		if d.Zone() != want[0] || d.Network().String() != want[1] {
			t.Errorf("dev%d is in zone %q, network %s, want %q", dev, d.Zone(), d.Network(), want)
		}
	}
	if s.Zones.Of(netip.MustParseAddr("10.1.2.3")) != "near" {
		t.Error("the snapshot has no zones")
	}
	if s.Device(1).SameNetwork(s.Device(2)) || !s.Device(5).SameNetwork(s.Device(6)) || s.Device(1).SameHost(s.Device(2)) {
		t.Error("hosts or networks are mixed up")
	}
}
