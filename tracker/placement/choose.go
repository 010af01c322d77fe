package placement

import (
	"cmp"
	"math/rand/v2"
	"slices"
	"strconv"

	"github.com/mogile/mogile/schema"
	"github.com/mogile/mogile/tracker/cluster"
)

// topCandidates is how many of the emptiest devices a choice is made among.
const topCandidates = 20

// NewFileDevices chooses up to n devices for a new file, in the order in which
// they should be offered: of the devices that take files the 20 with the
// largest free part, in random order weighted by it, one of each host before a
// second of any.
//
// size is the announced length in bytes; 0 and less mean that it is not known.
// Where it is, only devices with more than that free are considered, and if
// there are none those whose free space is unknown. Devices that are full or of
// unknown size have weight 0 and are never chosen.
func NewFileDevices(devs []*cluster.Device, n int, size, minFreeMB int64, rng *rand.Rand) []*cluster.Device {
	if size > 0 {
		devs = fitting(devs, size)
	}
	var able []*cluster.Device
	for _, d := range devs {
		if d.TakesFiles(minFreeMB) {
			able = append(able, d)
		}
	}
	return distinctHostsFirst(emptiestFirst(able, rng), n)
}

// NewFileDevicesNear is [NewFileDevices] with the devices of a zone before all
// others, each group in its order. In no zone they are all alike.
func NewFileDevicesNear(zone string, devs []*cluster.Device, n int, size, minFreeMB int64, rng *rand.Rand) []*cluster.Device {
	if zone == "" {
		return NewFileDevices(devs, n, size, minFreeMB, rng)
	}
	var near, far []*cluster.Device
	for _, d := range devs {
		if d.Zone() == zone {
			near = append(near, d)
		} else {
			far = append(far, d)
		}
	}
	chosen := NewFileDevices(near, n, size, minFreeMB, rng)
	return append(chosen, NewFileDevices(far, n-len(chosen), size, minFreeMB, rng)...)
}

// NearFirst sorts devices in place, and returns them: those in the first of
// zones, then those in the second, and so on, then all others, each group in the
// order that it had. Empty zones do not count.
//
// A copy that its destination fetches by itself crosses the network from the
// source to there, so that its sources are best sorted by the destination's zone;
// one that a tracker streams crosses twice, and the tracker's zone comes first.
func NearFirst(devs []*cluster.Device, zones ...string) []*cluster.Device {
	rank := func(d *cluster.Device) int {
		if i := slices.Index(zones, d.Zone()); i >= 0 && d.Zone() != "" {
			return i
		}
		return len(zones)
	}
	slices.SortStableFunc(devs, func(a, b *cluster.Device) int { return cmp.Compare(rank(a), rank(b)) })
	return devs
}

func fitting(devs []*cluster.Device, size int64) []*cluster.Device {
	var fit, unknown []*cluster.Device
	for _, d := range devs {
		switch free, known := d.FreeMB(); {
		case !known:
			unknown = append(unknown, d)
		case free > size>>20: // free MiB hold more than size bytes
			fit = append(fit, d)
		}
	}
	if len(fit) == 0 {
		return unknown
	}
	return fit
}

// distinctHostsFirst takes up to n of devs in order, passing over second
// devices of a host as long as there are others.
func distinctHostsFirst(devs []*cluster.Device, n int) []*cluster.Device {
	picked := make([]*cluster.Device, 0, min(n, len(devs)))
	var seconds []*cluster.Device
	hosts := make(map[schema.HostID]bool, len(devs))
	for _, d := range devs {
		if hosts[d.HostID] {
			seconds = append(seconds, d)
			continue
		}
		hosts[d.HostID] = true
		picked = append(picked, d)
	}
	picked = append(picked, seconds...)
	return picked[:max(0, min(n, len(picked)))]
}

// emptiestFirst is the order that MogileFS calls weighted top 20: the 20
// devices with the largest free fraction, in random order with that fraction
// as weight. Devices of weight 0 drop out.
func emptiestFirst(devs []*cluster.Device, rng *rand.Rand) []*cluster.Device {
	type lot struct {
		dev  *cluster.Device
		free float64
		tie  uint64 // among equally empty devices the cut must not always fall on the same ones
	}
	var top [topCandidates]lot // the emptiest so far, in order
	n := 0
	for _, d := range devs {
		free := d.FreeFraction()
		if free <= 0 || n == len(top) && free < top[n-1].free {
			continue
		}
		l := lot{d, free, rng.Uint64()}
		i, _ := slices.BinarySearchFunc(top[:n], l, func(a, b lot) int {
			return cmp.Or(cmp.Compare(b.free, a.free), cmp.Compare(a.tie, b.tie))
		})
		if i == len(top) {
			continue
		}
		n = min(n+1, len(top))
		copy(top[i+1:n], top[i:])
		top[i] = l
	}
	chosen := make([]*cluster.Device, n)
	for i, l := range top[:n] {
		chosen[i] = l.dev
	}
	return weighted(chosen, (*cluster.Device).FreeFraction, rng)
}

// ReadOrder orders the copies of a file for reading: in random order weighted
// by how idle a device is (102 less its utilisation, where that is a whole
// number) or by its configured weight. As in MogileFS, weight 0 counts as 100,
// and devices whose weight comes out negative drop out.
func ReadOrder(devs []*cluster.Device, rng *rand.Rand) []*cluster.Device {
	return weighted(devs, readWeight, rng)
}

func readWeight(d *cluster.Device) float64 {
	w := d.Weight
	if busy, err := strconv.Atoi(d.Utilization); err == nil {
		w = 102 - busy
	}
	if w == 0 {
		w = 100
	}
	return float64(w)
}

// weighted draws devs without replacement, each with a chance proportional to
// its weight among those left. Weights of 0 and less drop out.
func weighted(devs []*cluster.Device, weight func(*cluster.Device) float64, rng *rand.Rand) []*cluster.Device {
	type lot struct {
		dev  *cluster.Device
		wait float64
	}
	lots := make([]lot, 0, len(devs))
	for _, d := range devs {
		// The earliest of exponential waiting times with rates w is the first
		// draw, the next the second, and so on.
		if w := weight(d); w > 0 {
			lots = append(lots, lot{d, rng.ExpFloat64() / w})
		}
	}
	slices.SortFunc(lots, func(a, b lot) int { return cmp.Compare(a.wait, b.wait) })
	order := make([]*cluster.Device, len(lots))
	for i, l := range lots {
		order[i] = l.dev
	}
	return order
}

// Readers is the order of a file's copies, split by what a reader should do
// with them.
type Readers struct {
	First  []*cluster.Device // readable: to be offered first
	Drain  []*cluster.Device // readable but in drain: to be offered after First
	Backup *cluster.Device   // not readable: to be offered where nothing else can be; may be nil
}

// SplitReaders sorts an order of copies into those that can be read now, those
// that are in drain, and the last resort, which is the last of the others that
// has a host at all. nil devices, which are unknown ones, are skipped.
func SplitReaders(order []*cluster.Device) Readers {
	var r Readers
	for _, d := range order {
		switch {
		case d == nil || d.Host == nil:
		case !d.Readable():
			r.Backup = d
		case d.Draining():
			r.Drain = append(r.Drain, d)
		default:
			r.First = append(r.First, d)
		}
	}
	return r
}
