package monitor

import (
	"bytes"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rs/zerolog"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/schema"
	"github.com/mogile/mogile/tracker/cluster"
)

// TestPeersAreTold: storage daemons that keep shards learn where all devices are,
// at first, when that changes and when they come back, and now and then.
func TestPeersAreTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(3, 2)
		w.rows.Devices[5].Status = schema.DeviceDead
		for _, h := range []schema.HostID{1, 2} {
			w.headers[address(h)] = http.Header{"Mogile": {"1 copy ec"}}
		}
		w.headers[address(3)] = http.Header{"Mogile": {"1 copy"}}
		var log bytes.Buffer
		m, _, stop := w.monitored(t, Options{Log: zerolog.New(zerolog.SyncWriter(&log))})
		<-m.Ready()
		expect := func(what string, within time.Duration, times int) {
			t.Helper()
			time.Sleep(within)
			synctest.Wait()
			w.mu.Lock()
			defer w.mu.Unlock()
			for h, want := range map[schema.HostID]int{1: times, 2: times, 3: 0} {
				if got := len(w.told[address(h)+":7500"]); got != want {
					t.Errorf("%s: host %d was told %d times, want %d", what, h, got, want)
				}
			}
			clear(w.told)
		}
		synctest.Wait()
		w.mu.Lock()
		want := map[protocol.DevID]string{
			1: "http://10.0.0.1:7500", 2: "http://10.0.0.1:7500", 3: "http://10.0.0.2:7500", 4: "http://10.0.0.2:7500", 5: "http://10.0.0.3:7500",
		}
		if told := w.told["10.0.0.1:7500"]; len(told) == 1 {
			if diff := cmp.Diff(want, told[0].Peers); diff != "" || told[0].Version == 0 || told[0].Version > time.Now().UnixMilli() {
				t.Errorf("told %+v", told[0])
			}
		}
		w.mu.Unlock()
		expect("at first", 0, 1)
		expect("while nothing happens", 9*time.Minute, 0)
		expect("after ten minutes", 2*time.Minute, 1)
		w.do(func() { w.addDevice(7, 1) })
		expect("a device came", 10*time.Second, 1)
		w.do(func() {
			for _, h := range []schema.HostID{1, 2} {
				w.gone[address(h)] = silence
			}
		})
		expect("hosts are gone", 30*time.Second, 0)
		w.do(func() { clear(w.gone) })
		expect("they came back", 15*time.Second, 1)
		w.do(func() { w.mute = true; w.addDevice(8, 1) })
		expect("they do not take it", 40*time.Second, 3)
		w.do(func() { w.mute = false })
		expect("they do again", 20*time.Second, 1)
		stop()
		if n := strings.Count(log.String(), "was told where"); n != 2 {
			t.Errorf("logged %d times:\n%s", n, log.String())
		}
		if n := strings.Count(log.String(), "cannot be told where"); n != 2 {
			t.Errorf("logged %d times:\n%s", n, log.String())
		}
	})
}

// TestSuspectsAreQueued: files of which shards were found bad are checked.
func TestSuspectsAreQueued(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(1, 2)
		w.headers[address(1)] = http.Header{"Mogile": {"1 ec"}, protocol.SuspectsHeader: {"3"}}
		w.suspects = map[string][]protocol.FIDOn{"10.0.0.1:7500": {{FID: 9, Dev: 2}, {FID: 5, Dev: 1}, {FID: 9, Dev: 1}}}
		m, _, _ := w.monitored(t, Options{})
		<-m.Ready()
		synctest.Wait()
		w.mu.Lock()
		defer w.mu.Unlock()
		if want := []protocol.FID{5, 9}; !slices.Equal(w.queued, want) {
			t.Errorf("queued %v, want %v", w.queued, want)
		}
	})
}

// TestCapabilitiesOfGetPorts: what a storage daemon can do it says on the port that
// takes orders, whatever serves on the other.
func TestCapabilitiesOfGetPorts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(2, 3)
		w.headers["10.0.0.1:7510"] = http.Header{"Server": {"nginx"}}
		w.headers["10.0.0.1:7500"] = http.Header{"Mogile": {"1 copy ec"}, protocol.SuspectsHeader: {"1"}}
		w.headers["10.0.0.2:7510"] = http.Header{"Mogile": {"1 copy ec"}}
		w.headers["10.0.0.2:7500"] = http.Header{}
		w.suspects = map[string][]protocol.FIDOn{"10.0.0.1:7500": {{FID: 9, Dev: 2}}}
		m, c, stop := w.monitored(t, Options{})
		<-m.Ready()
		time.Sleep(time.Second)
		synctest.Wait()
		s := c.Snapshot()
		if !s.Hosts[1].Capabilities.Has("ec") || s.Hosts[2].Capabilities.Has("ec") {
			t.Errorf("capabilities %v and %v", s.Hosts[1].Capabilities, s.Hosts[2].Capabilities)
		}
		if n := w.requests("GET 10.0.0.1:7500/"); n != 1 {
			t.Errorf("the other port was asked %d times", n)
		}
		if !slices.Equal(w.queued, []protocol.FID{9}) {
			t.Errorf("queued %v", w.queued)
		}
		// A port that does not answer says nothing about what it can do.
		w.do(func() { w.gone["10.0.0.1:7500"] = refusal })
		if err := m.NextRound(t.Context()); err != nil {
			t.Fatal(err)
		}
		if s := c.Snapshot(); !s.Hosts[1].Capabilities.Has("ec") || s.Hosts[1].Observed != cluster.HostReachable {
			t.Errorf("host %s with %v", s.Hosts[1].Observed, s.Hosts[1].Capabilities)
		}
		stop()
	})
}
