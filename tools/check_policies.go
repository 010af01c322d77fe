package tools

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/mogile/mogile/protocol"
)

// places are what the policies of classes have to go by, in a zone or in the
// whole cluster.
type places struct {
	hosts   map[int64]bool // those with a device that is not dead
	alive   map[int64]bool // those that take files, by the status of host and device
	devices int            // that take files, by the same
}

func (p *places) count(host protocol.Host, device protocol.Device) {
	if p.hosts == nil {
		p.hosts, p.alive = make(map[int64]bool), make(map[int64]bool)
	}
	p.hosts[host.ID] = true
	if device.Status == "alive" && host.Status == "alive" {
		p.alive[host.ID] = true
		p.devices++
	}
}

// layout is a cluster as policies see it.
type layout struct {
	zones  protocol.Zones
	whole  places
	inZone map[string]*places
}

// judgePolicies names the zones that make no sense, and the classes whose policy
// cannot be kept.
func judgePolicies(t *trackerCheck) []problem {
	var ps []problem
	add := func(remedy, format string, args ...any) {
		ps = append(ps, problem{fmt.Sprintf(format, args...), remedy})
	}
	l := layout{inZone: make(map[string]*places)}
	var warnings []string
	l.zones, warnings = protocol.ParseZones(t.settings)
	for _, w := range warnings {
		add("see 'mogtool settings list', and change it with 'mogtool settings set'", "zones: %s", w)
	}
	zoneOf := make(map[int64]string)
	hosts := make(map[int64]protocol.Host)
	for _, h := range t.hosts {
		hosts[h.ID] = h
		addr, err := netip.ParseAddr(h.IP)
		zone := l.zones.Of(addr)
		zoneOf[h.ID] = zone
		if len(l.zones.Names()) > 0 && zone == "" && h.Status != "dead" {
			where := h.IP
			if err != nil {
				where += ", which is no address"
			}
			add("add a netmask with its address to the setting zone_… of its zone", "host %s (%s) is in no zone", h.Name, where)
		}
	}
	for _, d := range t.devices {
		h, ok := hosts[d.HostID]
		if !ok || d.Status == "dead" {
			continue
		}
		l.whole.count(h, d)
		zone := zoneOf[h.ID]
		if l.inZone[zone] == nil {
			l.inZone[zone] = new(places)
		}
		l.inZone[zone].count(h, d)
	}
	if len(t.devices) == 0 {
		return ps // which is said already, and no class can be kept
	}
	for _, d := range t.domains {
		for _, c := range d.Classes {
			policy, err := protocol.ParsePolicy(c.ReplPolicy)
			if err != nil {
				text := err.Error()
				if e, ok := errors.AsType[*protocol.Error](err); ok {
					text = e.Text
				}
				add("give it another: 'mogtool class modify DOMAIN CLASS --replpolicy POLICY'", "class %s of domain %s has a policy that cannot be read: %s", c.Name, d.Name, text)
				continue
			}
			for _, p := range l.lacks(policy, c.MinDevCount) {
				add(p.Remedy, "class %s of domain %s wants %s", c.Name, d.Name, p.What)
			}
		}
	}
	return ps
}

// lacks says what a policy wants that the cluster does not have.
func (l *layout) lacks(policy protocol.PolicyCall, mindevcount int) []problem {
	var ps []problem
	add := func(remedy, format string, args ...any) {
		ps = append(ps, problem{fmt.Sprintf(format, args...), remedy})
	}
	switch policy.Name {
	case protocol.PolicyUnion:
		for _, m := range policy.Members {
			ps = append(ps, l.lacks(m, mindevcount)...)
		}
	case protocol.PolicyHostsPerNetwork:
		for _, need := range policy.Needs {
			there := l.inZone[need.Zone]
			if there == nil {
				there = new(places)
			}
			switch {
			case need.Hosts == 0:
			case !l.zones.Has(need.Zone):
				add(fmt.Sprintf("add it to the setting network_zones, and its netmasks as zone_%s", need.Zone), "copies in zone %s, and there is no such zone", need.Zone)
			case need.Hosts <= len(there.hosts) && need.Hosts > len(there.alive):
				add("bring its hosts and devices back, or lower its policy", "copies on %d hosts of zone %s; alive hosts: %d", need.Hosts, need.Zone, len(there.alive))
			case need.Hosts > there.devices:
				add("add devices there, or lower its policy", "%d copies in zone %s; alive devices: %d", need.Hosts, need.Zone, there.devices)
			}
		}
	default:
		want := policy.Count
		if want == 0 {
			want = mindevcount
		}
		if want > l.whole.devices {
			add("add devices, or lower its mindevcount", "%d copies; alive devices: %d", want, l.whole.devices)
		}
	}
	return ps
}
