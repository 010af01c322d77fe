package tracker

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"
)

// asks sends a line and expects it back from [echo].
func asks(t *testing.T, conn net.Conn, line string) {
	t.Helper()
	go func() { _, _ = io.WriteString(conn, line+"\n") }()
	if got, err := bufio.NewReader(conn).ReadString('\n'); err != nil || got != "<"+line+">\r\n" {
		t.Errorf("answer is %q, %v", got, err)
	}
}

func isClosed(conn net.Conn) bool {
	if err := conn.SetReadDeadline(time.Now().Add(time.Millisecond)); err != nil {
		return true
	}
	_, err := conn.Read(make([]byte, 1))
	return errors.Is(err, io.EOF)
}

// TestHalfALineMayTakeForEverUntilOthersNeedItsPlace has one client that is
// idle, one that has sent half a line, and one that reads no answer.
func TestHalfALineMayTakeForEverUntilOthersNeedItsPlace(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		sv := serve(t, serverOptions{MaxConns: 4, SlowReader: 1000 * time.Hour}, echo)
		idle, half, long, deaf := sv.dial(), sv.dial(), sv.dial(), sv.dial()
		asks(t, idle, "a")
		go func() { _, _ = io.WriteString(half, "b\nhalf") }()
		if got, err := bufio.NewReader(half).ReadString('\n'); err != nil || got != "<b>\r\n" {
			t.Errorf("answer is %q, %v", got, err)
		}
		if _, err := io.WriteString(long, strings.Repeat("x", readBuffer)); err != nil { // fills the buffer exactly
			t.Fatal(err)
		}
		if _, err := io.WriteString(deaf, "c\n"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(20 * time.Second)
		if !isClosed(sv.dial()) {
			t.Error("there is room although nobody was there for long")
		}
		time.Sleep(20 * time.Second)
		fifth := sv.dial() // takes the place of the one that does not read
		asks(t, fifth, "d")
		for name, conn := range map[string]net.Conn{"idle": idle, "half a line": half, "more of a line": long} {
			if isClosed(conn) {
				t.Errorf("the client with %s is closed after 40 s", name)
			}
		}
		time.Sleep(24 * time.Hour)
		go func() { _, _ = io.WriteString(half, " and the rest\n") }()
		if err := half.SetReadDeadline(time.Time{}); err != nil {
			t.Fatal(err)
		}
		if got, err := bufio.NewReader(half).ReadString('\n'); err != nil || got != "<half and the rest>\r\n" {
			t.Errorf("after a day the line is answered %q, %v", got, err)
		}
		sixth := sv.dial() // takes the place of the one that has sent only a part
		asks(t, sixth, "e")
		if !isClosed(sv.dial()) {
			t.Error("there is room for a seventh, but nobody may be sent away")
		}
		for name, conn := range map[string]net.Conn{"first": idle, "second": half, "fifth": fifth, "sixth": sixth} {
			if err := conn.SetReadDeadline(time.Time{}); err != nil {
				t.Fatal(err)
			}
			asks(t, conn, name)
			conn.Close()
		}
		long.Close()
		deaf.Close()
		sv.end()
	})
}

// TestLargeRepliesThatNobodyReadsAreBounded has many clients ask for more than
// they read.
func TestLargeRepliesThatNobodyReadsAreBounded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const each = maxUnsent / 8
		sv := serve(t, serverOptions{}, func(_ context.Context, _ *conn, _, out []byte) ([]byte, error) {
			return append(out, make([]byte, each)...), nil
		})
		var conns []net.Conn
		for range 12 {
			conn := sv.dial()
			conns = append(conns, conn)
			if _, err := io.WriteString(conn, "x\n"); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		if n := sv.s.unsent.Load(); n != 12*each {
			t.Errorf("%d bytes wait, want %d", n, 12*each)
		}
		time.Sleep(hurry + time.Second)
		synctest.Wait()
		if n := sv.s.unsent.Load(); n != maxUnsent {
			t.Errorf("soon after %d bytes wait, want %d", n, maxUnsent)
		}
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		if n := sv.s.unsent.Load(); n != 0 {
			t.Errorf("after the slow reader's time %d bytes wait", n)
		}
		for _, conn := range conns {
			conn.Close()
		}
		sv.end()
	})
}

func TestLongLinesAreRefusedInTurnButNotShortOnes(t *testing.T) {
	t.Parallel()
	var pool atomic.Int64
	pool.Store(longLines)
	in := newLines(strings.NewReader(strings.Repeat("x", ownLine/2)+"\n"+strings.Repeat("y", 2*ownLine)+"\n"), 1<<20, &pool)
	if line, err := in.next(); err != nil || len(line) != ownLine/2 {
		t.Errorf("a line of %d bytes: %v", len(line), err)
	}
	if _, err := in.next(); !errors.Is(err, errLongLines) {
		t.Errorf("error is %v, want %v", err, errLongLines)
	}
	in.free()
	if n := pool.Load(); n != longLines {
		t.Errorf("%d bytes are accounted for", n-longLines)
	}
}

// TestFloodsLeaveOthersTheirTurn pipelines without end on some connections, and
// counts how many of their requests are answered before one of somebody else.
func TestFloodsLeaveOthersTheirTurn(t *testing.T) {
	var floods atomic.Int64
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	s := newServer(serverOptions{MaxLine: 1 << 20, MaxConns: 100, SlowReader: time.Minute}, func(_ context.Context, _ *conn, line, out []byte) ([]byte, error) {
		floods.Add(1)
		return angled(line, out), nil
	}, noMetrics(), zerolog.Nop())
	done := make(chan error, 1)
	go func() { done <- s.run(ctx, ctx, []net.Listener{l}) }()
	dial := func() net.Conn {
		conn, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		return conn
	}
	var clients sync.WaitGroup
	var conns []net.Conn
	pipelined := []byte(strings.Repeat("flood\n", 10_000))
	for range 50 {
		conn := dial()
		conns = append(conns, conn)
		clients.Go(func() {
			for {
				if _, err := conn.Write(pipelined); err != nil {
					return
				}
			}
		})
		clients.Go(func() { _, _ = io.Copy(io.Discard, conn) })
	}
	polite := dial()
	r := bufio.NewReader(polite)
	var waits []int64
	for i := range 100 {
		want := strconv.Itoa(i)
		before := floods.Load()
		if _, err := io.WriteString(polite, want+"\n"); err != nil {
			t.Fatal(err)
		}
		if got, err := r.ReadString('\n'); err != nil || got != "<"+want+">\r\n" {
			t.Fatalf("answer is %q, %v", got, err)
		}
		waits = append(waits, floods.Load()-before)
	}
	slices.Sort(waits)
	// About a turn for each of the others; without turns it is a hundred times
	// as many.
	if middle := waits[len(waits)/2]; middle > 30_000 {
		t.Errorf("%d requests of others were answered before each, in the middle", middle)
	}
	for _, conn := range conns {
		conn.Close()
	}
	polite.Close()
	clients.Wait()
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestConnectionsThatAreIdleHoldLittle measures what a connection costs that has
// had large replies and long lines.
func TestConnectionsThatAreIdleHoldLittle(t *testing.T) {
	const n = 200
	sv := serve(t, serverOptions{MaxConns: n + 1}, func(_ context.Context, _ *conn, line, out []byte) ([]byte, error) {
		return append(append(out, make([]byte, 1<<20)...), '\n'), nil
	})
	measure := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.GC()
		runtime.ReadMemStats(&m)
		return m.HeapAlloc + m.StackInuse
	}
	before := measure()
	var conns []net.Conn
	long := []byte(strings.Repeat("x", 100<<10) + "\n")
	for range n {
		conn := sv.dial()
		conns = append(conns, conn)
		go func() { _, _ = conn.Write(long) }()
		if _, err := io.CopyN(io.Discard, conn, 1<<20+1); err != nil {
			t.Fatal(err)
		}
	}
	after := measure()
	if after > before && (after-before)/n > 64<<10 {
		t.Errorf("an idle connection holds %d bytes", (after-before)/n)
	}
	for _, conn := range conns {
		conn.Close()
	}
	sv.end()
}
