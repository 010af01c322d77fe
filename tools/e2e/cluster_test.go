package e2e

import (
	"bytes"
	"cmp"
	"context"
	crand "crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/schema/postgres/pgtest"
)

// binary is the program under test, built once.
var binary string

func TestMain(m *testing.M) {
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "mogile-e2e-")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		binary = filepath.Join(dir, "mogile")
		args := []string{"build", "-o", binary}
		if raceEnabled {
			args = append(args, "-race")
			// A program built so waits a second before it ends.
			if err := os.Setenv("GORACE", strings.TrimSpace(os.Getenv("GORACE")+" atexit_sleep_ms=0")); err != nil {
				fmt.Fprintln(os.Stderr, err)
				return 1
			}
		}
		build := exec.Command("go", append(args, "../..")...)
		build.Stdout, build.Stderr = os.Stderr, os.Stderr
		if err := build.Run(); err != nil {
			fmt.Fprintln(os.Stderr, "go build:", err)
			return 1
		}
		if err := os.Symlink(binary, filepath.Join(dir, "mogtool")); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		return pgtest.Main(m)
	}())
}

// scale is the factor of MOGILE_TEST_SCALE, 1 unless it is set.
func scale(n int) int {
	if s, err := strconv.Atoi(os.Getenv("MOGILE_TEST_SCALE")); err == nil && s > 0 {
		return n * s
	}
	return n
}

// scenario marks a test that takes long: `make test` leaves it out, `make
// scenarios` and a run in large do not.
func scenario(t *testing.T) {
	t.Helper()
	if os.Getenv("MOGILE_TEST_SCENARIOS") == "" && scale(1) == 1 {
		t.Skip("runs with MOGILE_TEST_SCENARIOS=1, make scenarios")
	}
}

// newRand prints its seed, so that a failure can be run again.
func newRand(t testing.TB) *rand.Rand {
	seed := uint64(time.Now().UnixNano())
	if s, err := strconv.ParseUint(os.Getenv("MOGILE_TEST_SEED"), 10, 64); err == nil {
		seed = s
	}
	t.Logf("MOGILE_TEST_SEED=%d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

// within fails the test unless check comes true in time. Conditions are polled:
// they live in other processes.
func within(t testing.TB, d time.Duration, what string, check func() error) {
	t.Helper()
	deadline := time.Now().Add(d)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %s: %v", d, what, err)
		}
		<-tick.C
	}
}

// Process is a daemon that can be killed and started again.
type Process struct {
	t    testing.TB
	name string
	args []string
	env  []string
	log  string // file
	cmd  *exec.Cmd
	done chan struct{}
	exit error // valid once done is closed
}

// start runs the process. What it logs is shown if the test fails.
func start(t testing.TB, name string, args ...string) *Process {
	t.Helper()
	p := &Process{t: t, name: name, args: args, log: filepath.Join(t.TempDir(), "log")}
	t.Cleanup(func() {
		p.Kill()
		if t.Failed() {
			if b, err := os.ReadFile(p.log); err == nil {
				t.Logf("log of %s:\n%s", p.name, tail(b, 60))
			}
		}
		if b, err := os.ReadFile(p.log); err == nil && bytes.Contains(b, []byte("WARNING: DATA RACE")) {
			t.Errorf("%s has a data race:\n%s", p.name, b)
		}
	})
	p.Start()
	return p
}

func tail(b []byte, lines int) []byte {
	for i := len(b) - 1; i >= 0; i-- {
		if b[i] == '\n' {
			if lines--; lines < 0 {
				return b[i+1:]
			}
		}
	}
	return b
}

// Start runs the process (again).
func (p *Process) Start() {
	p.t.Helper()
	out, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o666)
	if err != nil {
		p.t.Fatal(err)
	}
	defer out.Close()
	p.cmd = exec.Command(binary, p.args...)
	p.cmd.Env = append(os.Environ(), p.env...)
	p.cmd.Stdout, p.cmd.Stderr = out, out
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := p.cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	p.done = make(chan struct{})
	go func(cmd *exec.Cmd, done chan struct{}) {
		p.exit = cmd.Wait()
		close(done)
	}(p.cmd, p.done)
}

// Kill ends the process as a power cut would end it, and waits.
func (p *Process) Kill() {
	_ = p.cmd.Process.Kill() // it may have ended
	<-p.done
}

// Signal sends a signal to the process.
func (p *Process) Signal(s syscall.Signal) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(s); err != nil {
		p.t.Fatalf("signal %s: %v", p.name, err)
	}
}

// Stop ends the process politely, and fails the test if that takes long or is
// not a success.
func (p *Process) Stop() {
	p.t.Helper()
	p.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
		if p.exit != nil {
			p.t.Errorf("%s: %v", p.name, p.exit)
		}
	case <-time.After(20 * time.Second):
		p.t.Errorf("%s did not stop within 20 s of SIGTERM", p.name)
	}
}

// Alive fails where the process has ended by itself.
func (p *Process) Alive() error {
	select {
	case <-p.done:
		return fmt.Errorf("%s ended: %v", p.name, p.exit)
	default:
		return nil
	}
}

// Spec declares a cluster.
type Spec struct {
	Engine   string // "sqlite" or "postgres"
	DSN      string // of a database made by the test; empty: one is made
	Trackers int    // 1 unless set; sqlite serves one only
	Hosts    int    // 3 unless set
	Devices  int    // of each host, 2 unless set
	// TrackerArgs are flags of the trackers beyond those that the cluster needs.
	TrackerArgs []string
	// Bare leaves the database empty: the test makes its domains, hosts and
	// devices, of which the daemons and folders are there.
	Bare bool
	// HostArgs are flags of the storage daemons beyond those that the cluster
	// needs.
	HostArgs []string
	// Sealed seals the database, for what MogileFS's trackers would not understand.
	Sealed bool
	// Key gives trackers and storage daemons a cluster key: copies go from
	// device to device, bad ones into the trash.
	Key bool
	// BeforeHosts is called for each host whose folders are there, before its
	// daemon starts.
	BeforeHosts func(h *Host)
	// GetListen has the storage daemons serve reads on a port of their own, two
	// above Port.
	GetListen bool
}

// Host is a storage host: one daemon on an address of its own.
type Host struct {
	*Process
	Name    string
	IP      string
	Docroot string
	Status  string // address of its status port
	Devices []protocol.DevID
}

// Cluster is daemons as separate processes.
type Cluster struct {
	t        testing.TB
	DSN      string
	Trackers []*Process
	Addrs    []string // of the trackers
	Status   []string // of the trackers' status ports
	Hosts    []*Host
	Port     int    // HTTP port of the storage hosts; the side channel is on the next
	KeyFile  string // of the cluster key, where it has one
	Client   *protocol.Client
}

// nextPort hands each cluster of this process ports of its own. They are below
// the range from which the system takes the ports of outgoing connections.
var nextPort atomic.Int32

// freePorts finds n consecutive ports that are free on each of the addresses.
func freePorts(t testing.TB, n int, addrs ...string) int {
	t.Helper()
	base := 10000 + os.Getpid()%1000*20
	for range 1000 {
		first := 10000 + (base+int(nextPort.Add(int32(n)))-n-10000)%22000
		free := true
		for p := first; p < first+n && free; p++ {
			for _, a := range addrs {
				l, err := net.Listen("tcp", net.JoinHostPort(a, strconv.Itoa(p)))
				if err != nil {
					free = false
					break
				}
				_ = l.Close() // it was only asked whether it can be bound
			}
		}
		if free {
			return first
		}
	}
	t.Fatal("no free ports")
	return 0
}

const domain = "test"

// StartCluster starts a cluster with a domain of three classes, as mogile dev
// has, and waits until every device takes files.
func StartCluster(t testing.TB, s Spec) *Cluster {
	t.Helper()
	s.Trackers, s.Hosts, s.Devices = cmp.Or(s.Trackers, 1), cmp.Or(s.Hosts, 3), cmp.Or(s.Devices, 2)
	if s.Engine == "" {
		s.Engine = "sqlite"
	}
	dir := t.TempDir()
	c := &Cluster{t: t, DSN: s.DSN}
	if c.DSN == "" {
		c.DSN = "sqlite:" + filepath.Join(dir, "namespace.db")
		if s.Engine == "postgres" {
			c.DSN = pgtest.DSN(t)
		}
	}
	migrate := []string{"migrate", "--dsn", c.DSN}
	if s.Sealed {
		migrate = append(migrate, "--seal", "--yes")
	}
	if out, err := exec.Command(binary, migrate...).CombinedOutput(); err != nil {
		t.Fatalf("migrate: %v\n%s", err, out)
	}
	var ips []string
	for i := range s.Hosts {
		ips = append(ips, fmt.Sprintf("127.0.0.%d", i+1))
	}
	c.Port = freePorts(t, 4, ips...)
	if s.Key {
		key := filepath.Join(dir, "cluster.key")
		if err := os.WriteFile(key, fmt.Appendf(nil, "%x\n", randomBytes(32)), 0o600); err != nil {
			t.Fatal(err)
		}
		c.KeyFile = key
		s.HostArgs = append(slices.Clone(s.HostArgs), "--cluster-key-file", key)
		s.TrackerArgs = append(slices.Clone(s.TrackerArgs), "--cluster-key-file", key)
	}
	dev := protocol.DevID(0)
	for i, ip := range ips {
		h := &Host{Name: fmt.Sprintf("host%d", i+1), IP: ip, Docroot: filepath.Join(dir, fmt.Sprintf("host%d", i+1))}
		for range s.Devices {
			dev++
			h.Devices = append(h.Devices, dev)
			if err := os.MkdirAll(filepath.Join(h.Docroot, "dev"+dev.String()), 0o777); err != nil {
				t.Fatal(err)
			}
		}
		args := []string{"storaged", "--docroot", h.Docroot,
			"--http-listen", net.JoinHostPort(ip, strconv.Itoa(c.Port)),
			"--mgmt-listen", net.JoinHostPort(ip, strconv.Itoa(c.Port+1)),
			"--status-listen", net.JoinHostPort(ip, strconv.Itoa(c.Port+3))}
		h.Status = net.JoinHostPort(ip, strconv.Itoa(c.Port+3))
		args = append(args, s.HostArgs...)
		if s.GetListen {
			args = append(args, "--http-get-listen", net.JoinHostPort(ip, strconv.Itoa(c.Port+2)))
		}
		if s.BeforeHosts != nil {
			s.BeforeHosts(h)
		}
		h.Process = start(t, h.Name, args...)
		c.Hosts = append(c.Hosts, h)
	}
	for i := range s.Trackers {
		p := freePorts(t, 2, "127.0.0.1")
		addr, status := fmt.Sprintf("127.0.0.1:%d", p), fmt.Sprintf("127.0.0.1:%d", p+1)
		args := append([]string{"tracker", "--dsn", c.DSN, "--listen", addr, "--status-listen", status,
			"--name", fmt.Sprintf("tracker%d", i+1), "--storage-mgmt-port", strconv.Itoa(c.Port + 1)}, s.TrackerArgs...)
		c.Trackers = append(c.Trackers, start(t, fmt.Sprintf("tracker%d", i+1), args...))
		c.Addrs, c.Status = append(c.Addrs, addr), append(c.Status, status)
	}
	client, err := protocol.NewClient(protocol.ClientOptions{Trackers: c.Addrs})
	if err != nil {
		t.Fatal(err)
	}
	c.Client = client
	t.Cleanup(func() { client.Close() })
	within(t, 30*time.Second, "tracker answers", func() error {
		_, err := c.Try("get_hosts")
		return err
	})
	if !s.Bare {
		c.setUp()
		c.WaitWriteable()
	}
	return c
}

// Do sends one command and fails the test unless it succeeds.
func (c *Cluster) Do(command string, fields ...string) protocol.Args {
	c.t.Helper()
	got, err := c.Try(command, fields...)
	if err != nil {
		c.t.Fatalf("%s %q: %v", command, fields, err)
	}
	return got
}

// Try sends one command, with fields given as "name=value".
func (c *Cluster) Try(command string, fields ...string) (protocol.Args, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	var args protocol.Args
	for _, f := range fields {
		name, value, _ := strings.Cut(f, "=")
		args.Add(name, value)
	}
	return c.Client.Do(ctx, command, args)
}

func (c *Cluster) setUp() {
	c.t.Helper()
	c.Do("create_domain", "domain="+domain)
	for class, n := range map[string]string{"default": "2", "single": "1", "triple": "3"} {
		c.Do("create_class", "domain="+domain, "class="+class, "mindevcount="+n)
	}
	for _, h := range c.Hosts {
		c.Do("create_host", "host="+h.Name, "ip="+h.IP, fmt.Sprintf("port=%d", c.Port), "status=alive")
		for _, d := range h.Devices {
			c.Do("create_device", "hostname="+h.Name, "devid="+d.String())
		}
	}
}

// WaitWriteable waits until every tracker sees every device take files.
func (c *Cluster) WaitWriteable() {
	c.t.Helper()
	// What a tracker saw before a daemon was killed says nothing of the new one.
	for _, h := range c.Hosts {
		within(c.t, 20*time.Second, h.Name+" serves", func() error {
			_, err := fetch(fmt.Sprintf("http://%s:%d/", h.IP, c.Port))
			return err
		})
	}
	for i := range c.Addrs {
		c.WaitWriteableOn(i)
	}
}

// WaitWriteableOn waits until one tracker sees every device take files.
func (c *Cluster) WaitWriteableOn(tracker int) {
	c.t.Helper()
	want := 0
	for _, h := range c.Hosts {
		want += len(h.Devices)
	}
	client, err := protocol.NewClient(protocol.ClientOptions{Trackers: c.Addrs[tracker : tracker+1]})
	if err != nil {
		c.t.Fatal(err)
	}
	defer client.Close()
	within(c.t, 40*time.Second, "all devices writeable", func() error {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		fields, err := client.Do(ctx, "get_devices", nil)
		if err != nil {
			return err
		}
		have := 0
		for n := range fields.Number("devices") {
			if fields.Get(fmt.Sprintf("dev%d_observed_state", n+1)) == "writeable" && fields.Get(fmt.Sprintf("dev%d_mb_total", n+1)) != "" {
				have++
			}
		}
		if have < want {
			return fmt.Errorf("%d of %d: %s", have, want, fields)
		}
		return nil
	})
}

// Put stores a file, as a client that trusts the protocol: what it returns nil
// for must never be lost.
func (c *Cluster) Put(key, class string, body []byte) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	_, err := c.Client.Create(ctx, domain, key, protocol.CreateOptions{Class: class, Size: int64(len(body))}, bytes.NewReader(body))
	return err
}

// Paths are the URLs of a key, unverified.
func (c *Cluster) Paths(key string) ([]string, error) {
	fields, err := c.Try("get_paths", "domain="+domain, "key="+key, "noverify=1", "pathcount=9")
	if err != nil {
		return nil, err
	}
	var paths []string
	for n := range fields.Number("paths") {
		paths = append(paths, fields.Get(fmt.Sprintf("path%d", n+1)))
	}
	return paths, nil
}

// httpClient never waits for ever.
var httpClient = &http.Client{Timeout: 30 * time.Second}

// fetch reads a URL whole.
func fetch(url string) ([]byte, error) {
	resp, err := httpClient.Get(url)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: %s", url, resp.Status)
	}
	return body, nil
}

// WaitPolicy waits until a key has exactly n copies, each on another host, and
// returns its paths.
func (c *Cluster) WaitPolicy(key string, n int) []string {
	c.t.Helper()
	var paths []string
	within(c.t, 3*time.Minute, fmt.Sprintf("%d copies of %s", n, key), func() error {
		var err error
		if paths, err = c.Paths(key); err != nil {
			return err
		}
		hosts := map[string]bool{}
		for _, p := range paths {
			hosts[strings.Split(p, "/")[2]] = true
		}
		if len(paths) != n || len(hosts) != n {
			return fmt.Errorf("%d copies on %d hosts: %q", len(paths), len(hosts), paths)
		}
		return nil
	})
	return paths
}

// CheckFile reads a key from each of its paths and compares.
func (c *Cluster) CheckFile(key string, paths []string, want []byte) {
	c.t.Helper()
	for _, p := range paths {
		got, err := fetch(p)
		if err != nil {
			c.t.Errorf("%s: %v", key, err)
		} else if !bytes.Equal(got, want) {
			c.t.Errorf("%s: %s has %d other bytes, want %d", key, p, len(got), len(want))
		}
	}
}

// FilesOnDisk lists the files of all devices that hold a client's bytes, or
// could: all but the usage file, the monitor's probes and the daemon's identity.
func (c *Cluster) FilesOnDisk() ([]string, error) {
	var files []string
	for _, h := range c.Hosts {
		err := filepath.WalkDir(h.Docroot, func(path string, d fs.DirEntry, err error) error {
			switch {
			case errors.Is(err, fs.ErrNotExist): // it was deleted while we looked
				return nil
			case err != nil:
				return err
			case d.IsDir() && d.Name() == "test-write":
				return fs.SkipDir
			case !d.IsDir() && d.Name() != "usage" && !(filepath.Base(filepath.Dir(path)) == ".mogile"):
				files = append(files, path)
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return files, nil
}

// WaitEmpty waits until no device holds a file.
func (c *Cluster) WaitEmpty(d time.Duration) {
	c.t.Helper()
	within(c.t, d, "devices are empty", func() error {
		files, err := c.FilesOnDisk()
		if err == nil && len(files) > 0 {
			err = fmt.Errorf("%d files, such as %s", len(files), files[0])
		}
		return err
	})
}

// Metric sums a metric over the trackers, which must all answer; labels, such as
// `code="x"`, select among its series.
func (c *Cluster) Metric(name string, labels ...string) float64 {
	c.t.Helper()
	return c.sum(c.Status, name, labels)
}

// HostMetric sums a metric over the storage daemons that run.
func (c *Cluster) HostMetric(name string, labels ...string) float64 {
	c.t.Helper()
	var addrs []string
	for _, h := range c.Hosts {
		if h.Alive() == nil {
			addrs = append(addrs, h.Status)
		}
	}
	return c.sum(addrs, name, labels)
}

func (c *Cluster) sum(addrs []string, name string, labels []string) float64 {
	c.t.Helper()
	var sum float64
	for _, addr := range addrs {
		body, err := fetch("http://" + addr + "/metrics")
		if err != nil {
			c.t.Fatalf("metrics: %v", err)
		}
		for line := range strings.Lines(string(body)) {
			series, value, ok := strings.Cut(strings.TrimSpace(line), " ")
			base, rest, _ := strings.Cut(series, "{")
			if !ok || base != name || slices.ContainsFunc(labels, func(l string) bool { return !strings.Contains(rest, l) }) {
				continue
			}
			v, err := strconv.ParseFloat(value, 64)
			if err != nil {
				c.t.Fatalf("metric %s: %v", line, err)
			}
			sum += v
		}
	}
	return sum
}

// randomBytes is n bytes by chance.
func randomBytes(n int) []byte {
	b := make([]byte, n)
	_, _ = crand.Read(b) // never fails
	return b
}

// eachParallel calls f for 0 to n-1 from up to workers goroutines.
func eachParallel(n, workers int, f func(i int)) {
	var next atomic.Int64
	var wg sync.WaitGroup
	for range min(n, workers) {
		wg.Go(func() {
			for i := int(next.Add(1)) - 1; i < n; i = int(next.Add(1)) - 1 {
				f(i)
			}
		})
	}
	wg.Wait()
}

// randomBody is up to largest bytes; sizes are spread over magnitudes, and
// empty files are among them.
func randomBody(rng *rand.Rand, largest int) []byte {
	size := 0
	if rng.IntN(10) > 0 {
		size = rng.IntN(1 << rng.IntN(25))
	}
	body := make([]byte, min(size, largest))
	r := rand.NewChaCha8([32]byte{byte(rng.Uint32()), byte(rng.Uint32()), byte(rng.Uint32()), byte(rng.Uint32())})
	_, _ = r.Read(body) // never fails
	return body
}
