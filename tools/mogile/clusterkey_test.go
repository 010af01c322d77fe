package mogile

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/mogile/mogile/protocol"
)

// mogileRun runs one command line, and returns its exit code and what it said.
// Tests that use it are not parallel: the library has variables of its own.
func mogileRun(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	code = Run(t.Context(), append([]string{"mogile"}, args...), strings.NewReader(""), &out, &errs)
	return code, out.String(), errs.String()
}

// A key's life: it is made, taken over from by another, which does not change
// what cluster it is of, and shown by nothing.
func TestKeyFiles(t *testing.T) {
	path := filepath.Join(t.TempDir(), "cluster.key")
	if code, _, errs := mogileRun(t, "key", "new", path); code != ExitDone {
		t.Fatalf("new: %d %s", code, errs)
	}
	if code, _, errs := mogileRun(t, "key", "new", path); code != ExitFailed || !strings.Contains(errs, "mogile key rotate") {
		t.Errorf("new, again: %d %s", code, errs)
	}
	first := readKeys(t, path)
	if code, out, _ := mogileRun(t, "key", "id", path); code != ExitDone || strings.TrimSpace(out) != first.ClusterID() {
		t.Errorf("id: %d %q", code, out)
	}
	if err := os.Chmod(path, 0o640); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		before := readKeys(t, path)
		code, out, errs := mogileRun(t, "key", "rotate", path)
		if code != ExitDone {
			t.Fatalf("rotate: %d %s", code, errs)
		}
		after := readKeys(t, path)
		if len(after.Keys) != 2 || !bytes.Equal(after.Keys[1], before.Keys[0]) || bytes.Equal(after.Keys[0], before.Keys[0]) || after.ClusterID() != first.ClusterID() {
			t.Error("rotate: not one new key before the last one, of the same cluster")
		}
		if strings.Contains(out+errs, string(after.Keys[0])) {
			t.Error("rotate shows the key")
		}
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o640 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	if entries, err := os.ReadDir(filepath.Dir(path)); err != nil || len(entries) != 1 {
		t.Errorf("%v is left, %v", entries, err)
	}
	for _, args := range [][]string{{"key", "new"}, {"key", "new", "a", "b"}, {"key", "rotate", ""}} {
		if code, _, _ := mogileRun(t, args...); code != ExitUsage {
			t.Errorf("%q: %d", args, code)
		}
	}
}

func readKeys(t *testing.T, path string) protocol.ClusterKeys {
	t.Helper()
	keys, err := readClusterKeys(path)
	if err != nil {
		t.Fatal(err)
	}
	return keys
}

func TestKeyFilesThatAreRefused(t *testing.T) {
	dir := t.TempDir()
	key := newClusterKey()
	for _, c := range []struct {
		name, text string
		mode       os.FileMode
		want       string // in the error; empty: none
	}{
		{"fine", key + "\n", 0o600, ""},
		{"group", key + "\n", 0o640, ""},
		{"world", key + "\n", 0o644, "chmod 600"},
		{"world-writable", key + "\n", 0o602, "chmod 600"},
		{"short", key[:20] + "\n", 0o600, "43 characters"},
		{"empty", "", 0o600, "mogile key"},
		{"huge", strings.Repeat(key+"\n", 1000), 0o600, "bytes"},
	} {
		path := filepath.Join(dir, c.name)
		if err := os.WriteFile(path, []byte(c.text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, c.mode); err != nil {
			t.Fatal(err)
		}
		_, err := readClusterKeys(path)
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
		if err != nil && strings.Contains(err.Error(), key[:20]) {
			t.Errorf("%s: the error shows the key: %v", c.name, err)
		}
		if c.want != "" {
			for _, args := range [][]string{{"tracker", "--dsn", "sqlite:" + filepath.Join(dir, "db")}, {"storaged", "--docroot", dir}} {
				if code, _, errs := mogileRun(t, append(args, "--cluster-key-file", path)...); code != ExitFailed || !strings.Contains(errs, c.want) {
					t.Errorf("%s: %s: %d %s", c.name, args[0], code, errs)
				}
			}
		}
	}
	if _, err := readClusterKeys(filepath.Join(dir, "none")); err == nil {
		t.Error("a file that is not there is read")
	}
	if code, _, errs := mogileRun(t, "storaged", "--docroot", dir, "--cluster-id", "a/b"); code != ExitUsage {
		t.Errorf("bad id: %d %s", code, errs)
	}
}
