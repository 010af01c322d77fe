package replicate

import (
	"context"
	"errors"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/schema"
	"github.com/mogile/mogile/tracker/placement"
)

// sift finishes the jobs of files that are as their policy wants them, as are all
// new ones of a class with one copy, and returns the others, of which it notes
// whether they are small. It reads and
// finishes many together, and takes no locks: what it sees was so at one moment,
// and whoever changes a file's locations for the worse after that queues it
// anew, which ends the lease that is finished here.
func (w *Worker) sift(ctx context.Context, jobs []schema.Job) []schema.Job {
	fids := make([]protocol.FID, len(jobs))
	for i, job := range jobs {
		fids[i] = job.FID
	}
	files, err := w.o.Store.Inspect(ctx, fids)
	if err != nil { // a worker that meets it again knows what to do
		return jobs
	}
	located := make(map[protocol.FID]schema.Inspected, len(files))
	for _, f := range files {
		located[f.FID] = f
	}
	var done, rest []schema.Job
	for _, job := range jobs {
		f, found := located[job.FID]
		if found && f.Encoding == nil && w.content(job, f.LocatedFile) {
			done = append(done, job)
		} else {
			rest = append(rest, job)
			if found && f.Length <= w.o.SmallFile {
				w.small.add(job.FID)
			}
		}
	}
	if len(done) == 0 {
		return rest
	}
	if _, err := w.o.Store.Finish(ctx, done); errors.Is(err, schema.ErrUnavailable) {
		w.o.Outage.Failed(err)
		return jobs
	} else if err != nil {
		w.o.Log.Warn().Err(err).Int("fids", len(done)).Msg("replication queue not updated, the fids come back when their leases are over")
		return rest
	}
	for _, job := range done {
		w.metrics.outcomes.WithLabelValues(string(lostRace)).Inc()
		w.waiters.tell(job.FID, lostRace)
	}
	return rest
}

// content reports whether a file in copies can be read and its policy asks for
// nothing.
func (w *Worker) content(job schema.Job, f schema.LocatedFile) bool {
	r := round{w: w, job: job, file: f, rng: w.siftRand}
	if len(f.Devices) == 0 || r.look() != nil || !r.legible() {
		return false
	}
	plan := r.ask()
	return plan.Verdict == placement.Good || plan.Verdict == placement.TooGood && len(plan.Drop) == 0 && !plan.Blocked
}
