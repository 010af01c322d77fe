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

// observation is what was found of one copy, or of one shard: one with another
// header than it should have, or with bad blocks, is unreadable.
type observation struct {
	dev   protocol.DevID
	state state
	// Of a copy whose content was read: what its storage daemon noted when it wrote
	// the copy, nil where there is no note; and of an intact one its digest, and
	// what was found now, nil where a daemon of another make gave nothing but the digest.
	sum              protocol.Checksum
	stored, computed *protocol.ContentSum

	// isShard is set where a shard was looked for. Of an intact one index says which
	// it is, epoch of what time the placement is that it bears, and crc what CRC32C
	// the file's content has.
	isShard      bool
	index, epoch int
	crc          uint32
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

	encoding *schema.Encoding // nil where the file is kept in copies
	recorded []protocol.DevID // of an encoded file: where it is recorded
	content  *observation     // of an encoded file: what all shards together contain; nil where that was not read
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

	// Of an encoded file, whose shards are what good names.
	need   int                    // how many of them it takes to read the file
	whole  []protocol.DevID       // good copies that are recorded beside the shards
	placed map[int]protocol.DevID // shards that are to be recorded anew
	epoch  int                    // of the placement that is to be recorded then
	found  []event                // of those that are elsewhere than is recorded
	behind []protocol.DevID       // of the good: those that bear an older placement than is recorded
}

// clean reports whether there is nothing to say and nothing to do.
func (v verdict) clean() bool {
	return len(v.events) == 0 && len(v.bad) == 0 && len(v.forget) == 0 && v.sum.IsZero() && len(v.placed) == 0
}

// enough reports whether the file can be read from what is known to be good.
func (v verdict) enough() bool {
	return len(v.good) >= max(1, v.need) || len(v.whole) > 0
}

// droppable are the bad copies that may be taken out of service: all of them
// while the file can be read from good ones, else none.
func (v verdict) droppable() []protocol.DevID {
	if !v.enough() {
		return nil
	}
	return v.bad
}

// judge says which copies, or shards, are good.
func judge(e evidence) verdict {
	if e.encoding != nil {
		return judgeShards(e)
	}
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
	encoding  *schema.Encoding // nil where the file is kept in copies
}

// living is how many of the file's copies, or shards, are on devices that are
// not dead, and how many of them it takes to read it.
func (s subject) living() (n, need int) {
	n, need = len(s.file.Devices)-len(s.dead), 1
	if s.encoding != nil {
		need = s.encoding.K
	}
	return n, need
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
	living, need := s.living()
	return m.PolicyOnly && living >= need && m.digest(s.class, s.row) == protocol.HashNone
}

// repair is what is done about a file, in this order: the events are logged,
// replication is queued, found or placed is recorded, sum is stored, forget and
// drop go.
type repair struct {
	file    schema.LocatedFile
	events  []event
	found   protocol.DevID // of a copy; 0: none
	sum     protocol.Checksum
	forget  []protocol.DevID // rows only
	drop    []protocol.DevID // rows, and bytes to the trash
	requeue bool             // for replication
	stalled bool             // there is more to be found out later
	lost    bool             // no good copy is known, or too few shards

	encoding *schema.Encoding // as it was read; a copy that is found takes its place
	placed   map[int]protocol.DevID
	epoch    int   // of placed
	lacks    bool  // shards
	spare    int64 // how many more may be lost, where it lacks some
}

// search is what looking for copies, or shards, on all devices brought.
type search struct {
	found   protocol.DevID // of a copy; 0: none
	matches bool           // the copy found has the digest that is stored, or none is or was asked for
	away    bool           // some device could not be asked, and none had a good copy
	shards  []observation  // found whole where they are not recorded; a verdict counts them already
}

// plan is what to do about a file under its lock. v is nil where its devices
// were not asked; looked is nil where there was no search, which there must be
// if v is not nil and does not know enough to read the file: see [lost].
// satisfied says whether the policy likes the file with copies or shards on
// devices, the shards placed as the encoding has them; nil where there is none.
func (m Mode) plan(s subject, v *verdict, looked *search, satisfied func(devices []protocol.DevID, e *schema.Encoding) bool) repair {
	r := repair{file: s.file, encoding: s.encoding}
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
		r.events = slices.Concat(r.events, v.events, v.found)
		r.forget, r.drop, r.sum, r.placed, r.epoch = v.forget, v.droppable(), v.sum, v.placed, v.epoch
	default:
		r.events = append(append(r.events, v.events...), event{code: CodeSearch})
		switch {
		case s.encoding != nil && v.enough():
			r.events = append(r.events, v.found...)
			r.forget, r.drop, r.sum, r.placed, r.epoch = v.forget, v.droppable(), v.sum, v.placed, v.epoch
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
			r.lost = true
			if s.encoding == nil {
				r.forget = v.forget // else one shard that comes back may be all that it takes
			}
			return r
		}
	}
	left, e := r.after()
	if len(left) > 0 && !satisfied(left, e) {
		r.events = append(r.events, event{code: CodeReplicate})
		r.requeue = true
	}
	if e != nil {
		r.lacks, r.spare = len(left) < e.K+e.M, int64(len(left)-e.K)
	}
	return r
}

// after is what is recorded of the file when all is done.
func (r repair) after() ([]protocol.DevID, *schema.Encoding) {
	if r.found != 0 && r.encoding != nil {
		return []protocol.DevID{r.found}, nil
	}
	devs, e := r.file.Devices, r.encoding
	if r.found != 0 {
		devs = append(slices.Clone(devs), r.found)
		slices.Sort(devs)
	}
	if len(r.placed) > 0 {
		devs, e = replaced(devs, *e, r.placed)
	}
	return without(devs, slices.Concat(r.forget, r.drop)...), e
}

// lost reports whether the file cannot be read from what is where it is
// recorded, as far as that was looked at: then all devices are searched.
func (v verdict) lost(copies []observation) bool {
	if v.need > 0 {
		return !v.enough()
	}
	return !slices.ContainsFunc(copies, func(o observation) bool { return o.state == intact })
}

// inOrder sorts observations by device, so that events come in a fixed order.
func inOrder(copies []observation) {
	slices.SortFunc(copies, func(a, b observation) int { return cmp.Compare(a.dev, b.dev) })
}
