// Package status is what a tracker counts, as Prometheus metrics.
package status

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/mogile/mogile/schema"
)

// Reasons for which a tracker closes a connection of its own accord.
const (
	DropSlowReader = "slow_reader" // the client did not read its answers
	DropSlowSender = "slow_sender" // the client sent half a line, and others needed its place
	DropLongLine   = "long_line"   // a request line beyond the limit
	DropGivenUp    = "given_up"    // a request that did not end
)

// Sources are read when the metrics are.
type Sources struct {
	Name    string // of the tracker
	Version string
	// Queries are the requests that wait for a worker, the workers at work and
	// the idle ones.
	Queries func() (pending, processing, bored int)
	// Workers are the present workers of each job.
	Workers func() map[string]int
	// Abandoned are the workers of each job that hang and were given up.
	Abandoned func() map[string]int
	// Watchers is how many connections follow the log.
	Watchers func() int
	// QueueLengths counts the rows of the database's queues. It may be asked
	// often and decides itself how often it looks. An error leaves the metric
	// out.
	QueueLengths func(ctx context.Context) (map[schema.Queue]int64, error)
}

// scrapeTimeout bounds what reading the metrics asks of the database.
const scrapeTimeout = 5 * time.Second

// Metrics are a tracker's counters. Its methods may be called concurrently.
type Metrics struct {
	registry *prometheus.Registry
	queries  *prometheus.CounterVec
	seconds  *prometheus.HistogramVec
	conns    prometheus.Gauge
	accepted prometheus.Counter
	refused  prometheus.Counter
	dropped  *prometheus.CounterVec
}

// New makes the metrics of one tracker, and their registry.
func New(src Sources) *Metrics {
	m := &Metrics{
		registry: prometheus.NewRegistry(),
		queries: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "mogile_tracker_queries_total",
			Help: "Requests answered, by command and code (ok, or the error code). Look at the log when code failure or db rises.",
		}, []string{"command", "code"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "mogile_tracker_query_seconds",
			Help:    "Time from a request's arrival to its answer, waiting for a worker included. When it rises look at the database, then at the storage daemons.",
			Buckets: []float64{.0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30},
		}, []string{"command"}),
		conns: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "mogile_tracker_connections",
			Help: "Open client connections. At the limit new ones are refused.",
		}),
		accepted: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "mogile_tracker_connections_total",
			Help: "Client connections accepted. A steep rise means clients that do not reuse theirs.",
		}),
		refused: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "mogile_tracker_connections_refused_total",
			Help: "Client connections closed at once because the limit was reached. Raise the limit or find the client that leaks.",
		}),
		dropped: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "mogile_tracker_connections_dropped_total",
			Help: "Client connections closed by the tracker, by reason: slow_reader, slow_sender, long_line, given_up.",
		}, []string{"reason"}),
	}
	info := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name:        "mogile_tracker_info",
		Help:        "Always 1; the labels name the tracker and its version.",
		ConstLabels: prometheus.Labels{"name": src.Name, "version": src.Version},
	}, func() float64 { return 1 })
	for _, reason := range []string{DropSlowReader, DropSlowSender, DropLongLine, DropGivenUp} {
		m.dropped.WithLabelValues(reason)
	}
	m.registry.MustRegister(m.queries, m.seconds, m.conns, m.accepted, m.refused, m.dropped, info,
		&loads{src: src}, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// Registry is where the metrics are read, and where the tracker's workers
// register their own.
func (m *Metrics) Registry() *prometheus.Registry { return m.registry }

// Command is the metrics of one command, prepared for a hot path.
type Command struct {
	m       *Metrics
	name    string
	ok      prometheus.Counter
	seconds prometheus.Observer
}

// Command prepares the metrics of the named command. Names must be bounded:
// requests for commands that do not exist share one.
func (m *Metrics) Command(name string) *Command {
	return &Command{m: m, name: name, ok: m.queries.WithLabelValues(name, "ok"), seconds: m.seconds.WithLabelValues(name)}
}

// Answered counts a request that was answered after d; code is empty for
// success.
func (c *Command) Answered(code string, d time.Duration) {
	if code == "" {
		c.ok.Inc()
	} else {
		c.m.queries.WithLabelValues(c.name, code).Inc()
	}
	c.seconds.Observe(d.Seconds())
}

// Opened counts a connection that was accepted.
func (m *Metrics) Opened() { m.conns.Inc(); m.accepted.Inc() }

// Closed counts the end of an accepted connection.
func (m *Metrics) Closed() { m.conns.Dec() }

// Refused counts a connection closed because the limit was reached.
func (m *Metrics) Refused() { m.refused.Inc() }

// Dropped counts a connection closed for reason, one of the Drop constants.
func (m *Metrics) Dropped(reason string) { m.dropped.WithLabelValues(reason).Inc() }

// loads reads the sources.
type loads struct{ src Sources }

var (
	pendingDesc = prometheus.NewDesc("mogile_tracker_pending_queries",
		"Requests waiting for a query worker. Raise the number of query workers if it stays above 0.", nil, nil)
	queryWorkersDesc = prometheus.NewDesc("mogile_tracker_query_workers",
		"Query workers, by state: busy, idle.", []string{"state"}, nil)
	workersDesc = prometheus.NewDesc("mogile_tracker_workers",
		"Workers of each job.", []string{"job"}, nil)
	abandonedDesc = prometheus.NewDesc("mogile_tracker_abandoned_workers",
		"Workers of each job that hang, and were given up and replaced. Above 0: see the log, and restart the tracker when convenient.", []string{"job"}, nil)
	watchersDesc = prometheus.NewDesc("mogile_tracker_watchers",
		"Connections that follow the log with !watch.", nil, nil)
	queueDesc = prometheus.NewDesc("mogile_tracker_queue_rows",
		"Rows in the database's queues, of all trackers together. A queue that only grows has too few workers, or storage daemons that do not answer.", []string{"queue"}, nil)
)

func (l *loads) Describe(ch chan<- *prometheus.Desc) {
	ch <- pendingDesc
	ch <- queryWorkersDesc
	ch <- workersDesc
	ch <- abandonedDesc
	ch <- watchersDesc
	ch <- queueDesc
}

func (l *loads) Collect(ch chan<- prometheus.Metric) {
	pending, processing, bored := l.src.Queries()
	ch <- prometheus.MustNewConstMetric(pendingDesc, prometheus.GaugeValue, float64(pending))
	ch <- prometheus.MustNewConstMetric(queryWorkersDesc, prometheus.GaugeValue, float64(processing), "busy")
	ch <- prometheus.MustNewConstMetric(queryWorkersDesc, prometheus.GaugeValue, float64(bored), "idle")
	for job, n := range l.src.Workers() {
		ch <- prometheus.MustNewConstMetric(workersDesc, prometheus.GaugeValue, float64(n), job)
	}
	for job, n := range l.src.Abandoned() {
		ch <- prometheus.MustNewConstMetric(abandonedDesc, prometheus.GaugeValue, float64(n), job)
	}
	ch <- prometheus.MustNewConstMetric(watchersDesc, prometheus.GaugeValue, float64(l.src.Watchers()))
	ctx, cancel := context.WithTimeout(context.Background(), scrapeTimeout)
	defer cancel()
	lengths, err := l.src.QueueLengths(ctx)
	if err != nil {
		return // the metric is missing for as long as the database is; its absence tells so
	}
	for q, n := range lengths {
		ch <- prometheus.MustNewConstMetric(queueDesc, prometheus.GaugeValue, float64(n), q.String())
	}
}
