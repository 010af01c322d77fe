package tracker_test

import (
	"fmt"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/schema"
	"github.com/mogile/mogile/tracker"
)

// startRemembering is startShaky with a clock that can be moved.
func startRemembering(t *testing.T) (*env, *shaky, *atomic.Int64) {
	t.Helper()
	ahead := new(atomic.Int64)
	e, s := startShaky(t, func(o *tracker.Options) {
		o.Now = func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
	})
	return e, s, ahead
}

// names checks that the answer names fid, and how often the database was asked.
func (c *client) names(s *shaky, args string, fid protocol.FID, asked int64) {
	c.t.Helper()
	before := s.found.Load()
	a := c.ok("get_paths domain=toast&" + args)
	if a.Get("paths") == "0" || !strings.HasSuffix(a.Get("path1"), fmt.Sprintf("%010d.fid", fid)) {
		c.t.Errorf("get_paths %s answers %v; want fid %d", args, a, fid)
	}
	if got := s.found.Load() - before; got != asked {
		c.t.Errorf("get_paths %s asked the database %d times, want %d", args, got, asked)
	}
}

// metric is the value of a counter with one label.
func (e *env) metric(name, label string) float64 {
	e.t.Helper()
	families, err := e.tracker.Registry().Gather()
	if err != nil {
		e.t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.GetMetric() {
			if label == "" {
				return m.GetGauge().GetValue()
			}
			if m.GetLabel()[0].GetValue() == label {
				return m.GetCounter().GetValue()
			}
		}
	}
	e.t.Fatalf("no metric %s %s", name, label)
	return 0
}

func TestPathsAreFreshUnlessAskedOtherwise(t *testing.T) {
	t.Parallel()
	e, s, ahead := startRemembering(t)
	c := e.dial()
	dmid := schema.DMID(1)
	old := c.store("k", "hello", "")
	for range 2 {
		c.names(s, "key=k&noverify=1", old.fid, 1) // off
		c.names(s, "key=k", old.fid, 1)
	}
	c.names(s, "key=k&stale=30", old.fid, 1)
	c.names(s, "key=k&stale=30&noverify=1", old.fid, 0)
	c.names(s, "key=k&stale=30", old.fid, 0)
	c.names(s, "key=k&stale=-1", old.fid, 1)
	ahead.Add(int64(40 * time.Second))
	c.names(s, "key=k&noverify=1", old.fid, 1) // and renews what is remembered
	c.names(s, "key=k&stale=30&noverify=1", old.fid, 0)
	ahead.Add(int64(40 * time.Second))
	c.names(s, "key=k&stale=30&noverify=1", old.fid, 1)

	// What another tracker changes is seen after the ttl.
	c.ok("set_server_setting key=path_cache_ttl&value=60")
	c.names(s, "key=k&noverify=1", old.fid, 1) // what was read without a ttl has none
	c.names(s, "key=k&noverify=1", old.fid, 0)
	if err := s.RenameKey(t.Context(), dmid, "k", "elsewhere"); err != nil {
		t.Fatal(err)
	}
	ahead.Add(int64(50 * time.Second))
	c.names(s, "key=k", old.fid, 0)
	ahead.Add(int64(11 * time.Second))
	c.refused("get_paths domain=toast&key=k&noverify=1", "unknown_key")
	if err := s.RenameKey(t.Context(), dmid, "elsewhere", "k"); err != nil {
		t.Fatal(err)
	}
	c.names(s, "key=k", old.fid, 1) // that there is none is not remembered

	// What this tracker changes is seen at once.
	began := time.Now().Unix()
	young := c.store("k", "world", "")
	c.names(s, "key=k&noverify=1", young.fid, 1)
	c.names(s, "key=k&noverify=1&stale=999999", young.fid, 0)
	for _, row := range e.debug(old.fid).Queues {
		if wait := row.NextTry - began; row.Queue == schema.QueueDelete && wait < 70 {
			t.Errorf("bytes that are still named go after %d s", wait)
		}
	}
	c.ok("updateclass domain=toast&key=k&class=default")
	c.ok("rename domain=toast&from_key=k&to_key=new")
	c.refused("get_paths domain=toast&key=k&noverify=1", "unknown_key")
	c.names(s, "key=new&noverify=1", young.fid, 1)
	c.ok("clear_cache")
	c.names(s, "key=new&noverify=1", young.fid, 1)
	c.ok("delete domain=toast&key=new")
	c.refused("get_paths domain=toast&key=new&noverify=1&stale=60", "unknown_key")
	if n := e.metric("mogile_tracker_path_cache_entries", ""); n != 0 {
		t.Errorf("%v files are remembered, of none", n)
	}
	for result, least := range map[string]float64{"hit": 3, "stale": 3, "miss": 8} {
		if n := e.metric("mogile_tracker_path_cache_total", result); n < least {
			t.Errorf("%v look-ups are counted as %s, want %v or more", n, result, least)
		}
	}
}

// TestRememberedPathsKnowTheDevices: where the file is may be from memory, how
// the devices are is not.
func TestRememberedPathsKnowTheDevices(t *testing.T) {
	t.Parallel()
	e, s, _ := startRemembering(t)
	c := e.dial()
	f := c.store("k", "hello", "")
	c.ok("set_server_setting key=path_cache_ttl&value=60")
	c.names(s, "key=k", f.fid, 1)
	c.names(s, "key=k", f.fid, 0)

	// The copy moves to another device; the old one has its bytes no more.
	other := f.dev%4 + 1
	content := e.take(f.path)
	path := e.put(other, f.fid, content)
	if err := s.AddLocation(t.Context(), f.fid, other, []protocol.DevID{f.dev}); err != nil {
		t.Fatal(err)
	}
	if err := s.DropLocation(t.Context(), f.fid, f.dev, []protocol.DevID{f.dev, other}); err != nil {
		t.Fatal(err)
	}
	c.same("get_paths domain=toast&key=k&noverify=1", "OK paths=1&path1="+protocol.Escape(f.path)) // a client that looks for itself
	c.names(s, "key=k", f.fid, 1)                                                                  // not there any more
	c.same("get_paths domain=toast&key=k&noverify=1", "OK paths=1&path1="+protocol.Escape(path))

	// A device that nobody should read from is not offered for its own sake.
	if err := s.AddLocation(t.Context(), f.fid, f.dev, []protocol.DevID{other}); err != nil {
		t.Fatal(err)
	}
	c.ok(fmt.Sprintf("set_state host=h%d&device=%d&state=down", (other+1)/2, other))
	c.names(s, "key=k&noverify=1", f.fid, 1)
	c.same("get_paths domain=toast&key=k&noverify=1", "OK paths=1&path1="+protocol.Escape(f.path))
}

// host is the host that a URL is on.
func (e *env) host(path string) (*fakeHost, string) {
	e.t.Helper()
	u, err := url.Parse(path)
	if err != nil {
		e.t.Fatal(err)
	}
	for _, h := range e.farm.hosts {
		if h.http.Listener.Addr().String() == u.Host {
			return h, u.Path
		}
	}
	e.t.Fatalf("%s is on no host", path)
	return nil, ""
}

// take removes a file's bytes from its host.
func (e *env) take(path string) []byte {
	e.t.Helper()
	h, name := e.host(path)
	h.mu.Lock()
	defer h.mu.Unlock()
	content := h.files[name]
	delete(h.files, name)
	return content
}

// put puts a file's bytes onto a device, and returns where.
func (e *env) put(dev protocol.DevID, fid protocol.FID, content []byte) string {
	h := e.farm.hosts[(dev-1)/2]
	name := "/" + fid.Path(dev)
	h.mu.Lock()
	defer h.mu.Unlock()
	h.files[name] = content
	return "http://" + h.http.Listener.Addr().String() + name
}

func TestPathsWhileTheDatabaseIsAway(t *testing.T) {
	t.Parallel()
	e, s, ahead := startRemembering(t)
	c := e.dial()
	f, other := c.store("k", "hello", ""), c.store("unasked", "hello", "")
	c.names(s, "key=k&stale=5", f.fid, 1)
	ahead.Add(int64(time.Hour))
	s.away.Store(true)
	c.names(s, "key=k", f.fid, 1)
	c.refused("get_paths domain=toast&key=unasked&noverify=1", "failure")
	c.refused("get_paths domain=toast&key=none", "failure")
	s.hangs.Store(true)
	c.names(s, "key=k&noverify=1", f.fid, 1)
	s.hangs.Store(false)
	if n := e.metric("mogile_tracker_path_cache_total", "away"); n != 2 {
		t.Errorf("%v answers are counted as away, want 2", n)
	}

	// After a change whose outcome nobody knows there is nothing to answer.
	c.refused("delete domain=toast&key=k", "failure")
	c.refused("get_paths domain=toast&key=k", "failure")

	s.away.Store(false)
	c.ok("set_server_setting key=path_cache_database_away&value=0")
	c.names(s, "key=k&stale=5", f.fid, 1)
	c.names(s, "key=unasked&stale=5", other.fid, 1)
	ahead.Add(int64(time.Minute))
	s.away.Store(true)
	c.refused("get_paths domain=toast&key=k&noverify=1&stale=5", "failure")
	c.names(s, "key=k&noverify=1&stale=100", f.fid, 0)
}

// TestOverwritesAreSeenAtOnce has clients overwrite keys while others ask for
// paths, which may come from memory: an answer never names a file that was
// overwritten before the question.
func TestOverwritesAreSeenAtOnce(t *testing.T) {
	t.Parallel()
	e := start(t)
	for _, h := range e.farm.hosts {
		h.anything.Store(true)
	}
	e.dial().ok("set_server_setting key=path_cache_ttl&value=3600")
	const keys, overwrites = 3, 25
	var acknowledged [keys]atomic.Uint64
	var writers, readers sync.WaitGroup
	done := make(chan struct{})
	for i := range keys {
		w, r := e.dial(), e.dial()
		writers.Go(func() {
			for range overwrites {
				s := w.open(fmt.Sprintf("domain=toast&key=%d", i))
				if got := w.ask(s.close("toast", fmt.Sprint(i), "")); got != "OK " {
					t.Errorf("create_close answers %q", got)
					return
				}
				acknowledged[i].Store(uint64(s.fid))
			}
		})
		readers.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				floor := acknowledged[i].Load()
				a, err := protocol.ParseReply(r.ask(fmt.Sprintf("get_paths domain=toast&key=%d&noverify=1", i)))
				if err != nil {
					if floor > 0 {
						t.Errorf("get_paths of fid %d: %v", floor, err)
					}
					continue
				}
				path := a.Get("path1")
				var fid uint64
				if _, err := fmt.Sscanf(path[strings.LastIndexByte(path, '/')+1:], "%d.fid", &fid); err != nil || fid < floor {
					t.Errorf("answered is %s after fid %d was acknowledged: %v", path, floor, err)
				}
			}
		})
	}
	writers.Wait()
	close(done)
	readers.Wait()
	if n := e.metric("mogile_tracker_path_cache_total", "hit"); n == 0 {
		t.Error("nothing was answered from memory")
	}
}
