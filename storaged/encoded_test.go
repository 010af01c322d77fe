package storaged

import (
	"bytes"
	"crypto/md5"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/storaged/erasure"
)

// shardCluster is some storage daemons with two devices each, and a file in
// shards on these, one on each device. Daemon i has the devices 2i+1 and 2i+2.
type shardCluster struct {
	t       testing.TB
	daemons []*daemon
	h       erasure.Header
	content []byte
}

const shardedFID = protocol.FID(1234567)

var shardedTime = time.Unix(1_700_000_000, 123_456_789).UTC()

// shardDaemons starts the daemons, each of which knows where the others are.
func shardDaemons(t testing.TB, hosts int, o Options) []*daemon {
	t.Helper()
	var all []*daemon
	for i := range hosts {
		o.Docroot = "" // of its own
		all = append(all, start(t, o, 2*i+1, 2*i+2))
	}
	meet(t, all)
	return all
}

// meet tells all daemons where all are.
func meet(t testing.TB, all []*daemon) {
	t.Helper()
	of := map[protocol.DevID]string{}
	for i, d := range all {
		for _, dev := range []int{2*i + 1, 2*i + 2} {
			of[protocol.DevID(dev)] = "http://" + d.HTTPAddr().String()
		}
	}
	for _, d := range all {
		if _, err := d.peers.Set(t.Context(), protocol.PeersOrder{Version: time.Now().UnixMilli(), Peers: of}); err != nil {
			t.Fatal(err)
		}
	}
}

// shardFile starts daemons, and puts a file of that size in place in shards.
func shardFile(t testing.TB, k, m, block, size int) *shardCluster {
	t.Helper()
	return spread(t, shardDaemons(t, (k+m+1)/2, Options{}), k, m, block, size, 0xe1)
}

// spread puts a file in place in shards.
func spread(t testing.TB, daemons []*daemon, k, m, block, size int, encoding uint64) *shardCluster {
	t.Helper()
	c := &shardCluster{t: t, daemons: daemons, content: make([]byte, size)}
	rng := rand.New(rand.NewPCG(uint64(size), uint64(k)))
	for i := 0; i+8 <= size; i += 8 {
		v := rng.Uint64()
		for j := range 8 {
			c.content[i+j] = byte(v >> (8 * j))
		}
	}
	c.h = erasure.Header{
		ShardSet: protocol.ShardSet{FID: shardedFID, Encoding: encoding, K: k, M: m, Block: block, Length: int64(size)},
		Modified: shardedTime, CRC32C: crc32.Checksum(c.content, crc32.MakeTable(crc32.Castagnoli)),
		Placement: erasure.Placement{Epoch: 1},
	}
	for i := range k + m {
		c.h.Placement.Devices = append(c.h.Placement.Devices, protocol.DevID(i+1))
	}
	var shards []bytes.Buffer = make([]bytes.Buffer, k+m)
	err := erasure.New(erasure.Options{}).Encode(t.Context(), c.h, erasure.From(bytes.NewReader(c.content)), func(parts [][]byte, done func(bool)) error {
		for i, p := range parts {
			shards[i].Write(p)
		}
		done(true)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for i := range shards {
		c.write(i, shards[i].Bytes())
	}
	return c
}

// file is where the shard on a device is, counted from 0.
func (c *shardCluster) file(dev int) string {
	return filepath.Join(c.daemons[dev/2].docroot, shardedFID.ShardPath(protocol.DevID(dev+1)))
}

func (c *shardCluster) read(dev int) []byte {
	c.t.Helper()
	b, err := os.ReadFile(c.file(dev))
	if err != nil {
		c.t.Fatal(err)
	}
	return b
}

func (c *shardCluster) write(dev int, b []byte) {
	c.t.Helper()
	if err := os.MkdirAll(filepath.Dir(c.file(dev)), 0o777); err != nil {
		c.t.Fatal(err)
	}
	if err := os.WriteFile(c.file(dev), b, 0o600); err != nil {
		c.t.Fatal(err)
	}
}

func (c *shardCluster) remove(dev int) {
	c.t.Helper()
	if err := os.Remove(c.file(dev)); err != nil {
		c.t.Fatal(err)
	}
}

// get asks the holder dev for the file, with these header lines, and reads as
// much of the body as comes.
func (c *shardCluster) get(dev int, method, headers string) (*http.Response, []byte, error) {
	c.t.Helper()
	d := dial(c.t, c.daemons[dev/2].HTTPAddr())
	defer d.Close()
	d.send("%s /%s HTTP/1.1\nHost: x\n%s\n", method, shardedFID.Path(protocol.DevID(dev+1)), headers)
	res, err := http.ReadResponse(d.r, &http.Request{Method: method})
	if err != nil {
		c.t.Fatalf("%s from dev%d: %v", method, dev+1, err)
	}
	body, err := io.ReadAll(res.Body)
	return res, body, err
}

// check expects the whole file from a holder.
func (c *shardCluster) check(what string, dev int) {
	c.t.Helper()
	res, body, err := c.get(dev, "GET", "")
	if err != nil || res.StatusCode != 200 || !bytes.Equal(body, c.content) {
		c.t.Errorf("%s: dev%d answers %s with %d bytes of %d, %v, or others", what, dev+1, res.Status, len(body), len(c.content), err)
	}
}

// suspected are the shards that daemons want to have checked, told once.
func (c *shardCluster) suspected() []string {
	var all []string
	for _, d := range c.daemons {
		for _, at := range d.suspects.take(maxSuspects) {
			all = append(all, at.String())
		}
		clear(d.suspects.told)
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// TestReadShards: every holder answers for the whole file, as if it had a copy.
func TestReadShards(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ k, m, block, size int }{
		{4, 2, 1000, 40_321}, {4, 2, 256 << 10, 3_000_001}, {1, 1, 4096, 10_000}, {2, 3, 100, 1}, {6, 3, 64 << 10, 64 << 10 * 6}, {4, 2, 1000, 0},
	} {
		t.Run(fmt.Sprintf("%d+%d of %d", tt.k, tt.m, tt.size), func(t *testing.T) {
			t.Parallel()
			c := shardFile(t, tt.k, tt.m, tt.block, tt.size)
			size := int64(tt.size)
			for dev := range tt.k + tt.m {
				c.check("healthy", dev)
				res, body, err := c.get(dev, "HEAD", "")
				if err != nil || res.StatusCode != 200 || res.ContentLength != size || len(body) != 0 || res.Header.Get("Last-Modified") != lastModified(shardedTime) || res.Header.Get("Accept-Ranges") != "bytes" {
					t.Errorf("HEAD: %v, %v", res, err)
				}
				if res, _, _ := c.get(dev, "GET", "If-Modified-Since: "+lastModified(shardedTime)+"\n"); res.StatusCode != 304 {
					t.Errorf("If-Modified-Since: %s", res.Status)
				}
				if res, _, _ := c.get(dev, "GET", "Mogile-Want: sum\n"); res.Header.Get("Mogile-Sum") != fmt.Sprintf("%d %08x", size, c.h.CRC32C) {
					t.Errorf("%v", res.Header)
				}
				rng := rand.New(rand.NewPCG(1, uint64(dev)))
				for range 10 {
					if size == 0 {
						break
					}
					off := rng.Int64N(size)
					n := 1 + rng.Int64N(size-off)
					res, body, err := c.get(dev, "GET", fmt.Sprintf("Range: bytes=%d-%d\n", off, off+n-1))
					if err != nil || res.StatusCode != 206 || !bytes.Equal(body, c.content[off:off+n]) || res.Header.Get("Content-Range") != fmt.Sprintf("bytes %d-%d/%d", off, off+n-1, size) {
						t.Errorf("%d bytes at %d: %s, %d bytes, %v, or others", n, off, res.Status, len(body), err)
					}
				}
				if res, _, _ := c.get(dev, "GET", fmt.Sprintf("Range: bytes=%d-\n", size)); res.StatusCode != 416 {
					t.Errorf("a range behind the end: %s", res.Status)
				}
				path := "/" + shardedFID.Path(protocol.DevID(dev+1))
				s := c.daemons[dev/2].side()
				for command, want := range map[string]string{
					"size " + path:              fmt.Sprintf("%s %d", path, size),
					"MD5 " + path:               fmt.Sprintf("%s MD5=%x", path, md5.Sum(c.content)),
					"verify " + path + " SHA-1": fmt.Sprintf("%s found=%d:%08x stored=%d:%08x SHA-1=", path, size, c.h.CRC32C, size, c.h.CRC32C),
				} {
					s.send("%s\n", command)
					line, err := s.r.ReadString('\n')
					if err != nil || !strings.HasPrefix(line, want) {
						t.Errorf("%s: %q, %v, want %q", command, line, err, want)
					}
				}
			}
			if got := c.suspected(); len(got) != 0 {
				t.Errorf("suspected: %v", got)
			}
			d := c.daemons[0]
			if n := metric(t, d, "mogile_storaged_encoded_reads_total", "whole"); size > 0 && n == 0 {
				t.Error("reads are not counted")
			}
			for _, result := range []string{"degraded", "failed"} {
				if n := metric(t, d, "mogile_storaged_encoded_reads_total", result); n != 0 {
					t.Errorf("%v reads are counted as %s", n, result)
				}
			}
		})
	}
}

// TestReadLostShards: whichever m shards are lost, the file is there; with one
// more it is not, and says so before the first byte; it is again when one is back.
func TestReadLostShards(t *testing.T) {
	t.Parallel()
	const k, m = 4, 2
	c := shardFile(t, k, m, 1000, 30_000)
	kept := make([][]byte, k+m)
	for i := range kept {
		kept[i] = c.read(i)
	}
	for lost := range 1 << (k + m) {
		var gone, there []int
		for i := range k + m {
			if lost>>i&1 == 1 {
				gone = append(gone, i)
			} else {
				there = append(there, i)
			}
		}
		if len(gone) > m+1 {
			continue
		}
		for _, i := range gone {
			c.remove(i)
		}
		if len(gone) <= m {
			for _, i := range there {
				c.check(fmt.Sprintf("without %v", gone), i)
			}
		} else {
			for _, i := range there {
				if res, body, err := c.get(i, "GET", ""); res.StatusCode != 503 || len(body) > 0 || err != nil {
					t.Errorf("without %v dev%d answers %s, %d bytes, %v", gone, i+1, res.Status, len(body), err)
				}
				if res, _, _ := c.get(i, "HEAD", ""); res.StatusCode != 200 {
					t.Errorf("HEAD without %v: %s", gone, res.Status)
				}
			}
			c.write(gone[0], kept[gone[0]])
			c.check(fmt.Sprintf("without %v", gone[1:]), there[0])
		}
		for _, i := range gone {
			if res, _, _ := c.get(i, "GET", ""); res.StatusCode != 404 && i != gone[0] {
				t.Errorf("dev%d, which has nothing: %s", i+1, res.Status)
			}
			c.write(i, kept[i])
		}
	}
	c.suspected()
	c.remove(1)
	c.remove(5)
	c.check("two are lost", 0)
	if got := c.suspected(); !slices.Equal(got, []string{"1234567:2"}) && !slices.Equal(got, []string{"1234567:2", "1234567:6"}) {
		t.Errorf("suspected: %v", got)
	}
}

// TestReadFirstByte: of a large file the first bytes do not wait for the other
// shards, where nothing tells that they might not be there. Where they are not, the
// answer ends short; once that is known, none begins.
func TestReadFirstByte(t *testing.T) {
	t.Parallel()
	const k, m = 4, 2
	c := shardFile(t, k, m, 128<<10, 3<<20)
	for dev := range k + m {
		c.check("healthy", dev) // all daemons have answered all
	}
	kept := make([][]byte, k+m)
	for i := range kept {
		kept[i] = c.read(i)
	}
	for i := 1; i <= m+1; i++ {
		c.remove(i)
	}
	res, body, err := c.get(0, "GET", "")
	if res.StatusCode != 200 || err == nil || len(body) != 128<<10 || !bytes.Equal(body, c.content[:len(body)]) {
		t.Errorf("with too few shards: %s, %d bytes, %v, or others", res.Status, len(body), err)
	}
	if res, body, err := c.get(0, "GET", ""); res.StatusCode != 503 || len(body) > 0 || err != nil {
		t.Errorf("with too few shards, as is known: %s, %d bytes, %v", res.Status, len(body), err)
	}
	c.write(1, kept[1])
	c.check("with one shard more", 0)
	c.write(2, kept[2])
	c.write(3, kept[3])
	c.suspected()
	c.remove(1)
	c.remove(3)
	c.check("without two", 0)
	c.suspected()

	// The same of daemons that do not answer.
	c.write(1, kept[1])
	c.write(3, kept[3])
	c.check("whole again", 0)
	for _, d := range c.daemons[1:] {
		d.stop()
	}
	if _, body, err := c.get(0, "GET", ""); err == nil && len(body) > 0 || len(body) > 256<<10 {
		t.Errorf("with daemons down: %d bytes, %v", len(body), err)
	}
	if res, body, err := c.get(0, "GET", ""); res.StatusCode != 503 || len(body) > 0 || err != nil {
		t.Errorf("with daemons down: %s, %d bytes, %v", res.Status, len(body), err)
	}
}

// TestReadBadShards: whatever is wrong with m shards, clients see nothing of it,
// and trackers are told.
func TestReadBadShards(t *testing.T) {
	t.Parallel()
	const k, m, block = 4, 2, 1000
	for _, tt := range []struct {
		name  string
		spoil func(c *shardCluster, dev int)
	}{
		{"a bit is another", func(c *shardCluster, dev int) {
			b := c.read(dev)
			b[erasure.HeaderSize+3*(block+4)+17] ^= 4
			c.write(dev, b)
		}},
		{"a block's sum is another", func(c *shardCluster, dev int) {
			b := c.read(dev)
			b[erasure.HeaderSize+block] ^= 4
			c.write(dev, b)
		}},
		{"two blocks are swapped", func(c *shardCluster, dev int) {
			b := c.read(dev)
			one := slices.Clone(b[erasure.HeaderSize:][:block+4])
			copy(b[erasure.HeaderSize:], b[erasure.HeaderSize+block+4:][:block+4])
			copy(b[erasure.HeaderSize+block+4:], one)
			c.write(dev, b)
		}},
		{"it is truncated", func(c *shardCluster, dev int) {
			b := c.read(dev)
			c.write(dev, b[:len(b)/2])
		}},
		{"it has only a header", func(c *shardCluster, dev int) { c.write(dev, c.read(dev)[:erasure.HeaderSize]) }},
		{"it is empty", func(c *shardCluster, dev int) { c.write(dev, nil) }},
		{"it is of zeroes", func(c *shardCluster, dev int) { c.write(dev, make([]byte, len(c.read(dev)))) }},
		{"it is another's", func(c *shardCluster, dev int) { c.write(dev, c.read((dev+3)%(k+m))) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			c := shardFile(t, k, m, block, 40_001)
			for _, dev := range []int{1, 2} {
				tt.spoil(c, dev)
			}
			for _, dev := range []int{0, 3, 4, 5} {
				c.check(tt.name, dev)
				for _, off := range []int{0, 999, 13_500, 39_990} {
					res, body, err := c.get(dev, "GET", fmt.Sprintf("Range: bytes=%d-%d\n", off, off+9))
					if err != nil || res.StatusCode != 206 || !bytes.Equal(body, c.content[off:off+10]) {
						t.Errorf("at %d: %s, %v, or other bytes", off, res.Status, err)
					}
				}
			}
			if got := c.suspected(); !slices.Equal(got, []string{"1234567:2", "1234567:3"}) {
				t.Errorf("suspected: %v", got)
			}
		})
	}
}

// Shards of an older encoding, or of another file's, are none of this one's; where
// the holder itself has such a one it says so.
func TestReadForeignShards(t *testing.T) {
	t.Parallel()
	c := shardFile(t, 4, 2, 1000, 20_000)
	kept := make([][]byte, 6)
	for i := range kept {
		kept[i] = c.read(i)
	}
	spread(t, c.daemons, 4, 2, 1000, 20_000, 0xe2)
	old := c.read(1)
	for i, b := range kept {
		c.write(i, b)
	}
	c.write(1, old)
	c.check("an older encoding's shard", 0)
	for _, ask := range []int{0, 1} {
		if ask == 1 {
			c.check("an older encoding's shard is what is here", 1)
		}
		if got := c.suspected(); !slices.Equal(got, []string{"1234567:2"}) {
			t.Errorf("suspected: %v", got)
		}
	}
	c.write(1, kept[1])
	other := slices.Clone(kept[0])
	for _, spoil := range []func(b []byte){func(b []byte) { b[20]++ }, func(b []byte) { clear(b[:4096]) }} {
		b := slices.Clone(other)
		spoil(b)
		c.write(0, b)
		for _, method := range []string{"GET", "HEAD"} {
			if res, _, _ := c.get(0, method, ""); res.StatusCode != 503 {
				t.Errorf("%s with a bad header: %s", method, res.Status)
			}
		}
		if got := c.suspected(); !slices.Equal(got, []string{"1234567:1"}) {
			t.Errorf("suspected: %v", got)
		}
		c.check("a bad header elsewhere", 1)
		c.suspected()
	}
}

// When too few are left in the middle of a file, the body ends there, with the
// connection; nothing wrong is sent.
func TestReadBreaksOff(t *testing.T) {
	t.Parallel()
	const block = 1000
	c := shardFile(t, 4, 2, block, 100_000)
	for _, dev := range []int{1, 2, 3} {
		b := c.read(dev)
		for off := erasure.HeaderSize + 15*(block+4) + 100; off < len(b); off += block + 4 {
			b[off]++
		}
		c.write(dev, b)
	}
	res, body, err := c.get(0, "GET", "")
	if res.StatusCode != 200 || err == nil || len(body) < 14*4*block || !bytes.Equal(body, c.content[:len(body)]) {
		t.Errorf("%s, %d bytes, %v, or others", res.Status, len(body), err)
	}
	eventually(t, "it is counted", func() bool {
		return metric(t, c.daemons[0], "mogile_storaged_encoded_reads_total", "failed") == 1
	})
	if got := c.suspected(); !slices.Equal(got, []string{"1234567:2", "1234567:3", "1234567:4"}) {
		t.Errorf("suspected: %v", got)
	}
}

// A host that is down costs nothing but its shards, and is no reason to repair
// anything; a daemon that was started anew knows where the others are without a
// tracker.
func TestReadWithoutHostsAndTrackers(t *testing.T) {
	t.Parallel()
	c := shardFile(t, 4, 2, 1000, 30_000)
	docroot := c.daemons[0].docroot
	c.daemons[0].stop()
	c.daemons[0] = start(t, Options{Docroot: docroot})
	c.check("after a restart", 0)
	meet(t, c.daemons)
	c.daemons[1].stop()
	for _, dev := range []int{0, 1, 4, 5} {
		c.check("without a host", dev)
	}
	if got := c.suspected(); len(got) != 0 {
		t.Errorf("suspected: %v", got)
	}
	c.daemons[2].stop()
	if res, body, _ := c.get(0, "GET", ""); res.StatusCode != 503 || len(body) > 0 {
		t.Errorf("without two hosts: %s", res.Status)
	}
}

// Shards that were moved are found, though none but the new ones was told of it.
func TestReadMovedShards(t *testing.T) {
	t.Parallel()
	c := spread(t, shardDaemons(t, 5, Options{}), 4, 2, 1000, 30_000, 0xe1)
	for epoch, move := range [][2]int{{1, 6}, {2, 7}, {3, 8}} {
		b := c.read(move[0])
		c.h.Placement.Epoch = epoch + 2
		c.h.Placement.Devices = slices.Clone(c.h.Placement.Devices)
		c.h.Placement.Devices[move[0]] = protocol.DevID(move[1] + 1)
		patch, off, err := erasure.Place(b, c.h.Placement)
		if err != nil {
			t.Fatal(err)
		}
		copy(b[off:], patch)
		c.write(move[1], b)
		// Another sister was told, too.
		other := c.read(4)
		if patch, off, err = erasure.Place(other, c.h.Placement); err != nil {
			t.Fatal(err)
		}
		copy(other[off:], patch)
		c.write(4, other)
		c.remove(move[0])
		for _, dev := range []int{0, 4, 5, move[1]} {
			c.check(fmt.Sprintf("after %d moves", epoch+1), dev)
		}
	}
}

// A copy beside a shard, as conversions leave it for a while, is what is served.
func TestCopyBesideShard(t *testing.T) {
	t.Parallel()
	c := shardFile(t, 4, 2, 1000, 10_000)
	c.daemons[0].write(shardedFID.Path(1), "the copy")
	if res, body, err := c.get(0, "GET", ""); string(body) != "the copy" || err != nil {
		t.Errorf("%s, %v, %d bytes", res.Status, err, len(body))
	}
	if res, _, _ := c.get(0, "HEAD", ""); res.ContentLength != int64(len("the copy")) {
		t.Errorf("%d bytes", res.ContentLength)
	}
}

// BenchmarkGetEncoded reads files by their ordinary path: as a copy, in shards of
// which all are there, and without m of them. TMPDIR on a tmpfs leaves the disk
// out of it.
func BenchmarkGetEncoded(b *testing.B) {
	const k, m = 6, 3
	for _, size := range []int{64 << 10, 4 << 20, 256 << 20} {
		b.Run(fmt.Sprintf("size=%d", size), func(b *testing.B) {
			c := shardFile(b, k, m, 256<<10, size)
			c.daemons[0].write("dev1/0/000/000/0000000001.fid", string(c.content))
			for _, kind := range []struct {
				name, path string
				lost       []int
				n          int
			}{
				{"copy", "/dev1/0/000/000/0000000001.fid", nil, size},
				{"whole", "/" + shardedFID.Path(1), nil, size},
				{"degraded", "/" + shardedFID.Path(1), []int{1, 2, 3}, size},
			} {
				for _, i := range kind.lost {
					c.remove(i)
				}
				for _, parallel := range []int{1, 8} {
					b.Run(fmt.Sprintf("%s/parallel=%d", kind.name, parallel), func(b *testing.B) {
						url := "http://" + c.daemons[0].HTTPAddr().String() + kind.path
						benchmark(b, parallel, size, func(hc *http.Client) error {
							return exchange(hc, http.MethodGet, url, nil, http.StatusOK, int64(size))
						})
					})
				}
			}
		})
	}
}

// BenchmarkRangeEncoded reads 4 KiB at random places.
func BenchmarkRangeEncoded(b *testing.B) {
	const size = 64 << 20
	c := shardFile(b, 6, 3, 256<<10, size)
	c.daemons[0].write("dev1/0/000/000/0000000001.fid", string(c.content))
	for _, kind := range []struct{ name, path string }{{"copy", "/dev1/0/000/000/0000000001.fid"}, {"whole", "/" + shardedFID.Path(1)}} {
		b.Run(kind.name, func(b *testing.B) {
			url := "http://" + c.daemons[0].HTTPAddr().String() + kind.path
			benchmark(b, 4, 4096, func(hc *http.Client) error {
				req, err := http.NewRequest(http.MethodGet, url, nil)
				if err != nil {
					return err
				}
				off := rand.IntN(size - 4096)
				req.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", off, off+4095))
				res, err := hc.Do(req)
				if err != nil {
					return err
				}
				defer res.Body.Close()
				body, err := io.ReadAll(res.Body)
				if err == nil && !bytes.Equal(body, c.content[off:off+4096]) {
					err = fmt.Errorf("other bytes at %d", off)
				}
				return err
			})
		})
	}
}
