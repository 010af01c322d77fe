package storage

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"strings"
	"time"
)

const (
	// dirTTL is how long a directory, and that a host makes its own, is taken
	// for granted (MogileFS 2.73).
	dirTTL = time.Hour
	// maxDirs bounds the directories that are remembered.
	maxDirs = 1 << 16
)

// MakeDirs has the directories above a file made, below its device's: by MKCOL,
// unless the host is known to make them when a file is put. 2xx and 405 (which
// is WebDAV's word for one that exists) are remembered for the directory, 400
// and 501 for the whole host, both for an hour. Other answers are returned as a
// *StatusError; a PUT may succeed all the same. A PUT of this client that is
// refused for want of a directory makes it forget what it remembers.
func (c *Client) MakeDirs(ctx context.Context, url string) error {
	if c.o.SkipMkcol() {
		return nil
	}
	hostport, _, path, err := split(url)
	if err != nil {
		return err
	}
	for end := deviceEnd(path); ; {
		next := strings.IndexByte(path[end:], '/')
		if next < 0 {
			return nil
		}
		end += next + 1
		dir := hostport + path[:end]
		if c.hasDir(hostport, dir) {
			continue
		}
		ok, err := c.mkcol(ctx, "http://"+dir)
		if err != nil {
			return err
		}
		c.madeDir(hostport, dir, ok)
	}
}

// deviceEnd is where in path what is below the device begins: after "/dev1/".
func deviceEnd(path string) int {
	start := len(path) - len(strings.TrimLeft(path, "/"))
	i := strings.IndexByte(path[start:], '/')
	if i < 0 {
		return len(path)
	}
	return start + i + 1
}

// mkcol makes one directory. It reports false where the host says that it does
// not need it.
func (c *Client) mkcol(ctx context.Context, url string) (bool, error) {
	r, err := c.send(ctx, c.small, request{method: "MKCOL", url: url, idle: c.o.NodeTimeout})
	if err != nil {
		return false, err
	}
	defer r.Close()
	switch r.StatusCode {
	case http.StatusMethodNotAllowed:
		return true, nil
	case http.StatusBadRequest, http.StatusNotImplemented:
		return false, nil
	}
	if err := r.check(); err != nil {
		return false, fmt.Errorf("make directory: %w", err)
	}
	return true, nil
}

// refused forgets the directories of the device of a file that was put, if the
// daemon's refusal may mean that they are no longer there: the disk may be
// another one, or the daemon of another make. Daemons answer 403, 404, 409 or,
// as nginx does, 500.
func (c *Client) refused(url string, err error) {
	var status *StatusError
	if !errors.As(err, &status) {
		return
	}
	switch status.Status {
	case http.StatusForbidden, http.StatusNotFound, http.StatusConflict, http.StatusInternalServerError:
	default:
		return
	}
	hostport, _, path, err := split(url)
	if err != nil {
		return
	}
	device := hostport + path[:deviceEnd(path)]
	c.mu.Lock()
	defer c.mu.Unlock()
	if h := c.hosts[hostport]; h != nil {
		h.noMkcol = time.Time{}
	}
	maps.DeleteFunc(c.dirs, func(dir string, _ time.Time) bool { return strings.HasPrefix(dir, device) })
}

// hasDir reports whether a directory need not be made.
func (c *Client) hasDir(hostport, dir string) bool {
	now := c.o.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	if h := c.hosts[hostport]; h != nil && (h.ours || now.Before(h.noMkcol)) {
		return true
	}
	return now.Before(c.dirs[dir])
}

// madeDir remembers the directory, or that the host needs none made.
func (c *Client) madeDir(hostport, dir string, made bool) {
	now := c.o.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	if !made {
		if c.hosts[hostport] == nil {
			c.hosts[hostport] = &host{}
		}
		c.hosts[hostport].noMkcol = now.Add(dirTTL)
		return
	}
	if len(c.dirs) >= maxDirs {
		maps.DeleteFunc(c.dirs, func(_ string, until time.Time) bool { return !now.Before(until) })
		if len(c.dirs) >= maxDirs {
			clear(c.dirs)
		}
	}
	c.dirs[dir] = now.Add(dirTTL)
}
