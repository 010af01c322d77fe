//go:build !linux

package mogautomount

import "errors"

// Mount implements System.
func (OS) Mount(device, path, fsType string) error { return errors.ErrUnsupported }
