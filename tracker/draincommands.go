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
	"github.com/mogile/mogile/tracker/drain"
)

// deviceNumber finds the device that devid names, by the database.
func (t *Tracker) deviceNumber(ctx context.Context, q *query) (*cluster.Device, error) {
	id := q.Number("devid")
	at, err := t.fresh(ctx)
	if err != nil {
		return nil, err
	}
	if id < 1 || id > protocol.MaxDevID || at.Device(protocol.DevID(id)) == nil {
		return nil, protocol.ErrNoDevice
	}
	return at.Device(protocol.DevID(id)), nil
}

// drainDevice has a device emptied. It may be asked for again.
func (t *Tracker) drainDevice(ctx context.Context, q *query) error {
	d, err := t.deviceNumber(ctx, q)
	if err != nil {
		return err
	}
	switch {
	case d.Dead():
		return &protocol.Error{Code: "device_dead", Text: fmt.Sprintf("dev%d is dead: nothing is read from it, its files are copied from elsewhere", d.ID)}
	case d.Status == schema.DeviceAlive, d.Status == schema.DeviceReadonly, d.Draining():
	default:
		host := "HOST"
		if d.Host != nil {
			host = d.Host.Name
		}
		return &protocol.Error{Code: "device_down", Text: fmt.Sprintf("dev%[1]d is down, and nothing is moved off it: 'mogtool device mark %[2]s %[1]d alive' first, or dead if it is lost", d.ID, host)}
	}
	// The status comes first: what is listed and not in drain is struck off.
	if !d.Draining() {
		if err := t.store.SetDeviceState(ctx, d.ID, schema.DeviceDrain); err != nil {
			return err
		}
	}
	if err := drain.Add(ctx, t.store, d.ID); err != nil {
		return err
	}
	if err := t.store.IncrementSetting(ctx, drain.SettingRequests); err != nil {
		return err
	}
	t.storageChanged(ctx)
	return nil
}

// drainCancel leaves a device with the files that are still on it, and has it
// take files again. A device that is not in drain keeps its status.
func (t *Tracker) drainCancel(ctx context.Context, q *query) error {
	d, err := t.deviceNumber(ctx, q)
	if err != nil {
		return err
	}
	if err := drain.Remove(ctx, t.store, d.ID); err != nil {
		return err
	}
	if d.Draining() {
		if err := t.store.SetDeviceState(ctx, d.ID, schema.DeviceAlive); err != nil {
			return err
		}
	}
	t.storageChanged(ctx)
	return nil
}

// undrain takes a device that was given a status by which it is not emptied out of
// the list of those that are. Where that fails, whoever empties devices does it
// later.
func (t *Tracker) undrain(ctx context.Context, dev protocol.DevID, status string) {
	if drain.Emptied(status) || !slices.Contains(drain.Listed(t.cluster.Snapshot().Settings), dev) {
		return
	}
	if err := drain.Remove(ctx, t.store, dev); err != nil {
		t.failures.Warn().Err(err).Uint32("devid", uint32(dev)).Msg("a device is still in the list of those that are emptied")
	}
}

// drainStatus tells how far devices are emptied: those that devids names, or else
// all that are in drain, and dead ones that have files yet.
func (t *Tracker) drainStatus(ctx context.Context, q *query) error {
	at, err := t.fresh(ctx)
	if err != nil {
		return err
	}
	listed := drain.Listed(at.Settings)
	var devs []protocol.DevID
	if text := q.Get("devids"); text != "" {
		for f := range strings.SplitSeq(text, ",") {
			n, err := strconv.ParseUint(f, 10, 16)
			if err != nil || at.Device(protocol.DevID(n)) == nil {
				return protocol.ErrNoDevice
			}
			devs = append(devs, protocol.DevID(n))
		}
	} else {
		for _, d := range at.DeviceList {
			if d.Dead() || d.Draining() || slices.Contains(listed, d.ID) {
				devs = append(devs, d.ID)
			}
		}
	}
	files, err := t.store.CountOn(ctx, devs)
	if err != nil {
		return err
	}
	uploads, err := t.store.UploadsOn(ctx, devs)
	if err != nil {
		return err
	}
	if !q.True("devids") {
		devs = slices.DeleteFunc(devs, func(dev protocol.DevID) bool { return at.Device(dev).Dead() && files[dev] == 0 })
	}
	lengths, err := t.lengths.count(ctx)
	if err != nil {
		return fmt.Errorf("count the moves that are queued: %w", err)
	}
	q.reply.AddInt("queued_moves", lengths[schema.QueueRebalance])
	q.reply.AddInt("devices", int64(len(devs)))
	for i, dev := range devs {
		d := at.Device(dev)
		row := "dev" + strconv.Itoa(i+1) + "_"
		q.reply.Add(row+"devid", dev.String())
		if d.Host != nil {
			q.reply.Add(row+"host", d.Host.Name)
		}
		q.reply.Add(row+"status", d.Status)
		q.reply.Add(row+"draining", oneOrZero(slices.Contains(listed, dev)))
		q.reply.AddInt(row+"files", files[dev])
		q.reply.AddInt(row+"uploads", uploads[dev])
		if !q.True("examine") || d.Dead() || files[dev] == 0 {
			continue
		}
		found, err := t.drain.Examine(ctx, at, d, q.True("sizes"))
		if err != nil {
			return err
		}
		q.reply.AddInt(row+"looked", found.Looked)
		q.reply.AddInt(row+"blocked", found.Blocked())
		q.reply.AddInt(row+"examples", int64(len(found.Examples)))
		for n, e := range found.Examples {
			example := row + "example" + strconv.Itoa(n+1) + "_"
			q.reply.Add(example+"fid", e.FID.String())
			if dom := at.ByDMID[e.DMID]; dom != nil {
				q.reply.Add(example+"domain", dom.Name)
			}
			q.reply.Add(example+"key", e.Key)
			q.reply.Add(example+"reason", string(e.Reason))
			q.reply.Add(example+"text", e.Text)
		}
	}
	return nil
}
