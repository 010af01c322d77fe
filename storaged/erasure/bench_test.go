package erasure_test

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/storaged/erasure"
)

// benchSets are encodings as people choose them, and the widest.
var benchSets = []struct{ k, m int }{{4, 2}, {6, 3}, {10, 4}, {32, 16}}

const benchBlock = 64 << 10

// BenchmarkEncode makes shards of a file in memory, and throws them away.
func BenchmarkEncode(b *testing.B) {
	content := random(rand.New(rand.NewPCG(1, 1)), 64<<20)
	for _, s := range benchSets {
		b.Run(fmt.Sprintf("%d+%d", s.k, s.m), func(b *testing.B) {
			c := erasure.New(erasure.Options{})
			h := header(s.k, s.m, benchBlock, content)
			b.SetBytes(int64(len(content)))
			b.ReportAllocs()
			for b.Loop() {
				err := c.Encode(b.Context(), h, erasure.From(bytes.NewReader(content)), func(_ [][]byte, done func(bool)) error { done(true); return nil })
				if err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkRead reads a file of shards in memory: whole, with m shards missing,
// and 4 KiB at random of it.
func BenchmarkRead(b *testing.B) {
	for _, s := range benchSets {
		c := erasure.New(erasure.Options{})
		f := encodeRandom(b, c, rand.New(rand.NewPCG(1, 1)), s.k, s.m, benchBlock, 64<<20)
		degraded := f.clone()
		for i := range s.m {
			remove(degraded, i)
		}
		for name, f := range map[string]*file{"whole": f, "degraded": degraded} {
			b.Run(fmt.Sprintf("%d+%d/%s", s.k, s.m, name), func(b *testing.B) {
				b.SetBytes(f.header.Length)
				b.ReportAllocs()
				for b.Loop() {
					f.drain(b, c, 0, f.header.Length)
				}
			})
		}
		b.Run(fmt.Sprintf("%d+%d/4KiB", s.k, s.m), func(b *testing.B) {
			r := rand.New(rand.NewPCG(1, 1))
			b.ReportAllocs()
			for b.Loop() {
				f.drain(b, c, r.Int64N(f.header.Length-4096), 4096)
			}
		})
	}
}

func (f *file) drain(b *testing.B, c *erasure.Codec, off, n int64) {
	s, err := c.Open(b.Context(), erasure.Read{Header: f.header, Places: f.disks}, off, n)
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	if got, err := s.WriteTo(io.Discard); got != n || err != nil {
		b.Fatal(got, err)
	}
}

// BenchmarkRebuild makes one shard, of the file's bytes, of others.
func BenchmarkRebuild(b *testing.B) {
	for _, s := range benchSets {
		b.Run(fmt.Sprintf("%d+%d", s.k, s.m), func(b *testing.B) {
			c := erasure.New(erasure.Options{})
			f := encodeRandom(b, c, rand.New(rand.NewPCG(1, 1)), s.k, s.m, benchBlock, 64<<20)
			at := append([]protocol.DevID{0}, f.header.Placement.Devices[1:]...)
			b.SetBytes(f.header.Layout().ShardSize())
			b.ReportAllocs()
			for b.Loop() {
				err := c.Rebuild(b.Context(), erasure.Read{Header: f.header, At: at, Places: f.disks}, []int{0},
					func(_ [][]byte, done func(bool)) error { done(true); return nil })
				if err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
