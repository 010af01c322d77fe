package tools

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"math"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/sync/errgroup"

	"github.com/mogile/mogile/protocol"
)

func benchCommand() *cli.Command {
	flags := []cli.Flag{
		&cli.IntFlag{Name: "clients", Aliases: []string{"c"}, Usage: "`N` clients at once", Value: 16},
		&cli.DurationFlag{Name: "duration", Usage: "`TIME` to go on", Value: 10 * time.Second},
		&cli.Int64Flag{Name: "count", Aliases: []string{"n"}, Usage: "`N` operations, instead of a duration"},
		&cli.StringFlag{Name: "size", Usage: "`BYTES` of each file, such as 64K or 8M", Value: "64K"},
		&cli.IntFlag{Name: "keys", Usage: "`N` files to read from", Value: 100},
		&cli.StringFlag{Name: "class", Usage: "`CLASS` of the files"},
	}
	sub := func(name, usage string, prepared bool, op func(*bench, *benchClient) (int64, error)) *cli.Command {
		return command(name, usage, "", "mogtool --domain test bench "+name+" --clients 64 --duration 30s", need{0, 0, true}, flags,
			func(s *session, _ []string) error { return runBench(s, name, prepared, op) })
	}
	return group("bench", "measure a cluster, with files of its own that it deletes afterwards",
		`mogtool --domain test bench put --clients 64 --duration 30s --size 64K
mogtool --domain test bench get_paths -n 100000`,
		sub("put", "store files", false, benchPut),
		sub("get", "find and read files", true, benchGet),
		sub("open-close", "create_open, and a create_close that gives the upload up: trackers alone", false, benchOpenClose),
		sub("get_paths", "find files: trackers alone", true, benchPaths),
		sub("GET", "read known paths: storage daemons alone", true, benchHTTP),
	)
}

// bench is one measurement.
type bench struct {
	s       *session
	prefix  string // of its keys
	class   string
	content []byte
	keys    []string // stored beforehand
	paths   []string // of those
	web     *http.Client
	next    atomic.Int64 // number of the next operation
	made    atomic.Int64 // highest number of a key stored by put, +1
}

// benchClient is one of the clients, with connections of its own.
type benchClient struct {
	client *protocol.Client
	rng    *mathrand.Rand
	seen   histogram
	ops    int64
	bytes  int64
	errs   int64
	first  error
}

func benchPut(b *bench, c *benchClient) (int64, error) {
	key := b.prefix + strconv.FormatInt(b.made.Add(1), 10)
	_, err := c.client.Create(b.s.ctx(), b.s.domain, key, protocol.CreateOptions{Class: b.class}, bytes.NewReader(b.content))
	return int64(len(b.content)), err
}

func benchGet(b *bench, c *benchClient) (int64, error) {
	r, err := c.client.Open(b.s.ctx(), b.s.domain, b.keys[c.rng.IntN(len(b.keys))])
	if err != nil {
		return 0, err
	}
	defer r.Close()
	return io.Copy(io.Discard, r)
}

func benchOpenClose(b *bench, c *benchClient) (int64, error) {
	args := protocol.Args{{Name: "domain", Value: b.s.domain}, {Name: "key", Value: b.prefix + "open"}, {Name: "class", Value: b.class}}
	reply, err := c.client.Do(b.s.ctx(), "create_open", args)
	if err != nil {
		return 0, err
	}
	_, err = c.client.Do(b.s.ctx(), "create_close", protocol.Args{{Name: "domain", Value: b.s.domain}, {Name: "key", Value: ""},
		{Name: "fid", Value: reply.Get("fid")}, {Name: "devid", Value: reply.Get("devid")}, {Name: "path", Value: reply.Get("path")}})
	return 0, err
}

func benchPaths(b *bench, c *benchClient) (int64, error) {
	_, err := c.client.Paths(b.s.ctx(), b.s.domain, b.keys[c.rng.IntN(len(b.keys))], protocol.PathsOptions{NoVerify: true})
	return 0, err
}

func benchHTTP(b *bench, c *benchClient) (int64, error) {
	req, err := http.NewRequestWithContext(b.s.ctx(), http.MethodGet, b.paths[c.rng.IntN(len(b.paths))], nil)
	if err != nil {
		return 0, err
	}
	resp, err := b.web.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	n, err := io.Copy(io.Discard, resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("GET %s: %w", req.URL, &protocol.StatusError{Code: resp.StatusCode})
	}
	return n, err
}

// benchResult is what a measurement says.
type benchResult struct {
	Op      string  `json:"op"`
	Clients int     `json:"clients"`
	Ops     int64   `json:"ops"`
	Errors  int64   `json:"errors"`
	Seconds float64 `json:"seconds"`
	OpsRate float64 `json:"ops_per_second"`
	MBRate  float64 `json:"mb_per_second"` // 10^6 bytes
	P50     float64 `json:"p50_ms"`
	P99     float64 `json:"p99_ms"`
	Max     float64 `json:"max_ms"`
}

func runBench(s *session, name string, prepared bool, op func(*bench, *benchClient) (int64, error)) (err error) {
	length, err := parseSize(s.String("size"))
	if err != nil {
		return usageError(s.Context, "bench: --size: %w", err)
	}
	n, count, keys := s.Int("clients"), s.Int64("count"), s.Int("keys")
	if n < 1 || n > 10_000 || count < 0 || keys < 1 || s.Duration("duration") <= 0 {
		return usageError(s.Context, "bench: --clients (at most 10000), --count, --keys and --duration must be above 0")
	}
	b := &bench{s: s, prefix: "mogtool-bench/" + rand.Text() + "/", class: s.String("class"), content: make([]byte, length)}
	_, _ = rand.Read(b.content) // never fails
	transport := &http.Transport{
		DialContext:         (&net.Dialer{Timeout: 2 * time.Second}).DialContext,
		MaxIdleConnsPerHost: n,
		DisableCompression:  true,
	}
	defer transport.CloseIdleConnections()
	b.web = &http.Client{Transport: transport, Timeout: 2 * time.Minute}

	clients := make([]*benchClient, n)
	for i := range clients {
		clients[i] = &benchClient{rng: mathrand.New(mathrand.NewPCG(uint64(i), uint64(time.Now().UnixNano())))}
		if clients[i].client, err = newClient(s.Context, 2); err != nil {
			return err
		}
		defer clients[i].client.Close()
	}
	defer func() { err = errors.Join(err, b.clean(clients)) }()
	if prepared {
		if err := b.prepare(clients, keys); err != nil {
			return err
		}
	}
	took, err := b.run(clients, count, s.Duration("duration"), op)
	if err != nil {
		return err
	}
	res, first := summary(name, clients, took)
	if err := b.report(res); err != nil {
		return err
	}
	if first != nil {
		return fmt.Errorf("bench %s: %d of %d operations failed; the first: %w", name, res.Errors, res.Ops+res.Errors, first)
	}
	return nil
}

// prepare stores the files to read from.
func (b *bench) prepare(clients []*benchClient, keys int) error {
	p := b.s.out.newProgress("storing files", int64(keys), false)
	defer p.end()
	b.keys, b.paths = make([]string, keys), make([]string, keys)
	var mu sync.Mutex // guards p
	var g errgroup.Group
	var next atomic.Int64
	for _, c := range clients[:min(len(clients), 16)] {
		g.Go(func() error {
			for i := next.Add(1) - 1; i < int64(keys); i = next.Add(1) - 1 {
				key := b.prefix + strconv.FormatInt(b.made.Add(1), 10)
				created, err := c.client.Create(b.s.ctx(), b.s.domain, key, protocol.CreateOptions{Class: b.class}, bytes.NewReader(b.content))
				if err != nil {
					return err
				}
				b.keys[i], b.paths[i] = key, created.Path
				mu.Lock()
				p.set(p.n + 1)
				mu.Unlock()
			}
			return nil
		})
	}
	return g.Wait()
}

// run has all clients do op until count operations or the duration are over.
func (b *bench) run(clients []*benchClient, count int64, d time.Duration, op func(*bench, *benchClient) (int64, error)) (time.Duration, error) {
	begun := time.Now()
	stop := begun.Add(d)
	p := b.s.out.newProgress("measuring", -1, false)
	defer p.end()
	var g errgroup.Group
	for i, c := range clients {
		g.Go(func() error {
			for {
				if err := b.s.ctx().Err(); err != nil {
					return err
				}
				number := b.next.Add(1)
				if count > 0 && number > count || count == 0 && !time.Now().Before(stop) {
					return nil
				}
				at := time.Now()
				n, err := op(b, c)
				if err != nil {
					c.errs++
					if c.first == nil {
						c.first = err
					}
					continue
				}
				c.seen.add(time.Since(at))
				c.ops++
				c.bytes += n
				if i == 0 {
					p.set(number)
				}
			}
		})
	}
	err := g.Wait()
	return time.Since(begun), err
}

// cleanTimeout bounds the deletion of the files made.
const cleanTimeout = time.Minute

// clean deletes the files made, also after an interruption.
func (b *bench) clean(clients []*benchClient) error {
	made := b.made.Load()
	if made == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(b.s.ctx()), cleanTimeout)
	defer cancel()
	var next atomic.Int64
	var g errgroup.Group
	for _, c := range clients[:min(len(clients), 16)] {
		g.Go(func() error {
			for i := next.Add(1); i <= made; i = next.Add(1) {
				err := c.client.Delete(ctx, b.s.domain, b.prefix+strconv.FormatInt(i, 10))
				if err != nil && !errors.Is(err, protocol.ErrUnknownKey) { // that one failed to be stored
					return fmt.Errorf("files under %q remain: %w", b.prefix, err)
				}
			}
			return nil
		})
	}
	return g.Wait()
}

func summary(name string, clients []*benchClient, took time.Duration) (benchResult, error) {
	res := benchResult{Op: name, Clients: len(clients), Seconds: took.Seconds()}
	var all histogram
	var sent int64
	var first error
	for _, c := range clients {
		all.merge(&c.seen)
		res.Ops += c.ops
		res.Errors += c.errs
		sent += c.bytes
		if first == nil {
			first = c.first
		}
	}
	res.OpsRate = round(float64(res.Ops) / res.Seconds)
	res.MBRate = round(float64(sent) / 1e6 / res.Seconds)
	res.Seconds = round(res.Seconds)
	res.P50, res.P99, res.Max = millis(all.quantile(0.5)), millis(all.quantile(0.99)), millis(all.max)
	return res, first
}

func round(f float64) float64 { return math.Round(f*1000) / 1000 }

func millis(d time.Duration) float64 { return round(float64(d) / float64(time.Millisecond)) }

func (b *bench) report(r benchResult) error {
	if b.s.out.json {
		return b.s.out.object(r)
	}
	f := func(v float64, digits int) string { return strconv.FormatFloat(v, 'f', digits, 64) }
	return b.s.out.table([]string{"op", ">clients", ">ops", ">errors", ">seconds", ">ops/s", ">MB/s", ">p50 ms", ">p99 ms", ">max ms"},
		[][]string{{r.Op, strconv.Itoa(r.Clients), strconv.FormatInt(r.Ops, 10), strconv.FormatInt(r.Errors, 10),
			f(r.Seconds, 1), f(r.OpsRate, 0), f(r.MBRate, 1), f(r.P50, 2), f(r.P99, 2), f(r.Max, 2)}})
}

// histogram counts durations in classes that are 2 % wide.
type histogram struct {
	counts []int64 // class i is up to growth^i microseconds
	total  int64
	max    time.Duration
}

const growth = 1.02

func (h *histogram) add(d time.Duration) {
	i := 0
	if us := float64(d) / float64(time.Microsecond); us > 1 {
		i = int(math.Ceil(math.Log(us) / math.Log(growth)))
	}
	if i >= len(h.counts) {
		h.counts = append(h.counts, make([]int64, i+1-len(h.counts))...)
	}
	h.counts[i]++
	h.total++
	h.max = max(h.max, d)
}

func (h *histogram) merge(o *histogram) {
	if len(o.counts) > len(h.counts) {
		h.counts = append(h.counts, make([]int64, len(o.counts)-len(h.counts))...)
	}
	for i, n := range o.counts {
		h.counts[i] += n
	}
	h.total += o.total
	h.max = max(h.max, o.max)
}

// quantile is the duration that q of all do not exceed, 0 where there are none.
func (h *histogram) quantile(q float64) time.Duration {
	want := int64(math.Ceil(q * float64(h.total)))
	for i, n := range h.counts {
		if want -= n; want <= 0 && h.total > 0 {
			return min(h.max, time.Duration(math.Pow(growth, float64(i))*float64(time.Microsecond)))
		}
	}
	return h.max
}

// maxBenchSize bounds a file, which is held in memory.
const maxBenchSize = 1 << 30

// parseSize reads "1000", "64K" and "8M", in units of 1024.
func parseSize(s string) (int64, error) {
	digits, unit := s, int64(1)
	if n := len(s); n > 0 {
		if i := slices.Index([]byte("kKmMgG"), s[n-1]); i >= 0 {
			digits, unit = s[:n-1], 1<<(10*(i/2+1))
		}
	}
	n, err := strconv.ParseInt(digits, 10, 63)
	if err != nil || n < 0 || n > maxBenchSize/unit {
		return 0, fmt.Errorf("%q is not a number of bytes up to 1G, such as 64K", s)
	}
	return n * unit, nil
}
