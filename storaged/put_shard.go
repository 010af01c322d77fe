package storaged

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/storaged/coding"
	"github.com/mogile/mogile/storaged/erasure"
	"github.com/mogile/mogile/storaged/volume"
)

// putShard stores a shard. Its path is that of a file which clients read, so that
// only who has the cluster key may write there: the request has an order for it.
// One upload to the path is under way at a time, and a DELETE of the path ends it.
func (p *plane) putShard(ctx context.Context, r *request, t target, fid protocol.FID) answer {
	order, err := p.orders.permit(r, t.dev, fid)
	if err != nil {
		return refusedShard(http.StatusForbidden, err)
	}
	if len(r.contentRange) > 0 || r.length < 0 {
		return answer{status: http.StatusBadRequest, close: true}
	}
	sum, err := newBodySum(r)
	if err != nil {
		return answer{status: http.StatusBadRequest, close: true, err: err}
	}
	ctx, end, err := p.transfers.Enter(ctx, t.dev, t.name)
	if err != nil {
		return answer{status: http.StatusConflict, close: true, err: err}
	}
	defer end()
	defer context.AfterFunc(ctx, r.cut)()
	v, err := p.docroot.Volume(t.dev)
	if err != nil {
		return failed(err)
	}
	if u, err := v.Usage(); err == nil && r.length > u.Total*1024 {
		return failed(fmt.Errorf("%d bytes: %w", r.length, volume.ErrNoSpace))
	}
	switch err := coding.Vacant(ctx, v, order); {
	case errors.Is(err, coding.ErrTaken):
		return refusedShard(http.StatusConflict, err)
	case err != nil:
		return failed(err)
	}
	up, err := v.CreateSumless(ctx, t.name)
	if err != nil {
		return failed(err)
	}
	defer up.Abort()
	err = p.receive(r, sum, func(b []byte) (int, error) {
		if ctx.Err() != nil {
			return 0, context.Cause(ctx)
		}
		if up.Size() == 0 {
			if err := isShard(order, b, r.length); err != nil {
				return 0, err
			}
		}
		return up.Write(b)
	})
	switch {
	case err == nil && up.Size() == 0:
		err = errNotShard
	case err == nil:
		err = up.Commit(ctx)
	}
	switch {
	case ctx.Err() != nil: // it was deleted meanwhile
		return answer{status: http.StatusConflict, close: true, err: context.Cause(ctx)}
	case errors.Is(err, errNotShard):
		return refusedShard(http.StatusBadRequest, err)
	case err != nil:
		return failed(err)
	}
	return answer{status: http.StatusCreated}
}

// refusedShard says why a shard is not wanted: who sends it tells a tracker.
func refusedShard(status int, err error) answer {
	text := []byte(err.Error())
	return answer{status: status, close: true, err: err, text: text, size: int64(len(text))}
}

// errNotShard is matched by errors that say that a body is not the shard which the
// order is for.
var errNotShard = errors.New("the body is not the shard that the order is for")

// isShard says why a body of length bytes that begins with b is not the shard.
func isShard(order protocol.ShardOrder, b []byte, length int64) error {
	h, err := erasure.ParseHeader(b)
	switch {
	case err != nil:
		return fmt.Errorf("%w: %w", errNotShard, err)
	case h.FID != order.FID || h.Encoding != order.Encoding || h.Index != order.Index:
		return fmt.Errorf("%w: it is shard %d of encoding %016x of fid %d", errNotShard, h.Index, h.Encoding, h.FID)
	case length != h.Layout().ShardSize():
		return fmt.Errorf("%w: it has %d bytes instead of %d", errNotShard, length, h.Layout().ShardSize())
	}
	return nil
}
