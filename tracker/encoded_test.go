package tracker_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/schema"
)

// TestEncodedFile: what is told of a file that is kept in shards, and where it is
// read.
func TestEncodedFile(t *testing.T) {
	t.Parallel()
	e := start(t)
	c := e.dial()
	s := c.store("film", "hello world", "")
	c.store("pic", "hello", "")
	before := c.ok("file_info domain=toast&key=film&devices=1")
	if _, ok := before.Lookup("ec_k"); ok {
		t.Errorf("a file in copies: %v", before)
	}
	enc := schema.Encoding{FID: s.fid, ID: 0xabc, K: 2, M: 1, Block: 4096, Epoch: 1, Devices: []protocol.DevID{4, 1, 3}}
	if err := e.store.RecordEncoding(t.Context(), enc, []protocol.DevID{s.dev}); err != nil {
		t.Fatal(err)
	}
	if err := e.store.DeletedLocations(t.Context(), s.fid, []protocol.DevID{3}); err != nil {
		t.Fatal(err)
	}
	id := s.fid
	ec := "ec_encoding=0000000000000abc&ec_k=2&ec_m=1&ec_block=4096&ec_devids=4,1,0"
	c.same("file_info domain=toast&key=film&devices=1",
		fmt.Sprintf("OK fid=%d&domain=toast&class=default&key=film&length=11&devcount=2&devids=1,4&%s", id, ec))
	c.same("file_info domain=toast&key=film", fmt.Sprintf("OK fid=%d&domain=toast&class=default&key=film&length=11&devcount=2", id))
	debug := c.ok(fmt.Sprintf("file_debug fid=%d", id))
	if text := debug.String(); !strings.Contains(text, ec) || debug.Get("ec_epoch") != "1" || debug.Get("devids") != "1,4" ||
		!strings.HasSuffix(debug.Get("shardpath_0"), "/"+id.ShardPath(4)) || !strings.HasSuffix(debug.Get("shardpath_1"), "/"+id.ShardPath(1)) ||
		debug.Get("shardpath_2") != "" || debug.Get(fmt.Sprintf("copydelqueue_%d_failcount", s.dev)) != "0" {
		t.Errorf("file_debug: %s", text)
	}
	if err := e.store.QueueCopyDeletion(t.Context(), id, 3, schema.Shard); err != nil {
		t.Fatal(err)
	}
	if debug := c.ok(fmt.Sprintf("file_debug fid=%d", id)); debug.Get("copydelqueue_3_ec_failcount") != "0" {
		t.Errorf("file_debug: %s", debug)
	}

	// Each holder has paths to the whole file, all of them are offered, and those
	// that cannot be read are not.
	paths := func() []string {
		a := c.ok("get_paths domain=toast&key=film&noverify=1&pathcount=9")
		var found []string
		for i := range a.Number("paths") {
			found = append(found, a.Get(fmt.Sprintf("path%d", i+1)))
		}
		slices.Sort(found)
		return found
	}
	if got := paths(); len(got) != 2 || !strings.HasSuffix(got[0], "/"+id.Path(1)) || !strings.HasSuffix(got[1], "/"+id.Path(4)) {
		t.Errorf("paths: %v", got)
	}
	c.ok("set_state host=h1&device=1&state=down")
	if got := paths(); len(got) != 1 || !strings.HasSuffix(got[0], "/"+id.Path(4)) {
		t.Errorf("paths while dev1 is down: %v", got)
	}

	u := c.ok("class_usage")
	// A shard has a header of 4096 bytes, 6 of the file and a sum of 4.
	if u.Get("classes") != "1" || u.Get("class1_domain") != "toast" || u.Get("class1_class") != "default" || u.Get("class1_files") != "2" ||
		u.Get("class1_bytes") != "16" || u.Get("class1_stored") != fmt.Sprint(5+2*(4096+6+4)) {
		t.Errorf("class_usage: %v", u)
	}
}
