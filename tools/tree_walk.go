package tools

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"

	"github.com/mogile/mogile/protocol"
)

// entry is something found in a tree of files here.
type entry struct {
	name string // a directory's ends in "/"
	kind entryKind
	size int64 // of a file
	why  error // it is left out, or cannot be read
}

type entryKind int

const (
	isFile     entryKind = iota
	leftOut              // nothing that can be stored: links, devices, empty directories
	unreadable           // a file or directory that should have been stored
)

// partialPrefix begins the names of unfinished downloads.
const partialPrefix = ".mogtool-"

func isPartial(base string) bool { return strings.HasPrefix(base, partialPrefix) }

// walk emits what is below dir (which is "" or ends in "/") in the byte order of
// the names. It holds the names of one directory at each level. Links are not
// followed.
func walk(root *os.Root, dir string, emit func(entry) error) error {
	list, err := readDir(root, dir)
	if err != nil {
		if err := emit(entry{name: dir, kind: unreadable, why: err}); err != nil {
			return err
		}
	} else if len(list) == 0 && dir != "" {
		return emit(entry{name: dir, kind: leftOut, why: errors.New("an empty directory")})
	}
	// A directory's files come where its name and "/" belong: behind "a.txt" in
	// the case of "a".
	sortKey := func(d fs.DirEntry) string {
		if d.IsDir() {
			return d.Name() + "/"
		}
		return d.Name()
	}
	slices.SortFunc(list, func(a, b fs.DirEntry) int { return strings.Compare(sortKey(a), sortKey(b)) })
	for _, d := range list {
		e := entry{name: dir + d.Name()}
		switch mode := d.Type(); {
		case d.IsDir():
			if err := walk(root, e.name+"/", emit); err != nil {
				return err
			}
			continue
		case mode.IsRegular() && isPartial(d.Name()):
			e.kind, e.why = leftOut, errUnfinished
		case mode.IsRegular():
			fi, err := d.Info()
			if err != nil {
				e.kind, e.why = unreadable, err
			} else {
				e.size = fi.Size()
			}
		default:
			e.kind, e.why = leftOut, errors.New(kindOf(mode))
		}
		if err := emit(e); err != nil {
			return err
		}
	}
	return nil
}

var errUnfinished = errors.New("an unfinished download")

func readDir(root *os.Root, dir string) ([]fs.DirEntry, error) {
	name := strings.TrimSuffix(dir, "/")
	if name == "" {
		name = "."
	}
	f, err := root.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return f.ReadDir(-1)
}

func kindOf(mode fs.FileMode) string {
	switch {
	case mode&fs.ModeSymlink != 0:
		return "a symbolic link"
	case mode&fs.ModeDevice != 0:
		return "a device"
	case mode&fs.ModeNamedPipe != 0:
		return "a named pipe"
	case mode&fs.ModeSocket != 0:
		return "a socket"
	case mode.IsDir():
		return "a directory"
	}
	return "neither a file nor a directory"
}

// listKeys emits the keys that begin with prefix, in byte order.
func listKeys(ctx context.Context, s *session, prefix string, retries int, emit func(key string) error) error {
	const page = 1000
	for after := ""; ; {
		var keys []string
		err := persist(ctx, retries, func() (err error) {
			keys, err = s.client.KeysAfter(ctx, s.domain, prefix, after, page)
			return err
		})
		if err != nil {
			return err
		}
		for _, key := range keys {
			if key <= after {
				return fmt.Errorf("the tracker lists key %q after %q; this needs a listing in byte order", key, after)
			}
			after = key
			if !strings.HasPrefix(key, prefix) {
				continue // a tracker for which upper and lower case are the same
			}
			if err := emit(key); err != nil {
				return err
			}
		}
		if len(keys) < page {
			return nil
		}
	}
}

// pair is a name in a tree of files here, in a tree of keys, or in both.
type pair struct {
	name   string
	local  *entry // nil: not here
	remote bool
}

// merge emits the names of both, in byte order. A channel that is closed has
// ended; one whose sender failed is left open, and ctx ends.
func merge(ctx context.Context, local <-chan entry, remote <-chan string, emit func(pair) error) error {
	l, moreL, err := receiveFrom(ctx, local)
	if err != nil {
		return err
	}
	r, moreR, err := receiveFrom(ctx, remote)
	for moreL || moreR {
		if err != nil {
			return err
		}
		order := 0
		switch {
		case !moreL:
			order = 1
		case !moreR:
			order = -1
		default:
			order = strings.Compare(l.name, r)
		}
		p := pair{remote: order >= 0, name: r}
		if order <= 0 {
			here := l
			p.local, p.name = &here, l.name
		}
		if err := emit(p); err != nil {
			return err
		}
		if order <= 0 {
			if l, moreL, err = receiveFrom(ctx, local); err != nil {
				return err
			}
		}
		if order >= 0 {
			r, moreR, err = receiveFrom(ctx, remote)
		}
	}
	return err
}

func receiveFrom[T any](ctx context.Context, ch <-chan T) (v T, ok bool, err error) {
	select {
	case v, ok = <-ch:
		return v, ok, nil
	case <-ctx.Done():
		return v, false, context.Cause(ctx)
	}
}

func sendTo[T any](ctx context.Context, ch chan<- T, v T) error {
	select {
	case ch <- v:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// classHash is the checksum that a class keeps. The error matches
// [protocol.ErrClassNotFound] or [protocol.ErrDomainNotFound].
func classHash(ctx context.Context, s *session, class string, retries int) (protocol.HashType, error) {
	var domains []protocol.Domain
	err := persist(ctx, retries, func() (err error) {
		domains, err = s.client.Domains(ctx)
		return err
	})
	if err != nil {
		return protocol.HashNone, err
	}
	for _, d := range domains {
		if d.Name != s.domain {
			continue
		}
		for _, c := range d.Classes {
			if c.Name == class || class == "" && c.Name == "default" {
				t, _ := protocol.ParseHashType(c.HashType)
				return t, nil
			}
		}
		if class == "" {
			return protocol.HashNone, nil
		}
		return protocol.HashNone, fmt.Errorf("class %q of domain %q: %w", class, s.domain, protocol.ErrClassNotFound)
	}
	return protocol.HashNone, fmt.Errorf("domain %q: %w", s.domain, protocol.ErrDomainNotFound)
}
