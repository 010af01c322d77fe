package storaged

import (
	"container/list"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime/debug"
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

	mu       sync.Mutex // guards what follows, and what conn says it guards
	open     map[*conn]struct{}
	idle     list.List // of *conn, the one that is idle for longest in front
	starving bool      // a newcomer waits for a slot
	draining bool      // connections are closed as soon as they are not active
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
		wrapped := &conn{TCPConn: c, from: l, slot: l.acquire(), fresh: true}
		l.mu.Lock()
		l.open[wrapped] = struct{}{}
		l.wait(wrapped)
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
	l.starve(true)
	defer l.starve(false)
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

// starve notes whether a newcomer waits.
func (l *listener) starve(on bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.starving = on
}

// evict closes the connection that has been idle for longest, if any is.
func (l *listener) evict() {
	l.mu.Lock()
	var oldest *conn
	for e := l.idle.Front(); e != nil && oldest == nil; e = e.Next() {
		if c := e.Value.(*conn); !c.fresh || time.Since(c.since) >= freshGrace {
			oldest = c
		}
	}
	l.mu.Unlock()
	if oldest != nil {
		oldest.Close() // nobody is left who could hear it
	}
}

// closeIdle closes the connections that have been idle for as long as age.
func (l *listener) closeIdle(age time.Duration) {
	l.mu.Lock()
	var old []*conn
	for e := l.idle.Front(); e != nil; e = e.Next() {
		if c := e.Value.(*conn); time.Since(c.since) >= age {
			old = append(old, c)
		}
	}
	l.mu.Unlock()
	for _, c := range old {
		c.Close() // nobody is left who could hear it
	}
}

// active notes that c has begun to ask, or is being answered.
func (l *listener) active(c *conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	c.fresh = false
	l.forget(c)
}

// waiting notes that c waits for a request. Where somebody needs its
// place, or after drain, it is closed.
func (l *listener) waiting(c *conn) {
	l.mu.Lock()
	unwanted := !c.fresh && (l.starving || l.draining)
	if !unwanted {
		l.wait(c)
	}
	l.mu.Unlock()
	if unwanted {
		c.Close() // nobody is left who could hear it
	}
}

// wait enters c among the idle ones. The caller holds mu.
func (l *listener) wait(c *conn) {
	if c.place == nil && !c.closed.Load() {
		c.since = time.Now()
		c.place = l.idle.PushBack(c)
	}
}

// isDraining reports whether connections get no further request.
func (l *listener) isDraining() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.draining
}

// forget takes c out of the idle ones. The caller holds mu.
func (l *listener) forget(c *conn) {
	if c.place != nil {
		l.idle.Remove(c.place)
		c.place = nil
	}
}

// drain closes the connections that wait for a further request, from now on each
// that comes to do so, and after a while those that never asked for anything.
// The caller stops that when all are gone.
func (l *listener) drain() (stop func() bool) {
	l.mu.Lock()
	l.draining = true
	var idle []*conn
	for e := l.idle.Front(); e != nil; e = e.Next() {
		if c := e.Value.(*conn); !c.fresh {
			idle = append(idle, c)
		}
	}
	l.mu.Unlock()
	for _, c := range idle {
		c.Close() // nobody is left who could hear it
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

	place *list.Element // in from.idle, or nil; from.mu guards it and the next two
	fresh bool          // nothing was asked for yet
	since time.Time     // when it became idle
}

// Close closes the connection and makes room for the next.
func (c *conn) Close() error {
	if c.closed.Swap(true) {
		return nil
	}
	l := c.from
	l.mu.Lock()
	l.forget(c)
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

// Write writes all of p, as long as the client takes some of it within the
// listener's timeout.
func (c *conn) Write(p []byte) (int, error) {
	total := 0
	for {
		if err := c.SetWriteDeadline(time.Now().Add(c.from.timeout)); err != nil {
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
		if err := c.SetWriteDeadline(time.Now().Add(c.from.timeout)); err != nil {
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
