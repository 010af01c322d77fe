package tracker_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/mogile/mogile/schema"
)

func TestDrainCommands(t *testing.T) {
	t.Parallel()
	e := start(t)
	c := e.dial()
	listed := func(want string) {
		t.Helper()
		if got := c.ok("server_setting key=drain_devices").Get("value"); got != want {
			t.Errorf("listed are %q, want %q", got, want)
		}
	}
	status := func(dev, want string) {
		t.Helper()
		if got := c.ok("get_devices devid=" + dev).Get("dev1_status"); got != want {
			t.Errorf("dev%s is %s, want %s", dev, got, want)
		}
	}
	c.refused("drain_device", "no_device")
	c.refused("drain_device devid=99", "no_device")
	c.refused("drain_cancel devid=-1", "no_device")
	c.refused("drain_status devids=1,99", "no_device")
	c.refused("drain_status devids=x", "no_device")
	c.refused("set_server_setting key=drain_devices&value=1", "not_writable")

	for range 2 {
		c.ok("drain_device devid=2")
	}
	c.ok("drain_device devid=1")
	listed("1,2")
	status("1", "drain")
	c.ok("drain_cancel devid=2")
	c.ok("drain_cancel devid=2")
	listed("1")
	status("2", "alive")

	// A device that was given another status is not emptied.
	host := c.ok("get_hosts hostid=" + c.ok("get_devices devid=1").Get("dev1_hostid")).Get("host1_hostname")
	mark := func(state string) { t.Helper(); c.ok(fmt.Sprintf("set_state host=%s&device=1&state=%s", host, state)) }
	for _, state := range []string{"alive", "readonly", "dead"} {
		c.ok("drain_device devid=1")
		mark("down")
		listed("1")
		mark("drain")
		listed("1")
		mark(state)
		listed("")
	}
	c.refused("drain_device devid=1", "device_dead")
	mark("down")
	if err := c.refused("drain_device devid=1", "device_down"); !strings.Contains(err.Text, "mogtool device mark "+host+" 1 alive") {
		t.Errorf("the remedy is %q", err.Text)
	}
	c.ok("drain_cancel devid=1")
	status("1", "down")
	mark("alive")
}

func TestDrainStatus(t *testing.T) {
	t.Parallel()
	e := start(t)
	c := e.dial()
	if st := c.ok("drain_status"); st.Number("devices") != 0 {
		t.Errorf("nothing is in drain: %s", st)
	}
	s := c.store("cat", "12345", "")
	dev := s.dev.String()
	uploads := 0
	for range 20 {
		if c.open("domain=toast&key=dog").dev == s.dev {
			uploads++
		}
	}
	c.ok("drain_device devid=" + dev)
	st := c.ok("drain_status examine=1")
	if st.Number("devices") != 1 || st.Get("dev1_devid") != dev || st.Get("dev1_status") != schema.DeviceDrain || !st.True("dev1_draining") ||
		st.Number("dev1_files") != 1 || st.Number("dev1_uploads") < int64(uploads) || st.Number("dev1_looked") != 1 {
		t.Errorf("%s", st)
	}
	e.eventually("a move is queued", func() bool {
		st := c.ok("drain_status examine=1&devids=" + dev)
		return st.Number("queued_moves") == 1 && st.Number("dev1_blocked") == 0
	})
	for other := range 4 {
		if n := other + 1; n != int(s.dev) {
			c.ok(fmt.Sprintf("set_state host=h%d&device=%d&state=down", other/2+1, n))
		}
	}
	st = c.ok("drain_status examine=1&sizes=1&devids=" + dev)
	if st.Number("dev1_blocked") != 1 || st.Get("dev1_example1_key") != "cat" || st.Get("dev1_example1_domain") != "toast" ||
		st.Get("dev1_example1_reason") != "policy_finds_no_device" {
		t.Errorf("with no other device: %s", st)
	}
	if st := c.ok("drain_status devids=1,2"); st.Number("devices") != 2 {
		t.Errorf("those that are named: %s", st)
	}
}
