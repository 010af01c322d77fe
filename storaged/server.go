package storaged

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/rs/zerolog"
)

// maxHeader bounds a header block, request line included, in bytes; MogileFS's
// daemons take as much.
const maxHeader = 64 << 10

// nethttpSlop is what net/http allows on top of MaxHeaderBytes.
const nethttpSlop = 4 << 10

// idleTimeout is how long a connection may wait for its next request. Trackers
// keep connections for as long as they can.
const idleTimeout = 5 * time.Minute

// headerTimeout bounds the time from the first byte of a header block to its
// last, and from the connection's beginning to the first.
const headerTimeout = 20 * time.Second

// capabilityHeader is the header that names what this daemon can do.
const capabilityHeader = "Mogile"

// capabilities is the value of [capabilityHeader]: the version of its form,
// then words. "md5" says that a PUT with a wrong Content-MD5 is refused.
const capabilities = "1 md5"

// bufferSize is how much of a file is in memory for one request, and more
// than most files have.
const bufferSize = 64 << 10

// sendPiece is how much of a file is prefetched, and then sent with sendfile.
const sendPiece = 1 << 20

// buffers are the buffers that bodies pass through.
type buffers struct{ pool sync.Pool }

func (b *buffers) get() *[bufferSize]byte {
	if p, ok := b.pool.Get().(*[bufferSize]byte); ok {
		return p
	}
	return new([bufferSize]byte)
}

func (b *buffers) put(p *[bufferSize]byte) { b.pool.Put(p) }

// Errors of a request's body. Their causes are wrapped with them.
var (
	errSlowBody      = errors.New("the client sent nothing for too long")
	errMalformedBody = errors.New("malformed chunked body")
	errBrokenBody    = errors.New("the client went away in the middle of the body")
)

// server puts a handler behind net/http on one listener.
type server struct {
	handler  handler
	listener *listener
	buffers  *buffers
	meter    *meter
	log      zerolog.Logger

	conns sync.WaitGroup // connections that net/http has not let go of
}

type connKey struct{}

func (s *server) addr() net.Addr {
	if s == nil {
		return nil
	}
	return s.listener.Addr()
}

// serve serves until ctx is cancelled, then lets the requests in progress
// finish until stop is cancelled.
func (s *server) serve(ctx, stop context.Context) error {
	hs := &http.Server{
		Handler:                      s,
		DisableGeneralOptionsHandler: true,
		ReadHeaderTimeout:            min(s.listener.timeout, headerTimeout),
		IdleTimeout:                  idleTimeout,
		MaxHeaderBytes:               maxHeader - nethttpSlop,
		ConnState:                    s.connState,
		ErrorLog:                     log.New(serverLog{s.log}, "", 0),
		BaseContext:                  func(net.Listener) context.Context { return context.WithoutCancel(ctx) },
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, connKey{}, c)
		},
	}
	failed := make(chan error, 1)
	go func() { failed <- hs.Serve(s.listener) }()
	defer s.conns.Wait()
	select {
	case err := <-failed:
		return fmt.Errorf("serve HTTP on %s: %w", s.listener.Addr(), errors.Join(err, hs.Close()))
	case <-ctx.Done():
	}
	defer s.listener.drain()()
	err := hs.Shutdown(stop)
	if err != nil { // out of patience: cut the rest off
		err = hs.Close()
	}
	<-failed
	if err != nil {
		return fmt.Errorf("stop HTTP on %s: %w", s.listener.Addr(), err)
	}
	return nil
}

func (s *server) connState(nc net.Conn, state http.ConnState) {
	c := nc.(*conn)
	switch state {
	case http.StateNew:
		s.conns.Add(1)
		s.listener.fresh(c)
	case http.StateActive:
		s.listener.active(c)
	case http.StateIdle:
		c.answering.Store(false)
		c.overflow = false
		s.listener.waiting(c)
	case http.StateClosed:
		s.conns.Done()
	}
}

// ServeHTTP translates between net/http and the handler.
func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c := r.Context().Value(connKey{}).(*conn)
	c.answering.Store(true)
	s.meter.inFlight.Inc()
	defer s.meter.inFlight.Dec()

	body := &body{from: r.Body, conn: c, timeout: s.listener.timeout}
	req := &request{
		method: r.Method, path: r.URL.Path, length: r.ContentLength, body: body,
		ranges: r.Header["Range"], contentRange: r.Header["Content-Range"], contentMD5: r.Header["Content-Md5"],
	}
	if _, announced := r.Trailer["Content-Md5"]; announced {
		req.trailerMD5 = func() []string { return r.Trailer["Content-Md5"] }
	}
	if r.ContentLength != 0 {
		body.extend()
	}
	// A client that has closed its side may still wait for the answer, and what
	// it asked for is done in any case; volumes and the drain bound the time.
	ctx := context.WithoutCancel(r.Context())
	a := s.handler.serve(ctx, req)
	if a.file != nil {
		defer a.file.Close() // opened for reading
	}
	sent, err := s.send(ctx, w, r.Method == http.MethodHead, &a)
	s.meter.request(r.Method, a.status, body.n, sent)
	s.report(r, &a, err)
}

// send writes the answer, and says how much of its body went out. The error is
// the client's; the disk's goes to the answer.
func (s *server) send(ctx context.Context, w http.ResponseWriter, isHead bool, a *answer) (int64, error) {
	if a.file == nil || isHead {
		s.writeHead(w, a)
		if isHead || len(a.text) == 0 {
			return 0, nil
		}
		n, err := w.Write(a.text)
		return int64(n), err
	}
	// The first piece is read before the head is written, so that a disk that
	// cannot read is an answer of its own; and through the volume, so that a
	// disk that hangs is noticed. Small files are done with that.
	buf := s.buffers.get()
	defer s.buffers.put(buf)
	n, err := readFull(a.file, buf[:min(bufferSize, a.size)], a.off)
	if err != nil {
		*a = answer{status: statusOf(err), err: err}
		s.writeHead(w, a)
		return 0, nil
	}
	s.writeHead(w, a)
	n, err = w.Write(buf[:n])
	sent := int64(n)
	if err != nil || sent == a.size {
		return sent, err
	}
	if f := a.file.OSFile(); f != nil {
		n, err := s.sendFile(ctx, w, a, f, sent)
		return sent + n, err
	}
	for sent < a.size {
		n, err := readFull(a.file, buf[:min(bufferSize, a.size-sent)], a.off+sent)
		if err != nil {
			a.err = err // net/http closes a connection whose answer is too short
			return sent, nil
		}
		n, err = w.Write(buf[:n])
		sent += int64(n)
		if err != nil {
			return sent, err
		}
	}
	return sent, nil
}

// sendFile sends what is left of the answer's file after sent bytes, without
// taking it to user space.
func (s *server) sendFile(ctx context.Context, w http.ResponseWriter, a *answer, f *os.File, sent int64) (int64, error) {
	if _, err := f.Seek(a.off+sent, io.SeekStart); err != nil {
		a.err = err
		return 0, nil
	}
	var total int64
	for left := a.size - sent; left > 0; left = a.size - sent - total {
		piece := min(left, sendPiece)
		// Sending waits for the network alone: what may wait for the disk
		// goes through the volume.
		if err := a.file.Prefetch(ctx, a.off+sent+total, piece); err != nil {
			a.err = err
			return total, nil
		}
		// net/http hands this to the connection's ReadFrom.
		n, err := w.(io.ReaderFrom).ReadFrom(&io.LimitedReader{R: f, N: piece})
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

func (s *server) writeHead(w http.ResponseWriter, a *answer) {
	h := w.Header()
	h["Status"] = []string{statusLine(a.status)}
	h[capabilityHeader] = []string{capabilities}
	h["Content-Length"] = []string{strconv.FormatInt(a.size, 10)}
	h["Content-Type"] = []string{"text/plain"}
	if a.status == http.StatusOK || a.status == http.StatusPartialContent {
		h["Content-Type"] = []string{"application/octet-stream"}
	}
	if !a.modified.IsZero() {
		h["Last-Modified"] = []string{a.modified.UTC().Format(http.TimeFormat)}
	}
	if a.contentRange != "" {
		h["Content-Range"] = []string{a.contentRange}
	}
	if a.acceptRanges {
		h["Accept-Ranges"] = []string{"bytes"}
	}
	// net/http replaces this where the connection must close.
	h["Connection"] = []string{"keep-alive"}
	if a.close {
		h["Connection"] = []string{"close"}
	}
	w.WriteHeader(a.status)
}

// report logs what an operator has to know. Clients that go away are for
// debugging, as are disks that are full, do not answer or are refused: these
// are told once, where that is noticed, not with each request.
func (s *server) report(r *http.Request, a *answer, sendErr error) {
	if a.err != nil && statusOf(a.err) == http.StatusInternalServerError {
		s.log.Error().Err(a.err).Str("method", r.Method).Str("path", r.URL.Path).Int("status", a.status).Msg("request failed")
		return
	}
	e := s.log.Debug()
	if !e.Enabled() {
		return
	}
	e.Err(errors.Join(a.err, sendErr)).Str("method", r.Method).Str("path", r.URL.Path).
		Int("status", a.status).Str("client", r.RemoteAddr).Msg("request")
}

// body is a request's body. While it has not ended the client must send
// something within the timeout.
type body struct {
	from    io.Reader
	conn    *conn
	timeout time.Duration
	n       int64
	until   time.Time // the deadline that is set
}

// extend moves the deadline ahead, not more than eight times in a timeout.
func (b *body) extend() {
	now := time.Now()
	if b.until.Sub(now) > b.timeout-b.timeout/8 {
		return
	}
	b.until = now.Add(b.timeout)
	b.conn.SetReadDeadline(b.until) // fails only where Read does
}

func (b *body) Read(p []byte) (int, error) {
	b.extend() // here, for the time that the disk takes is not the client's
	n, err := b.from.Read(p)
	b.n += int64(n)
	switch {
	case err == nil:
		return n, nil
	case err == io.EOF:
		// The next deadline is that of the idle connection. Until the answer
		// is out net/http watches for the client to go away, which must not
		// time out.
		b.conn.SetReadDeadline(time.Time{}) // see extend
		return n, io.EOF
	case errors.Is(err, os.ErrDeadlineExceeded):
		return n, fmt.Errorf("%w: %w", errSlowBody, err)
	case errors.Is(err, io.ErrUnexpectedEOF) || isNetError(err):
		return n, fmt.Errorf("%w: %w", errBrokenBody, err)
	}
	return n, fmt.Errorf("%w: %w", errMalformedBody, err)
}

func isNetError(err error) bool {
	_, ok := errors.AsType[net.Error](err)
	return ok
}

// serverLog passes on what net/http has to say, which is seldom and odd.
type serverLog struct{ log zerolog.Logger }

func (l serverLog) Write(p []byte) (int, error) {
	l.log.Warn().Str("detail", strings.TrimSpace(string(p))).Msg("HTTP server")
	return len(p), nil
}

// statusLine is "404 Not Found".
func statusLine(status int) string {
	return strconv.Itoa(status) + " " + http.StatusText(status)
}

// rawAnswer is an answer without a body that ends the connection, as it goes
// over the wire.
func rawAnswer(status int) []byte {
	line := statusLine(status)
	var b bytes.Buffer
	fmt.Fprintf(&b, "HTTP/1.1 %s\r\nStatus: %s\r\n%s: %s\r\nDate: %s\r\nContent-Length: 0\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\n",
		line, line, capabilityHeader, capabilities, time.Now().UTC().Format(http.TimeFormat))
	return b.Bytes()
}
