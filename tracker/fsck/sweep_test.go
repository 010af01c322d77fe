package fsck

import (
	"errors"
	"maps"
	"strconv"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/schema"
)

type values = map[string]string

// at is the clock of these tests.
var at = time.Unix(1_700_000_000, 0)

func factsOf(settings values) Facts {
	return Facts{Settings: settings, Now: at, Highest: 5000, LastLog: 17}
}

// apply makes a change, which must hold.
func apply(t *testing.T, settings values, c schema.SettingsChange) values {
	t.Helper()
	if !c.Holds(settings) {
		t.Fatalf("the change does not hold where it was decided: %v", c.Expect)
	}
	after := maps.Clone(settings)
	for key, value := range c.Set {
		if value == nil {
			delete(after, key)
		} else {
			after[key] = *value
		}
	}
	return after
}

func TestStartFsck(t *testing.T) {
	t.Parallel()
	ran := values{"fsck_sum_evcount_POVI": "3", "fsck_bytes_checked": "99", "fsck_fids_checked": "900", "fsck_logid_processed": "12", "fsck_stop_time": "1"}
	with := func(more values) values {
		all := maps.Clone(ran)
		maps.Copy(all, more)
		return all
	}
	fresh := values{
		"fsck_host": "t1", "fsck_start_time": "1700000000", "fsck_fid_at_end": "5000", "fsck_fids_checked": "0",
		"fsck_start_maxlogid": "17", "fsck_logid_processed": "17",
	}
	freshAt := func(position string, more values) values {
		all := maps.Clone(fresh)
		all["fsck_start_fid"] = position
		maps.Copy(all, more)
		return all
	}
	for _, c := range []struct {
		name   string
		before values
		want   values
		err    error
	}{
		{"never ran", values{}, freshAt("0", nil), nil},
		{"runs", values{"fsck_host": "perl1"}, nil, errFsckRunning},
		{"rebalance runs", values{"rebal_host": "perl1"}, nil, errRebalRunning},
		{"both run", values{"fsck_host": "t2", "rebal_host": "t2"}, nil, errFsckRunning},
		{"went to its end: what is newer", with(values{"fsck_highest_fid_checked": "4000", "fsck_fid_at_end": "4000"}), freshAt("4000", values{"fsck_highest_fid_checked": "4000"}), nil},
		{"was reset", values{"fsck_highest_fid_checked": "0", "fsck_fid_at_end": "4000", "fsck_fids_checked": "0"}, values{
			"fsck_host": "t1", "fsck_start_time": "1700000000", "fsck_start_fid": "0", "fsck_highest_fid_checked": "0",
			"fsck_fid_at_end": "4000", "fsck_fids_checked": "0", "fsck_start_fids_checked": "0", "fsck_start_bytes_checked": "0",
		}, nil},
		{"was stopped", with(values{"fsck_highest_fid_checked": "1000", "fsck_fid_at_end": "4000", "fsck_opt_policy_only": "1"}), values{
			"fsck_host": "t1", "fsck_start_time": "1700000000", "fsck_start_fid": "1000", "fsck_highest_fid_checked": "1000", "fsck_opt_policy_only": "1",
			"fsck_fid_at_end": "4000", "fsck_fids_checked": "900", "fsck_bytes_checked": "99", "fsck_start_fids_checked": "900", "fsck_start_bytes_checked": "99",
			"fsck_sum_evcount_POVI": "3", "fsck_logid_processed": "12",
		}, nil},
		{"numbers that are none", values{"fsck_highest_fid_checked": "x", "fsck_fid_at_end": "-5"}, freshAt("0", values{"fsck_highest_fid_checked": "x"}), nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			change, err := factsOf(c.before).StartFsck("t1")
			if !errors.Is(err, c.err) {
				t.Fatalf("error %v; want %v", err, c.err)
			}
			if err != nil {
				return
			}
			if diff := cmp.Diff(c.want, apply(t, c.before, change)); diff != "" {
				t.Errorf("settings (-want +got):\n%s", diff)
			}
			for _, other := range []values{{"fsck_host": "t2"}, {"rebal_host": "t2"}} {
				now := maps.Clone(c.before)
				maps.Copy(now, other)
				if change.Holds(now) {
					t.Errorf("it would start beside %v", other)
				}
			}
		})
	}
}

func TestStopResetFinish(t *testing.T) {
	t.Parallel()
	running := values{
		"fsck_host": "t1", "fsck_start_time": "1699999000", "fsck_highest_fid_checked": "4000", "fsck_fid_at_end": "4000", "fsck_fids_checked": "2000",
		"fsck_sum_evcount_MISS": "2", "fsck_logid_processed": "9", "fsck_opt_policy_only": "1", "fsck_checksum": "MD5",
	}
	without := func(key string, more values) values {
		all := maps.Clone(running)
		delete(all, key)
		maps.Copy(all, more)
		return all
	}
	for _, c := range []struct {
		name   string
		before values
		change func(Facts) schema.SettingsChange
		want   values
	}{
		{"stop", running, func(f Facts) schema.SettingsChange { return f.Stop(schema.SweepFsck) }, without("fsck_host", values{"fsck_stop_time": "1700000000"})},
		{"stop what does not run", values{}, func(f Facts) schema.SettingsChange { return f.Stop(schema.SweepFsck) }, values{"fsck_stop_time": "1700000000"}},
		{"finish", running, func(f Facts) schema.SettingsChange { return f.Finish(schema.SweepFsck) }, without("fsck_host", values{"fsck_stop_time": "1700000000"})},
		{"reset", running, func(f Facts) schema.SettingsChange { return f.ResetFsck(false, 0) }, values{
			"fsck_host": "t1", "fsck_highest_fid_checked": "0", "fsck_fid_at_end": "5000", "fsck_fids_checked": "0",
			"fsck_start_maxlogid": "17", "fsck_logid_processed": "17", "fsck_checksum": "MD5",
		}},
		{"reset for policies", values{}, func(f Facts) schema.SettingsChange { return f.ResetFsck(true, 3000) }, values{
			"fsck_highest_fid_checked": "3000", "fsck_fid_at_end": "5000", "fsck_fids_checked": "0", "fsck_opt_policy_only": "1",
			"fsck_start_maxlogid": "17", "fsck_logid_processed": "17",
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if diff := cmp.Diff(c.want, apply(t, c.before, c.change(factsOf(c.before)))); diff != "" {
				t.Errorf("settings (-want +got):\n%s", diff)
			}
		})
	}
	finish := factsOf(running).Finish(schema.SweepFsck)
	for key, value := range (values{"fsck_host": "t2", "fsck_highest_fid_checked": "0", "fsck_fid_at_end": "9000", "fsck_start_time": "1"}) {
		if finish.Holds(without("", values{key: value})) {
			t.Errorf("it would be ended although %s is another", key)
		}
	}
	if finish.Holds(without("fsck_host", nil)) {
		t.Error("it would be ended twice")
	}
}

func TestStartScrub(t *testing.T) {
	t.Parallel()
	state := func(host, position, paced string) values {
		v := values{"scrub_highest_fid_checked": position, "scrub_fid_at_end": "4000", "scrub_start_time": "1699990000", "scrub_fids_checked": "7", "scrub_days": "10"}
		if host != "" {
			v["scrub_host"] = host
		}
		if paced != "" {
			v["scrub_opt_paced"] = paced
		}
		return v
	}
	for _, c := range []struct {
		name     string
		before   values
		start    ScrubStart
		position string // after
		end      string
		paced    bool
		err      error
	}{
		{name: "never ran", before: values{}, position: "0", end: "5000"},
		{name: "went to its end", before: state("", "4000", ""), position: "0", end: "5000"},
		{name: "was stopped", before: state("", "100", ""), position: "100", end: "4000"},
		{name: "was stopped, again", before: state("", "100", ""), start: ScrubStart{Again: true}, position: "0", end: "5000"},
		{name: "paced was stopped", before: state("", "100", "1"), position: "100", end: "4000"},
		{name: "paced goes on", before: state("", "100", "1"), start: ScrubStart{Paced: true}, position: "100", end: "4000", paced: true},
		{name: "runs", before: state("t2", "100", ""), err: errScrubRunning},
		{name: "runs, again", before: state("t2", "100", ""), start: ScrubStart{Again: true}, err: errScrubRunning},
		{name: "paced runs", before: state("t2", "100", "1"), position: "0", end: "5000"},
		{name: "paced runs, paced", before: state("t2", "100", "1"), start: ScrubStart{Paced: true}, err: errScrubRunning},
		{name: "no pace", before: values{}, start: ScrubStart{Paced: true}, err: errNoDays},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.start.Name = "t1"
			change, err := factsOf(c.before).StartScrub(c.start)
			if !errors.Is(err, c.err) {
				t.Fatalf("error %v; want %v", err, c.err)
			}
			if err != nil {
				return
			}
			after := StateOf(schema.SweepScrub, apply(t, c.before, change))
			if got := strconv.FormatUint(uint64(after.Position), 10); got != c.position || after.End.String() != c.end || after.Paced != c.paced || after.Host != "t1" || after.First != after.Position {
				t.Errorf("it runs as %+v; want from %s to %s, paced %t", after, c.position, c.end, c.paced)
			}
		})
	}
}

func TestScrubPeriod(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]time.Duration{
		"": 0, "0": 0, "-1": 0, "x": 0, "NaN": 0, "Inf": 0, "3651": 0, "1": 24 * time.Hour, "0.5": 12 * time.Hour, "3650": 3650 * 24 * time.Hour,
	} {
		if got := ScrubPeriod(values{SettingScrubDays: text}); got != want {
			t.Errorf("scrub_days %q is %v; want %v", text, got, want)
		}
	}
}

func TestDueRound(t *testing.T) {
	t.Parallel()
	const day = 24 * time.Hour
	begun := func(ago time.Duration) int64 { return at.Add(-ago).Unix() }
	for _, c := range []struct {
		name string
		st   State
		want bool
	}{
		{"never ran", State{}, true},
		{"runs", State{Host: "t", StartTime: begun(99 * day), End: 9}, false},
		{"was stopped", State{StartTime: begun(99 * day), Position: 3, End: 9, Paced: true}, false},
		{"is over early", State{StartTime: begun(time.Hour), Position: 9, End: 9, Paced: true}, false},
		{"is over", State{StartTime: begun(day), Position: 9, End: 9, Paced: true}, true},
		{"a quick one is over", State{StartTime: begun(time.Hour), Position: 9, End: 9}, true},
		{"there were no files", State{StartTime: begun(time.Hour), Paced: true}, false},
	} {
		if got := c.st.dueRound(day, at); got != c.want {
			t.Errorf("%s: due %t; want %t", c.name, got, c.want)
		}
		if c.st.dueRound(0, at) {
			t.Errorf("%s: due without a period", c.name)
		}
	}
}

// TestPace plays whole rounds of claims that are punctual, and some in which time
// is lost: they end with their period unless that is not to be had.
func TestPace(t *testing.T) {
	t.Parallel()
	const period = 30 * 24 * time.Hour
	for _, c := range []struct {
		name     string
		end      protocol.FID
		files    int           // of a claim, of which there are fewer than fids
		lost     time.Duration // in the middle
		from, to time.Duration // when it ends
	}{
		{"few files", 50, 1, 0, period * 95 / 100, period},
		{"many", 1_000_000, 700, 0, period * 99 / 100, period},
		{"a quarter of the time was lost", 1_000_000, 700, period / 4, period * 99 / 100, period * 101 / 100},
		{"more than there was", 1_000_000, 700, 2 * period, 5 * period / 2, 5*period/2 + period/catchUp},
	} {
		st := State{Sweep: schema.SweepScrub, End: c.end, StartTime: at.Unix(), Paced: true}
		now := at
		most := time.Duration(0)
		for !st.Claimed() {
			if st.Position >= c.end/2 && c.lost > 0 {
				now = now.Add(c.lost)
				c.lost = 0
			}
			n := min(protocol.FID(c.files), c.end-st.Position)
			wait := st.pace(int64(n), period, now)
			if wait < 0 || wait > period {
				t.Fatalf("%s: a pause of %v at %d", c.name, wait, st.Position)
			}
			most = max(most, wait)
			st.Position += n
			now = now.Add(wait)
		}
		if took := now.Sub(at); took < c.from || took > c.to {
			t.Errorf("%s: the round took %v of %v; want %v to %v", c.name, took, period, c.from, c.to)
		}
		if average := period / time.Duration(c.end) * time.Duration(c.files); most > 2*average {
			t.Errorf("%s: a pause of %v, %v are the average", c.name, most, average)
		}
	}
	if got := (State{End: 100, StartTime: at.Unix()}).paceFiles(period, at); got != 1 {
		t.Errorf("of few files %d are claimed at once", got)
	}
	if got := (State{End: 1_000_000_000, StartTime: at.Unix()}).paceFiles(period, at); got != maxRange {
		t.Errorf("of very many files %d are claimed at once", got)
	}
	if got := (State{}).pace(5, period, at); got != 0 {
		t.Errorf("of no files: a pause of %v", got)
	}
}

func TestLimits(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]float64{"": 0, "0": 0, "-3": 0, "anything": 0, "1000": 1000, " 7x": 7} {
		if got := rateOf(values{settingRate: text}); got != want {
			t.Errorf("rate %q is %v; want %v", text, got, want)
		}
	}
	for text, want := range map[string]int64{"": 20000, "0": 20000, "x": 20000, "50": 50} {
		if got, set := queueSize(values{settingSize: text}); got != want || set != (want == 50) {
			t.Errorf("size %q is %d, set %t; want %d", text, got, set, want)
		}
	}
	if got := bandwidth(values{SettingBandwidth: "3000"}, 3); got != 1000 {
		t.Errorf("a third of the bandwidth is %v", got)
	}
	if got := bandwidth(values{}, 3); got < 1e300 {
		t.Errorf("no bandwidth is set, and it is %v", got)
	}
	for key, want := range map[string]bool{
		"fsck_checksum": false, "scrub_days": false, "scrub_bandwidth": false, "skip_mkcol": false,
		"fsck_host": true, "scrub_host": true, "fsck_sum_evcount_POVI": true,
	} {
		if Books(key) != want {
			t.Errorf("%s is of the books: %t; want %t", key, !want, want)
		}
	}
}

func TestLiving(t *testing.T) {
	t.Parallel()
	seen := func(ago ...time.Duration) []schema.Tracker {
		var all []schema.Tracker
		for _, d := range ago {
			all = append(all, schema.Tracker{LastSeen: at.Add(-d)})
		}
		return all
	}
	for _, c := range []struct {
		members []schema.Tracker
		want    int
	}{{nil, 1}, {seen(0), 1}, {seen(time.Hour), 1}, {seen(0, 9*time.Second, time.Hour), 2}} {
		if got := living(c.members); got != c.want {
			t.Errorf("%d of %d are living; want %d", got, len(c.members), c.want)
		}
	}
}
