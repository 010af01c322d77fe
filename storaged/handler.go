package storaged

import (
	"context"
	"io"
	"time"

	"github.com/mogile/mogile/storaged/volume"
)

// handler is the data plane as the HTTP server under it sees it. Nothing in it
// belongs to a particular server, so that the server can be replaced.
type handler interface {
	// serve answers one request. It has read of the body what it wanted when it
	// returns, and the answer's file or parts are the caller's to close.
	serve(ctx context.Context, r *request) answer
}

// request is all that the data plane wants to know of an HTTP request.
type request struct {
	method string
	path   string      // decoded, without query, host and scheme
	length int64       // of the body in bytes; -1 where it is chunked, 0 where there is none
	body   io.Reader   // fails with errSlowBody, errMalformedBody or errBrokenBody
	minor  int         // of the version, which is HTTP/1
	cut    func()      // ends the reading of body from another goroutine
	late   volume.Late // answers the request where the disk hangs
	local  bool        // no other machine can be behind it: listener and client are on loopback addresses

	// The headers that matter, each with all of its values.
	ranges, contentRange, contentMD5, modifiedSince, contentType, want, order []string
	// trailerMD5 is the Content-MD5 of the trailer, once the body was read. It
	// is nil where none was announced.
	trailerMD5 func() []string
}

// parts are a body that is put together while it is sent.
type parts interface {
	// next is the next piece of it, of at least one byte, which lasts until the next
	// call. An error before the first piece is the answer; one that comes later ends
	// the connection.
	next(ctx context.Context) ([]byte, error)
	close()
}

// answer is what a request gets.
type answer struct {
	status       int
	close        bool         // the connection cannot be used for another request
	size         int64        // Content-Length
	modified     time.Time    // Last-Modified; zero for none
	contentRange string       // Content-Range, or empty
	acceptRanges bool         // the answer is a whole file
	sum          *volume.Sum  // stored with the file, where it was wanted and there is one
	suspects     int          // shards found missing or bad of which trackers have not been told
	file         *volume.File // the body is size bytes of it from off; nil where there is none, or first has all
	off          int64
	first        *buffer // what of the body was read already: the first bytes behind the room for a head; nil where nothing was
	read         int     // how many bytes
	parts        parts   // make the body of size bytes, where file is nil; nil where there is none
	text         []byte  // the body, where neither is there
	// stream makes the body piece by piece: each Write is sent at once, the last
	// piece is returned. It is nil where there is no such body. Its context ends
	// when the client is gone.
	stream func(ctx context.Context, w io.Writer) (last []byte)
	late   bool  // somebody else has answered
	err    error // why, for the log; nil where the answer says it all
}
