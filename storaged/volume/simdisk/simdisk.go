// Package simdisk is a disk in memory for tests of what stands on package
// volume. It keeps only what was flushed when its power is cut, tears what was
// not, fails and hangs on demand, and can be full.
//
// It is as unkind as POSIX permits. After [Disk.Crash]
//
//   - each 4 KiB page of a file that was written since the file's last flush
//     has its old content, its new one, or a part of each, and the file has its
//     old length, its new one, or one between;
//   - each name in a directory that was changed since the directory's last
//     flush stands for anything that it stood for since then, independently of
//     all other names. Flushing a file flushes no name of it.
//
// A disk with [Options].Ordered is as kind as filesystems with a journal are in
// one respect: a name has what was settled before it was given.
//
// A flush that fails loses what it should have written, and the next flush does
// not write that again, as on Linux.
//
// Time, size and chance are the test's. Symbolic links are not simulated.
package simdisk

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/mogile/mogile/storaged/volume"
)

const pageSize = 4096

// Options of a disk. The zero value works.
type Options struct {
	Capacity  int64            // bytes; 0 means 1 TiB
	NoUnnamed bool             // there are no nameless files (O_TMPFILE)
	NoAttrs   bool             // there are no extended attributes
	Ordered   bool             // a name has what was settled before it was given
	Now       func() time.Time // nil: time.Now; for the times of files
}

// ErrGone is the error of everything that is done on a disk after [Disk.Crash]
// or [Disk.Restart]: its process is gone.
var ErrGone = errors.New("simulated disk: its process is gone")

// Disk is a simulated filesystem. Its methods may be called concurrently.
type Disk struct {
	o    Options
	died chan struct{} // closed when the process is gone

	mu     sync.Mutex // guards all below, and all nodes
	root   *node
	inodes uint64
	used   int64
	locked map[*node]bool
	mounts map[*node]string
	// nameless files, with the path of the folder that they were made in:
	// those whose handles are open, and some that have a name by now.
	nameless map[*node]string
	faults   []*Fault
}

var _ volume.FS = (*Disk)(nil)

// New is an empty disk, with nothing but the folder "/".
func New(o Options) *Disk {
	if o.Capacity == 0 {
		o.Capacity = 1 << 40
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	d := empty(o)
	d.root = d.node(true)
	d.root.links = 1
	return d
}

func empty(o Options) *Disk {
	return &Disk{
		o: o, died: make(chan struct{}),
		locked: make(map[*node]bool), mounts: make(map[*node]string), nameless: make(map[*node]string),
	}
}

// node is a file or a directory.
type node struct {
	ino   uint64
	mtime time.Time
	links int // names
	opens int // handles

	// A file: what processes see, what is on disk, and where they differ.
	data, disk      []byte
	attrs, diskAttr map[string]string
	dirty           map[int64]bool // pages to be written
	lost            map[int64]bool // pages that a failed flush threw away
	settled         *settled       // what names given from now on have on disk

	// A directory (names is not nil): the same for its names. Changed and
	// gone hold what a name stood for since the last flush, before that first.
	names, diskNames map[string]*node
	changed, gone    map[string][]*node
}

// settled is a file's content and attributes when it was settled last.
type settled struct {
	data  []byte
	attrs map[string]string
	since map[int64]bool // pages written after that
}

// node makes a node. The caller holds mu, or owns d.
func (d *Disk) node(dir bool) *node {
	d.inodes++
	n := &node{ino: d.inodes, mtime: d.o.Now()}
	if dir {
		n.names, n.diskNames = make(map[string]*node), make(map[string]*node)
		n.changed, n.gone = make(map[string][]*node), make(map[string][]*node)
	} else {
		n.attrs, n.diskAttr = make(map[string]string), make(map[string]string)
		n.dirty, n.lost = make(map[int64]bool), make(map[int64]bool)
	}
	return n
}

func (n *node) isDir() bool { return n.names != nil }

func pages(size int64) int64 { return (size + pageSize - 1) / pageSize }

// cost is the room that a node takes: its pages, and one for itself.
func (n *node) cost() int64 { return (pages(int64(len(n.data))) + 1) * pageSize }

// set makes name stand for to (nil: for nothing).
func (n *node) set(name string, to *node, now time.Time) {
	old := n.names[name]
	if was, ok := n.gone[name]; ok {
		n.changed[name] = append(was, to)
		delete(n.gone, name)
	} else if was, ok := n.changed[name]; ok {
		n.changed[name] = append(was, to)
	} else {
		n.changed[name] = []*node{old, to}
	}
	if old != nil {
		old.links--
	}
	if to == nil {
		delete(n.names, name)
	} else {
		n.names[name] = to
		to.links++
		to.keepSettled()
	}
	n.mtime = now
}

// keepSettled has the disk hold what was settled, which happens no later than a
// name that is given now gets there.
func (n *node) keepSettled() {
	if s := n.settled; s != nil {
		n.disk, n.diskAttr, n.dirty, n.settled = s.data, s.attrs, s.since, nil
	}
}

// flush writes the node itself to the disk, or loses what it should have
// written.
func (n *node) flush(ok bool) {
	if n.isDir() {
		for name, was := range n.changed {
			if !ok {
				n.gone[name] = was
			} else if to := n.names[name]; to != nil {
				n.diskNames[name] = to
			} else {
				delete(n.diskNames, name)
			}
		}
		clear(n.changed)
		return
	}
	n.settled = nil
	if !ok {
		maps.Copy(n.lost, n.dirty)
		clear(n.dirty)
		return
	}
	n.disk = resize(n.disk, int64(len(n.data)))
	for page := range n.dirty {
		if at := page * pageSize; at < int64(len(n.data)) {
			copy(n.disk[at:], n.data[at:min(at+pageSize, int64(len(n.data)))])
		}
	}
	clear(n.dirty)
	n.diskAttr = maps.Clone(n.attrs)
}

// flushTree flushes n and everything below it.
func (n *node) flushTree(ok bool) {
	n.flush(ok)
	for _, child := range n.names {
		child.flushTree(ok)
	}
}

// resize is b with length n, filled up by zeros.
func resize(b []byte, n int64) []byte {
	if n <= int64(len(b)) {
		return b[:n]
	}
	return append(b, make([]byte, n-int64(len(b)))...)
}

// Crash cuts the power. It returns the disk as it looks when the power is back:
// what was flushed, and of the rest what rng decides. Everything that is done on
// d from now on, or hangs on it, is answered by [ErrGone]. Faults are gone.
func (d *Disk) Crash(rng *rand.Rand) *Disk {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.die()
	after := empty(d.o)
	after.inodes = d.inodes
	c := crash{rng: rng, to: after, seen: make(map[*node]*node), fate: rng.IntN(6)}
	after.root = c.node(d.root)
	after.root.links = 1
	for n, device := range d.mounts {
		if survivor := c.seen[n]; survivor != nil {
			after.mounts[survivor] = device
		}
	}
	for _, n := range c.seen {
		after.used += n.cost()
	}
	return after
}

// Restart kills the process, but not the machine: it returns the disk as the
// next process finds it. Nothing is lost but what has no name, and locks.
func (d *Disk) Restart() *Disk {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.die()
	after := empty(d.o)
	after.inodes, after.root, after.mounts = d.inodes, d.root, d.mounts
	var count func(n *node)
	seen := make(map[*node]bool)
	count = func(n *node) {
		if seen[n] {
			return
		}
		seen[n] = true
		n.opens = 0
		after.used += n.cost()
		for _, child := range n.names {
			count(child)
		}
	}
	count(d.root)
	return after
}

func (d *Disk) die() {
	select {
	case <-d.died:
		panic("simdisk: Crash or Restart of a disk that is gone already")
	default:
		close(d.died)
	}
}

// crash carries a tree over a loss of power.
type crash struct {
	rng  *rand.Rand
	to   *Disk
	seen map[*node]*node
	fate int // 0: nothing is lost, 1: all that was not flushed is, else as it comes
}

// pick chooses one of n states of the same thing, the oldest being 0.
func (c *crash) pick(n int) int {
	switch c.fate {
	case 0:
		return n - 1
	case 1:
		return 0
	}
	return c.rng.IntN(n)
}

func (c *crash) node(old *node) *node {
	if n := c.seen[old]; n != nil {
		return n
	}
	n := c.to.node(old.isDir())
	n.ino, n.mtime = old.ino, old.mtime
	c.seen[old] = n
	if old.isDir() {
		c.names(old, n)
	} else {
		c.file(old, n)
	}
	return n
}

func (c *crash) names(old, n *node) {
	found := maps.Clone(old.diskNames)
	for _, changes := range []map[string][]*node{old.gone, old.changed} {
		for _, name := range slices.Sorted(maps.Keys(changes)) {
			was := changes[name]
			if to := was[c.pick(len(was))]; to != nil {
				found[name] = to
			} else {
				delete(found, name)
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(found)) {
		child := c.node(found[name])
		child.links++
		n.names[name], n.diskNames[name] = child, child
	}
}

func (c *crash) file(old, n *node) {
	size := int64(len(old.disk))
	if len(old.dirty)+len(old.lost) > 0 || len(old.data) != len(old.disk) {
		switch c.pick(3) {
		case 1:
			size += c.rng.Int64N(max(1, int64(len(old.data))-size))
		case 2:
			size = max(size, int64(len(old.data)))
		}
	}
	n.disk = resize(slices.Clone(old.disk), size)
	for _, pages := range []map[int64]bool{old.lost, old.dirty} {
		for _, page := range slices.Sorted(maps.Keys(pages)) {
			at, end := page*pageSize, min((page+1)*pageSize, int64(len(old.data)), size)
			switch c.pick(3) {
			case 1: // torn
				end = at + c.rng.Int64N(max(1, end-at))
			case 0:
				end = at
			}
			if at < end {
				copy(n.disk[at:end], old.data[at:end])
			}
		}
	}
	n.data = slices.Clone(n.disk)
	n.diskAttr = maps.Clone(old.diskAttr)
	if !maps.Equal(old.attrs, old.diskAttr) && c.pick(2) == 1 {
		n.diskAttr = maps.Clone(old.attrs)
	}
	n.attrs = maps.Clone(n.diskAttr)
}

// clean makes "/a/b" of "/a//b/".
func clean(p string) string { return path.Clean("/" + p) }

// walk finds the node at p below n. The caller holds mu.
func walk(n *node, p string) (*node, error) {
	for _, part := range strings.Split(p, "/") {
		if part == "" || part == "." {
			continue
		}
		if !n.isDir() {
			return nil, syscall.ENOTDIR
		}
		if n = n.names[part]; n == nil {
			return nil, fs.ErrNotExist
		}
	}
	return n, nil
}

// at finds the directory of p and p's last component.
func at(n *node, p string) (*node, string, error) {
	dir, base := path.Split(p)
	n, err := walk(n, dir)
	switch {
	case err != nil:
		return nil, "", err
	case !n.isDir():
		return nil, "", syscall.ENOTDIR
	case n.links == 0:
		return nil, "", fs.ErrNotExist // removed while open
	}
	return n, base, nil
}

// MkdirAll makes a folder and those above it, on disk at once.
func (d *Disk) MkdirAll(p string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	n := d.root
	for _, part := range strings.Split(clean(p), "/") {
		if part == "" {
			continue
		}
		child := n.names[part]
		if child == nil {
			child = d.node(true)
			d.used += child.cost()
			n.set(part, child, d.o.Now())
			n.flush(true)
		} else if !child.isDir() {
			return &fs.PathError{Op: "mkdir", Path: p, Err: syscall.ENOTDIR}
		}
		n = child
	}
	return nil
}

// MountAt makes the folder at p, if it is missing, a mount point with a
// filesystem of its own, that is called device. All share one capacity.
func (d *Disk) MountAt(p, device string) error {
	if err := d.MkdirAll(p); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	n, err := walk(d.root, clean(p))
	if err == nil {
		d.mounts[n] = device
	}
	return err
}

// Files lists the paths of all files at or below p, as processes see them,
// sorted.
func (d *Disk) Files(p string) []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	n, err := walk(d.root, clean(p))
	if err != nil {
		return nil
	}
	var found []string
	var list func(p string, n *node)
	list = func(p string, n *node) {
		if !n.isDir() {
			found = append(found, p)
		}
		for name, child := range n.names {
			list(path.Join(p, name), child)
		}
	}
	list(clean(p), n)
	slices.Sort(found)
	return found
}

// ReadFile is the content of the file at p, as processes see it.
func (d *Disk) ReadFile(p string) ([]byte, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	n, err := walk(d.root, clean(p))
	if err == nil && n.isDir() {
		err = syscall.EISDIR
	}
	if err != nil {
		return nil, &fs.PathError{Op: "read", Path: p, Err: err}
	}
	return slices.Clone(n.data), nil
}

// Rot replaces the content of the file at p, in memory and on the disk, as no
// process did: times and attributes stay as they were.
func (d *Disk) Rot(p string, data []byte) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	n, err := walk(d.root, clean(p))
	if err == nil && n.isDir() {
		err = syscall.EISDIR
	}
	if err != nil {
		return &fs.PathError{Op: "rot", Path: p, Err: err}
	}
	d.used += (pages(int64(len(data))) - pages(int64(len(n.data)))) * pageSize
	n.data, n.disk = slices.Clone(data), slices.Clone(data)
	clear(n.dirty)
	clear(n.lost)
	return nil
}

// Lose removes the name p, in memory and on the disk, as no process did.
func (d *Disk) Lose(p string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	dir, name, err := at(d.root, clean(p))
	if err != nil {
		return &fs.PathError{Op: "lose", Path: p, Err: err}
	}
	n := dir.names[name]
	if n == nil || n.isDir() {
		return &fs.PathError{Op: "lose", Path: p, Err: fs.ErrNotExist}
	}
	dir.set(name, nil, d.o.Now())
	delete(dir.changed, name)
	delete(dir.diskNames, name)
	d.reap(n)
	return nil
}

// SetCapacity changes the size of the disk. It may get smaller than what is on
// it.
func (d *Disk) SetCapacity(bytes int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.o.Capacity = bytes
}

// Open is how many file handles are open.
func (d *Disk) Open() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	count := 0
	seen := make(map[*node]bool)
	var walk func(n *node)
	walk = func(n *node) {
		if seen[n] {
			return
		}
		seen[n] = true
		count += n.opens
		for _, child := range n.names {
			walk(child)
		}
	}
	walk(d.root)
	return count
}

// grow takes room. The caller holds mu.
func (d *Disk) grow(bytes int64) error {
	if bytes > 0 && d.used+bytes > d.o.Capacity {
		return syscall.ENOSPC
	}
	d.used += bytes
	return nil
}

// reap frees a node that nothing leads to. The caller holds mu.
func (d *Disk) reap(n *node) {
	if n.links == 0 && n.opens == 0 {
		d.used -= n.cost()
	}
}

// OpenRoot implements [volume.FS].
func (d *Disk) OpenRoot(p string) (volume.Root, error) {
	r := &root{d: d, path: clean(p)}
	err := r.do(OpOpen, ".", func() error {
		n, err := walk(d.root, r.path)
		if err == nil && !n.isDir() {
			err = syscall.ENOTDIR
		}
		r.n = n
		return err
	})
	if err != nil {
		return nil, err
	}
	return r, nil
}

// Mount implements [volume.FS].
func (d *Disk) Mount(p string) (volume.Mount, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	n, err := walk(d.root, clean(p))
	if err != nil {
		return volume.Mount{}, &fs.PathError{Op: "find mount", Path: p, Err: err}
	}
	if device, ok := d.mounts[n]; ok {
		return volume.Mount{Point: clean(p), Device: device, Here: true, Exclusive: true, Ordered: d.o.Ordered}, nil
	}
	return volume.Mount{Point: "/", Device: "/dev/sim", Ordered: d.o.Ordered}, nil
}

// root implements volume.Root.
type root struct {
	d    *Disk
	n    *node
	path string
}

// do runs op on a name under the disk's lock, unless a fault forbids it.
func (r *root) do(kind Op, name string, op func() error) error {
	p := path.Join(r.path, name)
	err := r.d.enter(kind, p)
	if err == nil {
		err = op()
		r.d.mu.Unlock()
	}
	if err != nil {
		return &fs.PathError{Op: string(kind), Path: p, Err: err}
	}
	return nil
}

func (r *root) ID() (volume.FileID, error) { return volume.FileID{Dev: 1, Ino: r.n.ino}, nil }

func (r *root) Open(name string, flag int) (volume.Handle, error) {
	kind := OpOpen
	if flag&os.O_CREATE != 0 {
		kind = OpCreate
	}
	h := &handle{root: root{r.d, nil, path.Join(r.path, name)}}
	err := r.do(kind, name, func() error {
		dir, base, err := at(r.n, name)
		if err != nil {
			return err
		}
		n := dir.names[base]
		switch {
		case n == nil && flag&os.O_CREATE == 0:
			return fs.ErrNotExist
		case n == nil:
			n = r.d.node(false)
			if err := r.d.grow(n.cost()); err != nil {
				return err
			}
			dir.set(base, n, r.d.o.Now())
		case flag&os.O_EXCL != 0:
			return fs.ErrExist
		case n.isDir() && flag != os.O_RDONLY:
			return syscall.EISDIR
		}
		n.opens++
		h.n = n
		return nil
	})
	if err != nil {
		return nil, err
	}
	return h, nil
}

func (r *root) OpenUnnamed(dir string) (volume.Handle, error) {
	if r.d.o.NoUnnamed {
		return nil, errors.ErrUnsupported
	}
	h := &handle{root: root{r.d, nil, path.Join(r.path, dir, "(nameless)")}}
	err := r.do(OpCreate, dir, func() error {
		n, err := walk(r.n, dir)
		switch {
		case err != nil:
			return err
		case !n.isDir():
			return syscall.ENOTDIR
		case n.links == 0:
			return fs.ErrNotExist
		}
		h.n = r.d.node(false)
		if err := r.d.grow(h.n.cost()); err != nil {
			return err
		}
		h.n.opens = 1
		r.d.nameless[h.n] = path.Join(r.path, dir)
		return nil
	})
	if err != nil {
		return nil, err
	}
	return h, nil
}

func (r *root) Link(file volume.Handle, name string) error {
	return r.do(OpLink, name, func() error {
		dir, base, err := at(r.n, name)
		if err != nil {
			return err
		}
		if dir.names[base] != nil {
			return fs.ErrExist
		}
		dir.set(base, file.(*handle).n, r.d.o.Now())
		return nil
	})
}

func (r *root) Rename(from, to string) error {
	return r.do(OpRename, to, func() error {
		fromDir, fromBase, err := at(r.n, from)
		if err != nil {
			return err
		}
		toDir, toBase, err := at(r.n, to)
		if err != nil {
			return err
		}
		n, old := fromDir.names[fromBase], toDir.names[toBase]
		switch {
		case n == nil:
			return fs.ErrNotExist
		case old != nil && old.isDir() && !n.isDir():
			return syscall.EISDIR
		}
		toDir.set(toBase, n, r.d.o.Now())
		fromDir.set(fromBase, nil, r.d.o.Now())
		if old != nil {
			r.d.reap(old)
		}
		return nil
	})
}

func (r *root) Unlink(name string) error {
	return r.do(OpUnlink, name, func() error { return r.remove(name, false) })
}

func (r *root) Rmdir(name string) error {
	return r.do(OpRmdir, name, func() error { return r.remove(name, true) })
}

func (r *root) remove(name string, isDir bool) error {
	dir, base, err := at(r.n, name)
	if err != nil {
		return err
	}
	n := dir.names[base]
	switch {
	case n == nil:
		return fs.ErrNotExist
	case n.isDir() && !isDir:
		return syscall.EISDIR
	case !n.isDir() && isDir:
		return syscall.ENOTDIR
	case len(n.names) > 0:
		return syscall.ENOTEMPTY
	}
	dir.set(base, nil, r.d.o.Now())
	r.d.reap(n)
	return nil
}

func (r *root) Mkdir(name string) error {
	return r.do(OpMkdir, name, func() error {
		dir, base, err := at(r.n, name)
		if err != nil {
			return err
		}
		if dir.names[base] != nil {
			return fs.ErrExist
		}
		n := r.d.node(true)
		if err := r.d.grow(n.cost()); err != nil {
			return err
		}
		dir.set(base, n, r.d.o.Now())
		return nil
	})
}

func (n *node) info() volume.Info {
	i := volume.Info{Size: int64(len(n.data)), ModTime: n.mtime, Mode: 0o644}
	if n.isDir() {
		i.Mode = fs.ModeDir | 0o755
	}
	return i
}

func (r *root) Stat(name string) (info volume.Info, err error) {
	err = r.do(OpStat, name, func() error {
		n, err := walk(r.n, name)
		if err == nil {
			info = n.info()
		}
		return err
	})
	return info, err
}

func (r *root) List(dir string) (names []string, err error) {
	err = r.do(OpList, dir, func() error {
		n, err := walk(r.n, dir)
		if err != nil {
			return err
		}
		if !n.isDir() {
			return syscall.ENOTDIR
		}
		names = slices.Sorted(maps.Keys(n.names))
		return nil
	})
	return names, err
}

func (r *root) OpenDir(dir string) (volume.Dir, error) {
	names, err := r.List(dir)
	if err != nil {
		return nil, err
	}
	return &listing{root: root{r.d, r.n, path.Join(r.path, dir)}, names: names}, nil
}

// listing implements volume.Dir: the names as they were when it was opened.
type listing struct {
	root
	names []string
}

func (l *listing) Next(n int) (names []string, err error) {
	err = l.do(OpList, "", func() error {
		n = min(n, len(l.names))
		names, l.names = l.names[:n], l.names[n:]
		return nil
	})
	if err == nil && len(names) == 0 {
		err = io.EOF
	}
	return names, err
}

func (r *root) SyncDir(dir string) error {
	var n *node
	err := r.do(OpSyncDir, dir, func() (err error) {
		if n, err = walk(r.n, dir); err == nil {
			n.flush(true)
		}
		return err
	})
	if err != nil {
		r.lose(func() {
			if n, err := walk(r.n, dir); err == nil {
				n.flush(false)
			}
		})
	}
	return err
}

// lose carries out what a failed flush does to the disk.
func (r *root) lose(op func()) {
	r.d.mu.Lock()
	defer r.d.mu.Unlock()
	select {
	case <-r.d.died:
	default:
		op()
	}
}

func (r *root) SyncFS() (bool, error) {
	flush := func(ok bool) {
		top := r.d.root
		if _, own := r.d.mounts[r.n]; own {
			top = r.n
		}
		top.flushTree(ok)
		for n, dir := range r.d.nameless {
			if top == r.d.root || dir == r.path || strings.HasPrefix(dir, r.path+"/") {
				n.flush(ok)
			}
		}
	}
	err := r.do(OpSyncFS, ".", func() error {
		flush(true)
		return nil
	})
	if err != nil {
		r.lose(func() { flush(false) })
	}
	return true, err
}

func (r *root) Lock(dir string) (closer io.Closer, err error) {
	err = r.do(OpLock, dir, func() error {
		n, err := walk(r.n, dir)
		switch {
		case err != nil:
			return err
		case !n.isDir():
			return syscall.ENOTDIR
		case r.d.locked[n]:
			return volume.ErrLocked
		}
		r.d.locked[n] = true
		closer = &lock{d: r.d, n: n}
		return nil
	})
	return closer, err
}

type lock struct {
	d *Disk
	n *node
}

func (l *lock) Close() error {
	l.d.mu.Lock()
	defer l.d.mu.Unlock()
	delete(l.d.locked, l.n)
	return nil
}

func (r *root) Space() (s volume.Space, err error) {
	err = r.do(OpSpace, ".", func() error {
		s = volume.Space{Used: r.d.used, Available: max(0, r.d.o.Capacity-r.d.used)}
		return nil
	})
	return s, err
}

func (r *root) Close() error { return nil }

// handle implements volume.Handle.
type handle struct {
	root
	closed bool // guarded by the disk's mu
}

func (h *handle) op(kind Op, op func() error) error {
	return h.do(kind, "", func() error {
		if h.closed {
			return fs.ErrClosed
		}
		return op()
	})
}

func (h *handle) ReadAt(p []byte, off int64) (n int, err error) {
	eof := false
	err = h.op(OpRead, func() error {
		if h.n.isDir() {
			return syscall.EISDIR
		}
		if off < int64(len(h.n.data)) {
			n = copy(p, h.n.data[off:])
		}
		eof = n < len(p)
		return nil
	})
	if err == nil && eof {
		err = io.EOF
	}
	return n, err
}

func (h *handle) WriteAt(p []byte, off int64) (n int, err error) {
	err = h.op(OpWrite, func() error {
		size := max(int64(len(h.n.data)), off+int64(len(p)))
		room := (pages(size) - pages(int64(len(h.n.data)))) * pageSize
		fits := p
		full := h.d.grow(room)
		if full != nil { // write what fits
			room = max(0, (h.d.o.Capacity-h.d.used)/pageSize*pageSize)
			end := min(pages(int64(len(h.n.data)))*pageSize+room, size)
			fits = p[:max(0, min(end-off, int64(len(p))))]
			if len(fits) == 0 {
				return full
			}
			size = max(int64(len(h.n.data)), off+int64(len(fits)))
			h.d.used += (pages(size) - pages(int64(len(h.n.data)))) * pageSize
		}
		h.n.data = resize(h.n.data, size)
		copy(h.n.data[off:], fits)
		for page := off / pageSize; page*pageSize < off+int64(len(fits)); page++ {
			h.n.dirty[page] = true
			delete(h.n.lost, page)
			if h.n.settled != nil {
				h.n.settled.since[page] = true
			}
		}
		h.n.mtime = h.d.o.Now()
		n = len(fits)
		return full
	})
	return n, err
}

func (h *handle) Stat() (info volume.Info, err error) {
	err = h.op(OpStat, func() error {
		info = h.n.info()
		return nil
	})
	return info, err
}

func (h *handle) Sync() error {
	err := h.op(OpSync, func() error {
		h.n.flush(true)
		return nil
	})
	if err != nil {
		h.lose(func() { h.n.flush(false) })
	}
	return err
}

// Settle is Sync where the disk keeps no order.
func (h *handle) Settle() error {
	if !h.d.o.Ordered {
		return h.Sync()
	}
	err := h.op(OpSettle, func() error {
		n := h.n
		s := &settled{slices.Clone(n.data), maps.Clone(n.attrs), make(map[int64]bool)}
		for page := range n.lost { // nobody writes them again
			old := resize(slices.Clone(n.disk), int64(len(n.data)))
			if at := page * pageSize; at < int64(len(old)) {
				copy(s.data[at:min(at+pageSize, int64(len(old)))], old[at:])
			}
		}
		n.settled = s
		return nil
	})
	if err != nil {
		h.lose(func() { h.n.flush(false) })
	}
	return err
}

func (h *handle) WriteOut(int64, int64) error {
	return h.op(OpWriteOut, func() error { return nil })
}

func (h *handle) Prefetch(int64, int64) error { return h.op(OpRead, func() error { return nil }) }

// Forget does nothing: what was read is not kept.
func (h *handle) Forget(int64, int64) error { return nil }

func (h *handle) Attr(name string) (value []byte, err error) {
	err = h.op(OpAttr, func() error {
		text, ok := h.n.attrs[name]
		switch {
		case h.d.o.NoAttrs:
			return errors.ErrUnsupported
		case !ok:
			return fs.ErrNotExist
		}
		value = []byte(text)
		return nil
	})
	return value, err
}

func (h *handle) SetAttr(name string, value []byte) error {
	return h.op(OpSetAttr, func() error {
		if h.d.o.NoAttrs {
			return errors.ErrUnsupported
		}
		h.n.attrs[name] = string(value)
		return nil
	})
}

func (h *handle) RemoveAttr(name string) error {
	return h.op(OpSetAttr, func() error {
		_, ok := h.n.attrs[name]
		switch {
		case h.d.o.NoAttrs:
			return errors.ErrUnsupported
		case !ok:
			return fs.ErrNotExist
		}
		delete(h.n.attrs, name)
		return nil
	})
}

func (h *handle) OSFile() *os.File { return nil }

func (h *handle) Close() error {
	return h.op(OpClose, func() error {
		h.closed = true
		h.n.opens--
		delete(h.d.nameless, h.n)
		h.d.reap(h.n)
		return nil
	})
}

// String describes the disk for a test's log.
func (d *Disk) String() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return fmt.Sprintf("simulated disk: %d of %d bytes used", d.used, d.o.Capacity)
}
