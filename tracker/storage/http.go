package storage

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"os"
	"strings"
	"time"

	"github.com/mogile/mogile/tracker/cluster"
)

// request is what send sends.
type request struct {
	method, url string
	header      http.Header
	small       []byte        // a body that can be sent again
	once        bool          // but must not
	stream      io.ReadCloser // or one that cannot
	length      int64         // of stream
	idle        time.Duration // the longest wait for a next sign of life
	patience    time.Duration // the longest wait for all of the answer's body together; 0: any
	dog         *watchdog     // made by the caller where the stream has a say in it
	reused      *bool         // where not nil: set to whether the connection was a kept one
}

// response is an answer. Reading it is watched over; it must be closed.
type response struct {
	*http.Response
	req    request
	ctx    context.Context // of the caller
	dog    *watchdog
	waited time.Duration // for the body so far
}

// watchdog ends a request on which nothing moves for too long.
type watchdog struct {
	context.Context
	cancel context.CancelCauseFunc
	idle   time.Duration
	timer  *time.Timer
}

// watch makes a watchdog over a request of ctx. It sleeps until it is started.
func watch(ctx context.Context, idle time.Duration) *watchdog {
	d := &watchdog{idle: idle}
	d.Context, d.cancel = context.WithCancelCause(ctx)
	d.timer = time.AfterFunc(time.Hour, func() {
		d.cancel(fmt.Errorf("nothing came for %v: %w", idle, os.ErrDeadlineExceeded))
	})
	d.timer.Stop()
	return d
}

func (d *watchdog) start() { d.timer.Reset(d.idle) }
func (d *watchdog) stop()  { d.timer.Stop() }
func (d *watchdog) end()   { d.timer.Stop(); d.cancel(nil) }

// send sends a request and waits for the header of its answer, whatever it
// says. Waiting for a free connection is bounded by what the requests before
// wait, and does not count.
func (c *Client) send(ctx context.Context, lane *http.Transport, q request) (*response, error) {
	dog := q.dog
	if dog == nil {
		dog = watch(ctx, q.idle)
	}
	traced := httptrace.WithClientTrace(dog, &httptrace.ClientTrace{
		GotConn: func(i httptrace.GotConnInfo) {
			if q.reused != nil {
				*q.reused = i.Reused
			}
			dog.start()
		},
	})
	var body io.Reader
	if q.small != nil {
		body = bytes.NewReader(q.small)
	}
	req, err := http.NewRequestWithContext(traced, q.method, q.url, body)
	if err != nil {
		dog.end()
		return nil, fmt.Errorf("%s: %w", q.method, err)
	}
	if q.header != nil {
		req.Header = q.header.Clone()
	}
	if q.stream != nil {
		req.Body, req.ContentLength = q.stream, q.length
	} else if !q.once {
		// Everything else here may be repeated: the transport does so if a kept
		// connection turns out to be closed. A key without a value is not sent.
		req.Header["Idempotency-Key"] = nil
	}
	req.Header.Set("User-Agent", "Mogile")
	if (q.small != nil || q.stream != nil) && req.Header.Get("Content-Type") == "" {
		req.Header.Set("Content-Type", "application/octet-stream")
	}
	if q.method == "MKCOL" {
		req.TransferEncoding = []string{"identity"} // has "Content-Length: 0" sent, which some servers insist on
	}
	res, err := lane.RoundTrip(req) // not a client: redirects and cookies are not for us
	if err != nil {
		err = blame(ctx, dog, q.method, q.url, err)
		dog.end()
		return nil, err
	}
	dog.start()
	c.learn(req.URL.Host, res.Header)
	return &response{Response: res, req: q, ctx: ctx, dog: dog}, nil
}

// blame says who ended a request: the caller, the watchdog or the host.
func blame(ctx context.Context, dog *watchdog, method, url string, err error) error {
	if errors.Is(ctx.Err(), context.Canceled) {
		return fmt.Errorf("%s %s: %w", method, url, context.Cause(ctx))
	}
	if cause := context.Cause(dog); cause != nil {
		err = cause
	}
	return fmt.Errorf("%s %s: %w: %w", method, url, ErrUnreachable, err)
}

// check is the *StatusError of an answer that is not a success.
func (r *response) check() error {
	if r.StatusCode/100 == 2 {
		return nil
	}
	return &StatusError{Method: r.req.method, URL: r.req.url, Status: r.StatusCode}
}

const (
	// leastRate is the least that a body must bring, in bytes a second: a daemon
	// that sends a byte now and then is given up in the end.
	leastRate = 16 << 10
	// idlesOfGrace is how many times as long as for one piece a body may be
	// waited for whatever its rate.
	idlesOfGrace = 10
)

// bodyPatience is how long a body of size bytes is waited for in all.
func bodyPatience(size int64, idle time.Duration) time.Duration {
	seconds := min(max(size, 0)/leastRate, int64(maxPatience/time.Second))
	return idlesOfGrace*idle + time.Duration(seconds)*time.Second
}

// Read reads the body, each piece within the request's idle time and all of
// them within its patience.
func (r *response) Read(p []byte) (int, error) {
	began := time.Now()
	r.dog.start()
	n, err := r.Body.Read(p)
	r.dog.stop()
	r.waited += time.Since(began)
	if err == nil && r.req.patience > 0 && r.waited > r.req.patience {
		return n, fmt.Errorf("%s %s: %w: its body takes more than %v", r.req.method, r.req.url, ErrUnreachable, r.req.patience)
	}
	if err != nil && err != io.EOF {
		err = blame(r.ctx, r.dog, r.req.method, r.req.url, err)
	}
	return n, err
}

func (r *response) readAll(limit int64) ([]byte, error) {
	body, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(body)) > limit {
		return body[:limit], fmt.Errorf("%s %s: %w: more than %d bytes", r.req.method, r.req.url, ErrTooLong, limit)
	}
	return body, nil
}

const (
	// drainLimit is the most bytes of an answer nobody wants that are read so
	// that its connection can be kept.
	drainLimit = 4 << 10
	// drainFor is the longest that they are waited for.
	drainFor = 100 * time.Millisecond
)

// Close ends the request. The connection is kept if little is left unread and
// comes at once.
func (r *response) Close() {
	if r.ContentLength <= drainLimit {
		r.dog.idle = min(r.dog.idle, drainFor)
		r.req.patience, r.waited = drainFor, 0
		// Whatever goes wrong here costs the connection and nothing else.
		_, _ = io.CopyN(io.Discard, r, drainLimit)
	}
	r.dog.end()
	_ = r.Body.Close() // a body that was not read to its end takes the connection with it
}

// learn notes whether the server at addr is a storage daemon of ours.
func (c *Client) learn(addr string, h http.Header) {
	ours := cluster.ParseCapabilities(h.Get("Mogile")).Version > 0
	c.mu.Lock()
	defer c.mu.Unlock()
	if k := c.hosts[addr]; k != nil {
		k.ours = ours
	} else if ours {
		c.hosts[addr] = &host{ours: true}
	}
}

// split takes a URL such as "http://10.0.0.1:7500/dev1/usage" apart: address
// with port, address, path with its slash.
func split(url string) (hostport, addr, path string, err error) {
	rest, ok := strings.CutPrefix(url, "http://")
	i := strings.IndexByte(rest, '/')
	if !ok || i <= 0 {
		return "", "", "", fmt.Errorf("%q is not the URL of a file on a storage daemon", url)
	}
	hostport, path = rest[:i], rest[i:]
	if addr, _, err = net.SplitHostPort(hostport); err != nil {
		return "", "", "", fmt.Errorf("%q is not the URL of a file on a storage daemon: %w", url, err)
	}
	return hostport, addr, path, nil
}

func isLighttpd(server string) bool { return strings.HasPrefix(strings.ToLower(server), "lighttpd") }
