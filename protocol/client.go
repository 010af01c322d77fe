package protocol

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// ClientOptions say how a [Client] behaves. Only Trackers is needed; zero
// values get the defaults named here.
type ClientOptions struct {
	// Trackers are the addresses of one cluster's trackers, "host:port" or
	// "host" for port 7001.
	Trackers []string

	// DialTimeout bounds connecting to a tracker or a storage daemon: 2 s.
	DialTimeout time.Duration
	// Timeout is how long one tracker may take over one request: 20 s. With
	// several trackers a repeatable request can take that long at each; bound
	// the whole with the context.
	Timeout time.Duration

	// MaxConns bounds the connections to each tracker: 32. A request that finds
	// all of them busy waits.
	MaxConns int
	// MaxIdle bounds the connections kept for later to each tracker: MaxConns.
	MaxIdle int
	// IdleTimeout is how long a connection is kept unused: 1 minute.
	IdleTimeout time.Duration

	// HeaderTimeout is how long a storage daemon may take to begin its answer
	// to a GET, before the next path is tried: 10 s.
	HeaderTimeout time.Duration
	// StoreTimeout is how long a storage daemon may take to answer an upload
	// after its last byte, flushing included: 2 minutes.
	StoreTimeout time.Duration
	// StallTimeout is how long a storage daemon may take over each piece of an
	// upload or a download: 30 s. There is no bound on the whole, so that files
	// can have any size.
	StallTimeout time.Duration

	// Buffer is how many bytes of a body that cannot seek are kept in memory,
	// so that they can be sent to another device when the first refuses:
	// 1 MiB. Negative keeps none.
	Buffer int

	// Zone "alt" asks for paths with the hosts' alternative addresses.
	Zone string
	// MissingOK has Delete and Rename succeed where the key is not there, as
	// MogileFS's own client does.
	MissingOK bool

	// Dial connects to trackers; nil is the operating system's TCP.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// HTTP speaks to storage daemons; nil is a client of our own without proxy,
	// compression or redirects. One that has a total timeout cannot carry big
	// files.
	HTTP *http.Client
}

// Client talks to the trackers of one cluster, and to its storage daemons. It
// may be used by many goroutines at once.
//
// Requests go to one tracker, chosen at random when the client is made, for as
// long as it answers, so that a program sees its own changes; then to the next.
// A tracker that does not answer is left alone for a while (from a quarter of a
// second, doubling to half a minute), unless no other is left.
//
// A connection carries one request at a time, and is used again only after
// exactly its reply has been read. When a request times out or is cancelled, or
// anything unexpected arrives, the connection is closed, so that a late reply is
// never taken for another request's.
//
// A request is repeated at another tracker only if nothing of it was written, or
// if repeating it is harmless.
type Client struct {
	o        ClientOptions
	trackers []*tracker
	current  atomic.Int32 // index of the tracker that answered last
	calls    atomic.Uint64
	closed   atomic.Bool
	http     *http.Client
	ownHTTP  *http.Transport // nil where the caller gave a client
}

// ErrClosed is returned by a [Client] after Close.
var ErrClosed = errors.New("client is closed")

// NewClient makes a client, without connecting yet. Its error names everything
// that is wrong with the options.
func NewClient(o ClientOptions) (*Client, error) {
	c := &Client{o: o, http: o.HTTP}
	var errs []error
	for _, addr := range o.Trackers {
		a, err := trackerAddress(addr)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if !slices.ContainsFunc(c.trackers, func(t *tracker) bool { return t.addr == a }) {
			c.trackers = append(c.trackers, &tracker{addr: a})
		}
	}
	if len(o.Trackers) == 0 {
		errs = append(errs, errors.New("no tracker is named"))
	}
	for _, d := range []struct {
		name  string
		value *time.Duration
		def   time.Duration
	}{
		{"DialTimeout", &c.o.DialTimeout, 2 * time.Second},
		{"Timeout", &c.o.Timeout, 20 * time.Second},
		{"IdleTimeout", &c.o.IdleTimeout, time.Minute},
		{"HeaderTimeout", &c.o.HeaderTimeout, 10 * time.Second},
		{"StoreTimeout", &c.o.StoreTimeout, 2 * time.Minute},
		{"StallTimeout", &c.o.StallTimeout, 30 * time.Second},
	} {
		switch {
		case *d.value == 0:
			*d.value = d.def
		case *d.value < 0:
			errs = append(errs, fmt.Errorf("%s is negative", d.name))
		}
	}
	if o.MaxConns < 0 || o.MaxIdle < 0 {
		errs = append(errs, errors.New("MaxConns or MaxIdle is negative"))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("tracker client: %w", err)
	}
	if o.MaxConns == 0 {
		c.o.MaxConns = 32
	}
	if o.MaxIdle == 0 || o.MaxIdle > c.o.MaxConns {
		c.o.MaxIdle = c.o.MaxConns
	}
	switch {
	case o.Buffer == 0:
		c.o.Buffer = 1 << 20
	case o.Buffer < 0:
		c.o.Buffer = 0
	}
	if o.Dial == nil {
		c.o.Dial = (&net.Dialer{}).DialContext
	}
	for _, t := range c.trackers {
		t.slots = make(chan struct{}, c.o.MaxConns)
	}
	c.current.Store(rand.Int32N(int32(len(c.trackers))))
	if c.http == nil {
		c.ownHTTP = &http.Transport{
			DialContext:         (&net.Dialer{Timeout: c.o.DialTimeout, KeepAlive: 30 * time.Second}).DialContext,
			DisableCompression:  true,
			MaxIdleConns:        256,
			MaxIdleConnsPerHost: c.o.MaxConns,
			IdleConnTimeout:     c.o.IdleTimeout,
			WriteBufferSize:     64 << 10,
			ReadBufferSize:      64 << 10,
		}
		c.http = &http.Client{
			Transport:     c.ownHTTP,
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		}
	}
	return c, nil
}

// trackerAddress completes "host" and ":port", and refuses what cannot be an
// address.
func trackerAddress(s string) (string, error) {
	addr := strings.TrimSpace(s)
	host, port, err := net.SplitHostPort(addr)
	if err != nil { // no port, as in "tracker1", "::1" and "[::1]"
		host, port = strings.TrimSuffix(strings.TrimPrefix(addr, "["), "]"), DefaultPort
		if strings.Contains(host, ":") && net.ParseIP(host) == nil {
			return "", fmt.Errorf("tracker %q is not an address such as host:7001", s)
		}
	}
	if host == "" {
		host = "127.0.0.1"
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if addr == "" || err != nil || n == 0 || strings.ContainsAny(host, " /@[]") {
		return "", fmt.Errorf("tracker %q is not an address such as host:7001", s)
	}
	return net.JoinHostPort(host, port), nil
}

// Trackers are the addresses that the client uses, completed, in the order
// given.
func (c *Client) Trackers() []string {
	addrs := make([]string, len(c.trackers))
	for i, t := range c.trackers {
		addrs[i] = t.addr
	}
	return addrs
}

// Close closes the connections that are idle now, and each of the others when
// its request ends. Requests made later get [ErrClosed].
func (c *Client) Close() error {
	c.closed.Store(true)
	for _, t := range c.trackers {
		t.dropIdle()
	}
	if c.ownHTTP != nil {
		c.ownHTTP.CloseIdleConnections()
	}
	return nil
}

// TrackerError is a request that got no answer from a tracker.
type TrackerError struct {
	Tracker string // address
	Command string
	// Sent is true where the tracker may have executed the request.
	Sent bool
	Err  error
}

// Error names the tracker and the command.
func (e *TrackerError) Error() string {
	return "tracker " + e.Tracker + ": " + e.Command + ": " + e.Err.Error()
}

// Unwrap is the cause.
func (e *TrackerError) Unwrap() error { return e.Err }

// trackerErrors are the failures of one request at several trackers, on one
// line.
type trackerErrors []error

func (e trackerErrors) Error() string {
	texts := make([]string, len(e))
	for i, err := range e {
		texts[i] = err.Error()
	}
	return strings.Join(texts, "; ")
}

func (e trackerErrors) Unwrap() []error { return e }

// Do sends one request and returns the fields of its reply. A refusal is an
// error of type *[Error]; no answer is one or several *[TrackerError].
//
// command is letters, digits and "_"; args may have any bytes.
func (c *Client) Do(ctx context.Context, command string, args Args) (Args, error) {
	reply, _, err := c.do(ctx, command, args, c.o.Timeout, repeatable(command, args))
	return reply, err
}

// DoAt is [Client.Do] at one tracker, named as in [Client.Trackers].
func (c *Client) DoAt(ctx context.Context, tracker, command string, args Args) (Args, error) {
	t, err := c.tracker(tracker)
	if err != nil {
		return nil, err
	}
	q, err := c.newCall(command, args, c.o.Timeout, repeatable(command, args))
	if err != nil {
		return nil, err
	}
	reply, _, err := c.ask(ctx, t, q)
	return reply, err
}

func (c *Client) tracker(addr string) (*tracker, error) {
	for _, t := range c.trackers {
		if t.addr == addr {
			return t, nil
		}
	}
	return nil, fmt.Errorf("tracker %q is not one of this client's", addr)
}

// repeatable reports whether a request may be sent again although it may have
// been executed: it only reads, or doing it twice is the same as once. An
// upload that was opened twice is one that is never closed, which trackers
// expire. (A delete is not: somebody may have stored the key again in between.)
func repeatable(command string, args Args) bool {
	switch strings.ToLower(command) {
	case "get_paths", "file_info", "file_debug", "list_keys", "list_fids",
		"get_domains", "get_hosts", "get_devices", "server_setting", "server_settings",
		"fsck_status", "fsck_getlog", "rebalance_status", "rebalance_test",
		"noop", "test", "clear_cache", "do_monitor_round", "replicate_now":
		return true
	case "create_open":
		return !args.True("fid")
	}
	return false
}

// call is one request, ready to be sent.
type call struct {
	command string
	line    []byte
	callid  string
	ownID   bool // callid is the client's, not the caller's
	timeout time.Duration
	repeat  bool
}

func (c *Client) newCall(command string, args Args, timeout time.Duration, repeat bool) (*call, error) {
	if command == "" {
		return nil, errors.New("request without a command")
	}
	for i := range len(command) {
		if !isWord(command[i]) {
			return nil, fmt.Errorf("%q is not the name of a command", command)
		}
	}
	q := &call{command: command, timeout: timeout, repeat: repeat}
	q.callid, q.ownID = args.Lookup("callid")
	q.ownID = !q.ownID
	q.line = append(make([]byte, 0, 256), command...)
	q.line = append(q.line, ' ')
	q.line = args.Append(q.line)
	if q.ownID {
		q.callid = strconv.FormatUint(c.calls.Add(1), 10)
		if len(args) > 0 {
			q.line = append(q.line, '&')
		}
		q.line = append(q.line, "callid="...)
		q.line = append(q.line, q.callid...)
	}
	q.line = append(q.line, '\r', '\n')
	if len(q.line) > MaxLine {
		return nil, fmt.Errorf("%s: the request has %d bytes, more than the %d a line may have", command, len(q.line), MaxLine)
	}
	return q, nil
}

// do asks one tracker after the other. again reports whether the request may
// have been executed before it got the answer returned.
func (c *Client) do(ctx context.Context, command string, args Args, timeout time.Duration, repeat bool) (reply Args, again bool, err error) {
	q, err := c.newCall(command, args, timeout, repeat)
	if err != nil {
		return nil, false, err
	}
	var errs trackerErrors
	for _, i := range c.order(time.Now()) {
		reply, sent, err := c.ask(ctx, c.trackers[i], q)
		again = again || sent
		if _, failed := errors.AsType[*TrackerError](err); !failed {
			if !errors.Is(err, ErrClosed) {
				c.current.Store(int32(i))
			}
			return reply, again, err
		}
		errs = append(errs, err)
		if ctx.Err() != nil || sent && !repeat {
			break
		}
	}
	if len(errs) == 1 {
		return nil, again, errs[0]
	}
	return nil, again, errs
}

// order lists the trackers to ask: the current one, those after it in turn, and
// at the end those that are to be left alone, soonest due first.
func (c *Client) order(now time.Time) []int {
	n := len(c.trackers)
	order := make([]int, 0, n)
	var resting []int
	var due []time.Time
	for k := range n {
		i := (int(c.current.Load()) + k) % n
		until := c.trackers[i].restsUntil()
		if !until.After(now) {
			order = append(order, i)
			continue
		}
		at, _ := slices.BinarySearchFunc(due, until, time.Time.Compare)
		resting, due = slices.Insert(resting, at, i), slices.Insert(due, at, until)
	}
	return append(order, resting...)
}
