package tracker

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/schema"
	"github.com/mogile/mogile/tracker/cluster"
	"github.com/mogile/mogile/tracker/placement"
)

// Limits of listings, MogileFS 2.73's.
const (
	maxListKeys     = 1000
	maxListFIDs     = 500
	defaultListFIDs = 100
)

// getPaths answers where a key can be read. Where the path cache is permitted
// (by the setting path_cache_ttl, or by stale=SECONDS in the request) the file's
// devices may come from memory; their states are those of now in any case.
func (t *Tracker) getPaths(ctx context.Context, q *query) error {
	domain, key, err := q.domainAndKey()
	if err != nil {
		return err
	}
	k, rules := fileKey{domain.ID, key}, q.pathRules()
	f, remembered, err := t.locate(ctx, k, rules)
	if err != nil {
		return err
	}
	paths, readable := t.readPaths(ctx, q, f)
	if remembered && !readable && ctx.Err() == nil { // the copies may be elsewhere by now
		now, away, err := t.locateNow(ctx, k, rules)
		if err != nil {
			return err
		}
		if !away && (now.file.FID != f.file.FID || !slices.Equal(now.devs, f.devs)) {
			f = now
			paths, _ = t.readPaths(ctx, q, f)
		}
	}
	if err := ctx.Err(); err != nil { // copies that could not be looked at are not copies that are missing
		return fmt.Errorf("verify fid %d: %w", f.file.FID, err)
	}
	q.reply.AddInt("paths", int64(len(paths)))
	for i, p := range paths {
		q.reply.Add("path"+strconv.Itoa(i+1), p)
	}
	return nil
}

// readPaths are the URLs of as many copies as q asks for, those in the client's
// zone first. Copies are verified
// until one has the right size, unless the client will look for itself; devices
// in drain come last, and one that cannot be read only where there is no other:
// then readable is false.
func (t *Tracker) readPaths(ctx context.Context, q *query, f located) (paths []string, readable bool) {
	devs := make([]*cluster.Device, 0, len(f.devs))
	for _, id := range f.devs {
		if d := q.at.Device(id); d != nil {
			devs = append(devs, d)
		}
	}
	limit := int(min(max(q.Number("pathcount"), 2), int64(max(len(devs), 2))))
	order := placement.NearFirst(placement.ReadOrder(devs, q.rand()), q.at.Zones.Of(q.viewer.Addr))
	r, file := placement.SplitReaders(order), f.file
	paths = make([]string, 0, limit)
	verified := q.True("noverify")
	for _, d := range r.First {
		if len(paths) == limit {
			return paths, true
		}
		url := d.ReadURL(file.FID, q.viewer)
		if !verified && !t.hasSize(ctx, url, file.Length) {
			continue
		}
		verified = true
		paths = append(paths, url)
	}
	for _, d := range r.Drain {
		if len(paths) == limit {
			return paths, true
		}
		url := d.ReadURL(file.FID, q.viewer)
		if !verified && !t.hasSize(ctx, url, file.Length) {
			continue
		}
		paths = append(paths, url)
	}
	readable = len(paths) > 0
	if !readable && r.Backup != nil {
		paths = append(paths, r.Backup.ReadURL(file.FID, q.viewer))
	}
	return paths, readable
}

// hasSize reports whether a copy is there in its full length.
func (t *Tracker) hasSize(ctx context.Context, url string, want int64) bool {
	size, err := t.storage.Size(ctx, url)
	if err != nil {
		t.log.Debug().Err(err).Str("url", url).Msg("copy could not be verified")
		return false
	}
	return size == want
}

// fileInfo answers what is stored of a key.
func (t *Tracker) fileInfo(ctx context.Context, q *query) error {
	domain, key, err := q.domainAndKey()
	if err != nil {
		return err
	}
	file, devids, err := t.store.FileByKey(ctx, domain.ID, key)
	if err != nil {
		return err
	}
	class := q.at.Class(file.DMID, file.ClassID)
	q.reply.Add("fid", file.FID.String())
	q.reply.Add("domain", domain.Name)
	q.reply.Add("class", className(class, file.ClassID))
	q.reply.Add("key", key)
	q.reply.AddInt("length", file.Length)
	q.reply.AddInt("devcount", int64(file.DevCount))
	if class != nil && class.HashType != protocol.HashNone {
		sum, err := t.store.Checksum(ctx, file.FID)
		if err != nil {
			return fmt.Errorf("look up the checksum of fid %d: %w", file.FID, err)
		}
		text := "MISSING"
		if !sum.IsZero() {
			text = sum.String()
		}
		q.reply.Add("checksum", text)
	}
	if q.True("devices") {
		q.reply.Add("devids", joinIDs(devids))
		e, err := t.encoding(ctx, file.FID)
		if err != nil || e == nil {
			return err
		}
		q.reply = append(q.reply, encodingFields(*e, devids)...)
	}
	return nil
}

// encoding is how a file is kept in shards, nil where it is kept in copies.
func (t *Tracker) encoding(ctx context.Context, fid protocol.FID) (*schema.Encoding, error) {
	encodings, err := t.store.EncodingsOf(ctx, []protocol.FID{fid})
	if err != nil {
		return nil, fmt.Errorf("read the encoding of fid %d: %w", fid, err)
	}
	if e, ok := encodings[fid]; ok {
		return &e, nil
	}
	return nil, nil
}

// encodingFields describe an encoding of which those shards are there that devids
// have.
func encodingFields(e schema.Encoding, devids []protocol.DevID) protocol.Args {
	there := slices.Clone(e.Devices)
	for i, dev := range there {
		if !slices.Contains(devids, dev) {
			there[i] = 0
		}
	}
	return protocol.FileEncoding{ID: e.ID, K: e.K, M: e.M, Block: e.Block, Devices: there}.Args()
}

// className is a class's name; the number of one that is not there any more.
func className(c *cluster.Class, id schema.ClassID) string {
	if c == nil {
		return strconv.Itoa(int(id))
	}
	return c.Name
}

func joinIDs(ids []protocol.DevID) string {
	var b strings.Builder
	for i, id := range ids {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(id.String())
	}
	return b.String()
}

// fileDebug answers all that the database knows of a fid.
func (t *Tracker) fileDebug(ctx context.Context, q *query) error {
	fid := protocol.FID(max(q.Number("fid"), 0))
	if !q.True("fid") {
		domain, key, err := q.domainAndKey()
		if err != nil {
			return err
		}
		file, _, err := t.store.FileByKey(ctx, domain.ID, key)
		if err != nil {
			return err
		}
		fid = file.FID
	}
	debug, err := t.store.DebugFile(ctx, fid)
	if err != nil {
		return fmt.Errorf("debug fid %d: %w", fid, err)
	}
	out := &q.reply
	if f := debug.File; f != nil {
		out.Add("fid_fid", f.FID.String())
		out.AddInt("fid_dmid", int64(f.DMID))
		out.Add("fid_dkey", f.Key)
		out.AddInt("fid_length", f.Length)
		out.AddInt("fid_classid", int64(f.ClassID))
		out.AddInt("fid_devcount", int64(f.DevCount))
		out.Add("fid_domain", domainName(q.at, f.DMID))
		out.Add("fid_class", className(q.at.Class(f.DMID, f.ClassID), f.ClassID))
	}
	if f := debug.Tempfile; f != nil {
		out.AddInt("tempfile_classid", int64(f.ClassID))
		out.AddInt("tempfile_dmid", int64(f.DMID))
		out.Add("tempfile_dkey", f.Key)
		out.Add("tempfile_devids", joinIDs(f.DevIDs))
	}
	for _, row := range debug.Queues {
		addQueueRow(out, row)
	}
	if len(debug.Devices) > 0 {
		out.Add("devids", joinIDs(debug.Devices))
	}
	for _, id := range debug.Devices {
		path := ""
		if d := q.at.Device(id); d != nil {
			path = d.ReadURL(fid, q.viewer)
		}
		out.Add("devpath_"+id.String(), path)
	}
	e, err := t.encoding(ctx, fid)
	if err != nil {
		return err
	}
	if e != nil {
		*out = append(*out, encodingFields(*e, debug.Devices)...)
		out.AddInt("ec_epoch", int64(e.Epoch))
		for i, id := range e.Devices {
			if d := q.at.Device(id); d != nil && slices.Contains(debug.Devices, id) {
				out.Add("shardpath_"+strconv.Itoa(i), d.ShardURL(fid, q.viewer))
			}
		}
	}
	sum := "NONE"
	if !debug.Checksum.IsZero() {
		sum = debug.Checksum.String()
	}
	out.Add("checksum", sum)
	return nil
}

// domainName is a domain's name; empty for one that is not there any more.
func domainName(s *cluster.Snapshot, id schema.DMID) string {
	if d := s.ByDMID[id]; d != nil {
		return d.Name
	}
	return ""
}

// addQueueRow adds a row of a queue as file_debug shows it; NULL is empty.
func addQueueRow(out *protocol.Args, row schema.QueueRow) {
	devid, arg := "", ""
	if row.DevID != nil {
		devid = row.DevID.String()
	}
	if row.Arg != nil {
		arg = *row.Arg
	}
	switch row.Queue {
	case schema.QueueReplicate:
		out.Add("replqueue_fid", row.FID.String())
		out.AddInt("replqueue_nexttry", row.NextTry)
		out.Add("replqueue_fromdevid", devid)
		out.AddInt("replqueue_failcount", int64(row.FailCount))
		out.AddInt("replqueue_flags", int64(row.Flags))
	case schema.QueueDelete:
		out.Add("delqueue_fid", row.FID.String())
		out.AddInt("delqueue_nexttry", row.NextTry)
		out.AddInt("delqueue_failcount", int64(row.FailCount))
	case schema.QueueCopyDelete: // ours: there may be one for each device, and of a shard another
		prefix := "copydelqueue_" + devid + "_"
		if _, shard := row.What.Shard(); shard {
			prefix += "ec_"
		}
		out.AddInt(prefix+"nexttry", row.NextTry)
		out.AddInt(prefix+"failcount", int64(row.FailCount))
	case schema.QueueFsck, schema.QueueRebalance:
		prefix, kind := "fsckqueue_", int64(1)
		if row.Queue == schema.QueueRebalance {
			prefix, kind = "rebqueue_", 2
		}
		out.Add(prefix+"fid", row.FID.String())
		out.Add(prefix+"devid", devid)
		out.AddInt(prefix+"type", kind)
		out.AddInt(prefix+"nexttry", row.NextTry)
		out.AddInt(prefix+"failcount", int64(row.FailCount))
		out.AddInt(prefix+"flags", int64(row.Flags))
		out.Add(prefix+"arg", arg)
	}
}

// listKeys answers a page of a domain's keys.
func (t *Tracker) listKeys(ctx context.Context, q *query) error {
	domain, err := q.domain()
	if err != nil {
		return err
	}
	prefix, after := q.Get("prefix"), q.Get("after")
	if after != "" && !strings.HasPrefix(after, prefix) {
		return protocol.Err("after_mismatch")
	}
	limit := q.Number("limit")
	switch {
	case limit == 0 || limit > maxListKeys:
		limit = maxListKeys
	case limit < 0: // in MogileFS 2.73 the database refuses
		return &protocol.Error{Code: "failure", Text: "The limit must not be negative"}
	}
	keys, err := t.store.ListKeys(ctx, domain.ID, prefix, after, int(limit))
	if err != nil {
		return fmt.Errorf("list keys of domain %s: %w", domain.Name, err)
	}
	if len(keys) == 0 {
		return protocol.ErrNoneMatch
	}
	q.reply.AddInt("key_count", int64(len(keys)))
	q.reply.Add("next_after", keys[len(keys)-1])
	for i, key := range keys {
		q.reply.Add(keyNames[i], key)
	}
	return nil
}

// keyNames are the names of the keys of a page: "key_1" and so on.
var keyNames = func() (names [maxListKeys]string) {
	for i := range names {
		names[i] = "key_" + strconv.Itoa(i+1)
	}
	return names
}()

// listFIDs answers a page of all files, by number.
func (t *Tracker) listFIDs(ctx context.Context, q *query) error {
	limit := q.Number("to")
	switch {
	case limit == 0:
		limit = defaultListFIDs
	case limit < 0 || limit > maxListFIDs:
		limit = maxListFIDs
	}
	files, err := t.store.ListFIDs(ctx, protocol.FID(max(q.Number("from"), 0)), int(limit))
	if err != nil {
		return fmt.Errorf("list fids: %w", err)
	}
	q.reply.AddInt("fid_count", int64(len(files)))
	for i, f := range files {
		prefix := "fid_" + strconv.Itoa(i+1) + "_"
		q.reply.Add(prefix+"fid", f.FID.String())
		q.reply.Add(prefix+"domain", domainName(q.at, f.DMID))
		q.reply.Add(prefix+"class", className(q.at.Class(f.DMID, f.ClassID), f.ClassID))
		q.reply.Add(prefix+"key", f.Key)
		q.reply.AddInt(prefix+"length", f.Length)
		q.reply.AddInt(prefix+"devcount", int64(f.DevCount))
	}
	return nil
}

// deleteKey forgets a key; its bytes go later.
func (t *Tracker) deleteKey(ctx context.Context, q *query) error {
	domain, key, err := q.domainAndKey()
	if err != nil {
		return err
	}
	only, err := q.ifFID()
	if err != nil {
		return err
	}
	if only != nil {
		err = t.store.DeleteKeyIf(ctx, domain.ID, key, *only)
	} else {
		_, err = t.store.DeleteKey(ctx, domain.ID, key)
	}
	t.paths.forget(domain.ID, key) // after an error too: nobody knows what was done
	return err
}

// rename gives a file another key.
func (t *Tracker) rename(ctx context.Context, q *query) error {
	domain, err := q.domain()
	if err != nil {
		return err
	}
	from, to := q.Get("from_key"), q.Get("to_key")
	if from == "" || to == "" {
		return protocol.Err("no_key")
	}
	only, err := q.ifFID()
	if err != nil {
		return err
	}
	if only != nil {
		err = t.store.RenameKeyIf(ctx, domain.ID, from, to, *only)
	} else {
		err = t.store.RenameKey(ctx, domain.ID, from, to)
	}
	t.paths.forget(domain.ID, from, to)
	return err
}

// updateFileClass moves a file to another class.
func (t *Tracker) updateFileClass(ctx context.Context, q *query) error {
	domain, key, err := q.domainAndKey()
	if err != nil {
		return err
	}
	name := q.Get("class")
	if name == "" {
		return protocol.Err("no_class")
	}
	class, ok := domain.Class(name)
	if !ok {
		return protocol.ErrClassNotFound
	}
	only, err := q.ifFID()
	if err != nil {
		return err
	}
	file, devids, err := t.store.FileByKey(ctx, domain.ID, key)
	switch {
	case errors.Is(err, protocol.ErrUnknownKey):
		return protocol.ErrInvalidKey
	case err != nil:
		return err
	case only != nil && *only != file.FID:
		return schema.FIDMismatch(*only, file.FID)
	case len(devids) == 0:
		return protocol.Err("no_devices")
	case file.ClassID == class.ID:
		return nil
	}
	if only != nil {
		err = t.store.SetFileClassIf(ctx, domain.ID, key, file.FID, class.ID)
	} else {
		err = t.store.SetFileClass(ctx, file.FID, class.ID)
	}
	t.paths.forget(domain.ID, key)
	if errors.Is(err, schema.ErrGone) || errors.Is(err, protocol.ErrUnknownKey) { // deleted or overwritten in the meantime
		return protocol.ErrInvalidKey
	}
	return err
}

// editFile answers as MogileFS 2.73 does without memcache: a closed file never
// changes.
func (t *Tracker) editFile(ctx context.Context, q *query) error {
	domain, key, err := q.domainAndKey()
	if err != nil {
		return err
	}
	if _, _, err := t.store.FileByKey(ctx, domain.ID, key); err != nil {
		return err
	}
	return protocol.ErrFailure
}
