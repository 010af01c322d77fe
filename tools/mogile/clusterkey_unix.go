//go:build unix

package mogile

import (
	"errors"
	"io/fs"
	"os"
	"syscall"
)

// keepOwner gives f the mode, owner and group of the file at path, if there is
// one. Who may not give the owner away leaves that.
func keepOwner(f *os.File, path string) error {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if have, ok := info.Sys().(*syscall.Stat_t); ok {
		if err := f.Chown(int(have.Uid), int(have.Gid)); err != nil && !errors.Is(err, fs.ErrPermission) {
			return err
		}
	}
	return f.Chmod(info.Mode().Perm())
}
