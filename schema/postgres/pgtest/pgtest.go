// Package pgtest starts throwaway PostgreSQL servers for tests.
//
// [DSN] gives a fresh, empty database on a server that all tests of the process
// share; it runs without fsync. [Start] gives a server of its own, with fsync,
// that a test may kill. Both listen on a free port of 127.0.0.1 and keep their
// data in a temporary directory. As root, the server runs as the user postgres.
//
// A server never outlives its test process, whatever ends that: a guard process
// waits for it, stops the server and removes the directory.
//
// Tests fail where PostgreSQL is not installed. They are skipped if
// MOGILE_TEST_NO_POSTGRES=1 is set in the environment.
package pgtest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// NoPostgres is the environment variable that skips tests which need
// PostgreSQL.
const NoPostgres = "MOGILE_TEST_NO_POSTGRES"

// shared is the server of [DSN].
var shared struct {
	once   sync.Once
	server *Server
	err    error
}

// databases counts the databases made, for their names.
var databases atomic.Int64

// Main runs the tests of a package, stops the shared server, and returns the
// code to exit with:
//
//	func TestMain(m *testing.M) { os.Exit(pgtest.Main(m)) }
//
// Packages that do without it are safe too; their server is stopped just after
// the process ended.
func Main(m *testing.M) int {
	code := m.Run()
	if shared.server != nil {
		shared.server.stop()
	}
	return code
}

// DSN is the connection string of a fresh, empty UTF-8 database, which is
// dropped when the test ends.
func DSN(t testing.TB) string {
	t.Helper()
	return Database(t, "")
}

// Clone is like [DSN], but the database is a copy of a template that fill made,
// once in the process for each name. fill must close its connections.
func Clone(t testing.TB, template string, fill func(dsn string) error) string {
	t.Helper()
	server := sharedServer(t)
	templates.mu.Lock()
	defer templates.mu.Unlock()
	name := "template_" + template
	if !templates.made[name] {
		err := server.exec(`DROP DATABASE IF EXISTS ` + name) // of a fill that failed
		if err == nil {
			err = server.exec(`CREATE DATABASE ` + name)
		}
		if err == nil {
			err = fill(server.dsn(name))
		}
		if err != nil {
			t.Fatalf("template %s: %v", template, err)
		}
		templates.made[name] = true
	}
	return server.Database(t, "TEMPLATE "+name)
}

// templates are the databases that Clone copies.
var templates = struct {
	mu   sync.Mutex
	made map[string]bool
}{made: make(map[string]bool)}

// Database is like [DSN], with options for CREATE DATABASE, such as "ENCODING
// 'SQL_ASCII' LOCALE 'C' TEMPLATE template0".
func Database(t testing.TB, options string) string {
	t.Helper()
	return sharedServer(t).Database(t, options)
}

// sharedServer is the server of [DSN], started by the first test that needs it.
func sharedServer(t testing.TB) *Server {
	t.Helper()
	need(t)
	shared.once.Do(func() {
		shared.server, shared.err = start(ServerOptions{Settings: map[string]string{
			"fsync": "off", "full_page_writes": "off", "max_connections": "500",
		}})
	})
	if shared.err != nil {
		t.Fatal(shared.err)
	}
	return shared.server
}

// ServerOptions describe a server of its own.
type ServerOptions struct {
	// Settings are added to postgresql.conf's defaults, such as
	// "max_connections".
	Settings map[string]string
}

// Server is a running PostgreSQL.
type Server struct {
	bin      string // directory of the programs
	dir      string // ours; data below it
	port     int
	settings map[string]string
	guard    *guard

	creating sync.Mutex // held while a database is created: a template has one user

	mu     sync.Mutex // guards cmd and exited
	cmd    *exec.Cmd  // nil while it is down
	exited chan struct{}
}

// Start starts a server with fsync on, which is stopped when the test ends.
func Start(t testing.TB, o ServerOptions) *Server {
	t.Helper()
	need(t)
	s, err := start(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.stop)
	return s
}

// DSN is the connection string of the server's database "postgres".
func (s *Server) DSN() string { return s.dsn("postgres") }

// Database is the connection string of a fresh database of the server, which is
// dropped when the test ends.
func (s *Server) Database(t testing.TB, options string) string {
	t.Helper()
	name := fmt.Sprintf("test_%d", databases.Add(1))
	s.creating.Lock()
	err := s.exec(`CREATE DATABASE ` + name + ` ` + options)
	s.creating.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		// A connection that a test left open must not keep the database.
		err := s.exec(`SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '` + name + `'`)
		if err = errors.Join(err, s.exec(`DROP DATABASE `+name)); err != nil {
			t.Logf("drop %s: %v", name, err)
		}
	})
	return s.dsn(name)
}

// Kill ends every process of the server with SIGKILL, as a power failure
// would, except that what the operating system holds is kept.
func (s *Server) Kill() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cmd == nil {
		return
	}
	killTree(s.cmd.Process.Pid)
	<-s.exited
	s.cmd = nil
}

// Stop stops the server in order; connections are cut.
func (s *Server) Stop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.shutdown()
}

// Restart starts a server that was killed or stopped, on the same port and
// data, and waits until it answers. A running one is stopped first.
func (s *Server) Restart() error {
	s.mu.Lock()
	s.shutdown()
	s.mu.Unlock()
	return s.run()
}

// Data is the directory of the server's data.
func (s *Server) Data() string { return filepath.Join(s.dir, "data") }

// Program is the path of one of PostgreSQL's programs, such as "pg_ctl".
func (s *Server) Program(name string) string { return filepath.Join(s.bin, name) }

// Command is a program of PostgreSQL, run as the server's user.
func (s *Server) Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, s.Program(name), args...)
	cmd.Dir = s.dir
	asUser(cmd)
	return cmd
}

func need(t testing.TB) {
	t.Helper()
	if os.Getenv(NoPostgres) == "1" {
		t.Skip(NoPostgres + "=1 is set")
	}
}

// programs finds the directory of initdb and postgres: in PATH, or where
// Debian keeps them, the highest version first.
func programs() (string, error) {
	var dirs []string
	if p, err := exec.LookPath("initdb"); err == nil {
		if p, err = filepath.EvalSymlinks(p); err == nil {
			dirs = append(dirs, filepath.Dir(p))
		}
	}
	found, err := filepath.Glob("/usr/lib/postgresql/*/bin")
	if err != nil {
		return "", err
	}
	slices.SortFunc(found, func(a, b string) int { return version(b) - version(a) })
	for _, dir := range append(dirs, found...) {
		if executable(filepath.Join(dir, "initdb")) && executable(filepath.Join(dir, "postgres")) {
			return dir, nil
		}
	}
	return "", errors.New("PostgreSQL is not installed (initdb and postgres are neither in PATH nor in /usr/lib/postgresql/*/bin): " +
		"install the Debian package postgresql, or set " + NoPostgres + "=1 to skip these tests")
}

// version is the number in "/usr/lib/postgresql/15/bin", 0 where there is none.
func version(dir string) int {
	n, err := strconv.Atoi(filepath.Base(filepath.Dir(dir)))
	if err != nil {
		return 0
	}
	return n
}

func executable(path string) bool {
	fi, err := os.Stat(path)
	return err == nil && fi.Mode().IsRegular() && fi.Mode()&0o111 != 0
}

// start makes a cluster and runs it.
func start(o ServerOptions) (*Server, error) {
	bin, err := programs()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "mogile-postgres-")
	if err != nil {
		return nil, err
	}
	s := &Server{bin: bin, dir: dir, settings: o.Settings}
	if s.guard, err = newGuard(dir); err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	if err := s.initdb(); err != nil {
		s.stop()
		return nil, err
	}
	if err := s.run(); err != nil {
		s.stop()
		return nil, err
	}
	return s, nil
}

func (s *Server) initdb() error {
	if err := giveToUser(s.dir); err != nil {
		return err
	}
	cmd := s.Command(context.Background(), "initdb", "-D", s.Data(), "-U", "mogile", "-A", "trust",
		"-E", "UTF8", "--locale=C", "--no-sync")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("initdb: %w\n%s", err, out)
	}
	return nil
}

// run starts the server and waits until it answers. The first start chooses
// the port.
func (s *Server) run() error {
	const attempts = 5 // another process may take the port between the choice and the start
	for attempt := 1; ; attempt++ {
		port := s.port
		if port == 0 {
			var err error
			if port, err = freePort(); err != nil {
				return err
			}
		}
		err := s.runOn(port)
		if err == nil {
			s.port = port
			return nil
		}
		if attempt == attempts {
			return err
		}
	}
}

func (s *Server) runOn(port int) error {
	logfile, err := os.OpenFile(filepath.Join(s.dir, "log"), os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer logfile.Close()
	args := []string{"-D", s.Data(), "-p", fmt.Sprint(port),
		"-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories=" + s.dir,
		"-c", "shared_buffers=64MB", "-c", "autovacuum_naptime=5s"}
	for k, v := range s.settings {
		args = append(args, "-c", k+"="+v)
	}
	cmd := s.Command(context.Background(), "postgres", args...)
	cmd.Stdout, cmd.Stderr = logfile, logfile
	ownGroup(cmd)
	if err := cmd.Start(); err != nil {
		return err
	}
	exited := make(chan struct{})
	go func() {
		_ = cmd.Wait() // why it ended is in its log
		close(exited)
	}()
	s.mu.Lock()
	s.cmd, s.exited = cmd, exited
	s.mu.Unlock()
	if err := s.waitReady(port, exited); err != nil {
		s.Stop()
		log, _ := os.ReadFile(logfile.Name()) // only to explain err
		return fmt.Errorf("start postgres: %w\n%s", err, log)
	}
	return nil
}

func (s *Server) waitReady(port int, exited <-chan struct{}) error {
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		conn, err := pgx.Connect(ctx, dsn(port, "postgres"))
		if err == nil {
			return conn.Close(ctx)
		}
		select {
		case <-exited:
			return errors.New("it ended")
		case <-ctx.Done():
			return err
		case <-tick.C:
		}
	}
}

// exec runs a statement in the database postgres.
func (s *Server) exec(sql string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	conn, err := pgx.Connect(ctx, s.DSN())
	if err != nil {
		return err
	}
	_, err = conn.Exec(ctx, sql)
	return errors.Join(err, conn.Close(ctx))
}

func (s *Server) dsn(database string) string { return dsn(s.port, database) }

func dsn(port int, database string) string {
	return fmt.Sprintf("postgres://mogile@127.0.0.1:%d/%s?sslmode=disable", port, database)
}

// shutdown stops the server if it runs; s.mu is held.
func (s *Server) shutdown() {
	if s.cmd == nil {
		return
	}
	fastShutdown(s.cmd.Process)
	select {
	case <-s.exited:
	case <-time.After(10 * time.Second):
		killTree(s.cmd.Process.Pid)
		<-s.exited
	}
	s.cmd = nil
}

// stop stops the server and removes its directory.
func (s *Server) stop() {
	s.Stop()
	_ = os.RemoveAll(s.dir) // the guard tries again
	s.guard.release()
}
