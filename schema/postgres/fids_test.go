package postgres

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/schema"
	"github.com/mogile/mogile/schema/postgres/pgtest"
)

// counter is a sequence.
type counter struct {
	mu     sync.Mutex
	last   protocol.FID
	blocks []int // sizes asked for
	err    error
}

func (c *counter) fetch(_ context.Context, n int) ([]protocol.FID, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return nil, c.err
	}
	c.blocks = append(c.blocks, n)
	fids := make([]protocol.FID, n)
	for i := range fids {
		c.last++
		fids[i] = c.last
	}
	return fids, nil
}

func TestFIDBlocks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var c counter
		f := newFIDBlocks(t.Context(), c.fetch)
		seen := make(map[protocol.FID]bool)
		draw := func() protocol.FID {
			t.Helper()
			fid, err := f.next(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if seen[fid] {
				t.Fatalf("fid %d was issued twice", fid)
			}
			seen[fid] = true
			return fid
		}
		if fid := draw(); fid != 1 {
			t.Errorf("the first fid is %d", fid)
		}
		// What a block holds is thrown away when it is 5 s old.
		time.Sleep(blockLife)
		if fid := draw(); fid != minBlock+1 {
			t.Errorf("after %s: fid %d; want the first of the next block", blockLife, fid)
		}
		if n := c.blocks[1]; n != minBlock {
			t.Errorf("the second block has %d fids; want the least, %d", n, minBlock)
		}
		// Blocks grow with the demand, up to a bound, and shrink without it.
		for range 50_000 {
			draw()
		}
		if n := c.blocks[len(c.blocks)-1]; n != maxBlock {
			t.Errorf("blocks have %d fids; want %d", n, maxBlock)
		}
		for range 3 {
			time.Sleep(blockLife + time.Second)
			draw()
			synctest.Wait()
		}
		if n := c.blocks[len(c.blocks)-1]; n > 4*minBlock {
			t.Errorf("after little demand blocks have %d fids", n)
		}
		c.err = errors.New("away")
		time.Sleep(blockLife)
		if _, err := f.next(t.Context()); !errors.Is(err, c.err) {
			t.Errorf("error is %v; want %v", err, c.err)
		}
		c.err = nil
		draw()
		f.discard()
		if fid := draw(); fid <= c.last-maxBlock && fid < c.last-protocol.FID(c.blocks[len(c.blocks)-1]) {
			t.Errorf("fid %d after the blocks were thrown away", fid)
		}
		f.close()
	})
}

// TestKilledServerNeverIssuesAFIDTwice has PostgreSQL die again and again while
// fids are drawn from it, with asynchronous commit as its default, so that
// nothing reaches the disk that does not insist.
func TestKilledServerNeverIssuesAFIDTwice(t *testing.T) {
	t.Parallel()
	server := pgtest.Start(t, pgtest.ServerOptions{Settings: map[string]string{
		"synchronous_commit": "off", "wal_writer_delay": "10s", "wal_writer_flush_after": "1GB",
	}})
	migrate(t, server.DSN(), schema.MigrateOptions{})
	s := open(t, Options{DSN: server.DSN(), MaxConns: 4})
	stranger := connect(t, server.DSN())

	rounds := 4
	if os.Getenv("MOGILE_TEST_SCALE") != "" {
		rounds = 40
	}
	var mu sync.Mutex
	seen := make(map[protocol.FID]int)
	for round := range rounds {
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		enough := make(chan struct{}, 1000)
		for range 4 {
			wg.Go(func() {
				for ctx.Err() == nil {
					fid, err := s.CreateTempfile(ctx, schema.Tempfile{DMID: 1, Key: "k", DevIDs: []protocol.DevID{1}})
					if err != nil { // the server is gone, or not yet back
						_ = pause(ctx, 5*time.Millisecond)
						continue
					}
					mu.Lock()
					if r, ok := seen[fid]; ok {
						t.Errorf("fid %d was issued in round %d and in round %d", fid, r, round)
					}
					seen[fid] = round
					mu.Unlock()
					select {
					case enough <- struct{}{}:
					default:
					}
				}
			})
		}
		// A tracker of MogileFS draws from the sequence too, and what the server
		// logs ahead for it covers fids of ours.
		for range 30 + rand.IntN(100) {
			<-enough
			if _, err := stranger.Exec(ctx, `SELECT nextval('tempfile_fid_seq')`); err != nil {
				t.Fatal(err)
			}
		}
		server.Kill()
		cancel()
		wg.Wait()
		if err := server.Restart(); err != nil {
			t.Fatal(err)
		}
		stranger = connect(t, server.DSN())
	}
	if len(seen) < 30*rounds {
		t.Errorf("only %d fids were drawn", len(seen))
	}
}

// TestAllocationReachesTheDisk draws fids that the server's log covers already,
// by a record of somebody else's that is in memory only: the allocation itself
// logs nothing, and must insist on the disk all the same.
func TestAllocationReachesTheDisk(t *testing.T) {
	t.Parallel()
	server := pgtest.Start(t, pgtest.ServerOptions{Settings: map[string]string{
		"synchronous_commit": "off", "wal_writer_delay": "10s", "wal_writer_flush_after": "1GB",
	}})
	migrate(t, server.DSN(), schema.MigrateOptions{})
	s := open(t, Options{DSN: server.DSN()})
	seen := make(map[protocol.FID]bool)
	for range 3 {
		stranger := connect(t, server.DSN())
		if _, err := stranger.Exec(t.Context(), `CHECKPOINT`); err != nil {
			t.Fatal(err)
		}
		// The first draw after a checkpoint is logged, with 32 values ahead.
		if _, err := stranger.Exec(t.Context(), `SELECT nextval('tempfile_fid_seq')`); err != nil {
			t.Fatal(err)
		}
		var fids []protocol.FID
		eventually(t, "the store finds the server again", func() bool {
			var err error
			fids, err = s.allocate(t.Context(), 8)
			return err == nil
		})
		for _, fid := range fids {
			if seen[fid] {
				t.Errorf("fid %d was issued twice", fid)
			}
			seen[fid] = true
		}
		server.Kill()
		if err := server.Restart(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestPromotedServer makes a new timeline of a database under a running store,
// as a fail-over to a standby does.
func TestPromotedServer(t *testing.T) {
	t.Parallel()
	server := pgtest.Start(t, pgtest.ServerOptions{})
	migrate(t, server.DSN(), schema.MigrateOptions{})
	s := open(t, Options{DSN: server.DSN()})
	create := func() protocol.FID {
		t.Helper()
		var fid protocol.FID
		eventually(t, "the store finds the server again", func() bool {
			var err error
			fid, err = s.CreateTempfile(t.Context(), schema.Tempfile{DMID: 1, Key: "k"})
			if err != nil && !errors.Is(err, schema.ErrUnavailable) {
				t.Fatal(err)
			}
			return err == nil
		})
		return fid
	}
	before := create()

	server.Stop()
	if err := server.Restart(); err != nil {
		t.Fatal(err)
	}
	same := create()
	if same >= before+originSkip {
		t.Errorf("fid %d after %d: a restart alone skips", same, before)
	}

	server.Stop()
	if err := os.WriteFile(filepath.Join(server.Data(), "standby.signal"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := server.Restart(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.CreateTempfile(t.Context(), schema.Tempfile{DMID: 1, Key: "k"}); !errors.Is(err, schema.ErrUnavailable) {
		t.Errorf("on a standby: %v; want ErrUnavailable", err)
	}
	if !query[bool](t, server.DSN(), `SELECT pg_promote()`) {
		t.Fatal("the standby was not promoted")
	}
	// Fids of a block that the old server gave out may be used up: the new one
	// gives out none before it has skipped a million.
	after := create()
	for n := 0; after < same+originSkip; n++ {
		if n > 100 {
			t.Fatalf("fid %d after %d: a fail-over skips a million", after, same)
		}
		after = create()
	}
	// Once is enough, also for other trackers.
	other := open(t, Options{DSN: server.DSN()})
	fid, err := other.CreateTempfile(t.Context(), schema.Tempfile{DMID: 1, Key: "k"})
	if err != nil || fid >= after+originSkip {
		t.Errorf("another tracker's fid: %d, %v; want one close to %d", fid, err, after)
	}
}

// TestExplicitFIDMeetsItsClose opens fids anew while they are being closed:
// either comes first, but never both stay.
func TestExplicitFIDMeetsItsClose(t *testing.T) {
	t.Parallel()
	d := fresh(t, noOffset).(database)
	s := d.Open(t)
	dmid, err := s.CreateDomain(t.Context(), "d")
	if err != nil {
		t.Fatal(err)
	}
	for i := range 50 {
		up := schema.Tempfile{DMID: dmid, Key: fmt.Sprint(i), DevIDs: []protocol.DevID{1}}
		if up.FID, err = s.CreateTempfile(t.Context(), up); err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		wg.Go(func() {
			if err := s.CloseFile(t.Context(), schema.Close{FID: up.FID, DMID: dmid, Key: up.Key, DevID: 1}); err != nil {
				t.Error(err)
			}
		})
		if _, err := s.CreateTempfile(t.Context(), up); !errors.Is(err, protocol.ErrFIDInUse) {
			t.Errorf("fid %d: %v; want fid_in_use", up.FID, err)
		}
		wg.Wait()
	}
	if n := query[int](t, d.dsn, `SELECT count(*) FROM tempfile`); n != 0 {
		t.Errorf("%d uploads are open", n)
	}
}
