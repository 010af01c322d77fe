package tracker

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/tracker/fsck"
	"github.com/mogile/mogile/tracker/storage"
)

const (
	// defaultStrayAge is how old files must be to be strays, where it is not said.
	defaultStrayAge = 24 * time.Hour
	// strayTime is what a page of strays may take beyond a request's time.
	strayTime = 2 * time.Minute
)

// strayPage compares some of the files on a device with the database.
func (t *Tracker) strayPage(ctx context.Context, q *query) error {
	dev := q.Number("devid")
	if dev < 1 || dev > protocol.MaxDevID {
		return protocol.ErrNoDevice
	}
	ask := fsck.StrayQuery{
		Dev: protocol.DevID(dev), After: q.Get("after"), Limit: fsck.DefaultStrayPage, Age: defaultStrayAge, Delete: q.True("delete"),
	}
	if q.True("limit") {
		ask.Limit = int(min(max(q.Number("limit"), 1), fsck.MaxStrayPage))
	}
	if text, ok := q.Lookup("age"); ok {
		seconds, err := strconv.ParseInt(text, 10, 32)
		if err != nil || seconds < 0 {
			return &protocol.Error{Code: "bad_params", Text: "age must be a number of seconds"}
		}
		ask.Age = time.Duration(seconds) * time.Second
	}
	q.dog.extend(t.opts.QueryTimeout + strayTime)
	p, err := t.strays.Page(ctx, ask)
	if err != nil {
		return strayError(ask.Dev, err)
	}
	q.reply.Add("next", p.Next)
	q.reply.AddInt("files", p.Files)
	q.reply.AddInt("bytes", p.Bytes)
	q.reply.AddInt("young", p.Young)
	q.reply.AddInt("pending", p.Pending)
	q.reply.AddInt("foreign", p.Foreign)
	q.reply.AddInt("unreadable", p.Unreadable)
	q.reply.AddInt("strays", int64(len(p.Strays)))
	for i, s := range p.Strays {
		row := "stray" + strconv.Itoa(i+1) + "_"
		q.reply.Add(row+"fid", s.FID.String())
		q.reply.AddInt(row+"size", s.Size)
		q.reply.AddInt(row+"mtime", s.ModTime.Unix())
		q.reply.Add(row+"kind", string(s.Kind))
		if s.Shard {
			q.reply.Add(row+"shard", "1")
		}
		if s.Result != "" {
			q.reply.Add(row+"result", s.Result)
			q.reply.Add(row+"note", s.Note)
		}
	}
	return nil
}

// strayError tells the client why a device cannot be looked at: the remedy is
// his.
func strayError(dev protocol.DevID, err error) error {
	if _, refused := errors.AsType[*protocol.Error](err); refused {
		return err
	}
	switch {
	case errors.Is(err, storage.ErrNoOrders):
		return &protocol.Error{Code: "no_orders", Text: fmt.Sprintf("dev%d cannot be listed: %v", dev, err)}
	case errors.Is(err, storage.ErrUnreachable):
		return &protocol.Error{Code: "device_unreachable", Text: fmt.Sprintf("dev%d cannot be listed: %v", dev, err)}
	}
	return err
}
