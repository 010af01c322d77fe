package peers

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

func client(t *testing.T) *Client {
	t.Helper()
	c := NewClient()
	t.Cleanup(c.Close)
	return c
}

// TestGet: the piece that was asked for is what comes, of servers that know
// ranges and of those that do not; everything else is refused.
func TestGet(t *testing.T) {
	t.Parallel()
	const content = "0123456789"
	ranged := func(w http.ResponseWriter, r *http.Request) {
		http.ServeContent(w, r, "", time.Time{}, strings.NewReader(content))
	}
	answer := func(status int, contentRange, body string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			if contentRange != "" {
				w.Header().Set("Content-Range", contentRange)
			}
			w.WriteHeader(status)
			io.WriteString(w, body)
		}
	}
	for _, tt := range []struct {
		name   string
		serve  http.HandlerFunc
		off, n int64
		want   string
		err    error // of Get, or of reading
		fails  bool
	}{
		{name: "a piece", serve: ranged, off: 2, n: 3, want: "234"},
		{name: "up to the end", serve: ranged, off: 8, n: 100, want: "89"},
		{name: "behind the end", serve: ranged, off: 10, n: 1, err: io.EOF},
		{name: "no ranges", serve: answer(200, "", content), n: 4, want: "0123"},
		{name: "no ranges, not from the beginning", serve: answer(200, "", content), off: 1, n: 4, fails: true},
		{name: "missing", serve: answer(404, "", ""), n: 1, err: fs.ErrNotExist},
		{name: "failing", serve: answer(503, "", ""), n: 1, fails: true},
		{name: "another range", serve: answer(206, "bytes 1-2/10", "12"), n: 2, fails: true},
		{name: "more than wanted", serve: answer(206, "bytes 0-2/10", "012"), n: 2, fails: true},
		{name: "more than there is", serve: answer(206, "bytes 0-2/2", "012"), n: 3, fails: true},
		{name: "another length", serve: answer(206, "bytes 0-2/10", "0"), n: 3, fails: true},
		{name: "no range", serve: answer(206, "", "0"), n: 3, fails: true},
		{name: "a redirect", serve: answer(302, "", ""), n: 3, fails: true},
		{name: "broken off", n: 10, want: "012", err: errBroken, serve: func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Range", "bytes 0-9/10")
			w.Header().Set("Content-Length", "10")
			w.WriteHeader(206)
			io.WriteString(w, "012")
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := httptest.NewServer(tt.serve)
			defer s.Close()
			p, err := client(t).Get(t.Context(), s.URL, "dev1/x", tt.off, tt.n)
			var got []byte
			if err == nil {
				got, err = io.ReadAll(p)
				if e := p.Close(); e != nil {
					t.Error(e)
				}
			}
			if tt.fails && err == nil || !tt.fails && !errors.Is(err, tt.err) || !tt.fails && tt.err == nil && err != nil || string(got) != tt.want {
				t.Errorf("%q, %v, want %q, %v", got, err, tt.want, tt.err)
			}
			if err == nil && p.Size() != int64(len(content)) {
				t.Errorf("size %d", p.Size())
			}
		})
	}
}

// A connection is used again after a piece that was read; one that was given up
// is not waited for.
func TestGetAgain(t *testing.T) {
	t.Parallel()
	var conns atomic.Int32
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.ServeContent(w, r, "", time.Time{}, strings.NewReader(strings.Repeat("x", 100_000)))
	}))
	s.Config.ConnContext = func(ctx context.Context, _ net.Conn) context.Context { conns.Add(1); return ctx }
	s.Start()
	defer s.Close()
	c := client(t)
	for i := range 20 {
		p, err := c.Get(t.Context(), s.URL, "dev1/x", int64(i), 50_000)
		if err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 50_000)
		if _, err := io.ReadFull(p, b); err != nil {
			t.Fatal(err)
		}
		if err := p.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if n := conns.Load(); n != 1 {
		t.Errorf("%d connections for pieces that were read to their end", n)
	}
	p, err := c.Get(t.Context(), s.URL, "dev1/x", 0, 100_000)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
}

// A daemon that is silent, before its answer or in the middle, is given up; so is
// one whose caller went away.
func TestGetSilence(t *testing.T) {
	t.Parallel()
	stop := make(chan struct{})
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "middle") {
			w.Header().Set("Content-Range", "bytes 0-9/10")
			w.Header().Set("Content-Length", "10")
			w.WriteHeader(206)
			io.WriteString(w, "012")
			w.(http.Flusher).Flush()
		}
		<-stop
	}))
	defer s.Close()
	defer close(stop)
	c := client(t)
	c.silence = 50 * time.Millisecond
	for _, path := range []string{"beginning", "middle"} {
		p, err := c.Get(t.Context(), s.URL, path, 0, 10)
		if err == nil {
			_, err = io.ReadAll(p)
			p.Close()
		}
		if !errors.Is(err, errSilent) || !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s: %v", path, err)
		}
	}
	c.silence = time.Hour
	gone := fmt.Errorf("nobody waits")
	ctx, cancel := context.WithCancelCause(t.Context())
	time.AfterFunc(20*time.Millisecond, func() { cancel(gone) })
	if _, err := c.Get(ctx, s.URL, "beginning", 0, 10); !errors.Is(err, gone) {
		t.Errorf("a caller that went away is told %v", err)
	}
	if _, err := c.Get(t.Context(), "http://127.0.0.1:1", "x", 0, 1); err == nil {
		t.Error("nobody listens there")
	}
}

// TestAnswers: a daemon answers as long as it does, whatever it says of files.
func TestAnswers(t *testing.T) {
	t.Parallel()
	var status atomic.Int64
	status.Store(http.StatusNotFound)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(int(status.Load())) }))
	c := client(t)
	get := func() {
		if _, err := c.Get(t.Context(), s.URL, "dev1/x", 0, 1); err == nil {
			t.Error("there is a file")
		}
	}
	if c.Answers(s.URL) {
		t.Error("it was not asked yet")
	}
	get()
	if !c.Answers(s.URL) {
		t.Error("it has answered")
	}
	status.Store(http.StatusServiceUnavailable)
	get()
	if c.Answers(s.URL) {
		t.Error("it cannot serve")
	}
	status.Store(http.StatusNotFound)
	get()
	s.Close()
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.Get(ended, s.URL, "dev1/x", 0, 1); err == nil || !c.Answers(s.URL) {
		t.Errorf("%v: who gave up knows no better", err)
	}
	get()
	if c.Answers(s.URL) {
		t.Error("it is gone")
	}
}
