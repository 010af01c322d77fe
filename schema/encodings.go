package schema

import (
	"context"

	"github.com/mogile/mogile/protocol"
)

// Encoding is a row of table ec: how a file is kept in shards. Shard i is there
// only while Devices[i] is among the file's locations.
type Encoding struct {
	FID     protocol.FID
	ID      uint64           // random, also in the header of each shard; never 0
	K, M    int              // any K of K+M shards are the file
	Block   int              // bytes of the file that stand together in a shard
	Epoch   int              // of Devices: higher after each change, 1 at first
	Devices []protocol.DevID // K+M, in shard order
}

// Shard is a shard of a file, FID.ec.
const Shard What = "ec"

// Encodings are the files that are kept in shards.
type Encodings interface {
	// EncodingsOf reads how fids are encoded; those that are kept in copies are left
	// out.
	EncodingsOf(ctx context.Context, fids []protocol.FID) (map[protocol.FID]Encoding, error)
	// RecordEncoding has shards take the place of copies, in one transaction. It is
	// applied only if the file row exists (else ErrGone) and the fid's locations are
	// exactly seen, in any order (else ErrStale): they become e.Devices, e is
	// written, each copy of seen enters copy_to_delete as [Raw], due after
	// [DeletionDelay] (also where its device has a shard now), and the entries of
	// the shards go. devcount is counted anew as for AddLocation. After a refusal the
	// entries of the shards are due.
	RecordEncoding(ctx context.Context, e Encoding, seen []protocol.DevID) error
	// PlaceShards records that shards are on other devices, placed by their index, as
	// of epoch, which must be above the row's, and returns the new encoding. Devices
	// with a shard become locations, those without one any more are taken out and
	// enter copy_to_delete as [Shard]; entries of the shards placed go. It is
	// applied only if the file row exists (else ErrGone), the encoding is the row's,
	// no device would have two shards, and the locations are exactly seen (else
	// ErrStale).
	PlaceShards(ctx context.Context, fid protocol.FID, encoding uint64, epoch int, placed map[int]protocol.DevID, seen []protocol.DevID) (Encoding, error)
	// RecordDecoding has copies on devs take the place of shards, in one
	// transaction: they become the fid's locations, the row goes, and all shards
	// enter copy_to_delete as [Shard]. It is applied only if the file row exists
	// (else ErrGone), the encoding is the row's, and the locations are exactly seen
	// (else ErrStale).
	RecordDecoding(ctx context.Context, fid protocol.FID, encoding uint64, devs, seen []protocol.DevID) error
}
