package tools

import (
	"strings"
	"testing"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/protocol/protocoltest"
)

func TestPictureOf(t *testing.T) {
	t.Parallel()
	var rows []deviceRow
	for i := range 6 {
		d := deviceRow{Host: []string{"a", "b", "c"}[i/2]}
		d.ID, d.Status, d.Observed = protocol.DevID(i+1), "alive", "writeable"
		rows = append(rows, d)
	}
	rows[5].Status = "dead"
	for _, c := range []struct {
		name                     string
		k, m                     int
		devices                  []protocol.DevID
		down                     []int // rows that are seen as unreachable
		readable, devs, machines int
		says                     string
	}{
		{"all there", 3, 2, []protocol.DevID{1, 2, 3, 4, 5}, nil, 5, 2, 1, "the loss of any 2 devices; of any 1 host"},
		{"a host has more than may be lost", 4, 1, []protocol.DevID{1, 2, 3, 4, 5}, nil, 5, 1, 0, "the loss of any 1 device, but not of any host"},
		{"spread", 1, 2, []protocol.DevID{1, 3, 5}, nil, 3, 2, 2, "the loss of any 2 devices; of any 2 hosts"},
		{"one missing", 3, 2, []protocol.DevID{1, 0, 3, 4, 5}, nil, 4, 1, 0, "the loss of any 1 device, but not of any host"},
		{"one on a dead device", 3, 2, []protocol.DevID{1, 2, 3, 4, 6}, nil, 4, 1, 0, "the loss of any 1 device, but not of any host"},
		{"one on a device that nobody knows", 1, 1, []protocol.DevID{1, 99}, nil, 1, 0, 0, "no loss of a device"},
		{"too few", 3, 2, []protocol.DevID{1, 2, 3, 4, 5}, []int{0, 1, 4}, 2, -1, 0, "it cannot be read now: 2 shards are within reach, it takes 3"},
	} {
		seen := append([]deviceRow(nil), rows...)
		for _, i := range c.down {
			seen[i].Observed = "unreachable"
		}
		p := pictureOf(protocol.FileEncoding{ID: 1, K: c.k, M: c.m, Block: 1, Devices: c.devices}, seen)
		if p.Readable != c.readable || p.Devices != c.devs || p.Hosts != c.machines || p.survives() != c.says || len(p.Shards) != c.k+c.m {
			t.Errorf("%s: %+v, %q", c.name, p, p.survives())
		}
	}
}

func TestInfoOfShards(t *testing.T) {
	cluster := protocoltest.NewCluster(t, 1, 3)
	fields := protocol.ParseArgs("fid=42&domain=test&class=archive&key=cat&length=1000&devcount=2&devids=1,3")
	encoded := protocol.FileEncoding{ID: 0xabc, K: 2, M: 1, Block: 4096, Devices: []protocol.DevID{3, 0, 1}}
	cluster.Before(func(r protocol.Request) *protocoltest.Reply {
		if r.Command != "file_info" {
			return nil
		}
		return &protocoltest.Reply{Fields: append(fields, encoded.Args()...)}
	})
	code, out, stderr := run(t.Context(), cluster, "info", "cat")
	want := `key:       cat
domain:    test
class:     archive
fid:       42
length:    1000
checksum:  none
shards:    2 of 3: any 2 of them are the file (2+1)
survives:  no loss of a device
shard  is      device  host    status  seen
    0  data    dev3    store3  alive   writeable
    1  data                            missing
    2  parity  dev1    store1  alive   writeable
`
	if code != 0 || out != want {
		t.Errorf("code %d, %s\n%s", code, stderr, out)
	}
	code, out, _ = run(t.Context(), cluster, "--json", "info", "cat")
	if code != 0 || !strings.Contains(out, `"shards":{"encoding":"0000000000000abc","k":2,"m":1,"block":4096,"readable":2,"survives_devices":0,"survives_hosts":0,"list":[{"shard":0,"devid":3,"host":"store3",`) {
		t.Errorf("code %d\n%s", code, out)
	}
	for _, bad := range []string{
		"ec_encoding=1&ec_k=2&ec_m=1&ec_devids=1,2,3", "ec_encoding=0000000000000abc&ec_k=2&ec_m=1&ec_devids=1,2", "ec_encoding=0000000000000abc",
		"ec_encoding=0000000000000abc&ec_k=0&ec_m=1&ec_devids=1", "ec_encoding=0000000000000abc&ec_k=1&ec_m=1&ec_devids=1,x",
	} {
		cluster.Before(func(protocol.Request) *protocoltest.Reply {
			return &protocoltest.Reply{Fields: append(fields, protocol.ParseArgs(bad)...)}
		})
		if code, out, stderr := run(t.Context(), cluster, "info", "cat"); code == 0 || out != "" {
			t.Errorf("%s: code %d, %q, %q", bad, code, out, stderr)
		}
	}
}
