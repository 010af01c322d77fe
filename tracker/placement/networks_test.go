package placement

import (
	"fmt"
	"slices"
	"testing"

	"github.com/mogile/mogile/tracker/cluster"
)

// vector is a row of a table of decisions.
type vector struct {
	policy string
	min    int
	layout string
	want   string
}

func (v vector) run(t *testing.T) {
	t.Run(fmt.Sprint(v.policy, " ", v.min, " ", v.layout), func(t *testing.T) {
		p, err := ParsePolicy(v.policy)
		if err != nil {
			t.Fatal(err)
		}
		devs, on := layout(t, v.layout)
		q := Question{On: on, Devices: devs, MinDevCount: v.min, MinFreeMB: 100, Rand: seeded(1)}
		plan := p.Decide(q)
		got := answer(plan)
		if plan.Verdict == TooGood {
			got += ", drop " + inOrder(plan.Drop)
		}
		if got != v.want {
			t.Errorf("got %s, want %s", got, v.want)
		}
	})
}

func TestHostsPerNetwork(t *testing.T) {
	t.Parallel()
	for _, v := range []vector{
		{"HostsPerNetwork(a=1, b=1)", 5, "h1@a: d1* d2; h2@b: d3*", "all good"}, // mindevcount does not count
		{"HostsPerNetwork(a=1, b=1)", 2, "h1@a: d1* d2; h2@b: d3 d4", "ideal 3 4"},
		{"HostsPerNetwork(a=1, b=1)", 2, "h1@a: d1 d2; h2@b: d3 d4", "ideal 1 2 3 4"},
		{"HostsPerNetwork(a=2)", 2, "h1@a: d1* d2; h2@a: d3; h3@b: d4", "ideal 3"},
		{"HostsPerNetwork(a=2)", 2, "h1@a: d1* d2; h2@a (down): d3; h3@b: d4", "desperate 2"},
		// Two copies are there; another one on the used host would not help.
		{"HostsPerNetwork(a=2)", 2, "h1@a: d1* d2* d5; h2@a (down): d3; h3@b: d4", "temp fail"},
		{"HostsPerNetwork(a=2)", 2, "h1@a: d1* d2* d5; h2@a: d3; h3@b: d4", "ideal 3"},
		// Three wanted on two hosts: MultipleHosts would call the rest ideal.
		{"HostsPerNetwork(a=3)", 2, "h1@a: d1* d2; h2@a: d3* d4", "desperate 2 4"},
		{"HostsPerNetwork(a=3)", 2, "h1@a: d1* d2*; h2@a: d3* d4", "all good"},
		{"HostsPerNetwork(a=3)", 2, "h1@a: d1* d2*; h2@a: d3* d4*", "too good, drop 1"},
		{"HostsPerNetwork(a=1)", 2, "h1@a: d1* d2*", "too good, drop 1"},
		{"HostsPerNetwork(a=1)", 2, "h1@a: d1* d2=drain*", "too good, drop 2"},
		// Copies in zones that are not named, or in none, do not count.
		{"HostsPerNetwork(a=1)", 2, "h1@a: d1*; h2@b: d2* d3*; h3: d4*", "all good"},
		{"HostsPerNetwork(a=1)", 2, "h1@b: d1*; h2: d2", "temp fail"},
		{"HostsPerNetwork(nowhere=1)", 2, "h1@a: d1* d2; h2@b: d3", "temp fail"},
		{"HostsPerNetwork(nowhere=1, b=1)", 2, "h1@a: d1* d2; h2@b: d3", "ideal 3"},
		{"HostsPerNetwork(a=1, b=1)", 2, "h1@a: d1*; h2@b: d2=readonly d3=full", "temp fail"},
		{"HostsPerNetwork(a=0, b=1)", 2, "h1@a: d1*; h2@b: d2*", "too good, drop 1"},
		{"HostsPerNetwork()", 2, "h1@a: d1*; h2@b: d2", "all good"},
		// Hosts whose devices are all dead are not there.
		{"HostsPerNetwork(a=2)", 2, "h1@a: d1* d2; h2@a: d3=dead", "desperate 2"},
	} {
		v.run(t)
	}
}

func TestMultipleNetworks(t *testing.T) {
	t.Parallel()
	for _, v := range []vector{
		{"MultipleNetworks()", 1, "h1@a: d1* d2; h2@b: d3", "all good"},
		{"MultipleNetworks()", 1, "h1@a: d1*; h2@b: d3*", "all good"}, // never too good
		{"MultipleNetworks()", 2, "h1@a: d1* d2; h2@b: d3 d4", "ideal 3 4"},
		{"MultipleNetworks()", 2, "h1@a: d1*; h2@a: d2; h3@b: d3", "ideal 3"},
		{"MultipleNetworks()", 2, "h1@a: d1*; h2@b: d2*; h3@c: d3", "all good"},
		{"MultipleNetworks(3)", 2, "h1@a: d1*; h2@b: d2*; h3@c: d3; h4@a: d4", "ideal 3"},
		// Not spread enough: more are made although there are two.
		{"MultipleNetworks()", 2, "h1@a: d1*; h2@a: d2*; h3@b: d3", "ideal 3"},
		{"MultipleNetworks()", 2, "h1@a: d1* d2; h2@a: d3; h3@b (down): d4", "desperate 2 3"},
		{"MultipleNetworks()", 2, "h1@a: d1*; h2@a: d2*; h4@a: d5; h3@b (down): d4", "temp fail"},
		{"MultipleNetworks()", 3, "h1@a: d1* d2* d3*; h2@a: d4; h3@b (down): d5", "desperate 4"},
		// One network is all there is: as MultipleHosts.
		{"MultipleNetworks()", 2, "h1@a: d1* d2; h2@a: d3", "desperate 2 3"},
		{"MultipleNetworks()", 2, "h1@a: d1*; h2@a: d2*; h3@a: d3", "all good"},
		{"MultipleNetworks()", 2, "h1@a: d1* d2*; h2@a: d3* d4", "too good, drop 1"},
		{"MultipleNetworks()", 2, "h1: d1* d4; h2: d2*; h3: d3*", "too good, drop 1"},
		{"MultipleNetworks()", 2, "h1@a: d1* d4; h2@a: d2*; h3@b: d3*", "too good, drop 1"},
		{"MultipleNetworks()", 2, "h1@a: d1* d4; h2@a: d2*; h3@b: d3=half*", "too good, drop 1"}, // not the fullest
		{"MultipleNetworks()", 3, "h1@a: d1* d4; h2@b: d2* d3", "ideal 3 4"},                     // every host has one
		{"MultipleNetworks()", 3, "h1@a: d1* d3*; h2@b: d2* d4", "all good"},
		{"MultipleNetworks()", 5, "h1@a: d1* d3*; h2@b: d2*", "all good"}, // all devices
		{"MultipleNetworks()", 2, "h1@a: d1* d3*; h2@b: d2*", "all good"}, // the same, before there is a surplus
		{"MultipleNetworks()", 2, "h1@a: d1*; h2@b: d2=away", "temp fail"},
	} {
		v.run(t)
	}
	devs, on := layout(t, "h1@a: d1* d2; h2@a: d3; h3@b (down): d4")
	q := Question{On: on, Devices: devs, MinDevCount: 2, Rand: seeded(1)}
	if p := (MultipleNetworks{}).Decide(q); inOrder(p.Desperate) != "3 2" {
		t.Errorf("desperate %s: a host without a copy comes first", inOrder(p.Desperate))
	}
}

func TestUnion(t *testing.T) {
	t.Parallel()
	for _, v := range []vector{
		{"Union(MultipleHosts(2))", 1, "h1: d1* d2; h2: d3 d4", "ideal 3 4"},
		{"Union(MultipleHosts(2), MultipleDevices(3))", 1, "h1: d1*; h2: d2* d3", "ideal 3"},
		{"Union(MultipleHosts(2), MultipleDevices(3))", 1, "h1: d1*; h2: d2* d3*", "all good"},
		{"Union(MultipleHosts(2), MultipleDevices(3))", 1, "h1: d1* d4*; h2: d2* d3*", "too good, drop 1"},
		{"Union(MultipleHosts(2), MultipleHosts(3))", 1, "h1: d1*; h2: d2*; h3: d3*", "all good"},
		// The host in the zone serves both members.
		{"Union(MultipleHosts(2), HostsPerNetwork(a=1))", 1, "h1@b: d1*; h2@b: d2; h3@a: d3; h4@c: d4", "ideal 3"},
		{"Union(MultipleHosts(), HostsPerNetwork(a=1))", 2, "h1@b: d1*; h2@b: d2*; h3@a: d3", "ideal 3"},
		// Each member has a copy to spare, or does not care, and one is spare to all.
		{"Union(MultipleHosts(), HostsPerNetwork(a=1))", 2, "h1@b: d1*; h2@b: d2*; h3@a: d3*", "too good, drop 1"},
		{"Union(MultipleHosts(2), HostsPerNetwork(a=1, b=2))", 2, "h1@b: d1*; h2@b: d2*; h3@a: d3*", "all good"},
		// An ideal place of the second beats a desperate one of the first.
		{"Union(MultipleHosts(3), HostsPerNetwork(a=1))", 2, "h1@b: d1* d2; h2@a: d3; h3@b (down): d4", "ideal 3"},
		{"Union(MultipleHosts(2), HostsPerNetwork(a=1))", 2, "h1@b: d1* d2; h2@a (down): d3", "desperate 2"},
		// A zone that is not there does not keep the others from theirs.
		{"Union(HostsPerNetwork(nowhere=1), MultipleHosts(2))", 2, "h1@b: d1* d2; h2@a: d3", "ideal 3"},
		{"Union(HostsPerNetwork(nowhere=1), MultipleHosts(2))", 2, "h1@b: d1* d2; h2@a: d3*", "temp fail"},
		{"Union(Union(MultipleNetworks(2)), Union(MultipleDevices(2), MultipleHosts(3)))", 1, "h1@a: d1*; h2@a: d2; h3@b: d3", "ideal 3"},
	} {
		v.run(t)
	}
}

// TestSpreadComesBeforeSurplus wants a file that has copies to spare on too few
// hosts to get one on another host, and only then to lose others.
func TestSpreadComesBeforeSurplus(t *testing.T) {
	t.Parallel()
	for _, v := range []vector{
		{"MultipleHosts()", 3, "h1: d1* d2*; h2: d3* d4*; h3: d5", "ideal 5"},
		{"MultipleHosts()", 3, "h1: d1* d2*; h2: d3* d4*; h3: d5*", "too good, drop 1 3"},
		{"MultipleHosts()", 3, "h1: d1* d2* d6; h2: d3* d4*; h3 (down): d5", "temp fail"},
	} {
		v.run(t)
	}
}

func TestNearFirst(t *testing.T) {
	t.Parallel()
	devs, _ := layout(t, "h1@a: d1 d2; h2@b: d3 d4; h3: d5; h4@c: d6")
	for _, c := range []struct {
		zones []string
		want  string
	}{
		{nil, "1 2 3 4 5 6"},
		{[]string{""}, "1 2 3 4 5 6"},
		{[]string{"b"}, "3 4 1 2 5 6"},
		{[]string{"c", "b"}, "6 3 4 1 2 5"},
		{[]string{"", "c"}, "6 1 2 3 4 5"},
		{[]string{"nowhere"}, "1 2 3 4 5 6"},
	} {
		if got := inOrder(NearFirst(slices.Clone(devs), c.zones...)); got != c.want {
			t.Errorf("near %q: %s, want %s", c.zones, got, c.want)
		}
	}
}

func TestNewFileDevicesNear(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		zone, layout string
		n            int
		near, far    string
	}{
		{"a", "h1@a: d1 d2; h2@b: d3 d4; h3: d5", 3, "1 2", "3 4 5"},
		{"a", "h1@a: d1; h2@b: d3; h4@a: d4", 2, "1 4", ""},
		{"c", "h1@a: d1; h2@b: d3", 2, "", "1 3"},
		{"", "h1@a: d1; h2: d3", 2, "", "1 3"},
		{"a", "h1@a (down): d1; h2@b: d3", 2, "", "3"},
		{"a", "h1@a: d1=full; h2@b: d3", 2, "", "3"},
	} {
		devs, _ := layout(t, c.layout)
		got := NewFileDevicesNear(c.zone, devs, c.n, -1, 100, seeded(4))
		i := slices.IndexFunc(got, func(d *cluster.Device) bool { return d.Zone() != c.zone || c.zone == "" })
		if i < 0 {
			i = len(got)
		}
		if ids(got[:i]) != c.near || len(got) > c.n || !subset(ids(got[i:]), c.far) {
			t.Errorf("%s from zone %q: %s", c.layout, c.zone, inOrder(got))
		}
	}
}

func subset(some, all string) bool {
	for _, c := range some {
		if !slices.Contains([]rune(all), c) {
			return false
		}
	}
	return true
}
