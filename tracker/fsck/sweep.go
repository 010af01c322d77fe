package fsck

import (
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/schema"
)

// Settings that trackers read; clients may write them.
const (
	// SettingScrubDays is the time, in days, within which all content is verified
	// once; absent or 0: never by itself.
	SettingScrubDays = "scrub_days"
	// SettingBandwidth is how much content is read by all trackers together, in
	// bytes a second; absent or 0: as fast as devices read.
	SettingBandwidth = "scrub_bandwidth"
	// SettingChecksum is MogileFS's, see [Mode].
	SettingChecksum = "fsck_checksum"

	settingRate = "queue_rate_for_fsck"
	settingSize = "queue_size_for_fsck"
)

// The settings of a sweep beside those that [schema.Sweep] names. Those of fsck
// are MogileFS 2.73's, but for the last two.
func startTime(s schema.Sweep) string  { return string(s) + "_start_time" }
func stopTime(s schema.Sweep) string   { return string(s) + "_stop_time" }
func startFID(s schema.Sweep) string   { return string(s) + "_start_fid" }
func policyOnly(s schema.Sweep) string { return string(s) + "_opt_policy_only" }
func startFiles(s schema.Sweep) string { return string(s) + "_start_fids_checked" }
func startBytes(s schema.Sweep) string { return string(s) + "_start_bytes_checked" }

const (
	fsckStartLog  = "fsck_start_maxlogid"
	fsckFoldedLog = "fsck_logid_processed"
	// scrubPaced is there while the round is one of those that [SettingScrubDays]
	// asks for.
	scrubPaced = "scrub_opt_paced"
)

// Books reports whether a setting is one in which sweeps keep their books: they
// are not shown among the settings, nor can clients write them.
func Books(key string) bool {
	switch key {
	case SettingChecksum, SettingScrubDays, SettingBandwidth:
		return false
	}
	return strings.HasPrefix(key, "fsck_") || strings.HasPrefix(key, "scrub_")
}

// State is how far a sweep is, by its settings. Numbers are 0 where nothing is
// stored.
type State struct {
	Sweep      schema.Sweep
	Host       string // the tracker that started it, empty while it does not run
	PolicyOnly bool   // of fsck
	Paced      bool   // of scrub: spread over the days of [SettingScrubDays]

	Position protocol.FID // every fid up to here was claimed
	First    protocol.FID // the position when it was last started
	End      protocol.FID // the last fid to visit

	StartTime, StopTime int64 // seconds since 1970
	Files, Bytes        int64 // checked
	StartFiles          int64 // Files when it was last started
	StartBytes          int64
	Events              map[string]int64 // by code
}

// StateOf reads a sweep's state from all settings.
func StateOf(s schema.Sweep, settings map[string]string) State {
	number := func(key string) int64 { return max(0, protocol.Number(settings[key])) }
	st := State{
		Sweep: s, Host: settings[s.Host()],
		PolicyOnly: protocol.Truthy(settings[policyOnly(s)]),
		Paced:      s == schema.SweepScrub && protocol.Truthy(settings[scrubPaced]),
		Position:   protocol.FID(number(s.Position())),
		First:      protocol.FID(number(startFID(s))),
		End:        protocol.FID(number(s.End())),
		StartTime:  number(startTime(s)), StopTime: number(stopTime(s)),
		Files: number(s.Checked()), Bytes: number(s.Bytes()),
		StartFiles: number(startFiles(s)), StartBytes: number(startBytes(s)),
		Events: make(map[string]int64),
	}
	prefix := s.Events("")
	for key := range settings {
		if code, ok := strings.CutPrefix(key, prefix); ok {
			st.Events[code] = number(key)
		}
	}
	return st
}

// Running reports whether the sweep has been started, and neither stopped nor
// finished.
func (st State) Running() bool { return st.Host != "" }

// Claimed reports whether there is no more to claim: it is done when the ranges
// that are claimed are finished.
func (st State) Claimed() bool { return st.Position >= st.End }

// fresh reports whether the next start begins a new run: the last one went to
// its end, or there was none.
func (st State) fresh() bool { return st.End == 0 || st.Position != 0 && st.Claimed() }

// paused reports whether a run was stopped before its end.
func (st State) paused() bool { return !st.Running() && !st.fresh() }

// Facts are what changes of a sweep's state are decided on.
type Facts struct {
	Settings map[string]string // all
	Now      time.Time         // the database's
	Highest  protocol.FID      // of the files there are
	LastLog  int64             // the highest number in fsck_log
}

func (f Facts) state(s schema.Sweep) State { return StateOf(s, f.Settings) }

// change begins a change that holds only if the named settings are as in f.
func (f Facts) change(expect ...string) schema.SettingsChange {
	c := schema.SettingsChange{Expect: make(map[string]*string), Set: make(map[string]*string)}
	for _, key := range expect {
		c.Expect[key] = nil
		if value, ok := f.Settings[key]; ok {
			c.Expect[key] = &value
		}
	}
	return c
}

func text(c schema.SettingsChange, key, value string) { c.Set[key] = &value }

func number[N ~int64 | ~uint64](c schema.SettingsChange, key string, n N) {
	text(c, key, strconv.FormatInt(int64(n), 10))
}

func remove(c schema.SettingsChange, keys ...string) {
	for _, key := range keys {
		c.Set[key] = nil
	}
}

// The refusals of commands, MogileFS's but for the last two.
var (
	errFsckRunning  = &protocol.Error{Code: "fsck_running", Text: "fsck is already running"}
	errRebalRunning = &protocol.Error{Code: "rebal_running", Text: "rebalance running; cannot run fsck at same time"}
	errScrubRunning = &protocol.Error{Code: "scrub_running", Text: "scrub is already running"}
	errNoDays       = &protocol.Error{Code: "no_scrub_days", Text: "scrub_days is not set: there is no pace to keep"}
)

// rebalHost is there while a rebalance runs.
const rebalHost = "rebal_host"

// newRun has counters begin at nothing, and the run end at the highest file that
// there is now. The position stays.
func (f Facts) newRun(s schema.Sweep, c schema.SettingsChange) {
	remove(c, startTime(s), stopTime(s), s.Bytes(), startFiles(s), startBytes(s))
	number(c, s.Checked(), int64(0))
	number(c, s.End(), f.Highest)
	for key := range f.Settings {
		if strings.HasPrefix(key, s.Events("")) {
			remove(c, key)
		}
	}
	if s == schema.SweepFsck {
		number(c, fsckStartLog, f.LastLog)
		number(c, fsckFoldedLog, f.LastLog)
	}
}

// started has a sweep run from position on.
func (f Facts) started(s schema.Sweep, c schema.SettingsChange, name string, position protocol.FID) {
	st := f.state(s)
	number(c, startTime(s), f.Now.Unix())
	remove(c, stopTime(s))
	number(c, startFID(s), position)
	text(c, s.Host(), name)
	if _, again := c.Set[s.Checked()]; !again {
		number(c, startFiles(s), st.Files)
		number(c, startBytes(s), st.Bytes)
	}
}

// StartFsck starts fsck, or lets it go on where it was stopped. After a run
// that went to its end it checks what came since, as in MogileFS 2.73.
func (f Facts) StartFsck(name string) (schema.SettingsChange, error) {
	s := schema.SweepFsck
	switch {
	case f.Settings[s.Host()] != "":
		return schema.SettingsChange{}, errFsckRunning
	case f.Settings[rebalHost] != "":
		return schema.SettingsChange{}, errRebalRunning
	}
	st := f.state(s)
	c := f.change(s.Host(), rebalHost, s.Position(), s.End(), fsckFoldedLog)
	if st.fresh() {
		f.newRun(s, c)
	}
	f.started(s, c, name, st.Position)
	return c, nil
}

// Stop stops a sweep; its position is kept.
func (f Facts) Stop(s schema.Sweep) schema.SettingsChange {
	c := f.change(s.Host())
	remove(c, s.Host())
	number(c, stopTime(s), f.Now.Unix())
	return c
}

// ResetFsck sets fsck's position, and forgets what the last run found, and the
// ranges that were claimed and not finished: their files would be counted twice.
func (f Facts) ResetFsck(policy bool, position protocol.FID) schema.SettingsChange {
	s := schema.SweepFsck
	c := f.change(fsckFoldedLog)
	remove(c, policyOnly(s))
	if policy {
		text(c, policyOnly(s), "1")
	}
	number(c, s.Position(), position)
	c.Forget = s
	f.newRun(s, c)
	return c
}

// ScrubStart says how a scrub is to be started.
type ScrubStart struct {
	Name  string // of the tracker
	Again bool   // begin at the first file, where else one that was stopped would go on
	Paced bool   // spread over the days of [SettingScrubDays]
}

// StartScrub starts a scrub. One that was stopped goes on. One that runs at the
// pace of [SettingScrubDays] gives way to one that begins at the first file and
// runs as fast as it can.
func (f Facts) StartScrub(start ScrubStart) (schema.SettingsChange, error) {
	s := schema.SweepScrub
	st := f.state(s)
	switch {
	case st.Running() && (!st.Paced || start.Paced):
		return schema.SettingsChange{}, errScrubRunning
	case start.Paced && ScrubPeriod(f.Settings) == 0:
		return schema.SettingsChange{}, errNoDays
	}
	again := start.Again || !st.paused()
	expect := []string{s.Host(), startTime(s), s.End(), scrubPaced}
	if !again {
		expect = append(expect, s.Position()) // that of one that runs changes all the time
	}
	c := f.change(expect...)
	if again {
		f.newRun(s, c)
		st.Position = 0
		number(c, s.Position(), st.Position)
		c.Forget = s
	}
	f.started(s, c, start.Name, st.Position)
	remove(c, scrubPaced)
	if start.Paced {
		text(c, scrubPaced, "1")
	}
	return c, nil
}

// Finish ends a sweep all of whose ranges are finished.
func (f Facts) Finish(s schema.Sweep) schema.SettingsChange {
	c := f.change(s.Host(), s.Position(), s.End(), startTime(s))
	remove(c, s.Host())
	number(c, s.Position(), f.state(s).Position)
	number(c, stopTime(s), f.Now.Unix())
	return c
}

// ScrubPeriod is the time within which all content is to be verified once, 0
// where that is not asked for.
func ScrubPeriod(settings map[string]string) time.Duration {
	days, err := strconv.ParseFloat(settings[SettingScrubDays], 64)
	if err != nil || !(days > 0 && days <= MaxScrubDays) {
		return 0
	}
	return time.Duration(days * 24 * float64(time.Hour))
}

// MaxScrubDays bounds [SettingScrubDays].
const MaxScrubDays = 3650

// dueRound reports whether a paced round is to begin: the last one went to its
// end, and its time is over. What was stopped stays so until it is started
// again.
func (st State) dueRound(period time.Duration, now time.Time) bool {
	switch {
	case period <= 0 || st.Running() || st.paused():
		return false
	case st.StartTime == 0 || !st.Paced:
		return true
	}
	return !now.Before(time.Unix(st.StartTime, 0).Add(period))
}

// catchUp is how many times faster than on average a paced round may go to make
// up for time that was lost.
const catchUp = 10

// pace is how long a paced round takes for n fids, so that it ends with its
// period: what is left is spread over the time that is left.
func (st State) pace(n int64, period time.Duration, now time.Time) time.Duration {
	whole := float64(st.End) - float64(st.First)
	left := float64(st.End) - float64(st.Position)
	if n <= 0 || whole <= 0 {
		return 0
	}
	each := float64(time.Unix(st.StartTime, 0).Add(period).Sub(now)) / max(left, 1)
	each = max(each, float64(period)/whole/catchUp)
	return time.Duration(min(each*float64(n), float64(period)))
}

// paceFiles is how many files a paced round should claim at a time: about as
// many as are due in a minute, so that small clusters are not read in one go.
func (st State) paceFiles(period time.Duration, now time.Time) int {
	each := st.pace(1, period, now)
	if each <= 0 {
		return maxRange
	}
	return int(min(max(time.Minute/each, 1), maxRange))
}

// rateOf is a limit in files a second, 0 for none.
func rateOf(settings map[string]string) float64 {
	return float64(max(0, protocol.Number(settings[settingRate])))
}

// defaultQueueSize is how many fids MogileFS 2.73 has waiting for fsck at most.
const defaultQueueSize = 20000

// queueSize is how many files may be claimed and unfinished, or wait to be
// checked again, and whether somebody set that.
func queueSize(settings map[string]string) (size int64, set bool) {
	if n := protocol.Number(settings[settingSize]); n > 0 {
		return n, true
	}
	return defaultQueueSize, false
}

// bandwidth is [SettingBandwidth]'s share of one of some trackers, in bytes a
// second; +Inf for no limit.
func bandwidth(settings map[string]string, trackers int) float64 {
	n := protocol.Number(settings[SettingBandwidth])
	if n <= 0 {
		return math.Inf(1)
	}
	return float64(n) / float64(max(1, trackers))
}

// Codes are the codes of events, sorted.
func (st State) Codes() []string { return slices.Sorted(maps.Keys(st.Events)) }
