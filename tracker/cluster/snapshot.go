// Package cluster holds what a tracker knows of hosts, devices, domains,
// classes and settings, as one immutable value behind an atomic pointer.
//
// Handlers and workers take a [Snapshot] once and decide by it. The database's
// part of it is refreshed by [Cluster.Refresh]; what the monitor observed
// (reachability, utilisation, capabilities) is laid over it by
// [Cluster.Observe].
package cluster

import (
	"net/netip"
	"strconv"
	"time"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/schema"
)

// HostState is what the monitor last saw of a host.
type HostState string

// Observed states of hosts. The empty state is a host not yet looked at.
const (
	HostReachable   HostState = "reachable"
	HostUnreachable HostState = "unreachable"
)

// DeviceState is what the monitor last saw of a device.
type DeviceState string

// Observed states of devices. The empty state is a device not yet looked at.
const (
	DeviceWriteable   DeviceState = "writeable"
	DeviceReadable    DeviceState = "readable"
	DeviceUnreachable DeviceState = "unreachable"
)

// Snapshot is the cluster at one moment. It is never changed once published;
// its maps and slices are shared and must not be written.
type Snapshot struct {
	Domains  map[string]*Domain
	ByDMID   map[schema.DMID]*Domain
	Hosts    map[schema.HostID]*Host
	Devices  map[protocol.DevID]*Device
	Settings map[string]string
	Zones    protocol.Zones // from Settings

	HostList   []*Host   // ascending by number
	DeviceList []*Device // ascending by number

	AsOf time.Time // when the database was read, by its clock

	zoneWarnings []string // what makes no sense in the settings of Zones
}

// Domain is a domain and its classes.
type Domain struct {
	schema.Domain
	Classes []*Class // ascending by number; the class "default" is always there
}

// Class is a class of a domain.
type Class struct {
	schema.Class
	Stored bool // false for a class "default" without a row
}

// Host is a host as configured and as observed.
type Host struct {
	schema.Host
	Observed     HostState
	Capabilities Capabilities
	Zone         string       // the zone of IP; empty where it is in none
	Network      netip.Prefix // the network of IP, as [protocol.Zones.Network] has it; invalid where IP is no address
	altMask      netip.Prefix // invalid where there is none, or none that parses
}

// Capabilities are what a storage daemon says that it can do, from its header
// "Mogile: 1 word word ...". The zero value is a daemon of another make.
type Capabilities struct {
	Version int // of the internal verbs; 0 for a daemon of another make
	Words   []string
}

// Device is a device as configured and as observed.
type Device struct {
	schema.Device
	Host         *Host // nil where the row names a host that is not there
	Observed     DeviceState
	Utilization  string // percentage text as the storage daemon sent it; "-" or empty where unknown
	RejectBadMD5 *bool  // whether a PUT with a wrong Content-MD5 is refused; nil where not yet tried
}

// Domain finds a domain by name.
func (s *Snapshot) Domain(name string) (*Domain, bool) {
	d, ok := s.Domains[name]
	return d, ok
}

// Device finds a device; nil where there is none.
func (s *Snapshot) Device(dev protocol.DevID) *Device { return s.Devices[dev] }

// Class finds a class of a domain by number; nil where there is none.
func (s *Snapshot) Class(dmid schema.DMID, id schema.ClassID) *Class {
	d := s.ByDMID[dmid]
	if d == nil {
		return nil
	}
	for _, c := range d.Classes {
		if c.ID == id {
			return c
		}
	}
	return nil
}

// Class finds a class by name. The empty name is the default class.
func (d *Domain) Class(name string) (*Class, bool) {
	if name == "" {
		name = schema.DefaultClass
	}
	for _, c := range d.Classes {
		if c.Name == name {
			return c, true
		}
	}
	return nil, false
}

// The predicates below are the tables of states of MogileFS 2.73: what an
// operator's status and what the monitor saw permit together.

// monitored reports whether the host's status lets it be asked at all.
func (h *Host) monitored() bool {
	return h != nil && (h.Status == schema.HostAlive || h.Status == schema.HostReadonly)
}

// status is the configured status, with texts that are no status read as down.
func (d *Device) status() string {
	switch d.Status {
	case schema.DeviceAlive, schema.DeviceDrain, schema.DeviceReadonly, schema.DeviceDead:
		return d.Status
	}
	return schema.DeviceDown
}

// Dead reports whether the operator gave the device up: its copies do not
// count, and are forgotten rather than deleted.
func (d *Device) Dead() bool { return d.status() == schema.DeviceDead }

// Draining reports whether the device is in drain.
func (d *Device) Draining() bool { return d.status() == schema.DeviceDrain }

// Monitored reports whether the monitor looks at the device.
func (d *Device) Monitored() bool {
	if !d.Host.monitored() {
		return false
	}
	switch d.status() {
	case schema.DeviceAlive, schema.DeviceDrain, schema.DeviceReadonly:
		return true
	}
	return false
}

// Readable reports whether copies on the device should be read.
func (d *Device) Readable() bool {
	return d.Monitored() && d.Host.Observed == HostReachable &&
		(d.Observed == DeviceReadable || d.Observed == DeviceWriteable)
}

// Writeable reports whether the monitor could write to the device when it last
// tried, on a host that it could reach.
func (d *Device) Writeable() bool {
	return d.Host != nil && d.Host.Observed == HostReachable && d.Observed == DeviceWriteable
}

// TakesFiles reports whether new files and replicas may be put on the device:
// it is alive on a host that is alive, observed writeable, and has at least
// minFreeMB MiB free where its size is known.
func (d *Device) TakesFiles(minFreeMB int64) bool {
	if d.status() != schema.DeviceAlive || d.Host == nil || d.Host.Status != schema.HostAlive || !d.Writeable() {
		return false
	}
	free, known := d.FreeMB()
	return !known || free >= minFreeMB
}

// LetsDelete reports whether files may be deleted from the device.
func (d *Device) LetsDelete() bool {
	s := d.status()
	return d.Host != nil && d.Host.Status == schema.HostAlive &&
		(s == schema.DeviceAlive || s == schema.DeviceDrain)
}

// Zone is the zone of the device's host; empty where there is none.
func (d *Device) Zone() string {
	if d.Host == nil {
		return ""
	}
	return d.Host.Zone
}

// Network is the network of the device's host. It is invalid where that is
// unknown.
func (d *Device) Network() netip.Prefix {
	if d.Host == nil {
		return netip.Prefix{}
	}
	return d.Host.Network
}

// SameHost reports whether both devices are of one host.
func (d *Device) SameHost(o *Device) bool { return d.HostID == o.HostID }

// SameNetwork reports whether the hosts of both devices are in one network.
// Hosts whose network is unknown count as of one.
func (d *Device) SameNetwork(o *Device) bool { return d.Network() == o.Network() }

// FreeMB is the free space in MiB, and whether it is known.
func (d *Device) FreeMB() (int64, bool) {
	if d.TotalMB == nil || d.UsedMB == nil {
		return 0, false
	}
	return *d.TotalMB - *d.UsedMB, true
}

// FreeFraction is the free part of the device, 0 to 1; 0 where it is unknown.
func (d *Device) FreeFraction() float64 {
	free, known := d.FreeMB()
	if !known || *d.TotalMB <= 0 || free <= 0 {
		return 0
	}
	return float64(free) / float64(*d.TotalMB)
}

// Viewer is who asks for a URL, which decides between a host's two addresses.
type Viewer struct {
	Addr netip.Addr // the client's address; invalid where it is the tracker itself
	Alt  bool       // the request says zone=alt
}

// Address is the host's address for viewer: AltIP where there is one with a
// mask that parses and viewer asks for it or is inside the mask, else IP.
func (h *Host) Address(v Viewer) string {
	if h.AltIP != "" && h.altMask.IsValid() && (v.Alt || v.Addr.IsValid() && h.altMask.Contains(v.Addr.Unmap())) {
		return h.AltIP
	}
	return h.IP
}

// ReadPort is the port for reading: GetPort, or Port where that is not set.
func (h *Host) ReadPort() int {
	if h.GetPort != 0 {
		return h.GetPort
	}
	return h.Port
}

// WriteURL is where fid is put on the device. Empty where the device has no
// host.
func (d *Device) WriteURL(fid protocol.FID, v Viewer) string {
	if d.Host == nil {
		return ""
	}
	return d.url(fid, v, d.Host.Port)
}

// ReadURL is where fid is read from the device. Empty where the device has no
// host.
func (d *Device) ReadURL(fid protocol.FID, v Viewer) string {
	if d.Host == nil {
		return ""
	}
	return d.url(fid, v, d.Host.ReadPort())
}

// ShardURL is where the shard of fid that is on the device is itself. Empty
// where the device has no host.
func (d *Device) ShardURL(fid protocol.FID, v Viewer) string {
	if d.Host == nil {
		return ""
	}
	return string(d.appendBase(nil, v, d.Host.Port)) + fid.ShardPath(d.ID)
}

func (d *Device) url(fid protocol.FID, v Viewer, port int) string {
	return string(fid.AppendPath(d.appendBase(make([]byte, 0, 80), v, port), d.ID))
}

// appendBase appends "http://host:port/".
func (d *Device) appendBase(b []byte, v Viewer, port int) []byte {
	b = append(b, "http://"...)
	addr := d.Host.Address(v)
	if isIPv6(addr) {
		b = append(append(append(b, '['), addr...), ']')
	} else {
		b = append(b, addr...)
	}
	b = append(b, ':')
	b = strconv.AppendInt(b, int64(port), 10)
	return append(b, '/')
}

func isIPv6(addr string) bool {
	for i := range len(addr) {
		if addr[i] == ':' {
			return true
		}
	}
	return false
}
