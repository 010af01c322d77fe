package volume

import (
	"fmt"
	"hash/crc32"
	"strconv"
	"strings"
)

// sumAttr is the extended attribute that holds a file's [Sum].
const sumAttr = "user.mogile.sum"

// castagnoli is CRC32C, which processors compute themselves. The table is only
// read.
var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Sum is what is known of a file's whole content since it was stored.
type Sum struct {
	Length int64  // bytes
	CRC32C uint32 // Castagnoli
}

// String is the form in which a sum is stored: "1 crc32c=e3069283 length=9",
// where 1 is the version of the form.
func (s Sum) String() string {
	return fmt.Sprintf("1 crc32c=%08x length=%d", s.CRC32C, s.Length)
}

// ParseSum reads what [Sum.String] writes, and nothing else.
func ParseSum(text string) (Sum, error) {
	bad := func() (Sum, error) { return Sum{}, fmt.Errorf("content sum %.80q: not understood", text) }
	rest, ok := strings.CutPrefix(text, "1 crc32c=")
	if !ok {
		return bad()
	}
	hex, digits, ok := strings.Cut(rest, " length=")
	if !ok {
		return bad()
	}
	crc, err1 := strconv.ParseUint(hex, 16, 32)
	length, err2 := strconv.ParseInt(digits, 10, 64)
	s := Sum{Length: length, CRC32C: uint32(crc)}
	if err1 != nil || err2 != nil || length < 0 || s.String() != text {
		return bad()
	}
	return s, nil
}

// Add is the sum of s's content followed by p.
func (s Sum) Add(p []byte) Sum {
	return Sum{Length: s.Length + int64(len(p)), CRC32C: crc32.Update(s.CRC32C, castagnoli, p)}
}
