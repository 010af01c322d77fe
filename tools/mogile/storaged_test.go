package mogile

import (
	"io"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/mogile/mogile/tools/mogile/mogstored"
)

func TestSameAddr(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		want, have string
		same       bool
	}{
		{"0.0.0.0:7500", "0.0.0.0:7500", true},
		{"0.0.0.0:7500", "0.0.0.0:7501", false},
		{"0.0.0.0:7500", "10.0.0.1:7500", false},
		{"10.0.0.1:7500", "10.0.0.1:7500", true},
		{"10.0.0.1:7500", "10.0.0.2:7500", false},
		{":7500", "[::]:7500", true},
		{":7500", "0.0.0.0:7500", true},
		{"0.0.0.0:7500", "[::]:7500", true}, // the default, where there is IPv6
		{"[::]:7500", "0.0.0.0:7500", true},
		{"[::]:7500", "[::1]:7500", false},
		{"0.0.0.0:7500", "[::]:7501", false},
		{"[::1]:7500", "[::1]:7500", true},
	} {
		want, err := net.ResolveTCPAddr("tcp", c.want)
		if err != nil {
			t.Fatal(err)
		}
		have, err := net.ResolveTCPAddr("tcp", c.have)
		if err != nil {
			t.Fatal(err)
		}
		if got := sameAddr(want, have); got != c.same {
			t.Errorf("want %s, have %s: %v", c.want, c.have, got)
		}
	}
}

func TestSpareDescriptors(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		limit    uint64
		services []mogstored.Service
		want     int
	}{
		{20064, []mogstored.Service{{HTTPListen: "x", MaxConns: 10000}}, 10000},
		{20062, []mogstored.Service{{HTTPListen: "x", MaxConns: 10000}}, 9999},
		{1 << 63, []mogstored.Service{{HTTPListen: "x", MaxConns: 10000}}, 10000},
		{1064, []mogstored.Service{{HTTPListen: "x", GetListen: "y", MaxConns: 10000}}, 250},
		{1064, []mogstored.Service{{HTTPListen: "x", MaxConns: 5}}, 5},
		{10, []mogstored.Service{{MaxConns: 10000}}, 16},
	} {
		h := storageHost{services: c.services}
		h.spareDescriptors(c.limit, zerolog.Nop())
		if got := h.services[0].MaxConns; got != c.want {
			t.Errorf("%d descriptors, %+v: %d connections, want %d", c.limit, c.services, got, c.want)
		}
	}
}

func TestNotifySystemd(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	t.Setenv("NOTIFY_SOCKET", "")
	if err := notifySystemd("READY=1"); err != nil {
		t.Errorf("where nobody wants to know: %v", err)
	}
	t.Setenv("NOTIFY_SOCKET", path)
	if err := notifySystemd("READY=1"); err == nil {
		t.Error("told to nobody")
	}
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := notifySystemd("MAINPID=42"); err != nil {
		t.Fatal(err)
	}
	if err := conn.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 100)
	n, err := conn.Read(buf)
	if err != nil && err != io.EOF || string(buf[:n]) != "MAINPID=42" {
		t.Errorf("%q, %v", buf[:n], err)
	}
}

func TestLimitsOfTransfers(t *testing.T) {
	for _, args := range [][]string{
		{"--transfers-per-device", "0"}, {"--transfers-per-device", "-1"}, {"--replication-bandwidth", "fast"}, {"--replication-bandwidth", "-5M"},
	} {
		if code, _, errs := mogileRun(t, append([]string{"storaged", "--docroot", "/nonexistent"}, args...)...); code != ExitUsage || !strings.Contains(errs, args[0]) {
			t.Errorf("%q: %d %s", args, code, errs)
		}
	}
}
