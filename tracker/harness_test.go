package tracker_test

import (
	"bufio"
	"context"
	"crypto/md5"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rs/zerolog"
	"go.uber.org/goleak"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/schema"
	"github.com/mogile/mogile/schema/sqlite"
	"github.com/mogile/mogile/tracker"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience bounds every wait of these tests.
const patience = 20 * time.Second

// farm is fake storage hosts at 127.0.0.1, 127.0.0.2, ..., with one side
// channel port for all.
type farm struct {
	mgmt  int
	hosts []*fakeHost
}

type fakeHost struct {
	ip   string
	http *httptest.Server
	side net.Listener
	wg   sync.WaitGroup
	done chan struct{}

	records  atomic.Bool // requests and lines are kept in heard
	hangs    atomic.Bool // answers nothing
	orders   atomic.Bool // takes orders: see inventory
	anything atomic.Bool // says that every file is there, of 5 bytes

	mu    sync.Mutex // guards what follows
	files map[string][]byte
	devs  map[string]bool // "dev1"
	mkcol int             // how many there were
	heard []string        // request lines of HTTP, and lines of the side channel
}

func newFarm(t testing.TB, hosts, devices int) *farm {
	t.Helper()
	f := &farm{}
	for try := 0; len(f.hosts) < hosts; try++ { // until the port that the first took is free on all
		if try > 20 {
			t.Fatal("no port is free on all addresses")
		}
		f.close()
		f.hosts, f.mgmt = nil, 0
		for i := range hosts {
			ip := "127.0.0." + strconv.Itoa(i+1)
			side, err := net.Listen("tcp", net.JoinHostPort(ip, strconv.Itoa(f.mgmt)))
			if err != nil {
				break
			}
			f.mgmt = side.Addr().(*net.TCPAddr).Port
			f.hosts = append(f.hosts, newFakeHost(t, ip, side))
		}
	}
	dev := 1
	for _, h := range f.hosts {
		for range devices {
			h.devs["dev"+strconv.Itoa(dev)] = true
			dev++
		}
	}
	t.Cleanup(f.close)
	return f
}

func (f *farm) close() {
	for _, h := range f.hosts {
		close(h.done)
		h.http.CloseClientConnections()
		h.http.Close()
		h.side.Close()
		h.wg.Wait()
	}
}

func newFakeHost(t testing.TB, ip string, side net.Listener) *fakeHost {
	t.Helper()
	h := &fakeHost{ip: ip, side: side, done: make(chan struct{}), files: map[string][]byte{}, devs: map[string]bool{}}
	l, err := net.Listen("tcp", net.JoinHostPort(ip, "0"))
	if err != nil {
		t.Fatal(err)
	}
	h.http = &httptest.Server{Listener: l, Config: &http.Server{Handler: h}}
	h.http.Start()
	h.wg.Go(func() {
		for {
			conn, err := side.Accept()
			if err != nil {
				return
			}
			h.wg.Go(func() { h.talk(conn) })
		}
	})
	return h
}

func (h *fakeHost) port() int { return h.http.Listener.Addr().(*net.TCPAddr).Port }

func (h *fakeHost) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if h.hangs.Load() {
		select {
		case <-r.Context().Done():
		case <-h.done:
		}
		return
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.records.Load() {
		h.heard = append(h.heard, r.Method+" "+r.RequestURI)
	}
	if r.Method == http.MethodPost && h.orders.Load() {
		h.inventory(w, body)
		return
	}
	device, _, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	if !h.devs[device] {
		w.WriteHeader(http.StatusNotFound)
		return
	}
	content, there := h.files[r.URL.Path]
	if r.URL.Path == "/"+device+"/usage" {
		content, there = []byte("used: 1000000\ntotal: 10000000\n"), true
	}
	switch r.Method {
	case "MKCOL":
		h.mkcol++
		w.WriteHeader(http.StatusCreated)
	case http.MethodPut:
		sum := md5.Sum(body)
		if want := r.Header.Get("Content-MD5"); want != "" && want != base64.StdEncoding.EncodeToString(sum[:]) {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		h.files[r.URL.Path] = body
		w.WriteHeader(http.StatusCreated)
	case http.MethodDelete:
		if !there {
			w.WriteHeader(http.StatusNotFound)
			return
		}
		delete(h.files, r.URL.Path)
		w.WriteHeader(http.StatusNoContent)
	default:
		if !there {
			w.WriteHeader(http.StatusNotFound)
			return
		}
		w.Header().Set("Content-Length", strconv.Itoa(len(content)))
		_, _ = w.Write(content)
	}
}

// talk is the side channel.
func (h *fakeHost) talk(conn net.Conn) {
	defer conn.Close()
	h.wg.Go(func() { <-h.done; conn.Close() })
	r := bufio.NewReader(conn)
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return
		}
		if h.records.Load() {
			h.mu.Lock()
			h.heard = append(h.heard, strings.TrimRight(line, "\r\n"))
			h.mu.Unlock()
		}
		if h.hangs.Load() {
			continue
		}
		words := strings.Fields(line)
		if len(words) < 2 {
			if _, err := io.WriteString(conn, "ERR iostat unavailable\r\n"); err != nil {
				return
			}
			continue
		}
		h.mu.Lock()
		content, there := h.files[words[1]]
		h.mu.Unlock()
		answer := "ERROR: unknown command: " + words[0]
		switch {
		case words[0] == "size" && h.anything.Load():
			answer = words[1] + " 5"
		case words[0] == "size" && there:
			answer = fmt.Sprintf("%s %d", words[1], len(content))
		case words[0] == "size":
			answer = words[1] + " -1"
		case words[0] == "MD5" && there:
			answer = fmt.Sprintf("%s MD5=%x", words[1], md5.Sum(content))
		}
		if _, err := io.WriteString(conn, answer+"\r\n"); err != nil {
			return
		}
	}
}

// put stores bytes as a client would.
func put(t testing.TB, url, content string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, url, strings.NewReader(content))
	if err != nil {
		t.Fatal(err)
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	res, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if res.StatusCode/100 != 2 {
		t.Fatalf("PUT %s: %s", url, res.Status)
	}
}

// env is a tracker on an embedded database, with fake storage hosts.
type env struct {
	t       testing.TB
	farm    *farm
	store   schema.Store
	tracker *tracker.Tracker
	stop    context.CancelFunc
	ended   chan error
	log     *syncBuffer
	once    sync.Once
}

type syncBuffer struct {
	mu sync.Mutex
	b  []byte
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.b = append(b.b, p...)
	return len(p), nil
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return string(b.b)
}

func openStore(t testing.TB) schema.Store {
	t.Helper()
	o := sqlite.Options{Path: filepath.Join(t.TempDir(), "namespace.db"), Log: zerolog.Nop()}
	if _, err := sqlite.Migrate(t.Context(), o, schema.MigrateOptions{}); err != nil {
		t.Fatal(err)
	}
	store, err := sqlite.Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := store.Close(); err != nil {
			t.Errorf("close the store: %v", err)
		}
	})
	return store
}

// start runs a tracker with two hosts of two devices each. No worker runs, so
// that the queues stay as the commands left them.
func start(t testing.TB, change ...func(*tracker.Options)) *env {
	t.Helper()
	f := newFarm(t, 2, 2)
	e := startOn(t, f, openStore(t), change...)
	c := e.dial()
	for i, h := range f.hosts {
		c.ok(fmt.Sprintf("create_host host=h%d&ip=%s&port=%d&status=alive", i+1, h.ip, h.port()))
		for d := 2*i + 1; d <= 2*i+2; d++ {
			c.ok(fmt.Sprintf("create_device hostname=h%d&devid=%d", i+1, d))
		}
	}
	c.ok("create_domain domain=toast")
	c.close()
	return e
}

// startOn runs a tracker on a store and hosts that are there already.
func startOn(t testing.TB, f *farm, store schema.Store, change ...func(*tracker.Options)) *env {
	t.Helper()
	e := &env{t: t, farm: f, store: store, log: &syncBuffer{}, ended: make(chan error, 1)}
	watchers := tracker.NewWatchers()
	o := tracker.Options{
		Store: store, Listen: []string{"127.0.0.1:0", "127.0.0.2:0"}, Name: "t1", Version: "1.0",
		ReplicateJobs: -1, DeleteJobs: -1, StorageMgmtPort: f.mgmt, MinFreeMB: -1,
		NodeTimeout: time.Second, ConnTimeout: time.Second,
		Watchers: watchers, Log: zerolog.New(zerolog.MultiLevelWriter(e.log, watchers)).Level(zerolog.InfoLevel),
	}
	for _, c := range change {
		c(&o)
	}
	var err error
	if e.tracker, err = tracker.New(o); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	e.stop = stop
	go func() { e.ended <- e.tracker.Run(ctx) }()
	t.Cleanup(e.end)
	return e
}

// end stops the tracker and waits for it.
func (e *env) end() {
	e.once.Do(func() {
		e.stop()
		select {
		case err := <-e.ended:
			if err != nil {
				e.t.Errorf("tracker ended with %v", err)
			}
		case <-time.After(patience):
			e.t.Errorf("tracker does not end")
		}
		if e.t.Failed() {
			e.t.Logf("log:\n%s", e.log)
		}
	})
}

// client is a connection to the tracker.
type client struct {
	t    testing.TB
	conn net.Conn
	r    *bufio.Reader
}

func (e *env) dial() *client { e.t.Helper(); return e.dialAddr(e.tracker.Addrs()[0]) }

func (e *env) dialAddr(a net.Addr) *client {
	e.t.Helper()
	conn, err := net.Dial("tcp", a.String())
	if err != nil {
		e.t.Fatal(err)
	}
	c := &client{t: e.t, conn: conn, r: bufio.NewReaderSize(conn, 1<<16)}
	e.t.Cleanup(c.close)
	return c
}

func (c *client) close() { c.conn.Close() }

func (c *client) send(text string) {
	c.t.Helper()
	if err := c.conn.SetDeadline(time.Now().Add(patience)); err != nil {
		c.t.Fatal(err)
	}
	if _, err := io.WriteString(c.conn, text); err != nil {
		c.t.Fatal(err)
	}
}

func (c *client) line() string {
	c.t.Helper()
	line, err := c.r.ReadString('\n')
	if err != nil {
		c.t.Fatalf("after %q: %v", line, err)
	}
	if !strings.HasSuffix(line, "\r\n") {
		c.t.Errorf("%q does not end with CRLF", line)
	}
	return strings.TrimRight(line, "\r\n")
}

// ask sends a line and returns the reply line.
func (c *client) ask(line string) string {
	c.t.Helper()
	c.send(line + "\r\n")
	return c.line()
}

// ok sends a line that must succeed, and returns the fields.
func (c *client) ok(line string) protocol.Args {
	c.t.Helper()
	reply := c.ask(line)
	args, err := protocol.ParseReply(reply)
	if err != nil || !strings.HasPrefix(reply, "OK ") {
		c.t.Fatalf("%s\nanswers %s", line, reply)
	}
	return args
}

// refused sends a line that must be refused with code.
func (c *client) refused(line, code string) *protocol.Error {
	c.t.Helper()
	reply := c.ask(line)
	_, err := protocol.ParseReply(reply)
	refusal, ok := errors.AsType[*protocol.Error](err)
	if !ok || refusal.Code != code {
		c.t.Errorf("%s\nanswers %s\nwant    ERR %s", line, reply, code)
		return &protocol.Error{}
	}
	return refusal
}

// same checks the fields of a success, in any order.
func (c *client) same(line, want string) {
	c.t.Helper()
	got := c.ask(line)
	sorted := func(s string) string {
		rest, ok := strings.CutPrefix(s, "OK ")
		if !ok {
			return s
		}
		fields := strings.Split(rest, "&")
		slices.Sort(fields)
		return "OK " + strings.Join(fields, "&")
	}
	if diff := cmp.Diff(sorted(want), sorted(got)); diff != "" {
		c.t.Errorf("%s (-want +got):\n%s", line, diff)
	}
}

// console sends a line for the console and returns the lines before the dot.
func (c *client) console(line string) []string {
	c.t.Helper()
	c.send(line + "\r\n")
	var lines []string
	for {
		l, err := c.r.ReadString('\n')
		if err != nil {
			c.t.Fatalf("%s: after %q: %v", line, lines, err)
		}
		if l == ".\r\n" {
			return lines
		}
		lines = append(lines, l)
	}
}

// stored is a file that was stored through the tracker.
type stored struct {
	fid  protocol.FID
	dev  protocol.DevID
	path string
}

// open opens an upload.
func (c *client) open(args string) stored {
	c.t.Helper()
	a := c.ok("create_open " + args)
	return stored{protocol.FID(a.Number("fid")), protocol.DevID(a.Number("devid")), a.Get("path")}
}

func (s stored) close(domain, key, more string) string {
	return fmt.Sprintf("create_close domain=%s&key=%s&fid=%d&devid=%d&path=%s%s", domain, protocol.Escape(key), s.fid, s.dev, protocol.Escape(s.path), more)
}

// store stores content under key, in domain toast.
func (c *client) store(key, content, more string) stored {
	c.t.Helper()
	s := c.open("domain=toast&key=" + protocol.Escape(key) + more)
	put(c.t, s.path, content)
	if got := c.ask(s.close("toast", key, "&size="+strconv.Itoa(len(content)))); got != "OK " {
		c.t.Fatalf("create_close answers %q", got)
	}
	return s
}

// debug is what the database knows of fid, without what this test has no say
// in.
func (e *env) debug(fid protocol.FID) schema.FileDebug {
	e.t.Helper()
	d, err := e.store.DebugFile(e.t.Context(), fid)
	if err != nil {
		e.t.Fatal(err)
	}
	return d
}

// queues are the queues that fid is in.
func (e *env) queues(fid protocol.FID) string {
	e.t.Helper()
	set := map[string]bool{}
	for _, row := range e.debug(fid).Queues {
		set[row.Queue.String()] = true
	}
	return strings.Join(slices.Sorted(maps.Keys(set)), ",")
}

// eventually waits until cond holds.
func (e *env) eventually(what string, cond func() bool) {
	e.t.Helper()
	for deadline := time.Now().Add(patience); !cond(); {
		if time.Now().After(deadline) {
			e.t.Fatalf("%s: not within %v", what, patience)
		}
		select {
		case <-e.t.Context().Done():
			e.t.Fatal("the test ends")
		case <-time.After(10 * time.Millisecond):
		}
	}
}
