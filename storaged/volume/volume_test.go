//go:build unix

package volume_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/storaged/volume"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// openDir opens a real docroot with the given devices.
func openDir(t testing.TB, dir string, o volume.Options, devs ...int) *volume.Docroot {
	t.Helper()
	for _, dev := range devs {
		if err := os.MkdirAll(filepath.Join(dir, fmt.Sprintf("dev%d", dev)), 0o777); err != nil {
			t.Fatal(err)
		}
	}
	d, err := volume.OpenDocroot(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return d
}

func get(t testing.TB, d *volume.Docroot, dev protocol.DevID) *volume.Volume {
	t.Helper()
	v, err := d.Volume(dev)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func put(v *volume.Volume, name string, data []byte) error {
	u, err := v.Create(context.Background(), name)
	if err != nil {
		return err
	}
	defer u.Abort()
	if _, err := u.Write(data); err != nil {
		return err
	}
	return u.Commit(context.Background())
}

func mustPut(t testing.TB, v *volume.Volume, name string, data []byte) {
	t.Helper()
	if err := put(v, name, data); err != nil {
		t.Fatal(err)
	}
}

func read(v *volume.Volume, name string) ([]byte, error) {
	f, err := v.Open(context.Background(), name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(f)
	if err == nil && int64(len(data)) != f.Size() {
		err = fmt.Errorf("size is %d, read %d", f.Size(), len(data))
	}
	return data, err
}

func content(seed uint64, n int) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)}).Read(b)
	return b
}

// files lists everything below dir but the device's own identity.
func files(t testing.TB, dir string) []string {
	t.Helper()
	var names []string
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err == nil && !e.IsDir() && !strings.HasSuffix(path, ".mogile/device") {
			rel, _ := filepath.Rel(dir, path)
			names = append(names, rel)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

const name42 = "0/000/000/0000000042.fid"

func TestStoreAndFetch(t *testing.T) {
	t.Parallel()
	for _, durability := range []volume.Durability{volume.DurabilityFsync, volume.DurabilityNone} {
		for _, size := range []int{0, 1, 5, 64<<10 - 1, 64 << 10, 64<<10 + 1, 1 << 20, 17<<20 + 3} {
			t.Run(fmt.Sprintf("%v/%d", durability, size), func(t *testing.T) {
				t.Parallel()
				dir := t.TempDir()
				d := openDir(t, dir, volume.Options{Durability: durability}, 7)
				v := get(t, d, 7)
				first, second := content(1, size), content(2, size+1)
				for _, data := range [][]byte{first, second} {
					mustPut(t, v, name42, data)
					got, err := read(v, name42)
					if err != nil || !bytes.Equal(got, data) {
						t.Fatalf("read %d bytes, %v; want %d", len(got), err, len(data))
					}
				}
				info, err := v.Stat(context.Background(), name42)
				if err != nil || info.Size != int64(size+1) || time.Since(info.ModTime) > time.Minute {
					t.Errorf("Stat = %+v, %v", info, err)
				}
				f, err := v.Open(context.Background(), name42)
				if err != nil {
					t.Fatal(err)
				}
				defer f.Close()
				want := volume.Sum{}.Add(second)
				if sum, ok := f.Sum(); ok && sum != want {
					t.Errorf("Sum = %v, want %v", sum, want)
				}
				if _, err := f.Verify(context.Background()); err != nil && !errors.Is(err, volume.ErrNoSum) {
					t.Error(err)
				}
				if err := f.Prefetch(context.Background(), 0, f.Size()); err != nil {
					t.Error(err)
				}
				if diff := cmp.Diff([]string{name42}, files(t, filepath.Join(dir, "dev7"))); diff != "" {
					t.Errorf("files (-want +got):\n%s", diff)
				}
				if err := v.Remove(context.Background(), name42); err != nil {
					t.Error(err)
				}
				if err := v.Remove(context.Background(), name42); !errors.Is(err, fs.ErrNotExist) {
					t.Errorf("second Remove: %v", err)
				}
				if _, err := read(v, name42); !errors.Is(err, fs.ErrNotExist) {
					t.Errorf("read after Remove: %v", err)
				}
			})
		}
	}
}

func TestErrors(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	d := openDir(t, dir, volume.Options{}, 1)
	v := get(t, d, 1)
	ctx := context.Background()
	dev := filepath.Join(dir, "dev1")
	secret := filepath.Join(dir, "secret")
	for _, err := range []error{
		os.WriteFile(secret, []byte("secret"), 0o666),
		os.Symlink(secret, filepath.Join(dev, "absolute")),
		os.Symlink("../secret", filepath.Join(dev, "relative")),
		os.Symlink("..", filepath.Join(dev, "up")),
		os.Symlink("loop", filepath.Join(dev, "loop")),
		syscall.Mkfifo(filepath.Join(dev, "fifo"), 0o666),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	mustPut(t, v, "file", []byte("x"))
	mustPut(t, v, "folder/file", []byte("x"))
	update := func(name string) error {
		u, err := v.Update(ctx, name)
		if err != nil {
			return err
		}
		defer u.Abort()
		if _, err := u.WriteAt([]byte("y"), 0); err != nil {
			return err
		}
		return u.Commit(ctx)
	}
	for _, c := range []struct {
		name                    string
		open, put, upd, removed error
	}{
		{"", volume.ErrIsDir, volume.ErrIsDir, volume.ErrIsDir, volume.ErrIsDir},
		{"folder", volume.ErrIsDir, volume.ErrIsDir, volume.ErrIsDir, volume.ErrIsDir},
		{"folder/", volume.ErrIsDir, volume.ErrIsDir, volume.ErrIsDir, volume.ErrIsDir},
		{"missing", fs.ErrNotExist, nil, nil, nil},
		{"missing/missing", fs.ErrNotExist, nil, nil, nil},
		{"file/below", fs.ErrNotExist, volume.ErrBadName, volume.ErrBadName, fs.ErrNotExist},
		{"absolute", fs.ErrPermission, fs.ErrPermission, fs.ErrPermission, nil},
		{"relative", fs.ErrPermission, fs.ErrPermission, fs.ErrPermission, nil},
		{"up/secret", fs.ErrPermission, fs.ErrPermission, fs.ErrPermission, fs.ErrPermission},
		{"loop", fs.ErrPermission, fs.ErrPermission, fs.ErrPermission, nil},
		{"fifo", fs.ErrPermission, nil, nil, nil},
		{"..", volume.ErrBadName, volume.ErrBadName, volume.ErrBadName, volume.ErrBadName},
		{"a/../b", volume.ErrBadName, volume.ErrBadName, volume.ErrBadName, volume.ErrBadName},
		{"/a", volume.ErrBadName, volume.ErrBadName, volume.ErrBadName, volume.ErrBadName},
		{"a//b", volume.ErrBadName, volume.ErrBadName, volume.ErrBadName, volume.ErrBadName},
		{"./a", volume.ErrBadName, volume.ErrBadName, volume.ErrBadName, volume.ErrBadName},
		{"a\x00b", volume.ErrBadName, volume.ErrBadName, volume.ErrBadName, volume.ErrBadName},
		{`a\b`, volume.ErrBadName, volume.ErrBadName, volume.ErrBadName, volume.ErrBadName},
		{".mogile/device", volume.ErrBadName, volume.ErrBadName, volume.ErrBadName, volume.ErrBadName},
		{strings.Repeat("a", 256), volume.ErrBadName, volume.ErrBadName, volume.ErrBadName, volume.ErrBadName},
		{strings.Repeat("a/", 600) + "a", volume.ErrBadName, volume.ErrBadName, volume.ErrBadName, volume.ErrBadName},
	} {
		check := func(what string, err, want error) {
			if !errors.Is(err, want) {
				t.Errorf("%s %.40q: %v, want %v", what, c.name, err, want)
			}
		}
		_, err := v.Open(ctx, c.name)
		check("open", err, c.open)
		_, err = v.Stat(ctx, c.name)
		check("stat", err, c.open)
		check("put", put(v, c.name, []byte("new")), c.put)
		check("update", update(c.name), c.upd)
		check("remove", v.Remove(ctx, c.name), c.removed)
	}
	if got, _ := os.ReadFile(secret); string(got) != "secret" {
		t.Errorf("the file outside is %q now", got)
	}
}
