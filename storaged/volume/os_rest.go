//go:build !linux && !darwin && !freebsd

package volume

import (
	"errors"
	"fmt"
	"io/fs"
	"runtime"
)

// fileID cannot be told here: a folder that is replaced while it is served goes
// unnoticed until the next start.
func fileID(fs.FileInfo) FileID { return FileID{} }

func mountOf(dir string) (Mount, error) {
	return Mount{}, fmt.Errorf("mount of %s on %s: %w", dir, runtime.GOOS, errors.ErrUnsupported)
}

func spaceOf(dir string) (Space, error) {
	return Space{}, fmt.Errorf("space of %s on %s: %w", dir, runtime.GOOS, errors.ErrUnsupported)
}
