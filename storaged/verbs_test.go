package storaged

import (
	"context"
	"fmt"
	"hash/crc32"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/mogile/mogile/protocol"
)

const (
	copyFrom = "/dev1/0/000/000/0000000042.fid"
	copyTo   = "/dev2/0/000/000/0000000042.fid"
)

// copyArgs order that fid 42 be fetched from another daemon's device 1 to device 2.
func copyArgs(from *daemon, length int) protocol.CopyOrder {
	return protocol.CopyOrder{FID: 42, Dev: 2, From: "http://" + from.HTTPAddr().String() + copyFrom, Length: int64(length)}
}

// Two daemons, as they are: one fetches from the other what it is ordered to,
// and nothing without an order.
func TestCopyBetweenDaemons(t *testing.T) {
	t.Parallel()
	o := Options{ClusterKeys: [][]byte{testKey}}
	src, dst := start(t, o, 1), start(t, o, 2)
	content := string(pattern(300_000))
	if r := src.put(copyFrom, content); r.StatusCode != 201 {
		t.Fatal(r.Status)
	}
	c := copyArgs(src, len(content))
	c.HashType = protocol.HashSHA1
	if l := dst.order("copy", nil, c.Args()...); l.Err == nil || l.Err.Code != "bad_signature" {
		t.Errorf("unsigned: %v", l)
	}
	if got := dst.files(); len(got) != 0 {
		t.Errorf("%v after a refused order", got)
	}
	l := dst.order("copy", testKey, c.Args()...)
	report, err := protocol.ParseCopyReport(l.Fields)
	if l.Kind != protocol.AnswerOK || err != nil {
		t.Fatalf("%v %v %v", l.Kind, l.Err, err)
	}
	crc := crc32.Checksum([]byte(content), crc32.MakeTable(crc32.Castagnoli))
	if report.Length != int64(len(content)) || report.CRC32C != crc || report.Digest.Type != protocol.HashSHA1 {
		t.Errorf("%+v", report)
	}
	if got := dst.get(copyTo); got.body != content {
		t.Errorf("%d bytes landed", len(got.body))
	}
	// Errors tell what is known.
	for name, bad := range map[string]func(*protocol.CopyOrder){
		"src_error":  func(c *protocol.CopyOrder) { c.FID, c.From = 43, strings.Replace(c.From, "42.fid", "43.fid", 1) },
		"dest_error": func(c *protocol.CopyOrder) { c.Dev = 77 },
	} {
		c := copyArgs(src, len(content))
		bad(&c)
		if l := dst.order("copy", testKey, c.Args()...); l.Err == nil || l.Err.Code != name || l.Fields.True("landed") {
			t.Errorf("%v, want %s", l, name)
		}
	}
	if l := dst.order("copy", testKey, protocol.Arg{Name: "fid", Value: "1"}); l.Err == nil || l.Err.Code != "bad_order" {
		t.Errorf("without arguments: %v", l)
	}
	if n := testutil.ToFloat64(dst.http.handler.(*plane).orders.total.WithLabelValues("copy", "ok")); n != 1 {
		t.Errorf("%v orders counted", n)
	}
}

// DELETE of a path ends the transfer to it before it answers: the file is not
// there afterwards.
func TestDeleteEndsTransfer(t *testing.T) {
	t.Parallel()
	dst := start(t, Options{}, 2)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	const length = 400_000
	sent := make(chan struct{})
	source := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", fmt.Sprint(length))
		_, _ = w.Write(pattern(length / 2))
		w.(http.Flusher).Flush()
		close(sent)
		<-r.Context().Done()
	})}
	defer source.Close()
	go source.Serve(l)
	c := protocol.CopyOrder{FID: 42, Dev: 2, From: "http://" + l.Addr().String() + copyFrom, Length: length}
	ended := make(chan protocol.AnswerLine, 1)
	go func() { ended <- dst.order("copy", nil, c.Args()...) }()
	<-sent
	if r := dst.do("DELETE %s HTTP/1.1\nHost: x\n\n", copyTo); r.StatusCode != 404 {
		t.Errorf("DELETE: %s", r.Status)
	}
	if l := <-ended; l.Err == nil || l.Err.Code != "cancelled" {
		t.Errorf("the order: %v", l)
	}
	if got := dst.files(); len(got) != 0 {
		t.Errorf("%v is left", got)
	}
}

// A transfer does not outlive the connection of its order.
func TestCopyEndsWithItsOrder(t *testing.T) {
	t.Parallel()
	dst := start(t, Options{}, 2)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	asked := make(chan struct{}, 1)
	source := &http.Server{Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		asked <- struct{}{}
		<-r.Context().Done()
	})}
	defer source.Close()
	go source.Serve(l)
	c := protocol.CopyOrder{FID: 42, Dev: 2, From: "http://" + l.Addr().String() + copyFrom, Length: 5}
	give := func(within time.Duration) *client {
		conn := dial(t, dst.HTTPAddr())
		body := protocol.NewOrder("copy", time.Now(), within, c.Args()).Sign(nil)
		fmt.Fprintf(conn, "POST /.mogile/copy HTTP/1.1\r\nHost: x\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n%s", protocol.OrderType, len(body), body)
		<-asked
		return conn
	}
	conn := give(time.Hour)
	if n := dst.transferring(); n != 1 {
		t.Errorf("%v transfers", n)
	}
	conn.Close()
	eventually(t, "the transfer ends with the connection", func() bool { return dst.transferring() == 0 })
	conn = give(100 * time.Millisecond)
	if r := conn.receive("POST"); !strings.HasPrefix(r.body, "ERR cancelled ") || !strings.Contains(r.body, "deadline") {
		t.Errorf("at the deadline: %q", r.body)
	}
	if n := dst.transferring(); n != 0 {
		t.Errorf("%v transfers", n)
	}
}

// transferring is how many transfers run.
func (d *daemon) transferring() int {
	d.t.Helper()
	all, err := d.Registry().Gather()
	if err != nil {
		d.t.Fatal(err)
	}
	for _, f := range all {
		if f.GetName() == "mogile_storaged_transfers_in_progress" {
			return int(f.GetMetric()[0].GetGauge().GetValue())
		}
	}
	d.t.Fatal("nothing counts transfers")
	return 0
}

// A daemon that stops does not wait for transfers longer than for other requests.
func TestStopCutsTransfers(t *testing.T) {
	t.Parallel()
	d, _ := serveOrders(t, [][]byte{testKey}, order{verb: "wait", run: func(ctx context.Context, _ protocol.Order, _ *orderer) (protocol.Args, error) {
		<-ctx.Done()
		return nil, context.Cause(ctx)
	}})
	conn := dial(t, d.HTTPAddr())
	body := protocol.NewOrder("wait", time.Now(), time.Hour, nil).Sign(testKey)
	fmt.Fprintf(conn, "POST /.mogile/wait HTTP/1.1\r\nHost: x\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n%s", protocol.OrderType, len(body), body)
	if line, err := conn.r.ReadString('\n'); err != nil || !strings.HasPrefix(line, "HTTP/1.1 200") {
		t.Fatalf("%q, %v", line, err)
	}
	d.Stop(10 * time.Millisecond)
	select {
	case <-d.done:
	case <-time.After(patience):
		t.Error("it waits")
	}
}

// A GET tells the stored sum to who wants it.
func TestStoredSumIsTold(t *testing.T) {
	t.Parallel()
	d := start(t, Options{}, 1)
	d.put("/dev1/a", "123456789")
	d.put("/dev1/empty", "")
	for path, want := range map[string]string{"/dev1/a": "9 e3069283", "/dev1/empty": "0 00000000"} {
		if got := d.do("GET %s HTTP/1.1\nHost: x\nMogile-Want: sum\n\n", path).Header.Get("Mogile-Sum"); got != want {
			t.Errorf("%s: %q, want %q", path, got, want)
		}
	}
	for name, request := range map[string]string{
		"not asked": "GET /dev1/a HTTP/1.1\nHost: x\n\n",
		"else":      "GET /dev1/a HTTP/1.1\nHost: x\nMogile-Want: money\n\n",
		"a part":    "GET /dev1/a HTTP/1.1\nHost: x\nMogile-Want: sum\nRange: bytes=1-2\n\n",
		"usage":     "GET /dev1/usage HTTP/1.1\nHost: x\nMogile-Want: sum\n\n",
		"missing":   "GET /dev1/none HTTP/1.1\nHost: x\nMogile-Want: sum\n\n",
	} {
		if r := d.do("%s", request); len(r.Header["Mogile-Sum"]) > 0 {
			t.Errorf("%s: %v", name, r.Header)
		}
	}
	d.do("PUT /dev1/a HTTP/1.1\nHost: x\nContent-Range: bytes 0-0/*\nContent-Length: 1\n\nx")
	if r := d.do("GET /dev1/a HTTP/1.1\nHost: x\nMogile-Want: sum\n\n"); len(r.Header["Mogile-Sum"]) > 0 {
		t.Errorf("written in place: %v", r.Header)
	}
}

// The daemon announces what it does, and no more.
func TestCapabilities(t *testing.T) {
	t.Parallel()
	words := func(d *daemon, addr net.Addr) []string {
		c := dial(t, addr)
		c.send("GET / HTTP/1.1\nHost: x\n\n")
		return strings.Fields(c.receive("GET").Header.Get("Mogile"))
	}
	for name, o := range map[string]Options{"with a key": {ClusterKeys: [][]byte{testKey}}, "on loopback": {}} {
		d := start(t, o, 1)
		got := words(d, d.HTTPAddr())
		for _, want := range []string{"1", "md5", "sum", "copy"} {
			if !slices.Contains(got, want) {
				t.Errorf("%s: %q says nothing of %s", name, got, want)
			}
		}
		if got := strings.Join(words(d, d.GetAddr()), " "); got != "1 md5 sum" {
			t.Errorf("%s, for reading: %q", name, got)
		}
	}
	o, err := Options{HTTPListen: "0.0.0.0:0"}.withDefaults()
	if err != nil {
		t.Fatal(err)
	}
	taken := newOrders(o.ClusterKeys, []order{echo}, o.Now, prometheus.NewRegistry(), o.Log)
	if got := taken.words(isLoopback(&net.TCPAddr{IP: net.IPv4zero})); got != "" {
		t.Errorf("without a key, for everybody: %q", got)
	}
	if !isLoopback(&net.TCPAddr{IP: net.IPv6loopback}) || isLoopback(&net.UnixAddr{}) {
		t.Error("loopback addresses are mistaken")
	}
}
