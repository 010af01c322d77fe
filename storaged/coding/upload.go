package coding

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/storaged/volume"
)

const (
	// keepIdle bounds the connections that are kept to one storage daemon for
	// further shards.
	keepIdle = 64
	// keepAll bounds them for all storage daemons together.
	keepAll = 1024
	// idleTime is for how long they are kept. Storage daemons wait for longer.
	idleTime = time.Minute
	// flushTimes is how many times the timeout of a peer it may take to flush a
	// shard: no byte shows that it is at it.
	flushTimes = 2
	// refusalTime is for how long a peer that broke off may take to say why.
	refusalTime = time.Second
	// permitLife is for how long the order is good that a shard is uploaded with.
	permitLife = time.Minute
	// smallShard is up to how many bytes a shard is sent at once: to ask before
	// whether it is wanted would cost more.
	smallShard = 64 << 10
)

// uploads sends shards to other storage daemons. HTTP's bodies are pulled out of
// a reader by its client; here many are fed from one loop with what it has in
// memory, so that there is a client of our own.
type uploads struct {
	key     []byte // to sign with; empty: none
	timeout time.Duration
	dialer  net.Dialer
	now     func() time.Time

	mu   sync.Mutex             // guards the rest
	idle map[string][]*idleConn // none are empty
	kept int                    // how many there are
}

// idleConn is closed when over is.
type idleConn struct {
	net.Conn
	over *time.Timer
}

// upload is a shard on its way to another storage daemon.
type upload struct {
	ctx  context.Context
	from *uploads
	conn net.Conn
	in   *bufio.Reader // of conn
	addr string
	to   protocol.Peer
	path string
	left int64  // bytes of the shard that were not written
	held []byte // what is sent with the last of them
	stop func() bool
	err  error // of the connection, or why it is over
}

// connect is a connection to a storage daemon, one that was used before where
// there is one.
func (u *uploads) connect(ctx context.Context, addr string) (net.Conn, error) {
	for {
		c := u.take(addr)
		switch {
		case c == nil:
			return u.dialer.DialContext(ctx, "tcp", addr)
		case c.SetDeadline(time.Time{}) == nil && protocol.Quiet(c.Conn):
			return c.Conn, nil
		}
		_ = c.Close() // nothing was asked for
	}
}

// take is the connection to a storage daemon that was used last of those that are
// kept, nil where there is none.
func (u *uploads) take(addr string) *idleConn {
	u.mu.Lock()
	defer u.mu.Unlock()
	list := u.idle[addr]
	if len(list) == 0 {
		return nil
	}
	c := list[len(list)-1]
	u.forget(addr, c)
	return c
}

// forget takes a connection out of those that are kept, and reports whether it was
// one. The caller holds mu.
func (u *uploads) forget(addr string, c *idleConn) bool {
	list := u.idle[addr]
	i := slices.Index(list, c)
	if i < 0 {
		return false
	}
	c.over.Stop()
	u.kept--
	if u.idle[addr] = slices.Delete(list, i, i+1); len(list) == 1 {
		delete(u.idle, addr)
	}
	return true
}

// keep keeps a connection for the next shard, for a while.
func (u *uploads) keep(addr string, conn net.Conn) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if len(u.idle[addr]) >= keepIdle || u.kept >= keepAll {
		_ = conn.Close() // the shard is there
		return
	}
	c := &idleConn{Conn: conn}
	c.over = time.AfterFunc(idleTime, func() {
		u.mu.Lock()
		defer u.mu.Unlock()
		if u.forget(addr, c) {
			_ = c.Close() // nothing was asked for
		}
	})
	u.idle[addr] = append(u.idle[addr], c)
	u.kept++
}

// close gives up the connections that are kept.
func (u *uploads) close() {
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, list := range u.idle {
		for _, c := range list {
			c.over.Stop()
			_ = c.Close() // nothing was asked for
		}
	}
	clear(u.idle)
	u.kept = 0
}

// begin begins to send a shard of size bytes. When ctx ends the upload fails.
func (u *uploads) begin(ctx context.Context, to protocol.Peer, shard protocol.ShardOrder, size int64) (*upload, error) {
	host := strings.TrimPrefix(to.URL, "http://")
	addr := host
	if _, _, err := net.SplitHostPort(host); err != nil {
		addr = net.JoinHostPort(strings.Trim(host, "[]"), "80")
	}
	up := &upload{ctx: ctx, from: u, addr: addr, to: to, path: "/" + shard.FID.ShardPath(shard.Dev), left: size}
	order := protocol.NewOrder(protocol.VerbShard, u.now(), permitLife, shard.Args())
	head := "PUT " + up.path + " HTTP/1.1\r\nHost: " + host + "\r\nContent-Length: " + strconv.FormatInt(size, 10) + "\r\n" +
		protocol.OrderHeader + ": " + order.Header(u.key) + "\r\n"
	conn, err := u.connect(ctx, addr)
	if err != nil {
		return nil, fmt.Errorf("PUT %s%s: %w", to.URL, up.path, err)
	}
	up.conn, up.in = conn, bufio.NewReaderSize(conn, maxAnswer)
	up.stop = context.AfterFunc(ctx, func() { _ = conn.Close() }) // not a deadline: the next write would set another
	if size <= smallShard {
		up.held = append(make([]byte, 0, len(head)+2+int(size)), head+"\r\n"...)
		return up, nil
	}
	if err := up.write([]byte(head + "Expect: 100-continue\r\n\r\n")); err != nil {
		up.Abort()
		return nil, err
	}
	// A daemon that does not want the shard says so before it gets it.
	if res, err := up.answer(u.timeout); err != nil || res.StatusCode != http.StatusContinue {
		if err == nil {
			err = errUnasked
		}
		up.Abort()
		return nil, up.wrap(err)
	}
	return up, nil
}

// write writes to the connection within the peer's time.
func (u *upload) write(p []byte) error {
	if u.err != nil {
		return u.err
	}
	err := u.conn.SetWriteDeadline(time.Now().Add(u.from.timeout))
	if err == nil {
		_, err = u.conn.Write(p)
	}
	if err == nil {
		return nil
	}
	// A daemon that does not want the shard says so and closes.
	if _, answer := u.answer(refusalTime); answer != nil {
		err = answer
	}
	u.err = u.wrap(err)
	return u.err
}

func (u *upload) wrap(err error) error {
	return fmt.Errorf("PUT %s%s: %w", u.to.URL, u.path, err)
}

// Context implements sink.
func (u *upload) Context() context.Context { return u.ctx }

// Write sends the next part of the shard.
func (u *upload) Write(p []byte) error {
	u.left -= int64(len(p))
	if u.held == nil {
		return u.write(p)
	}
	u.held = append(u.held, p...)
	if u.left > 0 {
		return nil
	}
	return u.write(u.held)
}

// Errors of uploads.
var (
	errTooShort = errors.New("the shard is not complete")
	errOver     = errors.New("the upload is over")
	errUnasked  = errors.New("the storage daemon answers something else than was asked")
)

// Commit waits until the peer says that the shard is there for good.
func (u *upload) Commit(context.Context) error {
	switch {
	case u.err != nil:
		return u.err
	case u.left != 0:
		u.Abort()
		return u.wrap(errTooShort)
	}
	res, err := u.answer(flushTimes * u.from.timeout)
	if err == nil && res.StatusCode != http.StatusCreated {
		err = errUnasked
	}
	if err != nil {
		u.Abort()
		return u.wrap(err)
	}
	if u.stop() && !res.Close && res.ContentLength == 0 {
		u.from.keep(u.addr, u.conn)
	} else {
		_ = u.conn.Close()
	}
	u.err = errOver
	return nil
}

// statusError is an answer that is not the one that is wanted.
type statusError struct {
	status int
	text   string
}

// Error implements error.
func (e *statusError) Error() string {
	text := fmt.Sprintf("HTTP status %d", e.status)
	if e.text != "" {
		text += ": " + e.text
	}
	return text
}

// Unwrap is what the status means.
func (e *statusError) Unwrap() error {
	if e.status == http.StatusInsufficientStorage {
		return volume.ErrNoSpace
	}
	return nil
}

// maxAnswer bounds what is read of an answer's body, in bytes.
const maxAnswer = 512

// answer reads what the peer says next, which is to go on, or that the shard is
// there. Everything else is an error.
func (u *upload) answer(limit time.Duration) (*http.Response, error) {
	if err := u.conn.SetReadDeadline(time.Now().Add(limit)); err != nil {
		return nil, err
	}
	res, err := http.ReadResponse(u.in, nil)
	if err != nil {
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			err = fmt.Errorf("the storage daemon closed the connection: %w", io.ErrUnexpectedEOF)
		}
		return nil, err
	}
	defer res.Body.Close() // read as far as it is wanted
	if res.StatusCode == http.StatusContinue || res.StatusCode == http.StatusCreated {
		return res, nil
	}
	text, _ := io.ReadAll(io.LimitReader(res.Body, maxAnswer)) // the status says enough
	return nil, &statusError{res.StatusCode, strings.TrimSpace(string(text))}
}

// Abort gives the shard up, unless it was committed.
func (u *upload) Abort() {
	if u.err == errOver {
		return
	}
	u.stop()
	_ = u.conn.Close() // the daemon drops what is not complete
	u.err = errOver
}
