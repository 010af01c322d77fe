package postgres

import (
	"strings"
	"testing"
	"unicode/utf8"
)

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
