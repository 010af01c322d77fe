package placement

import (
	"strings"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/tracker/cluster"
)

// MultipleHosts is MogileFS's default policy: copies on as many hosts as the
// class wants copies, as far as there are that many hosts.
type MultipleHosts struct {
	Count int // copies; 0 means the class's mindevcount
}

// String is "MultipleHosts()", with the number where there is one.
func (p MultipleHosts) String() string { return counted(protocol.PolicyMultipleHosts, p.Count) }

// Decide answers by the decision table of MogileFS 2.73's MultipleHosts.
func (p MultipleHosts) Decide(q Question) Plan { return decide(p, q) }

func (p MultipleHosts) judge(in census, on []Placement) Verdict {
	want, n, h := in.wanted(p.Count), len(on), hostsOf(on)
	switch {
	case want == 1 && n == 1:
		return Good
	case h > want:
		return TooGood
	case n > want && h < want && h < in.hosts:
		// MogileFS 2.73 says TOO_GOOD here, and gets the spread right by moving a
		// copy. None may go before there is one on another host.
		return Wait
	case n > want:
		return TooGood
	case h == want, h >= in.hosts && n >= want, n >= 2 && n == in.disks:
		return Good
	}
	return Wait
}

func (p MultipleHosts) places(in census, on []Placement, candidates []*cluster.Device) places {
	var to places
	spread := hostsOf(on) < in.hosts // otherwise every host is as good as another
	for _, d := range candidates {
		switch {
		case !spread || !anyOn(on, d.SameHost):
			to.ideal = append(to.ideal, d)
		case len(on) < in.wanted(p.Count): // otherwise another copy on a used host would not help
			to.desperate[0] = append(to.desperate[0], d)
		}
	}
	return to
}

// spread is needed beside the verdict because hosts whose devices are all in
// drain or readonly do not count among those that the verdict compares with; the
// spread must not suffer by that.
func (p MultipleHosts) spread(in census, on, rest []Placement) bool {
	return hostsOf(rest) >= min(in.wanted(p.Count), hostsOf(on))
}

func (p MultipleHosts) demand(in census, d *demand) { d.copies = max(d.copies, in.wanted(p.Count)) }

// MultipleDevices is the policy that counts devices and does not care for
// hosts.
type MultipleDevices struct {
	Count int // copies; 0 means the class's mindevcount
}

// String is "MultipleDevices()", with the number where there is one.
func (p MultipleDevices) String() string { return counted(protocol.PolicyMultipleDevices, p.Count) }

// Decide answers by the rules of MogileFS 2.73's MultipleDevices.
func (p MultipleDevices) Decide(q Question) Plan { return decide(p, q) }

func (p MultipleDevices) judge(in census, on []Placement) Verdict {
	switch want, n := in.wanted(p.Count), len(on); {
	case n > want:
		return TooGood
	case n == want, n >= 2 && n == in.disks:
		return Good
	}
	return Wait
}

func (p MultipleDevices) places(_ census, _ []Placement, candidates []*cluster.Device) places {
	return places{ideal: candidates}
}

func (p MultipleDevices) spread(census, []Placement, []Placement) bool { return true }

func (p MultipleDevices) demand(in census, d *demand) { d.copies = max(d.copies, in.wanted(p.Count)) }

// MultipleNetworks spreads copies over networks first and over hosts second, as
// far as there are that many. The network of a device is that of its host's
// address: see [protocol.Zones.Network].
type MultipleNetworks struct {
	Count int // copies; 0 means the class's mindevcount
}

// String is "MultipleNetworks()", with the number where there is one.
func (p MultipleNetworks) String() string { return counted(protocol.PolicyMultipleNetworks, p.Count) }

// Decide answers by the rules of MogileFS-Network 0.06's MultipleNetworks. Once
// there are as many copies as are wanted, another is made only on a network or a
// host that has none; the original fills device after device where a network
// cannot be reached.
func (p MultipleNetworks) Decide(q Question) Plan { return decide(p, q) }

func (p MultipleNetworks) judge(in census, on []Placement) Verdict {
	want, n := in.wanted(p.Count), len(on)
	switch {
	case want == 1 && n >= 1, n >= 2 && n == in.disks:
		return Good
	case !p.overNetworks(in, on):
		return Wait
	}
	switch h := hostsOf(on); {
	case h > want, h == want && n > want:
		return TooGood
	case h == want, h >= in.hosts && n >= want:
		return Good
	}
	return Wait
}

// overNetworks reports whether the copies are on as many networks as can be.
func (p MultipleNetworks) overNetworks(in census, on []Placement) bool {
	return max(1, networksOf(on)) >= min(in.wanted(p.Count), max(1, in.networks))
}

func (p MultipleNetworks) places(in census, on []Placement, candidates []*cluster.Device) places {
	var to places
	want, h := in.wanted(p.Count), hostsOf(on)
	spread := h < in.hosts || !p.overNetworks(in, on) // otherwise every host is as good as another
	for _, d := range candidates {
		switch {
		case !spread || !anyOn(on, d.SameNetwork):
			to.ideal = append(to.ideal, d)
		case !anyOn(on, d.SameHost):
			if len(on) < want || h < want {
				to.desperate[0] = append(to.desperate[0], d)
			}
		case len(on) < want:
			to.desperate[1] = append(to.desperate[1], d)
		}
	}
	return to
}

func (p MultipleNetworks) spread(in census, on, rest []Placement) bool {
	want := in.wanted(p.Count)
	return networksOf(rest) >= min(want, networksOf(on)) && hostsOf(rest) >= min(want, hostsOf(on))
}

func (p MultipleNetworks) demand(in census, d *demand) { d.copies = max(d.copies, in.wanted(p.Count)) }

// HostsPerNetwork wants copies on a number of hosts of each zone that it names.
// Copies in other zones do not count, and neither does the class's mindevcount.
type HostsPerNetwork struct {
	Needs []protocol.ZoneNeed
}

// String is as in "HostsPerNetwork(near=2, far=1)".
func (p HostsPerNetwork) String() string {
	return protocol.PolicyCall{Name: protocol.PolicyHostsPerNetwork, Needs: p.Needs}.String()
}

// Decide answers by the rules of MogileFS-Network 0.06's HostsPerNetwork. Once a
// zone has as many copies as it needs, another is made only on a host that has
// none; the original fills device after device where the other hosts cannot be
// reached.
func (p HostsPerNetwork) Decide(q Question) Plan { return decide(p, q) }

func (p HostsPerNetwork) judge(in census, on []Placement) Verdict {
	v := Good
	for _, need := range p.Needs {
		here := inZone(on, need.Zone)
		switch {
		case lacks(in, need, here):
			return Wait
		case len(here) > need.Hosts:
			v = TooGood
		}
	}
	return v
}

// lacks reports whether here, the copies in a zone, are too few. Where the zone
// has too few hosts devices count.
func lacks(in census, need protocol.ZoneNeed, here []Placement) bool {
	if need.Hosts <= in.zones[need.Zone] {
		return hostsOf(here) < need.Hosts
	}
	return len(here) < need.Hosts
}

func inZone(on []Placement, zone string) []Placement {
	var here []Placement
	for _, p := range on {
		if p.Device.Zone() == zone {
			here = append(here, p)
		}
	}
	return here
}

func (p HostsPerNetwork) places(in census, on []Placement, candidates []*cluster.Device) places {
	var to places
	type room struct{ fresh, used bool } // hosts to copy to: without a copy, with one
	zones := make(map[string]room, len(p.Needs))
	for _, need := range p.Needs {
		here := inZone(on, need.Zone)
		zones[need.Zone] = room{fresh: lacks(in, need, here), used: len(here) < need.Hosts}
	}
	for _, d := range candidates {
		switch zone := zones[d.Zone()]; {
		case zone.fresh && !anyOn(on, d.SameHost):
			to.ideal = append(to.ideal, d)
		case zone.fresh && zone.used:
			to.desperate[0] = append(to.desperate[0], d)
		}
	}
	return to
}

func (p HostsPerNetwork) spread(_ census, on, rest []Placement) bool {
	for _, need := range p.Needs {
		before, after := inZone(on, need.Zone), inZone(rest, need.Zone)
		if len(after) < min(need.Hosts, len(before)) || hostsOf(after) < min(need.Hosts, hostsOf(before)) {
			return false
		}
	}
	return true
}

func (p HostsPerNetwork) demand(_ census, d *demand) {
	for _, need := range p.Needs {
		d.zones[need.Zone] = max(d.zones[need.Zone], need.Hosts)
	}
}

// Union wants what each of its members wants. MogileFS 2.73 reads it and cannot
// evaluate it.
type Union struct {
	Members []Policy // at least one
}

// String is as in "Union(HostsPerNetwork(near=1), MultipleHosts())".
func (p Union) String() string {
	members := make([]string, len(p.Members))
	for i, m := range p.Members {
		members[i] = m.String()
	}
	return protocol.PolicyUnion + "(" + strings.Join(members, ", ") + ")"
}

// Decide answers Good where all members are satisfied, TooGood where beside that
// one of them has a copy to spare and there is a copy that each of them can
// spare. Otherwise a copy goes where the first member wants it that is not
// satisfied and has an ideal place, to a device that serves the most of the
// other members, too; else where the first has a desperate one.
func (p Union) Decide(q Question) Plan { return decide(p, q) }

func (p Union) judge(in census, on []Placement) Verdict {
	v := Good
	for _, m := range p.Members {
		switch m.judge(in, on) {
		case Wait:
			return Wait
		case TooGood:
			v = TooGood
		}
	}
	if v == TooGood && !anyOn(on, func(d *cluster.Device) bool {
		rest := without(on, d.ID)
		for _, m := range p.Members {
			if !spare(m, in, on, rest) {
				return false
			}
		}
		return true
	}) {
		return Good
	}
	return v
}

func (p Union) places(in census, on []Placement, candidates []*cluster.Device) places {
	var to places
	votes := make(map[*cluster.Device]int)
	for _, m := range p.Members {
		if m.judge(in, on) != Wait {
			continue
		}
		theirs := m.places(in, on, candidates)
		for _, d := range theirs.ideal {
			votes[d]++
		}
		if len(to.ideal) == 0 {
			to.ideal = theirs.ideal
		}
		if len(to.desperate[0])+len(to.desperate[1]) == 0 {
			to.desperate = theirs.desperate
		}
	}
	most := 0
	for _, d := range to.ideal {
		most = max(most, votes[d])
	}
	var best []*cluster.Device
	for _, d := range to.ideal {
		if votes[d] == most {
			best = append(best, d)
		}
	}
	to.ideal = best
	return to
}

func (p Union) spread(in census, on, rest []Placement) bool {
	for _, m := range p.Members {
		if !m.spread(in, on, rest) {
			return false
		}
	}
	return true
}

func (p Union) demand(in census, d *demand) {
	for _, m := range p.Members {
		m.demand(in, d)
	}
}
