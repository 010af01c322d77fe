package tracker_test

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/tracker"
)

// TestFileIsCopiedServedAndGone has the workers at work too.
func TestFileIsCopiedServedAndGone(t *testing.T) {
	t.Parallel()
	e := start(t, func(o *tracker.Options) { o.ReplicateJobs = 2; o.DeleteJobs = 1 })
	c := e.dial()
	s := c.store("k", "hello", "")
	e.eventually("there are two copies", func() bool { return c.ok("get_paths domain=toast&key=k").Number("paths") == 2 })
	paths := c.ok("get_paths domain=toast&key=k")
	for i := 1; i <= 2; i++ {
		res, err := (&http.Client{Timeout: 30 * time.Second}).Get(paths.Get(fmt.Sprintf("path%d", i)))
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if res.StatusCode != http.StatusOK || res.ContentLength != 5 {
			t.Errorf("copy %d: %s, %d bytes", i, res.Status, res.ContentLength)
		}
	}
	http.DefaultClient.CloseIdleConnections()
	e.eventually("work is counted", func() bool {
		return strings.Contains(strings.Join(c.console("!stats"), ""), "work_sent_to_replicate 1\r\n")
	})
	c.ok("delete domain=toast&key=k")
	e.eventually("the copies are gone", func() bool {
		for _, h := range e.farm.hosts {
			h.mu.Lock()
			left := 0
			for path := range h.files {
				if strings.HasSuffix(path, ".fid") {
					left++
				}
			}
			h.mu.Unlock()
			if left > 0 {
				return false
			}
		}
		d := e.debug(s.fid)
		return d.File == nil && len(d.Devices) == 0 && len(d.Queues) == 0
	})
}

// TestAnyCommandWithAnyArguments sends every command with arguments that make
// no sense: each is answered by one line, and none meets a bug.
func TestAnyCommandWithAnyArguments(t *testing.T) {
	const rounds = 10
	t.Parallel()
	e := start(t, func(o *tracker.Options) { o.QueryTimeout = time.Second })
	c := e.dial()
	c.store("k", "x", "")
	commands := strings.Fields(`clear_cache create_class create_close create_device create_domain create_host create_open delete
		delete_class delete_domain delete_host edit_file file_debug file_info get_devices get_domains get_hosts
		get_paths list_fids list_keys noop rename replicate_now server_setting server_settings
		set_server_setting set_state set_weight test update_class update_host updateclass`)
	names := strings.Fields(`domain key class fid devid path size checksum checksumverify multi_dest debug_profile zone pathcount noverify
		devices prefix after limit from to from_key to_key mindevcount replpolicy hashtype update host hostname hostid ip port getport
		altip altmask status state device weight value callid crash`)
	values := []string{
		"", "0", "1", "-1", "k", "toast", "default", "h1", "alive", "dead", "junk", "1e9", "0x10", " 7 ", "99999999999999999999999", "-99999999999999999999999",
		"\x00", "\xff\xfe", "a\r\nb", "%", "=", "&", "☃", "MD5:zz", "MultipleHosts(", "127.0.0.1", "::1", "10.0.0.0/99", strings.Repeat("x", 300), "9223372036854775807", "4294967296", "32768",
	}
	addresses := []string{"", "127.0.0.1", "127.0.0.77", "a/b", "\x00", "\xff"} // nothing that would be looked for on a network
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	for range rounds {
		for _, command := range commands {
			var args protocol.Args
			for _, name := range names {
				from := values
				if strings.HasSuffix(name, "ip") {
					from = addresses
				}
				if rng.IntN(3) > 0 {
					args.Add(name, from[rng.IntN(len(from))])
				}
			}
			line := command + " " + args.String()
			reply := c.ask(line)
			if !strings.HasPrefix(reply, "OK ") && !strings.HasPrefix(reply, "ERR ") {
				t.Errorf("%s\nanswers %q", line, reply)
			}
			if got := c.ask("noop callid=in-step"); got != "OK callid=in-step" {
				t.Fatalf("%s\nanswers a second line: %q", line, got)
			}
		}
	}
	if log := e.log.String(); strings.Contains(log, "query failed") {
		t.Errorf("a command took bad arguments for a failure of its own:\n%s", log)
	}
}
