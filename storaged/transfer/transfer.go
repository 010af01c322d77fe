// Package transfer fetches files from other storage daemons onto the devices of
// this one, as trackers order it.
//
// A file lands complete, with the length and the checksum that the order names,
// and durably (see package volume), or nothing of it is left. What is compared
// are the bytes as they were received, which are those that are written: a disk
// that stores something else than it was given is for a scrub to find. A source
// that knows the sum of the file that it has tells it, and is held to it.
//
// A transfer lives as long as its context. A [Transfers.Cancel] of its path ends
// it, so that a file is not there again after it was deleted. Two orders for one
// path do not run at a time. A client's upload to the path is not kept out: of
// two that land, both complete, the later one stays, and their content is the
// same where both are of the file whose number the path has.
//
// An order that is carried out again, which whoever can listen on the wire may
// bring about after this daemon was started anew, does no harm but work: it
// lands the same file at the same path, or fails and changes nothing. Should the
// copy have been dropped meanwhile it is a stray, which no tracker hands out.
//
// Memory does not grow with the size of files. Places are limited for each
// device, and a source never has more than half of those of one, so that a
// source that hangs delays nobody but itself, and a device that hangs none but
// those who want it.
package transfer

import (
	"context"
	"errors"
	"fmt"
	"hash"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
	"golang.org/x/time/rate"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/storaged/volume"
)

// Options are the settings of [Transfers]. The zero value works, but for the
// docroot.
type Options struct {
	Docroot *volume.Docroot
	// PerDevice is how many transfers to one device run at a time; others wait.
	// 0 means DefaultPerDevice.
	PerDevice int
	// Bandwidth is how many bytes a second all transfers together may fetch; 0
	// means any number.
	Bandwidth int64
	// SourceTimeout is how long a source may be silent; 0 means 45 s, as in
	// MogileFS 2.73's copies.
	SourceTimeout time.Duration
	// ConnTimeout is how long connecting to a source may take; 0 means 5 s.
	ConnTimeout time.Duration

	Registerer prometheus.Registerer // nil: no metrics are shown
	Log        zerolog.Logger
}

// DefaultPerDevice is enough to keep a disk busy while small files are flushed,
// and not so many that large ones make it seek all the time.
const DefaultPerDevice = 8

const (
	// bufferSize is how much of a file is in memory for one transfer, beside
	// what the volume has.
	bufferSize = 64 << 10
	// limitedPiece is how many bytes are fetched at a time where bandwidth is
	// limited: little enough that no source takes a slow transfer for a dead one.
	limitedPiece = 16 << 10
	// leastRate is the least that a source must bring, in bytes a second.
	leastRate = 16 << 10
	// timeoutsOfGrace is how many times SourceTimeout a source may take, whatever
	// its rate.
	timeoutsOfGrace = 10
	// patience is how long a transfer waits for a place.
	patience = time.Minute
)

// Transfers are all transfers of a daemon. Its methods may be called
// concurrently.
type Transfers struct {
	o       Options
	source  *http.Transport
	limit   *rate.Limiter // nil: none
	buffers sync.Pool     // of *[bufferSize]byte
	places  places
	meter   meter

	mu      sync.Mutex // guards running
	running map[path]*running
}

// path is where a transfer lands.
type path struct {
	dev  protocol.DevID
	name string // below the device
}

// running is a transfer that has begun.
type running struct {
	ending func() error // not nil once it was told to end
	cancel context.CancelCauseFunc
	over   chan struct{} // closed
}

// New makes Transfers. They must be closed when the last has ended.
func New(o Options) *Transfers {
	if o.PerDevice <= 0 {
		o.PerDevice = DefaultPerDevice
	}
	if o.SourceTimeout <= 0 {
		o.SourceTimeout = 45 * time.Second
	}
	if o.ConnTimeout <= 0 {
		o.ConnTimeout = 5 * time.Second
	}
	dial := net.Dialer{Timeout: o.ConnTimeout, KeepAlive: 30 * time.Second}
	t := &Transfers{
		o: o,
		source: &http.Transport{
			Proxy:                  nil, // whatever the environment says
			DialContext:            dial.DialContext,
			DisableCompression:     true,
			MaxIdleConnsPerHost:    8 * o.PerDevice, // several devices fetch from one host
			MaxIdleConns:           64 * o.PerDevice,
			IdleConnTimeout:        30 * time.Second,
			MaxResponseHeaderBytes: 64 << 10,
		},
		places:  places{perDevice: o.PerDevice, of: map[protocol.DevID]*devicePlaces{}},
		running: map[path]*running{},
		meter:   newMeter(o.Registerer),
	}
	t.buffers.New = func() any { return new([bufferSize]byte) }
	t.limit = newLimit(o.Bandwidth)
	return t
}

// newLimit is a limit of n bytes a second, nil where that is 0.
func newLimit(n int64) *rate.Limiter {
	if n <= 0 {
		return nil
	}
	return rate.NewLimiter(rate.Limit(n), limitedPiece)
}

// Close gives the connections up that are kept for further transfers.
func (t *Transfers) Close() { t.source.CloseIdleConnections() }

// Error is why a file was not copied. It is told to the tracker.
type Error struct {
	Refusal *protocol.Error // of a code that protocol.CopyOrder's verb has, or protocol.ErrBadOrder
	Landed  bool            // the file may be there all the same
	Corrupt bool            // the source has another content than it should have
	Full    bool            // the destination's disk is full
	Err     error           // the reason
}

// Error is the code and the reason.
func (e *Error) Error() string { return e.Refusal.Code + ": " + e.Err.Error() }

// Unwrap gives the refusal and the reason.
func (e *Error) Unwrap() []error { return []error{e.Refusal, e.Err} }

// Fields are what is told beside the refusal.
func (e *Error) Fields() protocol.Args {
	var a protocol.Args
	for _, f := range []struct {
		name string
		is   bool
	}{{"landed", e.Landed}, {"corrupt", e.Corrupt}, {"full", e.Full}} {
		if f.is {
			a.Add(f.name, "1")
		}
	}
	return a
}

func refused(code *protocol.Error, err error) *Error {
	return &Error{Refusal: &protocol.Error{Code: code.Code, Text: err.Error()}, Err: err}
}

// Causes of a transfer's end.
var (
	errDeleted  = errors.New("its path was deleted")
	errNoPlace  = errors.New("other transfers keep the device busy")
	errTwice    = errors.New("another transfer to the path is under way")
	errSilent   = errors.New("the source is silent")
	errTooSlow  = errors.New("the source is too slow")
	errNotAsked = errors.New("the source has another length")
)

// Copy carries an order out. progress, which may be nil, is told of the bytes
// that were written. Its errors are of type *Error.
func (t *Transfers) Copy(ctx context.Context, c protocol.CopyOrder, progress func(done int64)) (protocol.CopyReport, error) {
	began := time.Now()
	report, err := t.copy(ctx, c, progress)
	result := "ok"
	var e *Error
	switch {
	case errors.As(err, &e):
		result = e.Refusal.Code
	case report.Present:
		result = "present"
	}
	t.meter.total.WithLabelValues(result).Inc()
	event := t.o.Log.Debug()
	if e != nil && (e.Corrupt || e.Refusal.Is(protocol.ErrCopyDest)) {
		event = t.o.Log.Warn()
	}
	event.Err(err).Uint64("fid", uint64(c.FID)).Uint32("devid", uint32(c.Dev)).Str("from", c.From).Int64("length", c.Length).
		Str("result", result).Dur("took", time.Since(began)).Msg("transfer ended")
	return report, err
}

func (t *Transfers) copy(ctx context.Context, c protocol.CopyOrder, progress func(int64)) (protocol.CopyReport, error) {
	from, err := sourceURL(c.From)
	if err != nil {
		return protocol.CopyReport{}, refused(protocol.ErrBadOrder, err)
	}
	_, name, _ := protocol.CutDevice(c.FID.Path(c.Dev))
	v, err := t.o.Docroot.Volume(c.Dev)
	if err != nil {
		return protocol.CopyReport{}, t.blame(ctx, protocol.ErrCopyDest, err)
	}
	ctx, end, err := t.begin(ctx, path{c.Dev, name})
	if err != nil {
		return protocol.CopyReport{}, refused(protocol.ErrCopyBusy, err)
	}
	defer end()
	leave, err := t.place(ctx, c.Dev, from.Host)
	if err != nil {
		return protocol.CopyReport{}, t.blame(ctx, protocol.ErrCopyBusy, err)
	}
	defer leave()
	t.meter.running.Inc()
	defer t.meter.running.Dec()
	if u, err := v.Usage(); err == nil && c.Length > u.Total*1024 {
		return protocol.CopyReport{}, t.blame(ctx, protocol.ErrCopyDest, fmt.Errorf("%d bytes: %w", c.Length, volume.ErrNoSpace))
	}
	if report, ok := t.present(ctx, v, name, c); ok {
		return report, nil
	}
	return t.fetch(ctx, v, name, from, c, progress)
}

// sourceURL checks where a file is to be fetched from.
func sourceURL(text string) (*url.URL, error) {
	u, err := url.Parse(text)
	switch {
	case err != nil:
		return nil, err
	case u.Scheme != "http" || u.Host == "" || u.User != nil || u.Fragment != "" || u.RawQuery != "" || !strings.HasPrefix(u.Path, "/"):
		return nil, fmt.Errorf("%q is not the URL of a file on a storage daemon", text)
	}
	return u, nil
}

// Enter enters a file that comes to a path below a device in another way than by
// Copy: no transfer to the path begins before it has ended, and Cancel ends it. The
// error is that of another that is under way.
func (t *Transfers) Enter(ctx context.Context, dev protocol.DevID, name string) (_ context.Context, end func(), err error) {
	return t.begin(ctx, path{dev, name})
}

// begin enters a transfer to p, of which there is one at a time. One that was
// told to end is waited for.
func (t *Transfers) begin(ctx context.Context, p path) (_ context.Context, end func(), err error) {
	own, cancel := context.WithCancelCause(ctx)
	r := &running{ending: own.Err, cancel: cancel, over: make(chan struct{})}
	for {
		t.mu.Lock()
		other := t.running[p]
		if other == nil {
			t.running[p] = r
			t.mu.Unlock()
			return own, func() {
				t.mu.Lock()
				delete(t.running, p)
				t.mu.Unlock()
				cancel(nil)
				close(r.over)
			}, nil
		}
		t.mu.Unlock()
		if other.ending() == nil {
			cancel(nil)
			return nil, nil, errTwice
		}
		select {
		case <-other.over:
		case <-ctx.Done():
			cancel(nil)
			return nil, nil, context.Cause(ctx)
		}
	}
}

// Cancel ends the transfer to a path below a device, if there is one, and
// returns when it has ended: what it may have landed can be removed then. The
// error is ctx's.
func (t *Transfers) Cancel(ctx context.Context, dev protocol.DevID, name string) error {
	t.mu.Lock()
	r := t.running[path{dev, name}]
	t.mu.Unlock()
	if r == nil {
		return nil
	}
	r.cancel(errDeleted)
	select {
	case <-r.over:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("cancel the transfer to dev%d/%s: %w", dev, name, ctx.Err())
	}
}

// place waits for a place at the device.
func (t *Transfers) place(ctx context.Context, dev protocol.DevID, source string) (leave func(), err error) {
	t.meter.waiting.Inc()
	defer t.meter.waiting.Dec()
	ctx, cancel := context.WithTimeoutCause(ctx, patience, errNoPlace)
	defer cancel()
	return t.places.enter(ctx, dev, source)
}

// blame is the refusal for an error: whatever went wrong in a transfer that was
// told to end is for that.
func (t *Transfers) blame(ctx context.Context, code *protocol.Error, err error) *Error {
	if ctx.Err() != nil {
		return refused(protocol.ErrCopyCancelled, context.Cause(ctx))
	}
	e := refused(code, err)
	e.Full = errors.Is(err, volume.ErrNoSpace)
	return e
}

// present reports whether the destination has the file already: of the length
// and with the checksum that are wanted, and with the content that was stored.
// Without a checksum that could not be known.
func (t *Transfers) present(ctx context.Context, v *volume.Volume, name string, c protocol.CopyOrder) (protocol.CopyReport, bool) {
	if c.Want.IsZero() {
		return protocol.CopyReport{}, false
	}
	f, err := v.Open(ctx, name)
	if err != nil {
		return protocol.CopyReport{}, false
	}
	defer f.Close() // opened for reading
	stored, ok := f.Sum()
	if !ok || f.Size() != c.Length {
		return protocol.CopyReport{}, false
	}
	buf := t.buffers.Get().(*[bufferSize]byte)
	defer t.buffers.Put(buf)
	h := c.Want.Type.New()
	var got volume.Sum
	for {
		n, err := f.Read(buf[:])
		got = got.Add(buf[:n])
		h.Write(buf[:n]) // hashes do not fail
		if err == io.EOF {
			break
		}
		if err != nil || ctx.Err() != nil {
			return protocol.CopyReport{}, false
		}
	}
	sum := protocol.Checksum{Type: c.Want.Type, Sum: h.Sum(nil)}
	if got != stored || !sum.Equal(c.Want) {
		return protocol.CopyReport{}, false
	}
	return protocol.CopyReport{Length: got.Length, CRC32C: got.CRC32C, Digest: sum, Present: true}, true
}

// fetch has the file land.
func (t *Transfers) fetch(ctx context.Context, v *volume.Volume, name string, from *url.URL, c protocol.CopyOrder, progress func(int64)) (protocol.CopyReport, error) {
	src, err := t.open(ctx, from, c.Length)
	if err != nil {
		return protocol.CopyReport{}, t.blame(ctx, SourceCode(err), err)
	}
	defer src.Close()
	up, err := v.Create(ctx, name)
	if err != nil {
		return protocol.CopyReport{}, t.blame(ctx, protocol.ErrCopyDest, err)
	}
	defer up.Abort()
	typ := c.HashType
	if !c.Want.IsZero() {
		typ = c.Want.Type
	}
	h := typ.New() // nil where none is asked for
	if e := t.pour(ctx, src, up, h, c, progress); e != nil {
		return protocol.CopyReport{}, e
	}
	report := protocol.CopyReport{Length: up.Sum().Length, CRC32C: up.Sum().CRC32C}
	if h != nil {
		report.Digest = protocol.Checksum{Type: typ, Sum: h.Sum(nil)}
	}
	if err := src.check(report, c); err != nil {
		e := t.blame(ctx, protocol.ErrCopySource, err)
		e.Corrupt = true
		return protocol.CopyReport{}, e
	}
	if err := up.Commit(ctx); err != nil {
		e := t.blame(ctx, protocol.ErrCopyDest, err)
		e.Landed = !errors.Is(err, volume.ErrNoSpace)
		return protocol.CopyReport{}, e
	}
	return report, nil
}

// SourceCode is the code for an error of opening a source.
func SourceCode(err error) *protocol.Error {
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Op == "dial" {
		return protocol.ErrCopyUnreachable
	}
	return protocol.ErrCopySource
}

// pour takes the source into the upload, and the hash where there is one.
func (t *Transfers) pour(ctx context.Context, src *Source, up *volume.Upload, h hash.Hash, c protocol.CopyOrder, progress func(int64)) *Error {
	buf := t.buffers.Get().(*[bufferSize]byte)
	defer t.buffers.Put(buf)
	piece := int64(len(buf))
	var limits []*rate.Limiter
	for _, l := range []*rate.Limiter{t.limit, newLimit(c.Rate)} {
		if l != nil {
			limits, piece = append(limits, l), limitedPiece
		}
	}
	for left := c.Length; left > 0; {
		n, err := src.Read(buf[:min(piece, left)])
		if err != nil {
			return t.blame(ctx, protocol.ErrCopySource, err)
		}
		for _, l := range limits {
			if err := l.WaitN(ctx, n); err != nil {
				return t.blame(ctx, protocol.ErrCopyCancelled, err)
			}
		}
		if h != nil {
			h.Write(buf[:n]) // hashes do not fail
		}
		if _, err := up.Write(buf[:n]); err != nil {
			return t.blame(ctx, protocol.ErrCopyDest, err)
		}
		left -= int64(n)
		t.meter.bytes.Add(float64(n))
		if progress != nil {
			progress(c.Length - left)
		}
	}
	return nil
}

// Source is a file as its daemon sends it.
type Source struct {
	body     io.ReadCloser
	url      string
	cancel   context.CancelCauseFunc // of the request
	cause    func() error            // why it was cancelled, nil where it was not
	idle     time.Duration
	dog      *time.Timer // ends the request when nothing comes
	waited   time.Duration
	limit    time.Duration // of waited
	length   int64         // of the stored sum, -1 where none was told
	crc      uint32
	modified time.Time
}

// Open asks the storage daemon of a URL for a file, which must have a length in
// bytes. The source is to be closed. Of its errors SourceCode tells the kind.
func (t *Transfers) Open(ctx context.Context, from string, length int64) (*Source, error) {
	u, err := sourceURL(from)
	if err != nil {
		return nil, err
	}
	return t.open(ctx, u, length)
}

func (t *Transfers) open(ctx context.Context, from *url.URL, length int64) (*Source, error) {
	s := &Source{url: from.String(), idle: t.o.SourceTimeout, length: -1}
	s.limit = timeoutsOfGrace*s.idle + time.Duration(length/leastRate)*time.Second
	if s.limit < 0 { // there are no such files
		s.limit = 1<<63 - 1
	}
	ctx, s.cancel = context.WithCancelCause(ctx)
	s.cause = func() error { return context.Cause(ctx) }
	s.dog = time.AfterFunc(s.idle, func() {
		s.cancel(fmt.Errorf("%w for %v: %w", errSilent, s.idle, os.ErrDeadlineExceeded))
	})
	req := (&http.Request{
		Method: http.MethodGet, URL: from, Host: from.Host, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: http.Header{"User-Agent": {"Mogile"}, "Mogile-Want": {"sum"}},
	}).WithContext(ctx)
	res, err := t.source.RoundTrip(req) // not a client: redirects and cookies are not for us
	if err != nil {
		err = s.explain(err)
		s.end()
		return nil, err
	}
	s.dog.Stop()
	s.body = res.Body
	switch {
	case res.StatusCode != http.StatusOK:
		err = fmt.Errorf("GET %s: HTTP status %d", s.url, res.StatusCode)
	case res.ContentLength != length:
		err = fmt.Errorf("GET %s: %w: %d bytes instead of %d", s.url, errNotAsked, res.ContentLength, length)
	}
	if err != nil {
		s.Close()
		return nil, err
	}
	// A header that is not understood is that of a newer daemon.
	stored, crc, ok := strings.Cut(res.Header.Get("Mogile-Sum"), " ")
	n, err1 := strconv.ParseInt(stored, 10, 64)
	sum, err2 := strconv.ParseUint(crc, 16, 32)
	if ok && err1 == nil && err2 == nil && len(crc) == 8 {
		s.length, s.crc = n, uint32(sum)
	}
	if at, err := http.ParseTime(res.Header.Get("Last-Modified")); err == nil {
		s.modified = at
	}
	return s, nil
}

// Modified is when the file was written, to the second; zero where the daemon does
// not tell.
func (s *Source) Modified() time.Time { return s.modified }

// Sum is what the daemon has stored of the whole content, if it tells.
func (s *Source) Sum() (volume.Sum, bool) {
	return volume.Sum{Length: s.length, CRC32C: s.crc}, s.length >= 0
}

// Read reads a piece within the source's time. It never returns 0 bytes without
// an error.
func (s *Source) Read(p []byte) (int, error) {
	began := time.Now()
	s.dog.Reset(s.idle)
	n, err := io.ReadAtLeast(s.body, p, 1)
	s.dog.Stop()
	s.waited += time.Since(began)
	switch {
	case err != nil:
		return 0, s.explain(err)
	case s.waited > s.limit:
		return 0, fmt.Errorf("GET %s: %w: less than %d bytes a second", s.url, errTooSlow, leastRate)
	}
	return n, nil
}

// explain says why the source broke off.
func (s *Source) explain(err error) error {
	if cause := s.cause(); cause != nil {
		err = cause
	}
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("GET %s: %w", s.url, err)
}

// check compares what came with what is wanted, and with what the source has
// stored.
func (s *Source) check(got protocol.CopyReport, c protocol.CopyOrder) error {
	switch {
	case !c.Want.IsZero() && !got.Digest.Equal(c.Want):
		return fmt.Errorf("GET %s: the content has %s instead of %s", s.url, got.Digest, c.Want)
	case s.length >= 0 && (s.length != got.Length || s.crc != got.CRC32C):
		return fmt.Errorf("GET %s: the content is not what was stored there: %d bytes with CRC32C %08x instead of %d with %08x", s.url, got.Length, got.CRC32C, s.length, s.crc)
	}
	return nil
}

func (s *Source) end() {
	s.dog.Stop()
	s.cancel(nil)
}

// Close ends the request. Its connection is kept if the body was read to its
// end.
func (s *Source) Close() {
	_ = s.body.Close() // one that was not read to its end takes the connection with it
	s.end()
}
