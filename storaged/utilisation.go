package storaged

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/procfs/blockdevice"
	"github.com/rs/zerolog"

	"github.com/mogile/mogile/storaged/volume"
)

// watchInterval is the time between two groups of a watch stream, as in
// MogileFS 2.73.
const watchInterval = time.Second

// utilisation measures how busy the disks under the devices are, from the
// kernel's counters, and sends what it finds to those who watch.
type utilisation struct {
	docroot  *volume.Docroot
	sys      string          // where sysfs is mounted
	counters *blockdevice.FS // nil where the kernel has none
	interval time.Duration
	now      func() time.Time
	log      zerolog.Logger

	mu       sync.Mutex // guards watchers
	watchers map[chan []byte]struct{}
}

func newUtilisation(docroot *volume.Docroot, o Options) *utilisation {
	u := &utilisation{
		docroot: docroot, sys: o.SysFS, interval: watchInterval, now: o.Now, log: o.Log,
		watchers: map[chan []byte]struct{}{},
	}
	if o.NoUtilisation {
		return u
	}
	if fs, err := blockdevice.NewFS(o.ProcFS, o.SysFS); err == nil {
		if _, err := fs.ProcDiskstats(); err == nil {
			u.counters = &fs
		}
	}
	return u
}

// subscribe is a channel of groups, and how to give it up. The channel is nil
// where the kernel does not tell. A group is missed by who has not yet taken
// the one before it.
func (u *utilisation) subscribe() (<-chan []byte, func()) {
	if u.counters == nil {
		return nil, func() {}
	}
	ch := make(chan []byte, 1)
	u.mu.Lock()
	defer u.mu.Unlock()
	u.watchers[ch] = struct{}{}
	return ch, func() {
		u.mu.Lock()
		defer u.mu.Unlock()
		delete(u.watchers, ch)
	}
}

// watched reports whether anybody watches.
func (u *utilisation) watched() bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return len(u.watchers) > 0
}

func (u *utilisation) publish(group []byte) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for ch := range u.watchers {
		select {
		case ch <- group:
		default:
		}
	}
}

// reading is what the kernel had counted at one time: for how many
// milliseconds each block device had been busy.
type reading struct {
	at   time.Time
	busy map[string]uint64
}

// run measures until ctx is cancelled.
func (u *utilisation) run(ctx context.Context) error {
	if u.counters == nil {
		return nil
	}
	tick := time.NewTicker(u.interval)
	defer tick.Stop()
	var last reading
	failing := false
	for {
		now, err := u.read()
		switch {
		case err != nil && !failing:
			u.log.Error().Err(err).Msg("utilisation cannot be measured")
			fallthrough
		case err != nil:
			now = reading{}
		case last.busy != nil && u.watched():
			u.publish(u.group(last, now))
		}
		failing, last = err != nil, now
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

func (u *utilisation) read() (reading, error) {
	stats, err := u.counters.ProcDiskstats()
	if err != nil {
		return reading{}, fmt.Errorf("read the kernel's counters: %w", err)
	}
	r := reading{u.now(), make(map[string]uint64, len(stats))}
	for i := range stats {
		r.busy[stats[i].DeviceName] = stats[i].IOsTotalTicks
	}
	return r, nil
}

// group is one group of the watch stream.
func (u *utilisation) group(last, now reading) []byte {
	var b []byte
	for _, v := range u.docroot.Volumes() {
		b = strconv.AppendUint(b, uint64(v.ID()), 10)
		b = append(b, '\t')
		b = appendUtilisation(b, u.disk(v), last, now)
		b = append(b, '\n')
	}
	return append(b, ".\n"...)
}

// appendUtilisation appends for what part of the time between two readings a
// block device was busy, in percent with two decimals, or "-" where that is
// unknown.
func appendUtilisation(b []byte, name string, last, now reading) []byte {
	before, known := last.busy[name]
	after, stillKnown := now.busy[name]
	elapsed := now.at.Sub(last.at)
	if !known || !stillKnown || elapsed <= 0 {
		return append(b, '-')
	}
	// The kernel counts in 32 bits, and begins again at 0.
	busy := time.Duration(uint32(after-before)) * time.Millisecond
	return strconv.AppendFloat(b, min(100*busy.Seconds()/elapsed.Seconds(), 100), 'f', 2, 64)
}

// disk is the kernel's name of the whole disk that a volume is on, empty where
// it is on none.
func (u *utilisation) disk(v *volume.Volume) string {
	use, err := v.Usage()
	if err != nil {
		return ""
	}
	return wholeDisk(u.sys, use.Device)
}

// wholeDisk is the kernel's name of the disk that a block device such as
// /dev/sdb1 is, or is a part of; empty where it is neither.
func wholeDisk(sys, device string) string {
	if !strings.HasPrefix(device, "/dev/") {
		return ""
	}
	if real, err := filepath.EvalSymlinks(device); err == nil { // /dev/mapper/x is a link to /dev/dm-0
		device = real
	}
	// A block device below a folder, such as cciss/c0d0, has ! for / in sysfs,
	// but not in the counters.
	name := strings.TrimPrefix(device, "/dev/")
	dir, err := filepath.EvalSymlinks(filepath.Join(sys, "class", "block", strings.ReplaceAll(name, "/", "!")))
	if err != nil {
		return ""
	}
	if _, err := os.Stat(filepath.Join(dir, "partition")); err == nil {
		dir = filepath.Dir(dir)
	} else if !errors.Is(err, os.ErrNotExist) {
		return ""
	}
	return strings.ReplaceAll(path.Base(dir), "!", "/")
}

// fileSystem names the file system that a volume is on; volumes on one file
// system share the name.
func fileSystem(v *volume.Volume) string {
	if use, err := v.Usage(); err == nil {
		return use.Device
	}
	return "dev" + v.ID().String()
}
