package storaged

import (
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/rs/zerolog"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/storaged/volume"
)

// Options configure a [Daemon]. The zero value serves /var/mogdata on
// MogileFS's ports.
type Options struct {
	// Docroot is the folder with the dev<N> folders; default /var/mogdata.
	Docroot string

	// HTTPListen, MgmtListen and GetListen are the addresses of the data plane,
	// of the side channel and of a data plane that only reads: "ip:port",
	// ":port" or "port". An empty one is not served; where all three are empty
	// the first two are 0.0.0.0:7500 and 0.0.0.0:7501. Port 0 picks a free one.
	HTTPListen, MgmtListen, GetListen string

	// Listen binds a listener to "ip:port", either of which may be left out; nil
	// is the operating system's.
	Listen func(addr string) (*net.TCPListener, error)

	// Trackers are the trackers that this daemon may ask, "host:port" or
	// "host". Nothing needs them so far; they are checked for their form.
	Trackers []string

	// Durability says what an answered PUT promises; see package volume.
	Durability volume.Durability
	// RequireMount refuses dev<N> folders that are not mount points.
	RequireMount bool
	// ClusterID is written in the identity of new devices, and devices of another
	// cluster are refused. May be empty.
	ClusterID string
	// ClusterKeys are the keys with which trackers sign their orders. Without
	// any, orders are taken only on listeners on loopback addresses.
	ClusterKeys [][]byte

	// TransfersPerDevice bounds the files that are fetched at a time from other
	// storage daemons to each device; 0 means transfer.DefaultPerDevice.
	TransfersPerDevice int
	// ReplicationBandwidth is how many bytes a second all of them together may
	// bring; 0 means any number.
	ReplicationBandwidth int64

	// MaxConns bounds the open connections of each listener; default 10000. One
	// more waits, and the others in the kernel's queue.
	MaxConns int
	// UsageInterval is the time between two looks at how full the devices are,
	// and for new devices; default 10 s, as in MogileFS 2.73.
	UsageInterval time.Duration
	// ClientTimeout is how long a client inside a request may neither send nor
	// take a byte; default 60 s.
	ClientTimeout time.Duration
	// DrainTimeout bounds the time that requests in progress get to finish when
	// the daemon stops; default 30 s. See [Daemon.Stop].
	DrainTimeout time.Duration
	// ShutdownAtOnce has "shutdown" on the side channel cut everything off, as
	// in MogileFS 2.73, where "shutdown graceful" does not.
	ShutdownAtOnce bool
	// NoUtilisation has "watch" on the side channel answered as where the kernel
	// does not tell how busy its disks are.
	NoUtilisation bool
	// StuckAfter is how long a disk may be silent before it is taken for sick;
	// default as in package volume.
	StuckAfter time.Duration

	// FS is the filesystem; nil is the operating system's.
	FS volume.FS
	// ProcFS and SysFS are where the kernel shows its counters; default /proc
	// and /sys.
	ProcFS, SysFS string

	Now func() time.Time // nil is time.Now
	Log zerolog.Logger
}

// withDefaults fills in what is not set, and reports all that is wrong.
func (o Options) withDefaults() (Options, error) {
	var errs []error
	if o.HTTPListen == "" && o.MgmtListen == "" && o.GetListen == "" {
		o.HTTPListen, o.MgmtListen = "0.0.0.0:7500", "0.0.0.0:7501"
	}
	for _, l := range []struct {
		name  string
		value *string
	}{{"HTTP", &o.HTTPListen}, {"side channel", &o.MgmtListen}, {"get-only HTTP", &o.GetListen}} {
		if *l.value == "" {
			continue
		}
		addr, err := listenAddr(*l.value)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s listener: %w", l.name, err))
		}
		*l.value = addr
	}
	trackers := make([]string, len(o.Trackers))
	for i, t := range o.Trackers {
		addr, err := trackerAddr(t)
		if err != nil {
			errs = append(errs, err)
		}
		trackers[i] = addr
	}
	o.Trackers = trackers
	for _, n := range []struct {
		name string
		bad  bool
	}{
		{"connections", o.MaxConns < 0}, {"usage interval", o.UsageInterval < 0}, {"client timeout", o.ClientTimeout < 0},
		{"drain timeout", o.DrainTimeout < 0}, {"transfers per device", o.TransfersPerDevice < 0}, {"replication bandwidth", o.ReplicationBandwidth < 0}, {"time after which a disk is stuck", o.StuckAfter < 0},
	} {
		if n.bad {
			errs = append(errs, fmt.Errorf("%s: must not be negative", n.name))
		}
	}
	setDefault(&o.Docroot, "/var/mogdata")
	setDefault(&o.MaxConns, 10000)
	setDefault(&o.UsageInterval, 10*time.Second)
	setDefault(&o.ClientTimeout, time.Minute)
	setDefault(&o.DrainTimeout, 30*time.Second)
	if o.Listen == nil {
		o.Listen = listen
	}
	setDefault(&o.ProcFS, "/proc")
	setDefault(&o.SysFS, "/sys")
	if o.Now == nil {
		o.Now = time.Now
	}
	return o, errors.Join(errs...)
}

func setDefault[T comparable](p *T, value T) {
	var zero T
	if *p == zero {
		*p = value
	}
}

func listen(addr string) (*net.TCPListener, error) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, err
	}
	return l.(*net.TCPListener), nil
}

// listenAddr completes "port" to ":port", and refuses what cannot be listened
// on.
func listenAddr(s string) (string, error) {
	if !strings.Contains(s, ":") {
		s = ":" + s
	}
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		return s, fmt.Errorf("%q: %w", s, err)
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return s, fmt.Errorf("%q: the port must be a number up to 65535", s)
	}
	if host != "" && net.ParseIP(host) == nil {
		return s, fmt.Errorf("%q: the host must be an IP address", s)
	}
	return s, nil
}

// trackerAddr completes "host" to "host:7001".
func trackerAddr(s string) (string, error) {
	addr := s
	if !strings.Contains(s, ":") {
		addr = net.JoinHostPort(s, protocol.DefaultPort)
	}
	host, port, err := net.SplitHostPort(addr)
	if err != nil || host == "" {
		return s, fmt.Errorf("tracker %q: want host:port", s)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return s, fmt.Errorf("tracker %q: the port must be a number from 1 to 65535", s)
	}
	return addr, nil
}
