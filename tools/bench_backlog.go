package tools

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/tools/load"
)

const (
	replicateJob = "replicate" // as the console calls it
	// backlogStall is how long no file may get its copies before the cluster is
	// said not to make them.
	backlogStall = 2 * time.Minute
	backlogPoll  = 10 * time.Millisecond
	// settle is how long files piled up are left alone: workers that were told
	// to stop finish what they have begun, and the replicate queue gives a new
	// file a moment.
	settle = 2 * time.Second
)

// replicate measures how fast files get the copies they lack.
func (b *bench) replicate() (load.Outcome, error) {
	return b.backlog(func(r load.Reply) bool { return r.Int("devcount") >= int64(b.copies) })
}

// erasure measures how fast files are put into shards.
func (b *bench) erasure() (load.Outcome, error) {
	return b.backlog(func(r load.Reply) bool { return r.Raw("ec_encoding") != nil })
}

// backlog stops the replicate workers of all trackers named, stores files, and
// lets the workers go on, until each file is as done wants it. Then it reads
// every one.
func (b *bench) backlog(done func(load.Reply) bool) (out load.Outcome, err error) {
	resume, err := b.pause()
	if err != nil {
		return out, err
	}
	defer func() {
		if resume != nil {
			err = errors.Join(err, resume())
		}
	}()
	if err := b.prepare(); err != nil {
		return out, err
	}
	if !load.Sleep(b.s.ctx(), settle) {
		return out, b.s.ctx().Err()
	}
	begun := time.Now()
	err = resume()
	resume = nil
	if err != nil {
		return out, err
	}
	if err := b.follow(done, func() { out.Latency.Add(time.Since(begun)) }); err != nil {
		return out, err
	}
	out.Took = time.Since(begun)
	out.Ops, out.Work.Bytes = b.keys, b.keys*b.content.Size()
	return out, b.each(b.keys, "reading copies", b.readCopies)
}

// pause stops the replicate workers. resume gives each tracker as many as it
// had.
func (b *bench) pause() (resume func() error, err error) {
	had := make(map[string]int)
	resume = func() error {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(b.s.ctx()), time.Minute)
		defer cancel()
		var errs []error
		for tracker, n := range had {
			errs = append(errs, b.want(ctx, tracker, n))
		}
		return errors.Join(errs...)
	}
	for _, tracker := range b.s.client.Trackers() {
		n := -1
		for line, err := range b.s.client.Console(b.s.ctx(), tracker, "!jobs") {
			if err != nil {
				return nil, errors.Join(err, resume())
			}
			if count, ok := strings.CutPrefix(line, replicateJob+" desired "); ok {
				if n, err = strconv.Atoi(count); err != nil {
					return nil, errors.Join(fmt.Errorf("tracker %s: %q: %w", tracker, line, err), resume())
				}
			}
		}
		if n < 1 {
			return nil, errors.Join(fmt.Errorf("tracker %s has no replicate workers that could be stopped for a while: see '!jobs' on its console", tracker), resume())
		}
		had[tracker] = n
		if err := b.want(b.s.ctx(), tracker, 0); err != nil {
			return nil, errors.Join(err, resume())
		}
	}
	return resume, nil
}

// want tells a tracker how many replicate workers to have.
func (b *bench) want(ctx context.Context, tracker string, n int) error {
	for line, err := range b.s.client.Console(ctx, tracker, fmt.Sprintf("!want %d %s", n, replicateJob)) {
		if err != nil {
			return err
		}
		if strings.HasPrefix(line, "ERROR") {
			return fmt.Errorf("tracker %s: %s", tracker, line)
		}
	}
	return nil
}

// follow asks for one file after the other until each is done, and calls seen
// for each. What asking costs is little beside what is asked for: a file that is
// not done is asked for again after a moment, and those before it never again.
func (b *bench) follow(done func(load.Reply) bool, seen func()) error {
	c := b.clients[0]
	p := b.s.out.newProgress("measuring", b.keys, false)
	defer p.end()
	last := time.Now()
	for n := int64(1); n <= b.keys; {
		c.tracker.Begin("file_info")
		c.tracker.Text("domain", b.s.domain)
		c.tracker.Numbered("key", b.prefix, n)
		reply, err := c.tracker.Do()
		if err != nil {
			return fmt.Errorf("file_info: %w", err)
		}
		if done(reply) {
			seen()
			p.set(n)
			last, n = time.Now(), n+1
			continue
		}
		if time.Since(last) > backlogStall {
			return fmt.Errorf("nothing became of file %d of %d for %v: %.300q", n, b.keys, backlogStall, []byte(reply))
		}
		if !load.Sleep(b.s.ctx(), backlogPoll) {
			return b.s.ctx().Err()
		}
	}
	return nil
}

// readCopies reads file n from every path that trackers name.
func (b *bench) readCopies(c *benchClient, n int64) error {
	t := c.tracker
	t.Begin("get_paths")
	t.Text("domain", b.s.domain)
	t.Numbered("key", b.prefix, n)
	t.Int("noverify", 1)
	t.Int("pathcount", int64(b.copies))
	reply, err := t.Do()
	if err != nil {
		return fmt.Errorf("get_paths: %w", err)
	}
	if reply.Int("paths") == 0 {
		return fmt.Errorf("get_paths: no path: %w", protocol.ErrBadReply)
	}
	for rest := reply; len(rest) > 0; {
		var name, value []byte
		name, value, rest = rest.Cut()
		if !bytes.HasPrefix(name, []byte("path")) || string(name) == "paths" {
			continue
		}
		if err := c.web.Get(unescaped(value), b.content, n); err != nil {
			return err
		}
	}
	return nil
}
