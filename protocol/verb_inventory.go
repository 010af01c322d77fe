package protocol

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

const (
	// VerbList is the verb with which a storage daemon is asked what lies on a
	// device.
	VerbList = "list"
	// VerbTrash is the verb with which files are moved to a device's trash.
	VerbTrash = "trash"

	// MaxListed bounds the files of one answer to a [ListOrder].
	MaxListed = 10_000
	// MaxTrashed bounds the files of one [TrashOrder].
	MaxTrashed = 200
)

// StoredFile is a file on a device as it was found there: a copy, or a shard.
type StoredFile struct {
	FID     FID
	Size    int64 // bytes
	ModTime time.Time
	Shard   bool
}

// shardMark is behind what is said of a shard.
const shardMark = ":ec"

// String is the form of a file in orders and answers: fid, size and time in ns
// since 1970, separated by colons, and ":ec" behind those of a shard.
func (f StoredFile) String() string {
	text := fmt.Sprintf("%d:%d:%d", f.FID, f.Size, f.ModTime.UnixNano())
	if f.Shard {
		text += shardMark
	}
	return text
}

// ParseStoredFile reads what [StoredFile.String] writes, and nothing else.
func ParseStoredFile(text string) (StoredFile, error) {
	fields, shard := strings.CutSuffix(text, shardMark)
	fid, rest, _ := strings.Cut(fields, ":")
	size, ns, _ := strings.Cut(rest, ":")
	n, err1 := strconv.ParseUint(fid, 10, 63)
	length, err2 := strconv.ParseInt(size, 10, 64)
	at, err3 := strconv.ParseInt(ns, 10, 64)
	f := StoredFile{FID: FID(n), Size: length, ModTime: time.Unix(0, at), Shard: shard}
	if err1 != nil || err2 != nil || err3 != nil || n == 0 || length < 0 || f.String() != text {
		return StoredFile{}, fmt.Errorf("file %.80q: %w", text, ErrBadReply)
	}
	return f, nil
}

// ListOrder asks for the files on a device that have the names of fids, of which
// each is a line "file" of the answer. [Listing] is the rest of it.
type ListOrder struct {
	Dev    DevID
	After  string // [Listing].Next of the answer before; empty at the beginning
	Limit  int    // 1 to MaxListed
	Shards bool   // shards are wanted, too; else they are Foreign
}

// Args are the arguments of the order.
func (l ListOrder) Args() Args {
	a := Args{{"after", l.After}, {"devid", l.Dev.String()}}
	a.AddInt("limit", int64(l.Limit))
	if l.Shards {
		a.Add("shards", "1")
	}
	return a
}

// orderNumber reads an argument from low to high.
func orderNumber(a Args, name string, low, high uint64) (uint64, error) {
	n, err := strconv.ParseUint(a.Get(name), 10, 64)
	if err != nil || n < low || n > high {
		return 0, &Error{Code: ErrBadOrder.Code, Text: fmt.Sprintf("%s must be a number from %d to %d", name, low, high)}
	}
	return n, nil
}

// ParseListOrder reads the arguments of a [ListOrder]. What After means is the
// storage daemon's to know. Its errors match ErrBadOrder.
func ParseListOrder(a Args) (ListOrder, error) {
	dev, err := orderNumber(a, "devid", 1, MaxDevID)
	if err != nil {
		return ListOrder{}, err
	}
	limit, err := orderNumber(a, "limit", 1, MaxListed)
	return ListOrder{Dev: DevID(dev), After: a.Get("after"), Limit: int(limit), Shards: a.True("shards")}, err
}

// Listing is the answer to a [ListOrder].
type Listing struct {
	Files      []StoredFile
	Next       string    // where to go on; empty where that was all
	Foreign    int64     // names that are no file's
	Unreadable int64     // files and folders that the disk cannot give
	Now        time.Time // the storage daemon's clock, in ms
	Cluster    string    // of the device's identity; may be empty
	UUID       string    // of the device's identity; may be empty
}

// Args are the fields of the answer's last line.
func (l Listing) Args() Args {
	a := Args{{"next", l.Next}, {"cluster", l.Cluster}, {"uuid", l.UUID}}
	a.AddInt("foreign", l.Foreign)
	a.AddInt("unreadable", l.Unreadable)
	a.AddInt("now", l.Now.UnixMilli())
	return a
}

// ParseListing reads the fields of the answer's last line. Its errors match
// ErrBadReply.
func ParseListing(a Args) (Listing, error) {
	l := Listing{Next: a.Get("next"), Cluster: a.Get("cluster"), UUID: a.Get("uuid")}
	now, err1 := strconv.ParseInt(a.Get("now"), 10, 64)
	foreign, err2 := strconv.ParseInt(a.Get("foreign"), 10, 64)
	unreadable, err3 := strconv.ParseInt(a.Get("unreadable"), 10, 64)
	if err1 != nil || err2 != nil || err3 != nil || foreign < 0 || unreadable < 0 {
		return Listing{}, fmt.Errorf("end of a list: %w", ErrBadReply)
	}
	l.Foreign, l.Unreadable, l.Now = foreign, unreadable, time.UnixMilli(now)
	return l, nil
}

// TrashOrder has files moved to the device's trash. A file that is given with
// its size and time stays where it has another one. Of a bare fid everything goes
// that the device has of it, its copy and its shard.
type TrashOrder struct {
	Dev   DevID
	Files []StoredFile // 1 to MaxTrashed; with a zero ModTime it is bare
}

// Args are the arguments of the order.
func (t TrashOrder) Args() Args {
	texts := make([]string, len(t.Files))
	for i, f := range t.Files {
		if texts[i] = f.String(); f.ModTime.IsZero() {
			texts[i] = f.FID.String()
		}
	}
	return Args{{"devid", t.Dev.String()}, {"files", strings.Join(texts, ",")}}
}

// ParseTrashOrder reads the arguments of a [TrashOrder]. Its errors match
// ErrBadOrder.
func ParseTrashOrder(a Args) (TrashOrder, error) {
	dev, err := orderNumber(a, "devid", 1, MaxDevID)
	if err != nil {
		return TrashOrder{}, err
	}
	t := TrashOrder{Dev: DevID(dev)}
	for text := range strings.SplitSeq(a.Get("files"), ",") {
		f, err := ParseStoredFile(text)
		if fid, bare := strconv.ParseUint(text, 10, 63); bare == nil && fid > 0 {
			f, err = StoredFile{FID: FID(fid)}, nil
		}
		if err != nil || len(t.Files) == MaxTrashed {
			return TrashOrder{}, &Error{Code: ErrBadOrder.Code, Text: fmt.Sprintf("files must be 1 to %d fids, each alone or with size and time", MaxTrashed)}
		}
		t.Files = append(t.Files, f)
	}
	return t, nil
}

// What became of a file that was to be trashed.
const (
	Trashed      = "trashed"
	TrashMissing = "missing" // there was none
	TrashChanged = "changed" // it is another by now, and stays
	TrashFailed  = "failed"  // the disk could not do it; the file may be in either place
)

// TrashResult is a line of the answer to a [TrashOrder]; there is one for each
// file, in the order of these.
type TrashResult struct {
	FID   FID
	What  string // Trashed, TrashMissing, TrashChanged or TrashFailed
	To    string // where it is now, below the device's folder; why, where it failed. With a comma between two
	Shard bool   // a shard was named
}

// Args are the fields of the line.
func (r TrashResult) Args() Args {
	a := Args{{"fid", r.FID.String()}, {"result", r.What}, {"to", r.To}}
	if r.Shard {
		a.Add("shard", "1")
	}
	return a
}

// ParseTrashResult reads the fields of a line. Its errors match ErrBadReply.
func ParseTrashResult(a Args) (TrashResult, error) {
	fid, err := strconv.ParseUint(a.Get("fid"), 10, 63)
	r := TrashResult{FID: FID(fid), What: a.Get("result"), To: a.Get("to"), Shard: a.True("shard")}
	if err != nil || fid == 0 || r.What == "" {
		return TrashResult{}, fmt.Errorf("result of trashing a file: %w", ErrBadReply)
	}
	return r, nil
}
