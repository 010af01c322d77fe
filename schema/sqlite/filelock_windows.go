package sqlite

import (
	"os"

	"golang.org/x/sys/windows"
)

// tryLock takes the exclusive lock of f, which goes with its handle. It reports
// false where somebody else has it.
func tryLock(f *os.File) (bool, error) {
	// A byte far behind the process id, so that others can read that.
	where := &windows.Overlapped{Offset: 1 << 30}
	err := windows.LockFileEx(windows.Handle(f.Fd()), windows.LOCKFILE_EXCLUSIVE_LOCK|windows.LOCKFILE_FAIL_IMMEDIATELY, 0, 1, 0, where)
	if err == windows.ERROR_LOCK_VIOLATION {
		return false, nil
	}
	return err == nil, err
}
