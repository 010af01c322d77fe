package tracker

import (
	"context"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/tracker/cluster"
	deleter "github.com/mogile/mogile/tracker/delete"
	"github.com/mogile/mogile/tracker/monitor"
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
		MgmtPort: o.StorageMgmtPort, SkipMkcol: t.skipMkcol, Now: t.now, Log: t.log,
	})
	t.monitor = monitor.New(monitor.Options{
		Cluster: t.cluster, Store: t.store, Storage: t.storage, Name: o.Name,
		PoolSize: o.ConnPoolSize, ConnTimeout: o.ConnTimeout,
		RefreshInterval: o.RefreshInterval, RoundInterval: o.MonitorInterval, TestWriteInterval: o.TestWriteInterval,
		Now: t.now, Registerer: t.metrics.Registry(), Log: t.log,
	})
	fids := work.NewFIDLocks(t.store)
	outage := work.NewOutage(t.log)
	t.replicate = replicate.New(replicate.Options{
		Store: t.store, Cluster: t.cluster, Storage: t.storage, Fids: fids,
		Jobs: o.ReplicateJobs, MinFreeMB: o.MinFreeMB, UseGetPort: o.ReplUseGetPort,
		Outage: outage, Numbers: numbers, Notify: t.watchers.tell, Metrics: t.metrics.Registry(), Log: t.log,
	})
	t.deleter = deleter.New(deleter.Options{
		Store: t.store, Cluster: t.cluster, Storage: t.storage, Fids: fids,
		Jobs: o.DeleteJobs, TempfileAge: o.TempfileAge,
		Outage: outage, Numbers: numbers, Notify: t.watchers.tell, Metrics: t.metrics.Registry(), Log: t.log,
	})
	replicates, deletes := newGated(t.replicate.Pool()), newGated(t.deleter.Pool())
	pool := func(name string, run func(context.Context, int) error) *work.Pool {
		p := work.NewPool(name, 1, run, t.log)
		p.Numbers, p.Notify = numbers, t.watchers.tell
		return p
	}
	master := pool(jobMaster, master(replicates, deletes))
	t.watching = pool(jobMonitor, func(ctx context.Context, _ int) error { return t.monitor.Run(ctx) })
	t.workers = []func(context.Context) error{t.replicate.Run, t.deleter.Run, master.Run}
	t.jobs = map[string]job{
		jobQuery: t.queries, jobReplicate: replicates, jobDelete: deletes,
		jobMonitor: single{t.watching}, jobMaster: single{master},
		jobFsck: new(absent), jobReaper: new(absent),
	}
}

// skipMkcol reports whether storage daemons are known to make directories by
// themselves, all of them.
func (t *Tracker) skipMkcol() bool {
	s := t.cluster.Snapshot()
	return s != nil && protocol.Truthy(s.Settings["skip_mkcol"])
}
