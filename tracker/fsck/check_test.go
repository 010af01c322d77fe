package fsck

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/time/rate"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/schema"
	"github.com/mogile/mogile/tracker/cluster"
	"github.com/mogile/mogile/tracker/storage"
	"github.com/mogile/mogile/tracker/work"
	"github.com/mogile/mogile/tracker/work/worktest"
)

// bytesOn are the bytes of a copy and what its storage daemon noted of them.
type bytesOn struct {
	content string
	noted   *protocol.ContentSum
	sector  bool // cannot be read
}

// disks are devices in memory.
type disks struct {
	mu     sync.Mutex
	files  map[protocol.DevID]map[protocol.FID]bytesOn
	shards map[protocol.FIDOn]protocol.ShardState
	broken map[protocol.DevID]error                   // what a device answers with
	hung   map[protocol.DevID]bool                    // devices that answer after patience, with an error
	once   func(dev protocol.DevID, fid protocol.FID) // called ahead of each question about a file
	runs   int                                        // calls of Sizes
	asked  map[protocol.DevID]int
	reads  map[protocol.DevID]int // running
	most   int                    // reads of one device at a time
}

const patience = 2 * time.Second

func newDisks() *disks {
	return &disks{
		files: make(map[protocol.DevID]map[protocol.FID]bytesOn), shards: make(map[protocol.FIDOn]protocol.ShardState), broken: make(map[protocol.DevID]error),
		hung: make(map[protocol.DevID]bool), asked: make(map[protocol.DevID]int), reads: make(map[protocol.DevID]int),
	}
}

func (d *disks) put(dev protocol.DevID, fid protocol.FID, b bytesOn) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.files[dev] == nil {
		d.files[dev] = make(map[protocol.FID]bytesOn)
	}
	d.files[dev][fid] = b
}

func (d *disks) remove(dev protocol.DevID, fid protocol.FID) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.files[dev], fid)
}

// ask is a question about a file.
func (d *disks) ask(ctx context.Context, raw string) (bytesOn, protocol.DevID, error) {
	u, err := url.Parse(raw)
	if err != nil {
		panic(err)
	}
	dev, fid, err := protocol.ParsePath(u.Path)
	shard := err != nil
	if shard {
		dev, fid, err = protocol.ParseShardPath(u.Path)
	}
	if err != nil {
		panic(err)
	}
	if d.once != nil {
		d.once(dev, fid)
	}
	d.mu.Lock()
	d.asked[dev]++
	b, ok := d.files[dev][fid]
	if s, has := d.shards[protocol.FIDOn{FID: fid, Dev: dev}]; shard {
		b, ok = bytesOn{content: strings.Repeat("s", s.Index+1)}, has // a size of its own for each
	}
	broken, hung := d.broken[dev], d.hung[dev]
	d.mu.Unlock()
	switch {
	case hung:
		work.Pause(ctx, patience)
		return b, dev, fmt.Errorf("dev%d: %w", dev, storage.ErrUnreachable)
	case broken != nil:
		return b, dev, broken
	case !ok:
		return b, dev, storage.ErrMissing
	}
	return b, dev, nil
}

func (d *disks) Sizes(ctx context.Context, urls []string) []storage.SizeAnswer {
	d.mu.Lock()
	d.runs++
	d.mu.Unlock()
	answers := make([]storage.SizeAnswer, len(urls))
	for i, u := range urls {
		b, _, err := d.ask(ctx, u)
		answers[i] = storage.SizeAnswer{Bytes: int64(len(b.content)), Err: err}
		if errors.Is(err, storage.ErrUnreachable) && !errors.As(err, new(*storage.StatusError)) {
			for j := range answers[i:] {
				answers[i+j].Err = err
			}
			break
		}
	}
	return answers
}

func (d *disks) Verify(ctx context.Context, url string, _ int64, t protocol.HashType, _ string) (storage.Verified, error) {
	b, dev, err := d.ask(ctx, url)
	if err != nil {
		return storage.Verified{}, err
	}
	d.mu.Lock()
	d.reads[dev]++
	d.most = max(d.most, d.reads[dev])
	d.mu.Unlock()
	work.Pause(ctx, time.Millisecond)
	d.mu.Lock()
	d.reads[dev]--
	d.mu.Unlock()
	v := storage.Verified{Content: protocol.Content{Unreadable: b.sector, Found: *noteOf(b.content), Stored: b.noted}}
	if t != protocol.HashNone {
		v.Digest = sumOf(t, b.content)
	}
	return v, ctx.Err()
}

// rig is a checker over a namespace and devices in memory: three hosts of two
// devices each.
type rig struct {
	t       *testing.T
	store   *worktest.Store
	disks   *disks
	cluster *worktest.Cluster
	options CheckerOptions

	mu    sync.Mutex // guards what follows
	notes []string
	log   bytes.Buffer
}

func (r *rig) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.log.Write(p)
}

func newRig(t *testing.T) *rig {
	r := &rig{t: t, store: worktest.NewStore(), disks: newDisks(), cluster: worktest.NewCluster(3, 2)}
	r.options = CheckerOptions{
		Store: r.store, Cluster: r.cluster, Storage: r.disks, Fids: work.NewFIDLocks(r.store), MinFreeMB: 100,
		Rand: rand.New(rand.NewPCG(1, 1)), Log: zerolog.New(r),
		Notify: func(msg string) {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.notes = append(r.notes, msg)
		},
	}
	return r
}

const content = "nine lives"

const ( // classes of worktest's cluster
	double = schema.ClassID(0)
	single = schema.ClassID(1)
	triple = schema.ClassID(3)
	hashed = schema.ClassID(5) // of two copies

	coded       = schema.ClassID(6) // 3+2 shards
	codedHashed = schema.ClassID(7)
)

func written(content string) bytesOn { return bytesOn{content: content, noted: noteOf(content)} }

// put stores a file with intact copies on devs, and nothing queued.
func (r *rig) put(fid protocol.FID, class schema.ClassID, devs ...protocol.DevID) {
	for _, d := range devs {
		r.disks.put(d, fid, written(content))
	}
	r.store.Put(schema.File{FID: fid, DMID: 1, ClassID: class, Key: fid.String(), Length: int64(len(content))}, devs...)
	r.done(schema.QueueReplicate)
}

// done empties a queue.
func (r *rig) done(q schema.Queue) {
	jobs, err := r.store.Claim(r.t.Context(), q, 10000, time.Minute)
	if err == nil {
		_, err = r.store.Finish(r.t.Context(), jobs)
	}
	if err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) files(fids ...protocol.FID) []schema.LocatedFile {
	r.t.Helper()
	files, err := r.store.FilesByFID(r.t.Context(), fids)
	if err != nil {
		r.t.Fatal(err)
	}
	slices.SortFunc(files, func(a, b schema.LocatedFile) int { return cmp.Compare(a.FID, b.FID) })
	return files
}

func (r *rig) check(m Mode, fids ...protocol.FID) (schema.Tally, []protocol.FID) {
	r.t.Helper()
	tally, stalled, err := NewChecker(r.options).Check(r.t.Context(), r.files(fids...), m)
	if err != nil {
		r.t.Fatal(err)
	}
	if n := r.store.Locked(); n != 0 {
		r.t.Errorf("%d locks left", n)
	}
	return tally, stalled
}

// events are those logged so far of one fid.
func (r *rig) events(fid protocol.FID) string {
	var events []event
	for _, e := range r.store.Events() {
		if e.FID != fid {
			continue
		}
		one := event{code: e.Code}
		if e.DevID != nil {
			one.dev = *e.DevID
		}
		events = append(events, one)
	}
	return tell(events)
}

// queued tells what waits of a fid: to be replicated, and put aside.
func (r *rig) queued(fid protocol.FID) string {
	var words []string
	if r.store.Row(worktest.Key{Queue: schema.QueueReplicate, FID: fid}) != nil {
		words = append(words, "replicate")
	}
	for dev := range protocol.DevID(7) {
		if row := r.store.Row(worktest.Key{Queue: schema.QueueCopyDelete, FID: fid, DevID: dev}); row != nil {
			words = append(words, fmt.Sprintf("%s:%d", cmp.Or(row.What, schema.Raw), dev))
		}
	}
	return strings.Join(words, " ")
}

// TestEvents makes every situation that MogileFS has an event for.
func TestEvents(t *testing.T) {
	class, all, scrub := Mode{}, Mode{Checksum: "MD5"}, Mode{Content: true}
	policy := Mode{PolicyOnly: true}
	state := func(status string, devs ...protocol.DevID) func(*rig) {
		return func(r *rig) {
			for _, dev := range devs {
				r.cluster.Change(dev, func(d *cluster.Device, _ *cluster.Host) { d.Status = status })
			}
		}
	}
	away := func(r *rig, devs ...protocol.DevID) {
		for _, dev := range devs {
			r.cluster.Change(dev, func(d *cluster.Device, _ *cluster.Host) { d.Observed = cluster.DeviceUnreachable })
		}
	}
	sum := func(r *rig, s protocol.Checksum) {
		if err := r.store.SetChecksum(r.t.Context(), 1, s); err != nil {
			r.t.Fatal(err)
		}
	}
	good := sumOf(protocol.HashMD5, content)
	// Devices 1 and 2 are on host 1, 3 and 4 on host 2, 5 and 6 on host 3.
	for _, c := range []struct {
		name    string
		mode    Mode
		setup   func(r *rig)
		events  string
		on      string // where the file is recorded afterwards
		queued  string
		stalled bool
		sum     protocol.Checksum // stored afterwards
	}{
		{name: "all is well", setup: func(r *rig) { r.put(1, double, 1, 3) }, on: "1 3"},
		{name: "NOPA, FOND", setup: func(r *rig) { r.put(1, double, 1); r.store.SetLocations(1) },
			events: "NOPA SRCH FOND:1 REPL", on: "1", queued: "replicate"},
		{name: "NOPA, GONE", setup: func(r *rig) { r.put(1, double) }, events: "NOPA SRCH GONE"},
		{name: "NOPA, a device is away", setup: func(r *rig) { r.put(1, double); away(r, 4) }, events: "NOPA SRCH", stalled: true},
		{name: "NOPA, found though a device is away", setup: func(r *rig) {
			r.put(1, single, 2)
			r.store.SetLocations(1)
			away(r, 4)
		}, events: "NOPA SRCH FOND:2", on: "2"},
		{name: "NOPA, not on dead devices", setup: func(r *rig) {
			r.put(1, single, 2)
			r.store.SetLocations(1)
			state(schema.DeviceDead, 2)(r)
		}, events: "NOPA SRCH GONE"},
		{name: "POVI: one copy", setup: func(r *rig) { r.put(1, double, 1) }, events: "POVI REPL", on: "1", queued: "replicate"},
		{name: "POVI: one host", setup: func(r *rig) { r.put(1, double, 1, 2) }, events: "POVI REPL", on: "1 2", queued: "replicate"},
		{name: "POVI: too many", setup: func(r *rig) { r.put(1, double, 1, 3, 5) }, events: "POVI REPL", on: "1 3 5", queued: "replicate"},
		{name: "POVI, a device is away", setup: func(r *rig) { r.put(1, double, 1); away(r, 1) },
			events: "POVI REPL", on: "1", queued: "replicate", stalled: true},
		{name: "MISS", setup: func(r *rig) { r.put(1, double, 1, 3); r.disks.remove(3, 1) }, events: "MISS:3 REPL", on: "1", queued: "replicate"},
		{name: "MISS of a spare copy", setup: func(r *rig) { r.put(1, double, 1, 3, 5); r.disks.remove(3, 1) },
			events: "POVI MISS:3", on: "1 5"},
		{name: "all MISS, GONE", setup: func(r *rig) { r.put(1, double, 1, 3); r.disks.remove(1, 1); r.disks.remove(3, 1) },
			events: "MISS:1 MISS:3 SRCH GONE"},
		{name: "all MISS, FOND", setup: func(r *rig) {
			r.put(1, double, 1, 3)
			r.disks.put(6, 1, written(content))
			r.disks.put(5, 1, written("nine"))
			r.disks.remove(1, 1)
			r.disks.remove(3, 1)
		}, events: "MISS:1 MISS:3 SRCH FOND:6 REPL", on: "6", queued: "replicate"},
		{name: "BLEN: cut short", setup: func(r *rig) { r.put(1, double, 1, 3); r.disks.put(3, 1, written("nine")) },
			events: "BLEN:3 REPL", on: "1", queued: "replicate bad:3"},
		{name: "BLEN: empty", setup: func(r *rig) { r.put(1, double, 1, 3); r.disks.put(1, 1, bytesOn{}) },
			events: "BLEN:1 REPL", on: "3", queued: "replicate bad:1"},
		{name: "all BLEN: they stay", setup: func(r *rig) {
			r.put(1, double, 1, 3)
			r.disks.put(1, 1, written("nine"))
			r.disks.put(3, 1, written("lives"))
		}, events: "BLEN:1 BLEN:3 SRCH GONE", on: "1 3"},
		{name: "BCNT", setup: func(r *rig) { r.put(1, double, 1, 3); r.store.SetDevCount(1, 7) }, events: "BCNT", on: "1 3"},
		{name: "BCNT beside a repair", setup: func(r *rig) { r.put(1, hashed, 1, 3); r.store.SetDevCount(1, 7) },
			events: "BCNT NSUM", on: "1 3", sum: good},
		{name: "replication counts", setup: func(r *rig) { r.put(1, double, 1); r.store.SetDevCount(1, 7) },
			events: "POVI REPL", on: "1", queued: "replicate"},
		{name: "BSUM: all equal", setup: func(r *rig) { r.put(1, hashed, 1, 3); sum(r, sumOf(protocol.HashMD5, "dogs")) },
			events: "BSUM", on: "1 3", sum: sumOf(protocol.HashMD5, "dogs")},
		{name: "one copy is as stored", setup: func(r *rig) {
			r.put(1, hashed, 1, 3)
			sum(r, good)
			r.disks.put(3, 1, written("nine lifes"))
		}, events: "BSUM:3 REPL", on: "1", queued: "replicate bad:3", sum: good},
		{name: "and is not looked at when checksums are off", mode: Mode{Checksum: "off"}, setup: func(r *rig) {
			r.put(1, hashed, 1, 3)
			sum(r, good)
			r.disks.put(3, 1, written("nine lifes"))
		}, on: "1 3", sum: good},
		{name: "NSUM", setup: func(r *rig) { r.put(1, hashed, 1, 3) }, events: "NSUM", on: "1 3", sum: good},
		{name: "NSUM, policy only", mode: policy, setup: func(r *rig) { r.put(1, hashed, 1, 3) }, events: "NSUM", on: "1 3", sum: good},
		{name: "NSUM is off", mode: Mode{Checksum: "off"}, setup: func(r *rig) { r.put(1, hashed, 1, 3) }, on: "1 3"},
		{name: "MSUM", mode: all, setup: func(r *rig) {
			r.put(1, double, 1, 3)
			r.disks.put(3, 1, written("nine lifes"))
		}, events: "MSUM", on: "1 3"},
		{name: "BSUM without the setting", setup: func(r *rig) {
			r.put(1, hashed, 1, 3)
			r.disks.put(3, 1, written("nine lifes"))
		}, events: "BSUM", on: "1 3"},
		{name: "BALG", setup: func(r *rig) { r.put(1, hashed, 1, 3); sum(r, sumOf(protocol.HashSHA1, content)) },
			events: "BALG", on: "1 3", sum: sumOf(protocol.HashSHA1, content)},
		{name: "dead device", setup: func(r *rig) { r.put(1, double, 1, 3); state(schema.DeviceDead, 3)(r) },
			events: "REPL", on: "1", queued: "replicate"},
		{name: "every device dead", setup: func(r *rig) { r.put(1, double, 1, 3); state(schema.DeviceDead, 1, 3)(r) }, events: "SRCH GONE"},
		{name: "dead device, policy only", mode: policy, setup: func(r *rig) { r.put(1, double, 1, 3); state(schema.DeviceDead, 3)(r) },
			events: "REPL", on: "1", queued: "replicate"},
		{name: "device down", setup: func(r *rig) { r.put(1, double, 1, 3); state(schema.DeviceDown, 3)(r) }, on: "1 3", stalled: true},
		{name: "device not known", setup: func(r *rig) { r.put(1, double, 1, 3); r.cluster.Remove(3) },
			events: "POVI REPL", on: "1 3", queued: "replicate", stalled: true},
		{name: "device in drain and readonly", setup: func(r *rig) {
			r.put(1, double, 1, 3)
			state(schema.DeviceDrain, 3)(r)
			state(schema.DeviceReadonly, 1)(r)
		}, on: "1 3"},
		{name: "device answers 500", setup: func(r *rig) {
			r.put(1, double, 1, 3)
			r.disks.broken[3] = &storage.StatusError{Status: 500}
		}, on: "1 3", stalled: true},
		{name: "policy only: missing copies do not count", mode: policy, setup: func(r *rig) { r.put(1, double, 1, 3); r.disks.remove(3, 1) }, on: "1 3"},
		{name: "policy only: POVI", mode: policy, setup: func(r *rig) { r.put(1, double, 1); r.disks.remove(1, 1) },
			events: "POVI REPL", on: "1", queued: "replicate"},
		{name: "class not known", setup: func(r *rig) { r.put(1, 9, 1) }, on: "1", stalled: true},

		{name: "scrub: rotten", mode: scrub, setup: func(r *rig) {
			r.put(1, double, 1, 3)
			r.disks.put(1, 1, bytesOn{content: "nine lifes", noted: noteOf(content)})
		}, events: "BSUM:1 REPL", on: "3", queued: "replicate bad:1"},
		{name: "rotten, but it is no scrub", mode: class, setup: func(r *rig) {
			r.put(1, double, 1, 3)
			r.disks.put(1, 1, bytesOn{content: "nine lifes", noted: noteOf(content)})
		}, on: "1 3"},
		{name: "scrub: the only copy is rotten", mode: scrub, setup: func(r *rig) {
			r.put(1, single, 1)
			r.disks.put(1, 1, bytesOn{content: "nine lifes", noted: noteOf(content)})
		}, events: "BSUM BSUM:1", on: "1"},
		{name: "scrub: all rotten", mode: scrub, setup: func(r *rig) {
			r.put(1, double, 1, 3)
			r.disks.put(1, 1, bytesOn{content: "nine lifes", noted: noteOf(content)})
			r.disks.put(3, 1, bytesOn{content: "nine_lives", noted: noteOf(content)})
		}, events: "BSUM BSUM:1 BSUM:3", on: "1 3"},
		{name: "scrub: bad sector", mode: scrub, setup: func(r *rig) {
			r.put(1, double, 1, 3)
			r.disks.put(1, 1, bytesOn{content: content, noted: noteOf(content), sector: true})
		}, events: "BSUM:1 REPL", on: "3", queued: "replicate bad:1"},
		{name: "scrub: nothing to see but bad sectors", mode: scrub, setup: func(r *rig) {
			r.put(1, double, 1, 3)
			r.disks.put(1, 1, bytesOn{content: content, sector: true})
			r.disks.put(3, 1, bytesOn{content: content, sector: true})
		}, events: "BSUM:1 BSUM:3 SRCH GONE", on: "1 3"},
		{name: "scrub: a found copy is read", mode: scrub, setup: func(r *rig) {
			r.put(1, double, 1)
			r.disks.put(5, 1, bytesOn{content: "nine lifes", noted: noteOf(content)})
			r.disks.put(6, 1, written(content))
			r.disks.remove(1, 1)
		}, events: "POVI MISS:1 SRCH FOND:6 REPL", on: "6", queued: "replicate"},
		{name: "scrub: a doubtful copy is found", mode: scrub, setup: func(r *rig) {
			r.put(1, double, 1)
			r.disks.put(5, 1, bytesOn{content: "nine lifes", noted: noteOf(content)})
			r.disks.put(1, 1, written("nine"))
		}, events: "POVI BLEN:1 SRCH FOND:5 BSUM", on: "1 5"},
		{name: "scrub: contradiction", mode: scrub, setup: func(r *rig) {
			r.put(1, double, 1, 3)
			r.disks.put(1, 1, written("nine lifes"))
		}, events: "MSUM", on: "1 3"},
		{name: "scrub: too many copies, one of them rotten", mode: scrub, setup: func(r *rig) {
			r.put(1, double, 1, 3, 5)
			r.disks.put(5, 1, bytesOn{content: "nine lifes", noted: noteOf(content)})
		}, events: "POVI BSUM:5", on: "1 3", queued: "bad:5"},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t)
				c.setup(r)
				tally, stalled := r.check(c.mode, 1)
				f, _ := r.store.File(1)
				stored, err := r.store.Checksum(t.Context(), 1)
				if err != nil {
					t.Fatal(err)
				}
				if got := r.events(1); got != c.events {
					t.Errorf("events %q, want %q", got, c.events)
				}
				if got := numbers(f.Devices); got != c.on {
					t.Errorf("recorded on %q, want %q", got, c.on)
				}
				if got := r.queued(1); got != c.queued {
					t.Errorf("queued: %q, want %q", got, c.queued)
				}
				if (len(stalled) == 1) != c.stalled || (tally.Files == 1) == c.stalled {
					t.Errorf("stalled %v, %d files checked", stalled, tally.Files)
				}
				if c.stalled && c.name != "class not known" && !slices.ContainsFunc(r.notes, func(s string) bool {
					return strings.HasPrefix(s, "[fsck(0)] Connectivity problem reaching device ")
				}) {
					t.Errorf("watchers were told %q", r.notes)
				}
				if !stored.Equal(c.sum) {
					t.Errorf("checksum %v, want %v", stored, c.sum)
				}
				if !c.stalled && f.DevCount != len(f.Devices) && !strings.Contains(c.queued, "replicate") {
					t.Errorf("devcount %d", f.DevCount)
				}
				var n int64
				for _, count := range tally.Events {
					n += count
				}
				if want := len(r.store.Events()); n != int64(want) {
					t.Errorf("%d events in the tally, %d in the log", n, want)
				}
			})
		})
	}
}

// TestFewRoundTrips checks a thousand files that are well.
func TestFewRoundTrips(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		var fids []protocol.FID
		for fid := protocol.FID(1); fid <= 1000; fid++ {
			r.put(fid, double, protocol.DevID(fid%2+1), protocol.DevID(fid%4+3))
			fids = append(fids, fid)
		}
		files := r.files(fids...)
		before := r.store.Calls("FilesByFID")
		tally, stalled, err := NewChecker(r.options).Check(t.Context(), files, Mode{})
		if err != nil || tally.Files != 1000 || len(stalled) != 0 || len(tally.Events) != 0 {
			t.Fatalf("%+v, stalled %v, %v", tally, stalled, err)
		}
		for _, method := range []string{"TryLock", "Unlock", "Checksums", "Recount", "LogFsck"} {
			if n := r.store.Calls(method); n != 0 {
				t.Errorf("%s was called %d times", method, n)
			}
		}
		if n := r.store.Calls("FilesByFID") - before; n != 0 {
			t.Errorf("files were read %d times again", n)
		}
		if r.disks.runs > 20 {
			t.Errorf("devices were asked %d times for 2000 copies", r.disks.runs)
		}
		if r.log.Len() > 0 || len(r.notes) > 0 {
			t.Errorf("a healthy check is not quiet: %s%q", r.log.String(), r.notes)
		}
	})
}

// TestManyRepairs finds every bad copy, and no other, in locks taken together.
func TestManyRepairs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		var fids []protocol.FID
		bad := 0
		for fid := protocol.FID(1); fid <= 600; fid++ {
			r.put(fid, double, protocol.DevID(fid%2+1), protocol.DevID(fid%4+3))
			if fid%3 == 0 {
				r.disks.put(protocol.DevID(fid%4+3), fid, bytesOn{content: "nine lifes", noted: noteOf(content)})
				bad++
			}
			fids = append(fids, fid)
		}
		tally, stalled := r.check(Mode{Content: true}, fids...)
		if tally.Files != 600 || tally.Events[CodeBadSum] != int64(bad) || tally.Events[CodeReplicate] != int64(bad) || len(tally.Events) != 2 || len(stalled) != 0 {
			t.Errorf("%+v, stalled %v", tally, stalled)
		}
		for _, fid := range fids {
			f, _ := r.store.File(fid)
			if want := 2 - len(r.events(fid))/len("BSUM:3 REPL"); len(f.Devices) != want {
				t.Errorf("fid %d is on %v after %q", fid, f.Devices, r.events(fid))
			}
		}
		// Each bad copy is read again under its lock, the good one is not.
		if want := int64(len(content) * (2*600 + bad)); tally.Bytes != want {
			t.Errorf("%d bytes read, want %d", tally.Bytes, want)
		}
		if n := r.store.Calls("TryLock"); n > bad/repairAtOnce+1 {
			t.Errorf("%d calls for locks", n)
		}
		if r.disks.most != 1 {
			t.Errorf("%d reads of one device at a time", r.disks.most)
		}
	})
}

// TestHungDevice has one device of six hang: no file that is not on it waits.
func TestHungDevice(t *testing.T) {
	for _, m := range []Mode{{}, {Content: true}} {
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t)
			var fids, want []protocol.FID
			for fid := protocol.FID(1); fid <= 1000; fid++ {
				r.put(fid, double, protocol.DevID(fid%2+1), protocol.DevID(fid%4+3))
				fids = append(fids, fid)
				if fid%4+3 == 4 {
					want = append(want, fid)
				}
			}
			r.disks.hung[4] = true
			began := time.Now()
			tally, stalled := r.check(m, fids...)
			if !slices.Equal(stalled, want) || tally.Files != int64(len(fids)-len(want)) {
				t.Errorf("%+v: %d stalled, %d checked", m, len(stalled), tally.Files)
			}
			if took := time.Since(began); took > 2*patience {
				t.Errorf("%+v: it took %v", m, took)
			}
			if note := "[fsck(0)] Connectivity problem reaching device 4 on host 127.0.0.2"; len(r.notes) != 1 || r.notes[0] != note {
				t.Errorf("watchers were told %q", r.notes)
			}
			if len(r.store.Events()) != 0 {
				t.Errorf("events %v", r.store.Events())
			}
		})
	}
}

// TestHangsWhileReading: the device answers for sizes, and hangs when it is
// read; the monitor notices.
func TestHangsWhileReading(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		for fid := protocol.FID(1); fid <= 10; fid++ {
			r.put(fid, double, 1, 3)
			r.put(fid+10, double, 2, 5)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		slow := &slowReads{disks: r.disks, dev: 3}
		r.options.Storage = slow
		time.AfterFunc(10*time.Second, func() {
			r.cluster.Change(3, func(d *cluster.Device, _ *cluster.Host) { d.Observed = cluster.DeviceUnreachable })
		})
		began := time.Now()
		files := r.files(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20)
		tally, stalled, err := NewChecker(r.options).Check(ctx, files, Mode{Content: true})
		if err != nil || tally.Files != 10 || len(stalled) != 10 || stalled[9] != 10 {
			t.Errorf("%+v, stalled %v, %v", tally, stalled, err)
		}
		if took := time.Since(began); took > 15*time.Second {
			t.Errorf("it took %v", took)
		}
	})
}

type slowReads struct {
	*disks
	dev protocol.DevID
}

func (s *slowReads) Verify(ctx context.Context, u string, size int64, t protocol.HashType, reason string) (storage.Verified, error) {
	if strings.Contains(u, fmt.Sprintf("/dev%d/", s.dev)) {
		<-ctx.Done()
		return storage.Verified{}, context.Cause(ctx)
	}
	return s.disks.Verify(ctx, u, size, t, reason)
}

// TestWaitsForTheMonitor: devices that nobody has looked at yet are not away.
func TestWaitsForTheMonitor(t *testing.T) {
	see := func(r *rig, state cluster.DeviceState) {
		for dev := protocol.DevID(1); dev <= 6; dev++ {
			r.cluster.Change(dev, func(d *cluster.Device, h *cluster.Host) {
				d.Observed, h.Observed = state, cluster.HostReachable
				if state == "" {
					h.Observed = ""
				}
			})
		}
	}
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		r.put(1, double, 1, 3)
		see(r, "")
		time.AfterFunc(3*time.Second, func() { see(r, cluster.DeviceWriteable) })
		if tally, stalled := r.check(Mode{}, 1); tally.Files != 1 || len(stalled) != 0 {
			t.Errorf("%+v, stalled %v", tally, stalled)
		}
		see(r, "")
		began := time.Now()
		if _, stalled := r.check(Mode{}, 1); len(stalled) != 1 || time.Since(began) != firstLook {
			t.Errorf("stalled %v after %v", stalled, time.Since(began))
		}
	})
}

// TestUnderTheLock changes files between the first look and the second.
func TestUnderTheLock(t *testing.T) {
	for _, c := range []struct {
		name    string
		mode    Mode
		between func(r *rig) // before the locks are there
		events  string
		on      string
		stalled bool
	}{
		{"deleted", Mode{}, func(r *rig) { r.store.Delete(1) }, "", "1 3", false},
		{"replicated", Mode{}, func(r *rig) { r.disks.put(3, 1, written(content)) }, "", "1 3", false},
		{"moved", Mode{}, func(r *rig) { r.store.SetLocations(1, 1, 5); r.disks.put(5, 1, written(content)) }, "", "1 5", false},
		{"moved, and lost there", Mode{}, func(r *rig) { r.store.SetLocations(1, 1, 5) }, "MISS:5 REPL", "1", false},
		{"unchanged", Mode{}, func(*rig) {}, "MISS:3 REPL", "1", false},
		{"read right the second time", Mode{Content: true}, func(r *rig) { r.disks.put(3, 1, written(content)) }, "", "1 3", false},
		{"device away", Mode{}, func(r *rig) { r.disks.hung[3] = true }, "", "1 3", true},
		{"device dead", Mode{}, func(r *rig) {
			r.cluster.Change(3, func(d *cluster.Device, _ *cluster.Host) { d.Status = schema.DeviceDead })
		}, "REPL", "1", false},
		{"domain's class gone", Mode{}, func(r *rig) { r.cluster.Remove(3) }, "POVI REPL", "1 3", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t)
				r.put(1, double, 1, 3)
				r.disks.remove(3, 1)
				files := r.files(1)
				r.store.Before = func(method string) error {
					if method == "TryLock" {
						c.between(r)
					}
					return nil
				}
				_, stalled, err := NewChecker(r.options).Check(t.Context(), files, c.mode)
				if err != nil {
					t.Fatal(err)
				}
				if got := r.events(1); got != c.events {
					t.Errorf("events %q, want %q", got, c.events)
				}
				if got := numbers(r.store.Locations(1)); got != c.on {
					t.Errorf("recorded on %q, want %q", got, c.on)
				}
				if (len(stalled) == 1) != c.stalled {
					t.Errorf("stalled %v", stalled)
				}
			})
		})
	}
}

// TestLocked leaves alone what others work on.
func TestLocked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		r.put(1, double, 1)
		r.put(2, double, 1)
		r.put(3, double, 1, 3)
		if _, _, err := r.store.TryLock(t.Context(), []string{schema.FIDLock(1), schema.FIDLock(3)}); err != nil {
			t.Fatal(err)
		}
		tally, stalled, err := NewChecker(r.options).Check(t.Context(), r.files(1, 2, 3), Mode{})
		if err != nil || !slices.Equal(stalled, []protocol.FID{1}) || tally.Files != 2 {
			t.Errorf("%+v, stalled %v, %v", tally, stalled, err)
		}
		if r.events(1) != "" || r.events(2) != "POVI REPL" {
			t.Errorf("events %q and %q", r.events(1), r.events(2))
		}
	})
}

// TestLockLost ends a repair whose locks went, without having done anything.
func TestLockLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		r.put(1, double, 1, 3)
		r.disks.remove(3, 1)
		files := r.files(1)
		locked := false
		r.store.Before = func(method string) error {
			locked = locked || method == "Checksums" || method == "FilesByFID"
			return nil
		}
		r.disks.once = func(protocol.DevID, protocol.FID) {
			if locked {
				r.store.LoseSession()
				work.Pause(t.Context(), time.Second)
			}
		}
		_, stalled, err := NewChecker(r.options).Check(t.Context(), files, Mode{})
		if err != nil || !slices.Equal(stalled, []protocol.FID{1}) || len(r.store.Events()) != 0 || len(r.store.Locations(1)) != 2 {
			t.Errorf("stalled %v, %v, events %v, on %v", stalled, err, r.store.Events(), r.store.Locations(1))
		}
	})
}

// TestFailsAnywhere lets the database go away at each call in turn; the next
// check finishes the work, and at no time is there no good copy.
func TestFailsAnywhere(t *testing.T) {
	lost := errors.New("connection lost")
	for n := 1; ; n++ {
		finished := false
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t)
			r.put(1, hashed, 1, 3)
			r.disks.put(3, 1, bytesOn{content: "nine lifes", noted: noteOf(content)})
			r.put(2, double, 1, 3)
			r.disks.remove(3, 2)
			r.put(3, double, 1)
			r.store.SetLocations(3)
			r.put(4, double, 1, 3, 5)
			r.put(5, double, 1, 3)
			r.store.SetDevCount(5, 9)
			files := r.files(1, 2, 3, 4, 5)
			calls := 0
			r.store.Before = func(method string) error {
				if calls++; calls == n && method != "Unlock" {
					return fmt.Errorf("%s: %w: %w", method, lost, schema.ErrUnavailable)
				}
				return nil
			}
			tally, _, err := NewChecker(r.options).Check(t.Context(), files, Mode{Content: true})
			if calls < n {
				finished = true
			}
			if err != nil && !errors.Is(err, schema.ErrUnavailable) {
				t.Fatalf("call %d: %v", n, err)
			}
			r.store.Before = nil
			if err != nil {
				for fid, dev := range map[protocol.FID]protocol.DevID{1: 1, 2: 1, 4: 1, 5: 1} {
					if !slices.Contains(r.store.Locations(fid), dev) {
						t.Errorf("call %d: fid %d lost its good copy: %v", n, fid, r.store.Locations(fid))
					}
				}
				for fid := protocol.FID(1); fid <= 2; fid++ {
					if len(r.store.Locations(fid)) < 2 && !strings.Contains(r.queued(fid), "replicate") {
						t.Errorf("call %d: fid %d lost a copy and is not queued", n, fid)
					}
				}
				tally, _ = r.check(Mode{Content: true}, 1, 2, 3, 4, 5)
			}
			if tally.Files != 5 {
				t.Errorf("call %d: %+v", n, tally)
			}
			for fid, want := range map[protocol.FID]string{1: "1", 2: "1", 3: "1", 4: "1 3 5", 5: "1 3"} {
				if got := numbers(r.store.Locations(fid)); got != want {
					t.Errorf("call %d: fid %d is on %q, want %q", n, fid, got, want)
				}
			}
			for fid, want := range map[protocol.FID]string{1: "replicate bad:3", 2: "replicate", 3: "replicate", 4: "replicate", 5: ""} {
				if got := r.queued(fid); got != want {
					t.Errorf("call %d: fid %d: queued %q, want %q", n, fid, got, want)
				}
			}
			if f, _ := r.store.File(5); f.DevCount != 2 {
				t.Errorf("call %d: devcount %d", n, f.DevCount)
			}
		})
		if finished {
			if n < 10 {
				t.Errorf("only %d calls", n)
			}
			return
		}
	}
}

// TestReaperMeanwhile: what is dropped without the lock makes a repair stale.
func TestReaperMeanwhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		r.put(1, double, 1, 3, 5)
		r.disks.put(3, 1, written("nine"))
		files := r.files(1)
		r.store.Before = func(method string) error {
			if method == "DropBadLocation" {
				r.store.SetLocations(1, 3) // the others went
			}
			return nil
		}
		_, stalled, err := NewChecker(r.options).Check(t.Context(), files, Mode{})
		if err != nil || !slices.Equal(stalled, []protocol.FID{1}) || !slices.Equal(r.store.Locations(1), []protocol.DevID{3}) {
			t.Errorf("stalled %v, %v, on %v", stalled, err, r.store.Locations(1))
		}
	})
}

func TestBandwidth(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		var fids []protocol.FID
		for fid := protocol.FID(1); fid <= 30; fid++ {
			r.put(fid, single, protocol.DevID(fid%6+1))
			fids = append(fids, fid)
		}
		r.options.Bandwidth = rate.NewLimiter(10, 4) // bytes a second; files have ten
		began := time.Now()
		tally, _ := r.check(Mode{Content: true}, fids...)
		if took := time.Since(began); took < 29*time.Second || took > 31*time.Second || tally.Bytes != 300 {
			t.Errorf("%d bytes in %v", tally.Bytes, took)
		}
	})
}

func TestCheckEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		r.put(1, double, 1, 3)
		r.disks.hung[3] = true
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		_, _, err := NewChecker(r.options).Check(ctx, r.files(1), Mode{})
		if !errors.Is(err, context.Canceled) {
			t.Errorf("%v", err)
		}
	})
}

func BenchmarkCheck(b *testing.B) {
	t := &testing.T{}
	r := newRig(t)
	var files []schema.LocatedFile
	for fid := protocol.FID(1); fid <= 1000; fid++ {
		devs := []protocol.DevID{protocol.DevID(fid%2 + 1), protocol.DevID(fid%4 + 3)}
		for _, d := range devs {
			r.disks.put(d, fid, written(content))
		}
		files = append(files, schema.LocatedFile{File: schema.File{FID: fid, DMID: 1, Length: int64(len(content)), DevCount: 2}, Devices: devs})
	}
	c := NewChecker(r.options)
	for b.Loop() {
		if tally, _, err := c.Check(b.Context(), files, Mode{}); err != nil || tally.Files != 1000 {
			b.Fatalf("%+v, %v", tally, err)
		}
	}
	b.ReportMetric(1000*float64(b.N)/b.Elapsed().Seconds(), "files/s")
}
