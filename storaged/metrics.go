package storaged

import (
	"net/http"
	"slices"
	"strconv"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/mogile/mogile/storaged/volume"
)

// meter counts what the daemon does.
type meter struct {
	requests       *prometheus.CounterVec                                             // method, code
	counters       [len(countedMethods)][maxStatus]atomic.Pointer[prometheus.Counter] // those of requests that are known
	received, sent prometheus.Counter
	inFlight       prometheus.Gauge
	connections    prometheus.Gauge
	waited         prometheus.Counter
	unaccepted     prometheus.Counter
	commands       *prometheus.CounterVec // command
	digests        prometheus.Gauge
	trashed        prometheus.Counter
	emptied        prometheus.Counter
}

func newMeter(r *prometheus.Registry, docroot *volume.Docroot) *meter {
	const space, part = "mogile", "storaged"
	m := &meter{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: space, Subsystem: part, Name: "requests_total",
			Help: "HTTP requests answered. Codes 500, 503 and 507 that grow mean a disk that fails, does not answer or is full."},
			[]string{"method", "code"}),
		received: prometheus.NewCounter(prometheus.CounterOpts{Namespace: space, Subsystem: part, Name: "received_bytes_total",
			Help: "Bytes of request bodies received."}),
		sent: prometheus.NewCounter(prometheus.CounterOpts{Namespace: space, Subsystem: part, Name: "sent_bytes_total",
			Help: "Bytes of answers' bodies sent."}),
		inFlight: prometheus.NewGauge(prometheus.GaugeOpts{Namespace: space, Subsystem: part, Name: "requests_in_flight",
			Help: "HTTP requests in progress. If it stays high look for a slow disk."}),
		connections: prometheus.NewGauge(prometheus.GaugeOpts{Namespace: space, Subsystem: part, Name: "connections",
			Help: "Open connections on all listeners. At the limit idle ones are closed; raise the limit."}),
		waited: prometheus.NewCounter(prometheus.CounterOpts{Namespace: space, Subsystem: part, Name: "connections_waited_total",
			Help: "Connections that found all in use, and waited until one ended. Raise the limit, or find the client that keeps so many."}),
		unaccepted: prometheus.NewCounter(prometheus.CounterOpts{Namespace: space, Subsystem: part, Name: "accept_failures_total",
			Help: "Attempts to accept a connection that failed, most likely because descriptors ran out. Raise the limit of open files, or lower that of connections."}),
		commands: prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: space, Subsystem: part, Name: "commands_total",
			Help: "Lines answered on the side channel."}, []string{"command"}),
		digests: prometheus.NewGauge(prometheus.GaugeOpts{Namespace: space, Subsystem: part, Name: "digests_in_progress",
			Help: "Files being read for digests and verifications on the side channel."}),
		trashed: prometheus.NewCounter(prometheus.CounterOpts{Namespace: space, Subsystem: part, Name: "trashed_files_total",
			Help: "Files moved to the trash of their device: bad copies and strays. It keeps them for a week."}),
		emptied: prometheus.NewCounter(prometheus.CounterOpts{Namespace: space, Subsystem: part, Name: "trash_removed_files_total",
			Help: "Files removed from the trash after their week."}),
	}
	r.MustRegister(m.requests, m.received, m.sent, m.inFlight, m.connections, m.waited, m.unaccepted, m.commands, m.digests, m.trashed, m.emptied, deviceCollector{docroot})
	return m
}

// countedMethods are those that are counted apart; the last stands for all others.
var countedMethods = [...]string{http.MethodGet, http.MethodPut, http.MethodHead, http.MethodDelete, http.MethodPost, "MKCOL", "other"}

// maxStatus is above every status.
const maxStatus = 600

// request counts one answered HTTP request.
func (m *meter) request(method string, status int, received, sent int64) {
	i := slices.Index(countedMethods[:], method)
	if i < 0 {
		i = len(countedMethods) - 1
	}
	known := &m.counters[i][status]
	c := known.Load()
	if c == nil {
		made := m.requests.WithLabelValues(countedMethods[i], strconv.Itoa(status))
		c = &made
		known.Store(c)
	}
	(*c).Inc()
	if received > 0 {
		m.received.Add(float64(received))
	}
	m.sent.Add(float64(sent))
}

// command counts one line of the side channel.
func (m *meter) command(c command) {
	name := "invalid"
	switch c.verb {
	case verbSize:
		name = "size"
	case verbDigest:
		name = c.hash.String()
	case verbVerify:
		name = "verify"
	case verbWatch:
		name = "watch"
	case verbShutdown:
		name = "shutdown"
	case verbThreads:
		name = "server"
	case verbBlank:
		name = "blank"
	}
	m.commands.WithLabelValues(name).Inc()
}

// deviceCollector shows the devices as they are at the time of the scrape.
type deviceCollector struct{ docroot *volume.Docroot }

var (
	deviceUsed = prometheus.NewDesc("mogile_device_used_bytes",
		"Bytes used on the device's file system.", []string{"devid"}, nil)
	deviceFree = prometheus.NewDesc("mogile_device_free_bytes",
		"Bytes that may still be written to the device's file system. Add devices before it is gone.", []string{"devid"}, nil)
	deviceSick = prometheus.NewDesc("mogile_device_sick",
		"1 while the device does not answer, or cannot tell how full it is. Look at the disk, and mark the device down or dead.", []string{"devid"}, nil)
	deviceRefused = prometheus.NewDesc("mogile_device_refused",
		"1 while the device's folder is there and is not served: nothing is mounted on it, another disk is, or it cannot be read. The log says why.", []string{"devid"}, nil)
	deviceFailed = prometheus.NewDesc("mogile_device_flush_failed",
		"1 since a flush of the device failed: it takes no more writes. Look at the disk and the kernel's log, mount it anew and restart the daemon, or mark the device dead.", []string{"devid"}, nil)
)

// Describe implements prometheus.Collector.
func (deviceCollector) Describe(ch chan<- *prometheus.Desc) {
	ch <- deviceUsed
	ch <- deviceFree
	ch <- deviceSick
	ch <- deviceFailed
	ch <- deviceRefused
}

// Collect implements prometheus.Collector.
func (c deviceCollector) Collect(ch chan<- prometheus.Metric) {
	for _, v := range c.docroot.Volumes() {
		dev := v.ID().String()
		sick := 1.0
		if u, err := v.Usage(); err == nil {
			sick = 0
			ch <- prometheus.MustNewConstMetric(deviceUsed, prometheus.GaugeValue, float64(u.Used)*1024, dev)
			ch <- prometheus.MustNewConstMetric(deviceFree, prometheus.GaugeValue, float64(u.Available)*1024, dev)
		}
		ch <- prometheus.MustNewConstMetric(deviceSick, prometheus.GaugeValue, sick, dev)
		failed := 0.0
		if v.Failed() != nil {
			failed = 1
		}
		ch <- prometheus.MustNewConstMetric(deviceFailed, prometheus.GaugeValue, failed, dev)
		ch <- prometheus.MustNewConstMetric(deviceRefused, prometheus.GaugeValue, 0, dev)
	}
	for dev := range c.docroot.Refused() {
		ch <- prometheus.MustNewConstMetric(deviceRefused, prometheus.GaugeValue, 1, dev.String())
	}
}
