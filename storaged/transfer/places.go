package transfer

import (
	"context"
	"sync"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/mogile/mogile/protocol"
)

// places are those that transfers to each device have. Who waits for one holds
// up nobody else.
type places struct {
	perDevice int

	mu sync.Mutex // guards what follows
	of map[protocol.DevID]*devicePlaces
}

type devicePlaces struct {
	all     chan struct{} // holds one element for each place that is taken
	sources map[string]*sourcePlaces
}

// sourcePlaces are those that one source has of a device's.
type sourcePlaces struct {
	taken chan struct{}
	users int // who have one, or wait
}

// enter waits for a place until ctx ends, the cause of which is the error.
func (p *places) enter(ctx context.Context, dev protocol.DevID, source string) (leave func(), err error) {
	p.mu.Lock()
	d := p.of[dev]
	if d == nil {
		d = &devicePlaces{all: make(chan struct{}, p.perDevice), sources: map[string]*sourcePlaces{}}
		p.of[dev] = d
	}
	s := d.sources[source]
	if s == nil {
		s = &sourcePlaces{taken: make(chan struct{}, max(p.perDevice/2, 1))}
		d.sources[source] = s
	}
	s.users++
	p.mu.Unlock()
	forget := func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		if s.users--; s.users == 0 {
			delete(d.sources, source)
		}
	}
	select {
	case s.taken <- struct{}{}:
	case <-ctx.Done():
		forget()
		return nil, context.Cause(ctx)
	}
	select {
	case d.all <- struct{}{}:
	case <-ctx.Done():
		<-s.taken
		forget()
		return nil, context.Cause(ctx)
	}
	return func() {
		<-d.all
		<-s.taken
		forget()
	}, nil
}

// meter counts transfers.
type meter struct {
	total            *prometheus.CounterVec // result
	bytes            prometheus.Counter
	running, waiting prometheus.Gauge
}

func newMeter(r prometheus.Registerer) meter {
	const space, part = "mogile", "storaged"
	m := meter{
		total: prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: space, Subsystem: part, Name: "transfers_total",
			Help: "Files that trackers ordered to be fetched, by what came of it: ok, present (it was there already), or the code of the failure. dest_error: look at the disk."},
			[]string{"result"}),
		bytes: prometheus.NewCounter(prometheus.CounterOpts{Namespace: space, Subsystem: part, Name: "transfer_bytes_total",
			Help: "Bytes fetched from other storage daemons."}),
		running: prometheus.NewGauge(prometheus.GaugeOpts{Namespace: space, Subsystem: part, Name: "transfers_in_progress",
			Help: "Transfers that have a place at their device."}),
		waiting: prometheus.NewGauge(prometheus.GaugeOpts{Namespace: space, Subsystem: part, Name: "transfers_waiting",
			Help: "Transfers that wait for a place. If it stays high look for a slow disk or source, or raise --transfers-per-device."}),
	}
	if r != nil {
		r.MustRegister(m.total, m.bytes, m.running, m.waiting)
	}
	return m
}
