package volume

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"sync"
	"syscall"
	"time"
)

// flusher shares one kind of flush among its callers: each is answered by a run
// that began after it called.
type flusher struct {
	run  func() error
	pace *pace         // nil: a run begins as soon as the one before has ended
	turn chan struct{} // one run at a time
	mu   sync.Mutex    // guards next
	next *flight
}

// flight is a run to come, and all who wait for it.
type flight struct {
	done  chan struct{}
	err   error
	users int // guarded by flusher.mu until the run begins
}

func newFlusher(p *pace, run func() error) *flusher {
	return &flusher{run: run, pace: p, turn: make(chan struct{}, 1)}
}

// flush returns the outcome of a run that began after flush was called.
func (f *flusher) flush() error {
	f.mu.Lock()
	fl, lead := f.next, f.next == nil
	if lead {
		fl = &flight{done: make(chan struct{})}
		f.next = fl
	}
	fl.users++
	f.mu.Unlock()
	if !lead {
		<-fl.done
		return fl.err
	}
	f.turn <- struct{}{} // those who come during the run before ours join us
	f.pace.wait()
	f.mu.Lock()
	f.next = nil
	users := fl.users
	f.mu.Unlock()
	fl.err = f.pace.run(users, f.run)
	<-f.turn
	close(fl.done)
	return fl.err
}

const (
	// longestPace bounds how long flushes wait for company: what whoever uploads
	// does not notice.
	longestPace = 10 * time.Millisecond
	// paceShare is how many times as long as a flush takes files are collected for
	// the next. On disks that flush at once this is nothing; others, and the
	// journals on them, do many files' flushes in the time of one.
	paceShare = 4
	// companyUsers is how many have shared a flush at least before the next waits
	// for more: where so many come at the same time, more do in a moment.
	companyUsers = 3
)

// pace spaces out the flushes of a volume's directories while several files at a
// time wait for each.
type pace struct {
	mu      sync.Mutex    // guards all
	began   time.Time     // when the last flush did
	users   int           // that shared it
	usually time.Duration // how long flushes take, smoothed
}

// wait returns when the next flush is to begin.
func (p *pace) wait() {
	if p == nil {
		return
	}
	p.mu.Lock()
	var left time.Duration
	if p.users >= companyUsers {
		left = min(longestPace, paceShare*p.usually) - time.Since(p.began)
	}
	p.mu.Unlock()
	time.Sleep(left)
}

// run carries out a flush that so many share.
func (p *pace) run(users int, flush func() error) error {
	if p == nil {
		return flush()
	}
	began := time.Now()
	p.mu.Lock()
	p.began, p.users = began, users
	p.mu.Unlock()
	err := flush()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.usually += (time.Since(began) - p.usually) / 8
	return err
}

// dirFlushers has one flusher for each directory that is being flushed.
type dirFlushers struct {
	pace pace
	mu   sync.Mutex // guards of
	of   map[string]*dirFlusher
}

type dirFlusher struct {
	*flusher
	users int
}

func (d *dirFlushers) flush(dir string, run func() error) error {
	d.mu.Lock()
	f := d.of[dir]
	if f == nil {
		f = &dirFlusher{flusher: newFlusher(&d.pace, run)}
		d.of[dir] = f
	}
	f.users++
	d.mu.Unlock()
	err := f.flush()
	d.mu.Lock()
	if f.users--; f.users == 0 {
		delete(d.of, dir)
	}
	d.mu.Unlock()
	return err
}

// maxDurableDirs bounds the memory of known-durable directories; a device of
// ten digits' fids has 1,111,111 of them at most, and those in use at one time
// are few.
const maxDurableDirs = 1 << 16

// durableDirs remembers directories whose own entry, and those of all above
// them, are on disk.
type durableDirs struct {
	mu  sync.Mutex // guards set and generation
	set map[string]struct{}
	// generation changes whenever the set is cleared: what was flushed before
	// that is not entered after it.
	generation int
}

// has reports whether dir is known to be durable, and the generation to call
// add with otherwise.
func (d *durableDirs) has(dir string) (bool, int) {
	if dir == "." {
		return true, 0
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	_, ok := d.set[dir]
	return ok, d.generation
}

func (d *durableDirs) add(dir string, generation int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.generation != generation {
		return
	}
	if len(d.set) >= maxDurableDirs {
		clear(d.set)
	}
	d.set[dir] = struct{}{}
}

// forget empties the set: a directory in it has gone.
func (d *durableDirs) forget() {
	d.mu.Lock()
	defer d.mu.Unlock()
	clear(d.set)
	d.generation++
}

// flushAll is the shared flush of a volume that has its filesystem to itself.
func (v *Volume) flushAll() error {
	return v.shared(func() error {
		_, err := v.root.SyncFS()
		return err
	})
}

// shared runs a flush that several wait for, in a slot. The kernel reports a
// failed write once, perhaps to somebody else, and does not write it again. So a
// failure is noted before anybody hears of the flush, and from then on nothing
// that is not yet acknowledged can be.
func (v *Volume) shared(flush func() error) error {
	v.slots.await()
	defer v.slots.release()
	defer v.flushing.begin()()
	err := flush()
	switch {
	case errors.Is(err, fs.ErrNotExist), // somebody removed the directory; no write failed
		errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE): // it could not be opened; nor did one here
		return err
	}
	if err != nil {
		err = fmt.Errorf("%w: %w", ErrFlush, errno(err))
		if v.failed.CompareAndSwap(nil, &err) {
			v.log.Error().Err(err).Msg("device takes no more writes until it is opened anew")
		}
	}
	return v.Failed()
}

// Failed is nil, or an error matching [ErrFlush] since a flush failed that many
// files depended on. The device is only read then: what its filesystem shows
// need not be what is on disk, until it is mounted anew.
func (v *Volume) Failed() error {
	if err := v.failed.Load(); err != nil {
		return *err
	}
	return nil
}

// writable says why a change need not even begin. While a flush hangs none
// does: those that wait for it hold no slot, and would become more and more.
func (v *Volume) writable(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if v.Sick() {
		return ErrSick
	}
	if took := v.flushing.longest(); took >= patience*v.o.StuckAfter {
		return fmt.Errorf("a flush has not ended for %v: %w", took.Round(time.Second), ErrSick)
	}
	return v.Failed()
}

// flushing knows the shared flushes that are under way: as many as there are
// slots at most.
type flushing struct {
	mu    sync.Mutex // guards since
	since map[*time.Time]struct{}
}

// begin notes a flush, until end is called.
func (f *flushing) begin() (end func()) {
	now := time.Now()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.since[&now] = struct{}{}
	return func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		delete(f.since, &now)
	}
}

// longest is how long the oldest of them has been under way, 0 while there is
// none.
func (f *flushing) longest() (took time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for since := range f.since {
		took = max(took, time.Since(*since))
	}
	return took
}

// flushNames makes what was done to names in dir durable, and dir itself with
// everything above it. The caller holds no slot.
func (v *Volume) flushNames(dir string) error {
	if v.o.Durability == DurabilityNone {
		return nil
	}
	if v.group != nil {
		return v.group.flush()
	}
	return v.flushDirs(dir)
}

// flushDirs flushes dir, and those above it that are new.
func (v *Volume) flushDirs(dir string) error {
	if err := v.flushDir(dir); err != nil {
		return err
	}
	var fresh []string
	_, generation := v.durable.has(dir)
	for d := dir; ; d = parent(d) {
		if known, _ := v.durable.has(d); known {
			break
		}
		if err := v.flushDir(parent(d)); err != nil {
			return err
		}
		fresh = append(fresh, d)
	}
	for _, d := range fresh {
		v.durable.add(d, generation)
	}
	return nil
}

func (v *Volume) flushDir(dir string) error {
	return v.dirs.flush(dir, func() error {
		return v.shared(func() error { return v.root.SyncDir(dir) })
	})
}

// makeDirs makes dir, which was found missing, and what is missing above it.
func (v *Volume) makeDirs(dir string) error {
	if dir == "." {
		return fmt.Errorf("its folder is gone: %w", ErrNoDevice)
	}
	info, err := v.root.Stat(dir)
	switch {
	case err == nil && info.Mode.IsDir():
		return nil
	case err == nil:
		return fmt.Errorf("%s is not a directory: %w", dir, ErrBadName)
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	if up := parent(dir); up != "." {
		if err := v.makeDirs(up); err != nil {
			return err
		}
	}
	if known, _ := v.durable.has(dir); known {
		v.durable.forget() // before the new one can be seen
	}
	err = v.root.Mkdir(dir)
	switch {
	case errors.Is(err, fs.ErrExist):
		return nil
	case errors.Is(err, fs.ErrNotExist) && parent(dir) == ".":
		return fmt.Errorf("its folder is gone: %w", ErrNoDevice)
	}
	return err
}
