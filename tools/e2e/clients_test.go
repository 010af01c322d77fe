package e2e

import (
	"bufio"
	"bytes"
	"context"
	"crypto/md5"
	"database/sql"
	"encoding/base64"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"math"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/schema/postgres/pgtest"
)

// TestClients plays the clients of MogileFS that people run: each subtest says
// on the wire what that client says, and reads the answers as strictly. They
// share one cluster, as they do in life.
func TestClients(t *testing.T) {
	t.Parallel()
	engines(t, func(t *testing.T, engine string) {
		playClients(t, StartCluster(t, Spec{DSN: mogileDSN(t, engine)}), 2)
	})
}

// mogileDSN names a new database as MogileFS's configuration names it.
func mogileDSN(t *testing.T, engine string) string {
	t.Helper()
	if engine != "postgres" {
		return "DBI:SQLite:" + filepath.Join(t.TempDir(), "namespace.db")
	}
	u, err := url.Parse(pgtest.DSN(t))
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("DBI:Pg:dbname=%s;host=%s;port=%s;user=%s;sslmode=disable", strings.TrimPrefix(u.Path, "/"), u.Hostname(), u.Port(), u.User.Username())
}

// playClients plays all clients on one cluster, where a file of the default class
// has its place on usual devices.
func playClients(t *testing.T, c *Cluster, usual int) {
	c.Do("update_host", "host=host1", "altip=127.0.1.1", "altmask=10.99.0.0/16")
	t.Run("clients", func(t *testing.T) {
		for _, client := range []struct {
			name string
			play func(*player)
		}{
			{"PerlClient", playPerl},
			{"PerlLargeFile", playPerlLargeFile},
			{"PerlForeachKey", playPerlForeachKey},
			{"PerlAdmin", playPerlAdmin},
			{"MogadmCheck", playMogadmCheck},
			{"Mogstats", playMogstats},
			{"Moji", playMoji},
			{"MojiErrors", playMojiErrors},
			{"Pymogilefs", playPymogilefs},
			{"RubyMogilefsClient", playRuby},
			{"PeclAndPHP", playPHP},
			{"LuaRestyMogilefs", playLua},
			{"NginxMogilefsModule", playNginx},
			{"Mackerel", playMackerel},
			{"PrometheusExporter", playExporter},
			{"LogTailer", playLogTailer},
			{"FilePaths", playFilePaths},
			{"ShellUser", playShellUser},
			{"LateAnswers", playLateAnswers},
		} {
			t.Run(client.name, func(t *testing.T) {
				t.Parallel()
				mine := *c
				mine.t = t
				client.play(&player{Cluster: &mine, t: t, name: client.name, usual: usual})
			})
		}
	})
}

// player is one client of the cluster.
type player struct {
	*Cluster
	t     *testing.T
	name  string
	usual int // devices that have a file of the default class
}

// session replays a session in the format of TestGolden on connections of its
// own. <domain> is the domain's name.
func (p *player) session(text string) {
	p.t.Helper()
	steps, _, err := parseGolden(text)
	if err != nil {
		p.t.Fatalf("session of %s: %v", p.name, err)
	}
	g := &golden{t: p.t, Cluster: p.Cluster, file: p.name, conns: map[string]*goldenConn{}}
	g.values = map[string]string{"domain": domain, "port": strconv.Itoa(p.Port), "getport": strconv.Itoa(p.Port + 2), "tracker": p.Addrs[0]}
	for i, h := range p.Hosts {
		g.values[fmt.Sprintf("ip%d", i+1)] = h.IP
	}
	g.open("tracker", "tracker")
	g.run(steps)
}

// caller is a connection to a tracker that takes answers as the strictest
// clients do.
type caller struct {
	t    testing.TB
	conn net.Conn
	r    *bufio.Reader
}

func (p *player) call() *caller {
	p.t.Helper()
	conn := dial(p.t, p.Addrs[0])
	return &caller{t: p.t, conn: conn, r: bufio.NewReader(conn)}
}

// mojiCodes are the codes that moji looks for anywhere in the text of a refusal.
var mojiCodes = []string{"unknown_key", "unknown_command", "key_exists", "unreg_class", "class_not_found", "none_match"}

var (
	okLine  = regexp.MustCompile(`^OK \S*\r\n$`)
	errLine = regexp.MustCompile(`^ERR ([A-Za-z0-9_]+) (\S+)\r\n$`)
)

// ask sends a line, and returns the answer without its CRLF.
func (c *caller) ask(format string, args ...any) string {
	c.t.Helper()
	if _, err := fmt.Fprintf(c.conn, format+"\r\n", args...); err != nil {
		c.t.Fatal(err)
	}
	return c.answer(fmt.Sprintf(format, args...))
}

// answer reads one answer: CRLF at its end, a blank after OK, a code and a text
// after ERR, and no other code in what is said of it.
func (c *caller) answer(request string) string {
	c.t.Helper()
	line, err := c.r.ReadString('\n')
	if err != nil {
		c.t.Fatalf("%s: %q, %v", request, line, err)
	}
	if m := errLine.FindStringSubmatch(line); m != nil {
		for _, code := range mojiCodes {
			if code != m[1] && strings.Contains(protocol.Unescape(line), code) {
				c.t.Errorf("%s: %q would be taken for %s", request, line, code)
			}
		}
	} else if !okLine.MatchString(line) {
		c.t.Errorf("%s: %q is neither OK nor ERR as clients read them", request, line)
	}
	return strings.TrimSuffix(line, "\r\n")
}

// ok asks, and fails the test unless the answer is a success.
func (c *caller) ok(format string, args ...any) protocol.Args {
	c.t.Helper()
	line := c.ask(format, args...)
	fields, found := strings.CutPrefix(line, "OK ")
	if !found {
		c.t.Fatalf(format+": %s", append(args, line)...)
	}
	return protocol.ParseArgs(fields)
}

// refused asks, and fails the test unless the answer is a refusal of that code.
func (c *caller) refused(code, format string, args ...any) {
	c.t.Helper()
	if line := c.ask(format, args...); !strings.HasPrefix(line, "ERR "+code+" ") {
		c.t.Errorf(format+": %s, want %s", append(args, line, code)...)
	}
}

// destination is where an upload may go.
type destination struct{ devid, path string }

// destinations reads a create_open's answer as clients do that ask for several.
func destinations(t testing.TB, fields protocol.Args, least int) []destination {
	t.Helper()
	var all []destination
	for n := range fields.Number("dev_count") {
		i := strconv.FormatInt(n+1, 10)
		all = append(all, destination{fields.Get("devid_" + i), fields.Get("path_" + i)})
	}
	if len(all) < least {
		t.Fatalf("%d destinations, want %d: %s", len(all), least, fields)
	}
	return all
}

// httpConn is a connection to a storage daemon on which every byte is chosen.
type httpConn struct {
	t    testing.TB
	conn net.Conn
	r    *bufio.Reader
}

func dialHTTP(t testing.TB, url string) *httpConn {
	t.Helper()
	conn := dialURL(t, url)
	return &httpConn{t: t, conn: conn, r: bufio.NewReader(conn)}
}

// send sends a request as it stands, and reads the answer and its body.
func (h *httpConn) send(request string) (*http.Response, string) {
	h.t.Helper()
	if _, err := io.WriteString(h.conn, request); err != nil {
		h.t.Fatal(err)
	}
	method, _, _ := strings.Cut(request, " ")
	resp, err := http.ReadResponse(h.r, &http.Request{Method: method})
	if err != nil {
		h.t.Fatalf("%.80q: %v", request, err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		h.t.Fatalf("%.80q: %v", request, err)
	}
	return resp, string(body)
}

// done fails the test unless the request is answered with a 2xx.
func (h *httpConn) done(request string) {
	h.t.Helper()
	if resp, _ := h.send(request); resp.StatusCode/100 != 2 {
		h.t.Fatalf("%.80q: %s", request, resp.Status)
	}
}

// status is the status of a URL's answer to GET.
func status(t testing.TB, url string) int {
	t.Helper()
	resp, err := httpClient.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	return resp.StatusCode
}

// playPerl stores files as MogileFS::Client 1.16 does.
func playPerl(p *player) {
	const body = "what a Perl program stores"
	tr := p.call()

	// The class is empty; the first destination breaks off, the next one is used.
	open := tr.ok("create_open domain=%s&class=&key=perl/a&fid=0&multi_dest=1", domain)
	dests := destinations(p.t, open, 2)
	first := dialURL(p.t, dests[0].path)
	fmt.Fprintf(first, "PUT %s HTTP/1.0\r\nContent-length: %d\r\n\r\n%s", pathOf(dests[0].path), len(body), body[:7])
	if err := first.Close(); err != nil {
		p.t.Fatal(err)
	}
	second := dialHTTP(p.t, dests[1].path)
	second.done(fmt.Sprintf("PUT %s HTTP/1.0\r\nContent-length: %d\r\n\r\n%s", pathOf(dests[1].path), len(body), body))
	if rest, err := io.ReadAll(second.r); err != nil || len(rest) > 0 {
		p.t.Errorf("a PUT of HTTP/1.0 ends with %q, %v; want the connection closed", rest, err)
	}
	if got := status(p.t, dests[0].path); got != http.StatusNotFound {
		p.t.Errorf("the upload that broke off answers %d", got)
	}
	tr.ok("create_close fid=%s&devid=%s&domain=%s&size=%d&key=perl/a&path=%s",
		open.Get("fid"), dests[1].devid, domain, len(body), protocol.Escape(dests[1].path))
	if got := tr.ok("file_info domain=%s&key=perl/a", domain); got.Get("class") != "default" || got.Get("length") != strconv.Itoa(len(body)) {
		p.t.Errorf("file_info: %s", got)
	}
	p.CheckFile("perl/a", p.WaitPolicy("perl/a", p.usual), []byte(body))

	// It is read with HTTP/1.0, too.
	paths := tr.ok("get_paths domain=%s&key=perl/a&noverify=0&zone=&pathcount=2", domain)
	for _, path := range []string{paths.Get("path1"), paths.Get("path2")} {
		if resp, got := dialHTTP(p.t, path).send("GET " + pathOf(path) + " HTTP/1.0\r\n\r\n"); resp.StatusCode != 200 || got != body {
			p.t.Errorf("%s: %s, %q", path, resp.Status, got)
		}
	}

	// What is not there is refused by a name that delete and rename take for
	// success.
	tr.ok("rename domain=%s&from_key=perl/a&to_key=perl/b", domain)
	tr.refused("unknown_key", "rename domain=%s&from_key=perl/a&to_key=perl/c", domain)
	tr.ok("delete domain=%s&key=perl/b", domain)
	tr.refused("unknown_key", "delete domain=%s&key=perl/b", domain)

	// An upload that the program gives up is closed without a key.
	open = tr.ok("create_open domain=%s&class=single&key=perl/c&fid=0&multi_dest=1", domain)
	d := destinations(p.t, open, 1)[0]
	dialHTTP(p.t, d.path).done("PUT " + pathOf(d.path) + " HTTP/1.0\r\nContent-length: 1\r\n\r\nx")
	tr.ok("create_close fid=%s&devid=%s&domain=%s&size=&key=&path=%s", open.Get("fid"), d.devid, domain, protocol.Escape(d.path))
	within(p.t, 30*time.Second, "the upload that was given up is gone", func() error {
		if got := status(p.t, d.path); got != http.StatusNotFound {
			return fmt.Errorf("it answers %d", got)
		}
		return nil
	})
}

// playPerlLargeFile writes a file in pieces, and reads it so, as
// MogileFS::Client does with largefile; then it edits it.
func playPerlLargeFile(p *player) {
	tr := p.call()
	open := tr.ok("create_open domain=%s&class=single&key=perl/large&fid=0&multi_dest=1", domain)
	d := destinations(p.t, open, 1)[0]
	path := pathOf(d.path)

	// First of all an empty PUT that does not say how long it is. It empties
	// what an attempt before left.
	for _, first := range []string{
		"PUT " + path + " HTTP/1.0\r\nContent-length: 9\r\n\r\nleft over",
		"PUT " + path + " HTTP/1.0\r\n\r\n",
		"PUT " + path + " HTTP/1.0\r\nContent-length: 9\r\n\r\nleft over",
		"PUT " + path + " HTTP/1.1\r\nTE: deflate,gzip;q=0.3\r\nConnection: TE, close\r\nHost: x\r\nUser-Agent: libwww-perl/6.68\r\n\r\n",
	} {
		h := dialHTTP(p.t, d.path)
		h.done(first)
		if rest, err := io.ReadAll(h.r); err != nil || len(rest) > 0 {
			p.t.Errorf("%q ends with %q, %v; want the connection closed", first, rest, err)
		}
	}
	if got, err := fetch(d.path); err != nil || len(got) != 0 {
		p.t.Fatalf("after the empty PUT: %q, %v", got, err)
	}
	pieces := []struct {
		at   int
		text string
	}{{0, "0123456789"}, {10, "abcdefghij"}, {20, "KLMNO"}, {5, "-----"}}
	h := dialHTTP(p.t, d.path)
	for _, piece := range pieces {
		h.done(fmt.Sprintf("PUT %s HTTP/1.1\r\nHost: x\r\nContent-Range: bytes %d-%d/*\r\nContent-Length: %d\r\n\r\n%s",
			path, piece.at, piece.at+len(piece.text)-1, len(piece.text), piece.text))
	}
	tr.ok("create_close fid=%s&devid=%s&domain=%s&size=25&key=perl/large&path=%s", open.Get("fid"), d.devid, domain, protocol.Escape(d.path))

	// It is read in pieces until there are no more.
	read := func(url string, piece int) string {
		var all strings.Builder
		h := dialHTTP(p.t, url)
		for {
			at := all.Len()
			resp, body := h.send(fmt.Sprintf("GET %s HTTP/1.1\r\nHost: x\r\nRange: bytes=%d-%d\r\n\r\n", pathOf(url), at, at+piece-1))
			switch {
			case resp.StatusCode == http.StatusRequestedRangeNotSatisfiable:
				if got := resp.Header.Get("Content-Range"); got != fmt.Sprintf("bytes */%d", all.Len()) {
					p.t.Errorf("Content-Range of the end: %q", got)
				}
				return all.String()
			case resp.StatusCode != http.StatusPartialContent || body == "" || all.Len() > 1000:
				p.t.Fatalf("%s at %d: %s, %q", url, at, resp.Status, body)
			}
			all.WriteString(body)
		}
	}
	const want = "01234-----abcdefghijKLMNO"
	get := tr.ok("get_paths domain=%s&key=perl/large&noverify=1&zone=", domain).Get("path1")
	for _, piece := range []int{10, 25, 1000, 5} {
		if got := read(get, piece); got != want {
			p.t.Errorf("in pieces of %d: %q, want %q", piece, got, want)
		}
	}

	// The copy that is edited in place serves the edit, at its own length.
	h.done("PUT " + path + " HTTP/1.1\r\nHost: x\r\nContent-Range: bytes 20-24/*\r\nContent-Length: 5\r\n\r\nklmno")
	if got := read(get, 7); got != "01234-----abcdefghijklmno" {
		p.t.Errorf("edited: %q", got)
	}
	// And it is copied as it is now.
	tr.ok("updateclass domain=%s&key=perl/large&class=triple", domain)
	p.CheckFile("perl/large", p.WaitPolicy("perl/large", 3), []byte("01234-----abcdefghijklmno"))

	// edit_file, which no storage daemon ever could, is refused cleanly.
	tr.refused("failure", "edit_file domain=%s&key=perl/large", domain)
}

// playPerlForeachKey pages through more keys than one answer has.
func playPerlForeachKey(p *player) {
	const many = "perlkeys"
	tr := p.call()
	tr.ok("create_domain domain=%s", many)
	db := p.database()
	var dmid int
	if err := db.QueryRow("SELECT dmid FROM domain WHERE namespace = '" + many + "'").Scan(&dmid); err != nil {
		p.t.Fatal(err)
	}
	var want []string
	var rows []string
	for i := range 2001 {
		key := fmt.Sprintf("k/%c%04d", "Zaz_"[i%4], i) // the order is that of bytes
		want = append(want, key)
		rows = append(rows, fmt.Sprintf("(%d, %d, '%s', %d, 0, 0)", 900_000_000+i, dmid, key, i))
	}
	if _, err := db.Exec("INSERT INTO file (fid, dmid, dkey, length, classid, devcount) VALUES " + strings.Join(rows, ",")); err != nil {
		p.t.Fatal(err)
	}
	slices.Sort(want)
	var got []string
	for after := ""; ; {
		// none_match is an end as well as a short page; there are exactly 1, 1000, 1000 here.
		answer := tr.ok("list_keys domain=%s&prefix=k/&after=%s&limit=1000", many, protocol.Escape(after))
		n := answer.Number("key_count")
		for i := range n {
			got = append(got, answer.Get(fmt.Sprintf("key_%d", i+1)))
		}
		after = got[len(got)-1]
		if answer.Get("next_after") != after {
			p.t.Errorf("next_after is %q, the last key %q", answer.Get("next_after"), after)
		}
		if n < 1000 {
			break
		}
	}
	if d := cmp.Diff(want, got); d != "" {
		p.t.Errorf("keys (-want +got):\n%s", d)
	}
	tr.refused("none_match", "list_keys domain=%s&prefix=k/&after=%s&limit=1000", many, protocol.Escape(want[len(want)-1]))
}

// playPerlAdmin has MogileFS::Admin's verbs.
func playPerlAdmin(p *player) {
	p.session(`
C: create_domain domain=perladmin
S: OK domain=perladmin
C: create_class domain=perladmin&class=c&mindevcount=2
S: OK class=c&mindevcount=2&domain=perladmin
C: update_class domain=perladmin&class=c&mindevcount=3&replpolicy=MultipleHosts%28%29
S: OK class=c&mindevcount=3&domain=perladmin
C: create_open domain=perladmin&class=&key=x&fid=0&multi_dest=1
S: OK fid=<fid:\d+>&dev_count=3&devid_1=<dev>&path_1=<path>&devid_2=<_>&path_2=<_>&devid_3=<_>&path_3=<_>
C: create_close domain=perladmin&key=&fid=<fid>&devid=<dev>&path=<path>
S: OK 
C: delete_class domain=perladmin&class=c
S: OK domain=perladmin&class=c
C: delete_domain domain=perladmin
S: OK domain=perladmin
C: clear_cache all=1
S: OK all=1
C: clear_cache
S: OK 
C: sleep duration=1
S: OK 
C: set_server_setting key=memcache_ttl&value=77
S: OK 
C: server_setting key=memcache_ttl
S: OK key=memcache_ttl&value=77
C: set_server_setting key=memcache_ttl&value=
S: OK 
C: server_setting key=schema_version
S: OK key=schema_version&value=<_:1[78]>
C: do_monitor_round
S: OK 
`)
	answer := p.call().ok("server_settings")
	shown := map[string]string{}
	for n := range answer.Number("key_count") {
		shown[answer.Get(fmt.Sprintf("key_%d", n+1))] = answer.Get(fmt.Sprintf("value_%d", n+1))
	}
	if v, err := strconv.Atoi(shown["schema_version"]); err != nil || v < 17 {
		p.t.Errorf("server_settings: %v", shown)
	}
}

// playMogadmCheck asks what "mogadm check" does.
func playMogadmCheck(p *player) {
	tr := p.call()
	hosts, devices := tr.ok("get_hosts"), tr.ok("get_devices")
	if hosts.Number("hosts") != int64(len(p.Hosts)) {
		p.t.Fatalf("get_hosts: %s", hosts)
	}
	base := map[string]string{}
	for n := range hosts.Number("hosts") {
		host := fmt.Sprintf("host%d_", n+1)
		url := "http://" + hosts.Get(host+"hostip") + ":" + hosts.Get(host+"http_port")
		base[hosts.Get(host+"hostid")] = url
		if got := status(p.t, url+"/"); got/100 != 2 {
			p.t.Errorf("%s/ answers %d", url, got)
		}
	}
	for n := range devices.Number("devices") {
		dev := fmt.Sprintf("dev%d_", n+1)
		url := base[devices.Get(dev+"hostid")] + "//dev" + devices.Get(dev+"devid") + "/usage"
		text, err := fetch(url)
		if err != nil {
			p.t.Error(err)
			continue
		}
		usage := map[string]string{}
		for line := range strings.Lines(string(text)) {
			name, value, _ := strings.Cut(strings.TrimSpace(line), ": ")
			usage[name] = value
		}
		for _, name := range []string{"available", "used", "total", "time"} {
			if v, err := strconv.ParseInt(usage[name], 10, 64); err != nil || v <= 0 {
				p.t.Errorf("%s: %s is %q", url, name, usage[name])
			}
		}
		if usage["device"] == "" || usage["disk"] == "" {
			p.t.Errorf("%s: %q", url, text)
		}
	}
}

// database is a connection to the cluster's database, as a script has one.
func (p *player) database() *sql.DB {
	p.t.Helper()
	driver, dsn := "pgx", strings.ReplaceAll(strings.TrimPrefix(p.DSN, "DBI:Pg:"), ";", " ")
	if path, ok := strings.CutPrefix(p.DSN, "DBI:SQLite:"); ok {
		driver, dsn = "sqlite", "file:"+path+"?_pragma=busy_timeout(10000)"
	}
	db, err := sql.Open(driver, dsn)
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { db.Close() })
	return db
}

// playMogstats reads the tables with SQL, as mogstats and home-made scripts do.
func playMogstats(p *player) {
	const stats = "mogstats"
	tr := p.call()
	tr.ok("create_domain domain=%s", stats)
	for _, class := range []string{"single&mindevcount=1", "double&mindevcount=2", "lost&mindevcount=2"} {
		tr.ok("create_class domain=%s&class=%s", stats, class)
	}
	store := func(key, class string, size int) {
		open := tr.ok("create_open domain=%s&key=%s&class=%s", stats, key, class)
		put(p.t, open.Get("path"), bytes.Repeat([]byte("x"), size))
		tr.ok("create_close domain=%s&key=%s&fid=%s&devid=%s&size=%d&path=%s", stats, key, open.Get("fid"), open.Get("devid"), size, open.Get("path"))
	}
	for i := range 3 {
		store(fmt.Sprintf("single%d", i), "single", 10)
	}
	for i := range 2 {
		store(fmt.Sprintf("double%d", i), "double", 1000)
	}
	// A file whose bytes are gone cannot be copied.
	store("lost", "single", 7)
	req, err := http.NewRequest(http.MethodDelete, tr.ok("get_paths domain=%s&key=lost&noverify=1", stats).Get("path1"), nil)
	if err != nil {
		p.t.Fatal(err)
	}
	if resp, err := httpClient.Do(req); err != nil {
		p.t.Fatal(err)
	} else if resp.Body.Close(); resp.StatusCode != http.StatusNoContent {
		p.t.Fatalf("DELETE: %s", resp.Status)
	}
	tr.ok("updateclass domain=%s&key=lost&class=lost", stats)
	store("implicit", "", 100)
	tr.ok("create_open domain=%s&key=open&multi_dest=1", stats)
	store("gone", "single", 3)
	gone := tr.ok("file_info domain=%s&key=gone", stats).Get("fid")
	tr.ok("delete domain=%s&key=gone", stats)

	db := p.database()
	ask := func(query string) [][]string {
		rows, err := db.Query(query)
		if err != nil {
			p.t.Fatalf("%s: %v", query, err)
		}
		defer rows.Close()
		names, err := rows.Columns()
		if err != nil {
			p.t.Fatal(err)
		}
		var all [][]string
		for rows.Next() {
			values := make([]sql.NullString, len(names))
			into := make([]any, len(names))
			for i := range values {
				into[i] = &values[i]
			}
			if err := rows.Scan(into...); err != nil {
				p.t.Fatalf("%s: %v", query, err)
			}
			var row []string
			for _, v := range values {
				row = append(row, v.String)
			}
			all = append(all, row)
		}
		if err := rows.Err(); err != nil {
			p.t.Fatalf("%s: %v", query, err)
		}
		return all
	}
	const ours = " WHERE d.namespace = '" + stats + "'"
	for _, q := range []struct {
		what, query string
		want        [][]string
	}{
		{"files and bytes of each class",
			`SELECT d.namespace, c.classname, COUNT(*), SUM(f.length), SUM(f.length * f.devcount)
			FROM file f JOIN domain d ON d.dmid = f.dmid LEFT JOIN class c ON c.dmid = f.dmid AND c.classid = f.classid` + ours + ` AND f.length <> 7
			GROUP BY d.namespace, c.classname ORDER BY 3`,
			[][]string{{stats, "", "1", "100", "200"}, {stats, "double", "2", "2000", "4000"}, {stats, "single", "3", "30", "30"}}},
		{"files by number of copies",
			`SELECT c.classname, f.devcount, COUNT(*) FROM file f JOIN domain d ON d.dmid = f.dmid
			JOIN class c ON c.dmid = f.dmid AND c.classid = f.classid` + ours + ` AND c.classname <> 'lost'
			GROUP BY c.classname, f.devcount ORDER BY 1, 2`,
			[][]string{{"double", "2", "2"}, {"single", "1", "3"}}},
		{"copies that are recorded are those that are counted",
			`SELECT COUNT(*) FROM file f JOIN domain d ON d.dmid = f.dmid` + ours + `
			AND f.devcount <> (SELECT COUNT(*) FROM file_on o WHERE o.fid = f.fid)`,
			[][]string{{"0"}}},
		{"copies on all devices",
			`SELECT SUM(x.n) FROM host h JOIN device v ON v.hostid = h.hostid JOIN
			(SELECT o.devid, COUNT(*) AS n FROM file_on o JOIN file f ON f.fid = o.fid JOIN domain d ON d.dmid = f.dmid` + ours + ` AND f.length IN (1000, 100)
			GROUP BY o.devid) x ON x.devid = v.devid`,
			[][]string{{"6"}}},
		{"devices",
			`SELECT COUNT(*) FROM device v JOIN host h ON h.hostid = v.hostid
			WHERE h.status = 'alive' AND v.status = 'alive' AND v.weight > 0 AND v.mb_total > v.mb_used AND v.mb_used >= 0 AND v.mb_asof > 1700000000`,
			[][]string{{"6"}}},
		{"uploads that are open",
			`SELECT t.dkey, COUNT(*) FROM tempfile t JOIN domain d ON d.dmid = t.dmid` + ours + ` AND t.devids LIKE '%,%' AND t.createtime > 1700000000 GROUP BY t.dkey`,
			[][]string{{"open", "1"}}},
		{"copies that wait for a later try",
			`SELECT f.dkey, COUNT(*) FROM file_to_replicate q JOIN file f ON f.fid = q.fid JOIN domain d ON d.dmid = f.dmid` + ours + ` AND q.nexttry > 1700000000 AND q.failcount > 0 GROUP BY f.dkey`,
			[][]string{{"lost", "1"}}},
		{"copies that are urgent",
			`SELECT COUNT(*) FROM file_to_replicate q JOIN file f ON f.fid = q.fid JOIN domain d ON d.dmid = f.dmid` + ours + ` AND q.nexttry = 0`,
			[][]string{{"0"}}},
		{"copies that nobody will make",
			`SELECT COUNT(*) FROM file_to_replicate q JOIN file f ON f.fid = q.fid JOIN domain d ON d.dmid = f.dmid` + ours + ` AND q.nexttry = 2147483647`,
			[][]string{{"0"}}},
		{"deletions", `SELECT COUNT(*), MAX(nexttry), MAX(failcount) FROM file_to_delete2 WHERE fid = ` + gone, [][]string{{"0", "", ""}}},
		{"what was deleted is nowhere", `SELECT fid FROM file WHERE fid = ` + gone + ` UNION SELECT fid FROM file_on WHERE fid = ` + gone, nil},
		{"old deletions", `SELECT COUNT(*) FROM file_to_delete`, [][]string{{"0"}}},
		{"old deletions for later", `SELECT COUNT(*) FROM file_to_delete_later WHERE delafter > 0`, [][]string{{"0"}}},
		{"fsck and rebalance", `SELECT type, COUNT(*), MIN(nexttry) FROM file_to_queue GROUP BY type`, nil},
		{"fsck's log", `SELECT evcode, COUNT(*), MAX(utime), MAX(logid) FROM fsck_log GROUP BY evcode`, nil},
		{"sums", `SELECT COUNT(*) FROM checksum s JOIN file f ON f.fid = s.fid JOIN domain d ON d.dmid = f.dmid` + ours, [][]string{{"0"}}},
		{"lost files", `SELECT COUNT(*) FROM unreachable_fids`, [][]string{{"0"}}},
		{"classes", `SELECT c.classname, c.mindevcount, c.hashtype FROM class c JOIN domain d ON d.dmid = c.dmid` + ours + ` AND c.classid > 0 ORDER BY 1`,
			[][]string{{"double", "2", ""}, {"lost", "2", ""}, {"single", "1", ""}}},
	} {
		within(p.t, time.Minute, q.what, func() error { // workers bring it about
			got := ask(q.query)
			if d := cmp.Diff(q.want, got); d != "" {
				return fmt.Errorf("(-want +got):\n%s", d)
			}
			return nil
		})
	}
}

// playMoji stores and reads as moji does, on a connection out of a pool.
func playMoji(p *player) {
	tr := p.call()
	if got := tr.ask("noop "); got != "OK " {
		p.t.Errorf("noop answers %q; moji wants a blank after OK", got)
	}
	// A stream whose length nobody knows.
	body := bytes.Repeat([]byte("a stream of Java's. "), 50_000)
	open := tr.ok("create_open domain=%s&class=default&key=moji/a&multi_dest=0", domain)
	if open.Get("dev_count") != "" || open.Get("path") == "" {
		p.t.Fatalf("create_open: %s", open)
	}
	req, err := http.NewRequest(http.MethodPut, open.Get("path"), io.MultiReader(bytes.NewReader(body)))
	if err != nil {
		p.t.Fatal(err)
	}
	if resp, err := httpClient.Do(req); err != nil || resp.StatusCode/100 != 2 || len(req.TransferEncoding) > 0 {
		p.t.Fatalf("chunked PUT: %v, %v", resp, err)
	} else {
		resp.Body.Close()
	}
	tr.ok("noop")
	tr.ok("create_close domain=%s&key=moji/a&fid=%s&devid=%s&path=%s&size=%d", domain, open.Get("fid"), open.Get("devid"), protocol.Escape(open.Get("path")), len(body))

	info := tr.ok("file_info domain=%s&key=moji/a&devices=1", domain)
	if info.Get("length") != strconv.Itoa(len(body)) || info.Get("class") != "default" || info.Get("key") != "moji/a" || info.Get("domain") != domain ||
		info.Get("fid") != open.Get("fid") || info.Number("devcount") < 1 || info.Get("devids") == "" {
		p.t.Errorf("file_info: %s", info)
	}
	tr.ok("updateclass domain=%s&key=moji/a&class=triple", domain)
	if got := tr.ok("file_info domain=%s&key=moji/a", domain).Get("class"); got != "triple" {
		p.t.Errorf("class is %q", got)
	}
	p.CheckFile("moji/a", p.WaitPolicy("moji/a", 3), body)
	if got := tr.ok("get_devices domain=%s", domain); got.Number("devices") != 6 || got.Get("dev1_devid") == "" {
		p.t.Errorf("get_devices with a domain: %s", got)
	}
	tr.ok("rename domain=%s&from_key=moji/a&to_key=moji/b", domain)
	if got := tr.ask("delete domain=%s&key=moji/b", domain); got != "OK " {
		p.t.Errorf("delete answers %q", got)
	}
}

// playMojiErrors provokes refusals whose texts are made for the occasion, and
// those that moji knows by name. caller looks at the texts.
func playMojiErrors(p *player) {
	tr := p.call()
	open := tr.ok("create_open domain=%s&key=moji/e&class=single", domain)
	put(p.t, open.Get("path"), []byte("hello"))
	tr.ok("create_close domain=%s&key=moji/e&fid=%s&devid=%s&path=%s", domain, open.Get("fid"), open.Get("devid"), protocol.Escape(open.Get("path")))
	// upload opens one, and stores body unless it is empty.
	upload := func(body string) string {
		open := tr.ok("create_open domain=%s&key=moji/x&class=single", domain)
		if body != "" {
			put(p.t, open.Get("path"), []byte(body))
		}
		return fmt.Sprintf("domain=%s&key=moji/x&fid=%s&devid=%s&path=%s", domain, open.Get("fid"), open.Get("devid"), protocol.Escape(open.Get("path")))
	}
	closed := upload("hello")
	tr.ok("create_close %s", closed)
	for _, c := range []struct{ code, request string }{
		{"unknown_key", "get_paths domain=<d>&key=moji/none"},
		{"unknown_key", "file_info domain=<d>&key=moji/none"},
		{"unknown_key", "delete domain=<d>&key=moji/none"},
		{"unknown_key", "rename domain=<d>&from_key=moji/none&to_key=moji/y"},
		{"key_exists", "rename domain=<d>&from_key=moji/e&to_key=moji/x"},
		{"none_match", "list_keys domain=<d>&prefix=moji/none"},
		{"unreg_class", "create_open domain=<d>&key=k&class=nope"},
		{"class_not_found", "updateclass domain=<d>&key=moji/e&class=nope"},
		{"unknown_command", "nosuch domain=<d>"},

		{"size_mismatch", "create_close " + upload("hello") + "&size=6"},
		{"size_verify_error", "create_close " + upload("") + "&size=5"},
		{"checksum_mismatch", "create_close " + upload("hello") + "&checksumverify=1&checksum=MD5:00000000000000000000000000000000"},
		{"invalid_checksum_format", "create_close " + upload("") + "&checksum=MD5:0"},
		{"bogus_args", "create_close " + upload("") + "0"},
		{"no_temp_file", "create_close " + closed},
		{"fid_in_use", "create_open domain=<d>&key=k&fid=" + open.Get("fid")},
		{"fid_in_use", "create_open domain=<d>&key=k&fid=" + strconv.Itoa(math.MaxInt)},
		{"invalid_key", "create_open domain=<d>&key=" + strings.Repeat("k", 2000)},
		{"invalid_key", "create_open domain=<d>&key=%FF"},
		{"unreg_domain", "get_paths domain=nope&key=k"},
		{"no_domain", "get_paths key=k"},
		{"no_key", "get_paths domain=<d>"},
		{"no_fid", "create_close domain=<d>&key=k"},
		{"no_devid", "create_close domain=<d>&key=k&fid=1"},
		{"no_path", "create_close domain=<d>&key=k&fid=1&devid=1"},
		{"after_mismatch", "list_keys domain=<d>&prefix=a&after=b"},
		{"failure", "list_keys domain=<d>&limit=-1"},
		{"failure", "test crash=1"},
		{"invalid_key", "updateclass domain=<d>&key=moji/none&class=single"},
		{"no_class", "updateclass domain=<d>&key=moji/e"},
		{"domain_exists", "create_domain domain=<d>"},
		{"bad_params", "create_domain domain=" + strings.Repeat("d", 300)},
		{"bad_params", "create_domain domain=%FF"},
		{"domain_not_found", "delete_domain domain=nope"},
		{"domain_has_files", "delete_domain domain=<d>"},
		{"class_exists", "create_class domain=<d>&class=single&mindevcount=1"},
		{"class_not_found", "update_class domain=<d>&class=nope&mindevcount=1"},
		{"class_not_found", "delete_class domain=<d>&class=nope"},
		{"class_has_files", "delete_class domain=<d>&class=single"},
		{"nodel_default_class", "delete_class domain=<d>&class=default"},
		{"invalid_mindevcount", "create_class domain=<d>&class=c&mindevcount=0"},
		{"invalid_mindevcount", "create_class domain=<d>&class=c&mindevcount=99999"},
		{"invalid_replpolicy", "create_class domain=<d>&class=c&mindevcount=2&replpolicy=Nope%28%29"},
		{"invalid_replpolicy", "create_class domain=<d>&class=c&mindevcount=2&replpolicy=MultipleHosts%28x"},
		{"invalid_hashtype", "create_class domain=<d>&class=c&mindevcount=2&hashtype=CRC"},
		{"host_exists", "create_host host=host1&ip=127.0.0.99&port=1"},
		{"host_not_found", "update_host host=nope&status=down"},
		{"no_ip", "create_host host=h&port=1"},
		{"no_port", "create_host host=h&ip=127.0.0.99"},
		{"bad_params", "create_host host=h&ip=no+pe&port=1"},
		{"bad_params", "create_host host=h&ip=127.0.0.99&port=70000"},
		{"dup", "create_host host=h&ip=127.0.0.1&port=1"},
		{"unknown_state", "update_host host=host1&status=fine"},
		{"unknown_host", "delete_host host=nope"},
		{"host_not_empty", "delete_host host=host1"},
		{"invalid_devid", "create_device hostname=host1&devid=99999999"},
		{"invalid_state", "create_device hostname=host1&devid=99&state=fine"},
		{"unknown_host", "create_device hostname=nope&devid=99"},
		{"bad_args", "create_device devid=99"},
		{"existing_devid", "create_device hostname=host1&devid=1"},
		{"no_device", "set_state host=host1&device=99&state=down"},
		{"host_mismatch", "set_state host=host2&device=1&state=down"},
		{"bad_params", "set_state host=host1&device=1&state=fine"},
		{"not_writable", "set_server_setting key=schema_version&value=1"},
		{"invalid_format", "set_server_setting key=memcache_ttl&value=long"},
		{"invalid_format", "set_server_setting key=skip_mkcol&value=perhaps"},
		{"invalid_format", "set_server_setting key=fsck_checksum&value=CRC"},
		{"invalid_format", "set_server_setting key=zone_x&value=nope"},
		{"bad_params", "server_setting "},
		{"unknown_command", "httpcopy sdevid=1&ddevid=99&fid=1"},
	} {
		tr.refused(c.code, "%s", strings.ReplaceAll(c.request, "<d>", domain))
	}
	// A destination that was not offered: the other device of the same host.
	open = tr.ok("create_open domain=%s&key=moji/x&class=single", domain)
	dev, err := strconv.Atoi(open.Get("devid"))
	if err != nil {
		p.t.Fatal(err)
	}
	other := strconv.Itoa((dev - 1) ^ 1 + 1) // hosts have devices 1 and 2, 3 and 4…
	tr.refused("invalid_destdev", "create_close domain=%s&key=moji/x&fid=%s&devid=%s&path=%s", domain, open.Get("fid"), other,
		protocol.Escape(strings.Replace(open.Get("path"), "/dev"+open.Get("devid")+"/", "/dev"+other+"/", 1)))
}

// TestRefusalsNameNoOtherCode: moji finds the codes that it knows anywhere in a
// refusal, so that no text in the program may have one in it.
func TestRefusalsNameNoOtherCode(t *testing.T) {
	t.Parallel()
	texts := 0
	for _, root := range []string{"../../protocol", "../../schema", "../../tracker"} {
		err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			// These packages are part of tests.
			if d.IsDir() && (d.Name() == "storetest" || d.Name() == "storagetest" || d.Name() == "protocoltest" || d.Name() == "pgtest") {
				return fs.SkipDir
			}
			if d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return nil
			}
			fset := token.NewFileSet()
			file, err := parser.ParseFile(fset, path, nil, 0)
			if err != nil {
				return err
			}
			ast.Inspect(file, func(n ast.Node) bool {
				lit, ok := n.(*ast.BasicLit)
				if !ok || lit.Kind != token.STRING {
					return true
				}
				text, err := strconv.Unquote(lit.Value)
				if err != nil {
					t.Errorf("%s: %v", fset.Position(lit.Pos()), err)
				}
				texts++
				for _, code := range mojiCodes {
					if text != code && strings.Contains(text, code) {
						t.Errorf("%s: moji would take %q for %s", fset.Position(lit.Pos()), text, code)
					}
				}
				return true
			})
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if texts < 1000 {
		t.Errorf("only %d texts were looked at", texts)
	}
}

// playPymogilefs asks each thing on a connection of its own, and reads until
// what it has ends in CRLF.
func playPymogilefs(p *player) {
	ask := func(format string, args ...any) string {
		p.t.Helper()
		conn := dial(p.t, p.Addrs[0])
		defer conn.Close()
		fmt.Fprintf(conn, format+"\r\n", args...)
		var got []byte
		for piece := make([]byte, 4096); !bytes.HasSuffix(got, []byte("\r\n")); {
			n, err := conn.Read(piece)
			if err != nil {
				p.t.Fatalf("%q, %v", got, err)
			}
			got = append(got, piece[:n]...)
		}
		line := string(got)
		if m := errLine.FindStringSubmatch(line); m == nil && !okLine.MatchString(line) {
			p.t.Errorf(format+": %q", append(args, line)...)
		}
		return strings.TrimSuffix(line, "\r\n")
	}
	ok := func(format string, args ...any) protocol.Args {
		p.t.Helper()
		fields, found := strings.CutPrefix(ask(format, args...), "OK ")
		if !found {
			p.t.Fatalf(format+" is refused", args...)
		}
		return protocol.ParseArgs(fields)
	}
	const keys = 7
	for i := range keys {
		open := ok("create_open domain=%s&key=py/%d&class=single", domain, i)
		put(p.t, open.Get("path"), []byte("python"))
		ok("create_close domain=%s&key=py/%d&fid=%s&devid=%s&path=%s&size=6", domain, i, open.Get("fid"), open.Get("devid"), protocol.Escape(open.Get("path")))
	}
	var got []string
	for after := ""; len(got) <= keys; {
		line := ask("list_keys domain=%s&prefix=py/&limit=3&after=%s", domain, after)
		fields, found := strings.CutPrefix(line, "OK ")
		if !found {
			if !strings.HasPrefix(line, "ERR none_match ") {
				p.t.Fatal(line)
			}
			break
		}
		page := protocol.ParseArgs(fields)
		for n := range page.Number("key_count") {
			got = append(got, page.Get(fmt.Sprintf("key_%d", n+1)))
		}
		after = page.Get("next_after")
	}
	want := []string{"py/0", "py/1", "py/2", "py/3", "py/4", "py/5", "py/6"}
	if d := cmp.Diff(want, got); d != "" {
		p.t.Errorf("paging by next_after (-want +got):\n%s", d)
	}

	// The other zone has addresses of its own, where a host has one.
	alt := func(ip string) string {
		if ip == p.Hosts[0].IP {
			return "127.0.1.1"
		}
		return ip
	}
	for seen := false; !seen; {
		open := ok("create_open domain=%s&key=py/zone&multi_dest=1", domain)
		for _, d := range destinations(p.t, open, 3) { // three hosts: one is host1
			seen = seen || strings.Contains(d.path, "//"+p.Hosts[0].IP+":")
		}
		if !seen {
			p.t.Fatalf("host1 is not among three destinations: %s", open)
		}
		zoned := destinations(p.t, ok("create_open domain=%s&key=py/zone&multi_dest=1&zone=alt", domain), 3)
		if !slices.ContainsFunc(zoned, func(d destination) bool { return strings.HasPrefix(d.path, "http://127.0.1.1:") }) {
			p.t.Errorf("create_open with zone=alt: %v", zoned)
		}
	}
	for i := range keys {
		plain := ok("get_paths domain=%s&key=py/%d&noverify=1&zone=", domain, i).Get("path1")
		zoned := ok("get_paths domain=%s&key=py/%d&noverify=1&zone=alt", domain, i).Get("path1")
		ip, rest, _ := strings.Cut(strings.TrimPrefix(plain, "http://"), ":")
		if want := "http://" + alt(ip) + ":" + rest; zoned != want {
			p.t.Errorf("zone=alt: %s, want %s", zoned, want)
		}
	}
	if line := ask("get_paths domain=%s&key=py/none&noverify=1&zone=alt", domain); line != "ERR unknown_key unknown_key" {
		p.t.Errorf("%q: a text must stand after the code", line)
	}
}

// playRuby sends sums along, and takes the next destination where one refuses.
func playRuby(p *player) {
	const body = "rubies are red"
	sum := md5.Sum([]byte(body))
	right, wrong := base64.StdEncoding.EncodeToString(sum[:]), base64.StdEncoding.EncodeToString(make([]byte, md5.Size))
	plain := func(d destination, sum string) string {
		return fmt.Sprintf("PUT %s HTTP/1.1\r\nHost: x\r\nContent-MD5: %s\r\nContent-Length: %d\r\n\r\n%s", pathOf(d.path), sum, len(body), body)
	}
	trailer := func(d destination, sum string) string {
		return fmt.Sprintf("PUT %s HTTP/1.1\r\nHost: x\r\nTrailer: Content-MD5\r\nTransfer-Encoding: chunked\r\n\r\n6\r\n%s\r\n%x\r\n%s\r\n0\r\nContent-MD5: %s\r\n\r\n",
			pathOf(d.path), body[:6], len(body)-6, body[6:], sum)
	}
	tr := p.call()
	for name, request := range map[string]func(destination, string) string{"header": plain, "trailer": trailer} {
		open := tr.ok("create_open domain=%s&class=&fid=0&key=ruby/%s&multi_dest=1", domain, name)
		dests := destinations(p.t, open, 3)
		// What is damaged on its way to the first two is refused, and not kept.
		for _, d := range dests[:2] {
			h := dialHTTP(p.t, d.path)
			if resp, _ := h.send(request(d, wrong)); resp.StatusCode != http.StatusBadRequest {
				p.t.Errorf("%s: a wrong sum is answered %s", name, resp.Status)
			}
			if resp, _ := h.send("GET " + pathOf(d.path) + " HTTP/1.1\r\nHost: x\r\n\r\n"); resp.StatusCode != http.StatusNotFound {
				p.t.Errorf("%s: what was refused is there, on the same connection: %s", name, resp.Status)
			}
		}
		d := dests[2]
		dialHTTP(p.t, d.path).done(request(d, right))
		tr.ok("create_close devid=%s&domain=%s&fid=%s&key=ruby/%s&path=%s&size=%d&checksum=MD5:%x&checksumverify=1",
			d.devid, domain, open.Get("fid"), name, protocol.Escape(d.path), len(body), sum)
		p.CheckFile(name, p.WaitPolicy("ruby/"+name, p.usual), []byte(body))
	}
	if got := tr.ok("get_paths domain=%s&key=ruby/header&noverify=1&zone=&pathcount=9", domain); got.Number("paths") != int64(p.usual) {
		p.t.Errorf("get_paths: %s", got)
	}
}

// playPHP has the verbs of pecl-mogilefs and php-mogilefs.
func playPHP(p *player) {
	p.session(`
C: CREATE_OPEN domain=<domain>&key=php/a&class=single
S: OK fid=<fid:\d+>&devid=<dev:\d+>&path=<path:http://.*>
put <path> hello from PHP
C: CREATE_CLOSE domain=<domain>&key=php/a&class=single&fid=<fid>&devid=<dev>&path=<path>
S: OK 
C: FILE_INFO domain=<domain>&key=php/a
S: OK fid=<fid>&domain=<domain>&class=single&key=php/a&length=14&devcount=1
C: RENAME domain=<domain>&from_key=php/a&to_key=php/b
S: OK 
C: LIST_KEYS domain=<domain>&prefix=php/&after=&limit=10
S: OK key_count=1&next_after=php/b&key_1=php/b
C: set_weight host=host1&device=1&weight=60
S: OK 
C: get_devices devid=1
S: OK devices=1&dev1_devid=1&dev1_hostid=1&dev1_status=alive&dev1_weight=60&dev1_mb_total=<_:\d+>&dev1_mb_used=<_:\d+>&dev1_mb_asof=&dev1_mb_free=<_:\d+>&dev1_observed_state=writeable&dev1_utilization=<_>&dev1_reject_bad_md5=1
C: set_weight host=host1&device=1&weight=100
S: OK 
C: set_weight host=host2&device=1&weight=1
S: ERR host_mismatch The+device+specified+doesn%27t+belong+to+the+host+specified
C: replicate_now
S: OK count=<_:\d+>
C: UPDATECLASS domain=<domain>&key=php/b&class=triple
S: OK 
R: FILE_INFO domain=<domain>&key=php/b
S: OK fid=<fid>&domain=<domain>&class=triple&key=php/b&length=14&devcount=3
C: GET_PATHS domain=<domain>&key=php/b&pathcount=3&noverify=0
S: OK paths=3&path1=<_:http://.*>&path2=<_:http://.*>&path3=<_:http://.*>
`)
	tr := p.call()
	fid := tr.ok("file_info domain=%s&key=php/b", domain).Number("fid")
	listed := tr.ok("list_fids from=%d&to=1", fid-1)
	for name, want := range map[string]string{
		"fid_count": "1", "fid_1_fid": strconv.FormatInt(fid, 10), "fid_1_domain": domain, "fid_1_class": "triple",
		"fid_1_key": "php/b", "fid_1_length": "14", "fid_1_devcount": "3",
	} {
		if got := listed.Get(name); got != want {
			p.t.Errorf("list_fids: %s is %q, want %q", name, got, want)
		}
	}
	p.session(`
C: DELETE domain=<domain>&key=php/b
S: OK 
C: GET_PATHS domain=<domain>&key=php/b
S: ERR unknown_key unknown_key
`)
}

// playLua has the arguments directly behind the verb, in upper case.
func playLua(p *player) {
	p.session(`
C: CREATE_OPEN&domain=<domain>&key=lua/a&class=single
S: OK fid=<fid:\d+>&devid=<dev:\d+>&path=<path:http://([\d.]+):\d+/dev\d+/0/\d{3}/\d{3}/\d{10}\.fid>
put <path> hello from Lua
C: CREATE_CLOSE&domain=<domain>&key=lua/a&fid=<fid>&devid=<dev>&path=<path>&size=14
S: OK 
C: GET_PATHS&domain=<domain>&key=lua/a
S: OK paths=1&path1=<path>
C: GET_PATHS&domain=<domain>&key=lua/a&noverify=1&pathcount=2
S: OK paths=1&path1=<path>
C: DELETE&domain=<domain>&key=lua/a
S: OK 
C: GET_PATHS&domain=<domain>&key=lua/a
S: ERR unknown_key unknown_key
`)
}

// playNginx is nginx in front of the storage hosts, as nginx-mogilefs-module
// makes it: what comes from a browser is handed to the path that the tracker
// names.
func playNginx(p *player) {
	program := nginxBinary(p.t)
	tr := p.call()
	open := tr.ok("create_open domain=%s&key=nginx/a&class=single&multi_dest=1", domain)
	d := destinations(p.t, open, 1)[0]

	dir := p.t.TempDir()
	front := fmt.Sprintf("127.0.0.1:%d", freePorts(p.t, 1, "127.0.0.1"))
	var scratch strings.Builder
	for _, kind := range []string{"client_body", "proxy", "fastcgi", "uwsgi", "scgi"} {
		fmt.Fprintf(&scratch, "%s_temp_path %s;\n", kind, filepath.Join(dir, kind))
	}
	conf := fmt.Sprintf(`daemon off; master_process off; pid %s; error_log stderr warn; events { worker_connections 64; }
http { access_log off; client_max_body_size 0;
%s
server { listen %s;
location = /as10 { proxy_pass %[4]s; }
location = /as11 { proxy_pass %[4]s; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_request_buffering off; }
} }
`, filepath.Join(dir, "pid"), scratch.String(), front, d.path)
	file := filepath.Join(dir, "nginx.conf")
	if err := os.WriteFile(file, []byte(conf), 0o666); err != nil {
		p.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, program, "-p", dir, "-c", file, "-e", "stderr")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var said bytes.Buffer
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() {
		cancel()
		_ = cmd.Wait() // it is killed
		if p.t.Failed() {
			p.t.Logf("nginx: %s", said.String())
		}
	})
	within(p.t, 10*time.Second, "nginx listens", func() error {
		conn, err := net.DialTimeout("tcp", front, time.Second)
		if err != nil {
			return err
		}
		return conn.Close()
	})

	body := bytes.Repeat([]byte("through nginx "), 30_000)
	put(p.t, "http://"+front+"/as11", []byte("overwritten by the next"))
	put(p.t, "http://"+front+"/as10", body)
	tr.ok("create_close domain=%s&key=nginx/a&fid=%s&devid=%s&path=%s&size=%d", domain, open.Get("fid"), d.devid, protocol.Escape(d.path), len(body))
	for _, noverify := range []string{"1", "0"} {
		if got := tr.ok("get_paths domain=%s&key=nginx/a&noverify=%s", domain, noverify).Get("path1"); got != d.path {
			p.t.Errorf("noverify=%s: %q, want %q", noverify, got, d.path)
		}
	}
	for _, location := range []string{"/as10", "/as11"} {
		for range 2 { // the second time on a connection that is kept
			if got, err := fetch("http://" + front + location); err != nil || !bytes.Equal(got, body) {
				p.t.Errorf("%s: %d bytes, %v", location, len(got), err)
			}
		}
		h := dialHTTP(p.t, "http://"+front)
		if resp, got := h.send("GET " + location + " HTTP/1.1\r\nHost: x\r\nRange: bytes=14-20\r\n\r\n"); resp.StatusCode != http.StatusPartialContent || got != "through" {
			p.t.Errorf("%s: a part: %s, %q", location, resp.Status, got)
		}
		if resp, _ := h.send("HEAD " + location + " HTTP/1.1\r\nHost: x\r\n\r\n"); resp.ContentLength != int64(len(body)) {
			p.t.Errorf("%s: HEAD: %s, %d", location, resp.Status, resp.ContentLength)
		}
	}
	tr.ok("delete domain=%s&key=nginx/a", domain)
}

// playMackerel reads !stats as a plugin of Mackerel does: name, one blank, a
// number, until the dot.
func playMackerel(p *player) {
	tr := p.call()
	tr.ok("noop")
	fmt.Fprint(tr.conn, "!stats\r\n")
	seen := map[string]bool{}
	for {
		line, err := tr.r.ReadString('\n')
		if err != nil {
			p.t.Fatal(err)
		}
		line, ok := strings.CutSuffix(line, "\r\n")
		if !ok {
			p.t.Errorf("%q does not end in CRLF", line)
		}
		if line == "." {
			break
		}
		name, value, _ := strings.Cut(line, " ")
		if _, err := strconv.ParseFloat(value, 64); err != nil {
			p.t.Errorf("%q: %v", line, err)
		}
		seen[name] = true
	}
	for _, name := range []string{"uptime", "pending_queries", "processing_queries", "bored_queryworkers", "queries"} {
		if !seen[name] {
			p.t.Errorf("!stats has no %s: %v", name, seen)
		}
	}
	tr.ok("noop")
}

// playExporter reads what the exporter for Prometheus shows of hosts and
// devices.
func playExporter(p *player) {
	tr := p.call()
	hosts, devices := tr.ok("get_hosts "), tr.ok("get_devices ")
	names := map[string]string{}
	for n := range hosts.Number("hosts") {
		host := fmt.Sprintf("host%d_", n+1)
		names[hosts.Get(host+"hostid")] = hosts.Get(host + "hostname")
		if hosts.Get(host+"status") != "alive" || hosts.Get(host+"hostip") == "" || hosts.Number(host+"http_port") != int64(p.Port) {
			p.t.Errorf("%s: %s", host, hosts)
		}
	}
	if devices.Number("devices") != 6 {
		p.t.Errorf("get_devices: %s", devices)
	}
	for n := range devices.Number("devices") {
		dev := fmt.Sprintf("dev%d_", n+1)
		var mb [3]float64
		for i, name := range []string{"mb_total", "mb_used", "mb_free"} {
			v, err := strconv.ParseFloat(devices.Get(dev+name), 64)
			if err != nil {
				p.t.Errorf("%s%s: %v", dev, name, err)
			}
			mb[i] = v
		}
		if mb[0] <= 0 || mb[0] != mb[1]+mb[2] || names[devices.Get(dev+"hostid")] == "" ||
			devices.Get(dev+"observed_state") != "writeable" || devices.Get(dev+"status") != "alive" {
			p.t.Errorf("%s: %s", dev, devices)
		}
	}
}

// playLogTailer follows the log over the wire.
func playLogTailer(p *player) {
	p.session(`
use tail tracker
C: !watch
S: Added you to watcher list.
S: .
use tracker
C: !to monitor tail this
S: Message sent to 1 children.
S: .
use tail
W: [monitor(<_:\d+>)] Unrecognized command from parent: tail this
use tracker
C: !to delete and this
S: Message sent to 1 children.
S: .
use tail
W: [delete(<_:\d+>)] Unrecognized command from parent: and this
C: noop
S: OK 
close
use tracker
C: noop
S: OK 
`)
}

// playFilePaths asks for the directories of a plugin that is not there: clients
// that look for it are told, and the connection goes on.
func playFilePaths(p *player) {
	p.session(`
C: plugin_filepaths_enable domain=<domain>
S: ERR unknown_command Unknown+server+command
C: plugin_filepaths_list_directory domain=<domain>&arg1=/&argcount=1
S: ERR unknown_command Unknown+server+command
C: noop
S: OK 
`)
}

// playShellUser types, with LF or CRLF, "!" and other commands on one
// connection, some of them before the answers.
func playShellUser(p *player) {
	p.session(`
c: noop
S: OK 
c:
c: !version
S: 2.73
S: .
C: noop callid=1
S: OK callid=1
c"  list_keys domain=nope\nnoop\r\n!version\nnoop callid=2\r\n"
S: ERR unreg_domain Domain+name+invalid/not+found
S: OK 
S: 2.73
S: .
S: OK callid=2
c: help
S: ERR unknown_command Unknown+server+command
`)
}

// playLateAnswers has a client whose patience ends before the answer comes, and
// which asks the next thing on the same connection: answers come in the order
// of the requests, each of them once. One that drops the connection finds only
// its own answers on the next.
func playLateAnswers(p *player) {
	for _, key := range []string{"late/a", "late/b"} {
		if err := p.Put(key, "single", []byte(key)); err != nil {
			p.t.Fatal(err)
		}
	}
	tr := p.call()
	info := func(key string) string { return "file_info domain=" + domain + "&key=" + key }
	fmt.Fprint(tr.conn, "sleep duration=1&callid=slow\r\n")
	for _, key := range []string{"late/a", "late/b", "late/none", "late/a"} { // nobody waited for the answer before
		fmt.Fprint(tr.conn, info(key)+"\r\n")
	}
	if got := tr.answer("sleep"); got != "OK callid=slow" {
		p.t.Errorf("the first answer is %q, not that of the first request", got)
	}
	for _, want := range []string{"late/a", "late/b", "", "late/a"} {
		line := tr.answer("file_info")
		if got := protocol.ParseArgs(strings.TrimPrefix(line, "OK ")).Get("key"); got != want || want == "" && line != "ERR unknown_key unknown_key" {
			p.t.Errorf("answer %q, want that of %q", line, want)
		}
	}

	impatient := p.call()
	fmt.Fprint(impatient.conn, "sleep duration=1&callid=dropped\r\n")
	impatient.conn.Close()
	again := p.call()
	if got := again.ok("%s&callid=new", info("late/b")); got.Get("key") != "late/b" || got.Get("callid") != "new" {
		p.t.Errorf("the next connection is answered %s", got)
	}
}
