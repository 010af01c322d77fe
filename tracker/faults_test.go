package tracker_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/schema"
	"github.com/mogile/mogile/tracker"
)

// shaky is a store whose database can be taken away.
type shaky struct {
	schema.Store
	away  atomic.Bool // every call fails
	hangs atomic.Bool // every call waits for its context
	deaf  atomic.Bool // FileByKey waits for free, whatever its context says
	free  chan struct{}
	found atomic.Int64 // calls of FileByKey
}

func (s *shaky) fault(ctx context.Context) error {
	switch {
	case s.hangs.Load():
		<-ctx.Done()
		return fmt.Errorf("%w: %w", schema.ErrUnavailable, ctx.Err())
	case s.away.Load():
		return schema.ErrUnavailable
	}
	return nil
}

func (s *shaky) Topology(ctx context.Context) (schema.TopologyRows, error) {
	if err := s.fault(ctx); err != nil {
		return schema.TopologyRows{}, err
	}
	return s.Store.Topology(ctx)
}

func (s *shaky) FileByKey(ctx context.Context, dmid schema.DMID, key string) (schema.File, []protocol.DevID, error) {
	s.found.Add(1)
	if key == "panic" {
		panic("a bug")
	}
	if s.deaf.Load() {
		<-s.free
		return schema.File{}, nil, schema.ErrUnavailable
	}
	if err := s.fault(ctx); err != nil {
		return schema.File{}, nil, err
	}
	return s.Store.FileByKey(ctx, dmid, key)
}

func (s *shaky) CreateTempfile(ctx context.Context, t schema.Tempfile) (protocol.FID, error) {
	if err := s.fault(ctx); err != nil {
		return 0, err
	}
	return s.Store.CreateTempfile(ctx, t)
}

func (s *shaky) Tempfile(ctx context.Context, fid protocol.FID) (schema.Tempfile, error) {
	if err := s.fault(ctx); err != nil {
		return schema.Tempfile{}, err
	}
	return s.Store.Tempfile(ctx, fid)
}

func (s *shaky) CloseFile(ctx context.Context, c schema.Close) error {
	if err := s.fault(ctx); err != nil {
		return err
	}
	return s.Store.CloseFile(ctx, c)
}

func (s *shaky) DeleteKey(ctx context.Context, dmid schema.DMID, key string) (protocol.FID, error) {
	if err := s.fault(ctx); err != nil {
		return 0, err
	}
	return s.Store.DeleteKey(ctx, dmid, key)
}

func (s *shaky) QueueLengths(ctx context.Context) (map[schema.Queue]int64, error) {
	if err := s.fault(ctx); err != nil {
		return nil, err
	}
	return s.Store.QueueLengths(ctx)
}

func (s *shaky) Ping(ctx context.Context) error {
	if err := s.fault(ctx); err != nil {
		return err
	}
	return s.Store.Ping(ctx)
}

// startShaky runs a tracker on a store that can fail.
func startShaky(t *testing.T, change ...func(*tracker.Options)) (*env, *shaky) {
	t.Helper()
	s := &shaky{free: make(chan struct{})}
	e := start(t, append(change, func(o *tracker.Options) {
		s.Store = o.Store
		o.Store = s
	})...)
	return e, s
}

func TestDatabaseThatGoesAwayAndReturns(t *testing.T) {
	t.Parallel()
	e, s := startShaky(t)
	c := e.dial()
	up := c.open("domain=toast&key=k")
	put(t, up.path, "hello")
	s.away.Store(true)
	for line, code := range map[string]string{
		"create_open domain=toast&key=k":        "db",
		up.close("toast", "k", ""):              "failure",
		"get_paths domain=toast&key=k":          "failure",
		"delete domain=toast&key=k":             "failure",
		"clear_cache":                           "failure",
		"set_state host=h1&device=1&state=down": "failure",
	} {
		c.refused(line, code)
	}
	c.same("get_domains callid=1", "OK domains=1&domain1=toast&domain1classes=1&domain1class1name=default&domain1class1mindevcount=2&domain1class1replpolicy=MultipleHosts%28%29&domain1class1hashtype=NONE&callid=1")
	if err := e.tracker.Ready(t.Context()); !errors.Is(err, schema.ErrUnavailable) {
		t.Errorf("ready says %v", err)
	}
	if got := c.console("!stats"); len(got) < 5 {
		t.Errorf("stats are %q", got)
	}
	s.away.Store(false)
	if got := c.ask(up.close("toast", "k", "&size=5")); got != "OK " {
		t.Errorf("when the database is back, create_close answers %q", got)
	}
	if err := e.tracker.Ready(t.Context()); err != nil {
		t.Errorf("ready says %v", err)
	}
	for range 200 {
		s.away.Store(true)
		c.refused("delete domain=toast&key=k", "failure")
	}
	s.away.Store(false)
	if n := strings.Count(e.log.String(), "query failed"); n == 0 || n > 30 {
		t.Errorf("the log has %d lines of failed queries, want some and not all", n)
	}
}

func TestQueryThatTakesTooLong(t *testing.T) {
	t.Parallel()
	e, s := startShaky(t, func(o *tracker.Options) { o.QueryTimeout = 600 * time.Millisecond; o.QueryJobs = 1 })
	c, w := e.dial(), e.dial()
	c.store("k", "x", "")
	before := c.jobs()["queryworker pids"]
	sees := w.follow()
	s.hangs.Store(true)
	c.send("file_info domain=toast&key=k&callid=1\r\nnoop callid=2\r\n")
	if got := c.line(); got != "ERR failure Operation+failed 1" {
		t.Errorf("the hanging request is answered %q", got)
	}
	if got := c.line(); got != "OK callid=2" {
		t.Errorf("the next one is answered %q", got)
	}
	s.hangs.Store(false)
	if got := c.ok("get_paths domain=toast&key=k").Number("paths"); got != 1 {
		t.Errorf("when the database is back there are %d paths", got)
	}
	sees(`Watchdog killing worker ` + before + ` \(queryworker\)`)
	sees(`Child ` + before + ` \(queryworker\) died: 9 \(UNEXPECTED\)`)
	sees(`Job queryworker has only 0, wants 1, making 1\.`)
	if now := c.jobs()["queryworker pids"]; now == before {
		t.Errorf("query workers are %s, as before", now)
	}
}

// TestPathsOfADatabaseThatHangs are not waited for as long as a request may take.
func TestPathsOfADatabaseThatHangs(t *testing.T) {
	t.Parallel()
	e, s := startShaky(t, func(o *tracker.Options) { o.QueryTimeout = 900 * time.Millisecond })
	c := e.dial()
	c.store("k", "x", "")
	s.hangs.Store(true)
	c.refused("get_paths domain=toast&key=k", "failure")
	s.hangs.Store(false)
	if got := c.ok("get_paths domain=toast&key=k").Number("paths"); got != 1 {
		t.Errorf("when the database is back there are %d paths", got)
	}
	if log := e.log.String(); strings.Contains(log, "took too long") {
		t.Errorf("the watchdog had to end it:\n%s", log)
	}
}

// TestQueryThatNeverEnds shows that a request that cannot even be cancelled
// costs its own connection, which is closed without a word, and nothing else.
func TestQueryThatNeverEnds(t *testing.T) {
	t.Parallel()
	e, s := startShaky(t, func(o *tracker.Options) { o.QueryTimeout = time.Second; o.QueryJobs = 1 })
	c, other := e.dial(), e.dial()
	s.deaf.Store(true)
	defer close(s.free)
	c.send("get_paths domain=toast&key=k\r\nnoop\r\n")
	e.eventually("it is at work", func() bool { return other.console("!stats")[2] == "processing_queries 1\r\n" })
	// What needs neither database nor storage waits for nobody.
	for _, line := range []string{"noop", "get_hosts", "get_devices", "get_domains"} {
		if got := other.ask(line); !strings.HasPrefix(got, "OK ") {
			t.Errorf("%s is answered %q", line, got)
		}
	}
	if got := other.console("!stats")[2]; got != "processing_queries 1\r\n" {
		t.Errorf("after that the worker is not busy any more: %q", got)
	}
	if got := other.ask("test"); got != "OK " { // waits for the only worker until that is given up
		t.Errorf("the other client is answered %q", got)
	}
	rest, err := io.ReadAll(c.r)
	if err != nil || len(rest) != 0 {
		t.Errorf("the connection of the request ends with %q, %v; want nothing that could be taken for an answer", rest, err)
	}
	if ids := other.jobs()["queryworker count"]; ids != "1" {
		t.Errorf("there are %s query workers, want 1", ids)
	}
}

func TestBugInACommandEndsNothing(t *testing.T) {
	t.Parallel()
	e, _ := startShaky(t)
	c := e.dial()
	if got := c.ask("get_paths domain=toast&key=panic&callid=1"); got != "ERR failure Operation+failed 1" {
		t.Errorf("answer is %q", got)
	}
	if got := c.ask("noop"); got != "OK " {
		t.Errorf("then noop answers %q", got)
	}
	if !strings.Contains(e.log.String(), "a bug") {
		t.Error("the log does not tell of the bug")
	}
}

func TestRequestsBeforeTheFirstRoundWait(t *testing.T) {
	t.Parallel()
	f := newFarm(t, 1, 1)
	s := &shaky{Store: openStore(t), free: make(chan struct{})}
	s.away.Store(true)
	e := startOn(t, f, s, func(o *tracker.Options) { o.MonitorInterval = 20 * time.Millisecond })
	c, console := e.dial(), e.dial()
	c.send("noop callid=1\r\nnoop callid=2\r\n")
	e.eventually("the request waits", func() bool { return console.console("!stats")[1] == "pending_queries 1\r\n" })
	if err := e.tracker.Ready(t.Context()); err == nil {
		t.Error("ready before the first round")
	}
	if got, want := strings.Join(console.console("!want 1 fsck"), ""), "ERROR: Monitor has not completed initial run yet\n\r\n"; got != want {
		t.Errorf("!want answers %q, want %q", got, want)
	}
	for name := range console.jobs() {
		if !strings.HasPrefix(name, "monitor ") {
			t.Errorf("before the first round !jobs has %q", name)
		}
	}
	s.away.Store(false)
	for _, want := range []string{"OK callid=1", "OK callid=2"} {
		if got := c.line(); got != want {
			t.Errorf("answer is %q, want %q", got, want)
		}
	}
}

func TestStoppingBeforeTheFirstRoundWaitsForNothing(t *testing.T) {
	t.Parallel()
	s := &shaky{Store: openStore(t), free: make(chan struct{})}
	s.away.Store(true)
	e := startOn(t, newFarm(t, 1, 1), s, func(o *tracker.Options) { o.DrainTimeout = time.Hour })
	c, console := e.dial(), e.dial()
	c.send("noop\r\n")
	e.eventually("the request waits", func() bool { return console.console("!stats")[1] == "pending_queries 1\r\n" })
	e.end()
	if rest, err := io.ReadAll(c.r); err != nil || len(rest) != 0 {
		t.Errorf("the request that waited is answered %q, %v", rest, err)
	}
}

func TestStoppingAnswersWhatIsAtWork(t *testing.T) {
	t.Parallel()
	e := start(t)
	c, console := e.dial(), e.dial()
	c.send("sleep duration=1\r\nnoop\r\n")
	e.eventually("it is at work", func() bool { return console.console("!stats")[2] == "processing_queries 1\r\n" })
	e.end()
	rest, err := io.ReadAll(c.r)
	if err != nil || string(rest) != "OK \r\n" {
		t.Errorf("answers are %q, %v; want the one at work", rest, err)
	}
}

func TestStoppingBreaksOffWhatTakesTooLong(t *testing.T) {
	t.Parallel()
	e := start(t, func(o *tracker.Options) { o.DrainTimeout = 100 * time.Millisecond })
	c, console := e.dial(), e.dial()
	c.send("sleep duration=20\r\n")
	e.eventually("it is at work", func() bool { return console.console("!stats")[2] == "processing_queries 1\r\n" })
	began := time.Now()
	e.end()
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("stopping took %v", took)
	}
}

// TestManyClientsOnOneKey has clients store, rename and delete one key at once:
// every fid that was acknowledged is there, or queued for deletion.
func TestManyClientsOnOneKey(t *testing.T) {
	t.Parallel()
	e := start(t)
	var mu sync.Mutex
	var fids []protocol.FID
	var clients sync.WaitGroup
	for i := range 12 {
		c := e.dial()
		clients.Go(func() {
			for j := range 4 {
				s := c.open("domain=toast&key=k")
				put(t, s.path, "x")
				if got := c.ask(s.close("toast", "k", "&size=1")); got != "OK " {
					t.Errorf("client %d: create_close answers %q", i, got)
				}
				mu.Lock()
				fids = append(fids, s.fid)
				mu.Unlock()
				switch (i + j) % 3 {
				case 0:
					c.ask("delete domain=toast&key=k")
				case 1:
					c.ask("rename domain=toast&from_key=k&to_key=k2")
				}
			}
		})
	}
	clients.Wait()
	seen := map[protocol.FID]bool{}
	for _, fid := range fids {
		if seen[fid] {
			t.Errorf("fid %d was issued twice", fid)
		}
		seen[fid] = true
		there, gone := e.debug(fid).File != nil, strings.Contains(e.queues(fid), "delete")
		if there == gone {
			t.Errorf("fid %d: has a file row %v, is queued for deletion %v", fid, there, gone)
		}
	}
}

func TestManyClients(t *testing.T) {
	t.Parallel()
	e := start(t, func(o *tracker.Options) { o.MaxConns = 150 })
	seed := e.dial()
	seed.store("k", "hello", "")
	seed.close()
	var clients sync.WaitGroup
	for i := range 100 {
		c := e.dial()
		clients.Go(func() {
			for j := range 8 {
				id := fmt.Sprintf("%d-%d", i, j)
				want := "callid=" + id
				if got := c.ask("get_paths domain=toast&key=k&noverify=1&callid=" + id); !strings.HasPrefix(got, "OK ") || !strings.HasSuffix(got, want) {
					t.Errorf("answer is %q, want one with %s", got, want)
				}
			}
		})
	}
	clients.Wait()
}

func TestOptionsThatMakeNoSense(t *testing.T) {
	t.Parallel()
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	_, err = tracker.New(tracker.Options{QueryTimeout: -1, NodeTimeout: -1, QueryJobs: 501, MaxConns: -1})
	for _, want := range []string{"store", "QueryTimeout", "NodeTimeout", "QueryJobs", "MaxConns"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error is %v; want a word on %s", err, want)
		}
	}
	_, err = tracker.New(tracker.Options{Store: openStore(t), Listen: []string{"127.0.0.1:0", taken.Addr().String(), "127.0.0.1:x"}})
	if err == nil || !strings.Contains(err.Error(), taken.Addr().String()) || !strings.Contains(err.Error(), "x") {
		t.Errorf("error is %v; want both addresses that cannot be bound", err)
	}
}
