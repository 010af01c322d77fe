package rebalance

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/schema"
	"github.com/mogile/mogile/tracker/cluster"
	"github.com/mogile/mogile/tracker/drain"
	"github.com/mogile/mogile/tracker/work"
)

// Store is all that a [Balancer] asks of a [schema.Store].
type Store interface {
	Ledger
	FilesOn(ctx context.Context, dev protocol.DevID, after protocol.FID, newest bool, limit int) ([]schema.LocatedFile, error)
	QueueMoves(ctx context.Context, moves []schema.Move, change schema.SettingsChange) error
	EncodingsOf(ctx context.Context, fids []protocol.FID) (map[protocol.FID]schema.Encoding, error)
	SetDeviceState(ctx context.Context, dev protocol.DevID, state string) error
	Trackers(ctx context.Context) ([]schema.Tracker, error)
	HoldLease(ctx context.Context, name, owner string, ttl time.Duration) (bool, error)
	ReleaseLease(ctx context.Context, name, owner string) error
}

// Options are a balancer's settings. Store, Cluster, Queues and Name must be set.
type Options struct {
	Store   Store
	Cluster interface{ Snapshot() *cluster.Snapshot }
	// Queues counts the rows of the queues, not more often than is good for the
	// database.
	Queues    func(ctx context.Context) (map[schema.Queue]int64, error)
	Name      string // of this tracker
	MinFreeMB int64  // space that a device must have to take a copy, in MiB
	// Changed is called after the status of a device or what runs has changed.
	// May be nil.
	Changed func(ctx context.Context)

	Outage  *work.Outage          // shared by the tracker's workers; default its own, on Log
	Numbers *work.Numbers         // shared by the tracker's pools; default its own
	Notify  func(msg string)      // gets MogileFS's messages, for !watch; may be nil; must not block
	Metrics prometheus.Registerer // where the metrics are registered; may be nil
	Log     zerolog.Logger
}

const (
	defaultRate = 500    // files of a pass (MogileFS 2.73)
	defaultSize = 10_000 // moves (MogileFS 2.73)
	maxRate     = 10_000 // files of a pass: they are in memory

	passPause = time.Second     // between passes (MogileFS 2.73)
	idlePause = 5 * time.Second // while another tracker is at it

	lease = "rebalance"
	// A pass ends well before its lease does: two trackers never give a source
	// its status back and take it at the same time.
	leaseTime = 60 * time.Second
	passTime  = 30 * time.Second
	watchdog  = 120 * time.Second // MogileFS 2.73, of the job master
)

// Balancer is the tracker's part of rebalancing.
type Balancer struct {
	o       Options
	pool    *work.Pool
	moves   prometheus.Counter
	bytes   prometheus.Counter
	working chan struct{} // of capacity 1: held by the worker that works; guards what follows
	rng     *rand.Rand
	told    string // what was last said of why nothing moves
}

// New makes a balancer. It does nothing before [Balancer.Run].
func New(o Options) *Balancer {
	if o.Outage == nil {
		o.Outage = work.NewOutage(o.Log)
	}
	if o.Changed == nil {
		o.Changed = func(context.Context) {}
	}
	b := &Balancer{
		o:       o,
		working: make(chan struct{}, 1),
		rng:     rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64())),
		moves: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "mogile_rebalance_moves_total",
			Help: "Moves that rebalancing queued.",
		}),
		bytes: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "mogile_rebalance_moves_bytes_total",
			Help: "Bytes of the files whose moves rebalancing queued.",
		}),
	}
	if o.Metrics != nil {
		o.Metrics.MustRegister(b.moves, b.bytes)
	}
	b.pool = work.NewPool("rebalance", 1, b.work, o.Log)
	b.pool.Notify, b.pool.Watchdog = o.Notify, watchdog
	if o.Numbers != nil {
		b.pool.Numbers = o.Numbers
	}
	return b
}

// Run works until ctx is cancelled, and gives the lease up then.
func (b *Balancer) Run(ctx context.Context) error {
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		if err := b.o.Store.ReleaseLease(ctx, lease, b.o.Name); err != nil {
			b.o.Log.Debug().Err(err).Msg("the lease of rebalance is not given up, it ends by itself")
		}
	}()
	return b.pool.Run(ctx)
}

func (b *Balancer) work(ctx context.Context, id int) error {
	for ctx.Err() == nil {
		work.Alive(ctx)
		wait := idlePause
		select {
		case b.working <- struct{}{}:
			var err error
			wait, err = b.pass(ctx)
			<-b.working
			switch {
			case err == nil, ctx.Err() != nil:
			case errors.Is(err, schema.ErrUnavailable):
				b.o.Outage.Failed(err)
			case errors.Is(err, schema.ErrStale): // a command came between
			default:
				log := b.pool.Log(id)
				log.Error().Err(err).Msg("rebalance does not go on, it is tried again")
			}
		default: // one that was given up still works
		}
		work.Pause(ctx, wait)
	}
	return nil
}

// pass is one injection. It returns how long to pause.
func (b *Balancer) pass(ctx context.Context) (time.Duration, error) {
	snap := b.o.Cluster.Snapshot()
	if snap == nil || snap.Settings[SettingHost] == "" {
		b.told = ""
		return passPause, nil
	}
	ctx, cancel := context.WithTimeout(ctx, passTime)
	defer cancel()
	ours, err := b.ours(ctx, snap.Settings[SettingHost])
	if err != nil || !ours {
		return idlePause, err
	}
	held, err := b.o.Store.HoldLease(ctx, lease, b.o.Name, leaseTime)
	if err != nil {
		return idlePause, fmt.Errorf("hold the lease of rebalance: %w", err)
	}
	if !held {
		return idlePause, nil
	}
	rows, err := b.o.Store.Topology(ctx)
	if err != nil {
		return passPause, fmt.Errorf("read the state of rebalance: %w", err)
	}
	r := run{
		b: b, snap: snap, rows: rows,
		facts: Facts{Settings: rows.Settings, Now: rows.Now},
	}
	if rows.Settings[SettingHost] == "" {
		return passPause, nil
	}
	return passPause, r.step(ctx)
}

// ours reports whether a run that a tracker of that name started is Mogile's.
func (b *Balancer) ours(ctx context.Context, name string) (bool, error) {
	if name == b.o.Name {
		return true, nil
	}
	members, err := b.o.Store.Trackers(ctx)
	if err != nil {
		return false, fmt.Errorf("read who the trackers are: %w", err)
	}
	return slices.ContainsFunc(members, func(t schema.Tracker) bool { return t.Name == name }), nil
}

// say logs why nothing moves, once.
func (b *Balancer) say(why string) {
	if why != b.told && why != "" {
		b.o.Log.Warn().Str("reason", why).Msg("rebalance waits")
	}
	b.told = why
}

// run is one pass of a run.
type run struct {
	b     *Balancer
	snap  *cluster.Snapshot // what is observed
	rows  schema.TopologyRows
	facts Facts
	p     Policy
	s     State
}

func (r *run) step(ctx context.Context) error {
	b := r.b
	var err error
	stopped := r.facts.Settings[SettingSignal] == signalStop
	r.s, err = ParseState(r.facts.Settings[SettingState])
	switch {
	case err != nil && stopped:
		return r.abandon(ctx)
	case err != nil:
		b.say(err.Error())
		return nil
	case stopped:
		return r.stop(ctx)
	}
	if r.p, err = r.facts.Policy(); err != nil { // a tracker of another make set it
		b.say(err.Error())
		return nil
	}
	queued, err := b.o.Queues(ctx)
	if err != nil {
		return fmt.Errorf("count the moves that are queued: %w", err)
	}
	if queued[schema.QueueRebalance] >= positive(r.facts.Settings[SettingSize], defaultSize) {
		return nil
	}
	quotas := ParseQuotas(r.facts.Settings[SettingQuotas])
	if r.s.Current == 0 {
		if r.p.Level > 0 && len(r.s.Completed) > 0 && queued[schema.QueueRebalance] > 0 {
			return nil // where files are is known when they have been moved
		}
		if r.s.usedUp(r.p) || !r.s.begin(r.p, quotas) {
			return r.finish(ctx)
		}
		return r.begin(ctx)
	}
	if _, noted := r.facts.Settings[SettingSource]; !noted { // it was stopped amid this one
		return r.begin(ctx)
	}
	from := r.snap.Device(r.s.Current)
	status := r.status(r.s.Current)
	if from == nil || status != schema.DeviceAlive && status != schema.DeviceDrain {
		b.o.Log.Warn().Uint32("devid", uint32(r.s.Current)).Str("status", status).Msg("rebalance leaves a device alone: nothing can be moved off it")
		return r.end(ctx)
	}
	if from.Host == nil || from.Host.Status != schema.HostAlive {
		b.say(fmt.Sprintf("nothing can be moved off dev%d while its host is not alive", r.s.Current))
		return nil
	}
	if status == schema.DeviceAlive {
		if err := r.mark(ctx, schema.DeviceDrain); err != nil {
			return err
		}
	}
	if r.s.usedUp(r.p) {
		return r.end(ctx)
	}
	room, to := maps.Clone(quotas), []protocol.DevID(nil)
	if r.p.Level > 0 {
		maps.DeleteFunc(room, func(dev protocol.DevID, n int64) bool {
			d := r.snap.Device(dev)
			return n <= 0 || d == nil || !d.TakesFiles(b.o.MinFreeMB)
		})
	} else if to = r.p.Destinations(r.snap.DeviceList, r.s.devices(), b.o.MinFreeMB); len(to) == 0 {
		b.say("no device can take the files that its policy moves")
		return nil
	}
	b.say("")
	rate := int(min(positive(r.facts.Settings[SettingRate], defaultRate), maxRate))
	files, err := b.o.Store.FilesOn(ctx, r.s.Current, r.s.LastFID, r.p.Newest, rate)
	if err != nil {
		return fmt.Errorf("read the files on dev%d: %w", r.s.Current, err)
	}
	if len(files) == 0 || r.p.Level > 0 && len(room) == 0 {
		return r.end(ctx)
	}
	fids := make([]protocol.FID, len(files))
	for i, f := range files {
		fids[i] = f.FID
	}
	encodings, err := b.o.Store.EncodingsOf(ctx, fids)
	if err != nil {
		return fmt.Errorf("read the encodings of %d files: %w", len(files), err)
	}
	before := r.s
	moves := r.choose(files, encodings, to, room, quotas)
	r.s.LatestRun = r.facts.Now.Unix()
	if len(moves) == 0 {
		r.s.LatestEmptyRun = r.s.LatestRun
		r.s.EmptyRuns++
	}
	c := r.change()
	if r.p.Level > 0 {
		text := quotas.String()
		c.Set[SettingQuotas] = &text
	}
	if err := b.o.Store.QueueMoves(ctx, moves, c); err != nil {
		return fmt.Errorf("queue moves off dev%d: %w", r.s.Current, err)
	}
	b.moves.Add(float64(len(moves)))
	b.bytes.Add(float64(r.s.Bytes - before.Bytes))
	return nil
}

// choose decides which of a source's files are moved, and where. It counts them
// in the state, in room and in quotas.
func (r *run) choose(files []schema.LocatedFile, encodings map[protocol.FID]schema.Encoding, to []protocol.DevID, room, quotas Quotas) []schema.Move {
	m := newMover(r.snap, r.b.o.MinFreeMB, r.b.rng, encodings)
	var moves []schema.Move
	for _, f := range files {
		if r.s.usedUp(r.p) {
			break
		}
		r.s.LastFID = f.FID
		if !r.s.allows(r.p, m.bytes(f)) {
			continue
		}
		move := schema.Move{FID: f.FID, From: r.s.Current}
		if r.p.Level > 0 {
			dst, ok := m.target(f, r.s.Current, room)
			if !ok {
				continue
			}
			move.To = []protocol.DevID{dst}
			room[dst] -= m.bytes(f)
			quotas[dst] = room[dst]
			quotas[r.s.Current] += m.bytes(f)
		} else {
			// A device that has the file cannot take it.
			move.To = slices.DeleteFunc(slices.Clone(to), func(dev protocol.DevID) bool { return slices.Contains(f.Devices, dev) })
			if len(move.To) == 0 {
				continue
			}
			r.b.rng.Shuffle(len(move.To), func(i, j int) { move.To[i], move.To[j] = move.To[j], move.To[i] })
			if n := r.p.UseDestDevs; n > 0 && n < len(move.To) {
				move.To = move.To[:n]
			}
		}
		r.s.count(r.p, m.bytes(f))
		moves = append(moves, move)
	}
	return moves
}

// status is what the database has for a device; empty where there is none.
func (r *run) status(dev protocol.DevID) string {
	for _, d := range r.rows.Devices {
		if d.ID == dev {
			return d.Status
		}
	}
	return ""
}

// change is one that writes the state, if nobody else has changed the run.
func (r *run) change() schema.SettingsChange {
	c := r.facts.change(SettingHost, SettingState, SettingSignal)
	text := r.s.String()
	c.Set[SettingState] = &text
	return c
}

// begin records the source that begins, with the status that it has, before it
// is put in drain.
func (r *run) begin(ctx context.Context) error {
	c, status := r.change(), r.status(r.s.Current)
	c.Set[SettingSource] = &status
	if err := r.b.o.Store.ChangeSettings(ctx, c); err != nil {
		return fmt.Errorf("begin with dev%d: %w", r.s.Current, err)
	}
	if status == schema.DeviceAlive {
		if err := r.mark(ctx, schema.DeviceDrain); err != nil {
			return err
		}
	}
	r.b.o.Log.Info().Uint32("devid", uint32(r.s.Current)).Msg("rebalance begins with a device")
	return nil
}

func (r *run) mark(ctx context.Context, status string) error {
	if err := r.b.o.Store.SetDeviceState(ctx, r.s.Current, status); err != nil {
		return fmt.Errorf("mark dev%d %s: %w", r.s.Current, status, err)
	}
	r.b.o.Changed(ctx)
	return nil
}

// restore gives the current source the status that it had, if it is still in
// drain and nobody has wanted it to be since.
func (r *run) restore(ctx context.Context) error {
	if r.s.Current == 0 || r.p.LeaveInDrain || r.status(r.s.Current) != schema.DeviceDrain ||
		r.facts.Settings[SettingSource] == schema.DeviceDrain || slices.Contains(drain.Listed(r.facts.Settings), r.s.Current) {
		return nil
	}
	return r.mark(ctx, schema.DeviceAlive)
}

// end is done with the current source.
func (r *run) end(ctx context.Context) error {
	dev := r.s.Current
	if err := r.restore(ctx); err != nil {
		return err
	}
	r.s.end()
	c := r.change()
	unset(c, SettingSource)
	if err := r.b.o.Store.ChangeSettings(ctx, c); err != nil {
		return fmt.Errorf("end with dev%d: %w", dev, err)
	}
	r.b.o.Log.Info().Uint32("devid", uint32(dev)).Msg("rebalance is done with a device")
	return nil
}

// finish ends the run.
func (r *run) finish(ctx context.Context) error {
	r.s.Finished = r.facts.Now.Unix()
	c := r.change()
	unset(c, SettingHost, SettingSignal)
	if err := r.b.o.Store.ChangeSettings(ctx, c); err != nil {
		return fmt.Errorf("finish rebalance: %w", err)
	}
	r.b.o.Changed(ctx)
	r.b.o.Log.Info().Int64("files", r.s.Queued).Int64("bytes", r.s.Bytes).Msg("rebalance has queued all moves")
	return nil
}

// stop ends the run for now. Its source is as it was before; it is taken again
// when the run goes on.
func (r *run) stop(ctx context.Context) error {
	if p, err := r.facts.Policy(); err == nil {
		r.p = p
	}
	if err := r.restore(ctx); err != nil {
		return err
	}
	r.s.Stopped = r.facts.Now.Unix()
	c := r.change()
	unset(c, SettingHost, SettingSignal, SettingSource)
	if err := r.b.o.Store.ChangeSettings(ctx, c); err != nil {
		return fmt.Errorf("stop rebalance: %w", err)
	}
	r.b.o.Changed(ctx)
	r.b.o.Log.Info().Int64("files", r.s.Queued).Int64("bytes", r.s.Bytes).Msg("rebalance was stopped")
	return nil
}

// abandon ends a run whose state cannot be read. The state stays for whoever
// can read it.
func (r *run) abandon(ctx context.Context) error {
	c := r.facts.change(SettingHost, SettingState, SettingSignal)
	unset(c, SettingHost, SettingSignal, SettingSource)
	if err := r.b.o.Store.ChangeSettings(ctx, c); err != nil {
		return fmt.Errorf("stop rebalance: %w", err)
	}
	r.b.o.Changed(ctx)
	r.b.o.Log.Warn().Msg("rebalance was stopped; its state cannot be read, its source may still be in drain")
	return nil
}

// positive reads a number above 0; anything else is no setting.
func positive(text string, otherwise int64) int64 {
	if n, err := strconv.ParseInt(text, 10, 32); err == nil && n > 0 {
		return n
	}
	return otherwise
}
