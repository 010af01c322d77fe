package work

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/tracker/cluster"
)

// ErrWentAway is the cause with which a read under [WhileReadable] is broken off.
var ErrWentAway = errors.New("the device is no longer readable, by what the monitor saw")

// lookEvery is how often the monitor's word on devices that read is heard.
const lookEvery = time.Second

// WhileReadable is ctx, cancelled when the monitor finds the device of a long
// read gone: a storage daemon that hangs in the middle would else be waited for
// as long as it may take to read the file. Until it is stopped the worker gives
// signs of life.
func WhileReadable(ctx context.Context, c interface{ Snapshot() *cluster.Snapshot }, dev protocol.DevID) (_ context.Context, stop func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	var g sync.WaitGroup
	g.Go(func() {
		tick := time.NewTicker(lookEvery)
		defer tick.Stop()
		for {
			Alive(ctx)
			select {
			case <-tick.C:
				if d := c.Snapshot().Device(dev); d == nil || !d.Readable() {
					cancel(ErrWentAway)
					return
				}
			case <-ctx.Done():
				return
			}
		}
	})
	return ctx, func() { cancel(nil); g.Wait() }
}
