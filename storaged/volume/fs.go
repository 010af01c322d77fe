package volume

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"time"
)

// FS is the filesystem under a docroot. [OS] is the real one; package simdisk
// has one that forgets, tears, fails and hangs.
//
// Errors match [fs.ErrNotExist], [fs.ErrExist], [fs.ErrPermission],
// [errors.ErrUnsupported] and the syscall.Errno values as package os has them.
type FS interface {
	// OpenRoot opens the directory at path, following symbolic links.
	OpenRoot(path string) (Root, error)
	// Mount describes the mount that the directory at path belongs to, links
	// followed.
	Mount(path string) (Mount, error)
}

// Root is one directory tree. Names are relative, separated by slashes, without
// ".." and "."; "." alone is the tree's own directory. No name leads out of the
// tree: a symbolic link that would is refused. New files get mode 0666 and new
// directories 0777, less the umask.
//
// All methods may be called concurrently.
type Root interface {
	// ID identifies the directory among all of this FS.
	ID() (FileID, error)
	// Open opens a file: flag is os.O_RDONLY, os.O_RDWR or os.O_RDWR with
	// os.O_CREATE and os.O_EXCL. It does not wait for a writer of a FIFO.
	Open(name string, flag int) (Handle, error)
	// OpenUnnamed makes a file without a name in the directory dir. An error
	// matching errors.ErrUnsupported says that this filesystem cannot.
	OpenUnnamed(dir string) (Handle, error)
	// Link gives a file of OpenUnnamed a name; fs.ErrExist if it is taken.
	Link(h Handle, name string) error
	// Rename moves a file, replacing what has the new name.
	Rename(from, to string) error
	// Unlink removes a file, not a directory (syscall.EISDIR).
	Unlink(name string) error
	Mkdir(name string) error
	Rmdir(name string) error
	Stat(name string) (Info, error)
	// List lists the names in a directory in no order.
	List(dir string) ([]string, error)
	// OpenDir opens a directory to list it piece by piece; syscall.ENOTDIR if it
	// is none.
	OpenDir(dir string) (Dir, error)
	// SyncDir flushes the entries of a directory.
	SyncDir(dir string) error
	// SyncFS flushes the whole filesystem that the tree is on, through one
	// descriptor that lives as long as the Root. reliable says that errors of
	// earlier writes are reported (Linux 5.8 or later).
	SyncFS() (reliable bool, err error)
	// Lock takes an exclusive lock on a directory, which ends when it is
	// closed or the process dies. ErrLocked if somebody else has it.
	Lock(dir string) (io.Closer, error)
	// Space says how full the filesystem is.
	Space() (Space, error)
	Close() error
}

// Dir is a directory that is being listed.
type Dir interface {
	// Next are up to n further names, in no order; io.EOF where there is none.
	Next(n int) ([]string, error)
	Close() error
}

// Handle is an open file.
type Handle interface {
	io.ReaderAt
	io.WriterAt
	Stat() (Info, error)
	// Sync flushes content and attributes.
	Sync() error
	// Settle writes the content out and waits until the disk has taken it, which
	// may still be in its cache. It is for filesystems that are [Mount].Ordered;
	// where that is unknown it is Sync.
	Settle() error
	// WriteOut has the kernel begin to write the range, and waits for what was
	// begun before it, so that a later Sync is short. It promises nothing.
	WriteOut(off, n int64) error
	// Prefetch has the range read into memory, so that sendfile(2) need not
	// wait for the disk. It promises nothing.
	Prefetch(off, n int64) error
	// Forget says that the range need not be kept in memory. It promises nothing.
	Forget(off, n int64) error
	// Attr reads an extended attribute: fs.ErrNotExist if it has none,
	// errors.ErrUnsupported if the filesystem has none.
	Attr(name string) ([]byte, error)
	SetAttr(name string, value []byte) error
	RemoveAttr(name string) error
	// OSFile is the open file, or nil for a simulated one.
	OSFile() *os.File
	Close() error
}

// FileID tells directories apart.
type FileID struct{ Dev, Ino uint64 }

// Info describes a file.
type Info struct {
	Size    int64 // bytes
	ModTime time.Time
	Mode    fs.FileMode
}

// Space is the room on a filesystem.
type Space struct {
	Used      int64 // bytes
	Available int64 // bytes that an unprivileged user may still write
}

// Mount is one entry of the mount table.
type Mount struct {
	Point     string // where it is mounted
	Here      bool   // the directory asked for is the mount point
	Device    string // the block device, or what the filesystem calls itself
	Exclusive bool   // its root is the directory asked for, and nothing else mounts the same filesystem
	// Ordered says that the filesystem has a journal that keeps the order of
	// changes, so that a name never is on disk without what was settled before
	// the name was given: [Handle].Settle, SetAttr before it, then Link or
	// Rename, then one flush of the directory make a file durable.
	Ordered bool
}

// ErrLocked is the answer of [Root].Lock where somebody else has the lock.
var ErrLocked = errors.New("locked by another process")
