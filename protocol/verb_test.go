package protocol_test

import (
	"bytes"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/mogile/mogile/protocol"
)

var (
	key1 = []byte("0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef")
	key2 = []byte("fedcba9876543210fedcba9876543210fedcba9876543210fedcba9876543210")
	noon = time.UnixMilli(1700000000123)
)

// sample is an order such as trackers give.
func sample() protocol.Order {
	o := protocol.NewOrder("copy", noon, time.Minute, protocol.Args{
		{Name: "length", Value: "11"}, {Name: "devid", Value: "7"}, {Name: "fid", Value: "42"},
		{Name: "from", Value: "http://10.0.0.1:7500/dev1/0/000/000/0000000042.fid"},
	})
	o.Nonce = "00112233445566778899aabbccddeeff"
	return o
}

// The bytes on the wire, which others rely on.
func TestOrderOnTheWire(t *testing.T) {
	const line = "mogile-order 1 copy 1700000000123 1700000060123 00112233445566778899aabbccddeeff " +
		"devid=7&fid=42&from=http://10.0.0.1:7500/dev1/0/000/000/0000000042.fid&length=11\n"
	// As `openssl dgst -sha256 -hmac` has it.
	if got := string(sample().Sign(key1)); got != line+"hmac-sha256 83e1d15d79857343eb11fe50b17829f2fb1d973c869e533addcaaf490a0de17f\n" {
		t.Errorf("got %q", got)
	}
	if got := string(sample().Sign(nil)); got != line+"unsigned\n" {
		t.Errorf("got %q", got)
	}
}

func TestOrderRoundTrip(t *testing.T) {
	o, err := protocol.ParseOrder(sample().Sign(key1))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(sample(), o.Order); diff != "" {
		t.Error(diff)
	}
	a, b := protocol.NewOrder("list", noon, time.Second, nil), protocol.NewOrder("list", noon, time.Second, nil)
	if a.Nonce == b.Nonce {
		t.Error("two orders have one nonce")
	}
}

func TestVerifyOrder(t *testing.T) {
	at := func(d time.Duration) time.Time { return noon.Add(d) }
	type change = func(*protocol.Order)
	for _, c := range []struct {
		name   string
		change change
		key    []byte
		keys   [][]byte
		now    time.Time
		want   *protocol.Error
	}{
		{"good", nil, key1, [][]byte{key1}, noon, nil},
		{"second key", nil, key2, [][]byte{key1, key2}, noon, nil},
		{"no keys", nil, nil, nil, noon, nil},
		{"signed, no keys", nil, key1, nil, noon, nil},
		{"unsigned", nil, nil, [][]byte{key1}, noon, protocol.ErrBadSignature},
		{"another key", nil, key2, [][]byte{key1}, noon, protocol.ErrBadSignature},
		{"late", nil, key1, [][]byte{key1}, at(protocol.MaxClockSkew + time.Millisecond), protocol.ErrClockSkew},
		{"early", nil, key1, [][]byte{key1}, at(-protocol.MaxClockSkew - time.Millisecond), protocol.ErrClockSkew},
		{"early enough", nil, key1, [][]byte{key1}, at(-protocol.MaxClockSkew), nil},
		{"over", nil, key1, [][]byte{key1}, at(time.Minute), protocol.ErrOrderExpired},
		{"just not over", nil, key1, [][]byte{key1}, at(time.Minute - time.Millisecond), nil},
		{"too long", func(o *protocol.Order) { o.Deadline = at(protocol.MaxOrderLife + time.Millisecond) }, key1, [][]byte{key1}, noon, protocol.ErrOrderTooLong},
		{"times beyond reason", func(o *protocol.Order) {
			o.Issued, o.Deadline = time.UnixMilli(-1<<63), time.UnixMilli(1<<63-1)
		}, key1, [][]byte{key1}, noon, protocol.ErrClockSkew},
		{"deadline beyond reason", func(o *protocol.Order) { o.Deadline = time.UnixMilli(1<<63 - 1) }, key1, [][]byte{key1}, noon, protocol.ErrOrderTooLong},
		{"deadline before all time", func(o *protocol.Order) { o.Deadline = time.UnixMilli(-1 << 63) }, key1, [][]byte{key1}, noon, protocol.ErrOrderExpired},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := sample()
			if c.change != nil {
				c.change(&o)
			}
			s, err := protocol.ParseOrder(o.Sign(c.key))
			if err != nil {
				t.Fatal(err)
			}
			err = s.Verify(c.keys, c.now)
			if c.want == nil && err != nil || c.want != nil && !errors.Is(err, c.want) {
				t.Errorf("got %v, want %v", err, c.want)
			}
			if errors.Is(err, protocol.ErrClockSkew) && !strings.Contains(err.Error(), "it is 20") {
				t.Errorf("the clocks are not named: %v", err)
			}
		})
	}
	// No byte of it can be changed.
	good := sample().Sign(key1)
	for i := range good {
		for _, flip := range []byte{1, 0x20, 0x80} {
			b := bytes.Clone(good)
			b[i] ^= flip
			if o, err := protocol.ParseOrder(b); err == nil && o.Verify([][]byte{key1}, noon) == nil {
				t.Fatalf("byte %d changed by %#x: %q is good", i, flip, b)
			}
		}
	}
}

func TestOrdersThatAreNone(t *testing.T) {
	line := func(args string) string {
		return "mogile-order 1 copy 1 2 00112233445566778899aabbccddeeff " + args + "\nunsigned\n"
	}
	var many []string
	for i := range protocol.MaxOrderArgs + 1 {
		many = append(many, fmt.Sprintf("a%03d=", i))
	}
	for name, body := range map[string]string{
		"empty": "", "one line": strings.TrimSuffix(line("a=1"), "unsigned\n"), "unsorted": line("b=1&a=1"), "twice": line("a=1&a=2"),
		"no equals sign": line("a"), "escaped in vain": line("a=%41"), "small hex": line("a=%2a"), "two blanks": line(" a=1"),
		"more behind": line("a=1") + "x", "short signature": strings.Replace(line(""), "unsigned", "hmac-sha256 00", 1),
		"large signature":    strings.Replace(line(""), "unsigned", "hmac-sha256 "+strings.Repeat("A0", 32), 1),
		"too many arguments": line(strings.Join(many, "&")), "too long": line("a=" + strings.Repeat("x", protocol.MaxOrder)),
		"verb": strings.Replace(line(""), "copy", "Copy", 1), "nonce": strings.Replace(line(""), "aabb", "AABB", 1),
		"time": strings.Replace(line(""), " 1 2 ", " 01 2 ", 1), "CRLF": strings.ReplaceAll(line(""), "\n", "\r\n"),
	} {
		if o, err := protocol.ParseOrder([]byte(body)); !errors.Is(err, protocol.ErrBadOrder) {
			t.Errorf("%s: %v, %v", name, o.Order, err)
		}
	}
	if _, err := protocol.ParseOrder([]byte("mogile-order 2 whatever comes\n")); !errors.Is(err, protocol.ErrUnknownVersion) {
		t.Error(err)
	}
	if _, err := protocol.ParseOrder([]byte(line("a=1"))); err != nil {
		t.Error(err)
	}
}

func TestAnswerLines(t *testing.T) {
	for _, c := range []struct {
		line protocol.AnswerLine
		want string
	}{
		{protocol.AnswerLine{Kind: protocol.AnswerProgress, Fields: protocol.Args{{Name: "done", Value: "1"}}}, "PROGRESS done=1\n"},
		{protocol.AnswerLine{Kind: protocol.AnswerItem, Fields: protocol.Args{{Name: "name", Value: "a b"}}}, "ITEM name=a+b\n"},
		{protocol.AnswerLine{Kind: protocol.AnswerOK}, "OK \n"},
		{protocol.AnswerLine{Kind: protocol.AnswerErr, Err: &protocol.Error{Code: "src_error", Text: "no luck"}, Fields: protocol.Args{{Name: "landed", Value: "1"}}},
			"ERR src_error no+luck landed=1\n"},
	} {
		got := string(c.line.Append(nil))
		if got != c.want {
			t.Errorf("got %q, want %q", got, c.want)
		}
		back, err := protocol.ParseAnswerLine(strings.TrimSuffix(got, "\n"))
		if err != nil || !reflect.DeepEqual(back, c.line) {
			t.Errorf("%q became %v, %v", got, back, err)
		}
	}
	for _, bad := range []string{"", "OK", "ok ", "DONE x=1", "ERR a", "ERR a b", "ERR  b c", "ERR a-b c d"} {
		if l, err := protocol.ParseAnswerLine(bad); !errors.Is(err, protocol.ErrBadReply) {
			t.Errorf("%q: %v, %v", bad, l, err)
		}
	}
}

func TestClusterKeys(t *testing.T) {
	one := string(key1) + "\n"
	for _, c := range []struct {
		name, text string
		keys       int // 0: refused
		id         string
	}{
		{"hexadecimal", one, 1, "2a624ecc93ede4c7"},
		{"base64", "q83vASNFZ4mrze8BI0VniavN7wEjRWeJq83vASNFZ4k=\n", 1, ""},
		{"no line end", string(key1), 1, ""},
		{"two, and more", "# ours\n\ncluster-id blue-1\r\n" + one + string(key2) + "\n", 2, "blue-1"},
		{"none", "# nothing\n", 0, ""},
		{"empty", "", 0, ""},
		{"short", "0123456789abcdef0123456789abcdef\n", 0, ""},
		{"poor", strings.Repeat("a", 64), 0, ""},
		{"raw bytes", "\x00\x01" + one, 0, ""},
		{"a sentence", "this is a sentence and no key at all, whatever its length\n", 0, ""},
		{"three", one + string(key2) + "\n" + strings.ToUpper(one), 0, ""},
		{"twice", one + one, 0, ""},
		{"two ids", "cluster-id a\ncluster-id b\n" + one, 0, ""},
		{"bad id", "cluster-id a/b\n" + one, 0, ""},
		{"huge", strings.Repeat("#\n", 4096) + one, 0, ""},
	} {
		k, err := protocol.ParseClusterKeys([]byte(c.text))
		if (err == nil) != (c.keys > 0) || len(k.Keys) != c.keys {
			t.Errorf("%s: %d keys, %v", c.name, len(k.Keys), err)
			continue
		}
		if c.id != "" && k.ClusterID() != c.id || err == nil && len(k.ClusterID()) == 0 {
			t.Errorf("%s: id %q", c.name, k.ClusterID())
		}
		if err != nil && strings.Contains(err.Error(), "0123456789abcdef") {
			t.Errorf("%s: the error shows the key: %v", c.name, err)
		}
		if s := fmt.Sprintf("%v %+v %#v %s", k, k, k, k); err == nil && (strings.Contains(s, string(key1)) || strings.Contains(s, "[[")) {
			t.Errorf("%s: printed as %s", c.name, s)
		}
	}
	k, err := protocol.ParseClusterKeys([]byte(one))
	if err != nil || len(k.ClusterID()) != 16 || strings.Trim(k.ClusterID(), "0123456789abcdef") != "" {
		t.Fatalf("id %q, %v", k.ClusterID(), err)
	}
	rotated, err := protocol.ParseClusterKeys([]byte(k.Rotated(string(key2))))
	if err != nil || rotated.ClusterID() != k.ClusterID() || !bytes.Equal(rotated.Signing(), key2) || !bytes.Equal(rotated.Keys[1], key1) {
		t.Errorf("rotated: id %q, %v", rotated.ClusterID(), err)
	}
}

func FuzzParseOrder(f *testing.F) {
	f.Add(sample().Sign(key1))
	f.Add(sample().Sign(nil))
	f.Add(protocol.NewOrder("list", noon, time.Hour, nil).Sign(key2))
	f.Add([]byte("mogile-order 1 copy -1 9223372036854775807 00112233445566778899aabbccddeeff a=&b=%00\nunsigned\n"))
	f.Add([]byte("mogile-order 2 copy\n"))
	f.Fuzz(func(t *testing.T, body []byte) {
		o, err := protocol.ParseOrder(body)
		if err != nil {
			if !errors.Is(err, protocol.ErrBadOrder) && !errors.Is(err, protocol.ErrUnknownVersion) {
				t.Error(err)
			}
			return
		}
		_ = o.Verify([][]byte{key1}, noon)
		again, err := protocol.ParseOrder(o.Order.Sign(nil))
		if err != nil {
			t.Fatalf("%q: %v", body, err)
		}
		if diff := cmp.Diff(o.Order, again.Order); diff != "" {
			t.Error(diff)
		}
	})
}

func FuzzParseAnswerLine(f *testing.F) {
	for _, s := range []string{"PROGRESS done=5", "ITEM a=b", "OK ", "OK length=1&sum=MD5:00", "ERR src_error GET+it a=1", "ERR a b ", "ERR 0  &"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, line string) {
		l, err := protocol.ParseAnswerLine(line)
		if err != nil {
			return
		}
		again, err := protocol.ParseAnswerLine(strings.TrimSuffix(string(l.Append(nil)), "\n"))
		if err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		if l.Err != nil && l.Err.Text == "" {
			l.Err.Text = l.Err.Message()
		}
		if diff := cmp.Diff(l, again, cmpopts.EquateEmpty()); diff != "" {
			t.Error(diff)
		}
	})
}

func FuzzParseClusterKeys(f *testing.F) {
	f.Add(append(key1, '\n'))
	f.Add([]byte("cluster-id x\n" + string(key1) + "\n" + string(key2)))
	f.Fuzz(func(t *testing.T, text []byte) {
		k, err := protocol.ParseClusterKeys(text)
		if err != nil {
			return
		}
		if len(k.Keys) == 0 || !protocol.ValidClusterID(k.ClusterID()) || len(k.Signing()) < 43 {
			t.Errorf("%q: %d keys, id %q", text, len(k.Keys), k.ClusterID())
		}
	})
}

func TestCopyOrder(t *testing.T) {
	sum, err := protocol.ParseChecksum("MD5:5eb63bbbe01eeed093cb22bb8f5acdc3")
	if err != nil {
		t.Fatal(err)
	}
	const from = "http://10.0.0.1:7500/dev1/0/000/000/0000000042.fid"
	for _, want := range []protocol.CopyOrder{
		{FID: 42, Dev: 7, From: from, Length: 11},
		{FID: 42, Dev: 7, From: from, Length: 0, HashType: protocol.HashSHA1, Rate: 1 << 20},
		{FID: protocol.MaxFID, Dev: 1<<24 - 1, From: from, Length: 1<<63 - 1, Want: sum},
	} {
		got, err := protocol.ParseCopyOrder(protocol.ParseArgs(want.Args().String()))
		if diff := cmp.Diff(want, got); diff != "" || err != nil {
			t.Error(diff, err)
		}
	}
	for _, change := range []protocol.Arg{
		{Name: "fid", Value: "0"}, {Name: "fid", Value: ""}, {Name: "fid", Value: "9223372036854775808"}, {Name: "fid", Value: "042"}, {Name: "fid", Value: "+42"},
		{Name: "devid", Value: "0"}, {Name: "devid", Value: "16777216"}, {Name: "devid", Value: "x"}, {Name: "length", Value: "-1"}, {Name: "length", Value: "1e3"},
		{Name: "from", Value: ""}, {Name: "from", Value: "https://x/"}, {Name: "from", Value: "file:///etc/passwd"}, {Name: "from", Value: "http://" + strings.Repeat("x", 2048)},
		{Name: "sum", Value: "MD5:00"}, {Name: "sum", Value: ""}, {Name: "hash", Value: "CRC"}, {Name: "rate", Value: "-1"}, {Name: "rate", Value: ""},
	} {
		a := protocol.CopyOrder{FID: 42, Dev: 7, From: from, Length: 11}.Args()
		a.Set(change.Name, change.Value)
		if c, err := protocol.ParseCopyOrder(a); !errors.Is(err, protocol.ErrBadOrder) {
			t.Errorf("%v: %+v, %v", change, c, err)
		}
	}
	for _, want := range []protocol.CopyReport{{}, {Length: 11, CRC32C: 0xc9, Digest: sum}, {Length: 1, Present: true}} {
		got, err := protocol.ParseCopyReport(protocol.ParseArgs(want.Args().String()))
		if diff := cmp.Diff(want, got); diff != "" || err != nil {
			t.Error(diff, err)
		}
	}
	for _, bad := range []string{"", "length=1", "length=-1&crc32c=00000000", "length=1&crc32c=0", "length=1&crc32c=00000000&sum=x"} {
		if r, err := protocol.ParseCopyReport(protocol.ParseArgs(bad)); !errors.Is(err, protocol.ErrBadReply) {
			t.Errorf("%q: %+v, %v", bad, r, err)
		}
	}
}
