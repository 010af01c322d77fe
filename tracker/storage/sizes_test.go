package storage

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/tracker/storage/storagetest"
)

// manyFiles stores files of 0 to n-1 bytes, every tenth of which is missing, and
// returns their URLs.
func manyFiles(d *storagetest.Daemon, n int) (urls []string) {
	for i := range n {
		path := "/" + protocol.FID(i+1).Path(1)
		if i%10 != 9 {
			d.Put(path, pattern(i))
		}
		urls = append(urls, d.URL(path))
	}
	return urls
}

func checkSizes(t *testing.T, answers []SizeAnswer) {
	t.Helper()
	for i, a := range answers {
		switch {
		case i%10 == 9 && !errors.Is(a.Err, ErrMissing), i%10 != 9 && (a.Err != nil || a.Bytes != int64(i)):
			t.Errorf("file %d: %d, %v", i, a.Bytes, a.Err)
		}
	}
}

// TestSizesOfMakes: daemons of every make tell the sizes of many files, and
// those with a side channel in few requests.
func TestSizesOfMakes(t *testing.T) {
	t.Parallel()
	for _, m := range storagetest.Makes() {
		t.Run(m.Name, func(t *testing.T) {
			t.Parallel()
			d := storagetest.Start(t, m, storagetest.Options{Devices: []protocol.DevID{1}})
			urls := manyFiles(d, 200)
			c := client(t, Options{MgmtPort: sideOf(d)})
			for range 2 { // the second time over kept connections
				checkSizes(t, c.Sizes(t.Context(), urls))
			}
			requests := len(d.Requests())
			if m.Side && requests > 2*(20+1) { // the missing ones, and an empty one
				t.Errorf("%d HTTP requests", requests)
			}
			if d.Accepted() > 4 {
				t.Errorf("%d connections", d.Accepted())
			}
		})
	}
}

// TestSizesDespiteSideChannel: whatever a side channel says, the sizes are
// right.
func TestSizesDespiteSideChannel(t *testing.T) {
	t.Parallel()
	for name, trick := range map[string]func(n int64, answer, line string) string{
		"closes":             func(int64, string, string) string { return "" },
		"closes later":       func(n int64, answer, _ string) string { return strings.Repeat(answer, int(min(1, max(0, 100-n)))) },
		"refuses":            func(int64, string, string) string { return "ERROR: unknown command: size\r\n" },
		"cannot tell":        func(_ int64, _, line string) string { return "ERR " + line + " failed\r\n" },
		"another file":       func(int64, string, string) string { return "/dev9/0/000/000/0000000001.fid 5\r\n" },
		"a line too many":    func(_ int64, answer, _ string) string { return answer + strings.Fields(answer)[0] + " 7\r\n" },
		"each line twice":    func(_ int64, answer, _ string) string { return answer + answer },
		"every other line":   func(n int64, answer, _ string) string { return strings.Repeat(answer, int(n%2)) + "\r\n" },
		"no number":          func(_ int64, answer, _ string) string { return strings.Fields(answer)[0] + " \r\n" },
		"endless line":       func(int64, string, string) string { return strings.Repeat("x", 20<<10) },
		"half a line, first": func(n int64, answer, _ string) string { return answer[:len(answer)/int(min(2, 3-min(n, 2)))] },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := storagetest.Start(t, storagetest.Cmogstored(), storagetest.Options{Devices: []protocol.DevID{1}})
			urls := manyFiles(d, 150)
			var n atomic.Int64
			d.PlaySide(func(w io.Writer, line string) bool {
				text := trick(n.Add(1), d.SideReply(line)+"\r\n", line)
				_, _ = io.WriteString(w, text)
				return text != ""
			})
			c := client(t, Options{MgmtPort: d.SidePort, NodeTimeout: time.Second})
			for range 2 {
				checkSizes(t, c.Sizes(t.Context(), urls))
			}
		})
	}
}

// TestSizesOfHangingHost: it is waited for once, however many files are asked
// for.
func TestSizesOfHangingHost(t *testing.T) {
	t.Parallel()
	d := storagetest.Start(t, storagetest.Cmogstored(), storagetest.Options{Devices: []protocol.DevID{1}})
	urls := manyFiles(d, 100)
	d.Play(storagetest.Silence)
	d.PlaySide(func(io.Writer, string) bool { return true })
	const timeout = 400 * time.Millisecond
	c := client(t, Options{MgmtPort: d.SidePort, NodeTimeout: timeout})
	began := time.Now()
	for i, a := range c.Sizes(t.Context(), urls) {
		if !errors.Is(a.Err, ErrUnreachable) {
			t.Errorf("file %d: %d, %v", i, a.Bytes, a.Err)
		}
	}
	if took := time.Since(began); took > 2*timeout {
		t.Errorf("it took %v", took)
	}
}

// TestSizesAreOfEachFile: a daemon that fails for one file answers for others.
func TestSizesAreOfEachFile(t *testing.T) {
	t.Parallel()
	d := storagetest.Start(t, storagetest.Nginx(), storagetest.Options{Devices: []protocol.DevID{1}})
	urls := manyFiles(d, 5)
	d.Play(func(x *storagetest.Exchange) bool {
		return strings.Contains(x.URL.Path, fmt.Sprintf("%010d.fid", 3)) && storagetest.Status(500)(x)
	})
	c := client(t, Options{})
	for i, a := range c.Sizes(t.Context(), urls) {
		if i == 2 && !errors.Is(a.Err, ErrUnreachable) || i != 2 && (a.Err != nil || a.Bytes != int64(i)) {
			t.Errorf("file %d: %d, %v", i, a.Bytes, a.Err)
		}
	}
}

func BenchmarkSizes(b *testing.B) {
	d := storagetest.Start(b, storagetest.Cmogstored(), storagetest.Options{Devices: []protocol.DevID{1}})
	var urls []string
	for i := range 128 {
		path := "/" + protocol.FID(i+1).Path(1)
		d.Put(path, hello)
		urls = append(urls, d.URL(path))
	}
	c := client(b, Options{MgmtPort: d.SidePort})
	for b.Loop() {
		for _, a := range c.Sizes(b.Context(), urls) {
			if a.Err != nil {
				b.Fatal(a.Err)
			}
		}
	}
	b.ReportMetric(float64(len(urls)*b.N)/b.Elapsed().Seconds(), "sizes/s")
}
