package erasure_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"slices"
	"testing"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/storaged/erasure"
)

// TestByThePage reads files of their shards with what docs/erasure-coding.md says,
// and nothing of the package.
func TestByThePage(t *testing.T) {
	t.Parallel()
	c := erasure.New(erasure.Options{})
	r := seeded(t)
	for _, size := range [][2]int{{1, 1}, {1, 16}, {2, 1}, {4, 2}, {6, 3}, {10, 4}, {32, 16}} {
		k, m := size[0], size[1]
		f := encodeRandom(t, c, r, k, m, 37, k*37*3+r.IntN(k*37))
		left := r.Perm(k + m)[:k]
		slices.Sort(left)
		var shards [][]byte
		for _, i := range left {
			shards = append(shards, f.disks.shards[protocol.DevID(i+1)])
		}
		got, err := readByThePage(shards)
		if err != nil || !bytes.Equal(got, f.content) {
			t.Errorf("%d+%d of %v: error %v, same %v", k, m, left, err, bytes.Equal(got, f.content))
		}
	}
}

// gfMul multiplies in GF(2^8) with the polynomial x^8+x^4+x^3+x^2+1.
func gfMul(a, b byte) (p byte) {
	for ; b > 0; b >>= 1 {
		if b&1 == 1 {
			p ^= a
		}
		high := a & 0x80
		if a <<= 1; high != 0 {
			a ^= 0x1d
		}
	}
	return p
}

func gfInverse(a byte) byte {
	for b := 1; b < 256; b++ {
		if gfMul(a, byte(b)) == 1 {
			return byte(b)
		}
	}
	panic("0 has no inverse")
}

// invert is the inverse of a matrix.
func invert(a [][]byte) [][]byte {
	n := len(a)
	rows := make([][]byte, n)
	for i := range a {
		rows[i] = append(slices.Clone(a[i]), make([]byte, n)...)
		rows[i][n+i] = 1
	}
	for i := range rows {
		pivot := i
		for rows[pivot][i] == 0 {
			pivot++
		}
		rows[i], rows[pivot] = rows[pivot], rows[i]
		by := gfInverse(rows[i][i])
		for x := range rows[i] {
			rows[i][x] = gfMul(rows[i][x], by)
		}
		for j := range rows {
			if f := rows[j][i]; j != i && f != 0 {
				for x := range rows[j] {
					rows[j][x] ^= gfMul(f, rows[i][x])
				}
			}
		}
	}
	for i := range rows {
		rows[i] = rows[i][n:]
	}
	return rows
}

func multiply(a, b [][]byte) [][]byte {
	p := make([][]byte, len(a))
	for i := range a {
		p[i] = make([]byte, len(b[0]))
		for j := range b[0] {
			for x := range b {
				p[i][j] ^= gfMul(a[i][x], b[x][j])
			}
		}
	}
	return p
}

func readByThePage(shards [][]byte) ([]byte, error) {
	castagnoli := crc32.MakeTable(crc32.Castagnoli)
	be := binary.BigEndian
	first := shards[0]
	k, m := int(first[10]), int(first[11])
	length, block := int(be.Uint64(first[32:])), int(be.Uint32(first[48:]))

	vandermonde := make([][]byte, k+m)
	for r := range vandermonde {
		power := byte(1)
		for range k {
			vandermonde[r] = append(vandermonde[r], power)
			power = gfMul(power, byte(r))
		}
	}
	matrix := multiply(vandermonde, invert(vandermonde[:k]))
	var rows [][]byte
	for _, s := range shards {
		if string(s[:8]) != "MOGILEEC" || be.Uint32(s[120:]) != crc32.Checksum(s[:120], castagnoli) {
			return nil, fmt.Errorf("no header")
		}
		rows = append(rows, matrix[s[12]])
	}
	decode := invert(rows)

	var file []byte
	at := 4096
	for stripe := 0; len(file) < length; stripe++ {
		size := min(block, (length-len(file)+k-1)/k)
		var blocks [][]byte
		for _, s := range shards {
			b := s[at : at+size]
			sum := crc32.Update(be.Uint32(s[120:]), castagnoli, be.AppendUint64(nil, uint64(stripe)))
			if crc32.Update(sum, castagnoli, b) != be.Uint32(s[at+size:]) {
				return nil, fmt.Errorf("stripe %d: a bad block", stripe)
			}
			blocks = append(blocks, b)
		}
		for _, b := range multiply(decode, blocks) {
			file = append(file, b...)
		}
		file = file[:min(len(file), length)]
		at += size + 4
	}
	if crc32.Checksum(file, castagnoli) != be.Uint32(first[52:]) {
		return nil, fmt.Errorf("another content")
	}
	return file, nil
}
