package sqlite

import (
	"os"

	"golang.org/x/sys/windows"
)

// tryLock takes the exclusive lock of f, which goes with its handle. It reports
// false where somebody else has it.
func tryLock(f *os.File) (bool, error) {
	err := windows.LockFileEx(windows.Handle(f.Fd()), windows.LOCKFILE_EXCLUSIVE_LOCK|windows.LOCKFILE_FAIL_IMMEDIATELY, 0, 1, 0, lockedByte())
	if err == windows.ERROR_LOCK_VIOLATION {
		return false, nil
	}
	return err == nil, err
}

// unlock gives the lock of f back.
func unlock(f *os.File) error {
	return windows.UnlockFileEx(windows.Handle(f.Fd()), 0, 1, 0, lockedByte())
}

// lockedByte is a byte far behind the process id, so that others can read that.
func lockedByte() *windows.Overlapped { return &windows.Overlapped{Offset: 1 << 30} }
