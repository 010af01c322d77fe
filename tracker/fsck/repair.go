package fsck

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/schema"
	"github.com/mogile/mogile/tracker/cluster"
	"github.com/mogile/mogile/tracker/work"
)

// repair looks at suspects again, under their locks, and repairs what is still
// wrong with them.
func (b *batch) repair(ctx context.Context, suspects []*inquiry) error {
	fids := make([]protocol.FID, len(suspects))
	for i, q := range suspects {
		fids[i] = q.file.FID
	}
	work.Alive(ctx)
	held, err := b.c.o.Fids.TryLock(ctx, fids...)
	if err != nil {
		return err
	}
	defer func() {
		if err := held.Release(ctx); err != nil {
			b.c.o.Log.Warn().Err(err).Int("fids", len(fids)).Msg("fid locks not given back")
		}
	}()
	suspects = slices.DeleteFunc(slices.Clone(suspects), func(q *inquiry) bool {
		if !held.Has(q.file.FID) {
			b.stall(q.file.FID) // somebody works on it
			return true
		}
		return false
	})
	if len(suspects) == 0 {
		return nil
	}
	locked, cancel := held.Context(ctx)
	defer cancel()
	left, err := b.repairLocked(locked, suspects)
	if err != nil && ctx.Err() == nil && errors.Is(context.Cause(locked), work.ErrLockLost) {
		for _, q := range left {
			b.stall(q.file.FID)
		}
		return nil
	}
	return err
}

// repairLocked is repair with the locks held. After an error left are those
// with which it is not through.
func (b *batch) repairLocked(ctx context.Context, suspects []*inquiry) (left []*inquiry, err error) {
	files, err := b.reread(ctx, suspects)
	if err != nil {
		return suspects, err
	}
	var look []*inquiry
	for _, q := range files {
		if len(q.away) == 0 && !b.mode.namespace(q.subject) {
			look = append(look, q)
		}
	}
	if err := b.observe(ctx, look); err != nil {
		return files, err
	}
	verdicts, searched := make(map[*inquiry]*verdict), make(map[*inquiry]*search)
	for _, q := range look {
		if q.failed {
			continue
		}
		e := q.evidence(b.mode)
		v := judge(e)
		verdicts[q] = &v
		if v.lost(e.copies) {
			searched[q] = nil
		}
	}
	if err := b.search(ctx, searched); err != nil {
		return files, err
	}
	for q := range searched {
		if q.encoding != nil { // shards that were found count
			v := judge(q.evidence(b.mode))
			verdicts[q] = &v
		}
	}
	var plans []repair
	for _, q := range files {
		r := b.mode.plan(q.subject, verdicts[q], searched[q], func(devs []protocol.DevID, e *schema.Encoding) bool {
			return b.likes(q, devs, e)
		})
		if r.stalled {
			for _, dev := range q.away {
				b.gone(dev, errNotObserved)
			}
		}
		plans = append(plans, r)
	}
	if err := b.announce(ctx, plans); err != nil {
		return files, err
	}
	for i := range plans {
		if err := b.act(ctx, &plans[i]); err != nil {
			return files, err
		}
	}
	return nil, b.settle(ctx, plans)
}

// reread reads suspects' rows again and leaves out those whose file is gone.
// What was observed of a file that has changed meanwhile is forgotten.
func (b *batch) reread(ctx context.Context, suspects []*inquiry) ([]*inquiry, error) {
	snap := b.c.o.Cluster.Snapshot()
	before := make(map[protocol.FID]*inquiry, len(suspects))
	fids := make([]protocol.FID, len(suspects))
	for i, q := range suspects {
		before[q.file.FID] = q
		fids[i] = q.file.FID
	}
	files, err := b.c.o.Store.FilesByFID(ctx, fids)
	if err != nil {
		return nil, fmt.Errorf("read %d fids: %w", len(fids), err)
	}
	rows, err := b.checksums(ctx, snap, files)
	if err != nil {
		return nil, err
	}
	encodings, err := b.encodings(ctx, files)
	if err != nil {
		return nil, err
	}
	slices.SortFunc(files, func(a, b schema.LocatedFile) int { return int(a.FID) - int(b.FID) })
	var still []*inquiry
	for _, f := range files {
		was := before[f.FID]
		delete(before, f.FID)
		q, err := b.inquire(snap, f, rows[f.FID], encodings)
		if err != nil {
			b.c.o.Log.Warn().Err(err).Uint64("fid", uint64(f.FID)).Msg("file cannot be checked")
			b.stall(f.FID)
			continue
		}
		if slices.Equal(f.Devices, was.file.Devices) && f.Length == was.file.Length && q.digest == was.digest && q.row.Equal(was.row) &&
			reflect.DeepEqual(q.encoding, was.encoding) {
			q.content = was.content
			for dev, o := range was.copies {
				if !slices.Contains(q.dead, dev) {
					q.copies[dev] = o
				}
			}
		}
		still = append(still, q)
	}
	for range before { // deleted meanwhile
		b.finish(outcomeDeleted)
	}
	return still, nil
}

// search looks for copies of files on all devices that are not dead, in random
// order, and sets what it found for each.
func (b *batch) search(ctx context.Context, files map[*inquiry]*search) error {
	if len(files) == 0 {
		return nil
	}
	ctx, stop := b.whileAlive(ctx)
	defer stop()
	var mu sync.Mutex // guards files
	var g errgroup.Group
	g.SetLimit(searches)
	all := make([]*inquiry, 0, len(files))
	for q := range files {
		for _, d := range q.snap.DeviceList {
			if !d.Dead() && !slices.Contains(q.file.Devices, d.ID) {
				q.order = append(q.order, d.ID)
			}
		}
		b.rng.Shuffle(len(q.order), func(i, j int) { q.order[i], q.order[j] = q.order[j], q.order[i] })
		all = append(all, q)
	}
	for _, q := range all {
		g.Go(func() error {
			s := b.lookEverywhere(ctx, q)
			mu.Lock()
			defer mu.Unlock()
			files[q] = &s
			return nil
		})
	}
	_ = g.Wait() // they return none
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return nil
}

func (b *batch) lookEverywhere(ctx context.Context, q *inquiry) search {
	if q.encoding != nil {
		return b.searchShards(ctx, q)
	}
	return b.searchFor(ctx, q)
}

// searchFor looks for a copy of one file. One that cannot be told from a wrong
// one by its digest, or is told so, is taken only if there is no other.
func (b *batch) searchFor(ctx context.Context, q *inquiry) search {
	var s search
	var doubtful protocol.DevID
	for some := range slices.Chunk(q.order, searchAtOnce) {
		found := b.lookOn(ctx, q, some)
		for i, dev := range some {
			switch found[i].state {
			case unasked:
				s.away = true
			case intact:
				if b.matches(ctx, q, dev) {
					return search{found: dev, matches: true}
				}
				if doubtful == 0 {
					doubtful = dev
				}
			}
		}
		if ctx.Err() != nil {
			return s
		}
	}
	if doubtful != 0 && !s.away {
		return search{found: doubtful}
	}
	return s
}

// lookOn asks devices at once whether they have a copy of the file's length.
func (b *batch) lookOn(ctx context.Context, q *inquiry, devs []protocol.DevID) []observation {
	found := make([]observation, len(devs))
	var g sync.WaitGroup
	for i, dev := range devs {
		d := q.snap.Device(dev)
		if !d.Readable() {
			b.gone(dev, errNotObserved)
		}
		if b.isGone(dev) {
			continue
		}
		g.Go(func() {
			release, err := b.c.asks.Acquire(ctx, dev)
			if err != nil {
				return
			}
			defer release()
			answer := b.c.o.Storage.Sizes(ctx, []string{d.ReadURL(q.file.FID, cluster.Viewer{})})[0]
			if ctx.Err() == nil {
				found[i] = b.sized(ctx, dev, q, answer.Bytes, answer.Err)
			}
		})
	}
	g.Wait()
	return found
}

// matches reports whether a copy found in a search is what the database says of
// the file, as far as that is to be checked: its digest, and that it has not
// rotted.
func (b *batch) matches(ctx context.Context, q *inquiry, dev protocol.DevID) bool {
	if q.digest == protocol.HashNone {
		return true
	}
	probe := &inquiry{subject: q.subject, digest: q.digest, snap: q.snap, copies: make(map[protocol.DevID]observation)}
	b.read(ctx, dev, probe)
	o := probe.copies[dev]
	return o.state == intact && !o.sum.IsZero() && !o.rotten() && (q.row.Type != q.digest || o.sum.Equal(q.row))
}

// announce logs the events of repairs and queues their files for replication,
// before anything else is done: a tracker that dies in the middle leaves a file
// that is short of a copy in the queue.
func (b *batch) announce(ctx context.Context, plans []repair) error {
	var events []schema.FsckEvent
	var requeue []protocol.FID
	urgent := make(map[int64][]protocol.FID) // by their spare shards
	for _, r := range plans {
		for _, e := range r.events {
			row := schema.FsckEvent{FID: r.file.FID, Code: e.code}
			if e.dev != 0 {
				row.DevID = &e.dev
			}
			events = append(events, row)
			if e.code == CodeGone || e.code == CodeManySums || e.code == CodeBadSum && e.dev == 0 {
				what := "file has no copy that is known to be good"
				if r.encoding != nil {
					what = "file has too few shards that are known to be good, or not the content that it should have"
				}
				b.c.o.Log.Error().Uint64("fid", uint64(r.file.FID)).Str("code", e.code).Uints32("devids", ids(r.file.Devices)).Msg(what)
			}
		}
		switch {
		case r.requeue && r.lacks:
			urgent[r.spare] = append(urgent[r.spare], r.file.FID)
		case r.requeue:
			requeue = append(requeue, r.file.FID)
		}
	}
	if err := b.log(ctx, events); err != nil {
		return err
	}
	for spare, fids := range urgent {
		if err := b.c.o.Store.QueueShards(ctx, fids, spare); err != nil {
			return fmt.Errorf("queue %d fids in shards for replication: %w", len(fids), err)
		}
	}
	if len(requeue) == 0 {
		return nil
	}
	if err := b.c.o.Store.QueueReplication(ctx, requeue, 0, requeueDelay); err != nil {
		return fmt.Errorf("queue %d fids for replication: %w", len(requeue), err)
	}
	return nil
}

func ids(devs []protocol.DevID) []uint32 {
	n := make([]uint32, len(devs))
	for i, d := range devs {
		n[i] = uint32(d)
	}
	return n
}

// log appends events to fsck_log and counts them.
func (b *batch) log(ctx context.Context, events []schema.FsckEvent) error {
	if len(events) == 0 {
		return nil
	}
	if err := b.c.o.Store.LogFsck(ctx, events); err != nil {
		return fmt.Errorf("log %d events: %w", len(events), err)
	}
	for _, e := range events {
		b.tally.Events[e.Code]++
		b.c.metrics.events.WithLabelValues(e.Code).Inc()
	}
	return nil
}

// act changes the namespace as planned. Where it has changed meanwhile without
// the lock, as by the reaper, the file is left for later.
func (b *batch) act(ctx context.Context, r *repair) error {
	err := b.change(ctx, r)
	switch {
	case errors.Is(err, schema.ErrStale):
		r.stalled = true
	case errors.Is(err, schema.ErrGone):
		// Deleted meanwhile; what was found will be deleted too.
	case errors.Is(err, schema.ErrLastCopy):
		// Then it stays.
	case err != nil:
		return fmt.Errorf("repair fid %d: %w", r.file.FID, err)
	}
	return nil
}

func (b *batch) change(ctx context.Context, r *repair) error {
	store, fid, devs := b.c.o.Store, r.file.FID, r.file.Devices
	if r.found != 0 && r.encoding != nil {
		return store.RecordDecoding(ctx, fid, r.encoding.ID, []protocol.DevID{r.found}, devs)
	}
	if len(r.placed) > 0 {
		e, err := store.PlaceShards(ctx, fid, r.encoding.ID, r.epoch, r.placed, devs)
		if err != nil {
			return err
		}
		devs, _ = replaced(devs, *r.encoding, r.placed)
		b.remind(ctx, b.c.o.Cluster.Snapshot(), e, e.Devices)
	}
	if r.found != 0 {
		if err := store.AddLocation(ctx, fid, r.found, devs); err != nil {
			return err
		}
		devs = append(slices.Clone(devs), r.found)
	}
	if !r.sum.IsZero() {
		if err := store.SetChecksum(ctx, fid, r.sum); err != nil {
			return err
		}
	}
	if len(r.forget) > 0 {
		if err := store.DeletedLocations(ctx, fid, r.forget); err != nil {
			return err
		}
		devs = without(devs, r.forget...)
	}
	for _, dev := range r.drop {
		if err := store.DropBadLocation(ctx, fid, dev, devs); err != nil {
			return err
		}
		devs = without(devs, dev)
	}
	return nil
}

func without(devs []protocol.DevID, gone ...protocol.DevID) []protocol.DevID {
	return slices.DeleteFunc(slices.Clone(devs), func(d protocol.DevID) bool { return slices.Contains(gone, d) })
}

// settle counts what was repaired, and devcounts anew.
func (b *batch) settle(ctx context.Context, plans []repair) error {
	var counts, lost []protocol.FID
	for _, r := range plans {
		switch {
		case r.stalled:
			b.stall(r.file.FID)
			continue
		case len(r.events) > 0:
			b.finish(outcomeRepaired)
		default:
			b.finish(outcomeClean)
		}
		switch {
		case r.lost:
			lost = append(lost, r.file.FID)
		case !r.requeue: // else replication counts
			counts = append(counts, r.file.FID)
		}
	}
	snap := b.c.o.Cluster.Snapshot()
	if err := b.recount(ctx, snap, counts); err != nil {
		return err
	}
	if len(lost) > 0 && !skipsDevcount(snap) {
		if _, err := b.c.o.Store.Recount(ctx, lost); err != nil { // GONE says it all
			return fmt.Errorf("count devices of %d fids: %w", len(lost), err)
		}
	}
	return nil
}

// skipsDevcount reports whether devcount is of no interest to anybody.
func skipsDevcount(snap *cluster.Snapshot) bool {
	return protocol.Truthy(snap.Settings["skip_devcount"])
}

// recount corrects devcount of files where it is wrong.
func (b *batch) recount(ctx context.Context, snap *cluster.Snapshot, fids []protocol.FID) error {
	if len(fids) == 0 || skipsDevcount(snap) {
		return nil
	}
	wrong, err := b.c.o.Store.Recount(ctx, fids)
	if err != nil {
		return fmt.Errorf("count devices of %d fids: %w", len(fids), err)
	}
	slices.Sort(wrong)
	events := make([]schema.FsckEvent, len(wrong))
	for i, fid := range wrong {
		events[i] = schema.FsckEvent{FID: fid, Code: CodeCount}
	}
	return b.log(ctx, events)
}
