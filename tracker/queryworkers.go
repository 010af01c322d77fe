package tracker

import (
	"errors"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// maxWorkers bounds the workers of a job, as MogileFS 2.73 does in !want.
const maxWorkers = 500

// queryWorkers bound how many requests are worked on at once. A request runs in
// its connection's goroutine while it holds a worker's number; requests that
// find no worker idle wait their turn, first come first served.
//
// Until open is called, no worker exists and every request waits.
type queryWorkers struct {
	number func() int // gives the next worker its number

	mu      sync.Mutex // guards all below
	opened  bool
	stopped bool
	desired int
	idle    []int        // numbers, most recently used last: it is taken first
	busy    map[int]bool // numbers at work; true: is replaced when its request is done
	waiting []*ticket    // longest first

	queries uint64 // requests so far
	waited  uint64 // of these, how many found no worker idle
}

// ticket is one request's place in the queue.
type ticket struct {
	line    string
	from    netip.Addr
	granted chan int // of capacity 1; receives the worker's number, 0 when there will be none
}

func newQueryWorkers(desired int, number func() int) *queryWorkers {
	return &queryWorkers{number: number, desired: desired, busy: make(map[int]bool)}
}

// open makes the workers.
func (q *queryWorkers) open() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.opened = true
	q.fill()
}

// fill makes the workers that are missing.
func (q *queryWorkers) fill() {
	for q.opened && len(q.idle)+len(q.busy) < q.desired {
		q.offer(q.number())
	}
}

// offer gives worker id to the request that waits longest, or lets it idle.
func (q *queryWorkers) offer(id int) {
	if len(q.waiting) == 0 {
		q.idle = append(q.idle, id)
		return
	}
	next := q.waiting[0]
	q.waiting[0] = nil
	q.waiting = q.waiting[1:]
	q.busy[id] = false
	next.granted <- id
}

// errStopping refuses requests that had not begun when the tracker stopped.
var errStopping = errors.New("the tracker is stopping")

// acquire waits for a worker and returns its number. It returns errStopping
// where there is none any more.
func (q *queryWorkers) acquire(t *ticket) (int, error) {
	q.mu.Lock()
	q.queries++
	if q.stopped {
		q.mu.Unlock()
		return 0, errStopping
	}
	if n := len(q.idle); n > 0 {
		id := q.idle[n-1]
		q.idle = q.idle[:n-1]
		q.busy[id] = false
		q.mu.Unlock()
		return id, nil
	}
	q.waited++
	q.waiting = append(q.waiting, t)
	q.mu.Unlock()
	if id := <-t.granted; id != 0 {
		return id, nil
	}
	return 0, errStopping
}

// pass lets a request through that needs no worker, and counts it. It reports
// false where such a request has to wait, or be sent away, as all others.
func (q *queryWorkers) pass() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !q.opened || q.stopped || q.desired == 0 {
		return false
	}
	q.queries++
	return true
}

// stop sends away the requests that wait, and all that come. Those that have
// begun go on.
func (q *queryWorkers) stop() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.stopped = true
	for _, t := range q.waiting {
		t.granted <- 0
	}
	q.waiting = nil
}

// release gives worker id back.
func (q *queryWorkers) release(id int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	replace := q.busy[id]
	delete(q.busy, id)
	switch {
	case len(q.idle)+len(q.busy) >= q.desired:
	case replace:
		q.offer(q.number())
	default:
		q.offer(id)
	}
}

// replace gives up worker id, whose request hangs, for a new one.
func (q *queryWorkers) replace(id int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	delete(q.busy, id)
	q.fill()
}

// Want sets the number of workers. Surplus workers go when they are idle.
func (q *queryWorkers) Want(n int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.desired = n
	if surplus := len(q.idle) + len(q.busy) - n; surplus > 0 {
		q.idle = slices.Delete(q.idle, 0, min(surplus, len(q.idle)))
	}
	q.fill()
}

// Restart replaces every worker, a busy one when its request is done, and
// returns how many there are.
func (q *queryWorkers) Restart() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	for i := range q.idle {
		q.idle[i] = q.number()
	}
	for id := range q.busy {
		q.busy[id] = true
	}
	return len(q.idle) + len(q.busy)
}

// Wake does nothing: whoever needs a query worker brings its request.
func (q *queryWorkers) Wake() {}

// Desired is the number of workers that is wanted.
func (q *queryWorkers) Desired() int { return q.load().desired }

// IDs are the numbers of all workers, ascending.
func (q *queryWorkers) IDs() []int {
	q.mu.Lock()
	defer q.mu.Unlock()
	ids := slices.Clone(q.idle)
	for id := range q.busy {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}

// load is what !stats and the metrics tell.
type load struct {
	pending, processing, bored, desired int
	queries, waited                     uint64
}

func (q *queryWorkers) load() load {
	q.mu.Lock()
	defer q.mu.Unlock()
	return load{
		pending: len(q.waiting), processing: len(q.busy), bored: len(q.idle), desired: q.desired,
		queries: q.queries, waited: q.waited,
	}
}

// queued lists the requests that wait, longest first.
func (q *queryWorkers) queued() []recentQuery {
	q.mu.Lock()
	defer q.mu.Unlock()
	waiting := make([]recentQuery, len(q.waiting))
	for i, t := range q.waiting {
		waiting[i] = recentQuery{from: t.from, line: t.line}
	}
	return waiting
}

// recentQueries is how many finished requests !recent shows, and recentLine how
// many bytes of each.
const (
	recentQueries = 50
	recentLine    = 1 << 10
)

// recentQuery is a finished request.
type recentQuery struct {
	from    netip.Addr
	line    string
	elapsed time.Duration // from the line's arrival to its answer
	worked  time.Duration // of which a worker had it
}

// recent remembers the last finished requests.
type recent struct {
	mu   sync.Mutex // guards ring and next
	ring [recentQueries]recentQuery
	next int
	full bool
}

func (r *recent) add(q recentQuery) {
	if len(q.line) > recentLine {
		q.line = string([]byte(q.line[:recentLine])) // a copy, so that the whole line can go
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ring[r.next] = q
	if r.next++; r.next == len(r.ring) {
		r.next, r.full = 0, true
	}
}

// list is the requests, oldest first.
func (r *recent) list() []recentQuery {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.full {
		return slices.Clone(r.ring[:r.next])
	}
	return append(slices.Clone(r.ring[r.next:]), r.ring[:r.next]...)
}
