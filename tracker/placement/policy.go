package placement

import (
	"cmp"
	"math/rand/v2"
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

// wanted is the number of copies: the policy's own where it has one, else the
// class's.
func wanted(own int, q Question) int {
	if own > 0 {
		return own
	}
	return max(1, q.MinDevCount)
}

// MultipleHosts is MogileFS's default policy: copies on as many hosts as the
// class wants copies, as far as there are that many hosts.
type MultipleHosts struct {
	Count int // copies; 0 means the class's mindevcount
}

// String is "MultipleHosts()", with the number where there is one.
func (p MultipleHosts) String() string { return call("MultipleHosts", p.Count) }

// Decide answers by the decision table of MogileFS 2.73's MultipleHosts.
func (p MultipleHosts) Decide(q Question) Plan {
	want := wanted(p.Count, q)
	disks, hosts := census(q.Devices)
	judge := func(on []Placement) Verdict {
		n, h := len(on), hostsOf(on)
		switch {
		case want == 1 && n == 1:
			return Good
		case h > want, n > want:
			return TooGood
		case h == want, h >= hosts && n >= want, n >= 2 && n == disks:
			return Good
		}
		return Wait
	}
	switch judge(q.On) {
	case Good:
		return Plan{Verdict: Good}
	case TooGood:
		// Hosts whose devices are all in drain or readonly do not count among
		// those that the verdict compares with; the spread must not suffer by that.
		return surplus(q, want, func(on, rest []Placement) bool {
			return judge(rest) != Wait && hostsOf(rest) >= min(want, hostsOf(on))
		})
	}
	candidates := candidates(q)
	if len(candidates) == 0 {
		return Plan{Verdict: Wait}
	}
	var fresh, used []*cluster.Device // on hosts without and with a copy
	spread := hostsOf(q.On) < hosts   // otherwise every host is as good as another
	for _, d := range candidates {
		if spread && slices.ContainsFunc(q.On, func(p Placement) bool { return p.Device.HostID == d.HostID }) {
			used = append(used, d)
		} else {
			fresh = append(fresh, d)
		}
	}
	ideal := emptiestFirst(fresh, q.Rand)
	if len(q.On) >= want && len(ideal) == 0 {
		return Plan{Verdict: Wait} // enough copies: another one on a used host would not help
	}
	return copies(ideal, emptiestFirst(used, q.Rand))
}

// MultipleDevices is the policy that counts devices and does not care for
// hosts.
type MultipleDevices struct {
	Count int // copies; 0 means the class's mindevcount
}

// String is "MultipleDevices()", with the number where there is one.
func (p MultipleDevices) String() string { return call("MultipleDevices", p.Count) }

// Decide answers by the rules of MogileFS 2.73's MultipleDevices.
func (p MultipleDevices) Decide(q Question) Plan {
	want := wanted(p.Count, q)
	disks, _ := census(q.Devices)
	judge := func(on []Placement) Verdict {
		switch n := len(on); {
		case n > want:
			return TooGood
		case n == want, n >= 2 && n == disks:
			return Good
		}
		return Wait
	}
	switch judge(q.On) {
	case Good:
		return Plan{Verdict: Good}
	case TooGood:
		return surplus(q, want, func(_, rest []Placement) bool { return judge(rest) != Wait })
	}
	return copies(emptiestFirst(candidates(q), q.Rand), nil)
}

func copies(ideal, desperate []*cluster.Device) Plan {
	if len(ideal) == 0 && len(desperate) == 0 {
		return Plan{Verdict: Wait}
	}
	return Plan{Verdict: Copy, Ideal: ideal, Desperate: desperate}
}

// census counts the devices that are not dead, and the hosts that have a
// device whose status is alive, whatever was observed of either.
func census(devs []*cluster.Device) (disks, hosts int) {
	seen := make(map[schema.HostID]bool)
	for _, d := range devs {
		if !d.Dead() {
			disks++
		}
		if d.Status == schema.DeviceAlive && !seen[d.HostID] {
			seen[d.HostID] = true
			hosts++
		}
	}
	return disks, hosts
}

func hostsOf(on []Placement) int {
	n := 0
	for i, p := range on {
		if !slices.ContainsFunc(on[:i], func(o Placement) bool { return o.Device.HostID == p.Device.HostID }) {
			n++
		}
	}
	return n
}

func candidates(q Question) []*cluster.Device {
	var c []*cluster.Device
	for _, d := range q.Devices {
		if d.TakesFiles(q.MinFreeMB) && !slices.Contains(q.Skip, d.ID) &&
			!slices.ContainsFunc(q.On, func(p Placement) bool { return p.Device.ID == d.ID }) {
			c = append(c, d)
		}
	}
	return c
}

// surplus plans which copies to drop from a file that has more than keep, which
// every policy wants dropped, until keep are left. may says whether the policy
// lets the copies on become rest, one fewer.
func surplus(q Question, keep int, may func(on, rest []Placement) bool) Plan {
	plan := Plan{Verdict: TooGood, Keep: keep}
	left := slices.Clone(q.On)
	for len(left) > keep {
		plan.Blocked = false
		all := slices.Clone(left)
		slices.SortFunc(left, func(a, b Placement) int { return goesFirst(a, b, all) })
		i := slices.IndexFunc(left, func(p Placement) bool {
			rest := without(left, p.Device)
			if !may(left, rest) {
				return false
			}
			if !p.Readable || !p.Device.LetsDelete() || readable(rest) < keep {
				plan.Blocked = true
				return false
			}
			return true
		})
		if i < 0 {
			return plan
		}
		plan.Drop = append(plan.Drop, left[i].Device)
		left = without(left, left[i].Device)
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

func readable(on []Placement) int {
	n := 0
	for _, p := range on {
		if p.Readable {
			n++
		}
	}
	return n
}

func without(on []Placement, d *cluster.Device) []Placement {
	rest := make([]Placement, 0, len(on))
	for _, p := range on {
		if p.Device.ID != d.ID {
			rest = append(rest, p)
		}
	}
	return rest
}
