package tracker

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sync/errgroup"

	"github.com/mogile/mogile/tracker/status"
)

// answerer appends the reply to a request line to out. An error closes the
// connection, with nothing more sent.
type answerer func(ctx context.Context, c *conn, line []byte, out []byte) ([]byte, error)

// serverOptions bound a server.
type serverOptions struct {
	MaxLine    int           // bytes of a request line
	MaxConns   int           // connections at once
	SlowReader time.Duration // without progress in writing a reply
}

// server accepts connections and has each one's lines answered in order, one at
// a time.
type server struct {
	opts    serverOptions
	answer  answerer
	metrics *status.Metrics
	log     zerolog.Logger
	seldom  zerolog.Logger // log, for what a flood of connections would say too often

	longLines atomic.Int64 // bytes of long lines being gathered
	unsent    atomic.Int64 // bytes of large replies being sent
	lingering atomic.Int64 // connections that are read from although they are to be closed
	closing   atomic.Bool  // no further request is begun

	mu     sync.Mutex // guards conns and looked
	conns  map[*conn]struct{}
	looked time.Time      // when it was last looked for connections that are stuck
	wg     sync.WaitGroup // one for each of conns
}

func newServer(o serverOptions, answer answerer, m *status.Metrics, log zerolog.Logger) *server {
	return &server{
		opts: o, answer: answer, metrics: m, log: log,
		seldom: log.Sample(&zerolog.BurstSampler{Burst: 1, Period: 10 * time.Second}),
		conns:  make(map[*conn]struct{}),
	}
}

// run serves the listeners until ctx ends, and closes them. Then every
// connection may finish the request at work until work ends, which also ends
// the requests themselves; connections are idle or closed after that.
func (s *server) run(ctx, work context.Context, listeners []net.Listener) error {
	g, ctx := errgroup.WithContext(ctx) // a listener that breaks ends the others
	for _, l := range listeners {
		g.Go(func() error { return s.accept(ctx, work, l) })
	}
	<-ctx.Done()
	s.closing.Store(true)
	for _, l := range listeners {
		if err := l.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			s.log.Warn().Err(err).Msg("closing a listener failed")
		}
	}
	err := g.Wait()
	s.each((*conn).interrupt)
	ended := make(chan struct{})
	go func() {
		s.wg.Wait()
		close(ended)
	}()
	select {
	case <-ended:
		return err
	case <-work.Done():
		s.each((*conn).close)
	}
	// What honours its context ends now. What does not is left behind.
	hung := time.NewTimer(hangTimeout)
	defer hung.Stop()
	select {
	case <-ended:
		return err
	case <-hung.C:
		return errors.Join(err, errors.New("stop serving: requests that do not end were left behind"))
	}
}

// hangTimeout is how long a request may take to return after its cancellation.
const hangTimeout = 2 * time.Second

func (s *server) each(f func(*conn)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		f(c)
	}
}

// accept takes connections from l until it is closed.
func (s *server) accept(ctx, work context.Context, l net.Listener) error {
	var pause time.Duration
	for {
		nc, err := l.Accept()
		switch {
		case err == nil:
			pause = 0
			s.take(work, nc)
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("accept connections on %s: %w", l.Addr(), err)
		default: // out of descriptors, or a connection that broke before it was taken
			pause = min(max(2*pause, 5*time.Millisecond), time.Second)
			s.seldom.Error().Err(err).Stringer("listen", l.Addr()).Msg("accepting a connection failed")
			wait(ctx, pause)
		}
	}
}

// wait waits for d, or until ctx ends, and reports whether d passed.
func wait(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// socketBuffer is what the system may hold of a connection's bytes, in each
// direction. Left to itself it holds megabytes for a client that floods, or that
// does not read; requests and replies are short.
const socketBuffer = 128 << 10

func boundSocket(nc net.Conn) {
	if tcp, ok := nc.(*net.TCPConn); ok {
		// Where the system does not take them its own bounds hold.
		_ = tcp.SetReadBuffer(socketBuffer)
		_ = tcp.SetWriteBuffer(socketBuffer)
	}
}

// What clients may take when there are too many of them. Otherwise one may be
// idle for ever, and take a year to send a line.
const (
	halfLine  = time.Minute      // since a line began to arrive that is not complete
	halfReply = 30 * time.Second // since the client took the last bytes of a reply that is not sent
	lookAgain = time.Second      // until it is looked once more for those who exceed it
)

func (s *server) full() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.conns) >= s.opts.MaxConns
}

// makeRoom closes the connections that are stuck.
func (s *server) makeRoom() {
	now := time.Now()
	s.mu.Lock()
	if now.Sub(s.looked) < lookAgain {
		s.mu.Unlock()
		return
	}
	s.looked = now
	stuck := make(map[*conn]string)
	for c := range s.conns {
		if reason := c.stuck(now); reason != "" {
			stuck[c] = reason
			delete(s.conns, c) // its place is free from now on
		}
	}
	s.mu.Unlock()
	for c, reason := range stuck {
		c.dropped(reason)
		c.close()
	}
}

// take serves nc in a goroutine of its own, unless there are too many
// connections. Then it is closed without a word: a client that reads an error
// takes it for the answer to its request, and one that reads nothing asks
// another tracker.
func (s *server) take(work context.Context, nc net.Conn) {
	c := newConn(s, nc)
	if s.full() {
		s.makeRoom()
	}
	s.mu.Lock()
	full := len(s.conns) >= s.opts.MaxConns
	refuse := full || s.closing.Load()
	if !refuse {
		s.conns[c] = struct{}{}
		s.wg.Add(1)
	}
	s.mu.Unlock()
	if refuse {
		if full {
			s.metrics.Refused()
			s.seldom.Warn().Int("limit", s.opts.MaxConns).Stringer("client", c.from).Msg("connection refused: too many clients are connected")
		}
		c.close()
		return
	}
	boundSocket(nc)
	s.metrics.Opened()
	go func() {
		defer s.wg.Done()
		c.serve(work)
		c.close()
		c.unwatch()
		s.mu.Lock()
		delete(s.conns, c)
		s.mu.Unlock()
		s.metrics.Closed()
	}()
}
