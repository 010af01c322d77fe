package load

import "time"

// trees adds up what each root and its descendants have used. A process below
// two roots counts for the nearer one.
func trees(roots []int, parents map[int]int, used map[int]time.Duration) []time.Duration {
	index := make(map[int]int, len(roots))
	for i, pid := range roots {
		index[pid] = i
	}
	sums := make([]time.Duration, len(roots))
	for pid, d := range used {
		// Processes that were listed one after the other may look like a ring.
		for range len(parents) + 1 {
			if i, ok := index[pid]; ok {
				sums[i] += d
				break
			}
			parent, ok := parents[pid]
			if !ok {
				break
			}
			pid = parent
		}
	}
	return sums
}
