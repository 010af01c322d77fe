package tracker_test

import (
	"encoding/json"
	"fmt"

	"regexp"
	"slices"

	"strings"
	"testing"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/tracker"
)

// forged is what an attacker would like to stand on a line, or in a request, of
// its own.
const forged = "x\r\nERR forged y\r\n:: forged\r\nDELETE /dev1/forged HTTP/1.1\r\nHost: x\r\n\r\n\x00\x1b[2J"

// TestNothingThatClientsSayBecomesALineOfItsOwn gives every argument of every
// command line ends, and looks at all that they could get into: replies, the
// console, the log, those who follow it, and what storage daemons are sent.
func TestNothingThatClientsSayBecomesALineOfItsOwn(t *testing.T) {
	t.Parallel()
	e := start(t, func(o *tracker.Options) { o.ReplicateJobs = 1; o.DeleteJobs = 1 })
	c, w := e.dial(), e.dial()
	for _, h := range e.farm.hosts {
		h.records.Store(true)
	}
	w.follow()

	key := protocol.Escape(forged[:strings.IndexByte(forged, 0)])
	s := c.open("domain=toast&key=" + key)
	put(t, s.path, "hello")
	closing := s.close("toast", forged[:strings.IndexByte(forged, 0)], "")
	bad := protocol.Escape(forged)
	asks := []string{
		strings.Replace(closing, "path=", "path="+bad, 1), // a path that is none
		closing,
		"list_keys domain=toast",
		"get_paths domain=toast&key=" + key,
		"file_info domain=toast&key=" + key,
		"file_debug domain=toast&key=" + key,
		"list_fids from=0&to=100",
		"rename domain=toast&from_key=" + key + "&to_key=" + key + "2",
		"delete domain=toast&key=" + key + "2",
		"create_class domain=toast&mindevcount=2&class=" + bad,
		"create_class domain=toast&mindevcount=2&class=c&replpolicy=" + bad,
		"clear_cache " + bad + "=" + bad,
		"server_settings",
		"get_hosts", "get_devices", "get_domains",
		"!to queryworker " + "x\ry\x00\x1b[2J", "!want 5 x\ry", "!queue", "!recent", "!x\ry",
		"noop " + strings.Repeat("a&", 20_000),
	}
	names := []string{
		"domain", "key", "from_key", "to_key", "prefix", "after", "class", "host", "hostname", "ip", "altip", "altmask", "port", "http_port",
		"device", "devid", "state", "status", "weight", "value", "path", "fid", "checksum", "checksumverify", "replpolicy", "hashtype",
		"mindevcount", "size", "callid", "from", "to", "limit", "zone", "new_name",
	}
	for _, command := range []string{
		"create_open", "create_close", "get_paths", "file_info", "file_debug", "list_keys", "list_fids", "delete", "rename", "updateclass", "edit_file",
		"create_domain", "delete_domain", "create_class", "update_class", "delete_class", "create_host", "update_host", "delete_host", "create_device",
		"set_state", "set_weight", "set_server_setting", "server_setting", "noop", "test", "no_such_command",
	} {
		var all []string
		for _, name := range names {
			all = append(all, name+"="+bad)
			asks = append(asks, command+" domain=toast&key=k&host=h1&device=1&ip=127.0.0.1&port=1&"+name+"="+bad)
		}
		asks = append(asks, command+" "+strings.Join(all, "&"), command+" "+forgedRaw(), command+forgedRaw())
	}
	for i, ask := range asks {
		next := fmt.Sprintf("next%d", i)
		c.send(ask + "\r\nnoop callid=" + next + "\r\n")
		if strings.HasPrefix(ask, "!") {
			for l := c.raw(); l != ".\r\n"; l = c.raw() {
				if strings.ContainsAny(strings.TrimRight(l, "\r\n"), "\r\n\x00\x1b") {
					t.Errorf("%q answers the line %q", ask, l)
				}
			}
		} else if l := c.raw(); !regexp.MustCompile(`^(OK [!-~]*|ERR \w+ [!-~]+( [!-~]*)?)\r\n$`).MatchString(l) {
			t.Errorf("%.200q answers %q", ask, l)
		}
		if got := c.line(); got != "OK callid="+next {
			t.Fatalf("after %.200q the next request is answered %q", ask, got)
		}
	}
	c.ok("clear_cache") // the monitor has seen what came of all that

	w.send("!watch\r\n")
	for l := w.raw(); l != ".\r\n"; l = w.raw() {
		if !strings.HasPrefix(l, ":: ") && !strings.HasPrefix(l, "Removed you") || strings.HasPrefix(l, ":: forged") || strings.ContainsAny(strings.TrimSuffix(l, "\r\n"), "\r\n\x00\x1b") {
			t.Errorf("watchers see %q", l)
		}
	}
	for l := range strings.Lines(e.log.String()) {
		if !json.Valid([]byte(l)) {
			t.Errorf("the log has %q", l)
		}
	}
	well := regexp.MustCompile(`^(watch|[A-Z]+ /dev\d+/(usage|test-write/.*|[0-9/]+(\.fid)?)|size /dev\d+/[0-9/]+\.fid|[A-Z0-9-]+ /dev\d+/[0-9/]+\.fid \w+)$`)
	for _, h := range e.farm.hosts {
		h.mu.Lock()
		if len(h.heard) == 0 {
			t.Errorf("%s was sent nothing", h.ip)
		}
		for _, l := range slices.Compact(slices.Sorted(slices.Values(h.heard))) {
			if !well.MatchString(l) {
				t.Errorf("%s was sent %q", h.ip, l)
			}
		}
		h.mu.Unlock()
	}
}

// forgedRaw is forged without what ends a line: bytes as a client may send them
// without escaping.
func forgedRaw() string { return strings.ReplaceAll(forged, "\n", "") }

// raw reads one line, whatever it ends with.
func (c *client) raw() string {
	c.t.Helper()
	l, err := c.r.ReadString('\n')
	if err != nil {
		c.t.Fatalf("after %q: %v", l, err)
	}
	return l
}
