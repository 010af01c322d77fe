package tools

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
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
	followPoll   = 50 * time.Millisecond
	// settle is how long files piled up are left alone: workers that were told
	// to stop finish what they have begun, and the replicate queue gives a new
	// file a moment.
	settle = 2 * time.Second
)

// replicate measures how fast files get the copies they lack.
func (b *bench) replicate() (load.Outcome, error) { return b.backlog(b.followCopies) }

// erasure measures how fast files are put into shards.
func (b *bench) erasure() (load.Outcome, error) { return b.backlog(b.followShards) }

// backlog stops the replicate workers of all trackers named, stores files, and
// lets the workers go on, until follow has seen each file done. Then it reads
// every one.
func (b *bench) backlog(follow func(seen func(n int)) error) (out load.Outcome, err error) {
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
	err = follow(func(n int) {
		took := time.Since(begun)
		for range n {
			out.Latency.Add(took)
		}
	})
	if err != nil {
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

// followPage is how many files trackers list at once.
const followPage = 500

// followCopies lists the files from the first that lacks copies on, every moment,
// until all have them. Asking for each by itself would cost as much as a part of
// copying it.
func (b *bench) followCopies(seen func(n int)) error {
	t := b.clients[0].tracker
	lacking := make(map[int64]bool, len(b.stored)) // by fid
	fids := make([]int64, 0, len(b.stored))
	for _, f := range b.stored {
		lacking[f.fid] = true
		fids = append(fids, f.fid)
	}
	slices.Sort(fids)
	p := b.s.out.newProgress("measuring", b.keys, false)
	defer p.end()
	for last := time.Now(); len(lacking) > 0; {
		t.Begin("list_fids")
		t.Int("from", fids[0]-1)
		t.Int("to", followPage)
		reply, err := t.Do()
		if err != nil {
			return fmt.Errorf("list_fids: %w", err)
		}
		n := 0
		for fid, copies := range fidsListed(reply) {
			if lacking[fid] && copies >= int64(b.copies) {
				delete(lacking, fid)
				n++
			}
		}
		for len(fids) > 0 && !lacking[fids[0]] {
			fids = fids[1:]
		}
		if n > 0 {
			seen(n)
			p.set(b.keys - int64(len(lacking)))
			last = time.Now()
		}
		switch {
		case n >= followPage/2: // there is more to see
		case time.Since(last) > backlogStall:
			return fmt.Errorf("%d of %d files have got no copy for %v, fid %d among them", len(lacking), b.keys, backlogStall, fids[0])
		case len(lacking) > 0 && !load.Sleep(b.s.ctx(), followPoll):
			return b.s.ctx().Err()
		}
	}
	return nil
}

// fidsListed are the fids and devcounts of a reply to list_fids, which has the
// fields of each together, and the fid first.
func fidsListed(reply load.Reply) iter.Seq2[int64, int64] {
	return func(yield func(fid, devcount int64) bool) {
		var fid int64
		for rest := reply; len(rest) > 0; {
			var name, value []byte
			name, value, rest = rest.Cut()
			switch {
			case !bytes.HasPrefix(name, []byte("fid_")):
			case bytes.HasSuffix(name, []byte("_fid")):
				fid = load.Number(value)
			case bytes.HasSuffix(name, []byte("_devcount")):
				if !yield(fid, load.Number(value)) {
					return
				}
			}
		}
	}
}

// followShards asks for one file after the other until each is in shards. What
// asking costs is little beside what is asked for: a file that is not done is
// asked for again after a moment, and those before it never again.
func (b *bench) followShards(seen func(n int)) error {
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
		if reply.Raw("ec_encoding") != nil {
			seen(1)
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
