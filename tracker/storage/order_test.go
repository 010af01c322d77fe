package storage

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/mogile/mogile/protocol"
)

// TestTakesOrders asks daemons with the tracker's key, with another, with another
// time, and without orders.
func TestTakesOrders(t *testing.T) {
	t.Parallel()
	ours, theirs := []byte(strings.Repeat("o", 43)), []byte(strings.Repeat("t", 43))
	for _, tt := range []struct {
		name  string
		mine  []byte
		key   []byte        // the daemon's; nil: it has never heard of orders
		clock time.Duration // by which the daemon's clock is ahead
		want  error
	}{
		{"the same key", ours, ours, 0, nil},
		{"another key", ours, theirs, 0, protocol.ErrBadSignature},
		{"no key of the tracker's", nil, ours, 0, protocol.ErrBadSignature},
		{"another time", ours, ours, time.Hour, protocol.ErrClockSkew},
		{"another make", ours, nil, 0, ErrNoOrders},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				body, err := io.ReadAll(r.Body)
				if err != nil || tt.key == nil {
					w.WriteHeader(http.StatusMethodNotAllowed)
					return
				}
				o, err := protocol.ParseOrder(body)
				if err == nil {
					err = o.Verify([][]byte{tt.key}, time.Now().Add(tt.clock))
				}
				if err == nil {
					err = protocol.ErrUnknownVerb
				}
				e, ok := errors.AsType[*protocol.Error](err)
				if !ok {
					t.Error(err)
				}
				w.WriteHeader(http.StatusForbidden)
				_, _ = w.Write(protocol.AnswerLine{Kind: protocol.AnswerErr, Err: e}.Append(nil)) // the client fails, then
			}))
			t.Cleanup(server.Close)
			err := client(t, Options{Key: tt.mine}).TakesOrders(t.Context(), strings.TrimPrefix(server.URL, "http://"))
			if !errors.Is(err, tt.want) || tt.want != nil && !errors.Is(err, ErrNoOrders) {
				t.Errorf("%v; want %v", err, tt.want)
			}
		})
	}
	if err := client(t, Options{}).TakesOrders(t.Context(), "192.0.2.1:7500"); !errors.Is(err, ErrNoOrders) {
		t.Errorf("without a key: %v", err)
	}
}
