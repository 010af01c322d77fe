package fsck

import (
	"context"
	"fmt"
	"net"
	"slices"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/schema"
	"github.com/mogile/mogile/tracker/storage"
	"github.com/mogile/mogile/tracker/work"
)

// putShard has a shard lie on a device.
func (d *disks) putShard(s protocol.ShardState) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.shards[s.FIDOn] = s
}

// changeShard changes one that is there.
func (d *disks) changeShard(dev protocol.DevID, fid protocol.FID, change func(s *protocol.ShardState)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	at := protocol.FIDOn{FID: fid, Dev: dev}
	s, ok := d.shards[at]
	if !ok {
		panic(at)
	}
	change(&s)
	d.shards[at] = s
}

func (d *disks) removeShard(dev protocol.DevID, fid protocol.FID) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.shards, protocol.FIDOn{FID: fid, Dev: dev})
}

// atHome panics where an order for a device goes to another host's.
func atHome(hostport string, dev protocol.DevID) {
	host, port, err := net.SplitHostPort(hostport)
	if want := fmt.Sprintf("127.0.0.%d", (dev+1)/2); err != nil || host != want && host != fmt.Sprintf("127.0.0.%d", dev) || port != "7500" {
		panic(fmt.Sprintf("dev%d is asked for at %s", dev, hostport))
	}
}

func (d *disks) ShardStates(ctx context.Context, hostport string, o protocol.ShardStateOrder, size int64) ([]protocol.ShardState, error) {
	if (size > 0) != o.Verify {
		panic(fmt.Sprintf("%d bytes, verify: %v", size, o.Verify))
	}
	d.mu.Lock()
	d.runs++
	d.mu.Unlock()
	var states []protocol.ShardState
	for _, at := range o.Shards {
		atHome(hostport, at.Dev)
		if d.once != nil {
			d.once(at.Dev, at.FID)
		}
		d.mu.Lock()
		d.asked[at.Dev]++
		s, ok := d.shards[at]
		broken, hung := d.broken[at.Dev], d.hung[at.Dev]
		d.mu.Unlock()
		switch {
		case hung:
			work.Pause(ctx, patience)
			return nil, fmt.Errorf("dev%d: %w", at.Dev, storage.ErrUnreachable)
		case broken != nil:
			s = protocol.ShardState{FIDOn: at, What: protocol.ShardUnknown, Reason: broken.Error()}
		case !ok:
			s = protocol.ShardState{FIDOn: at, What: protocol.ShardMissing}
		case s.What == protocol.ShardPresent && o.Verify && s.Sized:
			s.Verified = true
		default:
			s.Bad = 0
		}
		states = append(states, s)
	}
	return states, ctx.Err()
}

func (d *disks) Place(_ context.Context, hostport string, o protocol.PlaceOrder) ([]protocol.ShardResult, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	var results []protocol.ShardResult
	for at, s := range d.shards {
		if at.FID != o.FID || s.What != protocol.ShardPresent || s.Set.Encoding != o.Encoding || net.JoinHostPort(fmt.Sprintf("127.0.0.%d", (at.Dev+1)/2), "7500") != hostport {
			continue
		}
		if s.Epoch < o.Epoch {
			s.Epoch, s.Devices = o.Epoch, slices.Clone(o.Devices)
			d.shards[at] = s
		}
		results = append(results, protocol.ShardResult{Index: s.Index, Dev: at.Dev})
	}
	return results, nil
}

// shardState is that of a shard that is as it should be.
func shardState(e schema.Encoding, length int64, index int, dev protocol.DevID) protocol.ShardState {
	return protocol.ShardState{
		FIDOn: protocol.FIDOn{FID: e.FID, Dev: dev}, What: protocol.ShardPresent, Set: setOf(e, length), Index: index,
		Epoch: e.Epoch, Devices: e.Devices, Sized: true, Blocks: 1,
	}
}
