package protocol_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/protocol/protocoltest"
)

func newClient(t testing.TB, o protocol.ClientOptions) *protocol.Client {
	t.Helper()
	c, err := protocol.NewClient(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

func TestNewClientNamesAllThatIsWrong(t *testing.T) {
	_, err := protocol.NewClient(protocol.ClientOptions{
		Trackers: []string{"good:7001", "bad:port", "", "http://x"},
		Timeout:  -1,
		MaxConns: -1,
	})
	if err == nil {
		t.Fatal("no error")
	}
	for _, want := range []string{`"bad:port"`, `""`, `"http://x"`, "Timeout", "MaxConns"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q does not name %s", err, want)
		}
	}
	if _, err := protocol.NewClient(protocol.ClientOptions{}); err == nil {
		t.Error("a client without trackers was made")
	}
}

func TestTrackerAddresses(t *testing.T) {
	c := newClient(t, protocol.ClientOptions{Trackers: []string{"a", "a:7001", " b:1 ", "::1", "[::1]:7002", ":7003", "10.0.0.1"}})
	want := []string{"a:7001", "b:1", "[::1]:7001", "[::1]:7002", "127.0.0.1:7003", "10.0.0.1:7001"}
	if diff := cmp.Diff(want, c.Trackers()); diff != "" {
		t.Error(diff)
	}
}

// echo answers every request with its own arguments.
func echo(req protocol.Request) protocoltest.Reply {
	return protocoltest.Reply{Fields: req.Args}
}

func TestDo(t *testing.T) {
	t.Parallel()
	tr := protocoltest.NewTracker(t, func(req protocol.Request) protocoltest.Reply {
		if req.Args.True("fail") {
			return protocoltest.Reply{Err: &protocol.Error{Code: "dup", Text: "a text & more"}}
		}
		return echo(req)
	}, nil)
	c := newClient(t, protocol.ClientOptions{Trackers: []string{tr.Addr()}})
	args := protocol.Args{{"key", "a b&c=d\r\n\x00é%"}, {"empty", ""}}
	reply, err := c.Do(t.Context(), "noop", args)
	if err != nil || !cmp.Equal(args, reply) {
		t.Errorf("got %v, %v", reply, err)
	}
	reply, err = c.Do(t.Context(), "noop", protocol.Args{{"callid", "mine"}})
	if err != nil || reply.Get("callid") != "mine" {
		t.Errorf("own callid: got %v, %v", reply, err)
	}
	_, err = c.Do(t.Context(), "noop", protocol.Args{{"fail", "1"}})
	if e, ok := errors.AsType[*protocol.Error](err); !ok || e.Code != "dup" || e.Message() != "a text & more" {
		t.Errorf("refusal: %v", err)
	}
	if n := tr.Accepted(); n != 1 {
		t.Errorf("%d connections for requests one after the other", n)
	}
	for _, command := range []string{"", "a b", "a\nb", "!stats"} {
		if _, err := c.Do(t.Context(), command, nil); err == nil {
			t.Errorf("command %q was sent", command)
		}
	}
	if _, err := c.Do(t.Context(), "noop", protocol.Args{{"k", strings.Repeat("x", protocol.MaxLine)}}); err == nil {
		t.Error("a line that is too long was sent")
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if _, err := c.Do(t.Context(), "noop", nil); !errors.Is(err, protocol.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}

// A tracker that answers late must not have its answer taken for the next
// request's: the oldest trap of MogileFS's clients.
func TestLateReply(t *testing.T) {
	t.Parallel()
	for _, how := range []string{"timeout", "cancel"} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			release, arrived := make(chan struct{}), make(chan struct{})
			var once sync.Once
			tr := protocoltest.NewTracker(t, func(req protocol.Request) protocoltest.Reply {
				r := echo(req)
				if req.Args.Get("key") == "slow" {
					once.Do(func() { close(arrived) })
					r.Wait = release
				}
				return r
			}, nil)
			o := protocol.ClientOptions{Trackers: []string{tr.Addr()}, Timeout: 20 * time.Second}
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			if how == "timeout" {
				o.Timeout = time.Second
			} else {
				go func() { <-arrived; cancel() }()
			}
			c := newClient(t, o)
			_, err := c.Do(ctx, "delete", protocol.Args{{"key", "slow"}})
			te, ok := errors.AsType[*protocol.TrackerError](err)
			if !ok || !te.Sent || te.Tracker != tr.Addr() {
				t.Fatalf("slow request: %v", err)
			}
			if how == "cancel" && !errors.Is(err, context.Canceled) {
				t.Errorf("cancelled request: %v", err)
			}
			close(release)
			for i := range 20 {
				key := fmt.Sprint("fast", i)
				reply, err := c.Do(t.Context(), "delete", protocol.Args{{"key", key}})
				if err != nil || reply.Get("key") != key {
					t.Fatalf("request %d: got %v, %v", i, reply, err)
				}
			}
			if n := tr.Accepted(); n != 2 {
				t.Errorf("%d connections, want 2", n)
			}
		})
	}
}

// What a tracker says unasked is nobody's answer.
func TestStrayReplies(t *testing.T) {
	t.Parallel()
	replies := []string{
		"OK n=1\r\nOK n=stray\r\n",
		"OK n=2\r\n",
		"OK n=3&callid=other\r\n",
		"ERR unknown_key unknown_key other\r\n",
		"WHAT\r\n",
		"OK n=6\r\n",
	}
	var mu sync.Mutex
	tr := protocoltest.NewTracker(t, func(req protocol.Request) protocoltest.Reply {
		mu.Lock()
		defer mu.Unlock()
		r := protocoltest.Reply{Raw: replies[0]}
		replies = replies[1:]
		return r
	}, nil)
	c := newClient(t, protocol.ClientOptions{Trackers: []string{tr.Addr()}})
	for i, want := range []string{"1", "2", "", "", "", "6"} {
		reply, err := c.Do(t.Context(), "delete", nil)
		if want != "" && (err != nil || reply.Get("n") != want) {
			t.Errorf("request %d: got %v, %v", i+1, reply, err)
		}
		if want == "" && !errors.Is(err, protocol.ErrBadReply) {
			t.Errorf("request %d: got %v, %v, want %v", i+1, reply, err, protocol.ErrBadReply)
		}
	}
}

func TestRepliesWithoutEnd(t *testing.T) {
	t.Parallel()
	tr := protocoltest.NewTracker(t, func(req protocol.Request) protocoltest.Reply {
		return protocoltest.Reply{Raw: "OK " + strings.Repeat("x", protocol.MaxLine+1<<16)}
	}, nil)
	c := newClient(t, protocol.ClientOptions{Trackers: []string{tr.Addr()}})
	if _, err := c.Do(t.Context(), "delete", nil); !errors.Is(err, protocol.ErrBadReply) {
		t.Errorf("got %v", err)
	}
}

// A connection that breaks in the middle of a request: what only reads is
// repeated, what changes something is not.
func TestBrokenRequest(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		command string
		args    protocol.Args
		repeats bool
	}{
		{"get_paths", nil, true},
		{"list_keys", nil, true},
		{"create_open", nil, true},
		{"create_open", protocol.Args{{"fid", "0"}}, true},
		{"create_open", protocol.Args{{"fid", "7"}}, false},
		{"delete", nil, false},
		{"rename", nil, false},
		{"create_close", nil, false},
		{"set_state", nil, false},
		{"unheard_of", nil, false},
	} {
		t.Run(c.command, func(t *testing.T) {
			t.Parallel()
			var mu sync.Mutex
			n := 0
			tr := protocoltest.NewTracker(t, func(req protocol.Request) protocoltest.Reply {
				mu.Lock()
				defer mu.Unlock()
				n++
				if n == 1 {
					return protocoltest.Reply{Raw: "OK half=a", HangUp: true}
				}
				return protocoltest.Reply{Fields: protocol.Args{{"n", fmt.Sprint(n)}}}
			}, nil)
			client := newClient(t, protocol.ClientOptions{Trackers: []string{tr.Addr()}})
			reply, err := client.Do(t.Context(), c.command, c.args)
			if c.repeats {
				if err != nil || reply.Get("n") != "2" {
					t.Errorf("got %v, %v", reply, err)
				}
				return
			}
			if te, ok := errors.AsType[*protocol.TrackerError](err); !ok || !te.Sent {
				t.Errorf("got %v, %v", reply, err)
			}
			if got := len(tr.Requests()); got != 1 {
				t.Errorf("%s was sent %d times", c.command, got)
			}
		})
	}
}

// Idle connections that the tracker has closed are noticed before a request is
// risked on them.
func TestStaleConnection(t *testing.T) {
	t.Parallel()
	tr := protocoltest.NewTracker(t, echo, nil)
	c := newClient(t, protocol.ClientOptions{Trackers: []string{tr.Addr()}})
	for range 5 {
		if _, err := c.Do(t.Context(), "delete", nil); err != nil {
			t.Fatal(err)
		}
		tr.Break()
	}
}

// deadAddr is an address where nothing listens.
func deadAddr(t *testing.T) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func TestFailover(t *testing.T) {
	t.Parallel()
	a := protocoltest.NewTracker(t, echo, nil)
	b := protocoltest.NewTracker(t, echo, nil)
	addrs := []string{deadAddr(t), a.Addr(), b.Addr()}
	for range 8 { // each begins somewhere
		c := newClient(t, protocol.ClientOptions{Trackers: addrs})
		for range 3 {
			if _, err := c.Do(t.Context(), "delete", nil); err != nil { // not repeatable, but nothing was written
				t.Fatal(err)
			}
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
	c := newClient(t, protocol.ClientOptions{Trackers: addrs})
	a.Close()
	if _, err := c.Do(t.Context(), "delete", nil); err != nil {
		t.Fatal(err)
	}
	before := len(b.Requests())
	for range 10 {
		if _, err := c.Do(t.Context(), "delete", nil); err != nil {
			t.Fatal(err)
		}
	}
	if got := len(b.Requests()) - before; got != 10 {
		t.Errorf("the one tracker left got %d of 10 requests", got)
	}
	b.Close()
	_, err := c.Do(t.Context(), "delete", nil)
	if err == nil {
		t.Fatal("no tracker is left, and no error")
	}
	for _, addr := range addrs {
		if !strings.Contains(err.Error(), addr) {
			t.Errorf("%q does not name tracker %s", err, addr)
		}
	}
}

// A tracker that hangs is left alone for a while, and asked again when no other
// is left.
func TestHangingTracker(t *testing.T) {
	t.Parallel()
	never := make(chan struct{})
	hanging := protocoltest.NewTracker(t, func(protocol.Request) protocoltest.Reply {
		return protocoltest.Reply{Wait: never}
	}, nil)
	t.Cleanup(func() { close(never) })
	good := protocoltest.NewTracker(t, echo, nil)
	for range 3 {
		c := newClient(t, protocol.ClientOptions{Trackers: []string{hanging.Addr(), good.Addr()}, Timeout: time.Second})
		before := len(hanging.Requests())
		for range 5 {
			if _, err := c.Do(t.Context(), "get_paths", nil); err != nil {
				t.Fatal(err)
			}
		}
		if n := len(hanging.Requests()) - before; n > 1 {
			t.Errorf("the hanging tracker got %d requests", n)
		}
	}
}

func TestConnectionsAreBounded(t *testing.T) {
	t.Parallel()
	const conns, callers = 3, 20
	var mu sync.Mutex
	waiting := 0
	full, release := make(chan struct{}), make(chan struct{})
	tr := protocoltest.NewTracker(t, func(req protocol.Request) protocoltest.Reply {
		mu.Lock()
		defer mu.Unlock()
		if waiting++; waiting == conns {
			close(full)
		}
		r := echo(req)
		r.Wait = release
		return r
	}, nil)
	c := newClient(t, protocol.ClientOptions{Trackers: []string{tr.Addr()}, MaxConns: conns})
	var wg sync.WaitGroup
	for i := range callers {
		wg.Go(func() {
			reply, err := c.Do(t.Context(), "delete", protocol.Args{{"key", fmt.Sprint(i)}})
			if err != nil || reply.Get("key") != fmt.Sprint(i) {
				t.Errorf("caller %d: %v, %v", i, reply, err)
			}
		})
	}
	<-full
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := c.Do(ctx, "delete", nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("waiting for a connection: %v", err)
	}
	close(release)
	wg.Wait()
	if tr.Peak() > conns || tr.Accepted() > conns {
		t.Errorf("%d connections at once, %d in all, want at most %d", tr.Peak(), tr.Accepted(), conns)
	}
}

func TestIdleConnectionsAreBounded(t *testing.T) {
	t.Parallel()
	tr := protocoltest.NewTracker(t, echo, nil)
	c := newClient(t, protocol.ClientOptions{Trackers: []string{tr.Addr()}, IdleTimeout: time.Nanosecond})
	for range 3 {
		if _, err := c.Do(t.Context(), "noop", nil); err != nil {
			t.Fatal(err)
		}
	}
	if n := tr.Accepted(); n != 3 {
		t.Errorf("%d connections, want 3, as each is too old at once", n)
	}
}

func TestDoAt(t *testing.T) {
	t.Parallel()
	a := protocoltest.NewTracker(t, echo, nil)
	b := protocoltest.NewTracker(t, echo, nil)
	c := newClient(t, protocol.ClientOptions{Trackers: []string{a.Addr(), b.Addr()}})
	for range 3 {
		if _, err := c.DoAt(t.Context(), b.Addr(), "noop", nil); err != nil {
			t.Fatal(err)
		}
	}
	if len(a.Requests()) != 0 || len(b.Requests()) != 3 {
		t.Errorf("a got %d, b got %d", len(a.Requests()), len(b.Requests()))
	}
	if _, err := c.DoAt(t.Context(), "elsewhere:1", "noop", nil); err == nil {
		t.Error("a tracker that is not the client's was asked")
	}
}

func TestConsole(t *testing.T) {
	t.Parallel()
	cluster := protocoltest.NewCluster(t, 1, 1)
	c := newClient(t, protocol.ClientOptions{Trackers: cluster.Addrs()})
	var lines []string
	for line, err := range c.Console(t.Context(), cluster.Addrs()[0], "!stats") {
		if err != nil {
			t.Fatal(err)
		}
		lines = append(lines, line)
	}
	if len(lines) != 5 || lines[0] != "uptime 42" {
		t.Errorf("got %q", lines)
	}
	for _, command := range []string{"stats", "", "!stats\r\nnoop"} {
		for _, err := range c.Console(t.Context(), cluster.Addrs()[0], command) {
			if err == nil {
				t.Errorf("console command %q was sent", command)
			}
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	for line, err := range c.Console(ctx, cluster.Addrs()[0], "!watch") {
		if err == nil {
			cancel()
			continue
		}
		if !errors.Is(err, context.Canceled) {
			t.Errorf("watch: %q, %v", line, err)
		}
	}
	cancel()
}

func TestListings(t *testing.T) {
	t.Parallel()
	cluster := protocoltest.NewCluster(t, 1, 2)
	c := newClient(t, protocol.ClientOptions{Trackers: cluster.Addrs()})
	hosts, err := c.Hosts(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	want := protocol.Host{ID: 2, Name: "store2", Status: "alive", IP: "127.0.0.1", Port: cluster.Storage[1].Port()}
	if len(hosts) != 2 || hosts[1] != want {
		t.Errorf("hosts: got %+v", hosts)
	}
	devs, err := c.Devices(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	wantDev := protocol.Device{ID: 2, HostID: 2, Status: "alive", Observed: "writeable", Weight: 100, TotalMB: 2000, UsedMB: 1000, Utilization: "0.40", RejectsBadMD5: "1"}
	if len(devs) != 2 || devs[1] != wantDev {
		t.Errorf("devices: got %+v", devs)
	}
	domains, err := c.Domains(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	wantDomains := []protocol.Domain{{Name: "test", Classes: []protocol.Class{
		{Name: "default", MinDevCount: 2, ReplPolicy: "MultipleHosts()", HashType: "NONE"},
		{Name: "single", MinDevCount: 1, ReplPolicy: "MultipleHosts()", HashType: "MD5"},
	}}}
	if diff := cmp.Diff(wantDomains, domains); diff != "" {
		t.Error(diff)
	}
	settings, err := c.Settings(t.Context())
	if err != nil || !cmp.Equal(settings, []protocol.Setting{{Key: "schema_version", Value: "17"}}) {
		t.Errorf("settings: got %v, %v", settings, err)
	}
}

// Counts that a reply cannot hold are no reason to allocate.
func TestAbsurdCounts(t *testing.T) {
	t.Parallel()
	for _, n := range []string{"-1", "1", "2000000000", "9223372036854775807"} {
		for _, name := range []string{"hosts", "devices", "domains", "key_count", "paths", "dev_count"} {
			tr := protocoltest.NewTracker(t, func(protocol.Request) protocoltest.Reply {
				return protocoltest.Reply{Fields: protocol.Args{{name, n}, {"domain1classes", n}, {"fid", "1"}}}
			}, nil)
			c := newClient(t, protocol.ClientOptions{Trackers: []string{tr.Addr()}})
			var err error
			switch name {
			case "hosts":
				_, err = c.Hosts(t.Context())
			case "devices":
				_, err = c.Devices(t.Context())
			case "domains":
				_, err = c.Domains(t.Context())
			case "key_count":
				_, err = c.KeysAfter(t.Context(), "d", "", "", 10)
				if _, err2 := c.Settings(t.Context()); !errors.Is(err2, protocol.ErrBadReply) {
					t.Errorf("settings with key_count=%s: %v", n, err2)
				}
			case "paths":
				if n == "-1" {
					continue
				}
				_, err = c.Paths(t.Context(), "d", "k", protocol.PathsOptions{})
			case "dev_count":
				_, err = c.Create(t.Context(), "d", "k", protocol.CreateOptions{}, strings.NewReader("x"))
			}
			if !errors.Is(err, protocol.ErrBadReply) {
				t.Errorf("%s=%s: %v", name, n, err)
			}
		}
	}
}
