package tracker

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"
)

// maxWorkers bounds the workers of a job, as MogileFS 2.73 does in !want.
const maxWorkers = 500

// queryWorkers bound how many requests are worked on at once. A request runs in
// its connection's goroutine while it holds a worker's number; requests that
// find no worker idle wait their turn, first come first served, but that those
// of clients that wait for each answer go before those of clients that have sent
// more requests meanwhile, except for one in backlogShare: however many requests
// are piled up, who asks one thing is soon answered.
//
// Until open is called, no worker exists and every request waits.
type queryWorkers struct {
	number func() int       // gives the next worker its number
	tell   func(msg string) // gets MogileFS's messages about workers; must not block

	mu        sync.Mutex // guards all below
	opened    bool
	stopped   bool
	desired   int
	idle      []int        // numbers, most recently used last: it is taken first
	busy      map[int]fate // numbers at work
	waiting   []*ticket    // longest first; those that were not piled up
	backlog   []*ticket    // longest first; those that were
	turns     int          // requests that have gone before backlog
	arrived   uint64       // tickets so far that had to wait
	had       bool         // there has been a worker
	abandoned int          // workers given up whose requests have not returned

	queries uint64 // requests so far
	waited  uint64 // of these, how many found no worker idle
}

// fate is what becomes of a worker when its request is done.
type fate int

const (
	stays    fate = iota
	replaced      // because of "!to queryworker :shutdown"
	killed        // replaced because the request took too long
)

// ticket is one request's place in the queue.
type ticket struct {
	line    string
	from    netip.Addr
	granted chan int // of capacity 1; receives the worker's number, 0 when there will be none

	piled   bool   // was there already when the connection's last request was answered
	arrived uint64 // its place among all that wait
}

// backlogShare is how many workers' turns, while both wait, bring one to a
// request that was piled up.
const backlogShare = 8

func newQueryWorkers(desired int, number func() int) *queryWorkers {
	return &queryWorkers{number: number, tell: func(string) {}, desired: desired, busy: make(map[int]fate)}
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
	if has := len(q.idle) + len(q.busy); q.opened && has < q.desired {
		q.tell(fmt.Sprintf("Job %s has only %d, wants %d, making %d.", jobQuery, has, q.desired, q.desired-has))
	}
	for q.opened && len(q.idle)+len(q.busy) < q.desired {
		q.had = true
		q.offer(q.number())
	}
}

// offer gives worker id to the request that waits longest, or lets it idle.
func (q *queryWorkers) offer(id int) {
	from := &q.waiting
	switch {
	case len(q.waiting) == 0 && len(q.backlog) == 0:
		q.idle = append(q.idle, id)
		return
	case len(q.backlog) == 0:
	case len(q.waiting) == 0, q.turns == backlogShare-1:
		from, q.turns = &q.backlog, 0
	default:
		q.turns++
	}
	next := (*from)[0]
	(*from)[0] = nil
	*from = (*from)[1:]
	q.busy[id] = stays
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
		q.busy[id] = stays
		q.mu.Unlock()
		return id, nil
	}
	q.waited++
	q.arrived++
	t.arrived = q.arrived
	if t.piled {
		q.backlog = append(q.backlog, t)
	} else {
		q.waiting = append(q.waiting, t)
	}
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
	for _, t := range slices.Concat(q.waiting, q.backlog) {
		t.granted <- 0
	}
	q.waiting, q.backlog = nil, nil
}

// release gives worker id back.
func (q *queryWorkers) release(id int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	was := q.busy[id]
	delete(q.busy, id)
	switch {
	case was == killed:
		q.died(id, was)
	case len(q.idle)+len(q.busy) >= q.desired:
		q.reduced(id)
	case was == replaced:
		q.died(id, was)
	default:
		q.offer(id)
		return
	}
	q.fill()
}

// died tells the end of a worker.
func (q *queryWorkers) died(id int, f fate) {
	if f == killed {
		q.tell(fmt.Sprintf("Child %d (%s) died: 9 (UNEXPECTED)", id, jobQuery))
		return
	}
	q.tell(fmt.Sprintf("Child %d (%s) died: 0 (expected)", id, jobQuery))
}

// reduced tells the end of a worker that is not wanted any more.
func (q *queryWorkers) reduced(id int) {
	q.tell(fmt.Sprintf("Reducing %s headcount by 1.", jobQuery))
	q.died(id, stays)
}

// kill marks worker id, whose request took too long and is cancelled, to be
// replaced when that returns.
func (q *queryWorkers) kill(id int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.busy[id] = killed
	q.tell(fmt.Sprintf("Watchdog killing worker %d (%s)", id, jobQuery))
}

// abandon gives up worker id, whose request does not return, and puts a new one
// in its place unless too many have been given up.
func (q *queryWorkers) abandon(id int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.abandoned++
	if q.abandoned > maxWorkers {
		return // it goes on counting as busy
	}
	delete(q.busy, id)
	q.died(id, killed)
	q.fill()
}

// returned is told that the request of worker id, which was given up, has
// returned after all.
func (q *queryWorkers) returned(id int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.abandoned--
	if _, kept := q.busy[id]; kept {
		delete(q.busy, id)
		q.died(id, killed)
		q.fill()
	}
}

// Had reports whether there has ever been a worker.
func (q *queryWorkers) Had() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.had
}

// Abandoned is how many workers were given up and have not returned.
func (q *queryWorkers) Abandoned() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.abandoned
}

// Want sets the number of workers. Surplus workers go when they are idle.
func (q *queryWorkers) Want(n int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.desired = n
	if surplus := len(q.idle) + len(q.busy) - n; surplus > 0 {
		going := q.idle[:min(surplus, len(q.idle))]
		for _, id := range going {
			q.reduced(id)
		}
		q.idle = slices.Delete(q.idle, 0, len(going))
	}
	q.fill()
}

// Restart replaces every worker, a busy one when its request is done, and
// returns how many there are.
func (q *queryWorkers) Restart() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	n := len(q.idle) + len(q.busy)
	for _, id := range q.idle {
		q.died(id, replaced)
	}
	q.idle = nil
	for id, f := range q.busy {
		q.busy[id] = max(f, replaced)
	}
	q.fill()
	return n
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
		pending: len(q.waiting) + len(q.backlog), processing: len(q.busy), bored: len(q.idle), desired: q.desired,
		queries: q.queries, waited: q.waited,
	}
}

// queued lists the requests that wait, longest first.
func (q *queryWorkers) queued() []recentQuery {
	q.mu.Lock()
	defer q.mu.Unlock()
	all := slices.Concat(q.waiting, q.backlog)
	slices.SortFunc(all, func(a, b *ticket) int { return cmp.Compare(a.arrived, b.arrived) })
	waiting := make([]recentQuery, len(all))
	for i, t := range all {
		waiting[i] = recentQuery{from: t.from, line: t.line}
	}
	return waiting
}

// recentQueries is how many finished requests !recent shows, and recentLine how
// many bytes of each, as of those of !queue.
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

// shortened is as much of a request line as consoles are shown.
func shortened(line string) string { return line[:min(len(line), recentLine)] }

// recent remembers the last finished requests.
type recent struct {
	mu   sync.Mutex // guards ring and next
	ring [recentQueries]recentQuery
	next int
	full bool
}

func (r *recent) add(q recentQuery) {
	if len(q.line) > recentLine {
		q.line = strings.Clone(shortened(q.line)) // so that the whole line can go
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
