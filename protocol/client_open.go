package protocol

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// openPaths is how many paths are asked for: those beyond the first are for
// when a device fails.
const openPaths = 8

// ErrNoPath is matched by the errors of [Client.Open] and [Client.OpenRange]
// where the file is known, and no device that holds it can be read now.
var ErrNoPath = errors.New("no device that holds the file can be read")

// Reader is a stored file, or a part of one, being read. When a path fails, also
// in the middle, it goes on with the next. It is not for concurrent use.
type Reader struct {
	find   func(noVerify bool) ([]string, error)
	get    func(path string, off, end int64) (*part, error)
	ctxErr func() error // why to stop, nil where nobody said so

	fid   FID   // 0 where paths do not tell
	total int64 // of the whole file; -1 unknown
	start int64 // of the part wanted
	off   int64 // of the next byte
	end   int64 // -1 is the end of the file

	paths []string // all that were heard of last
	queue []string // those not tried yet
	asked bool     // paths were asked for anew, and nothing has been read since
	path  string
	body  *part // nil before the first path, and between two
	errs  trackerErrors
	err   error // final
}

// Open begins to read the file stored under key. The error matches
// [ErrUnknownKey] where there is none, and [ErrNoPath] where it cannot be read
// now. ctx governs the reading too. The Reader must be closed.
func (c *Client) Open(ctx context.Context, domain, key string) (*Reader, error) {
	return c.OpenRange(ctx, domain, key, 0, -1)
}

// OpenRange is [Client.Open] for n bytes from offset off, or as many as the
// file has there; negative n is all that follow.
func (c *Client) OpenRange(ctx context.Context, domain, key string, off, n int64) (*Reader, error) {
	if off < 0 {
		return nil, fmt.Errorf("read key %q in domain %q: negative offset %d", key, domain, off)
	}
	r := &Reader{
		find: func(noVerify bool) ([]string, error) {
			return c.Paths(ctx, domain, key, PathsOptions{NoVerify: noVerify, Count: openPaths})
		},
		get: func(path string, off, end int64) (*part, error) {
			return c.get(ctx, path, off, end)
		},
		ctxErr: func() error { return context.Cause(ctx) },
		total:  -1, start: off, off: off, end: -1,
	}
	if n >= 0 && off+n >= off { // a sum beyond 64 bits is the end as well
		r.end = off + n
	}
	paths, err := r.find(true)
	if err != nil {
		return nil, err
	}
	r.paths, r.queue = paths, paths
	if err := r.next(); err != nil {
		return nil, fmt.Errorf("read key %q in domain %q: %w", key, domain, err)
	}
	return r, nil
}

// Size is the number of bytes that reading from the beginning to the end gives,
// -1 where the storage daemon did not tell.
func (r *Reader) Size() int64 {
	if r.total < 0 {
		return -1
	}
	end := r.total
	if r.end >= 0 {
		end = min(end, r.end)
	}
	return max(0, end-r.start)
}

// FID is the file's number, 0 where its paths do not tell.
func (r *Reader) FID() FID { return r.fid }

// Path is the URL being read from.
func (r *Reader) Path() string { return r.path }

// Paths are the URLs that the tracker named.
func (r *Reader) Paths() []string { return r.paths }

// Read reads the next bytes.
func (r *Reader) Read(p []byte) (int, error) {
	if r.err != nil {
		return 0, r.err
	}
	if len(p) == 0 {
		return 0, nil
	}
	for {
		if r.end >= 0 && r.off >= r.end || r.total >= 0 && r.off >= r.total {
			r.finish(io.EOF)
			return 0, io.EOF
		}
		if r.body == nil {
			if err := r.next(); err != nil {
				r.finish(err)
				return 0, err
			}
			continue
		}
		if r.end >= 0 {
			p = p[:min(int64(len(p)), r.end-r.off)]
		}
		n, err := r.body.Read(p)
		r.off += int64(n)
		if n > 0 {
			r.asked, r.errs = false, nil
		}
		if err == io.EOF {
			if left := r.start + r.Size() - r.off; left <= 0 || r.total < 0 {
				r.finish(io.EOF)
				return n, io.EOF
			}
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			r.errs = append(r.errs, fmt.Errorf("GET %s: %w", r.path, err))
			r.body.Close()
			r.body = nil
		}
		if n > 0 {
			return n, nil
		}
	}
}

// finish ends the reading.
func (r *Reader) finish(err error) {
	r.err = err
	if r.body != nil {
		r.body.Close()
		r.body = nil
	}
}

// Close ends the reading.
func (r *Reader) Close() error {
	if r.err == nil {
		r.finish(errors.New("reader is closed"))
	}
	return nil
}

// next opens the next path that works at the current offset. When all have
// failed, the tracker is asked once more: the file may have been moved, or
// overwritten before anything was read.
func (r *Reader) next() error {
	for {
		if len(r.queue) == 0 {
			if r.asked {
				return r.failure()
			}
			r.asked = true
			paths, err := r.find(false)
			if err != nil {
				r.errs = append(r.errs, err)
				return r.failure()
			}
			r.paths, r.queue = paths, paths
			continue
		}
		path := r.queue[0]
		r.queue = r.queue[1:]
		fid := fidOf(path)
		begun := r.path != "" // the caller knows FID and Size
		if begun && fid != r.fid {
			r.errs = append(r.errs, fmt.Errorf("GET %s: the file was replaced while it was read", path))
			continue
		}
		body, err := r.get(path, r.off, r.end)
		if err == nil && begun && (r.total < 0 || body.total != r.total) {
			body.Close()
			err = fmt.Errorf("the file has %d bytes there, not %d", body.total, r.total)
		}
		if err != nil {
			r.errs = append(r.errs, fmt.Errorf("GET %s: %w", path, err))
			if err := r.ctxErr(); err != nil {
				return err
			}
			continue
		}
		r.body, r.path, r.fid, r.total = body, path, fid, body.total
		return nil
	}
}

func (r *Reader) failure() error {
	if len(r.errs) == 0 {
		return ErrNoPath
	}
	return fmt.Errorf("%w: %w", ErrNoPath, r.errs)
}

// fidOf is the fid in a path's URL, 0 where it has none.
func fidOf(path string) FID {
	u, err := url.Parse(path)
	if err != nil {
		return 0
	}
	_, fid, err := ParsePath(u.Path)
	if err != nil {
		return 0
	}
	return fid
}

// part is the answer to one GET.
type part struct {
	body   io.ReadCloser
	total  int64 // bytes of the whole file; -1 unknown
	watch  *watch
	cancel context.CancelCauseFunc
	cause  func() error
	stall  time.Duration
}

// get reads path from off to before end, or to the file's end where end is
// negative.
func (c *Client) get(ctx context.Context, path string, off, end int64) (_ *part, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	p := &part{cancel: cancel, stall: c.o.StallTimeout, cause: func() error { return context.Cause(ctx) }}
	p.watch = newWatch(cancel, c.o.HeaderTimeout, "the storage daemon does not answer")
	defer func() {
		if err != nil {
			if cause := p.cause(); cause != nil {
				err = cause
			}
			p.Close()
		}
	}()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, path, nil)
	if err != nil {
		return nil, err
	}
	ranged := off > 0 || end >= 0
	if ranged {
		last := ""
		if end >= 0 {
			last = strconv.FormatInt(max(end-1, off), 10)
		}
		req.Header.Set("Range", "bytes="+strconv.FormatInt(off, 10)+"-"+last)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, trimURL(err)
	}
	p.body = resp.Body
	p.watch.expect(p.stall, "the storage daemon sends nothing")
	switch {
	case resp.StatusCode == http.StatusOK:
		p.total = resp.ContentLength
		// The whole file, although a part was asked for.
		if n, err := io.CopyN(io.Discard, p, off); err != nil && err != io.EOF {
			return nil, fmt.Errorf("skip to offset %d: after %d bytes: %w", off, n, err)
		}
		return p, nil
	case resp.StatusCode == http.StatusPartialContent && ranged:
		first, total, ok := parseContentRange(resp.Header.Get("Content-Range"))
		if !ok || first != off {
			return nil, fmt.Errorf("Content-Range is %q for bytes from %d", resp.Header.Get("Content-Range"), off)
		}
		p.total = total
		return p, nil
	case resp.StatusCode == http.StatusRequestedRangeNotSatisfiable && ranged:
		_, total, ok := parseContentRange(resp.Header.Get("Content-Range"))
		if !ok || total > off {
			return nil, &StatusError{Code: resp.StatusCode}
		}
		p.total = total // what follows offset off is empty
		return p, nil
	}
	return nil, &StatusError{Code: resp.StatusCode}
}

// parseContentRange reads "bytes 5-9/10" and "bytes */10", for which first is
// -1.
func parseContentRange(s string) (first, total int64, ok bool) {
	s, found := strings.CutPrefix(s, "bytes ")
	if !found {
		return 0, 0, false
	}
	span, size, _ := strings.Cut(s, "/")
	total, err := strconv.ParseInt(size, 10, 64)
	if err != nil || total < 0 {
		return 0, 0, false
	}
	if span == "*" {
		return -1, total, true
	}
	a, b, _ := strings.Cut(span, "-")
	first, err = strconv.ParseInt(a, 10, 64)
	last, err2 := strconv.ParseInt(b, 10, 64)
	if err != nil || err2 != nil || first < 0 || last < first || last >= total {
		return 0, 0, false
	}
	return first, total, true
}

// Read reads what the storage daemon sends, and gives up when it stalls.
func (p *part) Read(b []byte) (int, error) {
	p.watch.expect(p.stall, "the storage daemon sends nothing")
	n, err := p.body.Read(b)
	p.watch.pause() // a slow reader is nobody's fault
	if err != nil && err != io.EOF {
		if cause := p.cause(); cause != nil {
			err = cause
		}
	}
	return n, err
}

// Close ends the request.
func (p *part) Close() error {
	p.watch.stop()
	if p.body != nil {
		_ = p.body.Close() // nothing is lost that was not read
	}
	p.cancel(nil)
	return nil
}
