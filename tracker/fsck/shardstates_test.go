package fsck

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/schema"
	"github.com/mogile/mogile/tracker/cluster"
	"github.com/mogile/mogile/tracker/storage"
	"github.com/mogile/mogile/tracker/work"
)

// putShard has a shard lie on a device.
func (d *disks) putShard(s protocol.ShardState) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.shards[s.FIDOn] = s
}

// changeShard changes one that is there.
func (d *disks) changeShard(dev protocol.DevID, fid protocol.FID, change func(s *protocol.ShardState)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	at := protocol.FIDOn{FID: fid, Dev: dev}
	s, ok := d.shards[at]
	if !ok {
		panic(at)
	}
	change(&s)
	d.shards[at] = s
}

func (d *disks) removeShard(dev protocol.DevID, fid protocol.FID) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.shards, protocol.FIDOn{FID: fid, Dev: dev})
}

// atHome panics where an order for a device goes to another host's.
func atHome(hostport string, dev protocol.DevID) {
	host, port, err := net.SplitHostPort(hostport)
	if want := fmt.Sprintf("127.0.0.%d", (dev+1)/2); err != nil || host != want && host != fmt.Sprintf("127.0.0.%d", dev) || port != "7500" {
		panic(fmt.Sprintf("dev%d is asked for at %s", dev, hostport))
	}
}

func (d *disks) ShardStates(ctx context.Context, hostport string, o protocol.ShardStateOrder, size int64) ([]protocol.ShardState, error) {
	if (size > 0) != o.Verify {
		panic(fmt.Sprintf("%d bytes, verify: %v", size, o.Verify))
	}
	d.mu.Lock()
	d.runs++
	d.mu.Unlock()
	var states []protocol.ShardState
	for _, at := range o.Shards {
		atHome(hostport, at.Dev)
		if d.once != nil {
			d.once(at.Dev, at.FID)
		}
		d.mu.Lock()
		d.asked[at.Dev]++
		s, ok := d.shards[at]
		broken, hung := d.broken[at.Dev], d.hung[at.Dev]
		d.mu.Unlock()
		switch {
		case hung:
			work.Pause(ctx, patience)
			return nil, fmt.Errorf("dev%d: %w", at.Dev, storage.ErrUnreachable)
		case broken != nil:
			s = protocol.ShardState{FIDOn: at, What: protocol.ShardUnknown, Reason: broken.Error()}
		case !ok:
			s = protocol.ShardState{FIDOn: at, What: protocol.ShardMissing}
		case s.What == protocol.ShardPresent && o.Verify && s.Sized:
			s.Verified = true
		default:
			s.Bad = 0
		}
		states = append(states, s)
	}
	return states, ctx.Err()
}

func (d *disks) Place(_ context.Context, hostport string, o protocol.PlaceOrder) ([]protocol.ShardResult, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	var results []protocol.ShardResult
	for at, s := range d.shards {
		if at.FID != o.FID || s.What != protocol.ShardPresent || s.Set.Encoding != o.Encoding || net.JoinHostPort(fmt.Sprintf("127.0.0.%d", (at.Dev+1)/2), "7500") != hostport {
			continue
		}
		if s.Epoch < o.Epoch {
			s.Epoch, s.Devices = o.Epoch, slices.Clone(o.Devices)
			d.shards[at] = s
		}
		results = append(results, protocol.ShardResult{Index: s.Index, Dev: at.Dev})
	}
	return results, nil
}

// shardState is that of a shard that is as it should be.
func shardState(e schema.Encoding, length int64, index int, dev protocol.DevID) protocol.ShardState {
	return protocol.ShardState{
		FIDOn: protocol.FIDOn{FID: e.FID, Dev: dev}, What: protocol.ShardPresent, Set: setOf(e, length), Index: index,
		Epoch: e.Epoch, Devices: e.Devices, Sized: true, Blocks: 1,
	}
}

// encode stores a file in shards, one on each of devs in their order, and has
// all storage daemons know of shards.
func (r *rig) encode(fid protocol.FID, class schema.ClassID, devs ...protocol.DevID) schema.Encoding {
	for dev := protocol.DevID(1); dev <= 6; dev++ {
		r.cluster.Change(dev, func(_ *cluster.Device, h *cluster.Host) {
			h.Capabilities = cluster.Capabilities{Version: 1, Words: []string{protocol.WordEC}}
		})
	}
	e := schema.Encoding{FID: fid, ID: 9, K: 3, M: 2, Block: 4096, Epoch: 5, Devices: devs}
	r.store.PutEncoded(schema.File{FID: fid, DMID: 1, ClassID: class, Key: fid.String(), Length: int64(len(content))}, e)
	for i, dev := range devs {
		s := shardState(e, int64(len(content)), i, dev)
		s.CRC32C = noteOf(content).CRC32C
		r.disks.putShard(s)
	}
	for _, dev := range devs { // what each of them says of the whole file
		r.disks.put(dev, fid, written(content))
	}
	return e
}

// TestShardEvents makes every situation that a file in shards can be in.
func TestShardEvents(t *testing.T) {
	policy, scrub := Mode{PolicyOnly: true}, Mode{Content: true}
	five := devsOf("1 3 5 2 4")
	change := func(r *rig, dev protocol.DevID, f func(d *cluster.Device, h *cluster.Host)) { r.cluster.Change(dev, f) }
	dead := func(r *rig, devs ...protocol.DevID) {
		for _, dev := range devs {
			change(r, dev, func(d *cluster.Device, _ *cluster.Host) { d.Status = schema.DeviceDead })
		}
	}
	bad := func(r *rig, devs ...protocol.DevID) {
		for _, dev := range devs {
			r.disks.changeShard(dev, 1, func(s *protocol.ShardState) { s.Bad = 1 })
		}
	}
	move := func(r *rig, from, to protocol.DevID) {
		r.disks.changeShard(from, 1, func(s *protocol.ShardState) { s.Dev = to })
		s := r.disks.shards[protocol.FIDOn{FID: 1, Dev: from}]
		r.disks.removeShard(from, 1)
		r.disks.putShard(s)
	}
	good := sumOf(protocol.HashMD5, content)
	for _, c := range []struct {
		name    string
		mode    Mode
		class   schema.ClassID // 0: coded
		setup   func(r *rig)
		events  string
		on      string // where the file is recorded afterwards; empty: as before
		queued  string
		shards  string // afterwards, in their order; empty: as before
		epoch   int    // 0: as before
		stalled bool
		sum     protocol.Checksum // stored before and afterwards, but for NSUM
		copies  bool              // it is afterwards
	}{
		{name: "all is well"},
		{name: "all is well, by the database", mode: policy},
		{name: "all is well, by content", mode: scrub},
		{name: "the devices say that the file is there, and a shard is not", setup: func(r *rig) { r.disks.removeShard(5, 1) },
			events: "MISS:5 REPL", on: "1 2 3 4", queued: "replicate"},
		{name: "two are missing", setup: func(r *rig) { r.disks.removeShard(5, 1); r.disks.removeShard(1, 1) },
			events: "MISS:1 MISS:5 REPL", on: "2 3 4", queued: "replicate"},
		{name: "known to be missing", setup: func(r *rig) { r.disks.removeShard(5, 1); r.store.SetLocations(1, 1, 2, 3, 4) },
			events: "POVI REPL", on: "1 2 3 4", queued: "replicate"},
		{name: "of an older encoding", setup: func(r *rig) {
			r.disks.changeShard(2, 1, func(s *protocol.ShardState) { s.Set.Encoding = 8 })
		}, events: "BSUM:2 REPL", on: "1 3 4 5", queued: "replicate bad:2"},
		{name: "cut short", setup: func(r *rig) { r.disks.changeShard(2, 1, func(s *protocol.ShardState) { s.Sized = false }) },
			events: "BLEN:2 REPL", on: "1 3 4 5", queued: "replicate bad:2"},
		{name: "no header", setup: func(r *rig) {
			r.disks.changeShard(2, 1, func(s *protocol.ShardState) { s.What, s.Reason = protocol.ShardDamaged, "magic" })
		}, events: "BSUM:2 REPL", on: "1 3 4 5", queued: "replicate bad:2"},
		{name: "bad blocks, and nobody looks", setup: func(r *rig) { bad(r, 2, 3) }},
		{name: "bad blocks", mode: scrub, setup: func(r *rig) { bad(r, 2, 3) }, events: "BSUM:2 BSUM:3 REPL", on: "1 4 5", queued: "replicate bad:2 bad:3"},
		{name: "bad blocks in too many: they stay", mode: scrub, setup: func(r *rig) { bad(r, 2, 3, 4) }, events: "BSUM:2 BSUM:3 BSUM:4 SRCH GONE"},
		{name: "too many are missing: they stay recorded", setup: func(r *rig) {
			for _, dev := range devsOf("1 2 3") {
				r.disks.removeShard(dev, 1)
			}
			r.disks.files = map[protocol.DevID]map[protocol.FID]bytesOn{}
		}, events: "MISS:1 MISS:2 MISS:3 SRCH GONE"},
		{name: "too many are missing, and one is elsewhere", setup: func(r *rig) {
			r.disks.removeShard(1, 1)
			r.disks.removeShard(2, 1)
			move(r, 3, 6)
		}, events: "MISS:1 MISS:2 MISS:3 SRCH FOND:6 REPL", on: "4 5 6", queued: "replicate ec:0000000000000009:3", shards: "1 6 5 2 4", epoch: 6},
		{name: "too many are missing, and a device is away", setup: func(r *rig) {
			for _, dev := range devsOf("1 2 3") {
				r.disks.removeShard(dev, 1)
			}
			change(r, 6, func(d *cluster.Device, _ *cluster.Host) { d.Observed = cluster.DeviceUnreachable })
		}, events: "MISS:1 MISS:2 MISS:3 SRCH", stalled: true},
		{name: "too many are missing, and there is a copy", setup: func(r *rig) {
			for _, dev := range devsOf("1 2 3") {
				r.disks.removeShard(dev, 1)
			}
			r.disks.files = map[protocol.DevID]map[protocol.FID]bytesOn{6: {1: written(content)}}
		}, events: "MISS:1 MISS:2 MISS:3 SRCH FOND:6 REPL", on: "6", queued: "replicate ec:0000000000000009:1 ec:0000000000000009:2 ec:0000000000000009:3 ec:0000000000000009:4 ec:0000000000000009:5", copies: true},
		{name: "too many are missing, and there is a copy of something else", setup: func(r *rig) {
			for _, dev := range devsOf("1 2 3") {
				r.disks.removeShard(dev, 1)
			}
			r.disks.files = map[protocol.DevID]map[protocol.FID]bytesOn{6: {1: written("nine lifes")}}
		}, events: "MISS:1 MISS:2 MISS:3 SRCH GONE"},
		{name: "two have changed places", setup: func(r *rig) {
			r.disks.changeShard(1, 1, func(s *protocol.ShardState) { s.Index = 1 })
			r.disks.changeShard(3, 1, func(s *protocol.ShardState) { s.Index = 0 })
		}, events: "FOND:3 FOND:1", shards: "3 1 5 2 4", epoch: 6},
		{name: "the header of one is behind", setup: func(r *rig) {
			r.disks.changeShard(1, 1, func(s *protocol.ShardState) { s.Epoch, s.Devices = 4, devsOf("6 3 5 2 4") })
		}},
		{name: "the header of one is ahead", setup: func(r *rig) {
			r.disks.changeShard(1, 1, func(s *protocol.ShardState) { s.Epoch, s.Devices = 7, devsOf("6 3 5 2 4") })
		}, epoch: 8},
		{name: "a device is dead", setup: func(r *rig) { dead(r, 4) }, events: "REPL", on: "1 2 3 5", queued: "replicate"},
		{name: "a device is dead, by the database", mode: policy, setup: func(r *rig) { dead(r, 4) }, events: "REPL", on: "1 2 3 5", queued: "replicate"},
		{name: "too many are dead, by the database", mode: policy, setup: func(r *rig) { dead(r, 4, 5, 3) }, events: "SRCH GONE"},
		{name: "a device is away", setup: func(r *rig) { change(r, 4, func(d *cluster.Device, _ *cluster.Host) { d.Status = schema.DeviceDown }) }, stalled: true},
		{name: "a disk does not answer", setup: func(r *rig) { r.disks.broken[4] = errors.New("sick") }, stalled: true},
		{name: "a device hangs", setup: func(r *rig) { r.disks.hung[4] = true }, stalled: true},
		{name: "a storage daemon without the key", setup: func(r *rig) {
			change(r, 4, func(_ *cluster.Device, h *cluster.Host) { h.Capabilities = cluster.Capabilities{} })
		}, stalled: true},
		{name: "BCNT", setup: func(r *rig) { r.store.SetDevCount(1, 7) }, events: "BCNT"},
		{name: "of a class of copies", class: double, events: "POVI REPL", queued: "replicate"},

		{name: "as stored", class: codedHashed, sum: good},
		{name: "not as stored", class: codedHashed, sum: sumOf(protocol.HashMD5, "dogs"), events: "BSUM"},
		{name: "NSUM", class: codedHashed, events: "NSUM"},
		{name: "NSUM, by the database", class: codedHashed, mode: policy, events: "NSUM"},
		{name: "BALG", class: codedHashed, sum: sumOf(protocol.HashSHA1, content), events: "BALG"},
		{name: "nothing reads the file", class: codedHashed, sum: good, setup: func(r *rig) {
			r.options.Storage = unreadableFile{r.disks}
		}, stalled: true},
		{name: "blocks are read where content is", class: codedHashed, sum: good, setup: func(r *rig) { bad(r, 2) },
			events: "BSUM:2 REPL", on: "1 3 4 5", queued: "replicate bad:2"},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t)
				before := r.encode(1, cmp.Or(c.class, coded), five...)
				if c.class == double && c.name == "of a class of copies" {
					r.store.SetLocations(1, five...)
					f, _ := r.store.File(1)
					f.ClassID = double
					r.store.PutEncoded(f.File, before)
				}
				if !c.sum.IsZero() {
					if err := r.store.SetChecksum(t.Context(), 1, c.sum); err != nil {
						t.Fatal(err)
					}
				}
				if c.setup != nil {
					c.setup(r)
				}
				tally, stalled := r.check(c.mode, 1)
				if got := r.events(1); got != c.events {
					t.Errorf("events %q, want %q", got, c.events)
				}
				f, _ := r.store.File(1)
				if got := numbers(f.Devices); got != cmp.Or(c.on, "1 2 3 4 5") {
					t.Errorf("recorded on %q, want %q", got, c.on)
				}
				if got := r.queued(1); got != c.queued {
					t.Errorf("queued: %q, want %q", got, c.queued)
				}
				if (len(stalled) == 1) != c.stalled || (tally.Files == 1) == c.stalled {
					t.Errorf("stalled %v, %d files checked", stalled, tally.Files)
				}
				e, encoded := r.store.Encoding(1)
				if encoded == c.copies {
					t.Errorf("encoded: %v", encoded)
				}
				if encoded && (numbers(e.Devices) != cmp.Or(c.shards, numbers(five)) || e.Epoch != cmp.Or(c.epoch, before.Epoch)) {
					t.Errorf("shards on %v as of %d", e.Devices, e.Epoch)
				}
				want := c.sum
				if strings.Contains(c.events, "NSUM") {
					want = good
				}
				if sum, err := r.store.Checksum(t.Context(), 1); err != nil || !sum.Equal(want) {
					t.Errorf("checksum %v, %v", sum, err)
				}
				if c.stalled || !encoded || strings.Contains(c.events, "GONE") {
					return
				}
				// All that are left know where they are.
				for at, s := range r.disks.shards {
					if slices.Contains(f.Devices, at.Dev) && (s.Epoch != e.Epoch || !slices.Equal(s.Devices, e.Devices)) {
						t.Errorf("dev%d has %v as of %d", at.Dev, s.Devices, s.Epoch)
					}
				}
			})
		})
	}
}

// unreadableFile reads no whole file.
type unreadableFile struct{ *disks }

func (u unreadableFile) Verify(_ context.Context, url string, _ int64, _ protocol.HashType, _ string) (storage.Verified, error) {
	return storage.Verified{}, &storage.StatusError{Method: "GET", URL: url, Status: 503}
}

// TestOneShardComesBack: nothing of a file that cannot be read goes, and it is
// well again with the first shard that is back.
func TestOneShardComesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		r.encode(1, coded, devsOf("1 3 5 2 4")...)
		r.disks.files = map[protocol.DevID]map[protocol.FID]bytesOn{}
		kept := make(map[protocol.DevID]protocol.ShardState)
		for _, dev := range devsOf("1 2 3") {
			kept[dev] = r.disks.shards[protocol.FIDOn{FID: 1, Dev: dev}]
			r.disks.removeShard(dev, 1)
		}
		for range 2 {
			r.check(Mode{Content: true}, 1)
		}
		if got := numbers(r.store.Locations(1)); got != "1 2 3 4 5" || r.queued(1) != "" {
			t.Errorf("recorded on %s, queued %q", got, r.queued(1))
		}
		r.disks.putShard(kept[2])
		r.check(Mode{Content: true}, 1)
		if got := numbers(r.store.Locations(1)); got != "2 4 5" || r.queued(1) != "replicate" {
			t.Errorf("recorded on %s, queued %q after %s", got, r.queued(1), r.events(1))
		}
	})
}

// TestFewQuestionsForShards checks a thousand files in shards that are well.
func TestFewQuestionsForShards(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		var fids []protocol.FID
		for fid := protocol.FID(1); fid <= 1000; fid++ {
			r.encode(fid, coded, devsOf("1 3 5 2 4")...)
			fids = append(fids, fid)
		}
		tally, stalled, err := NewChecker(r.options).Check(t.Context(), r.files(fids...), Mode{})
		if err != nil || tally.Files != 1000 || len(stalled) != 0 || len(tally.Events) != 0 {
			t.Fatalf("%+v, stalled %v, %v", tally, stalled, err)
		}
		if n := r.store.Calls("EncodingsOf"); n != 1 {
			t.Errorf("encodings were read %d times", n)
		}
		if r.disks.runs > 5 {
			t.Errorf("devices were asked %d times for 5000 shards", r.disks.runs)
		}
		if r.log.Len() > 0 || len(r.notes) > 0 {
			t.Errorf("a healthy check is not quiet: %s%q", r.log.String(), r.notes)
		}
	})
}

// TestShardsFailAnywhere lets the database go away at each call in turn: the
// file can be read at any time, and the next check finishes the work.
func TestShardsFailAnywhere(t *testing.T) {
	for n := 1; ; n++ {
		finished := false
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t)
			r.encode(1, codedHashed, devsOf("1 3 5 2 4")...)
			r.disks.removeShard(5, 1)
			r.disks.changeShard(2, 1, func(s *protocol.ShardState) { s.Bad = 1 })
			r.encode(2, coded, devsOf("1 3 5 2 4")...)
			r.disks.changeShard(1, 2, func(s *protocol.ShardState) { s.Index = 1 })
			r.disks.changeShard(3, 2, func(s *protocol.ShardState) { s.Index = 0 })
			files := r.files(1, 2)
			calls := 0
			r.store.Before = func(method string) error {
				if calls++; calls == n && method != "Unlock" {
					return fmt.Errorf("%s: %w", method, schema.ErrUnavailable)
				}
				return nil
			}
			_, _, err := NewChecker(r.options).Check(t.Context(), files, Mode{Content: true})
			finished = calls < n
			r.store.Before = nil
			if err != nil && !errors.Is(err, schema.ErrUnavailable) {
				t.Fatalf("call %d: %v", n, err)
			}
			for _, dev := range devsOf("1 3 4") {
				if !slices.Contains(r.store.Locations(1), dev) {
					t.Errorf("call %d: a good shard was lost: %v", n, r.store.Locations(1))
				}
			}
			if len(r.store.Locations(1)) < 5 && !strings.Contains(r.queued(1), "replicate") {
				t.Errorf("call %d: shards went, and nothing is queued", n)
			}
			r.check(Mode{Content: true}, 1, 2)
			if got := numbers(r.store.Locations(1)); got != "1 3 4" || r.queued(1) != "replicate bad:2" {
				t.Errorf("call %d: recorded on %s, queued %q", n, got, r.queued(1))
			}
			e, _ := r.store.Encoding(2)
			if numbers(e.Devices) != "3 1 5 2 4" || e.Epoch != 6 || r.queued(2) != "" {
				t.Errorf("call %d: shards on %v as of %d, queued %q", n, e.Devices, e.Epoch, r.queued(2))
			}
		})
		if finished {
			if n < 8 {
				t.Errorf("only %d calls", n)
			}
			return
		}
	}
}

// TestShardBandwidth: blocks are read within the bandwidth.
func TestShardBandwidth(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		r.encode(1, coded, devsOf("1 3 5 2 4")...)
		r.options.Bandwidth = NewBandwidth()
		r.options.Bandwidth.SetLimit(1)
		r.options.Bandwidth.SetBurst(4)
		began := time.Now()
		tally, _ := r.check(Mode{Content: true}, 1)
		// Four bytes of ten in each of five shards.
		if took := time.Since(began); took < 15*time.Second || took > 17*time.Second || tally.Bytes != 20 {
			t.Errorf("%d bytes in %v", tally.Bytes, took)
		}
	})
}
