package storaged

import (
	"bytes"
	"errors"
	"io"
	"sync"
)

// smallInput is what a connection always has to read into. It holds any
// ordinary request; larger header blocks borrow more.
const smallInput = 4 << 10

// input is what came from a client and was not looked at yet.
type input struct {
	from  io.Reader
	small [smallInput]byte
	large *[maxHeader]byte // borrowed, or nil
	pool  *sync.Pool       // of *[maxHeader]byte
	buf   []byte           // small or large
	r, w  int              // buf[r:w] is what there is
}

// errLongLine is the error of a line or block that does not fit.
var errLongLine = errors.New("line too long")

func newInput(from io.Reader, pool *sync.Pool) *input {
	in := &input{from: from, pool: pool}
	in.buf = in.small[:]
	return in
}

func (in *input) buffered() int { return in.w - in.r }

// fill reads once, at least one byte.
func (in *input) fill() error {
	if in.r == in.w {
		in.r, in.w = 0, 0
		in.shrink()
	}
	if in.w == len(in.buf) {
		if in.r == 0 && !in.grow() {
			return errLongLine
		}
		in.w = copy(in.buf, in.buf[in.r:in.w])
		in.r = 0
	}
	n, err := in.from.Read(in.buf[in.w:])
	in.w += n
	if n > 0 {
		return nil
	}
	if err == nil {
		return io.ErrNoProgress
	}
	return err
}

// grow borrows more room.
func (in *input) grow() bool {
	if in.large != nil {
		return false
	}
	large, ok := in.pool.Get().(*[maxHeader]byte)
	if !ok {
		large = new([maxHeader]byte)
	}
	copy(large[:], in.buf[:in.w])
	in.large, in.buf = large, large[:]
	return true
}

// shrink gives borrowed room back. Nothing must be buffered.
func (in *input) shrink() {
	if in.large != nil {
		in.pool.Put(in.large)
		in.large, in.buf = nil, in.small[:]
	}
}

// hasHead reports whether a header block is complete, so that head does not read.
func (in *input) hasHead() bool {
	b := in.buf[in.r:in.w]
	return len(b) > 0 && b[0] > ' ' && headEnd(b, 0) > 0
}

// head reads a header block, its empty line included, which is valid until the
// next read. Empty lines before it are passed over.
func (in *input) head() ([]byte, error) {
	searched, blank := 0, 0
	for {
		if searched == 0 {
			for in.r < in.w && (in.buf[in.r] == '\n' || in.buf[in.r] == '\r' && in.r+1 < in.w && in.buf[in.r+1] == '\n') {
				if blank++; blank > maxBlank {
					return nil, errLongLine
				}
				in.r++
			}
		}
		b := in.buf[in.r:in.w]
		if n := headEnd(b, searched); n > 0 {
			if n >= maxHeader {
				return nil, errLongLine
			}
			in.r += n
			return b[:n:n], nil
		}
		// The last line end may have its empty line still to come.
		searched = max(0, len(b)-2)
		if err := in.fill(); err != nil {
			return nil, err
		}
	}
}

// line reads a line of at most limit bytes, its end included, which is valid
// until the next read.
func (in *input) line(limit int) ([]byte, error) {
	searched := 0
	for {
		b := in.buf[in.r:in.w]
		if i := bytes.IndexByte(b[searched:], '\n'); i >= 0 {
			n := searched + i + 1
			if n > limit {
				return nil, errLongLine
			}
			in.r += n
			return b[:n], nil
		}
		if searched = len(b); searched >= limit {
			return nil, errLongLine
		}
		if err := in.fill(); err != nil {
			return nil, err
		}
	}
}

// read reads at most len(p) bytes, past the buffer where that has nothing.
func (in *input) read(p []byte) (int, error) {
	if in.r == in.w {
		if len(p) >= smallInput {
			n, err := in.from.Read(p)
			if n > 0 {
				err = nil
			}
			return n, err
		}
		if err := in.fill(); err != nil {
			return 0, err
		}
	}
	n := copy(p, in.buf[in.r:in.w])
	in.r += n
	return n, nil
}
