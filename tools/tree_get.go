package tools

import (
	"context"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/mogile/mogile/protocol"
)

// down makes the files as the keys are.
func (t *tree) down() error {
	t.fetching = true
	var under overlaps
	return t.run(func(p pair) (bool, error) {
		f := fileJSON{Key: t.prefix + p.name, File: t.file(p.name)}
		if !p.remote {
			switch {
			case errors.Is(p.local.why, errUnfinished):
				t.own.saw(p.name)
			case p.local.kind == unreadable:
				t.tally.failure(fileJSON{File: f.File}, p.local.why)
			case p.local.kind == isFile && t.surplus != nil:
				return false, t.surplus.add(p.name)
			}
			return false, nil
		}
		if err := nameError(p.name); err != nil {
			t.tally.failure(fileJSON{Key: f.Key}, err)
			return false, nil
		}
		if file := under.file(p.name); file != "" {
			t.tally.failure(f, fmt.Errorf("key %q makes a file of what would have to be a directory", t.prefix+file))
			return false, nil
		}
		t.files.source.Add(1)
		switch {
		case p.local == nil:
		case p.local.kind == isFile:
			t.files.both.Add(1)
		default:
			t.tally.failure(f, fmt.Errorf("where the file should be is something else: %w", p.local.why))
			return false, nil
		}
		return true, nil
	}, t.download)
}

func (t *tree) download(ctx context.Context, p pair) error {
	key := t.prefix + p.name
	var info protocol.FileInfo
	// A file that is replaced while it is got is another: described anew.
	err := persist(ctx, t.retries, func() (err error) {
		if info, err = t.s.client.FileInfo(ctx, t.s.domain, key); err != nil {
			return err
		}
		if p.local != nil {
			if same, err := t.isSame(ctx, p, info); err != nil || same {
				if same {
					err = errSame
				}
				return err
			}
		}
		if t.dryRun {
			t.tally.bytes.Add(info.Length)
			return nil
		}
		return t.fetch(ctx, p.name, info, p.local != nil)
	})
	switch {
	case errors.Is(err, errSame):
		t.tally.same.Add(1)
		return nil
	case errors.Is(err, protocol.ErrUnknownKey): // deleted since it was listed
		return nil
	case err != nil:
		return err
	}
	return t.did(fileJSON{Action: "get", Key: key, File: t.file(p.name), Length: &info.Length, FID: uint64(info.FID)})
}

var errSame = &refusal{errors.New("it is there")}

// fetch gets one file under a name of its own, and then gives it its name. What
// arrived of one that fails is kept, and continued the next time.
func (t *tree) fetch(ctx context.Context, name string, info protocol.FileInfo, replace bool) error {
	if dir := path.Dir(name); dir != "." {
		if err := t.root.MkdirAll(dir, 0o777); err != nil {
			return err
		}
	}
	tmp, err := t.openPartial(name, info)
	if err != nil {
		return err
	}
	defer tmp.Close()
	if err := t.fill(ctx, tmp, info); err != nil {
		t.setAside(tmp)
		return err
	}
	if replace {
		if fi, err := t.root.Stat(name); err == nil {
			if err := tmp.Chmod(fi.Mode().Perm()); err != nil {
				return err
			}
		}
	}
	if err := tmp.Sync(); err != nil {
		return err
	}
	// Closing gives the lock up, and so comes last.
	if err := t.place(tmp.name, name, replace); err != nil {
		return errors.Join(err, t.root.Remove(tmp.name))
	}
	t.own.done(tmp.base())
	return nil
}

// fill brings a partial download to its end.
func (t *tree) fill(ctx context.Context, tmp *partial, info protocol.FileInfo) error {
	var sum hash.Hash
	kind := info.Checksum.Type
	if kind == protocol.HashNone && t.verify {
		kind = protocol.HashMD5
	}
	if sum = kind.New(); sum != nil {
		if _, err := io.Copy(sum, ctxReader{ctx, io.NewSectionReader(tmp, 0, tmp.have)}); err != nil {
			return err
		}
	}
	where := "here"
	if tmp.have < info.Length {
		r, err := t.s.client.OpenRange(ctx, t.s.domain, info.Key, tmp.have, -1)
		if err != nil {
			return err
		}
		defer r.Close()
		if r.FID() != 0 && r.FID() != info.FID {
			return errReplaced
		}
		into := []io.Writer{io.NewOffsetWriter(tmp, tmp.have), progressOf{&t.tally.bytes}}
		if sum != nil {
			into = append(into, sum)
		}
		n, err := io.Copy(io.MultiWriter(into...), r)
		tmp.have += n
		if err != nil {
			t.tally.bytes.Add(-n)
			return fmt.Errorf("after %d of %d bytes: %w", tmp.have, info.Length, err)
		}
		where = "at " + r.Path()
	}
	if tmp.have != info.Length {
		tmp.damaged = true
		return damaged("it has %d bytes %s, the tracker says %d: that copy is damaged", tmp.have, where, info.Length)
	}
	if sum == nil {
		return nil
	}
	have := protocol.Checksum{Type: kind, Sum: sum.Sum(nil)}
	if !info.Checksum.IsZero() && !have.Equal(info.Checksum) {
		tmp.damaged = true
		return damaged("it is %v %s, the tracker says %v: that copy is damaged", have, where, info.Checksum)
	}
	if t.verify {
		again, err := hashOf(ctx, io.NewSectionReader(tmp, 0, tmp.have), kind)
		if err != nil {
			return err
		}
		if !again.Equal(have) {
			tmp.damaged = true
			return damaged("read back it is %v, not %v", again, have)
		}
	}
	return nil
}

// place gives a complete download its name. A file of that name is replaced only
// if it was known when the file was asked for: one that has appeared since is
// another's, or that of a key whose name this file system does not tell apart.
func (t *tree) place(tmp, name string, replace bool) error {
	if replace {
		return t.root.Rename(tmp, name)
	}
	err := t.root.Link(tmp, name)
	if err == nil {
		return t.root.Remove(tmp)
	}
	fi, statErr := t.root.Lstat(name)
	switch {
	case statErr == nil && fi.IsDir():
		return &refusal{errors.New("a directory has its name")}
	case statErr == nil:
		return &refusal{errors.New("a file that was not there before has its name; do two keys differ in case alone?")}
	case errors.Is(statErr, fs.ErrNotExist): // no links here
		return t.root.Rename(tmp, name)
	}
	return err
}

// partial is an unfinished download. A fid's content never changes: what is
// there of it stays good.
//
// While it is written it is called ….new, and when it has been set aside with all
// its bytes on disk ….part. What a crash may have left is continued only where
// the tracker has a checksum of the whole. Who writes it has it locked.
type partial struct {
	*os.File
	name    string
	have    int64
	damaged bool // to be forgotten
}

func partialName(dir string, info protocol.FileInfo) string {
	// Fids are numbers of one cluster alone.
	id := crc32.ChecksumIEEE(fmt.Appendf(nil, "%s\x00%s\x00%d\x00%v", info.Domain, info.Key, info.Length, info.Checksum))
	return path.Join(dir, fmt.Sprintf("%s%d-%08x", partialPrefix, info.FID, id))
}

func (p *partial) base() string { return strings.TrimSuffix(p.name, ".new") }

func (t *tree) openPartial(name string, info protocol.FileInfo) (*partial, error) {
	base := partialName(path.Dir(name), info)
	p := &partial{name: base + ".new"}
	t.own.took(base)
	resume := !info.Checksum.IsZero()
	for p.File == nil {
		switch err := t.root.Rename(base+".part", p.name); {
		case err == nil:
			resume = true
		case !errors.Is(err, fs.ErrNotExist):
			return nil, err
		}
		f, err := t.root.OpenFile(p.name, os.O_CREATE|os.O_RDWR, 0o666)
		if err != nil {
			return nil, err
		}
		if p.File, err = lockPartial(f, func() (fs.FileInfo, error) { return t.root.Lstat(p.name) }); err != nil {
			return nil, err
		}
	}
	fi, err := p.Stat()
	if err == nil && (!resume || fi.Size() > info.Length) {
		err = p.Truncate(0)
	} else if err == nil {
		p.have = fi.Size()
	}
	if err != nil {
		return nil, errors.Join(err, p.Close())
	}
	return p, nil
}

// lockPartial has nobody else write to f. named looks at what has the name that f
// was opened under: where that is another file by now, or none, the answer is nil.
// f is closed where it is not returned.
func lockPartial(f *os.File, named func() (fs.FileInfo, error)) (_ *os.File, err error) {
	keep := false
	defer func() {
		if !keep {
			err = errors.Join(err, f.Close())
		}
	}()
	if !lockFile(f) {
		return nil, &refusal{errors.New("another process fetches it into the same directory")}
	}
	mine, err := f.Stat()
	if err != nil {
		return nil, err
	}
	now, err := named()
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if keep = os.SameFile(mine, now); !keep {
		return nil, nil
	}
	return f, nil
}

// setAside keeps what arrived. That it fails costs the next run the same bytes.
func (t *tree) setAside(p *partial) {
	if fi, err := p.Stat(); p.damaged || err != nil || fi.Size() == 0 || p.Sync() != nil {
		_ = t.root.Remove(p.name)
		return
	}
	_ = t.root.Rename(p.name, p.base()+".part")
}

// partials are the unfinished downloads that lie about. Those that nothing
// continued belong to files that are gone or replaced.
type partials struct {
	mu   sync.Mutex
	seen map[string]bool // false where they were continued
}

// maxPartials bounds the memory of them.
const maxPartials = 100_000

func (p *partials) saw(name string) {
	base := name[:len(name)-len(path.Ext(name))]
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, known := p.seen[base]; !known && len(p.seen) < maxPartials {
		if p.seen == nil {
			p.seen = make(map[string]bool)
		}
		p.seen[base] = true
	}
}

func (p *partials) took(base string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.seen == nil {
		p.seen = make(map[string]bool)
	}
	if _, known := p.seen[base]; known || len(p.seen) < maxPartials {
		p.seen[base] = false
	}
}

// done forgets one that has become a file.
func (p *partials) done(base string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.seen, base)
}

// sweep removes those that nothing continued.
func (p *partials) sweep(root *os.Root) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	var errs []error
	for base, left := range p.seen {
		if !left {
			continue
		}
		for _, ext := range []string{".new", ".part"} {
			if err := removePartial(root, base+ext); err != nil && !errors.Is(err, fs.ErrNotExist) {
				errs = append(errs, err)
			}
		}
	}
	return errors.Join(errs...)
}

// removePartial removes an unfinished download unless another process is at it.
func removePartial(root *os.Root, name string) error {
	f, err := root.OpenFile(name, os.O_RDWR, 0) // NFS locks only what can be written
	if err != nil {
		return err
	}
	defer f.Close()
	if !lockFile(f) {
		return nil
	}
	return root.Remove(name)
}

// getTree is get -r.
func getTree(s *session, args []string) error {
	prefix := treePrefix(args[0])
	dir := path.Base(prefix)
	switch {
	case len(args) == 2:
		dir = args[1]
	case nameError(dir) != nil || prefix == "":
		return usageError(s.Context, "get: say into which DIR")
	}
	t, err := newTree(s, "get", dir, prefix)
	if err != nil {
		return err
	}
	if t.verify {
		t.how = byContents
	}
	if err := t.destination(); err != nil {
		return err
	}
	defer t.close()
	err = t.down()
	if err == nil && t.root != nil && !t.dryRun && t.tally.failed.Load() == 0 {
		err = t.own.sweep(t.root)
	}
	if n := t.files.source.Load() + t.tally.failed.Load(); err == nil && n == 0 {
		err = &failure{err: fmt.Errorf("no key begins with %q", prefix), hint: "'mogtool ls PREFIX' lists keys", code: exitFailed}
	}
	return t.finish(err, "fetched")
}

// progressOf counts what is written to it.
type progressOf struct{ n *atomic.Int64 }

func (p progressOf) Write(b []byte) (int, error) {
	p.n.Add(int64(len(b)))
	return len(b), nil
}
