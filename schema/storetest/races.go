package storetest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/schema"
)

var raceCases = []testCase{
	{"Race/one key", checkRaceOneKey},
	{"Race/delete domain", checkRaceDeleteDomain},
	{"Race/bad key among good ones", checkRaceBadKey},
	{"Race/close one upload", checkRaceCloseOnce},
	{"Race/locations", checkRaceLocations},
	{"Race/work on many fids", checkRaceWork},
	{"Race/deletions and leases", checkRaceLeases},
	{"Race/locks", checkRaceLocks},
	{"Race/create domains and hosts", checkRaceAdmin},
	{"Race/locked row", checkLockedRow},
}

func contextWithCancel(e *env) (context.Context, context.CancelFunc) {
	return context.WithCancel(e.ctx)
}

func isCanceled(err error) bool { return errors.Is(err, context.Canceled) }

// checkRaceOneKey has two trackers with 64 clients each close, delete and
// rename one key. Afterwards every acknowledged fid is in file or queued for
// deletion, exactly once.
func checkRaceOneKey(e *env) {
	const clients = 64
	seed := seed(e)
	rounds := scale(e, 3)
	stores := []schema.Store{e.Store, e.db.Open(e)}
	var mu sync.Mutex
	acked := make(map[protocol.FID]bool)   // closed
	deleted := make(map[protocol.FID]bool) // answered by DeleteKey
	parallel(2*clients, func(i int) {
		s, rng := stores[i%2], random(seed, i)
		for range rounds {
			fid, err := s.CreateTempfile(e.ctx, e.upload("k"))
			if err != nil {
				e.Errorf("create: %v", err)
				return
			}
			switch err := s.CloseFile(e.ctx, e.closing(fid, "k")); {
			case err == nil:
				mu.Lock()
				acked[fid] = true
				mu.Unlock()
			default:
				e.Errorf("close fid %d: %v", fid, err)
				return
			}
			switch rng.IntN(4) {
			case 0:
				fid, err := s.DeleteKey(e.ctx, e.dmid, "k")
				if errors.Is(err, protocol.ErrUnknownKey) {
					break
				}
				if err != nil {
					e.Errorf("delete: %v", err)
					return
				}
				mu.Lock()
				if deleted[fid] {
					e.Errorf("fid %d was deleted twice", fid)
				}
				deleted[fid] = true
				mu.Unlock()
			case 1:
				from, to := "k", "k2"
				if rng.IntN(2) == 0 {
					from, to = to, from
				}
				err := s.RenameKey(e.ctx, e.dmid, from, to)
				if err != nil && !errors.Is(err, protocol.ErrUnknownKey) && !errors.Is(err, protocol.ErrKeyExists) {
					e.Errorf("rename: %v", err)
					return
				}
			}
		}
	})
	named := make(map[protocol.FID]bool)
	for _, key := range []string{"k", "k2"} {
		f, _, err := e.FileByKey(e.ctx, e.dmid, key)
		if errors.Is(err, protocol.ErrUnknownKey) {
			continue
		}
		e.must(err)
		named[f.FID] = true
	}
	files, err := e.ListFIDs(e.ctx, 0, 1_000_000)
	e.must(err)
	if len(files) != len(named) {
		e.Errorf("there are %d files; want the %d that have a key", len(files), len(named))
	}
	if len(acked) != 2*clients*rounds {
		e.Errorf("%d closes were acknowledged; want %d", len(acked), 2*clients*rounds)
	}
	queue := make(map[protocol.FID]int)
	for {
		jobs := e.claim(schema.QueueDelete)
		if len(jobs) == 0 {
			break
		}
		for _, j := range jobs {
			queue[j.FID]++
		}
	}
	for fid := range acked {
		if n := queue[fid]; n > 1 || (n == 1) == named[fid] {
			e.Errorf("acknowledged fid %d: in file %t, queued for deletion %d times", fid, named[fid], n)
		}
		if deleted[fid] && named[fid] {
			e.Errorf("deleted fid %d is still in file", fid)
		}
	}
	for fid := range queue {
		if !acked[fid] {
			e.Errorf("fid %d is queued for deletion, and was never closed", fid)
		}
	}
}

// checkRaceDeleteDomain deletes domains while clients close files in them: no
// file may be left in a domain that is gone.
func checkRaceDeleteDomain(e *env) {
	stores := []schema.Store{e.Store, e.db.Open(e)}
	for round := range scale(e, 8) {
		name := fmt.Sprint("doomed", round)
		dmid := e.domain(name)
		var closed atomic.Int64
		var refused sync.Map
		var domainErr error
		parallel(9, func(i int) {
			s := stores[i%2]
			if i == 8 {
				domainErr = s.DeleteDomain(e.ctx, name)
				return
			}
			up := e.upload(fmt.Sprint(i))
			up.DMID = dmid
			fid, err := s.CreateTempfile(e.ctx, up)
			if err != nil && refusal(err) == "" {
				e.Errorf("create: %v", err)
			}
			if err != nil {
				return
			}
			c := e.closing(fid, up.Key)
			c.DMID = dmid
			switch err := s.CloseFile(e.ctx, c); {
			case err == nil:
				closed.Add(1)
			case refusal(err) == "unreg_domain":
				refused.Store(fid, true)
			default:
				e.Errorf("close fid %d: %v", fid, err)
			}
		})
		files, err := e.ListKeys(e.ctx, dmid, "", "", 1000)
		e.must(err)
		switch {
		case domainErr == nil && (closed.Load() != 0 || len(files) != 0):
			e.Errorf("the domain is gone, but %d files were closed in it: %q", closed.Load(), files)
		case domainErr != nil && !errors.Is(domainErr, protocol.ErrDomainHasFiles):
			e.Errorf("delete domain: %v", domainErr)
		case int(closed.Load()) != len(files):
			e.Errorf("%d files were closed; the domain has %q", closed.Load(), files)
		}
		refused.Range(func(fid, _ any) bool {
			// Its uploader was told; its bytes are still known of.
			if _, err := e.Tempfile(e.ctx, fid.(protocol.FID)); err != nil {
				e.Errorf("upload %d was refused, and forgotten: %v", fid, err)
			}
			return true
		})
	}
}

// checkRaceBadKey has one caller's fault among many good calls, that may share
// a statement with it.
func checkRaceBadKey(e *env) {
	bad := slices.Collect(func(yield func(string) bool) {
		for _, k := range e.badKeys() {
			if !yield(k) {
				return
			}
		}
	})
	for round := range scale(e, 4) {
		parallel(48, func(i int) {
			key := fmt.Sprintf("%d/%d", round, i)
			fid, err := e.CreateTempfile(e.ctx, e.upload(key))
			if err != nil {
				e.Errorf("create %q: %v", key, err)
				return
			}
			switch i % 6 {
			case 0:
				_, err := e.CreateTempfile(e.ctx, e.upload(bad[i%len(bad)]))
				e.refused("create", err)
				e.refused("close", e.CloseFile(e.ctx, e.closing(fid, bad[i%len(bad)])))
			case 1:
				c := e.closing(fid, key)
				c.FID += 10_000_000
				if err := e.CloseFile(e.ctx, c); !errors.Is(err, protocol.ErrNoTempfile) {
					e.Errorf("close an unknown upload: %v", err)
				}
			case 2:
				c := e.closing(fid, key)
				c.Length = -1 // the column refuses it
				if err := e.CloseFile(e.ctx, c); err == nil {
					e.Error("a length of -1 was taken")
				}
			case 3:
				t := e.upload(key)
				t.FID = fid
				if _, err := e.CreateTempfile(e.ctx, t); !errors.Is(err, protocol.ErrFIDInUse) {
					e.Errorf("create a known fid: %v", err)
				}
			}
			if err := e.CloseFile(e.ctx, e.closing(fid, key)); err != nil {
				e.Errorf("close fid %d %q: %v", fid, key, err)
				return
			}
			f, _, err := e.FileByKey(e.ctx, e.dmid, key)
			if err != nil || f.FID != fid {
				e.Errorf("key %q: %+v, %v; want fid %d", key, f, err, fid)
			}
		})
	}
}

// checkRaceCloseOnce has many close, discard and expire one upload: one of them
// gets it.
func checkRaceCloseOnce(e *env) {
	stores := []schema.Store{e.Store, e.db.Open(e)}
	for round := range scale(e, 10) {
		key := fmt.Sprint(round)
		fid := e.open(key)
		e.advance(2 * time.Hour)
		var closed, discarded atomic.Int64
		parallel(12, func(i int) {
			s := stores[i%2]
			var err error
			switch i % 4 {
			case 0:
				if err = s.DiscardUpload(e.ctx, fid, 1); err == nil {
					discarded.Add(1)
				}
			case 1:
				var x schema.Expired
				x, err = s.ExpireTempfiles(e.ctx, time.Hour, 10)
				discarded.Add(int64(x.Discard))
			default:
				if err = s.CloseFile(e.ctx, e.closing(fid, key)); err == nil {
					closed.Add(1)
				}
			}
			if err != nil && !errors.Is(err, protocol.ErrNoTempfile) {
				e.Error(err)
			}
		})
		if closed.Load()+discarded.Load() != 1 {
			e.Errorf("the upload was closed %d times, discarded %d times", closed.Load(), discarded.Load())
		}
		e.queued(schema.QueueDelete, fid, discarded.Load() == 1)
		if got := e.debug(fid).File != nil; got != (closed.Load() == 1) {
			e.Errorf("there is a file: %t", got)
		}
	}
}

// checkRaceLocations has two workers bring one file to different devices, as
// the file goes: each outcome leaves every copy known, in file_on or in
// copy_to_delete.
func checkRaceLocations(e *env) {
	stores := []schema.Store{e.Store, e.db.Open(e)}
	for round := range scale(e, 10) {
		key := fmt.Sprint(round)
		fid := e.put(key)
		var added, lost [3]atomic.Bool
		parallel(4, func(i int) {
			if i == 3 {
				if _, err := e.DeleteKey(e.ctx, e.dmid, key); err != nil {
					e.Error(err)
				}
				return
			}
			err := stores[i%2].AddLocation(e.ctx, fid, protocol.DevID(10+i), devs(1))
			switch {
			case err == nil:
				added[i].Store(true)
			case errors.Is(err, schema.ErrStale), errors.Is(err, schema.ErrGone):
				lost[i].Store(true)
			default:
				e.Error(err)
			}
		})
		on, pending := devs(1), devs()
		for i := range added {
			if added[i].Load() {
				on = append(on, protocol.DevID(10+i))
			}
			if lost[i].Load() {
				pending = append(pending, protocol.DevID(10+i))
			}
		}
		if len(on) > 2 {
			e.Errorf("devices %v were all recorded by workers that saw only device 1", on)
		}
		e.located(fid, on, pending)
	}
}

// checkRaceWork has many workers at once, each with a fid of its own, change its
// locations and read them: each gets what is true of its own.
func checkRaceWork(e *env) {
	const workers = 72
	stores := []schema.Store{e.Store, e.db.Open(e)}
	for round := range scale(e, 2) {
		fids := make([]protocol.FID, workers)
		parallel(workers, func(i int) {
			key := fmt.Sprintf("%d/%d", round, i)
			fid, err := e.CreateTempfile(e.ctx, e.upload(key))
			if err == nil {
				err = e.CloseFile(e.ctx, e.closing(fid, key))
			}
			if err != nil {
				e.Errorf("make a file: %v", err)
			}
			fids[i] = fid
		})
		parallel(workers, func(i int) {
			s, fid, dev := stores[i%2], fids[i], protocol.DevID(10+i%3)
			check := func(what string, err, want error) {
				if !errors.Is(err, want) || (err != nil && want == nil) {
					e.Errorf("%s %d: %v; want %v", what, i, err, want)
				}
			}
			check("announce", s.AnnounceCopy(e.ctx, fid, dev, schema.Raw, time.Minute), nil)
			sum := protocol.Checksum{Type: protocol.HashMD5, Sum: fmt.Appendf(nil, "%016d", i)}
			check("checksum", s.SetChecksum(e.ctx, fid, sum), nil)
			on, pending := devs(1), devs(dev)
			switch i % 6 {
			case 0:
				check("add", s.AddLocation(e.ctx, fid, dev, devs(1)), nil)
				on, pending = devs(1, dev), nil
			case 1:
				check("add stale", s.AddLocation(e.ctx, fid, dev, devs(2)), schema.ErrStale)
			case 2:
				check("add gone", s.AddLocation(e.ctx, fid+10_000_000, dev, nil), schema.ErrGone)
			case 3:
				check("add", s.AddLocation(e.ctx, fid, dev, devs(1)), nil)
				check("drop", s.DropLocation(e.ctx, fid, 1, devs(1, dev)), nil)
				on, pending = devs(dev), devs(1)
			case 4:
				check("drop stale", s.DropLocation(e.ctx, fid, 1, devs(1, 2)), schema.ErrStale)
				_ = s.AddLocation(e.ctx, fid+20_000_000, 1<<31, nil) // some columns refuse it
			case 5:
				check("forget", s.DeletedLocations(e.ctx, fid, devs(1, 2)), nil)
				check("queue", s.QueueCopyDeletion(e.ctx, fid, 9, schema.Raw), nil)
				on, pending = nil, devs(9, dev)
			}
			both := []protocol.FID{fid, fids[(i+1)%workers]}
			locs, err := s.LocationsOf(e.ctx, both)
			check("locations", err, nil)
			waits, err := s.PendingDeletions(e.ctx, both)
			check("pending deletions", err, nil)
			got, err := s.Checksum(e.ctx, fid)
			check("checksum", err, nil)
			files, err := s.FilesByFID(e.ctx, append(both, fid))
			check("files", err, nil)
			if !slices.Equal(locs[fid], on) || !slices.Equal(waits[fid], pending) || !got.Equal(sum) {
				e.Errorf("%d is on %v, waits on %v, has %s; want %v, %v, %s", i, locs[fid], waits[fid], got, on, pending, sum)
			}
			own := slices.IndexFunc(files, func(f schema.LocatedFile) bool { return f.FID == fid })
			if len(files) != 2 || !slices.Equal(files[own].Devices, on) || files[own].DevCount != len(on) {
				e.Errorf("%d: files are %+v", i, files)
			}
		})
	}
}

// checkRaceLeases has many workers at once give back, or be done with, deletions
// that they hold, or hold no more.
func checkRaceLeases(e *env) {
	const workers = 48
	stores := []schema.Store{e.Store, e.db.Open(e)}
	for i := range workers {
		key := fmt.Sprint(i)
		e.put(key)
		_, err := e.DeleteKey(e.ctx, e.dmid, key)
		e.must(err)
	}
	jobs := e.claim(schema.QueueDelete)
	if len(jobs) != workers {
		e.Fatalf("%d jobs; want %d", len(jobs), workers)
	}
	parallel(workers, func(i int) {
		s, j := stores[i%2], jobs[i]
		if i%4 < 2 {
			if err := s.DeletedLocations(e.ctx, j.FID, devs(1)); err != nil {
				e.Error(err)
			}
		}
		if i%8 >= 4 {
			j.NextTry--
		}
		var did bool
		var err error
		want := i%8 < 4
		if i%2 == 0 {
			did, err = s.FinishDeletion(e.ctx, j)
			want = want && i%4 < 2 // and not where a copy is left
		} else {
			did, err = s.Reschedule(e.ctx, j, time.Duration(i)*time.Hour, i)
		}
		if err != nil || did != want {
			e.Errorf("job %d: %t, %v; want %t", i, did, err, want)
		}
	})
	for i, j := range jobs {
		e.queued(schema.QueueDelete, j.FID, i%8 != 0)
		if row := e.row(schema.QueueDelete, j.FID); (i%8 == 1 || i%8 == 3) && row.FailCount != i {
			e.Errorf("job %d was given back as %+v", i, row)
		}
	}
}

// checkRaceLocks has many callers of two trackers want the same locks at once.
func checkRaceLocks(e *env) {
	stores := []schema.Store{e.Store, e.db.Open(e)}
	for round := range scale(e, 10) {
		var holders [4]atomic.Int64
		parallel(24, func(i int) {
			s := stores[i%2]
			names := []string{schema.FIDLock(protocol.FID(i % 4)), schema.FIDLock(protocol.FID((i + 1) % 4))}
			held, lost, err := s.TryLock(e.ctx, names)
			if err != nil || lost == nil {
				e.Errorf("round %d: %v", round, err)
				return
			}
			for n := range holders {
				if slices.Contains(held, schema.FIDLock(protocol.FID(n))) && holders[n].Add(1) != 1 {
					e.Errorf("lock %d was given twice", n)
				}
			}
			for n := range holders {
				if slices.Contains(held, schema.FIDLock(protocol.FID(n))) {
					holders[n].Add(-1)
				}
			}
			if err := s.Unlock(e.ctx, held); err != nil {
				e.Error(err)
			}
		})
		held, _, err := e.TryLock(e.ctx, []string{schema.FIDLock(0), schema.FIDLock(1), schema.FIDLock(2), schema.FIDLock(3)})
		if err != nil || len(held) != 4 {
			e.Fatalf("not all locks were given back: %q, %v", held, err)
		}
		e.must(e.Unlock(e.ctx, held))
	}
}

// checkRaceAdmin has administrators at two trackers at work: numbers and names
// are given once.
func checkRaceAdmin(e *env) {
	stores := []schema.Store{e.Store, e.db.Open(e)}
	var made [2]atomic.Int64
	parallel(16, func(i int) {
		s := stores[i%2]
		if _, err := s.CreateDomain(e.ctx, fmt.Sprint("domain", i)); err != nil {
			e.Errorf("create domain: %v", err)
		}
		if _, err := s.CreateHost(e.ctx, schema.Host{Status: schema.HostAlive, Name: fmt.Sprint("host", i), IP: fmt.Sprint("10.0.0.", i), Port: 1}); err != nil {
			e.Errorf("create host: %v", err)
		}
		if _, err := s.CreateClass(e.ctx, "d", schema.Class{Name: fmt.Sprint("class", i), MinDevCount: 1}); err != nil {
			e.Errorf("create class: %v", err)
		}
		switch _, err := s.CreateDomain(e.ctx, "same"); {
		case err == nil:
			made[0].Add(1)
		case !errors.Is(err, protocol.ErrDomainExists):
			e.Errorf("create domain: %v", err)
		}
		switch _, err := s.CreateClass(e.ctx, "d", schema.Class{Name: "same", MinDevCount: 1}); {
		case err == nil:
			made[1].Add(1)
		case !errors.Is(err, protocol.ErrClassExists):
			e.Errorf("create class: %v", err)
		}
	})
	top := e.topology()
	if len(top.Domains) != 18 || len(top.Hosts) != 16 || len(top.Classes) != 17 || made[0].Load() != 1 || made[1].Load() != 1 {
		e.Errorf("there are %d domains, %d hosts, %d classes; want 18, 16, 17", len(top.Domains), len(top.Hosts), len(top.Classes))
	}
}

// checkLockedRow closes keys while a stranger's transaction holds the row of
// one of them: only that close waits.
func checkLockedRow(e *env) {
	locker, ok := e.db.(KeyLocker)
	if !ok {
		e.Skip("the engine has no row locks")
	}
	old := e.put("locked")
	release := locker.LockKey(e, e.dmid, "locked")
	fid := e.open("locked")
	blocked := make(chan error, 1)
	go func() { blocked <- e.CloseFile(e.ctx, e.closing(fid, "locked")) }()
	parallel(16, func(i int) {
		ctx, cancel := context.WithTimeout(e.ctx, 10*time.Second)
		defer cancel()
		key := fmt.Sprint("free", i)
		fid, err := e.CreateTempfile(ctx, e.upload(key))
		if err == nil {
			err = e.CloseFile(ctx, e.closing(fid, key))
		}
		if err != nil {
			e.Errorf("close %q: %v", key, err)
		}
	})
	impatient := e.open("locked")
	ctx, cancel := context.WithTimeout(e.ctx, 100*time.Millisecond)
	defer cancel()
	if err := e.CloseFile(ctx, e.closing(impatient, "locked")); !errors.Is(err, context.DeadlineExceeded) {
		e.Errorf("close with a deadline: %v; want context.DeadlineExceeded", err)
	}
	select {
	case err := <-blocked:
		// Giving up is allowed, if nothing has changed.
		if err == nil {
			e.Error("the key was closed under a stranger's lock")
		} else if _, err := e.Tempfile(e.ctx, fid); err != nil {
			e.Errorf("the close gave up, and its upload is gone: %v", err)
		}
		release()
		e.must(e.CloseFile(e.ctx, e.closing(fid, "locked")))
	default:
		release()
		e.must(<-blocked)
	}
	e.queued(schema.QueueDelete, old, true)
}
