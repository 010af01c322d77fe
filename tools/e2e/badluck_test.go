package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sys/unix"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/schema"
)

// asRecorded waits until the devices hold the copies that the database has,
// and nothing else, each file as many as want says.
func (c *Cluster) asRecorded(store schema.Store, d time.Duration, want func(f schema.LocatedFile) int) {
	c.t.Helper()
	ctx := context.Background()
	last := time.Now()
	within(c.t, d, "devices hold what the database says", func() error {
		if time.Since(last) > time.Second {
			c.due()
			last = time.Now()
		}
		files, err := store.ListFIDs(ctx, 0, 100_000)
		if err != nil {
			return err
		}
		fids := make([]protocol.FID, len(files))
		for i, f := range files {
			fids[i] = f.FID
		}
		located, err := store.FilesByFID(ctx, fids)
		if err != nil {
			return err
		}
		named := map[string]bool{}
		for _, f := range located {
			for _, dev := range f.Devices {
				named[c.onDisk(dev, f.FID)] = true
			}
			if n := want(f); len(f.Devices) != n {
				return fmt.Errorf("%s (fid %d) is on %v, not on %d devices", f.Key, f.FID, f.Devices, n)
			}
		}
		have, err := c.FilesOnDisk()
		if err != nil {
			return err
		}
		have = slices.DeleteFunc(have, func(path string) bool { return strings.Contains(path, "/.mogile/") })
		for _, path := range have {
			if !named[path] {
				return fmt.Errorf("%s is not known", path)
			}
			delete(named, path)
		}
		for path := range named {
			return fmt.Errorf("%s is not there, nor %d others", path, len(named)-1)
		}
		return nil
	})
}

// due makes what waits in a queue due, but for what trackers hold: MogileFS's
// delays are long.
func (c *Cluster) due() {
	c.t.Helper()
	c.sql("UPDATE file_to_replicate SET nexttry = 0 WHERE nexttry > extract(epoch FROM now()) + 140", "UPDATE file_to_delete2 SET nexttry = 0 WHERE nexttry > extract(epoch FROM now()) + 140",
		"UPDATE copy_to_delete SET nexttry = 0 WHERE nexttry > extract(epoch FROM now()) + 140")
}

// sql runs statements on the cluster's PostgreSQL.
func (c *Cluster) sql(statements ...string) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	conn, err := pgx.Connect(ctx, c.DSN)
	if err != nil {
		c.t.Fatal(err)
	}
	defer conn.Close(ctx)
	for _, s := range statements {
		if _, err := conn.Exec(ctx, s); err != nil {
			c.t.Fatalf("%s: %v", s, err)
		}
	}
}

// slow has copies take some seconds: 2 MB of a file at 1 MB a second.
var slow = []string{"--replication-bandwidth", "1M", "--replicate-jobs", "8"}

const slowBytes = 2 << 20

// copying waits until bytes of a copy are on their way.
func (c *Cluster) copying() {
	c.t.Helper()
	within(c.t, 30*time.Second, "a copy is under way", func() error {
		if c.transfers() == 0 {
			return errors.New("none")
		}
		return nil
	})
}

// transfers is how many copies the storage daemons fetch now.
func (c *Cluster) transfers() float64 {
	c.t.Helper()
	return c.HostMetric("mogile_storaged_transfers_in_progress") + c.HostMetric("mogile_storaged_transfers_waiting")
}

// TestDeletedWhileCopied deletes, and overwrites, files while they are copied.
// Nothing of them stays on any device.
func TestDeletedWhileCopied(t *testing.T) {
	scenario(t)
	t.Parallel()
	c := StartCluster(t, Spec{Engine: "postgres", Key: true, TrackerArgs: slow})
	store := c.openStore()
	for round := range scale(3) {
		key := fmt.Sprintf("k%d", round)
		if err := c.Put(key, "triple", bytes.Repeat([]byte{1}, slowBytes)); err != nil {
			t.Fatal(err)
		}
		c.copying()
		if round%2 == 0 {
			c.Do("delete", "domain="+domain, "key="+key)
		} else if err := c.Put(key, "single", []byte("small")); err != nil {
			t.Fatal(err)
		}
	}
	c.asRecorded(store, 2*time.Minute, func(f schema.LocatedFile) int { return 1 })
}

// TestTrackerKilledWhileCopying kills the tracker while it has files copied.
// The copies end with it, leave nothing, and are made again.
func TestTrackerKilledWhileCopying(t *testing.T) {
	scenario(t)
	t.Parallel()
	c := StartCluster(t, Spec{Engine: "postgres", Key: true, TrackerArgs: slow})
	store := c.openStore()
	for i := range 4 {
		if err := c.Put(fmt.Sprintf("k%d", i), "triple", bytes.Repeat([]byte{byte(i)}, slowBytes/2)); err != nil {
			t.Fatal(err)
		}
	}
	for range scale(3) {
		c.copying()
		c.Trackers[0].Kill()
		within(t, 10*time.Second, "transfers end with their order", func() error {
			if n := c.transfers(); n > 0 {
				return fmt.Errorf("%.0f are left", n)
			}
			return nil
		})
		for _, h := range c.Hosts {
			left, err := filepath.Glob(filepath.Join(h.Docroot, "dev*", ".mogile", "tmp", "*", "*"))
			if err != nil || len(left) > 0 {
				t.Errorf("left behind: %q, %v", left, err)
			}
		}
		c.sql("UPDATE file_to_replicate SET nexttry = 0, flags = 0") // its leases would end a minute or two later
		c.Trackers[0].Start()
		c.WaitWriteable()
	}
	c.asRecorded(store, 3*time.Minute, func(f schema.LocatedFile) int { return 3 })
}

// TestLocksLost takes the trackers' database sessions away while they copy and
// drop copies: their locks are gone, and nothing is done twice or left over.
func TestLocksLost(t *testing.T) {
	scenario(t)
	t.Parallel()
	c := StartCluster(t, Spec{Engine: "postgres", Key: true, Trackers: 2, TrackerArgs: []string{"--replication-bandwidth", "2M"}})
	store := c.openStore()
	n := scale(20)
	eachParallel(n, 4, func(i int) {
		if err := c.Put(fmt.Sprintf("k%d", i), "triple", bytes.Repeat([]byte{byte(i)}, 300<<10)); err != nil {
			t.Errorf("put: %v", err)
		}
	})
	ctx, cancel := context.WithCancel(context.Background())
	cut := make(chan int, 1)
	t.Cleanup(cancel)
	go func() {
		rounds := 0
		defer func() { cut <- rounds }()
		tick := time.NewTicker(400 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				if err := c.cutSessions(ctx); err != nil && ctx.Err() == nil {
					t.Errorf("cut sessions: %v", err)
					return
				}
				rounds++
			}
		}
	}()
	within(t, time.Minute, "some copies are made between the cuts", func() error {
		if got := c.Metric("mogile_replicate_copies_total", `result="ok"`); got < float64(n) {
			return fmt.Errorf("%.0f", got)
		}
		return nil
	})
	for i := range n {
		if i%2 == 0 {
			key := fmt.Sprintf("key=k%d", i)
			within(t, 30*time.Second, "updateclass", func() error {
				_, err := c.Try("updateclass", "domain="+domain, key, "class=single")
				return err
			})
		}
	}
	cancel()
	t.Logf("sessions cut %d times", <-cut)
	c.asRecorded(store, 3*time.Minute, func(f schema.LocatedFile) int {
		n, err := strconv.Atoi(strings.TrimPrefix(f.Key, "k"))
		if err != nil {
			t.Fatal(err)
		}
		return []int{1, 3}[n%2]
	})
}

// cutSessions ends about half of the sessions of the trackers.
func (c *Cluster) cutSessions(ctx context.Context) error {
	conn, err := pgx.Connect(ctx, c.DSN)
	if err != nil {
		return err
	}
	_, err = conn.Exec(ctx, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND datname = current_database() AND application_name LIKE 'mogile%' AND random() < 0.5")
	return errors.Join(err, conn.Close(context.WithoutCancel(ctx)))
}

// TestRemoversOfSurplus has three trackers take surplus copies off the same
// files again and again; none ever has fewer copies than its class wants.
func TestRemoversOfSurplus(t *testing.T) {
	scenario(t)
	t.Parallel()
	c := StartCluster(t, Spec{Engine: "postgres", Key: true, Trackers: 3})
	store := c.openStore()
	n := scale(20)
	body := []byte("surplus")
	for i := range n {
		if err := c.Put(fmt.Sprintf("k%d", i), "triple", body); err != nil {
			t.Fatal(err)
		}
	}
	c.asRecorded(store, 2*time.Minute, func(schema.LocatedFile) int { return 3 })
	stop := make(chan struct{})
	end := sync.OnceFunc(func() { close(stop) })
	t.Cleanup(end)
	watched := make(chan error, 1)
	go func() { // no file is ever on fewer devices than the smallest class wants
		for {
			select {
			case <-stop:
				watched <- nil
				return
			default:
			}
			files, err := store.ListFIDs(context.Background(), 0, 1000)
			if err != nil {
				watched <- err
				return
			}
			for _, f := range files {
				got, devs, err := store.FileByKey(context.Background(), f.DMID, f.Key)
				if err == nil && len(devs) < 2 {
					err = fmt.Errorf("%s is on %v", got.Key, devs)
				}
				if err != nil {
					watched <- err
					return
				}
			}
		}
	}()
	for round := range scale(4) {
		class := []string{"default", "triple"}[round%2]
		eachParallel(n, 8, func(i int) {
			if _, err := c.Try("updateclass", "domain="+domain, fmt.Sprintf("key=k%d", i), "class="+class); err != nil {
				t.Errorf("updateclass: %v", err)
			}
		})
		c.asRecorded(store, 2*time.Minute, func(schema.LocatedFile) int { return copies[class] })
	}
	end()
	if err := <-watched; err != nil {
		t.Error(err)
	}
	for i := range n {
		key := fmt.Sprintf("k%d", i)
		c.CheckFile(key, c.WaitPolicy(key, copies[[]string{"default", "triple"}[(scale(4)-1)%2]]), body)
	}
}

// TestClassDeletedAndRecreated gives the number of a class that is gone to
// another: files and queued work of the first must not be taken for the
// second's.
func TestClassDeletedAndRecreated(t *testing.T) {
	scenario(t)
	t.Parallel()
	c := StartCluster(t, Spec{Engine: "postgres", Key: true})
	store := c.openStore()
	c.Do("create_class", "domain="+domain, "class=brief", "mindevcount=1")
	open := c.Do("create_open", "domain="+domain, "key=late", "class=brief")
	if _, err := c.Try("delete_class", "domain="+domain, "class=brief"); !errors.Is(err, protocol.ErrClassHasFiles) {
		t.Errorf("a class with an open upload was deleted: %v", err)
	}
	if err := c.Put("k", "brief", []byte("content")); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Try("delete_class", "domain="+domain, "class=brief"); !errors.Is(err, protocol.ErrClassHasFiles) {
		t.Errorf("a class with a file was deleted: %v", err)
	}
	c.Do("updateclass", "domain="+domain, "key=k", "class=triple")
	c.Do("create_close", "domain="+domain, "key=", "fid="+open.Get("fid"), "devid="+open.Get("devid"), "path="+open.Get("path"))
	c.Do("delete_class", "domain="+domain, "class=brief")
	c.Do("create_class", "domain="+domain, "class=other", "mindevcount=2")
	if err := c.Put("o", "other", []byte("other content")); err != nil {
		t.Fatal(err)
	}
	c.CheckFile("k", c.WaitPolicy("k", 3), []byte("content"))
	c.CheckFile("o", c.WaitPolicy("o", 2), []byte("other content"))
	c.asRecorded(store, time.Minute, func(f schema.LocatedFile) int { return map[string]int{"k": 3, "o": 2}[f.Key] })
}

// TestDeletedWhileMoved deletes files while they are moved off a device.
func TestDeletedWhileMoved(t *testing.T) {
	scenario(t)
	t.Parallel()
	c := StartCluster(t, Spec{Engine: "postgres", Key: true, TrackerArgs: slow})
	store := c.openStore()
	for i := range 3 {
		if err := c.Put(fmt.Sprintf("k%d", i), "single", bytes.Repeat([]byte{byte(i)}, slowBytes)); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 2 {
		key := fmt.Sprintf("k%d", i)
		_, devs := c.info(key)
		c.Do("drain_device", "devid="+devs[0].String())
		c.copying()
		c.Do("delete", "domain="+domain, "key="+key)
		c.Do("drain_cancel", "devid="+devs[0].String())
	}
	c.asRecorded(store, 2*time.Minute, func(schema.LocatedFile) int { return 1 })
}

// TestHostsVanishWhileCopying kills storage daemons while files are copied from
// and to them. The files reach their policy elsewhere, or when the hosts are
// back.
func TestHostsVanishWhileCopying(t *testing.T) {
	scenario(t)
	t.Parallel()
	c := StartCluster(t, Spec{Engine: "postgres", Key: true, Hosts: 4, TrackerArgs: slow})
	store := c.openStore()
	for round := range scale(2) {
		for i := range 3 {
			if err := c.Put(fmt.Sprintf("r%d-%d", round, i), "triple", bytes.Repeat([]byte{byte(i)}, slowBytes/2)); err != nil {
				t.Fatal(err)
			}
		}
		c.copying()
		victim := c.Hosts[round%len(c.Hosts)]
		victim.Kill()
		within(t, 30*time.Second, "the host is found away", func() error {
			if state := c.deviceField(victim.Devices[0], "observed_state"); state != "unreachable" {
				return errors.New(state)
			}
			return nil
		})
		victim.Start()
	}
	c.WaitWriteable()
	c.asRecorded(store, 3*time.Minute, func(schema.LocatedFile) int { return 3 })
}

// TestFullDevice has uploads and copies meet devices that fill up in the middle
// of them: trackers still offer one that has less room than a file needs.
func TestFullDevice(t *testing.T) {
	scenario(t)
	t.Parallel()
	c := StartCluster(t, Spec{Engine: "postgres", Key: true, Hosts: 3, TrackerArgs: []string{"--min-free-space", "1"}, BeforeHosts: func(h *Host) {
		if h.Name != "host3" {
			return
		}
		for i, dev := range h.Devices {
			dir := filepath.Join(h.Docroot, "dev"+dev.String())
			if err := unix.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%dm", 8<<i)); err != nil {
				t.Skipf("no small file system can be mounted: %v", err)
			}
			t.Cleanup(func() {
				if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
					t.Error(err)
				}
			})
		}
	}})
	store := c.openStore()
	n := 16 // 3 MB each, two copies: what the third host has room for is less than its part
	eachParallel(n, 4, func(i int) {
		if err := c.Put(fmt.Sprintf("k%d", i), "", bytes.Repeat([]byte{byte(i)}, 3<<20)); err != nil {
			t.Errorf("put: %v", err)
		}
	})
	c.asRecorded(store, 2*time.Minute, func(schema.LocatedFile) int { return 2 })
	for i := range n {
		key := fmt.Sprintf("k%d", i)
		c.CheckFile(key, c.WaitPolicy(key, 2), bytes.Repeat([]byte{byte(i)}, 3<<20))
	}
	full := 0
	for _, dev := range c.Hosts[2].Devices {
		var fs unix.Statfs_t
		if err := unix.Statfs(filepath.Join(c.Hosts[2].Docroot, "dev"+dev.String()), &fs); err != nil {
			t.Fatal(err)
		}
		if fs.Bavail*uint64(fs.Bsize) < 3<<20 {
			full++
		}
	}
	refused := c.sum([]string{c.Hosts[2].Status}, "mogile_storaged_requests_total", []string{`code="507"`})
	failed := c.sum([]string{c.Hosts[2].Status}, "mogile_storaged_transfers_total", []string{`result="dest_error"`})
	t.Logf("devices without room: %d; uploads refused: %.0f, copies: %.0f", full, refused, failed)
	if full == 0 || refused+failed == 0 {
		t.Error("no device was full when it was to take a file")
	}
}

// TestSleepingTracker stops a tracker in the middle of its copies, takes its
// sessions and leases away, has another do the work, and wakes it.
func TestSleepingTracker(t *testing.T) {
	scenario(t)
	t.Parallel()
	c := StartCluster(t, Spec{Engine: "postgres", Key: true, Trackers: 2, TrackerArgs: slow})
	store := c.openStore()
	for i := range 4 {
		if err := c.Put(fmt.Sprintf("k%d", i), "triple", bytes.Repeat([]byte{byte(i)}, slowBytes/2)); err != nil {
			t.Fatal(err)
		}
	}
	c.copying()
	c.Trackers[0].Signal(syscall.SIGSTOP)
	c.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'mogile%'",
		"UPDATE file_to_replicate SET nexttry = 0, flags = 0")
	within(t, 2*time.Minute, "the other tracker brings all files to their policy", func() error {
		files, err := store.FilesByFID(context.Background(), []protocol.FID{1, 2, 3, 4})
		for _, f := range files {
			if len(f.Devices) != 3 {
				err = errors.Join(err, fmt.Errorf("fid %d is on %v", f.FID, f.Devices))
			}
		}
		return err
	})
	c.Trackers[0].Signal(syscall.SIGCONT)
	c.asRecorded(store, 2*time.Minute, func(schema.LocatedFile) int { return 3 })
	for i := range 4 {
		key := fmt.Sprintf("k%d", i)
		c.CheckFile(key, c.WaitPolicy(key, 3), bytes.Repeat([]byte{byte(i)}, slowBytes/2))
	}
}

// TestTrackersKilledWhileRepairing kills trackers, again and again, while they
// scrub spoilt files and repair them.
func TestTrackersKilledWhileRepairing(t *testing.T) {
	scenario(t)
	t.Parallel()
	f := startFleet(t, Spec{Hosts: 4, Devices: 2, Trackers: 2, Key: true}, scale(100))
	where := f.locations()
	spoilt := 0
	for _, file := range f.files {
		if file.size > 1 && spoilt < scale(40) {
			f.damage(spoilt, file, where[file.fid][0])
			spoilt++
		}
	}
	f.Do("scrub_start")
	for round := range scale(4) {
		victim := f.Trackers[round%2]
		events := f.events()
		within(t, 10*time.Second, "repairs go on, or are over", func() error {
			fields, err := f.Try("fsck_progress", "sweep=scrub")
			if err == nil && fields.Get("running") == "1" && fmt.Sprint(f.events()) == fmt.Sprint(events) {
				err = errors.New("nothing found yet")
			}
			return err
		})
		victim.Kill()
		// What it held would come back in a minute or two.
		f.sql("UPDATE mogile_range SET until_ms = 0", "UPDATE file_to_replicate SET nexttry = 0, flags = 0", "UPDATE file_to_queue SET nexttry = 0 WHERE type = 1")
		victim.Start()
	}
	f.WaitWriteable()
	within(t, 3*time.Minute, "scrub is over", func() error {
		f.sql("UPDATE file_to_queue SET nexttry = 0 WHERE type = 1 AND nexttry > extract(epoch FROM now()) + 140")
		fields, err := f.Try("fsck_progress", "sweep=scrub")
		if err == nil && (fields.Get("running") == "1" || fields.Number("queued_files") > 0) {
			err = fmt.Errorf("%v", fields)
		}
		return err
	})
	f.waitIdle(3 * time.Minute)
	f.check()
	events := f.events()
	if got := events["BSUM"] + events["BLEN"] + events["MISS"]; got < spoilt {
		t.Errorf("%d copies spoilt, found were %v", spoilt, events)
	}
	before := fmt.Sprint(events)
	mogtool(t, f.Cluster, "fsck", "scrub", "--wait")
	if after := fmt.Sprint(f.events()); after != before {
		t.Errorf("another scrub found %s after %s", after, before)
	}
}
