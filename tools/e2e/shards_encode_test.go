package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/tracker/storage"
)

// uploading is a client's connection to a storage daemon, which costs no more than it
// must.
type uploading struct {
	net.Conn
	body []byte
	at   int // what comes next of it
}

// uploadBody is what clients have in memory to upload, again and again: more than
// processors keep near, as what is worth storing is.
var uploadBody = sync.OnceValue(func() []byte { return randomBytes(256 << 20) })

func (c *Cluster) dialUpload(dev protocol.DevID) (*uploading, error) {
	conn, err := net.Dial("tcp", c.addrOf(dev))
	if err != nil {
		return nil, err
	}
	body := uploadBody()
	return &uploading{conn, body, rand.IntN(len(body))}, nil
}

// addrOf is where a device is served.
func (c *Cluster) addrOf(dev protocol.DevID) string {
	return net.JoinHostPort(c.hostOf(dev).IP, strconv.Itoa(c.Port))
}

// put stores n bytes.
func (u *uploading) put(path string, n int64) error {
	if err := u.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		return err
	}
	if _, err := fmt.Fprintf(u, "PUT %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n", path, n); err != nil {
		return err
	}
	for left := n; left > 0; {
		piece := u.body[u.at:]
		wrote, err := u.Write(piece[:min(left, int64(len(piece)), 256<<10)])
		if left -= int64(wrote); err != nil {
			return err
		}
		u.at = (u.at + wrote) % len(u.body)
	}
	var answer [4096]byte
	have := 0
	for !bytes.Contains(answer[:have], []byte("\r\n\r\n")) {
		more, err := u.Read(answer[have:])
		if have += more; err != nil {
			return fmt.Errorf("%q: %w", answer[:have], err)
		}
	}
	if !bytes.HasPrefix(answer[:have], []byte("HTTP/1.1 201 ")) {
		return fmt.Errorf("%.100s", answer[:have])
	}
	return nil
}

// encodeBench has storage daemons of one device each make shards, as a tracker
// would, of which there is none any more.
type encodeBench struct {
	*Cluster
	k, m  int
	devs  []protocol.DevID
	order *storage.Client
}

func newEncodeBench(b *testing.B, hosts, devices, k, m int) *encodeBench {
	b.Helper()
	c := StartCluster(b, Spec{Hosts: hosts, Devices: devices, Key: true, HostArgs: []string{"--durability=none"}})
	text, err := os.ReadFile(c.KeyFile)
	if err != nil {
		b.Fatal(err)
	}
	keys, err := protocol.ParseClusterKeys(text)
	if err != nil {
		b.Fatal(err)
	}
	c.Do("create_class", "domain="+domain, "class=ec", "mindevcount=2", fmt.Sprintf("replpolicy=ErasureCode(%d,%d)", k, m))
	if err := c.Put("first", "ec", randomBytes(2<<20)); err != nil {
		b.Fatal(err)
	}
	c.inShards("first", k+m) // daemons know of each other now
	for _, p := range c.Trackers {
		p.Kill()
	}
	e := &encodeBench{Cluster: c, k: k, m: m, order: storage.New(storage.Options{Key: keys.Signing(), MgmtPort: -1})}
	b.Cleanup(e.order.Close)
	for i := range devices { // as trackers place shards: no two on a host before all have one
		for _, h := range c.Hosts {
			e.devs = append(e.devs, h.Devices[i])
		}
	}
	return e
}

// target is the device of shard i of file n, shard 0 is where the file is.
func (e *encodeBench) target(n, i int) protocol.DevID { return e.devs[(n+i)%len(e.devs)] }

// fid of file n: none that a tracker has given.
func (e *encodeBench) fid(n int) protocol.FID { return protocol.FID(1_000_000 + n) }

// encode makes shards of file n.
func (e *encodeBench) encode(n int, size int64) error {
	o := protocol.EncodeOrder{
		ShardSet: protocol.ShardSet{FID: e.fid(n), Encoding: rand.Uint64() | 1, K: e.k, M: e.m, Block: 128 << 10, Length: size},
		Dev:      e.target(n, 0), Epoch: 1,
	}
	for i := range e.k + e.m {
		dev := e.target(n, i)
		o.Targets = append(o.Targets, protocol.ShardAt{Index: i, Peer: protocol.Peer{Dev: dev, URL: "http://" + e.addrOf(dev)}})
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	_, err := e.order.Encode(ctx, e.addrOf(o.Dev), o, nil)
	return err
}

// files measures files of one size, some at a time: MB/s of their bytes that become
// shards, beside uploads of as many bytes as the shards have, in as many streams.
func (e *encodeBench) files(b *testing.B, rounds, files, at int, size int64) {
	for n := range files {
		up, err := e.dialUpload(e.target(n, 0))
		if err == nil {
			err = errors.Join(up.put("/"+e.fid(n).Path(e.target(n, 0)), size), up.Close())
		}
		if err != nil {
			b.Fatal(err)
		}
	}
	part := (size + int64(e.k) - 1) / int64(e.k)
	// Uploads go over connections of their own, each file's at the same time.
	streams := make(chan []*uploading, at)
	for range at {
		set := make([]*uploading, len(e.devs))
		for i, dev := range e.devs {
			up, err := e.dialUpload(dev)
			if err != nil {
				b.Fatal(err)
			}
			defer up.Close()
			set[i] = up
		}
		streams <- set
	}
	upload := func(n int) error {
		set := <-streams
		defer func() { streams <- set }()
		errs := make([]error, e.k+e.m)
		var all sync.WaitGroup
		for i := range errs {
			all.Go(func() {
				at := (n + i) % len(set)
				errs[i] = set[at].put("/"+protocol.FID(2_000_000+n).Path(e.devs[at]), part)
			})
		}
		all.Wait()
		return errors.Join(errs...)
	}
	list := []contender{{name: "upload"}, {name: "encode"}}
	compare(b, rounds, list, "MB/s", [][2]string{{"encode", "upload"}}, func(c contender) float64 {
		do := upload
		if c.name == "encode" {
			do = func(n int) error { return e.encode(n, size) }
		}
		began := time.Now()
		eachParallel(files, at, func(n int) {
			if err := do(n); err != nil {
				b.Error(c.name, err)
			}
		})
		took := time.Since(began)
		if b.Failed() {
			b.FailNow()
		}
		for n := range files { // both write into files that are not there yet
			for i := range e.k + e.m {
				dev := e.target(n, i)
				file := e.shardOnDisk(dev, e.fid(n))
				if c.name == "upload" {
					file = filepath.Join(e.hostOf(dev).Docroot, filepath.FromSlash(protocol.FID(2_000_000+n).Path(dev)))
				}
				if err := os.Remove(file); err != nil {
					b.Fatal(err)
				}
			}
		}
		return float64(int64(files)*size) / 1e6 / took.Seconds()
	})
	for n := range files {
		if err := os.Remove(e.onDisk(e.target(n, 0), e.fid(n))); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkShardsEncode has files encoded by storage daemons that are processes of
// their own, in turns with uploads of (k+m)/k times the bytes to the same daemons.
func BenchmarkShardsEncode(b *testing.B) {
	for _, s := range []struct{ hosts, devices, k, m int }{{6, 2, 6, 3}, {6, 1, 4, 2}, {12, 4, 32, 16}} {
		b.Run(fmt.Sprintf("%d+%d", s.k, s.m), func(b *testing.B) {
			e := newEncodeBench(b, s.hosts, s.devices, s.k, s.m)
			for _, f := range []struct {
				name              string
				rounds, files, at int
				size              int64
			}{
				{"1GiB", 5, 1, 1, 1 << 30},
				{"64MiB/at=4", 5, 16, 4, 64 << 20},
				{"1MiB/at=16", 5, 256, 16, 1 << 20},
				{"64KiB/at=16", 5, 512, 16, 64 << 10},
			} {
				b.Run(f.name, func(b *testing.B) { e.files(b, f.rounds, f.files, f.at, f.size) })
			}
		})
	}
}
