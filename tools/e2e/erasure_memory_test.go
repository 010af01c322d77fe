package e2e

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/mogile/mogile/protocol"
)

// TestShardsInLittleMemory has a file of 1 GiB times MOGILE_TEST_SCALE encoded, read
// by several at once, read without as many shards as it can do without, and these
// made anew, in 6+3 shards and in 32+16: no storage daemon is ever above 128 MiB.
func TestShardsInLittleMemory(t *testing.T) {
	scenario(t)
	t.Parallel()
	size := int64(scale(1)) << 30
	c := StartCluster(t, Spec{Hosts: 4, Devices: 12, Key: true})
	for _, code := range []struct{ k, m int }{{6, 3}, {32, 16}} {
		name := fmt.Sprintf("%d+%d", code.k, code.m)
		c.Do("create_class", "domain="+domain, "class="+name, "mindevcount=2", fmt.Sprintf("replpolicy=ErasureCode(%d,%d)", code.k, code.m))
		began := time.Now()
		lap := func(what string) {
			var most []int
			for _, h := range c.Hosts {
				most = append(most, statusMiB(t, h.Process, "VmHWM:"))
			}
			t.Logf("%s, %s: after %.1f s daemons have had %v MiB", name, what, time.Since(began).Seconds(), most)
			if slices.Max(most) >= 128 {
				t.Errorf("%s, %s: %v MiB", name, what, most)
			}
		}

		sum := c.putLarge(t, name, name, size)
		devs := c.wholeLarge(name, code.k+code.m)
		lap("encoded")

		fid, _ := c.info(name)
		first := map[string]protocol.DevID{} // a device of each host
		for _, dev := range devs {
			first[c.hostOf(dev).Name] = dev
		}
		readers := slices.Collect(maps.Values(first))
		eachParallel(len(readers), len(readers), func(i int) {
			if err := getLarge(c.url(fid, readers[i]), size, sum); err != nil {
				t.Error(err)
			}
		})
		lap(fmt.Sprintf("read by %d", len(readers)))

		lost := 0
		for _, dev := range devs {
			if lost < code.m && !slices.Contains(readers, dev) {
				if err := os.Remove(c.shardOnDisk(dev, fid)); err != nil {
					t.Fatal(err)
				}
				lost++
			}
		}
		if err := getLarge(c.url(fid, readers[0]), size, sum); err != nil { // trackers are told
			t.Error(err)
		}
		lap(fmt.Sprintf("read without %d", lost))
		mogtool(t, c, "fsck", "start", "--all", "--wait")
		c.wholeLarge(name, code.k+code.m)
		lap("made anew")

		c.Do("delete", "domain="+domain, "key="+name)
		c.WaitEmpty(5 * time.Minute)
		if t.Failed() {
			return
		}
	}
}

// putLarge stores a file of random content, of which it returns the CRC32C.
func (c *Cluster) putLarge(t *testing.T, key, class string, size int64) uint32 {
	t.Helper()
	client, err := protocol.NewClient(protocol.ClientOptions{Trackers: c.Addrs})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Minute)
	defer cancel()
	sum := crc32.New(castagnoli)
	var seed [32]byte
	copy(seed[:], key)
	body := io.TeeReader(io.LimitReader(rand.NewChaCha8(seed), size), sum)
	if _, err := client.Create(ctx, domain, key, protocol.CreateOptions{Class: class, Size: size}, body); err != nil {
		t.Fatal(err)
	}
	return sum.Sum32()
}

// wholeLarge waits until a key has n shards and nothing else, for as long as a large
// file may take, and returns their devices.
func (c *Cluster) wholeLarge(key string, n int) []protocol.DevID {
	c.t.Helper()
	within(c.t, 30*time.Minute, "shards of "+key, func() error {
		fid, devs := c.info(key)
		copies, shards := c.lying(fid)
		if len(devs) != n || len(shards) != n || len(copies) > 0 {
			return fmt.Errorf("on %d devices, %d shards, %d copies", len(devs), len(shards), len(copies))
		}
		return nil
	})
	return c.inShards(key, n)
}

// getLarge reads a file that is not kept.
func getLarge(url string, size int64, sum uint32) error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Minute)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	got := crc32.New(castagnoli)
	n, err := io.Copy(got, resp.Body)
	if err == nil && (resp.StatusCode != http.StatusOK || n != size || got.Sum32() != sum) {
		err = errors.New("other content")
	}
	if err != nil {
		return fmt.Errorf("%s: %s, %d bytes of %d: %w", url, resp.Status, n, size, err)
	}
	return nil
}
