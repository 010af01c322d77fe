package storage

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/mogile/mogile/protocol"
)

// CapabilityShards is the word with which a storage daemon says that it makes,
// serves and drops shards.
const CapabilityShards = protocol.WordEC

// ShardError is why shards were not made, and on which side. Those that were to be
// written may be there, or not.
type ShardError struct {
	// Side is SourceError where the file, or too many of the shards that were to be
	// read, is at fault.
	Side Side
	Dev  protocol.DevID // which is at fault; 0: none in particular
	Err  error
}

// Error is the side and the reason.
func (e *ShardError) Error() string {
	if e.Dev == 0 {
		return e.Side.String() + ": " + e.Err.Error()
	}
	return fmt.Sprintf("%s of dev%d: %v", e.Side, e.Dev, e.Err)
}

// Unwrap is the reason.
func (e *ShardError) Unwrap() error { return e.Err }

// Encode has a storage daemon make shards of a file, at its HTTP port hostport, and
// returns when all of them are on disk. The daemon has checked length, checksum and
// the sum that was stored with the file while it read it. o.Rate is set by the
// client's own limit; alive, which may be nil, is called while the work gets on.
//
// Errors are a *ShardError, or match [ErrNoOrders], unless ctx was cancelled.
func (c *Client) Encode(ctx context.Context, hostport string, o protocol.EncodeOrder, alive func()) (protocol.EncodeReport, error) {
	// What crosses the network is more than the file.
	rate, done, err := c.copying.order(ctx, wide(o.Length, o.K, o.M), alive)
	if err != nil {
		return protocol.EncodeReport{}, fmt.Errorf("encode fid %d: %w", o.FID, err)
	}
	defer done()
	if rate > 0 {
		o.Rate = max(1, narrow(rate, o.K, o.M))
	}
	fields, err := c.longOrder(ctx, hostport, protocol.VerbEncode, o.Args(), o.Length, o.Rate, alive, nil)
	if err != nil {
		return protocol.EncodeReport{}, shardError(ctx, fmt.Errorf("encode fid %d: %w", o.FID, err))
	}
	report, err := protocol.ParseEncodeReport(fields)
	typ := o.HashType
	if !o.Want.IsZero() {
		typ = o.Want.Type
	}
	switch {
	case err != nil:
	case report.Length != o.Length:
		err = fmt.Errorf("%d bytes instead of %d are encoded", report.Length, o.Length)
	case report.Digest.Type != typ:
		err = fmt.Errorf("the digest is of type %s instead of %s", report.Digest.Type, typ)
	case !o.Want.IsZero() && !report.Digest.Equal(o.Want):
		err = fmt.Errorf("%s is encoded instead of %s", report.Digest, o.Want)
	}
	if err != nil {
		return protocol.EncodeReport{}, &ShardError{Side: DestError, Err: fmt.Errorf("encode fid %d: %w", o.FID, err)}
	}
	return report, nil
}

// wide is how many bytes k+m shards of length bytes have.
func wide(length int64, k, m int) int64 {
	return length + length/int64(k)*int64(m)
}

// narrow is how many bytes of a file k+m shards of n bytes have.
func narrow(n int64, k, m int) int64 { return n / int64(k+m) * int64(k) }

// Rebuild has a storage daemon make shards of others, at its HTTP port hostport, and
// returns what became of each, in the order of o.Writes. Errors are those of
// [Client.Encode]; where there is one nothing is known of any.
func (c *Client) Rebuild(ctx context.Context, hostport string, o protocol.RebuildOrder, alive func()) ([]protocol.ShardResult, protocol.RebuildReport, error) {
	fail := func(err error) ([]protocol.ShardResult, protocol.RebuildReport, error) {
		return nil, protocol.RebuildReport{}, err
	}
	rate, done, err := c.copying.order(ctx, o.Length, alive)
	if err != nil {
		return fail(fmt.Errorf("rebuild shards of fid %d: %w", o.FID, err))
	}
	defer done()
	o.Rate = rate
	var results []protocol.ShardResult
	var bad error
	fields, err := c.longOrder(ctx, hostport, protocol.VerbRebuild, o.Args(), o.Length, rate, alive, func(l protocol.AnswerLine) {
		if bad != nil {
			return
		}
		r, err := protocol.ParseShardResult(l.Fields)
		switch i := len(results); {
		case err != nil:
			bad = err
		case i == len(o.Writes) || r.Index != o.Writes[i].Index || r.Dev != o.Writes[i].Dev:
			bad = fmt.Errorf("a result for shard %d on dev%d was not asked for then: %w", r.Index, r.Dev, protocol.ErrBadReply)
		default:
			results = append(results, r)
		}
	})
	if err != nil {
		return fail(shardError(ctx, fmt.Errorf("rebuild shards of fid %d: %w", o.FID, err)))
	}
	report, err := protocol.ParseRebuildReport(fields)
	err = errors.Join(bad, err)
	if err == nil && len(results) < len(o.Writes) {
		err = fmt.Errorf("%d of %d results: %w", len(results), len(o.Writes), protocol.ErrBadReply)
	}
	if err != nil {
		return fail(&ShardError{Side: DestError, Err: fmt.Errorf("rebuild shards of fid %d at %s: %w: %w", o.FID, hostport, ErrUnreachable, err)})
	}
	return results, report, nil
}

// shardError says who is to blame for an order that was not carried out.
func shardError(ctx context.Context, err error) error {
	switch {
	case errors.Is(ctx.Err(), context.Canceled):
		return fmt.Errorf("%w: %w", err, context.Cause(ctx))
	case errors.Is(err, ErrNoOrders):
		return err
	}
	e := &ShardError{Side: DestError, Err: err}
	if o, ok := errors.AsType[*OrderError](err); ok {
		e.Dev = protocol.ParseShardFailure(o.Fields).Dev
		if errors.Is(err, protocol.ErrCopySource) || errors.Is(err, protocol.ErrCopyUnreachable) || errors.Is(err, protocol.ErrTooFewShards) {
			e.Side = SourceError
		}
	}
	return e
}

// longOrder is order for work on length bytes, at most rate a second where that is
// not 0. The daemon says each second that it works; that the work gets on is
// another matter, and found by what it says to have done. items gets the lines
// beside; it may be nil.
func (c *Client) longOrder(ctx context.Context, hostport, verb string, args protocol.Args, length, rate int64, alive func(), items func(protocol.AnswerLine)) (protocol.Args, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stall := stallFactor * c.o.CopyTimeout
	stalled := time.AfterFunc(stall, func() {
		cancel(fmt.Errorf("%s at %s: %w: no further byte for %v", verb, hostport, ErrUnreachable, stall))
	})
	defer stalled.Stop()
	var done int64
	within := stall + bodyPatience(length, c.o.CopyTimeout)
	if rate > 0 {
		within += time.Duration(float64(length) / float64(rate) * float64(time.Second))
	}
	fields, err := c.order(ctx, hostport, verb, args, within, c.o.CopyTimeout, func(l protocol.AnswerLine) {
		if l.Kind == protocol.AnswerItem {
			if items != nil {
				items(l)
			}
		} else if n := l.Fields.Number("done"); n != done {
			done = n
			stalled.Reset(stall)
		}
		if alive != nil {
			alive()
		}
	})
	if cause := context.Cause(ctx); err != nil && cause != nil && errors.Is(cause, ErrUnreachable) {
		err = cause // and not the cancelling of the request
	}
	return fields, err
}

// dropTime bounds an order to delete one copy or shard.
const dropTime = 30 * time.Second

// Drop has a storage daemon delete a copy of a file or a shard, and not the other,
// at its HTTP port hostport. Errors are those of [Client.List].
func (c *Client) Drop(ctx context.Context, hostport string, o protocol.DropOrder) (protocol.DropReport, error) {
	fields, err := c.order(ctx, hostport, protocol.VerbDrop, o.Args(), dropTime, c.o.CopyTimeout, nil)
	if err != nil {
		return protocol.DropReport{}, fmt.Errorf("drop the %s of fid %d on dev%d: %w", o.What, o.FID, o.Dev, err)
	}
	report, err := protocol.ParseDropReport(fields)
	if err != nil {
		return protocol.DropReport{}, fmt.Errorf("drop the %s of fid %d on dev%d at %s: %w: %w", o.What, o.FID, o.Dev, hostport, ErrUnreachable, err)
	}
	return report, nil
}

// peersTime bounds an order about where devices are, or for suspects.
const peersTime = 10 * time.Second

// TellPeers tells a storage daemon, at its HTTP port hostport, where all devices
// are, and returns which version counts there now. Errors are those of
// [Client.List].
func (c *Client) TellPeers(ctx context.Context, hostport string, o protocol.PeersOrder) (version int64, err error) {
	fields, err := c.order(ctx, hostport, protocol.VerbPeers, o.Args(), peersTime, c.o.CopyTimeout, nil)
	if err != nil {
		return 0, fmt.Errorf("tell where devices are: %w", err)
	}
	report, err := protocol.ParsePeersReport(fields)
	if err != nil {
		return 0, fmt.Errorf("tell %s where devices are: %w: %w", hostport, ErrUnreachable, err)
	}
	return report.Version, nil
}

// Suspects asks a storage daemon, at its HTTP port hostport, for up to limit shards
// that reads found missing or bad, which it forgets then. Errors are those of
// [Client.List]; what was told before is returned with them.
func (c *Client) Suspects(ctx context.Context, hostport string, limit int) ([]protocol.FIDOn, error) {
	var found []protocol.FIDOn
	var bad error
	_, err := c.order(ctx, hostport, protocol.VerbSuspects, protocol.SuspectsOrder{Limit: limit}.Args(), peersTime, c.o.CopyTimeout, func(l protocol.AnswerLine) {
		if l.Kind != protocol.AnswerItem || len(found) == limit {
			return
		}
		s, err := protocol.ParseSuspect(l.Fields)
		if err != nil {
			bad = err
			return
		}
		found = append(found, s.FIDOn)
	})
	if err == nil && bad != nil {
		err = fmt.Errorf("%s: %w: %w", hostport, ErrUnreachable, bad)
	}
	if err != nil {
		return found, fmt.Errorf("ask for suspects: %w", err)
	}
	return found, nil
}
