package drain

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/schema"
)

// SettingDevices lists the numbers of the devices that are being emptied,
// ascending, with commas. It is a setting of Mogile; clients change it by
// commands alone.
const SettingDevices = "drain_devices"

// SettingRequests counts how often a drain was asked for. When it changes, files
// that could not be moved are tried again at once.
const SettingRequests = "drain_requests"

// Listed are the devices that the settings list, ascending. What is no number of
// a device is passed over.
func Listed(settings map[string]string) []protocol.DevID {
	var devs []protocol.DevID
	for f := range strings.SplitSeq(settings[SettingDevices], ",") {
		if n, err := strconv.ParseUint(strings.TrimSpace(f), 10, 32); err == nil && n > 0 && n <= protocol.MaxDevID {
			devs = append(devs, protocol.DevID(n))
		}
	}
	slices.Sort(devs)
	return slices.Compact(devs)
}

// ListStore is what changing the list asks of a [schema.Store].
type ListStore interface {
	Setting(ctx context.Context, field string) (string, bool, error)
	ChangeSettings(ctx context.Context, change schema.SettingsChange) error
}

// listTries is how often a change of the list is tried that others change, too.
const listTries = 20

// Add enters a device in the list. One that is there already is no error.
func Add(ctx context.Context, store ListStore, dev protocol.DevID) error {
	return edit(ctx, store, func(devs []protocol.DevID) []protocol.DevID {
		if slices.Contains(devs, dev) {
			return devs
		}
		devs = append(devs, dev)
		slices.Sort(devs)
		return devs
	})
}

// Remove takes devices out of the list. Those that are not there are no error.
func Remove(ctx context.Context, store ListStore, gone ...protocol.DevID) error {
	return edit(ctx, store, func(devs []protocol.DevID) []protocol.DevID {
		return slices.DeleteFunc(devs, func(d protocol.DevID) bool { return slices.Contains(gone, d) })
	})
}

func edit(ctx context.Context, store ListStore, change func([]protocol.DevID) []protocol.DevID) error {
	for try := 1; ; try++ {
		was, there, err := store.Setting(ctx, SettingDevices)
		if err != nil {
			return fmt.Errorf("read %s: %w", SettingDevices, err)
		}
		c := schema.SettingsChange{Expect: map[string]*string{SettingDevices: nil}, Set: map[string]*string{SettingDevices: nil}}
		if there {
			c.Expect[SettingDevices] = &was
		}
		var words []string
		for _, dev := range change(Listed(map[string]string{SettingDevices: was})) {
			words = append(words, dev.String())
		}
		text := strings.Join(words, ",")
		if text == was {
			return nil
		}
		if text != "" {
			c.Set[SettingDevices] = &text
		}
		err = store.ChangeSettings(ctx, c)
		if err == nil {
			return nil
		}
		if !errors.Is(err, schema.ErrStale) || try == listTries {
			return fmt.Errorf("change %s: %w", SettingDevices, err)
		}
	}
}
