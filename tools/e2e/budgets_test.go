package e2e

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/schema/postgres/pgtest"
	"github.com/mogile/mogile/tools/load"
)

const (
	// budgetsEnv is "check", or "write" to record what is measured.
	budgetsEnv  = "MOGILE_BUDGETS"
	budgetsFile = "testdata/budgets.json"
	// budgetOps is how many operations are counted.
	budgetOps = 1000
)

// budget is what a daemon may use for an operation. Counts are the same on every
// machine, or nearly: what a tracker does beside is in them.
type budget struct {
	Allocations float64 `json:"allocations"` // of memory
	SystemCalls float64 `json:"system_calls"`
}

// TestBudgets counts the allocations and system calls of hot operations, which one
// client asks for one after the other, and compares them with those recorded.
func TestBudgets(t *testing.T) {
	mode := os.Getenv(budgetsEnv)
	if mode == "" || raceEnabled {
		t.Skipf("runs with %s=check and without the race detector, make budgets", budgetsEnv)
	}
	if _, err := exec.LookPath("strace"); err != nil {
		t.Fatal("no strace: run .ci/deps budgets")
	}
	server := pgtest.Start(t, pgtest.ServerOptions{})
	c := StartCluster(t, Spec{Engine: "postgres", DSN: server.Database(t, ""), Hosts: 1, Devices: 1, HostArgs: []string{"--durability", "none"}})
	c.want(0, "delete") // which would go on beside what is counted
	c.want(0, "replicate")
	c.want(0, "reaper")
	tracker, host := c.Trackers[0], c.Hosts[0].Process
	addr := fmt.Sprintf("%s:%d", c.Hosts[0].IP, c.Port)
	content := load.NewContent(smallFile)
	web, ask := load.NewWeb(time.Minute), load.NewTracker(c.Addrs[0], time.Minute)
	defer web.Close()
	defer ask.Close()
	do := func(command string, fields ...any) (load.Reply, error) {
		ask.Begin(command)
		ask.Text("domain", domain)
		for i := 0; i < len(fields); i += 2 {
			switch v := fields[i+1].(type) {
			case string:
				ask.Text(fields[i].(string), v)
			case int:
				ask.Int(fields[i].(string), int64(v))
			}
		}
		return ask.Do()
	}
	key := func(n int) string { return fmt.Sprintf("budget/%d", n) }
	open := make(map[int]string) // arguments that close an upload
	got := make(map[string]budget)
	next := 0
	traced := mayTrace(t, host.cmd.Process.Pid)
	if !traced {
		if mode == "write" {
			t.Fatal("this machine permits nobody to trace another process: system calls cannot be recorded")
		}
		t.Log("this machine permits nobody to trace another process: system calls are not compared")
	}
	count := func(name string, p *Process, status string, op func(n int) error) {
		t.Helper()
		run := func(n int) {
			for range n {
				next++
				if err := op(next); err != nil {
					t.Fatalf("%s: %v", name, err)
				}
			}
		}
		run(budgetOps / 10) // connections, statements and pools are there then
		before := allocations(t, status)
		run(budgetOps)
		b := budget{Allocations: (allocations(t, status) - before) / budgetOps}
		if traced {
			b.SystemCalls = systemCalls(t, p.cmd.Process.Pid, func() { run(budgetOps) }) / budgetOps
		}
		got[name] = b
		t.Logf("%-24s %6.1f allocations, %5.2f system calls", name, b.Allocations, b.SystemCalls)
	}
	fid := func(n int) []byte { return fidURL(addr, 500_000_000+n) }
	count("PUT 4 KiB", host, c.Hosts[0].Status, func(n int) error { return web.Put(fid(n), content, int64(n)) })
	stored := next
	count("GET 4 KiB", host, c.Hosts[0].Status, func(n int) error {
		i := n%(stored-1) + 1
		return web.Get(fid(i), content, int64(i))
	})
	first := next + 1
	count("create_open", tracker, c.Status[0], func(n int) error {
		reply, err := do("create_open", "key", key(n), "class", "single")
		if err == nil {
			open[n] = string(reply)
		}
		return err
	})
	last := next
	for n := first; n <= last; n++ {
		args := protocol.ParseArgs(open[n])
		if err := web.Put([]byte(args.Get("path")), content, int64(n)); err != nil {
			t.Fatal(err)
		}
	}
	closing := first
	count("create_close", tracker, c.Status[0], func(int) error {
		args := protocol.ParseArgs(open[closing])
		_, err := do("create_close", "key", key(closing), "fid", args.Get("fid"), "devid", args.Get("devid"), "path", args.Get("path"), "size", smallFile)
		closing++
		return err
	})
	find := func(n int) error {
		_, err := do("get_paths", "key", key(first+n%(last-first)), "noverify", 1)
		return err
	}
	count("get_paths", tracker, c.Status[0], find)
	count("get_paths, verified", tracker, c.Status[0], func(n int) error {
		_, err := do("get_paths", "key", key(first+n%(last-first)))
		return err
	})
	count("list_keys of 1,000", tracker, c.Status[0], func(int) error {
		_, err := do("list_keys", "prefix", "budget/", "limit", 1000)
		return err
	})
	c.Do("set_server_setting", "key=path_cache_ttl", "value=600")
	within(t, 30*time.Second, "paths are answered from memory", func() error {
		before := c.Metric("mogile_tracker_path_cache_total", `result="hit"`)
		for range 2 {
			if err := find(0); err != nil {
				return err
			}
		}
		if c.Metric("mogile_tracker_path_cache_total", `result="hit"`) == before {
			return fmt.Errorf("no hit")
		}
		return nil
	})
	for n := range last - first {
		if err := find(n); err != nil {
			t.Fatal(err)
		}
	}
	count("get_paths from memory", tracker, c.Status[0], find)
	deleting := first
	count("delete", tracker, c.Status[0], func(int) error {
		_, err := do("delete", "key", key(deleting))
		deleting++
		return err
	})
	if mode == "write" {
		writeBudgets(t, got)
		return
	}
	checkBudgets(t, got)
}

func writeBudgets(t *testing.T, got map[string]budget) {
	t.Helper()
	text, err := json.MarshalIndent(got, "", "\t")
	if err == nil {
		err = os.WriteFile(budgetsFile, append(text, '\n'), 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func checkBudgets(t *testing.T, got map[string]budget) {
	t.Helper()
	text, err := os.ReadFile(budgetsFile)
	if err != nil {
		t.Fatal(err)
	}
	var want map[string]budget
	if err := json.Unmarshal(text, &want); err != nil {
		t.Fatal(err)
	}
	names := slices.Sorted(maps.Keys(got))
	if recorded := slices.Sorted(maps.Keys(want)); !slices.Equal(names, recorded) {
		t.Errorf("counted %q, recorded %q", names, recorded)
	}
	for _, name := range names {
		g, w := got[name], want[name]
		for _, c := range []struct {
			what      string
			got, want float64
		}{{"allocations", g.Allocations, w.Allocations}, {"system calls", g.SystemCalls, w.SystemCalls}} {
			switch room := c.want*0.15 + 1; {
			case c.got > c.want+room:
				t.Errorf("%s: %.2f %s, and %.2f are recorded: make it as few again, or say why not and record it by make budgets-write", name, c.got, c.what, c.want)
			case c.got < c.want-room && c.got > 0:
				t.Logf("%s: %.2f %s, fewer than the %.2f that are recorded: record it by make budgets-write", name, c.got, c.what, c.want)
			}
		}
	}
}

// allocations is how many a daemon has made so far, as its status port says.
func allocations(t *testing.T, status string) float64 {
	t.Helper()
	resp, err := http.Get("http://" + status + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
		if text, ok := strings.CutPrefix(lines.Text(), "go_memstats_mallocs_total "); ok {
			n, err := strconv.ParseFloat(text, 64)
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	t.Fatal("the daemon does not say how often it allocates memory")
	return 0
}

// waits are system calls by which threads wait for each other and for time, or
// by which the runtime looks after itself: how many there are is chance.
var waits = []string{
	"futex", "epoll_pwait", "nanosleep", "sched_yield", "madvise", "mmap", "munmap", "rt_sigreturn", "rt_sigprocmask", "tgkill", "getpid",
	"clone", "clone3", "sigaltstack", "gettid", "restart_syscall", "timer_settime", "timer_create", "timer_delete", "eventfd2", "prctl", "total",
	"set_robust_list", "rseq", "mprotect", "exit", "clock_nanosleep", "epoll_pwait2",
}

// mayTrace says whether this process may trace that one, which containers and
// kernel.yama.ptrace_scope forbid.
func mayTrace(t *testing.T, pid int) bool {
	t.Helper()
	file := filepath.Join(t.TempDir(), "strace")
	// Where it may, it goes on until it is ended.
	out, err := exec.Command("timeout", "-s", "INT", "1", "strace", "-c", "-o", file, "-p", strconv.Itoa(pid)).CombinedOutput()
	return err == nil || !bytes.Contains(out, []byte("Operation not permitted"))
}

// systemCalls counts those that a process makes while f runs, waits apart.
func systemCalls(t *testing.T, pid int, f func()) float64 {
	t.Helper()
	file := filepath.Join(t.TempDir(), "strace")
	cmd := exec.Command("strace", "-f", "-c", "-o", file, "-p", strconv.Itoa(pid))
	var said bytes.Buffer
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	within(t, 10*time.Second, "strace is attached to every thread", func() error {
		tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
		if err != nil {
			return err
		}
		for _, task := range tasks {
			text, err := os.ReadFile(task)
			if err == nil && bytes.Contains(text, []byte("TracerPid:\t0\n")) {
				return fmt.Errorf("%s is not traced", task)
			}
		}
		return nil
	})
	f()
	if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // it ends by the signal
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatalf("strace: %v: %s", err, said.Bytes())
	}
	calls := 0.0
	for line := range strings.Lines(string(text)) {
		// % time, seconds, usecs/call, calls, errors where there are any, name
		words := strings.Fields(line)
		if len(words) < 5 || slices.Contains(waits, words[len(words)-1]) {
			continue
		}
		if n, err := strconv.Atoi(words[3]); err == nil {
			calls += float64(n)
		}
	}
	if calls == 0 {
		t.Fatalf("strace counted nothing: %s%s", text, said.Bytes())
	}
	return calls
}
