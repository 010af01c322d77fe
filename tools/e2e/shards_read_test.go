package e2e

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/mogile/mogile/protocol"
)

// contender is one of those that a benchmark has serve the same bytes, in turns.
type contender struct {
	name string
	addr string // host:port
	path string
}

func at(t testing.TB, name, url string) contender {
	t.Helper()
	addr, path, ok := strings.Cut(strings.TrimPrefix(url, "http://"), "/")
	if !ok {
		t.Fatalf("%s is at %q", name, url)
	}
	return contender{name, addr, "/" + path}
}

// reading is a client's connection to a contender, which costs no more than it must.
type reading struct {
	contender
	conn net.Conn
	buf  []byte
}

func (c contender) dial(t testing.TB) *reading {
	t.Helper()
	conn, err := net.Dial("tcp", c.addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() }) // all was read
	return &reading{c, conn, make([]byte, 256<<10)}
}

// get reads n bytes from off, and says when the first came, and the last.
func (r *reading) get(off, n int64) (first, last time.Duration, err error) {
	began := time.Now()
	if err := r.conn.SetDeadline(began.Add(time.Minute)); err != nil {
		return 0, 0, err
	}
	if _, err := fmt.Fprintf(r.conn, "GET %s HTTP/1.1\r\nHost: %s\r\nRange: bytes=%d-%d\r\n\r\n", r.path, r.addr, off, off+n-1); err != nil {
		return 0, 0, err
	}
	have := 0
	for end := -1; end < 0; end = bytes.Index(r.buf[:have], []byte("\r\n\r\n")) {
		more, err := r.conn.Read(r.buf[have:])
		if err != nil {
			return 0, 0, fmt.Errorf("%s, before the body: %w", r.name, err)
		}
		have += more
	}
	head, body, _ := bytes.Cut(r.buf[:have], []byte("\r\n\r\n"))
	if !bytes.Contains(head, fmt.Appendf(nil, "\r\nContent-Length: %d\r\n", n)) {
		return 0, 0, fmt.Errorf("%s: %s", r.name, head)
	}
	left := n - int64(len(body))
	if len(body) > 0 {
		first = time.Since(began)
	}
	for left > 0 {
		more, err := r.conn.Read(r.buf)
		if first == 0 {
			first = time.Since(began)
		}
		if left -= int64(more); err != nil {
			return 0, 0, fmt.Errorf("%s, %d bytes before the end: %w", r.name, left, err)
		}
	}
	return first, time.Since(began), nil
}

// startNginx runs nginx with a configuration of its servers.
func startNginx(t testing.TB, addr, servers string) {
	t.Helper()
	dir := t.TempDir()
	var scratch strings.Builder
	for _, kind := range []string{"client_body", "proxy", "fastcgi", "uwsgi", "scgi"} {
		fmt.Fprintf(&scratch, "%s_temp_path %s;\n", kind, filepath.Join(dir, kind))
	}
	conf := filepath.Join(dir, "nginx.conf")
	text := fmt.Sprintf("daemon off; worker_processes auto; pid %s; error_log stderr warn; events { worker_connections 256; }\nhttp { access_log off; sendfile on; tcp_nopush on; keepalive_requests 1000000;\n%s%s}\n",
		filepath.Join(dir, "pid"), scratch.String(), servers)
	if os.Getuid() == 0 {
		text = "user root; " + text // who made the folders
	}
	if err := os.WriteFile(conf, []byte(text), 0o666); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(nginxBinary(t), "-p", dir, "-c", conf, "-e", "stderr")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	var said bytes.Buffer
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(cmd.Process.Signal(syscall.SIGTERM), cmd.Wait()); err != nil {
			t.Errorf("nginx: %v: %s", err, said.String())
		}
	})
	within(t, 10*time.Second, "nginx listens", func() error {
		conn, err := net.DialTimeout("tcp", addr, time.Second)
		if err != nil {
			return err
		}
		return conn.Close()
	})
}

// proxied is nginx that serves a folder, through another.
func proxied(t testing.TB, dir string) string {
	t.Helper()
	port := freePorts(t, 2, "127.0.0.1")
	origin, front := fmt.Sprintf("127.0.0.1:%d", port), fmt.Sprintf("127.0.0.1:%d", port+1)
	startNginx(t, origin, fmt.Sprintf("server { listen %s; root %s; }\n", origin, dir))
	startNginx(t, front, fmt.Sprintf(`upstream origin { server %s; keepalive 64; }
proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffers 16 64k; proxy_buffer_size 64k; proxy_busy_buffers_size 256k; proxy_max_temp_file_size 0;
server { listen %s; location / { proxy_pass http://origin; } }
`, origin, front))
	return "http://" + front
}

// shardAt is the index of the shard that is a file.
func shardAt(t testing.TB, file string) int {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var head [13]byte
	if _, err := io.ReadFull(f, head[:]); err != nil {
		t.Fatal(err)
	}
	return int(head[12])
}

// benchSizes are those of the files that are read.
const (
	benchLarge = 256 << 20
	benchSmall = 4 << 20
)

// shardsRead are contenders for a file of benchLarge and one of benchSmall bytes.
type shardsRead struct{ large, small []contender }

// shardsBench is a cluster that flushes nothing with the same files as copies and in
// shards: whole, without m of the shards with their bytes, and with one of these
// bad; beside them nginx. There is no tracker any more.
func shardsBench(b *testing.B, hosts, devices, k, m int) shardsRead {
	b.Helper()
	c := StartCluster(b, Spec{Hosts: hosts, Devices: devices, Key: true, HostArgs: []string{"--durability=none"}})
	c.Do("create_class", "domain="+domain, "class=ec", "mindevcount="+strconv.Itoa(m+1), fmt.Sprintf("replpolicy=ErasureCode(%d,%d)", k, m))
	www := b.TempDir()
	front := proxied(b, www)
	var r shardsRead
	for _, size := range []int{benchLarge, benchSmall} {
		list := &r.large
		if size == benchSmall {
			list = &r.small
		}
		body := randomBytes(size)
		name := fmt.Sprint("file", size)
		if err := errors.Join(os.WriteFile(filepath.Join(www, name), body, 0o644), c.Put("raw/"+name, "single", body)); err != nil {
			b.Fatal(err)
		}
		paths, err := c.Paths("raw/" + name)
		if err != nil {
			b.Fatal(err)
		}
		*list = append(*list, at(b, "raw", paths[0]), at(b, "nginx", front+"/"+name))
		for _, kind := range []string{"healthy", "degraded", "corrupt"} {
			key := kind + "/" + name
			if err := c.Put(key, "ec", body); err != nil {
				b.Fatal(err)
			}
			devs := c.inShards(key, k+m)
			fid, _ := c.info(key)
			// What is not read over the network is a shard with bytes of the file.
			slices.SortFunc(devs, func(x, y protocol.DevID) int {
				return cmp.Compare(shardAt(b, c.shardOnDisk(x, fid)), shardAt(b, c.shardOnDisk(y, fid)))
			})
			*list = append(*list, at(b, kind, c.url(fid, devs[0])))
		}
	}
	for _, h := range c.Trackers {
		h.Kill() // it would repair what comes now
	}
	for _, list := range [][]contender{r.large, r.small} {
		for _, x := range list[3:] {
			var dev, fid uint64
			if _, err := fmt.Sscanf(x.path, "/dev%d/", &dev); err != nil {
				b.Fatal(x.path, err)
			}
			if _, err := fmt.Sscanf(filepath.Base(x.path), "%010d.fid", &fid); err != nil {
				b.Fatal(x.path, err)
			}
			c.damageShards(b, protocol.FID(fid), x.name, m)
		}
	}
	for _, x := range append(slices.Clone(r.large), r.small...) {
		got, err := fetch("http://" + x.addr + x.path)
		want, err2 := os.ReadFile(filepath.Join(www, fmt.Sprint("file", len(got))))
		if errors.Join(err, err2) != nil || !bytes.Equal(got, want) {
			b.Fatalf("%s: %d other bytes: %v, %v", x.name, len(got), err, err2)
		}
	}
	return r
}

func (c *Cluster) shardOnDisk(dev protocol.DevID, fid protocol.FID) string {
	return filepath.Join(c.hostOf(dev).Docroot, filepath.FromSlash(fid.ShardPath(dev)))
}

// damageShards takes the shards from the second away ("degraded": m of them), or
// spoils each block of the second.
func (c *Cluster) damageShards(t testing.TB, fid protocol.FID, how string, m int) {
	t.Helper()
	_, devs := c.lying(fid)
	for _, dev := range devs {
		file := c.shardOnDisk(dev, fid)
		i := shardAt(t, file)
		switch {
		case how == "degraded" && 1 <= i && i <= m:
			if err := os.Remove(file); err != nil {
				t.Fatal(err)
			}
		case how == "corrupt" && i == 1:
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			for at := 4096; at < len(data); at += 4096 { // a header has as many
				data[at] ^= 1
			}
			if err := os.WriteFile(file, data, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// median, and what a quarter is below and above.
func quartiles(all []float64) (low, middle, high float64) {
	s := slices.Sorted(slices.Values(all))
	n := len(s)
	return s[n/4], s[n/2], s[n-1-n/4]
}

// compare has contenders do the same in turns, and reports the median of what they
// did, and of its ratio to that of others in the same round.
func compare(b *testing.B, rounds int, list []contender, unit string, ratios [][2]string, do func(c contender) float64) {
	b.Helper()
	done := map[string][]float64{}
	for b.Loop() {
		for _, c := range list {
			do(c) // caches are warm, for all
		}
		for range rounds {
			for _, c := range list {
				done[c.name] = append(done[c.name], do(c))
			}
		}
	}
	for _, c := range list {
		low, middle, high := quartiles(done[c.name])
		b.ReportMetric(middle, c.name+"-"+unit)
		b.Logf("%-10s %8.1f %s (quartiles %.1f to %.1f)", c.name, middle, unit, low, high)
	}
	for _, r := range ratios {
		of := make([]float64, len(done[r[0]]))
		for i := range of {
			of[i] = done[r[0]][i] / done[r[1]][i]
		}
		low, middle, high := quartiles(of)
		b.ReportMetric(middle, r[0]+"/"+r[1])
		b.Logf("%s/%s %.2f (quartiles %.2f to %.2f)", r[0], r[1], middle, low, high)
	}
}

// clients has clients read at once, each n bytes from where offset says, count
// times, and says how long it took together.
func clients(b *testing.B, c contender, at, count int, n int64, offset func(client int) int64) time.Duration {
	b.Helper()
	conns := make([]*reading, at)
	for i := range conns {
		conns[i] = c.dial(b)
		defer conns[i].conn.Close() // all was read
	}
	began := time.Now()
	var all sync.WaitGroup
	for i, r := range conns {
		all.Go(func() {
			for range count {
				if _, _, err := r.get(offset(i), n); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	all.Wait()
	return time.Since(began)
}

// BenchmarkShardsRead reads files from storage daemons and nginx that are processes
// of their own, all on this machine: as a copy of one daemon (raw), from nginx
// through another, and in shards on one daemon for each device or four, of which the
// daemon that is asked has one.
func BenchmarkShardsRead(b *testing.B) {
	for _, s := range []struct{ hosts, devices, k, m int }{{9, 1, 6, 3}, {6, 1, 4, 2}, {12, 4, 32, 16}} {
		b.Run(fmt.Sprintf("%d+%d", s.k, s.m), func(b *testing.B) {
			r := shardsBench(b, s.hosts, s.devices, s.k, s.m)
			ratios := [][2]string{{"nginx", "raw"}, {"healthy", "nginx"}, {"healthy", "raw"}, {"degraded", "healthy"}, {"corrupt", "healthy"}}
			b.Run("256MiB", func(b *testing.B) {
				compare(b, 9, r.large, "MB/s", ratios, func(c contender) float64 {
					return benchLarge / 1e6 / clients(b, c, 1, 1, benchLarge, func(int) int64 { return 0 }).Seconds()
				})
			})
			b.Run("64MiB/clients=16", func(b *testing.B) {
				const n = 64 << 20
				compare(b, 5, r.large, "MB/s", ratios, func(c contender) float64 {
					return 16 * n / 1e6 / clients(b, c, 16, 1, n, func(i int) int64 { return int64(i%4) * n }).Seconds()
				})
			})
			inverse := [][2]string{{"nginx", "raw"}, {"healthy", "raw"}, {"degraded", "raw"}, {"corrupt", "raw"}}
			conns := map[string]*reading{}
			for _, c := range r.small {
				conns[c.name] = c.dial(b)
			}
			b.Run("4MiB", func(b *testing.B) {
				compare(b, 101, r.small, "ms", inverse, func(c contender) float64 {
					_, last, err := conns[c.name].get(0, benchSmall)
					if err != nil {
						b.Fatal(err)
					}
					return float64(last.Microseconds()) / 1e3
				})
			})
			b.Run("4MiB/first", func(b *testing.B) {
				compare(b, 101, r.small, "ms", inverse, func(c contender) float64 {
					first, _, err := conns[c.name].get(0, benchSmall)
					if err != nil {
						b.Fatal(err)
					}
					return float64(first.Microseconds()) / 1e3
				})
			})
			rng := rand.New(rand.NewPCG(1, 1))
			b.Run("4KiB", func(b *testing.B) {
				large := map[string]*reading{}
				for _, c := range r.large {
					large[c.name] = c.dial(b)
				}
				compare(b, 501, r.large, "us", inverse, func(c contender) float64 {
					_, last, err := large[c.name].get(rng.Int64N(benchLarge-4096), 4096)
					if err != nil {
						b.Fatal(err)
					}
					return float64(last.Nanoseconds()) / 1e3
				})
			})
			b.Run("4KiB/clients=16", func(b *testing.B) {
				compare(b, 5, r.large, "reads/s", inverse, func(c contender) float64 {
					const count = 200
					return 16 * count / clients(b, c, 16, count, 4096, func(int) int64 { return rand.Int64N(benchLarge - 4096) }).Seconds()
				})
			})
		})
	}
}
