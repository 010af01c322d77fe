package sqlite

import (
	"bufio"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/schema"
)

// newStore is a fresh store with the domain "d", number 1.
func newStore(t *testing.T, o Options) *Store {
	t.Helper()
	if o.Path == "" {
		o.Path = filepath.Join(t.TempDir(), "mogile.db")
	}
	migrate(t, o, schema.MigrateOptions{})
	s := open(t, o)
	if _, err := s.CreateDomain(t.Context(), "d"); err != nil {
		t.Fatal(err)
	}
	return s
}

// TestBatch puts faults of every kind among good calls of one batch.
func TestBatch(t *testing.T) {
	t.Parallel()
	s := newStore(t, Options{})
	set := func(field string) func(*tx) error {
		return func(t *tx) error { return t.setSetting(field, "1") }
	}
	waits := func() error { return nil }
	refusal := errors.New("refused")
	w := &writer{conn: s.writer.conn, stmts: make(map[string]*sql.Stmt), tokens: s.writer.tokens} // its loop is idle
	run := func(calls ...*call) []error {
		for _, c := range calls {
			c.done = make(chan error, 1)
			if c.gone == nil {
				c.gone = waits
			}
		}
		w.commit(calls)
		errs := make([]error, len(calls))
		for i, c := range calls {
			errs[i] = <-c.done
		}
		return errs
	}
	has := func(field string, want bool) {
		t.Helper()
		if _, ok, err := s.Setting(t.Context(), field); err != nil || ok != want {
			t.Errorf("setting %s is there: %t, %v; want %t", field, ok, err, want)
		}
	}
	errs := run(
		&call{run: set("a")},
		&call{run: func(t *tx) error { return errors.Join(set("half")(t), refusal) }},
		&call{run: func(t *tx) error { // the database refuses it
			_, err := t.exec("INSERT INTO domain (dmid, namespace) VALUES (1, 'again')")
			return err
		}},
		&call{run: set("left"), gone: func() error { return context.Canceled }},
		&call{run: set("b")},
	)
	if errs[0] != nil || !errors.Is(errs[1], refusal) || !isDuplicate(errs[2]) || !errors.Is(errs[3], context.Canceled) || errs[4] != nil {
		t.Errorf("outcomes are %v", errs)
	}
	for field, want := range map[string]bool{"a": true, "half": false, "left": false, "b": true} {
		has(field, want)
	}

	// One takes the whole transaction with it: the others are applied again.
	errs = run(
		&call{run: set("c")},
		&call{run: func(t *tx) error {
			return errors.Join(func() error { _, err := t.exec("ROLLBACK"); return err }(), refusal)
		}},
		&call{run: set("e")},
	)
	if errs[0] != nil || errs[1] == nil || errs[2] != nil {
		t.Errorf("outcomes are %v", errs)
	}
	has("c", true)
	has("e", true)
	for _, stmt := range w.stmts {
		if err := stmt.Close(); err != nil {
			t.Error(err)
		}
	}
}

// TestDiskFull fills the database: what is acknowledged is there, what is not
// is not, and it goes on when there is room again.
func TestDiskFull(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s := newStore(t, Options{})
	limit := func(pages string) {
		t.Helper()
		if err := change(ctx, s, func(t *tx) error {
			var n int64
			_, err := t.row("PRAGMA max_page_count = "+pages, nil, &n)
			return err
		}); err != nil {
			t.Fatal(err)
		}
	}
	limit("100")
	var mu sync.Mutex
	acked := make(map[string]bool)
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			for j := range 100 {
				field, value := fmt.Sprint(i, "/", j), strings.Repeat("x", 500)
				err := s.SetSetting(ctx, field, &value)
				if err != nil && !errors.Is(err, schema.ErrUnavailable) {
					t.Errorf("set %s: %v; want an error matching ErrUnavailable", field, err)
				}
				mu.Lock()
				acked[field] = err == nil
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	settings, err := s.Settings(ctx)
	if err != nil {
		t.Fatal(err)
	}
	full := 0
	for field, ok := range acked {
		if _, there := settings[field]; there != ok {
			t.Errorf("setting %s: acknowledged %t, there %t", field, ok, there)
		}
		if !ok {
			full++
		}
	}
	if full == 0 || full == len(acked) {
		t.Errorf("%d of %d writes found the disk full; want some", full, len(acked))
	}
	limit("1000000")
	value := strings.Repeat("x", 5000)
	if err := s.SetSetting(ctx, "again", &value); err != nil {
		t.Errorf("with room again: %v", err)
	}
}

// TestStrangersLock has another program hold the database's write lock.
func TestStrangersLock(t *testing.T) {
	t.Parallel()
	s := newStore(t, Options{BusyTimeout: 300 * time.Millisecond})
	db, err := sql.Open("sqlite", s.o.uri("rw"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	db.SetMaxOpenConns(1)
	if _, err := db.ExecContext(t.Context(), "BEGIN IMMEDIATE"); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	began := time.Now()
	if err := s.SetSetting(ctx, "x", new(string)); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("with a deadline: %v", err)
	}
	if took := time.Since(began); took > 250*time.Millisecond {
		t.Errorf("with a deadline of 20 ms it took %s", took)
	}
	if err := s.SetSetting(t.Context(), "y", new(string)); !errors.Is(err, schema.ErrUnavailable) {
		t.Errorf("after the busy timeout: %v; want an error matching ErrUnavailable", err)
	}
	if _, err := s.Settings(t.Context()); err != nil { // readers do not mind
		t.Error(err)
	}
	if _, err := db.ExecContext(t.Context(), "ROLLBACK"); err != nil {
		t.Fatal(err)
	}
	if err := s.SetSetting(t.Context(), "z", new(string)); err != nil {
		t.Errorf("when the stranger has left: %v", err)
	}
}

// TestCloseDrains closes a store that is busy: calls are done or refused, and
// what is acknowledged is there afterwards.
func TestCloseDrains(t *testing.T) {
	t.Parallel()
	s := newStore(t, Options{})
	var mu sync.Mutex
	var acked []string
	first := make(chan struct{}, 1)
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			for j := 0; ; j++ {
				field := fmt.Sprint(i, "/", j)
				err := s.SetSetting(t.Context(), field, new(string))
				if errors.Is(err, schema.ErrUnavailable) {
					return
				}
				if err != nil {
					t.Errorf("set %s: %v", field, err)
					return
				}
				mu.Lock()
				acked = append(acked, field)
				mu.Unlock()
				select {
				case first <- struct{}{}:
				default:
				}
			}
		})
	}
	<-first
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	wg.Wait()
	s = open(t, s.o)
	settings, err := s.Settings(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, field := range acked {
		if _, ok := settings[field]; !ok {
			t.Errorf("setting %s was acknowledged, and is not there", field)
		}
	}
}

// TestKill9 kills a process in the midst of its writes, several times: what it
// acknowledged is there, and no fid is issued again.
func TestKill9(t *testing.T) {
	t.Parallel()
	s := newStore(t, Options{})
	o := s.o
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	seen := make(map[string]bool)
	for round := range 3 {
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestKill9Victim$")
		cmd.Env = append(os.Environ(), "MOGILE_TEST_VICTIM="+o.Path)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		acked := make(map[string]string) // fid by key
		lines := bufio.NewScanner(out)
		for lines.Scan() {
			f := strings.Fields(lines.Text())
			if len(f) != 3 {
				continue // a line cut short, or the test binary's own
			}
			switch f[0] {
			case "open":
				if seen[f[1]] {
					t.Errorf("round %d: fid %s was issued twice", round, f[1])
				}
				seen[f[1]] = true
			case "closed":
				acked[f[2]] = f[1]
			}
			if len(acked) == 80 {
				if err := cmd.Process.Kill(); err != nil {
					t.Fatal(err)
				}
			}
		}
		_ = cmd.Wait() // killed
		if len(acked) < 80 {
			t.Fatalf("round %d: only %d closes were acknowledged", round, len(acked))
		}
		s := open(t, o)
		for key, fid := range acked {
			f, _, err := s.FileByKey(t.Context(), 1, key)
			if err != nil || f.FID.String() != fid {
				t.Errorf("round %d: key %s: fid %d, %v; want %s", round, key, f.FID, err, fid)
			}
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestKill9Victim is the process that TestKill9 kills.
func TestKill9Victim(t *testing.T) {
	path := os.Getenv("MOGILE_TEST_VICTIM")
	if path == "" {
		t.Skip("runs as a child of TestKill9")
	}
	s := open(t, Options{Path: path})
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for t.Context().Err() == nil {
				fid, err := s.CreateTempfile(t.Context(), schema.Tempfile{DMID: 1, DevIDs: []protocol.DevID{1}})
				if err != nil {
					t.Errorf("create: %v", err)
					return
				}
				fmt.Printf("open %d %d\n", fid, i)
				key := fmt.Sprint("key", fid)
				if err := s.CloseFile(t.Context(), schema.Close{FID: fid, DMID: 1, Key: key, DevID: 1}); err != nil {
					t.Errorf("close: %v", err)
					return
				}
				fmt.Printf("closed %d %s\n", fid, key)
			}
		})
	}
	wg.Wait()
}

func TestPrefixEnd(t *testing.T) {
	t.Parallel()
	for prefix, want := range map[string]string{"a": "b", "az": "a{", "\xc3\xbf": "\xc3\xc0", "a\xff\xff": "b"} {
		if got := prefixEnd(prefix); got != want {
			t.Errorf("prefixEnd(%q) is %q; want %q", prefix, got, want)
		}
	}
	for _, prefix := range []string{"", "\xff", "\xff\xff"} {
		if got, ok := prefixEnd(prefix).([]byte); !ok || len(got) == 0 {
			t.Errorf("prefixEnd(%q) is %v; want a blob", prefix, got)
		}
	}
}
