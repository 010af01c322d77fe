package protocoltest

import (
	"net"
	"testing"
)

// listen listens on a free port of addr. Until the test ends nobody else is given
// that port, also when the listener is closed: an accepted connection holds it.
func listen(t testing.TB, addr string) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", addr+":0")
	if err != nil {
		t.Fatal(err)
	}
	for _, open := range []func() (net.Conn, error){
		func() (net.Conn, error) { return net.Dial("tcp", l.Addr().String()) },
		l.Accept,
	} {
		c, err := open()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
	}
	return l
}
