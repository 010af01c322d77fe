package rebalance

import (
	"maps"
	"math"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/schema"
	"github.com/mogile/mogile/tracker/cluster"
	"github.com/mogile/mogile/tracker/placement"
)

// Quotas are the bytes that devices give, below 0, and take, above.
type Quotas map[protocol.DevID]int64

// String is the quotas as a setting has them: "1:-500,5:500".
func (q Quotas) String() string {
	var words []string
	for _, dev := range slices.Sorted(maps.Keys(q)) {
		words = append(words, dev.String()+":"+strconv.FormatInt(q[dev], 10))
	}
	return strings.Join(words, ",")
}

// ParseQuotas understands quotas; what makes no sense is left out.
func ParseQuotas(text string) Quotas {
	q := make(Quotas)
	for item := range strings.SplitSeq(text, ",") {
		d, n, _ := strings.Cut(item, ":")
		dev, err := strconv.ParseUint(d, 10, 31)
		bytes, err2 := strconv.ParseInt(n, 10, 64)
		if err == nil && err2 == nil && dev > 0 && dev <= protocol.MaxDevID {
			q[protocol.DevID(dev)] = bytes
		}
	}
	return q
}

// givers are the devices that give, ascending.
func (q Quotas) givers() []protocol.DevID {
	var devs []protocol.DevID
	for _, dev := range slices.Sorted(maps.Keys(q)) {
		if q[dev] < 0 {
			devs = append(devs, dev)
		}
	}
	return devs
}

// Moved is how many bytes the givers give.
func (q Quotas) Moved() (bytes int64) {
	for _, n := range q {
		bytes += max(0, -n)
	}
	return bytes
}

// Fill is how full a device is, by the lengths of the files that the database
// records on it.
type Fill struct {
	Dev          protocol.DevID
	Bytes        int64 // of files
	Capacity     int64 // in bytes, above 0
	Gives, Takes bool  // whether files may be moved off it, and to it
}

// Percent is how full it is.
func (f Fill) Percent() float64 { return 100 * float64(f.Bytes) / float64(f.Capacity) }

// Fills are the devices that take part in levelling: those that can be written
// and read and whose capacity is known. Bytes are those of the files on each.
func Fills(devices []*cluster.Device, bytes map[protocol.DevID]int64, minFreeMB int64) []Fill {
	var fills []Fill
	for _, d := range devices {
		if d.Status != schema.DeviceAlive || !d.LetsDelete() || !d.Readable() || d.TotalMB == nil || *d.TotalMB <= 0 {
			continue
		}
		fills = append(fills, Fill{
			Dev: d.ID, Bytes: bytes[d.ID], Capacity: *d.TotalMB << 20, Gives: true, Takes: d.TakesFiles(minFreeMB),
		})
	}
	return fills
}

// Spread is the difference between the fullest and the emptiest device, in
// percent points.
func Spread(fills []Fill) float64 {
	if len(fills) == 0 {
		return 0
	}
	low, high := math.Inf(1), math.Inf(-1)
	for _, f := range fills {
		low, high = min(low, f.Percent()), max(high, f.Percent())
	}
	return high - low
}

// margin is the part of the spread that a plan aims at: files are not sand.
const margin = 0.8

// Level decides how much each device gives or takes so that fills differ by at
// most spread percent points. It moves as little as it can, and nothing where
// they do already.
func Level(fills []Fill, spread float64) Quotas {
	quotas := make(Quotas)
	if Spread(fills) <= spread {
		return quotas
	}
	var bytes, capacity, most float64
	for _, f := range fills {
		most = max(most, f.Percent()/100)
		bytes += float64(f.Bytes)
		capacity += float64(f.Capacity)
	}
	mean := bytes / capacity
	half := spread / 100 * margin / 2
	over := func(level float64) (n float64) {
		for _, f := range fills {
			if f.Gives {
				n += max(0, float64(f.Bytes)-level*float64(f.Capacity))
			}
		}
		return n
	}
	under := func(level float64) (n float64) {
		for _, f := range fills {
			if f.Takes {
				n += max(0, level*float64(f.Capacity)-float64(f.Bytes))
			}
		}
		return n
	}
	moved := min(max(over(mean+half), under(mean-half)), over(mean), under(mean))
	// Both levels are found by halving: over falls, and under rises.
	high, low := mean+half, mean-half
	for a, b, i := mean, most, 0; i < 64; i++ {
		if high = (a + b) / 2; over(high) > moved {
			a = high
		} else {
			b = high
		}
	}
	for a, b, i := min(0, mean-half), mean, 0; i < 64; i++ {
		if low = (a + b) / 2; under(low) < moved {
			a = low
		} else {
			b = low
		}
	}
	for _, f := range fills {
		gives := float64(f.Bytes) - high*float64(f.Capacity)
		takes := low*float64(f.Capacity) - float64(f.Bytes)
		switch {
		case f.Gives && gives >= 1:
			quotas[f.Dev] = -int64(gives)
		case f.Takes && takes >= 1:
			quotas[f.Dev] = int64(takes)
		}
	}
	return quotas
}

// mover decides where single files go, by one snapshot.
type mover struct {
	snap      *cluster.Snapshot
	minFreeMB int64
	rng       *rand.Rand
	policies  map[*cluster.Class]placement.Policy // nil: one that makes no sense
	encodings map[protocol.FID]schema.Encoding    // of the files that are moved
}

func newMover(snap *cluster.Snapshot, minFreeMB int64, rng *rand.Rand, encodings map[protocol.FID]schema.Encoding) *mover {
	return &mover{snap: snap, minFreeMB: minFreeMB, rng: rng, policies: make(map[*cluster.Class]placement.Policy), encodings: encodings}
}

// bytes is what a move of the file moves: the file, or a shard of it.
func (m *mover) bytes(f schema.LocatedFile) int64 {
	if e, ok := m.encodings[f.FID]; ok {
		return (f.Length + int64(e.K) - 1) / int64(e.K)
	}
	return f.Length
}

// target is where the copy, or the shard, of a file on from is moved to, of the
// devices with room for it, so that the file's policy is satisfied. It reports
// false where there is none, or where it would take more than one copy.
func (m *mover) target(f schema.LocatedFile, from protocol.DevID, room Quotas) (protocol.DevID, bool) {
	class := m.snap.Class(f.DMID, f.ClassID)
	if class == nil {
		return 0, false
	}
	policy, known := m.policies[class]
	if !known {
		policy, _ = placement.ParsePolicy(class.ReplPolicy) // nil where it makes no sense
		m.policies[class] = policy
	}
	if policy == nil {
		return 0, false
	}
	q := placement.Question{Devices: m.snap.DeviceList, Length: f.Length, MinDevCount: class.MinDevCount, MinFreeMB: m.minFreeMB, Rand: m.rng}
	readable := false
	if e, ok := m.encodings[f.FID]; ok {
		q.Encoded = placement.EncodedAs(e, f.Devices, m.snap)
		readable = q.Encoded.Readable() >= e.K
	} else {
		for _, dev := range f.Devices {
			if d := m.snap.Device(dev); d != nil && !d.Dead() {
				q.On = append(q.On, placement.Placement{Device: d, Readable: d.Readable()})
				readable = readable || d.Readable()
			}
		}
	}
	var to []protocol.DevID
	for dev, bytes := range room {
		if bytes >= m.bytes(f) && bytes > 0 && !slices.Contains(f.Devices, dev) {
			to = append(to, dev)
		}
	}
	if !readable || len(to) == 0 {
		return 0, false
	}
	slices.Sort(to)
	next, ok := placement.Away(policy, q, from, to)
	if !ok || next == nil {
		return 0, false
	}
	return next.ID, true
}
