package deleter

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/schema"
	"github.com/mogile/mogile/tracker/cluster"
	"github.com/mogile/mogile/tracker/storage"
	"github.com/mogile/mogile/tracker/work"
)

// lateChecks are when a device that had nothing of a fid is asked once more, in
// ages of a tempfile.
var lateChecks = [...]time.Duration{1, 6, 24}

// batch is some leased rows that are worked on together.
type batch struct {
	w    *Worker
	snap *cluster.Snapshot

	hasFile   map[protocol.FID]bool // it has a file row
	locations map[protocol.FID][]protocol.DevID
	encoded   map[protocol.FID]bool // its locations have shards, and no copies

	mu   sync.Mutex // guards away
	away map[protocol.DevID]bool
}

// errNoCluster is the end of a batch that came before the first snapshot.
var errNoCluster = errors.New("nothing is known of the cluster yet")

// do works on leased rows: it locks their fids, reads what there is of them,
// and calls each, under a context that ends when the locks are lost, for every
// row whose fid was free. Rows whose fid was not, and, where ctx ends, those
// that were not done with, are given back. Other errors leave rows to come back
// when their leases are over.
func (w *Worker) do(ctx context.Context, leases []*work.Lease, each func(context.Context, *batch, *work.Lease) error) error {
	if len(leases) == 0 {
		return nil
	}
	defer func() {
		for _, l := range leases {
			l.End()
		}
	}()
	err := w.locked(ctx, leases, each)
	if ctx.Err() != nil {
		return giveBack(ctx, leases, 0) // those that are done with have another token, or no row
	}
	return err
}

func (w *Worker) locked(ctx context.Context, leases []*work.Lease, each func(context.Context, *batch, *work.Lease) error) error {
	b := &batch{w: w, snap: w.o.Cluster.Snapshot(), away: make(map[protocol.DevID]bool)}
	if b.snap == nil {
		return errNoCluster
	}
	held, err := w.o.Fids.TryLock(ctx, fidsOf(leases)...)
	if err != nil {
		return err
	}
	defer func() {
		if err := held.Release(ctx); errors.Is(err, schema.ErrUnavailable) {
			w.o.Outage.Failed(err)
		} else if err != nil {
			w.o.Log.Warn().Err(err).Msg("fid locks not given back")
		}
	}()
	var mine, busy []*work.Lease
	for _, l := range leases {
		if held.Has(l.Job().FID) {
			mine = append(mine, l)
		} else {
			busy = append(busy, l)
		}
	}
	if err := giveBack(ctx, busy, work.LockedDelay); err != nil {
		return err
	}
	under, cancel := held.Context(ctx)
	defer cancel()
	if err := b.read(under, fidsOf(mine)); err != nil {
		return err
	}
	var g errgroup.Group
	for _, l := range mine {
		g.Go(func() error { return each(under, b, l) })
	}
	err = g.Wait()
	if under.Err() != nil && ctx.Err() == nil { // the locks are lost
		return giveBack(ctx, mine, work.LockedDelay)
	}
	return err
}

// giveBack makes rows due after delay, even where ctx has ended. Rows that are
// no longer leased stay as they are.
func giveBack(ctx context.Context, leases []*work.Lease, delay time.Duration) error {
	var g errgroup.Group
	for _, l := range leases {
		g.Go(func() error { return l.GiveBack(ctx, delay) })
	}
	return g.Wait()
}

func fidsOf(leases []*work.Lease) []protocol.FID {
	fids := make([]protocol.FID, 0, len(leases))
	for _, l := range leases {
		if fid := l.Job().FID; !slices.Contains(fids, fid) {
			fids = append(fids, fid)
		}
	}
	return fids
}

// result is what became of one copy.
type result string

const (
	deleted   result = "deleted"
	missing   result = "missing"
	forgotten result = "forgotten"
	wanted    result = "wanted"
	trashed   result = "trashed"
	kept      result = "kept"
	failed    result = "failed"
	deferred  result = "deferred"
)

// gone reports whether nothing of the copy is left that is to be deleted.
func (r result) gone() bool {
	return r == deleted || r == missing || r == forgotten || r == trashed || r == kept
}

// remove deletes one copy, or says after what delay it should be tried again,
// by the rules for whole files. An error is the end of ctx.
func (b *batch) remove(ctx context.Context, fid protocol.FID, dev protocol.DevID, failcount int) (result, time.Duration, error) {
	r, delay, err := b.try(ctx, fid, dev, failcount, b.unlink)
	if err == nil {
		b.w.metrics.copies.WithLabelValues(string(r)).Inc()
	}
	return r, delay, err
}

// drop deletes a copy or a shard, and not the other, by the rules of remove.
func (b *batch) drop(ctx context.Context, fid protocol.FID, dev protocol.DevID, what schema.What, failcount int) (result, error) {
	r, _, err := b.try(ctx, fid, dev, failcount, func(ctx context.Context, fid protocol.FID, d *cluster.Device) (result, error) {
		return b.unlinkOne(ctx, fid, d, what)
	})
	if err == nil {
		b.w.metrics.copies.WithLabelValues(string(r)).Inc()
	}
	return r, err
}

// putAside moves a copy to its device's trash, by the rules of remove.
func (b *batch) putAside(ctx context.Context, fid protocol.FID, dev protocol.DevID, failcount int) (result, error) {
	r, _, err := b.try(ctx, fid, dev, failcount, b.trash)
	if err == nil {
		b.w.metrics.copies.WithLabelValues(string(r)).Inc()
	}
	return r, err
}

// unlink deletes the file of a copy.
func (b *batch) unlink(ctx context.Context, fid protocol.FID, d *cluster.Device) (result, error) {
	err := b.w.o.Storage.Delete(ctx, d.WriteURL(fid, cluster.Viewer{}))
	if errors.Is(err, storage.ErrMissing) {
		return missing, nil
	}
	return deleted, err
}

// unlinkOne deletes the file of a copy, or that of a shard. A storage daemon that
// knows no shards has none; what one of ours would delete beside is kept where it
// is wanted.
func (b *batch) unlinkOne(ctx context.Context, fid protocol.FID, d *cluster.Device, what schema.What) (result, error) {
	if !d.Host.Capabilities.Has(protocol.WordEC) {
		if slices.Contains(b.locations[fid], d.ID) {
			return deferred, nil
		}
		return b.unlink(ctx, fid, d)
	}
	order := protocol.DropOrder{FID: fid, Dev: d.ID, What: protocol.DropRaw}
	if encoding, shard := what.Shard(); shard {
		order.What, order.Encoding = protocol.DropShard, encoding
	}
	report, err := b.w.o.Storage.Drop(ctx, orderAddress(d), order)
	switch {
	case err != nil:
		return failed, err
	case report.Result == protocol.DropMissing:
		return missing, nil
	case report.Result == protocol.DropDiffers:
		b.w.o.Log.Warn().Uint64("fid", uint64(fid)).Uint32("devid", uint32(d.ID)).Str("encoding", protocol.FormatEncoding(report.Encoding)).
			Msg("a shard of an encoding that is not the one to be deleted stays; if it is a stray, mogtool strays shows it")
		return kept, nil
	}
	return deleted, nil
}

// orderAddress is where the storage daemon that has a device takes orders.
func orderAddress(d *cluster.Device) string {
	return net.JoinHostPort(d.Host.Address(cluster.Viewer{}), strconv.Itoa(d.Host.Port))
}

// trash moves the file of a copy to its device's trash.
func (b *batch) trash(ctx context.Context, fid protocol.FID, d *cluster.Device) (result, error) {
	if !d.Host.Capabilities.Has(protocol.VerbTrash) {
		return kept, nil
	}
	bad := protocol.StoredFile{FID: fid, Shard: b.encoded[fid]}
	results, err := b.w.o.Storage.Trash(ctx, orderAddress(d), protocol.TrashOrder{Dev: d.ID, Files: []protocol.StoredFile{bad}})
	switch r := results[fid]; {
	case errors.Is(err, storage.ErrNoOrders):
		return kept, nil
	case err != nil:
		return failed, err
	case r.What == protocol.Trashed:
		return trashed, nil
	case r.What == protocol.TrashMissing:
		return missing, nil
	default:
		return failed, fmt.Errorf("trash fid %d on dev%d: %s: %s", fid, d.ID, r.What, r.To)
	}
}

func (b *batch) try(ctx context.Context, fid protocol.FID, dev protocol.DevID, failcount int, do func(context.Context, protocol.FID, *cluster.Device) (result, error)) (result, time.Duration, error) {
	d := b.snap.Device(dev)
	switch {
	case d == nil && failcount == 0:
		// It may be so new that the snapshot does not have it.
		return deferred, work.NotWriteableDelay(0), nil
	case d == nil, d.Dead():
		return forgotten, 0, nil
	case !d.Writeable():
		return deferred, work.NotWriteableDelay(failcount), nil
	case !d.LetsDelete():
		return deferred, work.ForbiddenDelay(failcount), nil
	}
	release, err := b.w.devices.Acquire(ctx, dev)
	if err != nil {
		return "", 0, context.Cause(ctx)
	}
	defer release()
	if b.isAway(dev) {
		return deferred, work.UndeletedDelay(failcount), nil
	}
	r, err := do(ctx, fid, d)
	work.Alive(ctx)
	switch {
	case err == nil:
		return r, 0, nil
	case ctx.Err() != nil:
		return "", 0, context.Cause(ctx)
	}
	if _, answered := errors.AsType[*storage.StatusError](err); !answered && errors.Is(err, storage.ErrUnreachable) {
		b.setAway(dev) // the rest of the batch does not wait for it too
	}
	b.w.o.Log.Warn().Err(err).Uint64("fid", uint64(fid)).Uint32("devid", uint32(dev)).Msg("copy not deleted")
	return failed, work.UndeletedDelay(failcount), nil
}

func (b *batch) isAway(dev protocol.DevID) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.away[dev]
}

func (b *batch) setAway(dev protocol.DevID) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.away[dev] = true
}

// deleteFiles works on rows of file_to_delete2.
func (w *Worker) deleteFiles(ctx context.Context, leases []*work.Lease) error {
	return w.do(ctx, leases, func(ctx context.Context, b *batch, l *work.Lease) error {
		fid := l.Job().FID
		if b.hasFile[fid] {
			w.o.Log.Error().Uint64("fid", uint64(fid)).Msg("file is queued for deletion but has a key, it stays")
			_, err := w.o.Store.Finish(ctx, []schema.Job{l.End()})
			return err
		}
		return b.deleteFile(ctx, l, b.locations[fid])
	})
}

// read finds which fids have a file row, and every fid's locations.
func (b *batch) read(ctx context.Context, fids []protocol.FID) error {
	files, err := b.w.o.Store.FilesByFID(ctx, fids)
	if err != nil {
		return fmt.Errorf("read the files of %d deletions: %w", len(fids), err)
	}
	b.hasFile = make(map[protocol.FID]bool, len(files))
	for _, f := range files {
		b.hasFile[f.FID] = true
	}
	b.locations, err = b.w.o.Store.LocationsOf(ctx, fids)
	if err != nil {
		return fmt.Errorf("read the locations of %d deletions: %w", len(fids), err)
	}
	b.encoded = make(map[protocol.FID]bool)
	encodings, err := b.w.o.Store.EncodingsOf(ctx, fids)
	if err != nil {
		return fmt.Errorf("read the encodings of %d deletions: %w", len(fids), err)
	}
	for fid := range encodings {
		b.encoded[fid] = true
	}
	return nil
}

// deleteFile deletes every copy of a fid, and forgets it when none is left.
func (b *batch) deleteFile(ctx context.Context, l *work.Lease, devs []protocol.DevID) error {
	store, job := b.w.o.Store, l.Job()
	var gone, absent []protocol.DevID
	var again time.Duration // least of the delays, 0 while there is none
	for _, dev := range devs {
		r, delay, err := b.remove(ctx, job.FID, dev, job.FailCount)
		if err != nil {
			return err
		}
		switch {
		case r.gone():
			gone = append(gone, dev)
			if r == missing {
				absent = append(absent, dev)
			}
		case again == 0 || delay < again:
			again = delay
		}
	}
	if len(absent) > 0 && len(absent) == len(devs) && job.FailCount == 0 {
		// Nothing was ever there: an upload may still be running.
		for _, dev := range absent {
			if err := store.QueueCopyDeletion(ctx, job.FID, dev, schema.Raw); err != nil {
				return fmt.Errorf("look for fid %d on dev%d later: %w", job.FID, dev, err)
			}
		}
	}
	if len(gone) > 0 {
		if err := store.DeletedLocations(ctx, job.FID, gone); err != nil {
			return fmt.Errorf("forget %d locations of fid %d: %w", len(gone), job.FID, err)
		}
	}
	if again > 0 {
		_, err := store.Reschedule(ctx, l.End(), again, work.Failed(job.FailCount))
		return err
	}
	done, err := store.FinishDeletion(ctx, l.End())
	if err != nil {
		return fmt.Errorf("forget fid %d: %w", job.FID, err)
	}
	if !done {
		// A location came in between, or the row is somebody else's by now.
		return l.GiveBack(ctx, work.LockedDelay)
	}
	b.w.metrics.fids.Inc()
	return nil
}

// deleteCopies works on rows of copy_to_delete. Each has a goroutine of its
// own, so that those of a device that hangs hold up no others; the store puts
// calls that come at the same time into one statement.
func (w *Worker) deleteCopies(ctx context.Context, leases []*work.Lease) error {
	return w.do(ctx, leases, func(ctx context.Context, b *batch, l *work.Lease) error {
		job := l.Job()
		again, err := b.deleteCopy(ctx, job)
		if err != nil {
			return err
		}
		if again > 0 {
			_, err = w.o.Store.Reschedule(ctx, l.End(), again, work.Failed(job.FailCount))
		} else {
			_, err = w.o.Store.Finish(ctx, []schema.Job{l.End()})
		}
		return err
	})
}

// deleteCopy deletes one copy or shard of a fid, unless it is recorded. It returns
// when to try again, 0 for never. An error is the end of ctx.
func (b *batch) deleteCopy(ctx context.Context, job schema.Job) (time.Duration, error) {
	_, shard := job.What.Shard()
	if job.What != schema.Raw && job.What != schema.Bad && !shard {
		b.w.o.Log.Error().Uint64("fid", uint64(job.FID)).Uint32("devid", uint32(job.DevID)).Str("what", string(job.What)).
			Msg("bytes of an unknown kind are to be deleted, a newer tracker must do it")
		return b.w.copyDelay(job.FailCount), nil
	}
	// Of an encoded file the locations have shards: copies there may go.
	if slices.Contains(b.locations[job.FID], job.DevID) && (job.What == schema.Bad || shard == b.encoded[job.FID]) {
		b.w.metrics.copies.WithLabelValues(string(wanted)).Inc()
		return 0, nil
	}
	var r result
	var err error
	switch {
	case job.What == schema.Bad && b.hasFile[job.FID]:
		r, err = b.putAside(ctx, job.FID, job.DevID, job.FailCount)
	case job.What == schema.Bad: // whatever it is
		r, _, err = b.remove(ctx, job.FID, job.DevID, job.FailCount)
	default:
		r, err = b.drop(ctx, job.FID, job.DevID, job.What, job.FailCount)
	}
	switch {
	case err != nil:
		return 0, err
	case r == missing && !b.hasFile[job.FID] && job.FailCount < len(lateChecks):
		return lateChecks[job.FailCount] * b.w.o.TempfileAge, nil
	case r.gone():
		return 0, nil
	}
	return b.w.copyDelay(job.FailCount), nil
}
