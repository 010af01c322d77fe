package postgres

import (
	"context"
	"testing"
	"time"

	"github.com/mogile/mogile/schema"
)

// TestFoldAwaitsWriters: a row whose number is lower than that of another may be
// committed after it, by a tracker of MogileFS too. It must be counted.
func TestFoldAwaitsWriters(t *testing.T) {
	t.Parallel()
	d := fresh(t, noOffset).(database)
	s := d.Open(t)
	ctx := t.Context()
	count := func(want string) {
		t.Helper()
		if got, _, err := s.Setting(ctx, "fsck_sum_evcount_MISS"); err != nil || got != want {
			t.Fatalf("counted %q, %v; want %q", got, err, want)
		}
	}
	late := func() (commit func()) {
		t.Helper()
		tx, err := connect(t, d.dsn).Begin(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := tx.Exec(ctx, `INSERT INTO fsck_log (utime, fid, evcode) VALUES (1, 1, 'MISS')`); err != nil {
			t.Fatal(err)
		}
		if err := s.LogFsck(ctx, []schema.FsckEvent{{FID: 2, Code: "MISS"}}); err != nil {
			t.Fatal(err)
		}
		return func() {
			t.Helper()
			if err := tx.Commit(ctx); err != nil {
				t.Fatal(err)
			}
		}
	}
	// One that ends soon is waited for.
	commit := late()
	folded := make(chan error, 1)
	go func() { folded <- s.FoldFsckLog(ctx) }()
	select {
	case err := <-folded:
		t.Fatalf("folded with a writer at work: %v", err)
	case <-time.After(logWait / 10):
	}
	commit()
	if err := <-folded; err != nil {
		t.Fatal(err)
	}
	count("2")
	// One that does not is left for the next time.
	commit = late()
	if err := s.FoldFsckLog(ctx); err != nil {
		t.Fatal(err)
	}
	count("2")
	commit()
	if err := s.FoldFsckLog(ctx); err != nil {
		t.Fatal(err)
	}
	count("4")
}

// TestReapHoldsStatus: while files go from a device, nobody brings it back.
func TestReapHoldsStatus(t *testing.T) {
	t.Parallel()
	d := fresh(t, noOffset).(database)
	s := d.Open(t)
	ctx := t.Context()
	exec(t, d.dsn, `INSERT INTO device (devid, hostid, status) VALUES (5, 1, 'dead');
		INSERT INTO file (fid, dmid, dkey, length, classid, devcount) VALUES (1, 1, 'k', 1, 0, 1);
		INSERT INTO file_on (fid, devid) VALUES (1, 5)`)
	// A client that holds the file keeps the reaper waiting.
	tx, err := connect(t, d.dsn).Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(ctx, `SELECT FROM file WHERE fid = 1 FOR UPDATE`); err != nil {
		t.Fatal(err)
	}
	reaped := make(chan error, 1)
	go func() {
		_, err := s.Reap(ctx, 5, 10)
		reaped <- err
	}()
	const waiting = `SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'`
	eventually(t, "the reaper waits", func() bool { return query[int](t, d.dsn, waiting) == 1 })
	changed := make(chan error, 1)
	conn := connect(t, d.dsn)
	go func() { // as a tracker of MogileFS does
		_, err := conn.Exec(context.WithoutCancel(ctx), `UPDATE device SET status = 'alive' WHERE devid = 5`)
		changed <- err
	}()
	eventually(t, "the change waits, too", func() bool { return query[int](t, d.dsn, waiting) == 2 })
	if err := tx.Rollback(ctx); err != nil {
		t.Fatal(err)
	}
	if err := <-reaped; err != nil {
		t.Fatal(err)
	}
	if err := <-changed; err != nil {
		t.Fatal(err)
	}
	if _, err := s.Reap(ctx, 5, 10); err == nil {
		t.Error("a device was reaped that is alive")
	}
	if n := query[int](t, d.dsn, `SELECT count(*) FROM file_to_replicate`); n != 1 {
		t.Errorf("%d rows are queued", n)
	}
}
