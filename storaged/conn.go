package storaged

import (
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"os"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"
)

// Times of connections on which nothing happens.
const (
	// freshGrace is for how long one that has not asked for anything yet is let
	// be, when its place is wanted or the daemon stops: its request may be on
	// the way.
	freshGrace = 2 * time.Second
	// idleOutOfFiles is how long a connection must have been idle to be closed
	// where descriptors have run out, as in cmogstored 1.2.
	idleOutOfFiles = 5 * time.Second
	// pauseOutOfFiles is the pause before accepting is tried again then.
	pauseOutOfFiles = 100 * time.Millisecond
)

// listener bounds the connections that are open at a time. Where all are in
// use, the one that has been waiting for a further request for longest is
// closed to make room for a newcomer; where none is waiting, newcomers are: one
// that is accepted, the rest in the kernel's queue.
type listener struct {
	*net.TCPListener
	timeout time.Duration // see [conn]
	meter   *meter
	log     zerolog.Logger
	relieve func()        // gives descriptors back, where there are none left
	slots   chan struct{} // holds one element for each open connection
	done    chan struct{} // closed by Close
	once    sync.Once

	mu       sync.Mutex // guards open
	open     map[*conn]struct{}
	starving atomic.Int32 // newcomers that wait for a slot
	draining atomic.Bool  // connections are closed as soon as they are not active
}

func newListener(l *net.TCPListener, o *Options, m *meter, relieve func()) *listener {
	return &listener{
		TCPListener: l, timeout: o.ClientTimeout, meter: m, log: o.Log, relieve: relieve,
		slots: make(chan struct{}, o.MaxConns), done: make(chan struct{}), open: map[*conn]struct{}{},
	}
}

// acceptEach calls f with each connection that is accepted and has a slot, until
// the listener is closed or broken. The error is nil where it was closed.
func (l *listener) acceptEach(f func(*conn)) error {
	for {
		c, err := l.accept()
		switch {
		case errors.Is(err, net.ErrClosed):
			return nil
		case err != nil:
			return fmt.Errorf("accept connections: %w", err)
		}
		wrapped := &conn{TCPConn: c, from: l, slot: l.acquire()}
		wrapped.fresh.Store(true)
		wrapped.since.Store(time.Now().UnixNano())
		l.mu.Lock()
		l.open[wrapped] = struct{}{}
		l.mu.Unlock()
		l.meter.connections.Inc()
		f(wrapped)
	}
}

// accept waits for a connection. Where there are no descriptors for one it
// closes what is idle, and tries again after a pause.
func (l *listener) accept() (*net.TCPConn, error) {
	failing := false
	for {
		c, err := l.AcceptTCP()
		switch {
		case err == nil && failing:
			l.log.Info().Stringer("listen", l.Addr()).Msg("connections are accepted again")
			fallthrough
		case err == nil || !isTemporary(err):
			return c, err
		case !failing:
			failing = true
			l.log.Error().Err(err).Stringer("listen", l.Addr()).Msg("connections cannot be accepted: raise the limit of open files (LimitNOFILE, ulimit -n), or lower --max-conns")
		}
		l.meter.unaccepted.Inc()
		l.relieve()
		select {
		case <-time.After(pauseOutOfFiles):
		case <-l.done:
			return nil, net.ErrClosed
		}
	}
}

// isTemporary reports whether accepting may succeed later.
func isTemporary(err error) bool {
	e, ok := errors.AsType[interface {
		error
		Temporary() bool
	}](err)
	return ok && e.Temporary()
}

// acquire waits for a slot. It returns without one when the listener closes:
// who was accepted is answered all the same.
func (l *listener) acquire() (slot bool) {
	select {
	case l.slots <- struct{}{}:
		return true
	default:
	}
	l.meter.waited.Inc()
	l.starving.Add(1)
	defer l.starving.Add(-1)
	tick := time.NewTicker(freshGrace / 2)
	defer tick.Stop()
	for {
		l.evict()
		select {
		case l.slots <- struct{}{}:
			return true
		case <-l.done:
			return false
		case <-tick.C: // a connection may have become old enough to go
		}
	}
}

// Close stops accepting. Open connections stay.
func (l *listener) Close() error {
	l.once.Do(func() { close(l.done) })
	return l.TCPListener.Close()
}

// idle are the open connections that wait for a request, the one that has done so
// for longest first.
func (l *listener) idle() []idleConn {
	l.mu.Lock()
	defer l.mu.Unlock()
	var all []idleConn
	for c := range l.open {
		if since := c.since.Load(); since != 0 {
			all = append(all, idleConn{c, time.Unix(0, since)})
		}
	}
	slices.SortFunc(all, func(a, b idleConn) int { return a.since.Compare(b.since) })
	return all
}

type idleConn struct {
	*conn
	since time.Time
}

// evict closes the connection that has been idle for longest, if any is.
func (l *listener) evict() {
	young := time.Now().Add(-freshGrace).UnixNano()
	var oldest *conn
	l.mu.Lock()
	first := int64(math.MaxInt64)
	for c := range l.open {
		if since := c.since.Load(); since != 0 && since < first && (!c.fresh.Load() || since <= young) {
			oldest, first = c, since
		}
	}
	l.mu.Unlock()
	if oldest != nil {
		oldest.Close() // nobody is left who could hear it
	}
}

// closeIdle closes the connections that have been idle for as long as age.
func (l *listener) closeIdle(age time.Duration) {
	for _, c := range l.idle() {
		if time.Since(c.since) >= age {
			c.Close() // nobody is left who could hear it
		}
	}
}

// active notes that c has begun to ask, or is being answered.
func (l *listener) active(c *conn) {
	if c.since.Load() != 0 {
		c.fresh.Store(false)
		c.since.Store(0)
	}
}

// waiting notes that c waits for a request. Where somebody needs its
// place, or after drain, it is closed.
func (l *listener) waiting(c *conn) {
	if c.since.Load() == 0 {
		c.since.Store(time.Now().UnixNano()) // before it is asked whether it may: who wants its place looks after having said so
	}
	if !c.fresh.Load() && (l.starving.Load() > 0 || l.draining.Load()) {
		c.Close() // nobody is left who could hear it
	}
}

// isDraining reports whether connections get no further request.
func (l *listener) isDraining() bool { return l.draining.Load() }

// drain closes the connections that wait for a further request, from now on each
// that comes to do so, and after a while those that never asked for anything.
// The caller stops that when all are gone.
func (l *listener) drain() (stop func() bool) {
	l.draining.Store(true)
	for _, c := range l.idle() {
		if !c.fresh.Load() {
			c.Close() // nobody is left who could hear it
		}
	}
	return time.AfterFunc(freshGrace, func() { l.closeIdle(0) }).Stop
}

// ListenerFile is a descriptor of a listening socket, for another process.
func ListenerFile(l *net.TCPListener) (*os.File, error) {
	raw, err := l.SyscallConn()
	if err != nil {
		return nil, err
	}
	// Not File, for what passes that on makes the socket a blocking one, here
	// too.
	var fd int
	if controlErr := raw.Control(func(own uintptr) { fd, err = duplicate(int(own)) }); controlErr != nil {
		return nil, controlErr
	}
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), l.Addr().String()), nil
}

// each calls f for every open connection.
func (l *listener) each(f func(*conn)) {
	l.mu.Lock()
	conns := make([]*conn, 0, len(l.open))
	for c := range l.open {
		conns = append(conns, c)
	}
	l.mu.Unlock()
	for _, c := range conns {
		f(c)
	}
}

// conn is a client's connection. Writing fails when the client has taken
// nothing for the listener's timeout, however much there is to write.
type conn struct {
	*net.TCPConn
	from   *listener
	slot   bool // it has one of from.slots
	closed atomic.Bool

	fresh atomic.Bool  // nothing was asked for yet
	since atomic.Int64 // when it became idle, in Unix nanoseconds; 0 while it is not

	// The deadlines that are set, in Unix nanoseconds.
	readBy, writeBy atomic.Int64
}

// Close closes the connection and makes room for the next.
func (c *conn) Close() error {
	if c.closed.Swap(true) {
		return nil
	}
	l := c.from
	l.mu.Lock()
	delete(l.open, c)
	l.mu.Unlock()
	err := c.TCPConn.Close()
	l.meter.connections.Dec()
	if c.slot {
		<-l.slots
	}
	return err
}

// survive is to be deferred by who answers the connection: a bug that one request
// meets must not end all the others, and the daemon.
func (c *conn) survive() {
	if v := recover(); v != nil {
		c.from.log.Error().Err(fmt.Errorf("panic: %v\n%s", v, debug.Stack())).Stringer("client", c.RemoteAddr()).
			Msg("a bug ended a connection")
	}
}

// readWithin has reading fail after d, or up to an eighth earlier: a deadline that
// is about right is left as it is, for setting one costs as much as a small read.
func (c *conn) readWithin(d time.Duration) {
	if by, ok := deadline(&c.readBy, d); ok {
		c.SetReadDeadline(by) // fails only where reading does
	}
}

// writeWithin is readWithin for writing.
func (c *conn) writeWithin(d time.Duration) error {
	if by, ok := deadline(&c.writeBy, d); ok {
		return c.SetWriteDeadline(by)
	}
	return nil
}

// deadline notes a deadline after d, and reports whether it has to be set.
func deadline(set *atomic.Int64, d time.Duration) (time.Time, bool) {
	now := time.Now()
	if left := time.Duration(set.Load() - now.UnixNano()); left <= d && left > d-d/8 {
		return time.Time{}, false
	}
	by := now.Add(d)
	set.Store(by.UnixNano())
	return by, true
}

// readUntil has reading fail at a time, from any goroutine.
func (c *conn) readUntil(t time.Time) {
	c.readBy.Store(t.UnixNano())
	c.SetReadDeadline(t) // fails only where reading does
}

// Write writes all of p, as long as the client takes some of it within the
// listener's timeout.
func (c *conn) Write(p []byte) (int, error) {
	total := 0
	for {
		if err := c.writeWithin(c.from.timeout); err != nil {
			return total, err
		}
		n, err := c.TCPConn.Write(p[total:])
		total += n
		if err == nil || n == 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
			return total, err
		}
	}
}

// ReadFrom sends r with sendfile where r is a file or a limited one.
func (c *conn) ReadFrom(r io.Reader) (int64, error) {
	limited, ok := r.(*io.LimitedReader)
	if !ok {
		return io.Copy(struct{ io.Writer }{c}, r)
	}
	var total int64
	for {
		if err := c.writeWithin(c.from.timeout); err != nil {
			return total, err
		}
		before := limited.N
		n, err := c.TCPConn.ReadFrom(limited)
		total += n
		if err == nil || n == 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
			return total, err
		}
		if before-limited.N != n { // no sendfile: what was read from the file, but not taken by the client, is lost
			return total, err
		}
	}
}
