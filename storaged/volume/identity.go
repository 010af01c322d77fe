package volume

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"
	"strings"

	"github.com/mogile/mogile/protocol"
)

// Identity says which device a folder is. It is kept on the device itself, in
// .mogile/device:
//
//	mogile device 1
//	cluster NAME
//	device 7
//	uuid 0d6dcb6c-3b4c-4d63-9a2e-2f3f0c6d7d55
//
// The first line has the version of the form. The cluster's line is left out
// while no cluster is known.
type Identity struct {
	Cluster string // the cluster's id; letters, digits, "-", "_" and "."; may be empty
	Device  protocol.DevID
	UUID    string // chosen at first use, never changed; 36 characters
}

const (
	identityForm = "mogile device 1"
	maxIdentity  = 1024 // bytes of the file
	maxCluster   = 128
)

// String is the content of the identity's file.
func (id Identity) String() string {
	var b strings.Builder
	b.WriteString(identityForm + "\n")
	if id.Cluster != "" {
		fmt.Fprintf(&b, "cluster %s\n", id.Cluster)
	}
	fmt.Fprintf(&b, "device %d\nuuid %s\n", id.Device, id.UUID)
	return b.String()
}

// ParseIdentity reads what [Identity.String] writes, and nothing else.
func ParseIdentity(text string) (Identity, error) {
	form, rest, _ := strings.Cut(text, "\n")
	if version, ok := strings.CutPrefix(form, "mogile device "); ok && form != identityForm {
		return Identity{}, fmt.Errorf("identity of version %.20q: only version 1 is understood", version)
	}
	var id Identity
	if line, tail, _ := strings.Cut(rest, "\n"); strings.HasPrefix(line, "cluster ") {
		id.Cluster, rest = line[len("cluster "):], tail
	}
	line, rest, _ := strings.Cut(rest, "\n")
	digits, _ := strings.CutPrefix(line, "device ")
	dev, err := strconv.ParseUint(digits, 10, 32)
	id.Device = protocol.DevID(dev)
	line, _, _ = strings.Cut(rest, "\n")
	id.UUID, _ = strings.CutPrefix(line, "uuid ")
	if err != nil || dev == 0 || !validUUID(id.UUID) || (id.Cluster != "" && !validCluster(id.Cluster)) || id.String() != text {
		return Identity{}, fmt.Errorf("identity %.80q: not understood", text)
	}
	return id, nil
}

func validCluster(s string) bool {
	if s == "" || len(s) > maxCluster {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if !(c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c == '-' || c == '_' || c == '.') {
			return false
		}
	}
	return true
}

func validUUID(s string) bool {
	if len(s) != 36 {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if i == 8 || i == 13 || i == 18 || i == 23 {
			if c != '-' {
				return false
			}
		} else if !(c >= '0' && c <= '9' || c >= 'a' && c <= 'f') {
			return false
		}
	}
	return true
}

// newUUID is a random UUID (RFC 9562, version 4).
func newUUID() string {
	var b [16]byte
	rand.Read(b[:]) // never fails
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// judge decides what a device's folder with this identity may be used as, when
// dev and cluster are expected. It returns the identity that should be stored,
// which differs from the one found where the cluster became known.
func (id Identity) judge(dev protocol.DevID, cluster string) (Identity, error) {
	switch {
	case id.Device != dev:
		return id, fmt.Errorf("folder dev%d holds device %d (uuid %s): mount it as dev%d: %w",
			dev, id.Device, id.UUID, id.Device, ErrRefused)
	case cluster != "" && id.Cluster != "" && id.Cluster != cluster:
		return id, fmt.Errorf("dev%d belongs to cluster %q, not %q (uuid %s): %w",
			dev, id.Cluster, cluster, id.UUID, ErrRefused)
	case id.Cluster == "":
		id.Cluster = cluster
	}
	return id, nil
}

// readIdentity reads the identity of the folder; fs.ErrNotExist if it has none,
// ErrRefused if it is not understood.
func readIdentity(root Root) (Identity, error) {
	h, err := root.Open(idFile, os.O_RDONLY)
	if err != nil {
		return Identity{}, err
	}
	defer h.Close()
	buf := make([]byte, maxIdentity)
	n, err := h.ReadAt(buf, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return Identity{}, err
	}
	id, err := ParseIdentity(string(buf[:n]))
	if err != nil {
		return Identity{}, fmt.Errorf("%s: %w (remove it to have the device taken for a new one): %w", idFile, err, ErrRefused)
	}
	return id, nil
}

// identify finds out that the folder is v's device, giving it an identity at
// first use. Only what the identity says can refuse a device, or that it cannot
// be read: a full or read-only disk that has none yet is served all the same.
func (v *Volume) identify() error {
	want := Identity{Device: v.id, Cluster: v.o.ClusterID}
	found, err := readIdentity(v.root)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		want.UUID = newUUID()
	case err != nil:
		return fmt.Errorf("identify dev%d: %w", v.id, err)
	default:
		if want, err = found.judge(v.id, v.o.ClusterID); err != nil {
			return err
		}
	}
	if want != found {
		if err := v.writeIdentity(want); err != nil {
			v.log.Warn().Err(err).Msg("identity could not be written; the device is served without")
			want = found
		}
	}
	v.identity.Store(&want)
	return nil
}

// writeIdentity stores an identity durably.
func (v *Volume) writeIdentity(id Identity) error {
	temp, err := v.tempName()
	if err != nil {
		return err
	}
	err = func() error {
		h, err := v.root.Open(temp, os.O_RDWR|os.O_CREATE|os.O_EXCL)
		if err != nil {
			return err
		}
		_, err = h.WriteAt([]byte(id.String()), 0)
		if err == nil {
			err = h.Sync()
		}
		if err = errors.Join(err, h.Close()); err != nil {
			return err
		}
		return v.root.Rename(temp, idFile)
	}()
	if err != nil {
		return errors.Join(err, ignoreMissing(v.root.Unlink(temp)))
	}
	if err := v.root.SyncDir(private); err != nil {
		return err
	}
	return v.root.SyncDir(".")
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
