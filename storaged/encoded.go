package storaged

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/storaged/erasure"
	"github.com/mogile/mogile/storaged/peers"
	"github.com/mogile/mogile/storaged/volume"
)

// encoded serves files of which a device has a shard. What the shard's header
// says is enough for it; no tracker is asked.
type encoded struct {
	docroot  *volume.Docroot
	peers    *peers.Peers
	client   *peers.Client
	codec    *erasure.Codec
	suspects *suspects
	log      zerolog.Logger
	failing  zerolog.Sampler        // of files that cannot be read
	reads    *prometheus.CounterVec // result
}

func newEncoded(d *Daemon) *encoded {
	e := &encoded{
		docroot: d.docroot, peers: d.peers, client: d.sisters, codec: d.codec, suspects: d.suspects, log: d.log,
		failing: &zerolog.BurstSampler{Burst: 5, Period: time.Minute},
		reads: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "mogile_storaged_encoded_reads_total",
			Help: "Erasure-coded files, and parts of such, that clients read: whole (all shards that were wanted could be read), degraded (some could not, or were bad, and were computed), failed (too few were left). degraded that grows: look for a host that is down, and let fsck run."},
			[]string{"result"}),
	}
	waiting := prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "mogile_storaged_suspects",
		Help: "Shards that reads found missing or bad, and that no tracker has asked for yet. It falls to 0 within seconds while trackers run."},
		func() float64 { return float64(d.suspects.count()) })
	d.registry.MustRegister(e.reads, waiting)
	return e
}

// errShard says that a device has a shard of which nothing can be made, not even
// what it is a shard of.
var errShard = errors.New("the shard here cannot be used")

// find reads the header of the shard that a device has of a file. fs.ErrNotExist
// says that there is none; errShard that there is, and is bad.
func (e *encoded) find(ctx context.Context, v *volume.Volume, fid protocol.FID) (erasure.Header, error) {
	f, err := v.Open(ctx, shardName(fid, v.ID()))
	if err != nil {
		return erasure.Header{}, err
	}
	defer f.Close() // opened for reading
	b := make([]byte, min(erasure.HeaderSize, f.Size()))
	n, err := f.ReadSome(ctx, b, 0)
	var h erasure.Header
	switch {
	case err == nil || errors.Is(err, io.EOF):
		h, err = erasure.ParseHeader(b[:n])
		if err == nil && h.FID != fid {
			err = fmt.Errorf("it is one of fid %d", h.FID)
		}
	case !volume.IsUnreadable(err):
		return erasure.Header{}, err
	}
	if err != nil {
		e.suspect(fid, v.ID(), err)
		return erasure.Header{}, fmt.Errorf("fid %d on dev%d: %w: %w", fid, v.ID(), errShard, err)
	}
	return h, nil
}

// suspect notes a shard that is missing or bad. It may also be elsewhere by now,
// and the shards here not know: who checks it sees to that, too.
func (e *encoded) suspect(fid protocol.FID, dev protocol.DevID, err error) {
	if e.suspects.add(protocol.FIDOn{FID: fid, Dev: dev}) {
		e.log.Info().Err(err).Uint64("fid", uint64(fid)).Uint32("devid", uint32(dev)).Msg("a shard is missing or bad; trackers will be told")
	}
}

// isBad reports whether err says that a shard is not there or not right, rather
// than that its storage daemon or disk cannot be asked.
func isBad(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, erasure.ErrBlock) || errors.Is(err, erasure.ErrHeader) ||
		errors.Is(err, errStale) ||
		errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || volume.IsUnreadable(err)
}

// shardReading is a part of a file that is put together of shards.
type shardReading struct {
	e         *encoded
	ctx       context.Context
	cancel    context.CancelFunc
	h         erasure.Header
	off, left int64           // in the file, what was to be read, and what is left of that
	stream    *erasure.Stream // nil before the first piece
	early     []suspicion     // before the first piece
	degraded  bool            // what was read lacked something
	failed    bool
}

// suspicion is what is the matter with a shard.
type suspicion struct {
	index int
	dev   protocol.DevID
	err   error
}

var _ parts = (*shardReading)(nil)

// read begins to read n bytes from off, which the file has. The reading must be
// closed.
func (e *encoded) read(ctx context.Context, h erasure.Header, off, n int64) *shardReading {
	r := &shardReading{e: e, h: h, off: off, left: n}
	r.ctx, r.cancel = context.WithCancel(ctx)
	return r
}

// next implements parts. After the last piece it is io.EOF.
func (r *shardReading) next(context.Context) ([]byte, error) {
	if r.left == 0 {
		return nil, io.EOF
	}
	if r.stream == nil {
		if err := r.open(); err != nil {
			return nil, r.fail(err)
		}
	}
	piece, err := r.stream.Next()
	if err != nil {
		return nil, r.fail(err)
	}
	r.left -= int64(len(piece))
	return piece, nil
}

// open finds the shards. Where those of the header are too few, that may be of a
// shard that time has passed by: what its sisters' devices have is read then.
func (r *shardReading) open() error {
	open := func() (err error) {
		r.stream, err = r.e.codec.Open(r.ctx, erasure.Read{
			Header: r.h, Places: places{r.e, r.h.FID}, Sure: r.left >= sureFrom && r.e.sure(&r.h), Suspect: r.suspect,
		}, r.off, r.left)
		return err
	}
	err := open()
	if errors.Is(err, erasure.ErrTooFew) {
		if h, stale, ok := r.another(); ok {
			was, suspected := r.h, r.early
			r.h, r.early = h, stale
			if open() == nil {
				err = nil
			} else {
				r.h, r.early = was, suspected
			}
		}
	}
	for _, s := range r.early {
		r.note(s)
	}
	r.early = nil
	return err
}

// another is the header of most shards of another encoding of the file, where its
// shards should be, and those there that are not of it.
func (r *shardReading) another() (h erasure.Header, stale []suspicion, ok bool) {
	devs := r.h.Placement.Devices
	found := erasure.Headers(r.ctx, places{r.e, r.h.FID}, devs)
	most := 0
	for i := range found {
		if found[i].Err != nil || found[i].Header.FID != r.h.FID || found[i].Header.Length != r.h.Length || found[i].Header.Sisters(&r.h) {
			continue
		}
		n := 0
		for j := range found {
			if found[j].Err == nil && found[j].Header.Sisters(&found[i].Header) {
				n++
			}
		}
		if n > most {
			most, h = n, found[i].Header
		}
	}
	for i := range found {
		if f := &found[i]; most > 0 && f.Err == nil && !f.Header.Sisters(&h) {
			stale = append(stale, suspicion{f.Header.Index, devs[i], fmt.Errorf("%w: it is of encoding %016x, and %d others of %016x", errStale, f.Header.Encoding, most, h.Encoding)})
		}
	}
	return h, stale, most > 0
}

// errStale says that a shard is not of the encoding that counts.
var errStale = errors.New("time has passed it by")

// sureFrom is how many bytes are so many that who reads them waits for the first
// noticeably less than for all.
const sureFrom = 1 << 20

// sure reports whether there is no reason to doubt that the shards with a file's
// bytes can be read: none was found missing or bad lately, and all storage daemons
// that have them answer.
func (e *encoded) sure(h *erasure.Header) bool {
	devs := h.Placement.Devices[:h.K] // no other is asked
	if e.suspects.has(h.FID, devs) {
		return false
	}
	for _, dev := range devs {
		if e.docroot.Has(dev) {
			continue
		}
		if url, ok := e.peers.URL(dev); !ok || !e.client.Answers(url) {
			return false
		}
	}
	return true
}

// suspect notes what is the matter with a shard.
func (r *shardReading) suspect(index int, dev protocol.DevID, err error) {
	s := suspicion{index, dev, err}
	if r.stream == nil { // it may be the header here that is not right
		r.early = append(r.early, s)
		return
	}
	r.note(s)
}

// note has a shard checked that is missing or bad.
func (r *shardReading) note(s suspicion) {
	r.degraded = true
	if isBad(s.err) {
		r.e.suspect(r.h.FID, s.dev, fmt.Errorf("shard %d: %w", s.index, s.err))
		return
	}
	r.e.log.Debug().Err(s.err).Uint64("fid", uint64(r.h.FID)).Uint32("devid", uint32(s.dev)).Int("shard", s.index).Msg("a shard cannot be read now")
}

// fail notes that the file cannot be read on.
func (r *shardReading) fail(err error) error {
	r.failed = true
	if errors.Is(err, erasure.ErrTooFew) && r.e.failing.Sample(zerolog.WarnLevel) {
		r.e.log.Warn().Err(err).Uint64("fid", uint64(r.h.FID)).Int("k", r.h.K).Int("m", r.h.M).Msg("a file cannot be read: too few of its shards can")
	}
	return fmt.Errorf("fid %d in shards: %w", r.h.FID, err)
}

// close implements parts.
func (r *shardReading) close() {
	r.cancel()
	if r.stream != nil {
		_ = r.stream.Close() // what went wrong was told
	}
	result := "whole"
	switch {
	case r.failed:
		result = "failed"
	case r.degraded:
		result = "degraded"
	}
	r.e.reads.WithLabelValues(result).Inc()
}

// encodedFile is a whole file in shards, as the side channel reads files.
type encodedFile struct {
	e *encoded
	h erasure.Header
}

// Sum is what all shards say of the content.
func (f encodedFile) Sum() (volume.Sum, bool) {
	return volume.Sum{Length: f.h.Length, CRC32C: f.h.CRC32C}, true
}

// ReadThrough reads the whole content.
func (f encodedFile) ReadThrough(ctx context.Context, each func([]byte), _ bool) (volume.Sum, error) {
	var got volume.Sum
	r := f.e.read(ctx, f.h, 0, f.h.Length)
	defer r.close()
	for {
		piece, err := r.next(ctx)
		switch {
		case err == io.EOF:
			return got, nil
		case err != nil:
			return got, err
		}
		if got = got.Add(piece); each != nil {
			each(piece)
		}
	}
}

// Close does nothing: nothing is open.
func (encodedFile) Close() error { return nil }

// places is where the shards of a file are read: here, or at other storage
// daemons.
type places struct {
	e   *encoded
	fid protocol.FID
}

var _ erasure.Places = places{}

// Near implements erasure.Places.
func (p places) Near(dev protocol.DevID) bool { return p.e.docroot.Has(dev) }

// errNowhere says that no tracker has told where a device is.
var errNowhere = errors.New("no tracker has told where this device is")

// Open implements erasure.Places.
func (p places) Open(ctx context.Context, dev protocol.DevID, off, n int64) (io.ReadCloser, error) {
	if p.Near(dev) {
		v, err := p.e.docroot.Volume(dev)
		if err != nil {
			return nil, err
		}
		f, err := v.Open(ctx, shardName(p.fid, dev))
		if err != nil {
			return nil, err
		}
		ctx, cancel := context.WithCancel(ctx)
		return &ownShard{File: f, ctx: ctx, cancel: cancel, off: off, left: min(n, max(f.Size()-off, 0))}, nil
	}
	url, ok := p.e.peers.URL(dev)
	if !ok {
		return nil, fmt.Errorf("dev%d: %w", dev, errNowhere)
	}
	piece, err := p.e.client.Get(ctx, url, p.fid.ShardPath(dev), off, n)
	if err != nil {
		return nil, err
	}
	return piece, nil
}

// ownShard is a part of a shard on a device of this daemon.
type ownShard struct {
	*volume.File
	ctx    context.Context
	cancel context.CancelFunc
	off    int64
	left   int64
}

// Read implements io.Reader.
func (s *ownShard) Read(p []byte) (int, error) {
	if s.left == 0 {
		return 0, io.EOF
	}
	p = p[:min(int64(len(p)), s.left)]
	if err := s.ReadParts(s.ctx, [][]byte{p}, s.off); err != nil {
		return 0, err
	}
	s.off, s.left = s.off+int64(len(p)), s.left-int64(len(p))
	return len(p), nil
}

// Close implements io.Closer.
func (s *ownShard) Close() error {
	s.cancel()
	return s.File.Close()
}
