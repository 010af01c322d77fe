package protocol_test

import (
	"fmt"
	"math"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/mogile/mogile/protocol"
)

func TestEscape(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{"", ""},
		{"plain_,-./\\:AZaz09", "plain_,-./\\:AZaz09"},
		{"a b", "a+b"},
		{"a+b", "a%2Bb"},
		{"a=b&c", "a%3Db%26c"},
		{"100%", "100%25"},
		{"\r\n\x00\x7f\xff", "%0D%0A%00%7F%FF"},
		{"é€", "%C3%A9%E2%82%AC"},
		{"MultipleHosts()", "MultipleHosts%28%29"},
		{"Pattern's ~!@#$^*;?[]{}|\"<>`", "Pattern%27s+%7E%21%40%23%24%5E%2A%3B%3F%5B%5D%7B%7D%7C%22%3C%3E%60"},
	} {
		if got := protocol.Escape(c.in); got != c.want {
			t.Errorf("Escape(%q) = %q, want %q", c.in, got, c.want)
		}
		if got := protocol.Unescape(c.want); got != c.in {
			t.Errorf("Unescape(%q) = %q, want %q", c.want, got, c.in)
		}
	}
}

// What is no escape stays.
func TestUnescape(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{"%", "%"},
		{"%4", "%4"},
		{"%zz", "%zz"},
		{"%%41", "%A"},
		{"%4x%41", "%4xA"},
		{"%c3%A9", "é"},
		{"+%2B+", " + "},
		{"a b", "a b"},
	} {
		if got := protocol.Unescape(c.in); got != c.want {
			t.Errorf("Unescape(%q) = %q, want %q", c.in, got, c.want)
		}
	}
}

func TestParseArgs(t *testing.T) {
	for _, c := range []struct {
		in   string
		want protocol.Args
	}{
		{"", nil},
		{"&&", protocol.Args{}},
		{"a=1", protocol.Args{{"a", "1"}}},
		{"a=1&b=2", protocol.Args{{"a", "1"}, {"b", "2"}}},
		{"&a=1&&b=2&", protocol.Args{{"a", "1"}, {"b", "2"}}},
		{"a", protocol.Args{{"a", ""}}},
		{"a=", protocol.Args{{"a", ""}}},
		{"=", protocol.Args{{"", ""}}},
		{"=x", protocol.Args{{"", "x"}}},
		{"a=b=c", protocol.Args{{"a", "b=c"}}},
		{"a=1&b=2&a=3", protocol.Args{{"a", "3"}, {"b", "2"}}},
		{"%61+b=c+d%26", protocol.Args{{"a b", "c d&"}}},
		{"a+b=1&a%20b=2", protocol.Args{{"a b", "2"}}},
		{"0", protocol.Args{{"0", ""}}},
	} {
		if diff := cmp.Diff(c.want, protocol.ParseArgs(c.in)); diff != "" {
			t.Errorf("%q: %s", c.in, diff)
		}
	}
}

// Lines long enough for the index of names behave as short ones do.
func TestParseManyArgs(t *testing.T) {
	var b strings.Builder
	for i := range 3000 {
		fmt.Fprintf(&b, "n%d=%d&", i%1000, i)
	}
	args := protocol.ParseArgs(b.String())
	if len(args) != 1000 {
		t.Fatalf("%d names, want 1000", len(args))
	}
	for i, a := range args {
		if a.Name != fmt.Sprint("n", i) || a.Value != fmt.Sprint(2000+i) {
			t.Fatalf("argument %d is %v", i, a)
		}
	}
	var long strings.Builder
	for i := range protocol.MaxArgs + 10 {
		fmt.Fprintf(&long, "n%d=1&", i)
	}
	if n := len(protocol.ParseArgs(long.String())); n != protocol.MaxArgs {
		t.Errorf("%d arguments, want no more than %d", n, protocol.MaxArgs)
	}
}

func TestArgs(t *testing.T) {
	var a protocol.Args
	a.Add("zero", "0")
	a.AddInt("n", -42)
	a.Add("empty", "")
	a.Set("key", "old")
	a.Set("key", "new")
	if got, want := a.String(), "zero=0&n=-42&empty=&key=new"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if _, ok := a.Lookup("absent"); ok || a.Get("absent") != "" || a.Number("absent") != 0 {
		t.Error("an absent name has a value")
	}
	if v, ok := a.Lookup("empty"); !ok || v != "" {
		t.Error("an empty value is absent")
	}
	for name, want := range map[string]bool{"zero": false, "n": true, "empty": false, "key": true, "absent": false} {
		if a.True(name) != want {
			t.Errorf("%s is %v", name, !want)
		}
	}
}

func TestTruthy(t *testing.T) {
	for s, want := range map[string]bool{"": false, "0": false, "1": true, "00": true, "0.0": true, " ": true, "no": true} {
		if protocol.Truthy(s) != want {
			t.Errorf("%q is %v", s, !want)
		}
	}
}

func TestNumber(t *testing.T) {
	for s, want := range map[string]int64{
		"": 0, "0": 0, "42": 42, " \t42": 42, "42abc": 42, "abc": 0, "-7": -7, "+7": 7, "- 7": 0, "-": 0, "--7": 0,
		"12.9": 12, "0x10": 0, "007": 7, "9223372036854775807": math.MaxInt64, "9223372036854775808": math.MaxInt64,
		"-9223372036854775809": math.MinInt64, "99999999999999999999999999": math.MaxInt64, "٤٢": 0,
	} {
		if got := protocol.Number(s); got != want {
			t.Errorf("Number(%q) = %d, want %d", s, got, want)
		}
	}
}

// genArgs makes arguments with unique names of any bytes.
func genArgs(t *rapid.T) protocol.Args {
	text := rapid.Map(rapid.SliceOfN(rapid.Byte(), 0, 20), func(b []byte) string { return string(b) })
	var args protocol.Args
	for _, name := range rapid.SliceOfNDistinct(text, 0, 40, rapid.ID[string]).Draw(t, "names") {
		args.Add(name, text.Draw(t, "value"))
	}
	return args
}

// Whatever is sent arrives, in lines that hold nothing but printable ASCII.
func TestRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		args := genArgs(t)
		same := func(what string, got protocol.Args) {
			if len(args) == 0 && len(got) == 0 {
				return
			}
			if diff := cmp.Diff(args, got); diff != "" {
				t.Fatalf("%s: %s", what, diff)
			}
		}
		same("arguments", protocol.ParseArgs(args.String()))

		command := rapid.StringMatching(`[a-z][a-z0-9_]{0,20}`).Draw(t, "command")
		line := cutLine(t, protocol.Request{Command: command, Args: args}.Append(nil))
		req, err := protocol.ParseRequest(line)
		if err != nil || req.Command != command {
			t.Fatalf("request %q: %v, %v", line, req, err)
		}
		same("request", req.Args)

		fields, err := protocol.ParseReply(cutLine(t, protocol.AppendOK(nil, args)))
		if err != nil {
			t.Fatal(err)
		}
		same("reply", fields)

		refusal := &protocol.Error{Code: rapid.StringMatching(`[A-Za-z0-9_]{1,20}`).Draw(t, "code"), Text: args.String() + "x"}
		callid := args.String()
		fields, err = protocol.ParseReply(cutLine(t, protocol.AppendErr(nil, refusal, &callid)))
		if diff := cmp.Diff(error(refusal), err); diff != "" {
			t.Fatal(diff)
		}
		if got, ok := fields.Lookup("callid"); !ok || got != callid {
			t.Fatalf("callid %q, want %q", got, callid)
		}
	})
}

// cutLine checks that b is one line of printable ASCII, and cuts its end.
func cutLine(t interface{ Fatalf(string, ...any) }, b []byte) string {
	line, ok := strings.CutSuffix(string(b), "\r\n")
	if !ok {
		t.Fatalf("%q does not end with CRLF", b)
	}
	for _, c := range []byte(line) {
		if c < ' ' || c > '~' {
			t.Fatalf("%q has byte %#x", line, c)
		}
	}
	return line
}
