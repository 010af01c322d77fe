package status_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/mogile/mogile/schema"
	"github.com/mogile/mogile/tracker/status"
)

func newMetrics(lengths func(context.Context) (map[schema.Queue]int64, error)) *status.Metrics {
	return status.New(status.Sources{
		Name: "t1", Version: "1.2.3",
		Queries:      func() (int, int, int) { return 3, 2, 18 },
		Workers:      func() map[string]int { return map[string]int{"delete": 1, "replicate": 4} },
		Abandoned:    func() map[string]int { return map[string]int{"delete": 2} },
		Watchers:     func() int { return 1 },
		QueueLengths: lengths,
	})
}

func TestMetricsTellWhatHappened(t *testing.T) {
	t.Parallel()
	m := newMetrics(func(context.Context) (map[schema.Queue]int64, error) {
		return map[schema.Queue]int64{schema.QueueReplicate: 7}, nil
	})
	paths := m.Command("get_paths")
	paths.Answered("", 2*time.Millisecond)
	paths.Answered("unknown_key", time.Millisecond)
	paths.Answered("unknown_key", time.Millisecond)
	m.Opened()
	m.Opened()
	m.Closed()
	m.Refused()
	m.Dropped(status.DropSlowReader)
	want := `
# HELP mogile_tracker_abandoned_workers Workers of each job that hang, and were given up and replaced. Above 0: see the log, and restart the tracker when convenient.
# TYPE mogile_tracker_abandoned_workers gauge
mogile_tracker_abandoned_workers{job="delete"} 2
# HELP mogile_tracker_connections Open client connections. At the limit new ones are refused.
# TYPE mogile_tracker_connections gauge
mogile_tracker_connections 1
# HELP mogile_tracker_connections_dropped_total Client connections closed by the tracker, by reason: slow_reader, slow_sender, long_line, given_up.
# TYPE mogile_tracker_connections_dropped_total counter
mogile_tracker_connections_dropped_total{reason="given_up"} 0
mogile_tracker_connections_dropped_total{reason="long_line"} 0
mogile_tracker_connections_dropped_total{reason="slow_reader"} 1
mogile_tracker_connections_dropped_total{reason="slow_sender"} 0
# HELP mogile_tracker_connections_refused_total Client connections closed at once because the limit was reached. Raise the limit or find the client that leaks.
# TYPE mogile_tracker_connections_refused_total counter
mogile_tracker_connections_refused_total 1
# HELP mogile_tracker_info Always 1; the labels name the tracker and its version.
# TYPE mogile_tracker_info gauge
mogile_tracker_info{name="t1",version="1.2.3"} 1
# HELP mogile_tracker_pending_queries Requests waiting for a query worker. Raise the number of query workers if it stays above 0.
# TYPE mogile_tracker_pending_queries gauge
mogile_tracker_pending_queries 3
# HELP mogile_tracker_queries_total Requests answered, by command and code (ok, or the error code). Look at the log when code failure or db rises.
# TYPE mogile_tracker_queries_total counter
mogile_tracker_queries_total{code="ok",command="get_paths"} 1
mogile_tracker_queries_total{code="unknown_key",command="get_paths"} 2
# HELP mogile_tracker_query_workers Query workers, by state: busy, idle.
# TYPE mogile_tracker_query_workers gauge
mogile_tracker_query_workers{state="busy"} 2
mogile_tracker_query_workers{state="idle"} 18
# HELP mogile_tracker_queue_rows Rows in the database's queues, of all trackers together. A queue that only grows has too few workers, or storage daemons that do not answer.
# TYPE mogile_tracker_queue_rows gauge
mogile_tracker_queue_rows{queue="replicate"} 7
# HELP mogile_tracker_watchers Connections that follow the log with !watch.
# TYPE mogile_tracker_watchers gauge
mogile_tracker_watchers 1
# HELP mogile_tracker_workers Workers of each job.
# TYPE mogile_tracker_workers gauge
mogile_tracker_workers{job="delete"} 1
mogile_tracker_workers{job="replicate"} 4
`
	err := testutil.GatherAndCompare(m.Registry(), strings.NewReader(want),
		"mogile_tracker_abandoned_workers", "mogile_tracker_connections", "mogile_tracker_connections_dropped_total", "mogile_tracker_connections_refused_total",
		"mogile_tracker_info", "mogile_tracker_pending_queries", "mogile_tracker_queries_total",
		"mogile_tracker_query_workers", "mogile_tracker_queue_rows", "mogile_tracker_watchers", "mogile_tracker_workers")
	if err != nil {
		t.Error(err)
	}
}

func TestMetricsAreReadWhileTheDatabaseIsAway(t *testing.T) {
	t.Parallel()
	m := newMetrics(func(context.Context) (map[schema.Queue]int64, error) { return nil, errors.New("away") })
	families, err := m.Registry().Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == "mogile_tracker_queue_rows" {
			t.Errorf("queue lengths are reported although nobody could count them: %v", f)
		}
	}
	if len(families) == 0 {
		t.Error("no metrics at all")
	}
}

func TestNamesAreWellFormed(t *testing.T) {
	t.Parallel()
	m := newMetrics(func(context.Context) (map[schema.Queue]int64, error) { return nil, nil })
	m.Command("noop").Answered("", time.Second)
	problems, err := testutil.GatherAndLint(m.Registry(), "mogile_tracker_queries_total", "mogile_tracker_query_seconds",
		"mogile_tracker_connections", "mogile_tracker_connections_total")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
}
