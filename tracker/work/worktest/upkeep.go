package worktest

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/schema"
)

// rangeKey names a range that is claimed.
type rangeKey struct {
	sweep schema.Sweep
	first protocol.FID
}

var _ schema.Upkeep = (*Store)(nil)

// SetStatus sets what the database has of a device. One that is not set is
// alive.
func (s *Store) SetStatus(dev protocol.DevID, status string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.status[dev] = status
}

// SetDevCount makes a file's devcount wrong.
func (s *Store) SetDevCount(fid protocol.FID, n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f := s.files[fid]
	f.DevCount = n
	s.files[fid] = f
}

// File is a file's row, with its devices, and whether it is there.
func (s *Store) File(fid protocol.FID) (schema.LocatedFile, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f, ok := s.files[fid]
	return schema.LocatedFile{File: f, Devices: slices.Clone(s.locations[fid])}, ok
}

// Events are the rows of the log.
func (s *Store) Events() []schema.FsckEvent {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.log)
}

// fidSetting is a fid in a setting; what is none is 0.
func (s *Store) fidSetting(field string) protocol.FID {
	n, err := strconv.ParseUint(s.settings[field], 10, 63)
	if err != nil {
		return 0
	}
	return protocol.FID(n)
}

// fids are those of files in a range, ascending.
func (s *Store) fids(first, last protocol.FID) []protocol.FID {
	var fids []protocol.FID
	for fid := range s.files {
		if fid >= first && fid <= last {
			fids = append(fids, fid)
		}
	}
	slices.Sort(fids)
	return fids
}

// located are files with their devices.
func (s *Store) located(fids []protocol.FID) []schema.LocatedFile {
	files := make([]schema.LocatedFile, len(fids))
	for i, fid := range fids {
		files[i] = schema.LocatedFile{File: s.files[fid], Devices: slices.Clone(s.locations[fid])}
	}
	return files
}

// until is when a lease ends that is taken now; last is the one before it.
func until(lease time.Duration, last int64) int64 {
	return max(time.Now().UnixMilli()+lease.Milliseconds(), max(last, -last)+1)
}

// ClaimRange is [schema.Sweeps.ClaimRange], without jitter.
func (s *Store) ClaimRange(ctx context.Context, w schema.Sweep, limit int, lease time.Duration) (schema.Range, bool, error) {
	if err := s.begin(ctx, "ClaimRange"); err != nil {
		return schema.Range{}, false, err
	}
	defer s.mu.Unlock()
	if s.settings[w.Host()] == "" || limit <= 0 {
		return schema.Range{}, false, nil
	}
	var lapsed *schema.Range
	for k, r := range s.ranges {
		if k.sweep == w && r.Until <= time.Now().UnixMilli() && (lapsed == nil || r.First < lapsed.First) {
			lapsed = r
		}
	}
	if lapsed != nil {
		lapsed.Until = until(lease, lapsed.Until)
		return *lapsed, true, nil
	}
	position, last := s.fidSetting(w.Position()), s.fidSetting(w.End())
	if position >= last {
		return schema.Range{}, false, nil
	}
	fids := s.fids(position+1, last)
	if len(fids) >= limit {
		fids = fids[:limit]
		last = fids[limit-1]
	}
	s.settings[w.Position()] = last.String()
	if len(fids) == 0 {
		return schema.Range{}, false, nil
	}
	k := rangeKey{w, position + 1}
	r := &schema.Range{Sweep: w, First: position + 1, Last: last, Files: len(fids)}
	if held := s.ranges[k]; held != nil {
		r.Until = held.Until
	}
	r.Until = until(lease, r.Until)
	s.ranges[k] = r
	return *r, true, nil
}

// heldRange is the range that r is, nil where its lease was lost.
func (s *Store) heldRange(r schema.Range) *schema.Range {
	if held := s.ranges[rangeKey{r.Sweep, r.First}]; held != nil && held.Last == r.Last && held.Until == r.Until {
		return held
	}
	return nil
}

// RenewRange is [schema.Sweeps.RenewRange].
func (s *Store) RenewRange(ctx context.Context, r schema.Range, lease time.Duration) (schema.Range, bool, error) {
	if err := s.begin(ctx, "RenewRange"); err != nil {
		return r, false, err
	}
	defer s.mu.Unlock()
	held := s.heldRange(r)
	if held == nil {
		return r, false, nil
	}
	held.Until = until(lease, held.Until)
	return *held, true, nil
}

// FinishRange is [schema.Sweeps.FinishRange].
func (s *Store) FinishRange(ctx context.Context, r schema.Range, t schema.Tally) (bool, error) {
	if err := s.begin(ctx, "FinishRange"); err != nil {
		return false, err
	}
	defer s.mu.Unlock()
	if s.heldRange(r) == nil {
		return false, nil
	}
	delete(s.ranges, rangeKey{r.Sweep, r.First})
	for field, n := range t.Counters(r.Sweep) {
		s.settings[field] = schema.AddToSetting(s.settings[field], n)
	}
	return true, nil
}

// ReleaseRange is [schema.Sweeps.ReleaseRange].
func (s *Store) ReleaseRange(ctx context.Context, r schema.Range) error {
	if err := s.begin(ctx, "ReleaseRange"); err != nil {
		return err
	}
	defer s.mu.Unlock()
	if held := s.heldRange(r); held != nil {
		held.Until = -held.Until
	}
	return nil
}

// Ranges is [schema.Sweeps.Ranges].
func (s *Store) Ranges(ctx context.Context, w schema.Sweep) (ranges, files int64, err error) {
	if err := s.begin(ctx, "Ranges"); err != nil {
		return 0, 0, err
	}
	defer s.mu.Unlock()
	for k, r := range s.ranges {
		if k.sweep == w {
			ranges++
			files += int64(r.Files)
		}
	}
	return ranges, files, nil
}

// FilesIn is [schema.Sweeps.FilesIn].
func (s *Store) FilesIn(ctx context.Context, first, last protocol.FID, limit int) ([]schema.LocatedFile, error) {
	if err := s.begin(ctx, "FilesIn"); err != nil {
		return nil, err
	}
	defer s.mu.Unlock()
	fids := s.fids(first, last)
	return s.located(fids[:min(max(limit, 0), len(fids))]), nil
}

// Checksums is [schema.Sweeps.Checksums].
func (s *Store) Checksums(ctx context.Context, fids []protocol.FID) (map[protocol.FID]protocol.Checksum, error) {
	if err := s.begin(ctx, "Checksums"); err != nil {
		return nil, err
	}
	defer s.mu.Unlock()
	sums := make(map[protocol.FID]protocol.Checksum)
	for _, fid := range fids {
		if sum, ok := s.sums[fid]; ok {
			sums[fid] = sum
		}
	}
	return sums, nil
}

// Recount is [schema.Sweeps.Recount].
func (s *Store) Recount(ctx context.Context, fids []protocol.FID) ([]protocol.FID, error) {
	if err := s.begin(ctx, "Recount"); err != nil {
		return nil, err
	}
	defer s.mu.Unlock()
	var changed []protocol.FID
	for _, fid := range fids {
		if f, ok := s.files[fid]; ok && f.DevCount != len(s.locations[fid]) {
			f.DevCount = len(s.locations[fid])
			s.files[fid] = f
			changed = append(changed, fid)
		}
	}
	slices.Sort(changed)
	return changed, nil
}

// HighestFID is [schema.Sweeps.HighestFID]: no fid was issued but those that
// files, uploads and locations have.
func (s *Store) HighestFID(ctx context.Context) (inFile, issued protocol.FID, err error) {
	if err := s.begin(ctx, "HighestFID"); err != nil {
		return 0, 0, err
	}
	defer s.mu.Unlock()
	for fid := range s.files {
		inFile = max(inFile, fid)
	}
	issued = inFile
	for fid := range s.locations {
		issued = max(issued, fid)
	}
	for _, t := range s.tempfiles {
		issued = max(issued, t.FID)
	}
	return inFile, issued, nil
}

// QueueFsck is [schema.Sweeps.QueueFsck].
func (s *Store) QueueFsck(ctx context.Context, fids []protocol.FID, delay time.Duration, arg string) error {
	if err := s.begin(ctx, "QueueFsck"); err != nil {
		return err
	}
	defer s.mu.Unlock()
	for _, fid := range fids {
		k := Key{Queue: schema.QueueFsck, FID: fid}
		if !s.insert(k, Row{NextTry: min(now()+int64(delay/time.Second), schema.EndOfTime), Arg: arg}) && arg != "" {
			s.rows[k].Arg = arg
		}
	}
	return nil
}

// insert puts a row into a queue unless one is there, and reports whether it
// did.
func (s *Store) insert(k Key, r Row) bool {
	if s.rows[k] != nil {
		return false
	}
	s.rows[k] = &r
	return true
}

// LogFsck is [schema.FsckLog.LogFsck].
func (s *Store) LogFsck(ctx context.Context, events []schema.FsckEvent) error {
	if err := schema.CheckFsckEvents(events); err != nil {
		return err
	}
	if err := s.begin(ctx, "LogFsck"); err != nil {
		return err
	}
	defer s.mu.Unlock()
	for _, e := range events {
		s.logged++
		e.LogID, e.Time = s.logged, now()
		s.log = append(s.log, e)
	}
	return nil
}

// FsckEvents is [schema.FsckLog.FsckEvents].
func (s *Store) FsckEvents(ctx context.Context, after int64, limit int) ([]schema.FsckEvent, error) {
	if err := s.begin(ctx, "FsckEvents"); err != nil {
		return nil, err
	}
	defer s.mu.Unlock()
	i, _ := slices.BinarySearchFunc(s.log, after+1, func(e schema.FsckEvent, id int64) int { return cmp.Compare(e.LogID, id) })
	rest := s.log[i:]
	return slices.Clone(rest[:min(max(limit, 0), len(rest))]), nil
}

// LastFsckEvent is [schema.FsckLog.LastFsckEvent].
func (s *Store) LastFsckEvent(ctx context.Context) (int64, error) {
	if err := s.begin(ctx, "LastFsckEvent"); err != nil {
		return 0, err
	}
	defer s.mu.Unlock()
	if len(s.log) == 0 {
		return 0, nil
	}
	return s.logged, nil
}

// ClearFsckLog is [schema.FsckLog.ClearFsckLog].
func (s *Store) ClearFsckLog(ctx context.Context) error {
	if err := s.begin(ctx, "ClearFsckLog"); err != nil {
		return err
	}
	defer s.mu.Unlock()
	s.log = nil
	return nil
}

// FoldFsckLog is [schema.FsckLog.FoldFsckLog].
func (s *Store) FoldFsckLog(ctx context.Context) error {
	if err := s.begin(ctx, "FoldFsckLog"); err != nil {
		return err
	}
	defer s.mu.Unlock()
	const processed = "fsck_logid_processed"
	done, _ := strconv.ParseInt(s.settings[processed], 10, 64) // what is no number is 0
	for _, e := range s.log {
		if e.LogID > done {
			field := schema.SweepFsck.Events(e.Code)
			s.settings[field] = schema.AddToSetting(s.settings[field], 1)
			s.settings[processed] = strconv.FormatInt(e.LogID, 10)
		}
	}
	return nil
}

// Reap is [schema.Reaper.Reap].
func (s *Store) Reap(ctx context.Context, dev protocol.DevID, limit int) (int, error) {
	if err := s.begin(ctx, "Reap"); err != nil {
		return 0, err
	}
	defer s.mu.Unlock()
	if s.status[dev] != schema.DeviceDead {
		return 0, fmt.Errorf("reap dev%d: %w", dev, schema.ErrStale)
	}
	fids := s.on(dev)
	fids = fids[:min(max(limit, 0), len(fids))]
	for _, fid := range fids {
		s.remove(fid, dev)
		if _, ok := s.files[fid]; !ok {
			continue
		}
		k := Key{Queue: schema.QueueReplicate, FID: fid}
		at := now() + 1
		if e, ok := s.encodings[fid]; ok {
			at = schema.Urgency(int64(len(s.locations[fid]) - e.K))
		}
		if r := s.rows[k]; !s.insert(k, Row{NextTry: at}) && r.NextTry != 0 && r.NextTry != schema.EndOfTime {
			r.NextTry-- // ends the lease
			if at < schema.Urgencies {
				r.NextTry = min(r.NextTry, at)
			}
		}
	}
	return len(fids), nil
}

// on are the fids recorded on a device, ascending.
func (s *Store) on(dev protocol.DevID) []protocol.FID {
	var fids []protocol.FID
	for fid, devs := range s.locations {
		if slices.Contains(devs, dev) {
			fids = append(fids, fid)
		}
	}
	slices.Sort(fids)
	return fids
}

// CountOn is [schema.Reaper.CountOn].
func (s *Store) CountOn(ctx context.Context, devs []protocol.DevID) (map[protocol.DevID]int64, error) {
	if err := s.begin(ctx, "CountOn"); err != nil {
		return nil, err
	}
	defer s.mu.Unlock()
	counts := make(map[protocol.DevID]int64, len(devs))
	for _, dev := range devs {
		counts[dev] = int64(len(s.on(dev)))
	}
	return counts, nil
}

// BytesOn is [schema.Moves.BytesOn].
func (s *Store) BytesOn(ctx context.Context, devs []protocol.DevID) (map[protocol.DevID]int64, error) {
	if err := s.begin(ctx, "BytesOn"); err != nil {
		return nil, err
	}
	defer s.mu.Unlock()
	sums := make(map[protocol.DevID]int64, len(devs))
	for _, dev := range devs {
		sums[dev] = 0
		for _, fid := range s.on(dev) {
			f := s.files[fid] // of length 0 where it is gone
			k := int64(max(1, s.encodings[fid].K))
			sums[dev] += (f.Length + k - 1) / k
		}
	}
	return sums, nil
}

// UploadsOn is [schema.Uploads.UploadsOn].
func (s *Store) UploadsOn(ctx context.Context, devs []protocol.DevID) (map[protocol.DevID]int64, error) {
	if err := s.begin(ctx, "UploadsOn"); err != nil {
		return nil, err
	}
	defer s.mu.Unlock()
	counts := make(map[protocol.DevID]int64, len(devs))
	for _, dev := range devs {
		counts[dev] = 0
		for _, t := range s.tempfiles {
			if slices.Contains(t.DevIDs, dev) {
				counts[dev]++
			}
		}
	}
	return counts, nil
}

// FilesOn is [schema.Moves.FilesOn].
func (s *Store) FilesOn(ctx context.Context, dev protocol.DevID, after protocol.FID, newest bool, limit int) ([]schema.LocatedFile, error) {
	if err := s.begin(ctx, "FilesOn"); err != nil {
		return nil, err
	}
	defer s.mu.Unlock()
	fids := slices.DeleteFunc(s.on(dev), func(fid protocol.FID) bool {
		_, ok := s.files[fid]
		if newest {
			return !ok || after != 0 && fid >= after
		}
		return !ok || fid <= after
	})
	if newest {
		slices.Reverse(fids)
	}
	return s.located(fids[:min(max(limit, 0), len(fids))]), nil
}

// QueueMoves is [schema.Moves.QueueMoves].
func (s *Store) QueueMoves(ctx context.Context, moves []schema.Move, change schema.SettingsChange) error {
	if err := s.begin(ctx, "QueueMoves"); err != nil {
		return err
	}
	defer s.mu.Unlock()
	if err := s.change(change); err != nil {
		return err
	}
	for _, m := range moves {
		s.insert(Key{Queue: schema.QueueRebalance, FID: m.FID}, Row{From: m.From, Arg: m.Targets(), NextTry: now()})
	}
	return nil
}

// ChangeSettings is [schema.SettingsChanger.ChangeSettings].
func (s *Store) ChangeSettings(ctx context.Context, change schema.SettingsChange) error {
	if err := s.begin(ctx, "ChangeSettings"); err != nil {
		return err
	}
	defer s.mu.Unlock()
	return s.change(change)
}

func (s *Store) change(c schema.SettingsChange) error {
	if !c.Holds(s.settings) {
		return schema.ErrStale
	}
	maps.DeleteFunc(s.ranges, func(k rangeKey, _ *schema.Range) bool { return k.sweep == c.Forget })
	for field, value := range c.Set {
		s.set(field, value)
	}
	return nil
}

func (s *Store) set(field string, value *string) {
	if value == nil {
		delete(s.settings, field)
	} else {
		s.settings[field] = *value
	}
}

// Setting is [schema.Settings.Setting].
func (s *Store) Setting(ctx context.Context, field string) (string, bool, error) {
	if err := s.begin(ctx, "Setting"); err != nil {
		return "", false, err
	}
	defer s.mu.Unlock()
	value, ok := s.settings[field]
	return value, ok, nil
}

// Settings is [schema.Settings.Settings].
func (s *Store) Settings(ctx context.Context) (map[string]string, error) {
	if err := s.begin(ctx, "Settings"); err != nil {
		return nil, err
	}
	defer s.mu.Unlock()
	return maps.Clone(s.settings), nil
}

// SetSetting is [schema.Settings.SetSetting].
func (s *Store) SetSetting(ctx context.Context, field string, value *string) error {
	if err := s.begin(ctx, "SetSetting"); err != nil {
		return err
	}
	defer s.mu.Unlock()
	s.set(field, value)
	return nil
}

// IncrementSetting is [schema.Settings.IncrementSetting].
func (s *Store) IncrementSetting(ctx context.Context, field string) error {
	if err := s.begin(ctx, "IncrementSetting"); err != nil {
		return err
	}
	defer s.mu.Unlock()
	s.settings[field] = schema.AddToSetting(s.settings[field], 1)
	return nil
}

// QueueReplication is [schema.Queues.QueueReplication].
func (s *Store) QueueReplication(ctx context.Context, fids []protocol.FID, from protocol.DevID, delay time.Duration) error {
	if err := s.begin(ctx, "QueueReplication"); err != nil {
		return err
	}
	defer s.mu.Unlock()
	at := int64(0)
	if delay > 0 {
		at = min(now()+int64(delay/time.Second), schema.EndOfTime)
	}
	s.queue(fids, from, at)
	return nil
}

// QueueShards is [schema.Queues.QueueShards].
func (s *Store) QueueShards(ctx context.Context, fids []protocol.FID, spare int64) error {
	if err := s.begin(ctx, "QueueShards"); err != nil {
		return err
	}
	defer s.mu.Unlock()
	s.queue(fids, 0, schema.Urgency(spare))
	return nil
}

// queue has fids due at the earlier of the time they have and at, without a lease.
// The caller holds mu.
func (s *Store) queue(fids []protocol.FID, from protocol.DevID, at int64) {
	for _, fid := range fids {
		k := Key{Queue: schema.QueueReplicate, FID: fid}
		r := s.rows[k]
		if s.insert(k, Row{From: from, NextTry: at}) {
			continue
		}
		r.From = cmp.Or(from, r.From)
		switch {
		case at < r.NextTry:
			r.NextTry = at
		case r.NextTry >= schema.Urgencies && r.NextTry != schema.EndOfTime:
			r.NextTry-- // ends the lease
		}
	}
}

// QueueLengths is [schema.Queues.QueueLengths].
func (s *Store) QueueLengths(ctx context.Context) (map[schema.Queue]int64, error) {
	if err := s.begin(ctx, "QueueLengths"); err != nil {
		return nil, err
	}
	defer s.mu.Unlock()
	lengths := make(map[schema.Queue]int64)
	for k := range s.rows {
		lengths[k.Queue]++
	}
	return lengths, nil
}
