package load

import (
	"math"
	"math/bits"
	"time"
)

// Durations are counted in microseconds, in classes that are at most 1/subs
// wide, whatever their magnitude: the first subs classes have one value each,
// and every doubling after them has subs/2 classes.
const (
	subBits = 7
	subs    = 1 << subBits
	topBits = 36 // 19 hours; what is longer counts as that
	classes = subs + (topBits-subBits)*subs/2
)

// Histogram counts durations. Its size does not depend on how many it has seen.
type Histogram struct {
	counts [classes]uint64
	total  uint64
	sum    time.Duration
	max    time.Duration
}

// class is where us microseconds are counted.
func class(us uint64) int {
	us = min(us, 1<<topBits-1)
	shift := max(bits.Len64(us)-subBits, 0)
	return shift*subs/2 + int(us>>shift)
}

// highest is the largest number of microseconds counted in class i.
func highest(i int) uint64 {
	if i < subs {
		return uint64(i)
	}
	shift := i/(subs/2) - 1
	return (uint64(i-shift*subs/2)+1)<<shift - 1
}

// Add counts one duration.
func (h *Histogram) Add(d time.Duration) {
	h.counts[class(uint64(max(d, 0)/time.Microsecond))]++
	h.total++
	h.sum += d
	h.max = max(h.max, d)
}

// Merge adds what o has seen.
func (h *Histogram) Merge(o *Histogram) {
	for i, n := range o.counts {
		h.counts[i] += n
	}
	h.total += o.total
	h.sum += o.sum
	h.max = max(h.max, o.max)
}

// Quantile is the duration that q of all do not exceed, 0 where there are none.
func (h *Histogram) Quantile(q float64) time.Duration {
	want := max(uint64(math.Ceil(q*float64(h.total))), 1)
	var seen uint64
	for i, n := range h.counts {
		if seen += n; seen >= want {
			return min(h.max, time.Duration(highest(i))*time.Microsecond)
		}
	}
	return h.max
}

// Mean is the mean duration, 0 where there are none.
func (h *Histogram) Mean() time.Duration {
	if h.total == 0 {
		return 0
	}
	return h.sum / time.Duration(h.total)
}

// Max is the longest duration.
func (h *Histogram) Max() time.Duration { return h.max }
