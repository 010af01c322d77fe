package storaged

import (
	"bufio"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mogile/mogile/protocol"
)

// write puts a file in place behind the daemon's back.
func (d *daemon) write(path, content string) {
	d.t.Helper()
	name := filepath.Join(d.docroot, path)
	if err := os.MkdirAll(filepath.Dir(name), 0o777); err != nil {
		d.t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
		d.t.Fatal(err)
	}
}

// TestPeersAndSuspects: a tracker tells where devices are, and asks which shards
// are missing or bad, whose number it learns from answers about a device's usage.
func TestPeersAndSuspects(t *testing.T) {
	t.Parallel()
	d := start(t, Options{ClusterKeys: [][]byte{testKey}}, 1)
	if r := d.get("/dev1/usage"); !strings.HasSuffix(r.Header.Get("Mogile"), " ec") || r.Header.Get(protocol.SuspectsHeader) != "" {
		t.Errorf("%v", r.Header)
	}
	version := time.Now().UnixMilli()
	for _, v := range []int64{version, version - 5} {
		l := d.order(protocol.VerbPeers, testKey, protocol.PeersOrder{Version: v, Peers: map[protocol.DevID]string{7: fmt.Sprintf("http://127.0.0.1:%d", v)}}.Args()...)
		if r, err := protocol.ParsePeersReport(l.Fields); err != nil || r.Version != version {
			t.Errorf("%v, %v", l, err)
		}
	}
	if url, ok := d.peers.URL(7); !ok || url != fmt.Sprintf("http://127.0.0.1:%d", version) {
		t.Errorf("dev7 is at %q", url)
	}
	for verb, args := range map[string]protocol.Args{protocol.VerbPeers: {{Name: "peers", Value: "x"}}, protocol.VerbSuspects: nil} {
		if l := d.order(verb, testKey, args...); l.Kind != protocol.AnswerErr || l.Err.Code != "bad_order" {
			t.Errorf("%s: %v", verb, l)
		}
	}
	for fid := range protocol.FID(5) {
		d.suspects.add(protocol.FIDOn{FID: 5 - fid, Dev: 7})
	}
	for _, method := range []string{"GET", "HEAD"} {
		if r := d.do("%s /dev1/usage HTTP/1.1\nHost: x\n\n", method); r.Header.Get(protocol.SuspectsHeader) != "5" {
			t.Errorf("%s: %v", method, r.Header)
		}
	}
	var told []string
	for range 3 {
		items, end := d.inventory(protocol.VerbSuspects, protocol.SuspectsOrder{Limit: 3}.Args())
		if end.Kind != protocol.AnswerOK {
			t.Fatal(end)
		}
		for _, i := range items {
			s, err := protocol.ParseSuspect(i)
			if err != nil {
				t.Fatal(err)
			}
			told = append(told, s.String())
		}
	}
	if want := []string{"1:7", "2:7", "3:7", "4:7", "5:7"}; !slices.Equal(told, want) {
		t.Errorf("told %v, want %v", told, want)
	}
	if r := d.get("/dev1/usage"); r.Header.Get(protocol.SuspectsHeader) != "" {
		t.Errorf("%v", r.Header)
	}
}

// Suspects are told once in a while, and are bounded; those that could not be
// told are told again.
func TestSuspects(t *testing.T) {
	t.Parallel()
	now := time.Unix(1_700_000_000, 0)
	s := newSuspects(func() time.Time { return now })
	at := func(n int) protocol.FIDOn { return protocol.FIDOn{FID: protocol.FID(n + 1), Dev: 1} }
	if !s.add(at(0)) || s.add(at(0)) || s.count() != 1 {
		t.Error("one shard is not one suspect")
	}
	if got := s.take(10); len(got) != 1 || s.count() != 0 || s.add(at(0)) {
		t.Errorf("%v; told of again at once", got)
	}
	now = now.Add(suspectAgain)
	if !s.add(at(0)) {
		t.Error("not told of again later")
	}
	s.giveBack(s.take(1))
	if s.count() != 1 {
		t.Error("what was given back is gone")
	}
	for n := range 2 * maxSuspects {
		s.add(at(n))
	}
	if s.count() != maxSuspects {
		t.Errorf("%d wait", s.count())
	}
	s.take(maxSuspects)
	for n := range 2 * maxSuspects {
		s.add(at(n))
	}
	s.take(maxSuspects)
	if len(s.told) != maxSuspects {
		t.Errorf("%d are remembered", len(s.told))
	}
	now = now.Add(suspectAgain)
	s.take(1)
	if len(s.told) != 0 {
		t.Errorf("%d are remembered for ever", len(s.told))
	}
}

// TestShardsAndCopies: to clients the path of a copy is that of the file. They
// cannot store a copy beside a shard, and a DELETE removes both; the shard itself
// is a file like others, but for writing.
func TestShardsAndCopies(t *testing.T) {
	t.Parallel()
	d := start(t, Options{ClusterKeys: [][]byte{testKey}}, 1)
	const fid = protocol.FID(42)
	raw, shard := fid.Path(1), fid.ShardPath(1)
	exists := func(path string) bool {
		_, err := os.Stat(filepath.Join(d.docroot, path))
		return err == nil
	}
	for _, tt := range []struct {
		has    []string
		delete string
		status int
	}{
		{nil, raw, 404}, {[]string{raw}, raw, 204}, {[]string{shard}, raw, 204}, {[]string{raw, shard}, raw, 204}, {[]string{shard}, shard, 204},
	} {
		for _, path := range tt.has {
			d.write(path, "x")
		}
		if r := d.do("DELETE /%s HTTP/1.1\nHost: x\n\n", tt.delete); r.StatusCode != tt.status {
			t.Errorf("DELETE of %s where %v is: %s", tt.delete, tt.has, r.Status)
		}
		if exists(raw) || exists(shard) {
			t.Errorf("DELETE of %s where %v was leaves something", tt.delete, tt.has)
		}
	}
	d.write(shard, "the shard")
	long := strings.Repeat("x", 2*bufferSize)
	for _, request := range []string{
		"PUT /" + raw + " HTTP/1.1\nHost: x\nContent-Length: 1\n\nx",
		"PUT /" + raw + " HTTP/1.1\nHost: x\nContent-Length: 131072\n\n" + long,
		"PUT /" + raw + " HTTP/1.1\nHost: x\nContent-Range: bytes 0-0/*\nContent-Length: 1\n\nx",
		"PUT /" + raw + " HTTP/1.1\nHost: x\nTransfer-Encoding: chunked\n\n1\r\nx\r\n0\r\n\r\n",
	} {
		if r := d.do("%s", request); r.StatusCode != http.StatusConflict || exists(raw) {
			t.Errorf("%.40q: %s", request, r.Status)
		}
	}
	if r := d.do("PUT /%s HTTP/1.1\nHost: x\nContent-Length: 1\n\nx", shard); r.StatusCode != http.StatusForbidden {
		t.Errorf("PUT of a shard without an order: %s", r.Status)
	}
	if r := d.get("/" + shard); r.body != "the shard" {
		t.Errorf("%s, %q", r.Status, r.body)
	}
	if r := d.do("GET /%s HTTP/1.1\nHost: x\nRange: bytes=4-\n\n", shard); r.StatusCode != 206 || r.body != "shard" {
		t.Errorf("%s, %q", r.Status, r.body)
	}
}

// A shard that comes while a copy is uploaded is not hidden by it.
func TestShardComesDuringPut(t *testing.T) {
	t.Parallel()
	d := start(t, Options{}, 1)
	const fid = protocol.FID(42)
	c := dial(t, d.HTTPAddr())
	fmt.Fprintf(c, "PUT /%s HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n%s", fid.Path(1), strings.Repeat("x", 80000))
	eventually(t, "the upload is under way", func() bool { return metric(t, d, "mogile_storaged_requests_in_flight") == 1 })
	d.write(fid.ShardPath(1), "shard")
	fmt.Fprint(c, strings.Repeat("x", 20000))
	r, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Body.Close()
	if _, err := os.Stat(filepath.Join(d.docroot, fid.Path(1))); err == nil || r.StatusCode != http.StatusConflict {
		t.Errorf("%s, %v", r.Status, err)
	}
}
