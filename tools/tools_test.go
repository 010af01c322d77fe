package tools

import (
	"bytes"
	"context"
	"fmt"
	"math"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/urfave/cli/v2"
	"go.uber.org/goleak"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/protocol/protocoltest"
)

// run executes mogtool in this process.
func run(ctx context.Context, cluster *protocoltest.Cluster, args ...string) (code int, stdout, stderr string) {
	var out, errOut bytes.Buffer
	all := append([]string{"mogtool", "--trackers", strings.Join(cluster.Addrs(), ","), "--domain", "test"}, args...)
	code = Run(ctx, all, strings.NewReader("from standard input"), &out, &errOut)
	return code, out.String(), errOut.String()
}

// An interrupted get leaves the old file, and nothing of the new one; nothing
// goes on in the background.
func TestInterrupted(t *testing.T) {
	cluster := protocoltest.NewCluster(t, 1, 1)
	dir := t.TempDir()
	old := filepath.Join(dir, "file")
	if err := os.WriteFile(old, []byte("old"), 0o640); err != nil {
		t.Fatal(err)
	}
	before := goleak.IgnoreCurrent()
	if code, _, stderr := run(t.Context(), cluster, "put", "-", "k"); code != 0 {
		t.Fatal(stderr)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cluster.Storage[0].Intercept(func(w http.ResponseWriter, r *http.Request) bool {
		w.Header().Set("Content-Length", "19")
		_, _ = w.Write([]byte("from"))
		w.(http.Flusher).Flush()
		cancel()
		<-r.Context().Done()
		return true
	})
	code, stdout, stderr := run(ctx, cluster, "get", "k", old)
	if code != exitFailed || stdout != "" || stderr != "mogtool: interrupted\n" {
		t.Errorf("code %d, %q, %q", code, stdout, stderr)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
	if b, err := os.ReadFile(old); err != nil || string(b) != "old" {
		t.Errorf("the old file is %q, %v", b, err)
	}

	cluster.Storage[0].Intercept(nil)
	if code, _, stderr := run(t.Context(), cluster, "get", "k", old); code != 0 {
		t.Fatal(stderr)
	}
	if fi, err := os.Stat(old); err != nil || fi.Mode().Perm() != 0o640 || fi.Size() != 19 {
		t.Errorf("the new file: %v, %v", fi, err)
	}
	cluster.Storage[0].Break()
	cluster.Trackers[0].Break()
	goleak.VerifyNone(t, before)
}

// Command is the same below another program.
func TestCommandBelowAnother(t *testing.T) {
	cluster := protocoltest.NewCluster(t, 1, 1)
	var out, errOut bytes.Buffer
	var code int
	app := &cli.App{Name: "mogile", Commands: []*cli.Command{Command()}, Writer: &out, ErrWriter: &errOut,
		ExitErrHandler: func(_ *cli.Context, err error) {
			if e, ok := err.(cli.ExitCoder); ok {
				code = e.ExitCode()
			}
		}}
	if err := app.Run([]string{"mogile", "mogtool", "--trackers", cluster.Addrs()[0], "domain", "list"}); err != nil || !strings.Contains(out.String(), "test") {
		t.Errorf("%q, %v", out.String(), err)
	}
	if err := app.Run([]string{"mogile", "mogtool", "ls", "--trackers", cluster.Addrs()[0], "-d", "nope"}); err == nil || code != exitFailed {
		t.Errorf("code %d, %v", code, err)
	}
	if err := app.Run([]string{"mogile", "mogtool", "nosuch"}); err == nil || code != exitUsage {
		t.Errorf("code %d, %v", code, err)
	}
}

// On a terminal keys cannot play with it.
func TestShown(t *testing.T) {
	for in, want := range map[string]string{
		"plain é €":   "plain é €",
		"\x1b[31mred": `\x1b[31mred`,
		"a\nb\x7f":    `a\x0ab\x7f`,
		"\xffx":       `\xffx`,
		"\u0085":      `\xc285`,
	} {
		if got := (&output{terminal: true}).shown(in); got != want {
			t.Errorf("%q is shown as %q, want %q", in, got, want)
		}
		if got := (&output{}).shown(in); got != in {
			t.Errorf("%q is piped as %q", in, got)
		}
	}
}

func TestSize(t *testing.T) {
	for n, want := range map[int64]string{-1: "", 0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 1536: "1.5 KiB", 5 << 30: "5.0 GiB", math.MaxInt64: "8192.0 PiB"} {
		if got := size(n); got != want {
			t.Errorf("size(%d) = %q, want %q", n, got, want)
		}
	}
}

func TestParseSize(t *testing.T) {
	for s, want := range map[string]int64{"0": 0, "1000": 1000, "64K": 64 << 10, "64k": 64 << 10, "8M": 8 << 20, "1G": 1 << 30} {
		if got, err := parseSize(s); err != nil || got != want {
			t.Errorf("%q: %d, %v", s, got, err)
		}
	}
	for _, s := range []string{"", "K", "-1", "1.5M", "2G", "64KB", "9999999999999999999", "9223372036854775807K"} {
		if got, err := parseSize(s); err == nil {
			t.Errorf("%q: %d", s, got)
		}
	}
}

func TestParseUsage(t *testing.T) {
	u, err := parseUsage("available: 95286640\ndevice: /dev/sdb1\ndisk: /var/mogdata/dev1\ntime: 1700000000\ntotal: 96139000\nuse: 1%\nused: 852360\n")
	if err != nil || u.totalKB != 96139000 || u.usedKB != 852360 || u.asOf.Unix() != 1700000000 {
		t.Errorf("%+v, %v", u, err)
	}
	for _, s := range []string{"", "total: 5\n", "used: 5\n", "total: 0\nused: 0\n", "total 5\nused 5\n", "<html>"} {
		if u, err := parseUsage(s); err == nil {
			t.Errorf("%q: %+v", s, u)
		}
	}
}

func TestParsePids(t *testing.T) {
	for list, want := range map[string][]int{"": nil, "12": {12}, " 12, 34,": {12, 34}, "12,12": {12}} {
		if got, err := parsePids(list); err != nil || !slices.Equal(got, want) {
			t.Errorf("%q: %v, %v; want %v", list, got, err, want)
		}
	}
	for _, list := range []string{"x", "-1", "0", "1.5", "12 34"} {
		if got, err := parsePids(list); err == nil {
			t.Errorf("%q: %v", list, got)
		}
	}
}

// A refusal that MogileFS words for all its causes is told with what helps.
func TestHints(t *testing.T) {
	t.Parallel()
	for code, want := range map[string]string{
		"invalid_key":   "valid UTF-8",
		"unknown_state": "alive, readonly, down or dead",
		"bad_params":    "alive, readonly, drain, down or dead",
	} {
		if got := hint(fmt.Errorf("mark dev1: %w", protocol.Err(code))); !strings.Contains(got, want) {
			t.Errorf("%s: %q", code, got)
		}
	}
}
