package e2e

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Peers that send garbage, and peers that never read, cost the others little:
// with as many of them as of clients, the clients' latency stays near what it is
// without, nobody is refused, and the daemons' memory is bounded. At scale 10 it
// is 2,000 connections, and the 99th percentile at most doubles.
func TestHostilePeers(t *testing.T) {
	conns, measureFor, requests := 80, 2*time.Second, 300
	if scale(1) >= 10 {
		conns, measureFor, requests = 2000, 5*time.Second, 2000
	}
	c := StartCluster(t, Spec{Hosts: 1, Devices: 1})
	var keys [100]string
	for i := range keys {
		keys[i] = fmt.Sprintf("hostile/%d", i)
		if err := c.Put(keys[i], "single", bytes.Repeat([]byte{'x'}, 4096)); err != nil {
			t.Fatal(err)
		}
	}
	large := bytes.Repeat([]byte{'y'}, 32<<20)
	if err := c.Put("large", "single", large); err != nil {
		t.Fatal(err)
	}
	largePath := pathOf(c.WaitPolicy("large", 1)[0])
	smallPath := pathOf(c.WaitPolicy(keys[0], 1)[0])

	for _, target := range []struct {
		name    string
		addr    string
		process *Process
		garbage func(net.Conn, *rand.Rand) error // until the connection ends
		mute    string                           // what those send who do not read
		muted   func([]net.Conn) float64         // grows while they are answered
		polite  func(i int) string
		answer  func(r *bufio.Reader) error
	}{
		{
			name: "tracker", addr: c.Addrs[0], process: c.Trackers[0],
			garbage: garbageLines,
			mute:    strings.Repeat("list_keys domain="+domain+"&prefix=hostile\r\n", requests),
			muted:   func([]net.Conn) float64 { return c.Metric("mogile_tracker_queries_total", `command="list_keys"`) },
			polite: func(i int) string {
				return "get_paths noverify=1&domain=" + domain + "&key=" + keys[i%len(keys)] + "\r\n"
			},
			answer: func(r *bufio.Reader) error {
				line, err := r.ReadString('\n')
				if err == nil && !strings.HasPrefix(line, "OK paths=1&") && !strings.HasPrefix(line, "OK path1=") {
					err = fmt.Errorf("answer %q", line)
				}
				return err
			},
		},
		{
			name: "storage daemon", addr: net.JoinHostPort(c.Hosts[0].IP, strconv.Itoa(c.Port)), process: c.Hosts[0].Process,
			garbage: garbageHTTP,
			mute:    strings.Repeat("GET "+largePath+" HTTP/1.1\r\nHost: x\r\n\r\n", 100),
			muted: func(conns []net.Conn) float64 {
				unread := 0
				for _, conn := range conns {
					unread += unreadBytes(t, conn)
				}
				return float64(unread)
			},
			polite: func(int) string { return "GET " + smallPath + " HTTP/1.1\r\nHost: x\r\n\r\n" },
			answer: func(r *bufio.Reader) error {
				line, err := r.ReadString('\n')
				if err == nil && !strings.HasPrefix(line, "HTTP/1.1 200") {
					err = fmt.Errorf("answer %q", line)
				}
				for err == nil && line != "\r\n" {
					line, err = r.ReadString('\n')
				}
				if err == nil {
					_, err = io.CopyN(io.Discard, r, 4096)
				}
				return err
			},
		},
	} {
		t.Run(target.name, func(t *testing.T) {
			polite := make([]net.Conn, conns/2)
			for i := range polite {
				polite[i] = dial(t, target.addr)
				if err := polite[i].SetDeadline(time.Now().Add(5 * time.Minute)); err != nil {
					t.Fatal(err)
				}
			}
			measure := func() (p50, p99 time.Duration) {
				var mu sync.Mutex
				var all []time.Duration
				var wg sync.WaitGroup
				stop := time.Now().Add(measureFor)
				for i, conn := range polite {
					wg.Go(func() {
						rng := rand.New(rand.NewPCG(1, uint64(i)))
						r := bufio.NewReader(conn)
						var took []time.Duration
						for time.Now().Before(stop) {
							<-time.After(time.Duration(rng.IntN(400)) * time.Millisecond)
							begin := time.Now()
							if _, err := io.WriteString(conn, target.polite(i)); err != nil {
								t.Errorf("client %d: %v", i, err)
								return
							}
							if err := target.answer(r); err != nil {
								t.Errorf("client %d: %v", i, err)
								return
							}
							took = append(took, time.Since(begin))
						}
						mu.Lock()
						defer mu.Unlock()
						all = append(all, took...)
					})
				}
				wg.Wait()
				if len(all) == 0 {
					t.Fatal("no client was answered")
				}
				slices.Sort(all)
				return all[len(all)/2], all[len(all)*99/100]
			}

			attempt := func() (ratio float64) {
				quiet50, quiet99 := measure()
				loud, mute := newCrowd(t), newCrowd(t)
				for i := range conns / 4 {
					loud.join(target.addr, func(conn net.Conn) error {
						return target.garbage(conn, rand.New(rand.NewPCG(2, uint64(i))))
					})
					mute.join(target.addr, func(conn net.Conn) error {
						_, err := io.WriteString(conn, target.mute) // blocks: nobody reads the answers
						if err == nil {
							<-mute.over
						}
						return err
					})
				}
				// Those who do not read are answered until their buffers are full.
				before, same := 0.0, 0
				within(t, 3*time.Minute, "the hostile peers are there, and the mute ones stuck", func() error {
					<-time.After(200 * time.Millisecond)
					answered := target.muted(mute.all())
					if same++; answered != before || answered == 0 {
						same = 0
					}
					before = answered
					if heard := loud.said.Load(); heard < int64(conns/4) || same < 5 {
						return fmt.Errorf("%d blocks of garbage, the mute ones are at %.0f", heard, answered)
					}
					return nil
				})
				loud50, loud99 := measure()
				memory := residentMiB(t, target.process)
				loud.leave()
				mute.leave()
				t.Logf("%d connections: p50 %v, p99 %v; with %d hostile ones (%d kB of garbage): p50 %v, p99 %v; memory %d MiB",
					len(polite), quiet50, quiet99, conns/2, loud.said.Load()*4, loud50, loud99, memory)
				if limit := 256; memory > limit && !raceEnabled {
					t.Errorf("the daemon uses %d MiB, more than %d", memory, limit)
				}
				return float64(loud99) / float64(max(quiet99, time.Millisecond))
			}

			// The machine has other things to do: one quiet moment out of five is
			// asked for. With few connections the figures say little.
			limit := 2.0
			if conns < 2000 {
				limit = 20
			}
			var ratios []float64
			for range 5 {
				ratio := attempt()
				ratios = append(ratios, ratio)
				if ratio <= limit || t.Failed() {
					return
				}
			}
			t.Errorf("hostile peers multiply the others' p99 by %.1f; at most %.0f is allowed", ratios, limit)
		})
	}
}

// crowd is peers that come back when they are thrown out.
type crowd struct {
	t    testing.TB
	wg   sync.WaitGroup
	over chan struct{}
	said atomic.Int64 // blocks of garbage

	mu    sync.Mutex
	conns map[net.Conn]bool
}

func newCrowd(t testing.TB) *crowd {
	return &crowd{t: t, over: make(chan struct{}), conns: map[net.Conn]bool{}}
}

func (c *crowd) join(addr string, behave func(net.Conn) error) {
	c.wg.Go(func() {
		for {
			conn, err := net.DialTimeout("tcp", addr, 10*time.Second)
			if err == nil {
				c.mu.Lock()
				c.conns[conn] = true
				c.mu.Unlock()
				_ = behave(saying{conn, &c.said}) // thrown out, as it should be
				conn.Close()
				c.mu.Lock()
				delete(c.conns, conn)
				c.mu.Unlock()
			}
			select {
			case <-c.over:
				return
			case <-time.After(time.Second):
			}
		}
	})
}

// all lists those who are connected.
func (c *crowd) all() []net.Conn {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Collect(maps.Keys(c.conns))
}

// unreadBytes is what waits to be read from a connection.
func unreadBytes(t testing.TB, conn net.Conn) (n int) {
	raw, err := conn.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	// A connection that has been closed holds nothing.
	_ = raw.Control(func(fd uintptr) { n, _ = unix.IoctlGetInt(int(fd), unix.SIOCINQ) })
	return n
}

// leave ends all of them.
func (c *crowd) leave() {
	close(c.over)
	done := make(chan struct{})
	go func() { c.wg.Wait(); close(done) }()
	within(c.t, 30*time.Second, "the hostile peers are gone", func() error {
		c.mu.Lock()
		defer c.mu.Unlock()
		for conn := range c.conns {
			conn.Close()
		}
		select {
		case <-done:
			return nil
		default:
			return fmt.Errorf("%d connections", len(c.conns))
		}
	})
}

// saying counts what is written.
type saying struct {
	net.Conn
	said *atomic.Int64
}

func (s saying) Write(p []byte) (int, error) {
	s.said.Add(1)
	return s.Conn.Write(p)
}

// garbageLines floods a tracker with bytes of all kinds, and reads what comes.
func garbageLines(conn net.Conn, rng *rand.Rand) error {
	go io.Copy(io.Discard, conn) // ends with the connection
	junk := make([]byte, 4096)
	for {
		for i := range junk {
			junk[i] = byte(rng.Uint32())
			if junk[i] == '!' {
				junk[i] = '?' // a lucky "!shutdown" is no garbage
			}
		}
		if _, err := conn.Write(junk); err != nil {
			return err
		}
		<-time.After(100 * time.Millisecond)
	}
}

// garbageHTTP sends what is no request, or half of one, and waits to be thrown
// out.
func garbageHTTP(conn net.Conn, rng *rand.Rand) error {
	junk := make([]byte, 4096)
	for i := range junk {
		junk[i] = byte(rng.Uint32())
	}
	if rng.IntN(2) == 0 {
		junk = append([]byte("PUT /dev1/0/000/000/0000000001.fid HTTP/1.1\r\nContent-Length: -"), junk...)
	}
	if _, err := conn.Write(junk); err != nil {
		return err
	}
	_, err := io.Copy(io.Discard, conn)
	return err
}

// residentMiB is the memory that a process holds.
func residentMiB(t testing.TB, p *Process) int { return statusMiB(t, p, "VmRSS:") }

// statusMiB is a size that the system knows of a process.
func statusMiB(t testing.TB, p *Process, field string) int {
	t.Helper()
	status, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(p.cmd.Process.Pid), "status"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, field); ok {
			kib, err := strconv.Atoi(strings.Fields(rest)[0])
			if err != nil {
				t.Fatal(err)
			}
			return kib >> 10
		}
	}
	t.Fatalf("no %s", field)
	return 0
}
