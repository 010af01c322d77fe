package erasure

import (
	"context"
	"fmt"
	"slices"
	"time"
)

// rebuildHedge is for how long a shard is waited for when shards are made of
// others. Nobody waits for these, and limits of bandwidth make all of them slow.
const rebuildHedge = 15 * time.Second

// RebuildMemory is how many bytes Rebuild holds at most when it makes n shards.
func (l Layout) RebuildMemory(n int) int64 {
	_, size := sizeClass(l.widest())
	return int64(3*max(l.K, n)+l.M+inFlight*n) * int64(size)
}

// Rebuild makes shards of others: those of the indexes in writes, ascending, each
// with r.Header at its beginning, of which the placement is the new one. A shard
// of writes that is itself somewhere by r.At is copied, as far as it is what was
// written. emit gets parts in the order of writes. r.At must not be nil.
func (c *Codec) Rebuild(ctx context.Context, r Read, writes []int, emit Emit) error {
	h := &r.Header
	n := h.Shards()
	if err := h.of(0).Check(); err != nil {
		return fmt.Errorf("rebuild fid %d: %w", h.FID, err)
	}
	l := h.Layout()
	wants := make([][2]int64, n)
	heads := make([][]byte, len(writes))
	for j, i := range writes {
		if i < 0 || i >= n || j > 0 && writes[j-1] >= i {
			return fmt.Errorf("rebuild fid %d: shards %v of %d", h.FID, writes, n)
		}
		wants[i] = [2]int64{0, l.Stripes()}
		heads[j] = h.of(i).Bytes()
	}
	if err := emit(heads, func(bool) {}); err != nil || l.Stripes() == 0 {
		return err
	}
	r.At = slices.Clone(r.At)
	s, err := c.newShards(ctx, r, wants, l.Stripes(), 1, max(rebuildHedge, c.o.Hedge), nil)
	if err != nil {
		return fmt.Errorf("rebuild fid %d: %w", h.FID, err)
	}
	defer s.close()
	for i := range s.own {
		s.begin(i)
	}
	room := make(chan struct{}, inFlight)
	for stripe := range l.Stripes() {
		select {
		case room <- struct{}{}:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		s.advance(stripe)
		parts := make([][]byte, len(writes))
		for j, i := range writes {
			if parts[j], err = s.block(i); err != nil {
				return err
			}
		}
		bufs := make([]*buffer, len(writes))
		for j, i := range writes {
			bufs[j], s.own[i].block = s.own[i].block, nil
		}
		done := func(reuse bool) {
			for _, b := range bufs {
				if reuse {
					c.put(b)
				}
			}
			<-room
		}
		if err := emit(parts, done); err != nil {
			return err
		}
	}
	return nil
}
