package tracker

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"math"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/schema"
	"github.com/mogile/mogile/tracker/cluster"
	"github.com/mogile/mogile/tracker/placement"
)

// Widths of the columns that an administrator fills, in characters.
const (
	maxDomainName = 255
	maxClassName  = 50
	maxHostName   = 40
	maxPolicy     = 255
	maxSetting    = 50
)

// fits refuses text that the database could not hold.
func fits(what, text string, maxChars int) error {
	switch {
	case !utf8.ValidString(text):
		return &protocol.Error{Code: "bad_params", Text: what + " must be valid UTF-8"}
	case utf8.RuneCountInString(text) > maxChars:
		return &protocol.Error{Code: "bad_params", Text: fmt.Sprintf("%s must have at most %d characters", what, maxChars)}
	}
	for i := range len(text) {
		if text[i] < ' ' || text[i] == 0x7f {
			return &protocol.Error{Code: "bad_params", Text: what + " must not have control characters"}
		}
	}
	return nil
}

// unfolded is text in one line.
func unfolded(text string) string {
	return strings.Map(func(r rune) rune {
		if r == '\n' || r == '\r' || r == '\t' {
			return ' '
		}
		return r
	}, text)
}

// namespaceChanged makes a change of domains, classes or settings visible to
// this tracker's clients before it is answered, and tells the other trackers.
// The change itself has been made: an error here is only logged.
func (t *Tracker) namespaceChanged(ctx context.Context) {
	if err := t.cluster.Refresh(ctx); err != nil {
		t.failures.Warn().Err(err).Msg("change was made but could not be read back yet")
	}
	t.announce(ctx)
}

// storageChanged does the same for hosts and devices, which are looked at too:
// a device is usable as soon as its creation has been answered.
func (t *Tracker) storageChanged(ctx context.Context) {
	if err := t.lookAgain(ctx); err != nil {
		t.failures.Warn().Err(err).Msg("change was made but the storage hosts could not be looked at yet")
	}
	t.announce(ctx)
}

// lookAgain reads the database and looks at every device. While the console has
// sent the monitor away only the former can be done.
func (t *Tracker) lookAgain(ctx context.Context) error {
	if len(t.watching.IDs()) == 0 {
		return t.cluster.Refresh(ctx)
	}
	return t.monitor.Refresh(ctx)
}

func (t *Tracker) announce(ctx context.Context) {
	if err := t.store.Announce(ctx); err != nil {
		t.failures.Warn().Err(err).Msg("change was made but other trackers could not be told: they see it when they read the database next")
	}
}

// fresh is the cluster as the database has it now, not as it was last read.
func (t *Tracker) fresh(ctx context.Context) (*cluster.Snapshot, error) {
	if err := t.cluster.Refresh(ctx); err != nil {
		return nil, err
	}
	return t.cluster.Snapshot(), nil
}

// domainName is the domain that an administrator names, or no_domain. It need
// not exist.
func (q *query) domainName() (string, error) {
	name := q.Get("domain")
	if !protocol.Truthy(name) {
		return "", protocol.Err("no_domain")
	}
	return name, nil
}

func (t *Tracker) createDomain(ctx context.Context, q *query) error {
	name, err := q.domainName()
	if err != nil {
		return err
	}
	if err := fits("The domain's name", name, maxDomainName); err != nil {
		return err
	}
	if _, err := t.store.CreateDomain(ctx, name); err != nil {
		return err
	}
	t.namespaceChanged(ctx)
	q.reply.Add("domain", name)
	return nil
}

func (t *Tracker) deleteDomain(ctx context.Context, q *query) error {
	name, err := q.domainName()
	if err != nil {
		return err
	}
	if fits("The domain's name", name, maxDomainName) != nil {
		return protocol.ErrDomainNotFound
	}
	err = t.store.DeleteDomain(ctx, name)
	t.paths.clear() // its number may be given to another domain
	if err != nil {
		return err
	}
	t.namespaceChanged(ctx)
	q.reply.Add("domain", name)
	return nil
}

// getDomains lists domains and their classes, by number.
func (t *Tracker) getDomains(_ context.Context, q *query) error {
	domains := slices.SortedFunc(maps.Values(q.at.Domains), func(a, b *cluster.Domain) int { return cmp.Compare(a.ID, b.ID) })
	q.reply.AddInt("domains", int64(len(domains)))
	for i, d := range domains {
		domain := "domain" + strconv.Itoa(i+1)
		q.reply.Add(domain, d.Name)
		q.reply.AddInt(domain+"classes", int64(len(d.Classes)))
		for j, c := range d.Classes {
			class := domain + "class" + strconv.Itoa(j+1)
			q.reply.Add(class+"name", c.Name)
			q.reply.AddInt(class+"mindevcount", int64(c.MinDevCount))
			q.reply.Add(class+"replpolicy", cmp.Or(c.ReplPolicy, "MultipleHosts()"))
			q.reply.Add(class+"hashtype", c.HashType.String())
		}
	}
	return nil
}

func (t *Tracker) updateClass(ctx context.Context, q *query) error {
	return t.writeClass(ctx, q, true)
}

func (t *Tracker) createClass(ctx context.Context, q *query) error {
	return t.writeClass(ctx, q, q.True("update"))
}

// writeClass creates or updates a class.
func (t *Tracker) writeClass(ctx context.Context, q *query, update bool) error {
	domain, err := q.domainName()
	if err != nil {
		return err
	}
	name := q.Get("class")
	if name == "" {
		return protocol.Err("no_class")
	}
	mindevcount := q.Number("mindevcount")
	code, err := t.classCode(ctx, q, domain, name, update)
	if err != nil {
		return err
	}
	if code != nil {
		mindevcount = int64(code.M) + 1 // the copies of a file that is not encoded, by which all else goes
	}
	if mindevcount < 1 {
		return protocol.Err("invalid_mindevcount")
	}
	if mindevcount > math.MaxInt16 {
		return &protocol.Error{Code: "invalid_mindevcount", Text: "The mindevcount must be at most " + strconv.Itoa(math.MaxInt16)}
	}
	copies := int(mindevcount)
	change := schema.ClassChange{MinDevCount: &copies}
	if q.True("replpolicy") {
		policy := q.Get("replpolicy")
		if fits("The policy", unfolded(policy), maxPolicy) != nil {
			return &protocol.Error{Code: "invalid_replpolicy", Text: fmt.Sprintf("A policy must have at most %d characters, without control characters", maxPolicy)}
		}
		if _, err := placement.ParsePolicy(policy); err != nil {
			return err
		}
		if code != nil {
			if err := t.canCode(ctx, *code); err != nil {
				return err
			}
		}
		change.ReplPolicy = &policy
	}
	if q.True("hashtype") {
		hash, ok := protocol.ParseHashType(q.Get("hashtype"))
		if !ok && q.Get("hashtype") != protocol.HashNone.String() {
			return protocol.Err("invalid_hashtype")
		}
		change.HashType = &hash
	}
	if fits("The domain's name", domain, maxDomainName) != nil {
		return protocol.ErrDomainNotFound
	}
	if err := fits("The class's name", name, maxClassName); err != nil {
		return err
	}
	if update {
		err = t.store.UpdateClass(ctx, domain, name, change)
	} else {
		class := schema.Class{Name: name, MinDevCount: copies}
		if change.ReplPolicy != nil {
			class.ReplPolicy = *change.ReplPolicy
		}
		if change.HashType != nil {
			class.HashType = *change.HashType
		}
		_, err = t.store.CreateClass(ctx, domain, class)
	}
	if err != nil {
		return err
	}
	t.namespaceChanged(ctx)
	q.reply.Add("class", name)
	q.reply.AddInt("mindevcount", mindevcount)
	q.reply.Add("domain", domain)
	return nil
}

// classCode is the policy ErasureCode where that is what the class has after it is
// written, and else nil; what cannot be read is judged later.
func (t *Tracker) classCode(ctx context.Context, q *query, domain, name string, update bool) (*placement.ErasureCode, error) {
	text := q.Get("replpolicy")
	if !protocol.Truthy(text) {
		if !update {
			return nil, nil
		}
		at, err := t.fresh(ctx)
		if err != nil {
			return nil, err
		}
		d, ok := at.Domain(domain)
		if !ok {
			return nil, nil
		}
		class, ok := d.Class(name)
		if !ok {
			return nil, nil
		}
		text = class.ReplPolicy
	}
	if policy, err := placement.ParsePolicy(text); err == nil {
		if code, ok := policy.(placement.ErasureCode); ok {
			return &code, nil
		}
	}
	return nil, nil
}

// canCode refuses a policy that this cluster cannot keep, whatever comes back of
// what is away.
func (t *Tracker) canCode(ctx context.Context, p placement.ErasureCode) error {
	refuse := func(format string, args ...any) error {
		return &protocol.Error{Code: "invalid_replpolicy", Text: fmt.Sprintf(format, args...)}
	}
	at, err := t.fresh(ctx)
	if err != nil {
		return err
	}
	devices := 0
	for _, d := range at.DeviceList {
		if !d.Dead() && d.Host != nil && d.Host.Status != schema.HostDead {
			devices++
		}
	}
	if devices < p.K+p.M {
		return refuse("%s needs %d devices, one for each shard; those of this cluster that are not dead are %d", p, p.K+p.M, devices)
	}
	if len(t.opts.ClusterKey) > 0 {
		return nil
	}
	for _, h := range at.HostList {
		if addr, err := netip.ParseAddr(h.IP); h.Status != schema.HostDead && (err != nil || !addr.Unmap().IsLoopback()) {
			return refuse("%s needs a cluster key, as host %s is not on loopback: storage daemons make shards for trackers only that share one with them (--cluster-key-file)", p, h.Name)
		}
	}
	return nil
}

func (t *Tracker) deleteClass(ctx context.Context, q *query) error {
	domain, err := q.domainName()
	if err != nil {
		return err
	}
	name := q.Get("class")
	switch {
	case name == "":
		return protocol.Err("no_class")
	case name == schema.DefaultClass:
		return protocol.Err("nodel_default_class")
	case fits("The domain's name", domain, maxDomainName) != nil:
		return protocol.ErrDomainNotFound
	case fits("The class's name", name, maxClassName) != nil:
		return protocol.ErrClassNotFound
	}
	if err := t.store.DeleteClass(ctx, domain, name); err != nil {
		return err
	}
	t.namespaceChanged(ctx)
	q.reply.Add("domain", domain)
	q.reply.Add("class", name)
	return nil
}
