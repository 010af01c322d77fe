package fsck

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/schema"
	"github.com/mogile/mogile/tracker/cluster"
	"github.com/mogile/mogile/tracker/storage"
	"github.com/mogile/mogile/tracker/work"
	"github.com/mogile/mogile/tracker/work/worktest"
)

func TestJudgeStray(t *testing.T) {
	t.Parallel()
	file := &schema.File{FID: 42, Length: 10}
	on := func(dev protocol.DevID) *protocol.DevID { return &dev }
	queued := func(q schema.Queue, dev *protocol.DevID) []schema.QueueRow {
		return []schema.QueueRow{{Queue: q, FID: 42, DevID: dev}}
	}
	for _, tt := range []struct {
		name    string
		fid     protocol.FID // 0: 42
		size    int64        // 0: 10
		k       known
		kind    StrayKind
		pending bool
	}{
		{name: "nothing is known of it", kind: StrayGone},
		{name: "a location of a file that is gone", k: known{debug: schema.FileDebug{Devices: []protocol.DevID{1}}}, kind: StrayGone},
		{name: "recorded", k: known{debug: schema.FileDebug{File: file, Devices: []protocol.DevID{2, 1}}}},
		{name: "recorded elsewhere, well", k: known{debug: schema.FileDebug{File: file, Devices: []protocol.DevID{2}}, lengths: map[protocol.DevID]int64{2: 10}}, kind: StrayCopy},
		{name: "recorded elsewhere, well, this is another", size: 9, k: known{debug: schema.FileDebug{File: file, Devices: []protocol.DevID{2}}, lengths: map[protocol.DevID]int64{2: 10}}, kind: StrayCopy},
		{name: "recorded elsewhere, truncated", k: known{debug: schema.FileDebug{File: file, Devices: []protocol.DevID{2}}, lengths: map[protocol.DevID]int64{2: 9}}, kind: StrayRescue},
		{name: "recorded elsewhere, out of reach", k: known{debug: schema.FileDebug{File: file, Devices: []protocol.DevID{2}}}, kind: StrayRescue},
		{name: "recorded nowhere", k: known{debug: schema.FileDebug{File: file}}, kind: StrayRescue},
		{name: "recorded nowhere, this is another", size: 9, k: known{debug: schema.FileDebug{File: file}}, kind: StrayDoubtful},
		{name: "being uploaded", k: known{debug: schema.FileDebug{Tempfile: &schema.Tempfile{FID: 42}}}, pending: true},
		{name: "being deleted", k: known{debug: schema.FileDebug{Queues: queued(schema.QueueDelete, nil)}}, pending: true},
		{name: "its copy here is being deleted, or made", k: known{debug: schema.FileDebug{File: file, Queues: queued(schema.QueueCopyDelete, on(1))}}, pending: true},
		{name: "a copy elsewhere is being deleted", k: known{debug: schema.FileDebug{Queues: queued(schema.QueueCopyDelete, on(2))}}, kind: StrayGone},
		{name: "queued for replication", k: known{debug: schema.FileDebug{File: file, Queues: queued(schema.QueueReplicate, on(1))}}, kind: StrayRescue},
		{name: "never issued", fid: 43, kind: StrayAbove},
		{name: "never issued, being uploaded under a number of its own", fid: 43, k: known{debug: schema.FileDebug{Tempfile: &schema.Tempfile{}}}, pending: true},
	} {
		tt.k.highest = 42
		f := protocol.StoredFile{FID: cmp.Or(tt.fid, 42), Size: cmp.Or(tt.size, 10)}
		if kind, pending := judgeStray(1, f, tt.k); kind != tt.kind || pending != tt.pending {
			t.Errorf("%s: %q, pending %v, want %q, %v", tt.name, kind, pending, tt.kind, tt.pending)
		}
	}
}

// strayWorld is a database and devices for [Strays].
type strayWorld struct {
	*worktest.Store
	*disks
	cluster *worktest.Cluster
	strays  *Strays

	highest   protocol.FID
	tempfiles map[protocol.FID]bool
	queues    map[protocol.FID]schema.Queue
	now       time.Time
	age       map[protocol.FID]time.Duration
	identity  string
	refuse    error                             // of List
	trash     func(protocol.StoredFile) string  // what becomes of a file; nil: it goes
	trashed   []protocol.FID                    // in order
	listed    func(files []protocol.StoredFile) // called when a page is listed
}

func newStrayWorld(clusterID string) *strayWorld { return newStrayWorldOf(3, clusterID) }

// newStrayWorldOf has so many hosts of a device each.
func newStrayWorldOf(hosts int, clusterID string) *strayWorld {
	w := &strayWorld{
		Store: worktest.NewStore(), disks: newDisks(), cluster: worktest.NewCluster(hosts, 1), highest: 1000,
		tempfiles: map[protocol.FID]bool{}, queues: map[protocol.FID]schema.Queue{}, age: map[protocol.FID]time.Duration{},
		now: time.Unix(1_700_000_000, 0),
	}
	w.strays = NewStrays(StrayOptions{
		Store: w, Storage: w, Cluster: w.cluster, Fids: work.NewFIDLocks(w.Store), ClusterID: clusterID, Log: zerolog.Nop(),
	})
	return w
}

func (w *strayWorld) HighestFID(context.Context) (inFile, issued protocol.FID, err error) {
	return 0, w.highest, nil
}

func (w *strayWorld) DebugFile(ctx context.Context, fid protocol.FID) (d schema.FileDebug, err error) {
	files, err := w.FilesByFID(ctx, []protocol.FID{fid})
	for _, f := range files {
		d.File, d.Devices = &f.File, f.Devices
	}
	if w.tempfiles[fid] {
		d.Tempfile = &schema.Tempfile{FID: fid}
	}
	if q, ok := w.queues[fid]; ok {
		dev := protocol.DevID(1)
		d.Queues = append(d.Queues, schema.QueueRow{Queue: q, FID: fid, DevID: &dev})
	}
	return d, err
}

func (w *strayWorld) List(_ context.Context, hostport string, o protocol.ListOrder) (protocol.Listing, error) {
	if want := fmt.Sprintf("127.0.0.%d:7500", o.Dev); hostport != want {
		panic(hostport)
	}
	if w.refuse != nil {
		return protocol.Listing{}, w.refuse
	}
	l := protocol.Listing{Now: w.now, Cluster: w.identity, Foreign: 2, Unreadable: 1}
	w.mu.Lock()
	var all []protocol.StoredFile
	for fid := range w.files[o.Dev] {
		all = append(all, w.stored(o.Dev, fid))
	}
	for at, s := range w.shards {
		if at.Dev == o.Dev && o.Shards {
			all = append(all, protocol.StoredFile{FID: at.FID, Size: int64(s.Index + 1), ModTime: w.now.Add(-48 * time.Hour), Shard: true})
		}
	}
	slices.SortFunc(all, func(a, b protocol.StoredFile) int {
		return cmp.Or(cmp.Compare(a.FID, b.FID), compareShard(a, b))
	})
	for _, f := range all {
		fid := f.FID
		if fid.String() <= o.After && len(fid.String()) <= len(o.After) {
			continue
		}
		if len(l.Files) == o.Limit {
			l.Next = l.Files[len(l.Files)-1].FID.String()
			break
		}
		l.Files = append(l.Files, f)
	}
	w.mu.Unlock()
	if w.listed != nil {
		w.listed(l.Files)
	}
	return l, nil
}

// compareShard has copies before shards.
func compareShard(a, b protocol.StoredFile) int {
	switch {
	case a.Shard == b.Shard:
		return 0
	case b.Shard:
		return -1
	}
	return 1
}

func (w *strayWorld) stored(dev protocol.DevID, fid protocol.FID) protocol.StoredFile {
	age, ok := w.age[fid]
	if !ok {
		age = 48 * time.Hour
	}
	return protocol.StoredFile{FID: fid, Size: int64(len(w.files[dev][fid].content)), ModTime: w.now.Add(-age)}
}

func (w *strayWorld) Trash(_ context.Context, _ string, o protocol.TrashOrder) (map[protocol.FID]protocol.TrashResult, error) {
	results := map[protocol.FID]protocol.TrashResult{}
	for _, f := range o.Files {
		if w.trash != nil {
			if what := w.trash(f); what != "" {
				results[f.FID] = protocol.TrashResult{FID: f.FID, What: what}
			}
			continue
		}
		w.trashed = append(w.trashed, f.FID)
		if f.Shard {
			w.removeShard(o.Dev, f.FID)
		} else {
			w.remove(o.Dev, f.FID)
		}
		results[f.FID] = protocol.TrashResult{FID: f.FID, What: protocol.Trashed, To: "trash"}
	}
	return results, nil
}

// report is a page in a line.
func report(p StrayPage) string {
	var b strings.Builder
	for _, s := range p.Strays {
		name := s.FID.String()
		if s.Shard {
			name += ".ec"
		}
		fmt.Fprintf(&b, "%s %s %s; ", name, s.Kind, s.Result)
	}
	fmt.Fprintf(&b, "%d files, %d bytes, %d young, %d pending, %d foreign, %d unreadable", p.Files, p.Bytes, p.Young, p.Pending, p.Foreign, p.Unreadable)
	return b.String()
}

// populate has files of every kind on device 1.
func (w *strayWorld) populate() {
	for fid, on := range map[protocol.FID][]protocol.DevID{1: {1, 2}, 2: {2, 3}, 3: {2}, 4: {2}} {
		w.Put(schema.File{FID: fid, DMID: 1, Length: 3}, on...)
		for _, dev := range on {
			if fid == 1 || fid == 2 {
				w.put(dev, fid, bytesOn{content: "abc"})
			}
		}
	}
	w.put(2, 3, bytesOn{content: "ab"}) // truncated; the copy of 4 is missing
	for fid := protocol.FID(2); fid <= 9; fid++ {
		w.put(1, fid, bytesOn{content: "abc"})
	}
	w.put(1, 4, bytesOn{content: "abcd"})
	w.put(1, 5000, bytesOn{content: "abc"})
	w.tempfiles[6] = true
	w.queues[7] = schema.QueueDelete
	w.queues[8] = schema.QueueCopyDelete
	w.age[9] = time.Hour
}

func TestStrayPage(t *testing.T) {
	t.Parallel()
	w := newStrayWorld("")
	w.populate()
	all := StrayQuery{Dev: 1, Limit: 100, Age: 24 * time.Hour}
	p, err := w.strays.Page(t.Context(), all)
	const want = "2 copy ; 3 rescue ; 4 doubtful ; 5 gone ; 5000 above ; 10 files, 31 bytes, 1 young, 3 pending, 2 foreign, 1 unreadable"
	if got := report(p); err != nil || got != want || p.Next != "" {
		t.Errorf("%s, %v\nwant %s", got, err, want)
	}

	// Page by page it is the same.
	var pages []string
	q := StrayQuery{Dev: 1, Limit: 4, Age: time.Minute}
	for {
		p, err := w.strays.Page(t.Context(), q)
		if err != nil {
			t.Fatal(err)
		}
		pages = append(pages, report(p))
		if q.After = p.Next; q.After == "" {
			break
		}
	}
	if got := strings.Join(pages, "\n"); got != `2 copy ; 3 rescue ; 4 doubtful ; 4 files, 13 bytes, 0 young, 0 pending, 2 foreign, 1 unreadable
5 gone ; 4 files, 12 bytes, 0 young, 3 pending, 2 foreign, 1 unreadable
9 gone ; 5000 above ; 2 files, 6 bytes, 0 young, 0 pending, 2 foreign, 1 unreadable` {
		t.Error(got)
	}

	// What has gone since it was listed is no stray; nor is what was stored.
	w.listed = func([]protocol.StoredFile) {
		w.remove(1, 5)
		w.Put(schema.File{FID: 3, DMID: 1, Length: 3}, 1, 2)
	}
	p, err = w.strays.Page(t.Context(), all)
	if got := report(p); err != nil || !strings.HasPrefix(got, "2 copy ; 4 doubtful ; 5000 above ; 10 files") {
		t.Errorf("%s, %v", got, err)
	}
}

func TestDeleteStrays(t *testing.T) {
	t.Parallel()
	w := newStrayWorld("here")
	w.identity = "here"
	w.populate()
	for fid := protocol.FID(100); fid < 103; fid++ {
		w.put(1, fid, bytesOn{content: "x"})
	}
	held, err := w.strays.o.Fids.TryLock(t.Context(), 101)
	if err != nil {
		t.Fatal(err)
	}
	q := StrayQuery{Dev: 1, Limit: 100, Age: 24 * time.Hour, Delete: true}
	p, err := w.strays.Page(t.Context(), q)
	const want = "2 copy trashed; 3 rescue kept; 4 doubtful kept; 5 gone trashed; 100 gone trashed; 101 gone kept; 102 gone trashed; 5000 above kept; "
	if got := report(p); err != nil || !strings.HasPrefix(got, want) {
		t.Errorf("%s, %v\nwant %s", got, err, want)
	}
	if err := held.Release(t.Context()); err != nil {
		t.Fatal(err)
	}
	p, err = w.strays.Page(t.Context(), q)
	if got := report(p); err != nil || !strings.HasPrefix(got, "3 rescue kept; 4 doubtful kept; 101 gone trashed; 5000 above kept; 9 files") {
		t.Errorf("again: %s, %v", got, err)
	}
	if got := fmt.Sprint(w.trashed); got != "[2 5 100 102 101]" {
		t.Errorf("trashed %s", got)
	}
	// Whatever the storage daemon says is told as it is, or as a failure.
	for fid, what := range map[protocol.FID]string{200: protocol.TrashChanged, 201: protocol.TrashMissing, 202: protocol.TrashFailed, 203: "eaten", 204: ""} {
		w.put(1, fid, bytesOn{content: what})
	}
	w.trash = func(f protocol.StoredFile) string { return w.files[1][f.FID].content }
	p, err = w.strays.Page(t.Context(), q)
	if got := report(p); err != nil || !strings.Contains(got, "200 gone changed; 201 gone missing; 202 gone failed; 203 gone failed; 204 gone failed; ") {
		t.Errorf("%s, %v", got, err)
	}
	if h, err := w.strays.o.Fids.TryLock(t.Context(), 200); err != nil || !h.Has(200) {
		t.Errorf("a lock was kept: %v", err)
	}
}

func TestStrayRefusals(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		do   func(*strayWorld, *StrayQuery)
		want error
	}{
		{"no such device", func(_ *strayWorld, q *StrayQuery) { q.Dev = 9 }, protocol.ErrNoDevice},
		{"a device that is down", func(w *strayWorld, _ *StrayQuery) {
			w.cluster.Change(1, func(d *cluster.Device, _ *cluster.Host) { d.Status = schema.DeviceDown })
		}, protocol.Err("device_unreachable")},
		{"a device out of reach", func(w *strayWorld, _ *StrayQuery) {
			w.cluster.Change(1, func(d *cluster.Device, _ *cluster.Host) { d.Observed = cluster.DeviceUnreachable })
		}, protocol.Err("device_unreachable")},
		{"deleting where that is not permitted", func(w *strayWorld, q *StrayQuery) {
			w.cluster.Change(1, func(d *cluster.Device, _ *cluster.Host) { d.Status = schema.DeviceReadonly })
			q.Delete = true
		}, protocol.Err("device_readonly")},
		{"listing there", func(w *strayWorld, _ *StrayQuery) {
			w.cluster.Change(1, func(d *cluster.Device, _ *cluster.Host) { d.Status = schema.DeviceReadonly })
		}, nil},
		{"another cluster's", func(w *strayWorld, _ *StrayQuery) { w.identity = "there" }, protocol.Err("device_refused")},
		{"nobody's", func(w *strayWorld, _ *StrayQuery) { w.identity = "" }, nil},
		{"another make", func(w *strayWorld, _ *StrayQuery) { w.refuse = storage.ErrNoOrders }, storage.ErrNoOrders},
		{"no database", func(w *strayWorld, _ *StrayQuery) {
			w.Store.Before = func(string) error { return schema.ErrUnavailable }
		}, schema.ErrUnavailable},
	} {
		w := newStrayWorld("here")
		w.identity = "here"
		w.populate()
		q := StrayQuery{Dev: 1, Limit: 100, Age: time.Hour}
		tt.do(w, &q)
		if p, err := w.strays.Page(t.Context(), q); !errors.Is(err, tt.want) || len(w.trashed) > 0 {
			t.Errorf("%s: %s, %v", tt.name, report(p), err)
		}
	}
}

// encode stores a file in shards on devs, of which those at have are there.
func (w *strayWorld) encode(fid protocol.FID, devs, have []protocol.DevID) schema.Encoding {
	e := schema.Encoding{FID: fid, ID: 9, K: 2, M: 1, Block: 4096, Epoch: 1, Devices: devs}
	w.PutEncoded(schema.File{FID: fid, DMID: 1, Length: 3}, e)
	for i, dev := range devs {
		if slices.Contains(have, dev) {
			w.putShard(shardState(e, 3, i, dev))
		}
	}
	return e
}

func TestStrayShards(t *testing.T) {
	t.Parallel()
	w := newStrayWorldOf(4, "")
	for dev := protocol.DevID(1); dev <= 4; dev++ {
		w.cluster.Change(dev, func(_ *cluster.Device, h *cluster.Host) {
			h.Capabilities = cluster.Capabilities{Version: 1, Words: []string{protocol.WordEC}}
		})
	}
	here, there := devsOf("1 2 3"), devsOf("2 3 4")
	raw := bytesOn{content: "abc"}
	w.encode(1, here, here)
	w.put(1, 1, raw) // beside a shard
	e := w.encode(2, there, there)
	w.putShard(shardState(e, 3, 0, 1)) // a second one
	e = w.encode(3, there, devsOf("2"))
	w.putShard(shardState(e, 3, 1, 1)) // of the file that lacks it
	e = w.encode(4, there, devsOf("2"))
	e.ID = 8
	w.putShard(shardState(e, 3, 1, 1)) // of an encoding of old
	w.Put(schema.File{FID: 5, DMID: 1, Length: 3}, 2)
	w.put(2, 5, raw)
	w.putShard(shardState(schema.Encoding{FID: 5, ID: 9, K: 2, M: 1, Devices: here}, 3, 0, 1))
	w.Put(schema.File{FID: 6, DMID: 1, Length: 3}, 2)
	w.put(2, 6, raw) // so it says, but it has a shard only
	for _, dev := range devsOf("1 2") {
		w.putShard(shardState(schema.Encoding{FID: 6, ID: 9, K: 2, M: 1, Devices: here}, 3, int(dev)-1, dev))
	}
	w.putShard(shardState(schema.Encoding{FID: 7, ID: 9, K: 2, M: 1, Devices: here}, 3, 0, 1))
	w.encode(8, here, here)
	w.SetLocations(8, 2, 3)
	w.encode(9, there, there)
	w.put(1, 9, raw)
	w.encode(10, here, devsOf("1"))
	w.put(1, 10, raw)
	w.encode(11, here, devsOf("1"))
	w.put(1, 11, bytesOn{content: "a"})
	w.encode(12, here, devsOf("1 2 3"))
	all := StrayQuery{Dev: 1, Limit: 100, Age: 24 * time.Hour}
	const want = "1 copy %s; 2.ec copy %s; 3.ec rescue %s; 4.ec doubtful %s; 5.ec copy %s; 6.ec doubtful %s; 7.ec gone %s; 8.ec copy %s; 9 copy %s; 10 rescue %s; 11 doubtful %s; 15 files"
	p, err := w.strays.Page(t.Context(), all)
	if got := report(p); err != nil || !strings.HasPrefix(got, strings.ReplaceAll(want, "%s", "")) {
		t.Errorf("%s, %v", got, err)
	}
	all.Delete = true
	p, err = w.strays.Page(t.Context(), all)
	told := fmt.Sprintf(want, "trashed", "trashed", "kept", "kept", "trashed", "kept", "trashed", "trashed", "trashed", "kept", "kept")
	if got := report(p); err != nil || !strings.HasPrefix(got, told) {
		t.Errorf("%s, %v", got, err)
	}
	for _, fid := range []protocol.FID{1, 12} {
		if _, there := w.shards[protocol.FIDOn{FID: fid, Dev: 1}]; !there {
			t.Errorf("the shard of fid %d went with a stray", fid)
		}
	}

	// A host whose shards cannot be asked for knows of none.
	w.encode(20, there, there)
	w.put(1, 20, raw)
	w.broken[2], w.broken[3] = errors.New("sick"), errors.New("sick")
	p, err = w.strays.Page(t.Context(), StrayQuery{Dev: 1, Limit: 100, Age: 24 * time.Hour})
	if got := report(p); err != nil || !strings.Contains(got, "20 rescue ; ") {
		t.Errorf("%s, %v", got, err)
	}
}
