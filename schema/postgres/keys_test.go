package postgres

import (
	"errors"
	"strings"
	"testing"
	"unicode/utf8"

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
		err := checkKey(c.key, c.ascii, c.sealed)
		if c.ok != (err == nil) {
			t.Errorf("%s: %v", c.name, err)
		}
		if err != nil && (!errors.Is(err, protocol.ErrInvalidKey) || err.Error() == "invalid_key") {
			t.Errorf("%s: %v; want invalid_key and a reason", c.name, err)
		}
	}
}

func TestLockKeys(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]int32{"mogile": lockSpace, "mogile:domain": domainSpace, "mogile:schema": schemaSpace} {
		if got := lockKey(name); got != want {
			t.Errorf("lockKey(%q) is %d; the constant is %d", name, got, want)
		}
	}
}

// FuzzKeyRange compares the range with what it stands for.
func FuzzKeyRange(f *testing.F) {
	for _, s := range [][3]string{
		{"", "", "a"}, {"a", "", "ab"}, {"a\xc3", "", "aé"}, {"\U0010ffff", "", "\U0010ffffa"}, {"", "\xed\xa0\x80", "\ue000"},
		{"a\x00", "", "a\x01"}, {"", "a\x00b", "a\x01"}, {"\xff", "", "z"}, {"", "\xff", "\U0010ffff"}, {"\u07ff", "\u07ff", "\u0800"},
		{"\ud7ff", "", "\ue000"}, {"é", "é", "éa"}, {"x\xf4\x8f\xbf\xbf", "", "y"}, {"x\xf4\x90", "x", "y"},
	} {
		f.Add(s[0], s[1], s[2], false)
		f.Add(s[0], s[1], s[2], true)
	}
	f.Fuzz(func(t *testing.T, prefix, after, key string, ascii bool) {
		from, to, ok := keyRange(prefix, after, ascii)
		if !ascii && ok && (!utf8.ValidString(from) || to != nil && !utf8.ValidString(*to)) {
			t.Fatalf("the range [%q, %v) is not UTF-8", from, to)
		}
		if strings.Contains(from, "\x00") || to != nil && strings.Contains(*to, "\x00") {
			t.Fatalf("the range [%q, %v) has NUL", from, to)
		}
		if key == "" || strings.Contains(key, "\x00") || !ascii && !utf8.ValidString(key) {
			return
		}
		want := strings.HasPrefix(key, prefix) && key > after
		got := ok && key >= from && (to == nil || key < *to)
		if got != want {
			t.Errorf("key %q, prefix %q, after %q: in the range %t, want %t (from %q)", key, prefix, after, got, want, from)
		}
	})
}
