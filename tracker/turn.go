package tracker

import "sync"

// turn is a request's hold of a query worker. A request that does nothing more
// than wait ends it early, so that others get the worker.
type turn struct {
	workers *queryWorkers

	mu      sync.Mutex // guards what follows
	worker  int        // 0: none
	givenUp bool
}

// begin is a new turn, with worker 0 for a request that needs none.
func (t *turn) begin(workers *queryWorkers, worker int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.workers, t.worker, t.givenUp = workers, worker, false
}

// kill has the worker replaced when the turn ends: the request took too long.
func (t *turn) kill() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.worker != 0 {
		t.workers.kill(t.worker)
	}
}

// giveUp replaces the worker now: the request does not return.
func (t *turn) giveUp() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.worker != 0 {
		t.givenUp = true
		t.workers.abandon(t.worker)
	}
}

// end gives the worker back. It may be called again.
func (t *turn) end() {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case t.worker == 0:
	case t.givenUp:
		t.workers.returned(t.worker)
	default:
		t.workers.release(t.worker)
	}
	t.worker = 0
}
