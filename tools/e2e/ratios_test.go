package e2e

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/schema/postgres/pgtest"
	"github.com/mogile/mogile/tools/load"
)

const (
	// ratiosEnv names the file that the table is written to, "-" for none but
	// the log; without it the measurement is not made.
	ratiosEnv = "MOGILE_BENCH"
	// roundsEnv is how often contenders take turns.
	roundsEnv = "MOGILE_BENCH_ROUNDS"
	// turnTime is how long a contender is measured in a turn.
	turnTime = 3 * time.Second
	warmUp   = time.Second
)

// TestRatios measures Mogile and what everybody can compare it with, in turns,
// and writes what came of it.
func TestRatios(t *testing.T) {
	file := os.Getenv(ratiosEnv)
	if file == "" {
		t.Skipf("runs with %s=-, make bench", ratiosEnv)
	}
	r := &ratios{t: t, rounds: 3}
	if n, err := strconv.Atoi(os.Getenv(roundsEnv)); err == nil && n > 0 {
		r.rounds = n
	}
	t.Run("creates", r.creates)
	t.Run("paths", r.paths)
	t.Run("reads", r.reads)
	t.Run("puts", r.puts)
	t.Run("lists", r.lists)
	t.Run("deletes", r.deletes)
	t.Run("copies", r.copies)
	t.Run("latency", r.latency)
	t.Run("embedded", r.embedded)
	t.Run("memory", r.memory)
	t.Run("scale", r.scale)
	text := r.environment() + "\n" + r.table()
	t.Log("\n" + text)
	if file != "-" {
		if err := replaceRatios(file, text); err != nil {
			t.Fatal(err)
		}
	}
}

// ratios is one measurement of all.
type ratios struct {
	t      *testing.T
	rounds int
	pg     *pgtest.Server
	rows   []ratio
	own    bool // devices have filesystems of their own
}

// ratio is a row of the table.
type ratio struct {
	what       string
	goal       float64 // what is to be reached; a share of the yardstick unless unit is set
	most       bool    // goal is an upper bound
	unit       string  // of values that have no yardstick
	ours, yard []float64
}

// of are the ratios of single rounds.
func (r ratio) of() []float64 {
	if r.yard == nil {
		return r.ours
	}
	var all []float64
	for i := range r.ours {
		all = append(all, r.ours[i]/r.yard[i])
	}
	return all
}

func median(all []float64) float64 {
	s := slices.Sorted(slices.Values(all))
	return (s[(len(s)-1)/2] + s[len(s)/2]) / 2
}

func (r *ratios) add(row ratio) {
	r.rows = append(r.rows, row)
	all := row.of()
	r.t.Logf("%s: %.3f (%.3f to %.3f), goal %v; ours %.1f, yardstick %.1f", row.what, median(all), slices.Min(all), slices.Max(all), row.goal, row.ours, row.yard)
}

// turns has contenders take turns and returns what each reached.
func (r *ratios) turns(t *testing.T, contenders ...func(t *testing.T) float64) [][]float64 {
	t.Helper()
	got := make([][]float64, len(contenders))
	for range r.rounds {
		for i, c := range contenders {
			got[i] = append(got[i], c(t))
		}
	}
	return got
}

// server is PostgreSQL with fsync, shared by all.
func (r *ratios) server(t *testing.T) *pgtest.Server {
	t.Helper()
	if r.pg == nil {
		r.pg = pgtest.Start(r.t, pgtest.ServerOptions{Settings: map[string]string{
			"max_connections": "400", "shared_buffers": "512MB", "max_wal_size": "4GB", "checkpoint_timeout": "30min",
		}})
		r.pgbench(t, "-i", "-q", "-s", "10")
		script := filepath.Join(r.pg.Data(), "insert.sql")
		if err := os.WriteFile(script, []byte("\\set id random(1, 1000000000)\nINSERT INTO inserted VALUES (:id, 'thirty characters of some text');\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		out, err := r.pg.Command(t.Context(), "psql", r.pg.DSN(), "-qc", "CREATE TABLE inserted (id bigint, text text)").CombinedOutput()
		if err != nil {
			t.Fatalf("psql: %v: %s", err, out)
		}
	}
	return r.pg
}

// pids are PostgreSQL's first process, and the daemons of a cluster.
func (r *ratios) pids(t *testing.T, c *Cluster) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(r.server(t).Data(), "postmaster.pid"))
	if err != nil {
		t.Fatal(err)
	}
	pids, _, _ := strings.Cut(string(text), "\n")
	for _, p := range c.Trackers {
		pids += "," + strconv.Itoa(p.cmd.Process.Pid)
	}
	for _, h := range c.Hosts {
		pids += "," + strconv.Itoa(h.cmd.Process.Pid)
	}
	return pids
}

var tps = regexp.MustCompile(`tps = ([0-9.]+)`)

// pgbench returns transactions a second.
func (r *ratios) pgbench(t *testing.T, args ...string) float64 {
	t.Helper()
	out, err := r.pg.Command(t.Context(), "pgbench", append(args, r.pg.DSN())...).CombinedOutput()
	if err != nil {
		t.Fatalf("pgbench %q: %v: %s", args, err, out)
	}
	m := tps.FindSubmatch(out)
	if m == nil {
		return 0
	}
	n, err := strconv.ParseFloat(string(m[1]), 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func seconds(d time.Duration) string { return strconv.Itoa(int(d / time.Second)) }

// inserts is a single row inserted and committed, again and again.
func (r *ratios) inserts(clients int) func(t *testing.T) float64 {
	return func(t *testing.T) float64 {
		return r.pgbench(t, "-n", "-c", strconv.Itoa(clients), "-j", "2", "-T", seconds(turnTime), "-f", filepath.Join(r.pg.Data(), "insert.sql"))
	}
}

// selects is a single row found by its key.
func (r *ratios) selects(clients int) func(t *testing.T) float64 {
	return func(t *testing.T) float64 {
		return r.pgbench(t, "-n", "-S", "-c", strconv.Itoa(clients), "-j", "2", "-T", seconds(turnTime))
	}
}

// cluster has hosts of two devices, each of which is a filesystem of its own
// where this machine lets us make them.
func (r *ratios) cluster(t *testing.T, s Spec) *Cluster {
	t.Helper()
	if s.Engine == "postgres" {
		s.DSN = r.server(t).Database(t, "")
	}
	s.Hosts, s.Devices, s.Key = cmp.Or(s.Hosts, 2), 2, true
	s.BeforeHosts = func(h *Host) {
		for _, dev := range h.Devices {
			r.own = mountFresh(t, filepath.Join(h.Docroot, "dev"+dev.String()))
		}
	}
	return StartCluster(t, s)
}

// mountFresh mounts an empty ext4 of 4 GB on a directory, and reports whether it
// could.
func mountFresh(t testing.TB, dir string) bool {
	t.Helper()
	image := filepath.Join(t.TempDir(), "image")
	if f, err := os.Create(image); err != nil {
		t.Fatal(err)
	} else if err := errors.Join(f.Truncate(4<<30), f.Close()); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mkfs.ext4", "-q", "-F", image).CombinedOutput(); err != nil {
		t.Logf("mkfs.ext4: %v: %s", err, out)
		return false
	}
	if out, err := exec.Command("mount", "-o", "loop,noatime", image, dir).CombinedOutput(); err != nil {
		t.Logf("mount: %v: %s", err, out)
		return false
	}
	t.Cleanup(func() {
		if out, err := exec.Command("umount", dir).CombinedOutput(); err != nil {
			t.Errorf("umount: %v: %s", err, out)
		}
	})
	return true
}

// measured is what mogtool bench says.
type measured struct {
	Ops      int64   `json:"ops"`
	OpsRate  float64 `json:"ops_per_second"`
	ItemRate float64 `json:"items_per_second"`
	MBRate   float64 `json:"mb_per_second"`
	P99      float64 `json:"p99_ms"`
	P999     float64 `json:"p999_ms"`
	CPU      float64 `json:"cpu_ms_per_op"`
}

func (c *Cluster) bench(t *testing.T, args ...string) measured {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), binary, append([]string{"mogtool", "--trackers", strings.Join(c.Addrs, ","), "--domain", domain, "--json", "bench"}, args...)...)
	var said bytes.Buffer
	cmd.Stderr = &said
	out, err := cmd.Output()
	var m measured
	if err == nil {
		err = json.Unmarshal(out, &m)
	}
	if err != nil {
		t.Fatalf("mogtool bench %q: %v: %s", args, err, said.Bytes())
	}
	return m
}

// timed are arguments for a turn of n clients.
func timed(n int) []string {
	return []string{"--clients", strconv.Itoa(n), "--duration", turnTime.String(), "--warm-up", warmUp.String()}
}

const smallFile = 4 << 10

// creation is files a second of 4 KiB, and the processor time of one.
func (r *ratios) creation(c *Cluster, clients int, cpu *[]float64) func(t *testing.T) float64 {
	return func(t *testing.T) float64 {
		args := append([]string{"create", "--keep", "--size", "4K", "--class", "single"}, timed(clients)...)
		if cpu != nil {
			args = append(args, "--pids", r.pids(t, c))
		}
		m := c.bench(t, args...)
		if cpu != nil {
			*cpu = append(*cpu, m.CPU)
		}
		return m.OpsRate
	}
}

// The figures of MogileFS 2.73 on a machine with two cores, where pgbench
// inserted and committed 9,000 rows a second: see docs/performance.md.
const (
	perlCreates16, perlCreates64 = 147, 153
	perlInserts                  = 9000
)

func (r *ratios) creates(t *testing.T) {
	r.server(t)
	c := r.cluster(t, Spec{Engine: "postgres"})
	var cpu []float64
	got := r.turns(t, r.inserts(64), r.creation(c, 1, nil), r.creation(c, 16, nil), r.creation(c, 64, &cpu))
	perl := func(rate float64) []float64 {
		var all []float64
		for _, inserts := range got[0] {
			all = append(all, rate*inserts/perlInserts)
		}
		return all
	}
	r.add(ratio{what: "create 4 KiB, durable, 1 client ÷ pgbench insert-commit, 64 clients", ours: got[1], yard: got[0]})
	r.add(ratio{what: "create 4 KiB, durable, 64 clients ÷ pgbench insert-commit, 64 clients", goal: 0.4, ours: got[3], yard: got[0]})
	r.add(ratio{what: "create 4 KiB, durable, 16 clients ÷ MogileFS", goal: 25, ours: got[2], yard: perl(perlCreates16)})
	r.add(ratio{what: "create 4 KiB, durable, 64 clients ÷ MogileFS", goal: 25, ours: got[3], yard: perl(perlCreates64)})
	r.add(ratio{what: "processor time of a create, all daemons and PostgreSQL", goal: 0.35, most: true, unit: "ms", ours: cpu})
}

func (r *ratios) paths(t *testing.T) {
	r.server(t)
	c := r.cluster(t, Spec{Engine: "postgres"})
	find := func(args ...string) func(t *testing.T) float64 {
		return func(t *testing.T) float64 {
			args := append([]string{"paths", "--keys", "5000", "--size", "4K", "--class", "single"}, args...)
			return c.bench(t, append(args, timed(64)...)...).OpsRate
		}
	}
	got := r.turns(t, r.selects(64), find(), find("--verify"))
	r.add(ratio{what: "get_paths noverify, uncached, 64 connections ÷ pgbench select-only, 64 clients", goal: 1.2, ours: got[1], yard: got[0]})
	r.add(ratio{what: "get_paths with verification, 64 connections ÷ pgbench select-only, 64 clients", goal: 0.5, ours: got[2], yard: got[0]})

	www, addr := r.nginx(t)
	content := load.NewContent(smallFile)
	urls := webFiles(t, content, "http://"+addr+"/", www, 2000)
	c.Do("set_server_setting", "key=path_cache_ttl", "value=600")
	within(t, 30*time.Second, "paths are answered from memory", func() error {
		c.bench(t, "paths", "-n", "1000", "--keys", "100", "--size", "1", "--class", "single")
		if hits := c.Metric("mogile_tracker_path_cache_total", `result="hit"`); hits == 0 {
			return errors.New("no hit")
		}
		return nil
	})
	got = r.turns(t, func(t *testing.T) float64 { return loadGets(t, urls, content, 64) }, find())
	r.add(ratio{what: "get_paths from memory, 64 connections ÷ nginx GET of 4 KiB, same client", goal: 1, ours: got[1], yard: got[0]})
}

// nginx serves a fresh folder, with PUT, and returns its address.
func (r *ratios) nginx(t *testing.T) (www, addr string) {
	t.Helper()
	www = filepath.Join(t.TempDir(), "www")
	if err := os.Mkdir(www, 0o777); err != nil {
		t.Fatal(err)
	}
	mountFresh(t, www)
	addr = fmt.Sprintf("127.0.0.1:%d", freePorts(t, 1, "127.0.0.1"))
	startNginx(t, addr, fmt.Sprintf("server { listen %s; root %s; dav_methods PUT DELETE; create_full_put_path on; client_max_body_size 0; tcp_nopush off; client_body_temp_path %s/tmp; }\n", addr, www, www))
	return www, addr
}

// webFiles makes files below a folder and returns their URLs.
func webFiles(t *testing.T, content *load.Content, base, dir string, n int) [][]byte {
	t.Helper()
	w := load.NewWeb(time.Minute)
	defer w.Close()
	var urls [][]byte
	for i := range n {
		url := fmt.Appendf(nil, "%sf%d/%d", base, i%10, i)
		if err := w.Put(url, content, int64(i)); err != nil {
			t.Fatal(err)
		}
		urls = append(urls, url)
	}
	return urls
}

// run has clients do operations for a turn, and returns them a second.
func run(t *testing.T, clients int, op func(w *load.Web, client, n int) error) float64 {
	t.Helper()
	var ops []load.Op
	for i := range clients {
		w := load.NewWeb(time.Minute)
		defer w.Close()
		ops = append(ops, func(n int64) (load.Work, error) { return load.Work{}, op(w, i, int(n)) })
	}
	out, err := load.Run(t.Context(), load.Options{Duration: turnTime, Warmup: warmUp}, ops)
	if err = errors.Join(err, out.First); err != nil {
		t.Fatal(err)
	}
	return float64(out.Ops) / out.Took.Seconds()
}

func loadGets(t *testing.T, urls [][]byte, content *load.Content, clients int) float64 {
	t.Helper()
	return run(t, clients, func(w *load.Web, client, n int) error {
		i := (n*7919 + client) % len(urls)
		return w.Get(urls[i], content, int64(i))
	})
}

// storage is a storage daemon without a tracker.
func (r *ratios) storage(t *testing.T, args ...string) (p *Process, addr, docroot string) {
	t.Helper()
	docroot = filepath.Join(t.TempDir(), "docroot")
	if err := os.MkdirAll(filepath.Join(docroot, "dev1"), 0o777); err != nil {
		t.Fatal(err)
	}
	mountFresh(t, filepath.Join(docroot, "dev1"))
	port := freePorts(t, 2, "127.0.0.1")
	addr = fmt.Sprintf("127.0.0.1:%d", port)
	p = start(t, "storaged", append([]string{"storaged", "--docroot", docroot, "--http-listen", addr, "--mgmt-listen", fmt.Sprintf("127.0.0.1:%d", port+1)}, args...)...)
	within(t, 20*time.Second, "storaged answers", func() error {
		_, err := fetch("http://" + addr + "/")
		return err
	})
	return p, addr, docroot
}

func fidURL(addr string, fid int) []byte {
	return fmt.Appendf(nil, "http://%s/%s", addr, strings.TrimPrefix(protocol.FID(fid).Path(1), "/"))
}

var (
	wrkRate   = regexp.MustCompile(`Requests/sec:\s+([0-9.]+)`)
	wrkErrors = regexp.MustCompile(`Socket errors:.*|Non-2xx or 3xx responses:.*`)
)

// wrk asks for paths in turn and returns requests a second. Every answer has
// size bytes at least, which it checks by their sum.
func wrk(t *testing.T, addr string, paths []string, clients, size int, header string) float64 {
	t.Helper()
	script := filepath.Join(t.TempDir(), "wrk.lua")
	var lua strings.Builder
	lua.WriteString("local reqs = {}\ninit = function(args)\n")
	for _, p := range paths {
		headers := "nil"
		if header != "" {
			name, value, _ := strings.Cut(header, ": ")
			headers = fmt.Sprintf("{[%q]=%q}", name, value)
		}
		fmt.Fprintf(&lua, "reqs[#reqs+1] = wrk.format('GET', %q, %s)\n", p, headers)
	}
	lua.WriteString("end\nlocal i = 0\nrequest = function() i = i + 1 if i > #reqs then i = 1 end return reqs[i] end\n")
	lua.WriteString("done = function(s, l, r) io.write(string.format('BYTES %d REQUESTS %d\\n', s.bytes, s.requests)) end\n")
	if err := os.WriteFile(script, []byte(lua.String()), 0o644); err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), "wrk", "-t1", "-c", strconv.Itoa(clients), "-d", seconds(turnTime)+"s", "-s", script, "http://"+addr).CombinedOutput()
	m := wrkRate.FindSubmatch(out)
	if err != nil || m == nil || wrkErrors.Match(out) {
		t.Fatalf("wrk: %v: %s", err, out)
	}
	var sent, requests int
	if _, after, ok := bytes.Cut(out, []byte("BYTES ")); !ok {
		t.Fatalf("wrk: %s", out)
	} else if _, err := fmt.Sscanf(string(after), "%d REQUESTS %d", &sent, &requests); err != nil || sent < requests*size {
		t.Fatalf("wrk: %d bytes in %d answers of %d: %v: %s", sent, requests, size, err, out)
	}
	rate, err := strconv.ParseFloat(string(m[1]), 64)
	if err != nil {
		t.Fatal(err)
	}
	return rate
}

func (r *ratios) reads(t *testing.T) {
	_, ours, _ := r.storage(t)
	www, theirs := r.nginx(t)
	const files = 1000
	small, large := load.NewContent(smallFile), load.NewContent(4<<20)
	w := load.NewWeb(time.Minute)
	defer w.Close()
	var ourPaths, theirPaths []string
	var ourLarge, theirLarge []string
	put := func(content *load.Content, fid int, ourPaths, theirPaths *[]string) {
		local := strings.TrimPrefix(protocol.FID(fid).Path(1), "/")
		for addr, paths := range map[string]*[]string{ours: ourPaths, theirs: theirPaths} {
			if err := w.Put(fmt.Appendf(nil, "http://%s/%s", addr, local), content, int64(fid)); err != nil {
				t.Fatal(err)
			}
			*paths = append(*paths, "/"+local)
		}
	}
	for i := range files {
		put(small, i+1, &ourPaths, &theirPaths)
	}
	for i := range 20 {
		put(large, files+i+1, &ourLarge, &theirLarge)
	}
	t.Logf("nginx's files are in %s", www)
	for _, clients := range []int{1, 16, 64} {
		got := r.turns(t,
			func(t *testing.T) float64 { return wrk(t, theirs, theirPaths, clients, smallFile, "") },
			func(t *testing.T) float64 { return wrk(t, ours, ourPaths, clients, smallFile, "") })
		row := ratio{what: fmt.Sprintf("GET 4 KiB, %d connections ÷ nginx", clients), goal: 1, ours: got[1], yard: got[0]}
		if clients == 1 {
			row.goal = 0
		}
		r.add(row)
	}
	for _, clients := range []int{1, 16} {
		got := r.turns(t,
			func(t *testing.T) float64 { return wrk(t, theirs, theirLarge, clients, 4<<20, "") },
			func(t *testing.T) float64 { return wrk(t, ours, ourLarge, clients, 4<<20, "") })
		r.add(ratio{what: fmt.Sprintf("GET 4 MiB, %d connections ÷ nginx", clients), goal: 1, ours: got[1], yard: got[0]})
		const part = "Range: bytes=1000000-1065535"
		got = r.turns(t,
			func(t *testing.T) float64 { return wrk(t, theirs, theirLarge, clients, 64<<10, part) },
			func(t *testing.T) float64 { return wrk(t, ours, ourLarge, clients, 64<<10, part) })
		r.add(ratio{what: fmt.Sprintf("Range of 64 KiB, %d connections ÷ nginx", clients), goal: 1, ours: got[1], yard: got[0]})
	}
}

func (r *ratios) puts(t *testing.T) {
	_, theirs := r.nginx(t)
	_, loose, _ := r.storage(t, "--durability", "none")
	_, durable, _ := r.storage(t)
	content := load.NewContent(smallFile)
	next := map[string]int{}
	puts := func(addr string, clients int) func(t *testing.T) float64 {
		return func(t *testing.T) float64 {
			next[addr] += 1_000_000
			base := next[addr]
			return run(t, clients, func(w *load.Web, _, n int) error { return w.Put(fidURL(addr, base+n), content, int64(n)) })
		}
	}
	for _, clients := range []int{16, 64} {
		got := r.turns(t, puts(theirs, clients), puts(loose, clients))
		r.add(ratio{what: fmt.Sprintf("PUT 4 KiB, durability none, %d connections ÷ nginx", clients), goal: 1, ours: got[1], yard: got[0]})
	}
	for _, clients := range []int{1, 16, 64} {
		got := r.turns(t, r.fio, puts(durable, clients))
		row := ratio{what: fmt.Sprintf("PUT 4 KiB, durable, %d connections ÷ fio 4 KiB write+fsync, 16 jobs", clients), ours: got[1], yard: got[0]}
		if clients == 64 {
			row.goal = 0.5
		}
		r.add(row)
	}
}

// fio writes and flushes 4 KiB in each of 16 jobs, a second.
func (r *ratios) fio(t *testing.T) float64 {
	dir := filepath.Join(t.TempDir(), "fio")
	if err := os.Mkdir(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	mountFresh(t, dir)
	out, err := exec.CommandContext(t.Context(), "fio", "--name=flush", "--rw=write", "--bs=4k", "--size=64m", "--fsync=1", "--numjobs=16",
		"--time_based", "--runtime="+seconds(turnTime), "--group_reporting", "--output-format=json", "--directory="+dir).Output()
	var said struct {
		Jobs []struct {
			Write struct {
				IOPS float64 `json:"iops"`
			} `json:"write"`
		} `json:"jobs"`
	}
	if err == nil {
		err = json.Unmarshal(out, &said)
	}
	if err != nil || len(said.Jobs) != 1 {
		t.Fatalf("fio: %v: %s", err, out)
	}
	return said.Jobs[0].Write.IOPS
}

func (r *ratios) lists(t *testing.T) {
	r.server(t)
	c := r.cluster(t, Spec{Engine: "postgres"})
	got := r.turns(t, func(t *testing.T) float64 {
		return c.bench(t, append([]string{"list", "--keys", "10000", "--size", "1", "--class", "single"}, timed(1)...)...).ItemRate
	})
	r.add(ratio{what: "list_keys, 1,000 a page, one connection", goal: 500_000, unit: "keys/s", ours: got[0]})
}

func (r *ratios) deletes(t *testing.T) {
	r.server(t)
	c := r.cluster(t, Spec{Engine: "postgres"})
	got := r.turns(t, r.inserts(16), func(t *testing.T) float64 {
		return c.bench(t, "delete", "--keys", "10000", "--size", "1", "--class", "single", "--clients", "64").OpsRate
	})
	r.add(ratio{what: "delete, 64 connections ÷ pgbench insert-commit, 16 clients", goal: 0.8, ours: got[1], yard: got[0]})
}

func (r *ratios) copies(t *testing.T) {
	r.server(t)
	c := r.cluster(t, Spec{Engine: "postgres", Trackers: 2})
	got := r.turns(t, r.inserts(16), func(t *testing.T) float64 {
		return c.bench(t, "replicate", "--keep", "--keys", "20000", "--size", "4K", "--clients", "64").OpsRate
	})
	r.add(ratio{what: "copying 20,000 files of 4 KiB, two trackers", goal: 3000, unit: "files/s", ours: got[1]})
	r.add(ratio{what: "copying 20,000 files of 4 KiB, two trackers ÷ pgbench insert-commit, 16 clients", goal: 0.35, ours: got[1], yard: got[0]})
	body := make([]byte, 64<<20)
	if err := c.Put("large", "single", body); err != nil {
		t.Fatal(err)
	}
	paths, err := c.Paths("large")
	if err != nil {
		t.Fatal(err)
	}
	got = r.turns(t, func(t *testing.T) float64 { return c.pipe(t, paths[0], int64(len(body))) }, func(t *testing.T) float64 {
		return c.bench(t, "replicate", "--keys", "50", "--size", "64M", "--clients", "4").MBRate
	})
	r.add(ratio{what: "copying 50 files of 64 MiB ÷ one GET piped into a PUT", goal: 1, ours: got[1], yard: got[0]})
}

// pipe reads a file and stores it again on a device of another host, for a turn,
// and returns MB a second.
func (c *Cluster) pipe(t *testing.T, url string, size int64) float64 {
	t.Helper()
	other := c.Hosts[0]
	if strings.Contains(url, other.IP+":") {
		other = c.Hosts[1]
	}
	target := fmt.Sprintf("http://%s:%d/%s", other.IP, c.Port, protocol.FID(999_999_999).Path(other.Devices[0]))
	began, n := time.Now(), int64(0)
	for time.Since(began) < turnTime {
		if err := pipe(t.Context(), url, target, size); err != nil {
			t.Fatal(err)
		}
		n += size
	}
	return float64(n) / 1e6 / time.Since(began).Seconds()
}

func pipe(ctx context.Context, from, to string, size int64) error {
	get, err := http.NewRequestWithContext(ctx, http.MethodGet, from, nil)
	if err != nil {
		return err
	}
	got, err := http.DefaultClient.Do(get)
	if err != nil {
		return err
	}
	defer got.Body.Close()
	put, err := http.NewRequestWithContext(ctx, http.MethodPut, to, got.Body)
	if err != nil {
		return err
	}
	put.ContentLength = size
	done, err := http.DefaultClient.Do(put)
	if err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, done.Body)
	if err := errors.Join(err, done.Body.Close()); err != nil || done.StatusCode/100 != 2 {
		return fmt.Errorf("%s: %v", done.Status, err)
	}
	return nil
}

// latency is measured at 70 % of what was reached without a limit.
func (r *ratios) latency(t *testing.T) {
	r.server(t)
	c := r.cluster(t, Spec{Engine: "postgres"})
	for _, op := range []struct {
		args []string
		what string
		goal float64
		of   func(m measured) float64
	}{
		{[]string{"paths", "--keys", "5000", "--size", "4K", "--class", "single"}, "get_paths noverify at 70 % of the peak, p99.9", 10, func(m measured) float64 { return m.P999 }},
		{[]string{"create", "--keep", "--size", "4K", "--class", "single"}, "create 4 KiB at 70 % of the peak, p99", 60, func(m measured) float64 { return m.P99 }},
	} {
		var all, tail []float64
		for range r.rounds {
			peak := c.bench(t, append(slices.Clone(op.args), timed(64)...)...).OpsRate
			m := c.bench(t, append(append(slices.Clone(op.args), timed(64)...), "--rate", strconv.Itoa(int(peak*0.7)))...)
			all, tail = append(all, op.of(m)), append(tail, m.P999)
		}
		r.add(ratio{what: op.what, goal: op.goal, most: true, unit: "ms", ours: all})
		if op.goal == 60 {
			r.add(ratio{what: "create 4 KiB at 70 % of the peak, p99.9", unit: "ms", ours: tail})
		}
	}
}

func (r *ratios) embedded(t *testing.T) {
	r.server(t)
	pg, lite := r.cluster(t, Spec{Engine: "postgres"}), r.cluster(t, Spec{Engine: "sqlite"})
	got := r.turns(t, r.creation(pg, 64, nil), r.creation(lite, 64, nil))
	r.add(ratio{what: "create on the embedded store, 64 clients ÷ on PostgreSQL", goal: 0.8, ours: got[1], yard: got[0]})
	find := func(c *Cluster) func(t *testing.T) float64 {
		return func(t *testing.T) float64 {
			return c.bench(t, append([]string{"paths", "--keys", "5000", "--size", "4K", "--class", "single"}, timed(64)...)...).OpsRate
		}
	}
	got = r.turns(t, find(pg), find(lite))
	r.add(ratio{what: "get_paths on the embedded store, 64 connections ÷ on PostgreSQL", goal: 1, ours: got[1], yard: got[0]})
}

// memory is what daemons hold while 2,000 connections are used.
func (r *ratios) memory(t *testing.T) {
	r.server(t)
	c := r.cluster(t, Spec{Engine: "postgres"})
	hold := func(args ...string) {
		c.bench(t, append(args, "--keys", "2000", "--size", "4K", "--class", "single", "--clients", "2000", "--duration", "5s")...)
	}
	hold("paths")
	hold("GET")
	r.add(ratio{what: "memory of a tracker that had 2,000 connections", goal: 128, most: true, unit: "MiB", ours: []float64{peakMemory(t, c.Trackers[0])}})
	r.add(ratio{what: "memory of a storage daemon that had 2,000 connections", goal: 128, most: true, unit: "MiB", ours: []float64{peakMemory(t, c.Hosts[0].Process)}})
}

// peakMemory is the largest resident memory that a process had, in MiB.
func peakMemory(t *testing.T, p *Process) float64 {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	_, after, _ := bytes.Cut(text, []byte("VmHWM:"))
	kib, err := strconv.Atoi(string(bytes.Fields(after)[0]))
	if err != nil {
		t.Fatal(err)
	}
	return float64(kib) / 1024
}

// scaleFiles is how many files a large namespace has, and a small one.
const scaleFiles, scaleFewFiles = 10_000_000, 100_000

// scale measures the same with few files and with many.
func (r *ratios) scale(t *testing.T) {
	r.server(t)
	c := r.cluster(t, Spec{Engine: "postgres"})
	ops := []struct {
		what string
		args func(loaded string) []string
		of   func(m measured) float64
	}{
		{"create 4 KiB, 64 clients", func(string) []string {
			return append([]string{"create", "--size", "4K", "--class", "single"}, timed(64)...)
		}, func(m measured) float64 { return m.OpsRate }},
		{"get_paths noverify of any file, 64 connections", func(loaded string) []string {
			return append([]string{"paths", "--loaded", loaded}, timed(64)...)
		}, func(m measured) float64 { return m.OpsRate }},
		{"list_keys, 1,000 a page, one connection", func(loaded string) []string {
			return append([]string{"list", "--loaded", loaded}, timed(1)...)
		}, func(m measured) float64 { return m.ItemRate }},
		{"delete, 64 connections", func(string) []string {
			return []string{"delete", "--keys", "10000", "--size", "1", "--class", "single", "--clients", "64"}
		}, func(m measured) float64 { return m.OpsRate }},
		{"copies of 4 KiB files", func(string) []string {
			return []string{"replicate", "--keys", "5000", "--size", "4K", "--clients", "64"}
		}, func(m measured) float64 { return m.OpsRate }},
	}
	measure := func(files int) [][]float64 {
		got := make([][]float64, len(ops))
		began := time.Now()
		c.bench(t, "load", "--dsn", c.DSN, "--files", strconv.Itoa(files))
		t.Logf("%d files made in %v", files, time.Since(began))
		for range r.rounds {
			for i, op := range ops {
				got[i] = append(got[i], op.of(c.bench(t, op.args(strconv.Itoa(files))...)))
			}
		}
		return got
	}
	few := measure(scaleFewFiles)
	c.bench(t, "load", "--dsn", c.DSN, "--remove")
	many := measure(scaleFiles)
	for i, op := range ops {
		r.add(ratio{what: op.what + ", with 10 million files ÷ with 100 thousand", goal: 0.8, ours: many[i], yard: few[i]})
	}
	tracker := c.Trackers[0]
	tracker.Stop()
	began := time.Now()
	tracker.Start()
	within(t, time.Minute, "the tracker answers again", func() error {
		_, err := c.Try("get_domains")
		return err
	})
	r.add(ratio{what: "start of a tracker with 10 million files, until it answers", goal: 1, most: true, unit: "s", ours: []float64{time.Since(began).Seconds()}})
}

var number = regexp.MustCompile(`[0-9]+(\.[0-9]+)+`)

// environment says on what and with what was measured.
func (r *ratios) environment() string {
	version := func(name string, args ...string) string {
		out, _ := exec.Command(name, args...).CombinedOutput() // some end with an error after they have said it
		return cmp.Or(string(number.Find(out)), "of unknown version")
	}
	model := "processors"
	if text, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		if _, after, ok := strings.Cut(string(text), "model name"); ok {
			line, _, _ := strings.Cut(after, "\n")
			model = strings.TrimSpace(strings.TrimLeft(line, "\t: "))
		}
	}
	postgres := "PostgreSQL not used"
	if r.pg != nil {
		postgres = "PostgreSQL " + version(r.pg.Program("postgres"), "--version")
	}
	commit, err := exec.Command("git", "rev-parse", "--short", "HEAD").Output()
	if err != nil {
		commit = []byte("of no repository")
	}
	devices := "devices are folders of one file system"
	if r.own {
		devices = "each device an ext4 of its own on a loop device"
	}
	return fmt.Sprintf("%d processors (%s), Linux %s, %s, nginx %s, wrk %s, fio %s, commit %s, %d rounds; %s.\n",
		runtime.NumCPU(), model, version("uname", "-r"), postgres, version(nginxBinary(r.t), "-v"), version("wrk", "-v"), version("fio", "--version"),
		strings.TrimSpace(string(commit)), r.rounds, devices)
}

// table is what was measured, as Markdown.
func (r *ratios) table() string {
	var b strings.Builder
	b.WriteString("| what | ratio | spread | goal | Mogile | yardstick |\n|---|---|---|---|---|---|\n")
	for _, row := range r.rows {
		all := row.of()
		goal := "–"
		if row.goal > 0 {
			goal = "≥ "
			if row.most {
				goal = "≤ "
			}
			goal += figure(row.goal)
		}
		ratio, spread := figure(median(all)), figure(slices.Min(all))+"–"+figure(slices.Max(all))
		ours, yard := figure(median(row.ours)), "–"
		if row.yard != nil {
			yard = figure(median(row.yard))
		} else {
			ratio, ours = "–", ours+" "+row.unit
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s | %s |\n", row.what, ratio, spread, goal, ours, yard)
	}
	return b.String()
}

// figure is a number with three digits that matter.
func figure(f float64) string {
	switch {
	case f >= 100:
		return strconv.FormatFloat(f, 'f', 0, 64)
	case f >= 10:
		return strconv.FormatFloat(f, 'f', 1, 64)
	}
	return strconv.FormatFloat(f, 'f', 2, 64)
}

// The table stands between these lines.
const ratiosBegin, ratiosEnd = "<!-- ratios -->\n", "<!-- /ratios -->\n"

// replaceRatios writes a table over the one in a file.
func replaceRatios(file, text string) error {
	old, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	before, rest, ok := strings.Cut(string(old), ratiosBegin)
	_, after, ok2 := strings.Cut(rest, ratiosEnd)
	if !ok || !ok2 {
		return fmt.Errorf("%s has no place for the table: %q and %q", file, ratiosBegin, ratiosEnd)
	}
	return os.WriteFile(file, []byte(before+ratiosBegin+text+ratiosEnd+after), 0o644)
}
