package tracker_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/schema"
	"github.com/mogile/mogile/tracker"
)

// givenUp checks that nothing of an upload stays.
func (e *env) givenUp(s stored) {
	e.t.Helper()
	if d := e.debug(s.fid); d.File != nil || d.Tempfile != nil || !cmp.Equal(d.Devices, []protocol.DevID{s.dev}) || e.queues(s.fid) != "delete" {
		e.t.Errorf("upload of fid %d was not taken back: %+v", s.fid, d)
	}
}

func TestOverwriteOnlyIfPermitted(t *testing.T) {
	t.Parallel()
	e := start(t)
	c := e.dial()
	upload := func() stored {
		t.Helper()
		s := c.open("domain=toast&key=k")
		put(t, s.path, "hello")
		return s
	}
	for i, absent := range []string{"&overwrite=0", "&overwrite=", "&overwrite=0&if_fid=0"} {
		s, key := upload(), fmt.Sprint("new", i)
		c.same(s.close("toast", key, absent), "OK ")
		if d := e.debug(s.fid); d.File == nil {
			t.Errorf("%s: %+v", absent, d)
		}
	}
	first := c.store("k", "hello", "")
	for _, off := range []string{"&overwrite=0", "&overwrite=", "&overwrite=0&if_fid=" + first.fid.String()} {
		s := upload()
		if got, want := c.ask(s.close("toast", "k", off)), "ERR key_exists Target+key+name+already+exists%3B+can%27t+overwrite."; got != want {
			t.Errorf("%s answers %q, want %q", off, got, want)
		}
		e.givenUp(s)
		c.refused(s.close("toast", "k", off), "no_temp_file")
	}
	if got := c.ok("file_info domain=toast&key=k").Get("fid"); got != first.fid.String() {
		t.Errorf("the key names fid %s, want %d", got, first.fid)
	}
	for _, on := range []string{"", "&overwrite=1", "&overwrite=no"} {
		s := upload()
		c.same(s.close("toast", "k", on), "OK ")
		if got := c.ok("file_info domain=toast&key=k").Get("fid"); got != s.fid.String() {
			t.Errorf("%q did not overwrite", on)
		}
	}
	// An upload that its client gives up is given up, whatever else it says.
	s := upload()
	c.same(s.close("toast", "", "&overwrite=0&if_fid=0"), "OK ")
	e.givenUp(s)

	// Of many, one creates.
	const clients = 12
	var won atomic.Int64
	var wg sync.WaitGroup
	for range clients {
		wg.Go(func() {
			c := e.dial()
			s := c.open("domain=toast&key=race")
			put(t, s.path, "hello")
			switch got := c.ask(s.close("toast", "race", "&overwrite=0")); {
			case got == "OK ":
				won.Add(1)
			case !strings.HasPrefix(got, "ERR key_exists "):
				t.Errorf("a close answers %q", got)
			default:
				e.givenUp(s)
			}
		})
	}
	wg.Wait()
	if won.Load() != 1 {
		t.Errorf("%d clients created the key", won.Load())
	}
}

func TestChangesOnlyOfACertainFile(t *testing.T) {
	t.Parallel()
	e := start(t)
	c := e.dial()
	c.ok("create_class domain=toast&class=big&mindevcount=3")
	s := c.store("k", "hello", "")
	id, other := s.fid, s.fid+1000
	mismatch := fmt.Sprintf("ERR fid_mismatch The+key+names+fid+%d,+and+should+name+fid+%d", id, other)
	for _, line := range []string{
		"delete domain=toast&key=k&if_fid=%d",
		"rename domain=toast&from_key=k&to_key=b&if_fid=%d",
		"updateclass domain=toast&key=k&class=big&if_fid=%d",
		"updateclass domain=toast&key=k&class=default&if_fid=%d",
	} {
		if got := c.ask(fmt.Sprintf(line, other)); got != mismatch {
			t.Errorf("%s answers %q, want %q", line, got, mismatch)
		}
		for _, junk := range []string{"", "x", "-1", "1x", "99999999999999999999"} {
			c.refused(strings.Replace(line, "%d", junk, 1), "bad_params")
		}
		c.refused(strings.Replace(line, "%d", "0", 1), "fid_mismatch")
	}
	if d := e.debug(id); d.File == nil || d.File.Key != "k" || d.File.ClassID != 0 {
		t.Errorf("refused changes left %+v", d.File)
	}
	c.refused(fmt.Sprintf("delete domain=toast&key=nix&if_fid=%d", id), "unknown_key")
	c.refused(fmt.Sprintf("rename domain=toast&from_key=nix&to_key=b&if_fid=%d", id), "unknown_key")
	c.refused(fmt.Sprintf("updateclass domain=toast&key=nix&class=big&if_fid=%d", id), "invalid_key")
	c.same(fmt.Sprintf("updateclass domain=toast&key=k&class=big&if_fid=%d", id), "OK ")
	c.same(fmt.Sprintf("rename domain=toast&from_key=k&to_key=b&if_fid=%d", id), "OK ")
	if d := e.debug(id); d.File == nil || d.File.Key != "b" || d.File.ClassID != 1 {
		t.Errorf("after both the file is %+v", d.File)
	}

	upload := func() stored {
		t.Helper()
		s := c.open("domain=toast&key=b")
		put(t, s.path, "hello")
		return s
	}
	next := upload()
	c.refused(next.close("toast", "b", "&if_fid=x"), "bad_params") // nothing has happened
	if got := c.ask(next.close("toast", "b", fmt.Sprint("&if_fid=", other))); got != mismatch {
		t.Errorf("create_close answers %q, want %q", got, mismatch)
	}
	e.givenUp(next)
	next = upload()
	c.refused(next.close("toast", "b", "&if_fid=0"), "fid_mismatch")
	e.givenUp(next)
	next = upload()
	c.refused(next.close("toast", "nix", fmt.Sprint("&if_fid=", id)), "fid_mismatch")
	next = upload()
	c.same(next.close("toast", "b", fmt.Sprint("&if_fid=", id)), "OK ")
	if got := e.queues(id); !strings.Contains(got, "delete") {
		t.Errorf("the file that was replaced is queued for %q", got)
	}
	c.refused(fmt.Sprintf("delete domain=toast&key=b&if_fid=%d", id), "fid_mismatch")
	c.same(fmt.Sprintf("delete domain=toast&key=b&if_fid=%d", next.fid), "OK ")
}

// TestCloseIntoAClassThatIsGone deletes a class between the two halves of an
// upload, as a tracker does that has not seen the upload yet.
func TestCloseIntoAClassThatIsGone(t *testing.T) {
	t.Parallel()
	e := start(t)
	c := e.dial()
	c.ok("create_class domain=toast&class=doomed&mindevcount=1")
	s := c.open("domain=toast&key=k&class=doomed")
	put(t, s.path, "hello")
	c.refused("delete_class domain=toast&class=doomed", "class_has_files")
	row := e.debug(s.fid).Tempfile
	if err := e.store.DiscardUpload(t.Context(), s.fid, s.dev); err != nil {
		t.Fatal(err)
	}
	c.ok("delete_class domain=toast&class=doomed")
	row.FID = 0
	late, err := e.store.CreateTempfile(t.Context(), *row)
	if err != nil {
		t.Fatal(err)
	}
	s.path = strings.Replace(s.path, s.fid.Path(s.dev), late.Path(s.dev), 1)
	s.fid = late
	put(t, s.path, "hello")
	if got := c.ask(s.close("toast", "k", "")); got != "ERR unreg_class unreg_class" {
		t.Errorf("create_close answers %q", got)
	}
	e.givenUp(s)
}

// queued is a store in which every fid has the same rows in the queues.
type queued struct {
	schema.Store
	rows []schema.QueueRow
}

func (q *queued) DebugFile(ctx context.Context, fid protocol.FID) (schema.FileDebug, error) {
	d, err := q.Store.DebugFile(ctx, fid)
	d.Queues = q.rows
	return d, err
}

// TestDebugShowsEveryQueue has a row of each queue shown.
func TestDebugShowsEveryQueue(t *testing.T) {
	t.Parallel()
	q := &queued{}
	e := start(t, func(o *tracker.Options) {
		q.Store = o.Store
		o.Store = q
	})
	c := e.dial()
	s := c.store("k", "hello", "")
	dev, arg := protocol.DevID(2), "3,4"
	q.rows = []schema.QueueRow{
		{Queue: schema.QueueReplicate, FID: s.fid, DevID: &dev, NextTry: 40, FailCount: 3, Flags: 1},
		{Queue: schema.QueueDelete, FID: s.fid, NextTry: 50, FailCount: 2},
		{Queue: schema.QueueFsck, FID: s.fid, NextTry: 60},
		{Queue: schema.QueueRebalance, FID: s.fid, DevID: &dev, NextTry: 70, FailCount: 1, Flags: 4, Arg: &arg},
	}
	id := s.fid
	c.same(fmt.Sprintf("file_debug fid=%d", id), fmt.Sprintf("OK fid_fid=%[1]d&fid_dmid=1&fid_dkey=k&fid_length=5&fid_classid=0&fid_devcount=1&fid_domain=toast&fid_class=default&"+
		"replqueue_fid=%[1]d&replqueue_nexttry=40&replqueue_fromdevid=2&replqueue_failcount=3&replqueue_flags=1&"+
		"delqueue_fid=%[1]d&delqueue_nexttry=50&delqueue_failcount=2&"+
		"fsckqueue_fid=%[1]d&fsckqueue_devid=&fsckqueue_type=1&fsckqueue_nexttry=60&fsckqueue_failcount=0&fsckqueue_flags=0&fsckqueue_arg=&"+
		"rebqueue_fid=%[1]d&rebqueue_devid=2&rebqueue_type=2&rebqueue_nexttry=70&rebqueue_failcount=1&rebqueue_flags=4&rebqueue_arg=3,4&"+
		"devids=%[2]d&devpath_%[2]d=%[3]s&checksum=NONE", id, s.dev, protocol.Escape(s.path)))
}
