package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/mogile/mogile/protocol"
)

// mogtoolJSON runs mogtool and reads the last object that it prints.
func mogtoolJSON[T any](t *testing.T, c *Cluster, args ...string) T {
	t.Helper()
	args = append([]string{"mogtool", "--trackers", strings.Join(c.Addrs, ","), "--json"}, args...)
	out, err := exec.Command(binary, args...).Output()
	if err != nil {
		t.Fatalf("mogile %q: %v\n%s", args, err, out)
	}
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	var v T
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &v); err != nil {
		t.Fatalf("mogile %q prints %s: %v", args, out, err)
	}
	return v
}

type progressJSON struct {
	State  string
	Files  int64
	Bytes  int64
	Events map[string]int64
}

// store puts n small files of the class single, and returns how many bytes.
func (c *Cluster) store(n int) (bytes int64) {
	c.t.Helper()
	body := []byte("a small file of a run of fsck")
	eachParallel(n, 16, func(i int) {
		if err := c.Put(fmt.Sprintf("f%d", i), "single", body); err != nil {
			c.t.Errorf("put f%d: %v", i, err)
		}
	})
	return int64(n * len(body))
}

// checkedBy are the files that a tracker checked since it was started.
func (c *Cluster) checkedBy(tracker int) int {
	c.t.Helper()
	return int(c.sum(c.Status[tracker:tracker+1], "mogile_fsck_files_total", nil))
}

// calm waits until nothing waits for replication: files that are being copied
// would be checked later.
func (c *Cluster) calm() {
	c.t.Helper()
	within(c.t, time.Minute, "replication is done", func() error {
		if n := c.Metric("mogile_tracker_queue_rows", `queue="replicate"`); n > 0 {
			return fmt.Errorf("%v rows", n)
		}
		return nil
	})
}

func (c *Cluster) fsckDone(d time.Duration) protocol.Args {
	c.t.Helper()
	var status protocol.Args
	within(c.t, d, "fsck is done", func() error {
		status = c.Do("fsck_status")
		if status.True("running") {
			return fmt.Errorf("%s", status)
		}
		return nil
	})
	return status
}

// TestFsckIsShared has three trackers check every file once, each some of them;
// and, with one killed in the middle, every file all the same.
func TestFsckIsShared(t *testing.T) {
	scenario(t)
	t.Parallel()
	const files = 1500
	c := StartCluster(t, Spec{Engine: "postgres", Trackers: 3})
	bytes := c.store(files)
	c.calm()
	c.Do("set_server_setting", "key=queue_rate_for_fsck", "value=600")
	began := time.Now()
	c.Do("fsck_start")
	if _, err := c.Try("fsck_start"); err == nil {
		t.Error("it was started twice")
	}
	c.fsckDone(time.Minute)
	if took := time.Since(began); took < 1500*time.Millisecond {
		t.Errorf("%d files at 600 a second took %v", files, took)
	}
	sum := 0
	for i := range c.Addrs {
		n := c.checkedBy(i)
		if n < files/30 {
			t.Errorf("tracker %d checked %d of %d files", i+1, n, files)
		}
		sum += n
	}
	if sum != files {
		t.Errorf("%d checks of %d files", sum, files)
	}
	if p := mogtoolJSON[progressJSON](t, c, "fsck", "status"); p.State != "done" || p.Files != files || len(p.Events) != 0 {
		t.Errorf("status: %+v", p)
	}

	// Stopped, it stays where it is; one of the trackers dies; it goes on.
	c.Do("fsck_reset")
	c.Do("fsck_start")
	time0 := c.Do("fsck_status")
	within(t, time.Minute, "some files are checked", func() error {
		if n := c.Do("fsck_status").Number("max_fid_checked"); n < 200 {
			return fmt.Errorf("at %d of %s", n, time0.Get("end_fid"))
		}
		return nil
	})
	c.Do("fsck_stop")
	stopped := c.Do("fsck_status")
	if at := stopped.Number("max_fid_checked"); stopped.True("running") || at < 200 || at >= stopped.Number("end_fid") {
		t.Fatalf("stopped: %s", stopped)
	}
	c.Do("fsck_start")
	within(t, time.Minute, "it goes on", func() error {
		if n := c.Do("fsck_status").Number("max_fid_checked"); n <= stopped.Number("max_fid_checked") {
			return fmt.Errorf("at %d", n)
		}
		return nil
	})
	c.Trackers[1].Kill()
	status := c.fsckDone(4 * time.Minute) // what the dead one had begun comes back when its leases are over
	if status.Get("max_fid_checked") != status.Get("end_fid") {
		t.Errorf("it ended as %s", status)
	}
	c.Trackers[1].Start()
	if n := c.Do("fsck_progress").Number("files"); n < files {
		t.Errorf("%d of %d files were checked", n, files)
	}

	// scrub reads all content.
	if p := mogtoolJSON[progressJSON](t, c, "fsck", "scrub", "--wait"); p.State != "done" || p.Files != files || p.Bytes != bytes {
		t.Errorf("scrub: %+v; want %d files of %d bytes", p, files, bytes)
	}
}

// TestFsckOnOneTracker is a whole run on the embedded store: a class that now
// wants more copies is noticed by a look at placement alone, copies that are gone
// by a look at the devices, and a content that rotted by a round of scrub that
// begins by itself.
func TestFsckOnOneTracker(t *testing.T) {
	scenario(t)
	t.Parallel()
	const files = 60
	c := StartCluster(t, Spec{})
	c.store(files)
	c.calm()
	p := mogtoolJSON[progressJSON](t, c, "fsck", "start", "--all", "--wait")
	if p.State != "done" || p.Files != files || len(p.Events) != 0 {
		t.Fatalf("nothing is wrong: %+v", p)
	}
	c.Do("update_class", "domain="+domain, "class=single", "mindevcount=2")
	p = mogtoolJSON[progressJSON](t, c, "fsck", "policy", "--wait")
	if p.Events["POVI"] != files || p.Events["REPL"] != files {
		t.Fatalf("a class wants another copy: %+v", p)
	}
	for i := range files {
		c.WaitPolicy("f"+strconv.Itoa(i), 2)
	}
	c.calm()
	p = mogtoolJSON[progressJSON](t, c, "fsck", "start", "--all", "--wait")
	if p.Files != files || len(p.Events) != 0 {
		t.Errorf("all is well again: %+v", p)
	}
	log := c.Do("fsck_getlog", "after_logid=0")
	if n := log.Number("row_count"); n != 100 {
		t.Errorf("a page of the log has %d rows", n)
	}
	last := log.Get("row_100_logid")
	if n := c.Do("fsck_getlog", "after_logid="+last).Number("row_count"); n != 2*files-100 {
		t.Errorf("the next page has %d rows", n)
	}
	c.Do("fsck_clearlog")

	for i := range 3 {
		fid, devs := c.info("f" + strconv.Itoa(i))
		if err := os.Remove(c.onDisk(devs[i%2], fid)); err != nil {
			t.Fatal(err)
		}
	}
	p = mogtoolJSON[progressJSON](t, c, "fsck", "start", "--all", "--wait")
	if p.Files != files || p.Events["MISS"] != 3 || p.Events["REPL"] != 3 || len(p.Events) != 2 {
		t.Errorf("three copies are gone: %+v", p)
	}
	c.calm()
	rotten, devs := c.info("f3")
	body := []byte("a small file of a run of fsck")
	body[3] ^= 1
	if err := os.WriteFile(c.onDisk(devs[0], rotten), body, 0o666); err != nil {
		t.Fatal(err)
	}
	p = mogtoolJSON[progressJSON](t, c, "fsck", "start", "--all", "--wait")
	if p.Files != files || len(p.Events) != 0 {
		t.Errorf("lengths are right, and no content is read: %+v", p)
	}

	// Rounds by themselves.
	c.Do("set_server_setting", "key=scrub_days", "value=0.0002") // 17 s
	within(t, time.Minute, "a round of scrub", func() error {
		now := c.Do("fsck_progress", "sweep=scrub")
		if now.Number("files") < files || !now.True("paced") {
			return fmt.Errorf("%s", now)
		}
		return nil
	})
	if events, _ := c.fsckLog(0); !slices.Contains(events[rotten], logged{"BSUM", devs[0].String()}) {
		t.Errorf("scrub found %v", events)
	}
	c.calm()
	c.CheckAll(files)
}
