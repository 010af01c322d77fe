package schema

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

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

// Check says why e is no encoding.
func (e Encoding) Check() error {
	switch {
	case e.FID == 0 || e.ID == 0:
		return fmt.Errorf("encoding %d of fid %d: one of them is missing", e.ID, e.FID)
	case e.K < 1 || e.K > protocol.MaxDataShards || e.M < 1 || e.M > protocol.MaxParityShards:
		return fmt.Errorf("encoding of fid %d: there cannot be %d+%d shards", e.FID, e.K, e.M)
	case e.Block < 1 || e.Block > protocol.MaxShardBlock || e.Epoch < 1 || e.Epoch > protocol.MaxEpoch:
		return fmt.Errorf("encoding of fid %d: block size %d or epoch %d is out of range", e.FID, e.Block, e.Epoch)
	}
	distinct := slices.Clone(e.Devices)
	slices.Sort(distinct)
	if distinct = slices.Compact(distinct); len(distinct) != e.K+e.M || len(e.Devices) != e.K+e.M || distinct[0] == 0 {
		return fmt.Errorf("encoding of fid %d: %d+%d shards cannot be on devices %v", e.FID, e.K, e.M, e.Devices)
	}
	return nil
}

// Place is e with shards, by their index, on other devices, as of epoch. What does
// not fit e is an error matching [ErrStale].
func (e Encoding) Place(placed map[int]protocol.DevID, epoch int) (Encoding, error) {
	if epoch <= e.Epoch {
		return e, fmt.Errorf("shards of fid %d as of %d, recorded is %d: %w", e.FID, epoch, e.Epoch, ErrStale)
	}
	e.Epoch, e.Devices = epoch, slices.Clone(e.Devices)
	for i, dev := range placed {
		if i < 0 || i >= len(e.Devices) {
			return e, fmt.Errorf("shard %d of fid %d: there are %d: %w", i, e.FID, len(e.Devices), ErrStale)
		}
		e.Devices[i] = dev
	}
	if err := e.Check(); err != nil {
		return e, fmt.Errorf("%w: %w", err, ErrStale)
	}
	return e, nil
}

// Locations are those of a file that is on devs, once its encoding is e instead of
// was: the devices placed have come, and those that have no shard any more are
// left.
func (e Encoding) Locations(was Encoding, placed map[int]protocol.DevID, devs []protocol.DevID) (now, left []protocol.DevID) {
	for _, dev := range devs {
		if slices.Contains(was.Devices, dev) && !slices.Contains(e.Devices, dev) {
			left = append(left, dev)
		} else {
			now = append(now, dev)
		}
	}
	for _, dev := range placed {
		if !slices.Contains(now, dev) {
			now = append(now, dev)
		}
	}
	slices.Sort(now)
	return now, left
}

// CheckCopies says why a file that was kept in shards cannot be in copies on devs.
func CheckCopies(fid protocol.FID, devs []protocol.DevID) error {
	distinct := slices.Clone(devs)
	slices.Sort(distinct)
	if len(devs) == 0 || len(slices.Compact(distinct)) != len(devs) {
		return fmt.Errorf("fid %d cannot have copies on devices %v", fid, devs)
	}
	return nil
}

// DeviceText is e.Devices as the column devids has them.
func (e Encoding) DeviceText() string {
	words := make([]string, len(e.Devices))
	for i, dev := range e.Devices {
		words[i] = dev.String()
	}
	return strings.Join(words, ",")
}

// ParseShardDevices reads what [Encoding.DeviceText] writes.
func ParseShardDevices(text string) ([]protocol.DevID, error) {
	words := strings.Split(text, ",")
	if len(words) > protocol.MaxShards {
		return nil, fmt.Errorf("devices of %d shards: there are %d at most", len(words), protocol.MaxShards)
	}
	devs := make([]protocol.DevID, len(words))
	for i, word := range words {
		n, err := strconv.ParseUint(word, 10, 32)
		if err != nil || n == 0 || n > protocol.MaxDevID {
			return nil, fmt.Errorf("devices of shards %.100q: %.20q is no device", text, word)
		}
		devs[i] = protocol.DevID(n)
	}
	return devs, nil
}

// Urgencies is how many values nexttry has, from 0, for files in shards of which
// some are lost: before all that is due by the clock, the fewer losses it survives
// the earlier.
const Urgencies = 10

// Urgency is the nexttry of a file that survives the loss of spare more shards.
func Urgency(spare int64) int64 { return min(max(spare, 0), Urgencies-1) }

// Shard is a shard of a file, FID.ec, of whatever encoding, as earlier versions
// wrote it.
const Shard What = "ec"

// ShardOf is a shard of one encoding. What is there of another one stays: a
// database that was restored does not know of shards that came later, and they may
// be all that is left of the file.
func ShardOf(encoding uint64) What {
	return Shard + What(":"+protocol.FormatEncoding(encoding))
}

// Shard reports whether w is a shard, and of which encoding; 0 is any.
func (w What) Shard() (encoding uint64, ok bool) {
	text, one := strings.CutPrefix(string(w), string(Shard)+":")
	if !one {
		return 0, w == Shard
	}
	encoding, err := protocol.ParseEncoding(text)
	return encoding, err == nil
}

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
	// the shards, and of [Bad] bytes on their devices, go. devcount is counted anew as for AddLocation. After a refusal the
	// entries of the shards are due.
	RecordEncoding(ctx context.Context, e Encoding, seen []protocol.DevID) error
	// PlaceShards records that shards are on other devices, placed by their index, as
	// of epoch, which must be above the row's, and returns the new encoding. Devices
	// with a shard become locations, those without one any more are taken out and
	// enter copy_to_delete as [ShardOf] it; entries of the shards placed, and of [Bad]
	// bytes on their devices, go. It is
	// applied only if the file row exists (else ErrGone), the encoding is the row's,
	// no device would have two shards, and the locations are exactly seen (else
	// ErrStale).
	PlaceShards(ctx context.Context, fid protocol.FID, encoding uint64, epoch int, placed map[int]protocol.DevID, seen []protocol.DevID) (Encoding, error)
	// RecordDecoding has copies on devs take the place of shards, in one
	// transaction: they become the fid's locations, of which there must be one at
	// least, the row goes, and all shards enter copy_to_delete as [ShardOf] it. It is applied only if the file row exists
	// (else ErrGone), the encoding is the row's, and the locations are exactly seen
	// (else ErrStale).
	RecordDecoding(ctx context.Context, fid protocol.FID, encoding uint64, devs, seen []protocol.DevID) error
}

// Accounts are what files occupy.
type Accounts interface {
	// ClassUsage adds up the files of each class that has any, by domain and class.
	// It reads all rows of file, in one pass without sorting them; nobody waits for
	// it.
	ClassUsage(ctx context.Context) ([]ClassUsage, error)
}

// ClassUsage is what the files of a class occupy.
type ClassUsage struct {
	DMID    DMID
	ClassID ClassID
	Files   int64
	Bytes   int64 // as clients stored them
	Stored  int64 // on devices, all copies and shards that devcount counts together
}
