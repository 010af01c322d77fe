package protocol

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"time"
)

// CreateOptions describe a file to be stored. The zero value is right for most.
type CreateOptions struct {
	// Class of the domain; empty is the default class.
	Class string
	// Size in bytes, where above 0: storing fails if the body has more or
	// fewer. 0 and -1 leave it to be found out, where the body is short or can
	// seek, or to be seen at its end.
	Size int64
	// Checksum of the body, where known. The body is checked against it on its
	// way; the storage daemon does so too (MD5 only), and classes of the same
	// algorithm keep it.
	Checksum Checksum
	// Hash, where Checksum is zero, has the checksum computed on the way, told to
	// the tracker, and returned.
	Hash HashType
	// Verify has the tracker read the stored file back and compare it with
	// Checksum, or where that is zero with the Hash, or MD5, of what was sent.
	Verify bool
	// NoOverwrite keeps a file that the key has by then: the error matches
	// [ErrKeyExists]. Trackers that do not know of it overwrite.
	NoOverwrite bool
	// IfFID stores the file only if the key names this fid by then, 0 being no
	// file: else the error has the code fid_mismatch. Trackers that do not know of
	// it overwrite.
	IfFID *FID
	// WaitReplicated, where above 0, has Create return only when the file has the
	// copies that its class wants. Where that takes longer, of which whole seconds
	// up to an hour count, the error matches [ErrReplicationTimeout]: the file is
	// stored, and will be replicated. Trackers that do not know of it do not wait.
	WaitReplicated time.Duration
}

// Created is a file that is stored.
type Created struct {
	FID      FID
	DevID    DevID  // of the first copy
	Path     string // of the first copy
	Size     int64
	Checksum Checksum // given or computed; zero where neither
}

// ErrUnknownOutcome is matched by the error of [Client.Create] where the last
// step got no clear answer: the file may be stored, or not.
var ErrUnknownOutcome = errors.New("the file may be stored or not")

// dest is a device that a tracker offers for a new file.
type dest struct {
	dev  DevID
	path string
}

// Create stores what r has to its end under key, replacing what was there. It
// returns when the tracker has confirmed it; after an error nothing has changed,
// except for one matching [ErrUnknownOutcome], and for [ErrReplicationTimeout],
// with which comes what was stored.
//
// The tracker offers up to three devices; where one refuses, the next is tried.
// That needs the body from its beginning: of an r that cannot seek the first
// [ClientOptions].Buffer bytes are kept, and when more than those were sent, the
// failure is returned.
//
// After an error caused by ctx a Read of r may still be going on.
func (c *Client) Create(ctx context.Context, domain, key string, o CreateOptions, r io.Reader) (Created, error) {
	if key == "" { // a close without key gives the upload up
		return Created{}, fmt.Errorf("store in domain %q: %w", domain, Err("no_key"))
	}
	created, err := c.create(ctx, domain, key, o, r)
	if errors.Is(err, ErrReplicationTimeout) {
		return created, fmt.Errorf("store key %q in domain %q: %w", key, domain, err)
	}
	if err != nil {
		return Created{}, fmt.Errorf("store key %q in domain %q: %w", key, domain, err)
	}
	return created, nil
}

func (c *Client) create(ctx context.Context, domain, key string, o CreateOptions, r io.Reader) (Created, error) {
	src, err := newSource(ctx, r, o, c.o.Buffer)
	if err != nil {
		return Created{}, err
	}
	fid, dests, err := c.createOpen(ctx, domain, key, o.Class, src.size)
	if err != nil {
		return Created{}, err
	}
	used, size, sum, err := c.upload(ctx, src, dests)
	if err != nil {
		c.giveUp(ctx, domain, fid, used)
		return Created{}, err
	}
	created := Created{FID: fid, DevID: used.dev, Path: used.path, Size: size, Checksum: sum}
	return created, c.createClose(ctx, domain, key, created, o)
}

func (c *Client) createOpen(ctx context.Context, domain, key, class string, size int64) (FID, []dest, error) {
	args := Args{{"domain", domain}, {"key", key}, {"class", class}, {"multi_dest", "1"}}
	if size > 0 {
		args.AddInt("size", size)
	}
	reply, err := c.Do(ctx, "create_open", c.zoned(args))
	if err != nil {
		return 0, nil, err
	}
	fid := FID(reply.Number("fid"))
	var dests []dest
	if _, many := reply.Lookup("dev_count"); many {
		for i := int64(1); i <= min(reply.Number("dev_count"), int64(len(reply))); i++ {
			n := strconv.FormatInt(i, 10)
			dests = append(dests, dest{DevID(reply.Number("devid_" + n)), reply.Get("path_" + n)})
		}
	} else {
		dests = append(dests, dest{DevID(reply.Number("devid")), reply.Get("path")})
	}
	for _, d := range dests {
		if d.dev == 0 || d.path == "" {
			return 0, nil, fmt.Errorf("create_open: a device or path is missing: %w", ErrBadReply)
		}
	}
	if fid == 0 || len(dests) == 0 {
		return 0, nil, fmt.Errorf("create_open: no fid or no device: %w", ErrBadReply)
	}
	return fid, dests, nil
}

// upload puts the body on the first device that takes it. used is that device,
// or after an error the one tried last.
func (c *Client) upload(ctx context.Context, src *source, dests []dest) (used dest, size int64, sum Checksum, err error) {
	var errs trackerErrors
	for _, d := range dests {
		if len(errs) > 0 {
			if err := src.rewind(); err != nil {
				return used, 0, Checksum{}, fmt.Errorf("%w; %w", errs, err)
			}
		}
		used = d
		size, sum, err := c.put(ctx, d.path, src)
		if err == nil {
			return used, size, sum, nil
		}
		errs = append(errs, fmt.Errorf("PUT %s: %w", d.path, err))
		if _, bad := errors.AsType[*sourceError](err); bad || ctx.Err() != nil {
			break
		}
	}
	return used, 0, Checksum{}, errs
}

// giveUpTimeout bounds the last word about a failed upload.
const giveUpTimeout = 5 * time.Second

// giveUp closes the upload without a key, so that the tracker forgets it now,
// with what may have reached d, rather than in an hour. It is a courtesy: the
// caller reports the failure that led here.
func (c *Client) giveUp(ctx context.Context, domain string, fid FID, d dest) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), giveUpTimeout)
	defer cancel()
	args := Args{{"domain", domain}, {"key", ""}, {"fid", fid.String()}, {"devid", d.dev.String()}, {"path", d.path}}
	_, _, _ = c.do(ctx, "create_close", c.zoned(args), giveUpTimeout, true)
}

// digestRate is how fast a storage daemon is expected to read a file back, in
// bytes a second, as by MogileFS 2.73.
const digestRate = 2 << 20

// createClose confirms an upload. Repeating a close is safe, as the first one
// that is executed uses the upload up; what the repetition is then told
// (no_temp_file) leaves open what became of the first.
func (c *Client) createClose(ctx context.Context, domain, key string, f Created, o CreateOptions) error {
	args := Args{{"domain", domain}, {"key", key}, {"fid", f.FID.String()}, {"devid", f.DevID.String()}, {"path", f.Path}}
	args.AddInt("size", f.Size)
	if o.NoOverwrite {
		args.Add("overwrite", "0")
	}
	if o.IfFID != nil {
		args.Add("if_fid", o.IfFID.String())
	}
	timeout := c.o.Timeout
	if wait := int64(o.WaitReplicated / time.Second); o.WaitReplicated > 0 {
		args.Add("wait", "replicated")
		args.AddInt("wait_timeout", max(1, wait))
		timeout += time.Duration(max(1, wait)) * time.Second
	}
	if !f.Checksum.IsZero() {
		args.Add("checksum", f.Checksum.String())
		if o.Verify {
			args.Add("checksumverify", "1")
			timeout += time.Duration(f.Size/digestRate) * time.Second
		}
	}
	_, again, err := c.do(ctx, "create_close", c.zoned(args), timeout, true)
	if err == nil {
		return nil
	}
	// A condition that the first close met does not hold for its repetition.
	unmet := errors.Is(err, ErrKeyExists) || errors.Is(err, Err("fid_mismatch"))
	if _, refused := errors.AsType[*Error](err); refused && !unmet && !(again && errors.Is(err, ErrNoTempfile)) {
		return err
	}
	if !again { // no tracker can have executed it
		c.giveUp(ctx, domain, f.FID, dest{f.DevID, f.Path})
		return err
	}
	if ctx.Err() == nil {
		if info, infoErr := c.FileInfo(ctx, domain, key); infoErr == nil && info.FID == f.FID {
			return nil
		}
	}
	return fmt.Errorf("%w (fid %d): %w", ErrUnknownOutcome, f.FID, err)
}

// put sends the body to one path.
func (c *Client) put(ctx context.Context, path string, src *source) (size int64, sum Checksum, err error) {
	attempt, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	w := newWatch(cancel, c.o.DialTimeout+c.o.StallTimeout, "the storage daemon takes nothing")
	defer w.stop()

	b := src.body(w, c.o.StallTimeout, c.o.StoreTimeout)
	req, err := http.NewRequestWithContext(attempt, http.MethodPut, path, b)
	if err != nil {
		return 0, Checksum{}, err
	}
	req.ContentLength = src.size
	req.Header.Set("Content-Type", "application/octet-stream")
	switch {
	case src.want.Type == HashMD5:
		req.Header.Set(contentMD5, base64.StdEncoding.EncodeToString(src.want.Sum))
	case src.size < 0 && src.hash == HashMD5:
		req.Trailer = http.Header{contentMD5: nil}
		b.trailer = req.Trailer
	}
	if src.size == 0 {
		_, _ = b.Read(make([]byte, 1)) // what it finds is in b
		b.Close()
		if b.srcErr != nil {
			return 0, Checksum{}, b.srcErr
		}
		req.Body = http.NoBody
	} else {
		// For a connection that was kept and turns out to be closed.
		req.GetBody = func() (io.ReadCloser, error) {
			if err := b.wait(ctx); err != nil {
				return nil, err
			}
			if err := src.rewind(); err != nil {
				return nil, err
			}
			b = src.body(w, c.o.StallTimeout, c.o.StoreTimeout)
			b.trailer = req.Trailer
			return b, nil
		}
	}
	// The transport does not return while a Read of the body is under way, not
	// even when it is cancelled. One that never ends must not hold up the caller.
	done := make(chan error, 1)
	go func() {
		resp, err := c.http.Do(req)
		if err == nil {
			if resp.StatusCode/100 == 2 {
				_, _ = io.CopyN(io.Discard, resp.Body, 4<<10) // so that the connection can be used again
			} else {
				err = &StatusError{Code: resp.StatusCode}
			}
			resp.Body.Close()
		}
		done <- err
	}()
	select {
	case err = <-done:
	case <-ctx.Done():
		return 0, Checksum{}, context.Cause(ctx)
	}
	if cause := context.Cause(attempt); cause != nil && err != nil {
		err = cause
	}
	if err != nil {
		cancel(nil) // a transport that still sends stops now
	}
	if waitErr := b.wait(ctx); waitErr != nil {
		return 0, Checksum{}, waitErr
	}
	switch {
	case b.srcErr != nil:
		return 0, Checksum{}, b.srcErr
	case err != nil:
		return 0, Checksum{}, trimURL(err)
	case !b.ended:
		return 0, Checksum{}, errors.New("the storage daemon answered before it had the whole body")
	}
	sum = src.want
	if b.sum != nil {
		sum = Checksum{src.hash, b.sum.Sum(nil)}
	}
	return b.sent, sum, nil
}

// trimURL takes method and URL off an error of package http: callers name the
// path themselves.
func trimURL(err error) error {
	if e, ok := errors.AsType[*url.Error](err); ok {
		return e.Err
	}
	return err
}

const contentMD5 = "Content-Md5" // canonical form

// StatusError is a storage daemon's answer other than success.
type StatusError struct{ Code int }

// Error is the status with its text.
func (e *StatusError) Error() string {
	return fmt.Sprintf("HTTP status %d %s", e.Code, http.StatusText(e.Code))
}

// sourceError is a fault of the body, not of a device: no other device helps.
type sourceError struct{ err error }

func (e *sourceError) Error() string { return "read the body: " + e.err.Error() }
func (e *sourceError) Unwrap() error { return e.err }

// source is a body that can be sent more than once, as far as possible.
type source struct {
	r       io.Reader
	seeker  io.Seeker // nil where r cannot seek
	start   int64     // where the body begins in seeker
	prefix  []byte    // the first bytes of an r that cannot seek
	whole   bool      // prefix is all of it
	touched bool      // r was read, beyond prefix
	size    int64     // -1 unknown
	want    Checksum  // zero where unknown
	hash    HashType  // to be computed on the way
}

// newSource finds out what r can do, and reads up to buffer bytes of one that
// cannot seek.
func newSource(ctx context.Context, r io.Reader, o CreateOptions, buffer int) (*source, error) {
	s := &source{r: r, size: -1, want: o.Checksum, hash: o.Checksum.Type}
	if s.hash == HashNone {
		s.hash = o.Hash
	}
	if o.Verify && s.hash == HashNone {
		s.hash = HashMD5
	}
	if !s.want.IsZero() && (s.want.Type.Size() == 0 || len(s.want.Sum) != s.want.Type.Size()) {
		return nil, fmt.Errorf("checksum %v has %d bytes: %w", s.want.Type, len(s.want.Sum), Err("invalid_checksum_format"))
	}
	if seeker, ok := r.(io.Seeker); ok {
		if start, end, err := extent(seeker); err == nil && end > start { // else a pipe, or a file that has no size
			s.seeker, s.start, s.size = seeker, start, end-start
		}
	}
	if s.seeker == nil {
		if err := s.readPrefix(ctx, buffer); err != nil {
			return nil, err
		}
	}
	if o.Size > 0 {
		if s.size >= 0 && s.size != o.Size {
			return nil, &sourceError{fmt.Errorf("it has %d bytes, not %d", s.size, o.Size)}
		}
		s.size = o.Size
	}
	return s, nil
}

// readPrefix reads up to buffer bytes, and one more that tells whether these are
// all.
func (s *source) readPrefix(ctx context.Context, buffer int) error {
	type read struct {
		prefix []byte
		err    error
	}
	done := make(chan read, 1)
	go func() { // a Read cannot be interrupted, only left behind
		prefix, err := io.ReadAll(io.LimitReader(s.r, int64(buffer)+1))
		done <- read{prefix, err}
	}()
	select {
	case got := <-done:
		if got.err != nil {
			return &sourceError{got.err}
		}
		s.prefix = got.prefix
		if len(got.prefix) <= buffer {
			s.whole, s.size = true, int64(len(got.prefix))
		}
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func extent(s io.Seeker) (start, end int64, err error) {
	if start, err = s.Seek(0, io.SeekCurrent); err != nil {
		return 0, 0, err
	}
	if end, err = s.Seek(0, io.SeekEnd); err != nil {
		return 0, 0, err
	}
	_, err = s.Seek(start, io.SeekStart)
	return start, end, err
}

// rewind prepares for sending the body again.
func (s *source) rewind() error {
	switch {
	case s.seeker != nil:
		if _, err := s.seeker.Seek(s.start, io.SeekStart); err != nil {
			return &sourceError{err}
		}
	case s.touched:
		return &sourceError{errors.New("no other device can be tried, as the body cannot be read again from its beginning; store a file, or raise the buffer")}
	}
	return nil
}

// body is the source's bytes on their way to one device. The transport reads
// it; only when it has let go may the source be used again.
type body struct {
	src     *source
	in      io.Reader
	sum     hash.Hash // nil where none is computed
	trailer http.Header
	watch   *watch
	stall   time.Duration
	store   time.Duration

	sent   int64
	ended  bool  // all bytes were handed over
	srcErr error // a *sourceError

	mu      sync.Mutex // guards the rest
	reading bool
	closing bool
	done    chan struct{} // closed when the transport has let go
}

func (s *source) body(w *watch, stall, store time.Duration) *body {
	b := &body{src: s, watch: w, stall: stall, store: store, sum: s.hash.New(), done: make(chan struct{})}
	switch {
	case s.seeker != nil:
		b.in = s.r
	case s.whole:
		b.in = bytes.NewReader(s.prefix)
	default:
		b.in = io.MultiReader(bytes.NewReader(s.prefix), touching{s})
	}
	return b
}

// touching reads a source beyond its prefix.
type touching struct{ s *source }

func (t touching) Read(p []byte) (int, error) {
	t.s.touched = true
	return t.s.r.Read(p)
}

// Read gives the transport the next bytes. While the source is slow, no device
// is to blame.
func (b *body) Read(p []byte) (int, error) {
	b.mu.Lock()
	if b.closing {
		b.mu.Unlock()
		return 0, errors.New("body is closed")
	}
	b.reading = true
	b.mu.Unlock()

	b.watch.pause()
	n, err := b.read(p)
	if b.ended {
		b.watch.expect(b.store, "the storage daemon does not answer after the last byte")
	} else {
		b.watch.expect(b.stall, "the storage daemon takes nothing")
	}

	b.mu.Lock()
	b.reading = false
	if b.closing {
		close(b.done)
	}
	b.mu.Unlock()
	return n, err
}

func (b *body) read(p []byte) (int, error) {
	if b.srcErr != nil {
		return 0, b.srcErr
	}
	if b.ended {
		return 0, io.EOF
	}
	n, err := b.in.Read(p)
	b.sent += int64(n)
	if b.sum != nil {
		b.sum.Write(p[:n])
	}
	switch size := b.src.size; {
	case err != nil && err != io.EOF:
	case size >= 0 && b.sent > size:
		err = fmt.Errorf("it has more than %d bytes", size)
	case err == io.EOF && size >= 0 && b.sent < size:
		err = fmt.Errorf("it ended after %d of %d bytes", b.sent, size)
	case size >= 0 && b.sent == size && err == nil:
		// The transport asks no further once it has them all.
		err = b.atEnd()
	}
	if err == io.EOF {
		sum := Checksum{b.src.hash, nil}
		if b.sum != nil {
			sum.Sum = b.sum.Sum(nil)
		}
		if !b.src.want.IsZero() && !sum.Equal(b.src.want) {
			err = fmt.Errorf("its checksum is %v, not %v", sum, b.src.want)
		} else {
			if b.trailer != nil {
				b.trailer.Set(contentMD5, base64.StdEncoding.EncodeToString(sum.Sum))
			}
			b.ended = true
			return n, io.EOF
		}
	}
	if err != nil {
		b.srcErr = &sourceError{err}
		return 0, b.srcErr // the last piece is held back, so that the device cannot take the body for whole
	}
	return n, nil
}

// atEnd is io.EOF if the source has no more bytes.
func (b *body) atEnd() error {
	var one [1]byte
	for range 100 {
		switch n, err := b.in.Read(one[:]); {
		case n > 0:
			return fmt.Errorf("it has more than %d bytes", b.src.size)
		case err != nil:
			return err
		}
	}
	return io.ErrNoProgress
}

// Close is called by the transport when it needs no more.
func (b *body) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.closing {
		b.closing = true
		if !b.reading {
			close(b.done)
		}
	}
	return nil
}

// wait returns when the transport has let go of the body.
func (b *body) wait(ctx context.Context) error {
	select {
	case <-b.done:
		return nil
	default:
	}
	select {
	case <-b.done:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
