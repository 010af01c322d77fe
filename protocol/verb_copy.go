package protocol

import (
	"fmt"
	"strconv"
	"strings"
)

// VerbCopy is the verb with which a storage daemon is ordered to fetch a file
// from another.
const VerbCopy = "copy"

// Why a file was not copied, as the codes of the answer. Its field "landed" is 1
// where the file may be at the destination all the same.
var (
	ErrCopySource      = Err("src_error")       // the source does not have the file, has another, or broke off
	ErrCopyUnreachable = Err("src_unreachable") // the source could not be connected to from the destination
	ErrCopyDest        = Err("dest_error")      // the destination could not store it
	ErrCopyBusy        = Err("busy")            // another transfer to this path is under way, or too many wait for the device
	ErrCopyCancelled   = Err("cancelled")       // by a DELETE of the path, the deadline, or the end of the daemon
)

// CopyOrder is what [VerbCopy] has done: fid is fetched from a URL to its path on
// dev, and lands there complete and durable, or not at all.
type CopyOrder struct {
	FID      FID
	Dev      DevID
	From     string   // "http://host:port/path" of a copy
	Length   int64    // bytes; a source of another length is refused
	Want     Checksum // that the content must have; zero where it is not known
	HashType HashType // to be computed where Want is zero; none: none is
	Rate     int64    // bytes a second at most; 0: as many as the daemon's own limits let through
}

// Args are the arguments of the order.
func (c CopyOrder) Args() Args {
	a := Args{{"devid", c.Dev.String()}, {"fid", c.FID.String()}, {"from", c.From}}
	a.AddInt("length", c.Length)
	if c.Want.IsZero() {
		a.Add("hash", c.HashType.String())
	} else {
		a.Add("sum", c.Want.String())
	}
	if c.Rate > 0 {
		a.AddInt("rate", c.Rate)
	}
	return a
}

// maxCopyURL bounds CopyOrder.From, in bytes.
const maxCopyURL = 2 << 10

// ParseCopyOrder reads the arguments of an order. Names that are not known are
// of newer trackers, and ignored. Its errors match ErrBadOrder.
func ParseCopyOrder(a Args) (CopyOrder, error) {
	bad := func(name string) (CopyOrder, error) {
		return CopyOrder{}, &Error{Code: ErrBadOrder.Code, Text: fmt.Sprintf("copy: the argument %s is missing or makes no sense", name)}
	}
	number := func(name string, most uint64) (uint64, bool) {
		text := a.Get(name)
		n, err := strconv.ParseUint(text, 10, 64)
		return n, err == nil && n <= most && strconv.FormatUint(n, 10) == text
	}
	var c CopyOrder
	dev, ok := number("devid", 1<<24-1)
	if !ok || dev == 0 {
		return bad("devid")
	}
	fid, ok := number("fid", MaxFID)
	if !ok || fid == 0 {
		return bad("fid")
	}
	length, ok := number("length", 1<<63-1)
	if !ok {
		return bad("length")
	}
	c.Dev, c.FID, c.Length = DevID(dev), FID(fid), int64(length)
	if c.From = a.Get("from"); !strings.HasPrefix(c.From, "http://") || len(c.From) > maxCopyURL {
		return bad("from")
	}
	if text, ok := a.Lookup("sum"); ok {
		sum, err := ParseChecksum(text)
		if err != nil {
			return bad("sum")
		}
		c.Want = sum
	} else if text := a.Get("hash"); text != "" && text != HashNone.String() {
		if c.HashType, ok = ParseHashType(text); !ok {
			return bad("hash")
		}
	}
	if _, ok := a.Lookup("rate"); ok {
		rate, ok := number("rate", 1<<63-1)
		if !ok {
			return bad("rate")
		}
		c.Rate = int64(rate)
	}
	return c, nil
}

// CopyReport is the answer to a [CopyOrder] that was carried out.
type CopyReport struct {
	Length  int64    // bytes
	CRC32C  uint32   // of the content, as it is stored with it
	Digest  Checksum // of the content; zero where none was asked for
	Present bool     // the destination had it already, and nothing was fetched
}

// Args are the fields of the answer.
func (r CopyReport) Args() Args {
	var a Args
	a.AddInt("length", r.Length)
	a.Add("crc32c", fmt.Sprintf("%08x", r.CRC32C))
	if !r.Digest.IsZero() {
		a.Add("sum", r.Digest.String())
	}
	if r.Present {
		a.Add("present", "1")
	}
	return a
}

// ParseCopyReport reads the fields of an answer. Its errors match ErrBadReply.
func ParseCopyReport(a Args) (CopyReport, error) {
	length, err1 := strconv.ParseInt(a.Get("length"), 10, 64)
	crc, err2 := strconv.ParseUint(a.Get("crc32c"), 16, 32)
	r := CopyReport{Length: length, CRC32C: uint32(crc), Present: a.True("present")}
	var err3 error
	if text, ok := a.Lookup("sum"); ok {
		r.Digest, err3 = ParseChecksum(text)
	}
	if err1 != nil || err2 != nil || err3 != nil || length < 0 || len(a.Get("crc32c")) != 8 {
		return CopyReport{}, fmt.Errorf("answer to copy: %.200q: %w", a.String(), ErrBadReply)
	}
	return r, nil
}
