package storaged

import (
	"context"
	"errors"
	"time"

	"github.com/rs/zerolog"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/storaged/volume"
)

// listBudget is how long one answer to "list" is worked on. It ends early then,
// and the tracker asks for more.
const listBudget = 5 * time.Second

// Refusals of orders about what is on a device, whose own fault it is.
var (
	errNoSuchDevice  = protocol.Err("no_device")      // it is not here
	errDeviceRefused = protocol.Err("device_refused") // it is, but is not served: it is another cluster's, or not mounted
	errDeviceSick    = protocol.Err("device_sick")    // its disk does not answer
)

// inventory tells trackers what is on the devices, and takes it out of service.
type inventory struct {
	docroot *volume.Docroot
	meter   *meter
	now     func() time.Time
	log     zerolog.Logger
}

// device is the volume that an order is about.
func (s *inventory) device(dev protocol.DevID) (*volume.Volume, error) {
	v, err := s.docroot.Volume(dev)
	return v, orderErr(err)
}

// orderErr is how an error of a volume is told to a tracker.
func orderErr(err error) error {
	for _, e := range []struct {
		is   error
		code *protocol.Error
	}{{volume.ErrNoDevice, errNoSuchDevice}, {volume.ErrRefused, errDeviceRefused}, {volume.ErrSick, errDeviceSick}} {
		if errors.Is(err, e.is) {
			return &protocol.Error{Code: e.code.Code, Text: err.Error()}
		}
	}
	return err
}

// list tells what lies on a device, a part at a time.
func (s *inventory) list(ctx context.Context, o protocol.Order, to *orderer) (protocol.Args, error) {
	l, err := protocol.ParseListOrder(o.Args)
	if err != nil {
		return nil, err
	}
	var from volume.Position
	if l.After != "" {
		if from, err = volume.ParsePosition(l.After); err != nil {
			return nil, &protocol.Error{Code: protocol.ErrBadOrder.Code, Text: err.Error()}
		}
	}
	v, err := s.device(l.Dev)
	if err != nil {
		return nil, err
	}
	now := s.now() // before the first file is looked at: none can be older than it seems
	page, err := v.Walk(ctx, from, l.Limit, listBudget)
	if err != nil {
		return nil, orderErr(err)
	}
	for _, f := range page.Files {
		if f.Shard && !l.Shards { // of a tracker that knows of none
			page.Foreign++
			continue
		}
		if err := to.item(protocol.Args{{Name: "file", Value: protocol.StoredFile(f).String()}}); err != nil {
			return nil, err
		}
	}
	id := v.Identity()
	end := protocol.Listing{
		Foreign: int64(page.Foreign), Unreadable: int64(page.Unreadable), Now: now, Cluster: id.Cluster, UUID: id.UUID,
	}
	if page.More {
		end.Next = page.Next.String()
	}
	return end.Args(), nil
}
