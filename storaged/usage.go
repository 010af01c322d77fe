package storaged

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/storaged/volume"
)

// firstLook bounds how long the daemon's start waits for devices to tell how
// full they are.
const firstLook = 2 * time.Second

// usage looks at how full the devices are, and writes their usage files. Each
// device is looked at by itself, and never twice at a time, so that one that
// hangs delays no other.
//
// Over HTTP and on the side channel usage comes from memory. The file is for people and
// for other HTTP servers on the same docroot.
type usage struct {
	docroot  *volume.Docroot
	interval time.Duration
	log      zerolog.Logger

	mu   sync.Mutex // guards busy and bad
	busy map[protocol.DevID]bool
	bad  map[protocol.DevID]bool // the last look failed, which was logged
	all  sync.WaitGroup
}

func newUsage(docroot *volume.Docroot, o Options) *usage {
	return &usage{
		docroot: docroot, interval: o.UsageInterval, log: o.Log,
		busy: map[protocol.DevID]bool{}, bad: map[protocol.DevID]bool{},
	}
}

// first looks at all devices, and waits for them, but not for long.
func (u *usage) first(ctx context.Context) {
	pass := u.look(ctx)
	done := make(chan struct{})
	u.all.Go(func() {
		pass.Wait()
		close(done)
	})
	select {
	case <-done:
	case <-ctx.Done():
	case <-time.After(firstLook):
	}
}

// run looks at the devices once in every interval until ctx is cancelled.
func (u *usage) run(ctx context.Context) error {
	defer u.all.Wait()
	tick := time.NewTicker(u.interval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			u.look(ctx)
		}
	}
}

// look begins to look at each device that is not being looked at, and for new
// ones. It returns what it began.
func (u *usage) look(ctx context.Context) *sync.WaitGroup {
	pass := new(sync.WaitGroup)
	u.begin(ctx, pass, 0, u.docroot.Scan)
	for _, v := range u.docroot.Volumes() {
		u.begin(ctx, pass, v.ID(), func(ctx context.Context) error { return u.refresh(ctx, v) })
	}
	return pass
}

// begin runs f in the background, unless it still runs for this device, 0 being
// the docroot. A failure is logged when it begins and when it ends.
func (u *usage) begin(ctx context.Context, pass *sync.WaitGroup, dev protocol.DevID, f func(context.Context) error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.busy[dev] {
		return
	}
	u.busy[dev] = true
	pass.Add(1)
	u.all.Go(func() {
		defer pass.Done()
		err := f(ctx)
		u.mu.Lock()
		defer u.mu.Unlock()
		delete(u.busy, dev)
		switch {
		case ctx.Err() != nil:
		case err != nil && u.bad[dev]:
		case errors.Is(err, volume.ErrNoSpace): // its usage is told all the same, over HTTP
			u.bad[dev] = true
			u.log.Warn().Err(err).Uint32("devid", uint32(dev)).Msg("device is full, its usage file cannot be written")
		case err != nil:
			u.bad[dev] = true
			u.log.Error().Err(err).Uint32("devid", uint32(dev)).Msg("device cannot be looked at")
		case u.bad[dev]:
			delete(u.bad, dev)
			u.log.Info().Uint32("devid", uint32(dev)).Msg("device can be looked at again")
		}
	})
}

// refresh brings one device's usage, in memory and on disk, up to date.
func (u *usage) refresh(ctx context.Context, v *volume.Volume) error {
	if err := v.RefreshUsage(ctx); err != nil {
		return err
	}
	now, err := v.Usage()
	if err != nil {
		return err
	}
	return v.WriteVolatile(ctx, usageName, []byte(now.String()))
}
