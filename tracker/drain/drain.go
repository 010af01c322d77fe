// Package drain empties devices that are to be pulled: it queues a move of each
// file on them, which the replicate workers carry out, and finds out which files
// cannot be moved, and why.
//
// The list of devices is a setting of the cluster. A lease lets one tracker at a
// time walk over their files; when it is gone another begins anew. A device stays
// in the list when it is empty, so that what uploads and copies that were under
// way still bring is moved as well.
package drain

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/schema"
	"github.com/mogile/mogile/tracker/cluster"
	"github.com/mogile/mogile/tracker/work"
)

// Store is all that a drainer asks of a [schema.Store].
type Store interface {
	ListStore
	FilesOn(ctx context.Context, dev protocol.DevID, after protocol.FID, newest bool, limit int) ([]schema.LocatedFile, error)
	QueueMoves(ctx context.Context, moves []schema.Move, change schema.SettingsChange) error
	PendingDeletions(ctx context.Context, fids []protocol.FID) (map[protocol.FID][]protocol.DevID, error)
	EncodingsOf(ctx context.Context, fids []protocol.FID) (map[protocol.FID]schema.Encoding, error)
	Topology(ctx context.Context) (schema.TopologyRows, error)
	HoldLease(ctx context.Context, name, owner string, ttl time.Duration) (bool, error)
	ReleaseLease(ctx context.Context, name, owner string) error
}

// Options are a drainer's settings. Store, Cluster, Storage, Queues and Name must
// be set.
type Options struct {
	Store   Store
	Cluster interface{ Snapshot() *cluster.Snapshot }
	Storage interface {
		Size(ctx context.Context, url string) (int64, error)
	}
	// Queues counts the rows of the queues, not more often than is good for the
	// database.
	Queues    func(ctx context.Context) (map[schema.Queue]int64, error)
	Name      string // of this tracker
	MinFreeMB int64  // space that a device must have to take a copy, in MiB

	Outage  *work.Outage          // shared by the tracker's workers; default its own, on Log
	Numbers *work.Numbers         // shared by the tracker's pools; default its own
	Notify  func(msg string)      // gets MogileFS's messages, for !watch; may be nil; must not block
	Metrics prometheus.Registerer // where the metrics are registered; may be nil
	Log     zerolog.Logger
}

// SettingSize is how many moves may be queued before no more are added, of
// MogileFS 2.73.
const SettingSize = "queue_size_for_rebal"

const (
	defaultSize = 10_000 // moves (MogileFS 2.73)
	page        = 500    // files that are read at once

	pause     = time.Second     // between looks at the list and the queue
	idlePause = 5 * time.Second // while another tracker does it

	// firstRest is how long a device whose every file was looked at is left
	// alone. It doubles up to longestRest while the same files are left.
	firstRest   = 10 * time.Second
	longestRest = 10 * time.Minute

	lease        = "drain"
	leaseTime    = 30 * time.Second
	renewEvery   = 10 * time.Second
	watchdog     = 240 * time.Second
	storeTimeout = 60 * time.Second
)

// Drainer is the tracker's part of all emptying.
type Drainer struct {
	o       Options
	pool    *work.Pool
	moves   prometheus.Counter
	blocked prometheus.Gauge
	working chan struct{} // of capacity 1: held by the worker that works; guards what follows

	known   map[protocol.DevID]*device
	world   string    // what moves depend on, as of the last pass
	renewed time.Time // when the lease was last taken or renewed
}

// device is how far a device's files are walked over.
type device struct {
	cursor      protocol.FID // the last that was looked at in this round
	round, last tally        // of this round so far, and of the one before
	rounds      int          // that are over
	rest        time.Duration
	next        time.Time // when the next round begins
}

// tally tells rounds apart.
type tally struct {
	files, blocked int64
	sum            uint64 // of their fids
}

// New makes a drainer. It does nothing before [Drainer.Run].
func New(o Options) *Drainer {
	if o.Outage == nil {
		o.Outage = work.NewOutage(o.Log)
	}
	d := &Drainer{
		o:       o,
		working: make(chan struct{}, 1),
		known:   make(map[protocol.DevID]*device),
		moves: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "mogile_drain_moves_total",
			Help: "Moves off devices that are being emptied that were queued, or were queued already.",
		}),
		blocked: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "mogile_drain_blocked_files",
			Help: "Files on devices that are being emptied that could not be moved when they were last looked at; 0 on trackers that do not look.",
		}),
	}
	if o.Metrics != nil {
		o.Metrics.MustRegister(d.moves, d.blocked)
	}
	d.pool = work.NewPool("drain", 1, d.work, o.Log)
	d.pool.Notify, d.pool.Watchdog = o.Notify, watchdog
	if o.Numbers != nil {
		d.pool.Numbers = o.Numbers
	}
	return d
}

// Run works until ctx is cancelled, and gives the lease up then.
func (d *Drainer) Run(ctx context.Context) error {
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		if err := d.o.Store.ReleaseLease(ctx, lease, d.o.Name); err != nil {
			d.o.Log.Debug().Err(err).Msg("the lease of drains is not given up, it ends by itself")
		}
	}()
	return d.pool.Run(ctx)
}

func (d *Drainer) work(ctx context.Context, id int) error {
	for ctx.Err() == nil {
		work.Alive(ctx)
		wait := idlePause
		select {
		case d.working <- struct{}{}:
			var err error
			wait, err = d.pass(ctx)
			<-d.working
			switch {
			case err == nil, ctx.Err() != nil:
			case errors.Is(err, schema.ErrUnavailable):
				d.o.Outage.Failed(err)
			default:
				log := d.pool.Log(id)
				log.Error().Err(err).Msg("devices are not emptied, it is tried again")
			}
		default: // one that was given up still works
		}
		work.Pause(ctx, wait)
	}
	return nil
}

// pass queues moves of what is due, as many as the queue has room for. It returns
// how long to pause.
func (d *Drainer) pass(ctx context.Context) (time.Duration, error) {
	snap := d.o.Cluster.Snapshot()
	if snap == nil {
		return pause, nil
	}
	listed := Listed(snap.Settings)
	if len(listed) == 0 {
		d.forget()
		return pause, nil
	}
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	now := time.Now()
	if now.Sub(d.renewed) >= renewEvery {
		ours, err := d.o.Store.HoldLease(ctx, lease, d.o.Name, leaseTime)
		if err != nil {
			return idlePause, fmt.Errorf("hold the lease of drains: %w", err)
		}
		if !ours {
			d.forget()
			return idlePause, nil
		}
		d.renewed = now
	}
	if err := d.strike(ctx, snap, listed); err != nil {
		return idlePause, err
	}
	due := d.due(snap, listed, now)
	if len(due) > 0 {
		rows, err := d.o.Queues(ctx)
		if err != nil {
			return idlePause, fmt.Errorf("count the moves that are queued: %w", err)
		}
		if err := d.walk(ctx, snap, due, sizeOf(snap.Settings)-rows[schema.QueueRebalance]); err != nil {
			return idlePause, err
		}
	}
	var blocked int64
	for _, k := range d.known {
		blocked += k.last.blocked
	}
	d.blocked.Set(float64(blocked))
	return pause, nil
}

// forget is for a tracker that has nothing to do with it now.
func (d *Drainer) forget() {
	clear(d.known)
	d.blocked.Set(0)
	d.renewed = time.Time{}
}

// sizeOf is how many moves may be queued.
func sizeOf(settings map[string]string) int64 {
	if n, err := strconv.ParseInt(settings[SettingSize], 10, 32); err == nil && n > 0 {
		return n
	}
	return defaultSize
}

// Emptied reports whether a device of that status is to be emptied, at least
// later: one that is down is kept in mind.
func Emptied(status string) bool { return status == schema.DeviceDrain || status == schema.DeviceDown }

// strike takes devices out of the list that somebody gave another status, or that
// are gone.
func (d *Drainer) strike(ctx context.Context, snap *cluster.Snapshot, listed []protocol.DevID) error {
	if !slices.ContainsFunc(listed, func(dev protocol.DevID) bool {
		k := snap.Device(dev)
		return k == nil || !Emptied(k.Status)
	}) {
		return nil
	}
	// What the snapshot says may be older than a command that began a drain.
	rows, err := d.o.Store.Topology(ctx)
	if err != nil {
		return fmt.Errorf("read the devices: %w", err)
	}
	var gone []protocol.DevID
	for _, dev := range Listed(rows.Settings) {
		i := slices.IndexFunc(rows.Devices, func(r schema.Device) bool { return r.ID == dev })
		if i < 0 || !Emptied(rows.Devices[i].Status) {
			gone = append(gone, dev)
		}
	}
	if len(gone) == 0 {
		return nil
	}
	if err := Remove(ctx, d.o.Store, gone...); err != nil {
		return err
	}
	for _, dev := range gone {
		d.o.Log.Info().Uint32("devid", uint32(dev)).Msg("a device is not emptied any more: its status says otherwise")
	}
	return nil
}

// due are the devices to look at now. Those that are not listed any more are
// forgotten.
func (d *Drainer) due(snap *cluster.Snapshot, listed []protocol.DevID, now time.Time) []*cluster.Device {
	for dev := range d.known {
		if k := snap.Device(dev); k == nil || !k.Draining() || !slices.Contains(listed, dev) {
			delete(d.known, dev)
		}
	}
	world := worldOf(snap, d.o.MinFreeMB)
	changed := world != d.world
	d.world = world
	var due []*cluster.Device
	for _, dev := range listed {
		on := snap.Device(dev)
		if on == nil || !on.Draining() {
			continue
		}
		k := d.known[dev]
		if k == nil {
			k = new(device)
			d.known[dev] = k
		}
		if changed {
			k.rest, k.next = 0, now
		}
		if on.LetsDelete() && !now.Before(k.next) { // else nothing could be moved off it
			due = append(due, on)
		}
	}
	return due
}

// worldOf is all of a cluster on which it depends whether files can be moved, and
// whether somebody asked for it: what changes it may let those go that could not
// before.
func worldOf(snap *cluster.Snapshot, minFreeMB int64) string {
	var b strings.Builder
	b.WriteString(snap.Settings[SettingRequests] + "\n")
	for _, d := range snap.DeviceList {
		fmt.Fprintf(&b, "%d %d %s %t %t %t\n", d.ID, d.HostID, d.Status, d.Readable(), d.TakesFiles(minFreeMB), d.LetsDelete())
	}
	for _, dmid := range slices.Sorted(maps.Keys(snap.ByDMID)) {
		for _, c := range snap.ByDMID[dmid].Classes {
			fmt.Fprintf(&b, "%d %d %d %s\n", dmid, c.ID, c.MinDevCount, c.ReplPolicy)
		}
	}
	return b.String()
}

// walk looks at files on devices, a page of each in turn, until room moves are
// queued or their rounds are over.
func (d *Drainer) walk(ctx context.Context, snap *cluster.Snapshot, due []*cluster.Device, room int64) error {
	j := newJudge(snap, d.o.MinFreeMB)
	for len(due) > 0 && room > 0 {
		work.Alive(ctx)
		on := due[0]
		queued, over, err := d.page(ctx, j, on)
		if err != nil {
			return fmt.Errorf("empty dev%d: %w", on.ID, err)
		}
		room -= int64(queued)
		if due = due[1:]; !over {
			due = append(due, on)
		}
	}
	return nil
}

// page looks at the next files on a device. It returns how many moves it queued,
// and whether that was the end of the round.
func (d *Drainer) page(ctx context.Context, j *judge, on *cluster.Device) (queued int, over bool, err error) {
	k := d.known[on.ID]
	files, err := d.o.Store.FilesOn(ctx, on.ID, k.cursor, false, page)
	if err != nil {
		return 0, false, err
	}
	if j.encodings, err = d.o.Store.EncodingsOf(ctx, fidsOf(files)); err != nil {
		return 0, false, fmt.Errorf("read the encodings of %d files: %w", len(files), err)
	}
	var moves []schema.Move
	var blocked int64
	for _, f := range files {
		if why, _ := j.why(f, on, nil, nil); why == Waiting {
			moves = append(moves, schema.Move{FID: f.FID, From: on.ID})
		} else {
			blocked++
		}
	}
	if len(moves) > 0 {
		if err := d.o.Store.QueueMoves(ctx, moves, schema.SettingsChange{}); err != nil {
			return 0, false, err
		}
		d.moves.Add(float64(len(moves)))
	}
	for _, f := range files {
		k.round.sum += uint64(f.FID)
	}
	k.round.files += int64(len(files))
	k.round.blocked += blocked
	if len(files) == page {
		k.cursor = files[page-1].FID
		return len(moves), false, nil
	}
	d.endRound(on.ID, k)
	return len(moves), true, nil
}

func fidsOf(files []schema.LocatedFile) []protocol.FID {
	fids := make([]protocol.FID, len(files))
	for i, f := range files {
		fids[i] = f.FID
	}
	return fids
}

// endRound decides when a device is looked at again.
func (d *Drainer) endRound(dev protocol.DevID, k *device) {
	log := d.o.Log.With().Uint32("devid", uint32(dev)).Logger()
	same := k.rounds > 0 && k.round == k.last
	switch {
	case k.round.files == 0:
		k.rest = firstRest // which costs nothing
		if !same {
			log.Info().Msg("no file is recorded on a device that is emptied")
		}
	case same:
		k.rest = min(max(2*k.rest, firstRest), longestRest)
	default:
		k.rest = firstRest
	}
	if !same && k.round.blocked > 0 {
		log.Warn().Int64("files", k.round.files).Int64("blocked", k.round.blocked).
			Msg("files cannot be moved off a device that is emptied: 'mogtool drain --status' tells why")
	}
	k.next = time.Now().Add(k.rest)
	k.last, k.round, k.cursor = k.round, tally{}, 0
	k.rounds++
}
