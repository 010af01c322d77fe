package fsck

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/schema"
)

// shardsOf reads what was found of shards: "2:1 3:MISSING 4:0@7" is shard 1 on
// device 2, of the encoding's epoch, none on device 3, and shard 0 on device 4,
// of epoch 7.
func shardsOf(e schema.Encoding, text string) []observation {
	states := map[string]state{"MISSING": missing, "SHORT": wrongSize, "BAD": unreadable, "DEAD": onDead}
	var seen []observation
	for word := range strings.FieldsSeq(text) {
		dev, what, _ := strings.Cut(word, ":")
		n, err := strconv.Atoi(dev)
		if err != nil {
			panic(word)
		}
		o := observation{dev: protocol.DevID(n), isShard: true, state: states[what], epoch: e.Epoch}
		if o.state == unasked {
			index, epoch, later := strings.Cut(what, "@")
			o.state = intact
			if o.index, err = strconv.Atoi(index); err != nil {
				panic(word)
			}
			if later {
				if o.epoch, err = strconv.Atoi(epoch); err != nil {
					panic(word)
				}
			}
		}
		seen = append(seen, o)
	}
	inOrder(seen)
	return seen
}

// tellPlaced is "0:4" for shard 0 on device 4.
func tellPlaced(placed map[int]protocol.DevID) string {
	var words []string
	for _, i := range slices.Sorted(maps.Keys(placed)) {
		words = append(words, fmt.Sprintf("%d:%d", i, placed[i]))
	}
	return strings.Join(words, " ")
}

// devsOf are the devices that words name.
func devsOf(text string) []protocol.DevID {
	var devs []protocol.DevID
	for word := range strings.FieldsSeq(text) {
		n, err := strconv.Atoi(word)
		if err != nil {
			panic(text)
		}
		devs = append(devs, protocol.DevID(n))
	}
	return devs
}

func TestJudgeShards(t *testing.T) {
	t.Parallel()
	three := schema.Encoding{FID: 1, ID: 9, K: 2, M: 1, Block: 4096, Epoch: 5, Devices: devsOf("1 2 3")}
	five := schema.Encoding{FID: 1, ID: 9, K: 3, M: 2, Block: 4096, Epoch: 5, Devices: devsOf("1 2 3 4 5")}
	for _, c := range []struct {
		name     string
		e        schema.Encoding
		recorded string // empty: where the encoding has shards
		seen     string
		events   string
		good     string
		drop     string
		forget   string
		placed   string
		epoch    int // of placed
		behind   string
		on       string // afterwards
	}{
		{name: "all there", e: three, seen: "1:0 2:1 3:2", good: "1 2 3", on: "1 2 3"},
		{name: "one missing", e: three, seen: "1:0 2:MISSING 3:2", events: "MISS:2", good: "1 3", forget: "2", on: "1 3"},
		{name: "one known to be missing", e: three, recorded: "1 3", seen: "1:0 3:2", good: "1 3", on: "1 3"},
		{name: "one on a dead device", e: three, seen: "1:0 2:1 3:DEAD", good: "1 2", forget: "3", on: "1 2"},
		{name: "one cut short", e: three, seen: "1:SHORT 2:1 3:2", events: "BLEN:1", good: "2 3", drop: "1", on: "2 3"},
		{name: "one with a bad block, or of another encoding", e: three, seen: "1:BAD 2:1 3:2", events: "BSUM:1", good: "2 3", drop: "1", on: "2 3"},
		{name: "two bad of m = 1: they stay", e: three, seen: "1:BAD 2:SHORT 3:2", events: "BSUM:1 BLEN:2", good: "3"},
		{name: "one missing, one bad, m = 2", e: five, seen: "1:MISSING 2:BAD 3:2 4:3 5:4", events: "MISS:1 BSUM:2", good: "3 4 5", forget: "1", drop: "2", on: "3 4 5"},

		{name: "two have changed places", e: three, seen: "1:1 2:0 3:2", events: "FOND:2 FOND:1", good: "1 2 3", placed: "0:2 1:1", epoch: 6, on: "1 2 3"},
		{name: "three have", e: three, seen: "1:1 2:2 3:0", events: "FOND:3 FOND:1 FOND:2", good: "1 2 3", placed: "0:3 1:1 2:2", epoch: 6, on: "1 2 3"},
		{name: "one is where another belongs, which is missing", e: three, seen: "1:1 2:MISSING 3:2", events: "MISS:2 FOND:1", good: "1 3", forget: "2", placed: "0:2 1:1", epoch: 6, on: "1 3"},
		{name: "one is there twice", e: three, seen: "1:1 2:1 3:2", events: "BSUM:1", good: "2 3", drop: "1", on: "2 3"},
		{name: "one is there three times", e: five, seen: "1:1 2:1 3:1 4:3 5:4", events: "BSUM:1 BSUM:3", good: "2 4 5", drop: "1 3", on: "2 4 5"},

		{name: "found elsewhere", e: three, seen: "1:MISSING 2:1 3:2 4:0", events: "MISS:1 FOND:4", good: "2 3 4", placed: "0:4", epoch: 6, on: "2 3 4"},
		{name: "found where it was once recorded", e: three, recorded: "2 3", seen: "1:0 2:1 3:2", events: "FOND:1", good: "1 2 3", placed: "0:1", epoch: 6, on: "1 2 3"},
		{name: "found where another was once recorded", e: three, recorded: "2 3", seen: "1:1 2:MISSING 3:2", events: "MISS:2 FOND:1", good: "1 3", forget: "2", placed: "0:2 1:1", epoch: 6, on: "1 3"},
		{name: "found where another was, neither recorded", e: three, recorded: "3", seen: "1:1 3:2", events: "FOND:1", good: "1 3", forget: "2", placed: "0:2 1:1", epoch: 6, on: "1 3"},
		{name: "two found elsewhere, of one shard", e: three, seen: "1:MISSING 2:1 3:2 4:0 5:0", events: "MISS:1 FOND:4", good: "2 3 4", placed: "0:4", epoch: 6, on: "2 3 4"},

		{name: "a header is behind", e: three, seen: "1:0@4 2:1 3:2@0", good: "1 2 3", behind: "1 3", on: "1 2 3"},
		{name: "a header is ahead: what is recorded must outdo it", e: three, seen: "1:0 2:1@8 3:2", good: "1 2 3", placed: "0:1", epoch: 9, on: "1 2 3"},
		{name: "a header is ahead, and a shard elsewhere", e: three, seen: "1:MISSING 2:1@8 3:2 4:0", events: "MISS:1 FOND:4", good: "2 3 4", placed: "0:4", epoch: 9, on: "2 3 4"},
	} {
		recorded := devsOf(c.recorded)
		if c.recorded == "" {
			recorded = c.e.Devices
		}
		v := judge(evidence{encoding: &c.e, recorded: recorded, copies: shardsOf(c.e, c.seen)})
		epoch := 0
		if len(v.placed) > 0 {
			epoch = v.epoch
		}
		for _, x := range []struct{ what, got, want string }{
			{"events", tell(slices.Concat(v.events, v.found)), c.events},
			{"good", numbers(v.good), c.good},
			{"drop", numbers(v.droppable()), c.drop},
			{"placed", tellPlaced(v.placed), c.placed},
			{"epoch", strconv.Itoa(epoch), strconv.Itoa(c.epoch)},
			{"behind", numbers(v.behind), c.behind},
		} {
			if x.got != x.want {
				t.Errorf("%s: %s: %q, want %q", c.name, x.what, x.got, x.want)
			}
		}
		if !v.enough() {
			continue
		}
		if got := numbers(v.forget); got != c.forget {
			t.Errorf("%s: forgets %q, want %q", c.name, got, c.forget)
		}
		r := repair{file: schema.LocatedFile{Devices: recorded}, encoding: &c.e, placed: v.placed, forget: v.forget, drop: v.droppable()}
		left, _ := r.after()
		if got := numbers(left); got != c.on {
			t.Errorf("%s: is on %q, want %q", c.name, got, c.on)
		}
		if clean := c.events == "" && c.forget == "" && c.placed == ""; v.clean() != clean {
			t.Errorf("%s: clean is %v", c.name, v.clean())
		}
	}
}

// TestJudgeShardsAlways tries every combination of what can be on four devices,
// three of which should have a shard.
func TestJudgeShardsAlways(t *testing.T) {
	t.Parallel()
	e := schema.Encoding{FID: 1, ID: 9, K: 2, M: 1, Block: 4096, Epoch: 5, Devices: devsOf("1 2 3")}
	words := []string{"0", "1", "2", "0@9", "MISSING", "SHORT", "BAD", "DEAD"}
	n := 0
	var try func(seen []string, recorded []protocol.DevID)
	try = func(seen []string, recorded []protocol.DevID) {
		dev := protocol.DevID(len(seen) + 1)
		if dev <= 4 {
			for _, w := range words {
				if dev <= 3 {
					try(append(slices.Clone(seen), dev.String()+":"+w), append(slices.Clone(recorded), dev))
				}
				if w[0] < 'A' { // a search finds nothing else
					try(append(slices.Clone(seen), dev.String()+":"+w), recorded)
				}
			}
			return
		}
		n++
		text := strings.Join(seen, " ")
		obs := shardsOf(e, text)
		have := make(map[int]bool)
		for _, o := range obs {
			if o.state == intact {
				have[o.index] = true
			}
		}
		v := judge(evidence{encoding: &e, recorded: recorded, copies: obs})
		if len(v.good) != len(have) {
			t.Fatalf("%s, recorded %v: good are %v of shards %v", text, recorded, v.good, have)
		}
		r := repair{file: schema.LocatedFile{Devices: recorded}, encoding: &e, placed: v.placed, forget: v.forget, drop: v.droppable()}
		left, after := r.after()
		devices := slices.Clone(after.Devices)
		slices.Sort(devices)
		if len(slices.Compact(devices)) != 3 {
			t.Fatalf("%s: shards on %v", text, after.Devices)
		}
		if !v.enough() {
			if len(r.drop) > 0 {
				t.Fatalf("%s: drops %v", text, r.drop)
			}
			return
		}
		if !slices.Equal(left, sortedDevs(v.good)) {
			t.Fatalf("%s, recorded %v: left are %v, good are %v (placed %v, forgets %v, drops %v)", text, recorded, left, v.good, v.placed, v.forget, r.drop)
		}
		for _, o := range obs {
			if o.state == intact && slices.Contains(v.good, o.dev) && after.Devices[o.index] != o.dev {
				t.Fatalf("%s: shard %d is on %v", text, o.index, after.Devices)
			}
		}
	}
	try(nil, nil)
	if n < 6_000 {
		t.Errorf("only %d cases", n)
	}
}

func sortedDevs(devs []protocol.DevID) []protocol.DevID {
	devs = slices.Clone(devs)
	slices.Sort(devs)
	return devs
}

func TestObservedShard(t *testing.T) {
	t.Parallel()
	e := schema.Encoding{FID: 1, ID: 9, K: 2, M: 1, Block: 4096, Epoch: 5, Devices: devsOf("1 2 3")}
	well := protocol.ShardState{
		FIDOn: protocol.FIDOn{FID: 1, Dev: 2}, What: protocol.ShardPresent, Set: setOf(e, 100), Index: 1,
		Epoch: 5, Devices: e.Devices, CRC32C: 7, Sized: true, Verified: true, Blocks: 3,
	}
	for _, c := range []struct {
		name     string
		verified bool
		change   func(s *protocol.ShardState)
		want     state
		epoch    int
	}{
		{"well", true, func(*protocol.ShardState) {}, intact, 5},
		{"its blocks were not read", false, func(s *protocol.ShardState) { s.Verified = false }, intact, 5},
		{"its blocks should have been read", true, func(s *protocol.ShardState) { s.Verified = false }, unasked, 0},
		{"missing", true, func(s *protocol.ShardState) { *s = protocol.ShardState{FIDOn: s.FIDOn, What: protocol.ShardMissing} }, missing, 0},
		{"damaged", true, func(s *protocol.ShardState) { *s = protocol.ShardState{FIDOn: s.FIDOn, What: protocol.ShardDamaged} }, unreadable, 0},
		{"not known", true, func(s *protocol.ShardState) { *s = protocol.ShardState{FIDOn: s.FIDOn, What: protocol.ShardUnknown} }, unasked, 0},
		{"of another file", true, func(s *protocol.ShardState) { s.Set.FID = 2 }, unreadable, 0},
		{"of another encoding", true, func(s *protocol.ShardState) { s.Set.Encoding = 8 }, unreadable, 0},
		{"of other numbers", true, func(s *protocol.ShardState) { s.Set.M = 2 }, unreadable, 0},
		{"of another length", true, func(s *protocol.ShardState) { s.Set.Length = 99 }, unreadable, 0},
		{"of another block size", true, func(s *protocol.ShardState) { s.Set.Block = 8192 }, unreadable, 0},
		{"cut short", true, func(s *protocol.ShardState) { s.Sized, s.Verified = false, false }, wrongSize, 0},
		{"a bad block", true, func(s *protocol.ShardState) { s.Bad = 1 }, unreadable, 0},
		{"of a place of old", true, func(s *protocol.ShardState) { s.Epoch, s.Devices = 4, devsOf("1 2 4") }, intact, 4},
		{"neither place can be read", true, func(s *protocol.ShardState) { s.Epoch, s.Devices = 0, nil }, intact, 0},
		{"of a later place", true, func(s *protocol.ShardState) { s.Epoch, s.Devices = 8, devsOf("1 2 4") }, intact, 8},
		{"of the same time, and elsewhere", true, func(s *protocol.ShardState) { s.Devices = devsOf("1 2 4") }, intact, 6},
	} {
		s := well
		c.change(&s)
		o := observedShard(e, 100, s, c.verified)
		if o.dev != 2 || !o.isShard || o.state != c.want || o.epoch != c.epoch || o.state == intact && (o.index != 1 || o.crc != 7) {
			t.Errorf("%s: %+v", c.name, o)
		}
	}
}

func TestJudgeContent(t *testing.T) {
	t.Parallel()
	const none, md5, sha1 = protocol.HashNone, protocol.HashMD5, protocol.HashSHA1
	e := schema.Encoding{FID: 1, ID: 9, K: 2, M: 1, Block: 4096, Epoch: 5, Devices: devsOf("1 2 3")}
	class, scrub := Mode{}, Mode{Content: true}
	for _, c := range []struct {
		name  string
		mode  Mode
		class protocol.HashType
		row   protocol.Checksum
		reads bool              // the blocks of all shards
		by    protocol.HashType // the file through its shards
		is    string            // its content, which was once "a"
		says  string
		sum   protocol.Checksum
	}{
		{name: "of no class with checksums", mode: class},
		{name: "scrub of it", mode: scrub, reads: true},
		{name: "all checksums", mode: Mode{Checksum: "MD5"}, reads: true},
		{name: "as stored", mode: class, class: md5, row: sumOf(md5, "a"), reads: true, by: md5, is: "a"},
		{name: "not as stored", mode: class, class: md5, row: sumOf(md5, "b"), reads: true, by: md5, is: "a", says: "BSUM"},
		{name: "not as it was encoded", mode: class, class: md5, row: sumOf(md5, "a"), reads: true, by: md5, is: "b", says: "BSUM"},
		{name: "none stored", mode: class, class: md5, reads: true, by: md5, is: "a", says: "NSUM", sum: sumOf(md5, "a")},
		{name: "none stored, policy only", mode: Mode{PolicyOnly: true}, class: md5, by: md5, is: "a", says: "NSUM", sum: sumOf(md5, "a")},
		{name: "none stored, scrub", mode: scrub, class: sha1, reads: true, by: sha1, is: "a", says: "NSUM", sum: sumOf(sha1, "a")},
		{name: "off", mode: Mode{Checksum: "off"}, class: md5},
		{name: "queued", mode: Mode{Content: true}, reads: true},
		{name: "queued, off", mode: Mode{Checksum: "off", Content: true}, class: md5, reads: true},
		{name: "queued, policy only", mode: Mode{PolicyOnly: true}},
		{name: "off, scrub", mode: Mode{Checksum: "off", Content: true}, class: md5, reads: true},
		{name: "off, scrub, stored", mode: Mode{Checksum: "off", Content: true}, class: md5, row: sumOf(md5, "a"), reads: true, by: md5, is: "a"},
		{name: "stored by another algorithm", mode: class, class: sha1, row: sumOf(md5, "a"), reads: true, by: md5, is: "a", says: "BALG"},
		{name: "stored by another algorithm, scrub", mode: scrub, class: sha1, row: sumOf(md5, "a"), reads: true, by: md5, is: "a"},
	} {
		s := subject{class: c.class, row: c.row, encoding: &e}
		if got := c.mode.readsShards(s); got != c.reads {
			t.Errorf("%s: reads blocks: %v", c.name, got)
		}
		if got := c.mode.contentDigest(s); got != c.by {
			t.Errorf("%s: by %v, want %v", c.name, got, c.by)
			continue
		}
		ev := evidence{mode: c.mode, class: c.class, row: c.row, digest: c.mode.digest(c.class, c.row), encoding: &e, recorded: e.Devices, copies: shardsOf(e, "1:0 2:1 3:2")}
		if c.by != none {
			ev.content = &observation{dev: 1, state: intact, sum: sumOf(c.by, c.is), computed: noteOf(c.is), stored: noteOf("a")}
		}
		v := judge(ev)
		if tell(v.events) != c.says || !v.sum.Equal(c.sum) || len(v.droppable()) > 0 {
			t.Errorf("%s: %s, stores %v, drops %v", c.name, tell(v.events), v.sum, v.droppable())
		}
	}
}

func TestPlanShards(t *testing.T) {
	t.Parallel()
	e := schema.Encoding{FID: 1, ID: 9, K: 3, M: 2, Block: 4096, Epoch: 5, Devices: devsOf("1 2 3 4 5")}
	all := func(left []protocol.DevID, e *schema.Encoding) bool { return e != nil && len(left) == 5 }
	for _, c := range []struct {
		name          string
		mode          Mode
		recorded      string
		dead, away    string
		seen          string // empty: nobody was asked
		looked        *search
		found         string // shards, by the search
		events        string
		forget, drop  string
		placed        string
		copy          protocol.DevID
		requeue       bool
		stalled, lost bool
		urgent        string // what it may still lose
	}{
		{name: "well", recorded: "1 2 3 4 5", seen: "1:0 2:1 3:2 4:3 5:4"},
		{name: "one missing", recorded: "1 2 3 4 5", seen: "1:0 2:1 3:2 4:3 5:MISSING", events: "MISS:5 REPL", forget: "5", requeue: true, urgent: "1"},
		{name: "two bad", recorded: "1 2 3 4 5", seen: "1:BAD 2:1 3:2 4:3 5:BAD", events: "BSUM:1 BSUM:5 REPL", drop: "1 5", requeue: true, urgent: "0"},
		{name: "known to be short", recorded: "1 2 3 4", seen: "1:0 2:1 3:2 4:3", events: "POVI REPL", requeue: true, urgent: "1"},
		{name: "too few, and no more", recorded: "1 2 3 4 5", seen: "1:0 2:1 3:MISSING 4:BAD 5:SHORT", looked: &search{},
			events: "MISS:3 BSUM:4 BLEN:5 SRCH GONE", lost: true},
		{name: "too few, a device is away", recorded: "1 2 3 4 5", seen: "1:0 2:1 3:MISSING 4:BAD 5:SHORT", looked: &search{away: true},
			events: "MISS:3 BSUM:4 BLEN:5 SRCH", stalled: true},
		{name: "too few, one comes back", recorded: "1 2 3 4 5", seen: "1:0 2:1 3:MISSING 4:BAD 5:MISSING", looked: &search{away: true}, found: "6:2",
			events: "MISS:3 BSUM:4 MISS:5 SRCH FOND:6 REPL", forget: "5", drop: "4", placed: "2:6", requeue: true, urgent: "0"},
		{name: "too few, one comes back, and it is not enough", recorded: "1 2 3 4 5", seen: "1:0 2:MISSING 3:MISSING 4:BAD 5:MISSING", looked: &search{}, found: "6:2",
			events: "MISS:2 MISS:3 BSUM:4 MISS:5 SRCH GONE", lost: true},
		{name: "too few, a copy is found", recorded: "1 2 3 4 5", seen: "1:0 2:1 3:MISSING 4:BAD 5:MISSING", looked: &search{found: 6, matches: true},
			events: "MISS:3 BSUM:4 MISS:5 SRCH FOND:6 REPL", forget: "3 5", drop: "4", copy: 6, requeue: true},
		{name: "reaped to too few", recorded: "1 2", seen: "1:0 2:1", looked: &search{}, events: "POVI SRCH GONE", lost: true},
		{name: "recorded nowhere", looked: &search{}, found: "1:0 2:1 4:3", seen: " ", events: "NOPA SRCH FOND:1 FOND:2 FOND:4 REPL", placed: "0:1 1:2 3:4", requeue: true, urgent: "0"},
		{name: "a device away", recorded: "1 2 3 4 5", away: "5", stalled: true},
		{name: "policy only, dead", mode: Mode{PolicyOnly: true}, recorded: "1 2 3 4 5", dead: "4 5", events: "REPL", forget: "4 5", requeue: true, urgent: "0"},
		{name: "policy only, too many dead: the others are asked", mode: Mode{PolicyOnly: true}, recorded: "1 2 3 4 5", dead: "3 4 5", seen: "1:0 2:1 3:DEAD 4:DEAD 5:DEAD",
			looked: &search{}, events: "SRCH GONE", lost: true},
	} {
		s := subject{file: schema.LocatedFile{Devices: devsOf(c.recorded)}, encoding: &e, dead: devsOf(c.dead), away: devsOf(c.away)}
		s.satisfied = len(s.file.Devices) == 5
		if c.mode.PolicyOnly && c.mode.namespace(s) != (c.seen == "") {
			t.Errorf("%s: by the database alone: %v", c.name, c.mode.namespace(s))
		}
		var v *verdict
		if c.seen != "" {
			first := judge(evidence{encoding: &e, recorded: s.file.Devices, copies: shardsOf(e, c.seen)})
			if first.lost(shardsOf(e, c.seen)) != (c.looked != nil) {
				t.Errorf("%s: searched: %v", c.name, c.looked == nil)
			}
			second := judge(evidence{encoding: &e, recorded: s.file.Devices, copies: shardsOf(e, c.seen+" "+c.found)})
			v = &second
		}
		r := c.mode.plan(s, v, c.looked, all)
		urgent := ""
		if r.requeue && r.lacks {
			urgent = fmt.Sprint(r.spare)
		}
		if tell(r.events) != c.events || numbers(r.forget) != c.forget || numbers(r.drop) != c.drop || tellPlaced(r.placed) != c.placed ||
			r.found != c.copy || r.requeue != c.requeue || r.stalled != c.stalled || r.lost != c.lost || urgent != c.urgent {
			t.Errorf("%s: %s; forgets %q, drops %q, places %q, found %d, requeue %v, stalled %v, lost %v, urgent %q", c.name,
				tell(r.events), numbers(r.forget), numbers(r.drop), tellPlaced(r.placed), r.found, r.requeue, r.stalled, r.lost, urgent)
		}
	}
}
