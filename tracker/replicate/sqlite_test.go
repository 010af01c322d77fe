package replicate_test

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/schema"
	"github.com/mogile/mogile/schema/sqlite"
	deleter "github.com/mogile/mogile/tracker/delete"
	"github.com/mogile/mogile/tracker/replicate"
	"github.com/mogile/mogile/tracker/storage"
	"github.com/mogile/mogile/tracker/work"
	"github.com/mogile/mogile/tracker/work/worktest"
)

// daemon is a WebDAV server with its files in memory. A closed one refuses
// everything.
type daemon struct {
	mu    sync.Mutex
	files map[string]string
	down  bool
}

func (d *daemon) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	d.mu.Lock()
	defer d.mu.Unlock()
	content, ok := d.files[r.URL.Path]
	switch {
	case d.down || err != nil:
		panic(http.ErrAbortHandler)
	case r.Method == http.MethodPut:
		d.files[r.URL.Path] = string(body)
		w.WriteHeader(http.StatusCreated)
	case r.Method == "MKCOL":
		w.WriteHeader(http.StatusBadRequest)
	case !ok:
		w.WriteHeader(http.StatusNotFound)
	case r.Method == http.MethodDelete:
		delete(d.files, r.URL.Path)
		w.WriteHeader(http.StatusNoContent)
	default:
		w.Header().Set("Content-Length", strconv.Itoa(len(content)))
		if r.Method == http.MethodGet {
			_, _ = io.WriteString(w, content) // a client that went away is the client's business
		}
	}
}

func (d *daemon) put(path, content string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.files[path] = content
}

func (d *daemon) get(path string) (string, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	content, ok := d.files[path]
	return content, ok
}

func (d *daemon) setDown(down bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.down = down
}

func (d *daemon) len() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.files)
}

// TestWithDatabaseAndDaemons runs replication and deletion on the embedded
// database and over HTTP: files are brought to their policy, one daemon breaks
// off meanwhile, and in the end every daemon is empty.
func TestWithDatabaseAndDaemons(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	var offset atomic.Int64 // of the database's clock
	o := sqlite.Options{
		Path: filepath.Join(t.TempDir(), "mogile.db"), Log: zerolog.Nop(),
		ClockOffset: func() time.Duration { return time.Duration(offset.Load()) },
	}
	if _, err := sqlite.Migrate(ctx, o, schema.MigrateOptions{}); err != nil {
		t.Fatal(err)
	}
	store, err := sqlite.Open(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := store.Close(); err != nil {
			t.Error(err)
		}
	}()

	total, used := int64(10000), int64(1000)
	var daemons []*daemon
	var rows schema.TopologyRows
	rows.Domains = []schema.Domain{{ID: 1, Name: "test"}}
	rows.Classes = []schema.Class{{DMID: 1, ID: 0, Name: "default", MinDevCount: 2, HashType: protocol.HashMD5}, {DMID: 1, ID: 1, Name: "triple", MinDevCount: 3}}
	if _, err := store.CreateDomain(ctx, "test"); err != nil {
		t.Fatal(err)
	}
	for id := 1; id <= 4; id++ {
		d := &daemon{files: make(map[string]string)}
		srv := httptest.NewServer(d)
		defer srv.Close()
		addr, err := netip.ParseAddrPort(strings.TrimPrefix(srv.URL, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		daemons = append(daemons, d)
		rows.Hosts = append(rows.Hosts, schema.Host{ID: schema.HostID(id), Status: schema.HostAlive, Name: fmt.Sprint("h", id), IP: addr.Addr().String(), Port: int(addr.Port())})
		rows.Devices = append(rows.Devices, schema.Device{ID: protocol.DevID(id), HostID: schema.HostID(id), Status: schema.DeviceAlive, Weight: 100, TotalMB: &total, UsedMB: &used})
	}
	known := worktest.FromRows(rows)
	client := storage.New(storage.Options{MgmtPort: -1, NodeTimeout: 2 * time.Second, Log: zerolog.Nop()})
	defer client.Close()

	metrics := prometheus.NewRegistry()
	fids := work.NewFIDLocks(store)
	replicator := replicate.New(replicate.Options{
		Store: store, Cluster: known, Storage: client, Fids: fids, Jobs: 4, MinFreeMB: 100, Idle: 20 * time.Millisecond,
		Rand: rand.New(rand.NewPCG(1, 1)), Metrics: metrics, Log: zerolog.Nop(),
	})
	remover := deleter.New(deleter.Options{
		Store: store, Cluster: known, Storage: client, Fids: fids, Jobs: 2, Idle: 20 * time.Millisecond,
		Rand: rand.New(rand.NewPCG(1, 2)), Metrics: metrics, Log: zerolog.Nop(),
	})
	running, stop := context.WithCancel(ctx)
	var wg sync.WaitGroup
	for _, run := range []func(context.Context) error{replicator.Run, remover.Run} {
		wg.Go(func() {
			if err := run(running); err != nil {
				t.Error(err)
			}
		})
	}
	defer wg.Wait()
	defer stop()

	lengths := func(q schema.Queue) int64 {
		n, err := store.QueueLengths(ctx)
		if err != nil {
			t.Fatal(err)
		}
		return n[q]
	}
	if class, err := store.CreateClass(ctx, "test", schema.Class{Name: "triple", MinDevCount: 3}); err != nil || class != 1 {
		t.Fatalf("class %d, %v", class, err)
	}
	const files = 24
	upload := func(n int) string {
		content := strings.Repeat(strconv.Itoa(n), n*997)
		key, class, dev := fmt.Sprint("key", n%files), schema.ClassID(n%2), protocol.DevID(n%4+1)
		if daemons[dev-1].down { // set by this goroutine only
			dev = 1
		}
		fid, err := store.CreateTempfile(ctx, schema.Tempfile{DMID: 1, Key: key, ClassID: class, DevIDs: []protocol.DevID{dev}})
		if err != nil {
			t.Fatal(err)
		}
		daemons[dev-1].put("/"+fid.Path(dev), content)
		if err := store.CloseFile(ctx, schema.Close{FID: fid, DMID: 1, Key: key, Length: int64(len(content)), ClassID: class, DevID: dev}); err != nil {
			t.Fatal(err)
		}
		return content
	}
	want := make(map[string]string)
	for n := range files {
		want[fmt.Sprint("key", n)] = upload(n)
	}
	worktest.Eventually(t, "all replicated", func() bool { return lengths(schema.QueueReplicate) == 0 })
	check := func() {
		t.Helper()
		for key, content := range want {
			f, devs, err := store.FileByKey(ctx, 1, key)
			if err != nil {
				t.Fatal(err)
			}
			if n := 2 + int(f.ClassID); len(devs) != n || f.DevCount != n {
				t.Errorf("%s is on %v, counted %d, want %d copies", key, devs, f.DevCount, n)
			}
			for _, dev := range devs {
				if got, ok := daemons[dev-1].get("/" + f.FID.Path(dev)); !ok || got != content {
					t.Errorf("%s on dev%d: %d bytes, want %d", key, dev, len(got), len(content))
				}
			}
			if sum, err := store.Checksum(ctx, f.FID); err != nil || sum.IsZero() != (f.ClassID == 1) {
				t.Errorf("%s: checksum %v, %v", key, sum, err)
			}
		}
	}
	check()

	// Overwrite everything while one daemon breaks every request off.
	daemons[3].setDown(true)
	for n := range files {
		want[fmt.Sprint("key", n)] = upload(n + files)
	}
	worktest.Eventually(t, "all replicated in spite of it", func() bool {
		offset.Add(int64(time.Second)) // copies of no source that broke off are tried again
		return lengths(schema.QueueReplicate) == 0
	})
	daemons[3].setDown(false)
	check()

	for key := range want {
		if _, err := store.DeleteKey(ctx, 1, key); err != nil {
			t.Fatal(err)
		}
	}
	worktest.Eventually(t, "daemons empty", func() bool {
		offset.Add(int64(time.Minute)) // deletions that failed are tried again after half an hour and more
		n := 0
		for _, d := range daemons {
			n += d.len()
		}
		return n == 0
	})
	worktest.Eventually(t, "nothing left to delete", func() bool { return lengths(schema.QueueDelete) == 0 })
}
