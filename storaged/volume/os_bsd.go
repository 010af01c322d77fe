//go:build darwin || freebsd

package volume

import (
	"io/fs"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

func fileID(info fs.FileInfo) FileID {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return FileID{}
	}
	return FileID{Dev: uint64(st.Dev), Ino: uint64(st.Ino)}
}

func mountOf(dir string) (Mount, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return Mount{}, &fs.PathError{Op: "statfs", Path: dir, Err: err}
	}
	dir, err := filepath.Abs(dir)
	if err == nil {
		dir, err = filepath.EvalSymlinks(dir)
	}
	if err != nil {
		return Mount{}, err
	}
	point := unix.ByteSliceToString(st.Mntonname[:])
	return Mount{Point: point, Here: point == dir, Device: unix.ByteSliceToString(st.Mntfromname[:])}, nil
}

func spaceOf(dir string) (Space, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return Space{}, &fs.PathError{Op: "statfs", Path: dir, Err: err}
	}
	unit := int64(st.Bsize)
	return Space{Used: int64(st.Blocks-st.Bfree) * unit, Available: max(0, int64(st.Bavail)) * unit}, nil
}
