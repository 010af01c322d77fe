package tracker

import (
	"bufio"
	"errors"
	"io"
	"sync/atomic"
)

const (
	// readBuffer is what every connection has for reading; longer lines are
	// gathered in a buffer of their own.
	readBuffer = 4 << 10
	// longLines bounds the memory of all long lines that are being gathered.
	longLines = 256 << 20
)

// errLongLine is a request line beyond the limit, or one more long line than
// there is memory set aside for.
var errLongLine = errors.New("request line is too long")

// lines splits a connection's input at LF.
type lines struct {
	r    *bufio.Reader
	max  int
	pool *atomic.Int64 // bytes of long lines, of all connections
	long []byte        // a line that did not fit r
}

func newLines(r io.Reader, maxLine int, pool *atomic.Int64) *lines {
	return &lines{r: bufio.NewReaderSize(r, readBuffer), max: maxLine, pool: pool}
}

// next is the next line without its LF and a CR before it, valid until the
// following call. What comes after the last LF is not a line. It returns
// errLongLine, or the reader's error.
func (l *lines) next() ([]byte, error) {
	l.free()
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
	held := cap(l.long)
	l.long = append(l.long, part...)
	if l.pool.Add(int64(cap(l.long)-held)) > longLines {
		return errLongLine
	}
	return nil
}

// free lets the long line go.
func (l *lines) free() {
	if l.long != nil {
		l.pool.Add(-int64(cap(l.long)))
		l.long = nil
	}
}
