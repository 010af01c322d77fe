package peers

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
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

// Client fetches pieces of files from storage daemons, any that serve ranges. Its
// methods may be called concurrently.
type Client struct {
	transport *http.Transport
	silence   time.Duration
}

// NewClient makes a Client. It must be closed.
func NewClient() *Client {
	dial := net.Dialer{Timeout: connTime, KeepAlive: 30 * time.Second}
	return &Client{
		transport: &http.Transport{
			Proxy:                  nil, // whatever the environment says
			DialContext:            dial.DialContext,
			DisableCompression:     true,
			MaxIdleConnsPerHost:    keptPerDaemon,
			IdleConnTimeout:        keptFor,
			MaxResponseHeaderBytes: 64 << 10,
			ReadBufferSize:         4 << 10, // large reads pass it by
		},
		silence: silence,
	}
}

// Close gives the connections up that are kept.
func (c *Client) Close() { c.transport.CloseIdleConnections() }

// errBroken says that a daemon broke off.
var errBroken = errors.New("the storage daemon broke off")

// errSilent is the cause of the end of a request to a daemon that sends nothing.
var errSilent = errors.New("the storage daemon is silent")

// Piece is a part of a file as it comes from a storage daemon. It is read by one
// goroutine at a time; Close may be called by another meanwhile, and ends what
// Read waits for.
type Piece struct {
	body    io.ReadCloser
	url     string
	size    int64 // of the whole file
	left    int64
	silence time.Duration
	dog     *time.Timer // ends the request when nothing comes
	cancel  context.CancelCauseFunc
	cause   func() error
}

// Get asks for n bytes (at least one) at off of a file, or as many as it has from
// there. fs.ErrNotExist says that there is no such file, io.EOF that it ends
// before off. Other errors say that it could not be asked for. The request ends
// with ctx.
func (c *Client) Get(ctx context.Context, daemon, path string, off, n int64) (*Piece, error) {
	u, err := url.Parse(daemon + "/" + path)
	if err != nil {
		return nil, fmt.Errorf("GET %s/%s: %w", daemon, path, err)
	}
	p := &Piece{url: daemon + "/" + path, silence: c.silence}
	ctx, p.cancel = context.WithCancelCause(ctx)
	p.cause = func() error { return context.Cause(ctx) }
	p.dog = time.AfterFunc(p.silence, func() { p.cancel(fmt.Errorf("%w for %v: %w", errSilent, p.silence, os.ErrDeadlineExceeded)) })
	req := (&http.Request{
		Method: http.MethodGet, URL: u, Host: u.Host, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: http.Header{"User-Agent": {"Mogile"}, "Range": {fmt.Sprintf("bytes=%d-%d", off, off+n-1)}},
	}).WithContext(ctx)
	res, err := c.transport.RoundTrip(req) // not a client: redirects and cookies are not for us
	if err != nil {
		err = p.explain(err)
		p.end()
		return nil, err
	}
	p.dog.Stop()
	p.body = res.Body
	if err := p.accept(res, off, n); err != nil {
		_ = p.Close() // nothing more is wanted of it
		return nil, err
	}
	return p, nil
}

// accept sees whether an answer is the piece that was asked for.
func (p *Piece) accept(res *http.Response, off, n int64) error {
	switch res.StatusCode {
	case http.StatusPartialContent:
		first, last, size, ok := parseRange(res.Header.Get("Content-Range"))
		if !ok || first != off || last < first || last >= off+n || last >= size || res.ContentLength >= 0 && res.ContentLength != last-first+1 {
			return fmt.Errorf("GET %s: %q is not the range that was asked for", p.url, res.Header.Get("Content-Range"))
		}
		p.size, p.left = size, last-first+1
	case http.StatusOK: // all of it, of a server that knows no ranges
		if off != 0 || res.ContentLength < 0 {
			return fmt.Errorf("GET %s: the server sends the whole file, not a range of it", p.url)
		}
		p.size, p.left = res.ContentLength, min(res.ContentLength, n)
	case http.StatusRequestedRangeNotSatisfiable:
		return fmt.Errorf("GET %s at %d: %w", p.url, off, io.EOF)
	case http.StatusNotFound:
		return fmt.Errorf("GET %s: %w", p.url, fs.ErrNotExist)
	default:
		return fmt.Errorf("GET %s: HTTP status %d", p.url, res.StatusCode)
	}
	return nil
}

// parseRange reads "bytes first-last/size".
func parseRange(text string) (first, last, size int64, ok bool) {
	span, ok := strings.CutPrefix(text, "bytes ")
	span, total, ok1 := strings.Cut(span, "/")
	from, to, ok2 := strings.Cut(span, "-")
	first, err1 := strconv.ParseInt(from, 10, 64)
	last, err2 := strconv.ParseInt(to, 10, 64)
	size, err3 := strconv.ParseInt(total, 10, 64)
	return first, last, size, ok && ok1 && ok2 && err1 == nil && err2 == nil && err3 == nil
}

// Size is that of the whole file, in bytes.
func (p *Piece) Size() int64 { return p.size }

// Read implements io.Reader.
func (p *Piece) Read(b []byte) (int, error) {
	if p.left == 0 {
		return 0, io.EOF
	}
	b = b[:min(int64(len(b)), p.left)]
	p.dog.Reset(p.silence)
	n, err := p.body.Read(b)
	p.dog.Stop()
	p.left -= int64(n)
	switch {
	case n > 0 && (err == nil || p.left == 0):
		return n, nil
	case err != nil:
		return n, p.explain(err)
	}
	return n, nil
}

// explain says why the daemon broke off.
func (p *Piece) explain(err error) error {
	if cause := p.cause(); cause != nil {
		err = cause
	}
	if err == io.EOF || errors.Is(err, io.ErrUnexpectedEOF) {
		err = errBroken // the file is as long as was told
	}
	return fmt.Errorf("GET %s: %w", p.url, err)
}

func (p *Piece) end() {
	p.dog.Stop()
	p.cancel(nil)
}

// Close ends the request. Its connection is kept if all was read.
func (p *Piece) Close() error {
	p.end()
	_ = p.body.Close() // one that was not read to its end takes the connection with it
	return nil
}
