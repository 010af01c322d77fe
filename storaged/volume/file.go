package volume

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"sync/atomic"
	"syscall"
	"time"
)

// bufferSize is how much is read or written in one operation. Memory never
// grows with the size of a file.
const bufferSize = 64 << 10

// File is a file open for reading. Read and Close may not be called
// concurrently with each other; ReadAt may.
type File struct {
	v      *Volume
	name   string
	h      Handle
	info   Info
	off    int64
	closed atomic.Bool

	fetched span // was prefetched when the file was opened
}

// span are bytes from one offset up to another.
type span struct{ from, to int64 }

var (
	_ io.ReadCloser = (*File)(nil)
	_ io.ReaderAt   = (*File)(nil)
)

// Size is the file's length in bytes when it was opened.
func (f *File) Size() int64 { return f.info.Size }

// ModTime is when the content was stored.
func (f *File) ModTime() time.Time { return f.info.ModTime }

// OSFile is the open file, for sendfile(2), or nil on a simulated disk. Its
// offset is its own: Read does not move it. It is closed by [File.Close]. What
// is read through it bypasses the volume's care for sick disks, so call
// [File.Prefetch] for each piece first.
func (f *File) OSFile() *os.File { return f.h.OSFile() }

// Prefetch has n bytes at off read into the system's memory, so that sending
// them through [File.OSFile] waits for the network alone. Pieces of about 1 MiB
// serve well. It waits as [File.ReadAt] does.
func (f *File) Prefetch(ctx context.Context, off, n int64) error {
	n = min(n, f.info.Size-off)
	if n <= 0 || off >= f.fetched.from && off+n <= f.fetched.to {
		return nil
	}
	_, err := do(ctx, f.v, func(*task) (struct{}, error) {
		return struct{}{}, f.h.Prefetch(off, n)
	}, nil)
	return wrap("prefetch", f.v.id, f.name, err)
}

// Read reads on from where the last Read ended.
func (f *File) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	n, err := f.ReadSome(context.Background(), p, f.off)
	f.off += int64(n)
	if n > 0 && err == io.EOF {
		err = nil
	}
	return n, err
}

// ReadAt reads at off. It waits for a hanging disk for StuckAfter at most, and
// answers [ErrSick] then.
func (f *File) ReadAt(p []byte, off int64) (int, error) {
	total := 0
	for total < len(p) {
		n, err := f.ReadSome(context.Background(), p[total:], off+int64(total))
		total += n
		if err != nil {
			return total, err
		}
	}
	return total, nil
}

// ReadSome reads as much of p at off as one operation does, for a caller who
// waits no longer than ctx.
func (f *File) ReadSome(ctx context.Context, p []byte, off int64) (int, error) {
	return f.readAt(ctx, p[:min(len(p), bufferSize)], off)
}

// ReadParts fills parts, one after the other, with what is at off, in one operation
// and without a copy: for those who read much, about 1 MiB at a time. They are
// lent for good where it fails: a read that hangs may come back and write to them.
// Where the file ends before they are full the error is io.ErrUnexpectedEOF.
func (f *File) ReadParts(ctx context.Context, parts [][]byte, off int64) error {
	if f.closed.Load() {
		return wrap("read", f.v.id, f.name, fs.ErrClosed)
	}
	parts = slices.Clone(parts) // the memory is lent, not the list
	_, err := do(ctx, f.v, func(*task) (struct{}, error) {
		at := off
		for _, p := range parts {
			n, err := f.h.ReadAt(p, at)
			at += int64(n)
			if n < len(p) {
				if errors.Is(err, io.EOF) {
					err = io.ErrUnexpectedEOF
				}
				return struct{}{}, fmt.Errorf("at %d: %w", at, err)
			}
		}
		return struct{}{}, nil
	}, nil)
	return wrap("read", f.v.id, f.name, err)
}

// readAt reads through a buffer of its own: a read that hangs may come back and
// write when p is its caller's again.
func (f *File) readAt(ctx context.Context, p []byte, off int64) (int, error) {
	if f.closed.Load() {
		return 0, wrap("read", f.v.id, f.name, fs.ErrClosed)
	}
	type piece struct {
		buf *[bufferSize]byte
		n   int
		eof bool
	}
	got, err := do(ctx, f.v, func(*task) (piece, error) {
		buf := f.v.buffers.Get().(*[bufferSize]byte)
		n, err := f.h.ReadAt(buf[:len(p)], off)
		if err != nil && !errors.Is(err, io.EOF) {
			f.v.buffers.Put(buf)
			return piece{}, fmt.Errorf("at %d: %w", off+int64(n), err)
		}
		return piece{buf, n, err != nil}, nil
	}, nil)
	if err != nil {
		return 0, wrap("read", f.v.id, f.name, err)
	}
	n := copy(p, got.buf[:got.n])
	f.v.buffers.Put(got.buf)
	if got.eof {
		return n, io.EOF
	}
	return n, nil
}

// Sum is the content sum that was stored with the file. It reports false where
// there is none, or it cannot be read: the file was not stored by Mogile, was
// written in place since, or the filesystem keeps no extended attributes.
func (f *File) Sum() (Sum, bool) {
	s, err := f.sum(context.Background())
	return s, err == nil
}

func (f *File) sum(ctx context.Context) (Sum, error) {
	return do(ctx, f.v, func(*task) (Sum, error) {
		text, err := f.h.Attr(sumAttr)
		switch {
		case errors.Is(err, fs.ErrNotExist), errors.Is(err, errors.ErrUnsupported):
			return Sum{}, ErrNoSum
		case err != nil:
			return Sum{}, err
		}
		return ParseSum(string(text))
	}, nil)
}

// Verify reads the whole content and compares it with the stored sum:
// [ErrNoSum] if there is none, [ErrCorrupt] if they differ. It returns the sum
// of what it read.
func (f *File) Verify(ctx context.Context) (Sum, error) {
	want, err := f.sum(ctx)
	if err != nil {
		return Sum{}, wrap("verify", f.v.id, f.name, err)
	}
	got, err := f.ReadThrough(ctx, nil, false)
	if err != nil {
		return got, err
	}
	if got != want {
		return got, wrap("verify", f.v.id, f.name, fmt.Errorf("%w: stored %q, found %q", ErrCorrupt, want, got))
	}
	return got, nil
}

// forgetStep is after how many bytes those are forgotten that will not be read
// again.
const forgetStep = 1 << 20

// ReadThrough reads the whole content, gives it to each (nil: to nobody) and
// returns the sum of what it read, which is less than everything where there is
// an error. With once set the system need not keep in memory what was read: a
// walk over all files would leave nothing else there.
func (f *File) ReadThrough(ctx context.Context, each func([]byte), once bool) (Sum, error) {
	own := f.v.buffers.Get().(*[bufferSize]byte)
	defer f.v.buffers.Put(own)
	var got Sum
	var kept int64 // from where on the system has it in memory
	for {
		if err := ctx.Err(); err != nil {
			return got, wrap("read", f.v.id, f.name, err)
		}
		n, err := f.ReadSome(ctx, own[:], got.Length)
		got = got.Add(own[:n])
		if each != nil && n > 0 {
			each(own[:n])
		}
		ended := err != nil
		if once && (ended || got.Length-kept >= forgetStep) {
			from, n := kept, got.Length-kept
			kept = got.Length
			f.Forget(ctx, from, n)
		}
		switch {
		case err == io.EOF:
			return got, nil
		case ended:
			return got, err
		}
	}
}

// Forget says that n bytes at off need not be kept in the system's memory. What
// goes wrong with that costs memory, and nothing else.
func (f *File) Forget(ctx context.Context, off, n int64) {
	_, _ = do(ctx, f.v, func(*task) (struct{}, error) { return struct{}{}, f.h.Forget(off, n) }, nil)
}

// Close closes the file. It does not wait for the disk.
func (f *File) Close() error {
	if f.closed.Swap(true) {
		return nil
	}
	f.v.background(func() { f.h.Close() })
	return nil
}

// readErrno is what an error of the system means to somebody who looks for a
// file: below a file there is none.
func readErrno(err error) error {
	if errors.Is(err, syscall.ENOTDIR) {
		return fmt.Errorf("%w: %w", fs.ErrNotExist, err)
	}
	return err
}
