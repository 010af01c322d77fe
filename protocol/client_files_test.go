package protocol_test

import (
	"bytes"
	"context"
	"crypto/md5"
	"crypto/sha1"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"time"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/protocol/protocoltest"
)

// pipe hides everything from a reader but Read.
type pipe struct{ io.Reader }

func pattern(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i ^ i>>8 ^ i>>16)
	}
	return b
}

func readAll(t *testing.T, c *protocol.Client, key string) []byte {
	t.Helper()
	r, err := c.Open(t.Context(), "test", key)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	if r.Size() != int64(len(b)) {
		t.Errorf("%s: Size is %d, read %d bytes", key, r.Size(), len(b))
	}
	return b
}

// Bodies of all kinds arrive as they are.
func TestCreateAndOpen(t *testing.T) {
	t.Parallel()
	cluster := protocoltest.NewCluster(t, 1, 1)
	c := newClient(t, protocol.ClientOptions{Trackers: cluster.Addrs(), Buffer: 1000})
	for _, size := range []int{0, 1, 999, 1000, 1001, 1002, 300_000} {
		content := pattern(size)
		md5sum := md5.Sum(content)
		sha := sha1.Sum(content)
		for name, body := range map[string]func() io.Reader{
			"seeker":  func() io.Reader { return bytes.NewReader(content) },
			"pipe":    func() io.Reader { return pipe{bytes.NewReader(content)} },
			"onebyte": func() io.Reader { return iotest.OneByteReader(bytes.NewReader(content)) },
			"dataerr": func() io.Reader { return iotest.DataErrReader(bytes.NewReader(content)) },
		} {
			for opts, o := range map[string]protocol.CreateOptions{
				"plain":  {Class: "single"},
				"size":   {Size: int64(size)},
				"md5":    {Checksum: protocol.Checksum{Type: protocol.HashMD5, Sum: md5sum[:]}},
				"sha":    {Checksum: protocol.Checksum{Type: protocol.HashSHA1, Sum: sha[:]}, Verify: true},
				"verify": {Verify: true, Size: -1},
			} {
				if name == "onebyte" && size > 10_000 {
					continue
				}
				key := fmt.Sprint(name, "/", opts, "/", size)
				created, err := c.Create(t.Context(), "test", key, o, body())
				if err != nil {
					t.Errorf("%s: %v", key, err)
					continue
				}
				if created.Size != int64(size) || created.FID == 0 || created.DevID != 1 {
					t.Errorf("%s: got %+v", key, created)
				}
				if opts == "verify" && created.Checksum.String() != fmt.Sprintf("MD5:%x", md5sum) {
					t.Errorf("%s: checksum %v", key, created.Checksum)
				}
				if got := readAll(t, c, key); !bytes.Equal(got, content) {
					t.Errorf("%s: read %d other bytes", key, len(got))
				}
			}
		}
	}
	if n := cluster.Uploads(); n != 0 {
		t.Errorf("%d uploads are open", n)
	}
}

func TestCreateHeaders(t *testing.T) {
	t.Parallel()
	cluster := protocoltest.NewCluster(t, 1, 1)
	c := newClient(t, protocol.ClientOptions{Trackers: cluster.Addrs(), Buffer: 10})
	content := pattern(100)
	sum := md5.Sum(content)
	base := base64.StdEncoding.EncodeToString(sum[:])
	for i, x := range []struct {
		o                        protocol.CreateOptions
		r                        io.Reader
		length, chunked, md5, tr string
	}{
		{protocol.CreateOptions{}, bytes.NewReader(content), "100", "", "", ""},
		{protocol.CreateOptions{}, pipe{bytes.NewReader(content)}, "", "chunked", "", ""},
		{protocol.CreateOptions{Size: 100}, pipe{bytes.NewReader(content)}, "100", "", "", ""},
		{protocol.CreateOptions{}, pipe{bytes.NewReader(content[:10])}, "10", "", "", ""},
		{protocol.CreateOptions{}, strings.NewReader(""), "0", "", "", ""},
		{protocol.CreateOptions{Checksum: protocol.Checksum{Type: protocol.HashMD5, Sum: sum[:]}}, pipe{bytes.NewReader(content)}, "", "chunked", base, ""},
		{protocol.CreateOptions{Verify: true}, pipe{bytes.NewReader(content)}, "", "chunked", "", "Content-Md5"},
	} {
		if _, err := c.Create(t.Context(), "test", "k", x.o, x.r); err != nil {
			t.Errorf("case %d: %v", i, err)
			continue
		}
		h := cluster.Storage[0].Header(i)
		if h.Get("Content-Length") != x.length || h.Get("Transfer-Encoding") != x.chunked || h.Get("Content-MD5") != x.md5 || h.Get("Trailer") != x.tr {
			t.Errorf("case %d: %v", i, h)
		}
	}
	open := cluster.Trackers[0].Requests()[0]
	if open.Command != "create_open" || !open.Args.True("multi_dest") || open.Args.Get("size") != "100" {
		t.Errorf("opened with %v", open)
	}
}

// A tracker that knows no multi_dest offers one device.
func TestCreateSingleDest(t *testing.T) {
	t.Parallel()
	cluster := protocoltest.NewCluster(t, 1, 2)
	cluster.Before(func(req protocol.Request) *protocoltest.Reply {
		req.Args.Set("multi_dest", "0")
		return nil
	})
	c := newClient(t, protocol.ClientOptions{Trackers: cluster.Addrs()})
	if _, err := c.Create(t.Context(), "test", "k", protocol.CreateOptions{}, strings.NewReader("hello")); err != nil {
		t.Fatal(err)
	}
	if got := readAll(t, c, "k"); string(got) != "hello" {
		t.Errorf("read %q", got)
	}
}

// secondTry is a transport that finds its connection closed after it has read
// some of the body, and begins anew, as package http's does.
type secondTry struct{ http.RoundTripper }

func (s secondTry) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.GetBody == nil {
		return s.RoundTripper.RoundTrip(req)
	}
	if _, err := io.ReadFull(req.Body, make([]byte, 100)); err != nil {
		return nil, err
	}
	req.Body.Close()
	body, err := req.GetBody()
	if err != nil {
		return nil, err
	}
	again := req.Clone(req.Context())
	again.Body = body
	return s.RoundTripper.RoundTrip(again)
}

func TestCreateOnAClosedConnection(t *testing.T) {
	t.Parallel()
	cluster := protocoltest.NewCluster(t, 1, 1)
	transport := &http.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	c := newClient(t, protocol.ClientOptions{Trackers: cluster.Addrs(), Buffer: 1000, HTTP: &http.Client{Transport: secondTry{transport}}})
	content := pattern(100_000)
	for _, x := range []struct {
		name string
		r    io.Reader
	}{
		{"seeker", bytes.NewReader(content)},
		{"pipe", pipe{bytes.NewReader(content)}},
	} {
		if _, err := c.Create(t.Context(), "test", x.name, protocol.CreateOptions{Verify: true}, x.r); err != nil {
			t.Errorf("%s: %v", x.name, err)
		} else if !bytes.Equal(readAll(t, c, x.name), content) {
			t.Errorf("%s: other bytes were stored", x.name)
		}
	}
}

// refuse has a device answer uploads with a status, before or after the body.
func refuse(status int, readBody bool) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodPut {
			return false
		}
		if readBody {
			_, _ = io.Copy(io.Discard, r.Body)
		}
		w.WriteHeader(status)
		return true
	}
}

// cutAfter has a device read n bytes of an upload and hang up.
func cutAfter(n int64) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodPut {
			return false
		}
		_, _ = io.CopyN(io.Discard, r.Body, n)
		panic(http.ErrAbortHandler)
	}
}

func TestCreateTriesTheNextDevice(t *testing.T) {
	t.Parallel()
	const big = 2 << 20
	for _, x := range []struct {
		name   string
		size   int
		pipe   bool
		buffer int
		fault  func(*protocoltest.Storage)
		stored bool
	}{
		{"refused connection, seeker", big, false, 0, (*protocoltest.Storage).Stop, true},
		{"refused connection, pipe beyond the buffer", big, true, 100, (*protocoltest.Storage).Stop, true},
		{"full, seeker", big, false, 0, func(s *protocoltest.Storage) { s.Intercept(refuse(507, false)) }, true},
		{"full, empty", 0, true, 0, func(s *protocoltest.Storage) { s.Intercept(refuse(507, false)) }, true},
		{"full after the body, seeker", big, false, 0, func(s *protocoltest.Storage) { s.Intercept(refuse(507, true)) }, true},
		{"full, short pipe", 5000, true, 0, func(s *protocoltest.Storage) { s.Intercept(refuse(507, true)) }, true},
		{"full, pipe beyond the buffer", big, true, 0, func(s *protocoltest.Storage) { s.Intercept(refuse(507, true)) }, false},
		{"cut, seeker", big, false, 0, func(s *protocoltest.Storage) { s.Intercept(cutAfter(big / 2)) }, true},
		{"cut, pipe beyond the buffer", big, true, 0, func(s *protocoltest.Storage) { s.Intercept(cutAfter(big / 2)) }, false},
		{"not found", 10, false, 0, func(s *protocoltest.Storage) { s.Intercept(refuse(404, true)) }, true},
		// More than the sockets hold: else nobody can tell that it was not taken.
		{"success before the body", 32 << 20, false, 0, func(s *protocoltest.Storage) { s.Intercept(refuse(201, false)) }, true},
	} {
		t.Run(x.name, func(t *testing.T) {
			t.Parallel()
			cluster := protocoltest.NewCluster(t, 1, 3)
			x.fault(cluster.Storage[0])
			x.fault(cluster.Storage[1])
			c := newClient(t, protocol.ClientOptions{Trackers: cluster.Addrs(), Buffer: x.buffer})
			content := pattern(x.size)
			var r io.Reader = bytes.NewReader(content)
			if x.pipe {
				r = pipe{r}
			}
			created, err := c.Create(t.Context(), "test", "k", protocol.CreateOptions{}, r)
			if x.stored {
				if err != nil {
					t.Fatal(err)
				}
				if created.DevID != 3 {
					t.Errorf("stored on dev%d", created.DevID)
				}
				if !bytes.Equal(readAll(t, c, "k"), content) {
					t.Error("other bytes were stored")
				}
			} else {
				if err == nil {
					t.Fatal("stored")
				}
				closes := closesOf(cluster)
				if len(closes) != 1 || closes[0].Get("key") != "" {
					t.Errorf("the upload was not given up: %v", closes)
				}
			}
			if n := cluster.Uploads(); n != 0 {
				t.Errorf("%d uploads are open", n)
			}
		})
	}
}

func closesOf(cluster *protocoltest.Cluster) []protocol.Args {
	var closes []protocol.Args
	for _, tr := range cluster.Trackers {
		for _, r := range tr.Requests() {
			if r.Command == "create_close" {
				closes = append(closes, r.Args)
			}
		}
	}
	return closes
}

func TestCreateBadBodies(t *testing.T) {
	t.Parallel()
	broken := errors.New("the disk is on fire")
	content := pattern(200_000)
	wrong := protocol.Checksum{Type: protocol.HashMD5, Sum: make([]byte, 16)}
	for name, x := range map[string]struct {
		o    protocol.CreateOptions
		r    io.Reader
		want string
	}{
		"breaks at once":   {protocol.CreateOptions{}, pipe{iotest.ErrReader(broken)}, "on fire"},
		"breaks later":     {protocol.CreateOptions{}, pipe{io.MultiReader(bytes.NewReader(content), iotest.ErrReader(broken))}, "on fire"},
		"too long":         {protocol.CreateOptions{Size: 199_999}, pipe{bytes.NewReader(content)}, "more than 199999 bytes"},
		"too short":        {protocol.CreateOptions{Size: 200_001}, pipe{bytes.NewReader(content)}, "ended after 200000 of 200001"},
		"too long, seeker": {protocol.CreateOptions{Size: 5}, bytes.NewReader(content), "200000 bytes, not 5"},
		"other checksum":   {protocol.CreateOptions{Checksum: wrong}, bytes.NewReader(content), "its checksum is MD5:"},
		"empty, other sum": {protocol.CreateOptions{Checksum: wrong}, strings.NewReader(""), "its checksum is MD5:"},
		"half a checksum":  {protocol.CreateOptions{Checksum: protocol.Checksum{Type: protocol.HashMD5}}, bytes.NewReader(content), "invalid_checksum_format"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cluster := protocoltest.NewCluster(t, 1, 3)
			c := newClient(t, protocol.ClientOptions{Trackers: cluster.Addrs(), Buffer: 1000})
			_, err := c.Create(t.Context(), "test", "k", x.o, x.r)
			if err == nil || !strings.Contains(err.Error(), x.want) {
				t.Errorf("got %v, want %q", err, x.want)
			}
			if n := cluster.Uploads(); n != 0 {
				t.Errorf("%d uploads are open", n)
			}
			puts := 0
			for _, s := range cluster.Storage {
				puts += len(s.Requests())
			}
			if puts > 1 {
				t.Errorf("%d devices were tried", puts)
			}
			if _, err := c.FileInfo(t.Context(), "test", "k"); !errors.Is(err, protocol.ErrUnknownKey) {
				t.Errorf("the key is there: %v", err)
			}
		})
	}
}

func TestCreateRefused(t *testing.T) {
	t.Parallel()
	cluster := protocoltest.NewCluster(t, 1, 1)
	c := newClient(t, protocol.ClientOptions{Trackers: cluster.Addrs()})
	for _, x := range []struct{ domain, key, class, code string }{
		{"nope", "k", "", "unreg_domain"},
		{"test", "k", "nope", "unreg_class"},
		{"test", "", "", "no_key"},
	} {
		_, err := c.Create(t.Context(), x.domain, x.key, protocol.CreateOptions{Class: x.class}, strings.NewReader("x"))
		if !errors.Is(err, protocol.Err(x.code)) {
			t.Errorf("%v: %v", x, err)
		}
	}
	cluster.Before(func(req protocol.Request) *protocoltest.Reply {
		if req.Command == "create_close" {
			return &protocoltest.Reply{Err: protocol.Err("size_mismatch")}
		}
		return nil
	})
	if _, err := c.Create(t.Context(), "test", "k", protocol.CreateOptions{}, strings.NewReader("x")); !errors.Is(err, protocol.Err("size_mismatch")) {
		t.Error(err)
	}
}

// A tracker that dies while it closes an upload: what became of it is found
// out.
func TestCreateClosedByADyingTracker(t *testing.T) {
	t.Parallel()
	for _, x := range []struct {
		name     string
		executed bool
		then     string // what happens to the key before it is asked again
		outcome  error
	}{
		{"executed", true, "", nil},
		{"not executed", false, "", nil},
		{"executed, then deleted", true, "delete", protocol.ErrUnknownOutcome},
	} {
		t.Run(x.name, func(t *testing.T) {
			t.Parallel()
			cluster := protocoltest.NewCluster(t, 2, 1)
			var died atomic.Bool
			cluster.Before(func(req protocol.Request) *protocoltest.Reply {
				if req.Command != "create_close" || !died.CompareAndSwap(false, true) {
					return nil
				}
				if x.executed {
					cluster.Handle(req)
				}
				if x.then != "" {
					cluster.Handle(protocol.Request{Command: x.then, Args: protocol.Args{{"domain", "test"}, {"key", "k"}}})
				}
				return &protocoltest.Reply{HangUp: true}
			})
			c := newClient(t, protocol.ClientOptions{Trackers: cluster.Addrs()})
			_, err := c.Create(t.Context(), "test", "k", protocol.CreateOptions{}, strings.NewReader("hello"))
			if !errors.Is(err, x.outcome) {
				t.Fatalf("got %v, want %v", err, x.outcome)
			}
			if err == nil && string(readAll(t, c, "k")) != "hello" {
				t.Error("other bytes")
			}
		})
	}
}

// A device that takes the body and never answers, one that takes nothing.
func TestCreateStalls(t *testing.T) {
	t.Parallel()
	for name, readBody := range map[string]bool{"no answer": true, "takes nothing": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cluster := protocoltest.NewCluster(t, 1, 2)
			done := make(chan struct{})
			t.Cleanup(func() { close(done) })
			cluster.Storage[0].Intercept(func(w http.ResponseWriter, r *http.Request) bool {
				if readBody {
					_, _ = io.Copy(io.Discard, r.Body)
				}
				select {
				case <-done:
				case <-r.Context().Done():
				}
				return true
			})
			c := newClient(t, protocol.ClientOptions{Trackers: cluster.Addrs(), StallTimeout: 2 * time.Second, StoreTimeout: 2 * time.Second})
			content := pattern(8 << 20) // more than sockets hold
			created, err := c.Create(t.Context(), "test", "k", protocol.CreateOptions{}, bytes.NewReader(content))
			if err != nil || created.DevID != 2 {
				t.Errorf("got %+v, %v", created, err)
			}
		})
	}
}

func TestCreateCancelled(t *testing.T) {
	t.Parallel()
	for _, first := range []int{0, 100_000} { // before anything is sent, and in the middle
		cluster := protocoltest.NewCluster(t, 1, 1)
		c := newClient(t, protocol.ClientOptions{Trackers: cluster.Addrs(), Buffer: 1000})
		ctx, cancel := context.WithCancel(t.Context())
		pr, pw := io.Pipe()
		wrote := make(chan struct{})
		go func() {
			defer close(wrote)
			if _, err := pw.Write(pattern(first)); err != nil {
				t.Error(err)
			}
			cancel()
		}()
		_, err := c.Create(ctx, "test", "k", protocol.CreateOptions{}, pr)
		if !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
		<-wrote
		pw.Close() // ends the Read that was left behind
		if n := cluster.Uploads(); n != 0 {
			t.Errorf("%d uploads are open", n)
		}
	}
}

// stored makes a file with copies on the first n devices.
func stored(t *testing.T, cluster *protocoltest.Cluster, c *protocol.Client, key string, content []byte, n int) protocol.Created {
	t.Helper()
	created, err := c.Create(t.Context(), "test", key, protocol.CreateOptions{Class: "single"}, bytes.NewReader(content))
	if err != nil {
		t.Fatal(err)
	}
	for d := 2; d <= n; d++ {
		cluster.Copy("test", key, protocol.DevID(d))
	}
	return created
}

// cutGET has a device send n bytes of each answer and hang up.
func cutGET(n int64) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodGet {
			return false
		}
		w.Header().Set("Content-Length", "1000000")
		if r.Header.Get("Range") != "" {
			var from int64
			_, _ = fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-", &from)
			w.Header().Set("Content-Length", fmt.Sprint(1000000-from))
			w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-999999/1000000", from))
			w.WriteHeader(http.StatusPartialContent)
			_, _ = w.Write(pattern(1000000)[from:][:min(n, 1000000-from)])
		} else {
			_, _ = w.Write(pattern(1000000)[:n])
		}
		w.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	}
}

func TestOpenFallsBack(t *testing.T) {
	t.Parallel()
	content := pattern(1_000_000)
	status := func(code int) func(*protocoltest.Storage) {
		return func(s *protocoltest.Storage) {
			s.Intercept(func(w http.ResponseWriter, r *http.Request) bool { w.WriteHeader(code); return true })
		}
	}
	cut := func(n int64) func(*protocoltest.Storage) {
		return func(s *protocoltest.Storage) { s.Intercept(cutGET(n)) }
	}
	for name, fault := range map[string]func(*protocoltest.Storage){
		"missing":            status(404),
		"sick":               status(503),
		"stopped":            (*protocoltest.Storage).Stop,
		"cut before a byte":  cut(0),
		"cut in the middle":  cut(400_000),
		"cut before the end": cut(999_999),
		"redirect":           status(302),
		"no content":         status(204),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cluster := protocoltest.NewCluster(t, 1, 3)
			c := newClient(t, protocol.ClientOptions{Trackers: cluster.Addrs()})
			stored(t, cluster, c, "k", content, 3)
			for i := range cluster.Storage[:2] {
				fault(cluster.Storage[i])
			}
			if got := readAll(t, c, "k"); !bytes.Equal(got, content) {
				t.Errorf("read %d other bytes", len(got))
			}
			r, err := c.OpenRange(t.Context(), "test", "k", 100, 900_000)
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, content[100:900_100]) {
				t.Errorf("range: read %d other bytes, %v", len(got), err)
			}
		})
	}
}

// A single copy whose daemon drops the connection again and again is read all
// the same, as long as there is progress.
func TestOpenResumes(t *testing.T) {
	t.Parallel()
	cluster := protocoltest.NewCluster(t, 1, 1)
	c := newClient(t, protocol.ClientOptions{Trackers: cluster.Addrs()})
	content := pattern(1_000_000)
	stored(t, cluster, c, "k", content, 1)
	cluster.Storage[0].Intercept(cutGET(100_001))
	if got := readAll(t, c, "k"); !bytes.Equal(got, content) {
		t.Errorf("read %d other bytes", len(got))
	}
}

func TestOpenFails(t *testing.T) {
	t.Parallel()
	cluster := protocoltest.NewCluster(t, 1, 2)
	c := newClient(t, protocol.ClientOptions{Trackers: cluster.Addrs()})
	if _, err := c.Open(t.Context(), "test", "k"); !errors.Is(err, protocol.ErrUnknownKey) {
		t.Errorf("unknown key: %v", err)
	}
	if _, err := c.OpenRange(t.Context(), "test", "k", -1, 1); err == nil {
		t.Error("negative offset")
	}
	f := stored(t, cluster, c, "k", pattern(1_000_000), 2)
	cluster.Storage[0].Remove("/" + f.FID.Path(1))
	cluster.Storage[1].Stop()
	_, err := c.Open(t.Context(), "test", "k")
	if !errors.Is(err, protocol.ErrNoPath) || !strings.Contains(err.Error(), f.Path) || !strings.Contains(err.Error(), "404") {
		t.Errorf("no device: %v", err)
	}
}

// A file that is replaced between finding and fetching it, and one replaced
// while it is read.
func TestOpenReplaced(t *testing.T) {
	t.Parallel()
	cluster := protocoltest.NewCluster(t, 1, 1)
	c := newClient(t, protocol.ClientOptions{Trackers: cluster.Addrs()})
	f := stored(t, cluster, c, "k", []byte("old"), 1)
	var once atomic.Bool
	cluster.Storage[0].Intercept(func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodGet && once.CompareAndSwap(false, true) {
			cluster.Storage[0].Remove("/" + f.FID.Path(1))
			stored(t, cluster, c, "k", []byte("newer"), 1)
		}
		return false
	})
	if got := readAll(t, c, "k"); string(got) != "newer" {
		t.Errorf("read %q", got)
	}

	f = stored(t, cluster, c, "k", pattern(1_000_000), 1)
	cluster.Storage[0].Intercept(cutGET(5000))
	r, err := c.Open(t.Context(), "test", "k")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if r.FID() != f.FID || r.Path() != f.Path || !slices.Equal(r.Paths(), []string{f.Path}) {
		t.Errorf("reads fid %d at %s of %v", r.FID(), r.Path(), r.Paths())
	}
	cluster.Storage[0].Intercept(nil)
	cluster.Storage[0].Remove("/" + f.FID.Path(1))
	stored(t, cluster, c, "k", pattern(1_000_000), 1)
	got, err := io.ReadAll(r)
	if !errors.Is(err, protocol.ErrNoPath) || !strings.Contains(err.Error(), "replaced") {
		t.Errorf("got %d bytes, %v", len(got), err)
	}
	if _, err2 := r.Read(make([]byte, 1)); !errors.Is(err2, protocol.ErrNoPath) {
		t.Errorf("afterwards: %v", err2)
	}
}

func TestOpenStalls(t *testing.T) {
	t.Parallel()
	for name, n := range map[string]int{"no answer": -1, "no bytes": 0, "half": 500_000} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cluster := protocoltest.NewCluster(t, 1, 2)
			c := newClient(t, protocol.ClientOptions{Trackers: cluster.Addrs(), HeaderTimeout: time.Second, StallTimeout: time.Second})
			content := pattern(1_000_000)
			stored(t, cluster, c, "k", content, 2)
			cluster.Storage[0].Intercept(func(w http.ResponseWriter, r *http.Request) bool {
				if n >= 0 {
					w.Header().Set("Content-Length", "1000000")
					_, _ = w.Write(content[:n])
					w.(http.Flusher).Flush()
				}
				<-r.Context().Done()
				return true
			})
			if got := readAll(t, c, "k"); !bytes.Equal(got, content) {
				t.Errorf("read %d other bytes", len(got))
			}
		})
	}
}

func TestOpenCancelled(t *testing.T) {
	t.Parallel()
	cluster := protocoltest.NewCluster(t, 1, 2)
	c := newClient(t, protocol.ClientOptions{Trackers: cluster.Addrs()})
	stored(t, cluster, c, "k", pattern(1_000_000), 2)
	ctx, cancel := context.WithCancel(t.Context())
	cluster.Storage[0].Intercept(func(w http.ResponseWriter, r *http.Request) bool {
		w.Header().Set("Content-Length", "1000000")
		_, _ = w.Write(pattern(1000))
		w.(http.Flusher).Flush()
		<-r.Context().Done()
		return true
	})
	r, err := c.Open(ctx, "test", "k")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := io.ReadFull(r, make([]byte, 1000)); err != nil {
		t.Fatal(err)
	}
	cancel()
	if _, err := r.Read(make([]byte, 1)); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if n := len(cluster.Storage[1].Requests()); n != 0 {
		t.Errorf("another device was asked %d times", n)
	}
}

func TestOpenRange(t *testing.T) {
	t.Parallel()
	cluster := protocoltest.NewCluster(t, 1, 1)
	c := newClient(t, protocol.ClientOptions{Trackers: cluster.Addrs()})
	content := pattern(1000)
	stored(t, cluster, c, "k", content, 1)
	stored(t, cluster, c, "empty", nil, 1)
	ignore := func(w http.ResponseWriter, r *http.Request) bool {
		r.Header.Del("Range") // as a daemon without ranges
		return false
	}
	for _, x := range []struct {
		key    string
		off, n int64
		want   []byte
	}{
		{"k", 0, -1, content},
		{"k", 0, 1000, content},
		{"k", 0, 0, nil},
		{"k", 5, 0, nil},
		{"k", 0, 10, content[:10]},
		{"k", 990, 100, content[990:]},
		{"k", 999, -1, content[999:]},
		{"k", 1000, -1, nil},
		{"k", 1000, 5, nil},
		{"k", 5000, 5, nil},
		{"k", 7, 1<<63 - 1, content[7:]},
		{"empty", 0, -1, nil},
		{"empty", 0, 10, nil},
		{"empty", 3, -1, nil},
	} {
		for name, intercept := range map[string]func(http.ResponseWriter, *http.Request) bool{"ranges": nil, "ignores ranges": ignore} {
			cluster.Storage[0].Intercept(intercept)
			r, err := c.OpenRange(t.Context(), "test", x.key, x.off, x.n)
			if err != nil {
				t.Errorf("%s: %s from %d, %d bytes: %v", name, x.key, x.off, x.n, err)
				continue
			}
			got, err := io.ReadAll(r)
			if err != nil || !bytes.Equal(got, x.want) || r.Size() != int64(len(x.want)) {
				t.Errorf("%s: %s from %d, %d bytes: got %d (Size %d), want %d, %v", name, x.key, x.off, x.n, len(got), r.Size(), len(x.want), err)
			}
			r.Close()
			if _, err := r.Read(make([]byte, 1)); err == nil {
				t.Error("read after Close")
			}
		}
	}
}

func TestKeys(t *testing.T) {
	t.Parallel()
	cluster := protocoltest.NewCluster(t, 1, 1)
	c := newClient(t, protocol.ClientOptions{Trackers: cluster.Addrs()})
	var want []string
	for i := range 2500 {
		key := fmt.Sprintf("k%04d &=é", i)
		want = append(want, key)
		cluster.Handle(protocol.Request{Command: "create_open", Args: protocol.Args{{"domain", "test"}}})
		fid := protocol.FID(i + 1)
		cluster.Storage[0].Set("/"+fid.Path(1), nil)
		r := cluster.Handle(protocol.Request{Command: "create_close", Args: protocol.Args{{"domain", "test"}, {"key", key}, {"fid", fid.String()}, {"devid", "1"},
			{"path", cluster.Storage[0].URL() + "/" + fid.Path(1)}}})
		if r.Err != nil {
			t.Fatal(r.Err)
		}
	}
	for prefix, n := range map[string]int{"": 2500, "k": 2500, "k1": 1000, "k2": 500, "k0007": 1, "none": 0} {
		var got []string
		for key, err := range c.Keys(t.Context(), "test", prefix) {
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, key)
		}
		if len(got) != n || n == 2500 && !slices.Equal(got, want) {
			t.Errorf("prefix %q: %d keys, want %d", prefix, len(got), n)
		}
	}
	for range c.Keys(t.Context(), "test", "") {
		break // an iteration left early asks no further
	}
	for _, err := range c.Keys(t.Context(), "nope", "") {
		if !errors.Is(err, protocol.Err("unreg_domain")) {
			t.Errorf("unknown domain: %v", err)
		}
	}
	cluster.Before(func(req protocol.Request) *protocoltest.Reply { // a page that comes again and again
		req.Args.Set("after", "")
		return nil
	})
	n := 0
	var last error
	for _, err := range c.Keys(t.Context(), "test", "") {
		if n++; err != nil {
			last = err
		}
	}
	if !errors.Is(last, protocol.ErrBadReply) || n > 2001 {
		t.Errorf("a listing that does not advance: %d keys, %v", n, last)
	}
}

func TestDeleteRenameAndInfo(t *testing.T) {
	t.Parallel()
	cluster := protocoltest.NewCluster(t, 1, 2)
	c := newClient(t, protocol.ClientOptions{Trackers: cluster.Addrs()})
	lax := newClient(t, protocol.ClientOptions{Trackers: cluster.Addrs(), MissingOK: true, Zone: "alt"})
	sum := md5.Sum([]byte("hello"))
	check := protocol.Checksum{Type: protocol.HashMD5, Sum: sum[:]}
	f, err := c.Create(t.Context(), "test", "a", protocol.CreateOptions{Class: "single", Checksum: check}, strings.NewReader("hello"))
	if err != nil {
		t.Fatal(err)
	}
	stored(t, cluster, c, "b", []byte("b"), 2)
	info, err := c.FileInfo(t.Context(), "test", "a")
	if err != nil || info.FID != f.FID || info.Domain != "test" || info.Class != "single" || info.Key != "a" || info.Length != 5 ||
		info.DevCount != 1 || !slices.Equal(info.DevIDs, []protocol.DevID{1}) || !info.Checksum.Equal(check) {
		t.Errorf("info: %+v, %v", info, err)
	}
	if info, err := c.FileInfo(t.Context(), "test", "b"); err != nil || !info.Checksum.IsZero() || len(info.DevIDs) != 2 {
		t.Errorf("info: %+v, %v", info, err)
	}
	if err := c.SetClass(t.Context(), "test", "b", "default"); err != nil {
		t.Error(err)
	}
	ctx := t.Context()
	for _, x := range []struct {
		name string
		do   func() error
		want error
	}{
		{"info of no key", func() error { return second(c.FileInfo(ctx, "test", "x")) }, protocol.ErrUnknownKey},
		{"class of no key", func() error { return c.SetClass(ctx, "test", "x", "default") }, protocol.ErrInvalidKey},
		{"unknown class", func() error { return c.SetClass(ctx, "test", "b", "x") }, protocol.ErrClassNotFound},
		{"rename onto a key", func() error { return c.Rename(ctx, "test", "a", "b") }, protocol.ErrKeyExists},
		{"lax rename onto a key", func() error { return lax.Rename(ctx, "test", "a", "b") }, protocol.ErrKeyExists},
		{"rename of no key", func() error { return c.Rename(ctx, "test", "x", "y") }, protocol.ErrUnknownKey},
		{"lax rename of no key", func() error { return lax.Rename(ctx, "test", "x", "y") }, nil},
		{"delete of no key", func() error { return c.Delete(ctx, "test", "x") }, protocol.ErrUnknownKey},
		{"lax delete of no key", func() error { return lax.Delete(ctx, "test", "x") }, nil},
		{"lax, no domain", func() error { return lax.Delete(ctx, "nope", "x") }, protocol.Err("unreg_domain")},
		{"rename", func() error { return c.Rename(ctx, "test", "a", "c") }, nil},
		{"delete", func() error { return c.Delete(ctx, "test", "b") }, nil},
		{"delete again", func() error { return c.Delete(ctx, "test", "b") }, protocol.ErrUnknownKey},
		{"the new name", func() error { return second(c.FileInfo(ctx, "test", "c")) }, nil},
		{"the old name", func() error { return second(c.FileInfo(ctx, "test", "a")) }, protocol.ErrUnknownKey},
	} {
		if err := x.do(); !errors.Is(err, x.want) {
			t.Errorf("%s: %v, want %v", x.name, err, x.want)
		}
	}
	paths, err := lax.Paths(t.Context(), "test", "c", protocol.PathsOptions{NoVerify: true, Count: 5})
	if err != nil || !slices.Equal(paths, []string{f.Path}) {
		t.Errorf("paths: %v, %v", paths, err)
	}
	reqs := cluster.Trackers[0].Requests()
	if last := reqs[len(reqs)-1].Args; !last.True("noverify") || last.Get("pathcount") != "5" || last.Get("zone") != "alt" {
		t.Errorf("asked with %v", last)
	}
}

func second[T any](_ T, err error) error { return err }

// TestCreateConditions: what the key names by the end of an upload decides.
func TestCreateConditions(t *testing.T) {
	t.Parallel()
	cluster := protocoltest.NewCluster(t, 1, 1)
	c := newClient(t, protocol.ClientOptions{Trackers: cluster.Addrs()})
	store := func(o protocol.CreateOptions, content string) (protocol.FID, error) {
		created, err := c.Create(t.Context(), "test", "k", o, strings.NewReader(content))
		return created.FID, err
	}
	none := protocol.FID(0)
	first, err := store(protocol.CreateOptions{NoOverwrite: true, IfFID: &none}, "first")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := store(protocol.CreateOptions{NoOverwrite: true}, "second"); !errors.Is(err, protocol.ErrKeyExists) {
		t.Errorf("NoOverwrite: %v", err)
	}
	if _, err := store(protocol.CreateOptions{IfFID: &none}, "second"); !errors.Is(err, protocol.Err("fid_mismatch")) {
		t.Errorf("IfFID 0: %v", err)
	}
	if _, err := store(protocol.CreateOptions{IfFID: &first}, "second"); err != nil {
		t.Errorf("IfFID %d: %v", first, err)
	}
	if _, err := store(protocol.CreateOptions{IfFID: &first}, "third"); !errors.Is(err, protocol.Err("fid_mismatch")) {
		t.Errorf("IfFID %d once more: %v", first, err)
	}
	if info, err := c.FileInfo(t.Context(), "test", "k"); err != nil || info.Length != int64(len("second")) {
		t.Errorf("%+v, %v", info, err)
	}
	if n := cluster.Uploads(); n != 0 {
		t.Errorf("%d uploads are still open", n)
	}
}

// TestCreateHash: the checksum that was computed on the way is the tracker's.
func TestCreateHash(t *testing.T) {
	t.Parallel()
	cluster := protocoltest.NewCluster(t, 1, 1)
	c := newClient(t, protocol.ClientOptions{Trackers: cluster.Addrs()})
	content := pattern(5000)
	created, err := c.Create(t.Context(), "test", "k", protocol.CreateOptions{Class: "single", Hash: protocol.HashMD5}, bytes.NewReader(content))
	if err != nil {
		t.Fatal(err)
	}
	sum := md5.Sum(content)
	want := protocol.Checksum{Type: protocol.HashMD5, Sum: sum[:]}
	if info, err := c.FileInfo(t.Context(), "test", "k"); err != nil || !info.Checksum.Equal(want) || !created.Checksum.Equal(want) {
		t.Errorf("created %v, info %+v, %v", created.Checksum, info, err)
	}
}

// TestFilesAfter pages through all files, however a tracker sorts a page.
func TestFilesAfter(t *testing.T) {
	t.Parallel()
	cluster := protocoltest.NewCluster(t, 1, 1)
	c := newClient(t, protocol.ClientOptions{Trackers: cluster.Addrs()})
	const n = 7
	for i := range n {
		if _, err := c.Create(t.Context(), "test", fmt.Sprint("k", i), protocol.CreateOptions{}, bytes.NewReader(pattern(i))); err != nil {
			t.Fatal(err)
		}
	}
	var keys []string
	for after := protocol.FID(0); ; {
		files, err := c.FilesAfter(t.Context(), after, 3)
		if err != nil {
			t.Fatal(err)
		}
		if len(files) == 0 {
			break
		}
		for _, f := range files {
			if f.FID <= after || f.Domain != "test" || f.Class != "default" || f.DevCount != 1 || f.Length != int64(len(keys)) {
				t.Errorf("after %d: %+v", after, f)
			}
			after = f.FID
			keys = append(keys, f.Key)
		}
	}
	if want := []string{"k0", "k1", "k2", "k3", "k4", "k5", "k6"}; !slices.Equal(keys, want) {
		t.Errorf("%q, want %q", keys, want)
	}
}
