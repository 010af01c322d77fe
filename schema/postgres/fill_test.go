package postgres

import (
	"errors"
	"testing"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/schema"
	"github.com/mogile/mogile/schema/postgres/pgtest"
)

// TestFill: rows look as those of files do, take no fid that anybody has or gets,
// and go again.
func TestFill(t *testing.T) {
	t.Parallel()
	dsn := pgtest.DSN(t)
	migrate(t, dsn, schema.MigrateOptions{})
	s := open(t, Options{DSN: dsn})
	ctx := t.Context()
	err := s.Fill(ctx, Fill{Domain: "none", Files: 1, Copies: 1})
	if e, ok := errors.AsType[*protocol.Error](err); !ok || e.Code != "unreg_domain" {
		t.Errorf("a domain that is not there: %v", err)
	}
	dmid, err := s.CreateDomain(ctx, "d")
	if err != nil {
		t.Fatal(err)
	}
	host, err := s.CreateHost(ctx, schema.Host{Name: "h", Status: schema.HostAlive, IP: "127.0.0.1", Port: 7500})
	if err != nil {
		t.Fatal(err)
	}
	for dev := range protocol.DevID(3) {
		if err := s.CreateDevice(ctx, schema.Device{ID: dev + 1, HostID: host, Status: schema.DeviceAlive}); err != nil {
			t.Fatal(err)
		}
	}
	before, err := s.CreateTempfile(ctx, schema.Tempfile{DMID: dmid, Key: "u"})
	if err != nil {
		t.Fatal(err)
	}
	const files = 2500
	if err := s.Fill(ctx, Fill{Domain: "d", Files: files, Copies: 2, Length: 7, Prefix: "p/"}); err != nil {
		t.Fatal(err)
	}
	keys, err := s.ListKeys(ctx, dmid, "p/", "", files+1)
	if err != nil || len(keys) != files || keys[0] != "p/0000000001" || keys[files-1] != "p/0000002500" {
		t.Fatalf("%d keys, %v", len(keys), err)
	}
	f, devs, err := s.FileByKey(ctx, dmid, "p/0000000002")
	if err != nil || f.Length != 7 || f.DevCount != 2 || len(devs) != 2 || devs[0] == devs[1] || f.FID <= before {
		t.Errorf("%+v on %v, %v", f, devs, err)
	}
	s.fids.discard()
	after, err := s.CreateTempfile(ctx, schema.Tempfile{DMID: dmid, Key: "u"})
	if err != nil || after <= f.FID+files-2 {
		t.Errorf("fid %d was issued after %d to %d, %v", after, f.FID-1, f.FID+files-2, err)
	}
	if err := s.Fill(ctx, Fill{Domain: "d", Files: 1, Copies: 2, Prefix: "p/"}); err == nil {
		t.Error("keys were made twice")
	}
	if err := s.Fill(ctx, Fill{Domain: "d", Files: 1, Copies: 4, Prefix: "q/"}); err == nil {
		t.Error("four copies on three devices")
	}
	if n, err := s.Unfill(ctx, "d", "p/", nil); n != files || err != nil {
		t.Errorf("%d rows removed, %v", n, err)
	}
	if got, err := s.LocationsOf(ctx, []protocol.FID{f.FID}); err != nil || len(got) > 0 {
		t.Errorf("locations are left: %v, %v", got, err)
	}
}
