package schema

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/mogile/mogile/protocol"
)

func TestEncodingCheck(t *testing.T) {
	t.Parallel()
	good := Encoding{FID: 7, ID: 9, K: 2, M: 1, Block: 4096, Epoch: 1, Devices: []protocol.DevID{3, 1, 4}}
	if err := good.Check(); err != nil {
		t.Errorf("%+v: %v", good, err)
	}
	for name, change := range map[string]func(*Encoding){
		"no fid":              func(e *Encoding) { e.FID = 0 },
		"no id":               func(e *Encoding) { e.ID = 0 },
		"no data shards":      func(e *Encoding) { e.K = 0 },
		"too many":            func(e *Encoding) { e.K = protocol.MaxDataShards + 1 },
		"no parity":           func(e *Encoding) { e.M = 0 },
		"too much parity":     func(e *Encoding) { e.M = protocol.MaxParityShards + 1 },
		"no block":            func(e *Encoding) { e.Block = 0 },
		"too large a block":   func(e *Encoding) { e.Block = protocol.MaxShardBlock + 1 },
		"no epoch":            func(e *Encoding) { e.Epoch = 0 },
		"no devices":          func(e *Encoding) { e.Devices = nil },
		"a device too few":    func(e *Encoding) { e.Devices = e.Devices[:2] },
		"two on a device":     func(e *Encoding) { e.Devices[2] = 3 },
		"device 0":            func(e *Encoding) { e.Devices[0] = 0 },
		"a device too many":   func(e *Encoding) { e.Devices = append(e.Devices, 8) },
		"one twice, one more": func(e *Encoding) { e.Devices = append(e.Devices, 3) },
	} {
		e := good
		e.Devices = slices.Clone(good.Devices)
		change(&e)
		if err := e.Check(); err == nil {
			t.Errorf("%s: %+v passes", name, e)
		}
	}
}

func TestEncodingPlace(t *testing.T) {
	t.Parallel()
	was := Encoding{FID: 7, ID: 9, K: 2, M: 1, Block: 4096, Epoch: 4, Devices: []protocol.DevID{3, 1, 4}}
	type placed = map[int]protocol.DevID
	for name, c := range map[string]struct {
		placed          placed
		epoch           int
		seen            []protocol.DevID
		want, now, left []protocol.DevID // nil: refused
	}{
		"moved":             {placed{1: 5}, 5, []protocol.DevID{1, 3, 4}, []protocol.DevID{3, 5, 4}, []protocol.DevID{3, 4, 5}, []protocol.DevID{1}},
		"made where it was": {placed{0: 3}, 5, []protocol.DevID{1, 4}, []protocol.DevID{3, 1, 4}, []protocol.DevID{1, 3, 4}, nil},
		"made elsewhere":    {placed{0: 6}, 5, []protocol.DevID{1, 4}, []protocol.DevID{6, 1, 4}, []protocol.DevID{1, 4, 6}, nil},
		"exchanged":         {placed{0: 1, 1: 3}, 9, []protocol.DevID{1, 3, 4}, []protocol.DevID{1, 3, 4}, []protocol.DevID{1, 3, 4}, nil},
		"a stranger stays":  {placed{1: 5}, 5, []protocol.DevID{1, 3, 4, 8}, []protocol.DevID{3, 5, 4}, []protocol.DevID{3, 4, 5, 8}, []protocol.DevID{1}},
		"two on a device":   {placed: placed{1: 3}, epoch: 5},
		"no such shard":     {placed: placed{3: 5}, epoch: 5},
		"the same epoch":    {placed: placed{1: 5}, epoch: 4},
	} {
		e, err := was.Place(c.placed, c.epoch)
		if c.want == nil {
			if !errors.Is(err, ErrStale) {
				t.Errorf("%s: %v; want ErrStale", name, err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		now, left := e.Locations(was, c.placed, c.seen)
		for _, d := range []string{cmp.Diff(c.want, e.Devices), cmp.Diff(c.now, now), cmp.Diff(c.left, left)} {
			if d != "" {
				t.Errorf("%s (-want +got):\n%s", name, d)
			}
		}
	}
	if !slices.Equal(was.Devices, []protocol.DevID{3, 1, 4}) {
		t.Errorf("what was is %v now", was.Devices)
	}
}

func FuzzParseShardDevices(f *testing.F) {
	for _, s := range []string{"", "1", "3,1,4", "1,,2", "0", "1, 2", "+1", "-1", "99999999999", strings.Repeat("1,", 48), "1,2,"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		devs, err := ParseShardDevices(text)
		if err != nil {
			return
		}
		if len(devs) > protocol.MaxShards || slices.Contains(devs, 0) {
			t.Errorf("%q: %v", text, devs)
		}
		again, err := ParseShardDevices(Encoding{Devices: devs}.DeviceText())
		if err != nil || !slices.Equal(devs, again) {
			t.Errorf("%q: %v, then %v, %v", text, devs, again, err)
		}
	})
}
