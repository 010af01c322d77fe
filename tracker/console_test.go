package tracker_test

import (
	"bufio"
	"errors"
	"io"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/mogile/mogile/tracker"
)

func TestConsole(t *testing.T) {
	t.Parallel()
	e := start(t, func(o *tracker.Options) { o.QueryJobs = 3; o.ReplicateJobs = 2; o.DeleteJobs = 1 })
	c := e.dial()
	version := []string{"2.73\r\n"}
	usageWant := []string{"ERROR: usage: !want <count> <jobclass>\r\n"}
	usageTo := []string{"ERROR: usage: !to <jobclass> <message>\r\n"}
	for _, ask := range []struct {
		line string
		want []string
	}{
		{"!version", version},
		{"!version x", version},
		{"!versions", version},
		{"!want", usageWant},
		{"!want fsck 5", usageWant},
		{"!want -1 fsck", usageWant},
		{"!want +1 fsck", usageWant},
		{"!want 5", usageWant},
		{"!want 5x fsck", usageWant},
		{"!want 5 fsck more", usageWant},
		{"!want 5 nix", []string{"ERROR: Invalid class 'nix'.  Valid classes: delete, fsck, job_master, monitor, queryworker, reaper, replicate\r\n"}},
		{"!want 5 Fsck", []string{"ERROR: Invalid class 'Fsck'.  Valid classes: delete, fsck, job_master, monitor, queryworker, reaper, replicate\r\n"}},
		{"!want 5 fsck", []string{"Now desiring 5 children doing 'fsck'.\r\n"}},
		{"!wanted \t 005 \t fsck ", []string{"Now desiring 5 children doing 'fsck'.\r\n"}},
		{"!want 501 reaper", []string{"Now desiring 500 children doing 'reaper'.\r\n"}},
		{"!want 99999999999999999999999 reaper", []string{"Now desiring 500 children doing 'reaper'.\r\n"}},
		{"!want 7 monitor", []string{"Now desiring 7 children doing 'monitor'.\r\n"}},
		{"!want 7 job_master", []string{"Now desiring 7 children doing 'job_master'.\r\n"}},
		{"!to", usageTo},
		{"!to fsck", usageTo},
		{"!to fsck  ", usageTo},
		{"!to nix :shutdown", []string{"Message sent to 0 children.\r\n"}},
		{"!total monitor :wake_up", []string{"Message sent to 1 children.\r\n"}},
		{"!to monitor :refresh_monitor", []string{"Message sent to 1 children.\r\n"}},
		{"!to\tmonitor\t:stay_alive", []string{"Message sent to 1 children.\r\n"}},
		{"!to queryworker :wake_up", []string{"Message sent to 3 children.\r\n"}},
		{"!to queryworker :stay_alive", []string{"Message sent to 3 children.\r\n"}},
		{"!to queryworker what is this?", []string{"Message sent to 3 children.\r\n"}},
		{"!queue", nil},
		{"!queuefoo", nil},
		{"!pend", nil},
		{"!pending", nil},
	} {
		if diff := cmp.Diff(ask.want, c.console(ask.line)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", ask.line, diff)
		}
	}
	jobs := c.jobs()
	if jobs["monitor desired"] != "1" || jobs["job_master desired"] != "1" || jobs["reaper desired"] != "500" || jobs["fsck desired"] != "5" {
		t.Errorf("afterwards jobs are %v", jobs)
	}
	c.console("!want 0 reaper")
	for _, line := range []string{"!help", "!Stats", "!statistics", "!sta", "!SHUTDOWN", "!\x00", "!!"} {
		got := strings.Join(c.console(line), "")
		if !strings.HasPrefix(got, "Mogilefsd admin commands:\n\n\t!version") || !strings.HasSuffix(got, "\n\n") || strings.Contains(got, "\r") {
			t.Errorf("%q answers %q", line, got)
		}
	}
}

// jobs are the lines of !jobs, as scripts read them.
func (c *client) jobs() map[string]string {
	c.t.Helper()
	line := regexp.MustCompile(`^(\w+) (count|desired|pids) (.*)\r\n$`)
	jobs := map[string]string{}
	for _, l := range c.console("!jobs") {
		m := line.FindStringSubmatch(l)
		if m == nil {
			c.t.Fatalf("!jobs has the line %q", l)
		}
		jobs[m[1]+" "+m[2]] = m[3]
	}
	return jobs
}

func TestJobsAreCountedResizedAndReplaced(t *testing.T) {
	t.Parallel()
	e := start(t, func(o *tracker.Options) { o.QueryJobs = 3; o.ReplicateJobs = 2; o.DeleteJobs = 1 })
	c := e.dial()
	counts := func(want map[string]string) func() bool {
		return func() bool {
			jobs := c.jobs()
			for job, n := range want {
				if jobs[job+" count"] != n || n != strconv.Itoa(len(strings.Fields(jobs[job+" pids"]))) {
					return false
				}
			}
			return true
		}
	}
	e.eventually("all workers are there", counts(map[string]string{
		"queryworker": "3", "replicate": "2", "delete": "1", "monitor": "1", "job_master": "1", "fsck": "1", "reaper": "1",
	}))
	var names []string
	for _, l := range c.console("!jobs") {
		if name, _, ok := strings.Cut(l, " count "); ok {
			names = append(names, name)
		}
	}
	if diff := cmp.Diff([]string{"delete", "fsck", "job_master", "monitor", "queryworker", "reaper", "replicate"}, names); diff != "" {
		t.Errorf("jobs (-want +got):\n%s", diff)
	}
	seen := map[string]string{}
	for key, pids := range c.jobs() {
		for pid := range strings.FieldsSeq(pids) {
			if job, ok := strings.CutSuffix(key, " pids"); ok {
				if other := seen[pid]; other != "" {
					t.Errorf("%s and %s both have the number %s", job, other, pid)
				}
				seen[pid] = job
			}
		}
	}

	before := c.jobs()
	for _, job := range []string{"replicate", "queryworker", "monitor"} {
		if got := c.console("!to " + job + " :shutdown"); got[0] != "Message sent to "+before[job+" count"]+" children.\r\n" {
			t.Errorf("answer is %q", got)
		}
		e.eventually("workers of "+job+" are replaced", func() bool {
			now := c.jobs()
			return now[job+" count"] == before[job+" count"] && now[job+" pids"] != before[job+" pids"]
		})
	}
	c.console("!want 4 replicate")
	c.console("!want 1 queryworker")
	e.eventually("workers are resized", counts(map[string]string{"replicate": "4", "queryworker": "1"}))
	c.console("!want 0 queryworker")
	waits := e.dial()
	waits.send("noop\r\n")
	e.eventually("the request is queued", func() bool { return len(c.console("!queue")) == 1 })
	if got := c.console("!queue"); got[0] != "127.0.0.1 noop\r\n" {
		t.Errorf("queue is %q", got)
	}
	if got := c.console("!stats"); got[1] != "pending_queries 1\r\n" || got[3] != "bored_queryworkers 0\r\n" {
		t.Errorf("stats are %q", got)
	}
	c.console("!want 2 queryworker")
	if got := waits.line(); got != "OK " {
		t.Errorf("the queued request is answered %q", got)
	}

	c.console("!want 0 job_master")
	e.eventually("the workers of the queues are gone with the job master", counts(map[string]string{"job_master": "0", "replicate": "0", "delete": "0"}))
	if got := c.jobs(); got["replicate desired"] != "4" || got["job_master desired"] != "0" {
		t.Errorf("jobs are %v", got)
	}
	c.console("!want 1 job_master")
	e.eventually("and back with it", counts(map[string]string{"job_master": "1", "replicate": "4", "delete": "1"}))

	c.console("!want 0 monitor")
	e.eventually("the monitor is gone", counts(map[string]string{"monitor": "0"}))
	c.ok("create_domain domain=without-monitor")
	c.ok("clear_cache")
	c.ok("set_weight host=h1&device=1&weight=5")
	c.console("!want 1 monitor")
	e.eventually("the monitor is back", counts(map[string]string{"monitor": "1"}))
	c.ok("do_monitor_round")
}

func TestStatsAndRecent(t *testing.T) {
	t.Parallel()
	e := startOn(t, newFarm(t, 1, 1), openStore(t))
	e.eventually("it is ready", func() bool { return e.tracker.Ready(t.Context()) == nil })
	c := e.dial()
	e.eventually("the workers are there", func() bool { return c.console("!stats")[3] == "bored_queryworkers 200\r\n" })
	fresh := c.console("!stats")
	for i, want := range []string{"uptime ", "pending_queries 0\r\n", "processing_queries 0\r\n", "bored_queryworkers 200\r\n"} {
		if !strings.HasPrefix(fresh[i], want) {
			t.Errorf("line %d is %q, want %q", i, fresh[i], want)
		}
	}
	if len(fresh) != 4 {
		t.Errorf("a fresh tracker has the counters %q", fresh[4:])
	}
	h := e.farm.hosts[0]
	c.ok("create_domain domain=toast")
	c.ok("create_host host=h1&status=alive&ip=" + h.ip + "&port=" + strconv.Itoa(h.port()))
	c.ok("create_device hostname=h1&devid=1")
	c.store("k", "x", "")
	c.ask("get_paths domain=toast&key=k\x01")
	stat := regexp.MustCompile(`^(\w+) ([0-9.]+)\r\n$`)
	stats := map[string]float64{}
	last := ""
	for i, l := range c.console("!stats") {
		m := stat.FindStringSubmatch(l)
		if m == nil {
			t.Fatalf("!stats has the line %q", l)
		}
		v, err := strconv.ParseFloat(m[2], 64)
		if err != nil {
			t.Error(err)
		}
		stats[m[1]] = v
		if i >= 4 && m[1] < last {
			t.Errorf("counters are not sorted: %s after %s", m[1], last)
		}
		last = m[1]
	}
	if stats["queries"] != 6 {
		t.Errorf("queries are %v, want 6", stats["queries"])
	}
	e.eventually("the queued fid is counted", func() bool {
		return strings.Contains(strings.Join(c.console("!stats"), ""), "\r\nwork_queue_for_replicate 1\r\n")
	})
	recent := c.console("!recent")
	want := regexp.MustCompile(`^127\.0\.0\.1 get_paths domain=toast&key=k\? \d+\.\d{4} \d+\.\d{4}\r\n$`)
	if len(recent) != 6 || !want.MatchString(recent[5]) || !strings.HasPrefix(recent[0], "127.0.0.1 create_domain domain=toast ") {
		t.Errorf("recent are %q", recent)
	}
	families, err := e.tracker.Registry().Gather()
	if err != nil {
		t.Fatal(err)
	}
	found := false
	for _, f := range families {
		found = found || f.GetName() == "mogile_tracker_queries_total"
	}
	if !found {
		t.Error("queries are not counted in the metrics")
	}
}

// follow has c follow the log, and returns a function that waits for a line.
func (c *client) follow() (sees func(pattern string)) {
	c.t.Helper()
	if got := c.console("!watch"); len(got) != 1 || got[0] != "Added you to watcher list.\r\n" {
		c.t.Fatalf("!watch answers %q", got)
	}
	return func(pattern string) {
		c.t.Helper()
		want := regexp.MustCompile("^:: " + pattern + "$")
		if err := c.conn.SetDeadline(time.Now().Add(patience)); err != nil {
			c.t.Fatal(err)
		}
		var seen []string
		for {
			line, err := c.r.ReadString('\n')
			if err != nil {
				c.t.Fatalf("no line %q: %v; there were %q", pattern, err, seen)
			}
			line, whole := strings.CutSuffix(line, "\r\n")
			if !whole {
				c.t.Fatalf("%q does not end with CRLF", line)
			}
			if want.MatchString(line) {
				return
			}
			seen = append(seen, line)
		}
	}
}

// TestWatchersSeeWorkersComeAndGo waits for the messages that scripts wait for.
func TestWatchersSeeWorkersComeAndGo(t *testing.T) {
	t.Parallel()
	e := start(t, func(o *tracker.Options) { o.QueryJobs = 3; o.ReplicateJobs = 2 })
	c := e.dial()
	e.eventually("the workers are there", func() bool {
		jobs := c.jobs()
		return jobs["fsck count"] == "1" && jobs["replicate count"] == "2"
	})
	pids := func(job string) []string { return strings.Fields(c.jobs()[job+" pids"]) }
	fsck, replicate, query := pids("fsck"), pids("replicate"), pids("queryworker")
	w := e.dial()
	sees := w.follow()

	c.console("!want 3 fsck")
	sees(`Job fsck has only 1, wants 3, making 2\.`)
	c.console("!want 1 fsck")
	sees(`Reducing fsck headcount by 1\.`)
	sees(`Child \d+ \(fsck\) died: 0 \(expected\)`)
	c.console("!want 2 queryworker")
	sees(`Reducing queryworker headcount by 1\.`)
	sees(`Child (` + strings.Join(query, "|") + `) \(queryworker\) died: 0 \(expected\)`)
	c.console("!want 4 queryworker")
	sees(`Job queryworker has only 2, wants 4, making 2\.`)
	c.console("!to queryworker :shutdown")
	sees(`Job queryworker has only 0, wants 4, making 4\.`)
	c.console("!to fsck :shutdown")
	sees(`Child ` + fsck[0] + ` \(fsck\) died: 0 \(expected\)`)
	sees(`Job fsck has only 0, wants 1, making 1\.`)
	c.console("!to replicate  hurry up")
	for _, pid := range replicate {
		sees(`\[replicate\(` + pid + `\)\] Unrecognized command from parent: hurry up`)
	}
	c.console("!want 0 job_master")
	sees(`Child ` + replicate[1] + ` \(replicate\) died: 0 \(expected\)`)
	c.console("!want 1 job_master")
	sees(`Job job_master has only 0, wants 1, making 1\.`)
	sees(`Job replicate has only 0, wants 2, making 2\.`)
	if strings.Contains(e.log.String(), "has only") {
		t.Errorf("the log has sentences where it should have fields:\n%s", e.log)
	}
}

func TestWatchersSeeTrouble(t *testing.T) {
	t.Parallel()
	e, s := startShaky(t, func(o *tracker.Options) { o.RefreshInterval = 50 * time.Millisecond; o.QueryJobs = 1 })
	c := e.dial()
	e.eventually("the worker is there", func() bool { return c.jobs()["queryworker count"] == "1" })
	jobs := c.jobs()
	w := e.dial()
	sees := w.follow()
	s.away.Store(true)
	sees(`\[monitor\(` + jobs["monitor pids"] + `\)\] Cannot connect to master database!`)
	c.refused("get_paths domain=toast&key=k", "failure")
	sees(`\[queryworker\(` + jobs["queryworker pids"] + `\)\] Error running command 'get_paths': .+`)
	s.away.Store(false)
	sees(`\[monitor\(\d+\)\] database answers again`)
	h := e.farm.hosts[1]
	h.mu.Lock()
	delete(h.devs, "dev3")
	h.mu.Unlock()
	c.ok("clear_cache")
	url := "http://" + h.ip + ":" + strconv.Itoa(h.port()) + "/dev3/usage"
	sees(`\[monitor\(` + jobs["monitor pids"] + `\)\] Port ` + strconv.Itoa(h.port()) + ` not listening on 127\.0\.0\.2 \(` + regexp.QuoteMeta(url) + `\)\?  Error was: .*404.*`)
}

func TestWatch(t *testing.T) {
	t.Parallel()
	e := start(t)
	c, other := e.dial(), e.dial()
	if got := c.console("!watch"); got[0] != "Added you to watcher list.\r\n" {
		t.Errorf("answer is %q", got)
	}
	other.ok("set_server_setting key=memcache_ttl&value=1")
	if got := c.line(); got != ":: memcached is not used: the setting is stored for other trackers only setting=memcache_ttl" {
		t.Errorf("watcher sees %q", got)
	}
	if got := c.ask("noop"); got != "OK " {
		t.Errorf("a watching console is answered %q", got)
	}
	if got := c.console("!watch"); got[0] != "Removed you from watcher list.\r\n" {
		t.Errorf("answer is %q", got)
	}
	other.ok("set_server_setting key=memcache_ttl&value=2")
	if got := c.ask("noop"); got != "OK " {
		t.Errorf("after watching: %q", got)
	}
	c.console("!watch")
	c.close() // while it watches
	other.ok("set_server_setting key=memcache_ttl&value=3")
}

func TestShutdownByConsole(t *testing.T) {
	t.Parallel()
	e := start(t)
	c, idle := e.dial(), e.dial()
	c.send("noop\r\n!shutdown\r\nnoop\r\n")
	rest, err := io.ReadAll(bufio.NewReader(c.conn))
	if err != nil || string(rest) != "OK \r\n" {
		t.Errorf("answers are %q, %v", rest, err)
	}
	select {
	case err := <-e.ended:
		e.ended <- err
		if err != nil {
			t.Errorf("tracker ended with %v", err)
		}
	case <-time.After(patience):
		t.Fatal("tracker does not end")
	}
	if _, err := idle.conn.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("the other connection got %v", err)
	}
	if err := e.tracker.Ready(t.Context()); err == nil {
		t.Error("a tracker that has stopped says that it is ready")
	}
}
