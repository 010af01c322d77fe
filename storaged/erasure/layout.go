package erasure

import "github.com/mogile/mogile/protocol"

// Layout is where the shards of an encoding have what. Stripes and shards are
// counted from 0. The encoding is one that CheckSet has no error for.
type Layout struct{ protocol.ShardSet }

// Stripe is how many bytes of the file a whole stripe has.
func (l Layout) Stripe() int64 { return int64(l.K) * int64(l.Block) }

// Stripes is how many there are.
func (l Layout) Stripes() int64 {
	if l.Length == 0 {
		return 0
	}
	return (l.Length-1)/l.Stripe() + 1
}

// BlockLen is how many bytes each block of a stripe has, without its sum.
func (l Layout) BlockLen(stripe int64) int {
	rest := l.Length - stripe*l.Stripe()
	if rest >= l.Stripe() {
		return l.Block
	}
	return int((rest + int64(l.K) - 1) / int64(l.K))
}

// Offset is where the block of a stripe begins in each shard. For the number of
// stripes it is where the shards end.
func (l Layout) Offset(stripe int64) int64 {
	if n := l.Stripes(); n > 0 && stripe == n {
		return l.Offset(n-1) + int64(l.BlockLen(n-1)+SumSize)
	}
	return HeaderSize + stripe*int64(l.Block+SumSize)
}

// ShardSize is how many bytes each shard has.
func (l Layout) ShardSize() int64 { return l.Offset(l.Stripes()) }

// Bytes is which bytes of the file a block has: n of them from off, the rest of
// the block are zeroes. For parity n is 0.
func (l Layout) Bytes(stripe int64, shard int) (off int64, n int) {
	size := l.BlockLen(stripe)
	off = stripe*l.Stripe() + int64(shard)*int64(size)
	if shard >= l.K || off >= l.Length {
		return l.Length, 0
	}
	return off, int(min(int64(size), l.Length-off))
}

// Find is which block has a byte of the file.
func (l Layout) Find(off int64) (stripe int64, shard int) {
	stripe = off / l.Stripe()
	return stripe, int(off % l.Stripe() / int64(l.BlockLen(stripe)))
}

// widest is how many bytes the longest block has with its sum.
func (l Layout) widest() int {
	if l.Length == 0 {
		return 0
	}
	return l.BlockLen(0) + SumSize
}
