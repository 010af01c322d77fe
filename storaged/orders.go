package storaged

import (
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"github.com/mogile/mogile/protocol"
)

// progressInterval is the time between two lines of progress.
const progressInterval = time.Second

// order is a kind of order that this daemon takes.
type order struct {
	verb string
	word string // of the capability that the verb belongs to; empty: the verb
	// run carries one out, and returns the fields of the answer. It ends soon
	// after its context does: when the client goes away, or at the deadline. A
	// *protocol.Error is told as it is, any other error as "failure" with its
	// text; fields beside an error are told too.
	run func(ctx context.Context, o protocol.Order, to *orderer) (protocol.Args, error)
}

// orders takes the orders of trackers: that they come from one, are meant now,
// and are not obeyed twice, is seen to here, so that verbs need not.
type orders struct {
	keys   [][]byte // without any, only this machine gives orders
	kinds  []order
	now    func() time.Time
	log    zerolog.Logger
	seen   nonces
	long   chan struct{}   // holds an element for each long order that is being read
	warned zerolog.Sampler // of refusals that an operator should know of
	total  *prometheus.CounterVec
}

func newOrders(keys [][]byte, kinds []order, now func() time.Time, r prometheus.Registerer, log zerolog.Logger) *orders {
	o := &orders{
		keys: keys, kinds: kinds, now: now, log: log,
		seen:   nonces{since: now().UnixMilli()},
		long:   make(chan struct{}, maxLongOrders),
		warned: &zerolog.BurstSampler{Burst: 1, Period: time.Minute},
		total: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "mogile_storaged_orders_total",
			Help: "Orders of trackers, by verb and by ok or the code of the refusal. bad_signature and no_key: compare the cluster key files; clock_skew: compare the clocks."},
			[]string{"verb", "code"}),
	}
	r.MustRegister(o.total)
	return o
}

// words are the capabilities, each after a blank, where orders can be given to a
// listener at all.
func (s *orders) words(loopback bool) string {
	if len(s.keys) == 0 && !loopback {
		return ""
	}
	var b strings.Builder
	told := map[string]bool{}
	for _, k := range s.kinds {
		if word := cmp.Or(k.word, k.verb); !told[word] {
			told[word] = true
			b.WriteString(" " + word)
		}
	}
	return b.String()
}

// serve answers one order.
func (s *orders) serve(r *request, verb string) answer {
	o, kind, err := s.take(r, verb)
	if err != nil {
		return s.refuse(verb, err)
	}
	return answer{status: http.StatusOK, stream: func(ctx context.Context, w io.Writer) []byte {
		return s.carryOut(ctx, kind, o, w)
	}}
}

// httpRefusal is a refusal of the HTTP request that an order is in.
type httpRefusal struct {
	status int
	reason *protocol.Error
}

// Error implements error.
func (e httpRefusal) Error() string { return e.reason.Error() }

// Unwrap is the refusal that is told.
func (e httpRefusal) Unwrap() error { return e.reason }

func refuseHTTP(status int, format string, args ...any) error {
	return httpRefusal{status, &protocol.Error{Code: protocol.ErrBadOrder.Code, Text: fmt.Sprintf(format, args...)}}
}

// take reads an order, and sees that it may be carried out.
func (s *orders) take(r *request, verb string) (protocol.Order, *order, error) {
	switch {
	case r.minor == 0: // progress could not be told
		return protocol.Order{}, nil, refuseHTTP(http.StatusHTTPVersionNotSupported, "orders are given with HTTP/1.1")
	case len(r.contentType) != 1 || r.contentType[0] != protocol.OrderType:
		return protocol.Order{}, nil, refuseHTTP(http.StatusUnsupportedMediaType, "the Content-Type of an order is %s", protocol.OrderType)
	}
	if err := s.reachable(r); err != nil {
		return protocol.Order{}, nil, err
	}
	body, err := s.read(r)
	if err != nil {
		return protocol.Order{}, nil, err
	}
	o, err := protocol.ParseOrder(body)
	if err != nil {
		return protocol.Order{}, nil, err
	}
	if err := o.Verify(s.keys, s.now()); err != nil {
		return protocol.Order{}, nil, err
	}
	if o.Verb != verb {
		return protocol.Order{}, nil, &protocol.Error{Code: protocol.ErrBadOrder.Code, Text: "the order is of another verb than the path"}
	}
	for i := range s.kinds {
		if s.kinds[i].verb == verb {
			if err := s.seen.add(o.Order, s.now()); err != nil {
				return protocol.Order{}, nil, err
			}
			return o.Order, &s.kinds[i], nil
		}
	}
	return protocol.Order{}, nil, &protocol.Error{Code: protocol.ErrUnknownVerb.Code, Text: fmt.Sprintf("there is no verb %.40q here", verb)}
}

// reachable says why nobody can give orders from where r comes.
func (s *orders) reachable(r *request) error {
	if len(s.keys) == 0 && !r.local {
		return &protocol.Error{Code: protocol.ErrNoKey.Code, Text: "this storage daemon has no cluster key: start it with --cluster-key-file"}
	}
	return nil
}

const (
	// shortOrder is what all but the maps of large clusters are no longer than, in
	// bytes.
	shortOrder = 32 << 10
	// maxLongOrders is how many longer ones are read at a time: whoever sends them
	// is not known before all is there.
	maxLongOrders = 4
)

// read reads the body of an order.
func (s *orders) read(r *request) ([]byte, error) {
	body, err := io.ReadAll(io.LimitReader(r.body, shortOrder+1))
	if err == nil && len(body) > shortOrder {
		select {
		case s.long <- struct{}{}:
			defer func() { <-s.long }()
		default:
			return nil, refuseHTTP(http.StatusServiceUnavailable, "%d orders of more than %d bytes are being read already", maxLongOrders, shortOrder)
		}
		var rest []byte
		rest, err = io.ReadAll(io.LimitReader(r.body, protocol.MaxOrder+1-shortOrder))
		body = append(body, rest...)
	}
	if err != nil {
		return nil, httpRefusal{statusOf(err), &protocol.Error{Code: protocol.ErrBadOrder.Code, Text: err.Error()}}
	}
	return body, nil
}

// permit takes the order in the header of an upload to the path of a shard, which
// has to be for it. Its errors are of type *protocol.Error.
func (s *orders) permit(r *request, dev protocol.DevID, fid protocol.FID) (protocol.ShardOrder, error) {
	shard, err := func() (protocol.ShardOrder, error) {
		if len(r.order) != 1 {
			return protocol.ShardOrder{}, &protocol.Error{Code: protocol.ErrBadSignature.Code, Text: "shards are uploaded with one header " + protocol.OrderHeader}
		}
		if err := s.reachable(r); err != nil {
			return protocol.ShardOrder{}, err
		}
		o, err := protocol.ParseOrderHeader(r.order[0])
		if err != nil {
			return protocol.ShardOrder{}, err
		}
		if err := o.Verify(s.keys, s.now()); err != nil {
			return protocol.ShardOrder{}, err
		}
		shard, err := protocol.ParseShardOrder(o.Args)
		if err != nil {
			return protocol.ShardOrder{}, err
		}
		if o.Verb != protocol.VerbShard || shard.FID != fid || shard.Dev != dev {
			return protocol.ShardOrder{}, &protocol.Error{Code: protocol.ErrBadOrder.Code, Text: "the order is not for a shard at this path"}
		}
		return shard, s.seen.add(o.Order, s.now())
	}()
	code := "ok"
	if e, ok := errors.AsType[*protocol.Error](err); ok {
		code = e.Code
		s.warn(protocol.VerbShard, e)
	}
	s.total.WithLabelValues(protocol.VerbShard, code).Inc()
	return shard, err
}

// warn tells an operator of a refusal, now and then.
func (s *orders) warn(verb string, e *protocol.Error) {
	if s.warned.Sample(zerolog.WarnLevel) {
		s.log.Warn().Str("verb", verb).Str("code", e.Code).Str("reason", e.Text).Msg("an order was refused")
	}
}

// refuse is the answer to an order that is not carried out: one line.
func (s *orders) refuse(verb string, err error) answer {
	a := answer{status: http.StatusForbidden}
	e, _ := errors.AsType[*protocol.Error](err)
	if h, ok := errors.AsType[httpRefusal](err); ok {
		a.status, a.close = h.status, true
	} else {
		switch e.Code {
		case protocol.ErrBadOrder.Code, protocol.ErrUnknownVersion.Code:
			a.status = http.StatusBadRequest
		case protocol.ErrUnknownVerb.Code:
			a.status = http.StatusNotFound
		}
	}
	a.text = protocol.AnswerLine{Kind: protocol.AnswerErr, Err: e}.Append(nil)
	a.size = int64(len(a.text))
	if a.status == http.StatusForbidden {
		s.warn(s.label(verb), e)
	}
	s.total.WithLabelValues(s.label(verb), e.Code).Inc()
	return a
}

// label is the verb, where it is one.
func (s *orders) label(verb string) string {
	for _, k := range s.kinds {
		if k.verb == verb {
			return verb
		}
	}
	return "other"
}

// errDeadline ends the context of an order at its deadline.
var errDeadline = errors.New("the order's deadline has passed")

// carryOut has an order carried out, tells of the progress meanwhile, and
// returns the last line.
func (s *orders) carryOut(ctx context.Context, kind *order, o protocol.Order, w io.Writer) []byte {
	ctx, cancel := context.WithTimeoutCause(ctx, o.Deadline.Sub(s.now()), errDeadline)
	defer cancel()
	to := &orderer{w: w}
	fields, err := func() (protocol.Args, error) {
		defer to.tell()()
		return kind.run(ctx, o, to)
	}()
	line := protocol.AnswerLine{Kind: protocol.AnswerOK, Fields: fields}
	code := "ok"
	if err != nil {
		e, ok := errors.AsType[*protocol.Error](err)
		if !ok {
			e = &protocol.Error{Code: protocol.ErrFailure.Code, Text: err.Error()}
		}
		line.Kind, line.Err, code = protocol.AnswerErr, e, e.Code
	}
	s.total.WithLabelValues(kind.verb, code).Inc()
	return line.Append(to.rest())
}

// orderer is the tracker that gave an order, for whom carries it out.
type orderer struct {
	done atomic.Int64

	mu  sync.Mutex // guards the rest
	w   io.Writer
	buf []byte // lines that were not sent yet
	err error  // of w
}

// itemBuffer is how many bytes of items are sent together.
const itemBuffer = 16 << 10

// progress notes how much is done, in a unit of the verb's. It is told once a
// second.
func (c *orderer) progress(done int64) { c.done.Store(done) }

// item sends a line with fields. Its error is the client's: nothing more will
// reach it.
func (c *orderer) item(fields protocol.Args) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	before := len(c.buf)
	c.buf = protocol.AnswerLine{Kind: protocol.AnswerItem, Fields: fields}.Append(c.buf)
	if n := len(c.buf) - before; n > protocol.MaxAnswerLine {
		c.buf = c.buf[:before]
		return fmt.Errorf("a line of %d bytes is longer than an answer's may be", n)
	}
	if len(c.buf) >= itemBuffer {
		c.flush()
	}
	return c.err
}

// flush sends the lines that wait. The caller holds mu.
func (c *orderer) flush() {
	if c.err == nil {
		_, c.err = c.w.Write(c.buf)
	}
	c.buf = c.buf[:0]
}

// tell tells of the progress until stop is called.
func (c *orderer) tell() (stop func()) {
	end, over := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(over)
		tick := time.NewTicker(progressInterval)
		defer tick.Stop()
		for {
			select {
			case <-end:
				return
			case <-tick.C:
			}
			c.mu.Lock()
			var fields protocol.Args
			fields.AddInt("done", c.done.Load())
			c.buf = protocol.AnswerLine{Kind: protocol.AnswerProgress, Fields: fields}.Append(c.buf)
			c.flush()
			c.mu.Unlock()
		}
	}()
	return func() {
		close(end)
		<-over
	}
}

// rest are the lines that were not sent.
func (c *orderer) rest() []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.buf
}

// maxNonces bounds the nonces that are remembered: 500 orders a second for as
// long as they can be given.
const maxNonces = 1 << 17

// nonces are those of the orders that were taken, for as long as one can be
// given again. An order from before the daemon's start may have been taken by
// the process before it, and is refused; so are orders that are no younger than
// one that had to be forgotten in a flood. Obeyed twice, an order to trash could
// take a good copy that has come to the place of the bad one.
type nonces struct {
	mu    sync.Mutex // guards the rest
	since int64      // ms since 1970; whether an order given before was taken is not known
	known map[[16]byte]struct{}
	queue []nonce // in the order in which they came
}

type nonce struct {
	id     [16]byte
	issued int64 // ms since 1970
	until  time.Time
}

// add remembers the nonce of an order that is about to be obeyed. It refuses one
// that was obeyed before, or may have been.
func (n *nonces) add(o protocol.Order, now time.Time) error {
	e := nonce{issued: o.Issued.UnixMilli(), until: now.Add(2 * protocol.MaxClockSkew)} // the order may be ahead of the clock
	hex.Decode(e.id[:], []byte(o.Nonce))                                                // it was parsed: 32 digits
	n.mu.Lock()
	defer n.mu.Unlock()
	old := 0
	for old < len(n.queue) && (n.queue[old].until.Before(now) || len(n.queue)-old >= maxNonces) {
		if !n.queue[old].until.Before(now) {
			n.since = max(n.since, n.queue[old].issued+1)
		}
		delete(n.known, n.queue[old].id)
		old++
	}
	n.queue = n.queue[old:] // what grows it again leaves the rest behind
	if _, ok := n.known[e.id]; ok {
		return &protocol.Error{Code: protocol.ErrOrderReplayed.Code, Text: "this order was taken before"}
	}
	if e.issued < n.since {
		return &protocol.Error{Code: protocol.ErrClockSkew.Code, Text: fmt.Sprintf(
			"ordered at %s, it is %s here: what was ordered before %s, when this daemon started or was flooded, may have been done already",
			o.Issued.UTC().Format(clockForm), now.UTC().Format(clockForm), time.UnixMilli(n.since).UTC().Format(clockForm))}
	}
	if n.known == nil {
		n.known = map[[16]byte]struct{}{}
	}
	n.known[e.id] = struct{}{}
	n.queue = append(n.queue, e)
	return nil
}

// clockForm is how times are told in refusals.
const clockForm = "2006-01-02T15:04:05.000Z"
