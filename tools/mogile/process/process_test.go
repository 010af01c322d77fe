//go:build unix

package process

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// role in the environment has the test binary play a daemon.
const role = "MOGILE_TEST_PROCESS_ROLE"

func TestMain(m *testing.M) {
	if play, ok := os.LookupEnv(role); ok {
		os.Exit(daemon(play))
	}
	goleak.VerifyTestMain(m)
}

// daemon is what runs in processes that tests start: it follows play, "WHAT
// FILE".
func daemon(play string) int {
	what, path, _ := strings.Cut(play, " ")
	self, err := Self()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 3
	}
	parent := Inherited()
	if Inherited() != nil {
		fmt.Fprintln(os.Stderr, "two parents")
		return 3
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	err = Background(ctx, self, parent, os.Stderr, func(ctx context.Context, ready func() error) error {
		pid, err := WritePidfile(path)
		if err != nil {
			return err
		}
		switch what {
		case "fail":
			return errors.Join(errors.New("no listener"), pid.Remove())
		case "die":
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		case "hang":
			<-ctx.Done()
		}
		fmt.Fprintln(os.Stderr, "starting")
		if err := ready(); err != nil {
			return err
		}
		fmt.Fprintln(os.Stderr, "nobody hears this")
		// A script that turns logs over sends it to whatever has a pidfile.
		if err := syscall.Kill(os.Getpid(), syscall.SIGHUP); err != nil {
			return err
		}
		wd, err := os.Getwd()
		if err != nil {
			return err
		}
		old := syscall.Umask(0o77)
		said := fmt.Sprintf("%s %o %d %d", wd, old, syscall.Getpgrp()-os.Getpid(), len(os.Getenv(startedBy)))
		if err := os.WriteFile(path+".said", []byte(said), 0o600); err != nil {
			return err
		}
		return pid.Remove()
	})
	if e, ok := errors.AsType[*ExitError](err); ok && e.Code > 0 {
		return e.Code
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 5
	}
	return 0
}

// play starts the test binary in a role, and returns its exit code and standard
// error, which ends only when nobody holds it any more.
func play(t *testing.T, what, path string) (int, string) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), role+"="+what+" "+path)
	cmd.Dir = t.TempDir()
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Run(); err != nil && cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), stderr.String()
}

// eventually polls: the condition lives in another process.
func eventually(t *testing.T, what string, check func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(20 * time.Second); !check(); <-tick.C {
		if time.Now().After(deadline) {
			t.Fatalf("not within 20 s: %s", what)
		}
	}
}

func TestBackground(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "pid")
	code, stderr := play(t, "serve", path)
	if code != 0 || stderr != "starting\n" {
		t.Errorf("exit code %d, %q; want 0 and what was said until it was ready", code, stderr)
	}
	var said []byte
	eventually(t, "the daemon writes what it sees", func() bool {
		said, _ = os.ReadFile(path + ".said") // not yet there
		return len(said) > 0
	})
	if string(said) != "/ 0 0 0" {
		t.Errorf("folder, umask, group, environment: %s; want / 0 0 0", said)
	}
	eventually(t, "the pidfile goes", func() bool { _, err := os.Stat(path); return errors.Is(err, os.ErrNotExist) })
}

func TestBackgroundFails(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "pid")
	if code, stderr := play(t, "fail", path); code != 5 || stderr != "no listener\n" {
		t.Errorf("exit code %d, %q; want the daemon's own", code, stderr)
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the pidfile is there: %v", err)
	}
	if code, stderr := play(t, "die", path); code != 5 || !strings.Contains(stderr, "killed before it was ready") {
		t.Errorf("exit code %d, %q; want word of its death", code, stderr)
	}
}

// TestStartIsGivenUp: when the user does not wait any longer, nothing stays.
func TestStartIsGivenUp(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pid")
	t.Setenv(role, "hang "+path)
	self, err := Self()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		_, err := self.Start(ctx, io.Discard)
		done <- err
	}()
	var pid int
	eventually(t, "the daemon runs", func() bool {
		pid, _ = readPid(path) // not yet there
		return pid > 0
	})
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("%v, want that it was cancelled", err)
	}
	if runs(pid) {
		t.Error("the daemon runs on")
	}
}

func TestPidfile(t *testing.T) {
	t.Parallel()
	other := exec.Command("sleep", "60")
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	ended := exec.Command("true")
	if err := ended.Start(); err != nil { // and is not waited for: a zombie
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = other.Process.Kill() // it may have ended
		_, _ = other.Process.Wait()
		_, _ = ended.Process.Wait()
	})
	eventually(t, "true ends", func() bool { return !runs(ended.Process.Pid) })
	mine := fmt.Sprintln(os.Getpid())
	for _, c := range []struct{ name, before, after string }{
		{"none", "", mine},
		{"a running process", fmt.Sprintln(other.Process.Pid), ""},
		{"a running process, as some write it", fmt.Sprintf("  %d", other.Process.Pid), ""},
		{"a dead process", fmt.Sprintln(1 << 30), mine},
		{"a zombie", fmt.Sprintln(ended.Process.Pid), mine},
		{"our own id, as in a container that was killed", mine, mine},
		{"garbage", "mogile\n", mine},
		{"process groups and everybody", "-1\n", mine},
		{"nothing in it", "\n", mine},
	} {
		path := filepath.Join(t.TempDir(), "pid")
		if c.before != "" {
			if err := os.WriteFile(path, []byte(c.before), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		p, err := WritePidfile(path)
		got, readErr := os.ReadFile(path)
		if readErr != nil {
			t.Fatal(readErr)
		}
		if c.after == "" {
			e, ok := errors.AsType[*RunningError](err)
			if !ok || e.PID != other.Process.Pid || !strings.Contains(err.Error(), "already running on PID: "+strconv.Itoa(e.PID)) || string(got) != c.before {
				t.Errorf("%s: %v, and the file has %q", c.name, err, got)
			}
			continue
		}
		if err != nil || string(got) != c.after {
			t.Errorf("%s: %v, and the file has %q, want %q", c.name, err, got, c.after)
			continue
		}
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o644 {
			t.Errorf("%s: %v, %v", c.name, info.Mode(), err)
		}
		if err := p.Remove(); err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
		if left, err := os.ReadDir(filepath.Dir(path)); err != nil || len(left) > 0 {
			t.Errorf("%s: left are %v, %v", c.name, left, err)
		}
		if err := p.Remove(); err != nil {
			t.Errorf("%s: removed again: %v", c.name, err)
		}
	}
}

// TestPidfileOfTheNext: what another process wrote meanwhile stays.
func TestPidfileOfTheNext(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "pid")
	p, err := WritePidfile(path)
	if err != nil {
		t.Fatal(err)
	}
	next := fmt.Sprintln(1 << 30)
	if err := os.WriteFile(path, []byte(next), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := p.Remove(); err != nil {
		t.Error(err)
	}
	if got, err := os.ReadFile(path); err != nil || string(got) != next {
		t.Errorf("%q, %v", got, err)
	}
}

// TestPidfileThatIsNoFile: "pidfile = /dev/null" wants none, and what is there
// is not ours to replace or to remove.
func TestPidfileThatIsNoFile(t *testing.T) {
	t.Parallel()
	null, err := os.Stat(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	// A link, so that a mistake costs the link.
	path := filepath.Join(t.TempDir(), "pid")
	if err := os.Symlink(os.DevNull, path); err != nil {
		t.Fatal(err)
	}
	same := func(after string) {
		t.Helper()
		if now, err := os.Stat(path); err != nil || !os.SameFile(null, now) {
			t.Errorf("after %s: %v, %v", after, now, err)
		}
	}
	p, err := WritePidfile(path)
	if err != nil {
		t.Fatal(err)
	}
	same("WritePidfile")
	if err := p.MoveAside(); err != nil {
		t.Error(err)
	}
	same("MoveAside")
	if err := p.MoveBack(); err != nil {
		t.Error(err)
	}
	if err := p.Remove(); err != nil {
		t.Error(err)
	}
	same("Remove")
	if p, err := WritePidfile(t.TempDir()); err == nil {
		t.Errorf("a folder is taken for a pidfile: %v", p)
	}
}

func TestPidfileAside(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "pid")
	p, err := WritePidfile(path)
	if err != nil {
		t.Fatal(err)
	}
	exists := func(path string) bool { _, err := os.Stat(path); return err == nil }
	if err := p.MoveAside(); err != nil || exists(path) || !exists(path+".oldbin") {
		t.Fatal("aside:", err)
	}
	if err := p.MoveBack(); err != nil || !exists(path) || exists(path+".oldbin") {
		t.Fatal("back:", err)
	}
	if err := errors.Join(p.MoveAside(), os.WriteFile(path, []byte("1\n"), 0o600)); err != nil {
		t.Fatal(err)
	}
	if err := p.MoveBack(); !errors.As(err, new(*RunningError)) || !exists(path+".oldbin") {
		t.Errorf("back in place of one that runs: %v", err)
	}
	if err := p.Remove(); err != nil || exists(path+".oldbin") || !exists(path) {
		t.Error("removed:", err)
	}
	var none *Pidfile
	if p, err := WritePidfile(""); p != none || err != nil {
		t.Errorf("no pidfile: %v, %v", p, err)
	}
	if err := errors.Join(none.MoveAside(), none.MoveBack(), none.Remove()); err != nil {
		t.Error(err)
	}
	if _, err := WritePidfile(filepath.Join(path, "under", "a", "file")); err == nil {
		t.Error("a pidfile that cannot be written is no error")
	}
}

// syslogSocket is a syslog daemon of the test's.
func syslogSocket(t *testing.T, path string) *net.UnixConn {
	t.Helper()
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() }) // it may be closed
	return l
}

func receive(t *testing.T, l *net.UnixConn) string {
	t.Helper()
	if err := l.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 2*syslogLine)
	n, err := l.Read(b)
	if err != nil {
		t.Fatal(err)
	}
	return string(b[:n])
}

func TestSyslog(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "log")
	l := syslogSocket(t, path)
	s := OpenSyslog(SyslogOptions{Ident: "mogilefsd", Path: path})
	s.Send(Debug, "Job delete has only 0, wants 1, making 1.")
	s.Send(Err, strings.Repeat("é", syslogLine))
	tag := fmt.Sprintf(" mogilefsd[%d]: ", os.Getpid())
	got := receive(t, l)
	stamp, text, _ := strings.Cut(strings.TrimPrefix(got, "<31>"), tag)
	if _, err := time.Parse(time.Stamp, stamp); err != nil || !strings.HasPrefix(got, "<31>") || text != "Job delete has only 0, wants 1, making 1." {
		t.Errorf("%q: %v", got, err)
	}
	if got := receive(t, l); !strings.HasPrefix(got, "<27>") || len(got) > syslogLine || !strings.HasSuffix(got, "éé") {
		t.Errorf("a long message: %d bytes, ends in %q", len(got), got[len(got)-4:])
	}

	// The syslog daemon is restarted: messages go on, and none was waited for.
	if err := errors.Join(l.Close(), os.Remove(path)); err != nil {
		t.Fatal(err)
	}
	for range 2 * syslogBacklog {
		s.Send(Debug, "nobody listens")
	}
	l = syslogSocket(t, path)
	told := make(chan struct{})
	go func() {
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for {
			s.Send(Debug, "back")
			select {
			case <-told:
				return
			case <-tick.C:
			}
		}
	}()
	for !strings.Contains(receive(t, l), "messages were left out") {
	}
	close(told)
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	s.Send(Debug, "after the end")
	if err := s.Close(); err != nil {
		t.Error("closed again:", err)
	}
}

// TestSyslogStuck: one that does not read costs nobody any time but the end.
func TestSyslogStuck(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "log")
	syslogSocket(t, path) // which is not read from
	s := OpenSyslog(SyslogOptions{Ident: "mogilefsd", Path: path})
	began := time.Now()
	for range 10 * syslogBacklog {
		s.Send(Debug, "a message")
	}
	if took := time.Since(began); took > syslogPatience/2 {
		t.Errorf("sending took %v", took)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if took := time.Since(began); took > 5*syslogPatience {
		t.Errorf("closing took %v", took)
	}
}

func TestSyslogStream(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "log")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	s := OpenSyslog(SyslogOptions{Ident: "m", Path: path})
	s.Send(Debug, "one")
	s.Send(Debug, "two")
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	all, err := io.ReadAll(conn)
	if lines := strings.Split(string(all), "\n"); err != nil || len(lines) != 3 || !strings.HasSuffix(lines[0], ": one") || !strings.HasSuffix(lines[1], ": two") {
		t.Errorf("%q, %v", all, err)
	}
}

func TestRefuseRoot(t *testing.T) {
	t.Parallel()
	root := os.Geteuid() == 0
	if err := RefuseRoot(""); (err != nil) != root || root && !strings.Contains(err.Error(), "user = root") {
		t.Errorf("root %t: %v", root, err)
	}
	if err := RefuseRoot("mogile"); (err != nil) != root {
		t.Errorf("root %t: %v", root, err)
	}
	if err := RefuseRoot("root"); err != nil {
		t.Error(err)
	}
}

// TestSelf: a program is started again through the name that it was started by.
func TestSelf(t *testing.T) {
	t.Parallel()
	self, err := Self()
	if err != nil {
		t.Fatal(err)
	}
	if wd, err := os.Getwd(); err != nil || self.Dir != wd || !filepath.IsAbs(self.Path) || !sameFile(self.Path, os.Args[0]) || self.Args[0] != os.Args[0] {
		t.Errorf("%+v, %v", self, err)
	}
	if sameFile(self.Path, "/dev/null") || sameFile("/nowhere", "/nowhere") {
		t.Error("files are taken for the same that are not")
	}
	if Inherited() != nil {
		t.Error("this process has a parent that waits for it")
	}
	var none *Parent
	if err := none.Ready(); err != nil {
		t.Error(err)
	}
}
