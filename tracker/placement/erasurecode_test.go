package placement

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/schema"
	"github.com/mogile/mogile/tracker/cluster"
)

// shardLayout is layout with shards: "d1#0" is one of index 0, and "h1 (other)" a
// host whose storage daemon makes no shards.
func shardLayout(t testing.TB, k, m int, s string) (q Question) {
	t.Helper()
	at := make(map[string]int) // by device
	var words []string
	for word := range strings.FieldsSeq(strings.ReplaceAll(s, ";", " ; ")) {
		if name, index, ok := strings.Cut(word, "#"); ok {
			i, err := strconv.Atoi(index)
			if err != nil {
				t.Fatal(err)
			}
			at[name] = i
			word = name + "*"
		}
		words = append(words, word)
	}
	text := strings.ReplaceAll(strings.Join(words, " "), "(other)", "")
	q = Question{MinDevCount: m + 1, MinFreeMB: 100, Length: 10 << 20, Rand: seeded(1)}
	q.Devices, q.On = layout(t, text)
	for part := range strings.SplitSeq(s, ";") {
		head, _, _ := strings.Cut(part, ":")
		if name, ok := strings.CutSuffix(strings.TrimSpace(head), " (other)"); ok {
			for _, d := range q.Devices {
				if "h"+fmt.Sprint(d.HostID) == name {
					d.Host.Capabilities = cluster.Capabilities{}
				}
			}
		}
	}
	if len(at) > 0 {
		q.Encoded = &Encoded{K: k, M: m, Block: 4096}
		for _, o := range q.On {
			for name, i := range at {
				if name, _, _ := strings.Cut(name, "="); name == "d"+o.Device.ID.String() {
					q.Encoded.Shards = append(q.Encoded.Shards, ShardPlacement{Index: i, Device: o.Device, Readable: o.Readable})
				}
			}
		}
		q.On = nil
	}
	return q
}

// hostShares are the shards of each host that has some, as "h1=2 h2=1".
func hostShares(devs []*cluster.Device) string {
	n := make(map[schema.HostID]int)
	var hosts []schema.HostID
	for _, d := range devs {
		if n[d.HostID]++; n[d.HostID] == 1 {
			hosts = append(hosts, d.HostID)
		}
	}
	slices.Sort(hosts)
	var s []string
	for _, h := range hosts {
		s = append(s, fmt.Sprintf("h%d=%d", h, n[h]))
	}
	return strings.Join(s, " ")
}

func TestErasureCode(t *testing.T) {
	t.Parallel()
	const three = "h1: d1 d2; h2: d3 d4; h3: d5 d6"
	for _, c := range []struct {
		name, policy, layout string
		length               int64
		want                 string // what the plan says
	}{
		{"all devices of a small cluster", "ErasureCode(4,2)", "h1: d1* d2; h2: d3 d4; h3: d5 d6", 1 << 20, "encode 4+2 h1=2 h2=2 h3=2"},
		{"distinct hosts first", "ErasureCode(2,1)", "h1: d1* d2 d3; h2: d4 d5; h3: d6 d7", 1 << 20, "encode 2+1 h1=1 h2=1 h3=1"},
		{"no more than m while hosts suffice", "ErasureCode(3,2)", "h1: d1* d2 d3; h2: d4 d5 d6; h3: d7", 1 << 20, "encode 3+2 h1=2 h2=2 h3=1"},
		{"even where they do not", "ErasureCode(4,1)", "h1: d1* d2 d3 d4; h2: d5 d6 d7", 1 << 20, "encode 4+1 h1=3 h2=2;encode 4+1 h1=2 h2=3"},
		{"small files are copies", "ErasureCode(4,2)", three + " d7*", 1<<20 - 1, "copy"},
		{"m+1 of them", "ErasureCode(4,2)", "h1: d1* d2; h2: d3* d4; h3: d5* d6", 1<<20 - 1, "good"},
		{"empty ones, too", "ErasureCode(1,1,min=0)", "h1: d1*; h2: d2*; h3: d3", 0, "good"},
		{"but not one of a byte", "ErasureCode(1,1,min=0)", "h1: d1*; h2: d2*; h3: d3", 1, "encode 1+1 h1=1 h2=1;encode 1+1 h1=1 h3=1;encode 1+1 h2=1 h3=1"},
		{"too few devices: copies", "ErasureCode(4,2)", "h1: d1* d2; h2: d3; h3: d4 d5", 1 << 20, "copy"},
		{"and then nothing", "ErasureCode(4,2)", "h1: d1* d2; h2: d3*; h3: d4* d5", 1 << 20, "wait: ErasureCode(4, 2) needs 6 devices that take shards, and there are 5 now"},
		{"full devices do not count", "ErasureCode(4,2)", "h1: d1* d2=full; h2: d3* d4; h3: d5* d6", 1 << 20, "wait: ErasureCode(4, 2) needs 6 devices that take shards, and there are 5 now"},
		{"nor do those that make no shards", "ErasureCode(4,2)", "h1: d1* d2; h2: d3* d4; h3 (other): d5* d6", 1 << 20, "wait: ErasureCode(4, 2) needs 6 devices that take shards, and there are 4 now"},
		{"nor do those in drain", "ErasureCode(4,2)", "h1: d1* d2=drain; h2: d3* d4; h3: d5* d6", 1 << 20, "wait: ErasureCode(4, 2) needs 6 devices that take shards, and there are 5 now"},
		{"those that are away are named", "ErasureCode(2,1)", "h1: d1* d2=away; h2: d3*; h3: d4=down", 1 << 20, "wait: ErasureCode(2, 1) needs 3 devices that take shards, and there are 2 now (away, failing, or with a deletion of the file to come: dev2)"},
		{"a file too large for the devices", "ErasureCode(2,1)", "h1: d1*; h2: d2*; h3: d3=half", 1001 << 20, "wait: ErasureCode(2, 1) needs 3 devices that take shards, and there are 2 now"},
		{"copies wait for a host that is away", "ErasureCode(3,1)", "h1: d1* d2 d3; h2: d4* d5; h3: d6; h4 (down): d7 d8", 1 << 20, "encode 3+1 h1=2 h2=1 h3=1;encode 3+1 h1=1 h2=2 h3=1"},
		{"if it would help", "ErasureCode(3,1)", "h1: d1* d2 d3; h2: d4* d5; h3: d6; h4: d7=away d8=away", 1 << 20, "wait: a host would have more than 1 shards, which it need not when these devices take shards again: dev7, dev8"},
		{"nothing to read from", "ErasureCode(1,1)", "h1: d1=down*; h2: d2=down*; h3: d3 d4", 1 << 20, "wait: no copy of the file can be read now"},
		{"zones share as hosts do", "ErasureCode(2,2)", "h1@a: d1* d2; h2@a: d3 d4; h3@b: d5 d6; h4@b: d7 d8", 1 << 20, "encode 2+2 h1=1 h2=1 h3=1 h4=1"},
		{"zones before even hosts", "ErasureCode(2,2)", "h1@a: d1*; h2@a: d2; h3@a: d3; h4@b: d4 d5", 1 << 20, "encode 2+2 h1=1 h2=1 h4=2;encode 2+2 h1=1 h3=1 h4=2"},

		{"all is well", "ErasureCode(2,1)", "h1: d1#0; h2: d2#1; h3: d3#2 d4", 1 << 20, "good"},
		{"with a host away, too", "ErasureCode(2,1)", "h1: d1#0; h2 (down): d2#1; h3: d3#2 d4; h4: d5", 1 << 20, "good"},
		{"and with shards in drain", "ErasureCode(2,1)", "h1: d1=drain#0; h2: d2#1; h3: d3#2; h4: d5", 1 << 20, "good"},
		{"a shard is missing", "ErasureCode(2,1)", "h1: d1#0; h2: d2; h3: d3#2 d4", 1 << 20, "rebuild 1=d2"},
		{"on a host of its own if there is one", "ErasureCode(2,1)", "h1: d1#0 d2 d3; h3: d4#2 d5 d6; h4: d7", 1 << 20, "rebuild 1=d7"},
		{"on any if not", "ErasureCode(2,1)", "h1: d1#0; h3: d3#2 d4", 1 << 20, "rebuild 1=d4"},
		{"on none", "ErasureCode(2,1)", "h1: d1#0; h3: d3#2", 1 << 20, "wait: no device takes any of the 1 shards that are missing"},
		{"as many as can be", "ErasureCode(1,3)", "h1: d1#0; h2: d2; h3: d3=full", 1 << 20, "rebuild 1=d2"},
		{"too few are left", "ErasureCode(2,1)", "h1: d1#0; h2: d2; h3 (down): d3#2 d4", 1 << 20, "wait: 1 shards can be read now, and 2 are needed"},
		{"a host has more than m", "ErasureCode(2,1)", "h1: d1#0 d2#1; h2: d3#2; h3: d4", 1 << 20, "rebuild 0=d4"},
		{"and must have", "ErasureCode(2,1)", "h1: d1#0 d2#1; h2: d3#2 d4", 1 << 20, "good"},
		{"from drain first", "ErasureCode(2,1)", "h1: d1#0 d2=drain#1; h2: d3#2; h3: d4", 1 << 20, "rebuild 1=d4"},
		{"but not what cannot go", "ErasureCode(2,1)", "h1: d1=readonly#0 d2=readonly#1; h2: d3#2; h3: d4", 1 << 20, "good"},
		{"a zone has more than m", "ErasureCode(2,1)", "h1@a: d1#0; h2@a: d2#1; h3@b: d3#2; h4@c: d4", 1 << 20, "rebuild 0=d4"},

		{"other shards are wanted", "ErasureCode(1,1)", "h1: d1#0; h2: d2#1; h3: d3#2 d4", 1 << 20, "decode 2"},
		{"copies are wanted", "MultipleHosts(3)", "h1: d1#0; h2: d2#1; h3: d3#2 d4", 1 << 20, "decode 3"},
		{"copies for small files", "ErasureCode(2,1,min=2M)", "h1: d1#0; h2: d2#1; h3: d3#2 d4", 1 << 20, "decode 2"},
		{"one at least", "HostsPerNetwork()", "h1: d1#0; h2: d2#1; h3: d3#2 d4", 1 << 20, "decode 1"},
		{"copies of all members", "Union(HostsPerNetwork(a=2), MultipleDevices(3))", "h1@a: d1#0 d2; h2@a: d3#1 d4; h3@b: d5#2", 1 << 20, "decode 3"},
		{"no device for them", "HostsPerNetwork(a=1)", "h1: d1#0; h2: d2#1; h3@a: d3=full#2", 1 << 20, "wait: HostsPerNetwork(a=1), mindevcount 2, finds devices for 0 copies only, with which shards cannot be replaced"},
		{"nothing to make them of", "MultipleHosts()", "h1: d1#0; h2 (down): d2#1; h3 (down): d3#2 d4", 1 << 20, "wait: 1 shards can be read now, and 2 are needed"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p, err := ParsePolicy(c.policy)
			if err != nil {
				t.Fatal(err)
			}
			k, m := 2, 1
			if code, ok := p.(ErasureCode); ok && strings.Contains(c.want, "rebuild") {
				k, m = code.K, code.M
			}
			seen := make(map[string]bool)
			for seed := range uint64(30) {
				q := shardLayout(t, k, m, c.layout)
				q.Length, q.Rand = c.length, seeded(seed)
				plan := p.Decide(q)
				got := plan.Verdict.String()
				switch plan.Verdict {
				case Encode:
					got += fmt.Sprintf(" %d+%d %s", plan.K, plan.M, hostShares(plan.Shards))
				case Rebuild:
					for i := range k + m {
						if d := plan.Targets[i]; d != nil {
							got += fmt.Sprintf(" %d=d%d", i, d.ID)
						}
					}
				case Decode:
					got += " " + strconv.Itoa(len(plan.Copies))
					if !q.Encoded.has(plan.Copies[0]) {
						t.Errorf("none of the copies is where a shard is")
					}
				case Wait:
					if plan.Why != "" {
						got += ": " + plan.Why
					}
				}
				seen[got] = true
				if !slices.Contains(strings.Split(c.want, ";"), got) {
					t.Fatalf("seed %d: %s, want %s", seed, got, c.want)
				}
			}
			if want := strings.Count(c.want, ";") + 1; len(seen) != want {
				t.Errorf("chance says %d of %d answers: %v", len(seen), want, seen)
			}
		})
	}
}

// TestShardsSpare counts the losses that a file survives.
func TestShardsSpare(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		layout          string
		spare, readable int
	}{
		{"h1: d1#0; h2: d2#1; h3: d3#2", 1, 3},
		{"h1: d1#0; h2 (down): d2#1; h3: d3#2", 1, 2},
		{"h1: d1#0; h2: d2#1; h3: d3", 0, 2},
		{"h1: d1#0; h2: d2#0; h3: d3", -1, 1},
	} {
		e := shardLayout(t, 2, 1, c.layout).Encoded
		if e.Spare() != c.spare || e.Readable() != c.readable {
			t.Errorf("%s: spare %d, readable %d; want %d, %d", c.layout, e.Spare(), e.Readable(), c.spare, c.readable)
		}
	}
}

func TestAwayShard(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, layout string
		from         protocol.DevID
		to           []protocol.DevID
		want         protocol.DevID // 0: it cannot move
	}{
		{"to a host of its own", "h1: d1#0 d2; h2: d3#1; h3: d4#2; h4: d5", 4, nil, 5},
		{"to its own host", "h1: d1#0; h2: d3#1; h3: d4#2 d5", 4, nil, 5},
		{"only there", "h1: d1#0 d2; h2: d3#1 d6; h3: d4#2; h4: d5=away", 4, []protocol.DevID{2}, 0},
		{"not where others would be better", "h1: d1#0 d2; h2: d3#1; h3: d4#2; h4: d5", 4, []protocol.DevID{2}, 0},
		{"nor while they are away", "h1: d1#0 d2; h2: d3#1; h3: d4#2; h4: d5=away", 4, nil, 0},
		{"unless there is no better", "h1: d1#0 d2; h2: d3#1; h3: d4#2", 4, nil, 2},
		{"to no device that has a shard", "h1: d1#0; h2: d3#1; h3: d4#2", 4, nil, 0},
		{"from no device without one", "h1: d1#0 d2; h2: d3#1; h3: d4#2; h4: d5", 2, nil, 0},
		{"of a shard that cannot be read", "h1: d1#0; h2: d3#1; h3 (down): d4#2; h4: d5", 4, nil, 5},
		{"of one of too few", "h1: d1#0; h2 (down): d3#1; h3 (down): d4#2; h4: d5", 4, nil, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			for _, p := range []Policy{ErasureCode{K: 2, M: 1}, MultipleHosts{}} {
				next, ok := Away(p, shardLayout(t, 2, 1, c.layout), c.from, c.to)
				switch {
				case ok != (c.want != 0), ok && next.ID != c.want:
					t.Errorf("%s: %v, %v; want dev%d", p, next, ok, c.want)
				}
			}
		})
	}
}

// TestCopiesMoveMeanwhile wants copies that cannot be encoded yet to be moved, and
// dropped, as copies are.
func TestCopiesMoveMeanwhile(t *testing.T) {
	t.Parallel()
	p := ErasureCode{K: 4, M: 1}
	q := shardLayout(t, 4, 1, "h1: d1*; h2: d2*; h3: d3")
	if next, ok := Away(p, q, 2, nil); !ok || next == nil || next.ID != 3 {
		t.Errorf("%v, %v; want dev3", next, ok)
	}
	q = shardLayout(t, 4, 1, "h1: d1*; h2: d2*; h3: d3*")
	if next, ok := Away(p, q, 2, nil); !ok || next != nil {
		t.Errorf("%v, %v; want no copy more", next, ok)
	}
	if ok, keep := MayDrop(p, q, 2); !ok || keep != 2 {
		t.Errorf("may drop: %v, %d; want true, 2", ok, keep)
	}
}

// aCode draws a cluster, some hosts of which make no shards, and a policy.
func aCode(t *rapid.T) (Question, ErasureCode) {
	q := aCluster(t)
	seen := make(map[*cluster.Host]bool)
	for _, d := range q.Devices {
		if !seen[d.Host] && rapid.IntRange(0, 9).Draw(t, "makes no shards") == 0 {
			d.Host.Capabilities = cluster.Capabilities{}
		}
		seen[d.Host] = true
		if rapid.Bool().Draw(t, "good") { // most clusters would have no room otherwise
			d.Status, d.Observed, d.Host.Status, d.Host.Observed = schema.DeviceAlive, cluster.DeviceWriteable, schema.HostAlive, cluster.HostReachable
			*d.UsedMB = *d.UsedMB / 2
		}
	}
	for i, o := range q.On {
		q.On[i].Readable = o.Device.Readable()
	}
	p := ErasureCode{K: rapid.IntRange(1, 5).Draw(t, "k"), M: rapid.IntRange(1, 4).Draw(t, "m"), Min: rapid.SampledFrom([]int64{0, 1000}).Draw(t, "min")}
	q.Length = rapid.SampledFrom([]int64{1000, 1 << 20, 600 << 20}).Draw(t, "length")
	return q, p
}

// ableFor and hopefulFor are the devices that may get shards now, and once
// everything is up again, by their definition.
func ableFor(q Question, k int, d *cluster.Device) bool {
	free, known := d.FreeMB()
	return known && free > 0 && free > q.Length/int64(k)>>20 && d.TakesFiles(q.MinFreeMB) &&
		slices.Contains(d.Host.Capabilities.Words, "ec") && !slices.Contains(q.Skip, d.ID)
}

func hopefulFor(q Question, k int, d *cluster.Device) bool {
	free, known := d.FreeMB()
	return d.Status == "alive" && d.Host.Status == "alive" && (!known || free > 0 && free >= q.MinFreeMB && free > q.Length/int64(k)>>20) &&
		(d.Host.Observed != cluster.HostReachable || slices.Contains(d.Host.Capabilities.Words, "ec"))
}

// loads are the shards of hosts, and of zones.
func loads(devs []*cluster.Device) (hosts map[schema.HostID]int, zones map[string]int) {
	hosts, zones = make(map[schema.HostID]int), make(map[string]int)
	for _, d := range devs {
		hosts[d.HostID]++
		zones[d.Zone()]++
	}
	return hosts, zones
}

// beyond sums what is above m.
func beyond[K comparable](n map[K]int, m int) int {
	sum := 0
	for _, v := range n {
		sum += max(0, v-m)
	}
	return sum
}

// leastBeyond tries to place n more shards on able, one of which has none of the
// file's, beside those of holders: how many must be beyond m on their hosts.
func leastBeyond(n, m int, holders, able []*cluster.Device) int {
	have, _ := loads(holders)
	room, _ := loads(able)
	for h, devices := range room {
		n -= min(devices, max(0, m-have[h]))
	}
	return beyond(have, m) + max(0, n)
}

// TestEncodePlans wants shards on distinct devices that may have them, no more on
// a host than can be lost unless that cannot be helped, not even by waiting, with
// equal shares beyond that; one where a copy is; and no plan only where there is a
// reason.
func TestEncodePlans(t *testing.T) {
	t.Parallel()
	encoded := 0
	rapid.Check(t, func(t *rapid.T) {
		q, p := aCode(t)
		n := p.K + p.M
		var able, hopeful []*cluster.Device
		for _, d := range q.Devices {
			if ableFor(q, p.K, d) {
				able = append(able, d)
			}
			if hopefulFor(q, p.K, d) {
				hopeful = append(hopeful, d)
			}
		}
		readable := slices.ContainsFunc(q.On, func(o Placement) bool { return o.Readable })
		plan := p.Decide(q)
		if plan.Verdict != Encode {
			if readable && len(able) >= n && q.Length >= max(1, p.Min) && leastBeyond(n, p.M, nil, able) <= leastBeyond(n, p.M, nil, hopeful) {
				t.Fatalf("%s: %v (%s), and there are %d devices", p, plan.Verdict, plan.Why, len(able))
			}
			if plan.Verdict == Wait && plan.Why == "" || plan.Verdict == Good || plan.Verdict == TooGood {
				t.Fatalf("%s: %v without a reason", p, plan.Verdict)
			}
			return
		}
		encoded++
		if !readable || len(plan.Shards) != n || plan.K != p.K || plan.M != p.M {
			t.Fatalf("%s: %+v", p, plan)
		}
		for i, d := range plan.Shards {
			if !ableFor(q, p.K, d) || slices.Contains(plan.Shards[:i], d) {
				t.Fatalf("%s: dev%d cannot have shard %d", p, d.ID, i)
			}
		}
		hosts, zones := loads(plan.Shards)
		if got, least := beyond(hosts, p.M), leastBeyond(n, p.M, nil, hopeful); got != least {
			t.Fatalf("%s: %d shards beyond what a host may have, and they could be %d: %v", p, got, least, hosts)
		}
		most := 1
		for ; ; most++ {
			room := 0
			all, _ := loads(able)
			for _, devices := range all {
				room += min(devices, most)
			}
			if room >= n {
				break
			}
		}
		oneZone := true
		for _, d := range able {
			oneZone = oneZone && d.Zone() == able[0].Zone()
		}
		for h, shards := range hosts {
			if shards > max(most, p.M) || oneZone && shards > most {
				t.Fatalf("%s: host %d has %d shards, %d would do", p, h, shards, most)
			}
		}
		room := make(map[string]int)
		all, _ := loads(able)
		for h, devices := range all {
			i := slices.IndexFunc(able, func(d *cluster.Device) bool { return d.HostID == h })
			room[able[i].Zone()] += min(devices, p.M)
		}
		sum := 0
		for _, shards := range room {
			sum += min(shards, p.M)
		}
		if sum >= n && beyond(zones, p.M) > 0 {
			t.Fatalf("%s: zones have %v, and each could have %d", p, zones, p.M)
		}
		holds := func(d *cluster.Device) bool { return anyOn(q.On, func(o *cluster.Device) bool { return o == d }) }
		if slices.ContainsFunc(able, holds) && !slices.ContainsFunc(plan.Shards, holds) {
			t.Fatalf("%s: no device that has a copy keeps a shard", p)
		}
	})
	if encoded == 0 {
		t.Error("no file could be encoded")
	}
}

// scatter puts shards of an encoding anywhere.
func scatter(t *rapid.T, q *Question, k, m int) {
	q.On = nil
	q.Encoded = &Encoded{K: k, M: m, Block: 4096}
	devs := rapid.Permutation(q.Devices).Draw(t, "holders")
	for i := range k + m {
		if i < len(devs) && !devs[i].Dead() && rapid.IntRange(0, 9).Draw(t, "missing") > 0 {
			q.Encoded.Shards = append(q.Encoded.Shards, ShardPlacement{Index: i, Device: devs[i], Readable: devs[i].Readable()})
		}
	}
}

func (e *Encoded) devices() []*cluster.Device {
	var devs []*cluster.Device
	for _, s := range e.Shards {
		devs = append(devs, s.Device)
	}
	return devs
}

// TestShardsConverge carries out what the policy says of shards until it says
// nothing more. It ends; what is missing is made before anything moves, all of it
// that can be; devices have one shard at most; each plan costs no host more than it
// must; and in the end no single move would do any good.
func TestShardsConverge(t *testing.T) {
	t.Parallel()
	rebuilt, moved := 0, 0
	rapid.Check(t, func(t *rapid.T) {
		q, p := aCode(t)
		q.Length = max(q.Length, p.Min)
		scatter(t, &q, p.K, p.M)
		n := p.K + p.M
		for steps := 0; ; steps++ {
			if steps > 2*n { // devices that shards have left may take others
				t.Fatalf("%s: no end", p)
			}
			e := q.Encoded
			holders := e.devices()
			var able []*cluster.Device
			for _, d := range q.Devices {
				if ableFor(q, p.K, d) && !slices.Contains(holders, d) {
					able = append(able, d)
				}
			}
			enough := e.Readable() >= p.K
			missing := n - len(e.Shards)
			plan := p.Decide(q)
			switch plan.Verdict {
			case Good:
				if missing > 0 {
					t.Fatalf("%s: good, and %d shards are missing", p, missing)
				}
				if enough {
					noBetter(t, p, e, able)
				}
				return
			case Wait:
				if missing == 0 || enough && len(able) > 0 || plan.Why == "" {
					t.Fatalf("%s: waits (%q) with %d missing, %d devices", p, plan.Why, missing, len(able))
				}
				return
			case Rebuild:
			default:
				t.Fatalf("%s: %v", p, plan.Verdict)
			}
			if !enough {
				t.Fatalf("%s: %d shards cannot be read, and are to be used", p, p.K)
			}
			if missing > 0 && len(plan.Targets) != min(missing, len(able)) {
				t.Fatalf("%s: %d of %d missing shards are made, on %d devices", p, len(plan.Targets), missing, len(able))
			}
			hosts, zones := loads(holders)
			before, zoneBefore := beyond(hosts, p.M), beyond(zones, p.M)
			next := Encoded{K: e.K, M: e.M}
			for _, s := range e.Shards {
				if plan.Targets[s.Index] == nil {
					next.Shards = append(next.Shards, s)
				} else if missing > 0 || !s.Readable || !s.Device.LetsDelete() {
					t.Fatalf("%s: shard %d moves", p, s.Index)
				}
			}
			for i, d := range plan.Targets {
				if i < 0 || i >= n || !slices.Contains(able, d) || next.has(d) {
					t.Fatalf("%s: dev%d cannot have shard %d", p, d.ID, i)
				}
				next.Shards = append(next.Shards, ShardPlacement{Index: i, Device: d, Readable: true})
			}
			hosts, zones = loads(next.devices())
			after, zoneAfter := beyond(hosts, p.M), beyond(zones, p.M)
			if missing > 0 {
				rebuilt++
				if least := leastBeyond(len(plan.Targets), p.M, holders, able); after != least {
					t.Fatalf("%s: %d shards beyond what a host may have, and they could be %d", p, after, least)
				}
			} else {
				moved++
				if after > before || after == before && zoneAfter >= zoneBefore {
					t.Fatalf("%s: a move from %d/%d to %d/%d beyond m", p, before, zoneBefore, after, zoneAfter)
				}
			}
			q.Encoded = &next
		}
	})
	if rebuilt == 0 || moved == 0 {
		t.Errorf("%d rebuilds, %d moves: not both were tried", rebuilt, moved)
	}
}

// noBetter tries each single move.
func noBetter(t *rapid.T, p ErasureCode, e *Encoded, able []*cluster.Device) {
	t.Helper()
	hosts, zones := loads(e.devices())
	before, zoneBefore := beyond(hosts, p.M), beyond(zones, p.M)
	for i, s := range e.Shards {
		if !s.Readable || !s.Device.LetsDelete() {
			continue
		}
		for _, d := range able {
			devs := e.devices()
			devs[i] = d
			hosts, zones := loads(devs)
			if after, zoneAfter := beyond(hosts, p.M), beyond(zones, p.M); after < before || after == before && zoneAfter < zoneBefore {
				t.Fatalf("%s: good, and shard %d would be better on dev%d: %d/%d to %d/%d beyond m", p, s.Index, d.ID, before, zoneBefore, after, zoneAfter)
			}
		}
	}
}

// TestDecodePlans wants copies in place of shards that satisfy the policy, of any
// kind, on devices that may have them; and then nothing undoes it.
func TestDecodePlans(t *testing.T) {
	t.Parallel()
	decoded := 0
	rapid.Check(t, func(t *rapid.T) {
		q, code := aCode(t)
		scatter(t, &q, code.K, code.M)
		var p Policy = ErasureCode{K: code.K + 1, M: code.M, Min: code.Min}
		if rapid.Bool().Draw(t, "copies") {
			p = aPolicy(2).Draw(t, "policy")
		}
		plan := p.Decide(q)
		if plan.Verdict == Wait {
			if plan.Why == "" {
				t.Fatalf("%s: waits without a reason", p)
			}
			return
		}
		if plan.Verdict != Decode || len(plan.Copies) == 0 || q.Encoded.Readable() < code.K {
			t.Fatalf("%s: %+v", p, plan)
		}
		decoded++
		e := q.Encoded
		q.Encoded = nil
		for _, d := range plan.Copies {
			if free, _ := d.FreeMB(); free <= q.Length>>20 || !slices.Contains(candidates(q), d) {
				t.Fatalf("%s: dev%d cannot have a copy", p, d.ID)
			}
			q.On = append(q.On, Placement{Device: d, Readable: true})
		}
		if v := forCopies(p).Decide(q).Verdict; v != Good && v != TooGood {
			t.Fatalf("%s: %v with the copies that it wants", p, v)
		}
		if p.Decide(q).Verdict == Copy {
			t.Fatalf("%s: wants more copies than it said, or other ones, in place of %d shards", p, len(e.Shards))
		}
	})
	if decoded == 0 {
		t.Error("no file could be decoded")
	}
}

// TestShardsMove wants a shard that is to leave its device to go where it may, and
// to cost no host more than it must.
func TestShardsMove(t *testing.T) {
	t.Parallel()
	moved := 0
	rapid.Check(t, func(t *rapid.T) {
		q, p := aCode(t)
		scatter(t, &q, p.K, p.M)
		var to []protocol.DevID
		for _, d := range q.Devices {
			if rapid.IntRange(0, 3).Draw(t, "permitted") == 0 {
				to = append(to, d.ID)
			}
		}
		from := rapid.SampledFrom(q.Devices).Draw(t, "from")
		next, ok := Away(p, q, from.ID, to)
		var others, able, hopeful []*cluster.Device
		for _, s := range q.Encoded.Shards {
			if s.Device != from {
				others = append(others, s.Device)
			}
		}
		for _, d := range q.Devices {
			if q.Encoded.has(d) {
				continue
			}
			if ableFor(q, p.K, d) && (len(to) == 0 || slices.Contains(to, d.ID)) {
				able = append(able, d)
			}
			if hopefulFor(q, p.K, d) {
				hopeful = append(hopeful, d)
			}
		}
		before, _ := loads(q.Encoded.devices())
		can := q.Encoded.has(from) && q.Encoded.Readable() >= p.K && len(able) > 0
		if !ok {
			if can && leastBeyond(1, p.M, others, able) <= max(beyond(before, p.M), leastBeyond(1, p.M, others, hopeful)) {
				t.Fatalf("%s: the shard on dev%d cannot move to any of %d devices", p, from.ID, len(able))
			}
			return
		}
		if !can || !slices.Contains(able, next) {
			t.Fatalf("%s: the shard on dev%d moves to dev%d", p, from.ID, next.ID)
		}
		moved++
		after, _ := loads(append(slices.Clone(others), next))
		if got := beyond(after, p.M); got > max(beyond(before, p.M), leastBeyond(1, p.M, others, hopeful)) {
			t.Fatalf("%s: %d shards beyond what a host may have, before %d", p, got, beyond(before, p.M))
		}
	})
	if moved == 0 {
		t.Error("no shard could move")
	}
}

// TestSmallFilesAreCopies compares with the policy for copies.
func TestSmallFilesAreCopies(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		q, p := aCode(t)
		p.Min = q.Length + 1
		q.Rand = seeded(1)
		got := p.Decide(q)
		q.Rand = seeded(1)
		want := MultipleHosts{Count: p.M + 1}.Decide(q)
		if got.Verdict != want.Verdict || inOrder(got.Ideal) != inOrder(want.Ideal) || inOrder(got.Desperate) != inOrder(want.Desperate) || inOrder(got.Drop) != inOrder(want.Drop) {
			t.Fatalf("%s: %+v, want %+v", p, got, want)
		}
	})
}

func BenchmarkEncodePlan(b *testing.B) {
	var devs []*cluster.Device
	for h := range 500 {
		hst := host(h + 1)
		settle(hst, []string{"a", "b", "c"}[h%3])
		for d := range 20 {
			devs = append(devs, device(h*20+d+1, hst))
		}
	}
	for _, p := range []ErasureCode{{K: 6, M: 3}, {K: 32, M: 16}} {
		b.Run(p.String(), func(b *testing.B) {
			q := Question{On: []Placement{{devs[0], true}}, Devices: devs, MinDevCount: p.M + 1, Length: 1 << 20, Rand: seeded(1)}
			for b.Loop() {
				if p.Decide(q).Verdict != Encode {
					b.Fatal("not encoded")
				}
			}
		})
	}
}
