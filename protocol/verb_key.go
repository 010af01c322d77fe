package protocol

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// ClusterKeys are what trackers sign orders with: the first signs, and a storage
// daemon takes what any of them has signed. They never go into logs.
type ClusterKeys struct {
	Keys [][]byte // at least one, at most two
	id   string   // as the file says, or empty
}

// String keeps keys out of logs.
func (ClusterKeys) String() string { return "(cluster key)" }

// GoString keeps keys out of logs.
func (k ClusterKeys) GoString() string { return k.String() }

// minKey is the length of a key in characters: that of 32 bytes in base64,
// without padding.
const minKey = 43

// maxKeyFile bounds the text of the keys, in bytes.
const maxKeyFile = 4 << 10

// ParseClusterKeys reads the text of a cluster key file: one key, or two while
// one replaces the other, each on a line, of at least 43 of the characters of
// base64 or hexadecimal digits, which are taken as they stand. Empty lines, and
// what begins with "#", do not count. A line "cluster-id NAME" says what
// [ClusterKeys.ClusterID] is.
func ParseClusterKeys(text []byte) (ClusterKeys, error) {
	var k ClusterKeys
	if len(text) > maxKeyFile {
		return k, fmt.Errorf("more than %d bytes: this is no file of cluster keys", maxKeyFile)
	}
	for n, line := range strings.Split(string(text), "\n") {
		line = strings.Trim(line, " \t\r")
		if line == "" || line[0] == '#' {
			continue
		}
		if id, ok := strings.CutPrefix(line, "cluster-id "); ok {
			if id = strings.TrimSpace(id); k.id != "" || !ValidClusterID(id) {
				return ClusterKeys{}, fmt.Errorf("line %d: one cluster id of 1 to 128 letters, digits, \"-\", \"_\" and \".\" is wanted", n+1)
			}
			k.id = id
			continue
		}
		if err := checkKey(line); err != nil { // which does not show the key
			return ClusterKeys{}, fmt.Errorf("line %d: %w", n+1, err)
		}
		k.Keys = append(k.Keys, []byte(line))
	}
	switch {
	case len(k.Keys) == 0:
		return ClusterKeys{}, errors.New("there is no key in it: `mogile key` makes one")
	case len(k.Keys) > 2:
		return ClusterKeys{}, fmt.Errorf("%d keys: two at most, the one that is used and the one before it", len(k.Keys))
	case len(k.Keys) == 2 && bytes.Equal(k.Keys[0], k.Keys[1]):
		return ClusterKeys{}, errors.New("both keys are the same")
	}
	return k, nil
}

func checkKey(s string) error {
	var seen [256]bool
	distinct := 0
	for i := range len(s) {
		c := s[i]
		if !isWord(c) && strings.IndexByte("+/=-", c) < 0 {
			return errors.New("a key has only letters, digits and \"+/=-_\": `mogile key` makes one")
		}
		if !seen[c] {
			seen[c] = true
			distinct++
		}
	}
	if len(s) < minKey || distinct < 8 {
		return fmt.Errorf("a key of at least %d characters by chance is wanted: `mogile key` makes one", minKey)
	}
	return nil
}

// ClusterID is the id of the cluster that the keys are of, which its devices
// bear: what the file says, else derived from the first key (it does not tell
// anything of the key).
func (k ClusterKeys) ClusterID() string {
	if k.id != "" || len(k.Keys) == 0 {
		return k.id
	}
	return hex.EncodeToString(sign(k.Keys[0], []byte("mogile cluster id")))[:16]
}

// Rotated is the text of a key file in which key replaces the first of these:
// it signs from then on, the one before it is still taken, and the cluster's id
// stays.
func (k ClusterKeys) Rotated(key string) string {
	return fmt.Sprintf("cluster-id %s\n%s\n%s\n", k.ClusterID(), key, k.Keys[0])
}

// Signing is the key that signs, nil where there is none.
func (k ClusterKeys) Signing() []byte {
	if len(k.Keys) == 0 {
		return nil
	}
	return slices.Clone(k.Keys[0])
}

// ValidClusterID reports whether s can be a cluster's id: 1 to 128 letters,
// digits, "-", "_" and ".".
func ValidClusterID(s string) bool {
	for i := range len(s) {
		if c := s[i]; !isWord(c) && c != '-' && c != '.' {
			return false
		}
	}
	return s != "" && len(s) <= 128
}
