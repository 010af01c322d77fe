package storage

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/mogile/mogile/protocol"
)

const (
	// placeTime bounds an order to shards to note where their sisters are.
	placeTime = 30 * time.Second
	// verifySpeed, in bytes a second, is what a storage daemon is expected to verify
	// of shards at least, where no rate is given.
	verifySpeed = 1 << 20
	// stateTime bounds an order that asks for shards, beside what it takes to
	// verify them.
	stateTime = time.Minute
)

// ShardStates asks which shards are there, at the HTTP port hostport of the
// storage daemon that has the devices, and returns an answer for each, in the
// order of o. size is how large the shards to be verified are together, in
// bytes. Errors are those of [Client.List].
func (c *Client) ShardStates(ctx context.Context, hostport string, o protocol.ShardStateOrder, size int64) ([]protocol.ShardState, error) {
	within := stateTime
	if o.Verify {
		speed := int64(verifySpeed)
		if o.Rate > 0 {
			speed = min(speed, o.Rate)
		}
		within = min(within+time.Duration(2*float64(size)/float64(speed)*float64(time.Second)), protocol.MaxOrderLife-protocol.MaxClockSkew)
	}
	states := make([]protocol.ShardState, 0, len(o.Shards))
	var bad error
	_, err := c.order(ctx, hostport, protocol.VerbShardState, o.Args(), within, c.o.CopyTimeout, func(l protocol.AnswerLine) {
		if l.Kind != protocol.AnswerItem || bad != nil {
			return
		}
		s, err := protocol.ParseShardState(l.Fields)
		switch {
		case err != nil:
			bad = err
		case len(states) == len(o.Shards) || s.FIDOn != o.Shards[len(states)]:
			bad = fmt.Errorf("the state of %s was not asked for then: %w", s.FIDOn, protocol.ErrBadReply)
		default:
			states = append(states, s)
		}
	})
	if err != nil {
		return nil, fmt.Errorf("states of %d shards: %w", len(o.Shards), err)
	}
	if bad == nil && len(states) < len(o.Shards) {
		bad = fmt.Errorf("%d of %d states: %w", len(states), len(o.Shards), protocol.ErrBadReply)
	}
	if bad != nil {
		return nil, fmt.Errorf("states of shards at %s: %w: %w", hostport, ErrUnreachable, bad)
	}
	return states, nil
}

// Place has the shards of an encoding that a storage daemon has note where all
// of them are now, and returns what became of each that is there. Errors are
// those of [Client.List].
func (c *Client) Place(ctx context.Context, hostport string, o protocol.PlaceOrder) ([]protocol.ShardResult, error) {
	var results []protocol.ShardResult
	var bad error
	_, err := c.order(ctx, hostport, protocol.VerbPlace, o.Args(), placeTime, c.o.CopyTimeout, func(l protocol.AnswerLine) {
		if l.Kind != protocol.AnswerItem || len(results) == protocol.MaxShards {
			return
		}
		r, err := protocol.ParseShardResult(l.Fields)
		bad = errors.Join(bad, err)
		results = append(results, r)
	})
	if err != nil {
		return nil, fmt.Errorf("place the shards of fid %d: %w", o.FID, err)
	}
	if bad != nil {
		return nil, fmt.Errorf("place the shards of fid %d at %s: %w: %w", o.FID, hostport, ErrUnreachable, bad)
	}
	return results, nil
}
