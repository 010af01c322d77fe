package e2e

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// storageHost is a storage daemon under a name of MogileFS's, started from a
// configuration file. It may be replaced by other processes.
type storageHost struct {
	t       testing.TB
	dir     string // of everything below
	docroot string
	conf    string
	pidfile string
	program string // a link to the binary
	port    int    // HTTP; then the side channel, the get port, the status port
	log     string
	cmd     *exec.Cmd // as it was started first
	done    chan struct{}
	exit    error // valid once done is closed
}

// newStorageHost prepares a host with two devices, of which extra lines are in
// the configuration file.
func newStorageHost(t testing.TB, name string, extra ...string) *storageHost {
	t.Helper()
	dir := t.TempDir()
	h := &storageHost{
		t: t, dir: dir, docroot: filepath.Join(dir, "data"), conf: filepath.Join(dir, "mogstored.conf"),
		pidfile: filepath.Join(dir, "pid"), program: filepath.Join(dir, name), log: filepath.Join(dir, "log"),
		port: freePorts(t, 4, "127.0.0.1"),
	}
	for _, dev := range []string{"dev1", "dev2"} {
		if err := os.MkdirAll(filepath.Join(h.docroot, dev), 0o777); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(binary, h.program); err != nil {
		t.Fatal(err)
	}
	h.configure(extra...)
	t.Cleanup(func() {
		for _, path := range []string{h.pidfile, h.pidfile + ".oldbin"} {
			if pid := pidIn(path); pid > 0 {
				_ = syscall.Kill(pid, syscall.SIGKILL) // it may have ended
			}
		}
		if h.cmd != nil {
			_ = h.cmd.Process.Kill() // it may have ended
			<-h.done
		}
		if b, err := os.ReadFile(h.log); err == nil {
			if t.Failed() {
				t.Logf("log of %s:\n%s", name, tail(b, 60))
			}
			if bytes.Contains(b, []byte("WARNING: DATA RACE")) {
				t.Errorf("%s has a data race:\n%s", name, b)
			}
		}
	})
	return h
}

// configure writes the configuration file.
func (h *storageHost) configure(extra ...string) {
	h.t.Helper()
	text := fmt.Sprintf("# a host\ndocroot = %s\nhttplisten = %s\nmgmtlisten = %s # the side channel\nhttpgetlisten = %s\npidfile = %s\n%s\n",
		h.docroot, h.addr(0), h.addr(1), h.addr(2), h.pidfile, strings.Join(extra, "\n"))
	if err := os.WriteFile(h.conf, []byte(text), 0o666); err != nil {
		h.t.Fatal(err)
	}
}

func (h *storageHost) addr(n int) string { return fmt.Sprintf("127.0.0.1:%d", h.port+n) }

func (h *storageHost) url(path string) string { return "http://" + h.addr(0) + path }

// start runs the daemon, and waits until it serves.
func (h *storageHost) start(args ...string) {
	h.t.Helper()
	h.run(args...)
	h.waitServing()
}

func (h *storageHost) run(args ...string) {
	h.t.Helper()
	out, err := os.OpenFile(h.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o666)
	if err != nil {
		h.t.Fatal(err)
	}
	defer out.Close()
	h.cmd = exec.Command(h.program, append([]string{"--config=" + h.conf}, args...)...)
	h.cmd.Stdout, h.cmd.Stderr = out, out
	if err := h.cmd.Start(); err != nil {
		h.t.Fatal(err)
	}
	h.done = make(chan struct{})
	go func() {
		h.exit = h.cmd.Wait()
		close(h.done)
	}()
}

func (h *storageHost) waitServing() {
	h.t.Helper()
	within(h.t, 20*time.Second, "the daemon serves", func() error {
		_, err := fetch(h.url("/dev1/usage"))
		return err
	})
}

// ended waits for the process that was started first, which must succeed.
func (h *storageHost) ended(d time.Duration) {
	h.t.Helper()
	select {
	case <-h.done:
		if h.exit != nil {
			h.t.Errorf("the daemon ended with %v", h.exit)
		}
	case <-time.After(d):
		h.t.Fatalf("the daemon has not ended in %v", d)
	}
}

// pidIn is the process id in a file, 0 where there is none.
func pidIn(path string) int {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		return 0
	}
	return pid
}

// signal signals the process that serves.
func (h *storageHost) signal(s syscall.Signal) {
	h.t.Helper()
	pid := pidIn(h.pidfile)
	if pid == 0 {
		h.t.Fatal("no pidfile")
	}
	if err := syscall.Kill(pid, s); err != nil {
		h.t.Fatal(err)
	}
}

// restart has the daemon replaced, and returns when another process serves.
func (h *storageHost) restart() {
	h.t.Helper()
	before := pidIn(h.pidfile)
	h.signal(syscall.SIGUSR2)
	within(h.t, 30*time.Second, "another process serves", func() error {
		if now := pidIn(h.pidfile); now == 0 || now == before {
			return fmt.Errorf("pid %d, before %d", now, before)
		}
		b, err := os.ReadFile(h.log)
		if err == nil && !bytes.Contains(b, fmt.Appendf(nil, `"pid":%d,`, pidIn(h.pidfile))) {
			err = errors.New("the old process has not handed over")
		}
		return err
	})
}

// oldEnded waits until the process that was replaced has ended.
func (h *storageHost) oldEnded() {
	h.t.Helper()
	within(h.t, 30*time.Second, "the old process ends", func() error {
		if pid := pidIn(h.pidfile + ".oldbin"); pid > 0 {
			return fmt.Errorf("process %d", pid)
		}
		return nil
	})
}

// logged waits until the log has the text.
func (h *storageHost) logged(text string) {
	h.t.Helper()
	within(h.t, 20*time.Second, "log", func() error {
		b, err := os.ReadFile(h.log)
		if err == nil && !strings.Contains(string(b), text) {
			err = fmt.Errorf("nothing of %q", text)
		}
		return err
	})
}

// partialPut is a PUT that was begun.
type partialPut struct {
	net.Conn
	t testing.TB
}

// beginUpload sends all of a PUT but its last byte.
func (h *storageHost) beginUpload(path string, body []byte) partialPut {
	h.t.Helper()
	conn, err := net.Dial("tcp", h.addr(0))
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { conn.Close() })
	fmt.Fprintf(conn, "PUT %s HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n", path, len(body))
	// The answer tells that the request is at work.
	line, err := bufio.NewReader(io.LimitReader(conn, 25)).ReadString('\n')
	if err != nil || !strings.HasPrefix(line, "HTTP/1.1 100") {
		h.t.Fatalf("PUT: %q, %v", line, err)
	}
	if _, err := conn.Write(body[:len(body)-1]); err != nil {
		h.t.Fatal(err)
	}
	return partialPut{conn, h.t}
}

// finish sends the last byte, and returns the status, 0 where the connection
// was cut.
func (u partialPut) finish(last byte) int {
	u.t.Helper()
	if err := u.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		u.t.Fatal(err)
	}
	_, _ = u.Write([]byte{last}) // seen by what is answered
	resp, err := http.ReadResponse(bufio.NewReader(u), nil)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		u.t.Fatal("an upload is not answered")
	}
	if err != nil {
		return 0
	}
	return resp.StatusCode
}

// TestRestartUnderLoad replaces a daemon five times while clients read and
// write. None is refused, no upload is lost, and those that are under way
// complete.
func TestRestartUnderLoad(t *testing.T) {
	t.Parallel()
	h := newStorageHost(t, "mogstored")
	h.start("--status-listen=" + h.addr(3))
	ctx, stop := context.WithCancel(context.Background())
	defer stop()

	var clients sync.WaitGroup
	var requests, closedIdle atomic.Int64
	var mu sync.Mutex // guards stored
	stored := make(map[string]string)
	// loop sends PUT and GET in turn. A new connection must not fail; one that is
	// used again the daemon may have closed.
	loop := func(client int, keepAlive bool) {
		transport := &http.Transport{DisableKeepAlives: !keepAlive}
		defer transport.CloseIdleConnections()
		hc := &http.Client{Transport: transport, Timeout: 30 * time.Second}
		for n := 0; ctx.Err() == nil; n++ {
			path := fmt.Sprintf("/dev%d/0/000/%03d/%010d.fid", 1+n%2, client, n)
			body := fmt.Sprintf("client %d, file %d", client, n)
			send := func(method, body string) (string, int) {
				for {
					reused := false
					tctx := httptrace.WithClientTrace(context.Background(), &httptrace.ClientTrace{
						GotConn: func(i httptrace.GotConnInfo) { reused = i.Reused },
					})
					req, err := http.NewRequestWithContext(tctx, method, h.url(path), strings.NewReader(body))
					if err != nil {
						t.Error(err)
						return "", 0
					}
					resp, err := hc.Do(req)
					var got []byte
					if err == nil {
						got, err = io.ReadAll(resp.Body)
						resp.Body.Close()
					}
					requests.Add(1)
					switch {
					case err == nil:
						return string(got), resp.StatusCode
					case reused:
						closedIdle.Add(1)
					default:
						t.Errorf("%s %s: %v", method, path, err)
						return "", 0
					}
				}
			}
			if _, status := send("PUT", body); status != http.StatusCreated {
				t.Errorf("PUT %s: %d", path, status)
				return
			}
			mu.Lock()
			stored[path] = body
			mu.Unlock()
			if got, status := send("GET", ""); status != http.StatusOK || got != body {
				t.Errorf("GET %s: %d, %q", path, status, got)
				return
			}
		}
	}
	for i := range 4 {
		clients.Go(func() { loop(i, i >= 2) })
	}
	clients.Go(func() { // the side channel, and the get port
		for ctx.Err() == nil {
			for i, ask := range []string{"size /dev1/usage\r\n", "GET /dev1/usage HTTP/1.0\r\n\r\n"} {
				conn, err := net.Dial("tcp", h.addr(1+i))
				if err != nil {
					t.Error(err)
					return
				}
				_ = conn.SetDeadline(time.Now().Add(20 * time.Second)) // fails only where Write does
				_, err = io.WriteString(conn, ask)
				var line string
				if err == nil {
					line, err = bufio.NewReader(conn).ReadString('\n')
				}
				if err != nil || !strings.HasPrefix(line, "/dev1/usage ") && !strings.HasPrefix(line, "HTTP/1.1 200") {
					t.Errorf("%q: %q, %v", ask, line, err)
				}
				conn.Close()
				requests.Add(1)
			}
		}
	})

	body := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	pids := map[int]bool{pidIn(h.pidfile): true}
	for i := range 5 {
		begun := requests.Load()
		path := fmt.Sprintf("/dev1/0/000/900/%010d.fid", 900000+i)
		slow := h.beginUpload(path, body)
		h.restart()
		within(t, 20*time.Second, "the new process answers", func() error {
			if n := requests.Load(); n < begun+20 {
				return fmt.Errorf("%d requests", n-begun)
			}
			return nil
		})
		if status := slow.finish(body[len(body)-1]); status != http.StatusCreated {
			t.Errorf("upload over restart %d: status %d", i, status)
		}
		slow.Close()
		mu.Lock()
		stored[path] = string(body)
		mu.Unlock()
		h.oldEnded()
		pids[pidIn(h.pidfile)] = true
	}
	stop()
	clients.Wait()
	if len(pids) != 6 {
		t.Errorf("processes %v", pids)
	}
	h.ended(20 * time.Second)
	for path, want := range stored {
		if got, err := fetch(h.url(path)); err != nil || string(got) != want {
			t.Errorf("%s: %d bytes, %v", path, len(got), err)
		}
	}
	if answer, err := fetch("http://" + h.addr(3) + "/readyz"); err != nil {
		t.Errorf("readyz: %q, %v", answer, err)
	}
	t.Logf("%d requests, %d files, %d kept connections were closed while idle", requests.Load(), len(stored), closedIdle.Load())
	h.signal(syscall.SIGQUIT)
	within(t, 20*time.Second, "the last process ends", func() error {
		if pid := pidIn(h.pidfile); pid > 0 {
			return fmt.Errorf("process %d", pid)
		}
		return nil
	})
}

// TestRestartFails: where the new process does not come up, the old one goes on.
func TestRestartFails(t *testing.T) {
	t.Parallel()
	h := newStorageHost(t, "mogstored")
	h.start()
	pid := pidIn(h.pidfile)
	check := func(why string) {
		t.Helper()
		h.logged(why)
		within(t, 20*time.Second, "the pidfile is back", func() error {
			if now := pidIn(h.pidfile); now != pid {
				return fmt.Errorf("it has %d, not %d", now, pid)
			}
			return nil
		})
		if old := pidIn(h.pidfile + ".oldbin"); old != 0 {
			t.Errorf("%s.oldbin has %d", h.pidfile, old)
		}
		if _, err := fetch(h.url("/dev1/usage")); err != nil {
			t.Error(err)
		}
	}
	h.configure("bogus = 1")
	h.signal(syscall.SIGUSR2)
	check("ended with exit code 1")
	h.logged("mogstored.conf:7: unknown key")

	h.configure()
	if err := errors.Join(os.Remove(h.program), os.WriteFile(h.program, []byte("no program"), 0o777)); err != nil {
		t.Fatal(err)
	}
	h.signal(syscall.SIGUSR2)
	check("exec format error")

	if err := errors.Join(os.Remove(h.program), os.Symlink(binary, h.program)); err != nil {
		t.Fatal(err)
	}
	h.restart()
	h.oldEnded()
	h.waitServing()
	h.ended(20 * time.Second)
}

// TestEndOfStorageDaemon: which signals and commands let an upload finish, under
// which name.
func TestEndOfStorageDaemon(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, how string
		finishes  bool
	}{
		{"mogstored", "TERM", false},
		{"mogstored", "INT", false},
		{"mogstored", "QUIT", true},
		{"mogstored", "shutdown", false},
		{"mogstored", "shutdown graceful", true},
		{"cmogstored", "TERM", true},
		{"cmogstored", "INT", true},
		{"cmogstored", "QUIT", true},
		{"cmogstored", "shutdown", true},
		{"mogile", "TERM", true},
		{"mogile", "QUIT", true},
		{"mogile", "shutdown", true},
	} {
		t.Run(c.name+" "+c.how, func(t *testing.T) {
			t.Parallel()
			h := newStorageHost(t, c.name)
			if c.name == "mogile" {
				// Its command line differs: the program's name is an argument.
				link := h.program
				h.program = filepath.Join(h.dir, "start")
				script := fmt.Sprintf("#!/bin/sh\nexec %s storaged \"$@\"\n", link)
				if err := os.WriteFile(h.program, []byte(script), 0o777); err != nil {
					t.Fatal(err)
				}
			}
			h.start()
			u := h.beginUpload("/dev1/f", []byte("hello"))
			switch signal, ok := map[string]syscall.Signal{"TERM": syscall.SIGTERM, "INT": syscall.SIGINT, "QUIT": syscall.SIGQUIT}[c.how]; {
			case ok:
				h.signal(signal)
			default:
				conn, err := net.Dial("tcp", h.addr(1))
				if err != nil {
					t.Fatal(err)
				}
				defer conn.Close()
				fmt.Fprintf(conn, "%s\r\n", c.how)
			}
			within(t, 20*time.Second, "nobody listens", func() error {
				conn, err := net.Dial("tcp", h.addr(0))
				if err == nil {
					conn.Close()
					return errors.New("somebody does")
				}
				return nil
			})
			if !c.finishes {
				h.ended(20 * time.Second) // without the rest of the upload
			}
			if status := u.finish('o'); (status == http.StatusCreated) != c.finishes || status != 0 && status != http.StatusCreated {
				t.Errorf("the upload: status %d", status)
			}
			h.ended(20 * time.Second)
			got, err := os.ReadFile(filepath.Join(h.docroot, "dev1/f"))
			if c.finishes && string(got) != "hello" || !c.finishes && !errors.Is(err, os.ErrNotExist) {
				t.Errorf("stored %q, %v", got, err)
			}
			if _, err := os.Stat(h.pidfile); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("the pidfile is left: %v", err)
			}
		})
	}
}

// TestMogstoredInBackground starts, replaces and ends a daemon as init scripts do.
func TestMogstoredInBackground(t *testing.T) {
	t.Parallel()
	h := newStorageHost(t, "mogstored", "daemonize = 1", "durability = none")
	socket, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(h.dir, "syslog"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	var mu sync.Mutex
	var lines strings.Builder
	var reading sync.WaitGroup
	reading.Go(func() {
		buf := make([]byte, 64<<10)
		for {
			n, err := socket.Read(buf)
			if err != nil {
				return
			}
			mu.Lock()
			lines.Write(append(buf[:n], '\n'))
			mu.Unlock()
		}
	})
	told := func(text string) {
		t.Helper()
		within(t, 20*time.Second, "syslog", func() error {
			mu.Lock()
			defer mu.Unlock()
			if !strings.Contains(lines.String(), text) {
				return fmt.Errorf("nothing of %q in:\n%s", text, lines.String())
			}
			return nil
		})
	}
	command := func(args ...string) (string, error) {
		cmd := exec.Command(h.program, append(args, "--config="+h.conf)...)
		cmd.Env = append(os.Environ(), "MOGILE_SYSLOG="+filepath.Join(h.dir, "syslog"))
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	if out, err := command(); err != nil || out != "" {
		t.Fatalf("%v\n%s", err, out)
	}
	// It serves by now.
	if _, err := fetch(h.url("/dev1/usage")); err != nil {
		t.Error(err)
	}
	pid := pidIn(h.pidfile)
	told(fmt.Sprintf("mogstored[%d]: ", pid))
	told(`"durability":"none"`)
	if out, err := command(); err == nil || !strings.Contains(out, fmt.Sprintf("already running on PID: %d", pid)) {
		t.Errorf("a second one: %v\n%s", err, out)
	}
	if now := pidIn(h.pidfile); now != pid {
		t.Errorf("the pidfile has %d, not %d", now, pid)
	}
	h.signal(syscall.SIGUSR2)
	told("another process has taken over")
	h.oldEnded()
	h.waitServing()
	if now := pidIn(h.pidfile); now == pid || now == 0 {
		t.Errorf("the pidfile has %d, before it had %d", now, pid)
	}
	h.signal(syscall.SIGTERM)
	within(t, 20*time.Second, "it ends", func() error {
		if pid := pidIn(h.pidfile); pid > 0 {
			return fmt.Errorf("process %d", pid)
		}
		return nil
	})
	socket.Close()
	reading.Wait()
}

// TestMogstoredOptions looks at what configuration files and command lines do to
// real daemons.
func TestMogstoredOptions(t *testing.T) {
	t.Parallel()
	listens := func(addr string) bool {
		conn, err := net.Dial("tcp", addr)
		if err == nil {
			conn.Close()
		}
		return err == nil
	}
	t.Run("no HTTP server", func(t *testing.T) {
		t.Parallel()
		h := newStorageHost(t, "mogstored", "server = none")
		h.run()
		within(t, 20*time.Second, "the side channel", func() error {
			if !listens(h.addr(1)) {
				return errors.New("does not answer")
			}
			return nil
		})
		if listens(h.addr(0)) || listens(h.addr(2)) {
			t.Error("HTTP is served")
		}
		within(t, 20*time.Second, "usage file", func() error {
			_, err := os.Stat(filepath.Join(h.docroot, "dev2/usage"))
			return err
		})
	})
	t.Run("several docroots", func(t *testing.T) {
		t.Parallel()
		h, other := newStorageHost(t, "cmogstored"), newStorageHost(t, "cmogstored")
		other.pidfile = h.pidfile
		other.configure("what = this")
		h.start("--multi", "--config="+other.conf)
		other.waitServing()
		h.logged("is not understood, and left out")
		h.restart()
		h.oldEnded()
		h.waitServing()
		other.waitServing()
	})
	t.Run("flags and variables beat the file of mogile storaged", func(t *testing.T) {
		t.Parallel()
		h := newStorageHost(t, "mogile", "usage-interval = 1s", "daemonize = 0", "server = nginx")
		p := &Process{t: t, name: "storaged", log: h.log,
			args: []string{"storaged", "--config", h.conf, "--http-get-listen", "", "--pidfile", h.pidfile + ".flag"},
			env:  []string{"MOGILE_MGMT_LISTEN=" + h.addr(3)}}
		p.Start()
		defer p.Kill()
		h.waitServing()
		if listens(h.addr(2)) || listens(h.addr(1)) || !listens(h.addr(3)) {
			t.Error("listens elsewhere")
		}
		if pidIn(h.pidfile) != 0 || pidIn(h.pidfile+".flag") != p.cmd.Process.Pid {
			t.Error("the pidfile is elsewhere")
		}
		h.logged("server has no effect")
		p.Stop()
	})
	t.Run("errors", func(t *testing.T) {
		t.Parallel()
		h := newStorageHost(t, "mogstored", "htttplisten = 7500", "maxconns = many")
		for _, c := range []struct {
			args []string
			code int
			says []string
		}{
			{nil, 1, []string{"mogstored.conf:7: unknown key \"htttplisten\"", "mogstored.conf:8: maxconns"}},
			{[]string{"--bogus"}, 2, []string{"unknown option: --bogus", "--help"}},
			{[]string{"--help"}, 0, []string{"--httplisten=ADDR"}},
			{[]string{"--version"}, 0, []string{"mogile version"}},
			{[]string{"-s", "--docroot=/nonexistent", "--httplisten=" + h.addr(0), "--mgmtlisten=" + h.addr(1)}, 1, []string{"/nonexistent"}},
		} {
			out, err := exec.Command(h.program, append([]string{"--config=" + h.conf}, c.args...)...).CombinedOutput()
			code := 0
			if exit, ok := errors.AsType[*exec.ExitError](err); ok {
				code = exit.ExitCode()
			}
			if code != c.code {
				t.Errorf("%q: %v", c.args, err)
			}
			for _, want := range c.says {
				if !strings.Contains(string(out), want) {
					t.Errorf("%q: nothing of %q in\n%s", c.args, want, out)
				}
			}
		}
	})
}

// TestFewDescriptors: with few descriptors fewer connections are taken, so that
// requests have some; where they run out all the same idle connections make room,
// the daemon does not spin, and no device suffers.
func TestFewDescriptors(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		limit  int
		runOut bool
	}{{128, false}, {40, true}} {
		t.Run(strconv.Itoa(c.limit), func(t *testing.T) {
			t.Parallel()
			h := newStorageHost(t, "mogstored")
			link := h.program
			h.program = filepath.Join(h.dir, "start")
			if err := os.WriteFile(h.program, fmt.Appendf(nil, "#!/bin/sh\nulimit -n %d\nexec %s \"$@\"\n", c.limit, link), 0o777); err != nil {
				t.Fatal(err)
			}
			h.start("--status-listen=" + h.addr(3))
			status := &http.Client{Timeout: 20 * time.Second} // which keeps its connection
			failures := func(metrics string) float64 {
				n := -1.0
				for line := range strings.Lines(metrics) {
					if _, err := fmt.Sscanf(line, "mogile_storaged_accept_failures_total %g", &n); err == nil {
						break
					}
				}
				return n
			}
			metrics := func() string {
				t.Helper()
				resp, err := status.Get("http://" + h.addr(3) + "/metrics")
				if err != nil {
					t.Fatal(err)
				}
				defer resp.Body.Close()
				b, err := io.ReadAll(resp.Body)
				if err != nil {
					t.Fatal(err)
				}
				return string(b)
			}
			metrics()
			h.logged("so few files may be open that fewer connections are taken")
			for i := range 80 {
				conn, err := net.Dial("tcp", h.addr(i%2*2)) // one on the get port, too
				if err != nil {
					t.Fatal(err)
				}
				defer conn.Close()
				fmt.Fprint(conn, "HEAD / HTTP/1.1\r\nHost: x\r\n\r\n")
			}
			if c.runOut {
				h.logged("connections cannot be accepted")
			}
			began, before := time.Now(), failures(metrics())
			// A kept connection may have been closed for one of the eighty.
			fresh := &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
			for i := range 3 {
				path := fmt.Sprintf("/dev1/0/000/000/%010d.fid", i)
				put := func() error {
					req, err := http.NewRequest("PUT", h.url(path), strings.NewReader("hello"))
					if err != nil {
						return err
					}
					resp, err := fresh.Do(req)
					if err != nil {
						return err
					}
					resp.Body.Close()
					if resp.StatusCode != http.StatusCreated {
						return errors.New(resp.Status)
					}
					return nil
				}
				if !c.runOut {
					if err := put(); err != nil {
						t.Error(err)
					}
					continue
				}
				within(t, 30*time.Second, "an upload", put)
			}
			took := time.Since(began)
			text := metrics()
			// Two listeners try ten times a second.
			all := failures(text)
			if limit := 20 + 25*took.Seconds(); c.runOut == (all == 0) || before < 0 || all-before > limit {
				t.Errorf("%v attempts to accept failed, %v of them in %v", all, all-before, took)
			}
			if !strings.Contains(text, `mogile_device_flush_failed{devid="1"} 0`) {
				t.Error("the device takes no more writes")
			}
		})
	}
}

// TestNoDeviceServed: a daemon all of whose devices are refused is not ready.
func TestNoDeviceServed(t *testing.T) {
	t.Parallel()
	h := newStorageHost(t, "mogstored", "require-mount = 1")
	h.run("--status-listen=" + h.addr(3))
	within(t, 20*time.Second, "the status port", func() error {
		resp, err := httpClient.Get("http://" + h.addr(3) + "/readyz")
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err == nil && (resp.StatusCode != http.StatusServiceUnavailable || !bytes.Contains(b, []byte("nothing is mounted"))) {
			err = fmt.Errorf("%s: %s", resp.Status, b)
		}
		return err
	})
	b, err := fetch("http://" + h.addr(3) + "/metrics")
	if err != nil || !bytes.Contains(b, []byte(`mogile_device_refused{devid="2"} 1`)) {
		t.Errorf("no metric of the refused device: %v\n%s", err, b)
	}
}

// TestAutomountCommand: both names give the exit codes of mogautomount. Block
// devices are the business of its own tests.
func TestAutomountCommand(t *testing.T) {
	t.Parallel()
	link := filepath.Join(t.TempDir(), "mogautomount")
	if err := os.Symlink(binary, link); err != nil {
		t.Fatal(err)
	}
	for _, cmd := range [][]string{{link}, {binary, "automount"}} {
		for arg, want := range map[string]int{"--help": 0, "--bogus": 1} {
			out, err := exec.Command(cmd[0], append(cmd[1:], arg)...).CombinedOutput()
			code := 0
			if exit, ok := errors.AsType[*exec.ExitError](err); ok {
				code = exit.ExitCode()
			}
			if code != want || !strings.Contains(string(out), "--chmod-mountpoints") {
				t.Errorf("%q %s: %v\n%s", cmd, arg, err, out)
			}
		}
	}
}
