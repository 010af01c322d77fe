package protocol

import (
	"fmt"
	"strconv"
	"strings"
)

// ContentSum is what a storage daemon of ours keeps with a file since it was
// stored.
type ContentSum struct {
	Length int64  // bytes
	CRC32C uint32 // of all of it (Castagnoli)
}

// String is the length and the CRC32C in hexadecimal: "9:e3069283".
func (s ContentSum) String() string { return fmt.Sprintf("%d:%08x", s.Length, s.CRC32C) }

// ParseContentSum reads what [ContentSum.String] writes, and nothing else.
func ParseContentSum(text string) (ContentSum, error) {
	digits, hex, ok := strings.Cut(text, ":")
	length, err1 := strconv.ParseInt(digits, 10, 64)
	crc, err2 := strconv.ParseUint(hex, 16, 32)
	s := ContentSum{Length: length, CRC32C: uint32(crc)}
	if !ok || err1 != nil || err2 != nil || length < 0 || s.String() != text {
		return ContentSum{}, fmt.Errorf("content sum %.80q: %w", text, ErrBadReply)
	}
	return s, nil
}

// Content is what came of reading a file on a storage daemon from its beginning
// to its end: the answer to "verify" on the side channel.
type Content struct {
	// Missing: the device is there, and has no such file.
	Missing bool
	// Unreadable: the disk cannot give the content from byte Found.Length on.
	Unreadable bool
	Found      ContentSum  // of what was read
	Stored     *ContentSum // kept with the file since it was stored; nil: none
	Digest     Checksum    // if one was asked for
}

// Corrupt reports whether the content is not what was once stored.
func (c Content) Corrupt() bool { return c.Stored != nil && !c.Missing && *c.Stored != c.Found }

// String is the answer's form, one of
//
//	missing
//	unreadable=LENGTH:CRC32C
//	found=LENGTH:CRC32C stored=LENGTH:CRC32C MD5=HEX
//
// where stored is "-" if there is none, and the digest may be left out.
func (c Content) String() string {
	switch {
	case c.Missing:
		return "missing"
	case c.Unreadable:
		return "unreadable=" + c.Found.String()
	}
	stored := "-"
	if c.Stored != nil {
		stored = c.Stored.String()
	}
	text := "found=" + c.Found.String() + " stored=" + stored
	if !c.Digest.IsZero() {
		text += " " + c.Digest.Type.String() + "=" + c.Digest.Hex()
	}
	return text
}

// ParseContent reads what [Content.String] writes, and nothing else.
func ParseContent(text string) (Content, error) {
	bad := func() (Content, error) {
		return Content{}, fmt.Errorf("content %.80q: %w", text, ErrBadReply)
	}
	if text == "missing" {
		return Content{Missing: true}, nil
	}
	var c Content
	var err error
	if at, ok := strings.CutPrefix(text, "unreadable="); ok {
		c.Unreadable = true
		if c.Found, err = ParseContentSum(at); err != nil {
			return bad()
		}
		return c, nil
	}
	rest, ok := strings.CutPrefix(text, "found=")
	if !ok {
		return bad()
	}
	found, rest, _ := strings.Cut(rest, " ")
	stored, digest, hasDigest := strings.Cut(rest, " ")
	if c.Found, err = ParseContentSum(found); err != nil {
		return bad()
	}
	if stored != "stored=-" {
		s, err := ParseContentSum(strings.TrimPrefix(stored, "stored="))
		if err != nil {
			return bad()
		}
		c.Stored = &s
	}
	if hasDigest {
		if c.Digest, err = ParseChecksum(strings.Replace(digest, "=", ":", 1)); err != nil {
			return bad()
		}
	}
	if c.String() != text {
		return bad()
	}
	return c, nil
}
