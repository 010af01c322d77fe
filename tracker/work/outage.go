package work

import (
	"sync"
	"time"

	"github.com/rs/zerolog"
)

// Outage keeps the log quiet while the database is away: one line when it goes
// and one when it is back, however many workers notice. Workers share one.
type Outage struct {
	log zerolog.Logger

	mu    sync.Mutex // guards since
	since time.Time  // zero while the database answers
}

// NewOutage writes to log.
func NewOutage(log zerolog.Logger) *Outage { return &Outage{log: log} }

// Failed is told that the database could not be used.
func (o *Outage) Failed(err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.since.IsZero() {
		o.since = time.Now()
		o.log.Error().Err(err).Msg("database is away, workers wait for it")
	}
}

// Answered is told that the database was used.
func (o *Outage) Answered() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.since.IsZero() {
		o.log.Info().Dur("took", time.Since(o.since)).Msg("database is back")
		o.since = time.Time{}
	}
}
