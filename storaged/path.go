package storaged

import (
	"errors"
	"strings"

	"github.com/mogile/mogile/protocol"
)

// privateDir is the folder of each device that is storaged's own: identity and
// unfinished uploads.
const privateDir = ".mogile"

// usageName is the name of a device's usage file.
const usageName = "usage"

// target is what a request's path names.
type target struct {
	dev  protocol.DevID // 0 where the path is outside of every device
	name string         // below the device, without slashes at either end; empty is the device itself
	dir  bool           // the path ended in a slash
	root bool           // the path is "/"
}

// Refusals of [parseTarget].
var (
	errTraversal = errors.New("path contains two dots in a row")
	errPrivate   = errors.New("path is in the daemon's own folder")
	errBadPath   = errors.New("path is not absolute, or has control characters")
)

// parseTarget reads the path of a request. Several slashes count as one, and
// components "." do not count. Any ".." is refused, wherever it stands, as is
// everything in a device's private folder.
func parseTarget(path string) (target, error) {
	if strings.Contains(path, "..") {
		return target{}, errTraversal
	}
	if !strings.HasPrefix(path, "/") {
		return target{}, errBadPath
	}
	clean, slashes := true, true
	for i := range len(path) {
		switch c := path[i]; {
		case c < ' ' || c == 0x7f:
			return target{}, errBadPath
		case c == '/' && i > 0 && path[i-1] == '/', c == '.' && path[i-1] == '/':
			clean = false
		case c != '/':
			slashes = false
		}
	}
	if slashes {
		return target{root: true}, nil
	}
	var t target
	if t.dir = strings.HasSuffix(path, "/"); clean {
		path = strings.Trim(path, "/")
	} else {
		parts := strings.FieldsFunc(path, func(r rune) bool { return r == '/' })
		kept := parts[:0]
		for _, p := range parts {
			if p != "." {
				kept = append(kept, p)
			}
		}
		t.dir = t.dir || parts[len(parts)-1] == "."
		path = strings.Join(kept, "/")
	}
	if path == "" {
		return target{root: true}, nil
	}
	dev, name, ok := protocol.CutDevice(path)
	if !ok {
		return target{}, nil
	}
	if first, _, _ := strings.Cut(name, "/"); first == privateDir {
		return target{}, errPrivate
	}
	t.dev, t.name = dev, name
	return t, nil
}

// fid is the fid of which t is a copy.
func (t target) fid() (protocol.FID, bool) { return t.parse(protocol.ParsePath) }

// shard is the fid of which t is a shard.
func (t target) shard() (protocol.FID, bool) { return t.parse(protocol.ParseShardPath) }

func (t target) parse(parse func(string) (protocol.DevID, protocol.FID, error)) (protocol.FID, bool) {
	_, fid, err := parse("dev" + t.dev.String() + "/" + t.name)
	return fid, err == nil
}

// shardName is the name of the shard of a fid, below the device.
func shardName(fid protocol.FID, dev protocol.DevID) string {
	_, name, _ := strings.Cut(fid.ShardPath(dev), "/")
	return name
}

// probeDir is the folder in which trackers try whether a device can be written
// to.
const probeDir = "test-write"

// isFolder reports whether name, below a device, is that of a folder which fids
// or probes need: "0", "0/000", "0/000/000" or "test-write". A file of that name
// would shut out every fid below it.
func isFolder(name string) bool {
	const shape = "0/000/000"
	switch len(name) {
	case len("0"), len("0/000"), len(shape):
	default:
		return name == probeDir
	}
	for i := range len(name) {
		if digit := name[i] >= '0' && name[i] <= '9'; digit != (shape[i] == '0') || !digit && name[i] != '/' {
			return false
		}
	}
	return true
}
