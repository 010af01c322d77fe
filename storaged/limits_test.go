package storaged

import (
	"context"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// Who has just connected when the daemon stops is answered all the same: its
// request was on the way.
func TestFreshConnectionsOutliveDrain(t *testing.T) {
	t.Parallel()
	d := start(t, Options{}, 1)
	d.put("/dev1/f", "hello")
	fresh, mute, side := dial(t, d.HTTPAddr()), dial(t, d.HTTPAddr()), dial(t, d.MgmtAddr())
	eventually(t, "all are accepted", func() bool { return metric(t, d, "mogile_storaged_connections") >= 3 })
	d.Stop(PatientDrain)
	eventually(t, "nobody listens", func() bool {
		late, err := net.Dial("tcp", d.MgmtAddr().String())
		if err == nil {
			late.Close()
		}
		return err != nil
	})
	fresh.send("GET /dev1/f HTTP/1.1\nHost: x\n\n")
	if r := fresh.receive("GET"); r.body != "hello" || !r.Close {
		t.Errorf("%s, body %q, Connection: %s", r.Status, r.body, r.Header.Get("Connection"))
	}
	side.send("size /dev1/f\n")
	if got := side.line(); got != "/dev1/f 5" {
		t.Errorf("size: %q", got)
	}
	if !fresh.closed() || !side.closed() || !mute.closed() {
		t.Error("connections stay open")
	}
	eventually(t, "the daemon has stopped", func() bool { return isDone(d.done) })
}

// The end can be brought forward, not put off.
func TestStopAgain(t *testing.T) {
	t.Parallel()
	d := start(t, Options{}, 1)
	busy := dial(t, d.HTTPAddr())
	busy.send("PUT /dev1/f HTTP/1.1\nHost: x\nContent-Length: 2\n\n1")
	eventually(t, "the upload is in progress", func() bool { return metric(t, d, "mogile_storaged_requests_in_flight") == 1 })
	d.Stop(PatientDrain)
	d.Stop(0)
	d.Stop(PatientDrain)
	eventually(t, "the daemon has stopped", func() bool { return isDone(d.done) })
	if !busy.closed() {
		t.Error("the upload goes on")
	}
}

// poisonous is a handler with a bug.
type poisonous struct{ handler }

func (p poisonous) serve(ctx context.Context, r *request) answer {
	if strings.HasSuffix(r.path, "poison") {
		panic("a bug")
	}
	return p.handler.serve(ctx, r)
}

// A request that meets a bug costs its client the connection, and nobody else
// anything.
func TestPanic(t *testing.T) {
	t.Parallel()
	docroot := t.TempDir()
	if err := os.Mkdir(filepath.Join(docroot, "dev1"), 0o777); err != nil {
		t.Fatal(err)
	}
	inner, err := New(Options{Docroot: docroot, HTTPListen: "127.0.0.1:0", MgmtListen: "127.0.0.1:0"})
	if err != nil {
		t.Fatal(err)
	}
	inner.http.handler = poisonous{inner.http.handler}
	inner.side.shutdown = func(bool) { panic("another bug") }
	d := run(t, inner, docroot)
	other := dial(t, d.HTTPAddr())
	other.send("PUT /dev1/f HTTP/1.1\nHost: x\nContent-Length: 2\n\n1")
	eventually(t, "the upload is in progress", func() bool { return metric(t, d, "mogile_storaged_requests_in_flight") == 1 })
	for range 2 {
		c := dial(t, d.HTTPAddr())
		c.send("GET /dev1/poison HTTP/1.1\nHost: x\n\n")
		if !c.closed() {
			t.Error("the connection stays open")
		}
	}
	side := d.side()
	side.send("shutdown\n")
	if !side.closed() {
		t.Error("the side channel's connection stays open")
	}
	other.send("2")
	if r := other.receive("PUT"); r.StatusCode != 201 {
		t.Errorf("the other's upload: %s", r.Status)
	}
	eventually(t, "no request is in progress", func() bool { return metric(t, d, "mogile_storaged_requests_in_flight") == 0 })
}

// Where all connections are in use, those that never asked for anything make
// room, over HTTP and on the side channel, however they begin.
func TestMutePeersMakeRoom(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, mute, ask, answer string
		side                    bool
	}{
		{name: "HTTP", ask: "GET /dev1/f HTTP/1.1\nHost: x\n\n", answer: "HTTP/1.1 200 OK"},
		{name: "side channel", side: true, ask: "size /dev1/f\n", answer: "/dev1/f 5"},
		{name: "side channel, half a line", side: true, mute: "size /dev1", ask: "size /dev1/f\n", answer: "/dev1/f 5"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			d := start(t, Options{MaxConns: 3}, 1)
			addr := d.HTTPAddr()
			d.put("/dev1/f", "hello")
			if c.side {
				addr = d.MgmtAddr()
			}
			for range 3 {
				mute := dial(t, addr)
				if c.mute != "" {
					mute.send("%s", c.mute)
				}
			}
			for i := range 3 {
				polite := dial(t, addr)
				polite.send("%s", c.ask)
				if got := polite.line(); got != c.answer {
					t.Fatalf("newcomer %d is answered %q", i, got)
				}
				polite.Close()
			}
			if got := metric(t, d, "mogile_storaged_connections_waited_total"); got < 1 {
				t.Errorf("%v connections have waited", got)
			}
		})
	}
}

// A client may take long for its answer as long as it takes some of it all the
// time.
func TestSlowReaderIsServed(t *testing.T) {
	t.Parallel()
	const size, timeout = 32 << 20, 250 * time.Millisecond
	d := start(t, Options{ClientTimeout: timeout}, 1)
	d.put("/dev1/large", string(pattern(size)))
	c := dial(t, d.HTTPAddr())
	c.send("GET /dev1/large HTTP/1.0\n\n")
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	began := time.Now()
	var got int64
	for {
		n, err := io.CopyN(io.Discard, c.r, 512<<10)
		got += n
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		<-tick.C
	}
	if got < size {
		t.Errorf("got %d bytes", got)
	}
	if took := time.Since(began); took < 3*timeout {
		t.Errorf("it took %v: that shows nothing", took)
	}
}

// A header block that comes by the byte has its time in all, not for each byte.
func TestTrickledHeader(t *testing.T) {
	t.Parallel()
	d := start(t, Options{ClientTimeout: 200 * time.Millisecond}, 1)
	c := dial(t, d.HTTPAddr())
	c.send("GET /dev1/f HTTP/1.1\n")
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	deadline := time.Now().Add(patience)
	for {
		if _, err := io.WriteString(c, "x"); err != nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the daemon goes on listening")
		}
		<-tick.C
	}
}

// Lines without end on the side channel, the answers of which nobody reads, are
// worked on no longer than the daemon's patience lasts.
func TestFloodThatNobodyReads(t *testing.T) {
	t.Parallel()
	d := start(t, Options{ClientTimeout: 200 * time.Millisecond}, 1)
	conn := dial(t, d.MgmtAddr())
	flood := []byte(strings.Repeat("size /"+strings.Repeat("x", 15<<10)+"\r\n", 64))
	for sent := 0; ; {
		n, err := conn.Write(flood)
		sent += n
		if e, ok := err.(net.Error); ok && e.Timeout() {
			t.Fatalf("after %d bytes the connection is still open", sent)
		}
		if err != nil {
			break
		}
		if sent > 1<<30 {
			t.Fatal("all is taken, and nothing read")
		}
	}
	eventually(t, "no connection is left", func() bool { return metric(t, d, "mogile_storaged_connections") == 0 })
}
