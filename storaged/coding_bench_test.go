package storaged

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"sync"
	"testing"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/storaged/volume"
)

// benchGroup is three daemons with nine devices in memory, that flush nothing: what
// is measured is how bytes are moved.
func benchGroup(b *testing.B) *group {
	b.Helper()
	dir := func() string {
		dir, err := os.MkdirTemp("/dev/shm", "mogile")
		if err != nil {
			dir = b.TempDir()
		}
		b.Cleanup(func() { os.RemoveAll(dir) })
		return dir
	}
	g := &group{t: b, of: map[protocol.DevID]*daemon{}}
	for host := range 3 {
		list := []int{3*host + 1, 3*host + 2, 3*host + 3}
		d := start(b, Options{Docroot: dir(), Durability: volume.DurabilityNone}, list...)
		g.all = append(g.all, d)
		for _, n := range list {
			g.of[protocol.DevID(n)] = d
		}
	}
	g.tellPeers()
	return g
}

// nineDevs are all devices of a benchGroup.
var nineDevs = []protocol.DevID{1, 2, 3, 4, 5, 6, 7, 8, 9}

// codingSizes are those of files.
var codingSizes = []int64{64 << 10, 1 << 20, 64 << 20, 1 << 30}

func sizeName(n int64) string {
	if n >= 1<<20 {
		return fmt.Sprintf("%dM", n>>20)
	}
	return fmt.Sprintf("%dK", n>>10)
}

// atOnce is how many files are at work at a time: small ones many.
func atOnce(size int64) int { return int(max(1, min(16, 64<<20/size))) }

// each has n things done, some at a time.
func each(n, at int, do func(i int)) {
	var all sync.WaitGroup
	next := make(chan int)
	for range at {
		all.Go(func() {
			for i := range next {
				do(i)
			}
		})
	}
	for i := range n {
		next <- i
	}
	close(next)
	all.Wait()
}

// zeroes is an endless source.
type zeroes struct{}

func (zeroes) Read(p []byte) (int, error) { return len(p), nil }

// encodeBench makes shards of file i, which is on a device.
func encodeBench(g *group, size int64, i int) {
	fid := protocol.FID(i%64 + 1)
	o := protocol.EncodeOrder{
		ShardSet: protocol.ShardSet{FID: fid, Encoding: uint64(i + 1), K: 6, M: 3, Block: benchBlock, Length: size},
		Dev:      1, Epoch: 1, Targets: g.at(0, nineDevs...),
	}
	if _, l := g.give(g.of[1], protocol.VerbEncode, o.Args()); l.Kind != protocol.AnswerOK {
		g.t.Errorf("%v %v", l.Err, l.Fields)
	}
}

// benchBlock is the usual size of blocks.
const benchBlock = 128 << 10

// putBench puts a file on a device.
func (g *group) putBench(fid protocol.FID, dev protocol.DevID, size int64) {
	g.t.Helper()
	req, err := http.NewRequestWithContext(context.Background(), http.MethodPut, g.url(dev)+"/"+fid.Path(dev), io.LimitReader(zeroes{}, size))
	if err != nil {
		g.t.Fatal(err)
	}
	req.ContentLength = size
	res, err := (&http.Transport{DisableKeepAlives: true}).RoundTrip(req)
	if err != nil {
		g.t.Fatal(err)
	}
	res.Body.Close()
	if res.StatusCode != 201 {
		g.t.Fatal(res.Status)
	}
}

// BenchmarkRebuild makes one lost shard of each file again, of six of the others.
// Its bytes are those of files.
func BenchmarkRebuild(b *testing.B) {
	for _, size := range codingSizes {
		b.Run(sizeName(size), func(b *testing.B) {
			g := benchGroup(b)
			for i := range min(64, b.N) {
				g.putBench(protocol.FID(i+1), 1, size)
				encodeBench(g, size, i)
			}
			b.SetBytes(size)
			b.ResetTimer()
			each(b.N, atOnce(size), func(i int) {
				fid := protocol.FID(i%64 + 1)
				o := protocol.RebuildOrder{
					ShardSet: protocol.ShardSet{FID: fid, Encoding: uint64(i%64 + 1), K: 6, M: 3, Block: benchBlock, Length: size},
					Epoch:    2, Devices: nineDevs, Sources: g.at(1, nineDevs[1:]...), Writes: g.at(0, 1),
				}
				items, l := g.give(g.of[1], protocol.VerbRebuild, o.Args())
				if l.Kind != protocol.AnswerOK || len(items) != 1 || items[0].Get("code") != "" {
					b.Errorf("%v %v", l.Err, items)
				}
			})
		})
	}
}

// BenchmarkVerify reads all blocks of a shard, and compares them with their sums.
func BenchmarkVerify(b *testing.B) {
	g := benchGroup(b)
	const size = 256 << 20
	g.putBench(1, 1, size)
	encodeBench(g, size, 0)
	o := protocol.ShardStateOrder{Verify: true, Shards: []protocol.FIDOn{{FID: 1, Dev: 1}}}
	b.SetBytes(size / 6)
	for b.Loop() {
		items, _ := g.give(g.of[1], protocol.VerbShardState, o.Args())
		if s, err := protocol.ParseShardState(items[0]); err != nil || s.Bad != 0 || !s.Verified {
			b.Fatalf("%+v %v", s, err)
		}
	}
}
