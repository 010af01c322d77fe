package storage

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mogile/mogile/protocol"
)

func TestCopy(t *testing.T) {
	t.Parallel()
	none := protocol.Checksum{}
	for _, size := range []int{0, 1, 11, 32 << 10, 1<<20 + 7} {
		body := pattern(size)
		tests := []struct {
			name    string
			want    protocol.Checksum
			class   protocol.HashType
			trust   bool
			sum     protocol.Checksum
			md5Sent bool
			reads   int // of the destination, to hash it
		}{
			{"plain", none, protocol.HashNone, true, none, false, 0},
			{"class hashes", none, protocol.HashMD5, false, sumOf(protocol.HashMD5, body), false, 1},
			// No Content-MD5 could be sent, so the daemon has checked nothing.
			{"class hashes, trusted", none, protocol.HashMD5, true, sumOf(protocol.HashMD5, body), false, 1},
			{"MD5 row", sumOf(protocol.HashMD5, body), protocol.HashNone, false, sumOf(protocol.HashMD5, body), true, 1},
			{"MD5 row, trusted", sumOf(protocol.HashMD5, body), protocol.HashSHA1, true, sumOf(protocol.HashMD5, body), true, 0},
			{"SHA-1 row, trusted", sumOf(protocol.HashSHA1, body), protocol.HashMD5, true, sumOf(protocol.HashSHA1, body), false, 1},
		}
		for _, tt := range tests {
			t.Run(fmt.Sprint(size, " ", tt.name), func(t *testing.T) {
				t.Parallel()
				src, dst := startDaemon(t), startDaemon(t)
				c := client(t, Options{})
				sum, err := c.Copy(t.Context(), Copy{From: src.put(path1, body), To: dst.URL + path2, Length: int64(size),
					Want: tt.want, HashType: tt.class, TrustMD5: tt.trust})
				if err != nil {
					t.Fatal(err)
				}
				if !sum.Equal(tt.sum) {
					t.Errorf("digest %v, want %v", sum, tt.sum)
				}
				if got, ok := dst.file(path2); !ok || !bytes.Equal(got, body) {
					t.Errorf("the copy has %d bytes, %v", len(got), ok)
				}
				if got := dst.header.Get("Content-MD5") != ""; got != tt.md5Sent {
					t.Errorf("Content-MD5 was sent: %v", got)
				}
				if got := dst.header.Get("Content-Length"); got != "" && got != fmt.Sprint(size) {
					t.Errorf("Content-Length %q", got)
				}
				if dst.count("GET") != tt.reads || src.count("GET") != 1 || dst.count("PUT") != 1 {
					t.Errorf("%d GET and %d PUT at the destination, %d GET at the source", dst.count("GET"), dst.count("PUT"), src.count("GET"))
				}
			})
		}
	}
}

func TestCopyFails(t *testing.T) {
	t.Parallel()
	body := pattern(300_000)
	// half sends the first half of the file and then does as it likes.
	half := func(then func(r *http.Request)) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, r *http.Request) bool {
			w.Header().Set("Content-Length", fmt.Sprint(len(body)))
			_, _ = w.Write(body[:len(body)/2])
			w.(http.Flusher).Flush()
			then(r)
			panic(http.ErrAbortHandler)
		}
	}
	waitGone := func(r *http.Request) { <-r.Context().Done() }
	only := func(method string, f func(http.ResponseWriter, *http.Request) bool) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, r *http.Request) bool { return r.Method == method && f(w, r) }
	}
	bad := sumOf(protocol.HashMD5, []byte("other"))
	tests := []struct {
		name   string
		src    func(http.ResponseWriter, *http.Request) bool
		dst    func(http.ResponseWriter, *http.Request) bool
		cp     Copy
		side   Side
		landed bool
		maybe  bool // whether it landed depends on what the sockets swallow
		err    error
	}{
		{name: "source missing", src: status("GET", 404), side: SourceError, err: ErrMissing},
		{name: "source sick", src: status("GET", 503), side: SourceError, err: ErrUnreachable},
		{name: "source redirects", src: status("GET", 302), side: SourceError, err: ErrUnreachable},
		{name: "source of another length", cp: Copy{Length: 300_001}, side: SourceError},
		{name: "source without length", src: raw(t, "GET", "HTTP/1.0 200 OK\r\n\r\n"+string(body)), side: SourceError},
		{name: "source ends early", src: half(func(*http.Request) {}), side: SourceError, err: errShort},
		{name: "source stops", src: half(waitGone), side: SourceError, err: ErrUnreachable},
		{name: "source says nothing", src: hang("GET"), side: SourceError, err: ErrUnreachable},
		{name: "source corrupt, MD5", cp: Copy{Want: bad}, side: SourceError, err: errCorrupt},
		{name: "source corrupt, SHA-1", cp: Copy{Want: sumOf(protocol.HashSHA1, hello)}, side: SourceError, err: errCorrupt},
		{name: "destination full", dst: status("PUT", 507), side: DestError, err: ErrUnreachable},
		{name: "destination without the device", dst: status("PUT", 404), side: DestError, err: ErrMissing},
		{name: "destination refuses Content-MD5", dst: only("PUT", func(w http.ResponseWriter, r *http.Request) bool {
			_, _ = io.Copy(io.Discard, r.Body)
			w.WriteHeader(400)
			return true
		}), cp: Copy{Want: sumOf(protocol.HashMD5, body)}, side: DestError, err: ErrUnreachable},
		{name: "destination closes", dst: only("PUT", func(_ http.ResponseWriter, r *http.Request) bool {
			_, _ = io.CopyN(io.Discard, r.Body, 1000)
			panic(http.ErrAbortHandler)
		}), side: DestError, maybe: true, err: ErrUnreachable},
		{name: "destination says nothing", dst: hang("PUT"), side: DestError, landed: true, err: ErrUnreachable},
		{name: "destination loses it", dst: only("PUT", func(_ http.ResponseWriter, r *http.Request) bool {
			_, _ = io.Copy(io.Discard, r.Body)
			return true
		}), side: DestError, landed: true, err: ErrMissing},
		{name: "destination stores less", dst: only("HEAD", func(w http.ResponseWriter, _ *http.Request) bool {
			w.Header().Set("Content-Length", "299999")
			return true
		}), side: DestError, landed: true},
		{name: "destination corrupts", dst: only("GET", func(w http.ResponseWriter, _ *http.Request) bool {
			_, _ = w.Write(bytes.Repeat([]byte{'x'}, len(body)))
			return true
		}), cp: Copy{HashType: protocol.HashSHA1}, side: DestError, landed: true},
		{name: "destination makes no directories", dst: hang("MKCOL"), side: DestError, err: ErrUnreachable},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			src, dst := startDaemon(t), startDaemon(t)
			cp := tt.cp
			cp.From, cp.To = src.put(path1, body), dst.URL+path2
			if cp.Length == 0 {
				cp.Length = int64(len(body))
			}
			src.answer(tt.src)
			dst.answer(tt.dst)
			c := client(t, Options{CopyTimeout: 300 * time.Millisecond, NodeTimeout: 300 * time.Millisecond})
			sum, err := c.Copy(t.Context(), cp)
			var ce *CopyError
			if !errors.As(err, &ce) || ce.Side != tt.side || ce.Landed != tt.landed && !tt.maybe || tt.err != nil && !errors.Is(err, tt.err) {
				t.Fatalf("got %v, %+v; want %v, landed %v, %v", sum, err, tt.side, tt.landed, tt.err)
			}
			if !strings.HasPrefix(err.Error(), tt.side.String()+": ") {
				t.Errorf("text: %v", err)
			}
			if _, ok := dst.file(path2); ok && !tt.landed {
				t.Error("the destination keeps a file")
			}
		})
	}
}

// TestCopyDestinationStops: a destination that stops reading is found out while
// the source is well, and is the one to blame.
func TestCopyDestinationStops(t *testing.T) {
	t.Parallel()
	src, dst := startDaemon(t), startDaemon(t)
	const size = 64 << 20 // more than the sockets swallow
	src.answer(func(w http.ResponseWriter, _ *http.Request) bool {
		w.Header().Set("Content-Length", fmt.Sprint(size))
		_, _ = io.CopyN(w, zeros{}, size)
		return true
	})
	release := make(chan struct{})
	defer close(release)
	dst.answer(func(http.ResponseWriter, *http.Request) bool { <-release; return true })
	c := client(t, Options{CopyTimeout: 300 * time.Millisecond, SkipMkcol: func() bool { return true }})
	_, err := c.Copy(t.Context(), Copy{From: src.URL + path1, To: dst.URL + path2, Length: size})
	var ce *CopyError
	if !errors.As(err, &ce) || ce.Side != DestError || ce.Landed || !errors.Is(err, ErrUnreachable) {
		t.Errorf("got %v", err)
	}
}

func TestCopyCancelled(t *testing.T) {
	t.Parallel()
	src, dst := startDaemon(t), startDaemon(t)
	ctx, cancel := context.WithCancel(t.Context())
	dst.answer(func(_ http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodPut {
			return false
		}
		_, _ = io.Copy(io.Discard, r.Body)
		cancel()
		<-r.Context().Done()
		return true
	})
	_, err := client(t, Options{}).Copy(ctx, Copy{From: src.put(path1, hello), To: dst.URL + path2, Length: 11})
	var ce *CopyError
	if !errors.Is(err, context.Canceled) || errors.As(err, &ce) {
		t.Errorf("got %v", err)
	}
}

// TestCopyOverStaleConnection: the PUT's body cannot be replayed by the
// transport, so the copy begins again, once.
func TestCopyOverStaleConnection(t *testing.T) {
	t.Parallel()
	src, dst := startDaemon(t), startDaemon(t)
	c := client(t, Options{})
	cp := Copy{From: src.put(path1, hello), To: dst.URL + path2, Length: 11}
	if _, err := c.Copy(t.Context(), cp); err != nil {
		t.Fatal(err)
	}
	var broken atomic.Int64
	breakAll := false
	dst.answer(func(_ http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodPut && (breakAll || broken.Load() == 0) {
			broken.Add(1)
			_, _ = io.Copy(io.Discard, r.Body)
			panic(http.ErrAbortHandler)
		}
		return false
	})
	if _, err := c.Copy(t.Context(), cp); err != nil || broken.Load() != 1 {
		t.Errorf("one stale connection: %v after %d", err, broken.Load())
	}
	breakAll = true
	broken.Store(0)
	_, err := c.Copy(t.Context(), cp)
	var ce *CopyError
	if !errors.As(err, &ce) || ce.Side != DestError || broken.Load() != 2 {
		t.Errorf("a daemon that always closes: %v after %d", err, broken.Load())
	}
}

// zeros is an endless file.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// TestCopyMemory: what a copy needs does not grow with the file.
func TestCopyMemory(t *testing.T) {
	const size = 64 << 20
	src, dst := startDaemon(t), startDaemon(t)
	src.answer(func(w http.ResponseWriter, _ *http.Request) bool {
		w.Header().Set("Content-Length", fmt.Sprint(size))
		_, _ = io.CopyN(w, zeros{}, size)
		return true
	})
	dst.answer(func(w http.ResponseWriter, r *http.Request) bool {
		switch r.Method {
		case http.MethodPut:
			if n, err := io.Copy(io.Discard, r.Body); n != size || err != nil {
				t.Errorf("the destination got %d bytes, %v", n, err)
			}
		case http.MethodHead:
			w.Header().Set("Content-Length", fmt.Sprint(size))
		default:
			return false
		}
		return true
	})
	c := client(t, Options{})
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	if _, err := c.Copy(t.Context(), Copy{From: src.URL + path1, To: dst.URL + path2, Length: size}); err != nil {
		t.Fatal(err)
	}
	runtime.ReadMemStats(&after)
	if got := after.TotalAlloc - before.TotalAlloc; got > 8<<20 {
		t.Errorf("%d MiB were allocated to copy %d MiB", got>>20, size>>20)
	}
}

func BenchmarkCopy(b *testing.B) {
	for _, size := range []int{4 << 10, 8 << 20} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			src, dst := startDaemon(b), startDaemon(b)
			dst.put(path2, pattern(size))
			dst.answer(func(w http.ResponseWriter, r *http.Request) bool {
				_, _ = io.Copy(io.Discard, r.Body)
				return r.Method == http.MethodPut
			})
			c := client(b, Options{})
			cp := Copy{From: src.put(path1, pattern(size)), To: dst.URL + path2, Length: int64(size)}
			b.SetBytes(int64(size))
			for b.Loop() {
				if _, err := c.Copy(b.Context(), cp); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
