package storage

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/mogile/mogile/protocol"
)

func shardsAt(indexes ...int) []protocol.ShardAt {
	at := make([]protocol.ShardAt, len(indexes))
	for i, index := range indexes {
		at[i] = protocol.ShardAt{Index: index, Peer: protocol.Peer{Dev: protocol.DevID(index + 5), URL: "http://127.0.0.1:7500"}}
	}
	return at
}

var codedSet = protocol.ShardSet{FID: 4, Encoding: 9, K: 2, M: 1, Block: 4096, Length: 100}

func TestEncode(t *testing.T) {
	t.Parallel()
	d := startDaemon(t)
	hostport := strings.TrimPrefix(d.URL, "http://")
	c := client(t, Options{Key: []byte("key")})
	order := protocol.EncodeOrder{ShardSet: codedSet, Dev: 5, Epoch: 1, Targets: shardsAt(0, 1, 2)}
	alive := 0
	for _, tt := range []struct {
		name, answer string
		side         Side
		dev          protocol.DevID
	}{
		{name: "done", answer: "PROGRESS done=50\nOK " + protocol.EncodeReport{Length: 100, CRC32C: 7}.Args().String() + "\n"},
		{"another length", "OK " + protocol.EncodeReport{Length: 99}.Args().String() + "\n", DestError, 0},
		{"nonsense", "OK length=x\n", DestError, 0},
		{"a target fails", "ERR dest_error it+is+full devid=6&full=1\n", DestError, 6},
		{"the file is bad", "ERR src_error rotten devid=5&corrupt=1\n", SourceError, 5},
		{"cut off", "PROGRESS done=1\n", DestError, 0},
	} {
		d.orders(func(o protocol.SignedOrder) string {
			if got, err := protocol.ParseEncodeOrder(o.Args); err != nil || !cmp.Equal(got, order) {
				t.Errorf("ordered %+v, %v", got, err)
			}
			return tt.answer
		})
		_, err := c.Encode(t.Context(), hostport, order, func() { alive++ })
		e, _ := errors.AsType[*ShardError](err)
		if (err != nil) != (tt.side != 0) || e != nil && (e.Side != tt.side || e.Dev != tt.dev) {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
	if alive == 0 {
		t.Error("it was not told of progress")
	}
	d.orders(func(protocol.SignedOrder) string { return "ERR bad_signature no \n" })
	if _, err := c.Encode(t.Context(), hostport, order, nil); !errors.Is(err, ErrNoOrders) {
		t.Errorf("with another key: %v", err)
	}
}

func TestRebuild(t *testing.T) {
	t.Parallel()
	d := startDaemon(t)
	hostport := strings.TrimPrefix(d.URL, "http://")
	c := client(t, Options{Key: []byte("key")})
	order := protocol.RebuildOrder{ShardSet: codedSet, Epoch: 2, Devices: []protocol.DevID{5, 6, 7}, Sources: shardsAt(0, 1), Writes: shardsAt(2)}
	ok := "OK " + protocol.RebuildReport{Read: 100, Written: 50, Bad: []int{1}}.Args().String() + "\n"
	for _, tt := range []struct {
		name, answer string
		side         Side
	}{
		{name: "done", answer: "ITEM devid=7&shard=2\n" + ok},
		{"no result", ok, DestError},
		{"of another shard", "ITEM devid=7&shard=1\n" + ok, DestError},
		{"too few shards", "ERR too_few_shards one \n", SourceError},
	} {
		d.orders(func(o protocol.SignedOrder) string {
			if got, err := protocol.ParseRebuildOrder(o.Args); err != nil || !cmp.Equal(got, order) {
				t.Errorf("ordered %+v, %v", got, err)
			}
			return tt.answer
		})
		results, report, err := c.Rebuild(t.Context(), hostport, order, nil)
		e, _ := errors.AsType[*ShardError](err)
		if (err != nil) != (tt.side != 0) || e != nil && e.Side != tt.side || (err == nil) != (len(results) == 1 && report.Written == 50) {
			t.Errorf("%s: %v, %+v, %v", tt.name, results, report, err)
		}
	}
}

func TestDropAndPeers(t *testing.T) {
	t.Parallel()
	d := startDaemon(t)
	hostport := strings.TrimPrefix(d.URL, "http://")
	c := client(t, Options{Key: []byte("key")})
	d.orders(func(o protocol.SignedOrder) string {
		switch o.Verb {
		case protocol.VerbDrop:
			return "OK result=missing\n"
		case protocol.VerbPeers:
			return "OK version=8\n"
		}
		return "ITEM at=4:7\nITEM at=5:7\nOK \n"
	})
	if r, err := c.Drop(t.Context(), hostport, protocol.DropOrder{FID: 4, Dev: 7, What: protocol.DropShard}); err != nil || r.Result != protocol.DropMissing {
		t.Errorf("drop: %+v, %v", r, err)
	}
	if v, err := c.TellPeers(t.Context(), hostport, protocol.PeersOrder{Version: 7, Peers: map[protocol.DevID]string{1: "http://127.0.0.1:1"}}); err != nil || v != 8 {
		t.Errorf("peers: %d, %v", v, err)
	}
	got, err := c.Suspects(t.Context(), hostport, 10)
	if diff := cmp.Diff([]protocol.FIDOn{{FID: 4, Dev: 7}, {FID: 5, Dev: 7}}, got); diff != "" || err != nil {
		t.Errorf("suspects: %v\n%s", err, diff)
	}
}
