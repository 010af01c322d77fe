package storage

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/mogile/mogile/protocol"
)

func TestShardStates(t *testing.T) {
	t.Parallel()
	d := startDaemon(t)
	hostport := strings.TrimPrefix(d.URL, "http://")
	c := client(t, Options{Key: []byte("key")})
	order := protocol.ShardStateOrder{Shards: []protocol.FIDOn{{FID: 4, Dev: 7}, {FID: 5, Dev: 7}}, Verify: true, Rate: 1 << 10}
	states := []protocol.ShardState{
		{FIDOn: order.Shards[0], What: protocol.ShardPresent, Set: protocol.ShardSet{FID: 4, Encoding: 9, K: 2, M: 1, Block: 4096, Length: 100}, Index: 2,
			Epoch: 3, Devices: []protocol.DevID{5, 6, 7}, CRC32C: 1, Sized: true, Verified: true, Blocks: 1},
		{FIDOn: order.Shards[1], What: protocol.ShardMissing},
	}
	item := func(s protocol.ShardState) string {
		return string(protocol.AnswerLine{Kind: protocol.AnswerItem, Fields: s.Args()}.Append(nil))
	}
	d.orders(func(o protocol.SignedOrder) string {
		if got, err := protocol.ParseShardStateOrder(o.Args); err != nil || !cmp.Equal(got, order) || o.Verify([][]byte{[]byte("key")}, time.Now()) != nil {
			t.Errorf("ordered %+v, %v", got, err)
		}
		// Two minutes at least, and what a MiB takes at that rate, twice.
		if life := o.Deadline.Sub(o.Issued); life < 30*time.Minute {
			t.Errorf("it has %v for a MiB at a KiB a second", life)
		}
		return item(states[0]) + "PROGRESS done=1\n" + item(states[1]) + "OK \n"
	})
	got, err := c.ShardStates(t.Context(), hostport, order, 1<<20)
	if diff := cmp.Diff(states, got); diff != "" || err != nil {
		t.Errorf("%v\n%s", err, diff)
	}
	for _, tt := range []struct {
		name, answer string
		want         error
	}{
		{"too few", item(states[0]) + "OK \n", ErrUnreachable},
		{"too many", item(states[0]) + item(states[1]) + item(states[1]) + "OK \n", ErrUnreachable},
		{"in another order", item(states[1]) + item(states[0]) + "OK \n", ErrUnreachable},
		{"nonsense", "ITEM at=4:7\n" + item(states[1]) + "OK \n", ErrUnreachable},
		{"no end", item(states[0]) + item(states[1]), ErrUnreachable},
		{"a verb that it does not have", "ERR unknown_verb no \n", ErrNoOrders},
	} {
		d.orders(func(protocol.SignedOrder) string { return tt.answer })
		if got, err := c.ShardStates(t.Context(), hostport, order, 1); !errors.Is(err, tt.want) || len(got) > 0 {
			t.Errorf("%s: %v, %v", tt.name, got, err)
		}
	}
}

func TestPlace(t *testing.T) {
	t.Parallel()
	d := startDaemon(t)
	hostport := strings.TrimPrefix(d.URL, "http://")
	c := client(t, Options{Key: []byte("key")})
	order := protocol.PlaceOrder{FID: 4, Encoding: 9, Epoch: 2, Devices: []protocol.DevID{5, 6, 7}}
	d.orders(func(o protocol.SignedOrder) string {
		if got, err := protocol.ParsePlaceOrder(o.Args); err != nil || !cmp.Equal(got, order) {
			t.Errorf("ordered %+v, %v", got, err)
		}
		return "ITEM devid=5&shard=0\nITEM devid=6&shard=1&code=device_sick&text=it+hangs\nOK \n"
	})
	want := []protocol.ShardResult{{Index: 0, Dev: 5}, {Index: 1, Dev: 6, Err: &protocol.Error{Code: "device_sick", Text: "it hangs"}}}
	got, err := c.Place(t.Context(), hostport, order)
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Errorf("%v\n%s", err, diff)
	}
	d.orders(func(protocol.SignedOrder) string { return "ITEM nonsense\nOK \n" })
	if _, err := c.Place(t.Context(), hostport, order); !errors.Is(err, ErrUnreachable) {
		t.Errorf("nonsense: %v", err)
	}
}
