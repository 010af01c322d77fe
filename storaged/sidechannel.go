package storaged

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"net"
	"net/http"
	"strconv"
	"sync"

	"github.com/rs/zerolog"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/storaged/erasure"
	"github.com/mogile/mogile/storaged/volume"
)

// maxSideLine bounds a line of the side channel in bytes, terminator included.
// A connection with a longer one is closed.
const maxSideLine = 16 << 10

// sideChannel answers the line protocol of the management port: sizes and
// digests of files, whether they are whole, the stream of utilisation, and shutdown. Requests of one
// connection are answered in order; connections do not wait for each other.
type sideChannel struct {
	listener *listener
	docroot  *volume.Docroot
	encoded  *encoded
	disks    *utilisation
	meter    *meter
	log      zerolog.Logger
	shutdown func(graceful bool) // asks the daemon to stop
	ended    chan struct{}       // closed when everything else has stopped

	mu    sync.Mutex             // guards turns
	turns map[turn]chan struct{} // each holds one element for each digest that runs
}

// turn names what digests and verifications wait for: all of a file system's,
// and those that are patient besides.
type turn struct {
	fileSystem string
	patient    bool
}

// maxDigests bounds the digests that run on a file system at a time, those for
// fsck included; more would only move the heads of its disk to and fro.
// cmogstored has ten threads a device.
const maxDigests = 10

// serve answers until ctx is cancelled, finishes what was asked until then,
// and cuts the rest off when stop is cancelled.
func (s *sideChannel) serve(ctx, stop context.Context) error {
	var conns sync.WaitGroup
	accepting := make(chan error, 1)
	go func() {
		accepting <- s.listener.acceptEach(func(c *conn) {
			conns.Go(func() { s.converse(ctx, stop, c) })
		})
	}()
	var err error
	select {
	case err = <-accepting:
		accepting <- nil
	case <-ctx.Done():
	}
	if closeErr := s.listener.Close(); err == nil && closeErr != nil && !errors.Is(closeErr, net.ErrClosed) {
		err = fmt.Errorf("close side channel: %w", closeErr)
	}
	<-accepting
	// Those that wait for a line go; the others answer what they have first.
	defer s.listener.drain()()
	cut := context.AfterFunc(stop, func() {
		s.listener.each(func(c *conn) { c.Close() }) // cut off
	})
	defer cut()
	conns.Wait()
	return err
}

// converse answers one connection.
func (s *sideChannel) converse(ctx, stop context.Context, c *conn) {
	defer c.survive()
	defer c.Close() // nobody is left who could hear it
	r := bufio.NewReaderSize(c, maxSideLine)
	for {
		line, err := r.ReadSlice('\n')
		if err != nil {
			if errors.Is(err, bufio.ErrBufferFull) {
				s.log.Warn().Str("client", c.RemoteAddr().String()).Int("limit", maxSideLine).Msg("line on side channel is too long")
			}
			return
		}
		s.listener.active(c)
		cmd := parseCommand(string(line[:len(line)-1]))
		s.meter.command(cmd)
		switch cmd.verb {
		case verbWatch:
			s.watch(ctx, c)
			return
		case verbShutdown:
			s.log.Info().Str("client", c.RemoteAddr().String()).Msg("shutdown asked for on side channel")
			s.shutdown(cmd.graceful)
			select {
			case <-s.ended:
			case <-stop.Done():
			}
			return
		}
		reply, err := s.reply(stop, cmd)
		if err != nil && statusOf(err) == http.StatusInternalServerError { // see server.report
			s.log.Error().Err(err).Str("command", cmd.word).Str("uri", cmd.uri).Msg("side channel request failed")
		}
		if reply == "" {
			return // stopped in the middle
		}
		if _, err := io.WriteString(c, reply); err != nil {
			return
		}
		if rest, _ := r.Peek(r.Buffered()); bytes.IndexByte(rest, '\n') < 0 { // what is buffered can be peeked at
			s.listener.waiting(c)
		}
	}
}

// reply is the answer to a command that has one line of it, terminator
// included; empty if ctx ended first. The error, if any, is for the log, and
// answered already.
func (s *sideChannel) reply(ctx context.Context, c command) (string, error) {
	switch c.verb {
	case verbBlank, verbThreads:
		return "\r\n", nil
	case verbBadURI:
		return "ERROR: uri invalid (contains ..)\r\n", nil
	case verbSize:
		size, err := s.size(ctx, c.uri)
		if err != nil {
			// Not -1, which says that the file is missing. Trackers ask by HTTP
			// after any line that they do not expect.
			return fmt.Sprintf("ERR size %s failed\r\n", c.uri), err
		}
		return c.uri + " " + strconv.FormatInt(size, 10) + "\r\n", nil
	case verbDigest:
		sum, off, err := s.digest(ctx, c)
		switch {
		case err != nil && ctx.Err() != nil:
			return "", nil
		case err != nil:
			return fmt.Sprintf("ERR read %s at %d failed\r\n", c.uri, off), err
		case sum.IsZero():
			return fmt.Sprintf("%s %s=-1\r\n", c.uri, c.hash), nil
		}
		return fmt.Sprintf("%s %s=%s\r\n", c.uri, c.hash, sum.Hex()), nil
	case verbVerify:
		content, err := s.verify(ctx, c)
		switch {
		case err != nil && ctx.Err() != nil:
			return "", nil
		case err != nil: // nothing is said of the file
			return fmt.Sprintf("ERR verify %s failed\r\n", c.uri), err
		}
		return c.uri + " " + content.String() + "\r\n", nil
	}
	return "ERROR: unknown command: " + c.word + "\r\n", nil
}

// isMissing reports whether err says that there is no such file, rather than
// that one cannot tell.
func isMissing(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, volume.ErrNoDevice) ||
		errors.Is(err, volume.ErrIsDir) || errors.Is(err, volume.ErrBadName)
}

// file finds what uri names. The volume is nil where no volume can have it.
func (s *sideChannel) file(uri string) (*volume.Volume, target, error) {
	t, err := parseTarget(uri)
	if err != nil || t.dev == 0 || t.name == "" || t.dir {
		return nil, t, nil
	}
	v, err := s.docroot.Volume(t.dev)
	if err != nil && !isMissing(err) {
		return nil, t, err
	}
	return v, t, nil
}

// size is the size of a file in bytes, -1 where there is none.
func (s *sideChannel) size(ctx context.Context, uri string) (int64, error) {
	v, t, err := s.file(uri)
	switch {
	case err != nil:
		return 0, err
	case v == nil:
		return -1, nil
	case t.name == usageName:
		use, err := v.Usage()
		return int64(len(use.String())), err
	}
	var size int64
	err = s.eitherWay(ctx, v, t, func() error {
		info, err := v.Stat(ctx, t.name)
		size = info.Size
		return err
	}, func(h erasure.Header) error {
		size = h.Length
		return nil
	})
	if isMissing(err) {
		return -1, nil
	}
	return size, err
}

// eitherWay asks for a file as a copy, and for one of which there is a shard in
// place of that by the shard's header.
func (s *sideChannel) eitherWay(ctx context.Context, v *volume.Volume, t target, asCopy func() error, encoded func(erasure.Header) error) error {
	err := asCopy()
	fid, ok := t.fid()
	if !ok || !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	h, err := s.encoded.find(ctx, v, fid)
	switch {
	case err == nil:
		return encoded(h)
	case errors.Is(err, fs.ErrNotExist):
		return asCopy() // a conversion may have passed between
	}
	return err
}

// digest is the digest of a file, zero where it cannot be opened, or the
// offset at which reading failed.
func (s *sideChannel) digest(ctx context.Context, c command) (protocol.Checksum, int64, error) {
	v, t, err := s.file(c.uri)
	if err != nil || v == nil {
		return protocol.Checksum{}, 0, err
	}
	free, err := s.queue(ctx, v, c)
	if err != nil {
		return protocol.Checksum{}, 0, err
	}
	defer free()
	h := c.hash.New()
	if t.name == usageName {
		use, err := v.Usage()
		io.WriteString(h, use.String()) // hashes do not fail
		return protocol.Checksum{Type: c.hash, Sum: h.Sum(nil)}, 0, err
	}
	f, err := s.open(ctx, v, t)
	switch {
	case err == nil:
	case isMissing(err) || errors.Is(err, fs.ErrPermission):
		return protocol.Checksum{}, 0, nil
	default:
		return protocol.Checksum{}, 0, err
	}
	defer f.Close() // opened for reading
	found, err := s.readThrough(ctx, f, h, c)
	if err != nil {
		return protocol.Checksum{}, found.Length, err
	}
	return protocol.Checksum{Type: c.hash, Sum: h.Sum(nil)}, found.Length, nil
}

// throughout is a file that can be read through: a copy, or what shards give.
type throughout interface {
	// Sum is that of the content when it was stored.
	Sum() (volume.Sum, bool)
	// ReadThrough is as of [volume.File].
	ReadThrough(ctx context.Context, each func([]byte), once bool) (volume.Sum, error)
	Close() error
}

// open opens a file, or what there is in place of a copy.
func (s *sideChannel) open(ctx context.Context, v *volume.Volume, t target) (throughout, error) {
	var opened throughout
	err := s.eitherWay(ctx, v, t, func() error {
		f, err := v.Open(ctx, t.name)
		if err == nil {
			opened = f
		}
		return err
	}, func(h erasure.Header) error {
		opened = encodedFile{s.encoded, h}
		return nil
	})
	return opened, err
}

// verify reads a file and says what it found beside what it should. That its
// device is not there says nothing of the file, and is an error, as is
// everything else that is not the file's own fault.
func (s *sideChannel) verify(ctx context.Context, c command) (protocol.Content, error) {
	v, t, err := s.file(c.uri)
	switch {
	case err != nil:
		return protocol.Content{}, err
	case v == nil:
		return protocol.Content{}, fmt.Errorf("verify %s: %w", c.uri, volume.ErrNoDevice)
	}
	free, err := s.queue(ctx, v, c)
	if err != nil {
		return protocol.Content{}, err
	}
	defer free()
	f, err := s.open(ctx, v, t)
	switch {
	case volume.IsUnreadable(err):
		s.log.Warn().Err(err).Msg("file cannot be read")
		return protocol.Content{Unreadable: true}, nil
	case errors.Is(err, volume.ErrNoDevice):
		return protocol.Content{}, err
	case err != nil && isMissing(err):
		return protocol.Content{Missing: true}, nil
	case err != nil:
		return protocol.Content{}, err
	}
	defer f.Close() // opened for reading
	stored, isStored := f.Sum()
	var h hash.Hash
	if c.hash != protocol.HashNone {
		h = c.hash.New()
	}
	found, err := s.readThrough(ctx, f, h, c)
	content := protocol.Content{Found: protocol.ContentSum(found)}
	switch {
	case volume.IsUnreadable(err):
		s.log.Warn().Err(err).Msg("file cannot be read")
		content.Unreadable = true
		return content, nil
	case err != nil:
		return protocol.Content{}, err
	}
	if again, is := f.Sum(); isStored && is && again == stored { // else it was written to meanwhile
		content.Stored = (*protocol.ContentSum)(&stored)
	}
	if h != nil {
		content.Digest = protocol.Checksum{Type: c.hash, Sum: h.Sum(nil)}
	}
	return content, nil
}

// readThrough reads a file for c. h may be nil.
func (s *sideChannel) readThrough(ctx context.Context, f throughout, h hash.Hash, c command) (volume.Sum, error) {
	s.meter.digests.Inc()
	defer s.meter.digests.Dec()
	var each func([]byte)
	if h != nil {
		each = func(p []byte) { h.Write(p) } // hashes do not fail
	}
	return f.ReadThrough(ctx, each, c.patient())
}

// queue waits until a file of v may be read for c. The caller frees the place.
func (s *sideChannel) queue(ctx context.Context, v *volume.Volume, c command) (free func(), err error) {
	name := fileSystem(v)
	before := func() {}
	if c.patient() {
		if before, err = s.enter(ctx, turn{name, true}, 1); err != nil {
			return nil, err
		}
	}
	after, err := s.enter(ctx, turn{name, false}, maxDigests)
	if err != nil {
		before()
		return nil, err
	}
	return func() {
		after()
		before()
	}, nil
}

// enter waits until fewer than limit digests have that turn; who came first is
// first. The caller frees it.
func (s *sideChannel) enter(ctx context.Context, t turn, limit int) (free func(), err error) {
	s.mu.Lock()
	running := s.turns[t]
	if running == nil {
		running = make(chan struct{}, limit)
		s.turns[t] = running
	}
	s.mu.Unlock()
	select {
	case running <- struct{}{}:
		return func() { <-running }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// watch sends groups until ctx is cancelled or the client goes away. A client
// that does not keep up misses groups.
func (s *sideChannel) watch(ctx context.Context, c *conn) {
	groups, leave := s.disks.subscribe()
	defer leave()
	if groups == nil {
		c.Write([]byte("ERR iostat unavailable\r\n")) // the connection ends here
		return
	}
	for {
		select {
		case <-ctx.Done():
			return
		case g := <-groups:
			if _, err := c.Write(g); err != nil {
				return
			}
		}
	}
}
