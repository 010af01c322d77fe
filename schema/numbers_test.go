package schema

import "testing"

func TestNextNumber(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ live, deleted, want int }{
		{0, 0, 1}, {3, 0, 4}, {3, 2, 4}, {3, 7, 8}, {0, 7, 8}, {5, 32766, 32767}, {5, 32767, 6}, {32766, 32767, 32767},
	} {
		if got := NextNumber(c.live, c.deleted); got != c.want {
			t.Errorf("after %d, with %d deleted: %d; want %d", c.live, c.deleted, got, c.want)
		}
	}
}
