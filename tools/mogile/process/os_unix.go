//go:build unix

package process

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// newSession has a process started without the terminal of this one.
func newSession() (*syscall.SysProcAttr, error) { return &syscall.SysProcAttr{Setsid: true}, nil }

// isPipe tells whether the descriptor is open, and a pipe.
func isPipe(fd int) bool {
	var stat unix.Stat_t
	return unix.Fstat(fd, &stat) == nil && stat.Mode&unix.S_IFMT == unix.S_IFIFO
}

func closeOnExec(fd int) { unix.CloseOnExec(fd) }

// keepToOurselves has no started process inherit descriptors that it is not
// given: those of a shell or an init script, such as a lock, would stay open for
// as long as the daemon runs.
func keepToOurselves() {
	open, err := os.ReadDir("/dev/fd")
	if err != nil {
		return // a system that does not list them
	}
	for _, f := range open {
		if fd, err := strconv.Atoi(f.Name()); err == nil && fd > 2 {
			unix.CloseOnExec(fd)
		}
	}
}

// zeroUmask has files made with the modes that are asked for.
func zeroUmask() { unix.Umask(0) }

// detach lets go of the directory and the terminal that the process was started
// from. A hangup means nothing to it from then on: by habit it is sent to have
// logs turned over, and would end the daemon, uploads and all.
func detach() error {
	signal.Ignore(unix.SIGHUP)
	if err := os.Chdir("/"); err != nil {
		return err
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	for fd := range 3 {
		if err := unix.Dup2(int(null.Fd()), fd); err != nil {
			return err
		}
	}
	return nil
}

// runs tells whether there is a process of that id. One that has ended, and whose
// parent has not asked how, does not run.
func runs(pid int) bool {
	if err := unix.Kill(pid, 0); err != nil && !errors.Is(err, unix.EPERM) {
		return false
	}
	// Linux: "pid (name) state …", and the name may have anything in it.
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return true
	}
	_, state, ok := strings.Cut(string(stat[strings.LastIndexByte(string(stat), ')')+1:]), " ")
	return !ok || state == "" || (state[0] != 'Z' && state[0] != 'X')
}

// lockFolder keeps other processes from changing pidfiles in dir at the same
// time. It is held for as long as reading one and renaming another takes.
func lockFolder(dir string) (unlock func(), err error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	for {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		_ = f.Close() // it was only read
		return nil, &os.PathError{Op: "lock", Path: dir, Err: err}
	}
	return func() { _ = f.Close() }, nil // which unlocks it
}
