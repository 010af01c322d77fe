package replicate_test

import (
	"context"
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/schema"
	"github.com/mogile/mogile/tracker/cluster"
	"github.com/mogile/mogile/tracker/storage"
	"github.com/mogile/mogile/tracker/work/worktest"
)

// TestSourcesAreNear reads copies from the destination's zone where it fetches
// them by itself, else from the tracker's, and anywhere where there is no zone.
func TestSourcesAreNear(t *testing.T) {
	for _, c := range []struct {
		name   string
		direct bool
		local  string
		want   protocol.DevID
	}{
		{"from device to device", true, "10.1.0.9", 3},
		{"from device to device, tracker nowhere", true, "", 3},
		{"through the tracker", false, "10.1.0.9", 1},
		{"through the tracker, which is nowhere", false, "", 3},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				rows := schema.TopologyRows{
					Domains:  []schema.Domain{{ID: 1, Name: "test"}},
					Classes:  []schema.Class{{DMID: 1, ID: 4, Name: "four", MinDevCount: 4}},
					Settings: map[string]string{"network_zones": "here,there", "zone_here": "10.1.0.0/16", "zone_there": "10.3.0.0/16 10.4.0.0/16"},
				}
				for i := 1; i <= 4; i++ {
					total, used := int64(10000), int64(1000)
					rows.Hosts = append(rows.Hosts, schema.Host{ID: schema.HostID(i), Name: fmt.Sprint("h", i), Status: schema.HostAlive, IP: fmt.Sprintf("10.%d.0.1", i), Port: 7500})
					rows.Devices = append(rows.Devices, schema.Device{ID: protocol.DevID(i), HostID: schema.HostID(i), Status: schema.DeviceAlive, Weight: 100, TotalMB: &total, UsedMB: &used})
				}
				r := newRig(t, 1, 1)
				r.cluster = worktest.FromRows(rows)
				r.options.Cluster = r.cluster
				if c.local != "" {
					r.options.Local = netip.MustParseAddr(c.local)
				}
				if c.direct {
					r.cluster.Change(4, func(_ *cluster.Device, h *cluster.Host) {
						h.Capabilities = cluster.Capabilities{Version: 1, Words: []string{storage.CapabilityCopy}}
					})
				}
				var sources sync.Map
				seen := func(_ context.Context, from, _ protocol.DevID, fid protocol.FID) error {
					sources.Store(fid, from)
					return nil
				}
				r.disks.OnCopy, r.disks.OnDirect = seen, seen
				for fid := protocol.FID(1); fid <= 20; fid++ {
					r.put(fid, 4, 1, 2, 3)
				}
				r.run()
				for fid := protocol.FID(1); fid <= 20; fid++ {
					if from, _ := sources.Load(fid); from != c.want {
						t.Errorf("fid %d was read from dev%v, want dev%d", fid, from, c.want)
					}
				}
			})
		})
	}
}
