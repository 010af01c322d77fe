package replicate

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/schema"
	"github.com/mogile/mogile/tracker/cluster"
	"github.com/mogile/mogile/tracker/placement"
	"github.com/mogile/mogile/tracker/storage"
	"github.com/mogile/mogile/tracker/work"
)

const (
	// shardsPerCopy is how many shards may be written to a device at once in place
	// of a copy, of which each is a part.
	shardsPerCopy = 4

	// shardBlock is how many bytes of a file stand together in its shards: a read of
	// a few bytes reads a block, and one of many has few to look at.
	shardBlock = 128 << 10

	// busyDelay is when a storage daemon that has orders enough is asked again.
	busyDelay = 5 * time.Second

	// placeTimeout bounds telling shards where their sisters are. Those that do not
	// hear of it find out by themselves, or are told by fsck.
	placeTimeout = 5 * time.Second
)

// lookAtShards matches the encoding that was read with the present snapshot.
func (r *round) lookAtShards() {
	r.encoded = nil
	if r.encoding == nil {
		return
	}
	r.encoded = placement.EncodedAs(*r.encoding, r.file.Devices, r.snap)
	for i, s := range r.encoded.Shards {
		if slices.Contains(r.badShards, s.Index) {
			r.encoded.Shards[i].Readable = false
		}
	}
}

// code does what a plan says about shards. It returns an outcome where there is
// nothing more to do.
func (r *round) code(ctx context.Context, plan placement.Plan) (outcome, error) {
	if !r.legible() {
		return r.sourceDown(), nil
	}
	switch plan.Verdict {
	case placement.Encode:
		return r.encode(ctx, plan)
	case placement.Rebuild:
		return r.rebuild(ctx, plan.Targets)
	default:
		return r.decode(ctx, plan.Copies)
	}
}

// orderAddress is where a host's storage daemon takes orders.
func orderAddress(h *cluster.Host) string {
	return net.JoinHostPort(h.Address(cluster.Viewer{}), strconv.Itoa(h.Port))
}

// shardAt is a shard on a device, as orders name it.
func shardAt(index int, d *cluster.Device) protocol.ShardAt {
	return protocol.ShardAt{Index: index, Peer: protocol.Peer{Dev: d.ID, URL: "http://" + orderAddress(d.Host)}}
}

// seats takes a place for a shard on each of devs, or none and says when to try
// again. They are taken in one order by everybody, and waited for only for a
// moment, so that nobody waits for ever.
func (r *round) seats(ctx context.Context, devs []*cluster.Device) (leave func(), ok bool) {
	var taken []func()
	leave = func() {
		for _, release := range taken {
			release()
		}
	}
	sorted := slices.Clone(devs)
	slices.SortFunc(sorted, func(a, b *cluster.Device) int { return int(a.ID) - int(b.ID) })
	for _, d := range sorted {
		release, ok := r.w.shards.TryAcquire(d.ID)
		if !ok {
			release, ok = r.w.shards.AcquireSoon(ctx, d.ID)
		}
		if !ok {
			leave()
			r.wait = r.w.shards.Line(d.ID)
			return nil, false
		}
		taken = append(taken, release)
	}
	return leave, true
}

// announceShards announces a shard of an encoding on each of devs.
func (r *round) announceShards(ctx context.Context, encoding uint64, devs []protocol.DevID) error {
	began := time.Now()
	var g errgroup.Group
	var due []announcement
	for _, dev := range devs {
		a := announcement{dev, schema.ShardOf(encoding)}
		if at, ok := r.announced[a]; ok && time.Since(at) < announceFor/2 {
			continue
		}
		due = append(due, a)
		// At once: the store makes one statement of what comes together.
		g.Go(func() error { return r.w.o.Store.AnnounceCopy(ctx, r.file.FID, a.dev, a.what, announceFor) })
	}
	err := g.Wait()
	for _, a := range due { // also those of which nothing is known
		r.announced[a] = began
	}
	if err != nil {
		return fmt.Errorf("announce %d shards of fid %d: %w", len(due), r.file.FID, err)
	}
	return nil
}

// encode has shards made of the file's copies, and records them in their place. A
// failure of a device is remembered; it is no error, and no outcome.
func (r *round) encode(ctx context.Context, plan placement.Plan) (outcome, error) {
	from := r.sources(r.snap.Zones.Of(r.w.o.Local))
	// Who has the file makes the shards of it; else the one that gets the first.
	slices.SortStableFunc(from, func(a, b *cluster.Device) int {
		return boolInt(b.Host.Capabilities.Has(storage.CapabilityShards)) - boolInt(a.Host.Capabilities.Has(storage.CapabilityShards))
	})
	src, leave := r.use(ctx, from)
	if src == nil {
		return busy, nil
	}
	defer leave()
	leaveSeats, ok := r.seats(ctx, plan.Shards)
	if !ok {
		return busy, nil
	}
	defer leaveSeats()
	e := schema.Encoding{FID: r.file.FID, K: plan.K, M: plan.M, Block: shardBlock, Epoch: 1}
	for e.ID == 0 {
		e.ID = r.rng.Uint64()
	}
	order := protocol.EncodeOrder{
		ShardSet: protocol.ShardSet{FID: e.FID, Encoding: e.ID, K: e.K, M: e.M, Block: e.Block, Length: r.file.Length},
		Want:     r.sum, HashType: r.class.HashType, Epoch: e.Epoch,
	}
	for i, d := range plan.Shards {
		e.Devices = append(e.Devices, d.ID)
		order.Targets = append(order.Targets, shardAt(i, d))
	}
	executor := src
	if src.Host.Capabilities.Has(storage.CapabilityShards) {
		order.Dev = src.ID
	} else {
		executor = plan.Shards[0]
		order.From = src.WriteURL(e.FID, cluster.Viewer{})
		if r.w.o.UseGetPort {
			order.From = src.ReadURL(e.FID, cluster.Viewer{})
		}
	}
	if err := r.announceShards(ctx, e.ID, e.Devices); err != nil {
		return "", err
	}
	began := time.Now()
	report, err := r.w.o.Storage.Encode(ctx, orderAddress(executor.Host), order, func() { work.Alive(ctx) })
	if ctx.Err() != nil {
		return "", fmt.Errorf("encode fid %d: %w", e.FID, context.Cause(ctx))
	}
	if errors.Is(err, protocol.ErrCopyBusy) {
		r.wait = busyDelay
		return busy, nil
	}
	if err != nil {
		side := r.blameShards(executor, src, err)
		r.w.metrics.encodings.WithLabelValues(side.String()).Inc()
		r.log.Warn().Err(err).Uint32("from", uint32(src.ID)).Str("host", executor.Host.Name).Stringer("side", side).Msg("encoding failed")
		r.w.notify(r.id, "Failed encoding fid %d from devid %d (error type: %s)", e.FID, src.ID, side)
		r.undo(ctx, e, plan.Shards)
		return "", nil
	}
	if agreed, err := r.agreed(ctx, src.ID, report); err != nil {
		return "", err
	} else if !agreed {
		r.w.metrics.encodings.WithLabelValues("unrecorded").Inc()
		r.undo(ctx, e, plan.Shards)
		return r.suggestNothing("no checksum is recorded, and another copy cannot be read or has another content: it would go for good"), nil
	}
	if err := r.setSum(ctx, report.Digest); err != nil {
		return "", err
	}
	recorded, err := r.recordEncoding(ctx, e)
	if err != nil || !recorded {
		r.w.metrics.encodings.WithLabelValues("unrecorded").Inc()
		return "", err
	}
	r.copied++
	r.w.metrics.encodings.WithLabelValues("ok").Inc()
	r.w.metrics.encoded.Add(float64(r.file.Length))
	r.log.Debug().Uint32("from", uint32(src.ID)).Int64("bytes", r.file.Length).Int("k", e.K).Int("m", e.M).
		Dur("took", time.Since(began)).Msg("encoded")
	return "", nil
}

// agreed reports whether the other copies that can be read, which are to go, have
// the content that was encoded. Where a checksum is recorded it has been compared
// with that; else nobody knows which of two is right.
func (r *round) agreed(ctx context.Context, src protocol.DevID, report protocol.EncodeReport) (bool, error) {
	if !r.sum.IsZero() {
		return true, nil
	}
	r.content = &protocol.ContentSum{Length: report.Length, CRC32C: report.CRC32C}
	for _, p := range r.on {
		if p.Device.ID == src || !p.Readable {
			continue
		}
		if right, err := r.rightContent(ctx, p); err != nil || !right {
			return false, err
		}
	}
	return true, nil
}

// undo has what landed of shards that were made in vain deleted at once, as those of
// another encoding are not let to their place. What is on a device that cannot be
// asked goes later, as it was announced.
func (r *round) undo(ctx context.Context, e schema.Encoding, on []*cluster.Device) {
	ctx, cancel := context.WithTimeout(ctx, placeTimeout)
	defer cancel()
	var g errgroup.Group
	for _, d := range on {
		if !d.Readable() || slices.Contains(r.failedDests, d.ID) {
			continue
		}
		g.Go(func() error {
			order := protocol.DropOrder{FID: e.FID, Dev: d.ID, What: protocol.DropShard, Encoding: e.ID}
			if _, err := r.w.o.Storage.Drop(ctx, orderAddress(d.Host), order); err != nil {
				r.log.Debug().Err(err).Uint32("devid", uint32(d.ID)).Msg("a shard that was made in vain goes later than it could")
			}
			return nil
		})
	}
	_ = g.Wait() // they have been logged
}

func boolInt(b bool) int {
	if b {
		return 1
	}
	return 0
}

// blameShards remembers who is to blame for shards that were not made: the device
// that is named, else src where it is the source's fault, else the executor.
func (r *round) blameShards(executor, src *cluster.Device, err error) storage.Side {
	e, ok := errors.AsType[*storage.ShardError](err)
	switch {
	case ok && e.Side == storage.SourceError:
		r.failedSources = append(r.failedSources, src.ID)
		return storage.SourceError
	case ok && e.Dev != 0:
		r.failedDests = append(r.failedDests, e.Dev)
		return storage.DestError
	}
	// It is not reached, takes no orders, or is busy: another is tried.
	if executor == src {
		r.failedSources = append(r.failedSources, src.ID)
	}
	r.failedDests = append(r.failedDests, executor.ID)
	return storage.DestError
}

// recordEncoding has shards that were made take the place of the file's copies, and
// reports whether it did. Where the locations have changed meanwhile it does so
// only if the policy still wants it; else the shards remain announced, and are
// deleted.
func (r *round) recordEncoding(ctx context.Context, e schema.Encoding) (bool, error) {
	for {
		if err := r.announceShards(ctx, e.ID, e.Devices); err != nil {
			return false, err
		}
		err := r.w.o.Store.RecordEncoding(ctx, e, r.file.Devices)
		switch {
		case err == nil:
			r.encoding = &e
			r.setDevices(e.Devices)
			return true, nil
		case errors.Is(err, schema.ErrGone):
			return false, errGone
		case !errors.Is(err, schema.ErrStale):
			return false, fmt.Errorf("record the shards of fid %d: %w", e.FID, err)
		}
		r.due(e.ID, e.Devices) // the refusal has made them so
		if err := r.reread(ctx); err != nil {
			return false, err
		}
		if err := r.look(); err != nil {
			return false, err
		}
		if r.encoded != nil {
			return false, nil
		}
		if plan := r.ask(); plan.Verdict != placement.Encode || plan.K != e.K || plan.M != e.M {
			return false, nil
		}
	}
}

// due notes that the shards that were announced on devs must be announced anew.
func (r *round) due(encoding uint64, devs []protocol.DevID) {
	for _, dev := range devs {
		r.announced[announcement{dev, schema.ShardOf(encoding)}] = time.Time{}
	}
}

func (r *round) setDevices(devs []protocol.DevID) {
	r.file.Devices = slices.Clone(devs)
	slices.Sort(r.file.Devices)
}

// rebuild has the shards of targets made, or moved, and records those that were.
// Failures are remembered. It returns an outcome where there is nothing more to do.
func (r *round) rebuild(ctx context.Context, targets map[int]*cluster.Device) (outcome, error) {
	e := *r.encoding
	targets = r.settleTargets(targets)
	order := protocol.RebuildOrder{
		ShardSet: protocol.ShardSet{FID: e.FID, Encoding: e.ID, K: e.K, M: e.M, Block: e.Block, Length: r.file.Length},
		Epoch:    e.Epoch + 1, Devices: slices.Clone(e.Devices),
	}
	var to []*cluster.Device
	for _, i := range slices.Sorted(maps.Keys(targets)) {
		order.Writes = append(order.Writes, shardAt(i, targets[i]))
		order.Devices[i] = targets[i].ID
		to = append(to, targets[i])
	}
	for _, s := range r.encoded.Shards { // in the order of their indexes
		if s.Readable {
			order.Sources = append(order.Sources, shardAt(s.Index, s.Device))
		}
	}
	leave, ok := r.seats(ctx, to)
	if !ok {
		return busy, nil
	}
	defer leave()
	written := make([]protocol.DevID, len(to))
	for i, d := range to {
		written[i] = d.ID
	}
	if err := r.announceShards(ctx, e.ID, written); err != nil {
		return "", err
	}
	began := time.Now()
	results, report, err := r.w.o.Storage.Rebuild(ctx, orderAddress(to[0].Host), order, func() { work.Alive(ctx) })
	if ctx.Err() != nil {
		return "", fmt.Errorf("rebuild shards of fid %d: %w", e.FID, context.Cause(ctx))
	}
	if errors.Is(err, protocol.ErrCopyBusy) {
		r.wait = busyDelay
		return busy, nil
	}
	if err != nil {
		return r.notRebuilt(ctx, to, err)
	}
	if err := r.noteBad(ctx, report.Bad); err != nil {
		return "", err
	}
	placed := make(map[int]protocol.DevID)
	for _, result := range results {
		if result.Err == nil {
			placed[result.Index] = result.Dev
			continue
		}
		r.failedDests = append(r.failedDests, result.Dev)
		r.w.metrics.shards.WithLabelValues(storage.DestError.String()).Inc()
		r.log.Warn().Err(result.Err).Int("shard", result.Index).Uint32("devid", uint32(result.Dev)).Msg("shard not written")
	}
	if len(placed) == 0 {
		return "", nil
	}
	epoch := order.Epoch
	if len(placed) < len(targets) {
		epoch++ // what the headers of those written say is not what is recorded
	}
	if recorded, err := r.recordShards(ctx, epoch, placed); err != nil || !recorded {
		r.w.metrics.shards.WithLabelValues("unrecorded").Add(float64(len(placed)))
		return "", err
	}
	r.copied += len(placed)
	r.w.metrics.shards.WithLabelValues("ok").Add(float64(len(placed)))
	r.log.Debug().Int("shards", len(placed)).Int64("bytes", report.Written).Int64("read", report.Read).
		Dur("took", time.Since(began)).Msg("shards rebuilt")
	r.tellShards(ctx)
	return "", nil
}

// settleTargets has a shard that is missing come back to its own device, where that
// is to get another one and the shard would get none: no device has two.
func (r *round) settleTargets(targets map[int]*cluster.Device) map[int]*cluster.Device {
	targets = maps.Clone(targets)
	for _, i := range slices.Sorted(maps.Keys(targets)) {
		d := targets[i]
		j := slices.Index(r.encoding.Devices, d.ID)
		if _, moves := targets[j]; j < 0 || j == i || moves {
			continue
		}
		delete(targets, i)
		targets[j] = d
	}
	return targets
}

// notRebuilt remembers why nothing was rebuilt.
func (r *round) notRebuilt(ctx context.Context, to []*cluster.Device, err error) (outcome, error) {
	r.log.Warn().Err(err).Str("host", to[0].Host.Name).Msg("shards not rebuilt")
	e, ok := errors.AsType[*storage.ShardError](err)
	if ok && e.Side == storage.SourceError {
		r.w.metrics.shards.WithLabelValues(storage.SourceError.String()).Add(float64(len(to)))
		if err := r.queueFsck(ctx); err != nil {
			return "", err
		}
		return r.sourceDown(), nil
	}
	r.w.metrics.shards.WithLabelValues(storage.DestError.String()).Add(float64(len(to)))
	if ok && e.Dev != 0 {
		r.failedDests = append(r.failedDests, e.Dev)
	} else {
		r.failedDests = append(r.failedDests, to[0].ID)
	}
	return "", nil
}

// noteBad has fsck look at the file where shards were found missing or bad, which
// are not read from again in this round.
func (r *round) noteBad(ctx context.Context, bad []int) error {
	if len(bad) == 0 {
		return nil
	}
	r.badShards = append(r.badShards, bad...)
	r.log.Warn().Ints("shards", bad).Msg("shards are missing or bad, fsck looks at the file")
	return r.queueFsck(ctx)
}

func (r *round) queueFsck(ctx context.Context) error {
	if err := r.w.o.Store.QueueFsck(ctx, []protocol.FID{r.file.FID}, 0, schema.FsckContent); err != nil {
		return fmt.Errorf("queue fid %d for fsck: %w", r.file.FID, err)
	}
	return nil
}

// recordShards records where shards are now, and reports whether it did. Those that
// it does not record remain announced, and are deleted.
func (r *round) recordShards(ctx context.Context, epoch int, placed map[int]protocol.DevID) (bool, error) {
	devs := slices.Collect(maps.Values(placed))
	if err := r.announceShards(ctx, r.encoding.ID, devs); err != nil {
		return false, err
	}
	was, encoding := r.encoding.Devices, r.encoding.ID
	now, err := r.w.o.Store.PlaceShards(ctx, r.file.FID, encoding, epoch, placed, r.file.Devices)
	switch {
	case err == nil:
		left, _ := now.Locations(*r.encoding, placed, r.file.Devices)
		for i := range placed {
			delete(r.announced, announcement{was[i], schema.ShardOf(encoding)})
			if !slices.Contains(now.Devices, was[i]) {
				r.pending = append(r.pending, was[i])
			}
			r.badShards = slices.DeleteFunc(r.badShards, func(b int) bool { return b == i })
		}
		r.encoding = &now
		r.setDevices(left)
		return true, r.look()
	case errors.Is(err, schema.ErrGone):
		return false, errGone
	case !errors.Is(err, schema.ErrStale):
		return false, fmt.Errorf("record %d shards of fid %d: %w", len(placed), r.file.FID, err)
	}
	r.due(encoding, devs)
	return false, r.reread(ctx)
}

// tellShards tells all shards that can be reached where their sisters are.
func (r *round) tellShards(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, placeTimeout)
	defer cancel()
	order := protocol.PlaceOrder{FID: r.file.FID, Encoding: r.encoding.ID, Epoch: r.encoding.Epoch, Devices: r.encoding.Devices}
	told := make(map[string]bool)
	var g errgroup.Group
	for _, s := range r.encoded.Shards {
		at := orderAddress(s.Device.Host)
		if !s.Device.Readable() || told[at] {
			continue
		}
		told[at] = true
		g.Go(func() error {
			results, err := r.w.o.Storage.Place(ctx, at, order)
			for _, result := range results {
				if result.Err != nil {
					err = errors.Join(err, fmt.Errorf("shard %d on dev%d: %w", result.Index, result.Dev, result.Err))
				}
			}
			if err != nil {
				r.log.Debug().Err(err).Str("host", at).Msg("shards are not told where their sisters are")
			}
			return nil
		})
	}
	_ = g.Wait() // they have been logged
}

// decode has copies made on devs, of which some may be there since this round
// began, and records them in the place of the shards.
func (r *round) decode(ctx context.Context, to []*cluster.Device) (outcome, error) {
	began := time.Now()
	devs := make([]protocol.DevID, len(to))
	for i, d := range to {
		devs[i] = d.ID
		if slices.Contains(r.decoded, d.ID) {
			continue
		}
		result, err := r.decodeTo(ctx, d)
		if err != nil || result != "" {
			return result, err
		}
		if !slices.Contains(r.decoded, d.ID) {
			return "", nil // the policy is asked again, without the device that failed
		}
	}
	for _, dev := range devs {
		if err := r.announce(ctx, announcement{dev, schema.Raw}); err != nil {
			return "", err
		}
	}
	err := r.w.o.Store.RecordDecoding(ctx, r.file.FID, r.encoding.ID, devs, r.file.Devices)
	switch {
	case err == nil:
	case errors.Is(err, schema.ErrGone):
		return "", errGone
	case errors.Is(err, schema.ErrStale):
		return "", r.reread(ctx)
	default:
		return "", fmt.Errorf("record the copies of fid %d: %w", r.file.FID, err)
	}
	// Shards are deleted from these: no other file of the fid comes there before.
	r.pending = append(r.pending, r.encoding.Devices...)
	r.encoding = nil
	r.setDevices(devs)
	r.log.Debug().Int("copies", len(devs)).Dur("took", time.Since(began)).Msg("decoded")
	return "", nil
}

// decodeTo makes one copy of a file from its shards.
func (r *round) decodeTo(ctx context.Context, dst *cluster.Device) (outcome, error) {
	release, ok := r.limiter().TryAcquire(dst.ID)
	if !ok {
		if release, ok = r.limiter().AcquireSoon(ctx, dst.ID); !ok {
			r.wait = r.limiter().Line(dst.ID)
			return busy, nil
		}
	}
	defer release()
	for !slices.Contains(r.failedDests, dst.ID) {
		from := r.sources(r.near(dst)...)
		if len(from) == 0 {
			return r.sourceDown(), nil
		}
		// Another than dst, where there is one.
		slices.SortStableFunc(from, func(a, b *cluster.Device) int { return boolInt(a.ID == dst.ID) - boolInt(b.ID == dst.ID) })
		began := time.Now()
		how, err := r.transfer(ctx, from[0], dst)
		if err != nil {
			return "", err
		}
		if how != "" {
			r.decoded = append(r.decoded, dst.ID)
			r.copyDone(from[0], dst, how, began)
			return "", nil
		}
	}
	return "", nil
}

// moveShard does all that can be done now for the job's move of a shard.
func (r *round) moveShard(ctx context.Context, to []protocol.DevID) (outcome, error) {
	for {
		if ctx.Err() != nil {
			return "", context.Cause(ctx)
		}
		work.Alive(ctx)
		if !slices.Contains(r.file.Devices, r.job.DevID) {
			return lostRace, nil
		}
		if err := r.look(); err != nil {
			return "", err
		}
		if r.encoded == nil {
			return lostRace, nil // it has become copies: who still wants the move queues it again
		}
		i := slices.IndexFunc(r.encoded.Shards, func(s placement.ShardPlacement) bool { return s.Device.ID == r.job.DevID })
		if i < 0 || !r.encoded.Shards[i].Device.LetsDelete() {
			return kept, nil // a dead device is the reaper's affair
		}
		if !r.legible() {
			return sourceDown, nil
		}
		q := r.question()
		for index, dev := range r.encoding.Devices { // which may get their shards back
			if !slices.ContainsFunc(r.encoded.Shards, func(s placement.ShardPlacement) bool { return s.Index == index }) {
				q.Skip = append(q.Skip, dev)
			}
		}
		next, ok := placement.Away(r.policy, q, r.job.DevID, to)
		if !ok || next == nil {
			return wouldWorsen, nil
		}
		result, err := r.rebuild(ctx, map[int]*cluster.Device{r.encoded.Shards[i].Index: next})
		if err != nil || result != "" {
			return result, err
		}
		if !slices.Contains(r.file.Devices, r.job.DevID) {
			return moved, nil
		}
	}
}
