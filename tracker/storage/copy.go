package storage

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"

	"github.com/mogile/mogile/protocol"
)

// Copy is one file to be copied from one device to another.
type Copy struct {
	From, To string            // URLs
	Length   int64             // bytes, as recorded; a source of another length is refused
	Want     protocol.Checksum // as recorded; zero where there is none
	HashType protocol.HashType // to be computed where Want is zero; none: no digest
	TrustMD5 bool              // the destination is known to refuse a wrong Content-MD5
	Progress func()            // called, from one goroutine at a time, as pieces are sent; may be nil
}

// Side is a side of a copy.
type Side int

// The sides that can be to blame.
const (
	SourceError Side = iota + 1
	DestError
)

// String is the side's name in MogileFS's logs: src_error or dest_error.
func (s Side) String() string {
	if s == SourceError {
		return "src_error"
	}
	return "dest_error"
}

// CopyError is why a copy was not made, and on which side.
type CopyError struct {
	Side Side
	// Landed says that the destination may have stored what was sent. Where the
	// copy is not recorded its bytes must be queued for deletion.
	Landed bool
	Err    error
}

// Error is the side and the reason.
func (e *CopyError) Error() string { return e.Side.String() + ": " + e.Err.Error() }

// Unwrap is the reason.
func (e *CopyError) Unwrap() error { return e.Err }

var (
	errStale   = errors.New("a kept connection was closed")
	errCorrupt = errors.New("content does not match the recorded checksum")
	errRotten  = errors.New("content does not match the sum that was stored with it")
	errShort   = errors.New("source ended early")
)

// storedSum reads the header in which our storage daemons tell the sum that they
// have stored with a file of length bytes: "<length> <CRC32C in hexadecimal>".
func storedSum(header string, length int64) (crc uint32, ok bool) {
	n, sum, _ := strings.Cut(header, " ")
	stored, err := strconv.ParseInt(n, 10, 64)
	v, err2 := strconv.ParseUint(sum, 16, 32)
	return uint32(v), err == nil && err2 == nil && stored == length && len(sum) == 8
}

func castagnoli() *crc32.Table { return crc32.MakeTable(crc32.Castagnoli) }

// Copy copies a file through this tracker, in bounded memory, and returns the
// digest of what was copied (zero where none was asked for). The copy is good
// when it returns: the source had the recorded length and checksum, and, being a
// daemon of ours, the sum that it has stored itself; the destination has the
// length, and the digest too, unless the algorithm is MD5, it was sent along,
// and the destination is known to check it. A source that ends early or is
// corrupt makes the PUT break off before its last bytes, so that the destination
// keeps nothing of it.
//
// Errors are a *CopyError, unless ctx was cancelled.
func (c *Client) Copy(ctx context.Context, cp Copy) (protocol.Checksum, error) {
	sum, err := c.copyOnce(ctx, cp)
	if errors.Is(err, errStale) {
		c.writes.CloseIdleConnections()
		sum, err = c.copyOnce(ctx, cp)
	}
	if err != nil && errors.Is(ctx.Err(), context.Canceled) {
		return protocol.Checksum{}, fmt.Errorf("copy %s to %s: %w", cp.From, cp.To, context.Cause(ctx))
	}
	return sum, err
}

func (c *Client) copyOnce(ctx context.Context, cp Copy) (protocol.Checksum, error) {
	var status *StatusError
	if err := c.MakeDirs(ctx, cp.To); err != nil && !errors.As(err, &status) {
		return protocol.Checksum{}, &CopyError{Side: DestError, Err: err}
	}
	src, err := c.send(ctx, c.reads, request{
		method: http.MethodGet, url: cp.From, idle: c.o.CopyTimeout, patience: bodyPatience(cp.Length, c.o.CopyTimeout),
		header: http.Header{"Mogile-Want": {"sum"}},
	})
	if err != nil {
		return protocol.Checksum{}, &CopyError{Side: SourceError, Err: err}
	}
	defer src.Close()
	if err := src.check(); err != nil {
		return protocol.Checksum{}, &CopyError{Side: SourceError, Err: err}
	}
	if src.ContentLength != cp.Length {
		return protocol.Checksum{}, &CopyError{Side: SourceError,
			Err: fmt.Errorf("GET %s: %d bytes instead of %d", cp.From, src.ContentLength, cp.Length)}
	}
	b := newCopyBody(src, cp, watch(ctx, c.o.CopyTimeout))
	if crc, ok := storedSum(src.Header.Get("Mogile-Sum"), cp.Length); ok {
		b.crc, b.wantCRC = crc32.New(castagnoli()), crc
	}
	b.take = func(n int64) error { return c.copying.take(ctx, n, cp.Progress) }
	sum, err := c.put(ctx, cp, b)
	// What the transport may still be reading is over with.
	src.dog.end()
	if err != nil {
		return protocol.Checksum{}, err
	}
	if err := c.verify(ctx, cp, sum); err != nil {
		return protocol.Checksum{}, &CopyError{Side: DestError, Landed: true, Err: err}
	}
	return sum, nil
}

// put sends the body, and returns its digest.
func (c *Client) put(ctx context.Context, cp Copy, b *copyBody) (protocol.Checksum, error) {
	q := request{method: http.MethodPut, url: cp.To, length: cp.Length, idle: c.o.CopyTimeout, dog: b.dest, header: http.Header{}}
	var kept bool
	q.reused = &kept
	if cp.Want.Type == protocol.HashMD5 {
		q.header.Set("Content-MD5", base64.StdEncoding.EncodeToString(cp.Want.Sum))
	}
	if cp.Length > 0 {
		q.stream = b
	} else {
		q.small = []byte{}
		if err := b.complete(); err != nil {
			b.dest.end()
			return protocol.Checksum{}, &CopyError{Side: SourceError, Err: err}
		}
	}
	dst, err := c.send(ctx, c.writes, q)
	sent, sum, srcErr := b.finish()
	if err == nil {
		defer dst.Close()
		err = dst.check()
		c.refused(cp.To, err)
	}
	switch {
	case srcErr != nil:
		return protocol.Checksum{}, &CopyError{Side: SourceError, Err: srcErr}
	case err == nil && !sent:
		return protocol.Checksum{}, &CopyError{Side: DestError, Landed: true,
			Err: fmt.Errorf("PUT %s: answered before everything was sent", cp.To)}
	case err == nil:
		return sum, nil
	}
	if kept && dst == nil && cp.Length > 0 && ctx.Err() == nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		err = fmt.Errorf("%w: %w", errStale, err)
	}
	return protocol.Checksum{}, &CopyError{Side: DestError, Landed: sent && dst == nil, Err: err}
}

// verify looks at the destination, over HTTP, which is where it will be read.
func (c *Client) verify(ctx context.Context, cp Copy, sum protocol.Checksum) error {
	n, err := c.headSize(ctx, cp.To)
	if err != nil {
		return fmt.Errorf("look at the copy: %w", err)
	}
	if n != cp.Length {
		return fmt.Errorf("copy %s has %d bytes instead of %d", cp.To, n, cp.Length)
	}
	// The daemon's own check can be relied upon only where it was given
	// something to check.
	if sum.IsZero() || cp.TrustMD5 && cp.Want.Type == protocol.HashMD5 {
		return nil
	}
	got, err := c.Digest(ctx, cp.To, cp.Length, sum.Type, "replicate")
	if err != nil {
		return fmt.Errorf("look at the copy: %w", err)
	}
	if !got.Equal(sum) {
		return fmt.Errorf("copy %s has %s instead of %s", cp.To, got, sum)
	}
	return nil
}

// copyBody is the source as the body of a PUT. It is read by the transport,
// which may go on doing so for a moment after the PUT has ended.
type copyBody struct {
	src     *response
	dest    *watchdog           // of the PUT: it sleeps while the source is waited for
	tell    func()              // of progress
	take    func(n int64) error // waits until n bytes may be handed on; its error is the end of the caller's context
	want    protocol.Checksum
	hash    hash.Hash   // nil where no digest is asked for
	crc     hash.Hash32 // nil where the source does not tell the sum that it has stored
	wantCRC uint32
	typ     protocol.HashType

	mu   sync.Mutex // guards the rest
	left int64
	sum  protocol.Checksum // of all of it
	err  error             // the source's fault
	over bool
}

func newCopyBody(src *response, cp Copy, dest *watchdog) *copyBody {
	b := &copyBody{src: src, dest: dest, tell: cp.Progress, want: cp.Want, typ: cp.Want.Type, left: cp.Length}
	if cp.Want.IsZero() {
		b.typ = cp.HashType
	}
	b.hash = b.typ.New()
	return b
}

// Read hands a piece of the source on. The last piece is held back where all of
// it together is not what was recorded.
func (b *copyBody) Read(p []byte) (int, error) {
	b.mu.Lock()
	left, err, over := b.left, b.err, b.over
	b.mu.Unlock()
	switch {
	case err != nil:
		return 0, err
	case over:
		return 0, io.ErrClosedPipe
	case left == 0:
		return 0, io.EOF
	}
	if int64(len(p)) > left {
		p = p[:left]
	}
	b.dest.stop()
	n, err := b.src.Read(p)
	if b.tell != nil {
		b.tell()
	}
	if b.hash != nil {
		b.hash.Write(p[:n])
	}
	if b.crc != nil {
		b.crc.Write(p[:n])
	}
	if err := b.take(int64(n)); err != nil {
		return 0, err
	}
	left -= int64(n)
	switch {
	case left == 0:
		err = b.complete()
	case err == io.EOF || errors.Is(err, io.ErrUnexpectedEOF):
		err = fmt.Errorf("GET %s: %w, %d bytes are missing", b.src.req.url, errShort, left)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.over {
		return 0, io.ErrClosedPipe
	}
	b.left, b.err = left, err
	if err != nil {
		return 0, err
	}
	b.dest.start()
	return n, nil
}

// complete takes the digest of the whole, and compares it.
func (b *copyBody) complete() error {
	if b.crc != nil && b.crc.Sum32() != b.wantCRC {
		return fmt.Errorf("GET %s: %w: CRC32C %08x instead of %08x", b.src.req.url, errRotten, b.crc.Sum32(), b.wantCRC)
	}
	if b.hash == nil {
		return nil
	}
	sum := protocol.Checksum{Type: b.typ, Sum: b.hash.Sum(nil)}
	if !b.want.IsZero() && !bytes.Equal(sum.Sum, b.want.Sum) {
		return fmt.Errorf("GET %s: %w: %s instead of %s", b.src.req.url, errCorrupt, sum, b.want)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.sum = sum
	return nil
}

// Close is called by the transport. The source is closed by who opened it.
func (b *copyBody) Close() error { return nil }

// finish ends the reading, and says whether all was handed on, its digest, and
// what was wrong with the source.
func (b *copyBody) finish() (sent bool, sum protocol.Checksum, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.over = true
	return b.left == 0 && b.err == nil, b.sum, b.err
}
