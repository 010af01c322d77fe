package storaged

import (
	"bytes"
	"container/list"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// listener bounds the connections that are open at a time. Where all are in
// use, the one that has been waiting for a further request for longest is
// closed to make room for a newcomer; where none is waiting, newcomers are.
type listener struct {
	*net.TCPListener
	timeout time.Duration // see [conn]
	meter   *meter
	slots   chan struct{} // holds one element for each open connection
	done    chan struct{} // closed by Close
	once    sync.Once

	mu       sync.Mutex // guards what follows, and conn.place and conn.active
	open     map[*conn]struct{}
	idle     list.List // of *conn, the one that is idle for longest in front
	starving bool      // a newcomer waits for a slot
	draining bool      // connections are closed as soon as they are not active
}

func newListener(l *net.TCPListener, maxConns int, timeout time.Duration, m *meter) *listener {
	return &listener{
		TCPListener: l, timeout: timeout, meter: m,
		slots: make(chan struct{}, maxConns), done: make(chan struct{}), open: map[*conn]struct{}{},
	}
}

// Accept waits for a connection, then for a slot.
func (l *listener) Accept() (net.Conn, error) {
	c, err := l.AcceptTCP()
	if err != nil {
		return nil, err
	}
	select {
	case l.slots <- struct{}{}:
	default:
		l.starve(true)
		select {
		case l.slots <- struct{}{}:
			l.starve(false)
		case <-l.done:
			return nil, errors.Join(net.ErrClosed, c.Close())
		}
	}
	wrapped := &conn{TCPConn: c, from: l}
	l.mu.Lock()
	l.open[wrapped] = struct{}{}
	l.mu.Unlock()
	l.meter.connections.Inc()
	return wrapped, nil
}

// Close stops accepting. Open connections stay.
func (l *listener) Close() error {
	l.once.Do(func() { close(l.done) })
	return l.TCPListener.Close()
}

// starve notes whether a newcomer waits, and makes room for one that does.
func (l *listener) starve(on bool) {
	l.mu.Lock()
	l.starving = on
	var oldest *conn
	if e := l.idle.Front(); on && e != nil {
		oldest = e.Value.(*conn)
	}
	l.mu.Unlock()
	if oldest != nil {
		oldest.Close() // nobody is left who could hear it
	}
}

// fresh notes that c has not asked for anything yet.
func (l *listener) fresh(c *conn) {
	l.mu.Lock()
	unwanted := l.draining
	l.mu.Unlock()
	if unwanted {
		c.Close() // nobody is left who could hear it
	}
}

// active notes that c is answering a request.
func (l *listener) active(c *conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	c.active = true
	l.forget(c)
}

// waiting notes that c waits for a further request. Where somebody needs its
// place, or after drain, it is closed.
func (l *listener) waiting(c *conn) {
	l.mu.Lock()
	c.active = false
	unwanted := l.starving || l.draining
	if !unwanted && c.place == nil && !c.closed.Load() {
		c.place = l.idle.PushBack(c)
	}
	l.mu.Unlock()
	if unwanted {
		c.Close() // nobody is left who could hear it
	}
}

// forget takes c out of the idle ones. The caller holds mu.
func (l *listener) forget(c *conn) {
	if c.place != nil {
		l.idle.Remove(c.place)
		c.place = nil
	}
}

// drain closes the connections that are not active, and from now on each that
// ceases to be.
func (l *listener) drain() {
	l.mu.Lock()
	l.draining = true
	l.mu.Unlock()
	l.each(func(c *conn) {
		l.mu.Lock()
		active := c.active
		l.mu.Unlock()
		if !active {
			c.Close() // nobody is left who could hear it
		}
	})
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
	closed atomic.Bool
	place  *list.Element // in from.idle, or nil
	active bool          // a request is being answered

	// answering is set while a request has reached a handler. What the HTTP
	// server writes before is a refusal of its own.
	answering atomic.Bool
	// overflow is set when a header block announced a length beyond 63 bits,
	// for which the HTTP server gives the same refusal as for garbage. Used by
	// the connection's own goroutine only.
	overflow bool
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
	<-l.slots
	return err
}

// Read reads, and looks through header blocks for a length that overflows.
func (c *conn) Read(p []byte) (int, error) {
	n, err := c.TCPConn.Read(p)
	if n > 1 && !c.answering.Load() && lengthOverflows(p[:n]) {
		c.overflow = true
	}
	return n, err
}

// Write writes all of p, as long as the client takes some of it within the
// listener's timeout. A refusal that did not come from a handler is put in the
// form of every other answer.
func (c *conn) Write(p []byte) (int, error) {
	if !c.answering.Load() {
		if status := ownRefusal(p, c.overflow); status != 0 {
			c.from.meter.request("", status, 0, 0)
			if _, err := c.write(rawAnswer(status)); err != nil {
				return 0, err
			}
			return len(p), nil
		}
	}
	return c.write(p)
}

func (c *conn) write(p []byte) (int, error) {
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

// ReadFrom sends r with sendfile where r is a file or a limited one. It is
// what net/http calls for such bodies.
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

// lengthOverflows reports whether a line in b is a Content-Length of digits
// that do not fit in 63 bits.
func lengthOverflows(b []byte) bool {
	const name = "content-length:"
	for len(b) > len(name) {
		line, rest, _ := bytes.Cut(b, []byte{'\n'})
		if len(line) > len(name) && bytes.EqualFold(line[:len(name)], []byte(name)) {
			_, err := offset(string(bytes.TrimSpace(line[len(name):])))
			return errors.Is(err, errOverflow)
		}
		b = rest
	}
	return false
}

// ownRefusal recognizes a refusal that net/http wrote by itself, and says which
// status it should have: header blocks that are too large get 400 as garbage
// does, lengths that overflow 507. It is 0 where b is no such refusal.
func ownRefusal(b []byte, overflow bool) int {
	const version = "HTTP/1.1 "
	if len(b) < len(version)+3 || string(b[:len(version)]) != version {
		return 0
	}
	code, err := offset(string(b[len(version) : len(version)+3]))
	switch status := int(code); {
	case err != nil || status < 400:
		return 0
	case status == http.StatusRequestHeaderFieldsTooLarge:
		return http.StatusBadRequest
	case status == http.StatusBadRequest && overflow:
		return http.StatusInsufficientStorage
	default:
		return status
	}
}
