package cluster

import (
	"cmp"
	"net/netip"
	"slices"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/schema"
)

// NewSnapshot makes a snapshot of what the database has, with nothing observed
// yet. Domains without a stored class "default" get one of defaultMinDevCount
// copies. Classes of domains that are not there are left out.
func NewSnapshot(rows schema.TopologyRows, defaultMinDevCount int) *Snapshot {
	s := &Snapshot{
		Domains:    make(map[string]*Domain, len(rows.Domains)),
		ByDMID:     make(map[schema.DMID]*Domain, len(rows.Domains)),
		Hosts:      make(map[schema.HostID]*Host, len(rows.Hosts)),
		Devices:    make(map[protocol.DevID]*Device, len(rows.Devices)),
		Settings:   rows.Settings,
		HostList:   make([]*Host, 0, len(rows.Hosts)),
		DeviceList: make([]*Device, 0, len(rows.Devices)),
		AsOf:       rows.Now,
	}
	if s.Settings == nil {
		s.Settings = map[string]string{}
	}
	s.Zones, s.zoneWarnings = protocol.ParseZones(s.Settings)
	for _, row := range rows.Domains {
		d := &Domain{Domain: row}
		s.Domains[row.Name] = d
		s.ByDMID[row.ID] = d
	}
	for _, row := range rows.Classes {
		if d := s.ByDMID[row.DMID]; d != nil {
			d.Classes = append(d.Classes, &Class{Class: row, Stored: true})
		}
	}
	for _, d := range s.ByDMID {
		if !slices.ContainsFunc(d.Classes, func(c *Class) bool { return c.ID == 0 }) {
			d.Classes = append(d.Classes, &Class{Class: schema.Class{
				DMID: d.ID, Name: schema.DefaultClass, MinDevCount: defaultMinDevCount,
			}})
		}
		slices.SortFunc(d.Classes, func(a, b *Class) int { return cmp.Compare(a.ID, b.ID) })
	}
	for _, row := range rows.Hosts {
		h := &Host{Host: row}
		h.altMask, _ = parseMask(row.AltMask)
		if addr, err := netip.ParseAddr(row.IP); err == nil {
			h.Zone, h.Network = s.Zones.Of(addr), s.Zones.Network(addr)
		}
		s.Hosts[row.ID] = h
		s.HostList = append(s.HostList, h)
	}
	for _, row := range rows.Devices {
		d := &Device{Device: row, Host: s.Hosts[row.HostID]}
		s.Devices[row.ID] = d
		s.DeviceList = append(s.DeviceList, d)
	}
	slices.SortFunc(s.HostList, func(a, b *Host) int { return cmp.Compare(a.ID, b.ID) })
	slices.SortFunc(s.DeviceList, func(a, b *Device) int { return cmp.Compare(a.ID, b.ID) })
	return s
}

// parseMask reads host.altmask: "10.0.0.0/8", or one address.
func parseMask(mask string) (netip.Prefix, bool) {
	if p, err := netip.ParsePrefix(mask); err == nil {
		return p.Masked(), true
	}
	if a, err := netip.ParseAddr(mask); err == nil && a.Zone() == "" {
		return netip.PrefixFrom(a, a.BitLen()), true
	}
	return netip.Prefix{}, false
}

// keepObserved carries what was observed of old's hosts and devices over to s,
// which is not published yet.
func (s *Snapshot) keepObserved(old *Snapshot) {
	if old == nil {
		return
	}
	for id, h := range s.Hosts {
		if was := old.Hosts[id]; was != nil {
			h.Observed, h.Capabilities = was.Observed, was.Capabilities
		}
	}
	for id, d := range s.Devices {
		if was := old.Devices[id]; was != nil {
			d.Observed, d.Utilization, d.RejectBadMD5 = was.Observed, was.Utilization, was.RejectBadMD5
		}
	}
}
