package volume

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"
	"syscall"

	"github.com/mogile/mogile/protocol"
)

// Errors that callers test for, beside [fs.ErrNotExist] and [fs.ErrPermission].
var (
	// ErrNoDevice: the docroot has no folder of that device, or it went away.
	ErrNoDevice = errors.New("no such device")
	// ErrIsDir: the name is a directory.
	ErrIsDir = errors.New("is a directory")
	// ErrNoSpace: the disk or a quota is full, or the file too big for it.
	// Nothing of the upload is left behind.
	ErrNoSpace = errors.New("no space left")
	// ErrSick: the disk does not answer. The operation may still be carried
	// out by the kernel, and is then undone.
	ErrSick = errors.New("disk does not answer")
	// ErrLate: the disk came back after somebody else had been told that it does
	// not answer: see [Late]. What had been done is undone.
	ErrLate = errors.New("the disk answered too late")
	// ErrBusy: as many uploads as may are under way to the disk, and none
	// ended in time.
	ErrBusy = errors.New("too many uploads to the disk")
	// ErrExcluded: there is a file beside which this one must not be.
	ErrExcluded = errors.New("there is a file that excludes it")
	// ErrBadName: no file can have this name.
	ErrBadName = errors.New("not the name of a file")
	// ErrNoSum: no content sum is stored for the file.
	ErrNoSum = errors.New("no content sum")
	// ErrCorrupt: the content differs from its stored sum.
	ErrCorrupt = errors.New("content differs from its sum")
	// ErrRefused: the folder is there but is not served, because of what its
	// identity says, its number, or because nothing is mounted there.
	ErrRefused = errors.New("device refused")
	// ErrStale: the usage in memory is too old to be told.
	ErrStale = errors.New("usage is stale")
	// ErrFlush: a flush that many files depended on failed. The device takes
	// no more writes until it is opened anew (see the package's comment).
	ErrFlush = errors.New("a flush of the device failed")
)

// errno gives the operating system's errors the names of this package.
func errno(err error) error {
	var named error
	switch {
	case err == nil:
		return nil
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT), errors.Is(err, syscall.EFBIG):
		named = ErrNoSpace
	case errors.Is(err, syscall.EISDIR):
		named = ErrIsDir
	case errors.Is(err, syscall.ENOTDIR), errors.Is(err, syscall.ENAMETOOLONG):
		named = ErrBadName
	case errors.Is(err, syscall.ELOOP), errors.Is(err, syscall.EXDEV):
		named = fs.ErrPermission // a symbolic link in circles, or out of the device
	case errors.Is(err, syscall.ENXIO):
		named = fs.ErrPermission // a socket, or a device node without a device
	case errors.Is(err, os.ErrClosed):
		named = ErrNoDevice // the folder went away, and its volume with it
	default:
		return err
	}
	if errors.Is(err, named) {
		return err
	}
	return fmt.Errorf("%w: %w", named, err)
}

// IsUnreadable reports whether err says that the disk answers, and cannot give
// the file: a bad sector, or a filesystem that is damaged there.
func IsUnreadable(err error) bool {
	const structureNeedsCleaning = syscall.Errno(117) // EUCLEAN, of Linux alone
	return errors.Is(err, syscall.EIO) || errors.Is(err, syscall.EBADMSG) ||
		runtime.GOOS == "linux" && errors.Is(err, structureNeedsCleaning)
}

// wrap says what was done to which file. It keeps nil.
func wrap(verb string, dev protocol.DevID, name string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s dev%d/%s: %w", verb, dev, name, errno(err))
}
