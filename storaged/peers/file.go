package peers

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
)

const (
	// firstWindow is the least that is asked for where a file is read on from where
	// the last read ended, in bytes. It doubles up to maxWindow, so that somebody who
	// reads a little gets little, and somebody who reads all needs few requests.
	firstWindow = 512 << 10
	maxWindow   = 16 << 20
)

// File is a file of a storage daemon that is read in pieces. Reads that follow
// each other share a request. Its methods may be called concurrently; of reads
// at a time one shares.
type File struct {
	client       *Client
	daemon, path string
	until        int64 // no more is asked for than is read, or than is in front of this

	mu     sync.Mutex // guards what follows; held by the read that shares
	piece  *Piece     // nil: none is open
	next   int64      // the offset at which piece goes on
	window int64
}

// Open makes a File of which nothing was asked for yet. Reads that follow each
// other may have more asked for than they want, but nothing from until on.
func (c *Client) Open(daemon, path string, until int64) *File {
	return &File{client: c, daemon: daemon, path: path, until: until, next: -1}
}

// ReadAt fills b from off. Errors are those of [Client.Get], or say that the
// daemon broke off; io.ErrUnexpectedEOF that the file ends in the piece. The read ends
// with ctx.
func (f *File) ReadAt(ctx context.Context, b []byte, off int64) error {
	if !f.mu.TryLock() {
		p, err := f.client.Get(ctx, f.daemon, f.path, off, int64(len(b)))
		if err != nil {
			return err
		}
		defer p.Close()
		return fill(p, b)
	}
	defer f.mu.Unlock()
	if f.piece != nil && f.next != off {
		f.drop()
	}
	for first := true; len(b) > 0; first = false {
		if f.piece != nil && f.piece.left == 0 {
			f.drop()
		}
		if f.piece == nil {
			err := f.ask(ctx, off, int64(len(b)), first && f.next != off)
			switch {
			case !first && errors.Is(err, io.EOF):
				return fmt.Errorf("GET %s/%s at %d: %w", f.daemon, f.path, off, io.ErrUnexpectedEOF)
			case err != nil:
				return err
			}
		}
		n := int(min(int64(len(b)), f.piece.left))
		if err := f.read(ctx, b[:n]); err != nil {
			return err
		}
		b, off = b[n:], off+int64(n)
		f.next = off
	}
	return nil
}

// ask asks for at least n bytes at off. The caller holds mu.
func (f *File) ask(ctx context.Context, off, n int64, elsewhere bool) error {
	f.window = min(max(2*f.window, firstWindow), maxWindow)
	if elsewhere {
		f.window = 0
	}
	// The request outlives this read, and ends with the file.
	p, err := f.client.get(context.WithoutCancel(ctx), ctx, f.daemon, f.path, off, max(n, min(f.window, f.until-off)))
	if err == nil {
		f.piece = p
	}
	return err
}

// read fills b from what was asked for. The caller holds mu.
func (f *File) read(ctx context.Context, b []byte) error {
	p := f.piece
	stop := context.AfterFunc(ctx, func() { p.cancel(context.Cause(ctx)) })
	err := fill(p, b)
	if !stop() || err != nil {
		f.drop()
	}
	return err
}

// fill reads all of b.
func fill(p *Piece, b []byte) error {
	_, err := io.ReadFull(p, b)
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return err
}

func (f *File) drop() {
	_ = f.piece.Close() // nothing more is wanted of it
	f.piece = nil
}

// Close ends what is open. No read may be under way.
func (f *File) Close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.piece != nil {
		f.drop()
	}
}
