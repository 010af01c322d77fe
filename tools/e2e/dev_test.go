package e2e

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/mogile/mogile/schema/postgres/pgtest"
)

// dev starts `mogile dev` and waits for its line; it returns the process, the
// tracker's address and how to start it again.
func dev(t *testing.T, args ...string) (*Process, string, string) {
	t.Helper()
	port := freePorts(t, 2, "127.0.0.1", "127.0.0.2", "127.0.0.3")
	tracker := freePorts(t, 2, "127.0.0.1")
	addr := fmt.Sprintf("127.0.0.1:%d", tracker)
	p := start(t, "dev", append([]string{"dev", "--listen", addr, "--storage-port", fmt.Sprint(port)}, args...)...)
	return p, addr, waitReady(t, p, 1)
}

// waitReady waits for the nth line beginning "ready", and returns the output.
func waitReady(t *testing.T, p *Process, n int) string {
	t.Helper()
	var out []byte
	within(t, 40*time.Second, "ready", func() error {
		if err := p.Alive(); err != nil {
			b, _ := os.ReadFile(p.log)
			return fmt.Errorf("%w\n%s", err, b)
		}
		var err error
		if out, err = os.ReadFile(p.log); err != nil {
			return err
		}
		if got := len(regexp.MustCompile(`(?m)^ready.*\n(.*\n)*\n`).FindAllIndex(out, -1)); got == 0 || strings.Count(string(out), "\nready")+strings.Count(string(out[:5]), "ready") < n {
			return fmt.Errorf("%d of %d so far", got, n)
		}
		return nil
	})
	return string(out)
}

// shell runs a command line as a newcomer would paste it.
func shell(t *testing.T, line string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, "bash", "-c", line).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", line, err, out)
	}
	return string(out)
}

// TestDev pastes what `mogile dev` prints, kills it, and starts it again on the
// same directory.
func TestDev(t *testing.T) {
	t.Parallel()
	engines(t, func(t *testing.T, engine string) {
		dir := t.TempDir()
		args := []string{"--dir", dir}
		if engine == "postgres" {
			args = append(args, "--dsn", pgtest.DSN(t))
		}
		p, addr, out := dev(t, args...)
		var printed []string
		for line := range strings.Lines(out) {
			if cmd, ok := strings.CutPrefix(line, "  "); ok {
				printed = append(printed, strings.TrimSpace(cmd))
			}
		}
		if len(printed) != 3 {
			t.Fatalf("prints %d commands to try, want 3:\n%s", len(printed), out)
		}
		shell(t, printed[0])
		if got := shell(t, printed[1]); !strings.Contains(got, "greeting") {
			t.Errorf("%s\n%s", printed[1], got)
		}
		const want = "hello, world\n"
		if got := shell(t, printed[2]); got != want {
			t.Errorf("%s\n%q, want %q", printed[2], got, want)
		}
		p.Kill()
		p.Start()
		waitReady(t, p, 2)
		if got := shell(t, printed[2]); got != want {
			t.Errorf("after kill -9: %s\n%q, want %q", printed[2], got, want)
		}
		for _, d := range []string{"host1/dev1", "host1/dev2", "host2/dev3", "host2/dev4", "host3/dev5", "host3/dev6"} {
			if _, err := os.Stat(filepath.Join(dir, d)); err != nil {
				t.Error(err)
			}
		}

		// A second one on the same directory is refused, and says why.
		second := exec.Command(binary, "dev", "--dir", dir, "--listen", addr)
		if out, err := second.CombinedOutput(); err == nil || len(bytes.TrimSpace(out)) == 0 {
			t.Errorf("a second dev on %s: %v, %s", dir, err, out)
		}
		p.Stop()
	})
}

// TestDevTemporary leaves nothing behind.
func TestDevTemporary(t *testing.T) {
	t.Parallel()
	p, addr, out := dev(t)
	m := regexp.MustCompile(`files in (\S+) \(goes`).FindStringSubmatch(out)
	if m == nil {
		t.Fatalf("names no directory:\n%s", out)
	}
	if _, err := os.Stat(m[1]); err != nil {
		t.Error(err)
	}
	if ip := nonLoopback(); ip != "" {
		_, port, _ := net.SplitHostPort(addr)
		if conn, err := net.DialTimeout("tcp", net.JoinHostPort(ip, port), time.Second); err == nil {
			conn.Close()
			t.Errorf("dev answers on %s", ip)
		}
	}
	p.Stop()
	if _, err := os.Stat(m[1]); !os.IsNotExist(err) {
		t.Errorf("%s is still there: %v", m[1], err)
	}
}

// nonLoopback is an address of this machine that others could reach.
func nonLoopback() string {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return ""
	}
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok && !n.IP.IsLoopback() && n.IP.To4() != nil {
			return n.IP.String()
		}
	}
	return ""
}

// TestToldToStop ends daemons through their own ports.
func TestToldToStop(t *testing.T) {
	t.Parallel()
	c := StartCluster(t, Spec{Hosts: 1})
	fmt.Fprint(dial(t, c.Addrs[0]), "!shutdown\r\n")
	fmt.Fprint(dial(t, net.JoinHostPort(c.Hosts[0].IP, fmt.Sprint(c.Port+1))), "shutdown\r\n")
	for _, p := range []*Process{c.Trackers[0], c.Hosts[0].Process} {
		select {
		case <-p.done:
			if p.exit != nil {
				t.Errorf("%s: %v", p.name, p.exit)
			}
		case <-time.After(20 * time.Second):
			t.Errorf("%s still runs", p.name)
		}
	}
}

// TestUsage holds exit codes and the texts that say what to do.
func TestUsage(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		args []string
		code int
		says string
	}{
		{[]string{"tracker"}, 2, "--dsn"},
		{[]string{"tracker", "--dsn", "sqlite:/nonexistent/x.db"}, 1, "/nonexistent"},
		{[]string{"tracker", "--dsn", "DBI:mysql:mogilefs"}, 1, "MySQL"},
		{[]string{"tracker", "extra"}, 2, "extra"},
		{[]string{"storaged", "--docroot", "/nonexistent"}, 1, "/nonexistent"},
		{[]string{"storaged", "--durability", "maybe"}, 2, "fsync"},
		{[]string{"dev", "--listen", "0.0.0.0:7001"}, 2, "loopback"},
		{[]string{"dev", "--hosts", "0"}, 2, "--hosts"},
		{[]string{"dev", "--nosuch"}, 2, "nosuch"},
		{[]string{"nosuch"}, 2, "nosuch"},
		{[]string{"migrate", "--dsn", "x", "--seal", "--unseal"}, 2, "exclude"},
		{[]string{"mogtool", "nosuch"}, 2, "nosuch"},
		{[]string{"help"}, 0, "EXAMPLES"},
		{[]string{"--version"}, 0, "mogile"},
	} {
		out, err := exec.Command(binary, c.args...).CombinedOutput()
		code := 0
		if e, ok := err.(*exec.ExitError); ok {
			code = e.ExitCode()
		} else if err != nil {
			t.Fatal(err)
		}
		if code != c.code || !strings.Contains(string(out), c.says) {
			t.Errorf("mogile %q exits %d, want %d, and should name %q:\n%s", c.args, code, c.code, c.says, out)
		}
	}
}

// TestScriptWithoutClient runs docs/no-client.sh.
func TestScriptWithoutClient(t *testing.T) {
	t.Parallel()
	c := StartCluster(t, Spec{})
	name := filepath.Join(t.TempDir(), "a file, with % and ü.txt")
	if err := os.WriteFile(name, bytes.Repeat([]byte("no client at all\n"), 10000), 0o666); err != nil {
		t.Fatal(err)
	}
	out := shell(t, fmt.Sprintf("../../docs/no-client.sh %s %s '%s'", c.Addrs[0], domain, name))
	if !strings.Contains(out, "the same bytes") {
		t.Errorf("%s", out)
	}
}
