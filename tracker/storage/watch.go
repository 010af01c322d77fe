package storage

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"time"

	"github.com/mogile/mogile/protocol"
)

var (
	// ErrNoConnect is matched where a side channel could not be connected to.
	ErrNoConnect = errors.New("cannot connect to the side channel")
	// ErrNoStream is matched where a storage daemon has no stream of
	// utilisation.
	ErrNoStream = errors.New("no stream of utilisation")
)

const (
	// watchIdle is how long a stream may be silent before it is given up. It is
	// due each second, but a daemon without iostat says nothing.
	watchIdle = 2 * time.Minute
	// maxWatchDevices bounds a group.
	maxWatchDevices = 1 << 15
	// maxUtilization bounds a value, in bytes; they look like "12.35".
	maxUtilization = 16
)

// Watch reads the stream of utilisation of a host's devices from the side
// channel on port (0: that of the options), and calls group with each complete
// group, until the stream ends or ctx does. Values are percentages as text, or
// "-" where unknown. It always returns an error: one that matches ErrNoConnect,
// ErrNoStream or ctx's, or how the connection ended.
func (c *Client) Watch(ctx context.Context, host string, port int, group func(map[protocol.DevID]string)) error {
	if port == 0 {
		port = c.o.MgmtPort
	}
	if port < 0 {
		return fmt.Errorf("watch %s: %w", host, ErrNoStream)
	}
	addr := net.JoinHostPort(host, strconv.Itoa(port))
	dial := net.Dialer{Timeout: c.o.ConnTimeout, KeepAlive: 30 * time.Second}
	conn, err := dial.DialContext(ctx, "tcp", addr)
	if err != nil {
		return fmt.Errorf("watch %s: %w: %w", addr, ErrNoConnect, err)
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	err = readWatch(conn, group)
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return fmt.Errorf("watch %s: %w", addr, err)
}

// readWatch asks for the stream and reads it.
func readWatch(conn net.Conn, group func(map[protocol.DevID]string)) error {
	if err := conn.SetDeadline(time.Now().Add(watchIdle)); err != nil {
		return err
	}
	if _, err := io.WriteString(conn, "watch\n"); err != nil {
		return err
	}
	r := bufio.NewReaderSize(conn, sideLine)
	devs := map[protocol.DevID]string{}
	for {
		line, err := r.ReadSlice('\n')
		if err != nil {
			return err
		}
		line = bytes.TrimRight(line, "\r\n")
		switch {
		case string(line) == ".":
			group(devs)
			devs = make(map[protocol.DevID]string, len(devs))
			if err := conn.SetDeadline(time.Now().Add(watchIdle)); err != nil {
				return err
			}
		case bytes.HasPrefix(line, []byte("ERR")):
			return fmt.Errorf("%w: %q", ErrNoStream, line)
		default:
			dev, util, ok := parseUtilization(line)
			if !ok {
				continue
			}
			if devs[dev] = util; len(devs) > maxWatchDevices {
				return fmt.Errorf("a group of more than %d devices", maxWatchDevices)
			}
		}
	}
}

// parseUtilization reads a line of the stream: device, blanks, percentage.
func parseUtilization(line []byte) (protocol.DevID, string, bool) {
	f := bytes.Fields(line)
	if len(f) != 2 || len(f[1]) > maxUtilization {
		return 0, "", false
	}
	dev, err := strconv.ParseUint(string(f[0]), 10, 32)
	if err != nil || dev == 0 {
		return 0, "", false
	}
	for _, b := range f[1] {
		if (b < '0' || b > '9') && b != '.' && b != '-' {
			return 0, "", false
		}
	}
	return protocol.DevID(dev), string(f[1]), true
}
