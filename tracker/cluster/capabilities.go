package cluster

import (
	"slices"
	"strconv"
	"strings"
)

// maxCapabilities bounds the header "Mogile", in bytes.
const maxCapabilities = 512

// ParseCapabilities reads the header "Mogile" of a storage daemon's answer: the
// version of its internal verbs, from 1, and words for what it can do. A header
// that is empty, malformed or over-long is that of a daemon of another make.
func ParseCapabilities(header string) Capabilities {
	if len(header) > maxCapabilities {
		return Capabilities{}
	}
	fields := strings.Fields(header)
	if len(fields) == 0 {
		return Capabilities{}
	}
	version, err := strconv.ParseUint(fields[0], 10, 16)
	if err != nil || version == 0 {
		return Capabilities{}
	}
	c := Capabilities{Version: int(version)}
	if len(fields) > 1 {
		c.Words = fields[1:]
	}
	return c
}

// String is the header that c was read from; empty for the zero value.
func (c Capabilities) String() string {
	if c.Version == 0 {
		return ""
	}
	return strings.Join(append([]string{strconv.Itoa(c.Version)}, c.Words...), " ")
}

// Has reports whether the storage daemon announced word.
func (c Capabilities) Has(word string) bool { return slices.Contains(c.Words, word) }

// Equal reports whether c and d say the same.
func (c Capabilities) Equal(d Capabilities) bool {
	return c.Version == d.Version && slices.Equal(c.Words, d.Words)
}
