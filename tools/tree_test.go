package tools

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/protocol/protocoltest"
)

// writeTree makes files of the names and contents given, and returns their
// directory.
func writeTree(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		file := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o777); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(content), 0o666); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// mustRun runs mogtool in this process. Tests that do are not parallel: package cli
// has variables that all runs write to.
func mustRun(t *testing.T, c *protocoltest.Cluster, args ...string) string {
	t.Helper()
	code, stdout, stderr := run(t.Context(), c, args...)
	if code != 0 {
		t.Fatalf("%q: exit code %d: %s", args, code, stderr)
	}
	return stdout
}

func listDir(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// An interrupted get -r leaves no half file under its name, and goes on where it
// was; what is left of a file that is replaced goes.
func TestTreeResumes(t *testing.T) {
	cluster := protocoltest.NewCluster(t, 1, 1)
	content := strings.Repeat("0123456789", 10_000)
	mustRun(t, cluster, "put", "-r", writeTree(t, map[string]string{"big": content}), "t")
	before := goleak.IgnoreCurrent()
	dir := t.TempDir()
	const got = 30_000
	interrupt := func() {
		t.Helper()
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		cluster.Storage[0].Intercept(func(w http.ResponseWriter, r *http.Request) bool {
			w.Header().Set("Content-Length", fmt.Sprint(len(content)))
			_, _ = w.Write([]byte(content[:got]))
			w.(http.Flusher).Flush()
			go func() { // when it has arrived
				for ctx.Err() == nil {
					if names, err := filepath.Glob(filepath.Join(dir, ".mogtool-*.new")); err == nil && len(names) == 1 {
						if fi, err := os.Stat(names[0]); err == nil && fi.Size() == got {
							cancel()
						}
					}
				}
			}()
			<-r.Context().Done()
			return true
		})
		code, _, stderr := run(ctx, cluster, "get", "-r", "t", dir)
		if code != exitFailed || !strings.Contains(stderr, "mogtool: interrupted\nthe same command goes on") {
			t.Errorf("code %d, %s", code, stderr)
		}
		if names := listDir(t, dir); len(names) != 1 || !strings.HasSuffix(names[0], ".part") {
			t.Errorf("left: %q", names)
		}
		cluster.Storage[0].Intercept(nil)
	}
	interrupt()
	n := len(cluster.Storage[0].Requests())
	mustRun(t, cluster, "get", "-r", "t", dir)
	if b, err := os.ReadFile(filepath.Join(dir, "big")); err != nil || string(b) != content {
		t.Errorf("%d bytes, %v", len(b), err)
	}
	if got, want := cluster.Storage[0].Header(n).Get("Range"), fmt.Sprintf("bytes=%d-", got); got != want {
		t.Errorf("went on with Range %q, want %q", got, want)
	}
	if names := listDir(t, dir); len(names) != 1 {
		t.Errorf("left: %q", names)
	}

	// Replaced in between it begins anew.
	if err := os.Remove(filepath.Join(dir, "big")); err != nil {
		t.Fatal(err)
	}
	interrupt()
	other := strings.Repeat("x", len(content))
	mustRun(t, cluster, "put", "-r", "--checksum", writeTree(t, map[string]string{"big": other}), "t")
	mustRun(t, cluster, "get", "-r", "t", dir)
	if b, err := os.ReadFile(filepath.Join(dir, "big")); err != nil || string(b) != other {
		t.Errorf("%d bytes, %v", len(b), err)
	}
	if names := listDir(t, dir); len(names) != 1 {
		t.Errorf("left: %q", names)
	}
	cluster.Storage[0].Break()
	cluster.Trackers[0].Break()
	goleak.VerifyNone(t, before)
}

// What a crash may have left of a download is continued only where a checksum
// tells whether it is good.
func TestTreeAfterCrash(t *testing.T) {
	for class, ranged := range map[string]bool{"": false, "single": true} {
		cluster := protocoltest.NewCluster(t, 1, 1)
		mustRun(t, cluster, "put", "-r", "--class", class, writeTree(t, map[string]string{"f": "a good file"}), "t")
		client, err := protocol.NewClient(protocol.ClientOptions{Trackers: cluster.Addrs()})
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		info, err := client.FileInfo(t.Context(), "test", "t/f")
		if err != nil {
			t.Fatal(err)
		}
		for _, left := range []string{"a good", "\x00\x00\x00", "far longer than the file"} {
			dir := t.TempDir()
			if err := os.WriteFile(filepath.Join(dir, partialName("", info)+".new"), []byte(left), 0o666); err != nil {
				t.Fatal(err)
			}
			n := len(cluster.Storage[0].Requests())
			mustRun(t, cluster, "get", "-r", "t", dir)
			if b, err := os.ReadFile(filepath.Join(dir, "f")); err != nil || string(b) != "a good file" {
				t.Errorf("class %q, %q was left: %q, %v", class, left, b, err)
			}
			if got := cluster.Storage[0].Header(n).Get("Range") != ""; got != (ranged && len(left) < 11) {
				t.Errorf("class %q, %q was left: continued %v", class, left, got)
			}
		}
	}
}

// A file that comes up while another of its name is fetched stays: it is
// somebody else's, or that of a key which this file system takes for the same.
func TestTreeNameTaken(t *testing.T) {
	cluster := protocoltest.NewCluster(t, 1, 1)
	mustRun(t, cluster, "put", "-r", writeTree(t, map[string]string{"a": "stored", "b": "stored"}), "t")
	dir := t.TempDir()
	cluster.Storage[0].Intercept(func(http.ResponseWriter, *http.Request) bool {
		if err := os.WriteFile(filepath.Join(dir, "a"), []byte("mine"), 0o666); err != nil {
			t.Error(err)
		}
		return false
	})
	code, _, stderr := run(t.Context(), cluster, "get", "-r", "t", dir)
	if code != exitFailed || !strings.Contains(stderr, "do two keys differ in case alone?") || !strings.Contains(stderr, "1 of 2 files failed") {
		t.Errorf("code %d, %s", code, stderr)
	}
	if b, err := os.ReadFile(filepath.Join(dir, "a")); err != nil || string(b) != "mine" {
		t.Errorf("%q, %v", b, err)
	}
	if names := listDir(t, dir); len(names) != 2 {
		t.Errorf("left: %q", names)
	}
}

// Failures that pass are waited out; those that do not are told of once, and
// where all fail the run ends.
func TestTreeFailures(t *testing.T) {
	cluster := protocoltest.NewCluster(t, 1, 1)
	files := make(map[string]string)
	for i := range 40 {
		files[fmt.Sprint("f", i)] = "content"
	}
	src := writeTree(t, files)
	var refused atomic.Int64
	cluster.Storage[0].Intercept(func(w http.ResponseWriter, r *http.Request) bool {
		if refused.Add(1) > 30 {
			return false
		}
		w.WriteHeader(http.StatusServiceUnavailable)
		return true
	})
	mustRun(t, cluster, "put", "-r", src, "t")
	mustRun(t, cluster, "get", "-r", "t", t.TempDir())

	var asked atomic.Int64
	cluster.Before(func(req protocol.Request) *protocoltest.Reply {
		if req.Command != "create_open" {
			return nil
		}
		asked.Add(1)
		return &protocoltest.Reply{Err: protocol.Err("no_devices")}
	})
	code, _, stderr := run(t.Context(), cluster, "put", "-r", "--retries", "0", "--jobs", "2", src, "u")
	if code != exitFailed || !strings.Contains(stderr, "files all failed so: ") || asked.Load() > 12 {
		t.Errorf("code %d after %d requests: %s", code, asked.Load(), stderr)
	}
}

// Progress comes after a while, tells how much and how long, makes room for
// words, and goes.
func TestTallyShows(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var errw bytes.Buffer
		y := newTally(&output{w: &bytes.Buffer{}, errw: &errw, progress: true}, "put", false)
		ctx, cancel := context.WithCancel(t.Context())
		said := func() string {
			y.mu.Lock()
			defer y.mu.Unlock()
			return errw.String()
		}
		shown := make(chan struct{})
		go func() {
			y.show(ctx, func(context.Context) error {
				y.allFiles.Store(100)
				y.allBytes.Store(1000 << 10)
				return nil
			})
			close(shown)
		}()
		time.Sleep(quiet - time.Millisecond)
		synctest.Wait()
		if said() != "" {
			t.Errorf("too early: %q", said())
		}
		time.Sleep(8*time.Second + time.Millisecond)
		y.done.Add(20)
		y.bytes.Add(200 << 10)
		time.Sleep(time.Second)
		synctest.Wait()
		if s := said(); !strings.Contains(s, "put: 20 of 100 files, 200.0 KiB, 1") || !strings.Contains(s, "KiB/s, 4") || !strings.Contains(s, "s left") {
			t.Errorf("%q", s)
		}
		y.failure(fileJSON{File: "f"}, fmt.Errorf("bad"))
		cancel()
		<-shown
		if s := said(); !strings.HasSuffix(s, "\rmogtool: put \"f\": bad\n") {
			t.Errorf("%q", s)
		}
	})
}

// Two runs that fetch the same file into one directory do not write to the same
// bytes: one of them leaves it to the other.
func TestTreeTwice(t *testing.T) {
	cluster := protocoltest.NewCluster(t, 1, 1)
	content := strings.Repeat("0123456789", 10_000)
	mustRun(t, cluster, "put", "-r", writeTree(t, map[string]string{"f": content}), "t")
	mustRun(t, cluster, "put", "-r", writeTree(t, map[string]string{"g": "small"}), "u")
	dir := t.TempDir()
	half, rest := make(chan struct{}), make(chan struct{})
	var asked atomic.Int64
	cluster.Storage[0].Intercept(func(w http.ResponseWriter, r *http.Request) bool {
		if asked.Add(1) > 1 {
			return false
		}
		w.Header().Set("Content-Length", fmt.Sprint(len(content)))
		_, _ = w.Write([]byte(content[:30_000]))
		w.(http.Flusher).Flush()
		close(half)
		<-rest
		_, _ = w.Write([]byte(content[30_000:]))
		return true
	})
	first := exec.CommandContext(t.Context(), "mogtool", "--trackers", strings.Join(cluster.Addrs(), ","), "--domain", "test", "get", "-r", "t", dir)
	var said bytes.Buffer
	first.Stderr = &said
	if err := first.Start(); err != nil {
		t.Fatal(err)
	}
	<-half
	code, _, stderr := run(t.Context(), cluster, "get", "-r", "t", dir)
	if code != exitFailed || !strings.Contains(stderr, "another process fetches it") {
		t.Errorf("the second: code %d, %s", code, stderr)
	}
	mustRun(t, cluster, "sync", "--delete", "--force", "--yes", "mogile:u", dir) // which sweeps
	close(rest)
	if err := first.Wait(); err != nil {
		t.Errorf("the first: %v, %s", err, &said)
	}
	if b, err := os.ReadFile(filepath.Join(dir, "f")); err != nil || string(b) != content {
		t.Errorf("%d bytes, as stored: %v, %v", len(b), string(b) == content, err)
	}
	if names := listDir(t, dir); strings.Join(names, " ") != "f g" {
		t.Errorf("here is %q", names)
	}
}

// What is only at the destination is looked for once more before it goes: the
// listings may be older than what happened since, or wrong.
func TestSurplusThatIsNone(t *testing.T) {
	cluster := protocoltest.NewCluster(t, 1, 1)
	src := writeTree(t, map[string]string{"back": "a", "f": "b", "g": "c"})
	mustRun(t, cluster, "sync", src, "mogile:t")
	if err := errors.Join(os.Remove(filepath.Join(src, "back")), os.WriteFile(filepath.Join(src, "new"), nil, 0o666)); err != nil {
		t.Fatal(err)
	}
	cluster.Before(func(req protocol.Request) *protocoltest.Reply {
		if req.Command == "create_open" {
			if err := os.WriteFile(filepath.Join(src, "back"), []byte("a"), 0o666); err != nil {
				t.Error(err)
			}
		}
		return nil
	})
	mustRun(t, cluster, "sync", "--delete", "--yes", src, "mogile:t")
	if got := mustRun(t, cluster, "ls", "t/"); got != "t/back\nt/f\nt/g\nt/new\n" {
		t.Errorf("stored is %q", got)
	}

	dir := t.TempDir()
	mustRun(t, cluster, "sync", "mogile:t", dir)
	if err := os.WriteFile(filepath.Join(dir, "surplus"), nil, 0o666); err != nil {
		t.Fatal(err)
	}
	cluster.Before(func(req protocol.Request) *protocoltest.Reply {
		if req.Command != "list_keys" {
			return nil
		}
		return &protocoltest.Reply{Fields: protocol.Args{{Name: "key_count", Value: "2"}, {Name: "key_1", Value: "t/back"}, {Name: "key_2", Value: "t/new"}}}
	})
	mustRun(t, cluster, "sync", "--delete", "--yes", "--force", "mogile:t", dir)
	if names := listDir(t, dir); strings.Join(names, " ") != "back f g new" {
		t.Errorf("here is %q", names)
	}
}

// Trackers on a database that ignores case list keys that were not asked for:
// nothing is done to those.
func TestKeysOfOtherPrefixes(t *testing.T) {
	cluster := protocoltest.NewCluster(t, 1, 1)
	src := writeTree(t, map[string]string{"f": "content"})
	for _, prefix := range []string{"ſ", "s", "S"} { // of which the first has two bytes
		mustRun(t, cluster, "put", "-r", src, prefix)
	}
	cluster.Before(func(req protocol.Request) *protocoltest.Reply {
		if req.Command != "list_keys" {
			return nil
		}
		return &protocoltest.Reply{Fields: protocol.Args{
			{Name: "key_count", Value: "3"}, {Name: "key_1", Value: "S/f"}, {Name: "key_2", Value: "s/f"}, {Name: "key_3", Value: "ſ/f"},
		}}
	})
	mustRun(t, cluster, "touch-class", "single", "s/")
	for prefix, class := range map[string]string{"s": "single", "S": "default", "ſ": "default"} {
		if got := mustRun(t, cluster, "info", prefix+"/f"); !strings.Contains(got, class) {
			t.Errorf("%s/f: %s", prefix, got)
		}
	}
	dir := t.TempDir()
	mustRun(t, cluster, "get", "-r", "ſ", dir)
	if names := listDir(t, dir); len(names) != 1 {
		t.Errorf("here is %q", names)
	}
}

// Names that are there only by way of a link, or cannot be, are not there.
func TestIsHere(t *testing.T) {
	t.Parallel()
	dir := writeTree(t, map[string]string{"a/b": "", "c": ""})
	if err := errors.Join(os.Symlink("a", filepath.Join(dir, "link")), os.Symlink("/", filepath.Join(dir, "out"))); err != nil {
		t.Fatal(err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	tr := &tree{root: root}
	for name, want := range map[string]bool{
		"a/b": true, "c": true, "a": true, "link": true,
		"": false, "a/x": false, "x/b": false, "c/d": false, "link/b": false, "out/tmp": false, "../x": false, "a//b": false,
		strings.Repeat("n", 300): false, "a/" + strings.Repeat("n", 300): false,
	} {
		if got, err := tr.isHere(name); err != nil || got != want {
			t.Errorf("%.20q: %v, %v", name, got, err)
		}
	}
}
