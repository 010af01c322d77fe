package protocol

import (
	"encoding/base64"
	"fmt"
	"strconv"
	"strings"
)

const (
	// VerbShard is the verb of the order in the header [OrderHeader] of a PUT to the
	// path of a shard.
	VerbShard = "shard"
	// VerbPlace is the verb with which shards are told where their sisters are.
	VerbPlace = "place"
	// VerbShardState is the verb with which a storage daemon is asked which shards it
	// has.
	VerbShardState = "shard_state"
	// VerbDrop is the verb with which a copy or a shard of a file is deleted, and not
	// the other.
	VerbDrop = "drop"

	// MaxShardStates bounds the shards of one [ShardStateOrder].
	MaxShardStates = 1000
)

// OrderHeader is the header of a PUT to the path of a shard in which the order
// is, of [VerbShard]: the base64 of what Order.Sign writes.
const OrderHeader = "Mogile-Order"

// Header is the order as the value of [OrderHeader].
func (o Order) Header(key []byte) string { return base64.StdEncoding.EncodeToString(o.Sign(key)) }

// ParseOrderHeader reads what [Order.Header] writes, and nothing else. Its errors
// are those of [ParseOrder].
func ParseOrderHeader(text string) (SignedOrder, error) {
	body, err := base64.StdEncoding.Strict().DecodeString(text)
	if err != nil || base64.StdEncoding.EncodeToString(body) != text {
		return SignedOrder{}, badOrder("the header %s is not base64", OrderHeader)
	}
	return ParseOrder(body)
}

// ShardOrder permits one upload of a shard.
type ShardOrder struct {
	FID      FID
	Dev      DevID
	Encoding uint64
	Index    int // 0 to MaxShards-1
}

// Args are the arguments of the order.
func (s ShardOrder) Args() Args {
	return Args{{"devid", s.Dev.String()}, {"encoding", FormatEncoding(s.Encoding)}, {"fid", s.FID.String()}, {"shard", strconv.Itoa(s.Index)}}
}

// ParseShardOrder reads the arguments of an order. Its errors match ErrBadOrder.
func ParseShardOrder(a Args) (ShardOrder, error) {
	fid, err1 := orderNumber(a, "fid", 1, MaxFID)
	dev, err2 := orderNumber(a, "devid", 1, MaxDevID)
	index, err3 := orderNumber(a, "shard", 0, MaxShards-1)
	encoding, err4 := orderEncoding(a)
	for _, err := range []error{err1, err2, err3, err4} {
		if err != nil {
			return ShardOrder{}, err
		}
	}
	return ShardOrder{FID(fid), DevID(dev), encoding, int(index)}, nil
}

// PlaceOrder has the shards of an encoding that a storage daemon has on any of
// Devices note where all of them are now. Its answer has a [ShardResult] for each
// shard of the encoding that is there; one that knows of this or of a later epoch
// is done.
type PlaceOrder struct {
	FID      FID
	Encoding uint64
	Epoch    int     // 1 to MaxEpoch
	Devices  []DevID // k+m, in shard order
}

// Args are the arguments of the order.
func (p PlaceOrder) Args() Args {
	return Args{
		{"devids", formatDevs(p.Devices)}, {"encoding", FormatEncoding(p.Encoding)},
		{"epoch", strconv.Itoa(p.Epoch)}, {"fid", p.FID.String()},
	}
}

// ParsePlaceOrder reads the arguments of an order. Its errors match ErrBadOrder.
func ParsePlaceOrder(a Args) (PlaceOrder, error) {
	fid, err1 := orderNumber(a, "fid", 1, MaxFID)
	encoding, err2 := orderEncoding(a)
	epoch, err3 := orderEpoch(a)
	devs, err4 := orderDevs(a, 2, MaxShards)
	for _, err := range []error{err1, err2, err3, err4} {
		if err != nil {
			return PlaceOrder{}, err
		}
	}
	return PlaceOrder{FID(fid), encoding, epoch, devs}, nil
}

// FIDOn is a file on a device.
type FIDOn struct {
	FID FID
	Dev DevID
}

// String is "fid:devid".
func (f FIDOn) String() string { return f.FID.String() + ":" + f.Dev.String() }

// ParseFIDOn reads what [FIDOn.String] writes, and nothing else.
func ParseFIDOn(text string) (FIDOn, error) {
	fid, dev, _ := strings.Cut(text, ":")
	n, err1 := strconv.ParseUint(fid, 10, 63)
	d, err2 := parseDev(dev)
	f := FIDOn{FID(n), d}
	if err1 != nil || err2 != nil || n == 0 || f.String() != text {
		return FIDOn{}, fmt.Errorf("%.60q is not of the form fid:devid", text)
	}
	return f, nil
}

// ShardStateOrder asks which shards are there. There is a [ShardState] for each
// in the answer, in the order of these. Its progress is told in bytes that were
// read.
type ShardStateOrder struct {
	Shards []FIDOn // 1 to MaxShardStates
	Verify bool    // every block is read, and compared with its sum; at low priority
	Rate   int64   // bytes a second at most that are read for that; 0: any number
}

// Args are the arguments of the order.
func (s ShardStateOrder) Args() Args {
	texts := make([]string, len(s.Shards))
	for i, f := range s.Shards {
		texts[i] = f.String()
	}
	a := Args{{"shards", strings.Join(texts, ",")}}
	if s.Verify {
		a.Add("verify", "1")
	}
	addRate(&a, s.Rate)
	return a
}

// ParseShardStateOrder reads the arguments of an order. Its errors match
// ErrBadOrder.
func ParseShardStateOrder(a Args) (ShardStateOrder, error) {
	s := ShardStateOrder{Verify: a.True("verify")}
	for text := range strings.SplitSeq(a.Get("shards"), ",") {
		f, err := ParseFIDOn(text)
		if err != nil || len(s.Shards) == MaxShardStates {
			return ShardStateOrder{}, badOrder("shards must be 1 to %d of the form fid:devid", MaxShardStates)
		}
		s.Shards = append(s.Shards, f)
	}
	var err error
	s.Rate, err = orderRate(a)
	return s, err
}

// What is at the path of a shard.
const (
	ShardPresent = "shard"   // a shard, of which the header is whole
	ShardMissing = "missing" // nothing
	ShardDamaged = "damaged" // a file, of which the header cannot be read
	ShardUnknown = "unknown" // the disk, or the device, could not be asked
)

// ShardState is what is at the path of a shard, a line of the answer.
type ShardState struct {
	FIDOn
	What   string // ShardPresent, ShardMissing, ShardDamaged or ShardUnknown
	Reason string // of ShardDamaged and ShardUnknown

	// What follows is of ShardPresent.
	Set      ShardSet // that the header names; its FID is another's where the shard is in the wrong place
	Index    int
	Epoch    int     // of the placement that counts; 0 where neither slot can be read
	Devices  []DevID // of that placement
	CRC32C   uint32  // of the file's content
	Sized    bool    // the shard's own size is right
	Verified bool    // all blocks were read, and Bad counts those that differ from their sums
	Blocks   int64   // how many there are, where Verified
	Bad      int64   // of them, those that cannot be read or differ from their sums, where Verified
}

// Args are the fields of the line.
func (s ShardState) Args() Args {
	a := Args{{"at", s.FIDOn.String()}, {"state", s.What}}
	if s.Reason != "" {
		a.Add("reason", s.Reason)
	}
	if s.What != ShardPresent {
		return a
	}
	s.Set.add(&a)
	a.Add("shard", strconv.Itoa(s.Index))
	a.Add("epoch", strconv.Itoa(s.Epoch))
	if s.Epoch > 0 {
		a.Add("devids", formatDevs(s.Devices))
	}
	a.Add("crc32c", fmt.Sprintf("%08x", s.CRC32C))
	if s.Sized {
		a.Add("sized", "1")
	}
	if s.Verified {
		a.AddInt("blocks", s.Blocks)
		a.AddInt("bad", s.Bad)
	}
	return a
}

// ParseShardState reads the fields of a line. Its errors match ErrBadReply.
func ParseShardState(a Args) (ShardState, error) {
	bad := func() (ShardState, error) {
		return ShardState{}, fmt.Errorf("state of a shard: %.200q: %w", a.String(), ErrBadReply)
	}
	at, err := ParseFIDOn(a.Get("at"))
	s := ShardState{FIDOn: at, What: a.Get("state"), Reason: a.Get("reason")}
	switch {
	case err != nil:
		return bad()
	case s.What == ShardMissing || s.What == ShardDamaged || s.What == ShardUnknown:
		return s, nil
	case s.What != ShardPresent:
		return bad()
	}
	var err1, err2, err3, err4 error
	s.Set, err1 = parseShardSet(a)
	s.Index, err2 = parseIndex(a.Get("shard"))
	epoch, err3 := strconv.ParseUint(a.Get("epoch"), 10, 31)
	crc, err4 := strconv.ParseUint(a.Get("crc32c"), 16, 32)
	if err1 != nil || err2 != nil || err3 != nil || err4 != nil || s.Index >= s.Set.Shards() {
		return bad()
	}
	s.Epoch, s.CRC32C, s.Sized = int(epoch), uint32(crc), a.True("sized")
	if s.Epoch > 0 {
		if s.Devices, err = parseDevs(a.Get("devids"), s.Set.Shards(), s.Set.Shards()); err != nil {
			return bad()
		}
	}
	if text, ok := a.Lookup("bad"); ok {
		blocks, err1 := strconv.ParseInt(a.Get("blocks"), 10, 64)
		n, err2 := strconv.ParseInt(text, 10, 64)
		if err1 != nil || err2 != nil || n < 0 || n > blocks {
			return bad()
		}
		s.Verified, s.Blocks, s.Bad = true, blocks, n
	}
	return s, nil
}

// What [DropOrder] is about.
const (
	DropRaw   = "raw"   // FID.fid
	DropShard = "shard" // FID.ec
)

// DropOrder has a copy of a file deleted, or a shard.
type DropOrder struct {
	FID      FID
	Dev      DevID
	What     string // DropRaw or DropShard
	Encoding uint64 // of a shard, which stays if it is readable and of another one; 0: any
}

// Args are the arguments of the order.
func (d DropOrder) Args() Args {
	a := Args{{"devid", d.Dev.String()}, {"fid", d.FID.String()}, {"what", d.What}}
	if d.Encoding != 0 {
		a.Add("encoding", FormatEncoding(d.Encoding))
	}
	return a
}

// ParseDropOrder reads the arguments of an order. Its errors match ErrBadOrder.
func ParseDropOrder(a Args) (DropOrder, error) {
	fid, err := orderNumber(a, "fid", 1, MaxFID)
	if err != nil {
		return DropOrder{}, err
	}
	dev, err := orderNumber(a, "devid", 1, MaxDevID)
	if err != nil {
		return DropOrder{}, err
	}
	d := DropOrder{FID: FID(fid), Dev: DevID(dev), What: a.Get("what")}
	if d.What != DropRaw && d.What != DropShard {
		return DropOrder{}, badOrder("what must be %s or %s", DropRaw, DropShard)
	}
	if _, ok := a.Lookup("encoding"); ok {
		d.Encoding, err = orderEncoding(a)
	}
	return d, err
}

// What became of what was to be dropped.
const (
	Dropped     = "dropped"
	DropMissing = "missing" // there was none
	DropDiffers = "differs" // it is of another encoding, and stays
)

// DropReport is the answer to a [DropOrder].
type DropReport struct {
	Result   string // Dropped, DropMissing or DropDiffers
	Encoding uint64 // of the shard, where it was readable; else 0
}

// Args are the fields of the answer.
func (d DropReport) Args() Args {
	a := Args{{"result", d.Result}}
	if d.Encoding != 0 {
		a.Add("encoding", FormatEncoding(d.Encoding))
	}
	return a
}

// ParseDropReport reads the fields of an answer. Its errors match ErrBadReply.
func ParseDropReport(a Args) (DropReport, error) {
	d := DropReport{Result: a.Get("result")}
	var err error
	if text, ok := a.Lookup("encoding"); ok {
		d.Encoding, err = ParseEncoding(text)
	}
	if err != nil || d.Result != Dropped && d.Result != DropMissing && d.Result != DropDiffers {
		return DropReport{}, fmt.Errorf("answer to drop: %.200q: %w", a.String(), ErrBadReply)
	}
	return d, nil
}
