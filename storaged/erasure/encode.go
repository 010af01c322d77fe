package erasure

import (
	"context"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"

	"github.com/klauspost/reedsolomon"
)

// encodeStripes is how many stripes are in memory at once: one that is read, one
// that waits and one that is written.
const encodeStripes = 3

// Emit takes the next bytes of each of the shards that are made, nil where there
// are none. It calls done, once, when it needs them no longer. Its error ends the
// making.
type Emit func(parts [][]byte, done func()) error

// EncodeMemory is how many bytes Encode holds at most.
func (l Layout) EncodeMemory() int64 {
	_, size := sizeClass(l.widest())
	return encodeStripes * int64(l.Shards()) * int64(size)
}

// Encode makes the k+m shards of a file that is read from r to its length, not
// further: emit gets the header and the blocks of all of them, in shard order.
// The header's Index does not matter. Whether the content is what the header says
// is for r to know: its error, io.ErrUnexpectedEOF where it ends too early, ends
// the encoding before the last stripe is emitted.
func (c *Codec) Encode(ctx context.Context, h Header, r io.Reader, emit Emit) error {
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
	if err := emit(heads, func() {}); err != nil {
		return err
	}
	room := make(chan struct{}, encodeStripes)
	blocks := make([][]byte, n)
	for s := range l.Stripes() {
		select {
		case room <- struct{}{}:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		size := l.BlockLen(s)
		// emit keeps both.
		bufs, parts := make([]*buffer, n), make([][]byte, n)
		for i := range n {
			bufs[i] = c.get(size + SumSize)
			parts[i], blocks[i] = bufs[i].b, bufs[i].b[:size]
		}
		done := func() {
			for _, b := range bufs {
				c.put(b)
			}
			<-room
		}
		if err := fill(l, enc, s, r, blocks); err != nil {
			done()
			return fmt.Errorf("encode fid %d: %w", h.FID, err)
		}
		for i, b := range blocks {
			binary.BigEndian.PutUint32(parts[i][size:], blockSum(seeds[i], s, b))
		}
		if err := emit(parts, done); err != nil {
			return err
		}
	}
	return nil
}

// fill reads the blocks of a stripe, and computes their parity.
func fill(l Layout, enc reedsolomon.Encoder, stripe int64, r io.Reader, blocks [][]byte) error {
	for i, b := range blocks[:l.K] {
		_, n := l.Bytes(stripe, i)
		if _, err := io.ReadFull(r, b[:n]); err != nil {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return err
		}
		clear(b[n:])
	}
	return enc.Encode(blocks)
}

// blockSum is the sum of a block.
func blockSum(seed uint32, stripe int64, block []byte) uint32 {
	var number [8]byte
	binary.BigEndian.PutUint64(number[:], uint64(stripe))
	return crc32.Update(crc32.Update(seed, castagnoli, number[:]), castagnoli, block)
}
