package tracker

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/schema"
	"github.com/mogile/mogile/tracker/fsck"
)

// changeSweep makes a change of a sweep's state, and tells everybody of it.
func (t *Tracker) changeSweep(ctx context.Context, decide func(fsck.Facts) (schema.SettingsChange, error)) error {
	if _, err := fsck.Change(ctx, t.store, decide); err != nil {
		return err
	}
	t.namespaceChanged(ctx)
	t.fsck.Pool().Wake()
	return nil
}

// orDB is err as MogileFS 2.73 tells it for some commands: what is no refusal is
// an error of the database.
func (t *Tracker) orDB(ctx context.Context, q *query, command string, err error) error {
	if _, refused := errors.AsType[*protocol.Error](err); err == nil || refused {
		return err
	}
	t.failed(ctx, q.worker, command, err)
	return protocol.Err("db")
}

// fsckStart starts fsck, or lets it go on.
func (t *Tracker) fsckStart(ctx context.Context, q *query) error {
	err := t.changeSweep(ctx, func(f fsck.Facts) (schema.SettingsChange, error) { return f.StartFsck(t.opts.Name) })
	return t.orDB(ctx, q, "fsck_start", err)
}

// fsckStop stops fsck where it is.
func (t *Tracker) fsckStop(ctx context.Context, _ *query) error {
	return t.stopSweep(ctx, schema.SweepFsck)
}

func (t *Tracker) stopSweep(ctx context.Context, s schema.Sweep) error {
	err := t.changeSweep(ctx, func(f fsck.Facts) (schema.SettingsChange, error) { return f.Stop(s), nil })
	if err != nil {
		return fmt.Errorf("stop %s: %w", s, err)
	}
	return nil
}

// fsckReset sets where the next fsck begins.
func (t *Tracker) fsckReset(ctx context.Context, q *query) error {
	position := protocol.FID(max(0, q.Number("startpos")))
	err := t.changeSweep(ctx, func(f fsck.Facts) (schema.SettingsChange, error) {
		return f.ResetFsck(q.True("policy_only"), position), nil
	})
	return t.orDB(ctx, q, "fsck_reset", err)
}

// fsckClearLog deletes the log; what is in it is counted before.
func (t *Tracker) fsckClearLog(ctx context.Context, _ *query) error {
	if err := t.store.FoldFsckLog(ctx); err != nil {
		return fmt.Errorf("count the events of fsck: %w", err)
	}
	if err := t.store.ClearFsckLog(ctx); err != nil {
		return fmt.Errorf("clear the log of fsck: %w", err)
	}
	return nil
}

// fsckLogPage is the most rows of the log in one answer.
const fsckLogPage = 100

// fsckGetLog lists what was found.
func (t *Tracker) fsckGetLog(ctx context.Context, q *query) error {
	events, err := t.store.FsckEvents(ctx, q.Number("after_logid"), fsckLogPage)
	if err != nil {
		return fmt.Errorf("read the log of fsck: %w", err)
	}
	q.reply.AddInt("row_count", int64(len(events)))
	for i, e := range events {
		row := "row_" + strconv.Itoa(i+1) + "_"
		q.reply.AddInt(row+"logid", e.LogID)
		q.reply.AddInt(row+"utime", e.Time)
		if e.FID != 0 {
			q.reply.Add(row+"fid", e.FID.String())
		}
		q.reply.Add(row+"evcode", e.Code)
		if e.DevID != nil {
			q.reply.Add(row+"devid", e.DevID.String())
		}
	}
	return nil
}

// fsckStatus tells how far fsck is. mogadm prints fields that it does not know,
// so there is nothing here but what MogileFS 2.73 tells.
func (t *Tracker) fsckStatus(ctx context.Context, q *query) error {
	st, now, err := t.sweepState(ctx, schema.SweepFsck)
	if err != nil {
		return err
	}
	last, err := t.store.LastFsckEvent(ctx)
	if err != nil {
		return fmt.Errorf("read the log of fsck: %w", err)
	}
	q.reply.Add("running", oneOrZero(st.Running()))
	q.reply.Add("host", st.Host)
	q.reply.Add("max_fid_checked", st.Position.String())
	q.reply.Add("policy_only", oneOrZero(st.PolicyOnly))
	q.reply.Add("end_fid", st.End.String())
	q.reply.AddInt("start_time", st.StartTime)
	q.reply.AddInt("stop_time", st.StopTime)
	q.reply.AddInt("current_time", now.Unix())
	q.reply.AddInt("max_logid", last)
	addEvents(q, st)
	return nil
}

func oneOrZero(b bool) string {
	if b {
		return "1"
	}
	return "0"
}

func addEvents(q *query, st fsck.State) {
	for _, code := range st.Codes() {
		q.reply.AddInt("num_"+code, st.Events[code])
	}
}

// sweepState reads a sweep's state with all that the log has been told so far,
// and the database's clock.
func (t *Tracker) sweepState(ctx context.Context, s schema.Sweep) (fsck.State, time.Time, error) {
	if err := t.store.FoldFsckLog(ctx); err != nil {
		return fsck.State{}, time.Time{}, fmt.Errorf("count the events of fsck: %w", err)
	}
	rows, err := t.store.Topology(ctx)
	if err != nil {
		return fsck.State{}, time.Time{}, fmt.Errorf("read the state of %s: %w", s, err)
	}
	return fsck.StateOf(s, rows.Settings), rows.Now, nil
}

// fsckProgress tells more of a sweep than fsck_status may.
func (t *Tracker) fsckProgress(ctx context.Context, q *query) error {
	s := schema.SweepFsck
	switch name := q.Get("sweep"); name {
	case "", string(schema.SweepFsck):
	case string(schema.SweepScrub):
		s = schema.SweepScrub
	default:
		return &protocol.Error{Code: "bad_params", Text: "sweep must be fsck or scrub"}
	}
	st, now, err := t.sweepState(ctx, s)
	if err != nil {
		return err
	}
	ranges, files, err := t.store.Ranges(ctx, s)
	if err != nil {
		return fmt.Errorf("count the ranges of %s: %w", s, err)
	}
	lengths, err := t.lengths.count(ctx)
	if err != nil {
		return fmt.Errorf("count the files that wait to be checked again: %w", err)
	}
	q.reply.Add("sweep", string(s))
	q.reply.Add("running", oneOrZero(st.Running()))
	q.reply.Add("host", st.Host)
	q.reply.Add("policy_only", oneOrZero(st.PolicyOnly))
	q.reply.Add("paced", oneOrZero(st.Paced))
	q.reply.Add("position", st.Position.String())
	q.reply.Add("start_fid", st.First.String())
	q.reply.Add("end_fid", st.End.String())
	q.reply.AddInt("files", st.Files)
	q.reply.AddInt("bytes", st.Bytes)
	q.reply.AddInt("start_files", st.StartFiles)
	q.reply.AddInt("start_bytes", st.StartBytes)
	q.reply.AddInt("claimed_ranges", ranges)
	q.reply.AddInt("claimed_files", files)
	q.reply.AddInt("queued_files", lengths[schema.QueueFsck])
	q.reply.AddInt("start_time", st.StartTime)
	q.reply.AddInt("stop_time", st.StopTime)
	q.reply.AddInt("current_time", now.Unix())
	if st.Paced {
		q.reply.AddInt("period", int64(fsck.ScrubPeriod(t.cluster.Snapshot().Settings)/time.Second))
	}
	addEvents(q, st)
	return nil
}

// scrubStart starts a scrub, or lets it go on.
func (t *Tracker) scrubStart(ctx context.Context, q *query) error {
	err := t.changeSweep(ctx, func(f fsck.Facts) (schema.SettingsChange, error) {
		return f.StartScrub(fsck.ScrubStart{Name: t.opts.Name, Again: q.True("again"), Paced: q.True("paced")})
	})
	if _, refused := errors.AsType[*protocol.Error](err); err != nil && !refused {
		return fmt.Errorf("start scrub: %w", err)
	}
	return err
}

// scrubStop stops a scrub where it is.
func (t *Tracker) scrubStop(ctx context.Context, _ *query) error {
	return t.stopSweep(ctx, schema.SweepScrub)
}
