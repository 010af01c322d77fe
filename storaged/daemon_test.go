package storaged

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"go.uber.org/goleak"

	"github.com/mogile/mogile/storaged/volume/simdisk"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience is for how long tests wait for what must happen at once.
const patience = 10 * time.Second

// daemon is a storage daemon that runs for a test.
type daemon struct {
	*Daemon
	t       testing.TB
	docroot string
	cancel  context.CancelFunc
	done    chan struct{} // closed when Run has returned
	err     error         // of Run, once done
}

// start runs a daemon on a docroot with these dev<N> folders, on loopback.
func start(t testing.TB, o Options, devs ...int) *daemon {
	t.Helper()
	if o.Docroot == "" {
		o.Docroot = t.TempDir()
	}
	if o.FS == nil {
		for _, n := range devs {
			if err := os.MkdirAll(filepath.Join(o.Docroot, fmt.Sprintf("dev%d", n)), 0o777); err != nil {
				t.Fatal(err)
			}
		}
	}
	o.HTTPListen, o.MgmtListen, o.GetListen = "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0"
	if _, isTest := t.(*testing.T); isTest {
		o.Log = zerolog.New(zerolog.NewTestWriter(t))
	}
	inner, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	return run(t, inner, o.Docroot)
}

// run runs a daemon for a test.
func run(t testing.TB, inner *Daemon, docroot string) *daemon {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	d := &daemon{Daemon: inner, t: t, docroot: docroot, cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(d.done)
		d.err = d.Run(ctx)
	}()
	t.Cleanup(d.stop)
	eventually(t, "the daemon serves", func() bool { return isDone(d.Serving()) || isDone(d.done) })
	return d
}

// docrootSim is the docroot of daemons on a simulated disk.
const docrootSim = "/data"

// startSim runs a daemon on a simulated disk, on which each of these devices
// has a file system of its own; they share the disk's capacity.
func startSim(t testing.TB, o Options, devs ...int) (*daemon, *simdisk.Disk) {
	t.Helper()
	disk := simdisk.New(simdisk.Options{})
	for _, n := range devs {
		if err := disk.MountAt(fmt.Sprintf("%s/dev%d", docrootSim, n), fmt.Sprintf("/dev/sim%d", n)); err != nil {
			t.Fatal(err)
		}
	}
	o.FS, o.Docroot = disk, docrootSim
	return start(t, o), disk
}

func isDone(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// stop stops the daemon, which must succeed.
func (d *daemon) stop() {
	d.cancel()
	select {
	case <-d.done:
		if d.err != nil {
			d.t.Errorf("Run: %v", d.err)
		}
	case <-time.After(40 * time.Second):
		d.t.Error("Run does not return")
	}
}

// eventually waits until ok holds.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.After(patience)
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-deadline:
			t.Fatalf("not in %v: %s", patience, what)
		case <-tick.C:
		}
	}
}

// client is one connection.
type client struct {
	*net.TCPConn
	t testing.TB
	r *bufio.Reader
}

func dial(t testing.TB, addr net.Addr) *client {
	t.Helper()
	c, err := net.Dial("tcp", addr.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	return &client{c.(*net.TCPConn), t, bufio.NewReader(c)}
}

// send sends lines of text, in which LF stands for CRLF.
func (c *client) send(format string, args ...any) {
	c.t.Helper()
	text := strings.ReplaceAll(fmt.Sprintf(format, args...), "\n", "\r\n")
	if _, err := io.WriteString(c, text); err != nil {
		c.t.Fatal(err)
	}
}

// reply is an answer with its body.
type reply struct {
	*http.Response
	body string
}

// receive reads the answer to a request of that method.
func (c *client) receive(method string) reply {
	c.t.Helper()
	res, err := http.ReadResponse(c.r, &http.Request{Method: method})
	if err != nil {
		c.t.Fatalf("answer to %s: %v", method, err)
	}
	body, err := io.ReadAll(res.Body)
	if err != nil {
		c.t.Fatalf("answer to %s: %v", method, err)
	}
	if res.Header.Get(capabilityHeader) == "" {
		c.t.Errorf("answer to %s, %s: no capabilities", method, res.Status)
	}
	if res.Close && res.ProtoAtLeast(1, 1) { // ReadResponse takes the header away
		res.Header.Set("Connection", "close")
	}
	return reply{res, string(body)}
}

// closed reports whether the other side has closed the connection, for which
// it has the time of the connection's deadline.
func (c *client) closed() bool {
	_, err := c.r.ReadByte()
	if err != nil && !os.IsTimeout(err) {
		return true
	}
	return false
}

// do sends one request on a connection of its own.
func (d *daemon) do(format string, args ...any) reply {
	d.t.Helper()
	c := dial(d.t, d.HTTPAddr())
	c.send(format, args...)
	method, _, _ := strings.Cut(fmt.Sprintf(format, args...), " ")
	return c.receive(method)
}

func (d *daemon) get(path string) reply {
	d.t.Helper()
	return d.do("GET %s HTTP/1.1\nHost: x\n\n", path)
}

// put stores body, which is taken as it is, by Content-Length.
func (d *daemon) put(path, body string) reply {
	d.t.Helper()
	c := dial(d.t, d.HTTPAddr())
	c.send("PUT %s HTTP/1.1\nHost: x\nContent-Length: %d\n\n", path, len(body))
	if _, err := io.WriteString(c, body); err != nil {
		d.t.Fatal(err)
	}
	return c.receive("PUT")
}

// files are the files below the docroot that are not the daemon's own.
func (d *daemon) files() []string {
	d.t.Helper()
	var found []string
	err := filepath.WalkDir(d.docroot, func(path string, e fs.DirEntry, err error) error {
		rel, _ := filepath.Rel(d.docroot, path)
		switch {
		case err != nil:
			return err
		case e.IsDir() || strings.HasSuffix(rel, "/usage") || strings.HasSuffix(rel, "/.mogile/device"):
			return nil
		}
		found = append(found, filepath.ToSlash(rel))
		return nil
	})
	if err != nil {
		d.t.Fatal(err)
	}
	return found
}

// pattern is n bytes that differ from place to place.
func pattern(n int) []byte {
	b := make([]byte, n)
	x := uint32(2463534242)
	for i := range b {
		x ^= x << 13
		x ^= x >> 17
		x ^= x << 5
		b[i] = byte(x)
	}
	return b
}

func TestOptions(t *testing.T) {
	t.Parallel()
	_, err := New(Options{
		Docroot: t.TempDir(), HTTPListen: "example.com:80", MgmtListen: "127.0.0.1:99999", GetListen: "x",
		Trackers: []string{"tracker1", "10.0.0.1:7001", ":7001", "a:b:c", "a:0"}, MaxConns: -1, UsageInterval: -1,
		ClientTimeout: -1, DrainTimeout: -1, StuckAfter: -1,
	})
	if err == nil {
		t.Fatal("no error")
	}
	for _, want := range []string{"example.com", "99999", `":x"`, `":7001"`, "a:b:c", "a:0", "connections", "usage interval",
		"client timeout", "drain timeout", "stuck"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("nothing about %s in: %v", want, err)
		}
	}
	o, err := Options{Trackers: []string{"tracker1", "10.0.0.1:7002", "[::1]:7001"}}.withDefaults()
	if err != nil {
		t.Fatal(err)
	}
	if got, want := strings.Join(o.Trackers, " "), "tracker1:7001 10.0.0.1:7002 [::1]:7001"; got != want {
		t.Errorf("trackers %s, want %s", got, want)
	}
	if o.HTTPListen != "0.0.0.0:7500" || o.MgmtListen != "0.0.0.0:7501" || o.GetListen != "" {
		t.Errorf("listeners %q, %q, %q", o.HTTPListen, o.MgmtListen, o.GetListen)
	}
	if o, err = (Options{MgmtListen: "7501"}).withDefaults(); err != nil || o.MgmtListen != ":7501" || o.HTTPListen != "" {
		t.Errorf("listeners %q, %q, error %v", o.HTTPListen, o.MgmtListen, err)
	}
	if _, err := New(Options{Docroot: filepath.Join(t.TempDir(), "none"), HTTPListen: "127.0.0.1:0"}); err == nil {
		t.Error("a docroot that is not there was accepted")
	}
}

// A daemon that never runs leaves nothing behind, nor does one whose port is
// taken.
func TestNewGivesUp(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	d, err := New(Options{Docroot: root, HTTPListen: "127.0.0.1:0"})
	if err != nil {
		t.Fatal(err)
	}
	if d.MgmtAddr() != nil || d.GetAddr() != nil {
		t.Error("listens where it was not asked to")
	}
	if d.Ready(t.Context()) == nil {
		t.Error("ready before it runs")
	}
	if _, err := New(Options{Docroot: root, HTTPListen: d.HTTPAddr().String()}); err == nil {
		t.Error("two daemons on one port")
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
}

// Requests in progress finish when the daemon stops; idle connections do not
// hold it up.
func TestDrain(t *testing.T) {
	t.Parallel()
	d := start(t, Options{}, 1)
	idle, fresh, busy := dial(t, d.HTTPAddr()), dial(t, d.HTTPAddr()), dial(t, d.HTTPAddr())
	idle.send("GET / HTTP/1.1\nHost: x\n\n")
	idle.receive("GET")
	busy.send("PUT /dev1/0/000/000/0000000007.fid HTTP/1.1\nHost: x\nContent-Length: 11\n\nhello")
	eventually(t, "the upload is in progress", func() bool { return metric(t, d, "mogile_storaged_requests_in_flight") == 1 })
	d.cancel()
	if !idle.closed() || !fresh.closed() {
		t.Error("idle connections stay open")
	}
	eventually(t, "the daemon is not ready", func() bool { return d.Ready(context.Background()) != nil })
	if isDone(d.done) {
		t.Fatal("stopped in the middle of an upload")
	}
	busy.send(" world")
	if res := busy.receive("PUT"); res.StatusCode != 201 {
		t.Errorf("upload: %s", res.Status)
	}
	d.stop()
	got, err := os.ReadFile(filepath.Join(d.docroot, "dev1/0/000/000/0000000007.fid"))
	if err != nil || string(got) != "hello world" {
		t.Errorf("stored %q, %v", got, err)
	}
}

// Who does not finish in time is cut off.
func TestDrainIsBounded(t *testing.T) {
	t.Parallel()
	d := start(t, Options{DrainTimeout: 50 * time.Millisecond}, 1)
	busy := dial(t, d.HTTPAddr())
	busy.send("PUT /dev1/0/000/000/0000000007.fid HTTP/1.1\nHost: x\nContent-Length: 11\n\nhello")
	eventually(t, "the upload is in progress", func() bool { return metric(t, d, "mogile_storaged_requests_in_flight") == 1 })
	d.stop()
	if files := d.files(); len(files) > 0 {
		t.Errorf("left behind: %v", files)
	}
}

// metric is the sum of a metric over its labels.
func metric(t testing.TB, d *daemon, name string, labels ...string) float64 {
	t.Helper()
	families, err := d.Registry().Gather()
	if err != nil {
		t.Fatal(err)
	}
	var sum float64
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
	metrics:
		for _, m := range f.GetMetric() {
			for _, want := range labels {
				found := false
				for _, l := range m.GetLabel() {
					found = found || l.GetValue() == want
				}
				if !found {
					continue metrics
				}
			}
			sum += m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	return sum
}

func TestMetrics(t *testing.T) {
	t.Parallel()
	d := start(t, Options{}, 1)
	d.put("/dev1/x", "hello")
	d.get("/dev1/x")
	d.get("/dev1/y")
	d.do("BREW /dev1/x HTTP/1.1\nHost: x\n\n")
	d.do("garbage\n\n")
	d.side().send("size /dev1/x\nMD5 /dev1/x\nbogus\n")
	eventually(t, "all is counted", func() bool {
		return metric(t, d, "mogile_storaged_requests_total") == 5 && metric(t, d, "mogile_storaged_commands_total") == 3
	})
	for _, c := range []struct {
		name   string
		labels []string
		want   float64
	}{
		{"mogile_storaged_requests_total", []string{"PUT", "201"}, 1},
		{"mogile_storaged_requests_total", []string{"GET", "200"}, 1},
		{"mogile_storaged_requests_total", []string{"GET", "404"}, 1},
		{"mogile_storaged_requests_total", []string{"other", "405"}, 1},
		{"mogile_storaged_requests_total", []string{"other", "400"}, 1},
		{"mogile_storaged_commands_total", []string{"MD5"}, 1},
		{"mogile_storaged_commands_total", []string{"invalid"}, 1},
		{"mogile_storaged_received_bytes_total", nil, 5},
		{"mogile_storaged_sent_bytes_total", nil, 5},
		{"mogile_device_sick", []string{"1"}, 0},
	} {
		if got := metric(t, d, c.name, c.labels...); got != c.want {
			t.Errorf("%s%v = %v, want %v", c.name, c.labels, got, c.want)
		}
	}
	if metric(t, d, "mogile_device_free_bytes", "1") <= 0 || metric(t, d, "mogile_device_used_bytes", "1") <= 0 {
		t.Error("the device has neither free nor used space")
	}
}
