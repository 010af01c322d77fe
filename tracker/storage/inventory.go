package storage

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/mogile/mogile/protocol"
)

// CapabilitySum is the word with which a storage daemon says that it keeps
// length and CRC32C of what is written, and verifies files.
const CapabilitySum = "sum"

// Verified is what came of reading a file from its beginning to its end.
type Verified struct {
	protocol.Content
	// DigestOnly: a daemon of another make gave the digest, and that is all that
	// is known: Found and Stored are not.
	DigestOnly bool
}

// errCannotTell is the answer of a storage daemon that could not read a file for
// reasons that are not the file's.
var errCannotTell = errors.New("the storage daemon cannot tell")

// Verify has all of a file of size bytes (below 0: not known) read, in one go:
// by the storage daemon if its side channel does so, which then also tells what
// is stored with the file, within the time that [Client.Digest] gives it. A
// daemon of another make computes the digest t, if there is one; failing that,
// the file is read over HTTP. reason is a word or empty.
//
// A file that is there and that the disk cannot give is no error:
// [protocol.Content].Unreadable is set. Nor is one with another content or
// length than it should have; of daemons of other makes, however, only files of
// size bytes are read. Errors match ErrMissing or ErrUnreachable; Missing is
// never set.
func (c *Client) Verify(ctx context.Context, url string, size int64, t protocol.HashType, reason string) (Verified, error) {
	if t != protocol.HashNone && t.New() == nil {
		return Verified{}, fmt.Errorf("verify %s: no algorithm %s", url, t)
	}
	content, err := c.sideVerify(ctx, url, size, t, reason)
	switch {
	case err == nil && content.Missing: // believed over HTTP only
		if _, err := c.headSize(ctx, url); err != nil {
			return Verified{}, err
		}
		return Verified{}, fmt.Errorf("verify %s: %w: the side channel does not find what HTTP does", url, ErrUnreachable)
	case err == nil:
		return Verified{Content: content}, nil
	case errors.Is(err, errCannotTell):
		return Verified{}, fmt.Errorf("verify %s: %w: %w", url, ErrUnreachable, err)
	case ctx.Err() != nil:
		return Verified{}, fmt.Errorf("verify %s: %w", url, context.Cause(ctx))
	}
	if t != protocol.HashNone {
		if sum, ok := c.sideDigest(ctx, url, size, t, reason); ok {
			return Verified{Content: protocol.Content{Digest: protocol.Checksum{Type: t, Sum: sum}}, DigestOnly: true}, nil
		}
	}
	content, err = c.readThrough(ctx, url, size, t)
	return Verified{Content: content}, err
}

// sideVerify asks the side channel. Errors match errCannotTell where asking by
// another way is of no use.
func (c *Client) sideVerify(ctx context.Context, url string, size int64, t protocol.HashType, reason string) (protocol.Content, error) {
	_, addr, uri, err := split(url)
	if err != nil {
		return protocol.Content{}, err // HTTP has the same words for it
	}
	s := c.side(addr)
	if s == nil {
		return protocol.Content{}, errNoSide
	}
	args := t.String()
	if t == protocol.HashNone {
		args = "-"
	}
	if reason != "" {
		args += " " + reason
	}
	line, err := c.ask(ctx, s, "verify", uri, args, digestPatience(size, reason, c.o.NodeTimeout))
	if err == nil {
		var content protocol.Content
		if content, err = parseVerifyReply(uri, t, string(line)); err == nil {
			return content, nil
		}
	}
	if errors.Is(err, errNoSide) && ctx.Err() == nil {
		c.leave(s, err)
	}
	c.o.Log.Debug().Str("url", url).Err(err).Msg("not verified by the side channel")
	return protocol.Content{}, err
}

// parseVerifyReply reads the reply to "verify uri t".
func parseVerifyReply(uri string, t protocol.HashType, line string) (protocol.Content, error) {
	if line == "ERR verify "+uri+" failed" {
		return protocol.Content{}, errCannotTell
	}
	rest, ok := strings.CutPrefix(line, uri+" ")
	if !ok {
		return protocol.Content{}, fmt.Errorf("verify %s: %w: %q", uri, errNotReply, line)
	}
	content, err := protocol.ParseContent(rest)
	if err != nil {
		return protocol.Content{}, fmt.Errorf("verify %s: %w: %w", uri, errNotReply, err)
	}
	if !content.Missing && !content.Unreadable && content.Digest.Type != t {
		return protocol.Content{}, fmt.Errorf("verify %s: %w: %q", uri, errNotReply, line)
	}
	return content, nil
}

// inventoryTime bounds one order about a device's files.
const inventoryTime = 30 * time.Second

// List lists a part of the files on a device, at the HTTP port hostport of its
// storage daemon. Errors match [ErrNoOrders] or ErrUnreachable, or are the
// *[protocol.Error] with which the daemon failed: no_device, device_refused,
// device_sick, or failure.
func (c *Client) List(ctx context.Context, hostport string, o protocol.ListOrder) (protocol.Listing, error) {
	var files []protocol.StoredFile
	var bad error
	fields, err := c.order(ctx, hostport, protocol.VerbList, o.Args(), inventoryTime, c.o.CopyTimeout, func(l protocol.AnswerLine) {
		if l.Kind != protocol.AnswerItem || bad != nil {
			return
		}
		var f protocol.StoredFile
		f, bad = protocol.ParseStoredFile(l.Fields.Get("file"))
		if files = append(files, f); len(files) > o.Limit {
			bad = fmt.Errorf("more than %d files: %w", o.Limit, protocol.ErrBadReply)
			files = nil
		}
	})
	if err != nil {
		return protocol.Listing{}, fmt.Errorf("list dev%d: %w", o.Dev, err)
	}
	listing, err := protocol.ParseListing(fields)
	if err = errors.Join(bad, err); err != nil {
		return protocol.Listing{}, fmt.Errorf("list dev%d at %s: %w: %w", o.Dev, hostport, ErrUnreachable, err)
	}
	listing.Files = files
	return listing, nil
}

// Trash has files moved to their device's trash, at the HTTP port hostport of its
// storage daemon, and returns what became of each, by fid; of those that it does
// not name nothing is known, as when there is an error. Errors are those of
// [Client.List].
func (c *Client) Trash(ctx context.Context, hostport string, o protocol.TrashOrder) (map[protocol.FID]protocol.TrashResult, error) {
	results := make(map[protocol.FID]protocol.TrashResult, len(o.Files))
	_, err := c.order(ctx, hostport, protocol.VerbTrash, o.Args(), inventoryTime, c.o.CopyTimeout, func(l protocol.AnswerLine) {
		if l.Kind != protocol.AnswerItem || len(results) == len(o.Files) {
			return
		}
		if r, err := protocol.ParseTrashResult(l.Fields); err == nil { // else nothing is known of it
			results[r.FID] = r
		}
	})
	if err != nil {
		return results, fmt.Errorf("trash on dev%d: %w", o.Dev, err)
	}
	return results, nil
}
