package storaged

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"time"

	"github.com/mogile/mogile/protocol"
)

// takePeers takes the map of storage daemons from a tracker.
func (d *Daemon) takePeers(ctx context.Context, o protocol.Order, _ *orderer) (protocol.Args, error) {
	p, err := protocol.ParsePeersOrder(o.Args)
	if err != nil {
		return nil, err
	}
	version, err := d.peers.Set(ctx, p)
	if err != nil {
		return nil, err
	}
	return protocol.PeersReport{Version: version}.Args(), nil
}

// tellSuspects tells a tracker which shards reads found missing or bad.
func (d *Daemon) tellSuspects(_ context.Context, o protocol.Order, to *orderer) (protocol.Args, error) {
	s, err := protocol.ParseSuspectsOrder(o.Args)
	if err != nil {
		return nil, err
	}
	told := d.suspects.take(s.Limit)
	for i, at := range told {
		if err := to.item(protocol.Suspect{FIDOn: at}.Args()); err != nil {
			d.suspects.giveBack(told[i:]) // the tracker is gone
			return nil, err
		}
	}
	return nil, nil
}

const (
	// maxSuspects bounds the shards that wait to be asked for. More are found again
	// by the next reads, or by fsck.
	maxSuspects = 10_000
	// suspectAgain is after what time a shard that was told of may be told of again:
	// a file that is read all the time is not checked all the time.
	suspectAgain = 10 * time.Minute
)

// suspects are shards that reads found missing or bad, for trackers to have
// checked and repaired.
type suspects struct {
	now func() time.Time

	mu      sync.Mutex                   // guards what follows
	waiting map[protocol.FIDOn]struct{}  // at most maxSuspects
	told    map[protocol.FIDOn]time.Time // when; at most maxSuspects
}

func newSuspects(now func() time.Time) *suspects {
	return &suspects{now: now, waiting: map[protocol.FIDOn]struct{}{}, told: map[protocol.FIDOn]time.Time{}}
}

// add notes a shard, and reports whether that is news.
func (s *suspects) add(at protocol.FIDOn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if when, ok := s.told[at]; ok && s.now().Sub(when) < suspectAgain {
		return false
	}
	if _, ok := s.waiting[at]; ok || len(s.waiting) >= maxSuspects {
		return false
	}
	s.waiting[at] = struct{}{}
	return true
}

// has reports whether a shard of a file on one of devs was noted lately.
func (s *suspects) has(fid protocol.FID, devs []protocol.DevID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.waiting) == 0 && len(s.told) == 0 {
		return false
	}
	for _, dev := range devs {
		at := protocol.FIDOn{FID: fid, Dev: dev}
		if _, waits := s.waiting[at]; waits {
			return true
		}
		if when, ok := s.told[at]; ok && s.now().Sub(when) < suspectAgain {
			return true
		}
	}
	return false
}

// count is how many wait to be asked for.
func (s *suspects) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.waiting)
}

// take are up to limit of those that wait, by ascending fid. They wait no more.
func (s *suspects) take(limit int) []protocol.FIDOn {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]protocol.FIDOn, 0, len(s.waiting))
	for at := range s.waiting {
		all = append(all, at)
	}
	slices.SortFunc(all, func(a, b protocol.FIDOn) int {
		return cmp.Or(cmp.Compare(a.FID, b.FID), cmp.Compare(a.Dev, b.Dev))
	})
	all = all[:min(limit, len(all))]
	now := s.now()
	for at, when := range s.told {
		if now.Sub(when) >= suspectAgain {
			delete(s.told, at)
		}
	}
	for _, at := range all {
		delete(s.waiting, at)
		if len(s.told) < maxSuspects {
			s.told[at] = now
		}
	}
	return all
}

// giveBack has shards wait again that could not be told.
func (s *suspects) giveBack(all []protocol.FIDOn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, at := range all {
		delete(s.told, at)
		if len(s.waiting) < maxSuspects {
			s.waiting[at] = struct{}{}
		}
	}
}
