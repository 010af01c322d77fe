//go:build linux

package volume_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/storaged/volume"
	"github.com/mogile/mogile/storaged/volume/simdisk"
)

func ids(d *volume.Docroot) []protocol.DevID {
	var ids []protocol.DevID
	for _, v := range d.Volumes() {
		ids = append(ids, v.ID())
	}
	return ids
}

func TestScan(t *testing.T) {
	t.Parallel()
	dir, ctx := t.TempDir(), context.Background()
	d := openDir(t, dir, volume.Options{}, 3, 20, 1, 32767, 32768)
	for _, name := range []string{"dev0", "dev07", "dev1x", "other"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o777); err != nil {
			t.Fatal(err)
		}
	}
	expect := func(want ...protocol.DevID) {
		t.Helper()
		if err := d.Scan(ctx); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, ids(d)); diff != "" {
			t.Errorf("devices (-want +got):\n%s", diff)
		}
	}
	expect(1, 3, 20, 32767)
	if _, err := d.Volume(32768); !errors.Is(err, volume.ErrRefused) || !strings.Contains(err.Error(), "dev32768") {
		t.Errorf("device 32768: %v", err)
	}
	for _, dev := range []protocol.DevID{5, 32769, 4294967295} { // clients may name any, and nothing is kept of it
		if _, err := d.Volume(dev); !errors.Is(err, volume.ErrNoDevice) {
			t.Errorf("device %d: %v", dev, err)
		}
	}

	// A new folder is found at once, a link to one elsewhere too.
	if err := os.Symlink(t.TempDir(), filepath.Join(dir, "dev5")); err != nil {
		t.Fatal(err)
	}
	mustPut(t, get(t, d, 5), name42, []byte("x"))
	expect(1, 3, 5, 20, 32767)

	// One that is gone is not served any more, nor made anew.
	gone := get(t, d, 20)
	if err := os.RemoveAll(filepath.Join(dir, "dev20")); err != nil {
		t.Fatal(err)
	}
	if err := put(gone, name42, []byte("x")); !errors.Is(err, volume.ErrNoDevice) {
		t.Errorf("put to a folder that is gone: %v", err)
	}
	expect(1, 3, 5, 32767)
	if err := put(gone, name42, []byte("x")); !errors.Is(err, volume.ErrNoDevice) {
		t.Errorf("put to a device that is gone: %v", err)
	}
	if _, err := d.Volume(20); !errors.Is(err, volume.ErrNoDevice) {
		t.Errorf("device 20: %v", err)
	}

	// One that was exchanged is opened anew, as it may be another disk.
	before := get(t, d, 3)
	if err := os.Rename(filepath.Join(dir, "dev3"), filepath.Join(dir, "old")); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "dev3"), 0o777); err != nil {
		t.Fatal(err)
	}
	expect(1, 3, 5, 32767)
	if after := get(t, d, 3); after == before || after.Identity().UUID == before.Identity().UUID {
		t.Error("the old folder is still served")
	}

	// One that is the disk of another device is refused by name.
	if err := os.Rename(filepath.Join(dir, "dev1"), filepath.Join(dir, "dev2")); err != nil {
		t.Fatal(err)
	}
	expect(3, 5, 32767)
	if _, err := d.Volume(2); !errors.Is(err, volume.ErrRefused) || !strings.Contains(err.Error(), "dev2 holds device 1") {
		t.Errorf("device 2: %v", err)
	}
	if err := os.Rename(filepath.Join(dir, "dev2"), filepath.Join(dir, "dev1")); err != nil {
		t.Fatal(err)
	}
	expect(1, 3, 5, 32767)
}

func TestIdentityOnDisk(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	open := func(cluster string) (*volume.Docroot, *volume.Volume, error) {
		d, err := volume.OpenDocroot(dir, volume.Options{ClusterID: cluster})
		if err != nil {
			t.Fatal(err)
		}
		v, err := d.Volume(7)
		return d, v, err
	}
	if err := os.Mkdir(filepath.Join(dir, "dev7"), 0o777); err != nil {
		t.Fatal(err)
	}
	var uuid string
	for _, c := range []struct {
		cluster, want string
		err           error
	}{{"", "", nil}, {"prod", "prod", nil}, {"", "prod", nil}, {"test", "", volume.ErrRefused}, {"prod", "prod", nil}} {
		d, v, err := open(c.cluster)
		if !errors.Is(err, c.err) {
			t.Fatalf("cluster %q: %v", c.cluster, err)
		}
		if err == nil {
			id := v.Identity()
			if uuid == "" {
				uuid = id.UUID
			}
			if want := (volume.Identity{Cluster: c.want, Device: 7, UUID: uuid}); id != want {
				t.Errorf("cluster %q: %v, want %v", c.cluster, id, want)
			}
		}
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	}
	file := filepath.Join(dir, "dev7/.mogile/device")
	if err := os.WriteFile(file, []byte("garbage"), 0o666); err != nil {
		t.Fatal(err)
	}
	d, _, err := open("")
	if !errors.Is(err, volume.ErrRefused) || !strings.Contains(err.Error(), ".mogile/device") {
		t.Errorf("garbage: %v", err)
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if err := d.Scan(context.Background()); err != nil {
		t.Fatal(err)
	}
	if v := get(t, d, 7); v.Identity().UUID == uuid {
		t.Error("the identity came back")
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
}

// TestUnwritable serves a disk that cannot be given an identity, and gives it
// one when that has become possible.
func TestUnwritable(t *testing.T) {
	t.Parallel()
	disk := simulate(t, simdisk.Options{}, false)
	heal := disk.Inject(simdisk.Fault{Ops: []simdisk.Op{simdisk.OpMkdir, simdisk.OpCreate}, Err: syscall.EROFS})
	d, v := openSim(t, disk, volume.Options{})
	if id := v.Identity(); id.UUID != "" {
		t.Errorf("identity %v", id)
	}
	heal()
	if err := d.Scan(context.Background()); err != nil {
		t.Fatal(err)
	}
	if id := v.Identity(); id.UUID == "" || id.Device != 1 {
		t.Errorf("identity %v", id)
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
}

func TestRequireMount(t *testing.T) {
	t.Parallel()
	disk := simdisk.New(simdisk.Options{})
	if err := errors.Join(disk.MkdirAll("/docroot/dev1"), disk.MountAt("/docroot/dev2", "/dev/sdb")); err != nil {
		t.Fatal(err)
	}
	d, err := volume.OpenDocroot("/docroot", volume.Options{FS: disk, RequireMount: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.Volume(1); !errors.Is(err, volume.ErrRefused) || !strings.Contains(err.Error(), "nothing is mounted") {
		t.Errorf("device 1: %v", err)
	}
	v := get(t, d, 2)
	if u, err := v.Usage(); err != nil || u.Device != "/dev/sdb" || u.Disk != "/docroot/dev2" {
		t.Errorf("usage %+v, %v", u, err)
	}
	if left := disk.Files("/docroot/dev1"); len(left) != 0 {
		t.Errorf("files on the device that is refused: %q", left)
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
}

// TestLeftovers removes what a killed process left, and nothing of one that
// lives.
func TestLeftovers(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	d := openDir(t, dir, volume.Options{}, 1)
	v := get(t, d, 1)
	mustPut(t, v, name42, []byte("x"))
	mustPut(t, v, name42, []byte("y")) // replacing makes the process's folder
	tmp := filepath.Join(dir, "dev1/.mogile/tmp")
	list := func() []string {
		t.Helper()
		entries, err := os.ReadDir(tmp)
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, e := range entries {
			names = append(names, e.Name())
		}
		return names
	}
	living := list()
	if len(living) != 1 {
		t.Fatalf("folders: %q", living)
	}
	if err := os.MkdirAll(filepath.Join(tmp, "dead"), 0o777); err != nil {
		t.Fatal(err)
	}
	for _, token := range []string{"dead", living[0]} {
		if err := os.WriteFile(filepath.Join(tmp, token, "1000"), nil, 0o666); err != nil {
			t.Fatal(err)
		}
	}
	second, err := volume.OpenDocroot(dir, volume.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(living, list()); diff != "" {
		t.Errorf("folders (-want +got):\n%s", diff)
	}
	if _, err := os.Stat(filepath.Join(tmp, living[0], "1000")); err != nil {
		t.Error(err)
	}
	mustPut(t, get(t, second, 1), name42, []byte("z"))
	mustPut(t, v, name42, []byte("zz"))
	if err := errors.Join(second.Close(), d.Close()); err != nil {
		t.Error(err)
	}
	if left := list(); len(left) != 0 {
		t.Errorf("folders after Close: %q", left)
	}
}

func TestOptions(t *testing.T) {
	t.Parallel()
	_, err := volume.OpenDocroot(t.TempDir(), volume.Options{
		Slots: -1, StuckAfter: -1, UsageMaxAge: -1, ClusterID: "a b", Durability: 9,
	})
	for _, want := range []string{"slots -1", "stuck after", "usage max age", `cluster id "a b"`, "durability 9"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v does not tell of %q", err, want)
		}
	}
	if _, err := volume.OpenDocroot(filepath.Join(t.TempDir(), "missing"), volume.Options{}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing docroot: %v", err)
	}
	for _, d := range []volume.Durability{volume.DurabilityFsync, volume.DurabilityNone} {
		if got, err := volume.ParseDurability(d.String()); got != d || err != nil {
			t.Errorf("ParseDurability(%q) = %v, %v", d, got, err)
		}
	}
	if _, err := volume.ParseDurability("maybe"); err == nil {
		t.Error("durability maybe is accepted")
	}
}

func TestUsage(t *testing.T) {
	t.Parallel()
	now := time.Unix(1_700_000_000, 0)
	dir := t.TempDir()
	d := openDir(t, dir, volume.Options{Now: func() time.Time { return now }}, 7)
	v := get(t, d, 7)
	u, err := v.Usage()
	if err != nil {
		t.Fatal(err)
	}
	if u.Used < 1 || u.Total != u.Used+u.Available || u.UsePercent < 0 || u.UsePercent > 100 || u.Device == "" ||
		u.Disk != filepath.Join(dir, "dev7") || !u.Time.Equal(now) {
		t.Errorf("usage %+v", u)
	}
	want := fmt.Sprintf("available: %d\ndevice: %s\ndisk: %s\ntime: 1700000000\ntotal: %d\nuse: %d%%\nused: %d\n",
		u.Available, u.Device, u.Disk, u.Total, u.UsePercent, u.Used)
	if diff := cmp.Diff(want, u.String()); diff != "" {
		t.Errorf("usage file (-want +got):\n%s", diff)
	}
	now = now.Add(volume.DefaultUsageMaxAge + time.Second)
	if _, err := v.Usage(); !errors.Is(err, volume.ErrStale) {
		t.Errorf("old usage: %v", err)
	}
	if err := v.RefreshUsage(context.Background()); err != nil {
		t.Error(err)
	}
	if u, err := v.Usage(); err != nil || !u.Time.Equal(now) {
		t.Errorf("new usage: %+v, %v", u, err)
	}
}
