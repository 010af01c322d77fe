package storage

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/mogile/mogile/protocol"
)

// ErrNoOrders is matched where a storage daemon takes no such orders from this
// tracker, such as one of another make, without a key, or with another.
var ErrNoOrders = errors.New("storage daemon takes no such orders from this tracker")

// order has the storage daemon at hostport do something within a time, and
// returns the fields of the last line of its answer. lines gets those before; it
// may be nil. The daemon is given up when it says nothing for idle.
//
// Errors match [ErrNoOrders], or are the *[protocol.Error] that the daemon
// refused or failed with, in an *OrderError, or match [ErrUnreachable].
func (c *Client) order(ctx context.Context, hostport, verb string, args protocol.Args, within, idle time.Duration, lines func(protocol.AnswerLine)) (protocol.Args, error) {
	if !c.mayOrder(hostport) {
		return nil, fmt.Errorf("order %s of %s: %w: no cluster key", verb, hostport, ErrNoOrders)
	}
	url := "http://" + hostport + protocol.OrderPath + verb
	r, err := c.sendOrder(ctx, url, verb, within, idle, args)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	in := bufio.NewReaderSize(r, protocol.MaxAnswerLine)
	for {
		text, err := in.ReadSlice('\n')
		if err != nil {
			if status := r.check(); status != nil { // of a daemon that does not answer in lines
				return nil, fmt.Errorf("%w: %w", ErrNoOrders, status)
			}
			if err == io.EOF {
				err = fmt.Errorf("%w: %w", ErrUnreachable, io.ErrUnexpectedEOF)
			}
			return nil, fmt.Errorf("POST %s: %w", url, err)
		}
		line, err := protocol.ParseAnswerLine(strings.TrimRight(string(text), "\r\n"))
		switch {
		case err != nil && r.StatusCode != http.StatusOK:
			return nil, fmt.Errorf("%w: %w", ErrNoOrders, r.check())
		case err != nil:
			return nil, fmt.Errorf("POST %s: %w: %w", url, ErrUnreachable, err)
		case line.Kind == protocol.AnswerOK:
			return line.Fields, nil
		case line.Kind == protocol.AnswerErr:
			return nil, orderError(url, line)
		case lines != nil:
			lines(line)
		}
	}
}

// orderCheckTime is how long a storage daemon has to say whether it takes orders.
const orderCheckTime = 3 * time.Second

// TakesOrders asks the storage daemon at hostport whether it takes orders of this
// tracker: whether the keys and the clocks agree. Errors match [ErrNoOrders] or
// [ErrUnreachable].
func (c *Client) TakesOrders(ctx context.Context, hostport string) error {
	ctx, cancel := context.WithTimeout(ctx, orderCheckTime)
	defer cancel()
	_, err := c.order(ctx, hostport, protocol.VerbNone, nil, orderCheckTime, orderCheckTime, nil)
	if errors.Is(err, protocol.ErrUnknownVerb) {
		return nil
	}
	return err
}

// sendOrder sends an order, and another like it where a kept connection turned
// out to be closed: an order is taken once.
func (c *Client) sendOrder(ctx context.Context, url, verb string, within, idle time.Duration, args protocol.Args) (*response, error) {
	for {
		var kept bool
		// The daemon's clock may be ahead; less would be over there before it begins.
		o := protocol.NewOrder(verb, c.o.Now(), min(within+protocol.MaxClockSkew, protocol.MaxOrderLife), args)
		r, err := c.send(ctx, c.orders, request{
			method: http.MethodPost, url: url, small: o.Sign(c.o.Key), once: true,
			header: http.Header{"Content-Type": {protocol.OrderType}}, idle: idle, reused: &kept,
		})
		if err == nil || !kept || ctx.Err() != nil || errors.Is(err, os.ErrDeadlineExceeded) {
			return r, err
		}
		c.orders.CloseIdleConnections()
	}
}

// OrderError is why a storage daemon did not do what it was ordered to.
type OrderError struct {
	URL    string
	Err    *protocol.Error
	Fields protocol.Args // what it said beside
}

// Error is the URL and the reason.
func (e *OrderError) Error() string { return "POST " + e.URL + ": " + e.Err.Error() }

// Unwrap is the reason.
func (e *OrderError) Unwrap() error { return e.Err }

// orderError is the error of an answer's last line.
func orderError(url string, line protocol.AnswerLine) error {
	err := &OrderError{URL: url, Err: line.Err, Fields: line.Fields}
	for _, refusal := range []error{
		protocol.ErrBadOrder, protocol.ErrUnknownVersion, protocol.ErrUnknownVerb, protocol.ErrNoKey, protocol.ErrBadSignature,
		protocol.ErrClockSkew, protocol.ErrOrderExpired, protocol.ErrOrderTooLong, protocol.ErrOrderReplayed,
	} {
		if errors.Is(line.Err, refusal) {
			return fmt.Errorf("%w: %w", ErrNoOrders, err)
		}
	}
	return err
}

// mayOrder reports whether an order of this tracker may be obeyed at hostport:
// it is signed, or all is on one machine.
func (c *Client) mayOrder(hostport string) bool {
	if len(c.o.Key) > 0 {
		return true
	}
	addr, err := netip.ParseAddrPort(hostport)
	return err == nil && addr.Addr().Unmap().IsLoopback()
}
