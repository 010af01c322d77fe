//go:build !unix

package mogile

import "os"

// keepOwner does nothing where files have no owners of this kind.
func keepOwner(*os.File, string) error { return nil }
