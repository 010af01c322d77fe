package fsck

import (
	"fmt"
	"hash/crc32"
	"slices"
	"strings"
	"testing"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/schema"
)

func sumOf(t protocol.HashType, content string) protocol.Checksum {
	h := t.New()
	h.Write([]byte(content))
	return protocol.Checksum{Type: t, Sum: h.Sum(nil)}
}

func noteOf(content string) *protocol.ContentSum {
	return &protocol.ContentSum{
		Length: int64(len(content)), CRC32C: crc32.Checksum([]byte(content), crc32.MakeTable(crc32.Castagnoli)),
	}
}

// copyOf describes a copy in a word: what it contains now, and behind a colon
// what it contained when its storage daemon wrote it; without a colon there is
// no note of that. "?" in front is a daemon that gives nothing but the digest.
// Other words are states.
func copyOf(dev protocol.DevID, word string, t protocol.HashType) observation {
	states := map[string]state{"MISSING": missing, "SHORT": wrongSize, "SECTOR": unreadable, "DEAD": onDead}
	if s, ok := states[word]; ok {
		return observation{dev: dev, state: s}
	}
	if name, once, ok := strings.Cut(word, ":"); ok && states[name] != 0 {
		return observation{dev: dev, state: states[name], stored: noteOf(once)}
	}
	content, digestOnly := strings.CutPrefix(word, "?")
	now, once, noted := strings.Cut(content, ":")
	o := observation{dev: dev, state: intact}
	if t == protocol.HashNone {
		return o
	}
	o.sum = sumOf(t, now)
	if !digestOnly {
		o.computed = noteOf(now)
	}
	if noted {
		o.stored = noteOf(once)
	}
	return o
}

func tell(events []event) string {
	var words []string
	for _, e := range events {
		if e.dev != 0 {
			words = append(words, fmt.Sprintf("%s:%d", e.code, e.dev))
		} else {
			words = append(words, e.code)
		}
	}
	return strings.Join(words, " ")
}

func TestJudge(t *testing.T) {
	const md5, sha1 = protocol.HashMD5, protocol.HashSHA1
	class := Mode{}
	all := Mode{Checksum: "MD5"}
	scrub := Mode{Content: true}
	for _, c := range []struct {
		name   string
		mode   Mode
		class  protocol.HashType
		row    string // "MD5 a" is the digest of "a"
		copies string // of devices 1, 2, ...
		events string
		good   string // numbers of devices
		drop   string
		forget string
		sum    string // whose content's digest is stored
	}{
		// Sizes alone.
		{"all there", class, 0, "", "a a", "", "1 2", "", "", ""},
		{"one missing", class, 0, "", "a MISSING", "MISS:2", "1", "", "2", ""},
		{"one too short", class, 0, "", "SHORT a", "BLEN:1", "2", "1", "", ""},
		{"on a dead device", class, 0, "", "DEAD a", "", "2", "", "1", ""},
		{"all missing", class, 0, "", "MISSING MISSING", "MISS:1 MISS:2", "", "", "1 2", ""},
		{"all too short: they stay", class, 0, "", "SHORT SHORT", "BLEN:1 BLEN:2", "", "", "", ""},
		{"missing and too short: what there is stays", class, 0, "", "MISSING SHORT", "MISS:1 BLEN:2", "", "", "1", ""},
		{"checksums are off", Mode{Checksum: "off"}, md5, "", "a b", "", "1 2", "", "", ""},

		// A checksum is stored.
		{"as stored", class, md5, "MD5 a", "a a", "", "1 2", "", "", ""},
		{"all equal and not as stored", class, md5, "MD5 x", "a a", "BSUM", "", "", "", ""},
		{"one as stored", class, md5, "MD5 a", "a b", "BSUM:2", "1", "2", "", ""},
		{"one of three as stored", class, md5, "MD5 a", "b a b", "BSUM:1 BSUM:3", "2", "1 3", "", ""},
		{"none as stored, and different", class, md5, "MD5 x", "a b", "BSUM", "", "", "", ""},
		{"none as stored: those that rotted are named", class, md5, "MD5 x", "a:a b:a", "BSUM BSUM:2", "", "", "", ""},
		{"the stored checksum is above a note", class, md5, "MD5 a", "a:z a:a", "", "1 2", "", "", ""},
		{"only copy, not as stored", class, md5, "MD5 x", "a", "BSUM", "", "", "", ""},
		{"bad sector", class, md5, "MD5 a", "a SECTOR", "BSUM:2", "1", "2", "", ""},
		{"bad sector, and the other not as stored", class, md5, "MD5 x", "a SECTOR", "BSUM:2 BSUM", "", "", "", ""},
		{"only copies in bad sectors", class, md5, "MD5 x", "SECTOR SECTOR", "BSUM:1 BSUM:2", "", "", "", ""},
		{"too short and not as stored", class, md5, "MD5 x", "SHORT a", "BLEN:1 BSUM", "", "", "", ""},

		// The stored checksum is of another algorithm.
		{"another algorithm", class, sha1, "MD5 a", "a a", "BALG", "1 2", "", "", ""},
		{"another algorithm by the setting", all, 0, "SHA-1 a", "a a", "BALG", "1 2", "", "", ""},
		{"another algorithm, copies differ", class, sha1, "MD5 a", "a b", "BSUM", "", "", "", ""},
		{"another algorithm, and the setting, copies differ", all, sha1, "MD5 a", "a b", "BSUM", "", "", "", ""},
		{"scrub goes by the stored one's", scrub, sha1, "MD5 a", "a b", "BSUM:2", "1", "2", "", ""},

		// None is stored.
		{"missing checksum", class, md5, "", "a a", "NSUM", "1 2", "", "", "a"},
		{"missing checksum, copies differ", class, md5, "", "a b", "BSUM", "", "", "", ""},
		{"missing checksum, copies differ, with the setting", all, sha1, "", "a b", "MSUM", "", "", "", ""},
		{"no class's checksum, equal", all, 0, "", "a a", "", "1 2", "", "", ""},
		{"no class's checksum, different", all, 0, "", "a b", "MSUM", "", "", "", ""},
		{"missing checksum and copy", class, md5, "", "a MISSING", "MISS:2 NSUM", "1", "", "2", "a"},
		{"no checksum is made of what rotted", class, md5, "", "b:a", "BSUM BSUM:1", "", "", "", ""},

		// Notes of storage daemons.
		{"one cut short tells which is right", scrub, 0, "", "SHORT:a a b", "BLEN:1 BSUM:3", "2", "1 3", "", ""},
		{"a bad sector tells which is right", scrub, 0, "", "SECTOR:a b a", "BSUM:1 BSUM:2", "3", "1 2", "", ""},
		{"one cut short was another file", scrub, 0, "", "SHORT:abc a b", "BLEN:1 MSUM", "", "", "", ""},
		{"one cut short, and nobody has what it had", scrub, 0, "", "SHORT:a b", "BLEN:1 BSUM", "", "", "", ""},
		{"as noted", scrub, 0, "", "a:a a:a", "", "1 2", "", "", ""},
		{"one rotted", scrub, 0, "", "a:a b:a", "BSUM:2", "1", "2", "", ""},
		{"one rotted, fsck with checksums", class, md5, "", "a:a b:a", "BSUM:2 NSUM", "1", "2", "", "a"},
		{"only copy rotted", scrub, 0, "", "b:a", "BSUM BSUM:1", "", "", "", ""},
		{"both rotted", scrub, 0, "", "b:a c:a", "BSUM BSUM:1 BSUM:2", "", "", "", ""},
		{"both rotted in the same way", scrub, 0, "", "b:a b:a", "BSUM BSUM:1 BSUM:2", "", "", "", ""},
		{"one noted, the other different and not", scrub, 0, "", "a:a b", "BSUM:2", "1", "2", "", ""},
		{"a note proves the other right", scrub, 0, "", "b:a a", "BSUM:1", "2", "1", "", ""},
		{"a note of neither", scrub, 0, "", "b:a c", "BSUM BSUM:1", "", "", "", ""},
		{"notes contradict each other", scrub, 0, "", "a:a b:b", "MSUM", "", "", "", ""},
		{"notes contradict each other, most are equal", scrub, 0, "", "a:a b:b a:a", "MSUM", "", "", "", ""},
		{"notes contradict each other, one rotted", scrub, 0, "", "a:a c:b", "MSUM BSUM:2", "", "", "", ""},
		{"another make, equal", scrub, 0, "", "a:a ?a", "", "1 2", "", "", ""},
		{"another make, different", scrub, 0, "", "a:a ?b", "BSUM:2", "1", "2", "", ""},
		{"another make, and ours rotted", scrub, 0, "", "b:a ?a", "BSUM BSUM:1", "", "", "", ""},
		{"all of another make, different", scrub, 0, "", "?a ?b", "MSUM", "", "", "", ""},

		// Majorities.
		{"two of three", scrub, 0, "", "a a b", "BSUM:3", "1 2", "3", "", ""},
		{"two of three, but it is no scrub", all, 0, "", "a a b", "MSUM", "", "", "", ""},
		{"two of four", scrub, 0, "", "a a b c", "MSUM", "", "", "", ""},
		{"two against two", scrub, 0, "", "a a b b", "MSUM", "", "", "", ""},
		{"one against one", scrub, 0, "", "a b", "MSUM", "", "", "", ""},
		{"all different", scrub, 0, "", "a b c", "MSUM", "", "", "", ""},
		{"scrub makes missing checksums", scrub, md5, "", "a:a a", "NSUM", "1 2", "", "", "a"},
		{"scrub makes none where they are off", Mode{Content: true, Checksum: "off"}, md5, "", "a:a a", "", "1 2", "", "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			var row protocol.Checksum
			if name, content, ok := strings.Cut(c.row, " "); ok {
				typ, _ := protocol.ParseHashType(name)
				row = sumOf(typ, content)
			}
			e := evidence{mode: c.mode, class: c.class, row: row, digest: c.mode.digest(c.class, row)}
			for i, word := range strings.Fields(c.copies) {
				e.copies = append(e.copies, copyOf(protocol.DevID(i+1), word, e.digest))
			}
			v := judge(e)
			for _, x := range []struct{ what, got, want string }{
				{"events", tell(v.events), c.events},
				{"good", numbers(v.good), c.good},
				{"drop", numbers(v.droppable()), c.drop},
				{"forget", numbers(v.forget), c.forget},
			} {
				if x.got != x.want {
					t.Errorf("%s: %q, want %q", x.what, x.got, x.want)
				}
			}
			var want protocol.Checksum
			if c.sum != "" {
				want = sumOf(e.digest, c.sum)
			}
			if !v.sum.Equal(want) {
				t.Errorf("stores %v, want %v", v.sum, want)
			}
			if clean := c.events == "" && c.forget == ""; v.clean() != clean {
				t.Errorf("clean is %v", v.clean())
			}
		})
	}
}

// TestJudgeNeverDropsAll tries every combination of up to three copies.
func TestJudgeNeverDropsAll(t *testing.T) {
	words := []string{"a", "b", "a:a", "b:a", "b:b", "?a", "?b", "MISSING", "SHORT", "SECTOR", "DEAD"}
	modes := []Mode{{}, {Checksum: "MD5"}, {Checksum: "off"}, {Content: true}}
	var copies []string
	n := 0
	var try func()
	try = func() {
		for _, m := range modes {
			for _, class := range []protocol.HashType{protocol.HashNone, protocol.HashMD5} {
				for _, row := range []protocol.Checksum{{}, sumOf(protocol.HashMD5, "a"), sumOf(protocol.HashSHA1, "b")} {
					e := evidence{mode: m, class: class, row: row, digest: m.digest(class, row)}
					for i, word := range copies {
						e.copies = append(e.copies, copyOf(protocol.DevID(i+1), word, e.digest))
					}
					v := judge(e)
					n++
					drop := v.droppable()
					if len(drop) > 0 && !slices.ContainsFunc(v.good, func(d protocol.DevID) bool { return !slices.Contains(drop, d) }) {
						t.Fatalf("%+v, class %v, row %v, copies %v: drops %v, good are %v", m, class, row, copies, drop, v.good)
					}
					for _, d := range v.good {
						if slices.Contains(v.bad, d) || slices.Contains(v.forget, d) {
							t.Fatalf("%+v, class %v, row %v, copies %v: dev%d is good and bad", m, class, row, copies, d)
						}
					}
					for _, d := range v.forget {
						if w := copies[d-1]; w != "MISSING" && w != "DEAD" {
							t.Fatalf("%+v, copies %v: forgets dev%d", m, copies, d)
						}
					}
				}
			}
		}
		if len(copies) == 3 {
			return
		}
		for _, w := range words {
			copies = append(copies, w)
			try()
			copies = copies[:len(copies)-1]
		}
	}
	try()
	if n < 30_000 {
		t.Errorf("only %d cases", n)
	}
}

func numbers(devs []protocol.DevID) string {
	var words []string
	for _, d := range devs {
		words = append(words, d.String())
	}
	return strings.Join(words, " ")
}

func TestDigestOfModes(t *testing.T) {
	const none, md5, sha1 = protocol.HashNone, protocol.HashMD5, protocol.HashSHA1
	a, b := sumOf(md5, "a"), sumOf(sha1, "a")
	for _, c := range []struct {
		mode  Mode
		class protocol.HashType
		row   protocol.Checksum
		want  protocol.HashType
	}{
		{Mode{}, none, protocol.Checksum{}, none},
		{Mode{}, none, a, none},
		{Mode{}, md5, protocol.Checksum{}, md5},
		{Mode{}, sha1, a, sha1},
		{Mode{Checksum: "off"}, md5, a, none},
		{Mode{Checksum: "off"}, md5, protocol.Checksum{}, none},
		{Mode{Checksum: "MD5"}, none, protocol.Checksum{}, md5},
		{Mode{Checksum: "MD5"}, sha1, protocol.Checksum{}, sha1},
		{Mode{Checksum: "SHA-1"}, none, a, sha1},
		{Mode{Checksum: "nonsense"}, none, a, none},
		{Mode{PolicyOnly: true}, none, protocol.Checksum{}, none},
		{Mode{PolicyOnly: true}, md5, a, none},
		{Mode{PolicyOnly: true}, md5, protocol.Checksum{}, md5},
		{Mode{PolicyOnly: true, Checksum: "MD5"}, none, protocol.Checksum{}, none},
		{Mode{PolicyOnly: true, Checksum: "off"}, md5, protocol.Checksum{}, none},
		{Mode{Content: true}, none, protocol.Checksum{}, md5},
		{Mode{Content: true}, sha1, protocol.Checksum{}, sha1},
		{Mode{Content: true}, md5, b, sha1},
		{Mode{Content: true, Checksum: "off"}, none, b, sha1},
	} {
		if got := c.mode.digest(c.class, c.row); got != c.want {
			t.Errorf("%+v, class %v, row %v: %v, want %v", c.mode, c.class, c.row, got, c.want)
		}
	}
}

// TestFirst has the order in which MogileFS looks at things.
func TestFirst(t *testing.T) {
	on := func(devs ...protocol.DevID) schema.LocatedFile { return schema.LocatedFile{Devices: devs} }
	policy := Mode{PolicyOnly: true}
	for _, c := range []struct {
		name string
		mode Mode
		s    subject
		want step
	}{
		{"no locations", Mode{}, subject{file: on()}, suspect},
		{"no locations, policy only", policy, subject{file: on()}, suspect},
		{"policy not satisfied", Mode{}, subject{file: on(1)}, suspect},
		{"policy not satisfied, and away", Mode{}, subject{file: on(1), away: []protocol.DevID{1}}, suspect},
		{"policy only", policy, subject{file: on(1), satisfied: true}, done},
		{"policy only, away", policy, subject{file: on(1), satisfied: true, away: []protocol.DevID{1}}, done},
		{"policy only, dead", policy, subject{file: on(1), satisfied: true, dead: []protocol.DevID{1}}, suspect},
		{"policy only, checksum missing", policy, subject{file: on(1), satisfied: true, class: 1}, observe},
		{"policy only, checksum missing, away", policy, subject{file: on(1), satisfied: true, class: 1, away: []protocol.DevID{1}}, stall},
		{"away", Mode{}, subject{file: on(1, 2), satisfied: true, away: []protocol.DevID{2}}, stall},
		{"away and dead", Mode{}, subject{file: on(1, 2), satisfied: true, away: []protocol.DevID{2}, dead: []protocol.DevID{1}}, stall},
		{"dead", Mode{}, subject{file: on(1, 2), satisfied: true, dead: []protocol.DevID{1}}, observe},
		{"nothing known to be wrong", Mode{}, subject{file: on(1, 2), satisfied: true}, observe},
	} {
		if got := c.mode.first(c.s); got != c.want {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}

func TestPlan(t *testing.T) {
	file := func(devs ...protocol.DevID) schema.LocatedFile {
		return schema.LocatedFile{File: schema.File{FID: 1}, Devices: devs}
	}
	v := func(v verdict) *verdict { return &v }
	type devs = []protocol.DevID
	sum := sumOf(protocol.HashMD5, "a")
	two := func(left []protocol.DevID, _ *schema.Encoding) bool { return len(left) == 2 }
	for _, c := range []struct {
		name                   string
		mode                   Mode
		s                      subject
		v                      *verdict
		looked                 *search
		events                 string
		found                  protocol.DevID
		forget, drop           string
		requeue, stalled, lost bool
	}{
		{name: "nothing is wrong any more", s: subject{file: file(1, 2), satisfied: true}, v: v(verdict{good: devs{1, 2}})},
		{name: "policy", s: subject{file: file(1)}, v: v(verdict{good: devs{1}}), events: "POVI REPL", requeue: true},
		{name: "too many", s: subject{file: file(1, 2, 3)}, v: v(verdict{good: devs{1, 2, 3}}), events: "POVI REPL", requeue: true},
		{name: "too many, one of them missing", s: subject{file: file(1, 2, 3)},
			v: v(verdict{events: []event{{CodeMissing, 3}}, good: devs{1, 2}, forget: devs{3}}), events: "POVI MISS:3", forget: "3"},
		{name: "missing", s: subject{file: file(1, 2), satisfied: true},
			v: v(verdict{events: []event{{CodeMissing, 2}}, good: devs{1}, forget: devs{2}}), events: "MISS:2 REPL", forget: "2", requeue: true},
		{name: "bad", s: subject{file: file(1, 2), satisfied: true},
			v: v(verdict{events: []event{{CodeLength, 2}}, good: devs{1}, bad: devs{2}}), events: "BLEN:2 REPL", drop: "2", requeue: true},
		{name: "dead", s: subject{file: file(1, 2), satisfied: true, dead: devs{2}},
			v: v(verdict{good: devs{1}, forget: devs{2}}), events: "REPL", forget: "2", requeue: true},
		{name: "all bad by content", s: subject{file: file(1, 2), satisfied: true},
			v: v(verdict{events: []event{{code: CodeBadSum}}, bad: devs{1}}), events: "BSUM"},
		{name: "nowhere recorded, found", s: subject{file: file()}, v: v(verdict{}), looked: &search{found: 3, matches: true},
			events: "NOPA SRCH FOND:3 REPL", found: 3, requeue: true},
		{name: "nowhere recorded, gone", s: subject{file: file()}, v: v(verdict{}), looked: &search{},
			events: "NOPA SRCH GONE", lost: true},
		{name: "nowhere recorded, a device away", s: subject{file: file()}, v: v(verdict{}), looked: &search{away: true},
			events: "NOPA SRCH", stalled: true},
		{name: "all missing, found", s: subject{file: file(1, 2), satisfied: true}, looked: &search{found: 3, matches: true},
			v:      v(verdict{events: []event{{CodeMissing, 1}, {CodeLength, 2}}, forget: devs{1}, bad: devs{2}}),
			events: "MISS:1 BLEN:2 SRCH FOND:3 REPL", found: 3, forget: "1", drop: "2", requeue: true},
		{name: "all missing, a doubtful one found", s: subject{file: file(1, 2), satisfied: true}, looked: &search{found: 3},
			v:      v(verdict{events: []event{{CodeMissing, 1}, {CodeLength, 2}}, forget: devs{1}, bad: devs{2}}),
			events: "MISS:1 BLEN:2 SRCH FOND:3 BSUM", found: 3, forget: "1"},
		{name: "all bad, gone", s: subject{file: file(1, 2), satisfied: true}, looked: &search{},
			v:      v(verdict{events: []event{{CodeMissing, 1}, {CodeLength, 2}}, forget: devs{1}, bad: devs{2}}),
			events: "MISS:1 BLEN:2 SRCH GONE", forget: "1", lost: true},
		{name: "policy, a device away", s: subject{file: file(1), away: devs{1}}, events: "POVI REPL", requeue: true, stalled: true},
		{name: "a device away meanwhile", s: subject{file: file(1, 2), satisfied: true, away: devs{1}}, stalled: true},
		{name: "policy only", mode: Mode{PolicyOnly: true}, s: subject{file: file(1), away: devs{1}}, events: "POVI REPL", requeue: true},
		{name: "policy only, dead", mode: Mode{PolicyOnly: true}, s: subject{file: file(1, 2), satisfied: true, dead: devs{1}},
			events: "REPL", forget: "1", requeue: true},
		{name: "new checksum", s: subject{file: file(1, 2), satisfied: true},
			v: v(verdict{events: []event{{code: CodeNewSum}}, good: devs{1, 2}, sum: sum}), events: "NSUM"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := c.mode.plan(c.s, c.v, c.looked, two)
			if tell(r.events) != c.events || r.found != c.found || numbers(r.forget) != c.forget || numbers(r.drop) != c.drop ||
				r.requeue != c.requeue || r.stalled != c.stalled || r.lost != c.lost {
				t.Errorf("%s; found %d, forgets %q, drops %q, requeue %v, stalled %v, lost %v",
					tell(r.events), r.found, numbers(r.forget), numbers(r.drop), r.requeue, r.stalled, r.lost)
			}
			if c.v != nil && !r.sum.Equal(c.v.sum) {
				t.Errorf("stores %v", r.sum)
			}
		})
	}
}
