package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/mogile/mogile/protocol"
)

// rebalanceState is how far rebalance is, by its names.
func (c *Cluster) rebalanceState() map[string]string {
	c.t.Helper()
	state := map[string]string{}
	for item := range strings.FieldsSeq(c.Do("rebalance_status").Get("state")) {
		name, value, _ := strings.Cut(item, "=")
		state[name] = value
	}
	return state
}

// rebalanced waits until all moves are queued, and made.
func (c *Cluster) rebalanced(d time.Duration) map[string]string {
	c.t.Helper()
	var state map[string]string
	within(c.t, d, "rebalance is done", func() error {
		if state = c.rebalanceState(); protocol.Number(state["time_finished"]) == 0 {
			return fmt.Errorf("%v", state)
		}
		return nil
	})
	within(c.t, d, "all moves are made", func() error {
		if n := c.Metric("mogile_tracker_queue_rows", `queue="rebalance"`); n > 0 {
			return fmt.Errorf("%v are queued", n)
		}
		return nil
	})
	return state
}

// on counts the recorded copies of the keys f0, f1… on each device.
func (c *Cluster) on(files int) map[string]int {
	c.t.Helper()
	counts := map[string]int{}
	for i := range files {
		for dev := range strings.SplitSeq(c.Do("file_info", "domain="+domain, fmt.Sprintf("key=f%d", i), "devices=1").Get("devids"), ",") {
			counts[dev]++
		}
	}
	return counts
}

func (c *Cluster) status(dev string) string {
	c.t.Helper()
	rows := c.Do("get_devices", "devid="+dev)
	return rows.Get("dev1_status")
}

// TestRebalanceSurvivesItsTracker empties a device by a policy, with two trackers:
// it is stopped, goes on, and the tracker that queues the moves is killed. Every
// file is queued once.
func TestRebalanceSurvivesItsTracker(t *testing.T) {
	scenario(t)
	t.Parallel()
	const files = 400
	c := StartCluster(t, Spec{Engine: "postgres", Trackers: 2, Hosts: 2})
	c.store(files)
	c.calm()
	before := c.on(files)["1"]
	if before < files/10 {
		t.Fatalf("%d of %d files are on dev1", before, files)
	}
	c.Do("set_server_setting", "key=queue_rate_for_rebal", "value=15")
	c.Do("rebalance_set_policy", "policy=from_devices=1 fid_age=new")
	if r := c.Do("rebalance_test"); r.Get("sdevs") != "1" || r.Get("ddevs") != "2,3,4" {
		t.Errorf("it would move files from %s to %s", r.Get("sdevs"), r.Get("ddevs"))
	}
	queued := func(least int64) {
		t.Helper()
		within(t, time.Minute, fmt.Sprintf("%d moves are queued", least), func() error {
			if n := protocol.Number(c.rebalanceState()["fids_queued"]); n < least {
				return fmt.Errorf("%d", n)
			}
			return nil
		})
	}
	c.Do("rebalance_start")
	if _, err := c.Try("rebalance_start"); err == nil {
		t.Error("it was started twice")
	}
	queued(15)
	if s := c.status("1"); s != "drain" {
		t.Errorf("dev1 is %s while files are moved off it", s)
	}
	c.Do("rebalance_stop")
	within(t, time.Minute, "it is stopped", func() error {
		if host := c.Do("server_setting", "key=rebal_host").Get("value"); host != "" {
			return fmt.Errorf("rebal_host is %s", host)
		}
		return nil
	})
	stopped := c.rebalanceState()
	if n := protocol.Number(stopped["fids_queued"]); n >= int64(before) || stopped["sdev_current"] != "1" || c.status("1") != "alive" {
		t.Fatalf("stopped: %v; dev1 is %s", stopped, c.status("1"))
	}

	c.Do("rebalance_start")
	queued(protocol.Number(stopped["fids_queued"]) + 15)
	worker := 0
	within(t, time.Minute, "somebody queues moves", func() error {
		for i := range c.Status {
			n := c.sum(c.Status[i:i+1], "mogile_rebalance_moves_total", nil)
			if n > 0 {
				worker = i
				return nil
			}
		}
		return fmt.Errorf("nobody")
	})
	c.Trackers[worker].Kill()
	c.Trackers[worker].Start()
	state := c.rebalanced(4 * time.Minute)
	if n := protocol.Number(state["fids_queued"]); n != int64(before) {
		t.Errorf("%d moves were queued of %d files", n, before)
	}
	if s := c.status("1"); s != "alive" {
		t.Errorf("dev1 is %s at the end", s)
	}
	if left := c.on(files)["1"]; left != 0 {
		t.Errorf("%d files are on dev1 at the end", left)
	}
	c.CheckAll(files)
}

// CheckAll reads the files that [Cluster.store] stored.
func (c *Cluster) CheckAll(files int) {
	c.t.Helper()
	for i := range files {
		paths, err := c.Paths(fmt.Sprintf("f%d", i))
		if err != nil || len(paths) == 0 {
			c.t.Errorf("f%d: %v", i, err)
			continue
		}
		c.CheckFile(fmt.Sprintf("f%d", i), paths, []byte("a small file of a run of fsck"))
	}
}
