package tracker

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/tracker/status"
)

const (
	// keepOut is the largest reply buffer that a connection keeps.
	keepOut = 8 << 10
	// maxUnsent bounds the memory of all replies larger than that which are
	// being sent.
	maxUnsent = 64 << 20
	// hurry is how long a client may take no bytes of its reply while there is
	// more than maxUnsent.
	hurry = 2 * time.Second
)

// conn is a client's connection. Its lines are answered one at a time in the
// goroutine that reads them, so that a client that does not read its answers is
// not read from either.
type conn struct {
	server *server
	nc     net.Conn
	in     *lines
	from   netip.Addr // invalid where the client has no IP address

	write   sync.Mutex   // held while bytes are sent: replies and the log's lines do not mix
	writing atomic.Int64 // since when the client has taken nothing of what is being sent, in Unix ns; 0: nothing is
	out     []byte       // the reply being made

	// Of the request being answered, kept here to be used again.
	place ticket
	dog   watchdog
	turn  turn
	query query

	watching *watcher // follows the log; nil where it does not

	strange int // unknown commands since the last that was known
}

func newConn(s *server, nc net.Conn) *conn {
	c := &conn{server: s, nc: nc, in: newLines(nc, s.opts.MaxLine, &s.longLines), place: ticket{granted: make(chan int, 1)}}
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
	in := c.in
	defer in.free()
	for !c.server.closing.Load() {
		line, err := in.next()
		if errors.Is(err, errLongLine) {
			in.free()
			c.refuseLine(err)
			return
		}
		if err != nil {
			return
		}
		if len(line) == 0 {
			continue
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
		if cap(c.out) > keepOut {
			c.out = nil
		}
		c.beginWatching()
		if c.place.piled = in.ready(); c.place.piled {
			// Between two requests of one connection others get a turn.
			runtime.Gosched()
		}
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
	defer c.writing.Store(0)
	patience := c.server.opts.SlowReader
	if large := int64(len(b)); large > keepOut {
		if c.server.unsent.Add(large) > maxUnsent {
			patience = min(patience, hurry)
		}
		defer c.server.unsent.Add(-large)
	}
	for len(b) > 0 {
		now := time.Now()
		c.writing.Store(now.UnixNano())
		if err := c.nc.SetWriteDeadline(now.Add(patience)); err != nil {
			return err
		}
		n, err := c.nc.Write(b)
		b = b[n:]
		if err != nil && !(n > 0 && errors.Is(err, os.ErrDeadlineExceeded)) {
			if errors.Is(err, os.ErrDeadlineExceeded) {
				c.dropped(status.DropSlowReader)
			}
			return err
		}
	}
	return nil
}

// dropped counts and logs that the connection is closed for reason, one of
// [status]'s.
func (c *conn) dropped(reason string) {
	c.server.metrics.Dropped(reason)
	c.server.seldom.Warn().Stringer("client", c.from).Str("reason", reason).Msg("connection closed")
}

// stuck is why the connection may be closed to make room for others: its client
// has sent half a line, or has taken nothing of a reply, for long. Empty where
// it may not: one that is idle never.
func (c *conn) stuck(now time.Time) (reason string) {
	since := func(at int64) time.Duration {
		if at == 0 {
			return 0
		}
		return now.Sub(time.Unix(0, at))
	}
	switch {
	case since(c.in.begun.Load()) > halfLine:
		return status.DropSlowSender
	case since(c.writing.Load()) > halfReply:
		return status.DropSlowReader
	}
	return ""
}

// lingerTimeout, lingerBytes and lingering bound what is still read from
// clients whose connections are to be closed: closing with unread input would
// take the reply back that explains why.
const (
	lingerTimeout = 2 * time.Second
	lingerBytes   = 4 << 20
	lingering     = 32 // connections at once; others see theirs break
)

// refuseLine tells the client why its connection is closed.
func (c *conn) refuseLine(why error) {
	text := "Request line is too long; at most " + strconv.Itoa(c.server.opts.MaxLine) + " bytes are read"
	if errors.Is(why, errLongLines) {
		text = "Too many long request lines at once; try again"
		c.server.makeRoom()
	}
	c.dropped(status.DropLongLine)
	if err := c.send(protocol.AppendErr(nil, &protocol.Error{Code: "bad_params", Text: text}, nil)); err != nil {
		return
	}
	defer c.server.lingering.Add(-1)
	if c.server.lingering.Add(1) > lingering {
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
