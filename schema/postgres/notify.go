package postgres

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"
)

// channel is what changes are announced on. The payload is the announcing
// store's id.
const channel = "mogile_changes"

// Announce tells other trackers that an administrator changed something.
func (s *Store) Announce(ctx context.Context) error {
	return s.do(ctx, "announce changes", func(ctx context.Context) error {
		_, err := s.pool.Exec(ctx, `SELECT pg_notify($1, $2)`, channel, s.id)
		return err
	})
}

// Changes delivers a value soon after another tracker announced a change, and
// whenever announcements may have been missed.
func (s *Store) Changes(ctx context.Context) <-chan struct{} {
	changes := make(chan struct{}, 1)
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(s.life, cancel)
	s.wg.Go(func() {
		defer close(changes)
		defer cancel()
		defer stop()
		s.listen(ctx, changes)
	})
	return changes
}

// listen listens until ctx ends, over as many connections as that takes.
func (s *Store) listen(ctx context.Context, changes chan<- struct{}) {
	const first, longest = 100 * time.Millisecond, 5 * time.Second
	wait := first
	for missed := false; ; missed = true {
		began := time.Now()
		err := s.listenOnce(ctx, changes, missed)
		if ctx.Err() != nil {
			return
		}
		if time.Since(began) > longest {
			wait = first
			s.o.Log.Warn().Err(err).Msg("lost the database session that listens for changes")
		}
		if pause(ctx, wait) != nil {
			return
		}
		wait = min(2*wait, longest)
	}
}

// listenOnce listens until ctx or the connection ends. missed says that changes
// may have been announced before.
func (s *Store) listenOnce(ctx context.Context, changes chan<- struct{}, missed bool) error {
	config, err := sessionConfig(s.o)
	if err != nil {
		return err
	}
	conn, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		return err
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_ = conn.Close(ctx) // nothing depends on how it ends
	}()
	within, cancel := context.WithTimeout(ctx, sessionTimeout)
	defer cancel()
	if _, err := conn.Exec(within, `LISTEN `+channel); err != nil {
		return err
	}
	for {
		if missed {
			select {
			case changes <- struct{}{}:
			default: // one waits to be taken, and stands for this one too
			}
		}
		n, err := conn.WaitForNotification(ctx)
		if err != nil {
			return err
		}
		missed = n.Payload != s.id
	}
}
