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

// BenchmarkOpen is what it costs that no name leads out of a device: openat2(2)
// beneath it, os.Root where that is missing, and a plain open for comparison.
func BenchmarkOpen(b *testing.B) {
	dir := b.TempDir()
	const name = "0/000/000/0000000042.fid"
	if err := errors.Join(os.MkdirAll(filepath.Join(dir, "0/000/000"), 0o777), os.WriteFile(filepath.Join(dir, name), nil, 0o666)); err != nil {
		b.Fatal(err)
	}
	beneath := func(fs FS) func() error {
		root, err := fs.OpenRoot(dir)
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { root.Close() })
		return func() error {
			h, err := root.Open(name, os.O_RDONLY)
			if err != nil {
				return err
			}
			return h.Close()
		}
	}
	for _, way := range []struct {
		name string
		open func() error
	}{
		{"openat2", beneath(OS{})},
		{"Root", beneath(oldKernel{})},
		{"plain", func() error {
			f, err := os.Open(filepath.Join(dir, name))
			if err != nil {
				return err
			}
			return f.Close()
		}},
	} {
		b.Run(way.name, func(b *testing.B) {
			for b.Loop() {
				if err := way.open(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
