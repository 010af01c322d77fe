package monitor

import (
	"bytes"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/tracker/cluster"
	"github.com/mogile/mogile/tracker/storage"
	"github.com/mogile/mogile/tracker/storage/storagetest"
)

// logged is a log that may be read while it is written.
type logged struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logged) Write(p []byte) (int, error) { l.mu.Lock(); defer l.mu.Unlock(); return l.b.Write(p) }
func (l *logged) String() string              { l.mu.Lock(); defer l.mu.Unlock(); return l.b.String() }

// fleet is two storage daemons over TCP, each with two devices, and a monitor
// that looks at them very often.
type fleet struct {
	odd, well *storagetest.Daemon // dev1 and dev2, dev3 and dev4
	w         *world
	m         *Monitor
	c         *cluster.Cluster
	log       logged
}

const patience = time.Second

// newFleet starts a monitor of two hosts; each of prepare is called before it.
func newFleet(t *testing.T, patience time.Duration, odd, well storagetest.Make, prepare ...func(*fleet)) *fleet {
	f := &fleet{
		odd:  storagetest.Start(t, odd, storagetest.Options{Devices: []protocol.DevID{1, 2}}),
		well: storagetest.Start(t, well, storagetest.Options{IP: "127.0.0.2", Devices: []protocol.DevID{3, 4}}),
		w:    newWorld(2, 2),
	}
	mgmt := f.odd.SidePort
	if mgmt == 0 {
		mgmt = -1
	}
	for i, d := range []*storagetest.Daemon{f.odd, f.well} {
		f.w.rows.Hosts[i].IP, f.w.rows.Hosts[i].Port, f.w.rows.Hosts[i].GetPort = d.IP, d.Port, d.Port
	}
	for _, p := range prepare {
		p(f)
	}
	client := storage.New(storage.Options{NodeTimeout: patience, ConnTimeout: patience, MgmtPort: mgmt})
	log := zerolog.New(&f.log).Level(zerolog.InfoLevel)
	f.c = cluster.New(f.w, cluster.Options{Log: log})
	f.m = New(Options{
		Cluster: f.c, Store: f.w, Storage: client, Log: log,
		ConnTimeout: patience, RoundInterval: 50 * time.Millisecond, TestWriteInterval: 50 * time.Millisecond,
	})
	var run sync.WaitGroup
	run.Go(func() {
		if err := f.m.Run(t.Context()); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() { run.Wait(); client.Close() })
	return f
}

// until waits for a round after which is holds.
func (f *fleet) until(t *testing.T, what string, is func(s *cluster.Snapshot) bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; {
		if err := f.m.NextRound(t.Context()); err != nil {
			t.Fatal(err)
		}
		if is(f.c.Snapshot()) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("never: %s: %s\n%s", what, observed(f.c), f.log.String())
		}
	}
}

func takes(devs ...protocol.DevID) func(*cluster.Snapshot) bool {
	return func(s *cluster.Snapshot) bool {
		for _, d := range devs {
			if !s.Device(d).TakesFiles(100) {
				return false
			}
		}
		return true
	}
}

// TestMisbehavingHost: a daemon that does anything wrong that can be noticed
// gets no files, says so in the log, keeps nobody else from getting theirs, and
// is trusted again as soon as it behaves.
func TestMisbehavingHost(t *testing.T) {
	t.Parallel()
	fine := map[string]bool{
		"closes kept connections before the answer": true, "closes after the answer without saying so": true,
		"closes after every third answer": true, "no Content-Length": true, "chunked": true,
		"continues, then answers": true, "a body behind every HEAD": true,
	}
	unknowable := map[string]bool{ // what it did before is what is known
		"no Content-Length and cut": true, // a usage file that makes no sense
		"chunked and cut":           true,
		"answers twice":             true,
		"stops reading in a body":   true, // of some bytes
		"body dribbles":             true, // some of it may come in time
	}
	makes := []storagetest.Make{storagetest.Mogstored(), storagetest.Nginx(), storagetest.Cmogstored(), storagetest.Lighttpd()}
	for i, trick := range storagetest.Tricks(patience / 8) {
		t.Run(trick.Name, func(t *testing.T) {
			t.Parallel()
			f := newFleet(t, patience, makes[i%len(makes)], makes[(i+1)%len(makes)])
			f.until(t, "all take files", takes(1, 2, 3, 4))
			f.odd.Play(trick.Play)
			switch {
			case fine[trick.Name]:
				for range 3 {
					f.until(t, "all take files", takes(1, 2, 3, 4))
				}
			case unknowable[trick.Name]:
				for range 3 {
					f.until(t, "the others take files", takes(3, 4))
				}
			default:
				f.until(t, "only the others take files", func(s *cluster.Snapshot) bool {
					return takes(3, 4)(s) && !takes(1)(s) && !takes(2)(s)
				})
				log := f.log.String()
				if !strings.Contains(log, `"host":"h1"`) || !strings.Contains(log, `"error":`) {
					t.Errorf("log:\n%s", log)
				}
			}
			f.odd.Play(nil)
			f.until(t, "all take files again", takes(1, 2, 3, 4))
		})
	}
}

// TestWrongUsageFiles: a device whose usage file makes no sense stays what it
// was, is named in the log once, and no other device is affected.
func TestWrongUsageFiles(t *testing.T) {
	t.Parallel()
	good := storagetest.Usage(1, 100_000, 10_000)
	for name, v := range map[string]struct {
		file string
		gone bool // the device is given up
	}{
		"empty":             {file: ""},
		"no used":           {file: "total: 4096000\navailable: 5\n"},
		"no total":          {file: "used: 4096\n"},
		"used is zero":      {file: "total: 4096000\nused: 0\n"},
		"total is zero":     {file: "total: 0\nused: 4096\n"},
		"negative":          {file: "total: 4096000\nused: -7\n"},
		"fractions":         {file: "total: 4096000.5\nused: 70.5\n"},
		"huge":              {file: "total: 99999999999999999999999\nused: 1\n"},
		"binary":            {file: string(bytes.Repeat([]byte{0, 0xff, 0x0a, ':'}, 500))},
		"a web page":        {file: "<html><body>It works!</body></html>"},
		"a directory":       {file: "Directory listing disabled"},
		"one long line":     {file: "used: " + strings.Repeat("1", 60_000)},
		"10 MB":             {file: good + strings.Repeat("padding: x\n", 1<<20), gone: true},
		"half a usage file": {file: good[:len(good)/2]},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			// Nothing here is slow but a machine with much to do.
			f := newFleet(t, 10*patience, storagetest.Mogstored(), storagetest.Nginx())
			f.until(t, "all take files", takes(1, 2, 3, 4))
			f.odd.Put("/dev1/usage", []byte(v.file))
			f.until(t, "a word in the log", func(*cluster.Snapshot) bool { return strings.Contains(f.log.String(), `"devid":1`) })
			for range 3 {
				f.until(t, "the others take files", takes(2, 3, 4))
				if got := f.c.Snapshot().Device(1).TakesFiles(100); got == v.gone {
					t.Errorf("dev1 takes files: %v", got)
				}
			}
			if n := strings.Count(f.log.String(), "usage file without"); n > 1 || n < 1 && !v.gone {
				t.Errorf("%d lines:\n%s", n, f.log.String())
			}
			f.odd.Put("/dev1/usage", []byte(good))
			f.until(t, "all take files again", takes(1, 2, 3, 4))
		})
	}
}

// TestFullOnPurpose: a device that says that it is 99 % full gets no files, and
// is read from.
func TestFullOnPurpose(t *testing.T) {
	t.Parallel()
	f := newFleet(t, patience, storagetest.Nginx(), storagetest.Nginx())
	f.odd.Put("/dev1/usage", []byte("available: 1\ndevice: s3\ndisk: s3\ntime: 1\ntotal: 100\nuse: 99%\nused: 99\n"))
	f.until(t, "the others take files", takes(2, 3, 4))
	f.until(t, "the usage is known", func(s *cluster.Snapshot) bool { return s.Device(1).TotalMB != nil })
	if d := f.c.Snapshot().Device(1); d.TakesFiles(100) || !d.Readable() {
		t.Errorf("takes files %v, is readable %v", d.TakesFiles(100), d.Readable())
	}
}

// TestMixedFleetIsProbed: of every make it is found out whether it refuses a
// wrong Content-MD5, and how busy its disks are where it says so.
func TestMixedFleetIsProbed(t *testing.T) {
	t.Parallel()
	for _, m := range storagetest.Makes() {
		t.Run(m.Name, func(t *testing.T) {
			t.Parallel()
			f := newFleet(t, patience, m, m)
			f.until(t, "all take files", takes(1, 2, 3, 4))
			f.until(t, "all is known", func(s *cluster.Snapshot) bool {
				d := s.Device(1)
				return d.RejectBadMD5 != nil && *d.RejectBadMD5 == m.ChecksMD5 && (!m.Side || d.Utilization == "0.50")
			})
			mkcols := 0
			for _, r := range f.odd.Requests() {
				if strings.HasPrefix(r, "MKCOL") {
					mkcols++
				}
			}
			if want := map[bool]int{true: 2, false: 1}[m.MKCOL]; mkcols > 2 || mkcols < want {
				t.Errorf("%d MKCOLs", mkcols) // one for each device, or one to hear that it needs none
			}
		})
	}
}

// TestWrongStreams: a stream of utilisation that is wrong costs nothing but the
// utilisation.
func TestWrongStreams(t *testing.T) {
	t.Parallel()
	for name, v := range map[string]struct {
		stream string
		want   string // utilisation of dev1
	}{
		"unknown devices":  {"1\t0.25\n77\t9.00\n3\t4.00\n.\n", "0.25"}, // dev3 is another host's
		"a dash":           {"1\t-\n.\n", ""},
		"garbage lines":    {"1 2 3\n\x00\nutil\t7\n-1\t5\n1\t0.25\n.\n", "0.25"},
		"never a dot":      {strings.Repeat("1\t0.25\n", 1000), ""},
		"a huge line":      {strings.Repeat("1", 1<<20) + "\t0.25\n.\n", ""},
		"a huge value":     {"1\t" + strings.Repeat("9", 1000) + "\n.\n", ""},
		"ERR":              {"ERR iostat unavailable\n", ""},
		"silent and gone":  {"", ""},
		"a group, and ERR": {"1\t0.25\n.\nERR iostat unavailable\n", "-"},
		"too many devices": {manyDevices(), ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			odd := storagetest.Mogstored()
			f := newFleet(t, patience, odd, storagetest.Cmogstored(), func(f *fleet) { f.odd.Stream(v.stream) })
			f.until(t, "all take files", takes(1, 2, 3, 4))
			before := f.odd.Accepted()
			if v.want != "" {
				f.until(t, "utilisation", func(s *cluster.Snapshot) bool {
					return strings.Contains(v.want+" 0.25", s.Device(1).Utilization) && s.Device(1).Utilization != ""
				})
			}
			for range 5 {
				f.until(t, "all take files", takes(1, 2, 3, 4))
			}
			s := f.c.Snapshot()
			if u := s.Device(1).Utilization; u != v.want && u != "-" && v.want != "-" {
				t.Errorf("utilisation %q, want %q", u, v.want)
			}
			if u := s.Device(3).Utilization; u == "4.00" {
				t.Error("one host told the utilisation of another's device")
			}
			if n := f.odd.Accepted() - before; n > 50 {
				t.Errorf("%d connections", n)
			}
		})
	}
}

func manyDevices() string {
	var b strings.Builder
	for i := range 1 << 16 {
		fmt.Fprintf(&b, "%d\t1\n", i+1000)
	}
	return b.String() + ".\n"
}
