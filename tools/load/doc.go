// Package load puts load on a cluster and measures what comes back: clients
// that send as fast as they are answered or at a given rate, a histogram of
// latencies, processor time of other processes, and connections to trackers and
// storage daemons that cost as little as possible, because a generator shares
// the machine with what it measures.
//
// A connection makes no garbage from one operation to the next.
package load
