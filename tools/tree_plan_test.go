package tools

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mogile/mogile/protocol"
)

func TestTreePrefix(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{"": "", "a": "a/", "a/": "a/", "/": "/", "a/b": "a/b/"} {
		if got := treePrefix(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

func TestNameError(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"a", "a/b", "...", "..a", "a..", ".a/.b", "a b", "é", "\xff", "-", `a\b`, "a:b", ".mogtool"} {
		if err := nameError(name); err != nil {
			t.Errorf("%q: %v", name, err)
		}
	}
	for _, name := range []string{"", "/", "/a", "a/", "a//b", ".", "..", "a/..", "../a", "a/../b", "a/./b", "a\x00b", ".mogtool-5-00000000.part", "a/.mogtool-"} {
		if nameError(name) == nil {
			t.Errorf("%q passes", name)
		}
	}
}

// Whatever passes as a name stays below a directory, and is its own clean form.
func FuzzNameError(f *testing.F) {
	for _, name := range []string{"a/b", "../../etc/passwd", "a/../../b", "/etc/passwd", "a//b", "a\x00", "./a", "a/.", "\\..\\a"} {
		f.Add(name)
	}
	f.Fuzz(func(t *testing.T, name string) {
		if nameError(name) == nil && (!filepath.IsLocal(name) || filepath.Clean(name) != name || !fs.ValidPath(strings.ToValidUTF8(name, "x"))) {
			t.Errorf("%q passes", name)
		}
	})
}

func TestKeyError(t *testing.T) {
	t.Parallel()
	if err := keyError(strings.Repeat("é", 512)); err != nil {
		t.Error(err)
	}
	for _, key := range []string{strings.Repeat("x", 1025), "a\x00b"} {
		if keyError(key) == nil {
			t.Errorf("%.20q passes", key)
		}
	}
}

// Names that are below a file are found, with few names remembered.
func TestOverlaps(t *testing.T) {
	t.Parallel()
	names := []string{"a", "a-b", "a.b", "a/b", "a/b/c", "a0", "b/c", "b/c/d", "b/cc", "b/cc/d/e", "c", "cc", "cc/d", "d/e/f"}
	want := map[string]string{"a/b": "a", "a/b/c": "a", "b/c/d": "b/c", "b/cc/d/e": "b/cc", "cc/d": "cc"}
	var o overlaps
	for _, name := range slices.Sorted(slices.Values(names)) {
		if got := o.file(name); got != want[name] {
			t.Errorf("%q lies below %q, want %q", name, got, want[name])
		}
		if len(o.begun) > 3 {
			t.Errorf("%q are remembered", o.begun)
		}
	}
}

func TestCompare(t *testing.T) {
	t.Parallel()
	sum := protocol.Checksum{Type: protocol.HashMD5, Sum: make([]byte, 16)}
	for _, c := range []struct {
		how            thoroughness
		length, stored int64
		sum            protocol.Checksum
		want           verdict
	}{
		{byKnown, 5, 6, sum, different},
		{bySize, 5, 6, sum, different},
		{byContents, 5, 6, sum, different},
		{byKnown, 5, 5, protocol.Checksum{}, same},
		{byKnown, 5, 5, sum, needHash},
		{bySize, 5, 5, sum, same},
		{byContents, 5, 5, sum, needHash},
		{byContents, 5, 5, protocol.Checksum{}, needStored},
		{byContents, 0, 0, protocol.Checksum{}, same},
	} {
		if got := compare(c.how, c.length, protocol.FileInfo{Length: c.stored, Checksum: c.sum}); got != c.want {
			t.Errorf("%+v: %v", c, got)
		}
	}
}

// At three in the morning a wrong source does not empty a domain.
func TestDeletion(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		d   deletions
		ask bool
		err bool
	}{
		"few, to be asked":              {deletions{source: 100, both: 100, extra: 3, limit: -1}, true, false},
		"few":                           {deletions{source: 100, both: 100, extra: 3, limit: -1, confirmed: true}, false, false},
		"empty source":                  {deletions{extra: 1, limit: -1, confirmed: true}, false, true},
		"empty source, limit":           {deletions{extra: 1, limit: 100, confirmed: true}, false, true},
		"empty source, forced":          {deletions{extra: 1, limit: -1, confirmed: true, force: true}, false, false},
		"empty source, forced, limited": {deletions{extra: 2, limit: 1, confirmed: true, force: true}, false, true},
		"forced is not confirmed":       {deletions{extra: 1, limit: -1, force: true}, true, false},
		"nothing in common":             {deletions{source: 9, extra: 1, limit: -1, confirmed: true}, false, true},
		"more than half":                {deletions{source: 100, both: 100, extra: 101, limit: -1, confirmed: true}, false, true},
		"half":                          {deletions{source: 100, both: 100, extra: 100, limit: -1, confirmed: true}, false, false},
		"more than half, permitted":     {deletions{source: 100, both: 100, extra: 101, limit: 101, confirmed: true}, false, false},
		"more than half of few":         {deletions{source: 1, both: 1, extra: 10, limit: -1, confirmed: true}, false, false},
		"above the limit":               {deletions{source: 100, both: 100, extra: 3, limit: 2, confirmed: true}, false, true},
		"limit 0":                       {deletions{source: 100, both: 100, extra: 1, limit: 0, confirmed: true}, false, true},
	} {
		if ask, err := deletion(c.d); ask != c.ask || (err != nil) != c.err {
			t.Errorf("%s: ask %v, %v", name, ask, err)
		}
	}
}

func TestETA(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		files, bytes, allFiles, allBytes int64
		took, want                       time.Duration
	}{
		{0, 0, 10, 0, time.Second, -1},
		{5, 0, -1, 0, time.Second, -1},
		{5, 0, 10, 0, 10 * time.Second, 10 * time.Second},
		{9, 10, 10, 100, 10 * time.Second, 90 * time.Second},
		{1, 90, 10, 100, 10 * time.Second, 90 * time.Second},
		{1, 0, 10, 100, 10 * time.Second, -1},
		{10, 100, 10, 100, 10 * time.Second, 0},
	} {
		got := eta(c.files, c.bytes, c.allFiles, c.allBytes, c.took)
		if c.want < 0 && got >= 0 || c.want >= 0 && (got-c.want).Abs() > time.Millisecond {
			t.Errorf("%+v: %v", c, got)
		}
	}
}

func TestParseRange(t *testing.T) {
	t.Parallel()
	for s, want := range map[string]byteRange{
		"0-0": {0, 1}, "5-9": {5, 5}, "5-": {5, -1}, "-5": {-5, -1}, "0-9223372036854775807": {0, -1},
	} {
		if got, ok := parseRange(s); !ok || got != want {
			t.Errorf("%q: %v, %v", s, got, ok)
		}
	}
	for _, s := range []string{"", "-", "5", "9-5", "a-b", "-0", "--5", "-5-", "1-2-3", "+1-2", "1-+2", "-+2", " 1-2", "99999999999999999999-"} {
		if got, ok := parseRange(s); ok {
			t.Errorf("%q: %v", s, got)
		}
	}
	for _, c := range []struct {
		r      byteRange
		length int64
		want   byteRange
	}{{byteRange{-5, -1}, 9, byteRange{4, -1}}, {byteRange{-5, -1}, 3, byteRange{0, -1}}, {byteRange{2, 3}, 1, byteRange{2, 3}}} {
		if got := c.r.of(c.length); got != c.want {
			t.Errorf("%v of %d bytes: %v", c.r, c.length, got)
		}
	}
}

func TestDuGroup(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		key, prefix string
		depth       int
		want        string
	}{
		{"a", "", 1, ""},
		{"a/b", "", 1, "a/"},
		{"a/b/c", "", 2, "a/b/"},
		{"a/b", "", 2, "a/"},
		{"a/b/c", "", 0, ""},
		{"a/b/c", "a", 1, "a/"},
		{"a/b/c", "a/", 1, "a/b/"},
		{"a/b/c/d", "a/b", 1, "a/b/"},
		{"a/bc/d/e", "a/b", 2, "a/bc/d/"},
		{"//x", "", 1, "/"},
	} {
		if got := duGroup(c.key, c.prefix, c.depth); got != c.want {
			t.Errorf("%q below %q to depth %d: %q, want %q", c.key, c.prefix, c.depth, got, c.want)
		}
	}
}

func TestPassing(t *testing.T) {
	t.Parallel()
	for _, err := range []error{
		&protocol.TrackerError{Err: errors.New("connection refused")},
		fmt.Errorf("store: %w", protocol.ErrFailure),
		protocol.Err("no_devices"),
		protocol.ErrNoPath,
		protocol.ErrUnknownOutcome,
		&protocol.StatusError{Code: 503},
		errReplaced,
		damaged("bad"),
	} {
		if !passing(err) {
			t.Errorf("%v does not pass", err)
		}
	}
	for _, err := range []error{
		protocol.ErrInvalidKey, protocol.ErrKeyExists, protocol.ErrUnknownKey, protocol.Err("unreg_class"),
		fmt.Errorf("read: %w", &fs.PathError{Op: "read", Err: fs.ErrPermission}),
		&os.LinkError{Err: fs.ErrExist}, errDifferent, context.Canceled,
	} {
		if passing(err) {
			t.Errorf("%v passes", err)
		}
	}
}

// persist bridges a restart of some ten seconds, and no more than is asked.
func TestPersist(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		begun, calls := time.Now(), 0
		if err := persist(t.Context(), 7, func() error {
			calls++
			if time.Since(begun) < 15*time.Second {
				return protocol.ErrFailure
			}
			return nil
		}); err != nil || calls > 8 {
			t.Errorf("%v after %d calls", err, calls)
		}
		calls = 0
		if err := persist(t.Context(), 2, func() error { calls++; return protocol.ErrFailure }); !errors.Is(err, protocol.ErrFailure) || calls != 3 {
			t.Errorf("%v after %d calls", err, calls)
		}
		calls = 0
		if err := persist(t.Context(), 7, func() error { calls++; return protocol.ErrInvalidKey }); !errors.Is(err, protocol.ErrInvalidKey) || calls != 1 {
			t.Errorf("%v after %d calls", err, calls)
		}
		calls = 0
		if err := persist(t.Context(), 7, func() error { calls++; return damaged("bad") }); err == nil || calls != 1+damageRetries {
			t.Errorf("%v after %d calls", err, calls)
		}
		ctx, cancel := context.WithCancel(t.Context())
		calls = 0
		if err := persist(ctx, 7, func() error { calls++; cancel(); return protocol.ErrFailure }); err == nil || calls != 1 {
			t.Errorf("%v after %d calls", err, calls)
		}
	})
	for n := 1; n < 20; n++ {
		for _, chance := range []float64{0, 0.999} {
			if d := pause(n, chance); d < firstPause*3/4 || d > longPause {
				t.Errorf("pause %d is %v", n, d)
			}
		}
	}
}

// walk emits names in byte order, as trackers list keys, whatever they are.
func TestWalkOrder(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	rng := rand.New(rand.NewPCG(1, 2))
	parts := []string{"a", "a.b", "a-", "a0", "b", "B", "é", "\xff", " ", "~", "a b", "ab"}
	want := map[string]bool{}
	for range 300 {
		name := parts[rng.IntN(len(parts))]
		for range rng.IntN(3) {
			name += "/" + parts[rng.IntN(len(parts))]
		}
		if os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o777) == nil && os.WriteFile(filepath.Join(dir, name), nil, 0o666) == nil {
			want[name] = true
		}
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	var got []string
	if err := walk(root, "", func(e entry) error {
		if e.kind == isFile {
			got = append(got, e.name)
			delete(want, e.name)
		} else if e.kind == unreadable {
			t.Errorf("%+v", e)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if len(want) != 0 || len(got) < 50 || !slices.IsSorted(got) {
		t.Errorf("%d files, not sorted, or missing: %v", len(got), want)
	}
}

func TestMerge(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ local, remote, want string }{
		{"", "", ""},
		{"a b", "", "a< b<"},
		{"", "a b", "a> b>"},
		{"a c d", "b c e", "a< b> c= d< e>"},
		{"a b c", "a b c", "a= b= c="},
	} {
		local, remote := make(chan entry, 9), make(chan string, 9)
		for _, name := range strings.Fields(c.local) {
			local <- entry{name: name}
		}
		for _, name := range strings.Fields(c.remote) {
			remote <- name
		}
		close(local)
		close(remote)
		var got []string
		err := merge(t.Context(), local, remote, func(p pair) error {
			side := ">"
			switch {
			case p.local != nil && p.remote:
				side = "="
			case p.local != nil:
				side = "<"
			}
			got = append(got, p.name+side)
			return nil
		})
		if err != nil || strings.Join(got, " ") != c.want {
			t.Errorf("%q and %q: %q, %v, want %q", c.local, c.remote, got, err, c.want)
		}
	}
	// A side that failed has not ended.
	ctx, cancel := context.WithCancel(t.Context())
	local := make(chan entry)
	close(local)
	cancel()
	if err := merge(ctx, local, make(chan string), func(pair) error { return nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}
