package volume

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/mogile/mogile/protocol"
)

// trashFolder has a folder for each hour, named by the seconds since 1970 at
// which it began, with the files that were moved there in it: 0000000042.fid,
// and 0000000042.2.fid if there was one already.
const trashFolder = ".mogile/trash"

const (
	// TrashKept is how long a file is in the trash at least.
	TrashKept = 7 * 24 * time.Hour

	trashHour = time.Hour
	// maxNamesakes bounds the copies of one fid that are trashed in one hour, and
	// its shards.
	maxNamesakes = 100
)

// ErrChanged: the file is not the one that was meant.
var ErrChanged = errors.New("the file has changed")

// name is that of a fid's copy or shard.
func (v *Volume) name(fid protocol.FID, shard bool) string {
	path := fid.Path(v.id)
	if shard {
		path = fid.ShardPath(v.id)
	}
	_, name, _ := strings.Cut(path, "/")
	return name
}

// Trash moves a fid's copy, or its shard, to the device's trash, where it is
// kept for TrashKept, and returns its name there, below the device's folder.
// Where as is not nil only a file of that length and time is moved; ErrChanged
// says that it is another. fs.ErrNotExist says that there is none. When it
// returns nil, the new name is on disk and the old one is gone for good; whatever
// happens on the way, the file has one of them.
func (v *Volume) Trash(ctx context.Context, fid protocol.FID, shard bool, as *RawFile) (string, error) {
	name := v.name(fid, shard)
	if err := v.writable(ctx); err != nil {
		return "", wrap("trash", v.id, name, err)
	}
	unlock, err := v.names.lock(ctx, name, v.o.StuckAfter)
	if err != nil {
		return "", wrap("trash", v.id, name, err)
	}
	if err := v.begin(ctx); err != nil {
		unlock()
		return "", wrap("trash", v.id, name, err)
	}
	to, err := run(ctx, v, func(t *task) (string, error) { return v.trash(t, fid, name, as) }, nil, unlock)
	return to, wrap("trash", v.id, name, err)
}

// trash does it. The name's lock is held.
func (v *Volume) trash(t *task, fid protocol.FID, name string, as *RawFile) (to string, err error) {
	h, err := v.root.Open(name, os.O_RDONLY)
	if err != nil {
		return "", readErrno(err)
	}
	defer func() { err = errors.Join(err, h.Close()) }()
	info, err := h.Stat()
	if err == nil {
		err = regular(info)
	}
	if err != nil {
		return "", err
	}
	if as != nil && (info.Size != as.Size || !info.ModTime.Equal(as.ModTime)) {
		return "", fmt.Errorf("%w: %d bytes of %v, expected %d of %v", ErrChanged, info.Size, info.ModTime.UTC(), as.Size, as.ModTime.UTC())
	}
	dir := path.Join(trashFolder, strconv.FormatInt(v.o.Now().Truncate(trashHour).Unix(), 10))
	linked := false
	for n := 1; ; n++ {
		if n > maxNamesakes {
			return "", fmt.Errorf("%d files of fid %d were trashed within the hour: %w", maxNamesakes, fid, fs.ErrExist)
		}
		to = path.Join(dir, trashName(name, n))
		linked, err = v.moveTo(h, name, to)
		switch {
		case errors.Is(err, fs.ErrExist):
			continue
		case errors.Is(err, fs.ErrNotExist) && n == 1:
			if err := v.makeDirs(dir); err != nil {
				return "", err
			}
			if linked, err = v.moveTo(h, name, to); errors.Is(err, fs.ErrExist) {
				continue
			}
		}
		break
	}
	if err != nil {
		return "", err
	}
	// The new name is on disk before the old one goes.
	t.release()
	if err := v.flushNames(dir); err != nil {
		return "", err
	}
	if linked {
		t.resume()
		if err := ignoreMissing(v.root.Unlink(name)); err != nil {
			return "", err
		}
		t.release()
	}
	return to, v.flushGone(name)
}

// trashName is the nth name in a folder of the trash for a file.
func trashName(name string, n int) string {
	base := path.Base(name)
	if n == 1 {
		return base
	}
	suffix := path.Ext(base)
	return strings.TrimSuffix(base, suffix) + "." + strconv.Itoa(n) + suffix
}

// moveTo gives the open file h, which is name, the name to: beside the old one
// (linked), or instead of it where the filesystem or its rules know no second
// name. fs.ErrExist says that the new name is taken, fs.ErrNotExist that its
// folder is not there.
func (v *Volume) moveTo(h Handle, name, to string) (linked bool, err error) {
	err = v.root.Link(h, to)
	switch {
	case err == nil:
		return true, nil
	case errors.Is(err, fs.ErrNotExist): // the folder, unless it is /proc that is not there
		if _, err := v.root.Stat(parent(to)); err != nil {
			return false, err
		}
	case errors.Is(err, errors.ErrUnsupported), errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.EMLINK):
	default:
		return false, err
	}
	switch _, err := v.root.Stat(to); {
	case err == nil:
		return false, fs.ErrExist
	case !errors.Is(err, fs.ErrNotExist):
		return false, err
	}
	return false, v.root.Rename(name, to)
}

// Emptied is what was taken out of a trash.
type Emptied struct {
	Files int64
	Kept  int64 // files that are still in it
}

// EmptyTrash removes what has been in the trash for longer than TrashKept, and
// waits for pause after each file. Folders there whose names are no times are
// left alone.
func (v *Volume) EmptyTrash(ctx context.Context, pause time.Duration) (Emptied, error) {
	var done Emptied
	var hours []int64
	err := v.list(ctx, trashFolder, func(name string) {
		if n, err := strconv.ParseInt(name, 10, 64); err == nil && strconv.FormatInt(n, 10) == name {
			hours = append(hours, n)
		}
	})
	if err != nil {
		return done, wrap("empty", v.id, trashFolder, ignoreMissing(err))
	}
	slices.Sort(hours)
	var errs []error
	for _, hour := range hours {
		dir := path.Join(trashFolder, strconv.FormatInt(hour, 10))
		over := v.o.Now().Sub(time.Unix(hour, 0)) > TrashKept+trashHour // the last file came within the hour
		err := v.emptyHour(ctx, dir, over, pause, &done)
		if errs = append(errs, wrap("empty", v.id, dir, err)); ctx.Err() != nil || errors.Is(err, ErrSick) {
			break
		}
	}
	return done, errors.Join(errs...)
}

// emptyHour removes the files of a folder, and then the folder, if it is over.
func (v *Volume) emptyHour(ctx context.Context, dir string, over bool, pause time.Duration, done *Emptied) error {
	var names []string // some at a time
	for {
		names = names[:0]
		err := v.list(ctx, dir, func(name string) {
			if !over {
				done.Kept++
			} else if len(names) < dirChunk {
				names = append(names, name)
			}
		})
		if err != nil {
			return ignoreMissing(err)
		}
		if !over {
			return nil
		}
		if len(names) == 0 {
			_, err := do(ctx, v, func(*task) (struct{}, error) { return struct{}{}, ignoreMissing(v.root.Rmdir(dir)) }, nil)
			return err
		}
		for _, name := range names {
			if err := v.writable(ctx); err != nil {
				return err
			}
			_, err := do(ctx, v, func(*task) (struct{}, error) {
				return struct{}{}, ignoreMissing(v.root.Unlink(path.Join(dir, name)))
			}, nil)
			if err != nil {
				return err
			}
			done.Files++
			if err := sleep(ctx, pause); err != nil {
				return err
			}
		}
	}
}

// sleep waits for d, or returns the context's error.
func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
