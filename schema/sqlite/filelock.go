package sqlite

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
)

// fileLock is a lock file that this process holds.
type fileLock struct{ *os.File }

// Close gives the lock back. It says so: closing the file alone would leave the
// lock with a child process that is just being started, and has inherited the
// descriptor for a moment.
func (l fileLock) Close() error { return errors.Join(unlock(l.File), l.File.Close()) }

// lockFile takes the lock file that lies beside the database at path. It
// belongs to one process, until it is closed.
func lockFile(path string) (*fileLock, error) {
	name := path + ".lock"
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, fmt.Errorf("lock the database: %w", err)
	}
	ok, err := tryLock(f)
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", name, err)
	}
	if !ok {
		holder, _ := io.ReadAll(io.LimitReader(f, 32)) // for the message only
		f.Close()
		return nil, fmt.Errorf("database %s is in use by process %s, which holds %s: "+
			"an SQLite database serves one process; stop that one, or put the namespace on PostgreSQL",
			path, strings.TrimSpace(string(holder)), name)
	}
	// Who holds it, for the message above.
	err = f.Truncate(0)
	if err == nil {
		_, err = f.WriteAt(fmt.Appendf(nil, "%d\n", os.Getpid()), 0)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("write %s: %w", name, err)
	}
	return &fileLock{f}, nil
}
