package storetest

import (
	"bytes"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/schema"
)

var fileCases = []testCase{
	{"Ping", func(e *env) { e.must(e.Ping(e.ctx)) }},
	{"CreateTempfile", checkCreateTempfile},
	{"CreateTempfile/explicit", checkExplicitFID},
	{"CreateTempfile/bad key", checkCreateBadKey},
	{"CreateTempfile/never twice", checkFIDsNeverTwice},
	{"CreateTempfile/raised at open", checkFIDsRaisedAtOpen},
	{"CloseFile", checkCloseFile},
	{"CloseFile/overwrite", checkOverwrite},
	{"CloseFile/refused", checkCloseRefused},
	{"CloseFile/keys", checkKeys},
	{"CloseFile/tried elsewhere before", checkCloseTried},
	{"DiscardUpload", checkDiscard},
	{"DeleteKey", checkDeleteKey},
	{"paths in memory", checkDeletionDelay},
	{"RenameKey", checkRename},
	{"SetFileClass", checkSetFileClass},
	{"FileByKey/unknown", checkUnknownKeys},
	{"FilesByFID", checkFilesByFID},
	{"ListKeys", checkListKeys},
	{"ListFIDs", checkListFIDs},
	{"Checksum", checkChecksum},
	{"DebugFile", checkDebugFile},
}

// longestKey is as long as a key may be: 255 characters, not bytes, where
// MogileFS may use the database too, and 1,024 bytes where it is sealed.
func (e *env) longestKey() string {
	e.Helper()
	v, _, err := e.Setting(e.ctx, "schema_version")
	e.must(err)
	if v == strconv.Itoa(schema.VersionSealed) {
		return strings.Repeat("ü", 512)
	}
	return strings.Repeat("ü", 255)
}

// badKeys are keys that no database holds.
func (e *env) badKeys() map[string]string {
	return map[string]string{
		"NUL":           "a\x00b",
		"invalid UTF-8": "a\xffb",
		"cut character": "a\xc3",
		"surrogate":     "\xed\xa0\x80",
		"too long":      e.longestKey() + "x",
	}
}

func checkCreateTempfile(e *env) {
	top, err := e.Topology(e.ctx)
	e.must(err)
	t := schema.Tempfile{CreateTime: 5, DMID: e.dmid, Key: "k", ClassID: 3, DevIDs: []protocol.DevID{7, 3, 12}}
	fid, err := e.CreateTempfile(e.ctx, t)
	e.must(err)
	if fid == 0 {
		e.Fatal("fid is 0")
	}
	got, err := e.Tempfile(e.ctx, fid)
	e.must(err)
	if d := got.CreateTime - top.Now.Unix(); d < 0 || d > 60 {
		e.Errorf("CreateTime is %d s after the database's clock", d)
	}
	t.FID, t.CreateTime = fid, got.CreateTime
	e.same("tempfile", got, t)

	noKey, err := e.CreateTempfile(e.ctx, schema.Tempfile{DMID: e.dmid, DevIDs: []protocol.DevID{1}})
	e.must(err)
	got, err = e.Tempfile(e.ctx, noKey)
	e.must(err)
	if got.Key != "" {
		e.Errorf("key is %q; want none", got.Key)
	}
	if noKey == fid {
		e.Errorf("fid %d was issued twice", fid)
	}

	_, err = e.Tempfile(e.ctx, fid+1_000_000)
	e.want(err, protocol.ErrNoTempfile)
}

func checkExplicitFID(e *env) {
	first := e.open("first")
	high := first + 1_000_000 // above every sequence and block

	t := e.upload("explicit")
	t.FID = high
	fid, err := e.CreateTempfile(e.ctx, t)
	e.must(err)
	if fid != high {
		e.Fatalf("fid is %d; want %d", fid, high)
	}
	_, err = e.CreateTempfile(e.ctx, t)
	e.want(err, protocol.ErrFIDInUse) // tempfile
	e.must(e.CloseFile(e.ctx, e.closing(fid, "explicit")))
	_, err = e.CreateTempfile(e.ctx, t)
	e.want(err, protocol.ErrFIDInUse) // file
	_, err = e.DeleteKey(e.ctx, e.dmid, "explicit")
	e.must(err)
	_, err = e.CreateTempfile(e.ctx, t)
	e.want(err, protocol.ErrFIDInUse) // file_on, file_to_delete2
	e.must(e.DeletedLocations(e.ctx, fid, []protocol.DevID{1}))
	_, err = e.CreateTempfile(e.ctx, t)
	e.want(err, protocol.ErrFIDInUse) // file_to_delete2

	for i, sql := range []string{
		"INSERT INTO file_on (fid, devid) VALUES (%d, 1)",
		"INSERT INTO file_to_delete (fid) VALUES (%d)",
		"INSERT INTO file_to_delete_later (fid, delafter) VALUES (%d, 0)",
	} {
		t.FID = high + 1 + protocol.FID(i)
		e.db.Exec(e, fmt.Sprintf(sql, t.FID))
		_, err = e.CreateTempfile(e.ctx, t)
		e.want(err, protocol.ErrFIDInUse)
	}
	e.must(e.QueueCopyDeletion(e.ctx, high+10, 1, schema.Raw))
	t.FID = high + 10
	_, err = e.CreateTempfile(e.ctx, t)
	e.want(err, protocol.ErrFIDInUse)

	// One request cannot use up what others need.
	for _, fid := range []protocol.FID{high + 2*schema.ExplicitLead, 1<<31 - 1, protocol.MaxFID / 2, protocol.MaxFID} {
		t.FID = fid
		_, err = e.CreateTempfile(e.ctx, t)
		e.want(err, protocol.ErrFIDInUse)
	}
	if fid := e.open("next"); fid >= high+schema.ExplicitLead {
		e.Fatalf("the next fid is %d", fid)
	}

	// Even when nothing remembers the highest of them any more, the sequence
	// does.
	last := high + 2_000_000
	t.FID = last
	_, err = e.CreateTempfile(e.ctx, t)
	e.must(err)
	e.must(e.DiscardUpload(e.ctx, last, 1))
	e.purge(last)
	again := e.db.Open(e)
	for range 50 {
		for _, s := range []schema.Store{e.Store, again} {
			fid, err := s.CreateTempfile(e.ctx, e.upload("auto"))
			e.must(err)
			if fid == last || fid == high {
				e.Fatalf("fid %d was issued twice", fid)
			}
		}
	}
}

func checkCreateBadKey(e *env) {
	for name, key := range e.badKeys() {
		_, err := e.CreateTempfile(e.ctx, e.upload(key))
		e.refused(name, err)
	}
	e.put(e.longestKey())
}

// refused fails the case unless err is the refusal invalid_key with a reason.
func (e *env) refused(name string, err error) {
	e.Helper()
	if refusal(err) != "invalid_key" {
		e.Errorf("%s: error is %v; want invalid_key", name, err)
		return
	}
	if r := err.Error(); r == "invalid_key" {
		e.Errorf("%s: the refusal does not say why", name)
	}
}

// checkFIDsNeverTwice has several trackers draw fids, forget them, and draw
// again after a restart.
func checkFIDsNeverTwice(e *env) {
	seen := make(map[protocol.FID]bool)
	for round := range 3 {
		stores := []schema.Store{e.Store, e.db.Open(e)}
		fids := make([][]protocol.FID, 16)
		parallel(len(fids), func(i int) {
			s := stores[i%2]
			for range scale(e, 10) {
				fid, err := s.CreateTempfile(e.ctx, e.upload("k"))
				if err != nil {
					e.Error(err)
					return
				}
				fids[i] = append(fids[i], fid)
			}
		})
		highest := protocol.FID(0)
		for _, fid := range slices.Concat(fids...) {
			if seen[fid] {
				e.Fatalf("round %d: fid %d was issued twice", round, fid)
			}
			seen[fid] = true
			highest = max(highest, fid)
		}
		// The highest goes without a trace, and every store with it.
		e.must(e.DiscardUpload(e.ctx, highest, 1))
		e.purge(highest)
		for _, s := range stores {
			e.must(s.Close())
		}
		e.Store = e.db.Open(e)
	}
}

func checkFIDsRaisedAtOpen(e *env) {
	fid := e.open("k")
	high := fid
	for _, sql := range []string{
		"INSERT INTO file_to_delete2 (fid, nexttry) VALUES (%d, 0)",
		"INSERT INTO file_to_delete (fid) VALUES (%d)",
		"INSERT INTO file_to_delete_later (fid, delafter) VALUES (%d, 0)",
		"INSERT INTO file_on (fid, devid) VALUES (%d, 1)",
		"INSERT INTO file (fid, dmid, dkey, length, classid, devcount) VALUES (%d, 77, 'x', 1, 0, 1)",
		"INSERT INTO tempfile (fid, createtime, classid, dmid, dkey, devids) VALUES (%d, 1, 0, 1, 'x', '1')",
	} {
		high += 5_000_000
		e.db.Exec(e, fmt.Sprintf(sql, high))
		e.must(e.Close())
		e.Store = e.db.Open(e)
		if fid := e.open("k"); fid <= high {
			e.Fatalf("fid %d after %q with %d", fid, sql, high)
		}
	}
}

func checkCloseFile(e *env) {
	sum := protocol.Checksum{Type: protocol.HashMD5, Sum: bytes.Repeat([]byte{0x00, 0xff}, 8)}
	fid := e.open("k")
	e.db.Exec(e, fmt.Sprintf("INSERT INTO class (dmid, classid, classname, mindevcount) VALUES (%d, 4, 'four', 1)", e.dmid))
	e.must(e.QueueCopyDeletion(e.ctx, fid, 2, schema.Raw))
	c := schema.Close{FID: fid, DMID: e.dmid, Key: "k", Length: 1 << 40, ClassID: 4, DevID: 2, Checksum: sum}
	e.must(e.CloseFile(e.ctx, c))

	f, devs, err := e.FileByKey(e.ctx, e.dmid, "k")
	e.must(err)
	e.same("file", f, schema.File{FID: fid, DMID: e.dmid, Key: "k", Length: 1 << 40, ClassID: 4, DevCount: 1})
	e.same("devices", devs, []protocol.DevID{2})
	got, err := e.Checksum(e.ctx, fid)
	e.must(err)
	e.same("checksum", got, sum)
	_, err = e.Tempfile(e.ctx, fid)
	e.want(err, protocol.ErrNoTempfile)
	if r := e.row(schema.QueueReplicate, fid); r == nil || r.NextTry != 0 || r.FailCount != 0 || r.DevID != nil {
		e.Errorf("row of file_to_replicate is %+v; want nexttry 0, no device", r)
	}
	e.queued(schema.QueueDelete, fid, false)
	// Recording a location takes it off copy_to_delete.
	e.queued(schema.QueueCopyDelete, fid, false)

	e.want(e.CloseFile(e.ctx, c), protocol.ErrNoTempfile)
	e.want(e.CloseFile(e.ctx, e.closing(fid+1_000_000, "other")), protocol.ErrNoTempfile)

	// A key belongs to its domain, and may differ from the one it was opened
	// with.
	other := e.domain("other")
	fid2 := e.open("opened with")
	c = e.closing(fid2, "k")
	c.DMID, c.Length = other, 0
	e.must(e.CloseFile(e.ctx, c))
	f, _, err = e.FileByKey(e.ctx, other, "k")
	e.must(err)
	e.same("file of the other domain", f, schema.File{FID: fid2, DMID: other, Key: "k", DevCount: 1})
	f, _, err = e.FileByKey(e.ctx, e.dmid, "k")
	e.must(err)
	if f.FID != fid {
		e.Errorf("key names fid %d; want %d", f.FID, fid)
	}
}

func checkOverwrite(e *env) {
	old := e.put("k")
	fid := e.put("k")
	f, devs, err := e.FileByKey(e.ctx, e.dmid, "k")
	e.must(err)
	e.same("file", f, schema.File{FID: fid, DMID: e.dmid, Key: "k", Length: 11, DevCount: 1})
	e.same("devices", devs, []protocol.DevID{1})
	if d := e.debug(old); d.File != nil || len(d.Devices) != 1 {
		e.Errorf("overwritten fid: %+v; want no file row, and its location", d)
	}
	e.queued(schema.QueueDelete, old, true)
	e.same("due for deletion", jobFIDs(e.claim(schema.QueueDelete)), []protocol.FID{old})
	e.queued(schema.QueueDelete, fid, false)
}

func checkCloseRefused(e *env) {
	good := e.put("k")
	fid := e.open("k")
	for name, key := range e.badKeys() {
		e.refused(name, e.CloseFile(e.ctx, e.closing(fid, key)))
	}
	e.refused("empty", e.CloseFile(e.ctx, e.closing(fid, "")))

	// Into a domain that is gone.
	c := e.closing(fid, "k")
	c.DMID = e.dmid + 100
	if err := e.CloseFile(e.ctx, c); refusal(err) != "unreg_domain" {
		e.Errorf("into an unknown domain: %v; want unreg_domain", err)
	}

	// Into a class that is gone.
	c = e.closing(fid, "k")
	c.ClassID = 77
	if err := e.CloseFile(e.ctx, c); refusal(err) != "unreg_class" {
		e.Errorf("into an unknown class: %v; want unreg_class", err)
	}

	// Nothing has changed, and the upload can still be closed.
	_, err := e.Tempfile(e.ctx, fid)
	e.must(err)
	f, _, err := e.FileByKey(e.ctx, e.dmid, "k")
	e.must(err)
	if f.FID != good {
		e.Errorf("key names fid %d; want %d", f.FID, good)
	}
	e.must(e.CloseFile(e.ctx, e.closing(fid, "k")))
}

// checkKeys stores odd keys and finds each again.
func checkKeys(e *env) {
	keys := []string{"0", " ", "a'b\"c;--", "a\\b%c_d", "\n\r\t", "ключ", "日本語", "😀", "e\u0301", "\u00e9", "Case", "case", "\x7f", "\x01", "trailing "}
	fids := make(map[string]protocol.FID)
	for _, k := range keys {
		fids[k] = e.put(k)
	}
	for _, k := range keys {
		f, _, err := e.FileByKey(e.ctx, e.dmid, k)
		if err != nil || f.FID != fids[k] || f.Key != k {
			e.Errorf("key %q: %+v, %v; want fid %d", k, f, err, fids[k])
		}
	}
	got, err := e.ListKeys(e.ctx, e.dmid, "", "", 1000)
	e.must(err)
	slices.Sort(keys)
	e.same("keys", got, keys)
}

// checkCloseTried closes uploads that other devices may have got too: with the
// close, or not at all, their copies are queued for deletion.
func checkCloseTried(e *env) {
	fid, plain := e.open("k"), e.open("plain")
	c := e.closing(fid, "k")
	c.DevID, c.Tried = 3, devs(2, 1, 3) // one that has the file is none to delete
	e.must(e.CloseFile(e.ctx, c))
	e.located(fid, devs(3), devs(1, 2))
	e.must(e.CloseFile(e.ctx, e.closing(plain, "plain")))
	e.located(plain, devs(1), nil)
	jobs := e.claim(schema.QueueCopyDelete)
	if len(jobs) != 2 || jobs[0].What != schema.Raw || jobs[1].What != schema.Raw {
		e.Errorf("due for deletion are %+v; want the raw copies on 1 and 2", jobs)
	}
	again := e.closing(fid, "k")
	again.Tried = devs(7)
	e.want(e.CloseFile(e.ctx, again), protocol.ErrNoTempfile)
	e.located(fid, devs(3), devs(1, 2))
}

func checkDiscard(e *env) {
	fid := e.open("k")
	e.must(e.DiscardUpload(e.ctx, fid, 2))
	e.want(e.DiscardUpload(e.ctx, fid, 2), protocol.ErrNoTempfile)
	e.want(e.CloseFile(e.ctx, e.closing(fid, "k")), protocol.ErrNoTempfile)
	d := e.debug(fid)
	e.located(fid, devs(2), devs(1)) // both were offered
	if d.File != nil || d.Tempfile != nil {
		e.Errorf("discarded upload: %+v", d)
	}
	e.queued(schema.QueueReplicate, fid, false)
	e.same("due for deletion", jobFIDs(e.claim(schema.QueueDelete)), []protocol.FID{fid})
}

func checkDeleteKey(e *env) {
	fid := e.put("k")
	other := e.put("other")
	got, err := e.DeleteKey(e.ctx, e.dmid, "k")
	e.must(err)
	if got != fid {
		e.Errorf("deleted fid %d; want %d", got, fid)
	}
	_, _, err = e.FileByKey(e.ctx, e.dmid, "k")
	e.want(err, protocol.ErrUnknownKey)
	_, err = e.DeleteKey(e.ctx, e.dmid, "k")
	e.want(err, protocol.ErrUnknownKey)
	_, err = e.DeleteKey(e.ctx, e.dmid+1, "other")
	e.want(err, protocol.ErrUnknownKey)
	e.same("due for deletion", jobFIDs(e.claim(schema.QueueDelete)), []protocol.FID{fid})
	e.queued(schema.QueueDelete, other, false)
}

// checkDeletionDelay has bytes stay for as long as paths to them may be in some
// tracker's memory: of files that are overwritten or deleted, and of copies that
// are dropped. Uploads that are taken back were never told to readers.
func checkDeletionDelay(e *env) {
	for _, c := range []struct {
		value string
		delay time.Duration
	}{
		{"60", 70 * time.Second},
		{"0003600", time.Hour + 10*time.Second},
		{"999999999", time.Hour + 10*time.Second},
		{"0", 0},
		{"00", 0},
		{"1000000000", 0},
		{"soon", 0},
		{"", 0},
	} {
		e.must(e.SetSetting(e.ctx, schema.SettingPathCacheTTL, &c.value))
		old, gone, kept := e.put("over"), e.put("gone"), e.putOn("kept", 1, 2)
		e.put("over")
		_, err := e.DeleteKey(e.ctx, e.dmid, "gone")
		e.must(err)
		e.must(e.DropLocation(e.ctx, kept, 2, devs(1, 2)))
		discarded := e.open("discarded")
		e.must(e.DiscardUpload(e.ctx, discarded, 1))
		var files, copies []protocol.FID
		claim := func() {
			for _, j := range e.claim(schema.QueueDelete) {
				if j.FID != discarded {
					files = append(files, j.FID)
				}
			}
			for _, j := range e.claim(schema.QueueCopyDelete) {
				if j.FID != discarded {
					copies = append(copies, j.FID)
				}
			}
		}
		if c.delay > 0 {
			e.advance(c.delay - 5*time.Second) // the clock goes on by itself
			claim()
			e.same("due too early with ttl "+c.value, append(files, copies...), []protocol.FID(nil))
			e.advance(6 * time.Second)
		}
		claim()
		slices.Sort(files)
		e.same("files due with ttl "+c.value, files, []protocol.FID{old, gone})
		e.same("copies due with ttl "+c.value, copies, []protocol.FID{kept})
		for _, key := range []string{"over", "kept"} {
			e.must(e.SetSetting(e.ctx, schema.SettingPathCacheTTL, nil))
			fid, err := e.DeleteKey(e.ctx, e.dmid, key)
			e.must(err)
			e.purge(fid)
		}
		for _, fid := range []protocol.FID{old, gone, discarded} {
			e.must(e.DeletedLocations(e.ctx, fid, devs(1, 2)))
		}
		e.advance(time.Hour)
		for _, j := range append(e.claim(schema.QueueDelete), e.claim(schema.QueueCopyDelete)...) {
			_, err := e.Finish(e.ctx, []schema.Job{j})
			e.must(err)
		}
	}
}

func checkRename(e *env) {
	fid := e.put("a")
	e.put("taken")
	e.want(e.RenameKey(e.ctx, e.dmid, "a", "taken"), protocol.ErrKeyExists)
	e.want(e.RenameKey(e.ctx, e.dmid, "none", "b"), protocol.ErrUnknownKey)
	e.want(e.RenameKey(e.ctx, e.dmid, "none", "taken"), protocol.ErrUnknownKey)
	e.want(e.RenameKey(e.ctx, e.dmid, "none", "none"), protocol.ErrUnknownKey)
	e.want(e.RenameKey(e.ctx, e.dmid+1, "a", "b"), protocol.ErrUnknownKey)
	e.must(e.RenameKey(e.ctx, e.dmid, "a", "a"))
	for name, key := range e.badKeys() {
		e.refused(name, e.RenameKey(e.ctx, e.dmid, "a", key))
	}
	e.refused("empty", e.RenameKey(e.ctx, e.dmid, "a", ""))

	longestKey := e.longestKey()
	e.must(e.RenameKey(e.ctx, e.dmid, "a", longestKey))
	f, devs, err := e.FileByKey(e.ctx, e.dmid, longestKey)
	e.must(err)
	e.same("file", f, schema.File{FID: fid, DMID: e.dmid, Key: longestKey, Length: 11, DevCount: 1})
	e.same("devices", devs, []protocol.DevID{1})
	_, _, err = e.FileByKey(e.ctx, e.dmid, "a")
	e.want(err, protocol.ErrUnknownKey)
	e.queued(schema.QueueDelete, fid, false)
}

func checkSetFileClass(e *env) {
	e.db.Exec(e, fmt.Sprintf("INSERT INTO class (dmid, classid, classname, mindevcount) VALUES (%d, 9, 'nine', 1)", e.dmid))
	fid := e.put("k")
	if n, err := e.Finish(e.ctx, e.claim(schema.QueueReplicate)); err != nil || n != 1 {
		e.Fatalf("finished %d, %v; want 1", n, err)
	}
	e.must(e.SetFileClass(e.ctx, fid, 9))
	f, _, err := e.FileByKey(e.ctx, e.dmid, "k")
	e.must(err)
	if f.ClassID != 9 {
		e.Errorf("class is %d; want 9", f.ClassID)
	}
	e.same("due for replication", jobFIDs(e.claim(schema.QueueReplicate)), []protocol.FID{fid})
	e.want(e.SetFileClass(e.ctx, fid+1, 9), schema.ErrGone)
	e.queued(schema.QueueReplicate, fid+1, false)
}

// checkUnknownKeys asks for keys that are not there, and for those that cannot
// be.
func checkUnknownKeys(e *env) {
	e.put("k")
	keys := []string{"", "K", "k ", "kk"}
	for _, k := range e.badKeys() {
		keys = append(keys, k)
	}
	for _, k := range keys {
		_, _, err := e.FileByKey(e.ctx, e.dmid, k)
		e.want(err, protocol.ErrUnknownKey)
		_, err = e.DeleteKey(e.ctx, e.dmid, k)
		e.want(err, protocol.ErrUnknownKey)
		e.want(e.RenameKey(e.ctx, e.dmid, k, "new"), protocol.ErrUnknownKey)
	}
	_, _, err := e.FileByKey(e.ctx, e.dmid+1, "k")
	e.want(err, protocol.ErrUnknownKey)
}

func checkFilesByFID(e *env) {
	a := e.putOn("a", 3, 1, 2)
	b := e.put("b")
	bare := e.put("bare")
	e.must(e.DeletedLocations(e.ctx, bare, []protocol.DevID{1}))
	tmp := e.open("tmp")
	got, err := e.FilesByFID(e.ctx, []protocol.FID{b, tmp, a, bare, bare + 1_000_000})
	e.must(err)
	slices.SortFunc(got, func(x, y schema.LocatedFile) int { return int(x.FID) - int(y.FID) })
	for i := range got {
		got[i].DevCount = 0
	}
	f := func(fid protocol.FID, key string, devs ...protocol.DevID) schema.LocatedFile {
		return schema.LocatedFile{File: schema.File{FID: fid, DMID: e.dmid, Key: key, Length: 11}, Devices: devs}
	}
	e.same("files", got, []schema.LocatedFile{f(a, "a", 1, 2, 3), f(b, "b", 1), f(bare, "bare")})
	_, devs, err := e.FileByKey(e.ctx, e.dmid, "bare")
	e.must(err)
	e.same("devices of a file that has none", devs, []protocol.DevID(nil))
	_, devs, err = e.FileByKey(e.ctx, e.dmid, "a")
	e.must(err)
	e.same("devices", devs, []protocol.DevID{1, 2, 3})
	got, err = e.FilesByFID(e.ctx, nil)
	e.must(err)
	e.same("files of no fids", got, []schema.LocatedFile(nil))
}

func checkListKeys(e *env) {
	keys := []string{
		"%", "%a", "A", "B", "_", "_x", "a", "a%", "a%b", "a_b", "aXb", "a\\b", "a\\", "aa", "ab", "b",
		"z", "{", "é", "éa", "ê", "日本", "日本語", "\U0010ffff", "\U0010ffffa", "\x7f", "ÿ",
	}
	for _, k := range keys {
		e.put(k)
	}
	other := e.domain("other")
	fid := e.open("a")
	c := e.closing(fid, "a")
	c.DMID = other
	e.must(e.CloseFile(e.ctx, c))

	slices.Sort(keys) // Go's strings are ordered by bytes too
	model := func(prefix, after string, limit int) []string {
		var want []string
		for _, k := range keys {
			if strings.HasPrefix(k, prefix) && k > after && len(want) < limit {
				want = append(want, k)
			}
		}
		return want
	}
	probes := append([]string{"", "nothing", "a\\b%", "\U0010fffe", "𐀀"}, keys...)
	for _, prefix := range probes {
		for _, after := range probes {
			limit := 1 + (len(prefix)+3*len(after))%9
			got, err := e.ListKeys(e.ctx, e.dmid, prefix, after, limit)
			e.must(err)
			if want := model(prefix, after, limit); !slices.Equal(got, want) {
				e.Errorf("keys with prefix %q after %q, limit %d: %q; want %q", prefix, after, limit, got, want)
			}
		}
	}
	got, err := e.ListKeys(e.ctx, other, "", "", 1000)
	e.must(err)
	e.same("keys of the other domain", got, []string{"a"})
	got, err = e.ListKeys(e.ctx, e.dmid, "", "", 0)
	e.must(err)
	e.same("no keys", got, []string(nil))
	for name, prefix := range e.badKeys() {
		if name == "cut character" {
			continue // a prefix in bytes, of no key here
		}
		got, err := e.ListKeys(e.ctx, e.dmid, prefix, "", 1000)
		if err != nil || len(got) != 0 {
			e.Errorf("prefix %s: %q, %v; want none", name, got, err)
		}
	}
}

func checkListFIDs(e *env) {
	a, b := e.put("a"), e.put("b")
	e.open("open")
	c := e.put("c")
	list := func(after protocol.FID, limit int) []protocol.FID {
		files, err := e.ListFIDs(e.ctx, after, limit)
		e.must(err)
		fids := make([]protocol.FID, len(files))
		for i, f := range files {
			fids[i] = f.FID
		}
		return fids
	}
	e.same("all", list(0, 500), []protocol.FID{a, b, c})
	e.same("two", list(0, 2), []protocol.FID{a, b})
	e.same("after a", list(a, 500), []protocol.FID{b, c})
	e.same("after the last", list(c, 500), []protocol.FID(nil))
	e.same("after the highest", list(protocol.MaxFID, 500), []protocol.FID(nil))
	e.same("limit 0", list(0, 0), []protocol.FID(nil))
	files, err := e.ListFIDs(e.ctx, b, 1)
	e.must(err)
	e.same("a file", files, []schema.File{{FID: c, DMID: e.dmid, Key: "c", Length: 11, DevCount: 1}})
}

func checkChecksum(e *env) {
	fid := e.put("k")
	sum, err := e.Checksum(e.ctx, fid)
	e.must(err)
	if !sum.IsZero() {
		e.Errorf("checksum is %s; want none", sum)
	}
	for _, want := range []protocol.Checksum{
		{Type: protocol.HashMD5, Sum: bytes.Repeat([]byte{0}, 16)},
		{Type: protocol.HashSHA1, Sum: bytes.Repeat([]byte{0xfe}, 20)},
	} {
		e.must(e.SetChecksum(e.ctx, fid, want))
		got, err := e.Checksum(e.ctx, fid)
		e.must(err)
		e.same("checksum", got, want)
		e.same("checksum by DebugFile", e.debug(fid).Checksum, want)
	}
	e.want(e.SetChecksum(e.ctx, fid+1, protocol.Checksum{Type: protocol.HashMD5, Sum: make([]byte, 16)}), schema.ErrGone)
	sum, err = e.Checksum(e.ctx, fid+1)
	e.must(err)
	if !sum.IsZero() {
		e.Errorf("checksum of an unknown fid is %s", sum)
	}
}

func checkDebugFile(e *env) {
	fid := e.putOn("k", 2, 1)
	for _, sql := range []string{
		"INSERT INTO file_to_delete2 (fid, nexttry, failcount) VALUES (%d, 50, 2)",
		"INSERT INTO file_to_queue (fid, type, nexttry) VALUES (%d, 1, 60)",
		"INSERT INTO file_to_queue (fid, type, devid, nexttry, failcount, flags, arg) VALUES (%d, 2, 9, 70, 1, 4, '3,4')",
		"UPDATE file_to_replicate SET fromdevid = 8, failcount = 3, nexttry = 40, flags = 1 WHERE fid = %d",
	} {
		e.db.Exec(e, fmt.Sprintf(sql, fid))
	}
	d := e.debug(fid)
	slices.SortFunc(d.Queues, func(a, b schema.QueueRow) int { return int(a.Queue) - int(b.Queue) })
	dev := func(d protocol.DevID) *protocol.DevID { return &d }
	arg := "3,4"
	e.same("file", d, schema.FileDebug{
		File:    &schema.File{FID: fid, DMID: e.dmid, Key: "k", Length: 11, DevCount: 2},
		Devices: []protocol.DevID{1, 2},
		Queues: []schema.QueueRow{
			{Queue: schema.QueueReplicate, FID: fid, DevID: dev(8), NextTry: 40, FailCount: 3, Flags: 1},
			{Queue: schema.QueueDelete, FID: fid, NextTry: 50, FailCount: 2},
			{Queue: schema.QueueFsck, FID: fid, NextTry: 60},
			{Queue: schema.QueueRebalance, FID: fid, DevID: dev(9), NextTry: 70, FailCount: 1, Flags: 4, Arg: &arg},
		},
	})

	tmp := e.open("tmp")
	e.must(e.QueueCopyDeletion(e.ctx, tmp, 5, schema.Raw))
	d = e.debug(tmp)
	if d.Tempfile == nil || d.Tempfile.Key != "tmp" || d.File != nil {
		e.Errorf("tempfile: %+v", d)
	}
	if r := e.row(schema.QueueCopyDelete, tmp); r == nil || r.DevID == nil || *r.DevID != 5 {
		e.Errorf("row of copy_to_delete: %+v", r)
	}
	e.same("unknown fid", e.debug(tmp+1_000_000), schema.FileDebug{})
}
