// Package storage is the tracker's client of storage daemons of any make:
// Mogile's, mogstored, cmogstored, nginx and other WebDAV servers.
//
// What every daemon has is HTTP. What is cheaper over the side channel (sizes
// and digests) is asked there first, and over HTTP where there is no side
// channel or it gives no answer; a host whose side channel failed is left in
// peace for half a minute. HTTP connections are kept alive and limited for each
// host, in lanes: work that waits for a slow disk in one lane holds up nothing
// in another, so that the monitor's probes never queue behind copies, nor the
// writing half of one copy behind the reading half of another.
//
// Every wait is bounded: connecting by ConnTimeout, the wait for an answer and
// each further piece of it by NodeTimeout (copies: CopyTimeout). A request is
// repeated only where a kept connection turned out to be closed before any
// answer, never after a timeout.
package storage

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/rs/zerolog"
)

// Options are the settings of a [Client]. The zero value works.
type Options struct {
	PoolSize    int              // connections to each host in each lane; 0 means 20
	NodeTimeout time.Duration    // wait for an answer, and between pieces of it; 0 means 2 s
	ConnTimeout time.Duration    // to connect, and of the monitor's requests; 0 means 2 s
	CopyTimeout time.Duration    // wait on either side of a copy, as NodeTimeout; 0 means 45 s
	MgmtPort    int              // of the side channel, on all hosts; 0 means 7501, below 0 there is none
	Key         []byte           // cluster key that orders are signed with; none: orders go to loopback addresses only
	CopyRate    int64            // bytes a second of all copies together; 0 means any
	SkipMkcol   func() bool      // whether MKCOL is never sent; nil means that it is, where needed
	Now         func() time.Time // for what is remembered for a while; nil means time.Now
	Log         zerolog.Logger
}

// Client talks to storage daemons. It is safe for concurrent use.
type Client struct {
	o Options

	probes *http.Transport // the monitor's requests
	small  *http.Transport // HEAD, DELETE, MKCOL
	reads  *http.Transport // whole files, to copy or to hash
	writes *http.Transport // whole files
	orders *http.Transport // orders, each as long as what it orders takes

	mu       sync.Mutex // guards hosts, sides, dirs and indirect
	hosts    map[string]*host
	sides    map[string]*side
	dirs     map[string]time.Time    // directories that exist, until then taken for granted
	indirect map[[2]string]time.Time // hosts, source and destination, between which no direct copy is tried until then

	copying *bandwidth // nil: without limit
	buffers sync.Pool  // of *[bufferSize]byte
}

// host is what is known of an HTTP server, by "address:port". Guarded by
// Client.mu.
type host struct {
	ours    bool      // it says "Mogile: ...", and makes directories by itself
	noMkcol time.Time // until then it is known to make directories by itself
}

const bufferSize = 64 << 10

var (
	// ErrMissing is matched where the storage daemon says that there is no such
	// file.
	ErrMissing = errors.New("file is missing")
	// ErrUnreachable is matched where the storage daemon gave no answer in time,
	// or one that says nothing of the file. An end of the caller's context by
	// cancellation is not blamed on the host, and does not match.
	ErrUnreachable = errors.New("storage daemon unreachable")
	// ErrTooLong is matched where a small file is longer than was asked for.
	ErrTooLong = errors.New("answer is too long")
)

// StatusError is an HTTP answer that is not a success. It matches
// [ErrMissing] if it is 404, else [ErrUnreachable].
type StatusError struct {
	Method, URL string
	Status      int
}

// Error is "METHOD URL: status".
func (e *StatusError) Error() string {
	return fmt.Sprintf("%s %s: HTTP status %d %s", e.Method, e.URL, e.Status, http.StatusText(e.Status))
}

// Is reports whether target is ErrMissing or ErrUnreachable, whichever e means.
func (e *StatusError) Is(target error) bool {
	if e.Status == http.StatusNotFound {
		return target == ErrMissing
	}
	return target == ErrUnreachable
}

// keptForOrders is how many connections to a storage daemon are kept for further
// orders: what all replication workers of a tracker use at once for small files,
// with the usual 20 of them and two hosts.
const keptForOrders = 64

// New makes a client. It must be closed.
func New(o Options) *Client {
	if o.PoolSize <= 0 {
		o.PoolSize = 20
	}
	if o.NodeTimeout <= 0 {
		o.NodeTimeout = 2 * time.Second
	}
	if o.ConnTimeout <= 0 {
		o.ConnTimeout = 2 * time.Second
	}
	if o.CopyTimeout <= 0 {
		o.CopyTimeout = 45 * time.Second // MogileFS 2.73's wait on a socket while copying
	}
	if o.MgmtPort == 0 {
		o.MgmtPort = 7501
	}
	if o.SkipMkcol == nil {
		o.SkipMkcol = func() bool { return false }
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	c := &Client{
		o:     o,
		hosts: map[string]*host{},
		sides: map[string]*side{},
		dirs:  map[string]time.Time{},

		indirect: map[[2]string]time.Time{},
		copying:  newBandwidth(o.CopyRate),
	}
	c.buffers.New = func() any { return new([bufferSize]byte) }
	c.probes, c.small = c.lane(4<<10), c.lane(4<<10)
	c.reads, c.writes = c.lane(bufferSize), c.lane(bufferSize)
	c.orders = c.lane(4 << 10)
	// Who orders bounds how many there are, and all of those come back for more.
	c.orders.MaxConnsPerHost, c.orders.MaxIdleConnsPerHost, c.orders.MaxIdleConns = 0, keptForOrders, 8*keptForOrders
	return c
}

// lane makes a pool of connections with buffers of that many bytes.
func (c *Client) lane(buffer int) *http.Transport {
	dial := net.Dialer{Timeout: c.o.ConnTimeout, KeepAlive: 30 * time.Second}
	return &http.Transport{
		Proxy:                  nil, // whatever the environment says
		DialContext:            dial.DialContext,
		DisableCompression:     true,
		MaxConnsPerHost:        c.o.PoolSize,
		MaxIdleConnsPerHost:    c.o.PoolSize,
		MaxIdleConns:           8 * c.o.PoolSize,
		IdleConnTimeout:        60 * time.Second,
		MaxResponseHeaderBytes: 64 << 10,
		ReadBufferSize:         buffer,
		WriteBufferSize:        buffer,
	}
}

// Close closes the connections that are not in use. Calls that still run
// close theirs.
func (c *Client) Close() {
	for _, t := range []*http.Transport{c.probes, c.small, c.reads, c.writes, c.orders} {
		t.CloseIdleConnections()
	}
	c.mu.Lock()
	sides := c.sides
	c.sides = map[string]*side{}
	c.mu.Unlock()
	for _, s := range sides {
		s.close()
	}
}

// Get reads a small file, of at most limit bytes, for the monitor: it waits no
// longer than ConnTimeout, in a lane of its own. Errors match ErrMissing,
// ErrUnreachable, or ErrTooLong, with which comes the header and the beginning of
// the file.
func (c *Client) Get(ctx context.Context, url string, limit int64) ([]byte, http.Header, error) {
	r, err := c.send(ctx, c.probes, request{method: http.MethodGet, url: url, idle: c.o.ConnTimeout})
	if err != nil {
		return nil, nil, err
	}
	defer r.Close()
	if err := r.check(); err != nil {
		return nil, r.Header, err
	}
	body, err := r.readAll(limit)
	return body, r.Header, err
}

// Put writes a small file for the monitor: it waits no longer than
// ConnTimeout, in a lane of its own. h may add headers. Errors match
// ErrMissing or ErrUnreachable.
func (c *Client) Put(ctx context.Context, url string, body []byte, h http.Header) error {
	r, err := c.send(ctx, c.probes, request{
		method: http.MethodPut, url: url, small: body, header: h, idle: c.o.ConnTimeout,
	})
	if err != nil {
		return err
	}
	defer r.Close()
	err = r.check()
	c.refused(url, err)
	return err
}

// Delete removes a file. Any 2xx is success; errors match ErrMissing (404), or
// ErrUnreachable, as a *StatusError where there was an answer.
func (c *Client) Delete(ctx context.Context, url string) error {
	r, err := c.send(ctx, c.small, request{method: http.MethodDelete, url: url, idle: c.o.NodeTimeout})
	if err != nil {
		return err
	}
	defer r.Close()
	return r.check()
}

// Size is a file's length in bytes, from the side channel if there is one, else
// by HEAD. That a file is missing is believed over HTTP only, which is where it
// would be fetched. Errors match ErrMissing or ErrUnreachable.
func (c *Client) Size(ctx context.Context, url string) (int64, error) {
	if n, ok := c.sideSize(ctx, url); ok {
		return n, nil
	}
	return c.headSize(ctx, url)
}

// headSize is Size over HTTP.
func (c *Client) headSize(ctx context.Context, url string) (int64, error) {
	r, err := c.send(ctx, c.small, request{method: http.MethodHead, url: url, idle: c.o.NodeTimeout})
	if err != nil {
		return 0, err
	}
	defer r.Close()
	if err := r.check(); err != nil {
		return 0, err
	}
	switch {
	case r.ContentLength >= 0:
		return r.ContentLength, nil
	case isLighttpd(r.Header.Get("Server")):
		return 0, nil // it leaves the header out where the file is empty
	}
	return 0, fmt.Errorf("HEAD %s: %w: an answer without Content-Length", url, ErrUnreachable)
}
