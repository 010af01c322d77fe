package e2e

import (
	"bytes"
	"crypto/md5"
	"encoding/json"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// tool runs mogtool against a cluster, and returns its exit code and what it
// said.
func tool(c *Cluster, args ...string) (code int, stdout, stderr string, err error) {
	cmd := exec.Command(binary, append([]string{"mogtool", "--trackers", strings.Join(c.Addrs, ","), "--domain", domain}, args...)...)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	err = cmd.Run()
	if e, ok := err.(*exec.ExitError); ok {
		code, err = e.ExitCode(), nil
	}
	return code, out.String(), errOut.String(), err
}

// mogtool is tool that fails the test unless the command succeeds. It returns
// standard output.
func mogtool(t *testing.T, c *Cluster, args ...string) string {
	t.Helper()
	code, out, errOut, err := tool(c, args...)
	if err != nil || code != 0 {
		t.Errorf("mogtool %q: exit code %d, %v: %s", args, code, err, errOut)
	}
	return out
}

// totals is the last line of a command on many files.
type totals struct {
	Files, Bytes, Same, Deleted, Failed int64
	LeftOut                             int64 `json:"left_out"`
}

// tree runs a command on many files that is to end with an exit code, and
// returns its summary.
func (c *Cluster) tree(want int, args ...string) (sum totals, err error) {
	code, out, errOut, err := tool(c, append([]string{"--json"}, args...)...)
	if err != nil {
		return sum, err
	}
	lines := strings.Split(strings.TrimSpace(out), "\n")
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &sum); err != nil || code != want {
		return sum, fmt.Errorf("mogtool %q: exit code %d, want %d, %v:\n%.2000s", args, code, want, err, errOut)
	}
	return sum, nil
}

// mustTree is tree for commands that succeed.
func (c *Cluster) mustTree(t *testing.T, args ...string) totals {
	t.Helper()
	sum, err := c.tree(0, args...)
	if err != nil {
		t.Fatal(err)
	}
	return sum
}

// oddNames are names that somebody once gave a file.
var oddNames = []string{
	"with blank", " leading", "trailing ", "tab\there", "new\nline", "percent%41", "plus+plus", "amp&ersand", "equal=s", "semi;colon",
	"quote'", `double"quote`, `back\slash`, "star*", "question?", "hash#", "üml äut", "日本語", "emoji😀", "-dash", "--json", "~tilde", "$HOME",
	"a,1", "_big_N:odd", "...", "..a", ".hidden", "colon:colon", "pipe|pipe", "\x01control", "\x7f", strings.Repeat("long", 50), "é", "e\u0301",
}

// makeTree fills a directory with n files, of total bytes about, and returns the
// MD5 of each by its name.
func makeTree(t *testing.T, rng *rand.Rand, dir string, n int, total int64) map[string][md5.Size]byte {
	t.Helper()
	names := make(map[string]bool, n)
	for _, odd := range oddNames {
		names[odd] = true
		names["odd/"+odd+"/"+odd] = true
	}
	for i := 0; len(names) < n; i++ {
		// Neighbours of "/" in the order of bytes are among them.
		names[fmt.Sprintf("d%d%s/e%d/file-%06d", i%7, []string{"", ".x", "-x", "0"}[i%4], i%31, i)] = true
	}
	sums := make(map[string][md5.Size]byte, n)
	body := make([]byte, 8<<20)
	source := rand.NewChaCha8([32]byte{byte(rng.Uint32()), byte(rng.Uint32())})
	_, _ = source.Read(body) // never fails
	mean := float64(total) / float64(n)
	for name := range names {
		// Sizes are spread: most are small, a few large.
		size := min(int(rng.ExpFloat64()*rng.ExpFloat64()*mean), len(body))
		if rng.IntN(50) == 0 {
			size = 0
		}
		off := rng.IntN(len(body) - size + 1)
		file := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o777); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, body[off:off+size], 0o666); err != nil {
			t.Fatal(err)
		}
		sums[name] = md5.Sum(body[off : off+size])
	}
	return sums
}

// checkTree compares a directory with what it should hold, and nothing else.
func checkTree(t *testing.T, dir string, want map[string][md5.Size]byte) {
	t.Helper()
	found := 0
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		sum, ok := want[name]
		switch {
		case !ok:
			t.Errorf("%q should not be there", name)
		case md5.Sum(b) != sum:
			t.Errorf("%q has other content, of %d bytes", name, len(b))
		}
		found++
		return nil
	})
	if err != nil || found != len(want) {
		t.Errorf("%s has %d files, want %d: %v", dir, found, len(want), err)
	}
}

// meanwhile runs f, and has trackers and storage hosts killed and started again
// in turn until it is done: one at a time, with work done in between. It fails
// unless a tracker and a host were.
func meanwhile(t *testing.T, c *Cluster, f func() error) {
	t.Helper()
	done := make(chan struct{})
	var wg sync.WaitGroup
	turns := 0
	answers := func(addr string) bool {
		conn, err := net.DialTimeout("tcp", addr, time.Second)
		if err == nil {
			conn.Close()
		}
		return err == nil
	}
	wg.Go(func() {
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for i := 0; ; i++ {
			tracker, host := i%len(c.Trackers), i%len(c.Hosts)
			for _, d := range []struct {
				*Process
				addr string
			}{{c.Trackers[tracker], c.Addrs[tracker]}, {c.Hosts[host].Process, fmt.Sprintf("%s:%d", c.Hosts[host].IP, c.Port)}} {
				d.Kill()
				d.Start()
				turns++
				for beats := 0; beats < 3; {
					select {
					case <-done:
						return
					case <-tick.C:
						if answers(d.addr) {
							beats++
						}
					}
				}
			}
		}
	})
	err := f()
	close(done)
	wg.Wait()
	if err != nil {
		t.Fatal(err)
	}
	if turns < 2 {
		t.Errorf("only %d daemons were killed meanwhile", turns)
	}
	c.WaitWriteable()
}

// TestTree stores, lists, synchronises, fetches and compares a tree of files
// with all kinds of names, while daemons are killed.
func TestTree(t *testing.T) {
	t.Parallel()
	rng := newRand(t)
	c := StartCluster(t, Spec{Engine: "postgres", Trackers: 2})
	n := min(scale(2000), 20_000)
	if raceEnabled {
		n /= 5
	}
	src := filepath.Join(t.TempDir(), "tree")
	want := makeTree(t, rng, src, n, int64(n)*100<<10)
	n = len(want)

	// What cannot be stored is told of, and is all that is.
	bad := []string{"not-utf8-\xff", strings.Repeat(strings.Repeat("x", 250)+"/", 4) + strings.Repeat("y", 100)}
	for _, name := range bad {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(src, name)), 0o777); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(src, name), []byte("x"), 0o666); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("nowhere", filepath.Join(src, "zz-link")); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(src, "zz-empty"), 0o777); err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	var sum totals
	meanwhile(t, c, func() (err error) {
		sum, err = c.tree(1, "put", "-r", src, "tree")
		return err
	})
	if sum.Failed != int64(len(bad)) || sum.LeftOut != 2 || sum.Files != int64(n) {
		t.Errorf("put: %+v, want %d files, %d failed, 2 left out", sum, n, len(bad))
	}
	t.Logf("put %d files, %d MB in %v, daemons killed meanwhile", sum.Files, sum.Bytes>>20, time.Since(begun))
	for _, name := range bad {
		if err := os.Remove(filepath.Join(src, name)); err != nil {
			t.Fatal(err)
		}
	}
	if sum = c.mustTree(t, "put", "-r", src, "tree"); sum.Files != 0 || sum.Same != int64(n) {
		t.Errorf("put again: %+v", sum)
	}

	// The listing has every name.
	out := mogtool(t, c, "--json", "ls", "tree/")
	keys := make(map[string]bool, n)
	for line := range strings.Lines(out) {
		var k struct{ Key string }
		if err := json.Unmarshal([]byte(line), &k); err != nil {
			t.Fatal(err)
		}
		keys[strings.TrimPrefix(k.Key, "tree/")] = true
	}
	for name := range want {
		if !keys[name] {
			t.Errorf("ls does not have %q", name)
		}
	}
	if len(keys) != n {
		t.Errorf("ls has %d keys, want %d", len(keys), n)
	}

	// Back, while daemons are killed.
	dst := filepath.Join(t.TempDir(), "back")
	begun = time.Now()
	meanwhile(t, c, func() (err error) {
		sum, err = c.tree(0, "get", "-r", "tree", dst)
		return err
	})
	t.Logf("get %d files in %v, daemons killed meanwhile", sum.Files, time.Since(begun))
	if sum.Files != int64(n) {
		t.Errorf("get: %+v", sum)
	}
	checkTree(t, dst, want)

	// Some change, some go, some come; the other side follows, and no more.
	names := make([]string, 0, n)
	for name := range want {
		names = append(names, name)
	}
	slices.Sort(names)
	for i, name := range names {
		file := filepath.Join(src, name)
		switch i % 20 {
		case 0:
			body := fmt.Appendf(nil, "changed %d %s", i, strings.Repeat("!", i))
			if err := os.WriteFile(file, body, 0o666); err != nil {
				t.Fatal(err)
			}
			want[name] = md5.Sum(body)
		case 1:
			if err := os.Remove(file); err != nil {
				t.Fatal(err)
			}
			delete(want, name)
		case 2:
			body := fmt.Appendf(nil, "new %d", i)
			if err := os.WriteFile(file+"~new", body, 0o666); err == nil { // its name may be too long now
				want[name+"~new"] = md5.Sum(body)
			}
		}
	}
	sum = c.mustTree(t, "sync", "--delete", "--yes", src, "mogile:tree")
	if sum.Deleted == 0 || sum.Files == 0 || sum.Same+sum.Files != int64(len(want)) {
		t.Errorf("sync up: %+v", sum)
	}
	if sum = c.mustTree(t, "sync", "--delete", "--yes", "mogile:tree", dst); sum.Deleted == 0 || sum.Same+sum.Files != int64(len(want)) {
		t.Errorf("sync down: %+v", sum)
	}
	checkTree(t, dst, want)

	// Sums and classes.
	out = mogtool(t, c, "--json", "du", "--depth", "0")
	var bytes int64
	for name := range want {
		fi, err := os.Stat(filepath.Join(src, name))
		if err != nil {
			t.Fatal(err)
		}
		bytes += fi.Size()
	}
	if !strings.Contains(out, fmt.Sprintf(`"files":%d,"bytes":%d,`, len(want), bytes)) {
		t.Errorf("du: %s, want %d files of %d bytes", out, len(want), bytes)
	}
	if below := mogtool(t, c, "--json", "du", "--depth", "0", "tree/"); !strings.Contains(below, fmt.Sprintf(`"files":%d,"bytes":%d,`, len(want), bytes)) {
		t.Errorf("du of the prefix: %s", below)
	}
	if sum = c.mustTree(t, "touch-class", "single", "tree/odd/"); sum.Files == 0 || sum.Failed != 0 {
		t.Errorf("touch-class: %+v", sum)
	}
	if again := c.mustTree(t, "touch-class", "single", "tree/odd/"); again.Files != 0 || again.Same != sum.Files {
		t.Errorf("touch-class again: %+v", again)
	}
}

// TestTreeInterrupted ends mogtool in the middle, politely and not, and has the
// same command go on.
func TestTreeInterrupted(t *testing.T) {
	scenario(t)
	t.Parallel()
	rng := newRand(t)
	c := StartCluster(t, Spec{})
	src := filepath.Join(t.TempDir(), "tree")
	want := makeTree(t, rng, src, 300, 300*100<<10)
	dst := filepath.Join(t.TempDir(), "back")
	for _, args := range [][]string{{"put", "-r", src, "tree"}, {"get", "-r", "tree", dst}} {
		for _, signal := range []syscall.Signal{syscall.SIGINT, syscall.SIGKILL} {
			cmd := exec.Command(binary, append([]string{"mogtool", "--trackers", c.Addrs[0], "--domain", domain}, args...)...)
			cmd.Args = append(cmd.Args, "-v", "--jobs", "4")
			var errOut bytes.Buffer
			cmd.Stderr = &errOut
			cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			// When some are done, it is time.
			buf := make([]byte, 100)
			if _, err := out.Read(buf); err != nil {
				t.Fatalf("%v\n%s", err, errOut.String())
			}
			if err := cmd.Process.Signal(signal); err != nil {
				t.Fatal(err)
			}
			rest := new(bytes.Buffer)
			_, _ = rest.ReadFrom(out) // until it ends
			err = cmd.Wait()
			if signal == syscall.SIGINT && (cmd.ProcessState.ExitCode() != 1 || !strings.Contains(errOut.String(), "mogtool: interrupted\nthe same command goes on")) {
				t.Errorf("interrupted %s: %v\n%s", args[0], err, errOut.String())
			}
			if args[0] == "get" {
				// What has its name is whole.
				_ = filepath.WalkDir(dst, func(path string, d fs.DirEntry, err error) error {
					if err != nil || d.IsDir() || strings.HasPrefix(d.Name(), ".mogtool-") {
						return nil
					}
					name, _ := filepath.Rel(dst, path)
					if b, err := os.ReadFile(path); err != nil || md5.Sum(b) != want[name] {
						t.Errorf("%q is half there: %v", name, err)
					}
					return nil
				})
			}
		}
		sum := c.mustTree(t, args...)
		if sum.Files == 0 || sum.Same == 0 || sum.Files+sum.Same != int64(len(want)) {
			t.Errorf("%s went on: %+v", args[0], sum)
		}
	}
	checkTree(t, dst, want)
}

// TestBigFile stores and fetches a file in chunks while daemons are killed.
func TestBigFile(t *testing.T) {
	t.Parallel()
	rng := newRand(t)
	c := StartCluster(t, Spec{Engine: "postgres", Trackers: 2})
	dir := t.TempDir()
	file, back := filepath.Join(dir, "file"), filepath.Join(dir, "back")
	body := make([]byte, min(scale(40), 400)<<20)
	source := rand.NewChaCha8([32]byte{byte(rng.Uint32())})
	_, _ = source.Read(body) // never fails
	if err := os.WriteFile(file, body, 0o666); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"put", "--big", "--chunk-size", "256K", "--jobs", "2", file, "big"}, {"get", "--jobs", "1", "big", back}} {
		meanwhile(t, c, func() error {
			code, _, errOut, err := tool(c, args...)
			if err == nil && code != 0 {
				err = fmt.Errorf("%s: %s", args[0], errOut)
			}
			return err
		})
	}
	if got, err := os.ReadFile(back); err != nil || !bytes.Equal(got, body) {
		t.Errorf("%d bytes came back, want %d: %v", len(got), len(body), err)
	}
	if out := mogtool(t, c, "cat", "--range", "1048570-1048580", "big"); out != string(body[1048570:1048581]) {
		t.Errorf("cat: %q", out)
	}
	mogtool(t, c, "rm", "big")
	if out := mogtool(t, c, "ls"); out != "" {
		t.Errorf("left: %s", out)
	}
}
