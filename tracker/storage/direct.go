package storage

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"time"

	"github.com/mogile/mogile/protocol"
)

// CapabilityCopy is the word with which a storage daemon says that it fetches
// files from others when it is ordered to.
const CapabilityCopy = protocol.VerbCopy

// ErrNotDirect is matched where a destination cannot fetch a file by itself:
// it takes no orders from this tracker, or does not reach the source. Nothing
// has landed there.
var ErrNotDirect = errors.New("cannot be copied directly")

const (
	// notDirectFor is how long a pair of hosts between which a direct copy could
	// not be made is left in peace.
	notDirectFor = 5 * time.Minute
	// maxNotDirect bounds how many such pairs are remembered.
	maxNotDirect = 10_000
	// stallFactor is how many times CopyTimeout a direct copy may last without
	// another byte, while the destination says that it is at work: it waits for
	// its source or its disk with times of its own.
	stallFactor = 4
)

// CopyDirect has the destination fetch the file from the source, so that its
// bytes cross the network once, and returns the digest of what was copied (zero
// where none was asked for). The copy is good when it returns: the destination
// has checked length, checksum and, where the source is one of ours, the sum
// that this has stored, while it wrote; what it says to have landed is on its
// disk with a sum of its own. It is not read back as after [Client.Copy]: that
// guards against daemons that answer before, or without, writing.
//
// Errors are a *CopyError, or match ErrNotDirect, unless ctx was cancelled.
func (c *Client) CopyDirect(ctx context.Context, cp Copy) (protocol.Checksum, error) {
	sum, err := c.copyDirect(ctx, cp)
	if err != nil && errors.Is(ctx.Err(), context.Canceled) {
		return protocol.Checksum{}, fmt.Errorf("copy %s to %s: %w", cp.From, cp.To, context.Cause(ctx))
	}
	return sum, err
}

func (c *Client) copyDirect(ctx context.Context, cp Copy) (protocol.Checksum, error) {
	from, _, _, err := split(cp.From)
	if err != nil {
		return protocol.Checksum{}, &CopyError{Side: SourceError, Err: err}
	}
	to, _, path, err := split(cp.To)
	if err != nil {
		return protocol.Checksum{}, &CopyError{Side: DestError, Err: err}
	}
	dev, fid, err := protocol.ParsePath(path)
	if err != nil {
		return protocol.Checksum{}, &CopyError{Side: DestError, Err: err}
	}
	if c.isNotDirect(from, to) {
		return protocol.Checksum{}, ErrNotDirect
	}
	rate, done, err := c.copying.order(ctx, cp.Length, cp.Progress)
	if err != nil {
		return protocol.Checksum{}, &CopyError{Side: DestError, Err: err}
	}
	defer done()
	order := protocol.CopyOrder{FID: fid, Dev: dev, From: cp.From, Length: cp.Length, Want: cp.Want, HashType: cp.HashType, Rate: rate}
	report, err := c.sendCopy(ctx, to, order, cp.Progress)
	switch {
	case errors.Is(err, ErrNoOrders):
		if c.notDirect("", to) {
			c.o.Log.Warn().Err(err).Str("host", to).Msg("copies to a host go through this tracker for a while: it takes no orders from it")
		}
		return protocol.Checksum{}, fmt.Errorf("%w: %w", ErrNotDirect, err)
	case errors.Is(err, protocol.ErrCopyUnreachable):
		if c.notDirect(from, to) {
			c.o.Log.Info().Err(err).Str("from", from).Str("host", to).Msg("copies between two hosts go through this tracker for a while: one does not reach the other")
		}
		return protocol.Checksum{}, fmt.Errorf("%w: %w", ErrNotDirect, err)
	case err != nil:
		return protocol.Checksum{}, copyError(err)
	}
	if err := checkReport(order, report); err != nil {
		return protocol.Checksum{}, &CopyError{Side: DestError, Landed: true, Err: err}
	}
	return report.Digest, nil
}

// sendCopy gives the order to the host at to, and waits until it is carried out.
func (c *Client) sendCopy(ctx context.Context, to string, order protocol.CopyOrder, alive func()) (protocol.CopyReport, error) {
	fields, err := c.longOrder(ctx, to, protocol.VerbCopy, order.Args(), order.Length, order.Rate, alive, nil)
	if err != nil {
		return protocol.CopyReport{}, err
	}
	report, err := protocol.ParseCopyReport(fields)
	if err != nil {
		return report, fmt.Errorf("copy fid %d to dev%d: %w: %w", order.FID, order.Dev, ErrUnreachable, err)
	}
	return report, nil
}

// checkReport compares what has landed with what was ordered.
func checkReport(order protocol.CopyOrder, r protocol.CopyReport) error {
	typ := order.HashType
	if !order.Want.IsZero() {
		typ = order.Want.Type
	}
	switch {
	case r.Length != order.Length:
		return fmt.Errorf("copy fid %d to dev%d: %d bytes landed instead of %d", order.FID, order.Dev, r.Length, order.Length)
	case r.Digest.Type != typ:
		return fmt.Errorf("copy fid %d to dev%d: its digest is of type %s instead of %s", order.FID, order.Dev, r.Digest.Type, typ)
	case !order.Want.IsZero() && !r.Digest.Equal(order.Want):
		return fmt.Errorf("copy fid %d to dev%d: %s landed instead of %s", order.FID, order.Dev, r.Digest, order.Want)
	}
	return nil
}

// copyError says which side of a direct copy is to blame.
func copyError(err error) *CopyError {
	e := &CopyError{Side: DestError, Err: err, Landed: true} // for all that is known
	if o, ok := errors.AsType[*OrderError](err); ok {
		e.Landed = o.Fields.True("landed")
		if errors.Is(err, protocol.ErrCopySource) {
			e.Side = SourceError
		}
	}
	return e
}

// isNotDirect reports whether a direct copy between two hosts could not be made
// a while ago.
func (c *Client) isNotDirect(from, to string) bool {
	now := c.o.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	return now.Before(c.indirect[[2]string{from, to}]) || now.Before(c.indirect[[2]string{"", to}])
}

// notDirect remembers that one could not; from is empty where to takes no
// orders at all. It reports whether that is news.
func (c *Client) notDirect(from, to string) bool {
	now := c.o.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.indirect) >= maxNotDirect {
		maps.DeleteFunc(c.indirect, func(_ [2]string, until time.Time) bool { return !now.Before(until) })
		if len(c.indirect) >= maxNotDirect {
			clear(c.indirect)
		}
	}
	pair := [2]string{from, to}
	news := !now.Before(c.indirect[pair])
	c.indirect[pair] = now.Add(notDirectFor)
	return news
}
