// Package storagetest plays storage daemons of other makes, for tests:
// mogstored, cmogstored, nginx and lighttpd as far as their answers go, well
// behaved or, with a [Trick], badly. Files are kept in memory. What is sent is
// written byte by byte, so that a daemon may also say what no HTTP server would.
package storagetest

import (
	"bufio"
	"bytes"
	"crypto/md5"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"net/http"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/mogile/mogile/protocol"
)

// Make is how daemons of one make differ from those of another.
type Make struct {
	Name   string
	Server string // of the header
	Proto  string // of the status line; HTTP/1.1 where empty

	Stored, Replaced int  // statuses of a PUT of a new file, and of one that exists
	ChecksMD5        bool // a wrong Content-MD5 is refused
	MKCOL            bool // directories are made with it, and not by PUT; else it is answered 400
	ListsDirectory   string
	HeadOmitsZero    bool // a HEAD of an empty file gives no Content-Length

	Side      bool   // there is a side channel
	EmptySize string // what it says of an empty file
	Digests   bool   // it knows MD5 and SHA-1
	Unknown   string // its answer to an unknown command, before that
}

// Mogstored is MogileFS 2.73's own daemon.
func Mogstored() Make {
	return Make{
		Name: "mogstored", Server: "Perlbal", Proto: "HTTP/1.0", Stored: 200, Replaced: 200, ChecksMD5: true,
		ListsDirectory: "Directory listing disabled", Side: true, Digests: true, Unknown: "ERROR: unknown command: ",
	}
}

// OldMogstored knows neither digests nor Content-MD5.
func OldMogstored() Make {
	m := Mogstored()
	m.Name, m.ChecksMD5, m.Digests, m.Unknown = "old mogstored", false, false, "ERROR unknown command: "
	return m
}

// Cmogstored is cmogstored 1.2.1.
func Cmogstored() Make {
	return Make{
		Name: "cmogstored", Stored: 201, Replaced: 201, ChecksMD5: true,
		Side: true, EmptySize: "0", Digests: true, Unknown: "ERROR: unknown command: ",
	}
}

// Nginx is nginx with "dav_methods PUT DELETE MKCOL" that makes directories only
// when told to.
func Nginx() Make {
	return Make{Name: "nginx", Server: "nginx/1.22.1", Stored: 201, Replaced: 204, MKCOL: true}
}

// Lighttpd is lighttpd with mod_webdav.
func Lighttpd() Make {
	return Make{Name: "lighttpd", Server: "lighttpd/1.4.69", Stored: 201, Replaced: 200, MKCOL: true, HeadOmitsZero: true}
}

// Makes are all of them.
func Makes() []Make {
	return []Make{Mogstored(), OldMogstored(), Cmogstored(), Nginx(), Lighttpd()}
}

// Usage is a usage file of a device of that many MiB.
func Usage(dev protocol.DevID, totalMB, usedMB int64) string {
	return fmt.Sprintf("available: %d\ndevice: /dev/sd%d\ndisk: /var/mogdata/dev%d\ntime: 1700000000\ntotal: %d\nuse: %d%%\nused: %d\n",
		(totalMB-usedMB)*1024, dev, dev, totalMB*1024, usedMB*100/totalMB, usedMB*1024)
}

// Daemon is a storage daemon of some make. It is safe for concurrent use.
type Daemon struct {
	Make     Make
	IP       string
	Port     int // HTTP
	SidePort int // of the side channel; 0 where there is none

	http, side net.Listener
	done       chan struct{}
	all        sync.WaitGroup

	mu        sync.Mutex // guards the rest
	files     map[string][]byte
	dirs      map[string]bool
	trick     func(*Exchange) bool
	sideTrick func(io.Writer, string) bool
	stream    string
	requests  []string
	conns     map[net.Conn]bool
	accepted  int
}

// Options of [Start].
type Options struct {
	IP       string // 127.0.0.1 unless set
	SidePort int    // any that is free unless set
	Devices  []protocol.DevID
}

// Start starts a daemon. It ends with the test.
func Start(t testing.TB, m Make, o Options) *Daemon {
	t.Helper()
	if o.IP == "" {
		o.IP = "127.0.0.1"
	}
	d := &Daemon{
		Make: m, IP: o.IP, done: make(chan struct{}),
		files: map[string][]byte{}, dirs: map[string]bool{}, conns: map[net.Conn]bool{},
	}
	for _, dev := range o.Devices {
		d.dirs["/dev"+dev.String()] = true
		d.files["/dev"+dev.String()+"/usage"] = []byte(Usage(dev, 100_000, 10_000))
		d.stream += dev.String() + "\t0.50\n"
	}
	d.stream += ".\n"
	var err error
	if d.http, err = net.Listen("tcp", net.JoinHostPort(o.IP, "0")); err != nil {
		t.Fatal(err)
	}
	d.Port = d.http.Addr().(*net.TCPAddr).Port
	d.all.Go(func() { d.accept(d.http, d.serveHTTP) })
	if m.Side {
		if d.side, err = net.Listen("tcp", net.JoinHostPort(o.IP, strconv.Itoa(o.SidePort))); err != nil {
			_ = d.http.Close()
			t.Fatal(err)
		}
		d.SidePort = d.side.Addr().(*net.TCPAddr).Port
		d.all.Go(func() { d.accept(d.side, d.serveSide) })
	}
	t.Cleanup(d.close)
	return d
}

func (d *Daemon) close() {
	close(d.done)
	_ = d.http.Close()
	if d.side != nil {
		_ = d.side.Close()
	}
	d.CloseConnections()
	d.all.Wait()
}

// CloseConnections closes all connections at whatever point they are.
func (d *Daemon) CloseConnections() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for conn := range d.conns {
		_ = conn.Close()
	}
}

func (d *Daemon) accept(l net.Listener, serve func(net.Conn)) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		d.mu.Lock()
		d.conns[conn] = true
		d.accepted++
		d.mu.Unlock()
		select {
		case <-d.done: // too late to be closed with the others
			_ = conn.Close()
		default:
		}
		d.all.Go(func() {
			serve(conn)
			_ = conn.Close()
			d.mu.Lock()
			delete(d.conns, conn)
			d.mu.Unlock()
		})
	}
}

// URL is the address of a path of d.
func (d *Daemon) URL(path string) string {
	return "http://" + net.JoinHostPort(d.IP, strconv.Itoa(d.Port)) + path
}

// Play has every request answered by trick from now on; nil: properly.
func (d *Daemon) Play(trick func(*Exchange) bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.trick = trick
}

// PlaySide has the side channel's lines answered by trick from now on; nil:
// properly. It returns false to close the connection.
func (d *Daemon) PlaySide(trick func(w io.Writer, line string) bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.sideTrick = trick
}

// Stream sets what "watch" is answered; the connection is closed after it,
// unless it ends with a dot.
func (d *Daemon) Stream(s string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.stream = s
}

// Put stores a file, and makes the directories above it.
func (d *Daemon) Put(name string, body []byte) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.files[name] = body
	for dir := path.Dir(name); dir != "/"; dir = path.Dir(dir) {
		d.dirs[dir] = true
	}
}

// File is a file, if it is there.
func (d *Daemon) File(name string) ([]byte, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	body, ok := d.files[name]
	return body, ok
}

// Files are the names of the files that clients stored.
func (d *Daemon) Files() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	var names []string
	for name := range d.files {
		if strings.HasSuffix(name, ".fid") {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// Wipe empties the devices, as new disks would be.
func (d *Daemon) Wipe() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for name := range d.files {
		if path.Base(name) != "usage" {
			delete(d.files, name)
		}
	}
	for dir := range d.dirs {
		if path.Dir(dir) != "/" {
			delete(d.dirs, dir)
		}
	}
}

// Requests are those that came so far, as "METHOD path".
func (d *Daemon) Requests() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.requests)
}

// Accepted is how many connections there were so far, on both ports.
func (d *Daemon) Accepted() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.accepted
}

// Exchange is one request and what becomes of it.
type Exchange struct {
	*http.Request
	Conn net.Conn // to send anything on
	N    int      // the request's number on its connection, from 1

	d     *Daemon
	close bool
}

// Close has the connection closed after the exchange.
func (x *Exchange) Close() { x.close = true }

// Body reads the request's body whole.
func (x *Exchange) Body() []byte {
	body, err := io.ReadAll(x.Request.Body)
	if err != nil {
		x.close = true
		return nil
	}
	return body
}

// Wait waits until the client goes.
func (x *Exchange) Wait() {
	_, _ = io.Copy(io.Discard, x.Conn)
	x.close = true
}

func (d *Daemon) serveHTTP(conn net.Conn) {
	r := bufio.NewReader(conn)
	for n := 1; ; n++ {
		req, err := http.ReadRequest(r)
		if err != nil {
			return
		}
		x := &Exchange{Request: req, Conn: conn, N: n, d: d}
		d.mu.Lock()
		d.requests = append(d.requests, req.Method+" "+req.URL.Path)
		trick := d.trick
		d.mu.Unlock()
		if trick == nil || !trick(x) {
			x.Send(x.Answer())
		}
		if x.close {
			return
		}
		if _, err := io.Copy(io.Discard, req.Body); err != nil {
			return
		}
	}
}

// Answer is an answer over HTTP.
type Answer struct {
	Status int
	Header []string // "Name: value"
	Length int      // of Content-Length; below 0: there is none
	Body   []byte
}

// Bytes are the answer as d would send it.
func (x *Exchange) Bytes(a Answer) []byte {
	proto := x.d.Make.Proto
	if proto == "" {
		proto = "HTTP/1.1"
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s %d %s\r\n", proto, a.Status, http.StatusText(a.Status))
	if x.d.Make.Server != "" {
		fmt.Fprintf(&b, "Server: %s\r\n", x.d.Make.Server)
	}
	for _, h := range a.Header {
		b.WriteString(h + "\r\n")
	}
	if a.Length >= 0 {
		fmt.Fprintf(&b, "Content-Length: %d\r\n", a.Length)
	}
	if x.wantsClose() || x.close || a.Length < 0 && x.Method != http.MethodHead && a.Status != http.StatusNoContent {
		x.close = true
		b.WriteString("Connection: close\r\n")
	} else {
		b.WriteString("Connection: keep-alive\r\n")
	}
	b.WriteString("\r\n")
	b.Write(a.Body)
	return b.Bytes()
}

// wantsClose is what the request says: HTTP/1.0 must ask for keep-alive.
func (x *Exchange) wantsClose() bool {
	c := strings.ToLower(x.Header.Get("Connection"))
	return x.Request.Close || !x.ProtoAtLeast(1, 1) && !strings.Contains(c, "keep-alive")
}

// Send sends an answer.
func (x *Exchange) Send(a Answer) { x.Write(x.Bytes(a)) }

// Write sends bytes. A client that has gone ends the exchange.
func (x *Exchange) Write(b []byte) bool {
	if _, err := x.Conn.Write(b); err != nil {
		x.close = true
	}
	return !x.close
}

// Answer does what the request asks for, and is the proper answer.
func (x *Exchange) Answer() Answer {
	d := x.d
	name := "/" + strings.TrimLeft(x.URL.Path, "/")
	switch x.Method {
	case http.MethodGet, http.MethodHead:
		return x.read(name)
	case http.MethodPut:
		body := x.Body()
		return d.store(name, body, x.Header.Get("Content-MD5"))
	case http.MethodDelete:
		d.mu.Lock()
		defer d.mu.Unlock()
		if _, ok := d.files[name]; !ok {
			return Answer{Status: 404}
		}
		delete(d.files, name)
		return Answer{Status: 204, Length: -1}
	case "MKCOL":
		return d.mkcol(strings.TrimSuffix(name, "/"))
	}
	return Answer{Status: 400}
}

func (x *Exchange) read(name string) Answer {
	d := x.d
	d.mu.Lock()
	body, ok := d.files[name]
	isDir := name == "/" || d.dirs[strings.TrimSuffix(name, "/")]
	d.mu.Unlock()
	a := Answer{Status: 200}
	switch {
	case ok:
		a.Length, a.Body = len(body), body
		a.Header = []string{"Last-Modified: Tue, 14 Nov 2023 22:10:00 GMT", "Content-Type: application/octet-stream"}
	case name == "/":
	case isDir && d.Make.ListsDirectory != "":
		a.Length, a.Body = len(d.Make.ListsDirectory), []byte(d.Make.ListsDirectory)
	case isDir:
		a.Status = 403
	default:
		a.Status, a.Length, a.Body = 404, 9, []byte("not found")
	}
	if x.Method == http.MethodHead {
		a.Body = nil
		if d.Make.HeadOmitsZero && a.Length == 0 {
			a.Length = -1
		}
	}
	return a
}

func (d *Daemon) store(name string, body []byte, sum string) Answer {
	d.mu.Lock()
	defer d.mu.Unlock()
	dev, _, deep := strings.Cut(strings.TrimPrefix(name, "/"), "/")
	got := md5.Sum(body)
	switch {
	case !deep || strings.HasSuffix(name, "/") || strings.Contains(name, ".."):
		return Answer{Status: 400}
	case !d.dirs["/"+dev]:
		return Answer{Status: 404}
	case d.Make.MKCOL && !d.dirs[path.Dir(name)]:
		return Answer{Status: 500} // so says nginx 1.22
	case d.Make.ChecksMD5 && sum != "" && sum != base64.StdEncoding.EncodeToString(got[:]):
		return Answer{Status: 400}
	}
	_, was := d.files[name]
	d.files[name] = body
	for dir := path.Dir(name); dir != "/"; dir = path.Dir(dir) {
		d.dirs[dir] = true
	}
	if was {
		return Answer{Status: d.Make.Replaced}
	}
	return Answer{Status: d.Make.Stored}
}

func (d *Daemon) mkcol(dir string) Answer {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case !d.Make.MKCOL:
		return Answer{Status: 400}
	case d.dirs[dir]:
		return Answer{Status: 405}
	case !d.dirs[path.Dir(dir)]:
		return Answer{Status: 409}
	}
	d.dirs[dir] = true
	return Answer{Status: 201}
}

func (d *Daemon) serveSide(conn net.Conn) {
	lines := bufio.NewScanner(conn)
	for lines.Scan() {
		d.mu.Lock()
		trick, stream := d.sideTrick, d.stream
		d.mu.Unlock()
		switch {
		case trick != nil:
			if !trick(conn, lines.Text()) {
				return
			}
		case lines.Text() == "watch":
			if _, err := io.WriteString(conn, stream); err != nil || !strings.HasSuffix(stream, ".\n") {
				return
			}
			_, _ = io.Copy(io.Discard, conn) // until the client goes
		default:
			if _, err := io.WriteString(conn, d.SideReply(lines.Text())+"\r\n"); err != nil {
				return
			}
		}
	}
}

// SideReply is the proper reply to a line on the side channel.
func (d *Daemon) SideReply(line string) string {
	f := strings.Fields(line)
	if len(f) == 0 {
		return ""
	}
	t, isDigest := protocol.ParseHashType(f[0])
	isDigest = isDigest && t <= protocol.HashSHA1 // what other makes know
	if len(f) < 2 || f[0] != "size" && !(isDigest && d.Make.Digests) {
		return d.Make.Unknown + f[0]
	}
	if strings.Contains(f[1], "..") {
		return "ERROR: uri invalid (contains ..)"
	}
	body, ok := d.File(f[1])
	switch {
	case f[0] == "size" && !ok:
		return f[1] + " -1"
	case f[0] == "size" && len(body) == 0:
		return f[1] + " " + d.Make.EmptySize
	case f[0] == "size":
		return fmt.Sprintf("%s %d", f[1], len(body))
	case !ok:
		return fmt.Sprintf("%s %s=-1", f[1], t)
	}
	h := t.New()
	h.Write(body)
	return fmt.Sprintf("%s %s=%s", f[1], t, hex.EncodeToString(h.Sum(nil)))
}
