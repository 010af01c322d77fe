package monitor

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/schema"
	"github.com/mogile/mogile/tracker/cluster"
	"github.com/mogile/mogile/tracker/storage"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type topology schema.Topology

// world is a database and storage hosts in memory. Devices are on hosts of the
// addresses 10.0.0.<hostid>, write port 7500, read port 7510.
type world struct {
	topology

	mu      sync.Mutex
	rows    schema.TopologyRows
	away    bool // the database
	reads   int
	written [][]schema.Usage
	owner   string // of the lease
	until   time.Time
	changes chan struct{}

	devices map[protocol.DevID]*disk
	headers map[string]http.Header                 // by address, or by address and port
	gone    map[string]func(context.Context) error // by address: what any request gets
	log     []string                               // "GET 10.0.0.1:7510/dev1/usage"
	running int
	most    int // requests at once

	told     map[string][]protocol.PeersOrder // by address
	suspects map[string][]protocol.FIDOn      // by address
	queued   []protocol.FID
	mute     bool // orders about peers fail

	watch func(ctx context.Context, host string, group func(map[protocol.DevID]string)) error
}

// disk is a device of the world.
type disk struct {
	usage string
	files map[string]string
	get   error               // of the usage file
	hang  bool                // the usage file never comes
	put   error               // of test writes
	read  func(string) string // what is read back
	md5   error               // of a PUT with a wrong Content-MD5
}

const goodUsage = "available: 900\ndevice: /dev/sda1\ndisk: /var/mogdata/dev1\ntime: 1700000000\ntotal: 1024000\nuse: 1%\nused: 102400\n"

// newWorld has hosts of devices each, all of them well.
func newWorld(hosts, devices int) *world {
	w := &world{
		devices: map[protocol.DevID]*disk{}, headers: map[string]http.Header{},
		gone: map[string]func(context.Context) error{}, changes: make(chan struct{}, 1),
	}
	w.watch = func(ctx context.Context, _ string, _ func(map[protocol.DevID]string)) error {
		<-ctx.Done()
		return ctx.Err()
	}
	for h := range hosts {
		id := schema.HostID(h + 1)
		w.rows.Hosts = append(w.rows.Hosts, schema.Host{
			ID: id, Name: fmt.Sprint("h", id), Status: schema.HostAlive, IP: address(id), Port: 7500, GetPort: 7510,
		})
		for d := range devices {
			w.addDevice(protocol.DevID(h*devices+d+1), id)
		}
	}
	return w
}

func address(h schema.HostID) string { return fmt.Sprint("10.0.0.", h) }

func (w *world) addDevice(id protocol.DevID, h schema.HostID) {
	w.rows.Devices = append(w.rows.Devices, schema.Device{ID: id, HostID: h, Status: schema.DeviceAlive})
	w.devices[id] = &disk{
		usage: goodUsage, files: map[string]string{}, md5: &storage.StatusError{Method: "PUT", Status: 400},
	}
}

// do changes the world.
func (w *world) do(f func()) { w.mu.Lock(); defer w.mu.Unlock(); f() }

func (w *world) Topology(context.Context) (schema.TopologyRows, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.reads++
	if w.away {
		return schema.TopologyRows{}, schema.ErrUnavailable
	}
	rows := w.rows
	rows.Devices, rows.Hosts, rows.Now = slices.Clone(rows.Devices), slices.Clone(rows.Hosts), time.Now()
	return rows, nil
}

func (w *world) SetDeviceUsage(_ context.Context, usage []schema.Usage) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.away {
		return schema.ErrUnavailable
	}
	w.written = append(w.written, usage)
	for _, u := range usage {
		for i := range w.rows.Devices {
			if d := &w.rows.Devices[i]; d.ID == u.DevID {
				d.TotalMB, d.UsedMB, d.AsOf = &u.TotalMB, &u.UsedMB, time.Now().Unix()
			}
		}
	}
	return nil
}

func (w *world) HoldLease(_ context.Context, name, owner string, ttl time.Duration) (bool, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.away {
		return false, schema.ErrUnavailable
	}
	if name != usageLease {
		return false, fmt.Errorf("lease %s", name)
	}
	if w.owner != owner && time.Now().Before(w.until) {
		return false, nil
	}
	w.owner, w.until = owner, time.Now().Add(ttl)
	return true, nil
}

func (w *world) QueueFsck(_ context.Context, fids []protocol.FID, _ time.Duration, _ string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.queued = append(w.queued, fids...)
	return nil
}

func (w *world) TellPeers(_ context.Context, hostport string, o protocol.PeersOrder) (int64, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.told == nil {
		w.told = map[string][]protocol.PeersOrder{}
	}
	w.told[hostport] = append(w.told[hostport], o)
	if w.mute {
		return 0, storage.ErrUnreachable
	}
	return o.Version, nil
}

func (w *world) Suspects(_ context.Context, hostport string, limit int) ([]protocol.FIDOn, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	all := w.suspects[hostport]
	w.suspects[hostport] = nil
	return all[:min(limit, len(all))], nil
}

func (w *world) Changes(ctx context.Context) <-chan struct{} {
	ch := make(chan struct{})
	go func() {
		defer close(ch)
		for {
			select {
			case <-w.changes:
				select {
				case ch <- struct{}{}:
				case <-ctx.Done():
					return
				}
			case <-ctx.Done():
				return
			}
		}
	}()
	return ch
}

// begin counts a request and finds its device.
func (w *world) begin(ctx context.Context, method, rawurl string) (*disk, string, http.Header, error) {
	u, err := url.Parse(rawurl)
	if err != nil {
		return nil, "", nil, err
	}
	w.mu.Lock()
	w.log = append(w.log, method+" "+u.Host+u.Path)
	w.running++
	w.most = max(w.most, w.running)
	gone := w.gone[u.Hostname()]
	if gone == nil {
		gone = w.gone[u.Host]
	}
	dev, rest, _ := protocol.CutDevice(strings.TrimPrefix(u.Path, "/"))
	d, h := w.devices[dev], w.headers[u.Host]
	if h == nil {
		h = w.headers[u.Hostname()]
	}
	w.mu.Unlock()
	<-time.After(time.Millisecond) // a little way
	if gone != nil {
		return nil, "", nil, gone(ctx)
	}
	if d == nil {
		return nil, "", nil, &storage.StatusError{Method: method, URL: rawurl, Status: 404}
	}
	return d, rest, h, nil
}

func (w *world) end() { w.mu.Lock(); w.running--; w.mu.Unlock() }

func (w *world) Get(ctx context.Context, rawurl string, _ int64) ([]byte, http.Header, error) {
	d, path, h, err := w.begin(ctx, "GET", rawurl)
	defer w.end()
	if err != nil {
		return nil, nil, err
	}
	w.mu.Lock()
	file, read, hang, get := d.files[path], d.read, d.hang, d.get
	if path == "usage" {
		file, read = d.usage, nil
	} else {
		hang, get = false, nil
	}
	w.mu.Unlock()
	switch {
	case hang:
		return nil, nil, silence(ctx)
	case get != nil:
		return nil, nil, get
	case read != nil:
		file = read(file)
	}
	return []byte(file), h, nil
}

func (w *world) Put(ctx context.Context, rawurl string, body []byte, h http.Header) error {
	d, path, _, err := w.begin(ctx, "PUT", rawurl)
	defer w.end()
	if err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case h.Get("Content-MD5") != "" && d.md5 != nil:
		return d.md5
	case d.put != nil:
		return d.put
	}
	d.files[path] = string(body)
	return nil
}

func (w *world) MakeDirs(context.Context, string) error { return fmt.Errorf("no MKCOL here") }

func (w *world) Watch(ctx context.Context, host string, _ int, group func(map[protocol.DevID]string)) error {
	w.mu.Lock()
	w.log = append(w.log, "watch "+host)
	watch := w.watch
	w.mu.Unlock()
	return watch(ctx, host, group)
}

// silence is a host of which nothing is heard.
func silence(ctx context.Context) error {
	<-ctx.Done()
	return fmt.Errorf("GET: %w: %w", storage.ErrUnreachable, ctx.Err())
}

// refusal is a host that is up without its daemon.
func refusal(context.Context) error {
	return fmt.Errorf("GET: %w: connection refused", storage.ErrUnreachable)
}

// requests counts those that contain what.
func (w *world) requests(what string) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := 0
	for _, r := range w.log {
		if strings.Contains(r, what) {
			n++
		}
	}
	return n
}

func (w *world) writes() int         { w.mu.Lock(); defer w.mu.Unlock(); return len(w.written) }
func (w *world) readings() int       { w.mu.Lock(); defer w.mu.Unlock(); return w.reads }
func (w *world) atOnce() int         { w.mu.Lock(); defer w.mu.Unlock(); return w.most }
func (w *world) leaseholder() string { w.mu.Lock(); defer w.mu.Unlock(); return w.owner }

// forget forgets the requests.
func (w *world) forget() { w.do(func() { w.log = nil }) }

// monitored starts a monitor of w. It ends with the test, or when stop is
// called.
func (w *world) monitored(t *testing.T, o Options) (m *Monitor, c *cluster.Cluster, stop func()) {
	c = cluster.New(w, cluster.Options{Log: o.Log})
	o.Cluster, o.Store, o.Storage = c, w, w
	o.Rand = rand.New(rand.NewPCG(1, 2))
	m = New(o)
	ctx, cancel := context.WithCancel(t.Context())
	var run sync.WaitGroup
	run.Go(func() {
		if err := m.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	stop = func() { cancel(); run.Wait() }
	t.Cleanup(stop)
	return m, c, stop
}

// observed is what c says of hosts and devices: "h1:reachable dev1:writeable".
func observed(c *cluster.Cluster) string {
	var b []string
	for _, h := range c.Snapshot().HostList {
		b = append(b, h.Name+":"+string(h.Observed))
	}
	for _, d := range c.Snapshot().DeviceList {
		b = append(b, fmt.Sprint("dev", d.ID, ":", d.Observed))
	}
	return strings.Join(b, " ")
}

func expect(t *testing.T, c *cluster.Cluster, want string) {
	t.Helper()
	if got := observed(c); got != want {
		t.Errorf("observed %s\n    want %s", got, want)
	}
}
