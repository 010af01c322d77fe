package protocol

import (
	"context"
	"fmt"
	"strconv"
	"time"
)

// StrayQuery asks for some of the strays on a device.
type StrayQuery struct {
	Dev    DevID
	After  string        // [StrayPage].Next of the page before
	Limit  int           // files on the device to look at; 0: as the tracker likes
	Age    time.Duration // younger files are left alone; in seconds
	Delete bool          // strays that may go are moved to the device's trash
}

// StrayPage is what a tracker found on a part of a device.
type StrayPage struct {
	Next       string // where to go on; empty where that was all
	Files      int64  // looked at
	Bytes      int64  // that they have
	Young      int64  // of them not known, and too young
	Pending    int64  // of them not known, and being uploaded, copied or deleted
	Foreign    int64  // names on the device that are no file's
	Unreadable int64  // files and folders that the disk cannot give
	Strays     []Stray
}

// Stray is a file on a device that the database does not know there.
type Stray struct {
	FID     FID
	Size    int64
	ModTime time.Time // in seconds
	Shard   bool      // it is a shard, FID.ec
	Kind    string    // gone, copy, rescue, doubtful or above
	Result  string    // trashed, missing, changed, failed or kept; empty where nothing was to be deleted
	Note    string    // where it is now, or why it is still here
}

// Strays looks at some of the files on a device.
func (c *Client) Strays(ctx context.Context, q StrayQuery) (StrayPage, error) {
	args := Args{{"devid", q.Dev.String()}, {"after", q.After}}
	if q.Limit > 0 {
		args.AddInt("limit", int64(q.Limit))
	}
	args.AddInt("age", int64(q.Age/time.Second))
	if q.Delete {
		args.Add("delete", "1")
	}
	reply, err := c.Do(ctx, "strays", args)
	if err != nil {
		return StrayPage{}, fmt.Errorf("strays on dev%d: %w", q.Dev, err)
	}
	p := StrayPage{
		Next: reply.Get("next"), Files: reply.Number("files"), Bytes: reply.Number("bytes"), Young: reply.Number("young"),
		Pending: reply.Number("pending"), Foreign: reply.Number("foreign"), Unreadable: reply.Number("unreadable"),
	}
	n := reply.Number("strays")
	if _, ok := reply.Lookup("strays"); !ok || n < 0 || n > int64(len(reply)) {
		return StrayPage{}, fmt.Errorf("strays on dev%d: reply has strays=%q and %d fields: %w", q.Dev, reply.Get("strays"), len(reply), ErrBadReply)
	}
	fields := make(map[string]string, len(reply)) // Get looks from the beginning each time
	for _, f := range reply {
		fields[f.Name] = f.Value
	}
	for i := range n {
		row := "stray" + strconv.FormatInt(i+1, 10) + "_"
		s := Stray{
			FID: FID(max(0, Number(fields[row+"fid"]))), Size: Number(fields[row+"size"]), ModTime: time.Unix(Number(fields[row+"mtime"]), 0),
			Shard: Truthy(fields[row+"shard"]), Kind: fields[row+"kind"], Result: fields[row+"result"], Note: fields[row+"note"],
		}
		if s.FID == 0 || s.Kind == "" {
			return StrayPage{}, fmt.Errorf("strays on dev%d: row %d has no fid or kind: %w", q.Dev, i+1, ErrBadReply)
		}
		p.Strays = append(p.Strays, s)
	}
	return p, nil
}
