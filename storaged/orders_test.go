package storaged

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/mogile/mogile/protocol"
)

// testKey is a cluster key.
var testKey = []byte("0123456789abcdef0123456789abcdef0123456789abcdef")

// give sends the bytes of an order, and reads all of its answer.
func give(t testing.TB, addr net.Addr, verb string, body []byte) (status int, lines []protocol.AnswerLine) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 3*patience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+addr.String()+protocol.OrderPath+verb, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", protocol.OrderType)
	transport := &http.Transport{DisableKeepAlives: true}
	res, err := transport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	for s := bufio.NewScanner(res.Body); s.Scan(); {
		l, err := protocol.ParseAnswerLine(s.Text())
		if err != nil {
			t.Errorf("%q: %v", s.Text(), err)
		}
		lines = append(lines, l)
	}
	return res.StatusCode, lines
}

// order gives an order, and is the last line of the answer.
func (d *daemon) order(verb string, key []byte, args ...protocol.Arg) protocol.AnswerLine {
	d.t.Helper()
	_, lines := give(d.t, d.HTTPAddr(), verb, protocol.NewOrder(verb, time.Now(), time.Minute, args).Sign(key))
	if len(lines) == 0 {
		d.t.Fatalf("%s: no answer", verb)
	}
	return lines[len(lines)-1]
}

// serveOrders serves orders of these kinds on a listener of its own.
func serveOrders(t *testing.T, keys [][]byte, kinds ...order) (*daemon, *orders) {
	t.Helper()
	d := start(t, Options{ClusterKeys: keys}, 1)
	taken := d.http.handler.(*plane).orders
	taken.kinds = append(taken.kinds, kinds...)
	return d, taken
}

// echo answers with its arguments.
var echo = order{verb: "echo", run: func(_ context.Context, o protocol.Order, _ *orderer) (protocol.Args, error) {
	return o.Args, nil
}}

func TestOrderIsCarriedOut(t *testing.T) {
	t.Parallel()
	d, _ := serveOrders(t, [][]byte{testKey}, echo, order{verb: "count", run: func(_ context.Context, _ protocol.Order, to *orderer) (protocol.Args, error) {
		for i := range 5000 {
			if err := to.item(protocol.Args{{Name: "n", Value: fmt.Sprint(i)}}); err != nil {
				return nil, err
			}
		}
		return protocol.Args{{Name: "landed", Value: "1"}}, &protocol.Error{Code: "busy", Text: "a b"}
	}})
	l := d.order("echo", testKey, protocol.Arg{Name: "b", Value: "x y&z=\n"}, protocol.Arg{Name: "a", Value: "1"})
	if l.Kind != protocol.AnswerOK || l.Fields.String() != "a=1&b=x+y%26z%3D%0A" {
		t.Errorf("%v %v", l.Kind, l.Fields)
	}
	_, lines := give(t, d.HTTPAddr(), "count", protocol.NewOrder("count", time.Now(), time.Minute, nil).Sign(testKey))
	if len(lines) != 5001 {
		t.Fatalf("%d lines", len(lines))
	}
	for i, l := range lines[:5000] {
		if l.Kind != protocol.AnswerItem || l.Fields.Number("n") != int64(i) {
			t.Fatalf("line %d: %v", i, l)
		}
	}
	if l := lines[5000]; l.Kind != protocol.AnswerErr || *l.Err != (protocol.Error{Code: "busy", Text: "a b"}) || !l.Fields.True("landed") {
		t.Errorf("last line %v", l)
	}
}

// Every order that is not a tracker's, or not meant now, is refused by name, and
// nothing is carried out.
func TestOrdersAreRefused(t *testing.T) {
	t.Parallel()
	d, _ := serveOrders(t, [][]byte{testKey}, order{verb: "never", run: func(context.Context, protocol.Order, *orderer) (protocol.Args, error) {
		t.Error("it was carried out")
		return nil, nil
	}})
	now := time.Now()
	other := []byte(strings.Repeat("another key", 5))
	good := protocol.NewOrder("never", now, time.Minute, protocol.Args{{Name: "devid", Value: "1"}})
	with := func(change func(*protocol.Order)) []byte {
		o := good
		change(&o)
		return o.Sign(testKey)
	}
	for _, c := range []struct {
		name   string
		body   []byte
		status int
		code   string
	}{
		{"unsigned", good.Sign(nil), 403, "bad_signature"},
		{"other key", good.Sign(other), 403, "bad_signature"},
		{"tampered", bytes.Replace(good.Sign(testKey), []byte("devid=1"), []byte("devid=2"), 1), 403, "bad_signature"},
		{"other verb", protocol.NewOrder("echo", now, time.Minute, nil).Sign(testKey), 400, "bad_order"},
		{"slow clock", with(func(o *protocol.Order) { o.Issued = now.Add(-3 * time.Minute) }), 403, "clock_skew"},
		{"fast clock", with(func(o *protocol.Order) { o.Issued = now.Add(3 * time.Minute) }), 403, "clock_skew"},
		{"over", with(func(o *protocol.Order) { o.Deadline = now.Add(-time.Second) }), 403, "order_expired"},
		{"for ever", with(func(o *protocol.Order) { o.Deadline = now.Add(25 * time.Hour) }), 403, "order_too_long"},
		{"garbage", []byte("please copy\n"), 400, "bad_order"},
		{"empty", nil, 400, "bad_order"},
		{"newer", bytes.Replace(good.Sign(testKey), []byte("order 1 "), []byte("order 2 "), 1), 400, "unknown_version"},
		{"huge", bytes.Repeat([]byte("x"), 1<<20), 400, "bad_order"},
	} {
		t.Run(c.name, func(t *testing.T) {
			status, lines := give(t, d.HTTPAddr(), "never", c.body)
			if status != c.status || len(lines) != 1 || lines[0].Err == nil || lines[0].Err.Code != c.code {
				t.Errorf("%d %v, want %d %s", status, lines, c.status, c.code)
			}
		})
	}
	if l := d.order("nothing", testKey); l.Err == nil || l.Err.Code != "unknown_verb" {
		t.Errorf("unknown verb: %v", l)
	}
}

func TestOrderIsObeyedOnce(t *testing.T) {
	t.Parallel()
	d, _ := serveOrders(t, [][]byte{testKey}, echo)
	body := protocol.NewOrder("echo", time.Now(), time.Minute, nil).Sign(testKey)
	if status, _ := give(t, d.HTTPAddr(), "echo", body); status != 200 {
		t.Fatal(status)
	}
	if status, lines := give(t, d.HTTPAddr(), "echo", body); status != 403 || lines[0].Err.Code != "order_replayed" {
		t.Errorf("%d %v", status, lines)
	}
}

// A daemon that is started anew does not know what the one before it has done.
func TestOrderFromBeforeTheStart(t *testing.T) {
	t.Parallel()
	before := protocol.NewOrder("echo", time.Now().Add(-time.Millisecond), time.Minute, nil)
	d, _ := serveOrders(t, [][]byte{testKey}, echo)
	if status, lines := give(t, d.HTTPAddr(), "echo", before.Sign(testKey)); status != 403 || lines[0].Err.Code != "clock_skew" {
		t.Errorf("%d %v", status, lines)
	}
	if l := d.order("echo", testKey); l.Err != nil {
		t.Errorf("one from after the start: %v", l)
	}
}

func TestNonces(t *testing.T) {
	t.Parallel()
	now := time.Unix(1700000000, 0)
	n := nonces{since: now.UnixMilli()}
	add := func(i int, issued, at time.Time) error {
		return n.add(protocol.Order{Issued: issued, Nonce: fmt.Sprintf("%032x", i)}, at)
	}
	if err := add(0, now.Add(-time.Millisecond), now); !errors.Is(err, protocol.ErrClockSkew) || len(n.known) != 0 {
		t.Errorf("from before the start: %v", err)
	}
	if err := add(1, now, now); err != nil {
		t.Error(err)
	}
	if err := add(1, now, now.Add(protocol.MaxClockSkew)); !errors.Is(err, protocol.ErrOrderReplayed) {
		t.Errorf("a nonce is not taken once: %v", err)
	}
	later := now.Add(5 * time.Minute)
	if err := add(1, later, later); err != nil || len(n.known) != 1 {
		t.Errorf("an old one is not forgotten: %v", err)
	}
	const more = 10
	for i := range maxNonces + more {
		if err := add(i+2, later.Add(time.Duration(i)*time.Millisecond), later); err != nil {
			t.Fatal(err)
		}
	}
	if len(n.known) > maxNonces || len(n.queue) != len(n.known) {
		t.Errorf("%d are remembered", len(n.known))
	}
	if err := add(maxNonces, later.Add((maxNonces-2)*time.Millisecond), later); !errors.Is(err, protocol.ErrOrderReplayed) {
		t.Errorf("a late one was forgotten: %v", err)
	}
	// The flood has driven out the first ones. They are not taken again.
	if err := add(2, later, later); !errors.Is(err, protocol.ErrClockSkew) {
		t.Errorf("one that had to be forgotten: %v", err)
	}
}

// Without a key only this machine gives orders, on a listener that only it can
// reach, and no web page can have a browser do so.
func TestOrdersWithoutKey(t *testing.T) {
	t.Parallel()
	d, taken := serveOrders(t, nil, echo)
	if l := d.order("echo", nil); l.Kind != protocol.AnswerOK {
		t.Errorf("on loopback: %v", l)
	}
	body := protocol.NewOrder("echo", time.Now(), time.Minute, nil).Sign(nil)
	a := taken.serve(&request{method: "POST", minor: 1, contentType: []string{protocol.OrderType}, body: bytes.NewReader(body)}, "echo")
	if a.status != 403 || !strings.HasPrefix(string(a.text), "ERR no_key ") {
		t.Errorf("from elsewhere: %d %s", a.status, a.text)
	}
	if got := taken.words(false); got != "" {
		t.Errorf("a listener that others reach announces %q", got)
	}
	if got := taken.words(true); !strings.Contains(got, " echo") {
		t.Errorf("a listener on loopback announces %q", got)
	}
	for name, head := range map[string]string{
		"HTTP/1.0":  "POST /.mogile/echo HTTP/1.0\nContent-Type: " + protocol.OrderType,
		"form":      "POST /.mogile/echo HTTP/1.1\nHost: x\nContent-Type: text/plain",
		"no type":   "POST /.mogile/echo HTTP/1.1\nHost: x",
		"expecting": "POST /.mogile/echo HTTP/1.1\nHost: x\nContent-Type: text/plain\nExpect: 100-continue",
	} {
		r := d.do("%s\nContent-Length: %d\n\n%s", head, len(body), body)
		if want := map[bool]int{true: 505, false: 415}[name == "HTTP/1.0"]; r.StatusCode != want || !strings.HasPrefix(r.body, "ERR bad_order ") {
			t.Errorf("%s: %s %q", name, r.Status, r.body)
		}
	}
	c := dial(t, d.GetAddr())
	c.send("POST /.mogile/echo HTTP/1.1\nHost: x\nContent-Type: %s\nContent-Length: %d\n\n", protocol.OrderType, len(body))
	if r := c.receive("POST"); r.StatusCode != 405 {
		t.Errorf("on the get port: %s", r.Status)
	}
}

// Lines come while a verb works, and its context ends with the connection, or at
// the deadline.
func TestOrderEndsWithItsClient(t *testing.T) {
	t.Parallel()
	ended := make(chan error, 1)
	wait := order{verb: "wait", run: func(ctx context.Context, _ protocol.Order, to *orderer) (protocol.Args, error) {
		to.progress(7)
		<-ctx.Done()
		ended <- context.Cause(ctx)
		return nil, context.Cause(ctx)
	}}
	d, _ := serveOrders(t, [][]byte{testKey}, wait)
	for name, leave := range map[string]func(*client){
		"hangs up": func(c *client) { c.Close() },
		"resets":   func(c *client) { _ = c.SetLinger(0); c.Close() },
		"sends on": func(c *client) { c.send("GET /dev1/usage HTTP/1.1\nHost: x\n\n") },
	} {
		c := dial(t, d.HTTPAddr())
		body := protocol.NewOrder("wait", time.Now(), time.Hour, nil).Sign(testKey)
		fmt.Fprintf(c, "POST /.mogile/wait HTTP/1.1\r\nHost: x\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n%s", protocol.OrderType, len(body), body)
		in := bufio.NewReader(c)
		res, err := http.ReadResponse(in, nil)
		if err != nil {
			t.Fatal(err)
		}
		line, err := bufio.NewReader(res.Body).ReadString('\n')
		if err != nil || line != "PROGRESS done=7\n" {
			t.Errorf("%s: %q, %v", name, line, err)
		}
		leave(c)
		select {
		case err := <-ended:
			if !errors.Is(err, errHungUp) {
				t.Errorf("%s: ended by %v", name, err)
			}
		case <-time.After(patience):
			t.Fatalf("%s: the work goes on", name)
		}
	}
	status, lines := give(t, d.HTTPAddr(), "wait", protocol.NewOrder("wait", time.Now(), 50*time.Millisecond, nil).Sign(testKey))
	if err := <-ended; !errors.Is(err, errDeadline) || status != 200 || lines[len(lines)-1].Kind != protocol.AnswerErr {
		t.Errorf("at the deadline: %v, %d %v", err, status, lines)
	}
}

// A connection is good for more requests after an order.
func TestOrdersOnOneConnection(t *testing.T) {
	t.Parallel()
	d, _ := serveOrders(t, [][]byte{testKey}, echo)
	c := dial(t, d.HTTPAddr())
	in := bufio.NewReader(c)
	for range 3 {
		body := protocol.NewOrder("echo", time.Now(), time.Minute, nil).Sign(testKey)
		fmt.Fprintf(c, "POST /.mogile/echo HTTP/1.1\r\nHost: x\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n%s", protocol.OrderType, len(body), body)
		res, err := http.ReadResponse(in, nil)
		if err != nil {
			t.Fatal(err)
		}
		if text, err := io.ReadAll(res.Body); string(text) != "OK \n" || err != nil || res.Header.Get("Mogile") == "" {
			t.Errorf("%q, %v", text, err)
		}
		fmt.Fprint(c, "HEAD /dev1/usage HTTP/1.1\r\nHost: x\r\n\r\n")
		if res, err = http.ReadResponse(in, &http.Request{Method: "HEAD"}); err != nil || res.StatusCode != 200 {
			t.Fatalf("%v, %v", res, err)
		}
	}
}

// Who gives an order a byte at a time does not keep a connection for ever.
func TestSlowOrder(t *testing.T) {
	t.Parallel()
	d := start(t, Options{ClientTimeout: 50 * time.Millisecond}, 1)
	c := dial(t, d.HTTPAddr())
	c.send("POST /.mogile/copy HTTP/1.1\nHost: x\nContent-Type: %s\nContent-Length: 100\n\nmogile", protocol.OrderType)
	if r := c.receive("POST"); r.StatusCode != http.StatusRequestTimeout || !r.Close || !strings.HasPrefix(r.body, "ERR bad_order ") {
		t.Errorf("%s %q", r.Status, r.body)
	}
	c = dial(t, d.HTTPAddr())
	c.send("POST /.mogile/copy HTTP/1.1\nHost: x\nContent-Type: %s\nContent-Length: 100\n\nmogile", protocol.OrderType)
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if r := c.receive("POST"); r.StatusCode != http.StatusBadRequest {
		t.Errorf("broken off: %s", r.Status)
	}
}

// Who does not read the lines of an answer ends the work.
func TestOrderOfOneWhoDoesNotListen(t *testing.T) {
	t.Parallel()
	ended := make(chan error, 1)
	d := start(t, Options{ClusterKeys: [][]byte{testKey}, ClientTimeout: 100 * time.Millisecond}, 1)
	taken := d.http.handler.(*plane).orders
	taken.kinds = append(taken.kinds, order{verb: "talk", run: func(ctx context.Context, _ protocol.Order, to *orderer) (protocol.Args, error) {
		line := protocol.Args{{Name: "x", Value: strings.Repeat("x", 10_000)}}
		for to.item(line) == nil {
		}
		ended <- context.Cause(ctx)
		return nil, nil
	}})
	c := dial(t, d.HTTPAddr())
	if err := c.SetReadBuffer(4 << 10); err != nil {
		t.Fatal(err)
	}
	body := protocol.NewOrder("talk", time.Now(), time.Hour, nil).Sign(testKey)
	fmt.Fprintf(c, "POST /.mogile/talk HTTP/1.1\r\nHost: x\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n%s", protocol.OrderType, len(body), body)
	select {
	case err := <-ended:
		if !errors.Is(err, errHungUp) {
			t.Error(err)
		}
	case <-time.After(patience):
		t.Error("it goes on")
	}
}
