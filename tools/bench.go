package tools

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"math"
	mathrand "math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/sync/errgroup"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/tools/load"
)

// benchKind is an operation that can be measured.
type benchKind struct {
	name, usage string
	formerly    string // another name it answers to
	prepared    bool   // it works on files stored beforehand
	rows        bool   // it needs no bytes of them
	// start makes the operation of one client.
	start func(b *bench, c *benchClient) load.Op
	// once measures what is not done by clients that ask again and again.
	once func(b *bench) (load.Outcome, error)
	// after checks, once all is measured, what could not be seen meanwhile.
	after func(b *bench) error
}

func benchKinds() []benchKind {
	return []benchKind{
		{name: "create", formerly: "put", usage: "store files", start: (*bench).create, after: (*bench).checkCreated},
		{name: "open-close", usage: "create_open, and a create_close that gives the upload up: trackers alone", start: (*bench).openClose},
		{name: "paths", formerly: "get_paths", usage: "find files: trackers alone, but for --verify", prepared: true, rows: true, start: (*bench).findPaths},
		{name: "get", usage: "find and read files", prepared: true, start: (*bench).findAndRead},
		{name: "GET", usage: "read known paths: storage daemons alone", prepared: true, start: (*bench).read},
		{name: "mixed", usage: "of 20 operations 15 find and read, 4 store, 1 deletes", prepared: true, start: (*bench).mixed},
		{name: "list", usage: "list keys, 1,000 a page", prepared: true, rows: true, start: (*bench).list},
		{name: "delete", usage: "delete --keys files", prepared: true, start: (*bench).remove, after: (*bench).checkDeleted},
		{name: "replicate", usage: "have --keys files copied, the work piled up beforehand", once: (*bench).replicate},
		{name: "erasure", usage: "have --keys files put into shards, the work piled up beforehand", once: (*bench).erasure},
	}
}

func benchCommand() *cli.Command {
	flags := []cli.Flag{
		&cli.IntFlag{Name: "clients", Aliases: []string{"c"}, Usage: "`N` clients at once", Value: 16},
		&cli.DurationFlag{Name: "duration", Usage: "`TIME` to go on", Value: 10 * time.Second},
		&cli.DurationFlag{Name: "warm-up", Usage: "`TIME` before that is not measured"},
		&cli.Int64Flag{Name: "count", Aliases: []string{"n"}, Usage: "`N` operations, instead of a duration"},
		&cli.Float64Flag{Name: "rate", Usage: "`N` operations a second; 0: as many as are answered"},
		&cli.StringFlag{Name: "size", Usage: "`BYTES` of each file, such as 64K or 8M", Value: "64K"},
		&cli.IntFlag{Name: "keys", Usage: "`N` files stored beforehand", Value: 100},
		&cli.Int64Flag{Name: "loaded", Usage: "work on the `N` files that bench load made, instead (paths, list)"},
		&cli.StringFlag{Name: "class", Usage: "`CLASS` of the files"},
		&cli.BoolFlag{Name: "verify", Usage: "have trackers check paths with storage daemons"},
		&cli.IntFlag{Name: "copies", Usage: "`N` copies that a file is to get", Value: 2},
		&cli.StringFlag{Name: "pids", Usage: "`N,…` processes whose processor time is measured, with their children's"},
		&cli.BoolFlag{Name: "keep", Usage: "leave the files there"},
	}
	var subs []*cli.Command
	for _, k := range benchKinds() {
		sub := command(k.name, k.usage, "", "mogtool --domain test bench "+k.name+" --clients 64 --duration 30s", need{0, 0, true}, flags,
			func(s *session, _ []string) error { return runBench(s, k) })
		if k.formerly != "" {
			sub.Aliases = []string{k.formerly}
		}
		subs = append(subs, sub)
	}
	subs = append(subs, benchLoadCommand())
	return group("bench", "measure a cluster, with files of its own that it deletes afterwards",
		`mogtool --domain test bench create --clients 64 --duration 30s --size 4K
mogtool --domain test bench get --clients 64 --rate 2000 --warm-up 5s
mogtool --domain test bench paths -n 100000 --pids $(pgrep -d, mogile)`, subs...)
}

// bench is one measurement.
type bench struct {
	s        *session
	prefix   string // of its keys, which go on with a number
	class    string
	content  *load.Content
	keys     int64 // stored beforehand, as numbers 1 to keys
	loaded   bool  // they are rows alone
	verify   bool
	copies   int
	clients  []*benchClient
	stored   []benchFile  // keys 1 to keys
	made     atomic.Int64 // the last number of a key
	mu       sync.Mutex   // guards created
	created  []int64      // some of the numbers of keys stored while it was measured
	creating int64        // how many were
}

// benchFile is where one of the files is.
type benchFile struct {
	fid    int64
	path   []byte // a URL
	suffix []byte // in which all its paths end
}

// benchClient is one of the clients, with connections of its own.
type benchClient struct {
	tracker *load.Tracker
	web     *load.Web
	rng     *mathrand.Rand
	path    []byte
	own     []int64 // keys it has stored and may delete
}

func runBench(s *session, k benchKind) (err error) {
	length, err := parseSize(s.String("size"))
	if err != nil {
		return usageError(s.Context, "bench: --size: %w", err)
	}
	pids, err := parsePids(s.String("pids"))
	if err != nil {
		return usageError(s.Context, "bench: %w", err)
	}
	o := load.Options{
		Count: s.Int64("count"), Duration: s.Duration("duration"), Warmup: s.Duration("warm-up"),
		Rate: s.Float64("rate"), Pids: pids,
	}
	n, keys := s.Int("clients"), s.Int("keys")
	switch {
	case n < 1 || n > maxBenchClients:
		return usageError(s.Context, "bench: --clients is 1 to %d", maxBenchClients)
	case keys < 1 || keys > maxBenchKeys:
		return usageError(s.Context, "bench: --keys is 1 to %d", maxBenchKeys)
	case o.Count < 0 || o.Duration <= 0 || o.Warmup < 0 || !(o.Rate >= 0 && o.Rate <= maxBenchRate) || s.Int("copies") < 1:
		return usageError(s.Context, "bench: --count, --warm-up and --rate cannot be negative, --duration and --copies must be above 0")
	}
	b := &bench{
		s: s, prefix: "mogtool-bench/" + rand.Text() + "/", class: s.String("class"), content: load.NewContent(length),
		keys: int64(keys), verify: s.Bool("verify"), copies: s.Int("copies"),
	}
	if rows := s.Int64("loaded"); rows < 0 || rows > 0 && !k.rows {
		return usageError(s.Context, "bench: --loaded is for paths and list")
	} else if rows > 0 {
		b.prefix, b.keys, b.loaded = loadPrefix, rows, true
	}
	trackers := s.client.Trackers()
	for i := range n {
		c := &benchClient{
			tracker: load.NewTracker(trackers[i%len(trackers)], s.Duration("timeout")),
			web:     load.NewWeb(max(s.Duration("timeout"), benchStall)),
			rng:     mathrand.New(mathrand.NewPCG(uint64(i), uint64(time.Now().UnixNano()))),
		}
		b.clients = append(b.clients, c)
		defer func() { err = errors.Join(err, c.tracker.Close(), c.web.Close()) }()
	}
	if !s.Bool("keep") {
		defer func() { err = errors.Join(err, b.clean()) }()
	}
	out, err := b.measure(k, o)
	if err != nil {
		return err
	}
	res := summary(k.name, n, o, out)
	if err := b.report(res); err != nil {
		return err
	}
	if out.First != nil {
		return fmt.Errorf("bench %s: %d of %d operations failed; the first: %w", k.name, res.Errors, res.Ops+res.Errors, out.First)
	}
	return nil
}

const (
	maxBenchClients = 10_000
	maxBenchKeys    = 1_000_000 // what is known of each is held in memory
	maxBenchRate    = 1e6
	// benchStall is how long at least a storage daemon may take over a piece of
	// a file, flushing included.
	benchStall = 30 * time.Second
)

// parsePids reads "12,34".
func parsePids(list string) ([]int, error) {
	var pids []int
	for word := range strings.SplitSeq(list, ",") {
		if word = strings.TrimSpace(word); word == "" {
			continue
		}
		pid, err := strconv.Atoi(word)
		if err != nil || pid < 1 {
			return nil, fmt.Errorf("--pids: %q is not the number of a process", word)
		}
		if !slices.Contains(pids, pid) {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

func (b *bench) measure(k benchKind, o load.Options) (load.Outcome, error) {
	if k.once != nil {
		before, err := load.CPU(o.Pids)
		if err != nil {
			return load.Outcome{}, err
		}
		out, err := k.once(b)
		if err != nil {
			return out, err
		}
		after, err := load.CPU(o.Pids)
		for i := range after {
			out.CPU = append(out.CPU, after[i]-before[i])
		}
		return out, err
	}
	if k.prepared && !b.loaded {
		if err := b.prepare(); err != nil {
			return load.Outcome{}, err
		}
	}
	if k.name == "delete" {
		o.Count = b.keys
	}
	ops := make([]load.Op, len(b.clients))
	for i, c := range b.clients {
		ops[i] = k.start(b, c)
	}
	p := b.s.out.newProgress("measuring", -1, false)
	defer p.end()
	out, err := load.Run(b.s.ctx(), o, ops)
	if err == nil && out.First == nil && k.after != nil {
		err = k.after(b)
	}
	return out, err
}

// store stores file n.
func (b *bench) store(c *benchClient, n int64) (f benchFile, err error) {
	t := c.tracker
	t.Begin("create_open")
	t.Text("domain", b.s.domain)
	t.Numbered("key", b.prefix, n)
	t.Text("class", b.class)
	t.Int("size", b.content.Size())
	if zone := b.s.String("zone"); zone != "" {
		t.Text("zone", zone)
	}
	reply, err := t.Do()
	if err != nil {
		return f, fmt.Errorf("create_open: %w", err)
	}
	fid, dev := reply.Int("fid"), reply.Int("devid")
	c.path = append(c.path[:0], unescaped(reply.Raw("path"))...)
	if fid <= 0 || dev <= 0 {
		return f, fmt.Errorf("create_open: %.200q: %w", []byte(reply), protocol.ErrBadReply)
	}
	if err := c.web.Put(c.path, b.content, n); err != nil {
		return f, errors.Join(err, b.close(t, 0, fid, dev, c.path))
	}
	if err := b.close(t, n, fid, dev, c.path); err != nil {
		return f, fmt.Errorf("create_close: %w", err)
	}
	local := protocol.FID(fid).Path(protocol.DevID(dev))
	if !bytes.HasSuffix(c.path, []byte(local)) {
		return f, fmt.Errorf("create_open names %q for fid %d: %w", c.path, fid, protocol.ErrBadReply)
	}
	_, suffix, _ := strings.Cut(strings.TrimPrefix(local, "/"), "/")
	return benchFile{fid: fid, path: c.path, suffix: []byte(suffix)}, nil
}

// close closes an upload; n is 0 where it is given up.
func (b *bench) close(t *load.Tracker, n, fid, dev int64, path []byte) error {
	t.Begin("create_close")
	t.Text("domain", b.s.domain)
	if n == 0 {
		t.Text("key", "")
	} else {
		t.Numbered("key", b.prefix, n)
		t.Int("size", b.content.Size())
	}
	t.Int("fid", fid)
	t.Int("devid", dev)
	t.Text("path", string(path))
	_, err := t.Do()
	return err
}

// unescaped is a value of a reply; paths have nothing that is escaped, but
// might have.
func unescaped(value []byte) []byte {
	if bytes.IndexByte(value, '%') < 0 && bytes.IndexByte(value, '+') < 0 {
		return value
	}
	return []byte(protocol.Unescape(string(value)))
}

// benchSample is how many files stored while it was measured are read back.
const benchSample = 1000

// remember keeps some of the keys stored, each with the same chance.
func (b *bench) remember(c *benchClient, n int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.creating++
	if len(b.created) < benchSample {
		b.created = append(b.created, n)
	} else if i := c.rng.Int64N(b.creating); i < benchSample {
		b.created[i] = n
	}
}

func (b *bench) create(c *benchClient) load.Op {
	return func(int64) (load.Work, error) {
		n := b.made.Add(1)
		if _, err := b.store(c, n); err != nil {
			return load.Work{}, err
		}
		b.remember(c, n)
		return load.Work{Bytes: b.content.Size()}, nil
	}
}

// checkCreated reads back what was stored.
func (b *bench) checkCreated() error {
	return b.each(int64(len(b.created)), "reading files back", func(c *benchClient, i int64) error {
		n := b.created[i-1]
		if err := b.find(c, n, nil); err != nil {
			return err
		}
		return c.web.Get(c.path, b.content, n)
	})
}

// find asks for the paths of key n, leaves the first of them in c.path, and
// checks that each ends as it must where that is known.
func (b *bench) find(c *benchClient, n int64, suffix []byte) error {
	t := c.tracker
	t.Begin("get_paths")
	t.Text("domain", b.s.domain)
	t.Numbered("key", b.prefix, n)
	if !b.verify {
		t.Int("noverify", 1)
	}
	if zone := b.s.String("zone"); zone != "" {
		t.Text("zone", zone)
	}
	reply, err := t.Do()
	if err != nil {
		return fmt.Errorf("get_paths: %w", err)
	}
	paths, seen := reply.Int("paths"), int64(0)
	c.path = c.path[:0]
	for rest := reply; len(rest) > 0; {
		var name, value []byte
		name, value, rest = rest.Cut()
		if !bytes.HasPrefix(name, []byte("path")) || string(name) == "paths" {
			continue
		}
		value = unescaped(value)
		if !bytes.HasSuffix(value, suffix) {
			return fmt.Errorf("get_paths: %q is the path of another file than …/%s: %w", value, suffix, protocol.ErrBadReply)
		}
		if seen++; seen == 1 {
			c.path = append(c.path, value...)
		}
	}
	if seen == 0 || seen != paths {
		return fmt.Errorf("get_paths: %d of %d paths: %w", seen, paths, protocol.ErrBadReply)
	}
	return nil
}

func (b *bench) openClose(c *benchClient) load.Op {
	return func(int64) (load.Work, error) {
		t := c.tracker
		t.Begin("create_open")
		t.Text("domain", b.s.domain)
		t.Text("key", b.prefix)
		t.Text("class", b.class)
		reply, err := t.Do()
		if err != nil {
			return load.Work{}, fmt.Errorf("create_open: %w", err)
		}
		fid, dev := reply.Int("fid"), reply.Int("devid")
		c.path = append(c.path[:0], unescaped(reply.Raw("path"))...)
		if fid <= 0 || dev <= 0 || len(c.path) == 0 {
			return load.Work{}, fmt.Errorf("create_open: %.200q: %w", []byte(reply), protocol.ErrBadReply)
		}
		if err := b.close(t, 0, fid, dev, c.path); err != nil {
			return load.Work{}, fmt.Errorf("create_close: %w", err)
		}
		return load.Work{}, nil
	}
}

// any is one of the files stored beforehand.
func (b *bench) any(c *benchClient) (n int64, f benchFile) {
	i := c.rng.Int64N(b.keys)
	if b.loaded {
		return i + 1, benchFile{}
	}
	return i + 1, b.stored[i]
}

func (b *bench) findPaths(c *benchClient) load.Op {
	return func(int64) (load.Work, error) {
		n, f := b.any(c)
		return load.Work{}, b.find(c, n, f.suffix)
	}
}

func (b *bench) findAndRead(c *benchClient) load.Op {
	return func(int64) (load.Work, error) {
		n, f := b.any(c)
		if err := b.find(c, n, f.suffix); err != nil {
			return load.Work{}, err
		}
		return load.Work{Bytes: b.content.Size()}, c.web.Get(c.path, b.content, n)
	}
}

func (b *bench) read(c *benchClient) load.Op {
	return func(int64) (load.Work, error) {
		n, f := b.any(c)
		return load.Work{Bytes: b.content.Size()}, c.web.Get(f.path, b.content, n)
	}
}

// maxOwn bounds how many keys a client remembers that it may delete.
const maxOwn = 1000

func (b *bench) mixed(c *benchClient) load.Op {
	read, create := b.findAndRead(c), b.create(c)
	return func(n int64) (load.Work, error) {
		switch kind := c.rng.IntN(20); {
		case kind < 4:
			number := b.made.Add(1)
			if _, err := b.store(c, number); err != nil {
				return load.Work{}, err
			}
			if len(c.own) < maxOwn {
				c.own = append(c.own, number)
			}
			return load.Work{Bytes: b.content.Size()}, nil
		case kind > 4:
			return read(n)
		case len(c.own) == 0:
			return create(n)
		}
		last := len(c.own) - 1
		number := c.own[last]
		c.own = c.own[:last]
		return load.Work{}, b.deleteKey(c, number)
	}
}

func (b *bench) deleteKey(c *benchClient, n int64) error {
	t := c.tracker
	t.Begin("delete")
	t.Text("domain", b.s.domain)
	t.Numbered("key", b.prefix, n)
	if _, err := t.Do(); err != nil {
		return fmt.Errorf("delete: %w", err)
	}
	return nil
}

func (b *bench) remove(c *benchClient) load.Op {
	return func(n int64) (load.Work, error) { return load.Work{}, b.deleteKey(c, n) }
}

// checkDeleted asks for what was deleted.
func (b *bench) checkDeleted() error {
	return b.each(min(b.keys, benchSample), "looking for deleted files", func(c *benchClient, i int64) error {
		err := b.find(c, i, nil)
		if errors.Is(err, protocol.ErrUnknownKey) {
			return nil
		}
		if err == nil {
			err = fmt.Errorf("key %s%010d was deleted, and is there", b.prefix, i)
		}
		return err
	})
}

// listPage is how many keys a page has.
const listPage = 1000

// list has each client go through all keys, page by page, again and again.
func (b *bench) list(c *benchClient) load.Op {
	after := int64(0)
	var key, want []byte
	return func(int64) (load.Work, error) {
		t := c.tracker
		t.Begin("list_keys")
		t.Text("domain", b.s.domain)
		t.Text("prefix", b.prefix)
		if after > 0 {
			t.Numbered("after", b.prefix, after)
		}
		t.Int("limit", listPage)
		reply, err := t.Do()
		if err != nil {
			return load.Work{}, fmt.Errorf("list_keys: %w", err)
		}
		due := min(listPage, b.keys-after)
		seen := int64(0)
		key = protocol.AppendEscaped(key[:0], b.prefix)
		for rest := reply; len(rest) > 0; {
			var name, value []byte
			name, value, rest = rest.Cut()
			if !bytes.HasPrefix(name, []byte("key_")) || string(name) == "key_count" {
				continue
			}
			seen++
			want = load.AppendPadded(append(want[:0], key...), after+seen)
			if !bytes.Equal(value, want) {
				return load.Work{}, fmt.Errorf("list_keys: %q where %q is due: %w", value, want, protocol.ErrBadReply)
			}
		}
		if seen != due || reply.Int("key_count") != due {
			return load.Work{}, fmt.Errorf("list_keys: %d keys, not %d: %w", seen, due, protocol.ErrBadReply)
		}
		if after += seen; after == b.keys {
			after = 0
		}
		return load.Work{Items: seen}, nil
	}
}

// benchHands is how many clients prepare and clean up.
const benchHands = 32

// each has clients do something for each number from 1 to n.
func (b *bench) each(n int64, what string, do func(c *benchClient, i int64) error) error {
	p := b.s.out.newProgress(what, n, false)
	defer p.end()
	g, ctx := errgroup.WithContext(b.s.ctx())
	var mu sync.Mutex // guards p
	var next atomic.Int64
	for _, c := range b.clients[:min(len(b.clients), benchHands)] {
		g.Go(func() error {
			for i := next.Add(1); i <= n && ctx.Err() == nil; i = next.Add(1) {
				if err := do(c, i); err != nil {
					return err
				}
				mu.Lock()
				p.set(p.n + 1)
				mu.Unlock()
			}
			return ctx.Err()
		})
	}
	return g.Wait()
}

// prepare stores the files to work on.
func (b *bench) prepare() error {
	b.stored = make([]benchFile, b.keys)
	b.made.Store(b.keys)
	return b.each(b.keys, "storing files", func(c *benchClient, i int64) error {
		f, err := b.store(c, i)
		b.stored[i-1] = benchFile{f.fid, slices.Clone(f.path), f.suffix}
		return err
	})
}

// cleanTimeout bounds the deletion of the files made.
const cleanTimeout = 10 * time.Minute

// clean deletes the files made, also after an interruption.
func (b *bench) clean() error {
	made := b.made.Load()
	if made == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(b.s.ctx()), cleanTimeout)
	defer cancel()
	var next atomic.Int64
	var g errgroup.Group
	for _, c := range b.clients[:min(len(b.clients), benchHands)] {
		g.Go(func() error {
			for i := next.Add(1); i <= made; i = next.Add(1) {
				err := ctx.Err()
				if err == nil {
					err = b.deleteKey(c, i)
				}
				if err != nil && !errors.Is(err, protocol.ErrUnknownKey) { // that one was not stored, or is deleted
					return fmt.Errorf("files under %q remain: %w", b.prefix, err)
				}
			}
			return nil
		})
	}
	return g.Wait()
}

// benchResult is what a measurement says.
type benchResult struct {
	Op       string    `json:"op"`
	Clients  int       `json:"clients"`
	Rate     float64   `json:"rate,omitempty"` // that was asked for
	Ops      int64     `json:"ops"`
	Errors   int64     `json:"errors"`
	Seconds  float64   `json:"seconds"`
	OpsRate  float64   `json:"ops_per_second"`
	ItemRate float64   `json:"items_per_second,omitempty"` // keys of pages
	MBRate   float64   `json:"mb_per_second"`              // 10^6 bytes
	Mean     float64   `json:"mean_ms"`
	P50      float64   `json:"p50_ms"`
	P90      float64   `json:"p90_ms"`
	P99      float64   `json:"p99_ms"`
	P999     float64   `json:"p999_ms"`
	Max      float64   `json:"max_ms"`
	CPU      float64   `json:"cpu_ms_per_op,omitempty"`
	PerPid   []pidTime `json:"pids,omitempty"`
}

// pidTime is the processor time that a process and its children used.
type pidTime struct {
	Pid int     `json:"pid"`
	CPU float64 `json:"cpu_ms_per_op"`
}

func summary(name string, clients int, o load.Options, out load.Outcome) benchResult {
	seconds := out.Took.Seconds()
	rate := func(n int64) float64 { return round(float64(n) / seconds) }
	l := &out.Latency
	res := benchResult{
		Op: name, Clients: clients, Rate: o.Rate, Ops: out.Ops, Errors: out.Errors, Seconds: round(seconds),
		OpsRate: rate(out.Ops), ItemRate: rate(out.Work.Items), MBRate: round(float64(out.Work.Bytes) / 1e6 / seconds),
		Mean: millis(l.Mean()), P50: millis(l.Quantile(0.5)), P90: millis(l.Quantile(0.9)),
		P99: millis(l.Quantile(0.99)), P999: millis(l.Quantile(0.999)), Max: millis(l.Max()),
	}
	for i, d := range out.CPU {
		each := float64(d) / float64(time.Millisecond) / float64(max(out.Ops, 1))
		res.PerPid = append(res.PerPid, pidTime{o.Pids[i], math.Round(each*1e4) / 1e4})
		res.CPU += each
	}
	res.CPU = math.Round(res.CPU*1e4) / 1e4
	return res
}

func round(f float64) float64 { return math.Round(f*1000) / 1000 }

func millis(d time.Duration) float64 { return round(float64(d) / float64(time.Millisecond)) }

func (b *bench) report(r benchResult) error {
	if b.s.out.json {
		return b.s.out.object(r)
	}
	f := func(v float64, digits int) string { return strconv.FormatFloat(v, 'f', digits, 64) }
	header := []string{"op", ">clients", ">ops", ">errors", ">seconds", ">ops/s", ">MB/s", ">p50 ms", ">p99 ms", ">p99.9 ms", ">max ms"}
	row := []string{r.Op, strconv.Itoa(r.Clients), strconv.FormatInt(r.Ops, 10), strconv.FormatInt(r.Errors, 10),
		f(r.Seconds, 1), f(r.OpsRate, 0), f(r.MBRate, 1), f(r.P50, 2), f(r.P99, 2), f(r.P999, 2), f(r.Max, 2)}
	if r.ItemRate > 0 {
		header, row = append(header, ">keys/s"), append(row, f(r.ItemRate, 0))
	}
	if len(r.PerPid) > 0 {
		header, row = append(header, ">CPU ms/op"), append(row, f(r.CPU, 3))
	}
	return b.s.out.table(header, [][]string{row})
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
