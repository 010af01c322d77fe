package storaged

import (
	"bytes"
	"crypto/md5"
	"encoding/base64"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func sumOf(body string) string {
	sum := md5.Sum([]byte(body))
	return base64.StdEncoding.EncodeToString(sum[:])
}

// The examples that MogileFS's storage daemons are accepted by.
func TestAcceptanceExamples(t *testing.T) {
	t.Parallel()
	d := start(t, Options{}, 1)
	for _, c := range []struct {
		name, request string
		status        int
		check         func(t *testing.T, r reply)
	}{
		{"probe", "PUT /dev1/test-write/test-write-7 HTTP/1.1\nHost: x\nContent-Length: 5\n\nprobe", 201, func(t *testing.T, _ reply) {
			if !slices.Contains(d.files(), "dev1/test-write/test-write-7") {
				t.Error("nothing stored")
			}
		}},
		{"probe is read", "GET /dev1/test-write/test-write-7 HTTP/1.0\n\n", 200, func(t *testing.T, r reply) {
			if r.body != "probe" {
				t.Errorf("body %q", r.body)
			}
		}},
		{"wrong sum", "PUT /dev1/test-write/test-md5 HTTP/1.1\nHost: x\nContent-MD5: 1B2M2Y8AsgTpgAmY7PhCfg==\nContent-Length: 5\n\nprobe", 400, func(t *testing.T, r reply) {
			if got := r.Header.Get("Connection"); got != "keep-alive" {
				t.Errorf("Connection: %s", got)
			}
		}},
		{"no device", "PUT /dev777/foo HTTP/1.1\nHost: x\nContent-Length: 1\n\nx", 404, func(t *testing.T, _ reply) {
			if _, err := os.Stat(filepath.Join(d.docroot, "dev777")); err == nil {
				t.Error("dev777 was created")
			}
		}},
		{"not on a device", "PUT /foo HTTP/1.1\nHost: x\nContent-Length: 1\n\nx", 400, nil},
		{"store", "PUT /dev1/0/000/000/0000000042.fid HTTP/1.1\nHost: x\nContent-Length: 11\n\nhello world", 201, nil},
		{"delete", "DELETE /dev1/0/000/000/0000000042.fid HTTP/1.1\nHost: x\n\n", 204, nil},
		{"delete again", "DELETE /dev1/0/000/000/0000000042.fid HTTP/1.1\nHost: x\n\n", 404, nil},
		{"usage", "HEAD //dev1/usage HTTP/1.1\nHost: x\n\n", 200, func(t *testing.T, r reply) {
			if r.ContentLength <= 0 {
				t.Errorf("Content-Length: %d", r.ContentLength)
			}
		}},
		{"mkcol", "MKCOL /dev1/0/ HTTP/1.1\nHost: x\n\n", 400, nil},
		{"in place", "PUT /dev1/hole HTTP/1.1\nHost: x\nContent-Range: bytes 5-5/*\nContent-Length: 1\n\nx", 201, func(t *testing.T, _ reply) {
			if got := d.get("/dev1/hole").body; got != "\x00\x00\x00\x00\x00x" {
				t.Errorf("stored %q", got)
			}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := d.do("%s", c.request)
			if r.StatusCode != c.status {
				t.Errorf("%s, want %d", r.Status, c.status)
			}
			if c.check != nil {
				c.check(t, r)
			}
		})
	}
}

// Every line of MogileFS's table of methods and status codes that needs no
// special disk.
func TestStatusCodes(t *testing.T) {
	t.Parallel()
	d := start(t, Options{}, 1)
	if r := d.put("/dev1/a/file", "hello"); r.StatusCode != 201 {
		t.Fatal(r.Status)
	}
	const h = " HTTP/1.1\nHost: x\n"
	for _, c := range []struct {
		request string
		status  int
		close   bool
	}{
		{"GET /dev1/a/file" + h + "\n", 200, false},
		{"GET http://example.com/dev1/a/file" + h + "\n", 200, false},
		{"GET ///dev1/a/file" + h + "\n", 200, false},
		{"GET /dev1/a/file?query" + h + "\n", 200, false},
		{"GET /dev1/a/none" + h + "\n", 404, false},
		{"GET /dev1/a/file/below" + h + "\n", 404, false},
		{"GET /dev1/a/file/" + h + "\n", 404, false},
		{"GET /dev1/a" + h + "\n", 403, false},
		{"GET /dev1/a/" + h + "\n", 403, false},
		{"GET /dev1" + h + "\n", 403, false},
		{"GET /dev1/" + h + "\n", 403, false},
		{"GET /dev2/x" + h + "\n", 404, false},
		{"GET /dev2" + h + "\n", 404, false},
		{"GET /etc/passwd" + h + "\n", 404, false},
		{"GET /" + h + "\n", 200, false},
		{"GET //" + h + "\n", 200, false},
		{"GET /dev1/../dev1/a/file" + h + "\n", 403, false},
		{"GET /dev1/%2e%2e/dev1/a/file" + h + "\n", 403, false},
		{"GET /../etc/passwd" + h + "\n", 403, false},
		{"GET /dev1/.mogile/device" + h + "\n", 403, false},
		{"GET /dev1/%2emogile/device" + h + "\n", 403, false},
		{"GET /dev1/a%00b" + h + "\n", 400, false},
		{"PUT /dev1/.mogile/device" + h + "Content-Length: 1\n\nx", 403, false},
		{"PUT /dev1/../x" + h + "Content-Length: 1\n\nx", 403, false},
		{"PUT /dev1/usage" + h + "Content-Length: 1\n\nx", 403, false},
		{"PUT /dev1" + h + "Content-Length: 1\n\nx", 400, false},
		{"PUT /dev1/" + h + "Content-Length: 1\n\nx", 400, false},
		{"PUT /dev1/a/" + h + "Content-Length: 1\n\nx", 400, false},
		{"PUT /" + h + "Content-Length: 1\n\nx", 400, false},
		{"PUT /x/y" + h + "Content-Length: 1\n\nx", 400, false},
		{"PUT /dev1/a" + h + "Content-Length: 1\n\nx", 403, false},
		// None of these folders is there yet: a file in its place would shut fids out.
		{"PUT /dev1/0" + h + "Content-Length: 1\n\nx", 403, false},
		{"PUT /dev1/0/123" + h + "Content-Length: 1\n\nx", 403, false},
		{"PUT /dev1/0/123/456" + h + "Content-Length: 1\n\nx", 403, false},
		{"PUT /dev1/0/123" + h + "Content-Range: bytes 0-0/*\nContent-Length: 1\n\nx", 403, false},
		{"PUT /dev1/test-write" + h + "Content-Length: 1\n\nx", 403, false},
		{"PUT /dev1/0/12" + h + "Content-Length: 1\n\nx", 201, false},
		{"DELETE /dev1/0/12" + h + "\n", 204, false},
		{"PUT /dev1/a/file/below" + h + "Content-Length: 1\n\nx", 400, true},
		{"PUT /dev2/0/000/x" + h + "Content-Length: 1\n\nx", 404, false},
		{"PUT /dev1/new/dir/file" + h + "Content-Length: 1\n\nx", 201, false},
		{"PUT /dev1/new/dir/file" + h + "Content-Length: 2\n\nxy", 201, false},
		{"PUT /dev1/new/empty" + h + "Content-Length: 0\n\n", 201, false},
		{"PUT /dev1/new/nolength" + h + "\n", 201, false},
		{"PUT /dev1/new/x" + h + "Content-Length: -1\n\n", 400, true},
		{"PUT /dev1/new/x" + h + "Content-Length: x\n\n", 400, true},
		{"PUT /dev1/new/x" + h + "Content-Length: 99999999999999999999\n\n", 507, true},
		{"PUT /dev1/new/x" + h + "Content-Length: 9223372036854775807\n\n", 507, true},
		{"PUT /dev1/new/x" + h + "Content-Range: bytes 9223372036854775808-9223372036854775808/*\nContent-Length: 1\n\nx", 507, true},
		{"PUT /dev1/new/x" + h + "Content-Range: bytes 0-1/*\nContent-Length: 1\n\nx", 400, true},
		{"PUT /dev1/new/x" + h + "Content-Range: bytes x\nContent-Length: 1\n\nx", 400, true},
		{"PUT /dev1/new/x" + h + "Content-Range: bytes 0-0/*\nContent-Range: bytes 0-0/*\nContent-Length: 1\n\nx", 400, true},
		{"PUT /dev1/new/x" + h + "Content-Range: bytes 0-0/*\nTransfer-Encoding: chunked\n\n1\nx\n0\n\n", 400, true},
		{"PUT /dev2/new/x" + h + "Content-Range: bytes 0-0/*\nContent-Length: 1\n\nx", 404, false},
		{"PUT /dev1/new/x" + h + "Content-MD5: x\nContent-Length: 1\n\nx", 400, true},
		{"PUT /dev1/new/x" + h + "Transfer-Encoding: chunked\n\nzz\n", 400, true},
		{"PUT /dev1/new/x" + h + "Transfer-Encoding: gzip\n\n", 501, true},
		{"DELETE /dev1/new/dir" + h + "\n", 403, false},
		{"DELETE /dev1/new/dir/" + h + "\n", 403, false},
		{"DELETE /dev1/new/dir/file/" + h + "\n", 404, false},
		{"DELETE /dev1/usage" + h + "\n", 403, false},
		{"DELETE /dev1" + h + "\n", 403, false},
		{"DELETE /" + h + "\n", 403, false},
		{"DELETE /x" + h + "\n", 404, false},
		{"DELETE /dev2/x" + h + "\n", 404, false},
		{"DELETE /dev1/../x" + h + "\n", 403, false},
		{"DELETE /dev1/.mogile/device" + h + "\n", 403, false},
		{"DELETE /dev1/new/dir/file" + h + "\n", 204, false},
		{"MKCOL /dev1/x" + h + "\n", 400, false},
		{"MKCOL /dev1/../x" + h + "\n", 403, false},
		{"MOVE /dev1/x" + h + "\n", 405, true},
		{"COPY /dev1/x" + h + "\n", 405, true},
		{"POST /dev1/x" + h + "Content-Length: 1\n\nx", 405, true},
		{"OPTIONS /dev1/x" + h + "\n", 405, true},
		{"OPTIONS *" + h + "\n", 400, false},
	} {
		r := d.do("%s", c.request)
		if r.StatusCode != c.status {
			t.Errorf("%s: %s, want %d", c.request, r.Status, c.status)
		}
		if got := r.Header.Get("Connection"); (got == "close") != c.close {
			t.Errorf("%s: Connection: %s", c.request, got)
		}
		if c.status >= 400 && r.body != "" {
			t.Errorf("%s: body %q", c.request, r.body)
		}
	}
	want := []string{"dev1/a/file", "dev1/new/empty", "dev1/new/nolength"}
	if got := d.files(); !slices.Equal(got, want) {
		t.Errorf("files %q, want %q", got, want)
	}
	entries, err := os.ReadDir(d.docroot)
	if err != nil || len(entries) != 1 {
		t.Errorf("the docroot has %v, %v", entries, err)
	}
}

func TestHeaders(t *testing.T) {
	t.Parallel()
	d := start(t, Options{}, 1)
	if r := d.put("/dev1/f", "hello world"); r.Header.Get("Status") != "201 Created" || r.Header.Get("Content-Type") != "text/plain" ||
		r.ContentLength != 0 || r.Header.Get("Date") == "" {
		t.Errorf("PUT: %v", r.Header)
	}
	at := time.Date(2023, 11, 14, 22, 10, 0, 0, time.UTC)
	if err := os.Chtimes(filepath.Join(d.docroot, "dev1/f"), at, at); err != nil {
		t.Fatal(err)
	}
	for _, method := range []string{"GET", "HEAD"} {
		c := dial(t, d.HTTPAddr())
		c.send("%s /dev1/f HTTP/1.1\nHost: x\n\n", method)
		r := c.receive(method)
		for name, want := range map[string]string{
			"Status": "200 OK", "Last-Modified": "Tue, 14 Nov 2023 22:10:00 GMT", "Content-Length": "11",
			"Content-Type": "application/octet-stream", "Accept-Ranges": "bytes", "Connection": "keep-alive", "Mogile": capabilities + d.http.handler.(*plane).orders.words(true),
		} {
			if got := r.Header.Get(name); got != want {
				t.Errorf("%s: %s: %s, want %s", method, name, got, want)
			}
		}
		if _, err := http.ParseTime(r.Header.Get("Date")); err != nil {
			t.Errorf("%s: Date: %v", method, err)
		}
		c.send("%s /dev1/f HTTP/1.1\nHost: x\nRange: bytes=6-\n\n", method)
		r = c.receive(method)
		if r.StatusCode != 206 || r.Header.Get("Content-Range") != "bytes 6-10/11" || r.ContentLength != 5 || r.Header.Get("Accept-Ranges") != "" {
			t.Errorf("%s of a range: %s, %v", method, r.Status, r.Header)
		}
		if method == "GET" && r.body != "world" {
			t.Errorf("range: %q", r.body)
		}
		c.send("%s /dev1/f HTTP/1.1\nHost: x\nRange: bytes=11-\n\n", method)
		r = c.receive(method)
		if r.StatusCode != 416 || r.Header.Get("Content-Range") != "bytes */11" || r.ContentLength != 0 {
			t.Errorf("%s beyond the end: %s, %v", method, r.Status, r.Header)
		}
		c.send("%s / HTTP/1.1\nHost: x\n\n", method)
		r = c.receive(method)
		if r.StatusCode != 200 || r.ContentLength != 0 || r.Header.Get("Last-Modified") != "Thu, 01 Jan 1970 00:00:00 GMT" {
			t.Errorf("%s /: %s, %v", method, r.Status, r.Header)
		}
	}
	c := dial(t, d.HTTPAddr())
	c.send("GET /dev1/f HTTP/1.1\nHost: x\nRange: bytes=0-1,3-4\n\n")
	if r := c.receive("GET"); r.StatusCode != 400 {
		t.Errorf("several ranges: %s", r.Status)
	}
}

// Empty files have a length too: trackers take it for the file's size.
func TestEmptyFile(t *testing.T) {
	t.Parallel()
	d := start(t, Options{}, 1)
	d.put("/dev1/empty", "")
	for _, method := range []string{"GET", "HEAD"} {
		c := dial(t, d.HTTPAddr())
		c.send("%s /dev1/empty HTTP/1.1\nHost: x\n\n", method)
		if r := c.receive(method); r.StatusCode != 200 || r.Header.Get("Content-Length") != "0" || r.body != "" {
			t.Errorf("%s: %s, %v", method, r.Status, r.Header)
		}
	}
}

// Files of all sizes come back as they went in, whole and in pieces, with
// sendfile (the large ones) and without.
func TestRoundTrip(t *testing.T) {
	t.Parallel()
	d := start(t, Options{}, 1)
	for _, size := range []int{0, 1, 511, 512, bufferSize - 1, bufferSize, bufferSize + 1, sendPiece, 3*sendPiece + bufferSize + 17} {
		body := string(pattern(size))
		path := fmt.Sprintf("/dev1/size/%d", size)
		if r := d.put(path, body); r.StatusCode != 201 {
			t.Fatalf("PUT of %d bytes: %s", size, r.Status)
		}
		if r := d.get(path); r.StatusCode != 200 || r.body != body {
			t.Errorf("GET of %d bytes: %s, %d bytes", size, r.Status, len(r.body))
		}
		for _, p := range []span{{0, 1}, {int64(size) / 3, int64(size) / 2}, {int64(size) - 1, 1}, {7, bufferSize}, {bufferSize - 1, 2 * sendPiece}} {
			if p.off < 0 || p.n == 0 || p.off+p.n > int64(size) {
				continue
			}
			r := d.do("GET %s HTTP/1.1\nHost: x\nRange: bytes=%d-%d\n\n", path, p.off, p.off+p.n-1)
			if r.StatusCode != 206 || r.body != body[p.off:p.off+p.n] {
				t.Errorf("GET of %v of %d bytes: %s, %d bytes", p, size, r.Status, len(r.body))
			}
		}
	}
}

func TestChunked(t *testing.T) {
	t.Parallel()
	d := start(t, Options{}, 1)
	const head = "PUT /dev1/chunked HTTP/1.1\nHost: x\nTransfer-Encoding: chunked\n"
	hello, other := sumOf("hello world"), sumOf("other")
	for _, c := range []struct {
		name, request string
		status        int
		close         bool
		stored        string // empty: not there
	}{
		{"plain", head + "\n5\nhello\n6\n world\n0\n\n", 201, false, "hello world"},
		{"extensions", head + "\n5;a=b\nhello\n6;c=\"d\"\n world\n0;e\n\n", 201, false, "hello world"},
		{"trailer that nobody cares for", head + "\nB\nhello world\n0\nX-Odd: 1\n\n", 201, false, "hello world"},
		{"sum announced", head + "Trailer: Content-MD5\n\nb\nhello world\n0\nContent-MD5: " + hello + "\n\n", 201, false, "hello world"},
		{"wrong sum announced", head + "Trailer: Content-MD5\n\nb\nhello world\n0\nContent-MD5: " + other + "\n\n", 400, false, ""},
		{"sum announced, not sent", head + "Trailer: Content-MD5\n\nb\nhello world\n0\n\n", 400, false, ""},
		{"sum announced, not a sum", head + "Trailer: Content-MD5\n\nb\nhello world\n0\nContent-MD5: x\n\n", 400, false, ""},
		{"wrong sum, not announced", head + "\nb\nhello world\n0\nContent-MD5: " + other + "\n\n", 201, false, "hello world"},
		{"sum in the header", head + "Content-MD5: " + hello + "\n\nb\nhello world\n0\n\n", 201, false, "hello world"},
		{"wrong sum in the header", head + "Content-MD5: " + other + "\n\nb\nhello world\n0\n\n", 400, false, ""},
		{"right header, wrong trailer", head + "Content-MD5: " + hello + "\nTrailer: Content-MD5\n\nb\nhello world\n0\nContent-MD5: " + other + "\n\n", 400, false, ""},
		{"empty", head + "\n0\n\n", 201, false, "\x00"},
		{"bad size", head + "\n5\nhello\nzz\n", 400, true, ""},
		{"no line end after a chunk", head + "\n5\nhelloXX6\n", 400, true, ""},
		{"size overflows", head + "\nfffffffffffffffff\n", 400, true, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			d.do("DELETE /dev1/chunked HTTP/1.1\nHost: x\n\n")
			conn := dial(t, d.HTTPAddr())
			conn.send("%s", c.request)
			r := conn.receive("PUT")
			if r.StatusCode != c.status || r.Close != c.close {
				t.Errorf("%s, Connection: %s", r.Status, r.Header.Get("Connection"))
			}
			if c.close {
				if !conn.closed() {
					t.Error("the connection stays open")
				}
			} else {
				conn.send("GET / HTTP/1.1\nHost: x\n\n")
				if r := conn.receive("GET"); r.StatusCode != 200 {
					t.Errorf("next request: %s", r.Status)
				}
			}
			r = d.get("/dev1/chunked")
			switch {
			case c.stored == "" && r.StatusCode != 404:
				t.Errorf("stored %q", r.body)
			case c.stored != "" && strings.Trim(r.body, "\x00") != strings.Trim(c.stored, "\x00"):
				t.Errorf("stored %q, %s", r.body, r.Status)
			}
		})
	}
}

func TestContentMD5(t *testing.T) {
	t.Parallel()
	d := start(t, Options{}, 1)
	c := dial(t, d.HTTPAddr())
	put := func(sum, body string) int {
		c.send("PUT /dev1/f HTTP/1.1\nHost: x\nContent-MD5: %s\nContent-Length: %d\n\n%s", sum, len(body), body)
		return c.receive("PUT").StatusCode
	}
	if got := put(sumOf("old"), "old"); got != 201 {
		t.Errorf("right sum: %d", got)
	}
	if got := put(sumOf("else"), "new"); got != 400 {
		t.Errorf("wrong sum: %d", got)
	}
	if got := d.get("/dev1/f").body; got != "old" {
		t.Errorf("a refused upload left %q", got)
	}
	if got := put(sumOf(""), ""); got != 201 {
		t.Errorf("empty file: %d", got)
	}
	if got := put(sumOf("x"), ""); got != 400 {
		t.Errorf("empty file, wrong sum: %d", got)
	}
	if got := d.files(); !slices.Equal(got, []string{"dev1/f"}) {
		t.Errorf("files %v", got)
	}
}

func TestContentRange(t *testing.T) {
	t.Parallel()
	d := start(t, Options{}, 1)
	c := dial(t, d.HTTPAddr())
	put := func(rng, extra, body string) int {
		c.send("PUT /dev1/0/000/000/0000000009.fid HTTP/1.1\nHost: x\nContent-Range: %s\n%sContent-Length: %d\n\n", rng, extra, len(body))
		if _, err := io.WriteString(c, body); err != nil {
			t.Fatal(err)
		}
		return c.receive("PUT").StatusCode
	}
	const path = "/dev1/0/000/000/0000000009.fid"
	for _, step := range []struct {
		rng, extra, body string
		status           int
		want             string
	}{
		{"bytes 3-5/*", "", "abc", 201, "\x00\x00\x00abc"},
		{"bytes 0-2/6", "", "xyz", 201, "xyzabc"},
		{"bytes 2-3/*", "", "ZA", 201, "xyZAbc"},
		{"bytes 6-6/*", "Content-MD5: " + sumOf("!") + "\n", "!", 201, "xyZAbc!"},
		{"bytes 6-6/*", "Content-MD5: " + sumOf("?") + "\n", ".", 400, "xyZAbc."},
	} {
		if got := put(step.rng, step.extra, step.body); got != step.status {
			t.Errorf("PUT of %s: %d, want %d", step.rng, got, step.status)
		}
		if got := d.get(path).body; got != step.want {
			t.Errorf("after PUT of %s: %q, want %q", step.rng, got, step.want)
		}
	}
	big := string(pattern(3*bufferSize + 5))
	if got := put(fmt.Sprintf("bytes 2-%d/*", 2+len(big)-1), "", big); got != 201 {
		t.Errorf("PUT of a large range: %d", got)
	}
	if got := d.get(path).body; got != "xy"+big {
		t.Error("a large range was stored wrongly")
	}
}

// An upload that ends early changes nothing and leaves nothing behind, however
// it ends.
func TestBrokenUpload(t *testing.T) {
	t.Parallel()
	d := start(t, Options{ClientTimeout: 100 * time.Millisecond}, 1)
	d.put("/dev1/0/000/000/0000000001.fid", "old")
	large := string(pattern(5 * bufferSize))
	for _, fid := range []string{"0000000001", "0000000002"} {
		head := "PUT /dev1/0/000/000/" + fid + ".fid HTTP/1.1\nHost: x\n"
		for _, part := range []string{"", "half", large} {
			length := head + fmt.Sprintf("Content-Length: %d\n\n", len(large)+1)
			chunk := head + fmt.Sprintf("Transfer-Encoding: chunked\n\n%x\n", len(large)+1)

			for name, begin := range map[string]string{"length": length, "chunked": chunk} {
				c := dial(t, d.HTTPAddr())
				c.send("%s", begin)
				io.WriteString(c, part) // seen below
				c.Close()

				c = dial(t, d.HTTPAddr())
				c.send("%s", begin)
				io.WriteString(c, part) // seen below
				c.CloseWrite()
				if r := c.receive("PUT"); r.StatusCode != 400 || !c.closed() {
					t.Errorf("%s, half closed: %s", name, r.Status)
				}

				c = dial(t, d.HTTPAddr())
				c.send("%s", begin)
				io.WriteString(c, part) // seen below
				c.SetLinger(0)
				c.Close()

				c = dial(t, d.HTTPAddr())
				c.send("%s", begin)
				io.WriteString(c, part) // seen below
				if r := c.receive("PUT"); r.StatusCode != 408 || !c.closed() {
					t.Errorf("%s, silent: %s", name, r.Status)
				}
			}
		}
	}
	eventually(t, "no upload is in progress", func() bool { return metric(t, d, "mogile_storaged_requests_in_flight") == 0 })
	eventually(t, "nothing is left behind", func() bool { return slices.Equal(d.files(), []string{"dev1/0/000/000/0000000001.fid"}) })
	if got := d.get("/dev1/0/000/000/0000000001.fid").body; got != "old" {
		t.Errorf("a broken upload left %q", got)
	}
}

// An upload that flows slowly, but flows, is none that stopped.
func TestSlowUpload(t *testing.T) {
	t.Parallel()
	const timeout = 200 * time.Millisecond
	d := start(t, Options{ClientTimeout: timeout}, 1)
	c := dial(t, d.HTTPAddr())
	const n = 30
	c.send("PUT /dev1/slow HTTP/1.1\nHost: x\nContent-Length: %d\n\n", n)
	tick := time.NewTicker(timeout / 10)
	defer tick.Stop()
	for range n { // three times the timeout
		<-tick.C
		c.send("x")
	}
	if r := c.receive("PUT"); r.StatusCode != 201 {
		t.Error(r.Status)
	}
	// The answered connection may be silent for longer.
	idle := time.After(2 * timeout)
	<-idle
	c.send("GET /dev1/slow HTTP/1.1\nHost: x\n\n")
	if r := c.receive("GET"); r.body != strings.Repeat("x", n) {
		t.Errorf("%s, %q", r.Status, r.body)
	}
}

// A header block that never ends is not waited for.
func TestSlowHeader(t *testing.T) {
	t.Parallel()
	d := start(t, Options{ClientTimeout: 100 * time.Millisecond}, 1)
	for _, begin := range []string{"", "G", "GET /dev1/x HTTP/1.1\nHost: x\n"} {
		c := dial(t, d.HTTPAddr())
		c.send("%s", begin)
		// It may be told that half a line is none.
		if answer, err := io.ReadAll(c.r); err != nil || len(answer) > 0 && !bytes.HasPrefix(answer, []byte("HTTP/1.1 400 ")) {
			t.Errorf("after %q: %q, %v", begin, answer, err)
		}
	}
}

// A client that does not read its answer is not waited for.
func TestStalledReader(t *testing.T) {
	t.Parallel()
	d := start(t, Options{ClientTimeout: 100 * time.Millisecond}, 1)
	d.put("/dev1/large", string(pattern(32<<20)))
	c := dial(t, d.HTTPAddr())
	c.send("GET /dev1/large HTTP/1.1\nHost: x\n\n")
	eventually(t, "the answer was begun", func() bool { return metric(t, d, "mogile_storaged_requests_in_flight") == 1 })
	eventually(t, "the answer was given up", func() bool { return metric(t, d, "mogile_storaged_requests_in_flight") == 0 })
	if n, err := io.Copy(io.Discard, c.r); err == nil && n >= 32<<20 {
		t.Errorf("got all %d bytes", n)
	}
}

func TestKeepAlive(t *testing.T) {
	t.Parallel()
	d := start(t, Options{}, 1)
	d.put("/dev1/f", "hello")
	for _, c := range []struct {
		request string
		kept    bool
	}{
		{"GET /dev1/f HTTP/1.1\nHost: x\n\n", true},
		{"GET /dev1/f HTTP/1.1\nHost: x\nConnection: close\n\n", false},
		{"GET /dev1/f HTTP/1.0\n\n", false},
		{"GET /dev1/f HTTP/1.0\nConnection: keep-alive\n\n", true},
		{"HEAD /dev1/f HTTP/1.0\nConnection: keep-alive\n\n", true},
		{"GET /dev1/none HTTP/1.0\nConnection: keep-alive\n\n", true},
		{"GET /dev1/none HTTP/1.1\nHost: x\n\n", true},
		{"PUT /dev1/g HTTP/1.0\nConnection: keep-alive\nContent-Length: 1\n\nx", true},
		{"PUT /dev1/g HTTP/1.0\nContent-Length: 1\n\nx", false},
		{"DELETE /dev1/g HTTP/1.0\nConnection: keep-alive\n\n", true},
	} {
		conn := dial(t, d.HTTPAddr())
		conn.send("%s", c.request)
		method, _, _ := strings.Cut(c.request, " ")
		if r := conn.receive(method); strings.Contains(c.request, "1.0") && r.Header.Get("Connection") == "keep-alive" != c.kept {
			t.Errorf("%q: Connection: %s", c.request, r.Header.Get("Connection"))
		}
		if c.kept {
			conn.send("GET /dev1/f HTTP/1.1\nHost: x\n\n")
			if r := conn.receive("GET"); r.body != "hello" {
				t.Errorf("%q, then another: %s", c.request, r.Status)
			}
		} else if !conn.closed() {
			t.Errorf("%q: the connection stays open", c.request)
		}
	}
}

func TestPipelining(t *testing.T) {
	t.Parallel()
	d := start(t, Options{}, 1)
	c := dial(t, d.HTTPAddr())
	const h = " HTTP/1.1\nHost: x\n"
	var all strings.Builder
	var want []string
	add := func(method, request string, status int) {
		all.WriteString(request)
		want = append(want, fmt.Sprint(method, " ", status))
	}
	for i := range 20 {
		path := fmt.Sprintf("/dev1/p/%d", i)
		add("PUT", "PUT "+path+h+"Content-Length: 5\n\nhello", 201)
		add("HEAD", "HEAD "+path+h+"\n", 200)
		add("PUT", "PUT "+path+h+"Transfer-Encoding: chunked\n\n5\nworld\n0\n\n", 201)
		add("GET", "GET "+path+h+"\n", 200)
		add("DELETE", "DELETE "+path+h+"\n", 204)
		add("GET", "GET "+path+h+"\n", 404)
	}
	c.send("%s", all.String())
	for i, w := range want {
		method, _, _ := strings.Cut(w, " ")
		r := c.receive(method)
		if got := fmt.Sprint(method, " ", r.StatusCode); got != w {
			t.Fatalf("answer %d: %s, want %s", i, got, w)
		}
		if w == "GET 200" && r.body != "world" {
			t.Fatalf("answer %d: %q", i, r.body)
		}
	}
}

func TestHeaderBlocks(t *testing.T) {
	t.Parallel()
	d := start(t, Options{}, 1)
	block := func(size int) string {
		head := "GET / HTTP/1.1\r\nHost: x\r\n"
		const line = "X-Odd: 0123456789012345678901234567890123456789012345678901234\r\n"
		for len(head)+len(line) < size-2 {
			head += line
		}
		return head + "\r\n"
	}
	send := func(raw string) (reply, *client) {
		c := dial(t, d.HTTPAddr())
		if _, err := io.WriteString(c, raw); err != nil {
			t.Fatal(err)
		}
		return c.receive("GET"), c
	}
	if r, _ := send(block(maxHeader - 1000)); r.StatusCode != 200 {
		t.Errorf("a block just below the limit: %s", r.Status)
	}
	for name, raw := range map[string]string{
		"too large":         block(maxHeader + 1000),
		"endless line":      "GET /" + strings.Repeat("a", maxHeader+1000),
		"garbage":           "\x00\x01\x02\r\n\r\n",
		"no version":        "GET /\r\n\r\n",
		"odd version":       "GET / HTTP/1.x\r\n\r\n",
		"header without :":  "GET / HTTP/1.1\r\nHost: x\r\nbad\r\n\r\n",
		"two lengths":       "PUT /dev1/x HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
		"bad escape":        "GET /dev1/%zz HTTP/1.1\r\nHost: x\r\n\r\n",
		"length and chunks": "PUT /dev1/x HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999\r\nTransfer-Encoding: gzip\r\n\r\n",
	} {
		r, c := send(raw)
		if name == "length and chunks" {
			if r.StatusCode != 501 {
				t.Errorf("%s: %s", name, r.Status)
			}
			continue
		}
		if r.StatusCode != 400 || r.Header.Get("Connection") != "close" || r.ContentLength != 0 {
			t.Errorf("%s: %s, %v", name, r.Status, r.Header)
		}
		if !c.closed() {
			t.Errorf("%s: the connection stays open", name)
		}
	}
	if r, _ := send("GET / HTTP/1.1\r\nHost: x\r\nX-Folded: one\r\n two\r\n\r\n"); r.StatusCode != 200 {
		t.Errorf("folded header: %s", r.Status)
	}
	if got := d.files(); len(got) > 0 {
		t.Errorf("files %v", got)
	}
}

func TestExpectContinue(t *testing.T) {
	t.Parallel()
	d := start(t, Options{}, 1)
	c := dial(t, d.HTTPAddr())
	c.send("PUT /dev1/f HTTP/1.1\nHost: x\nContent-Length: 5\nExpect: 100-continue\n\n")
	if line, err := c.r.ReadString('\n'); err != nil || line != "HTTP/1.1 100 Continue\r\n" {
		t.Fatalf("%q, %v", line, err)
	}
	c.r.ReadString('\n') // the empty line
	c.send("hello")
	if r := c.receive("PUT"); r.StatusCode != 201 {
		t.Error(r.Status)
	}
	c = dial(t, d.HTTPAddr())
	c.send("PUT /dev2/f HTTP/1.1\nHost: x\nContent-Length: 5\nExpect: 100-continue\n\n")
	if r := c.receive("PUT"); r.StatusCode != 404 {
		t.Error(r.Status)
	}
}

func TestGetOnlyListener(t *testing.T) {
	t.Parallel()
	d := start(t, Options{}, 1)
	d.put("/dev1/f", "hello")
	for _, c := range []struct {
		request string
		status  int
		kept    bool
	}{
		{"GET /dev1/f HTTP/1.1\nHost: x\n\n", 200, true},
		{"HEAD /dev1/f HTTP/1.1\nHost: x\n\n", 200, true},
		{"PUT /dev1/f HTTP/1.1\nHost: x\nContent-Length: 1\n\nx", 405, false},
		{"DELETE /dev1/f HTTP/1.1\nHost: x\n\n", 405, true},
		{"MKCOL /dev1/x HTTP/1.1\nHost: x\n\n", 405, true},
	} {
		conn := dial(t, d.GetAddr())
		conn.send("%s", c.request)
		method, _, _ := strings.Cut(c.request, " ")
		if r := conn.receive(method); r.StatusCode != c.status || r.Close == c.kept {
			t.Errorf("%q: %s, Connection: %s", c.request, r.Status, r.Header.Get("Connection"))
		}
	}
	if got := d.get("/dev1/f").body; got != "hello" {
		t.Errorf("stored %q", got)
	}
}

// Where all connections are in use, idle ones make room, busy ones do not.
func TestMaxConns(t *testing.T) {
	t.Parallel()
	d := start(t, Options{MaxConns: 2}, 1)
	idle, busy := dial(t, d.HTTPAddr()), dial(t, d.HTTPAddr())
	idle.send("GET / HTTP/1.1\nHost: x\n\n")
	idle.receive("GET")
	busy.send("PUT /dev1/f HTTP/1.1\nHost: x\nContent-Length: 2\n\n1")
	eventually(t, "the upload is in progress", func() bool { return metric(t, d, "mogile_storaged_requests_in_flight") == 1 })
	third := dial(t, d.HTTPAddr())
	third.send("PUT /dev1/g HTTP/1.1\nHost: x\nContent-Length: 2\n\n1")
	if !idle.closed() {
		t.Error("the idle connection stays open")
	}
	eventually(t, "another upload is in progress", func() bool { return metric(t, d, "mogile_storaged_requests_in_flight") == 2 })
	fourth := dial(t, d.HTTPAddr()) // waits in the backlog
	fourth.send("GET / HTTP/1.1\nHost: x\n\n")
	busy.send("2")
	if r := busy.receive("PUT"); r.StatusCode != 201 {
		t.Errorf("upload: %s", r.Status)
	}
	if r := fourth.receive("GET"); r.StatusCode != 200 {
		t.Errorf("the connection that waited: %s", r.Status)
	}
	third.send("2")
	if r := third.receive("PUT"); r.StatusCode != 201 {
		t.Errorf("upload: %s", r.Status)
	}
}

// The clients of all libraries can be served: this is Go's.
func TestStandardClient(t *testing.T) {
	t.Parallel()
	d := start(t, Options{}, 1)
	hc := &http.Client{Transport: &http.Transport{}}
	defer hc.CloseIdleConnections()
	url := "http://" + d.HTTPAddr().String() + "/dev1/0/000/000/0000000003.fid"
	body := pattern(200_000)
	pr, pw := io.Pipe() // of unknown length: chunked
	go func() {
		_, err := pw.Write(body)
		pw.CloseWithError(err)
	}()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, url, pr)
	if err != nil {
		t.Fatal(err)
	}
	res, err := hc.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if res.StatusCode != 201 {
		t.Fatal(res.Status)
	}
	res, err = hc.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	got, err := io.ReadAll(res.Body)
	if err != nil || !bytes.Equal(got, body) {
		t.Errorf("got %d bytes, %v", len(got), err)
	}
}

// Whatever is sent, the daemon goes on answering, and touches nothing outside
// of its devices.
func FuzzHTTP(f *testing.F) {
	for _, s := range []string{
		"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
		"GET //dev1/usage HTTP/1.0\r\n\r\nGET /",
		"PUT /dev1/f HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nTrailer: Content-MD5\r\n\r\n5;x\r\nhello\r\n0\r\nContent-MD5: x\r\n\r\n",
		"PUT /dev1/f HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999\r\n\r\n",
		"PUT /dev1/f HTTP/1.1\r\nHost: x\r\nContent-Range: bytes 5-5/*\r\nContent-Length: 1\r\n\r\nx",
		"PUT /../f HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nx",
		"DELETE /dev1/%2e%2e/dev1 HTTP/1.1\r\nHost: x\r\n\r\n",
		"GET http://x/dev1/.mogile/device HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n\r\n",
		"\x16\x03\x01\x00", "\r\n\r\n", "",
	} {
		f.Add([]byte(s))
	}
	d := start(f, Options{ClientTimeout: 200 * time.Millisecond}, 1)
	f.Fuzz(func(t *testing.T, raw []byte) {
		c := dial(t, d.HTTPAddr())
		c.Write(raw) // it may be refused before its end
		c.CloseWrite()
		if _, err := io.Copy(io.Discard, c.r); os.IsTimeout(err) {
			t.Error("the connection stays open")
		}
		entries, err := os.ReadDir(d.docroot)
		if err != nil || len(entries) != 1 {
			t.Errorf("the docroot has %v, %v", entries, err)
		}
		if _, err := os.Stat(filepath.Join(d.docroot, "dev1/.mogile/device")); err != nil {
			t.Error(err)
		}
		c = dial(t, d.HTTPAddr())
		c.send("GET / HTTP/1.1\nHost: x\n\n")
		if r := c.receive("GET"); r.StatusCode != 200 {
			t.Error(r.Status)
		}
	})
}

// TestAppendTime: the form is that of net/http.
func TestAppendTime(t *testing.T) {
	t.Parallel()
	rng := rand.New(rand.NewPCG(1, 2))
	times := []time.Time{{}, time.Unix(0, 0), time.Unix(1<<31, 0), time.Unix(253402300799, 0), time.Unix(253402300800, 0), time.Unix(-1<<40, 0)}
	for range 1000 {
		times = append(times, time.Unix(rng.Int64N(1<<36)-1<<34, rng.Int64N(1e9)).In(time.FixedZone("east", 7200)))
	}
	for _, at := range times {
		if got, want := lastModified(at), at.UTC().Format(http.TimeFormat); got != want {
			t.Errorf("%v: %q, want %q", at, got, want)
		}
	}
}
