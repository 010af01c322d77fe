package tools

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/urfave/cli/v2"
	"golang.org/x/sync/errgroup"

	"github.com/mogile/mogile/protocol"
)

// tree is a directory here and the keys under a prefix, one of which is to
// become as the other.
type tree struct {
	s       *session
	tally   *tally
	root    *os.Root // nil: it does not exist yet, and need not
	dir     string   // of root, as the user calls it
	prefix  string   // of the keys
	jobs    int
	retries int
	how     thoroughness
	dryRun  bool
	verify  bool
	surplus *surplus // nil: what is only at the destination stays
	// for files to be stored
	class     string
	hash      protocol.HashType
	noClobber bool

	fetching bool
	inRow    atomic.Int64 // failures of the cluster since the last success
	own      partials
	files    struct{ source, both atomic.Int64 }
}

// treeFlags are those of commands that work on many files.
func treeFlags() []cli.Flag {
	return []cli.Flag{
		&cli.IntFlag{Name: "jobs", Aliases: []string{"j"}, Usage: "`N` files at once", Value: 16},
		&cli.IntFlag{Name: "retries", Usage: "`N` repetitions after failures that may pass", Value: 7},
		&cli.BoolFlag{Name: "dry-run", Usage: "only say what would be done", DisableDefaultText: true},
		&cli.BoolFlag{Name: "verbose", Aliases: []string{"v"}, Usage: "name each file", DisableDefaultText: true},
		&cli.BoolFlag{Name: "quiet", Aliases: []string{"q"}, Usage: "no summary", DisableDefaultText: true},
	}
}

func compareFlags() []cli.Flag {
	return []cli.Flag{
		&cli.BoolFlag{Name: "checksum", Usage: "compare contents also where the tracker has no checksum: reads both sides", DisableDefaultText: true},
		&cli.BoolFlag{Name: "size-only", Usage: "compare lengths alone", DisableDefaultText: true},
	}
}

const maxJobs = 256

// newTree reads the flags common to commands that work on trees.
func newTree(s *session, what, dir, prefix string) (*tree, error) {
	t := &tree{
		s: s, dir: dir, prefix: treePrefix(prefix),
		jobs: s.Int("jobs"), retries: s.Int("retries"),
		dryRun: s.Bool("dry-run"), verify: s.Bool("verify"),
		tally: newTally(s.out, what, s.Bool("verbose") || s.Bool("dry-run")),
	}
	switch {
	case t.jobs < 1 || t.jobs > maxJobs || t.retries < 0:
		return nil, usageError(s.Context, "%s: --jobs is 1 to %d, --retries 0 or more", what, maxJobs)
	case s.Bool("checksum") && s.Bool("size-only"):
		return nil, usageError(s.Context, "%s: --checksum and --size-only exclude each other", what)
	case s.Bool("checksum"):
		t.how = byContents
	case s.Bool("size-only"):
		t.how = bySize
	}
	return t, nil
}

// source opens the directory to be read.
func (t *tree) source() (err error) {
	if fi, err := os.Stat(t.dir); err == nil && !fi.IsDir() {
		return fmt.Errorf("%s is no directory", t.dir)
	}
	t.root, err = os.OpenRoot(t.dir)
	return err
}

// destination opens the directory to be written, and makes it where it must be.
func (t *tree) destination() (err error) {
	if !t.dryRun {
		if err := os.MkdirAll(t.dir, 0o777); err != nil {
			return err
		}
	}
	if t.root, err = os.OpenRoot(t.dir); errors.Is(err, os.ErrNotExist) && t.dryRun {
		return nil
	}
	return err
}

func (t *tree) close() {
	if t.root != nil {
		t.root.Close()
	}
}

// file is the name of a file as the user would write it.
func (t *tree) file(name string) string { return filepath.Join(t.dir, filepath.FromSlash(name)) }

// run lists both sides side by side, and has do treat each name, several at
// once. do's error is that of one file; sift looks at the names in their order,
// and says which need treatment.
func (t *tree) run(sift func(pair) (bool, error), do func(context.Context, pair) error) error {
	ctx, stop := context.WithCancelCause(t.s.ctx())
	defer stop(nil)
	display, hide := context.WithCancel(ctx)
	var shown sync.WaitGroup
	defer shown.Wait()
	defer hide()

	g, ctx := errgroup.WithContext(ctx)
	local, remote := make(chan entry, 64), make(chan string, 1000)
	pairs := make(chan pair, t.jobs)
	g.Go(func() error {
		if t.root != nil {
			if err := walk(t.root, "", func(e entry) error { return sendTo(ctx, local, e) }); err != nil {
				return err
			}
		}
		close(local)
		return nil
	})
	g.Go(func() error {
		err := listKeys(ctx, t.s, t.prefix, t.retries, func(key string) error { return sendTo(ctx, remote, key[len(t.prefix):]) })
		if err == nil {
			close(remote)
		}
		return err
	})
	g.Go(func() error {
		err := merge(ctx, local, remote, func(p pair) error {
			wanted, err := sift(p)
			if err != nil || !wanted {
				return err
			}
			return sendTo(ctx, pairs, p)
		})
		close(pairs)
		return err
	})
	for range t.jobs {
		g.Go(func() error {
			for p := range pairs {
				if err := t.one(ctx, p, do); err != nil {
					return err
				}
			}
			return nil
		})
	}
	shown.Go(func() { t.tally.show(display, t.count) })
	return g.Wait()
}

// one treats one name. Its error ends the run.
func (t *tree) one(ctx context.Context, p pair, do func(context.Context, pair) error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	err := do(ctx, p)
	switch {
	case err == nil:
		t.inRow.Store(0)
		return nil
	case ctx.Err() != nil:
		return context.Cause(ctx)
	}
	if _, ok := errors.AsType[*outputError](err); ok {
		return err
	}
	t.tally.failure(fileJSON{Key: t.prefix + p.name, File: t.file(p.name)}, err)
	if clusterWide(err) && t.inRow.Add(1) >= int64(max(2*t.jobs, 8)) {
		return fmt.Errorf("the last %d files all failed so: %w", t.inRow.Load(), err)
	}
	return nil
}

// outputError is a failure to say what was done: it ends a run.
type outputError struct{ err error }

func (e *outputError) Error() string { return e.err.Error() }
func (e *outputError) Unwrap() error { return e.err }

// did counts and tells what was done.
func (t *tree) did(f fileJSON) error {
	t.tally.done.Add(1)
	if err := t.tally.did(f); err != nil {
		return &outputError{err}
	}
	return nil
}

// count finds out how much there is, for the display.
func (t *tree) count(ctx context.Context) error {
	if t.fetching {
		return listKeys(ctx, t.s, t.prefix, t.retries, func(string) error {
			t.tally.allFiles.Add(1)
			return nil
		})
	}
	return walk(t.root, "", func(e entry) error {
		if e.kind == isFile {
			t.tally.allFiles.Add(1)
			t.tally.allBytes.Add(e.size)
		}
		return ctx.Err()
	})
}

// up makes the keys as the files are.
func (t *tree) up() error {
	return t.run(func(p pair) (bool, error) {
		f := fileJSON{Key: t.prefix + p.name, File: t.file(p.name)}
		switch {
		case p.local == nil:
			if t.surplus == nil {
				return false, nil
			}
			return false, t.surplus.add(p.name)
		case p.local.kind == leftOut:
			t.tally.leave(fileJSON{File: f.File}, p.local.why)
			return false, nil
		case p.local.kind == unreadable:
			t.tally.failure(fileJSON{File: f.File}, p.local.why)
			return false, nil
		}
		t.files.source.Add(1)
		if p.remote {
			t.files.both.Add(1)
		}
		if err := keyError(f.Key); err != nil {
			t.tally.failure(f, err)
			return false, nil
		}
		return true, nil
	}, t.upload)
}

func (t *tree) upload(ctx context.Context, p pair) error {
	key := t.prefix + p.name
	if p.remote {
		if t.noClobber {
			t.tally.same.Add(1)
			return nil
		}
		err := persist(ctx, t.retries, func() error {
			info, err := t.s.client.FileInfo(ctx, t.s.domain, key)
			if err != nil {
				return err
			}
			same, err := t.isSame(ctx, p, info)
			if err == nil && !same {
				err = errDifferent
			}
			return err
		})
		switch {
		case err == nil:
			t.tally.same.Add(1)
			return nil
		case !errors.Is(err, errDifferent) && !errors.Is(err, protocol.ErrUnknownKey): // deleted meanwhile
			return err
		}
	}
	if t.dryRun {
		t.tally.bytes.Add(p.local.size)
		return t.did(fileJSON{Action: "put", Key: key, File: t.file(p.name), Length: &p.local.size})
	}
	var created protocol.Created
	err := persist(ctx, t.retries, func() (err error) {
		created, err = t.store(ctx, p.name, key)
		return err
	})
	if t.noClobber && errors.Is(err, protocol.ErrKeyExists) {
		t.tally.same.Add(1)
		return nil
	}
	if err != nil {
		return err
	}
	return t.did(fileJSON{Action: "put", Key: key, File: t.file(p.name), Length: &created.Size, FID: uint64(created.FID)})
}

var errDifferent = &refusal{errors.New("it differs")}

// store uploads one file.
func (t *tree) store(ctx context.Context, name, key string) (protocol.Created, error) {
	f, err := t.open(name)
	if err != nil {
		return protocol.Created{}, err
	}
	defer f.Close()
	m := &metered{ReadSeeker: f, n: &t.tally.bytes}
	created, err := t.s.client.Create(ctx, t.s.domain, key, protocol.CreateOptions{
		Class: t.class, Hash: t.hash, Verify: t.verify, NoOverwrite: t.noClobber,
	}, m)
	if err != nil {
		m.undo()
	}
	return created, err
}

// open opens a file to be read. What was a file when it was listed may be
// something else by now.
func (t *tree) open(name string) (*os.File, error) {
	f, err := t.root.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	fi, err := f.Stat()
	if err == nil && !fi.Mode().IsRegular() {
		err = &refusal{fmt.Errorf("it has become %s", kindOf(fi.Mode()))}
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// isSame compares a file with what is stored.
func (t *tree) isSame(ctx context.Context, p pair, info protocol.FileInfo) (bool, error) {
	sum := info.Checksum
	switch compare(t.how, p.local.size, info) {
	case same:
		return true, nil
	case different:
		return false, nil
	case needStored:
		var err error
		if sum, err = storedSum(ctx, t.s, info.Key, info.FID); err != nil {
			return false, err
		}
	}
	f, err := t.open(p.name)
	if err != nil {
		return false, err
	}
	defer f.Close()
	have, err := hashOf(ctx, f, sum.Type)
	return have.Equal(sum), err
}

// storedSum is the MD5 of what is stored under a key, read for that.
func storedSum(ctx context.Context, s *session, key string, fid protocol.FID) (protocol.Checksum, error) {
	r, err := s.client.Open(ctx, s.domain, key)
	if err != nil {
		return protocol.Checksum{}, err
	}
	defer r.Close()
	if r.FID() != 0 && r.FID() != fid {
		return protocol.Checksum{}, errReplaced
	}
	return hashOf(ctx, r, protocol.HashMD5)
}

var errReplaced = errors.New("it was replaced meanwhile")

// hashOf reads r to its end.
func hashOf(ctx context.Context, r io.Reader, t protocol.HashType) (protocol.Checksum, error) {
	h := t.New()
	if _, err := io.Copy(h, ctxReader{ctx, r}); err != nil {
		return protocol.Checksum{}, err
	}
	return protocol.Checksum{Type: t, Sum: h.Sum(nil)}, nil
}

// ctxReader ends when ctx does.
type ctxReader struct {
	ctx context.Context
	r   io.Reader
}

func (c ctxReader) Read(p []byte) (int, error) {
	if c.ctx.Err() != nil {
		return 0, context.Cause(c.ctx)
	}
	return c.r.Read(p)
}

// finish sums up, and makes what went wrong the command's error.
func (t *tree) finish(err error, verb string) error { return finish(t.s, t.tally, err, verb) }

func finish(s *session, t *tally, err error, verb string) error {
	sayErr := t.end(verb, s.Bool("dry-run"), !s.Bool("quiet"))
	const again = "the same command goes on: what is complete is left as it is"
	switch {
	case s.ctx().Err() != nil:
		return &failure{err: errors.New("interrupted"), hint: again, code: exitFailed}
	case isFailure(err):
		return err
	case err != nil:
		return &failure{err: err, hint: strings.TrimPrefix(hint(err)+"\n"+again, "\n"), code: exitFailed}
	case t.failed.Load() > 0:
		return &failure{err: fmt.Errorf("%s: %d of %d files failed", t.what, t.failed.Load(), t.seen()), hint: again, code: exitFailed}
	}
	return sayErr
}

func isFailure(err error) bool {
	_, ok := errors.AsType[*failure](err)
	return ok
}

// putTree is put -r.
func putTree(s *session, args []string) error {
	prefix := ""
	if len(args) == 2 {
		prefix = args[1]
	} else {
		full, err := filepath.Abs(args[0])
		if err != nil {
			return err
		}
		if prefix = filepath.Base(full); prefix == string(filepath.Separator) {
			prefix = ""
		}
	}
	t, err := newTree(s, "put", args[0], prefix)
	if err != nil {
		return err
	}
	t.noClobber, t.class = s.Bool("no-clobber"), s.String("class")
	if err := t.source(); err != nil {
		return err
	}
	defer t.close()
	if t.hash, err = classHash(s.ctx(), s, t.class, t.retries); err != nil {
		return err
	}
	return t.finish(t.up(), "stored")
}
