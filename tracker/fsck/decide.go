package fsck

import (
	"cmp"
	"slices"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/schema"
)

// Codes of events, those of MogileFS 2.73.
const (
	CodeNoPaths      = "NOPA" // no locations are recorded
	CodePolicy       = "POVI" // the locations are not as the policy wants them
	CodeMissing      = "MISS" // a recorded device does not have the file
	CodeLength       = "BLEN" // a recorded device has it with another length
	CodeSearch       = "SRCH" // no good copy where one is recorded: all devices are searched
	CodeFound        = "FOND" // the search found a copy
	CodeGone         = "GONE" // it found none
	CodeReplicate    = "REPL" // queued for replication
	CodeCount        = "BCNT" // devcount was wrong
	CodeBadSum       = "BSUM" // a copy (where a device is named), or all of them, are not what they should be
	CodeNewSum       = "NSUM" // a checksum that the class wants was not stored, and is now
	CodeManySums     = "MSUM" // copies differ, and nothing tells which is right
	CodeBadAlgorithm = "BALG" // the stored checksum is of another algorithm than the class's
)

// Mode is what a check looks at.
type Mode struct {
	// PolicyOnly leaves the devices alone: only what the database says is
	// checked, and checksums that are missing in it are made.
	PolicyOnly bool
	// Checksum is the setting fsck_checksum: empty (files of classes with a hash
	// type are digested), "off" (none are), or the name of an algorithm (all are,
	// by their class's algorithm, else by this one).
	Checksum string
	// Content has the content of every copy read: scrub.
	Content bool
}

// off is fsck_checksum's word for no checksums.
const off = "off"

// named is the algorithm that fsck_checksum names, HashNone where it names none.
func (m Mode) named() protocol.HashType {
	t, _ := protocol.ParseHashType(m.Checksum)
	return t
}

// digest is the algorithm by which the copies of a file are to be compared, and
// HashNone where their content is not to be read. class is the file's class's,
// row the checksum that is stored.
func (m Mode) digest(class protocol.HashType, row protocol.Checksum) protocol.HashType {
	missing := class != protocol.HashNone && row.IsZero()
	switch {
	case m.Content && !row.IsZero():
		return row.Type
	case m.Content && class != protocol.HashNone:
		return class
	case m.Content:
		return protocol.HashMD5 // what daemons of every make can
	case m.Checksum == off, m.PolicyOnly && !missing:
		return protocol.HashNone
	case class != protocol.HashNone:
		return class
	case m.PolicyOnly:
		return protocol.HashNone
	}
	return m.named()
}

// state is what was found of a copy where it is recorded.
type state int

const (
	unasked    state = iota // its device could not be asked
	intact                  // there, and of the right length
	missing                 // not there
	wrongSize               // there with another length
	unreadable              // of the right length, and the device cannot read it
	onDead                  // its device is dead
)

// observation is what was found of one copy.
type observation struct {
	dev   protocol.DevID
	state state
	// Of a copy whose content was read: what its storage daemon noted when it wrote
	// the copy, nil where there is no note; and of an intact one its digest, and
	// what was found now, nil where a daemon of another make gave nothing but the digest.
	sum              protocol.Checksum
	stored, computed *protocol.ContentSum
}

// rotten reports whether the copy is not what its storage daemon once wrote.
func (o observation) rotten() bool {
	return o.stored != nil && o.computed != nil && *o.stored != *o.computed
}

// evidence is all that a verdict on a file's copies goes by.
type evidence struct {
	mode   Mode
	class  protocol.HashType // the class's
	row    protocol.Checksum // the stored one, zero where there is none
	digest protocol.HashType // by which the copies were compared, HashNone where only their lengths were looked at
	copies []observation
}

// event is a line of fsck_log about a file; dev is 0 where no device is meant.
type event struct {
	code string
	dev  protocol.DevID
}

// verdict is what is to be made of a file's copies.
type verdict struct {
	events []event
	good   []protocol.DevID  // known to be right
	bad    []protocol.DevID  // known to be wrong, their bytes still there
	forget []protocol.DevID  // there are no bytes, or nobody counts on them
	sum    protocol.Checksum // to be stored, zero where there is nothing to
}

// clean reports whether there is nothing to say and nothing to do.
func (v verdict) clean() bool {
	return len(v.events) == 0 && len(v.bad) == 0 && len(v.forget) == 0 && v.sum.IsZero()
}

// droppable are the bad copies that may be taken out of service: all of them
// while there is a good one, else none.
func (v verdict) droppable() []protocol.DevID {
	if len(v.good) == 0 {
		return nil
	}
	return v.bad
}

// judge says which copies are good.
func judge(e evidence) verdict {
	var v verdict
	var whole []observation
	for _, o := range e.copies {
		switch o.state {
		case onDead:
			v.forget = append(v.forget, o.dev)
		case missing:
			v.events = append(v.events, event{CodeMissing, o.dev})
			v.forget = append(v.forget, o.dev)
		case wrongSize:
			v.events = append(v.events, event{CodeLength, o.dev})
			v.bad = append(v.bad, o.dev)
		case unreadable:
			v.condemn(o.dev)
		case intact:
			whole = append(whole, o)
		}
	}
	switch {
	case len(whole) == 0:
	case e.digest == protocol.HashNone:
		v.accept(whole)
	case e.row.Type == e.digest:
		v.byRow(e, whole)
	default:
		v.byTestimony(e, whole)
	}
	return v
}

func (v *verdict) accept(copies []observation) {
	for _, o := range copies {
		v.good = append(v.good, o.dev)
	}
}

// condemn names a bad copy.
func (v *verdict) condemn(dev protocol.DevID) {
	v.events = append(v.events, event{CodeBadSum, dev})
	v.bad = append(v.bad, dev)
}

// byRow compares with the stored checksum, which is the last word: it came from
// whoever stored the file, or from when all copies were equal.
func (v *verdict) byRow(e evidence, copies []observation) {
	good := slices.ContainsFunc(copies, func(o observation) bool { return o.sum.Equal(e.row) })
	if !good {
		v.undecided(CodeBadSum, copies)
		return
	}
	v.split(copies, func(o observation) bool { return o.sum.Equal(e.row) })
}

// split accepts the copies of which right is true, and condemns the others.
func (v *verdict) split(copies []observation, right func(observation) bool) {
	for _, o := range copies {
		if right(o) {
			v.good = append(v.good, o.dev)
		} else {
			v.condemn(o.dev)
		}
	}
}

// undecided says that no copy is known to be good. Those that rotted are named;
// all stay.
func (v *verdict) undecided(code string, copies []observation) {
	v.events = append(v.events, event{code: code})
	for _, o := range copies {
		if o.rotten() {
			v.condemn(o.dev)
		}
	}
}

// byTestimony compares where no checksum is stored that could be compared with.
// What storage daemons noted when they wrote their copies tells what the content
// was: if they all say the same, copies that have it are good and others bad,
// whether those have a note themselves or not. If they contradict each other
// nothing is known. Without any note the copies are good if they are equal; if
// they are not, only scrub goes by the majority, and only by one that leaves no
// doubt: see [majority].
func (v *verdict) byTestimony(e evidence, copies []observation) {
	code := CodeBadSum
	if e.row.IsZero() && (e.mode.Content || e.mode.named() != protocol.HashNone) {
		code = CodeManySums
	}
	var notes []protocol.ContentSum
	for _, o := range e.copies {
		// A copy that was cut short, or cannot be read, still has its note.
		if o.stored != nil && !slices.Contains(notes, *o.stored) && slices.ContainsFunc(copies, func(c observation) bool {
			return c.dev == o.dev || c.computed != nil && c.computed.Length == o.stored.Length
		}) {
			notes = append(notes, *o.stored)
		}
	}
	right := func(observation) bool { return true }
	switch {
	case len(notes) > 1:
		v.undecided(code, copies)
		return
	case len(notes) == 1:
		right = func(o observation) bool { return o.computed != nil && *o.computed == notes[0] }
		if slices.ContainsFunc(copies, func(o observation) bool { return o.computed == nil }) {
			// A daemon of another make has this copy: it is compared by digest with
			// those that are known to be right.
			known := slices.IndexFunc(copies, right)
			if known >= 0 {
				sum := copies[known].sum
				right = func(o observation) bool { return o.sum.Equal(sum) }
			}
		}
	case e.mode.Content:
		if sum, ok := majority(copies); ok {
			right = func(o observation) bool { return o.sum.Equal(sum) }
		}
	}
	first := slices.IndexFunc(copies, right)
	switch {
	case first < 0: // nobody has what was noted
		v.undecided(CodeBadSum, copies)
		return
	case slices.ContainsFunc(copies, func(o observation) bool { return right(o) && !o.sum.Equal(copies[first].sum) }):
		v.undecided(code, copies)
		return
	}
	v.split(copies, right)
	switch {
	case !e.row.IsZero() && !e.mode.Content:
		v.events = append(v.events, event{code: CodeBadAlgorithm})
	case e.row.IsZero() && e.class == e.digest && e.mode.Checksum != off:
		v.sum = copies[first].sum
		v.events = append(v.events, event{code: CodeNewSum})
	}
}

// majority is the digest that more than half of at least three copies have.
func majority(copies []observation) (protocol.Checksum, bool) {
	for _, o := range copies {
		n := 0
		for _, p := range copies {
			if p.sum.Equal(o.sum) {
				n++
			}
		}
		if len(copies) >= 3 && 2*n > len(copies) {
			return o.sum, true
		}
	}
	return protocol.Checksum{}, false
}

// subject is a file to be checked, as the database and the snapshot have it.
type subject struct {
	file      schema.LocatedFile
	row       protocol.Checksum
	class     protocol.HashType
	satisfied bool             // its policy, all recorded devices counted, the dead ones too
	dead      []protocol.DevID // of its devices
	away      []protocol.DevID // of its devices: those that are not dead and cannot be read now
}

// step is what is to be done next about a file.
type step int

const (
	done    step = iota // all is well
	stall               // it cannot be checked now
	observe             // its devices must be asked
	suspect             // it must be looked at again, under its lock
)

// first says what to do about a file of which only the database was asked.
func (m Mode) first(s subject) step {
	digest := m.digest(s.class, s.row)
	switch {
	case len(s.file.Devices) == 0, !s.satisfied:
		return suspect
	case m.PolicyOnly && digest == protocol.HashNone && len(s.dead) > 0:
		return suspect
	case m.PolicyOnly && digest == protocol.HashNone:
		return done
	case len(s.away) > 0:
		return stall
	}
	return observe
}

// namespace reports whether, under the lock, the database alone says what to
// do about a file: the devices are not to be asked.
func (m Mode) namespace(s subject) bool {
	return m.PolicyOnly && len(s.file.Devices) > len(s.dead) && m.digest(s.class, s.row) == protocol.HashNone
}

// repair is what is done about a file, in this order: the events are logged,
// replication is queued, found is recorded, sum is stored, forget and drop go.
type repair struct {
	file    schema.LocatedFile
	events  []event
	found   protocol.DevID // 0: none
	sum     protocol.Checksum
	forget  []protocol.DevID // rows only
	drop    []protocol.DevID // rows, and bytes to the trash
	requeue bool             // for replication
	stalled bool             // there is more to be found out later
	lost    bool             // no good copy is known
}

// search is what looking for copies on all devices brought.
type search struct {
	found   protocol.DevID // 0: none
	matches bool           // the copy found has the digest that is stored, or none is or was asked for
	away    bool           // some device could not be asked, and none had a good copy
}

// plan is what to do about a file under its lock. v is nil where its devices
// were not asked; looked is nil where there was no search, which there must be
// if v is not nil and knows of no whole copy: see [lost]. satisfied says whether
// the policy likes devices.
func (m Mode) plan(s subject, v *verdict, looked *search, satisfied func(devices []protocol.DevID) bool) repair {
	r := repair{file: s.file}
	switch {
	case len(s.file.Devices) == 0:
		r.events = append(r.events, event{code: CodeNoPaths})
	case !s.satisfied:
		r.events = append(r.events, event{code: CodePolicy})
	}
	switch {
	case v == nil:
		r.forget = s.dead
		r.stalled = !m.namespace(s)
		if r.stalled {
			r.forget = nil
		}
	case looked == nil:
		r.events = append(r.events, v.events...)
		r.forget, r.drop, r.sum = v.forget, v.droppable(), v.sum
	default:
		r.events = append(append(r.events, v.events...), event{code: CodeSearch})
		switch {
		case looked.found != 0:
			r.events = append(r.events, event{CodeFound, looked.found})
			r.found, r.forget = looked.found, v.forget
			if looked.matches {
				r.drop = v.bad
			} else {
				r.events = append(r.events, event{code: CodeBadSum})
			}
		case looked.away:
			r.stalled = true
			return r
		default:
			r.events = append(r.events, event{code: CodeGone})
			r.forget, r.lost = v.forget, true
			return r
		}
	}
	left := slices.DeleteFunc(slices.Clone(s.file.Devices), func(d protocol.DevID) bool {
		return slices.Contains(r.forget, d) || slices.Contains(r.drop, d)
	})
	if r.found != 0 {
		left = append(left, r.found)
		slices.Sort(left)
	}
	if len(left) > 0 && !satisfied(left) {
		r.events = append(r.events, event{code: CodeReplicate})
		r.requeue = true
	}
	return r
}

// lost reports whether no copy of the right length could be read: then all
// devices are searched for one.
func lost(copies []observation) bool {
	return !slices.ContainsFunc(copies, func(o observation) bool { return o.state == intact })
}

// inOrder sorts observations by device, so that events come in a fixed order.
func inOrder(copies []observation) {
	slices.SortFunc(copies, func(a, b observation) int { return cmp.Compare(a.dev, b.dev) })
}
