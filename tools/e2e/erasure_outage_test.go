package e2e

import (
	"bytes"
	"fmt"
	"net/http"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/mogile/mogile/protocol"
)

// TestShardsOutliveTrackers has files encoded, one of them from a copy that only an
// nginx has, which knows nothing of shards. Then all trackers die, two devices are
// lost, and all storage daemons are started anew: files are read as before.
func TestShardsOutliveTrackers(t *testing.T) {
	t.Parallel()
	c := StartCluster(t, Spec{Hosts: 3, Devices: 2, Key: true})
	n := c.AddNginx(1, true)
	c.Do("create_class", "domain="+domain, "class=ec", "mindevcount=2", "replpolicy=ErasureCode(4,2,min=1K)")

	files := map[string][]byte{}
	foreign := ""
	for i := 0; foreign == ""; i++ {
		if i == 500 {
			t.Fatal("no file comes to nginx")
		}
		key, body := fmt.Sprint("file", i), randomBytes(300_001+i)
		if err := c.Put(key, "single", body); err != nil {
			t.Fatal(err)
		}
		if _, devs := c.info(key); slices.Equal(devs, n.Devices) {
			foreign = key
		} else if i >= 2 {
			continue
		}
		files[key] = body
	}
	on := map[string][]protocol.DevID{}
	for key := range files {
		c.Do("updateclass", "domain="+domain, "key="+key, "class=ec")
	}
	for key := range files {
		on[key] = c.inShards(key, 6)
		if slices.Contains(on[key], n.Devices[0]) {
			t.Errorf("%s has a shard on nginx: %v", key, on[key])
		}
	}

	fids := map[string]protocol.FID{}
	for key := range files {
		fids[key], _ = c.info(key)
	}
	for _, p := range c.Trackers {
		p.Kill()
	}
	lost := []protocol.DevID{1, 6}
	for _, fid := range fids {
		for _, dev := range lost {
			if err := os.Remove(c.shardOnDisk(dev, fid)); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, h := range c.Hosts[:3] {
		h.Kill()
	}
	for _, h := range c.Hosts[:3] {
		h.Start()
	}
	for _, h := range c.Hosts[:3] {
		within(t, time.Minute, h.Name+" serves", func() error {
			_, err := fetch("http://" + h.Status + "/metrics")
			return err
		})
	}
	for key, body := range files {
		for _, dev := range on[key] {
			if slices.Contains(lost, dev) {
				continue
			}
			url := c.url(fids[key], dev)
			if got, err := fetch(url); err != nil || !bytes.Equal(got, body) {
				t.Errorf("%s: %s: %d other bytes, want %d: %v", key, url, len(got), len(body), err)
			}
			resp, got, err := get("GET", url, "100000-104095")
			if err != nil || resp.StatusCode != http.StatusPartialContent || !bytes.Equal(got, body[100_000:104_096]) {
				t.Errorf("%s: a part of %s: %d other bytes, %v", key, url, len(got), err)
			}
			if resp, _, err := get("HEAD", url, ""); err != nil || resp.StatusCode != http.StatusOK || resp.ContentLength != int64(len(body)) {
				t.Errorf("%s: HEAD %s: %v, %+v", key, url, err, resp)
			}
		}
	}
}
