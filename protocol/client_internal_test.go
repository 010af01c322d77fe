package protocol

import (
	"slices"
	"testing"
	"time"
)

func TestRest(t *testing.T) {
	for failures, want := range map[int]time.Duration{
		0: firstRest, 1: firstRest, 2: 2 * firstRest, 3: 4 * firstRest, 7: 64 * firstRest, 8: longRest, 1 << 40: longRest,
	} {
		if got := rest(failures, 0); got != want {
			t.Errorf("after %d failures %v, want %v", failures, got, want)
		}
		if got := rest(failures, 1); got != want-want/4 {
			t.Errorf("after %d failures with chance 1 %v, want %v", failures, got, want-want/4)
		}
	}
}

// Those that rest come last, soonest due first; the others begin with the
// current one.
func TestOrder(t *testing.T) {
	now := time.Now()
	in := func(d time.Duration) time.Time { return now.Add(d) }
	for _, c := range []struct {
		current int32
		until   []time.Time
		want    []int
	}{
		{0, []time.Time{{}}, []int{0}},
		{1, []time.Time{{}, {}, {}}, []int{1, 2, 0}},
		{1, []time.Time{{}, in(5), {}}, []int{2, 0, 1}},
		{1, []time.Time{in(3), in(5), in(-1)}, []int{2, 0, 1}},
		{0, []time.Time{in(9), in(5), in(7)}, []int{1, 2, 0}},
		{2, []time.Time{in(5), in(6), in(4)}, []int{2, 0, 1}},
	} {
		client := &Client{}
		client.current.Store(c.current)
		for _, u := range c.until {
			client.trackers = append(client.trackers, &tracker{until: u})
		}
		got := client.order(now)
		if !slices.Equal(got, c.want) {
			t.Errorf("current %d, resting until %v: got %v, want %v", c.current, c.until, got, c.want)
		}
	}
}

func TestParseContentRange(t *testing.T) {
	for s, want := range map[string]struct {
		first, total int64
		ok           bool
	}{
		"bytes 0-9/10":   {0, 10, true},
		"bytes 5-9/10":   {5, 10, true},
		"bytes */0":      {-1, 0, true},
		"bytes */10":     {-1, 10, true},
		"bytes 5-9/*":    {},
		"bytes 9-5/10":   {},
		"bytes 5-10/10":  {},
		"bytes -5-9/10":  {},
		"bytes 5/10":     {},
		"bytes 0-9/-1":   {},
		"chars 0-9/10":   {},
		"bytes":          {},
		"":               {},
		"bytes 0-9":      {},
		"bytes a-b/c":    {},
		"bytes 0-9/10/1": {},
	} {
		first, total, ok := parseContentRange(s)
		if ok != want.ok || ok && (first != want.first || total != want.total) {
			t.Errorf("%q: %d of %d, %v", s, first, total, ok)
		}
	}
}

func FuzzParseContentRange(f *testing.F) {
	f.Add("bytes 5-9/10")
	f.Add("bytes */10")
	f.Fuzz(func(t *testing.T, s string) {
		if first, total, ok := parseContentRange(s); ok && (first < -1 || total < 0 || first >= total && first >= 0) {
			t.Fatalf("%q: %d of %d", s, first, total)
		}
	})
}
