package tracker_test

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/rs/zerolog"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/tracker"
)

// benchClients are the numbers of clients that benchmarks run with.
var benchClients = []int{1, 16, 64}

// asker is a connection that asks without any ceremony.
type asker struct {
	conn net.Conn
	r    *bufio.Reader
	out  []byte
}

func (e *env) asker(b *testing.B) *asker {
	b.Helper()
	conn, err := net.Dial("tcp", e.tracker.Addrs()[0].String())
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { conn.Close() })
	return &asker{conn: conn, r: bufio.NewReader(conn)}
}

var errRefused = errors.New("refused")

func (a *asker) ask(line []byte) ([]byte, error) {
	if _, err := a.conn.Write(line); err != nil {
		return nil, err
	}
	reply, err := a.r.ReadSlice('\n')
	if err == nil && !bytes.HasPrefix(reply, []byte("OK ")) {
		err = fmt.Errorf("%s: %w: %s", line, errRefused, reply)
	}
	return reply, err
}

// clients runs do in n clients until the benchmark has had enough.
func (e *env) clients(b *testing.B, n int, do func(a *asker, i int64) error) {
	b.Helper()
	var next atomic.Int64
	askers := make([]*asker, n)
	for i := range askers {
		askers[i] = e.asker(b)
	}
	b.ReportAllocs()
	b.ResetTimer()
	ended := make(chan error, n)
	for _, a := range askers {
		go func() {
			for i := next.Add(1); i <= int64(b.N); i = next.Add(1) {
				if err := do(a, i); err != nil {
					ended <- err
					return
				}
			}
			ended <- nil
		}()
	}
	for range askers {
		if err := <-ended; err != nil {
			b.Error(err)
		}
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "req/s")
}

func quiet(o *tracker.Options) { o.Log = zerolog.Nop(); o.Watchers = tracker.NewWatchers() }

func BenchmarkNoop(b *testing.B) {
	e := start(b, quiet)
	for _, n := range benchClients {
		b.Run(fmt.Sprintf("clients=%d", n), func(b *testing.B) {
			e.clients(b, n, func(a *asker, _ int64) error {
				_, err := a.ask([]byte("noop\r\n"))
				return err
			})
		})
	}
}

func BenchmarkGetPaths(b *testing.B) {
	e := start(b, quiet)
	c := e.dial()
	for i := range 100 {
		c.store(fmt.Sprintf("key-%d", i), "hello", "")
	}
	for _, verify := range []string{"noverify=1", "noverify=0", "noverify=1&stale=3600"} {
		for _, n := range benchClients {
			b.Run(fmt.Sprintf("%s/clients=%d", verify, n), func(b *testing.B) {
				e.clients(b, n, func(a *asker, i int64) error {
					a.out = fmt.Appendf(a.out[:0], "get_paths domain=toast&key=key-%d&%s\r\n", i%100, verify)
					_, err := a.ask(a.out)
					return err
				})
			})
		}
	}
}

// BenchmarkCreate opens and closes uploads whose bytes are there already: what
// it costs is the tracker, its database and the look at the size.
func BenchmarkCreate(b *testing.B) {
	e := start(b, quiet)
	for _, h := range e.farm.hosts {
		h.anything.Store(true)
	}
	for _, n := range benchClients {
		b.Run(fmt.Sprintf("clients=%d", n), func(b *testing.B) {
			e.clients(b, n, func(a *asker, i int64) error {
				a.out = fmt.Appendf(a.out[:0], "create_open domain=toast&key=%d-%d&multi_dest=1\r\n", n, i)
				reply, err := a.ask(a.out)
				if err != nil {
					return err
				}
				args, err := protocol.ParseReply(strings.TrimRight(string(reply), "\r\n"))
				if err != nil {
					return err
				}
				a.out = fmt.Appendf(a.out[:0], "create_close domain=toast&key=%d-%d&fid=%s&devid=%s&path=%s&size=5\r\n",
					n, i, args.Get("fid"), args.Get("devid_1"), args.Get("path_1"))
				_, err = a.ask(a.out)
				return err
			})
		})
	}
}

// BenchmarkPipelined sends many requests in one go.
func BenchmarkPipelined(b *testing.B) {
	e := start(b, quiet)
	a := e.asker(b)
	const each = 100
	batch := []byte(strings.Repeat("noop\r\n", each))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := a.conn.Write(batch); err != nil {
			b.Fatal(err)
		}
		if _, err := io.CopyN(io.Discard, a.r, each*int64(len("OK \r\n"))); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.N)*each/b.Elapsed().Seconds(), "req/s")
}
