package volume

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/mogile/mogile/protocol"
)

// Docroot is a folder whose dev<N> folders are devices. A dev<N> may be a
// symbolic link to a folder elsewhere; nothing else may lead out of a device.
type Docroot struct {
	path    string
	root    Root
	o       Options
	buffers sync.Pool

	mu      sync.Mutex // guards all below
	entries map[protocol.DevID]*entry
	closed  bool
	openers sync.WaitGroup // goroutines that open or close volumes
}

// entry is a dev<N> folder that is served, refused, or being opened.
type entry struct {
	since time.Time     // when opening began
	ready chan struct{} // closed when vol and err are set
	vol   *Volume       // nil if refused
	err   error
	check chan struct{} // closed when the look that Scan takes is over; nil before the first
}

func (e *entry) done() bool {
	select {
	case <-e.ready:
		return true
	default:
		return false
	}
}

// OpenDocroot opens a docroot and its devices. It fails where the options are
// wrong or the folder itself cannot be read; a device that cannot be served is
// answered by its error ([Docroot.Volume]). What dead processes left behind on
// the devices is removed, and every device is flushed once.
func OpenDocroot(dir string, o Options) (*Docroot, error) {
	if err := o.fill(); err != nil {
		return nil, fmt.Errorf("open docroot %s: %w", dir, err)
	}
	root, err := o.FS.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("open docroot %s: %w", dir, err)
	}
	d := &Docroot{path: dir, root: root, o: o, entries: make(map[protocol.DevID]*entry)}
	d.buffers.New = func() any { return new([bufferSize]byte) }
	if err := d.Scan(context.Background()); err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return d, nil
}

// Scan looks for new, vanished and exchanged dev<N> folders, and tries those
// again that were refused. It waits for each as long as a disk may be silent,
// for all at once. The error is the docroot's own; a device's is told by
// [Docroot.Volume].
func (d *Docroot) Scan(ctx context.Context) error {
	names, err := d.root.List(".")
	if err != nil {
		return fmt.Errorf("scan docroot %s: %w", d.path, err)
	}
	found := make(map[protocol.DevID]bool)
	for _, name := range names {
		if dev, ok := protocol.ParseDeviceName(name); ok {
			found[dev] = true
		}
	}
	d.mu.Lock()
	if d.closed {
		d.mu.Unlock()
		return fmt.Errorf("scan docroot %s: %w", d.path, fs.ErrClosed)
	}
	var pending []<-chan struct{}
	for dev := range found {
		e := d.entries[dev]
		switch {
		case e == nil, e.done() && e.vol == nil:
			pending = append(pending, d.open(dev, e).ready)
		case e.done():
			pending = append(pending, d.recheck(dev, e))
		default:
			pending = append(pending, e.ready)
		}
	}
	for dev, e := range d.entries {
		if !found[dev] && e.done() {
			delete(d.entries, dev)
			if e.vol != nil {
				e.vol.log.Info().Msg("device is gone")
				d.discard(e.vol)
			}
		}
	}
	d.mu.Unlock()

	t := time.NewTimer(d.o.StuckAfter)
	defer t.Stop()
	for _, ready := range pending {
		select {
		case <-ready:
		case <-t.C:
			return nil // the rest goes on by itself
		case <-ctx.Done():
			return fmt.Errorf("scan docroot %s: %w", d.path, ctx.Err())
		}
	}
	return nil
}

// open begins to open a folder, and enters it. before is what was known of it.
// The caller holds mu.
func (d *Docroot) open(dev protocol.DevID, before *entry) *entry {
	e := &entry{since: time.Now(), ready: make(chan struct{})}
	d.entries[dev] = e
	d.openers.Add(1)
	go func() {
		defer d.openers.Done()
		vol, err := d.openVolume(dev)
		d.mu.Lock()
		defer d.mu.Unlock()
		defer close(e.ready)
		e.vol, e.err = vol, err
		switch {
		case err == nil:
			vol.log.Info().Str("uuid", vol.Identity().UUID).Bool("syncfs", vol.group != nil).Msg("device is served")
			if d.closed {
				d.discard(vol)
			}
		case errors.Is(err, ErrNoDevice):
			delete(d.entries, dev)
		case before == nil || before.err == nil || before.err.Error() != err.Error():
			d.o.Log.Error().Err(err).Uint32("devid", uint32(dev)).Msg("device is not served")
		}
	}()
	return e
}

// recheck looks whether a served folder is still the one that was opened (an
// operator may have mounted another disk there), and gives it an identity if
// that could not be done before. The caller holds mu.
func (d *Docroot) recheck(dev protocol.DevID, e *entry) <-chan struct{} {
	if e.check != nil {
		select {
		case <-e.check:
		default:
			return e.check // the last look hangs
		}
	}
	done := make(chan struct{})
	e.check = done
	d.openers.Add(1)
	go func() {
		defer d.openers.Done()
		defer close(done)
		if d.same(e.vol) {
			if e.vol.Identity().UUID == "" {
				_, err := do(context.Background(), e.vol, func(*task) (struct{}, error) { return struct{}{}, e.vol.identify() }, nil)
				if err != nil {
					e.vol.log.Warn().Err(err).Msg("device has no identity")
				}
			}
			return
		}
		d.mu.Lock()
		if d.closed || d.entries[dev] != e {
			d.mu.Unlock()
			return
		}
		e.vol.log.Info().Msg("another folder is in the device's place")
		d.discard(e.vol)
		fresh := d.open(dev, nil)
		d.mu.Unlock()
		<-fresh.ready
	}()
	return done
}

// same reports whether v's folder is the one that its path leads to. An error
// is no proof that it is not.
func (d *Docroot) same(v *Volume) bool {
	root, err := d.o.FS.OpenRoot(v.path)
	if err != nil {
		return true
	}
	defer root.Close()
	id, err := root.ID()
	return err != nil || id == v.fsID
}

// discard closes a volume that is served no more. The caller holds mu.
func (d *Docroot) discard(v *Volume) {
	d.openers.Add(1)
	go func() {
		defer d.openers.Done()
		if err := v.close(); err != nil {
			v.log.Warn().Err(err).Msg("device could not be closed")
		}
	}()
}

// openVolume opens the folder of a device: everything that needs its disk and
// precedes its use.
func (d *Docroot) openVolume(dev protocol.DevID) (*Volume, error) {
	path := filepath.Join(d.path, "dev"+dev.String())
	root, err := d.o.FS.OpenRoot(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("dev%d: %w", dev, ErrNoDevice)
	case err != nil:
		return nil, fmt.Errorf("open dev%d: %w", dev, err)
	case dev > protocol.MaxDevID:
		err := fmt.Errorf("dev%d: the database knows device numbers up to %d only: %w", dev, protocol.MaxDevID, ErrRefused)
		return nil, errors.Join(err, root.Close())
	}
	v := &Volume{
		id: dev, path: path, root: root, o: &d.o, buffers: &d.buffers,
		log:     d.o.Log.With().Uint32("devid", uint32(dev)).Logger(),
		slots:   newSlots(d.o.Slots, d.o.StuckAfter),
		uploads: make(chan struct{}, d.o.Uploads),
		users:   users{idle: make(chan struct{})},
		names:   nameLocks{of: make(map[string]*nameLock)},
		temps:   temps{turn: make(chan struct{}, 1)},
		dirs:    dirFlushers{of: make(map[string]*dirFlusher)},
		durable: durableDirs{set: make(map[string]struct{})},

		flushing: flushing{since: make(map[*time.Time]struct{})},
	}
	if err := v.prepare(); err != nil {
		return nil, errors.Join(err, v.close())
	}
	return v, nil
}

// prepare makes the volume ready.
func (v *Volume) prepare() error {
	var err error
	if v.fsID, err = v.root.ID(); err != nil {
		return fmt.Errorf("open dev%d: %w", v.id, err)
	}
	v.mount, err = v.o.FS.Mount(v.path)
	if err != nil && (v.o.RequireMount || !errors.Is(err, errors.ErrUnsupported)) {
		return fmt.Errorf("open dev%d: %w", v.id, err)
	}
	if v.o.RequireMount && !v.mount.Here {
		return fmt.Errorf("dev%d: nothing is mounted on %s: %w", v.id, v.path, ErrRefused)
	}
	if err := v.identify(); err != nil {
		return err
	}
	if err := v.sweep(); err != nil {
		v.log.Warn().Err(err).Msg("leftovers of dead processes could not be removed")
	}
	if v.o.Durability == DurabilityFsync {
		// What a process before us had written but not flushed may be seen
		// from now on, so it has to last.
		reliable, err := v.root.SyncFS()
		if err != nil && !errors.Is(err, errors.ErrUnsupported) {
			return fmt.Errorf("flush dev%d: %w", v.id, err)
		}
		if reliable && v.mount.Exclusive {
			// Each file waits for two of these, which is company enough.
			v.group = newFlusher(nil, v.flushAll)
		}
	}
	u, err := v.measure()
	if err != nil && !errors.Is(err, errors.ErrUnsupported) {
		return fmt.Errorf("usage of dev%d: %w", v.id, err)
	}
	if err == nil {
		v.usage.Store(&u)
	}
	return nil
}

// Volumes lists the devices that are served, by ascending number.
func (d *Docroot) Volumes() []*Volume {
	d.mu.Lock()
	defer d.mu.Unlock()
	var vols []*Volume
	for _, e := range d.entries {
		if e.done() && e.vol != nil {
			vols = append(vols, e.vol)
		}
	}
	slices.SortFunc(vols, func(a, b *Volume) int { return int(a.id) - int(b.id) })
	return vols
}

// Refused are the devices whose folders are there and are not served, each with
// the reason.
func (d *Docroot) Refused() map[protocol.DevID]error {
	d.mu.Lock()
	defer d.mu.Unlock()
	refused := make(map[protocol.DevID]error)
	for dev, e := range d.entries {
		switch {
		case !e.done() && time.Since(e.since) >= d.o.StuckAfter:
			refused[dev] = fmt.Errorf("open dev%d: %w", dev, ErrSick)
		case e.done() && e.vol == nil:
			refused[dev] = e.err
		}
	}
	return refused
}

// Volume is the device dev. [ErrNoDevice] if there is no such folder; one that
// was made since the last Scan is found. A folder that is not served is answered
// by an error that names the fault, matching [ErrRefused], or [ErrSick] if its
// disk does not answer.
func (d *Docroot) Volume(dev protocol.DevID) (*Volume, error) {
	d.mu.Lock()
	if d.closed {
		d.mu.Unlock()
		return nil, fmt.Errorf("dev%d: %w: %w", dev, ErrNoDevice, fs.ErrClosed)
	}
	e := d.entries[dev]
	if e == nil {
		e = d.open(dev, nil)
	}
	d.mu.Unlock()
	if !e.done() {
		t := time.NewTimer(d.o.StuckAfter - time.Since(e.since))
		defer t.Stop()
		select {
		case <-e.ready:
		case <-t.C:
			return nil, fmt.Errorf("open dev%d: %w", dev, ErrSick)
		}
	}
	return e.vol, e.err
}

// Close lets running operations end, for StuckAfter at most, and lets go of all
// devices.
func (d *Docroot) Close() error {
	d.mu.Lock()
	if d.closed {
		d.mu.Unlock()
		return nil
	}
	d.closed = true
	for _, e := range d.entries {
		if e.done() && e.vol != nil {
			d.discard(e.vol)
		}
	}
	d.mu.Unlock()
	idle := make(chan struct{})
	go func() { // outlives Close only with a goroutine that is stuck in the kernel
		d.openers.Wait()
		close(idle)
	}()
	t := time.NewTimer(d.o.StuckAfter)
	defer t.Stop()
	select {
	case <-idle:
		return d.root.Close()
	case <-t.C:
		return errors.Join(fmt.Errorf("close docroot %s: a disk holds up operations: %w", d.path, ErrSick), d.root.Close())
	}
}
