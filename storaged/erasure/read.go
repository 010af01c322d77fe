package erasure

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"golang.org/x/sync/semaphore"

	"github.com/mogile/mogile/protocol"
)

// readAhead is about how many bytes of a file are read before they are asked for.
// Sockets hold more.
const readAhead = 1 << 20

// maxWindow bounds how many blocks of a shard are read before they are asked for.
const maxWindow = 8

// Read says what is read, and where.
type Read struct {
	Header Header // of any shard; its Index does not matter
	// At is where the shards are, in their order, 0: it is not known. Where it is
	// nil, Header.Placement says it, or that of a sister which knows better.
	At     []protocol.DevID
	Places Places
	// Sure says that there is no reason to doubt that all shards are there: what comes
	// first is not held back until that is known. Where it turns out wrong, the
	// Stream breaks off.
	Sure bool
	// Suspect is told of each shard that was missing, could not be read, or had a
	// block that is not what was written, once for each, from the goroutine that
	// reads; may be nil.
	Suspect func(index int, dev protocol.DevID, err error)
}

// Stream is a part of a file that is read. It is used by one goroutine at a time.
type Stream struct {
	shards   *shards
	off, end int64  // of the file, that was not read
	piece    []byte // of what was, that was not handed out
	handed   int    // the shard that the last piece is of; -1: there was none
	later    bool   // shards that are wanted are not read yet
	release  func()
}

// Open begins to read n bytes from off of a file, which has them. The first of
// them are there when it returns, and, unless r is Sure, the shards that have the
// others: errors, ErrTooFew and ErrBusy among them, come before the first byte where
// they can. The Stream must be closed; it ends with ctx.
func (c *Codec) Open(ctx context.Context, r Read, off, n int64) (*Stream, error) {
	if err := CheckSet(r.Header.ShardSet); err != nil {
		return nil, err
	}
	l := r.Header.Layout()
	if off < 0 || n < 0 || off > l.Length-n {
		return nil, fmt.Errorf("%d bytes at %d of a file of %d", n, off, l.Length)
	}
	if n == 0 {
		return &Stream{release: func() {}}, nil
	}
	first, i := l.Find(off)
	last, j := l.Find(off + n - 1)
	wants := make([][2]int64, l.Shards())
	for shard := range l.K {
		wants[shard] = [2]int64{first, last + 1}
		if shard < i {
			wants[shard][0]++
		}
		if shard > j {
			wants[shard][1]--
		}
	}
	window, spare, release, err := c.admit(ctx, l, int(min(last-first, maxWindow))+1)
	if err != nil {
		return nil, err
	}
	s := &Stream{off: off, end: off + n, release: release, handed: -1}
	if s.shards, err = c.newShards(ctx, r, wants, last+1, window, c.o.Hedge, spare); err == nil {
		s.shards.advance(first)
		if s.later = r.Sure; s.later {
			s.shards.begin(i)
		} else {
			err = s.ensure()
		}
	}
	if err == nil {
		s.piece, err = s.next()
	}
	if err != nil {
		_ = s.Close() // it has no error
		return nil, err
	}
	return s, nil
}

// ensure sees that there are enough shards: they are there, or of the first stripe
// all is.
func (s *Stream) ensure() error {
	for i := range s.shards.own {
		s.shards.begin(i)
	}
	for i := range s.shards.own {
		if s.shards.own[i].wanted(s.shards.stripe) && !s.shards.opens(i) {
			if _, err := s.shards.block(i); err != nil {
				return err
			}
		}
	}
	return nil
}

// admit takes memory to read so many stripes, and says how many blocks each shard
// may be read ahead. Where there is none for that, because many read or clients
// are slow, there is spare memory: two blocks, which are waited for.
func (c *Codec) admit(ctx context.Context, l Layout, stripes int) (window int, low *spare, release func(), err error) {
	_, size := sizeClass(l.widest())
	for window = min(maxWindow, max(1, readAhead/(l.K*size))); window >= 0; window -= max(window, 1) {
		n := min(c.o.Memory/2, int64(l.K*min(window+2, stripes)+l.M)*int64(size))
		if c.ample.TryAcquire(n) {
			return window, nil, func() { c.ample.Release(n) }, nil
		}
	}
	take := func(from *semaphore.Weighted, n int64) (func(), error) {
		wait, cancel := context.WithTimeoutCause(ctx, c.o.Patience, ErrBusy)
		defer cancel()
		if from.Acquire(wait, n) != nil {
			return nil, context.Cause(wait)
		}
		return func() { from.Release(n) }, nil
	}
	if release, err = take(c.little, min(c.o.Memory/8, 2*int64(size))); err != nil {
		return 0, nil, nil, err
	}
	more := func() (func(), error) { return take(c.stripes, min(c.o.Memory/8*3, int64(l.Shards())*int64(size))) }
	return 0, &spare{more: more}, release, nil
}

// next reads the next piece.
func (s *Stream) next() ([]byte, error) {
	if s.off == s.end {
		return nil, io.EOF
	}
	l := s.shards.l
	stripe, shard := l.Find(s.off)
	if s.later && s.handed >= 0 {
		s.later = false
		for i := range s.shards.own {
			s.shards.begin(i)
		}
	}
	if s.handed >= 0 {
		s.shards.drop(s.handed)
	}
	if stripe != s.shards.stripe {
		s.shards.advance(stripe)
	}
	s.handed = shard
	block, err := s.shards.block(shard)
	if err != nil {
		return nil, err
	}
	off, n := l.Bytes(stripe, shard)
	piece := block[s.off-off : min(int64(n), s.end-off)]
	s.off += int64(len(piece))
	return piece, nil
}

// Next is the next piece, io.EOF after the last. It is the caller's until the next
// call of any method.
func (s *Stream) Next() ([]byte, error) {
	if piece := s.piece; len(piece) > 0 {
		s.piece = nil
		return piece, nil
	}
	if s.off == s.end {
		return nil, io.EOF
	}
	return s.next()
}

// Read implements io.Reader.
func (s *Stream) Read(p []byte) (int, error) {
	piece, err := s.Next()
	n := copy(p, piece)
	if n < len(piece) {
		s.piece = piece[n:]
	}
	return n, err
}

// WriteTo implements io.WriterTo.
func (s *Stream) WriteTo(w io.Writer) (int64, error) {
	var total int64
	for {
		piece, err := s.Next()
		switch {
		case err == io.EOF:
			return total, nil
		case err != nil:
			return total, err
		}
		n, err := w.Write(piece)
		total += int64(n)
		if err != nil {
			return total, err
		}
	}
}

// Close ends the reading and waits until nothing is read any more. It has no
// error.
func (s *Stream) Close() error {
	if s.shards != nil {
		s.shards.close()
		s.shards, s.piece, s.off = nil, nil, s.end
	}
	s.release()
	s.release = func() {}
	return nil
}

// Found is what a device said of its shard.
type Found struct {
	Header Header
	Err    error // fs.ErrNotExist: it has none; ErrHeader: none that can be used
}

// errNowhere is of a shard of which nobody knows where it is.
var errNowhere = errors.New("it is not known where it is")

// Headers reads the headers of the shards that devices have, of all at once, in
// their order. Device 0 has none.
func Headers(ctx context.Context, p Places, devs []protocol.DevID) []Found {
	found := make([]Found, len(devs))
	var all sync.WaitGroup
	for i, dev := range devs {
		if dev == 0 {
			found[i].Err = errNowhere
			continue
		}
		all.Go(func() { found[i].Header, found[i].Err = readHeader(ctx, p, dev) })
	}
	all.Wait()
	return found
}

func readHeader(ctx context.Context, p Places, dev protocol.DevID) (Header, error) {
	body, err := p.Open(ctx, dev, 0, HeaderSize)
	if err != nil {
		return Header{}, err
	}
	defer body.Close() // of what was read
	b := make([]byte, HeaderSize)
	switch n, err := io.ReadFull(body, b); err {
	case nil, io.EOF, io.ErrUnexpectedEOF:
		return ParseHeader(b[:n])
	default:
		return Header{}, err
	}
}
