package tools

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/mogile/mogile/protocol"
)

// bigKey finds the description of a big file. The error matches
// [protocol.ErrUnknownKey] where there is none.
func bigKey(ctx context.Context, s *session, key string) (bigInfo, error) {
	r, err := s.client.Open(ctx, s.domain, bigInfoPrefix+key)
	if err != nil {
		return bigInfo{}, err
	}
	defer r.Close()
	info, err := parseBigInfo(r)
	if err != nil {
		return info, &refusal{fmt.Errorf("key %q describes no big file: %w", bigInfoPrefix+key, err)}
	}
	return info, nil
}

// piece is a chunk on its way to be stored.
type piece struct {
	number int // from 1
	body   io.ReadSeeker
	size   int64
	done   func() // lets go of it
}

// pieces cuts a file into chunks. What is no file comes from temporary files,
// so that each can be sent again.
func pieces(ctx context.Context, r io.Reader, length, chunk int64, emit func(piece) error) error {
	if f, ok := r.(io.ReaderAt); ok && length >= 0 {
		for n := int64(0); n == 0 || n*chunk < length; n++ {
			size := min(chunk, length-n*chunk)
			if err := emit(piece{int(n) + 1, io.NewSectionReader(f, n*chunk, size), size, func() {}}); err != nil {
				return err
			}
		}
		return nil
	}
	for number := 1; ; number++ {
		tmp, err := os.CreateTemp("", "mogtool-chunk-")
		if err != nil {
			return err
		}
		done := func() {
			tmp.Close()
			os.Remove(tmp.Name())
		}
		size, err := io.CopyN(tmp, ctxReader{ctx, r}, chunk)
		last := err == io.EOF
		if err == nil || last {
			_, err = tmp.Seek(0, io.SeekStart)
		}
		if err != nil || last && size == 0 && number > 1 {
			done()
			return err
		}
		if err := emit(piece{number, tmp, size, done}); err != nil {
			done()
			return err
		}
		if last {
			return nil
		}
	}
}

// maxChunks bounds the memory that a description takes.
const maxChunks = 200_000

// putBig stores a file in chunks. Chunks that are there already, of an upload
// that was interrupted, stay.
func putBig(s *session, r io.Reader, length int64, name, key string) error {
	chunk, err := parseSize(s.String("chunk-size"))
	if err != nil || chunk < 1 {
		return usageError(s.Context, "put: --chunk-size is a number of bytes above 0, up to 1G")
	}
	if length/chunk >= maxChunks {
		return usageError(s.Context, "put: %d bytes would be more than %d chunks; raise --chunk-size", length, maxChunks)
	}
	b := &bigPut{s: s, key: key, class: s.String("class"), retries: s.Int("retries"), verify: s.Bool("verify"), noClobber: s.Bool("no-clobber"),
		tally: newTally(s.out, "put", s.Bool("verbose"))}
	jobs := s.Int("jobs")
	if jobs < 1 || jobs > maxJobs || b.retries < 0 {
		return usageError(s.Context, "put: --jobs is 1 to %d, --retries 0 or more", maxJobs)
	}
	b.info = bigInfo{Description: "no description", Type: "file", Filename: filepath.Base(name)}
	if err := b.begin(s.ctx()); err != nil {
		return err
	}
	display, hide := context.WithCancel(s.ctx())
	var shown sync.WaitGroup
	shown.Go(func() {
		b.tally.show(display, func(context.Context) error {
			if length < 0 {
				return errors.New("nobody knows")
			}
			b.tally.allFiles.Store(max(1, (length+chunk-1)/chunk))
			b.tally.allBytes.Store(length)
			return nil
		})
	})
	g, ctx := errgroup.WithContext(s.ctx())
	g.SetLimit(jobs + 1)
	g.Go(func() error {
		return pieces(ctx, r, length, chunk, func(p piece) error {
			if p.number > maxChunks {
				p.done()
				return fmt.Errorf("more than %d chunks; raise --chunk-size", maxChunks)
			}
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			g.Go(func() error {
				defer p.done()
				return b.chunk(ctx, p)
			})
			return nil
		})
	})
	err = g.Wait()
	hide()
	shown.Wait()
	if err == nil {
		err = b.finish(s.ctx())
	}
	if err != nil {
		const again = "the same command goes on: chunks that are there stay"
		if s.ctx().Err() != nil {
			err = errors.New("interrupted")
		}
		return &failure{err: err, hint: strings.TrimPrefix(hint(err)+"\n"+again, "\n"), code: exitFailed}
	}
	if s.out.json {
		return s.out.object(toBigJSON(key, b.info))
	}
	return nil
}

// bigPut is a big file being stored.
type bigPut struct {
	s         *session
	key       string
	class     string
	retries   int
	verify    bool
	noClobber bool
	tally     *tally

	old     bool // the key has a description
	oldOnce sync.Once
	oldErr  error

	mu   sync.Mutex // guards info.Chunks
	info bigInfo
}

// begin looks whether the key is in use, and leaves word that an upload is under way.
func (b *bigPut) begin(ctx context.Context) error {
	err := persist(ctx, b.retries, func() error {
		_, err := b.s.client.FileInfo(ctx, b.s.domain, bigInfoPrefix+b.key)
		return err
	})
	if err == nil && b.noClobber {
		return fmt.Errorf("store key %q in domain %q: %w", b.key, b.s.domain, protocol.ErrKeyExists)
	}
	if err != nil && !errors.Is(err, protocol.ErrUnknownKey) {
		return err
	}
	b.old = err == nil
	// A file stored under the key in one piece would hide the big one.
	err = persist(ctx, b.retries, func() error {
		_, err := b.s.client.FileInfo(ctx, b.s.domain, b.key)
		return err
	})
	if err == nil {
		return &failure{err: fmt.Errorf("store key %q in domain %q in chunks: it is a file in one piece", b.key, b.s.domain),
			hint: "delete that first ('mogtool rm KEY'), or choose another key", code: exitFailed}
	}
	if !errors.Is(err, protocol.ErrUnknownKey) {
		return err
	}
	if !b.old {
		if err := b.free(ctx); err != nil {
			return err
		}
	}
	record := fmt.Appendf(nil, "des %s\ntype %s\nfilename %s\n", b.info.Description, b.info.Type, b.info.Filename)
	return b.put(ctx, bigBegunPrefix+b.key, record)
}

// free refuses a key whose chunks would replace, or have as surplus deleted, files
// that no upload has left.
func (b *bigPut) free(ctx context.Context) error {
	err := persist(ctx, b.retries, func() error {
		_, err := b.s.client.FileInfo(ctx, b.s.domain, bigBegunPrefix+b.key)
		return err
	})
	if !errors.Is(err, protocol.ErrUnknownKey) {
		return err
	}
	return eachChunk(ctx, b.s, b.key, b.retries, func(key string, _ int) error {
		return &failure{err: fmt.Errorf("store key %q in domain %q in chunks: the key %q is in use, and no big file says that it is one of its chunks", b.key, b.s.domain, key),
			hint: "choose another key, or delete what is not needed ('mogtool ls " + b.key + ",' lists it)", code: exitFailed}
	})
}

func (b *bigPut) put(ctx context.Context, key string, content []byte) error {
	return persist(ctx, b.retries, func() error {
		_, err := b.s.client.Create(ctx, b.s.domain, key, protocol.CreateOptions{Class: b.class}, bytes.NewReader(content))
		return err
	})
}

// chunk stores one chunk, unless it is there.
func (b *bigPut) chunk(ctx context.Context, p piece) error {
	key := chunkKey(b.key, p.number)
	var done bigChunk
	err := persist(ctx, b.retries, func() error {
		have, err := b.present(ctx, key, p)
		if err != nil {
			return err
		}
		if have != nil {
			b.tally.same.Add(1)
			done = *have
			return nil
		}
		// From its first changed chunk on, the old file is none.
		b.oldOnce.Do(func() {
			if b.old {
				b.oldErr = remove(ctx, b.s, bigInfoPrefix+b.key, b.retries)
			}
		})
		if b.oldErr != nil {
			return b.oldErr
		}
		if _, err := p.body.Seek(0, io.SeekStart); err != nil {
			return err
		}
		m := &metered{ReadSeeker: p.body, n: &b.tally.bytes}
		created, err := b.s.client.Create(ctx, b.s.domain, key, protocol.CreateOptions{
			Class: b.class, Size: p.size, Hash: protocol.HashMD5, Verify: b.verify,
		}, m)
		if err != nil {
			m.undo()
			return err
		}
		b.tally.done.Add(1)
		done.Length, done.Paths = p.size, []string{created.Path}
		copy(done.MD5[:], created.Checksum.Sum)
		return nil
	})
	if err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for len(b.info.Chunks) < p.number {
		b.info.Chunks = append(b.info.Chunks, bigChunk{})
	}
	b.info.Chunks[p.number-1] = done
	return nil
}

// present describes the chunk where it is stored as it should be, else it is
// nil.
func (b *bigPut) present(ctx context.Context, key string, p piece) (*bigChunk, error) {
	info, err := b.s.client.FileInfo(ctx, b.s.domain, key)
	if errors.Is(err, protocol.ErrUnknownKey) {
		return nil, nil
	}
	if err != nil || info.Length != p.size {
		return nil, err
	}
	if _, err := p.body.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	want, err := hashOf(ctx, p.body, protocol.HashMD5)
	if err != nil {
		return nil, err
	}
	have := info.Checksum
	if have.Type != protocol.HashMD5 {
		have, err = storedSum(ctx, b.s, key, info.FID)
		if err != nil {
			return nil, err
		}
	}
	if !have.Equal(want) {
		return nil, nil
	}
	c := &bigChunk{Length: p.size}
	copy(c.MD5[:], want.Sum)
	c.Paths, err = b.s.client.Paths(ctx, b.s.domain, key, protocol.PathsOptions{NoVerify: true})
	return c, err
}

// finish stores the description, and deletes the chunks that a longer file left.
func (b *bigPut) finish(ctx context.Context) error {
	b.info.Size = b.info.stored()
	if err := b.put(ctx, bigInfoPrefix+b.key, appendBigInfo(nil, b.info)); err != nil {
		return err
	}
	return eachChunk(ctx, b.s, b.key, b.retries, func(key string, number int) error {
		if number <= len(b.info.Chunks) {
			return nil
		}
		return remove(ctx, b.s, key, b.retries)
	})
}

// remove deletes a key that may be gone already.
func remove(ctx context.Context, s *session, key string, retries int) error {
	err := persist(ctx, retries, func() error { return s.client.Delete(ctx, s.domain, key) })
	if errors.Is(err, protocol.ErrUnknownKey) {
		return nil
	}
	return err
}

// eachChunk finds the keys of a big file's chunks.
func eachChunk(ctx context.Context, s *session, key string, retries int, do func(key string, number int) error) error {
	return listKeys(ctx, s, key+",", retries, func(k string) error {
		n, err := strconv.Atoi(k[len(key)+1:])
		if err != nil || n < 1 || k != chunkKey(key, n) {
			return nil // another key, such as "a,b"
		}
		return do(k, n)
	})
}

// rmBig deletes a big file, whole or begun. The error matches
// [protocol.ErrUnknownKey] where there is neither.
func rmBig(ctx context.Context, s *session, key string) error {
	_, infoErr := s.client.FileInfo(ctx, s.domain, bigInfoPrefix+key)
	if infoErr != nil && !errors.Is(infoErr, protocol.ErrUnknownKey) {
		return infoErr
	}
	if infoErr != nil {
		if _, err := s.client.FileInfo(ctx, s.domain, bigBegunPrefix+key); err != nil {
			return err
		}
	}
	// What tells of the chunks goes when they are gone, so that it can be said
	// again.
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(infoJobs)
	err := eachChunk(gctx, s, key, 0, func(k string, _ int) error {
		g.Go(func() error { return remove(gctx, s, k, 0) })
		return nil
	})
	if err := cmp.Or(g.Wait(), err); err != nil {
		return err
	}
	return cmp.Or(remove(ctx, s, bigBegunPrefix+key, 0), remove(ctx, s, bigInfoPrefix+key, 0))
}

type bigJSON struct {
	Key         string `json:"key"`
	Big         bool   `json:"big"`
	Type        string `json:"type"`
	Description string `json:"description"`
	Filename    string `json:"filename"`
	Compressed  bool   `json:"compressed"`
	Chunks      int    `json:"chunks"`
	Length      int64  `json:"length"`
}

func toBigJSON(key string, f bigInfo) bigJSON {
	return bigJSON{key, true, f.Type, f.Description, f.Filename, f.Compressed, len(f.Chunks), f.Size}
}

func infoBig(s *session, key string, f bigInfo) error {
	if s.out.json {
		return s.out.object(toBigJSON(key, f))
	}
	compressed := "no"
	if f.Compressed {
		compressed = "yes"
	}
	return s.out.pairs([][]string{
		{"key:", key},
		{"domain:", s.domain},
		{"type:", f.Type + ", in chunks"},
		{"description:", f.Description},
		{"filename:", f.Filename},
		{"compressed:", compressed},
		{"chunks:", strconv.Itoa(len(f.Chunks))},
		{"length:", strconv.FormatInt(f.Size, 10)},
	})
}

// lsBig lists big files.
func lsBig(s *session, prefix string) error {
	return listKeys(s.ctx(), s, bigInfoPrefix+prefix, 0, func(k string) error {
		key := strings.TrimPrefix(k, bigInfoPrefix)
		if !s.Bool("long") {
			return lsShort(s, []string{key})
		}
		f, err := bigKey(s.ctx(), s, key)
		if errors.Is(err, protocol.ErrUnknownKey) {
			return nil // deleted meanwhile
		}
		if err != nil {
			return err
		}
		if s.out.json {
			return s.out.object(toBigJSON(key, f))
		}
		return s.out.line(fmt.Sprintf("%6d chunks  %14d  %-9s  %s", len(f.Chunks), f.Size, f.Type, key))
	})
}
