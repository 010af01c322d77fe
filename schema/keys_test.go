package schema

import (
	"errors"
	"strings"
	"testing"

	"github.com/mogile/mogile/protocol"
)

func TestCheckKey(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, key     string
		ascii, sealed bool
		ok            bool
	}{
		{name: "plain", key: "a", ok: true},
		{name: "empty", key: ""},
		{name: "NUL", key: "a\x00", ascii: true},
		{name: "not UTF-8", key: "\xff"},
		{name: "bytes in an SQL_ASCII database", key: "\xff", ascii: true, ok: true},
		{name: "255 characters", key: strings.Repeat("日", 255), ok: true},
		{name: "256 characters", key: strings.Repeat("x", 256)},
		{name: "256 bytes in an SQL_ASCII database", key: strings.Repeat("é", 128), ascii: true},
		{name: "1024 bytes, sealed", key: strings.Repeat("é", 512), sealed: true, ok: true},
		{name: "1025 bytes, sealed", key: strings.Repeat("x", 1025), sealed: true},
		{name: "1024 bytes, sealed SQL_ASCII", key: strings.Repeat("\xfe", 1024), sealed: true, ascii: true, ok: true},
	} {
		err := CheckKey(c.key, c.ascii, c.sealed)
		if c.ok != (err == nil) {
			t.Errorf("%s: %v", c.name, err)
		}
		if err != nil && (!errors.Is(err, protocol.ErrInvalidKey) || err.Error() == "invalid_key") {
			t.Errorf("%s: %v; want invalid_key and a reason", c.name, err)
		}
	}
}

func TestCloseRefusal(t *testing.T) {
	t.Parallel()
	fid := func(n protocol.FID) *protocol.FID { return &n }
	for _, c := range []struct {
		name string
		Close
		now  protocol.FID
		want error
	}{
		{"anything goes", Close{FID: 9}, 4, nil},
		{"kept", Close{FID: 9, NoOverwrite: true}, 4, protocol.ErrKeyExists},
		{"nothing to keep", Close{FID: 9, NoOverwrite: true}, 0, nil},
		{"the same", Close{FID: 9, IfFID: fid(4)}, 4, nil},
		{"another", Close{FID: 9, IfFID: fid(4)}, 5, protocol.ErrFIDMismatch},
		{"none", Close{FID: 9, IfFID: fid(4)}, 0, protocol.ErrFIDMismatch},
		{"one instead of none", Close{FID: 9, IfFID: fid(0)}, 4, protocol.ErrFIDMismatch},
		{"none as wanted", Close{FID: 9, IfFID: fid(0)}, 0, nil},
		{"kept, although it is the one", Close{FID: 9, IfFID: fid(4), NoOverwrite: true}, 4, protocol.ErrKeyExists},
		{"closed before", Close{FID: 9, IfFID: fid(4), NoOverwrite: true}, 9, nil},
	} {
		if err := c.Refusal(c.now); !errors.Is(err, c.want) || (err == nil) != (c.want == nil) {
			t.Errorf("%s: %v; want %v", c.name, err, c.want)
		}
	}
}

// Clients look for some codes anywhere in an error's line.
func TestRefusalsNameNoOtherCode(t *testing.T) {
	t.Parallel()
	codes := []string{"unknown_key", "unknown_command", "key_exists", "unreg_class", "class_not_found", "none_match"}
	for _, err := range []error{FIDMismatch(0, 1), FIDMismatch(1, 0), FIDMismatch(1, 2), FIDMismatch(1, 1), CheckKey("", false, false)} {
		for _, code := range codes {
			if strings.Contains(err.Error(), code) {
				t.Errorf("%q has %s in it", err, code)
			}
		}
	}
}
