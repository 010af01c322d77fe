// Package mogautomount mounts the devices of a storage host, as the program of
// that name of MogileFS-Server 2.73 does: each block device whose file system is
// labelled MogileDev<N>, and that is not mounted on /var/mogdata/dev<N> already,
// is mounted there with noatime.
package mogautomount

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/tools/mogile/getopt"
)

// Docroot is where the devices are mounted.
const Docroot = "/var/mogdata"

// Exit codes.
const (
	Done       = 0 // nothing was to be done, or all of it was
	SomeFailed = 1 // also for a command line that is not understood, and where blkid fails
	AllFailed  = 2
)

// label begins the labels of MogileFS's file systems.
const label = "MogileDev"

// System is what mounting needs of the operating system.
type System interface {
	// BlockDevices is what "blkid" prints: a line for each block device.
	BlockDevices(ctx context.Context) ([]byte, error)
	// Mounts is /proc/mounts.
	Mounts() ([]byte, error)
	// Stat describes a folder, or fails with fs.ErrNotExist.
	Stat(path string) (fs.FileInfo, error)
	// Mkdir makes a folder, and those above it.
	Mkdir(path string) error
	// Chmod sets a folder's permissions.
	Chmod(path string, mode fs.FileMode) error
	// Mount mounts the file system of the type on the block device, with
	// noatime. The type is empty where blkid does not tell it.
	Mount(device, path, fsType string) error
}

// Device is a block device that belongs to a storage host.
type Device struct {
	Path string // of the block device, "/dev/sdb1"
	ID   protocol.DevID
	Type string // of the file system, "xfs"; may be empty
}

// ParseBlkid reads what blkid prints, and returns the devices with a label of
// MogileFS, in blkid's order. Other devices, and lines that are none, are passed
// over.
func ParseBlkid(text []byte) []Device {
	var devices []Device
	for line := range strings.Lines(string(text)) {
		path, tags, ok := strings.Cut(line, ": ")
		if !ok || !strings.HasPrefix(path, "/") {
			continue
		}
		d := Device{Path: path}
		for tags = strings.TrimSpace(tags); tags != ""; tags = strings.TrimSpace(tags) {
			name, rest, ok := strings.Cut(tags, `="`)
			if !ok {
				break
			}
			value, more, ok := cutQuoted(rest)
			if !ok {
				break
			}
			tags = more
			switch name {
			case "LABEL":
				if id, ok := strings.CutPrefix(value, label); ok {
					d.ID, _ = protocol.ParseDeviceName("dev" + id) // 0 where it is none
				}
			case "TYPE":
				d.Type = value
			}
		}
		if d.ID != 0 {
			devices = append(devices, d)
		}
	}
	return devices
}

// cutQuoted cuts at the quote that ends a value, in which blkid puts a backslash
// before quotes and backslashes.
func cutQuoted(s string) (value, rest string, ok bool) {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] == '"':
			return b.String(), s[i+1:], true
		case s[i] == '\\' && i+1 < len(s):
			i++
		}
		b.WriteByte(s[i])
	}
	return "", "", false
}

// ParseMounts reads /proc/mounts, and returns the mount points.
func ParseMounts(text []byte) map[string]bool {
	points := make(map[string]bool)
	for line := range strings.Lines(string(text)) {
		if fields := strings.Fields(line); len(fields) > 1 {
			points[unescapeOctal(fields[1])] = true
		}
	}
	return points
}

// unescapeOctal undoes the escapes of /proc/mounts: "\040" is a blank.
func unescapeOctal(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) && isOctal(s[i+1], '3') && isOctal(s[i+2], '7') && isOctal(s[i+3], '7') {
			b.WriteByte((s[i+1]-'0')<<6 | (s[i+2]-'0')<<3 | (s[i+3] - '0'))
			i += 3
			continue
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

func isOctal(c, largest byte) bool { return c >= '0' && c <= largest }

// ToMount are the devices that are not mounted yet, sorted by number. Where a
// number is on several block devices, one of which may be mounted, the others
// are in doubt.
func ToMount(devices []Device, mounted map[string]bool) (todo []Device, doubtful []error) {
	byID := make(map[protocol.DevID][]Device)
	for _, d := range devices {
		byID[d.ID] = append(byID[d.ID], d)
	}
	for id, same := range byID {
		switch {
		case mounted[mountPoint(id)]:
		case len(same) > 1:
			var paths []string
			for _, d := range same {
				paths = append(paths, d.Path)
			}
			doubtful = append(doubtful, fmt.Errorf("dev%d: %s have the label %s%d: one of them is another device, label it anew", id, strings.Join(paths, " and "), label, id))
		default:
			todo = append(todo, same[0])
		}
	}
	slices.SortFunc(todo, func(a, b Device) int { return int(a.ID) - int(b.ID) })
	slices.SortFunc(doubtful, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
	return todo, doubtful
}

func mountPoint(id protocol.DevID) string { return filepath.Join(Docroot, "dev"+id.String()) }

const help = `mogautomount: mount the devices of a storage host

Each block device whose file system has the label MogileDev<N> is mounted on
` + Docroot + `/dev<N>, with noatime, unless something is mounted there.

  --verbose            say what is done
  --chmod-mountpoints  take all permissions from a folder before something is
                       mounted on it, so that nothing is written there while
                       nothing is
  --help

Exit code 0: nothing was to be done, or all was done; 1: some could not be
mounted; 2: none could.
`

// Run executes a command line, without the program's name, and returns the exit
// code.
func Run(ctx context.Context, sys System, args []string, stdout, stderr io.Writer) int {
	given, operands, err := getopt.Parse([]getopt.Option{
		{Name: "verbose", Short: 'v'}, {Name: "chmod-mountpoints"}, {Name: "help", Short: 'h'},
	}, args)
	if err == nil && len(operands) > 0 {
		err = fmt.Errorf("unexpected argument %q", operands[0])
	}
	if err != nil {
		fmt.Fprintf(stderr, "mogautomount: %v\n%s", err, help)
		return SomeFailed
	}
	var verbose, chmod bool
	for _, g := range given {
		switch g.Name {
		case "verbose":
			verbose = true
		case "chmod-mountpoints":
			chmod = true
		case "help":
			fmt.Fprint(stdout, help)
			return Done
		}
	}
	say := func(format string, args ...any) {
		if verbose {
			fmt.Fprintf(stdout, format+"\n", args...)
		}
	}
	blkid, err := sys.BlockDevices(ctx)
	if err != nil {
		if errors.Is(err, exec.ErrNotFound) {
			err = errors.New("blkid is not installed (package util-linux), or not in PATH, /usr/sbin and /sbin")
		}
		fmt.Fprintf(stderr, "mogautomount: %v\n", err)
		return SomeFailed
	}
	mounts, err := sys.Mounts()
	if err != nil {
		fmt.Fprintf(stderr, "mogautomount: %v\n", err)
		return SomeFailed
	}
	mounted := ParseMounts(mounts)
	devices := ParseBlkid(blkid)
	for _, d := range devices {
		if point := mountPoint(d.ID); mounted[point] {
			say("%s is mounted", point)
		}
	}
	todo, failed := ToMount(devices, mounted)
	all := len(todo) + len(failed)
	for _, d := range todo {
		point := mountPoint(d.ID)
		say("%s on %s", d.Path, point)
		if err := mount(sys, d, point, chmod); err != nil {
			failed = append(failed, err)
		}
	}
	for _, err := range failed {
		fmt.Fprintf(stderr, "mogautomount: %v\n", err)
	}
	switch {
	case len(failed) == 0:
		return Done
	case len(failed) == all:
		return AllFailed
	}
	return SomeFailed
}

// mount mounts one device, and makes its folder first where there is none.
func mount(sys System, d Device, point string, chmod bool) error {
	info, err := sys.Stat(point)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if err := sys.Mkdir(point); err != nil {
			return fmt.Errorf("make %s: %w", point, err)
		}
		info, err = sys.Stat(point)
	case err == nil && !info.IsDir():
		return fmt.Errorf("%s is no folder: move it away", point)
	}
	if err != nil {
		return err
	}
	if chmod && info.Mode().Perm() != 0 {
		if err := sys.Chmod(point, 0); err != nil {
			return err
		}
	}
	if err := sys.Mount(d.Path, point, d.Type); err != nil {
		return fmt.Errorf("mount %s on %s: %w", d.Path, point, err)
	}
	return nil
}

// OS is the operating system that the program runs on.
type OS struct{}

var _ System = OS{}

// BlockDevices implements System. The error matches exec.ErrNotFound where there
// is no blkid.
func (OS) BlockDevices(ctx context.Context) ([]byte, error) {
	program, err := exec.LookPath("blkid")
	for _, path := range []string{"/usr/sbin/blkid", "/sbin/blkid"} { // not everybody's PATH has them
		if err == nil {
			break
		}
		program, err = exec.LookPath(path)
	}
	if err != nil {
		return nil, fmt.Errorf("blkid: %w", exec.ErrNotFound)
	}
	cmd := exec.CommandContext(ctx, program)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok && exit.ExitCode() == 2 {
		return out, nil // it has found nothing
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %s", program, err, bytes.TrimSpace(stderr.Bytes()))
	}
	return out, nil
}

// Mounts implements System.
func (OS) Mounts() ([]byte, error) { return os.ReadFile("/proc/mounts") }

// Stat implements System.
func (OS) Stat(path string) (fs.FileInfo, error) { return os.Stat(path) }

// Mkdir implements System.
func (OS) Mkdir(path string) error { return os.MkdirAll(path, 0o755) }

// Chmod implements System.
func (OS) Chmod(path string, mode fs.FileMode) error { return os.Chmod(path, mode) }
