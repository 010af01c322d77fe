package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"maps"
	"net"
	"net/http"
	"path"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"pgregory.net/rapid"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/schema"
	"github.com/mogile/mogile/storaged/erasure"
	"github.com/mogile/mogile/storaged/volume/simdisk"
)

// modelShards are the shards of a class: k+m of each file of least bytes or more.
type modelShards struct{ k, m, least int }

func (s modelShards) policy() string {
	return fmt.Sprintf("ErasureCode(%d,%d,min=%d)", s.k, s.m, s.least)
}

func (s modelShards) class(sum protocol.HashType) *modelClass {
	return &modelClass{class: schema.Class{MinDevCount: s.m + 1, ReplPolicy: s.policy(), HashType: sum}, copies: s.m + 1, spread: true, shards: s}
}

// encodes reports whether a file is kept in shards.
func (c *modelClass) encodes(body []byte) bool {
	return c.shards.k > 0 && len(body) >= max(1, c.shards.least)
}

// spare is how many copies or shards a settled file can do without.
func (w *world) spare(key string) int {
	s := w.files[key][0]
	if c := w.classes[s.class]; c.encodes(s.body) {
		return c.shards.m
	}
	return w.classes[s.class].copies - 1
}

// shardsInPlace holds the shards of a file against those that it should have: all
// of them, of the encoding that is recorded, in their order, and bit by bit what is
// made of the file.
func (w *world) shardsInPlace(at location, s state, hosts map[*simHost]int, have map[string][]byte) error {
	class, e := w.classes[s.class].shards, at.encoding
	if e == nil || e.K != class.k || e.M != class.m {
		return fmt.Errorf("class %s has it encoded as %+v", s.class, e)
	}
	recorded := slices.Sorted(slices.Values(e.Devices))
	if on := slices.Sorted(slices.Values(at.devs)); !slices.Equal(on, slices.Compact(recorded)) {
		return fmt.Errorf("it is on %v, with shards on %v", on, e.Devices)
	}
	for h, n := range hosts {
		if n > class.m {
			return fmt.Errorf("%d of its %d+%d shards are on %s", n, class.k, class.m, h.ip)
		}
	}
	var want [][]byte // without headers
	for i, dev := range e.Devices {
		got := have[at.path(dev)]
		h, err := erasure.ParseHeader(got[:min(len(got), erasure.HeaderSize)])
		if err != nil {
			return fmt.Errorf("%s: %w", at.path(dev), err)
		}
		set := protocol.ShardSet{FID: at.fid, Encoding: e.ID, K: e.K, M: e.M, Block: e.Block, Length: int64(len(s.body))}
		if h.ShardSet != set || h.Index != i || h.CRC32C != crc32.Checksum(s.body, crc32.MakeTable(crc32.Castagnoli)) {
			return fmt.Errorf("%s: header %+v, want %+v, shard %d", at.path(dev), h, set, i)
		}
		if h.Placement.Epoch > e.Epoch || h.Placement.Epoch == e.Epoch && !slices.Equal(h.Placement.Devices, e.Devices) {
			return fmt.Errorf("%s says its sisters are at %+v, recorded is %+v", at.path(dev), h.Placement, e)
		}
		if want == nil {
			want = w.encode(h, s.body)
		}
		if !bytes.Equal(got[erasure.HeaderSize:], want[i]) {
			return fmt.Errorf("%s is not what was written: %d bytes, want %d", at.path(dev), len(got)-erasure.HeaderSize, len(want[i]))
		}
	}
	if w.encodings[at.fid] == nil {
		w.encodings[at.fid] = map[uint64][]byte{}
	}
	w.encodings[at.fid][e.ID] = have[at.path(e.Devices[0])]
	return nil
}

// encode makes shards of a file, without their headers.
func (w *world) encode(h erasure.Header, body []byte) [][]byte {
	w.rt.Helper()
	shards := make([][]byte, h.Shards())
	w.must(0, w.codec.Encode(context.Background(), h, erasure.From(bytes.NewReader(body)), func(parts [][]byte, done func(bool)) error {
		for i, part := range parts {
			shards[i] = append(shards[i], part...)
		}
		done(true)
		return nil
	}))
	for i := range shards {
		shards[i] = shards[i][erasure.HeaderSize:]
	}
	return shards
}

// used compares what the tracker says that classes occupy.
func (w *world) used(want map[string]protocol.ClassUsage) error {
	ctx, cancel := callTimeout()
	defer cancel()
	usage, err := w.client.ClassUsage(ctx)
	if err != nil {
		return err
	}
	got := map[string]protocol.ClassUsage{}
	for _, u := range usage {
		got[u.Class] = u
	}
	if !maps.Equal(got, want) {
		return fmt.Errorf("classes occupy %v, want %v", got, want)
	}
	return nil
}

// url is where a device has a file, be it in a copy or a shard.
func (w *world) url(fid protocol.FID, dev protocol.DevID) string {
	return "http://" + net.JoinHostPort(w.hostOf(dev).ip, strconv.Itoa(w.port)) + "/" + fid.Path(dev)
}

// readPaths reads all paths of a key whose state is known. While files move, a path
// may not answer, but none answers with anything else.
func (w *world) readPaths(key string) {
	w.rt.Helper()
	for _, path := range w.paths(key) {
		if body, err := fetch(path); err == nil && !bytes.Equal(body, w.files[key][0].body) {
			w.rt.Fatalf("%q: %s answers with %d other bytes, want %d\n%s", key, path, len(body), len(w.files[key][0].body), w.dump())
		}
	}
}

func (w *world) paths(key string) []string {
	w.rt.Helper()
	ctx, cancel := callTimeout()
	defer cancel()
	paths, err := w.client.Paths(ctx, domain, key, protocol.PathsOptions{NoVerify: true, Count: 2 * modelHosts})
	if err != nil && !errors.Is(err, protocol.ErrUnknownKey) {
		w.rt.Logf("paths of %q: %v", key, err)
	}
	return paths
}

// readAll reads what is settled from all paths.
func (w *world) readAll() {
	w.rt.Helper()
	for _, key := range slices.Sorted(maps.Keys(w.files)) {
		at, err := w.where(key)
		w.must(0, err)
		if paths := w.paths(key); len(paths) != len(at.devs) {
			w.rt.Fatalf("%q is on %v and has the paths %q", key, at.devs, paths)
		}
		w.readShards(key, at, nil)
	}
}

// readShards reads a file where it is. From devices whose copy or shard was
// damaged a shard that can be read gives the content, or there is none.
func (w *world) readShards(key string, at location, damaged []protocol.DevID) {
	w.rt.Helper()
	want := w.files[key][0].body
	for _, dev := range at.devs {
		url := w.url(at.fid, dev)
		if slices.Contains(damaged, dev) {
			if at.encoding == nil {
				continue
			}
			if body, err := fetch(url); err == nil && !bytes.Equal(body, want) {
				w.rt.Fatalf("%q: %s, where %v are damaged, answers with %d other bytes, want %d\n%s", key, url, damaged, len(body), len(want), w.dump())
			}
			continue
		}
		resp, body, err := get("GET", url, "")
		if err != nil || resp.StatusCode != http.StatusOK || !bytes.Equal(body, want) {
			w.rt.Fatalf("%q: GET %s, where %v are damaged: %v, %+v, %d bytes, want %d\n%s\n%s", key, url, damaged, err, resp, len(body), len(want), w.log.tail(150), w.dump())
		}
		if resp, _, err = get("HEAD", url, ""); err != nil || resp.StatusCode != http.StatusOK || resp.ContentLength != int64(len(want)) {
			w.rt.Fatalf("%q: HEAD %s: %v, %+v, want %d bytes", key, url, err, resp, len(want))
		}
		if len(want) == 0 {
			continue
		}
		from := len(want) / 3
		to := min(len(want)-1, from+4095)
		resp, body, err = get("GET", url, fmt.Sprintf("%d-%d", from, to))
		if err != nil || resp.StatusCode != http.StatusPartialContent || !bytes.Equal(body, want[from:to+1]) {
			w.rt.Fatalf("%q: bytes %d-%d of %s: %v, %+v, %d bytes\n%s", key, from, to, url, err, resp, len(body), w.dump())
		}
	}
}

// anotherShard is what may lie in a shard's place: a sister, a shard of another
// file, or one of an older encoding of this one.
func (w *world) anotherShard(rt *rapid.T, at location, dev protocol.DevID) ([]byte, error) {
	own := "/mogdata/" + at.path(dev)
	var others [][]byte
	for _, id := range slices.Sorted(maps.Keys(w.encodings[at.fid])) {
		if id != at.encoding.ID {
			others = append(others, w.encodings[at.fid][id])
		}
	}
	for _, h := range w.hosts {
		for _, p := range h.disk.Files("/mogdata") {
			if path.Ext(p) == ".ec" && p != own && isContent(p) {
				body, err := h.disk.ReadFile(p)
				if err != nil {
					return nil, err
				}
				others = append(others, body)
			}
		}
	}
	return bytes.Clone(rapid.SampledFrom(others).Draw(rt, "another shard")), nil
}

// isContent reports whether a path below a docroot is that of a copy or shard.
func isContent(p string) bool {
	return (path.Ext(p) == ".fid" || path.Ext(p) == ".ec") && !strings.Contains(p, "/.mogile/")
}

// deleteLost deletes the files that would be lost with what devices hold.
func (w *world) deleteLost(devs ...protocol.DevID) {
	w.rt.Helper()
	for _, key := range slices.Sorted(maps.Keys(w.files)) {
		at, err := w.where(key)
		w.must(0, err)
		lost := 0
		for _, dev := range at.devs {
			if slices.Contains(devs, dev) {
				lost++
			}
		}
		if lost > w.spare(key) {
			_, err := w.do("delete", "key="+key)
			w.must(0, err)
			delete(w.files, key)
		}
	}
}

// devicesWiped takes all copies and shards from one device or two, while their
// daemons run. Everything is read before fsck makes it good.
func (w *world) devicesWiped(rt *rapid.T) {
	w.settle(rt)
	devs := rapid.Permutation([]protocol.DevID{1, 2, 3, 4, 5, 6}).Draw(rt, "devices")[:rapid.IntRange(1, 2).Draw(rt, "how many")]
	w.deleteLost(devs...)
	for _, dev := range devs {
		disk := w.hostOf(dev).disk
		for _, p := range disk.Files(fmt.Sprintf("/mogdata/dev%d", dev)) {
			if isContent(p) {
				// A file that was deleted is going at the same time.
				_ = disk.Lose(p)
			}
		}
		w.counts.wiped++
	}
	for _, key := range slices.Sorted(maps.Keys(w.files)) {
		at, err := w.where(key)
		w.must(0, err)
		w.readShards(key, at, devs)
	}
	w.checkAll()
}

// loseTooMany spoils one shard of a file, and takes away all that it can do without
// besides. It cannot be read, and all that is left stays, whoever looks at it, until
// the shard is good again.
func (w *world) loseTooMany(rt *rapid.T) {
	w.settle(rt)
	var able []string
	for _, key := range slices.Sorted(maps.Keys(w.files)) {
		if s := w.files[key][0]; w.classes[s.class].encodes(s.body) {
			able = append(able, key)
		}
	}
	if len(able) == 0 {
		return
	}
	key := rapid.SampledFrom(able).Draw(rt, "damaged")
	at, err := w.where(key)
	w.must(0, err)
	m := at.encoding.M
	devs := rapid.Permutation(at.devs).Draw(rt, "devices")
	spoiled, lost, left := devs[0], devs[1:m+1], devs[m+1:]
	file := func(dev protocol.DevID) (*simdisk.Disk, string) {
		return w.hostOf(dev).disk, "/mogdata/" + at.path(dev)
	}
	for _, dev := range lost {
		disk, p := file(dev)
		w.must(0, disk.Lose(p))
	}
	disk, p := file(spoiled)
	good, err := disk.ReadFile(p)
	w.must(0, err)
	bad := bytes.Clone(good)
	// Its header does not matter: its sisters know what it should be.
	bad[rapid.IntRange(erasure.HeaderSize, len(bad)-1).Draw(rt, "byte")] ^= 1
	w.must(0, disk.Rot(p, bad))
	w.counts.tooMany++

	unreadable := func() {
		for _, dev := range at.devs {
			resp, body, err := get("GET", w.url(at.fid, dev), "")
			if errors.Is(err, io.ErrUnexpectedEOF) && bytes.HasPrefix(w.files[key][0].body, body) {
				continue // of the first block that is missing nothing was known when it began
			}
			want := http.StatusServiceUnavailable
			if slices.Contains(lost, dev) {
				want = http.StatusNotFound
			}
			if err != nil || resp.StatusCode != want {
				rt.Fatalf("%q, with %v lost and %d spoiled: dev%d answers %v, %+v, want %d\n%s", key, lost, spoiled, dev, err, resp, want, w.dump())
			}
		}
	}
	unreadable()
	if _, err := w.do("fsck_reset"); err != nil {
		rt.Fatal(err)
	}
	w.sweep("fsck")
	w.sweep("scrub")
	unreadable()
	for _, dev := range append(slices.Clone(left), spoiled) {
		disk, p := file(dev)
		if _, err := disk.ReadFile(p); err != nil {
			rt.Fatalf("%q, with %v lost and %d spoiled: what was left has gone: %v\n%s\n%s", key, lost, spoiled, err, w.log.tail(150), w.dump())
		}
	}
	if now, err := w.where(key); err != nil || now.encoding == nil || now.encoding.ID != at.encoding.ID {
		rt.Fatalf("%q, with %v lost and %d spoiled: %+v, %v, was %+v", key, lost, spoiled, now, err, at)
	}
	w.must(0, disk.Rot(p, good))
	w.checkAll()
}

// convert gives files other classes, while a disk may fail or a host's power may be
// cut.
func (w *world) convert(rt *rapid.T) {
	w.counts.steps++
	keys := []string{w.anyKey(rt)}
	for range rapid.IntRange(0, 3).Draw(rt, "more") {
		keys = append(keys, w.anyKey(rt))
	}
	h, rng := rapid.SampledFrom(w.hosts).Draw(rt, "host"), w.rng(rt)
	heal := func() {}
	cut := rapid.Bool().Draw(rt, "power is cut")
	if !cut {
		heal = h.disk.Inject(simdisk.Fault{
			Ops:   []simdisk.Op{rapid.SampledFrom([]simdisk.Op{simdisk.OpSync, simdisk.OpSettle, simdisk.OpSyncDir, simdisk.OpWrite, simdisk.OpRead, simdisk.OpCreate, simdisk.OpLink, simdisk.OpRename, simdisk.OpUnlink}).Draw(rt, "op")},
			Skip:  rapid.IntRange(0, 10).Draw(rt, "skip"),
			Times: rapid.IntRange(1, 5).Draw(rt, "times"),
			Err:   rapid.SampledFrom([]error{syscall.EIO, syscall.ENOSPC}).Draw(rt, "error"),
		})
	}
	for _, key := range keys {
		w.know(rt, key)
		if w.files[key] == nil {
			continue
		}
		class := rapid.SampledFrom(w.names).Draw(rt, "class")
		if _, err := w.do("updateclass", "key="+key, "class="+class); err != nil {
			rt.Fatalf("updateclass %q to %s: %v", key, class, err)
		}
		w.files[key][0].class = class
	}
	for range rapid.IntRange(0, 5).Draw(rt, "reads") {
		if len(w.files) > 0 {
			w.compare(rt, w.anyKey(rt))
		}
	}
	heal()
	// What a failed disk shows need not be on it.
	w.counts.cuts++
	w.restart(h, h.disk.Crash(rng))
}
