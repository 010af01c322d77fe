package tracker

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/schema"
	"github.com/mogile/mogile/tracker/cluster"
	"github.com/mogile/mogile/tracker/placement"
	"github.com/mogile/mogile/tracker/storage"
)

// multiDest is how many destinations a client is offered that asks for several.
const multiDest = 3

// maxExplicitFID is the highest fid that a client may choose: the sequence is
// raised above it, and must not come to its end.
const maxExplicitFID = math.MaxInt64 / 2

// createOpen allocates a fid and chooses where its bytes should be put.
func (t *Tracker) createOpen(ctx context.Context, q *query) error {
	profile := t.newProfile(q)
	domain, err := q.domain()
	if err != nil {
		return err
	}
	var className string
	if q.True("class") {
		className = q.Get("class")
	}
	class, ok := domain.Class(className)
	if !ok {
		return protocol.Err("unreg_class")
	}
	profile.point("wait_monitor") // requests are begun after the first round only
	multi := q.True("multi_dest")
	wanted := 1
	if multi {
		wanted = multiDest
	}
	profile.point("find_deviceid")
	zone := ""
	if t.opts.LocalNetwork.IsValid() {
		zone = q.at.Zones.Of(q.viewer.Addr)
	}
	devs := placement.NewFileDevicesNear(zone, q.at.DeviceList, wanted, q.Number("size"), t.opts.MinFreeMB, q.rand())
	if len(devs) == 0 {
		return protocol.Err("no_devices")
	}
	fid := q.Number("fid")
	if fid < 0 || fid > maxExplicitFID {
		return &protocol.Error{Code: "fid_in_use", Text: "A fid must be a number from 1 to " + strconv.FormatInt(maxExplicitFID, 10)}
	}
	row := schema.Tempfile{
		FID: protocol.FID(fid), DMID: domain.ID, Key: q.Get("key"), ClassID: class.ID,
		DevIDs: make([]protocol.DevID, len(devs)),
	}
	for i, d := range devs {
		row.DevIDs[i] = d.ID
	}
	row.FID, err = t.store.CreateTempfile(ctx, row)
	if _, refused := errors.AsType[*protocol.Error](err); err != nil && !refused {
		t.failed(ctx, q.worker, "create_open", fmt.Errorf("record an upload: %w", err))
		return protocol.Err("db")
	}
	if err != nil {
		return err
	}
	t.openings.remember(row, t.now())
	urls := make([]string, len(devs))
	for i, d := range devs {
		urls[i] = d.WriteURL(row.FID, q.viewer)
	}
	profile.point("vivify_dir_on_all_devs")
	t.makeDirs(ctx, devs, urls, profile)

	q.reply.Add("fid", row.FID.String())
	if !multi {
		q.reply.Add("devid", devs[0].ID.String())
		q.reply.Add("path", urls[0])
	} else {
		q.reply.AddInt("dev_count", int64(len(devs)))
		for i, d := range devs {
			n := strconv.Itoa(i + 1)
			q.reply.Add("devid_"+n, d.ID.String())
			q.reply.Add("path_"+n, urls[i])
		}
	}
	profile.report(&q.reply)
	return nil
}

// makeDirs makes the directories that urls need, on all devices at once. A
// failure is the uploader's to find: most storage daemons make directories as
// files come.
func (t *Tracker) makeDirs(ctx context.Context, devs []*cluster.Device, urls []string, p *profile) {
	one := func(url string) {
		if err := t.storage.MakeDirs(ctx, url); err != nil {
			t.log.Debug().Err(err).Str("url", url).Msg("directories could not be made")
		}
	}
	if p != nil { // one after the other, so that each can be timed
		for i, url := range urls {
			p.point("vivify_dir_on_dev" + devs[i].ID.String())
			one(url)
		}
		return
	}
	var g sync.WaitGroup
	for _, url := range urls[1:] {
		g.Go(func() { one(url) })
	}
	one(urls[0])
	g.Wait()
}

// profile times the steps of a create_open for a client that asks for it. A nil
// profile does nothing.
type profile struct {
	now    func() time.Time
	points []profilePoint
}

type profilePoint struct {
	name string
	at   time.Time
}

func (t *Tracker) newProfile(q *query) *profile {
	if !q.True("debug_profile") {
		return nil
	}
	p := &profile{now: t.now}
	p.point("begin")
	return p
}

// point begins a step.
func (p *profile) point(name string) {
	if p != nil {
		p.points = append(p.points, profilePoint{name, p.now()})
	}
}

// report adds how long each step took, in seconds.
func (p *profile) report(out *protocol.Args) {
	if p == nil {
		return
	}
	out.AddInt("profpoints", int64(len(p.points)))
	for i, point := range p.points {
		end := p.now()
		if i+1 < len(p.points) {
			end = p.points[i+1].at
		}
		n := strconv.Itoa(i + 1)
		out.Add("prof_"+n+"_name", point.name)
		out.Add("prof_"+n+"_time", strconv.FormatFloat(end.Sub(point.at).Seconds(), 'f', 3, 64))
	}
}

// closing is a create_close whose arguments make sense by themselves.
type closing struct {
	domain *cluster.Domain
	key    string
	fid    protocol.FID
	dev    protocol.DevID
	path   string
	size   int64 // announced by the client; 0 where it did not
	sum    protocol.Checksum
	verify bool // the checksum

	keep  bool          // overwrite=0: a file that the key names stays
	ifFID *protocol.FID // what the key must name, nil for anything
	wait  time.Duration // for the file's replicas; 0: not at all
}

func (q *query) closing() (closing, error) {
	var c closing
	var err error
	if c.domain, err = q.domain(); err != nil {
		return c, err
	}
	for _, name := range []string{"fid", "devid", "path"} {
		if !q.True(name) {
			return c, protocol.Err("no_" + name)
		}
	}
	if q.True("checksum") {
		if c.sum, err = protocol.ParseChecksum(q.Get("checksum")); err != nil {
			return c, err
		}
		c.verify = q.True("checksumverify")
	}
	if c.ifFID, err = q.ifFID(); err != nil {
		return c, err
	}
	if c.wait, err = q.waits(); err != nil {
		return c, err
	}
	overwrite, given := q.Lookup("overwrite")
	c.keep = given && !protocol.Truthy(overwrite) // absent, it is on
	c.key, c.path, c.size = q.Get("key"), q.Get("path"), q.Number("size")
	fid, devid := q.Number("fid"), q.Number("devid")
	if fid <= 0 || devid <= 0 || devid > protocol.MaxDevID {
		return c, protocol.Err("bogus_args")
	}
	c.fid, c.dev = protocol.FID(fid), protocol.DevID(devid)
	if d := q.at.Device(c.dev); d == nil || d.WriteURL(c.fid, q.viewer) != c.path {
		return c, protocol.Err("bogus_args")
	}
	return c, nil
}

// createClose turns an upload into a file. The row of the upload, where this tracker
// does not remember it, and its bytes are looked up side by side; refusals come in the protocol's order. Most take
// the upload back, so that its bytes go.
func (t *Tracker) createClose(ctx context.Context, q *query) error {
	c, err := q.closing()
	if err != nil {
		return err
	}
	measure := func() (int64, error) { return t.storage.Size(ctx, c.path) }
	row, opened := t.openings.take(c.fid, t.now())
	if !opened {
		size := t.measure(ctx, c)
		defer size.abandon()
		measure = size.wait
		if row, err = t.store.Tempfile(ctx, c.fid); err != nil {
			return err
		}
	}
	if row.DMID != c.domain.ID { // another domain's upload is none of this one
		return protocol.ErrNoTempfile
	}
	if refusal := c.wrongDevice(row); refusal != nil {
		return t.discard(ctx, c, refusal)
	}
	if c.key == "" {
		return t.discard(ctx, c, nil)
	}
	length, err := measure()
	if err != nil {
		if ctx.Err() != nil { // we were too slow, which says nothing of the upload
			return fmt.Errorf("measure fid %d on dev%d: %w", c.fid, c.dev, err)
		}
		return t.discard(ctx, c, c.notFound(err))
	}
	if c.size > 0 && length != c.size {
		return t.discard(ctx, c, &protocol.Error{
			Code: "size_mismatch", Text: fmt.Sprintf("Expected: %d; actual: %d; path: %s", c.size, length, c.path),
		})
	}
	if c.verify {
		if err := t.verify(ctx, q, c, length); err != nil {
			if refusal, ok := errors.AsType[*protocol.Error](err); ok {
				return t.discard(ctx, c, refusal)
			}
			return err
		}
	}
	closed := schema.Close{
		FID: c.fid, DMID: c.domain.ID, Key: c.key, Length: length, ClassID: row.ClassID, DevID: c.dev,
		// Clients try the devices in the order of the offer. One before that failed
		// may have the file all the same, if it could only not answer any more.
		Tried:       row.DevIDs[:slices.Index(row.DevIDs, c.dev)],
		NoOverwrite: c.keep, IfFID: c.ifFID,
	}
	if class := q.at.Class(row.DMID, row.ClassID); class != nil && class.HashType == c.sum.Type {
		closed.Checksum = c.sum
	}
	err = t.store.CloseFile(ctx, closed)
	t.paths.forget(c.domain.ID, c.key) // after an error too: nobody knows what was done
	if refusal, ok := errors.AsType[*protocol.Error](err); ok {
		switch refusal.Code {
		case "key_exists", "fid_mismatch", "unreg_class": // and will be
			return t.discard(ctx, c, refusal)
		}
	}
	if err == nil && c.wait > 0 {
		return t.awaitReplicas(ctx, q, c)
	}
	return err
}

func (c closing) wrongDevice(row schema.Tempfile) *protocol.Error {
	for _, id := range row.DevIDs {
		if id == c.dev {
			return nil
		}
	}
	return &protocol.Error{
		Code: "invalid_destdev",
		Text: fmt.Sprintf("File uploaded to invalid dest %d. Valid devices were: %s", c.dev, joinIDs(row.DevIDs)),
	}
}

func (c closing) notFound(err error) *protocol.Error {
	how := "cantreach"
	if errors.Is(err, storage.ErrMissing) {
		how = "missing"
	}
	expected := c.size
	if expected <= 0 {
		expected = -1
	}
	return &protocol.Error{
		Code: "size_verify_error",
		Text: fmt.Sprintf("Expected: %d; actual: 0 (%s); path: %s; error: %v", expected, how, c.path, err),
	}
}

// discard takes an upload back, from all devices that were offered, and returns
// why, nil where the client asked for it.
func (t *Tracker) discard(ctx context.Context, c closing, why *protocol.Error) error {
	if err := t.store.DiscardUpload(ctx, c.fid, c.dev); err != nil {
		return err
	}
	if why == nil {
		return nil
	}
	return why
}

// digestSpeed, in bytes a second, is what a storage daemon is expected to
// digest at least.
const digestSpeed = 2 << 20

// verify has the upload's digest computed and compares it. A refusal means that
// it differs; other errors say nothing of the upload, which stays as it is.
func (t *Tracker) verify(ctx context.Context, q *query, c closing, length int64) error {
	seconds := min(length/digestSpeed, int64(maxDigest/time.Second))
	q.dog.extend(t.opts.QueryTimeout + time.Duration(seconds)*time.Second)
	actual, err := t.storage.Digest(ctx, c.path, length, c.sum.Type, "create_close")
	if err != nil {
		return fmt.Errorf("digest fid %d on dev%d: %w", c.fid, c.dev, err)
	}
	if actual.Equal(c.sum) {
		return nil
	}
	return &protocol.Error{
		Code: "checksum_mismatch",
		Text: fmt.Sprintf("Expected: Checksum[f=%d;%s=%s]; actual: %s; path: %s", c.fid, c.sum.Type, c.sum.Hex(), actual, c.path),
	}
}

// maxDigest bounds the time that a digest is given, however large the file.
const maxDigest = 24 * time.Hour

// measurement is the look at an upload's size while other things are done.
type measurement struct {
	cancel context.CancelFunc
	done   chan struct{}
	size   int64
	err    error
}

// measure begins to look at the upload of c. An upload that will be discarded
// is not looked at.
func (t *Tracker) measure(ctx context.Context, c closing) *measurement {
	ctx, cancel := context.WithCancel(ctx)
	m := &measurement{cancel: cancel, done: make(chan struct{})}
	if c.key == "" {
		close(m.done)
		return m
	}
	go func() {
		defer close(m.done)
		m.size, m.err = t.storage.Size(ctx, c.path)
	}()
	return m
}

func (m *measurement) wait() (int64, error) {
	<-m.done
	return m.size, m.err
}

// abandon ends the look and waits for its end.
func (m *measurement) abandon() {
	m.cancel()
	<-m.done
}
