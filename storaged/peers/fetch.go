package peers

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

const (
	// connTime is how long connecting to another daemon may take.
	connTime = 3 * time.Second
	// silence is how long another daemon may send nothing. Its disk is given up
	// by itself after ten seconds.
	silence = 15 * time.Second
	// keptPerDaemon is how many connections to a daemon are kept for later.
	keptPerDaemon = 64
	// keptFor is how long: less than a daemon of ours keeps them.
	keptFor = 2 * time.Minute
)

// Client fetches pieces of files from storage daemons, any that serve ranges and
// tell lengths. Its methods may be called concurrently.
//
// It speaks just the HTTP/1.1 that this needs: one request at a time on each
// connection, of which the answer's body goes from the socket to where the caller
// wants it, without a goroutine or memory of its own.
type Client struct {
	dialer  net.Dialer
	kept    kept
	silence time.Duration
}

// NewClient makes a Client. It must be closed.
func NewClient() *Client {
	return &Client{
		dialer:  net.Dialer{Timeout: connTime, KeepAlive: 30 * time.Second},
		silence: silence,
	}
}

// Close gives the connections up that are kept.
func (c *Client) Close() { c.kept.close() }

// answersFor is how long a daemon that answered is taken to be there.
const answersFor = time.Minute

// Answers reports whether a daemon has answered within the last minute, and ever
// since.
func (c *Client) Answers(daemon string) bool {
	addr, ok := strings.CutPrefix(daemon, "http://")
	return ok && c.kept.answers(addr)
}

// errBroken says that a daemon broke off.
var errBroken = errors.New("the storage daemon broke off")

// errSilent says that a daemon sends nothing.
var errSilent = errors.New("the storage daemon is silent")

// Piece is a part of a file as it comes from a storage daemon. It is read by one
// goroutine at a time; Close may be called by another meanwhile, and ends what
// Read waits for.
type Piece struct {
	client *Client
	conn   *conn
	daemon string
	path   string
	ctx    context.Context
	stay   func() bool // has the connection outlive ctx
	size   int64       // of the whole file
	left   int64
	keep   bool        // the connection is good for another request when all was read
	over   atomic.Bool // all was read
}

// Get asks for n bytes (at least one) at off of a file, or as many as it has from
// there. fs.ErrNotExist says that there is no such file, io.EOF that it ends
// before off. Other errors say that it could not be asked for. The request ends
// with ctx.
func (c *Client) Get(ctx context.Context, daemon, path string, off, n int64) (*Piece, error) {
	p := &Piece{client: c, daemon: daemon, path: path, ctx: ctx}
	err := p.get(off, n)
	p.note(err)
	if err != nil {
		return nil, err
	}
	return p, nil
}

// note has it known whether the daemon answers. That a file is not there is an
// answer.
func (p *Piece) note(err error) {
	if addr, ok := strings.CutPrefix(p.daemon, "http://"); ok && p.ctx.Err() == nil {
		p.client.kept.note(addr, err == nil || errors.Is(err, fs.ErrNotExist) || errors.Is(err, io.EOF))
	}
}

// get makes the request.
func (p *Piece) get(off, n int64) error {
	c, ctx, daemon, path := p.client, p.ctx, p.daemon, p.path
	if !isPlain(daemon) || !isPlain(path) {
		return p.failed(errors.New("no URL"))
	}
	addr, ok := strings.CutPrefix(daemon, "http://")
	if !ok {
		return p.failed(errors.New("no URL of HTTP"))
	}
	for {
		conn, used := c.kept.get(addr), true
		if conn == nil {
			tcp, err := c.dialer.DialContext(ctx, "tcp", addr)
			switch {
			case err != nil && ctx.Err() != nil:
				return p.failed(context.Cause(ctx))
			case err != nil:
				return p.failed(err)
			}
			conn, used = newConn(tcp, addr), false
		}
		p.conn, p.stay = conn, context.AfterFunc(ctx, conn.abandon)
		h, err := conn.ask(path, off, n, c.silence)
		if err == nil {
			err = p.accept(&h, off, n)
			if err == nil {
				return nil
			}
			// The text of a refusal is nothing to wait for.
			if p.keep && conn.skip(h.length) {
				p.over.Store(true)
			}
			_ = p.Close() // it has no error
			return p.failed(err)
		}
		_ = p.Close() // as above
		if used && errors.Is(err, errUnanswered) && ctx.Err() == nil {
			continue // the daemon may have closed it, as it may at any time
		}
		return p.explain(err)
	}
}

// isPlain reports whether text can be a part of a request as it is.
func isPlain(text string) bool {
	return !strings.ContainsFunc(text, func(r rune) bool { return r <= ' ' || r >= 0x7f })
}

// accept sees whether an answer is the piece that was asked for.
func (p *Piece) accept(h *head, off, n int64) error {
	p.keep = h.keep && h.length >= 0
	switch h.status {
	case http.StatusPartialContent:
		first, last, size, ok := parseRange(h.contentRange)
		if !ok || first != off || last < first || last >= off+n || last >= size || h.length != last-first+1 {
			p.keep = false
			return fmt.Errorf("%q of %d bytes is not the range that was asked for", h.contentRange, h.length)
		}
		p.size, p.left = size, h.length
	case http.StatusOK: // all of it, of a server that knows no ranges
		if off != 0 || h.length < 0 {
			p.keep = false
			return errors.New("the server sends the whole file, not a range of it")
		}
		p.size, p.left = h.length, min(h.length, n)
		p.keep = p.keep && p.left == h.length
		if p.left == 0 {
			return io.EOF
		}
	case http.StatusRequestedRangeNotSatisfiable:
		return fmt.Errorf("at %d: %w", off, io.EOF)
	case http.StatusNotFound:
		return fs.ErrNotExist
	default:
		return fmt.Errorf("HTTP status %d", h.status)
	}
	return nil
}

// parseRange reads "bytes first-last/size".
func parseRange(text string) (first, last, size int64, ok bool) {
	span, ok := strings.CutPrefix(text, "bytes ")
	span, total, ok1 := strings.Cut(span, "/")
	from, to, ok2 := strings.Cut(span, "-")
	first, ok3 := parseNumber(from)
	last, ok4 := parseNumber(to)
	size, ok5 := parseNumber(total)
	return first, last, size, ok && ok1 && ok2 && ok3 && ok4 && ok5
}

// parseNumber reads digits.
func parseNumber(text string) (int64, bool) {
	n, err := strconv.ParseInt(text, 10, 64)
	return n, err == nil && text[0] != '+' && text[0] != '-'
}

// Size is that of the whole file, in bytes.
func (p *Piece) Size() int64 { return p.size }

// Read implements io.Reader.
func (p *Piece) Read(b []byte) (int, error) {
	if p.left == 0 {
		return 0, io.EOF
	}
	if len(b) == 0 {
		return 0, nil
	}
	n, err := p.conn.read(b[:min(int64(len(b)), p.left)], p.client.silence)
	if p.left -= int64(n); p.left == 0 {
		p.over.Store(true)
	}
	if n > 0 {
		return n, nil // an error comes again
	}
	err = p.explain(err)
	p.note(err)
	return 0, err
}

// explain says why the daemon broke off.
func (p *Piece) explain(err error) error {
	switch {
	case p.ctx.Err() != nil:
		err = context.Cause(p.ctx)
	case errors.Is(err, os.ErrDeadlineExceeded):
		err = fmt.Errorf("%w for %v: %w", errSilent, p.client.silence, os.ErrDeadlineExceeded)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		err = errBroken // not the end of the file, which is as long as was told
	}
	return p.failed(err)
}

// failed says of which request an error is.
func (p *Piece) failed(err error) error { return fmt.Errorf("GET %s/%s: %w", p.daemon, p.path, err) }

// Close ends the request. Its connection is kept if all was read.
func (p *Piece) Close() error {
	switch stays := p.stay(); {
	case stays && p.over.Load() && p.keep && p.conn.buffered() == 0:
		p.client.kept.put(p.conn)
	default:
		p.conn.abandon()
	}
	return nil
}
