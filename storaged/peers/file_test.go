package peers

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// served serves content, and counts what it is asked for.
type served struct {
	*httptest.Server
	content         []byte
	requests, bytes atomic.Int64
	hang            atomic.Bool // sends the first byte, and then nothing
}

func serveFile(t *testing.T, size int) *served {
	t.Helper()
	s := &served{content: make([]byte, size)}
	rng := rand.New(rand.NewPCG(uint64(size), 1))
	for i := range s.content {
		s.content[i] = byte(rng.Uint32())
	}
	stop := make(chan struct{})
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.requests.Add(1)
		var first, last int64
		fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-%d", &first, &last)
		s.bytes.Add(min(last+1, int64(size)) - first)
		if s.hang.Load() {
			w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", first, last, size))
			w.WriteHeader(206)
			w.Write(s.content[first : first+1])
			w.(http.Flusher).Flush()
			select {
			case <-stop:
			case <-r.Context().Done():
			}
			return
		}
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(s.content))
	}))
	t.Cleanup(func() {
		close(stop)
		s.Close()
	})
	return s
}

// TestFileReads: reads that follow each other share requests, others get exactly
// what they ask for, and all get the right bytes.
func TestFileReads(t *testing.T) {
	t.Parallel()
	const size = 10 << 20
	s := serveFile(t, size)
	c := client(t)
	read := func(f *File, off, n int) {
		t.Helper()
		b := make([]byte, n)
		if err := f.ReadAt(t.Context(), b, int64(off)); err != nil || !bytes.Equal(b, s.content[off:off+n]) {
			t.Fatalf("%d bytes at %d: %v, or other bytes", n, off, err)
		}
	}
	asked := func(requests, most int64) {
		t.Helper()
		if n, b := s.requests.Swap(0), s.bytes.Swap(0); n > requests || b > most {
			t.Errorf("%d requests for %d bytes, want at most %d for %d", n, b, requests, most)
		}
	}

	all := c.Open(s.URL, "dev1/x", size)
	for off := 0; off < size; off += 100_000 {
		read(all, off, min(100_000, size-off))
	}
	asked(7, size)
	all.Close()

	part := c.Open(s.URL, "dev1/x", 1_000_000)
	for off := 500_000; off < 1_000_000; off += 50_000 {
		read(part, off, 50_000)
	}
	asked(3, 500_000)
	part.Close()

	rng := rand.New(rand.NewPCG(1, 1))
	random := c.Open(s.URL, "dev1/x", size)
	for range 50 {
		read(random, rng.IntN(size-5000), 4096)
	}
	asked(50, 50*4096)
	random.Close()

	both := c.Open(s.URL, "dev1/x", size)
	var all2 sync.WaitGroup
	for g := range 4 {
		all2.Go(func() {
			b := make([]byte, 70_000)
			for off := g * 2_000_000; off < (g+1)*2_000_000; off += len(b) {
				if err := both.ReadAt(t.Context(), b, int64(off)); err != nil || !bytes.Equal(b, s.content[off:off+len(b)]) {
					t.Errorf("at %d: %v, or other bytes", off, err)
				}
			}
		})
	}
	all2.Wait()
	both.Close()
}

// What cannot be read is an error, and what can be is read after it.
func TestFileTroubles(t *testing.T) {
	t.Parallel()
	const size = 100_000
	s := serveFile(t, size)
	f := client(t).Open(s.URL, "dev1/x", 1<<40)
	defer f.Close()
	b := make([]byte, 30_000)
	for _, tt := range []struct {
		off  int64
		want error
	}{{0, nil}, {30_000, nil}, {80_000, io.ErrUnexpectedEOF}, {60_000, nil}, {size, io.EOF}, {0, nil}} {
		if err := f.ReadAt(t.Context(), b, tt.off); !errors.Is(err, tt.want) || err == nil && !bytes.Equal(b, s.content[tt.off:tt.off+int64(len(b))]) {
			t.Errorf("at %d: %v, want %v, or other bytes", tt.off, err, tt.want)
		}
	}
	s.hang.Store(true)
	gone := errors.New("nobody waits")
	ctx, cancel := context.WithCancelCause(t.Context())
	time.AfterFunc(20*time.Millisecond, func() { cancel(gone) })
	if err := f.ReadAt(ctx, b, 50_000); !errors.Is(err, gone) {
		t.Errorf("a read that nobody waits for: %v", err)
	}
	s.hang.Store(false)
	for _, off := range []int64{10_000, 40_000} {
		if err := f.ReadAt(t.Context(), b, off); err != nil || !bytes.Equal(b, s.content[off:off+int64(len(b))]) {
			t.Errorf("at %d after that: %v, or other bytes", off, err)
		}
	}
	missing := httptest.NewServer(http.NotFoundHandler())
	defer missing.Close()
	if err := client(t).Open(missing.URL, "dev1/x", 1).ReadAt(t.Context(), b, 0); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a missing file: %v", err)
	}
}
