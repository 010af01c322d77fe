package volume

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
)

// Patch writes a few bytes in place in a file that is there, durably: what edit
// makes of it is written at off, nothing where p is empty. Meanwhile the name is
// locked, so that the file cannot be replaced. The file loses its content sum.
// Where power is lost any part of p may have been written. fs.ErrNotExist says
// that there is no such file; edit's errors are returned.
func (v *Volume) Patch(ctx context.Context, name string, edit func(file io.ReaderAt, size int64) (p []byte, off int64, err error)) error {
	err := checkName(name)
	if err == nil {
		err = v.writable(ctx)
	}
	if err != nil {
		return wrap("patch", v.id, name, err)
	}
	unlock, err := v.names.lock(ctx, name, v.o.StuckAfter)
	if err != nil {
		return wrap("patch", v.id, name, err)
	}
	if err := v.begin(ctx); err != nil {
		unlock()
		return wrap("patch", v.id, name, err)
	}
	_, err = run(ctx, v, func(*task) (struct{}, error) { return struct{}{}, v.patch(name, edit) }, nil, unlock)
	return wrap("patch", v.id, name, err)
}

func (v *Volume) patch(name string, edit func(io.ReaderAt, int64) ([]byte, int64, error)) (err error) {
	h, err := v.root.Open(name, os.O_RDWR)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, h.Close()) }()
	info, err := h.Stat()
	if err == nil {
		err = regular(info)
	}
	if err != nil {
		return err
	}
	p, off, err := edit(h, info.Size)
	switch {
	case err != nil || len(p) == 0:
		return err
	case off < 0 || off+int64(len(p)) > info.Size:
		return fmt.Errorf("%d bytes at %d of %d: %w", len(p), off, info.Size, fs.ErrInvalid)
	}
	durable := v.o.Durability == DurabilityFsync
	// As in openUpdate.
	err = h.RemoveAttr(sumAttr)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, errors.ErrUnsupported):
	case err != nil:
		return err
	case durable:
		if err := h.Sync(); err != nil {
			return err
		}
	}
	if _, err := h.WriteAt(p, off); err != nil {
		return err
	}
	if durable {
		return h.Sync()
	}
	return nil
}
