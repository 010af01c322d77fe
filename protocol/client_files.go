package protocol

import (
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strconv"
	"strings"
	"time"
)

// PathsOptions say how [Client.Paths] looks for a file.
type PathsOptions struct {
	// NoVerify spares the tracker from checking that the first path is there
	// with the right size.
	NoVerify bool
	// Count is the most paths wanted; less than 2 is 2.
	Count int
	// Stale permits an answer from the tracker's memory that is so old, in whole
	// seconds, at most an hour: see docs/path-cache.md.
	Stale time.Duration
}

// Paths are URLs of the file stored under key, best first. None is not an
// error: no device that holds the file can be read. The error matches
// [ErrUnknownKey] where there is no such file.
func (c *Client) Paths(ctx context.Context, domain, key string, o PathsOptions) ([]string, error) {
	args := Args{{"domain", domain}, {"key", key}}
	if o.NoVerify {
		args.Add("noverify", "1")
	}
	if o.Count > 2 {
		args.AddInt("pathcount", int64(o.Count))
	}
	if o.Stale >= time.Second {
		args.AddInt("stale", int64(o.Stale/time.Second))
	}
	reply, err := c.Do(ctx, "get_paths", c.zoned(args))
	if err != nil {
		return nil, fmt.Errorf("paths of key %q in domain %q: %w", key, domain, err)
	}
	n := reply.Number("paths")
	var paths []string
	for i := int64(1); i <= n; i++ {
		path, ok := reply.Lookup("path" + strconv.FormatInt(i, 10))
		if !ok {
			return nil, fmt.Errorf("paths of key %q: reply has %d of %d paths: %w", key, i-1, n, ErrBadReply)
		}
		paths = append(paths, path)
	}
	return paths, nil
}

// zoned adds the client's zone to the arguments of a command that deals in
// paths.
func (c *Client) zoned(args Args) Args {
	if c.o.Zone != "" {
		args.Add("zone", c.o.Zone)
	}
	return args
}

// Delete removes the file stored under key: at once from the namespace, soon
// from the devices. The error matches [ErrUnknownKey] where there is none,
// unless [ClientOptions].MissingOK is set.
func (c *Client) Delete(ctx context.Context, domain, key string) error {
	_, err := c.Do(ctx, "delete", Args{{"domain", domain}, {"key", key}})
	if err == nil || c.o.MissingOK && errors.Is(err, ErrUnknownKey) {
		return nil
	}
	return fmt.Errorf("delete key %q in domain %q: %w", key, domain, err)
}

// Rename gives the file stored under from the key to. The error matches
// [ErrKeyExists] where that is in use, and [ErrUnknownKey] where there is no
// such file, unless [ClientOptions].MissingOK is set.
func (c *Client) Rename(ctx context.Context, domain, from, to string) error {
	_, err := c.Do(ctx, "rename", Args{{"domain", domain}, {"from_key", from}, {"to_key", to}})
	if err == nil || c.o.MissingOK && errors.Is(err, ErrUnknownKey) {
		return nil
	}
	return fmt.Errorf("rename key %q to %q in domain %q: %w", from, to, domain, err)
}

// SetClass moves the file stored under key to another class of its domain
// (the command updateclass). Copies are made or removed later. The error
// matches [ErrClassNotFound], or [ErrInvalidKey] where there is no such file.
func (c *Client) SetClass(ctx context.Context, domain, key, class string) error {
	if _, err := c.Do(ctx, "updateclass", Args{{"domain", domain}, {"key", key}, {"class", class}}); err != nil {
		return fmt.Errorf("move key %q in domain %q to class %q: %w", key, domain, class, err)
	}
	return nil
}

// FileInfo is what a tracker knows about a file.
type FileInfo struct {
	FID      FID
	Domain   string
	Class    string
	Key      string
	Length   int64
	DevCount int      // copies believed to exist
	DevIDs   []DevID  // where they are
	Checksum Checksum // zero where the class has none, or the file not yet

	Encoding *FileEncoding // nil where the file is kept in copies
}

// FileEncoding is how a file is kept in shards, any K of which are the file.
type FileEncoding struct {
	ID      uint64  // of the encoding
	K, M    int     // 1 to MaxDataShards, 1 to MaxParityShards
	Block   int     // bytes of the file that stand together in a shard
	Devices []DevID // K+M in shard order; 0 where a shard is missing
}

// Args are the fields with which trackers describe it.
func (e FileEncoding) Args() Args {
	devs := make([]string, len(e.Devices))
	for i, d := range e.Devices {
		devs[i] = d.String()
	}
	return Args{
		{"ec_encoding", FormatEncoding(e.ID)}, {"ec_k", strconv.Itoa(e.K)}, {"ec_m", strconv.Itoa(e.M)},
		{"ec_block", strconv.Itoa(e.Block)}, {"ec_devids", strings.Join(devs, ",")},
	}
}

// parseFileEncoding reads what [FileEncoding.Args] writes; nil where there is
// none of it.
func parseFileEncoding(a Args) (*FileEncoding, error) {
	text, ok := a.Lookup("ec_encoding")
	if !ok {
		return nil, nil
	}
	id, err := ParseEncoding(text)
	e := FileEncoding{ID: id, K: int(a.Number("ec_k")), M: int(a.Number("ec_m")), Block: int(a.Number("ec_block"))}
	for word := range strings.SplitSeq(a.Get("ec_devids"), ",") {
		n, numberErr := strconv.ParseUint(word, 10, 32)
		if numberErr != nil || n > MaxDevID || len(e.Devices) == MaxShards {
			return nil, fmt.Errorf("devices of shards %.200q: %w", a.Get("ec_devids"), ErrBadReply)
		}
		e.Devices = append(e.Devices, DevID(n))
	}
	if err != nil || e.K < 1 || e.M < 1 || e.K > MaxDataShards || e.K+e.M != len(e.Devices) {
		return nil, fmt.Errorf("encoding %.200q: %w", a.String(), ErrBadReply)
	}
	return &e, nil
}

// FileInfo describes the file stored under key. The error matches
// [ErrUnknownKey] where there is none.
func (c *Client) FileInfo(ctx context.Context, domain, key string) (FileInfo, error) {
	reply, err := c.Do(ctx, "file_info", Args{{"domain", domain}, {"key", key}, {"devices", "1"}})
	if err != nil {
		return FileInfo{}, fmt.Errorf("info of key %q in domain %q: %w", key, domain, err)
	}
	f := FileInfo{
		FID:      FID(reply.Number("fid")),
		Domain:   reply.Get("domain"),
		Class:    reply.Get("class"),
		Key:      reply.Get("key"),
		Length:   reply.Number("length"),
		DevCount: int(reply.Number("devcount")),
	}
	if f.FID == 0 {
		return FileInfo{}, fmt.Errorf("info of key %q: reply has no fid: %w", key, ErrBadReply)
	}
	if f.Encoding, err = parseFileEncoding(reply); err != nil {
		return FileInfo{}, fmt.Errorf("info of key %q: %w", key, err)
	}
	for s := range strings.SplitSeq(reply.Get("devids"), ",") {
		if n := Number(s); n > 0 {
			f.DevIDs = append(f.DevIDs, DevID(n))
		}
	}
	if s := reply.Get("checksum"); s != "" && s != "MISSING" && s != "NONE" {
		name, digits, _ := strings.Cut(s, ":")
		if t, ok := ParseHashType(name); ok {
			sum, err := hex.DecodeString(digits)
			if err != nil || len(sum) != t.Size() {
				return FileInfo{}, fmt.Errorf("info of key %q: checksum %q: %w", key, s, ErrBadReply)
			}
			f.Checksum = Checksum{t, sum}
		}
	}
	return f, nil
}

// keysPage is how many keys are asked for at once, the most that trackers give.
const keysPage = 1000

// Keys lists the keys that begin with prefix, in byte order. Keys stored or
// deleted meanwhile may or may not be seen. An error ends the listing.
func (c *Client) Keys(ctx context.Context, domain, prefix string) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		after := ""
		for {
			keys, err := c.KeysAfter(ctx, domain, prefix, after, keysPage)
			if err != nil {
				yield("", err)
				return
			}
			for _, key := range keys {
				if !yield(key, nil) {
					return
				}
			}
			if len(keys) < keysPage {
				return
			}
			if next := keys[len(keys)-1]; next > after {
				after = next
				continue
			}
			yield("", fmt.Errorf("keys of domain %q: the page after %q does not advance: %w", domain, after, ErrBadReply))
			return
		}
	}
}

// KeysAfter is one page of a listing: at most limit (up to 1,000) keys that
// begin with prefix and are greater than after, in byte order. None is not an
// error.
func (c *Client) KeysAfter(ctx context.Context, domain, prefix, after string, limit int) ([]string, error) {
	args := Args{{"domain", domain}, {"prefix", prefix}, {"after", after}}
	args.AddInt("limit", int64(limit))
	reply, err := c.Do(ctx, "list_keys", args)
	if errors.Is(err, ErrNoneMatch) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("keys of domain %q: %w", domain, err)
	}
	return numbered(reply, "key_count", "key_")
}

// numbered are the values prefix1, prefix2 and so on, of which the field count
// tells the number.
func numbered(reply Args, count, prefix string) ([]string, error) {
	n := reply.Number(count)
	if n < 0 || n > int64(len(reply)) {
		return nil, fmt.Errorf("reply has %s=%d and %d fields: %w", count, n, len(reply), ErrBadReply)
	}
	values := make([]string, n)
	found := int64(0)
	for _, f := range reply {
		if digits, ok := strings.CutPrefix(f.Name, prefix); ok {
			if i, err := strconv.ParseInt(digits, 10, 64); err == nil && i >= 1 && i <= n {
				values[i-1] = f.Value
				found++
			}
		}
	}
	if found != n {
		return nil, fmt.Errorf("reply has %d of %d fields %s: %w", found, n, prefix, ErrBadReply)
	}
	return values, nil
}

// filesPage is the most files that trackers give at once.
const filesPage = 500

// FilesAfter is one page of the files of all domains (the command list_fids): at
// most limit (up to 500) with fids above after, in the order of their fids.
// DevIDs and Checksum are not told. None is not an error.
func (c *Client) FilesAfter(ctx context.Context, after FID, limit int) ([]FileInfo, error) {
	args := Args{{"from", after.String()}}
	args.AddInt("to", int64(min(limit, filesPage)))
	reply, err := c.Do(ctx, "list_fids", args)
	if err != nil {
		return nil, fmt.Errorf("files after fid %d: %w", after, err)
	}
	n := reply.Number("fid_count")
	if n < 0 || n > int64(len(reply)) {
		return nil, fmt.Errorf("files after fid %d: reply has fid_count=%d and %d fields: %w", after, n, len(reply), ErrBadReply)
	}
	files := make([]FileInfo, n)
	for _, f := range reply {
		name, _ := strings.CutPrefix(f.Name, "fid_")
		digits, name, _ := strings.Cut(name, "_")
		i, err := strconv.ParseInt(digits, 10, 64)
		if err != nil || i < 1 || i > n {
			continue
		}
		file := &files[i-1]
		switch name {
		case "fid":
			file.FID = FID(Number(f.Value))
		case "domain":
			file.Domain = f.Value
		case "class":
			file.Class = f.Value
		case "key":
			file.Key = f.Value
		case "length":
			file.Length = Number(f.Value)
		case "devcount":
			file.DevCount = int(Number(f.Value))
		}
	}
	slices.SortFunc(files, func(a, b FileInfo) int { return cmp.Compare(a.FID, b.FID) })
	if n > 0 && files[0].FID <= after {
		return nil, fmt.Errorf("files after fid %d: reply has fid %d: %w", after, files[0].FID, ErrBadReply)
	}
	return files, nil
}
