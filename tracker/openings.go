package tracker

import (
	"sync"
	"time"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/schema"
)

const (
	// maxOpenings bounds how many uploads a tracker remembers.
	maxOpenings = 16 << 10
	// openingLife is for how long one is remembered: uploads of large files take
	// longer, and are read from the database when they are closed.
	openingLife = 5 * time.Minute
)

// openings remembers the uploads that this tracker has opened, so that closing
// one need not read its row: the row never changes. Whether it is still there the
// store finds out when it takes it away.
type openings struct {
	mu   sync.Mutex // guards what follows
	rows map[protocol.FID]opening
	ring []protocol.FID // those remembered last, the next to be forgotten at next
	next int
}

type opening struct {
	row schema.Tempfile
	at  time.Time
}

func newOpenings() *openings { return &openings{rows: make(map[protocol.FID]opening)} }

// remember notes an upload, and forgets one of long ago.
func (o *openings) remember(row schema.Tempfile, now time.Time) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.rows[row.FID] = opening{row, now}
	if len(o.ring) < maxOpenings {
		o.ring = append(o.ring, row.FID)
		return
	}
	delete(o.rows, o.ring[o.next])
	o.ring[o.next] = row.FID
	o.next = (o.next + 1) % maxOpenings
}

// take returns an upload, once: who closes it again asks the database.
func (o *openings) take(fid protocol.FID, now time.Time) (schema.Tempfile, bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	found, ok := o.rows[fid]
	delete(o.rows, fid)
	return found.row, ok && now.Sub(found.at) < openingLife
}
