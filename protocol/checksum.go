package protocol

import (
	"bytes"
	"crypto/md5"
	"crypto/sha1"
	"encoding/hex"
	"fmt"
	"hash"
	"strings"

	"github.com/zeebo/blake3"
)

// HashType is the algorithm of a checksum, numbered as in the column
// class.hashtype. Zero is none.
type HashType int16

// The algorithms of MogileFS 2.73, which reserves the numbers 3 to 6 for SHA-2,
// and BLAKE3 of 256 bits, which it does not know: only sealed databases have
// that.
const (
	HashNone   HashType = 0
	HashMD5    HashType = 1
	HashSHA1   HashType = 2
	HashBLAKE3 HashType = 7
)

// HashTypes are the algorithms that can be computed, in the order of their
// numbers.
func HashTypes() []HashType { return []HashType{HashMD5, HashSHA1, HashBLAKE3} }

// ParseHashType reads "MD5", "SHA-1" or "BLAKE3", exactly so, and reports
// whether s was one of them.
func ParseHashType(s string) (HashType, bool) {
	switch s {
	case "MD5":
		return HashMD5, true
	case "SHA-1":
		return HashSHA1, true
	case "BLAKE3":
		return HashBLAKE3, true
	}
	return HashNone, false
}

// blake3Size is the length in bytes of the digests that are kept, BLAKE3's own.
const blake3Size = 32

// String is the algorithm's name on the wire, "NONE" for none.
func (t HashType) String() string {
	switch t {
	case HashNone:
		return "NONE"
	case HashMD5:
		return "MD5"
	case HashSHA1:
		return "SHA-1"
	case HashBLAKE3:
		return "BLAKE3"
	}
	return fmt.Sprintf("hashtype-%d", int16(t))
}

// Size is the digest's length in bytes, 0 where the algorithm is unknown.
func (t HashType) Size() int {
	switch t {
	case HashMD5:
		return md5.Size
	case HashSHA1:
		return sha1.Size
	case HashBLAKE3:
		return blake3Size
	}
	return 0
}

// New is a hash of the algorithm, nil where it is none or unknown.
func (t HashType) New() hash.Hash {
	switch t {
	case HashMD5:
		return md5.New()
	case HashSHA1:
		return sha1.New()
	case HashBLAKE3:
		return blake3.New()
	}
	return nil
}

// Checksum is a digest and its algorithm. The zero value is no checksum.
type Checksum struct {
	Type HashType
	Sum  []byte
}

// ParseChecksum reads an algorithm's name, a colon and hexadecimal digits in
// either case. Anything else gets the refusal invalid_checksum_format.
func ParseChecksum(s string) (Checksum, error) {
	name, digits, _ := strings.Cut(s, ":")
	t, ok := ParseHashType(name)
	if !ok || len(digits) != 2*t.Size() {
		return Checksum{}, Err("invalid_checksum_format")
	}
	sum, err := hex.DecodeString(digits)
	if err != nil {
		return Checksum{}, Err("invalid_checksum_format")
	}
	return Checksum{t, sum}, nil
}

// IsZero reports whether c is no checksum.
func (c Checksum) IsZero() bool { return c.Type == HashNone }

// Equal reports whether c and d are of one algorithm and the same digest.
func (c Checksum) Equal(d Checksum) bool { return c.Type == d.Type && bytes.Equal(c.Sum, d.Sum) }

// Hex is the digest in lower-case hexadecimal.
func (c Checksum) Hex() string { return hex.EncodeToString(c.Sum) }

// String is "MD5:", or what the algorithm is, and the digest in lower-case hexadecimal.
func (c Checksum) String() string { return c.Type.String() + ":" + c.Hex() }
