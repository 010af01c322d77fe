package load

import (
	"os"
	"os/exec"
	"runtime"
	"slices"
	"testing"
	"time"
)

func TestTrees(t *testing.T) {
	parents := map[int]int{10: 1, 11: 10, 12: 10, 13: 12, 20: 1, 30: 31, 31: 30}
	used := map[int]time.Duration{10: 1, 11: 2, 12: 4, 13: 8, 20: 16, 30: 32, 31: 64}
	for _, c := range []struct {
		roots []int
		want  []time.Duration
	}{
		{nil, nil},
		{[]int{20}, []time.Duration{16}},
		{[]int{10}, []time.Duration{15}},
		{[]int{10, 20}, []time.Duration{15, 16}},
		{[]int{10, 12}, []time.Duration{3, 12}}, // the nearer
		{[]int{99}, []time.Duration{0}},
	} {
		if got := trees(c.roots, parents, used); !slices.Equal(got, c.want) {
			t.Errorf("%v: %v, want %v", c.roots, got, c.want)
		}
	}
}

// TestCPUOfChildren: what a child used is its parent's when it has ended.
func TestCPUOfChildren(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("Linux only")
	}
	before, err := CPU([]int{os.Getpid()})
	if err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("sh", "-c", "i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done").CombinedOutput(); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	after, err := CPU([]int{os.Getpid()})
	if err != nil {
		t.Fatal(err)
	}
	if after[0]-before[0] < 2*tick {
		t.Errorf("a child that counted to 300,000 used %v", after[0]-before[0])
	}
	if _, err := CPU([]int{1 << 30}); err == nil {
		t.Error("a process that is not there has used time")
	}
}
