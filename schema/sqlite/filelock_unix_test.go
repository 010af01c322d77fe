//go:build unix

package sqlite

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// A child process that inherited the lock's descriptor, as every one does for a
// moment while it is started, does not keep the lock.
func TestLockIsGivenBackAlthoughInherited(t *testing.T) {
	path := filepath.Join(t.TempDir(), "namespace.db")
	lock, err := lockFile(path)
	if err != nil {
		t.Fatal(err)
	}
	child := exec.Command("sleep", "60")
	child.ExtraFiles = []*os.File{lock.File}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = child.Process.Kill() // it has ended only if the machine is very slow
		_ = child.Wait()
	}()
	if _, err := lockFile(path); err == nil {
		t.Error("the lock was taken twice")
	}
	if err := lock.Close(); err != nil {
		t.Fatal(err)
	}
	again, err := lockFile(path)
	if err != nil {
		t.Fatalf("after it was given back: %v", err)
	}
	again.Close()
}
