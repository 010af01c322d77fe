package coding

import (
	"context"
	"errors"
	"fmt"
	"hash"
	"io"
	"time"

	"golang.org/x/time/rate"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/storaged/transfer"
	"github.com/mogile/mogile/storaged/volume"
)

// raw is a file that shards are made of.
type raw struct {
	io.ReadCloser
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
		r := &raw{ReadCloser: fetched{src}, name: o.From, modified: src.Modified()}
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
	if f.Size() != o.Length {
		f.Close() // opened for reading
		return nil, protocol.ErrCopySource, fmt.Errorf("%s: %d bytes instead of %d", path, f.Size(), o.Length)
	}
	r := &raw{ReadCloser: f, name: path, modified: f.ModTime()}
	r.stored, r.known = f.Sum()
	return r, nil, nil
}

// fetched is a file from another storage daemon.
type fetched struct{ *transfer.Source }

// Close implements io.Closer.
func (f fetched) Close() error {
	f.Source.Close()
	return nil
}

// errContent is matched by what says that a source has another content than it
// should have.
var errContent = errors.New("the content is not what it should be")

// checked reads a file to its end, of which the length is known, and with the last
// byte checks its content: so that nobody has all of one that is wrong.
type checked struct {
	ctx      context.Context
	from     io.Reader
	left     int64
	sum      volume.Sum
	typ      protocol.HashType
	hash     hash.Hash // of typ; nil: none is computed
	limits   []*rate.Limiter
	progress func(int64)
	check    func() error // called when the last byte was read
}

// Read implements io.Reader.
func (r *checked) Read(p []byte) (int, error) {
	if r.left == 0 {
		return 0, io.EOF
	}
	p = p[:min(int64(len(p)), r.left)]
	if len(r.limits) > 0 {
		p = p[:min(len(p), limitedPiece)]
	}
	n, err := r.from.Read(p)
	r.left -= int64(n)
	r.sum = r.sum.Add(p[:n])
	if r.hash != nil {
		r.hash.Write(p[:n]) // hashes do not fail
	}
	switch {
	case n == 0 && err == io.EOF:
		return 0, io.ErrUnexpectedEOF
	case n == 0 && err != nil:
		return 0, err
	}
	if err := pace(r.ctx, r.limits, n); err != nil {
		return 0, err
	}
	if r.left == 0 {
		if err := r.check(); err != nil {
			return 0, err
		}
	}
	r.progress(r.sum.Length)
	return n, nil
}

// digest is that of what was read.
func (r *checked) digest() protocol.Checksum {
	if r.hash == nil {
		return protocol.Checksum{}
	}
	return protocol.Checksum{Type: r.typ, Sum: r.hash.Sum(nil)}
}
