package replicate_test

import (
	"bytes"
	"context"
	"crypto/md5"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
	"go.uber.org/goleak"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/schema"
	"github.com/mogile/mogile/tracker/cluster"
	"github.com/mogile/mogile/tracker/replicate"
	"github.com/mogile/mogile/tracker/storage"
	"github.com/mogile/mogile/tracker/work"
	"github.com/mogile/mogile/tracker/work/worktest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// rig is a tracker's replication on devices and a namespace in memory.
type rig struct {
	t       *testing.T
	store   *worktest.Store
	disks   *worktest.Disks
	cluster *worktest.Cluster
	log     *syncBuffer
	notes   *syncBuffer
	metrics *prometheus.Registry
	options replicate.Options
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func newRig(t *testing.T, hosts, devices int) *rig {
	r := &rig{
		t: t, store: worktest.NewStore(), disks: worktest.NewDisks(), cluster: worktest.NewCluster(hosts, devices),
		log: new(syncBuffer), notes: new(syncBuffer),
	}
	r.options = replicate.Options{
		Store: r.store, Cluster: r.cluster, Storage: r.disks, Fids: work.NewFIDLocks(r.store), Jobs: 3, MinFreeMB: 100,
		Rand: rand.New(rand.NewPCG(1, 1)), Log: zerolog.New(r.log).Level(zerolog.InfoLevel),
		Notify: func(msg string) { fmt.Fprintln(r.notes, msg) },
	}
	return r
}

const content = "nine lives"

// put stores a file of a class with copies on devs, queued for replication.
func (r *rig) put(fid protocol.FID, class schema.ClassID, devs ...protocol.DevID) {
	for _, d := range devs {
		r.disks.Put(d, fid, content)
	}
	r.store.Put(schema.File{FID: fid, DMID: 1, ClassID: class, Key: fid.String(), Length: int64(len(content))}, devs...)
}

// start runs the worker until the returned function is called.
func (r *rig) start() (stop func()) {
	r.t.Helper()
	r.metrics = prometheus.NewRegistry()
	r.options.Metrics = r.metrics
	if r.options.Jobs == 1 && r.options.SmallFile == 0 {
		r.options.SmallFile = -1 // a test that wants one thing after the other
	}
	w := replicate.New(r.options)
	ctx, cancel := context.WithCancel(r.t.Context())
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }()
	return sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			r.t.Errorf("Run: %v", err)
		}
	})
}

// run runs the worker until everything due has been done.
func (r *rig) run() {
	r.t.Helper()
	defer r.start()()
	worktest.Eventually(r.t, "nothing due", func() bool { return r.due() == 0 })
}

// due is how many rows of the queue are due or leased.
func (r *rig) due() int {
	jobs := 0
	for fid := range protocol.FID(2000) {
		if row := r.row(fid); row != nil && row.FailCount == 0 {
			jobs++
		}
	}
	return jobs
}

func (r *rig) row(fid protocol.FID) *worktest.Row {
	return r.store.Row(worktest.Key{Queue: schema.QueueReplicate, FID: fid})
}

func (r *rig) pending(fid protocol.FID) []protocol.DevID {
	r.t.Helper()
	m, err := r.store.PendingDeletions(r.t.Context(), []protocol.FID{fid})
	if err != nil {
		r.t.Fatal(err)
	}
	return m[fid]
}

// count is the value of a counter, of the one label given where it has labels.
func (r *rig) count(name, label string) float64 {
	r.t.Helper()
	families, err := r.metrics.Gather()
	if err != nil {
		r.t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.GetMetric() {
			if labels := m.GetLabel(); len(labels) == 0 && label == "" || len(labels) == 1 && labels[0].GetValue() == label {
				return m.GetCounter().GetValue()
			}
		}
	}
	return 0
}

func (r *rig) hostsOf(devs []protocol.DevID) int {
	hosts := make(map[schema.HostID]bool)
	for _, d := range devs {
		hosts[r.cluster.Snapshot().Device(d).HostID] = true
	}
	return len(hosts)
}

// TestFilesReachTheirPolicy brings a thousand files of several classes to their
// policy with two trackers, and nothing is copied twice.
func TestFilesReachTheirPolicy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 3, 2)
		const files = 1000
		want := 0
		for fid := protocol.FID(1); fid <= files; fid++ {
			class := []schema.ClassID{0, 1, 3, 5}[fid%4]
			r.put(fid, class, protocol.DevID(fid%6+1))
			want += []int{1, 0, 2, 1}[fid%4]
		}
		other := *r
		other.options.Fids = work.NewFIDLocks(r.store)
		other.options.Rand = rand.New(rand.NewPCG(2, 2))
		stop := other.start()
		r.run()
		stop()
		for fid := protocol.FID(1); fid <= files; fid++ {
			n := []int{2, 1, 3, 2}[fid%4]
			devs := r.store.Locations(fid)
			if len(devs) != n || r.hostsOf(devs) != n || !slices.Equal(devs, r.disks.On(fid)) {
				t.Fatalf("fid %d is recorded on %v and lies on %v, want %d hosts", fid, devs, r.disks.On(fid), n)
			}
		}
		if copies, _ := r.disks.Counts(); copies != want {
			t.Errorf("%d copies made, want %d", copies, want)
		}
		if n := r.store.Rows(schema.QueueReplicate) + r.store.Rows(schema.QueueCopyDelete); n != 0 {
			t.Errorf("%d rows left in the queues", n)
		}
		if n := r.store.Locked(); n != 0 {
			t.Errorf("%d locks left", n)
		}
		if r.log.String() != "" || strings.Contains(r.notes.String(), "replicate(") {
			t.Errorf("a healthy run is not quiet:\n%s%s", r.log, r.notes)
		}
	})
}

func TestCounters(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 3, 1)
		r.put(1, 3, 1)       // two copies to make
		r.put(2, 1, 1, 2, 3) // two to drop
		r.put(3, 0, 1, 2)    // nothing to do
		r.run()
		for _, c := range []struct {
			name, label string
			want        float64
		}{
			{"mogile_replicate_copies_total", "ok", 2},
			{"mogile_replicate_copied_bytes_total", "streamed", 2 * float64(len(content))},
			{"mogile_replicate_drops_total", "", 2},
			{"mogile_replicate_outcomes_total", "replicated", 1},
			{"mogile_replicate_outcomes_total", "reduced", 1},
			{"mogile_replicate_outcomes_total", "lost_race", 1},
		} {
			if got := r.count(c.name, c.label); got != c.want {
				t.Errorf("%s{%s} is %v, want %v", c.name, c.label, got, c.want)
			}
		}
	})
}

func TestSourceHint(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 4, 1)
		var sources sync.Map
		r.disks.OnCopy = func(_ context.Context, from, _ protocol.DevID, fid protocol.FID) error {
			sources.Store(fid, from)
			return nil
		}
		for fid := protocol.FID(1); fid <= 20; fid++ {
			r.put(fid, 3, 1, 2)
			r.store.SetRow(worktest.Key{Queue: schema.QueueReplicate, FID: fid}, worktest.Row{From: 2})
		}
		r.put(21, 3, 1, 2)
		r.store.SetRow(worktest.Key{Queue: schema.QueueReplicate, FID: 21}, worktest.Row{From: 4}) // which has no copy
		r.run()
		for fid := protocol.FID(1); fid <= 20; fid++ {
			if from, _ := sources.Load(fid); from != protocol.DevID(2) {
				t.Errorf("fid %d was read from dev%v, not from the device that the row names", fid, from)
			}
		}
		if devs := r.store.Locations(21); len(devs) != 3 {
			t.Errorf("with a useless hint: %v", devs)
		}
	})
}

func TestSourceFailover(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 3, 1)
		r.put(1, 3, 1, 2)
		r.disks.Put(1, 1, "nine") // of the wrong length
		r.store.SetRow(worktest.Key{Queue: schema.QueueReplicate, FID: 1}, worktest.Row{From: 1})
		r.run()
		if devs := r.store.Locations(1); !slices.Equal(devs, []protocol.DevID{1, 2, 3}) {
			t.Errorf("locations %v", devs)
		}
		if note := "Failed copying fid 1 from devid 1 to devid 3 (error type: src_error)"; !strings.Contains(r.notes.String(), "[replicate(") || !strings.Contains(r.notes.String(), note) {
			t.Errorf("watchers were told %q", r.notes)
		}
		if len(r.pending(1)) != 0 || r.row(1) != nil {
			t.Errorf("pending %v, row %+v", r.pending(1), r.row(1))
		}
	})
}

func TestDestinationFailover(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 3, 1)
		var failed atomic.Uint32
		r.disks.OnCopy = func(_ context.Context, _, to protocol.DevID, fid protocol.FID) error {
			if failed.CompareAndSwap(0, uint32(to)) {
				r.disks.Put(to, fid, content) // it landed, and the answer was lost
				return &storage.CopyError{Side: storage.DestError, Landed: true, Err: errors.New("broken pipe")}
			}
			return nil
		}
		r.put(1, 0, 1)
		r.run()
		bad := protocol.DevID(failed.Load())
		devs := r.store.Locations(1)
		if len(devs) != 2 || slices.Contains(devs, bad) {
			t.Errorf("locations %v, dev%d failed", devs, bad)
		}
		if got := r.pending(1); !slices.Equal(got, []protocol.DevID{bad}) {
			t.Errorf("bytes on dev%d must go, pending are %v", bad, got)
		}
		if !strings.Contains(r.notes.String(), "(error type: dest_error)") {
			t.Errorf("watchers were told %q", r.notes)
		}
	})
}

func TestOutcomesThatWait(t *testing.T) {
	away := func(d *cluster.Device, h *cluster.Host) { d.Observed = cluster.DeviceUnreachable }
	for _, c := range []struct {
		name  string
		setup func(r *rig)
		delay time.Duration // of the first try
		note  string
	}{
		{"no source", func(r *rig) { r.put(1, 0) }, 0, "no_source: "},
		{"source down", func(r *rig) {
			r.put(1, 0, 1)
			r.cluster.Change(1, away)
		}, 15 * time.Second, "source_down: "},
		{"every copy on a dead device", func(r *rig) {
			r.put(1, 0, 1)
			r.cluster.Change(1, func(d *cluster.Device, _ *cluster.Host) { d.Status = schema.DeviceDead })
		}, 15 * time.Second, "source_down: "},
		{"device not known yet", func(r *rig) {
			r.put(1, 0, 1)
			r.cluster.Remove(1)
		}, 15 * time.Second, "source_down: "},
		{"every source fails", func(r *rig) {
			r.put(1, 0, 1)
			r.disks.Put(1, 1, "")
		}, 15 * time.Second, "source_down: "},
		{"no destination", func(r *rig) {
			r.put(1, 0, 1)
			r.cluster.Change(2, away)
			r.cluster.Change(3, away)
		}, 15 * time.Second, "policy_no_suggestions: replication policy ran out of suggestions for us replicating fid 1"},
		{"every destination fails", func(r *rig) {
			r.put(1, 0, 1)
			r.disks.OnCopy = func(context.Context, protocol.DevID, protocol.DevID, protocol.FID) error {
				return &storage.CopyError{Side: storage.DestError, Err: errors.New("no space")}
			}
		}, 15 * time.Second, "policy_no_suggestions: "},
		{"destinations wait for a deletion", func(r *rig) {
			r.put(1, 0, 1)
			for _, dev := range []protocol.DevID{2, 3} {
				r.store.SetRow(worktest.Key{Queue: schema.QueueCopyDelete, FID: 1, DevID: dev}, worktest.Row{})
			}
		}, 15 * time.Second, "policy_no_suggestions: "},
		{"surplus that cannot be read", func(r *rig) {
			r.put(1, 0, 1, 2, 3)
			r.cluster.Change(3, away)
		}, 15 * time.Second, "too_happy: fid 1 is on too many devices"},
		{"surplus while another copy is broken", func(r *rig) {
			r.put(1, 0, 1, 2, 3)
			for dev := protocol.DevID(1); dev <= 3; dev++ {
				r.disks.Put(dev, 1, content[:dev])
			}
		}, 15 * time.Second, "too_happy: fid 1 is on too many devices"},
		{"class not known", func(r *rig) { r.put(1, 9, 1) }, 15 * time.Second, "class 9 of domain 1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, 3, 1)
				c.setup(r)
				before := r.store.Locations(1)
				began := time.Now()
				r.run()
				row := r.row(1)
				if row == nil || row.FailCount != 1 {
					t.Fatalf("row %+v, want one failure", row)
				}
				delay := time.Unix(row.NextTry, 0).Sub(began)
				if c.delay == 0 && row.NextTry != schema.EndOfTime ||
					c.delay > 0 && (delay < c.delay*8/10-time.Second || delay > c.delay*12/10+2*time.Second) {
					t.Errorf("next try after %v", delay)
				}
				if !strings.Contains(r.notes.String(), c.note) {
					t.Errorf("watchers were told %q, want %q", r.notes, c.note)
				}
				if !slices.Equal(before, r.store.Locations(1)) {
					t.Errorf("locations went from %v to %v", before, r.store.Locations(1))
				}
			})
		})
	}
}

// TestBackoffGrows lets a file fail until there is a place for its second copy.
func TestBackoffGrows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 2, 1)
		r.put(1, 0, 1)
		r.cluster.Change(2, func(d *cluster.Device, _ *cluster.Host) { d.Observed = cluster.DeviceReadable })
		defer r.start()()
		for failures, wait := range []time.Duration{0, 15, 60, 300, 1800} {
			work.Pause(t.Context(), wait*time.Second*12/10+3*time.Second)
			if row := r.row(1); row == nil || row.FailCount != failures+1 {
				t.Fatalf("row %+v, want %d failures", row, failures+1)
			}
		}
		r.cluster.Change(2, func(d *cluster.Device, _ *cluster.Host) { d.Observed = cluster.DeviceWriteable })
		work.Pause(t.Context(), 2*time.Hour)
		if devs := r.store.Locations(1); !slices.Equal(devs, []protocol.DevID{1, 2}) || r.row(1) != nil {
			t.Errorf("locations %v, row %+v", devs, r.row(1))
		}
	})
}

func TestSurplusIsDropped(t *testing.T) {
	for _, c := range []struct {
		name string
		devs []protocol.DevID
		drop func(d *cluster.Device, h *cluster.Host) // done to dev3
		gone []protocol.DevID
	}{
		{"drain first", []protocol.DevID{1, 3, 5}, func(d *cluster.Device, _ *cluster.Host) { d.Status = schema.DeviceDrain }, []protocol.DevID{3}},
		{"fullest", []protocol.DevID{1, 3, 5}, func(d *cluster.Device, _ *cluster.Host) { used := int64(9000); d.UsedMB = &used }, []protocol.DevID{3}},
		{"same host", []protocol.DevID{1, 2, 3}, func(d *cluster.Device, _ *cluster.Host) { used := int64(9000); d.UsedMB = &used }, []protocol.DevID{1}},
		{"two", []protocol.DevID{1, 3, 4, 5}, func(*cluster.Device, *cluster.Host) {}, []protocol.DevID{1, 3}},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, 3, 2)
				r.cluster.Change(3, c.drop)
				r.put(1, 0, c.devs...)
				r.run()
				want := slices.DeleteFunc(slices.Clone(c.devs), func(d protocol.DevID) bool { return slices.Contains(c.gone, d) })
				if got := r.store.Locations(1); !slices.Equal(got, want) {
					t.Errorf("locations %v, want %v", got, want)
				}
				if got := r.pending(1); !slices.Equal(got, c.gone) {
					t.Errorf("bytes to go %v, want %v", got, c.gone)
				}
				if r.row(1) != nil {
					t.Errorf("row %+v is left", r.row(1))
				}
			})
		})
	}
}

// TestBrokenCopiesDoNotCount has three copies of which two are broken: the good
// one stays.
func TestBrokenCopiesDoNotCount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 3, 1)
		r.put(1, 1, 1, 2, 3) // one copy is wanted
		r.disks.Put(2, 1, "short")
		r.disks.Put(3, 1, "")
		for range 30 {
			r.store.SetRow(worktest.Key{Queue: schema.QueueReplicate, FID: 1}, worktest.Row{})
			r.run()
		}
		if devs := r.store.Locations(1); !slices.Contains(devs, 1) {
			t.Errorf("the only good copy was dropped, left are %v", devs)
		}
	})
}

// TestSurplusStaysBesideBrokenSpread has enough good copies on one host, and a
// broken one on the other: that one does not make up for the second host, so
// none of the good ones goes.
func TestSurplusStaysBesideBrokenSpread(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 2, 3)
		r.put(1, 0, 1, 2, 3, 4)
		r.disks.Put(4, 1, "short")
		r.run()
		if devs := r.store.Locations(1); !slices.Equal(devs, []protocol.DevID{1, 2, 3, 4}) {
			t.Errorf("left are %v", devs)
		}
		r.disks.Put(4, 1, content)
		r.store.SetRow(worktest.Key{Queue: schema.QueueReplicate, FID: 1}, worktest.Row{})
		r.run()
		if devs := r.store.Locations(1); len(devs) != 2 || !slices.Contains(devs, 4) {
			t.Errorf("with all intact, left are %v", devs)
		}
	})
}

func TestChecksums(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 3, 1)
		sum := md5.Sum([]byte(content))
		want := protocol.Checksum{Type: protocol.HashMD5, Sum: sum[:]}
		r.put(1, 5, 1) // a class with MD5: the first copy makes the row
		r.put(2, 0, 1) // none
		r.put(3, 3, 1, 2)
		if err := r.store.SetChecksum(t.Context(), 3, want); err != nil {
			t.Fatal(err)
		}
		r.disks.Put(2, 3, "nine liveS") // corrupt: right size, wrong content
		r.store.SetRow(worktest.Key{Queue: schema.QueueReplicate, FID: 3}, worktest.Row{From: 2})
		r.run()
		for fid, want := range map[protocol.FID]protocol.Checksum{1: want, 2: {}, 3: want} {
			if got, err := r.store.Checksum(t.Context(), fid); err != nil || !got.Equal(want) {
				t.Errorf("fid %d: checksum %v, want %v (%v)", fid, got, want, err)
			}
		}
		if devs := r.store.Locations(3); len(devs) != 3 || !strings.Contains(r.notes.String(), "fid 3 from devid 2") {
			t.Errorf("corrupt source: locations %v, watchers were told %q", devs, r.notes)
		}
	})
}

// TestAnnouncedCopyIsLeftAlone has another tracker's delete worker at work in the
// moment between the landing of a copy and its recording, with no lock in its
// way: the session that held it may just have gone with the database's server,
// and this tracker not know yet. Whatever is recorded must be there.
func TestAnnouncedCopyIsLeftAlone(t *testing.T) {
	for _, took := range []time.Duration{0, time.Second, 10 * time.Minute} {
		t.Run(took.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, 2, 1)
				r.disks.OnCopy = func(ctx context.Context, _, _ protocol.DevID, _ protocol.FID) error {
					work.Pause(ctx, took)
					return nil
				}
				r.store.Before = func(method string) error {
					if method != "AddLocation" {
						return nil
					}
					jobs, err := r.store.Claim(t.Context(), schema.QueueCopyDelete, 10, time.Minute)
					if err != nil {
						t.Error(err)
					}
					for _, j := range jobs {
						url := r.cluster.Snapshot().Device(j.DevID).WriteURL(j.FID, cluster.Viewer{})
						if err := r.disks.Delete(t.Context(), url); err != nil {
							t.Error(err)
						}
					}
					return nil
				}
				r.put(1, 0, 1)
				defer r.start()()
				work.Pause(t.Context(), took+10*time.Second)
				if devs, on := r.store.Locations(1), r.disks.On(1); len(devs) != 2 || !slices.Equal(devs, on) {
					t.Errorf("recorded on %v, lies on %v", devs, on)
				}
				if got := r.pending(1); len(got) != 0 {
					t.Errorf("to be deleted are %v", got)
				}
			})
		})
	}
}

// TestUnrecordedCopyGoesSoon has copies fail: what they may have left is due at
// once, for the device takes no other copy of the file before it is gone.
func TestUnrecordedCopyGoesSoon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 2, 1)
		r.disks.OnCopy = func(context.Context, protocol.DevID, protocol.DevID, protocol.FID) error {
			return &storage.CopyError{Side: storage.DestError, Err: errors.New("broken pipe")}
		}
		r.put(1, 0, 1)
		r.run()
		jobs, err := r.store.Claim(t.Context(), schema.QueueCopyDelete, 10, time.Minute)
		if err != nil || len(jobs) != 1 || jobs[0].DevID != 2 {
			t.Errorf("due for deletion are %+v (%v), want the copy on dev2", jobs, err)
		}
	})
}

// TestDeletedDuringCopy has a client delete the file while it is copied.
func TestDeletedDuringCopy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 2, 1)
		r.disks.OnCopy = func(_ context.Context, _, _ protocol.DevID, fid protocol.FID) error {
			r.store.Delete(fid)
			return nil
		}
		r.put(1, 0, 1)
		r.run()
		if got := r.pending(1); !slices.Equal(got, []protocol.DevID{2}) {
			t.Errorf("the copy that landed must go: pending %v", got)
		}
		if devs := r.store.Locations(1); !slices.Equal(devs, []protocol.DevID{1}) || r.row(1) != nil {
			t.Errorf("locations %v, row %+v", devs, r.row(1))
		}
	})
}

// TestMovedDuringCopy has somebody else change the locations while a copy is
// made: it is recorded if it is still wanted, else its bytes go.
func TestMovedDuringCopy(t *testing.T) {
	for _, c := range []struct {
		name   string
		during []protocol.DevID // the locations then
		want   []protocol.DevID
		made   int
	}{
		{"still wanted", []protocol.DevID{2}, []protocol.DevID{2, 3}, 1},
		{"not wanted", []protocol.DevID{1, 2}, []protocol.DevID{1, 2}, 1},
		{"recorded by another", []protocol.DevID{1, 3}, []protocol.DevID{1, 3}, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, 3, 1)
				r.put(1, 0, 1)
				r.disks.Put(2, 1, content)
				// Only dev3 takes files, so that we know where the copy goes.
				r.cluster.Change(2, func(d *cluster.Device, _ *cluster.Host) { d.Status = schema.DeviceReadonly })
				var once sync.Once
				r.disks.OnCopy = func(context.Context, protocol.DevID, protocol.DevID, protocol.FID) error {
					once.Do(func() { r.store.SetLocations(1, c.during...) })
					return nil
				}
				r.run()
				if got := r.store.Locations(1); !slices.Equal(got, c.want) {
					t.Errorf("locations %v, want %v", got, c.want)
				}
				if made, _ := r.disks.Counts(); made != c.made {
					t.Errorf("%d copies made, want %d", made, c.made)
				}
				for _, dev := range r.disks.On(1) {
					if !slices.Contains(c.want, dev) && dev == 3 && !slices.Contains(r.pending(1), dev) {
						t.Errorf("bytes on dev%d are neither recorded nor to be deleted", dev)
					}
				}
			})
		})
	}
}

// TestCrashDuringCopy stops a tracker dead between the landing of a copy and
// its recording: the bytes are entered to be deleted, and the file is copied
// elsewhere.
func TestCrashDuringCopy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 3, 1)
		var dead atomic.Bool
		r.store.Before = func(method string) error {
			if method == "AddLocation" && dead.CompareAndSwap(false, true) || dead.Load() && method != "PendingDeletions" {
				return fmt.Errorf("%s: %w", method, schema.ErrUnavailable)
			}
			return nil
		}
		r.put(1, 0, 1)
		stop := r.start()
		worktest.Eventually(t, "crash", dead.Load)
		stop()
		landed := r.disks.On(1)
		if len(landed) != 2 {
			t.Fatalf("on %v", landed)
		}
		if got := r.pending(1); !slices.Equal(got, landed[1:]) {
			t.Fatalf("bytes landed on dev%d, to be deleted are %v", landed[1], got)
		}
		r.store.Before = nil
		next := newRig(t, 3, 1)
		next.store, next.disks = r.store, r.disks
		next.options.Store, next.options.Storage, next.options.Fids = r.store, r.disks, work.NewFIDLocks(r.store)
		r.store.LoseSession()                    // the dead tracker's
		work.Pause(t.Context(), 121*time.Second) // its lease
		next.run()
		if devs := r.store.Locations(1); len(devs) != 2 || slices.Contains(devs, landed[1]) {
			t.Errorf("locations %v, want none on dev%d", devs, landed[1])
		}
	})
}

func TestLockedFIDWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 2, 1)
		r.put(1, 0, 1)
		held, err := r.options.Fids.TryLock(t.Context(), 1)
		if err != nil {
			t.Fatal(err)
		}
		defer r.start()()
		work.Pause(t.Context(), 30*time.Second)
		if row := r.row(1); row == nil || row.FailCount != 0 {
			t.Fatalf("row %+v, want it to wait without failures", row)
		}
		if copies, _ := r.disks.Counts(); copies != 0 {
			t.Fatal("copied without the lock")
		}
		if err := held.Release(t.Context()); err != nil {
			t.Fatal(err)
		}
		work.Pause(t.Context(), 4*time.Second)
		if devs := r.store.Locations(1); len(devs) != 2 {
			t.Errorf("locations %v", devs)
		}
	})
}

// TestLongCopyKeepsItsLease copies for an hour; nobody else begins it.
func TestLongCopyKeepsItsLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 2, 1)
		var begun atomic.Int32
		r.disks.OnCopy = func(ctx context.Context, _, _ protocol.DevID, _ protocol.FID) error {
			begun.Add(1)
			work.Pause(ctx, time.Hour)
			return nil
		}
		r.put(1, 0, 1)
		other := *r
		other.options.Fids = work.NewFIDLocks(r.store)
		other.options.Rand = rand.New(rand.NewPCG(2, 2))
		defer r.start()()
		defer other.start()()
		work.Pause(t.Context(), time.Hour+10*time.Second)
		if n := begun.Load(); n != 1 || len(r.store.Locations(1)) != 2 || r.row(1) != nil {
			t.Errorf("begun %d times, locations %v, row %+v", n, r.store.Locations(1), r.row(1))
		}
	})
}

// TestQueuedAgainDuringCopy asks for replication while it goes on: nothing
// asked for is lost, and the copy is not made twice.
func TestQueuedAgainDuringCopy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 3, 1)
		r.disks.OnCopy = func(ctx context.Context, _, _ protocol.DevID, fid protocol.FID) error {
			if copies, _ := r.disks.Counts(); copies == 0 {
				work.Pause(ctx, 10*time.Second)
				// The class changes to three copies.
				r.store.Put(schema.File{FID: fid, DMID: 1, ClassID: 3, Length: int64(len(content))}, r.store.Locations(fid)...)
			}
			return nil
		}
		r.put(1, 0, 1)
		defer r.start()()
		work.Pause(t.Context(), 30*time.Second)
		if copies, _ := r.disks.Counts(); copies != 2 || len(r.store.Locations(1)) != 3 || r.row(1) != nil {
			t.Errorf("%d copies made, locations %v, row %+v", copies, r.store.Locations(1), r.row(1))
		}
	})
}

func TestShutdownGivesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 2, 1)
		started := make(chan struct{}, 10)
		r.disks.OnCopy = func(ctx context.Context, _, _ protocol.DevID, _ protocol.FID) error {
			started <- struct{}{}
			<-ctx.Done()
			return ctx.Err()
		}
		for fid := protocol.FID(1); fid <= 10; fid++ {
			r.put(fid, 0, 1)
		}
		stop := r.start()
		for range 3 {
			<-started
		}
		began := time.Now()
		stop()
		if took := time.Since(began); took > time.Second {
			t.Errorf("the end took %v", took)
		}
		for fid := protocol.FID(1); fid <= 10; fid++ {
			if row := r.row(fid); row == nil || row.NextTry > time.Now().Unix() || row.FailCount != 0 {
				t.Errorf("fid %d: row %+v, want it due for another tracker", fid, row)
			}
		}
		if n := r.store.Locked(); n != 0 {
			t.Errorf("%d locks left", n)
		}
	})
}

// TestLostLockCancelsCopy loses the session that holds the lock while a copy is
// made: it is broken off, and made again later.
func TestLostLockCancelsCopy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 3, 1)
		var tries atomic.Int32
		r.disks.OnCopy = func(ctx context.Context, _, _ protocol.DevID, _ protocol.FID) error {
			if tries.Add(1) == 1 {
				r.store.LoseSession()
				<-ctx.Done()
				return ctx.Err()
			}
			return nil
		}
		r.put(1, 0, 1)
		r.run()
		if n := r.count("mogile_replicate_outcomes_total", "interrupted"); n != 1 || tries.Load() != 2 {
			t.Errorf("%v times interrupted, %d tries", n, tries.Load())
		}
		if devs := r.store.Locations(1); len(devs) != 2 || len(r.pending(1)) != 1 {
			t.Errorf("locations %v, pending %v", devs, r.pending(1))
		}
	})
}

func TestDatabaseGoesAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 2, 1)
		var away atomic.Bool
		r.store.Before = func(method string) error {
			if away.Load() && method != "PendingDeletions" {
				return fmt.Errorf("%s: %w", method, schema.ErrUnavailable)
			}
			return nil
		}
		for fid := protocol.FID(1); fid <= 50; fid++ {
			r.put(fid, 0, 1)
		}
		r.disks.OnCopy = func(ctx context.Context, _, _ protocol.DevID, fid protocol.FID) error {
			if fid == 10 {
				away.Store(true)
			}
			return nil
		}
		defer r.start()()
		work.Pause(t.Context(), 10*time.Minute)
		if n := strings.Count(r.log.String(), "database is away"); n != 1 {
			t.Errorf("told %d times that the database is away", n)
		}
		r.disks.OnCopy = nil
		away.Store(false)
		work.Pause(t.Context(), 10*time.Minute)
		for fid := protocol.FID(1); fid <= 50; fid++ {
			if devs := r.store.Locations(fid); len(devs) != 2 && len(r.pending(fid)) == 0 {
				t.Errorf("fid %d is on %v", fid, devs)
			}
		}
		if strings.Count(r.log.String(), "unavailable") != 1 || strings.Count(r.log.String(), "database is back") != 1 {
			t.Errorf("the log is not quiet:\n%s", r.log)
		}
	})
}

// TestPoisonousFID panics in the work on one fid; the others are done.
func TestPoisonousFID(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 2, 1)
		r.disks.OnCopy = func(_ context.Context, _, _ protocol.DevID, fid protocol.FID) error {
			if fid == 2 {
				panic("poison")
			}
			return nil
		}
		for fid := protocol.FID(1); fid <= 5; fid++ {
			r.put(fid, 0, 1)
		}
		defer r.start()()
		work.Pause(t.Context(), time.Minute)
		for fid := protocol.FID(1); fid <= 5; fid++ {
			if n := len(r.store.Locations(fid)); fid != 2 && n != 2 {
				t.Errorf("fid %d has %d copies", fid, n)
			}
		}
		if r.store.Locked() != 0 {
			t.Error("the lock was not given back")
		}
	})
}
