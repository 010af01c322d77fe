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
	"sync"
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

func TestUpdate(t *testing.T) {
	t.Parallel()
	d := openDir(t, t.TempDir(), volume.Options{}, 1)
	v := get(t, d, 1)
	ctx := context.Background()
	write := func(name string, at int64, data []byte) {
		t.Helper()
		u, err := v.Update(ctx, name)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := u.WriteAt(data, at); err != nil {
			t.Fatal(err)
		}
		if err := u.Commit(ctx); err != nil {
			t.Fatal(err)
		}
		u.Abort()
		if _, err := u.WriteAt(data, at); !errors.Is(err, os.ErrClosed) {
			t.Errorf("WriteAt after Commit: %v", err)
		}
		if err := u.Commit(ctx); !errors.Is(err, os.ErrClosed) {
			t.Errorf("second Commit: %v", err)
		}
	}
	expect := func(name string, want []byte) {
		t.Helper()
		if got, err := read(v, name); err != nil || !bytes.Equal(got, want) {
			t.Errorf("read %.80q, %v, want %.80q", got, err, want)
		}
		f, err := v.Open(ctx, name)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if sum, ok := f.Sum(); ok {
			t.Errorf("sum %v after writing in place", sum)
		}
	}
	write(name42, 5, []byte("x")) // the specification's example
	expect(name42, []byte("\x00\x00\x00\x00\x00x"))
	write(name42, 1, []byte("ab"))
	expect(name42, []byte("\x00ab\x00\x00x"))
	mustPut(t, v, name42, []byte("whole content"))
	write(name42, 13, content(3, 200_000))
	expect(name42, append([]byte("whole content"), content(3, 200_000)...))

	u, err := v.Update(ctx, "never/written")
	if err != nil {
		t.Fatal(err)
	}
	u.Abort()
	if _, err := v.Stat(ctx, "never/written"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("an update that was given up: %v", err)
	}
	u, err = v.Update(ctx, "new")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := u.WriteAt([]byte("x"), -1); !errors.Is(err, fs.ErrInvalid) {
		t.Errorf("negative offset: %v", err)
	}
	u.Abort()
}

func TestAbort(t *testing.T) {
	t.Parallel()
	dir, ctx := t.TempDir(), context.Background()
	d := openDir(t, dir, volume.Options{}, 1)
	v := get(t, d, 1)
	mustPut(t, v, name42, []byte("old"))
	for _, size := range []int{0, 10, 300_000} {
		u, err := v.Create(ctx, name42)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := u.Write(make([]byte, size)); err != nil {
			t.Fatal(err)
		}
		if u.Size() != int64(size) {
			t.Errorf("Size = %d, want %d", u.Size(), size)
		}
		u.Abort()
		if _, err := u.Write([]byte("x")); !errors.Is(err, os.ErrClosed) {
			t.Errorf("Write after Abort: %v", err)
		}
		if err := u.Commit(ctx); !errors.Is(err, os.ErrClosed) {
			t.Errorf("Commit after Abort: %v", err)
		}
	}
	cancelled, cancel := context.WithCancel(ctx)
	u, err := v.Create(cancelled, name42)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := u.Write(make([]byte, 300_000)); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := u.Commit(cancelled); !errors.Is(err, context.Canceled) {
		t.Errorf("Commit with a context that has ended: %v", err)
	}
	if got, err := read(v, name42); string(got) != "old" || err != nil {
		t.Errorf("read %q, %v", got, err)
	}
	if diff := cmp.Diff([]string{name42}, files(t, filepath.Join(dir, "dev1"))); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
}

func TestWriteVolatile(t *testing.T) {
	t.Parallel()
	d := openDir(t, t.TempDir(), volume.Options{}, 1)
	v := get(t, d, 1)
	for _, text := range []string{"one", "two"} {
		if err := v.WriteVolatile(context.Background(), "usage", []byte(text)); err != nil {
			t.Fatal(err)
		}
		if got, err := read(v, "usage"); string(got) != text || err != nil {
			t.Errorf("read %q, %v", got, err)
		}
	}
}

// TestReaderOfReplaced keeps reading what it opened.
func TestReaderOfReplaced(t *testing.T) {
	t.Parallel()
	d := openDir(t, t.TempDir(), volume.Options{}, 1)
	v := get(t, d, 1)
	old := content(1, 300_000)
	mustPut(t, v, name42, old)
	f, err := v.Open(context.Background(), name42)
	if err != nil {
		t.Fatal(err)
	}
	mustPut(t, v, name42, []byte("new"))
	if err := v.Remove(context.Background(), name42); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(f)
	if err != nil || !bytes.Equal(got, old) {
		t.Errorf("read %d bytes, %v", len(got), err)
	}
	if f.OSFile() == nil {
		t.Error("no file for sendfile")
	}
	part := make([]byte, 100)
	if n, err := f.ReadAt(part, 299_950); n != 50 || err != io.EOF || !bytes.Equal(part[:50], old[299_950:]) {
		t.Errorf("ReadAt = %d, %v", n, err)
	}
	f.Close()
	f.Close()
	if _, err := f.Read(part); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("Read after Close: %v", err)
	}
}

// TestCorrupt finds a byte that changed behind our back.
func TestCorrupt(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	d := openDir(t, dir, volume.Options{}, 1)
	v := get(t, d, 1)
	mustPut(t, v, name42, content(1, 100_000))
	verify := func() error {
		t.Helper()
		f, err := v.Open(context.Background(), name42)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		_, err = f.Verify(context.Background())
		return err
	}
	if err := verify(); errors.Is(err, volume.ErrNoSum) {
		t.Skip("the filesystem keeps no extended attributes")
	} else if err != nil {
		t.Fatal(err)
	}
	h, err := os.OpenFile(filepath.Join(dir, "dev1", name42), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	if _, err := h.WriteAt([]byte("x"), 77_777); err != nil {
		t.Fatal(err)
	}
	if err := verify(); !errors.Is(err, volume.ErrCorrupt) {
		t.Errorf("a changed byte: %v", err)
	}
	if err := h.Truncate(50_000); err != nil {
		t.Fatal(err)
	}
	if err := verify(); !errors.Is(err, volume.ErrCorrupt) {
		t.Errorf("a shorter file: %v", err)
	}
}

// TestManyClients changes few names from many sides at once. Each file that is
// read is whole.
func TestManyClients(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	d := openDir(t, dir, volume.Options{Slots: 4}, 1)
	v := get(t, d, 1)
	var wg sync.WaitGroup
	for i := range 16 {
		rng := rand.New(rand.NewPCG(uint64(i), 0))
		wg.Go(func() {
			for range 40 {
				name := fmt.Sprintf("%d/file", rng.IntN(3))
				switch rng.IntN(4) {
				case 0:
					if err := v.Remove(context.Background(), name); err != nil && !errors.Is(err, fs.ErrNotExist) {
						t.Error(err)
					}
				case 1:
					got, err := read(v, name)
					if err != nil && !errors.Is(err, fs.ErrNotExist) {
						t.Error(err)
					}
					if err == nil && !bytes.Equal(got, bytes.Repeat(got[:1], 20_000+int(got[0]))) {
						t.Errorf("%d bytes of several files", len(got))
					}
				default:
					b := byte(rng.IntN(200))
					if err := put(v, name, bytes.Repeat([]byte{b}, 20_000+int(b))); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	wg.Wait()
	for _, name := range files(t, filepath.Join(dir, "dev1")) {
		if strings.HasPrefix(name, ".mogile/tmp/") {
			t.Errorf("left behind: %s", name)
		}
	}
	if n := v.Busy(); n != 0 {
		t.Errorf("%d slots are taken", n)
	}
}

func TestModes(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	d := openDir(t, dir, volume.Options{}, 1)
	v := get(t, d, 1)
	mustPut(t, v, "a/b", nil)
	probe := filepath.Join(dir, "probe")
	if err := errors.Join(os.Mkdir(probe, 0o777), os.WriteFile(probe+"/f", nil, 0o666)); err != nil {
		t.Fatal(err)
	}
	for got, want := range map[string]string{"dev1/a": "probe", "dev1/a/b": "probe/f"} {
		g, err1 := os.Stat(filepath.Join(dir, got))
		w, err2 := os.Stat(filepath.Join(dir, want))
		if err1 != nil || err2 != nil || g.Mode() != w.Mode() {
			t.Errorf("%s: %v, %v; want %v, %v", got, g.Mode(), err1, w.Mode(), err2)
		}
	}
}

// TestUploadPlaces bounds the uploads to a disk. Small ones need no place, and
// who waits gets the next, or is told.
func TestUploadPlaces(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	const large = 70_000
	d := openDir(t, t.TempDir(), volume.Options{Uploads: 2, StuckAfter: 200 * time.Millisecond}, 1)
	v := get(t, d, 1)
	begin := func(name string) (*volume.Upload, error) {
		u, err := v.Create(ctx, name)
		if err != nil {
			t.Fatal(err)
		}
		_, err = u.Write(content(1, large))
		return u, err
	}
	first, err1 := begin("first")
	second, err2 := begin("second")
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	if _, err := begin("third"); !errors.Is(err, volume.ErrBusy) {
		t.Errorf("a third upload: %v", err)
	}
	mustPut(t, v, "small", content(1, 100))
	in, err := v.Update(ctx, "place")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := in.WriteAt([]byte("x"), 0); !errors.Is(err, volume.ErrBusy) {
		t.Errorf("a write in place: %v", err)
	}
	for _, end := range []func(){
		func() {
			if err := first.Commit(ctx); err != nil {
				t.Error(err)
			}
		},
		second.Abort,
	} {
		waits := make(chan error, 1)
		go func() { waits <- put(v, "waits", content(1, large)) }()
		end()
		if err := <-waits; err != nil {
			t.Error(err)
		}
	}
	if err := errors.Join(put(v, "a", content(1, large)), put(v, "b", content(1, large)), put(v, "c", content(1, large))); err != nil {
		t.Errorf("places were not given back: %v", err)
	}
	// Those that fail give theirs back, too.
	for range 3 {
		u, err := v.Create(ctx, "a/below")
		if err == nil {
			_, err = u.Write(content(1, large))
		}
		if err == nil || errors.Is(err, volume.ErrBusy) {
			t.Errorf("below a file: %v", err)
		}
	}
}
