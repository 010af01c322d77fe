package e2e

import (
	"context"
	"fmt"
	"hash/crc32"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/schema"
)

// erasureBody is the content of file n: of lengths from 1 KiB to 1 MiB, each
// doubling as frequent as the next, and of 16 to 64 MiB for the first large ones.
func erasureBody(seed uint64, n, large int) []byte {
	rng := rand.New(rand.NewPCG(seed, uint64(n)))
	size := int(math.Exp2(10 + 10*rng.Float64()))
	if n < large {
		size = 16<<20 + rng.IntN(48<<20)
	}
	body := make([]byte, size)
	fill := rand.NewChaCha8([32]byte{byte(n), byte(n >> 8), byte(n >> 16), byte(seed)})
	_, _ = fill.Read(body) // never fails
	return body
}

// TestErasureCodedClusterLosesThreeDevices loses any three devices of twelve, with
// all that is on them, while files are read and written: every file is read and
// compared before, while shards are missing, and when all is whole again. 5,000
// files and 50 large ones with MOGILE_TEST_SCALE=25.
func TestErasureCodedClusterLosesThreeDevices(t *testing.T) {
	scenario(t)
	t.Parallel()
	engines(t, func(t *testing.T, engine string) {
		s := Spec{Engine: engine, Hosts: 6, Devices: 2, Key: true}
		if engine == "postgres" {
			s.Trackers = 2
		}
		loseThreeDevices(t, StartCluster(t, s))
	})
}

func loseThreeDevices(t *testing.T, c *Cluster) {
	t.Helper()
	f := &fleet{Cluster: c}
	const k, m = 6, 3
	c.Do("create_class", "domain="+domain, "class=ec", "mindevcount=2", fmt.Sprintf("replpolicy=ErasureCode(%d,%d,min=1K)", k, m))
	rng := newRand(t)
	seed, large := rng.Uint64(), scale(2)
	f.files = make([]fleetFile, large+scale(200))
	began := time.Now()
	var mu sync.Mutex
	var stored int64
	eachParallel(len(f.files), 8, func(i int) {
		body := erasureBody(seed, i, large)
		file := fleetFile{key: fmt.Sprintf("ec/%d", i), class: "ec", size: len(body), crc: crc32.Checksum(body, castagnoli)}
		if err := c.Put(file.key, file.class, body); err != nil {
			t.Errorf("put %s: %v", file.key, err)
		}
		f.files[i] = file
		mu.Lock()
		defer mu.Unlock()
		stored += int64(len(body))
	})
	if t.Failed() {
		t.FailNow()
	}
	put := time.Since(began)
	for i := range f.files {
		f.files[i].fid = c.fidOf(f.files[i].key)
	}
	f.encoded(15*time.Minute, k, m)
	t.Logf("%d files, %d MB, stored in %.1f s, encoded %.1f s later", len(f.files), stored>>20, put.Seconds(), (time.Since(began) - put).Seconds())
	f.readAll()

	// Clients go on while devices are lost and shards are made anew.
	ctx, cancel := context.WithCancel(context.Background())
	var clients sync.WaitGroup
	defer clients.Wait()
	defer cancel()
	var written []fleetFile
	// A file that has not become shards yet is on one device alone, as every new
	// file is: no device is lost at that moment.
	var writing sync.RWMutex
	whileEncoded := func(lose func()) {
		writing.Lock()
		defer writing.Unlock()
		f.waitIdle(time.Minute)
		lose()
	}
	for i := range 2 {
		rng := rand.New(rand.NewPCG(seed, uint64(1000+i)))
		clients.Go(func() {
			for ctx.Err() == nil {
				file := f.files[rng.IntN(len(f.files))]
				if err := f.read(file); err != nil {
					t.Errorf("a read meanwhile: %v", err)
				}
			}
		})
		clients.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				id := 1_000_000*(i+1) + n
				body := erasureBody(seed, id, 0)
				file := fleetFile{key: fmt.Sprintf("meanwhile/%d", id), class: "ec", size: len(body), crc: crc32.Checksum(body, castagnoli)}
				writing.RLock()
				err := c.Put(file.key, file.class, body)
				writing.RUnlock()
				if err != nil {
					t.Errorf("a write meanwhile: %v", err)
					continue
				}
				mu.Lock()
				written = append(written, file)
				mu.Unlock()
			}
		})
	}
	var devices []protocol.DevID
	for _, h := range c.Hosts {
		devices = append(devices, h.Devices...)
	}
	rng.Shuffle(len(devices), func(i, j int) { devices[i], devices[j] = devices[j], devices[i] })
	lost := devices[:m]
	lostBytes := int64(0)
	whileEncoded(func() {
		for _, dev := range lost {
			lostBytes += c.wipe(dev)
		}
	})
	f.readAll()
	began = time.Now()
	whileEncoded(func() {
		for _, dev := range lost {
			c.Do("set_state", "host="+c.hostOf(dev).Name, "device="+dev.String(), "state=dead")
		}
	})
	within(t, 10*time.Minute, "the dead devices are empty", func() error {
		if n := c.count(fmt.Sprintf("SELECT count(*) FROM file_on WHERE devid IN (%s, %s, %s)", lost[0], lost[1], lost[2])); n > 0 {
			return fmt.Errorf("%d shards are recorded on %v", n, lost)
		}
		return nil
	})
	reaped := time.Since(began)
	cancel()
	clients.Wait()
	for i := range written {
		written[i].fid = c.fidOf(written[i].key)
	}
	f.files = append(f.files, written...)
	f.encoded(15*time.Minute, k, m, lost...)
	t.Logf("%d devices lost with %d MB; empty after %.1f s, every file whole after %.1f s; %d files were written meanwhile",
		m, lostBytes>>20, reaped.Seconds(), time.Since(began).Seconds(), len(written))
	f.readAll()
}

// wipe removes all files of a device, as a new disk in its place would, and
// returns how many bytes they had.
func (c *Cluster) wipe(dev protocol.DevID) (size int64) {
	c.t.Helper()
	root := filepath.Join(c.hostOf(dev).Docroot, "dev"+dev.String())
	err := filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		switch filepath.Ext(path) {
		case ".fid", ".ec":
		default:
			return nil
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		size += info.Size()
		return os.Remove(path)
	})
	if err != nil {
		c.t.Fatal(err)
	}
	return size
}

// encoded waits until every file has k+m shards on as many devices, none of which
// is among lost.
func (f *fleet) encoded(d time.Duration, k, m int, lost ...protocol.DevID) {
	f.t.Helper()
	f.waitIdle(d)
	where := map[protocol.FID][]protocol.DevID{}
	var fid protocol.FID
	var dev protocol.DevID
	f.each("SELECT fid, devid FROM file_on ORDER BY devid", []any{&fid, &dev}, func() { where[fid] = append(where[fid], dev) })
	encodings := map[protocol.FID]schema.Encoding{}
	var e schema.Encoding
	var devids string
	f.each("SELECT fid, k, m, devids FROM ec", []any{&fid, &e.K, &e.M, &devids}, func() {
		var err error
		if e.Devices, err = schema.ParseShardDevices(devids); err != nil {
			f.t.Fatal(err)
		}
		encodings[fid] = e
	})
	wrong := 0
	for _, file := range f.files {
		e, devs := encodings[file.fid], slices.Sorted(slices.Values(encodings[file.fid].Devices))
		bad := e.K != k || e.M != m || !slices.Equal(devs, where[file.fid]) || len(slices.Compact(slices.Clone(devs))) != k+m
		bad = bad || slices.ContainsFunc(devs, func(dev protocol.DevID) bool { return slices.Contains(lost, dev) })
		if bad {
			if wrong++; wrong <= 10 {
				f.t.Errorf("%s (fid %d, %d bytes) is on %v, encoded as %+v", file.key, file.fid, file.size, where[file.fid], e)
			}
		}
	}
	if wrong > 0 {
		f.t.Fatalf("%d of %d files are not as their class wants them", wrong, len(f.files))
	}
}

// each reads the rows of a query into vars.
func (c *Cluster) each(query string, vars []any, do func()) {
	c.t.Helper()
	db := c.database()
	defer db.Close()
	rows, err := db.Query(query)
	if err != nil {
		c.t.Fatal(err)
	}
	defer rows.Close()
	for rows.Next() {
		if err := rows.Scan(vars...); err != nil {
			c.t.Fatal(err)
		}
		do()
	}
	if err := rows.Err(); err != nil {
		c.t.Fatal(err)
	}
}

// read fetches a file as clients do: from the first of a tracker's paths where it
// is. A device that was emptied answers 404 as long as nobody knows; one that
// answers otherwise must be right.
func (f *fleet) read(file fleetFile) error {
	paths, err := f.Paths(file.key)
	if err != nil || len(paths) == 0 {
		return fmt.Errorf("%s (fid %d): %d paths, %w", file.key, file.fid, len(paths), err)
	}
	var missing error
	for _, path := range paths {
		body, err := fetch(path)
		if err != nil && strings.HasSuffix(err.Error(), "404 Not Found") {
			missing = err
			continue
		}
		if err != nil || len(body) != file.size || crc32.Checksum(body, castagnoli) != file.crc {
			return fmt.Errorf("%s (fid %d): %s: %d bytes of %d, %v", file.key, file.fid, path, len(body), file.size, err)
		}
		return nil
	}
	return fmt.Errorf("%s (fid %d) is at none of %d paths: %w", file.key, file.fid, len(paths), missing)
}

// readAll reads and compares every file.
func (f *fleet) readAll() {
	f.t.Helper()
	var mu sync.Mutex
	wrong := 0
	eachParallel(len(f.files), 8, func(i int) {
		if err := f.read(f.files[i]); err != nil {
			mu.Lock()
			defer mu.Unlock()
			if wrong++; wrong <= 10 {
				f.t.Error(err)
			}
		}
	})
	if wrong > 0 {
		f.t.Fatalf("%d of %d files could not be read", wrong, len(f.files))
	}
}
