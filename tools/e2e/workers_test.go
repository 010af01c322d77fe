package e2e

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/mogile/mogile/schema"
	"github.com/mogile/mogile/schema/postgres"
	"github.com/mogile/mogile/schema/postgres/pgtest"
)

// want has every tracker want n workers of a job.
func (c *Cluster) want(n int, job string) {
	c.t.Helper()
	for _, addr := range c.Addrs {
		conn, err := net.DialTimeout("tcp", addr, 10*time.Second)
		if err != nil {
			c.t.Fatal(err)
		}
		if err := conn.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
			c.t.Fatal(err)
		}
		_, werr := fmt.Fprintf(conn, "!want %d %s\r\n", n, job)
		line, err := bufio.NewReader(conn).ReadString('\n')
		if err := errors.Join(werr, err, conn.Close()); err != nil || !strings.HasPrefix(line, "Now desiring") {
			c.t.Fatalf("!want %d %s: %q, %v", n, job, line, err)
		}
	}
}

// workersDone are how long the workers of some trackers needed for the same
// files, once for each kind of work.
type workersDone struct {
	replicate, fsck, remove time.Duration
}

// workers measures the trackers' workers on n small files of two copies: each
// kind of work is piled up while there are no workers for it. Everything is
// done once, which it verifies.
func workers(t testing.TB, dsn string, trackers, n int) workersDone {
	t.Helper()
	var done workersDone
	c := StartCluster(t, Spec{Engine: "postgres", DSN: dsn, Hosts: 3, Devices: 2, Trackers: trackers, Key: true})
	ctx := context.Background()
	store, err := postgres.Open(ctx, postgres.Options{DSN: c.DSN, MaxConns: 2, Log: zerolog.Nop()})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := store.Close(); err != nil {
			t.Error(err)
		}
	}()
	c.want(0, "replicate")
	within(t, 30*time.Second, "no replicate workers", func() error {
		if left := c.Metric("mogile_tracker_workers", `job="replicate"`); left > 0 {
			return fmt.Errorf("%.0f left", left)
		}
		return nil
	})
	body := make([]byte, 4096)
	eachParallel(n, 16, func(i int) {
		if err := c.Put(fmt.Sprintf("w/%d", i), "", body); err != nil {
			t.Errorf("put: %v", err)
		}
	})
	empty := func(what string, q schema.Queue) time.Duration {
		began := time.Now()
		within(t, 10*time.Minute, what, func() error {
			rows, err := store.QueueLengths(ctx)
			if err == nil && rows[q] > 0 {
				err = fmt.Errorf("%d rows", rows[q])
			}
			return err
		})
		return time.Since(began)
	}
	c.want(16, "replicate")
	done.replicate = empty("every file has two copies", schema.QueueReplicate)
	if got := c.Metric("mogile_replicate_copies_total"); got != float64(n) {
		t.Errorf("%.0f copies tried for %d files", got, n)
	}

	c.Do("fsck_reset")
	began := time.Now()
	c.Do("fsck_start")
	within(t, 10*time.Minute, "fsck is over", func() error {
		fields, err := c.Try("fsck_status")
		if err == nil && fields.Get("running") != "0" {
			err = fmt.Errorf("%v", fields)
		}
		return err
	})
	done.fsck = time.Since(began)
	if got := c.Metric("mogile_fsck_files_total"); got != float64(n) {
		t.Errorf("fsck checked %.0f files of %d", got, n)
	}

	c.want(0, "delete")
	within(t, 30*time.Second, "no delete workers", func() error {
		if left := c.Metric("mogile_tracker_workers", `job="delete"`); left > 0 {
			return fmt.Errorf("%.0f left", left)
		}
		return nil
	})
	eachParallel(n, 16, func(i int) { c.Do("delete", "domain="+domain, fmt.Sprintf("key=w/%d", i)) })
	c.want(4, "delete")
	done.remove = empty("every file is deleted", schema.QueueDelete)
	if got := c.Metric("mogile_delete_copies_total"); got != float64(2*n) {
		t.Errorf("%.0f copies deleted of %d files", got, n)
	}
	return done
}

// TestWorkIsDoneOnce has three trackers share the work of replication, fsck and
// deletion, and counts it.
func TestWorkIsDoneOnce(t *testing.T) {
	scenario(t)
	t.Parallel()
	workers(t, "", 3, scale(200))
}

// BenchmarkWorkers is what the workers of one tracker, and of three, do in a
// second: small files, direct copies, PostgreSQL, all on this machine.
func BenchmarkWorkers(b *testing.B) {
	server := pgtest.Start(b, pgtest.ServerOptions{})
	for _, trackers := range []int{1, 3} {
		b.Run(fmt.Sprintf("trackers=%d", trackers), func(b *testing.B) {
			const n = 3000
			var sum workersDone
			runs := 0
			for b.Loop() {
				done := workers(b, server.Database(b, ""), trackers, n)
				sum.replicate += done.replicate
				sum.fsck += done.fsck
				sum.remove += done.remove
				runs++
			}
			each := func(d time.Duration) float64 { return float64(runs*n) / d.Seconds() }
			b.ReportMetric(each(sum.replicate), "copies/s")
			b.ReportMetric(each(sum.fsck), "checked/s")
			b.ReportMetric(each(sum.remove), "files_deleted/s")
			b.ReportMetric(0, "ns/op")
		})
	}
}
