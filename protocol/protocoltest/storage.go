package protocoltest

import (
	"bytes"
	"crypto/md5"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"
)

// Storage is a storage daemon: what is PUT can be fetched, with ranges, until
// it is deleted.
type Storage struct {
	server *httptest.Server

	mu        sync.Mutex // guards what follows
	files     map[string][]byte
	intercept func(http.ResponseWriter, *http.Request) bool
	requests  []string
	headers   []http.Header
}

// NewStorage serves on a free port of addr ("127.0.0.1") until the test ends.
func NewStorage(t testing.TB, addr string) *Storage {
	t.Helper()
	s := &Storage{files: make(map[string][]byte)}
	s.server = &httptest.Server{Listener: listen(t, addr), Config: &http.Server{Handler: s}}
	s.server.Start()
	t.Cleanup(s.server.Close)
	return s
}

// URL is the daemon's address as the beginning of a path.
func (s *Storage) URL() string { return s.server.URL }

// Port is the daemon's port.
func (s *Storage) Port() int { return s.server.Listener.Addr().(*net.TCPAddr).Port }

// Stop ends the daemon; connections to it are refused from now on.
func (s *Storage) Stop() { s.server.Close() }

// Break closes the connections that are open now.
func (s *Storage) Break() { s.server.CloseClientConnections() }

// Intercept has f see each request first, and answer it where it returns true.
func (s *Storage) Intercept(f func(http.ResponseWriter, *http.Request) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.intercept = f
}

// File is the content at path ("/dev1/0/…"), and whether there is any.
func (s *Storage) File(path string) ([]byte, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b, ok := s.files[path]
	return b, ok
}

// Set puts content at path, as a PUT does.
func (s *Storage) Set(path string, content []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.files[path] = content
}

// Remove takes away what is at path.
func (s *Storage) Remove(path string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.files, path)
}

// Requests are "METHOD path" of those that arrived.
func (s *Storage) Requests() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), s.requests...)
}

// Header is the header of request i.
func (s *Storage) Header(i int) http.Header {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.headers[i]
}

// ServeHTTP answers as a storage daemon.
func (s *Storage) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	s.requests = append(s.requests, r.Method+" "+r.URL.Path)
	header := r.Header.Clone()
	if len(r.TransferEncoding) > 0 {
		header.Set("Transfer-Encoding", strings.Join(r.TransferEncoding, ","))
	}
	for name := range r.Trailer {
		header.Set("Trailer", name)
	}
	s.headers = append(s.headers, header)
	intercept := s.intercept
	s.mu.Unlock()
	if intercept != nil && intercept(w, r) {
		return
	}
	path := "/" + strings.TrimLeft(r.URL.Path, "/")
	switch r.Method {
	case http.MethodGet, http.MethodHead:
		if path == "/" {
			return
		}
		content, ok := s.File(path)
		if !ok {
			if strings.HasSuffix(path, "/usage") {
				content = []byte("available: 1000000\ndevice: /dev/sda1\ndisk: /var/mogdata\ntime: " + fmt.Sprint(time.Now().Unix()) + "\ntotal: 2048000\nuse: 50%\nused: 1024000\n")
			} else {
				http.NotFound(w, r)
				return
			}
		}
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(content))
	case http.MethodPut:
		content, err := io.ReadAll(r.Body)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		want := r.Header.Get("Content-MD5")
		if want == "" {
			want = r.Trailer.Get("Content-MD5")
		}
		sum := md5.Sum(content)
		if want != "" && want != base64.StdEncoding.EncodeToString(sum[:]) {
			http.Error(w, "wrong MD5", http.StatusBadRequest)
			return
		}
		s.Set(path, content)
		w.WriteHeader(http.StatusCreated)
	case http.MethodDelete:
		if _, ok := s.File(path); !ok {
			http.NotFound(w, r)
			return
		}
		s.Remove(path)
		w.WriteHeader(http.StatusNoContent)
	default:
		w.WriteHeader(http.StatusBadRequest)
	}
}
