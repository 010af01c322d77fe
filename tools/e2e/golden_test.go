package e2e

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// TestGolden replays the sessions of testdata/golden against real daemons, on
// both stores. A session is lines:
//
//	# …                 a comment; empty lines are ignored, too
//	cluster KEY=VALUE…  first of all: hosts (1), devices of each (1), trackers
//	                    (1), engine (only this store), bare (1: an empty
//	                    database; 0: domain test with classes single and triple,
//	                    and every device takes files), args (flags of the
//	                    tracker, separated by commas)
//	use NAME [KIND]     what follows is said on connection NAME; KIND opens it:
//	                    tracker, tracker2, http1, get1, side1, http2… . At first
//	                    "tracker", to the first tracker, is in use
//	C: …                the client sends the line, and CRLF
//	c: …                the same with a bare LF
//	c" …"               the client sends exactly what the Go string says
//	S: …                the server sends the line, and CRLF
//	s: …                the same with a bare LF
//	S...                any lines, up to one that matches what stands next
//	R: …                as C:, again and again until the S: lines that follow come
//	W: …                the watcher is told ":: …"; what else it is told is
//	                    passed over
//	B: …                the HTTP answer's body is exactly this; B" …" is a Go string
//	closed              the server has closed the connection
//	close               the client closes it
//	put URL BODY        any client stores BODY (may be empty) at URL
//	file N PATH BODY    writes a file below the docroot of host N
//	missing N PATH      there is no such file below the docroot of host N
//	kill N, start N     host N's storage daemon
//
// <name> in what the server says stands for text without blanks and "&"; what
// it was is put in where <name> comes again, also in what the client says.
// <name:REGEXP> says what it looks like, and <_> is never the same. <ip1>,
// <ip2>…, <port>, <getport> and <mgmt> are those of the storage hosts, <tracker>
// that of the first tracker.
//
// An answer "OK …" has exactly the fields that the session says, in any order;
// so have the header lines of an HTTP answer. What follows its empty line is
// read only where B: says what it is.
func TestGolden(t *testing.T) {
	files, err := filepath.Glob("testdata/golden/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no sessions: %v", err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		steps, spec, err := parseGolden(string(text))
		if err != nil {
			t.Errorf("%s:%v", file, err)
			continue
		}
		engines := []string{"sqlite", "postgres"}
		if spec.Engine != "" {
			engines = []string{spec.Engine}
		}
		for _, engine := range engines {
			t.Run(strings.TrimSuffix(filepath.Base(file), ".txt")+"/"+engine, func(t *testing.T) {
				t.Parallel()
				spec := spec
				spec.Engine = engine
				newGolden(t, file, spec).run(steps)
			})
		}
	}
}

// goldenStep is one line of a session.
type goldenStep struct {
	line int
	verb string // "C:", "put", …
	arg  string
}

// errGolden is a mistake in a session, or what the server did otherwise.
func errGolden(line int, format string, args ...any) error {
	return fmt.Errorf("%d: %w", line, fmt.Errorf(format, args...))
}

var goldenVerb = regexp.MustCompile(`^([CcSsRWB]:|[cB]"|S\.\.\.|use|closed?|put|file|missing|kill|start)(?: (.*)|(".*)|$)`)

// parseGolden reads a session and the cluster that it wants.
func parseGolden(text string) ([]goldenStep, Spec, error) {
	spec := Spec{Hosts: 1, Devices: 1, Trackers: 1, Bare: true, GetListen: true}
	var steps []goldenStep
	n := 0
	for line := range strings.Lines(text) {
		n++
		line = strings.TrimSuffix(line, "\n")
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		if rest, ok := strings.CutPrefix(line, "cluster "); ok && len(steps) == 0 {
			for _, f := range strings.Fields(rest) {
				key, value, _ := strings.Cut(f, "=")
				number, _ := strconv.Atoi(value) // 0 where it is none
				switch key {
				case "hosts":
					spec.Hosts = number
				case "devices":
					spec.Devices = number
				case "trackers":
					spec.Trackers = number
				case "engine":
					spec.Engine = value
				case "bare":
					spec.Bare = number != 0
				case "args":
					spec.TrackerArgs = strings.Split(value, ",")
				default:
					return nil, spec, errGolden(n, "cluster has no %q", key)
				}
			}
			continue
		}
		if strings.HasPrefix(line, `c"`) || strings.HasPrefix(line, `B"`) {
			raw, err := strconv.Unquote(line[1:])
			if err != nil {
				return nil, spec, errGolden(n, "%q is no Go string: %w", line[1:], err)
			}
			steps = append(steps, goldenStep{n, line[:2], raw})
			continue
		}
		m := goldenVerb.FindStringSubmatch(line)
		if m == nil {
			return nil, spec, errGolden(n, "what is %q?", line)
		}
		steps = append(steps, goldenStep{n, m[1], m[2]})
	}
	return steps, spec, nil
}

// golden is a session that is being replayed.
type golden struct {
	*Cluster
	t      testing.TB
	file   string
	values map[string]string
	conns  map[string]*goldenConn
	conn   *goldenConn
	pass   []string // begins of names of fields that the session need not name
}

type goldenConn struct {
	net.Conn
	r       *bufio.Reader
	http    bool
	watched []string
}

// newGolden starts the cluster of a session, and connects to its first tracker.
func newGolden(t *testing.T, file string, spec Spec) *golden {
	t.Helper()
	// As MogileFS has it by default: !stats shows it.
	spec.TrackerArgs = append([]string{"--query-jobs", "20"}, spec.TrackerArgs...)
	g := &golden{t: t, Cluster: StartCluster(t, spec), file: file, conns: map[string]*goldenConn{}}
	g.values = map[string]string{
		"port": strconv.Itoa(g.Port), "mgmt": strconv.Itoa(g.Port + 1), "getport": strconv.Itoa(g.Port + 2),
		"tracker": g.Addrs[0],
	}
	for i, h := range g.Hosts {
		g.values[fmt.Sprintf("ip%d", i+1)] = h.IP
	}
	g.open("tracker", "tracker")
	return g
}

func (g *golden) open(name, kind string) {
	g.t.Helper()
	addr := ""
	base := strings.TrimRight(kind, "0123456789")
	n := 1
	if base != kind {
		n, _ = strconv.Atoi(kind[len(base):]) // digits
	}
	switch {
	case base == "tracker" && n <= len(g.Addrs):
		addr = g.Addrs[n-1]
	case n > len(g.Hosts):
	case base == "http":
		addr = net.JoinHostPort(g.Hosts[n-1].IP, strconv.Itoa(g.Port))
	case base == "get":
		addr = net.JoinHostPort(g.Hosts[n-1].IP, strconv.Itoa(g.Port+2))
	case base == "side":
		addr = net.JoinHostPort(g.Hosts[n-1].IP, strconv.Itoa(g.Port+1))
	}
	if addr == "" {
		g.t.Fatalf("%s: there is no %q to connect to", g.file, kind)
	}
	for deadline := time.Now().Add(10 * time.Second); ; {
		probe, err := net.DialTimeout("tcp", addr, time.Second)
		if err == nil {
			probe.Close() // nothing was said
			break
		}
		if time.Now().After(deadline) {
			g.t.Fatalf("%s: %v", g.file, err)
		}
		<-time.After(20 * time.Millisecond) // it is another process, which has just been started
	}
	conn := dial(g.t, addr)
	g.conn = &goldenConn{Conn: conn, r: bufio.NewReader(conn), http: base == "http" || base == "get"}
	g.conns[name] = g.conn
}

func (g *golden) run(steps []goldenStep) {
	g.t.Helper()
	for i := 0; i < len(steps); {
		n, err := g.step(steps[i:])
		if err != nil {
			g.t.Fatalf("%s:%v", g.file, err)
		}
		i += n
	}
}

// step does what steps begins with, and says how many of them that was.
func (g *golden) step(steps []goldenStep) (int, error) {
	s := steps[0]
	arg := g.fill(s.arg)
	words := strings.SplitN(arg, " ", 3)
	if err := g.conn.SetDeadline(time.Now().Add(time.Minute)); err != nil && s.verb != "use" {
		return 0, errGolden(s.line, "connection: %w", err)
	}
	switch s.verb {
	case "use":
		switch conn := g.conns[words[0]]; {
		case len(words) > 1:
			g.open(words[0], words[1])
		case conn == nil:
			return 0, errGolden(s.line, "no connection %q", words[0])
		default:
			g.conn = conn
		}
	case "C:", "c:", `c"`:
		end := map[string]string{"C:": "\r\n", "c:": "\n", `c"`: ""}[s.verb]
		if _, err := io.WriteString(g.conn, arg+end); err != nil {
			return 0, errGolden(s.line, "send: %w", err)
		}
	case "S:", "s:", "S...":
		return g.expect(steps)
	case "R:":
		deadline := time.Now().Add(40 * time.Second)
		for {
			if _, err := io.WriteString(g.conn, arg+"\r\n"); err != nil {
				return 0, errGolden(s.line, "send: %w", err)
			}
			known := maps.Clone(g.values)
			n, err := g.expect(steps[1:])
			if err == nil {
				return n + 1, nil
			}
			g.values = known // another answer says nothing
			if time.Now().After(deadline) || !errors.As(err, new(otherAnswer)) {
				return 0, err
			}
			<-time.After(50 * time.Millisecond) // it is another process: there is nothing to wait for
		}
	case "W:":
		want := g.pattern(s.arg)
		for {
			var line string
			if len(g.conn.watched) > 0 {
				line, g.conn.watched = g.conn.watched[0], g.conn.watched[1:]
			} else {
				var err error
				if line, err = g.conn.r.ReadString('\n'); err != nil {
					return 0, errGolden(s.line, "watcher waits for %q: %w", arg, err)
				}
			}
			if text, ok := strings.CutPrefix(strings.TrimRight(line, "\r\n"), ":: "); ok && g.match(want, text) == nil {
				break
			}
		}
	case "B:", `B"`:
		body := make([]byte, len(arg))
		if _, err := io.ReadFull(g.conn.r, body); err != nil || string(body) != arg {
			return 0, errGolden(s.line, "body is %q (%v), want %q", body, err, arg)
		}
	case "closed":
		rest, err := io.ReadAll(g.conn.r)
		if len(rest) > 0 || errors.Is(err, os.ErrDeadlineExceeded) {
			return 0, errGolden(s.line, "the connection is not closed: %q, %v", rest, err)
		}
	case "close":
		if err := g.conn.Close(); err != nil {
			return 0, errGolden(s.line, "close: %w", err)
		}
	case "put":
		_, body, _ := strings.Cut(arg, " ")
		put(g.t, words[0], []byte(body))
	case "file", "missing", "kill", "start":
		n, err := strconv.Atoi(words[0])
		if err != nil || n < 1 || n > len(g.Hosts) {
			return 0, errGolden(s.line, "no host %q", words[0])
		}
		return 1, g.onHost(s, g.Hosts[n-1], words[1:])
	}
	return 1, nil
}

func (g *golden) onHost(s goldenStep, h *Host, words []string) error {
	switch s.verb {
	case "kill":
		h.Kill()
	case "start":
		h.Start()
	case "missing":
		if _, err := os.Lstat(filepath.Join(h.Docroot, words[0])); !errors.Is(err, os.ErrNotExist) {
			return errGolden(s.line, "%s is there: %v", words[0], err)
		}
	case "file":
		name := filepath.Join(h.Docroot, words[0])
		if err := os.MkdirAll(filepath.Dir(name), 0o777); err != nil {
			return errGolden(s.line, "%w", err)
		}
		if err := os.WriteFile(name, []byte(strings.Join(words[1:], "")), 0o666); err != nil {
			return errGolden(s.line, "%w", err)
		}
	}
	return nil
}

// otherAnswer is an answer that is whole, but not the one that was expected.
type otherAnswer struct{ error }

func (o otherAnswer) Unwrap() error { return o.error }

// expect reads an answer and compares it with the S: lines that steps begins
// with, and says how many these are.
func (g *golden) expect(steps []goldenStep) (int, error) {
	n := 0
	for n < len(steps) && slices.Contains([]string{"S:", "s:", "S..."}, steps[n].verb) {
		n++
	}
	if n == 0 {
		return 0, errGolden(steps[0].line, "no answer is expected")
	}
	if g.conn.http {
		for i, s := range steps[:n] {
			if s.arg == "" { // the end of this answer's header
				n = i + 1
				break
			}
		}
		return n, g.expectHTTP(steps[:n])
	}
	// The lines up to the dot are read even if one is another, so that R: can
	// ask again.
	var first error
	for i := 0; i < n; i++ {
		s := steps[i]
		skip := s.verb == "S..."
		if skip {
			if i++; i == n {
				return 0, errGolden(s.line, "S... needs an S: behind it")
			}
			s = steps[i]
		}
		for {
			line, err := g.readLine()
			if err != nil {
				return 0, errGolden(s.line, "want %q: %w", s.arg, err)
			}
			err = g.compare(s, line)
			if err == nil {
				break
			}
			if skip && line != ".\r\n" {
				continue
			}
			if first == nil {
				first = errGolden(s.line, "%w", otherAnswer{err})
			}
			if single := n == 1 && !skip; single || line == ".\r\n" {
				return 0, first
			}
			break
		}
	}
	return n, first
}

// readLine reads a line of the text protocol; what a watcher is told is kept
// for W:.
func (g *golden) readLine() (string, error) {
	for {
		line, err := g.conn.r.ReadString('\n')
		if err != nil {
			return "", fmt.Errorf("after %q: %w", line, err)
		}
		if !strings.HasPrefix(line, ":: ") {
			return line, nil
		}
		g.conn.watched = append(g.conn.watched, line)
	}
}

// compare compares one line, and remembers what the placeholders stand for.
func (g *golden) compare(s goldenStep, line string) error {
	end := map[string]string{"S:": "\r\n", "s:": "\n"}[s.verb]
	text, ok := strings.CutSuffix(line, end)
	if !ok || end == "\n" && strings.HasSuffix(text, "\r") {
		return fmt.Errorf("%q does not end in %q", line, end)
	}
	wantFields, ok1 := strings.CutPrefix(s.arg, "OK ")
	gotFields, ok2 := strings.CutPrefix(text, "OK ")
	if !ok1 || !ok2 {
		return g.match(g.pattern(s.arg), text)
	}
	got := map[string]string{}
	for f := range strings.SplitSeq(gotFields, "&") {
		name, value, _ := strings.Cut(f, "=")
		if _, twice := got[name]; twice {
			return fmt.Errorf("%q has %q twice", text, name)
		}
		got[name] = value
	}
	for f := range strings.SplitSeq(wantFields, "&") {
		name, value, _ := strings.Cut(f, "=")
		name = g.fill(name)
		have, ok := got[name]
		if !ok {
			return fmt.Errorf("%q lacks %q", text, name)
		}
		if err := g.match(g.pattern(value), have); err != nil {
			return fmt.Errorf("field %s: %w", name, err)
		}
		delete(got, name)
	}
	maps.DeleteFunc(got, func(name, _ string) bool {
		return slices.ContainsFunc(g.pass, func(begin string) bool { return strings.HasPrefix(name, begin) })
	})
	if len(got) > 0 {
		return fmt.Errorf("%q has more fields than %q: %v", text, s.arg, got)
	}
	return nil
}

// expectHTTP reads the head of an HTTP answer and compares it.
func (g *golden) expectHTTP(steps []goldenStep) error {
	var got []string
	for {
		line, err := g.conn.r.ReadString('\n')
		if err != nil {
			return errGolden(steps[0].line, "answer: %w after %q", err, got)
		}
		line, ok := strings.CutSuffix(line, "\r\n")
		if !ok {
			return errGolden(steps[0].line, "%q does not end in CRLF", line)
		}
		if line == "" {
			break
		}
		got = append(got, line)
	}
	all := slices.Clone(got)
	for i, s := range steps {
		if s.arg == "" {
			break
		}
		at := slices.IndexFunc(got, func(line string) bool { return g.match(g.pattern(s.arg), line) == nil })
		if at < 0 || i == 0 && at > 0 {
			return errGolden(s.line, "%q is not among:\n%s", s.arg, strings.Join(all, "\n"))
		}
		got = slices.Delete(got, at, at+1)
	}
	if len(got) > 0 {
		return errGolden(steps[0].line, "the answer says more:\n%s", strings.Join(got, "\n"))
	}
	return nil
}

var placeholder = regexp.MustCompile(`<([a-z_][a-z0-9_]*)(?::([^>]*))?>`)

// fill puts in what placeholders stand for, as far as it is known.
func (g *golden) fill(text string) string {
	return placeholder.ReplaceAllStringFunc(text, func(p string) string {
		if v, ok := g.values[placeholder.FindStringSubmatch(p)[1]]; ok {
			return v
		}
		return p
	})
}

// pattern is the expression that a line with placeholders stands for.
func (g *golden) pattern(text string) *regexp.Regexp {
	var b strings.Builder
	named := map[string]bool{}
	b.WriteString(`^`)
	at := 0
	for _, m := range placeholder.FindAllStringSubmatchIndex(text, -1) {
		b.WriteString(regexp.QuoteMeta(text[at:m[0]]))
		at = m[1]
		name, like := text[m[2]:m[3]], `[^&\s]*`
		if m[4] >= 0 {
			like = text[m[4]:m[5]]
		}
		switch v, known := g.values[name]; {
		case name == "_":
			b.WriteString("(?:" + like + ")")
		case known:
			b.WriteString(regexp.QuoteMeta(v))
		case named[name]:
			b.WriteString(`[^&\s]*`)
		default:
			named[name] = true
			b.WriteString("(?P<" + name + ">" + like + ")")
		}
	}
	b.WriteString(regexp.QuoteMeta(text[at:]) + `$`)
	return regexp.MustCompile(b.String())
}

// match compares text with a pattern, and remembers its placeholders.
func (g *golden) match(want *regexp.Regexp, text string) error {
	m := want.FindStringSubmatch(text)
	if m == nil {
		return fmt.Errorf("%q does not match %s", text, want)
	}
	for i, name := range want.SubexpNames() {
		if name != "" {
			g.values[name] = m[i]
		}
	}
	return nil
}

// The runner itself must see what is wrong.
func TestGoldenComparison(t *testing.T) {
	for _, c := range []struct {
		want, got string
		ok        bool
		values    map[string]string
	}{
		{"S: OK a=1&b=<x>", "OK b=7&a=1\r\n", true, map[string]string{"x": "7"}},
		{"S: OK a=1", "OK a=1&b=2\r\n", false, nil},
		{"S: OK a=1&b=2", "OK a=1\r\n", false, nil},
		{"S: OK a=1", "OK a=1&a=1\r\n", false, nil},
		{"S: OK a=1", "OK a=1\n", false, nil},
		{"s: OK a=1", "OK a=1\r\n", false, nil},
		{"S: OK ", "OK \r\n", true, nil},
		{"S: OK ", "OK\r\n", false, nil},
		{"S: uptime <up:[0-9]+>", "uptime 12\r\n", true, map[string]string{"up": "12"}},
		{"S: uptime <up:[0-9]+>", "uptime x\r\n", false, nil},
		{"S: OK fid=<known>", "OK fid=5\r\n", false, nil},
		{"S: OK fid=<known>", "OK fid=42\r\n", true, nil},
		{"S: ERR no_key no_key", "ERR no_key no_key x\r\n", false, nil},
	} {
		steps, _, err := parseGolden(c.want)
		if err != nil {
			t.Fatal(err)
		}
		g := &golden{values: map[string]string{"known": "42"}}
		err = g.compare(steps[0], c.got)
		if (err == nil) != c.ok {
			t.Errorf("%q against %q: %v", c.want, c.got, err)
		}
		delete(g.values, "known")
		if c.values != nil && !cmp.Equal(g.values, c.values) {
			t.Errorf("%q against %q remembers %v, want %v", c.want, c.got, g.values, c.values)
		}
	}
	for _, bad := range []string{"Z: x", "cluster hosts=2 frob=1", `c"\q"`} {
		if _, _, err := parseGolden(bad); err == nil {
			t.Errorf("%q is accepted", bad)
		}
	}
}
