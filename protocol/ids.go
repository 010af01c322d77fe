package protocol

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// FID is a file's number. The database allocates it, and it is never used
// twice. Zero is no file.
type FID uint64

// DevID is a device's number, chosen by the operator: device 7 is the folder
// "dev7" of its host. Zero is no device. The columns hold at most
// [MaxDevID].
type DevID uint32

// MaxDevID is the highest device number that the database's SMALLINT columns
// can hold.
const MaxDevID = 32767

// MaxFID is the highest fid that the database's BIGINT columns can hold.
const MaxFID = 1<<63 - 1

// fidDigits is the least number of digits of a fid in a path. Shorter fids are
// padded with zeros on the left.
const fidDigits = 10

// Path is where a copy of f lives below a docroot: FID(1234567).Path(7) is
// "dev7/0/001/234/0001234567.fid". The directories are the first seven digits
// of the padded fid.
func (f FID) Path(dev DevID) string {
	return string(f.AppendPath(make([]byte, 0, 40), dev))
}

// AppendPath appends f's [FID.Path] on dev to dst.
func (f FID) AppendPath(dst []byte, dev DevID) []byte {
	return append(f.appendStem(dst, dev), rawSuffix...)
}

// ShardPath is where a shard of f lives below a docroot, beside where a copy
// would: FID(1234567).ShardPath(7) is "dev7/0/001/234/0001234567.ec".
func (f FID) ShardPath(dev DevID) string {
	return string(append(f.appendStem(make([]byte, 0, 40), dev), shardSuffix...))
}

// The ends of the names of copies and of shards.
const (
	rawSuffix   = ".fid"
	shardSuffix = ".ec"
)

// appendStem appends a path without the end of its name.
func (f FID) appendStem(dst []byte, dev DevID) []byte {
	dst = append(dst, "dev"...)
	dst = strconv.AppendUint(dst, uint64(dev), 10)
	var buf [20]byte
	d := strconv.AppendUint(buf[:0], uint64(f), 10)
	var padded [20]byte
	p := padded[:0]
	for i := len(d); i < fidDigits; i++ {
		p = append(p, '0')
	}
	p = append(p, d...)
	dst = append(dst, '/', p[0], '/')
	dst = append(dst, p[1:4]...)
	dst = append(dst, '/')
	dst = append(dst, p[4:7]...)
	dst = append(dst, '/')
	return append(dst, p...)
}

// String is f in decimal.
func (f FID) String() string { return strconv.FormatUint(uint64(f), 10) }

// String is d in decimal, without "dev".
func (d DevID) String() string { return strconv.FormatUint(uint64(d), 10) }

// ErrNotFIDPath is matched by the errors of [ParsePath].
var ErrNotFIDPath = errors.New("not the path of a file on a device")

// ParsePath is the inverse of [FID.Path]. It accepts leading slashes, and
// nothing but the one spelling that Path gives: other paths are answered by an
// error matching [ErrNotFIDPath].
func ParsePath(path string) (DevID, FID, error) {
	return parsePath(path, rawSuffix)
}

// ParseShardPath is the inverse of [FID.ShardPath], as ParsePath is of Path.
func ParseShardPath(path string) (DevID, FID, error) {
	return parsePath(path, shardSuffix)
}

func parsePath(path, suffix string) (DevID, FID, error) {
	p := strings.TrimLeft(path, "/")
	dev, rest, ok := CutDevice(p)
	if !ok {
		return 0, 0, fmt.Errorf("%q: %w", path, ErrNotFIDPath)
	}
	name := rest[strings.LastIndexByte(rest, '/')+1:]
	digits, isFID := strings.CutSuffix(name, suffix)
	if !isFID || len(digits) < fidDigits || len(digits) > 20 {
		return 0, 0, fmt.Errorf("%q: %w", path, ErrNotFIDPath)
	}
	n, err := strconv.ParseUint(digits, 10, 63)
	if err != nil || n == 0 {
		return 0, 0, fmt.Errorf("%q: %w", path, ErrNotFIDPath)
	}
	fid := FID(n)
	if stem, _ := strings.CutSuffix(p, suffix); string(fid.appendStem(make([]byte, 0, 40), dev)) != stem {
		return 0, 0, fmt.Errorf("%q: %w", path, ErrNotFIDPath)
	}
	return dev, fid, nil
}

// CutDevice splits "dev7/rest" into the device and the rest, which may be
// empty. It reports false where the first component is not "dev" and a number
// from 1 to 16777215 without leading zeros (the widest range that a storage
// daemon serves).
func CutDevice(path string) (DevID, string, bool) {
	first, rest, _ := strings.Cut(path, "/")
	dev, ok := ParseDeviceName(first)
	return dev, rest, ok
}

// ParseDeviceName reads the name of a device's folder, such as "dev7".
func ParseDeviceName(name string) (DevID, bool) {
	digits, ok := strings.CutPrefix(name, "dev")
	if !ok || digits == "" || digits[0] == '0' || len(digits) > 8 {
		return 0, false
	}
	for i := range len(digits) {
		if digits[i] < '0' || digits[i] > '9' {
			return 0, false
		}
	}
	n, err := strconv.ParseUint(digits, 10, 32)
	if err != nil || n > 1<<24-1 {
		return 0, false
	}
	return DevID(n), true
}
