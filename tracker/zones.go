package tracker

import (
	"context"
	"fmt"
	"net/netip"
	"strings"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/schema"
)

// CheckLocalNetwork reports an error where the settings of the cluster have no
// zone that a tracker's local network is in. A tracker must not be started so:
// it would prefer nothing (MogileFS-Network 0.06 does not start either). Zones
// that come and go later are followed.
func CheckLocalNetwork(ctx context.Context, store schema.Settings, local netip.Addr) error {
	if !local.IsValid() {
		return nil
	}
	settings, err := store.Settings(ctx)
	if err != nil {
		return fmt.Errorf("look up the zone of the local network: %w", err)
	}
	zones, _ := protocol.ParseZones(settings)
	if zones.Of(local) != "" {
		return nil
	}
	there := "there is none"
	if names := zones.Names(); len(names) > 0 {
		there = "there are " + strings.Join(names, ", ")
	}
	return fmt.Errorf("the local network %s is in no zone (%s): see the settings %s and %s…", local, there, protocol.SettingZones, protocol.SettingZonePrefix)
}
