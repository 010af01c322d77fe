package storaged

import (
	"context"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/rs/zerolog"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/storaged/volume"
	"github.com/mogile/mogile/storaged/volume/simdisk"
)

// userFiles are the files on a simulated disk that are not the daemon's own.
func userFiles(disk *simdisk.Disk) []string {
	return slices.DeleteFunc(disk.Files(docrootSim), func(p string) bool {
		return strings.HasSuffix(p, "/usage") || strings.HasSuffix(p, "/.mogile/device")
	})
}

// A full disk is told as such, and nothing is left on it; it is of use again
// once there is room.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	d, disk := startSim(t, Options{}, 1)
	d.put("/dev1/old", "old")
	const room = 1 << 20
	disk.SetCapacity(room)
	large := pattern(2 * room)
	for name, head := range map[string]string{
		"length":   fmt.Sprintf("PUT /dev1/0/000/000/0000000001.fid HTTP/1.1\nHost: x\nContent-Length: %d\n\n", len(large)),
		"chunked":  fmt.Sprintf("PUT /dev1/0/000/000/0000000001.fid HTTP/1.1\nHost: x\nTransfer-Encoding: chunked\n\n%x\n", len(large)),
		"replaced": fmt.Sprintf("PUT /dev1/old HTTP/1.1\nHost: x\nContent-Length: %d\n\n", len(large)),
	} {
		c := dial(t, d.HTTPAddr())
		c.send("%s", head)
		go c.Write(large) // it is not read to its end
		if r := c.receive("PUT"); r.StatusCode != 507 || !r.Close {
			t.Errorf("%s: %s", name, r.Status)
		}
		eventually(t, "nothing is left: "+name, func() bool { return slices.Equal(userFiles(disk), []string{docrootSim + "/dev1/old"}) })
	}
	if got := d.get("/dev1/old").body; got != "old" {
		t.Errorf("the old file is %q", got)
	}
	c := dial(t, d.HTTPAddr())
	c.send("PUT /dev1/range HTTP/1.1\nHost: x\nContent-Range: bytes %d-%d/*\nContent-Length: 5\n\nhello", 2*room, 2*room+4)
	if r := c.receive("PUT"); r.StatusCode != 507 {
		t.Errorf("in place: %s", r.Status)
	}
	// In place is not atomic, but a name without content would be a lie.
	for _, used := range []int{0, 4 << 10} { // a page of the file fits, or none
		var now, all int64
		if _, err := fmt.Sscanf(disk.String(), "simulated disk: %d of %d", &now, &all); err != nil {
			t.Fatal(err)
		}
		disk.SetCapacity(now + int64(used))
		c = dial(t, d.HTTPAddr())
		c.send("PUT /dev1/0/000/000/0000000009.fid HTTP/1.1\nHost: x\nContent-Range: bytes 7-%d/*\nContent-Length: %d\n\n", 6+bufferSize, bufferSize)
		c.Write(large[:bufferSize]) // it may be refused before its end
		if r := c.receive("PUT"); r.StatusCode != 507 || !r.Close {
			t.Errorf("in place, with room for %d bytes: %s", used, r.Status)
		}
	}
	eventually(t, "nothing is left of what was written in place", func() bool { return slices.Equal(userFiles(disk), []string{docrootSim + "/dev1/old"}) })
	disk.SetCapacity(room)
	if r := d.get("/dev1/usage"); r.StatusCode != 200 {
		t.Errorf("usage of a full disk: %s", r.Status)
	}
	disk.SetCapacity(10 * room)
	if r := d.put("/dev1/0/000/000/0000000001.fid", string(large)); r.StatusCode != 201 {
		t.Errorf("with room: %s", r.Status)
	}
}

// A disk that fails is an error of its own, whenever it is noticed.
func TestFailingDisk(t *testing.T) {
	t.Parallel()
	d, disk := startSim(t, Options{}, 1)
	large := string(pattern(3 * bufferSize))
	d.put("/dev1/f", large)
	fault := func(op simdisk.Op, skip int) func() {
		return disk.Inject(simdisk.Fault{Ops: []simdisk.Op{op}, Path: docrootSim + "/dev1", Skip: skip})
	}
	clear := fault(simdisk.OpRead, 0)
	if r := d.get("/dev1/f"); r.StatusCode != 500 || r.ContentLength != 0 {
		t.Errorf("unreadable: %s", r.Status)
	}
	clear()
	clear = fault(simdisk.OpRead, 1)
	c := dial(t, d.HTTPAddr())
	c.send("GET /dev1/f HTTP/1.1\nHost: x\n\n")
	if got, err := io.ReadAll(c.r); err != nil || !strings.HasSuffix(string(got), large[:bufferSize]) {
		t.Errorf("unreadable in the middle: %d bytes, %v", len(got), err)
	}
	clear()
	for _, op := range []simdisk.Op{simdisk.OpWrite, simdisk.OpCreate, simdisk.OpLink} {
		clear = fault(op, 0)
		if r := d.put("/dev1/g", "new"); r.StatusCode != 500 {
			t.Errorf("%s fails: PUT: %s", op, r.Status)
		}
		clear()
	}
	clear = fault(simdisk.OpUnlink, 0)
	if r := d.do("DELETE /dev1/f HTTP/1.1\nHost: x\n\n"); r.StatusCode != 500 {
		t.Errorf("DELETE: %s", r.Status)
	}
	clear()
	if got := userFiles(disk); !slices.Equal(got, []string{docrootSim + "/dev1/f"}) {
		t.Errorf("files %v", got)
	}
	// After a failed flush of the filesystem nobody knows what is on disk: the
	// device is only read.
	clear = fault(simdisk.OpSyncFS, 0)
	if r := d.put("/dev1/g", "new"); r.StatusCode != 503 {
		t.Errorf("flush fails: PUT: %s", r.Status)
	}
	clear()
	if r := d.put("/dev1/g", "new"); r.StatusCode != 503 {
		t.Errorf("after a failed flush: PUT: %s", r.Status)
	}
	if r := d.get("/dev1/f"); r.StatusCode != 200 {
		t.Errorf("after a failed flush: GET: %s", r.Status)
	}
	if n, err := testutil.GatherAndCount(d.Registry(), "mogile_device_flush_failed"); n != 1 || err != nil {
		t.Errorf("%d devices have mogile_device_flush_failed: %v", n, err)
	}
	eventually(t, "all files are closed", func() bool { return disk.Open() == 0 })
}

// The time that a slow disk takes is not taken for the client's silence.
func TestSlowDisk(t *testing.T) {
	t.Parallel()
	const timeout = 50 * time.Millisecond
	d, disk := startSim(t, Options{ClientTimeout: timeout}, 1)
	body := string(pattern(4 * bufferSize))
	for _, op := range []simdisk.Op{simdisk.OpWrite, simdisk.OpSyncFS} {
		clear := disk.Inject(simdisk.Fault{Ops: []simdisk.Op{op}, Path: docrootSim + "/dev1", Hang: true})
		c := dial(t, d.HTTPAddr())
		c.send("PUT /dev1/%s HTTP/1.1\nHost: x\nContent-Length: %d\n\n", op, len(body))
		if _, err := io.WriteString(c, body); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the disk is slow", func() bool { return disk.Hanging() > 0 })
		<-time.After(3 * timeout)
		clear()
		if r := c.receive("PUT"); r.StatusCode != 201 {
			t.Errorf("%s: %s", op, r.Status)
		}
		if got := d.get("/dev1/" + string(op)).body; got != body {
			t.Errorf("%s: %d bytes stored", op, len(got))
		}
	}
}

// A disk that hangs holds up only those who want something of it, and not for
// long. Its usage is not told any more, so that trackers avoid it alone.
func TestHungDisk(t *testing.T) {
	t.Parallel()
	d, disk := startSim(t, Options{StuckAfter: 150 * time.Millisecond, UsageInterval: 10 * time.Millisecond}, 1, 2)
	d.put("/dev1/f", "one")
	d.put("/dev2/f", "two")
	clear := disk.Inject(simdisk.Fault{Path: docrootSim + "/dev1", Hang: true})
	t.Cleanup(clear)

	var stuck sync.WaitGroup
	for i := range 2 * volume.DefaultSlots {
		c := dial(t, d.HTTPAddr())
		stuck.Go(func() {
			method, length := "GET", 0
			if i%2 == 1 {
				method, length = "PUT", 1
			}
			c.send("%s /dev1/f%d HTTP/1.1\nHost: x\nContent-Length: %d\n\n%s", method, i, length, "x"[:length])
			if r := c.receive(method); r.StatusCode != 503 {
				t.Errorf("%s: %s", method, r.Status)
			}
		})
	}
	eventually(t, "all slots are stuck", func() bool { return disk.Hanging() >= volume.DefaultSlots })
	for range 10 {
		if r := d.put("/dev2/g", "more"); r.StatusCode != 201 {
			t.Errorf("PUT to another disk: %s", r.Status)
		}
		if r := d.get("/dev2/f"); r.body != "two" {
			t.Errorf("GET from another disk: %s", r.Status)
		}
	}
	stuck.Wait()
	eventually(t, "its usage is not told", func() bool { return d.get("/dev1/usage").StatusCode == 503 })
	if r := d.get("/dev2/usage"); r.StatusCode != 200 {
		t.Errorf("usage of another disk: %s", r.Status)
	}
	side := d.side()
	side.send("size /dev1/f\nsize /dev2/f\nMD5 /dev1/f\n")
	if got := side.line(); got != "ERR size /dev1/f failed" {
		t.Errorf("size: %q", got)
	}
	if got := side.line(); got != "/dev2/f 3" {
		t.Errorf("size on another disk: %q", got)
	}
	if got := side.line(); got != "ERR read /dev1/f at 0 failed" {
		t.Errorf("digest: %q", got)
	}
	if err := d.Ready(t.Context()); err != nil {
		t.Errorf("with another disk that is well: %v", err)
	}
	if got := metric(t, d, "mogile_device_sick"); got != 1 {
		t.Errorf("%v sick devices", got)
	}
	before := time.Now()
	if r := d.get("/dev1/f"); r.StatusCode != 503 || time.Since(before) > 5*time.Second {
		t.Errorf("once it is sick: %s after %v", r.Status, time.Since(before))
	}
	clear()
	eventually(t, "it is well again", func() bool { return d.get("/dev1/f").body == "one" })
	eventually(t, "its usage is told again", func() bool { return d.get("/dev1/usage").StatusCode == 200 })
	if got, want := userFiles(disk), []string{docrootSim + "/dev1/f", docrootSim + "/dev2/f", docrootSim + "/dev2/g"}; !slices.Equal(got, want) {
		eventually(t, "uploads that were refused are gone", func() bool { return slices.Equal(userFiles(disk), want) })
	}
}

// A connection whose request hangs in a disk ends with the answer, as does a daemon
// that stops, though the disk stays as it is.
func TestStopBesideHungDisk(t *testing.T) {
	t.Parallel()
	d, disk := startSim(t, Options{StuckAfter: 50 * time.Millisecond}, 1)
	d.put("/dev1/f", "one")
	clear := disk.Inject(simdisk.Fault{Path: docrootSim + "/dev1", Hang: true})
	t.Cleanup(clear)
	for _, request := range []string{
		"GET /dev1/f HTTP/1.1\nHost: x\n\nGET /dev1/f HTTP/1.1\nHost: x\n\n",
		"PUT /dev1/f HTTP/1.1\nHost: x\nContent-Length: 1\n\nx",
	} {
		c := dial(t, d.HTTPAddr())
		c.send("%s", request)
		method, _, _ := strings.Cut(request, " ")
		if r := c.receive(method); r.StatusCode != 503 || !r.Close {
			t.Errorf("%s: %s, close: %v", method, r.Status, r.Close)
		}
		if !c.closed() {
			t.Errorf("%s: the connection goes on", method)
		}
	}
	if n := disk.Hanging(); n != 2 {
		t.Errorf("%d operations hang", n)
	}
	eventually(t, "no request is in flight", func() bool { return metric(t, d, "mogile_storaged_requests_in_flight") == 0 })
	d.Stop(PatientDrain)
	eventually(t, "the daemon has stopped", func() bool { return isDone(d.done) })
}

// A device that has not told how full it is for long is not believed.
func TestStaleUsage(t *testing.T) {
	t.Parallel()
	var ahead atomic.Int64
	now := func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
	d, disk := startSim(t, Options{Now: now, UsageInterval: 5 * time.Millisecond}, 1, 2)
	t.Cleanup(disk.Inject(simdisk.Fault{Ops: []simdisk.Op{simdisk.OpSpace}, Path: docrootSim + "/dev1"}))
	ahead.Store(int64(2 * volume.DefaultUsageMaxAge))
	if r := d.get("/dev1/usage"); r.StatusCode != 503 {
		t.Errorf("stale: %s", r.Status)
	}
	eventually(t, "the other's is told", func() bool { return d.get("/dev2/usage").StatusCode == 200 })
	side := d.side()
	side.send("size /dev1/usage\nMD5 /dev1/usage\n")
	if got := side.line(); got != "ERR size /dev1/usage failed" {
		t.Errorf("size: %q", got)
	}
	if got := side.line(); got != "ERR read /dev1/usage at 0 failed" {
		t.Errorf("digest: %q", got)
	}
}

// parseUsage reads a usage file, and refuses one that is not whole.
func parseUsage(text string) (map[string]string, error) {
	fields := map[string]string{}
	var names []string
	for line := range strings.Lines(text) {
		name, value, ok := strings.Cut(line, ": ")
		if !ok || !strings.HasSuffix(value, "\n") {
			return nil, fmt.Errorf("line %q", line)
		}
		fields[name] = strings.TrimSuffix(value, "\n")
		names = append(names, name)
	}
	if want := "available device disk time total use used"; strings.Join(names, " ") != want {
		return nil, fmt.Errorf("names %q", names)
	}
	return fields, nil
}

func TestUsage(t *testing.T) {
	t.Parallel()
	d := start(t, Options{UsageInterval: time.Millisecond}, 1)
	file := filepath.Join(d.docroot, "dev1/usage")
	var last string
	for range 300 { // never half-written, though it is written all the time
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := parseUsage(string(text)); err != nil {
			t.Fatal(err)
		}
	}
	r := d.get("/dev1/usage")
	got, err := parseUsage(r.body)
	if err != nil {
		t.Fatal(err)
	}
	number := func(name string) int64 {
		n, err := strconv.ParseInt(strings.TrimSuffix(got[name], "%"), 10, 64)
		if err != nil || n < 1 {
			t.Errorf("%s: %q", name, got[name])
		}
		return n
	}
	var fs syscall.Statfs_t
	if err := syscall.Statfs(d.docroot, &fs); err != nil {
		t.Fatal(err)
	}
	// Blocks reserved for root are neither used nor available.
	used, available, total := number("used"), number("available"), number("total")
	if total != used+available {
		t.Errorf("total %d, want %d + %d", total, used, available)
	}
	near := func(a, b int64) bool { return max(a-b, b-a) < 1<<20 } // other tests write
	if bs := int64(fs.Bsize); !near(used, int64(fs.Blocks-fs.Bfree)*bs/1024) || !near(available, int64(fs.Bavail)*bs/1024) {
		t.Errorf("used %d, available %d; the system says %+v", used, available, fs)
	}
	if use := number("use"); use > 100 || use < used*100/total {
		t.Errorf("use: %s", got["use"])
	}
	if age := time.Now().Unix() - number("time"); age > 10 || age < 0 {
		t.Errorf("time: %s", got["time"])
	}
	if got["disk"] != filepath.Join(d.docroot, "dev1") || got["device"] == "" {
		t.Errorf("disk: %s, device: %s", got["disk"], got["device"])
	}
	eventually(t, "the file is written anew", func() bool {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		fields, err := parseUsage(string(text))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { last = fields["time"] }()
		return last != "" && fields["time"] != last
	})
	c := dial(t, d.HTTPAddr())
	c.send("GET /dev1/usage HTTP/1.1\nHost: x\nRange: bytes=0-9\n\n")
	if r := c.receive("GET"); r.StatusCode != 206 || r.body != "available:" {
		t.Errorf("range: %s, %q", r.Status, r.body)
	}
}

// Devices that are made while the daemon runs are served at once, and get their
// usage file; those that go are forgotten.
func TestNewDevice(t *testing.T) {
	t.Parallel()
	d := start(t, Options{UsageInterval: 5 * time.Millisecond}, 1)
	dir := filepath.Join(d.docroot, "dev2")
	if r := d.get("/dev2/usage"); r.StatusCode != 404 {
		t.Fatalf("before: %s", r.Status)
	}
	if err := os.Mkdir(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	if r := d.put("/dev2/0/000/000/0000000001.fid", "x"); r.StatusCode != 201 {
		t.Errorf("PUT: %s", r.Status)
	}
	if r := d.get("/dev2/usage"); r.StatusCode != 200 {
		t.Errorf("usage: %s", r.Status)
	}
	eventually(t, "the usage file is there", func() bool {
		_, err := os.Stat(filepath.Join(dir, "usage"))
		return err == nil
	})
	eventually(t, "the folder is gone", func() bool { return os.RemoveAll(dir) == nil })
	eventually(t, "the device is gone", func() bool { return d.get("/dev2/usage").StatusCode == 404 })
}

// Without a file system of its own a folder is not a device, where one is
// required.
func TestRequireMount(t *testing.T) {
	t.Parallel()
	d := start(t, Options{RequireMount: true}, 1)
	for _, request := range []string{"GET /dev1/x HTTP/1.1\nHost: x\n\n", "GET /dev1/usage HTTP/1.1\nHost: x\n\n",
		"PUT /dev1/x HTTP/1.1\nHost: x\nContent-Length: 1\n\nx", "DELETE /dev1/x HTTP/1.1\nHost: x\n\n"} {
		if r := d.do("%s", request); r.StatusCode != 503 {
			t.Errorf("%q: %s", request, r.Status)
		}
	}
	if got := d.files(); len(got) > 0 {
		t.Errorf("files %v", got)
	}
	side := d.side()
	side.send("size /dev1/x\n")
	if got := side.line(); got != "ERR size /dev1/x failed" {
		t.Errorf("size: %q", got)
	}
	if err := d.Ready(t.Context()); err == nil || !strings.Contains(err.Error(), "nothing is mounted") {
		t.Errorf("ready, with no device: %v", err)
	}
	if got := metric(t, d, "mogile_device_refused", "1"); got != 1 {
		t.Errorf("%v devices refused", got)
	}
}

// What was answered is there after the power went, and nothing that was not.
func TestPowerLoss(t *testing.T) {
	t.Parallel()
	for range 10 {
		seed := rand.Uint64()
		t.Run(strconv.FormatUint(seed, 10), func(t *testing.T) {
			t.Parallel()
			losePower(t, rand.New(rand.NewPCG(seed, 0)))
		})
	}
}

func losePower(t *testing.T, rng *rand.Rand) {
	d, disk := startSim(t, Options{}, 1)
	stored := map[protocol.FID]string{}
	for fid := protocol.FID(1); fid <= 20; fid++ {
		body := string(pattern(rng.IntN(3 * bufferSize)))
		if r := d.put("/"+fid.Path(1), body); r.StatusCode != 201 {
			t.Fatal(r.Status)
		}
		stored[fid] = body
	}
	for fid := protocol.FID(1); fid <= 20; fid += 4 {
		if r := d.do("DELETE /%s HTTP/1.1\nHost: x\n\n", fid.Path(1)); r.StatusCode != 204 {
			t.Fatal(r.Status)
		}
		delete(stored, fid)
	}
	half := dial(t, d.HTTPAddr())
	half.send("PUT /%s HTTP/1.1\nHost: x\nContent-Length: 1000000\n\n%s", protocol.FID(99).Path(1), strings.Repeat("x", 500_000))
	eventually(t, "an upload is in progress", func() bool { return metric(t, d, "mogile_storaged_requests_in_flight") == 1 })
	after := disk.Crash(rng)
	half.Close()
	d.stop()

	d = start(t, Options{FS: after, Docroot: docrootSim})
	var want []string
	for _, fid := range slices.Sorted(maps.Keys(stored)) {
		if got := d.get("/" + fid.Path(1)); got.StatusCode != 200 || got.body != stored[fid] {
			t.Errorf("fid %d: %s, %d bytes of %d", fid, got.Status, len(got.body), len(stored[fid]))
		}
		want = append(want, docrootSim+"/"+fid.Path(1))
	}
	if got := userFiles(after); !slices.Equal(got, want) {
		t.Errorf("files %v, want %v", got, want)
	}
}

// A full disk is a normal day: it is told once, and not as an error.
func TestLogOfFullDisk(t *testing.T) {
	t.Parallel()
	var log strings.Builder
	u := newUsage(nil, Options{Log: zerolog.New(&log)})
	look := func(err error) {
		u.begin(t.Context(), new(sync.WaitGroup), 7, func(context.Context) error { return err })
		u.all.Wait()
	}
	full := fmt.Errorf("commit dev7/usage: %w", volume.ErrNoSpace)
	look(full)
	look(full)
	if got := log.String(); strings.Count(got, "\n") != 1 || !strings.Contains(got, `"level":"warn"`) || !strings.Contains(got, "device is full") {
		t.Errorf("full: %s", got)
	}
	look(nil)
	log.Reset()
	look(io.ErrUnexpectedEOF)
	if got := log.String(); !strings.Contains(got, `"level":"error"`) {
		t.Errorf("another fault: %s", got)
	}
}
