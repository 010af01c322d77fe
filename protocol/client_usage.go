package protocol

import (
	"context"
	"fmt"
	"strconv"
)

// ClassUsage is what the files of a class occupy.
type ClassUsage struct {
	Domain string `json:"domain"`
	Class  string `json:"class"`
	Files  int64  `json:"files"`
	Bytes  int64  `json:"bytes"`        // as clients stored them
	Stored int64  `json:"stored_bytes"` // on devices, all copies and shards together
}

// Overhead is what is stored beyond the files themselves, as a part of them: 2
// for three copies, 0.5 for shards of 6+3; 0 where there are no bytes.
func (u ClassUsage) Overhead() float64 {
	if u.Bytes == 0 {
		return 0
	}
	return float64(u.Stored-u.Bytes) / float64(u.Bytes)
}

// ClassUsage sums up the files of each class that has any, by domain and class.
// Trackers answer from memory as long as counting again would take much of the
// database's time. Trackers of MogileFS's answer with ErrUnknownCommand.
func (c *Client) ClassUsage(ctx context.Context) ([]ClassUsage, error) {
	reply, err := c.Do(ctx, "class_usage", nil)
	if err != nil {
		return nil, fmt.Errorf("usage of classes: %w", err)
	}
	n := reply.Number("classes")
	if _, ok := reply.Lookup("classes"); !ok || n < 0 || n > int64(len(reply)) {
		return nil, fmt.Errorf("usage of classes: reply has classes=%q and %d fields: %w", reply.Get("classes"), len(reply), ErrBadReply)
	}
	fields := make(map[string]string, len(reply)) // Get looks from the beginning each time
	for _, f := range reply {
		fields[f.Name] = f.Value
	}
	usage := make([]ClassUsage, n)
	for i := range usage {
		row := "class" + strconv.Itoa(i+1) + "_"
		usage[i] = ClassUsage{
			Domain: fields[row+"domain"], Class: fields[row+"class"],
			Files: Number(fields[row+"files"]), Bytes: Number(fields[row+"bytes"]), Stored: Number(fields[row+"stored"]),
		}
		if usage[i].Domain == "" || usage[i].Class == "" {
			return nil, fmt.Errorf("usage of classes: row %d has no domain or class: %w", i+1, ErrBadReply)
		}
	}
	return usage, nil
}
