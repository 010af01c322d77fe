package storage

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// TestBandwidthOfPieces has many copies pass through: together they take what
// they may, whatever their number, and tell that they live.
func TestBandwidthOfPieces(t *testing.T) {
	for _, copies := range []int{1, 50} {
		synctest.Test(t, func(t *testing.T) {
			const rate, piece, total = 1 << 20, 32 << 10, 64 << 20
			b := newBandwidth(rate)
			var g sync.WaitGroup
			began := time.Now()
			for range copies {
				g.Go(func() {
					last := time.Now()
					for range total / piece / copies {
						if err := b.take(t.Context(), piece, func() {
							if silent := time.Since(last); silent > 2*time.Second {
								t.Errorf("no sign of life for %v", silent)
							}
							last = time.Now()
						}); err != nil {
							t.Error(err)
						}
						last = time.Now()
					}
				})
			}
			g.Wait()
			if took := time.Since(began); took < 61*time.Second || took > 67*time.Second {
				t.Errorf("%d copies: 64 MiB at 1 MiB a second took %v", copies, took)
			}
		})
	}
}

// TestBandwidthOfOrders has large and small files be fetched, which the daemons
// do at the rates that they were told: together they keep to the whole.
func TestBandwidthOfOrders(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const rate = 10 << 20
		b := newBandwidth(rate)
		var mu sync.Mutex
		var bytes int64
		fetch := func(length int64) {
			r, done, err := b.order(t.Context(), length, nil)
			if err != nil {
				t.Error(err)
				return
			}
			defer done()
			if r > 0 {
				time.Sleep(time.Duration(float64(length) / float64(r) * float64(time.Second)))
			}
			mu.Lock()
			defer mu.Unlock()
			bytes += length
		}
		var g sync.WaitGroup
		began := time.Now()
		for range 20 {
			g.Go(func() { fetch(30 << 20) })
		}
		for range 10 {
			g.Go(func() {
				for range 100 {
					fetch(200 << 10)
				}
			})
		}
		g.Wait()
		took := time.Since(began)
		if average := float64(bytes) / took.Seconds(); average > rate*1.02 || average < rate*0.4 {
			t.Errorf("%.1f MB/s where %.1f are allowed", average/1e6, float64(rate)/1e6)
		}
		// What was reserved is free again.
		if b.reserved != 0 {
			t.Errorf("%d bytes a second are still reserved", b.reserved)
		}
		if r, done, err := b.order(t.Context(), 1<<30, nil); r != rate*3/8 || err != nil {
			t.Errorf("a file alone gets %d, %v", r, err)
		} else {
			done()
			done()
		}
	})
}

func TestBandwidthEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBandwidth(1 << 20)
		errOver := errors.New("over")
		ctx, cancel := context.WithCancelCause(t.Context())
		go func() {
			time.Sleep(10 * time.Second)
			cancel(errOver)
		}()
		if err := b.take(ctx, 1<<30, nil); err != nil {
			t.Fatal(err)
		}
		if err := b.take(ctx, 1, nil); !errors.Is(err, errOver) {
			t.Errorf("error %v", err)
		}
		var none *bandwidth
		if err := none.take(ctx, 1<<40, nil); err != nil {
			t.Errorf("without a limit: %v", err)
		}
		if r, done, err := none.order(t.Context(), 1<<40, nil); r != 0 || err != nil {
			t.Errorf("without a limit: %d, %v", r, err)
		} else {
			done()
		}
	})
}
