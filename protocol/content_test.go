package protocol_test

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/mogile/mogile/protocol"
)

func TestContent(t *testing.T) {
	t.Parallel()
	md5, err := protocol.ParseChecksum("MD5:" + emptyMD5)
	if err != nil {
		t.Fatal(err)
	}
	nine := protocol.ContentSum{Length: 9, CRC32C: 0xe3069283}
	for _, tt := range []struct {
		text    string
		want    protocol.Content
		corrupt bool
	}{
		{"missing", protocol.Content{Missing: true}, false},
		{"unreadable=9:e3069283", protocol.Content{Unreadable: true, Found: nine}, false},
		{"found=0:00000000 stored=-", protocol.Content{}, false},
		{"found=9:e3069283 stored=9:e3069283", protocol.Content{Found: nine, Stored: &nine}, false},
		{"found=0:00000000 stored=9:e3069283 MD5=" + emptyMD5, protocol.Content{Stored: &nine, Digest: md5}, true},
		{"found=9:e3069283 stored=0:00000000", protocol.Content{Found: nine, Stored: new(protocol.ContentSum)}, true},
	} {
		got, err := protocol.ParseContent(tt.text)
		if diff := cmp.Diff(tt.want, got); err != nil || diff != "" {
			t.Errorf("%s: %v\n%s", tt.text, err, diff)
		}
		if s := got.String(); s != tt.text || got.Corrupt() != tt.corrupt {
			t.Errorf("%s: formatted %q, corrupt %v", tt.text, s, got.Corrupt())
		}
	}
	for _, text := range []string{
		"", "-1", "missing ", "unreadable", "unreadable=", "unreadable=9", "found=9:e3069283", "found=9:e3069283 ", "found=9:e3069283 stored=",
		"found=-1:e3069283 stored=-", "found=+9:e3069283 stored=-", "found=9:E3069283 stored=-", "found=9:3069283 stored=-",
		"found=9:e3069283 stored=- ", "found=9:e3069283 stored=- MD5=" + emptySHA1, "found=9:e3069283 stored=- MD5:" + emptyMD5,
		"found=9:e3069283 stored=- NONE=", "found=9:e3069283 stored=- MD5=" + emptyMD5 + " x", "found=99999999999999999999:e3069283 stored=-",
	} {
		if c, err := protocol.ParseContent(text); !errors.Is(err, protocol.ErrBadReply) {
			t.Errorf("%q: %v, %v", text, c, err)
		}
	}
}

func FuzzParseContent(f *testing.F) {
	for _, s := range []string{"missing", "unreadable=65536:e3069283", "found=9:e3069283 stored=-", "found=0:00000000 stored=9:e3069283 MD5=" + emptyMD5} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		c, err := protocol.ParseContent(text)
		if err == nil && c.String() != text {
			t.Errorf("%q is read as %q", text, c)
		}
	})
}
