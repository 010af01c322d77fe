//go:build !race

package e2e

// raceEnabled builds the daemons with the race detector as well.
const raceEnabled = false
