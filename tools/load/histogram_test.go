package load

import (
	"testing"
	"time"
)

// TestClasses: classes follow each other without a gap, and none is wider than
// one part in 64 of what it counts.
func TestClasses(t *testing.T) {
	for i := range classes {
		top := highest(i)
		if class(top) != i {
			t.Fatalf("class %d ends with %d µs, which is counted in class %d", i, top, class(top))
		}
		if i+1 < classes && class(top+1) != i+1 {
			t.Fatalf("%d µs is counted in class %d, not in %d", top+1, class(top+1), i+1)
		}
		if i > 0 {
			if width := top - highest(i-1); width > 1 && width*64 > top {
				t.Fatalf("class %d is %d µs wide and ends with %d µs", i, width, top)
			}
		}
	}
	if got := class(1 << 60); got != classes-1 {
		t.Errorf("the longest is counted in class %d of %d", got, classes)
	}
}

func TestQuantile(t *testing.T) {
	ms := time.Millisecond
	upTo := func(n int) []time.Duration {
		all := make([]time.Duration, n)
		for i := range all {
			all[i] = time.Duration(i+1) * ms
		}
		return all
	}
	for _, c := range []struct {
		name string
		seen []time.Duration
		q    float64
		want time.Duration
	}{
		{"nothing", nil, 0.5, 0},
		{"one", []time.Duration{7 * ms}, 0.5, 7 * ms},
		{"one, the highest", []time.Duration{7 * ms}, 1, 7 * ms},
		{"none takes 0", []time.Duration{0, 0, 5 * ms}, 0.5, 0},
		{"median", upTo(1000), 0.5, 500 * ms},
		{"p99", upTo(1000), 0.99, 990 * ms},
		{"p99.9", upTo(1000), 0.999, 999 * ms},
		{"lowest", upTo(1000), 0, ms},
		{"p99.9 of few is the highest", upTo(100), 0.999, 100 * ms},
		{"negative, of a clock set back", []time.Duration{-ms}, 0.5, 0},
		{"two days", []time.Duration{48 * time.Hour}, 0.5, 1<<topBits*time.Microsecond - time.Microsecond},
	} {
		// Halves are counted apart and put together.
		var a, b Histogram
		for i, d := range c.seen {
			if i%2 == 0 {
				a.Add(d)
			} else {
				b.Add(d)
			}
		}
		a.Merge(&b)
		if got := a.Quantile(c.q); got < c.want || float64(got) > float64(c.want)*65/64 {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
	var h Histogram
	for _, d := range upTo(9) {
		h.Add(d)
	}
	if h.Mean() != 5*ms || h.Max() != 9*ms {
		t.Errorf("mean %v, max %v of 1 to 9 ms", h.Mean(), h.Max())
	}
}
