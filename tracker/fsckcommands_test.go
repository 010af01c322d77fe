package tracker_test

import (
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/schema"
	"github.com/mogile/mogile/tracker"
)

// idleFsck leaves runs of fsck where they are.
func idleFsck(o *tracker.Options) { o.FsckJobs = -1 }

// TestFsckStartsOnce has many ask for it at once.
func TestFsckStartsOnce(t *testing.T) {
	t.Parallel()
	e := start(t, idleFsck)
	for range 5 {
		var started, running atomic.Int32
		var all sync.WaitGroup
		for range 8 {
			c := e.dial()
			all.Go(func() {
				switch answer := c.ask("fsck_start"); {
				case answer == "OK ":
					started.Add(1)
				case strings.HasPrefix(answer, "ERR fsck_running fsck+is+already+running"):
					running.Add(1)
				}
			})
		}
		all.Wait()
		if started.Load() != 1 || running.Load() != 7 {
			t.Fatalf("%d started it, %d were told that it runs", started.Load(), running.Load())
		}
		e.dial().ok("fsck_stop")
	}
}

func TestFsckRefusesBesideRebalance(t *testing.T) {
	t.Parallel()
	e := start(t, idleFsck)
	c := e.dial()
	host := "other"
	if err := e.store.SetSetting(t.Context(), "rebal_host", &host); err != nil {
		t.Fatal(err)
	}
	c.same("fsck_start", "ERR rebal_running rebalance+running%3B+cannot+run+fsck+at+same+time")
	if err := e.store.SetSetting(t.Context(), "rebal_host", nil); err != nil {
		t.Fatal(err)
	}
	c.ok("fsck_start")
}

func TestFsckLogPages(t *testing.T) {
	t.Parallel()
	e := start(t, idleFsck)
	c := e.dial()
	dev := protocol.DevID(7)
	var events []schema.FsckEvent
	for i := range 130 {
		e := schema.FsckEvent{FID: protocol.FID(i + 1), Code: "MISS", DevID: &dev}
		if i%2 == 1 {
			e = schema.FsckEvent{FID: protocol.FID(i + 1), Code: "POVI"}
		}
		events = append(events, e)
	}
	events = append(events, schema.FsckEvent{Code: "XXXX"})
	if err := e.store.LogFsck(t.Context(), events); err != nil {
		t.Fatal(err)
	}
	page := c.ok("fsck_getlog")
	if page.Get("row_count") != "100" || page.Get("row_1_fid") != "1" || page.Get("row_1_devid") != "7" || page.Get("row_1_evcode") != "MISS" {
		t.Errorf("the first page begins %.200s", page)
	}
	if _, there := page.Lookup("row_2_devid"); there || page.Get("row_2_evcode") != "POVI" {
		t.Errorf("the second row is of no device: %.300s", page)
	}
	page = c.ok("fsck_getlog after_logid=" + page.Get("row_100_logid"))
	if page.Get("row_count") != "31" || page.Get("row_1_fid") != "101" {
		t.Errorf("the second page begins %.200s", page)
	}
	if _, there := page.Lookup("row_31_fid"); there {
		t.Errorf("the last row has no fid: %s", page)
	}
	// What was found counts, whether it is still in the log or not.
	status := c.ok("fsck_status")
	if status.Get("num_MISS") != "65" || status.Get("num_POVI") != "65" || status.Get("num_XXXX") != "1" {
		t.Errorf("status: %s", status)
	}
	if err := e.store.LogFsck(t.Context(), events[:2]); err != nil {
		t.Fatal(err)
	}
	c.ok("fsck_clearlog")
	status = c.ok("fsck_status")
	if status.Get("num_MISS") != "66" || status.Get("max_logid") != "0" {
		t.Errorf("after clearlog: %s", status)
	}
	c.same("fsck_getlog", "OK row_count=0")
	c.ok("fsck_reset")
	if status := c.ok("fsck_status"); status.Number("num_MISS") != 0 {
		t.Errorf("after reset: %s", status)
	}
}

func TestSettingsOfSweeps(t *testing.T) {
	t.Parallel()
	e := start(t, idleFsck)
	c := e.dial()
	for _, key := range []string{"fsck_host", "scrub_host", "scrub_highest_fid_checked", "fsck_opt_policy_only"} {
		c.refused("set_server_setting key="+key+"&value=1", "not_writable")
	}
	for _, value := range []string{"x", "-1", "1e3", "NaN", "1.2.3", "3651"} {
		c.refused("set_server_setting key=scrub_days&value="+value, "invalid_format")
	}
	c.ok("set_server_setting key=scrub_days&value=7.5")
	c.ok("set_server_setting key=scrub_bandwidth&value=1000000")
	c.ok("fsck_start")
	c.ok("scrub_start")
	c.refused("scrub_start", "scrub_running")
	all := c.ok("server_settings")
	shown := make(map[string]string)
	for i := range all.Number("key_count") {
		shown[all.Get(fmt.Sprintf("key_%d", i+1))] = all.Get(fmt.Sprintf("value_%d", i+1))
	}
	if len(shown) != 3 || shown["scrub_days"] != "7.5" || shown["scrub_bandwidth"] != "1000000" {
		t.Errorf("settings are %v", shown)
	}
	for _, sweep := range []string{"fsck", "scrub"} {
		if p := c.ok("fsck_progress sweep=" + sweep); p.Get("sweep") != sweep || !p.True("running") || p.True("paced") {
			t.Errorf("progress: %s", p)
		}
	}
	c.ok("scrub_stop")
	c.ok("scrub_start paced=1&again=1")
	if p := c.ok("fsck_progress sweep=scrub"); !p.True("paced") || p.Number("period") != 648000 {
		t.Errorf("progress: %s", p)
	}
}

func TestFsckWithoutDatabase(t *testing.T) {
	t.Parallel()
	e, s := startShaky(t, idleFsck)
	c := e.dial()
	s.away.Store(true)
	for line, code := range map[string]string{"fsck_start": "db", "fsck_reset": "db", "fsck_stop": "failure", "fsck_status": "failure", "scrub_start": "failure"} {
		c.refused(line, code)
	}
	s.away.Store(false)
	c.ok("fsck_start")
}
