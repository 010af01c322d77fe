package worktest

import (
	"context"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/tracker/storage"
)

// CopyDirect is [storage.Client.CopyDirect]: it does as Copy where OnDirect lets
// it, which it does not where that is not set.
func (d *Disks) CopyDirect(ctx context.Context, c storage.Copy) (protocol.Checksum, error) {
	if d.OnDirect == nil {
		return protocol.Checksum{}, storage.ErrNotDirect
	}
	from, fid := parse(c.From)
	to, _ := parse(c.To)
	if err := d.OnDirect(ctx, from, to, fid); err != nil {
		return protocol.Checksum{}, err
	}
	return d.Copy(ctx, c)
}
