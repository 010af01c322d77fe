package process

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"time"
)

// Severity is how urgent a message is, as syslog numbers it.
type Severity int

const (
	Err     Severity = 3
	Warning Severity = 4
	Info    Severity = 6
	Debug   Severity = 7
)

const (
	facilityDaemon = 3 << 3
	// syslogBacklog is how many messages wait for a syslog daemon that reads
	// slowly; further ones are left out, and counted.
	syslogBacklog = 1024
	// syslogLine bounds a message in bytes: syslog daemons cut at 8 KiB or before.
	syslogLine = 8 << 10
	// syslogPatience is how long the syslog daemon may take to accept a message.
	syslogPatience = time.Second
	// syslogRetry is how long one that is away is left alone.
	syslogRetry = time.Second
)

// SyslogOptions say whose messages they are.
type SyslogOptions struct {
	Ident string // the daemon's name
	// Path is the socket of the syslog daemon; empty means where the system has
	// it.
	Path string
}

// Syslog sends messages to the syslog daemon of this machine, facility daemon,
// with the process's id. Sending never waits: a goroutine does it, and where the
// syslog daemon is away or does not read, messages are left out, and their number
// is told when it is back.
type Syslog struct {
	tag   string // "ident[pid]: "
	paths []string
	lines chan string
	ended chan struct{}

	mu     sync.Mutex // guards lost and closed, and sending to lines
	lost   int        // messages left out since the last one sent
	closed bool
}

// OpenSyslog begins to send messages. The syslog daemon need not be there.
func OpenSyslog(o SyslogOptions) *Syslog {
	s := &Syslog{
		tag:   fmt.Sprintf("%s[%d]: ", o.Ident, os.Getpid()),
		paths: []string{"/dev/log", "/var/run/syslog", "/var/run/log"},
		lines: make(chan string, syslogBacklog),
		ended: make(chan struct{}),
	}
	if o.Path != "" {
		s.paths = []string{o.Path}
	}
	go s.run()
	return s
}

// Send sends one message, a line of text.
func (s *Syslog) Send(level Severity, text string) {
	// RFC 3164's form, as the C library writes it to the local socket: the syslog
	// daemon adds the host's name.
	line := fmt.Sprintf("<%d>%s %s%s", facilityDaemon|int(level), time.Now().Format(time.Stamp), s.tag, text)
	if len(line) > syslogLine {
		line = strings.ToValidUTF8(line[:syslogLine], "")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return
	}
	select {
	case s.lines <- line:
	default:
		s.lost++
	}
}

// Close waits until what was sent has reached the syslog daemon, or is given up,
// which takes a second at most.
func (s *Syslog) Close() error {
	s.mu.Lock()
	if !s.closed {
		s.closed = true
		close(s.lines)
	}
	s.mu.Unlock()
	<-s.ended
	return nil
}

// run sends lines until there are no more.
func (s *Syslog) run() {
	defer close(s.ended)
	var conn net.Conn
	var away time.Time // until when nothing is tried
	defer func() {
		if conn != nil {
			_ = conn.Close() // nothing is buffered in it
		}
	}()
	for line := range s.lines {
		if time.Now().Before(away) {
			s.leftOut(1)
			continue
		}
		var err error
		if conn, err = s.write(conn, line); err != nil {
			s.leftOut(1)
			away = time.Now().Add(syslogRetry)
			continue
		}
		if n := s.takeLost(); n > 0 {
			note := fmt.Sprintf("<%d>%s %s%d messages were left out: syslog was away or slow", facilityDaemon|int(Warning), time.Now().Format(time.Stamp), s.tag, n)
			if conn, err = s.write(conn, note); err != nil {
				s.leftOut(n)
			}
		}
	}
}

// write sends a line on conn, or on a new connection where that one is nil or
// broken, which is how a restarted syslog daemon shows. It returns the
// connection for the next line, nil after an error.
func (s *Syslog) write(conn net.Conn, line string) (net.Conn, error) {
	deadline := time.Now().Add(syslogPatience)
	if conn != nil {
		err := writeLine(conn, line, deadline)
		if err == nil {
			return conn, nil
		}
		_ = conn.Close() // the error is what matters
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return nil, err
		}
	}
	conn, err := s.dial()
	if err != nil {
		return nil, err
	}
	if err := writeLine(conn, line, deadline); err != nil {
		_ = conn.Close() // the error is what matters
		return nil, err
	}
	return conn, nil
}

func writeLine(conn net.Conn, line string, deadline time.Time) error {
	if err := conn.SetWriteDeadline(deadline); err != nil {
		return err
	}
	if conn.LocalAddr().Network() == "unix" {
		line += "\n" // a stream has no borders
	}
	_, err := conn.Write([]byte(line))
	return err
}

func (s *Syslog) dial() (net.Conn, error) {
	var errs []error
	for _, path := range s.paths {
		for _, network := range []string{"unixgram", "unix"} {
			conn, err := net.DialTimeout(network, path, syslogPatience)
			if err == nil {
				return conn, nil
			}
			errs = append(errs, err)
		}
	}
	return nil, errors.Join(errs...)
}

func (s *Syslog) leftOut(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lost += n
}

func (s *Syslog) takeLost() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.lost
	s.lost = 0
	return n
}
