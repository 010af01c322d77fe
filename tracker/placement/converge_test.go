package placement

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/tracker/cluster"
)

// aPolicy draws any policy; depth is how deep Unions may be nested.
func aPolicy(depth int) *rapid.Generator[Policy] {
	return rapid.Custom(func(t *rapid.T) Policy {
		count := func() int { return rapid.IntRange(0, 4).Draw(t, "count") }
		kinds := 5
		if depth == 0 {
			kinds = 4
		}
		switch rapid.IntRange(1, kinds).Draw(t, "kind") {
		case 1:
			return MultipleHosts{Count: count()}
		case 2:
			return MultipleDevices{Count: count()}
		case 3:
			return MultipleNetworks{Count: count()}
		case 4:
			var p HostsPerNetwork
			for _, zone := range []string{"a", "b", "nowhere"} {
				if n := rapid.IntRange(-1, 3).Draw(t, zone); n >= 0 {
					p.Needs = append(p.Needs, protocol.ZoneNeed{Zone: zone, Hosts: n})
				}
			}
			return p
		}
		return Union{Members: rapid.SliceOfN(aPolicy(depth-1), 1, 3).Draw(t, "members")}
	})
}

// wants says what is missing of what a policy wants, by the policy's definition
// rather than by its decisions: each number is one kind of it, smaller is better,
// and none counts below 0.
func wants(p Policy, q Question) (missing []int) {
	short := func(want, have int) { missing = append(missing, max(0, want-have)) }
	alive, networks, inZone := map[int]bool{}, map[string]bool{}, map[string]map[int]bool{}
	for _, d := range q.Devices {
		if d.Dead() {
			continue
		}
		if inZone[d.Zone()] == nil {
			inZone[d.Zone()] = map[int]bool{}
		}
		inZone[d.Zone()][int(d.HostID)] = true
		if d.Status == "alive" {
			alive[int(d.HostID)] = true
			networks[d.Network().String()] = true
		}
	}
	hosts, nets := map[int]bool{}, map[string]bool{}
	for _, o := range q.On {
		hosts[int(o.Device.HostID)] = true
		nets[o.Device.Network().String()] = true
	}
	own := func(count int) int {
		if count > 0 {
			return count
		}
		return max(1, q.MinDevCount)
	}
	switch p := p.(type) {
	case MultipleHosts:
		short(own(p.Count), len(q.On))
		short(min(own(p.Count), len(alive)), len(hosts))
	case MultipleDevices:
		short(own(p.Count), len(q.On))
	case MultipleNetworks:
		short(own(p.Count), len(q.On))
		short(min(own(p.Count), len(networks)), len(nets))
		short(min(own(p.Count), len(alive)), len(hosts))
	case HostsPerNetwork:
		for _, need := range p.Needs {
			copies, hosts := 0, map[int]bool{}
			for _, o := range q.On {
				if o.Device.Zone() == need.Zone {
					copies++
					hosts[int(o.Device.HostID)] = true
				}
			}
			short(need.Hosts, copies)
			if need.Hosts <= len(inZone[need.Zone]) {
				short(need.Hosts, len(hosts))
			}
		}
	case Union:
		for _, m := range p.Members {
			missing = append(missing, wants(m, q)...)
		}
	}
	return missing
}

// helps reports whether some kind of what is missing gets less with a copy on d.
func helps(p Policy, q Question, d *cluster.Device) bool {
	before := wants(p, q)
	q.On = append(slices.Clone(q.On), Placement{Device: d, Readable: true})
	for i, n := range wants(p, q) {
		if n < before[i] {
			return true
		}
	}
	return false
}

// TestPlansConverge carries out what the policy says until it says nothing
// more. It ends; copies come before drops and never after one; no device gets a
// copy that may not; when nothing more is copied no device is left that would
// serve what is still missing; and a drop leaves nothing missing that was there,
// and Keep other readable copies.
func TestPlansConverge(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		q := aCluster(t)
		policy := aPolicy(2).Draw(t, "policy")
		dropped := false
		for steps := 0; ; steps++ {
			if steps > 2*len(q.Devices) {
				t.Fatalf("%s: no end after %d steps", policy, steps)
			}
			p := policy.Decide(q)
			switch p.Verdict {
			case Good, Wait:
				if p.Target() != nil || len(p.Drop) > 0 {
					t.Fatalf("%s: %v with actions: %+v", policy, p.Verdict, p)
				}
				if dropped && p.Verdict != Good {
					t.Fatalf("%s: %v after a drop", policy, p.Verdict)
				}
				complete(t, policy, q, p)
				return
			case Copy:
				if dropped {
					t.Fatalf("%s: a copy is wanted after a drop", policy)
				}
				for _, d := range slices.Concat(p.Ideal, p.Desperate) {
					if !d.TakesFiles(q.MinFreeMB) || slices.Contains(q.Skip, d.ID) ||
						slices.ContainsFunc(q.On, func(o Placement) bool { return o.Device == d }) {
						t.Fatalf("%s: dev%d cannot be a destination", policy, d.ID)
					}
				}
				d := p.Target()
				if d == nil {
					t.Fatalf("%s: copy without a destination", policy)
				}
				if !helps(policy, q, d) {
					t.Fatalf("%s: a copy on dev%d does not help %v", policy, d.ID, wants(policy, q))
				}
				q.On = append(q.On, Placement{Device: d, Readable: d.Readable()})
			case TooGood:
				complete(t, policy, q, p)
				if len(p.Drop) == 0 {
					return
				}
				for _, d := range p.Drop {
					if ok, keep := MayDrop(policy, q, d.ID); !ok || keep != p.Keep {
						t.Fatalf("%s: dev%d is to be dropped, and may not (%v, %d)", policy, d.ID, ok, keep)
					}
					dropped = true
					before := wants(policy, q)
					q.On = without(q.On, d.ID)
					if v := policy.Decide(q).Verdict; v != Good && v != TooGood {
						t.Fatalf("%s: dropping dev%d leaves %v", policy, d.ID, v)
					}
					if after := wants(policy, q); !slices.Equal(before, after) {
						t.Fatalf("%s: dropping dev%d leaves %v missing, it was %v", policy, d.ID, after, before)
					}
					if n := len(readable(q.On)); n < p.Keep || n < least(policy, q.MinDevCount) {
						t.Fatalf("%s: dropping dev%d leaves %d readable copies of %d", policy, d.ID, n, p.Keep)
					}
					if !d.LetsDelete() || !d.Readable() {
						t.Fatalf("%s: dev%d lets nothing be dropped", policy, d.ID)
					}
				}
				if v := policy.Decide(q); len(v.Drop) > 0 {
					t.Fatalf("%s: the plan left dev%d to drop", policy, v.Drop[0].ID)
				}
			}
		}
	})
}

// complete wants no device left that could serve what is missing, but for a
// file that is on all devices, or on all hosts, that the policy counts.
func complete(t *rapid.T, policy Policy, q Question, p Plan) {
	t.Helper()
	if p.Verdict != Wait {
		return
	}
	for _, d := range candidates(q) {
		if helps(policy, q, d) {
			t.Fatalf("%s: %v, and dev%d would serve what is missing: %v", policy, p.Verdict, d.ID, wants(policy, q))
		}
	}
}

// least is how many copies of a file a policy keeps at the very least, by its
// definition.
func least(p Policy, mindevcount int) int {
	own := func(count int) int {
		if count > 0 {
			return count
		}
		return max(1, mindevcount)
	}
	n := 1
	switch p := p.(type) {
	case MultipleHosts:
		n = own(p.Count)
	case MultipleDevices:
		n = own(p.Count)
	case MultipleNetworks:
		n = own(p.Count)
	case HostsPerNetwork:
		sum := 0
		for _, need := range p.Needs {
			sum += need.Hosts
		}
		n = max(n, sum)
	case Union:
		for _, m := range p.Members {
			n = max(n, least(m, mindevcount))
		}
	}
	return n
}

// TestSatisfiedMeansMet wants nothing missing of a file that a policy is
// satisfied with, except what no file can have in that cluster: it is on every
// device there is.
func TestSatisfiedMeansMet(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		q := aCluster(t)
		policy := aPolicy(2).Draw(t, "policy")
		v := policy.Decide(q).Verdict
		if v != Good && v != TooGood {
			return
		}
		if in := survey(q); len(q.On) >= 2 && len(q.On) == in.disks {
			return
		}
		if missing := wants(policy, q); slices.Max(append(missing, 0)) > 0 && !loose(policy, q) {
			t.Fatalf("%s: %v, and missing %v", policy, v, missing)
		}
	})
}

// loose reports whether a policy has a rule that lets less do: MultipleNetworks
// for one copy looks at nothing but that there is one.
func loose(p Policy, q Question) bool {
	switch p := p.(type) {
	case MultipleNetworks:
		return p.Count <= 1 && max(p.Count, q.MinDevCount) <= 1
	case Union:
		return slices.ContainsFunc(p.Members, func(m Policy) bool { return loose(m, q) })
	}
	return false
}

// TestMayDrop tries every copy of random files: what may go leaves the policy
// satisfied by readable copies alone, in at least the number to keep.
func TestMayDropLeavesEnough(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		q := aCluster(t)
		policy := aPolicy(2).Draw(t, "policy")
		for _, o := range q.On {
			ok, keep := MayDrop(policy, q, o.Device.ID)
			if !ok {
				continue
			}
			rest := q
			rest.On = readable(without(q.On, o.Device.ID))
			if len(rest.On) < keep || keep < least(policy, q.MinDevCount) {
				t.Fatalf("%s: %d readable copies left, to keep %d", policy, len(rest.On), keep)
			}
			if v := policy.Decide(rest).Verdict; v != Good && v != TooGood {
				t.Fatalf("%s: the readable copies left are %v", policy, v)
			}
			if slices.Max(append(wants(policy, rest), 0)) > slices.Max(append(wants(policy, q), 0)) {
				t.Fatalf("%s: missing %v before, %v after", policy, wants(policy, q), wants(policy, rest))
			}
		}
	})
}

// TestDeepUnions answers for the deepest Union in no time, and as for its one
// member.
func TestDeepUnions(t *testing.T) {
	t.Parallel()
	const depth = protocol.MaxPolicyDepth
	deep, err := ParsePolicy(strings.Repeat("Union(", depth) + "MultipleHosts(1)" + strings.Repeat(")", depth))
	if err != nil {
		t.Fatal(err)
	}
	devs, on := layout(t, "h1: d1* d2*; h2: d3*; h3: d4*; h4: d5*; h5: d6* d7")
	q := Question{On: on, Devices: devs, MinDevCount: 1, Rand: seeded(1)}
	if got, want := deep.Decide(q), (MultipleHosts{Count: 1}).Decide(q); inOrder(got.Drop) != inOrder(want.Drop) || len(got.Drop) != 5 {
		t.Errorf("drops %s, want %s", inOrder(got.Drop), inOrder(want.Drop))
	}
}

// TestUnionsOfUnions wants a Union in a Union to be as good as its members.
func TestUnionsOfUnions(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		q := aCluster(t)
		nested := aPolicy(2).Draw(t, "policy")
		flat, err := ParsePolicy(nested.String())
		if err != nil {
			t.Fatal(err)
		}
		q.Rand = seeded(1)
		a := nested.Decide(q)
		q.Rand = seeded(1)
		b := flat.Decide(q)
		if a.Verdict != b.Verdict || a.Keep != b.Keep || inOrder(a.Drop) != inOrder(b.Drop) {
			t.Fatalf("%v: %+v, flat %+v", nested, a, b)
		}
	})
}

func TestMayDrop(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		policy string
		min    int
		layout string
		ok     string // the copies of which one may go
		keep   int
	}{
		{"MultipleHosts()", 2, "h1: d1* d2*; h2: d3*", "1 2", 2},
		{"MultipleHosts()", 2, "h1: d1*; h2: d3*", "", 2},
		{"MultipleHosts()", 2, "h1: d1*; h2: d2*; h3: d3*", "1 2 3", 2},
		{"MultipleHosts()", 2, "h1: d1*; h2: d2*; h3: d3=down*", "3", 2},
		{"MultipleHosts()", 2, "h1: d1* d2*; h2: d3=down*; h3: d4*", "1 2 3", 2},
		{"MultipleHosts(1)", 3, "h1: d1*; h2: d2*", "1 2", 1},
		{"MultipleHosts()", 5, "h1: d1* d2*; h2: d3*", "", 5},
		{"MultipleDevices()", 2, "h1: d1* d2*; h2: d3*", "1 2 3", 2},
		{"MultipleNetworks()", 2, "h1@a: d1*; h2@a: d2*; h3@b: d3*", "1 2", 2},
		{"MultipleNetworks()", 2, "h1@a: d1*; h2@a: d2*; h3@b: d3=away*", "", 2},
		{"HostsPerNetwork(a=1)", 2, "h1@a: d1*; h2@a: d2*; h3@b: d3*", "1 2 3", 1},
		{"HostsPerNetwork(a=1, b=1)", 2, "h1@a: d1*; h2@a: d2*; h3@b: d3*", "1 2", 2},
		{"HostsPerNetwork()", 2, "h1@a: d1*", "", 1},
		{"Union(HostsPerNetwork(a=1), MultipleHosts(2))", 2, "h1@a: d1*; h2@b: d2*; h3@b: d3*", "2 3", 2},
		{"Union(HostsPerNetwork(a=2), HostsPerNetwork(b=1, a=1))", 2, "h1@a: d1*; h2@a: d2*; h3@b: d3* d4*", "3 4", 3},
	} {
		t.Run(fmt.Sprint(c.policy, " ", c.min, " ", c.layout), func(t *testing.T) {
			p, err := ParsePolicy(c.policy)
			if err != nil {
				t.Fatal(err)
			}
			devs, on := layout(t, c.layout)
			var may []*cluster.Device
			q := Question{On: on, Devices: devs, MinDevCount: c.min, Rand: seeded(1)}
			for _, o := range on {
				ok, keep := MayDrop(p, q, o.Device.ID)
				if keep != c.keep {
					t.Errorf("keep %d, want %d", keep, c.keep)
				}
				if ok {
					may = append(may, o.Device)
				}
			}
			if got := ids(may); got != c.ok {
				t.Errorf("one of %q may go, want one of %q", got, c.ok)
			}
			if ok, _ := MayDrop(p, q, 99); ok {
				t.Error("a copy may go that is not there")
			}
		})
	}
}
