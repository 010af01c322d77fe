package tracker

import (
	"testing"
	"time"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/schema"
)

func TestOpenings(t *testing.T) {
	o := newOpenings()
	now := time.Unix(1e9, 0)
	if _, ok := o.take(1, now); ok {
		t.Error("an upload that nobody opened is remembered")
	}
	o.remember(schema.Tempfile{FID: 1, Key: "a"}, now)
	if row, ok := o.take(1, now.Add(openingLife-1)); !ok || row.Key != "a" {
		t.Errorf("%+v, %v", row, ok)
	}
	if _, ok := o.take(1, now); ok {
		t.Error("an upload is handed out twice")
	}
	o.remember(schema.Tempfile{FID: 2}, now)
	if _, ok := o.take(2, now.Add(openingLife)); ok {
		t.Error("an upload of long ago is remembered")
	}
	for fid := range protocol.FID(3 * maxOpenings) {
		o.remember(schema.Tempfile{FID: fid + 10}, now)
	}
	if len(o.rows) != maxOpenings || len(o.ring) != maxOpenings {
		t.Errorf("%d uploads and %d fids are remembered", len(o.rows), len(o.ring))
	}
	if _, ok := o.take(10, now); ok {
		t.Error("the first of too many is remembered")
	}
	if _, ok := o.take(3*maxOpenings+9, now); !ok {
		t.Error("the last is not")
	}
}
