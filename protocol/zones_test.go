package protocol

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestZones(t *testing.T) {
	t.Parallel()
	z, warnings := ParseZones(map[string]string{
		"network_zones": "one, two,three six",
		"zone_one":      "127.0.0.0/16",
		"zone_two":      "10.0.0.0/8, 172.16.0.0/16",
		"zone_three":    "10.1.0.0:255.255.0.0",
		"zone_six":      "2001:db8::/32 2001:db8:1::/48",
		"zone_unused":   "192.168.0.0/16",
	})
	if len(warnings) > 0 {
		t.Errorf("warnings: %q", warnings)
	}
	if diff := cmp.Diff([]string{"one", "two", "three", "six"}, z.Names()); diff != "" {
		t.Error(diff)
	}
	if !z.Has("six") || z.Has("unused") {
		t.Error("six is a zone, unused is none")
	}
	for _, c := range []struct{ addr, zone, network string }{
		{"10.0.0.1", "two", "10.0.0.0/8"},
		{"10.1.0.1", "three", "10.1.0.0/16"},
		{"172.16.0.1", "two", "172.16.0.0/16"},
		{"192.168.0.1", "", "192.168.0.0/16"},
		{"127.0.0.1", "one", "127.0.0.0/16"},
		{"127.1.0.1", "", "127.1.0.0/16"},
		{"::ffff:10.1.0.1", "three", "10.1.0.0/16"},
		{"2001:db8::1", "six", "2001:db8::/32"},
		{"2001:db8:1::1", "six", "2001:db8:1::/48"},
		{"2001:db9:1:2::1", "", "2001:db9:1::/48"},
		{"fe80::1%eth0", "", "fe80::/48"},
	} {
		addr := netip.MustParseAddr(c.addr)
		if got := z.Of(addr); got != c.zone {
			t.Errorf("%s is in zone %q, want %q", c.addr, got, c.zone)
		}
		if got := z.Network(addr).String(); got != c.network {
			t.Errorf("%s is in network %s, want %s", c.addr, got, c.network)
		}
	}
	if z.Of(netip.Addr{}) != "" || z.Network(netip.Addr{}).IsValid() {
		t.Error("no address is in a zone or network")
	}
}

func TestZonesThatMakeNoSense(t *testing.T) {
	t.Parallel()
	z, warnings := ParseZones(map[string]string{
		"network_zones": "a,b,missing,a",
		"zone_a":        "10.0.0.0/8, junk",
		"zone_b":        "10.9.9.9/8 10.1.0.0/16",
	})
	want := []string{
		`"junk" in the setting zone_a is no netmask`,
		"netmask 10.0.0.0/8 of zone b belongs to zone a already",
		"zone missing has no netmasks: the setting zone_missing is missing",
		"zone a stands twice in network_zones",
	}
	if diff := cmp.Diff(want, warnings); diff != "" {
		t.Error(diff)
	}
	if z.Of(netip.MustParseAddr("10.2.0.1")) != "a" || z.Of(netip.MustParseAddr("10.1.0.1")) != "b" {
		t.Error("the rest of the settings does not count")
	}
	if z, warnings := ParseZones(nil); len(z.Names()) > 0 || len(warnings) > 0 {
		t.Errorf("without settings: %v %q", z, warnings)
	}
}

func TestParseNetmask(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"10.0.0.0/8":              "10.0.0.0/8",
		"10.1.2.3/8":              "10.0.0.0/8",
		"10.0.0.0/08":             "10.0.0.0/8",
		"10.1.2.3":                "10.1.2.3/32",
		"10.0.0.0:255.0.0.0":      "10.0.0.0/8",
		"10.0.0.0/255.255.128.0":  "10.0.0.0/17",
		"1.2.3.4/0.0.0.0":         "0.0.0.0/0",
		"1.2.3.4/0":               "0.0.0.0/0",
		"1.2.3.4/255.255.255.255": "1.2.3.4/32",
		"2001:db8::/32":           "2001:db8::/32",
		"::1":                     "::1/128",
		"10.0.0.0/33":             "",
		"10.0.0.0:8":              "",
		"10.0.0.0:255.0.255.0":    "",
		"::ffff:10.0.0.0/104":     "",
		"fe80::1%eth0":            "",
		"10.0.0":                  "",
		"":                        "",
		"x":                       "",
	} {
		got := ""
		if p, ok := ParseNetmask(in); ok {
			got = p.String()
		}
		if got != want {
			t.Errorf("%q is %q, want %q", in, got, want)
		}
	}
}

func FuzzParseZones(f *testing.F) {
	f.Add("a,b", "10.0.0.0/8, 10.1.0.0:255.255.0.0", "2001:db8::/32 junk", "10.1.2.3")
	f.Add("a\ta", "", "0.0.0.0/0 ::/0", "::1")
	f.Fuzz(func(t *testing.T, names, a, b, addr string) {
		z, _ := ParseZones(map[string]string{"network_zones": names, "zone_a": a, "zone_b": b})
		ip, err := netip.ParseAddr(addr)
		if err != nil {
			return
		}
		zone, network := z.Of(ip), z.Network(ip)
		if zone != "" && !z.Has(zone) || strings.ContainsAny(zone, ", ") {
			t.Fatalf("%s is in zone %q of %q", addr, zone, z.Names())
		}
		if !network.Contains(ip.Unmap().WithZone("")) {
			t.Fatalf("%s is in network %s", addr, network)
		}
	})
}
