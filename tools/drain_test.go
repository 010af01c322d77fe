package tools

import (
	"testing"
	"time"
)

func TestStalled(t *testing.T) {
	t.Parallel()
	one := func(moves, files, looked, blocked int64) drainState {
		d := drained{Device: 7, Status: "drain", Draining: true, Files: files, Looked: looked, Blocked: blocked}
		d.State = d.state()
		return drainState{Moves: moves, Devices: []drained{d}}
	}
	two := one(0, 3, 3, 3)
	two.Devices = append(two.Devices, one(0, 0, 0, 0).Devices[0])
	for _, c := range []struct {
		name  string
		st    drainState
		quiet time.Duration
		want  bool
	}{
		{"all blocked", one(0, 3, 3, 3), 10 * time.Second, true},
		{"all blocked, a moment ago", one(0, 3, 3, 3), 9 * time.Second, false},
		{"all blocked, and another is empty", two, 10 * time.Second, true},
		{"some blocked, others queued", one(5, 8, 8, 3), 5 * time.Minute, false},
		{"some blocked, none queued", one(0, 8, 8, 3), time.Minute, true},
		{"more than were looked at", one(1, 5000, 2000, 2000), time.Minute, false},
		{"nothing for long", one(1, 8, 8, 0), 10 * time.Minute, true},
		{"empty", one(0, 0, 0, 0), time.Hour, false},
	} {
		if got := stalled(c.st, c.quiet); (got != "") != c.want {
			t.Errorf("%s: %q", c.name, got)
		}
	}
}
