package storetest

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/schema"
)

// conditionCases are changes that are to be made only while a key names a
// certain file, or none.
var conditionCases = []testCase{
	{"Condition/close", checkConditionalClose},
	{"Condition/delete", checkConditionalDelete},
	{"Condition/rename", checkConditionalRename},
	{"Condition/class", checkConditionalClass},
	{"Condition/one creates", checkRaceCreate},
	{"Condition/counter", checkRaceSwap},
	{"Condition/delete class", checkRaceDeleteClass},
	{"Condition/among others", checkRaceMixed},
	{"Condition/crowded rename", checkRaceRename},
}

// closeIf closes fid as key k under conditions.
func (e *env) closeIf(s schema.Store, fid protocol.FID, keep bool, want *protocol.FID) error {
	c := e.closing(fid, "k")
	c.NoOverwrite, c.IfFID = keep, want
	return s.CloseFile(e.ctx, c)
}

func ptr[T any](v T) *T { return &v }

func checkConditionalClose(e *env) {
	fid := e.open("k")
	e.want(e.closeIf(e, fid, false, ptr(fid+1000)), protocol.ErrFIDMismatch)
	e.want(e.closeIf(e, fid, true, ptr(fid+1000)), protocol.ErrFIDMismatch)
	_, _, err := e.FileByKey(e.ctx, e.dmid, "k")
	e.want(err, protocol.ErrUnknownKey)
	if d := e.debug(fid); d.Tempfile == nil || len(d.Devices) != 0 || len(d.Queues) != 0 {
		e.Errorf("a refused close left %+v", d)
	}
	e.must(e.closeIf(e, fid, true, nil))
	e.want(e.closeIf(e, fid, true, nil), protocol.ErrNoTempfile)
	e.want(e.closeIf(e, fid, false, ptr(protocol.FID(0))), protocol.ErrNoTempfile)
	e.want(e.closeIf(e, fid+1000, true, nil), protocol.ErrNoTempfile)

	next := e.open("k")
	e.want(e.closeIf(e, next, true, nil), protocol.ErrKeyExists)
	e.want(e.closeIf(e, next, true, ptr(fid)), protocol.ErrKeyExists)
	e.want(e.closeIf(e, next, false, ptr(protocol.FID(0))), protocol.ErrFIDMismatch)
	e.want(e.closeIf(e, next, false, ptr(next)), protocol.ErrFIDMismatch)
	if d := e.debug(next); d.Tempfile == nil || d.File != nil || len(d.Devices) != 0 || len(d.Queues) != 0 {
		e.Errorf("a refused close left %+v", d)
	}
	e.queued(schema.QueueDelete, fid, false)

	e.must(e.closeIf(e, next, false, ptr(fid)))
	f, devs, err := e.FileByKey(e.ctx, e.dmid, "k")
	e.must(err)
	e.same("file", f, schema.File{FID: next, DMID: e.dmid, Key: "k", Length: 11, DevCount: 1})
	e.same("devices", devs, []protocol.DevID{1})
	e.queued(schema.QueueDelete, fid, true)
	e.queued(schema.QueueReplicate, next, true)

	// What else a close refuses.
	odd := e.open("k")
	c := e.closing(odd, "k")
	c.NoOverwrite, c.DMID = true, e.dmid+100
	if err := e.CloseFile(e.ctx, c); refusal(err) != "unreg_domain" {
		e.Errorf("into an unknown domain: %v", err)
	}
	c = e.closing(odd, "other")
	c.NoOverwrite, c.ClassID = true, 77
	if err := e.CloseFile(e.ctx, c); refusal(err) != "unreg_class" {
		e.Errorf("into an unknown class: %v", err)
	}
	e.refused("a bad key", e.CloseFile(e.ctx, schema.Close{FID: odd, DMID: e.dmid, Key: "a\x00", DevID: 1, NoOverwrite: true}))
	e.must(e.DiscardUpload(e.ctx, odd, 1))
}

func checkConditionalDelete(e *env) {
	fid := e.put("k")
	e.want(e.DeleteKeyIf(e.ctx, e.dmid, "k", fid+1), protocol.ErrFIDMismatch)
	e.want(e.DeleteKeyIf(e.ctx, e.dmid, "k", 0), protocol.ErrFIDMismatch)
	e.want(e.DeleteKeyIf(e.ctx, e.dmid, "nix", fid), protocol.ErrUnknownKey)
	e.want(e.DeleteKeyIf(e.ctx, e.dmid, "a\x00", fid), protocol.ErrUnknownKey)
	e.want(e.DeleteKeyIf(e.ctx, e.dmid+1, "k", fid), protocol.ErrUnknownKey)
	e.queued(schema.QueueDelete, fid, false)
	e.must(e.DeleteKeyIf(e.ctx, e.dmid, "k", fid))
	e.queued(schema.QueueDelete, fid, true)
	_, _, err := e.FileByKey(e.ctx, e.dmid, "k")
	e.want(err, protocol.ErrUnknownKey)
	e.want(e.DeleteKeyIf(e.ctx, e.dmid, "k", fid), protocol.ErrUnknownKey)
}

func checkConditionalRename(e *env) {
	fid, other := e.put("k"), e.put("other")
	e.want(e.RenameKeyIf(e.ctx, e.dmid, "k", "new", other), protocol.ErrFIDMismatch)
	e.want(e.RenameKeyIf(e.ctx, e.dmid, "k", "other", other), protocol.ErrFIDMismatch)
	e.want(e.RenameKeyIf(e.ctx, e.dmid, "k", "other", fid), protocol.ErrKeyExists)
	e.want(e.RenameKeyIf(e.ctx, e.dmid, "nix", "new", fid), protocol.ErrUnknownKey)
	e.refused("a bad key", e.RenameKeyIf(e.ctx, e.dmid, "k", "a\x00", fid))
	e.want(e.RenameKeyIf(e.ctx, e.dmid, "k", "k", other), protocol.ErrFIDMismatch)
	e.must(e.RenameKeyIf(e.ctx, e.dmid, "k", "k", fid))
	e.must(e.RenameKeyIf(e.ctx, e.dmid, "k", "new", fid))
	f, _, err := e.FileByKey(e.ctx, e.dmid, "new")
	e.must(err)
	if f.FID != fid {
		e.Errorf("the new key names %d; want %d", f.FID, fid)
	}
	// Which of two faults is told does not depend on the engine.
	e.want(e.RenameKey(e.ctx, e.dmid, "a\x00", "b\x00"), protocol.ErrUnknownKey)
}

func checkConditionalClass(e *env) {
	class, err := e.CreateClass(e.ctx, "d", schema.Class{Name: "c", MinDevCount: 1})
	e.must(err)
	fid := e.put("k")
	for _, j := range e.claim(schema.QueueReplicate) {
		_, err := e.Finish(e.ctx, []schema.Job{j})
		e.must(err)
	}
	e.want(e.SetFileClassIf(e.ctx, e.dmid, "k", fid+1, class), protocol.ErrFIDMismatch)
	e.want(e.SetFileClassIf(e.ctx, e.dmid, "nix", fid, class), protocol.ErrUnknownKey)
	e.want(e.SetFileClassIf(e.ctx, e.dmid, "k", fid, class+1), protocol.ErrClassNotFound)
	e.want(e.SetFileClass(e.ctx, fid, class+1), protocol.ErrClassNotFound)
	e.want(e.SetFileClass(e.ctx, fid+1000, class), schema.ErrGone)
	e.queued(schema.QueueReplicate, fid, false)
	e.must(e.SetFileClassIf(e.ctx, e.dmid, "k", fid, class))
	if f := e.debug(fid).File; f == nil || f.ClassID != class {
		e.Errorf("the file is %+v", f)
	}
	e.queued(schema.QueueReplicate, fid, true)
	e.must(e.SetFileClassIf(e.ctx, e.dmid, "k", fid, 0))
}

// checkRaceCreate has many clients of two trackers create keys that nobody may
// overwrite: each key gets one file, whose client is told so, and nothing is
// lost of the others.
func checkRaceCreate(e *env) {
	stores := []schema.Store{e.Store, e.db.Open(e)}
	for round := range scale(e, 6) {
		key := fmt.Sprint(round)
		var won, deleted atomic.Uint64
		parallel(24, func(i int) {
			s := stores[i%2]
			fid, err := s.CreateTempfile(e.ctx, e.upload(key))
			if err != nil {
				e.Error(err)
				return
			}
			c := e.closing(fid, key)
			want := protocol.ErrKeyExists
			if c.NoOverwrite = i%3 != 0; !c.NoOverwrite {
				c.IfFID, want = ptr(protocol.FID(0)), protocol.ErrFIDMismatch
			}
			switch err := s.CloseFile(e.ctx, c); {
			case err == nil:
				if !won.CompareAndSwap(0, uint64(fid)) {
					e.Errorf("fids %d and %d were both created as %q", won.Load(), fid, key)
				}
			case errors.Is(err, want):
				if err := s.DiscardUpload(e.ctx, fid, 1); err != nil {
					e.Errorf("discard fid %d: %v", fid, err)
				}
				deleted.Add(1)
			default:
				e.Errorf("close: %v", err)
			}
		})
		f, _, err := e.FileByKey(e.ctx, e.dmid, key)
		e.must(err)
		if uint64(f.FID) != won.Load() || deleted.Load() != 23 {
			e.Errorf("the key names %d, %d was told that it won, %d that they did not", f.FID, won.Load(), deleted.Load())
		}
		e.queued(schema.QueueDelete, f.FID, false)
	}
	if jobs := e.claim(schema.QueueDelete); len(jobs) != 23*scale(e, 6) {
		e.Errorf("%d uploads are queued for deletion", len(jobs))
	}
}

// checkRaceSwap counts with compare and swap, in the lengths of files: no step
// is lost, whatever else is closed, deleted and renamed at the same time.
func checkRaceSwap(e *env) {
	stores := []schema.Store{e.Store, e.db.Open(e)}
	const clients = 12
	steps := scale(e, 4)
	e.put("k")
	var mu sync.Mutex
	closed := map[protocol.FID]bool{}
	parallel(clients+2, func(i int) {
		s := stores[i%2]
		if i >= clients { // others close other keys, and try this one under a wrong fid
			for n := range 4 * steps {
				fid, err := s.CreateTempfile(e.ctx, e.upload("k"))
				if err == nil {
					err = s.CloseFile(e.ctx, e.closing(fid, fmt.Sprint("other", n)))
				}
				if err != nil {
					e.Error(err)
				}
				if err := s.DeleteKeyIf(e.ctx, e.dmid, "k", fid); !errors.Is(err, protocol.ErrFIDMismatch) {
					e.Errorf("delete under a wrong fid: %v", err)
				}
				if err := s.RenameKeyIf(e.ctx, e.dmid, "k", "elsewhere", fid); !errors.Is(err, protocol.ErrFIDMismatch) {
					e.Errorf("rename under a wrong fid: %v", err)
				}
			}
			return
		}
		for done := 0; done < steps; {
			f, _, err := s.FileByKey(e.ctx, e.dmid, "k")
			if err != nil {
				e.Error(err)
				return
			}
			fid, err := s.CreateTempfile(e.ctx, e.upload("k"))
			if err != nil {
				e.Error(err)
				return
			}
			c := e.closing(fid, "k")
			c.Length, c.IfFID = f.Length+1, &f.FID
			switch err := s.CloseFile(e.ctx, c); {
			case err == nil:
				done++
				mu.Lock()
				closed[fid] = true
				mu.Unlock()
			case !errors.Is(err, protocol.ErrFIDMismatch):
				e.Errorf("close: %v", err)
				return
			}
		}
	})
	f, _, err := e.FileByKey(e.ctx, e.dmid, "k")
	e.must(err)
	if want := int64(11 + clients*steps); f.Length != want || len(closed) != clients*steps {
		e.Errorf("the counter is at %d after %d steps; want %d", f.Length, len(closed), want)
	}
	for fid := range closed {
		e.queued(schema.QueueDelete, fid, fid != f.FID)
	}
}

// checkRaceMixed has clients of two trackers close one key with and without
// conditions, delete it and rename it, in any order: every upload ends as the
// file that a key names, or queued for deletion.
func checkRaceMixed(e *env) {
	const clients = 24
	seed := seed(e)
	stores := []schema.Store{e.Store, e.db.Open(e)}
	var mu sync.Mutex
	all := map[protocol.FID]bool{}
	parallel(clients, func(i int) {
		s, rng := stores[i%2], random(seed, i)
		for range scale(e, 4) {
			fid, err := s.CreateTempfile(e.ctx, e.upload("k"))
			if err != nil {
				e.Errorf("create: %v", err)
				return
			}
			mu.Lock()
			all[fid] = true
			mu.Unlock()
			named := protocol.FID(0)
			if f, _, err := s.FileByKey(e.ctx, e.dmid, "k"); err == nil {
				named = f.FID
			}
			c := e.closing(fid, "k")
			switch rng.IntN(4) {
			case 0:
				c.NoOverwrite = true
			case 1, 2:
				c.IfFID = &named
			}
			err = s.CloseFile(e.ctx, c)
			if code := refusal(err); code == "key_exists" || code == "fid_mismatch" {
				err = s.DiscardUpload(e.ctx, fid, 1)
			}
			if err == nil {
				switch rng.IntN(5) {
				case 0:
					err = s.DeleteKeyIf(e.ctx, e.dmid, "k", fid)
				case 1:
					err = s.RenameKeyIf(e.ctx, e.dmid, "k", "k2", fid)
				case 2:
					err = s.RenameKey(e.ctx, e.dmid, "k2", "k")
				case 3:
					_, err = s.DeleteKey(e.ctx, e.dmid, "k2")
				}
			}
			if err != nil && refusal(err) == "" {
				e.Errorf("fid %d: %v", fid, err)
			}
		}
	})
	named := map[protocol.FID]bool{}
	files, err := e.ListFIDs(e.ctx, 0, 1_000_000)
	e.must(err)
	for _, f := range files {
		named[f.FID] = true
	}
	if len(files) > 2 {
		e.Errorf("there are %d files under two keys", len(files))
	}
	for fid := range all {
		e.queued(schema.QueueDelete, fid, !named[fid])
		if d := e.debug(fid); d.Tempfile != nil {
			e.Errorf("the upload of fid %d is still open", fid)
		}
	}
}

// checkRaceDeleteClass deletes classes while files are closed and moved into
// them: no file may be left in a class that is gone.
func checkRaceDeleteClass(e *env) {
	stores := []schema.Store{e.Store, e.db.Open(e)}
	for round := range scale(e, 8) {
		name := fmt.Sprint("doomed", round)
		class, err := e.CreateClass(e.ctx, "d", schema.Class{Name: name, MinDevCount: 1})
		e.must(err)
		moved := e.put(fmt.Sprint("moved", round))
		var fids [6]protocol.FID
		for i := range fids { // opened in another class: the deletion does not see them before
			fids[i] = e.open("k")
		}
		var in atomic.Int64
		var gone error
		parallel(len(fids)+2, func(i int) {
			s := stores[i%2]
			switch {
			case i == len(fids):
				gone = s.DeleteClass(e.ctx, "d", name)
			case i > len(fids):
				if err := s.SetFileClass(e.ctx, moved, class); err == nil {
					in.Add(1)
				} else if !errors.Is(err, protocol.ErrClassNotFound) {
					e.Errorf("set class: %v", err)
				}
			default:
				c := e.closing(fids[i], fmt.Sprint(round, "/", i))
				c.ClassID, c.NoOverwrite = class, i%2 == 0
				switch err := s.CloseFile(e.ctx, c); {
				case err == nil:
					in.Add(1)
				case refusal(err) != "unreg_class":
					e.Errorf("close: %v", err)
				}
			}
		})
		switch {
		case gone == nil && in.Load() != 0:
			e.Errorf("the class is gone, and has %d files", in.Load())
		case gone != nil && (!errors.Is(gone, protocol.ErrClassHasFiles) || in.Load() == 0):
			e.Errorf("delete class with %d files: %v", in.Load(), gone)
		}
	}
}

// checkRaceRename has many clients rename one key back and forth while it is
// overwritten: none of them fails.
func checkRaceRename(e *env) {
	stores := []schema.Store{e.Store, e.db.Open(e)}
	e.put("a")
	parallel(24, func(i int) {
		s := stores[i%2]
		for n := range scale(e, 4) {
			from, to := "a", "b"
			if (i+n)%2 == 0 {
				from, to = to, from
			}
			if i%6 == 0 {
				fid, err := s.CreateTempfile(e.ctx, e.upload(from))
				if err == nil {
					err = s.CloseFile(e.ctx, e.closing(fid, from))
				}
				if err != nil {
					e.Errorf("close: %v", err)
				}
			}
			err := s.RenameKey(e.ctx, e.dmid, from, to)
			if err != nil && !errors.Is(err, protocol.ErrUnknownKey) && !errors.Is(err, protocol.ErrKeyExists) {
				e.Errorf("rename: %v", err)
			}
		}
	})
}
