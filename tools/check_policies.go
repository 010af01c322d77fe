package tools

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

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
	shards map[int64]int // by host, devices that take shards
}

// takesShards counts a device that takes files, on a host whose storage daemon
// makes shards.
func (l *layout) takesShards(host protocol.Host, device protocol.Device) {
	if device.Status == "alive" && host.Status == "alive" {
		if l.shards == nil {
			l.shards = make(map[int64]int)
		}
		l.shards[host.ID]++
	}
}

// judgePolicies names the zones that make no sense, and the classes whose policy
// cannot be kept. The hosts named in without are known to make no shards.
func judgePolicies(t *trackerCheck, without []string) []problem {
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
		if !slices.Contains(without, h.Name) {
			l.takesShards(h, d)
		}
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
	case protocol.PolicyErasureCode:
		return l.lacksForShards(policy)
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

// lacksForShards says the same of ErasureCode: there must be a device for each
// shard, and so many hosts that none has more shards than may be lost.
func (l *layout) lacksForShards(policy protocol.PolicyCall) []problem {
	shards, devices := policy.K+policy.M, 0
	for _, n := range l.shards {
		devices += n
	}
	if shards > devices {
		return []problem{{
			What:   fmt.Sprintf("%d devices, one for each shard; alive devices of storage daemons that make shards: %d; its files are kept as %d copies", shards, devices, policy.M+1),
			Remedy: "add devices, see that all storage daemons have the cluster key, or give it a policy with fewer shards",
		}}
	}
	most := 1 // shards that some host has, however well they are spread
	for ; ; most++ {
		room := 0
		for _, n := range l.shards {
			room += min(n, most)
		}
		if room >= shards {
			break
		}
	}
	if most > policy.M {
		return []problem{{
			What:   fmt.Sprintf("no more than %d of %d shards on one host; alive hosts: %d, one of which has %d or more: its loss costs files", policy.M, shards, len(l.shards), most),
			Remedy: "add hosts or spread devices more evenly over them, or give it a policy with more parity shards",
		}}
	}
	return nil
}

// makesNoShards are the hosts that answered, and not with the capability.
func makesNoShards(hosts []hostCheck) []string {
	var without []string
	for _, h := range hosts {
		if h.Answer == "ok" && !slices.Contains(strings.Fields(h.capabilities), protocol.WordEC) {
			without = append(without, h.Host)
		}
	}
	return without
}
