package coding

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/storaged/erasure"
	"github.com/mogile/mogile/storaged/volume"
)

// Rebuild carries an order out. There is a result for each of the shards that were
// to be written, in their order. progress is told of the bytes that were sent to
// them. Its errors are of type *Error; none of the shards is there then, unless it
// was before.
func (c *Coding) Rebuild(ctx context.Context, o protocol.RebuildOrder, progress func(done int64)) ([]protocol.ShardResult, protocol.RebuildReport, error) {
	began := time.Now()
	results, report, err := c.rebuild(ctx, &o, progress)
	result := c.ended(protocol.VerbRebuild, err)
	failed := slices.ContainsFunc(results, func(r protocol.ShardResult) bool { return r.Err != nil })
	event := c.o.Log.Debug()
	if failed && ctx.Err() == nil {
		event = c.o.Log.Warn()
	}
	for _, r := range results {
		if r.Err != nil {
			event = event.Uint32("devid", uint32(r.Dev)).Str("reason", r.Err.Text)
			break
		}
	}
	event.Err(err).Uint64("fid", uint64(o.FID)).Int("shards", len(o.Writes)).Ints("bad", report.Bad).Int64("read", report.Read).
		Str("result", result).Dur("took", time.Since(began)).Msg("rebuilding ended")
	return results, report, err
}

func (c *Coding) rebuild(ctx context.Context, o *protocol.RebuildOrder, progress func(int64)) ([]protocol.ShardResult, protocol.RebuildReport, error) {
	var report protocol.RebuildReport
	if err := erasure.CheckSet(o.ShardSet); err != nil {
		return nil, report, blame(ctx, protocol.ErrBadOrder, 0, err)
	}
	end, err := c.job(ctx, erasure.Layout{ShardSet: o.ShardSet}.RebuildMemory(len(o.Writes)))
	if err != nil {
		return nil, report, blame(ctx, protocol.ErrCopyBusy, 0, err)
	}
	defer end()
	from := &places{c: c, fid: o.FID, at: map[protocol.DevID]string{}, limits: c.limits(o.Rate)}
	devs := make([]protocol.DevID, o.Shards())
	for _, s := range o.Sources {
		devs[s.Index], from.at[s.Dev] = s.Dev, s.URL
	}
	h, good, bad := agree(o, devs, erasure.Headers(ctx, from, devs))
	if h == nil {
		return nil, report, blame(ctx, protocol.ErrTooFewShards, 0, fmt.Errorf("none of %d sources has a shard of this encoding", len(o.Sources)))
	}
	h.Placement = erasure.Placement{Epoch: o.Epoch, Devices: o.Devices}
	if err := h.Check(); err != nil {
		return nil, report, blame(ctx, protocol.ErrBadOrder, 0, err)
	}
	var mu sync.Mutex // guards bad
	suspect := func(index int, _ protocol.DevID, _ error) {
		mu.Lock()
		defer mu.Unlock()
		bad[index] = true
	}
	work, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	size := h.Layout().ShardSize()
	var left atomic.Int32
	left.Store(int32(len(o.Writes)))
	fan := newFan(work, len(o.Writes), func(ctx context.Context, i int) (sink, error) {
		return c.open(ctx, o.Writes[i].Peer, shardOrder(o.ShardSet, o.Writes[i]), size)
	}, func(_ int, err error) {
		if left.Add(-1) == 0 {
			cancel(err) // there is nobody left to read for
		}
	})
	writes := make([]int, len(o.Writes))
	for i, w := range o.Writes {
		writes[i] = w.Index
	}
	var sent int64
	emit := c.emit(protocol.VerbRebuild, fan)
	err = c.o.Codec.Rebuild(work, erasure.Read{Header: *h, At: good, Places: from, Suspect: suspect}, writes, func(parts [][]byte, done func(reuse bool)) error {
		for _, p := range parts {
			sent += int64(len(p))
		}
		progress(sent)
		return emit(parts, done)
	})
	gone := work.Err() != nil && ctx.Err() == nil // all targets, which is told of each
	if err != nil {
		cancel(err) // nothing is committed then
	}
	errs := fan.finish()
	report.Read = from.read.Load()
	for i := range bad {
		if bad[i] && devs[i] != 0 {
			report.Bad = append(report.Bad, i)
		}
	}
	if err != nil && !gone {
		code := protocol.ErrCopySource
		if errors.Is(err, erasure.ErrTooFew) {
			code = protocol.ErrTooFewShards
		}
		return nil, report, blame(ctx, code, 0, err)
	}
	results := make([]protocol.ShardResult, len(o.Writes))
	for i, w := range o.Writes {
		results[i] = protocol.ShardResult{Index: w.Index, Dev: w.Dev}
		if errs[i] == nil {
			report.Written += size
			continue
		}
		e := blame(ctx, protocol.ErrCopyDest, w.Dev, errs[i])
		results[i].Err, results[i].Full = e.Refusal, e.Full
	}
	return results, report, nil
}

// agree is the header that those of the sources have which are of the order's
// encoding, nil where none is; where these are, by index, 0 where there is none;
// and which of the sources are not what the order says.
func agree(o *protocol.RebuildOrder, devs []protocol.DevID, found []erasure.Found) (h *erasure.Header, good []protocol.DevID, bad []bool) {
	good, bad = make([]protocol.DevID, len(devs)), make([]bool, len(devs))
	for i, f := range found {
		switch {
		case devs[i] == 0:
		case f.Err != nil || f.Header.ShardSet != o.ShardSet || f.Header.Index != i, h != nil && !h.Sisters(&f.Header):
			bad[i] = true
		default:
			good[i] = devs[i]
			if h == nil {
				h = &f.Header
			}
		}
	}
	return h, good, bad
}

// places are where the shards of an order are read.
type places struct {
	c      *Coding
	fid    protocol.FID
	at     map[protocol.DevID]string // URLs of storage daemons
	limits []*rate.Limiter
	read   atomic.Int64 // bytes
}

// Near implements erasure.Places.
func (p *places) Near(dev protocol.DevID) bool { return p.c.o.Docroot.Has(dev) }

// Open implements erasure.Places.
func (p *places) Open(ctx context.Context, dev protocol.DevID, off, n int64) (io.ReadCloser, error) {
	var r io.ReadCloser
	path := p.fid.ShardPath(dev)
	if p.Near(dev) {
		v, err := p.c.o.Docroot.Volume(dev)
		if err != nil {
			return nil, err
		}
		_, name, _ := protocol.CutDevice(path)
		f, err := v.Open(ctx, name)
		if err != nil {
			return nil, err
		}
		r = &section{ctx: ctx, file: f, off: off, left: min(n, max(f.Size()-off, 0))}
	} else {
		piece, err := p.c.o.Peers.Get(ctx, p.at[dev], path, off, n)
		switch {
		case errors.Is(err, io.EOF): // it ends before off
			return io.NopCloser(eof{}), nil
		case err != nil:
			return nil, err
		}
		r = piece
	}
	return &counted{ReadCloser: r, ctx: ctx, places: p}, nil
}

type eof struct{}

// Read implements io.Reader.
func (eof) Read([]byte) (int, error) { return 0, io.EOF }

// section is a part of a file on a device of this daemon. Its end is not behind
// the file's.
type section struct {
	ctx  context.Context
	file *volume.File
	off  int64
	left int64
}

// Read implements io.Reader.
func (s *section) Read(p []byte) (int, error) {
	if s.left == 0 {
		return 0, io.EOF
	}
	p = p[:min(int64(len(p)), s.left)]
	if err := s.file.ReadParts(s.ctx, [][]byte{p}, s.off); err != nil {
		return 0, err
	}
	s.off, s.left = s.off+int64(len(p)), s.left-int64(len(p))
	return len(p), nil
}

// Close implements io.Closer.
func (s *section) Close() error { return s.file.Close() }

// counted counts what is read, and waits where that is too fast.
type counted struct {
	io.ReadCloser
	ctx    context.Context
	places *places
}

// Read implements io.Reader.
func (r *counted) Read(p []byte) (int, error) {
	if len(r.places.limits) > 0 {
		p = p[:min(len(p), limitedPiece)]
	}
	n, err := r.ReadCloser.Read(p)
	r.places.read.Add(int64(n))
	if e := pace(r.ctx, r.places.limits, n); e != nil && err == nil {
		err = e
	}
	return n, err
}
