package coding

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/storaged/erasure"
	"github.com/mogile/mogile/storaged/volume"
)

// errOther says that a shard is not of the encoding that an order is about.
var errOther = errors.New("the shard is of another encoding")

// codeDamaged is the code for a shard whose header cannot be read.
const codeDamaged = "damaged"

// Place has the shards of an encoding that this daemon has note a placement. There
// is a result for each of them.
func (c *Coding) Place(ctx context.Context, o protocol.PlaceOrder) []protocol.ShardResult {
	var results []protocol.ShardResult
	for i, dev := range o.Devices {
		if !c.o.Docroot.Has(dev) {
			continue
		}
		r := protocol.ShardResult{Index: i, Dev: dev}
		err := c.placeAt(ctx, o, dev, &r.Index)
		switch {
		case errors.Is(err, fs.ErrNotExist), errors.Is(err, volume.ErrNoDevice), errors.Is(err, errOther):
			continue
		case errors.Is(err, erasure.ErrHeader):
			r.Err = &protocol.Error{Code: codeDamaged, Text: err.Error()}
		case err != nil:
			e := blame(ctx, protocol.ErrCopyDest, dev, err)
			r.Err, r.Full = e.Refusal, e.Full
			c.o.Log.Warn().Err(err).Uint64("fid", uint64(o.FID)).Uint32("devid", uint32(dev)).Msg("a shard could not note where its sisters are")
		}
		results = append(results, r)
	}
	return results
}

// placeAt has the shard on a device note a placement. index becomes the shard's.
func (c *Coding) placeAt(ctx context.Context, o protocol.PlaceOrder, dev protocol.DevID, index *int) error {
	v, err := c.o.Docroot.Volume(dev)
	if err != nil {
		return err
	}
	return v.Patch(ctx, shardName(o.FID, dev), func(file io.ReaderAt, _ int64) ([]byte, int64, error) {
		b, err := readHeader(file)
		if err != nil {
			return nil, 0, err
		}
		h, err := erasure.ParseHeader(b)
		switch {
		case err != nil:
			return nil, 0, err
		case h.FID != o.FID || h.Encoding != o.Encoding:
			return nil, 0, errOther
		}
		*index = h.Index
		return erasure.Place(b, erasure.Placement{Epoch: o.Epoch, Devices: o.Devices})
	})
}

// shardName is where a shard is below its device.
func shardName(fid protocol.FID, dev protocol.DevID) string {
	_, name, _ := protocol.CutDevice(fid.ShardPath(dev))
	return name
}

// readHeader reads what a shard begins with, as far as it is there.
func readHeader(file io.ReaderAt) ([]byte, error) {
	b := make([]byte, erasure.HeaderSize)
	n, err := file.ReadAt(b, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	return b[:n], nil
}

// States says which shards are there: each is told, in the order of the question.
// progress is told of the bytes that were read. The error is the context's, or
// tell's.
func (c *Coding) States(ctx context.Context, o protocol.ShardStateOrder, progress func(done int64), tell func(protocol.ShardState) error) error {
	var done int64
	limits := c.limits(o.Rate)
	for _, at := range o.Shards {
		var verify func(n int) error
		if o.Verify {
			verify = func(n int) error {
				done += int64(n)
				progress(done)
				return pace(ctx, limits, n)
			}
		}
		state := c.state(ctx, at, verify)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err := tell(state); err != nil {
			return err
		}
	}
	return nil
}

// state is that of one shard. Its blocks are verified where verify, which is told
// of the bytes that are read, is not nil.
func (c *Coding) state(ctx context.Context, at protocol.FIDOn, verify func(n int) error) protocol.ShardState {
	state := protocol.ShardState{FIDOn: at, What: protocol.ShardUnknown}
	fail := func(err error) protocol.ShardState {
		state.Reason = err.Error()
		switch {
		case errors.Is(err, fs.ErrNotExist):
			state.What, state.Reason = protocol.ShardMissing, ""
		case errors.Is(err, erasure.ErrHeader), errors.Is(err, volume.ErrIsDir), errors.Is(err, fs.ErrPermission), volume.IsUnreadable(err):
			state.What = protocol.ShardDamaged
		}
		return state
	}
	v, err := c.o.Docroot.Volume(at.Dev)
	if err != nil {
		state.Reason = err.Error() // whatever it is, it says nothing of the shard
		return state
	}
	f, err := v.Open(ctx, shardName(at.FID, at.Dev))
	if err != nil {
		return fail(err)
	}
	defer f.Close() // opened for reading
	b, err := readHeader(f)
	if err != nil {
		return fail(err)
	}
	h, err := erasure.ParseHeader(b)
	if err != nil {
		return fail(err)
	}
	state.What, state.Set, state.Index, state.CRC32C = protocol.ShardPresent, h.ShardSet, h.Index, h.CRC32C
	state.Epoch, state.Devices = h.Placement.Epoch, h.Placement.Devices
	state.Sized = f.Size() == h.Layout().ShardSize()
	if verify == nil {
		return state
	}
	found, err := c.verify(ctx, at.Dev, f, verify)
	if err != nil && !volume.IsUnreadable(err) {
		state = protocol.ShardState{FIDOn: at, What: protocol.ShardUnknown}
		return fail(fmt.Errorf("verify: %w", err))
	}
	state.Verified, state.Blocks, state.Bad = true, found.Blocks, found.Bad
	return state
}

// verify reads a shard and compares its blocks with their sums. One shard of a
// device is verified at a time, and what was read of it is not kept in memory.
func (c *Coding) verify(ctx context.Context, dev protocol.DevID, f *volume.File, progress func(n int) error) (erasure.State, error) {
	c.mu.Lock()
	turn := c.verifying[dev]
	if turn == nil {
		turn = make(chan struct{}, 1)
		c.verifying[dev] = turn
	}
	c.mu.Unlock()
	select {
	case turn <- struct{}{}:
		defer func() { <-turn }()
	case <-ctx.Done():
		return erasure.State{}, context.Cause(ctx)
	}
	var read, kept int64
	defer func() { f.Forget(context.WithoutCancel(ctx), kept, read-kept) }()
	return c.o.Codec.Verify(&section{ctx: ctx, file: f, left: f.Size()}, f.Size(), func(n int) error {
		if read += int64(n); read-kept >= forgetStep {
			f.Forget(ctx, kept, read-kept)
			kept = read
		}
		return progress(n)
	})
}

// forgetStep is after how many bytes that were verified the system is told that
// they will not be read again.
const forgetStep = 1 << 20

// ErrTaken is matched by errors that say that a device has another shard of a file
// than the one that was to come.
var ErrTaken = errors.New("the device has another shard of the file")

// Vacant says why a shard may not come to a device: it has one of another encoding,
// or another of the same. An order for it is one of a tracker that was away for long,
// or of one whose database does not know of what is there. Shards that cannot be read
// are replaced. The path is to be the caller's until the shard is there.
func Vacant(ctx context.Context, v *volume.Volume, shard protocol.ShardOrder) error {
	h, err := headerAt(ctx, v, shardName(shard.FID, v.ID()))
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, erasure.ErrHeader), volume.IsUnreadable(err):
		return nil
	case err != nil:
		return err
	case h.FID != shard.FID || h.Encoding != shard.Encoding || h.Index != shard.Index:
		return fmt.Errorf("dev%d, fid %d: %w: number %d of encoding %016x", v.ID(), shard.FID, ErrTaken, h.Index, h.Encoding)
	}
	return nil
}

// Drop deletes a copy or a shard, and not the other. What is on its way to the
// path is ended first.
func (c *Coding) Drop(ctx context.Context, o protocol.DropOrder) (protocol.DropReport, error) {
	v, err := c.o.Docroot.Volume(o.Dev)
	if err != nil {
		return protocol.DropReport{}, err
	}
	_, name, _ := protocol.CutDevice(o.FID.Path(o.Dev))
	if o.What == protocol.DropShard {
		name = shardName(o.FID, o.Dev)
	}
	if err := c.o.Transfers.Cancel(ctx, o.Dev, name); err != nil {
		return protocol.DropReport{}, err
	}
	_, end, err := c.o.Transfers.Enter(ctx, o.Dev, name)
	if err != nil { // the next has begun already
		return protocol.DropReport{}, &protocol.Error{Code: protocol.ErrCopyBusy.Code, Text: err.Error()}
	}
	defer end()
	report := protocol.DropReport{Result: protocol.Dropped}
	if o.What == protocol.DropShard {
		h, err := headerAt(ctx, v, name)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return protocol.DropReport{Result: protocol.DropMissing}, nil
		case err != nil && !errors.Is(err, erasure.ErrHeader) && !volume.IsUnreadable(err):
			return protocol.DropReport{}, err
		case err == nil:
			if report.Encoding = h.Encoding; o.Encoding != 0 && h.Encoding != o.Encoding {
				report.Result = protocol.DropDiffers
				return report, nil
			}
		}
	}
	switch err := v.Remove(ctx, name); {
	case errors.Is(err, fs.ErrNotExist):
		report.Result = protocol.DropMissing
	case err != nil:
		return protocol.DropReport{}, err
	}
	return report, nil
}

func headerAt(ctx context.Context, v *volume.Volume, name string) (erasure.Header, error) {
	f, err := v.Open(ctx, name)
	if err != nil {
		return erasure.Header{}, err
	}
	defer f.Close() // opened for reading
	b, err := readHeader(f)
	if err != nil {
		return erasure.Header{}, err
	}
	return erasure.ParseHeader(b)
}
