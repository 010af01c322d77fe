package mogautomount

import (
	"errors"
	"os/exec"
	"strings"

	"golang.org/x/sys/unix"
)

// Mount implements System.
func (OS) Mount(device, path, fsType string) error {
	if fsType == "" {
		// The program tries those that the kernel knows.
		out, err := exec.Command("mount", "-o", "noatime", device, path).CombinedOutput()
		if err != nil {
			return errors.Join(err, errors.New(strings.TrimSpace(string(out))))
		}
		return nil
	}
	return unix.Mount(device, path, fsType, unix.MS_NOATIME, "")
}
