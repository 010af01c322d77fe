package storaged

import (
	"bytes"
	"context"
	"crypto/md5"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/storaged/erasure"
	"github.com/mogile/mogile/storaged/transfer"
	"github.com/mogile/mogile/storaged/volume"
)

// plane is the data plane: what the methods do to the volumes.
type plane struct {
	docroot   *volume.Docroot
	buffers   *buffers
	orders    *orders
	transfers *transfer.Transfers
	encoded   *encoded
	readOnly  bool // GET and HEAD only
}

var _ handler = (*plane)(nil)

// serve answers as storage daemons of MogileFS 2.73 do; where they differ, as
// trackers and clients need it.
func (p *plane) serve(ctx context.Context, r *request) answer {
	if name, ok := strings.CutPrefix(r.path, protocol.OrderPath); ok && r.method == http.MethodPost && !p.readOnly {
		return p.orders.serve(r, name)
	}
	t, err := parseTarget(r.path)
	switch {
	case errors.Is(err, errBadPath):
		return answer{status: http.StatusBadRequest, err: err}
	case err != nil:
		return answer{status: http.StatusForbidden, err: err}
	}
	switch r.method {
	case http.MethodGet:
		return p.get(ctx, r, t, false)
	case http.MethodHead:
		return p.get(ctx, r, t, true)
	}
	if p.readOnly {
		return answer{status: http.StatusMethodNotAllowed, close: r.method != http.MethodDelete && r.method != "MKCOL"}
	}
	switch r.method {
	case http.MethodPut:
		return p.put(ctx, r, t)
	case http.MethodDelete:
		return p.delete(ctx, t)
	case "MKCOL": // 400 tells trackers that there is no need of it: PUT makes directories
		return answer{status: http.StatusBadRequest}
	}
	return answer{status: http.StatusMethodNotAllowed, close: true}
}

func (p *plane) get(ctx context.Context, r *request, t target, isHead bool) answer {
	switch {
	case t.root: // mogadm check asks for this
		return answer{status: http.StatusOK, modified: time.Unix(0, 0)}
	case t.dev == 0:
		return answer{status: http.StatusNotFound}
	}
	v, err := p.docroot.Volume(t.dev)
	switch {
	case err != nil:
		return failed(err)
	case t.name == "":
		return answer{status: http.StatusForbidden, err: volume.ErrIsDir}
	case t.name == usageName && !t.dir:
		use, err := v.Usage()
		if err != nil {
			return failed(err)
		}
		text := []byte(use.String())
		a := ranged(r, int64(len(text)), use.Time)
		a.suspects = p.encoded.suspects.count()
		a.text = text[a.off : a.off+a.size]
		return a
	}
	if isHead || t.dir {
		info, err := v.Stat(ctx, t.name)
		if errors.Is(err, fs.ErrNotExist) {
			if a, ok := p.getEncoded(ctx, r, v, t, isHead); ok {
				return a
			}
			info, err = v.Stat(ctx, t.name) // a conversion may have passed between
		}
		switch {
		case err != nil:
			return failed(err)
		case t.dir: // a file is not a directory
			return answer{status: http.StatusNotFound}
		}
		return ranged(r, info.Size, info.ModTime)
	}
	read := p.getFile
	if slices.Contains(r.want, wantSum) {
		read = p.getWithSum
	}
	a, err := read(ctx, r, v, t.name)
	if errors.Is(err, fs.ErrNotExist) {
		if a, ok := p.getEncoded(ctx, r, v, t, isHead); ok {
			return a
		}
		a, err = read(ctx, r, v, t.name) // as above
	}
	if err != nil {
		return failed(err)
	}
	return a
}

// getFile opens a file and reads the beginning of what is asked for, which is all
// of a small one: a disk that cannot read is an answer of its own, and one that
// hangs is noticed.
func (p *plane) getFile(ctx context.Context, r *request, v *volume.Volume, name string) (answer, error) {
	buf := p.buffers.get()
	info, f, n, err := v.OpenRead(ctx, r.late, name, buf[maxAnswerHead:], func(info volume.Info) (off, n int64) {
		a := ranged(r, info.Size, info.ModTime)
		return a.off, a.size
	})
	if err != nil {
		p.buffers.put(buf)
		return answer{}, err
	}
	a := ranged(r, info.Size, info.ModTime)
	if n == 0 { // nothing to send, or refused
		p.buffers.put(buf)
		return a, nil
	}
	a.file, a.first, a.read = f, buf, n
	return a, nil
}

// getWithSum is getFile for a client that wants the stored sum too.
func (p *plane) getWithSum(ctx context.Context, r *request, v *volume.Volume, name string) (answer, error) {
	f, err := v.Open(ctx, name)
	if err != nil {
		return answer{}, err
	}
	a := ranged(r, f.Size(), f.ModTime())
	if a.status == http.StatusOK {
		if sum, ok := f.Sum(); ok {
			a.sum = &sum
		}
	}
	if a.size == 0 { // as above
		return a, f.Close()
	}
	a.file = f
	return a, nil
}

// getEncoded answers for a file of which there is a shard in place of a copy. It
// reports false where there is none.
func (p *plane) getEncoded(ctx context.Context, r *request, v *volume.Volume, t target, isHead bool) (answer, bool) {
	fid, ok := t.fid()
	if !ok || t.dir {
		return answer{}, false
	}
	h, err := p.encoded.find(ctx, v, fid)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return answer{}, false
	case err != nil:
		return failed(err), true
	}
	a := ranged(r, h.Length, h.Modified)
	if isHead {
		return a, true
	}
	if slices.Contains(r.want, wantSum) && a.status == http.StatusOK {
		a.sum = &volume.Sum{Length: h.Length, CRC32C: h.CRC32C}
	}
	if a.size > 0 {
		a.parts = p.encoded.read(ctx, h, a.off, a.size)
	}
	return a, true
}

// ranged is the answer to a GET of a file, without its body.
func ranged(r *request, size int64, modified time.Time) answer {
	if notModified(r.modifiedSince, modified) {
		return answer{status: http.StatusNotModified, modified: modified}
	}
	piece, status := selectRange(r.ranges, size)
	a := answer{status: status}
	switch status {
	case http.StatusOK:
		a.size, a.modified, a.acceptRanges = size, modified, true
	case http.StatusPartialContent:
		a.off, a.size, a.modified = piece.off, piece.n, modified
		a.contentRange = fmt.Sprintf("bytes %d-%d/%d", piece.off, piece.off+piece.n-1, size)
	case http.StatusRequestedRangeNotSatisfiable:
		a.contentRange = fmt.Sprintf("bytes */%d", size)
	}
	return a
}

// notModified decides whether a client that has the file as of a value of
// If-Modified-Since needs it again. As in MogileFS's Perlbal the text counts,
// not the time: a file may be replaced by an older one.
func notModified(since []string, modified time.Time) bool {
	if len(since) != 1 {
		return false
	}
	text, _, _ := strings.Cut(since[0], ";") // "; length=N", as old browsers send
	return strings.TrimRight(text, " \t") == lastModified(modified)
}

func (p *plane) delete(ctx context.Context, t target) answer {
	switch {
	case t.root:
		return answer{status: http.StatusForbidden}
	case t.dev == 0:
		return answer{status: http.StatusNotFound}
	}
	v, err := p.docroot.Volume(t.dev)
	switch {
	case err != nil:
		return failed(err)
	case t.name == "" || t.name == usageName:
		return answer{status: http.StatusForbidden}
	case t.dir:
		if _, err := v.Stat(ctx, t.name); err != nil {
			return failed(err)
		}
		return answer{status: http.StatusNotFound} // a file is not a directory
	}
	if err := p.transfers.Cancel(ctx, t.dev, t.name); err != nil {
		return failed(err)
	}
	err = v.Remove(ctx, t.name)
	if fid, ok := t.fid(); ok && (err == nil || errors.Is(err, fs.ErrNotExist)) {
		if had, e := p.removeShard(ctx, v, fid); had || e != nil {
			err = e
		}
	}
	if err != nil {
		return failed(err)
	}
	return answer{status: http.StatusNoContent}
}

// removeShard removes the shard of a fid that was deleted: to clients the path of
// the copy is that of the file. It reports whether there was one.
func (p *plane) removeShard(ctx context.Context, v *volume.Volume, fid protocol.FID) (bool, error) {
	name := shardName(fid, v.ID())
	if err := p.transfers.Cancel(ctx, v.ID(), name); err != nil {
		return false, err
	}
	// Removing what is not there would flush the folder once more. What an earlier
	// attempt left unflushed is on disk since the copy was removed.
	if _, err := v.Stat(ctx, name); err != nil {
		return false, ignoreMissing(err)
	}
	return true, ignoreMissing(v.Remove(ctx, name))
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

func (p *plane) put(ctx context.Context, r *request, t target) answer {
	switch {
	case t.dev == 0 || t.name == "" || t.dir:
		return answer{status: http.StatusBadRequest}
	case t.name == usageName: // the daemon's own
		return answer{status: http.StatusForbidden}
	case isFolder(t.name): // though it may not be there yet
		return answer{status: http.StatusForbidden, err: volume.ErrIsDir}
	}
	if fid, ok := t.shard(); ok {
		return p.putShard(ctx, r, t, fid)
	}
	sum, err := newBodySum(r)
	if err != nil {
		return answer{status: http.StatusBadRequest, close: true, err: err}
	}
	v, err := p.docroot.Volume(t.dev)
	if err != nil {
		return failed(err)
	}
	fid, isFID := t.fid()
	if isFID && (r.length > bufferSize || r.length < 0 || len(r.contentRange) > 0) { // before much of it comes
		if err := p.notEncoded(ctx, v, fid); err != nil {
			return failed(err)
		}
	}
	if len(r.contentRange) > 0 {
		return p.putRange(ctx, r, v, t.name, sum)
	}
	if u, err := v.Usage(); err == nil && r.length > u.Total*1024 {
		return failed(fmt.Errorf("%d bytes: %w", r.length, volume.ErrNoSpace))
	}
	up, err := v.Create(ctx, t.name)
	if err != nil {
		return failed(err)
	}
	defer up.Abort()
	if err := p.receive(r, sum, up.Write); err != nil {
		return failed(err)
	}
	shard := ""
	if isFID { // in any case, for a shard may have come meanwhile
		shard = shardName(fid, v.ID())
	}
	if err := up.CommitUnless(ctx, r.late, shard); errors.Is(err, volume.ErrExcluded) {
		return failed(fmt.Errorf("fid %d: %w", fid, errEncoded))
	} else if err != nil {
		return failed(err)
	}
	return answer{status: http.StatusCreated}
}

var errEncoded = errors.New("the file is erasure-coded: there is a shard of it here")

// notEncoded refuses to have a client store a copy of a file beside a shard of
// it, which the copy would hide from those who read.
func (p *plane) notEncoded(ctx context.Context, v *volume.Volume, fid protocol.FID) error {
	_, err := v.Stat(ctx, shardName(fid, v.ID()))
	switch {
	case err == nil:
		return fmt.Errorf("fid %d: %w", fid, errEncoded)
	case errors.Is(err, fs.ErrNotExist):
		return nil
	}
	return err
}

// putRange writes in place, which is not atomic: what arrived before a failure
// stays.
func (p *plane) putRange(ctx context.Context, r *request, v *volume.Volume, name string, sum *bodySum) answer {
	malformed := answer{status: http.StatusBadRequest, close: true}
	if len(r.contentRange) > 1 || r.length < 0 {
		return malformed
	}
	piece, err := parseContentRange(r.contentRange[0])
	switch {
	case errors.Is(err, errOverflow):
		return failed(fmt.Errorf("range: %w: %w", err, volume.ErrNoSpace))
	case err != nil || piece.n != r.length:
		return malformed
	}
	up, err := v.Update(ctx, name)
	if err != nil {
		return failed(err)
	}
	defer up.Abort()
	off := piece.off
	err = p.receive(r, sum, func(b []byte) (int, error) {
		n, err := up.WriteAt(b, off)
		off += int64(n)
		return n, err
	})
	if err != nil {
		return failed(err)
	}
	if err := up.Commit(ctx); err != nil {
		return failed(err)
	}
	return answer{status: http.StatusCreated}
}

var errWrongSum = errors.New("Content-MD5 does not match the body")

// receive passes the body to write in pieces of at most bufferSize, and checks
// its sum.
func (p *plane) receive(r *request, sum *bodySum, write func([]byte) (int, error)) error {
	if r.length != 0 {
		buf := p.buffers.get()
		defer p.buffers.put(buf)
		for done := false; !done; {
			n, err := io.ReadFull(r.body, buf[:bufferSize])
			switch {
			case err == io.EOF || err == io.ErrUnexpectedEOF: // the end: a broken body has another error
				done = true
			case err != nil:
				return err
			}
			if n == 0 {
				break
			}
			sum.add(buf[:n])
			if _, err := write(buf[:n]); err != nil {
				return err
			}
		}
	}
	return sum.check(r)
}

// bodySum compares a body with its Content-MD5, wherever that comes from. It
// does nothing where there is none.
type bodySum struct {
	want []byte // from the header
	hash interface {
		io.Writer
		Sum([]byte) []byte
	}
}

var errBadSum = errors.New("Content-MD5 is not the base64 of 16 bytes")

func newBodySum(r *request) (*bodySum, error) {
	s := new(bodySum)
	if len(r.contentMD5) > 0 {
		want, err := parseMD5(r.contentMD5)
		if err != nil {
			return nil, err
		}
		s.want = want
	}
	if s.want != nil || r.trailerMD5 != nil {
		s.hash = md5.New()
	}
	return s, nil
}

func (s *bodySum) add(p []byte) {
	if s.hash != nil {
		s.hash.Write(p) // hashes do not fail
	}
}

// check compares what was added with the header and with the trailer. A
// trailer that was announced must be there.
func (s *bodySum) check(r *request) error {
	if s.hash == nil {
		return nil
	}
	got := s.hash.Sum(nil)
	if s.want != nil && !bytes.Equal(got, s.want) {
		return errWrongSum
	}
	if r.trailerMD5 != nil {
		want, err := parseMD5(r.trailerMD5())
		if err != nil {
			return err
		}
		if !bytes.Equal(got, want) {
			return errWrongSum
		}
	}
	return nil
}

func parseMD5(values []string) ([]byte, error) {
	if len(values) != 1 {
		return nil, errBadSum
	}
	sum, err := base64.StdEncoding.DecodeString(values[0])
	if err != nil || len(sum) != md5.Size {
		return nil, errBadSum
	}
	return sum, nil
}

// failed is the answer to a request that ended with err.
func failed(err error) answer {
	if errors.Is(err, volume.ErrLate) {
		return answer{late: true}
	}
	a := answer{status: statusOf(err), err: err}
	switch a.status {
	case http.StatusInsufficientStorage, http.StatusRequestTimeout:
		a.close = true
	case http.StatusBadRequest:
		a.close = !errors.Is(err, errWrongSum) && !errors.Is(err, errBadSum)
	}
	return a
}

// statusOf is the status that tells a client of err.
func statusOf(err error) int {
	switch {
	// First, for they have those of single shards in them.
	case errors.Is(err, errShard), errors.Is(err, erasure.ErrTooFew), errors.Is(err, erasure.ErrBusy):
		return http.StatusServiceUnavailable
	case errors.Is(err, volume.ErrNoDevice), errors.Is(err, fs.ErrNotExist):
		return http.StatusNotFound
	case errors.Is(err, volume.ErrIsDir), errors.Is(err, fs.ErrPermission), errors.Is(err, errTraversal), errors.Is(err, errPrivate):
		return http.StatusForbidden
	case errors.Is(err, volume.ErrNoSpace):
		return http.StatusInsufficientStorage
	case errors.Is(err, errEncoded):
		return http.StatusConflict
	case errors.Is(err, errSlowBody):
		return http.StatusRequestTimeout
	case errors.Is(err, volume.ErrBadName), errors.Is(err, errBadPath), errors.Is(err, errWrongSum), errors.Is(err, errBadSum),
		errors.Is(err, errMalformedBody), errors.Is(err, errBrokenBody):
		return http.StatusBadRequest
	case errors.Is(err, volume.ErrSick), errors.Is(err, volume.ErrBusy), errors.Is(err, volume.ErrFlush), errors.Is(err, volume.ErrStale), errors.Is(err, volume.ErrRefused),
		errors.Is(err, context.DeadlineExceeded):
		return http.StatusServiceUnavailable
	}
	return http.StatusInternalServerError
}
