package fsck

import (
	"slices"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/schema"
)

// arrange says where each shard of an encoding belongs from now on: where the
// encoding has it, but for those that were found whole elsewhere and are not
// whole where they should be. A shard that was found where another belongs
// changes places with that, so that no device gets two. seen are in a fixed
// order.
func arrange(e schema.Encoding, seen []observation) []protocol.DevID {
	at := make(map[protocol.DevID]int)
	for _, o := range seen {
		if o.state == intact {
			at[o.dev] = o.index
		}
	}
	devices := slices.Clone(e.Devices)
	for i := range devices {
		if has, ok := at[devices[i]]; ok && has == i {
			continue
		}
		found := slices.IndexFunc(seen, func(o observation) bool { return o.state == intact && o.index == i })
		if found < 0 {
			continue
		}
		if j := slices.Index(devices, seen[found].dev); j >= 0 {
			devices[i], devices[j] = devices[j], devices[i]
		} else {
			devices[i] = seen[found].dev
		}
	}
	return devices
}

// replaced is what is recorded, of a file that is on devs, once shards of its
// encoding were placed anew: devices that have no shard any more go.
func replaced(devs []protocol.DevID, e schema.Encoding, placed map[int]protocol.DevID) ([]protocol.DevID, *schema.Encoding) {
	was := e.Devices
	e.Devices = slices.Clone(was)
	for i, dev := range placed {
		e.Devices[i] = dev
	}
	devs = slices.DeleteFunc(slices.Clone(devs), func(d protocol.DevID) bool {
		return slices.Contains(was, d) && !slices.Contains(e.Devices, d)
	})
	for _, dev := range placed {
		if !slices.Contains(devs, dev) {
			devs = append(devs, dev)
		}
	}
	slices.Sort(devs)
	return devs, &e
}

// judgeShards says which shards of a file are good, and which of the copies that
// are recorded beside them. Shards that a search found are among the evidence.
func judgeShards(e evidence) verdict {
	enc := *e.encoding
	v := verdict{need: enc.K, epoch: enc.Epoch}
	var shards, raw []observation
	for _, o := range e.copies {
		if o.isShard {
			shards = append(shards, o)
		} else {
			raw = append(raw, o)
		}
	}
	if len(raw) > 0 {
		copies := judge(evidence{mode: e.mode, copies: raw})
		v.events, v.bad, v.forget, v.whole = copies.events, copies.bad, copies.forget, copies.good
	}
	devices := arrange(enc, shards)
	newest := enc.Epoch
	for _, o := range shards {
		stays := slices.Contains(devices, o.dev) // else another has its place
		switch {
		case o.state == intact && devices[o.index] == o.dev:
			v.good = append(v.good, o.dev)
			newest = max(newest, o.epoch)
			if o.epoch < enc.Epoch {
				v.behind = append(v.behind, o.dev)
			}
			continue
		case !slices.Contains(e.recorded, o.dev): // found, and of no use
			continue
		case o.state == onDead:
		case o.state == missing:
			v.events = append(v.events, event{CodeMissing, o.dev})
		case o.state == wrongSize:
			v.events = append(v.events, event{CodeLength, o.dev})
		default: // unreadable, or a second one of a shard that is where it belongs
			v.events = append(v.events, event{CodeBadSum, o.dev})
		}
		switch {
		case !stays:
		case o.state == onDead, o.state == missing:
			v.forget = append(v.forget, o.dev)
		default:
			v.bad = append(v.bad, o.dev)
		}
	}
	v.place(e, devices, newest)
	if e.content != nil && v.enough() {
		v.byContent(e)
	}
	return v
}

// place has recorded what differs from the encoding: shards that are elsewhere,
// that are not recorded, or whose headers know of a later placement, which never
// came to be.
func (v *verdict) place(e evidence, devices []protocol.DevID, newest int) {
	enc := *e.encoding
	v.placed = make(map[int]protocol.DevID)
	for i, dev := range devices {
		good, recorded := slices.Contains(v.good, dev), slices.Contains(e.recorded, dev)
		if dev == enc.Devices[i] && (recorded || !good) {
			continue
		}
		v.placed[i] = dev
		switch {
		case good:
			v.found = append(v.found, event{CodeFound, dev})
		case !recorded: // it has changed places with one that is
			v.forget = append(v.forget, dev)
		}
	}
	if len(v.placed) == 0 && newest > enc.Epoch {
		dev := v.good[0]
		v.placed[slices.Index(devices, dev)] = dev
	}
	if len(v.placed) > 0 {
		v.epoch = newest + 1
	}
}

// byContent compares what all shards together contain with what is stored of the
// file.
func (v *verdict) byContent(e evidence) {
	o := *e.content
	switch {
	case o.state != intact || o.rotten():
		v.events = append(v.events, event{code: CodeBadSum})
	case e.row.IsZero():
		v.sum = o.sum
		v.events = append(v.events, event{code: CodeNewSum})
	case !o.sum.Equal(e.row):
		v.events = append(v.events, event{code: CodeBadSum})
	case e.row.Type != e.digest && !e.mode.Content:
		v.events = append(v.events, event{code: CodeBadAlgorithm})
	}
}

// contentDigest is the algorithm by which all shards together are to be compared
// with the checksum that is stored, or one is to be made; HashNone where reading
// each shard says all.
func (m Mode) contentDigest(s subject) protocol.HashType {
	switch {
	case s.encoding == nil || m.digest(s.class, s.row) == protocol.HashNone:
		return protocol.HashNone
	case !s.row.IsZero():
		return s.row.Type
	case m.Checksum != off:
		return s.class
	}
	return protocol.HashNone
}

// readsShards reports whether the blocks of a file's shards are to be read.
func (m Mode) readsShards(s subject) bool {
	return s.encoding != nil && !m.PolicyOnly && (m.Blocks || m.digest(s.class, s.row) != protocol.HashNone)
}
