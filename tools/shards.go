package tools

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/mogile/mogile/protocol"
)

// shardsJSON is how a file is kept in shards.
type shardsJSON struct {
	Encoding string      `json:"encoding"`
	K        int         `json:"k"`
	M        int         `json:"m"`
	Block    int         `json:"block"`
	Readable int         `json:"readable"`         // shards within reach now
	Devices  int         `json:"survives_devices"` // how many of those may be lost; below 0: the file cannot be read now
	Hosts    int         `json:"survives_hosts"`   // how many hosts may be lost, whichever they are
	Shards   []shardJSON `json:"list"`
}

// shardJSON is one shard.
type shardJSON struct {
	Index    int            `json:"shard"`
	Device   protocol.DevID `json:"devid,omitempty"` // 0: it is missing
	Host     string         `json:"host,omitempty"`
	Status   string         `json:"status,omitempty"`         // of the device
	Observed string         `json:"observed_state,omitempty"` // of the device
	Readable bool           `json:"readable"`
}

// pictureOf puts together where the shards of a file are, and what the file
// survives.
func pictureOf(e protocol.FileEncoding, rows []deviceRow) *shardsJSON {
	p := &shardsJSON{Encoding: protocol.FormatEncoding(e.ID), K: e.K, M: e.M, Block: e.Block}
	hosts := make(map[string]int)
	for i, dev := range e.Devices {
		one := shardJSON{Index: i, Device: dev}
		if at := slices.IndexFunc(rows, func(d deviceRow) bool { return d.ID == dev }); dev != 0 && at >= 0 {
			d := rows[at]
			one.Host, one.Status, one.Observed = d.Host, d.Status, d.Observed
			one.Readable = d.Status != "dead" && d.Status != "down" && d.Observed != "unreachable"
		}
		if one.Readable {
			p.Readable++
			hosts[one.Host]++
		}
		p.Shards = append(p.Shards, one)
	}
	p.Devices = p.Readable - e.K
	left := p.Readable
	counts := make([]int, 0, len(hosts))
	for _, n := range hosts {
		counts = append(counts, n)
	}
	slices.SortFunc(counts, func(a, b int) int { return cmp.Compare(b, a) })
	for _, n := range counts { // the worst loses most shards first
		if left -= n; left < e.K {
			break
		}
		p.Hosts++
	}
	return p
}

// survives says in words what may be lost.
func (p *shardsJSON) survives() string {
	switch {
	case p.Devices < 0:
		return fmt.Sprintf("it cannot be read now: %d shards are within reach, it takes %d", p.Readable, p.K)
	case p.Devices == 0:
		return "no loss of a device"
	case p.Hosts == 0:
		return fmt.Sprintf("the loss of any %s, but not of any host", plural(p.Devices, "device"))
	}
	return fmt.Sprintf("the loss of any %s; of any %s", plural(p.Devices, "device"), plural(p.Hosts, "host"))
}

// plural is "1 device" or "2 devices".
func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return strconv.Itoa(n) + " " + what + "s"
}

// shardInfo describes a file that is kept in shards.
func shardInfo(s *session, f infoJSON, e protocol.FileEncoding) error {
	if err := s.out.pairs([][]string{
		{"key:", f.Key},
		{"domain:", f.Domain},
		{"class:", f.Class},
		{"fid:", f.FID.String()},
		{"length:", strconv.FormatInt(f.Length, 10)},
		{"checksum:", cmp.Or(f.Checksum, "none")},
		{"shards:", fmt.Sprintf("%d of %d: any %d of them are the file (%d+%d)", f.Shards.Readable, len(e.Devices), e.K, e.K, e.M)},
		{"survives:", f.Shards.survives()},
	}); err != nil {
		return err
	}
	rows := make([][]string, len(f.Shards.Shards))
	for i, one := range f.Shards.Shards {
		kind, device, seen := "data", "dev"+one.Device.String(), one.Observed
		if one.Index >= e.K {
			kind = "parity"
		}
		if one.Device == 0 {
			device, seen = "", "missing"
		}
		rows[i] = []string{strconv.Itoa(one.Index), kind, device, one.Host, one.Status, seen}
	}
	return s.out.table(strings.Fields(">shard is device host status seen"), rows)
}
