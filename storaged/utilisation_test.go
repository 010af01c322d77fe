package storaged

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/procfs/blockdevice"
	"github.com/rs/zerolog"

	"github.com/mogile/mogile/storaged/volume"
	"github.com/mogile/mogile/storaged/volume/simdisk"
)

func TestAppendUtilisation(t *testing.T) {
	t.Parallel()
	at := time.Unix(1700000000, 0)
	for _, c := range []struct {
		name          string
		before, after map[string]uint64
		elapsed       time.Duration
		want          string
	}{
		{"idle", map[string]uint64{"sda": 5}, map[string]uint64{"sda": 5}, time.Second, "0.00"},
		{"little", map[string]uint64{"sda": 100}, map[string]uint64{"sda": 104}, time.Second, "0.40"},
		{"two decimals", map[string]uint64{"sda": 0}, map[string]uint64{"sda": 247}, 2 * time.Second, "12.35"},
		{"busy", map[string]uint64{"sda": 0}, map[string]uint64{"sda": 1000}, time.Second, "100.00"},
		{"more than busy", map[string]uint64{"sda": 0}, map[string]uint64{"sda": 1010}, time.Second, "100.00"},
		{"the counter begins again", map[string]uint64{"sda": 1<<32 - 100}, map[string]uint64{"sda": 100}, time.Second, "20.00"},
		{"new disk", nil, map[string]uint64{"sda": 100}, time.Second, "-"},
		{"disk is gone", map[string]uint64{"sda": 100}, nil, time.Second, "-"},
		{"no time", map[string]uint64{"sda": 1}, map[string]uint64{"sda": 2}, 0, "-"},
	} {
		got := appendUtilisation(nil, "sda", reading{at, c.before}, reading{at.Add(c.elapsed), c.after})
		if string(got) != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
}

// kernel is a /proc and a /sys with two disks: sda, which has a partition, and
// cciss/c0d0, which has one too.
type kernel struct{ proc, sys string }

func newKernel(t *testing.T) kernel {
	t.Helper()
	dir := t.TempDir()
	k := kernel{filepath.Join(dir, "proc"), filepath.Join(dir, "sys")}
	for _, d := range []string{"proc", "sys/class/block", "sys/devices/sda/sda1", "sys/devices/cciss!c0d0/cciss!c0d0p1"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o777); err != nil {
			t.Fatal(err)
		}
	}
	for _, disk := range []string{"sda", "sda/sda1", "cciss!c0d0", "cciss!c0d0/cciss!c0d0p1"} {
		target := filepath.Join(k.sys, "devices", disk)
		if err := os.Symlink(target, filepath.Join(k.sys, "class/block", filepath.Base(disk))); err != nil {
			t.Fatal(err)
		}
		if strings.Contains(disk, "/") {
			if err := os.WriteFile(filepath.Join(target, "partition"), []byte("1\n"), 0o666); err != nil {
				t.Fatal(err)
			}
		}
	}
	k.busy(t, 0)
	return k
}

// busy has sda been busy for so many milliseconds, its partition for some other
// time, and the other disk for twice as long.
func (k kernel) busy(t *testing.T, ms int) {
	t.Helper()
	var b strings.Builder
	for i, name := range []string{"sda", "sda1", "cciss/c0d0"} {
		fmt.Fprintf(&b, "   8       %d %s 1 2 3 4 5 6 7 8 0 %d 9 0 0 0 0 0 0\n", i, name, []int{ms, 7, 2 * ms}[i])
	}
	if err := os.WriteFile(filepath.Join(k.proc, "diskstats"), []byte(b.String()), 0o666); err != nil {
		t.Fatal(err)
	}
}

func TestWholeDisk(t *testing.T) {
	t.Parallel()
	k := newKernel(t)
	for device, want := range map[string]string{
		"/dev/sda": "sda", "/dev/sda1": "sda", "/dev/cciss/c0d0": "cciss/c0d0", "/dev/cciss/c0d0p1": "cciss/c0d0",
		"/dev/sdz": "", "overlay": "", "tmpfs": "", "": "", "none": "", "/dev/": "",
	} {
		if got := wholeDisk(k.sys, device); got != want {
			t.Errorf("wholeDisk(%q) = %q, want %q", device, got, want)
		}
	}
}

// Each second those who watch get a group; devices on one disk have one number,
// those on none have none. Who does not keep up misses groups.
func TestUtilisation(t *testing.T) {
	t.Parallel()
	k := newKernel(t)
	disk := simdisk.New(simdisk.Options{})
	for dev, device := range map[int]string{1: "/dev/sda1", 2: "/dev/cciss/c0d0p1", 10: "/dev/sda", 11: "tmpfs"} {
		if err := disk.MountAt(fmt.Sprintf("/data/dev%d", dev), device); err != nil {
			t.Fatal(err)
		}
	}
	synctest.Test(t, func(t *testing.T) {
		docroot, err := volume.OpenDocroot("/data", volume.Options{FS: disk})
		if err != nil {
			t.Fatal(err)
		}
		defer docroot.Close() // simulated
		o, err := Options{ProcFS: k.proc, SysFS: k.sys, Log: zerolog.Nop()}.withDefaults()
		if err != nil {
			t.Fatal(err)
		}
		u := newUtilisation(docroot, o)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- u.run(ctx) }()
		keen, leave := u.subscribe()
		defer leave()
		lazy, leaveLazy := u.subscribe()
		defer leaveLazy()
		group := func(sda, cciss string) string {
			return fmt.Sprintf("1\t%s\n2\t%s\n10\t%s\n11\t-\n.\n", sda, cciss, sda)
		}
		synctest.Wait()
		began := time.Now()
		for i, want := range []string{group("10.00", "20.00"), group("20.00", "40.00"), group("30.00", "60.00")} {
			k.busy(t, 50*(i+1)*(i+2))
			if got := string(<-keen); got != want {
				t.Errorf("group %d: %q, want %q", i, got, want)
			}
			if got, want := time.Since(began), time.Duration(i+1)*time.Second; got != want {
				t.Errorf("group %d after %v, want %v", i, got, want)
			}
		}
		synctest.Wait()
		if got, want := string(<-lazy), group("10.00", "20.00"); got != want {
			t.Errorf("the lazy watcher's first: %q, want %q", got, want)
		}
		select {
		case g := <-lazy:
			t.Errorf("the lazy watcher got more: %q", g)
		default:
		}
		// Without counters nothing is sent; afterwards it goes on.
		if err := os.Remove(filepath.Join(k.proc, "diskstats")); err != nil {
			t.Fatal(err)
		}
		time.Sleep(3*time.Second + time.Second/2) // between two groups
		synctest.Wait()
		select {
		case g := <-keen:
			t.Errorf("got %q", g)
		default:
		}
		k.busy(t, 1000)
		time.Sleep(time.Second)
		k.busy(t, 1500)
		if got, want := string(<-keen), group("50.00", "100.00"); got != want {
			t.Errorf("afterwards: %q, want %q", got, want)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// The kernel of the machine that runs this tells what it should.
func TestKernel(t *testing.T) {
	t.Parallel()
	fs, err := blockdevice.NewFS("/proc", "/sys")
	if err != nil {
		t.Skip(err)
	}
	stats, err := fs.ProcDiskstats()
	if err != nil {
		t.Skip(err)
	}
	for _, s := range stats {
		disk := wholeDisk("/sys", "/dev/"+s.DeviceName)
		if disk == "" {
			continue // not everything has a node
		}
		found := false
		for _, other := range stats {
			found = found || other.DeviceName == disk
		}
		if !found {
			t.Errorf("%s is a part of %s, which the kernel does not count", s.DeviceName, disk)
		}
	}
}

// watching is how many watch.
func (u *utilisation) watching() int {
	u.mu.Lock()
	defer u.mu.Unlock()
	return len(u.watchers)
}
