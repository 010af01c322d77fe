package simdisk

import (
	"bytes"
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"slices"
	"syscall"
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"

	"github.com/mogile/mogile/storaged/volume"
)

func open(t *testing.T, d *Disk) volume.Root {
	t.Helper()
	if err := d.MkdirAll("/d"); err != nil {
		t.Fatal(err)
	}
	r, err := d.OpenRoot("/d")
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func create(t *testing.T, r volume.Root, name string, data []byte) volume.Handle {
	t.Helper()
	h, err := r.Open(name, os.O_RDWR|os.O_CREATE|os.O_EXCL)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := h.WriteAt(data, 0); err != nil {
		t.Fatal(err)
	}
	return h
}

func must(t *testing.T, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

// TestCrashStates has every outcome that a crash may have occur, and no other.
func TestCrashStates(t *testing.T) {
	t.Parallel()
	old, young := bytes.Repeat([]byte("a"), 3*pageSize), bytes.Repeat([]byte("b"), 3*pageSize)
	saw := make(map[string]bool)
	for seed := range uint64(300) {
		d := New(Options{})
		r := open(t, d)
		h := create(t, r, "flushed", old)
		must(t, h.Sync(), r.SyncDir("."))
		_, err := h.WriteAt(young, 0)
		must(t, err, h.SetAttr("user.a", []byte("1")))
		create(t, r, "nameless", old) // the name is not flushed
		must(t, r.Mkdir("folder"))
		h2 := create(t, r, "folder/lost", old)
		must(t, h2.Sync(), r.SyncDir("folder")) // but not the folder's own name

		d = d.Crash(rand.New(rand.NewPCG(seed, 0)))
		data, err := d.ReadFile("/d/flushed")
		must(t, err)
		if len(data) != len(old) {
			t.Fatalf("a flushed file has %d bytes", len(data))
		}
		switch {
		case bytes.Equal(data, old):
			saw["old"] = true
		case bytes.Equal(data, young):
			saw["new"] = true
		case bytes.Equal(data[:pageSize], young[:pageSize]) && bytes.Equal(data[2*pageSize:], old[2*pageSize:]):
			saw["mixed"] = true
		case bytes.Contains(data, []byte("ab")) || bytes.Contains(data, []byte("ba")):
			saw["torn"] = true
		}
		_, err = d.ReadFile("/d/folder/lost")
		saw["folder"] = saw["folder"] || err == nil
		saw["no folder"] = saw["no folder"] || errors.Is(err, fs.ErrNotExist)
		if data, err = d.ReadFile("/d/nameless"); err == nil {
			saw["short"] = saw["short"] || len(data) < len(old)
			saw["whole"] = saw["whole"] || bytes.Equal(data, old)
		} else {
			saw["no name"] = true
		}
		again := d.Crash(rand.New(rand.NewPCG(seed, 1)))
		if diff := cmp.Diff(d.Files("/"), again.Files("/")); diff != "" {
			t.Fatalf("a crash changed what a crash had left:\n%s", diff)
		}
	}
	for _, state := range []string{"old", "new", "mixed", "torn", "folder", "no folder", "short", "whole", "no name"} {
		if !saw[state] {
			t.Errorf("no crash gave %q", state)
		}
	}
}

// TestFlushed keeps all that was flushed.
func TestFlushed(t *testing.T) {
	t.Parallel()
	for seed := range uint64(50) {
		d := New(Options{})
		r := open(t, d)
		must(t, r.Mkdir("sub"))
		h := create(t, r, "sub/a", []byte("content"))
		must(t, h.Sync(), r.SyncDir("sub"), r.SyncDir("."))
		create(t, r, "b", []byte("more"))
		if seed%2 == 0 {
			_, err := r.SyncFS()
			must(t, err)
		}
		d = d.Crash(rand.New(rand.NewPCG(seed, 0)))
		if got, err := d.ReadFile("/d/sub/a"); err != nil || string(got) != "content" {
			t.Fatalf("a is %q, %v", got, err)
		}
		if got, err := d.ReadFile("/d/b"); seed%2 == 0 && (err != nil || string(got) != "more") {
			t.Fatalf("b is %q, %v", got, err)
		}
	}
}

// TestOrdered: a name has what was settled before it was given, also where
// neither was flushed, and nothing that came later for sure.
func TestOrdered(t *testing.T) {
	t.Parallel()
	saw := make(map[string]bool)
	for seed := range uint64(100) {
		d := New(Options{Ordered: true})
		r := open(t, d)
		h, err := r.OpenUnnamed(".")
		must(t, err)
		_, err = h.WriteAt([]byte("content"), 0)
		must(t, err, h.SetAttr("user.a", []byte("1")), h.Settle())
		_, err = h.WriteAt([]byte("later"), pageSize)
		must(t, err, r.Link(h, "a"))
		d = d.Crash(rand.New(rand.NewPCG(seed, 0)))
		switch got, err := d.ReadFile("/d/a"); {
		case errors.Is(err, fs.ErrNotExist):
			saw["no name"] = true
		case err != nil:
			t.Fatal(err)
		case !bytes.HasPrefix(got, []byte("content")):
			t.Fatalf("seed %d: a is %q", seed, got[:min(20, len(got))])
		case len(got) == len("content"):
			saw["settled"] = true
		case bytes.HasSuffix(got, []byte("later")):
			saw["later"] = true
		}
	}
	for _, state := range []string{"no name", "settled", "later"} {
		if !saw[state] {
			t.Errorf("no crash gave %q", state)
		}
	}
}

// TestFailedFlush loses what a flush could not write, though the next succeeds.
func TestFailedFlush(t *testing.T) {
	t.Parallel()
	lost := false
	for seed := range uint64(50) {
		d := New(Options{})
		r := open(t, d)
		h := create(t, r, "a", []byte("content"))
		must(t, r.SyncDir("."))
		clear := d.Inject(Fault{Ops: []Op{OpSync}, Times: 1})
		if err := h.Sync(); !errors.Is(err, syscall.EIO) {
			t.Fatalf("Sync: %v", err)
		}
		must(t, h.Sync())
		clear()
		if got, _ := d.ReadFile("/d/a"); string(got) != "content" {
			t.Fatalf("before the crash: %q", got)
		}
		d = d.Crash(rand.New(rand.NewPCG(seed, 0)))
		got, err := d.ReadFile("/d/a")
		must(t, err)
		lost = lost || string(got) == "\x00\x00\x00\x00\x00\x00\x00"
	}
	if !lost {
		t.Error("the content never got lost")
	}
}

func TestRestart(t *testing.T) {
	t.Parallel()
	d := New(Options{})
	r := open(t, d)
	h := create(t, r, "a", []byte("content"))
	nameless, err := r.OpenUnnamed(".")
	must(t, err)
	_, err = nameless.WriteAt(make([]byte, 100*pageSize), 0)
	must(t, err)
	must(t, r.Mkdir("token"))
	_, err = r.Lock("token")
	must(t, err)
	if _, err := r.Lock("token"); !errors.Is(err, volume.ErrLocked) {
		t.Errorf("second Lock: %v", err)
	}
	next := d.Restart()
	if _, err := h.WriteAt([]byte("x"), 0); !errors.Is(err, ErrGone) {
		t.Errorf("write of the dead process: %v", err)
	}
	if got, err := next.ReadFile("/d/a"); err != nil || string(got) != "content" {
		t.Errorf("a is %q, %v", got, err)
	}
	r, err = next.OpenRoot("/d")
	must(t, err)
	if _, err = r.Lock("token"); err != nil {
		t.Errorf("Lock after the restart: %v", err)
	}
	if s, _ := r.Space(); s.Used > 20*pageSize {
		t.Errorf("%d bytes used: the nameless file is still there", s.Used)
	}
}

func TestFull(t *testing.T) {
	t.Parallel()
	d := New(Options{Capacity: 10 * pageSize})
	r := open(t, d)
	before, _ := r.Space()
	h, err := r.OpenUnnamed(".")
	must(t, err)
	n, err := h.WriteAt(make([]byte, 20*pageSize), 0)
	if !errors.Is(err, syscall.ENOSPC) || n == 0 || n%pageSize != 0 {
		t.Errorf("WriteAt = %d, %v", n, err)
	}
	if err := r.Mkdir("x"); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("Mkdir: %v", err)
	}
	if s, _ := r.Space(); s.Available != 0 {
		t.Errorf("%d bytes are available", s.Available)
	}
	must(t, h.Close())
	if s, _ := r.Space(); s != before {
		t.Errorf("%+v after the file went, %+v before it came", s, before)
	}
}

func TestHang(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		d := New(Options{})
		r := open(t, d)
		clear := d.Inject(Fault{Ops: []Op{OpMkdir}, Path: "/d/x", Hang: true})
		done := make(chan error, 2)
		go func() { done <- r.Mkdir("x") }()
		synctest.Wait()
		must(t, r.Mkdir("y"))
		if d.Hanging() != 1 || len(done) != 0 {
			t.Fatalf("%d hang, %d returned", d.Hanging(), len(done))
		}
		clear()
		must(t, <-done)
		if _, err := r.Stat("x"); err != nil {
			t.Error(err)
		}
		d.Inject(Fault{Hang: true})
		go func() { done <- r.Mkdir("z") }()
		synctest.Wait()
		d.Crash(rand.New(rand.NewPCG(1, 1)))
		if err := <-done; !errors.Is(err, ErrGone) {
			t.Errorf("what hung in a crash: %v", err)
		}
	})
}

func TestRotAndLoss(t *testing.T) {
	d := New(Options{})
	if err := d.MkdirAll("/dev1"); err != nil {
		t.Fatal(err)
	}
	root, err := d.OpenRoot("/dev1")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"rotten", "lost"} {
		h, err := root.Open(name, os.O_CREATE|os.O_RDWR)
		if err != nil {
			t.Fatal(err)
		}
		_, werr := h.WriteAt([]byte("content"), 0)
		if err := errors.Join(werr, h.SetAttr("sum", []byte("7")), h.Sync(), h.Close()); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(root.SyncDir("."), d.Rot("/dev1/rotten", []byte("c0nt")), d.Lose("/dev1/lost")); err != nil {
		t.Fatal(err)
	}
	if d.Rot("/dev1/lost", nil) == nil || d.Lose("/dev1/lost") == nil || d.Lose("/dev1") == nil {
		t.Error("what is not there rots, or is lost")
	}
	after := d.Crash(rand.New(rand.NewPCG(1, 1)))
	for _, d := range []*Disk{d, after} {
		if got := d.Files("/dev1"); !slices.Equal(got, []string{"/dev1/rotten"}) {
			t.Errorf("files: %q", got)
		}
	}
	if got, err := after.ReadFile("/dev1/rotten"); err != nil || string(got) != "c0nt" {
		t.Errorf("rotten: %q, %v", got, err)
	}
	root, err = after.OpenRoot("/dev1")
	if err != nil {
		t.Fatal(err)
	}
	h, err := root.Open("rotten", os.O_RDONLY)
	if err != nil {
		t.Fatal(err)
	}
	if v, err := h.Attr("sum"); err != nil || string(v) != "7" {
		t.Errorf("attribute: %q, %v", v, err)
	}
}
