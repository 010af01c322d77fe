package erasure

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/mogile/mogile/protocol"
)

// ShardFile is a file that has a shard, or should.
type ShardFile struct {
	Name  string
	Size  int64
	State State
	Err   error // why no shard can be read from it
}

// Recovered says what [Codec.Recover] has done.
type Recovered struct {
	Header Header
	Used   []ShardFile   // of the encoding that the file was read from
	Bad    map[int]error // shards of it, by index, that were not what was written; others took their place
}

// FindShards looks for shards of a fid. A place is a docroot, the folder of a
// device or one that has such folders, a folder with files that have the names of
// shards, or such a file itself. All blocks are read where there are several
// files with the same shard, else the headers alone.
func (c *Codec) FindShards(ctx context.Context, places []string, fid protocol.FID) ([]ShardFile, error) {
	_, below, _ := strings.Cut(fid.ShardPath(1), "/")
	var names []string
	seen := make(map[string]bool)
	for _, place := range places {
		info, err := os.Stat(place)
		if err != nil {
			return nil, err
		}
		tries := []string{place}
		if info.IsDir() {
			tries = []string{filepath.Join(place, below), filepath.Join(place, filepath.Base(below))}
			entries, err := os.ReadDir(place)
			if err != nil {
				return nil, err
			}
			for _, e := range entries {
				tries = append(tries, filepath.Join(place, e.Name(), below))
			}
		}
		for _, name := range tries {
			full, err := filepath.Abs(name)
			if err != nil {
				return nil, err
			}
			if _, err := os.Stat(full); !seen[full] && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ENOTDIR) {
				seen[full] = true
				names = append(names, full)
			}
		}
	}
	files := make([]ShardFile, len(names))
	for i, name := range names {
		files[i] = c.look(ctx, name, fid, false)
	}
	for i, f := range files {
		if f.Err == nil && slices.ContainsFunc(files, func(g ShardFile) bool {
			return g.Err == nil && g.Name != f.Name && g.State.Header.Index == f.State.Header.Index && g.State.Header.Sisters(&f.State.Header)
		}) {
			files[i] = c.look(ctx, f.Name, fid, true)
		}
	}
	return files, ctx.Err()
}

// look reads a shard's header, or all of it.
func (c *Codec) look(ctx context.Context, name string, fid protocol.FID, all bool) ShardFile {
	s := ShardFile{Name: name}
	f, err := os.Open(name)
	if err != nil {
		s.Err = err
		return s
	}
	defer f.Close() // opened for reading
	info, err := f.Stat()
	if err != nil {
		s.Err = err
		return s
	}
	s.Size = info.Size()
	if all {
		s.State, s.Err = c.Verify(f, s.Size, func(int) error { return ctx.Err() })
	} else {
		head := make([]byte, HeaderSize)
		n, err := io.ReadFull(f, head)
		if s.State.Header, s.Err = ParseHeader(head[:n]); s.Err == nil {
			s.State.Sized = s.Size == s.State.Header.Layout().ShardSize()
		} else if err != nil && err != io.EOF && err != io.ErrUnexpectedEOF {
			s.Err = err
		}
	}
	if h := s.State.Header; s.Err == nil && h.FID != fid {
		s.Err = fmt.Errorf("it is a shard of fid %d", h.FID)
	}
	return s
}

// better reports whether a is to be read rather than b, which is the same shard.
func better(a, b ShardFile) bool {
	if a.State.Bad != b.State.Bad {
		return a.State.Bad < b.State.Bad
	}
	return a.State.Sized && !b.State.Sized
}

// Recover writes a file to w from its shards: those of the encoding that most of
// them are of, or of another if that does not do. What was written has the CRC32C,
// and the checksum where there is one, that the shards name; else there is an
// error, that matches ErrTooFew where there are too few shards. rewind has w
// begin again.
func (c *Codec) Recover(ctx context.Context, files []ShardFile, w io.Writer, rewind func() error) (Recovered, error) {
	var sets [][]ShardFile
	for _, f := range files {
		if f.Err != nil {
			continue
		}
		i := slices.IndexFunc(sets, func(set []ShardFile) bool { return set[0].State.Header.Sisters(&f.State.Header) })
		if i < 0 {
			sets = append(sets, []ShardFile{f})
			continue
		}
		j := slices.IndexFunc(sets[i], func(g ShardFile) bool { return g.State.Header.Index == f.State.Header.Index })
		switch {
		case j < 0:
			sets[i] = append(sets[i], f)
		case better(f, sets[i][j]):
			sets[i][j] = f
		}
	}
	if len(sets) == 0 {
		return Recovered{}, fmt.Errorf("no shard was found: %w", ErrTooFew)
	}
	slices.SortStableFunc(sets, func(a, b []ShardFile) int { return len(b) - len(a) })
	var errs []error
	for _, set := range sets {
		slices.SortFunc(set, func(a, b ShardFile) int { return a.State.Header.Index - b.State.Header.Index })
		r, err := c.recoverSet(ctx, set, w)
		if err == nil {
			return r, nil
		}
		errs = append(errs, err)
		if err := rewind(); err != nil {
			return Recovered{}, err
		}
	}
	return Recovered{}, errors.Join(errs...)
}

func (c *Codec) recoverSet(ctx context.Context, set []ShardFile, w io.Writer) (Recovered, error) {
	h := set[0].State.Header
	r := Recovered{Header: h, Used: set, Bad: make(map[int]error)}
	if len(set) < h.K {
		return r, fmt.Errorf("encoding %016x: %d shards of %d+%d: %w", h.Encoding, len(set), h.K, h.M, ErrTooFew)
	}
	at := make([]protocol.DevID, h.Shards())
	places := make(onDisk)
	for _, f := range set {
		at[f.State.Header.Index] = protocol.DevID(f.State.Header.Index + 1)
		places[protocol.DevID(f.State.Header.Index+1)] = f.Name
	}
	s, err := c.Open(ctx, Read{Header: h, At: at, Places: places, Suspect: func(i int, _ protocol.DevID, err error) { r.Bad[i] = err }}, 0, h.Length)
	if err != nil {
		return r, err
	}
	defer s.Close() // it has no error
	crc := crc32.New(castagnoli)
	sums := io.MultiWriter(w, crc)
	digest := h.Digest.Type.New()
	if !h.Digest.IsZero() {
		sums = io.MultiWriter(w, crc, digest)
	}
	switch _, err := s.WriteTo(sums); {
	case err != nil:
		return r, err
	case crc.Sum32() != h.CRC32C:
		return r, fmt.Errorf("encoding %016x: the content has the CRC32C %08x, not %08x", h.Encoding, crc.Sum32(), h.CRC32C)
	case !h.Digest.IsZero() && string(digest.Sum(nil)) != string(h.Digest.Sum):
		return r, fmt.Errorf("encoding %016x: the content does not have the checksum %s", h.Encoding, h.Digest)
	}
	return r, nil
}

// onDisk are shards in files, by numbers that stand for devices.
type onDisk map[protocol.DevID]string

// Near implements Places.
func (onDisk) Near(protocol.DevID) bool { return true }

// Open implements Places.
func (o onDisk) Open(_ context.Context, dev protocol.DevID, off, n int64) (io.ReadCloser, error) {
	f, err := os.Open(o[dev])
	if err != nil {
		return nil, err
	}
	return struct {
		io.Reader
		io.Closer
	}{io.NewSectionReader(f, off, n), f}, nil
}
