package tracker

import (
	"context"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/mogile/mogile/schema"
)

// usageTime is what adding up the files of classes may take beyond a request's
// time.
const usageTime = 2 * time.Minute

// classUsages adds up what classes occupy, but not more often than is good for
// the database.
type classUsages struct {
	count func(ctx context.Context) ([]schema.ClassUsage, error)
	now   func() time.Time

	mu    sync.Mutex // guards what follows, and is held while adding up
	last  []schema.ClassUsage
	until time.Time
}

func (u *classUsages) get(ctx context.Context) ([]schema.ClassUsage, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	begun := u.now()
	if begun.Before(u.until) {
		return u.last, nil
	}
	usage, err := u.count(ctx)
	if err != nil {
		return nil, err
	}
	done := u.now()
	u.last, u.until = usage, done.Add(countShare*done.Sub(begun))
	return usage, nil
}

// classUsage answers what the files of each class occupy.
func (t *Tracker) classUsage(ctx context.Context, q *query) error {
	q.dog.extend(t.opts.QueryTimeout + usageTime)
	usage, err := t.usages.get(ctx)
	if err != nil {
		return fmt.Errorf("usage of classes: %w", err)
	}
	n := 0
	for _, u := range usage {
		domain := domainName(q.at, u.DMID)
		if domain == "" {
			continue // it has gone since
		}
		n++
		row := "class" + strconv.Itoa(n) + "_"
		q.reply.Add(row+"domain", domain)
		q.reply.Add(row+"class", className(q.at.Class(u.DMID, u.ClassID), u.ClassID))
		q.reply.AddInt(row+"files", u.Files)
		q.reply.AddInt(row+"bytes", u.Bytes)
		q.reply.AddInt(row+"stored", u.Stored)
	}
	q.reply.AddInt("classes", int64(n))
	return nil
}
