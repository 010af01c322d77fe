package tracker_test

import (
	"bufio"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"testing"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/schema"
	"github.com/mogile/mogile/tracker"
)

// dialFrom connects from an address.
func (e *env) dialFrom(ip string) *client {
	e.t.Helper()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(ip)}}
	conn, err := d.DialContext(e.t.Context(), "tcp", e.tracker.Addrs()[0].String())
	if err != nil {
		e.t.Fatal(err)
	}
	c := &client{t: e.t, conn: conn, r: bufio.NewReaderSize(conn, 1<<16)}
	e.t.Cleanup(c.close)
	return c
}

func TestNearDevicesFirst(t *testing.T) {
	t.Parallel()
	for _, local := range []string{"", "127.0.0.1"} {
		t.Run("local network "+local, func(t *testing.T) {
			t.Parallel()
			e := start(t, func(o *tracker.Options) {
				if local != "" {
					o.LocalNetwork = netip.MustParseAddr(local)
				}
			})
			c := e.dial()
			c.ok("set_server_setting key=zone_one&value=" + protocol.Escape("127.0.0.0/8 127.0.0.1/32"))
			c.ok("set_server_setting key=zone_two&value=127.0.0.2")
			c.ok("set_server_setting key=network_zones&value=one,two")

			s := c.store("k", "hello", "")
			seen := []protocol.DevID{s.dev}
			for dev := protocol.DevID(1); dev <= 4; dev++ {
				if dev != s.dev {
					h := e.farm.hosts[(dev-1)/2]
					put(t, fmt.Sprintf("http://%s:%d/%s", h.ip, h.port(), s.fid.Path(dev)), "hello")
					if err := e.store.AddLocation(t.Context(), s.fid, dev, seen); err != nil {
						t.Fatal(err)
					}
					seen = append(seen, dev)
				}
			}
			near := 0
			for range 20 {
				for _, from := range []string{"127.0.0.1", "127.0.0.2"} {
					c := e.dialFrom(from)
					a := c.ok("get_paths domain=toast&key=k&noverify=1&pathcount=4")
					for i := 1; i <= 4; i++ {
						if path := a.Get(fmt.Sprint("path", i)); strings.HasPrefix(path, "http://"+from+":") != (i <= 2) {
							t.Fatalf("path %d of a client at %s is %s", i, from, path)
						}
					}
					if path := c.open("domain=toast&key=new").path; strings.HasPrefix(path, "http://"+from+":") {
						near++
					}
					c.close()
				}
			}
			if local == "" && near == 40 {
				t.Error("all new files went to the clients' zones, without a local network")
			}
			if local != "" && near != 40 {
				t.Errorf("%d of 40 new files went to the clients' zones", near)
			}
			// In drain comes last, near or not.
			c.ok("set_state host=h2&device=3&state=drain")
			a := e.dialFrom("127.0.0.2").ok("get_paths domain=toast&key=k&noverify=1&pathcount=4")
			if path := a.Get("path4"); !strings.Contains(path, "/dev3/") {
				t.Errorf("the last path is %s, want that in drain", path)
			}
			// Without zones all are alike.
			c.ok("set_server_setting key=network_zones")
			c.ok("set_state host=h2&device=3&state=alive")
			c = e.dialFrom("127.0.0.2")
			e.eventually("a far device first", func() bool {
				return strings.HasPrefix(c.ok("get_paths domain=toast&key=k&noverify=1").Get("path1"), "http://127.0.0.1:")
			})
		})
	}
}

func TestCheckLocalNetwork(t *testing.T) {
	t.Parallel()
	store := openStore(t)
	set := func(key, value string) {
		t.Helper()
		if err := store.SetSetting(t.Context(), key, &value); err != nil {
			t.Fatal(err)
		}
	}
	check := func(local string) error {
		return tracker.CheckLocalNetwork(t.Context(), store, netip.MustParseAddr(local))
	}
	if err := tracker.CheckLocalNetwork(t.Context(), store, netip.Addr{}); err != nil {
		t.Errorf("no local network: %v", err)
	}
	if err := check("10.0.0.1"); err == nil || !strings.Contains(err.Error(), "10.0.0.1 is in no zone (there is none)") {
		t.Errorf("no zones: %v", err)
	}
	set("network_zones", "near,far")
	set("zone_near", "10.0.0.0/8")
	if err := check("10.0.0.1"); err != nil {
		t.Error(err)
	}
	if err := check("11.0.0.1"); err == nil || !strings.Contains(err.Error(), "11.0.0.1 is in no zone (there are near, far)") {
		t.Errorf("in no zone: %v", err)
	}
}

func TestZonesOfIPv6(t *testing.T) {
	t.Parallel()
	e := start(t)
	c := e.dial()
	set := "set_server_setting key=zone_six&value="
	c.ok(set + protocol.Escape("2001:db8::/32, 10.0.0.0/8"))
	c.refused(set+protocol.Escape("2001:db8::/129"), "invalid_format")
	open := strconv.Itoa(schema.VersionOpen)
	if err := e.store.SetSetting(t.Context(), "schema_version", &open); err != nil {
		t.Fatal(err)
	}
	c.ok("clear_cache")
	if err := c.refused(set+protocol.Escape("2001:db8::/32"), "invalid_format"); !strings.Contains(err.Text, "sealed") {
		t.Errorf("refused with %q", err.Text)
	}
	c.ok(set + "10.0.0.0/8")
}

// TestPoliciesOfClasses sets policies of all kinds, and is told where those that
// cannot be read go wrong.
func TestPoliciesOfClasses(t *testing.T) {
	t.Parallel()
	e := start(t)
	c := e.dial()
	for i, policy := range []string{
		"MultipleDevices(2)", "MultipleNetworks()", "HostsPerNetwork(near=2, far=1)",
		"Union(\n\tHostsPerNetwork(near=1),\n\tMogileFS::ReplicationPolicy::MultipleHosts(3),\n)",
	} {
		c.ok(fmt.Sprintf("create_class domain=toast&class=c%d&mindevcount=1&replpolicy=%s", i, protocol.Escape(policy)))
		c.ok(fmt.Sprintf("update_class domain=toast&class=c%d&mindevcount=2&replpolicy=%s", i, protocol.Escape(policy)))
		if got := c.ok("get_domains").Get(fmt.Sprintf("domain1class%dreplpolicy", i+2)); got != policy {
			t.Errorf("%q is listed as %q", policy, got)
		}
	}
	for policy, place := range map[string]string{
		"Union(MultipleHosts(2), Never(3))":   `at column 25, near "Never(3))"`,
		"HostsPerNetwork(near=2":              "expected , or ) in HostsPerNetwork at the end",
		"MultipleNetworks":                    "expected ( after MultipleNetworks at the end",
		"MultipleHosts(\x01)":                 "without control characters",
		strings.Repeat("Union(", 1000):        "at most 255 characters",
		strings.Repeat("Union(", 40) + "junk": "nested more than 16 deep",
	} {
		for _, command := range []string{"create_class domain=toast&class=new", "update_class domain=toast&class=c0"} {
			if err := c.refused(command+"&mindevcount=1&replpolicy="+protocol.Escape(policy), "invalid_replpolicy"); !strings.Contains(err.Text, place) {
				t.Errorf("%.60q is refused with %q, want %q", policy, err.Text, place)
			}
		}
	}
}
