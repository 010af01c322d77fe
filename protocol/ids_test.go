package protocol_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/mogile/mogile/protocol"
)

// The table of the storage daemons' specification.
func TestFIDPath(t *testing.T) {
	for fid, want := range map[protocol.FID]string{
		1:                 "dev1/0/000/000/0000000001.fid",
		5:                 "dev1/0/000/000/0000000005.fid",
		999:               "dev1/0/000/000/0000000999.fid",
		1000:              "dev1/0/000/001/0000001000.fid",
		148056:            "dev1/0/000/148/0000148056.fid",
		1234567:           "dev1/0/001/234/0001234567.fid",
		2147483632:        "dev1/2/147/483/2147483632.fid",
		4294967296:        "dev1/4/294/967/4294967296.fid",
		9999999999:        "dev1/9/999/999/9999999999.fid",
		12345678901:       "dev1/1/234/567/12345678901.fid",
		52048709162819278: "dev1/5/204/870/52048709162819278.fid",
		protocol.MaxFID:   "dev1/9/223/372/9223372036854775807.fid",
	} {
		if got := fid.Path(1); got != want {
			t.Errorf("fid %d: %q, want %q", fid, got, want)
		}
		for _, slashes := range []string{"", "/", "//"} {
			dev, got, err := protocol.ParsePath(slashes + want)
			if err != nil || dev != 1 || got != fid {
				t.Errorf("%q: dev%d, fid %d, %v", slashes+want, dev, got, err)
			}
			if _, _, err := protocol.ParseShardPath(slashes + want); !errors.Is(err, protocol.ErrNotFIDPath) {
				t.Errorf("%q is taken for a shard's: %v", slashes+want, err)
			}
			shard := strings.TrimSuffix(want, ".fid") + ".ec"
			if got := fid.ShardPath(1); got != shard {
				t.Errorf("shard of fid %d: %q, want %q", fid, got, shard)
			}
			if dev, got, err := protocol.ParseShardPath(slashes + shard); err != nil || dev != 1 || got != fid {
				t.Errorf("%q: dev%d, fid %d, %v", slashes+shard, dev, got, err)
			}
		}
	}
	if got := protocol.FID(42).Path(32767); got != "dev32767/0/000/000/0000000042.fid" {
		t.Error(got)
	}
	if fmt.Sprint(protocol.FID(7), protocol.DevID(8)) != "7 8" {
		t.Error("numbers are printed otherwise")
	}
}

func TestParsePathRefuses(t *testing.T) {
	for _, path := range []string{
		"", "/", "dev1", "dev1/", "dev1/usage", "dev1/test-write/test-write-1",
		"dev0/0/000/000/0000000001.fid",
		"dev01/0/000/000/0000000001.fid",
		"dev-1/0/000/000/0000000001.fid",
		"dev16777216/0/000/000/0000000001.fid",
		"Dev1/0/000/000/0000000001.fid",
		"1/0/000/000/0000000001.fid",
		"dev1/0/000/000/0000000000.fid",
		"dev1/0/000/000/1.fid",
		"dev1/0/000/000/00000000001.fid",
		"dev1/0/000/001/0000000001.fid",
		"dev1/0/000/000/0000000001",
		"dev1/0/000/000/0000000001.ec",
		"dev1/0/000/000/0000000001.fid/",
		"dev1//0/000/000/0000000001.fid",
		"dev1/../dev1/0/000/000/0000000001.fid",
		"dev1/0/000/000/000000000x.fid",
		"dev1/9/223/372/9223372036854775808.fid",
		"dev1/1/844/674/18446744073709551616.fid",
		"dev1/0/000/000/0000000001.fid\x00",
		"dev1/0/000/000/+000000001.fid",
	} {
		if dev, fid, err := protocol.ParsePath(path); !errors.Is(err, protocol.ErrNotFIDPath) {
			t.Errorf("%q: dev%d, fid %d, %v", path, dev, fid, err)
		}
	}
}

func TestPathRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		fid := protocol.FID(rapid.Uint64Range(1, protocol.MaxFID).Draw(t, "fid"))
		dev := protocol.DevID(rapid.Uint32Range(1, 1<<24-1).Draw(t, "dev"))
		gotDev, gotFID, err := protocol.ParsePath(fid.Path(dev))
		if err != nil || gotDev != dev || gotFID != fid {
			t.Fatalf("%s: dev%d, fid %d, %v", fid.Path(dev), gotDev, gotFID, err)
		}
		gotDev, gotFID, err = protocol.ParseShardPath(fid.ShardPath(dev))
		if err != nil || gotDev != dev || gotFID != fid {
			t.Fatalf("%s: dev%d, fid %d, %v", fid.ShardPath(dev), gotDev, gotFID, err)
		}
	})
}

func TestCutDevice(t *testing.T) {
	for _, c := range []struct {
		in   string
		dev  protocol.DevID
		rest string
		ok   bool
	}{
		{"dev7", 7, "", true},
		{"dev7/", 7, "", true},
		{"dev7/a/b", 7, "a/b", true},
		{"dev16777215/x", 16777215, "x", true},
		{"dev16777216/x", 0, "x", false},
		{"dev99999999999999999999/x", 0, "x", false},
		{"dev/x", 0, "x", false},
		{"dev 7/x", 0, "x", false},
		{"dev7x/x", 0, "x", false},
		{"/dev7/x", 0, "dev7/x", false},
		{"", 0, "", false},
	} {
		dev, rest, ok := protocol.CutDevice(c.in)
		if dev != c.dev || ok != c.ok || ok && rest != c.rest {
			t.Errorf("%q: dev%d, %q, %v", c.in, dev, rest, ok)
		}
	}
}
