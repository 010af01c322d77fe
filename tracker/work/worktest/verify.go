package worktest

import (
	"context"
	"hash/crc32"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/tracker/storage"
)

// Rot changes the content of a file that was put, and not what was noted of it.
func (d *Disks) Rot(dev protocol.DevID, fid protocol.FID, content string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.noted[dev] == nil {
		d.noted[dev] = make(map[protocol.FID]string)
	}
	d.noted[dev][fid] = d.content[dev][fid]
	d.content[dev][fid] = content
}

// Remove loses a file.
func (d *Disks) Remove(dev protocol.DevID, fid protocol.FID) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.content[dev], fid)
}

// Verify is [storage.Client.Verify], of storage daemons that note what they
// write.
func (d *Disks) Verify(ctx context.Context, url string, _ int64, t protocol.HashType, _ string) (storage.Verified, error) {
	dev, fid := parse(url)
	if d.OnVerify != nil {
		if err := d.OnVerify(ctx, dev, fid); err != nil {
			return storage.Verified{}, err
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	content, ok := d.content[dev][fid]
	if !ok {
		return storage.Verified{}, storage.ErrMissing
	}
	noted, rotten := d.noted[dev][fid]
	if !rotten {
		noted = content
	}
	stored := contentSum(noted)
	v := storage.Verified{Content: protocol.Content{Found: contentSum(content), Stored: &stored}}
	if h := t.New(); h != nil {
		_, _ = h.Write([]byte(content)) // a hash fails never
		v.Digest = protocol.Checksum{Type: t, Sum: h.Sum(nil)}
	}
	return v, nil
}

func contentSum(s string) protocol.ContentSum {
	return protocol.ContentSum{Length: int64(len(s)), CRC32C: crc32.Checksum([]byte(s), crc32.MakeTable(crc32.Castagnoli))}
}
