package worktest

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/tracker/cluster"
	"github.com/mogile/mogile/tracker/storage"
)

// shard is a shard on one of the disks: it has all of the file's content, but
// counts as one of k.
type shard struct {
	set     protocol.ShardSet
	index   int
	epoch   int
	devices []protocol.DevID
	content string
}

// ShardIndex is which shard of a file a device has, and of which encoding; false
// where it has none.
func (d *Disks) ShardIndex(dev protocol.DevID, fid protocol.FID) (encoding uint64, index int, ok bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	s, ok := d.shards[protocol.FIDOn{FID: fid, Dev: dev}]
	return s.set.Encoding, s.index, ok
}

// ShardsOn are the devices that have a shard of a file.
func (d *Disks) ShardsOn(fid protocol.FID) []protocol.DevID {
	d.mu.Lock()
	defer d.mu.Unlock()
	var devs []protocol.DevID
	for at := range d.shards {
		if at.FID == fid {
			devs = append(devs, at.Dev)
		}
	}
	slices.Sort(devs)
	return devs
}

// Epoch is of which epoch the shard on a device knows.
func (d *Disks) Epoch(dev protocol.DevID, fid protocol.FID) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.shards[protocol.FIDOn{FID: fid, Dev: dev}].epoch
}

// PutShard writes a shard of an encoding.
func (d *Disks) PutShard(dev protocol.DevID, fid protocol.FID, encoding uint64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.shards[protocol.FIDOn{FID: fid, Dev: dev}] = shard{set: protocol.ShardSet{FID: fid, Encoding: encoding}}
}

// LoseShard deletes a shard.
func (d *Disks) LoseShard(dev protocol.DevID, fid protocol.FID) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.shards, protocol.FIDOn{FID: fid, Dev: dev})
}

// read is what a GET of a file's path on a device gives: its copy, or what its
// shard and k-1 others make. The caller holds d.mu.
func (d *Disks) read(dev protocol.DevID, fid protocol.FID) (string, bool) {
	if content, ok := d.content[dev][fid]; ok {
		return content, true
	}
	own, ok := d.shards[protocol.FIDOn{FID: fid, Dev: dev}]
	if !ok {
		return "", false
	}
	seen := make(map[int]bool)
	for at, s := range d.shards {
		if at.FID == fid && s.set.Encoding == own.set.Encoding {
			seen[s.index] = true
		}
	}
	return own.content, len(seen) >= own.set.K
}

func (d *Disks) onWrite(ctx context.Context, to []protocol.ShardAt, fid protocol.FID, alive func()) (protocol.DevID, error) {
	if d.OnShard == nil {
		return 0, nil
	}
	defer progress(alive)()
	for _, t := range to {
		if err := d.OnShard(ctx, t.Dev, fid); err != nil {
			return t.Dev, err
		}
	}
	return 0, nil
}

// taken reports whether a device has another shard of a file than the one that is
// to come: it is not replaced. The caller holds d.mu.
func (d *Disks) taken(t protocol.ShardAt, set protocol.ShardSet) bool {
	has, ok := d.shards[protocol.FIDOn{FID: set.FID, Dev: t.Dev}]
	return ok && (has.set.Encoding != set.Encoding || has.index != t.Index)
}

var errTaken = errors.New("it has another shard of the file")

// Encode is [storage.Client.Encode]. Where a device fails, those before it have
// theirs.
func (d *Disks) Encode(ctx context.Context, _ string, o protocol.EncodeOrder, alive func()) (protocol.EncodeReport, error) {
	dev := o.Dev
	if dev == 0 {
		dev, _ = parse(o.From)
	}
	at, failure := d.onWrite(ctx, o.Targets, o.FID, alive)
	d.mu.Lock()
	defer d.mu.Unlock()
	content, ok := d.content[dev][o.FID]
	sum := digest(content, o.Want, o.HashType)
	switch {
	case ctx.Err() != nil:
		return protocol.EncodeReport{}, ctx.Err()
	case !ok || int64(len(content)) != o.Length:
		return protocol.EncodeReport{}, &storage.ShardError{Side: storage.SourceError, Dev: dev, Err: storage.ErrMissing}
	case !o.Want.IsZero() && !sum.Equal(o.Want):
		return protocol.EncodeReport{}, &storage.ShardError{Side: storage.SourceError, Dev: dev, Err: fmt.Errorf("%s instead of %s", sum, o.Want)}
	}
	devices := make([]protocol.DevID, len(o.Targets))
	for i, t := range o.Targets {
		devices[i] = t.Dev
	}
	for _, t := range o.Targets {
		if d.taken(t, o.ShardSet) {
			at, failure = t.Dev, errTaken
		}
		if t.Dev == at {
			return protocol.EncodeReport{}, &storage.ShardError{Side: storage.DestError, Dev: at, Err: failure}
		}
		d.shards[protocol.FIDOn{FID: o.FID, Dev: t.Dev}] = shard{o.ShardSet, t.Index, o.Epoch, devices, content}
	}
	return protocol.EncodeReport{Length: o.Length, CRC32C: contentSum(content).CRC32C, Digest: sum}, nil
}

func digest(content string, want protocol.Checksum, t protocol.HashType) protocol.Checksum {
	if !want.IsZero() {
		t = want.Type
	}
	h := t.New()
	if h == nil {
		return protocol.Checksum{}
	}
	h.Write([]byte(content)) // a hash takes everything
	return protocol.Checksum{Type: t, Sum: h.Sum(nil)}
}

// Rebuild is [storage.Client.Rebuild].
func (d *Disks) Rebuild(ctx context.Context, _ string, o protocol.RebuildOrder, alive func()) ([]protocol.ShardResult, protocol.RebuildReport, error) {
	results := make([]protocol.ShardResult, len(o.Writes))
	for i, w := range o.Writes {
		results[i] = protocol.ShardResult{Index: w.Index, Dev: w.Dev}
		if _, err := d.onWrite(ctx, o.Writes[i:i+1], o.FID, alive); err != nil {
			results[i].Err = &protocol.Error{Code: protocol.ErrCopyDest.Code, Text: err.Error()}
		}
	}
	if ctx.Err() != nil {
		return nil, protocol.RebuildReport{}, ctx.Err()
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	var report protocol.RebuildReport
	content, good := "", 0
	for _, s := range o.Sources {
		if at := d.shards[protocol.FIDOn{FID: o.FID, Dev: s.Dev}]; at.set == o.ShardSet && at.index == s.Index {
			content = at.content
			good++
		} else {
			report.Bad = append(report.Bad, s.Index)
		}
	}
	if good < o.K {
		return nil, report, &storage.ShardError{Side: storage.SourceError, Err: protocol.ErrTooFewShards}
	}
	for i, r := range results {
		if d.taken(o.Writes[i], o.ShardSet) {
			results[i].Err = &protocol.Error{Code: protocol.ErrCopyDest.Code, Text: errTaken.Error()}
		} else if r.Err == nil {
			d.shards[protocol.FIDOn{FID: o.FID, Dev: r.Dev}] = shard{o.ShardSet, r.Index, o.Epoch, o.Devices, content}
		}
	}
	return results, report, nil
}

// Place is [storage.Client.Place]. It asks all disks, whatever host they are of.
func (d *Disks) Place(_ context.Context, _ string, o protocol.PlaceOrder) ([]protocol.ShardResult, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	var results []protocol.ShardResult
	for at, s := range d.shards {
		if at.FID != o.FID || s.set.Encoding != o.Encoding {
			continue
		}
		if s.epoch < o.Epoch {
			s.epoch, s.devices = o.Epoch, o.Devices
			d.shards[at] = s
		}
		results = append(results, protocol.ShardResult{Index: s.index, Dev: at.Dev})
	}
	return results, nil
}

// Drop is [storage.Client.Drop].
func (d *Disks) Drop(ctx context.Context, _ string, o protocol.DropOrder) (protocol.DropReport, error) {
	if d.OnDelete != nil {
		if err := d.OnDelete(ctx, o.Dev, o.FID); err != nil {
			return protocol.DropReport{}, err
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	at := protocol.FIDOn{FID: o.FID, Dev: o.Dev}
	s, isShard := d.shards[at]
	_, isRaw := d.content[o.Dev][o.FID]
	switch {
	case o.What == protocol.DropRaw && isRaw:
		delete(d.content[o.Dev], o.FID)
	case o.What == protocol.DropShard && isShard && o.Encoding != 0 && o.Encoding != s.set.Encoding:
		return protocol.DropReport{Result: protocol.DropDiffers, Encoding: s.set.Encoding}, nil
	case o.What == protocol.DropShard && isShard:
		delete(d.shards, at)
	default:
		return protocol.DropReport{Result: protocol.DropMissing}, nil
	}
	d.deletes++
	return protocol.DropReport{Result: protocol.Dropped}, nil
}

// MakeShards has a cluster's storage daemons know of shards.
func (c *Cluster) MakeShards() {
	for _, d := range c.Snapshot().DeviceList {
		c.Change(d.ID, func(_ *cluster.Device, h *cluster.Host) {
			h.Capabilities = cluster.Capabilities{Version: 1, Words: []string{protocol.WordEC, protocol.VerbTrash}}
		})
	}
}
