package erasure

import (
	"encoding/binary"
	"fmt"
	"io"
)

// State is what Verify finds.
type State struct {
	Header Header
	Sized  bool  // the shard has the size that it should have
	Blocks int64 // that it should have
	Bad    int64 // of them, that are not what was written, or not there
}

// Verify reads a shard of size bytes from its beginning, and compares each block
// with its sum. progress is told of bytes that were read and may wait, or end it
// by an error. Errors match ErrHeader, or are those of r and progress. What r was
// to read into when it failed is lent for good, as to those of [Places].
func (c *Codec) Verify(r io.Reader, size int64, progress func(n int) error) (State, error) {
	head := make([]byte, HeaderSize)
	n, err := io.ReadFull(r, head)
	if err != nil && err != io.EOF && err != io.ErrUnexpectedEOF {
		return State{}, err
	}
	h, err := ParseHeader(head[:n])
	if err != nil {
		return State{}, err
	}
	l := h.Layout()
	seed := h.seed()
	st := State{Header: h, Sized: size == l.ShardSize(), Blocks: l.Stripes()}
	buf := c.get(max(l.widest(), 1))
	defer func() { c.put(buf) }()
	for s := range st.Blocks {
		block := buf.b[:l.BlockLen(s)+SumSize]
		switch n, err := io.ReadFull(r, block); err {
		case nil:
		case io.EOF, io.ErrUnexpectedEOF:
			st.Bad += st.Blocks - s
			return st, nil
		default:
			buf = nil
			return st, fmt.Errorf("block %d, at %d: %w", s, l.Offset(s)+int64(n), err)
		}
		end := len(block) - SumSize
		if binary.BigEndian.Uint32(block[end:]) != blockSum(seed, s, block[:end]) {
			st.Bad++
		}
		if err := progress(len(block)); err != nil {
			return st, err
		}
	}
	return st, nil
}
