package storaged

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/storaged/volume"
)

// idleTimeout is how long a connection may wait for its next request. Trackers
// keep connections for as long as they can.
const idleTimeout = 5 * time.Minute

// headerTimeout bounds the time from the first byte of a header block to its
// last, and from the connection's beginning to the first.
const headerTimeout = 20 * time.Second

// capabilityHeader is the header that names what this daemon can do.
const capabilityHeader = "Mogile"

// capabilities are the beginning of the value of [capabilityHeader]: the version
// of its form, then words. "md5" says that a PUT with a wrong Content-MD5 is
// refused, "sum" that a GET tells the stored sum where that is wanted, and that
// the side channel verifies files. The verbs of the orders that are taken
// follow.
const capabilities = "1 md5 sum"

// Headers with which a client asks for the stored sum of a file ("sum"), and is
// told it: length in bytes and CRC32C in hexadecimal.
const (
	wantSum   = "sum"
	sumOfFile = "Mogile-Sum"
)

// bufferSize is how much of a file is in memory for one request, and more
// than most files have.
const bufferSize = 64 << 10

// sendPiece is how much of a file is prefetched, and then sent with sendfile.
const sendPiece = 1 << 20

// buffers are the buffers that bodies pass through. In front of the body there
// is room for the head of its answer.
type buffers struct{ pool sync.Pool }

type buffer [maxAnswerHead + bufferSize]byte

func (b *buffers) get() *buffer {
	if p, ok := b.pool.Get().(*buffer); ok {
		return p
	}
	return new(buffer)
}

func (b *buffers) put(p *buffer) { b.pool.Put(p) }

// keepReading is how much of a body that nobody wants is read for the sake of
// the connection, in bytes.
const keepReading = 256 << 10

// lingerTime is for how long a connection that ends with an answer goes on to
// be read. A client that is still sending would not see the answer otherwise,
// for the system resets connections with unread input.
const lingerTime = 5 * time.Second

// server serves HTTP/1.0 and HTTP/1.1 to a handler's clients on one listener.
// Each connection has a goroutine, which answers one request after the other.
type server struct {
	handler  handler
	listener *listener
	verbs    string // what is behind capabilities, with a blank before each word
	buffers  *buffers
	heads    sync.Pool // of *[maxHeader]byte, for large header blocks
	meter    *meter
	log      zerolog.Logger
	date     atomic.Pointer[dateLine]
}

func (s *server) addr() net.Addr {
	if s == nil {
		return nil
	}
	return s.listener.Addr()
}

// serve serves until ctx is cancelled, then lets the requests in progress
// finish until stop is cancelled.
func (s *server) serve(ctx, stop context.Context) error {
	var conns sync.WaitGroup
	failed := make(chan error, 1)
	// A client that has closed its side may still wait for the answer, and what
	// it asked for is done in any case; volumes and the drain bound the time.
	background := context.WithoutCancel(ctx)
	go func() {
		failed <- s.listener.acceptEach(func(c *conn) {
			conns.Add(1)
			go s.converse(background, c, &conns)
		})
	}()
	var err error
	select {
	case err = <-failed:
		failed <- nil
	case <-ctx.Done():
	}
	if closeErr := ignoreClosed(s.listener.Close()); err == nil {
		err = closeErr
	}
	<-failed
	defer s.listener.drain()()
	cut := context.AfterFunc(stop, func() {
		s.listener.each(func(c *conn) { c.Close() }) // out of patience
	})
	defer cut()
	conns.Wait()
	if err != nil {
		return fmt.Errorf("serve HTTP on %s: %w", s.listener.Addr(), err)
	}
	return nil
}

// converse answers the requests of one connection, which is among open until it
// is closed.
func (s *server) converse(ctx context.Context, c *conn, open *sync.WaitGroup) {
	in := newInput(c, &s.heads)
	x := &session{server: s, conn: c, in: in, body: body{in: in, conn: c}, open: open}
	x.late = x.takeOver
	defer x.end()
	defer c.survive()
	defer func() {
		in.r, in.w = 0, 0
		in.shrink()
	}()
	for patience := x.headerTimeout(); ; patience = idleTimeout {
		raw, err := x.await(patience)
		if errors.Is(err, errLongLine) {
			err = malformed("header block is too long")
		}
		var h head
		if err == nil {
			h, err = parseHead(raw)
		}
		if no, ok := errors.AsType[*refusal](err); ok {
			s.listener.active(c)
			x.body = body{in: in, conn: c, err: err}
			a := answer{status: no.status, close: true, err: err}
			x.finish(ctx, &h, &a)
			x.linger()
			return
		}
		if err != nil {
			return // the client went away, or was silent for too long
		}
		if more := x.answer(ctx, &h); !more {
			return
		}
	}
}

// session is a connection and what its requests need.
type session struct {
	*server
	conn *conn
	in   *input
	body body
	out  [maxAnswerHead]byte
	open *sync.WaitGroup

	head  *head       // of the request that is being answered
	late  volume.Late // takeOver
	taken bool        // by takeOver; only converse looks
}

// end closes the connection, unless takeOver does.
func (x *session) end() {
	if !x.taken {
		x.conn.Close() // nobody is left who could hear it
		x.open.Done()
	}
}

// takeOver answers in place of converse, which is stuck in a disk, and ends the
// connection. What converse, or the disk, may still use it leaves alone: the
// request and its buffers.
func (x *session) takeOver(err error) {
	defer x.open.Done()
	defer x.conn.Close() // nobody is left who could hear it
	defer x.conn.survive()
	defer x.meter.inFlight.Dec()
	a := failed(err)
	a.close = true
	if x.finish(context.Background(), x.head, &a) == nil {
		x.linger()
	}
}

// headerTimeout is how long a header block may take, and the first one's
// beginning.
func (x *session) headerTimeout() time.Duration { return min(headerTimeout, x.listener.timeout) }

// await waits for a header block: for its first byte as long as patience, for
// all of it as long as a header block may take.
func (x *session) await(patience time.Duration) ([]byte, error) {
	if x.in.buffered() == 0 {
		x.listener.waiting(x.conn)
		x.conn.readWithin(patience)
		if err := x.in.fill(); err != nil {
			return nil, err
		}
	}
	x.listener.active(x.conn)
	if !x.in.hasHead() {
		x.conn.readUntil(time.Now().Add(x.headerTimeout()))
	}
	return x.in.head()
}

// answer has a request answered, and reports whether there may be another.
func (x *session) answer(ctx context.Context, h *head) bool {
	x.meter.inFlight.Inc()
	defer func() {
		if !x.taken {
			x.meter.inFlight.Dec()
		}
	}()
	x.head = h
	x.body.reset(h, func() error {
		_, err := x.conn.Write([]byte("HTTP/1.1 100 Continue\r\n\r\n"))
		return err
	})
	r := &request{
		method: h.method, path: h.path, length: h.length, body: &x.body, minor: h.minor,
		cut:    func() { x.conn.readUntil(time.Now()) },
		late:   x.late,
		local:  isLoopback(x.listener.Addr()) && isLoopback(x.conn.RemoteAddr()),
		ranges: h.ranges, contentRange: h.contentRange, contentMD5: h.contentMD5, modifiedSince: h.modifiedSince,
		contentType: h.contentType, want: h.want, order: h.order,
	}
	if h.sumFollows && x.body.chunked {
		r.trailerMD5 = func() []string { return x.body.trailer }
	}
	a := x.handler.serve(ctx, r)
	if x.taken = a.late; x.taken {
		return false
	}
	if a.file != nil {
		defer a.file.Close() // opened for reading
	}
	if a.first != nil {
		defer x.buffers.put(a.first)
	}
	if a.parts != nil {
		defer a.parts.close()
	}
	// What is left of the body stands before the next request. A client that
	// waits to be told to send it may or may not do so now.
	if !a.close && (x.body.proceed != nil || !x.body.discard(keepReading)) {
		a.close = true
	}
	if !h.keep || x.listener.isDraining() {
		a.close = true
	}
	if err := x.finish(ctx, h, &a); err != nil {
		return false
	}
	if a.close {
		x.linger()
	}
	return !a.close
}

// finish sends the answer, counts and logs it. The error is the client's, or
// says that the answer could not be completed.
func (x *session) finish(ctx context.Context, h *head, a *answer) error {
	sent, err := x.send(ctx, h.method == http.MethodHead, a)
	x.meter.request(h.method, a.status, x.body.n, sent)
	x.report(x.conn, h, a, err)
	if err == nil && sent < a.size && h.method != http.MethodHead {
		return io.ErrUnexpectedEOF // which the client sees by the connection's end
	}
	return err
}

// linger has the client see the answer that ends the connection, though it may
// be sending still: a body that nobody wants, more requests, or the empty line
// that old clients send behind a body.
func (x *session) linger() {
	x.conn.readUntil(time.Now().Add(lingerTime))
	x.listener.waiting(x.conn) // its place is for others to have
	if x.conn.CloseWrite() == nil {
		io.Copy(io.Discard, x.conn.TCPConn) // ends with the client or the deadline
	}
}

// maxAnswerHead is more than the head of any answer has, in bytes.
const maxAnswerHead = 1 << 10

// send writes the answer, and says how much of its body went out. The error is
// the client's; the disk's goes to the answer.
func (x *session) send(ctx context.Context, isHead bool, a *answer) (int64, error) {
	if a.stream != nil {
		return x.stream(ctx, a)
	}
	if a.parts != nil && !isHead {
		return x.sendParts(ctx, a)
	}
	if a.file == nil && a.first == nil || isHead {
		out := x.appendHead(x.out[:0], a)
		if !isHead {
			out = append(out, a.text...)
		}
		if _, err := x.conn.Write(out); err != nil || isHead {
			return 0, err
		}
		return int64(len(a.text)), nil
	}
	// The first piece is read before the head is written, so that a disk that
	// cannot read is an answer of its own; and through the volume, so that a
	// disk that hangs is noticed. Small files are done with that, and with one
	// call.
	buf, n := a.first, a.read
	if buf == nil {
		buf = x.buffers.get()
		defer x.buffers.put(buf)
		var err error
		if n, err = readFull(a.file, buf[maxAnswerHead:][:min(bufferSize, a.size)], a.off); err != nil {
			*a = answer{status: statusOf(err), close: a.close, err: err}
			_, err := x.conn.Write(x.appendHead(x.out[:0], a))
			return 0, err
		}
	}
	out := x.appendHead(x.out[:0], a)
	from := maxAnswerHead - copy(buf[maxAnswerHead-len(out):], out)
	if _, err := x.conn.Write(buf[from : maxAnswerHead+n]); err != nil {
		return 0, err
	}
	sent := int64(n)
	if sent == a.size {
		return sent, nil
	}
	if f := a.file.OSFile(); f != nil {
		n, err := x.sendFile(ctx, a, f, sent)
		return sent + n, err
	}
	for sent < a.size {
		n, err := readFull(a.file, buf[:min(bufferSize, a.size-sent)], a.off+sent)
		if err != nil {
			a.err = err
			return sent, nil
		}
		n, err = x.conn.Write(buf[:n])
		sent += int64(n)
		if err != nil {
			return sent, err
		}
	}
	return sent, nil
}

// sendParts sends a body piece by piece. The first is made before the head is
// written, so that one that cannot be made is an answer of its own.
func (x *session) sendParts(ctx context.Context, a *answer) (int64, error) {
	piece, err := a.parts.next(ctx)
	if err != nil {
		*a = answer{status: statusOf(err), close: a.close, err: err}
		_, err := x.conn.Write(x.appendHead(x.out[:0], a))
		return 0, err
	}
	if _, err := x.conn.Write(x.appendHead(x.out[:0], a)); err != nil {
		return 0, err
	}
	var sent int64
	for {
		n, err := x.conn.Write(piece[:min(int64(len(piece)), a.size-sent)])
		if sent += int64(n); err != nil || sent == a.size {
			return sent, err
		}
		if piece, err = a.parts.next(ctx); err != nil {
			a.err = err
			return sent, nil
		}
	}
}

// sendFile sends what is left of the answer's file after sent bytes, without
// taking it to user space.
func (x *session) sendFile(ctx context.Context, a *answer, f *os.File, sent int64) (int64, error) {
	if _, err := f.Seek(a.off+sent, io.SeekStart); err != nil {
		a.err = err
		return 0, nil
	}
	var total int64
	for left := a.size - sent; left > 0; left = a.size - sent - total {
		piece := min(left, sendPiece-(sent+total)%sendPiece)
		// Sending waits for the network alone: what may wait for the disk
		// goes through the volume.
		if err := a.file.Prefetch(ctx, a.off+sent+total, piece); err != nil {
			a.err = err
			return total, nil
		}
		n, err := x.conn.ReadFrom(&io.LimitedReader{R: f, N: piece})
		total += n
		switch {
		case err != nil:
			return total, err
		case n < piece:
			a.err = io.ErrUnexpectedEOF
			return total, nil
		}
	}
	return total, nil
}

// readFull fills p from off.
func readFull(r io.ReaderAt, p []byte, off int64) (int, error) {
	n, err := r.ReadAt(p, off)
	switch {
	case n == len(p):
		return n, nil
	case err == nil || errors.Is(err, io.EOF):
		return n, io.ErrUnexpectedEOF
	}
	return n, err
}

// appendHead appends the head of an answer, in the order of MogileFS's daemons.
// The version is 1.1, whichever the client's is.
func (s *server) appendHead(b []byte, a *answer) []byte {
	line := statusLine(a.status)
	b = append(append(b, "HTTP/1.1 "...), line...)
	b = append(append(b, "\r\nStatus: "...), line...)
	b = append(append(b, "\r\nDate: "...), s.now()...)
	if !a.modified.IsZero() {
		b = appendTime(append(b, "\r\nLast-Modified: "...), a.modified)
	}
	switch {
	case a.stream != nil:
		b = append(b, "\r\nTransfer-Encoding: chunked\r\nContent-Type: text/plain"...)
	case a.status != http.StatusNotModified: // where it would be the file's
		b = strconv.AppendInt(append(b, "\r\nContent-Length: "...), a.size, 10)
		if a.status == http.StatusOK || a.status == http.StatusPartialContent {
			b = append(b, "\r\nContent-Type: application/octet-stream"...)
		} else {
			b = append(b, "\r\nContent-Type: text/plain"...)
		}
	}
	if a.contentRange != "" {
		b = append(append(b, "\r\nContent-Range: "...), a.contentRange...)
	}
	if a.acceptRanges {
		b = append(b, "\r\nAccept-Ranges: bytes"...)
	}
	if a.sum != nil {
		b = fmt.Appendf(b, "\r\n%s: %d %08x", sumOfFile, a.sum.Length, a.sum.CRC32C)
	}
	if a.suspects > 0 {
		b = strconv.AppendInt(append(b, "\r\n"+protocol.SuspectsHeader+": "...), int64(a.suspects), 10)
	}
	if a.close {
		b = append(b, "\r\nConnection: close"...)
	} else {
		b = append(b, "\r\nConnection: keep-alive"...)
	}
	b = append(b, "\r\n"+capabilityHeader+": "+capabilities...)
	return append(append(b, s.verbs...), "\r\n\r\n"...)
}

// lastModified is the form of a time in headers.
func lastModified(t time.Time) string { return string(appendTime(nil, t)) }

// appendTime appends t as http.TimeFormat has it, in a tenth of the time that
// Format takes.
func appendTime(b []byte, t time.Time) []byte {
	t = t.UTC()
	year, month, day := t.Date()
	hour, minute, second := t.Clock()
	if year < 0 || year > 9999 {
		return t.AppendFormat(b, http.TimeFormat)
	}
	two := func(n int) { b = append(b, byte('0'+n/10), byte('0'+n%10)) }
	b = append(append(b, t.Weekday().String()[:3]...), ", "...)
	two(day)
	b = append(append(append(b, ' '), month.String()[:3]...), ' ')
	two(year / 100)
	two(year % 100)
	b = append(b, ' ')
	two(hour)
	b = append(b, ':')
	two(minute)
	b = append(b, ':')
	two(second)
	return append(b, " GMT"...)
}

// dateLine is the value of Date for one second.
type dateLine struct {
	second int64
	text   string
}

// now is the value of Date.
func (s *server) now() string {
	now := time.Now()
	d := s.date.Load()
	if d == nil || d.second != now.Unix() {
		d = &dateLine{now.Unix(), lastModified(now)}
		s.date.Store(d)
	}
	return d.text
}

// report logs what an operator has to know. Clients that go away are for
// debugging, as are disks that are full, do not answer or are refused: these
// are told once, where that is noticed, not with each request.
func (s *server) report(c *conn, h *head, a *answer, sendErr error) {
	if a.err != nil && statusOf(a.err) == http.StatusInternalServerError {
		s.log.Error().Err(a.err).Str("method", h.method).Str("path", h.path).Int("status", a.status).Msg("request failed")
		return
	}
	e := s.log.Debug()
	if !e.Enabled() {
		return
	}
	e.Err(errors.Join(a.err, sendErr)).Str("method", h.method).Str("path", h.path).
		Int("status", a.status).Stringer("client", c.RemoteAddr()).Msg("request")
}

// statusLine is "404 Not Found".
func statusLine(status int) string {
	return strconv.Itoa(status) + " " + http.StatusText(status)
}
