package replicate

import (
	"fmt"
	"math/rand/v2"
	"runtime/debug"
	"sync"

	"github.com/mogile/mogile/protocol"
)

// What a small file needs is round trips to the database and flushes rather than
// bandwidth, and those are shared with others that come at the same time.
const (
	// smallFile is up to how many bytes a file is small, unless the options say
	// otherwise.
	smallFile = 256 << 10
	// smallTogether is how many small files a worker works on at once.
	smallTogether = 4
	// smallPerCopy is how many copies of small files a device may be used for in
	// place of one of another file.
	smallPerCopy = 8
	// maxSmall bounds how many fids are remembered to be those of small files:
	// more than a claim has.
	maxSmall = 10_000
)

// smalls are the fids of small files that were claimed.
type smalls struct {
	mu   sync.Mutex // guards fids
	fids map[protocol.FID]struct{}
}

func (s *smalls) add(fid protocol.FID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fids == nil || len(s.fids) >= maxSmall { // of leases that nobody took
		s.fids = make(map[protocol.FID]struct{})
	}
	s.fids[fid] = struct{}{}
}

// take reports whether fid is that of a small file, and forgets it.
func (s *smalls) take(fid protocol.FID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ok := s.fids[fid]
	delete(s.fids, fid)
	return ok
}

// together runs a worker's small jobs side by side.
type together struct {
	places chan *rand.Rand // each with a source of chance of its own
	wg     sync.WaitGroup
	broken chan error // the first panic
}

func (w *Worker) newTogether() *together {
	t := &together{places: make(chan *rand.Rand, smallTogether), broken: make(chan error, 1)}
	for range smallTogether {
		t.places <- w.newRand()
	}
	return t
}

// do runs job when there is a place for it, and does not wait for its end. It
// fails where an earlier one panicked.
func (t *together) do(job func(rng *rand.Rand)) error {
	rng := <-t.places
	t.wg.Go(func() {
		defer func() {
			if v := recover(); v != nil {
				select {
				case t.broken <- fmt.Errorf("panic: %v\n%s", v, debug.Stack()):
				default:
				}
			}
			t.places <- rng
		}()
		job(rng)
	})
	return t.failed()
}

func (t *together) failed() error {
	select {
	case err := <-t.broken:
		return err
	default:
		return nil
	}
}

// wait waits for all jobs.
func (t *together) wait() error {
	t.wg.Wait()
	return t.failed()
}
