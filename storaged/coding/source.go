package coding

import (
	"context"
	"errors"
	"fmt"
	"hash"
	"time"

	"golang.org/x/time/rate"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/storaged/erasure"
	"github.com/mogile/mogile/storaged/transfer"
	"github.com/mogile/mogile/storaged/volume"
)

// raw is a file that shards are made of. Next and Close are not called
// concurrently.
type raw struct {
	fill     func(ctx context.Context, blocks [][]byte) error // as erasure.Content.Next
	close    func()
	name     string
	modified time.Time
	stored   volume.Sum // what was stored with it
	known    bool       // stored is
}

// rawOf opens the file that an order names. It is what is on a device of this
// daemon, or fetched. The error's code says whose it is.
func (c *Coding) rawOf(ctx context.Context, o *protocol.EncodeOrder) (*raw, *protocol.Error, error) {
	if o.Dev == 0 {
		src, err := c.o.Transfers.Open(ctx, o.From, o.Length)
		if err != nil {
			return nil, transfer.SourceCode(err), err
		}
		in := erasure.From(src)
		r := &raw{
			fill:  func(_ context.Context, blocks [][]byte) error { return in.Next(blocks) }, // src ends with ctx
			close: src.Close, name: o.From, modified: src.Modified(),
		}
		r.stored, r.known = src.Sum()
		return r, nil, nil
	}
	v, err := c.o.Docroot.Volume(o.Dev)
	if err != nil {
		return nil, protocol.ErrCopySource, err
	}
	path := o.FID.Path(o.Dev)
	_, name, _ := protocol.CutDevice(path)
	f, err := v.Open(ctx, name)
	if err != nil {
		return nil, protocol.ErrCopySource, err
	}
	done := func() { f.Close() } // opened for reading
	if f.Size() != o.Length {
		done()
		return nil, protocol.ErrCopySource, fmt.Errorf("%s: %d bytes instead of %d", path, f.Size(), o.Length)
	}
	off := int64(0)
	r := &raw{
		fill: func(ctx context.Context, blocks [][]byte) error {
			err := f.ReadParts(ctx, blocks, off)
			for _, b := range blocks {
				off += int64(len(b))
			}
			return err
		},
		close: done, name: path, modified: f.ModTime(),
	}
	r.stored, r.known = f.Sum()
	return r, nil, nil
}

// errContent is matched by what says that a source has another content than it
// should have.
var errContent = errors.New("the content is not what it should be")

// checked reads a file to its end, of which the length is known, and says there
// whether its content is right: so that nobody has all of one that is wrong.
type checked struct {
	ctx      context.Context
	from     *raw
	sum      volume.Sum // of what was read; CRC32C at the end
	typ      protocol.HashType
	hash     hash.Hash // of typ; nil: none is computed
	limits   []*rate.Limiter
	progress func(int64)
	check    func() error // called when the last byte was read
}

// readAtOnce is how many bytes are read before it is seen that work gets on.
const readAtOnce = 1 << 20

// Next implements erasure.Content.
func (r *checked) Next(blocks [][]byte) error {
	for len(blocks) > 0 {
		n, size := 1, len(blocks[0])
		for n < len(blocks) && size+len(blocks[n]) <= readAtOnce && len(r.limits) == 0 {
			size += len(blocks[n])
			n++
		}
		now := blocks[:n]
		blocks = blocks[n:]
		if err := r.from.fill(r.ctx, now); err != nil {
			return err
		}
		r.sum.Length += int64(size)
		if r.hash != nil {
			for _, b := range now {
				r.hash.Write(b) // hashes do not fail
			}
		}
		if err := pace(r.ctx, r.limits, size); err != nil {
			return err
		}
		r.progress(r.sum.Length)
	}
	return nil
}

// End implements erasure.Content.
func (r *checked) End(crc32c uint32) error {
	r.sum.CRC32C = crc32c
	return r.check()
}

// digest is that of what was read.
func (r *checked) digest() protocol.Checksum {
	if r.hash == nil {
		return protocol.Checksum{}
	}
	return protocol.Checksum{Type: r.typ, Sum: r.hash.Sum(nil)}
}
