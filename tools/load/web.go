package load

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"time"

	"github.com/mogile/mogile/protocol"
)

// Web is one client's connections to storage daemons, one to each, kept open.
type Web struct {
	timeout time.Duration
	conns   []*webConn
	out     []byte
	chunk   []byte
}

type webConn struct {
	addr string
	nc   net.Conn // nil until it is needed
	in   *bufio.Reader
	used bool // an answer came on it: the daemon may have closed it since
}

// NewWeb makes no connection yet. An exchange has timeout to go on with each
// piece of a body.
func NewWeb(timeout time.Duration) *Web { return &Web{timeout: timeout} }

// Close closes the connections.
func (w *Web) Close() error {
	var errs []error
	for _, c := range w.conns {
		errs = append(errs, c.close())
	}
	return errors.Join(errs...)
}

func (c *webConn) close() error {
	if c.nc == nil {
		return nil
	}
	err := c.nc.Close()
	c.nc, c.used = nil, false
	return err
}

var (
	errPath   = errors.New("not a path such as http://HOST:PORT/…")
	errAnswer = errors.New("the storage daemon's answer makes no sense")
	errGone   = errors.New("the storage daemon closed the connection")
)

// at is the connection for a path, and the path on it.
func (w *Web) at(path []byte) (*webConn, []byte, error) {
	rest, ok := bytes.CutPrefix(path, []byte("http://"))
	slash := bytes.IndexByte(rest, '/')
	if !ok || slash < 0 {
		return nil, nil, fmt.Errorf("%q: %w", path, errPath)
	}
	for _, c := range w.conns {
		if c.addr == string(rest[:slash]) {
			return c, rest[slash:], nil
		}
	}
	c := &webConn{addr: string(rest[:slash]), in: bufio.NewReaderSize(nil, 16<<10)}
	w.conns = append(w.conns, c)
	return c, rest[slash:], nil
}

// Get reads a path and compares it with what is there to be.
func (w *Web) Get(path []byte, want *Content, n int64) error {
	c, local, err := w.at(path)
	if err != nil {
		return err
	}
	w.out = append(append(w.out[:0], "GET "...), local...)
	w.out = append(w.out, " HTTP/1.1\r\nHost: "...)
	w.out = append(w.out, c.addr...)
	w.out = append(w.out, "\r\n\r\n"...)
	status, length, err := w.exchange(c, nil, 0)
	if err == nil && status == 200 && length == want.Size() {
		err = w.compare(c, want, n)
	} else if err == nil && status == 200 {
		err = fmt.Errorf("%d bytes, not %d", length, want.Size())
	} else if err == nil {
		err = &protocol.StatusError{Code: status}
	}
	if err != nil {
		return errors.Join(fmt.Errorf("GET %s: %w", path, err), c.close())
	}
	return nil
}

// Put stores what is there to be.
func (w *Web) Put(path []byte, body *Content, n int64) error {
	c, local, err := w.at(path)
	if err != nil {
		return err
	}
	w.out = append(append(w.out[:0], "PUT "...), local...)
	w.out = append(w.out, " HTTP/1.1\r\nHost: "...)
	w.out = append(w.out, c.addr...)
	w.out = append(w.out, "\r\nContent-Length: "...)
	w.out = fmt.Appendf(w.out, "%d\r\n\r\n", body.Size())
	status, length, err := w.exchange(c, body, n)
	if err == nil && status != 200 && status != 201 && status != 204 {
		err = &protocol.StatusError{Code: status}
	}
	if err == nil && length > 0 {
		_, err = c.in.Discard(int(length))
	}
	if err != nil {
		return errors.Join(fmt.Errorf("PUT %s: %w", path, err), c.close())
	}
	return nil
}

// exchange sends the head in w.out, and the body where there is one, and reads
// the head of the answer. Where the daemon had closed a connection that was idle
// it does so on another.
func (w *Web) exchange(c *webConn, body *Content, n int64) (status int, length int64, err error) {
	for {
		again := c.used
		if c.nc == nil {
			if c.nc, err = net.DialTimeout("tcp", c.addr, w.timeout); err != nil {
				return 0, 0, err
			}
			c.in.Reset(c.nc)
		}
		status, length, err = w.once(c, body, n)
		if err == nil {
			c.used = true
		}
		if !errors.Is(err, errGone) || !again {
			return status, length, err
		}
		if err := c.close(); err != nil {
			return 0, 0, err
		}
	}
}

func (w *Web) once(c *webConn, body *Content, n int64) (status int, length int64, err error) {
	if err := c.nc.SetDeadline(time.Now().Add(w.timeout)); err != nil {
		return 0, 0, err
	}
	if err := w.send(c, body, n); err != nil {
		return 0, 0, fmt.Errorf("%w: %w", errGone, err)
	}
	line, err := c.in.ReadSlice('\n')
	if err != nil {
		if len(line) == 0 && !errors.Is(err, bufio.ErrBufferFull) {
			var timeout net.Error
			if errors.As(err, &timeout) && timeout.Timeout() {
				return 0, 0, err
			}
			return 0, 0, fmt.Errorf("%w: %w", errGone, err)
		}
		return 0, 0, err
	}
	if len(line) < len("HTTP/1.1 200") || !bytes.HasPrefix(line, []byte("HTTP/1.1 ")) {
		return 0, 0, fmt.Errorf("%w: %q", errAnswer, line)
	}
	status, length = int(Number(line[9:12])), -1
	if status == 204 {
		length = 0
	}
	for {
		if line, err = c.in.ReadSlice('\n'); err != nil {
			return 0, 0, err
		}
		line = bytes.TrimRight(line, "\r\n")
		if len(line) == 0 {
			break
		}
		if name, value, _ := bytes.Cut(line, []byte{':'}); len(name) == len("content-length") && strings.EqualFold("content-length", string(name)) {
			length = Number(bytes.TrimSpace(value))
		}
	}
	if length < 0 {
		return 0, 0, fmt.Errorf("%w: no Content-Length", errAnswer)
	}
	return status, length, nil
}

// small is the largest body that is copied behind its head, so that one system
// call sends both.
const small = 64 << 10

func (w *Web) send(c *webConn, body *Content, n int64) error {
	head, tail := [contentHead]byte{}, []byte(nil)
	if body == nil {
		_, err := c.nc.Write(w.out)
		return err
	}
	first, tail := body.parts(n, &head)
	w.out = append(w.out, first...)
	if len(tail) <= small {
		w.out = append(w.out, tail...)
		_, err := c.nc.Write(w.out)
		w.out = w.out[:len(w.out)-len(tail)-len(first)] // the head alone, should it be sent again
		return err
	}
	if _, err := c.nc.Write(w.out); err != nil {
		return err
	}
	w.out = w.out[:len(w.out)-len(first)]
	for len(tail) > 0 {
		piece := tail[:min(len(tail), 1<<20)]
		if err := c.nc.SetDeadline(time.Now().Add(w.timeout)); err != nil {
			return err
		}
		if _, err := c.nc.Write(piece); err != nil {
			return err
		}
		tail = tail[len(piece):]
	}
	return nil
}

// errBytes is content that differs.
var errBytes = errors.New("other bytes than were stored")

func (w *Web) compare(c *webConn, want *Content, n int64) error {
	var head [contentHead]byte
	first, tail := want.parts(n, &head)
	if err := w.expect(c, first); err != nil {
		return err
	}
	return w.expect(c, tail)
}

// expect reads exactly want.
func (w *Web) expect(c *webConn, want []byte) error {
	for len(want) > 0 {
		if c.in.Buffered() == 0 && len(want) > c.in.Size() {
			// Past the reader's buffer, with a deadline of its own.
			if w.chunk == nil {
				w.chunk = make([]byte, 256<<10)
			}
			if err := c.nc.SetDeadline(time.Now().Add(w.timeout)); err != nil {
				return err
			}
			got := w.chunk[:min(len(w.chunk), len(want))]
			if _, err := io.ReadFull(c.nc, got); err != nil {
				return err
			}
			if !bytes.Equal(got, want[:len(got)]) {
				return errBytes
			}
			want = want[len(got):]
			continue
		}
		k := min(len(want), max(c.in.Buffered(), 1))
		got, err := c.in.Peek(k)
		if err != nil {
			return err
		}
		if !bytes.Equal(got, want[:k]) {
			return errBytes
		}
		if _, err := c.in.Discard(k); err != nil {
			return err
		}
		want = want[k:]
	}
	return nil
}
