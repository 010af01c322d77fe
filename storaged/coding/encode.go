package coding

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/storaged/erasure"
	"github.com/mogile/mogile/storaged/volume"
)

// Encode carries an order out. progress is told of the bytes of the file that were
// read. Its errors are of type *Error.
func (c *Coding) Encode(ctx context.Context, o protocol.EncodeOrder, progress func(done int64)) (protocol.EncodeReport, error) {
	began := time.Now()
	report, err := c.encode(ctx, &o, progress)
	result := c.ended(protocol.VerbEncode, err)
	event := c.o.Log.Debug()
	if e, ok := errors.AsType[*Error](err); ok && (e.Corrupt || e.Refusal.Is(protocol.ErrCopyDest)) {
		event = c.o.Log.Warn().Uint32("devid", uint32(e.Dev))
	}
	event.Err(err).Uint64("fid", uint64(o.FID)).Int("k", o.K).Int("m", o.M).Int64("length", o.Length).
		Str("result", result).Dur("took", time.Since(began)).Msg("encoding ended")
	return report, err
}

// ended counts the end of an order, and is its result's name.
func (c *Coding) ended(verb string, err error) string {
	result := "ok"
	if e, ok := errors.AsType[*Error](err); ok {
		result = e.Refusal.Code
	}
	c.meter.total.WithLabelValues(verb, result).Inc()
	return result
}

func (c *Coding) encode(ctx context.Context, o *protocol.EncodeOrder, progress func(int64)) (protocol.EncodeReport, error) {
	h := erasure.Header{ShardSet: o.ShardSet, Digest: o.Want, Placement: erasure.Placement{Epoch: o.Epoch}}
	for _, t := range o.Targets {
		h.Placement.Devices = append(h.Placement.Devices, t.Dev)
	}
	if err := h.Check(); err != nil {
		return protocol.EncodeReport{}, blame(ctx, protocol.ErrBadOrder, 0, err)
	}
	end, err := c.job(ctx, h.Layout().EncodeMemory())
	if err != nil {
		return protocol.EncodeReport{}, blame(ctx, protocol.ErrCopyBusy, 0, err)
	}
	defer end()
	// Where a target fails a source that hangs is not waited for.
	work, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	src, code, err := c.rawOf(work, o)
	if err != nil {
		return protocol.EncodeReport{}, blame(ctx, code, o.Dev, err)
	}
	defer func() { src.close() }()
	if !src.known {
		// Shards begin with the sum of the whole content.
		sum, err := c.sumOf(work, o, src, progress)
		if err != nil {
			return protocol.EncodeReport{}, c.blameSource(ctx, o, err)
		}
		again, code, err := c.rawOf(work, o)
		if err != nil {
			return protocol.EncodeReport{}, blame(ctx, code, o.Dev, err)
		}
		src.close()
		src = again
		src.stored = sum
	}
	if src.stored.Length != o.Length {
		return protocol.EncodeReport{}, c.blameSource(ctx, o, fmt.Errorf("%s: %w: %d bytes were stored there", src.name, errContent, src.stored.Length))
	}
	h.CRC32C, h.Modified = src.stored.CRC32C, src.modified
	return c.encodeFrom(ctx, work, cancel, o, h, src, progress)
}

// sumOf reads a file for its sum. That counts as progress, too: who gives orders
// waits for nothing else.
func (c *Coding) sumOf(ctx context.Context, o *protocol.EncodeOrder, src *raw, progress func(int64)) (volume.Sum, error) {
	in := c.check(ctx, o, src, progress)
	var sum volume.Sum
	buf := make([]byte, min(limitedPiece, o.Length))
	for left := o.Length; left > 0; left -= int64(len(buf)) {
		buf = buf[:min(int64(len(buf)), left)]
		if err := in.Next([][]byte{buf}); err != nil {
			return volume.Sum{}, err
		}
		sum = sum.Add(buf)
	}
	if err := in.End(sum.CRC32C); err != nil {
		return volume.Sum{}, err
	}
	return in.sum, nil
}

// check is src with its content checked by what is known of it.
func (c *Coding) check(ctx context.Context, o *protocol.EncodeOrder, src *raw, progress func(int64)) *checked {
	typ := o.HashType
	if !o.Want.IsZero() {
		typ = o.Want.Type
	}
	in := &checked{ctx: ctx, from: src, typ: typ, hash: typ.New(), limits: c.limits(steady(o)), progress: progress}
	stored, known := src.stored, src.known
	in.check = func() error {
		switch {
		case known && in.sum != stored:
			return fmt.Errorf("%s: %w: %s instead of %s, which was stored there", src.name, errContent, in.sum, stored)
		case !o.Want.IsZero() && !in.digest().Equal(o.Want):
			return fmt.Errorf("%s: %w: it has %s instead of %s", src.name, errContent, in.digest(), o.Want)
		}
		return nil
	}
	return in
}

// batchTime bounds how long an order with a rate may take for what is read before
// it is sent: between two pieces storage daemons wait for a minute at most.
const batchTime = 20 * time.Second

// steady is an order's rate, raised where it would let uploads starve.
func steady(o *protocol.EncodeOrder) int64 {
	if o.Rate == 0 {
		return 0
	}
	batch := erasure.Layout{ShardSet: o.ShardSet}.Batch() * int64(o.K) * int64(o.Block)
	return max(o.Rate, batch/int64(batchTime/time.Second))
}

// encodeFrom sends all shards, and has them committed if everything is well. Where
// something is not, cancel ends work, which is ctx otherwise.
func (c *Coding) encodeFrom(ctx, work context.Context, cancel context.CancelCauseFunc, o *protocol.EncodeOrder, h erasure.Header, src *raw, progress func(int64)) (protocol.EncodeReport, error) {
	src.known = true
	in := c.check(work, o, src, progress)
	var once sync.Once
	var first *Error // what went wrong, of the target or the source with which it began
	size := h.Layout().ShardSize()
	fan := newFan(work, len(o.Targets), func(ctx context.Context, i int) (sink, error) {
		return c.open(ctx, o.Targets[i].Peer, shardOrder(o.ShardSet, o.Targets[i]), size)
	}, func(i int, err error) {
		once.Do(func() { first = blame(ctx, protocol.ErrCopyDest, o.Targets[i].Dev, err) })
		cancel(err)
	})
	fan.ready() // or some would have all of theirs before another is found to be down
	if err := c.o.Codec.Encode(work, h, in, c.emit(protocol.VerbEncode, fan)); err != nil {
		once.Do(func() { first = c.blameSource(ctx, o, err) })
		cancel(err) // nothing is committed then
	}
	fan.finish()
	if first != nil {
		return protocol.EncodeReport{}, first
	}
	return protocol.EncodeReport{Length: in.sum.Length, CRC32C: in.sum.CRC32C, Digest: in.digest()}, nil
}

// emit sends parts to fan, and counts them.
func (c *Coding) emit(verb string, fan *fan) erasure.Emit {
	written := c.meter.bytes.WithLabelValues(verb)
	return func(parts [][]byte, done func(reuse bool)) error {
		for _, p := range parts {
			written.Add(float64(len(p)))
		}
		return fan.send(parts, done)
	}
}

// blameSource is the error of an order of which the file is at fault.
func (c *Coding) blameSource(ctx context.Context, o *protocol.EncodeOrder, err error) *Error {
	e := blame(ctx, protocol.ErrCopySource, o.Dev, err)
	e.Corrupt = ctx.Err() == nil && errors.Is(err, errContent)
	return e
}
