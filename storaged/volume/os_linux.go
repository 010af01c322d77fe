package volume

import (
	"bufio"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// OS is the operating system's filesystem.
type OS struct{}

var _ FS = OS{}

// OpenRoot implements [FS].
func (OS) OpenRoot(dir string) (Root, error) {
	f, err := os.OpenFile(dir, os.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	fd := int(f.Fd())
	beneath, err := os.OpenRoot(procName(fd))
	proc := err == nil
	if !proc {
		if beneath, err = os.OpenRoot(dir); err != nil {
			f.Close()
			return nil, err
		}
	}
	return &osRoot{dir: f, fd: fd, beneath: beneath, proc: proc}, nil
}

// Mount implements [FS] by /proc/self/mountinfo, which does not touch the disk.
func (OS) Mount(dir string) (Mount, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return Mount{}, err
	}
	if dir, err = filepath.EvalSymlinks(dir); err != nil {
		return Mount{}, err
	}
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return Mount{}, err
	}
	defer f.Close()
	m, err := parseMounts(f, dir)
	if err != nil {
		return Mount{}, err
	}
	m.Ordered = journalled(m.kind, m.number)
	return m.Mount, nil
}

// mountEntry is what the mount table says of a mount.
type mountEntry struct {
	Mount
	kind   string // of filesystem
	number string // of its device, as MAJOR:MINOR
}

// parseMounts finds the mount of dir in a table as proc_pid_mountinfo(5) has
// it: the longest mount point that is a prefix of dir, and of several on the
// same point the last.
func parseMounts(r io.Reader, dir string) (mountEntry, error) {
	var m mountEntry
	var root string
	uses := make(map[string]int) // of a device number
	sc := bufio.NewScanner(r)
	sc.Buffer(make([]byte, 0, 4096), 1<<20)
	for sc.Scan() {
		left, right, ok := strings.Cut(sc.Text(), " - ")
		l, r := strings.Fields(left), strings.Fields(right)
		if !ok || len(l) < 6 || len(r) < 2 {
			continue
		}
		uses[l[2]]++
		point := unescapeMount(l[4])
		if len(point) < len(m.Point) || (point != "/" && dir != point && !strings.HasPrefix(dir, point+"/")) {
			continue
		}
		m.Point, m.Device = point, unescapeMount(r[1])
		m.number, m.kind, root = l[2], r[0], l[3]
	}
	if err := sc.Err(); err != nil {
		return m, err
	}
	if m.Point == "" {
		return m, &fs.PathError{Op: "find mount", Path: dir, Err: fs.ErrNotExist}
	}
	m.Here = m.Point == dir
	m.Exclusive = m.Here && root == "/" && uses[m.number] == 1
	return m, nil
}

// journalled reports whether a filesystem commits, when a directory is flushed,
// all that was changed before in one order, content that was written out
// included:
//
//   - ext4 allocates blocks, and sets the file's length and attributes, in
//     transactions of its journal; when Settle returns, they belong to one that
//     is running or older. The name is given in that or a younger one, and
//     transactions reach the disk in their order. The commit record of each is
//     preceded by a flush of the disk's cache, where the content is.
//   - XFS does the same in its log.
//
// An ext4 without a journal, which /proc/fs/jbd2 does not know, has no order.
func journalled(kind, number string) bool {
	switch kind {
	case "xfs":
		return true
	case "ext4", "ext3":
		device, err := os.Readlink("/sys/dev/block/" + number)
		if err != nil {
			return false
		}
		logs, err := filepath.Glob("/proc/fs/jbd2/" + strings.ReplaceAll(filepath.Base(device), "/", "!") + "-*")
		return err == nil && len(logs) > 0
	}
	return false
}

// unescapeMount undoes the \040 of blanks and the like.
func unescapeMount(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if c, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(c))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// osRoot keeps to its tree by openat2(2), or, where the kernel is older than
// 5.6 or forbids it, by os.Root, which takes a call for each component.
type osRoot struct {
	dir     *os.File
	fd      int // of dir
	beneath *os.Root
	proc    bool        // /proc is mounted
	old     atomic.Bool // openat2 is not there
}

// open returns a descriptor, which costs less than an os.File: that asks whether it
// blocks, and tries to poll it.
func (r *osRoot) open(name string, flag int) (int, error) {
	for tries := 0; !r.old.Load(); tries++ {
		how := unix.OpenHow{
			Flags:   uint64(flag | unix.O_CLOEXEC),
			Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS,
		}
		if flag&unix.O_PATH == 0 { // openat2 refuses flags that have no effect
			how.Flags |= unix.O_NOCTTY | unix.O_LARGEFILE
		}
		if flag&unix.O_CREAT != 0 || flag&unix.O_TMPFILE == unix.O_TMPFILE {
			how.Mode = 0o666
		}
		fd, err := unix.Openat2(r.fd, name, &how)
		switch {
		case err == nil:
			return fd, nil
		case err == unix.EINTR, err == unix.EAGAIN && tries < 100: // a rename raced with the walk
			continue
		case err == unix.ENOSYS, err == unix.EPERM:
			r.old.Store(true) // seccomp filters answer EPERM; os.Root finds out whether it was meant
			continue
		}
		return -1, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	f, err := r.beneath.OpenFile(name, flag, 0o666)
	if err != nil {
		return -1, err
	}
	defer f.Close() // its descriptor's copy stays
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return -1, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	return fd, nil
}

// at opens the directory of name and calls f with it and the last component.
func (r *osRoot) at(op, name string, f func(dir int, base string) error) error {
	dir, base := path.Split(name)
	fd := r.fd
	if dir != "" {
		d, err := r.open(dir[:len(dir)-1], unix.O_PATH|unix.O_DIRECTORY)
		if err != nil {
			return err
		}
		defer unix.Close(d) // opened for its name alone
		fd = d
	}
	for {
		err := f(fd, base)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return &fs.PathError{Op: op, Path: name, Err: err}
		}
		return nil
	}
}

func (r *osRoot) ID() (FileID, error) {
	var st unix.Stat_t
	if err := unix.Fstat(r.fd, &st); err != nil {
		return FileID{}, &fs.PathError{Op: "stat", Path: ".", Err: err}
	}
	return FileID{Dev: uint64(st.Dev), Ino: st.Ino}, nil
}

func (r *osRoot) Open(name string, flag int) (Handle, error) {
	f, err := r.open(name, flag|unix.O_NONBLOCK)
	if err != nil {
		return nil, err
	}
	return newHandle(f, name), nil
}

// procName is a name for an open file.
func procName(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }

// OpenUnnamed needs /proc for Link: linkat(2) takes a bare descriptor from
// privileged processes only.
func (r *osRoot) OpenUnnamed(dir string) (Handle, error) {
	if !r.proc {
		return nil, errors.ErrUnsupported
	}
	f, err := r.open(dir, unix.O_TMPFILE|unix.O_RDWR)
	switch {
	case err == nil:
		return newHandle(f, dir), nil
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EISDIR):
		return nil, errors.ErrUnsupported
	}
	return nil, err
}

func (r *osRoot) Link(h Handle, name string) error {
	file := procName(h.(*osHandle).fd)
	return r.at("link", name, func(dir int, base string) error {
		return unix.Linkat(unix.AT_FDCWD, file, dir, base, unix.AT_SYMLINK_FOLLOW)
	})
}

func (r *osRoot) Rename(from, to string) error {
	return r.at("rename", from, func(d1 int, b1 string) error {
		return r.at("rename", to, func(d2 int, b2 string) error {
			return unix.Renameat(d1, b1, d2, b2)
		})
	})
}

func (r *osRoot) Unlink(name string) error {
	return r.at("unlink", name, func(dir int, base string) error { return unix.Unlinkat(dir, base, 0) })
}

func (r *osRoot) Mkdir(name string) error {
	return r.at("mkdir", name, func(dir int, base string) error { return unix.Mkdirat(dir, base, 0o777) })
}

func (r *osRoot) Rmdir(name string) error {
	return r.at("rmdir", name, func(dir int, base string) error { return unix.Unlinkat(dir, base, unix.AT_REMOVEDIR) })
}

func (r *osRoot) Stat(name string) (Info, error) {
	f, err := r.open(name, unix.O_PATH)
	if err != nil {
		return Info{}, err
	}
	defer unix.Close(f) // opened for its name alone
	return statFD(f, name)
}

func (r *osRoot) List(dir string) ([]string, error) {
	f, err := r.open(dir, os.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return nil, err
	}
	d := os.NewFile(uintptr(f), dir)
	defer d.Close()
	return d.Readdirnames(-1)
}

func (r *osRoot) OpenDir(dir string) (Dir, error) {
	f, err := r.open(dir, os.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return nil, err
	}
	return osDir{os.NewFile(uintptr(f), dir)}, nil
}

func (r *osRoot) SyncDir(dir string) error {
	f, err := r.open(dir, os.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer unix.Close(f) // it was only read
	return flushFD(f, dir)
}

func (r *osRoot) SyncFS() (bool, error) {
	for {
		err := unix.Syncfs(r.fd)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return true, &fs.PathError{Op: "syncfs", Path: ".", Err: err}
		}
		return syncfsReports(), nil
	}
}

// syncfsReports says whether syncfs(2) tells of failed writes: since Linux 5.8.
func syncfsReports() bool {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return false
	}
	return kernelAtLeast(unix.ByteSliceToString(u.Release[:]), 5, 8)
}

func kernelAtLeast(release string, major, minor int) bool {
	a, rest, _ := strings.Cut(release, ".")
	b := rest
	if i := strings.IndexFunc(rest, func(r rune) bool { return r < '0' || r > '9' }); i >= 0 {
		b = rest[:i]
	}
	x, err1 := strconv.Atoi(a)
	y, err2 := strconv.Atoi(b)
	return err1 == nil && err2 == nil && (x > major || x == major && y >= minor)
}

// dirLock is the lock of a directory.
type dirLock struct{ fd int }

// Close gives the lock back. It says so: closing the directory alone would leave
// the lock with a child process that is just being started, and has inherited
// the descriptor for a moment.
func (l dirLock) Close() error {
	return errors.Join(unix.Flock(l.fd, unix.LOCK_UN), unix.Close(l.fd))
}

func (r *osRoot) Lock(dir string) (io.Closer, error) {
	f, err := r.open(dir, os.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return nil, err
	}
	for {
		switch err := unix.Flock(f, unix.LOCK_EX|unix.LOCK_NB); err {
		case nil:
			return dirLock{f}, nil
		case unix.EINTR:
			continue
		case unix.EWOULDBLOCK:
			unix.Close(f)
			return nil, ErrLocked
		default:
			unix.Close(f)
			return nil, &fs.PathError{Op: "lock", Path: dir, Err: err}
		}
	}
}

func (r *osRoot) Space() (Space, error) {
	var st unix.Statfs_t
	for {
		err := unix.Fstatfs(r.fd, &st)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return Space{}, &fs.PathError{Op: "statfs", Path: ".", Err: err}
		}
		unit := int64(st.Frsize)
		if unit == 0 {
			unit = int64(st.Bsize)
		}
		return Space{Used: int64(st.Blocks-st.Bfree) * unit, Available: int64(st.Bavail) * unit}, nil
	}
}

func (r *osRoot) Close() error { return errors.Join(r.beneath.Close(), r.dir.Close()) }

// osHandle is an open file of the operating system. It is closed when nobody uses
// it any more: an operation that hangs must not meet another file under its
// descriptor when it comes back.
type osHandle struct {
	name  string
	fd    int
	users atomic.Int32 // and 1 until Close
	shut  atomic.Bool

	mu   sync.Mutex // guards file
	file *os.File   // for OSFile; it owns the descriptor then
}

func newHandle(fd int, name string) *osHandle {
	h := &osHandle{name: name, fd: fd}
	h.users.Store(1)
	return h
}

// use calls f with the descriptor, again where a signal interrupts it, and tells
// of what operation its error is.
func (h *osHandle) use(op string, f func(fd int) error) error {
	for n := h.users.Load(); ; n = h.users.Load() {
		if n == 0 || h.shut.Load() {
			return &fs.PathError{Op: op, Path: h.name, Err: fs.ErrClosed}
		}
		if h.users.CompareAndSwap(n, n+1) {
			break
		}
	}
	err := f(h.fd)
	for err == unix.EINTR {
		err = f(h.fd)
	}
	if e := h.leave(); err == nil {
		err = e
	}
	if err != nil {
		return &fs.PathError{Op: op, Path: h.name, Err: err}
	}
	return nil
}

// leave closes the descriptor where nobody uses it.
func (h *osHandle) leave() error {
	if h.users.Add(-1) > 0 {
		return nil
	}
	if h.file != nil {
		return h.file.Close()
	}
	return unix.Close(h.fd)
}

// Close does not wait for operations that are under way.
func (h *osHandle) Close() error {
	if h.shut.Swap(true) {
		return &fs.PathError{Op: "close", Path: h.name, Err: fs.ErrClosed}
	}
	if err := h.leave(); err != nil {
		return &fs.PathError{Op: "close", Path: h.name, Err: err}
	}
	return nil
}

func (h *osHandle) OSFile() *os.File {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.file == nil {
		h.file = os.NewFile(uintptr(h.fd), h.name)
	}
	return h.file
}

// maxIO is the most that is read or written by one system call: Linux takes
// less than 2 GiB.
const maxIO = 1 << 30

func (h *osHandle) ReadAt(p []byte, off int64) (int, error) {
	total := 0
	for total < len(p) {
		var n int
		err := h.use("read", func(fd int) (err error) {
			n, err = unix.Pread(fd, p[total:min(len(p), total+maxIO)], off+int64(total))
			return err
		})
		if err != nil {
			return total, err
		}
		if n == 0 {
			return total, io.EOF
		}
		total += n
	}
	return total, nil
}

func (h *osHandle) WriteAt(p []byte, off int64) (int, error) {
	total := 0
	for total < len(p) {
		var n int
		err := h.use("write", func(fd int) (err error) {
			n, err = unix.Pwrite(fd, p[total:min(len(p), total+maxIO)], off+int64(total))
			if err == nil && n == 0 {
				err = io.ErrUnexpectedEOF
			}
			return err
		})
		if err != nil {
			return total, err
		}
		total += n
	}
	return total, nil
}

func (h *osHandle) Sync() error { return h.use("sync", unix.Fsync) }

// flushFD is fsync(2).
func flushFD(fd int, name string) error {
	for {
		switch err := unix.Fsync(fd); err {
		case nil:
			return nil
		case unix.EINTR:
		default:
			return &fs.PathError{Op: "sync", Path: name, Err: err}
		}
	}
}

func (h *osHandle) Stat() (info Info, err error) {
	err = h.use("stat", func(fd int) (err error) {
		info, err = statFD(fd, h.name)
		return err
	})
	return info, err
}

// statFD asks fstat(2) itself: os.File.Stat allocates more than a read costs.
func statFD(fd int, name string) (Info, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return Info{}, &fs.PathError{Op: "stat", Path: name, Err: err}
	}
	mode := fs.FileMode(st.Mode & 0o777)
	switch st.Mode & syscall.S_IFMT {
	case syscall.S_IFREG:
	case syscall.S_IFDIR:
		mode |= fs.ModeDir
	default:
		mode |= fs.ModeIrregular
	}
	return Info{Size: st.Size, ModTime: time.Unix(st.Mtim.Unix()), Mode: mode}, nil
}

func (h *osHandle) WriteOut(off, n int64) error {
	return h.use("sync_file_range", func(fd int) error {
		err := unix.SyncFileRange(fd, off, n, unix.SYNC_FILE_RANGE_WRITE)
		if before := min(off, n); err == nil && before > 0 {
			err = unix.SyncFileRange(fd, off-before, before, unix.SYNC_FILE_RANGE_WAIT_BEFORE)
		}
		if err == unix.ENOSYS {
			return nil
		}
		return err
	})
}

func (h *osHandle) Settle() error {
	const all = unix.SYNC_FILE_RANGE_WAIT_BEFORE | unix.SYNC_FILE_RANGE_WRITE | unix.SYNC_FILE_RANGE_WAIT_AFTER
	return h.use("sync_file_range", func(fd int) error {
		err := unix.SyncFileRange(fd, 0, 0, all)
		if err == unix.ENOSYS {
			return unix.Fsync(fd)
		}
		return err
	})
}

// prefetchStep is how far apart Prefetch touches the file: half of the kernel's
// usual read-ahead window.
const prefetchStep = 64 << 10

func (h *osHandle) Prefetch(off, n int64) error {
	// The kernel may refuse the advice; the reads below do the work then.
	_ = h.use("fadvise", func(fd int) error { return unix.Fadvise(fd, off, n, unix.FADV_WILLNEED) })
	var b [1]byte
	for at := off + min(n, prefetchStep) - 1; n > 0; at += min(n, prefetchStep) {
		if _, err := h.ReadAt(b[:], at); err != nil && err != io.EOF {
			return err
		}
		n -= min(n, prefetchStep)
	}
	return nil
}

func (h *osHandle) Forget(off, n int64) error {
	return h.use("fadvise", func(fd int) error { return unix.Fadvise(fd, off, n, unix.FADV_DONTNEED) })
}

// attrError is what callers know an errno of an attribute as.
func attrError(err error) error {
	switch {
	case errors.Is(err, unix.ENODATA):
		return fs.ErrNotExist
	case errors.Is(err, unix.EOPNOTSUPP):
		return errors.ErrUnsupported
	}
	return err
}

func (h *osHandle) Attr(name string) ([]byte, error) {
	buf := make([]byte, 256) // ours are shorter
	var n int
	err := h.use("getxattr", func(fd int) (err error) {
		n, err = unix.Fgetxattr(fd, name, buf)
		return err
	})
	if err != nil {
		return nil, attrError(err)
	}
	return buf[:n], nil
}

func (h *osHandle) SetAttr(name string, value []byte) error {
	return attrError(h.use("setxattr", func(fd int) error { return unix.Fsetxattr(fd, name, value, 0) }))
}

func (h *osHandle) RemoveAttr(name string) error {
	return attrError(h.use("removexattr", func(fd int) error { return unix.Fremovexattr(fd, name) }))
}
