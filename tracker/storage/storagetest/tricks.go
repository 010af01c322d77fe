package storagetest

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
)

// Trick is a way to misbehave over HTTP.
type Trick struct {
	Name string
	// Play answers in the daemon's place, or returns false.
	Play func(*Exchange) bool
	// Lies says that the daemon claims over HTTP what is not so, and nobody
	// could know better from the one answer.
	Lies bool
}

// Status answers everything with a status.
func Status(code int) func(*Exchange) bool {
	return func(x *Exchange) bool {
		x.Body()
		x.Send(Answer{Status: code})
		return true
	}
}

// Silence reads requests and never answers.
func Silence(x *Exchange) bool {
	x.Body()
	x.Wait()
	return true
}

// dribble sends b one byte at a time, as long as the client and d are there.
func (x *Exchange) dribble(b []byte, every time.Duration) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for i := range b {
		if !x.Write(b[i : i+1]) {
			return
		}
		select {
		case <-tick.C:
		case <-x.d.done:
			x.Close()
			return
		}
	}
}

// forever sends b again and again.
func (x *Exchange) forever(b []byte) {
	for x.Write(b) {
	}
}

// raw sends what make gives, and closes.
func raw(send func(x *Exchange, proper []byte) []byte) func(*Exchange) bool {
	return func(x *Exchange) bool {
		x.Write(send(x, x.Bytes(x.Answer())))
		x.Close()
		return true
	}
}

// text sends this whatever was asked, and closes.
func text(s string) func(*Exchange) bool {
	return func(x *Exchange) bool {
		x.Body()
		x.Write([]byte(s))
		x.Close()
		return true
	}
}

// headEnd is where the body of an answer begins.
func headEnd(b []byte) int { return bytes.Index(b, []byte("\r\n\r\n")) + 4 }

// Tricks are all ways to misbehave that are known here. slow is the time
// between two bytes of those who dribble: less than what a client waits for the
// next piece.
func Tricks(slow time.Duration) []Trick {
	return []Trick{
		{Name: "closes before it reads", Play: func(x *Exchange) bool { x.Close(); return true }},
		{Name: "closes before the answer", Play: raw(func(*Exchange, []byte) []byte { return nil })},
		{Name: "closes kept connections before the answer", Play: func(x *Exchange) bool {
			if x.N > 1 {
				x.Close()
				return true
			}
			return false
		}},
		{Name: "closes in the status line", Play: raw(func(_ *Exchange, b []byte) []byte { return b[:7] })},
		{Name: "closes in the header", Play: raw(func(_ *Exchange, b []byte) []byte { return b[:headEnd(b)-6] })},
		{Name: "closes in the body", Play: raw(func(_ *Exchange, b []byte) []byte { return b[:headEnd(b)+(len(b)-headEnd(b))/2] })},
		{Name: "closes after the answer without saying so", Play: raw(func(_ *Exchange, b []byte) []byte { return b })},
		{Name: "closes after every third answer", Play: func(x *Exchange) bool {
			if x.N%3 == 0 {
				x.Send(x.Answer())
				x.Close()
				return true
			}
			return false
		}},
		{Name: "never answers", Play: Silence},
		{Name: "never reads", Play: func(x *Exchange) bool { <-x.d.done; x.Close(); return true }},
		{Name: "header dribbles", Play: func(x *Exchange) bool {
			x.dribble(x.Bytes(x.Answer()), slow)
			return true
		}},
		{Name: "body stalls", Play: func(x *Exchange) bool {
			b := x.Bytes(x.Answer())
			end := headEnd(b)
			if x.Write(b[:end+(len(b)-end)/2]) && len(b) > end {
				x.Wait()
			}
			return true
		}},
		{Name: "body dribbles", Play: func(x *Exchange) bool {
			b := x.Bytes(x.Answer())
			if x.Write(b[:headEnd(b)]) {
				x.dribble(b[headEnd(b):], slow)
			}
			return true
		}},
		{Name: "an error's body dribbles", Play: func(x *Exchange) bool {
			x.Body()
			x.Write([]byte("HTTP/1.1 503 Busy\r\nContent-Length: 4000\r\n\r\n"))
			x.dribble(bytes.Repeat([]byte{'.'}, 4000), slow)
			return true
		}},
		{Name: "an endless body of an error dribbles", Play: func(x *Exchange) bool {
			x.Body()
			x.Close()
			x.Write([]byte("HTTP/1.1 503 Busy\r\n\r\n"))
			x.close = false
			x.dribble(bytes.Repeat([]byte{'.'}, 1<<20), slow)
			x.Close()
			return true
		}},
		{Name: "half an answer", Play: raw(func(_ *Exchange, b []byte) []byte { return b[:len(b)/2] })},
		{Name: "Content-Length too long", Lies: true, Play: func(x *Exchange) bool {
			a := x.Answer()
			a.Length += 5
			x.Send(a)
			if x.Method != http.MethodHead {
				x.Close()
			}
			return true
		}},
		{Name: "Content-Length too short", Lies: true, Play: func(x *Exchange) bool {
			a := x.Answer()
			if a.Length > 5 {
				a.Length -= 5
			}
			x.Send(a)
			return true
		}},
		{Name: "Content-Length is no number", Play: raw(func(_ *Exchange, b []byte) []byte {
			return bytes.Replace(b, []byte("Content-Length: "), []byte("Content-Length: x"), 1)
		})},
		{Name: "two Content-Lengths", Play: raw(func(_ *Exchange, b []byte) []byte {
			return bytes.Replace(b, []byte("Content-Length: "), []byte("Content-Length: 3\r\nContent-Length: 4\r\nX: "), 1)
		})},
		{Name: "no Content-Length", Play: func(x *Exchange) bool {
			a := x.Answer()
			a.Length = -1
			x.Send(a)
			return true
		}},
		{Name: "no Content-Length and cut", Lies: true, Play: func(x *Exchange) bool {
			a := x.Answer()
			a.Length, a.Body = -1, a.Body[:len(a.Body)/2]
			x.Close()
			x.Send(a)
			return true
		}},
		{Name: "chunked", Play: func(x *Exchange) bool {
			a := x.Answer()
			if x.Method != http.MethodGet {
				x.Send(a)
				return true
			}
			x.Write(fmt.Appendf(nil, "HTTP/1.1 %d OK\r\nTransfer-Encoding: chunked\r\n\r\n", a.Status))
			for len(a.Body) > 0 {
				n := min(len(a.Body), 7)
				x.Write(fmt.Appendf(nil, "%x\r\n%s\r\n", n, a.Body[:n]))
				a.Body = a.Body[n:]
			}
			x.Write([]byte("0\r\n\r\n"))
			return true
		}},
		{Name: "chunked and cut", Play: func(x *Exchange) bool {
			if x.Method != http.MethodGet {
				return false
			}
			a := x.Answer()
			x.Close()
			x.Write(fmt.Appendf(nil, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n", len(a.Body)/2, a.Body[:len(a.Body)/2]))
			return true
		}},
		{Name: "500", Play: Status(500)},
		{Name: "503 for everything but usage", Play: func(x *Exchange) bool {
			return !strings.HasSuffix(x.URL.Path, "/usage") && Status(503)(x)
		}},
		{Name: "507", Play: Status(507)},
		{Name: "401", Play: Status(401)},
		{Name: "404 for everything", Lies: true, Play: Status(404)},
		{Name: "redirects", Play: func(x *Exchange) bool {
			x.Body()
			x.Send(Answer{Status: 302, Header: []string{"Location: " + x.d.URL("/dev1/usage")}})
			return true
		}},
		{Name: "answers 304", Play: Status(304)},
		{Name: "switches protocols", Play: text("HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n")},
		{Name: "continues for ever", Play: func(x *Exchange) bool {
			x.Body()
			x.forever([]byte("HTTP/1.1 100 Continue\r\n\r\n"))
			return true
		}},
		{Name: "continues, then answers", Play: func(x *Exchange) bool {
			x.Write([]byte("HTTP/1.1 100 Continue\r\n\r\n"))
			return false
		}},
		{Name: "garbage", Play: text("\x00\x01\x02 lorem ipsum\r\ndolor\r\n\r\n")},
		{Name: "another protocol", Play: text("220 mail.example.org ESMTP\r\n")},
		{Name: "huge header", Play: func(x *Exchange) bool {
			x.Body()
			x.Close()
			x.Write([]byte("HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", 1<<20) + "\r\nContent-Length: 0\r\n\r\n"))
			return true
		}},
		{Name: "endless header", Play: func(x *Exchange) bool {
			x.Body()
			x.Write([]byte("HTTP/1.1 200 OK\r\n"))
			x.forever([]byte("X-Header: and another one\r\n"))
			return true
		}},
		{Name: "endless body", Lies: true, Play: func(x *Exchange) bool {
			a := x.Answer()
			a.Length = -1
			x.Send(a)
			x.close = false
			if x.Method == http.MethodGet {
				x.forever(bytes.Repeat([]byte{'.'}, 4096))
			}
			x.Close()
			return true
		}},
		{Name: "a body behind every HEAD", Play: func(x *Exchange) bool {
			a := x.Answer()
			if x.Method == http.MethodHead && a.Status == 200 {
				a.Body = bytes.Repeat([]byte{'b'}, a.Length)
			}
			x.Send(a)
			return true
		}},
		{Name: "answers twice", Play: func(x *Exchange) bool {
			b := x.Bytes(x.Answer())
			x.Write(append(bytes.Clone(b), b...))
			return true
		}},
		{Name: "answers a PUT before it is there", Play: func(x *Exchange) bool {
			if x.Method != http.MethodPut {
				return false
			}
			x.Write([]byte("HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n"))
			x.Close()
			return true
		}, Lies: true},
		{Name: "stores nothing", Lies: true, Play: func(x *Exchange) bool {
			if x.Method != http.MethodPut {
				return false
			}
			x.Body()
			x.Send(Answer{Status: 201})
			return true
		}},
		{Name: "stores half", Lies: true, Play: func(x *Exchange) bool {
			return x.storeOther(func(b []byte) []byte { return b[:len(b)/2] })
		}},
		{Name: "stores other bytes", Lies: true, Play: func(x *Exchange) bool {
			return x.storeOther(func(b []byte) []byte {
				b = bytes.Clone(b)
				if len(b) > 0 {
					b[len(b)/2] ^= 0x40
				}
				return b
			})
		}},
		{Name: "serves other bytes", Lies: true, Play: func(x *Exchange) bool {
			a := x.Answer()
			if len(a.Body) > 0 {
				a.Body = bytes.Clone(a.Body)
				a.Body[len(a.Body)/2] ^= 0x40
			}
			x.Send(a)
			return true
		}},
		{Name: "stops reading in a body", Play: func(x *Exchange) bool {
			if x.ContentLength < 1 {
				return false
			}
			_, _ = io.CopyN(io.Discard, x.Request.Body, x.ContentLength/2)
			<-x.d.done
			x.Close()
			return true
		}},
	}
}

// storeOther stores something else than what is put, and says that all is well.
func (x *Exchange) storeOther(other func([]byte) []byte) bool {
	if x.Method != http.MethodPut {
		return false
	}
	x.Send(x.d.store(x.URL.Path, other(x.Body()), ""))
	return true
}
