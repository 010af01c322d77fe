package volume

import (
	"fmt"
	"path"
	"strings"
)

const (
	private   = ".mogile"        // our own folder on a device
	tmpFolder = ".mogile/tmp"    // one folder a process below it
	idFile    = ".mogile/device" // see Identity

	maxName      = 1024 // bytes; MogileFS's own names have under 40
	maxComponent = 255  // the limit of every common filesystem
)

// checkName accepts the names that files on a device may have: one or more
// components separated by single slashes, none of them "." or "..", no control
// characters and no backslash, not below .mogile. A name that can only be a
// directory's is answered by ErrIsDir, any other that is refused by ErrBadName.
func checkName(name string) error {
	if name == "" || (strings.HasSuffix(name, "/") && checkName(strings.TrimSuffix(name, "/")) == nil) {
		return fmt.Errorf("%q: %w", name, ErrIsDir)
	}
	if len(name) > maxName {
		return fmt.Errorf("%q...: %w", name[:64], ErrBadName)
	}
	for i := range len(name) {
		if c := name[i]; c < ' ' || c == 0x7f || c == '\\' {
			return fmt.Errorf("%q: %w", name, ErrBadName)
		}
	}
	for first, rest := true, name; ; first = false {
		part, tail, more := strings.Cut(rest, "/")
		if part == "" || part == "." || part == ".." || len(part) > maxComponent || (first && part == private) {
			return fmt.Errorf("%q: %w", name, ErrBadName)
		}
		if !more {
			return nil
		}
		rest = tail
	}
}

// parent is the directory of a name; "." is the device's own folder.
func parent(name string) string { return path.Dir(name) }
