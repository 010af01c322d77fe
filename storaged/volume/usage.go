package volume

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"time"
	"unicode"

	"github.com/mogile/mogile/protocol"
)

// Usage says how full a device is, as MogileFS's usage files have it.
type Usage struct {
	Available  int64     // KiB that an unprivileged user may still write
	Used       int64     // KiB; at least 1, as trackers take 0 for an error
	Total      int64     // KiB: Used + Available; what is reserved for root is not counted
	UsePercent int       // 0 to 100, rounded up
	Device     string    // the block device, or what the filesystem calls itself
	Disk       string    // the mount point if it ends in dev<N>, else the device's folder
	Time       time.Time // when this was so
}

// usageOf computes a usage.
func usageOf(s Space, m Mount, folder string, now time.Time) Usage {
	u := Usage{
		Available: max(0, s.Available) / 1024,
		Used:      max(1, s.Used/1024),
		Device:    m.Device,
		Disk:      folder,
		Time:      now,
	}
	u.Total = u.Used + u.Available
	u.UsePercent = int(min(100, (u.Used*100+u.Total-1)/u.Total))
	if u.Device == "" {
		u.Device = "none"
	}
	if _, ok := protocol.ParseDeviceName(filepath.Base(m.Point)); ok {
		u.Disk = m.Point
	}
	u.Device, u.Disk = oneLine(u.Device), oneLine(u.Disk)
	return u
}

// oneLine has question marks for what would end a line or worse: who mounts a
// file system may call it anything.
func oneLine(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return '?'
		}
		return r
	}, s)
}

// String is the content of a usage file: "name: value" lines in alphabetical
// order.
func (u Usage) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "available: %d\ndevice: %s\ndisk: %s\ntime: %d\ntotal: %d\nuse: %d%%\nused: %d\n",
		u.Available, u.Device, u.Disk, u.Time.Unix(), u.Total, u.UsePercent, u.Used)
	return b.String()
}

// Usage is what [Volume.RefreshUsage] found last. It never waits. [ErrSick]
// while the disk does not answer, [ErrStale] if the last answer is older than
// Options.UsageMaxAge.
func (v *Volume) Usage() (Usage, error) {
	if v.Sick() {
		return Usage{}, fmt.Errorf("usage of dev%d: %w", v.id, ErrSick)
	}
	u := v.usage.Load()
	if u == nil {
		return Usage{}, fmt.Errorf("usage of dev%d: none yet: %w", v.id, ErrStale)
	}
	if age := v.o.Now().Sub(u.Time); age > v.o.UsageMaxAge {
		return Usage{}, fmt.Errorf("usage of dev%d: %v old: %w", v.id, age.Round(time.Second), ErrStale)
	}
	return *u, nil
}

// RefreshUsage asks the filesystem how full it is.
func (v *Volume) RefreshUsage(ctx context.Context) error {
	u, err := do(ctx, v, func(*task) (Usage, error) { return v.measure() }, nil)
	if err != nil {
		return fmt.Errorf("usage of dev%d: %w", v.id, errno(err))
	}
	v.usage.Store(&u)
	return nil
}

func (v *Volume) measure() (Usage, error) {
	s, err := v.root.Space()
	if err != nil {
		return Usage{}, err
	}
	return usageOf(s, v.mount, v.path, v.o.Now()), nil
}
