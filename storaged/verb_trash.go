package storaged

import (
	"context"
	"errors"
	"io/fs"
	"strings"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/storaged/volume"
)

// trash moves files to their device's trash, one after the other. What cannot be
// moved does not keep the others, unless the disk does not answer.
func (s *inventory) trash(ctx context.Context, o protocol.Order, to *orderer) (protocol.Args, error) {
	order, err := protocol.ParseTrashOrder(o.Args)
	if err != nil {
		return nil, err
	}
	v, err := s.device(order.Dev)
	if err != nil {
		return nil, err
	}
	for i, f := range order.Files {
		result, err := s.trashFile(ctx, v, f)
		if err != nil {
			return nil, err
		}
		if err := to.item(result.Args()); err != nil {
			return nil, err
		}
		to.progress(int64(i + 1))
	}
	return nil, nil
}

// trashFile moves one file, or both that a bare fid may have. Its errors are of
// the disk: nothing can be said of this file, nor done with the rest.
func (s *inventory) trashFile(ctx context.Context, v *volume.Volume, f protocol.StoredFile) (protocol.TrashResult, error) {
	result := protocol.TrashResult{FID: f.FID, What: protocol.TrashMissing, Shard: f.Shard}
	as, kinds := (*volume.RawFile)(&f), []bool{f.Shard}
	if f.ModTime.IsZero() {
		as, kinds = nil, []bool{false, true}
	}
	var where []string
	for _, shard := range kinds {
		to, err := v.Trash(ctx, f.FID, shard, as)
		log := s.log.With().Uint64("fid", uint64(f.FID)).Uint32("devid", uint32(v.ID())).Logger()
		switch {
		case err == nil:
			s.meter.trashed.Inc()
			log.Info().Str("to", to).Msg("file moved to the trash")
			if where = append(where, to); result.What == protocol.TrashMissing {
				result.What = protocol.Trashed
			}
		case ctx.Err() != nil:
			return result, context.Cause(ctx)
		case errors.Is(err, volume.ErrSick), errors.Is(err, volume.ErrNoDevice), errors.Is(err, volume.ErrFlush):
			return result, orderErr(err)
		case errors.Is(err, fs.ErrNotExist):
		case errors.Is(err, volume.ErrChanged):
			result.What = protocol.TrashChanged
		default:
			result.What = protocol.TrashFailed
			where = append(where, err.Error())
			log.Warn().Err(err).Msg("file could not be moved to the trash")
		}
	}
	result.To = strings.Join(where, ",")
	return result, nil
}

const (
	// emptyInterval is the time between two looks into the devices' trash.
	emptyInterval = time.Hour
	// emptyPause is how long the next file is left in peace after one was
	// removed: clients come first.
	emptyPause = 20 * time.Millisecond
)

// emptier empties the devices' trash of what has been there long enough.
type emptier struct {
	docroot *volume.Docroot
	meter   *meter
	log     zerolog.Logger

	mu   sync.Mutex // guards busy
	busy map[protocol.DevID]bool
	all  sync.WaitGroup
}

// run looks into the trash at once and then once in every interval, until ctx
// is cancelled. A device that takes its time holds up no other.
func (e *emptier) run(ctx context.Context) error {
	defer e.all.Wait()
	tick := time.NewTicker(emptyInterval)
	defer tick.Stop()
	for {
		for _, v := range e.docroot.Volumes() {
			e.begin(ctx, v)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// begin empties the trash of one device in the background, unless that is still
// being done.
func (e *emptier) begin(ctx context.Context, v *volume.Volume) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.busy[v.ID()] {
		return
	}
	e.busy[v.ID()] = true
	e.all.Go(func() {
		done, err := v.EmptyTrash(ctx, emptyPause)
		e.mu.Lock()
		delete(e.busy, v.ID())
		e.mu.Unlock()
		e.meter.emptied.Add(float64(done.Files))
		log := e.log.With().Uint32("devid", uint32(v.ID())).Int64("files", done.Files).Logger()
		switch {
		case err != nil && ctx.Err() == nil:
			log.Warn().Err(err).Msg("trash could not be emptied")
		case done.Files > 0:
			log.Info().Int64("kept", done.Kept).Msg("trash was emptied")
		}
	})
}
