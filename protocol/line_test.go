package protocol_test

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/mogile/mogile/protocol"
)

func TestParseRequest(t *testing.T) {
	for _, c := range []struct {
		in      string
		command string // "" is none
		args    protocol.Args
	}{
		{"noop", "noop", nil},
		{"NOOP", "noop", nil},
		{"noop ", "noop", nil},
		{"  \tnoop  ", "noop", nil},
		{"get_paths domain=d&key=k", "get_paths", protocol.Args{{"domain", "d"}, {"key", "k"}}},
		{"get_paths \t domain=d", "get_paths", protocol.Args{{"domain", "d"}}},
		{"GET_PATHS&domain=d&key=k", "get_paths", protocol.Args{{"domain", "d"}, {"key", "k"}}}, // lua-resty-mogilefs
		{"get_paths=x", "get_paths", protocol.Args{{"", "x"}}},
		{"list_keys domain=", "list_keys", protocol.Args{{"domain", ""}}},
		{"noop callid=7", "noop", protocol.Args{{"callid", "7"}}},
		{"x2_Y", "x2_y", nil},
		{"", "", nil},
		{"   ", "", nil},
		{"! stats", "", nil},
		{"!", "", nil},
		{"&a=b", "", nil},
		{"\x00noop", "", nil},
		{"éa", "", nil},
	} {
		req, err := protocol.ParseRequest(c.in)
		if c.command == "" {
			if !errors.Is(err, protocol.ErrUnknownCommand) {
				t.Errorf("%q: %+v, %v", c.in, req, err)
			}
			continue
		}
		if err != nil || req.Command != c.command {
			t.Errorf("%q: %+v, %v", c.in, req, err)
		}
		if diff := cmp.Diff(c.args, req.Args); diff != "" {
			t.Errorf("%q: %s", c.in, diff)
		}
	}
	req, _ := protocol.ParseRequest("noop callid=")
	if id, ok := req.CallID(); !ok || id != "" {
		t.Error("an empty callid is a callid")
	}
	req, _ = protocol.ParseRequest("noop")
	if _, ok := req.CallID(); ok {
		t.Error("no callid is none")
	}
}

// The lines of MogileFS 2.73, byte for byte.
func TestReplyLines(t *testing.T) {
	empty, id := "", "abc-7"
	for _, c := range []struct {
		got  []byte
		want string
	}{
		{protocol.AppendOK(nil, nil), "OK \r\n"},
		{protocol.AppendOK(nil, protocol.Args{{"fid", "42"}, {"path", "http://10.0.0.3:7500/dev3/0/000/000/0000000042.fid"}}),
			"OK fid=42&path=http://10.0.0.3:7500/dev3/0/000/000/0000000042.fid\r\n"},
		{protocol.AppendErr(nil, protocol.Err("no_key"), &id), "ERR no_key no_key abc-7\r\n"},
		{protocol.AppendErr(nil, protocol.Err("no_key"), &empty), "ERR no_key no_key \r\n"},
		{protocol.AppendErr(nil, protocol.ErrKeyExists, nil), "ERR key_exists Target+key+name+already+exists%3B+can%27t+overwrite.\r\n"},
		{protocol.AppendErr(nil, protocol.ErrNoneMatch, nil), "ERR none_match No+keys+match+that+pattern+and+after-value+%28if+any%29.\r\n"},
		{protocol.AppendErr(nil, protocol.ErrDomainHasFiles, nil), "ERR domain_has_files Domain+still+has+files,+unable+to+delete\r\n"},
		{protocol.AppendErr(nil, &protocol.Error{Code: "size_mismatch", Text: "Expected: 12; actual: 11; path: http://h/x"}, nil),
			"ERR size_mismatch Expected:+12%3B+actual:+11%3B+path:+http://h/x\r\n"},
	} {
		if string(c.got) != c.want {
			t.Errorf("got %q, want %q", c.got, c.want)
		}
	}
}

func TestParseReply(t *testing.T) {
	for _, c := range []struct {
		in     string
		fields protocol.Args
		err    error
	}{
		{"OK ", nil, nil},
		{"OK", nil, nil},
		{"OK  a=1", protocol.Args{{"a", "1"}}, nil},
		{"OK 3 a=1", protocol.Args{{"a", "1"}}, nil}, // the length that old releases send
		{"OK 0 ", nil, nil},
		{"OK a=1&b=x+y", protocol.Args{{"a", "1"}, {"b", "x y"}}, nil},
		{"ERR unknown_key unknown_key", nil, &protocol.Error{Code: "unknown_key", Text: "unknown_key"}},
		{"ERR unknown_key", nil, &protocol.Error{Code: "unknown_key"}},
		{"ERR dup Duplicate+name/number+used. 7", protocol.Args{{"callid", "7"}}, &protocol.Error{Code: "dup", Text: "Duplicate name/number used."}},
		{"ERR no_key no_key ", protocol.Args{{"callid", ""}}, &protocol.Error{Code: "no_key", Text: "no_key"}},
		{"", nil, protocol.ErrBadReply},
		{"ERR", nil, protocol.ErrBadReply},
		{"ERR ", nil, protocol.ErrBadReply},
		{"ERR  text", nil, protocol.ErrBadReply},
		{"ERR bad-code text", nil, protocol.ErrBadReply},
		{"OKAY", nil, protocol.ErrBadReply},
		{"ok a=1", nil, protocol.ErrBadReply},
		{" OK a=1", nil, protocol.ErrBadReply},
		{"uptime 7", nil, protocol.ErrBadReply},
	} {
		fields, err := protocol.ParseReply(c.in)
		if diff := cmp.Diff(c.fields, fields); diff != "" {
			t.Errorf("%q: %s", c.in, diff)
		}
		if e, ok := c.err.(*protocol.Error); ok {
			if diff := cmp.Diff(error(e), err); diff != "" {
				t.Errorf("%q: %s", c.in, diff)
			}
		} else if !errors.Is(err, c.err) {
			t.Errorf("%q: %v, want %v", c.in, err, c.err)
		}
	}
}

func TestError(t *testing.T) {
	for _, c := range []struct {
		e              *protocol.Error
		text, complete string
	}{
		{protocol.Err("unknown_key"), "unknown_key", "unknown_key"},
		{protocol.Err("dup"), "Duplicate name/number used.", "dup: Duplicate name/number used."},
		{&protocol.Error{Code: "dup", Text: "mine"}, "mine", "dup: mine"},
		{protocol.Err("invalid_checker_level"), "Checker level invalid.  Please see documentation on this command.",
			"invalid_checker_level: Checker level invalid.  Please see documentation on this command."},
	} {
		if c.e.Message() != c.text || c.e.Error() != c.complete {
			t.Errorf("%v: message %q, error %q", c.e, c.e.Message(), c.e.Error())
		}
	}
	if !errors.Is(&protocol.Error{Code: "unknown_key", Text: "other"}, protocol.ErrUnknownKey) {
		t.Error("the text decides what an error is")
	}
	if errors.Is(protocol.Err("no_key"), protocol.ErrUnknownKey) || errors.Is(errors.New("unknown_key"), protocol.ErrUnknownKey) {
		t.Error("other errors are unknown_key")
	}
}
