package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mogile/mogile/protocol"
)

// acknowledged are the files whose storing was answered with success.
type acknowledged struct {
	mu    sync.Mutex // guards files
	files map[string][]byte
}

func (a *acknowledged) add(key string, body []byte) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.files[key] = body
}

// uploading stores files from several clients until stop is closed, and takes
// down what was acknowledged.
func (c *Cluster) uploading(a *acknowledged, round int, rng *rand.Rand, stop <-chan struct{}) *sync.WaitGroup {
	var wg sync.WaitGroup
	for w := range 4 {
		rng := rand.New(rand.NewPCG(rng.Uint64(), 0))
		wg.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				key := fmt.Sprintf("r%d-w%d-%d", round, w, n)
				body := randomBody(rng, 256<<10)
				if err := c.Put(key, "single", body); err == nil {
					a.add(key, body)
				}
			}
		})
	}
	return &wg
}

// TestKilledDuringUploads kills the storage daemon and the tracker, in turn,
// while clients store files. No acknowledged file is lost, and a file that has
// its name on a device is complete.
func TestKilledDuringUploads(t *testing.T) {
	t.Parallel()
	engines(t, func(t *testing.T, engine string) {
		rng := newRand(t)
		c := StartCluster(t, Spec{Engine: engine, Hosts: 1, Devices: 2})
		a := &acknowledged{files: map[string][]byte{}}
		// 200 rounds of each kind in large, a tenth of them over the two stores.
		for round := range scale(20) {
			victim := c.Hosts[0].Process
			if round%2 == 1 {
				victim = c.Trackers[0]
			}
			before := len(a.files)
			stop := make(chan struct{})
			wg := c.uploading(a, round, rng, stop)
			// Kill in the middle of work that is known to be under way.
			within(t, 30*time.Second, "uploads under way", func() error {
				a.mu.Lock()
				defer a.mu.Unlock()
				if len(a.files) <= before+rng.IntN(8) {
					return errors.New("nothing stored yet")
				}
				return nil
			})
			victim.Kill()
			close(stop)
			wg.Wait()
			victim.Start()
			c.WaitWriteable()
		}
		t.Logf("%d files acknowledged", len(a.files))
		keys := make([]string, 0, len(a.files))
		for k := range a.files {
			keys = append(keys, k)
		}
		eachParallel(len(keys), 8, func(i int) {
			body, err := c.read(keys[i])
			if err != nil {
				t.Errorf("acknowledged %s: %v", keys[i], err)
			} else if !bytes.Equal(body, a.files[keys[i]]) {
				t.Errorf("acknowledged %s: %d other bytes", keys[i], len(body))
			}
		})
		c.noneIncomplete(a)
	})
}

// noneIncomplete compares every .fid on the devices with the bodies that were
// sent: each must be one of them, whole. (An upload that was not acknowledged
// may well have landed.)
func (c *Cluster) noneIncomplete(a *acknowledged) {
	c.t.Helper()
	lengths := map[protocol.FID]int64{}
	for after := int64(0); ; {
		fields := c.Do("list_fids", fmt.Sprintf("from=%d", after), "to=500")
		n := fields.Number("fid_count")
		if n == 0 {
			break
		}
		for i := range n {
			after = fields.Number(fmt.Sprintf("fid_%d_fid", i+1))
			lengths[protocol.FID(after)] = fields.Number(fmt.Sprintf("fid_%d_length", i+1))
		}
	}
	err := filepath.WalkDir(c.Hosts[0].Docroot, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".fid") {
			return err
		}
		rel, err := filepath.Rel(c.Hosts[0].Docroot, path)
		if err != nil {
			return err
		}
		_, fid, err := protocol.ParsePath(rel)
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if want, ok := lengths[fid]; ok && info.Size() != want {
			c.t.Errorf("%s has %d bytes, want %d", rel, info.Size(), want)
		}
		return nil
	})
	if err != nil {
		c.t.Error(err)
	}
}

// TestBrokenUploadLeavesNothing cuts an upload half way: no file has its name,
// and what was written is gone.
func TestBrokenUploadLeavesNothing(t *testing.T) {
	t.Parallel()
	c := StartCluster(t, Spec{Hosts: 1, Devices: 1})
	fields := c.Do("create_open", "domain="+domain, "key=half", "class=single")
	url := fields.Get("path")
	conn := dialURL(t, url)
	fmt.Fprintf(conn, "PUT %s HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n%s", pathOf(url), strings.Repeat("x", 300000))
	if err := conn.Close(); err != nil {
		t.Fatal(err)
	}
	c.WaitEmpty(10 * time.Second)
	_, err := c.Try("create_close", "domain="+domain, "key=half", "fid="+fields.Get("fid"), "devid="+fields.Get("devid"), "path="+url, "size=1000000")
	if e := (*protocol.Error)(nil); !errors.As(err, &e) || e.Code != "size_verify_error" {
		t.Errorf("closing an upload that was cut: %v, want size_verify_error", err)
	}
	if _, err := c.Try("get_paths", "domain="+domain, "key=half"); !errors.Is(err, protocol.ErrUnknownKey) {
		t.Errorf("get_paths: %v, want unknown_key", err)
	}
}

// TestOtherDestinationsGo stores an upload on two of the devices that were
// offered, as when a daemon dies before it can answer, and closes it on the
// second, or gives it up: nothing stays on the others.
func TestOtherDestinationsGo(t *testing.T) {
	t.Parallel()
	c := StartCluster(t, Spec{})
	for _, key := range []string{"kept", ""} {
		fields := c.Do("create_open", "domain="+domain, "key="+key, "class=single", "multi_dest=1")
		put(t, fields.Get("path_1"), []byte("body"))
		put(t, fields.Get("path_2"), []byte("body"))
		c.Do("create_close", "domain="+domain, "key="+key, "fid="+fields.Get("fid"), "devid="+fields.Get("devid_2"), "path="+fields.Get("path_2"), "size=4")
	}
	within(t, time.Minute, "one file is left", func() error {
		files, err := c.FilesOnDisk()
		if err == nil && len(files) != 1 {
			err = fmt.Errorf("%q", files)
		}
		return err
	})
	c.CheckFile("kept", c.WaitPolicy("kept", 1), []byte("body"))
}

// TestAbandonedUploadsGo lets uploads grow old without a close: their bytes go.
func TestAbandonedUploadsGo(t *testing.T) {
	t.Parallel()
	c := StartCluster(t, Spec{Hosts: 2, TrackerArgs: []string{"--tempfile-age", "1s"}})
	for i := range 5 {
		fields := c.Do("create_open", "domain="+domain, fmt.Sprintf("key=k%d", i), "multi_dest=1")
		put(t, fields.Get("path_1"), []byte("left behind"))
	}
	if files, err := c.FilesOnDisk(); err != nil || len(files) == 0 {
		t.Fatalf("uploads on disk: %q, %v", files, err)
	}
	c.WaitEmpty(time.Minute)
}

// TestDevicesRemember starts every daemon again after a kill and finds all as
// it was.
func TestDevicesRemember(t *testing.T) {
	t.Parallel()
	c := StartCluster(t, Spec{})
	files := makeFiles(t, 20)
	c.putAll(files)
	c.checkAll(files)
	for _, p := range append(slices.Clone(c.Trackers), c.Hosts[0].Process, c.Hosts[1].Process, c.Hosts[2].Process) {
		p.Kill()
		p.Start()
	}
	c.WaitWriteable()
	c.checkAll(files)
	for _, h := range c.Hosts {
		for _, d := range h.Devices {
			tmp, err := os.ReadDir(filepath.Join(h.Docroot, "dev"+d.String(), ".mogile", "tmp"))
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				t.Error(err)
			}
			if len(tmp) > 1 { // one of the process that lives
				t.Errorf("dev%d: %d folders of uploads, want those of dead processes gone", d, len(tmp))
			}
		}
	}
}
