package coding

import (
	"context"
	"fmt"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/storaged/volume"
)

// sink is a shard that is being written. Nothing of it is left after Abort, or
// after an error, unless that is of Commit. It is used by one goroutine at a time.
type sink interface {
	// Write takes the next part of the shard. After an error it may still read p,
	// whenever.
	Write(p []byte) error
	// Context ends when nothing more is wanted of the shard, as its path was deleted.
	Context() context.Context
	// Commit returns nil when the shard is there for good.
	Commit(ctx context.Context) error
	Abort()
}

// open begins to write a shard of size bytes, here or elsewhere.
func (c *Coding) open(ctx context.Context, to protocol.Peer, shard protocol.ShardOrder, size int64) (sink, error) {
	if !c.o.Docroot.Has(to.Dev) {
		up, err := c.uploads.begin(ctx, to, shard, size)
		if err != nil {
			return nil, err
		}
		return up, nil
	}
	v, err := c.o.Docroot.Volume(to.Dev)
	if err != nil {
		return nil, err
	}
	_, name, _ := protocol.CutDevice(shard.FID.ShardPath(to.Dev))
	if u, err := v.Usage(); err == nil && size > u.Total*1024 {
		return nil, fmt.Errorf("dev%d/%s of %d bytes: %w", to.Dev, name, size, volume.ErrNoSpace)
	}
	ctx, end, err := c.o.Transfers.Enter(ctx, to.Dev, name)
	if err != nil {
		return nil, fmt.Errorf("dev%d/%s: %w", to.Dev, name, err)
	}
	var up *volume.Upload
	if err = Vacant(ctx, v, shard); err == nil {
		up, err = v.CreateSumless(ctx, name)
	}
	if err != nil {
		end()
		return nil, err
	}
	return &ownSink{Upload: up, ctx: ctx, end: end, left: size}, nil
}

// ownSink is a shard on a device of this daemon.
type ownSink struct {
	*volume.Upload
	ctx  context.Context // ends when the path is deleted
	end  func()
	left int64 // bytes that were not written
	over bool
}

// Context implements sink.
func (s *ownSink) Context() context.Context { return s.ctx }

// Write implements sink.
func (s *ownSink) Write(p []byte) error {
	if s.ctx.Err() != nil {
		return context.Cause(s.ctx)
	}
	s.left -= int64(len(p))
	return s.WriteLent(p)
}

// Commit implements sink.
func (s *ownSink) Commit(context.Context) error {
	defer s.Abort()
	switch {
	case s.ctx.Err() != nil:
		return context.Cause(s.ctx)
	case s.left != 0:
		return errTooShort
	}
	if err := s.Upload.Commit(s.ctx); err != nil {
		if s.ctx.Err() != nil {
			return context.Cause(s.ctx)
		}
		return err
	}
	return nil
}

// Abort implements sink.
func (s *ownSink) Abort() {
	if !s.over {
		s.over = true
		s.Upload.Abort() // does nothing after Commit
		s.end()
	}
}
