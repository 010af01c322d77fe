//go:build unix

package tools

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// lockFile locks a file against other processes that ask for the same, until it
// is closed. It reports false where one of them has it. File systems that have no
// locks say so in many ways, and are used without.
func lockFile(f *os.File) bool {
	for {
		switch err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); {
		case errors.Is(err, unix.EWOULDBLOCK):
			return false
		case !errors.Is(err, unix.EINTR):
			return true
		}
	}
}
