package e2e

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	_ "github.com/jackc/pgx/v5/stdlib"
	_ "modernc.org/sqlite"

	"github.com/mogile/mogile/protocol"
)

// largestFile bounds the files of these tests, in bytes.
const largestFile = 8 << 20

var copies = map[string]int{"default": 2, "single": 1, "triple": 3}

// file is what a test knows that it stored.
type file struct {
	key, class string
	body       []byte
}

// makeFiles are n files of 0 bytes to 8 MiB, the largest size among them.
// Their keys need escaping, and some differ only in their last byte.
func makeFiles(t *testing.T, n int) []*file {
	rng := newRand(t)
	classes := []string{"default", "single", "triple"}
	files := make([]*file, n)
	for i := range files {
		files[i] = &file{
			key:   fmt.Sprintf("dir %d/ключ & =+%%_\\%c%04d", i%7, 'a'+rng.IntN(26), i),
			class: classes[i%3],
			body:  randomBody(rng, largestFile),
		}
	}
	files[0].body = nil
	files[n/2].body = bytes.Repeat([]byte("8 MiB..."), largestFile/8)
	return files
}

// putAll stores files from 8 clients at once, and fails the test where one is
// refused.
func (c *Cluster) putAll(files []*file) {
	c.t.Helper()
	eachParallel(len(files), 8, func(i int) {
		if err := c.Put(files[i].key, files[i].class, files[i].body); err != nil {
			c.t.Errorf("put %s: %v", files[i].key, err)
		}
	})
	if c.t.Failed() {
		c.t.FailNow()
	}
}

// checkAll waits for each file's policy and reads it from every path.
func (c *Cluster) checkAll(files []*file) {
	c.t.Helper()
	eachParallel(len(files), 8, func(i int) {
		f := files[i]
		c.CheckFile(f.key, c.WaitPolicy(f.key, copies[f.class]), f.body)
	})
	if c.t.Failed() {
		c.t.FailNow()
	}
}

// checkListing compares list_keys, paged, with the files' keys in byte order.
func (c *Cluster) checkListing(files []*file) {
	c.t.Helper()
	var want []string
	for _, f := range files {
		want = append(want, f.key)
	}
	slices.Sort(want)
	var got []string
	for after := ""; ; {
		fields, err := c.Try("list_keys", "domain="+domain, "prefix=dir ", "after="+after, "limit=37")
		if errors.Is(err, protocol.ErrNoneMatch) {
			break
		}
		if err != nil {
			c.t.Fatal(err)
		}
		for n := range fields.Number("key_count") {
			got = append(got, fields.Get(fmt.Sprintf("key_%d", n+1)))
		}
		after = fields.Get("next_after")
	}
	if !slices.Equal(got, want) {
		c.t.Errorf("list_keys gives %d keys, want %d in byte order", len(got), len(want))
	}
}

// deleteAll removes every key and waits until the disks have let go.
func (c *Cluster) deleteAll(files []*file) {
	c.t.Helper()
	c.deleteKeys(files)
	c.WaitEmpty(3 * time.Minute)
}

// deleteAllAfterFaults is deleteAll where a device was away meanwhile: what was
// to be deleted there then is tried again after a quarter of an hour or more, as
// in MogileFS. That time is taken out of the queues' rows, nothing else: the
// devices must end empty all the same.
func (c *Cluster) deleteAllAfterFaults(files []*file) {
	c.t.Helper()
	c.deleteKeys(files)
	for _, p := range c.Trackers {
		p.Kill() // an embedded database serves one process
	}
	driver, dsn := "pgx", c.DSN
	if path, ok := strings.CutPrefix(c.DSN, "sqlite:"); ok {
		driver, dsn = "sqlite", path
	}
	db, err := sql.Open(driver, dsn)
	if err != nil {
		c.t.Fatal(err)
	}
	defer db.Close()
	for _, queue := range []string{"file_to_delete2", "copy_to_delete"} {
		if _, err := db.Exec("UPDATE " + queue + " SET nexttry = 0"); err != nil {
			c.t.Fatal(err)
		}
	}
	for _, p := range c.Trackers {
		p.Start()
	}
	c.WaitWriteable()
	c.WaitEmpty(3 * time.Minute)
}

func (c *Cluster) deleteKeys(files []*file) {
	c.t.Helper()
	eachParallel(len(files), 8, func(i int) {
		if _, err := c.Try("delete", "domain="+domain, "key="+files[i].key); err != nil {
			c.t.Errorf("delete %s: %v", files[i].key, err)
		}
	})
	if _, err := c.Try("list_keys", "domain="+domain); !errors.Is(err, protocol.ErrNoneMatch) {
		c.t.Errorf("list_keys after all was deleted: %v, want none_match", err)
	}
}

// engines runs a test on both stores.
func engines(t *testing.T, test func(t *testing.T, engine string)) {
	for _, engine := range []string{"sqlite", "postgres"} {
		t.Run(engine, func(t *testing.T) {
			t.Parallel()
			test(t, engine)
		})
	}
}

// TestLifeOfFiles stores files, brings them to policy, reads them from every
// path, overwrites, renames, lists and deletes them, until the disks are empty;
// and nothing is done twice.
func TestLifeOfFiles(t *testing.T) {
	t.Parallel()
	engines(t, func(t *testing.T, engine string) {
		c := StartCluster(t, Spec{Engine: engine})
		files := makeFiles(t, scale(100))
		c.putAll(files)
		c.checkAll(files)
		c.checkListing(files)

		wantCopies := 0
		for _, f := range files {
			wantCopies += copies[f.class] - 1
		}
		if got := c.Metric("mogile_replicate_copies_total"); int(got) != wantCopies {
			t.Errorf("%v copies were made, want %d: each once", got, wantCopies)
		}
		if got := c.Metric("mogile_replicate_drops_total"); got != 0 {
			t.Errorf("%v copies were dropped, want none", got)
		}

		// Overwriting moves the key at once; rename keeps the file.
		deleted := len(files) // fids, in the end
		for i, f := range files {
			switch i % 4 {
			case 0:
				deleted++
				f.body = append([]byte("second "), f.body[:min(len(f.body), 4096)]...)
				if err := c.Put(f.key, f.class, f.body); err != nil {
					t.Fatal(err)
				}
			case 1:
				to := f.key + " renamed"
				c.Do("rename", "domain="+domain, "from_key="+f.key, "to_key="+to)
				f.key = to
			}
		}
		c.checkAll(files)
		c.checkListing(files)
		c.deleteAll(files)
		c.settled()
		if got := c.Metric("mogile_delete_fids_total"); int(got) != deleted {
			t.Errorf("%v fids were deleted, want %d: each once", got, deleted)
		}
		for _, p := range c.Trackers {
			p.Stop()
		}
		for _, h := range c.Hosts {
			h.Stop()
		}
	})
}

// settled waits until the queues are empty and no worker is at work.
func (c *Cluster) settled() {
	c.t.Helper()
	within(c.t, time.Minute, "queues are empty", func() error {
		for _, q := range []string{"replicate", "delete", "copy_delete"} {
			if n := c.Metric("mogile_tracker_queue_length", `queue="`+q+`"`); n != 0 {
				return fmt.Errorf("%v in queue %s", n, q)
			}
		}
		return nil
	})
}

// TestHostKilledMidway kills a storage host while files are stored and copied.
// Whatever was acknowledged is at its policy once the host is back, and readable
// from another path while it is away where another copy was made.
func TestHostKilledMidway(t *testing.T) {
	t.Parallel()
	engines(t, func(t *testing.T, engine string) {
		c := StartCluster(t, Spec{Engine: engine, Hosts: 4})
		files := makeFiles(t, scale(100))
		var mu sync.Mutex // guards stored
		var stored []*file
		var once sync.Once
		eachParallel(len(files), 8, func(i int) {
			if i == len(files)/2 {
				once.Do(c.Hosts[1].Kill)
			}
			// Until the monitor has noticed, a client may be sent to the dead host
			// alone; as clients do, it tries again.
			var err error
			for range 20 {
				if err = c.Put(files[i].key, files[i].class, files[i].body); err == nil {
					mu.Lock()
					stored = append(stored, files[i])
					mu.Unlock()
					return
				}
			}
			t.Errorf("put %s: %v", files[i].key, err)
		})
		c.Hosts[1].Start()
		c.WaitWriteable()
		c.Do("replicate_now")
		eachParallel(len(stored), 8, func(i int) {
			f := stored[i]
			within(t, 3*time.Minute, f.key+" at its policy", func() error {
				paths, err := c.Paths(f.key)
				if err == nil && len(paths) < copies[f.class] {
					err = fmt.Errorf("%q", paths)
				}
				return err
			})
			paths, err := c.Paths(f.key)
			if err != nil {
				t.Errorf("%s: %v", f.key, err)
			}
			c.CheckFile(f.key, paths, f.body)
		})
		c.deleteAllAfterFaults(stored)
	})
}

// TestTrackerKilledMidway stores files through two trackers on one database, of
// which one is killed.
func TestTrackerKilledMidway(t *testing.T) {
	scenario(t)
	t.Parallel()
	c := StartCluster(t, Spec{Engine: "postgres", Trackers: 2})
	files := makeFiles(t, scale(100))
	eachParallel(len(files), 8, func(i int) {
		if i == len(files)/2 {
			c.Trackers[0].Kill()
		}
		var err error
		for range 20 {
			if err = c.Put(files[i].key, files[i].class, files[i].body); err == nil {
				return
			}
		}
		t.Errorf("put %s: %v", files[i].key, err)
	})
	c.Status = c.Status[1:]
	// What the dead tracker had leased comes back when its lease is over.
	c.Do("replicate_now")
	c.checkAll(files)
	c.checkListing(files)
	c.Trackers[0].Start()
	c.WaitWriteableOn(0)
	c.deleteAll(files)
}

// TestTwoTrackersShareTheWork makes sure that no work is done by both.
func TestTwoTrackersShareTheWork(t *testing.T) {
	t.Parallel()
	c := StartCluster(t, Spec{Engine: "postgres", Trackers: 2})
	files := makeFiles(t, scale(60))
	c.putAll(files)
	c.checkAll(files)
	want := 0
	for _, f := range files {
		want += copies[f.class] - 1
	}
	if got := c.Metric("mogile_replicate_copies_total"); int(got) != want {
		t.Errorf("%v copies were made by the two trackers, want %d: each once", got, want)
	}
	c.deleteAll(files)
}

// TestManyClientsOneKey has clients close, delete and rename one key at once.
// Afterwards the disks hold what the namespace names, and nothing else.
func TestManyClientsOneKey(t *testing.T) {
	t.Parallel()
	engines(t, func(t *testing.T, engine string) {
		trackers := 1
		if engine == "postgres" {
			trackers = 2
		}
		c := StartCluster(t, Spec{Engine: engine, Trackers: trackers})
		eachParallel(scale(300), 32, func(i int) {
			var err error
			switch i % 8 {
			case 6:
				_, err = c.Try("delete", "domain="+domain, "key=one")
			case 7:
				_, err = c.Try("rename", "domain="+domain, "from_key=one", "to_key=other")
			default:
				err = c.Put("one", "default", fmt.Appendf(nil, "body %d", i))
			}
			if err != nil && !errors.Is(err, protocol.ErrUnknownKey) && !errors.Is(err, protocol.ErrKeyExists) {
				t.Errorf("client %d: %v", i, err)
			}
		})
		within(t, 2*time.Minute, "disks hold what the namespace names", func() error {
			named := 0
			for _, key := range []string{"one", "other"} {
				paths, err := c.Paths(key)
				if errors.Is(err, protocol.ErrUnknownKey) {
					continue
				}
				if err != nil || len(paths) != 2 {
					return fmt.Errorf("%s: %q %v", key, paths, err)
				}
				named += len(paths)
			}
			files, err := c.FilesOnDisk()
			if err == nil && len(files) != named {
				err = fmt.Errorf("%d files on disk, %d named: %s", len(files), named, strings.Join(files, " "))
			}
			return err
		})
		for _, key := range []string{"one", "other"} {
			body, err := c.read(key)
			if err == nil && !bytes.HasPrefix(body, []byte("body ")) {
				t.Errorf("%s holds %q", key, body)
			}
		}
	})
}

// read fetches a key whole, as a client does.
func (c *Cluster) read(key string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	r, err := c.Client.Open(ctx, domain, key)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	var b bytes.Buffer
	_, err = b.ReadFrom(r)
	return b.Bytes(), err
}
