package protocol

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"time"
)

// tracker is one tracker's address with its connections.
type tracker struct {
	addr  string
	slots chan struct{} // holds a token for each connection in use

	mu       sync.Mutex // guards what follows
	idle     []*trackerConn
	failures int       // in a row
	until    time.Time // to be left alone until then
}

// trackerConn is a connection that waits for a request, or serves one.
type trackerConn struct {
	net.Conn
	r         *bufio.Reader
	idleSince time.Time
}

const (
	firstRest = 250 * time.Millisecond
	longRest  = 30 * time.Second
)

// rest is how long a tracker is left alone after so many failures in a row.
// chance, from 0 to 1, spreads clients over the last quarter of it.
func rest(failures int, chance float64) time.Duration {
	d := longRest
	if failures < 8 {
		d = min(longRest, firstRest<<max(0, failures-1))
	}
	return d - time.Duration(chance*float64(d)/4)
}

func (t *tracker) restsUntil() time.Time {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.until
}

func (t *tracker) answered() {
	t.mu.Lock()
	t.failures, t.until = 0, time.Time{}
	t.mu.Unlock()
}

func (t *tracker) failed() {
	t.mu.Lock()
	t.failures++
	t.until = time.Now().Add(rest(t.failures, rand.Float64()))
	t.mu.Unlock()
	t.dropIdle()
}

func (t *tracker) dropIdle() {
	t.mu.Lock()
	idle := t.idle
	t.idle = nil
	t.mu.Unlock()
	for _, k := range idle {
		k.Close()
	}
}

// takeIdle is the connection used last that is still good, or nil. One that has
// anything to read is not: its peer has gone, or said something that nobody
// asked for.
func (t *tracker) takeIdle(maxAge time.Duration) *trackerConn {
	for {
		t.mu.Lock()
		if len(t.idle) == 0 {
			t.mu.Unlock()
			return nil
		}
		k := t.idle[len(t.idle)-1]
		t.idle[len(t.idle)-1] = nil
		t.idle = t.idle[:len(t.idle)-1]
		t.mu.Unlock()
		// The last request's deadline may have passed by now.
		if time.Since(k.idleSince) < maxAge && k.SetDeadline(time.Time{}) == nil && Quiet(k.Conn) {
			return k
		}
		k.Close()
	}
}

// putIdle keeps k for later, and closes what was kept too long.
func (t *tracker) putIdle(k *trackerConn, o *ClientOptions) {
	k.idleSince = time.Now()
	var old []*trackerConn
	t.mu.Lock()
	for len(t.idle) > 0 && (len(t.idle) >= o.MaxIdle || time.Since(t.idle[0].idleSince) >= o.IdleTimeout) {
		old = append(old, t.idle[0])
		t.idle = t.idle[1:]
	}
	t.idle = append(t.idle, k)
	t.mu.Unlock()
	for _, k := range old {
		k.Close()
	}
}

// ask has t execute q. A request whose connection broke is tried once more on a
// new one where that is safe; again reports whether the first may have been
// executed nevertheless. Errors are *[Error], *[TrackerError] or [ErrClosed].
func (c *Client) ask(ctx context.Context, t *tracker, q *call) (fields Args, again bool, err error) {
	if c.closed.Load() {
		return nil, false, ErrClosed
	}
	deadline := time.Now().Add(q.timeout)
	fail := func(sent bool, err error) (Args, bool, error) {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return nil, sent, &TrackerError{Tracker: t.addr, Command: q.command, Sent: sent, Err: err}
	}
	if err := t.take(ctx, deadline); err != nil {
		return fail(false, err)
	}
	defer func() { <-t.slots }()

	sent := false
	k := t.takeIdle(c.o.IdleTimeout)
	for try := 0; ; try++ {
		if k == nil {
			var err error
			if k, err = c.dial(ctx, t.addr); err != nil {
				if ctx.Err() == nil {
					t.failed()
				}
				return fail(sent, err)
			}
		}
		reply, wrote, err := k.exchange(ctx, q, deadline)
		if err == nil {
			t.answered()
			if reply.last || c.closed.Load() || k.r.Buffered() > 0 {
				k.Close()
			} else {
				t.putIdle(k, &c.o)
				if c.closed.Load() { // Close may have passed in between
					t.dropIdle()
				}
			}
			return reply.fields, sent, reply.refusal()
		}
		k.Close()
		k = nil
		sent = sent || wrote
		timeout, ok := errors.AsType[net.Error](err)
		if ctx.Err() != nil {
			return fail(sent, err)
		}
		if try == 0 && (!wrote || q.repeat) && !(ok && timeout.Timeout()) && !errors.Is(err, ErrBadReply) {
			t.dropIdle() // they are as old as this one
			continue
		}
		t.failed()
		if ok && timeout.Timeout() {
			err = fmt.Errorf("no answer in %v: %w", q.timeout, err)
		}
		return fail(sent, err)
	}
}

// take waits for a free connection.
func (t *tracker) take(ctx context.Context, deadline time.Time) error {
	select {
	case t.slots <- struct{}{}:
		return nil
	default:
	}
	timer := time.NewTimer(time.Until(deadline))
	defer timer.Stop()
	select {
	case t.slots <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-timer.C:
		return fmt.Errorf("all %d connections are busy", cap(t.slots))
	}
}

func (c *Client) dial(ctx context.Context, addr string) (*trackerConn, error) {
	ctx, cancel := context.WithTimeout(ctx, c.o.DialTimeout)
	defer cancel()
	conn, err := c.o.Dial(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	return &trackerConn{Conn: conn, r: bufio.NewReader(conn)}, nil
}

// answer is a reply that was whole and this request's.
type answer struct {
	fields Args
	err    *Error
	last   bool // the connection cannot be used again
}

func (a answer) refusal() error {
	if a.err != nil {
		return a.err
	}
	return nil
}

// exchange writes q and reads its reply. After an error the connection must be
// closed. wrote reports whether anything was written.
func (k *trackerConn) exchange(ctx context.Context, q *call, deadline time.Time) (a answer, wrote bool, err error) {
	if err := k.SetDeadline(deadline); err != nil {
		return answer{}, false, err
	}
	stop := context.AfterFunc(ctx, func() {
		_ = k.SetDeadline(time.Unix(1, 0)) // fails only on a closed connection
	})
	n, err := k.Write(q.line)
	wrote = n > 0
	var line string
	if err == nil {
		line, err = readLine(k.r, MaxLine)
	}
	a.last = !stop() // else the deadline could move under the next request
	if err != nil {
		return answer{}, wrote, err
	}
	a.fields, err = ParseReply(line)
	if e, ok := errors.AsType[*Error](err); ok {
		a.err = e
	} else if err != nil {
		return answer{}, wrote, err
	}
	if id, ok := a.fields.Lookup("callid"); ok {
		if id != q.callid {
			return answer{}, wrote, fmt.Errorf("%w of this request (callid %q, not %q)", ErrBadReply, id, q.callid)
		}
		if q.ownID {
			a.fields = a.fields.without("callid")
		}
	}
	return a, wrote, nil
}

// without is a less the field name. It may reuse a.
func (a Args) without(name string) Args {
	for i := range a {
		if a[i].Name == name {
			return append(a[:i], a[i+1:]...)
		}
	}
	return a
}

// readLine reads one line of at most limit bytes and cuts its terminator.
func readLine(r *bufio.Reader, limit int) (string, error) {
	part, err := r.ReadSlice('\n')
	if err == nil {
		return trimLine(part), nil
	}
	var line []byte
	for errors.Is(err, bufio.ErrBufferFull) {
		if len(line)+len(part) > limit {
			return "", fmt.Errorf("%w: a line of more than %d bytes", ErrBadReply, limit)
		}
		line = append(line, part...)
		part, err = r.ReadSlice('\n')
	}
	if errors.Is(err, io.EOF) {
		err = errHungUp
		if len(line)+len(part) > 0 {
			err = fmt.Errorf("%w in the middle of a line", errHungUp)
		}
	}
	if err != nil {
		return "", err
	}
	return trimLine(append(line, part...)), nil
}

var errHungUp = errors.New("the tracker closed the connection")

func trimLine(b []byte) string {
	b = b[:len(b)-1]
	if n := len(b); n > 0 && b[n-1] == '\r' {
		b = b[:n-1]
	}
	return string(b)
}
