package process

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// asideSuffix is appended to the pidfile of a daemon that is being replaced.
const asideSuffix = ".oldbin"

// RunningError says that the pidfile names a process that runs.
type RunningError struct {
	PID  int
	Path string // of the pidfile
}

func (e *RunningError) Error() string {
	return fmt.Sprintf("already running on PID: %d (%s; if that is another program, remove the file)", e.PID, e.Path)
}

// Pidfile is a file that holds the id of this process, for as long as it runs.
type Pidfile struct{ path string }

// WritePidfile writes the process's id to the file, in one step: nobody sees it
// half written. A file that names a running process is left as it is, and the
// error is a [*RunningError]; one that a dead process left is replaced.
//
// An empty path is no pidfile, a nil one, whose methods do nothing. A device, such
// as /dev/null, is written to and stays what it is: the pidfile is nil too.
func WritePidfile(path string) (*Pidfile, error) {
	if path == "" {
		return nil, nil
	}
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("pidfile: %w", err)
	}
	if info, err := os.Stat(path); err == nil && info.Mode()&fs.ModeCharDevice != 0 {
		if err := tell(path); err != nil {
			return nil, fmt.Errorf("pidfile: %w", err)
		}
		return nil, nil
	}
	p := &Pidfile{path: path}
	if err := p.locked(p.write); err != nil {
		return nil, fmt.Errorf("pidfile: %w", err)
	}
	return p, nil
}

// tell writes the process's id to a device.
func tell(path string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(f, os.Getpid())
	return errors.Join(err, f.Close())
}

func (p *Pidfile) write() error {
	pid, err := readPid(p.path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if pid > 0 && pid != os.Getpid() && runs(pid) {
		return &RunningError{PID: pid, Path: p.path}
	}
	temp, err := os.CreateTemp(filepath.Dir(p.path), "."+filepath.Base(p.path)+".")
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(temp, os.Getpid())
	// Not 0666 as umask 0 would have it: who can write the file chooses which
	// process an init script kills.
	err = errors.Join(err, temp.Chmod(0o644), temp.Close())
	if err == nil {
		err = os.Rename(temp.Name(), p.path)
	}
	if err != nil {
		_ = os.Remove(temp.Name()) // the error is told
	}
	return err
}

// MoveAside renames the file to PATH.oldbin, so that the process which replaces
// this one can write its own under the name.
func (p *Pidfile) MoveAside() error { return p.move(asideSuffix) }

// MoveBack undoes MoveAside, where the replacement did not come about.
func (p *Pidfile) MoveBack() error {
	if p == nil {
		return nil
	}
	return p.move("")
}

func (p *Pidfile) move(suffix string) error {
	if p == nil {
		return nil
	}
	to := strings.TrimSuffix(p.path, asideSuffix) + suffix
	err := p.locked(func() error {
		if pid, err := readPid(to); err == nil && pid != os.Getpid() && runs(pid) {
			return &RunningError{PID: pid, Path: to}
		}
		return os.Rename(p.path, to)
	})
	if err != nil {
		return fmt.Errorf("pidfile: %w", err)
	}
	p.path = to
	return nil
}

// Remove removes the file, unless it is another process's by now.
func (p *Pidfile) Remove() error {
	if p == nil {
		return nil
	}
	err := p.locked(func() error {
		switch pid, err := readPid(p.path); {
		case errors.Is(err, fs.ErrNotExist):
			return nil
		case err != nil:
			return err
		case pid != os.Getpid():
			return nil
		}
		return os.Remove(p.path)
	})
	if err != nil {
		return fmt.Errorf("pidfile: %w", err)
	}
	return nil
}

// locked does do while no other process changes a pidfile in the folder.
func (p *Pidfile) locked(do func() error) error {
	unlock, err := lockFolder(filepath.Dir(p.path))
	if err != nil {
		return err
	}
	defer unlock()
	return do()
}

// readPid reads a pidfile. What names no process is 0.
func readPid(path string) (int, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, 64))
	if err != nil {
		return 0, err
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil || pid <= 0 {
		return 0, nil
	}
	return pid, nil
}
