package storaged

import (
	"crypto/md5"
	"crypto/sha1"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/storaged/volume"
	"github.com/mogile/mogile/storaged/volume/simdisk"
)

// side connects to the side channel.
func (d *daemon) side() *client { return dial(d.t, d.MgmtAddr()) }

// line reads one line, which must end with CRLF, and takes that away.
func (c *client) line() string {
	c.t.Helper()
	s, err := c.r.ReadString('\n')
	if err != nil {
		c.t.Fatalf("after %q: %v", s, err)
	}
	text, ok := strings.CutSuffix(s, "\r\n")
	if !ok {
		c.t.Errorf("%q does not end with CRLF", s)
	}
	return text
}

const fid42 = "/dev1/0/000/000/0000000042.fid"

func TestSideChannel(t *testing.T) {
	t.Parallel()
	d := start(t, Options{}, 1)
	d.put(fid42, "hello world")
	d.put("/dev1/0/000/000/0000000044.fid", "")
	large := pattern(3*bufferSize + 1)
	d.put("/dev1/large", string(large))
	if err := os.WriteFile(filepath.Join(d.docroot, "secret"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	usage := d.get("/dev1/usage").body
	for _, c := range []struct{ send, want string }{
		{"size " + fid42, fid42 + " 11"},
		{"size /" + fid42, "/" + fid42 + " 11"},
		{"size /dev1/0/000/000/0000000043.fid", "/dev1/0/000/000/0000000043.fid -1"},
		{"size /dev1/0/000/000/0000000044.fid", "/dev1/0/000/000/0000000044.fid 0"},
		{"size /dev1/large", fmt.Sprintf("/dev1/large %d", len(large))},
		{"size /dev1/usage", fmt.Sprintf("/dev1/usage %d", len(usage))},
		{"size /dev1/0", "/dev1/0 -1"},
		{"size /dev1", "/dev1 -1"},
		{"size /dev2/x", "/dev2/x -1"},
		{"size /secret", "/secret -1"},
		{"size /dev1/.mogile/device", "/dev1/.mogile/device -1"},
		{"size " + fid42 + "/x", fid42 + "/x -1"},
		{"BLAKE3 " + fid42, fid42 + " BLAKE3=d74981efa70a0c880b8d8c1985d075dbcbf679b99a5f9914e5aaf96b831a9e24"},
		{"MD5 " + fid42 + " fsck", fid42 + " MD5=5eb63bbbe01eeed093cb22bb8f5acdc3"},
		{"MD5 " + fid42, fid42 + " MD5=5eb63bbbe01eeed093cb22bb8f5acdc3"},
		{"MD5 " + fid42 + " create_close", fid42 + " MD5=5eb63bbbe01eeed093cb22bb8f5acdc3"},
		{"SHA-1 " + fid42, fid42 + " SHA-1=2aae6c35c94fcfb415dbe95f408b9ce91ee846ed"},
		{"MD5 /dev1/0/000/000/0000000044.fid", "/dev1/0/000/000/0000000044.fid MD5=d41d8cd98f00b204e9800998ecf8427e"},
		{"MD5 /dev1/large replicate", fmt.Sprintf("/dev1/large MD5=%x", md5.Sum(large))},
		{"SHA-1 /dev1/large fsck", fmt.Sprintf("/dev1/large SHA-1=%x", sha1.Sum(large))},
		{"MD5 /dev1/usage", fmt.Sprintf("/dev1/usage MD5=%x", md5.Sum([]byte(usage)))},
		{"MD5 /dev1/0/000/000/0000000043.fid", "/dev1/0/000/000/0000000043.fid MD5=-1"},
		{"SHA-1 /dev1/none fsck", "/dev1/none SHA-1=-1"},
		{"MD5 /dev2/x", "/dev2/x MD5=-1"},
		{"MD5 /secret", "/secret MD5=-1"},
		{"size /a/../b", "ERROR: uri invalid (contains ..)"},
		{"MD5 /dev1/../secret fsck", "ERROR: uri invalid (contains ..)"},
		{"hello world", "ERROR: unknown command: hello"},
		{"size bad", "ERROR: unknown command: size"},
		{"  size  " + fid42 + "  ", fid42 + " 11"},
		{"", ""},
		{" \t ", ""},
		{"server aio_threads = 5", ""},
		{"server aio_threads = x", "ERROR: unknown command: server"},
		{"server aio_threads = 101", "ERROR: unknown command: server"},
		{"server aio_threads = 0", "ERROR: unknown command: server"},
		{"server aio_threads=100", ""},
		{"server", "ERROR: unknown command: server"},
		{"SIZE " + fid42, "ERROR: unknown command: SIZE"},
		{"md5 " + fid42, "ERROR: unknown command: md5"},
		{"SHA1 " + fid42, "ERROR: unknown command: SHA1"},
		{"MD5 " + fid42 + " two words", "ERROR: unknown command: MD5"},
		{"MD5", "ERROR: unknown command: MD5"},
		{"MD5 dev1/x", "ERROR: unknown command: MD5"},
		{"size " + fid42 + " fsck", "ERROR: unknown command: size"},
		{"size /dev1/a..b", "ERROR: uri invalid (contains ..)"},
		{"watch it", "ERROR: unknown command: watch"},
		{"size /dev99999999999999999999/x", "/dev99999999999999999999/x -1"},
		{"size /dev1/" + strings.Repeat("a", 300), "/dev1/" + strings.Repeat("a", 300) + " -1"},
		{"MD5 /dev1/" + strings.Repeat("a/", 2000), "/dev1/" + strings.Repeat("a/", 2000) + " MD5=-1"},
		{"size /dev1/%2e%2e/x", "/dev1/%2e%2e/x -1"},
		{"\x00", "ERROR: unknown command: \x00"},
		{"shutdown now", "ERROR: unknown command: shutdown"},
	} {
		for _, end := range []string{"\r\n", "\n"} {
			conn := d.side()
			if _, err := io.WriteString(conn, c.send+end); err != nil {
				t.Fatal(err)
			}
			if got := conn.line(); got != c.want {
				t.Errorf("%q: %q, want %q", c.send, got, c.want)
			}
		}
	}
}

// Requests may come all at once or byte by byte; answers come in order.
func TestSideChannelPipelining(t *testing.T) {
	t.Parallel()
	d := start(t, Options{}, 1)
	d.put(fid42, "hello world")
	var all, want strings.Builder
	for i := range 100 {
		fmt.Fprintf(&all, "MD5 %s\r\n\nsize %s\nbogus%d\n", fid42, fid42, i)
		fmt.Fprintf(&want, "%s MD5=5eb63bbbe01eeed093cb22bb8f5acdc3\r\n\r\n%s 11\r\nERROR: unknown command: bogus%d\r\n", fid42, fid42, i)
	}
	c := d.side()
	go io.WriteString(c, all.String()) // seen by what is read
	got := make([]byte, want.Len())
	if _, err := io.ReadFull(c, got); err != nil || string(got) != want.String() {
		t.Errorf("%q, %v", got, err)
	}

	c = d.side()
	for _, b := range []byte("size " + fid42 + "\r\n") {
		if _, err := c.Write([]byte{b}); err != nil {
			t.Fatal(err)
		}
	}
	if got := c.line(); got != fid42+" 11" {
		t.Errorf("trickled: %q", got)
	}

	// Answers come also to who has said all that he has to say.
	c = d.side()
	c.send("size %s\n", fid42)
	c.CloseWrite()
	if got := c.line(); got != fid42+" 11" {
		t.Errorf("half closed: %q", got)
	}
	if !c.closed() {
		t.Error("half closed: stays open")
	}
}

// Lines are bounded.
func TestSideChannelLongLine(t *testing.T) {
	t.Parallel()
	d := start(t, Options{}, 1)
	c := d.side()
	c.send("size /%s\n", strings.Repeat("a", maxSideLine/2))
	if got := c.line(); !strings.HasSuffix(got, " -1") {
		t.Errorf("a long line: %.100q", got)
	}
	io.WriteString(c, strings.Repeat("a", maxSideLine+1)) // it may close before all is written
	if !c.closed() {
		t.Error("an endless line: stays open")
	}
}

// A disk that cannot be read is not a file that is missing.
func TestSideChannelReadError(t *testing.T) {
	t.Parallel()
	d, disk := startSim(t, Options{}, 1)
	d.put("/dev1/f", string(pattern(2*bufferSize)))
	c := d.side()
	for _, step := range []struct {
		fault simdisk.Fault
		send  string
		want  string
	}{
		{simdisk.Fault{Ops: []simdisk.Op{simdisk.OpRead}, Skip: 1}, "MD5 /dev1/f", fmt.Sprintf("ERR read /dev1/f at %d failed", bufferSize)},
		{simdisk.Fault{Ops: []simdisk.Op{simdisk.OpOpen}}, "MD5 /dev1/f", "ERR read /dev1/f at 0 failed"},
		{simdisk.Fault{Ops: []simdisk.Op{simdisk.OpOpen}, Err: fs.ErrPermission}, "MD5 /dev1/f", "/dev1/f MD5=-1"},
		{simdisk.Fault{Ops: []simdisk.Op{simdisk.OpRead}, Skip: 1}, "verify /dev1/f - scrub",
			"/dev1/f unreadable=" + protocol.ContentSum(volume.Sum{}.Add(pattern(bufferSize))).String()},
		{simdisk.Fault{Ops: []simdisk.Op{simdisk.OpRead}, Err: syscall.EMFILE}, "verify /dev1/f -", "ERR verify /dev1/f failed"},
		{simdisk.Fault{Ops: []simdisk.Op{simdisk.OpOpen}}, "verify /dev1/f -", "/dev1/f unreadable=0:00000000"},
		{simdisk.Fault{Ops: []simdisk.Op{simdisk.OpOpen}, Err: fs.ErrPermission}, "verify /dev1/f -", "ERR verify /dev1/f failed"},
		{simdisk.Fault{Ops: []simdisk.Op{simdisk.OpAttr}}, "verify /dev1/f -",
			"/dev1/f found=" + protocol.ContentSum(volume.Sum{}.Add(pattern(2*bufferSize))).String() + " stored=-"},
		{simdisk.Fault{Ops: []simdisk.Op{simdisk.OpStat}}, "size /dev1/f", "ERR size /dev1/f failed"},
		{simdisk.Fault{Ops: []simdisk.Op{simdisk.OpRead}}, "size /dev1/f", fmt.Sprintf("/dev1/f %d", 2*bufferSize)},
	} {
		step.fault.Path = docrootSim + "/dev1/f"
		clear := disk.Inject(step.fault)
		c.send("%s\n", step.send)
		if got := c.line(); got != step.want {
			t.Errorf("%v: %q, want %q", step.fault.Ops, got, step.want)
		}
		clear()
	}
}

// What is read is compared with what was once stored, in one reading.
func TestVerify(t *testing.T) {
	t.Parallel()
	d, disk := startSim(t, Options{}, 1)
	const rotten, written = "/dev1/0/000/000/0000000045.fid", "/dev1/0/000/000/0000000046.fid"
	d.put(fid42, "hello world")
	d.put("/dev1/0/000/000/0000000044.fid", "")
	d.put(rotten, "hello world")
	if err := disk.Rot(docrootSim+rotten, []byte("jello world")); err != nil {
		t.Fatal(err)
	}
	large := pattern(3<<20 + 1)
	d.put("/dev1/large", string(large))
	d.put(written, "hello world")
	if r := d.do("PUT %s HTTP/1.1\nHost: x\nContent-Range: bytes 0-0/*\nContent-Length: 1\n\nJ", written); r.StatusCode != 201 {
		t.Fatal(r.Status)
	}
	c := d.side()
	for _, tt := range []struct{ send, want string }{
		{"verify " + fid42 + " -", fid42 + " found=11:c99465aa stored=11:c99465aa"},
		{"verify " + fid42 + " MD5 fsck", fid42 + " found=11:c99465aa stored=11:c99465aa MD5=5eb63bbbe01eeed093cb22bb8f5acdc3"},
		{"verify " + fid42 + " BLAKE3 scrub", fid42 + " found=11:c99465aa stored=11:c99465aa BLAKE3=d74981efa70a0c880b8d8c1985d075dbcbf679b99a5f9914e5aaf96b831a9e24"},
		{"verify /dev1/0/000/000/0000000044.fid - scrub", "/dev1/0/000/000/0000000044.fid found=0:00000000 stored=0:00000000"},
		{"verify /dev1/0/000/000/0000000043.fid -", "/dev1/0/000/000/0000000043.fid missing"},
		{"verify /dev1/0/000/000 -", "/dev1/0/000/000 missing"},
		{"verify /dev2/0/000/000/0000000043.fid -", "ERR verify /dev2/0/000/000/0000000043.fid failed"},
		{"verify /dev1/.mogile/device -", "ERR verify /dev1/.mogile/device failed"},
		{"verify /dev1/../x -", "ERROR: uri invalid (contains ..)"},
		{"verify " + fid42, "ERROR: unknown command: verify"},
		{"verify " + fid42 + " fsck", "ERROR: unknown command: verify"},
		{"verify " + fid42 + " md5", "ERROR: unknown command: verify"},
		{"verify " + fid42 + " - two words", "ERROR: unknown command: verify"},
		{"verify " + rotten + " MD5", rotten + " found=11:" + fmt.Sprintf("%08x", volume.Sum{}.Add([]byte("jello world")).CRC32C) + " stored=11:c99465aa MD5=" + fmt.Sprintf("%x", md5.Sum([]byte("jello world")))},
		{"verify " + written + " -", written + " found=11:" + fmt.Sprintf("%08x", volume.Sum{}.Add([]byte("Jello world")).CRC32C) + " stored=-"},
		{"verify /dev1/large - scrub", fmt.Sprintf("/dev1/large found=%[1]s stored=%[1]s", protocol.ContentSum(volume.Sum{}.Add(large)))},
	} {
		c.send("%s\n", tt.send)
		if got := c.line(); got != tt.want {
			t.Errorf("%q: %q, want %q", tt.send, got, tt.want)
		}
	}
}

// Digests for fsck run one at a time on a file system; others do not wait for
// them, and on a connection those behind a digest do.
func TestFsckDigestsQueue(t *testing.T) {
	t.Parallel()
	d, disk := startSim(t, Options{}, 1, 2)
	d.put("/dev1/fsck1", "1")
	d.put("/dev1/fsck2", "2")
	d.put("/dev1/other", "3")
	d.put("/dev2/fsck", "4")
	var clear []func()
	for _, name := range []string{"/dev1/fsck1", "/dev1/fsck2", "/dev2/fsck"} {
		clear = append(clear, disk.Inject(simdisk.Fault{Ops: []simdisk.Op{simdisk.OpRead}, Path: docrootSim + name, Hang: true}))
	}
	first, second, third, fourth := d.side(), d.side(), d.side(), d.side()
	first.send("MD5 /dev1/fsck1 fsck\nsize /dev1/other\n")
	eventually(t, "the first digest runs", func() bool { return disk.Hanging() == 1 })
	second.send("verify /dev1/fsck2 - scrub\n")
	third.send("MD5 /dev1/other replicate\nMD5 /dev1/fsck2 replicate\n")
	if got := third.line(); got != fmt.Sprintf("/dev1/other MD5=%x", md5.Sum([]byte("3"))) {
		t.Errorf("a digest of normal priority: %q", got)
	}
	eventually(t, "a digest of normal priority runs beside", func() bool { return disk.Hanging() == 2 })
	fourth.send("MD5 /dev2/fsck fsck\n")
	eventually(t, "a digest on another file system runs", func() bool { return disk.Hanging() == 3 })
	if n := metric(t, d, "mogile_storaged_digests_in_progress"); n != 3 {
		t.Errorf("%v digests in progress, want 3", n)
	}
	for _, f := range clear {
		f()
	}
	for _, c := range []struct {
		conn       *client
		path, body string
	}{{first, "/dev1/fsck1", "1"}, {third, "/dev1/fsck2", "2"}, {fourth, "/dev2/fsck", "4"}} {
		if got, want := c.conn.line(), fmt.Sprintf("%s MD5=%x", c.path, md5.Sum([]byte(c.body))); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
	if got, sum := second.line(), protocol.ContentSum(volume.Sum{}.Add([]byte("2"))); got != fmt.Sprintf("/dev1/fsck2 found=%[1]s stored=%[1]s", sum) {
		t.Errorf("a verification behind: %q", got)
	}
	if got := first.line(); got != "/dev1/other 1" {
		t.Errorf("behind the digest: %q", got)
	}
}

// Digests of other reasons are bounded, too, and go ahead of those for fsck
// which wait; connections that ask for sizes do not notice.
func TestDigestsAreBounded(t *testing.T) {
	t.Parallel()
	d, disk := startSim(t, Options{}, 1)
	d.put("/dev1/f", "x")
	clear := disk.Inject(simdisk.Fault{Ops: []simdisk.Op{simdisk.OpRead}, Path: docrootSim + "/dev1/f", Hang: true})
	var all []*client
	for range maxDigests + 5 {
		for _, reason := range []string{"", " fsck"} {
			c := d.side()
			c.send("MD5 /dev1/f%s\n", reason)
			all = append(all, c)
		}
	}
	eventually(t, "all were asked for", func() bool { return metric(t, d, "mogile_storaged_commands_total", "MD5") == float64(len(all)) })
	eventually(t, "as many run as may", func() bool { return disk.Hanging() == maxDigests })
	c := d.side()
	c.send("size /dev1/f\n")
	if got := c.line(); got != "/dev1/f 1" {
		t.Errorf("size: %q", got)
	}
	if n := disk.Hanging(); n != maxDigests {
		t.Errorf("%d digests run, want %d", n, maxDigests)
	}
	clear()
	want := fmt.Sprintf("/dev1/f MD5=%x", md5.Sum([]byte("x")))
	for _, c := range all {
		if got := c.line(); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

// A digest of a file that is being replaced is that of one of its contents, not
// of a mixture.
func TestDigestOfReplacedFile(t *testing.T) {
	t.Parallel()
	d := start(t, Options{}, 1)
	contents := []string{strings.Repeat("a", 5*bufferSize), strings.Repeat("b", 5*bufferSize)}
	var sums []string
	for _, content := range contents {
		sums = append(sums, fmt.Sprintf("/dev1/f MD5=%x", md5.Sum([]byte(content))))
	}
	d.put("/dev1/f", contents[0])
	c := d.side()
	for i := range 20 {
		put := dial(t, d.HTTPAddr())
		put.send("PUT /dev1/f HTTP/1.1\nContent-Length: %d\n\n", len(contents[0]))
		c.send("MD5 /dev1/f\n")
		put.raw(contents[i%2])
		c.send("MD5 /dev1/f\n")
		for range 2 {
			if got := c.line(); !slices.Contains(sums, got) {
				t.Errorf("a mixture: %q", got)
			}
		}
		if r := put.receive("PUT"); r.StatusCode != 201 {
			t.Error(r.Status)
		}
	}
}

// A watcher that does not read is let go, and holds up nobody; one that has gone
// leaves nothing behind.
func TestSlowWatcher(t *testing.T) {
	t.Parallel()
	d := start(t, Options{ClientTimeout: 200 * time.Millisecond}, 1)
	c := d.side()
	if err := c.SetReadBuffer(1); err != nil {
		t.Fatal(err)
	}
	c.send("watch\n")
	eventually(t, "somebody watches", func() bool { return d.disks.watching() == 1 })
	group := []byte(strings.Repeat("1\t0.00\n", 100_000))
	eventually(t, "the slow one is let go", func() bool {
		d.disks.publish(group)
		return d.disks.watching() == 0
	})
	gone := d.side()
	gone.send("watch\n")
	eventually(t, "somebody watches", func() bool { return d.disks.watching() == 1 })
	gone.Close()
	eventually(t, "nobody watches", func() bool {
		d.disks.publish(group)
		return d.disks.watching() == 0
	})
}

func TestShutdown(t *testing.T) {
	t.Parallel()
	for _, command := range []string{"shutdown", "shutdown graceful"} {
		d := start(t, Options{}, 1)
		idle, watcher := d.side(), d.side()
		watcher.send("watch\n")
		busy := dial(t, d.HTTPAddr())
		busy.send("PUT /dev1/f HTTP/1.1\nHost: x\nContent-Length: 2\n\n1")
		eventually(t, "the upload is in progress", func() bool { return metric(t, d, "mogile_storaged_requests_in_flight") == 1 })
		c := d.side()
		c.send("%s\n", command)
		if !idle.closed() {
			t.Error("an idle connection stays open")
		}
		if isDone(d.done) {
			t.Error("stopped in the middle of an upload")
		}
		busy.send("2")
		if r := busy.receive("PUT"); r.StatusCode != 201 {
			t.Errorf("upload: %s", r.Status)
		}
		if rest, err := io.ReadAll(c.r); err != nil || len(rest) > 0 {
			t.Errorf("%s was answered with %q, %v", command, rest, err)
		}
		eventually(t, "the daemon has stopped", func() bool { return isDone(d.done) })
		d.stop()
	}
}

// A digest that was asked for before the end is answered before the end.
func TestShutdownFinishesDigests(t *testing.T) {
	t.Parallel()
	d, disk := startSim(t, Options{}, 1)
	d.put("/dev1/f", "x")
	clear := disk.Inject(simdisk.Fault{Ops: []simdisk.Op{simdisk.OpRead}, Path: docrootSim + "/dev1/f", Hang: true})
	c := d.side()
	c.send("MD5 /dev1/f fsck\nMD5 /dev1/f\n")
	eventually(t, "the digest runs", func() bool { return disk.Hanging() == 1 })
	d.cancel()
	eventually(t, "nobody listens", func() bool {
		late, err := net.Dial("tcp", d.MgmtAddr().String())
		if err == nil {
			late.Close()
		}
		return err != nil
	})
	clear()
	want := fmt.Sprintf("/dev1/f MD5=%x", md5.Sum([]byte("x")))
	for range 2 {
		if got := c.line(); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
	if !c.closed() {
		t.Error("the connection stays open")
	}
}

func TestWatch(t *testing.T) {
	t.Parallel()
	d := start(t, Options{}, 1, 2, 10)
	line := regexp.MustCompile(`^(\d+)\t(-|\d+\.\d\d)\n$`)
	watchers := []*client{d.side(), d.side()}
	watchers[0].send("watch\nsize /dev1/x\n")
	watchers[1].send("WATCH\n")
	for _, c := range watchers {
		for range 2 {
			var devs []string
			for {
				s, err := c.r.ReadString('\n')
				if err != nil {
					t.Fatal(err)
				}
				if s == ".\n" {
					break
				}
				m := line.FindStringSubmatch(s)
				if m == nil {
					t.Fatalf("line %q", s)
				}
				devs = append(devs, m[1])
			}
			if got := strings.Join(devs, " "); got != "1 2 10" {
				t.Errorf("devices %s", got)
			}
		}
	}
}

func TestWatchUnavailable(t *testing.T) {
	t.Parallel()
	d := start(t, Options{ProcFS: t.TempDir()}, 1)
	c := d.side()
	c.send("watch\n")
	if got := c.line(); got != "ERR iostat unavailable" {
		t.Errorf("%q", got)
	}
	if !c.closed() {
		t.Error("the connection stays open")
	}
}

// Whatever is sent, each line gets one line, and the daemon goes on answering.
func FuzzSideChannel(f *testing.F) {
	for _, s := range []string{"size " + fid42 + "\n", "MD5 /dev1/usage fsck\r\nSHA-1 /x\n\n", "size /../x\r\n", "\x00\xff\n", "size", "server aio_threads = 5\n", ""} {
		f.Add(s)
	}
	d := start(f, Options{}, 1)
	f.Fuzz(func(t *testing.T, raw string) {
		want := 0
		for line := range strings.Lines(raw) {
			if v := parseCommand(strings.TrimSuffix(line, "\n")).verb; v == verbWatch || v == verbShutdown || len(line) > maxSideLine {
				return
			}
			if strings.HasSuffix(line, "\n") {
				want++
			}
		}
		c := dial(t, d.MgmtAddr())
		io.WriteString(c, raw) // seen by what is read
		c.CloseWrite()
		answer, err := io.ReadAll(c.r)
		if got := strings.Count(string(answer), "\r\n"); err != nil || got != want || !strings.HasSuffix("\r\n"+string(answer), "\r\n") {
			t.Errorf("%q: %d answers, want %d: %q, %v", raw, got, want, answer, err)
		}
	})
}
