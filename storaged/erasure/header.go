package erasure

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"slices"
	"time"

	"github.com/mogile/mogile/protocol"
)

const (
	// HeaderSize is how many bytes of a shard stand before its first block.
	HeaderSize = 4096
	// SumSize is how many bytes follow each block: its CRC32C.
	SumSize = 4
	// MaxLength bounds the length of a file, in bytes, so that no arithmetic on
	// offsets can overflow.
	MaxLength = 1 << 60
)

// Where things are in a header.
const (
	magic       = "MOGILEEC"
	version     = 1
	fixedSize   = 124 // with its CRC32C
	digestAt    = 56
	digestSpace = 64
	slotSpace   = 1024 // the slots begin at 1024 and 2048
	slots       = 2
)

// castagnoli is CRC32C, which processors compute themselves. The table is only
// read.
var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// ErrHeader is matched by errors that say that a file has no whole header of a
// shard.
var ErrHeader = errors.New("not a header of a shard")

// Placement says on which devices the shards of an encoding are.
type Placement struct {
	// Epoch is its number, from 1: of two placements the one with the higher epoch
	// counts. 0 is that of no placement.
	Epoch   int
	Devices []protocol.DevID // k+m, in shard order
}

// Header is what a shard says of itself. But for Index and Placement it is the
// same in all shards of an encoding.
type Header struct {
	protocol.ShardSet
	Index     int               // of the shard; those below K have the file's bytes
	Modified  time.Time         // when the raw file was; to the nanosecond, UTC
	CRC32C    uint32            // Castagnoli, of the file's whole content
	Digest    protocol.Checksum // of the content; zero where it was not known
	Placement Placement         // the one that counts; none where neither slot can be read
}

// Layout is where the header's shards have what.
func (h *Header) Layout() Layout { return Layout{h.ShardSet} }

// Sisters reports whether shards with these headers combine.
func (h *Header) Sisters(other *Header) bool {
	return bytes.Equal(h.of(0).fixed(), other.of(0).fixed())
}

// Check says why there are no shards with such a header.
func (h *Header) Check() error {
	switch n := h.Shards(); {
	case CheckSet(h.ShardSet) != nil:
		return CheckSet(h.ShardSet)
	case h.Index < 0 || h.Index >= n:
		return fmt.Errorf("shard %d of %d", h.Index, n)
	case len(h.Digest.Sum) != h.Digest.Type.Size():
		return fmt.Errorf("a checksum of type %d with %d bytes", h.Digest.Type, len(h.Digest.Sum))
	case h.Placement.Epoch == 0 && len(h.Placement.Devices) == 0:
		return nil
	case h.Placement.Epoch < 1 || h.Placement.Epoch > protocol.MaxEpoch || len(h.Placement.Devices) != n:
		return fmt.Errorf("a placement of epoch %d with %d devices for %d shards", h.Placement.Epoch, len(h.Placement.Devices), n)
	}
	return nil
}

// CheckSet says why there are no shards of such an encoding.
func CheckSet(s protocol.ShardSet) error {
	switch {
	case s.K < 1 || s.K > protocol.MaxDataShards || s.M < 1 || s.M > protocol.MaxParityShards:
		return fmt.Errorf("%d+%d shards: there can be 1 to %d with data and 1 to %d with parity", s.K, s.M, protocol.MaxDataShards, protocol.MaxParityShards)
	case s.Block < 1 || s.Block > protocol.MaxShardBlock:
		return fmt.Errorf("blocks of %d bytes: there can be 1 to %d", s.Block, protocol.MaxShardBlock)
	case s.Length < 0 || s.Length > MaxLength:
		return fmt.Errorf("a file of %d bytes: there can be %d", s.Length, int64(MaxLength))
	case s.FID == 0 || s.FID > protocol.MaxFID || s.Encoding == 0:
		return fmt.Errorf("encoding %d of fid %d: neither is 0, nor the fid above %d", s.Encoding, s.FID, uint64(protocol.MaxFID))
	}
	return nil
}

// of is the header of a sister.
func (h *Header) of(index int) *Header {
	sister := *h
	sister.Index = index
	return &sister
}

// fixed is the part that never changes, without its CRC32C.
func (h *Header) fixed() []byte {
	b := make([]byte, 0, fixedSize)
	b = append(b, magic...)
	b = binary.BigEndian.AppendUint16(b, version)
	b = append(b, byte(h.K), byte(h.M), byte(h.Index), byte(h.Digest.Type), 0, 0)
	b = binary.BigEndian.AppendUint64(b, uint64(h.FID))
	b = binary.BigEndian.AppendUint64(b, h.Encoding)
	b = binary.BigEndian.AppendUint64(b, uint64(h.Length))
	b = binary.BigEndian.AppendUint64(b, uint64(h.Modified.UnixNano()))
	b = binary.BigEndian.AppendUint32(b, uint32(h.Block))
	b = binary.BigEndian.AppendUint32(b, h.CRC32C)
	b = append(b, h.Digest.Sum...)
	return append(b, make([]byte, digestAt+digestSpace-len(b))...)
}

// seed is the CRC32C of the fixed part, that all other sums of the shard go on
// from.
func (h *Header) seed() uint32 { return crc32.Checksum(h.fixed(), castagnoli) }

// slot is the placement as it stands in a slot.
func (h *Header) slot(p Placement) []byte {
	b := make([]byte, 0, 8+4*len(p.Devices))
	b = binary.BigEndian.AppendUint32(b, uint32(p.Epoch))
	for _, d := range p.Devices {
		b = binary.BigEndian.AppendUint32(b, uint32(d))
	}
	return binary.BigEndian.AppendUint32(b, crc32.Update(h.seed(), castagnoli, b))
}

// Bytes are the HeaderSize bytes that a shard begins with. The placement stands
// in the first slot. It panics where Check has an error.
func (h *Header) Bytes() []byte {
	if err := h.Check(); err != nil {
		panic(err)
	}
	b := make([]byte, HeaderSize)
	n := copy(b, h.fixed())
	binary.BigEndian.PutUint32(b[n:], h.seed())
	if h.Placement.Epoch > 0 {
		copy(b[slotSpace:], h.slot(h.Placement))
	}
	return b
}

// ParseHeader reads the first HeaderSize bytes of a shard. Its errors match
// ErrHeader. That no placement can be read is not an error.
func ParseHeader(b []byte) (Header, error) {
	h, err := parseFixed(b)
	if err != nil {
		return Header{}, fmt.Errorf("%w: %w", ErrHeader, err)
	}
	for i := range slots {
		if p, ok := h.parseSlot(b, i); ok && p.Epoch > h.Placement.Epoch {
			h.Placement = p
		}
	}
	return h, nil
}

func parseFixed(b []byte) (Header, error) {
	switch {
	case len(b) < HeaderSize:
		return Header{}, fmt.Errorf("%d of %d bytes", len(b), HeaderSize)
	case string(b[:len(magic)]) != magic:
		return Header{}, errors.New("it does not begin as one")
	case binary.BigEndian.Uint32(b[fixedSize-4:]) != crc32.Checksum(b[:fixedSize-4], castagnoli):
		return Header{}, errors.New("it has another CRC32C than it should have")
	case binary.BigEndian.Uint16(b[8:]) != version:
		return Header{}, fmt.Errorf("its form is %d, and this program knows %d", binary.BigEndian.Uint16(b[8:]), version)
	}
	h := Header{
		ShardSet: protocol.ShardSet{
			K: int(b[10]), M: int(b[11]), FID: protocol.FID(binary.BigEndian.Uint64(b[16:])), Encoding: binary.BigEndian.Uint64(b[24:]),
			Length: int64(binary.BigEndian.Uint64(b[32:])), Block: int(binary.BigEndian.Uint32(b[48:])),
		},
		Index: int(b[12]), Modified: time.Unix(0, int64(binary.BigEndian.Uint64(b[40:]))).UTC(), CRC32C: binary.BigEndian.Uint32(b[52:]),
	}
	if t := protocol.HashType(b[13]); t != protocol.HashNone {
		if t.Size() > 0 { // else of a newer program: as if it were not known
			h.Digest = protocol.Checksum{Type: t, Sum: slices.Clone(b[digestAt : digestAt+t.Size()])}
		}
	}
	if err := h.Check(); err != nil {
		return Header{}, err
	}
	if !bytes.Equal(h.fixed(), b[:fixedSize-4]) {
		return Header{}, errors.New("there is something in it that this program does not know")
	}
	return h, nil
}

// parseSlot reads a slot, and reports whether there is a placement in it.
func (h *Header) parseSlot(b []byte, i int) (Placement, bool) {
	n := h.Shards()
	s := b[slotSpace*(i+1):][:8+4*n]
	end := len(s) - 4
	if binary.BigEndian.Uint32(s[end:]) != crc32.Update(h.seed(), castagnoli, s[:end]) {
		return Placement{}, false
	}
	p := Placement{Epoch: int(binary.BigEndian.Uint32(s)), Devices: make([]protocol.DevID, n)}
	for d := range p.Devices {
		p.Devices[d] = protocol.DevID(binary.BigEndian.Uint32(s[4+4*d:]))
	}
	return p, p.Epoch >= 1 && p.Epoch <= protocol.MaxEpoch
}

// Place says what is to be written where in a shard that begins with b, so that
// the placement counts: the slot that does not count now is replaced, so that
// whatever becomes of the writing one of the two is whole. Nothing is to be
// written, patch is nil, where the shard knows of this epoch or a later one. The
// errors are those of ParseHeader, and that it is no placement of this encoding.
func Place(b []byte, p Placement) (patch []byte, off int64, err error) {
	h, err := ParseHeader(b)
	if err != nil {
		return nil, 0, err
	}
	if h.Placement.Epoch >= p.Epoch {
		return nil, 0, nil
	}
	if now, ok := h.parseSlot(b, 0); ok && now.Epoch == h.Placement.Epoch {
		off = slotSpace
	}
	h.Placement = p
	if err := h.Check(); err != nil {
		return nil, 0, err
	}
	return h.slot(p), slotSpace + off, nil
}
