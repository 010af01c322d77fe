package drain

import (
	"fmt"
	"math/rand/v2"
	"slices"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/schema"
	"github.com/mogile/mogile/tracker/cluster"
	"github.com/mogile/mogile/tracker/placement"
)

// Reason is why a file is still on a device that is being emptied.
type Reason string

// The reasons. But for Waiting they are reasons why the file cannot be moved
// now.
const (
	Waiting      Reason = "waiting"                   // its turn has not come
	NotDeletable Reason = "device_not_deletable"      // the device, or its host, lets nothing be deleted
	NoCopy       Reason = "no_readable_copy"          // there is nothing to copy from
	NotIntact    Reason = "other_copies_not_intact"   // the policy would be satisfied if its other copies could be read, and were right
	NoDevice     Reason = "policy_finds_no_device"    // no other device satisfies the policy
	Unknown      Reason = "class_or_policy_not_known" // the file's class is gone, or its policy makes no sense
)

// Why says why a file is still on a device, and explains it in words for people.
// Broken are copies, or shards, that were found to be missing or wrong.
func Why(p placement.Policy, q placement.Question, from *cluster.Device, broken []protocol.DevID) (Reason, string) {
	if !from.LetsDelete() {
		host := "the device has no host"
		if from.Host != nil {
			host = fmt.Sprintf("host %s is %s", from.Host.Name, from.Host.Status)
		}
		return NotDeletable, fmt.Sprintf("nothing can be deleted from the device: it is %s, %s", from.Status, host)
	}
	if q.Encoded != nil {
		return whyShard(p, q, from, broken)
	}
	on := slices.Clone(q.On)
	var away []protocol.DevID // other copies that cannot be read, or are not right
	sources := 0
	for i := range on {
		on[i].Readable = on[i].Readable && !slices.Contains(broken, on[i].Device.ID)
		if on[i].Readable {
			sources++
		} else if on[i].Device.ID != from.ID {
			away = append(away, on[i].Device.ID)
		}
	}
	if sources == 0 {
		return NoCopy, "no copy can be read now, or none has the right length"
	}
	q.On = on
	if _, ok := placement.Away(p, q, from.ID, nil); ok {
		return Waiting, "its turn has not come"
	}
	for i := range on {
		on[i].Readable = true
	}
	if _, ok := placement.Away(p, q, from.ID, nil); ok {
		return NotIntact, fmt.Sprintf("the copy on dev%d cannot be read or is not right", away[0])
	}
	return NoDevice, fmt.Sprintf("%s, mindevcount %d, finds no other device", p, q.MinDevCount)
}

// whyShard is Why for a file that is kept in shards.
func whyShard(p placement.Policy, q placement.Question, from *cluster.Device, broken []protocol.DevID) (Reason, string) {
	now := *q.Encoded
	now.Shards = slices.Clone(now.Shards)
	for i, s := range now.Shards {
		now.Shards[i].Readable = s.Readable && !slices.Contains(broken, s.Device.ID)
	}
	q.Encoded = &now
	if _, ok := placement.Away(p, q, from.ID, nil); ok {
		return Waiting, "its turn has not come"
	}
	if n := now.Readable(); n < now.K {
		return NoCopy, fmt.Sprintf("%d of its shards can be read now, and %d are needed", n, now.K)
	}
	return NoDevice, fmt.Sprintf("no other device may have its shard: each has one, takes none, or is on a host that has %d", now.M)
}

// judge says why files are still on devices, by one snapshot.
type judge struct {
	snap      *cluster.Snapshot
	minFreeMB int64
	rng       *rand.Rand
	policies  map[*cluster.Class]placement.Policy // nil: one that makes no sense
	encodings map[protocol.FID]schema.Encoding    // of the files that are judged
}

func newJudge(snap *cluster.Snapshot, minFreeMB int64) *judge {
	return &judge{
		snap: snap, minFreeMB: minFreeMB, policies: make(map[*cluster.Class]placement.Policy),
		rng: rand.New(rand.NewPCG(1, 2)), // where a copy would go is not told
	}
}

func (j *judge) why(f schema.LocatedFile, from *cluster.Device, pending, broken []protocol.DevID) (Reason, string) {
	class := j.snap.Class(f.DMID, f.ClassID)
	if class == nil {
		return Unknown, fmt.Sprintf("there is no class %d in its domain", f.ClassID)
	}
	policy, known := j.policies[class]
	if !known {
		policy, _ = placement.ParsePolicy(class.ReplPolicy) // nil where it makes no sense
		j.policies[class] = policy
	}
	if policy == nil {
		return Unknown, fmt.Sprintf("the policy of class %s makes no sense: %q", class.Name, class.ReplPolicy)
	}
	q := placement.Question{
		Devices: j.snap.DeviceList, Skip: pending, MinDevCount: class.MinDevCount, MinFreeMB: j.minFreeMB, Rand: j.rng,
	}
	if e, ok := j.encodings[f.FID]; ok {
		q.Length, q.Encoded = f.Length, placement.EncodedAs(e, f.Devices, j.snap)
		return Why(policy, q, from, broken)
	}
	for _, d := range counting(j.snap, f) {
		q.On = append(q.On, placement.Placement{Device: d, Readable: d.Readable()})
	}
	return Why(policy, q, from, broken)
}

// counting are the devices of a file that count.
func counting(snap *cluster.Snapshot, f schema.LocatedFile) []*cluster.Device {
	var on []*cluster.Device
	for _, dev := range f.Devices {
		if d := snap.Device(dev); d != nil && !d.Dead() {
			on = append(on, d)
		}
	}
	return on
}
