package rebalance_test

import (
	"math"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/schema"
	"github.com/mogile/mogile/tracker/cluster"
	"github.com/mogile/mogile/tracker/rebalance"
	"github.com/mogile/mogile/tracker/work/worktest"
)

func float(n float64) *float64 { return &n }

func TestParsePolicy(t *testing.T) {
	t.Parallel()
	none := rebalance.LimitNone
	for _, c := range []struct {
		text string
		want rebalance.Policy
		err  string
	}{
		{text: "", want: rebalance.Policy{By: none}},
		{text: "from_all_devs=1 to_all_devs=1", want: rebalance.Policy{By: none}},
		{text: "from_hosts=1,2 to_hosts=3 not_to_hosts=4", want: rebalance.Policy{
			From: rebalance.Filter{Hosts: []schema.HostID{1, 2}}, To: rebalance.Filter{Hosts: []schema.HostID{3}}, NotToHosts: []schema.HostID{4}, By: none}},
		{text: "from_devices=7 to_devices=8,9 not_to_devices=", want: rebalance.Policy{
			From: rebalance.Filter{Devices: []protocol.DevID{7}}, To: rebalance.Filter{Devices: []protocol.DevID{8, 9}}, By: none}},
		{text: "from_percent_used=95 to_percent_free=50.5 from_space_free=0 to_space_used=3", want: rebalance.Policy{
			From: rebalance.Filter{PercentUsed: float(95), SpaceFree: float(0)}, To: rebalance.Filter{PercentFree: float(50.5), SpaceUsed: float(3)}, By: none}},
		{text: "fid_age=new limit_type=global limit_by=count limit=20", want: rebalance.Policy{Newest: true, Global: true, By: rebalance.LimitCount, Limit: 20}},
		{text: "limit=5G limit_by=size", want: rebalance.Policy{By: rebalance.LimitSize, Limit: 5 << 30}},
		{text: "limit=7b limit_by=size", want: rebalance.Policy{By: rebalance.LimitSize, Limit: 7}},
		{text: "limit_by=size limit=2p use_dest_devs=3 leave_in_drain_mode=1", want: rebalance.Policy{By: rebalance.LimitSize, Limit: 2 << 50, UseDestDevs: 3, LeaveInDrain: true}},
		{text: "use_dest_devs=all fid_age=old limit_type=device limit_by=none", want: rebalance.Policy{By: none}},
		{text: "level_spread=2.5", want: rebalance.Policy{By: none, Level: 2.5}},
		{text: "foo=1", err: "Invalid setting foo"},
		{text: "from_hosts=1  to_hosts=2", err: "Invalid setting "},
		{text: "from_=1", err: "Invalid setting from_"},
		{text: "from_hosts=a", err: "Invalid value of from_hosts: a"},
		{text: "limit_by=percent limit=5", err: "Invalid value of limit_by: percent"},
		{text: "limit_by=count limit=5m", err: "Invalid value of limit: 5m"},
		{text: "limit_by=size limit=9999999p", err: "Invalid value of limit: 9999999p"},
		{text: "limit_by=size", err: "limit_by needs a limit"},
		{text: "use_dest_devs=0", err: "Invalid value of use_dest_devs: 0"},
		{text: "fid_age=young", err: "Invalid value of fid_age: young"},
		{text: "level_spread=5 from_hosts=1", err: "level_spread goes with no other setting"},
	} {
		p, err := rebalance.ParsePolicy(c.text)
		if c.err != "" {
			if e, ok := err.(*protocol.Error); !ok || e.Code != "bad_rebal_pol" || e.Text != c.err {
				t.Errorf("%q: %v", c.text, err)
			}
			continue
		}
		if diff := cmp.Diff(c.want, p); err != nil || diff != "" {
			t.Errorf("%q: %v\n%s", c.text, err, diff)
		}
	}
}

func FuzzParsePolicy(f *testing.F) {
	for _, s := range []string{"from_hosts=3 to_percent_free=50", "limit_by=size limit=5g", "level_spread=NaN", "limit=k limit_by=size", "="} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		p, err := rebalance.ParsePolicy(text)
		if err == nil && (p.Limit < 0 || p.UseDestDevs < 0 || !(p.Level >= 0 && p.Level <= 100)) {
			t.Errorf("%q is %+v", text, p)
		}
	})
}

// TestDevices has 4 devices on 2 hosts, 1, 2 and 3, 4, of 10,000 MiB.
func TestDevices(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		policy   string
		change   func(d *cluster.Device, h *cluster.Host) // of device 1
		from, to []protocol.DevID
	}{
		{policy: "", from: []protocol.DevID{1, 2, 3, 4}},
		{policy: "from_hosts=1", from: []protocol.DevID{1, 2}, to: []protocol.DevID{3, 4}},
		{policy: "from_hosts=1 not_to_devices=3", from: []protocol.DevID{1, 2}, to: []protocol.DevID{4}},
		{policy: "from_devices=1 not_to_hosts=2", from: []protocol.DevID{1}, to: []protocol.DevID{2}},
		{policy: "from_devices=1 to_hosts=2 to_devices=2,3", from: []protocol.DevID{1}, to: []protocol.DevID{3}},
		{policy: "from_percent_used=50", change: func(d *cluster.Device, _ *cluster.Host) { n := int64(5001); d.UsedMB = &n }, from: []protocol.DevID{1}, to: []protocol.DevID{2, 3, 4}},
		{policy: "from_percent_used=50", change: func(d *cluster.Device, _ *cluster.Host) { n := int64(5000); d.UsedMB = &n }, to: []protocol.DevID{1, 2, 3, 4}},
		{policy: "from_space_free=0", change: func(d *cluster.Device, _ *cluster.Host) { d.UsedMB = nil }, from: []protocol.DevID{2, 3, 4}, to: []protocol.DevID{1}},
		{policy: "from_devices=1,2", change: func(d *cluster.Device, _ *cluster.Host) { d.Status = schema.DeviceDrain }, from: []protocol.DevID{1, 2}, to: []protocol.DevID{3, 4}},
		{policy: "from_devices=1,2", change: func(d *cluster.Device, _ *cluster.Host) { d.Status = schema.DeviceReadonly }, from: []protocol.DevID{2}, to: []protocol.DevID{3, 4}},
		{policy: "from_devices=4 to_percent_free=85", change: func(d *cluster.Device, _ *cluster.Host) { n := int64(2000); d.UsedMB = &n }, from: []protocol.DevID{4}, to: []protocol.DevID{2, 3}},
		{policy: "from_devices=4", change: func(_ *cluster.Device, h *cluster.Host) { h.Status = schema.HostDown }, from: []protocol.DevID{4}, to: []protocol.DevID{3}},
	} {
		w := worktest.NewCluster(2, 2)
		if c.change != nil {
			w.Change(1, c.change)
		}
		p, err := rebalance.ParsePolicy(c.policy)
		if err != nil {
			t.Fatal(err)
		}
		from := p.Sources(w.Snapshot().DeviceList)
		to := p.Destinations(w.Snapshot().DeviceList, from, 100)
		if !cmp.Equal(from, c.from) || !cmp.Equal(to, c.to) {
			t.Errorf("%q: from %v to %v", c.policy, from, to)
		}
	}
}

func TestState(t *testing.T) {
	t.Parallel()
	const fresh = "completed_devs= source_devs=1,2 sdev_current=0 sdev_lastfid=0 sdev_limit=0 limit=0 fids_queued=0 bytes_queued=0 time_started=1700000000 time_finished=0 time_stopped=0 time_latest_run=0 time_latest_empty_run=0 empty_runs=0"
	s := rebalance.State{Sources: []protocol.DevID{1, 2}, Started: 1700000000}
	if s.String() != fresh {
		t.Errorf("fresh: %s", s)
	}
	for _, text := range []string{
		fresh,
		"completed_devs= source_devs=2 sdev_current=1 sdev_lastfid=500 sdev_limit=none limit=0 fids_queued=500 bytes_queued=1048576 time_started=1 time_finished=0 time_stopped=0 time_latest_run=2 time_latest_empty_run=0 empty_runs=0",
		"completed_devs=1,2 source_devs= limit=5 fids_queued=500 bytes_queued=1048576 time_started=1 time_finished=9 time_stopped=0 time_latest_run=2 time_latest_empty_run=3 empty_runs=4",
		"completed_devs=1 source_devs= sdev_current=2 sdev_lastfid=7 sdev_limit=-3 limit=0 fids_queued=5 bytes_queued=1 time_started=1 time_finished=0 time_stopped=8 time_latest_run=2 time_latest_empty_run=3 empty_runs=4",
	} {
		s, err := rebalance.ParseState(text)
		if err != nil || s.String() != text {
			t.Errorf("%v\n got %s\nwant %s", err, s, text)
		}
	}
	// As MogileFS leaves it, which loads lists with an empty element.
	s, err := rebalance.ParseState("completed_devs=,102,125 source_devs= sdev_limit= bytes_queued=")
	if err != nil || !cmp.Equal(s.Completed, []protocol.DevID{102, 125}) {
		t.Errorf("%v, %v", s, err)
	}
	for _, text := range []string{"x=1", "fids_queued=a", "completed_devs=x", "sdev_current=-1"} {
		if _, err := rebalance.ParseState(text); err == nil {
			t.Errorf("%q is a state", text)
		}
	}
}

func FuzzParseState(f *testing.F) {
	f.Add("completed_devs=,102 source_devs=1 sdev_current=3 sdev_lastfid=7 sdev_limit=none")
	f.Fuzz(func(t *testing.T, text string) {
		s, err := rebalance.ParseState(text)
		if err != nil {
			return
		}
		again, err := rebalance.ParseState(s.String())
		if err != nil || again.String() != s.String() {
			t.Errorf("%q: %v\n%s\n%s", text, err, s, again)
		}
	})
}

func TestLevel(t *testing.T) {
	t.Parallel()
	const gib = 1 << 30
	fill := func(dev protocol.DevID, used, capacity int64) rebalance.Fill {
		return rebalance.Fill{Dev: dev, Bytes: used * gib, Capacity: capacity * gib, Gives: true, Takes: true}
	}
	full := fill(3, 0, 100)
	full.Takes = false
	for name, fills := range map[string][]rebalance.Fill{
		"one empty":       {fill(1, 60, 100), fill(2, 60, 100), fill(3, 0, 100)},
		"all empty":       {fill(1, 0, 100), fill(2, 0, 100)},
		"sizes differ":    {fill(1, 900, 1000), fill(2, 10, 4000), fill(3, 5, 10)},
		"one full":        {fill(1, 100, 100), fill(2, 50, 100), fill(3, 50, 100), fill(4, 50, 100)},
		"nearly":          {fill(1, 53, 100), fill(2, 47, 100), fill(3, 50, 100)},
		"many":            {fill(1, 80, 100), fill(2, 75, 100), fill(3, 70, 100), fill(4, 20, 100), fill(5, 0, 50), fill(6, 51, 100)},
		"more than there": {fill(1, 300, 100), fill(2, 0, 100)},
	} {
		quotas := rebalance.Level(fills, 5)
		if got := rebalance.ParseQuotas(quotas.String()); !cmp.Equal(got, quotas) {
			t.Errorf("%s: %v comes back as %v", name, quotas, got)
		}
		var sum int64
		after := make([]rebalance.Fill, len(fills))
		for i, f := range fills {
			sum += quotas[f.Dev]
			f.Bytes += quotas[f.Dev]
			after[i] = f
		}
		if math.Abs(float64(sum)) > 1000 {
			t.Errorf("%s: %d bytes more are taken than given", name, sum)
		}
		if s := rebalance.Spread(after); s > 5 {
			t.Errorf("%s: the spread is %f after %v", name, s, quotas)
		}
	}
	if q := rebalance.Level([]rebalance.Fill{fill(1, 52, 100), fill(2, 48, 100)}, 5); len(q) != 0 {
		t.Errorf("within the spread: %v", q)
	}
	if q := rebalance.Level([]rebalance.Fill{fill(1, 60, 100), fill(2, 60, 100), full}, 5); q.Moved() != 0 {
		t.Errorf("nobody takes anything: %v", q)
	}
	if q := rebalance.ParseQuotas("x,1:2,3,:4,5:y,6:-7,99999999:1"); !strings.EqualFold(q.String(), "1:2,6:-7") {
		t.Errorf("quotas %v", q)
	}
}
