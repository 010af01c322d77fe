package transfer

import (
	"context"
	"crypto/md5"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/rs/zerolog"
	"go.uber.org/goleak"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/storaged/volume"
	"github.com/mogile/mogile/storaged/volume/simdisk"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// within is for how long tests wait for what must happen at once.
const within = 10 * time.Second

// host is the destination: Transfers on a simulated disk.
type host struct {
	*Transfers
	t       *testing.T
	disk    *simdisk.Disk
	docroot *volume.Docroot
	idle    int           // files that are open while nothing is under way
	stuck   time.Duration // after which the disk is given up; 0: the default
}

const file1 = "/data/dev1/0/000/000/0000000042.fid"

func start(t *testing.T, o Options, devs ...int) *host {
	t.Helper()
	return startStuck(t, 0, o, devs...)
}

// startStuck is start with a disk that is given up when it was silent for so long.
func startStuck(t *testing.T, stuck time.Duration, o Options, devs ...int) *host {
	t.Helper()
	disk := simdisk.New(simdisk.Options{})
	for _, n := range append(devs, 1) {
		if err := disk.MountAt(fmt.Sprintf("/data/dev%d", n), fmt.Sprintf("/dev/sim%d", n)); err != nil {
			t.Fatal(err)
		}
	}
	h := &host{t: t, disk: disk, stuck: stuck}
	h.open(o)
	return h
}

func (h *host) open(o Options) {
	h.t.Helper()
	var err error
	o.Log = zerolog.New(zerolog.NewTestWriter(h.t))
	h.docroot, err = volume.OpenDocroot("/data", volume.Options{FS: h.disk, Log: o.Log, StuckAfter: h.stuck})
	if err != nil {
		h.t.Fatal(err)
	}
	docroot := h.docroot
	h.idle = h.disk.Open()
	h.t.Cleanup(func() {
		if err := docroot.Close(); err != nil {
			h.t.Error(err)
		}
	})
	o.Docroot = docroot
	o.Registerer = prometheus.NewRegistry()
	transfers := New(o)
	h.t.Cleanup(transfers.Close)
	h.Transfers = transfers
}

// files are those that are not the device's own.
func (h *host) files() []string {
	return slices.DeleteFunc(h.disk.Files("/data"), func(p string) bool { return strings.HasSuffix(p, "/.mogile/device") })
}

// serve is a source that answers as f has it, on loopback; its URL is of fid 42.
func serve(t *testing.T, f http.HandlerFunc) string {
	t.Helper()
	s := httptest.NewServer(f)
	t.Cleanup(s.Close)
	return s.URL + "/dev2/0/000/000/0000000042.fid"
}

// body is a source that has this content, and tells the sum, if there is one.
func body(t *testing.T, content []byte, sum string) string {
	t.Helper()
	return serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Mogile-Want") != "sum" || r.Method != http.MethodGet || r.URL.Path != "/dev2/0/000/000/0000000042.fid" {
			t.Errorf("%s %s, %v", r.Method, r.URL, r.Header)
		}
		if sum != "" {
			w.Header().Set("Mogile-Sum", sum)
		}
		w.Header().Set("Content-Length", fmt.Sprint(len(content)))
		_, _ = w.Write(content)
	})
}

func crcOf(b []byte) uint32 { return crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)) }

func md5Of(b []byte) protocol.Checksum {
	sum := md5.Sum(b)
	return protocol.Checksum{Type: protocol.HashMD5, Sum: sum[:]}
}

func pattern(n int) []byte {
	b := make([]byte, n)
	rng := rand.NewChaCha8([32]byte{1})
	_, _ = rng.Read(b) // never fails
	return b
}

func orderOf(from string, length int) protocol.CopyOrder {
	return protocol.CopyOrder{FID: 42, Dev: 1, From: from, Length: int64(length)}
}

// refusal is the error of a transfer, or the end of the test.
func refusal(t *testing.T, err error) *Error {
	t.Helper()
	var e *Error
	if !errors.As(err, &e) {
		t.Fatalf("%v is not an error of a transfer", err)
	}
	return e
}

func TestCopy(t *testing.T) {
	t.Parallel()
	for _, size := range []int{0, 1, 11, bufferSize, bufferSize + 1, 3<<20 + 5} {
		content := pattern(size)
		for _, c := range []struct {
			name string
			set  func(*protocol.CopyOrder)
			sum  string
			want protocol.Checksum
		}{
			{"plain", func(*protocol.CopyOrder) {}, "", protocol.Checksum{}},
			{"checked", func(o *protocol.CopyOrder) { o.Want = md5Of(content) }, "", md5Of(content)},
			{"computed", func(o *protocol.CopyOrder) { o.HashType = protocol.HashMD5 }, "", md5Of(content)},
			{"stored sum", func(*protocol.CopyOrder) {}, fmt.Sprintf("%d %08x", size, crcOf(content)), protocol.Checksum{}},
			{"stored sum of another form", func(*protocol.CopyOrder) {}, "2 bytes", protocol.Checksum{}},
		} {
			t.Run(fmt.Sprintf("%s of %d", c.name, size), func(t *testing.T) {
				h := start(t, Options{})
				o := orderOf(body(t, content, c.sum), size)
				c.set(&o)
				var done atomic.Int64
				report, err := h.Copy(t.Context(), o, done.Store)
				if err != nil {
					t.Fatal(err)
				}
				if report.Length != int64(size) || report.CRC32C != crcOf(content) || !report.Digest.Equal(c.want) || report.Present || done.Load() != int64(size) {
					t.Errorf("%+v, %d done", report, done.Load())
				}
				got, err := h.disk.ReadFile(file1)
				if err != nil || string(got) != string(content) {
					t.Errorf("%d bytes landed, %v", len(got), err)
				}
				v, err := h.docroot.Volume(1)
				if err != nil {
					t.Fatal(err)
				}
				f, err := v.Open(t.Context(), "0/000/000/0000000042.fid")
				if err != nil {
					t.Fatal(err)
				}
				defer f.Close()
				if sum, err := f.Verify(t.Context()); err != nil || sum.CRC32C != report.CRC32C {
					t.Errorf("stored sum: %v, %v", sum, err)
				}
			})
		}
	}
}

// Whatever a source does, nothing lands that was not ordered, and it is the
// source that is blamed.
func TestBadSources(t *testing.T) {
	t.Parallel()
	content := pattern(200_000)
	raw := func(text string, more []byte) func(*testing.T) string {
		return func(t *testing.T) string {
			return serve(t, func(w http.ResponseWriter, _ *http.Request) {
				c, _, err := w.(http.Hijacker).Hijack()
				if err != nil {
					t.Error(err)
					return
				}
				defer c.Close()
				_, _ = io.WriteString(c, strings.ReplaceAll(text, "\n", "\r\n"))
				_, _ = c.Write(more)
			})
		}
	}
	corrupt := slices.Clone(content)
	corrupt[100_000] ^= 1
	for _, c := range []struct {
		name    string
		from    func(*testing.T) string
		code    *protocol.Error
		corrupt bool
	}{
		{"missing", func(t *testing.T) string { return serve(t, http.NotFound) }, protocol.ErrCopySource, false},
		{"failing", func(t *testing.T) string {
			return serve(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(500) })
		}, protocol.ErrCopySource, false},
		{"redirect", func(t *testing.T) string {
			to := body(t, content, "")
			return serve(t, func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, to, http.StatusFound) })
		}, protocol.ErrCopySource, false},
		{"partial", raw("HTTP/1.1 206 Partial Content\nContent-Length: 200000\n\n", content), protocol.ErrCopySource, false},
		{"too long", func(t *testing.T) string { return body(t, append(slices.Clone(content), 'x'), "") }, protocol.ErrCopySource, false},
		{"too short", func(t *testing.T) string { return body(t, content[1:], "") }, protocol.ErrCopySource, false},
		{"lies, and sends less", raw("HTTP/1.1 200 OK\nContent-Length: 200000\n\n", content[:199_999]), protocol.ErrCopySource, false},
		{"says nothing of its length", raw("HTTP/1.1 200 OK\nConnection: close\n\n", content), protocol.ErrCopySource, false},
		{"chunked", raw("HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\n5\nhello\n0\n\n", nil), protocol.ErrCopySource, false},
		{"garbage", raw("220 smtp ready\n", nil), protocol.ErrCopySource, false},
		{"endless header", raw("HTTP/1.1 200 OK\nX: "+strings.Repeat("x", 100<<10)+"\n\n", nil), protocol.ErrCopySource, false},
		{"corrupt", func(t *testing.T) string { return body(t, corrupt, "") }, protocol.ErrCopySource, true},
		{"corrupt, by its own sum", func(t *testing.T) string { return body(t, content, "200000 00000000") }, protocol.ErrCopySource, true},
		{"nobody", func(t *testing.T) string {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			return "http://" + l.Addr().String() + "/dev2/0/000/000/0000000042.fid"
		}, protocol.ErrCopyUnreachable, false},
		{"silent", func(t *testing.T) string {
			return serve(t, func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
		}, protocol.ErrCopySource, false},
		{"stops half way", func(t *testing.T) string {
			return serve(t, func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Content-Length", "200000")
				_, _ = w.Write(content[:100_000])
				w.(http.Flusher).Flush()
				<-r.Context().Done()
			})
		}, protocol.ErrCopySource, false},
		{"no URL", func(*testing.T) string { return "http://[::1" }, protocol.ErrBadOrder, false},
		{"a user", func(*testing.T) string { return "http://user@127.0.0.1/x" }, protocol.ErrBadOrder, false},
		{"a query", func(*testing.T) string { return "http://127.0.0.1/x?y" }, protocol.ErrBadOrder, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			var silence time.Duration
			if c.name == "silent" || c.name == "stops half way" {
				silence = 200 * time.Millisecond
			}
			h := start(t, Options{SourceTimeout: silence})
			o := orderOf(c.from(t), len(content))
			o.Want = md5Of(content)
			_, err := h.Copy(t.Context(), o, nil)
			e := refusal(t, err)
			if !errors.Is(err, c.code) || e.Landed || e.Corrupt != c.corrupt || e.Full {
				t.Errorf("%v, %v", err, e.Fields())
			}
			h.empty()
		})
	}
}

// empty waits until nothing is left of what was begun.
func (h *host) empty() {
	h.t.Helper()
	h.eventually("nothing is left", func() bool { return len(h.files()) == 0 && h.disk.Open() == h.idle })
}

func (h *host) eventually(what string, ok func() bool) {
	h.t.Helper()
	deadline := time.After(within)
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-deadline:
			h.t.Fatalf("not in %v: %s: %v", within, what, h.files())
		case <-tick.C:
		}
	}
}

// A source that brings a byte now and then is given up, though never silent.
func TestTricklingSource(t *testing.T) {
	t.Parallel()
	h := start(t, Options{SourceTimeout: 300 * time.Millisecond})
	from := serve(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", "1000")
		for r.Context().Err() == nil {
			if _, err := w.Write([]byte{'x'}); err != nil {
				return
			}
			w.(http.Flusher).Flush()
			<-time.After(5 * time.Millisecond)
		}
	})
	_, err := h.Copy(t.Context(), orderOf(from, 1000), nil)
	if !errors.Is(err, errTooSlow) || !errors.Is(err, protocol.ErrCopySource) {
		t.Error(err)
	}
	h.empty()
}

// slowSource sends half of the content, says so, and the rest when it is told.
func slowSource(t *testing.T, content []byte) (from string, half <-chan struct{}, rest chan struct{}) {
	t.Helper()
	sent, rest := make(chan struct{}, 100), make(chan struct{})
	from = serve(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", fmt.Sprint(len(content)))
		_, _ = w.Write(content[:len(content)/2])
		w.(http.Flusher).Flush()
		sent <- struct{}{}
		select {
		case <-rest:
			_, _ = w.Write(content[len(content)/2:])
		case <-r.Context().Done():
		}
	})
	return from, sent, rest
}

// Who ordered it, the deadline and a deletion each end a transfer, and nothing of
// it is left.
func TestCancel(t *testing.T) {
	t.Parallel()
	content := pattern(500_000)
	for name, end := range map[string]func(*host, context.CancelFunc) error{
		"hung up": func(_ *host, cancel context.CancelFunc) error { cancel(); return context.Canceled },
		"deleted": func(h *host, _ context.CancelFunc) error {
			if err := h.Cancel(h.t.Context(), 1, "0/000/000/0000000042.fid"); err != nil {
				h.t.Error(err)
			}
			if len(h.running) > 0 {
				h.t.Error("Cancel returned while the transfer runs")
			}
			return errDeleted
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := start(t, Options{})
			from, half, _ := slowSource(t, content)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			ended := make(chan error, 1)
			var done atomic.Int64
			go func() {
				_, err := h.Copy(ctx, orderOf(from, len(content)), done.Store)
				ended <- err
			}()
			<-half
			h.eventually("half of it is there", func() bool { return done.Load() == int64(len(content)/2) })
			want := end(h, cancel)
			err := <-ended
			if e := refusal(t, err); !errors.Is(err, protocol.ErrCopyCancelled) || !errors.Is(err, want) || e.Landed {
				t.Error(err)
			}
			h.empty()
			// The path is free for another.
			if _, err := h.Copy(t.Context(), orderOf(body(t, content, ""), len(content)), nil); err != nil {
				t.Error(err)
			}
		})
	}
	h := start(t, Options{})
	if err := h.Cancel(t.Context(), 1, "nothing"); err != nil {
		t.Error(err)
	}
}

// Two orders for one path: the second is refused while the first runs.
func TestOneAtAPath(t *testing.T) {
	t.Parallel()
	h := start(t, Options{})
	content := pattern(100_000)
	from, half, rest := slowSource(t, content)
	ended := make(chan error, 1)
	go func() {
		_, err := h.Copy(t.Context(), orderOf(from, len(content)), nil)
		ended <- err
	}()
	<-half
	if _, err := h.Copy(t.Context(), orderOf(from, len(content)), nil); !errors.Is(err, protocol.ErrCopyBusy) {
		t.Error(err)
	}
	close(rest)
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if got := testutil.ToFloat64(h.meter.total.WithLabelValues("busy")); got != 1 {
		t.Errorf("%v counted as busy", got)
	}
}

// What is there already, and is what is wanted, is not fetched; anything else is
// replaced.
func TestPresent(t *testing.T) {
	t.Parallel()
	h := start(t, Options{})
	content := pattern(100_000)
	o := orderOf(body(t, content, ""), len(content))
	o.Want = md5Of(content)
	if _, err := h.Copy(t.Context(), o, nil); err != nil {
		t.Fatal(err)
	}
	nowhere := o
	nowhere.From = "http://127.0.0.1:1/dev2/0/000/000/0000000042.fid"
	report, err := h.Copy(t.Context(), nowhere, nil)
	if err != nil || !report.Present || report.CRC32C != crcOf(content) || !report.Digest.Equal(o.Want) {
		t.Errorf("%+v, %v", report, err)
	}
	// Without a checksum nobody knows.
	unknown := nowhere
	unknown.Want = protocol.Checksum{}
	if _, err := h.Copy(t.Context(), unknown, nil); !errors.Is(err, protocol.ErrCopyUnreachable) {
		t.Error(err)
	}
	rotten := slices.Clone(content)
	rotten[5] ^= 1
	for name, bad := range map[string][]byte{"rotten": rotten, "short": content[:5]} {
		if err := h.disk.Rot(file1, bad); err != nil {
			t.Fatal(err)
		}
		report, err := h.Copy(t.Context(), o, nil)
		if err != nil || report.Present {
			t.Errorf("%s: %+v, %v", name, report, err)
		}
		if got, err := h.disk.ReadFile(file1); err != nil || string(got) != string(content) {
			t.Errorf("%s: not replaced: %v", name, err)
		}
	}
}

// The destination's faults are the destination's: it is full, fails, hangs, or is
// not there.
func TestBadDestinations(t *testing.T) {
	t.Parallel()
	content := pattern(2 << 20)
	for _, c := range []struct {
		name string
		dev  protocol.DevID
		harm func(*host) (heal func())
		full bool
	}{
		{"no device", 9, nil, false},
		{"full", 1, func(h *host) func() { h.disk.SetCapacity(1 << 20); return func() { h.disk.SetCapacity(1 << 30) } }, true},
		{"fails", 1, func(h *host) func() {
			return h.disk.Inject(simdisk.Fault{Ops: []simdisk.Op{simdisk.OpWrite}, Path: "/data/dev1", Skip: 4, Times: 1})
		}, false},
		{"hangs", 1, func(h *host) func() {
			return h.disk.Inject(simdisk.Fault{Ops: []simdisk.Op{simdisk.OpWrite}, Path: "/data/dev1", Skip: 4, Times: 1, Hang: true})
		}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			var stuck time.Duration
			if c.name == "hangs" {
				stuck = 300 * time.Millisecond
			}
			h := startStuck(t, stuck, Options{})
			heal := func() {}
			if c.harm != nil {
				heal = c.harm(h)
			}
			o := orderOf(body(t, content, ""), len(content))
			o.Dev = c.dev
			_, err := h.Copy(t.Context(), o, nil)
			heal()
			if e := refusal(t, err); !errors.Is(err, protocol.ErrCopyDest) || e.Full != c.full || e.Landed {
				t.Errorf("%v, %v", err, e.Fields())
			}
			h.empty()
			o.Dev = 1
			if _, err := h.Copy(t.Context(), o, nil); err != nil && stuck == 0 { // a busy machine may look like a disk that hangs
				t.Errorf("afterwards: %v", err)
			}
		})
	}
}

// A daemon that is killed at any moment leaves the whole file or nothing of it.
func TestKilled(t *testing.T) {
	t.Parallel()
	content := pattern(700_000)
	for at := 1; at <= 12; at++ {
		h := start(t, Options{})
		reached := make(chan struct{}, 1)
		from, half, rest := slowSource(t, content)
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() {
			_, err := h.Copy(ctx, orderOf(from, len(content)), func(done int64) {
				if done >= int64(len(content)*at/12) {
					select {
					case reached <- struct{}{}:
					default:
					}
				}
			})
			ended <- err
		}()
		<-half
		if at > 6 {
			close(rest)
		}
		if at != 6 { // which is where both halves meet
			<-reached
		}
		next := h.disk.Restart()
		cancel()
		<-ended
		survivor := &host{t: t, disk: next}
		survivor.open(Options{})
		switch got, err := next.ReadFile(file1); {
		case err == nil && string(got) != string(content):
			t.Errorf("killed at %d of 12: %d bytes under the file's name", at, len(got))
		case err != nil && len(survivor.files()) > 0:
			t.Errorf("killed at %d of 12: %v is left", at, survivor.files())
		}
	}
}

// A source that hangs holds half of a device's places, and none of other
// devices'.
func TestHungSourceDelaysItself(t *testing.T) {
	t.Parallel()
	h := start(t, Options{PerDevice: 4}, 2)
	content := pattern(1000)
	from, half, rest := slowSource(t, content)
	ended := make(chan error, 10)
	for i := range 6 {
		o := orderOf(from, len(content))
		o.FID = protocol.FID(100 + i)
		go func() {
			_, err := h.Copy(t.Context(), o, nil)
			ended <- err
		}()
	}
	<-half
	<-half
	h.eventually("the others wait", func() bool {
		return testutil.ToFloat64(h.meter.waiting) == 4 && testutil.ToFloat64(h.meter.running) == 2
	})
	good := body(t, content, "")
	for _, dev := range []protocol.DevID{1, 2} {
		o := orderOf(good, len(content))
		o.Dev = dev
		if _, err := h.Copy(t.Context(), o, nil); err != nil {
			t.Errorf("dev%d: %v", dev, err)
		}
	}
	select {
	case <-half:
		t.Error("more than half of the places are one source's")
	default:
	}
	close(rest)
	for range 6 {
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
	if d := h.places.of[1]; len(d.all) != 0 || len(d.sources) != 0 {
		t.Errorf("%d places and %d sources are left", len(d.all), len(d.sources))
	}
}

func TestBandwidth(t *testing.T) {
	t.Parallel()
	content := pattern(4 * limitedPiece)
	for name, c := range map[string]struct {
		all, one int64
	}{"of all": {10 * limitedPiece, 0}, "of one": {0, 10 * limitedPiece}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := start(t, Options{Bandwidth: c.all})
			o := orderOf(body(t, content, ""), len(content))
			o.Rate = c.one
			began := time.Now()
			if _, err := h.Copy(t.Context(), o, nil); err != nil {
				t.Fatal(err)
			}
			// The first piece is free; then it is ten a second.
			if took := time.Since(began); took < 290*time.Millisecond {
				t.Errorf("4 pieces at 10 a second in %v", took)
			}
		})
	}
	h := start(t, Options{Bandwidth: 1})
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := h.Copy(ctx, orderOf(body(t, content, ""), len(content)), nil); !errors.Is(err, protocol.ErrCopyCancelled) {
		t.Error(err)
	}
	h.empty()
}

// Memory does not grow with the file.
func TestMemoryIsBounded(t *testing.T) {
	if testing.Short() {
		t.Skip("copies 256 MiB")
	}
	const size = 256 << 20
	from := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", fmt.Sprint(size))
		piece := pattern(1 << 20)
		for range size >> 20 {
			if _, err := w.Write(piece); err != nil {
				return
			}
		}
	})
	docroot := t.TempDir()
	if err := (volumeFolder(docroot)); err != nil {
		t.Fatal(err)
	}
	root, err := volume.OpenDocroot(docroot, volume.Options{Durability: volume.DurabilityNone})
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	transfers := New(Options{Docroot: root})
	defer transfers.Close()
	var most atomic.Uint64
	var before runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	next := int64(0)
	_, err = transfers.Copy(t.Context(), orderOf(from, size), func(done int64) {
		if done < next {
			return
		}
		next += size / 16
		var now runtime.MemStats
		runtime.ReadMemStats(&now)
		most.Store(max(most.Load(), now.HeapAlloc))
	})
	if err != nil {
		t.Fatal(err)
	}
	if grown := int64(most.Load()) - int64(before.HeapAlloc); grown > 24<<20 {
		t.Errorf("%d MiB more while %d MiB were copied", grown>>20, size>>20)
	}
}

// volumeFolder makes the folder of device 1.
func volumeFolder(docroot string) error { return os.Mkdir(filepath.Join(docroot, "dev1"), 0o777) }
