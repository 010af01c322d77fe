package e2e

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/schema/postgres/pgtest"
)

// named runs the binary under another name and returns its exit code and what
// it said. env is NAME=value.
func named(t testing.TB, name string, env []string, args ...string) (code int, out string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, binary, args...)
	cmd.Args[0] = name
	cmd.Env = append(os.Environ(), env...)
	var b bytes.Buffer
	cmd.Stdout, cmd.Stderr = &b, &b
	if err := cmd.Run(); err != nil && (cmd.ProcessState == nil || ctx.Err() != nil) {
		t.Fatalf("%s %q: %v\n%s", name, args, err, b.String())
	}
	return cmd.ProcessState.ExitCode(), b.String()
}

// syslogd is a syslog daemon that keeps what it is told.
type syslogd struct {
	path string
	file string
}

func startSyslog(t testing.TB) *syslogd {
	t.Helper()
	dir := t.TempDir()
	s := &syslogd{path: filepath.Join(dir, "log"), file: filepath.Join(dir, "messages")}
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: s.path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(s.file)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		b := make([]byte, 64<<10)
		for {
			n, err := l.Read(b)
			if err != nil {
				return // closed below
			}
			if _, err := f.Write(append(b[:n:n], '\n')); err != nil {
				t.Error(err)
			}
		}
	}()
	t.Cleanup(func() {
		_ = l.Close() // ends the goroutine
		<-done
		_ = f.Close() // only read back below
		if t.Failed() {
			t.Logf("syslog:\n%s", tail([]byte(s.text()), 80))
		}
	})
	return s
}

func (s *syslogd) text() string {
	b, err := os.ReadFile(s.file)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// pidNamed is the process that a pidfile names.
func pidNamed(path string) (int, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(b)))
}

// gone is nil when a process has ended; who started it may not have asked yet.
func gone(pid int) error {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil || strings.Contains(string(b), ") Z ") {
		return nil
	}
	return errors.New("it runs")
}

// background is a mogilefsd that has put itself in the background.
type background struct {
	t       testing.TB
	conf    string
	pidfile string
	addr    string
	env     []string
}

func (b *background) start() int {
	b.t.Helper()
	if code, out := named(b.t, "mogilefsd", b.env, "-c", b.conf, "--daemon"); code != 0 || out != "" {
		b.t.Fatalf("mogilefsd -c %s: exit code %d\n%s", b.conf, code, out)
	}
	pid, err := pidNamed(b.pidfile)
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { _ = syscall.Kill(pid, syscall.SIGKILL) }) // it may have ended
	return pid
}

// ask sends a console's line and returns the reply without its dot.
func ask(t testing.TB, addr, line string) string {
	t.Helper()
	conn, err := net.DialTimeout("tcp", addr, 10*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Fprintf(conn, "%s\r\n", line); err != nil {
		t.Fatal(err)
	}
	var reply strings.Builder
	for r := bufio.NewReader(conn); ; {
		line, err := r.ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}
		if line == ".\r\n" {
			return reply.String()
		}
		reply.WriteString(line)
	}
}

// desired is how many workers of each job a tracker wants.
func desired(t testing.TB, addr string) map[string]string {
	t.Helper()
	jobs := make(map[string]string)
	for _, m := range regexp.MustCompile(`(?m)^(\w+) desired (\d+)\r$`).FindAllStringSubmatch(ask(t, addr, "!jobs"), -1) {
		jobs[m[1]] = m[2]
	}
	return jobs
}

// TestMogilefsd runs a cluster as an operator of MogileFS does: the database made
// by mogdbsetup, two trackers in the background with configuration files,
// pidfiles and syslog, killed and stopped by their ids.
func TestMogilefsd(t *testing.T) {
	t.Parallel()
	server, err := url.Parse(pgtest.DSN(t))
	if err != nil {
		t.Fatal(err)
	}
	db := fmt.Sprintf("mogilefsd_%d", os.Getpid())
	if code, out := named(t, "mogdbsetup", nil, "--type=Postgres", "--dbhost="+server.Hostname(), "--dbport="+server.Port(),
		"--dbname="+db, "--dbuser=perl", "--dbpass=secret", "--dbrootuser="+server.User.Username(), "--yes"); code != 0 || !strings.Contains(out, "version is 17") {
		t.Fatalf("mogdbsetup: exit code %d\n%s", code, out)
	}
	log := startSyslog(t)
	storage := freePorts(t, 2, "127.0.0.1")
	docroot := t.TempDir()
	if err := os.Mkdir(filepath.Join(docroot, "dev1"), 0o777); err != nil {
		t.Fatal(err)
	}
	start(t, "storaged", "storaged", "--docroot", docroot, "--http-listen", fmt.Sprintf("127.0.0.1:%d", storage), "--mgmt-listen", fmt.Sprintf("127.0.0.1:%d", storage+1))

	var trackers []*background
	for i := range 2 {
		dir := t.TempDir()
		port := freePorts(t, 1, "127.0.0.1")
		b := &background{
			t: t, conf: filepath.Join(dir, "mogilefsd.conf"), pidfile: filepath.Join(dir, "mogilefsd.pid"),
			addr: fmt.Sprintf("127.0.0.1:%d", port), env: []string{"MOGILE_SYSLOG=" + log.path},
		}
		conf := fmt.Sprintf("# Enable daemon mode to work in background and use syslog\ndaemonize = 0\npidfile = %s\n"+
			"db_dsn = DBI:Pg:dbname=%s;host=%s;port=%s\ndb_user = perl\ndb_pass = secret\nlisten = 127.0.0.1\nconf_port = %d\n"+
			"query_jobs = 10\ndelete_jobs = 2\nreplicate_jobs = 5\nreaper_jobs = 1\nmogstored_stream_port = %d\nmax_disk_age = 10\nuser = root\n",
			b.pidfile, db, server.Hostname(), server.Port(), port, storage+1)
		if err := os.WriteFile(b.conf, []byte(conf), 0o600); err != nil {
			t.Fatal(err)
		}
		pid := b.start()
		trackers = append(trackers, b)
		if fds, err := filepath.EvalSymlinks(fmt.Sprintf("/proc/%d/cwd", pid)); err != nil || fds != "/" {
			t.Errorf("tracker %d works in %s, %v", i, fds, err)
		}
	}
	clients := make([]*protocol.Client, 2)
	for i, b := range trackers {
		if clients[i], err = protocol.NewClient(protocol.ClientOptions{Trackers: []string{b.addr}}); err != nil {
			t.Fatal(err)
		}
		defer clients[i].Close()
	}
	do := func(i int, command string, fields ...string) error {
		args := protocol.Args{}
		for j := 0; j < len(fields); j += 2 {
			args = append(args, protocol.Arg{Name: fields[j], Value: fields[j+1]})
		}
		_, err := clients[i].Do(t.Context(), command, args)
		return err
	}
	for _, c := range [][]string{
		{"create_domain", "domain", "d"},
		{"create_host", "host", "h", "ip", "127.0.0.1", "port", strconv.Itoa(storage), "status", "alive"},
		{"create_device", "devid", "1", "hostname", "h", "state", "alive"},
	} {
		if err := do(0, c[0], c[1:]...); err != nil {
			t.Fatalf("%q: %v", c, err)
		}
	}
	within(t, 30*time.Second, "a file through the first tracker", func() error {
		_, err := clients[0].Create(t.Context(), "d", "k", protocol.CreateOptions{}, strings.NewReader("hello"))
		return err
	})
	within(t, 30*time.Second, "its path from the second", func() error { return do(1, "get_paths", "domain", "d", "key", "k") })

	// The configuration counts, and syslog has the lines that scripts wait for.
	within(t, 20*time.Second, "the workers", func() error {
		if got := desired(t, trackers[0].addr); got["replicate"] != "5" || got["delete"] != "2" || got["queryworker"] != "10" {
			return fmt.Errorf("%v", got)
		}
		return nil
	})
	first, err := pidNamed(trackers[0].pidfile)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"Job delete has only 0, wants 2, making 2.", "max_disk_age is ignored"} {
		line := regexp.MustCompile(fmt.Sprintf(`(?m)^<31>[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d mogilefsd\[%d\]: .*%s`, first, regexp.QuoteMeta(want)))
		within(t, 20*time.Second, "syslog: "+want, func() error {
			if !line.MatchString(log.text()) {
				return errors.New("it is not there")
			}
			return nil
		})
	}

	// A second start is refused, and changes nothing.
	code, out := named(t, "mogilefsd", trackers[0].env, "-c", trackers[0].conf, "-D")
	if pid, err := pidNamed(trackers[0].pidfile); code != 1 || !strings.Contains(out, fmt.Sprintf("already running on PID: %d", first)) || pid != first || err != nil {
		t.Errorf("a second start: exit code %d, the pidfile names %d, %v\n%s", code, pid, err, out)
	}
	// What goes wrong in the background is said in the foreground.
	code, out = named(t, "mogilefsd", trackers[0].env, "-c", trackers[0].conf, "-D", "--pidfile", trackers[0].pidfile+"2")
	if _, err := os.Stat(trackers[0].pidfile + "2"); code != 1 || !strings.Contains(out, "address already in use") || !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a port that is taken: exit code %d, pidfile: %v\n%s", code, err, out)
	}

	// Killed, it leaves its pidfile, and starts again all the same.
	if err := syscall.Kill(first, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	within(t, 10*time.Second, "the killed tracker ends", func() error { return gone(first) })
	if _, err := os.Stat(trackers[0].pidfile); err != nil {
		t.Errorf("the pidfile of a killed tracker: %v", err)
	}
	if again := trackers[0].start(); again == first {
		t.Errorf("the pidfile names the killed process %d", first)
	}
	within(t, 30*time.Second, "the first tracker again", func() error { return do(0, "get_paths", "domain", "d", "key", "k") })

	// TERM and INT end them, and their pidfiles.
	for i, signal := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
		pid, err := pidNamed(trackers[i].pidfile)
		if err != nil {
			t.Fatal(err)
		}
		if err := syscall.Kill(pid, signal); err != nil {
			t.Fatal(err)
		}
		within(t, 20*time.Second, signal.String(), func() error {
			if _, err := os.Stat(trackers[i].pidfile); !errors.Is(err, os.ErrNotExist) {
				return fmt.Errorf("the pidfile is there: %w", err)
			}
			return gone(pid)
		})
	}
}

// foreground starts mogilefsd in the foreground.
func foreground(t testing.TB, args ...string) *Process {
	t.Helper()
	return startNamed(t, "mogilefsd", append([]string{"-s"}, args...)...)
}

// startNamed is start for the binary under another name.
func startNamed(t testing.TB, name string, args ...string) *Process {
	t.Helper()
	link := filepath.Join(t.TempDir(), name)
	if err := os.Symlink(binary, link); err != nil {
		t.Fatal(err)
	}
	p := &Process{t: t, name: name, args: args, log: filepath.Join(t.TempDir(), "log")}
	t.Cleanup(func() {
		if p.cmd != nil {
			p.Kill()
		}
		if b, err := os.ReadFile(p.log); err == nil && (t.Failed() || bytes.Contains(b, []byte("WARNING: DATA RACE"))) {
			t.Errorf("log of %s:\n%s", name, tail(b, 60))
		}
	})
	out, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o666)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	p.cmd = exec.Command(link, args...)
	p.cmd.Stdout, p.cmd.Stderr = out, out
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p.done = make(chan struct{})
	go func() {
		p.exit = p.cmd.Wait()
		close(p.done)
	}()
	return p
}

// listens waits until a tracker answers.
func listens(t testing.TB, p *Process, addr string) {
	t.Helper()
	within(t, 30*time.Second, "the tracker on "+addr, func() error {
		if err := p.Alive(); err != nil {
			t.Fatal(err)
		}
		conn, err := net.DialTimeout("tcp", addr, time.Second)
		if err != nil {
			return err
		}
		return conn.Close()
	})
}

// TestMogilefsdForeground: standard output has what syslog would have.
func TestMogilefsdForeground(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	db := filepath.Join(dir, "m.db")
	if code, out := named(t, "mogdbsetup", nil, "--type=SQLite", "--dbname="+db, "--yes"); code != 0 {
		t.Fatalf("mogdbsetup: exit code %d\n%s", code, out)
	}
	addr := fmt.Sprintf("127.0.0.1:%d", freePorts(t, 1, "127.0.0.1"))
	pidfile := filepath.Join(dir, "pid")
	p := foreground(t, "--dsn=DBI:SQLite:"+db, "-l", addr, "--user=root", "--pidfile", pidfile, "--no-job_master", "--no_http", "-dw3")
	listens(t, p, addr)
	if pid, err := pidNamed(pidfile); err != nil || pid != p.cmd.Process.Pid {
		t.Errorf("the pidfile names %d, %v; the process is %d", pid, err, p.cmd.Process.Pid)
	}
	within(t, 20*time.Second, "the workers", func() error {
		got := desired(t, addr)
		if got["queryworker"] != "3" || got["reaper"] != "1" || got["job_master"]+got["replicate"]+got["delete"] != "" {
			return fmt.Errorf("%v", got)
		}
		return nil
	})
	p.Stop()
	out, err := os.ReadFile(p.log)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(out)) {
		if !regexp.MustCompile(`^\[[A-Z][a-z]{2} [A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d \d{4}\] .`).MatchString(line) {
			t.Errorf("a line without its time: %q", line)
		}
	}
	for _, want := range []string{"] Job monitor has only 0, wants 1, making 1.\n", "--no_http: no_http is ignored: trackers speak no HTTP"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	if _, err := os.Stat(pidfile); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the pidfile: %v", err)
	}
}

// TestMogilefsdRelativePaths: names are below the folder that it was started in,
// though it leaves that.
func TestMogilefsdRelativePaths(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if code, out := named(t, "mogdbsetup", nil, "--type=SQLite", "--dbname="+filepath.Join(dir, "m.db"), "--yes"); code != 0 {
		t.Fatalf("mogdbsetup: exit code %d\n%s", code, out)
	}
	addr := fmt.Sprintf("127.0.0.1:%d", freePorts(t, 1, "127.0.0.1"))
	cmd := exec.Command(binary, "-c", "m.conf", "-D")
	cmd.Args[0], cmd.Dir = "mogilefsd", dir
	cmd.Env = append(os.Environ(), "MOGILE_SYSLOG="+startSyslog(t).path)
	if err := os.WriteFile(filepath.Join(dir, "m.conf"), []byte("db_dsn = DBI:SQLite:m.db\npidfile m.pid\nuser root\nlisten "+addr+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	pidfile := filepath.Join(dir, "m.pid")
	pid, err := pidNamed(pidfile)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Kill(pid, syscall.SIGKILL) }) // it has ended
	client, err := protocol.NewClient(protocol.ClientOptions{Trackers: []string{addr}})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if _, err := client.Do(t.Context(), "create_domain", protocol.Args{{Name: "domain", Value: "d"}}); err != nil {
		t.Error(err)
	}
	eachParallel(50, 20, func(i int) { // for which it opens more connections
		if _, err := client.Do(t.Context(), "list_keys", protocol.Args{{Name: "domain", Value: "d"}, {Name: "prefix", Value: "k"}}); !errors.Is(err, &protocol.Error{Code: "none_match"}) {
			t.Errorf("list_keys: %v", err)
		}
	})
	if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	within(t, 20*time.Second, "its end", func() error {
		if _, err := os.Stat(pidfile); !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("the pidfile is there: %w", err)
		}
		return gone(pid)
	})
}

// TestMogilefsdRefuses: what is wrong is said before anything begins.
func TestMogilefsdRefuses(t *testing.T) {
	t.Parallel()
	conf := filepath.Join(t.TempDir(), "m.conf")
	write := func(text string) {
		if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		conf string
		args []string
		code int
		says string
	}{
		{"listen=0.0.0.0\n", nil, 1, "mogilefsd: " + conf + ":1: Malformed config file (line 1)"},
		{"db_dsn = DBI:mysql:mogilefs\n", nil, 1, conf + ":1: db_dsn: MySQL is not supported: copy"},
		{"query_jobs = x\ndb_dsn = DBI:Pg:dbname=x\n", nil, 1, conf + `:1: query_jobs = "x"`},
		{"", []string{"--frob"}, 2, "mogilefsd: unknown option: --frob"},
		{"db_dsn = DBI:SQLite:/nonexistent/x\nuser = root\n", []string{"-D"}, 1, "/nonexistent/x"},
		{"", []string{"--help"}, 0, "--min_free_space VALUE"},
		{"", []string{"--version"}, 0, "mogile version"},
	} {
		write(c.conf)
		if code, out := named(t, "mogilefsd", nil, append([]string{"-c", conf}, c.args...)...); code != c.code || !strings.Contains(out, c.says) {
			t.Errorf("%q %q: exit code %d, want %d and %s\n%s", c.conf, c.args, code, c.code, c.says, out)
		}
	}
	if os.Geteuid() == 0 {
		write("db_dsn = DBI:SQLite:/nonexistent/x\nuser = mogile\n")
		if code, out := named(t, "mogilefsd", nil, "-c", conf); code != 1 || !strings.Contains(out, "must not run as root") || !strings.Contains(out, "--user=root") {
			t.Errorf("as root: exit code %d\n%s", code, out)
		}
	}
}

// TestNoSchemaCheck: another version is refused, unless it is meant.
func TestNoSchemaCheck(t *testing.T) {
	t.Parallel()
	dsn := pgtest.DSN(t)
	if out, err := exec.Command(binary, "migrate", "--dsn", dsn).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	conn, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Exec(t.Context(), `UPDATE server_settings SET value = '19' WHERE field = 'schema_version'`); err != nil {
		t.Fatal(err)
	}
	if err := conn.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	addr := fmt.Sprintf("127.0.0.1:%d", freePorts(t, 1, "127.0.0.1"))
	args := []string{"--dsn=" + dsn, "--user=root", "-l", addr}
	if code, out := named(t, "mogilefsd", nil, append([]string{"-s"}, args...)...); code != 1 || !strings.Contains(out, "schema_version is 19") || !strings.Contains(out, "up to 18") {
		t.Errorf("exit code %d\n%s", code, out)
	}
	p := foreground(t, append(args, "--no_schema_check")...)
	listens(t, p, addr)
	p.Stop()
}

// TestTrackerConfig: mogile tracker reads the same file, under variables and
// flags.
func TestTrackerConfig(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	db := filepath.Join(dir, "m.db")
	if out, err := exec.Command(binary, "migrate", "--dsn", "sqlite:"+db).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	ports := freePorts(t, 2, "127.0.0.1")
	conf := filepath.Join(dir, "m.conf")
	text := fmt.Sprintf("db_dsn = DBI:SQLite:%s\nlisten = 127.0.0.1:%d\ndelete_jobs = 3\nquery_jobs = 9\nreplicate_jobs = 5\nmonitor_jobs = 2\n", db, ports)
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	other := fmt.Sprintf("127.0.0.1:%d", ports+1)
	p := start(t, "tracker", "tracker", "--config", conf, "--query-jobs", "7", "--listen", other)
	listens(t, p, other)
	p.Stop()
	p.env = []string{"MOGILE_DELETE_JOBS=2"}
	p.args = slices.Delete(p.args, len(p.args)-2, len(p.args))
	p.Start()
	addr := fmt.Sprintf("127.0.0.1:%d", ports)
	listens(t, p, addr)
	within(t, 20*time.Second, "the workers", func() error {
		if got := desired(t, addr); got["queryworker"] != "7" || got["delete"] != "2" || got["replicate"] != "5" {
			return fmt.Errorf("a flag's 7 query workers, a variable's 2 delete workers and the file's 5 replicate workers are %v", got)
		}
		return nil
	})
	p.Stop()
	if out, err := os.ReadFile(p.log); err != nil || !strings.Contains(string(out), "monitor_jobs is ignored") {
		t.Errorf("%v; no warning in\n%s", err, out)
	}
}
