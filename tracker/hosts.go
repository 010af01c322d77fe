package tracker

import (
	"context"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/schema"
	"github.com/mogile/mogile/tracker/cluster"
)

// hostStates and deviceStates are what an administrator may set.
func hostState(s string) bool {
	switch s {
	case schema.HostAlive, schema.HostReadonly, schema.HostDown, schema.HostDead:
		return true
	}
	return false
}

func deviceState(s string) bool {
	switch s {
	case schema.DeviceAlive, schema.DeviceDrain, schema.DeviceReadonly, schema.DeviceDown, schema.DeviceDead:
		return true
	}
	return false
}

func (t *Tracker) updateHost(ctx context.Context, q *query) error { return t.writeHost(ctx, q, true) }

func (t *Tracker) createHost(ctx context.Context, q *query) error {
	return t.writeHost(ctx, q, q.True("update"))
}

// writeHost creates or updates a host.
func (t *Tracker) writeHost(ctx context.Context, q *query, update bool) error {
	name := q.Get("host")
	if name == "" {
		return protocol.Err("no_host")
	}
	at, err := t.fresh(ctx)
	if err != nil {
		return err
	}
	known := slices.ContainsFunc(at.HostList, func(h *cluster.Host) bool { return h.Name == name })
	ip, port := q.either("ip", "hostip"), q.either("port", "http_port")
	switch {
	case update && !known:
		return protocol.ErrHostNotFound
	case update:
	case known:
		return protocol.ErrHostExists
	case !protocol.Truthy(ip):
		return protocol.Err("no_ip")
	case !protocol.Truthy(port):
		return protocol.Err("no_port")
	}
	change, err := q.hostChange(ip, port)
	if err != nil {
		return err
	}
	var id schema.HostID
	if update {
		id, err = t.store.UpdateHost(ctx, name, change)
	} else if err = fits("The host's name", name, maxHostName); err == nil {
		id, err = t.store.CreateHost(ctx, newHost(name, change))
	}
	if err != nil {
		return err
	}
	t.storageChanged(ctx)
	q.reply.AddInt("hostid", int64(id))
	q.reply.Add("hostname", name)
	return nil
}

// either is the value of the first of two names that has one.
func (q *query) either(name, column string) string {
	if v := q.Get(name); v != "" {
		return v
	}
	return q.Get(column)
}

// hostChange reads what q says of a host. What is absent stays as it is; an
// empty getport, altip or altmask is taken away.
func (q *query) hostChange(ip, port string) (schema.HostChange, error) {
	var c schema.HostChange
	if status := q.Get("status"); status != "" {
		if !hostState(status) {
			return c, protocol.Err("unknown_state")
		}
		c.Status = &status
	}
	if ip != "" {
		if !isAddress(ip) {
			return c, badAddress("ip")
		}
		c.IP = &ip
	}
	if port != "" {
		n, err := parsePort("port", port)
		if err != nil {
			return c, err
		}
		c.Port = &n
	}
	_, given := q.Lookup("getport")
	_, column := q.Lookup("http_get_port")
	if given || column {
		n := 0
		if port := q.either("getport", "http_get_port"); protocol.Truthy(port) {
			var err error
			if n, err = parsePort("getport", port); err != nil {
				return c, err
			}
		}
		c.GetPort = &n
	}
	if altip, given := q.Lookup("altip"); given {
		if altip != "" && !isAddress(altip) {
			return c, badAddress("altip")
		}
		c.AltIP = &altip
	}
	if altmask, given := q.Lookup("altmask"); given {
		if fits("The altmask", altmask, 64) != nil {
			return c, &protocol.Error{Code: "bad_params", Text: "altmask must be a netmask such as 10.0.0.0/8"}
		}
		c.AltMask = &altmask
	}
	return c, nil
}

func newHost(name string, c schema.HostChange) schema.Host {
	h := schema.Host{Name: name, Status: schema.HostDown, IP: *c.IP, Port: *c.Port}
	if c.Status != nil {
		h.Status = *c.Status
	}
	if c.GetPort != nil {
		h.GetPort = *c.GetPort
	}
	if c.AltIP != nil {
		h.AltIP = *c.AltIP
	}
	if c.AltMask != nil {
		h.AltMask = *c.AltMask
	}
	return h
}

// isAddress reports whether s can stand in a URL as an address: the letters of
// an IP address of either kind or of a host's name.
func isAddress(s string) bool {
	for i := range len(s) {
		switch c := s[i]; {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', strings.IndexByte(".-:_", c) >= 0:
		default:
			return false
		}
	}
	return s != "" && len(s) <= 255
}

func badAddress(name string) *protocol.Error {
	return &protocol.Error{Code: "bad_params", Text: name + " must be an IP address"}
}

func parsePort(name, s string) (int, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || n == 0 {
		return 0, &protocol.Error{Code: "bad_params", Text: name + " must be a number from 1 to 65535"}
	}
	return int(n), nil
}

func (t *Tracker) deleteHost(ctx context.Context, q *query) error {
	name := q.Get("host")
	if name == "" || fits("The host's name", name, maxHostName) != nil {
		return protocol.ErrUnknownHost
	}
	if err := t.store.DeleteHost(ctx, name); err != nil {
		return err
	}
	t.storageChanged(ctx)
	return nil
}

// getHosts lists hosts, or the one with the given number.
func (t *Tracker) getHosts(_ context.Context, q *query) error {
	hosts := q.at.HostList
	if q.True("hostid") {
		id := q.Number("hostid")
		hosts = slices.DeleteFunc(slices.Clone(hosts), func(h *cluster.Host) bool { return int64(h.ID) != id })
	}
	q.reply.AddInt("hosts", int64(len(hosts)))
	for i, h := range hosts {
		prefix := "host" + strconv.Itoa(i+1) + "_"
		q.reply.AddInt(prefix+"hostid", int64(h.ID))
		q.reply.Add(prefix+"status", h.Status)
		q.reply.Add(prefix+"hostname", h.Name)
		q.reply.Add(prefix+"hostip", h.IP)
		q.reply.AddInt(prefix+"http_port", int64(h.Port))
		q.reply.Add(prefix+"http_get_port", unlessZero(h.GetPort))
		q.reply.Add(prefix+"altip", h.AltIP)
		q.reply.Add(prefix+"altmask", h.AltMask)
	}
	return nil
}

func unlessZero(n int) string {
	if n == 0 {
		return ""
	}
	return strconv.Itoa(n)
}

// digits is s as a number where it is nothing but digits and not too large, else
// -1.
func digits(s string) int64 {
	n, err := strconv.ParseUint(s, 10, 63)
	if err != nil {
		return -1
	}
	return int64(n)
}

func (t *Tracker) createDevice(ctx context.Context, q *query) error {
	d := schema.Device{Status: schema.DeviceAlive, Weight: 100}
	if state := q.Get("state"); state != "" {
		if !deviceState(state) {
			return protocol.Err("invalid_state")
		}
		d.Status = state
	}
	devid := digits(q.Get("devid"))
	if devid <= 0 {
		return protocol.Err("invalid_devid")
	}
	if devid > protocol.MaxDevID {
		return &protocol.Error{Code: "invalid_devid", Text: fmt.Sprintf("A devid must be at most %d", protocol.MaxDevID)}
	}
	d.ID = protocol.DevID(devid)
	at, err := t.fresh(ctx)
	if err != nil {
		return err
	}
	if d.HostID, err = q.deviceHost(at); err != nil {
		return err
	}
	if err := t.store.CreateDevice(ctx, d); err != nil {
		return err
	}
	t.storageChanged(ctx)
	return nil
}

// deviceHost is the host that create_device names, by number or else by name.
func (q *query) deviceHost(at *cluster.Snapshot) (schema.HostID, error) {
	if id := digits(q.Get("hostid")); id >= 0 {
		if id > math.MaxInt16 || at.Hosts[schema.HostID(id)] == nil {
			return 0, protocol.Err("unknown_hostid")
		}
		return schema.HostID(id), nil
	}
	name := q.Get("hostname")
	if name == "" {
		return 0, &protocol.Error{Code: "bad_args", Text: "No hostid/hostname parameter"}
	}
	for _, h := range at.HostList {
		if h.Name == name {
			return h.ID, nil
		}
	}
	return 0, protocol.ErrUnknownHost
}

// getDevices lists devices, or the one with the given number.
func (t *Tracker) getDevices(_ context.Context, q *query) error {
	devs := q.at.DeviceList
	if q.True("devid") {
		id := q.Number("devid")
		devs = slices.DeleteFunc(slices.Clone(devs), func(d *cluster.Device) bool { return int64(d.ID) != id })
	}
	q.reply.AddInt("devices", int64(len(devs)))
	for i, d := range devs {
		prefix := "dev" + strconv.Itoa(i+1) + "_"
		q.reply.Add(prefix+"devid", d.ID.String())
		q.reply.AddInt(prefix+"hostid", int64(d.HostID))
		q.reply.Add(prefix+"status", d.Status)
		q.reply.AddInt(prefix+"weight", int64(d.Weight))
		q.reply.Add(prefix+"mb_total", known(d.TotalMB))
		q.reply.Add(prefix+"mb_used", known(d.UsedMB))
		q.reply.Add(prefix+"mb_asof", "") // as in MogileFS 2.73, which keeps it from its workers
		free := ""
		if mb, ok := d.FreeMB(); ok {
			free = strconv.FormatInt(mb, 10)
		}
		q.reply.Add(prefix+"mb_free", free)
		q.reply.Add(prefix+"observed_state", string(d.Observed))
		q.reply.Add(prefix+"utilization", d.Utilization)
		rejects := ""
		if d.RejectBadMD5 != nil {
			rejects = "0"
			if *d.RejectBadMD5 {
				rejects = "1"
			}
		}
		q.reply.Add(prefix+"reject_bad_md5", rejects)
	}
	return nil
}

// known is a number, empty where it is not known.
func known(n *int64) string {
	if n == nil {
		return ""
	}
	return strconv.FormatInt(*n, 10)
}

// deviceOfHost finds the device that set_state and set_weight name: no_device,
// or host_mismatch where it is another host's.
func (t *Tracker) deviceOfHost(ctx context.Context, q *query) (*cluster.Device, error) {
	at, err := t.fresh(ctx)
	if err != nil {
		return nil, err
	}
	id := q.Number("device")
	if id < 0 || id > protocol.MaxDevID {
		return nil, protocol.ErrNoDevice
	}
	d := at.Device(protocol.DevID(id))
	if d == nil {
		return nil, protocol.ErrNoDevice
	}
	if d.Host == nil || d.Host.Name != q.Get("host") {
		return nil, protocol.Err("host_mismatch")
	}
	return d, nil
}

func (t *Tracker) setState(ctx context.Context, q *query) error {
	state := q.Get("state")
	if !q.True("host") || !q.True("device") || !deviceState(state) {
		return protocol.Err("bad_params")
	}
	d, err := t.deviceOfHost(ctx, q)
	if err != nil {
		return err
	}
	if err := t.store.SetDeviceState(ctx, d.ID, state); err != nil {
		return err
	}
	t.undrain(ctx, d.ID, state)
	t.storageChanged(ctx)
	return nil
}

func (t *Tracker) setWeight(ctx context.Context, q *query) error {
	// Digits count, and what follows them does not, as for any number; but what
	// is none is a mistake, and no 0.
	text := q.Get("weight")
	weight := int64(-1)
	if text != "" && text[0] >= '0' && text[0] <= '9' {
		weight = protocol.Number(text)
	}
	if !q.True("host") || !q.True("device") || weight < 0 || weight > math.MaxInt32 {
		return protocol.Err("bad_params")
	}
	d, err := t.deviceOfHost(ctx, q)
	if err != nil {
		return err
	}
	if err := t.store.SetDeviceWeight(ctx, d.ID, int(weight)); err != nil {
		return err
	}
	t.storageChanged(ctx)
	return nil
}
