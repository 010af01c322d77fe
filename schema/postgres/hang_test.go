package postgres

import (
	"context"
	"errors"
	"io"
	"net"
	"net/url"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/jackc/pgx/v5/pgxpool"
)

// line is a network between a store and its server that can be cut so that
// neither side hears of it.
type line struct {
	net.Listener
	cut chan struct{}
	wg  sync.WaitGroup
}

// newLine leads to the server of dsn; the store must use what through makes of
// that.
func newLine(t *testing.T, dsn string) (l *line, through string) {
	t.Helper()
	config, err := pgx.ParseConfig(dsn)
	if err != nil {
		t.Fatal(err)
	}
	l = &line{cut: make(chan struct{})}
	address := net.JoinHostPort(config.Host, strconv.Itoa(int(config.Port)))
	if l.Listener, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	l.wg.Go(func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial("tcp", address)
			if err != nil {
				client.Close()
				continue
			}
			l.wg.Go(func() { l.carry(server, client) })
			l.wg.Go(func() { l.carry(client, server) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		l.wg.Wait()
	})
	u := url.URL{Scheme: "postgres", Host: l.Addr().String(), Path: "/" + config.Database, RawQuery: "sslmode=disable"}
	u.User = url.User(config.User)
	return l, u.String()
}

func (l *line) carry(to, from net.Conn) {
	defer to.Close()
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		select {
		case <-l.cut: // swallowed
		default:
			if _, werr := to.Write(buf[:n]); werr != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// TestHungServer cuts the network to the server: every call ends, and so does
// the store.
func TestHungServer(t *testing.T) {
	t.Parallel()
	d := fresh(t, noOffset).(database)
	l, dsn := newLine(t, d.dsn)
	s := open(t, Options{DSN: dsn, MaxConns: 4})
	ctx := t.Context()
	if _, err := s.CreateDomain(ctx, "d"); err != nil {
		t.Fatal(err)
	}
	held, lost, err := s.TryLock(ctx, []string{"a"})
	if err != nil || len(held) != 1 {
		t.Fatal(held, err)
	}
	close(l.cut)

	began := time.Now()
	var calls sync.WaitGroup
	for range 10 {
		calls.Go(func() {
			within, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
			defer cancel()
			if err := s.Ping(within); err == nil {
				t.Error("a server that does not answer was heard")
			}
		})
		calls.Go(func() {
			within, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
			defer cancel()
			if _, _, err := s.TryLock(within, []string{"b"}); err == nil {
				t.Error("a lock was had of a server that does not answer")
			}
		})
	}
	calls.Wait()
	// One of them waits for the session's statement, the others for their turn.
	if took := time.Since(began); took > sessionTimeout+3*time.Second {
		t.Errorf("calls with 300 ms ended after %s", took)
	}
	select {
	case <-lost:
	case <-time.After(20 * time.Second):
		t.Error("the locks are not reported as lost")
	}
	began = time.Now()
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	// The driver takes its time to tell the server that it leaves.
	if took := time.Since(began); took > 20*time.Second {
		t.Errorf("Close took %s", took)
	}
}

// TestServerHangsAfterConnecting has a server let connections in and then say
// nothing: they are given up, or they would take all places in the pool.
func TestServerHangsAfterConnecting(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	defer l.Close()
	wg.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer conn.Close()
				b := pgproto3.NewBackend(conn, conn)
				if _, err := b.ReceiveStartupMessage(); err != nil {
					return
				}
				b.Send(&pgproto3.AuthenticationOk{})
				b.Send(&pgproto3.ParameterStatus{Name: "server_encoding", Value: "UTF8"})
				b.Send(&pgproto3.BackendKeyData{ProcessID: 1, SecretKey: []byte{0, 0, 0, 1}})
				b.Send(&pgproto3.ReadyForQuery{TxStatus: 'I'})
				if b.Flush() == nil {
					_, _ = io.Copy(io.Discard, conn) // until the client leaves
				}
			})
		}
	})
	config, err := poolConfig(Options{DSN: "postgres://u@" + l.Addr().String() + "/d?sslmode=disable", MaxConns: 1})
	if err != nil {
		t.Fatal(err)
	}
	pool, err := pgxpool.NewWithConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	within, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := pool.Acquire(within); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("Acquire: %v", err)
	}
	eventually(t, "the connection is given up", func() bool { return pool.Stat().ConstructingConns() == 0 })
}
