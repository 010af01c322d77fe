package tracker

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"time"
)

const (
	// readBuffer is what every connection has for reading; longer lines are
	// gathered in a buffer of their own.
	readBuffer = 4 << 10
	// ownLine is how long a line may be, in bytes, without drawing on what all
	// connections share.
	ownLine = 64 << 10
	// longLines bounds the memory of all lines longer than that.
	longLines = 64 << 20
)

var (
	// errLongLine is a request line beyond the limit.
	errLongLine = errors.New("request line is too long")
	// errLongLines, which is also an errLongLine, is one more long line than there is memory set aside for.
	errLongLines = fmt.Errorf("too many at once: %w", errLongLine)
)

// lines splits a connection's input at LF.
type lines struct {
	from  io.Reader
	r     *bufio.Reader // of from, through Read
	max   int
	pool  *atomic.Int64 // bytes of long lines, of all connections
	long  []byte        // a line that did not fit r
	drawn int64         // of pool
	begun atomic.Int64  // when the line that is waited for began to arrive, in Unix ns; 0: it has not
}

func newLines(r io.Reader, maxLine int, pool *atomic.Int64) *lines {
	l := &lines{from: r, max: maxLine, pool: pool}
	l.r = bufio.NewReaderSize(l, readBuffer)
	return l
}

// Read reads more for r, which has no whole line.
func (l *lines) Read(p []byte) (int, error) {
	if l.begun.Load() == 0 && (l.r.Buffered() > 0 || l.long != nil) {
		l.begun.Store(time.Now().UnixNano())
	}
	return l.from.Read(p)
}

// ready reports whether something of the next line is there already.
func (l *lines) ready() bool { return l.r.Buffered() > 0 }

// next is the next line without its LF and a CR before it, valid until the
// following call. What comes after the last LF is not a line. It returns
// errLongLine or the reader's error.
func (l *lines) next() ([]byte, error) {
	l.free()
	defer l.begun.Store(0)
	line, err := l.r.ReadSlice('\n')
	for errors.Is(err, bufio.ErrBufferFull) {
		if err := l.gather(line); err != nil {
			return nil, err
		}
		line, err = l.r.ReadSlice('\n')
	}
	if err != nil {
		return nil, err
	}
	if l.long != nil {
		if err := l.gather(line); err != nil {
			return nil, err
		}
		line = l.long
	}
	line = line[:len(line)-1]
	if n := len(line); n > 0 && line[n-1] == '\r' {
		line = line[:n-1]
	}
	return line, nil
}

func (l *lines) gather(part []byte) error {
	if len(l.long)+len(part) > l.max {
		return errLongLine
	}
	l.long = append(l.long, part...)
	draws := max(int64(cap(l.long))-ownLine, 0)
	inAll := l.pool.Add(draws - l.drawn)
	more := draws > l.drawn
	l.drawn = draws
	if more && inAll > longLines {
		return errLongLines
	}
	return nil
}

// free lets the long line go.
func (l *lines) free() {
	l.pool.Add(-l.drawn)
	l.long, l.drawn = nil, 0
}
