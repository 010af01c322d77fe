package storaged

import (
	"net"
	"time"

	"golang.org/x/sys/unix"
)

// noticeVanished has a connection break when its other side, which may have
// lost its power or its network, has not acknowledged anything for so long.
func noticeVanished(c *net.TCPConn, after time.Duration) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	if controlErr := raw.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(after.Milliseconds()))
	}); controlErr != nil {
		return controlErr
	}
	return err
}
