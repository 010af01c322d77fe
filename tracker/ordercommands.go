package tracker

import (
	"context"
	"errors"
	"net"
	"strconv"

	"golang.org/x/sync/errgroup"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/tracker/cluster"
	"github.com/mogile/mogile/tracker/storage"
)

// orderChecks is how many storage daemons are asked at once whether they take
// orders.
const orderChecks = 64

// codeNoTrackerKey is why no orders are given to daemons that would take them.
const codeNoTrackerKey = "tracker_has_no_key"

// hostOrders tells of each storage daemon that takes orders whether it takes
// those of this tracker, and why not.
func (t *Tracker) hostOrders(ctx context.Context, q *query) error {
	at, err := t.fresh(ctx)
	if err != nil {
		return err
	}
	var hosts []*cluster.Host
	for _, h := range at.HostList {
		if h.Observed == cluster.HostReachable && h.Capabilities.Has(storage.CapabilityCopy) {
			hosts = append(hosts, h)
		}
	}
	answers := make([]error, len(hosts))
	var g errgroup.Group
	g.SetLimit(orderChecks)
	for i, h := range hosts {
		g.Go(func() error {
			answers[i] = t.storage.TakesOrders(ctx, net.JoinHostPort(h.Address(cluster.Viewer{}), strconv.Itoa(h.Port)))
			return nil
		})
	}
	_ = g.Wait() // they return none
	q.reply.AddInt("hosts", int64(len(hosts)))
	for i, h := range hosts {
		row := "host" + strconv.Itoa(i+1) + "_"
		q.reply.Add(row+"hostname", h.Name)
		code, text := t.orderAnswer(answers[i])
		q.reply.Add(row+"answer", code)
		if text != "" {
			q.reply.Add(row+"text", text)
		}
	}
	return nil
}

// orderAnswer is what came of asking a storage daemon, "ok" or a code.
func (t *Tracker) orderAnswer(err error) (code, text string) {
	refusal, refused := errors.AsType[*protocol.Error](err)
	switch {
	case err == nil:
		return "ok", ""
	case len(t.opts.ClusterKey) == 0 && (!refused || errors.Is(refusal, protocol.ErrBadSignature)):
		return codeNoTrackerKey, "this tracker has no cluster key"
	case refused:
		return refusal.Code, refusal.Text
	}
	return "unreachable", err.Error()
}
