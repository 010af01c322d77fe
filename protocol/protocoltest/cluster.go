package protocoltest

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/mogile/mogile/protocol"
)

// Cluster is a namespace in memory behind one or several trackers, with storage
// daemons. Every file has the copies that its upload and nothing else made.
type Cluster struct {
	Trackers []*Tracker
	Storage  []*Storage // of the hosts store1, store2, ...

	mu       sync.Mutex // guards what follows
	before   func(protocol.Request) *Reply
	lastFID  protocol.FID
	uploads  map[protocol.FID]*upload
	files    map[string]map[string]*file // by domain and key
	domains  []*protocol.Domain
	hosts    []*protocol.Host
	devices  []*protocol.Device
	settings map[string]string
}

type upload struct {
	domain, class string
	devs          []protocol.DevID
}

type file struct {
	fid      protocol.FID
	class    string
	length   int64
	devs     []protocol.DevID
	checksum string
}

// NewCluster starts a cluster with the domain "test" (classes default and
// single), hosts store1, store2, ... and one device on each, numbered alike.
func NewCluster(t testing.TB, trackers, hosts int) *Cluster {
	t.Helper()
	c := &Cluster{
		uploads:  make(map[protocol.FID]*upload),
		files:    map[string]map[string]*file{"test": {}},
		settings: map[string]string{"schema_version": "17"},
		domains: []*protocol.Domain{{Name: "test", Classes: []protocol.Class{
			{Name: "default", MinDevCount: 2, ReplPolicy: "MultipleHosts()", HashType: "NONE"},
			{Name: "single", MinDevCount: 1, ReplPolicy: "MultipleHosts()", HashType: "MD5"},
		}}},
	}
	for i := 1; i <= hosts; i++ {
		s := NewStorage(t, "127.0.0.1")
		c.Storage = append(c.Storage, s)
		c.hosts = append(c.hosts, &protocol.Host{ID: int64(i), Name: "store" + strconv.Itoa(i), Status: "alive", IP: "127.0.0.1", Port: s.Port()})
		c.devices = append(c.devices, &protocol.Device{ID: protocol.DevID(i), HostID: int64(i), Status: "alive", Observed: "writeable",
			Weight: 100, TotalMB: 2000, UsedMB: 1000, Utilization: "0.40", RejectsBadMD5: "1"})
	}
	for range trackers {
		c.Trackers = append(c.Trackers, NewTracker(t, c.Handle, func(line string) []string {
			switch line {
			case "!stats":
				return []string{"uptime 42", "pending_queries 0", "processing_queries 0", "bored_queryworkers 20", "queries 7"}
			case "!version":
				return []string{"2.73"}
			case "!jobs":
				return []string{"replicate count 1", "replicate desired 1", "replicate pids 12"}
			}
			return []string{"Mogilefsd admin commands:"}
		}))
	}
	return c
}

// Addrs are the trackers' addresses.
func (c *Cluster) Addrs() []string {
	var addrs []string
	for _, t := range c.Trackers {
		addrs = append(addrs, t.Addr())
	}
	return addrs
}

// Before has f see each request first, and answer it where its reply is not
// nil.
func (c *Cluster) Before(f func(protocol.Request) *Reply) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.before = f
}

// Copy copies the file under key to another device, as replication does.
func (c *Cluster) Copy(domain, key string, to protocol.DevID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f := c.files[domain][key]
	content, _ := c.Storage[f.devs[0]-1].File("/" + f.fid.Path(f.devs[0]))
	c.Storage[to-1].Set("/"+f.fid.Path(to), content)
	f.devs = append(f.devs, to)
}

// Uploads is how many uploads are open.
func (c *Cluster) Uploads() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.uploads)
}

// SetObserved sets what the monitor has seen of a device.
func (c *Cluster) SetObserved(dev protocol.DevID, state string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.devices[dev-1].Observed = state
}

// Handle executes a request.
func (c *Cluster) Handle(req protocol.Request) Reply {
	c.mu.Lock()
	before := c.before
	c.mu.Unlock()
	if before != nil {
		if r := before(req); r != nil {
			return *r
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	var out protocol.Args
	err := c.execute(req.Command, req.Args, &out)
	return Reply{Fields: out, Err: err}
}

func (c *Cluster) execute(command string, a protocol.Args, out *protocol.Args) *protocol.Error {
	domain, key := a.Get("domain"), a.Get("key")
	switch command {
	case "create_open", "create_close", "get_paths", "file_info", "delete", "rename", "list_keys", "updateclass":
		if domain == "" {
			return protocol.Err("no_domain")
		}
		if c.files[domain] == nil {
			return protocol.Err("unreg_domain")
		}
	}
	f := c.files[domain][key]
	switch command {
	case "get_paths", "file_info", "delete":
		if key == "" {
			return protocol.Err("no_key")
		}
		if f == nil {
			return protocol.ErrUnknownKey
		}
	}
	if n, ok := a.Lookup("if_fid"); ok && command != "create_close" {
		named := f
		if command == "rename" {
			named = c.files[domain][a.Get("from_key")]
		}
		if named != nil && n != named.fid.String() {
			return protocol.ErrFIDMismatch
		}
	}
	switch command {
	case "noop", "test", "replicate_now":
	case "clear_cache":
		*out = a
	case "create_open":
		return c.createOpen(a, out)
	case "create_close":
		return c.createClose(a)
	case "get_paths":
		for _, d := range f.devs {
			out.Add("path"+strconv.Itoa(len(*out)+1), c.url(f.fid, d))
		}
		out.AddInt("paths", int64(len(*out)))
	case "file_info":
		class := c.class(domain, f.class)
		out.Add("fid", f.fid.String())
		out.Add("domain", domain)
		out.Add("class", class.Name)
		out.Add("key", key)
		out.AddInt("length", f.length)
		out.AddInt("devcount", int64(len(f.devs)))
		var ids []string
		for _, d := range f.devs {
			ids = append(ids, d.String())
		}
		out.Add("devids", strings.Join(ids, ","))
		if class.HashType != "NONE" {
			sum := f.checksum
			if sum == "" {
				sum = "MISSING"
			}
			out.Add("checksum", sum)
		}
	case "delete":
		delete(c.files[domain], key)
	case "rename":
		from, to := a.Get("from_key"), a.Get("to_key")
		switch {
		case c.files[domain][from] == nil:
			return protocol.ErrUnknownKey
		case from != to && c.files[domain][to] != nil:
			return protocol.ErrKeyExists
		}
		f := c.files[domain][from]
		delete(c.files[domain], from)
		c.files[domain][to] = f
	case "updateclass":
		if c.class(domain, a.Get("class")) == nil {
			return protocol.ErrClassNotFound
		}
		if f == nil {
			return protocol.ErrInvalidKey
		}
		f.class = a.Get("class")
	case "list_keys":
		limit := a.Number("limit")
		if limit <= 0 || limit > 1000 {
			limit = 1000
		}
		n := int64(0)
		for _, k := range slices.Sorted(maps.Keys(c.files[domain])) {
			if n < limit && strings.HasPrefix(k, a.Get("prefix")) && k > a.Get("after") {
				n++
				out.Add("key_"+strconv.FormatInt(n, 10), k)
				out.Set("next_after", k)
			}
		}
		if n == 0 {
			return protocol.ErrNoneMatch
		}
		out.AddInt("key_count", n)
	case "list_fids":
		c.listFIDs(a, out)
	default:
		return c.administer(command, a, out)
	}
	return nil
}

// listFIDs answers in no order, as MogileFS may.
func (c *Cluster) listFIDs(a protocol.Args, out *protocol.Args) {
	type row struct {
		*file
		domain, key string
	}
	var rows []row
	for domain, files := range c.files {
		for key, f := range files {
			if f.fid > protocol.FID(a.Number("from")) {
				rows = append(rows, row{f, domain, key})
			}
		}
	}
	slices.SortFunc(rows, func(a, b row) int { return cmp.Compare(a.fid, b.fid) })
	rows = rows[:min(len(rows), int(a.Number("to")))]
	slices.Reverse(rows)
	out.AddInt("fid_count", int64(len(rows)))
	for i, r := range rows {
		p := "fid_" + strconv.Itoa(i+1) + "_"
		out.Add(p+"fid", r.fid.String())
		out.Add(p+"domain", r.domain)
		out.Add(p+"class", c.class(r.domain, r.class).Name)
		out.Add(p+"key", r.key)
		out.AddInt(p+"length", r.length)
		out.AddInt(p+"devcount", int64(len(r.devs)))
	}
}

func (c *Cluster) url(fid protocol.FID, dev protocol.DevID) string {
	h := c.hosts[c.devices[dev-1].HostID-1]
	return fmt.Sprintf("http://%s:%d/%s", h.IP, h.Port, fid.Path(dev))
}

func (c *Cluster) createOpen(a protocol.Args, out *protocol.Args) *protocol.Error {
	if class := a.Get("class"); class != "" && c.class(a.Get("domain"), class) == nil {
		return protocol.Err("unreg_class")
	}
	c.lastFID++
	u := &upload{domain: a.Get("domain"), class: a.Get("class")}
	out.Add("fid", c.lastFID.String())
	for _, d := range c.devices {
		if d.Status == "alive" && len(u.devs) < 3 {
			u.devs = append(u.devs, d.ID)
			n := "_" + strconv.Itoa(len(u.devs))
			if !a.True("multi_dest") {
				n = ""
			}
			out.Add("devid"+n, d.ID.String())
			out.Add("path"+n, c.url(c.lastFID, d.ID))
			if n == "" {
				break
			}
		}
	}
	if len(u.devs) == 0 {
		return protocol.Err("no_devices")
	}
	if a.True("multi_dest") {
		out.AddInt("dev_count", int64(len(u.devs)))
	}
	c.uploads[c.lastFID] = u
	return nil
}

func (c *Cluster) createClose(a protocol.Args) *protocol.Error {
	fid, dev := protocol.FID(a.Number("fid")), protocol.DevID(a.Number("devid"))
	if int(dev) > len(c.devices) || dev == 0 || a.Get("path") != c.url(fid, dev) {
		return protocol.Err("bogus_args")
	}
	u := c.uploads[fid]
	if u == nil {
		return protocol.ErrNoTempfile
	}
	if f := c.files[u.domain][a.Get("key")]; f != nil {
		if n, ok := a.Lookup("overwrite"); ok && n == "0" {
			return protocol.ErrKeyExists
		}
		if n, ok := a.Lookup("if_fid"); ok && n != f.fid.String() {
			return protocol.ErrFIDMismatch
		}
	} else if n, ok := a.Lookup("if_fid"); ok && n != "0" {
		return protocol.ErrFIDMismatch
	}
	delete(c.uploads, fid)
	if !slices.Contains(u.devs, dev) {
		return protocol.Err("invalid_destdev")
	}
	if a.Get("key") == "" {
		return nil
	}
	content, ok := c.Storage[c.devices[dev-1].HostID-1].File("/" + fid.Path(dev))
	if !ok {
		return protocol.Err("size_verify_error")
	}
	if size := a.Number("size"); size > 0 && size != int64(len(content)) {
		return &protocol.Error{Code: "size_mismatch", Text: fmt.Sprintf("Expected: %d; actual: %d; path: %s", size, len(content), a.Get("path"))}
	}
	f := &file{fid: fid, class: u.class, length: int64(len(content)), devs: []protocol.DevID{dev}}
	if s := a.Get("checksum"); s != "" {
		want, err := protocol.ParseChecksum(s)
		if err != nil {
			return protocol.Err("invalid_checksum_format")
		}
		h := want.Type.New()
		h.Write(content)
		if a.True("checksumverify") && !want.Equal(protocol.Checksum{Type: want.Type, Sum: h.Sum(nil)}) {
			return protocol.Err("checksum_mismatch")
		}
		if class := c.class(u.domain, u.class); class.HashType == want.Type.String() {
			f.checksum = s
		}
	}
	c.files[u.domain][a.Get("key")] = f
	return nil
}

func (c *Cluster) class(domain, name string) *protocol.Class {
	if name == "" {
		name = "default"
	}
	for _, d := range c.domains {
		for i := range d.Classes {
			if d.Name == domain && d.Classes[i].Name == name {
				return &d.Classes[i]
			}
		}
	}
	return nil
}

func (c *Cluster) administer(command string, a protocol.Args, out *protocol.Args) *protocol.Error {
	switch command {
	case "get_domains":
		out.AddInt("domains", int64(len(c.domains)))
		for i, d := range c.domains {
			p := "domain" + strconv.Itoa(i+1)
			out.Add(p, d.Name)
			out.AddInt(p+"classes", int64(len(d.Classes)))
			for j, class := range d.Classes {
				q := p + "class" + strconv.Itoa(j+1)
				out.Add(q+"name", class.Name)
				out.AddInt(q+"mindevcount", int64(class.MinDevCount))
				out.Add(q+"replpolicy", class.ReplPolicy)
				out.Add(q+"hashtype", class.HashType)
			}
		}
	case "create_domain":
		name := a.Get("domain")
		if c.files[name] != nil {
			return protocol.ErrDomainExists
		}
		c.files[name] = make(map[string]*file)
		c.domains = append(c.domains, &protocol.Domain{Name: name, Classes: []protocol.Class{
			{Name: "default", MinDevCount: 2, ReplPolicy: "MultipleHosts()", HashType: "NONE"}}})
		out.Add("domain", name)
	case "delete_domain":
		name := a.Get("domain")
		switch {
		case c.files[name] == nil:
			return protocol.ErrDomainNotFound
		case len(c.files[name]) > 0:
			return protocol.ErrDomainHasFiles
		}
		delete(c.files, name)
		c.domains = slices.DeleteFunc(c.domains, func(d *protocol.Domain) bool { return d.Name == name })
	case "create_class", "update_class":
		return c.setClass(command == "update_class", a)
	case "delete_class":
		for _, d := range c.domains {
			if n := len(d.Classes); d.Name == a.Get("domain") {
				d.Classes = slices.DeleteFunc(d.Classes, func(x protocol.Class) bool { return x.Name == a.Get("class") })
				if len(d.Classes) == n {
					return protocol.ErrClassNotFound
				}
				return nil
			}
		}
		return protocol.ErrDomainNotFound
	case "get_hosts":
		out.AddInt("hosts", int64(len(c.hosts)))
		for i, h := range c.hosts {
			p := "host" + strconv.Itoa(i+1)
			out.AddInt(p+"_hostid", h.ID)
			out.Add(p+"_status", h.Status)
			out.Add(p+"_hostname", h.Name)
			out.Add(p+"_hostip", h.IP)
			out.AddInt(p+"_http_port", int64(h.Port))
			getPort := ""
			if h.GetPort != 0 {
				getPort = strconv.Itoa(h.GetPort)
			}
			out.Add(p+"_http_get_port", getPort)
			out.Add(p+"_altip", h.AltIP)
			out.Add(p+"_altmask", h.AltMask)
		}
	case "create_host", "update_host":
		return c.setHost(command == "update_host", a, out)
	case "delete_host":
		i := slices.IndexFunc(c.hosts, func(h *protocol.Host) bool { return h.Name == a.Get("host") })
		if i < 0 {
			return protocol.ErrUnknownHost
		}
		if slices.ContainsFunc(c.devices, func(d *protocol.Device) bool { return d.HostID == c.hosts[i].ID }) {
			return protocol.ErrHostNotEmpty
		}
		c.hosts = slices.Delete(c.hosts, i, i+1)
	case "get_devices":
		out.AddInt("devices", int64(len(c.devices)))
		for i, d := range c.devices {
			p := "dev" + strconv.Itoa(i+1)
			out.Add(p+"_devid", d.ID.String())
			out.AddInt(p+"_hostid", d.HostID)
			out.Add(p+"_status", d.Status)
			out.AddInt(p+"_weight", d.Weight)
			for name, mb := range map[string]int64{"_mb_total": d.TotalMB, "_mb_used": d.UsedMB} {
				if mb < 0 {
					out.Add(p+name, "")
				} else {
					out.AddInt(p+name, mb)
				}
			}
			out.Add(p+"_observed_state", d.Observed)
			out.Add(p+"_utilization", d.Utilization)
			out.Add(p+"_reject_bad_md5", d.RejectsBadMD5)
		}
	case "create_device":
		i := slices.IndexFunc(c.hosts, func(h *protocol.Host) bool { return h.Name == a.Get("hostname") })
		if i < 0 {
			return protocol.ErrUnknownHost
		}
		id := protocol.DevID(a.Number("devid"))
		if slices.ContainsFunc(c.devices, func(d *protocol.Device) bool { return d.ID == id }) {
			return protocol.ErrExistingDevID
		}
		state := a.Get("state")
		if state == "" {
			state = "alive"
		}
		c.devices = append(c.devices, &protocol.Device{ID: id, HostID: c.hosts[i].ID, Status: state, Weight: 100, TotalMB: -1, UsedMB: -1})
	case "set_state", "set_weight":
		i := slices.IndexFunc(c.devices, func(d *protocol.Device) bool { return int64(d.ID) == a.Number("device") })
		if i < 0 {
			return protocol.ErrNoDevice
		}
		if c.hosts[c.devices[i].HostID-1].Name != a.Get("host") {
			return protocol.Err("host_mismatch")
		}
		if command == "set_weight" {
			c.devices[i].Weight = a.Number("weight")
		} else {
			c.devices[i].Status = a.Get("state")
		}
	case "server_settings":
		for i, k := range slices.Sorted(maps.Keys(c.settings)) {
			out.Add("key_"+strconv.Itoa(i+1), k)
			out.Add("value_"+strconv.Itoa(i+1), c.settings[k])
		}
		out.AddInt("key_count", int64(len(c.settings)))
	case "set_server_setting":
		if a.Get("key") == "frob" {
			return protocol.Err("not_writable")
		}
		value, given := a.Lookup("value")
		if !given || value == "" && strings.HasPrefix(a.Get("key"), "slave_") {
			delete(c.settings, a.Get("key"))
			break
		}
		c.settings[a.Get("key")] = value
	case "server_setting":
		out.Add("key", a.Get("key"))
		out.Add("value", c.settings[a.Get("key")])
	default:
		return protocol.ErrUnknownCommand
	}
	return nil
}

func (c *Cluster) setClass(update bool, a protocol.Args) *protocol.Error {
	if a.Number("mindevcount") <= 0 {
		return protocol.Err("invalid_mindevcount")
	}
	for _, d := range c.domains {
		if d.Name != a.Get("domain") {
			continue
		}
		class := c.class(d.Name, a.Get("class"))
		switch {
		case class == nil && update:
			return protocol.ErrClassNotFound
		case class != nil && !update:
			return protocol.ErrClassExists
		case class == nil:
			d.Classes = append(d.Classes, protocol.Class{Name: a.Get("class"), ReplPolicy: "MultipleHosts()", HashType: "NONE"})
			class = &d.Classes[len(d.Classes)-1]
		}
		class.MinDevCount = int(a.Number("mindevcount"))
		if s := a.Get("replpolicy"); s != "" {
			class.ReplPolicy = s
		}
		if s := a.Get("hashtype"); s != "" {
			class.HashType = s
		}
		return nil
	}
	return protocol.ErrDomainNotFound
}

func (c *Cluster) setHost(update bool, a protocol.Args, out *protocol.Args) *protocol.Error {
	name := a.Get("host")
	i := slices.IndexFunc(c.hosts, func(h *protocol.Host) bool { return h.Name == name })
	switch {
	case update && i < 0:
		return protocol.ErrHostNotFound
	case !update && i >= 0:
		return protocol.ErrHostExists
	case !update && a.Get("ip") == "":
		return protocol.Err("no_ip")
	case !update && a.Get("port") == "":
		return protocol.Err("no_port")
	case !update:
		c.hosts = append(c.hosts, &protocol.Host{ID: int64(len(c.hosts) + 1), Name: name, Status: "down"})
		i = len(c.hosts) - 1
	}
	h := c.hosts[i]
	for _, f := range a {
		switch f.Name {
		case "ip":
			h.IP = f.Value
		case "port":
			h.Port = int(protocol.Number(f.Value))
		case "getport":
			h.GetPort = int(protocol.Number(f.Value))
		case "altip":
			h.AltIP = f.Value
		case "altmask":
			h.AltMask = f.Value
		case "status":
			h.Status = f.Value
		}
	}
	out.AddInt("hostid", h.ID)
	out.Add("hostname", name)
	return nil
}
