package tools

import (
	"compress/gzip"
	"context"
	"crypto/md5"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/mogile/mogile/protocol"
)

// getBig fetches a big file into a file, several chunks at once. Chunks that an
// interrupted run fetched stay.
func getBig(s *session, key, file string, info bigInfo) error {
	if info.Compressed {
		return getCompressed(s, key, file, info)
	}
	jobs, retries := s.Int("jobs"), s.Int("retries")
	if jobs < 1 || jobs > maxJobs || retries < 0 {
		return usageError(s.Context, "get: --jobs is 1 to %d, --retries 0 or more", maxJobs)
	}
	// The name tells the content, so that nothing else is continued.
	name := filepath.Join(filepath.Dir(file), fmt.Sprintf("%sbig-%08x", partialPrefix, crc32.ChecksumIEEE(appendBigInfo(nil, bigInfo{Chunks: sums(info)}))))
	var tmp *os.File
	for tmp == nil {
		f, err := os.OpenFile(name, os.O_CREATE|os.O_RDWR, 0o666)
		if err != nil {
			return err
		}
		if tmp, err = lockPartial(f, func() (fs.FileInfo, error) { return os.Lstat(name) }); err != nil {
			return err
		}
	}
	defer tmp.Close() // which gives the lock up
	if err := tmp.Truncate(info.stored()); err != nil {
		return err
	}
	t := newTally(s.out, "get", s.Bool("verbose"))
	display, hide := context.WithCancel(s.ctx())
	var shown sync.WaitGroup
	shown.Go(func() {
		t.show(display, func(context.Context) error {
			t.allFiles.Store(int64(len(info.Chunks)))
			t.allBytes.Store(info.stored())
			return nil
		})
	})
	g, ctx := errgroup.WithContext(s.ctx())
	g.SetLimit(jobs)
	at := int64(0)
	for i, c := range info.Chunks {
		off := at
		at += c.Length
		g.Go(func() error {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			have, err := hashOf(ctx, io.NewSectionReader(tmp, off, c.Length), protocol.HashMD5)
			if err != nil {
				return err
			}
			if [md5.Size]byte(have.Sum) == c.MD5 {
				t.same.Add(1)
				return nil
			}
			err = persist(ctx, retries, func() error {
				into := io.MultiWriter(io.NewOffsetWriter(tmp, off), progressOf{&t.bytes})
				n, err := copyChunk(ctx, s, key, i, c, into)
				if err != nil {
					t.bytes.Add(-n)
				}
				return err
			})
			if err == nil {
				t.done.Add(1)
			}
			return err
		})
	}
	err := g.Wait()
	hide()
	shown.Wait()
	if err != nil {
		if s.ctx().Err() != nil {
			err = errors.New("interrupted")
		}
		return &failure{err: err, hint: "the same command goes on: chunks that are there stay", code: exitFailed}
	}
	if fi, err := os.Stat(file); err == nil {
		if err := tmp.Chmod(fi.Mode().Perm()); err != nil {
			return err
		}
	}
	if err := tmp.Sync(); err != nil {
		return err
	}
	if err := os.Rename(name, file); err != nil {
		return err
	}
	if s.out.json {
		return s.out.object(toBigJSON(key, info))
	}
	return nil
}

// sums are the chunks without where they lie.
func sums(f bigInfo) []bigChunk {
	cs := make([]bigChunk, len(f.Chunks))
	for i, c := range f.Chunks {
		cs[i] = bigChunk{Length: c.Length, MD5: c.MD5}
	}
	return cs
}

// getCompressed unpacks a big file into a file.
func getCompressed(s *session, key, file string, info bigInfo) error {
	tmp, err := createBeside(file)
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name()) // fails once it has its name
	defer tmp.Close()
	if err := catBig(s, key, info, 0, -1, tmp); err != nil {
		return err
	}
	if err := errors.Join(tmp.Sync(), tmp.Close()); err != nil {
		return err
	}
	if err := os.Rename(tmp.Name(), file); err != nil {
		return err
	}
	if s.out.json {
		return s.out.object(toBigJSON(key, info))
	}
	return nil
}

// copyChunk writes a whole chunk to w, and compares it with its description.
func copyChunk(ctx context.Context, s *session, key string, i int, c bigChunk, w io.Writer) (int64, error) {
	sum := md5.New()
	n, err := copySpan(ctx, s, key, span{i, 0, c.Length}, io.MultiWriter(w, sum))
	if err != nil {
		return n, err
	}
	return n, checkChunk(key, i, c, n, sum)
}

func checkChunk(key string, i int, c bigChunk, n int64, sum hash.Hash) error {
	if n != c.Length || [md5.Size]byte(sum.Sum(nil)) != c.MD5 {
		return damaged("key %q has %d bytes with MD5 %x, its description says %d and %x", chunkKey(key, i+1), n, sum.Sum(nil), c.Length, c.MD5)
	}
	return nil
}

func copySpan(ctx context.Context, s *session, key string, p span, w io.Writer) (int64, error) {
	r, err := s.client.OpenRange(ctx, s.domain, chunkKey(key, p.chunk+1), p.off, p.n)
	if err != nil {
		return 0, err
	}
	defer r.Close()
	n, err := io.Copy(w, r)
	if err != nil {
		err = fmt.Errorf("read key %q: %w", chunkKey(key, p.chunk+1), err)
	}
	return n, err
}

// catBig writes n bytes from off of a big file to w, all that follow where n is
// negative. Whole chunks are compared with their description; that of one which
// is wrong has been written by then.
func catBig(s *session, key string, info bigInfo, off, n int64, w io.Writer) error {
	if info.Compressed {
		return catCompressed(s, key, info, off, n, w)
	}
	for _, p := range info.spans(off, n) {
		c := info.Chunks[p.chunk]
		if p.off == 0 && p.n == c.Length {
			if _, err := copyChunk(s.ctx(), s, key, p.chunk, c, w); err != nil {
				return err
			}
			continue
		}
		got, err := copySpan(s.ctx(), s, key, p, w)
		if err != nil {
			return err
		}
		if got != p.n {
			return fmt.Errorf("key %q has too few bytes", chunkKey(key, p.chunk+1))
		}
	}
	return nil
}

// catCompressed unpacks all, and passes on what is wanted.
func catCompressed(s *session, key string, info bigInfo, off, n int64, w io.Writer) error {
	packed, in := io.Pipe()
	done := make(chan error, 1)
	go func() {
		packedInfo := info
		packedInfo.Compressed = false
		err := catBig(s, key, packedInfo, 0, -1, in)
		in.CloseWithError(err)
		done <- err
	}()
	err := func() error {
		z, err := gzip.NewReader(packed)
		if err != nil {
			return err
		}
		if _, err := io.CopyN(io.Discard, z, off); err != nil && err != io.EOF {
			return err
		}
		var r io.Reader = z
		if n >= 0 {
			r = io.LimitReader(z, n)
		}
		_, err = io.Copy(w, r)
		return err
	}()
	packed.CloseWithError(errUnpacked)
	if sendErr := <-done; sendErr != nil && !errors.Is(sendErr, errUnpacked) {
		return sendErr
	}
	if err != nil {
		return fmt.Errorf("unpack key %q: %w", key, err)
	}
	return nil
}

var errUnpacked = errors.New("no more is wanted")
