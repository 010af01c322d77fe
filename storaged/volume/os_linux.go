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
	return parseMounts(f, dir)
}

// parseMounts finds the mount of dir in a table as proc_pid_mountinfo(5) has
// it: the longest mount point that is a prefix of dir, and of several on the
// same point the last.
func parseMounts(r io.Reader, dir string) (Mount, error) {
	var m Mount
	var number, root string
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
		number, root = l[2], l[3]
	}
	if err := sc.Err(); err != nil {
		return Mount{}, err
	}
	if m.Point == "" {
		return Mount{}, &fs.PathError{Op: "find mount", Path: dir, Err: fs.ErrNotExist}
	}
	m.Here = m.Point == dir
	m.Exclusive = m.Here && root == "/" && uses[number] == 1
	return m, nil
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

func (r *osRoot) open(name string, flag int) (*os.File, error) {
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
			return os.NewFile(uintptr(fd), name), nil
		case err == unix.EINTR, err == unix.EAGAIN && tries < 100: // a rename raced with the walk
			continue
		case err == unix.ENOSYS, err == unix.EPERM:
			r.old.Store(true) // seccomp filters answer EPERM; os.Root finds out whether it was meant
			continue
		}
		return nil, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	return r.beneath.OpenFile(name, flag, 0o666)
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
		defer d.Close()
		fd = int(d.Fd())
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
	return osHandle{f}, nil
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
		return osHandle{f}, nil
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EISDIR):
		return nil, errors.ErrUnsupported
	}
	return nil, err
}

func (r *osRoot) Link(h Handle, name string) error {
	file := procName(int(h.OSFile().Fd()))
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
	defer f.Close()
	return osHandle{f}.Stat()
}

func (r *osRoot) List(dir string) ([]string, error) {
	f, err := r.open(dir, os.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return f.Readdirnames(-1)
}

func (r *osRoot) OpenDir(dir string) (Dir, error) {
	f, err := r.open(dir, os.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return nil, err
	}
	return osDir{f}, nil
}

func (r *osRoot) SyncDir(dir string) error {
	f, err := r.open(dir, os.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
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
type dirLock struct{ f *os.File }

// Close gives the lock back. It says so: closing the directory alone would leave
// the lock with a child process that is just being started, and has inherited
// the descriptor for a moment.
func (l dirLock) Close() error {
	return errors.Join(unix.Flock(int(l.f.Fd()), unix.LOCK_UN), l.f.Close())
}

func (r *osRoot) Lock(dir string) (io.Closer, error) {
	f, err := r.open(dir, os.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return nil, err
	}
	for {
		switch err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err {
		case nil:
			return dirLock{f}, nil
		case unix.EINTR:
			continue
		case unix.EWOULDBLOCK:
			f.Close()
			return nil, ErrLocked
		default:
			f.Close()
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

// osHandle is an open file of the operating system.
type osHandle struct{ *os.File }

// Stat asks fstat(2) itself: os.File.Stat allocates more than a read costs.
func (h osHandle) Stat() (Info, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(h.Fd()), &st); err != nil {
		return Info{}, &fs.PathError{Op: "stat", Path: h.Name(), Err: err}
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

func (h osHandle) WriteOut(off, n int64) error {
	fd := int(h.Fd())
	err := unix.SyncFileRange(fd, off, n, unix.SYNC_FILE_RANGE_WRITE)
	if before := min(off, n); err == nil && before > 0 {
		err = unix.SyncFileRange(fd, off-before, before, unix.SYNC_FILE_RANGE_WAIT_BEFORE)
	}
	if err != nil && err != unix.ENOSYS {
		return &fs.PathError{Op: "sync_file_range", Path: h.Name(), Err: err}
	}
	return nil
}

// prefetchStep is how far apart Prefetch touches the file: half of the kernel's
// usual read-ahead window.
const prefetchStep = 64 << 10

func (h osHandle) Prefetch(off, n int64) error {
	// The kernel may refuse the advice; the reads below do the work then.
	_ = unix.Fadvise(int(h.Fd()), off, n, unix.FADV_WILLNEED)
	var b [1]byte
	for at := off + min(n, prefetchStep) - 1; n > 0; at += min(n, prefetchStep) {
		if _, err := h.ReadAt(b[:], at); err != nil && err != io.EOF {
			return err
		}
		n -= min(n, prefetchStep)
	}
	return nil
}

func (h osHandle) Forget(off, n int64) error {
	return unix.Fadvise(int(h.Fd()), off, n, unix.FADV_DONTNEED)
}

func (h osHandle) Attr(name string) ([]byte, error) {
	buf := make([]byte, 256) // ours are shorter
	n, err := unix.Fgetxattr(int(h.Fd()), name, buf)
	switch err {
	case nil:
		return buf[:n], nil
	case unix.ENODATA:
		return nil, fs.ErrNotExist
	case unix.EOPNOTSUPP:
		return nil, errors.ErrUnsupported
	}
	return nil, &fs.PathError{Op: "getxattr", Path: h.Name(), Err: err}
}

func (h osHandle) SetAttr(name string, value []byte) error {
	switch err := unix.Fsetxattr(int(h.Fd()), name, value, 0); err {
	case nil:
		return nil
	case unix.EOPNOTSUPP:
		return errors.ErrUnsupported
	default:
		return &fs.PathError{Op: "setxattr", Path: h.Name(), Err: err}
	}
}

func (h osHandle) RemoveAttr(name string) error {
	switch err := unix.Fremovexattr(int(h.Fd()), name); err {
	case nil:
		return nil
	case unix.ENODATA:
		return fs.ErrNotExist
	case unix.EOPNOTSUPP:
		return errors.ErrUnsupported
	default:
		return &fs.PathError{Op: "removexattr", Path: h.Name(), Err: err}
	}
}

func (h osHandle) OSFile() *os.File { return h.File }
