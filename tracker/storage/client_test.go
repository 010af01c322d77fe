package storage

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mogile/mogile/protocol"
)

func TestSizeOverHTTP(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name  string
		first func(http.ResponseWriter, *http.Request) bool
		body  []byte
		want  int64
		err   error
	}{
		{"there", nil, hello, 11, nil},
		{"empty", nil, []byte{}, 0, nil},
		{"missing", nil, nil, 0, ErrMissing},
		{"forbidden", status("HEAD", 403), hello, 0, ErrUnreachable},
		{"sick disk", status("HEAD", 503), hello, 0, ErrUnreachable},
		{"redirect", func(w http.ResponseWriter, r *http.Request) bool {
			if r.URL.Path == "/elsewhere" {
				return false
			}
			http.Redirect(w, r, "/elsewhere", http.StatusFound)
			return true
		}, hello, 0, ErrUnreachable},
		{"no length", raw(t, "HEAD", "HTTP/1.0 200 OK\r\nServer: httpd\r\n\r\n"), nil, 0, ErrUnreachable},
		{"empty on lighttpd", raw(t, "HEAD", "HTTP/1.0 200 OK\r\nServer: lighttpd/1.4\r\n\r\n"), nil, 0, nil},
		{"garbage", raw(t, "HEAD", "220 smtp ready\r\n"), nil, 0, ErrUnreachable},
		{"closed", raw(t, "HEAD", ""), nil, 0, ErrUnreachable},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d := startDaemon(t)
			if tt.body != nil {
				d.put(path1, tt.body)
			}
			d.put("/elsewhere", hello)
			d.answer(tt.first)
			n, err := client(t, Options{}).Size(t.Context(), d.URL+path1)
			if n != tt.want || !errors.Is(err, tt.err) {
				t.Errorf("got %d, %v; want %d, %v", n, err, tt.want, tt.err)
			}
			if errors.Is(err, ErrMissing) && errors.Is(err, ErrUnreachable) {
				t.Error("both missing and unreachable")
			}
		})
	}
}

func TestTimeoutsAreNotRetried(t *testing.T) {
	t.Parallel()
	d := startDaemon(t)
	url := d.put(path1, hello)
	c := client(t, Options{NodeTimeout: 50 * time.Millisecond, ConnTimeout: 50 * time.Millisecond})
	for _, call := range []struct {
		method string
		do     func() error
	}{
		{"HEAD", func() error { _, err := c.Size(t.Context(), url); return err }},
		{"DELETE", func() error { return c.Delete(t.Context(), url) }},
		{"PUT", func() error { return c.Put(t.Context(), url, hello, nil) }},
		{"GET", func() error { _, _, err := c.Get(t.Context(), url, 100); return err }},
		{"MKCOL", func() error { return c.MakeDirs(t.Context(), url) }},
	} {
		d.answer(nil)
		_ = call.do() // so that there is a kept connection
		if call.method == "DELETE" {
			d.put(path1, hello)
		}
		c.mu.Lock()
		clear(c.hosts) // the daemon said that it needs no MKCOL
		c.mu.Unlock()
		before := d.count(call.method)
		d.answer(hang(call.method))
		err := call.do()
		if !errors.Is(err, ErrUnreachable) || !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s: %v", call.method, err)
		}
		if got := d.count(call.method) - before; got != 1 {
			t.Errorf("%s was sent %d times", call.method, got)
		}
	}
	// The answer's body is watched over as well.
	d.answer(func(w http.ResponseWriter, r *http.Request) bool {
		w.Header().Set("Content-Length", "11")
		_, _ = io.WriteString(w, "hello")
		w.(http.Flusher).Flush()
		<-r.Context().Done()
		return true
	})
	if _, err := c.Digest(t.Context(), url, 11, protocol.HashMD5, ""); !errors.Is(err, ErrUnreachable) || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a body that stops: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	d.answer(func(http.ResponseWriter, *http.Request) bool { cancel(); <-ctx.Done(); return false })
	if _, err := c.Size(ctx, url); !errors.Is(err, context.Canceled) || errors.Is(err, ErrUnreachable) {
		t.Errorf("a call that was cancelled: %v", err)
	}
}

// TestSlowButSteady: it is the pieces that are timed, not the whole.
func TestSlowButSteady(t *testing.T) {
	t.Parallel()
	d := startDaemon(t)
	d.answer(func(w http.ResponseWriter, _ *http.Request) bool {
		w.Header().Set("Content-Length", "11")
		for i := range hello {
			_, _ = w.Write(hello[i : i+1])
			w.(http.Flusher).Flush()
			<-time.After(30 * time.Millisecond)
		}
		return true
	})
	c := client(t, Options{NodeTimeout: 200 * time.Millisecond})
	got, err := c.Digest(t.Context(), d.URL+path1, 11, protocol.HashMD5, "")
	if err != nil || !got.Equal(sumOf(protocol.HashMD5, hello)) {
		t.Errorf("got %v, %v", got, err)
	}
}

func TestKeepAlive(t *testing.T) {
	t.Parallel()
	d := startDaemon(t)
	c := client(t, Options{})
	for i := range 10 {
		url := d.put(path1, hello)
		if err := c.Delete(t.Context(), url); err != nil {
			t.Fatal(err)
		}
		if err := c.Delete(t.Context(), url); !errors.Is(err, ErrMissing) {
			t.Fatalf("round %d: %v", i, err)
		}
		if _, err := c.Size(t.Context(), url); !errors.Is(err, ErrMissing) {
			t.Fatalf("round %d: %v", i, err)
		}
	}
	if got := d.conns.Load(); got != 1 {
		t.Errorf("%d connections for 30 requests, want 1", got)
	}
}

// TestStaleConnection: a kept connection that the daemon has closed costs
// nobody a request.
func TestStaleConnection(t *testing.T) {
	t.Parallel()
	type key struct{}
	var broken atomic.Int64
	d := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		if r.Context().Value(key{}).(*atomic.Int64).Add(1) > 1 { // each connection is good for one request
			broken.Add(1)
			panic(http.ErrAbortHandler)
		}
		if r.Method == http.MethodHead {
			w.Header().Set("Content-Length", "11")
		}
	}))
	d.Config.ConnContext = func(ctx context.Context, _ net.Conn) context.Context {
		return context.WithValue(ctx, key{}, new(atomic.Int64))
	}
	d.Start()
	defer d.Close()
	c := client(t, Options{})
	url := d.URL + path1
	for range 5 {
		if err := c.Delete(t.Context(), url); err != nil {
			t.Errorf("DELETE: %v", err)
		}
		if _, err := c.Size(t.Context(), url); err != nil {
			t.Errorf("HEAD: %v", err)
		}
		if err := c.Put(t.Context(), url, hello, nil); err != nil {
			t.Errorf("PUT: %v", err)
		}
	}
	if broken.Load() < 5 {
		t.Errorf("only %d requests of 15 met a connection that goes", broken.Load())
	}
}

func TestPoolLimitAndLanes(t *testing.T) {
	t.Parallel()
	d := startDaemon(t)
	url := d.put(path1, hello)
	var running, most atomic.Int64
	release := make(chan struct{})
	arrived := make(chan struct{}, 100)
	d.answer(func(_ http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodHead {
			return false
		}
		n := running.Add(1)
		defer running.Add(-1)
		for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
		}
		arrived <- struct{}{}
		<-release
		return false
	})
	c := client(t, Options{PoolSize: 3})
	var wg sync.WaitGroup
	for range 12 {
		wg.Go(func() {
			if n, err := c.Size(t.Context(), url); n != 11 || err != nil {
				t.Errorf("size %d, %v", n, err)
			}
		})
	}
	for range 3 {
		<-arrived
	}
	// The monitor does not queue behind them.
	if _, _, err := c.Get(t.Context(), url, 100); err != nil {
		t.Errorf("GET while the lane for HEAD is full: %v", err)
	}
	close(release)
	wg.Wait()
	if most.Load() != 3 {
		t.Errorf("%d requests at once, want 3", most.Load())
	}
}

func TestGetPutDelete(t *testing.T) {
	t.Parallel()
	d := startDaemon(t)
	c := client(t, Options{})
	url := d.URL + "/dev1/test-write/test-write-7"
	if err := c.Put(t.Context(), url, hello, http.Header{"Content-Md5": {"bad"}}); !errors.Is(err, ErrUnreachable) {
		t.Errorf("PUT with a wrong Content-MD5: %v", err)
	}
	var se *StatusError
	if err := c.Put(t.Context(), url, hello, http.Header{"Content-Md5": {"bad"}}); !errors.As(err, &se) || se.Status != 400 {
		t.Errorf("PUT with a wrong Content-MD5: %v", err)
	}
	if err := c.Put(t.Context(), url, hello, nil); err != nil {
		t.Error(err)
	}
	if got := d.header.Get("Content-Type"); got != "application/octet-stream" {
		t.Errorf("Content-Type %q", got)
	}
	if _, ok := d.header["Idempotency-Key"]; ok {
		t.Error("a header of the transport's was sent")
	}
	d.answer(func(w http.ResponseWriter, _ *http.Request) bool { w.Header().Set("Mogile", "1 copy"); return false })
	body, h, err := c.Get(t.Context(), url, 11)
	if string(body) != string(hello) || h.Get("Mogile") != "1 copy" || err != nil {
		t.Errorf("GET %q, %v, %v", body, h, err)
	}
	if _, _, err := c.Get(t.Context(), url, 10); err == nil || errors.Is(err, ErrUnreachable) {
		t.Errorf("GET of too long a file: %v", err)
	}
	if _, _, err := c.Get(t.Context(), d.URL+"/dev9/usage", 10); !errors.Is(err, ErrMissing) {
		t.Errorf("GET of a missing file: %v", err)
	}
	for code, want := range map[int]error{200: nil, 202: nil, 204: nil, 404: ErrMissing, 403: ErrUnreachable, 500: ErrUnreachable, 503: ErrUnreachable} {
		d.answer(status("DELETE", code))
		if err := c.Delete(t.Context(), url); !errors.Is(err, want) {
			t.Errorf("DELETE answered %d: %v", code, err)
		}
	}
	gone := startDaemon(t)
	gone.Close()
	if err := c.Delete(t.Context(), gone.URL+path1); !errors.Is(err, ErrUnreachable) {
		t.Errorf("DELETE on a host that refuses: %v", err)
	}
	if err := c.Delete(t.Context(), "http://[::bad/x"); err == nil {
		t.Error("DELETE of no URL succeeded")
	}
}

func TestMakeDirs(t *testing.T) {
	t.Parallel()
	type step struct {
		path string
		want []string // directories asked for
	}
	levels := func(dev string) []string {
		return []string{"/" + dev + "/0/", "/" + dev + "/0/000/", "/" + dev + "/0/000/000/"}
	}
	tests := []struct {
		name   string
		status int
		header string
		skip   bool
		steps  []step
		fails  bool
	}{
		{"made", 201, "", false, []step{
			{path1, levels("dev1")},
			{path1, nil},
			{"/dev1/0/000/001/0000001000.fid", []string{"/dev1/0/000/001/"}},
			{path2, levels("dev2")},
			{"/dev1/test-write/test-write-7", []string{"/dev1/test-write/"}},
			{"/dev1/usage", nil},
		}, false},
		{"exist", 405, "", false, []step{{path1, levels("dev1")}, {path1, nil}, {path2, levels("dev2")}}, false},
		{"not needed 400", 400, "", false, []step{{path1, levels("dev1")[:1]}, {path1, nil}, {path2, nil}}, false},
		{"not needed 501", 501, "", false, []step{{path1, levels("dev1")[:1]}, {path2, nil}}, false},
		{"fails", 500, "", false, []step{{path1, levels("dev1")[:1]}, {path1, levels("dev1")[:1]}}, true},
		{"ours", 201, "1 copy", false, []step{{path1, levels("dev1")[:1]}, {path1, nil}, {path2, nil}}, false},
		{"switched off", 201, "", true, []step{{path1, nil}}, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var asked []string
			d := startDaemon(t)
			d.answer(func(w http.ResponseWriter, r *http.Request) bool {
				asked = append(asked, r.URL.Path)
				if r.Method != "MKCOL" || r.ContentLength != 0 {
					t.Errorf("%s with %d bytes", r.Method, r.ContentLength)
				}
				if tt.header != "" {
					w.Header().Set("Mogile", tt.header)
				}
				w.WriteHeader(tt.status)
				return true
			})
			now := time.Unix(1700000000, 0)
			c := client(t, Options{SkipMkcol: func() bool { return tt.skip }, Now: func() time.Time { return now }})
			for _, s := range tt.steps {
				asked = nil
				err := c.MakeDirs(t.Context(), d.URL+s.path)
				if (err != nil) != tt.fails {
					t.Errorf("%s: %v", s.path, err)
				}
				if strings.Join(asked, " ") != strings.Join(s.want, " ") {
					t.Errorf("%s: asked for %v, want %v", s.path, asked, s.want)
				}
			}
			if tt.skip || tt.header != "" {
				return
			}
			now = now.Add(time.Hour)
			asked = nil
			_ = c.MakeDirs(t.Context(), d.URL+path1)
			if len(asked) == 0 {
				t.Error("nothing is asked after an hour")
			}
		})
	}
}

func TestDirsAreBounded(t *testing.T) {
	c := client(t, Options{})
	for i := range maxDirs + 10 {
		c.madeDir("h", fmt.Sprint(i), true)
	}
	if len(c.dirs) > maxDirs {
		t.Errorf("%d directories are remembered", len(c.dirs))
	}
	if !c.hasDir("h", fmt.Sprint(maxDirs+9)) {
		t.Error("the last one is not")
	}
}

func TestLearnsThatAHostIsOurs(t *testing.T) {
	t.Parallel()
	d := startDaemon(t)
	url := d.put(path1, hello)
	d.answer(func(w http.ResponseWriter, _ *http.Request) bool { w.Header().Set("Mogile", "1"); return false })
	c := client(t, Options{})
	if _, err := c.Size(t.Context(), url); err != nil {
		t.Fatal(err)
	}
	if err := c.MakeDirs(t.Context(), url); err != nil || d.count("MKCOL") != 0 {
		t.Errorf("%d MKCOL, %v", d.count("MKCOL"), err)
	}
	d.answer(nil) // another daemon on the same port
	if _, err := c.Size(t.Context(), url); err != nil {
		t.Fatal(err)
	}
	if err := c.MakeDirs(t.Context(), url); err != nil || d.count("MKCOL") != 1 {
		t.Errorf("%d MKCOL, %v", d.count("MKCOL"), err)
	}
}

func FuzzSplit(f *testing.F) {
	for _, s := range []string{"http://10.0.0.1:7500" + path1, "http://[fd00::1]:7500/dev1/usage", "http:///x", "x", "http://a:b:c/"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, url string) {
		hostport, _, path, err := split(url)
		if err == nil && "http://"+hostport+path != url {
			t.Errorf("%q became %q and %q", url, hostport, path)
		}
		if err == nil && deviceEnd(path) > len(path) {
			t.Errorf("%q: device ends at %d", path, deviceEnd(path))
		}
	})
}

func BenchmarkSize(b *testing.B) {
	d := startDaemon(b)
	url := d.put(path1, hello)
	side := startSide(b, d.speak)
	for name, port := range map[string]int{"http": -1, "side": side.port} {
		b.Run(name, func(b *testing.B) {
			c := client(b, Options{MgmtPort: port})
			for b.Loop() {
				if _, err := c.Size(b.Context(), url); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
