package volume

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"

	"github.com/mogile/mogile/protocol"
)

// Durability says what a nil error promises.
type Durability int

const (
	// DurabilityFsync: what was answered for survives a loss of power.
	DurabilityFsync Durability = iota
	// DurabilityNone: nothing is flushed, as in MogileFS. The last half minute
	// may be lost, or found with wrong content, after a loss of power.
	DurabilityNone
)

// String is "fsync" or "none".
func (d Durability) String() string {
	if d == DurabilityNone {
		return "none"
	}
	return "fsync"
}

// ParseDurability is the inverse of String.
func ParseDurability(s string) (Durability, error) {
	switch s {
	case "fsync":
		return DurabilityFsync, nil
	case "none":
		return DurabilityNone, nil
	}
	return 0, fmt.Errorf("durability %q: must be fsync or none", s)
}

// Defaults of [Options].
const (
	DefaultSlots       = 32
	DefaultUploads     = 128
	DefaultStuckAfter  = 10 * time.Second
	DefaultUsageMaxAge = 60 * time.Second
)

// Options are the same for all volumes of a docroot. The zero value works.
type Options struct {
	FS         FS         // nil: OS
	Durability Durability // what a nil error promises
	// RequireMount refuses a dev<N> folder that is not a mount point of its
	// own: the disk that belongs there is not mounted.
	RequireMount bool
	// Slots is how many system calls may be under way on one disk; 0 means
	// DefaultSlots.
	Slots int
	// Uploads is how many uploads may have more than 64 KiB under way to one
	// disk, which then writes to as many places; 0 means DefaultUploads. Others
	// wait, in the order in which they came, for StuckAfter at most.
	Uploads int
	// StuckAfter is how long a disk may be silent; 0 means DefaultStuckAfter.
	StuckAfter time.Duration
	// UsageMaxAge is how old a usage may get before it is not told any more; 0
	// means DefaultUsageMaxAge.
	UsageMaxAge time.Duration
	// ClusterID is written in the identity of devices that have none, and
	// devices of another cluster are refused. Letters, digits, "-", "_" and
	// "." only; empty means unknown.
	ClusterID string
	Now       func() time.Time // nil: time.Now; for usages
	Log       zerolog.Logger
}

// fill sets defaults and reports everything that is wrong.
func (o *Options) fill() error {
	var errs []error
	if o.Slots < 0 {
		errs = append(errs, fmt.Errorf("slots %d: must not be negative", o.Slots))
	}
	if o.Uploads < 0 {
		errs = append(errs, fmt.Errorf("uploads %d: must not be negative", o.Uploads))
	}
	if o.StuckAfter < 0 {
		errs = append(errs, fmt.Errorf("stuck after %v: must not be negative", o.StuckAfter))
	}
	if o.UsageMaxAge < 0 {
		errs = append(errs, fmt.Errorf("usage max age %v: must not be negative", o.UsageMaxAge))
	}
	if o.ClusterID != "" && !validCluster(o.ClusterID) {
		errs = append(errs, fmt.Errorf("cluster id %q: letters, digits, \"-\", \"_\" and \".\" only, %d at most", o.ClusterID, maxCluster))
	}
	if o.Durability != DurabilityFsync && o.Durability != DurabilityNone {
		errs = append(errs, fmt.Errorf("durability %d: unknown", o.Durability))
	}
	if o.FS == nil {
		o.FS = OS{}
	}
	if o.Slots == 0 {
		o.Slots = DefaultSlots
	}
	if o.Uploads == 0 {
		o.Uploads = DefaultUploads
	}
	if o.StuckAfter == 0 {
		o.StuckAfter = DefaultStuckAfter
	}
	if o.UsageMaxAge == 0 {
		o.UsageMaxAge = DefaultUsageMaxAge
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	return errors.Join(errs...)
}

// Volume is one device. Its methods may be called concurrently.
//
// Errors match [fs.ErrNotExist], [fs.ErrPermission], [ErrBadName], [ErrIsDir],
// [ErrNoSpace], [ErrSick], [ErrNoDevice] or the context's error where these are
// the reason, and say which operation on which file failed.
type Volume struct {
	id       protocol.DevID
	path     string
	root     Root
	fsID     FileID
	identity atomic.Pointer[Identity]
	mount    Mount
	o        *Options
	log      zerolog.Logger
	buffers  *sync.Pool // of *[bufferSize]byte, shared by the docroot

	slots    *slots
	uploads  chan struct{} // holds one element for each upload that has a place
	users    users
	hands    hands
	timers   sync.Pool // of *time.Timer, stopped, for those who wait for a task
	watches  sync.Pool // of *watch that are over
	names    nameLocks
	temps    temps
	dirs     dirFlushers
	flushing flushing
	durable  durableDirs
	group    *flusher              // nil: files and directories are flushed one by one
	landings atomic.Int32          // uploads that are being flushed
	failed   atomic.Pointer[error] // of the first shared flush that failed
	attrless sync.Once             // tells once that there are no extended attributes
	usage    atomic.Pointer[Usage]
}

// ID is the device's number.
func (v *Volume) ID() protocol.DevID { return v.id }

// Identity is what the device says it is. Its UUID is empty where a full or
// read-only disk has no identity yet.
func (v *Volume) Identity() Identity { return *v.identity.Load() }

// Sick reports whether the disk does not answer, and all operations are refused
// with [ErrSick] therefore.
func (v *Volume) Sick() bool { return v.slots.stuck() }

// Busy is how many of the volume's I/O slots are in use.
func (v *Volume) Busy() int { return len(v.slots.sem) }

// Open opens a file for reading.
func (v *Volume) Open(ctx context.Context, name string) (*File, error) {
	if err := checkName(name); err != nil {
		return nil, wrap("open", v.id, name, err)
	}
	f, err := do(ctx, v, func(*task) (*File, error) {
		h, info, err := v.openFile(name)
		if err != nil {
			return nil, err
		}
		return &File{v: v, name: name, h: h, info: info}, nil
	}, func(f *File) { f.h.Close() })
	return f, wrap("open", v.id, name, err)
}

const (
	// wholeRead is the largest piece that OpenRead reads at once, firstRead what it
	// reads of a larger one: copying costs more, then, than to have the system
	// send it.
	wholeRead, firstRead = 32 << 10, 16 << 10
	// aheadRead is up to where OpenRead has the system read a larger piece.
	aheadRead = 1 << 20
)

// OpenRead opens a file for reading, and in the same operation reads the beginning
// of the piece that is wanted into p: what choose makes of the file's description,
// n bytes at off. Where that is all of the piece, the file is closed already, and f
// is nil; of a large piece whose rest [File.OSFile] can send, it is a small part,
// and the first MiB of the piece need not be prefetched.
//
// It runs in the caller's goroutine: late answers in its place while the disk
// hangs.
func (v *Volume) OpenRead(ctx context.Context, late Late, name string, p []byte, choose func(Info) (off, n int64)) (info Info, f *File, read int, err error) {
	const what = "open"
	if err := checkName(name); err != nil {
		return Info{}, nil, 0, wrap(what, v.id, name, err)
	}
	if err := v.begin(ctx); err != nil {
		return Info{}, nil, 0, wrap(what, v.id, name, err)
	}
	type opened struct {
		info Info
		file *File
		n    int
	}
	o, err := runHere(v, what, name, late, func(*task) (opened, error) {
		h, info, err := v.openFile(name)
		if err != nil {
			return opened{}, err
		}
		off, n := choose(info)
		if n <= 0 {
			return opened{info: info}, h.Close()
		}
		first := min(n, int64(len(p)), bufferSize)
		ahead := off
		if n > wholeRead && h.OSFile() != nil {
			first = min(first, firstRead)
			ahead = off + min(n, aheadRead)
			if err := h.Prefetch(off+first, ahead-off-first); err != nil {
				return opened{}, errors.Join(fmt.Errorf("at %d: %w", off, err), h.Close())
			}
		}
		if got, err := h.ReadAt(p[:first], off); int64(got) < first {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return opened{}, errors.Join(fmt.Errorf("at %d: %w", off+int64(got), err), h.Close())
		}
		o := opened{info: info, n: int(first)}
		if first == n {
			return o, h.Close()
		}
		o.file = &File{v: v, name: name, h: h, info: info, fetched: span{off, ahead}}
		return o, nil
	}, func(o opened) {
		if o.file != nil {
			o.file.h.Close()
		}
	}, nil)
	return o.info, o.file, o.n, wrap(what, v.id, name, err)
}

// openFile opens a regular file for reading, in a task.
func (v *Volume) openFile(name string) (Handle, Info, error) {
	h, err := v.root.Open(name, os.O_RDONLY)
	if err != nil {
		return nil, Info{}, readErrno(err)
	}
	info, err := h.Stat()
	if err == nil {
		err = regular(info)
	}
	if err != nil {
		return nil, Info{}, errors.Join(err, h.Close())
	}
	return h, info, nil
}

// Stat describes a file.
func (v *Volume) Stat(ctx context.Context, name string) (Info, error) {
	if err := checkName(name); err != nil {
		return Info{}, wrap("stat", v.id, name, err)
	}
	info, err := do(ctx, v, func(*task) (Info, error) {
		info, err := v.root.Stat(name)
		if err != nil {
			return Info{}, readErrno(err)
		}
		return info, regular(info)
	}, nil)
	return info, wrap("stat", v.id, name, err)
}

// regular refuses what is no regular file.
func regular(info Info) error {
	switch {
	case info.Mode.IsRegular():
		return nil
	case info.Mode.IsDir():
		return ErrIsDir
	}
	return fmt.Errorf("a special file: %w", fs.ErrPermission)
}

// Remove removes a file; when it returns nil the name is gone for good. So it
// is after an error matching fs.ErrNotExist.
func (v *Volume) Remove(ctx context.Context, name string) error {
	err := checkName(name)
	if err == nil {
		err = v.writable(ctx)
	}
	if err != nil {
		return wrap("remove", v.id, name, err)
	}
	unlock, err := v.names.lock(ctx, name, v.o.StuckAfter)
	if err != nil {
		return wrap("remove", v.id, name, err)
	}
	if err := v.begin(ctx); err != nil {
		unlock()
		return wrap("remove", v.id, name, err)
	}
	_, err = run(ctx, v, func(t *task) (struct{}, error) {
		err := v.root.Unlink(name)
		if err != nil {
			if err = readErrno(err); !errors.Is(err, fs.ErrNotExist) {
				return struct{}{}, err
			}
			// It may be missing because an earlier Remove was not seen through.
			if info, e := v.root.Stat(parent(name)); e != nil || !info.Mode.IsDir() {
				return struct{}{}, err
			}
		}
		t.release()
		if e := v.flushGone(name); e != nil {
			return struct{}{}, e
		}
		return struct{}{}, err
	}, nil, unlock)
	return wrap("remove", v.id, name, err)
}

// flushGone makes it last that name is gone. The caller holds no slot.
func (v *Volume) flushGone(name string) error {
	for dir := parent(name); ; dir = parent(dir) {
		err := v.flushNames(dir)
		if errors.Is(err, fs.ErrNotExist) && dir != "." {
			continue // somebody removed the empty directory: that has to last now
		}
		return err
	}
}

// close lets in no further operation, and lets go of the folder when those that
// run have ended.
func (v *Volume) close() error {
	<-v.users.close()
	v.hands.close()
	return errors.Join(v.dropTemp(), v.root.Close())
}

// nameLocks orders those who change what a name stands for, including those
// whose callers went away while the disk kept them.
type nameLocks struct {
	mu sync.Mutex // guards of
	of map[string]*nameLock
}

type nameLock struct {
	turn  chan struct{}
	users int
}

// lock waits for the name until ctx ends, and for limit at most (ErrSick).
func (n *nameLocks) lock(ctx context.Context, name string, limit time.Duration) (unlock func(), err error) {
	n.mu.Lock()
	l := n.of[name]
	if l == nil {
		l = &nameLock{turn: make(chan struct{}, 1)}
		n.of[name] = l
	}
	l.users++
	n.mu.Unlock()
	leave := func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		if l.users--; l.users == 0 {
			delete(n.of, name)
		}
	}
	unlock = func() {
		<-l.turn
		leave()
	}
	select {
	case l.turn <- struct{}{}:
		return unlock, nil
	default:
	}
	t := time.NewTimer(limit)
	defer t.Stop()
	select {
	case l.turn <- struct{}{}:
		return unlock, nil
	case <-ctx.Done():
		err = ctx.Err()
	case <-t.C:
		err = fmt.Errorf("an earlier change of this name hangs: %w", ErrSick)
	}
	leave()
	return nil, err
}
