package protocol_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/mogile/mogile/protocol"
)

const (
	emptyMD5    = "d41d8cd98f00b204e9800998ecf8427e"
	emptySHA1   = "da39a3ee5e6b4b0d3255bfef95601890afd80709"
	emptyBLAKE3 = "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"
)

func TestChecksum(t *testing.T) {
	for _, s := range []string{"MD5:" + emptyMD5, "SHA-1:" + emptySHA1, "BLAKE3:" + emptyBLAKE3} {
		c, err := protocol.ParseChecksum(s)
		if err != nil || c.String() != s || c.IsZero() {
			t.Errorf("%s: %v, %v", s, c, err)
			continue
		}
		if c.Type.Size() != len(c.Sum) || c.Hex() != s[strings.Index(s, ":")+1:] {
			t.Errorf("%s: size %d, hex %s", s, c.Type.Size(), c.Hex())
		}
		if got := (protocol.Checksum{Type: c.Type, Sum: c.Type.New().Sum(nil)}); !got.Equal(c) {
			t.Errorf("%s: of nothing is %v", s, got)
		}
		name, digits, _ := strings.Cut(s, ":")
		if upper, err := protocol.ParseChecksum(name + ":" + strings.ToUpper(digits)); err != nil || !upper.Equal(c) {
			t.Errorf("%s in upper case: %v, %v", s, upper, err)
		}
	}
	for _, s := range []string{"", ":", "MD5", "MD5:", "md5:" + emptyMD5, "SHA1:" + emptySHA1, "blake3:" + emptyBLAKE3, "BLAKE3:" + emptySHA1, "SHA-1:" + emptyMD5, "MD5:" + emptySHA1,
		"MD5:" + emptyMD5[:31], "MD5:" + emptyMD5[:31] + "g", " MD5:" + emptyMD5, "MD5:" + emptyMD5 + " ", "NONE:", emptyMD5} {
		if c, err := protocol.ParseChecksum(s); !errors.Is(err, protocol.Err("invalid_checksum_format")) {
			t.Errorf("%q: %v, %v", s, c, err)
		}
	}
	a, _ := protocol.ParseChecksum("MD5:" + emptyMD5)
	if a.Equal(protocol.Checksum{}) || a.Equal(protocol.Checksum{Type: protocol.HashSHA1, Sum: a.Sum}) || !(protocol.Checksum{}).IsZero() {
		t.Error("checksums that differ are equal")
	}
}

func TestHashType(t *testing.T) {
	for s, want := range map[string]protocol.HashType{"MD5": 1, "SHA-1": 2, "BLAKE3": 7} {
		if h, ok := protocol.ParseHashType(s); !ok || h != want || h.String() != s || h.New().Size() != h.Size() {
			t.Errorf("%s: %d, %v", s, h, ok)
		}
	}
	for _, s := range []string{"", "NONE", "md5", "SHA1", "SHA-256", "BLAKE-3", "Blake3"} {
		if h, ok := protocol.ParseHashType(s); ok {
			t.Errorf("%q is %v", s, h)
		}
	}
	for _, h := range []protocol.HashType{0, 3, 6, 8, -1} {
		if h.New() != nil || h.Size() != 0 {
			t.Errorf("%v computes something", h)
		}
	}
	for _, h := range protocol.HashTypes() {
		if same, ok := protocol.ParseHashType(h.String()); !ok || same != h {
			t.Errorf("%v is not read back", h)
		}
	}
	if got := fmt.Sprint(protocol.HashNone, protocol.HashType(5)); got != "NONE hashtype-5" {
		t.Error(got)
	}
}
