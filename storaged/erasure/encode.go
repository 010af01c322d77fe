package erasure

import (
	"context"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
)

// encodeStripes is how many stripes are in memory at once: one that is read, one
// that waits and one that is written.
const encodeStripes = 3

// Emit takes the next bytes of each of the shards that are made, nil where there
// are none. It calls done, once, when it needs them no longer. Its error ends the
// making.
type Emit func(parts [][]byte, done func()) error

// EncodeMemory is how many bytes Encode and Rebuild hold at most.
func (l Layout) EncodeMemory() int64 {
	_, size := sizeClass(l.Shards() * l.pitch())
	return encodeStripes * int64(size)
}

// pitch is how far the blocks of a stripe are apart in memory.
func (l Layout) pitch() int { return (l.widest() + 63) &^ 63 }

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
	room := newRoom(ctx, c, n*l.pitch())
	blocks := make([][]byte, n)
	for s := range l.Stripes() {
		buf, err := room.get()
		if err != nil {
			return err
		}
		size := l.BlockLen(s)
		parts := make([][]byte, n) // emit keeps it
		for i := range n {
			parts[i] = buf.b[i*l.pitch():][:size+SumSize]
			blocks[i] = parts[i][:size]
			if i >= h.K {
				continue
			}
			_, has := l.Bytes(s, i)
			if _, err := io.ReadFull(r, blocks[i][:has]); err != nil {
				room.put(buf)
				if err == io.EOF {
					err = io.ErrUnexpectedEOF
				}
				return err
			}
			clear(blocks[i][has:])
		}
		if err := enc.Encode(blocks); err != nil {
			room.put(buf)
			return fmt.Errorf("encode fid %d: %w", h.FID, err)
		}
		for i, b := range blocks {
			binary.BigEndian.PutUint32(parts[i][size:], blockSum(seeds[i], s, b))
		}
		if err := emit(parts, func() { room.put(buf) }); err != nil {
			return err
		}
	}
	return nil
}

// blockSum is the sum of a block.
func blockSum(seed uint32, stripe int64, block []byte) uint32 {
	var number [8]byte
	binary.BigEndian.PutUint64(number[:], uint64(stripe))
	return crc32.Update(crc32.Update(seed, castagnoli, number[:]), castagnoli, block)
}

// room hands out as many buffers as may be in memory at once.
type room struct {
	ctx  context.Context
	c    *Codec
	size int
	free chan struct{}
}

func newRoom(ctx context.Context, c *Codec, size int) *room {
	return &room{ctx, c, size, make(chan struct{}, encodeStripes)}
}

// get waits for a buffer. The error is the context's.
func (r *room) get() (*buffer, error) {
	select {
	case r.free <- struct{}{}:
		return r.c.get(r.size), nil
	case <-r.ctx.Done():
		return nil, context.Cause(r.ctx)
	}
}

func (r *room) put(buf *buffer) {
	r.c.put(buf)
	<-r.free
}
