// Package worktest is a namespace in memory, and devices in memory, for the
// tests of workers. Both keep the contracts of what they stand for, and can be
// told to fail.
package worktest

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/schema"
	"github.com/mogile/mogile/tracker/cluster"
	"github.com/mogile/mogile/tracker/storage"
)

// Key identifies a row of a queue.
type Key struct {
	Queue schema.Queue
	FID   protocol.FID
	DevID protocol.DevID // of QueueCopyDelete only
}

// Row is a row of a queue.
type Row struct {
	From      protocol.DevID // of QueueReplicate, and the source of QueueRebalance
	What      schema.What    // of QueueCopyDelete; empty means schema.Raw
	Arg       string         // of QueueRebalance and QueueFsck
	NextTry   int64
	FailCount int
}

// Store is a part of a [schema.Store], in memory. Its clock is time.Now.
type Store struct {
	// Before is called without locks ahead of every call, with the method's
	// name; an error that it returns is the call's. It may be nil, and must be
	// set before the store is used.
	Before func(method string) error

	mu        sync.Mutex
	files     map[protocol.FID]schema.File
	locations map[protocol.FID][]protocol.DevID
	sums      map[protocol.FID]protocol.Checksum
	encodings map[protocol.FID]schema.Encoding
	rows      map[Key]*Row
	tempfiles []schema.Tempfile
	old       []protocol.FID
	locks     map[string]bool
	lost      chan struct{}
	calls     map[string]int

	settings map[string]string
	status   map[protocol.DevID]string // of devices; alive where there is none
	ranges   map[rangeKey]*schema.Range
	log      []schema.FsckEvent
	logged   int64 // the highest LogID given out
}

// NewStore is an empty namespace.
func NewStore() *Store {
	return &Store{
		files:     make(map[protocol.FID]schema.File),
		locations: make(map[protocol.FID][]protocol.DevID),
		sums:      make(map[protocol.FID]protocol.Checksum),
		encodings: make(map[protocol.FID]schema.Encoding),
		rows:      make(map[Key]*Row),
		locks:     make(map[string]bool),
		lost:      make(chan struct{}),
		calls:     make(map[string]int),
		settings:  make(map[string]string),
		status:    make(map[protocol.DevID]string),
		ranges:    make(map[rangeKey]*schema.Range),
	}
}

// begin is the start of every call; it returns with the lock held unless it
// returns an error.
func (s *Store) begin(ctx context.Context, method string) error {
	if s.Before != nil {
		if err := s.Before(method); err != nil {
			return err
		}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	s.mu.Lock()
	s.calls[method]++
	return nil
}

// Calls is how often a method was called.
func (s *Store) Calls(method string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.calls[method]
}

// Put stores a closed file with its locations and queues it for replication at
// once.
func (s *Store) Put(f schema.File, devs ...protocol.DevID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f.DevCount = len(devs)
	s.files[f.FID] = f
	s.locations[f.FID] = sorted(devs)
	s.rows[Key{schema.QueueReplicate, f.FID, 0}] = &Row{}
}

// Delete removes a file as a client does, and queues its bytes for deletion at
// once.
func (s *Store) Delete(fid protocol.FID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.files, fid)
	s.rows[Key{schema.QueueDelete, fid, 0}] = &Row{}
}

// SetLocations replaces what file_on has of a fid.
func (s *Store) SetLocations(fid protocol.FID, devs ...protocol.DevID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.locations[fid] = sorted(devs)
}

// SetRow puts a row into a queue.
func (s *Store) SetRow(k Key, r Row) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rows[k] = &r
}

// Row is a row of a queue, nil where there is none.
func (s *Store) Row(k Key) *Row {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.rows[k]
	if r == nil {
		return nil
	}
	c := *r
	return &c
}

// Rows counts the rows of a queue.
func (s *Store) Rows(q schema.Queue) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for k := range s.rows {
		if k.Queue == q {
			n++
		}
	}
	return n
}

// Locations are the devices of a fid.
func (s *Store) Locations(fid protocol.FID) []protocol.DevID {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.locations[fid])
}

// Open records an upload that began age ago.
func (s *Store) Open(fid protocol.FID, age time.Duration, devs ...protocol.DevID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tempfiles = append(s.tempfiles, schema.Tempfile{FID: fid, CreateTime: now() - int64(age/time.Second), DevIDs: devs})
}

// QueueOld puts fids into MogileFS's older queue.
func (s *Store) QueueOld(fids ...protocol.FID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.old = append(s.old, fids...)
}

// LoseSession gives up every lock, as if the session that held them had ended.
func (s *Store) LoseSession() {
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.lost)
	s.lost = make(chan struct{})
	s.locks = make(map[string]bool)
}

// Locked are how many locks are held.
func (s *Store) Locked() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.locks)
}

func now() int64 { return time.Now().Unix() }

func sorted(devs []protocol.DevID) []protocol.DevID {
	devs = slices.Clone(devs)
	slices.Sort(devs)
	return slices.Compact(devs)
}

// Claim is [schema.Queues.Claim], without jitter.
func (s *Store) Claim(ctx context.Context, q schema.Queue, limit int, lease time.Duration) ([]schema.Job, error) {
	if err := s.begin(ctx, "Claim"); err != nil {
		return nil, err
	}
	defer s.mu.Unlock()
	var due []Key
	for k, r := range s.rows {
		if k.Queue == q && r.NextTry <= now() {
			due = append(due, k)
		}
	}
	slices.SortFunc(due, func(a, b Key) int {
		return cmp.Or(cmp.Compare(s.rows[a].NextTry, s.rows[b].NextTry), cmp.Compare(a.FID, b.FID), cmp.Compare(a.DevID, b.DevID))
	})
	var jobs []schema.Job
	for _, k := range due[:min(limit, len(due))] {
		r := s.rows[k]
		r.NextTry = now() + int64(lease/time.Second)
		job := schema.Job{Queue: q, FID: k.FID, DevID: k.DevID, From: r.From, FailCount: r.FailCount, NextTry: r.NextTry}
		switch q {
		case schema.QueueCopyDelete:
			job.What = cmp.Or(r.What, schema.Raw)
		case schema.QueueRebalance:
			job.DevID, job.From, job.Arg = r.From, 0, r.Arg
		case schema.QueueFsck:
			job.Arg = r.Arg
		}
		jobs = append(jobs, job)
	}
	return jobs, nil
}

func (s *Store) held(j schema.Job) (Key, *Row) {
	k := Key{Queue: j.Queue, FID: j.FID}
	if j.Queue == schema.QueueCopyDelete {
		k.DevID = j.DevID
	}
	if r := s.rows[k]; r != nil && r.NextTry == j.NextTry {
		return k, r
	}
	return k, nil
}

// Renew is [schema.Queues.Renew].
func (s *Store) Renew(ctx context.Context, jobs []schema.Job, lease time.Duration) ([]schema.Job, error) {
	if err := s.begin(ctx, "Renew"); err != nil {
		return nil, err
	}
	defer s.mu.Unlock()
	var still []schema.Job
	for _, j := range jobs {
		if _, r := s.held(j); r != nil {
			r.NextTry = now() + int64(lease/time.Second)
			j.NextTry = r.NextTry
			still = append(still, j)
		}
	}
	return still, nil
}

// Finish is [schema.Queues.Finish].
func (s *Store) Finish(ctx context.Context, jobs []schema.Job) (int, error) {
	if err := s.begin(ctx, "Finish"); err != nil {
		return 0, err
	}
	defer s.mu.Unlock()
	n := 0
	for _, j := range jobs {
		if k, r := s.held(j); r != nil {
			delete(s.rows, k)
			n++
		}
	}
	return n, nil
}

// Reschedule is [schema.Queues.Reschedule].
func (s *Store) Reschedule(ctx context.Context, j schema.Job, delay time.Duration, failcount int) (bool, error) {
	if err := s.begin(ctx, "Reschedule"); err != nil {
		return false, err
	}
	defer s.mu.Unlock()
	_, r := s.held(j)
	if r == nil {
		return false, nil
	}
	r.NextTry = min(now()+int64(delay/time.Second), schema.EndOfTime)
	r.FailCount = failcount
	return true, nil
}

// FilesByFID is [schema.FileFinder.FilesByFID].
func (s *Store) FilesByFID(ctx context.Context, fids []protocol.FID) ([]schema.LocatedFile, error) {
	if err := s.begin(ctx, "FilesByFID"); err != nil {
		return nil, err
	}
	defer s.mu.Unlock()
	var files []schema.LocatedFile
	for _, fid := range fids {
		if f, ok := s.files[fid]; ok {
			files = append(files, schema.LocatedFile{File: f, Devices: slices.Clone(s.locations[fid])})
		}
	}
	return files, nil
}

// Checksum is [schema.FileFinder.Checksum].
func (s *Store) Checksum(ctx context.Context, fid protocol.FID) (protocol.Checksum, error) {
	if err := s.begin(ctx, "Checksum"); err != nil {
		return protocol.Checksum{}, err
	}
	defer s.mu.Unlock()
	return s.sums[fid], nil
}

// SetChecksum is [schema.Files.SetChecksum].
func (s *Store) SetChecksum(ctx context.Context, fid protocol.FID, sum protocol.Checksum) error {
	if err := s.begin(ctx, "SetChecksum"); err != nil {
		return err
	}
	defer s.mu.Unlock()
	if _, ok := s.files[fid]; !ok {
		return schema.ErrGone
	}
	s.sums[fid] = sum
	return nil
}

// AddLocation is [schema.Locations.AddLocation].
func (s *Store) AddLocation(ctx context.Context, fid protocol.FID, dev protocol.DevID, seen []protocol.DevID) error {
	if err := s.begin(ctx, "AddLocation"); err != nil {
		return err
	}
	defer s.mu.Unlock()
	_, alive := s.files[fid]
	devs := s.locations[fid]
	if alive && slices.Equal(devs, sorted(seen)) {
		s.locations[fid] = sorted(append(slices.Clone(devs), dev))
		delete(s.rows, Key{schema.QueueCopyDelete, fid, dev})
		s.count(fid)
		return nil
	}
	if !slices.Contains(devs, dev) {
		s.rows[Key{schema.QueueCopyDelete, fid, dev}] = &Row{}
	}
	if !alive {
		return fmt.Errorf("fid %d: %w", fid, schema.ErrGone)
	}
	return fmt.Errorf("fid %d: %w", fid, schema.ErrStale)
}

func (s *Store) count(fid protocol.FID) {
	skip := s.settings["skip_devcount"]
	if f, ok := s.files[fid]; ok && (skip == "" || skip == "0") {
		f.DevCount = len(s.locations[fid])
		s.files[fid] = f
	}
}

// DropLocation is [schema.Locations.DropLocation].
func (s *Store) DropLocation(ctx context.Context, fid protocol.FID, dev protocol.DevID, seen []protocol.DevID) error {
	if err := s.begin(ctx, "DropLocation"); err != nil {
		return err
	}
	defer s.mu.Unlock()
	return s.drop(fid, dev, seen, schema.Raw)
}

func (s *Store) drop(fid protocol.FID, dev protocol.DevID, seen []protocol.DevID, what schema.What) error {
	if devs := s.locations[fid]; !slices.Equal(devs, sorted(seen)) || !slices.Contains(devs, dev) {
		return fmt.Errorf("fid %d: %w", fid, schema.ErrStale)
	}
	s.remove(fid, dev)
	s.rows[Key{schema.QueueCopyDelete, fid, dev}] = &Row{What: what, NextTry: now()}
	return nil
}

// DropBadLocation is [schema.Locations.DropBadLocation].
func (s *Store) DropBadLocation(ctx context.Context, fid protocol.FID, dev protocol.DevID, seen []protocol.DevID) error {
	if err := s.begin(ctx, "DropBadLocation"); err != nil {
		return err
	}
	defer s.mu.Unlock()
	if err := schema.CheckBad(fid, dev, seen); err != nil {
		return err
	}
	return s.drop(fid, dev, seen, schema.Bad)
}

func (s *Store) remove(fid protocol.FID, devs ...protocol.DevID) {
	s.locations[fid] = slices.DeleteFunc(slices.Clone(s.locations[fid]), func(d protocol.DevID) bool { return slices.Contains(devs, d) })
	s.count(fid)
}

// DeletedLocations is [schema.Locations.DeletedLocations].
func (s *Store) DeletedLocations(ctx context.Context, fid protocol.FID, devs []protocol.DevID) error {
	if err := s.begin(ctx, "DeletedLocations"); err != nil {
		return err
	}
	defer s.mu.Unlock()
	s.remove(fid, devs...)
	return nil
}

// LocationsOf is [schema.Locations.LocationsOf].
func (s *Store) LocationsOf(ctx context.Context, fids []protocol.FID) (map[protocol.FID][]protocol.DevID, error) {
	if err := s.begin(ctx, "LocationsOf"); err != nil {
		return nil, err
	}
	defer s.mu.Unlock()
	m := make(map[protocol.FID][]protocol.DevID)
	for _, fid := range fids {
		m[fid] = slices.Clone(s.locations[fid])
	}
	return m, nil
}

// PendingDeletions is [schema.Locations.PendingDeletions].
func (s *Store) PendingDeletions(ctx context.Context, fids []protocol.FID) (map[protocol.FID][]protocol.DevID, error) {
	if err := s.begin(ctx, "PendingDeletions"); err != nil {
		return nil, err
	}
	defer s.mu.Unlock()
	m := make(map[protocol.FID][]protocol.DevID)
	for k := range s.rows {
		if k.Queue == schema.QueueCopyDelete && slices.Contains(fids, k.FID) {
			m[k.FID] = sorted(append(m[k.FID], k.DevID))
		}
	}
	return m, nil
}

// Inspect is [schema.Locations.Inspect].
func (s *Store) Inspect(ctx context.Context, fids []protocol.FID) ([]schema.Inspected, error) {
	if err := s.begin(ctx, "Inspect"); err != nil {
		return nil, err
	}
	defer s.mu.Unlock()
	var files []schema.Inspected
	for _, fid := range fids {
		f, ok := s.files[fid]
		if !ok {
			continue
		}
		i := schema.Inspected{LocatedFile: schema.LocatedFile{File: f, Devices: slices.Clone(s.locations[fid])}, Checksum: s.sums[fid]}
		if e, ok := s.encodings[fid]; ok {
			e.Devices = slices.Clone(e.Devices)
			i.Encoding = &e
		}
		for k := range s.rows {
			if k.Queue == schema.QueueCopyDelete && k.FID == fid {
				i.Pending = sorted(append(i.Pending, k.DevID))
			}
		}
		files = append(files, i)
	}
	return files, nil
}

// QueueCopyDeletion is [schema.Queues.QueueCopyDeletion].
func (s *Store) QueueCopyDeletion(ctx context.Context, fid protocol.FID, dev protocol.DevID, what schema.What) error {
	if err := s.begin(ctx, "QueueCopyDeletion"); err != nil {
		return err
	}
	defer s.mu.Unlock()
	s.rows[Key{schema.QueueCopyDelete, fid, dev}] = &Row{What: what, NextTry: now()}
	return nil
}

// AnnounceCopy is [schema.Queues.AnnounceCopy].
func (s *Store) AnnounceCopy(ctx context.Context, fid protocol.FID, dev protocol.DevID, what schema.What, delay time.Duration) error {
	if err := s.begin(ctx, "AnnounceCopy"); err != nil {
		return err
	}
	defer s.mu.Unlock()
	s.rows[Key{schema.QueueCopyDelete, fid, dev}] = &Row{What: what, NextTry: now() + int64(delay/time.Second)}
	return nil
}

// FinishDeletion is [schema.Queues.FinishDeletion].
func (s *Store) FinishDeletion(ctx context.Context, j schema.Job) (bool, error) {
	if err := s.begin(ctx, "FinishDeletion"); err != nil {
		return false, err
	}
	defer s.mu.Unlock()
	k, r := s.held(j)
	if r == nil || len(s.locations[j.FID]) > 0 {
		return false, nil
	}
	delete(s.rows, k)
	delete(s.sums, j.FID)
	delete(s.encodings, j.FID)
	s.tempfiles = slices.DeleteFunc(s.tempfiles, func(t schema.Tempfile) bool { return t.FID == j.FID })
	return true, nil
}

// AdoptOldDeletions is [schema.Queues.AdoptOldDeletions].
func (s *Store) AdoptOldDeletions(ctx context.Context, limit int) (int, error) {
	if err := s.begin(ctx, "AdoptOldDeletions"); err != nil {
		return 0, err
	}
	defer s.mu.Unlock()
	n := min(limit, len(s.old))
	for _, fid := range s.old[:n] {
		s.rows[Key{schema.QueueDelete, fid, 0}] = &Row{}
	}
	s.old = s.old[n:]
	return n, nil
}

// ExpireTempfiles is [schema.Uploads.ExpireTempfiles].
func (s *Store) ExpireTempfiles(ctx context.Context, age time.Duration, limit int) (schema.Expired, error) {
	if err := s.begin(ctx, "ExpireTempfiles"); err != nil {
		return schema.Expired{}, err
	}
	defer s.mu.Unlock()
	var done schema.Expired
	s.tempfiles = slices.DeleteFunc(s.tempfiles, func(t schema.Tempfile) bool {
		if done.Closed+done.Discard == limit || t.CreateTime > now()-int64(age/time.Second) {
			return false
		}
		if _, ok := s.files[t.FID]; ok {
			done.Closed++
			return true
		}
		s.locations[t.FID] = sorted(append(s.locations[t.FID], t.DevIDs...))
		s.rows[Key{schema.QueueDelete, t.FID, 0}] = &Row{}
		done.Discard++
		return true
	})
	return done, nil
}

// TryLock is [schema.Locks.TryLock].
func (s *Store) TryLock(ctx context.Context, names []string) ([]string, <-chan struct{}, error) {
	if err := s.begin(ctx, "TryLock"); err != nil {
		return nil, nil, err
	}
	defer s.mu.Unlock()
	var held []string
	for _, name := range names {
		if !s.locks[name] {
			s.locks[name] = true
			held = append(held, name)
		}
	}
	return held, s.lost, nil
}

// Unlock is [schema.Locks.Unlock].
func (s *Store) Unlock(ctx context.Context, names []string) error {
	if err := s.begin(ctx, "Unlock"); err != nil {
		return err
	}
	defer s.mu.Unlock()
	for _, name := range names {
		delete(s.locks, name)
	}
	return nil
}

// Cluster is a cluster whose snapshot a test sets.
type Cluster struct {
	mu   sync.Mutex
	snap *cluster.Snapshot
}

// NewCluster has the given number of hosts, each with as many devices, numbered
// from 1 across hosts, alive, writeable and a tenth full; and domain 1 with
// class 0 of two copies, class 1 of one, class 3 of three, and class 5, of two,
// with MD5 checksums.
func NewCluster(hosts, devices int) *Cluster {
	rows := schema.TopologyRows{
		Domains: []schema.Domain{{ID: 1, Name: "test"}},
		Classes: []schema.Class{
			{DMID: 1, ID: 0, Name: "default", MinDevCount: 2},
			{DMID: 1, ID: 1, Name: "single", MinDevCount: 1},
			{DMID: 1, ID: 3, Name: "triple", MinDevCount: 3},
			{DMID: 1, ID: 5, Name: "hashed", MinDevCount: 2, HashType: protocol.HashMD5},
			{DMID: 1, ID: 6, Name: "coded", MinDevCount: 3, ReplPolicy: "ErasureCode(3, 2, min=1)"},
			{DMID: 1, ID: 7, Name: "coded and hashed", MinDevCount: 3, ReplPolicy: "ErasureCode(3, 2, min=1)", HashType: protocol.HashMD5},
		},
	}
	for h := range hosts {
		rows.Hosts = append(rows.Hosts, schema.Host{
			ID: schema.HostID(h + 1), Status: schema.HostAlive, Name: fmt.Sprint("host", h+1),
			IP: fmt.Sprint("127.0.0.", h+1), Port: 7500,
		})
		for d := range devices {
			total, used := int64(10000), int64(1000)
			rows.Devices = append(rows.Devices, schema.Device{
				ID: protocol.DevID(h*devices + d + 1), HostID: schema.HostID(h + 1), Status: schema.DeviceAlive,
				Weight: 100, TotalMB: &total, UsedMB: &used,
			})
		}
	}
	return FromRows(rows)
}

// FromRows is the cluster of rows, every host and device of it observed to be
// well.
func FromRows(rows schema.TopologyRows) *Cluster {
	c := &Cluster{snap: cluster.NewSnapshot(rows, 2)}
	for _, h := range c.snap.HostList {
		h.Observed = cluster.HostReachable
	}
	for _, d := range c.snap.DeviceList {
		d.Observed = cluster.DeviceWriteable
	}
	return c
}

// Snapshot is the cluster as it is now.
func (c *Cluster) Snapshot() *cluster.Snapshot {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.snap
}

// Change publishes a snapshot with one device changed; its host is a copy too.
func (c *Cluster) Change(dev protocol.DevID, change func(d *cluster.Device, h *cluster.Host)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	next := *c.snap
	next.Devices = make(map[protocol.DevID]*cluster.Device)
	next.DeviceList = nil
	next.Hosts = make(map[schema.HostID]*cluster.Host)
	next.HostList = nil
	for _, h := range c.snap.HostList {
		h := *h
		next.Hosts[h.ID] = &h
		next.HostList = append(next.HostList, &h)
	}
	for _, d := range c.snap.DeviceList {
		d := *d
		d.Host = next.Hosts[d.HostID]
		next.Devices[d.ID] = &d
		next.DeviceList = append(next.DeviceList, &d)
	}
	change(next.Devices[dev], next.Devices[dev].Host)
	c.snap = &next
}

// Set publishes a snapshot with another setting.
func (c *Cluster) Set(name, value string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	next := *c.snap
	next.Settings = maps.Clone(c.snap.Settings)
	if next.Settings == nil {
		next.Settings = make(map[string]string)
	}
	next.Settings[name] = value
	c.snap = &next
}

// Remove publishes a snapshot without a device.
func (c *Cluster) Remove(dev protocol.DevID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	next := *c.snap
	next.Devices = make(map[protocol.DevID]*cluster.Device)
	next.DeviceList = nil
	for _, d := range c.snap.DeviceList {
		if d.ID != dev {
			next.Devices[d.ID] = d
			next.DeviceList = append(next.DeviceList, d)
		}
	}
	c.snap = &next
}

// Disks are the devices of all hosts. They stand in for a [storage.Client].
type Disks struct {
	// OnCopy and OnDelete, where set, are called ahead of what they are named
	// for, without locks; an error that they return is the call's. They must be
	// set before use.
	OnCopy   func(ctx context.Context, from, to protocol.DevID, fid protocol.FID) error
	OnDelete func(ctx context.Context, dev protocol.DevID, fid protocol.FID) error
	// OnDirect, where set, is called ahead of every direct copy, and decides
	// whether it can be made. Where it is not set none can.
	OnDirect func(ctx context.Context, from, to protocol.DevID, fid protocol.FID) error
	// OnShard, where set, is called ahead of the writing of every shard; an error
	// that it returns is the reason why it is not written.
	OnShard func(ctx context.Context, dev protocol.DevID, fid protocol.FID) error
	// OnVerify is as OnCopy, of files that are read to their end.
	OnVerify func(ctx context.Context, dev protocol.DevID, fid protocol.FID) error

	mu      sync.Mutex
	shards  map[protocol.FIDOn]shard
	content map[protocol.DevID]map[protocol.FID]string
	noted   map[protocol.DevID]map[protocol.FID]string // what was written, where it has rotted since
	trashed []string
	copies  int
	deletes int
}

// NewDisks are empty.
func NewDisks() *Disks {
	return &Disks{
		content: make(map[protocol.DevID]map[protocol.FID]string), noted: make(map[protocol.DevID]map[protocol.FID]string),
		shards: make(map[protocol.FIDOn]shard),
	}
}

// Put writes a file.
func (d *Disks) Put(dev protocol.DevID, fid protocol.FID, content string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.content[dev] == nil {
		d.content[dev] = make(map[protocol.FID]string)
	}
	d.content[dev][fid] = content
}

// On are the devices that have a file.
func (d *Disks) On(fid protocol.FID) []protocol.DevID {
	d.mu.Lock()
	defer d.mu.Unlock()
	var devs []protocol.DevID
	for dev, files := range d.content {
		if _, ok := files[fid]; ok {
			devs = append(devs, dev)
		}
	}
	slices.Sort(devs)
	return devs
}

// Counts are how many copies and deletions were made.
func (d *Disks) Counts() (copies, deletes int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.copies, d.deletes
}

func parse(raw string) (protocol.DevID, protocol.FID) {
	u, err := url.Parse(raw)
	if err != nil {
		panic(err)
	}
	dev, fid, err := protocol.ParsePath(u.Path)
	if err != nil {
		panic(err)
	}
	return dev, fid
}

// progress calls f every second until it is stopped.
func progress(f func()) (stop func()) {
	done := make(chan struct{})
	var g sync.WaitGroup
	g.Go(func() {
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				f()
			case <-done:
				return
			}
		}
	})
	return func() {
		close(done)
		g.Wait()
	}
}

// Copy is [storage.Client.Copy]. However long OnCopy takes, there is progress.
func (d *Disks) Copy(ctx context.Context, c storage.Copy) (protocol.Checksum, error) {
	from, fid := parse(c.From)
	to, _ := parse(c.To)
	if d.OnCopy != nil {
		defer progress(c.Progress)()
		if err := d.OnCopy(ctx, from, to, fid); err != nil {
			return protocol.Checksum{}, err
		}
	}
	d.mu.Lock()
	content, ok := d.read(from, fid)
	d.mu.Unlock()
	switch {
	case ctx.Err() != nil:
		return protocol.Checksum{}, ctx.Err()
	case !ok:
		return protocol.Checksum{}, &storage.CopyError{Side: storage.SourceError, Err: storage.ErrMissing}
	case int64(len(content)) != c.Length:
		return protocol.Checksum{}, &storage.CopyError{Side: storage.SourceError, Err: fmt.Errorf("%d bytes instead of %d", len(content), c.Length)}
	}
	sum := digest(content, c.Want, c.HashType)
	if !c.Want.IsZero() && !sum.Equal(c.Want) {
		return protocol.Checksum{}, &storage.CopyError{Side: storage.SourceError, Err: fmt.Errorf("%s instead of %s", sum, c.Want)}
	}
	d.Put(to, fid, content)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.copies++
	return sum, nil
}

// Size is [storage.Client.Size].
func (d *Disks) Size(_ context.Context, url string) (int64, error) {
	dev, fid := parse(url)
	d.mu.Lock()
	defer d.mu.Unlock()
	content, ok := d.read(dev, fid)
	if !ok {
		return 0, storage.ErrMissing
	}
	return int64(len(content)), nil
}

// Delete is [storage.Client.Delete].
func (d *Disks) Delete(ctx context.Context, url string) error {
	dev, fid := parse(url)
	if d.OnDelete != nil {
		if err := d.OnDelete(ctx, dev, fid); err != nil {
			return err
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	at := protocol.FIDOn{FID: fid, Dev: dev}
	_, isShard := d.shards[at]
	if _, ok := d.content[dev][fid]; !ok && !isShard {
		return storage.ErrMissing
	}
	delete(d.shards, at)
	delete(d.content[dev], fid)
	d.deletes++
	return nil
}

// Eventually waits for a condition, for a minute of the test's clock.
func Eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for range 12000 {
		if cond() {
			return
		}
		<-tick.C
	}
	t.Fatalf("not within a minute: %s", what)
}
