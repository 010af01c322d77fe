//go:build !linux

package storaged

import (
	"net"
	"time"
)

// noticeVanished leaves it to the system when a connection to a host that has
// vanished breaks.
func noticeVanished(*net.TCPConn, time.Duration) error { return nil }
