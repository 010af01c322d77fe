package tools

import (
	"bufio"
	"bytes"
	"crypto/md5"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
)

// A big file is stored in chunks, in the layout of MogileFS's mogtool. For the
// key KEY these are the keys
//
//	_big_0:KEY   a record that an upload was begun
//	KEY,1 …      the chunks
//	_big_N:KEY   its description, stored last (the N is meant literally)
const (
	bigBegunPrefix = "_big_0:"
	bigInfoPrefix  = "_big_N:"
)

func chunkKey(key string, number int) string { return key + "," + strconv.Itoa(number) }

// bigInfo is the description of a big file.
type bigInfo struct {
	Description string
	Type        string // "file", "tarball" or "partition"; only for people
	Compressed  bool   // the chunks together are one gzip stream
	Filename    string
	Size        int64 // bytes of all chunks; -1 where it is not told
	Chunks      []bigChunk
}

// bigChunk is a part of a big file. Its paths are hints only, as they change.
type bigChunk struct {
	Length int64
	MD5    [md5.Size]byte
	Paths  []string
}

// maxBigInfo bounds a description in bytes: chunks of 64 MiB make 20 TiB of it.
const maxBigInfo = 64 << 20

// appendBigInfo writes a description.
func appendBigInfo(b []byte, f bigInfo) []byte {
	flat := strings.NewReplacer("\n", " ", "\r", " ").Replace
	compressed := 0
	if f.Compressed {
		compressed = 1
	}
	b = fmt.Appendf(b, "des %s\ntype %s\ncompressed %d\nfilename %s\nchunks %d\nsize %d\n\n",
		flat(f.Description), flat(f.Type), compressed, flat(f.Filename), len(f.Chunks), f.Size)
	for i, c := range f.Chunks {
		b = fmt.Appendf(b, "part %d bytes=%d md5=%x paths: %s\n", i+1, c.Length, c.MD5, flat(strings.Join(c.Paths, ", ")))
	}
	return b
}

// parseBigInfo reads a description: fields in any order, with any blanks, known
// or not, and description, type and file name may be missing. What is needed
// must be there once and agree.
func parseBigInfo(r io.Reader) (bigInfo, error) {
	f := bigInfo{Type: "file", Size: -1}
	chunks := -1
	parts := make(map[int]bigChunk)
	seen := make(map[string]bool)
	lines := bufio.NewScanner(io.LimitReader(r, maxBigInfo+1))
	lines.Buffer(nil, 1<<20)
	read := 0
	for lines.Scan() {
		if read += len(lines.Bytes()) + 1; read > maxBigInfo {
			return f, fmt.Errorf("it has more than %d bytes", maxBigInfo)
		}
		name, value, _ := strings.Cut(strings.TrimSpace(lines.Text()), " ")
		name, value = strings.ToLower(name), strings.TrimSpace(value)
		if name == "part" {
			n, c, err := parsePart(value)
			if err != nil {
				return f, err
			}
			if _, twice := parts[n]; twice {
				return f, fmt.Errorf("part %d stands there twice", n)
			}
			parts[n] = c
			continue
		}
		if known := name == "chunks" || name == "size" || name == "compressed"; known && seen[name] {
			return f, fmt.Errorf("the field %s stands there twice", name)
		}
		seen[name] = true
		var err error
		switch name {
		case "des":
			f.Description = value
		case "type":
			f.Type = value
		case "filename":
			f.Filename = value
		case "compressed":
			f.Compressed, err = strconv.ParseBool(value)
		case "chunks":
			chunks, err = strconv.Atoi(value)
		case "size":
			f.Size, err = strconv.ParseInt(value, 10, 63)
		}
		if err != nil {
			return f, fmt.Errorf("the field %s has the value %q", name, value)
		}
	}
	if err := lines.Err(); err != nil {
		return f, err
	}
	if chunks != len(parts) {
		return f, fmt.Errorf("it tells of %d chunks, and describes %d", chunks, len(parts))
	}
	var sum int64
	for n := 1; n <= len(parts); n++ {
		c, ok := parts[n]
		if !ok {
			return f, fmt.Errorf("part %d is missing", n)
		}
		if sum += c.Length; sum < 0 {
			return f, errors.New("the parts have too many bytes")
		}
		f.Chunks = append(f.Chunks, c)
	}
	if f.Size < 0 {
		f.Size = sum
	}
	// Of a compressed file it may be the size before or after.
	if f.Size != sum && !f.Compressed {
		return f, fmt.Errorf("it tells of %d bytes, and the parts have %d", f.Size, sum)
	}
	return f, nil
}

// parsePart reads "NUM bytes=LEN md5=HEX paths: URL, URL".
func parsePart(s string) (int, bigChunk, error) {
	var c bigChunk
	front, paths, _ := strings.Cut(s, "paths:")
	for p := range strings.SplitSeq(paths, ",") {
		if p = strings.TrimSpace(p); p != "" {
			c.Paths = append(c.Paths, p)
		}
	}
	words := strings.Fields(front)
	bad := fmt.Errorf("%.200q describes no part", "part "+s)
	if len(words) == 0 {
		return 0, c, bad
	}
	n, err := strconv.Atoi(words[0])
	if err != nil || n < 1 {
		return 0, c, bad
	}
	length, digest := false, false
	for _, w := range words[1:] {
		name, value, _ := strings.Cut(w, "=")
		switch strings.ToLower(name) {
		case "bytes":
			c.Length, err = strconv.ParseInt(value, 10, 63)
			length = err == nil && c.Length >= 0
		case "md5":
			sum, err := hex.DecodeString(value)
			digest = err == nil && len(sum) == len(c.MD5)
			if digest {
				copy(c.MD5[:], sum)
			}
		}
	}
	if !length || !digest {
		return 0, c, bad
	}
	return n, c, nil
}

// span is a piece of a chunk.
type span struct {
	chunk  int // index
	off, n int64
}

// spans are the pieces of n bytes from off, or of as many as there are; negative
// n is all that follow.
func (f bigInfo) spans(off, n int64) []span {
	var all []span
	for i, c := range f.Chunks {
		if off >= c.Length {
			off -= c.Length
			continue
		}
		piece := c.Length - off
		if n >= 0 {
			piece = min(piece, n)
			n -= piece
		}
		if piece > 0 {
			all = append(all, span{i, off, piece})
		}
		off = 0
	}
	return all
}

// stored is how many bytes the chunks have.
func (f bigInfo) stored() (n int64) {
	for _, c := range f.Chunks {
		n += c.Length
	}
	return n
}

// sameContent reports whether two descriptions are of the same bytes in the same
// chunks.
func (f bigInfo) sameContent(g bigInfo) bool {
	if len(f.Chunks) != len(g.Chunks) || f.Compressed != g.Compressed {
		return false
	}
	for i := range f.Chunks {
		if f.Chunks[i].Length != g.Chunks[i].Length || !bytes.Equal(f.Chunks[i].MD5[:], g.Chunks[i].MD5[:]) {
			return false
		}
	}
	return true
}
