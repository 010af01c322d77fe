package e2e

import (
	"bufio"
	"bytes"
	"crypto/md5"
	"database/sql"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	_ "github.com/jackc/pgx/v5/stdlib"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/tracker/storage/storagetest"
)

// spoilt is a file to be checked, and what becomes of it.
type spoilt struct {
	c    *Cluster
	key  string
	body []byte
	fid  protocol.FID
	devs []protocol.DevID // where it is recorded before it is spoilt

	events string // a, b and c are its devices, x is any
	copies int    // good ones in the end; 0: those there are stay as they are
}

// info is what a tracker knows of a key.
func (c *Cluster) info(key string) (protocol.FID, []protocol.DevID) {
	c.t.Helper()
	fields := c.Do("file_info", "domain="+domain, "key="+key, "devices=1")
	var devs []protocol.DevID
	for word := range strings.SplitSeq(fields.Get("devids"), ",") {
		if n, err := strconv.ParseUint(word, 10, 24); err == nil {
			devs = append(devs, protocol.DevID(n))
		}
	}
	slices.Sort(devs)
	return protocol.FID(fields.Number("fid")), devs
}

// onDisk is where a device has a fid.
func (c *Cluster) onDisk(dev protocol.DevID, fid protocol.FID) string {
	for _, h := range c.Hosts {
		if slices.Contains(h.Devices, dev) {
			return filepath.Join(h.Docroot, filepath.FromSlash(fid.Path(dev)))
		}
	}
	c.t.Fatalf("no host has dev%d", dev)
	return ""
}

func (f *spoilt) path(dev protocol.DevID) string { return f.c.onDisk(dev, f.fid) }

func (f *spoilt) must(err error) {
	f.c.t.Helper()
	if err != nil {
		f.c.t.Fatalf("%s: %v", f.key, err)
	}
}

// write replaces the bytes of a file where they are, as a disk that rots does:
// what the storage daemon noted stays.
func (f *spoilt) write(dev protocol.DevID, body []byte) {
	f.must(os.WriteFile(f.path(dev), body, 0o666))
}

func (f *spoilt) cut(dev protocol.DevID, n int64) { f.must(os.Truncate(f.path(dev), n)) }

func (f *spoilt) remove(dev protocol.DevID) { f.must(os.Remove(f.path(dev))) }

// flipped is the body with one bit changed, the nth from its middle.
func (f *spoilt) flipped(n int) []byte {
	b := bytes.Clone(f.body)
	b[len(b)/2+n] ^= 1
	return b
}

// put has the storage daemon itself replace a copy.
func (f *spoilt) put(dev protocol.DevID, body []byte) {
	for _, h := range f.c.Hosts {
		if slices.Contains(h.Devices, dev) {
			req, err := http.NewRequest(http.MethodPut, fmt.Sprintf("http://%s:%d/%s", h.IP, f.c.Port, f.fid.Path(dev)), bytes.NewReader(body))
			f.must(err)
			resp, err := httpClient.Do(req)
			f.must(err)
			_ = resp.Body.Close()
			if resp.StatusCode != http.StatusCreated {
				f.c.t.Fatalf("%s: PUT: %s", f.key, resp.Status)
			}
		}
	}
}

// other is a device that the file is not on.
func (f *spoilt) other() protocol.DevID {
	for _, h := range f.c.Hosts {
		for _, d := range h.Devices {
			if !slices.Contains(f.devs, d) {
				return d
			}
		}
	}
	return 0
}

// exec changes the database behind the trackers' back.
func (c *Cluster) exec(query string, args ...any) {
	c.t.Helper()
	db := c.database()
	defer db.Close()
	if strings.HasPrefix(c.DSN, "sqlite:") {
		query = strings.NewReplacer("$1", "?", "$2", "?").Replace(query)
	}
	if _, err := db.Exec(query, args...); err != nil {
		c.t.Fatal(err)
	}
}

// database is the cluster's, beside its trackers. It must be closed.
func (c *Cluster) database() *sql.DB {
	c.t.Helper()
	driver, dsn := "pgx", c.DSN
	if path, ok := strings.CutPrefix(c.DSN, "sqlite:"); ok {
		driver, dsn = "sqlite", "file:"+path+"?_pragma=busy_timeout(10000)"
	}
	db, err := sql.Open(driver, dsn)
	if err != nil {
		c.t.Fatal(err)
	}
	return db
}

// sweep starts a sweep by a command and waits until it is through.
func (c *Cluster) sweep(name, command string, args ...string) protocol.Args {
	c.t.Helper()
	c.Do(command, args...)
	var fields protocol.Args
	within(c.t, 2*time.Minute, name+" ends", func() error {
		fields = c.Do("fsck_progress", "sweep="+name)
		if fields.Get("running") != "0" || fields.Get("claimed_ranges") != "0" {
			return fmt.Errorf("%s", fields)
		}
		return nil
	})
	return fields
}

// fsck checks all files, and fails the test if some could not be checked.
func (c *Cluster) fsck(args ...string) protocol.Args {
	c.t.Helper()
	c.Do("fsck_reset", args...)
	return c.sweep("fsck", "fsck_start")
}

// logged is a row of fsck_log.
type logged struct{ code, devid string }

// fsckLog is all that was found since row after: by fid, in order.
func (c *Cluster) fsckLog(after int64) (events map[protocol.FID][]logged, last int64) {
	c.t.Helper()
	events = make(map[protocol.FID][]logged)
	for {
		fields := c.Do("fsck_getlog", fmt.Sprintf("after_logid=%d", after))
		n := fields.Number("row_count")
		for i := range n {
			row := fmt.Sprintf("row_%d_", i+1)
			after = fields.Number(row + "logid")
			fid := protocol.FID(fields.Number(row + "fid"))
			events[fid] = append(events[fid], logged{fields.Get(row + "evcode"), fields.Get(row + "devid")})
		}
		if n == 0 {
			return events, after
		}
	}
}

// tell is a file's events in the words of [spoilt].
func (f *spoilt) tell(events []logged) string {
	var words []string
	for _, e := range events {
		word := e.code
		if e.devid != "" {
			i := slices.IndexFunc(f.devs, func(d protocol.DevID) bool { return d.String() == e.devid })
			if i >= 0 {
				word += ":" + string(rune('a'+i))
			} else {
				word += ":x"
			}
		}
		words = append(words, word)
	}
	return strings.Join(words, " ")
}

// spoil stores files, spoils them, runs check, and compares what is found and
// what becomes of them.
func (c *Cluster) spoil(t *testing.T, cases []spoilCase, check func()) {
	t.Helper()
	var files []*spoilt
	for _, s := range cases {
		f := &spoilt{c: c, key: s.key, body: []byte("the content of " + s.key), events: s.events, copies: s.copies}
		if err := c.Put(f.key, s.class, f.body); err != nil {
			t.Fatal(err)
		}
		files = append(files, f)
	}
	for i, s := range cases {
		n := 2
		switch s.class {
		case "single":
			n = 1
		case "triple", "shrinking":
			n = 3
		}
		c.WaitPolicy(s.key, n)
		files[i].fid, files[i].devs = c.info(s.key)
	}
	c.settled()
	for i, s := range cases {
		if s.spoil != nil {
			s.spoil(files[i])
		}
	}
	_, last := c.fsckLog(0)
	check()
	events, _ := c.fsckLog(last)
	for _, f := range files {
		if got := f.tell(events[f.fid]); got != f.events {
			t.Errorf("%s: found %q, want %q", f.key, got, f.events)
		}
	}
	if t.Failed() {
		return
	}
	for _, f := range files {
		if f.copies > 0 {
			c.CheckFile(f.key, c.WaitPolicy(f.key, f.copies), f.body)
		}
	}
	c.settled()
}

type spoilCase struct {
	key, class string
	spoil      func(f *spoilt)
	events     string
	copies     int
}

// TestFsckEvents makes each situation that fsck has a code for, on real devices,
// and looks at its log and at what becomes of the files.
func TestFsckEvents(t *testing.T) {
	scenario(t)
	t.Parallel()
	engines(t, func(t *testing.T, engine string) {
		c := StartCluster(t, Spec{Engine: engine, Key: true})
		class := func(name string, args ...string) {
			c.Do("create_class", append([]string{"domain=" + domain, "class=" + name}, args...)...)
		}
		update := func(name string, args ...string) {
			c.Do("update_class", append([]string{"domain=" + domain, "class=" + name}, args...)...)
		}
		class("growing", "mindevcount=2")
		class("shrinking", "mindevcount=3")
		class("hashed", "mindevcount=2", "hashtype=MD5")
		class("summed", "mindevcount=2")
		class("rehashed", "mindevcount=2", "hashtype=MD5")

		// POVI, by changes of classes: seen without asking any device.
		c.spoil(t, []spoilCase{
			{"fewer than wanted", "growing", nil, "POVI REPL", 3},
			{"more than wanted", "shrinking", nil, "POVI REPL", 2},
			{"not looked at", "default", func(f *spoilt) { f.remove(f.devs[0]) }, "", 0},
		}, func() {
			update("growing", "mindevcount=3")
			update("shrinking", "mindevcount=2")
			if got := c.fsck("policy_only=1"); got.Number("files") != 3 {
				t.Errorf("fsck: %s", got)
			}
		})
		c.Do("delete", "domain="+domain, "key=not looked at")
		c.Do("delete", "domain="+domain, "key=more than wanted")

		var trashed []string
		c.spoil(t, []spoilCase{
			{"well", "default", nil, "", 2},
			{"empty and well", "default", nil, "", 2},
			{"missing", "default", func(f *spoilt) { f.remove(f.devs[1]) }, "MISS:b REPL", 2},
			{"cut short", "default", func(f *spoilt) {
				f.cut(f.devs[1], 5)
				trashed = append(trashed, f.path(f.devs[1]))
			}, "BLEN:b REPL", 2},
			{"zero length", "default", func(f *spoilt) {
				f.cut(f.devs[0], 0)
				trashed = append(trashed, f.path(f.devs[0]))
			}, "BLEN:a REPL", 2},
			{"too long", "default", func(f *spoilt) { f.write(f.devs[0], append(bytes.Clone(f.body), '!')) }, "BLEN:a REPL", 2},
			{"all cut short", "default", func(f *spoilt) { f.cut(f.devs[0], 5); f.cut(f.devs[1], 6) }, "BLEN:a BLEN:b SRCH GONE", 0},
			{"gone", "default", func(f *spoilt) { f.remove(f.devs[0]); f.remove(f.devs[1]) }, "MISS:a MISS:b SRCH GONE", 0},
			{"elsewhere", "default", func(f *spoilt) {
				to := f.path(f.other())
				f.must(os.MkdirAll(filepath.Dir(to), 0o777))
				f.must(os.WriteFile(to, f.body, 0o666))
				f.remove(f.devs[0])
				f.remove(f.devs[1])
			}, "MISS:a MISS:b SRCH FOND:x REPL", 2},
			{"forgotten", "single", func(f *spoilt) { c.exec("DELETE FROM file_on WHERE fid=$1", uint64(f.fid)) }, "NOPA SRCH FOND:a", 1},
			{"forgotten and gone", "single", func(f *spoilt) {
				c.exec("DELETE FROM file_on WHERE fid=$1", uint64(f.fid))
				f.remove(f.devs[0])
			}, "NOPA SRCH GONE", 0},
			{"a location forgotten", "default", func(f *spoilt) {
				c.exec("DELETE FROM file_on WHERE fid=$1 AND devid=$2", uint64(f.fid), uint32(f.devs[0]))
			}, "POVI REPL", 2},
			{"miscounted", "default", func(f *spoilt) { c.exec("UPDATE file SET devcount=7 WHERE fid=$1", uint64(f.fid)) }, "BCNT", 2},
			{"one is not its checksum", "hashed", func(f *spoilt) {
				f.write(f.devs[1], f.flipped(0))
				trashed = append(trashed, f.path(f.devs[1]))
			}, "BSUM:b REPL", 2},
			{"both are not their checksum", "hashed", func(f *spoilt) {
				f.put(f.devs[0], f.flipped(0))
				f.put(f.devs[1], f.flipped(0))
			}, "BSUM", 0},
			{"no checksum yet", "summed", nil, "NSUM", 2},
			{"another algorithm", "rehashed", nil, "BALG", 2},
			{"other bytes that nobody reads", "default", func(f *spoilt) { f.write(f.devs[1], f.flipped(0)) }, "", 0},
		}, func() {
			update("summed", "mindevcount=2", "hashtype=MD5")
			update("rehashed", "mindevcount=2", "hashtype=SHA-1")
			c.fsck()
		})
		if t.Failed() {
			return
		}
		for _, key := range []string{"all cut short", "both are not their checksum", "other bytes that nobody reads"} {
			fid, devs := c.info(key)
			if len(devs) != 2 {
				t.Errorf("%s: recorded on %v, want both: it is all there is", key, devs)
			}
			for _, d := range devs {
				if _, err := os.Stat(c.onDisk(d, fid)); err != nil {
					t.Errorf("%s: %v", key, err)
				}
			}
		}
		for _, key := range []string{"gone", "forgotten and gone"} {
			if _, devs := c.info(key); len(devs) != 0 {
				t.Errorf("%s is recorded on %v", key, devs)
			}
		}
		fid, _ := c.info("no checksum yet")
		if got, want := c.Do("file_debug", fmt.Sprintf("fid=%d", fid)).Get("checksum"), fmt.Sprintf("MD5:%x", md5.Sum([]byte("the content of no checksum yet"))); got != want {
			t.Errorf("checksum %q, want %q", got, want)
		}
		for _, path := range trashed {
			c.waitTrashed(path)
		}

		// MSUM, and what else the setting has looked at.
		c.Do("set_server_setting", "key=fsck_checksum", "value=MD5")
		c.spoil(t, []spoilCase{
			{"two contents", "default", func(f *spoilt) { f.put(f.devs[1], f.flipped(0)) }, "MSUM", 0},
			{"equal", "default", nil, "", 2},
			{"rotten", "default", func(f *spoilt) { f.write(f.devs[0], f.flipped(0)) }, "BSUM:a REPL", 2},
		}, func() { c.fsck() })
		c.Do("set_server_setting", "key=fsck_checksum", "value=off")
		c.spoil(t, []spoilCase{
			{"checksums are off", "hashed", func(f *spoilt) { f.write(f.devs[0], f.flipped(0)) }, "", 0},
		}, func() { c.fsck() })
		status := c.Do("fsck_status")
		for code, least := range map[string]int64{"NOPA": 2, "POVI": 1, "MISS": 5, "BLEN": 5, "SRCH": 5, "FOND": 2, "GONE": 3, "REPL": 9, "BCNT": 1, "BSUM": 1, "NSUM": 1, "MSUM": 1, "BALG": 1} {
			if n := c.Metric("mogile_fsck_events_total", `code="`+code+`"`); int64(n) < least {
				t.Errorf("%v events %s were counted, want at least %d (%s)", n, code, least, status)
			}
		}
	})
}

// waitTrashed waits until the bytes that were at path are in their device's
// trash.
func (c *Cluster) waitTrashed(path string) {
	c.t.Helper()
	dev := path
	for !strings.HasPrefix(filepath.Base(dev), "dev") {
		dev = filepath.Dir(dev)
	}
	within(c.t, 30*time.Second, path+" is in the trash", func() error {
		found := false
		err := filepath.WalkDir(filepath.Join(dev, ".mogile", "trash"), func(p string, _ os.DirEntry, err error) error {
			found = found || strings.Contains(filepath.Base(p), strings.TrimSuffix(filepath.Base(path), ".fid"))
			return err
		})
		if err == nil && !found {
			err = os.ErrNotExist
		}
		return err
	})
}

// TestScrub spoils contents in every way; fsck sees nothing of it, scrub names
// the bad copies and has them replaced by good ones.
func TestScrub(t *testing.T) {
	scenario(t)
	t.Parallel()
	engines(t, func(t *testing.T, engine string) {
		c := StartCluster(t, Spec{Engine: engine, Key: true})
		c.Do("create_class", "domain="+domain, "class=hashed", "mindevcount=2", "hashtype=MD5")
		var trashed []string
		rot := func(i int) func(f *spoilt) {
			return func(f *spoilt) {
				f.write(f.devs[i], f.flipped(0))
				trashed = append(trashed, f.path(f.devs[i]))
			}
		}
		c.spoil(t, []spoilCase{
			{"well", "default", nil, "", 2},
			{"first rotten", "default", rot(0), "BSUM:a REPL", 2},
			{"second rotten", "default", rot(1), "BSUM:b REPL", 2},
			{"one of three rotten", "triple", rot(2), "BSUM:c REPL", 3},
			{"two of three rotten", "triple", func(f *spoilt) { rot(0)(f); f.write(f.devs[1], f.flipped(1)) }, "BSUM:a BSUM:b REPL", 3},
			{"with a checksum", "hashed", rot(0), "BSUM:a REPL", 2},
			{"replaced", "default", func(f *spoilt) { f.remove(f.devs[0]); f.write(f.devs[0], f.flipped(0)) }, "BSUM:a REPL", 2},
			{"cut short", "default", func(f *spoilt) { f.cut(f.devs[0], 3) }, "BLEN:a REPL", 2},
			{"missing", "default", func(f *spoilt) { f.remove(f.devs[0]) }, "MISS:a REPL", 2},
			{"only copy rotten", "single", func(f *spoilt) { f.write(f.devs[0], f.flipped(0)) }, "BSUM BSUM:a", 0},
			{"all rotten", "default", func(f *spoilt) {
				f.write(f.devs[0], f.flipped(0))
				f.write(f.devs[1], f.flipped(1))
			}, "BSUM BSUM:a BSUM:b", 0},
			{"all rotten, with a checksum", "hashed", func(f *spoilt) {
				f.write(f.devs[0], f.flipped(0))
				f.write(f.devs[1], f.flipped(1))
			}, "BSUM BSUM:a BSUM:b", 0},
			{"overwritten by a client", "default", func(f *spoilt) { f.put(f.devs[0], f.flipped(0)) }, "MSUM", 0},
			{"overwritten, with a checksum", "hashed", func(f *spoilt) { f.put(f.devs[0], f.flipped(0)) }, "BSUM:a REPL", 2},
			{"rotten and missing", "default", func(f *spoilt) { f.write(f.devs[0], f.flipped(0)); f.remove(f.devs[1]) }, "MISS:b BSUM BSUM:a REPL", 0},
		}, func() { c.sweep("scrub", "scrub_start") })
		if t.Failed() {
			return
		}
		for _, key := range []string{"only copy rotten", "all rotten", "all rotten, with a checksum", "overwritten by a client", "rotten and missing"} {
			fid, devs := c.info(key)
			for _, d := range devs {
				if _, err := os.Stat(c.onDisk(d, fid)); err != nil {
					t.Errorf("%s: %v", key, err)
				}
			}
			if len(devs) == 0 {
				t.Errorf("%s is recorded nowhere, though there are bytes", key)
			}
		}
		for _, path := range trashed {
			c.waitTrashed(path)
		}
		// A second one finds what could not be mended, and nothing else.
		_, last := c.fsckLog(0)
		c.sweep("scrub", "scrub_start", "again=1")
		events, _ := c.fsckLog(last)
		if len(events) > 5 {
			t.Errorf("the second scrub found %v", events)
		}
	})
}

// TestFsckDevicesThatDoNotAnswer: files on a device that answers with errors, or
// hangs, wait; all others are checked, and nothing is dropped.
func TestFsckDevicesThatDoNotAnswer(t *testing.T) {
	scenario(t)
	t.Parallel()
	c := StartCluster(t, Spec{Hosts: 2, Devices: 1})
	d := c.AddForeign(storagetest.Nginx(), "127.0.0.3", 10)
	addr := fmt.Sprintf("%s:%d", d.IP, d.Port)
	for i := range 10 {
		c.putOn(addr, fmt.Sprintf("there%d", i), "default", []byte("hello"))
		if err := c.Put(fmt.Sprintf("any%d", i), "default", []byte("hello")); err != nil {
			t.Fatal(err)
		}
	}
	there := 0
	for i := range 10 {
		for _, key := range []string{fmt.Sprintf("there%d", i), fmt.Sprintf("any%d", i)} {
			c.WaitPolicy(key, 2)
			if _, devs := c.info(key); slices.Contains(devs, 10) {
				there++
			}
		}
	}
	c.settled()
	watched := watch(t, c.Addrs[0])
	onFiles := func(trick func(*storagetest.Exchange) bool) func(*storagetest.Exchange) bool {
		return func(x *storagetest.Exchange) bool { return strings.HasSuffix(x.URL.Path, ".fid") && trick(x) }
	}
	for _, trick := range []struct {
		name string
		play func(*storagetest.Exchange) bool
	}{
		{"500", onFiles(storagetest.Status(500))},
		{"hangs", onFiles(storagetest.Silence)},
	} {
		d.Play(trick.play)
		watched.clear()
		began := time.Now()
		got := c.fsck()
		if files := got.Number("files"); files != int64(20-there) {
			t.Errorf("%s: %d files were checked, want %d", trick.name, files, 20-there)
		}
		if took := time.Since(began); took > 30*time.Second {
			t.Errorf("%s: it took %v", trick.name, took)
		}
		if events, _ := c.fsckLog(0); len(events) != 0 {
			t.Errorf("%s: found %v", trick.name, events)
		}
		within(t, 10*time.Second, "watchers are told", func() error {
			return watched.told(`] Connectivity problem reaching device 10 on host 127.0.0.3`)
		})
	}
	d.Play(nil)
	if got := c.fsck(); got.Number("files") != 20 {
		t.Errorf("with all devices well: %s", got)
	}
	if events, _ := c.fsckLog(0); len(events) != 0 {
		t.Errorf("found %v", events)
	}
	if n := c.Metric("mogile_fsck_files_total", `outcome="stalled"`); int(n) != 2*there {
		t.Errorf("%v files stalled, want %d", n, 2*there)
	}
	// Dead: what was there is forgotten, and copied from elsewhere.
	c.Do("set_state", "host=nginx-127.0.0.3", "device=10", "state=dead")
	c.fsck()
	c.settled()
	for i := range 10 {
		key := fmt.Sprintf("there%d", i)
		within(t, time.Minute, key+" left the dead device", func() error {
			if _, devs := c.info(key); slices.Contains(devs, 10) || len(devs) != 2 {
				return fmt.Errorf("on %v", devs)
			}
			return nil
		})
	}
}

// watcher is a connection that is told what workers say.
type watcher struct {
	mu    sync.Mutex // guards lines
	lines []string
}

func watch(t *testing.T, addr string) *watcher {
	t.Helper()
	conn := dial(t, addr)
	if _, err := fmt.Fprint(conn, "!watch\r\n"); err != nil {
		t.Fatal(err)
	}
	w := &watcher{}
	var g sync.WaitGroup
	g.Go(func() {
		_ = conn.SetReadDeadline(time.Time{})
		for r := bufio.NewScanner(conn); r.Scan(); {
			w.mu.Lock()
			w.lines = append(w.lines, r.Text())
			w.mu.Unlock()
		}
	})
	t.Cleanup(func() { _ = conn.Close(); g.Wait() })
	within(t, 5*time.Second, "watching", func() error { return w.told("Added you to watcher list") })
	return w
}

func (w *watcher) told(text string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if slices.ContainsFunc(w.lines, func(s string) bool { return strings.Contains(s, text) }) {
		return nil
	}
	return fmt.Errorf("told %q", w.lines)
}

func (w *watcher) clear() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.lines = nil
}

// TestFsckBesideClients: two trackers check files that clients store, replace,
// rename and delete meanwhile. Nothing is wrong with them, and nothing is found.
func TestFsckBesideClients(t *testing.T) {
	scenario(t)
	t.Parallel()
	c := StartCluster(t, Spec{Engine: "postgres", Trackers: 2, Key: true})
	c.Do("create_class", "domain="+domain, "class=hashed", "mindevcount=2", "hashtype=MD5")
	const keys = 40
	classes := []string{"default", "single", "triple", "hashed"}
	bodies := make([][]byte, keys)
	stop := make(chan struct{})
	rng := newRand(t)
	var clients sync.WaitGroup
	for worker := range 4 {
		seed := rng.Uint64()
		clients.Go(func() {
			rng := rand.New(rand.NewPCG(seed, 0))
			for {
				i := worker + 4*rng.IntN(keys/4)
				key := fmt.Sprintf("k%d", i)
				switch rng.IntN(8) {
				case 0:
					_, _ = c.Try("delete", "domain="+domain, "key="+key) // it may not be there
					bodies[i] = nil
				case 1:
					_, _ = c.Try("updateclass", "domain="+domain, "key="+key, "class="+classes[rng.IntN(4)])
				default:
					body := randomBody(rng, 20_000)
					if err := c.Put(key, classes[rng.IntN(4)], body); err != nil {
						t.Errorf("put %s: %v", key, err)
					}
					bodies[i] = body
				}
				select {
				case <-stop:
					return
				default:
				}
			}
		})
	}
	for range scale(3) {
		c.fsck()
		c.sweep("scrub", "scrub_start", "again=1")
	}
	close(stop)
	clients.Wait()
	events, _ := c.fsckLog(0)
	for fid, all := range events {
		for _, e := range all {
			// Files that were not yet copied, or too often for their new class, are.
			if e.code != "POVI" && e.code != "REPL" && e.code != "NSUM" {
				t.Errorf("fid %d: found %v", fid, all)
				break
			}
		}
	}
	for i, body := range bodies {
		key := fmt.Sprintf("k%d", i)
		if body == nil {
			continue
		}
		within(t, time.Minute, key+" is at its policy", func() error {
			fields, err := c.Try("file_info", "domain="+domain, "key="+key)
			if err != nil {
				return err
			}
			n := 2
			switch fields.Get("class") {
			case "single":
				n = 1
			case "triple":
				n = 3
			}
			paths, err := c.Paths(key)
			if err == nil && len(paths) != n {
				err = fmt.Errorf("%d copies of %d", len(paths), n)
			}
			return err
		})
		paths, err := c.Paths(key)
		if err != nil {
			t.Fatal(err)
		}
		c.CheckFile(key, paths, body)
	}
}
