package placement

import (
	"slices"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/schema"
	"github.com/mogile/mogile/tracker/cluster"
)

// Encoded is how a file is encoded, and where its shards are.
type Encoded struct {
	K, M   int // any K of the K+M shards make the file
	Block  int // bytes of the file that stand together in a shard
	Shards []ShardPlacement
}

// ShardPlacement is one shard of a file on a device. Those that count are the
// asker's to decide, as with copies: not those on dead devices.
type ShardPlacement struct {
	Index    int // 0 to K+M-1
	Device   *cluster.Device
	Readable bool // it can be read now: neither its device nor its host is away
}

// EncodedAs is a file that is encoded as e and recorded on devices, as of a
// snapshot: shards on devices that are dead, or not known, do not count.
func EncodedAs(e schema.Encoding, recorded []protocol.DevID, snap *cluster.Snapshot) *Encoded {
	encoded := &Encoded{K: e.K, M: e.M, Block: e.Block}
	for i, dev := range e.Devices {
		if d := snap.Device(dev); d != nil && !d.Dead() && slices.Contains(recorded, dev) {
			encoded.Shards = append(encoded.Shards, ShardPlacement{Index: i, Device: d, Readable: d.Readable()})
		}
	}
	return encoded
}

// Spare is how many more shards can be lost until the file is. It is below 0
// where the file cannot be read even with all shards that count.
func (e *Encoded) Spare() int { return e.count(func(ShardPlacement) bool { return true }) - e.K }

// Readable is how many shards can be read now.
func (e *Encoded) Readable() int { return e.count(func(s ShardPlacement) bool { return s.Readable }) }

// count counts each index once.
func (e *Encoded) count(counts func(ShardPlacement) bool) int {
	n, seen := 0, uint64(0)
	for _, s := range e.Shards {
		if counts(s) && seen&(1<<s.Index) == 0 {
			seen |= 1 << s.Index
			n++
		}
	}
	return n
}
