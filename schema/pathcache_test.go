package schema_test

import (
	"testing"
	"time"

	"github.com/mogile/mogile/schema"
)

func TestPathCacheTTL(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		value      string
		ttl, delay time.Duration
	}{
		{"", 0, 0}, {"0", 0, 0}, {"000", 0, 0}, {"-1", 0, 0}, {"+5", 0, 0}, {"5s", 0, 0}, {" 5", 0, 0}, {"1_0", 0, 0}, {"0x10", 0, 0},
		{"1", time.Second, 11 * time.Second},
		{"060", time.Minute, 70 * time.Second},
		{"3600", time.Hour, time.Hour + 10*time.Second},
		{"999999999", time.Hour, time.Hour + 10*time.Second},
		{"1000000000", 0, 0}, {"99999999999999999999", 0, 0},
	} {
		if got := schema.PathCacheTTL(c.value); got != c.ttl {
			t.Errorf("PathCacheTTL(%q) is %v, want %v", c.value, got, c.ttl)
		}
		if got := schema.DeletionDelay(c.value); got != c.delay {
			t.Errorf("DeletionDelay(%q) is %v, want %v", c.value, got, c.delay)
		}
	}
}
