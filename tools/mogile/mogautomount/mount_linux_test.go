package mogautomount

import (
	"errors"
	"io/fs"
	"testing"

	"golang.org/x/sys/unix"
)

// TestMount mounts a file system in memory where a disk would be, as the kernel
// has it then.
func TestMount(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := (OS{}).Mount("tmpfs", dir, "tmpfs"); errors.Is(err, fs.ErrPermission) {
		t.Skip(err)
	} else if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	mounts, err := OS{}.Mounts()
	if err != nil {
		t.Fatal(err)
	}
	if !ParseMounts(mounts)[dir] {
		t.Errorf("%s is not in\n%s", dir, mounts)
	}
	var stat unix.Statfs_t
	if err := unix.Statfs(dir, &stat); err != nil || stat.Flags&unix.ST_NOATIME == 0 {
		t.Errorf("flags %#x, %v; want noatime", stat.Flags, err)
	}
	if err := (OS{}).Mount("/dev/nonexistent", t.TempDir(), "ext4"); err == nil {
		t.Error("a device that is not there is mounted")
	}
}
