package monitor

import (
	"errors"
	"fmt"
	"math"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/schema"
	"github.com/mogile/mogile/tracker/cluster"
	"github.com/mogile/mogile/tracker/storage"
)

func TestParseUsage(t *testing.T) {
	tests := []struct {
		name, file  string
		total, used int64
		ok          bool
	}{
		{"mogstored's", goodUsage, 1000, 100, true},
		{"blanks and CRLF", "used : 2048\r\n  total:   4096  \r\n", 4, 2, true},
		{"no last newline", "total: 4096\nused: 2048", 4, 2, true},
		{"padded with newlines", "total: 4096\nused: 2048\n\n\n\n", 4, 2, true},
		{"less than a MiB", "total: 1023\nused: 1", 0, 0, true},
		{"wider than the column", "total: 9223372036854775807\nused: 1024", math.MaxInt32, 1, true},
		{"used is zero", "total: 4096\nused: 0", 0, 0, false},
		{"no total", "used: 2048", 0, 0, false},
		{"empty", "", 0, 0, false},
		{"negative", "total: 4096\nused: -1", 0, 0, false},
		{"not a number", "total: 4096\nused: some", 0, 0, false},
		{"other names", "totals: 4096\nunused: 2048\n", 0, 0, false},
		{"a web page", "<html><body>It works!</body></html>", 0, 0, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			total, used, err := parseUsage([]byte(tt.file))
			if total != tt.total || used != tt.used || (err == nil) != tt.ok {
				t.Errorf("got %d, %d, %v; want %d, %d", total, used, err, tt.total, tt.used)
			}
		})
	}
}

func FuzzParseUsage(f *testing.F) {
	f.Add([]byte(goodUsage))
	f.Add([]byte("used:1\rtotal:2\n"))
	f.Add([]byte("total: 99999999999999999999\nused: 1"))
	f.Fuzz(func(t *testing.T, file []byte) {
		total, used, err := parseUsage(file)
		if total < 0 || used < 0 || total > math.MaxInt32 || used > math.MaxInt32 || err != nil && total+used != 0 {
			t.Errorf("%q: %d, %d, %v", file, total, used, err)
		}
	})
}

func TestClassify(t *testing.T) {
	status := fmt.Errorf("usage: %w", &storage.StatusError{Status: 503})
	other := errors.New("connection refused")
	tests := []struct {
		err  error
		took time.Duration
		want outcome
	}{
		{status, time.Millisecond, answered},
		{status, time.Second, answered}, // slow, but there
		{other, 0, refused},
		{other, 500 * time.Millisecond, refused},
		{other, 501 * time.Millisecond, silent},
		{other, 2 * time.Second, silent},
	}
	for _, tt := range tests {
		if got := classify(tt.err, tt.took, fastFailure); got != tt.want {
			t.Errorf("%v after %v: %d, want %d", tt.err, tt.took, got, tt.want)
		}
	}
}

func TestDue(t *testing.T) {
	now := time.Unix(1700000000, 0)
	tests := []struct {
		name     string
		state    cluster.DeviceState
		asOf     int64         // before now, by the database
		measured time.Duration // before now, by this tracker
		tested   time.Duration // before now
		usage    bool
		test     bool
	}{
		{"never", "", 1700000000, math.MaxInt64, math.MaxInt64, true, true},
		{"just", cluster.DeviceWriteable, 0, 0, 0, false, false},
		{"15 s ago", cluster.DeviceWriteable, 15, 15 * time.Second, 15 * time.Second, false, true},
		{"16 s ago", cluster.DeviceWriteable, 16, 16 * time.Second, 16 * time.Second, true, true},
		{"written, and not read back yet", cluster.DeviceReadable, 16, 2 * time.Second, 14 * time.Second, false, false},
		{"written by another tracker", cluster.DeviceReadable, 3, time.Hour, time.Second, false, false},
		{"was away", cluster.DeviceUnreachable, 3, time.Hour, time.Second, false, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d := &cluster.Device{Device: schema.Device{AsOf: now.Unix() - tt.asOf}, Observed: tt.state}
			if got := usageDue(d, now, now, now.Add(-tt.measured), 15*time.Second); got != tt.usage {
				t.Errorf("usage due: %v", got)
			}
			if got := testDue(d, now, now.Add(-tt.tested), 15*time.Second); got != tt.test {
				t.Errorf("test write due: %v", got)
			}
		})
	}
}

func TestJudge(t *testing.T) {
	const w, r, u, same = cluster.DeviceWriteable, cluster.DeviceReadable, cluster.DeviceUnreachable, cluster.DeviceState("")
	type seen struct {
		outcome outcome
		state   cluster.DeviceState
	}
	tests := []struct {
		name    string
		seen    []seen
		host    cluster.HostState
		devices []cluster.DeviceState
	}{
		{"all well", []seen{{fetched, w}, {fetched, w}}, cluster.HostReachable, []cluster.DeviceState{w, w}},
		{"not their time", []seen{{fetched, same}}, cluster.HostReachable, []cluster.DeviceState{same}},
		{"readonly", []seen{{fetched, r}}, cluster.HostReachable, []cluster.DeviceState{r}},
		{"one disk hangs", []seen{{silent, same}, {fetched, w}}, cluster.HostReachable, []cluster.DeviceState{u, w}},
		{"one disk is sick", []seen{{answered, same}, {fetched, w}}, cluster.HostReachable, []cluster.DeviceState{u, w}},
		{"one hangs, one is sick", []seen{{silent, same}, {answered, same}}, "", []cluster.DeviceState{u, u}},
		{"not mounted", []seen{{answered, same}}, "", []cluster.DeviceState{u}},
		{"daemon is down", []seen{{refused, same}, {refused, same}}, "", []cluster.DeviceState{u, u}},
		{"host hangs", []seen{{silent, same}, {silent, same}, {skipped, same}}, cluster.HostUnreachable, []cluster.DeviceState{same, same, same}},
		{"its only disk", []seen{{silent, same}}, cluster.HostUnreachable, []cluster.DeviceState{same}},
		{"going down", []seen{{refused, same}, {silent, same}}, cluster.HostUnreachable, []cluster.DeviceState{u, same}},
		{"came up in between", []seen{{refused, same}, {fetched, w}}, cluster.HostReachable, []cluster.DeviceState{u, w}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			h := &hostVisit{host: &cluster.Host{Host: schema.Host{ID: 3}}}
			for i, s := range tt.seen {
				h.visits = append(h.visits, &visit{
					dev: &cluster.Device{Device: schema.Device{ID: protocol.DevID(i + 1)}}, outcome: s.outcome, state: s.state,
				})
				if s.outcome == fetched {
					h.heard(http.Header{})
				}
			}
			got := judge(h)
			if got[0].Host != 3 || got[0].HostState != tt.host || (got[0].Capabilities != nil) != (tt.host == cluster.HostReachable) {
				t.Errorf("host: %+v, want %s", got[0], tt.host)
			}
			var devices []cluster.DeviceState
			for i, o := range got[1:] {
				if o.Device != protocol.DevID(i+1) {
					t.Errorf("dev%d in place %d", o.Device, i)
				}
				devices = append(devices, o.DeviceState)
			}
			if diff := cmp.Diff(tt.devices, devices); diff != "" {
				t.Error("-want +got\n" + diff)
			}
		})
	}
}

// TestPlan: the hosts take turns, and what must not be looked at is not.
func TestPlan(t *testing.T) {
	w := newWorld(3, 3)
	w.rows.Hosts[1].Status = schema.HostDown
	w.rows.Devices[1].Status = schema.DeviceDead
	w.rows.Devices[2].Status = schema.DeviceReadonly
	w.rows.Devices[6].Status = schema.DeviceDown
	w.rows.Devices[7].Status = schema.DeviceDrain
	w.rows.Devices = append(w.rows.Devices, schema.Device{ID: 10, HostID: 9, Status: schema.DeviceAlive})
	memories := map[protocol.DevID]*memory{}
	var got []string
	for _, v := range plan(cluster.NewSnapshot(w.rows, 2), memories) {
		got = append(got, v.dev.ID.String())
		if v.memory == nil || v.memory != memories[v.dev.ID] || v.host.left != 2 {
			t.Errorf("dev%d: %+v", v.dev.ID, v)
		}
	}
	if want := "1 8 3 9"; strings.Join(got, " ") != want {
		t.Errorf("order %v, want %s", got, want)
	}
}
