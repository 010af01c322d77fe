package volume

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
)

// Update writes parts of a file in place, as PUT with Content-Range does in
// MogileFS 2.73: without atomicity, and beyond the end too (which leaves a
// hole). Its methods may not be called concurrently, but several updates of one
// file may go on at once.
type Update struct {
	v     *Volume
	name  string
	h     Handle // nil until the first write
	place place
	err   error // why it failed, or that it is over
}

var _ io.WriterAt = (*Update)(nil)

// Update begins to write in place. The file is opened, or made, by the first
// WriteAt or by Commit, and loses its content sum then.
func (v *Volume) Update(ctx context.Context, name string) (*Update, error) {
	err := checkName(name)
	if err == nil {
		err = v.writable(ctx)
	}
	if err != nil {
		return nil, wrap("update", v.id, name, err)
	}
	return &Update{v: v, name: name}, nil
}

// open opens or makes the file, and has write write the first bytes of it.
func (u *Update) open(ctx context.Context, write func(Handle) error) error {
	v, name := u.v, u.name
	unlock, err := v.names.lock(ctx, name, v.o.StuckAfter)
	if err != nil {
		return err
	}
	if err := v.begin(ctx); err != nil {
		unlock()
		return err
	}
	u.h, err = run(ctx, v, func(*task) (Handle, error) { return v.openUpdate(name, write) },
		func(h Handle) { h.Close() }, unlock)
	return err
}

func (v *Volume) openUpdate(name string, write func(Handle) error) (Handle, error) {
	h, err := v.root.Open(name, os.O_RDWR)
	if errors.Is(err, fs.ErrNotExist) {
		return v.createUpdate(name, write)
	}
	if err != nil {
		return nil, err
	}
	info, err := h.Stat()
	if err == nil {
		err = regular(info)
	}
	if err == nil {
		// The sum goes before the first byte changes, or a crash would leave
		// new bytes under the old sum.
		err = h.RemoveAttr(sumAttr)
		switch {
		case errors.Is(err, fs.ErrNotExist), errors.Is(err, errors.ErrUnsupported):
			err = nil
		case err == nil && v.o.Durability == DurabilityFsync:
			err = h.Sync()
		}
	}
	if err == nil {
		err = write(h)
	}
	if err != nil {
		return nil, errors.Join(err, h.Close())
	}
	return h, nil
}

// createUpdate makes the file. It gets its name when something is in it: a full
// disk leaves no empty file behind. The name's lock is held.
func (v *Volume) createUpdate(name string, write func(Handle) error) (Handle, error) {
	s, err := v.stage(parent(name))
	if err != nil {
		return nil, err
	}
	if err = write(s.h); err == nil {
		_, err = v.link(s, name)
	}
	if err != nil {
		return nil, errors.Join(err, s.discard())
	}
	return s.h, nil
}

// WriteAt writes p at off, which must not be negative. It waits for a hanging
// disk for StuckAfter at most. After an error the update is over; what was
// written before stays, but a new file that got nothing does not appear.
func (u *Update) WriteAt(p []byte, off int64) (int, error) {
	v := u.v
	switch {
	case u.err != nil:
		return 0, wrap("write", v.id, u.name, u.err)
	case off < 0:
		return 0, wrap("write", v.id, u.name, fmt.Errorf("offset %d: %w", off, fs.ErrInvalid))
	}
	total := 0
	for total < len(p) {
		buf := v.buffers.Get().(*[bufferSize]byte)
		n := copy(buf[:], p[total:])
		at := off + int64(total)
		write := func(h Handle) error {
			_, err := h.WriteAt(buf[:n], at)
			return err
		}
		var err error
		if h := u.h; h == nil {
			if err = u.place.enter(v); err == nil {
				err = u.open(context.Background(), write)
			}
		} else {
			_, err = do(context.Background(), v, func(*task) (struct{}, error) { return struct{}{}, write(h) }, nil)
		}
		if err != nil {
			u.end(err)
			return total, wrap("write", v.id, u.name, err)
		}
		v.buffers.Put(buf)
		total += n
	}
	return total, nil
}

// Commit flushes what was written, and the name if the file is new.
func (u *Update) Commit(ctx context.Context) error {
	v := u.v
	if u.err == nil && u.h == nil {
		u.err = u.open(ctx, func(Handle) error { return nil })
	}
	if u.err != nil {
		return wrap("commit", v.id, u.name, u.err)
	}
	h, name := u.h, u.name
	_, err := do(ctx, v, func(t *task) (struct{}, error) {
		if v.o.Durability == DurabilityNone {
			return struct{}{}, nil
		}
		if err := h.Sync(); err != nil {
			return struct{}{}, err
		}
		t.release()
		// The name may be another update's, which has not flushed it yet.
		return struct{}{}, v.flushNames(parent(name))
	}, nil)
	u.end(os.ErrClosed)
	return wrap("commit", v.id, u.name, err)
}

// Abort ends the update; what was written stays. After Commit it does nothing.
func (u *Update) Abort() {
	if u.err == nil {
		u.end(os.ErrClosed)
	}
}

func (u *Update) end(reason error) {
	u.err = reason
	u.place.leave()
	if h := u.h; h != nil {
		u.h = nil
		u.v.background(func() { h.Close() })
	}
}
