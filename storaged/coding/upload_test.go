package coding

import (
	"fmt"
	"io"
	"net"
	"testing"
	"testing/synctest"
	"time"
)

// TestIdleConnections has connections that nobody uses again closed, though no
// further shard goes to their storage daemon, and no more of them kept than are
// bearable.
func TestIdleConnections(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := &uploads{idle: map[string][]*idleConn{}}
		keep := func(addr string) net.Conn {
			own, peer := net.Pipe()
			u.keep(addr, own)
			return peer
		}
		closed := func(peer net.Conn) bool {
			_ = peer.SetReadDeadline(time.Now().Add(time.Millisecond)) // pipes have no error here
			_, err := peer.Read(make([]byte, 1))
			return err == io.EOF
		}
		first := keep("a")
		time.Sleep(idleTime / 2)
		second := keep("a")
		time.Sleep(idleTime * 3 / 4)
		if !closed(first) || closed(second) {
			t.Error("not the one that nobody used was closed")
		}
		if c, err := u.connect(t.Context(), "a"); err != nil || c == nil || len(u.idle) != 0 {
			t.Errorf("%v, %v, %d are kept", c, err, len(u.idle))
		}
		time.Sleep(2 * idleTime)
		if closed(second) {
			t.Error("one that is in use was closed")
		}
		var all []net.Conn
		for i := range keepAll + 100 {
			all = append(all, keep(fmt.Sprint(i%50)))
		}
		kept := 0
		for _, peer := range all {
			if !closed(peer) {
				kept++
			}
		}
		if kept != keepAll {
			t.Errorf("%d connections are kept", kept)
		}
		u.close()
		time.Sleep(2 * idleTime)
		for _, peer := range all {
			if !closed(peer) {
				t.Fatal("one is open after the end")
			}
		}
	})
}
