//go:build !linux

package volume

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"runtime"
	"syscall"
)

// OS is the operating system's filesystem. Elsewhere than on Linux there are no
// nameless files, extended attributes, locks on folders or shared flushes: new
// files are made below .mogile/tmp, content sums are not kept, and only one
// process may serve a docroot.
type OS struct{}

var _ FS = OS{}

// OpenRoot implements [FS].
func (OS) OpenRoot(dir string) (Root, error) {
	r, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	return &osRoot{Root: r, path: dir}, nil
}

// Mount implements [FS].
func (OS) Mount(dir string) (Mount, error) { return mountOf(dir) }

type osRoot struct {
	*os.Root
	path string
}

func (r *osRoot) ID() (FileID, error) {
	info, err := r.Root.Stat(".")
	if err != nil {
		return FileID{}, err
	}
	return fileID(info), nil
}

func (r *osRoot) Open(name string, flag int) (Handle, error) {
	if info, err := r.Root.Stat(name); err == nil && !info.Mode().IsRegular() && !info.IsDir() {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrPermission}
	}
	f, err := r.OpenFile(name, flag, 0o666)
	if err != nil {
		return nil, err
	}
	return osHandle{f}, nil
}

func (r *osRoot) OpenUnnamed(string) (Handle, error) { return nil, errors.ErrUnsupported }

func (r *osRoot) Link(Handle, string) error { return errors.ErrUnsupported }

func (r *osRoot) Unlink(name string) error {
	info, err := r.Lstat(name)
	if err != nil {
		return err
	}
	if info.IsDir() {
		return &fs.PathError{Op: "unlink", Path: name, Err: syscall.EISDIR}
	}
	return r.Remove(name)
}

func (r *osRoot) Mkdir(name string) error { return r.Root.Mkdir(name, 0o777) }

func (r *osRoot) Rmdir(name string) error {
	info, err := r.Lstat(name)
	if err != nil {
		return err
	}
	if !info.IsDir() {
		return &fs.PathError{Op: "rmdir", Path: name, Err: syscall.ENOTDIR}
	}
	return r.Remove(name)
}

func (r *osRoot) Stat(name string) (Info, error) {
	info, err := r.Root.Stat(name)
	if err != nil {
		return Info{}, err
	}
	return Info{Size: info.Size(), ModTime: info.ModTime(), Mode: info.Mode()}, nil
}

func (r *osRoot) List(dir string) ([]string, error) {
	f, err := r.Root.Open(dir)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return f.Readdirnames(-1)
}

func (r *osRoot) OpenDir(dir string) (Dir, error) {
	f, err := r.Root.Open(dir)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.IsDir() {
		err = &fs.PathError{Op: "open", Path: dir, Err: syscall.ENOTDIR}
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return osDir{f}, nil
}

func (r *osRoot) SyncDir(dir string) error {
	if runtime.GOOS == "windows" {
		return nil // folders cannot be flushed there; NTFS keeps a journal of its own
	}
	f, err := r.Root.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

func (r *osRoot) SyncFS() (bool, error) { return false, errors.ErrUnsupported }

func (r *osRoot) Lock(string) (io.Closer, error) { return io.NopCloser(nil), nil }

func (r *osRoot) Space() (Space, error) { return spaceOf(r.path) }

// osHandle is an open file of the operating system.
type osHandle struct{ *os.File }

func (h osHandle) Stat() (Info, error) {
	info, err := h.File.Stat()
	if err != nil {
		return Info{}, err
	}
	return Info{Size: info.Size(), ModTime: info.ModTime(), Mode: info.Mode()}, nil
}

func (h osHandle) Settle() error { return h.Sync() }

func (h osHandle) WriteOut(int64, int64) error { return nil }

func (h osHandle) Prefetch(off, n int64) error {
	var b [1]byte
	if _, err := h.ReadAt(b[:], off+n-1); err != nil && err != io.EOF {
		return err
	}
	return nil
}

func (h osHandle) Forget(int64, int64) error    { return nil }
func (h osHandle) Attr(string) ([]byte, error)  { return nil, errors.ErrUnsupported }
func (h osHandle) SetAttr(string, []byte) error { return errors.ErrUnsupported }
func (h osHandle) RemoveAttr(string) error      { return errors.ErrUnsupported }
func (h osHandle) OSFile() *os.File             { return h.File }
