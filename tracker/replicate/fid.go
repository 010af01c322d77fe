package replicate

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/rs/zerolog"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/schema"
	"github.com/mogile/mogile/tracker/cluster"
	"github.com/mogile/mogile/tracker/placement"
	"github.com/mogile/mogile/tracker/storage"
	"github.com/mogile/mogile/tracker/work"
)

// maxRereads bounds how often the namespace may change under one round of work
// on a fid before it is left for later.
const maxRereads = 10

// announceFor is for how long an announced copy is safe from the delete worker:
// much longer than it takes to notice that the fid's lock is lost. An
// announcement that has used up half of it is renewed before the copy is
// recorded.
const announceFor = time.Minute

// digestSpeed, in bytes a second, is what a storage daemon is expected to
// digest at least. While it does there is no progress to be seen.
const digestSpeed = 2 << 20

// retractTimeout bounds making announced copies that failed due for deletion,
// which happens during a shutdown too.
const retractTimeout = 5 * time.Second

// round is the work on one fid, under its lock.
type round struct {
	w   *Worker
	id  int // the worker's number
	rng *rand.Rand
	job schema.Job
	log zerolog.Logger

	// As read from the database.
	file     schema.LocatedFile
	encoding *schema.Encoding  // nil where the file is kept in copies
	sum      protocol.Checksum // zero where none is recorded
	pending  []protocol.DevID  // copies or shards of the fid on these wait to be deleted
	rereads  int

	// As of the snapshot that the present step goes by.
	snap   *cluster.Snapshot
	class  *cluster.Class
	policy placement.Policy
	on     []placement.Placement // the copies that count
	// encoded are the shards that count, nil where the file is kept in copies.
	encoded *placement.Encoded

	announced     map[announcement]time.Time // when this round announced what may land on devices
	failedSources []protocol.DevID
	failedDests   []protocol.DevID
	sizes         map[protocol.DevID]bool // whether a copy was found to have the right size
	badShards     []int                   // those that a rebuild found missing or bad
	decoded       []protocol.DevID        // where copies are that are to take the place of shards
	copied        int                     // copies, and shards, that were made and recorded
	contents      map[protocol.DevID]bool // whether a copy was found to have the right content
	content       *protocol.ContentSum    // that copies of the right content had, without a checksum to compare with
	doubted       bool                    // fsck was asked to look at the file
	judgedOn      []protocol.DevID        // the locations that were found too few intact to drop one, by a move
	dropped       int
	wait          time.Duration // under busy: when to try again
	why           string        // what is in the way of shards
}

// announcement is what may land on a device.
type announcement struct {
	dev  protocol.DevID
	what schema.What
}

// errGone is the end of a round whose file is deleted meanwhile, errBusy of one
// that needs a device which is used to its limit.
var (
	errGone = errors.New("the file is gone")
	errBusy = errors.New("a device is used to its limit")
)

// end is how work on a fid ended.
type end struct {
	outcome outcome
	retries int           // failures that its row should count as its own so far
	wait    time.Duration // under busy: when to try again
}

// replicate does all that can be done for the job's fid now.
func (w *Worker) replicate(ctx context.Context, id int, rng *rand.Rand, job schema.Job) (end, error) {
	return w.locked(ctx, id, rng, job, (*round).run)
}

// locked does something about the job's fid under its lock, unless somebody else
// has that.
func (w *Worker) locked(ctx context.Context, id int, rng *rand.Rand, job schema.Job, do func(*round, context.Context) (outcome, error)) (end, error) {
	held, err := w.o.Fids.TryLock(ctx, job.FID)
	if err != nil {
		return end{outcome: orInterrupted(ctx, failed), retries: job.FailCount}, err
	}
	defer func() {
		if err := held.Release(ctx); errors.Is(err, schema.ErrUnavailable) {
			w.o.Outage.Failed(err)
		} else if err != nil {
			w.o.Log.Warn().Err(err).Uint64("fid", uint64(job.FID)).Msg("fid lock not given back")
		}
	}()
	if !held.Has(job.FID) {
		return end{outcome: locked, retries: job.FailCount}, nil
	}
	ctx, cancel := held.Context(ctx)
	defer cancel()
	r := &round{
		w: w, id: id, rng: rng, job: job,
		log:       w.pool.Log(id).With().Uint64("fid", uint64(job.FID)).Logger(),
		sizes:     make(map[protocol.DevID]bool),
		contents:  make(map[protocol.DevID]bool),
		announced: make(map[announcement]time.Time),
	}
	result, err := do(r, ctx)
	r.retract(ctx)
	switch {
	case errors.Is(err, errGone):
		result, err = noFID, nil
	case errors.Is(err, errBusy):
		result, err = busy, nil
	}
	if err != nil {
		result = orInterrupted(ctx, failed)
	}
	e := end{outcome: result, retries: job.FailCount, wait: r.wait}
	if result == tooHappy && r.dropped > 0 {
		e.retries = 0
	}
	return e, err
}

func orInterrupted(ctx context.Context, result outcome) outcome {
	if ctx.Err() != nil && !errors.Is(context.Cause(ctx), work.ErrWatchdog) {
		return interrupted
	}
	return result
}

// run asks the policy and does what it says until it is satisfied or nothing
// can be done.
func (r *round) run(ctx context.Context) (outcome, error) {
	if err := r.read(ctx); err != nil {
		return "", err
	}
	if len(r.file.Devices) == 0 {
		r.report(noSource, "no_source: fid %d is on no device", r.file.FID)
		return noSource, nil
	}
	if err := r.look(); err != nil {
		return "", err
	}
	if !r.legible() { // whatever the policy would say: MogileFS 2.73 looks for sources first
		return r.sourceDown(), nil
	}
	for {
		if ctx.Err() != nil {
			return "", context.Cause(ctx)
		}
		work.Alive(ctx)
		if err := r.look(); err != nil {
			return "", err
		}
		plan := r.ask()
		switch plan.Verdict {
		case placement.Good:
			return r.satisfied(), nil
		case placement.TooGood:
			if len(plan.Drop) == 0 && !plan.Blocked {
				return r.satisfied(), nil // copies to spare, each of which is needed where it is
			}
			again, err := r.drop(ctx, plan)
			if err != nil {
				return "", err
			}
			if !again {
				r.report(tooHappy, "too_happy: fid %d is on too many devices", r.file.FID)
				return tooHappy, nil
			}
		case placement.Copy:
			to := plan.Ideal
			if len(to) == 0 {
				to = plan.Desperate
			}
			result, err := r.copyToOne(ctx, to)
			if err != nil || result != "" {
				return result, err
			}
		case placement.Encode, placement.Rebuild, placement.Decode:
			result, err := r.code(ctx, plan)
			if err != nil || result != "" {
				return result, err
			}
		default:
			return r.suggestNothing(plan.Why), nil
		}
	}
}

// ask is the policy's answer to what is known now.
func (r *round) ask() placement.Plan { return r.policy.Decide(r.question()) }

// question is what is known now.
func (r *round) question() placement.Question {
	return placement.Question{
		On:          r.on,
		Devices:     r.snap.DeviceList,
		Length:      r.file.Length,
		Encoded:     r.encoded,
		Skip:        slices.Concat(r.failedDests, r.pending),
		MinDevCount: r.class.MinDevCount,
		MinFreeMB:   r.w.o.MinFreeMB,
		Rand:        r.rng,
	}
}

// suggestNothing tells what is in the way of all that the policy wants.
func (r *round) suggestNothing(why string) outcome {
	r.why = why
	r.report(noSuggestion, "policy_no_suggestions: replication policy ran out of suggestions for us replicating fid %d", r.file.FID)
	return noSuggestion
}

func (r *round) sourceDown() outcome {
	r.report(sourceDown, "source_down: no readable copy left to replicate fid %d from", r.file.FID)
	return sourceDown
}

func (r *round) satisfied() outcome {
	switch {
	case r.copied > 0:
		return replicated
	case r.dropped > 0:
		return reduced
	}
	return lostRace
}

// report tells an outcome that an operator may want to know of.
func (r *round) report(what outcome, format string, args ...any) {
	event := r.log.Warn().Str("outcome", string(what)).Int("failcount", r.job.FailCount).Int("devcount", len(r.file.Devices))
	if r.why != "" {
		event = event.Str("reason", r.why)
	}
	event.Msg("file is not as its policy wants it")
	r.w.notify(r.id, format, args...)
}

// read reads what the database knows of the fid.
func (r *round) read(ctx context.Context) error {
	files, err := r.w.o.Store.Inspect(ctx, []protocol.FID{r.job.FID})
	if err != nil {
		return fmt.Errorf("read fid %d: %w", r.job.FID, err)
	}
	if len(files) == 0 {
		return errGone
	}
	f := files[0]
	r.file, r.encoding = f.LocatedFile, f.Encoding
	if r.sum.IsZero() {
		r.sum = f.Checksum
	}
	r.pending = r.pending[:0]
	for _, dev := range f.Pending {
		if !r.announcedOn(dev) {
			r.pending = append(r.pending, dev)
		}
	}
	return nil
}

// announcedOn reports whether this round announced anything on dev.
func (r *round) announcedOn(dev protocol.DevID) bool {
	for a := range r.announced {
		if a.dev == dev {
			return true
		}
	}
	return false
}

// reread is read after the namespace has changed.
func (r *round) reread(ctx context.Context) error {
	if r.rereads++; r.rereads > maxRereads {
		return fmt.Errorf("locations of fid %d: %w", r.job.FID, schema.ErrStale)
	}
	return r.read(ctx)
}

// look matches what was read with the present snapshot.
func (r *round) look() error {
	r.snap = r.w.o.Cluster.Snapshot()
	if r.snap == nil {
		return errors.New("nothing is known of the cluster yet")
	}
	r.class = r.snap.Class(r.file.DMID, r.file.ClassID)
	if r.class == nil {
		return fmt.Errorf("fid %d is in class %d of domain %d, which is not known", r.file.FID, r.file.ClassID, r.file.DMID)
	}
	policy, err := placement.ParsePolicy(r.class.ReplPolicy)
	if err != nil {
		return fmt.Errorf("class %s: %w", r.class.Name, err)
	}
	r.policy = policy
	r.on = r.on[:0]
	if r.lookAtShards(); r.encoded != nil {
		return nil
	}
	for _, dev := range r.file.Devices {
		if d := r.snap.Device(dev); d != nil && !d.Dead() {
			r.on = append(r.on, placement.Placement{Device: d, Readable: d.Readable()})
		}
	}
	return nil
}

// readable are the devices from which the file can be read.
func (r *round) readable() []*cluster.Device {
	var able []*cluster.Device
	for _, p := range r.on {
		if p.Readable {
			able = append(able, p.Device)
		}
	}
	if r.encoded != nil && r.encoded.Readable() >= r.encoded.K {
		for _, s := range r.encoded.Shards {
			if s.Readable {
				able = append(able, s.Device)
			}
		}
	}
	return able
}

// legible reports whether the file can be read from anywhere.
func (r *round) legible() bool { return len(r.sources()) > 0 }

// sources are the devices from which the file can be read, best first: the one that the job
// names, then those in the first of near, and so on, each group by chance, idle
// devices preferred.
func (r *round) sources(near ...string) []*cluster.Device {
	var able []*cluster.Device
	for _, d := range r.readable() {
		if !slices.Contains(r.failedSources, d.ID) {
			able = append(able, d)
		}
	}
	order := placement.ReadOrder(able, r.rng)
	for _, d := range able {
		if !slices.Contains(order, d) { // of negative weight
			order = append(order, d)
		}
	}
	placement.NearFirst(order, near...)
	slices.SortStableFunc(order, func(a, b *cluster.Device) int {
		switch r.job.From {
		case a.ID:
			return -1
		case b.ID:
			return 1
		}
		return 0
	})
	return order
}

// copyToOne makes a copy on the first of devs that has room for one more, from
// any source that has. It returns an outcome where there is nothing more to do.
func (r *round) copyToOne(ctx context.Context, devs []*cluster.Device) (outcome, error) {
	if len(r.sources()) == 0 {
		return r.sourceDown(), nil
	}
	dst, leave := r.use(ctx, devs)
	if dst == nil {
		return busy, nil
	}
	defer leave()
	return r.copyTo(ctx, dst)
}

// copyTo makes a copy on dst from any source that is not used to its limit. It
// returns an outcome where there is none.
func (r *round) copyTo(ctx context.Context, dst *cluster.Device) (outcome, error) {
	from := r.sources(r.near(dst)...)
	if len(from) == 0 {
		return sourceDown, nil
	}
	src, leave := r.use(ctx, from)
	if src == nil {
		return busy, nil
	}
	defer leave()
	return "", r.copy(ctx, src, dst)
}

// near are the zones to read a copy for dst from: dst's own where it fetches the
// bytes by itself, else the tracker's first, which they pass through.
func (r *round) near(dst *cluster.Device) []string {
	local := r.snap.Zones.Of(r.w.o.Local)
	if dst.Host.Capabilities.Has(storage.CapabilityCopy) {
		return []string{dst.Zone(), local}
	}
	return []string{local, dst.Zone()}
}

// limiter bounds how many such files a device is used for.
func (r *round) limiter() *work.Limiter {
	if r.file.Length <= r.w.o.SmallFile {
		return r.w.minor
	}
	return r.w.devices
}

// use takes the first of devs that is not used to its limit, until leave is
// called. Where all are it waits for the first, if that is not for long, else it
// stands in line there.
func (r *round) use(ctx context.Context, devs []*cluster.Device) (d *cluster.Device, leave func()) {
	for _, d := range devs {
		if leave, ok := r.limiter().TryAcquire(d.ID); ok {
			return d, leave
		}
	}
	if leave, ok := r.limiter().AcquireSoon(ctx, devs[0].ID); ok {
		return devs[0], leave
	}
	r.wait = r.limiter().Line(devs[0].ID)
	return nil, nil
}

// copy makes one copy and records it. A failure of either device is remembered,
// and is no error.
func (r *round) copy(ctx context.Context, src, dst *cluster.Device) error {
	began := time.Now()
	how, err := r.transfer(ctx, src, dst)
	if err != nil || how == "" {
		return err
	}
	if recorded, err := r.record(ctx, dst.ID); err != nil || !recorded {
		r.w.metrics.copies.WithLabelValues("unrecorded").Inc()
		return err
	}
	r.copyDone(src, dst, how, began)
	return nil
}

// copyDone counts a copy.
func (r *round) copyDone(src, dst *cluster.Device, how string, began time.Time) {
	r.copied++
	r.w.metrics.copies.WithLabelValues("ok").Inc()
	r.w.metrics.bytes.WithLabelValues(how).Add(float64(r.file.Length))
	r.w.metrics.seconds.Observe(time.Since(began).Seconds())
	r.log.Debug().Uint32("from", uint32(src.ID)).Uint32("devid", uint32(dst.ID)).Int64("bytes", r.file.Length).
		Str("how", how).Dur("took", time.Since(began)).Msg("copied")
}

// transfer makes one copy and announces it before, and says how. A failure of
// either device is remembered, and is no error: how is empty then.
func (r *round) transfer(ctx context.Context, src, dst *cluster.Device) (how string, err error) {
	fid := r.file.FID
	if err := r.announce(ctx, announcement{dst.ID, schema.Raw}); err != nil {
		return "", err
	}
	from := src.WriteURL(fid, cluster.Viewer{})
	if r.w.o.UseGetPort && r.encoded == nil { // what serves a get port may know nothing of shards
		from = src.ReadURL(fid, cluster.Viewer{})
	}
	// After the last piece the copy is digested: on its device, or here.
	digesting := time.Duration(2 * float64(r.file.Length) / digestSpeed * float64(time.Second))
	sum, how, err := r.w.transfer(ctx, dst, storage.Copy{
		From:     from,
		To:       dst.WriteURL(fid, cluster.Viewer{}),
		Length:   r.file.Length,
		Want:     r.sum,
		HashType: r.class.HashType,
		TrustMD5: dst.RejectBadMD5 != nil && *dst.RejectBadMD5,
		Progress: func() { work.Busy(ctx, digesting) },
	})
	if ctx.Err() != nil {
		return "", fmt.Errorf("copy fid %d from dev%d to dev%d: %w", fid, src.ID, dst.ID, context.Cause(ctx))
	}
	if err != nil {
		r.blame(src, dst, err)
		return "", nil
	}
	return how, r.setSum(ctx, sum)
}

// setSum stores the checksum of the file, where it is known now and was not.
func (r *round) setSum(ctx context.Context, sum protocol.Checksum) error {
	if !r.sum.IsZero() || sum.IsZero() {
		return nil
	}
	if err := r.w.o.Store.SetChecksum(ctx, r.file.FID, sum); errors.Is(err, schema.ErrGone) {
		return errGone
	} else if err != nil {
		return fmt.Errorf("store the checksum of fid %d: %w", r.file.FID, err)
	}
	r.sum = sum
	return nil
}

// How a copy was made, as the metrics name it.
const (
	direct   = "direct"   // from device to device: its bytes cross the network once
	streamed = "streamed" // through this tracker: twice
)

// transfer has the destination fetch the file where it can do so, else copies it
// through this tracker.
func (w *Worker) transfer(ctx context.Context, dst *cluster.Device, c storage.Copy) (sum protocol.Checksum, how string, err error) {
	if dst.Host.Capabilities.Has(storage.CapabilityCopy) {
		sum, err = w.o.Storage.CopyDirect(ctx, c)
		if !errors.Is(err, storage.ErrNotDirect) {
			return sum, direct, err
		}
	}
	sum, err = w.o.Storage.Copy(ctx, c)
	return sum, streamed, err
}

// announce enters in copy_to_delete what may land on a device, unless that was
// done a moment ago.
func (r *round) announce(ctx context.Context, a announcement) error {
	if at, ok := r.announced[a]; ok && time.Since(at) < announceFor/2 {
		return nil
	}
	began := time.Now()
	if err := r.w.o.Store.AnnounceCopy(ctx, r.file.FID, a.dev, a.what, announceFor); err != nil {
		return fmt.Errorf("announce fid %d, %s, on dev%d: %w", r.file.FID, a.what, a.dev, err)
	}
	r.announced[a] = began
	return nil
}

// retract has the bytes go at once of what was announced and came to nothing. It
// does so even where ctx has ended. Where it cannot, they go a little later.
func (r *round) retract(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), retractTimeout)
	defer cancel()
	for a := range r.announced {
		if _, shard := a.what.Shard(); slices.Contains(r.file.Devices, a.dev) && shard == (r.encoding != nil) {
			continue
		}
		if err := r.w.o.Store.QueueCopyDeletion(ctx, r.file.FID, a.dev, a.what); err != nil {
			r.log.Debug().Err(err).Uint32("devid", uint32(a.dev)).Msg("what was announced goes later than it could")
			return
		}
	}
}

// blame remembers which side of a copy failed.
func (r *round) blame(src, dst *cluster.Device, err error) {
	side := storage.DestError // also where nobody says: another destination is tried, then the round ends
	if e, ok := errors.AsType[*storage.CopyError](err); ok {
		side = e.Side
	}
	if side == storage.SourceError {
		r.failedSources = append(r.failedSources, src.ID)
	} else {
		r.failedDests = append(r.failedDests, dst.ID)
	}
	r.w.metrics.copies.WithLabelValues(side.String()).Inc()
	r.log.Warn().Err(err).Uint32("from", uint32(src.ID)).Uint32("devid", uint32(dst.ID)).
		Stringer("side", side).Msg("copy failed")
	r.w.notify(r.id, "Failed copying fid %d from devid %d to devid %d (error type: %s)", r.file.FID, src.ID, dst.ID, side)
}

// record enters the copy that was made on dst, and reports whether it did.
// Where the locations have changed meanwhile it does so only if the policy
// still wants a copy; else the bytes remain announced, and are deleted.
func (r *round) record(ctx context.Context, dst protocol.DevID) (bool, error) {
	for {
		a := announcement{dst, schema.Raw}
		if err := r.announce(ctx, a); err != nil {
			return false, err
		}
		err := r.w.o.Store.AddLocation(ctx, r.file.FID, dst, r.file.Devices)
		switch {
		case err == nil:
			r.file.Devices = append(slices.Clone(r.file.Devices), dst)
			slices.Sort(r.file.Devices)
			r.sizes[dst], r.contents[dst] = true, true
			return true, nil
		case errors.Is(err, schema.ErrGone):
			return false, errGone
		case !errors.Is(err, schema.ErrStale):
			return false, fmt.Errorf("record fid %d on dev%d: %w", r.file.FID, dst, err)
		}
		r.announced[a] = time.Time{} // the refusal has made it due
		if err := r.reread(ctx); err != nil {
			return false, err
		}
		if err := r.look(); err != nil {
			return false, err
		}
		if slices.Contains(r.file.Devices, dst) || r.ask().Verdict != placement.Copy {
			return false, nil
		}
	}
}

// drop takes surplus copies out of the namespace, as long as the policy is
// satisfied by others that are intact. It reports whether the policy should be asked again.
func (r *round) drop(ctx context.Context, plan placement.Plan) (again bool, err error) {
	for _, d := range plan.Drop {
		may, err := r.mayDrop(ctx, d)
		if err != nil {
			return false, err
		}
		if !may {
			continue
		}
		err = r.w.o.Store.DropLocation(ctx, r.file.FID, d.ID, r.file.Devices)
		if errors.Is(err, schema.ErrStale) {
			return true, r.reread(ctx)
		}
		if err != nil {
			return false, fmt.Errorf("drop fid %d from dev%d: %w", r.file.FID, d.ID, err)
		}
		r.file.Devices = slices.DeleteFunc(slices.Clone(r.file.Devices), func(dev protocol.DevID) bool { return dev == d.ID })
		r.on = slices.DeleteFunc(r.on, func(p placement.Placement) bool { return p.Device.ID == d.ID })
		delete(r.announced, announcement{d.ID, schema.Raw})
		r.pending = append(r.pending, d.ID)
		r.dropped++
		again = true
		r.w.metrics.drops.Inc()
		r.log.Debug().Uint32("devid", uint32(d.ID)).Msg("surplus copy dropped")
	}
	return again, nil
}

// mayDrop reports whether the surplus copy on d may go, counting only those of
// the others that can be read and are right. Their content is read if it comes to
// that.
func (r *round) mayDrop(ctx context.Context, d *cluster.Device) (bool, error) {
	for _, right := range []judge{r.rightSize, r.rightContent} {
		q, err := r.judged(ctx, d, right)
		if err != nil {
			return false, err
		}
		if may, _ := placement.MayDrop(r.policy, q, d.ID); !may {
			return false, nil
		}
	}
	return true, nil
}
