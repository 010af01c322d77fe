// Package erasure makes shards of files, and files and shards of shards.
//
// A file is cut into stripes, and each stripe into k blocks, of which m blocks of
// parity are computed: any k of these k+m give the stripe back. Shard i has the
// i-th block of each stripe, each followed by its CRC32C, behind a header that
// says what it is a shard of. docs/erasure-coding.md has the format.
//
// A block that is not what was written is missing, no more and no less: the sum
// goes on from that of the header and the number of the stripe, so that blocks at
// a wrong place, shards in the place of others and those of another encoding are
// not what was written either. What is handed out was verified, always.
//
// Shards are streams here: where they are is the business of [Places] and of who
// takes what [Codec.Encode] and [Codec.Rebuild] make. Memory depends on k+m and
// the size of blocks, never on that of a file.
package erasure

import (
	"context"
	"errors"
	"io"
	"math/bits"
	"sync"
	"time"

	"github.com/klauspost/reedsolomon"
	"golang.org/x/sync/semaphore"

	"github.com/mogile/mogile/protocol"
)

// Places is where shards of one file are read.
type Places interface {
	// Open reads n bytes, at least one, from off of the shard that a device has, or
	// fewer where it ends before. fs.ErrNotExist says that it has none. Close is
	// called once, maybe while Read waits in another goroutine, which then returns.
	// The reading ends with ctx, too. What Read was to read into when it failed is lent
	// for good: a disk that hangs may come back and write there.
	Open(ctx context.Context, dev protocol.DevID, off, n int64) (io.ReadCloser, error)
	// Near reports whether a device is cheaper to read from than others.
	Near(dev protocol.DevID) bool
}

// Options are the settings of [Codec].
type Options struct {
	// Memory is how many bytes all that read files with [Codec.Open] may hold
	// together; 0 means DefaultMemory. What needs more by itself runs alone.
	Memory int64
	// Hedge is for how long a shard is waited for before others are read in its
	// place; 0 means DefaultHedge.
	Hedge time.Duration
	// Patience is for how long one who reads waits for memory; 0 means DefaultPatience.
	Patience time.Duration
}

const (
	// DefaultMemory is enough for one file in the widest encoding, or dozens of usual
	// ones.
	DefaultMemory = 40 << 20
	// DefaultHedge is longer than a disk seeks and a network takes to repeat a packet.
	DefaultHedge = 250 * time.Millisecond
	// DefaultPatience is shorter than clients wait for.
	DefaultPatience = 10 * time.Second
)

// Codec computes, with tables and memory that are used again. There is one in a
// daemon. Its methods may be called concurrently.
type Codec struct {
	o        Options
	ample    *semaphore.Weighted // half of Memory: to read ahead with
	little   *semaphore.Weighted // an eighth, for those that got none of that
	stripes  *semaphore.Weighted // and the rest, for when those have to compute a block
	encoders sync.Map            // from [2]int, k and m, to reedsolomon.Encoder
	buffers  [256]sync.Pool      // of *buffer, by sizeClass
}

// New makes a Codec.
func New(o Options) *Codec {
	if o.Memory <= 0 {
		o.Memory = DefaultMemory
	}
	if o.Hedge <= 0 {
		o.Hedge = DefaultHedge
	}
	if o.Patience <= 0 {
		o.Patience = DefaultPatience
	}
	return &Codec{
		o: o, ample: semaphore.NewWeighted(o.Memory / 2), little: semaphore.NewWeighted(o.Memory / 8), stripes: semaphore.NewWeighted(o.Memory / 8 * 3),
	}
}

// Errors of reading shards.
var (
	// ErrTooFew says that of some stripe fewer than k blocks can be read.
	ErrTooFew = errors.New("too few shards can be read")
	// ErrBlock says that a block is not what was written.
	ErrBlock = errors.New("a block is not what was written")
	// ErrBusy says that others hold all memory.
	ErrBusy = errors.New("too many files are being read")
)

// encoder is that for k+m shards.
func (c *Codec) encoder(l Layout) (reedsolomon.Encoder, error) {
	key := [2]int{l.K, l.M}
	if e, ok := c.encoders.Load(key); ok {
		return e.(reedsolomon.Encoder), nil
	}
	// Blocks are small: handing them to goroutines costs more than it saves, and
	// many files are at work at once.
	e, err := reedsolomon.New(l.K, l.M, reedsolomon.WithMaxGoroutines(1))
	if err != nil {
		return nil, err
	}
	kept, _ := c.encoders.LoadOrStore(key, e)
	return kept.(reedsolomon.Encoder), nil
}

// buffer is memory that is used again.
type buffer struct {
	b     []byte
	class int
}

// get is a buffer of n bytes, of any content.
func (c *Codec) get(n int) *buffer {
	class, size := sizeClass(n)
	if v := c.buffers[class].Get(); v != nil {
		buf := v.(*buffer)
		buf.b = buf.b[:n]
		return buf
	}
	return &buffer{make([]byte, n, size), class}
}

// sizeClass is which pool has buffers of n bytes, and of how many they are in
// truth: there are eight sizes between a power of two and the next.
func sizeClass(n int) (class, size int) {
	n = max(n, 1024)
	shift := bits.Len(uint(n-1)) - 4
	steps := (n-1)>>shift + 1 // 9 to 16
	return shift*8 + steps - 9, steps << shift
}

func (c *Codec) put(buf *buffer) {
	if buf != nil {
		c.buffers[buf.class].Put(buf)
	}
}
