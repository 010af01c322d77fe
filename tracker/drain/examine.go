package drain

import (
	"context"
	"fmt"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/schema"
	"github.com/mogile/mogile/tracker/cluster"
)

const (
	examined    = 2000 // files that are looked at
	maxExamples = 5
)

// Findings are what is the matter with files that are still on a device.
type Findings struct {
	Looked   int64            // files that were looked at: the first on the device
	Reasons  map[Reason]int64 // of those
	Examples []Example        // of files that cannot be moved; at most 5
}

// Blocked is how many of the files cannot be moved now.
func (f Findings) Blocked() int64 { return f.Looked - f.Reasons[Waiting] }

// Example is a file that cannot be moved.
type Example struct {
	schema.File
	Reason Reason
	Text   string
}

// Examine says why files are still on a device, by looking at the first 2,000 of
// them. With sizes, where all of them could be moved by what is known, it looks
// for copies of the first five that are missing or of another length. Shards are
// fsck's to look at: which are bad cannot be told by asking for the file.
func (d *Drainer) Examine(ctx context.Context, snap *cluster.Snapshot, on *cluster.Device, sizes bool) (Findings, error) {
	found := Findings{Reasons: make(map[Reason]int64)}
	j := newJudge(snap, d.o.MinFreeMB)
	var waiting []schema.LocatedFile
	after := protocol.FID(0)
	for found.Looked < examined {
		files, err := d.o.Store.FilesOn(ctx, on.ID, after, false, page)
		if err != nil {
			return found, fmt.Errorf("read the files on dev%d: %w", on.ID, err)
		}
		fids := fidsOf(files)
		if j.encodings, err = d.o.Store.EncodingsOf(ctx, fids); err != nil {
			return found, fmt.Errorf("read the encodings of files on dev%d: %w", on.ID, err)
		}
		pending, err := d.o.Store.PendingDeletions(ctx, fids)
		if err != nil {
			return found, fmt.Errorf("read the deletions of files on dev%d: %w", on.ID, err)
		}
		for _, f := range files {
			why, text := j.why(f, on, pending[f.FID], nil)
			found.note(f.File, why, text)
			if _, coded := j.encodings[f.FID]; why == Waiting && !coded && len(waiting) < maxExamples {
				waiting = append(waiting, f)
			}
		}
		if len(files) < page {
			break
		}
		after = files[len(files)-1].FID
	}
	if !sizes || found.Blocked() > 0 {
		return found, nil
	}
	for _, f := range waiting {
		broken, err := d.broken(ctx, snap, f)
		if err != nil {
			return found, err
		}
		if why, text := j.why(f, on, nil, broken); why != Waiting {
			found.Looked--
			found.Reasons[Waiting]--
			found.note(f.File, why, text)
		}
	}
	return found, nil
}

func (f *Findings) note(file schema.File, why Reason, text string) {
	f.Looked++
	f.Reasons[why]++
	if why != Waiting && len(f.Examples) < maxExamples {
		f.Examples = append(f.Examples, Example{file, why, text})
	}
}

// broken are the copies of a file that should be readable and are not there in
// full length. An error is the end of ctx.
func (d *Drainer) broken(ctx context.Context, snap *cluster.Snapshot, f schema.LocatedFile) ([]protocol.DevID, error) {
	var broken []protocol.DevID
	for _, other := range counting(snap, f) {
		if !other.Readable() {
			continue
		}
		size, err := d.o.Storage.Size(ctx, other.ReadURL(f.FID, cluster.Viewer{}))
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if err != nil || size != f.Length {
			broken = append(broken, other.ID)
		}
	}
	return broken, nil
}
