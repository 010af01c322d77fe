package mogile

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/pprof"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sync/errgroup"
)

// statusSource is what a daemon shows on its status port.
type statusSource interface {
	// Ready is nil while the daemon can do its work, else the reason why not.
	Ready(ctx context.Context) error
	Registry() *prometheus.Registry
}

// statusTimeout bounds a request to the status port, except profiles.
const statusTimeout = 10 * time.Second

// listenStatus binds the status port, so that a taken port is an error before
// anything starts. An empty address gives a nil listener.
func listenStatus(addr string) (net.Listener, error) {
	if addr == "" {
		return nil, nil
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("status port: %w", err)
	}
	return l, nil
}

// daemon is what runs behind a status port.
type daemon interface {
	statusSource
	Run(ctx context.Context) error
}

// runWithStatus runs d, and its status port on l where that is not nil, until
// ctx ends or d does: it can be told to through a port of its own.
func runWithStatus(ctx context.Context, d daemon, l net.Listener, profiles bool) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		defer cancel()
		return d.Run(ctx)
	})
	if l != nil {
		g.Go(func() error { return serveStatus(ctx, l, d, profiles) })
	}
	return g.Wait()
}

// serveStatus answers on l until ctx ends: /healthz as long as the process
// lives, /readyz as src says, /metrics in Prometheus's format.
func serveStatus(ctx context.Context, l net.Listener, src statusSource, profiles bool) error {
	srv := &http.Server{
		Handler:           statusHandler(src, profiles),
		ReadHeaderTimeout: statusTimeout,
		ReadTimeout:       statusTimeout,
		IdleTimeout:       time.Minute,
	}
	stopped := make(chan error, 1)
	go func() {
		<-ctx.Done()
		drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		if err := srv.Shutdown(drain); err != nil {
			stopped <- srv.Close()
			return
		}
		stopped <- nil
	}()
	if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("status port: %w", err)
	}
	return <-stopped
}

func statusHandler(src statusSource, profiles bool) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(w, "ok")
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), statusTimeout/2)
		defer cancel()
		if err := src.Ready(ctx); err != nil {
			http.Error(w, "not ready: "+err.Error(), http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	mux.Handle("GET /metrics", promhttp.HandlerFor(src.Registry(), promhttp.HandlerOpts{Timeout: statusTimeout}))
	if profiles {
		mux.HandleFunc("/debug/pprof/", pprof.Index)
		mux.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
		mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
		mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
		mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	}
	return mux
}
