package protocol_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/mogile/mogile/protocol"
)

func TestInventoryOrders(t *testing.T) {
	t.Parallel()
	at := time.Unix(1_700_000_000, 123_456_789)
	list := protocol.ListOrder{Dev: 7, After: "0000001.42", Limit: 500}
	for range 2 {
		if got, err := protocol.ParseListOrder(list.Args()); err != nil || got != list {
			t.Errorf("%+v, %v", got, err)
		}
		list.Shards = true
	}
	end := protocol.Listing{Next: "0000001.42", Foreign: 3, Unreadable: 1, Now: at.Truncate(time.Millisecond), Cluster: "c", UUID: "u"}
	got, err := protocol.ParseListing(end.Args())
	if diff := cmp.Diff(end, got); err != nil || diff != "" {
		t.Errorf("%v\n%s", err, diff)
	}
	trash := protocol.TrashOrder{Dev: 7, Files: []protocol.StoredFile{{FID: 1, Size: 0, ModTime: at}, {FID: protocol.MaxFID}, {FID: 3, Size: 9, ModTime: time.Unix(0, -1), Shard: true}}}
	gotTrash, err := protocol.ParseTrashOrder(trash.Args())
	if diff := cmp.Diff(trash, gotTrash); err != nil || diff != "" {
		t.Errorf("%v\n%s", err, diff)
	}
	result := protocol.TrashResult{FID: 42, What: protocol.Trashed, To: ".mogile/trash/1699999200/0000000042.fid"}
	for range 2 {
		if got, err := protocol.ParseTrashResult(result.Args()); err != nil || got != result {
			t.Errorf("%+v, %v", got, err)
		}
		result.Shard = true
	}
	full := protocol.TrashOrder{Dev: protocol.MaxDevID}
	for range protocol.MaxTrashed {
		full.Files = append(full.Files, protocol.StoredFile{FID: protocol.MaxFID, Size: 1<<63 - 1, ModTime: time.Unix(1<<33, 0), Shard: true})
	}
	if o := protocol.NewOrder(protocol.VerbTrash, at, time.Minute, full.Args()).Sign([]byte("key")); len(o) > protocol.MaxOrder {
		t.Errorf("the largest order has %d bytes", len(o))
	}
	for _, q := range []string{"", "devid=0&limit=1", "devid=32768&limit=1", "devid=1&limit=0", "devid=1&limit=10001", "devid=x&limit=1"} {
		if _, err := protocol.ParseListOrder(protocol.ParseArgs(q)); !errors.Is(err, protocol.ErrBadOrder) {
			t.Errorf("list %q: %v", q, err)
		}
	}
	for _, q := range []string{"", "devid=1", "devid=1&files=", "devid=1&files=0", "devid=1&files=1:2", "devid=1&files=1:-1:0", "devid=1&files=1,", "devid=1&files=01:1:1", "devid=1&files=1:ec", "devid=1&files=1:1:1:", "devid=1&files=1:1:1:ec:ec",
		"devid=1&files=" + strings.Repeat("1,", protocol.MaxTrashed) + "1"} {
		if _, err := protocol.ParseTrashOrder(protocol.ParseArgs(q)); !errors.Is(err, protocol.ErrBadOrder) {
			t.Errorf("trash %q: %v", q, err)
		}
	}
	for _, q := range []string{"", "now=1&foreign=1", "now=1&foreign=-1&unreadable=0", "now=x&foreign=1&unreadable=0"} {
		if _, err := protocol.ParseListing(protocol.ParseArgs(q)); !errors.Is(err, protocol.ErrBadReply) {
			t.Errorf("listing %q: %v", q, err)
		}
	}
	for _, q := range []string{"", "fid=0&result=x", "fid=1"} {
		if _, err := protocol.ParseTrashResult(protocol.ParseArgs(q)); !errors.Is(err, protocol.ErrBadReply) {
			t.Errorf("result %q: %v", q, err)
		}
	}
}

func FuzzParseStoredFile(f *testing.F) {
	for _, s := range []string{"1:0:0", "9223372036854775807:1:-1", "42:11:1700000000123456789", "42:11:1700000000123456789:ec", "1", "1:ec", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		file, err := protocol.ParseStoredFile(text)
		if err == nil && file.String() != text {
			t.Errorf("%q is read as %v", text, file)
		}
		_, _ = protocol.ParseTrashOrder(protocol.Args{{Name: "devid", Value: "1"}, {Name: "files", Value: text}})
	})
}
