package load

import (
	"crypto/rand"
	"encoding/binary"
)

// contentHead is how many bytes at the beginning tell files apart.
const contentHead = 8

// Content is that of many files of one size: each begins with its number, and
// goes on with bytes that all share, and that are made once.
type Content struct{ shared []byte }

// NewContent is content of size bytes.
func NewContent(size int64) *Content {
	c := &Content{shared: make([]byte, size)}
	_, _ = rand.Read(c.shared) // never fails
	return c
}

// Size is that of each file.
func (c *Content) Size() int64 { return int64(len(c.shared)) }

// parts are the two parts of file n, of which the first is put into head.
func (c *Content) parts(n int64, head *[contentHead]byte) (first, rest []byte) {
	binary.BigEndian.PutUint64(head[:], uint64(n))
	k := min(contentHead, len(c.shared))
	return head[contentHead-k:], c.shared[k:]
}
