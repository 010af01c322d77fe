package load

import (
	"fmt"
	"time"

	"github.com/prometheus/procfs"
)

// tick is the unit of processor time in /proc, the same on every architecture
// that Go runs on.
const tick = time.Second / 100

// CPU is the processor time that each of the processes has used so far, with
// that of its descendants: those that run, and those that ended and were waited
// for. A server that has a process for each connection, such as PostgreSQL, is
// measured by its first one.
func CPU(pids []int) ([]time.Duration, error) {
	if len(pids) == 0 {
		return nil, nil
	}
	procs, err := procfs.AllProcs()
	if err != nil {
		return nil, err
	}
	parents, used := make(map[int]int, len(procs)), make(map[int]time.Duration, len(procs))
	for _, p := range procs {
		stat, err := p.Stat()
		if err != nil {
			continue // ended in between: it counts as its parent's
		}
		parents[p.PID] = stat.PPID
		used[p.PID] = time.Duration(int64(stat.UTime+stat.STime)+int64(stat.CUTime)+int64(stat.CSTime)) * tick
	}
	for _, pid := range pids {
		if _, ok := used[pid]; !ok {
			return nil, fmt.Errorf("there is no process %d", pid)
		}
	}
	return trees(pids, parents, used), nil
}
