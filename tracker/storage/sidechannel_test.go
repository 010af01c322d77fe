package storage

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/mogile/mogile/protocol"
)

func TestSizeOverSideChannel(t *testing.T) {
	t.Parallel()
	d := startDaemon(t)
	url := d.put(path1, hello)
	side := startSide(t, d.speak)
	c := client(t, Options{MgmtPort: side.port})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 25 {
				if n, err := c.Size(t.Context(), url); n != 11 || err != nil {
					t.Errorf("size %d, %v", n, err)
				}
			}
		})
	}
	wg.Wait()
	if d.count("HEAD") != 0 {
		t.Errorf("%d HEAD were sent", d.count("HEAD"))
	}
	if got := side.conns.Load(); got > 4 {
		t.Errorf("%d connections of the side channel", got)
	}
	// That it is missing is HTTP's word.
	if _, err := c.Size(t.Context(), d.URL+path2); !errors.Is(err, ErrMissing) || d.count("HEAD") != 1 {
		t.Errorf("missing: %v after %d HEAD", err, d.count("HEAD"))
	}
}

// TestSideChannelOddities: whatever the side channel says, the answer is right.
func TestSideChannelOddities(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name  string
		reply func(w io.Writer, line string) bool
		heads int // for three calls
	}{
		{"of another file", func(w io.Writer, _ string) bool { fmt.Fprintf(w, "%s 999\r\n", path2); return true }, 3},
		{"prefix of the uri", func(w io.Writer, _ string) bool { fmt.Fprintf(w, "%s0 999\r\n", path1); return true }, 3},
		{"refusal", func(w io.Writer, _ string) bool { io.WriteString(w, "ERROR: uri invalid\r\n"); return true }, 3},
		{"unknown command", func(w io.Writer, _ string) bool { io.WriteString(w, "ERROR: unknown command: size\r\n"); return true }, 3},
		{"empty number", func(w io.Writer, _ string) bool { fmt.Fprintf(w, "%s \r\n", path1); return true }, 3},
		{"negative", func(w io.Writer, _ string) bool { fmt.Fprintf(w, "%s -2\r\n", path1); return true }, 3},
		{"no number", func(w io.Writer, _ string) bool { fmt.Fprintf(w, "%s 1x\r\n", path1); return true }, 3},
		{"endless", func(w io.Writer, _ string) bool { io.WriteString(w, strings.Repeat("x", 10000)); return true }, 3},
		{"closed", func(io.Writer, string) bool { return false }, 3},
		{"cut", func(w io.Writer, _ string) bool { fmt.Fprintf(w, "%s 1", path1); return false }, 3},
		{"LF only", func(w io.Writer, _ string) bool { fmt.Fprintf(w, "%s 11\n", path1); return true }, 0},
		{"closed after each", func(w io.Writer, _ string) bool { fmt.Fprintf(w, "%s 11\r\n", path1); return false }, 0},
		{"two lines", func(w io.Writer, _ string) bool { fmt.Fprintf(w, "%s 11\r\n%s 999\r\n", path1, path1); return true }, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			d := startDaemon(t)
			url := d.put(path1, hello)
			c := client(t, Options{MgmtPort: startSide(t, tt.reply).port})
			for range 3 {
				if n, err := c.Size(t.Context(), url); n != 11 || err != nil {
					t.Errorf("size %d, %v", n, err)
				}
			}
			if got := d.count("HEAD"); got != tt.heads {
				t.Errorf("%d HEAD, want %d", got, tt.heads)
			}
		})
	}
}

// TestLateReply: a reply that comes too late is nobody's.
func TestLateReply(t *testing.T) {
	t.Parallel()
	d := startDaemon(t)
	url1, url2 := d.put(path1, hello), d.put(path2, hello[:5])
	var slow atomic.Bool
	slow.Store(true)
	release := make(chan struct{})
	side := startSide(t, func(w io.Writer, line string) bool {
		if slow.Swap(false) {
			<-release
		}
		return d.speak(w, line)
	})
	now := time.Unix(1700000000, 0)
	c := client(t, Options{MgmtPort: side.port, NodeTimeout: 100 * time.Millisecond, Now: func() time.Time { return now }})
	if n, err := c.Size(t.Context(), url1); n != 11 || err != nil {
		t.Errorf("size %d, %v", n, err)
	}
	close(release)
	// For a while it is not asked, so that nobody waits.
	if n, err := c.Size(t.Context(), url2); n != 5 || err != nil {
		t.Errorf("size %d, %v", n, err)
	}
	if got := d.count("HEAD"); got != 2 || len(side.asked()) != 1 {
		t.Errorf("%d HEAD, side channel asked %q", got, side.asked())
	}
	now = now.Add(sideRetry)
	for range 3 {
		if n, err := c.Size(t.Context(), url2); n != 5 || err != nil {
			t.Errorf("size %d, %v", n, err)
		}
	}
	if got := d.count("HEAD"); got != 2 {
		t.Errorf("%d HEAD after the side channel came back", got)
	}
}

// TestHangingHost: where the side channel and HTTP both say nothing, as of a
// host that hangs, the caller waits little longer than for HTTP alone.
func TestHangingHost(t *testing.T) {
	t.Parallel()
	d := startDaemon(t)
	d.answer(hang("HEAD"))
	release := make(chan struct{})
	side := startSide(t, func(io.Writer, string) bool { <-release; return false })
	defer close(release)
	const timeout = 400 * time.Millisecond
	c := client(t, Options{MgmtPort: side.port, NodeTimeout: timeout})
	began := time.Now()
	if _, err := c.Size(t.Context(), d.URL+path1); !errors.Is(err, ErrUnreachable) {
		t.Errorf("size: %v", err)
	}
	if took := time.Since(began); took >= timeout*3/2 {
		t.Errorf("took %v with a node timeout of %v", took, timeout)
	}
	if got := len(side.asked()); got != 1 {
		t.Errorf("side channel was asked %d times", got)
	}
}

func TestAbsentSideChannel(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().(*net.TCPAddr)
	_ = l.Close()
	d := startDaemon(t)
	url := d.put(path1, hello)
	now := time.Unix(1700000000, 0)
	c := client(t, Options{MgmtPort: addr.Port, Now: func() time.Time { return now }})
	size := func() {
		t.Helper()
		if n, err := c.Size(t.Context(), url); n != 11 || err != nil {
			t.Errorf("size %d, %v", n, err)
		}
	}
	size()
	if l, err = net.Listen("tcp", addr.String()); err != nil {
		t.Skipf("the port was taken: %v", err)
	}
	defer l.Close()
	size() // would hang on the listener that nobody accepts from, were it tried
	if got := d.count("HEAD"); got != 2 {
		t.Errorf("%d HEAD", got)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	now = now.Add(sideRetry)
	if _, err := c.Size(ctx, url); err == nil || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("it is not tried again: %v", err)
	}
}

func TestDigest(t *testing.T) {
	t.Parallel()
	for _, typ := range []protocol.HashType{protocol.HashMD5, protocol.HashSHA1} {
		want := sumOf(typ, hello)
		tests := []struct {
			name   string
			reply  func(d *daemon) func(io.Writer, string) bool
			reason string
			asked  string
			gets   int
		}{
			{"side channel", func(d *daemon) func(io.Writer, string) bool { return d.speak }, "replicate", " replicate", 0},
			{"no reason", func(d *daemon) func(io.Writer, string) bool { return d.speak }, "", "", 0},
			{"old server", func(*daemon) func(io.Writer, string) bool {
				return func(w io.Writer, _ string) bool { io.WriteString(w, "ERROR unknown\r\n"); return true }
			}, "fsck", " fsck", 1},
			{"read error", func(*daemon) func(io.Writer, string) bool {
				return func(w io.Writer, _ string) bool { io.WriteString(w, "ERR read x at 1 failed\r\n"); return true }
			}, "", "", 1},
			{"cannot open", func(*daemon) func(io.Writer, string) bool {
				return func(w io.Writer, _ string) bool { fmt.Fprintf(w, "%s %s=-1\r\n", path1, typ); return true }
			}, "", "", 1},
			{"upper case", func(*daemon) func(io.Writer, string) bool {
				return func(w io.Writer, _ string) bool {
					fmt.Fprintf(w, "%s %s=%s\r\n", path1, typ, strings.ToUpper(want.Hex()))
					return true
				}
			}, "", "", 1},
			{"other algorithm", func(*daemon) func(io.Writer, string) bool {
				return func(w io.Writer, _ string) bool { fmt.Fprintf(w, "%s SHA-9=00\r\n", path1); return true }
			}, "", "", 1},
		}
		for _, tt := range tests {
			t.Run(typ.String()+" "+tt.name, func(t *testing.T) {
				t.Parallel()
				d := startDaemon(t)
				url := d.put(path1, hello)
				side := startSide(t, tt.reply(d))
				c := client(t, Options{MgmtPort: side.port})
				got, err := c.Digest(t.Context(), url, 11, typ, tt.reason)
				if err != nil || !got.Equal(want) {
					t.Errorf("got %v, %v", got, err)
				}
				if diff := cmp.Diff([]string{typ.String() + " " + path1 + tt.asked}, side.asked()); diff != "" {
					t.Error(diff)
				}
				if d.count("GET") != tt.gets {
					t.Errorf("%d GET, want %d", d.count("GET"), tt.gets)
				}
			})
		}
	}
}

func TestDigestOverHTTP(t *testing.T) {
	t.Parallel()
	d := startDaemon(t)
	url := d.put(path1, hello)
	c := client(t, Options{})
	if _, err := c.Digest(t.Context(), d.URL+path2, 11, protocol.HashMD5, ""); !errors.Is(err, ErrMissing) {
		t.Errorf("missing: %v", err)
	}
	if _, err := c.Digest(t.Context(), url, 11, protocol.HashNone, ""); err == nil {
		t.Error("a digest without an algorithm")
	}
	d.answer(status("GET", http.StatusServiceUnavailable))
	if _, err := c.Digest(t.Context(), url, 11, protocol.HashMD5, ""); !errors.Is(err, ErrUnreachable) {
		t.Errorf("503: %v", err)
	}
	for name, answer := range map[string]string{
		"cut":                "HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\nhello",
		"cut without length": "HTTP/1.0 200 OK\r\n\r\nhello",
	} {
		d.answer(raw(t, "GET", answer))
		if _, err := c.Digest(t.Context(), url, 11, protocol.HashMD5, ""); !errors.Is(err, ErrUnreachable) {
			t.Errorf("%s: %v", name, err)
		}
	}
	d.answer(raw(t, "GET", "HTTP/1.0 200 OK\r\n\r\nhello world"))
	if got, err := c.Digest(t.Context(), url, 11, protocol.HashMD5, ""); err != nil || !got.Equal(sumOf(protocol.HashMD5, hello)) {
		t.Errorf("without length: %v, %v", got, err)
	}
}

func FuzzReplies(f *testing.F) {
	f.Add(path1, path1+" 11")
	f.Add(path1, path1+" -1")
	f.Add(path1, path1+" ")
	f.Add(path1, path1+" MD5=5eb63bbbe01eeed093cb22bb8f5acdc3")
	f.Add(path1, path1+" MD5=-1")
	f.Add(path1, "ERROR: uri invalid (contains ..)")
	f.Fuzz(func(t *testing.T, uri, line string) {
		if n, err := parseSizeReply(uri, []byte(line)); err == nil {
			if n < -1 || !strings.HasPrefix(line, uri+" ") {
				t.Errorf("size %d from %q for %q", n, line, uri)
			}
		}
		if sum, err := parseDigestReply(uri, protocol.HashMD5, []byte(line)); err == nil {
			if line != uri+" "+strings.Replace(protocol.Checksum{Type: protocol.HashMD5, Sum: sum}.String(), ":", "=", 1) {
				t.Errorf("digest %x from %q for %q", sum, line, uri)
			}
		}
	})
}

func TestWatch(t *testing.T) {
	t.Parallel()
	side := startSide(t, func(w io.Writer, line string) bool {
		if line != "watch" {
			return true
		}
		io.WriteString(w, "1\t0.40\n2\t12.35\n3 -\nnonsense\n4\t1\t2\n5\t<b>\n.\n")
		io.WriteString(w, ".\n1\t99.99\r\n.\r\n2\t1.00\n")
		return false
	})
	c := client(t, Options{MgmtPort: side.port})
	var got []map[protocol.DevID]string
	err := c.Watch(t.Context(), "127.0.0.1", 0, func(g map[protocol.DevID]string) { got = append(got, g) })
	if !errors.Is(err, io.EOF) {
		t.Errorf("ended with %v", err)
	}
	want := []map[protocol.DevID]string{{1: "0.40", 2: "12.35", 3: "-"}, {}, {1: "99.99"}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error("-want +got\n" + diff)
	}
}

func TestWatchEnds(t *testing.T) {
	t.Parallel()
	side := startSide(t, func(w io.Writer, _ string) bool { io.WriteString(w, "ERR iostat unavailable\r\n"); return true })
	c := client(t, Options{MgmtPort: side.port})
	nothing := func(map[protocol.DevID]string) { t.Error("a group") }
	if err := c.Watch(t.Context(), "127.0.0.1", 0, nothing); !errors.Is(err, ErrNoStream) {
		t.Errorf("ERR: %v", err)
	}
	_ = side.Close()
	if err := c.Watch(t.Context(), "127.0.0.1", side.port, nothing); !errors.Is(err, ErrNoConnect) {
		t.Errorf("refused: %v", err)
	}
	if err := client(t, Options{}).Watch(t.Context(), "127.0.0.1", 0, nothing); !errors.Is(err, ErrNoStream) {
		t.Errorf("no side channel at all: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	silent := startSide(t, func(io.Writer, string) bool { cancel(); return true })
	if err := c.Watch(ctx, "127.0.0.1", silent.port, nothing); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

func FuzzWatch(f *testing.F) {
	f.Add("1\t0.40\n2\t12.35\n.\n")
	f.Add("ERR iostat unavailable\r\n")
	f.Add(".\n.\n1 - \n\x00 4\n.\n")
	f.Fuzz(func(t *testing.T, stream string) {
		ours, theirs := net.Pipe()
		go func() {
			defer theirs.Close()
			_, _ = io.ReadFull(theirs, make([]byte, len("watch\n")))
			_, _ = io.WriteString(theirs, stream)
		}()
		defer ours.Close()
		err := readWatch(ours, func(g map[protocol.DevID]string) {
			for dev, util := range g {
				if d, u, ok := parseUtilization(fmt.Appendf(nil, "%d\t%s", dev, util)); !ok || d != dev || u != util {
					t.Errorf("%d %q", dev, util)
				}
			}
		})
		if err == nil {
			t.Error("ended without an error")
		}
	})
}
