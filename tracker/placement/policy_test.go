package placement

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/schema"
	"github.com/mogile/mogile/tracker/cluster"
)

func seeded(seed uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, 1)) }

// device is one that takes files: alive, writeable, a tenth of its 1000 MiB
// used.
func device(id int, host *cluster.Host) *cluster.Device {
	total, used := int64(1000), int64(100)
	return &cluster.Device{
		Device: schema.Device{
			ID: protocol.DevID(id), HostID: host.ID, Status: schema.DeviceAlive, Weight: 100,
			TotalMB: &total, UsedMB: &used,
		},
		Host:     host,
		Observed: cluster.DeviceWriteable,
	}
}

func host(id int) *cluster.Host {
	return &cluster.Host{
		Host:         schema.Host{ID: schema.HostID(id), Status: schema.HostAlive, IP: "127.0.0.1", Port: 7500},
		Observed:     cluster.HostReachable,
		Capabilities: cluster.Capabilities{Version: 1, Words: []string{protocol.WordEC}},
	}
}

// settle puts a host into a zone, and into the network of the same name.
func settle(h *cluster.Host, zone string) {
	if zone != "" {
		h.Zone, h.Network = zone, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, zone[0]}), 16)
	}
}

// layout reads a cluster and a file's copies as the tables of the specification
// write them: "h1: d1* d2; h2 (down): d3=drain*", where a star is a copy, and
// "h1@a" a host in the zone and network a. Copies on dead devices do not count.
func layout(t testing.TB, s string) (devs []*cluster.Device, on []Placement) {
	t.Helper()
	for part := range strings.SplitSeq(s, ";") {
		head, list, ok := strings.Cut(part, ":")
		if !ok {
			t.Fatalf("layout %q: no colon in %q", s, part)
		}
		name, state, _ := strings.Cut(strings.TrimSpace(head), " ")
		name, zone, _ := strings.Cut(name, "@")
		id, err := strconv.Atoi(strings.TrimPrefix(name, "h"))
		if err != nil {
			t.Fatal(err)
		}
		h := host(id)
		settle(h, zone)
		if state != "" {
			h.Status = strings.Trim(state, "()")
			h.Observed = cluster.HostUnreachable
		}
		for word := range strings.FieldsSeq(list) {
			word, has := strings.CutSuffix(word, "*")
			name, state, _ := strings.Cut(word, "=")
			id, err := strconv.Atoi(strings.TrimPrefix(name, "d"))
			if err != nil {
				t.Fatal(err)
			}
			d := device(id, h)
			switch state {
			case "":
			case "full":
				*d.UsedMB = *d.TotalMB
			case "half":
				*d.UsedMB = *d.TotalMB / 2
			case "unknown":
				d.TotalMB, d.UsedMB = nil, nil
			case "away":
				d.Observed = cluster.DeviceUnreachable
			default:
				d.Status = state
				if !d.Monitored() {
					d.Observed = cluster.DeviceUnreachable
				}
			}
			devs = append(devs, d)
			if has && !d.Dead() {
				on = append(on, Placement{Device: d, Readable: d.Readable()})
			}
		}
	}
	return devs, on
}

func ids(devs []*cluster.Device) string {
	var n []int
	for _, d := range devs {
		n = append(n, int(d.ID))
	}
	slices.Sort(n)
	return strings.Trim(fmt.Sprint(n), "[]")
}

func inOrder(devs []*cluster.Device) string {
	var n []int
	for _, d := range devs {
		n = append(n, int(d.ID))
	}
	return strings.Trim(fmt.Sprint(n), "[]")
}

// answer is a plan in the words of the specification's tables.
func answer(p Plan) string {
	switch p.Verdict {
	case Good:
		return "all good"
	case TooGood:
		return "too good"
	case Wait:
		return "temp fail"
	}
	if len(p.Ideal) > 0 {
		return "ideal " + ids(p.Ideal)
	}
	return "desperate " + ids(p.Desperate)
}

func TestMultipleHosts(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		min    int
		layout string
		want   string
	}{
		// MogileFS 2.73's own vectors.
		{2, "h1: d1* d2; h2: d3* d4", "all good"},
		{2, "h1: d1* d2; h2: d3 d4", "ideal 3 4"},
		{2, "h1: d1* d2*; h2: d3 d4", "ideal 3 4"},
		{2, "h1: d1 d2; h2: d3 d4", "ideal 1 2 3 4"},
		{2, "h1: d1* d2; h2 (down): d3 d4", "desperate 2"},
		{2, "h1: d1* d2; h2 (down): d3 d4; h3: d5 d6", "ideal 5 6"},
		{2, "h1: d1 d2=dead*; h2: d3* d4", "ideal 1"},
		{3, "h1: d1 d2*; h2: d3* d4", "ideal 1 4"},
		{3, "h1: d1 d2*; h2: d3* d4; h3: d5", "ideal 5"},
		{3, "h1: d1 d2*; h2: d3* d4; h3 (down): d5", "desperate 1 4"},
		{2, "h1: d1*; h2: d3*; h3: d5*", "too good"},
		{2, "h1: d1* d2*; h2: d3*", "too good"},
		{3, "h1: d1 d2*; h2: d3* d4*", "all good"},
		{2, "h1: d3=drain* d5; h2: d4* d6", "all good"},
		{2, "h1: d3=drain* d5*; h2: d4*", "too good"},
		{3, "h1: d1=full d2=full; h2: d3=full d4=full; h3: d5* d6; h4: d7* d8", "desperate 6 8"},
		{3, "h1: d1=full d2=full; h2: d3=full d4=full; h3: d5* d6; h4: d7* d8*", "temp fail"},
		// The rows of the decision table that the vectors leave out.
		{1, "h1: d1* d2; h2: d3", "all good"},
		{1, "h1: d1* d2*; h2: d3", "too good"},
		{0, "h1: d1* d2; h2: d3", "all good"},
		{5, "h1: d1* d2*; h2: d3*", "all good"},
		{5, "h1: d1* d2*; h2: d3* d4", "ideal 4"},
		{2, "h1: d1*; h2: d2=away", "temp fail"},
		{2, "h1: d1*; h2: d2=readonly; h3: d3=drain; h4: d4=down", "temp fail"},
		{2, "h1: d1* d2=unknown; h2: d3=unknown", "temp fail"},
		{3, "h1: d1* d2* d5; h2: d3=unknown; h3: d4*", "temp fail"},
		{2, "h1: d1=down* d2; h2: d3=readonly* d4", "all good"},
	} {
		t.Run(fmt.Sprint(c.min, " ", c.layout), func(t *testing.T) {
			devs, on := layout(t, c.layout)
			q := Question{On: on, Devices: devs, MinDevCount: c.min, MinFreeMB: 100, Rand: seeded(1)}
			if got := answer(MultipleHosts{}.Decide(q)); got != c.want {
				t.Errorf("got %s, want %s", got, c.want)
			}
			q.MinDevCount = 99
			if got := answer(MultipleHosts{Count: max(1, c.min)}.Decide(q)); got != c.want {
				t.Errorf("with its own number: got %s, want %s", got, c.want)
			}
		})
	}
}

func TestMultipleDevices(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		min    int
		layout string
		want   string
	}{
		{2, "h1: d1* d2; h2: d3 d4", "ideal 2 3 4"},
		{2, "h1: d1* d2*; h2: d3 d4", "all good"},
		{2, "h1: d1* d2; h2 (down): d3 d4", "ideal 2"},
		{1, "h1: d1*", "all good"},
		{2, "h1: d1*", "temp fail"},
		{3, "h1: d1* d2*", "all good"},
		{2, "h1: d1* d2* d3*", "too good"},
		{2, "h1: d1* d2=full", "temp fail"},
	} {
		t.Run(fmt.Sprint(c.min, " ", c.layout), func(t *testing.T) {
			devs, on := layout(t, c.layout)
			q := Question{On: on, Devices: devs, MinDevCount: c.min, MinFreeMB: 100, Rand: seeded(1)}
			if got := answer(MultipleDevices{}.Decide(q)); got != c.want {
				t.Errorf("got %s, want %s", got, c.want)
			}
		})
	}
}

func TestSkippedDevicesAreNoDestinations(t *testing.T) {
	t.Parallel()
	devs, on := layout(t, "h1: d1* d2; h2: d3 d4")
	q := Question{On: on, Devices: devs, MinDevCount: 2, Rand: seeded(1), Skip: []protocol.DevID{3}}
	if got := answer(MultipleHosts{}.Decide(q)); got != "ideal 4" {
		t.Errorf("3 skipped: %s", got)
	}
	q.Skip = []protocol.DevID{3, 4}
	p := MultipleHosts{}.Decide(q)
	if got := answer(p); got != "desperate 2" || p.Target().ID != 2 {
		t.Errorf("3 and 4 skipped: %s, target %v", got, p.Target())
	}
	q.Skip = []protocol.DevID{2, 3, 4}
	p = MultipleHosts{}.Decide(q)
	if got := answer(p); got != "temp fail" || p.Target() != nil {
		t.Errorf("all skipped: %s, target %v", got, p.Target())
	}
}

func TestDrops(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name    string
		policy  Policy
		min     int
		layout  string
		drop    string // in order
		blocked bool
	}{
		{"drain first", MultipleHosts{}, 2, "h1: d3=drain* d5*; h2: d4*", "3", false},
		{"drain before the same host", MultipleHosts{}, 2, "h1: d1* d2*; h2: d3=drain*; h3: d4*", "3 1", false},
		{"same host before fullest", MultipleHosts{}, 2, "h1: d1* d2*; h2: d3=half*", "1", false},
		{"the fuller of a host", MultipleHosts{}, 2, "h1: d1* d2=half*; h2: d3*", "2", false},
		{"the fullest host", MultipleHosts{}, 2, "h1: d1*; h2: d2=half*; h3: d3*", "2", false},
		{"several", MultipleHosts{}, 1, "h1: d1*; h2: d2=half*; h3: d3*", "2 1", false},
		{"never the last of a host that is needed", MultipleHosts{}, 2, "h1: d1* d2*; h2: d3=drain*", "1", false},
		{"one cannot be read", MultipleHosts{}, 2, "h1: d1*; h2: d2*; h3: d3=down*", "", true},
		{"readonly stays, others go", MultipleHosts{}, 2, "h1: d1*; h2: d2*; h3: d3=readonly*", "1", false},
		{"only readonly is too many", MultipleHosts{}, 2, "h1: d1=readonly* d2=readonly*; h2: d3*", "", true},
		{"readonly host", MultipleHosts{}, 1, "h1 (readonly): d1*; h2: d2*", "", true},
		{"devices, fullest first", MultipleDevices{}, 1, "h1: d1* d2=half* d3=drain*", "3 2", false},
		{"devices, unreadable", MultipleDevices{}, 1, "h1: d1* d2=away*", "", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			devs, on := layout(t, c.layout)
			p := c.policy.Decide(Question{On: on, Devices: devs, MinDevCount: c.min, Rand: seeded(1)})
			if p.Verdict != TooGood || p.Keep != c.min {
				t.Fatalf("verdict %v, keep %d", p.Verdict, p.Keep)
			}
			if got := inOrder(p.Drop); got != c.drop || p.Blocked != c.blocked {
				t.Errorf("drop %q blocked %v, want %q %v", got, p.Blocked, c.drop, c.blocked)
			}
		})
	}
}

func TestParsePolicy(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		in   string
		want Policy
	}{
		{"", MultipleHosts{}},
		{"MultipleHosts(3)", MultipleHosts{Count: 3}},
		{"MultipleDevices()", MultipleDevices{}},
		{"MultipleNetworks(2)", MultipleNetworks{Count: 2}},
		{"HostsPerNetwork(a=1,b=2)", HostsPerNetwork{Needs: []protocol.ZoneNeed{{Zone: "a", Hosts: 1}, {Zone: "b", Hosts: 2}}}},
		{"Union(MultipleHosts(2) Union(HostsPerNetwork(a=1)),)", Union{Members: []Policy{
			MultipleHosts{Count: 2}, HostsPerNetwork{Needs: []protocol.ZoneNeed{{Zone: "a", Hosts: 1}}},
		}}},
	} {
		got, err := ParsePolicy(c.in)
		if diff := cmp.Diff(c.want, got); err != nil || diff != "" {
			t.Errorf("%q: %v %s", c.in, err, diff)
			continue
		}
		if again, err := ParsePolicy(got.String()); err != nil || !cmp.Equal(again, got) {
			t.Errorf("%q reads as %v, and that as %v (%v)", c.in, got, again, err)
		}
	}
	if _, err := ParsePolicy("MultipleHosts"); !errors.Is(err, protocol.Err("invalid_replpolicy")) {
		t.Errorf("no parentheses: %v", err)
	}
}

// FuzzParsePolicy wants every policy that reads to read the same when it is
// written, and to decide about a file.
func FuzzParsePolicy(f *testing.F) {
	for _, s := range []string{
		"", "MultipleHosts(3)", " MultipleDevices ( 2 ) tail", "MultipleNetworks(32767)", "HostsPerNetwork(a=2,b=1)",
		"Union(MultipleHosts(), MultipleDevices(2),)", "MogileFS::ReplicationPolicy::Union(HostsPerNetwork(a=0) Union(MultipleNetworks()))",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		p, err := ParsePolicy(s)
		if err != nil {
			if !errors.Is(err, protocol.Err("invalid_replpolicy")) {
				t.Fatalf("%q: %v", s, err)
			}
			return
		}
		again, err := ParsePolicy(p.String())
		if err != nil {
			t.Fatalf("%q reads as %v, which does not read: %v", s, p, err)
		}
		if diff := cmp.Diff(p, again); diff != "" {
			t.Fatalf("%q: %s", s, diff)
		}
		devs, on := layout(t, "h1@a: d1* d2*; h2@a: d3; h3@b: d4 d5*; h4: d6=drain*")
		q := Question{On: on, Devices: devs, MinDevCount: 2, Rand: seeded(1)}
		if plan := p.Decide(q); plan.Verdict.String() == "unknown" {
			t.Fatalf("%q: verdict %d", s, plan.Verdict)
		}
	})
}

// aCluster draws hosts and devices in any state, and copies anywhere.
func aCluster(t *rapid.T) Question {
	q := Question{
		MinDevCount: rapid.IntRange(0, 5).Draw(t, "mindevcount"),
		MinFreeMB:   100,
		Rand:        seeded(rapid.Uint64().Draw(t, "seed")),
	}
	hosts := rapid.IntRange(1, 5).Draw(t, "hosts")
	id := 0
	for h := 1; h <= hosts; h++ {
		hst := host(h)
		settle(hst, rapid.SampledFrom([]string{"", "a", "a", "b", "c"}).Draw(t, "zone"))
		hst.Status = rapid.SampledFrom([]string{schema.HostAlive, schema.HostAlive, schema.HostAlive, schema.HostReadonly, schema.HostDown, schema.HostDead}).Draw(t, "host status")
		if rapid.IntRange(0, 9).Draw(t, "host away") == 0 {
			hst.Observed = cluster.HostUnreachable
		}
		for range rapid.IntRange(1, 4).Draw(t, "devices") {
			id++
			d := device(id, hst)
			d.Status = rapid.SampledFrom([]string{schema.DeviceAlive, schema.DeviceAlive, schema.DeviceAlive, schema.DeviceDrain, schema.DeviceReadonly, schema.DeviceDown, schema.DeviceDead}).Draw(t, "status")
			d.Observed = rapid.SampledFrom([]cluster.DeviceState{cluster.DeviceWriteable, cluster.DeviceWriteable, cluster.DeviceReadable, cluster.DeviceUnreachable, ""}).Draw(t, "observed")
			*d.UsedMB = rapid.Int64Range(0, 1000).Draw(t, "used")
			if rapid.IntRange(0, 9).Draw(t, "size unknown") == 0 {
				d.TotalMB = nil
			}
			q.Devices = append(q.Devices, d)
			if !d.Dead() && rapid.IntRange(0, 2).Draw(t, "copy") == 0 {
				q.On = append(q.On, Placement{Device: d, Readable: d.Readable()})
			}
			if rapid.IntRange(0, 9).Draw(t, "skip") == 0 {
				q.Skip = append(q.Skip, d.ID)
			}
		}
	}
	return q
}

func BenchmarkDecide(b *testing.B) {
	var devs []*cluster.Device
	for h := range 50 {
		hst := host(h + 1)
		settle(hst, []string{"a", "b", "c"}[h%3])
		for d := range 20 {
			devs = append(devs, device(h*20+d+1, hst))
		}
	}
	copies := func(devs ...*cluster.Device) (on []Placement) {
		for _, d := range devs {
			on = append(on, Placement{d, true})
		}
		return on
	}
	for _, policy := range []string{
		"MultipleHosts()", "MultipleDevices()", "MultipleNetworks()", "HostsPerNetwork(a=1, b=1)",
		"Union(HostsPerNetwork(a=2), MultipleNetworks(2), MultipleHosts(3))",
	} {
		p, err := ParsePolicy(policy)
		if err != nil {
			b.Fatal(err)
		}
		b.Run(p.String(), func(b *testing.B) {
			q := Question{On: copies(devs[0]), Devices: devs, MinDevCount: 2, Rand: seeded(1)}
			b.Run("copy", func(b *testing.B) {
				for b.Loop() {
					if p := p.Decide(q); p.Target() == nil {
						b.Fatal("no target")
					}
				}
			})
			q.On = copies(devs[0], devs[1], devs[20], devs[60], devs[40], devs[80])
			b.Run("drop", func(b *testing.B) {
				for b.Loop() {
					if p := p.Decide(q); len(p.Drop) == 0 {
						b.Fatal("nothing to drop")
					}
				}
			})
		})
	}
}
