package tracker

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rs/zerolog"

	"github.com/mogile/mogile/schema"
	"github.com/mogile/mogile/tracker/status"
)

func noMetrics() *status.Metrics {
	return status.New(status.Sources{
		Queries:      func() (int, int, int) { return 0, 0, 0 },
		Workers:      func() map[string]int { return nil },
		Abandoned:    func() map[string]int { return nil },
		Watchers:     func() int { return 0 },
		QueueLengths: func(context.Context) (map[schema.Queue]int64, error) { return nil, nil },
	})
}

// serving runs a server whose connections come from the returned function,
// until the test ends.
type serving struct {
	t    *testing.T
	s    *server
	work context.CancelFunc
	in   chan net.Conn
	stop context.CancelFunc
	done chan error
}

// pipeListener hands out the ends of pipes.
type pipeListener struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}
func (l *pipeListener) Close() error   { l.once.Do(func() { close(l.closed) }); return nil }
func (l *pipeListener) Addr() net.Addr { return &net.UnixAddr{Name: "pipe"} }

func serve(t *testing.T, o serverOptions, answer answerer) *serving {
	t.Helper()
	if o.MaxLine == 0 {
		o.MaxLine = 1 << 20
	}
	if o.MaxConns == 0 {
		o.MaxConns = 100
	}
	if o.SlowReader == 0 {
		o.SlowReader = 120 * time.Second
	}
	l := &pipeListener{conns: make(chan net.Conn), closed: make(chan struct{})}
	ctx, stop := context.WithCancel(t.Context())
	work, end := context.WithCancel(context.Background())
	sv := &serving{
		t: t, s: newServer(o, answer, noMetrics(), zerolog.Nop()),
		in: l.conns, stop: stop, work: end, done: make(chan error, 1),
	}
	go func() { sv.done <- sv.s.run(ctx, work, []net.Listener{l}) }()
	return sv
}

// end stops the server and waits for it.
func (sv *serving) end() {
	sv.t.Helper()
	sv.stop()
	sv.work()
	if err := <-sv.done; err != nil {
		sv.t.Errorf("server ended with %v", err)
	}
}

func (sv *serving) dial() net.Conn {
	ours, theirs := net.Pipe()
	sv.in <- theirs
	return ours
}

// Garbage is answered ever more slowly, and one sensible request makes good.
func TestGarbageIsAnsweredWithPatience(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sv := serve(t, serverOptions{}, func(_ context.Context, c *conn, line, out []byte) ([]byte, error) {
			if string(line) == "noop" {
				c.strange = 0
			} else {
				c.strange++
			}
			return angled(line, out), nil
		})
		defer sv.end()
		conn := sv.dial()
		defer conn.Close()
		r := bufio.NewReader(conn)
		ask := func(line string) time.Duration {
			begin := time.Now()
			if _, err := io.WriteString(conn, line+"\n"); err != nil {
				t.Fatal(err)
			}
			if got, err := r.ReadString('\n'); err != nil || got != "<"+line+">\r\n" {
				t.Fatalf("answer %q, %v", got, err)
			}
			return time.Since(begin)
		}
		for i := range strangeFree {
			if took := ask("#"); took != 0 {
				t.Fatalf("unknown command %d is held back for %v", i+1, took)
			}
		}
		if took := ask("#"); took != strangeStep {
			t.Errorf("the first beyond is held back for %v, want %v", took, strangeStep)
		}
		for range 200 {
			ask("#")
		}
		if took := ask("#"); took != strangeLimit {
			t.Errorf("a flood is held back for %v each, want %v", took, strangeLimit)
		}
		if took := ask("noop"); took != 0 {
			t.Errorf("a known command is held back for %v", took)
		}
		if took := ask("#"); took != 0 {
			t.Errorf("one unknown command after it is held back for %v", took)
		}
	})
}

// echo answers every line with itself.
func echo(_ context.Context, _ *conn, line, out []byte) ([]byte, error) {
	return angled(line, out), nil
}

func angled(line, out []byte) []byte { return append(append(append(out, '<'), line...), ">\r\n"...) }

func TestLinesAreSplitAtLFAndAnsweredInOrder(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", 1<<20)
	for _, c := range []struct {
		name, in string
		want     []string
	}{
		{"LF and CRLF", "a\nb\r\n", []string{"<a>", "<b>"}},
		{"empty lines get no answer", "\n\r\n\na\n\r\n", []string{"<a>"}},
		{"a line of blanks is a line", "  \n", []string{"<  >"}},
		{"only one CR is stripped", "a\r\r\n", []string{"<a\r>"}},
		{"binary", "\x00\x01\xff\n\xfe\xed\n", []string{"<\x00\x01\xff>", "<\xfe\xed>"}},
		{"what has no LF is no line", "a\nb", []string{"<a>"}},
		{"one MiB", long + "\nb\n", []string{"<" + long + ">", "<b>"}},
		{"larger than the buffer, then smaller", strings.Repeat("y", readBuffer) + "\nz\n", []string{"<" + strings.Repeat("y", readBuffer) + ">", "<z>"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			sv := serve(t, serverOptions{MaxLine: 1<<20 + 1}, echo)
			defer sv.end()
			conn := sv.dial()
			go func() {
				_, _ = io.WriteString(conn, c.in) // the answers show what arrived
			}()
			r := bufio.NewReader(conn)
			for i, want := range c.want {
				got, err := r.ReadString('\n')
				if err != nil {
					t.Fatalf("answer %d: %v", i+1, err)
				}
				if got != want+"\r\n" {
					t.Errorf("answer %d is %.100q, want %.100q", i+1, got, want)
				}
			}
			conn.Close()
			if n := sv.s.longLines.Load(); n < 0 || n > 2<<21 {
				t.Errorf("%d bytes of long lines are accounted for", n)
			}
		})
	}
}

func TestMemoryOfLongLinesIsGivenBack(t *testing.T) {
	t.Parallel()
	sv := serve(t, serverOptions{}, echo)
	conn := sv.dial()
	go func() { _, _ = io.WriteString(conn, strings.Repeat("x", 100_000)+"\n") }()
	if _, err := bufio.NewReader(conn).ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	conn.Close()
	sv.end()
	if n := sv.s.longLines.Load(); n != 0 {
		t.Errorf("%d bytes are still accounted for", n)
	}
}

func TestOverlongLineIsRefusedAndTheConnectionClosed(t *testing.T) {
	t.Parallel()
	// A pipe cannot be half-closed; TCP shows that the refusal is not lost.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	s := newServer(serverOptions{MaxLine: 1 << 20, MaxConns: 1, SlowReader: time.Minute}, echo, noMetrics(), zerolog.Nop())
	done := make(chan error, 1)
	go func() { done <- s.run(ctx, ctx, []net.Listener{l}) }()
	conn, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	go func() {
		_, _ = conn.Write(append([]byte("first\n"), bytes.Repeat([]byte("x"), 3<<20)...)) // no LF, ever
	}()
	all, err := io.ReadAll(conn)
	if err != nil {
		t.Fatalf("after %q: %v", all, err)
	}
	want := "<first>\r\nERR bad_params Request+line+is+too+long%3B+at+most+1048576+bytes+are+read\r\n"
	if string(all) != want {
		t.Errorf("answers are %q, want %q", all, want)
	}
	conn.Close()
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestAllLongLinesTogetherAreBounded(t *testing.T) {
	t.Parallel()
	var pool atomic.Int64
	pool.Store(longLines - 10_000)
	in := newLines(strings.NewReader(strings.Repeat("x", 100_000)+"\n"), 1<<20, &pool)
	if _, err := in.next(); !errors.Is(err, errLongLine) {
		t.Errorf("error is %v, want %v", err, errLongLine)
	}
	in.free()
	if n := pool.Load(); n != longLines-10_000 {
		t.Errorf("%d bytes are accounted for, want %d", n, longLines-10_000)
	}
}

// TestReplyWaitsForNothing pipelines requests of which the second hangs: the
// first is answered nevertheless.
func TestReplyWaitsForNothing(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	letGo := sync.OnceFunc(func() { close(release) })
	sv := serve(t, serverOptions{}, func(_ context.Context, _ *conn, line, out []byte) ([]byte, error) {
		if string(line) == "slow" {
			<-release
		}
		return angled(line, out), nil
	})
	defer sv.end()
	conn := sv.dial()
	go func() { _, _ = io.WriteString(conn, "quick\nslow\nquick\n") }()
	r := bufio.NewReader(conn)
	for _, want := range []string{"<quick>\r\n", "<slow>\r\n", "<quick>\r\n"} {
		got, err := r.ReadString('\n')
		if err != nil || got != want {
			t.Fatalf("answer is %q, %v; want %q", got, err, want)
		}
		letGo()
	}
	conn.Close()
}

func TestSlowReaderIsNotReadFromAndClosedAfterTwoMinutes(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		answered := 0
		sv := serve(t, serverOptions{}, func(_ context.Context, _ *conn, line, out []byte) ([]byte, error) {
			answered++
			return angled(line, out), nil
		})
		conn := sv.dial()
		go func() { _, _ = io.WriteString(conn, "a\nb\nc\n") }()
		began := time.Now()
		synctest.Wait()
		if answered != 1 {
			t.Errorf("%d requests were begun although no answer was read, want 1", answered)
		}
		time.Sleep(119 * time.Second)
		sv.s.mu.Lock()
		open := len(sv.s.conns)
		sv.s.mu.Unlock()
		if open != 1 {
			t.Errorf("the connection was closed after %v already", time.Since(began))
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		sv.s.mu.Lock()
		open = len(sv.s.conns)
		sv.s.mu.Unlock()
		if open != 0 {
			t.Errorf("the connection is still open after %v", time.Since(began))
		}
		conn.Close()
		sv.end()
	})
}

// TestSlowReaderThatTakesALittleStays reads one byte a minute, which is
// progress.
func TestSlowReaderThatTakesALittleStays(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		sv := serve(t, serverOptions{}, echo)
		conn := sv.dial()
		if _, err := io.WriteString(conn, "abcdefgh\n"); err != nil {
			t.Fatal(err)
		}
		var got []byte
		for range len("<abcdefgh>\r\n") {
			time.Sleep(time.Minute)
			b := make([]byte, 1)
			if _, err := conn.Read(b); err != nil {
				t.Fatalf("after %q: %v", got, err)
			}
			got = append(got, b...)
		}
		if string(got) != "<abcdefgh>\r\n" {
			t.Errorf("answer is %q", got)
		}
		conn.Close()
		sv.end()
	})
}

func TestIdleClientIsNeverClosed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		sv := serve(t, serverOptions{}, echo)
		conn := sv.dial()
		time.Sleep(1000 * time.Hour)
		go func() { _, _ = io.WriteString(conn, "still here\n") }()
		got, err := bufio.NewReader(conn).ReadString('\n')
		if err != nil || got != "<still here>\r\n" {
			t.Errorf("answer is %q, %v", got, err)
		}
		conn.Close()
		sv.end()
	})
}

func TestTooManyConnectionsAreRefusedWithAWord(t *testing.T) {
	t.Parallel()
	var log bytes.Buffer
	sv := serve(t, serverOptions{MaxConns: 2}, echo)
	sv.s.seldom = zerolog.New(&log)
	a, b, c := sv.dial(), sv.dial(), sv.dial()
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("the third connection got %v, want its end", err)
	}
	a.Close()
	var d net.Conn
	for d == nil { // until the place of a is free
		try := sv.dial()
		go func() { _, _ = io.WriteString(try, "x\n") }()
		if _, err := bufio.NewReader(try).ReadString('\n'); err == nil {
			d = try
		}
	}
	b.Close()
	d.Close()
	sv.end()
	if want := "connection refused: too many clients are connected"; !strings.Contains(log.String(), want) {
		t.Errorf("log is %q, want %q", log.String(), want)
	}
}

func TestVanishedClientDisturbsNobody(t *testing.T) {
	t.Parallel()
	began, release := make(chan struct{}), make(chan struct{})
	var finished atomic.Bool
	sv := serve(t, serverOptions{}, func(_ context.Context, _ *conn, line, out []byte) ([]byte, error) {
		if string(line) == "slow" {
			close(began)
			<-release
			finished.Store(true)
		}
		return angled(line, out), nil
	})
	gone, stays := sv.dial(), sv.dial()
	if _, err := io.WriteString(gone, "slow\n"); err != nil {
		t.Fatal(err)
	}
	<-began
	gone.Close()
	go func() { _, _ = io.WriteString(stays, "a\n") }()
	if got, err := bufio.NewReader(stays).ReadString('\n'); err != nil || got != "<a>\r\n" {
		t.Errorf("the other client got %q, %v", got, err)
	}
	close(release)
	stays.Close()
	sv.end()
	if !finished.Load() {
		t.Error("the request of the client that went was not completed")
	}
}

func TestHalfClosedClientGetsItsAnswers(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	s := newServer(serverOptions{MaxLine: 1 << 20, MaxConns: 1, SlowReader: time.Minute}, echo, noMetrics(), zerolog.Nop())
	done := make(chan error, 1)
	go func() { done <- s.run(ctx, ctx, []net.Listener{l}) }()
	conn, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "a\nb\nunfinished"); err != nil {
		t.Fatal(err)
	}
	if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	all, err := io.ReadAll(conn)
	if err != nil || string(all) != "<a>\r\n<b>\r\n" {
		t.Errorf("answers are %q, %v", all, err)
	}
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestClosingServerFinishesWhatIsAtWork(t *testing.T) {
	t.Parallel()
	began, release := make(chan struct{}), make(chan struct{})
	sv := serve(t, serverOptions{}, func(_ context.Context, _ *conn, line, out []byte) ([]byte, error) {
		close(began)
		<-release
		return angled(line, out), nil
	})
	idle, busy := sv.dial(), sv.dial()
	if _, err := io.WriteString(busy, "a\n"); err != nil {
		t.Fatal(err)
	}
	<-began
	sv.stop()
	if _, err := idle.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("the idle connection got %v, want its end", err)
	}
	go func() { _, _ = io.WriteString(busy, "b\n") }() // comes too late
	close(release)
	all, err := io.ReadAll(busy)
	if err != nil || string(all) != "<a>\r\n" {
		t.Errorf("answers are %q, %v; want the one at work", all, err)
	}
	sv.end()
}

func TestClosingServerBreaksOffWhatTakesTooLong(t *testing.T) {
	t.Parallel()
	began := make(chan struct{})
	sv := serve(t, serverOptions{}, func(ctx context.Context, _ *conn, line, out []byte) ([]byte, error) {
		close(began)
		<-ctx.Done()
		return angled(line, out), nil
	})
	conn := sv.dial()
	if _, err := io.WriteString(conn, "a\n"); err != nil {
		t.Fatal(err)
	}
	<-began
	sv.stop()
	sv.end() // ends the work's context
	if _, err := io.ReadAll(conn); err != nil {
		t.Errorf("connection ended with %v", err)
	}
}

func TestManyConnectionsAtOnce(t *testing.T) {
	t.Parallel()
	sv := serve(t, serverOptions{MaxConns: 300}, echo)
	var clients sync.WaitGroup
	for i := range 200 {
		conn := sv.dial()
		clients.Go(func() {
			defer conn.Close()
			r := bufio.NewReader(conn)
			for j := range 20 {
				want := fmt.Sprintf("%d.%d", i, j)
				if _, err := io.WriteString(conn, want+"\n"); err != nil {
					t.Error(err)
					return
				}
				if got, err := r.ReadString('\n'); err != nil || got != "<"+want+">\r\n" {
					t.Errorf("answer is %q, %v; want %q", got, err, want)
					return
				}
			}
		})
	}
	clients.Wait()
	sv.end()
}

func TestWatchedConnectionGetsWholeLinesBetweenReplies(t *testing.T) {
	t.Parallel()
	watchers := NewWatchers()
	sv := serve(t, serverOptions{}, func(_ context.Context, c *conn, line, out []byte) ([]byte, error) {
		switch string(line) {
		case "watch":
			c.watching = watchers.watch(c)
		case "unwatch":
			c.unwatch()
		}
		return angled(line, out), nil
	})
	conn := sv.dial()
	log := zerolog.New(watchers)
	go func() { _, _ = io.WriteString(conn, "watch\n") }()
	r := bufio.NewReader(conn)
	if got, err := r.ReadString('\n'); err != nil || got != "<watch>\r\n" {
		t.Fatalf("got %q, %v", got, err)
	}
	log.Error().Str("job", "replicate").Int("worker", 7).Int("fid", 42).Str("devid", "a\r\nb").Msg("copy failed")
	log.Debug().Msg("detail")
	var got []string
	for range 2 {
		line, err := r.ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, line)
	}
	want := []string{":: [replicate(7)] copy failed devid=a??b fid=42\r\n", ":: [debug] detail\r\n"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("log lines (-want +got):\n%s", diff)
	}
	go func() { _, _ = io.WriteString(conn, "unwatch\n") }()
	if got, err := r.ReadString('\n'); err != nil || got != "<unwatch>\r\n" {
		t.Fatalf("got %q, %v", got, err)
	}
	log.Error().Msg("nobody hears this")
	go func() { _, _ = io.WriteString(conn, "last\n") }()
	if got, err := r.ReadString('\n'); err != nil || got != "<last>\r\n" {
		t.Fatalf("got %q, %v", got, err)
	}
	conn.Close()
	sv.end()
	if n := watchers.len(); n != 0 {
		t.Errorf("%d watchers are left", n)
	}
}

func TestWatcherThatDoesNotReadLosesLinesAndHoldsUpNobody(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		watchers := NewWatchers()
		sv := serve(t, serverOptions{}, func(_ context.Context, c *conn, line, out []byte) ([]byte, error) {
			c.watching = watchers.watch(c)
			return angled(line, out), nil
		})
		conn := sv.dial()
		go func() { _, _ = io.WriteString(conn, "watch\n") }()
		r := bufio.NewReader(conn)
		if _, err := r.ReadString('\n'); err != nil {
			t.Fatal(err)
		}
		for i := range watchBacklog + 101 {
			watchers.tell(fmt.Sprintf("line %d", i))
			if i == 0 {
				synctest.Wait() // it is being sent
			}
		}
		lost := false
		for range 2 + watchBacklog {
			line, err := r.ReadString('\n')
			if err != nil {
				t.Fatal(err)
			}
			lost = lost || line == ":: 100 lines were left out: this console reads too slowly\r\n"
		}
		if !lost {
			t.Error("nobody said that lines are missing")
		}
		conn.Close()
		sv.end()
	})
}

func FuzzLines(f *testing.F) {
	f.Add([]byte("noop\r\n\r\nlist_keys domain=\n"), 5)
	f.Add([]byte("\x00\xff\n\n"), 1)
	f.Fuzz(func(t *testing.T, in []byte, chunk int) {
		const most = 64
		var pool atomic.Int64
		l := newLines(&trickle{in, max(1, chunk%100)}, most, &pool)
		rest := in
		for {
			line, err := l.next()
			i := bytes.IndexByte(rest, '\n')
			if err != nil {
				if errors.Is(err, errLongLine) && (i < 0 || i >= readBuffer) {
					break
				}
				if i >= 0 && i < readBuffer && !errors.Is(err, errLongLine) {
					t.Fatalf("%v, but %q is a line", err, rest[:i])
				}
				break
			}
			if i < 0 {
				t.Fatalf("line %q, but there was none left", line)
			}
			if want := bytes.TrimSuffix(rest[:i], []byte("\r")); !bytes.Equal(line, want) {
				t.Fatalf("line is %q, want %q", line, want)
			}
			rest = rest[i+1:]
		}
		l.free()
		if pool.Load() != 0 {
			t.Fatalf("%d bytes are still accounted for", pool.Load())
		}
	})
}

// trickle reads a few bytes at a time.
type trickle struct {
	rest []byte
	n    int
}

func (r *trickle) Read(p []byte) (int, error) {
	if len(r.rest) == 0 {
		return 0, io.EOF
	}
	n := copy(p[:min(len(p), r.n)], r.rest)
	r.rest = r.rest[n:]
	return n, nil
}
