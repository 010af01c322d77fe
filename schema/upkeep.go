package schema

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/mogile/mogile/protocol"
)

// Upkeep is what fsck, scrub, the reaper, rebalance and drains ask of a store
// beside what all workers do.
type Upkeep interface {
	Sweeps
	FsckLog
	Reaper
	Moves
	SettingsChanger
}

// Sweep names a walk over all files in ascending order of their fids. Its state
// is in server_settings, under names that begin with its own:
//
//	<sweep>_host                 set while the sweep runs
//	<sweep>_highest_fid_checked  every fid up to here was claimed
//	<sweep>_fid_at_end           the last fid to visit
//	<sweep>_fids_checked         files of the ranges that were finished
//	<sweep>_bytes_checked        bytes of content that were read for them
//	<sweep>_sum_evcount_<CODE>   events of the ranges that were finished
//
// Those of [SweepFsck] are MogileFS 2.73's, but for the bytes. Its events are
// not those of ranges: [FsckLog.FoldFsckLog] counts them from the log, where
// other trackers' and those of files checked later are too.
type Sweep string

// The sweeps.
const (
	SweepFsck  Sweep = "fsck"
	SweepScrub Sweep = "scrub"
)

// What follows are the names of a sweep's settings.

// Host is that of the setting which is there while the sweep runs.
func (s Sweep) Host() string { return string(s) + "_host" }

// Position is that of the setting which says how far the sweep is claimed.
func (s Sweep) Position() string { return string(s) + "_highest_fid_checked" }

// End is that of the setting with the last fid to visit.
func (s Sweep) End() string { return string(s) + "_fid_at_end" }

// Checked is that of the setting which counts files.
func (s Sweep) Checked() string { return string(s) + "_fids_checked" }

// Bytes is that of the setting which counts bytes.
func (s Sweep) Bytes() string { return string(s) + "_bytes_checked" }

// Events is that of the setting which counts events of one code.
func (s Sweep) Events(code string) string { return string(s) + "_sum_evcount_" + code }

// Range is a leased run of fids, First to Last inclusive. Those between that
// have no file row are skipped by whoever works on it. Until is the lease's
// token: its end by the database's clock, in ms since 1970.
type Range struct {
	Sweep       Sweep
	First, Last protocol.FID
	Files       int // file rows in it when it was first claimed
	Until       int64
}

// Sweeps are walks over all files that any number of trackers share.
type Sweeps interface {
	// ClaimRange leases the next run of at most limit files of a running sweep:
	// one whose lease has ended before new ones. It reports false where there is
	// nothing to claim: the sweep does not run, or all of it is claimed or
	// finished. The range is on disk before the position is moved past it, so
	// that a crash loses none. Leases end up to a tenth later than asked for, so
	// that those of a crashed tracker do not all return at once. Where no file is
	// left the position moves to the end; with it there and no ranges, the sweep
	// is done. A range that begins where one is still held (the position was set
	// back) takes its place.
	ClaimRange(ctx context.Context, s Sweep, limit int, lease time.Duration) (Range, bool, error)
	// RenewRange extends the lease; it reports false, and changes nothing, where
	// it has been lost.
	RenewRange(ctx context.Context, r Range, lease time.Duration) (Range, bool, error)
	// FinishRange forgets a range that is still held and adds what was found to
	// the sweep's counters, in one transaction; but for the events of
	// [SweepFsck], which FoldFsckLog counts. It reports false, and changes
	// nothing, where the lease has been lost.
	FinishRange(ctx context.Context, r Range, t Tally) (bool, error)
	// ReleaseRange gives a range back, to be claimed again at once.
	ReleaseRange(ctx context.Context, r Range) error
	// Ranges counts the ranges of the sweep that are claimed and not finished, and
	// the files in them.
	Ranges(ctx context.Context, s Sweep) (ranges, files int64, err error)
	// FilesIn lists the files of a range ascending by fid, with their devices.
	FilesIn(ctx context.Context, first, last protocol.FID, limit int) ([]LocatedFile, error)
	// Checksums are those stored for fids; fids without one are left out.
	Checksums(ctx context.Context, fids []protocol.FID) (map[protocol.FID]protocol.Checksum, error)
	// Recount corrects devcount of fids where it differs from the number of
	// locations, and returns those it corrected.
	Recount(ctx context.Context, fids []protocol.FID) ([]protocol.FID, error)
	// HighestFID is the highest fid of table file, 0 where it is empty, and the
	// highest fid that was ever issued, as far as the database knows.
	HighestFID(ctx context.Context) (inFile, issued protocol.FID, err error)
	// QueueFsck enters fids in file_to_queue for fsck, due after delay, with the
	// argument "" or [FsckContent]. Those that are there already stay as they are,
	// but for FsckContent, which they get; a worker that has one leased may not see
	// that.
	QueueFsck(ctx context.Context, fids []protocol.FID, delay time.Duration, arg string) error
}

// Tally is what checking some files brought.
type Tally struct {
	Files  int64 // checked
	Bytes  int64 // of content read
	Events map[string]int64
}

// FsckEvent is a row of fsck_log.
type FsckEvent struct {
	LogID int64           // given by the database
	Time  int64           // seconds since 1970, given by the database
	FID   protocol.FID    // 0 for NULL
	Code  string          // four characters
	DevID *protocol.DevID // nil for NULL
}

// FsckLog is table fsck_log.
type FsckLog interface {
	// LogFsck appends events.
	LogFsck(ctx context.Context, events []FsckEvent) error
	// FsckEvents lists up to limit rows with a LogID above after, ascending.
	FsckEvents(ctx context.Context, after int64, limit int) ([]FsckEvent, error)
	// LastFsckEvent is the highest LogID, 0 where the table is empty.
	LastFsckEvent(ctx context.Context) (int64, error)
	// ClearFsckLog deletes all rows.
	ClearFsckLog(ctx context.Context) error
	// FoldFsckLog adds rows above the setting fsck_logid_processed to the
	// settings fsck_sum_evcount_<CODE> and moves it to the last of them, in one
	// transaction that excludes others doing the same. Rows beside which lower
	// ones are still being written wait for the next time.
	FoldFsckLog(ctx context.Context) error
}

// Reaper takes files off dead devices.
type Reaper interface {
	// Reap takes up to limit files off dev, lowest fids first, in one
	// transaction: each that has a file row is queued for replication, due after
	// a second (rows that are queued already stay, but lose their lease, whose
	// worker may not know yet that the device is dead), one that is kept in shards
	// by its [Urgency] instead, its location goes from
	// file_on, and its devcount is counted anew unless skip_devcount is on. It
	// returns how many locations went; 0 means that the device is empty. A
	// device that is not dead, by the database, is left alone, with ErrStale.
	Reap(ctx context.Context, dev protocol.DevID, limit int) (int, error)
	// CountOn counts the files recorded on each of devs.
	CountOn(ctx context.Context, devs []protocol.DevID) (map[protocol.DevID]int64, error)
}

// Move asks for a file's copy on From to be put elsewhere: a row of
// file_to_queue for rebalance.
type Move struct {
	FID  protocol.FID
	From protocol.DevID
	To   []protocol.DevID // permitted destinations; empty: any
}

// Moves are what rebalance and drains queue.
type Moves interface {
	// FilesOn lists up to limit files recorded on dev: with fids above after,
	// ascending, or where newest is set with fids below after (0: all),
	// descending.
	FilesOn(ctx context.Context, dev protocol.DevID, after protocol.FID, newest bool, limit int) ([]LocatedFile, error)
	// BytesOn sums up the lengths of the files recorded on each of devs, and of those
	// that are kept in shards a k-th part. It reads all of their rows.
	BytesOn(ctx context.Context, devs []protocol.DevID) (map[protocol.DevID]int64, error)
	// QueueMoves enters moves in file_to_queue, due at once, and makes a change
	// of settings, in one transaction. Fids that are queued already keep their row.
	// Where the settings are not as expected nothing is done, and the error
	// matches ErrStale. See [SettingsChanger].
	QueueMoves(ctx context.Context, moves []Move, change SettingsChange) error
}

// SettingsChange is a change of several settings at once, made only if all of
// Expect holds. nil is a setting that is not there.
type SettingsChange struct {
	Expect, Set map[string]*string
	// Forget is the sweep whose ranges are forgotten with the change, those that
	// are held too; empty: none. The change must set the sweep's position: claims
	// wait for that.
	Forget Sweep
}

// SettingsChanger changes settings that belong together.
type SettingsChanger interface {
	// ChangeSettings applies change in one transaction, or returns an error
	// matching ErrStale and changes nothing where what it expects does not hold.
	ChangeSettings(ctx context.Context, change SettingsChange) error
}

// Counters are what finishing a range of s adds to its settings.
func (t Tally) Counters(s Sweep) map[string]int64 {
	sums := map[string]int64{s.Checked(): t.Files}
	if t.Bytes != 0 {
		sums[s.Bytes()] = t.Bytes
	}
	if s != SweepFsck {
		for code, n := range t.Events {
			sums[s.Events(code)] = n
		}
	}
	return sums
}

// AddToSetting adds n to a setting's value; one that is not a number of up to 18
// digits counts as 0.
func AddToSetting(value string, n int64) string {
	digits := strings.TrimPrefix(value, "-")
	was, err := strconv.ParseInt(value, 10, 64)
	if err != nil || len(digits) > 18 || digits[0] == '+' {
		was = 0
	}
	return strconv.FormatInt(was+n, 10)
}

// Holds reports whether settings are as expected.
func (c SettingsChange) Holds(settings map[string]string) bool {
	for field, want := range c.Expect {
		if got, there := settings[field]; there != (want != nil) || there && got != *want {
			return false
		}
	}
	return true
}

// Fields are the settings that the change is about, in ascending order: that in
// which their rows are locked.
func (c SettingsChange) Fields() []string {
	fields := slices.AppendSeq(slices.Collect(maps.Keys(c.Expect)), maps.Keys(c.Set))
	slices.Sort(fields)
	return slices.Compact(fields)
}

// Targets are the permitted destinations as file_to_queue.arg has them.
func (m Move) Targets() string {
	words := make([]string, len(m.To))
	for i, dev := range m.To {
		words[i] = dev.String()
	}
	return strings.Join(words, ",")
}

// eventCodeLength is the width of fsck_log.evcode.
const eventCodeLength = 4

// CheckFsckEvents returns an error where the log could not hold an event.
func CheckFsckEvents(events []FsckEvent) error {
	for _, e := range events {
		plain := strings.IndexFunc(e.Code, func(r rune) bool { return r <= ' ' || r > '~' }) < 0
		if len(e.Code) != eventCodeLength || !plain {
			return fmt.Errorf("event %q of fid %d: its code must have %d characters", e.Code, e.FID, eventCodeLength)
		}
	}
	return nil
}

// ErrLastCopy is matched where a bad copy is the only one that is recorded: it
// stays, however bad.
var ErrLastCopy = errors.New("it is the only copy")

// CheckBad returns an error matching [ErrLastCopy] where seen has no device
// beside dev.
func CheckBad(fid protocol.FID, dev protocol.DevID, seen []protocol.DevID) error {
	if slices.ContainsFunc(seen, func(d protocol.DevID) bool { return d != dev }) {
		return nil
	}
	return fmt.Errorf("bad copy of fid %d on dev%d: %w", fid, dev, ErrLastCopy)
}
