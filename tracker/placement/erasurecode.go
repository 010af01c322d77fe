package placement

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/schema"
	"github.com/mogile/mogile/tracker/cluster"
)

// ErasureCode wants a file as K+M shards on as many devices, of which any K make
// the file. A file of less than Min bytes, or an empty one, is M+1 copies on as
// many hosts, as [MultipleHosts] has them, and so is one for whose shards there are
// not enough devices now.
type ErasureCode struct {
	K, M int
	Min  int64 // bytes
}

// String is as in "ErasureCode(6, 3)".
func (p ErasureCode) String() string {
	return protocol.PolicyCall{Name: protocol.PolicyErasureCode, K: p.K, M: p.M, Min: p.Min}.String()
}

// Decide answers Encode for copies where there are devices enough, Rebuild for
// shards that are missing or of which a host, or else a zone, has more than M and
// need not, and Decode for shards that should be copies or other shards.
//
// No host gets more than M shards if that can be helped: where it can be by
// devices that are only away, copies wait for those. Beyond that hosts, and then
// zones, have as equal shares as can be, and the emptiest devices are preferred by
// chance. Only devices whose storage daemon has the capability ec are chosen. One
// device that has a copy gets a shard wherever it may, so that a path that was
// handed out stays good.
func (p ErasureCode) Decide(q Question) Plan {
	switch e := q.Encoded; {
	case e != nil && (e.K != p.K || e.M != p.M || !p.encodes(q.Length)):
		return decode(p, q)
	case e != nil:
		return mend(q)
	case !p.encodes(q.Length):
		return decide(p, q)
	}
	plan, why := p.encode(q)
	if why == "" {
		return plan
	}
	if plan := decide(p, q); plan.Verdict == Copy {
		return plan
	}
	return Plan{Verdict: Wait, Why: why}
}

// encodes reports whether a file of this length is encoded.
func (p ErasureCode) encodes(length int64) bool { return length >= max(1, p.Min) }

// copies is the policy for files that are not encoded.
func (p ErasureCode) copies() MultipleHosts { return MultipleHosts{Count: p.M + 1} }

// forCopies is what p wants of a file as long as it is copies.
func forCopies(p Policy) Policy {
	if code, ok := p.(ErasureCode); ok {
		return code.copies()
	}
	return p
}

func (p ErasureCode) judge(in census, on []Placement) Verdict { return p.copies().judge(in, on) }

func (p ErasureCode) places(in census, on []Placement, candidates []*cluster.Device) places {
	return p.copies().places(in, on, candidates)
}

func (p ErasureCode) spread(in census, on, rest []Placement) bool {
	return p.copies().spread(in, on, rest)
}

func (p ErasureCode) demand(in census, d *demand) { p.copies().demand(in, d) }

// encode plans the shards of a file, or says why there can be none now.
func (p ErasureCode) encode(q Question) (plan Plan, why string) {
	if len(readable(q.On)) == 0 {
		return Plan{}, "no copy of the file can be read now"
	}
	n := p.K + p.M
	able, away := shardDevices(q, p.K, nil)
	if len(able) < n {
		why = fmt.Sprintf("%s needs %d devices that take shards, and there are %d now", p, n, len(able))
		if len(able)+len(away) >= n {
			why += " (away, failing, or with a deletion of the file to come: " + names(away) + ")"
		}
		return Plan{}, why
	}
	s := newSpread(p.M, nil, able, q.Rand)
	shards := s.take(1, func(d *cluster.Device) bool { return anyOn(q.On, func(o *cluster.Device) bool { return o.ID == d.ID }) })
	shards = append(shards, s.take(n-len(shards), anyDevice)...)
	if s.hostExcess() > leastExcess(n, p.M, slices.Concat(able, away)) {
		return Plan{}, fmt.Sprintf("a host would have more than %d shards, which it need not when these devices take shards again: %s", p.M, names(away))
	}
	return Plan{Verdict: Encode, K: p.K, M: p.M, Shards: shards}, ""
}

// mend plans what an encoded file needs to have all shards, well placed.
func mend(q Question) Plan {
	e := q.Encoded
	var holders []*cluster.Device
	missing := make([]int, 0, e.K+e.M)
	for i := range e.K + e.M {
		if at := slices.IndexFunc(e.Shards, func(s ShardPlacement) bool { return s.Index == i }); at >= 0 {
			holders = append(holders, e.Shards[at].Device)
		} else {
			missing = append(missing, i)
		}
	}
	excess := newSpread(e.M, holders, nil, q.Rand)
	if len(missing) == 0 && excess.hostExcess() == 0 && excess.zoneExcess() == 0 {
		return Plan{Verdict: Good}
	}
	enough := e.Readable() >= e.K
	able, _ := shardDevices(q, e.K, e.Shards)
	s := newSpread(e.M, holders, able, q.Rand)
	if len(missing) == 0 {
		if targets := s.improve(e); enough && len(targets) > 0 {
			return Plan{Verdict: Rebuild, Targets: targets}
		}
		return Plan{Verdict: Good}
	}
	if !enough {
		return Plan{Verdict: Wait, Why: tooFew(e)}
	}
	// Shards are not kept waiting for a better host: what is missing now is
	// missing when the next device is lost.
	targets := make(map[int]*cluster.Device)
	for i, d := range s.take(len(missing), anyDevice) {
		targets[missing[i]] = d
	}
	if len(targets) == 0 {
		return Plan{Verdict: Wait, Why: fmt.Sprintf("no device takes any of the %d shards that are missing", len(missing))}
	}
	return Plan{Verdict: Rebuild, Targets: targets}
}

func tooFew(e *Encoded) string {
	return fmt.Sprintf("%d shards can be read now, and %d are needed", e.Readable(), e.K)
}

// decode plans the copies that p wants of an encoded file.
func decode(p Policy, q Question) Plan {
	if q.Encoded.Readable() < q.Encoded.K {
		return Plan{Verdict: Wait, Why: tooFew(q.Encoded)}
	}
	in := survey(q)
	q.On = nil
	able := roomy(candidates(q), q.Length)
	var on []Placement
	plan := Plan{Verdict: Decode}
	for len(on) == 0 || p.judge(in, on) == Wait {
		to := places{ideal: able} // for a policy that asks for no copy at all
		if p.judge(in, on) == Wait {
			to = p.places(in, on, able)
		}
		var d *cluster.Device
		if len(on) == 0 { // a path that was handed out stays good
			d = bestOf(slices.DeleteFunc(slices.Clone(to.ideal), func(d *cluster.Device) bool { return !q.Encoded.has(d) }), q)
		}
		for _, tier := range [][]*cluster.Device{to.ideal, to.desperate[0], to.desperate[1]} {
			if d == nil {
				d = bestOf(tier, q)
			}
		}
		if d == nil {
			return Plan{Verdict: Wait, Why: fmt.Sprintf("%s, mindevcount %d, finds devices for %d copies only, with which shards cannot be replaced", p, q.MinDevCount, len(on))}
		}
		on = append(on, Placement{Device: d, Readable: true})
		plan.Copies = append(plan.Copies, d)
		able = slices.DeleteFunc(able, func(o *cluster.Device) bool { return o.ID == d.ID })
	}
	return plan
}

// bestOf is an empty one of devs by chance; nil where there is none.
func bestOf(devs []*cluster.Device, q Question) *cluster.Device {
	if order := emptiestFirst(devs, q.Rand); len(order) > 0 {
		return order[0]
	}
	return nil
}

// awayShard is [Away] for the shard on from. The shard moves even where the policy
// wants no shards any more: that it should be copies does not keep its device from
// being emptied.
func awayShard(q Question, from protocol.DevID, to []protocol.DevID) (next *cluster.Device, ok bool) {
	e := q.Encoded
	var others []*cluster.Device
	var source *cluster.Device
	for _, s := range e.Shards {
		if s.Device.ID == from {
			source = s.Device
		} else {
			others = append(others, s.Device)
		}
	}
	if source == nil || e.Readable() < e.K {
		return nil, false
	}
	able, away := shardDevices(q, e.K, e.Shards)
	if len(to) > 0 {
		var not []*cluster.Device
		able = slices.DeleteFunc(able, func(d *cluster.Device) bool {
			if slices.Contains(to, d.ID) {
				return false
			}
			not = append(not, d)
			return true
		})
		away = append(away, not...)
	}
	before := newSpread(e.M, append(slices.Clone(others), source), nil, q.Rand).hostExcess()
	s := newSpread(e.M, others, able, q.Rand)
	chosen := s.take(1, anyDevice)
	if len(chosen) == 0 {
		return nil, false
	}
	if s.hostExcess() > before {
		// Only where no other device would do better, whether it can be had or not.
		better := newSpread(e.M, others, away, q.Rand)
		if len(better.take(1, anyDevice)) > 0 && better.hostExcess() < s.hostExcess() {
			return nil, false
		}
	}
	return chosen[0], true
}

// shardDevices are the devices that a shard of one of k parts of the file can be
// put on now, and those that may be so again when they are not away any more.
// Neither has any of the holders.
func shardDevices(q Question, k int, holders []ShardPlacement) (able, away []*cluster.Device) {
	size := q.Length / int64(max(1, k))
	for _, d := range q.Devices {
		if slices.ContainsFunc(holders, func(s ShardPlacement) bool { return s.Device.ID == d.ID }) {
			continue
		}
		reachable := d.Host != nil && d.Host.Observed == cluster.HostReachable
		free, known := d.FreeMB()
		switch {
		case d.Status != schema.DeviceAlive || d.Host == nil || d.Host.Status != schema.HostAlive:
		case reachable && !d.Host.Capabilities.Has(protocol.WordEC):
		case known && (free <= 0 || free < q.MinFreeMB || free <= size>>20):
		case !known || !d.TakesFiles(q.MinFreeMB) || slices.Contains(q.Skip, d.ID):
			away = append(away, d)
		default:
			able = append(able, d)
		}
	}
	return able, away
}

// roomy are those of devs, whose free space is known, that have more than size
// bytes of it.
func roomy(devs []*cluster.Device, size int64) []*cluster.Device {
	return slices.DeleteFunc(devs, func(d *cluster.Device) bool {
		free, _ := d.FreeMB()
		return free <= size>>20
	})
}

func (e *Encoded) has(d *cluster.Device) bool {
	return slices.ContainsFunc(e.Shards, func(s ShardPlacement) bool { return s.Device.ID == d.ID })
}

func anyDevice(*cluster.Device) bool { return true }

// names are the devices' names, or the first of them.
func names(devs []*cluster.Device) string {
	const most = 8
	var s []string
	for _, d := range devs[:min(most, len(devs))] {
		s = append(s, "dev"+d.ID.String())
	}
	if len(devs) > most {
		s = append(s, fmt.Sprintf("and %d more", len(devs)-most))
	}
	return strings.Join(s, ", ")
}

// leastExcess is how many of n shards must be on hosts beyond m each, if they are
// on devs.
func leastExcess(n, m int, devs []*cluster.Device) int {
	room := make(map[schema.HostID]int)
	for _, d := range devs {
		room[d.HostID]++
	}
	for _, devices := range room {
		n -= min(m, devices)
	}
	return max(0, n)
}

// spread counts the shards of hosts and zones, and chooses devices for more. Hosts
// and zones bound each other only by nesting, so that the best next device is also
// the best in the end.
type spread struct {
	m     int // shards that may be lost at once
	hosts map[schema.HostID]*int
	zones map[string]*int
	free  []seat
}

// seat is a device that may get a shard.
type seat struct {
	dev        *cluster.Device
	host, zone *int    // shards there
	wait       float64 // by chance, shorter for emptier devices: the first of those equally well placed is taken
}

func newSpread(m int, holders, able []*cluster.Device, rng *rand.Rand) *spread {
	s := &spread{m: m, hosts: make(map[schema.HostID]*int), zones: make(map[string]*int)}
	for _, d := range holders {
		host, zone := s.counters(d)
		*host++
		*zone++
	}
	s.free = make([]seat, 0, len(able))
	var host, zone *int
	for i, d := range able {
		if i == 0 || !d.SameHost(able[i-1]) { // most are of the host before
			host, zone = s.counters(d)
		}
		wait := rng.ExpFloat64()
		if free := d.FreeFraction(); free > 0 {
			wait /= free
		}
		s.free = append(s.free, seat{d, host, zone, wait})
	}
	return s
}

func (s *spread) counters(d *cluster.Device) (host, zone *int) {
	if s.hosts[d.HostID] == nil {
		s.hosts[d.HostID] = new(int)
	}
	if s.zones[d.Zone()] == nil {
		s.zones[d.Zone()] = new(int)
	}
	return s.hosts[d.HostID], s.zones[d.Zone()]
}

// before reports whether a is the better device for the next shard: the loss of a
// host must not cost more than m, then that of a zone; then shares are to be even.
func (s *spread) before(a, b *seat) bool {
	if over := *a.host >= s.m; over != (*b.host >= s.m) {
		return !over
	}
	if over := *a.zone >= s.m; over != (*b.zone >= s.m) {
		return !over
	}
	if *a.host != *b.host {
		return *a.host < *b.host
	}
	if *a.zone != *b.zone {
		return *a.zone < *b.zone
	}
	return a.wait < b.wait
}

// take chooses up to n devices that may, best first, and counts them.
func (s *spread) take(n int, may func(*cluster.Device) bool) []*cluster.Device {
	chosen := make([]*cluster.Device, 0, n)
	for len(chosen) < n {
		i := s.best(may)
		if i < 0 {
			break
		}
		chosen = append(chosen, s.sit(i))
	}
	return chosen
}

// best is the index of the best seat that may be taken, -1 where there is none.
func (s *spread) best(may func(*cluster.Device) bool) int {
	best := -1
	for i := range s.free {
		if may(s.free[i].dev) && (best < 0 || s.before(&s.free[i], &s.free[best])) {
			best = i
		}
	}
	return best
}

// sit gives the device at i of s.free a shard.
func (s *spread) sit(i int) *cluster.Device {
	taken := s.free[i]
	*taken.host++
	*taken.zone++
	s.free[i] = s.free[len(s.free)-1]
	s.free = s.free[:len(s.free)-1]
	return taken.dev
}

func (s *spread) hostExcess() int {
	n := 0
	for _, shards := range s.hosts {
		n += max(0, *shards-s.m)
	}
	return n
}

func (s *spread) zoneExcess() int {
	n := 0
	for _, shards := range s.zones {
		n += max(0, *shards-s.m)
	}
	return n
}

// improve moves shards of e, one after the other, as long as that lets the loss of
// some host, or else of some zone, cost less that is beyond m.
func (s *spread) improve(e *Encoded) map[int]*cluster.Device {
	moves := make(map[int]*cluster.Device)
	left := slices.DeleteFunc(slices.Clone(e.Shards), func(o ShardPlacement) bool { return !o.Readable || !o.Device.LetsDelete() })
	slices.SortFunc(left, func(a, b ShardPlacement) int { // as copies that are dropped
		return goesFirst(Placement{Device: a.Device}, Placement{Device: b.Device}, nil)
	})
	for moved := true; moved; {
		moved = false
		for i, o := range left {
			host, zone := s.counters(o.Device)
			if *host <= s.m && *zone <= s.m {
				continue
			}
			hosts, zones := s.hostExcess(), s.zoneExcess()
			*host--
			*zone--
			if seat := s.best(anyDevice); seat >= 0 {
				to := s.free[seat]
				*to.host++
				*to.zone++
				h, z := s.hostExcess(), s.zoneExcess()
				*to.host--
				*to.zone--
				if h < hosts || h == hosts && z < zones {
					moves[o.Index] = s.sit(seat)
					left = slices.Delete(left, i, i+1)
					moved = true
					break
				}
			}
			*host++
			*zone++
		}
	}
	return moves
}
