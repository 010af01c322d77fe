package peers

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/iotest"
	"time"
)

// scripted is a daemon that answers the requests of each connection with the texts
// of its own list, in order, a byte at a time where slowly says so, and closes it.
// It returns its URL, and how many requests came on each connection when it is over.
func scripted(t *testing.T, slowly bool, conns ...[]string) (url string, closed <-chan int) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	over := make(chan int, len(conns))
	done := make(chan struct{})
	go func() {
		defer close(done)
		for _, answers := range conns {
			c, err := l.Accept()
			if err != nil {
				return // the test is over
			}
			n := 0
			r := bufio.NewReader(c)
			for _, text := range answers {
				if _, err := http.ReadRequest(r); err != nil {
					break
				}
				n++
				var from io.Reader = strings.NewReader(text)
				if slowly {
					from = iotest.OneByteReader(from)
				}
				if _, err := io.Copy(struct{ io.Writer }{c}, struct{ io.Reader }{from}); err != nil {
					break
				}
			}
			c.Close()
			over <- n
		}
	}()
	t.Cleanup(func() {
		l.Close()
		<-done
	})
	return "http://" + l.Addr().String(), over
}

// piece is an answer with a part of "0123456789".
func piece(off, n int) string {
	return fmt.Sprintf("HTTP/1.1 206 Partial Content\r\nContent-range:bytes %d-%d/10\r\nX: y\r\nCONTENT-LENGTH:  %d \r\n\r\n%s", off, off+n-1, n, "0123456789"[off:off+n])
}

func (c *Client) all(t *testing.T, url string, off, n int64) (string, error) {
	t.Helper()
	p, err := c.Get(t.Context(), url, "dev1/x", off, n)
	if err != nil {
		return "", err
	}
	defer p.Close()
	b, err := io.ReadAll(p)
	return string(b), err
}

// TestGetKept: connections are used for as long as they are good, and not longer.
func TestGetKept(t *testing.T) {
	t.Parallel()
	url, closed := scripted(t, false,
		[]string{piece(0, 3), "HTTP/1.1 404 Not Found\r\nContent-Length: 4\r\n\r\ngone", piece(4, 6)},
		[]string{piece(0, 3) + "and more"}, // which answers nothing
		[]string{strings.Replace(piece(5, 5), "X: y", "Connection: foo, Close", 1)},
		[]string{piece(1, 1)})
	c := client(t)
	read := func(off, n int64, want string) {
		t.Helper()
		if got, err := c.all(t, url, off, n); got != want || err != nil {
			t.Errorf("%q, %v, want %q", got, err, want)
		}
	}
	read(0, 3, "012")
	if _, err := c.all(t, url, 1, 1); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	read(4, 6, "456789")
	if n := <-closed; n != 3 {
		t.Errorf("%d requests on a connection that was good for three", n)
	}
	read(0, 3, "012")
	read(5, 5, "56789")
	read(1, 1, "1")
}

// TestGetSlowly: an answer may come in any pieces.
func TestGetSlowly(t *testing.T) {
	t.Parallel()
	url, _ := scripted(t, true, []string{piece(0, 10), piece(3, 3)})
	c := client(t)
	for _, n := range []int64{10, 3} {
		if got, err := c.all(t, url, (10-n)*3/7, n); err != nil || got != "0123456789"[(10-n)*3/7:(10-n)*3/7+n] {
			t.Errorf("%q, %v", got, err)
		}
	}
}

// TestGetStale: a request on a connection that the daemon has closed is sent once
// more, on another.
func TestGetStale(t *testing.T) {
	t.Parallel()
	url, closed := scripted(t, false, []string{piece(0, 3)}, []string{piece(3, 3)}, []string{piece(6, 3)})
	c := client(t)
	for i := range int64(3) {
		if got, err := c.all(t, url, 3*i, 3); got != "0123456789"[3*i:3*i+3] || err != nil {
			t.Errorf("%q, %v", got, err)
		}
		<-closed
	}
}

// TestKept: only so many connections are kept, and only for a time.
func TestKept(t *testing.T) {
	t.Parallel()
	var k kept
	var ends []net.Conn
	for range keptPerDaemon + 1 {
		a, b := net.Pipe()
		ends = append(ends, b)
		k.put(newConn(a, "x"))
	}
	if n := len(k.of["x"]); n != keptPerDaemon {
		t.Errorf("%d are kept", n)
	}
	for _, c := range k.of["x"][:10] {
		c.since = time.Now().Add(-keptFor)
	}
	k.expire()
	if n := len(k.of["x"]); n != keptPerDaemon-10 {
		t.Errorf("%d are kept after a while", n)
	}
	if k.get("y") != nil || k.get("x") == nil || len(k.of["x"]) != keptPerDaemon-11 {
		t.Error("another one")
	}
	k.close()
	a, _ := net.Pipe()
	k.put(newConn(a, "x"))
	if len(k.of) != 0 {
		t.Error("some are kept after the end")
	}
	for i, e := range ends[:10] {
		if _, err := e.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("connection %d: %v", i, err)
		}
	}
}

// TestBadAnswers: what is not an answer as storage daemons give is an error, however
// it comes.
func TestBadAnswers(t *testing.T) {
	t.Parallel()
	for _, text := range []string{
		"", "\r\n\r\n", "HTTP/1.1 200\r\n", "HTTP/1.1 206 \r\nContent-Length: 3\r\n\r\n012", "HTTP/2 206 OK\r\n\r\n", "SSH-2.0-x\r\n\r\n",
		"HTTP/1.1 100 Continue\r\n\r\n" + piece(0, 3), "HTTP/1.1 -06 x\r\n\r\n", "HTTP/1.1 2060 x\r\n\r\n",
		strings.Replace(piece(0, 3), "X:", "Content-Length: 2\r\nX:", 1),
		strings.Replace(piece(0, 3), "X:", "Content-Range: bytes 1-2/3\r\nX:", 1),
		strings.Replace(piece(0, 3), "X:", "Transfer-Encoding: chunked\r\nX:", 1),
		strings.Replace(piece(0, 3), "X:", " folded\r\nX:", 1),
		strings.Replace(piece(0, 3), "LENGTH:  3", "LENGTH: +3", 1),
		strings.Replace(piece(0, 3), "LENGTH:  3", "LENGTH: 99999999999999999999", 1),
		"HTTP/1.1 206 x\r\n" + strings.Repeat("X: y\r\n", maxHead),
	} {
		url, _ := scripted(t, false, []string{text})
		if got, err := client(t).all(t, url, 0, 3); err == nil || got != "" {
			t.Errorf("%.60q is read as %q, %v", text, got, err)
		}
	}
	for _, url := range []string{"", "x", "https://127.0.0.1:1", "http://127.0.0.1:1\r\nX: y", "http://127.0.0.1:1/ x"} {
		if _, err := client(t).all(t, url, 0, 1); err == nil {
			t.Errorf("%q can be asked", url)
		}
	}
}

func FuzzParseHead(f *testing.F) {
	f.Add(piece(0, 3)[:strings.Index(piece(0, 3), "\r\n\r\n")+4])
	f.Add("HTTP/1.0 404 Not Found\r\nConnection: close\r\n\r\n")
	f.Fuzz(func(t *testing.T, text string) {
		h, err := parseHead(text)
		if err != nil {
			return
		}
		if h.status < 200 || h.status > 999 || h.length < -1 || strings.ContainsAny(h.contentRange, "\r\n") {
			t.Errorf("%q is read as %+v", text, h)
		}
		// Where both understand an answer, it says the same to both.
		res, err := http.ReadResponse(bufio.NewReader(strings.NewReader(text)), nil)
		if err != nil || !strings.HasSuffix(text, "\r\n\r\n") {
			return
		}
		defer res.Body.Close()
		if len(res.TransferEncoding) > 0 || res.StatusCode != h.status || h.length >= 0 && res.ContentLength != h.length && res.StatusCode != 204 && res.StatusCode != 304 {
			t.Errorf("%q is read as %+v, and as %+v", text, h, res)
		}
	})
}
