package storaged

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
)

// Errors of a request's body. Their causes are wrapped with them.
var (
	errSlowBody      = errors.New("the client sent nothing for too long")
	errMalformedBody = errors.New("malformed chunked body")
	errBrokenBody    = errors.New("the client went away in the middle of the body")
)

// Bounds of a chunked body, in bytes.
const (
	maxChunkLine = 4 << 10  // the line before a chunk, with its extensions
	maxTrailer   = 16 << 10 // the trailer
)

// body is a request's body. While it has not ended the client must send
// something within the connection's timeout.
type body struct {
	in      *input
	conn    *conn
	proceed func() error // tells a client that waits for it to send the body; nil where none does
	chunked bool
	left    int64 // of the body, or of the chunk
	begun   bool  // there was a chunk
	n       int64 // bytes that were received
	trailer []string
	err     error // how it ended; io.EOF for well
}

// reset makes b the body of a request.
func (b *body) reset(h *head, proceed func() error) {
	*b = body{in: b.in, conn: b.conn}
	switch {
	case h.length < 0:
		b.chunked = true
	case h.length == 0:
		b.err = io.EOF
	default:
		b.left = h.length
	}
	if h.expect {
		b.proceed = proceed
	}
}

// Read implements io.Reader. Its errors are io.EOF, or match errSlowBody,
// errMalformedBody or errBrokenBody.
func (b *body) Read(p []byte) (int, error) {
	if b.err != nil || len(p) == 0 {
		return 0, b.err
	}
	n, err := b.read(p)
	b.n += int64(n)
	if err != nil {
		b.err = err
	}
	return n, err
}

func (b *body) read(p []byte) (int, error) {
	if b.proceed != nil {
		proceed := b.proceed
		b.proceed = nil
		if err := proceed(); err != nil {
			return 0, fmt.Errorf("%w: %w", errBrokenBody, err)
		}
	}
	b.extend() // here, for the time that the disk takes is not the client's
	if b.chunked && b.left == 0 {
		if err := b.nextChunk(); err != nil {
			return 0, b.explain(err)
		}
	}
	n, err := b.in.read(p[:min(int64(len(p)), b.left)])
	b.left -= int64(n)
	switch {
	case err != nil:
		return n, b.explain(err)
	case b.left == 0 && !b.chunked:
		b.err = io.EOF // for the next Read
	}
	return n, nil
}

// extend moves the deadline ahead, not more than eight times in a timeout.
func (b *body) extend() {
	b.conn.readWithin(b.conn.from.timeout)
}

// errChunk is malformed about a chunked body.
var errChunk = errors.New("malformed chunk")

func (b *body) explain(err error) error {
	switch {
	case err == io.EOF && b.chunked && b.left == 0 && b.trailer != nil:
		return io.EOF
	case errors.Is(err, os.ErrDeadlineExceeded):
		return fmt.Errorf("%w: %w", errSlowBody, err)
	case errors.Is(err, errChunk), errors.Is(err, errLongLine):
		return fmt.Errorf("%w: %w", errMalformedBody, err)
	}
	return fmt.Errorf("%w: %w", errBrokenBody, err)
}

// nextChunk reads up to the content of the next chunk. It is io.EOF, with a
// trailer, where there is none.
func (b *body) nextChunk() error {
	if b.begun {
		end, err := b.in.line(2)
		switch {
		case err != nil:
			return err
		case string(end) != "\r\n":
			return fmt.Errorf("%w: no line end behind it", errChunk)
		}
	}
	b.begun = true
	line, err := b.in.line(maxChunkLine)
	if err != nil {
		return err
	}
	if b.left, err = parseChunk(line); err != nil || b.left > 0 {
		return err
	}
	return b.readTrailer()
}

// parseChunk reads the line before a chunk, its end included: the chunk's size,
// and extensions of which nothing is known. Lines end in CRLF: a chunked body
// has binary content, and a recipient that took bare LF would see other chunks
// than one that does not.
func parseChunk(line []byte) (int64, error) {
	line, ok := bytes.CutSuffix(line, []byte("\r\n"))
	if !ok {
		return 0, fmt.Errorf("%w: line does not end in CRLF", errChunk)
	}
	for _, c := range line {
		if c < ' ' && c != '\t' || c == 0x7f {
			return 0, fmt.Errorf("%w: control character", errChunk)
		}
	}
	size, _, _ := bytes.Cut(line, []byte{';'})
	size = bytes.TrimRight(size, " \t") // RFC 9112 has recipients take blanks there
	if len(size) == 0 {
		return 0, fmt.Errorf("%w: no size", errChunk)
	}
	var n int64
	for _, c := range size {
		digit := int64(c) - '0'
		switch {
		case c >= 'a' && c <= 'f':
			digit = int64(c) - 'a' + 10
		case c >= 'A' && c <= 'F':
			digit = int64(c) - 'A' + 10
		case !isDigit(c):
			return 0, fmt.Errorf("%w: size", errChunk)
		}
		if n > math.MaxInt64>>4 {
			return 0, fmt.Errorf("%w: size: %w", errChunk, errOverflow)
		}
		n = n<<4 | digit
	}
	return n, nil
}

// readTrailer reads what follows the last chunk. Only the digest is kept.
func (b *body) readTrailer() error {
	var block []byte
	for {
		line, err := b.in.line(maxChunkLine)
		switch {
		case err != nil:
			return err
		case len(block)+len(line) > maxTrailer:
			return fmt.Errorf("%w: trailer is too long", errChunk)
		case !bytes.HasSuffix(line, []byte("\r\n")):
			return fmt.Errorf("%w: line of the trailer does not end in CRLF", errChunk)
		}
		block = append(block, line...)
		if len(line) == len("\r\n") {
			break
		}
	}
	b.trailer = []string{}
	err := eachField(block, func(name, value []byte) error {
		if string(name) == sumHeader {
			b.trailer = append(b.trailer, string(value))
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("%w: trailer: %w", errChunk, err)
	}
	return io.EOF
}

// discard reads on, for limit bytes at most, and reports whether that was all.
func (b *body) discard(limit int64) bool {
	if b.err == nil {
		// How it ended is in b.err.
		io.CopyN(io.Discard, b, limit)
	}
	return b.err == io.EOF
}
