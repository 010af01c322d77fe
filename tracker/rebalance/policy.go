// Package rebalance queues moves of files between devices as a policy says,
// which the replicate workers carry out.
//
// Policy, state and signals are MogileFS 2.73's settings, so that its tools show
// and change them. A run belongs to Mogile where rebal_host names one of its
// trackers; then any of them works on it, one at a time by a lease, and what was
// queued and how far it went are written in one transaction that expects the
// state that was read: two trackers never queue a part twice, and one that is
// killed loses nothing.
package rebalance

import (
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/mogile/mogile/protocol"
	"github.com/mogile/mogile/schema"
	"github.com/mogile/mogile/tracker/cluster"
)

// Limit is what a policy limits.
type Limit string

// What is limited.
const (
	LimitNone  Limit = "none"
	LimitCount Limit = "count" // files
	LimitSize  Limit = "size"  // bytes
)

// leastSize is the rest of a limit of bytes that counts as used up (MogileFS 2.73).
const leastSize = 1024

// Filter chooses devices. All that is given must hold.
type Filter struct {
	Hosts                    []schema.HostID  // empty: any
	Devices                  []protocol.DevID // empty: any
	PercentUsed, PercentFree *float64         // more than this
	SpaceUsed, SpaceFree     *float64         // more than this, in MiB
}

// Policy says what is to be moved where. Its grammar is MogileFS 2.73's, but for
// Level.
type Policy struct {
	From, To     Filter
	NotToHosts   []schema.HostID
	NotToDevices []protocol.DevID
	Newest       bool // fid_age=new
	Global       bool // limit_type=global: the limit is of the whole run, not of each device
	By           Limit
	Limit        int64
	UseDestDevs  int // most destinations that are permitted to a file; 0: all
	LeaveInDrain bool
	// Level is the greatest difference in fill, in percent points, that a run
	// leaves between devices; 0 where it is no run that levels them. It is
	// Mogile's own (level_spread), and goes with no other item.
	Level float64
}

// badPolicy is a refusal of a policy.
func badPolicy(text string) *protocol.Error {
	return &protocol.Error{Code: "bad_rebal_pol", Text: text}
}

// ParsePolicy understands a policy. Errors have the code bad_rebal_pol. Values
// that make no sense are refused, too, which MogileFS finds out when it runs.
func ParsePolicy(text string) (Policy, error) {
	p := Policy{By: LimitNone}
	if text == "" {
		return p, nil
	}
	limit, items := "", 0
	for item := range strings.SplitSeq(text, " ") {
		name, value, _ := strings.Cut(item, "=")
		known, ok := p.set(name, value)
		if !known {
			return p, badPolicy("Invalid setting " + name)
		}
		if !ok {
			return p, badPolicy("Invalid value of " + name + ": " + value)
		}
		if name == "limit" {
			limit = value
		}
		items++
	}
	if p.Level != 0 && items > 1 {
		return p, badPolicy("level_spread goes with no other setting")
	}
	switch n, ok := quantity(limit, p.By); {
	case limit != "" && !ok:
		return p, badPolicy("Invalid value of limit: " + limit)
	case limit == "" && p.By != LimitNone:
		return p, badPolicy("limit_by needs a limit")
	default:
		p.Limit = n
	}
	return p, nil
}

// set reads one item. It reports whether there is such a one, and whether its
// value makes sense. The value of limit is left to the caller, as it depends on
// limit_by.
func (p *Policy) set(name, value string) (known, ok bool) {
	side, rest := &p.From, ""
	switch {
	case strings.HasPrefix(name, "from_"):
		rest = strings.TrimPrefix(name, "from_")
	case strings.HasPrefix(name, "to_"):
		side, rest = &p.To, strings.TrimPrefix(name, "to_")
	}
	switch rest {
	case "all_devs":
		return true, true
	case "hosts":
		return true, numbers(value, &side.Hosts)
	case "devices":
		return true, numbers(value, &side.Devices)
	case "percent_used":
		return true, measure(value, &side.PercentUsed)
	case "percent_free":
		return true, measure(value, &side.PercentFree)
	case "space_used":
		return true, measure(value, &side.SpaceUsed)
	case "space_free":
		return true, measure(value, &side.SpaceFree)
	}
	switch name {
	case "not_to_hosts":
		return true, numbers(value, &p.NotToHosts)
	case "not_to_devices":
		return true, numbers(value, &p.NotToDevices)
	case "fid_age":
		p.Newest = value == "new"
		return true, value == "new" || value == "old"
	case "limit_type":
		p.Global = value == "global"
		return true, value == "global" || value == "device"
	case "limit_by":
		p.By = Limit(value)
		return true, p.By == LimitNone || p.By == LimitCount || p.By == LimitSize
	case "limit":
		return true, true
	case "use_dest_devs":
		if p.UseDestDevs = 0; value == "all" {
			return true, true
		}
		n, err := strconv.ParseUint(value, 10, 31)
		p.UseDestDevs = int(n)
		return true, err == nil && n > 0
	case "leave_in_drain_mode":
		p.LeaveInDrain = protocol.Truthy(value)
		return true, true
	case "level_spread":
		spread, err := strconv.ParseFloat(value, 64)
		p.Level = spread
		return true, err == nil && spread > 0 && spread <= 100
	}
	return false, false
}

// numbers reads a list of numbers with commas, as ids are.
func numbers[T protocol.DevID | schema.HostID](text string, into *[]T) bool {
	*into = nil
	for f := range strings.SplitSeq(text, ",") {
		if f == "" {
			continue
		}
		n, err := strconv.ParseUint(f, 10, 15) // SMALLINT
		if err != nil || n == 0 {
			return false
		}
		*into = append(*into, T(n))
	}
	return true
}

func measure(text string, into **float64) bool {
	n, err := strconv.ParseFloat(text, 64)
	*into = &n
	return err == nil && n >= 0 && !math.IsInf(n, 0)
}

// quantity reads a limit: for bytes it may end in b, k, m, g, t or p.
func quantity(text string, by Limit) (int64, bool) {
	shift := 0
	if by == LimitSize && text != "" {
		if i := strings.IndexByte("bkmgtp", text[len(text)-1]|0x20); i >= 0 {
			text, shift = text[:len(text)-1], 10*i
		}
	}
	n, err := strconv.ParseUint(text, 10, 63)
	if err != nil || n > math.MaxInt64>>shift {
		return 0, false
	}
	return int64(n) << shift, true
}

// chooses reports whether a device passes the filter.
func (f Filter) chooses(d *cluster.Device) bool {
	if len(f.Hosts) > 0 && !slices.Contains(f.Hosts, d.HostID) {
		return false
	}
	if len(f.Devices) > 0 && !slices.Contains(f.Devices, d.ID) {
		return false
	}
	if f.PercentUsed == nil && f.PercentFree == nil && f.SpaceUsed == nil && f.SpaceFree == nil {
		return true
	}
	if d.TotalMB == nil || d.UsedMB == nil || *d.TotalMB <= 0 {
		return false
	}
	total, used := float64(*d.TotalMB), float64(*d.UsedMB)
	above := func(n float64, least *float64) bool { return least == nil || n > *least }
	return above(100*used/total, f.PercentUsed) && above(100*(total-used)/total, f.PercentFree) &&
		above(used, f.SpaceUsed) && above(total-used, f.SpaceFree)
}

// Sources are the devices that files are moved from.
func (p Policy) Sources(devices []*cluster.Device) []protocol.DevID {
	var devs []protocol.DevID
	for _, d := range devices {
		if d.LetsDelete() && p.From.chooses(d) {
			devs = append(devs, d.ID)
		}
	}
	return devs
}

// Destinations are the devices that files may be moved to: none of sources, and
// with minFreeMB MiB free where their size is known.
func (p Policy) Destinations(devices []*cluster.Device, sources []protocol.DevID, minFreeMB int64) []protocol.DevID {
	var devs []protocol.DevID
	for _, d := range devices {
		if d.TakesFiles(minFreeMB) && p.To.chooses(d) && !slices.Contains(sources, d.ID) &&
			!slices.Contains(p.NotToHosts, d.HostID) && !slices.Contains(p.NotToDevices, d.ID) {
			devs = append(devs, d.ID)
		}
	}
	return devs
}
