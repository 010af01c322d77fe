package storaged

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"time"
)

// errHungUp ends the context of an answer whose client has gone, or sends more
// before it was answered.
var errHungUp = errors.New("the client hung up")

// vanishedAfter is how long a client may acknowledge nothing of an answer that is
// still being made. It is shorter than the lease of the work that a tracker does,
// so that what a dead one ordered has ended when another orders it.
const vanishedAfter = 30 * time.Second

// stream sends an answer as it is made, in chunks. All the while the connection
// is read, so that the work ends with its client.
func (x *session) stream(ctx context.Context, a *answer) (int64, error) {
	if x.in.buffered() > 0 {
		// It could not be seen any more that the client goes.
		*a = answer{status: http.StatusBadRequest, close: true, err: errHungUp}
		_, err := x.conn.Write(x.appendHead(x.out[:0], a))
		return 0, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	x.conn.readUntil(time.Time{})
	if err := noticeVanished(x.conn.TCPConn, vanishedAfter); err != nil {
		x.log.Debug().Err(err).Msg("hosts that vanish are noticed late")
	}
	gone := make(chan error, 1)
	go func() {
		var b [1]byte
		_, err := x.conn.Read(b[:])
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			err = errors.Join(errHungUp, err)
			cancel(err)
		}
		gone <- err
	}()
	w := chunks{conn: x.conn, out: x.appendHead(x.out[:0], a), broken: cancel}
	last := a.stream(ctx, &w)
	x.conn.readUntil(time.Unix(1, 0)) // ends the reading
	if err := <-gone; !errors.Is(err, os.ErrDeadlineExceeded) && w.err == nil {
		w.err = err
	}
	w.end(last)
	return w.sent, w.err
}

// chunks writes a body in chunks.
type chunks struct {
	conn net.Conn
	out  []byte // what goes out before the next chunk: the head, at first
	sent int64
	err  error

	broken context.CancelCauseFunc // ends the work, for nobody would hear of it
}

// Write sends p as one chunk.
func (c *chunks) Write(p []byte) (int, error) {
	if len(p) == 0 { // which would be the end
		return 0, c.err
	}
	c.add(p)
	return len(p), c.flush(int64(len(p)))
}

func (c *chunks) add(p []byte) {
	c.out = fmt.Appendf(c.out, "%x\r\n", len(p))
	c.out = append(append(c.out, p...), "\r\n"...)
}

func (c *chunks) flush(n int64) error {
	if c.err == nil {
		if _, c.err = c.conn.Write(c.out); c.err == nil {
			c.sent += n
		} else {
			c.broken(errors.Join(errHungUp, c.err))
		}
	}
	c.out = c.out[:0]
	return c.err
}

// end sends the last chunk, if there is one, and the body's end.
func (c *chunks) end(last []byte) {
	if len(last) > 0 {
		c.add(last)
	}
	c.out = append(c.out, "0\r\n\r\n"...)
	_ = c.flush(int64(len(last))) // it is in c.err
}

// isLoopback reports whether only this machine can be at an address.
func isLoopback(a net.Addr) bool {
	tcp, ok := a.(*net.TCPAddr)
	return ok && tcp.IP.IsLoopback()
}
