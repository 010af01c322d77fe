package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/mogile/mogile/protocol"
)

// lying are the devices that have a file of a fid: copies, and shards.
func (c *Cluster) lying(fid protocol.FID) (copies, shards []protocol.DevID) {
	c.t.Helper()
	for _, h := range c.Hosts {
		for _, dev := range h.Devices {
			for path, devs := range map[string]*[]protocol.DevID{fid.Path(dev): &copies, fid.ShardPath(dev): &shards} {
				_, err := os.Stat(filepath.Join(h.Docroot, filepath.FromSlash(path)))
				if err == nil {
					*devs = append(*devs, dev)
				} else if !errors.Is(err, fs.ErrNotExist) {
					c.t.Fatal(err)
				}
			}
		}
	}
	slices.Sort(copies)
	slices.Sort(shards)
	return copies, shards
}

// inShards waits until a key has n shards, as many as are recorded, and no copy,
// and returns the devices.
func (c *Cluster) inShards(key string, n int, not ...protocol.DevID) []protocol.DevID {
	c.t.Helper()
	var devs []protocol.DevID
	within(c.t, 2*time.Minute, fmt.Sprintf("%d shards of %s, and no copy", n, key), func() error {
		var fid protocol.FID
		fid, devs = c.info(key)
		copies, shards := c.lying(fid)
		shards = slices.DeleteFunc(shards, func(dev protocol.DevID) bool { return slices.Contains(not, dev) })
		if len(devs) != n || !slices.Equal(devs, shards) || len(copies) > 0 {
			return fmt.Errorf("fid %d is recorded on %v, with shards on %v and copies on %v", fid, devs, shards, copies)
		}
		return nil
	})
	return devs
}

// get is a GET with a range, or a HEAD where method says so.
func get(method, url, ranged string) (*http.Response, []byte, error) {
	req, err := http.NewRequest(method, url, nil)
	if err != nil {
		return nil, nil, err
	}
	if ranged != "" {
		req.Header.Set("Range", "bytes="+ranged)
	}
	resp, err := httpClient.Do(req)
	if err != nil {
		return nil, nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return resp, body, err
}

// readFrom reads a key from devices as clients do that know nothing of shards.
func (c *Cluster) readFrom(key string, devs []protocol.DevID, want []byte) {
	c.t.Helper()
	fid, _ := c.info(key)
	n := len(want)
	for _, dev := range devs {
		url := c.url(fid, dev)
		resp, body, err := get("GET", url, "")
		if err != nil || resp.StatusCode != http.StatusOK || !bytes.Equal(body, want) {
			c.t.Errorf("%s: GET %s: %v, %d other bytes of %d", key, url, err, len(body), n)
			continue
		}
		resp, _, err = get("HEAD", url, "")
		if err != nil || resp.StatusCode != http.StatusOK || resp.ContentLength != int64(n) {
			c.t.Errorf("%s: HEAD %s: %v, %+v", key, url, err, resp)
		}
		for _, r := range [][2]int{{0, 0}, {n / 3, min(n-1, n/3+4095)}, {n / 2, n - 1}, {n - 1, n - 1}} {
			resp, body, err := get("GET", url, fmt.Sprintf("%d-%d", r[0], r[1]))
			if err != nil || resp.StatusCode != http.StatusPartialContent || !bytes.Equal(body, want[r[0]:r[1]+1]) {
				c.t.Errorf("%s: bytes %d-%d of %s: %v, %d bytes", key, r[0], r[1], url, err, len(body))
			}
		}
	}
}

// TestErasureCode stores files through the raw protocol in a class of shards, reads
// them from every holder, empties two devices, reads again, and has them made whole
// on others. Then they become copies, shards again, move, and are deleted.
func TestErasureCode(t *testing.T) {
	for _, engine := range []string{"sqlite", "postgres"} {
		t.Run(engine, func(t *testing.T) {
			if engine == "postgres" {
				scenario(t)
			}
			t.Parallel()
			c := StartCluster(t, Spec{Engine: engine, Hosts: 5, Devices: 2, Key: true})
			c.Do("create_class", "domain="+domain, "class=ec", "mindevcount=2", "replpolicy=ErasureCode(4,2,min=1K)")
			files := map[string][]byte{}
			for i, size := range []int{1 << 10, 4097, 300_000, 1 << 20, 9_000_001} {
				files[fmt.Sprint("file", i)] = randomBytes(size)
			}
			for key, body := range files {
				if err := c.Put(key, "ec", body); err != nil {
					t.Fatal(err)
				}
			}
			if err := c.Put("small", "ec", []byte("too small")); err != nil {
				t.Fatal(err)
			}
			c.WaitPolicy("small", 3)
			used := map[protocol.DevID]int{}
			for key, body := range files {
				devs := c.inShards(key, 6)
				hosts := map[string]int{}
				for _, dev := range devs {
					used[dev]++
					if h := c.hostOf(dev).Name; hosts[h] == 2 {
						t.Errorf("%s: more than two shards on %s: %v", key, h, devs)
					} else {
						hosts[h]++
					}
				}
				c.readFrom(key, devs, body)
			}

			// Two devices lose everything.
			var lost []protocol.DevID
			for len(lost) < 2 {
				most := protocol.DevID(0)
				for dev, n := range used {
					if !slices.Contains(lost, dev) && n > used[most] {
						most = dev
					}
				}
				lost = append(lost, most)
				root := filepath.Join(c.hostOf(most).Docroot, "dev"+most.String())
				if err := os.RemoveAll(filepath.Join(root, "0")); err != nil {
					t.Fatal(err)
				}
			}
			for key, body := range files {
				_, devs := c.info(key)
				c.readFrom(key, slices.DeleteFunc(devs, func(dev protocol.DevID) bool { return slices.Contains(lost, dev) }), body)
				got, err := c.read(key)
				if err != nil || !bytes.Equal(got, body) {
					t.Errorf("%s: %d bytes, %v", key, len(got), err)
				}
			}
			for _, dev := range lost {
				c.Do("set_state", "host="+c.hostOf(dev).Name, "device="+dev.String(), "state=dead")
			}
			for key, body := range files {
				within(t, 2*time.Minute, key+" leaves the dead devices", func() error {
					if _, devs := c.info(key); slices.ContainsFunc(devs, func(dev protocol.DevID) bool { return slices.Contains(lost, dev) }) {
						return fmt.Errorf("on %v", devs)
					}
					return nil
				})
				c.readFrom(key, c.inShards(key, 6, lost...), body)
			}

			// Before they were marked fsck may have had shards made anew on them: what is
			// on a dead device stays there.
			for _, dev := range lost {
				c.wipe(dev)
			}

			// To copies, and back.
			for key, body := range files {
				c.Do("updateclass", "domain="+domain, "key="+key, "class=default")
				within(t, 2*time.Minute, "copies of "+key, func() error {
					fid, devs := c.info(key)
					copies, shards := c.lying(fid)
					if len(devs) != 2 || !slices.Equal(devs, copies) || len(shards) > 0 {
						return fmt.Errorf("recorded on %v, with copies on %v and shards on %v", devs, copies, shards)
					}
					return nil
				})
				_, devs := c.info(key)
				c.readFrom(key, devs, body)
				c.Do("updateclass", "domain="+domain, "key="+key, "class=ec")
			}
			for key, body := range files {
				c.readFrom(key, c.inShards(key, 6, lost...), body)
			}

			// A device is emptied in good order.
			_, devs := c.info("file4")
			from := devs[0]
			c.Do("drain_device", "devid="+from.String())
			for key, body := range files {
				within(t, 2*time.Minute, key+" leaves the device that is drained", func() error {
					if _, devs := c.info(key); slices.Contains(devs, from) {
						return fmt.Errorf("on %v", devs)
					}
					return nil
				})
				c.readFrom(key, c.inShards(key, 6, lost...), body)
			}

			for key := range files {
				c.Do("delete", "domain="+domain, "key="+key)
			}
			c.Do("delete", "domain="+domain, "key=small")
			c.WaitEmpty(time.Minute)
		})
	}
}
