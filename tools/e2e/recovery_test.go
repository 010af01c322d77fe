package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/schema"
	"github.com/mogile/mogile/schema/open"
)

// fleet is a cluster on PostgreSQL that is full of files, and what is known of
// them.
type fleet struct {
	*Cluster
	store schema.Store
	files []fleetFile
}

type fleetFile struct {
	key   string
	fid   protocol.FID
	class string
	size  int
	crc   uint32
}

// fleetCopies are the classes of a fleet, by the number of copies wanted.
var fleetCopies = map[string]int{"default": 2, "triple": 3, "summed": 2, "union": 3}

// openStore opens the cluster's database beside its trackers.
func (c *Cluster) openStore() schema.Store {
	c.t.Helper()
	store, err := open.Open(context.Background(), open.Options{DSN: c.DSN})
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() {
		if err := store.Close(); err != nil {
			c.t.Error(err)
		}
	})
	return store
}

// fleetBody is the content of file n, which nobody needs to keep.
func fleetBody(seed uint64, n int) []byte {
	rng := rand.New(rand.NewPCG(seed, uint64(n)))
	// Sizes from nothing to some MB, a tenth of a MB on the average.
	size := 0
	switch rng.IntN(20) {
	case 0:
	case 1:
		size = 1 << 20 >> rng.IntN(3)
	default:
		size = rng.IntN(1 << (8 + rng.IntN(12)))
	}
	if rng.IntN(1000) == 0 {
		size = 24 << 20
	}
	body := make([]byte, size)
	fill := rand.NewChaCha8([32]byte{byte(n), byte(n >> 8), byte(n >> 16), byte(seed)})
	_, _ = fill.Read(body) // never fails
	return body
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// startFleet starts a cluster, stores n files and waits until each has its
// copies.
func startFleet(t testing.TB, s Spec, n int) *fleet {
	t.Helper()
	s.Engine = "postgres"
	f := &fleet{Cluster: StartCluster(t, s)}
	f.store = f.openStore()
	f.Do("create_class", "domain="+domain, "class=summed", "mindevcount=2", "hashtype=MD5")
	f.Do("create_class", "domain="+domain, "class=union", "mindevcount=2", "replpolicy=Union(MultipleHosts(), MultipleDevices(3))")
	classes := []string{"default", "triple", "summed", "union"}
	seed := newRand(t).Uint64()
	f.files = make([]fleetFile, n)
	began := time.Now()
	var bytesPut int64
	var mu sync.Mutex
	eachParallel(n, 16, func(i int) {
		body := fleetBody(seed, i)
		file := fleetFile{
			key: fmt.Sprintf("fleet/%d", i), class: classes[i%len(classes)], size: len(body), crc: crc32.Checksum(body, castagnoli),
		}
		if err := f.Put(file.key, file.class, body); err != nil {
			t.Errorf("put %s: %v", file.key, err)
		}
		f.files[i] = file
		mu.Lock()
		defer mu.Unlock()
		bytesPut += int64(len(body))
	})
	if t.Failed() {
		t.FailNow()
	}
	put := time.Since(began)
	f.waitIdle(10 * time.Minute)
	t.Logf("%d files, %d MB, stored in %.1f s and at their policy %.1f s later", n, bytesPut>>20, put.Seconds(), (time.Since(began) - put).Seconds())
	for i := range f.files {
		f.files[i].fid = f.fidOf(f.files[i].key)
	}
	return f
}

func (c *Cluster) fidOf(key string) protocol.FID {
	c.t.Helper()
	return protocol.FID(c.Do("file_info", "domain="+domain, "key="+key).Number("fid"))
}

// waitIdle waits until nothing is queued for replication.
func (f *fleet) waitIdle(d time.Duration) {
	f.t.Helper()
	within(f.t, d, "nothing is queued for replication", func() error {
		if n := f.count("SELECT count(*) FROM file_to_replicate"); n > 0 {
			return fmt.Errorf("%d rows", n)
		}
		return nil
	})
}

// locations are the devices of every file.
func (f *fleet) locations() map[protocol.FID][]protocol.DevID {
	f.t.Helper()
	fids := make([]protocol.FID, len(f.files))
	for i := range f.files {
		fids[i] = f.files[i].fid
	}
	all := map[protocol.FID][]protocol.DevID{}
	for part := range slices.Chunk(fids, 1000) {
		got, err := f.store.LocationsOf(context.Background(), part)
		if err != nil {
			f.t.Fatal(err)
		}
		for fid, devs := range got {
			all[fid] = devs
		}
	}
	return all
}

// hostOf is the host of a device.
func (c *Cluster) hostOf(dev protocol.DevID) *Host {
	for _, h := range c.Hosts {
		if slices.Contains(h.Devices, dev) {
			return h
		}
	}
	c.t.Fatalf("no host has dev%d", dev)
	return nil
}

// url is where a copy is read.
func (c *Cluster) url(fid protocol.FID, dev protocol.DevID) string {
	return "http://" + net.JoinHostPort(c.hostOf(dev).IP, strconv.Itoa(c.Port)) + "/" + fid.Path(dev)
}

// check reads every copy that the database knows and compares it; each file
// has as many as its class wants, on distinct hosts where the policy says so,
// and none on the devices that were lost.
func (f *fleet) check(lost ...protocol.DevID) {
	f.t.Helper()
	where := f.locations()
	var mu sync.Mutex
	wrong := 0
	complain := func(format string, args ...any) {
		mu.Lock()
		defer mu.Unlock()
		if wrong++; wrong <= 10 {
			f.t.Errorf(format, args...)
		}
	}
	eachParallel(len(f.files), 16, func(i int) {
		file := f.files[i]
		devs := where[file.fid]
		hosts := map[*Host]bool{}
		for _, dev := range devs {
			if slices.Contains(lost, dev) {
				complain("%s is on the lost dev%d", file.key, dev)
				continue
			}
			hosts[f.hostOf(dev)] = true
			body, err := fetch(f.url(file.fid, dev))
			if err != nil || len(body) != file.size || crc32.Checksum(body, castagnoli) != file.crc {
				complain("%s on dev%d: %d bytes of %d, %v", file.key, dev, len(body), file.size, err)
			}
		}
		want := fleetCopies[file.class]
		if len(devs) != want || len(hosts) != want && (file.class != "union" || len(hosts) < 2) {
			complain("%s of class %s is on %v", file.key, file.class, devs)
		}
	})
	if wrong > 0 {
		f.t.Errorf("%d faults", wrong)
	}
}

// crossed is how many bytes of content went from one process to another.
func (f *fleet) crossed() float64 {
	return f.HostMetric("mogile_storaged_sent_bytes_total") + f.HostMetric("mogile_storaged_received_bytes_total")
}

// TestRecovery loses a host for good, marks its devices dead, and waits until
// every file has its copies elsewhere. They go from device to device: each byte
// crosses the network once. 20,000 files of 2 GiB with MOGILE_TEST_SCALE=40.
func TestRecovery(t *testing.T) {
	scenario(t)
	t.Parallel()
	f := startFleet(t, Spec{Hosts: 5, Devices: 2, Trackers: 2, Key: true}, scale(500))
	f.check()

	victim := f.Hosts[4]
	lost := 0
	var lostBytes int64
	where := f.locations()
	for _, file := range f.files {
		for _, dev := range where[file.fid] {
			if slices.Contains(victim.Devices, dev) {
				lost++
				lostBytes += int64(file.size)
			}
		}
	}
	victim.Kill()
	copiedBefore, crossedBefore := f.Metric("mogile_replicate_copied_bytes_total"), f.crossed()
	copiesBefore := f.Metric("mogile_replicate_copies_total", `result="ok"`)
	began := time.Now()
	f.Do("update_host", "host="+victim.Name, "status=down")
	for _, dev := range victim.Devices {
		f.Do("set_state", "host="+victim.Name, "device="+dev.String(), "state=dead")
	}
	within(t, 10*time.Minute, "the dead devices are empty", func() error {
		left, err := f.store.CountOn(context.Background(), victim.Devices)
		for dev, n := range left {
			if n > 0 {
				err = errors.Join(err, fmt.Errorf("%d files on dev%d", n, dev))
			}
		}
		return err
	})
	reaped := time.Since(began)
	f.waitIdle(10 * time.Minute)
	took := time.Since(began)
	copied := f.Metric("mogile_replicate_copied_bytes_total") - copiedBefore
	copies := f.Metric("mogile_replicate_copies_total", `result="ok"`) - copiesBefore
	crossed := f.crossed() - crossedBefore
	work := (took - 16*time.Second).Seconds() // the reaper leaves devices alone before
	t.Logf("%d copies of %d MB lost; devices empty after %.1f s, every file at its policy after %.1f s: %.0f files/s, %.1f MB/s without the 16 s before; %.3f bytes crossed the network per byte copied",
		lost, lostBytes>>20, reaped.Seconds(), took.Seconds(), copies/work, copied/work/1e6, crossed/copied)
	if int(copies) != lost || int64(copied) != lostBytes {
		t.Errorf("%.0f copies of %.0f bytes were made; %d of %d bytes were lost", copies, copied, lost, lostBytes)
	}
	// Beside the content there are the heads of a request and of an answer for
	// each copy, and the monitor's probes.
	if crossed > copied+float64(lost)*500+1<<20 {
		t.Errorf("%.0f bytes crossed the network for %.0f copied", crossed, copied)
	}
	f.check(victim.Devices...)

	// The host comes back, with what it had. Nothing of it counts again.
	victim.Start()
	f.Do("update_host", "host="+victim.Name, "status=alive")
	for _, dev := range victim.Devices {
		f.Do("set_state", "host="+victim.Name, "device="+dev.String(), "state=down")
		f.Do("set_state", "host="+victim.Name, "device="+dev.String(), "state=alive")
	}
	f.WaitWriteable()
	f.check()
}

// damage spoils a copy in one of four ways.
func (f *fleet) damage(i int, file fleetFile, dev protocol.DevID) {
	f.t.Helper()
	path := f.onDisk(dev, file.fid)
	body, err := os.ReadFile(path)
	if err != nil {
		f.t.Fatal(err)
	}
	was := bytes.Clone(body)
	switch i % 4 {
	case 0: // a flipped bit
		body[i%len(body)] ^= 1 << (i % 8)
	case 1: // other content of the same length
		for j := range body {
			body[j] = byte(i + j*7)
		}
		if bytes.Equal(body, was) {
			body[0]++
		}
	case 2: // cut short
		body = body[:len(body)/2]
	case 3:
		body = nil
	}
	out, err := os.OpenFile(path, os.O_WRONLY|os.O_TRUNC, 0)
	if err != nil {
		f.t.Fatal(err)
	}
	_, err = out.Write(body)
	if err := errors.Join(err, out.Close()); err != nil {
		f.t.Fatal(err)
	}
}

// events counts what fsck and scrub have found, by code.
func (f *fleet) events() map[string]int {
	f.t.Helper()
	found := map[string]int{}
	for after := int64(0); ; {
		events, err := f.store.FsckEvents(context.Background(), after, 1000)
		if err != nil {
			f.t.Fatal(err)
		}
		for _, e := range events {
			found[strings.TrimSpace(e.Code)]++
			after = e.LogID
		}
		if len(events) == 0 {
			return found
		}
	}
}
