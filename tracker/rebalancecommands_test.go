package tracker_test

import (
	"strings"
	"testing"

	"github.com/mogile/mogile/schema"
	"github.com/mogile/mogile/tracker/rebalance"
)

// set writes a setting behind the tracker's back; "" takes it away.
func (e *env) set(key, value string) {
	e.t.Helper()
	text := &value
	if value == "" {
		text = nil
	}
	if err := e.store.SetSetting(e.t.Context(), key, text); err != nil {
		e.t.Fatal(err)
	}
}

// TestRebalanceRefusals: what makes no sense is refused with nothing done, and so
// is what another run, or fsck, stands in the way of.
func TestRebalanceRefusals(t *testing.T) {
	t.Parallel()
	e := start(t, idleFsck)
	c := e.dial()
	c.refused("rebalance_status", "no_rebal_state")
	c.refused("rebalance_test", "no_rebal_policy")
	c.refused("rebalance_start", "no_rebal_policy")
	c.refused("rebalance_stop", "rebal_not_started")
	c.ok("rebalance_reset")

	const policy = "from_devices=1 to_devices=2"
	c.ok("rebalance_set_policy policy=from_devices%3D1+to_devices%3D2")
	for _, odd := range []string{
		"policy=foo%3D1", "policy=+", "policy=from_devices%3Dx", "policy=from_hosts%3D-1",
		"policy=fid_age%3Dmiddle", "policy=limit_by%3Dsize+limit%3D10q", "policy=level_spread%3D0", "policy=level_spread%3D101", "policy=level_spread%3Dnan",
		"policy=use_dest_devs%3D0x1", "policy=to_percent_free%3Dhalf",
	} {
		c.refused("rebalance_set_policy "+odd, "bad_rebal_pol")
	}
	if got := c.ok("server_setting key=rebal_policy").Get("value"); got != policy {
		t.Errorf("the policy is %q", got)
	}
	e.set("rebal_policy", "nonsense")
	c.refused("rebalance_test", "bad_rebal_pol")
	c.refused("rebalance_start", "bad_rebal_pol")
	e.set("rebal_policy", policy)

	e.set("fsck_host", "other")
	c.refused("rebalance_start", "fsck_running")
	e.set("fsck_host", "")
	// A run of a tracker that is not ours: nobody here goes on with it.
	e.set("rebal_host", "other")
	e.set("rebal_state", "time_started=17")
	for line, code := range map[string]string{
		"rebalance_start": "rebal_running", "rebalance_reset": "rebal_running", "rebalance_set_policy policy=from_devices%3D2": "no_set_rebal",
	} {
		c.refused(line, code)
	}
	if got := c.ok("rebalance_status").Get("state"); got != "time_started=17" {
		t.Errorf("the state is %q", got)
	}
	p := c.ok("rebalance_progress")
	if !p.True("running") || p.Get("host") != "other" || p.Get("policy") != policy || p.Get("state") != "time_started=17" {
		t.Errorf("%s", p)
	}
	c.ok("rebalance_stop")
	if got := c.ok("server_setting key=rebal_signal").Get("value"); got != "stop" {
		t.Errorf("the signal is %q", got)
	}
	e.set("rebal_host", "")
	c.ok("rebalance_reset")
	c.refused("rebalance_status", "no_rebal_state")
}

// TestRebalanceProgress can be asked when there is nothing.
func TestRebalanceProgress(t *testing.T) {
	t.Parallel()
	e := start(t)
	c := e.dial()
	p := c.ok("rebalance_progress")
	if p.True("running") || p.Get("host") != "" || p.Get("state") != "" || p.Number("bytes_left") != 0 || p.Number("queued_moves") != 0 || p.Number("current_time") == 0 {
		t.Errorf("%s", p)
	}
	e.set(rebalance.SettingQuotas, "1:-700,2:500,3:200")
	s := c.store("cat", "12345", "")
	if err := e.store.QueueMoves(t.Context(), []schema.Move{{FID: s.fid, From: s.dev}}, schema.SettingsChange{}); err != nil {
		t.Fatal(err)
	}
	if p := c.ok("rebalance_progress"); p.Number("queued_moves") != 1 || p.Number("bytes_left") != 700 {
		t.Errorf("%s", p)
	}
}

// TestRebalanceTest tells the devices that a policy means.
func TestRebalanceTest(t *testing.T) {
	t.Parallel()
	e := start(t)
	c := e.dial()
	for _, tt := range []struct{ policy, from, to string }{
		{"from_devices%3D1", "1", "2,3,4"},
		{"from_hosts%3D1+not_to_devices%3D4", "1,2", "3"},
		{"from_hosts%3D77", "", "1,2,3,4"},
		{"level_spread%3D5", "", ""}, // nothing is stored
	} {
		c.ok("rebalance_set_policy policy=" + tt.policy)
		if r := c.ok("rebalance_test"); r.Get("sdevs") != tt.from || r.Get("ddevs") != tt.to {
			t.Errorf("%s: from %q to %q, want %q and %q", tt.policy, r.Get("sdevs"), r.Get("ddevs"), tt.from, tt.to)
		}
	}
	// One device has a file, and the others nothing.
	s := c.store("cat", strings.Repeat("meow", 1000), "")
	c.ok("rebalance_set_policy policy=level_spread%3D0.000000001")
	if r := c.ok("rebalance_test"); r.Get("sdevs") != s.dev.String() || strings.Count(r.Get("ddevs"), ",") != 2 {
		t.Errorf("levelling: %s", r)
	}
}

// TestRebalancePlan: how full devices are, and what would be moved.
func TestRebalancePlan(t *testing.T) {
	t.Parallel()
	e := start(t)
	c := e.dial()
	for _, odd := range []string{"", "spread=", "spread=x", "spread=0", "spread=-1", "spread=100.1", "spread=NaN", "spread=Inf", "spread=5%25"} {
		c.refused("rebalance_plan "+odd, "bad_params")
	}
	p := c.ok("rebalance_plan spread=5")
	if p.Number("devices") != 4 || p.Number("bytes") != 0 || p.Number("files") != 0 || p.Get("spread") != "0.000000" {
		t.Errorf("nothing is stored: %s", p)
	}
	const size = 4000
	s := c.store("cat", strings.Repeat("meow", size/4), "")
	p = c.ok("rebalance_plan spread=0.000000001")
	var all, given int64
	for i := range p.Number("devices") {
		row := "dev" + string(rune('1'+i)) + "_"
		want := int64(0)
		if p.Get(row+"devid") == s.dev.String() {
			want = size
		}
		if p.Number(row+"bytes") != want || p.Number(row+"capacity") == 0 || p.Get(row+"host") == "" {
			t.Errorf("%s is not as it should be: %s", row, p)
		}
		all += p.Number(row + "change")
		given -= min(0, p.Number(row+"change"))
	}
	if all > 0 || all < -3 || given != p.Number("bytes") || given < size/2 || given >= size || p.Number("files") != 1 {
		t.Errorf("%d of %d bytes are given, %d more are taken: %s", given, size, all, p)
	}
	if p := c.ok("rebalance_plan spread=100"); p.Number("bytes") != 0 || p.Number("files") != 0 {
		t.Errorf("everything is level enough: %s", p)
	}
}
