//go:build !unix

package process

import (
	"errors"
	"fmt"
	"os"
	"syscall"
)

// Elsewhere than on Unix there are no sessions to start and no descriptors to
// hand over: a daemon runs in the foreground.

func newSession() (*syscall.SysProcAttr, error) {
	return nil, fmt.Errorf("start in the background: %w on this system", errors.ErrUnsupported)
}

func isPipe(int) bool { return false }

func closeOnExec(int) {}

func keepToOurselves() {}

func zeroUmask() {}

func detach() error { return errors.ErrUnsupported }

func runs(pid int) bool {
	p, err := os.FindProcess(pid)
	if err != nil {
		return false
	}
	return p.Release() == nil
}

func lockFolder(string) (unlock func(), err error) { return func() {}, nil }
