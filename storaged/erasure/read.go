package erasure

import (
	"context"
	"errors"
	"io"

	"github.com/mogile/mogile/protocol"
)

// Read says what is read, and where.
type Read struct {
	Header Header // of any shard; its Index does not matter
	// At is where the shards are, in their order, 0: it is not known. It is
	// Header.Placement.Devices where it is nil.
	At     []protocol.DevID
	Places Places
	// Suspect is told of each shard that was missing, could not be read, or had a
	// block that is not what was written, from the goroutine that reads; may be nil.
	Suspect func(index int, dev protocol.DevID, err error)
}

// Stream is a part of a file that is read. It is used by one goroutine at a time.
type Stream struct{}

// Open begins to read n bytes from off of a file, which has them. The first of
// them are there when it returns: errors, ErrTooFew and ErrBusy among them, come
// before the first byte where they can. The Stream must be closed.
func (c *Codec) Open(ctx context.Context, r Read, off, n int64) (*Stream, error) {
	return nil, errors.ErrUnsupported
}

// Next is the next piece, io.EOF after the last. It is the caller's until the next
// call of any method.
func (s *Stream) Next() ([]byte, error) { return nil, io.EOF }

// WriteTo implements io.WriterTo.
func (s *Stream) WriteTo(w io.Writer) (int64, error) { return 0, nil }

// Read implements io.Reader.
func (s *Stream) Read(p []byte) (int, error) { return 0, io.EOF }

// Close ends the reading and waits until nothing is read any more.
func (s *Stream) Close() error { return nil }

// Found is what a device said of its shard.
type Found struct {
	Header Header
	Err    error // fs.ErrNotExist: it has none; ErrHeader: none that can be used
}

// Headers reads the headers of the shards that devices have, of all at once, in
// their order. Device 0 has none.
func Headers(ctx context.Context, p Places, devs []protocol.DevID) []Found { return nil }

// Rebuild makes shards of others: those of the indexes in writes, ascending, each
// with r.Header at its beginning, of which the placement is the new one. What
// stands in At of an index that is to be written is copied, as far as it is what
// was written. emit gets parts in the order of writes.
func (c *Codec) Rebuild(ctx context.Context, r Read, writes []int, emit Emit) error {
	return errors.ErrUnsupported
}

// State is what Verify finds.
type State struct {
	Header Header
	Sized  bool  // the shard has the size that it should have
	Blocks int64 // that it should have
	Bad    int64 // of them, that are not what was written, or not there
}

// Verify reads a shard of size bytes from its beginning, and compares each block
// with its sum. progress is told of bytes that were read and may wait, or end it
// by an error. Errors match ErrHeader, or are those of r and progress.
func (c *Codec) Verify(r io.Reader, size int64, progress func(n int) error) (State, error) {
	return State{}, errors.ErrUnsupported
}
