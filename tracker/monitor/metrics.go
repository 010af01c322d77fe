package monitor

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/mogile/mogile/tracker/cluster"
)

// metrics are the monitor's, which nobody reads where there is no registerer.
type metrics struct {
	seconds  prometheus.Histogram
	failures prometheus.Counter
}

func newMetrics(reg prometheus.Registerer, c *cluster.Cluster) metrics {
	m := metrics{
		seconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "mogile_monitor_round_seconds",
			Help:    "How long it took to look at every device. Seconds mean that hosts do not answer.",
			Buckets: prometheus.ExponentialBuckets(0.005, 2, 13),
		}),
		failures: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "mogile_monitor_database_failures_total",
			Help: "Calls to the database that failed. While it grows the tracker works with what it knew before.",
		}),
	}
	if reg != nil {
		reg.MustRegister(m.seconds, m.failures, states{c})
	}
	return m
}

func (m metrics) round(took time.Duration) { m.seconds.Observe(took.Seconds()) }
func (m metrics) databaseFailure()         { m.failures.Inc() }

// states counts hosts and devices by what was last seen of them.
type states struct{ c *cluster.Cluster }

var (
	hostsDesc = prometheus.NewDesc("mogile_monitor_hosts",
		"Hosts by what the monitor last saw. Look after those that are unreachable.", []string{"state"}, nil)
	devicesDesc = prometheus.NewDesc("mogile_monitor_devices",
		"Devices by what the monitor last saw, as far as their hosts are reachable. Look after those that are unreachable or, unless they are readonly, readable only.",
		[]string{"state"}, nil)
)

// Describe sends the names.
func (states) Describe(ch chan<- *prometheus.Desc) { ch <- hostsDesc; ch <- devicesDesc }

// Collect counts.
func (s states) Collect(ch chan<- prometheus.Metric) {
	hosts := map[string]int{string(cluster.HostReachable): 0, string(cluster.HostUnreachable): 0, "unknown": 0}
	devices := map[string]int{
		string(cluster.DeviceWriteable): 0, string(cluster.DeviceReadable): 0, string(cluster.DeviceUnreachable): 0, "unknown": 0,
	}
	if snap := s.c.Snapshot(); snap != nil {
		for _, h := range snap.HostList {
			hosts[orUnknown(string(h.Observed))]++
		}
		for _, d := range snap.DeviceList {
			state := string(d.Observed)
			if d.Host != nil && d.Host.Observed == cluster.HostUnreachable {
				state = string(cluster.DeviceUnreachable)
			}
			devices[orUnknown(state)]++
		}
	}
	for state, n := range hosts {
		ch <- prometheus.MustNewConstMetric(hostsDesc, prometheus.GaugeValue, float64(n), state)
	}
	for state, n := range devices {
		ch <- prometheus.MustNewConstMetric(devicesDesc, prometheus.GaugeValue, float64(n), state)
	}
}

func orUnknown(state string) string {
	if state == "" {
		return "unknown"
	}
	return state
}
