package tracker

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/tracker/status"
)

// keepOut is the largest reply buffer that a connection keeps.
const keepOut = 64 << 10

// conn is a client's connection. Its lines are answered one at a time in the
// goroutine that reads them, so that a client that does not read its answers is
// not read from either.
type conn struct {
	server *server
	nc     net.Conn
	from   netip.Addr // invalid where the client has no IP address

	write sync.Mutex // held while bytes are sent: replies and the log's lines do not mix
	out   []byte     // the reply being made

	// Of the request being answered, kept here to be used again.
	place ticket
	dog   watchdog
	query query

	watching *watcher // follows the log; nil where it does not

	strange int // unknown commands since the last that was known
}

func newConn(s *server, nc net.Conn) *conn {
	c := &conn{server: s, nc: nc, place: ticket{granted: make(chan int, 1)}}
	if a, ok := nc.RemoteAddr().(*net.TCPAddr); ok {
		c.from = a.AddrPort().Addr().Unmap()
	}
	c.place.from = c.from
	return c
}

// serve answers lines until the client has sent its last, the connection
// breaks, or the server closes. A client that has only closed its sending side
// still gets the answers to what it asked.
func (c *conn) serve(ctx context.Context) {
	in := newLines(c.nc, c.server.opts.MaxLine, &c.server.longLines)
	defer in.free()
	for !c.server.closing.Load() {
		line, err := in.next()
		if errors.Is(err, errLongLine) {
			c.refuseLongLine()
			return
		}
		if err != nil {
			return
		}
		if len(line) == 0 {
			continue
		}
		if cap(c.out) > keepOut {
			c.out = nil
		}
		c.out, err = c.server.answer(ctx, c, line, c.out[:0])
		if err != nil {
			return
		}
		in.free()
		if pause := c.patience(); pause > 0 && !wait(ctx, pause) {
			return
		}
		if err := c.send(c.out); err != nil {
			return
		}
		c.beginWatching()
	}
}

// A client that sends garbage gets its answers, but is made to wait for them:
// answering at full speed would take the time of all others. strangeFree unknown
// commands in a row are answered at once, which is more than a client needs that
// finds out what this tracker knows.
const (
	strangeFree  = 100
	strangeStep  = 10 * time.Millisecond // for each beyond
	strangeLimit = time.Second
)

// patience is how long the answer to the last request is held back.
func (c *conn) patience() time.Duration {
	return min(time.Duration(max(c.strange-strangeFree, 0))*strangeStep, strangeLimit)
}

// send writes all of b. It fails when the client has taken nothing for the slow
// reader's time.
func (c *conn) send(b []byte) error {
	c.write.Lock()
	defer c.write.Unlock()
	for len(b) > 0 {
		if err := c.nc.SetWriteDeadline(time.Now().Add(c.server.opts.SlowReader)); err != nil {
			return err
		}
		n, err := c.nc.Write(b)
		b = b[n:]
		if err != nil && !(n > 0 && errors.Is(err, os.ErrDeadlineExceeded)) {
			if errors.Is(err, os.ErrDeadlineExceeded) {
				c.server.metrics.Dropped(status.DropSlowReader)
				c.server.log.Info().Stringer("client", c.from).Msg("connection closed: the client does not read its answers")
			}
			return err
		}
	}
	return nil
}

// lingerTimeout and lingerBytes bound what is still read from a client whose
// connection is to be closed: closing with unread input would take the reply
// back that explains why.
const (
	lingerTimeout = 2 * time.Second
	lingerBytes   = 64 << 20
)

// refuseLongLine tells the client why its connection is closed.
func (c *conn) refuseLongLine() {
	c.server.metrics.Dropped(status.DropLongLine)
	c.server.seldom.Warn().Stringer("client", c.from).Int("limit", c.server.opts.MaxLine).Msg("connection closed: request line is too long")
	refusal := &protocol.Error{Code: "bad_params", Text: "Request line is too long; at most " + strconv.Itoa(c.server.opts.MaxLine) + " bytes are read"}
	if err := c.send(protocol.AppendErr(nil, refusal, nil)); err != nil {
		return
	}
	half, ok := c.nc.(interface{ CloseWrite() error })
	if !ok || half.CloseWrite() != nil || c.nc.SetReadDeadline(time.Now().Add(lingerTimeout)) != nil {
		return
	}
	// The outcome does not matter: the connection is closed next.
	_, _ = io.CopyN(io.Discard, c.nc, lingerBytes)
}

// interrupt ends the wait for further lines.
func (c *conn) interrupt() {
	// A connection that cannot be told is broken, and its reader knows.
	_ = c.nc.SetReadDeadline(time.Unix(1, 0))
}

// close ends the connection. It may be called several times.
func (c *conn) close() {
	// Nobody is left who could be told that closing failed.
	_ = c.nc.Close()
}
