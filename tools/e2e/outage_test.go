package e2e

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/schema/postgres/pgtest"
)

// TestHungHostHoldsNobodyUp stops a storage daemon in its tracks, so that its
// ports accept and never answer. Clients of other keys go on within the
// deadlines, and the host is used again when it returns.
func TestHungHostHoldsNobodyUp(t *testing.T) {
	scenario(t)
	t.Parallel()
	c := StartCluster(t, Spec{})
	files := makeFiles(t, 20)
	c.putAll(files)
	c.checkAll(files)
	c.Hosts[0].Signal(syscall.SIGSTOP)
	defer c.Hosts[0].Signal(syscall.SIGCONT)

	// What does not need the host is answered at once all along.
	stop := make(chan struct{})
	var slowest time.Duration
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			began := time.Now()
			if _, err := c.Paths(files[0].key); err != nil {
				t.Errorf("get_paths while a host hangs: %v", err)
				return
			}
			slowest = max(slowest, time.Since(began))
		}
	})
	within(t, 30*time.Second, "the monitor sees that the host hangs", func() error {
		fields := c.Do("get_devices")
		for n := range fields.Number("devices") {
			dev := fmt.Sprintf("dev%d_", n+1)
			if fields.Get(dev+"hostid") == "1" && fields.Get(dev+"observed_state") == "writeable" && c.hostReachable(fields, dev) {
				return errors.New("still thought writeable")
			}
		}
		return nil
	})
	// From then on nobody is sent there.
	for i := range 20 {
		key := fmt.Sprintf("while-hung-%d", i)
		if err := c.Put(key, "default", []byte("x")); err != nil {
			t.Errorf("put while a host hangs: %v", err)
		}
		paths := c.WaitPolicy(key, 2)
		if slices.ContainsFunc(paths, func(p string) bool { return strings.Contains(p, "//127.0.0.1:") }) {
			t.Errorf("%s was put on the host that hangs: %q", key, paths)
		}
	}
	close(stop)
	wg.Wait()
	if slowest > 5*time.Second {
		t.Errorf("a get_paths took %v while a host hung", slowest)
	}
	c.Hosts[0].Signal(syscall.SIGCONT)
	c.WaitWriteable()
	c.checkAll(files)
}

// hostReachable tells whether the tracker offers the device when it is asked
// often for as many as it gives.
func (c *Cluster) hostReachable(fields protocol.Args, dev string) bool {
	for range 20 {
		open, err := c.Try("create_open", "domain="+domain, "key=probe", "multi_dest=1")
		if err != nil {
			return false
		}
		for n := range open.Number("dev_count") {
			if open.Get(fmt.Sprintf("devid_%d", n+1)) == fields.Get(dev+"devid") {
				return true
			}
		}
	}
	return false
}

// TestDatabaseGoesAndReturns stops PostgreSQL under a running cluster: requests
// are refused within their deadline, and all goes on when it is back.
func TestDatabaseGoesAndReturns(t *testing.T) {
	t.Parallel()
	pg := pgtest.Start(t, pgtest.ServerOptions{})
	c := StartCluster(t, Spec{Engine: "postgres", DSN: pg.DSN(), Trackers: 2})
	files := makeFiles(t, 20)
	c.putAll(files)
	pg.Kill()
	began := time.Now()
	_, err := c.Try("create_open", "domain="+domain, "key=k")
	if e := (*protocol.Error)(nil); !errors.As(err, &e) || e.Code != "failure" && e.Code != "db" {
		t.Errorf("create_open without a database: %v, want failure", err)
	}
	if took := time.Since(began); took > 15*time.Second {
		t.Errorf("create_open without a database took %v", took)
	}
	if _, err := c.Try("noop"); err != nil {
		t.Errorf("noop without a database: %v", err)
	}
	if err := pg.Restart(); err != nil {
		t.Fatal(err)
	}
	within(t, 30*time.Second, "the tracker finds the database again", func() error {
		return c.Put("after", "default", []byte("after the outage"))
	})
	c.checkAll(files)
	c.WaitPolicy("after", 2)
	for _, p := range c.Trackers {
		if err := p.Alive(); err != nil {
			t.Error(err)
		}
	}
}

// TestFIDsAreNeverIssuedTwice kills PostgreSQL with SIGKILL while uploads are
// opened, whose rows are committed asynchronously: what the database forgets
// must not be issued again.
func TestFIDsAreNeverIssuedTwice(t *testing.T) {
	t.Parallel()
	pg := pgtest.Start(t, pgtest.ServerOptions{})
	c := StartCluster(t, Spec{Engine: "postgres", DSN: pg.DSN(), Trackers: 2, Hosts: 1})
	var mu sync.Mutex // guards issued
	issued := map[string]int{}
	for round := range scale(5) {
		stop := make(chan struct{})
		var wg sync.WaitGroup
		before := len(issued)
		for range 8 {
			wg.Go(func() {
				for {
					select {
					case <-stop:
						return
					default:
					}
					fields, err := c.Try("create_open", "domain="+domain, "key=k", "class=single")
					if err != nil {
						continue
					}
					mu.Lock()
					if first, twice := issued[fields.Get("fid")]; twice {
						t.Errorf("fid %s was issued in round %d and again in round %d", fields.Get("fid"), first, round)
					}
					issued[fields.Get("fid")] = round
					mu.Unlock()
				}
			})
		}
		within(t, time.Minute, "uploads are opened", func() error {
			mu.Lock()
			defer mu.Unlock()
			if len(issued) < before+50 {
				return fmt.Errorf("%d so far", len(issued)-before)
			}
			return nil
		})
		pg.Kill()
		close(stop)
		wg.Wait()
		if err := pg.Restart(); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%d fids issued", len(issued))
}
