package tracker

import (
	"container/list"
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/schema"
)

// Bounds of a tracker's memory of paths.
const (
	maxPathEntries = 100_000
	maxPathBytes   = 64 << 20
	// maxStale is the most that a request's "stale" means.
	maxStale = time.Hour
	// databasePatience is how long the database may take to find a key that is
	// remembered, before it counts as away. Clients wait 3 s by default. For one
	// that is not, it is a third of a request's time.
	databasePatience = 2 * time.Second
)

// settingDatabaseAway is the setting that permits, unless it is off, answers of
// any age while the database is away.
const settingDatabaseAway = "path_cache_database_away"

// pathRules say which answers from memory a request permits.
type pathRules struct {
	ttl   time.Duration // by the setting path_cache_ttl; 0 is none
	stale time.Duration // by the request; 0 is none
	away  bool          // of any age, while the database is away
}

// pathRules are the rules for q. That it says noverify means nothing here:
// clients say so routinely, and expect fresh answers.
func (q *query) pathRules() pathRules {
	away, given := q.at.Settings[settingDatabaseAway]
	return pathRules{
		ttl:   schema.PathCacheTTL(q.at.Settings[schema.SettingPathCacheTTL]),
		stale: time.Duration(min(max(q.Number("stale"), 0), int64(maxStale/time.Second))) * time.Second,
		away:  !given || protocol.Truthy(away),
	}
}

// remembers reports whether what is read for the request is to be remembered.
func (r pathRules) remembers() bool { return r.ttl > 0 || r.stale > 0 }

// fileKey names a file.
type fileKey struct {
	dmid schema.DMID
	key  string
}

// located is a file and its devices as the database had them. It is shared and
// never changed.
type located struct {
	file schema.File
	devs []protocol.DevID
	asOf time.Time     // when the read began
	ttl  time.Duration // the setting when the read began: for so long after asOf the bytes stay
}

// pathCache remembers where files are. It is bounded in files and in bytes, and
// forgets those first that nobody asked for the longest. Its methods may be
// called concurrently.
//
// Reads that may fill it are known to it while they run. Forgetting a key drops
// what is being read of it, too: whoever changes a key forgets it afterwards,
// before the change is acknowledged, and no later request is answered from
// before the change. What other trackers change is not seen here.
type pathCache struct {
	now        func() time.Time
	maxEntries int
	maxBytes   int64
	size       atomic.Int64 // entries, to be read without the lock

	mu      sync.Mutex // guards what follows
	entries map[fileKey]*list.Element
	recent  *list.List // of *pathEntry, the last asked for first
	bytes   int64
	reads   map[fileKey][]*pathRead // that run and have not been dropped, in the order of their beginning
}

type pathEntry struct {
	key fileKey
	located
}

// pathOverhead is about what an entry takes beside its key and devices.
const pathOverhead = 360

func (e *pathEntry) bytes() int64 {
	return pathOverhead + int64(len(e.key.key)) + 4*int64(cap(e.devs))
}

// pathRead is a read of the database that is running, or that others wait for.
type pathRead struct {
	located // but for the beginning, to be read after done
	err     error
	done    chan struct{}
	dropped bool // guarded by pathCache.mu
}

func newPathCache(now func() time.Time, maxEntries int, maxBytes int64) *pathCache {
	return &pathCache{
		now: now, maxEntries: maxEntries, maxBytes: maxBytes,
		entries: make(map[fileKey]*list.Element), recent: list.New(), reads: make(map[fileKey][]*pathRead),
	}
}

// len is how many files are remembered.
func (c *pathCache) len() int { return int(c.size.Load()) }

// find returns what is remembered of k if the rules permit it now, and whether
// it was the setting that did.
func (c *pathCache) find(k fileKey, rules pathRules) (f located, byTTL, ok bool) {
	if !rules.remembers() || c.len() == 0 {
		return located{}, false, false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	el := c.entries[k]
	if el == nil {
		return located{}, false, false
	}
	f = el.Value.(*pathEntry).located
	age := c.now().Sub(f.asOf)
	// A ttl that was raised does not hold for what was read before: bytes that
	// were deleted before it was raised do not stay for as long.
	byTTL = age <= min(rules.ttl, f.ttl) && rules.ttl > 0
	if !byTTL && (age > rules.stale || rules.stale <= 0) {
		return located{}, false, false
	}
	c.recent.MoveToFront(el)
	return f, byTTL, true
}

// last returns what is remembered of k, however old.
func (c *pathCache) last(k fileKey) (located, bool) {
	if c.len() == 0 {
		return located{}, false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if el := c.entries[k]; el != nil {
		return el.Value.(*pathEntry).located, true
	}
	return located{}, false
}

// read reads k by fetch and remembers it, if the rules say so or if k is
// remembered already. If the rules permit it, a read that runs is waited for
// instead; the error is then that of the read only where it is an answer.
func (c *pathCache) read(ctx context.Context, k fileKey, rules pathRules, fetch func(context.Context) (schema.File, []protocol.DevID, error)) (located, error) {
	r, shared := c.begin(k, rules, true)
	if shared {
		select {
		case <-r.done:
		case <-ctx.Done():
			return located{}, ctx.Err()
		}
		if r.err == nil || errors.Is(r.err, protocol.ErrUnknownKey) {
			return r.located, r.err
		}
		r, _ = c.begin(k, rules, false) // its caller may have gone away, which is none of ours
	}
	r.err = errors.New("the read did not end") // for those who wait, should fetch panic
	defer c.end(k, rules, r)
	r.file, r.devs, r.err = fetch(ctx)
	return r.located, r.err
}

// begin begins a read, or finds one that runs and may be shared.
func (c *pathCache) begin(k fileKey, rules pathRules, share bool) (_ *pathRead, shared bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now, running := c.now(), c.reads[k]
	if n := len(running); share && n > 0 && now.Sub(running[n-1].asOf) <= max(rules.ttl, rules.stale) && rules.remembers() {
		return running[n-1], true
	}
	r := &pathRead{located: located{asOf: now, ttl: rules.ttl}, done: make(chan struct{})}
	c.reads[k] = append(running, r)
	return r, false
}

// end ends a read. What it found is remembered, unless k has been forgotten, or
// read anew, since it began.
func (c *pathCache) end(k fileKey, rules pathRules, r *pathRead) {
	defer close(r.done)
	c.mu.Lock()
	defer c.mu.Unlock()
	if r.dropped {
		return
	}
	if running := c.reads[k]; len(running) > 1 {
		i := slices.Index(running, r)
		c.reads[k] = slices.Delete(running, i, i+1)
	} else {
		delete(c.reads, k)
	}
	el := c.entries[k]
	switch {
	case el != nil && el.Value.(*pathEntry).asOf.After(r.asOf):
	case errors.Is(r.err, protocol.ErrUnknownKey):
		c.remove(el)
	case r.err == nil && (el != nil || rules.remembers()):
		c.remove(el)
		k.key = strings.Clone(k.key) // which is a part of the request
		e := &pathEntry{key: k, located: r.located}
		e.file.Key = k.key
		c.entries[k] = c.recent.PushFront(e)
		c.bytes += e.bytes()
		for c.recent.Len() > c.maxEntries || c.bytes > c.maxBytes {
			c.remove(c.recent.Back())
		}
		c.size.Store(int64(c.recent.Len()))
	}
}

// remove takes an entry out; nil is none.
func (c *pathCache) remove(el *list.Element) {
	if el == nil {
		return
	}
	e := c.recent.Remove(el).(*pathEntry)
	delete(c.entries, e.key)
	c.bytes -= e.bytes()
	c.size.Store(int64(c.recent.Len()))
}

// forget drops what is remembered of keys of a domain and what is being read of
// them.
func (c *pathCache) forget(dmid schema.DMID, keys ...string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, key := range keys {
		k := fileKey{dmid, key}
		c.remove(c.entries[k])
		c.drop(k)
	}
}

func (c *pathCache) drop(k fileKey) {
	for _, r := range c.reads[k] {
		r.dropped = true
	}
	delete(c.reads, k)
}

// clear drops everything.
func (c *pathCache) clear() {
	c.mu.Lock()
	defer c.mu.Unlock()
	clear(c.entries)
	c.recent.Init()
	c.bytes = 0
	c.size.Store(0)
	for k := range c.reads {
		c.drop(k)
	}
}

// pathCounters count the requests that the path cache could have answered.
type pathCounters struct{ hit, stale, miss, away prometheus.Counter }

func newPathCounters(r prometheus.Registerer, entries func() int) pathCounters {
	total := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "mogile_tracker_path_cache_total",
		Help: "Look-ups of paths while the path cache is in use, by result: hit and stale were answered from memory, by the setting path_cache_ttl or the request's stale; miss asked the database; away were answered from memory because the database did not answer. When away rises look at the database.",
	}, []string{"result"})
	r.MustRegister(total, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "mogile_tracker_path_cache_entries",
		Help: "Files whose devices the tracker remembers.",
	}, func() float64 { return float64(entries()) }))
	return pathCounters{
		hit: total.WithLabelValues("hit"), stale: total.WithLabelValues("stale"),
		miss: total.WithLabelValues("miss"), away: total.WithLabelValues("away"),
	}
}

// locate finds a file, from memory if the rules permit it; it reports whether
// that was so.
func (t *Tracker) locate(ctx context.Context, k fileKey, rules pathRules) (f located, remembered bool, err error) {
	f, byTTL, ok := t.paths.find(k, rules)
	switch {
	case !ok:
		return t.locateNow(ctx, k, rules)
	case byTTL:
		t.pathCounts.hit.Inc()
	default:
		t.pathCounts.stale.Inc()
	}
	return f, true, nil
}

// locateNow asks the database for a file. While that is away, what is
// remembered is returned instead if the rules permit it.
func (t *Tracker) locateNow(ctx context.Context, k fileKey, rules pathRules) (f located, remembered bool, err error) {
	// Whoever asks where a file is has gone long before a request's time is over,
	// and does not want to wait for a database that hangs.
	within, cancel := context.WithTimeout(ctx, t.opts.QueryTimeout/3)
	defer cancel()
	fetch := func(ctx context.Context) (schema.File, []protocol.DevID, error) {
		return t.store.FileByKey(ctx, k.dmid, k.key)
	}
	if !rules.remembers() && t.paths.len() == 0 {
		f.file, f.devs, err = fetch(within)
		return f, false, err
	}
	if _, known := t.paths.last(k); known && rules.away {
		var stop context.CancelFunc
		within, stop = context.WithTimeout(within, databasePatience)
		defer stop()
	}
	f, err = t.paths.read(within, k, rules, fetch)
	if rules.away && ctx.Err() == nil && databaseAway(within, err) {
		if last, known := t.paths.last(k); known { // it may have been forgotten meanwhile
			t.pathCounts.away.Inc()
			t.failures.Warn().Err(err).Msg("paths are answered from memory: the database does not answer")
			return last, true, nil
		}
	}
	t.pathCounts.miss.Inc()
	return f, false, err
}

// databaseAway reports whether a look-up failed with err because the database
// was not there, or took all the time of ctx.
func databaseAway(ctx context.Context, err error) bool {
	if _, refused := errors.AsType[*protocol.Error](err); err == nil || refused {
		return false
	}
	return errors.Is(err, schema.ErrUnavailable) || ctx.Err() != nil
}
