package storaged

import (
	"bufio"
	"bytes"
	"context"
	"crypto/md5"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/storaged/erasure"
)

// group is some daemons whose devices have numbers of their own.
type group struct {
	t   testing.TB
	key []byte
	of  map[protocol.DevID]*daemon
	all []*daemon
}

// startGroup starts a daemon for each list of devices.
func startGroup(t testing.TB, key []byte, devs ...[]int) *group {
	t.Helper()
	g := &group{t: t, key: key, of: map[protocol.DevID]*daemon{}}
	var o Options
	if key != nil {
		o.ClusterKeys = [][]byte{key}
	}
	for _, list := range devs {
		d := start(t, o, list...)
		g.all = append(g.all, d)
		for _, n := range list {
			g.of[protocol.DevID(n)] = d
		}
	}
	g.tellPeers()
	return g
}

// tellPeers tells each daemon where the devices are.
func (g *group) tellPeers() {
	g.t.Helper()
	peers := protocol.PeersOrder{Version: time.Now().UnixMilli(), Peers: map[protocol.DevID]string{}}
	for dev := range g.of {
		peers.Peers[dev] = g.url(dev)
	}
	for _, d := range g.all {
		if l := d.order(protocol.VerbPeers, g.key, peers.Args()...); l.Kind != protocol.AnswerOK {
			g.t.Fatalf("peers: %v", l)
		}
	}
}

func (g *group) url(dev protocol.DevID) string {
	if d := g.of[dev]; d != nil {
		return "http://" + d.HTTPAddr().String()
	}
	return "http://127.0.0.1:1" // nobody is there
}

// at are shards from index first on, on these devices.
func (g *group) at(first int, devs ...protocol.DevID) []protocol.ShardAt {
	all := make([]protocol.ShardAt, len(devs))
	for i, dev := range devs {
		all[i] = protocol.ShardAt{Index: first + i, Peer: protocol.Peer{Dev: dev, URL: g.url(dev)}}
	}
	return all
}

// give gives an order, and is the items and the last line of the answer.
func (g *group) give(to *daemon, verb string, args protocol.Args) ([]protocol.Args, protocol.AnswerLine) {
	g.t.Helper()
	_, lines := give(g.t, to.HTTPAddr(), verb, protocol.NewOrder(verb, time.Now(), time.Minute, args).Sign(g.key))
	var items []protocol.Args
	for _, l := range lines {
		if l.Kind == protocol.AnswerItem {
			items = append(items, l.Fields)
		}
	}
	if len(lines) == 0 {
		g.t.Fatalf("%s: no answer", verb)
	}
	return items, lines[len(lines)-1]
}

// file is where a device has a file.
func (g *group) file(path string) string {
	dev, _, _ := protocol.CutDevice(strings.TrimPrefix(path, "/"))
	return filepath.Join(g.of[dev].docroot, path)
}

// exists reports whether there is a file at a path of a device.
func (g *group) exists(path string) bool {
	_, err := os.Stat(g.file(path))
	return err == nil
}

// putRaw puts a copy of a fid on a device.
func (g *group) putRaw(fid protocol.FID, dev protocol.DevID, content []byte) {
	g.t.Helper()
	if r := g.of[dev].put("/"+fid.Path(dev), string(content)); r.StatusCode != 201 {
		g.t.Fatal(r.Status)
	}
}

var sixDevs = []protocol.DevID{1, 2, 3, 4, 5, 6}

// order42 is to encode fid 42, which is on device 1, in 4+2 shards on devices 1 to
// 6.
func (g *group) order42(length int) protocol.EncodeOrder {
	return protocol.EncodeOrder{
		ShardSet: protocol.ShardSet{FID: 42, Encoding: 0xabc, K: 4, M: 2, Block: 4096, Length: int64(length)},
		Dev:      1, Epoch: 1, Targets: g.at(0, sixDevs...),
	}
}

// encode42 does so, and drops the copy.
func (g *group) encode42(content []byte) protocol.EncodeOrder {
	g.t.Helper()
	g.putRaw(42, 1, content)
	o := g.order42(len(content))
	if _, l := g.give(g.of[1], protocol.VerbEncode, o.Args()); l.Kind != protocol.AnswerOK {
		g.t.Fatalf("encode: %v %v", l.Err, l.Fields)
	}
	g.drop(protocol.DropOrder{FID: 42, Dev: 1, What: protocol.DropRaw}, protocol.Dropped)
	return o
}

func (g *group) drop(o protocol.DropOrder, want string) {
	g.t.Helper()
	_, l := g.give(g.of[o.Dev], protocol.VerbDrop, o.Args())
	if r, err := protocol.ParseDropReport(l.Fields); l.Kind != protocol.AnswerOK || err != nil || r.Result != want {
		g.t.Errorf("drop %+v: %v %v, want %s", o, l.Err, l.Fields, want)
	}
}

// states asks for the states of a fid's shards.
func (g *group) states(fid protocol.FID, verify bool, devs ...protocol.DevID) []protocol.ShardState {
	g.t.Helper()
	var all []protocol.ShardState
	for _, dev := range devs {
		items, l := g.give(g.of[dev], protocol.VerbShardState, protocol.ShardStateOrder{Shards: []protocol.FIDOn{{FID: fid, Dev: dev}}, Verify: verify}.Args())
		if l.Kind != protocol.AnswerOK || len(items) != 1 {
			g.t.Fatalf("shard_state: %v, %d items", l.Err, len(items))
		}
		s, err := protocol.ParseShardState(items[0])
		if err != nil {
			g.t.Fatal(err)
		}
		all = append(all, s)
	}
	return all
}

// whole checks that shards 0, 1… of a set are on these devices, good to the last
// block, and know of this epoch.
func (g *group) whole(set protocol.ShardSet, epoch int, devs ...protocol.DevID) {
	g.t.Helper()
	for i, s := range g.states(set.FID, true, devs...) {
		if s.What != protocol.ShardPresent || s.Set != set || s.Index != i || !s.Sized || !s.Verified || s.Bad != 0 || s.Epoch != epoch || !slices.Equal(s.Devices, devs) {
			g.t.Errorf("shard %d on dev%d: %+v", i, devs[i], s)
		}
	}
}

// reads checks that a GET of the file from each of these devices gives its content.
func (g *group) reads(fid protocol.FID, content []byte, devs ...protocol.DevID) {
	g.t.Helper()
	for _, dev := range devs {
		if r := g.of[dev].get("/" + fid.Path(dev)); r.StatusCode != 200 || r.body != string(content) {
			g.t.Errorf("GET from dev%d: %s with %d bytes", dev, r.Status, len(r.body))
		}
	}
}

// nothing checks that no shard of a fid is left.
func (g *group) nothing(fid protocol.FID) {
	g.t.Helper()
	for dev := range g.of {
		if g.exists(fid.ShardPath(dev)) {
			g.t.Errorf("a shard is left on dev%d", dev)
		}
	}
}

func TestEncode(t *testing.T) {
	t.Parallel()
	for _, key := range [][]byte{nil, testKey} {
		g := startGroup(t, key, []int{1, 2}, []int{3, 4}, []int{5, 6}, []int{7})
		for fid, size := range map[protocol.FID]int{10: 0, 11: 1, 12: 4095, 13: 16384, 14: 16385, 15: 1_000_000} {
			content := pattern(size)
			g.putRaw(fid, 1, content)
			for _, fetched := range []bool{false, true} {
				o := g.order42(size)
				o.FID, o.Encoding, o.HashType = fid, uint64(fid), protocol.HashMD5
				from := g.of[1]
				if fetched {
					o.Dev, o.From = 0, g.url(1)+"/"+fid.Path(1)
					from = g.of[7] // which has neither
				}
				_, l := g.give(from, protocol.VerbEncode, o.Args())
				r, err := protocol.ParseEncodeReport(l.Fields)
				if l.Kind != protocol.AnswerOK || err != nil || r.Length != int64(size) || r.Digest.Hex() != fmt.Sprintf("%x", md5.Sum(content)) {
					t.Fatalf("%d bytes: %v %v %v", size, l.Err, l.Fields, err)
				}
				g.whole(o.ShardSet, 1, sixDevs...)
				if fetched {
					break
				}
				for dev := range g.of {
					if dev < 7 {
						g.drop(protocol.DropOrder{FID: fid, Dev: dev, What: protocol.DropShard, Encoding: o.Encoding}, protocol.Dropped)
					}
				}
				g.nothing(fid)
			}
			g.drop(protocol.DropOrder{FID: fid, Dev: 1, What: protocol.DropRaw}, protocol.Dropped)
			g.reads(fid, content, sixDevs...)
		}
	}
}

// A source that has stored no sum is read twice, and what it sends must be the
// same.
func TestEncodeOfUnknownContent(t *testing.T) {
	t.Parallel()
	g := startGroup(t, nil, []int{1, 2}, []int{3, 4}, []int{5, 6})
	content := pattern(100_000)
	asked := 0
	source := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		asked++
		w.Header().Set("Last-Modified", "Sat, 01 Jan 2022 00:00:00 GMT")
		w.Header().Set("Content-Length", fmt.Sprint(len(content)))
		b := content
		if asked == 4 {
			b = bytes.Repeat([]byte("x"), len(content))
		}
		_, _ = w.Write(b)
	}))
	defer source.Close()
	o := g.order42(len(content))
	o.Dev, o.From = 0, source.URL+"/anything"
	if _, l := g.give(g.of[3], protocol.VerbEncode, o.Args()); l.Kind != protocol.AnswerOK {
		t.Fatalf("%v %v", l.Err, l.Fields)
	}
	g.whole(o.ShardSet, 1, sixDevs...)
	g.reads(42, content, 1, 6)
	b, err := os.ReadFile(g.file(protocol.FID(42).ShardPath(1)))
	if err != nil {
		t.Fatal(err)
	}
	if h, err := erasure.ParseHeader(b); err != nil || !h.Modified.Equal(time.Date(2022, 1, 1, 0, 0, 0, 0, time.UTC)) {
		t.Errorf("header %+v, %v", h, err)
	}
	o.FID = 43
	if _, l := g.give(g.of[3], protocol.VerbEncode, o.Args()); l.Err == nil || l.Err.Code != "src_error" || !l.Fields.True("corrupt") {
		t.Errorf("a source with two contents: %v %v", l.Err, l.Fields)
	}
	g.nothing(43)
}

// A tracker is told that the first of two readings gets on: it gives up orders of
// which nothing is heard, and a large file takes its time.
func TestFirstReadingIsProgress(t *testing.T) {
	t.Parallel()
	g := startGroup(t, nil, []int{1, 2}, []int{3, 4}, []int{5, 6})
	content := pattern(400_000)
	heard := make(chan struct{})
	source := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", fmt.Sprint(len(content)))
		_, _ = w.Write(content[:len(content)/2])
		w.(http.Flusher).Flush()
		select {
		case <-heard:
		case <-r.Context().Done():
		}
		_, _ = w.Write(content[len(content)/2:])
	}))
	defer source.Close()
	o := g.order42(len(content))
	o.Dev, o.From = 0, source.URL+"/x"
	conn := dial(t, g.of[1].HTTPAddr())
	if err := conn.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	body := protocol.NewOrder(protocol.VerbEncode, time.Now(), time.Hour, o.Args()).Sign(nil)
	fmt.Fprintf(conn, "POST /.mogile/encode HTTP/1.1\r\nHost: x\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n%s", protocol.OrderType, len(body), body)
	lines := bufio.NewScanner(conn)
	for once := false; lines.Scan(); {
		text := lines.Text()
		if done, ok := strings.CutPrefix(text, "PROGRESS done="); ok && done != "0" && !once {
			once = true
			close(heard)
		}
		if strings.HasPrefix(text, "OK ") {
			if !once {
				t.Error("no progress was told")
			}
			return
		}
	}
	t.Fatalf("no end: %v", lines.Err())
}

func TestEncodeFails(t *testing.T) {
	t.Parallel()
	g := startGroup(t, nil, []int{1, 2}, []int{3, 4}, []int{5, 6})
	content := pattern(300_000)
	g.putRaw(42, 1, content)
	g.putRaw(43, 1, content)
	rot := slices.Clone(content)
	rot[250_000]++
	if f, err := os.OpenFile(g.file(protocol.FID(43).Path(1)), os.O_WRONLY, 0); err != nil {
		t.Fatal(err)
	} else if _, err := f.WriteAt(rot, 0); err != nil || f.Close() != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name   string
		change func(*protocol.EncodeOrder)
		code   string
		want   protocol.ShardFailure
	}{
		{"not there", func(o *protocol.EncodeOrder) { o.FID = 44 }, "src_error", protocol.ShardFailure{Dev: 1}},
		{"not there, elsewhere", func(o *protocol.EncodeOrder) { o.Dev, o.From = 0, g.url(3)+"/dev3/x" }, "src_error", protocol.ShardFailure{}},
		{"nobody there", func(o *protocol.EncodeOrder) { o.Dev, o.From = 0, g.url(9)+"/dev9/x" }, "src_unreachable", protocol.ShardFailure{}},
		{"no device", func(o *protocol.EncodeOrder) { o.Dev = 9 }, "src_error", protocol.ShardFailure{Dev: 9}},
		{"another length", func(o *protocol.EncodeOrder) { o.Length++ }, "src_error", protocol.ShardFailure{Dev: 1}},
		{"another checksum", func(o *protocol.EncodeOrder) {
			o.Want = protocol.Checksum{Type: protocol.HashMD5, Sum: make([]byte, 16)}
		}, "src_error", protocol.ShardFailure{Dev: 1, Corrupt: true}},
		{"rotten", func(o *protocol.EncodeOrder) { o.FID = 43 }, "src_error", protocol.ShardFailure{Dev: 1, Corrupt: true}},
		{"a target is down", func(o *protocol.EncodeOrder) { o.Targets[3].Peer = protocol.Peer{Dev: 9, URL: g.url(9)} }, "dest_error", protocol.ShardFailure{Dev: 9}},
		{"a target has no such device", func(o *protocol.EncodeOrder) { o.Targets[3].Peer = protocol.Peer{Dev: 9, URL: g.url(5)} }, "dest_error", protocol.ShardFailure{Dev: 9}},
	} {
		o := g.order42(len(content))
		c.change(&o)
		_, l := g.give(g.of[1], protocol.VerbEncode, o.Args())
		if l.Err == nil || l.Err.Code != c.code || protocol.ParseShardFailure(l.Fields) != c.want {
			t.Errorf("%s: %v %v, want %s %+v", c.name, l.Err, l.Fields, c.code, c.want)
		}
		g.nothing(o.FID)
	}
}

// A shard that somebody may need is not replaced by one of another encoding, nor by
// another of the same: the order is one of a tracker that was away for long, or does
// not know everything. What cannot be read is.
func TestOtherShardsStay(t *testing.T) {
	t.Parallel()
	g := startGroup(t, nil, []int{1, 2}, []int{3, 4}, []int{5, 6})
	content := pattern(300_000)
	g.putRaw(42, 1, content)
	first := g.order42(len(content))
	if _, l := g.give(g.of[1], protocol.VerbEncode, first.Args()); l.Kind != protocol.AnswerOK {
		t.Fatal(l)
	}
	for _, own := range []protocol.DevID{1, 3} { // on a device of who encodes, and of another
		late := g.order42(len(content))
		late.Encoding++
		_, l := g.give(g.of[own], protocol.VerbEncode, func() protocol.Args {
			if own != 1 {
				late.Dev, late.From = 0, g.url(1)+"/"+protocol.FID(42).Path(1)
			}
			return late.Args()
		}())
		if l.Err == nil || l.Err.Code != "dest_error" || protocol.ParseShardFailure(l.Fields).Dev == 0 || !strings.Contains(l.Err.Text, "another shard of the file") {
			t.Errorf("another encoding: %v %v", l.Err, l.Fields)
		}
		g.whole(first.ShardSet, 1, sixDevs...)
	}
	moved := protocol.RebuildOrder{ShardSet: first.ShardSet, Epoch: 2, Devices: []protocol.DevID{1, 2, 3, 4, 7, 5},
		Sources: first.Targets[:4], Writes: []protocol.ShardAt{{Index: 5, Peer: protocol.Peer{Dev: 5, URL: g.url(5)}}}}
	if items, l := g.give(g.of[1], protocol.VerbRebuild, moved.Args()); l.Err != nil || len(items) != 1 || items[0].Get("code") == "" {
		t.Errorf("shard 5 in the place of 4: %v %v", l.Err, items)
	}
	g.whole(first.ShardSet, 1, sixDevs...)
	g.rot(protocol.FID(42).ShardPath(5), 3)
	if items, l := g.give(g.of[1], protocol.VerbRebuild, moved.Args()); l.Err != nil || len(items) != 1 || items[0].Get("code") != "" {
		t.Errorf("in the place of a damaged one: %v %v", l.Err, items)
	}
}

// A target that is full says so. What the others have is for the tracker to
// remove, which has noted where shards may be.
func TestEncodeOntoFullDisk(t *testing.T) {
	t.Parallel()
	g := startGroup(t, nil, []int{1, 2}, []int{3, 4}, []int{5})
	full, disk := startSim(t, Options{}, 6)
	g.of[6] = full
	content := pattern(3_000_000)
	g.putRaw(42, 1, content)
	disk.SetCapacity(200_000)
	o := g.order42(len(content))
	_, l := g.give(g.of[1], protocol.VerbEncode, o.Args())
	if want := (protocol.ShardFailure{Dev: 6, Full: true}); l.Err == nil || l.Err.Code != "dest_error" || protocol.ParseShardFailure(l.Fields) != want {
		t.Errorf("%v %v, want %+v", l.Err, l.Fields, want)
	}
	if files := disk.Files(docrootSim + "/dev6/0"); len(files) != 0 {
		t.Errorf("%v is left", files)
	}
}

// A source that hangs does not hold up an order of which a target fails meanwhile.
func TestTargetFailsWhileSourceHangs(t *testing.T) {
	t.Parallel()
	g := startGroup(t, nil, []int{1, 2}, []int{3, 4}, []int{5, 6})
	const length = 400_000
	begun := make(chan struct{}, 1)
	source := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", fmt.Sprint(length))
		w.Header().Set("Mogile-Sum", "400000 00000000")
		_, _ = w.Write(pattern(length / 2))
		w.(http.Flusher).Flush()
		begun <- struct{}{}
		<-r.Context().Done()
	}))
	defer source.Close()
	o := g.order42(length)
	o.Dev, o.From = 0, source.URL+"/x"
	ended := make(chan protocol.AnswerLine, 1)
	go func() {
		_, l := g.give(g.of[1], protocol.VerbEncode, o.Args())
		ended <- l
	}()
	<-begun
	eventually(t, "shards are on their way", func() bool {
		return metric(t, g.of[1], "mogile_storaged_coding_bytes_total", "encode") > 0
	})
	g.drop(protocol.DropOrder{FID: 42, Dev: 2, What: protocol.DropShard}, protocol.DropMissing)
	if l, want := <-ended, (protocol.ShardFailure{Dev: 2}); l.Err == nil || l.Err.Code != "dest_error" || protocol.ParseShardFailure(l.Fields) != want {
		t.Errorf("%v %v", l.Err, l.Fields)
	}
	eventually(t, "nothing is on its way", func() bool { return metric(t, g.of[3], "mogile_storaged_requests_in_flight") == 0 })
	g.nothing(42)
}

// An order's rate bounds what is read of the file, and one that cannot end before
// its deadline is cancelled: neither the source nor a target is at fault.
func TestRates(t *testing.T) {
	t.Parallel()
	g := startGroup(t, nil, []int{1, 2, 3, 4, 5, 6, 7})
	content := pattern(400_000)
	g.putRaw(42, 1, content)
	o := g.order42(len(content))
	o.Rate = 1 << 20
	began := time.Now()
	if _, l := g.give(g.of[1], protocol.VerbEncode, o.Args()); l.Kind != protocol.AnswerOK {
		t.Fatal(l.Err)
	}
	// A first piece of 64 KiB is free.
	if took := time.Since(began); took < 300*time.Millisecond {
		t.Errorf("400,000 bytes at 1 MiB a second took %v", took)
	}
	rebuild := protocol.RebuildOrder{ShardSet: o.ShardSet, Epoch: 2, Devices: []protocol.DevID{1, 2, 3, 4, 5, 7}, Sources: g.at(0, 1, 2, 3, 4), Writes: g.at(5, 7), Rate: 1 << 20}
	began = time.Now()
	if _, l := g.give(g.of[1], protocol.VerbRebuild, rebuild.Args()); l.Kind != protocol.AnswerOK {
		t.Fatal(l.Err)
	}
	if took := time.Since(began); took < 300*time.Millisecond {
		t.Errorf("a rebuild that reads 400,000 bytes at 1 MiB a second took %v", took)
	}
	for verb, args := range map[string]protocol.Args{
		protocol.VerbEncode:  func() protocol.Args { o.FID, o.Rate, o.Block = 42, 1, 100; return o.Args() }(),
		protocol.VerbRebuild: func() protocol.Args { rebuild.Rate = 1; return rebuild.Args() }(),
	} {
		_, lines := give(t, g.of[1].HTTPAddr(), verb, protocol.NewOrder(verb, time.Now(), 300*time.Millisecond, args).Sign(nil))
		if l := lines[len(lines)-1]; l.Err == nil || l.Err.Code != "cancelled" {
			t.Errorf("%s that cannot end in time: %v", verb, l)
		}
	}
}

// The end of an order's connection ends all uploads.
func TestEncodeEndsWithItsOrder(t *testing.T) {
	t.Parallel()
	g := startGroup(t, nil, []int{1, 2}, []int{3, 4}, []int{5, 6})
	const length = 400_000
	begun := make(chan struct{}, 1)
	source := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", fmt.Sprint(length))
		w.Header().Set("Mogile-Sum", "400000 00000000")
		_, _ = w.Write(pattern(length / 2))
		w.(http.Flusher).Flush()
		begun <- struct{}{}
		<-r.Context().Done()
	}))
	defer source.Close()
	o := g.order42(length)
	o.Dev, o.From = 0, source.URL+"/x"
	conn := dial(t, g.of[1].HTTPAddr())
	body := protocol.NewOrder(protocol.VerbEncode, time.Now(), time.Hour, o.Args()).Sign(nil)
	fmt.Fprintf(conn, "POST /.mogile/encode HTTP/1.1\r\nHost: x\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n%s", protocol.OrderType, len(body), body)
	<-begun
	eventually(t, "shards are on their way", func() bool { return metric(t, g.of[3], "mogile_storaged_requests_in_flight") >= 2 })
	conn.Close()
	for _, d := range g.all {
		eventually(t, "nothing is on its way", func() bool {
			return metric(t, d, "mogile_storaged_requests_in_flight") == 0 && metric(t, d, "mogile_storaged_coding_in_progress") == 0
		})
	}
	g.nothing(42)
}

func TestRebuild(t *testing.T) {
	t.Parallel()
	for _, size := range []int{0, 5000, 500_000} {
		g := startGroup(t, testKey, []int{1, 2}, []int{3, 4}, []int{5, 6}, []int{7, 8}, []int{9})
		content := pattern(size)
		o := g.encode42(content)
		rebuild := func(to *daemon, r protocol.RebuildOrder) ([]protocol.ShardResult, protocol.RebuildReport, protocol.AnswerLine) {
			t.Helper()
			items, l := g.give(to, protocol.VerbRebuild, r.Args())
			var results []protocol.ShardResult
			for _, item := range items {
				result, err := protocol.ParseShardResult(item)
				if err != nil {
					t.Error(err)
				}
				results = append(results, result)
			}
			var report protocol.RebuildReport
			if l.Kind == protocol.AnswerOK {
				var err error
				if report, err = protocol.ParseRebuildReport(l.Fields); err != nil {
					t.Error(err)
				}
			}
			return results, report, l
		}
		// Shards 1 and 4 are lost, and shard 5 is moved.
		for _, dev := range []protocol.DevID{2, 5} {
			g.drop(protocol.DropOrder{FID: 42, Dev: dev, What: protocol.DropShard, Encoding: o.Encoding}, protocol.Dropped)
		}
		now := []protocol.DevID{1, 7, 3, 4, 8, 9}
		r := protocol.RebuildOrder{ShardSet: o.ShardSet, Epoch: 2, Devices: now}
		for _, i := range []int{0, 2, 3, 5} {
			r.Sources = append(r.Sources, g.at(i, sixDevs[i])...)
		}
		for _, i := range []int{1, 4, 5} {
			r.Writes = append(r.Writes, g.at(i, now[i])...)
		}
		results, report, l := rebuild(g.of[7], r)
		if l.Kind != protocol.AnswerOK || len(results) != 3 || len(report.Bad) != 0 {
			t.Fatalf("%d bytes: %+v %+v %v", size, results, report, l.Err)
		}
		for i, want := range []int{1, 4, 5} {
			if results[i].Index != want || results[i].Dev != now[want] || results[i].Err != nil {
				t.Errorf("%+v", results[i])
			}
		}
		// The others are told.
		g.drop(protocol.DropOrder{FID: 42, Dev: 6, What: protocol.DropShard, Encoding: o.Encoding}, protocol.Dropped)
		place := protocol.PlaceOrder{FID: 42, Encoding: o.Encoding, Epoch: 2, Devices: now}
		for _, d := range g.all {
			if _, l := g.give(d, protocol.VerbPlace, place.Args()); l.Kind != protocol.AnswerOK {
				t.Error(l.Err)
			}
		}
		g.whole(o.ShardSet, 2, now...)
		g.reads(42, content, now...)
		if size == 0 {
			continue
		}
		// A bad block of the shard that is moved is made of others, and told.
		g.rot(protocol.FID(42).ShardPath(3), erasure.HeaderSize+7)
		after := []protocol.DevID{1, 7, 2, 4, 8, 9}
		move := protocol.RebuildOrder{ShardSet: o.ShardSet, Epoch: 3, Devices: after, Sources: g.at(0, now...), Writes: g.at(2, 2)}
		results, report, l = rebuild(g.of[1], move)
		if l.Kind != protocol.AnswerOK || len(results) != 1 || results[0].Err != nil || !slices.Equal(report.Bad, []int{2}) {
			t.Errorf("with a bad block: %+v %+v %v", results, report, l.Err)
		}
		if s := g.states(42, true, 2)[0]; s.Bad != 0 || s.Index != 2 || s.Epoch != 3 {
			t.Errorf("%+v", s)
		}
		// One target that is down does not keep the other.
		g.drop(protocol.DropOrder{FID: 42, Dev: 2, What: protocol.DropShard}, protocol.Dropped)
		two := protocol.RebuildOrder{ShardSet: o.ShardSet, Epoch: 4, Devices: []protocol.DevID{1, 7, 2, 11, 8, 9}, Sources: g.at(0, now...), Writes: append(g.at(2, 2), g.at(3, 11)...)}
		results, _, l = rebuild(g.of[9], two)
		if l.Kind != protocol.AnswerOK || len(results) != 2 || results[0].Err != nil || results[1].Err == nil || results[1].Err.Code != "dest_error" {
			t.Errorf("with a target that is down: %+v %v", results, l.Err)
		}
		if s := g.states(42, true, 2)[0]; s.Bad != 0 || s.Index != 2 || s.Epoch != 4 {
			t.Errorf("%+v", s)
		}
		// All targets down.
		none := protocol.RebuildOrder{ShardSet: o.ShardSet, Epoch: 5, Devices: []protocol.DevID{1, 7, 2, 11, 8, 9}, Sources: g.at(0, now...), Writes: g.at(3, 11)}
		if results, _, l := rebuild(g.of[9], none); l.Kind != protocol.AnswerOK || len(results) != 1 || results[0].Err == nil {
			t.Errorf("with no target: %+v %v", results, l.Err)
		}
		// Too few are left; another encoding's do not count.
		few := protocol.RebuildOrder{ShardSet: o.ShardSet, Epoch: 5, Devices: []protocol.DevID{1, 7, 3, 4, 8, 5}, Sources: g.at(0, 1, 7, 6, 4), Writes: g.at(5, 5)}
		if _, _, l := rebuild(g.of[9], few); l.Err == nil || l.Err.Code != "too_few_shards" {
			t.Errorf("with three sources: %v", l)
		}
		other := few
		other.Encoding++
		if _, _, l := rebuild(g.of[9], other); l.Err == nil || l.Err.Code != "too_few_shards" {
			t.Errorf("of another encoding: %v", l)
		}
		if g.exists(protocol.FID(42).ShardPath(5)) {
			t.Error("a shard landed that could not be made")
		}
	}
}

// rot changes a byte of a file behind the daemon's back.
func (g *group) rot(path string, off int64) {
	g.t.Helper()
	f, err := os.OpenFile(g.file(path), os.O_RDWR, 0)
	if err != nil {
		g.t.Fatal(err)
	}
	defer f.Close()
	var b [1]byte
	if _, err := f.ReadAt(b[:], off); err != nil {
		g.t.Fatal(err)
	}
	b[0] ^= 0x40
	if _, err := f.WriteAt(b[:], off); err != nil {
		g.t.Fatal(err)
	}
}

func TestPlace(t *testing.T) {
	t.Parallel()
	g := startGroup(t, nil, []int{1, 2, 3}, []int{4, 5, 6})
	o := g.encode42(pattern(10_000))
	moved := []protocol.DevID{1, 2, 3, 4, 5, 60}
	ask := func(p protocol.PlaceOrder) []protocol.ShardResult {
		t.Helper()
		items, l := g.give(g.of[1], protocol.VerbPlace, p.Args())
		if l.Kind != protocol.AnswerOK {
			t.Fatal(l.Err)
		}
		var all []protocol.ShardResult
		for _, item := range items {
			r, err := protocol.ParseShardResult(item)
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, r)
		}
		return all
	}
	epoch := func(dev protocol.DevID) int { return g.states(42, true, dev)[0].Epoch }
	for _, c := range []struct {
		p       protocol.PlaceOrder
		results int
		epoch   int
	}{
		{protocol.PlaceOrder{FID: 42, Encoding: o.Encoding, Epoch: 5, Devices: moved}, 3, 5},
		{protocol.PlaceOrder{FID: 42, Encoding: o.Encoding, Epoch: 4, Devices: sixDevs}, 3, 5},
		{protocol.PlaceOrder{FID: 42, Encoding: o.Encoding + 1, Epoch: 6, Devices: moved}, 0, 5},
		{protocol.PlaceOrder{FID: 43, Encoding: o.Encoding, Epoch: 6, Devices: moved}, 0, 5},
		{protocol.PlaceOrder{FID: 42, Encoding: o.Encoding, Epoch: 6, Devices: moved}, 3, 6},
	} {
		if got := ask(c.p); len(got) != c.results || slices.ContainsFunc(got, func(r protocol.ShardResult) bool { return r.Err != nil }) {
			t.Errorf("%+v: %+v", c.p, got)
		}
		for _, dev := range []protocol.DevID{1, 2, 3} {
			if got := epoch(dev); got != c.epoch {
				t.Errorf("%+v: dev%d has epoch %d", c.p, dev, got)
			}
		}
	}
	// One slot that is torn leaves the other; a damaged header is told.
	g.rot(protocol.FID(42).ShardPath(2), 20)
	got := ask(protocol.PlaceOrder{FID: 42, Encoding: o.Encoding, Epoch: 7, Devices: moved})
	if len(got) != 3 || got[0].Err != nil || got[1].Err == nil || got[1].Dev != 2 || got[2].Err != nil {
		t.Errorf("with a damaged header: %+v", got)
	}
	// Too few devices for the encoding.
	if got := ask(protocol.PlaceOrder{FID: 42, Encoding: o.Encoding, Epoch: 8, Devices: moved[:3]}); len(got) != 3 || got[0].Err == nil {
		t.Errorf("with three devices: %+v", got)
	}
	if epoch(1) != 7 {
		t.Errorf("epoch %d", epoch(1))
	}
}

func TestShardState(t *testing.T) {
	t.Parallel()
	g := startGroup(t, nil, []int{1, 2, 3, 4, 5, 6})
	o := g.encode42(pattern(200_000))
	shard := func(dev protocol.DevID) string { return g.file(protocol.FID(42).ShardPath(dev)) }
	g.rot(protocol.FID(42).ShardPath(1), erasure.HeaderSize)        // the first block
	g.rot(protocol.FID(42).ShardPath(1), erasure.HeaderSize+9*4100) // and the tenth
	size := o.ShardSet
	l := erasure.Layout{ShardSet: size}
	if err := os.Truncate(shard(2), l.Offset(11)); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(shard(3), 100); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(shard(4)); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(shard(5))
	if err == nil {
		other := g.file(protocol.FID(43).ShardPath(5))
		err = os.MkdirAll(filepath.Dir(other), 0o777)
		if err == nil {
			err = os.WriteFile(other, b, 0o666)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	order := protocol.ShardStateOrder{Verify: true, Shards: []protocol.FIDOn{{FID: 42, Dev: 1}, {FID: 42, Dev: 2}, {FID: 42, Dev: 3}, {FID: 42, Dev: 4}, {FID: 43, Dev: 5}, {FID: 42, Dev: 6}, {FID: 42, Dev: 7}}}
	items, last := g.give(g.of[1], protocol.VerbShardState, order.Args())
	if last.Kind != protocol.AnswerOK || len(items) != len(order.Shards) {
		t.Fatalf("%v, %d items", last.Err, len(items))
	}
	got := make([]protocol.ShardState, len(items))
	for i, item := range items {
		if got[i], err = protocol.ParseShardState(item); err != nil || got[i].FIDOn != order.Shards[i] {
			t.Fatalf("%d: %v %v", i, item, err)
		}
	}
	if s := got[0]; s.What != protocol.ShardPresent || !s.Sized || s.Bad != 2 || s.Blocks != 13 {
		t.Errorf("two bad blocks: %+v", s)
	}
	if s := got[1]; s.What != protocol.ShardPresent || s.Sized || s.Bad != 2 {
		t.Errorf("cut off: %+v", s)
	}
	if s := got[2]; s.What != protocol.ShardDamaged || s.Reason == "" {
		t.Errorf("no header: %+v", s)
	}
	if s := got[3]; s.What != protocol.ShardMissing {
		t.Errorf("missing: %+v", s)
	}
	if s := got[4]; s.What != protocol.ShardPresent || s.Set.FID != 42 || s.Index != 4 {
		t.Errorf("another file's: %+v", s)
	}
	if s := got[5]; s.What != protocol.ShardPresent || s.Bad != 0 || !s.Verified || !s.Sized || s.CRC32C == 0 {
		t.Errorf("a good one: %+v", s)
	}
	if s := got[6]; s.What != protocol.ShardUnknown || s.Reason == "" {
		t.Errorf("no device: %+v", s)
	}
	if s := g.states(42, false, 1)[0]; s.Verified || !s.Sized {
		t.Errorf("not verified: %+v", s)
	}
}

func TestDrop(t *testing.T) {
	t.Parallel()
	g := startGroup(t, nil, []int{1, 2, 3}, []int{4, 5, 6})
	o := g.encode42(pattern(10_000))
	shard := protocol.DropOrder{FID: 42, Dev: 1, What: protocol.DropShard, Encoding: o.Encoding + 1}
	g.drop(shard, protocol.DropDiffers)
	raw := protocol.DropOrder{FID: 42, Dev: 1, What: protocol.DropRaw}
	g.drop(raw, protocol.DropMissing)
	if !g.exists(protocol.FID(42).ShardPath(1)) {
		t.Fatal("the shard is gone")
	}
	shard.Encoding--
	g.drop(shard, protocol.Dropped)
	g.drop(shard, protocol.DropMissing)
	// Whatever cannot be read goes.
	g.rot(protocol.FID(42).ShardPath(2), 3)
	shard.Dev, shard.Encoding = 2, 1
	g.drop(shard, protocol.Dropped)
	if g.exists(protocol.FID(42).ShardPath(2)) {
		t.Error("the damaged shard is there")
	}
	shard.Dev, shard.Encoding = 3, 0
	g.drop(shard, protocol.Dropped)
	shard.Dev = 9
	if _, l := g.give(g.of[1], protocol.VerbDrop, shard.Args()); l.Err == nil || l.Err.Code != "no_device" {
		t.Errorf("no device: %v", l)
	}
}

// shardOf is a shard as it is uploaded.
func shardOf(t testing.TB, set protocol.ShardSet, content []byte, index int) []byte {
	t.Helper()
	h := erasure.Header{ShardSet: set, Modified: time.Unix(1, 0), Placement: erasure.Placement{Epoch: 1, Devices: sixDevs}}
	var b []byte
	err := erasure.New(erasure.Options{}).Encode(t.Context(), h, erasure.From(bytes.NewReader(content)), func(parts [][]byte, done func(bool)) error {
		b = append(b, parts[index]...)
		done(true)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestShardsAreUploadedWithAnOrder(t *testing.T) {
	t.Parallel()
	g := startGroup(t, testKey, []int{1, 2})
	set := protocol.ShardSet{FID: 42, Encoding: 0xabc, K: 4, M: 2, Block: 4096, Length: 50_000}
	shard := shardOf(t, set, pattern(50_000), 3)
	right := protocol.ShardOrder{FID: 42, Dev: 1, Encoding: 0xabc, Index: 3}
	path := "/" + protocol.FID(42).ShardPath(1)
	header := func(o protocol.ShardOrder, key []byte, issued time.Time) string {
		return protocol.NewOrder(protocol.VerbShard, issued, time.Minute, o.Args()).Header(key)
	}
	put := func(body []byte, headers ...string) int {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, g.url(1)+path, bytes.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		for _, h := range headers {
			req.Header.Add(protocol.OrderHeader, h)
		}
		res, err := (&http.Transport{DisableKeepAlives: true}).RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		text, _ := io.ReadAll(res.Body)
		if res.StatusCode != 201 && len(text) == 0 {
			t.Errorf("%s without a reason", res.Status)
		}
		return res.StatusCode
	}
	now := time.Now()
	other := func(change func(*protocol.ShardOrder)) string {
		o := right
		change(&o)
		return header(o, testKey, now)
	}
	good := header(right, testKey, now)
	for _, c := range []struct {
		name    string
		body    []byte
		headers []string
		status  int
	}{
		{"no order", shard, nil, 403},
		{"unsigned", shard, []string{header(right, nil, now)}, 403},
		{"another key", shard, []string{header(right, []byte("no"), now)}, 403},
		{"garbage", shard, []string{"x"}, 403},
		{"two", shard, []string{header(right, testKey, now), header(right, testKey, now)}, 403},
		{"too old", shard, []string{header(right, testKey, now.Add(-time.Hour))}, 403},
		{"another verb", shard, []string{protocol.NewOrder("drop", now, time.Minute, right.Args()).Header(testKey)}, 403},
		{"another fid", shard, []string{other(func(o *protocol.ShardOrder) { o.FID++ })}, 403},
		{"another device", shard, []string{other(func(o *protocol.ShardOrder) { o.Dev++ })}, 403},
		{"another encoding", shard, []string{other(func(o *protocol.ShardOrder) { o.Encoding++ })}, 400},
		{"another index", shard, []string{other(func(o *protocol.ShardOrder) { o.Index++ })}, 400},
		{"not a shard", pattern(50_000), []string{header(right, testKey, now)}, 400},
		{"nothing", nil, []string{header(right, testKey, now)}, 400},
		{"cut off", shard[:len(shard)-1], []string{header(right, testKey, now)}, 400},
		{"right", shard, []string{good}, 201},
		{"again", shard, []string{good}, 403},
	} {
		if got := put(c.body, c.headers...); got != c.status {
			t.Errorf("%s: %d, want %d", c.name, got, c.status)
		}
		if there := g.exists(path); there != (c.status == 201 || c.name == "again") {
			t.Errorf("%s: the shard is there: %v", c.name, there)
		}
	}
	if r := g.of[1].get(path); r.body != string(shard) {
		t.Errorf("GET gives %d bytes", len(r.body))
	}
}

// A drop, as a DELETE, ends an upload to the path before it answers: the shard is
// not there afterwards. A second upload meanwhile is refused.
func TestDropEndsUpload(t *testing.T) {
	t.Parallel()
	g := startGroup(t, nil, []int{1, 2})
	set := protocol.ShardSet{FID: 42, Encoding: 0xabc, K: 4, M: 2, Block: 4096, Length: 1_000_000}
	shard := shardOf(t, set, pattern(1_000_000), 3)
	path := "/" + protocol.FID(42).ShardPath(1)
	order := protocol.ShardOrder{FID: 42, Dev: 1, Encoding: 0xabc, Index: 3}
	begin := func() *client {
		c := dial(t, g.of[1].HTTPAddr())
		fmt.Fprintf(c, "PUT %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n%s: %s\r\n\r\n", path, len(shard), protocol.OrderHeader,
			protocol.NewOrder(protocol.VerbShard, time.Now(), time.Minute, order.Args()).Header(nil))
		if _, err := c.Write(shard[:len(shard)/2]); err != nil {
			t.Fatal(err)
		}
		return c
	}
	for _, end := range []func(){
		func() { g.drop(protocol.DropOrder{FID: 42, Dev: 1, What: protocol.DropShard}, protocol.DropMissing) },
		func() {
			if r := g.of[1].do("DELETE %s HTTP/1.1\nHost: x\n\n", path); r.StatusCode != 404 {
				t.Errorf("DELETE: %s", r.Status)
			}
		},
	} {
		c := begin()
		eventually(t, "the upload has begun", func() bool {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			_, stop, err := g.of[1].transfers.Enter(ctx, 1, strings.TrimPrefix(path, "/dev1/"))
			if err == nil {
				stop()
			}
			return err != nil
		})
		second := begin()
		if r := second.receive("PUT"); r.StatusCode != 409 {
			t.Errorf("a second upload: %s", r.Status)
		}
		end()
		if r := c.receive("PUT"); r.StatusCode != 409 {
			t.Errorf("the upload: %s", r.Status)
		}
		if g.exists(path) {
			t.Error("the shard is there")
		}
	}
}
