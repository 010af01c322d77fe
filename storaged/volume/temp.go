package volume

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strconv"
	"strings"
)

// temps is this process's folder for temporary names on one volume.
type temps struct {
	turn chan struct{} // guards all; a channel, as the holder waits for the disk
	dir  string        // "" before the first use
	lock io.Closer
	seq  int
}

// tempName is a name that nobody else uses, in the process's own folder, which
// it makes and locks at first use.
func (v *Volume) tempName() (string, error) {
	v.temps.turn <- struct{}{}
	defer func() { <-v.temps.turn }()
	if v.temps.dir == "" {
		if err := v.claimTemp(); err != nil {
			return "", err
		}
	}
	v.temps.seq++
	return path.Join(v.temps.dir, strconv.Itoa(v.temps.seq)), nil
}

// claimTemp makes the folder and locks it. Another process that starts between
// the two takes it for a dead one's and removes it; then the next one is tried.
func (v *Volume) claimTemp() error {
	for _, dir := range []string{private, tmpFolder} {
		if err := v.root.Mkdir(dir); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	for range 10 {
		dir := path.Join(tmpFolder, strings.ToLower(rand.Text()))
		if err := v.root.Mkdir(dir); err != nil {
			return err
		}
		lock, err := v.root.Lock(dir)
		if errors.Is(err, ErrLocked) || errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return errors.Join(err, v.root.Rmdir(dir))
		}
		if _, err := v.root.Stat(dir); errors.Is(err, fs.ErrNotExist) {
			lock.Close()
			continue
		}
		v.temps.dir, v.temps.lock = dir, lock
		return nil
	}
	return fmt.Errorf("claim a folder in %s: others keep removing it", tmpFolder)
}

// sweep removes what dead processes left in the volume's temporary folders: all
// folders that nobody has locked.
func (v *Volume) sweep() error {
	dirs, err := v.root.List(tmpFolder)
	if err != nil {
		return ignoreMissing(err)
	}
	for _, token := range dirs {
		dir := path.Join(tmpFolder, token)
		lock, err := v.root.Lock(dir)
		if errors.Is(err, ErrLocked) || errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		err = v.removeTemp(dir)
		if err = errors.Join(err, lock.Close()); err != nil {
			return err
		}
	}
	return nil
}

func (v *Volume) removeTemp(dir string) error {
	names, err := v.root.List(dir)
	if err != nil {
		return ignoreMissing(err)
	}
	for _, name := range names {
		if err := ignoreMissing(v.root.Unlink(path.Join(dir, name))); err != nil {
			return err
		}
	}
	return ignoreMissing(v.root.Rmdir(dir))
}

// dropTemp gives the process's own folder back.
func (v *Volume) dropTemp() error {
	v.temps.turn <- struct{}{}
	defer func() { <-v.temps.turn }()
	if v.temps.dir == "" {
		return nil
	}
	err := v.removeTemp(v.temps.dir)
	err = errors.Join(err, v.temps.lock.Close())
	v.temps.dir, v.temps.lock = "", nil
	return err
}
