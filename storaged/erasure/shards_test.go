package erasure_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"math/bits"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"sync"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/storaged/erasure"
)

// seeded is chance that can be repeated.
func seeded(t testing.TB) *rand.Rand {
	seed := rand.Uint64()
	if text := os.Getenv("MOGILE_TEST_SEED"); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("MOGILE_TEST_SEED=%d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

// disks are shards in memory, by device: the device of shard i is i+1 at first.
type disks struct {
	mu     sync.Mutex
	shards map[protocol.DevID][]byte
	stuck  map[protocol.DevID]bool // reading waits until it is told to end
	silent map[protocol.DevID]bool // opening does
	broken map[protocol.DevID]int  // how many times reading breaks off after a block
	opens  []access
}

type access struct {
	dev    protocol.DevID
	off, n int64
}

var errBroken = errors.New("broke off")

func (d *disks) Near(dev protocol.DevID) bool { return dev == 1 }

func (d *disks) Open(ctx context.Context, dev protocol.DevID, off, n int64) (io.ReadCloser, error) {
	if d.silent[dev] {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.opens = append(d.opens, access{dev, off, n})
	b, ok := d.shards[dev]
	switch {
	case !ok:
		return nil, fs.ErrNotExist
	case d.stuck[dev]:
		return io.NopCloser(waiter{ctx}), nil
	case off >= int64(len(b)):
		return nil, io.EOF
	}
	b = b[off:min(off+n, int64(len(b)))]
	if d.broken[dev] > 0 {
		d.broken[dev]--
		return io.NopCloser(io.MultiReader(bytes.NewReader(b[:len(b)/2]), iotest.ErrReader(errBroken))), nil
	}
	return io.NopCloser(bytes.NewReader(b)), nil
}

type waiter struct{ ctx context.Context }

func (w waiter) Read([]byte) (int, error) {
	<-w.ctx.Done()
	return 0, w.ctx.Err()
}

// file is one that was encoded.
type file struct {
	content []byte
	header  erasure.Header
	disks   *disks
	sure    bool // how it is read
}

func header(k, m, block int, content []byte) erasure.Header {
	h := erasure.Header{
		ShardSet: protocol.ShardSet{FID: 7, Encoding: 0xfeed, K: k, M: m, Block: block, Length: int64(len(content))},
		Modified: time.Unix(1700000000, 123456789).UTC(), CRC32C: crc32.Checksum(content, crc32.MakeTable(crc32.Castagnoli)),
		Placement: erasure.Placement{Epoch: 1},
	}
	for i := range k + m {
		h.Placement.Devices = append(h.Placement.Devices, protocol.DevID(i+1))
	}
	return h
}

func encode(t testing.TB, c *erasure.Codec, h erasure.Header, content []byte) *file {
	t.Helper()
	d := &disks{shards: map[protocol.DevID][]byte{}}
	collect := make([]bytes.Buffer, h.Shards())
	err := c.Encode(t.Context(), h, erasure.From(bytes.NewReader(content)), func(parts [][]byte, done func(bool)) error {
		for i, p := range parts {
			collect[i].Write(p)
		}
		done(true)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for i := range collect {
		d.shards[protocol.DevID(i+1)] = collect[i].Bytes()
		if got := int64(collect[i].Len()); got != h.Layout().ShardSize() {
			t.Fatalf("shard %d has %d bytes instead of %d", i, got, h.Layout().ShardSize())
		}
	}
	return &file{content, h, d, false}
}

func random(r *rand.Rand, n int) []byte {
	b := make([]byte, n)
	for i := 0; i < n; i += 8 {
		var word [8]byte
		binary.NativeEndian.PutUint64(word[:], r.Uint64())
		copy(b[i:], word[:])
	}
	return b
}

// clone is a copy with disks that can be damaged.
func (f *file) clone() *file {
	d := &disks{shards: map[protocol.DevID][]byte{}, stuck: map[protocol.DevID]bool{}, silent: map[protocol.DevID]bool{}, broken: map[protocol.DevID]int{}}
	for dev, b := range f.disks.shards {
		d.shards[dev] = slices.Clone(b)
	}
	return &file{f.content, f.header, d, f.sure}
}

// flip damages a byte of a block.
func (f *file) flip(shard int, stripe int64) {
	b := f.disks.shards[protocol.DevID(shard+1)]
	b[f.header.Layout().Offset(stripe)] ^= 1
}

// read reads a part; what was read is there whatever the error.
func (f *file) read(ctx context.Context, c *erasure.Codec, off, n int64) ([]byte, map[int]error, error) {
	suspects := map[int]error{}
	s, err := c.Open(ctx, erasure.Read{Header: f.header, Places: f.disks, Sure: f.sure, Suspect: func(i int, dev protocol.DevID, err error) {
		if suspects[i] != nil {
			panic("told twice")
		}
		suspects[i] = err
	}}, off, n)
	if err != nil {
		return nil, suspects, err
	}
	defer s.Close()
	var b bytes.Buffer
	_, err = s.WriteTo(&b)
	return b.Bytes(), suspects, err
}

func (f *file) check(t testing.TB, c *erasure.Codec, what any) map[int]error {
	t.Helper()
	got, suspects, err := f.read(t.Context(), c, 0, int64(len(f.content)))
	if err != nil || !bytes.Equal(got, f.content) {
		t.Fatalf("%v: %d bytes, same %v, error %v", what, len(got), bytes.Equal(got, f.content), err)
	}
	return suspects
}

// encodeRandom encodes random content.
func encodeRandom(t testing.TB, c *erasure.Codec, r *rand.Rand, k, m, block, length int) *file {
	t.Helper()
	content := random(r, length)
	return encode(t, c, header(k, m, block, content), content)
}

// lose has each shard of a set damaged, reads the file, and makes the shards
// again.
func (f *file) lose(t *testing.T, c *erasure.Codec, set uint64, damage func(g *file, shard int)) {
	t.Helper()
	g := f.clone()
	var lost []int
	for i := range f.header.Shards() {
		if set>>i&1 == 1 {
			damage(g, i)
			lost = append(lost, i)
		}
	}
	what := fmt.Sprintf("%d+%d, %d bytes, without %v", f.header.K, f.header.M, len(f.content), lost)
	if len(lost) > f.header.M {
		got, _, err := g.read(t.Context(), c, 0, int64(len(f.content)))
		if !bytes.HasPrefix(f.content, got) {
			t.Fatalf("%s: wrong bytes", what)
		}
		l := f.header.Layout()
		inLast := slices.ContainsFunc(lost, func(i int) bool { _, n := l.Bytes(l.Stripes()-1, i); return n > 0 })
		if inLast && !errors.Is(err, erasure.ErrTooFew) {
			t.Fatalf("%s: error %v", what, err)
		}
		return
	}
	g.check(t, c, what)
	g.sure = true
	g.check(t, c, what+", sure")
	if len(lost) > 0 {
		for i, b := range g.rebuild(t, c, lost, lost...) {
			if !bytes.Equal(b, f.disks.shards[protocol.DevID(lost[i]+1)]) {
				t.Fatalf("%s: shard %d made again is another", what, lost[i])
			}
		}
	}
}

// rebuild makes shards of those that are not gone.
func (f *file) rebuild(t testing.TB, c *erasure.Codec, gone []int, writes ...int) [][]byte {
	t.Helper()
	made := make([]bytes.Buffer, len(writes))
	at := slices.Clone(f.header.Placement.Devices)
	for _, i := range gone {
		at[i] = 0
	}
	err := c.Rebuild(t.Context(), erasure.Read{Header: f.header, At: at, Places: f.disks}, writes, func(parts [][]byte, done func(bool)) error {
		for i, p := range parts {
			made[i].Write(p)
		}
		done(true)
		return nil
	})
	if err != nil {
		t.Fatalf("%d+%d, making %v: %v", f.header.K, f.header.M, writes, err)
	}
	all := make([][]byte, len(writes))
	for i := range made {
		all[i] = made[i].Bytes()
	}
	return all
}

func remove(g *file, i int) { delete(g.disks.shards, protocol.DevID(i+1)) }

func rot(g *file, i int) {
	for s := range g.header.Layout().Stripes() {
		g.flip(i, s)
	}
}

func truncate(g *file, i int) {
	dev := protocol.DevID(i + 1)
	g.disks.shards[dev] = g.disks.shards[dev][:g.header.Layout().Offset(g.header.Layout().Stripes()-1)+1]
}

// TestLossExhaustive loses, damages and truncates every subset of shards of small
// encodings: up to m of them change nothing, more are an error, and never is there
// a wrong byte. What was lost is made again as it was.
func TestLossExhaustive(t *testing.T) {
	t.Parallel()
	c := erasure.New(erasure.Options{})
	r := seeded(t)
	for k := 1; k <= 5; k++ {
		for m := 1; m <= 3; m++ {
			for _, length := range []int{1, 16*k + 1, 3*16*k - 3} {
				f := encodeRandom(t, c, r, k, m, 16, length)
				for set := range uint64(1) << (k + m) {
					f.lose(t, c, set, remove)
					f.lose(t, c, set, rot)
					f.lose(t, c, set, truncate)
				}
			}
		}
	}
}

// TestLossRandom does the same to large encodings, at random.
func TestLossRandom(t *testing.T) {
	t.Parallel()
	c := erasure.New(erasure.Options{})
	r := seeded(t)
	for range 60 {
		k, m := 1+r.IntN(protocol.MaxDataShards), 1+r.IntN(protocol.MaxParityShards)
		f := encodeRandom(t, c, r, k, m, 1+r.IntN(3000), 1+r.IntN(200_000))
		for range 4 {
			var set uint64
			for want := r.IntN(m + 2); bits.OnesCount64(set) < want; {
				set |= 1 << r.IntN(k+m)
			}
			f.lose(t, c, set, []func(*file, int){remove, rot, truncate}[r.IntN(3)])
		}
	}
	wide := encodeRandom(t, c, r, 32, 16, 1000, 100_000)
	wide.lose(t, c, 0xffff, remove)
	wide.lose(t, c, 0xffff<<32, rot)
	wide.lose(t, c, 0xaaaa_aaaa_0000, rot)
	wide.lose(t, c, 0x1ffff, remove)
}

// TestScatteredRot damages up to m blocks of each stripe, others in each: there is
// no shard left that is whole, and the file is.
func TestScatteredRot(t *testing.T) {
	t.Parallel()
	r := seeded(t)
	codecs := []*erasure.Codec{erasure.New(erasure.Options{}), poor(t, r)}
	for n := range 40 {
		c := codecs[n%2]
		k, m := 1+r.IntN(8), 1+r.IntN(4)
		f := encodeRandom(t, c, r, k, m, 50, 50*k*20-r.IntN(50*k)).clone()
		for s := range f.header.Layout().Stripes() {
			for _, i := range r.Perm(k + m)[:m] {
				f.flip(i, s)
			}
		}
		f.check(t, c, "rot in each stripe")
		writes := r.Perm(k + m)[:1+r.IntN(k+m)]
		slices.Sort(writes)
		whole := encode(t, c, f.header, f.content)
		for j, b := range f.rebuild(t, c, nil, writes...) {
			if !bytes.Equal(b, whole.disks.shards[protocol.DevID(writes[j]+1)]) {
				t.Fatalf("shard %d made again is another", writes[j])
			}
		}
	}
}

// TestSwapped has content at the wrong place, of which each piece was written by
// us: blocks in other stripes, shards on other devices, and those of another
// encoding of the same file.
func TestSwapped(t *testing.T) {
	t.Parallel()
	c := erasure.New(erasure.Options{})
	content := bytes.Repeat([]byte("same"), 100) // all blocks are the same, and their sums still are not
	h := header(3, 2, 20, content)
	f := encode(t, c, h, content)
	h.Encoding++
	other := encode(t, c, h, content)
	h.Encoding--
	h.FID++
	stranger := encode(t, c, h, content)
	l := f.header.Layout()
	for name, damage := range map[string]func(g *file){
		"blocks": func(g *file) {
			b := g.disks.shards[1]
			x, y := b[l.Offset(0):l.Offset(1)], b[l.Offset(2):l.Offset(3)]
			z := slices.Clone(x)
			copy(x, y)
			copy(y, z)
		},
		"shards":           func(g *file) { g.disks.shards[1], g.disks.shards[2] = g.disks.shards[2], g.disks.shards[1] },
		"a shard, twice":   func(g *file) { g.disks.shards[1] = g.disks.shards[2] },
		"another encoding": func(g *file) { g.disks.shards[1] = other.disks.shards[1] },
		"another fid":      func(g *file) { g.disks.shards[1] = stranger.disks.shards[1] },
		"blocks, not header": func(g *file) {
			copy(g.disks.shards[1][erasure.HeaderSize:], other.disks.shards[1][erasure.HeaderSize:])
		},
		"nothing": func(g *file) { g.disks.shards[1] = nil },
		"zeroes":  func(g *file) { clear(g.disks.shards[1]) },
	} {
		g := f.clone()
		damage(g)
		if suspects := g.check(t, c, name); suspects[0] == nil {
			t.Errorf("%s: nobody noticed", name)
		}
	}
	g := f.clone()
	for dev := protocol.DevID(1); dev <= 3; dev++ {
		g.disks.shards[dev] = other.disks.shards[dev]
	}
	if _, _, err := g.read(t.Context(), c, 0, l.Length); !errors.Is(err, erasure.ErrTooFew) || !errors.Is(err, erasure.ErrBlock) {
		t.Errorf("three of five of another encoding: error %v", err)
	}
}

// TestBrokenMidway: what cannot be read in the middle ends the reading there; what
// was read before is right.
func TestBrokenMidway(t *testing.T) {
	t.Parallel()
	c := erasure.New(erasure.Options{})
	f := encodeRandom(t, c, seeded(t), 4, 2, 100, 400*10).clone()
	for i := range 3 {
		f.flip(i, 5)
	}
	got, _, err := f.read(t.Context(), c, 0, 4000)
	if !errors.Is(err, erasure.ErrTooFew) || !bytes.Equal(got, f.content[:2000]) {
		t.Errorf("%d bytes, error %v; want 2000, and too few", len(got), err)
	}
	if got, _, err := f.read(t.Context(), c, 2300, 1700); err != nil || !bytes.Equal(got, f.content[2300:]) {
		t.Errorf("what is behind: %d bytes, error %v", len(got), err)
	}
	if _, _, err := f.read(t.Context(), c, 2299, 10); !errors.Is(err, erasure.ErrTooFew) {
		t.Errorf("error %v", err)
	}
}

// poor is a codec of which another holds the memory to read ahead with.
func poor(t *testing.T, r *rand.Rand) *erasure.Codec {
	t.Helper()
	c := erasure.New(erasure.Options{Memory: 8 << 20})
	f := encodeRandom(t, c, r, 32, 16, 256<<10, 9<<20)
	s, err := c.Open(t.Context(), erasure.Read{Header: f.header, Places: f.disks}, 0, f.header.Length)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return c
}

// TestRanges reads parts at random, of whole and of damaged files, with much and
// with little memory.
func TestRanges(t *testing.T) {
	t.Parallel()
	r := seeded(t)
	codecs := []*erasure.Codec{erasure.New(erasure.Options{}), poor(t, r)}
	for n := range 400 {
		c := codecs[n%2]
		k, m := 1+r.IntN(8), 1+r.IntN(4)
		f := encodeRandom(t, c, r, k, m, 1+r.IntN(100), 1+r.IntN(3000)).clone()
		for _, i := range r.Perm(k + m)[:r.IntN(m+1)] {
			[]func(*file, int){remove, rot, truncate}[r.IntN(3)](f, i)
		}
		f.sure = r.IntN(2) == 0
		for range 10 {
			off := r.Int64N(f.header.Length)
			n := r.Int64N(f.header.Length - off + 1)
			got, _, err := f.read(t.Context(), c, off, n)
			if err != nil || !bytes.Equal(got, f.content[off:off+n]) {
				t.Fatalf("%d+%d, block %d, length %d: %d bytes at %d: error %v, %d bytes, same %v",
					k, m, f.header.Block, f.header.Length, n, off, err, len(got), bytes.Equal(got, f.content[off:off+n]))
			}
		}
	}
}

// TestReader holds Stream to what io.Reader demands.
func TestReader(t *testing.T) {
	t.Parallel()
	c := erasure.New(erasure.Options{})
	f := encodeRandom(t, c, seeded(t), 3, 2, 64, 1000)
	s, err := c.Open(t.Context(), erasure.Read{Header: f.header, Places: f.disks}, 0, 1000)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := iotest.TestReader(s, f.content); err != nil {
		t.Error(err)
	}
	for _, part := range [][2]int64{{-1, 1}, {0, 1001}, {1001, 0}, {1000, 1}, {0, -1}} {
		if _, err := c.Open(t.Context(), erasure.Read{Header: f.header, Places: f.disks}, part[0], part[1]); err == nil {
			t.Errorf("%d bytes at %d can be read", part[1], part[0])
		}
	}
}

// TestSmallReads: what is read of each shard that has wanted bytes is one block,
// and nothing of the others.
func TestSmallReads(t *testing.T) {
	t.Parallel()
	c := erasure.New(erasure.Options{})
	r := seeded(t)
	f := encodeRandom(t, c, r, 6, 3, 64<<10, 5<<20)
	l := f.header.Layout()
	for range 200 {
		off := r.Int64N(f.header.Length - 4096)
		f.disks.opens = nil
		if got, _, err := f.read(t.Context(), c, off, 4096); err != nil || !bytes.Equal(got, f.content[off:off+4096]) {
			t.Fatal(err)
		}
		_, first := l.Find(off)
		_, last := l.Find(off + 4095)
		want := 1
		if first != last {
			want = 2
		}
		if len(f.disks.opens) != want {
			t.Fatalf("4096 bytes at %d are in %d shards, and of %d was read", off, want, len(f.disks.opens))
		}
		for _, a := range f.disks.opens {
			if a.n > int64(l.Block+erasure.SumSize) {
				t.Fatalf("%d bytes were read of a shard", a.n)
			}
		}
	}
}

// TestSure: who is sure has the first block before another shard is asked for.
func TestSure(t *testing.T) {
	t.Parallel()
	c := erasure.New(erasure.Options{})
	f := encodeRandom(t, c, seeded(t), 4, 2, 100, 4000)
	s, err := c.Open(t.Context(), erasure.Read{Header: f.header, Places: f.disks, Sure: true}, 0, 4000)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	first, err := s.Next()
	if err != nil || !bytes.Equal(first, f.content[:100]) || len(f.disks.opens) != 1 {
		t.Errorf("%d bytes, %v, of %d shards", len(first), err, len(f.disks.opens))
	}
	if rest, err := io.ReadAll(s); err != nil || !bytes.Equal(rest, f.content[100:]) || len(f.disks.opens) != 4 {
		t.Errorf("%d bytes, %v, of %d shards", len(rest), err, len(f.disks.opens))
	}
}

// TestHedge: shards that say nothing are waited for once, and not at all if
// there is no other.
func TestHedge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := erasure.New(erasure.Options{Hedge: time.Second})
		f := encodeRandom(t, c, rand.New(rand.NewPCG(1, 1)), 4, 2, 100, 4000).clone()
		f.disks.stuck[2], f.disks.stuck[4] = true, true
		start := time.Now()
		if suspects := f.check(t, c, "two stuck"); len(suspects) != 0 {
			t.Errorf("slow shards are not bad ones: %v", suspects)
		}
		if took := time.Since(start); took != time.Second {
			t.Errorf("it took %v", took)
		}
		clear(f.disks.stuck)
		f.disks.silent[2], f.disks.silent[3] = true, true
		start = time.Now()
		f.check(t, c, "two silent")
		if took := time.Since(start); took != time.Second {
			t.Errorf("with two that do not even answer it took %v", took)
		}
		f.disks.silent[6] = true
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if _, _, err := f.read(ctx, c, 0, 4000); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("with three stuck: %v", err)
		}
	})
}

// TestBreaksOff: a connection that breaks off is taken up again when there is no
// other shard.
func TestBreaksOff(t *testing.T) {
	t.Parallel()
	c := erasure.New(erasure.Options{})
	f := encodeRandom(t, c, seeded(t), 4, 2, 100, 4000).clone()
	remove(f, 0)
	remove(f, 5)
	for dev := protocol.DevID(2); dev <= 5; dev++ {
		f.disks.broken[dev] = 1
	}
	f.check(t, c, "each breaks off once")
}

// TestLongRead has all shards break off again and again, as those of daemons that
// are restarted, or grow tired of a client that is slow, but not without giving
// something: such a read goes on for as long as it takes.
func TestLongRead(t *testing.T) {
	t.Parallel()
	c := erasure.New(erasure.Options{})
	f := encodeRandom(t, c, seeded(t), 3, 2, 64, 20_000).clone()
	for i := range f.header.Shards() {
		f.disks.broken[protocol.DevID(i+1)] = 5
	}
	f.check(t, c, "breaking off")
}

// TestMemory: where others hold memory files are read with little of it, whole or
// not, and those that get none are told if they wait for too long.
func TestMemory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := erasure.New(erasure.Options{Memory: 4 << 20, Patience: time.Second})
		whole := encodeRandom(t, c, rand.New(rand.NewPCG(1, 1)), 4, 2, 64<<10, 3<<20)
		f := whole.clone()
		var held []*erasure.Stream
		hold := func(n int) error {
			for range n {
				s, err := c.Open(t.Context(), erasure.Read{Header: f.header, Places: whole.disks}, 0, f.header.Length)
				if err != nil {
					return err
				}
				held = append(held, s)
			}
			return nil
		}
		if err := hold(2); err != nil { // one that reads ahead, and one with little
			t.Fatal(err)
		}
		f.check(t, c, "with little")
		f.flip(0, 1)
		f.flip(2, 2)
		f.flip(3, 2)
		remove(f, 4)
		if _, _, err := f.read(t.Context(), c, 0, f.header.Length); !errors.Is(err, erasure.ErrTooFew) {
			t.Errorf("three of six bad: error %v", err)
		}
		f.flip(3, 2)
		f.check(t, c, "with little, degraded")
		remove(f, 2)
		f.flip(0, 1)
		f.check(t, c, "with little, degraded all along")
		if err := hold(10); !errors.Is(err, erasure.ErrBusy) {
			t.Errorf("with nothing: error %v", err)
		}
		for _, s := range held {
			var b bytes.Buffer
			if _, err := s.WriteTo(&b); err != nil || !bytes.Equal(b.Bytes(), f.content) {
				t.Errorf("one that held memory: error %v", err)
			}
			s.Close()
		}
		held = nil
		f.check(t, c, "after the others")
	})
}

// TestLocate: shards that were moved are found, by what their sisters say.
func TestLocate(t *testing.T) {
	t.Parallel()
	c := erasure.New(erasure.Options{})
	f := encodeRandom(t, c, seeded(t), 4, 2, 100, 4000).clone()
	p := erasure.Placement{Epoch: 5, Devices: slices.Clone(f.header.Placement.Devices)}
	for i := range 3 {
		old := p.Devices[i]
		p.Devices[i] += 100
		f.disks.shards[p.Devices[i]] = f.disks.shards[old]
		delete(f.disks.shards, old)
	}
	if _, _, err := f.read(t.Context(), c, 0, 4000); !errors.Is(err, erasure.ErrTooFew) {
		t.Fatalf("nobody knows where they are: error %v", err)
	}
	patch, off, err := erasure.Place(f.disks.shards[5], p)
	if err != nil || patch == nil {
		t.Fatal(err)
	}
	copy(f.disks.shards[5][off:], patch)
	f.check(t, c, "one knows where three are")
}

// TestEncodeShort: a file that is shorter than its header says is not encoded.
func TestEncodeShort(t *testing.T) {
	t.Parallel()
	c := erasure.New(erasure.Options{})
	h := header(3, 2, 10, make([]byte, 100))
	emit := func(_ [][]byte, done func(bool)) error { done(true); return nil }
	if err := c.Encode(t.Context(), h, erasure.From(bytes.NewReader(make([]byte, 99))), emit); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("error %v", err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errBroken)
	keep := func([][]byte, func(bool)) error { return nil }
	if err := c.Encode(ctx, h, erasure.From(bytes.NewReader(make([]byte, 100))), keep); !errors.Is(err, errBroken) {
		t.Errorf("error %v of one that was told to end", err)
	}
	if err := c.Encode(t.Context(), h, erasure.From(bytes.NewReader(make([]byte, 100))), func([][]byte, func(bool)) error { return errBroken }); !errors.Is(err, errBroken) {
		t.Errorf("error %v", err)
	}
}

// TestEmpty: a file of no bytes has shards, too.
func TestEmpty(t *testing.T) {
	t.Parallel()
	c := erasure.New(erasure.Options{})
	f := encode(t, c, header(3, 2, 10, nil), nil)
	f.check(t, c, "nothing")
	if got := f.rebuild(t, c, []int{1}, 1); !bytes.Equal(got[0], f.disks.shards[2]) {
		t.Error("another shard")
	}
}

// TestVerify counts what is bad.
func TestVerify(t *testing.T) {
	t.Parallel()
	c := erasure.New(erasure.Options{})
	f := encodeRandom(t, c, seeded(t), 3, 2, 10, 299).clone() // ten stripes
	verify := func() (erasure.State, int, error) {
		b := f.disks.shards[2]
		read := 0
		st, err := c.Verify(bytes.NewReader(b), int64(len(b)), func(n int) error { read += n; return nil })
		return st, read, err
	}
	st, read, err := verify()
	if err != nil || !st.Sized || st.Blocks != 10 || st.Bad != 0 || st.Header.Index != 1 || read != 10*14 {
		t.Errorf("whole: %+v, %d read, error %v", st, read, err)
	}
	f.flip(1, 0)
	f.flip(1, 9)
	if st, _, err := verify(); err != nil || !st.Sized || st.Bad != 2 {
		t.Errorf("two bad: %+v, error %v", st, err)
	}
	f.disks.shards[2] = f.disks.shards[2][:f.header.Layout().Offset(8)+3]
	if st, _, err := verify(); err != nil || st.Sized || st.Bad != 3 {
		t.Errorf("truncated: %+v, error %v", st, err)
	}
	f.disks.shards[2] = append(slices.Clone(f.disks.shards[1]), 0)
	if st, _, err := verify(); err != nil || st.Sized || st.Bad != 0 {
		t.Errorf("too long: %+v, error %v", st, err)
	}
	f.disks.shards[2] = f.disks.shards[2][:100]
	if _, _, err := verify(); !errors.Is(err, erasure.ErrHeader) {
		t.Errorf("no header: error %v", err)
	}
}
