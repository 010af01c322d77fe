package fsck

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
	"golang.org/x/sync/errgroup"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/schema"
	"github.com/mogile/mogile/tracker/cluster"
	"github.com/mogile/mogile/tracker/storage"
	"github.com/mogile/mogile/tracker/work"
)

// StrayStore is what the reverse walk asks of a store.
type StrayStore interface {
	FilesByFID(ctx context.Context, fids []protocol.FID) ([]schema.LocatedFile, error)
	DebugFile(ctx context.Context, fid protocol.FID) (schema.FileDebug, error)
	HighestFID(ctx context.Context) (inFile, issued protocol.FID, err error)
	EncodingsOf(ctx context.Context, fids []protocol.FID) (map[protocol.FID]schema.Encoding, error)
}

// StrayStorage is what it asks of storage daemons. [storage.Client] does it.
type StrayStorage interface {
	List(ctx context.Context, hostport string, o protocol.ListOrder) (protocol.Listing, error)
	Trash(ctx context.Context, hostport string, o protocol.TrashOrder) (map[protocol.FID]protocol.TrashResult, error)
	Sizes(ctx context.Context, urls []string) []storage.SizeAnswer
	ShardStorage
}

// StrayOptions configure [Strays].
type StrayOptions struct {
	Store     StrayStore
	Storage   StrayStorage
	Cluster   interface{ Snapshot() *cluster.Snapshot }
	Fids      *work.FIDLocks        // shared by all workers of the tracker
	ClusterID string                // that devices bear; empty: not known
	Metrics   prometheus.Registerer // where the counters are registered; may be nil
	Log       zerolog.Logger
}

// Strays compares what lies on devices with the database: the walk that fsck
// does not do. It keeps nothing from one page to the next.
type Strays struct {
	o       StrayOptions
	trashed *prometheus.CounterVec
}

// NewStrays makes one.
func NewStrays(o StrayOptions) *Strays {
	s := &Strays{o: o, trashed: prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "mogile_strays_deleted_total",
		Help: "Strays that were to be deleted, by what became of them: trashed, missing, changed (rewritten meanwhile), failed, kept (something may need or works on them).",
	}, []string{"result"})}
	if o.Metrics != nil {
		o.Metrics.MustRegister(s.trashed)
	}
	return s
}

const (
	// MaxStrayPage bounds the files that one page looks at, and DefaultStrayPage
	// is how many it looks at where nobody says.
	MaxStrayPage     = 1000
	DefaultStrayPage = 500
	// strayReaders is how many fids of a page are looked up at a time.
	strayReaders = 8
)

// StrayQuery asks for a page.
type StrayQuery struct {
	Dev    protocol.DevID
	After  string        // [StrayPage].Next of the page before; empty at the beginning
	Limit  int           // files on the device to look at, 1 to MaxStrayPage
	Age    time.Duration // younger files are left alone
	Delete bool          // strays go to the device's trash
}

// StrayPage is what was found.
type StrayPage struct {
	Next       string // where to go on; empty where that was all
	Files      int64  // looked at
	Bytes      int64  // that they have
	Young      int64  // of them unknown to the database, and too young to tell
	Pending    int64  // of them unknown, but being uploaded, copied or deleted
	Foreign    int64  // names on the device that are no file's
	Unreadable int64  // files and folders that the disk cannot give
	Strays     []Stray
}

// StrayKind says why a file is one.
type StrayKind string

// The kinds of strays.
const (
	// StrayGone: no file has this fid (any more).
	StrayGone StrayKind = "gone"
	// StrayCopy: the file is there, and is known to have good copies, or shards
	// enough; that this is one is not known.
	StrayCopy StrayKind = "copy"
	// StrayRescue: the file is there, and no recorded copy of it is known to be
	// good, or too few shards, while this has the right length, or is one of these
	// shards: it is never deleted, and fsck adopts it.
	StrayRescue StrayKind = "rescue"
	// StrayDoubtful: as StrayRescue, but of another length, or a shard of another
	// encoding. It is never deleted, either.
	StrayDoubtful StrayKind = "doubtful"
	// StrayAbove: the fid is higher than any that was issued, so that the database
	// may be older than the device, or the device another cluster's. It is never
	// deleted.
	StrayAbove StrayKind = "above"
)

// deletable reports whether strays of the kind may go.
func (k StrayKind) deletable() bool { return k == StrayGone || k == StrayCopy }

// Stray is a file on a device that the database does not know there.
type Stray struct {
	protocol.StoredFile
	Kind StrayKind
	// Result is what became of it where it was to be deleted: one of
	// [protocol.Trashed] and so on, or StrayKept.
	Result string
	Note   string // where it is now, or why it is still here
}

// StrayKept is the result of a stray that may not be deleted, or not now.
const StrayKept = "kept"

// known is what the database says of a fid, and what its copies say of
// themselves.
type known struct {
	highest protocol.FID // that was ever issued
	debug   schema.FileDebug
	// lengths are those of the recorded copies that could be asked.
	lengths  map[protocol.DevID]int64
	encoding *schema.Encoding // nil where the file is kept in copies
	shards   int              // of the encoding: how many are where they are recorded, as far as that could be asked
	ours     bool             // the stray is one of these shards
}

// good reports whether the file can be read from what is recorded.
func (k known) good() bool {
	if k.encoding != nil && k.shards >= k.encoding.K {
		return true
	}
	for _, length := range k.lengths {
		if length == k.debug.File.Length {
			return true
		}
	}
	return false
}

// recordedAs reports whether a file found on dev is what is recorded there: a
// shard, or a copy.
func recordedAs(f protocol.StoredFile, dev protocol.DevID, recorded []protocol.DevID, e *schema.Encoding) bool {
	return slices.Contains(recorded, dev) && f.Shard == (shardOn(e, dev) >= 0)
}

// judgeStray decides what a file found on dev is; pending says that something is
// being done about it, and an empty kind that the database knows it.
func judgeStray(dev protocol.DevID, f protocol.StoredFile, k known) (kind StrayKind, pending bool) {
	for _, q := range k.debug.Queues {
		switch q.Queue {
		case schema.QueueDelete:
			pending = true
		case schema.QueueCopyDelete: // or a copy that is announced
			pending = pending || q.DevID != nil && *q.DevID == dev
		}
	}
	switch {
	case pending, k.debug.Tempfile != nil:
		return "", true
	case k.debug.File == nil && f.FID > k.highest:
		return StrayAbove, false
	case k.debug.File == nil:
		return StrayGone, false
	case recordedAs(f, dev, k.debug.Devices, k.encoding):
		return "", false
	case k.good():
		return StrayCopy, false
	case k.ours, !f.Shard && f.Size == k.debug.File.Length:
		return StrayRescue, false
	}
	return StrayDoubtful, false
}

// Page looks at some of the files on a device. Its errors match
// protocol.ErrNoDevice; storage.ErrNoOrders where the storage daemon does not
// list its files to this tracker; storage.ErrUnreachable; or are the
// *protocol.Error of a device that cannot be listed, or must not be.
func (s *Strays) Page(ctx context.Context, q StrayQuery) (StrayPage, error) {
	d, err := s.device(q.Dev, q.Delete)
	if err != nil {
		return StrayPage{}, err
	}
	hostport := orders(d)
	list, err := s.o.Storage.List(ctx, hostport, protocol.ListOrder{Dev: q.Dev, After: q.After, Limit: q.Limit, Shards: true})
	if err != nil {
		return StrayPage{}, err
	}
	if s.o.ClusterID != "" && list.Cluster != "" && list.Cluster != s.o.ClusterID {
		return StrayPage{}, &protocol.Error{Code: "device_refused", Text: fmt.Sprintf(
			"dev%d belongs to cluster %s, not %s (uuid %s)", q.Dev, list.Cluster, s.o.ClusterID, list.UUID)}
	}
	page := StrayPage{Next: list.Next, Files: int64(len(list.Files)), Foreign: list.Foreign, Unreadable: list.Unreadable}
	unknown, err := s.unknown(ctx, q.Dev, list.Files, &page)
	if err != nil {
		return StrayPage{}, err
	}
	unknown = slices.DeleteFunc(unknown, func(f protocol.StoredFile) bool {
		young := list.Now.Sub(f.ModTime) < q.Age
		if young {
			page.Young++
		}
		return young
	})
	if len(unknown) == 0 {
		return page, nil
	}
	if q.Delete {
		err = s.deletePage(ctx, d, hostport, unknown, &page)
	} else {
		page.Strays, err = s.judge(ctx, d, unknown, &page)
	}
	return page, err
}

// device is the device, if its files can be listed now.
func (s *Strays) device(dev protocol.DevID, toDelete bool) (*cluster.Device, error) {
	snap := s.o.Cluster.Snapshot()
	if snap == nil || snap.Device(dev) == nil {
		return nil, protocol.ErrNoDevice
	}
	d := snap.Device(dev)
	switch {
	case !d.Readable():
		return nil, &protocol.Error{Code: "device_unreachable", Text: fmt.Sprintf("dev%d is not readable now, or its status or that of its host forbids it", dev)}
	case toDelete && !d.LetsDelete():
		return nil, &protocol.Error{Code: "device_readonly", Text: fmt.Sprintf("the status of dev%d, or that of its host, does not permit to delete", dev)}
	}
	return d, nil
}

// unknown are those files of which the database has no location on dev, or one
// of another kind.
func (s *Strays) unknown(ctx context.Context, dev protocol.DevID, files []protocol.StoredFile, page *StrayPage) ([]protocol.StoredFile, error) {
	fids := make([]protocol.FID, len(files))
	for i, f := range files {
		fids[i] = f.FID
		page.Bytes += f.Size
	}
	if len(fids) == 0 {
		return nil, nil
	}
	rows, err := s.o.Store.FilesByFID(ctx, fids)
	if err != nil {
		return nil, fmt.Errorf("strays: read %d fids: %w", len(fids), err)
	}
	encodings, err := s.encodings(ctx, fids...)
	if err != nil {
		return nil, err
	}
	recorded := make(map[protocol.FID][]protocol.DevID, len(rows))
	for _, r := range rows {
		recorded[r.FID] = r.Devices
	}
	return slices.DeleteFunc(slices.Clone(files), func(f protocol.StoredFile) bool {
		return recordedAs(f, dev, recorded[f.FID], encodingIn(encodings, f.FID))
	}), nil
}

// encodings reads how fids are encoded.
func (s *Strays) encodings(ctx context.Context, fids ...protocol.FID) (map[protocol.FID]schema.Encoding, error) {
	rows, err := s.o.Store.EncodingsOf(ctx, fids)
	if err != nil {
		return nil, fmt.Errorf("strays: read the encodings of %d fids: %w", len(fids), err)
	}
	return rows, nil
}

// encodingIn is a file's encoding, nil where it is kept in copies.
func encodingIn(encodings map[protocol.FID]schema.Encoding, fid protocol.FID) *schema.Encoding {
	if e, ok := encodings[fid]; ok {
		return &e
	}
	return nil
}

// judge looks closer at files that the database does not know on d, and returns
// the strays among them, if they are still there and as they were.
func (s *Strays) judge(ctx context.Context, d *cluster.Device, files []protocol.StoredFile, page *StrayPage) (strays []Stray, err error) {
	kinds := make([]StrayKind, len(files))
	waits := make([]bool, len(files))
	_, highest, err := s.o.Store.HighestFID(ctx) // after the list: what is above is no new upload
	if err != nil {
		return nil, fmt.Errorf("strays: %w", err)
	}
	g, under := errgroup.WithContext(ctx)
	g.SetLimit(strayReaders)
	for i, f := range files {
		g.Go(func() error {
			debug, err := s.o.Store.DebugFile(under, f.FID)
			if err != nil {
				return fmt.Errorf("strays: fid %d: %w", f.FID, err)
			}
			encodings, err := s.encodings(under, f.FID)
			if err != nil {
				return err
			}
			k := known{highest: highest, debug: debug, encoding: encodingIn(encodings, f.FID)}
			s.look(under, d.ID, f, &k)
			kinds[i], waits[i] = judgeStray(d.ID, f, k)
			return under.Err()
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	var urls []string
	for i, f := range files {
		switch {
		case waits[i]:
			page.Pending++
		case kinds[i] != "":
			strays = append(strays, Stray{StoredFile: f, Kind: kinds[i]})
			url := d.ReadURL(f.FID, cluster.Viewer{})
			if f.Shard {
				url = d.ShardURL(f.FID, cluster.Viewer{})
			}
			urls = append(urls, url)
		}
	}
	if len(strays) == 0 {
		return nil, nil
	}
	// What was deleted since it was listed is no stray. An answer that does not
	// come says nothing.
	kept := strays[:0]
	for i, a := range s.o.Storage.Sizes(ctx, urls) {
		if a.Err == nil && a.Bytes == strays[i].Size || a.Err != nil && !errors.Is(a.Err, storage.ErrMissing) {
			kept = append(kept, strays[i])
		}
	}
	return kept, ctx.Err()
}

// look finds out what there is of a file beside what was found on a device, as
// far as it can be read.
func (s *Strays) look(ctx context.Context, but protocol.DevID, f protocol.StoredFile, k *known) {
	k.lengths = make(map[protocol.DevID]int64)
	if k.debug.File == nil {
		return
	}
	snap := s.o.Cluster.Snapshot()
	has := s.shardsOf(ctx, snap, but, f, k)
	for _, dev := range k.debug.Devices {
		other := snap.Device(dev)
		// A device with a shard answers for the whole file, from wherever it is.
		if dev == but || other == nil || !other.Readable() || shardOn(k.encoding, dev) >= 0 || has[dev] {
			continue
		}
		a := s.o.Storage.Sizes(ctx, []string{other.ReadURL(f.FID, cluster.Viewer{})})[0]
		if a.Err == nil {
			k.lengths[dev] = a.Bytes
			if a.Bytes == k.debug.File.Length {
				break // one is enough
			}
		}
	}
}

// shardsOf asks for a file's shards where there should be some, and says which
// devices have one, of whatever encoding. Where nobody can have any, nobody is
// asked.
func (s *Strays) shardsOf(ctx context.Context, snap *cluster.Snapshot, dev protocol.DevID, f protocol.StoredFile, k *known) map[protocol.DevID]bool {
	if k.encoding == nil && !f.Shard {
		return nil
	}
	ask := make(map[string][]protocol.FIDOn)
	for _, at := range append(slices.Clone(k.debug.Devices), dev) {
		d := snap.Device(at)
		if d == nil || !d.Readable() || !d.Host.Capabilities.Has(protocol.WordEC) {
			continue
		}
		if one := (protocol.FIDOn{FID: f.FID, Dev: at}); !slices.Contains(ask[orders(d)], one) {
			ask[orders(d)] = append(ask[orders(d)], one)
		}
	}
	has := make(map[protocol.DevID]bool)
	for hostport, shards := range ask {
		states, err := s.o.Storage.ShardStates(ctx, hostport, protocol.ShardStateOrder{Shards: shards}, 0)
		if err != nil {
			s.o.Log.Debug().Err(err).Str("host", hostport).Uint64("fid", uint64(f.FID)).Msg("shards not asked for")
			continue
		}
		for _, state := range states {
			has[state.Dev] = state.What != protocol.ShardMissing
			if k.encoding == nil {
				continue
			}
			o := observedShard(*k.encoding, k.debug.File.Length, state, false)
			switch {
			case o.state != intact:
			case state.Dev == dev && !slices.Contains(k.debug.Devices, dev):
				k.ours = true
			case k.encoding.Devices[o.index] == state.Dev:
				k.shards++
			}
		}
	}
	return has
}

// deletePage judges files under their locks, and has those trashed that may go.
func (s *Strays) deletePage(ctx context.Context, d *cluster.Device, hostport string, files []protocol.StoredFile, page *StrayPage) error {
	fids := make([]protocol.FID, len(files))
	for i, f := range files {
		fids[i] = f.FID
	}
	held, err := s.o.Fids.TryLock(ctx, fids...)
	if err != nil {
		return fmt.Errorf("strays: lock %d fids: %w", len(fids), err)
	}
	defer func() {
		if err := held.Release(ctx); err != nil {
			s.o.Log.Warn().Err(err).Int("fids", len(fids)).Msg("fid locks not given back")
		}
	}()
	locked, cancel := held.Context(ctx)
	defer cancel()
	strays, err := s.judge(locked, d, files, page)
	if err != nil {
		return err
	}
	page.Strays = strays
	var to []*Stray
	for i := range strays {
		stray := &strays[i]
		switch {
		case !stray.Kind.deletable():
			stray.Result = StrayKept
		case !held.Has(stray.FID):
			stray.Result, stray.Note = StrayKept, "something works on it"
		default:
			to = append(to, stray)
		}
	}
	// A device may have both a copy and a shard of a file: they are told apart by
	// the order that they are in.
	for _, shard := range []bool{false, true} {
		some := slices.DeleteFunc(slices.Clone(to), func(stray *Stray) bool { return stray.Shard != shard })
		for chunk := range slices.Chunk(some, protocol.MaxTrashed) {
			s.trash(locked, hostport, d.ID, chunk)
		}
	}
	for _, stray := range strays {
		s.trashed.WithLabelValues(stray.Result).Inc()
		if stray.Result == protocol.Trashed {
			s.o.Log.Info().Uint64("fid", uint64(stray.FID)).Uint32("devid", uint32(d.ID)).Bool("shard", stray.Shard).Str("kind", string(stray.Kind)).Msg("stray moved to the trash")
		}
	}
	return nil
}

// trash has strays moved to the trash of the device that they are on, and notes
// what became of each. They are either all copies or all shards.
func (s *Strays) trash(ctx context.Context, hostport string, dev protocol.DevID, strays []*Stray) {
	order := protocol.TrashOrder{Dev: dev}
	for _, stray := range strays {
		order.Files = append(order.Files, stray.StoredFile)
	}
	results, failure := s.o.Storage.Trash(ctx, hostport, order)
	for _, stray := range strays {
		r := results[stray.FID]
		switch r.What {
		case protocol.Trashed, protocol.TrashMissing, protocol.TrashChanged, protocol.TrashFailed:
			stray.Result, stray.Note = r.What, r.To
			continue
		}
		switch {
		case failure != nil:
			stray.Result, stray.Note = protocol.TrashFailed, failure.Error()
		default:
			stray.Result, stray.Note = protocol.TrashFailed, "the storage daemon does not say"
		}
	}
}
