package storage

import (
	"bytes"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/mogile/mogile/protocol"
)

var testKey = []byte("0123456789abcdefghijklmnopqrstuvwxyzABCDEFG")

// takesOrders makes d fetch what it is ordered to, as a storage daemon of ours
// does; then may change the answer, a nil one being no answer.
func takesOrders(t *testing.T, d *daemon, then func(o protocol.CopyOrder, w io.Writer, line []byte) []byte) (orders *atomic.Int64) {
	orders = new(atomic.Int64)
	d.answer(func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodPost {
			return false
		}
		orders.Add(1)
		refuse := func(err error) bool {
			e, _ := errors.AsType[*protocol.Error](err)
			w.WriteHeader(http.StatusForbidden)
			_, _ = w.Write(protocol.AnswerLine{Kind: protocol.AnswerErr, Err: e}.Append(nil))
			return true
		}
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		signed, err := protocol.ParseOrder(body)
		if err == nil {
			err = signed.Verify([][]byte{testKey}, time.Now())
		}
		if err != nil {
			return refuse(err)
		}
		o, err := protocol.ParseCopyOrder(signed.Args)
		if err != nil || r.URL.Path != protocol.OrderPath+protocol.VerbCopy || r.Header.Get("Content-Type") != protocol.OrderType {
			t.Errorf("%s: %+v, %v", r.URL.Path, o, err)
			return refuse(protocol.ErrBadOrder)
		}
		answer := func(l protocol.AnswerLine) bool {
			line := l.Append(nil)
			if then != nil {
				line = then(o, w, line)
			}
			_, _ = w.Write(line)
			return true
		}
		res, err := http.Get(o.From)
		if err != nil {
			return answer(protocol.AnswerLine{Kind: protocol.AnswerErr, Err: protocol.ErrCopyUnreachable})
		}
		defer res.Body.Close()
		content, err := io.ReadAll(res.Body)
		if err != nil || res.StatusCode != 200 || int64(len(content)) != o.Length {
			return answer(protocol.AnswerLine{Kind: protocol.AnswerErr, Err: protocol.ErrCopySource})
		}
		rep := protocol.CopyReport{Length: o.Length, CRC32C: crc32.Checksum(content, castagnoli())}
		typ := o.HashType
		if !o.Want.IsZero() {
			typ = o.Want.Type
		}
		if h := typ.New(); h != nil {
			h.Write(content)
			rep.Digest = protocol.Checksum{Type: typ, Sum: h.Sum(nil)}
		}
		if !o.Want.IsZero() && !rep.Digest.Equal(o.Want) {
			return answer(protocol.AnswerLine{Kind: protocol.AnswerErr, Err: protocol.ErrCopySource})
		}
		d.put("/"+o.FID.Path(o.Dev), content)
		return answer(protocol.AnswerLine{Kind: protocol.AnswerOK, Fields: rep.Args()})
	})
	return orders
}

func TestCopyDirect(t *testing.T) {
	t.Parallel()
	body := pattern(300_000)
	md5, sha := sumOf(protocol.HashMD5, body), sumOf(protocol.HashSHA1, body)
	for _, c := range []struct {
		name string
		cp   Copy
		sum  protocol.Checksum
	}{
		{"plain", Copy{}, protocol.Checksum{}},
		{"class hashes", Copy{HashType: protocol.HashMD5}, md5},
		{"row", Copy{Want: sha, HashType: protocol.HashMD5}, sha},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			src, dst := startDaemon(t), startDaemon(t)
			takesOrders(t, dst, func(_ protocol.CopyOrder, w io.Writer, line []byte) []byte {
				_, _ = io.WriteString(w, "PROGRESS done=1000\nPROGRESS done=2000\n")
				return line
			})
			cl := client(t, Options{Key: testKey})
			progress := 0
			c.cp.From, c.cp.To, c.cp.Length = src.put(path1, body), dst.URL+path2, int64(len(body))
			c.cp.Progress = func() { progress++ }
			sum, err := cl.CopyDirect(t.Context(), c.cp)
			if err != nil || !sum.Equal(c.sum) {
				t.Fatalf("%v, %v", sum, err)
			}
			if got, ok := dst.file(path2); !ok || !bytes.Equal(got, body) {
				t.Errorf("the copy has %d bytes, %v", len(got), ok)
			}
			if progress != 2 {
				t.Errorf("%d times told of progress", progress)
			}
			if n := src.count("GET"); n != 1 || dst.count("PUT") != 0 || dst.count("GET") != 0 {
				t.Errorf("%d GET at the source, %d PUT and %d GET at the destination", n, dst.count("PUT"), dst.count("GET"))
			}
		})
	}
}

func TestCopyDirectFails(t *testing.T) {
	t.Parallel()
	body := pattern(1000)
	answer := func(line string) func(protocol.CopyOrder, io.Writer, []byte) []byte {
		return func(protocol.CopyOrder, io.Writer, []byte) []byte { return []byte(line) }
	}
	for _, c := range []struct {
		name   string
		cp     Copy
		src    func(http.ResponseWriter, *http.Request) bool
		then   func(protocol.CopyOrder, io.Writer, []byte) []byte
		side   Side
		landed bool
		err    error
	}{
		{name: "source missing", src: status("GET", 404), side: SourceError, err: protocol.ErrCopySource},
		{name: "source of another length", cp: Copy{Length: 999}, side: SourceError},
		{name: "source corrupt", cp: Copy{Want: sumOf(protocol.HashMD5, hello)}, side: SourceError},
		{name: "disk full", then: answer("ERR dest_error no+space \n"), side: DestError, err: protocol.ErrCopyDest},
		{name: "landed perhaps", then: answer("ERR dest_error flush landed=1\n"), side: DestError, landed: true},
		{name: "busy", then: answer("ERR busy - \n"), side: DestError, err: protocol.ErrCopyBusy},
		{name: "cut off", then: answer("PROGRESS done=1\n"), side: DestError, landed: true, err: ErrUnreachable},
		{name: "not an answer", then: answer("<html>\n"), side: DestError, landed: true, err: ErrUnreachable},
		{name: "endless line", then: answer(strings.Repeat("x", 100_000)), side: DestError, landed: true},
		{name: "report of another length", then: answer("OK crc32c=00000000&length=999\n"), side: DestError, landed: true},
		{name: "report without length", then: answer("OK crc32c=00000000\n"), side: DestError, landed: true, err: protocol.ErrBadReply},
		{name: "report without digest", cp: Copy{HashType: protocol.HashMD5}, then: answer("OK crc32c=00000000&length=1000\n"), side: DestError, landed: true},
		{name: "report of another digest", cp: Copy{Want: sumOf(protocol.HashMD5, body)},
			then: answer("OK crc32c=00000000&length=1000&sum=" + sumOf(protocol.HashMD5, hello).String() + "\n"), side: DestError, landed: true},
		{name: "silence", src: hang("GET"), side: DestError, landed: true, err: ErrUnreachable},
		{name: "talks and does nothing", then: func(_ protocol.CopyOrder, w io.Writer, _ []byte) []byte {
			tick := time.NewTicker(10 * time.Millisecond)
			defer tick.Stop()
			for {
				if _, err := io.WriteString(w, "PROGRESS done=7\n"); err != nil {
					return nil
				}
				w.(http.Flusher).Flush()
				<-tick.C
			}
		}, side: DestError, landed: true, err: ErrUnreachable},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			src, dst := startDaemon(t), startDaemon(t)
			takesOrders(t, dst, c.then)
			t.Cleanup(func() { src.CloseClientConnections(); dst.CloseClientConnections() })
			cl := client(t, Options{Key: testKey, CopyTimeout: 100 * time.Millisecond})
			c.cp.From, c.cp.To = src.put(path1, body), dst.URL+path2
			if c.cp.Length == 0 {
				c.cp.Length = int64(len(body))
			}
			src.answer(c.src)
			_, err := cl.CopyDirect(t.Context(), c.cp)
			e, ok := errors.AsType[*CopyError](err)
			if !ok {
				t.Fatalf("error %v", err)
			}
			if e.Side != c.side || e.Landed != c.landed || c.err != nil && !errors.Is(err, c.err) {
				t.Errorf("%v, landed %v", err, e.Landed)
			}
		})
	}
}

func TestNotDirect(t *testing.T) {
	t.Parallel()
	body := pattern(100)
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody := closed.Addr().String()
	if err := closed.Close(); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		key  []byte
		dst  func(t *testing.T, d *daemon)
		from string
		log  string
		all  bool // all sources are affected
	}{
		{name: "another key", key: append([]byte("x"), testKey...), dst: func(t *testing.T, d *daemon) { takesOrders(t, d, nil) }, log: "takes no orders", all: true},
		{name: "no verbs", key: testKey, dst: func(*testing.T, *daemon) {}, log: "takes no orders", all: true},
		{name: "nginx", key: testKey, dst: func(_ *testing.T, d *daemon) { d.answer(status("POST", 405)) }, log: "takes no orders", all: true},
		{name: "no way to the source", key: testKey, dst: func(t *testing.T, d *daemon) { takesOrders(t, d, nil) }, from: "http://" + nobody + path1, log: "does not reach"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			src, dst := startDaemon(t), startDaemon(t)
			c.dst(t, dst)
			var log bytes.Buffer
			now := time.Now()
			cl := client(t, Options{Key: c.key, Log: zerolog.New(&log), Now: func() time.Time { return now }})
			good := src.put(path1, body)
			if c.from == "" {
				c.from = good
			}
			cp := Copy{From: c.from, To: dst.URL + path2, Length: int64(len(body))}
			for range 3 {
				if _, err := cl.CopyDirect(t.Context(), cp); !errors.Is(err, ErrNotDirect) {
					t.Fatalf("error %v", err)
				}
			}
			if n := dst.count("POST"); n != 1 || strings.Count(log.String(), c.log) != 1 {
				t.Errorf("%d orders, log: %s", n, log.String())
			}
			cp.From = good
			if _, err := cl.CopyDirect(t.Context(), cp); errors.Is(err, ErrNotDirect) != c.all {
				t.Errorf("another source: %v", err)
			}
			now = now.Add(notDirectFor)
			cp.From = c.from
			before := dst.count("POST")
			if _, err := cl.CopyDirect(t.Context(), cp); !errors.Is(err, ErrNotDirect) || dst.count("POST") != before+1 {
				t.Errorf("after a while: %v", err)
			}
		})
	}
	t.Run("no key", func(t *testing.T) {
		t.Parallel()
		cl := client(t, Options{})
		cp := Copy{From: "http://192.0.2.1:7500" + path1, To: "http://192.0.2.2:7500" + path2, Length: 1}
		if _, err := cl.CopyDirect(t.Context(), cp); !errors.Is(err, ErrNotDirect) {
			t.Errorf("error %v", err)
		}
	})
}

// TestCopyNoticesARottenSource streams from a daemon that tells the sum it has
// stored: content of the right length that does not have it is not copied.
func TestCopyNoticesARottenSource(t *testing.T) {
	t.Parallel()
	body := pattern(100_000)
	for _, c := range []struct {
		name, sum string
		ok        bool
	}{
		{"right", fmt.Sprintf("%d %08x", len(body), crc32.Checksum(body, castagnoli())), true},
		{"wrong", fmt.Sprintf("%d %08x", len(body), crc32.Checksum(body, castagnoli())+1), false},
		{"of another length", fmt.Sprintf("%d %08x", len(body)+1, 7), true},
		{"nonsense", "what", true},
		{"none", "", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			src, dst := startDaemon(t), startDaemon(t)
			src.answer(func(w http.ResponseWriter, r *http.Request) bool {
				if r.Header.Get("Mogile-Want") == "sum" && c.sum != "" {
					w.Header().Set("Mogile-Sum", c.sum)
				}
				return false
			})
			_, err := client(t, Options{}).Copy(t.Context(), Copy{From: src.put(path1, body), To: dst.URL + path2, Length: int64(len(body))})
			if _, landed := dst.file(path2); (err == nil) != c.ok || landed != c.ok {
				t.Errorf("landed %v, %v", landed, err)
			}
			if e, isCopy := errors.AsType[*CopyError](err); !c.ok && (!isCopy || e.Side != SourceError || !errors.Is(err, errRotten)) {
				t.Errorf("error %v", err)
			}
		})
	}
}
