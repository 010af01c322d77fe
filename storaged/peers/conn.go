package peers

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"time"
)

// maxHead bounds the head of an answer, in bytes. Those of our daemons are far
// shorter.
const maxHead = 8 << 10

// conn is a connection to a storage daemon.
type conn struct {
	net.Conn
	addr  string
	buf   []byte // that heads are read into, and what comes with them
	r, w  int    // what is in buf and was not read
	since time.Time
}

func newConn(c net.Conn, addr string) *conn {
	return &conn{Conn: c, addr: addr, buf: make([]byte, maxHead)}
}

// abandon closes the connection, whoever waits for something from it.
func (c *conn) abandon() { _ = c.Close() } // nobody is left who could hear it

// buffered is how many bytes came with a head and were not read.
func (c *conn) buffered() int { return c.w - c.r }

// errUnanswered says that a connection ended before the first byte of an answer.
var errUnanswered = errors.New("no answer")

// ask sends a request for n bytes at off of a file, and reads the head of the
// answer. The daemon may be silent for no longer than patience.
func (c *conn) ask(path string, off, n int64, patience time.Duration) (head, error) {
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		return head{}, errors.Join(errUnanswered, err)
	}
	c.r, c.w = 0, 0
	request := fmt.Appendf(c.buf[:0], "GET /%s HTTP/1.1\r\nHost: %s\r\nUser-Agent: Mogile\r\nRange: bytes=%d-%d\r\n\r\n", path, c.addr, off, off+n-1)
	if _, err := c.Conn.Write(request); err != nil {
		return head{}, unanswered(err)
	}
	for {
		n, err := c.Conn.Read(c.buf[c.w:])
		// Where the end begins may have come before.
		from := max(0, c.w-len(headEnd)+1)
		c.w += n
		if end := bytes.Index(c.buf[from:c.w], headEnd); end >= 0 {
			c.r = from + end + len(headEnd)
			return parseHead(string(c.buf[:c.r]))
		}
		switch {
		case err != nil && c.w == 0:
			return head{}, unanswered(err)
		case err != nil:
			return head{}, err
		case c.w == len(c.buf):
			return head{}, errHead
		}
	}
}

// unanswered marks an error, unless the daemon was silent.
func unanswered(err error) error {
	if e, ok := errors.AsType[net.Error](err); ok && e.Timeout() {
		return err
	}
	return fmt.Errorf("%w: %w", errUnanswered, err)
}

// read reads some of a body.
func (c *conn) read(b []byte, patience time.Duration) (int, error) {
	if c.r < c.w {
		n := copy(b, c.buf[c.r:c.w])
		c.r += n
		return n, nil
	}
	if err := c.SetReadDeadline(time.Now().Add(patience)); err != nil {
		return 0, err
	}
	n, err := c.Conn.Read(b)
	if n == 0 && err == nil {
		err = io.ErrNoProgress
	}
	return n, err
}

// skip passes a body of n bytes, and reports whether it had come with its head.
func (c *conn) skip(n int64) bool {
	if int64(c.buffered()) != n {
		return false
	}
	c.r = c.w
	return true
}

// head is what matters of the head of an answer.
type head struct {
	status       int
	length       int64 // Content-Length; -1 where there is none
	contentRange string
	keep         bool // the connection is good for another request
}

// errHead says that a daemon answers what cannot be understood.
var errHead = errors.New("the answer is not HTTP as storage daemons speak it")

// headEnd is the empty line that ends a head, with the end of the line before.
var headEnd = []byte("\r\n\r\n")

// parseHead reads the head of an answer with headEnd behind it.
func parseHead(text string) (head, error) {
	line, fields, _ := strings.Cut(text, "\r\n")
	version, rest, ok := strings.Cut(line, " ")
	code, _, _ := strings.Cut(rest, " ")
	status, ok2 := parseNumber(code)
	if !ok || !ok2 || len(code) != 3 || version != "HTTP/1.1" && version != "HTTP/1.0" || status < 200 {
		return head{}, errHead
	}
	h := head{status: int(status), length: -1, keep: version == "HTTP/1.1"}
	for fields != "\r\n" && fields != "" {
		line, fields, _ = strings.Cut(fields, "\r\n")
		name, value, ok := strings.Cut(line, ":")
		value = strings.Trim(value, " \t")
		if !ok || name == "" || strings.ContainsAny(line, "\r\n\x00") || strings.ContainsAny(name, " \t") {
			return head{}, errHead
		}
		switch {
		case strings.EqualFold(name, "Content-Length"):
			n, ok := parseNumber(value)
			if !ok || h.length >= 0 && h.length != n {
				return head{}, errHead
			}
			h.length = n
		case strings.EqualFold(name, "Content-Range"):
			if h.contentRange != "" && h.contentRange != value {
				return head{}, errHead
			}
			h.contentRange = value
		case strings.EqualFold(name, "Transfer-Encoding"):
			return head{}, errHead // no file is sent so
		case strings.EqualFold(name, "Connection"):
			for _, word := range strings.Split(value, ",") {
				h.keep = h.keep && !strings.EqualFold(strings.Trim(word, " \t"), "close")
			}
		}
	}
	return h, nil
}

// kept are connections that are good for another request.
type kept struct {
	mu     sync.Mutex // guards what follows
	of     map[string][]*conn
	heard  map[string]time.Time // when a daemon answered, if it has ever since
	sweep  *time.Timer          // closes those that were kept for long, if there are any
	closed bool
}

// get is the one to a daemon that was used last, nil where there is none.
func (k *kept) get(addr string) *conn {
	k.mu.Lock()
	defer k.mu.Unlock()
	list := k.of[addr]
	n := len(list) - 1
	if n < 0 || time.Since(list[n].since) > keptFor {
		return nil
	}
	c := list[n]
	list[n] = nil
	k.of[addr] = list[:n]
	return c
}

// put keeps a connection.
func (k *kept) put(c *conn) {
	k.mu.Lock()
	defer k.mu.Unlock()
	list := k.of[c.addr]
	if k.closed || len(list) >= keptPerDaemon {
		c.abandon()
		return
	}
	if k.of == nil {
		k.of = map[string][]*conn{}
	}
	c.since = time.Now()
	k.of[c.addr] = append(list, c)
	if k.sweep == nil {
		k.sweep = time.AfterFunc(keptFor, k.expire)
	}
}

// maxHeard bounds the daemons of which it is known when they answered.
const maxHeard = 4096

// note has it known whether a daemon answered.
func (k *kept) note(addr string, answered bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !answered {
		delete(k.heard, addr)
		return
	}
	if k.heard == nil || len(k.heard) >= maxHeard {
		k.heard = map[string]time.Time{}
	}
	k.heard[addr] = time.Now()
}

// answers reports whether a daemon answered lately, and ever since.
func (k *kept) answers(addr string) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	when, ok := k.heard[addr]
	return ok && time.Since(when) < answersFor
}

// expire closes those that were kept for long.
func (k *kept) expire() {
	k.mu.Lock()
	defer k.mu.Unlock()
	for addr, list := range k.of {
		old := 0
		for old < len(list) && time.Since(list[old].since) >= keptFor {
			list[old].abandon()
			old++
		}
		if old == len(list) {
			delete(k.of, addr)
		} else {
			k.of[addr] = append([]*conn(nil), list[old:]...)
		}
	}
	k.sweep = nil
	if len(k.of) > 0 && !k.closed {
		k.sweep = time.AfterFunc(keptFor, k.expire)
	}
}

// close closes all, and those that come later.
func (k *kept) close() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.closed = true
	if k.sweep != nil {
		k.sweep.Stop()
	}
	for _, list := range k.of {
		for _, c := range list {
			c.abandon()
		}
	}
	clear(k.of)
}
