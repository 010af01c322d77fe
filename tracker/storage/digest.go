package storage

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/mogile/mogile/protocol"
)

const (
	// digestRate is the least that a storage daemon is expected to hash, in
	// bytes a second.
	digestRate = 2 << 20
	// fsckPatience is added where the daemon queues what has low priority.
	fsckPatience = 3600 * time.Second
	// maxPatience bounds the time for a digest, however large the file.
	maxPatience = 30 * 24 * time.Hour
)

// digestPatience is how long a storage daemon is waited for that hashes size
// bytes.
func digestPatience(size int64, reason string, node time.Duration) time.Duration {
	size = min(max(size, 0), digestRate*int64(maxPatience/time.Second))
	patience := node + time.Duration(size/digestRate)*time.Second + time.Duration(size%digestRate)*time.Second/digestRate
	if reason == "fsck" || reason == "scrub" {
		patience += fsckPatience
	}
	return min(patience, maxPatience)
}

// Digest is the digest of a file of size bytes (below 0: not known): computed
// by the storage daemon if its side channel does so, within size / 2 MiB/s and
// NodeTimeout (an hour more where reason is "fsck" or "scrub", which have low priority there),
// else read over HTTP and computed here. reason is a word or empty. Errors
// match ErrMissing or ErrUnreachable, also where the file has another size.
func (c *Client) Digest(ctx context.Context, url string, size int64, t protocol.HashType, reason string) (protocol.Checksum, error) {
	h := t.New()
	if h == nil {
		return protocol.Checksum{}, fmt.Errorf("digest of %s: no algorithm %s", url, t)
	}
	if sum, ok := c.sideDigest(ctx, url, size, t, reason); ok {
		return protocol.Checksum{Type: t, Sum: sum}, nil
	}
	content, err := c.readThrough(ctx, url, size, t)
	return content.Digest, err
}

// readThrough reads a file of size bytes (below 0: not known) over HTTP, and
// computes its digest (none: no digest). Errors match ErrMissing or
// ErrUnreachable, also where the file has another size.
func (c *Client) readThrough(ctx context.Context, url string, size int64, t protocol.HashType) (protocol.Content, error) {
	r, err := c.send(ctx, c.reads, request{
		method: http.MethodGet, url: url, idle: c.o.NodeTimeout, patience: bodyPatience(size, c.o.NodeTimeout),
		header: http.Header{"Mogile-Want": {"sum"}},
	})
	if err != nil {
		return protocol.Content{}, err
	}
	defer r.Close()
	if err := r.check(); err != nil {
		return protocol.Content{}, err
	}
	want := size
	if want < 0 {
		want = r.ContentLength
	}
	switch {
	case want < 0: // it may have been cut short, or never end
		return protocol.Content{}, fmt.Errorf("GET %s: %w: an answer without Content-Length", url, ErrUnreachable)
	case r.ContentLength >= 0 && r.ContentLength != want:
		return protocol.Content{}, fmt.Errorf("GET %s: %w: %d bytes instead of %d", url, ErrUnreachable, r.ContentLength, want)
	}
	crc := crc32.New(crc32.MakeTable(crc32.Castagnoli))
	w := io.Writer(crc)
	h := t.New()
	if h != nil {
		w = io.MultiWriter(crc, h)
	}
	buf := c.buffers.Get().(*[bufferSize]byte)
	defer c.buffers.Put(buf)
	n, err := io.CopyBuffer(w, io.LimitReader(r, want+1), buf[:])
	if err != nil {
		return protocol.Content{}, err
	}
	if n != want {
		return protocol.Content{}, fmt.Errorf("GET %s: %w: %d bytes instead of %d", url, ErrUnreachable, min(n, want+1), want)
	}
	content := protocol.Content{Found: protocol.ContentSum{Length: n, CRC32C: crc.Sum32()}}
	if h != nil {
		content.Digest = protocol.Checksum{Type: t, Sum: h.Sum(nil)}
	}
	if stored, err := protocol.ParseContentSum(strings.Replace(r.Header.Get("Mogile-Sum"), " ", ":", 1)); err == nil {
		content.Stored = &stored // of one of ours whose side channel cannot be reached
	}
	return content, nil
}

// sideDigest asks the side channel. It reports false where HTTP must be asked.
func (c *Client) sideDigest(ctx context.Context, url string, size int64, t protocol.HashType, reason string) ([]byte, bool) {
	_, addr, uri, err := split(url)
	if err != nil {
		return nil, false // HTTP has the same words for it
	}
	s := c.side(addr)
	if s == nil {
		return nil, false
	}
	line, err := c.ask(ctx, s, t.String(), uri, reason, digestPatience(size, reason, c.o.NodeTimeout))
	if err == nil {
		var sum []byte
		if sum, err = parseDigestReply(uri, t, line); err == nil {
			return sum, true
		}
	}
	if errors.Is(err, errNoSide) && ctx.Err() == nil {
		c.leave(s, err)
	}
	c.o.Log.Debug().Str("url", url).Err(err).Msg("no digest from the side channel")
	return nil, false
}
