package tracker

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/schema"
	"github.com/mogile/mogile/tracker/replicate"
)

const (
	// defaultWait is how long a close with wait=replicated waits that does not
	// say so.
	defaultWait = time.Minute
	// maxWait is the longest time that it may ask for.
	maxWait = time.Hour
)

// waits is how long q wants to wait for its file's replicas ("wait=replicated",
// "wait_timeout=SECONDS"), 0 where it does not. As both are ours, and somebody
// relies on them, what makes no sense is refused.
func (q *query) waits() (time.Duration, error) {
	what, given := q.Lookup("wait")
	if !given {
		return 0, nil
	}
	if what != "replicated" {
		return 0, &protocol.Error{Code: "bad_params", Text: "wait must be replicated"}
	}
	text, given := q.Lookup("wait_timeout")
	if !given {
		return defaultWait, nil
	}
	n := digits(text)
	if n < 1 || n > int64(maxWait/time.Second) {
		return 0, &protocol.Error{Code: "bad_params", Text: fmt.Sprintf("wait_timeout must be from 1 to %d seconds", int64(maxWait/time.Second))}
	}
	return time.Duration(n) * time.Second, nil
}

// errNotReplicated is the end of a wait.
var errNotReplicated = errors.New("time is over")

// awaitReplicas answers a close when its file is where its class wants it. The
// file is stored, whatever the answer.
func (t *Tracker) awaitReplicas(ctx context.Context, q *query, c closing) error {
	q.dog.extend(c.wait + t.opts.QueryTimeout)
	q.turn.end()
	wait, cancel := context.WithTimeoutCause(ctx, c.wait, errNotReplicated)
	defer cancel()
	err := t.replicate.Await(wait, c.fid)
	why := ""
	switch {
	case err == nil:
		q.reply.Add("replicated", "1")
		return nil
	case errors.Is(err, schema.ErrGone):
		return &protocol.Error{Code: protocol.ErrUnknownKey.Code, Text: "The file was stored, and deleted or replaced before it was replicated"}
	case errors.Is(err, replicate.ErrTooManyWaiters):
		why = "too many requests wait already"
	case errors.Is(err, errNotReplicated):
		why = "its class's policy was not met within " + c.wait.String()
	default:
		why = "the tracker stopped waiting"
	}
	return &protocol.Error{Code: protocol.ErrReplicationTimeout.Code, Text: "The file is stored, and queued for replication: " + why}
}
