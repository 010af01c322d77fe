package simdisk

import (
	"slices"
	"strings"
	"syscall"
)

// Op is a kind of operation.
type Op string

// The kinds of operations.
const (
	OpOpen     Op = "open" // of a file or a folder that exists
	OpCreate   Op = "create"
	OpRead     Op = "read"
	OpWrite    Op = "write"
	OpWriteOut Op = "writeout"
	OpSync     Op = "sync"    // of a file
	OpSettle   Op = "settle"  // of a file
	OpSyncDir  Op = "syncdir" // of a directory
	OpSyncFS   Op = "syncfs"
	OpLink     Op = "link"
	OpRename   Op = "rename"
	OpUnlink   Op = "unlink"
	OpMkdir    Op = "mkdir"
	OpRmdir    Op = "rmdir"
	OpStat     Op = "stat"
	OpList     Op = "list"
	OpLock     Op = "lock"
	OpSpace    Op = "space"
	OpAttr     Op = "getattr"
	OpSetAttr  Op = "setattr"
	OpClose    Op = "close"
)

// Fault is something that goes wrong with a disk.
type Fault struct {
	Ops  []Op   // the kinds that it strikes; nil: all
	Path string // it strikes this path and what is below; "": everything
	Skip int    // so many operations are let through first
	// Times is how many operations it strikes; 0: all that come.
	Times int
	// Err is what they are answered; nil: EIO.
	Err error
	// Hang has them wait until the fault is cleared, and then be carried out.
	Hang bool

	cleared chan struct{}
	struck  int // guarded by the disk's mu
	waiting int // guarded by the disk's mu
}

// Inject has a fault strike from now on. The returned function clears it: what
// hangs goes on.
func (d *Disk) Inject(f Fault) (clear func()) {
	fault := &f
	if f.Err == nil {
		fault.Err = syscall.EIO
	}
	fault.cleared = make(chan struct{})
	d.mu.Lock()
	defer d.mu.Unlock()
	d.faults = append(d.faults, fault)
	return func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		if i := slices.Index(d.faults, fault); i >= 0 {
			d.faults = slices.Delete(d.faults, i, i+1)
			close(fault.cleared)
		}
	}
}

// Hanging is how many operations hang.
func (d *Disk) Hanging() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	n := 0
	for _, f := range d.faults {
		n += f.waiting
	}
	return n
}

// matches says whether an operation is struck. The caller holds the disk's mu.
func (f *Fault) matches(kind Op, p string) bool {
	if f.Ops != nil && !slices.Contains(f.Ops, kind) {
		return false
	}
	if f.Path != "" && p != f.Path && !strings.HasPrefix(p, strings.TrimSuffix(f.Path, "/")+"/") {
		return false
	}
	if f.Skip > 0 {
		f.Skip--
		return false
	}
	if f.Times > 0 && f.struck >= f.Times {
		return false
	}
	f.struck++
	return true
}

// enter begins an operation: it returns nil with the disk's lock held, or the
// error that the operation is answered by.
func (d *Disk) enter(kind Op, p string) error {
	d.mu.Lock()
	for {
		select {
		case <-d.died:
			d.mu.Unlock()
			return ErrGone
		default:
		}
		i := slices.IndexFunc(d.faults, func(f *Fault) bool { return f.matches(kind, p) })
		if i < 0 {
			return nil
		}
		f := d.faults[i]
		if !f.Hang {
			d.mu.Unlock()
			return f.Err
		}
		f.waiting++
		d.mu.Unlock()
		select {
		case <-f.cleared:
		case <-d.died:
		}
		d.mu.Lock()
		f.waiting--
		// Others may have been injected meanwhile; this one is out of the list.
	}
}
