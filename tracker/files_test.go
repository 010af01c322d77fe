package tracker_test

import (
	"crypto/md5"
	"fmt"
	"net"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/schema"
	"github.com/mogile/mogile/tracker"
)

// TestLifeOfAFile is the transcript of a full life cycle.
func TestLifeOfAFile(t *testing.T) {
	t.Parallel()
	f := newFarm(t, 1, 1)
	e := startOn(t, f, openStore(t))
	h := f.hosts[0]
	c := e.dial()
	path := fmt.Sprintf("http://%s:%d/dev1/0/000/000/0000000001.fid", h.ip, h.port())
	say := func(line, want string) {
		t.Helper()
		if got := c.ask(line); got != want {
			t.Errorf("%s\nanswers %q\nwant    %q", line, got, want)
		}
	}
	say("create_domain domain=toast", "OK domain=toast")
	say(fmt.Sprintf("create_host host=s1&ip=%s&port=%d&status=alive", h.ip, h.port()), "OK hostid=1&hostname=s1")
	say("create_device hostname=s1&devid=1", "OK ")
	say("create_open domain=toast&class=&key=a&multi_dest=1&fid=0", "OK fid=1&dev_count=1&devid_1=1&path_1="+path)
	put(t, path, "hello")
	say("create_close domain=toast&fid=1&devid=1&key=a&size=5&path="+path, "OK ")
	say("get_paths domain=toast&key=a&noverify=0", "OK paths=1&path1="+path)
	say("rename domain=toast&from_key=a&to_key=b", "OK ")
	say("delete domain=toast&key=b", "OK ")
	say("delete domain=toast&key=b", "ERR unknown_key unknown_key")
}

func TestFraming(t *testing.T) {
	t.Parallel()
	e := start(t)
	for _, c := range []struct {
		name, send string
		want       []string
	}{
		{"pipelined", "list_keys domain=\r\nlist_keys domain=\r\n", []string{"ERR no_domain No+domain+provided", "ERR no_domain No+domain+provided"}},
		{"LF", "noop\n", []string{"OK "}},
		{"empty lines get no reply", "\r\n\nnoop\r\n", []string{"OK "}},
		{"only blanks", "  \r\n", []string{"ERR unknown_command Unknown+server+command"}},
		{"not a word", "&&&\n", []string{"ERR unknown_command Unknown+server+command"}},
		{"leading blanks, several before the arguments", "  \tnoop   callid=1\n", []string{"OK callid=1"}},
		{"no blank, capitals", "GET_PATHS&domain=toast&key=nix\n", []string{"ERR unknown_key unknown_key"}},
		{"unknown", "nosuch callid=7\r\n", []string{"ERR unknown_command Unknown+server+command 7"}},
		{"callid in refusals", "delete domain=toast&callid=abc-7\n", []string{"ERR no_key no_key abc-7"}},
		{"an empty callid", "noop callid=\ndelete domain=toast&callid=\n", []string{"OK callid=", "ERR no_key no_key "}},
		{"not the console", "! version\n!\n !version\n", []string{
			"ERR unknown_command Unknown+server+command", "ERR unknown_command Unknown+server+command", "ERR unknown_command Unknown+server+command",
		}},
		{"binary", "\x00\xff\x80\n\xfe noop\n", []string{"ERR unknown_command Unknown+server+command", "ERR unknown_command Unknown+server+command"}},
		{"binary after a word", "noop\x00\xff=\x01\n", []string{"OK "}},
		{"the last of several values counts", "clear_cache a=1&a=2\n", []string{"OK a=2"}},
		{"pieces without a value", "clear_cache a&b=&&c=%zz\n", []string{"OK a=&b=&c=%25zz"}},
		{"encoding", "clear_cache a%20+b=%c3%a4_,-./\\:~\n", []string{"OK a++b=%C3%A4_,-./\\:%7E"}},
		{"test", "test\ntest crash=1\ntest crash=0\n", []string{"OK ", "ERR failure Operation+failed", "OK "}},
		{"left out", "httpcopy sdevid=1&ddevid=2&fid=42\nplugin_x\n", []string{
			"ERR unknown_command Unknown+server+command", "ERR unknown_command Unknown+server+command",
		}},
		{"a long key", "get_paths domain=toast&key=" + strings.Repeat("k", 1<<20) + "\nnoop\n", []string{"ERR unknown_key unknown_key", "OK "}},
		{"many arguments", "noop " + strings.Repeat("a=1&b=2&", 1<<16) + "\n", []string{"OK "}},
	} {
		t.Run(c.name, func(t *testing.T) {
			conn := e.dialAddr(e.tracker.Addrs()[1])
			conn.t = t
			conn.send(c.send)
			for i, want := range c.want {
				if got := conn.line(); got != want {
					t.Errorf("reply %d is %q, want %q", i+1, got, want)
				}
			}
			if got := conn.ask("noop"); got != "OK " {
				t.Errorf("afterwards noop answers %q", got)
			}
		})
	}
}

// TestRefusalsInOrder asks for every check of every file command, with all
// later ones failing too where that can be.
func TestRefusalsInOrder(t *testing.T) {
	t.Parallel()
	e := start(t)
	c := e.dial()
	c.store("there", "x", "")
	c.store("other", "x", "")
	for _, q := range []struct{ line, code string }{
		{"create_open", "no_domain"},
		{"create_open domain=nix&class=nix", "unreg_domain"},
		{"create_open domain=toast&class=nix&size=99999999999999999", "unreg_class"},
		{"create_open domain=toast&size=99999999999999999", "no_devices"},
		{"create_open domain=toast&key=k&fid=1", "fid_in_use"},
		{"create_open domain=toast&key=k&fid=-7", "fid_in_use"},
		{"create_open domain=toast&key=k&fid=99999999999999999999999", "fid_in_use"},
		{"create_open domain=toast&key=a%00b", "invalid_key"},
		{"create_open domain=toast&key=a%ffb", "invalid_key"},
		{"create_open domain=toast&key=" + strings.Repeat("k", 2000), "invalid_key"},
		{"create_close", "no_domain"},
		{"create_close domain=nix", "unreg_domain"},
		{"create_close domain=toast", "no_fid"},
		{"create_close domain=toast&fid=0&devid=1&path=x", "no_fid"},
		{"create_close domain=toast&fid=1", "no_devid"},
		{"create_close domain=toast&fid=1&devid=1", "no_path"},
		{"create_close domain=toast&fid=1&devid=1&path=x&checksum=MD5:00", "invalid_checksum_format"},
		{"create_close domain=toast&fid=1&devid=1&path=x&checksum=md5:" + strings.Repeat("0", 32), "invalid_checksum_format"},
		{"create_close domain=toast&fid=1&devid=1&path=x&checksum=SHA-1:" + strings.Repeat("g", 40), "invalid_checksum_format"},
		{"create_close domain=toast&fid=1&devid=1&path=http://127.0.0.1/dev1/0/000/000/0000000001.fid", "bogus_args"},
		{"create_close domain=toast&fid=1&devid=99&path=x", "bogus_args"},
		{"create_close domain=toast&fid=-1&devid=-1&path=x", "bogus_args"},
		{"create_close domain=toast&fid=1&devid=4294967297&path=x", "bogus_args"},
		{"get_paths", "no_domain"}, {"get_paths domain=nix", "unreg_domain"}, {"get_paths domain=toast", "no_key"}, {"get_paths domain=toast&key=nix", "unknown_key"},
		{"delete", "no_domain"}, {"delete domain=nix", "unreg_domain"}, {"delete domain=toast", "no_key"}, {"delete domain=toast&key=nix", "unknown_key"},
		{"rename", "no_domain"}, {"rename domain=nix", "unreg_domain"}, {"rename domain=toast&from_key=a", "no_key"}, {"rename domain=toast&to_key=a", "no_key"},
		{"rename domain=toast&from_key=nix&to_key=b", "unknown_key"}, {"rename domain=toast&from_key=there&to_key=other", "key_exists"},
		{"rename domain=toast&from_key=there&to_key=a%00b", "invalid_key"},
		{"updateclass", "no_domain"}, {"updateclass domain=nix", "unreg_domain"}, {"updateclass domain=toast", "no_key"},
		{"updateclass domain=toast&key=nix", "no_class"}, {"updateclass domain=toast&key=nix&class=nix", "class_not_found"},
		{"updateclass domain=toast&key=nix&class=default", "invalid_key"},
		{"file_info", "no_domain"}, {"file_info domain=nix", "unreg_domain"}, {"file_info domain=toast", "no_key"}, {"file_info domain=toast&key=nix", "unknown_key"},
		{"file_debug", "no_domain"}, {"file_debug domain=nix", "unreg_domain"}, {"file_debug domain=toast", "no_key"}, {"file_debug domain=toast&key=nix", "unknown_key"},
		{"edit_file", "no_domain"}, {"edit_file domain=nix", "unreg_domain"}, {"edit_file domain=toast", "no_key"},
		{"edit_file domain=toast&key=nix", "unknown_key"}, {"edit_file domain=toast&key=there", "failure"},
		{"list_keys", "no_domain"}, {"list_keys domain=nix", "unreg_domain"}, {"list_keys domain=toast&prefix=a&after=b", "after_mismatch"},
		{"list_keys domain=toast&prefix=a[&after=a[b", "none_match"},
		{"list_keys domain=toast&prefix=nix", "none_match"}, {"list_keys domain=toast&limit=-1", "failure"},
		{"list_keys domain=toast&prefix=%ff", "none_match"}, {"list_keys domain=toast&prefix=%00", "none_match"},
	} {
		c.refused(q.line, q.code)
	}
	if got, want := c.ask("rename domain=toast&from_key=there&to_key=other"), "ERR key_exists Target+key+name+already+exists%3B+can%27t+overwrite."; got != want {
		t.Errorf("rename answers %q, want %q", got, want)
	}
	if n := strings.Count(e.log.String(), "query failed"); n != 0 {
		t.Errorf("%d refusals were logged as failures:\n%s", n, e.log)
	}
}

func TestCreateOpen(t *testing.T) {
	t.Parallel()
	e := start(t)
	c := e.dial()
	c.ok("create_class domain=toast&class=big&mindevcount=3")

	one := c.ok("create_open domain=toast&key=k")
	fid, dev := protocol.FID(one.Number("fid")), protocol.DevID(one.Number("devid"))
	h := e.farm.hosts[(dev-1)/2]
	want := fmt.Sprintf("http://%s:%d/%s", h.ip, h.port(), fid.Path(dev))
	if got := one.Get("path"); got != want || len(one) != 3 {
		t.Errorf("answer is %v, want path %s and nothing more", one, want)
	}

	several := c.ok("create_open domain=toast&key=k&multi_dest=1&class=big")
	if n := several.Number("dev_count"); n != 3 {
		t.Errorf("%d devices are offered, want 3", n)
	}
	first, second := (several.Number("devid_1")-1)/2, (several.Number("devid_2")-1)/2
	if first == second {
		t.Errorf("the first two devices are both on host %d", first+1)
	}
	row := e.debug(protocol.FID(several.Number("fid"))).Tempfile
	if row == nil {
		t.Fatal("the upload was not recorded")
	}
	wantIDs := []protocol.DevID{protocol.DevID(several.Number("devid_1")), protocol.DevID(several.Number("devid_2")), protocol.DevID(several.Number("devid_3"))}
	row.CreateTime = 0
	if diff := cmp.Diff(schema.Tempfile{FID: row.FID, DMID: 1, Key: "k", ClassID: 1, DevIDs: wantIDs}, *row); diff != "" {
		t.Errorf("tempfile row (-want +got):\n%s", diff)
	}

	for _, class := range []string{"", "default", "0"} {
		a := c.ok("create_open domain=toast&fid=&multi_dest=0&class=" + class)
		if row := e.debug(protocol.FID(a.Number("fid"))).Tempfile; row == nil || row.ClassID != 0 || row.Key != "" {
			t.Errorf("class %q: row is %+v", class, row)
		}
	}
	if a := c.ok("create_open domain=toast&key=k&fid=5000"); a.Number("fid") != 5000 {
		t.Errorf("the explicit fid gave %v", a)
	}
	if a := c.ok("create_open domain=toast&key=k"); a.Number("fid") <= 5000 {
		t.Errorf("after an explicit fid of 5000 comes %v", a)
	}
	if a := c.ok("create_open domain=toast&key=k&size=1"); a.Get("path") == "" {
		t.Errorf("with a size: %v", a)
	}
	p := c.ok("create_open domain=toast&key=k&multi_dest=1&debug_profile=1")
	if p.Number("profpoints") != 7 || p.Get("prof_1_name") != "begin" || !strings.HasPrefix(p.Get("prof_5_name"), "vivify_dir_on_dev") || len(p.Get("prof_3_time")) < 5 {
		t.Errorf("profile is %v", p)
	}
	e.farm.hosts[0].mu.Lock()
	defer e.farm.hosts[0].mu.Unlock()
	if e.farm.hosts[0].mkcol == 0 {
		t.Error("no directories were made on a host that has MKCOL")
	}
}

func TestCreateClose(t *testing.T) {
	t.Parallel()
	e := start(t)
	c := e.dial()
	c.ok("create_class domain=toast&class=sums&mindevcount=1&hashtype=MD5")
	c.ok("create_domain domain=second")
	hello := "MD5:5d41402abc4b2a76b9719d911017c592"

	// taken checks that an upload was taken back.
	taken := func(s stored) {
		t.Helper()
		d := e.debug(s.fid)
		// What the other devices that were offered may hold goes too.
		deletions := slices.DeleteFunc(slices.Clone(d.Queues), func(q schema.QueueRow) bool {
			return q.Queue == schema.QueueCopyDelete && *q.DevID != s.dev
		})
		if d.File != nil || d.Tempfile != nil || !cmp.Equal(d.Devices, []protocol.DevID{s.dev}) || len(deletions) != 1 || deletions[0].Queue != schema.QueueDelete {
			t.Errorf("upload of fid %d was not taken back: %+v", s.fid, d)
		}
	}
	upload := func(content, more string) stored {
		t.Helper()
		s := c.open("domain=toast&key=k" + more)
		put(t, s.path, content)
		return s
	}
	refusedWith := func(line, code, text string) {
		t.Helper()
		if got := c.refused(line, code); got.Text != text {
			t.Errorf("text is  %q\nwant     %q", got.Text, text)
		}
	}

	t.Run("closed", func(t *testing.T) {
		s := upload("hello", "")
		if got := c.ask(s.close("toast", "k", "&size=5")); got != "OK " {
			t.Fatalf("answers %q", got)
		}
		d := e.debug(s.fid)
		want := schema.File{FID: s.fid, DMID: 1, Key: "k", Length: 5, DevCount: 1}
		if d.File == nil || *d.File != want || d.Tempfile != nil || len(d.Devices) != 1 || d.Devices[0] != s.dev {
			t.Errorf("database has %+v", d)
		}
		if len(d.Queues) != 1 || d.Queues[0].Queue != schema.QueueReplicate || d.Queues[0].NextTry != 0 {
			t.Errorf("queues are %+v", d.Queues)
		}
		refusedWith(s.close("toast", "k", "&size=5"), "no_temp_file", "No tempfile or file already closed")
	})
	t.Run("overwritten", func(t *testing.T) {
		old, s := c.store("over", "old", ""), stored{}
		s = c.store("over", "newer", "")
		if d := e.debug(old.fid); d.File != nil || e.queues(old.fid) != "delete" && e.queues(old.fid) != "delete,replicate" {
			t.Errorf("the old fid is %+v", d)
		}
		if d := e.debug(s.fid); d.File == nil || d.File.Length != 5 {
			t.Errorf("the new fid is %+v", d)
		}
	})
	t.Run("empty file, size not given", func(t *testing.T) {
		for _, size := range []string{"", "&size=0", "&size="} {
			s := upload("", "")
			if got := c.ask(s.close("toast", "empty", size)); got != "OK " {
				t.Errorf("size %q answers %q", size, got)
			}
			if d := e.debug(s.fid); d.File == nil || d.File.Length != 0 {
				t.Errorf("size %q: %+v", size, d)
			}
		}
	})
	t.Run("aborted", func(t *testing.T) {
		s := upload("hello", "")
		if got := c.ask(s.close("toast", "", "&size=5")); got != "OK " {
			t.Errorf("answers %q", got)
		}
		taken(s)
	})
	t.Run("a device that was not offered", func(t *testing.T) {
		s := c.open("domain=toast&key=k")
		other := s
		other.dev = s.dev%4 + 1
		h := e.farm.hosts[(other.dev-1)/2]
		other.path = fmt.Sprintf("http://%s:%d/%s", h.ip, h.port(), s.fid.Path(other.dev))
		refusedWith(other.close("toast", "k", ""), "invalid_destdev",
			fmt.Sprintf("File uploaded to invalid dest %d. Valid devices were: %d", other.dev, s.dev))
		taken(other)
	})
	t.Run("another domain", func(t *testing.T) {
		s := upload("hello", "")
		refusedWith(s.close("second", "k", ""), "no_temp_file", "No tempfile or file already closed")
		if got := c.ask(s.close("toast", "k", "")); got != "OK " {
			t.Errorf("its own domain answers %q", got)
		}
	})
	t.Run("missing", func(t *testing.T) {
		s := c.open("domain=toast&key=k")
		got := c.refused(s.close("toast", "k", "&size=5"), "size_verify_error")
		if want := "Expected: 5; actual: 0 (missing); path: " + s.path + "; error: "; !strings.HasPrefix(got.Text, want) {
			t.Errorf("text is %q, want %q and a reason", got.Text, want)
		}
		taken(s)
		s = c.open("domain=toast&key=k")
		got = c.refused(s.close("toast", "k", ""), "size_verify_error")
		if want := "Expected: -1; actual: 0 (missing); "; !strings.HasPrefix(got.Text, want) {
			t.Errorf("text is %q, want %q", got.Text, want)
		}
	})
	t.Run("of another size", func(t *testing.T) {
		s := upload("hello", "")
		refusedWith(s.close("toast", "k", "&size=12"), "size_mismatch", "Expected: 12; actual: 5; path: "+s.path)
		taken(s)
	})
	t.Run("checksum verified", func(t *testing.T) {
		s := upload("hello", "")
		if got := c.ask(s.close("toast", "k", "&checksumverify=1&checksum="+hello)); got != "OK " {
			t.Errorf("answers %q", got)
		}
		if d := e.debug(s.fid); !d.Checksum.IsZero() {
			t.Errorf("class without checksums stored %v", d.Checksum)
		}
		s = upload("jello", "")
		refusedWith(s.close("toast", "k", "&checksumverify=1&checksum="+hello), "checksum_mismatch",
			fmt.Sprintf("Expected: Checksum[f=%d;MD5=5d41402abc4b2a76b9719d911017c592]; actual: MD5:%x; path: %s", s.fid, md5.Sum([]byte("jello")), s.path))
		taken(s)
	})
	t.Run("checksum stored", func(t *testing.T) {
		s := upload("hello", "&class=sums")
		if got := c.ask(s.close("toast", "sum", "&checksum="+strings.Replace(hello, "5d41", "5D41", 1))); got != "OK " {
			t.Errorf("answers %q", got)
		}
		if d := e.debug(s.fid); d.Checksum.String() != hello {
			t.Errorf("stored %v", d.Checksum)
		}
		if a := c.ok("file_info domain=toast&key=sum"); a.Get("checksum") != hello || a.Get("class") != "sums" {
			t.Errorf("file_info answers %v", a)
		}
		s = upload("hello", "&class=sums")
		if got := c.ask(s.close("toast", "nosum", "&checksum=SHA-1:"+strings.Repeat("0", 40))); got != "OK " {
			t.Errorf("another type answers %q", got)
		}
		if a := c.ok("file_info domain=toast&key=nosum"); a.Get("checksum") != "MISSING" {
			t.Errorf("file_info answers %v", a)
		}
	})
	t.Run("a key that cannot be", func(t *testing.T) {
		s := upload("hello", "")
		c.refused(s.close("toast", "a\x00b", ""), "invalid_key")
		if got := c.ask(s.close("toast", "good", "")); got != "OK " {
			t.Errorf("then with a good one: %q", got)
		}
	})
}

func TestUploadToAHostThatHangs(t *testing.T) {
	t.Parallel()
	e := start(t, func(o *tracker.Options) { o.StorageMgmtPort = -1 })
	c := e.dial()
	s := c.open("domain=toast&key=k")
	put(t, s.path, "hello")
	e.farm.hosts[(s.dev-1)/2].hangs.Store(true)
	got := c.refused(s.close("toast", "k", "&size=5"), "size_verify_error")
	if want := "Expected: 5; actual: 0 (cantreach); path: " + s.path; !strings.HasPrefix(got.Text, want) {
		t.Errorf("text is %q, want %q", got.Text, want)
	}
}

func TestGetPaths(t *testing.T) {
	t.Parallel()
	e := start(t)
	c := e.dial()
	s := c.store("k", "hello", "")
	url := func(dev protocol.DevID) string {
		h := e.farm.hosts[(dev-1)/2]
		return fmt.Sprintf("http://%s:%d/%s", h.ip, h.port(), s.fid.Path(dev))
	}
	seen := []protocol.DevID{s.dev}
	for dev := protocol.DevID(1); dev <= 4; dev++ {
		if dev != s.dev {
			put(t, url(dev), "hello")
			if err := e.store.AddLocation(t.Context(), s.fid, dev, seen); err != nil {
				t.Fatal(err)
			}
			seen = append(seen, dev)
		}
	}
	paths := func(args string) map[string]bool {
		t.Helper()
		a := c.ok("get_paths domain=toast&key=k" + args)
		set := map[string]bool{}
		for i := range a.Number("paths") {
			set[a.Get(fmt.Sprintf("path%d", i+1))] = true
		}
		if len(set) != int(a.Number("paths")) || len(a) != len(set)+1 {
			t.Errorf("get_paths%s answers %v", args, a)
		}
		return set
	}
	for args, want := range map[string]int{
		"": 2, "&pathcount=1": 2, "&pathcount=junk": 2, "&pathcount=-5": 2, "&pathcount=3": 3, "&pathcount=99999999999999999999": 4, "&noverify=1": 2, "&pathcount=4&noverify=1&zone=": 4,
	} {
		if got := len(paths(args)); got != want {
			t.Errorf("get_paths%s answers %d paths, want %d", args, got, want)
		}
	}
	first := map[string]bool{}
	for range 60 {
		first[c.ok("get_paths domain=toast&key=k&noverify=1").Get("path1")] = true
	}
	if len(first) != 4 {
		t.Errorf("in 60 times only %d of 4 copies came first", len(first))
	}

	// Copies that are not whole are not offered first, unless nobody looks.
	for dev := protocol.DevID(1); dev <= 3; dev++ {
		put(t, url(dev), "bad")
	}
	for range 10 {
		if a := c.ok("get_paths domain=toast&key=k"); a.Get("path1") != url(4) {
			t.Errorf("first of %v is not the whole copy", a)
		}
	}
	c.ok("set_state host=h2&device=4&state=drain")
	if a := c.ok("get_paths domain=toast&key=k"); a.Get("path1") != url(4) || a.Number("paths") != 1 {
		t.Errorf("the whole copy in drain: %v", a)
	}
	for range 10 {
		if a := c.ok("get_paths domain=toast&key=k&noverify=1&pathcount=4"); a.Get("path4") != url(4) {
			t.Errorf("drain does not come last: %v", a)
		}
	}
	// Copies that cannot be read are the last resort.
	for dev := 1; dev <= 4; dev++ {
		c.ok(fmt.Sprintf("set_state host=h%d&device=%d&state=down", (dev+1)/2, dev))
	}
	if got := paths("&noverify=1"); len(got) != 1 {
		t.Errorf("with all devices down: %v", got)
	}
	if err := e.store.DeletedLocations(t.Context(), s.fid, seen); err != nil {
		t.Fatal(err)
	}
	if got := c.ask("get_paths domain=toast&key=k"); got != "OK paths=0" {
		t.Errorf("without locations: %q", got)
	}
}

func TestAddressesForClients(t *testing.T) {
	t.Parallel()
	e := start(t)
	c := e.dial()
	c.ok("set_state host=h2&device=3&state=down")
	c.ok("set_state host=h2&device=4&state=down")
	get := httptest.NewServer(e.farm.hosts[0])
	defer get.Close()
	getPort := get.Listener.Addr().(*net.TCPAddr).Port
	c.ok(fmt.Sprintf("update_host host=h1&getport=%d&altip=127.9.8.7&altmask=10.0.0.0/8", getPort))
	s := c.open("domain=toast&key=k")
	if !strings.HasPrefix(s.path, "http://127.0.0.1:") {
		t.Errorf("write path is %s", s.path)
	}
	put(t, s.path, "hello")
	alt := strings.Replace(s.path, "127.0.0.1", "127.9.8.7", 1)
	c.refused(stored{s.fid, s.dev, alt}.close("toast", "k", ""), "bogus_args")
	if got := c.ask(s.close("toast", "k", "&size=5")); got != "OK " {
		t.Fatalf("create_close answers %q", got)
	}
	port := e.farm.hosts[0].port()
	read := strings.Replace(s.path, fmt.Sprint(":", port), fmt.Sprint(":", getPort), 1)
	if got := c.ok("get_paths domain=toast&key=k&noverify=1").Get("path1"); got != read {
		t.Errorf("read path is %s, want %s", got, read)
	}
	if got, want := c.ok("get_paths domain=toast&key=k&noverify=1&zone=alt").Get("path1"), strings.Replace(read, "127.0.0.1", "127.9.8.7", 1); got != want {
		t.Errorf("read path in zone alt is %s, want %s", got, want)
	}
	if got := c.open("domain=toast&key=k&zone=alt").path; !strings.HasPrefix(got, "http://127.9.8.7:") {
		t.Errorf("write path in zone alt is %s", got)
	}
	c.ok("update_host host=h1&altmask=127.0.0.0/8") // the client is inside
	if got := c.open("domain=toast&key=k").path; !strings.HasPrefix(got, "http://127.9.8.7:") {
		t.Errorf("write path inside the mask is %s", got)
	}
}

func TestKeysOfAllKinds(t *testing.T) {
	t.Parallel()
	e := start(t)
	c := e.dial()
	for _, key := range []string{"0", "ä/ö ü", "a=b&c+d%", "日本", " ", "%41", "!version", strings.Repeat("k", 255)} {
		s := c.store(key, "x", "")
		k := protocol.Escape(key)
		if a := c.ok("file_info domain=toast&key=" + k); a.Get("key") != key || a.Number("fid") != int64(s.fid) {
			t.Errorf("file_info of %q answers %v", key, a)
		}
		if a := c.ok("list_keys domain=toast&prefix=" + k); a.Get("key_1") != key {
			t.Errorf("list_keys of %q answers %v", key, a)
		}
		c.ok("rename domain=toast&from_key=" + k + "&to_key=" + k)
		if a := c.ok("get_paths domain=toast&key=" + k); a.Number("paths") != 1 {
			t.Errorf("get_paths of %q answers %v", key, a)
		}
		c.ok("updateclass domain=toast&class=default&key=" + k)
		c.ok("delete domain=toast&key=" + k)
		c.refused("delete domain=toast&key="+k, "unknown_key")
	}
}

func TestInfoDebugAndLists(t *testing.T) {
	t.Parallel()
	e := start(t)
	c := e.dial()
	a := c.store("pic1", "hello world", "")
	c.store("pic2", "x", "")
	c.store("pi%_c", "x", "")
	c.store("PIC", "x", "")
	id := a.fid
	c.same("file_info domain=toast&key=pic1", fmt.Sprintf("OK fid=%d&domain=toast&class=default&key=pic1&length=11&devcount=1", id))
	c.same("file_info domain=toast&key=pic1&devices=1", fmt.Sprintf("OK fid=%d&domain=toast&class=default&key=pic1&length=11&devcount=1&devids=%d", id, a.dev))
	want := fmt.Sprintf("OK fid_fid=%d&fid_dmid=1&fid_dkey=pic1&fid_length=11&fid_classid=0&fid_devcount=1&fid_domain=toast&fid_class=default&"+
		"replqueue_fid=%d&replqueue_nexttry=0&replqueue_fromdevid=&replqueue_failcount=0&replqueue_flags=0&devids=%d&devpath_%d=%s&checksum=NONE",
		id, id, a.dev, a.dev, protocol.Escape(a.path))
	c.same(fmt.Sprintf("file_debug fid=%d", id), want)
	c.same("file_debug domain=toast&key=pic1", want)
	c.same("file_debug fid=123456", "OK checksum=NONE")
	c.same("file_debug fid=-5", "OK checksum=NONE")
	open := c.open("domain=toast&key=temp")
	c.same(fmt.Sprintf("file_debug fid=%d", open.fid),
		fmt.Sprintf("OK tempfile_classid=0&tempfile_dmid=1&tempfile_dkey=temp&tempfile_devids=%d&checksum=NONE", open.dev))

	c.same("list_keys domain=toast", "OK key_count=4&next_after=pic2&key_1=PIC&key_2=pi%25_c&key_3=pic1&key_4=pic2")
	c.same("list_keys domain=toast&prefix=pic&after=&limit=1", "OK key_count=1&next_after=pic1&key_1=pic1")
	c.same("list_keys domain=toast&prefix=pic&after=pic1&limit=1", "OK key_count=1&next_after=pic2&key_1=pic2")
	c.same("list_keys domain=toast&prefix=pi%25&limit=5000", "OK key_count=1&next_after=pi%25_c&key_1=pi%25_c")
	c.refused("list_keys domain=toast&prefix=pic&after=pic2", "none_match")

	c.same(fmt.Sprintf("list_fids from=%d&to=1", id-1),
		fmt.Sprintf("OK fid_count=1&fid_1_fid=%d&fid_1_domain=toast&fid_1_class=default&fid_1_key=pic1&fid_1_length=11&fid_1_devcount=1", id))
	for args, want := range map[string]int64{"": 4, "from=0&to=0": 4, "to=2": 2, "to=-1": 4, "from=-5": 4, "from=99999999999999999999": 0, fmt.Sprint("from=", id): 3} {
		if n := c.ok("list_fids " + args).Number("fid_count"); n != want {
			t.Errorf("list_fids %s counts %d, want %d", args, n, want)
		}
	}
}

func TestDeleteRenameUpdateclass(t *testing.T) {
	t.Parallel()
	e := start(t)
	c := e.dial()
	c.ok("create_class domain=toast&class=big&mindevcount=3")
	s := c.store("a", "hello", "")
	c.same("rename domain=toast&from_key=a&to_key=b", "OK ")
	if f := e.debug(s.fid).File; f == nil || f.Key != "b" || f.ClassID != 0 {
		t.Errorf("after the rename the file is %+v", f)
	}
	jobs, err := e.store.Claim(t.Context(), schema.QueueReplicate, 10, 0)
	if err != nil || len(jobs) != 1 {
		t.Fatalf("claimed %v, %v", jobs, err)
	}
	if _, err := e.store.Finish(t.Context(), jobs); err != nil {
		t.Fatal(err)
	}
	c.same("updateclass domain=toast&key=b&class=default", "OK ") // nothing changes
	if got := e.queues(s.fid); got != "" {
		t.Errorf("queued for %q although nothing changed", got)
	}
	c.same("updateclass domain=toast&key=b&class=big", "OK ")
	if f := e.debug(s.fid).File; f == nil || f.ClassID != 1 || e.queues(s.fid) != "replicate" {
		t.Errorf("after updateclass the file is %+v, queued for %q", f, e.queues(s.fid))
	}
	c.same("updateclass domain=toast&key=b&class=default", "OK ")
	if f := e.debug(s.fid).File; f == nil || f.ClassID != 0 {
		t.Errorf("after updateclass to default the file is %+v", f)
	}
	if err := e.store.DeletedLocations(t.Context(), s.fid, []protocol.DevID{s.dev}); err != nil {
		t.Fatal(err)
	}
	c.refused("updateclass domain=toast&key=b&class=big", "no_devices")
	c.same("delete domain=toast&key=b", "OK ")
	if d := e.debug(s.fid); d.File != nil || !strings.Contains(e.queues(s.fid), "delete") {
		t.Errorf("after delete there is %+v", d)
	}
}
