package storage

import (
	"bufio"
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/mogile/mogile/protocol"
)

// side is the side channel of one host: connections that are kept, each used
// by one request at a time, so that replies cannot be mixed up.
type side struct {
	addr string

	mu     sync.Mutex  // guards the rest
	idle   []*sideConn // last used last
	absent time.Time   // until then nobody tries
	logged time.Time   // when its absence was last logged
}

type sideConn struct {
	net.Conn
	r *bufio.Reader
}

const (
	// sideRetry is how long a side channel that failed is left in peace.
	sideRetry = 30 * time.Second
	// sideLog is how seldom its absence is logged (MogileFS 2.73).
	sideLog = 300 * time.Second
	// sideShare is the part of NodeTimeout, one in so many, in which a side
	// channel must tell a size.
	sideShare = 4
	// sideRetries is how many kept connections may turn out to be closed
	// (MogileFS 2.73).
	sideRetries = 2
	// sideLine bounds a reply, in bytes.
	sideLine = 4 << 10
)

var (
	errNoSide   = errors.New("no side channel")
	errNotReply = errors.New("not a reply to the request")
	errNoNumber = errors.New("the reply gives none")
)

// side is the side channel of a host; nil where there is none to be tried now.
func (c *Client) side(addr string) *side {
	if c.o.MgmtPort < 0 {
		return nil
	}
	c.mu.Lock()
	s := c.sides[addr]
	if s == nil {
		s = &side{addr: net.JoinHostPort(addr, strconv.Itoa(c.o.MgmtPort))}
		c.sides[addr] = s
	}
	c.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	if c.o.Now().Before(s.absent) {
		return nil
	}
	return s
}

// leave has nobody try the side channel for a while.
func (c *Client) leave(s *side, err error) {
	now := c.o.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.absent = now.Add(sideRetry)
	if now.Sub(s.logged) >= sideLog {
		s.logged = now
		c.o.Log.Info().Str("host", s.addr).Err(err).Msg("side channel gives no answer: sizes and digests come over HTTP")
	}
}

// sideSize asks the side channel for a file's size. It reports false where
// HTTP must be asked.
func (c *Client) sideSize(ctx context.Context, url string) (int64, bool) {
	_, addr, uri, err := split(url)
	if err != nil {
		return 0, false // HTTP has the same words for it
	}
	s := c.side(addr)
	if s == nil {
		return 0, false
	}
	// HTTP can tell as well: of a host that hangs, the client should not hear
	// after twice its time.
	share := c.o.NodeTimeout / sideShare
	short, cancel := context.WithTimeout(ctx, share)
	defer cancel()
	line, err := c.ask(short, s, "size", uri, "", share)
	if err == nil {
		var n int64
		if n, err = parseSizeReply(uri, line); err == nil && n >= 0 {
			return n, true
		}
	}
	if errors.Is(err, errNoSide) || errors.Is(err, os.ErrDeadlineExceeded) || bytes.HasPrefix(line, []byte("ERROR: unknown command")) {
		if ctx.Err() == nil {
			c.leave(s, err)
		}
	}
	return 0, false
}

// parseSizeReply reads "URI BYTES", -1 being missing. MogileFS's mogstored
// gives no number for an empty file.
func parseSizeReply(uri string, line []byte) (int64, error) {
	rest, ok := strings.CutPrefix(string(line), uri+" ")
	if !ok {
		return 0, fmt.Errorf("size of %s: %w: %q", uri, errNotReply, line)
	}
	if rest == "" {
		return 0, fmt.Errorf("size of %s: %w", uri, errNoNumber)
	}
	n, err := strconv.ParseInt(rest, 10, 64)
	if err != nil || n < -1 || rest[0] == '+' {
		return 0, fmt.Errorf("size of %s: %w: %q", uri, errNotReply, line)
	}
	return n, nil
}

// parseDigestReply reads "URI MD5=hex" in lower case. errNoNumber is matched
// where the file could not be opened.
func parseDigestReply(uri string, t protocol.HashType, line []byte) ([]byte, error) {
	digits, ok := strings.CutPrefix(string(line), uri+" "+t.String()+"=")
	if !ok {
		return nil, fmt.Errorf("%s of %s: %w: %q", t, uri, errNotReply, line)
	}
	if digits == "-1" {
		return nil, fmt.Errorf("%s of %s: %w", t, uri, errNoNumber)
	}
	sum, err := hex.DecodeString(digits)
	if err != nil || len(sum) != t.Size() || len(sum) == 0 || hex.EncodeToString(sum) != digits {
		return nil, fmt.Errorf("%s of %s: %w: %q", t, uri, errNotReply, line)
	}
	return sum, nil
}

// ask sends "verb uri rest" and returns the reply, a line without its end. A
// connection whose reply does not begin with uri is not used again. Where a
// kept connection turns out to be closed the request goes over a new one.
// Errors match errNoSide where it cannot be connected to.
func (c *Client) ask(ctx context.Context, s *side, verb, uri, rest string, timeout time.Duration) ([]byte, error) {
	if strings.ContainsAny(uri, " \t\r\n") || strings.ContainsAny(rest, "\r\n") {
		return nil, fmt.Errorf("%s %q: not to be said in one line", verb, uri)
	}
	request := verb + " " + uri
	if rest != "" {
		request += " " + rest
	}
	for retries := 0; ; retries++ {
		conn, kept, err := c.sideConn(ctx, s)
		if err != nil {
			return nil, fmt.Errorf("%s: %w: %w", s.addr, errNoSide, err)
		}
		line, err := conn.exchange(ctx, request, timeout)
		switch {
		case err == nil && bytes.HasPrefix(line, []byte(uri+" ")) && conn.r.Buffered() == 0:
			s.keep(conn, c.o.PoolSize)
			return line, nil
		case err == nil:
			_ = conn.Close() // it is not to be relied upon; the reply may be a refusal
			return line, nil
		}
		_ = conn.Close()
		if !kept || !isClosed(err) || ctx.Err() != nil || retries == sideRetries {
			return nil, fmt.Errorf("%s: %s: %w", s.addr, request, err)
		}
		s.close() // the others are as old
	}
}

// isClosed reports whether err is that of a connection which the other side
// closed before it said anything.
func isClosed(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

// sideConn is a connection that was kept, or else a new one.
func (c *Client) sideConn(ctx context.Context, s *side) (conn *sideConn, kept bool, err error) {
	s.mu.Lock()
	if n := len(s.idle); n > 0 {
		conn, s.idle = s.idle[n-1], s.idle[:n-1]
	}
	s.mu.Unlock()
	if conn != nil {
		return conn, true, nil
	}
	dial := net.Dialer{Timeout: c.o.ConnTimeout, KeepAlive: 30 * time.Second}
	tcp, err := dial.DialContext(ctx, "tcp", s.addr)
	if err != nil {
		return nil, false, err
	}
	return &sideConn{Conn: tcp, r: bufio.NewReaderSize(tcp, sideLine)}, false, nil
}

// exchange sends a line and reads one, within timeout.
func (s *sideConn) exchange(ctx context.Context, request string, timeout time.Duration) ([]byte, error) {
	if err := s.SetDeadline(time.Now().Add(timeout)); err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = s.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if _, err := io.WriteString(s, request+"\n"); err != nil {
		return nil, err
	}
	line, err := s.r.ReadSlice('\n')
	if err != nil {
		if len(line) > 0 {
			err = fmt.Errorf("%w: %q", errNotReply, line[:min(len(line), 100)])
		}
		return nil, err
	}
	if !stop() {
		return nil, context.Cause(ctx) // its deadline is spoilt
	}
	return bytes.Clone(bytes.TrimRight(line, "\r\n")), nil
}

func (s *side) keep(conn *sideConn, limit int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.idle) >= limit {
		_ = conn.Close()
		return
	}
	s.idle = append(s.idle, conn)
}

// close closes what is kept.
func (s *side) close() {
	s.mu.Lock()
	idle := s.idle
	s.idle = nil
	s.mu.Unlock()
	for _, conn := range idle {
		_ = conn.Close()
	}
}
