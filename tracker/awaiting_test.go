package tracker_test

import (
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/schema"
	"github.com/mogile/mogile/tracker"
)

func TestCloseWaitsForReplicas(t *testing.T) {
	t.Parallel()
	e := start(t, func(o *tracker.Options) { o.ReplicateJobs = 2 })
	c := e.dial()
	for _, key := range []string{"a", "b", "c"} {
		s := c.open("domain=toast&key=" + key)
		put(t, s.path, "hello")
		if got := c.ok(s.close("toast", key, "&wait=replicated")); got.Get("replicated") != "1" {
			t.Errorf("create_close answers %v", got)
		}
		if d := e.debug(s.fid); len(d.Devices) != 2 {
			t.Errorf("fid %d is on %v when its close is answered", s.fid, d.Devices)
		}
	}
	// What gives an upload up waits for nothing.
	s := c.open("domain=toast&key=d")
	c.ok(s.close("toast", "", "&wait=replicated"))
}

func TestCloseRefusesWaitsThatMakeNoSense(t *testing.T) {
	t.Parallel()
	e := start(t)
	c := e.dial()
	s := c.open("domain=toast&key=k")
	put(t, s.path, "hello")
	for _, more := range []string{
		"&wait=", "&wait=1", "&wait=REPLICATED", "&wait=replicated&wait_timeout=", "&wait=replicated&wait_timeout=0",
		"&wait=replicated&wait_timeout=-1", "&wait=replicated&wait_timeout=1.5", "&wait=replicated&wait_timeout=3601",
		"&wait=replicated&wait_timeout=99999999999999999999",
	} {
		c.refused(s.close("toast", "k", more), "bad_params")
	}
	c.ok(s.close("toast", "k", "&wait_timeout=x")) // nothing is waited for; the upload was left open
}

// TestCloseWaitsInVain closes where nobody replicates: the file is stored and
// queued, the answer says so, and meanwhile the only query worker serves others.
func TestCloseWaitsInVain(t *testing.T) {
	t.Parallel()
	e := start(t, func(o *tracker.Options) { o.QueryJobs = 1; o.QueryTimeout = time.Second })
	c, other := e.dial(), e.dial()
	s := c.open("domain=toast&key=k")
	put(t, s.path, "hello")
	var g sync.WaitGroup
	g.Go(func() {
		refusal := c.refused(s.close("toast", "k", "&wait=replicated&wait_timeout=3"), "replication_timeout")
		if refusal != nil && !strings.Contains(refusal.Text, "stored, and queued") {
			t.Errorf("the answer says %q", refusal.Text)
		}
	})
	e.eventually("the file is there, though its close is not answered", func() bool {
		return strings.HasPrefix(other.ask("get_paths domain=toast&key=k"), "OK ")
	})
	g.Wait()
	d := e.debug(s.fid)
	if d.File == nil || len(d.Devices) != 1 || len(d.Queues) != 1 || d.Queues[0].Queue != schema.QueueReplicate {
		t.Errorf("left behind: %+v", d)
	}
	c.ok("get_paths domain=toast&key=k")

	// The file goes while its close waits.
	s = c.open("domain=toast&key=gone")
	put(t, s.path, "hello")
	g.Go(func() { c.refused(s.close("toast", "gone", "&wait=replicated&wait_timeout=60"), "unknown_key") })
	e.eventually("it can be deleted", func() bool {
		return strings.HasPrefix(other.ask("delete domain=toast&key=gone"), "OK ")
	})
	g.Wait()
}

// TestClientWaitsForReplicas uses the client of Go programs.
func TestClientWaitsForReplicas(t *testing.T) {
	t.Parallel()
	e := start(t, func(o *tracker.Options) { o.ReplicateJobs = 1 })
	cl, err := protocol.NewClient(protocol.ClientOptions{Trackers: []string{e.tracker.Addrs()[0].String()}})
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	f, err := cl.Create(t.Context(), "toast", "k", protocol.CreateOptions{WaitReplicated: time.Minute}, strings.NewReader("hello"))
	if err != nil {
		t.Fatal(err)
	}
	if d := e.debug(f.FID); len(d.Devices) != 2 {
		t.Errorf("on %v", d.Devices)
	}
}
