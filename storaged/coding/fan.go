package coding

import (
	"context"
	"sync"
	"sync/atomic"

	"github.com/mogile/mogile/protocol"
)

// fan feeds the shards of an order, each from a goroutine of its own, so that the
// order is as fast as the slowest target and not as all of them together.
type fan struct {
	ctx    context.Context
	feeds  []feed
	failed func(i int, err error) // called once for each shard that fails, from its goroutine
	opened sync.WaitGroup         // those that are being opened
	all    sync.WaitGroup
}

// feed is one shard's.
type feed struct {
	pieces chan piece
	dead   atomic.Bool // nothing more is wanted
	err    error       // why, or nil; of its goroutine until all have ended
}

// piece is what is to be written next to a shard.
type piece struct {
	data []byte
	done func(reuse bool) // called once, when data is not needed any more
}

// fanDepth is how many pieces wait for a shard's turn, beside the one that is
// being written.
const fanDepth = 1

// newFan begins n shards. open is called in the goroutine of each. No shard is
// committed before the end of the pieces, which finish tells.
func newFan(ctx context.Context, n int, open func(ctx context.Context, i int) (sink, error), failed func(i int, err error)) *fan {
	f := &fan{ctx: ctx, feeds: make([]feed, n), failed: failed}
	f.opened.Add(n)
	for i := range f.feeds {
		feed := &f.feeds[i]
		feed.pieces = make(chan piece, fanDepth)
		f.all.Go(func() {
			s, err := open(ctx, i)
			if err == nil {
				f.opened.Done()
				feed.err = f.serve(feed, s)
			} else {
				feed.err = err
			}
			if feed.err != nil {
				feed.dead.Store(true)
				failed(i, feed.err)
			}
			if err != nil {
				f.opened.Done() // when it is known that it failed
			}
			for p := range feed.pieces { // of one that is dead
				p.done(true)
			}
		})
	}
	return f
}

// serve writes one shard.
func (f *fan) serve(feed *feed, s sink) error {
	defer s.Abort() // does nothing after Commit
	for ctx := s.Context(); ; {
		select {
		case p, more := <-feed.pieces:
			switch {
			case more:
				err := s.Write(p.data)
				p.done(err == nil)
				if err != nil {
					return err
				}
				continue
			case f.ctx.Err() != nil: // what came may not be all
				return context.Cause(f.ctx)
			}
			return s.Commit(f.ctx)
		case <-ctx.Done(): // who deletes the path waits for that
			return context.Cause(ctx)
		}
	}
}

// ready waits until each shard is open, or has failed.
func (f *fan) ready() { f.opened.Wait() }

// send has each shard write its part of parts, nil: nothing. It waits until there
// is room for all of them; done is called when none is needed any more, as that of
// erasure.Emit. The error is the context's.
func (f *fan) send(parts [][]byte, done func(reuse bool)) error {
	var left atomic.Int32
	var lost atomic.Bool
	left.Store(int32(len(parts)) + 1)
	one := func(reuse bool) {
		if !reuse {
			lost.Store(true)
		}
		if left.Add(-1) == 0 {
			done(!lost.Load())
		}
	}
	defer one(true)
	for i, data := range parts {
		if len(data) == 0 || f.feeds[i].dead.Load() {
			one(true)
			continue
		}
		select {
		case f.feeds[i].pieces <- piece{data, one}:
		case <-f.ctx.Done():
			for range parts[i:] {
				one(true)
			}
			return context.Cause(f.ctx)
		}
	}
	return nil
}

// finish has all shards committed to which everything was sent, and waits for it:
// the results are in the order of the shards. Where the context has ended nothing
// is committed any more.
func (f *fan) finish() []error {
	for i := range f.feeds {
		close(f.feeds[i].pieces)
	}
	f.all.Wait()
	errs := make([]error, len(f.feeds))
	for i := range errs {
		errs[i] = f.feeds[i].err
	}
	return errs
}

// shardOrder permits the upload of a shard.
func shardOrder(set protocol.ShardSet, at protocol.ShardAt) protocol.ShardOrder {
	return protocol.ShardOrder{FID: set.FID, Dev: at.Dev, Encoding: set.Encoding, Index: at.Index}
}
