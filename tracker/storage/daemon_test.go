package storage

import (
	"bufio"
	"bytes"
	"crypto/md5"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/mogile/mogile/protocol"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// daemon is a storage daemon in memory.
type daemon struct {
	*httptest.Server
	conns atomic.Int64 // accepted so far

	mu     sync.Mutex
	files  map[string][]byte
	counts map[string]int // requests by method
	header http.Header    // of the last PUT
	// first, where not nil, may answer in the daemon's place.
	first func(w http.ResponseWriter, r *http.Request) bool
}

func startDaemon(t testing.TB) *daemon {
	d := &daemon{files: map[string][]byte{}, counts: map[string]int{}}
	d.Server = httptest.NewUnstartedServer(d)
	d.Config.ConnState = func(_ net.Conn, s http.ConnState) {
		if s == http.StateNew {
			d.conns.Add(1)
		}
	}
	d.Start()
	t.Cleanup(d.Close)
	return d
}

func (d *daemon) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	d.mu.Lock()
	d.counts[r.Method]++
	if r.Method == http.MethodPut {
		d.header = r.Header.Clone()
	}
	first := d.first
	d.mu.Unlock()
	if first != nil && first(w, r) {
		return
	}
	switch r.Method {
	case http.MethodGet, http.MethodHead:
		body, ok := d.file(r.URL.Path)
		if !ok {
			http.NotFound(w, r)
			return
		}
		w.Header().Set("Content-Length", fmt.Sprint(len(body)))
		if r.Method == http.MethodGet {
			_, _ = w.Write(body)
		}
	case http.MethodPut:
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return // broken off: nothing is kept
		}
		sum := md5.Sum(body)
		if want := r.Header.Get("Content-MD5"); want != "" && want != base64.StdEncoding.EncodeToString(sum[:]) {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		d.put(r.URL.Path, body)
		w.WriteHeader(http.StatusCreated)
	case http.MethodDelete:
		if _, ok := d.file(r.URL.Path); !ok {
			http.NotFound(w, r)
			return
		}
		d.mu.Lock()
		delete(d.files, r.URL.Path)
		d.mu.Unlock()
		w.WriteHeader(http.StatusNoContent)
	default:
		w.WriteHeader(http.StatusBadRequest)
	}
}

func (d *daemon) file(path string) ([]byte, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	b, ok := d.files[path]
	return b, ok
}

func (d *daemon) put(path string, body []byte) string {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.files[path] = body
	return d.URL + path
}

func (d *daemon) count(method string) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.counts[method]
}

func (d *daemon) answer(first func(w http.ResponseWriter, r *http.Request) bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.first = first
}

// status answers every request of a method with a status.
func status(method string, code int) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != method {
			return false
		}
		w.WriteHeader(code)
		return true
	}
}

// hang answers no request of a method until the client goes.
func hang(method string) func(http.ResponseWriter, *http.Request) bool {
	return func(_ http.ResponseWriter, r *http.Request) bool {
		if r.Method != method {
			return false
		}
		_, _ = io.Copy(io.Discard, r.Body)
		<-r.Context().Done()
		return true
	}
}

// raw answers with these bytes and closes the connection.
func raw(t testing.TB, method, answer string) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != method {
			return false
		}
		conn, _, err := w.(http.Hijacker).Hijack()
		if err != nil {
			t.Error(err)
			return true
		}
		_, _ = io.WriteString(conn, answer)
		_ = conn.Close()
		return true
	}
}

// sideDaemon is a side channel. reply is given a line and writes what it likes;
// false closes the connection.
type sideDaemon struct {
	net.Listener
	port  int
	conns atomic.Int64
	mu    sync.Mutex
	lines []string
	wg    sync.WaitGroup
}

func startSide(t testing.TB, reply func(w io.Writer, line string) bool) *sideDaemon {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &sideDaemon{Listener: l, port: l.Addr().(*net.TCPAddr).Port}
	open := map[net.Conn]bool{}
	s.wg.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			s.conns.Add(1)
			s.mu.Lock()
			open[conn] = true
			s.mu.Unlock()
			s.wg.Go(func() {
				defer conn.Close()
				r := bufio.NewScanner(conn)
				for r.Scan() {
					s.mu.Lock()
					s.lines = append(s.lines, r.Text())
					s.mu.Unlock()
					if !reply(conn, r.Text()) {
						return
					}
				}
			})
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		s.mu.Lock()
		for conn := range open {
			_ = conn.Close()
		}
		s.mu.Unlock()
		s.wg.Wait()
	})
	return s
}

func (s *sideDaemon) asked() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), s.lines...)
}

// speak answers size, MD5 and SHA-1 for the files of d, as mogstored does.
func (d *daemon) speak(w io.Writer, line string) bool {
	f := strings.Fields(line)
	if len(f) < 2 {
		fmt.Fprintf(w, "ERROR: unknown command: %s\r\n", line)
		return true
	}
	body, ok := d.file(f[1])
	t, isHash := protocol.ParseHashType(f[0])
	switch {
	case f[0] == "size" && ok:
		fmt.Fprintf(w, "%s %d\r\n", f[1], len(body))
	case f[0] == "size":
		fmt.Fprintf(w, "%s -1\r\n", f[1])
	case isHash && ok:
		h := t.New()
		h.Write(body)
		fmt.Fprintf(w, "%s %s=%s\r\n", f[1], t, hex.EncodeToString(h.Sum(nil)))
	case isHash:
		fmt.Fprintf(w, "%s %s=-1\r\n", f[1], t)
	default:
		fmt.Fprintf(w, "ERROR: unknown command: %s\r\n", f[0])
	}
	return true
}

// client makes a client with short timeouts; a MgmtPort of 0 means that there
// is no side channel.
func client(t testing.TB, o Options) *Client {
	if o.MgmtPort == 0 {
		o.MgmtPort = -1
	}
	if o.NodeTimeout == 0 {
		o.NodeTimeout = 5 * time.Second
	}
	c := New(o)
	t.Cleanup(c.Close)
	return c
}

func sumOf(t protocol.HashType, body []byte) protocol.Checksum {
	h := t.New()
	h.Write(body)
	return protocol.Checksum{Type: t, Sum: h.Sum(nil)}
}

const path1 = "/dev1/0/000/000/0000000042.fid"
const path2 = "/dev2/0/000/000/0000000042.fid"

var hello = []byte("hello world")

func pattern(n int) []byte { return bytes.Repeat([]byte("0123456789abcdef"), n/16+1)[:n] }
