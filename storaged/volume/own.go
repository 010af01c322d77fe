package volume

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"

	"github.com/mogile/mogile/protocol"
)

// ownDir is the folder of the docroot, beside its devices, that has what the
// daemon wants to know again after a restart.
const ownDir = ".mogile"

// beside is between the name of a file of the docroot's own and what makes the
// names of its successors differ.
const beside = "~"

// ReadOwn is the content of one of the docroot's own files, of at most limit
// bytes; fs.ErrNotExist if there is none.
func (d *Docroot) ReadOwn(ctx context.Context, name string, limit int64) ([]byte, error) {
	content, err := ofDocroot(ctx, d, func() ([]byte, error) {
		h, err := d.root.Open(path.Join(ownDir, name), os.O_RDONLY)
		if err != nil {
			return nil, err
		}
		defer h.Close() // opened for reading
		content, err := io.ReadAll(io.NewSectionReader(h, 0, limit+1))
		if err == nil && int64(len(content)) > limit {
			err = fmt.Errorf("longer than %d bytes", limit)
		}
		return content, err
	})
	if err != nil {
		return nil, fmt.Errorf("read %s of the docroot %s: %w", path.Join(ownDir, name), d.path, err)
	}
	return content, nil
}

// WriteOwn replaces one of the docroot's own files. When it returns nil the new
// content is on disk (unless nothing is, for [DurabilityNone]); the name has the
// old or the new content at all times.
func (d *Docroot) WriteOwn(ctx context.Context, name string, content []byte) error {
	_, err := ofDocroot(ctx, d, func() (struct{}, error) { return struct{}{}, d.writeOwn(name, content) })
	if err != nil {
		return fmt.Errorf("write %s of the docroot %s: %w", path.Join(ownDir, name), d.path, err)
	}
	return nil
}

func (d *Docroot) writeOwn(name string, content []byte) (err error) {
	durable := d.o.Durability == DurabilityFsync
	err = d.root.Mkdir(ownDir)
	switch {
	case err == nil && durable:
		err = d.root.SyncDir(".")
	case errors.Is(err, fs.ErrExist):
		err = nil
	}
	if err != nil {
		return err
	}
	// What a process that died has left. Another that is writing now, as this
	// daemon's successor may, fails and tries again.
	names, err := d.root.List(ownDir)
	if err != nil {
		return err
	}
	for _, left := range names {
		if strings.HasPrefix(left, name+beside) {
			if err := ignoreMissing(d.root.Unlink(path.Join(ownDir, left))); err != nil {
				return err
			}
		}
	}
	for tries := 3; ; tries-- {
		err := d.replaceOwn(name, content, durable)
		if tries == 0 || !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
}

func (d *Docroot) replaceOwn(name string, content []byte, durable bool) error {
	temp := path.Join(ownDir, name+beside+strings.ToLower(rand.Text()))
	h, err := d.root.Open(temp, os.O_RDWR|os.O_CREATE|os.O_EXCL)
	if err != nil {
		return err
	}
	_, err = h.WriteAt(content, 0)
	if err == nil && durable {
		err = h.Sync()
	}
	err = errors.Join(err, h.Close())
	if err == nil {
		err = d.root.Rename(temp, path.Join(ownDir, name))
	}
	if err != nil {
		return errors.Join(err, ignoreMissing(d.root.Unlink(temp)))
	}
	if durable {
		return d.root.SyncDir(ownDir)
	}
	return nil
}

// ofDocroot runs op in a goroutine that Close waits for, as the disk may not
// answer.
func ofDocroot[T any](ctx context.Context, d *Docroot, op func() (T, error)) (T, error) {
	type result struct {
		value T
		err   error
	}
	var zero T
	d.mu.Lock()
	if d.closed {
		d.mu.Unlock()
		return zero, fs.ErrClosed
	}
	d.openers.Add(1)
	d.mu.Unlock()
	done := make(chan result, 1)
	go func() {
		defer d.openers.Done()
		value, err := op()
		done <- result{value, err}
	}()
	select {
	case r := <-done:
		return r.value, r.err
	case <-ctx.Done():
		return zero, context.Cause(ctx)
	}
}

// Has reports whether there is a folder of the device here, as of the last look.
// It does not wait for the disk.
func (d *Docroot) Has(dev protocol.DevID) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.entries[dev] != nil
}
