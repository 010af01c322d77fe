package erasure

import (
	"hash/crc32"
	"math/rand/v2"
	"testing"
)

// TestSummer compares sums of pieces, one behind the other, with those of all.
func TestSummer(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	content := make([]byte, 300_000)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(content) // never fails
	for range 100 {
		s := newSummer(1 << rng.IntN(18))
		seed := rng.Uint32()
		at := 0
		for at < len(content) {
			n := min(s.last, len(content)-at)
			if rng.IntN(4) == 0 {
				n = rng.IntN(min(1<<rng.IntN(18), len(content)-at) + 1)
			}
			piece := content[at : at+n]
			own := crc32.Checksum(piece, castagnoli)
			if got, want := s.join(seed, own, n), crc32.Update(seed, castagnoli, piece); got != want {
				t.Fatalf("%d bytes at %d behind %08x: %08x, want %08x", n, at, seed, got, want)
			}
			s.add(own, n)
			at += n
			if want := crc32.Checksum(content[:at], castagnoli); s.sum != want {
				t.Fatalf("%d bytes: %08x, want %08x", at, s.sum, want)
			}
		}
	}
}
