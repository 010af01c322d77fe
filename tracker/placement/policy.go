package placement

import (
	"cmp"
	"math/rand/v2"
	"net/netip"
	"slices"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/schema"
	"github.com/mogile/mogile/tracker/cluster"
)

// Policy says where the copies of a class's files should be. It is immutable.
type Policy interface {
	// Decide answers what should be done about one file. It is a function of q
	// alone, q.Rand included.
	Decide(q Question) Plan
	// String is the policy in the grammar that [ParsePolicy] reads.
	String() string
	rules
}

// rules are what tells the policies apart; what is done by them is the same for
// all.
type rules interface {
	// judge answers Good, TooGood, or Wait where another copy is wanted, whether
	// there is a place for it or not.
	judge(in census, on []Placement) Verdict
	// places sorts the candidates for another copy of a file that was judged Wait.
	places(in census, on []Placement, candidates []*cluster.Device) places
	// spread reports whether rest, one copy less than on, is spread as the policy
	// asks, or no worse than on.
	spread(in census, on, rest []Placement) bool
	// demand adds the copies that the policy asks for.
	demand(in census, d *demand)
}

// places are where a copy may go: the ideal ones, else the first of the
// desperate ones that there are.
type places struct {
	ideal     []*cluster.Device
	desperate [2][]*cluster.Device
}

// demand is how many copies a policy asks for: anywhere, and in zones.
type demand struct {
	copies int
	zones  map[string]int
}

// keep is how many copies of a file must be left when one is dropped.
func keep(p Policy, in census) int {
	d := demand{copies: 1, zones: make(map[string]int)}
	p.demand(in, &d)
	sum := 0
	for _, n := range d.zones {
		sum += n
	}
	return max(d.copies, sum)
}

// Placement is one copy of a file, raw, on a device.
type Placement struct {
	Device   *cluster.Device
	Readable bool // it can be read now: neither its device nor its host is away
}

// Question is all that a policy goes by.
type Question struct {
	// On are the copies that count. Who asks decides which these are: the
	// replicate worker leaves out those on dead devices.
	On []Placement
	// Length is the file's, in bytes.
	Length int64
	// Encoded is how the file is kept in shards, with those that count; nil where it
	// is kept in copies.
	Encoded *Encoded
	// Devices is the whole cluster.
	Devices []*cluster.Device
	// Skip are devices that must not be copied to: those that failed in this
	// round, and those with a deletion of this file pending.
	Skip []protocol.DevID
	// MinDevCount is the class's; a policy's own number overrides it. Less than
	// 1 counts as 1.
	MinDevCount int
	// MinFreeMB is how much space, in MiB, a device must have to take a copy.
	MinFreeMB int64
	// Rand decides between destinations that are equally good.
	Rand *rand.Rand
}

// Verdict is the kind of a policy's answer.
type Verdict int

const (
	// Good means that the copies are as the policy wants them (ALL_GOOD).
	Good Verdict = iota + 1
	// TooGood means that the policy is satisfied with copies to spare
	// (TOO_GOOD): see Plan.Drop.
	TooGood
	// Wait means that the policy is not satisfied and that there is no device
	// to copy to now (TEMP_NO_ANSWER).
	Wait
	// Copy means that another copy should be made: see Plan.Ideal.
	Copy
	// Encode means that the file should be made into shards, which are then in
	// place of its copies: see Plan.Shards.
	Encode
	// Rebuild means that shards should be made that are missing, or moved that
	// are ill placed: see Plan.Targets.
	Rebuild
	// Decode means that the file should be copies again, and its shards go: see
	// Plan.Copies. An encoding is replaced by another by way of copies.
	Decode
)

// String is the verdict's name in logs.
func (v Verdict) String() string {
	switch v {
	case Good:
		return "good"
	case TooGood:
		return "too_good"
	case Wait:
		return "wait"
	case Copy:
		return "copy"
	case Encode:
		return "encode"
	case Rebuild:
		return "rebuild"
	case Decode:
		return "decode"
	}
	return "unknown"
}

// Plan is a policy's answer.
type Plan struct {
	Verdict Verdict

	// Ideal and Desperate are, under Copy, where the next copy may go, best
	// first. Desperate counts only where Ideal is empty: it satisfies the number
	// of copies but not their spread. After each copy the policy is asked again.
	Ideal, Desperate []*cluster.Device

	// Drop are, under TooGood, the copies that may go, one after the other in
	// this order: after each of them the policy is still satisfied, and Keep
	// other copies can be read. Whoever drops one must have made sure that Keep
	// of the others are there and have the right size.
	Drop []*cluster.Device
	// Blocked means, under TooGood, that there is a copy too many which cannot
	// go now, because its device lets nothing be deleted or too few of the other
	// copies can be read.
	Blocked bool
	// Keep is how many other copies must be intact for one to be dropped.
	Keep int

	// K and M are, under Encode, the numbers of data and parity shards.
	K, M int
	// Shards are, under Encode, K+M devices in the order of the shards.
	Shards []*cluster.Device
	// Targets are, under Rebuild, where the shards of these indexes go. An index
	// that is among those of the question moves; others are missing. Each target
	// is a device that has no shard of the file.
	Targets map[int]*cluster.Device
	// Copies are, under Decode, the devices that are to have copies before the
	// shards go, all of which they must have. One that has a shard may be among
	// them.
	Copies []*cluster.Device

	// Why says, under Wait, what is in the way of shards, in words for people.
	// It is empty where the file is not one that has shards, or should have.
	Why string
}

// Target is where the next copy should go: the first of Ideal, else of
// Desperate, else nil.
func (p Plan) Target() *cluster.Device {
	switch {
	case len(p.Ideal) > 0:
		return p.Ideal[0]
	case len(p.Desperate) > 0:
		return p.Desperate[0]
	}
	return nil
}

// decide answers for any policy.
func decide(p Policy, q Question) Plan {
	if q.Encoded != nil {
		return decode(p, q)
	}
	in := survey(q)
	switch p.judge(in, q.On) {
	case Good:
		return Plan{Verdict: Good}
	case TooGood:
		return surplus(p, q, in)
	}
	to := p.places(in, q.On, candidates(q))
	plan := Plan{Verdict: Copy, Ideal: emptiestFirst(to.ideal, q.Rand)}
	for _, tier := range to.desperate {
		plan.Desperate = append(plan.Desperate, emptiestFirst(tier, q.Rand)...)
	}
	if plan.Target() == nil {
		return Plan{Verdict: Wait}
	}
	return plan
}

// MayDrop reports whether the copy on dev, which is one of q.On, may go: the
// others that can be read satisfy the policy, as all others do, and are spread
// over hosts, networks and zones as it asks, or no worse than before. Before the
// copy is dropped keep of the others must be known to be intact; whoever has
// looked already says so in q.On, where a copy that is not intact counts as one
// that cannot be read.
//
// It does not say whether the device lets anything be deleted. Of an encoded file
// nothing may go.
func MayDrop(p Policy, q Question, dev protocol.DevID) (ok bool, keepOthers int) {
	in := survey(q)
	keepOthers = keep(p, in)
	rest := without(q.On, dev)
	return len(rest) < len(q.On) && spare(p, in, q.On, rest) && spareReadable(p, in, q.On, rest, keepOthers), keepOthers
}

// spare reports whether the copies on may become rest, as far as it goes by
// where they are.
func spare(p Policy, in census, on, rest []Placement) bool {
	return p.judge(in, rest) != Wait && p.spread(in, on, rest)
}

// spareReadable reports the same by what can be read now.
func spareReadable(p Policy, in census, on, rest []Placement, keep int) bool {
	on, rest = readable(on), readable(rest)
	return len(rest) >= keep && spare(p, in, on, rest)
}

// census is what policies count of a cluster.
type census struct {
	min      int            // the copies that the class wants, 1 or more
	disks    int            // devices that are not dead
	hosts    int            // hosts that have a device whose status is alive, whatever was observed of either
	networks int            // networks of such hosts
	zones    map[string]int // by zone, hosts that have a device that is not dead
}

func survey(q Question) census {
	in := census{min: max(1, q.MinDevCount), zones: make(map[string]int)}
	type seen struct{ alive, living bool }
	hosts := make(map[schema.HostID]seen)
	networks := make(map[netip.Prefix]bool)
	for _, d := range q.Devices {
		if d.Dead() {
			continue
		}
		in.disks++
		s := hosts[d.HostID]
		if !s.living {
			s.living = true
			hosts[d.HostID] = s
			in.zones[d.Zone()]++
		}
		if d.Status == schema.DeviceAlive && !s.alive {
			s.alive = true
			hosts[d.HostID] = s
			in.hosts++
			networks[d.Network()] = true
		}
	}
	in.networks = len(networks)
	return in
}

// wanted is the number of copies: the policy's own where it has one, else the
// class's.
func (in census) wanted(own int) int {
	if own > 0 {
		return own
	}
	return in.min
}

// distinct counts the different values that f has for the copies.
func distinct[T comparable](on []Placement, f func(*cluster.Device) T) int {
	n := 0
	for i, p := range on {
		v := f(p.Device)
		if !slices.ContainsFunc(on[:i], func(o Placement) bool { return f(o.Device) == v }) {
			n++
		}
	}
	return n
}

func hostOf(d *cluster.Device) schema.HostID { return d.HostID }

func hostsOf(on []Placement) int { return distinct(on, hostOf) }

func networksOf(on []Placement) int { return distinct(on, (*cluster.Device).Network) }

func anyOn(on []Placement, f func(*cluster.Device) bool) bool {
	return slices.ContainsFunc(on, func(p Placement) bool { return f(p.Device) })
}

// candidates are the devices that another copy may be put on. Those that are
// full or of unknown size are never chosen.
func candidates(q Question) []*cluster.Device {
	var c []*cluster.Device
	for _, d := range q.Devices {
		if d.TakesFiles(q.MinFreeMB) && d.FreeFraction() > 0 && !slices.Contains(q.Skip, d.ID) &&
			!anyOn(q.On, func(o *cluster.Device) bool { return o.ID == d.ID }) {
			c = append(c, d)
		}
	}
	return c
}

// surplus plans which copies to drop from a file that has some to spare, until
// it has none.
func surplus(p Policy, q Question, in census) Plan {
	plan := Plan{Verdict: TooGood, Keep: keep(p, in)}
	left := slices.Clone(q.On)
	for p.judge(in, left) == TooGood {
		plan.Blocked = false
		all := slices.Clone(left)
		slices.SortFunc(left, func(a, b Placement) int { return goesFirst(a, b, all) })
		i := slices.IndexFunc(left, func(o Placement) bool {
			rest := without(left, o.Device.ID)
			if !spare(p, in, left, rest) {
				return false
			}
			if !o.Readable || !o.Device.LetsDelete() || !spareReadable(p, in, left, rest, plan.Keep) {
				plan.Blocked = true
				return false
			}
			return true
		})
		if i < 0 {
			return plan
		}
		plan.Drop = append(plan.Drop, left[i].Device)
		left = without(left, left[i].Device.ID)
	}
	plan.Blocked = false // whatever could not go need not
	return plan
}

// goesFirst orders copies by how gladly they are dropped: those in drain, then
// those that share a host with most others, then those on the fullest device.
func goesFirst(a, b Placement, all []Placement) int {
	return cmp.Or(
		compareBool(b.Device.Draining(), a.Device.Draining()),
		cmp.Compare(sharing(b, all), sharing(a, all)),
		cmp.Compare(a.Device.FreeFraction(), b.Device.FreeFraction()),
		cmp.Compare(a.Device.ID, b.Device.ID),
	)
}

func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return 1
	}
	return -1
}

func sharing(p Placement, all []Placement) int {
	n := 0
	for _, o := range all {
		if o.Device.HostID == p.Device.HostID {
			n++
		}
	}
	return n
}

func readable(on []Placement) []Placement {
	var r []Placement
	for _, p := range on {
		if p.Readable {
			r = append(r, p)
		}
	}
	return r
}

func without(on []Placement, dev protocol.DevID) []Placement {
	rest := make([]Placement, 0, len(on))
	for _, p := range on {
		if p.Device.ID != dev {
			rest = append(rest, p)
		}
	}
	return rest
}
