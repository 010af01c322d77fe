package postgres

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/schema"
	"github.com/mogile/mogile/schema/postgres/pgtest"
	"github.com/mogile/mogile/schema/storetest"
)

var noOffset = storetest.Options{ClockOffset: func() time.Duration { return 0 }}

// eventually waits until done is true.
func eventually(t *testing.T, what string, done func() bool) {
	t.Helper()
	timeout := time.After(30 * time.Second)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !done() {
		select {
		case <-timeout:
			t.Fatalf("waited in vain until %s", what)
		case <-tick.C:
		}
	}
}

// TestServerGoesAndReturns kills the server under closes; what was acknowledged
// is there afterwards, and what was not is either closed or open, as one.
func TestServerGoesAndReturns(t *testing.T) {
	t.Parallel()
	server := pgtest.Start(t, pgtest.ServerOptions{Settings: map[string]string{"synchronous_commit": "off", "wal_writer_delay": "10s"}})
	migrate(t, server.DSN(), schema.MigrateOptions{})
	s := open(t, Options{DSN: server.DSN(), MaxConns: 8})
	ctx := t.Context()
	dmid, err := s.CreateDomain(ctx, "d")
	if err != nil {
		t.Fatal(err)
	}
	held, lost, err := s.TryLock(ctx, []string{schema.FIDLock(1)})
	if err != nil || len(held) != 1 {
		t.Fatal(held, err)
	}

	var mu sync.Mutex
	closed := make(map[string]protocol.FID)
	var wg sync.WaitGroup
	progress := make(chan struct{}, 1000)
	for g := range 8 {
		wg.Go(func() {
			for i := 0; ; i++ {
				key := fmt.Sprintf("%d/%d", g, i)
				fid, err := s.CreateTempfile(ctx, schema.Tempfile{DMID: dmid, Key: key, DevIDs: []protocol.DevID{1}})
				if err == nil {
					err = s.CloseFile(ctx, schema.Close{FID: fid, DMID: dmid, Key: key, DevID: 1})
				}
				if err != nil {
					if !errors.Is(err, schema.ErrUnavailable) {
						t.Errorf("while the server goes: %v; want ErrUnavailable", err)
					}
					return
				}
				mu.Lock()
				closed[key] = fid
				mu.Unlock()
				select {
				case progress <- struct{}{}:
				default:
				}
			}
		})
	}
	for range 50 {
		<-progress
	}
	server.Kill()
	wg.Wait()
	select {
	case <-lost:
	case <-time.After(20 * time.Second):
		t.Error("the locks are not reported as lost")
	}
	began := time.Now()
	if err := s.Ping(ctx); !errors.Is(err, schema.ErrUnavailable) {
		t.Errorf("Ping without a server: %v; want ErrUnavailable", err)
	}
	if _, _, err := s.TryLock(ctx, []string{"a"}); !errors.Is(err, schema.ErrUnavailable) {
		t.Errorf("TryLock without a server: %v; want ErrUnavailable", err)
	}
	if took := time.Since(began); took > 15*time.Second {
		t.Errorf("that took %s to find out", took)
	}
	if err := server.Restart(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the server is found again", func() bool { return s.Ping(ctx) == nil })
	for key, fid := range closed {
		if f, _, err := s.FileByKey(ctx, dmid, key); err != nil || f.FID != fid {
			t.Errorf("key %s was acknowledged with fid %d; now %d, %v", key, fid, f.FID, err)
		}
	}
	torn := query[int](t, server.DSN(), `SELECT count(*) FROM file f WHERE NOT EXISTS (SELECT FROM file_on o WHERE o.fid = f.fid)
		OR NOT EXISTS (SELECT FROM file_to_replicate q WHERE q.fid = f.fid) OR EXISTS (SELECT FROM tempfile t WHERE t.fid = f.fid)`)
	if torn != 0 {
		t.Errorf("%d closes were done in part", torn)
	}
	if held, _, err := s.TryLock(ctx, []string{schema.FIDLock(1)}); err != nil || len(held) != 1 {
		t.Errorf("the lock cannot be taken again: %v, %v", held, err)
	}
}

func TestLostLockSession(t *testing.T) {
	t.Parallel()
	d := fresh(t, noOffset).(database)
	s, other := d.Open(t), d.Open(t)
	ctx := t.Context()
	names := []string{schema.FIDLock(1), schema.FIDLock(2)}
	held, lost, err := s.TryLock(ctx, names)
	if err != nil || !slices.Equal(slices.Sorted(slices.Values(held)), names) {
		t.Fatal(held, err)
	}
	if held, _, err := other.TryLock(ctx, names); err != nil || len(held) != 0 {
		t.Fatalf("two hold one lock: %v, %v", held, err)
	}
	if n := query[int](t, d.dsn, `SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND classid = $1 AND objid = $2`,
		lockSpace, lockKey(names[0])); n != 1 {
		t.Errorf("%d advisory locks of the documented key", n)
	}
	exec(t, d.dsn, `SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND objid = `+fmt.Sprint(lockKey(names[0])))
	select {
	case <-lost:
	case <-time.After(20 * time.Second):
		t.Fatal("the loss was not noticed")
	}
	if held, _, err := other.TryLock(ctx, names); err != nil || len(held) != 2 {
		t.Errorf("locks of a lost session: %v, %v", held, err)
	}
	held, lost, err = s.TryLock(ctx, append(names, schema.FIDLock(3)))
	if err != nil || !slices.Equal(held, []string{schema.FIDLock(3)}) {
		t.Errorf("a new session took %v, %v", held, err)
	}
	select {
	case <-lost:
		t.Error("a new session is lost from the start")
	default:
	}
	if err := s.Unlock(ctx, append(names, schema.FIDLock(3))); err != nil {
		t.Error(err)
	}
}

func TestChangesSurviveALostConnection(t *testing.T) {
	t.Parallel()
	d := fresh(t, noOffset).(database)
	s, other := d.Open(t), d.Open(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	changes := s.Changes(ctx)
	listening := func() int {
		return query[int](t, d.dsn, `SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND query = 'LISTEN mogile_changes' AND state = 'idle'`)
	}
	eventually(t, "the store listens", func() bool { return listening() == 1 })
	if err := s.Announce(ctx); err != nil {
		t.Fatal(err)
	}
	if err := other.Announce(ctx); err != nil {
		t.Fatal(err)
	}
	next := func() {
		t.Helper()
		select {
		case <-changes:
		case <-time.After(30 * time.Second):
			t.Fatal("no change is delivered")
		}
	}
	next()
	select {
	case <-changes:
		t.Error("a store's own announcement is delivered to it")
	default:
	}
	exec(t, d.dsn, `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND query = 'LISTEN mogile_changes'`)
	next() // some may have been missed
	if err := other.Announce(ctx); err != nil {
		t.Fatal(err)
	}
	next()
	cancel()
	for range changes {
	}
}

// TestOtherModes runs the main path as a pooler in front of the database may
// need it, and on databases of another encoding and collation.
func TestOtherModes(t *testing.T) {
	t.Parallel()
	icu := "LOCALE_PROVIDER icu ICU_LOCALE 'en-US' TEMPLATE template0"
	for name, c := range map[string]struct {
		create, mode string
		keys         []string // in byte order
	}{
		"exec":            {mode: "exec", keys: []string{"A", "a"}},
		"simple protocol": {mode: "simple_protocol", keys: []string{"A", "a'\\"}},
		"cache describe":  {mode: "cache_describe", keys: []string{"A", "a"}},
		"SQL_ASCII":       {create: "ENCODING 'SQL_ASCII' LOCALE 'C' TEMPLATE template0", keys: []string{"A", "a", "\xc3\xa9", "\xfe\xff"}},
		"ICU collation":   {create: icu, keys: []string{"B", "Z", "_", "a", "b", "é"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if c.create == icu && query[int](t, pgtest.DSN(t), `SELECT current_setting('server_version_num')::int`) < 150000 {
				t.Skip("databases with ICU need PostgreSQL 15")
			}
			dsn := pgtest.Database(t, c.create)
			migrate(t, dsn, schema.MigrateOptions{})
			if c.mode != "" {
				dsn += "&default_query_exec_mode=" + url.QueryEscape(c.mode)
			}
			s := open(t, Options{DSN: dsn})
			mainPath(t, s, c.keys)
		})
	}
}

func mainPath(t *testing.T, s *Store, keys []string) {
	ctx := t.Context()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	dmid, err := s.CreateDomain(ctx, "d")
	must(err)
	_, err = s.CreateClass(ctx, "d", schema.Class{Name: "c", MinDevCount: 2, HashType: protocol.HashMD5})
	must(err)
	host, err := s.CreateHost(ctx, schema.Host{Status: schema.HostAlive, Name: "h", IP: "10.0.0.1", Port: 7500})
	must(err)
	must(s.CreateDevice(ctx, schema.Device{ID: 1, HostID: host, Status: schema.DeviceAlive}))
	must(s.SetDeviceUsage(ctx, []schema.Usage{{DevID: 1, TotalMB: 100, UsedMB: 1}}))
	_, err = s.Topology(ctx)
	must(err)
	sum := protocol.Checksum{Type: protocol.HashMD5, Sum: make([]byte, 16)}
	for range 2 { // the second time over the first
		var wg sync.WaitGroup
		for _, key := range keys {
			wg.Go(func() {
				fid, err := s.CreateTempfile(ctx, schema.Tempfile{DMID: dmid, Key: key, ClassID: 1, DevIDs: []protocol.DevID{1, 2}})
				if err == nil {
					err = s.CloseFile(ctx, schema.Close{FID: fid, DMID: dmid, Key: key, ClassID: 1, Length: 5, DevID: 1, Checksum: sum})
				}
				if err == nil {
					err = s.AddLocation(ctx, fid, 2, []protocol.DevID{1})
				}
				if err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
	}
	for _, key := range keys {
		f, devs, err := s.FileByKey(ctx, dmid, key)
		must(err)
		if f.Key != key || len(devs) != 2 || f.DevCount != 2 {
			t.Errorf("key %q: %+v on %v", key, f, devs)
		}
		got, err := s.Checksum(ctx, f.FID)
		must(err)
		if !got.Equal(sum) {
			t.Errorf("checksum %s", got)
		}
		_, err = s.DebugFile(ctx, f.FID)
		must(err)
	}
	got, err := s.ListKeys(ctx, dmid, "", "", 100)
	must(err)
	if !slices.Equal(got, keys) {
		t.Errorf("keys %q; want %q", got, keys)
	}
	for _, q := range []schema.Queue{schema.QueueReplicate, schema.QueueDelete} {
		jobs, err := s.Claim(ctx, q, 100, time.Minute)
		must(err)
		jobs, err = s.Renew(ctx, jobs, time.Minute)
		must(err)
		if n, err := s.Finish(ctx, jobs); err != nil || n < len(keys) {
			t.Errorf("queue %s: finished %d, %v", q, n, err)
		}
	}
	must(s.RenameKey(ctx, dmid, keys[0], "renamed"))
	_, err = s.DeleteKey(ctx, dmid, "renamed")
	must(err)
	if held, _, err := s.TryLock(ctx, []string{"a", "b"}); err != nil || len(held) != 2 {
		t.Errorf("locks: %v, %v", held, err)
	}
	_, err = s.ExpireTempfiles(ctx, time.Hour, 10)
	must(err)
	if ok, err := s.HoldLease(ctx, "l", "me", time.Minute); !ok || err != nil {
		t.Errorf("lease: %t, %v", ok, err)
	}
	must(s.Announce(ctx))
}
