package storetest

import (
	"strconv"
	"time"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/schema"
)

var numberCases = []testCase{
	{"Numbers/class deleted and made anew", checkClassNumbers},
	{"Numbers/domain deleted and made anew", checkDomainNumbers},
	{"Sealed/BLAKE3", checkBLAKE3},
}

// checkClassNumbers deletes a class and makes it anew: an upload and a change
// that meant the first must not end in the second.
func checkClassNumbers(e *env) {
	class := func(name string) schema.ClassID {
		e.Helper()
		id, err := e.CreateClass(e.ctx, "d", schema.Class{Name: name, MinDevCount: 2})
		e.must(err)
		return id
	}
	first, other := class("first"), class("photos")
	fid, moved := e.open("k"), e.put("moved")
	e.must(e.DeleteClass(e.ctx, "d", "photos"))
	// This tracker has not heard of it.
	late, err := e.CreateTempfile(e.ctx, schema.Tempfile{DMID: e.dmid, Key: "late", ClassID: other, DevIDs: devs(1)})
	e.must(err)
	again := class("photos")
	if again <= other {
		e.Errorf("class photos is %d again, after %d", again, other)
	}
	for _, fid := range []protocol.FID{fid, late} {
		c := e.closing(fid, "k")
		c.ClassID = other
		e.code(e.CloseFile(e.ctx, c), "unreg_class")
		c.NoOverwrite = true
		e.code(e.CloseFile(e.ctx, c), "unreg_class")
	}
	e.want(e.SetFileClass(e.ctx, moved, other), protocol.ErrClassNotFound)
	e.want(e.SetFileClassIf(e.ctx, e.dmid, "moved", moved, other), protocol.ErrClassNotFound)
	e.must(e.SetFileClass(e.ctx, moved, again))

	// Deleting a lower number changes nothing; another domain has its own.
	e.must(e.DeleteClass(e.ctx, "d", "first"))
	if id := class("first"); id != again+1 || id <= first {
		e.Errorf("class first is %d; want %d", id, again+1)
	}
	e.domain("two")
	if id, err := e.CreateClass(e.ctx, "two", schema.Class{Name: "photos", MinDevCount: 1}); err != nil || id != 1 {
		e.Errorf("first class of another domain: %d, %v", id, err)
	}
	if id, err := e.CreateClass(e.ctx, "d", schema.Class{Name: "default", MinDevCount: 1}); err != nil || id != 0 {
		e.Errorf("class default: %d, %v", id, err)
	}
	e.advance(2 * time.Hour)
	x, err := e.ExpireTempfiles(e.ctx, time.Hour, 10)
	e.must(err)
	if x.Discard != 2 {
		e.Errorf("expired %+v; want both uploads discarded", x)
	}
}

// checkDomainNumbers does the same with a domain.
func checkDomainNumbers(e *env) {
	old := e.domain("old")
	_, err := e.CreateClass(e.ctx, "old", schema.Class{Name: "c", MinDevCount: 1})
	e.must(err)
	fid, err := e.CreateTempfile(e.ctx, schema.Tempfile{DMID: old, Key: "k", DevIDs: devs(1)})
	e.must(err)
	e.must(e.DeleteClass(e.ctx, "old", "c"))
	e.must(e.DeleteDomain(e.ctx, "old"))
	fresh := e.domain("fresh")
	if fresh <= old {
		e.Errorf("domain fresh is %d, after %d", fresh, old)
	}
	c := schema.Close{FID: fid, DMID: old, Key: "k", Length: 1, DevID: 1}
	e.code(e.CloseFile(e.ctx, c), "unreg_domain")
	_, _, err = e.FileByKey(e.ctx, fresh, "k")
	e.want(err, protocol.ErrUnknownKey)
	if id, err := e.CreateClass(e.ctx, "fresh", schema.Class{Name: "c", MinDevCount: 1}); err != nil || id != 1 {
		e.Errorf("first class of the new domain: %d, %v", id, err)
	}
	// Where the numbers are used up, those of deleted ones come back.
	e.db.Exec(e, "UPDATE mogile_meta SET value = '32767' WHERE name = 'highest dmid'")
	if id := e.domain("last"); id != fresh+1 {
		e.Errorf("domain last is %d; want %d", id, fresh+1)
	}
}

// checkBLAKE3: MogileFS's trackers know MD5 and SHA-1 only.
func checkBLAKE3(e *env) {
	version, _, err := e.Setting(e.ctx, "schema_version")
	e.must(err)
	sealed := version == strconv.Itoa(schema.VersionSealed)
	sum := protocol.Checksum{Type: protocol.HashBLAKE3, Sum: make([]byte, 32)}
	class := schema.Class{Name: "hashed", MinDevCount: 2, HashType: protocol.HashBLAKE3}
	fid, late := e.put("k"), e.open("late")
	closing := e.closing(late, "late")
	closing.Checksum = sum
	_, created := e.CreateClass(e.ctx, "d", class)
	for what, err := range map[string]error{
		"create class": created,
		"update class": e.UpdateClass(e.ctx, "d", "default", schema.ClassChange{HashType: &class.HashType}),
		"set checksum": e.SetChecksum(e.ctx, fid, sum),
		"close":        e.CloseFile(e.ctx, closing),
	} {
		if sealed && err != nil || !sealed && refusal(err) != "invalid_hashtype" {
			e.Errorf("%s, sealed %t: %v", what, sealed, err)
		}
	}
	if sealed {
		got, err := e.Checksum(e.ctx, fid)
		e.must(err)
		e.same("checksum", got, sum)
		return
	}
	if classes := e.topology().Classes; len(classes) > 1 || len(classes) == 1 && classes[0].HashType != protocol.HashNone {
		e.Errorf("classes %+v", classes)
	}
	if d := e.debug(late); d.Tempfile == nil || d.File != nil {
		e.Errorf("after the refusal: %+v", d)
	}
}
