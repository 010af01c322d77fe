package protocol_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/mogile/mogile/protocol"
)

// shardsAt are n shards on devices from first on.
func shardsAt(n int, first protocol.DevID) []protocol.ShardAt {
	all := make([]protocol.ShardAt, n)
	for i := range all {
		dev := first + protocol.DevID(i)
		all[i] = protocol.ShardAt{Index: i, Peer: protocol.Peer{Dev: dev, URL: fmt.Sprintf("http://10.0.0.%d:7500", i)}}
	}
	return all
}

func devsOf(at []protocol.ShardAt) []protocol.DevID {
	devs := make([]protocol.DevID, len(at))
	for i, s := range at {
		devs[i] = s.Dev
	}
	return devs
}

// there checks that what is sent is read as it was meant.
func there[T any](t *testing.T, want T, args protocol.Args, parse func(protocol.Args) (T, error)) {
	t.Helper()
	got, err := parse(protocol.ParseArgs(args.String()))
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("%T: %v\n%s", want, err, diff)
	}
}

func TestShardOrdersAndAnswers(t *testing.T) {
	t.Parallel()
	set := protocol.ShardSet{FID: 42, Encoding: 0xfedc, K: 2, M: 1, Block: 65536, Length: 1 << 40}
	three := shardsAt(3, 1)
	encode := protocol.EncodeOrder{ShardSet: set, Dev: 7, HashType: protocol.HashMD5, Epoch: 1, Targets: three, Rate: 5}
	there(t, encode, encode.Args(), protocol.ParseEncodeOrder)
	encode.Dev, encode.From, encode.HashType, encode.Rate = 0, "http://10.0.0.9:7500/dev9/0/000/000/0000000042.fid", 0, 0
	there(t, encode, encode.Args(), protocol.ParseEncodeOrder)
	encode.Want, _ = protocol.ParseChecksum("MD5:d41d8cd98f00b204e9800998ecf8427e")
	there(t, encode, encode.Args(), protocol.ParseEncodeOrder)
	encoded := protocol.EncodeReport{Length: 1 << 40, CRC32C: 0xabc, Digest: encode.Want}
	there(t, encoded, encoded.Args(), protocol.ParseEncodeReport)
	for _, f := range []protocol.ShardFailure{{}, {Dev: 3}, {Dev: 3, Full: true}, {Corrupt: true}} {
		if got := protocol.ParseShardFailure(f.Args()); got != f {
			t.Errorf("%+v, want %+v", got, f)
		}
	}

	rebuild := protocol.RebuildOrder{ShardSet: set, Epoch: 9, Devices: []protocol.DevID{1, 20, 3}, Sources: three,
		Writes: []protocol.ShardAt{{Index: 1, Peer: protocol.Peer{Dev: 20, URL: "http://[::1]:7500"}}}, Rate: 1}
	there(t, rebuild, rebuild.Args(), protocol.ParseRebuildOrder)
	for _, r := range []protocol.ShardResult{{Index: 1, Dev: 20}, {Index: 47, Dev: 1, Err: &protocol.Error{Code: "dest_error", Text: "no room & more"}, Full: true}} {
		there(t, r, r.Args(), protocol.ParseShardResult)
	}
	for _, r := range []protocol.RebuildReport{{}, {Read: 8, Written: 4, Bad: []int{0, 2, 47}}} {
		there(t, r, r.Args(), protocol.ParseRebuildReport)
	}

	shard := protocol.ShardOrder{FID: protocol.MaxFID, Dev: protocol.MaxDevID, Encoding: 1<<64 - 1, Index: 47}
	there(t, shard, shard.Args(), protocol.ParseShardOrder)
	place := protocol.PlaceOrder{FID: 42, Encoding: 1, Epoch: protocol.MaxEpoch, Devices: []protocol.DevID{3, 1, 2}}
	there(t, place, place.Args(), protocol.ParsePlaceOrder)
	ask := protocol.ShardStateOrder{Shards: []protocol.FIDOn{{FID: 1, Dev: 2}, {FID: 1, Dev: 3}}, Verify: true, Rate: 1 << 20}
	there(t, ask, ask.Args(), protocol.ParseShardStateOrder)
	for _, s := range []protocol.ShardState{
		{FIDOn: protocol.FIDOn{FID: 1, Dev: 2}, What: protocol.ShardMissing},
		{FIDOn: protocol.FIDOn{FID: 1, Dev: 2}, What: protocol.ShardDamaged, Reason: "too short"},
		{FIDOn: protocol.FIDOn{FID: 1, Dev: 2}, What: protocol.ShardUnknown, Reason: "the disk = gone"},
		{FIDOn: protocol.FIDOn{FID: 42, Dev: 2}, What: protocol.ShardPresent, Set: set, Index: 2, CRC32C: 7},
		{FIDOn: protocol.FIDOn{FID: 42, Dev: 2}, What: protocol.ShardPresent, Set: set, Epoch: 3, Devices: []protocol.DevID{1, 2, 3}, Sized: true, Verified: true},
		{FIDOn: protocol.FIDOn{FID: 42, Dev: 2}, What: protocol.ShardPresent, Set: set, Verified: true, Blocks: 9, Bad: 8},
	} {
		there(t, s, s.Args(), protocol.ParseShardState)
	}
	for _, d := range []protocol.DropOrder{{FID: 1, Dev: 2, What: protocol.DropRaw}, {FID: 1, Dev: 2, What: protocol.DropShard, Encoding: 5}} {
		there(t, d, d.Args(), protocol.ParseDropOrder)
	}
	for _, d := range []protocol.DropReport{{Result: protocol.Dropped}, {Result: protocol.DropMissing}, {Result: protocol.DropDiffers, Encoding: 3}} {
		there(t, d, d.Args(), protocol.ParseDropReport)
	}

	for _, p := range []protocol.PeersOrder{
		{Version: 1, Peers: map[protocol.DevID]string{}},
		{Version: 1, Peers: map[protocol.DevID]string{1: "http://a:1", 2: "http://a:1", 3: "http://[::1]:7500", protocol.MaxDevID: "http://b"}},
	} {
		there(t, p, p.Args(), protocol.ParsePeersOrder)
	}
	there(t, protocol.PeersReport{Version: 5}, protocol.PeersReport{Version: 5}.Args(), protocol.ParsePeersReport)
	there(t, protocol.SuspectsOrder{Limit: 9}, protocol.SuspectsOrder{Limit: 9}.Args(), protocol.ParseSuspectsOrder)
	there(t, protocol.Suspect{FIDOn: protocol.FIDOn{FID: 1, Dev: 2}}, protocol.Suspect{FIDOn: protocol.FIDOn{FID: 1, Dev: 2}}.Args(), protocol.ParseSuspect)
}

// TestShardOrdersThatMakeNoSense changes one argument of an order that is right.
func TestShardOrdersThatMakeNoSense(t *testing.T) {
	t.Parallel()
	set := protocol.ShardSet{FID: 42, Encoding: 0xfedc, K: 2, M: 1, Block: 65536, Length: 9}
	three := shardsAt(3, 1)
	encode := protocol.EncodeOrder{ShardSet: set, Dev: 7, Epoch: 1, Targets: three}.Args()
	rebuild := protocol.RebuildOrder{ShardSet: set, Epoch: 9, Devices: []protocol.DevID{1, 20, 3}, Sources: three, Writes: []protocol.ShardAt{{Index: 1, Peer: protocol.Peer{Dev: 20, URL: "http://h:7"}}}}.Args()
	for _, c := range []struct {
		what  string
		args  protocol.Args
		parse func(protocol.Args) error
		bad   []string
	}{
		{"encode", encode, func(a protocol.Args) error { _, err := protocol.ParseEncodeOrder(a); return err }, []string{
			"fid=0", "fid=-1", "fid=9223372036854775808", "k=0", "k=33", "m=0", "m=17", "block=0", "block=262145", "length=-1", "length=x",
			"encoding=0", "encoding=0000000000000000", "encoding=000000000000FEDC", "epoch=0", "epoch=2147483648", "devid=32768", "devid=0", "from=ftp://x/", "rate=-1",
			"sum=MD5:00", "hash=CRC", "targets=", "targets=0:1 http://a:1,1:2 http://a:1", "targets=0:1 http://a:1,1:2 http://a:1,2:1 http://a:1",
			"targets=0:1 http://a:1,2:2 http://a:1,1:3 http://a:1", "targets=0:1 http://a:1,1:2 http://a:1,3:3 http://a:1", "targets=0:1 http://a:1,1:2 http://a:1,02:3 http://a:1",
			"targets=0:1 http://a:1,1:2 http://a:1/,2:3 http://a:1", "targets=0:1 http://a:1,1:2 http://a:1,2:3 https://a:1", "targets=0:1 http://a:1,1:2 http://a:1,2:3 http://" + strings.Repeat("a", 300),
			"targets=0:1 http://a:1,1:2 http://a:1,2:0 http://a:1", "targets=0:1 http://a:1,1:2 http://a:1,2:3",
		}},
		{"rebuild", rebuild, func(a protocol.Args) error { _, err := protocol.ParseRebuildOrder(a); return err }, []string{
			"epoch=", "devids=1,20", "devids=1,20,20", "devids=1,20,3,4", "devids=1,21,3", "sources=1:20 http://a:1", "sources=x", "writes=", "writes=1:21 http://a:1", "rate=x",
		}},
		{"shard", protocol.ShardOrder{FID: 1, Dev: 1, Encoding: 1}.Args(), func(a protocol.Args) error { _, err := protocol.ParseShardOrder(a); return err }, []string{
			"fid=0", "devid=0", "shard=48", "shard=-1", "encoding=1",
		}},
		{"place", protocol.PlaceOrder{FID: 1, Encoding: 1, Epoch: 1, Devices: []protocol.DevID{1, 2}}.Args(), func(a protocol.Args) error { _, err := protocol.ParsePlaceOrder(a); return err }, []string{
			"fid=0", "encoding=", "epoch=0", "devids=1", "devids=1,1", "devids=",
		}},
		{"shard_state", protocol.ShardStateOrder{Shards: []protocol.FIDOn{{FID: 1, Dev: 1}}}.Args(), func(a protocol.Args) error { _, err := protocol.ParseShardStateOrder(a); return err }, []string{
			"shards=", "shards=1", "shards=1:0", "shards=0:1", "shards=1:1,", "rate=x", "shards=" + strings.Repeat("1:1,", protocol.MaxShardStates) + "1:1",
		}},
		{"drop", protocol.DropOrder{FID: 1, Dev: 1, What: "raw"}.Args(), func(a protocol.Args) error { _, err := protocol.ParseDropOrder(a); return err }, []string{
			"fid=0", "devid=0", "what=", "what=all", "encoding=0",
		}},
		{"peers", protocol.PeersOrder{Version: 1}.Args(), func(a protocol.Args) error { _, err := protocol.ParsePeersOrder(a); return err }, []string{
			"version=0", "peers=http://a", "peers=http://a,", "peers=http://a,1,1", "peers=http://a,1 http://b,1", "peers=http://a/,1", "peers=http://a?,1", "peers=http://u@a,1", "peers=a,1",
		}},
		{"suspects", protocol.SuspectsOrder{Limit: 1}.Args(), func(a protocol.Args) error { _, err := protocol.ParseSuspectsOrder(a); return err }, []string{"limit=0", "limit=1001", "limit="}},
	} {
		if err := c.parse(c.args); err != nil {
			t.Errorf("%s: %v", c.what, err)
		}
		for _, bad := range c.bad {
			name, value, _ := strings.Cut(bad, "=")
			args := append(protocol.Args{}, c.args...)
			args.Set(name, value)
			if err := c.parse(args); !errors.Is(err, protocol.ErrBadOrder) {
				t.Errorf("%s with %.80s: %v", c.what, bad, err)
			}
		}
	}
}

// TestLongestOrders sends orders at their bounds.
func TestLongestOrders(t *testing.T) {
	t.Parallel()
	at := time.Unix(1_700_000_000, 0)
	set := protocol.ShardSet{FID: protocol.MaxFID, Encoding: 1<<64 - 1, K: 32, M: 16, Block: protocol.MaxShardBlock, Length: 1<<63 - 1}
	host := "http://" + strings.Repeat("h", 266) + ":65535"
	all := shardsAt(48, 30000)
	for i := range all {
		all[i].URL = host
	}
	peers := protocol.PeersOrder{Version: at.UnixMilli(), Peers: map[protocol.DevID]string{}}
	for i := range 10_000 {
		peers.Peers[protocol.DevID(protocol.MaxDevID-i)] = fmt.Sprintf("http://storage-%05d.example.net:7500", i)
	}
	states := protocol.ShardStateOrder{Verify: true, Rate: 1<<63 - 1}
	for range protocol.MaxShardStates {
		states.Shards = append(states.Shards, protocol.FIDOn{FID: protocol.MaxFID, Dev: protocol.MaxDevID})
	}
	moved := shardsAt(48, 10000)
	for verb, args := range map[string]protocol.Args{
		protocol.VerbEncode:  protocol.EncodeOrder{ShardSet: set, Dev: 1, From: "http://" + strings.Repeat("x", 2000), Want: protocol.Checksum{Type: protocol.HashBLAKE3, Sum: make([]byte, 32)}, Epoch: protocol.MaxEpoch, Targets: all, Rate: 1 << 40}.Args(),
		protocol.VerbRebuild: protocol.RebuildOrder{ShardSet: set, Epoch: 1, Devices: devsOf(moved), Sources: all, Writes: moved}.Args(),
		protocol.VerbPeers:   peers.Args(), protocol.VerbShardState: states.Args(),
	} {
		o, err := protocol.ParseOrder(protocol.NewOrder(verb, at, time.Minute, args).Sign([]byte("key")))
		if err != nil || len(o.Args) != len(args) {
			t.Errorf("%s: %v", verb, err)
		}
	}
	state := protocol.ShardState{FIDOn: protocol.FIDOn{FID: protocol.MaxFID, Dev: 1}, What: protocol.ShardPresent, Set: set, Epoch: 1, Devices: devsOf(all), Verified: true}
	if line := (protocol.AnswerLine{Kind: protocol.AnswerItem, Fields: state.Args()}).Append(nil); len(line) > 1024 {
		t.Errorf("a state has %d bytes", len(line))
	}
}

func TestOrderHeader(t *testing.T) {
	t.Parallel()
	at := time.Unix(1_700_000_000, 0)
	key := []byte("key")
	want := protocol.ShardOrder{FID: 42, Dev: 7, Encoding: 99, Index: 3}
	header := protocol.NewOrder(protocol.VerbShard, at, time.Minute, want.Args()).Header(key)
	o, err := protocol.ParseOrderHeader(header)
	if err != nil {
		t.Fatal(err)
	}
	if err := o.Verify([][]byte{key}, at); err != nil {
		t.Error(err)
	}
	if got, err := protocol.ParseShardOrder(o.Args); err != nil || got != want {
		t.Errorf("%+v, %v", got, err)
	}
	for _, bad := range []string{"", "x", header + "=", header + "\n", header[1:], "AAAA"} {
		if _, err := protocol.ParseOrderHeader(bad); !errors.Is(err, protocol.ErrBadOrder) {
			t.Errorf("%.20q: %v", bad, err)
		}
	}
}

// FuzzShardOrders has everything that is read written, and read again as the
// same.
func FuzzShardOrders(f *testing.F) {
	set := protocol.ShardSet{FID: 42, Encoding: 0xfedc, K: 2, M: 1, Block: 65536, Length: 9}
	three := shardsAt(3, 1)
	for _, args := range []protocol.Args{
		protocol.EncodeOrder{ShardSet: set, Dev: 7, Epoch: 1, Targets: three, Rate: 3}.Args(),
		protocol.RebuildOrder{ShardSet: set, Epoch: 9, Devices: []protocol.DevID{1, 20, 3}, Sources: three, Writes: []protocol.ShardAt{{Index: 1, Peer: protocol.Peer{Dev: 20, URL: "http://h:7"}}}}.Args(),
		protocol.ShardResult{Index: 1, Dev: 2, Full: true}.Args(), protocol.RebuildReport{Bad: []int{1, 2}}.Args(),
		protocol.ShardOrder{FID: 1, Dev: 2, Encoding: 3, Index: 4}.Args(),
		protocol.PlaceOrder{FID: 1, Encoding: 1, Epoch: 1, Devices: []protocol.DevID{1, 2}}.Args(),
		protocol.ShardStateOrder{Shards: []protocol.FIDOn{{FID: 1, Dev: 1}}, Verify: true}.Args(),
		protocol.ShardState{FIDOn: protocol.FIDOn{FID: 42, Dev: 2}, What: protocol.ShardPresent, Set: set, Epoch: 3, Devices: []protocol.DevID{1, 2, 3}, Sized: true, Verified: true, Blocks: 2, Bad: 1}.Args(),
		protocol.DropOrder{FID: 1, Dev: 2, What: protocol.DropShard, Encoding: 5}.Args(), protocol.DropReport{Result: protocol.DropDiffers, Encoding: 3}.Args(),
		protocol.PeersOrder{Version: 1, Peers: map[protocol.DevID]string{1: "http://a:1", 2: "http://a:1", 3: "http://[::1]:7500"}}.Args(),
	} {
		f.Add(args.String())
	}
	f.Fuzz(func(t *testing.T, text string) {
		args := protocol.ParseArgs(text)
		same(t, args, protocol.ParseEncodeOrder, protocol.EncodeOrder.Args)
		same(t, args, protocol.ParseEncodeReport, protocol.EncodeReport.Args)
		same(t, args, protocol.ParseRebuildOrder, protocol.RebuildOrder.Args)
		same(t, args, protocol.ParseShardResult, protocol.ShardResult.Args)
		same(t, args, protocol.ParseRebuildReport, protocol.RebuildReport.Args)
		same(t, args, protocol.ParseShardOrder, protocol.ShardOrder.Args)
		same(t, args, protocol.ParsePlaceOrder, protocol.PlaceOrder.Args)
		same(t, args, protocol.ParseShardStateOrder, protocol.ShardStateOrder.Args)
		same(t, args, protocol.ParseShardState, protocol.ShardState.Args)
		same(t, args, protocol.ParseDropOrder, protocol.DropOrder.Args)
		same(t, args, protocol.ParseDropReport, protocol.DropReport.Args)
		same(t, args, protocol.ParsePeersOrder, protocol.PeersOrder.Args)
		_ = protocol.ParseShardFailure(args)
	})
}

func same[T any](t *testing.T, args protocol.Args, parse func(protocol.Args) (T, error), write func(T) protocol.Args) {
	t.Helper()
	first, err := parse(args)
	if err != nil {
		return
	}
	again, err := parse(protocol.ParseArgs(write(first).String()))
	if diff := cmp.Diff(first, again); err != nil || diff != "" {
		t.Errorf("%T: %v\n%s", first, err, diff)
	}
}
