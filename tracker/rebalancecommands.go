package tracker

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/schema"
	"github.com/mogile/mogile/tracker/cluster"
	"github.com/mogile/mogile/tracker/rebalance"
)

// changeRebalance makes a change of the state of rebalancing, and tells
// everybody of it.
func (t *Tracker) changeRebalance(ctx context.Context, decide func(rebalance.Facts) (schema.SettingsChange, error)) (schema.SettingsChange, error) {
	c, err := rebalance.Change(ctx, t.store, decide)
	if err != nil {
		return c, err
	}
	t.namespaceChanged(ctx)
	return c, nil
}

// rebalanceSetPolicy sets what is to be moved where.
func (t *Tracker) rebalanceSetPolicy(ctx context.Context, q *query) error {
	_, err := t.changeRebalance(ctx, func(f rebalance.Facts) (schema.SettingsChange, error) { return f.SetPolicy(q.Get("policy")) })
	return err
}

// rebalanceTest tells what devices the policy means.
func (t *Tracker) rebalanceTest(ctx context.Context, q *query) error {
	at, err := t.fresh(ctx)
	if err != nil {
		return err
	}
	p, err := rebalance.Facts{Settings: at.Settings}.Policy()
	if err != nil {
		return err
	}
	var from, to []protocol.DevID
	if p.Level > 0 {
		_, quotas, err := t.levelling(ctx, at, p.Level)
		if err != nil {
			return err
		}
		for _, d := range at.DeviceList {
			switch n := quotas[d.ID]; {
			case n < 0:
				from = append(from, d.ID)
			case n > 0:
				to = append(to, d.ID)
			}
		}
	} else {
		from = p.Sources(at.DeviceList)
		to = p.Destinations(at.DeviceList, from, t.opts.MinFreeMB)
	}
	q.reply.Add("sdevs", joined(from))
	q.reply.Add("ddevs", joined(to))
	return nil
}

func joined(devs []protocol.DevID) string {
	words := make([]string, len(devs))
	for i, dev := range devs {
		words[i] = dev.String()
	}
	return strings.Join(words, ",")
}

// levelling reads how full devices are, and plans what to move.
func (t *Tracker) levelling(ctx context.Context, at *cluster.Snapshot, spread float64) ([]rebalance.Fill, rebalance.Quotas, error) {
	fills := rebalance.Fills(at.DeviceList, nil, t.opts.MinFreeMB)
	devs := make([]protocol.DevID, len(fills))
	for i, f := range fills {
		devs[i] = f.Dev
	}
	bytes, err := t.store.BytesOn(ctx, devs)
	if err != nil {
		return nil, nil, fmt.Errorf("add up what is on devices: %w", err)
	}
	fills = rebalance.Fills(at.DeviceList, bytes, t.opts.MinFreeMB)
	return fills, rebalance.Level(fills, spread), nil
}

// rebalanceStart starts a run, or lets it go on.
func (t *Tracker) rebalanceStart(ctx context.Context, q *query) error {
	at, err := t.fresh(ctx)
	if err != nil {
		return err
	}
	c, err := t.changeRebalance(ctx, func(f rebalance.Facts) (schema.SettingsChange, error) {
		return f.Start(t.opts.Name, at, func(spread float64) (rebalance.Quotas, error) {
			_, quotas, err := t.levelling(ctx, at, spread)
			return quotas, err
		})
	})
	if err != nil {
		return err
	}
	q.reply.Add("state", *c.Set[rebalance.SettingState])
	return nil
}

// rebalanceStatus tells how far the last run is.
func (t *Tracker) rebalanceStatus(ctx context.Context, q *query) error {
	state, _, err := t.store.Setting(ctx, rebalance.SettingState)
	if err != nil {
		return fmt.Errorf("read the state of rebalance: %w", err)
	}
	if state == "" {
		return protocol.Err("no_rebal_state")
	}
	q.reply.Add("state", state)
	return nil
}

// rebalanceStop asks for the run to be stopped.
func (t *Tracker) rebalanceStop(ctx context.Context, _ *query) error {
	_, err := t.changeRebalance(ctx, rebalance.Facts.Stop)
	return err
}

// rebalanceReset forgets how far the last run was.
func (t *Tracker) rebalanceReset(ctx context.Context, _ *query) error {
	_, err := t.changeRebalance(ctx, rebalance.Facts.Reset)
	return err
}

// rebalanceProgress tells more than rebalance_status may. It may be asked when
// there is nothing.
func (t *Tracker) rebalanceProgress(ctx context.Context, q *query) error {
	rows, err := t.store.Topology(ctx)
	if err != nil {
		return fmt.Errorf("read the state of rebalance: %w", err)
	}
	lengths, err := t.store.QueueLengths(ctx)
	if err != nil {
		return fmt.Errorf("count the moves that are queued: %w", err)
	}
	set := rows.Settings
	q.reply.Add("running", oneOrZero(set[rebalance.SettingHost] != ""))
	q.reply.Add("host", set[rebalance.SettingHost])
	q.reply.Add("policy", set[rebalance.SettingPolicy])
	q.reply.Add("state", set[rebalance.SettingState])
	q.reply.AddInt("bytes_left", rebalance.ParseQuotas(set[rebalance.SettingQuotas]).Moved())
	q.reply.AddInt("queued_moves", lengths[schema.QueueRebalance])
	q.reply.AddInt("current_time", rows.Now.Unix())
	return nil
}

// rebalancePlan tells how full devices are, and what levelling them would move.
func (t *Tracker) rebalancePlan(ctx context.Context, q *query) error {
	spread, err := strconv.ParseFloat(q.Get("spread"), 64)
	if err != nil || !(spread > 0 && spread <= 100) {
		return &protocol.Error{Code: "bad_params", Text: "spread must be a number of percent points above 0 and up to 100"}
	}
	at, err := t.fresh(ctx)
	if err != nil {
		return err
	}
	fills, quotas, err := t.levelling(ctx, at, spread)
	if err != nil {
		return err
	}
	var givers []protocol.DevID
	for _, f := range fills {
		if quotas[f.Dev] < 0 {
			givers = append(givers, f.Dev)
		}
	}
	files, err := t.store.CountOn(ctx, givers)
	if err != nil {
		return fmt.Errorf("count the files of devices: %w", err)
	}
	var moved float64
	q.reply.AddInt("devices", int64(len(fills)))
	for i, f := range fills {
		row := "dev" + strconv.Itoa(i+1) + "_"
		q.reply.Add(row+"devid", f.Dev.String())
		if d := at.Device(f.Dev); d.Host != nil {
			q.reply.Add(row+"host", d.Host.Name)
		}
		q.reply.AddInt(row+"bytes", f.Bytes)
		q.reply.AddInt(row+"capacity", f.Capacity)
		q.reply.AddInt(row+"change", quotas[f.Dev])
		if slices.Contains(givers, f.Dev) && f.Bytes > 0 {
			moved += float64(files[f.Dev]) * float64(-quotas[f.Dev]) / float64(f.Bytes)
		}
	}
	q.reply.Add("spread", strconv.FormatFloat(rebalance.Spread(fills), 'f', 6, 64))
	q.reply.AddInt("bytes", quotas.Moved())
	q.reply.AddInt("files", int64(moved+0.5))
	return nil
}
