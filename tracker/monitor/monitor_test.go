package monitor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/schema"
	"github.com/mogile/mogile/tracker/cluster"
	"github.com/mogile/mogile/tracker/storage"
)

// TestFirstRound: everything is known as soon as the daemons have answered.
func TestFirstRound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(2, 2)
		w.headers[address(1)] = http.Header{"Mogile": {"1 md5"}}
		w.devices[4].md5 = nil // a daemon that does not check
		var log bytes.Buffer
		began := time.Now()
		m, c, _ := w.monitored(t, Options{Log: zerolog.New(&log).Level(zerolog.InfoLevel)})
		if c.Snapshot() != nil {
			t.Error("there is a snapshot before anything is read")
		}
		<-m.Ready()
		if took := time.Since(began); took > 100*time.Millisecond {
			t.Errorf("ready after %v", took)
		}
		expect(t, c, "h1:reachable h2:reachable dev1:writeable dev2:writeable dev3:writeable dev4:writeable")
		s := c.Snapshot()
		if !s.Hosts[1].Capabilities.Has("md5") || s.Hosts[2].Capabilities.Version != 0 {
			t.Errorf("capabilities %+v and %+v", s.Hosts[1].Capabilities, s.Hosts[2].Capabilities)
		}
		for _, d := range s.DeviceList {
			if d.RejectBadMD5 == nil || *d.RejectBadMD5 == (d.ID == 4) {
				t.Errorf("dev%d rejects a bad Content-MD5: %v", d.ID, d.RejectBadMD5)
			}
			if free, known := d.FreeMB(); !known || free != 900 || !d.TakesFiles(100) {
				t.Errorf("dev%d has %d MiB free, known: %v", d.ID, free, known)
			}
		}
		if w.requests("GET 10.0.0.1:7510/dev1/usage") != 1 || w.requests("PUT 10.0.0.1:7500/dev1/test-write/test-write-") != 1 ||
			w.requests("GET 10.0.0.1:7510/dev1/test-write/test-write-") != 1 || w.requests("PUT 10.0.0.1:7500/dev1/test-write/test-md5") != 1 {
			t.Errorf("requests:\n%s", strings.Join(w.log, "\n"))
		}
		for name, file := range w.devices[1].files {
			if strings.HasPrefix(name, "test-write/test-write-") {
				if want := fmt.Sprintf("time=%d rand=%s", began.Unix(), name[len("test-write/test-write-"):]); file != want {
					t.Errorf("%s has %q, want %q", name, file, want)
				}
			}
		}
		if log.Len() > 0 {
			t.Errorf("logged while all is well:\n%s", log.String())
		}
	})
}

// TestRhythm counts what happens in an hour when nothing happens.
func TestRhythm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(1, 2)
		w.rows.Devices[1].Status = schema.DeviceReadonly
		m, _, _ := w.monitored(t, Options{})
		<-m.Ready()
		time.Sleep(time.Hour)
		synctest.Wait()
		near := func(what string, got, want int) {
			t.Helper()
			if math.Abs(float64(got-want)) > float64(want)/50+1 {
				t.Errorf("%s: %d, want about %d", what, got, want)
			}
		}
		near("usage files", w.requests("7510/dev1/usage"), 3600*2/5)
		near("test writes", w.requests("PUT 10.0.0.1:7500/dev1/test-write/test-write-"), 3600/15)
		near("MD5 probes", w.requests("dev1/test-write/test-md5"), 3600/15)
		near("test writes on a readonly device", w.requests("dev2/test-write"), 0)
		// By the snapshot, which may be 4 s old, at the rounds, which are 2.5 s
		// apart: never sooner than 15 s.
		if n := w.writes(); n < 3600/25 || n > 3600/15 {
			t.Errorf("usage was written %d times", n)
		}
		near("readings of the database", w.readings(), 3600/4+w.writes())
	})
}

func TestFailures(t *testing.T) {
	const well = "h1:reachable h2:reachable dev1:writeable dev2:writeable dev3:writeable dev4:writeable"
	tests := []struct {
		name string
		fail func(w *world)
		want string // within three seconds
		logs int
	}{
		{"a device is not mounted", func(w *world) { w.devices[1].get = &storage.StatusError{Status: 404} },
			"h1:reachable h2:reachable dev1:unreachable dev2:writeable dev3:writeable dev4:writeable", 1},
		{"a disk is sick", func(w *world) { w.devices[1].get = &storage.StatusError{Status: 503} },
			"h1:reachable h2:reachable dev1:unreachable dev2:writeable dev3:writeable dev4:writeable", 1},
		{"a disk hangs", func(w *world) { w.devices[1].hang = true },
			"h1:reachable h2:reachable dev1:unreachable dev2:writeable dev3:writeable dev4:writeable", 1},
		{"a daemon is stopped", func(w *world) { w.gone[address(1)] = refusal },
			"h1:reachable h2:reachable dev1:unreachable dev2:unreachable dev3:writeable dev4:writeable", 2},
		{"a host hangs", func(w *world) { w.gone[address(1)] = silence },
			"h1:unreachable h2:reachable dev1:writeable dev2:writeable dev3:writeable dev4:writeable", 1},
		{"usage makes no sense", func(w *world) { w.devices[1].usage = "total: 5\n" }, well, 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(2, 2)
				var log bytes.Buffer
				m, c, _ := w.monitored(t, Options{Log: zerolog.New(&log).Level(zerolog.InfoLevel)})
				<-m.Ready()
				w.do(func() { tt.fail(w) })
				time.Sleep(5 * time.Second)
				synctest.Wait()
				expect(t, c, tt.want)
				d := c.Snapshot().Device(1)
				if readable := tt.want == well; d.Readable() != readable || d.TakesFiles(100) != readable {
					t.Errorf("dev1 is readable: %v", d.Readable())
				}
				time.Sleep(time.Minute)
				synctest.Wait()
				expect(t, c, tt.want)
				if got := strings.Count(log.String(), "\n"); got != tt.logs {
					t.Errorf("%d lines, want %d:\n%s", got, tt.logs, log.String())
				}
				w.do(func() {
					clear(w.gone)
					w.devices[1].get, w.devices[1].hang, w.devices[1].usage = nil, false, goodUsage
				})
				time.Sleep(5 * time.Second) // the test write is made at once, not when it is due
				synctest.Wait()
				expect(t, c, well)
			})
		})
	}
}

// TestHostsDoNotWaitForEachOther: what is found of one is published while
// another hangs.
func TestHostsDoNotWaitForEachOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(3, 2)
		w.gone[address(2)] = silence
		m, c, _ := w.monitored(t, Options{})
		time.Sleep(100 * time.Millisecond)
		synctest.Wait()
		expect(t, c, "h1:reachable h2: h3:reachable dev1:writeable dev2:writeable dev3: dev4: dev5:writeable dev6:writeable")
		select {
		case <-m.Ready():
			t.Error("ready before the round is complete")
		default:
		}
		<-m.Ready()
		expect(t, c, "h1:reachable h2:unreachable h3:reachable dev1:writeable dev2:writeable dev3: dev4: dev5:writeable dev6:writeable")
	})
}

// TestHangingHostIsLeft: of a host that hangs two devices are tried in a round.
func TestHangingHostIsLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(2, 40)
		w.gone[address(1)] = silence
		m, c, _ := w.monitored(t, Options{PoolSize: 4})
		began := time.Now()
		<-m.Ready()
		if got := w.requests("10.0.0.1:"); got > 4 {
			t.Errorf("%d requests to the host that hangs", got)
		}
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("the round took %v", took)
		}
		if c.Snapshot().Hosts[1].Observed != cluster.HostUnreachable || !c.Snapshot().Device(80).TakesFiles(100) {
			t.Error("observed", observed(c))
		}
		if w.atOnce() > 4 {
			t.Errorf("%d requests at once, want 4 at most", w.atOnce())
		}
	})
}

func TestParallel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(10, 10)
		m, _, _ := w.monitored(t, Options{})
		<-m.Ready()
		if w.atOnce() != 20 {
			t.Errorf("%d requests at once, want 20", w.atOnce())
		}
	})
}

func TestTestWrite(t *testing.T) {
	yes, no := true, false
	twice := 0
	tests := []struct {
		name   string
		disk   func(d *disk)
		want   cluster.DeviceState
		puts   int
		reject *bool
	}{
		{"well", func(*disk) {}, cluster.DeviceWriteable, 1, &yes},
		{"full", func(d *disk) { d.put = &storage.StatusError{Status: 507} }, cluster.DeviceReadable, 1, nil},
		{"read back by another tracker's hand", func(d *disk) {
			twice = 0
			d.read = func(file string) string {
				if twice++; twice == 1 {
					return "time=1 rand=1"
				}
				return file
			}
		}, cluster.DeviceWriteable, 2, &yes},
		{"read back from elsewhere", func(d *disk) { d.read = func(string) string { return "old" } }, cluster.DeviceReadable, 2, nil},
		{"Content-MD5 is ignored", func(d *disk) { d.md5 = nil }, cluster.DeviceWriteable, 1, &no},
		{"Content-MD5 cannot be tried", func(d *disk) { d.md5 = &storage.StatusError{Status: 503} }, cluster.DeviceWriteable, 1, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(1, 1)
				tt.disk(w.devices[1])
				m, c, _ := w.monitored(t, Options{})
				<-m.Ready()
				d := c.Snapshot().Device(1)
				if d.Observed != tt.want {
					t.Errorf("observed %s, want %s", d.Observed, tt.want)
				}
				if got := w.requests("PUT 10.0.0.1:7500/dev1/test-write/test-write-"); got != tt.puts {
					t.Errorf("%d test writes, want %d", got, tt.puts)
				}
				if got := d.RejectBadMD5; (got == nil) != (tt.reject == nil) || got != nil && *got != *tt.reject {
					t.Errorf("rejects a bad Content-MD5: %v", got)
				}
			})
		})
	}
}

// TestReadonlyIsNotWritten: neither a readonly device nor one on a readonly
// host; when it may be written again it is tried at once.
func TestReadonlyIsNotWritten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(2, 1)
		w.rows.Devices[0].Status = schema.DeviceReadonly
		w.rows.Hosts[1].Status = schema.HostReadonly
		m, c, _ := w.monitored(t, Options{})
		<-m.Ready()
		expect(t, c, "h1:reachable h2:reachable dev1:readable dev2:readable")
		if got := w.requests("PUT "); got != 0 {
			t.Errorf("%d PUT", got)
		}
		w.do(func() {
			w.rows.Devices[0].Status = schema.DeviceDrain
			w.rows.Hosts[1].Status = schema.HostAlive
		})
		if err := m.Refresh(t.Context()); err != nil {
			t.Error(err)
		}
		expect(t, c, "h1:reachable h2:reachable dev1:writeable dev2:writeable")
		w.do(func() { w.rows.Devices[0].Status = schema.DeviceReadonly })
		if err := m.Refresh(t.Context()); err != nil {
			t.Error(err)
		}
		expect(t, c, "h1:reachable h2:reachable dev1:readable dev2:writeable")
		w.do(func() { w.rows.Devices[0].Status = schema.DeviceAlive })
		if err := m.Refresh(t.Context()); err != nil {
			t.Error(err)
		}
		expect(t, c, "h1:reachable h2:reachable dev1:writeable dev2:writeable")
		// What is no longer looked at keeps its state.
		w.do(func() { w.rows.Devices[0].Status = schema.DeviceDown; w.gone[address(1)] = refusal })
		if err := m.Refresh(t.Context()); err != nil {
			t.Error(err)
		}
		expect(t, c, "h1:reachable h2:reachable dev1:writeable dev2:writeable")
		if c.Snapshot().Device(1).Readable() {
			t.Error("a device that is down is readable")
		}
	})
}

func TestDatabaseOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(1, 2)
		w.away = true
		var log bytes.Buffer
		m, c, _ := w.monitored(t, Options{Log: zerolog.New(&log).Level(zerolog.InfoLevel)})
		if err := m.Refresh(t.Context()); !errors.Is(err, schema.ErrUnavailable) {
			t.Errorf("refresh without a database: %v", err)
		}
		if err := m.NextRound(t.Context()); !errors.Is(err, schema.ErrUnavailable) {
			t.Errorf("next round without a database: %v", err)
		}
		w.do(func() { w.away = false })
		<-m.Ready() // it comes by itself
		w.do(func() { w.away = true })
		time.Sleep(30 * time.Second)
		synctest.Wait()
		written := w.writes()
		w.do(func() { w.devices[2].get = &storage.StatusError{Status: 503} })
		if err := m.Refresh(t.Context()); !errors.Is(err, schema.ErrUnavailable) {
			t.Errorf("refresh during the outage: %v", err)
		}
		expect(t, c, "h1:reachable dev1:writeable dev2:unreachable") // devices are looked at all the same
		if err := m.NextRound(t.Context()); err != nil {
			t.Errorf("next round during the outage: %v", err)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if w.writes() != written {
			t.Error("usage was written during the outage")
		}
		w.do(func() { w.away = false })
		time.Sleep(30 * time.Second)
		synctest.Wait()
		if w.writes() <= written {
			t.Error("usage is not written after the outage")
		}
		if err := m.Refresh(t.Context()); err != nil {
			t.Errorf("refresh after the outage: %v", err)
		}
		for text, want := range map[string]int{"does not answer: working": 2, "database answers again": 2} {
			if got := strings.Count(log.String(), text); got != want {
				t.Errorf("%q was logged %d times, want %d:\n%s", text, got, want, log.String())
			}
		}
	})
}

// TestRefreshBeginsAfterTheCall: a round that is under way does not count.
func TestRefreshBeginsAfterTheCall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(2, 1)
		m, c, _ := w.monitored(t, Options{})
		<-m.Ready()
		w.do(func() { w.gone[address(1)] = silence })
		time.Sleep(2600 * time.Millisecond) // a round is under way, and waits for host 1
		synctest.Wait()
		w.do(func() {
			clear(w.gone)
			w.addDevice(9, 2)
			w.log = nil
		})
		var all sync.WaitGroup
		for range 5 {
			all.Go(func() {
				if err := m.Refresh(t.Context()); err != nil {
					t.Error(err)
				}
				expect(t, c, "h1:reachable h2:reachable dev1:writeable dev2:writeable dev9:writeable")
			})
		}
		all.Go(func() {
			if err := m.NextRound(t.Context()); err != nil {
				t.Error(err)
			}
			if c.Snapshot().Device(9).Observed != cluster.DeviceWriteable {
				t.Error("the next round was the one under way")
			}
		})
		all.Wait()
		if got := w.requests("7510/dev9/usage"); got != 1 {
			t.Errorf("%d rounds for five calls", got)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := m.Refresh(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("cancelled: %v", err)
		}
	})
}

// TestNextRoundDoesNotAsk: it waits for the round that is due.
func TestNextRoundDoesNotAsk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(1, 1)
		m, _, _ := w.monitored(t, Options{})
		<-m.Ready()
		time.Sleep(time.Second)
		began := time.Now()
		if err := m.NextRound(t.Context()); err != nil {
			t.Error(err)
		}
		if took := time.Since(began); took < 1400*time.Millisecond || took > 1600*time.Millisecond {
			t.Errorf("the next round was over after %v, want about 1.5 s", took)
		}
		if got := w.requests("7510/dev1/usage"); got != 2 {
			t.Errorf("%d rounds", got)
		}
	})
}

// TestChanges: what another tracker announces is seen at once, devices too.
func TestChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(1, 1)
		m, c, _ := w.monitored(t, Options{})
		<-m.Ready()
		time.Sleep(500 * time.Millisecond)
		w.do(func() { w.addDevice(9, 1) })
		w.changes <- struct{}{}
		time.Sleep(100 * time.Millisecond)
		synctest.Wait()
		expect(t, c, "h1:reachable dev1:writeable dev9:writeable")
	})
}

// TestTwoTrackers: one of them writes what is used, and the other takes over.
func TestTwoTrackers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(1, 1)
		a, _, stop := w.monitored(t, Options{Name: "a"})
		<-a.Ready()
		b, c, _ := w.monitored(t, Options{Name: "b"})
		<-b.Ready()
		if w.writes() != 1 || w.leaseholder() != "a" {
			t.Errorf("written %d times, by %s", w.writes(), w.leaseholder())
		}
		time.Sleep(5 * time.Minute)
		synctest.Wait()
		if n := w.writes(); n < 300/25 || n > 300/15+1 {
			t.Errorf("two trackers wrote %d times in 5 minutes", n)
		}
		stop()
		before := w.writes()
		time.Sleep(time.Minute)
		synctest.Wait()
		if w.writes() < before+2 || w.leaseholder() != "b" {
			t.Errorf("after a stopped: written %d times more, by %s", w.writes()-before, w.leaseholder())
		}
		if free, known := c.Snapshot().Device(1).FreeMB(); !known || free != 900 {
			t.Errorf("b says that %d MiB are free", free)
		}
	})
}

func TestStreams(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(2, 1)
		type end struct{ err error }
		groups, ends := make(chan map[protocol.DevID]string), make(chan end)
		w.watch = func(ctx context.Context, host string, group func(map[protocol.DevID]string)) error {
			if host != address(1) {
				return fmt.Errorf("x: %w", storage.ErrNoStream)
			}
			for {
				select {
				case g := <-groups:
					group(g)
				case e := <-ends:
					return e.err
				case <-ctx.Done():
					return ctx.Err()
				}
			}
		}
		m, c, _ := w.monitored(t, Options{})
		<-m.Ready()
		say := func(g map[protocol.DevID]string) { groups <- g; synctest.Wait() }
		util := func() string { return c.Snapshot().Device(1).Utilization + c.Snapshot().Device(2).Utilization }
		say(map[protocol.DevID]string{1: "12.5", 2: "99", 77: "1"})
		if util() != "12.5" { // dev2 is not that host's
			t.Errorf("utilisation %q", util())
		}
		say(map[protocol.DevID]string{})
		say(map[protocol.DevID]string{1: "-"})
		if util() != "-" {
			t.Errorf("utilisation %q", util())
		}
		say(map[protocol.DevID]string{1: "7"})

		// A connection that gave something is made again at once.
		time.Sleep(2 * time.Second)
		w.forget()
		ends <- end{errors.New("EOF")}
		synctest.Wait()
		if got := w.requests("watch 10.0.0.1"); got != 1 {
			t.Errorf("%d connections after the first ended", got)
		}
		if util() != "7" {
			t.Errorf("utilisation %q", util())
		}

		// One that cannot be made: what it said is no longer known, and it is
		// left alone until the host answers or for a minute.
		w.do(func() { w.gone[address(1)] = refusal })
		time.Sleep(5 * time.Second)
		ends <- end{storage.ErrNoConnect}
		synctest.Wait()
		ends <- end{storage.ErrNoConnect} // it had been woken before
		synctest.Wait()
		w.forget()
		time.Sleep(59 * time.Second)
		synctest.Wait()
		if got := w.requests("watch 10.0.0.1"); got != 0 || util() != "-" {
			t.Errorf("%d connections within a minute, utilisation %q", got, util())
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if got := w.requests("watch 10.0.0.1"); got != 1 {
			t.Errorf("%d connections after a minute", got)
		}
		ends <- end{storage.ErrNoConnect}
		synctest.Wait()
		w.forget()
		w.do(func() { clear(w.gone) })
		time.Sleep(3 * time.Second)
		synctest.Wait()
		if got := w.requests("watch 10.0.0.1"); got != 1 {
			t.Errorf("%d connections after the host answered again", got)
		}

		// A host that moves is watched at its new address, one that is down not
		// at all.
		w.forget()
		w.do(func() { w.rows.Hosts[0].IP = "10.0.0.9"; w.rows.Hosts[1].Status = schema.HostDown })
		if err := m.Refresh(t.Context()); err != nil {
			t.Error(err)
		}
		synctest.Wait()
		time.Sleep(10 * time.Minute)
		if w.requests("watch 10.0.0.9") == 0 || w.requests("watch 10.0.0.1") != 0 || w.requests("watch 10.0.0.2") != 0 {
			t.Errorf("connections: %d %d %d", w.requests("watch 10.0.0.9"), w.requests("watch 10.0.0.1"), w.requests("watch 10.0.0.2"))
		}
	})
}

// TestRunAgain: a monitor that was stopped goes on, and those who wait for it
// with it.
func TestRunAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(1, 1)
		m, c, stop := w.monitored(t, Options{})
		<-m.Ready()
		w.do(func() { w.gone[address(1)] = silence })
		waited := make(chan error)
		go func() { waited <- m.Refresh(t.Context()) }()
		synctest.Wait()
		stop() // in the middle of that round
		expect(t, c, "h1:reachable dev1:writeable")
		w.do(func() { clear(w.gone) })
		ctx, cancel := context.WithCancel(t.Context())
		var run sync.WaitGroup
		for range 2 { // the second waits for its turn
			run.Go(func() {
				if err := m.Run(ctx); err != nil {
					t.Error(err)
				}
			})
		}
		if err := <-waited; err != nil {
			t.Error(err)
		}
		time.Sleep(time.Minute)
		before := w.requests("7510/dev1/usage")
		time.Sleep(time.Minute)
		if got := w.requests("7510/dev1/usage") - before; got > 25 {
			t.Errorf("%d rounds in a minute", got)
		}
		cancel()
		run.Wait()
	})
}

func TestMetrics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(2, 2)
		w.gone[address(2)] = silence
		w.devices[1].put = &storage.StatusError{Status: 507}
		reg := prometheus.NewRegistry()
		m, _, _ := w.monitored(t, Options{Registerer: reg})
		if _, err := reg.Gather(); err != nil {
			t.Errorf("before the first round: %v", err)
		}
		<-m.Ready()
		families, err := reg.Gather()
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, f := range families {
			for _, v := range f.GetMetric() {
				if f.GetName() == "mogile_monitor_round_seconds" {
					got = append(got, fmt.Sprint(f.GetName(), " ", v.GetHistogram().GetSampleCount()))
				} else if n := v.GetGauge().GetValue(); n != 0 {
					got = append(got, fmt.Sprint(f.GetName(), " ", v.GetLabel()[0].GetValue(), " ", n))
				}
			}
		}
		slices.Sort(got)
		want := []string{
			"mogile_monitor_devices readable 1", "mogile_monitor_devices unreachable 2", "mogile_monitor_devices writeable 1",
			"mogile_monitor_hosts reachable 1", "mogile_monitor_hosts unreachable 1", "mogile_monitor_round_seconds 1",
		}
		if !slices.Equal(got, want) {
			t.Errorf("got %q\nwant %q", got, want)
		}
	})
}
