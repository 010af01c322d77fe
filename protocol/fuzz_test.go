package protocol_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/mogile/mogile/protocol"
)

// clientLines are what existing clients send.
var clientLines = []string{
	"GET_PATHS&domain=d&key=k", // lua-resty-mogilefs: upper case, and no blank
	"get_paths domain=toast&key=pic1&noverify=1&zone=",
	"get_paths domain=toast&key=pic1&noverify=1&zone=alt&pathcount=5",
	"create_open domain=toast&class=&key=pic1&fid=0&multi_dest=1",
	"create_open domain=toast&key=%E2%82%AC+%26&class=big&size=1048576",
	"create_close domain=toast&key=pic1&fid=42&devid=3&size=11&path=http%3A//10.0.0.3%3A7500/dev3/0/000/000/0000000042.fid",
	"create_close domain=toast&key=&fid=42&devid=3&path=http://10.0.0.3:7500/dev3/0/000/000/0000000042.fid&checksum=MD5:d41d8cd98f00b204e9800998ecf8427e&checksumverify=1",
	"delete domain=toast&key=pic1",
	"rename domain=toast&from_key=a&to_key=b",
	"list_keys domain=toast&prefix=pic&after=&limit=1000",
	"list_keys domain=",
	"list_fids from=41&to=1",
	"file_debug fid=42",
	"set_server_setting key=memcache_ttl&value=60",
	"rebalance_set_policy policy=from_hosts%3D1+to_hosts%3D3+limit_by%3Dnone",
	"plugin_filepaths_list_directory domain=d&argcount=1&arg1=/",
	"  noop  ",
	"noop callid=7",
	"a=b=c&a=1&a=2&=&&%zz=%4",
	"\x00\xff",
}

// serverLines are what trackers answer.
var serverLines = []string{
	"OK ",
	"OK 12 a=b",
	"OK fid=42&dev_count=2&devid_1=3&path_1=http://10.0.0.3:7500/dev3/0/000/000/0000000042.fid&devid_2=1&path_2=http://10.0.0.1:7500/dev1/0/000/000/0000000042.fid",
	"OK paths=1&path1=http://10.0.0.1:7500/dev1/0/000/000/0000000001.fid",
	"OK domains=1&domain1=toast&domain1classes=1&domain1class1name=default&domain1class1mindevcount=2&domain1class1replpolicy=MultipleHosts%28%29&domain1class1hashtype=NONE",
	"OK hosts=1&host1_hostid=1&host1_status=alive&host1_hostname=store1&host1_hostip=10.0.0.1&host1_http_port=7500&host1_http_get_port=&host1_altip=&host1_altmask=",
	"OK devices=1&dev1_devid=1&dev1_hostid=1&dev1_status=alive&dev1_weight=100&dev1_mb_total=953869&dev1_mb_used=1200&dev1_mb_asof=&dev1_mb_free=952669&dev1_observed_state=writeable&dev1_utilization=0.40&dev1_reject_bad_md5=1",
	"OK key_count=2&key_1=schema_version&value_1=17&key_2=memcache_ttl&value_2=60",
	"ERR unknown_key unknown_key",
	"ERR no_key no_key abc-7",
	"ERR none_match No+keys+match+that+pattern+and+after-value+%28if+any%29.",
	"uptime 1615930",
}

func FuzzParseRequest(f *testing.F) {
	for _, l := range clientLines {
		f.Add(l)
	}
	f.Fuzz(func(t *testing.T, line string) {
		req, err := protocol.ParseRequest(line)
		if err != nil {
			if !errors.Is(err, protocol.ErrUnknownCommand) {
				t.Fatal(err)
			}
			return
		}
		if req.Command == "" || req.Command != strings.ToLower(req.Command) {
			t.Fatalf("command %q", req.Command)
		}
		again, err := protocol.ParseRequest(cutLine(t, req.Append(nil)))
		if err != nil || again.Command != req.Command || !sameArgs(again.Args, req.Args) {
			t.Fatalf("%q: %v and %v, %v", line, req, again, err)
		}
	})
}

func FuzzParseReply(f *testing.F) {
	for _, l := range serverLines {
		f.Add(l)
	}
	f.Fuzz(func(t *testing.T, line string) {
		fields, err := protocol.ParseReply(line)
		if errors.Is(err, protocol.ErrBadReply) {
			return
		}
		again := protocol.AppendOK(nil, fields)
		if e, ok := errors.AsType[*protocol.Error](err); ok {
			var callid *string
			if id, ok := fields.Lookup("callid"); ok {
				callid = &id
			}
			again = protocol.AppendErr(nil, e, callid)
		} else if err != nil {
			t.Fatal(err)
		}
		fields2, err2 := protocol.ParseReply(cutLine(t, again))
		if !sameArgs(fields, fields2) {
			t.Fatalf("%q: %v and %v", line, fields, fields2)
		}
		if e, ok := errors.AsType[*protocol.Error](err); ok {
			e2, ok := errors.AsType[*protocol.Error](err2)
			if !ok || e.Code != e2.Code || e.Message() != e2.Message() {
				t.Fatalf("%q: %v and %v", line, err, err2)
			}
		} else if err2 != nil {
			t.Fatal(err2)
		}
		// What clients make of replies never panics, nor trusts a count.
		_, _ = protocol.ParseHosts(fields)
		_, _ = protocol.ParseDevices(fields)
		_, _ = protocol.ParseDomains(fields)
	})
}

func sameArgs(a, b protocol.Args) bool {
	return len(a) == 0 && len(b) == 0 || cmp.Equal(a, b)
}

func FuzzParseArgs(f *testing.F) {
	for _, l := range append(clientLines, serverLines...) {
		_, args, _ := strings.Cut(l, " ")
		f.Add(args)
	}
	f.Add(strings.Repeat("a=1&b=2&c=3&d=4&e=5&f=6&g=7&h=8&", 3))
	f.Fuzz(func(t *testing.T, s string) {
		args := protocol.ParseArgs(s)
		seen := make(map[string]bool)
		for _, a := range args {
			if seen[a.Name] {
				t.Fatalf("%q: name %q twice", s, a.Name)
			}
			seen[a.Name] = true
		}
		if again := protocol.ParseArgs(args.String()); !sameArgs(args, again) {
			t.Fatalf("%q: %v and %v", s, args, again)
		}
	})
}

func FuzzEscape(f *testing.F) {
	for _, s := range []string{"", "a b", "100%", "%zz%4", "é\x00\xff", "+%2B"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if got := protocol.Unescape(protocol.Escape(s)); got != s {
			t.Fatalf("%q comes back as %q", s, got)
		}
		_ = protocol.Unescape(s)
		_ = protocol.Number(s)
	})
}

func FuzzParsePath(f *testing.F) {
	for _, s := range []string{"dev1/0/000/000/0000000001.fid", "//dev1/9/223/372/9223372036854775807.fid", "dev16777215/1/234/567/12345678901.fid",
		"/dev1/usage", "dev1/test-write/test-write-7", "dev1/../x", "dev1/0/000/000/0000000001.ec"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if dev, fid, err := protocol.ParseShardPath(s); err == nil && (fid.ShardPath(dev) != strings.TrimLeft(s, "/") || dev == 0 || fid == 0) {
			t.Fatalf("%q is a shard on dev%d, fid %d", s, dev, fid)
		}
		dev, fid, err := protocol.ParsePath(s)
		if err != nil {
			if !errors.Is(err, protocol.ErrNotFIDPath) {
				t.Fatal(err)
			}
			return
		}
		if fid.Path(dev) != strings.TrimLeft(s, "/") || dev == 0 || fid == 0 {
			t.Fatalf("%q is dev%d, fid %d", s, dev, fid)
		}
	})
}

func FuzzParseChecksum(f *testing.F) {
	for _, s := range []string{"MD5:" + emptyMD5, "SHA-1:" + emptySHA1, "SHA-1:" + strings.ToUpper(emptySHA1), "BLAKE3:" + emptyBLAKE3, "MD5:", "NONE", "MD5=" + emptyMD5} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		c, err := protocol.ParseChecksum(s)
		if err != nil {
			if !errors.Is(err, protocol.Err("invalid_checksum_format")) {
				t.Fatal(err)
			}
			return
		}
		again, err := protocol.ParseChecksum(c.String())
		if err != nil || !again.Equal(c) || !strings.EqualFold(c.String(), s) {
			t.Fatalf("%q is %v and %v, %v", s, c, again, err)
		}
	})
}
