package erasure_test

import (
	"bytes"
	"crypto/md5"
	"encoding/hex"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/storaged/erasure"
)

func sample() erasure.Header {
	sum := md5.Sum([]byte("hello"))
	return erasure.Header{
		ShardSet:  protocol.ShardSet{FID: 1234567, Encoding: 0x0123456789abcdef, K: 2, M: 1, Block: 65536, Length: 5},
		Index:     1,
		Modified:  time.Date(2024, 2, 29, 12, 0, 0, 500, time.UTC),
		CRC32C:    0x9a71bb4c,
		Digest:    protocol.Checksum{Type: protocol.HashMD5, Sum: sum[:]},
		Placement: erasure.Placement{Epoch: 3, Devices: []protocol.DevID{7, 8, 9}},
	}
}

// TestFormat pins the bytes on disk: those of a header, and of a whole shard.
func TestFormat(t *testing.T) {
	t.Parallel()
	h := sample()
	b := h.Bytes()
	if got, err := erasure.ParseHeader(b); err != nil || cmp.Diff(h, got) != "" {
		t.Errorf("error %v\n%s", err, cmp.Diff(h, got))
	}
	want := map[int]string{
		0: "4d4f47494c454543" + "0001" + "02" + "01" + "01" + "01" + "0000" + "000000000012d687" + "0123456789abcdef" +
			"0000000000000005" + "17b8539ec74181f4" + "00010000" + "9a71bb4c" + "5d41402abc4b2a76b9719d911017c592" + strings.Repeat("00", 48) + "95052564",
		1024: "00000003" + "00000007" + "00000008" + "00000009" + "07f478f6",
	}
	for off, text := range want {
		if got := hex.EncodeToString(b[off : off+len(text)/2]); got != text {
			t.Errorf("at %d:\n%s, want\n%s", off, got, text)
		}
	}
	c := erasure.New(erasure.Options{})
	f := encode(t, c, h, []byte("hello"))
	for i, text := range []string{"68656c" + "d9459039", "6c6f00" + "d711137a", "6071b4" + "c5ec96bf"} {
		if got := hex.EncodeToString(f.disks.shards[protocol.DevID(i+1)][erasure.HeaderSize:]); got != text {
			t.Errorf("shard %d is %s behind its header, want %s", i, got, text)
		}
	}
}

// TestHeaderRefused has headers with a damage of any one byte.
func TestHeaderRefused(t *testing.T) {
	t.Parallel()
	h := sample()
	good := h.Bytes()
	for i := range 124 {
		b := slices.Clone(good)
		b[i] ^= 0x40
		if _, err := erasure.ParseHeader(b); !errors.Is(err, erasure.ErrHeader) {
			t.Fatalf("byte %d: error %v", i, err)
		}
	}
	for i := 1024; i < 1024+4+3*4+4; i++ {
		b := slices.Clone(good)
		b[i] ^= 0x40
		if got, err := erasure.ParseHeader(b); err != nil || got.Placement.Epoch != 0 {
			t.Fatalf("byte %d of the slot: placement %+v, error %v", i, got.Placement, err)
		}
	}
	if _, err := erasure.ParseHeader(good[:erasure.HeaderSize-1]); !errors.Is(err, erasure.ErrHeader) {
		t.Errorf("a short one: error %v", err)
	}
}

// TestCheck has headers that there are none of.
func TestCheck(t *testing.T) {
	t.Parallel()
	for name, spoil := range map[string]func(h *erasure.Header){
		"k 0":             func(h *erasure.Header) { h.K = 0 },
		"k 33":            func(h *erasure.Header) { h.K = 33 },
		"m 0":             func(h *erasure.Header) { h.M = 0 },
		"m 17":            func(h *erasure.Header) { h.M = 17 },
		"block 0":         func(h *erasure.Header) { h.Block = 0 },
		"block too large": func(h *erasure.Header) { h.Block = protocol.MaxShardBlock + 1 },
		"length -1":       func(h *erasure.Header) { h.Length = -1 },
		"too long":        func(h *erasure.Header) { h.Length = erasure.MaxLength + 1 },
		"fid 0":           func(h *erasure.Header) { h.FID = 0 },
		"encoding 0":      func(h *erasure.Header) { h.Encoding = 0 },
		"index -1":        func(h *erasure.Header) { h.Index = -1 },
		"index 3":         func(h *erasure.Header) { h.Index = 3 },
		"digest":          func(h *erasure.Header) { h.Digest.Sum = h.Digest.Sum[1:] },
		"two devices":     func(h *erasure.Header) { h.Placement.Devices = h.Placement.Devices[1:] },
		"epoch -1":        func(h *erasure.Header) { h.Placement.Epoch = -1 },
		"epoch 0":         func(h *erasure.Header) { h.Placement.Epoch = 0 },
	} {
		h := sample()
		if spoil(&h); h.Check() == nil {
			t.Errorf("%s: there is one", name)
		}
	}
}

// TestPlace writes placements in turns into the slots, tears each writing, and
// finds the one before it or the new one.
func TestPlace(t *testing.T) {
	t.Parallel()
	h := sample()
	b := h.Bytes()
	for epoch := 4; epoch < 10; epoch++ {
		now := erasure.Placement{Epoch: epoch, Devices: []protocol.DevID{protocol.DevID(epoch), 8, 9}}
		patch, off, err := erasure.Place(b, now)
		if err != nil || patch == nil {
			t.Fatalf("epoch %d: patch %x, error %v", epoch, patch, err)
		}
		for n := range len(patch) {
			torn := slices.Clone(b)
			copy(torn[off:], patch[:n])
			got, err := erasure.ParseHeader(torn)
			if err != nil || got.Placement.Epoch != epoch-1 && got.Placement.Epoch != epoch {
				t.Fatalf("torn after %d bytes: %+v, error %v", n, got.Placement, err)
			}
		}
		copy(b[off:], patch)
		if got, err := erasure.ParseHeader(b); err != nil || cmp.Diff(now, got.Placement) != "" {
			t.Fatalf("error %v, %s", err, cmp.Diff(now, got.Placement))
		}
	}
	for _, epoch := range []int{1, 9} {
		if patch, _, err := erasure.Place(b, erasure.Placement{Epoch: epoch, Devices: []protocol.DevID{1, 2, 3}}); patch != nil || err != nil {
			t.Errorf("epoch %d after 9: patch %x, error %v", epoch, patch, err)
		}
	}
	if _, _, err := erasure.Place(b, erasure.Placement{Epoch: 99, Devices: []protocol.DevID{1}}); err == nil {
		t.Error("a placement of one shard of three is taken")
	}
	if _, _, err := erasure.Place(b[:9], erasure.Placement{Epoch: 99}); !errors.Is(err, erasure.ErrHeader) {
		t.Errorf("error %v", err)
	}
}

// TestSisters: what belongs together has all but the index in common.
func TestSisters(t *testing.T) {
	t.Parallel()
	a, b := sample(), sample()
	b.Index, b.Placement = 2, erasure.Placement{}
	if !a.Sisters(&b) {
		t.Error("sisters are none")
	}
	b.CRC32C++
	if a.Sisters(&b) {
		t.Error("those with different contents are sisters")
	}
}

// TestLayout: the blocks of a file have each of its bytes once, in order.
func TestLayout(t *testing.T) {
	t.Parallel()
	for k := 1; k <= 5; k++ {
		for block := 1; block <= 7; block++ {
			for length := range int64(80) {
				l := erasure.Layout{ShardSet: protocol.ShardSet{FID: 1, Encoding: 1, K: k, M: 2, Block: block, Length: length}}
				var at, size int64
				for s := range l.Stripes() {
					for i := range k + 2 {
						off, n := l.Bytes(s, i)
						if i >= k && n != 0 || i < k && n > 0 && off != at || n > l.BlockLen(s) {
							t.Fatalf("%+v: stripe %d, shard %d: %d bytes at %d, want them at %d", l, s, i, n, off, at)
						}
						for b := off; b < off+int64(n); b++ {
							if gotS, gotI := l.Find(b); gotS != s || gotI != i {
								t.Fatalf("%+v: byte %d is in stripe %d of shard %d, not %d of %d", l, b, s, i, gotS, gotI)
							}
						}
						at += int64(n)
					}
					if got := l.Offset(s); got != erasure.HeaderSize+size {
						t.Fatalf("%+v: stripe %d is at %d", l, s, got)
					}
					size += int64(l.BlockLen(s) + erasure.SumSize)
				}
				if at != length || l.ShardSize() != erasure.HeaderSize+size {
					t.Fatalf("%+v: %d bytes in shards of %d", l, at, l.ShardSize())
				}
			}
		}
	}
	huge := erasure.Layout{ShardSet: protocol.ShardSet{FID: 1, Encoding: 1, K: 1, M: 1, Block: 1, Length: erasure.MaxLength}}
	if huge.ShardSize() != 5*erasure.MaxLength+erasure.HeaderSize {
		t.Errorf("the largest shard has %d bytes", huge.ShardSize())
	}
}

// FuzzParseHeader: what is taken for a header is one in each byte that counts, and
// its arithmetic does not go astray.
func FuzzParseHeader(f *testing.F) {
	h := sample()
	f.Add(h.Bytes())
	h.Digest, h.Placement, h.Length = protocol.Checksum{}, erasure.Placement{}, 0
	f.Add(h.Bytes())
	h.Length, h.Block, h.K, h.M, h.Index = erasure.MaxLength, 1, 32, 16, 47
	f.Add(h.Bytes())
	f.Add([]byte("MOGILEEC"))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := erasure.ParseHeader(b)
		if err != nil {
			if !errors.Is(err, erasure.ErrHeader) {
				t.Fatalf("error %v", err)
			}
			return
		}
		if again := h.Bytes(); !bytes.Equal(again[:124], b[:124]) {
			t.Fatalf("%x\n%x", again[:124], b[:124])
		}
		l := h.Layout()
		if size := l.ShardSize(); size < erasure.HeaderSize || l.Stripes() < 0 || l.EncodeMemory() < 0 {
			t.Fatalf("%+v: %d bytes", h, size)
		}
		devs := make([]protocol.DevID, h.Shards())
		patch, off, err := erasure.Place(b, erasure.Placement{Epoch: protocol.MaxEpoch, Devices: devs})
		if err != nil || off+int64(len(patch)) > erasure.HeaderSize {
			t.Fatalf("%d bytes at %d, error %v", len(patch), off, err)
		}
	})
}
