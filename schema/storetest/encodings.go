package storetest

import (
	"errors"
	"slices"
	"sync/atomic"
	"time"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/schema"
)

var encodingCases = []testCase{
	{"RecordEncoding", checkRecordEncoding},
	{"RecordEncoding/refusals", checkEncodingRefused},
	{"RecordEncoding/race", checkEncodingRace},
	{"PlaceShards", checkPlaceShards},
	{"PlaceShards/refusals", checkPlaceRefused},
	{"PlaceShards/race", checkPlaceRace},
	{"RecordDecoding", checkRecordDecoding},
	{"FinishDeletion/shards", checkShardsForgotten},
	{"ClassUsage", checkClassUsage},
	{"Reap/urgency", checkReapUrgency},
}

// coded is an encoding of fid in 2+1 shards.
func coded(fid protocol.FID, on ...protocol.DevID) schema.Encoding {
	return schema.Encoding{FID: fid, ID: 1<<63 | 5, K: 2, M: 1, Block: 4096, Epoch: 1, Devices: on}
}

// encoded fails the case unless fid is encoded like want; nil: not at all.
func (e *env) encoded(fid protocol.FID, want *schema.Encoding) {
	e.Helper()
	got, err := e.EncodingsOf(e.ctx, []protocol.FID{fid, fid + 1_000_000})
	e.must(err)
	all := map[protocol.FID]schema.Encoding{}
	if want != nil {
		all[fid] = *want
	}
	e.same("encodings", got, all)
}

// leaving are the entries of copy_to_delete, by device.
func (e *env) leaving(fid protocol.FID) map[protocol.DevID][]schema.What {
	e.Helper()
	found := make(map[protocol.DevID][]schema.What)
	for _, r := range e.debug(fid).Queues {
		if r.Queue == schema.QueueCopyDelete {
			found[*r.DevID] = append(found[*r.DevID], r.What)
		}
	}
	return found
}

// announce enters shards that are about to be made.
func (e *env) announce(enc schema.Encoding, on ...protocol.DevID) {
	e.Helper()
	for _, dev := range on {
		e.must(e.AnnounceCopy(e.ctx, enc.FID, dev, schema.ShardOf(enc.ID), time.Minute))
	}
}

func checkRecordEncoding(e *env) {
	fid, other := e.putOn("a", 1, 2), e.putOn("b", 1, 2)
	enc := coded(fid, 3, 1, 4)
	e.announce(enc, 3, 1, 4)
	e.encoded(fid, nil)
	e.must(e.RecordEncoding(e.ctx, enc, devs(2, 1)))
	e.encoded(fid, &enc)
	e.located(fid, devs(1, 3, 4), devs(1, 2))
	e.devcount(fid, 3)
	e.same("entries", e.leaving(fid), map[protocol.DevID][]schema.What{1: {schema.Raw}, 2: {schema.Raw}})
	e.located(other, devs(1, 2), nil)

	// Both kinds may leave one device.
	e.must(e.QueueCopyDeletion(e.ctx, fid, 1, schema.ShardOf(enc.ID)))
	e.same("entries", len(e.leaving(fid)[1]), 2)
	jobs := e.claim(schema.QueueCopyDelete)
	e.same("jobs", len(jobs), 3)
	for _, j := range jobs {
		if j.DevID == 1 && j.What == schema.Raw {
			n, err := e.Finish(e.ctx, []schema.Job{j})
			e.must(err)
			e.same("finished", n, 1)
		}
	}
	e.same("entries", e.leaving(fid)[1], []schema.What{schema.ShardOf(enc.ID)})

	on := "1"
	e.must(e.SetSetting(e.ctx, "skip_devcount", &on))
	enc = coded(other, 3, 1, 4)
	e.must(e.RecordEncoding(e.ctx, enc, devs(1, 2)))
	e.devcount(other, 2)
}

func checkEncodingRefused(e *env) {
	fid := e.putOn("a", 1, 2)
	enc := coded(fid, 3, 1, 4)
	e.announce(enc, 3, 1, 4)
	e.same("jobs", len(e.claim(schema.QueueCopyDelete)), 0)
	e.want(e.RecordEncoding(e.ctx, enc, devs(1)), schema.ErrStale)
	e.want(e.RecordEncoding(e.ctx, enc, devs(1, 2, 3)), schema.ErrStale)
	e.encoded(fid, nil)
	e.located(fid, devs(1, 2), devs(1, 3, 4))
	e.same("jobs", len(e.claim(schema.QueueCopyDelete)), 3) // the shards go
	_, err := e.DeleteKey(e.ctx, e.dmid, "a")
	e.must(err)
	e.announce(enc, 3, 1, 4)
	e.want(e.RecordEncoding(e.ctx, enc, devs(1, 2)), schema.ErrGone)
	e.encoded(fid, nil)
	e.same("jobs", len(e.claim(schema.QueueCopyDelete)), 3)

	fid = e.putOn("b", 1, 2)
	for _, bad := range []func(*schema.Encoding){
		func(c *schema.Encoding) { c.ID = 0 },
		func(c *schema.Encoding) { c.K = 0 },
		func(c *schema.Encoding) { c.M = protocol.MaxParityShards + 1 },
		func(c *schema.Encoding) { c.Block = 0 },
		func(c *schema.Encoding) { c.Epoch = 0 },
		func(c *schema.Encoding) { c.Devices = devs(1, 2) },
		func(c *schema.Encoding) { c.Devices = devs(1, 2, 1) },
		func(c *schema.Encoding) { c.Devices = devs(1, 2, 0) },
	} {
		c := coded(fid, 3, 1, 4)
		bad(&c)
		if err := e.RecordEncoding(e.ctx, c, devs(1, 2)); err == nil {
			e.Fatalf("%+v was recorded", c)
		}
	}
	e.encoded(fid, nil)
}

// checkEncodingRace: of those who encode, copy and drop one file at once, each of
// whom has seen the same, one succeeds.
func checkEncodingRace(e *env) {
	stores := []schema.Store{e.Store, e.db.Open(e)}
	for range scale(e, 20) {
		fid := e.putOn("k", 1, 2)
		var won atomic.Int32
		parallel(8, func(i int) {
			s := stores[i%2]
			var err error
			switch i / 2 {
			case 0, 1:
				c := coded(fid, 3, 4, 5)
				c.ID = uint64(i + 1)
				err = s.RecordEncoding(e.ctx, c, devs(1, 2))
			case 2:
				err = s.AddLocation(e.ctx, fid, protocol.DevID(6+i%2), devs(1, 2))
			default:
				err = s.DropLocation(e.ctx, fid, protocol.DevID(1+i%2), devs(1, 2))
			}
			if err == nil {
				won.Add(1)
			} else if !isStale(err) {
				e.Error(err)
			}
		})
		if n := won.Load(); n != 1 {
			e.Fatalf("%d of 8 succeeded", n)
		}
		encodings, err := e.EncodingsOf(e.ctx, []protocol.FID{fid})
		e.must(err)
		at, err := e.LocationsOf(e.ctx, []protocol.FID{fid})
		e.must(err)
		if len(encodings) == 1 {
			e.same("locations", at[fid], devs(3, 4, 5))
		}
		_, err = e.DeleteKey(e.ctx, e.dmid, "k")
		e.must(err)
	}
}

func checkPlaceShards(e *env) {
	fid := e.putOn("a", 1)
	enc := coded(fid, 3, 1, 4)
	e.must(e.RecordEncoding(e.ctx, enc, devs(1)))
	_, err := e.Finish(e.ctx, e.claim(schema.QueueCopyDelete))
	e.must(err)

	// One moves.
	e.announce(enc, 5)
	got, err := e.PlaceShards(e.ctx, fid, enc.ID, 2, map[int]protocol.DevID{1: 5}, devs(1, 3, 4))
	e.must(err)
	enc.Devices, enc.Epoch = devs(3, 5, 4), 2
	e.same("encoding", got, enc)
	e.encoded(fid, &enc)
	e.located(fid, devs(3, 4, 5), devs(1))
	e.devcount(fid, 3)
	e.same("entries", e.leaving(fid), map[protocol.DevID][]schema.What{1: {schema.ShardOf(enc.ID)}})

	// One that was missing is made where it was, another elsewhere.
	e.must(e.DeletedLocations(e.ctx, fid, devs(3, 4)))
	_, err = e.PlaceShards(e.ctx, fid, enc.ID, 3, map[int]protocol.DevID{0: 3, 2: 6}, devs(5))
	e.must(err)
	enc.Devices, enc.Epoch = devs(3, 5, 6), 3
	e.encoded(fid, &enc)
	e.located(fid, devs(3, 5, 6), devs(1))

	// Two change places, and nothing goes.
	_, err = e.PlaceShards(e.ctx, fid, enc.ID, 7, map[int]protocol.DevID{0: 5, 1: 3}, devs(3, 5, 6))
	e.must(err)
	enc.Devices, enc.Epoch = devs(5, 3, 6), 7
	e.encoded(fid, &enc)
	e.located(fid, devs(3, 5, 6), devs(1))

	// It comes back to where one was to be deleted.
	_, err = e.PlaceShards(e.ctx, fid, enc.ID, 8, map[int]protocol.DevID{2: 1}, devs(3, 5, 6))
	e.must(err)
	e.located(fid, devs(1, 3, 5), devs(6))

	// A bad one is made anew where it was.
	e.must(e.DropBadLocation(e.ctx, fid, 3, devs(1, 3, 5)))
	e.same("entries", e.leaving(fid)[3], []schema.What{schema.Bad})
	_, err = e.PlaceShards(e.ctx, fid, enc.ID, 9, map[int]protocol.DevID{1: 3}, devs(1, 5))
	e.must(err)
	e.located(fid, devs(1, 3, 5), devs(6))
	e.devcount(fid, 3)
}

// checkPlaceRace: of those who move one shard at once, while another is found to
// be missing and the file is deleted, one at most succeeds, and no shard is left
// that nobody knows of.
func checkPlaceRace(e *env) {
	stores := []schema.Store{e.Store, e.db.Open(e)}
	for round := range scale(e, 20) {
		fid := e.putOn("k", 1)
		enc := coded(fid, 3, 1, 4)
		e.must(e.RecordEncoding(e.ctx, enc, devs(1)))
		e.announce(enc, 10, 11, 12, 13)
		var won atomic.Uint32
		parallel(6, func(i int) {
			s := stores[i%2]
			switch {
			case i < 4:
				to := protocol.DevID(10 + i)
				switch _, err := s.PlaceShards(e.ctx, fid, enc.ID, 2, map[int]protocol.DevID{1: to}, devs(1, 3, 4)); {
				case err == nil:
					if was := won.Swap(uint32(to)); was != 0 {
						e.Errorf("the shard was moved to %d, and to %d", was, to)
					}
				case !isStale(err) && !errors.Is(err, schema.ErrGone):
					e.Error(err)
				}
			case i == 4 && round%2 == 0:
				if err := s.DeletedLocations(e.ctx, fid, devs(3)); err != nil {
					e.Error(err)
				}
			case i == 5 && round%3 == 0:
				if _, err := s.DeleteKey(e.ctx, e.dmid, "k"); err != nil {
					e.Error(err)
				}
			}
		})
		got, err := e.EncodingsOf(e.ctx, []protocol.FID{fid})
		e.must(err)
		if to := protocol.DevID(won.Load()); to != 0 {
			enc.Devices[1], enc.Epoch = to, 2
		}
		e.same("encoding", got[fid], enc)
		on, leaving := e.debug(fid).Devices, e.leaving(fid)
		for _, dev := range devs(1, 4, 10, 11, 12, 13) {
			held := slices.Contains(on, dev) && slices.Contains(enc.Devices, dev)
			if goes := slices.Contains(leaving[dev], schema.ShardOf(enc.ID)); held == goes {
				e.Fatalf("device %d: a location %t, leaving %t; the file is on %v, its shards on %v", dev, held, goes, on, enc.Devices)
			}
		}
		if _, err := e.DeleteKey(e.ctx, e.dmid, "k"); err != nil && !errors.Is(err, protocol.ErrUnknownKey) {
			e.Fatal(err)
		}
	}
}

func checkPlaceRefused(e *env) {
	fid := e.putOn("a", 1)
	enc := coded(fid, 3, 1, 4)
	to5 := map[int]protocol.DevID{1: 5}
	place := func(id uint64, epoch int, placed map[int]protocol.DevID, want error, seen ...protocol.DevID) {
		e.Helper()
		_, err := e.PlaceShards(e.ctx, fid, id, epoch, placed, seen)
		e.want(err, want)
	}
	place(enc.ID, 2, to5, schema.ErrStale, 1) // in copies
	e.must(e.RecordEncoding(e.ctx, enc, devs(1)))
	place(enc.ID+1, 2, to5, schema.ErrStale, 1, 3, 4)
	place(enc.ID, 1, to5, schema.ErrStale, 1, 3, 4)
	place(enc.ID, 2, to5, schema.ErrStale, 1, 3)
	place(enc.ID, 2, map[int]protocol.DevID{1: 3}, schema.ErrStale, 1, 3, 4)
	place(enc.ID, 2, map[int]protocol.DevID{3: 5}, schema.ErrStale, 1, 3, 4)
	place(enc.ID, 2, map[int]protocol.DevID{-1: 5}, schema.ErrStale, 1, 3, 4)
	e.encoded(fid, &enc)
	e.located(fid, devs(1, 3, 4), devs(1))
	_, err := e.DeleteKey(e.ctx, e.dmid, "a")
	e.must(err)
	place(enc.ID, 2, to5, schema.ErrGone, 1, 3, 4)
}

func checkRecordDecoding(e *env) {
	fid := e.putOn("a", 1)
	enc := coded(fid, 3, 1, 4)
	e.must(e.RecordEncoding(e.ctx, enc, devs(1)))
	e.want(e.RecordDecoding(e.ctx, fid, enc.ID+1, devs(3, 5), devs(1, 3, 4)), schema.ErrStale)
	e.want(e.RecordDecoding(e.ctx, fid, enc.ID, devs(3, 5), devs(1, 3)), schema.ErrStale)
	for _, on := range [][]protocol.DevID{nil, devs(3, 3)} {
		if err := e.RecordDecoding(e.ctx, fid, enc.ID, on, devs(1, 3, 4)); err == nil {
			e.Fatalf("copies on %v were recorded", on)
		}
	}
	e.encoded(fid, &enc)
	e.must(e.AnnounceCopy(e.ctx, fid, 3, schema.Raw, time.Minute))
	e.must(e.AnnounceCopy(e.ctx, fid, 5, schema.Raw, time.Minute))
	e.must(e.RecordDecoding(e.ctx, fid, enc.ID, devs(5, 3), devs(1, 3, 4)))
	e.encoded(fid, nil)
	e.located(fid, devs(3, 5), devs(1, 3, 4))
	e.devcount(fid, 2)
	e.same("entries", e.leaving(fid), map[protocol.DevID][]schema.What{1: {schema.ShardOf(enc.ID), schema.Raw}, 3: {schema.ShardOf(enc.ID)}, 4: {schema.ShardOf(enc.ID)}})
	e.want(e.RecordDecoding(e.ctx, fid, enc.ID, devs(3, 5), devs(3, 5)), schema.ErrStale)

	// A copy that is added beside a shard that must go lets it go.
	e.must(e.AddLocation(e.ctx, fid, 4, devs(3, 5)))
	e.same("entries", e.leaving(fid)[4], []schema.What{schema.ShardOf(enc.ID)})

	// And it can be encoded anew.
	enc.ID, enc.Devices = 77, devs(6, 7, 8)
	e.must(e.RecordEncoding(e.ctx, enc, devs(3, 4, 5)))
	e.encoded(fid, &enc)
}

func checkShardsForgotten(e *env) {
	fid := e.putOn("a", 1)
	enc := coded(fid, 3, 1, 4)
	e.must(e.RecordEncoding(e.ctx, enc, devs(1)))
	_, err := e.DeleteKey(e.ctx, e.dmid, "a")
	e.must(err)
	e.encoded(fid, &enc)
	e.purge(fid)
	e.encoded(fid, nil)
}

func checkClassUsage(e *env) {
	class, err := e.CreateClass(e.ctx, "d", schema.Class{Name: "ec", MinDevCount: 2})
	e.must(err)
	usage, err := e.ClassUsage(e.ctx)
	e.must(err)
	e.same("usage", usage, []schema.ClassUsage{})
	e.putOn("a", 1, 2)
	e.putOn("b", 1)
	// Two stripes of 2 blocks of 4096, and one that is shorter.
	fid := e.open("c")
	c := e.closing(fid, "c")
	c.Length, c.ClassID = 2*2*4096+11, class
	e.must(e.CloseFile(e.ctx, c))
	e.must(e.RecordEncoding(e.ctx, coded(fid, 3, 1, 4), devs(1)))
	e.must(e.DeletedLocations(e.ctx, fid, devs(4)))
	usage, err = e.ClassUsage(e.ctx)
	e.must(err)
	e.same("usage", usage, []schema.ClassUsage{
		{DMID: e.dmid, Files: 2, Bytes: 22, Stored: 33},
		{DMID: e.dmid, ClassID: class, Files: 1, Bytes: 2*2*4096 + 11, Stored: 2 * (4096 + 2*(4096+4) + 6 + 4)},
	})
}

// checkReapUrgency has files in shards be due the sooner the fewer losses they
// survive, before everything else.
func checkReapUrgency(e *env) {
	e.device(5, schema.DeviceDead)
	e.device(6, schema.DeviceDead)
	safe, worse, copied := e.putOn("safe", 1, 2), e.putOn("worse", 1, 2), e.putOn("copied", 1, 5)
	wide := schema.Encoding{FID: safe, ID: 7, K: 2, M: 3, Block: 1, Epoch: 1, Devices: devs(1, 2, 3, 4, 5)}
	e.must(e.RecordEncoding(e.ctx, wide, devs(1, 2)))
	wide.FID, wide.Devices = worse, devs(1, 2, 3, 6, 5)
	e.must(e.RecordEncoding(e.ctx, wide, devs(1, 2)))
	e.replicated()
	e.reap(5, 100, 3)
	e.same("urgency", e.row(schema.QueueReplicate, safe).NextTry, int64(2))
	e.same("urgency", e.row(schema.QueueReplicate, worse).NextTry, int64(2))
	if r := e.row(schema.QueueReplicate, copied); r.NextTry < 1_000_000 {
		e.Errorf("a file in copies is queued as %+v", r)
	}
	e.reap(6, 100, 1)
	e.same("urgency", e.row(schema.QueueReplicate, worse).NextTry, int64(1))
	jobs := e.claim(schema.QueueReplicate)
	if len(jobs) < 2 || jobs[0].FID != worse || jobs[1].FID != safe {
		e.Fatalf("claimed %+v; want %d, then %d", jobs, worse, safe)
	}
	// A lease does not keep the file from being looked at again.
	e.device(4, schema.DeviceDead)
	e.reap(4, 100, 1)
	if n, err := e.Finish(e.ctx, jobs[1:2]); err != nil || n != 0 {
		e.Errorf("finished %d, %v with a lease from before", n, err)
	}
	e.same("urgency", e.row(schema.QueueReplicate, safe).NextTry, int64(1))
}
