package replicate

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/schema"
	"github.com/mogile/mogile/tracker/cluster"
	"github.com/mogile/mogile/tracker/placement"
	"github.com/mogile/mogile/tracker/storage"
	"github.com/mogile/mogile/tracker/work"
)

// judge looks at a copy and reports whether it can be relied on. An error is the
// end of the round.
type judge func(ctx context.Context, p placement.Placement) (bool, error)

// judged is what is known now, in which copies other than the one on d that are
// not right count as ones that cannot be read.
func (r *round) judged(ctx context.Context, d *cluster.Device, right judge) (q placement.Question, err error) {
	q = r.question()
	q.On = slices.Clone(r.on)
	for i, p := range q.On {
		if p.Device.ID == d.ID {
			continue
		}
		if q.On[i].Readable, err = right(ctx, p); err != nil {
			return q, err
		}
	}
	return q, nil
}

// rightSize reports whether a copy can be read and has the file's length. An
// error is the end of ctx.
func (r *round) rightSize(ctx context.Context, p placement.Placement) (bool, error) {
	if !p.Readable {
		return false, nil
	}
	right, looked := r.sizes[p.Device.ID]
	if looked {
		return right, nil
	}
	work.Alive(ctx)
	size, err := r.w.o.Storage.Size(ctx, p.Device.ReadURL(r.file.FID, cluster.Viewer{}))
	if ctx.Err() != nil {
		return false, context.Cause(ctx)
	}
	right = err == nil && size == r.file.Length
	r.sizes[p.Device.ID] = right
	switch {
	case err == nil && !right:
		return false, r.doubt(ctx, p.Device.ID, fmt.Errorf("%d bytes instead of %d", size, r.file.Length))
	case errors.Is(err, storage.ErrMissing):
		return false, r.doubt(ctx, p.Device.ID, err)
	case err != nil:
		r.log.Warn().Err(err).Uint32("devid", uint32(p.Device.ID)).Msg("copy cannot be asked for, others stay beside it")
	}
	return right, nil
}

// rightContent is rightSize that also has the copy read, by its storage daemon if
// that can, where somebody can tell what its content should be: a checksum is
// recorded, or the daemon has noted what was written.
func (r *round) rightContent(ctx context.Context, p placement.Placement) (bool, error) {
	if right, err := r.rightSize(ctx, p); err != nil || !right {
		return false, err
	}
	dev := p.Device.ID
	if right, read := r.contents[dev]; read {
		return right, nil
	}
	if r.sum.IsZero() && !p.Device.Host.Capabilities.Has(storage.CapabilitySum) {
		return true, nil
	}
	device, leave := r.use(ctx, []*cluster.Device{p.Device})
	if device == nil {
		return false, errBusy
	}
	defer leave()
	reading, stop := work.WhileReadable(ctx, r.w.o.Cluster, dev)
	content, err := r.w.o.Storage.Verify(reading, p.Device.ReadURL(r.file.FID, cluster.Viewer{}), r.file.Length, r.sum.Type, "replicate")
	stop()
	if ctx.Err() != nil {
		return false, context.Cause(ctx)
	}
	r.contents[dev] = false
	if err == nil {
		err = wrong(content, r.file.Length, r.sum, r.content)
	} else if !errors.Is(err, storage.ErrMissing) {
		r.log.Warn().Err(err).Uint32("devid", uint32(dev)).Msg("copy cannot be read, others stay beside it")
		return false, nil
	}
	if err != nil {
		return false, r.doubt(ctx, dev, err)
	}
	r.contents[dev] = true
	if !content.DigestOnly {
		r.content = &content.Found
	}
	return true, nil
}

// wrong is what is wrong with a copy of a file of so many bytes, nil where nothing
// is: sum is the checksum that is recorded, which is the last word; without one
// the copy must be as it was noted, and as another that is.
func wrong(v storage.Verified, length int64, sum protocol.Checksum, other *protocol.ContentSum) error {
	switch {
	case v.Unreadable:
		return errors.New("the disk cannot read it")
	case !v.DigestOnly && v.Found.Length != length:
		return fmt.Errorf("%d bytes instead of %d", v.Found.Length, length)
	case !sum.IsZero() && !v.Digest.Equal(sum):
		return fmt.Errorf("%s instead of %s", v.Digest, sum)
	case !sum.IsZero() || v.DigestOnly:
		return nil
	case v.Corrupt():
		return fmt.Errorf("%s instead of %s, as it was written", v.Found, v.Stored)
	case other != nil && *other != v.Found:
		return fmt.Errorf("%s, and another copy is %s", v.Found, other)
	}
	return nil
}

// doubt tells that a copy is bad, and has fsck look at the file, with its content.
func (r *round) doubt(ctx context.Context, dev protocol.DevID, why error) error {
	r.log.Warn().Err(why).Uint32("devid", uint32(dev)).Msg("copy is bad, others stay beside it; fsck is to look at the file")
	r.w.notify(r.id, "Copy of fid %d on devid %d is bad, others stay beside it: %v", r.file.FID, dev, why)
	if r.doubted {
		return nil
	}
	if err := r.w.o.Store.QueueFsck(ctx, []protocol.FID{r.file.FID}, 0, schema.FsckContent); err != nil {
		return fmt.Errorf("queue fid %d for fsck: %w", r.file.FID, err)
	}
	r.doubted = true
	return nil
}
