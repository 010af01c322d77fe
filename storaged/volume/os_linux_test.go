package volume

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

// oldKernel is the operating system without openat2(2) and nameless files.
type oldKernel struct{ OS }

func (o oldKernel) OpenRoot(dir string) (Root, error) {
	r, err := o.OS.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	r.(*osRoot).old.Store(true)
	return oldRoot{r}, nil
}

type oldRoot struct{ Root }

func (oldRoot) OpenUnnamed(string) (Handle, error) { return nil, errors.ErrUnsupported }

func (r oldRoot) SyncFS() (bool, error) {
	_, err := r.Root.SyncFS()
	return false, err
}

// TestOldKernel stores, replaces and removes where the newer system calls are
// missing.
func TestOldKernel(t *testing.T) {
	t.Parallel()
	dir, ctx := t.TempDir(), context.Background()
	dev := filepath.Join(dir, "dev1")
	if err := errors.Join(os.Mkdir(dev, 0o777), os.Symlink("..", dev+"/up"), os.WriteFile(dir+"/secret", nil, 0o666)); err != nil {
		t.Fatal(err)
	}
	d, err := OpenDocroot(dir, Options{FS: oldKernel{}})
	if err != nil {
		t.Fatal(err)
	}
	v, err := d.Volume(1)
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"one", "two"} {
		u, err := v.Create(ctx, "0/000/a")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := u.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
		if err := u.Commit(ctx); err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(dev + "/0/000/a"); string(got) != text || err != nil {
			t.Errorf("read %q, %v", got, err)
		}
	}
	if _, err := v.Open(ctx, "up/secret"); err == nil {
		t.Error("a link leads out of the device")
	}
	if err := v.Remove(ctx, "0/000/a"); err != nil {
		t.Error(err)
	}
	if err := v.Remove(ctx, "0/000/a"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("second Remove: %v", err)
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
	if left, _ := os.ReadDir(dev + "/.mogile/tmp"); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}
