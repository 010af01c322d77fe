// Package protocoltest has trackers and storage daemons for the tests of
// clients. They keep everything in memory, do what MogileFS's do as far as a
// client can tell, and fail when told to.
package protocoltest

import (
	"bufio"
	"net"
	"strings"
	"sync"
	"testing"

	"github.com/mogile/mogile/protocol"
)

// Reply is what a [Tracker] does with a request.
type Reply struct {
	Fields protocol.Args
	Err    *protocol.Error
	Raw    string          // sent as it is, instead of fields or a refusal
	Wait   <-chan struct{} // before anything is sent
	HangUp bool            // close the connection, after Raw, instead of replying
}

// Tracker is a server of lines whose replies a function decides.
type Tracker struct {
	listener net.Listener
	handle   func(protocol.Request) Reply
	console  func(line string) []string

	mu       sync.Mutex // guards what follows
	conns    map[net.Conn]bool
	accepted int
	peak     int
	requests []protocol.Request
	wg       sync.WaitGroup
}

// NewTracker serves on a free port of 127.0.0.1 until the test ends. handle is
// called by several goroutines. console, which may be nil, answers lines that
// begin with "!".
func NewTracker(t testing.TB, handle func(protocol.Request) Reply, console func(line string) []string) *Tracker {
	t.Helper()
	l := listen(t, "127.0.0.1")
	tr := &Tracker{listener: l, handle: handle, console: console, conns: make(map[net.Conn]bool)}
	tr.wg.Go(tr.serve)
	t.Cleanup(tr.Close)
	return tr
}

// Addr is where the tracker listens.
func (tr *Tracker) Addr() string { return tr.listener.Addr().String() }

// Close stops the tracker and breaks its connections.
func (tr *Tracker) Close() {
	tr.listener.Close()
	tr.Break()
	tr.wg.Wait()
}

// Break closes the connections that are open now.
func (tr *Tracker) Break() {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	for c := range tr.conns {
		c.Close()
	}
}

// Accepted is how many connections there have been, and Peak how many at once.
func (tr *Tracker) Accepted() int {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	return tr.accepted
}

// Peak is how many connections there were at once.
func (tr *Tracker) Peak() int {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	return tr.peak
}

// Requests are those that arrived so far, without their callid.
func (tr *Tracker) Requests() []protocol.Request {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	return append([]protocol.Request(nil), tr.requests...)
}

// Commands are the names of [Tracker.Requests].
func (tr *Tracker) Commands() []string {
	var names []string
	for _, r := range tr.Requests() {
		names = append(names, r.Command)
	}
	return names
}

func (tr *Tracker) serve() {
	for {
		conn, err := tr.listener.Accept()
		if err != nil {
			return
		}
		tr.mu.Lock()
		tr.accepted++
		tr.conns[conn] = true
		tr.peak = max(tr.peak, len(tr.conns))
		tr.mu.Unlock()
		tr.wg.Go(func() {
			tr.talk(conn)
			conn.Close()
			tr.mu.Lock()
			delete(tr.conns, conn)
			tr.mu.Unlock()
		})
	}
}

func (tr *Tracker) talk(conn net.Conn) {
	r := bufio.NewReaderSize(conn, protocol.MaxLine)
	for {
		b, err := r.ReadSlice('\n')
		if err != nil {
			return
		}
		line := strings.TrimRight(string(b), "\r\n")
		if strings.HasPrefix(line, "!") {
			var out strings.Builder
			if tr.console != nil {
				for _, l := range tr.console(line) {
					out.WriteString(l + "\r\n")
				}
			}
			if _, err := conn.Write([]byte(out.String() + ".\r\n")); err != nil {
				return
			}
			continue
		}
		var reply Reply
		req, err := protocol.ParseRequest(line)
		callid, hasID := req.CallID()
		if err != nil {
			reply.Err = protocol.ErrUnknownCommand
		} else {
			plain := protocol.Request{Command: req.Command}
			for _, a := range req.Args {
				if a.Name != "callid" {
					plain.Args = append(plain.Args, a)
				}
			}
			tr.mu.Lock()
			tr.requests = append(tr.requests, plain)
			tr.mu.Unlock()
			reply = tr.handle(plain)
		}
		if reply.Wait != nil {
			<-reply.Wait
		}
		var out []byte
		switch {
		case reply.Raw != "" || reply.HangUp:
			out = []byte(reply.Raw)
		case reply.Err != nil && hasID:
			out = protocol.AppendErr(nil, reply.Err, &callid)
		case reply.Err != nil:
			out = protocol.AppendErr(nil, reply.Err, nil)
		default:
			fields := append(protocol.Args(nil), reply.Fields...)
			if hasID {
				fields.Set("callid", callid)
			}
			out = protocol.AppendOK(nil, fields)
		}
		if _, err := conn.Write(out); err != nil || reply.HangUp {
			return
		}
	}
}
