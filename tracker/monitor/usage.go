package monitor

import (
	"bytes"
	"context"
	"errors"
	"math"
	"strconv"
	"time"

	"github.com/mogile/mogile/schema"
	"github.com/mogile/mogile/tracker/cluster"
)

// usageLimit bounds a usage file, in bytes; they have about 200.
const usageLimit = 64 << 10

var errUsage = errors.New("usage file without used or total")

// parseUsage reads a usage file: lines "name: value", of which used and total,
// in KiB, must be there and not zero. The result is in MiB.
func parseUsage(file []byte) (totalMB, usedMB int64, err error) {
	var total, used int64
	for line := range bytes.Lines(file) {
		name, value, ok := bytes.Cut(line, []byte(":"))
		if !ok {
			continue
		}
		into := (*int64)(nil)
		switch string(bytes.TrimSpace(name)) {
		case "total":
			into = &total
		case "used":
			into = &used
		default:
			continue
		}
		n, err := strconv.ParseInt(string(bytes.TrimSpace(value)), 10, 64)
		if err != nil || n < 0 {
			return 0, 0, errUsage
		}
		*into = n
	}
	if total == 0 || used == 0 {
		return 0, 0, errUsage
	}
	// The columns are 32 bits wide.
	return min(total/1024, math.MaxInt32), min(used/1024, math.MaxInt32), nil
}

// usageValue is what a usage file says of name, as it stands there; empty where
// it says nothing.
func usageValue(file []byte, name string) string {
	for line := range bytes.Lines(file) {
		if n, value, ok := bytes.Cut(line, []byte(":")); ok && string(bytes.TrimSpace(n)) == name {
			return string(bytes.TrimSpace(value))
		}
	}
	return ""
}

// usageDue reports whether a device's usage should be written to the database:
// the row says that it is older than interval, by the database's clock, and
// this tracker has not just done so (which the snapshot may not show yet).
func usageDue(d *cluster.Device, snapshot, now, measured time.Time, interval time.Duration) bool {
	return snapshot.Sub(time.Unix(d.AsOf, 0)) > interval && now.Sub(measured) >= interval
}

// usageLease is held by the tracker that writes what devices use.
const usageLease = "mgfs:device_update"

// writeUsage writes what is due of a round's findings to the database, unless
// another tracker does. It is left out while the database is away.
func (m *Monitor) writeUsage(ctx context.Context, snapshot time.Time, found []*visit) {
	now := m.o.Now()
	var due []schema.Usage
	var measured []*memory
	for _, v := range found {
		if v.usage.DevID != 0 && usageDue(v.dev, snapshot, now, v.memory.measured, m.o.UsageInterval) {
			due, measured = append(due, v.usage), append(measured, v.memory)
		}
	}
	if len(due) == 0 || m.outage.Load() {
		return
	}
	within, cancel := context.WithTimeout(ctx, databaseTimeout)
	defer cancel()
	held, err := m.o.Store.HoldLease(within, usageLease, m.o.Name, m.o.UsageInterval)
	if err == nil && held {
		if err = m.o.Store.SetDeviceUsage(within, due); err == nil {
			for _, k := range measured {
				k.measured = now
			}
			err = m.o.Cluster.Refresh(within) // placement goes by it
		}
	}
	m.heard(ctx, err)
}
