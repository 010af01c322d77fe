package volume

import (
	"strings"
	"testing"
)

func TestParseMounts(t *testing.T) {
	t.Parallel()
	const table = `22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
30 22 8:17 / /var/mogdata/dev1 rw,noatime - xfs /dev/sdb1 rw
31 22 8:33 / /var/mogdata/dev2 rw,noatime - xfs /dev/sdc1 rw
32 22 8:33 /sub /mnt/bind rw - xfs /dev/sdc1 rw
33 22 8:49 /inner /var/mogdata/dev3 rw shared:2 master:1 - ext4 /dev/sdd1 rw
34 22 0:50 / /mnt/with\040blank rw - zfs pool/a\040b rw
35 22 8:65 / /over rw - ext4 /dev/old rw
36 35 8:81 / /over rw - ext4 /dev/new rw
garbage
`
	for _, c := range []struct {
		dir  string
		want Mount
	}{
		{"/var/mogdata/dev1", Mount{Point: "/var/mogdata/dev1", Device: "/dev/sdb1", Here: true, Exclusive: true}},
		{"/var/mogdata/dev2", Mount{Point: "/var/mogdata/dev2", Device: "/dev/sdc1", Here: true}},
		{"/var/mogdata/dev3", Mount{Point: "/var/mogdata/dev3", Device: "/dev/sdd1", Here: true}},
		{"/var/mogdata/dev10", Mount{Point: "/", Device: "/dev/sda1"}},
		{"/var/mogdata/dev1/0", Mount{Point: "/var/mogdata/dev1", Device: "/dev/sdb1"}},
		{"/mnt/with blank/dev4", Mount{Point: "/mnt/with blank", Device: "pool/a b"}},
		{"/over", Mount{Point: "/over", Device: "/dev/new", Here: true, Exclusive: true}},
		{"/", Mount{Point: "/", Device: "/dev/sda1", Here: true, Exclusive: true}},
	} {
		got, err := parseMounts(strings.NewReader(table), c.dir)
		if err != nil || got.Mount != c.want {
			t.Errorf("%s: %+v, %v, want %+v", c.dir, got, err, c.want)
		}
	}
	if _, err := parseMounts(strings.NewReader(""), "/x"); err == nil {
		t.Error("an empty table has a mount")
	}
}

// TestJournalled: what is not known to keep the order of changes is taken for
// what does not.
func TestJournalled(t *testing.T) {
	t.Parallel()
	for kind, want := range map[string]bool{"xfs": true, "ext4": false, "ext2": false, "btrfs": false, "overlay": false, "": false} {
		if got := journalled(kind, "9999:9999"); got != want { // there is no such device
			t.Errorf("%s: %v", kind, got)
		}
	}
}

func FuzzParseMounts(f *testing.F) {
	f.Add("22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n", "/x")
	f.Add(`34 22 0:50 / /mnt/with\040blank rw - zfs pool/a\04 rw`, "/mnt/with blank")
	f.Fuzz(func(t *testing.T, table, dir string) {
		m, err := parseMounts(strings.NewReader(table), dir)
		if err == nil && m.Point != "/" && m.Point != dir && !strings.HasPrefix(dir, m.Point+"/") {
			t.Errorf("%q is not a mount point of %q", m.Point, dir)
		}
	})
}

func TestKernelAtLeast(t *testing.T) {
	t.Parallel()
	for release, want := range map[string]bool{
		"5.8.0": true, "5.10.0-28-amd64": true, "6.1": true, "6.18.44-x": true, "5.8-rc1": true,
		"5.7.9": false, "4.19.0": false, "": false, "x.y": false,
	} {
		if got := kernelAtLeast(release, 5, 8); got != want {
			t.Errorf("%q: %v, want %v", release, got, want)
		}
	}
}
