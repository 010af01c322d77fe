//go:build unix

package volume_test

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/storaged/volume"
)

// benchDocroot is a temporary folder, or the docroot that MOGILE_BENCH_DOCROOT
// names, to measure a disk of one's own: its device 1 is used.
func benchDocroot(b *testing.B, o volume.Options) *volume.Volume {
	b.Helper()
	dir := os.Getenv("MOGILE_BENCH_DOCROOT")
	if dir == "" {
		dir = b.TempDir()
	}
	if err := os.MkdirAll(filepath.Join(dir, "dev1"), 0o777); err != nil {
		b.Fatal(err)
	}
	d, err := volume.OpenDocroot(dir, o)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := d.Close(); err != nil {
			b.Error(err)
		}
	})
	return get(b, d, 1)
}

func fidName(fid int64) string {
	_, name, _ := strings.Cut(protocol.FID(fid).Path(1), "/")
	return name
}

// BenchmarkCreate stores files of 4 KiB.
func BenchmarkCreate(b *testing.B) {
	data := content(1, 4096)
	for _, durability := range []volume.Durability{volume.DurabilityFsync, volume.DurabilityNone} {
		for _, writers := range []int{1, 16, 64} {
			b.Run(fmt.Sprintf("%v/%d", durability, writers), func(b *testing.B) {
				v := benchDocroot(b, volume.Options{Durability: durability})
				var fid atomic.Int64
				work := make(chan struct{})
				var wg sync.WaitGroup
				for range writers {
					wg.Go(func() {
						for range work {
							if err := put(v, fidName(fid.Add(1)), data); err != nil {
								b.Error(err)
							}
						}
					})
				}
				for b.Loop() {
					work <- struct{}{}
				}
				close(work)
				wg.Wait()
				b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "files/s")
			})
		}
	}
}

// BenchmarkOpenRead opens, reads and closes a file of 4 KiB.
func BenchmarkOpenRead(b *testing.B) {
	v := benchDocroot(b, volume.Options{})
	mustPut(b, v, fidName(1), content(1, 4096))
	name, buf := fidName(1), make([]byte, 8192)
	b.ReportAllocs()
	for b.Loop() {
		f, err := v.Open(context.Background(), name)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := f.Read(buf); err != nil {
			b.Fatal(err)
		}
		f.Close()
	}
}

// BenchmarkRead reads a large file from the system's memory.
func BenchmarkRead(b *testing.B) {
	v := benchDocroot(b, volume.Options{})
	const size = 32 << 20
	mustPut(b, v, fidName(1), make([]byte, size))
	b.SetBytes(size)
	for b.Loop() {
		f, err := v.Open(context.Background(), fidName(1))
		if err != nil {
			b.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, f); err != nil {
			b.Fatal(err)
		}
		f.Close()
	}
}

// BenchmarkPrefetch is what sending with sendfile(2) costs in addition, for a
// file that is in the system's memory.
func BenchmarkPrefetch(b *testing.B) {
	v := benchDocroot(b, volume.Options{})
	mustPut(b, v, fidName(1), make([]byte, 1<<20))
	f, err := v.Open(context.Background(), fidName(1))
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	b.SetBytes(1 << 20)
	for b.Loop() {
		if err := f.Prefetch(context.Background(), 0, 1<<20); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkRemove removes files durably.
func BenchmarkRemove(b *testing.B) {
	v := benchDocroot(b, volume.Options{})
	for b.Loop() {
		b.StopTimer()
		mustPut(b, v, fidName(1), nil)
		b.StartTimer()
		if err := v.Remove(context.Background(), fidName(1)); err != nil {
			b.Fatal(err)
		}
	}
}
