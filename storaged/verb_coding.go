package storaged

import (
	"context"
	"errors"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/storaged/coding"
)

// encode makes shards of a file.
func (d *Daemon) encode(ctx context.Context, o protocol.Order, to *orderer) (protocol.Args, error) {
	e, err := protocol.ParseEncodeOrder(o.Args)
	if err != nil {
		return nil, err
	}
	report, err := d.coding.Encode(ctx, e, to.progress)
	if failure, ok := errors.AsType[*coding.Error](err); ok {
		return failure.ShardFailure.Args(), failure
	}
	return report.Args(), nil
}

// rebuild makes shards of shards.
func (d *Daemon) rebuild(ctx context.Context, o protocol.Order, to *orderer) (protocol.Args, error) {
	r, err := protocol.ParseRebuildOrder(o.Args)
	if err != nil {
		return nil, err
	}
	results, report, err := d.coding.Rebuild(ctx, r, to.progress)
	if failure, ok := errors.AsType[*coding.Error](err); ok {
		return failure.ShardFailure.Args(), failure
	}
	for _, result := range results {
		if err := to.item(result.Args()); err != nil {
			return nil, err
		}
	}
	return report.Args(), nil
}

// place has shards note where all of them are.
func (d *Daemon) place(ctx context.Context, o protocol.Order, to *orderer) (protocol.Args, error) {
	p, err := protocol.ParsePlaceOrder(o.Args)
	if err != nil {
		return nil, err
	}
	for _, result := range d.coding.Place(ctx, p) {
		if err := to.item(result.Args()); err != nil {
			return nil, err
		}
	}
	return nil, nil
}

// shardState tells which shards there are.
func (d *Daemon) shardState(ctx context.Context, o protocol.Order, to *orderer) (protocol.Args, error) {
	s, err := protocol.ParseShardStateOrder(o.Args)
	if err != nil {
		return nil, err
	}
	return nil, d.coding.States(ctx, s, to.progress, func(state protocol.ShardState) error { return to.item(state.Args()) })
}

// drop deletes a copy or a shard, and not the other.
func (d *Daemon) drop(ctx context.Context, o protocol.Order, _ *orderer) (protocol.Args, error) {
	order, err := protocol.ParseDropOrder(o.Args)
	if err != nil {
		return nil, err
	}
	report, err := d.coding.Drop(ctx, order)
	if err != nil {
		return nil, orderErr(err)
	}
	return report.Args(), nil
}
