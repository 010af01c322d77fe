package e2e

import (
	"bytes"
	"context"
	"crypto/md5"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/tracker/storage/storagetest"
)

// Nginx is a storage host that is Debian's nginx, with the configuration of
// docs/foreign-storage.md, and beside it what writes usage files.
type Nginx struct {
	*Host
	t      testing.TB
	conf   string
	access string // its log of requests
	cmd    *exec.Cmd
	done   chan struct{}
}

// nginxBinary is where nginx is. Tests are skipped only where they are told to.
func nginxBinary(t testing.TB) string {
	t.Helper()
	if os.Getenv("MOGILE_TEST_NO_NGINX") != "" {
		t.Skip("MOGILE_TEST_NO_NGINX is set")
	}
	for _, name := range []string{"nginx", "/usr/sbin/nginx"} {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	t.Fatal("no nginx: run .ci/deps, or set MOGILE_TEST_NO_NGINX=1")
	return ""
}

// documentedServer is the "server" block of docs/foreign-storage.md, for these
// devices.
func documentedServer(t testing.TB, listen, docroot string, devices []protocol.DevID, fullPath bool) string {
	t.Helper()
	page, err := os.ReadFile("../../docs/foreign-storage.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(page), "```nginx\n")
	block, _, ok2 := strings.Cut(rest, "```")
	device := regexp.MustCompile(`(?s)    location /dev1/ \{.*?\n    \}\n`).FindString(block)
	if !ok || !ok2 || device == "" || !strings.Contains(block, "listen 10.0.0.4:7500") {
		t.Fatal("docs/foreign-storage.md has no configuration of nginx as expected")
	}
	var locations strings.Builder
	for _, dev := range devices {
		locations.WriteString(strings.ReplaceAll(device, "/dev1/", "/dev"+dev.String()+"/"))
	}
	block = strings.Replace(block, device, locations.String(), 1)
	block = strings.ReplaceAll(block, "10.0.0.4:7500", listen)
	block = strings.ReplaceAll(block, "/var/mogdata", docroot)
	if !fullPath {
		block = strings.ReplaceAll(block, "create_full_put_path on;", "create_full_put_path off;")
	}
	return block
}

// AddNginx adds a host that is nginx to c.
func (c *Cluster) AddNginx(devices int, fullPath bool) *Nginx {
	t := c.t
	t.Helper()
	ip := fmt.Sprintf("127.0.0.%d", len(c.Hosts)+1)
	dir := t.TempDir()
	n := &Nginx{t: t, conf: filepath.Join(dir, "nginx.conf"), access: filepath.Join(dir, "access.log")}
	n.Host = &Host{Name: "nginx", IP: ip, Docroot: filepath.Join(dir, "mogdata")}
	for _, h := range c.Hosts {
		n.Devices = append(n.Devices, h.Devices...)
	}
	next := protocol.DevID(len(n.Devices))
	n.Devices = nil
	for range devices {
		next++
		n.Devices = append(n.Devices, next)
		if err := os.MkdirAll(filepath.Join(n.Docroot, "dev"+next.String()), 0o777); err != nil {
			t.Fatal(err)
		}
	}
	var scratch strings.Builder
	for _, kind := range []string{"client_body", "proxy", "fastcgi", "uwsgi", "scgi"} {
		fmt.Fprintf(&scratch, "\t%s_temp_path %s;\n", kind, filepath.Join(dir, kind))
	}
	conf := fmt.Sprintf("daemon off;\nmaster_process off;\npid %s;\nerror_log stderr warn;\nevents { worker_connections 512; }\nhttp {\n"+
		"\tlog_format one '$request_method $uri $status';\n\taccess_log %s one;\n%s%s}\n",
		filepath.Join(dir, "pid"), n.access, scratch.String(),
		documentedServer(t, net.JoinHostPort(ip, strconv.Itoa(c.Port)), n.Docroot, n.Devices, fullPath))
	if err := os.WriteFile(n.conf, []byte(conf), 0o666); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var companion sync.WaitGroup
	n.writeUsage()
	companion.Go(func() {
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				n.writeUsage()
			case <-ctx.Done():
				return
			}
		}
	})
	t.Cleanup(func() { cancel(); companion.Wait(); n.Stop() })
	n.Start()
	c.Hosts = append(c.Hosts, n.Host)
	c.Do("create_host", "host="+n.Name, "ip="+ip, fmt.Sprintf("port=%d", c.Port), "status=alive")
	for _, d := range n.Devices {
		c.Do("create_device", "hostname="+n.Name, "devid="+d.String())
	}
	c.WaitWriteable()
	return n
}

// Start starts nginx (again).
func (n *Nginx) Start() {
	n.t.Helper()
	out, err := os.OpenFile(n.conf+".log", os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o666)
	if err != nil {
		n.t.Fatal(err)
	}
	defer out.Close()
	n.cmd = exec.Command(nginxBinary(n.t), "-p", filepath.Dir(n.conf), "-c", n.conf)
	n.cmd.Stdout, n.cmd.Stderr = out, out
	n.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := n.cmd.Start(); err != nil {
		n.t.Fatal(err)
	}
	n.done = make(chan struct{})
	go func(cmd *exec.Cmd, done chan struct{}) {
		_ = cmd.Wait() // it is killed
		close(done)
	}(n.cmd, n.done)
	within(n.t, 10*time.Second, "nginx listens", func() error {
		conn, err := net.DialTimeout("tcp", n.addr(), time.Second)
		if err != nil {
			log, _ := os.ReadFile(n.conf + ".log")
			return fmt.Errorf("%w\n%s", err, log)
		}
		return conn.Close()
	})
}

// Stop kills nginx and waits.
func (n *Nginx) Stop() {
	_ = n.cmd.Process.Kill() // it may have ended
	<-n.done
}

func (n *Nginx) addr() string {
	conf, err := os.ReadFile(n.conf)
	if err != nil {
		n.t.Fatal(err)
	}
	return regexp.MustCompile(`listen ([0-9.:]+)`).FindStringSubmatch(string(conf))[1]
}

// writeUsage writes what the script of docs/foreign-storage.md writes.
func (n *Nginx) writeUsage() {
	for _, dev := range n.Devices {
		dir := filepath.Join(n.Docroot, "dev"+dev.String())
		var fs syscall.Statfs_t
		if err := syscall.Statfs(dir, &fs); err != nil {
			n.t.Errorf("statfs: %v", err)
			return
		}
		kib := uint64(fs.Bsize) / 1024
		used, available := (fs.Blocks-fs.Bfree)*kib, fs.Bavail*kib
		file := fmt.Sprintf("available: %d\ndevice: disk\ndisk: %s\ntime: %d\ntotal: %d\nuse: 1%%\nused: %d\n",
			available, dir, time.Now().Unix(), used+available, max(used, 1))
		err := os.WriteFile(filepath.Join(dir, ".usage"), []byte(file), 0o666)
		if err == nil {
			err = os.Rename(filepath.Join(dir, ".usage"), filepath.Join(dir, "usage"))
		}
		if err != nil {
			n.t.Errorf("usage file: %v", err)
		}
	}
}

// requests are the lines "METHOD uri status" of nginx's log that contain all of
// these.
func (n *Nginx) requests(parts ...string) []string {
	log, err := os.ReadFile(n.access)
	if err != nil {
		n.t.Fatal(err)
	}
	var found []string
	for line := range strings.Lines(string(log)) {
		line = strings.TrimSpace(line)
		if !slices.ContainsFunc(parts, func(p string) bool { return !strings.Contains(line, p) }) {
			found = append(found, line)
		}
	}
	return found
}

// asked waits until nginx's log has such a line: nginx writes it after it has
// replied.
func (n *Nginx) asked(t testing.TB, parts ...string) {
	t.Helper()
	within(t, 10*time.Second, "nginx is asked", func() error {
		if len(n.requests(parts...)) == 0 {
			return fmt.Errorf("no line with %q", parts)
		}
		return nil
	})
}

// upload is an upload that is open on a host that was asked for.
type upload struct{ key, fid, dev, path string }

// openOn opens an upload until a device of that address is offered.
func (c *Cluster) openOn(addr, key, class string) upload {
	c.t.Helper()
	for range 200 {
		got := c.Do("create_open", "domain="+domain, "key="+key, "class="+class, "multi_dest=1")
		for n := range got.Number("dev_count") {
			i := strconv.FormatInt(n+1, 10)
			if path := got.Get("path_" + i); strings.HasPrefix(path, "http://"+addr+"/") {
				return upload{key: key, fid: got.Get("fid"), dev: got.Get("devid_" + i), path: path}
			}
		}
	}
	c.t.Fatalf("%s is never offered", addr)
	return upload{}
}

func (c *Cluster) close(u upload, fields ...string) error {
	_, err := c.Try("create_close", append([]string{"domain=" + domain, "key=" + u.key, "fid=" + u.fid, "devid=" + u.dev, "path=" + u.path}, fields...)...)
	return err
}

// putOn stores a file on the host of that address first.
func (c *Cluster) putOn(addr, key, class string, body []byte) {
	c.t.Helper()
	u := c.openOn(addr, key, class)
	put(c.t, u.path, body)
	if err := c.close(u, fmt.Sprintf("size=%d", len(body))); err != nil {
		c.t.Fatalf("create_close %s: %v", key, err)
	}
}

// deviceField is a field of get_devices.
func (c *Cluster) deviceField(dev protocol.DevID, field string) string {
	c.t.Helper()
	got := c.Do("get_devices", "devid="+dev.String())
	for n := range got.Number("devices") {
		if i := strconv.FormatInt(n+1, 10); got.Get("dev"+i+"_devid") == dev.String() {
			return got.Get("dev" + i + "_" + field)
		}
	}
	c.t.Fatalf("no device %d: %s", dev, got)
	return ""
}

// TestNginxStorage: Debian's nginx as one of three storage hosts.
func TestNginxStorage(t *testing.T) {
	for _, fullPath := range []bool{true, false} {
		t.Run(fmt.Sprintf("create_full_put_path=%v", fullPath), func(t *testing.T) {
			nginxBinary(t)
			t.Parallel()
			c := StartCluster(t, Spec{Hosts: 2, Devices: 1})
			n := c.AddNginx(2, fullPath)
			addr := n.addr()
			for _, dev := range n.Devices {
				within(t, 10*time.Second, "nginx is known not to check Content-MD5", func() error {
					if got := c.deviceField(dev, "reject_bad_md5"); got != "0" {
						return fmt.Errorf("reject_bad_md5 of dev%d is %q", dev, got)
					}
					return nil
				})
			}
			if got := c.deviceField(1, "reject_bad_md5"); got != "1" {
				t.Errorf("reject_bad_md5 of dev1 is %q", got)
			}
			c.Do("create_class", "domain="+domain, "class=summed", "mindevcount=3", "hashtype=MD5")
			c.Do("create_class", "domain="+domain, "class=sha", "mindevcount=3", "hashtype=SHA-1")

			bodies := map[string][]byte{}
			rng := newRand(t)
			for i, size := range []int{0, 1, 11, 70_000, 3 << 20} {
				body := make([]byte, size)
				for j := range body {
					body[j] = byte(rng.Uint32())
				}
				for _, class := range []string{"triple", "summed", "sha"} {
					from, to := fmt.Sprintf("%s/from/%d", class, i), fmt.Sprintf("%s/to/%d", class, i)
					c.putOn(addr, from, class, body) // copied from nginx
					c.putOn(fmt.Sprintf("127.0.0.1:%d", c.Port), to, class, body)
					bodies[from], bodies[to] = body, body
				}
			}
			for key, body := range bodies {
				c.CheckFile(key, c.WaitPolicy(key, 3), body)
			}
			// What was copied to nginx is read back where there is a sum to compare.
			for _, key := range []string{"summed/to/3", "sha/to/4"} {
				for _, p := range c.WaitPolicy(key, 3) {
					if strings.Contains(p, addr) {
						within(t, 10*time.Second, "nginx is asked for what it was given", func() error {
							lines := n.requests(pathOf(p))
							for len(lines) > 0 && !strings.HasPrefix(lines[0], "PUT") { // a first try that failed was cleared away
								lines = lines[1:]
							}
							if len(lines) < 3 ||
								!slices.ContainsFunc(lines[1:], func(l string) bool { return strings.HasPrefix(l, "HEAD") }) ||
								!slices.ContainsFunc(lines[1:], func(l string) bool { return strings.HasPrefix(l, "GET") }) {
								return fmt.Errorf("%s: %q", key, lines)
							}
							return nil
						})
					}
				}
			}
			mkcols := n.requests("MKCOL")
			if !fullPath && len(n.requests("MKCOL", " 201")) == 0 {
				t.Errorf("no directory was made: %q", mkcols)
			}
			for _, line := range mkcols {
				if !strings.HasSuffix(line, " 201") && !strings.HasSuffix(line, " 405") {
					t.Errorf("%s", line)
				}
			}

			t.Run("sizes", func(t *testing.T) {
				u := c.openOn(addr, "sizes", "single")
				put(t, u.path, []byte("hello world"))
				if err := c.close(u, "size=12"); err == nil || !strings.Contains(err.Error(), "size_mismatch") ||
					!strings.Contains(err.Error(), "actual: 11") {
					t.Errorf("a wrong size: %v", err)
				}
				u = c.openOn(addr, "sizes", "single")
				if err := c.close(u, "size=12"); err == nil || !strings.Contains(err.Error(), "size_verify_error") ||
					!strings.Contains(err.Error(), "(missing)") {
					t.Errorf("nothing was put: %v", err)
				}
				n.asked(t, "HEAD "+pathOf(u.path)+" 404")
			})
			t.Run("checksumverify", func(t *testing.T) {
				sum := md5.Sum([]byte("hello world"))
				for _, right := range []bool{true, false} {
					u := c.openOn(addr, "sum", "single")
					body := []byte("hello world")
					if !right {
						body[3]++
					}
					put(t, u.path, body)
					err := c.close(u, "size=11", "checksumverify=1", "checksum=MD5:"+hex.EncodeToString(sum[:]))
					if right && err != nil || !right && (err == nil || !strings.Contains(err.Error(), "checksum_mismatch")) {
						t.Errorf("right %v: %v", right, err)
					}
					n.asked(t, "GET "+pathOf(u.path)+" 200")
				}
			})
			t.Run("overwrite and delete", func(t *testing.T) {
				c.putOn(addr, "over", "triple", []byte("first"))
				first := c.WaitPolicy("over", 3)
				c.putOn(addr, "over", "triple", []byte("second"))
				c.CheckFile("over", c.WaitPolicy("over", 3), []byte("second"))
				within(t, 30*time.Second, "the first is gone", func() error {
					for _, p := range first {
						if body, err := fetch(p); err == nil {
							return fmt.Errorf("%s: %q", p, body)
						}
					}
					return nil
				})
			})
			t.Run("stopped and started", func(t *testing.T) {
				n.Stop()
				within(t, 20*time.Second, "nginx is seen to be away", func() error {
					if s := c.deviceField(n.Devices[0], "observed_state"); s != "unreachable" {
						return fmt.Errorf("observed %q", s)
					}
					return nil
				})
				if err := c.Put("meanwhile", "triple", []byte("meanwhile")); err != nil {
					t.Fatal(err)
				}
				paths, err := c.Try("get_paths", "domain="+domain, "key=triple/from/3", "pathcount=9")
				if err != nil || strings.Contains(paths.String(), n.IP) {
					t.Errorf("paths while nginx is away: %s, %v", paths, err)
				}
				n.Start()
				c.WaitWriteable()
				c.Do("replicate_now")
				c.CheckFile("meanwhile", c.WaitPolicy("meanwhile", 3), []byte("meanwhile"))
				bodies["meanwhile"], bodies["over"], bodies["sum"] = nil, nil, nil
			})
			for key := range bodies {
				c.Do("delete", "domain="+domain, "key="+key)
			}
			c.WaitEmpty(time.Minute)
		})
	}
}

// AddForeign adds a host that is a storage daemon of another make to c, and
// waits until its devices take files.
func (c *Cluster) AddForeign(m storagetest.Make, ip string, devs ...protocol.DevID) *storagetest.Daemon {
	c.t.Helper()
	d := storagetest.Start(c.t, m, storagetest.Options{IP: ip, SidePort: c.Port + 1, Devices: devs})
	name := strings.ReplaceAll(m.Name, " ", "-") + "-" + ip
	c.Do("create_host", "host="+name, "ip="+ip, fmt.Sprintf("port=%d", d.Port), "status=alive")
	for _, dev := range devs {
		c.Do("create_device", "hostname="+name, "devid="+dev.String())
	}
	c.waitObserved("writeable", devs...)
	return d
}

func (c *Cluster) waitObserved(state string, devs ...protocol.DevID) {
	c.t.Helper()
	for _, dev := range devs {
		within(c.t, 30*time.Second, fmt.Sprintf("dev%d is %s", dev, state), func() error {
			if got := c.deviceField(dev, "observed_state"); got != state {
				return fmt.Errorf("observed %q", got)
			}
			return nil
		})
	}
}

// TestMixedFleet: storage daemons of every make in one cluster.
func TestMixedFleet(t *testing.T) {
	t.Parallel()
	c := StartCluster(t, Spec{Hosts: 1, Devices: 1})
	var fleet []*storagetest.Daemon
	for i, m := range storagetest.Makes() {
		d := c.AddForeign(m, fmt.Sprintf("127.0.0.%d", i+2), protocol.DevID(10+i))
		fleet = append(fleet, d)
	}
	for i, d := range fleet {
		dev := protocol.DevID(10 + i)
		within(t, 30*time.Second, "what is to be known of "+d.Make.Name, func() error {
			md5, util := map[bool]string{true: "1", false: "0"}[d.Make.ChecksMD5], map[bool]string{true: "0.50", false: ""}[d.Make.Side]
			if got := c.deviceField(dev, "reject_bad_md5"); got != md5 {
				return fmt.Errorf("reject_bad_md5 is %q", got)
			}
			if got := c.deviceField(dev, "utilization"); got != util && !(util == "" && got == "-") {
				return fmt.Errorf("utilization is %q", got)
			}
			return nil
		})
	}
	// A copy on each of six hosts.
	c.Do("create_class", "domain="+domain, "class=everywhere", "mindevcount=6", "hashtype=MD5")
	bodies := map[string][]byte{"empty": {}, "small": []byte("hello world"), "large": bytes.Repeat([]byte("0123456789"), 100_000)}
	for key, body := range bodies {
		for _, d := range fleet {
			name := key + " on " + d.Make.Name
			c.putOn(net.JoinHostPort(d.IP, strconv.Itoa(d.Port)), name, "everywhere", body)
		}
	}
	for key, body := range bodies {
		for _, d := range fleet {
			name := key + " on " + d.Make.Name
			c.CheckFile(name, c.WaitPolicy(name, 6), body)
			verified := c.Do("get_paths", "domain="+domain, "key="+name)
			if _, err := fetch(verified.Get("path1")); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			c.Do("delete", "domain="+domain, "key="+name)
		}
	}
	within(t, time.Minute, "every daemon has let go of every file", func() error {
		for _, d := range fleet {
			if left := d.Files(); len(left) > 0 {
				return fmt.Errorf("%s has %d, such as %s", d.Make.Name, len(left), left[0])
			}
		}
		return nil
	})
	c.WaitEmpty(time.Minute)
}

// TestS3BackedDevice: a device that says that it is 99 % full gets no files,
// neither from clients nor as copies, and what it has is read.
func TestS3BackedDevice(t *testing.T) {
	t.Parallel()
	c := StartCluster(t, Spec{Hosts: 1, Devices: 1})
	d := c.AddForeign(storagetest.Nginx(), "127.0.0.2", 10)
	addr := net.JoinHostPort(d.IP, strconv.Itoa(d.Port))
	c.putOn(addr, "there", "single", []byte("hello world"))
	d.Put("/dev10/usage", []byte("available: 1024\ndevice: s3\ndisk: /var/mogdata/dev10\ntime: 1\ntotal: 102400\nuse: 99%\nused: 101376\n"))
	within(t, 40*time.Second, "the tracker knows that it is full", func() error {
		if free := c.deviceField(10, "mb_free"); free != "1" {
			return fmt.Errorf("mb_free is %q", free)
		}
		return nil
	})
	for i := range 30 {
		got := c.Do("create_open", "domain="+domain, fmt.Sprintf("key=other%d", i), "multi_dest=1")
		if got.Number("dev_count") != 1 || got.Get("devid_1") != "1" {
			t.Fatalf("offered: %s", got)
		}
	}
	if s := c.deviceField(10, "observed_state"); s != "writeable" && s != "readable" {
		t.Errorf("observed %q", s)
	}
	got := c.Do("get_paths", "domain="+domain, "key=there")
	if body, err := fetch(got.Get("path1")); err != nil || string(body) != "hello world" {
		t.Errorf("%s: %q, %v", got, body, err)
	}
	before := len(d.Files())
	c.putOn(fmt.Sprintf("127.0.0.1:%d", c.Port), "elsewhere", "default", []byte("x"))
	c.Do("replicate_now")
	c.waitObserved("writeable", 1)
	if now := len(d.Files()); now != before {
		t.Errorf("%d files came", now-before)
	}
}

// TestForeignHostMisbehaves plays every way to misbehave on one host of three
// while clients store files: whatever was acknowledged has its copies in the
// end, each of them whole; and no client waits long for the others.
func TestForeignHostMisbehaves(t *testing.T) {
	t.Parallel()
	c := StartCluster(t, Spec{Hosts: 1, Devices: 2, TrackerArgs: []string{"--node-timeout", "1s", "--conn-timeout", "1s"}})
	well := c.AddForeign(storagetest.Cmogstored(), "127.0.0.2", 10)
	odd := c.AddForeign(storagetest.Mogstored(), "127.0.0.3", 11)
	oddAddr := net.JoinHostPort(odd.IP, strconv.Itoa(odd.Port))
	c.Do("create_class", "domain="+domain, "class=summed", "mindevcount=3", "hashtype=MD5", "replpolicy=MultipleHosts(3)")

	// An uploader that gives up the odd destination after a second, and has the
	// tracker verify what it stored.
	store := func(key string, body []byte, oddFirst bool) error {
		client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
		if oddFirst {
			client.Timeout = time.Second
		}
		sum := md5.Sum(body)
		u := upload{}
		if oddFirst {
			got, err := c.Try("create_open", "domain="+domain, "key="+key, "class=summed", "multi_dest=1")
			if err != nil {
				return err
			}
			for n := range got.Number("dev_count") {
				i := strconv.FormatInt(n+1, 10)
				if v := (upload{key, got.Get("fid"), got.Get("devid_" + i), got.Get("path_" + i)}); u.fid == "" || strings.Contains(v.path, oddAddr) {
					u = v
				}
			}
		} else {
			u = c.openOn(fmt.Sprintf("127.0.0.1:%d", c.Port), key, "summed")
		}
		req, err := http.NewRequest(http.MethodPut, u.path, bytes.NewReader(body))
		if err != nil {
			return err
		}
		resp, err := client.Do(req)
		if err != nil {
			return err
		}
		_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 1<<20))
		resp.Body.Close()
		if resp.StatusCode/100 != 2 {
			return fmt.Errorf("PUT %s: %s", u.path, resp.Status)
		}
		return c.close(u, fmt.Sprintf("size=%d", len(body)), "checksumverify=1", "checksum=MD5:"+hex.EncodeToString(sum[:]))
	}
	acknowledged := map[string][]byte{}
	// In the small run every third, another one each time.
	every := 3
	if scale(1) >= 10 {
		every = 1
	}
	first := newRand(t).IntN(every)
	for i, trick := range storagetest.Tricks(300 * time.Millisecond) {
		// A daemon that refuses a wrong Content-MD5 is believed when it accepts a
		// right one, by MogileFS too: its copies are not read back.
		if trick.Name == "stores other bytes" || i%every != first {
			continue
		}
		body := bytes.Repeat([]byte(trick.Name+"\n"), 500)
		keep := fmt.Sprintf("keep/%d", i)
		if err := store(keep, body, false); err != nil {
			t.Fatalf("%s: %v", trick.Name, err)
		}
		acknowledged[keep] = body
		odd.Play(trick.Play)
		for j, oddFirst := range []bool{true, false} {
			key := fmt.Sprintf("during/%d/%d", i, j)
			began := time.Now()
			err := store(key, body, oddFirst)
			if err == nil {
				acknowledged[key] = body
			} else if !oddFirst {
				t.Errorf("%s: a file on another host: %v", trick.Name, err)
			}
			if took := time.Since(began); took > 15*time.Second {
				t.Errorf("%s: took %v", trick.Name, took)
			}
		}
		began := time.Now()
		got, err := c.Try("get_paths", "domain="+domain, "key="+keep)
		if err != nil || got.Number("paths") < 1 {
			t.Errorf("%s: get_paths: %s, %v", trick.Name, got, err)
		}
		if took := time.Since(began); took > 10*time.Second {
			t.Errorf("%s: get_paths took %v", trick.Name, took)
		}
		odd.Play(nil)
		odd.CloseConnections()
	}
	c.waitObserved("writeable", 1, 2, 10, 11)
	t.Logf("%d files acknowledged", len(acknowledged))
	within(t, 2*time.Minute, "nothing is queued for replication", func() error {
		c.Do("replicate_now") // what failed while the host misbehaved is put off for minutes
		if n := c.count("SELECT count(*) FROM file_to_replicate"); n > 0 {
			return fmt.Errorf("%d rows", n)
		}
		return nil
	})
	for key, body := range acknowledged {
		c.CheckFile(key, c.WaitPolicy(key, 3), body)
	}
	for _, d := range []*storagetest.Daemon{well, odd} {
		if len(d.Files()) < len(acknowledged) {
			t.Errorf("%s has %d files", d.Make.Name, len(d.Files()))
		}
	}
}
