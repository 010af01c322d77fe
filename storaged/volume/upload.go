package volume

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"time"
)

// writeOutStep is after how many bytes an upload has the kernel begin to write:
// at most two steps are left to flush at its end.
const writeOutStep = 8 << 20

// Upload is a file on its way. Nothing of it can be seen before Commit, and
// nothing is left after Abort or an error. Its methods may not be called
// concurrently.
type Upload struct {
	v        *Volume
	name     string
	file     *staged // nil until something was written out
	buf      *[bufferSize]byte
	buffered int
	sum      Sum
	begun    int64 // up to where the kernel was told to write
	volatile bool
	sumless  bool // sum has the length alone, and is not stored
	place    place
	err      error // why it failed, or that it is over
}

var _ io.Writer = (*Upload)(nil)

// place is one of the places that uploads to a volume have. Those that are small
// need none: nothing of them is on disk before they are complete, so that slow
// clients cannot hold places with them.
type place struct{ of chan struct{} } // nil where there is none

// enter waits for a place, for StuckAfter at most: ErrBusy then. Who has one
// keeps it.
func (p *place) enter(v *Volume) error {
	if p.of != nil {
		return nil
	}
	select {
	case v.uploads <- struct{}{}:
		p.of = v.uploads
		return nil
	default:
	}
	t := time.NewTimer(v.o.StuckAfter)
	defer t.Stop()
	select {
	case v.uploads <- struct{}{}:
		p.of = v.uploads
		return nil
	case <-t.C:
		return fmt.Errorf("%d are under way: %w", cap(v.uploads), ErrBusy)
	}
}

func (p *place) leave() {
	if p.of != nil {
		<-p.of
		p.of = nil
	}
}

// staged is a new file that does not have its name yet.
type staged struct {
	root Root
	h    Handle
	temp string // its temporary name; "" while it has none
}

// discard closes the file, and removes its temporary name.
func (s *staged) discard() error {
	err := s.h.Close()
	if s.temp != "" {
		err = errors.Join(err, ignoreMissing(s.root.Unlink(s.temp)))
	}
	return err
}

// Create begins an upload that will replace, or become, the file name. Missing
// directories are made. The disk is not touched before 64 KiB were written, or
// Commit.
func (v *Volume) Create(ctx context.Context, name string) (*Upload, error) {
	err := checkName(name)
	if err == nil {
		err = v.writable(ctx)
	}
	if err != nil {
		return nil, wrap("create", v.id, name, err)
	}
	return &Upload{v: v, name: name}, nil
}

// CreateSumless is Create for content that brings sums of its own: none is
// computed, and none stored.
func (v *Volume) CreateSumless(ctx context.Context, name string) (*Upload, error) {
	u, err := v.Create(ctx, name)
	if err == nil {
		u.sumless = true
	}
	return u, err
}

// Size is how many bytes were written.
func (u *Upload) Size() int64 { return u.sum.Length }

// Sum is that of what was written so far, for [Volume.CreateSumless] its length
// alone.
func (u *Upload) Sum() Sum { return u.sum }

// Write takes p. It waits for a hanging disk for StuckAfter at most. After an
// error the upload is over, and nothing of it is left.
func (u *Upload) Write(p []byte) (int, error) {
	if u.err != nil {
		return 0, wrap("write", u.v.id, u.name, u.err)
	}
	total := 0
	for total < len(p) {
		if u.buf == nil {
			u.buf = u.v.buffers.Get().(*[bufferSize]byte)
		}
		n := copy(u.buf[u.buffered:], p[total:])
		u.add(u.buf[u.buffered : u.buffered+n])
		u.buffered += n
		total += n
		if u.buffered == bufferSize {
			if err := u.spill(); err != nil {
				return total - n, err
			}
		}
	}
	return total, nil
}

func (u *Upload) add(p []byte) {
	if u.sumless {
		u.sum.Length += int64(len(p))
	} else {
		u.sum = u.sum.Add(p)
	}
}

// lentPiece is how many bytes WriteLent has written in one operation.
const lentPiece = 1 << 20

// WriteLent takes p as Write does, and without a copy where it is large. After an
// error p is lent for good: a write that hangs may come back and read it.
func (u *Upload) WriteLent(p []byte) error {
	if len(p) < bufferSize {
		_, err := u.Write(p)
		return err
	}
	if u.err != nil {
		return wrap("write", u.v.id, u.name, u.err)
	}
	if u.buffered > 0 {
		if err := u.spill(); err != nil {
			return err
		}
	}
	for part := range slices.Chunk(p, lentPiece) {
		u.add(part)
		if err := u.writeOut(part); err != nil {
			return err
		}
	}
	return nil
}

// spill writes the buffer out.
func (u *Upload) spill() error {
	buf := u.buf
	data := buf[:u.buffered]
	u.buf, u.buffered = nil, 0
	err := u.writeOut(data)
	if err == nil {
		u.v.buffers.Put(buf)
	}
	return err
}

// writeOut writes what comes next, up to u.sum.Length.
func (u *Upload) writeOut(data []byte) error {
	v := u.v
	err := u.place.enter(v)
	if err == nil {
		err = v.begin(context.Background())
	}
	if err != nil {
		u.drop(err)
		return wrap("write", v.id, u.name, err)
	}
	piece := u.piece(data)
	file, err := run(context.Background(), v, func(*task) (*staged, error) {
		return piece.write(v)
	}, func(s *staged) { v.undone(s.discard()) }, nil)
	u.file, u.err = file, err
	if err != nil {
		u.place.leave()
		return wrap("write", v.id, u.name, err)
	}
	return nil
}

// piece is a part of an upload to be written, with all that the task that does
// so needs: its upload may be gone meanwhile.
type piece struct {
	name  string
	file  *staged
	data  []byte
	off   int64
	begun int64 // from where on the kernel is to begin to write, up to the piece's end; below 0: it need not
}

// piece moves what the upload has into a piece with the bytes that come next, up
// to u.sum.Length.
func (u *Upload) piece(data []byte) piece {
	end := u.sum.Length
	p := piece{name: u.name, file: u.file, data: data, off: end - int64(len(data)), begun: -1}
	if u.v.o.Durability != DurabilityNone && !u.volatile && end-u.begun >= writeOutStep {
		p.begun, u.begun = u.begun, end
	}
	u.file = nil
	return p
}

// write writes the piece, to a new file if there is none yet. After an error
// nothing is left.
func (p piece) write(v *Volume) (*staged, error) {
	s := p.file
	if s == nil {
		var err error
		if s, err = v.stage(parent(p.name)); err != nil {
			return nil, err
		}
	}
	if len(p.data) == 0 {
		return s, nil
	}
	_, err := s.h.WriteAt(p.data, p.off)
	if err == nil && p.begun >= 0 {
		err = s.h.WriteOut(p.begun, p.off+int64(len(p.data))-p.begun)
	}
	if err != nil {
		return nil, errors.Join(err, s.discard())
	}
	return s, nil
}

// discard gives the piece up, and the file that it is to be written to.
func (p piece) discard() error {
	if p.file == nil {
		return nil
	}
	return p.file.discard()
}

// missing is an error where there is a file, or it is not known.
func (v *Volume) missing(name string) error {
	_, err := v.root.Stat(name)
	switch {
	case err == nil:
		return fmt.Errorf("%s: %w", name, ErrExcluded)
	case errors.Is(readErrno(err), fs.ErrNotExist):
		return nil
	}
	return err
}

// stage makes a new file that is to land in dir.
func (v *Volume) stage(dir string) (*staged, error) {
	h, err := v.root.OpenUnnamed(dir)
	if errors.Is(err, fs.ErrNotExist) {
		if err := v.makeDirs(dir); err != nil {
			return nil, err
		}
		h, err = v.root.OpenUnnamed(dir)
	}
	if !errors.Is(err, errors.ErrUnsupported) {
		if err != nil {
			return nil, err
		}
		return &staged{root: v.root, h: h}, nil
	}
	if dir != "." {
		if err := v.makeDirs(dir); err != nil {
			return nil, err
		}
	}
	temp, err := v.tempName()
	if err != nil {
		return nil, err
	}
	if h, err = v.root.Open(temp, os.O_RDWR|os.O_CREATE|os.O_EXCL); err != nil {
		return nil, err
	}
	return &staged{root: v.root, h: h, temp: temp}, nil
}

// Commit gives the file its name. When it returns nil, content, name and
// directories are on disk. After an error nothing is left, unless an older
// content was replaced already: then the new one stays, but may not survive a
// loss of power. While a commit hangs its name is locked against others, who
// are answered [ErrSick]; if the disk comes back, it is undone.
func (u *Upload) Commit(ctx context.Context) error {
	return u.commit(ctx, "", func(what string, op func(*task) (bool, error), undo func(bool), unlock func()) error {
		_, err := run(ctx, u.v, op, undo, unlock)
		return err
	})
}

// CommitUnless is Commit that refuses, by an error matching [ErrExcluded], if there
// is a file of another name; "" is none. It runs in the caller's goroutine: late
// answers in its place while the disk hangs.
func (u *Upload) CommitUnless(ctx context.Context, late Late, other string) error {
	return u.commit(ctx, other, func(what string, op func(*task) (bool, error), undo func(bool), unlock func()) error {
		_, err := runHere(u.v, what, u.name, late, op, undo, unlock)
		return err
	})
}

// commit has carryOut run what is left to do, when there is a slot for it.
func (u *Upload) commit(ctx context.Context, other string, carryOut func(what string, op func(*task) (bool, error), undo func(bool), unlock func()) error) error {
	const what = "commit"
	v := u.v
	if u.err != nil {
		return wrap(what, v.id, u.name, u.err)
	}
	unlock, err := v.names.lock(ctx, u.name, v.o.StuckAfter)
	if err != nil {
		u.drop(err)
		return wrap(what, v.id, u.name, err)
	}
	if err := v.begin(ctx); err != nil {
		u.drop(err)
		unlock()
		return wrap(what, v.id, u.name, err)
	}
	buf, sum := u.buf, u.sum
	var data []byte
	if buf != nil {
		data = buf[:u.buffered]
	}
	u.buf, u.buffered = nil, 0
	last := u.piece(data)
	l := landing{
		v: v, name: u.name, sum: &sum,
		durable: v.o.Durability == DurabilityFsync && !u.volatile,
	}
	if u.volatile || u.sumless {
		l.sum = nil
	}
	u.err = os.ErrClosed
	defer u.place.leave()
	err = carryOut(what, func(t *task) (bool, error) {
		if other != "" {
			if err := v.missing(other); err != nil {
				return false, errors.Join(err, last.discard())
			}
		}
		s, err := last.write(v)
		if err != nil {
			return false, err
		}
		return l.land(t, s)
	}, func(replaced bool) {
		if !replaced {
			v.undone(ignoreMissing(v.root.Unlink(l.name)))
		}
	}, unlock)
	if err == nil && buf != nil {
		v.buffers.Put(buf)
	}
	return wrap(what, v.id, u.name, err)
}

// landing is what is left to do for a file whose content is written.
type landing struct {
	v       *Volume
	name    string
	sum     *Sum // nil: none is stored
	durable bool
	grouped bool // content and name are flushed with those of others
}

// manyLandings is from how many files that land at once a flush of the whole
// filesystem is cheaper than each file's own writing out: it hands neighbouring
// blocks to the disk together.
const manyLandings = 32

// begin decides how the file is flushed. The caller calls end when it is.
func (l *landing) begin() (end func()) {
	n := l.v.landings.Add(1)
	l.grouped = l.v.group != nil && (n >= manyLandings || !l.v.mount.Ordered)
	return func() { l.v.landings.Add(-1) }
}

// land flushes the content, links the name and flushes that. It reports whether
// an older content was replaced.
func (l *landing) land(t *task, s *staged) (replaced bool, err error) {
	defer l.begin()()
	if err := l.settle(t, s); err != nil {
		return false, errors.Join(err, s.discard())
	}
	replaced, err = l.v.link(s, l.name)
	if err != nil {
		return false, errors.Join(err, s.discard())
	}
	err = s.h.Close()
	if err == nil && l.durable {
		t.release()
		err = l.flushName()
	}
	if err != nil && !replaced {
		t.resume()
		err = errors.Join(err, ignoreMissing(l.v.root.Unlink(l.name)))
	}
	return replaced, err
}

func (l *landing) flushName() error {
	if l.grouped {
		return l.v.group.flush()
	}
	return l.v.flushDirs(parent(l.name))
}

// settle stores the sum and flushes the content.
func (l *landing) settle(t *task, s *staged) error {
	if l.sum != nil {
		err := s.h.SetAttr(sumAttr, []byte(l.sum.String()))
		if errors.Is(err, errors.ErrUnsupported) {
			l.v.attrless.Do(func() {
				l.v.log.Warn().Msg("filesystem has no extended attributes; content sums are not kept")
			})
		} else if err != nil {
			return err
		}
	}
	switch {
	case !l.durable:
	case l.grouped:
		t.release()
		err := l.v.group.flush()
		t.resume()
		if err != nil {
			return err
		}
	case l.v.mount.Ordered:
		if err := s.h.Settle(); err != nil {
			return err
		}
	default:
		if err := s.h.Sync(); err != nil {
			return err
		}
	}
	if t.abandoned() {
		return context.Canceled // nobody hears it
	}
	return nil
}

// link gives the file its name. The name's lock is held.
func (v *Volume) link(s *staged, name string) (replaced bool, err error) {
	if s.temp == "" {
		err := v.root.Link(s.h, name)
		if errors.Is(err, fs.ErrNotExist) { // somebody removed the empty directory
			if err = v.makeDirs(parent(name)); err == nil {
				err = v.root.Link(s.h, name)
			}
		}
		if !errors.Is(err, fs.ErrExist) {
			return false, err
		}
		temp, err := v.tempName()
		if err != nil {
			return false, err
		}
		if err := v.root.Link(s.h, temp); err != nil {
			return false, err
		}
		s.temp = temp
	}
	info, err := v.root.Stat(name)
	switch {
	case err == nil && info.Mode.IsDir():
		return false, ErrIsDir
	case err == nil:
		replaced = true
	case !errors.Is(err, fs.ErrNotExist):
		return false, err
	}
	if err := v.root.Rename(s.temp, name); err != nil {
		return false, err
	}
	s.temp = ""
	return replaced, nil
}

// Abort gives the upload up. It does not wait for the disk. After Commit it
// does nothing.
func (u *Upload) Abort() {
	if u.err == nil {
		u.drop(os.ErrClosed)
	}
}

// drop ends the upload: nothing of it is under way.
func (u *Upload) drop(reason error) {
	u.err = reason
	u.place.leave()
	if u.buf != nil {
		u.v.buffers.Put(u.buf)
		u.buf, u.buffered = nil, 0
	}
	if s := u.file; s != nil {
		u.file = nil
		u.v.background(func() { u.v.undone(s.discard()) })
	}
}

// undone logs that something could not be cleaned up: nobody waits for the
// answer.
func (v *Volume) undone(err error) {
	if err != nil {
		v.log.Warn().Err(err).Msg("an unfinished upload could not be removed")
	}
}

// WriteVolatile replaces the file name by data at once, but flushes nothing and
// keeps no content sum: for what is written anew all the time, such as the usage
// file.
func (v *Volume) WriteVolatile(ctx context.Context, name string, data []byte) error {
	u, err := v.Create(ctx, name)
	if err != nil {
		return err
	}
	u.volatile = true
	if _, err := u.Write(data); err != nil {
		return err
	}
	return u.Commit(ctx)
}
