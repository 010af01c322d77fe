package placement

import (
	"slices"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/tracker/cluster"
)

// Away decides where the next copy of a file goes whose copy on from is to be
// dropped, nil where the others satisfy the policy. Copies go only to the
// devices in to, where that is not empty, though the policy judges by the whole
// cluster. ok is false, and nothing should be copied, where the policy is not
// satisfied in the end by copies that can be read without the one on from.
//
// Of an encoded file it is the shard on from that moves, to next, which is not nil
// then; and ok is false, too, where the shards that can be read are not enough, or
// the loss of a host would cost more than before that is beyond repair, and need not
// if other devices of the cluster took shards.
//
// It does not say whether the device lets anything be deleted, nor whether there
// is a copy to read from.
func Away(p Policy, q Question, from protocol.DevID, to []protocol.DevID) (next *cluster.Device, ok bool) {
	if q.Encoded != nil {
		return awayShard(q, from, to)
	}
	p = forCopies(p) // that it should be shards does not keep its device from being emptied
	q.On = without(q.On, from)
	q.Skip = append(slices.Clone(q.Skip), from)
	if len(to) > 0 {
		for _, d := range q.Devices {
			if !slices.Contains(to, d.ID) {
				q.Skip = append(q.Skip, d.ID)
			}
		}
	}
	for range len(q.Devices) + 1 {
		switch plan := p.Decide(q); plan.Verdict {
		case Good, TooGood:
			return next, Satisfied(p, q, func(c Placement) bool { return c.Readable })
		case Copy:
			d := plan.Target()
			if next == nil {
				next = d
			}
			q.On = append(q.On, Placement{Device: d, Readable: true})
		default:
			return nil, false
		}
	}
	return nil, false
}

// Satisfied reports whether those copies of q.On that count satisfy the policy, as
// long as the file is copies.
// A copy that somebody wants moved may go where the others do: [MayDrop] is
// stricter, and would keep the last device of a host from being emptied.
func Satisfied(p Policy, q Question, counts func(Placement) bool) bool {
	q.On = slices.DeleteFunc(slices.Clone(q.On), func(c Placement) bool { return !counts(c) })
	if len(q.On) == 0 || q.Encoded != nil {
		return false
	}
	v := forCopies(p).Decide(q).Verdict
	return v == Good || v == TooGood
}
