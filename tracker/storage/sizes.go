package storage

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"
)

// SizeAnswer is the answer to one of the questions of [Client.Sizes].
type SizeAnswer struct {
	Bytes int64 // where Err is nil
	Err   error // as of [Client.Size]
}

// sizeWindow is how many sizes are asked for before the first answer is read.
const sizeWindow = 64

// Sizes are the lengths of files on one host, in the order of urls: many
// questions to a side channel in one piece, the files of which it says nothing
// by HEAD, one after the other. A host that hangs, or cannot be connected to, is
// waited for once: the files that are left get the same error.
func (c *Client) Sizes(ctx context.Context, urls []string) []SizeAnswer {
	answers := make([]SizeAnswer, len(urls))
	told := c.sideSizes(ctx, urls, answers)
	var gone error
	for i, url := range urls {
		switch {
		case told[i]:
		case gone != nil:
			answers[i].Err = gone
		default:
			n, err := c.headSize(ctx, url)
			answers[i] = SizeAnswer{Bytes: n, Err: err}
			if err != nil && !errors.As(err, new(*StatusError)) && !errors.Is(err, ErrMissing) {
				gone = err
			}
		}
	}
	return answers
}

// sideSizes asks the side channel, and says of which files it told the size.
func (c *Client) sideSizes(ctx context.Context, urls []string, answers []SizeAnswer) (told []bool) {
	told = make([]bool, len(urls))
	var uris []string
	var host string
	for _, url := range urls {
		_, addr, uri, err := split(url)
		if err != nil || host != "" && addr != host || strings.ContainsAny(uri, " \t\r\n") {
			return told // HTTP has the words for it
		}
		host, uris = addr, append(uris, uri)
	}
	if len(urls) < 2 { // nothing is saved, and Size knows more about side channels
		for i, url := range urls {
			n, ok := c.sideSize(ctx, url)
			answers[i].Bytes, told[i] = n, ok
		}
		return told
	}
	s := c.side(host)
	if s == nil {
		return told
	}
	for retries := 0; ; retries++ {
		conn, kept, err := c.sideConn(ctx, s)
		if err != nil {
			if ctx.Err() == nil {
				c.leave(s, err)
			}
			return told
		}
		n, err := conn.sizes(ctx, uris, c.o.NodeTimeout/sideShare, answers, told)
		if err == nil {
			s.keep(conn, c.o.PoolSize)
			return told
		}
		_ = conn.Close()
		switch {
		case ctx.Err() != nil:
			return told
		case n == 0 && kept && isClosed(err) && retries < sideRetries:
			s.close() // the others are as old
		case errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, errNotReply):
			c.leave(s, err)
			return told
		default:
			return told
		}
	}
}

// sizes asks for the sizes of uris and notes those that it is told, until it is
// through or what comes is no answer. idle is how long each next answer is
// waited for. n is how many lines were answered.
func (s *sideConn) sizes(ctx context.Context, uris []string, idle time.Duration, answers []SizeAnswer, told []bool) (n int, err error) {
	stop := context.AfterFunc(ctx, func() { _ = s.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	for n < len(uris) {
		window := uris[n:min(n+sizeWindow, len(uris))]
		var lines bytes.Buffer
		for _, uri := range window {
			fmt.Fprintf(&lines, "size %s\n", uri)
		}
		if err := s.SetDeadline(time.Now().Add(idle)); err != nil {
			return n, err
		}
		if _, err := io.WriteString(s, lines.String()); err != nil {
			return n, err
		}
		for _, uri := range window {
			if ctx.Err() != nil {
				return n, context.Cause(ctx)
			}
			if err := s.SetDeadline(time.Now().Add(idle)); err != nil {
				return n, err
			}
			line, err := s.r.ReadSlice('\n')
			if err != nil {
				return n, err
			}
			line = bytes.TrimRight(line, "\r\n")
			size, err := parseSizeReply(uri, line)
			switch {
			case err == nil && size >= 0:
				answers[n].Bytes, told[n] = size, true
			case err == nil, errors.Is(err, errNoNumber), bytes.Equal(line, []byte("ERR size "+uri+" failed")):
				// Missing, or not to be told: HTTP is asked.
			default:
				return n, err
			}
			n++
		}
	}
	if !stop() {
		return n, context.Cause(ctx) // its deadline is spoilt
	}
	if s.r.Buffered() > 0 {
		return n, errNotReply
	}
	return n, nil
}
