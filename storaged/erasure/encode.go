package erasure

import (
	"context"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"sync"

	"github.com/klauspost/reedsolomon"
)

const (
	// inFlight is how many batches are in memory at once, at least: one that is read,
	// one that waits and one that is written.
	inFlight = 3
	// maxInFlight is how many there are where that is not much.
	maxInFlight = 6
	// maxBatch is how many stripes are made at a time, where they are small enough:
	// who takes them is woken less often.
	maxBatch = 2
	// encoders is how many goroutines compute a file.
	encoders = 2
	// encodeMemory is how many bytes a file may need for more than it must have.
	encodeMemory = 15 << 20
)

// Emit takes the next bytes of each of the shards that are made, nil where there
// are none. It calls done, once, when it needs them no longer, and says whether
// they may be used again: who hangs may read them still. Its error ends the making.
type Emit func(parts [][]byte, done func(reuse bool)) error

// EncodeMemory is how many bytes Encode holds at most.
func (l Layout) EncodeMemory() int64 {
	return l.batches() * l.batchSize(l.Batch())
}

// batchSize is how many bytes the shards of n stripes need.
func (l Layout) batchSize(n int64) int64 {
	_, size := sizeClass(int(n) * l.widest())
	return int64(l.Shards()) * int64(size)
}

// batches is how many there are in memory.
func (l Layout) batches() int64 {
	return max(inFlight, min(maxInFlight, encodeMemory/l.batchSize(l.Batch())))
}

// Batch is how many stripes Encode reads before it emits them, at most.
func (l Layout) Batch() int64 {
	return max(1, min(maxBatch, l.Stripes(), encodeMemory/inFlight/l.batchSize(1)))
}

// Content is a file that shards are made of.
type Content interface {
	// Next fills blocks, one after the other, with the next bytes of the file. They
	// are lent until then, and after an error for good: who hangs may come back and
	// write to them. Where the file ends too early the error is
	// io.ErrUnexpectedEOF.
	Next(blocks [][]byte) error
	// End is told the CRC32C of all that Next gave, and says whether that is what the
	// file should be.
	End(crc32c uint32) error
}

// From is the content that a reader has, whatever it is.
func From(r io.Reader) Content { return stream{r} }

type stream struct{ io.Reader }

// Next implements Content.
func (s stream) Next(blocks [][]byte) error {
	for _, b := range blocks {
		if _, err := io.ReadFull(s, b); err == io.EOF {
			return io.ErrUnexpectedEOF
		} else if err != nil {
			return err
		}
	}
	return nil
}

// End implements Content.
func (stream) End(uint32) error { return nil }

// Encode makes the k+m shards of a file, of which it reads the length that the
// header says and no more: emit gets the header and the blocks of all of them, in
// shard order. The header's Index does not matter. Whether the content is what the
// header says is for from to know: its error ends the encoding before the last
// stripes are emitted.
func (c *Codec) Encode(ctx context.Context, h Header, from Content, emit Emit) error {
	n := h.Shards()
	h.Index = 0
	if err := h.Check(); err != nil {
		return fmt.Errorf("encode fid %d: %w", h.FID, err)
	}
	l := h.Layout()
	enc, err := c.encoder(l)
	if err != nil {
		return fmt.Errorf("encode fid %d in %d+%d shards: %w", h.FID, h.K, h.M, err)
	}
	seeds := make([]uint32, n)
	heads := make([][]byte, n)
	for i := range n {
		own := h.of(i)
		seeds[i], heads[i] = own.seed(), own.Bytes()
	}
	if err := emit(heads, func(bool) {}); err != nil {
		return err
	}
	if l.Length == 0 {
		if err := from.End(0); err != nil {
			return fmt.Errorf("encode fid %d: %w", h.FID, err)
		}
		return nil
	}
	ctx, cancel := context.WithCancelCause(ctx)
	e := &encoding{
		c: c, l: l, enc: enc, seeds: seeds, from: from,
		room: make(chan struct{}, l.batches()), turn: make(chan int64, 1), read: make(chan *batch, l.batches()),
	}
	e.turn <- 0
	var coders sync.WaitGroup
	for range min(encoders, (l.Stripes()-1)/l.Batch()+1) {
		coders.Go(func() { e.code(ctx) })
	}
	defer coders.Wait()
	defer cancel(nil)
	all := newSummer(l.Block)
	for at := int64(0); at < l.Stripes(); {
		var b *batch
		select {
		case b = <-e.read:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		<-b.ready
		if b.err == nil {
			b.sum(all)
			if at = b.end; at == l.Stripes() {
				b.err = from.End(all.sum)
			}
		}
		if b.err != nil {
			return fmt.Errorf("encode fid %d: %w", h.FID, b.err)
		}
		if err := emit(b.parts, b.done); err != nil {
			return err
		}
	}
	return nil
}

// encoding is a file that is being encoded. Those who code take turns to read the
// next batch, and compute what they have read while others read: as long as
// processors have it near.
type encoding struct {
	c     *Codec
	l     Layout
	enc   reedsolomon.Encoder
	seeds []uint32
	from  Content
	room  chan struct{} // of as many batches as may be in memory
	turn  chan int64    // has the stripe that is read next, unless somebody reads
	read  chan *batch   // in order, with room for all
}

// batch is some stripes of a file: the next bytes of each of its shards.
type batch struct {
	e          *encoding
	first, end int64
	bufs       []*buffer
	parts      [][]byte      // in bufs
	ready      chan struct{} // closed when all is computed
	crcs       []uint32      // of the data of each block, stripe by stripe
	err        error         // to be looked at when it is ready
}

// code reads and computes batches until there are no more.
func (e *encoding) code(ctx context.Context) {
	for {
		var first int64
		select {
		case first = <-e.turn:
		case <-ctx.Done():
			return
		}
		if first >= e.l.Stripes() {
			e.turn <- first
			return
		}
		select {
		case e.room <- struct{}{}:
		case <-ctx.Done():
			return
		}
		b := e.next(first)
		e.read <- b
		if b.err == nil {
			e.turn <- b.end
			b.compute()
		}
		failed := b.err != nil
		close(b.ready)
		if failed {
			return // where reading failed nobody has the turn any more
		}
	}
}

// next reads the data of a batch.
func (e *encoding) next(first int64) *batch {
	n := e.l.Shards()
	b := &batch{
		e: e, first: first, end: min(first+e.l.Batch(), e.l.Stripes()),
		bufs: make([]*buffer, n), parts: make([][]byte, n), ready: make(chan struct{}),
	}
	size := int(e.l.Offset(b.end) - e.l.Offset(first))
	for i := range n {
		b.bufs[i] = e.c.get(size)
		b.parts[i] = b.bufs[i].b
	}
	data := make([][]byte, e.l.K)
	for s := first; s < b.end && b.err == nil; s++ {
		for i := range data {
			data[i] = b.data(s, i)
		}
		b.err = e.from.Next(data) // which keeps the memory after an error
	}
	return b
}

// done lets go of the memory.
func (b *batch) done(reuse bool) {
	for _, buf := range b.bufs {
		if reuse {
			b.e.c.put(buf)
		}
	}
	<-b.e.room
}

// block is the place of a block, without its sum.
func (b *batch) block(stripe int64, i int) []byte {
	return b.parts[i][b.e.l.Offset(stripe)-b.e.l.Offset(b.first):][:b.e.l.BlockLen(stripe)]
}

// data is the part of a block that bytes of the file have.
func (b *batch) data(stripe int64, i int) []byte {
	_, n := b.e.l.Bytes(stripe, i)
	return b.block(stripe, i)[:n]
}

// compute computes parity, and the sums of blocks.
func (b *batch) compute() {
	l := b.e.l
	blocks := make([][]byte, len(b.parts))
	var ahead summer
	for s := b.first; s < b.end; s++ {
		for i := range blocks {
			blocks[i] = b.block(s, i)
			if i < l.K {
				clear(blocks[i][len(b.data(s, i)):])
			}
		}
		if b.err = b.e.enc.Encode(blocks); b.err != nil {
			return
		}
		for i, block := range blocks {
			own := crc32.Checksum(block, castagnoli)
			binary.BigEndian.PutUint32(block[len(block):][:SumSize], ahead.join(stripeSeed(b.e.seeds[i], s), own, len(block)))
			if i < l.K {
				if data := b.data(s, i); len(data) < len(block) {
					own = crc32.Checksum(data, castagnoli)
				}
				b.crcs = append(b.crcs, own)
			}
		}
	}
}

// sum adds the data to the sum of all before it.
func (b *batch) sum(all *summer) {
	for s := b.first; s < b.end; s++ {
		for i := range b.e.l.K {
			all.add(b.crcs[int(s-b.first)*b.e.l.K+i], len(b.data(s, i)))
		}
	}
}

// blockSum is the sum of a block.
func blockSum(seed uint32, stripe int64, block []byte) uint32 {
	return crc32.Update(stripeSeed(seed, stripe), castagnoli, block)
}

// stripeSeed is from where the sum of a block of a stripe goes on.
func stripeSeed(seed uint32, stripe int64) uint32 {
	var number [8]byte
	binary.BigEndian.PutUint64(number[:], uint64(stripe))
	return crc32.Update(seed, castagnoli, number[:])
}

// summer computes CRC32Cs of pieces one behind the other, of which those of the
// pieces are known: bytes are looked at once, however many sums they are in.
type summer struct {
	sum  uint32 // of all that were added
	last int    // length of the last piece
	jump uint32 // x^(8*last), modulo the polynomial; 0 where last is that of nothing
}

func newSummer(usual int) *summer { return &summer{last: usual, jump: power(usual)} }

// add adds a piece of n bytes.
func (s *summer) add(crc uint32, n int) { s.sum = s.join(s.sum, crc, n) }

// join is the CRC32C of something followed by n bytes.
func (s *summer) join(before, crc uint32, n int) uint32 {
	if n != s.last || s.jump == 0 {
		s.last, s.jump = n, power(n)
	}
	return multiply(s.jump, before) ^ crc
}

// multiply is the product of two polynomials modulo that of CRC32C, in its order
// of bits: x^0 is the highest.
func multiply(a, b uint32) uint32 {
	var product uint32
	for ; a != 0; a <<= 1 {
		product ^= b & -(a >> 31)
		b = b>>1 ^ crc32.Castagnoli&-(b&1)
	}
	return product
}

// power is x^(8*n) modulo the polynomial.
func power(n int) uint32 {
	result, square := uint32(1)<<31, uint32(1)<<23 // x^0, x^8
	for ; n > 0; n >>= 1 {
		if n&1 != 0 {
			result = multiply(result, square)
		}
		square = multiply(square, square)
	}
	return result
}
