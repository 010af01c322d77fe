package mogautomount

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"
)

const blkid = `/dev/sda1: UUID="d3c1" TYPE="ext4" PARTUUID="1"
/dev/sdb1: LABEL="MogileDev7" UUID="a b" BLOCK_SIZE="512" TYPE="xfs" PARTLABEL="primary" PARTUUID="3"
/dev/sdc: LABEL="MogileDev12" UUID="6" TYPE="ext4"
/dev/mapper/vg-x: UUID="8" TYPE="ext4" LABEL="MogileDev3"
/dev/sdd: LABEL="MogileDev" TYPE="ext4"
/dev/sde: LABEL="MogileDev0" TYPE="ext4"
/dev/sdf: LABEL="MogileDevX" TYPE="ext4"
/dev/sdg: LABEL="other \"MogileDev9\"" TYPE="ext4"
/dev/sdh: PARTLABEL="MogileDev10" TYPE="ext4"
`

const mounts = `/dev/sda1 / ext4 rw,relatime 0 0
/dev/sdc /var/mogdata/dev12 ext4 rw,noatime 0 0
tmpfs /mnt/a\040b tmpfs rw 0 0
`

func TestParse(t *testing.T) {
	t.Parallel()
	want := []Device{{"/dev/sdb1", 7, "xfs"}, {"/dev/sdc", 12, "ext4"}, {"/dev/mapper/vg-x", 3, "ext4"}}
	if diff := cmp.Diff(want, ParseBlkid([]byte(blkid))); diff != "" {
		t.Errorf("want (-), got (+):\n%s", diff)
	}
	points := ParseMounts([]byte(mounts))
	if diff := cmp.Diff(map[string]bool{"/": true, "/var/mogdata/dev12": true, "/mnt/a b": true}, points); diff != "" {
		t.Errorf("want (-), got (+):\n%s", diff)
	}
	todo, doubtful := ToMount(ParseBlkid([]byte(blkid)), points)
	if diff := cmp.Diff([]Device{want[2], want[0]}, todo); diff != "" || len(doubtful) > 0 {
		t.Errorf("want (-), got (+):\n%s, doubtful %v", diff, doubtful)
	}
}

// host is a machine with block devices.
type host struct {
	blkid, mounts string
	blkidErr      error
	folders       map[string]fs.FileMode
	refused       []string // devices that cannot be mounted
	did           []string
}

func (h *host) BlockDevices(context.Context) ([]byte, error) { return []byte(h.blkid), h.blkidErr }
func (h *host) Mounts() ([]byte, error)                      { return []byte(h.mounts), nil }

func (h *host) Stat(path string) (fs.FileInfo, error) {
	mode, ok := h.folders[path]
	if !ok {
		return nil, fs.ErrNotExist
	}
	return fs.Stat(fstest.MapFS{"x": {Mode: mode}}, "x")
}

func (h *host) Mkdir(path string) error {
	h.did = append(h.did, "mkdir "+path)
	h.folders[path] = fs.ModeDir | 0o755
	return nil
}

func (h *host) Chmod(path string, mode fs.FileMode) error {
	h.did = append(h.did, fmt.Sprintf("chmod %o %s", mode, path))
	h.folders[path] = fs.ModeDir | mode
	return nil
}

func (h *host) Mount(device, path, fsType string) error {
	if slices.Contains(h.refused, device) {
		return errors.New("wrong fs type")
	}
	h.did = append(h.did, fmt.Sprintf("mount -t %s %s %s", fsType, device, path))
	return nil
}

func TestRun(t *testing.T) {
	t.Parallel()
	const dev3, dev7 = "mount -t ext4 /dev/mapper/vg-x /var/mogdata/dev3", "mount -t xfs /dev/sdb1 /var/mogdata/dev7"
	for _, c := range []struct {
		name   string
		args   string
		host   host
		code   int
		did    []string
		stdout []string
		stderr []string
	}{
		{name: "two of three", host: host{blkid: blkid, mounts: mounts}, did: []string{"mkdir /var/mogdata/dev3", dev3, "mkdir /var/mogdata/dev7", dev7}},
		{
			name: "folders that are there", args: "--verbose",
			host: host{blkid: blkid, mounts: mounts, folders: map[string]fs.FileMode{"/var/mogdata/dev3": fs.ModeDir | 0o755, "/var/mogdata/dev7": fs.ModeDir}},
			did:  []string{dev3, dev7}, stdout: []string{"/var/mogdata/dev12 is mounted", "/dev/sdb1 on /var/mogdata/dev7"},
		},
		{
			name: "chmod", args: "--chmod-mountpoints",
			host: host{blkid: blkid, mounts: mounts, folders: map[string]fs.FileMode{"/var/mogdata/dev3": fs.ModeDir | 0o700, "/var/mogdata/dev7": fs.ModeDir}},
			did:  []string{"chmod 0 /var/mogdata/dev3", dev3, dev7},
		},
		{name: "nothing to do", host: host{blkid: "/dev/sda1: TYPE=\"ext4\"\n", mounts: mounts}},
		{name: "all are mounted", host: host{blkid: "/dev/sdc: LABEL=\"MogileDev12\" TYPE=\"ext4\"\n", mounts: mounts}},
		{
			name: "some fail", host: host{blkid: blkid, mounts: mounts, refused: []string{"/dev/sdb1"}}, code: 1,
			did: []string{"mkdir /var/mogdata/dev3", dev3, "mkdir /var/mogdata/dev7"}, stderr: []string{"mount /dev/sdb1 on /var/mogdata/dev7: wrong fs type"},
		},
		{
			name: "all fail", host: host{blkid: blkid, mounts: mounts, refused: []string{"/dev/sdb1", "/dev/mapper/vg-x"}}, code: 2,
			did: []string{"mkdir /var/mogdata/dev3", "mkdir /var/mogdata/dev7"}, stderr: []string{"/dev/mapper/vg-x", "/dev/sdb1"},
		},
		{
			name: "one number twice", host: host{blkid: "/dev/a: LABEL=\"MogileDev1\"\n/dev/b: LABEL=\"MogileDev1\"\n"}, code: 2,
			stderr: []string{"/dev/a and /dev/b have the label MogileDev1"},
		},
		{
			name: "no folder", host: host{blkid: "/dev/a: LABEL=\"MogileDev1\"\n", folders: map[string]fs.FileMode{"/var/mogdata/dev1": 0o644}}, code: 2,
			stderr: []string{"/var/mogdata/dev1 is no folder"},
		},
		{name: "no blkid", host: host{blkidErr: fmt.Errorf("blkid: %w", exec.ErrNotFound)}, code: 1, stderr: []string{"blkid is not installed"}},
		{name: "blkid fails", host: host{blkidErr: errors.New("exit status 4")}, code: 1, stderr: []string{"exit status 4"}},
		{name: "help", args: "--help", stdout: []string{"--chmod-mountpoints"}},
		{name: "unknown option", args: "--bogus", code: 1, stderr: []string{"unknown option: --bogus", "--verbose"}},
		{name: "an operand", args: "now", code: 1, stderr: []string{`"now"`}},
	} {
		if c.host.folders == nil {
			c.host.folders = map[string]fs.FileMode{}
		}
		var stdout, stderr bytes.Buffer
		if code := Run(t.Context(), &c.host, strings.Fields(c.args), &stdout, &stderr); code != c.code {
			t.Errorf("%s: exit code %d, want %d", c.name, code, c.code)
		}
		if diff := cmp.Diff(c.did, c.host.did); diff != "" {
			t.Errorf("%s: want (-), did (+):\n%s", c.name, diff)
		}
		for _, out := range []struct {
			got  string
			want []string
		}{{stdout.String(), c.stdout}, {stderr.String(), c.stderr}} {
			if len(out.want) == 0 && out.got != "" {
				t.Errorf("%s: says %q", c.name, out.got)
			}
			for _, want := range out.want {
				if !strings.Contains(out.got, want) {
					t.Errorf("%s: nothing of %q in %q", c.name, want, out.got)
				}
			}
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(blkid, mounts)
	f.Add("/dev/x: LABEL=\"MogileDev1", "\\04 \\777 \\040")
	f.Add("/dev/x: LABEL=\"a\\\\\" TYPE=\"\\", "a b\\")
	f.Fuzz(func(t *testing.T, blkid, mounts string) {
		devices := ParseBlkid([]byte(blkid))
		for _, d := range devices {
			if d.ID == 0 || !strings.HasPrefix(d.Path, "/") || strings.ContainsAny(d.Path, "\n") {
				t.Errorf("device %+v", d)
			}
			if p := mountPoint(d.ID); !strings.HasPrefix(p, Docroot+"/dev") || strings.Contains(p, "..") {
				t.Errorf("mount point %q", p)
			}
		}
		points := ParseMounts([]byte(mounts))
		todo, _ := ToMount(devices, points)
		for _, d := range todo {
			if points[mountPoint(d.ID)] {
				t.Errorf("%+v is mounted", d)
			}
		}
	})
}
