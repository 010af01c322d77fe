package protocol

import (
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

// Bounds of erasure coding.
const (
	// MaxDataShards is the highest k: how many shards have a file's bytes.
	MaxDataShards = 32
	// MaxParityShards is the highest m: how many of k+m shards can be lost.
	MaxParityShards = 16
	// MaxShards bounds k+m.
	MaxShards = MaxDataShards + MaxParityShards
	// MaxShardBlock bounds how many bytes of a file stand together in a shard.
	MaxShardBlock = 256 << 10
)

// WordEC is the capability of storage daemons that make and serve shards, and
// take all orders of this file, of verb_shards.go and of verb_peers.go.
const WordEC = "ec"

const (
	// VerbEncode is the verb with which shards are made of a file.
	VerbEncode = "encode"
	// VerbRebuild is the verb with which shards are made of other shards, or moved.
	VerbRebuild = "rebuild"
)

// Shards are not made for the reasons that [VerbCopy] has, and for this one.
var ErrTooFewShards = Err("too_few_shards") // of some part fewer than k shards can be read

// ShardSet says which shards belong together: those of one encoding of a file.
type ShardSet struct {
	FID      FID
	Encoding uint64 // random, never 0; shards of different encodings never combine
	K        int    // 1 to MaxDataShards
	M        int    // 1 to MaxParityShards
	Block    int    // bytes of the file that stand together in a shard; 1 to MaxShardBlock
	Length   int64  // of the file, in bytes
}

// FormatEncoding is how an encoding is written: 16 hexadecimal digits.
func FormatEncoding(encoding uint64) string { return fmt.Sprintf("%016x", encoding) }

// ParseEncoding reads what FormatEncoding writes, and nothing else. 0 is none.
func ParseEncoding(text string) (uint64, error) {
	n, err := strconv.ParseUint(text, 16, 64)
	if err != nil || n == 0 || FormatEncoding(n) != text {
		return 0, fmt.Errorf("%.40q is not an encoding: 16 hexadecimal digits", text)
	}
	return n, nil
}

// Shards is k+m.
func (s ShardSet) Shards() int { return s.K + s.M }

func (s ShardSet) add(a *Args) {
	a.Add("block", strconv.Itoa(s.Block))
	a.Add("encoding", FormatEncoding(s.Encoding))
	a.Add("fid", s.FID.String())
	a.Add("k", strconv.Itoa(s.K))
	a.AddInt("length", s.Length)
	a.Add("m", strconv.Itoa(s.M))
}

func parseShardSet(a Args) (ShardSet, error) {
	var s ShardSet
	var err error
	number := func(name string, low, high uint64) uint64 {
		n, e := orderNumber(a, name, low, high)
		if err == nil {
			err = e
		}
		return n
	}
	s.FID = FID(number("fid", 1, MaxFID))
	s.K, s.M = int(number("k", 1, MaxDataShards)), int(number("m", 1, MaxParityShards))
	s.Block = int(number("block", 1, MaxShardBlock))
	s.Length = int64(number("length", 0, 1<<63-1))
	if err != nil {
		return ShardSet{}, err
	}
	s.Encoding, err = orderEncoding(a)
	return s, err
}

func orderEncoding(a Args) (uint64, error) {
	encoding, err := ParseEncoding(a.Get("encoding"))
	if err != nil {
		return 0, badOrder("encoding: %v", err)
	}
	return encoding, nil
}

func badOrder(format string, args ...any) error {
	return &Error{Code: ErrBadOrder.Code, Text: fmt.Sprintf(format, args...)}
}

// Peer is a device, and the storage daemon that has it.
type Peer struct {
	Dev DevID
	URL string // "http://host:port", without a slash behind it
}

// maxPeerURL bounds Peer.URL, in bytes: a host's name has 255 at most.
const maxPeerURL = 280

// CheckPeerURL says why text is not the URL of a storage daemon.
func CheckPeerURL(text string) error {
	u, err := url.Parse(text)
	switch {
	case err != nil:
		return err
	case len(text) > maxPeerURL || u.Scheme != "http" || u.Host == "" || text != "http://"+u.Host || strings.ContainsAny(text, ", "):
		return fmt.Errorf("%.80q is not of the form http://host:port", text)
	}
	return nil
}

// ShardAt is a shard at a place.
type ShardAt struct {
	Index int // 0 to k+m-1
	Peer
}

// formatShardsAt is "index:devid url", separated by commas.
func formatShardsAt(at []ShardAt) string {
	var b strings.Builder
	for i, s := range at {
		if i > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, "%d:%d %s", s.Index, s.Dev, s.URL)
	}
	return b.String()
}

// parseShardsAt reads what formatShardsAt writes. Indexes are below n, ascending,
// and each is there once, as is each device.
func parseShardsAt(a Args, name string, n int) ([]ShardAt, error) {
	text := a.Get(name)
	if text == "" {
		return nil, nil
	}
	bad := func(why string) ([]ShardAt, error) { return nil, badOrder("%s: %s", name, why) }
	seen := make(map[DevID]bool)
	var all []ShardAt
	for item := range strings.SplitSeq(text, ",") {
		place, daemon, _ := strings.Cut(item, " ")
		index, dev, _ := strings.Cut(place, ":")
		i, err1 := strconv.ParseUint(index, 10, 16)
		d, err2 := parseDev(dev)
		s := ShardAt{int(i), Peer{d, daemon}}
		switch {
		case err1 != nil || err2 != nil || strconv.Itoa(s.Index) != index:
			return bad(fmt.Sprintf("%.40q is not of the form index:devid url", item))
		case s.Index >= n || len(all) > 0 && all[len(all)-1].Index >= s.Index:
			return bad("an index is too high, twice there, or out of order")
		case seen[d]:
			return bad("a device is there twice")
		}
		if err := CheckPeerURL(daemon); err != nil {
			return bad(err.Error())
		}
		seen[d] = true
		all = append(all, s)
	}
	return all, nil
}

func parseDev(text string) (DevID, error) {
	n, err := strconv.ParseUint(text, 10, 32)
	if err != nil || n == 0 || n > MaxDevID || strconv.FormatUint(n, 10) != text {
		return 0, fmt.Errorf("%.20q is not a device's number", text)
	}
	return DevID(n), nil
}

// formatDevs is devids, separated by commas.
func formatDevs(devs []DevID) string {
	var b []byte
	for i, d := range devs {
		if i > 0 {
			b = append(b, ',')
		}
		b = strconv.AppendUint(b, uint64(d), 10)
	}
	return string(b)
}

// parseDevs reads what formatDevs writes, of low to high different devices.
func parseDevs(text string, low, high int) ([]DevID, error) {
	var devs []DevID
	seen := make(map[DevID]bool)
	for item := range strings.SplitSeq(text, ",") {
		d, err := parseDev(item)
		if err != nil || seen[d] || len(devs) == high {
			return nil, fmt.Errorf("%.80q are not %d to %d different devices", text, low, high)
		}
		seen[d] = true
		devs = append(devs, d)
	}
	if len(devs) < low {
		return nil, fmt.Errorf("%.80q are not %d to %d different devices", text, low, high)
	}
	return devs, nil
}

// orderDevs reads the argument devids of an order.
func orderDevs(a Args, low, high int) ([]DevID, error) {
	devs, err := parseDevs(a.Get("devids"), low, high)
	if err != nil {
		return nil, badOrder("devids: %v", err)
	}
	return devs, nil
}

// MaxEpoch bounds the epochs of placements.
const MaxEpoch = 1<<31 - 1

// EncodeOrder is what [VerbEncode] has done: k+m shards are made of a file, and
// land complete and durable on their devices.
type EncodeOrder struct {
	ShardSet
	Dev      DevID     // a device of the executor's that has the file; 0: it is fetched
	From     string    // "http://host:port/path" of a copy; may be empty where Dev is not 0
	Want     Checksum  // that the content must have; zero where it is not known
	HashType HashType  // to be computed where Want is zero; none: none is
	Epoch    int       // of the placement that goes into the shards; 1 to MaxEpoch
	Targets  []ShardAt // k+m, in order; on different devices
	Rate     int64     // bytes of the file a second at most; 0: as many as the daemon's own limits let through
}

// Args are the arguments of the order.
func (e EncodeOrder) Args() Args {
	var a Args
	e.ShardSet.add(&a)
	a.Add("devid", e.Dev.String())
	if e.From != "" {
		a.Add("from", e.From)
	}
	if e.Want.IsZero() {
		a.Add("hash", e.HashType.String())
	} else {
		a.Add("sum", e.Want.String())
	}
	a.Add("epoch", strconv.Itoa(e.Epoch))
	a.Add("targets", formatShardsAt(e.Targets))
	addRate(&a, e.Rate)
	return a
}

func addRate(a *Args, rate int64) {
	if rate > 0 {
		a.AddInt("rate", rate)
	}
}

func orderRate(a Args) (int64, error) {
	if _, ok := a.Lookup("rate"); !ok {
		return 0, nil
	}
	n, err := orderNumber(a, "rate", 0, 1<<63-1)
	return int64(n), err
}

// ParseEncodeOrder reads the arguments of an order. Names that are not known are
// of newer trackers, and ignored. Its errors match ErrBadOrder.
func ParseEncodeOrder(a Args) (EncodeOrder, error) {
	set, err := parseShardSet(a)
	if err != nil {
		return EncodeOrder{}, err
	}
	e := EncodeOrder{ShardSet: set, From: a.Get("from")}
	dev, err := orderNumber(a, "devid", 0, MaxDevID)
	if err != nil {
		return EncodeOrder{}, err
	}
	e.Dev = DevID(dev)
	if (e.From != "" || e.Dev == 0) && (!strings.HasPrefix(e.From, "http://") || len(e.From) > maxCopyURL) {
		return EncodeOrder{}, badOrder("encode: from is missing or makes no sense")
	}
	if text, ok := a.Lookup("sum"); ok {
		if e.Want, err = ParseChecksum(text); err != nil {
			return EncodeOrder{}, badOrder("encode: sum makes no sense")
		}
	} else if text := a.Get("hash"); text != "" && text != HashNone.String() {
		if e.HashType, ok = ParseHashType(text); !ok {
			return EncodeOrder{}, badOrder("encode: hash makes no sense")
		}
	}
	if e.Epoch, err = orderEpoch(a); err != nil {
		return EncodeOrder{}, err
	}
	if e.Targets, err = parseShardsAt(a, "targets", set.Shards()); err != nil {
		return EncodeOrder{}, err
	}
	if len(e.Targets) != set.Shards() {
		return EncodeOrder{}, badOrder("targets: %d instead of %d", len(e.Targets), set.Shards())
	}
	e.Rate, err = orderRate(a)
	return e, err
}

func orderEpoch(a Args) (int, error) {
	n, err := orderNumber(a, "epoch", 1, MaxEpoch)
	return int(n), err
}

// EncodeReport is the answer to an [EncodeOrder] that was carried out. Its
// progress is told in bytes of the file.
type EncodeReport struct {
	Length int64    // of the file, in bytes
	CRC32C uint32   // of the file's content
	Digest Checksum // of the content; zero where none was asked for
}

// Args are the fields of the answer.
func (r EncodeReport) Args() Args {
	return CopyReport{Length: r.Length, CRC32C: r.CRC32C, Digest: r.Digest}.Args()
}

// ParseEncodeReport reads the fields of an answer. Its errors match ErrBadReply.
func ParseEncodeReport(a Args) (EncodeReport, error) {
	r, err := ParseCopyReport(a)
	if err != nil {
		return EncodeReport{}, fmt.Errorf("of encode: %w", err)
	}
	return EncodeReport{r.Length, r.CRC32C, r.Digest}, nil
}

// ShardFailure is what is told beside the refusal of an order to make shards.
// Those that were to be written may be there, or not.
type ShardFailure struct {
	Dev     DevID // which could not be written to, or had what is at fault; 0 where it is none in particular
	Full    bool  // for lack of space
	Corrupt bool  // the source has another content than it should have
}

// Args are the fields beside the refusal.
func (f ShardFailure) Args() Args {
	var a Args
	if f.Dev != 0 {
		a.Add("devid", f.Dev.String())
	}
	for _, flag := range []struct {
		name string
		is   bool
	}{{"full", f.Full}, {"corrupt", f.Corrupt}} {
		if flag.is {
			a.Add(flag.name, "1")
		}
	}
	return a
}

// ParseShardFailure reads the fields beside a refusal. What is not understood is
// left out.
func ParseShardFailure(a Args) ShardFailure {
	dev, err := parseDev(a.Get("devid"))
	if err != nil {
		dev = 0
	}
	return ShardFailure{Dev: dev, Full: a.True("full"), Corrupt: a.True("corrupt")}
}

// RebuildOrder is what [VerbRebuild] has done: the shards of Writes are made of
// those of Sources, or copied where they are among them, and land complete and
// durable, each by itself. Its answer has a line for each ([ShardResult]), and a
// [RebuildReport].
type RebuildOrder struct {
	ShardSet
	Epoch   int       // of the new placement; 1 to MaxEpoch
	Devices []DevID   // k+m, in shard order: the new placement, as the new shards' headers will say
	Sources []ShardAt // at least k, ascending
	Writes  []ShardAt // at least one, ascending; on devices that are those of Devices
	Rate    int64     // bytes a second at most that are read; 0: as many as the daemon's own limits let through
}

// Args are the arguments of the order.
func (r RebuildOrder) Args() Args {
	var a Args
	r.ShardSet.add(&a)
	a.Add("epoch", strconv.Itoa(r.Epoch))
	a.Add("devids", formatDevs(r.Devices))
	a.Add("sources", formatShardsAt(r.Sources))
	a.Add("writes", formatShardsAt(r.Writes))
	addRate(&a, r.Rate)
	return a
}

// ParseRebuildOrder reads the arguments of an order. Names that are not known are
// of newer trackers, and ignored. Its errors match ErrBadOrder.
func ParseRebuildOrder(a Args) (RebuildOrder, error) {
	set, err := parseShardSet(a)
	if err != nil {
		return RebuildOrder{}, err
	}
	r := RebuildOrder{ShardSet: set}
	n := set.Shards()
	if r.Epoch, err = orderEpoch(a); err != nil {
		return RebuildOrder{}, err
	}
	if r.Devices, err = orderDevs(a, n, n); err != nil {
		return RebuildOrder{}, err
	}
	if r.Sources, err = parseShardsAt(a, "sources", n); err != nil {
		return RebuildOrder{}, err
	}
	if r.Writes, err = parseShardsAt(a, "writes", n); err != nil {
		return RebuildOrder{}, err
	}
	if len(r.Writes) == 0 {
		return RebuildOrder{}, badOrder("writes: there are none")
	}
	for _, w := range r.Writes {
		if r.Devices[w.Index] != w.Dev {
			return RebuildOrder{}, badOrder("writes: shard %d is to be on device %d, and devids say %d", w.Index, w.Dev, r.Devices[w.Index])
		}
		if slices.ContainsFunc(r.Sources, func(s ShardAt) bool { return s.Dev == w.Dev }) {
			return RebuildOrder{}, badOrder("writes: device %d is among the sources", w.Dev)
		}
	}
	r.Rate, err = orderRate(a)
	return r, err
}

// ShardResult is what became of one shard, a line of the answer.
type ShardResult struct {
	Index int
	Dev   DevID
	Err   *Error // nil where it is done
	Full  bool   // it is not, for lack of space
}

// Args are the fields of the line.
func (r ShardResult) Args() Args {
	a := Args{{"devid", r.Dev.String()}, {"shard", strconv.Itoa(r.Index)}}
	if r.Err != nil {
		a.Add("code", r.Err.Code)
		a.Add("text", r.Err.Text)
	}
	if r.Full {
		a.Add("full", "1")
	}
	return a
}

// ParseShardResult reads the fields of a line. Its errors match ErrBadReply.
func ParseShardResult(a Args) (ShardResult, error) {
	dev, err1 := parseDev(a.Get("devid"))
	index, err2 := parseIndex(a.Get("shard"))
	if err1 != nil || err2 != nil {
		return ShardResult{}, fmt.Errorf("result for a shard: %.200q: %w", a.String(), ErrBadReply)
	}
	r := ShardResult{Index: index, Dev: dev, Full: a.True("full")}
	if code := a.Get("code"); code != "" {
		r.Err = &Error{Code: code, Text: a.Get("text")}
	}
	return r, nil
}

func parseIndex(text string) (int, error) {
	n, err := strconv.ParseUint(text, 10, 16)
	if err != nil || n >= MaxShards {
		return 0, fmt.Errorf("%.20q is not a shard's index", text)
	}
	return int(n), nil
}

// RebuildReport is the last line of the answer to a [RebuildOrder].
type RebuildReport struct {
	Read    int64 // bytes of shards, own and of others
	Written int64
	Bad     []int // sources that are missing, of another encoding, or not what they were written; ascending
}

// Args are the fields of the line.
func (r RebuildReport) Args() Args {
	var a Args
	a.AddInt("read", r.Read)
	a.AddInt("written", r.Written)
	if len(r.Bad) > 0 {
		texts := make([]string, len(r.Bad))
		for i, n := range r.Bad {
			texts[i] = strconv.Itoa(n)
		}
		a.Add("bad", strings.Join(texts, ","))
	}
	return a
}

// ParseRebuildReport reads the fields of the line. Its errors match ErrBadReply.
func ParseRebuildReport(a Args) (RebuildReport, error) {
	read, err1 := strconv.ParseInt(a.Get("read"), 10, 64)
	written, err2 := strconv.ParseInt(a.Get("written"), 10, 64)
	r := RebuildReport{Read: read, Written: written}
	var err3 error
	if text := a.Get("bad"); text != "" {
		for item := range strings.SplitSeq(text, ",") {
			n, err := parseIndex(item)
			if err != nil || len(r.Bad) > 0 && n <= r.Bad[len(r.Bad)-1] {
				err3 = ErrBadReply
				break
			}
			r.Bad = append(r.Bad, n)
		}
	}
	if err1 != nil || err2 != nil || err3 != nil || read < 0 || written < 0 {
		return RebuildReport{}, fmt.Errorf("answer to rebuild: %.200q: %w", a.String(), ErrBadReply)
	}
	return r, nil
}
