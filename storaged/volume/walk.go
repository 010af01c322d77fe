package volume

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/mogile/mogile/protocol"
)

// RawFile is a file of a device that has the name of a fid: a copy of it, or a
// shard.
type RawFile struct {
	FID     protocol.FID
	Size    int64 // bytes
	ModTime time.Time
	Shard   bool
}

// Position is a place in a walk over a device's files: behind all files of the
// folders before Dir, and behind those of Dir with fids up to FID, or with Copy
// set in front of FID's shard. The zero value is the beginning.
//
// A fid's folder is the first seven digits of its padded number, so that the
// order is that of the fids as long as they have ten digits at most. Of one fid
// the copy comes before the shard.
type Position struct {
	Dir  int // 0 to 10,000,000, the end
	FID  protocol.FID
	Copy bool
}

// allDirs is how many folders of files a device can have.
const allDirs = 10_000_000

// String is the folder's seven digits, a dot and the fid, and ".fid" behind its
// copy.
func (p Position) String() string {
	text := fmt.Sprintf("%07d.%d", p.Dir, p.FID)
	if p.Copy {
		text += copyMark
	}
	return text
}

const copyMark = ".fid"

// ParsePosition reads what [Position.String] writes, and nothing else.
func ParsePosition(text string) (Position, error) {
	place, isCopy := strings.CutSuffix(text, copyMark)
	dir, fid, _ := strings.Cut(place, ".")
	d, err1 := strconv.ParseUint(dir, 10, 32)
	f, err2 := strconv.ParseUint(fid, 10, 63)
	p := Position{Dir: int(d), FID: protocol.FID(f), Copy: isCopy}
	if err1 != nil || err2 != nil || d > allDirs || p.String() != text {
		return Position{}, fmt.Errorf("position %.40q: not understood", text)
	}
	return p, nil
}

// Page is a part of a walk.
type Page struct {
	Files      []RawFile
	Foreign    int      // names that are no file's of this layout, nor the daemon's own
	Unreadable int      // files and folders that the disk cannot give, or that may not be read
	Next       Position // where the walk goes on
	More       bool     // there may be more behind Next
}

// Walk lists up to limit files behind from. It may list less, and none, with
// More set, when it has taken as long as budget. Its memory is bounded by limit.
// Files that come, go or are replaced meanwhile may or may not be seen; others
// are, once.
func (v *Volume) Walk(ctx context.Context, from Position, limit int, budget time.Duration) (Page, error) {
	w := walk{v: v, from: from, limit: max(limit, 1), until: time.Now().Add(budget), page: Page{Next: from}}
	err := w.level(ctx, ".", 0, allDirs)
	if errors.Is(err, errEnough) {
		w.page.More = true
		err = nil
	}
	return w.page, wrap("walk", v.id, ".", err)
}

// errEnough ends a walk whose page is full.
var errEnough = errors.New("the page is full")

type walk struct {
	v     *Volume
	from  Position
	limit int
	until time.Time
	page  Page
}

// own are the names in a device's folder that are neither fids' nor foreign:
// ours, MogileFS's, and the filesystem's.
func own(name string) bool {
	return name == private || name == "usage" || name == "test-write" || name == "lost+found"
}

// level walks through the folder name, which has size folders of files, the
// first of them being number first.
func (w *walk) level(ctx context.Context, name string, first, size int) error {
	if first+size <= w.page.Next.Dir {
		return nil // behind us
	}
	if len(w.page.Files) >= w.limit {
		return errEnough
	}
	if size == 1 {
		return w.leaf(ctx, name, first)
	}
	below, digits := size/1000, 3
	if name == "." {
		below, digits = size/10, 1
	}
	var found []int // a thousand at most
	err := w.list(ctx, name, w.begins(first), func(entry string) bool {
		n, err := strconv.ParseUint(entry, 10, 16)
		if err != nil || len(entry) != digits {
			return name == "." && own(entry)
		}
		found = append(found, int(n))
		return true
	})
	if err != nil {
		return err
	}
	slices.Sort(found)
	for _, n := range found {
		if err := w.level(ctx, path.Join(name, fmt.Sprintf("%0*d", digits, n)), first+n*below, below); err != nil {
			return err
		}
	}
	return w.pass(first + size)
}

// leaf walks through a folder of files.
func (w *walk) leaf(ctx context.Context, name string, dir int) error {
	want := w.limit - len(w.page.Files)
	var after named
	if w.page.Next.Dir == dir {
		after = named{w.page.Next.FID, !w.page.Next.Copy}
	}
	var found []named // the first of those that may be wanted
	more := false
	shorten := func() {
		slices.SortFunc(found, named.compare)
		if len(found) > want {
			found, more = found[:want], true
		}
	}
	prefix := "dev" + w.v.id.String() + "/" + name + "/"
	err := w.list(ctx, name, w.begins(dir), func(entry string) bool {
		file, ok := parseNamed(prefix + entry)
		if ok && file.compare(after) > 0 {
			if found = append(found, file); len(found) == 2*want+dirChunk {
				shorten()
			}
		}
		return ok
	})
	if err != nil {
		return err
	}
	shorten()
	for _, file := range found {
		info, err := w.v.Stat(ctx, w.v.name(file.fid, file.shard))
		switch {
		case err == nil:
			w.page.Files = append(w.page.Files, RawFile{FID: file.fid, Size: info.Size, ModTime: info.ModTime, Shard: file.shard})
		case errors.Is(err, fs.ErrNotExist): // it went
		case errors.Is(err, ErrIsDir):
			w.page.Foreign++
		case unlistable(err):
			w.page.Unreadable++
		default:
			return err
		}
		w.page.Next = Position{Dir: dir, FID: file.fid, Copy: !file.shard}
		if time.Now().After(w.until) {
			return errEnough
		}
	}
	if more {
		return errEnough
	}
	return w.pass(dir + 1)
}

// named is a file by its name.
type named struct {
	fid   protocol.FID
	shard bool
}

// parseNamed reads the path of a file, device included.
func parseNamed(path string) (named, bool) {
	_, fid, err := protocol.ParsePath(path)
	if err == nil {
		return named{fid, false}, true
	}
	_, fid, err = protocol.ParseShardPath(path)
	return named{fid, true}, err == nil
}

// compare is the order of a walk.
func (n named) compare(m named) int {
	switch c := cmp.Compare(n.fid, m.fid); {
	case c != 0 || n.shard == m.shard:
		return c
	case n.shard:
		return 1
	default:
		return -1
	}
}

// begins reports whether a folder, whose first folder of files is number first,
// begins in this page: what is foreign in it is counted then, and only then.
func (w *walk) begins(first int) bool {
	return first > w.from.Dir || first == w.from.Dir && w.from.FID == 0
}

// pass moves the position in front of a folder of files, if it is not there
// yet.
func (w *walk) pass(dir int) error {
	if dir <= w.page.Next.Dir {
		return nil
	}
	w.page.Next = Position{Dir: dir}
	if dir < allDirs && time.Now().After(w.until) {
		return errEnough
	}
	return nil
}

// unlistable reports whether err is of one file or folder, and not of the disk.
func unlistable(err error) bool { return IsUnreadable(err) || errors.Is(err, fs.ErrPermission) }

// dirChunk is how many names of a folder are read at a time.
const dirChunk = 1024

// list gives the names in a folder to known, in no order. Those that it does not
// know are foreign. One that is not there, or cannot be listed, has none.
func (w *walk) list(ctx context.Context, name string, count bool, known func(string) bool) error {
	foreign, unreadable := 0, 0
	err := w.v.list(ctx, name, func(entry string) {
		if !known(entry) {
			foreign++
		}
	})
	switch {
	case err == nil:
	case name == ".":
		return err
	case errors.Is(err, syscall.ENOTDIR):
		foreign++
	case errors.Is(err, fs.ErrNotExist):
	case unlistable(err):
		unreadable++
	default:
		return err
	}
	if count {
		w.page.Foreign += foreign
		w.page.Unreadable += unreadable
	}
	return nil
}

// list gives the names in a folder to each, in no order and in bounded memory.
func (v *Volume) list(ctx context.Context, name string, each func(string)) error {
	d, err := do(ctx, v, func(*task) (Dir, error) { return v.root.OpenDir(name) }, func(d Dir) { d.Close() })
	if err != nil {
		return err
	}
	defer v.background(func() { d.Close() }) // read only
	for {
		names, err := do(ctx, v, func(*task) ([]string, error) { return d.Next(dirChunk) }, nil)
		for _, name := range names {
			each(name)
		}
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
	}
}
