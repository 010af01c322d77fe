package protocol

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// Settings that say which networks there are (the names are those of the add-on
// MogileFS-Network 0.06).
const (
	SettingZones      = "network_zones" // names of zones, comma-separated
	SettingZonePrefix = "zone_"         // and the name of a zone: its netmasks
)

// Zones are the named networks of a cluster. The zero value has none. It is
// immutable.
type Zones struct {
	names []string
	nets  []zoneNet // longest first
}

type zoneNet struct {
	prefix netip.Prefix
	zone   string
}

// ParseZones reads the zones from the server settings. Whatever makes no sense
// is left out and named in warnings: a zone that is listed and has no netmask, a
// text that is no netmask, and a netmask that stands twice, where the first
// counts.
func ParseZones(settings map[string]string) (z Zones, warnings []string) {
	warn := func(format string, args ...any) { warnings = append(warnings, fmt.Sprintf(format, args...)) }
	for _, name := range splitList(settings[SettingZones]) {
		if slices.Contains(z.names, name) {
			warn("zone %s stands twice in %s", name, SettingZones)
			continue
		}
		z.names = append(z.names, name)
		masks := splitList(settings[SettingZonePrefix+name])
		if len(masks) == 0 {
			warn("zone %s has no netmasks: the setting %s is missing", name, SettingZonePrefix+name)
		}
		for _, mask := range masks {
			prefix, ok := ParseNetmask(mask)
			if !ok {
				warn("%q in the setting %s is no netmask", mask, SettingZonePrefix+name)
				continue
			}
			if i := slices.IndexFunc(z.nets, func(n zoneNet) bool { return n.prefix == prefix }); i >= 0 {
				warn("netmask %s of zone %s belongs to zone %s already", prefix, name, z.nets[i].zone)
				continue
			}
			z.nets = append(z.nets, zoneNet{prefix, name})
		}
	}
	slices.SortStableFunc(z.nets, func(a, b zoneNet) int { return cmp.Compare(b.prefix.Bits(), a.prefix.Bits()) })
	return z, warnings
}

// splitList splits at commas and blanks.
func splitList(s string) []string {
	return strings.FieldsFunc(s, func(r rune) bool { return strings.ContainsRune(", \t\r\n\v\f", r) })
}

// ParseNetmask reads an IPv4 or IPv6 network: an address followed by "/" and a
// number of bits, or an address alone. An IPv4 address may also be followed by
// "/" or ":" and a mask such as 255.0.0.0. What follows the network's bits is
// ignored.
func ParseNetmask(s string) (netip.Prefix, bool) {
	if p, err := netip.ParsePrefix(s); err == nil {
		return p.Masked(), !p.Addr().Is4In6()
	}
	if a, err := netip.ParseAddr(s); err == nil {
		return netip.PrefixFrom(a, a.BitLen()), a.Zone() == "" && !a.Is4In6()
	}
	i := strings.IndexAny(s, "/:")
	if i < 0 {
		return netip.Prefix{}, false
	}
	a, err := netip.ParseAddr(s[:i])
	if err != nil || !a.Is4() {
		return netip.Prefix{}, false
	}
	if bits, err := strconv.ParseUint(s[i+1:], 10, 8); err == nil { // 10.0.0.0/08
		return netip.PrefixFrom(a, int(bits)).Masked(), s[i] == '/' && bits <= 32
	}
	m, err := netip.ParseAddr(s[i+1:])
	if err != nil || !m.Is4() {
		return netip.Prefix{}, false
	}
	b := m.As4()
	inverse := ^(uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3]))
	if inverse&(inverse+1) != 0 { // ones, then zeros
		return netip.Prefix{}, false
	}
	bits := 32
	for ; inverse != 0; inverse >>= 1 {
		bits--
	}
	return netip.PrefixFrom(a, bits).Masked(), true
}

// Names are the zones, in the order of the setting.
func (z Zones) Names() []string { return slices.Clone(z.names) }

// Has reports whether there is a zone of that name.
func (z Zones) Has(name string) bool { return slices.Contains(z.names, name) }

// Of is the zone of an address: that of the longest netmask which contains it;
// empty where there is none.
func (z Zones) Of(addr netip.Addr) string {
	n, _ := z.find(addr)
	return n.zone
}

// Lengths of the networks of addresses in no zone.
const (
	networkBits4 = 16 // MogileFS-Network 0.06
	networkBits6 = 48 // what one site is commonly given
)

// Network is the network of an address, for policies that spread over networks:
// the netmask of the zone that contains it, else its /16 or, for IPv6, its /48.
// It is invalid for an invalid address.
func (z Zones) Network(addr netip.Addr) netip.Prefix {
	if n, ok := z.find(addr); ok {
		return n.prefix
	}
	addr = addr.Unmap()
	bits := networkBits4
	if addr.Is6() {
		bits = networkBits6
	}
	p, err := addr.Prefix(bits)
	if err != nil { // addr is invalid
		return netip.Prefix{}
	}
	return p
}

func (z Zones) find(addr netip.Addr) (zoneNet, bool) {
	addr = addr.Unmap().WithZone("")
	for _, n := range z.nets {
		if n.prefix.Contains(addr) {
			return n, true
		}
	}
	return zoneNet{}, false
}
