package fsck

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/schema"
	"github.com/mogile/mogile/tracker/cluster"
	"github.com/mogile/mogile/tracker/placement"
	"github.com/mogile/mogile/tracker/storage"
	"github.com/mogile/mogile/tracker/work"
)

// CheckStore is all that a [Checker] asks of a [schema.Store].
type CheckStore interface {
	FilesByFID(ctx context.Context, fids []protocol.FID) ([]schema.LocatedFile, error)
	Checksums(ctx context.Context, fids []protocol.FID) (map[protocol.FID]protocol.Checksum, error)
	SetChecksum(ctx context.Context, fid protocol.FID, sum protocol.Checksum) error
	AddLocation(ctx context.Context, fid protocol.FID, dev protocol.DevID, seen []protocol.DevID) error
	DeletedLocations(ctx context.Context, fid protocol.FID, devs []protocol.DevID) error
	DropBadLocation(ctx context.Context, fid protocol.FID, dev protocol.DevID, seen []protocol.DevID) error
	Recount(ctx context.Context, fids []protocol.FID) ([]protocol.FID, error)
	QueueReplication(ctx context.Context, fids []protocol.FID, from protocol.DevID, delay time.Duration) error
	QueueShards(ctx context.Context, fids []protocol.FID, spare int64) error
	EncodingsOf(ctx context.Context, fids []protocol.FID) (map[protocol.FID]schema.Encoding, error)
	PlaceShards(ctx context.Context, fid protocol.FID, encoding uint64, epoch int, placed map[int]protocol.DevID, seen []protocol.DevID) (schema.Encoding, error)
	RecordDecoding(ctx context.Context, fid protocol.FID, encoding uint64, devs, seen []protocol.DevID) error
	LogFsck(ctx context.Context, events []schema.FsckEvent) error
}

// CheckStorage is all that a [Checker] asks of storage daemons; see
// [storage.Client].
type CheckStorage interface {
	// Sizes is asked for files on one device at a time.
	Sizes(ctx context.Context, urls []string) []storage.SizeAnswer
	Verify(ctx context.Context, url string, size int64, t protocol.HashType, reason string) (storage.Verified, error)
	ShardStorage
}

var _ CheckStorage = (*storage.Client)(nil)

// reason is what files are verified with: storage daemons give it low priority.
const reason = "fsck"

// CheckerOptions are a [Checker]'s settings. Store, Cluster, Storage and Fids
// must be set.
type CheckerOptions struct {
	Store   CheckStore
	Cluster interface{ Snapshot() *cluster.Snapshot }
	Storage CheckStorage
	Fids    *work.FIDLocks // shared by all workers of the tracker

	MinFreeMB int64         // space that a device must have to take a copy, in MiB
	PerDevice int           // runs of questions for sizes that a device answers at once; default 4
	Readers   int           // copies read at once, by all devices together; a device reads one; default 32
	Bandwidth *rate.Limiter // of content, in bytes a second; nil: as fast as devices read

	Rand    *rand.Rand            // the checker's own; default seeded by chance
	Notify  func(msg string)      // gets MogileFS's messages, for !watch; may be nil; must not block
	Metrics prometheus.Registerer // where the counters are registered; may be nil
	Log     zerolog.Logger
}

const (
	defaultPerDevice = 4
	defaultReaders   = 32
	// askAtOnce is how many sizes one run of questions to a device is about.
	askAtOnce = 128
	// repairAtOnce is how many files are locked at a time.
	repairAtOnce = 32
	// searchAtOnce is how many devices are searched for a file at a time.
	searchAtOnce = 8
	// searches is how many files are searched for at a time.
	searches = 4
	// requeueDelay is when a file that fsck queues for replication is due
	// (MogileFS 2.73).
	requeueDelay = time.Second
	// firstLook is how long the monitor's first look at a device is waited for.
	firstLook      = 10 * time.Second
	firstLookEvery = 100 * time.Millisecond
	// aliveEvery is how often what waits for devices gives a sign of life.
	aliveEvery = time.Second
)

// Checker checks files and repairs what it can. It is safe for concurrent use.
type Checker struct {
	o       CheckerOptions
	asks    *work.Limiter // runs of questions for sizes
	reads   *work.Limiter // reads of content
	readers chan struct{} // holds one element for each copy that is read
	metrics checkMetrics

	mu   sync.Mutex // guards rand
	rand *rand.Rand
}

type checkMetrics struct {
	files  *prometheus.CounterVec
	events *prometheus.CounterVec
	bytes  prometheus.Counter
}

// How checks of files end, for statistics.
const (
	outcomeClean    = "clean"
	outcomeRepaired = "repaired"
	outcomeStalled  = "stalled"
	outcomeDeleted  = "deleted"
)

// NewChecker makes a checker.
func NewChecker(o CheckerOptions) *Checker {
	if o.PerDevice <= 0 {
		o.PerDevice = defaultPerDevice
	}
	if o.Readers <= 0 {
		o.Readers = defaultReaders
	}
	if o.Rand == nil {
		o.Rand = rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64()))
	}
	c := &Checker{
		o: o, rand: o.Rand,
		asks: work.NewLimiter(o.PerDevice), reads: work.NewLimiter(1), readers: make(chan struct{}, o.Readers),
		metrics: checkMetrics{
			files: prometheus.NewCounterVec(prometheus.CounterOpts{
				Name: "mogile_fsck_files_total",
				Help: "Files checked, by outcome: clean, repaired (something was found: see mogile_fsck_events_total), stalled (a device did not answer, or others work on the file: again later), deleted (meanwhile).",
			}, []string{"outcome"}),
			events: prometheus.NewCounterVec(prometheus.CounterOpts{
				Name: "mogile_fsck_events_total",
				Help: "What was found, by MogileFS's codes. GONE, MSUM, and BSUM without a device ask for somebody to act.",
			}, []string{"code"}),
			bytes: prometheus.NewCounter(prometheus.CounterOpts{
				Name: "mogile_fsck_read_bytes_total",
				Help: "Bytes of copies whose content was read.",
			}),
		},
	}
	if o.Metrics != nil {
		o.Metrics.MustRegister(c.metrics.files, c.metrics.events, c.metrics.bytes)
	}
	return c
}

// batch is one call of Check.
type batch struct {
	c        *Checker
	mode     Mode
	rng      *rand.Rand
	policies map[*cluster.Class]placement.Policy

	mu      sync.Mutex               // guards what follows
	away    map[protocol.DevID]error // devices that gave no answer
	tally   schema.Tally
	stalled []protocol.FID
}

// inquiry is what is found out about one file.
type inquiry struct {
	subject
	digest  protocol.HashType
	failed  bool // a device could not be asked
	copies  map[protocol.DevID]observation
	content *observation     // of all shards together
	order   []protocol.DevID // for a search

	policy  placement.Policy
	classOf *cluster.Class
	snap    *cluster.Snapshot
}

func (q *inquiry) evidence(m Mode) evidence {
	e := evidence{mode: m, class: q.class, row: q.row, digest: q.digest, encoding: q.encoding, recorded: q.file.Devices, content: q.content}
	for _, o := range q.copies {
		e.copies = append(e.copies, o)
	}
	inOrder(e.copies)
	return e
}

// Check checks files, as they were read a moment ago, and repairs what is wrong
// with them. Each file's events go to fsck_log before what they tell of is
// done. Stalled are files that could not be checked, or not completely: a device
// of theirs gave no answer, or others worked on them; they should be checked
// again later, and are not in the tally's count. A device that hangs delays the
// call, by no more than the time for one answer, but no file that is not on it.
//
// After an error some files may have been checked and repaired; all of them
// should be checked again. It may match [schema.ErrUnavailable].
func (c *Checker) Check(ctx context.Context, files []schema.LocatedFile, m Mode) (schema.Tally, []protocol.FID, error) {
	c.mu.Lock()
	rng := rand.New(rand.NewPCG(c.rand.Uint64(), c.rand.Uint64()))
	c.mu.Unlock()
	b := &batch{
		c: c, mode: m, rng: rng,
		policies: make(map[*cluster.Class]placement.Policy),
		away:     make(map[protocol.DevID]error),
		tally:    schema.Tally{Events: make(map[string]int64)},
	}
	err := b.check(ctx, files)
	b.report(ctx)
	slices.Sort(b.stalled)
	return b.tally, b.stalled, err
}

func (b *batch) check(ctx context.Context, files []schema.LocatedFile) error {
	snap, err := b.lookedAt(ctx)
	if err != nil {
		return err
	}
	rows, err := b.checksums(ctx, snap, files)
	if err != nil {
		return err
	}
	encodings, err := b.encodings(ctx, files)
	if err != nil {
		return err
	}
	var look, suspects []*inquiry
	var counts []protocol.FID
	for _, f := range files {
		q, err := b.inquire(snap, f, rows[f.FID], encodings)
		if err != nil {
			b.c.o.Log.Warn().Err(err).Uint64("fid", uint64(f.FID)).Msg("file cannot be checked")
			b.stall(f.FID)
			continue
		}
		if q.satisfied && len(f.Devices) > 0 && f.DevCount != len(f.Devices) {
			counts = append(counts, f.FID)
		}
		switch b.mode.first(q.subject) {
		case done:
			b.finish(outcomeClean)
		case stall:
			b.stallOn(f.FID, q.away)
		case observe:
			look = append(look, q)
		case suspect:
			suspects = append(suspects, q)
		}
	}
	if err := b.recount(ctx, snap, counts); err != nil {
		return err
	}
	if err := b.observe(ctx, look); err != nil {
		return err
	}
	for _, q := range look {
		if q.failed {
			b.stall(q.file.FID)
			continue
		}
		v := judge(q.evidence(b.mode))
		if v.clean() {
			b.finish(outcomeClean)
			if len(v.behind) > 0 {
				b.remind(ctx, snap, *q.encoding, v.behind)
			}
			continue
		}
		// What is not known to be good is looked at again under the lock.
		for dev := range q.copies {
			if !slices.Contains(v.good, dev) {
				delete(q.copies, dev)
			}
		}
		if q.content != nil && !q.content.sum.Equal(q.row) {
			q.content = nil
		}
		suspects = append(suspects, q)
	}
	slices.SortFunc(suspects, func(a, b *inquiry) int { return int(a.file.FID) - int(b.file.FID) })
	for some := range slices.Chunk(suspects, repairAtOnce) {
		if err := b.repair(ctx, some); err != nil {
			return err
		}
	}
	return nil
}

// lookedAt is the snapshot, once the monitor has looked at every device: those of
// a tracker that has just started, or that was just added, are not away. It
// waits no longer than firstLook.
func (b *batch) lookedAt(ctx context.Context) (*cluster.Snapshot, error) {
	for waited := time.Duration(0); ; waited += firstLookEvery {
		snap := b.c.o.Cluster.Snapshot()
		if snap == nil {
			return nil, errors.New("nothing is known of the cluster yet")
		}
		news := slices.ContainsFunc(snap.DeviceList, func(d *cluster.Device) bool {
			return d.Monitored() && d.Observed == "" && d.Host.Observed != cluster.HostUnreachable
		})
		if !news || waited >= firstLook {
			return snap, nil
		}
		work.Alive(ctx)
		work.Pause(ctx, firstLookEvery)
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
	}
}

// checksums reads those stored for files, if the mode or a class asks for any.
func (b *batch) checksums(ctx context.Context, snap *cluster.Snapshot, files []schema.LocatedFile) (map[protocol.FID]protocol.Checksum, error) {
	var fids []protocol.FID
	for _, f := range files {
		hashes := false
		if class := snap.Class(f.DMID, f.ClassID); class != nil {
			hashes = class.HashType != protocol.HashNone
		}
		if b.mode.Content || b.mode.Checksum != off && (hashes || b.mode.named() != protocol.HashNone) {
			fids = append(fids, f.FID)
		}
	}
	if len(fids) == 0 {
		return nil, nil
	}
	rows, err := b.c.o.Store.Checksums(ctx, fids)
	if err != nil {
		return nil, fmt.Errorf("read checksums of %d fids: %w", len(fids), err)
	}
	return rows, nil
}

// inquire puts together what the database and the snapshot say of a file.
func (b *batch) inquire(snap *cluster.Snapshot, f schema.LocatedFile, row protocol.Checksum, encodings map[protocol.FID]schema.Encoding) (*inquiry, error) {
	class := snap.Class(f.DMID, f.ClassID)
	if class == nil {
		return nil, fmt.Errorf("fid %d is in class %d of domain %d, which is not known", f.FID, f.ClassID, f.DMID)
	}
	policy := b.policies[class]
	if policy == nil {
		p, err := placement.ParsePolicy(class.ReplPolicy)
		if err != nil {
			return nil, fmt.Errorf("class %s: %w", class.Name, err)
		}
		policy = p
		b.policies[class] = p
	}
	q := &inquiry{
		subject: subject{file: f, row: row, class: class.HashType, encoding: encodingIn(encodings, f.FID)},
		digest:  b.mode.digest(class.HashType, row),
		copies:  make(map[protocol.DevID]observation),
		policy:  policy, classOf: class, snap: snap,
	}
	for _, dev := range f.Devices {
		switch d := snap.Device(dev); {
		case d == nil:
			q.away = append(q.away, dev)
		case d.Dead():
			q.dead = append(q.dead, dev)
		case !d.Readable():
			q.away = append(q.away, dev)
		}
	}
	q.satisfied = len(f.Devices) > 0 && b.likes(q, f.Devices, q.encoding)
	return q, nil
}

// likes reports whether the file's policy is satisfied with copies on devs, or
// shards as e has them, and wants none of them elsewhere or dropped.
func (b *batch) likes(q *inquiry, devs []protocol.DevID, e *schema.Encoding) bool {
	ask := placement.Question{
		Devices: q.snap.DeviceList, Length: q.file.Length,
		MinDevCount: q.classOf.MinDevCount, MinFreeMB: b.c.o.MinFreeMB, Rand: b.rng,
	}
	if e != nil {
		ask.Encoded = &placement.Encoded{K: e.K, M: e.M, Block: e.Block}
	}
	for _, dev := range devs {
		d := q.snap.Device(dev)
		if d == nil {
			continue
		}
		if i := shardOn(e, dev); i >= 0 {
			ask.Encoded.Shards = append(ask.Encoded.Shards, placement.ShardPlacement{Index: i, Device: d, Readable: d.Readable()})
		} else {
			ask.On = append(ask.On, placement.Placement{Device: d, Readable: d.Readable()})
		}
	}
	plan := q.policy.Decide(ask)
	switch plan.Verdict {
	case placement.Good:
		return true
	case placement.TooGood: // copies to spare, each of which is needed where it is, are left alone
		return len(plan.Drop) == 0 && !plan.Blocked
	}
	return false
}

// finish counts a file that was checked.
func (b *batch) finish(outcome string) {
	b.tally.Files++
	b.c.metrics.files.WithLabelValues(outcome).Inc()
}

// stall leaves a file for later.
func (b *batch) stall(fid protocol.FID) {
	b.stalled = append(b.stalled, fid)
	b.c.metrics.files.WithLabelValues(outcomeStalled).Inc()
}

// stallOn is stall because of devices that cannot be asked.
func (b *batch) stallOn(fid protocol.FID, devs []protocol.DevID) {
	b.stall(fid)
	for _, dev := range devs {
		b.gone(dev, errNotObserved)
	}
}

// errNotObserved is why a device is not even asked.
var errNotObserved = errors.New("not readable, by what the monitor saw or its status")

// gone notes that a device gives no answer: it is not asked again for this
// batch.
func (b *batch) gone(dev protocol.DevID, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.away[dev] == nil {
		b.away[dev] = err
	}
}

func (b *batch) isGone(dev protocol.DevID) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.away[dev] != nil
}

// report tells of devices that did not answer, once for the batch.
func (b *batch) report(ctx context.Context) {
	for dev, err := range b.away {
		b.c.o.Log.Warn().Err(err).Uint32("devid", uint32(dev)).Msg("device cannot be asked, files on it are checked later")
		b.notify(ctx, dev)
	}
}

// notify sends MogileFS's message on a device that stalls a file.
func (b *batch) notify(ctx context.Context, dev protocol.DevID) {
	if b.c.o.Notify == nil {
		return
	}
	ip := "unknown"
	if snap := b.c.o.Cluster.Snapshot(); snap != nil {
		if d := snap.Device(dev); d != nil && d.Host != nil {
			ip = d.Host.IP
		}
	}
	b.c.o.Notify(fmt.Sprintf("[fsck(%d)] Connectivity problem reaching device %d on host %s", work.WorkerID(ctx), dev, ip))
}

// observe asks the devices of files for the copies of which nothing is known
// yet: their sizes, and then for those of the right size their content where it
// is wanted. Each device is asked for itself. A file of which a copy could not
// be asked for has failed.
func (b *batch) observe(ctx context.Context, files []*inquiry) error {
	if len(files) == 0 {
		return nil
	}
	ctx, stop := b.whileAlive(ctx)
	defer stop()
	sizes, headers, blocks := make(map[protocol.DevID][]*inquiry), make(map[protocol.DevID][]*inquiry), make(map[protocol.DevID][]*inquiry)
	for _, q := range files {
		for _, dev := range q.file.Devices {
			isShard := shardOn(q.encoding, dev) >= 0
			switch _, known := q.copies[dev]; {
			case known:
			case slices.Contains(q.dead, dev):
				q.copies[dev] = observation{dev: dev, state: onDead, isShard: isShard}
			case isShard && b.mode.readsShards(q.subject):
				blocks[dev] = append(blocks[dev], q)
			case isShard:
				headers[dev] = append(headers[dev], q)
			default:
				sizes[dev] = append(sizes[dev], q)
			}
		}
	}
	b.eachDevice(sizes, func(dev protocol.DevID, files []*inquiry) { b.measure(ctx, dev, files, askAtOnce, b.measureSome) })
	b.eachDevice(headers, func(dev protocol.DevID, files []*inquiry) {
		b.measure(ctx, dev, files, protocol.MaxShardStates, b.headersOf)
	})
	b.eachDevice(blocks, func(dev protocol.DevID, files []*inquiry) {
		for _, q := range files {
			b.readShard(ctx, dev, q)
		}
	})
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	contents, witnesses := make(map[protocol.DevID][]*inquiry), make(map[protocol.DevID][]*inquiry)
	for _, q := range files {
		if q.failed || q.digest == protocol.HashNone || q.encoding != nil {
			continue
		}
		for _, dev := range q.file.Devices {
			switch o := q.copies[dev]; {
			case o.state == intact && o.sum.IsZero():
				contents[dev] = append(contents[dev], q)
			case o.state == wrongSize && o.stored == nil && q.row.IsZero():
				witnesses[dev] = append(witnesses[dev], q)
			}
		}
	}
	b.eachDevice(contents, func(dev protocol.DevID, files []*inquiry) {
		for _, q := range files {
			b.read(ctx, dev, q)
		}
	})
	b.eachDevice(witnesses, func(dev protocol.DevID, files []*inquiry) {
		for _, q := range files {
			b.recall(ctx, dev, q)
		}
	})
	b.readEncoded(ctx, files)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return nil
}

// whileAlive gives signs of life until it is stopped: what follows is bounded by
// the deadlines of the storage client, and may be long for large files.
func (b *batch) whileAlive(ctx context.Context) (_ context.Context, stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	var g sync.WaitGroup
	g.Go(func() {
		tick := time.NewTicker(aliveEvery)
		defer tick.Stop()
		for {
			work.Alive(ctx)
			select {
			case <-tick.C:
			case <-ctx.Done():
				return
			}
		}
	})
	return ctx, func() { cancel(); g.Wait() }
}

// eachDevice does something with the files of each device, all devices at once.
func (b *batch) eachDevice(files map[protocol.DevID][]*inquiry, do func(protocol.DevID, []*inquiry)) {
	var g sync.WaitGroup
	for dev, some := range files {
		g.Go(func() { do(dev, some) })
	}
	g.Wait()
}

// note takes down what was found of a copy.
func (b *batch) note(q *inquiry, o observation) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if o.state == unasked {
		q.failed = true
		delete(q.copies, o.dev)
		return
	}
	q.copies[o.dev] = o
}

// measure asks a device about files, so many at a time.
func (b *batch) measure(ctx context.Context, dev protocol.DevID, files []*inquiry, atOnce int, ask func(context.Context, protocol.DevID, []*inquiry)) {
	var g errgroup.Group
	g.SetLimit(b.c.o.PerDevice)
	for some := range slices.Chunk(files, atOnce) {
		g.Go(func() error {
			release, err := b.c.asks.Acquire(ctx, dev)
			if err != nil {
				return nil // the caller sees that ctx has ended
			}
			defer release()
			ask(ctx, dev, some)
			return nil
		})
	}
	_ = g.Wait() // they return none
}

// measureSome asks for the sizes of copies.
func (b *batch) measureSome(ctx context.Context, dev protocol.DevID, files []*inquiry) {
	d := files[0].snap.Device(dev)
	if d == nil || b.isGone(dev) {
		for _, q := range files {
			b.note(q, observation{dev: dev})
		}
		return
	}
	urls := make([]string, len(files))
	for i, q := range files {
		urls[i] = d.ReadURL(q.file.FID, cluster.Viewer{})
	}
	answers := b.c.o.Storage.Sizes(ctx, urls)
	if ctx.Err() != nil {
		return
	}
	for i, q := range files {
		b.note(q, b.sized(ctx, dev, q, answers[i].Bytes, answers[i].Err))
	}
}

// sized is what the answer to a question for a copy's size means.
func (b *batch) sized(ctx context.Context, dev protocol.DevID, q *inquiry, size int64, err error) observation {
	o := observation{dev: dev}
	switch {
	case err == nil && size == q.file.Length:
		o.state = intact
	case err == nil:
		o.state = wrongSize
	case errors.Is(err, storage.ErrMissing):
		o.state = missing
	case errors.As(err, new(*storage.StatusError)): // it may answer for other files
		b.trouble(ctx, dev, q.file.FID, err)
	default:
		b.gone(dev, err)
	}
	return o
}

// trouble tells of a device that answers, but not for this file.
func (b *batch) trouble(ctx context.Context, dev protocol.DevID, fid protocol.FID, err error) {
	b.c.o.Log.Warn().Err(err).Uint64("fid", uint64(fid)).Uint32("devid", uint32(dev)).Msg("copy cannot be asked for, the file is checked later")
	b.notify(ctx, dev)
}

// read reads the content of a copy of the right size.
func (b *batch) read(ctx context.Context, dev protocol.DevID, q *inquiry) {
	d := q.snap.Device(dev)
	if b.isGone(dev) {
		b.note(q, observation{dev: dev})
		return
	}
	release, err := b.mayRead(ctx, dev, q.file.Length)
	if err != nil {
		b.note(q, observation{dev: dev})
		return
	}
	defer release()
	reading, stop := work.WhileReadable(ctx, b.c.o.Cluster, dev)
	content, err := b.c.o.Storage.Verify(reading, d.ReadURL(q.file.FID, cluster.Viewer{}), q.file.Length, q.digest, reason)
	if err != nil && context.Cause(reading) == work.ErrWentAway {
		err = work.ErrWentAway
	}
	stop()
	if ctx.Err() != nil {
		return
	}
	o := observation{dev: dev}
	switch {
	case err == nil:
		o = verified(dev, q.file.Length, content)
		b.haveRead(q.file.Length)
	case errors.Is(err, storage.ErrMissing):
		o.state = missing
	case b.answers(ctx, d, q.file.FID, err):
		b.trouble(ctx, dev, q.file.FID, err)
	default:
		b.gone(dev, err)
	}
	b.note(q, o)
}

// recall asks what a copy of another length was when its storage daemon wrote
// it, which may tell which of the others are right. Without an answer there is
// one witness fewer.
func (b *batch) recall(ctx context.Context, dev protocol.DevID, q *inquiry) {
	d := q.snap.Device(dev)
	if b.isGone(dev) {
		return
	}
	release, err := b.c.reads.Acquire(ctx, dev)
	if err != nil {
		return
	}
	defer release()
	reading, stop := work.WhileReadable(ctx, b.c.o.Cluster, dev)
	defer stop()
	content, err := b.c.o.Storage.Verify(reading, d.ReadURL(q.file.FID, cluster.Viewer{}), q.file.Length, q.digest, reason)
	if err != nil || content.DigestOnly || content.Stored == nil {
		return
	}
	b.note(q, observation{dev: dev, state: wrongSize, stored: content.Stored})
}

// answers reports whether a device that failed with err to read a file at least
// answers: then it is about the file, and others are still asked for.
func (b *batch) answers(ctx context.Context, d *cluster.Device, fid protocol.FID, err error) bool {
	if errors.As(err, new(*storage.StatusError)) {
		return true
	}
	if errors.Is(err, work.ErrWentAway) {
		return false
	}
	err = b.c.o.Storage.Sizes(ctx, []string{d.ReadURL(fid, cluster.Viewer{})})[0].Err
	return err == nil || errors.Is(err, storage.ErrMissing)
}

// verified is what reading a copy that should have length bytes brought.
func verified(dev protocol.DevID, length int64, v storage.Verified) observation {
	o := observation{dev: dev, state: intact, sum: v.Digest}
	switch {
	case v.Unreadable:
		return observation{dev: dev, state: unreadable, stored: v.Stored}
	case v.DigestOnly:
	case v.Found.Length != length:
		return observation{dev: dev, state: wrongSize, stored: v.Stored}
	default:
		o.stored, o.computed = v.Stored, &v.Found
	}
	return o
}

// mayRead waits until n bytes may be read from a device, which reads one file at
// a time. An error is the end of ctx.
func (b *batch) mayRead(ctx context.Context, dev protocol.DevID, n int64) (release func(), err error) {
	if err := b.bandwidth(ctx, n); err != nil {
		return nil, err
	}
	leave, err := b.c.reads.Acquire(ctx, dev)
	if err != nil {
		return nil, err
	}
	select {
	case b.c.readers <- struct{}{}:
		return func() { <-b.c.readers; leave() }, nil
	case <-ctx.Done():
		leave()
		return nil, context.Cause(ctx)
	}
}

// haveRead counts n bytes of content.
func (b *batch) haveRead(n int64) {
	b.mu.Lock()
	b.tally.Bytes += n
	b.mu.Unlock()
	b.c.metrics.bytes.Add(float64(n))
}

// bandwidth waits until n bytes may be read.
func (b *batch) bandwidth(ctx context.Context, n int64) error {
	l := b.c.o.Bandwidth
	if l == nil || l.Limit() == rate.Inf {
		return nil
	}
	for n > 0 {
		some := min(n, int64(max(1, l.Burst())))
		if err := l.WaitN(ctx, int(some)); err != nil {
			return fmt.Errorf("wait for bandwidth: %w", err)
		}
		n -= some
	}
	return nil
}
