//go:build unix

package protocol

import (
	"errors"
	"net"
	"syscall"
)

// Quiet reports whether nothing has arrived on an idle connection, neither
// bytes nor its end. What cannot be asked is taken for quiet.
func Quiet(conn net.Conn) bool {
	sc, ok := conn.(syscall.Conn)
	if !ok {
		return true
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return false
	}
	isQuiet := false
	if err := raw.Read(func(fd uintptr) bool {
		var b [1]byte
		_, err := syscall.Read(int(fd), b[:]) // sockets of package net never block
		isQuiet = errors.Is(err, syscall.EAGAIN)
		return true
	}); err != nil {
		return false
	}
	return isQuiet
}
