//go:build unix

package volume_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"math/rand/v2"
	"testing"
	"testing/synctest"

	"github.com/mogile/mogile/storaged/volume"
	"github.com/mogile/mogile/storaged/volume/simdisk"
)

func TestPatch(t *testing.T) {
	t.Parallel()
	v := get(t, openDir(t, t.TempDir(), volume.Options{}, 1), 1)
	data := content(1, 100_000)
	mustPut(t, v, name42, data)
	patch := func(p []byte, off int64, err error) error {
		return v.Patch(t.Context(), name42, func(file io.ReaderAt, size int64) ([]byte, int64, error) {
			got := make([]byte, size)
			if _, err := file.ReadAt(got, 0); err != nil || !bytes.Equal(got, data) {
				t.Errorf("the file is not what was written before: %v", err)
			}
			return p, off, err
		})
	}
	refused := errors.New("no")
	if err := patch([]byte("x"), 0, refused); !errors.Is(err, refused) {
		t.Errorf("edit's error: %v", err)
	}
	if err := patch(nil, 0, nil); err != nil {
		t.Error(err)
	}
	for _, off := range []int64{-1, int64(len(data)), int64(len(data)) - 3} {
		if err := patch([]byte("four"), off, nil); !errors.Is(err, fs.ErrInvalid) {
			t.Errorf("four bytes at %d: %v", off, err)
		}
	}
	if f, err := v.Open(t.Context(), name42); err != nil {
		t.Fatal(err)
	} else if _, ok := f.Sum(); !ok {
		t.Error("nothing was written, and the sum is gone")
	} else {
		f.Close()
	}
	if err := patch([]byte("four"), 4096, nil); err != nil {
		t.Fatal(err)
	}
	copy(data[4096:], "four")
	f, err := v.Open(t.Context(), name42)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, ok := f.Sum(); ok {
		t.Error("there is a sum of what the file was before")
	}
	if got, err := read(v, name42); err != nil || !bytes.Equal(got, data) {
		t.Errorf("read %d bytes, %v", len(got), err)
	}
	none := func(io.ReaderAt, int64) ([]byte, int64, error) {
		t.Error("there is nothing to edit")
		return nil, 0, nil
	}
	if err := v.Patch(t.Context(), "0/000/000/0000000043.fid", none); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a file that is not there: %v", err)
	}
	if err := v.Patch(t.Context(), "0/000", none); !errors.Is(err, volume.ErrIsDir) {
		t.Errorf("a folder: %v", err)
	}
}

// TestPatchCrashes: whenever the power goes, nothing but the patched bytes has
// changed, these have what they had or should have, and what was acknowledged
// lasts; and there is no sum that is wrong.
func TestPatchCrashes(t *testing.T) {
	t.Parallel()
	for _, kind := range kinds {
		t.Run(kind.name, func(t *testing.T) {
			t.Parallel()
			for seed := range uint64(40) {
				synctest.Test(t, func(t *testing.T) { patchCrashes(t, simulate(t, kind.disk, kind.own), seed) })
				if t.Failed() {
					t.Fatalf("seed %d", seed)
				}
			}
		})
	}
}

func patchCrashes(t *testing.T, disk *simdisk.Disk, seed uint64) {
	rng := rand.New(rand.NewPCG(seed, 11))
	d, v := openSim(t, disk, volume.Options{})
	before := content(seed, 9000)
	mustPut(t, v, name42, before)
	disk.Inject(simdisk.Fault{Hang: true, Skip: rng.IntN(8)})
	var err error
	done := make(chan struct{})
	go func() {
		defer close(done)
		err = v.Patch(context.Background(), name42, func(io.ReaderAt, int64) ([]byte, int64, error) {
			return bytes.Repeat([]byte{'!'}, 200), 4096, nil
		})
	}()
	synctest.Wait()
	next := disk.Crash(rng)
	<-done
	if err := d.Close(); err != nil && !errors.Is(err, simdisk.ErrGone) {
		t.Log(err) // its disk is gone
	}
	d, v = openSim(t, next, volume.Options{})
	defer d.Close()
	f, openErr := v.Open(context.Background(), name42)
	if openErr != nil {
		t.Fatal(openErr)
	}
	defer f.Close()
	if _, err := f.Verify(context.Background()); err != nil && !errors.Is(err, volume.ErrNoSum) {
		t.Errorf("its sum: %v", err)
	}
	got, readErr := read(v, name42)
	if readErr != nil || len(got) != len(before) {
		t.Fatalf("%d bytes, %v", len(got), readErr)
	}
	for i := range got {
		in := i >= 4096 && i < 4296
		switch {
		case in && err == nil && got[i] != '!':
			t.Fatalf("byte %d was acknowledged, and is lost", i)
		case got[i] != before[i] && !(in && got[i] == '!'):
			t.Fatalf("byte %d has changed", i)
		}
	}
}
