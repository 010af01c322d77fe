package worktest

import (
	"context"
	"slices"

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

// Trash is [storage.Client.Trash]. What it moves aside is in Trashed.
func (d *Disks) Trash(_ context.Context, _ string, o protocol.TrashOrder) (map[protocol.FID]protocol.TrashResult, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	results := make(map[protocol.FID]protocol.TrashResult)
	for _, f := range o.Files {
		r := protocol.TrashResult{FID: f.FID, What: protocol.TrashMissing}
		at := protocol.FIDOn{FID: f.FID, Dev: o.Dev}
		if sh, ok := d.shards[at]; ok && f.Shard {
			r.What = protocol.Trashed
			delete(d.shards, at)
			d.trashed = append(d.trashed, sh.content)
		} else if content, ok := d.content[o.Dev][f.FID]; ok && !f.Shard {
			r.What = protocol.Trashed
			delete(d.content[o.Dev], f.FID)
			d.trashed = append(d.trashed, content)
		}
		results[f.FID] = r
	}
	return results, nil
}

// Trashed is the content of the files that were moved to a trash.
func (d *Disks) Trashed() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.trashed)
}
