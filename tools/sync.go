package tools

import (
	"bufio"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"syscall"

	"github.com/urfave/cli/v2"
	"golang.org/x/sync/errgroup"

	"github.com/mogile/mogile/protocol"
)

// stored begins the name of a tree of keys, where a tree of files could stand.
const stored = "mogile:"

func syncCommand() *cli.Command {
	return command("sync", "make keys as the files of a directory are, or files as keys are", "SRC DST",
		`mogtool sync photos mogile:photos     store what is new or differs under photos/
mogtool sync mogile:photos photos     fetch what is new or differs
mogtool sync --delete --dry-run photos mogile:photos
mogtool sync --delete --yes --max-delete 100 photos mogile:photos`,
		need{2, 2, true}, append(append(treeFlags(), compareFlags()...),
			&cli.StringFlag{Name: "class", Usage: "`CLASS` of files that are stored; without, the default class"},
			&cli.BoolFlag{Name: "verify", Usage: "read back what was written, and compare", DisableDefaultText: true},
			&cli.BoolFlag{Name: "delete", Usage: "delete at the destination what the source has not", DisableDefaultText: true},
			&cli.BoolFlag{Name: "yes", Aliases: []string{"y"}, Usage: "do not ask before deleting", DisableDefaultText: true},
			&cli.Int64Flag{Name: "max-delete", Usage: "delete nothing if it would be more than `N` files", Value: -1},
			&cli.BoolFlag{Name: "force", Usage: "delete also where the source is empty, or most of the destination would go", DisableDefaultText: true},
		), syncTrees)
}

func syncTrees(s *session, args []string) error {
	from, fromKeys := strings.CutPrefix(args[0], stored)
	to, toKeys := strings.CutPrefix(args[1], stored)
	if fromKeys == toKeys {
		return usageError(s.Context, "sync: one of SRC and DST is %sPREFIX, the other a directory", stored)
	}
	if fromKeys {
		from, to = to, from
	}
	t, err := newTree(s, "sync", from, to)
	if err != nil {
		return err
	}
	t.class = s.String("class")
	t.fetching = fromKeys
	verb := "stored"
	if fromKeys {
		verb, err = "fetched", t.destination()
	} else if err = t.source(); err == nil {
		t.hash, err = classHash(s.ctx(), s, t.class, t.retries)
	}
	defer t.close()
	if err != nil {
		return err
	}
	if s.Bool("delete") {
		if err := t.survey(); err != nil {
			return t.finish(err, verb)
		}
		defer t.surplus.close()
	}
	if fromKeys {
		err = t.down()
	} else {
		err = t.up()
	}
	if t.surplus != nil && s.ctx().Err() == nil {
		if trimErr := t.trim(err == nil); err == nil {
			err = trimErr
		}
	}
	if err == nil && fromKeys && t.root != nil && !t.dryRun && t.tally.failed.Load() == 0 {
		err = t.own.sweep(t.root)
	}
	return t.finish(err, verb)
}

// surplus are the names that are only at the destination, in a file of their
// own: there can be any number.
type surplus struct {
	f *os.File
	w *bufio.Writer
	n int64
	// permitted is how many may be deleted.
	permitted int64
}

func newSurplus() (*surplus, error) {
	f, err := os.CreateTemp("", "mogtool-sync-")
	if err != nil {
		return nil, err
	}
	return &surplus{f: f, w: bufio.NewWriter(f)}, nil
}

func (s *surplus) close() {
	s.f.Close()
	os.Remove(s.f.Name())
}

// add is called by one goroutine at a time.
func (s *surplus) add(name string) error {
	s.n++
	_, err := s.w.Write(append(binary.AppendUvarint(nil, uint64(len(name))), name...))
	return err
}

// each has do get every name.
func (s *surplus) each(do func(name string) error) error {
	if err := s.w.Flush(); err != nil {
		return err
	}
	if _, err := s.f.Seek(0, io.SeekStart); err != nil {
		return err
	}
	r := bufio.NewReader(s.f)
	for range s.n {
		n, err := binary.ReadUvarint(r)
		if err != nil {
			return err
		}
		name := make([]byte, n)
		if _, err := io.ReadFull(r, name); err != nil {
			return err
		}
		if err := do(string(name)); err != nil {
			return err
		}
	}
	return nil
}

// survey counts both sides before anything is done, and asks for leave to delete
// what will be surplus. A source that is the wrong one is to change nothing.
func (t *tree) survey() (err error) {
	d := deletions{limit: t.s.Int64("max-delete"), force: t.s.Bool("force"), confirmed: t.s.Bool("yes") || t.dryRun}
	err = t.run(func(p pair) (bool, error) {
		here := p.local != nil && p.local.kind == isFile
		there := p.remote
		if t.fetching {
			there = there && nameError(p.name) == nil
		}
		source, destination := here, there
		if t.fetching {
			source, destination = there, here
		}
		switch {
		case source && destination:
			d.both++
			d.source++
		case source:
			d.source++
		case destination && (t.fetching || p.local == nil):
			d.extra++
		}
		return false, nil
	}, nil)
	if err != nil {
		return err
	}
	if d.extra > 0 {
		ask, err := deletion(d)
		if err != nil {
			return &failure{err: fmt.Errorf("sync: nothing is done, as %d files are only at the destination: %w", d.extra, err), code: exitFailed}
		}
		if ask {
			if err := t.ask(d.extra); err != nil {
				return err
			}
		}
	}
	t.surplus, err = newSurplus()
	if err == nil {
		t.surplus.permitted = d.extra
	}
	return err
}

// trim deletes the surplus. listed is whether both sides were seen to their end.
func (t *tree) trim(listed bool) error {
	n, failed := t.surplus.n, t.tally.failed.Load()
	var why string
	switch {
	case n == 0:
		return nil
	case !listed:
		why = "not all was listed"
	case failed > 0:
		why = fmt.Sprintf("%d files had errors", failed)
	case n > t.surplus.permitted:
		why = fmt.Sprintf("there were %d of them when it began", t.surplus.permitted)
	}
	if why != "" {
		return &failure{err: fmt.Errorf("sync: %d files are only at the destination, and stay: %s", n, why), code: exitFailed}
	}
	g, ctx := errgroup.WithContext(t.s.ctx())
	g.SetLimit(t.jobs)
	err := t.surplus.each(func(name string) error {
		g.Go(func() error { return t.one(ctx, pair{name: name}, t.remove) })
		return ctx.Err()
	})
	return cmp.Or(g.Wait(), err)
}

// ask asks the user, if there is one. nil is a yes.
func (t *tree) ask(n int64) error {
	in, ok := t.s.App.Reader.(*os.File)
	if !ok || !isTerminal(in) {
		return &failure{err: fmt.Errorf("sync: nothing is done, as %d files are only at the destination, and nobody can be asked whether to delete them", n),
			hint: "--yes deletes them, --dry-run shows them", code: exitFailed}
	}
	where := t.dir
	if !t.fetching {
		where = stored + t.prefix
	}
	fmt.Fprintf(t.s.out.errw, "delete %d files in %s that the source has not? [y/N] ", n, where)
	answer, err := bufio.NewReader(in).ReadString('\n')
	if err != nil && err != io.EOF {
		return err
	}
	switch strings.ToLower(strings.TrimSpace(answer)) {
	case "y", "yes":
		return nil
	}
	return &failure{err: errors.New("sync: nothing is done"), hint: "without --delete nothing is deleted", code: exitFailed}
}

// remove deletes one name at the destination. The source is asked for it once
// more: it may have got it since it was listed, and a listing that was wrong must
// not cost a file.
func (t *tree) remove(ctx context.Context, p pair) error {
	var there bool
	err := persist(ctx, t.retries, func() (err error) {
		if !t.fetching {
			there, err = t.isHere(p.name)
			return err
		}
		_, err = t.s.client.FileInfo(ctx, t.s.domain, t.prefix+p.name)
		there = err == nil
		if errors.Is(err, protocol.ErrUnknownKey) {
			return nil
		}
		return err
	})
	if err != nil || there {
		return err
	}
	f := fileJSON{Action: "delete", Key: t.prefix + p.name}
	if t.fetching {
		f = fileJSON{Action: "delete", File: t.file(p.name)}
	}
	if !t.dryRun {
		err := persist(ctx, t.retries, func() error {
			if t.fetching {
				return t.removeFile(p.name)
			}
			return t.s.client.Delete(ctx, t.s.domain, f.Key)
		})
		if err != nil && !errors.Is(err, protocol.ErrUnknownKey) && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	t.tally.deleted.Add(1)
	if err := t.tally.did(f); err != nil {
		return &outputError{err}
	}
	return nil
}

// isHere reports whether something of that name is in the directory, other than
// by way of links, which are not followed.
func (t *tree) isHere(name string) (bool, error) {
	if nameError(name) != nil {
		return false, nil
	}
	for i := 0; ; i++ {
		n := strings.IndexByte(name[i:], '/')
		last := n < 0
		if i += n; last {
			i = len(name)
		}
		fi, err := t.root.Lstat(name[:i])
		switch {
		case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ENAMETOOLONG):
			return false, nil
		case err != nil || last:
			return err == nil, err
		case !fi.IsDir():
			return false, nil
		}
	}
}

// removeFile deletes a file, and the directories that it leaves empty.
func (t *tree) removeFile(name string) error {
	if err := t.root.Remove(name); err != nil {
		return err
	}
	for dir := path.Dir(name); dir != "." && t.root.Remove(dir) == nil; dir = path.Dir(dir) {
	}
	return nil
}
