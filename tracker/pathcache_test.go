package tracker

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/schema"
)

// finds answers every read with fid, on device 1.
func finds(fid protocol.FID) func(context.Context) (schema.File, []protocol.DevID, error) {
	return func(context.Context) (schema.File, []protocol.DevID, error) {
		return schema.File{FID: fid}, []protocol.DevID{1}, nil
	}
}

func fails(err error) func(context.Context) (schema.File, []protocol.DevID, error) {
	return func(context.Context) (schema.File, []protocol.DevID, error) { return schema.File{}, nil, err }
}

// fill reads a key into the cache.
func fill(t *testing.T, c *pathCache, key string, ttl time.Duration, fid protocol.FID) {
	t.Helper()
	f, err := c.read(t.Context(), fileKey{1, key}, pathRules{ttl: ttl, stale: time.Minute}, finds(fid))
	if err != nil || f.file.FID != fid {
		t.Fatalf("read answers %+v, %v; want fid %d", f, err, fid)
	}
}

func TestPathCachePermits(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name     string
		filled   time.Duration // ttl at the fill
		age      time.Duration
		rules    pathRules
		ok, bTTL bool
	}{
		{"fresh", time.Minute, 0, pathRules{ttl: time.Minute}, true, true},
		{"at the ttl", time.Minute, time.Minute, pathRules{ttl: time.Minute}, true, true},
		{"beyond the ttl", time.Minute, time.Minute + 1, pathRules{ttl: time.Minute}, false, false},
		{"lowered ttl", time.Minute, 30 * time.Second, pathRules{ttl: 10 * time.Second}, false, false},
		{"raised ttl", time.Minute, 90 * time.Second, pathRules{ttl: time.Hour}, false, false},
		{"off", time.Minute, 0, pathRules{}, false, false},
		{"off, although the database may be away", time.Minute, 0, pathRules{away: true}, false, false},
		{"stale", 0, 5 * time.Second, pathRules{stale: 5 * time.Second}, true, false},
		{"too stale", 0, 5*time.Second + 1, pathRules{stale: 5 * time.Second}, false, false},
		{"stale beyond the ttl", time.Minute, 2 * time.Minute, pathRules{ttl: time.Minute, stale: 3 * time.Minute}, true, false},
		{"filled without ttl, which is on now", 0, time.Second, pathRules{ttl: time.Minute}, false, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			now := time.Now()
			cache := newPathCache(func() time.Time { return now }, 10, 1<<20)
			fill(t, cache, "k", c.filled, 7)
			now = now.Add(c.age)
			f, byTTL, ok := cache.find(fileKey{1, "k"}, c.rules)
			if ok != c.ok || byTTL != c.bTTL || ok && f.file.FID != 7 {
				t.Errorf("find answers %+v, %t, %t; want %t, %t", f, byTTL, ok, c.bTTL, c.ok)
			}
			if _, _, ok := cache.find(fileKey{2, "k"}, c.rules); ok {
				t.Error("another domain's key is found")
			}
			if last, ok := cache.last(fileKey{1, "k"}); !ok || last.file.FID != 7 {
				t.Error("the last known is not there")
			}
		})
	}
}

func TestPathCacheBounds(t *testing.T) {
	t.Parallel()
	any := pathRules{stale: time.Hour}
	c := newPathCache(time.Now, 3, 1<<20)
	for i, key := range []string{"a", "b", "c"} {
		fill(t, c, key, 0, protocol.FID(i+1))
	}
	if _, _, ok := c.find(fileKey{1, "a"}, any); !ok { // which makes b the one that nobody wants
		t.Fatal("a is not found")
	}
	fill(t, c, "d", 0, 4)
	for key, want := range map[string]bool{"a": true, "b": false, "c": true, "d": true} {
		if _, _, ok := c.find(fileKey{1, key}, any); ok != want {
			t.Errorf("%s is found: %t, want %t", key, ok, want)
		}
	}
	c = newPathCache(time.Now, 1000, 10*(pathOverhead+1000))
	for i := range 100 {
		fill(t, c, fmt.Sprintf("%03d%s", i, strings.Repeat("x", 997)), 0, 1)
	}
	if n := c.len(); n < 8 || n > 10 || c.bytes > c.maxBytes || len(c.entries) != n || c.recent.Len() != n {
		t.Errorf("%d files of 1000 bytes are remembered in %d bytes, of at most %d", n, c.bytes, c.maxBytes)
	}
	fill(t, c, strings.Repeat("y", 20_000), 0, 1) // does not fit at all
	if c.bytes > c.maxBytes {
		t.Errorf("%d bytes are remembered, of at most %d", c.bytes, c.maxBytes)
	}
	c = newPathCache(time.Now, 10, 1<<20)
	for range 3 {
		fill(t, c, "k", 0, 1)
	}
	c.forget(1, "k", "none")
	if c.len() != 0 || c.bytes != 0 || len(c.reads) != 0 {
		t.Errorf("of nothing %d files in %d bytes are remembered, %d reads", c.len(), c.bytes, len(c.reads))
	}
	fill(t, c, "k", 0, 1)
	c.clear()
	if c.len() != 0 || c.bytes != 0 {
		t.Errorf("after clear %d files in %d bytes are remembered", c.len(), c.bytes)
	}
}

func TestPathCacheDropsWhatWasReadBefore(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*pathCache){
		"forget": func(c *pathCache) { c.forget(1, "other", "k") },
		"clear":  func(c *pathCache) { c.clear() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newPathCache(time.Now, 10, 1<<20)
			k, rules := fileKey{1, "k"}, pathRules{ttl: time.Minute}
			f, err := c.read(t.Context(), k, rules, func(ctx context.Context) (schema.File, []protocol.DevID, error) {
				change(c)
				// One that begins after the change does not wait for this one,
				// which may have read what was before it.
				fill(t, c, "k", time.Minute, 2)
				return finds(1)(ctx)
			})
			if err != nil || f.file.FID != 1 {
				t.Errorf("the read that began before answers %+v, %v", f, err)
			}
			if f, _, ok := c.find(k, rules); !ok || f.file.FID != 2 {
				t.Errorf("remembered is %+v, %t; want fid 2", f, ok)
			}
			f, err = c.read(t.Context(), k, pathRules{ttl: time.Minute}, func(ctx context.Context) (schema.File, []protocol.DevID, error) {
				change(c)
				return finds(1)(ctx)
			})
			if err != nil || f.file.FID != 1 {
				t.Errorf("the read that began before answers %+v, %v", f, err)
			}
			if f, ok := c.last(k); ok {
				t.Errorf("remembered is %+v, which was read before the change", f)
			}
			if len(c.reads) != 0 {
				t.Errorf("%d reads are left", len(c.reads))
			}
		})
	}
}

func TestPathCacheKeepsTheYoungest(t *testing.T) {
	t.Parallel()
	now := time.Now()
	c := newPathCache(func() time.Time { return now }, 10, 1<<20)
	k, plain, rules := fileKey{1, "k"}, pathRules{}, pathRules{ttl: time.Minute}
	read := func(rules pathRules, fetch func(context.Context) (schema.File, []protocol.DevID, error)) error {
		_, err := c.read(t.Context(), k, rules, fetch)
		return err
	}
	remembers := func(want protocol.FID) {
		t.Helper()
		if f, ok := c.last(k); f.file.FID != want || ok != (want != 0) {
			t.Errorf("remembered is fid %d, want %d", f.file.FID, want)
		}
	}
	if err := read(plain, finds(1)); err != nil {
		t.Fatal(err)
	}
	remembers(0) // nobody asked for it
	_ = read(rules, func(ctx context.Context) (schema.File, []protocol.DevID, error) {
		now = now.Add(time.Second)
		if err := read(plain, finds(9)); err != nil { // finds no entry to renew
			t.Error(err)
		}
		remembers(0)
		now = now.Add(time.Hour) // too long after the beginning to wait for this one
		fill(t, c, "k", 0, 3)
		return finds(2)(ctx)
	})
	remembers(3)
	if err := read(plain, finds(4)); err != nil { // renews what is there
		t.Fatal(err)
	}
	remembers(4)
	if err := read(rules, fails(schema.ErrUnavailable)); !errors.Is(err, schema.ErrUnavailable) {
		t.Error(err)
	}
	remembers(4)
	if err := read(plain, fails(protocol.ErrUnknownKey)); !errors.Is(err, protocol.ErrUnknownKey) {
		t.Error(err)
	}
	remembers(0)
}

func TestPathCacheSharesReads(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name  string
		err   error
		reads int
	}{
		{"an answer", nil, 1},
		{"no such key", protocol.ErrUnknownKey, 1},
		{"no answer", schema.ErrUnavailable, 10},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				cache := newPathCache(time.Now, 10, 1<<20)
				var reads atomic.Int32
				fetch := func(ctx context.Context) (schema.File, []protocol.DevID, error) {
					reads.Add(1)
					time.Sleep(time.Second)
					return schema.File{FID: 5}, nil, c.err
				}
				k := fileKey{1, "k"}
				impatient, cancel := context.WithTimeout(t.Context(), time.Second/2)
				defer cancel()
				var g sync.WaitGroup
				for range 10 {
					g.Go(func() {
						f, err := cache.read(t.Context(), k, pathRules{ttl: time.Minute}, fetch)
						if !errors.Is(err, c.err) || err == nil && f.file.FID != 5 {
							t.Errorf("read answers %+v, %v", f, err)
						}
					})
				}
				synctest.Wait()
				if _, err := cache.read(impatient, k, pathRules{stale: time.Minute}, fetch); !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("who cannot wait gets %v", err)
				}
				g.Wait()
				if got := int(reads.Load()); got != c.reads {
					t.Errorf("the database was asked %d times, want %d", got, c.reads)
				}
				if len(cache.reads) != 0 {
					t.Errorf("%d reads are left", len(cache.reads))
				}
			})
		})
	}
}

func TestPathCacheSurvivesPanics(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newPathCache(time.Now, 10, 1<<20)
		k, rules := fileKey{1, "k"}, pathRules{ttl: time.Minute}
		var g sync.WaitGroup
		g.Go(func() {
			defer func() { _ = recover() }()
			_, _ = c.read(t.Context(), k, rules, func(context.Context) (schema.File, []protocol.DevID, error) {
				time.Sleep(time.Second)
				panic("a bug")
			})
		})
		synctest.Wait()
		if f, err := c.read(t.Context(), k, rules, finds(3)); err != nil || f.file.FID != 3 {
			t.Errorf("who waited for it gets %+v, %v", f, err)
		}
		g.Wait()
	})
}

// TestPathCacheNeverAnswersFromBeforeAChange has writers change keys, and
// readers compare what they get with what was acknowledged before they asked.
func TestPathCacheNeverAnswersFromBeforeAChange(t *testing.T) {
	t.Parallel()
	const keys, writes, readers = 4, 3000, 4
	c := newPathCache(time.Now, 3, 1<<20) // so that entries are pushed out too
	var rows, acknowledged [keys]atomic.Uint64
	rules := pathRules{ttl: time.Hour}
	var writers, all sync.WaitGroup
	done := make(chan struct{})
	for i := range keys {
		writers.Go(func() {
			for n := range uint64(writes) {
				rows[i].Store(n + 1) // committed
				runtime.Gosched()
				c.forget(1, fmt.Sprint(i))
				acknowledged[i].Store(n + 1)
				runtime.Gosched()
			}
		})
	}
	for r := range readers {
		all.Go(func() {
			rng := rand.New(rand.NewPCG(1, uint64(r)))
			for {
				select {
				case <-done:
					return
				default:
				}
				i := rng.IntN(keys)
				k, floor := fileKey{1, fmt.Sprint(i)}, acknowledged[i].Load()
				f, _, ok := c.find(k, rules)
				if !ok {
					var err error
					if f, err = c.read(t.Context(), k, rules, func(ctx context.Context) (schema.File, []protocol.DevID, error) {
						fid := protocol.FID(rows[i].Load())
						runtime.Gosched()
						return finds(fid)(ctx)
					}); err != nil {
						t.Error(err)
						return
					}
				}
				if uint64(f.file.FID) < floor {
					t.Errorf("key %d: fid %d is answered after fid %d was acknowledged", i, f.file.FID, floor)
					return
				}
			}
		})
	}
	writers.Wait()
	close(done)
	all.Wait()
}

func BenchmarkPathCache(b *testing.B) {
	c := newPathCache(time.Now, maxPathEntries, maxPathBytes)
	rules := pathRules{ttl: time.Hour}
	keys := make([]fileKey, maxPathEntries)
	for i := range keys {
		keys[i] = fileKey{1, fmt.Sprintf("photos/2024/%08d.jpg", i)}
	}
	b.Run("fill", func(b *testing.B) {
		b.ReportAllocs()
		for i := 0; b.Loop(); i++ {
			if _, err := c.read(b.Context(), keys[i%len(keys)], rules, finds(7)); err != nil {
				b.Fatal(err)
			}
		}
	})
	for _, k := range keys {
		if _, err := c.read(b.Context(), k, rules, finds(7)); err != nil {
			b.Fatal(err)
		}
	}
	b.Run("find", func(b *testing.B) {
		b.ReportAllocs()
		b.RunParallel(func(p *testing.PB) {
			for i := rand.IntN(len(keys)); p.Next(); i++ {
				if _, _, ok := c.find(keys[i%len(keys)], rules); !ok {
					b.Error("not remembered")
				}
			}
		})
	})
}
