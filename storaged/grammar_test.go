package storaged

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
)

// raw sends bytes as they are.
func (c *client) raw(text string) {
	c.t.Helper()
	if _, err := io.WriteString(c, text); err != nil {
		c.t.Fatal(err)
	}
}

// What is said of framing is taken in one way only, or refused with the
// connection, so that nobody in front of the daemon can see other requests in
// the bytes than it does.
func TestFraming(t *testing.T) {
	t.Parallel()
	d := start(t, Options{}, 1)
	const put = "PUT /dev1/f HTTP/1.1\r\nHost: x\r\n"
	for _, c := range []struct {
		name, request string
		status        int
		close         bool
	}{
		{"length", put + "Content-Length: 1\r\n\r\nx", 201, false},
		{"length with zeros in front", put + "Content-Length: 000000000000000000000000001\r\n\r\nx", 201, false},
		{"length in blanks", put + "Content-Length:\t 1 \t\r\n\r\nx", 201, false},
		{"folded length", put + "Content-Length:\r\n 1\r\n\r\nx", 201, false},
		{"two lengths in a fold", put + "Content-Length: 1\r\n 1\r\n\r\nx", 400, true},
		{"two lengths", put + "Content-Length: 1\r\nContent-Length: 2\r\n\r\nxy", 400, true},
		{"one length twice", put + "Content-Length: 1\r\nContent-Length: 1\r\n\r\nx", 400, true},
		{"list of lengths", put + "Content-Length: 1, 1\r\n\r\nx", 400, true},
		{"negative length", put + "Content-Length: -1\r\n\r\nx", 400, true},
		{"length with a plus", put + "Content-Length: +1\r\n\r\nx", 400, true},
		{"hexadecimal length", put + "Content-Length: 0x1\r\n\r\nx", 400, true},
		{"length with an underscore", put + "Content-Length: 1_0\r\n\r\nx", 400, true},
		{"empty length", put + "Content-Length:\r\n\r\n", 400, true},
		{"length of 20 digits", put + "Content-Length: 12345678901234567890\r\n\r\nx", 507, true},
		{"blank before the colon", put + "Content-Length : 1\r\n\r\nx", 400, true},
		{"another header with an underscore", put + "Content_Length: 7\r\nContent-Length: 1\r\n\r\nx", 201, false},
		{"chunks", put + "Transfer-Encoding: Chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n", 201, false},
		{"folded coding", put + "Transfer-Encoding:\r\n\tchunked\r\n\r\n1\r\nx\r\n0\r\n\r\n", 201, false},
		{"length and chunks", put + "Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n", 400, true},
		{"chunks and length", put + "Transfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\n1\r\nx\r\n0\r\n\r\n", 400, true},
		{"chunks twice", put + "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400, true},
		{"chunks and identity", put + "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n", 400, true},
		{"chunks in a list", put + "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501, true},
		{"another coding", put + "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", 501, true},
		{"no coding", put + "Transfer-Encoding:\r\n\r\n0\r\n\r\n", 501, true},
		{"coding with a vertical tab", put + "Transfer-Encoding: \vchunked\r\n\r\n0\r\n\r\n", 400, true},
		{"chunks in HTTP/1.0", "PUT /dev1/f HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400, true},
		{"bare CR in a header", put + "X: a\rContent-Length: 1\r\n\r\nx", 400, true},
		{"bare CR for a line end", "GET /dev1/f HTTP/1.1\rHost: x\r\r", 400, true},
		{"two CRs", "GET /dev1/f HTTP/1.1\r\nHost: x\r\r\n\r\n", 400, true},
		{"NUL in a header", put + "X: a\x00b\r\nContent-Length: 1\r\n\r\nx", 400, true},
		{"LF for line ends", "PUT /dev1/f HTTP/1.1\nHost: x\nContent-Length: 1\n\nx", 201, false},
		{"LF and CRLF", "PUT /dev1/f HTTP/1.1\r\nHost: x\nContent-Length: 1\r\n\nx", 201, false},
		{"no Host", "PUT /dev1/f HTTP/1.1\r\nContent-Length: 1\r\n\r\nx", 201, false},
		{"folded first line", "GET /dev1/f HTTP/1.1\r\n Host: x\r\n\r\n", 400, true},
		{"folded header", put + "X-Odd: one\r\n two\r\n\tthree\r\nContent-Length: 1\r\n\r\nx", 201, false},
		{"fold of a blank line", put + "X-Odd: one\r\n \r\nContent-Length: 1\r\n\r\nx", 201, false},
		{"header without a name", put + ": x\r\n\r\n", 400, true},
		{"empty lines in front", "\r\n\r\n\nGET / HTTP/1.1\r\nHost: x\r\n\r\n", 200, false},
		{"many empty lines in front", strings.Repeat("\r\n", maxBlank+1) + "GET / HTTP/1.1\r\nHost: x\r\n\r\n", 400, true},
		{"two blanks in the request line", "GET  / HTTP/1.1\r\nHost: x\r\n\r\n", 400, true},
		{"blank behind the version", "GET / HTTP/1.1 \r\nHost: x\r\n\r\n", 400, true},
		{"tab in the request line", "GET\t/ HTTP/1.1\r\nHost: x\r\n\r\n", 400, true},
		{"tab in the target", "GET /dev1/\tf HTTP/1.1\r\nHost: x\r\n\r\n", 400, true},
		{"HTTP/0.9", "GET /\r\n\r\n", 400, true},
		{"HTTP/1.2", "GET / HTTP/1.2\r\nHost: x\r\n\r\n", 200, false},
		{"HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505, true},
		{"lower case version", "GET / http/1.1\r\nHost: x\r\n\r\n", 400, true},
		{"another protocol", "GET / ICY/1.1\r\n\r\n", 400, true},
		{"long version", "GET / HTTP/1.11\r\nHost: x\r\n\r\n", 400, true},
		{"TLS", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\n\n", 400, true},
		{"another expectation", put + "Content-Length: 1\r\nExpect: nothing\r\n\r\nx", 417, true},
		{"expectation in HTTP/1.0", "PUT /dev1/f HTTP/1.0\r\nConnection: keep-alive\r\nExpect: nothing\r\nContent-Length: 1\r\n\r\nx", 201, false},
		{"body of a GET", "GET /dev1/f HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc", 200, false},
		{"chunks of a DELETE", "DELETE /dev1/none HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", 404, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			if err := os.WriteFile(filepath.Join(d.docroot, "dev1/f"), []byte("old"), 0o666); err != nil {
				t.Fatal(err)
			}
			conn := dial(t, d.HTTPAddr())
			// What follows must not be taken for anything else.
			const next = "GET /dev1/next HTTP/1.1\r\nHost: x\r\n\r\n"
			conn.raw(c.request + next)
			method, _, _ := strings.Cut(strings.TrimLeft(c.request, "\r\n"), " ")
			r := conn.receive(method)
			if r.StatusCode != c.status || r.Header.Get("Status") != r.Status {
				t.Errorf("%s, Status: %s, want %d", r.Status, r.Header.Get("Status"), c.status)
			}
			if want := map[bool]string{true: "close", false: "keep-alive"}[c.close]; r.Header.Get("Connection") != want {
				t.Errorf("Connection: %s, want %s", r.Header.Get("Connection"), want)
			}
			if c.status >= 400 && (r.Header.Get("Content-Length") != "0" || r.Header.Get("Content-Type") != "text/plain" || r.Header.Get("Date") == "") {
				t.Errorf("headers %v", r.Header)
			}
			if c.close {
				if rest, err := io.ReadAll(conn.r); err != nil || len(rest) > 0 {
					t.Errorf("behind the last answer: %q, %v", rest, err)
				}
			} else if r := conn.receive("GET"); r.StatusCode != 404 {
				t.Errorf("next request: %s", r.Status)
			}
			got, err := os.ReadFile(filepath.Join(d.docroot, "dev1/f"))
			want := "old"
			if c.status == 201 {
				want = "x"
			}
			if err != nil || string(got) != want {
				t.Errorf("stored %q, %v, want %q", got, err, want)
			}
		})
	}
}

// Chunked bodies, to the byte.
func TestChunkGrammar(t *testing.T) {
	t.Parallel()
	d := start(t, Options{}, 1)
	long := strings.Repeat("x", maxChunkLine)
	for _, c := range []struct {
		name, body string
		status     int
	}{
		{"blank before an extension", "5 ;a=b\r\nhello\r\n0 ; c\r\n\r\n", 201},
		{"blanks behind the size", "5 \t\r\nhello\r\n0\r\n\r\n", 201},
		{"blanks in an extension", "5 ; a = \"b;c\" ; d\r\nhello\r\n0\r\n\r\n", 201},
		{"zeros in front", "0000000000000000000000005\r\nhello\r\n0000\r\n\r\n", 201},
		{"capitals", "0A\r\nhello\x00\x00\x00\x00\x00\r\n0\r\n\r\n", 201},
		{"folded trailer", "5\r\nhello\r\n0\r\nX-Odd: a\r\n b\r\n\r\n", 201},
		{"framing in the trailer", "5\r\nhello\r\n0\r\nContent-Length: 7\r\nTransfer-Encoding: chunked\r\n\r\n", 201},
		{"large trailer", "5\r\nhello\r\n0\r\n" + strings.Repeat("X: "+long[:1000]+"\r\n", 10) + "\r\n", 201},
		{"no size", ";a\r\nhello\r\n0\r\n\r\n", 400},
		{"empty size", "\r\nhello\r\n0\r\n\r\n", 400},
		{"blank in front", " 5\r\nhello\r\n0\r\n\r\n", 400},
		{"negative size", "-5\r\nhello\r\n0\r\n\r\n", 400},
		{"size with a plus", "+5\r\nhello\r\n0\r\n\r\n", 400},
		{"size with a prefix", "0x5\r\nhello\r\n0\r\n\r\n", 400},
		{"two sizes", "5 5\r\nhello\r\n0\r\n\r\n", 400},
		{"LF behind the size", "5\nhello\r\n0\r\n\r\n", 400},
		{"LF behind the chunk", "5\r\nhello\n0\r\n\r\n", 400},
		{"LF behind the last size", "5\r\nhello\r\n0\n\r\n", 400},
		{"LF in the trailer", "5\r\nhello\r\n0\r\nX: y\n\r\n", 400},
		{"bare CR in an extension", "5;a\rb\r\nhello\r\n0\r\n\r\n", 400},
		{"LF in an extension", "5;\n\r\nhello\r\n0\r\n\r\n", 400},
		{"chunk too long", "5\r\nhello!\r\n0\r\n\r\n", 400},
		{"size of 17 digits", "10000000000000000\r\nhello\r\n0\r\n\r\n", 400},
		{"size of 64 bits", "8000000000000000\r\nhello\r\n0\r\n\r\n", 400},
		{"extension without end", "5;" + long, 400},
		{"trailer without end", "5\r\nhello\r\n0\r\n" + strings.Repeat("X: "+long[:1000]+"\r\n", 20), 400},
		{"trailer line without end", "5\r\nhello\r\n0\r\nX: " + long, 400},
		{"trailer that is none", "5\r\nhello\r\n0\r\nhello\r\n\r\n", 400},
		{"trailer with NUL", "5\r\nhello\r\n0\r\nX: \x00\r\n\r\n", 400},
		{"fold without a trailer", "5\r\nhello\r\n0\r\n X\r\n\r\n", 400},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := "/dev1/" + strings.ReplaceAll(c.name, " ", "-")
			conn := dial(t, d.HTTPAddr())
			conn.raw("PUT " + path + " HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + c.body)
			conn.raw("GET /dev1/next HTTP/1.1\r\nHost: x\r\n\r\n")
			r := conn.receive("PUT")
			if r.StatusCode != c.status || r.Close != (c.status == 400) {
				t.Errorf("%s, Connection: %s", r.Status, r.Header.Get("Connection"))
			}
			if c.status == 201 {
				if r := conn.receive("GET"); r.StatusCode != 404 {
					t.Errorf("next request: %s", r.Status)
				}
				if got := d.get(path).body; strings.Trim(got, "\x00") != "hello" {
					t.Errorf("stored %q", got)
				}
			} else {
				if rest, err := io.ReadAll(conn.r); err != nil || len(rest) > 0 {
					t.Errorf("behind the last answer: %q, %v", rest, err)
				}
				if r := d.get(path); r.StatusCode != 404 {
					t.Errorf("stored %q", r.body)
				}
			}
		})
	}
}

// Content-MD5 in a trailer counts if it was announced, among others too.
func TestTrailerAnnounced(t *testing.T) {
	t.Parallel()
	d := start(t, Options{}, 1)
	c := dial(t, d.HTTPAddr())
	for _, s := range []struct {
		headers, trailer string
		status           int
	}{
		{"Trailer: X-Odd, content-md5\r\n", "Content-MD5: " + sumOf("else") + "\r\n", 400},
		{"Trailer: X-Odd\r\nTrailer: Content-MD5\r\n", "content-md5: " + sumOf("else") + "\r\n", 400},
		{"Trailer: Content-MD5\r\n", "X-Odd: a\r\nCONTENT-MD5:\r\n " + sumOf("hello") + "\r\n", 201},
		{"Trailer: Content-MD5\r\n", "Content-MD5: " + sumOf("hello") + "\r\nContent-MD5: " + sumOf("hello") + "\r\n", 400},
		{"Trailer: X-Odd\r\n", "Content-MD5: " + sumOf("else") + "\r\n", 201},
		{"", "Content-MD5: " + sumOf("else") + "\r\n", 201},
		{"Trailer: Content-Length, Transfer-Encoding\r\n", "", 201},
	} {
		c.raw("PUT /dev1/f HTTP/1.1\r\nTransfer-Encoding: chunked\r\n" + s.headers + "\r\n5\r\nhello\r\n0\r\n" + s.trailer + "\r\n")
		if r := c.receive("PUT"); r.StatusCode != s.status || r.Close {
			t.Errorf("%q, %q: %s", s.headers, s.trailer, r.Status)
		}
	}
	// Announced, but there is no trailer: there is nothing to compare.
	c.raw("PUT /dev1/f HTTP/1.1\r\nContent-Length: 1\r\nTrailer: Content-MD5\r\n\r\nx")
	if r := c.receive("PUT"); r.StatusCode != 201 {
		t.Errorf("trailer of a body that has none: %s", r.Status)
	}
}

func TestIfModifiedSince(t *testing.T) {
	t.Parallel()
	d := start(t, Options{}, 1)
	d.put("/dev1/f", "hello")
	modified := d.get("/dev1/f").Header.Get("Last-Modified")
	c := dial(t, d.HTTPAddr())
	for _, s := range []struct {
		headers string
		status  int
	}{
		{"If-Modified-Since: " + modified + "\n", 304},
		{"If-Modified-Since: " + modified + "; length=5\n", 304},
		{"If-Modified-Since: " + modified + ";length=7\n", 304},
		{"If-Modified-Since: " + modified + "\nRange: bytes=0-0\n", 304},
		{"If-Modified-Since: " + modified + "\nRange: nonsense\n", 304},
		{"If-Modified-Since: Thu, 01 Jan 2099 00:00:00 GMT\n", 200},
		{"If-Modified-Since: Thu, 01 Jan 1970 00:00:00 GMT\n", 200},
		{"If-Modified-Since: " + strings.ToLower(modified) + "\n", 200},
		{"If-Modified-Since: x\n", 200},
		{"If-Modified-Since: \n", 200},
		{"If-Modified-Since: " + modified + "\nIf-Modified-Since: " + modified + "\n", 200},
	} {
		for _, method := range []string{"GET", "HEAD"} {
			c.send("%s /dev1/f HTTP/1.1\nHost: x\n%s\n", method, s.headers)
			r := c.receive(method)
			if r.StatusCode != s.status || r.Close {
				t.Errorf("%s with %q: %s", method, s.headers, r.Status)
			}
			if r.StatusCode == 304 && (r.body != "" || r.Header.Get("Last-Modified") != modified || r.Header.Get("Content-Length") != "") {
				t.Errorf("%s with %q: %q, %v", method, s.headers, r.body, r.Header)
			}
		}
	}
	// Nothing is sent that is not there.
	c.send("GET /dev1/none HTTP/1.1\nHost: x\nIf-Modified-Since: %s\n\n", modified)
	if r := c.receive("GET"); r.StatusCode != 404 {
		t.Errorf("missing file: %s", r.Status)
	}
}

// Ranges as they are sent.
func TestRangeAnswers(t *testing.T) {
	t.Parallel()
	d := start(t, Options{}, 1)
	d.put("/dev1/f", "0123456789")
	d.put("/dev1/empty", "")
	c := dial(t, d.HTTPAddr())
	for _, s := range []struct {
		path, headers string
		status        int
		contentRange  string
		body          string
	}{
		{"f", "Range: bytes=0-0\n", 206, "bytes 0-0/10", "0"},
		{"f", "Range: bytes=2-4\n", 206, "bytes 2-4/10", "234"},
		{"f", "Range: bytes=2-99\n", 206, "bytes 2-9/10", "23456789"},
		{"f", "Range: bytes=7-\n", 206, "bytes 7-9/10", "789"},
		{"f", "Range: bytes=-3\n", 206, "bytes 7-9/10", "789"},
		{"f", "Range: bytes=-10\n", 206, "bytes 0-9/10", "0123456789"},
		{"f", "Range: bytes=-11\n", 200, "", "0123456789"},
		{"f", "Range: bytes=-99999999999999999999\n", 200, "", "0123456789"},
		{"f", "Range: bytes=-0\n", 416, "bytes */10", ""},
		{"f", "Range: bytes=10-\n", 416, "bytes */10", ""},
		{"f", "Range: bytes=10-12\n", 416, "bytes */10", ""},
		{"f", "Range: bytes=5-4\n", 416, "bytes */10", ""},
		{"f", "Range: bytes=99999999999999999999-\n", 416, "bytes */10", ""},
		{"f", "Range: bytes=0-1,3-4\n", 400, "", ""},
		{"f", "Range: bytes=0-1\nRange: bytes=0-1\n", 400, "", ""},
		{"f", "Range: bytes=a-b\n", 400, "", ""},
		{"f", "Range: bytes=-\n", 400, "", ""},
		{"f", "Range: bytes=1\n", 400, "", ""},
		{"f", "Range: bytes 0-1\n", 400, "", ""},
		{"f", "Range: lines=0-1\n", 400, "", ""},
		{"f", "Range: bytes=+1-2\n", 400, "", ""},
		{"f", "Range:\n", 400, "", ""},
		{"f", "Range:\n bytes=1-2\n", 206, "bytes 1-2/10", "12"},
		{"empty", "", 200, "", ""},
		{"empty", "Range: bytes=0-\n", 416, "bytes */0", ""},
		{"empty", "Range: bytes=0-0\n", 416, "bytes */0", ""},
		{"empty", "Range: bytes=-1\n", 200, "", ""},
	} {
		for _, method := range []string{"GET", "HEAD"} {
			c.send("%s /dev1/%s HTTP/1.1\nHost: x\n%s\n", method, s.path, s.headers)
			r := c.receive(method)
			body, length := s.body, fmt.Sprint(len(s.body))
			if method == "HEAD" {
				body = ""
			}
			if r.StatusCode != s.status || r.Header.Get("Content-Range") != s.contentRange || r.body != body ||
				r.Header.Get("Content-Length") != length || (r.Header.Get("Accept-Ranges") == "bytes") != (s.status == 200) {
				t.Errorf("%s %s, %q: %s, %q, %v", method, s.path, s.headers, r.Status, r.body, r.Header)
			}
		}
	}
}

// The status line is always HTTP/1.1, and every answer has what MogileFS's
// daemons send, in their order.
func TestAnswersToTheByte(t *testing.T) {
	t.Parallel()
	d := start(t, Options{}, 1)
	d.put("/dev1/f", "hello")
	const file = "Last-Modified,Content-Length,Content-Type,"
	for _, s := range []struct {
		request, line, headers, body string
	}{
		{"GET /dev1/f HTTP/1.0", "200 OK", file + "Accept-Ranges,Connection", "hello"},
		{"HEAD /dev1/f HTTP/1.0", "200 OK", file + "Accept-Ranges,Connection", ""},
		{"GET /dev1/f HTTP/1.1\nConnection: close\nRange: bytes=1-2", "206 Partial Content", file + "Content-Range,Connection", "el"},
		{"GET /dev1/none HTTP/1.0", "404 Not Found", "Content-Length,Content-Type,Connection", ""},
		{"PUT /dev1/g HTTP/1.0\nContent-Length: 0", "201 Created", "Content-Length,Content-Type,Connection", ""},
		{"DELETE /dev1/g HTTP/1.1\nConnection: close", "204 No Content", "Content-Length,Content-Type,Connection", ""},
		{"MKCOL /dev1/g HTTP/1.0", "400 Bad Request", "Content-Length,Content-Type,Connection", ""},
		{"GET / HTTP/1.0", "200 OK", "Last-Modified,Content-Length,Content-Type,Connection", ""},
		{"BREW /dev1 HTTP/1.1", "405 Method Not Allowed", "Content-Length,Content-Type,Connection", ""},
		{"nonsense", "400 Bad Request", "Content-Length,Content-Type,Connection", ""},
	} {
		c := dial(t, d.HTTPAddr())
		c.send("%s\n\n", s.request)
		answer, err := io.ReadAll(c.r)
		if err != nil {
			t.Fatal(err)
		}
		block, body, _ := strings.Cut(string(answer), "\r\n\r\n")
		lines := strings.Split(block, "\r\n")
		var names []string
		for _, l := range lines[1:] {
			name, value, _ := strings.Cut(l, ": ")
			if names = append(names, name); name == "Connection" && value != "close" {
				t.Errorf("%q: %s", s.request, l)
			}
		}
		if want := "Status,Date," + s.headers + ",Mogile"; lines[0] != "HTTP/1.1 "+s.line || lines[1] != "Status: "+s.line || strings.Join(names, ",") != want || body != s.body {
			t.Errorf("%q: %q", s.request, answer)
		}
	}
}

// A client that waits to be told is told only if its body is wanted; one that
// is not told may send the body or not, so that the connection ends.
func TestExpectation(t *testing.T) {
	t.Parallel()
	d := start(t, Options{}, 1)
	const ask = "Expect: 100-Continue\n"
	for _, s := range []struct {
		head   string
		status int
		told   bool
		close  bool
	}{
		{"PUT /dev1/f HTTP/1.1\n" + ask + "Content-Length: 5\n\n", 201, true, false},
		{"PUT /dev1/f HTTP/1.1\n" + ask + "Content-Range: bytes 1-5/*\nContent-Length: 5\n\n", 201, true, false},
		{"PUT /dev1/f HTTP/1.1\n" + ask + "Content-MD5: " + sumOf("else") + "\nContent-Length: 5\n\n", 400, true, false},
		{"PUT /dev1/f HTTP/1.1\n" + ask + "Content-Length: 0\n\n", 201, false, false},
		{"PUT /dev7/f HTTP/1.1\n" + ask + "Content-Length: 5\n\n", 404, false, true},
		{"PUT /dev7/f HTTP/1.1\n" + ask + "Transfer-Encoding: chunked\n\n", 404, false, true},
		{"PUT /foo HTTP/1.1\n" + ask + "Content-Length: 5\n\n", 400, false, true},
		{"PUT /dev1/f HTTP/1.1\n" + ask + "Content-MD5: x\nContent-Length: 5\n\n", 400, false, true},
		{"PUT /dev1/f HTTP/1.1\n" + ask + "Content-Length: 9223372036854775807\n\n", 507, false, true},
		{"GET /dev1/f HTTP/1.1\n" + ask + "Content-Length: 5\n\n", 200, false, true},
		{"GET /dev1/f HTTP/1.1\n" + ask + "\n", 200, false, false},
	} {
		c := dial(t, d.HTTPAddr())
		c.send("%s", s.head)
		if s.told {
			line, err := c.r.ReadString('\n')
			blank, err2 := c.r.ReadString('\n')
			if err != nil || err2 != nil || line+blank != "HTTP/1.1 100 Continue\r\n\r\n" {
				t.Fatalf("%q: %q", s.head, line+blank)
			}
			c.raw("hello")
		}
		method, _, _ := strings.Cut(s.head, " ")
		if r := c.receive(method); r.StatusCode != s.status || r.Close != s.close {
			t.Errorf("%q: %s, Connection: %s", s.head, r.Status, r.Header.Get("Connection"))
		}
		if s.close && !c.closed() {
			t.Errorf("%q: the connection stays open", s.head)
		}
	}
	// A client that does not wait is not told.
	c := dial(t, d.HTTPAddr())
	c.send("PUT /dev1/f HTTP/1.0\n%sConnection: keep-alive\nContent-Length: 5\n\nhello", ask)
	if r := c.receive("PUT"); r.StatusCode != 201 {
		t.Errorf("HTTP/1.0: %s", r.Status)
	}
}

// What comes behind a PUT that is refused is answered if its body can be passed
// over, and not taken for a request in any case.
func TestPipeliningBehindErrors(t *testing.T) {
	t.Parallel()
	d := start(t, Options{}, 1)
	trick := "GET / HTTP/1.1\r\nHost: x\r\n\r\n" // it looks like a request
	large := strings.Repeat(trick, keepReading/len(trick)*3)
	for _, s := range []struct {
		name, request string
		status        int
		close         bool
	}{
		{"no device", fmt.Sprintf("PUT /dev7/f HTTP/1.1\r\nContent-Length: %d\r\n\r\n%s", len(trick), trick), 404, false},
		{"no device, chunked", fmt.Sprintf("PUT /dev7/f HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n", len(trick), trick), 404, false},
		{"outside", fmt.Sprintf("PUT /f HTTP/1.1\r\nContent-Length: %d\r\n\r\n%s", len(trick), trick), 400, false},
		{"two dots", fmt.Sprintf("PUT /dev1/../f HTTP/1.1\r\nContent-Length: %d\r\n\r\n%s", len(trick), trick), 403, false},
		{"wrong sum", fmt.Sprintf("PUT /dev1/f HTTP/1.1\r\nContent-MD5: %s\r\nContent-Length: %d\r\n\r\n%s", sumOf("x"), len(trick), trick), 400, false},
		{"wrong range", fmt.Sprintf("PUT /dev1/f HTTP/1.1\r\nContent-Range: bytes 1-1/*\r\nContent-Length: %d\r\n\r\n%s", len(trick), trick), 400, true},
		{"too large to pass over", fmt.Sprintf("PUT /dev7/f HTTP/1.1\r\nContent-Length: %d\r\n\r\n%s", len(large), large), 404, true},
		{"bad chunk", "PUT /dev1/f HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n" + trick, 400, true},
		{"bad chunk that nobody wants", "PUT /dev7/f HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n" + trick, 404, true},
		{"another method", fmt.Sprintf("POST /dev1/f HTTP/1.1\r\nContent-Length: %d\r\n\r\n%s", len(trick), trick), 405, true},
	} {
		t.Run(s.name, func(t *testing.T) {
			c := dial(t, d.HTTPAddr())
			go io.WriteString(c, s.request+"HEAD /dev1/next HTTP/1.1\r\n\r\nPUT /dev1/ok HTTP/1.1\r\nContent-Length: 1\r\n\r\nx") // it may close before
			if r := c.receive("PUT"); r.StatusCode != s.status || r.Close != s.close {
				t.Fatalf("%s, Connection: %s", r.Status, r.Header.Get("Connection"))
			}
			if s.close {
				if rest, err := io.ReadAll(c.r); err != nil || len(rest) > 0 {
					t.Errorf("behind the last answer: %q, %v", rest, err)
				}
				return
			}
			if r := c.receive("HEAD"); r.StatusCode != 404 {
				t.Errorf("second request: %s", r.Status)
			}
			if r := c.receive("PUT"); r.StatusCode != 201 {
				t.Errorf("third request: %s", r.Status)
			}
		})
	}
	if got := d.files(); !slices.Equal(got, []string{"dev1/ok"}) {
		t.Errorf("files %v", got)
	}
}

// A header block of just under 64 KiB is taken, one of 64 KiB is not.
func TestHeaderLimit(t *testing.T) {
	t.Parallel()
	d := start(t, Options{}, 1)
	block := func(size int) string {
		const head, tail = "GET / HTTP/1.1\r\nX: ", "\r\n\r\n"
		return head + strings.Repeat("a", size-len(head)-len(tail)) + tail
	}
	c := dial(t, d.HTTPAddr())
	c.raw(block(maxHeader-1) + block(maxHeader-1) + "GET / HTTP/1.1\r\n\r\n" + block(smallInput) + block(smallInput+1))
	for range 5 {
		if r := c.receive("GET"); r.StatusCode != 200 || r.Close {
			t.Errorf("just below the limit: %s", r.Status)
		}
	}
	c.raw(block(maxHeader))
	if r := c.receive("GET"); r.StatusCode != 400 || !r.Close || !c.closed() {
		t.Errorf("at the limit: %s", r.Status)
	}
}

// Paths that lead elsewhere, or nowhere.
func TestHostilePaths(t *testing.T) {
	t.Parallel()
	d := start(t, Options{}, 1)
	for path, want := range map[string][2]int{ // GET, PUT
		"/dev1/..":                             {403, 403},
		"/dev1/%2e%2e/x":                       {403, 403},
		"/dev1/.%2E/x":                         {403, 403},
		"/%2e%2e/x":                            {403, 403},
		"http://h/dev1/../x":                   {403, 403},
		"HTTP://h/../x":                        {403, 403},
		"http://h/dev1/x":                      {404, 201},
		"http://h":                             {200, 400},
		"http://h?q":                           {200, 400},
		"http:///dev1/x":                       {400, 400},
		"https://h/dev1/x":                     {400, 400},
		"dev1/x":                               {400, 400},
		"*":                                    {400, 400},
		"/dev1/x%00y":                          {400, 400},
		"/dev1/x%0d%0aX: y":                    {400, 400},
		"/dev1/x%0d%0aX:y":                     {400, 400},
		"/dev1/%":                              {400, 400},
		"/dev1/a\\b":                           {400, 400},
		"/dev1/%5c..%5cx":                      {403, 403},
		"/dev1/q?../../x":                      {200, 201},
		"/dev0/x":                              {404, 400},
		"/dev00001/x":                          {404, 400},
		"/dev65536/x":                          {404, 404},
		"/dev99999999999999999999/x":           {404, 400},
		"/dev-1/x":                             {404, 400},
		"/dev1x/x":                             {404, 400},
		"/DEV1/x":                              {404, 400},
		"/dev1/9/999/999/" + digits20 + ".fid": {200, 201},
		"/dev1/" + strings.Repeat("a", 256):    {400, 400},
		"/dev1/" + strings.Repeat("a/", 4000):  {400, 400},
		"/dev1/" + strings.Repeat("/", 40000):  {403, 400},
	} {
		if r := d.do("PUT %s HTTP/1.1\nContent-Length: 1\n\nx", path); r.StatusCode != want[1] {
			t.Errorf("PUT %.60s: %s, want %d", path, r.Status, want[1])
		}
		if want[0] == 404 && want[1] == 201 {
			d.do("DELETE %s HTTP/1.1\n\n", path)
		}
		if r := d.do("GET %s HTTP/1.1\n\n", path); r.StatusCode != want[0] {
			t.Errorf("GET %.60s: %s, want %d", path, r.Status, want[0])
		}
	}
	if entries, err := os.ReadDir(d.docroot); err != nil || len(entries) != 1 {
		t.Errorf("the docroot has %v, %v", entries, err)
	}
	if entries, err := os.ReadDir(filepath.Dir(d.docroot)); err != nil || len(entries) > 1 {
		t.Errorf("beside the docroot is %v, %v", entries, err)
	}
}

const digits20 = "99999999999999999999"

// Whatever a header block is, it is read as the standard library reads it, or
// refused by one of the two.
func FuzzParseHead(f *testing.F) {
	for _, s := range []string{
		"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
		"PUT http://x/dev1/%41?q HTTP/1.1\nHost: x\nContent-Length: 5\nExpect: 100-continue\n\n",
		"PUT /dev1/f HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nTrailer: Content-MD5\r\n\r\n",
		"GET / HTTP/1.0\r\nConnection: keep-alive, close\r\nRange: bytes=0-\r\n 1\r\n\r\n",
		"PUT /x HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
		"PUT /x HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
		"GET / HTTP/1.1\r\n Host: x\r\n\r\n", "GET / HTTP/1.1\rHost: x\r\n\r\n", "\x16\x03\x01\n\n",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		n := headEnd(raw, 0)
		if n == 0 {
			return
		}
		for from := range n {
			if got := headEnd(raw[:n-1], from); got != 0 {
				t.Fatalf("an end at %d before the end at %d", got, n)
			}
		}
		block := bytes.Clone(raw[:n])
		h, err := parseHead(block)
		if err != nil {
			if _, ok := err.(*refusal); !ok {
				t.Fatalf("%q: %T", raw, err)
			}
			return
		}
		if h.length < -1 || h.length == 0 && h.expect || h.path == "" && !bytes.Contains(raw, []byte("?")) {
			t.Fatalf("%q: %+v", raw, h)
		}
		std, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(raw[:n])))
		if err != nil {
			return // it takes less
		}
		if std.Method != h.method || std.ContentLength != h.length || std.Method != "CONNECT" && strings.HasPrefix(h.path, "/") && std.URL.Path != h.path && std.URL.Path != "" {
			t.Errorf("%q: %+v, net/http has %s %q, %d", raw, h, std.Method, std.URL.Path, std.ContentLength)
		}
	})
}

// Many requests on one connection, cut into pieces anywhere: each gets exactly
// one answer, in order, the documented one, and what comes behind one that ends
// the connection gets none.
func FuzzPipeline(f *testing.F) {
	trick := "GET / HTTP/1.1\r\n\r\n"
	kinds := []struct {
		request string
		status  int
		close   bool
	}{
		{"GET / HTTP/1.1\r\n\r\n", 200, false},
		{"HEAD / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", 200, false},
		{"\r\nGET /dev1/none HTTP/1.1\nHost: x\n\n", 404, false},
		{fmt.Sprintf("PUT /dev1/f HTTP/1.1\r\nContent-Length: %d\r\n\r\n%s", len(trick), trick), 201, false},
		{fmt.Sprintf("PUT /dev1/g HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n%x ;a\r\n%s\r\n1\r\n\n\r\n0\r\nX: y\r\n z\r\n\r\n", len(trick), trick), 201, false},
		{fmt.Sprintf("PUT /dev9/f HTTP/1.1\r\nContent-Length: %d\r\n\r\n%s", len(trick), trick), 404, false},
		{fmt.Sprintf("PUT /dev9/f HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n", len(trick), trick), 404, false},
		{fmt.Sprintf("PUT /dev1/f HTTP/1.1\r\nContent-MD5: %s\r\nContent-Length: 3\r\n\r\nabc", sumOf("x")), 400, false},
		{"PUT /dev1/r HTTP/1.1\r\nContent-Range: bytes 0-2/*\r\nContent-Length: 3\r\n\r\nGET", 201, false},
		{"PUT /dev1/e HTTP/1.1\r\n\r\n", 201, false},
		{fmt.Sprintf("GET /dev1/none HTTP/1.1\r\nContent-Length: %d\r\n\r\n%s", len(trick), trick), 404, false},
		{"DELETE /dev1/none HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 404, false},
		{"MKCOL /dev1/0 HTTP/1.1\r\n\r\n", 400, false},
		{"GET / HTTP/1.0\r\n\r\n", 200, true},
		{"GET / HTTP/1.1\r\nConnection: close\r\n\r\n", 200, true},
		{"POST / HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc", 405, true},
		{"PUT /dev1/f HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400, true},
		{"PUT /dev1/f HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\nx\r\n0\r\n\r\n", 400, true},
		{"PUT /dev1/f HTTP/1.1\r\nContent-Range: bytes 0-9/*\r\nContent-Length: 3\r\n\r\nabc", 400, true},
		{"nonsense\r\n\r\n", 400, true},
	}
	f.Add([]byte{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}, uint16(7))
	f.Add([]byte{4, 3, 4, 6, 15, 0}, uint16(1))
	f.Add([]byte{3, 13, 3}, uint16(60))
	f.Add([]byte{7, 9, 17, 3}, uint16(1000))
	d := start(f, Options{}, 1)
	f.Fuzz(func(t *testing.T, order []byte, cut uint16) {
		var all strings.Builder
		var want []int
		var methods []string
		ended := false
		for _, o := range order[:min(len(order), 50)] {
			k := kinds[int(o)%len(kinds)]
			all.WriteString(k.request)
			if !ended {
				method, _, _ := strings.Cut(strings.TrimSpace(k.request), " ")
				methods, want, ended = append(methods, method), append(want, k.status), k.close
			}
		}
		c := dial(t, d.HTTPAddr())
		if err := c.SetNoDelay(true); err != nil {
			t.Fatal(err)
		}
		done := make(chan struct{})
		go func() {
			defer close(done)
			defer c.CloseWrite()
			text := all.String()
			for step := int(cut)%2000 + 1; text != ""; {
				n := min(step, len(text))
				if _, err := io.WriteString(c, text[:n]); err != nil {
					return // it was answered for good
				}
				text = text[n:]
			}
		}()
		for i, status := range want {
			if r := c.receive(methods[i]); r.StatusCode != status {
				t.Fatalf("answer %d of %v, cut at %d: %s, want %d", i, order, cut, r.Status, status)
			}
		}
		if rest, err := io.ReadAll(c.r); err != nil || len(rest) > 0 {
			t.Errorf("behind the last answer of %v: %q, %v", order, rest, err)
		}
		<-done
	})
}

// A chunked body is what the standard library takes it for, or one of the two
// refuses it; how it is cut does not matter.
func FuzzChunkedBody(f *testing.F) {
	for _, s := range []string{
		"5\r\nhello\r\n0\r\n\r\n", "5 ;a=b\r\nhello\r\n0;x\r\nContent-MD5: x\r\n y\r\n\r\nrest", "0\r\n\r\n",
		"A\r\n0123456789\r\n3\r\nabc\r\n0\r\nX: y\r\n\r\n", "zz\r\n", "5\nhello\n0\n\n", "ffffffffffffffff\r\n", "5\r\nhelloX",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		read := func(from io.Reader) (string, *body) {
			l := &listener{}
			b := &body{in: newInput(from, new(sync.Pool)), conn: &conn{TCPConn: new(net.TCPConn), from: l}}
			b.reset(&head{length: -1}, nil)
			content, err := io.ReadAll(b)
			if (err == nil) != (b.err == io.EOF) {
				t.Fatalf("%q: %v, but ended with %v", raw, err, b.err)
			}
			return string(content), b
		}
		got, b := read(bytes.NewReader(raw))
		slowly, b2 := read(iotest.OneByteReader(bytes.NewReader(raw)))
		if got != slowly || (b.err == io.EOF) != (b2.err == io.EOF) || !slices.Equal(b.trailer, b2.trailer) {
			t.Fatalf("%q: %q, %v; byte by byte %q, %v", raw, got, b.err, slowly, b2.err)
		}
		if b.err != io.EOF {
			return
		}
		std, err := io.ReadAll(httputil.NewChunkedReader(bytes.NewReader(raw)))
		if err == nil && string(std) != got {
			t.Errorf("%q: %q, net/http has %q", raw, got, std)
		}
	})
}
