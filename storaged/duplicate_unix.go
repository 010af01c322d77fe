//go:build unix

package storaged

import (
	"os"

	"golang.org/x/sys/unix"
)

// duplicate is another descriptor of what fd is one of. Programs that this one
// starts do not have it.
func duplicate(fd int) (int, error) {
	fd, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	return fd, os.NewSyscallError("fcntl", err)
}
