package storetest

import (
	"time"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/schema"
)

var topologyCases = []testCase{
	{"Topology", checkTopology},
	{"Domains", checkDomains},
	{"Classes", checkClasses},
	{"Hosts", checkHosts},
	{"Devices", checkDevices},
	{"Announce", checkAnnounce},
}

func p[T any](v T) *T { return &v }

// code fails the case unless err is the refusal code.
func (e *env) code(err error, code string) {
	e.Helper()
	if refusal(err) != code {
		e.Fatalf("error is %v; want the refusal %s", err, code)
	}
}

func (e *env) topology() schema.TopologyRows {
	e.Helper()
	top, err := e.Topology(e.ctx)
	e.must(err)
	return top
}

func checkTopology(e *env) {
	top := e.topology()
	e.same("domains", top.Domains, []schema.Domain{{ID: e.dmid, Name: "d"}})
	if len(top.Classes)+len(top.Hosts)+len(top.Devices) != 0 {
		e.Errorf("a fresh database has %+v", top)
	}
	if v := top.Settings["schema_version"]; v != "17" && v != "18" {
		e.Errorf("schema_version is %q; want 17 or 18", v)
	}
	if d := time.Since(top.Now).Abs(); d > time.Minute {
		e.Errorf("the database's clock is off by %s", d)
	}
	e.advance(24 * time.Hour)
	if d := (time.Since(e.topology().Now) + 24*time.Hour).Abs(); d > time.Minute {
		e.Errorf("with the offset the database's clock is off by %s", d)
	}
	// Stored names come back as they are.
	name := "Dömäin 'x\";\\ %"
	id, err := e.CreateDomain(e.ctx, name)
	e.must(err)
	e.same("domains", e.topology().Domains, []schema.Domain{{ID: e.dmid, Name: "d"}, {ID: id, Name: name}})
}

func checkDomains(e *env) {
	if e.dmid != 1 {
		e.Errorf("the first domain is %d; want 1", e.dmid)
	}
	if two := e.domain("two"); two != 2 {
		e.Errorf("the second domain is %d; want 2", two)
	}
	_, err := e.CreateDomain(e.ctx, "d")
	e.want(err, protocol.ErrDomainExists)
	if id := e.domain("D"); id != 3 { // names are told apart by case
		e.Errorf("domain D is %d; want 3", id)
	}

	e.want(e.DeleteDomain(e.ctx, "none"), protocol.ErrDomainNotFound)
	e.put("k")
	e.want(e.DeleteDomain(e.ctx, "d"), protocol.ErrDomainHasFiles)
	_, err = e.CreateClass(e.ctx, "d", schema.Class{Name: "c", MinDevCount: 1})
	e.must(err)
	e.must(e.UpdateClass(e.ctx, "d", "default", schema.ClassChange{MinDevCount: p(1)}))
	e.want(e.DeleteDomain(e.ctx, "d"), protocol.ErrDomainHasFiles)
	_, err = e.DeleteKey(e.ctx, e.dmid, "k")
	e.must(err)
	e.code(e.DeleteDomain(e.ctx, "d"), "domain_has_classes")
	e.must(e.DeleteClass(e.ctx, "d", "c"))
	e.must(e.DeleteDomain(e.ctx, "d"))
	top := e.topology()
	e.same("domains", top.Domains, []schema.Domain{{ID: 2, Name: "two"}, {ID: 3, Name: "D"}})
	e.same("classes", top.Classes, []schema.Class(nil)) // class 0 went with it
	e.want(e.DeleteDomain(e.ctx, "d"), protocol.ErrDomainNotFound)
}

func checkClasses(e *env) {
	create := func(c schema.Class, want schema.ClassID) {
		e.Helper()
		id, err := e.CreateClass(e.ctx, "d", c)
		e.must(err)
		if id != want {
			e.Errorf("class %q is %d; want %d", c.Name, id, want)
		}
	}
	create(schema.Class{Name: "one", MinDevCount: 1}, 1)
	create(schema.Class{Name: "full", MinDevCount: 3, HashType: protocol.HashSHA1, ReplPolicy: "MultipleHosts(3)"}, 2)
	create(schema.Class{Name: "default", MinDevCount: 4}, 0)
	create(schema.Class{ID: 77, DMID: 66, Name: "three", MinDevCount: 2, HashType: protocol.HashMD5}, 3)
	for _, name := range []string{"one", "default"} {
		_, err := e.CreateClass(e.ctx, "d", schema.Class{Name: name, MinDevCount: 1})
		e.want(err, protocol.ErrClassExists)
	}
	_, err := e.CreateClass(e.ctx, "none", schema.Class{Name: "x", MinDevCount: 1})
	e.want(err, protocol.ErrDomainNotFound)
	two := e.domain("two")
	if id, err := e.CreateClass(e.ctx, "two", schema.Class{Name: "one", MinDevCount: 2}); err != nil || id != 1 {
		e.Errorf("first class of another domain: %d, %v; want 1", id, err)
	}

	e.must(e.UpdateClass(e.ctx, "d", "full", schema.ClassChange{}))
	e.must(e.UpdateClass(e.ctx, "d", "one", schema.ClassChange{MinDevCount: p(5), HashType: p(protocol.HashMD5), ReplPolicy: p("MultipleDevices()")}))
	e.must(e.UpdateClass(e.ctx, "d", "three", schema.ClassChange{HashType: p(protocol.HashNone), ReplPolicy: p("")}))
	e.must(e.UpdateClass(e.ctx, "two", "default", schema.ClassChange{ReplPolicy: p("MultipleHosts()")})) // had no row
	e.want(e.UpdateClass(e.ctx, "none", "one", schema.ClassChange{}), protocol.ErrDomainNotFound)
	e.want(e.UpdateClass(e.ctx, "d", "none", schema.ClassChange{}), protocol.ErrClassNotFound)
	e.same("classes", e.topology().Classes, []schema.Class{
		{DMID: e.dmid, ID: 0, Name: "default", MinDevCount: 4},
		{DMID: e.dmid, ID: 1, Name: "one", MinDevCount: 5, HashType: protocol.HashMD5, ReplPolicy: "MultipleDevices()"},
		{DMID: e.dmid, ID: 2, Name: "full", MinDevCount: 3, HashType: protocol.HashSHA1, ReplPolicy: "MultipleHosts(3)"},
		{DMID: e.dmid, ID: 3, Name: "three", MinDevCount: 2},
		{DMID: two, ID: 0, Name: "default", MinDevCount: 2, ReplPolicy: "MultipleHosts()"},
		{DMID: two, ID: 1, Name: "one", MinDevCount: 2},
	})

	e.code(e.DeleteClass(e.ctx, "d", "default"), "nodel_default_class")
	e.want(e.DeleteClass(e.ctx, "none", "one"), protocol.ErrDomainNotFound)
	e.want(e.DeleteClass(e.ctx, "d", "none"), protocol.ErrClassNotFound)
	up := e.upload("k")
	up.ClassID = 3
	fid, err := e.CreateTempfile(e.ctx, up)
	e.must(err)
	e.want(e.DeleteClass(e.ctx, "d", "three"), protocol.ErrClassHasFiles) // open uploads count
	c := e.closing(fid, "k")
	c.ClassID = 3
	e.must(e.CloseFile(e.ctx, c))
	e.want(e.DeleteClass(e.ctx, "d", "three"), protocol.ErrClassHasFiles)
	e.must(e.SetFileClass(e.ctx, fid, 1))
	e.must(e.DeleteClass(e.ctx, "d", "three"))
	e.want(e.DeleteClass(e.ctx, "d", "three"), protocol.ErrClassNotFound)
	e.must(e.DeleteClass(e.ctx, "two", "one"))
}

func checkHosts(e *env) {
	a := schema.Host{Status: schema.HostAlive, Name: "a", IP: "10.0.0.1", Port: 7500}
	b := schema.Host{ID: 50, Status: schema.HostDown, Name: "b", IP: "10.0.0.2", Port: 7600, GetPort: 7700, AltIP: "192.168.0.2", AltMask: "192.168.0.0/16"}
	for i, h := range []schema.Host{a, b} {
		id, err := e.CreateHost(e.ctx, h)
		e.must(err)
		if int(id) != i+1 {
			e.Errorf("host %s is %d; want %d", h.Name, id, i+1)
		}
	}
	a.ID, b.ID = 1, 2
	e.same("hosts", e.topology().Hosts, []schema.Host{a, b})

	_, err := e.CreateHost(e.ctx, schema.Host{Status: schema.HostAlive, Name: "a", IP: "10.0.0.9", Port: 1})
	e.want(err, protocol.ErrHostExists)
	_, err = e.CreateHost(e.ctx, schema.Host{Status: schema.HostAlive, Name: "c", IP: "10.0.0.1", Port: 1})
	e.want(err, protocol.ErrDup)
	_, err = e.CreateHost(e.ctx, schema.Host{Status: schema.HostAlive, Name: "c", IP: "10.0.0.9", AltIP: "192.168.0.2", Port: 1})
	e.want(err, protocol.ErrDup)

	id, err := e.UpdateHost(e.ctx, "a", schema.HostChange{
		Status: p(schema.HostReadonly), IP: p("10.0.0.3"), Port: p(1), GetPort: p(2), AltIP: p("192.168.0.3"), AltMask: p("192.168.0.0/24"),
	})
	e.must(err)
	if id != 1 {
		e.Errorf("host a is %d; want 1", id)
	}
	a = schema.Host{ID: 1, Status: schema.HostReadonly, Name: "a", IP: "10.0.0.3", Port: 1, GetPort: 2, AltIP: "192.168.0.3", AltMask: "192.168.0.0/24"}
	e.same("hosts", e.topology().Hosts, []schema.Host{a, b})
	_, err = e.UpdateHost(e.ctx, "a", schema.HostChange{})
	e.must(err)
	e.same("hosts", e.topology().Hosts, []schema.Host{a, b})
	// Empty is none, for two hosts at once.
	for _, name := range []string{"a", "b"} {
		_, err = e.UpdateHost(e.ctx, name, schema.HostChange{AltIP: p(""), AltMask: p(""), GetPort: p(0)})
		e.must(err)
	}
	a.AltIP, a.AltMask, a.GetPort, b.AltIP, b.AltMask, b.GetPort = "", "", 0, "", "", 0
	e.same("hosts", e.topology().Hosts, []schema.Host{a, b})
	_, err = e.UpdateHost(e.ctx, "none", schema.HostChange{})
	e.want(err, protocol.ErrHostNotFound)
	_, err = e.UpdateHost(e.ctx, "a", schema.HostChange{IP: p("10.0.0.2")})
	e.want(err, protocol.ErrDup)

	e.want(e.DeleteHost(e.ctx, "none"), protocol.ErrUnknownHost)
	e.must(e.CreateDevice(e.ctx, schema.Device{ID: 1, HostID: 1, Status: schema.DeviceDead}))
	e.want(e.DeleteHost(e.ctx, "a"), protocol.ErrHostNotEmpty)
	e.must(e.DeleteHost(e.ctx, "b"))
	e.same("hosts", e.topology().Hosts, []schema.Host{a})
}

func checkDevices(e *env) {
	_, err := e.CreateHost(e.ctx, schema.Host{Status: schema.HostAlive, Name: "a", IP: "10.0.0.1", Port: 7500})
	e.must(err)
	e.must(e.CreateDevice(e.ctx, schema.Device{ID: 9, HostID: 1, Status: schema.DeviceAlive}))
	e.must(e.CreateDevice(e.ctx, schema.Device{ID: protocol.MaxDevID, HostID: 1, Status: schema.DeviceDrain, Weight: 40}))
	e.want(e.CreateDevice(e.ctx, schema.Device{ID: 9, HostID: 1, Status: schema.DeviceAlive}), protocol.ErrExistingDevID)
	e.code(e.CreateDevice(e.ctx, schema.Device{ID: 10, HostID: 2, Status: schema.DeviceAlive}), "unknown_hostid")
	nine := schema.Device{ID: 9, HostID: 1, Status: schema.DeviceAlive, Weight: 100}
	last := schema.Device{ID: protocol.MaxDevID, HostID: 1, Status: schema.DeviceDrain, Weight: 40}
	e.same("devices", e.topology().Devices, []schema.Device{nine, last})

	for _, state := range []string{schema.DeviceDrain, schema.DeviceReadonly, schema.DeviceDown, schema.DeviceDead, schema.DeviceDead} {
		e.must(e.SetDeviceState(e.ctx, 9, state))
		if got := e.topology().Devices[0].Status; got != state {
			e.Errorf("state is %s; want %s", got, state)
		}
	}
	e.code(e.SetDeviceState(e.ctx, 9, schema.DeviceAlive), "state_too_high")
	e.must(e.SetDeviceState(e.ctx, 9, schema.DeviceDown))
	e.must(e.SetDeviceState(e.ctx, 9, schema.DeviceAlive))
	e.want(e.SetDeviceState(e.ctx, 10, schema.DeviceAlive), protocol.ErrNoDevice)

	e.must(e.SetDeviceWeight(e.ctx, 9, 0))
	e.want(e.SetDeviceWeight(e.ctx, 10, 5), protocol.ErrNoDevice)

	e.must(e.SetDeviceUsage(e.ctx, nil))
	e.must(e.SetDeviceUsage(e.ctx, []schema.Usage{
		{DevID: 9, TotalMB: 4000, UsedMB: 0}, {DevID: 10, TotalMB: 1, UsedMB: 1}, {DevID: protocol.MaxDevID, TotalMB: 2_000_000_000, UsedMB: 5},
	}))
	top := e.topology()
	for i := range top.Devices {
		if d := top.Now.Unix() - top.Devices[i].AsOf; d < 0 || d > 60 {
			e.Errorf("usage is as of %d s ago", d)
		}
		top.Devices[i].AsOf = 0
	}
	nine.Weight, nine.TotalMB, nine.UsedMB = 0, p[int64](4000), p[int64](0)
	last.TotalMB, last.UsedMB = p[int64](2_000_000_000), p[int64](5)
	e.same("devices", top.Devices, []schema.Device{nine, last})
}

// checkAnnounce tells another tracker, where there can be one.
func checkAnnounce(e *env) {
	other := e.db.Open(e)
	changes := other.Changes(e.ctx)
	if _, alone := e.db.(OneProcess); !alone {
		// The other may not listen yet: tell it until it hears.
		for heard := false; !heard; {
			e.must(e.Announce(e.ctx))
			select {
			case <-changes:
				heard = true
			case <-time.After(50 * time.Millisecond):
			case <-e.ctx.Done():
				e.Fatal("no announcement was heard")
			}
		}
	}
	e.must(e.Announce(e.ctx))
	ctx, cancel := contextWithCancel(e)
	ch := other.Changes(ctx)
	cancel()
	for range ch { // closed
	}
}
