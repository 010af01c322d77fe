package pgtest

import (
	"context"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

func TestMain(m *testing.M) { os.Exit(Main(m)) }

func query(t *testing.T, dsn, sql string) string {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.WithoutCancel(t.Context()))
	var s string
	if err := conn.QueryRow(t.Context(), sql).Scan(&s); err != nil {
		t.Fatal(err)
	}
	return s
}

func TestDatabasesAreSeparate(t *testing.T) {
	t.Parallel()
	a, b := DSN(t), DSN(t)
	if a == b {
		t.Fatalf("two databases with the name %s", a)
	}
	if got := query(t, a, `SELECT current_setting('fsync')`); got != "off" {
		t.Errorf("the shared server has fsync %s", got)
	}
	ascii := Database(t, "ENCODING 'SQL_ASCII' LOCALE 'C' TEMPLATE template0")
	if got := query(t, ascii, `SELECT current_setting('server_encoding')`); got != "SQL_ASCII" {
		t.Errorf("encoding %s", got)
	}
}

func TestKilledServerKeepsWhatWasCommitted(t *testing.T) {
	t.Parallel()
	s := Start(t, ServerOptions{})
	if got := query(t, s.DSN(), `SELECT current_setting('fsync')`); got != "on" {
		t.Errorf("a server of its own has fsync %s", got)
	}
	if err := s.exec(`CREATE TABLE kept (a int); INSERT INTO kept VALUES (42)`); err != nil {
		t.Fatal(err)
	}
	pid := s.cmd.Process.Pid
	if len(children(pid)) == 0 {
		t.Error("a running server has no children")
	}
	s.Kill()
	if left := children(pid); len(left) != 0 {
		t.Errorf("left after Kill: %d", left)
	}
	if err := s.exec(`SELECT 1`); err == nil {
		t.Error("a killed server answers")
	}
	if err := s.Restart(); err != nil {
		t.Fatal(err)
	}
	if got := query(t, s.DSN(), `SELECT a::text FROM kept`); got != "42" {
		t.Errorf("got %s", got)
	}
}

// TestCrashedTestLeavesNothing runs this test binary again, in a mode in which
// it dies without a chance to tidy up.
func TestCrashedTestLeavesNothing(t *testing.T) {
	t.Parallel()
	const mode = "MOGILE_PGTEST_CRASH"
	if os.Getenv(mode) == "1" {
		s := Start(t, ServerOptions{})
		os.Stdout.WriteString("directory " + s.dir + "\n")
		go panic("crash on purpose")
		select {}
	}
	need(t)
	cmd := exec.Command(os.Args[0], "-test.run=^TestCrashedTestLeavesNothing$")
	cmd.Env = append(os.Environ(), mode+"=1")
	out, err := cmd.Output()
	if err == nil {
		t.Fatalf("the crashing test passed:\n%s", out)
	}
	_, rest, ok := strings.Cut(string(out), "directory ")
	if !ok {
		t.Fatalf("no server was started:\n%s", out)
	}
	dir, _, _ := strings.Cut(rest, "\n")
	deadline := time.After(20 * time.Second)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		if _, err := os.Stat(dir); os.IsNotExist(err) {
			return
		}
		select {
		case <-deadline:
			t.Fatalf("%s is still there", dir)
		case <-tick.C:
		}
	}
}
