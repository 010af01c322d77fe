package fsck

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"net"
	"slices"
	"strconv"
	"sync"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/schema"
	"github.com/mogile/mogile/tracker/cluster"
	"github.com/mogile/mogile/tracker/work"
)

// ShardStorage is what is asked of storage daemons about shards, each at the
// HTTP port hostport of the daemon that has them.
type ShardStorage interface {
	// ShardStates has an answer for each shard, in the order of o. size is how many
	// bytes are to be verified.
	ShardStates(ctx context.Context, hostport string, o protocol.ShardStateOrder, size int64) ([]protocol.ShardState, error)
	Place(ctx context.Context, hostport string, o protocol.PlaceOrder) ([]protocol.ShardResult, error)
}

// shardOn is the index of the shard that an encoding has on dev, -1 where there
// is none.
func shardOn(e *schema.Encoding, dev protocol.DevID) int {
	if e == nil {
		return -1
	}
	return slices.Index(e.Devices, dev)
}

// setOf is what the header of each shard of a file must say.
func setOf(e schema.Encoding, length int64) protocol.ShardSet {
	return protocol.ShardSet{FID: e.FID, Encoding: e.ID, K: e.K, M: e.M, Block: e.Block, Length: length}
}

// orders is where the storage daemon of a device takes orders.
func orders(d *cluster.Device) string {
	return net.JoinHostPort(d.Host.Address(cluster.Viewer{}), strconv.Itoa(d.Host.Port))
}

// errNoShards is why a device is not asked for shards.
var errNoShards = errors.New("its storage daemon does not have shards, or not for this tracker: has it the cluster key?")

// encodings reads which files are encoded, and how.
func (b *batch) encodings(ctx context.Context, files []schema.LocatedFile) (map[protocol.FID]schema.Encoding, error) {
	if len(files) == 0 {
		return nil, nil
	}
	fids := make([]protocol.FID, len(files))
	for i, f := range files {
		fids[i] = f.FID
	}
	rows, err := b.c.o.Store.EncodingsOf(ctx, fids)
	if err != nil {
		return nil, fmt.Errorf("read the encodings of %d fids: %w", len(fids), err)
	}
	return rows, nil
}

// headersOf asks a device what shards it has of files.
func (b *batch) headersOf(ctx context.Context, dev protocol.DevID, files []*inquiry) {
	states, err := b.shardStates(ctx, files[0].snap.Device(dev), dev, files, protocol.ShardStateOrder{}, 0)
	if ctx.Err() != nil {
		return
	}
	for i, q := range files {
		o := observation{dev: dev, isShard: true}
		if err == nil {
			o = b.shard(ctx, q, states[i], false)
		}
		b.note(q, o)
	}
}

// shardStates asks for the shards of files on a device. A device that does not
// answer is not asked again.
func (b *batch) shardStates(ctx context.Context, d *cluster.Device, dev protocol.DevID, files []*inquiry, o protocol.ShardStateOrder, size int64) ([]protocol.ShardState, error) {
	if b.isGone(dev) {
		return nil, errNotObserved
	}
	if d == nil || d.Host == nil || !d.Host.Capabilities.Has(protocol.WordEC) {
		b.gone(dev, errNoShards)
		return nil, errNoShards
	}
	for _, q := range files {
		o.Shards = append(o.Shards, protocol.FIDOn{FID: q.file.FID, Dev: dev})
	}
	states, err := b.c.o.Storage.ShardStates(ctx, orders(d), o, size)
	if err != nil && ctx.Err() == nil {
		b.gone(dev, err)
	}
	return states, err
}

// shard is what the state of a shard means for its file.
func (b *batch) shard(ctx context.Context, q *inquiry, s protocol.ShardState, verified bool) observation {
	o := observedShard(*q.encoding, q.file.Length, s, verified)
	if o.state == unasked {
		b.trouble(ctx, s.Dev, q.file.FID, fmt.Errorf("the storage daemon cannot tell: %s", s.Reason))
	}
	return o
}

// observedShard is what the state of a shard means for a file that is encoded so.
// verified says that its blocks should have been read.
func observedShard(e schema.Encoding, length int64, s protocol.ShardState, verified bool) observation {
	o := observation{dev: s.Dev, isShard: true}
	switch {
	case s.What == protocol.ShardMissing:
		o.state = missing
	case s.What == protocol.ShardDamaged, s.What == protocol.ShardPresent && s.Set != setOf(e, length):
		o.state = unreadable
	case s.What != protocol.ShardPresent, verified && s.Sized && !s.Verified: // it cannot tell
	case !s.Sized:
		o.state = wrongSize
	case s.Bad > 0:
		o.state = unreadable
	default:
		o.state, o.index, o.epoch, o.crc = intact, s.Index, s.Epoch, s.CRC32C
		if s.Epoch >= e.Epoch && !slices.Equal(s.Devices, e.Devices) {
			o.epoch = max(s.Epoch, e.Epoch+1) // what is recorded must outdo it
		}
	}
	return o
}

// shardBytes is about how large a shard is.
func shardBytes(e schema.Encoding, length int64) int64 {
	return (length + int64(e.K) - 1) / int64(e.K)
}

// readShard has all blocks of a shard read.
func (b *batch) readShard(ctx context.Context, dev protocol.DevID, q *inquiry) {
	o := observation{dev: dev, isShard: true}
	defer func() {
		if ctx.Err() == nil {
			b.note(q, o)
		}
	}()
	size := shardBytes(*q.encoding, q.file.Length)
	release, err := b.mayRead(ctx, dev, size)
	if err != nil {
		return
	}
	defer release()
	order := protocol.ShardStateOrder{Verify: true}
	if l := b.c.o.Bandwidth; l != nil && float64(l.Limit()) < math.MaxInt64 {
		order.Rate = max(1, int64(l.Limit()))
	}
	reading, stop := work.WhileReadable(ctx, b.c.o.Cluster, dev)
	defer stop()
	states, err := b.shardStates(reading, q.snap.Device(dev), dev, []*inquiry{q}, order, size)
	if ctx.Err() == nil && context.Cause(reading) == work.ErrWentAway {
		b.gone(dev, work.ErrWentAway)
		return
	}
	if err != nil {
		return
	}
	if o = b.shard(ctx, q, states[0], true); states[0].Verified {
		b.haveRead(size)
	}
}

// contentTries is on how many holders of shards the whole file is tried to be
// read.
const contentTries = 3

// readEncoded has the content of encoded files read through their shards, where
// a checksum is stored, or wanted.
func (b *batch) readEncoded(ctx context.Context, files []*inquiry) {
	var g sync.WaitGroup
	for _, q := range files {
		t := b.mode.contentDigest(q.subject)
		if t == protocol.HashNone || q.failed || q.content != nil {
			continue
		}
		v := judge(q.evidence(b.mode))
		if len(v.good) < v.need {
			continue
		}
		g.Go(func() { b.readContent(ctx, q, t, v.good) })
	}
	g.Wait()
}

// readContent reads a file through its shards, on the first of devs that can.
func (b *batch) readContent(ctx context.Context, q *inquiry, t protocol.HashType, devs []protocol.DevID) {
	for _, dev := range devs[:min(len(devs), contentTries)] {
		d := q.snap.Device(dev)
		if b.isGone(dev) {
			continue
		}
		release, err := b.mayRead(ctx, dev, q.file.Length)
		if err != nil {
			return
		}
		reading, stop := work.WhileReadable(ctx, b.c.o.Cluster, dev)
		content, err := b.c.o.Storage.Verify(reading, d.ReadURL(q.file.FID, cluster.Viewer{}), q.file.Length, t, reason)
		stop()
		release()
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			b.trouble(ctx, dev, q.file.FID, err)
		default:
			o := verified(dev, q.file.Length, content)
			b.haveRead(q.file.Length)
			b.mu.Lock()
			q.content = &o
			b.mu.Unlock()
			return
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	q.failed = true
}

// remind tells shards where their sisters are, where they know of an older
// placement than is recorded. Where that fails they are told another time: they
// find their sisters by themselves, only slower.
func (b *batch) remind(ctx context.Context, snap *cluster.Snapshot, e schema.Encoding, devs []protocol.DevID) {
	order := protocol.PlaceOrder{FID: e.FID, Encoding: e.ID, Epoch: e.Epoch, Devices: e.Devices}
	var told []string
	for _, dev := range devs {
		d := snap.Device(dev)
		if d == nil || !d.Readable() || !d.Host.Capabilities.Has(protocol.WordEC) || slices.Contains(told, orders(d)) {
			continue
		}
		told = append(told, orders(d))
		work.Alive(ctx)
		results, err := b.c.o.Storage.Place(ctx, orders(d), order)
		for _, r := range results {
			if r.Err != nil {
				err = errors.Join(err, fmt.Errorf("dev%d: %w", r.Dev, r.Err))
			}
		}
		if err != nil && ctx.Err() == nil {
			b.c.o.Log.Warn().Err(err).Uint64("fid", uint64(e.FID)).Uint32("devid", uint32(dev)).Msg("shard not told where its sisters are")
		}
	}
}

// searchShards looks on all devices that are not dead for shards of a file of
// which too few are where they are recorded, and where that is of no use for a
// copy of it. What it finds becomes part of the evidence.
func (b *batch) searchShards(ctx context.Context, q *inquiry) search {
	var s search
	for some := range slices.Chunk(q.order, searchAtOnce) {
		found := b.shardsOn(ctx, q, some)
		for _, o := range found {
			switch o.state {
			case unasked:
				s.away = true
			case intact:
				s.shards = append(s.shards, o)
			}
		}
		if ctx.Err() != nil {
			return s
		}
	}
	for _, o := range s.shards {
		q.copies[o.dev] = o
	}
	if judge(q.evidence(b.mode)).enough() {
		return s
	}
	for some := range slices.Chunk(q.order, searchAtOnce) {
		for i, o := range b.lookOn(ctx, q, some) {
			if _, has := q.copies[some[i]]; o.state == intact && !has && b.isCopy(ctx, q, some[i]) {
				s.found, s.matches = some[i], true
				return s
			}
		}
		if ctx.Err() != nil {
			return s
		}
	}
	return s
}

// shardsOn asks devices at once for a file's shards. One whose storage daemon
// does not have any is no device with one.
func (b *batch) shardsOn(ctx context.Context, q *inquiry, devs []protocol.DevID) []observation {
	found := make([]observation, len(devs))
	var g sync.WaitGroup
	for i, dev := range devs {
		d := q.snap.Device(dev)
		found[i] = observation{dev: dev, isShard: true}
		switch {
		case !d.Readable():
			b.gone(dev, errNotObserved)
			continue
		case !d.Host.Capabilities.Has(protocol.WordEC):
			found[i].state = missing
			continue
		}
		g.Go(func() {
			release, err := b.c.asks.Acquire(ctx, dev)
			if err != nil {
				return
			}
			defer release()
			states, err := b.shardStates(ctx, d, dev, []*inquiry{q}, protocol.ShardStateOrder{}, 0)
			if err == nil && ctx.Err() == nil {
				found[i] = b.shard(ctx, q, states[0], false)
			}
		})
	}
	g.Wait()
	return found
}

// isCopy reports whether a copy found in a search has the content that the
// encoded file had: the shards that are left go when it is recorded.
func (b *batch) isCopy(ctx context.Context, q *inquiry, dev protocol.DevID) bool {
	t := q.row.Type
	if t == protocol.HashNone {
		t = protocol.HashMD5 // what daemons of every make can
	}
	probe := &inquiry{subject: subject{file: q.file, row: q.row}, digest: t, snap: q.snap, copies: make(map[protocol.DevID]observation)}
	b.read(ctx, dev, probe)
	o := probe.copies[dev]
	switch {
	case o.state != intact || o.rotten():
		return false
	case !q.row.IsZero():
		return o.sum.Equal(q.row)
	}
	return o.computed != nil && slices.ContainsFunc(slices.Collect(maps.Values(q.copies)), func(shard observation) bool {
		return shard.isShard && shard.state == intact && shard.crc == o.computed.CRC32C
	})
}
