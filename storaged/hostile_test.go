//go:build linux

package storaged

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// Whatever is planted under a device, nothing outside of it is read, written or
// removed, and what is no file is none.
func TestPlantedFiles(t *testing.T) {
	t.Parallel()
	d := start(t, Options{}, 1, 2)
	outside := filepath.Join(t.TempDir(), "outside")
	dev1 := filepath.Join(d.docroot, "dev1")
	socket := filepath.Join(t.TempDir(), "s")
	if err := errors.Join(
		os.MkdirAll(filepath.Join(outside, "dir"), 0o777),
		os.WriteFile(filepath.Join(outside, "secret"), []byte("secret"), 0o666),
		os.WriteFile(filepath.Join(d.docroot, "dev2/other"), []byte("other"), 0o666),
		os.Symlink(filepath.Join(outside, "secret"), filepath.Join(dev1, "link.fid")),
		os.Symlink(outside, filepath.Join(dev1, "1")),
		os.Symlink("../../outside", filepath.Join(dev1, "up")),
		os.Symlink("../dev2/other", filepath.Join(dev1, "sister")),
		os.Symlink("loop", filepath.Join(dev1, "loop")),
		os.Symlink("nowhere", filepath.Join(dev1, "dangling")),
		os.Symlink("/proc/self/root", filepath.Join(dev1, "magic")),
		syscall.Mkfifo(filepath.Join(dev1, "fifo.fid"), 0o666),
		os.Symlink(outside, filepath.Join(d.docroot, "elsewhere")),
	); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := os.Link(socket, filepath.Join(dev1, "socket.fid")); err != nil {
		t.Fatal(err)
	}
	device := syscall.Mknod(filepath.Join(dev1, "device.fid"), syscall.S_IFCHR|0o666, 1<<8|5) == nil // /dev/zero; needs root
	side := d.side()
	for _, c := range []struct {
		name string
		get  int
		put  bool // something may be stored below the name
	}{
		{"link.fid", 403, false}, {"1/secret", 403, false}, {"1/new", 403, false}, {"1/dir/new", 403, false}, {"up/secret", 403, false},
		{"sister", 403, false}, {"loop", 403, false}, {"loop/x", 403, false}, {"magic/etc/passwd", 403, false},
		{"dangling", 404, true}, {"fifo.fid", 403, true}, {"socket.fid", 403, true}, {"device.fid", 403, true},
	} {
		if c.name == "device.fid" && !device {
			continue
		}
		path := "/dev1/" + c.name
		if r := d.get(path); r.StatusCode != c.get {
			t.Errorf("GET %s: %s, want %d", path, r.Status, c.get)
		}
		if r := d.do("HEAD %s HTTP/1.1\n\n", path); r.StatusCode != c.get {
			t.Errorf("HEAD %s: %s, want %d", path, r.Status, c.get)
		}
		side.send("MD5 %s\n", path)
		if got := side.line(); got != path+" MD5=-1" {
			t.Errorf("MD5 of %s: %q", path, got)
		}
		if r := d.do("PUT %s HTTP/1.1\nContent-Range: bytes 0-0/*\nContent-Length: 1\n\nx", path); r.StatusCode != 403 && !(c.name == "dangling") {
			t.Errorf("PUT %s in place: %s", path, r.Status)
		}
		if r := d.put(path, "new"); !c.put && r.StatusCode != 403 && r.StatusCode != 201 {
			t.Errorf("PUT %s: %s", path, r.Status)
		}
	}
	for _, name := range []string{"sister", "link.fid", "1", "fifo.fid"} { // the link goes, not what it leads to
		if r := d.do("DELETE /dev1/%s HTTP/1.1\n\n", name); r.StatusCode != 204 {
			t.Errorf("DELETE /dev1/%s: %s", name, r.Status)
		}
	}
	for name, want := range map[string]string{filepath.Join(outside, "secret"): "secret", filepath.Join(d.docroot, "dev2/other"): "other"} {
		if got, err := os.ReadFile(name); err != nil || string(got) != want {
			t.Errorf("%s has %q, %v", name, got, err)
		}
	}
	if entries, err := os.ReadDir(outside); err != nil || len(entries) != 2 {
		t.Errorf("outside are %v, %v", entries, err)
	}
	if entries, err := os.ReadDir(filepath.Join(outside, "dir")); err != nil || len(entries) > 0 {
		t.Errorf("outside are %v, %v", entries, err)
	}
	if r := d.get("/elsewhere/secret"); r.StatusCode != 404 {
		t.Errorf("a link beside the devices: %s", r.Status)
	}
}

// A device's folder itself may be a link: operators have them.
func TestLinkedDevice(t *testing.T) {
	t.Parallel()
	docroot, disk := t.TempDir(), t.TempDir()
	if err := os.Symlink(disk, filepath.Join(docroot, "dev5")); err != nil {
		t.Fatal(err)
	}
	d := start(t, Options{Docroot: docroot})
	if r := d.put("/dev5/0/000/000/0000000001.fid", "hello"); r.StatusCode != 201 {
		t.Error(r.Status)
	}
	if got, err := os.ReadFile(filepath.Join(disk, "0/000/000/0000000001.fid")); err != nil || string(got) != "hello" {
		t.Errorf("stored %q, %v", got, err)
	}
	if r := d.get("/dev5/0/000/000/0000000001.fid"); r.body != "hello" {
		t.Error(r.Status)
	}
	if got := d.get("/dev5/usage").body; !strings.Contains(got, "\ndisk: /") {
		t.Errorf("usage %q", got)
	}
}

// Devices beyond the database's columns are refused by name, not served.
func TestDeviceBeyondColumns(t *testing.T) {
	t.Parallel()
	d := start(t, Options{}, 1, 32767, 32768, 65536)
	for dev, want := range map[int]int{32767: 201, 32768: 503, 65536: 503} {
		if r := d.put(fmt.Sprintf("/dev%d/f", dev), "x"); r.StatusCode != want {
			t.Errorf("dev%d: %s, want %d", dev, r.Status, want)
		}
	}
}

// Many uploads to one key at once: each is answered, and what is there at the
// end is one of them, whole.
func TestOneKey(t *testing.T) {
	t.Parallel()
	d := start(t, Options{}, 1)
	const clients, size = 40, 100_000
	var all sync.WaitGroup
	for i := range clients {
		c := dial(t, d.HTTPAddr())
		body := strings.Repeat(string(rune('A'+i)), size)
		all.Go(func() {
			io.WriteString(c, fmt.Sprintf("PUT /dev1/key HTTP/1.1\r\nContent-Length: %d\r\n\r\n%s", size, body)) // seen below
		})
		all.Go(func() {
			if line, err := c.r.ReadString('\n'); err != nil || line != "HTTP/1.1 201 Created\r\n" {
				t.Errorf("%q, %v", line, err)
			}
		})
		all.Go(func() {
			c := dial(t, d.HTTPAddr())
			c.send("GET /dev1/key HTTP/1.1\n\n")
			if r := c.receive("GET"); r.StatusCode != 404 && (len(r.body) != size || strings.Trim(r.body, r.body[:1]) != "") {
				t.Errorf("%s, a mixture of %d bytes", r.Status, len(r.body))
			}
		})
	}
	all.Wait()
	if got := d.get("/dev1/key").body; len(got) != size || strings.Trim(got, got[:1]) != "" {
		t.Errorf("a mixture of %d bytes", len(got))
	}
}

// Of each client that sends requests and reads nothing one request is in
// progress, and nobody else notices.
func TestUnreadAnswers(t *testing.T) {
	t.Parallel()
	d := start(t, Options{}, 1)
	const clients = 50
	d.put("/dev1/f", string(pattern(4<<20)))
	flood := strings.Repeat("GET /dev1/f HTTP/1.1\r\n\r\n", 2000)
	for range clients {
		c := dial(t, d.HTTPAddr())
		go io.WriteString(c, flood) // it blocks until the connection is closed
	}
	inFlight := func() float64 { return metric(t, d, "mogile_storaged_requests_in_flight") }
	eventually(t, "all are at it", func() bool { return inFlight() == clients })
	for range 5 {
		if r := d.get("/dev1/f"); len(r.body) != 4<<20 {
			t.Error(r.Status)
		}
	}
	eventually(t, "no other request is in progress", func() bool { return inFlight() == clients })
}
