package tools

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/mogile/mogile/protocol"
)

// What follows are the decisions about trees of files. A tree's files have
// names, relative to its directory, with "/" between their parts; a file's key
// is the tree's prefix and the name.

// treePrefix is the beginning of the keys of a tree that the user calls prefix:
// nothing, or what ends in a "/".
func treePrefix(prefix string) string {
	if prefix == "" || strings.HasSuffix(prefix, "/") {
		return prefix
	}
	return prefix + "/"
}

// maxKey is the most bytes that a key can have in any Mogile database.
const maxKey = 1024

// keyError says why no tracker takes a key, nil where one may.
func keyError(key string) error {
	switch {
	case len(key) > maxKey:
		return fmt.Errorf("its key would have %d bytes; the most is %d", len(key), maxKey)
	case strings.IndexByte(key, 0) >= 0:
		return errors.New("its key would have a NUL")
	}
	return nil
}

// nameError says why a file cannot have a name below a directory, nil where it
// can: keys may hold anything.
func nameError(name string) error {
	switch {
	case name == "":
		return errors.New("the key is the prefix itself, and leaves no name for a file")
	case strings.IndexByte(name, 0) >= 0:
		return errors.New("no file name has a NUL")
	case name[0] == '/':
		return errors.New("the name would be absolute, or have an empty part")
	case name[len(name)-1] == '/':
		return errors.New(`the name would end in "/", as that of a directory`)
	}
	for part := range strings.SplitSeq(name, "/") {
		switch {
		case part == "":
			return errors.New("the name would have an empty part")
		case part == "." || part == "..":
			return fmt.Errorf("the name would have a part %q", part)
		case isPartial(part):
			return errors.New("such names are those of unfinished downloads")
		}
	}
	return nil
}

// overlaps finds names that would need a file to be a directory too. It is fed
// all names in byte order, and remembers only those that the last one begins
// with.
type overlaps struct{ begun []string }

// file returns the file that name lies below, "" where there is none.
func (o *overlaps) file(name string) string {
	for len(o.begun) > 0 && !strings.HasPrefix(name, o.begun[len(o.begun)-1]) {
		o.begun = o.begun[:len(o.begun)-1]
	}
	for _, b := range o.begun {
		if len(name) > len(b) && name[len(b)] == '/' {
			return b
		}
	}
	o.begun = append(o.begun, name)
	return ""
}

// thoroughness is how a file is compared with what is stored.
type thoroughness int

const (
	byKnown    thoroughness = iota // length, and checksum where the tracker has one
	bySize                         // length alone
	byContents                     // length and content, read where the tracker has no checksum
)

// verdict is what a comparison comes to, or needs.
type verdict int

const (
	same verdict = iota
	different
	needHash   // hash the file, compare with the tracker's checksum
	needStored // hash the file and what is stored
)

// compare begins the comparison of a file of length bytes with what is stored.
func compare(t thoroughness, length int64, stored protocol.FileInfo) verdict {
	switch {
	case length != stored.Length:
		return different
	case t == bySize || length == 0:
		return same
	case !stored.Checksum.IsZero():
		return needHash
	case t == byContents:
		return needStored
	}
	return same
}

// deletions is what is known before a destination's surplus may go.
type deletions struct {
	source    int64 // files at the source
	both      int64 // files at source and destination, by name
	extra     int64 // files at the destination alone
	limit     int64 // the most to delete that the user named; negative is none named
	force     bool
	confirmed bool // by --yes
}

// alwaysFew deletions need no particular permission.
const alwaysFew = 10

// deletion says why a destination's surplus must stay; nil permits it. ask is
// true where only the user's word is missing.
func deletion(d deletions) (ask bool, err error) {
	switch {
	case d.limit >= 0 && d.extra > d.limit:
		return false, fmt.Errorf("that are more than the %d that --max-delete permits", d.limit)
	case d.force:
	case d.source == 0:
		return false, errors.New("the source has no files; --force deletes nevertheless")
	case d.both == 0:
		return false, errors.New("source and destination have no file in common; is the source the right one? --force deletes nevertheless")
	case d.limit < 0 && d.extra > alwaysFew && d.extra > (d.both+d.extra)/2:
		return false, errors.New("that are more than half of the destination's files; --max-delete N or --force permits it")
	}
	return !d.confirmed, nil
}

// eta is how long the rest takes if it goes on as so far, negative where that
// cannot be told. Files and bytes both take their time: the slower counts.
func eta(files, bytes, allFiles, allBytes int64, took time.Duration) time.Duration {
	if files <= 0 || allFiles < files || took <= 0 {
		return -1
	}
	part := float64(files) / float64(allFiles)
	if allBytes > 0 && bytes <= allBytes {
		part = min(part, float64(bytes)/float64(allBytes))
	}
	if part <= 0 {
		return -1
	}
	return time.Duration(float64(took)*(1/part-1)) + 1
}
