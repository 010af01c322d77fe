package tracker

import (
	"context"
	"time"

	"github.com/rs/zerolog"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/tracker/cluster"
	deleter "github.com/mogile/mogile/tracker/delete"
	"github.com/mogile/mogile/tracker/drain"
	"github.com/mogile/mogile/tracker/fsck"
	"github.com/mogile/mogile/tracker/monitor"
	"github.com/mogile/mogile/tracker/reap"
	"github.com/mogile/mogile/tracker/rebalance"
	"github.com/mogile/mogile/tracker/replicate"
	"github.com/mogile/mogile/tracker/storage"
	"github.com/mogile/mogile/tracker/work"
)

// build makes the parts that answer and work, and tells the console of them.
func (t *Tracker) build(numbers *work.Numbers) {
	o := t.opts
	t.cluster = cluster.New(t.store, cluster.Options{DefaultMinDevCount: o.DefaultMinDevCount, Log: t.log})
	t.storage = storage.New(storage.Options{
		PoolSize: o.ConnPoolSize, NodeTimeout: o.NodeTimeout, ConnTimeout: o.ConnTimeout,
		MgmtPort: o.StorageMgmtPort, Key: o.ClusterKey, CopyRate: o.ReplicationBandwidth,
		SkipMkcol: t.skipMkcol, Now: t.now, Log: t.log,
	})
	watched := monitorLog{t: t}
	t.monitor = monitor.New(monitor.Options{
		Cluster: t.cluster, Store: t.store, Storage: t.storage, Name: o.Name,
		PoolSize: o.ConnPoolSize, ConnTimeout: o.ConnTimeout,
		RefreshInterval: o.RefreshInterval, RoundInterval: o.MonitorInterval, TestWriteInterval: o.TestWriteInterval,
		Now: t.now, Registerer: t.metrics.Registry(), Log: t.log.Hook(watched), Notify: watched.tell,
	})
	t.queries.tell = t.watchers.tell
	fids := work.NewFIDLocks(t.store)
	outage := work.NewOutage(t.log)
	t.replicate = replicate.New(replicate.Options{
		Store: t.store, Cluster: t.cluster, Storage: t.storage, Fids: fids,
		Jobs: o.ReplicateJobs, PerDevice: o.CopiesPerDevice, MinFreeMB: o.MinFreeMB, UseGetPort: o.ReplUseGetPort, Local: o.LocalNetwork,
		Outage: outage, Numbers: numbers, Notify: t.watchers.tell, Metrics: t.metrics.Registry(), Log: t.log,
	})
	t.deleter = deleter.New(deleter.Options{
		Store: t.store, Cluster: t.cluster, Storage: t.storage, Fids: fids,
		Jobs: o.DeleteJobs, TempfileAge: o.TempfileAge,
		Outage: outage, Numbers: numbers, Notify: t.watchers.tell, Metrics: t.metrics.Registry(), Log: t.log,
	})
	pool := func(name string, desired int, run func(context.Context, int) error) *work.Pool {
		p := work.NewPool(name, desired, run, t.log)
		p.Numbers, p.Notify = numbers, t.watchers.tell
		return p
	}
	bandwidth := fsck.NewBandwidth()
	t.fsck = fsck.New(fsck.Options{
		Store: t.store, Cluster: t.cluster, Name: o.Name,
		Checker: fsck.NewChecker(fsck.CheckerOptions{
			Store: t.store, Cluster: t.cluster, Storage: t.storage, Fids: fids, MinFreeMB: o.MinFreeMB,
			Bandwidth: bandwidth, Notify: t.watchers.tell, Metrics: t.metrics.Registry(), Log: t.log,
		}),
		Jobs: o.FsckJobs, Bandwidth: bandwidth, Queues: t.lengths.count, Changed: t.namespaceChanged,
		Outage: outage, Numbers: numbers, Notify: t.watchers.tell, Metrics: t.metrics.Registry(), Log: t.log,
	})
	t.strays = fsck.NewStrays(fsck.StrayOptions{
		Store: t.store, Cluster: t.cluster, Storage: t.storage, Fids: fids, ClusterID: o.ClusterID,
		Metrics: t.metrics.Registry(), Log: t.log,
	})
	t.reaper = reap.New(reap.Options{
		Store: t.store, Cluster: t.cluster, Queues: t.lengths.count, Name: o.Name,
		Jobs: o.ReaperJobs, Delay: o.ReapDelay,
		Outage: outage, Numbers: numbers, Notify: t.watchers.tell, Metrics: t.metrics.Registry(), Log: t.log,
	})
	t.drain = drain.New(drain.Options{
		Store: t.store, Cluster: t.cluster, Storage: t.storage, Queues: t.lengths.count, Name: o.Name, MinFreeMB: o.MinFreeMB,
		Outage: outage, Numbers: numbers, Notify: t.watchers.tell, Metrics: t.metrics.Registry(), Log: t.log,
	})
	t.rebalance = rebalance.New(rebalance.Options{
		Store: t.store, Cluster: t.cluster, Queues: t.lengths.count, Name: o.Name, MinFreeMB: o.MinFreeMB, Changed: t.storageChanged,
		Outage: outage, Numbers: numbers, Notify: t.watchers.tell, Metrics: t.metrics.Registry(), Log: t.log,
	})
	gates := []*gated{newGated(t.replicate.Pool()), newGated(t.deleter.Pool()), newGated(t.fsck.Pool())}
	masters := 1
	if o.NoJobMaster {
		masters = 0
	}
	master := pool(jobMaster, masters, master(gates...))
	t.watching = pool(jobMonitor, 1, func(ctx context.Context, id int) error {
		t.watcher.Store(int64(id))
		return t.monitor.Run(ctx)
	})
	t.watching.Watchdog = monitorWatchdog + o.MonitorInterval
	t.workers = []func(context.Context) error{t.replicate.Run, t.deleter.Run, t.fsck.Run, t.reaper.Run, t.drain.Run, t.rebalance.Run, master.Run}
	t.jobs = map[string]job{
		jobQuery: t.queries, jobReplicate: gates[0], jobDelete: gates[1], jobFsck: gates[2],
		jobMonitor: single{t.watching}, jobMaster: single{master}, jobReaper: t.reaper.Pool(),
	}
}

// monitorWatchdog is how long the monitor may give no sign of life (MogileFS
// 2.73), beside the time between its rounds.
const monitorWatchdog = 30 * time.Second

// monitorLog makes the monitor speak as the worker that it is.
type monitorLog struct{ t *Tracker }

// Run implements [zerolog.Hook].
func (m monitorLog) Run(e *zerolog.Event, _ zerolog.Level, _ string) {
	e.Str(work.JobField, jobMonitor).Int64(work.WorkerField, m.t.watcher.Load())
}

func (m monitorLog) tell(text string) {
	m.t.watchers.worker(jobMonitor, int(m.t.watcher.Load()), text)
}

// skipMkcol reports whether storage daemons are known to make directories by
// themselves, all of them.
func (t *Tracker) skipMkcol() bool {
	s := t.cluster.Snapshot()
	return s != nil && protocol.Truthy(s.Settings["skip_mkcol"])
}
